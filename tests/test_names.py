"""Names that explain themselves: words of a private vocabulary do not come back."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "flagkit"
MODULES = sorted(PACKAGE.rglob("*.py"))

FORBIDDEN = {
    *("told", "tell", "tells", "telling", "said", "say", "says", "saying", "saw", "look", "looks"),
    *("looked", "standing", "keeping", "keeper", "turns", "glass", "upon", "foreseen", "judged"),
    *("judging", "strays", "resting", "rests", "anew", "unsealing", "withheld", "lagging", "led"),
    *("made", "kept", "behind", "room", "rooms"),
}
"""Words for which the field, or Python, has another one: see the glossary."""
ALLOWED = {
    "break_glass",  # click names the parameter after the option --break-glass
}
PARTICIPLES = {
    *("found_in", "given_back", "sealed_in", "held_by", "opened", "folded", "revived", "audited"),
}


def words_in(name: str) -> list[str]:
    """Return the words of a name, in lower case."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return [word.lower() for word in spaced.split("_") if word]


def defined_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the names of modules, classes, functions, parameters, variables and attributes."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.lineno, node.name
            case ast.arg():
                yield node.lineno, node.arg
            case ast.Name(ctx=ast.Store()):
                yield node.lineno, node.id
            case ast.Attribute(ctx=ast.Store()):
                yield node.lineno, node.attr
            case _:
                pass


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_name_has_a_word_of_a_private_vocabulary(path: Path) -> None:
    found = [(0, path.stem), *defined_names(ast.parse(path.read_text()))]
    assert [
        f"line {line}: {name}"
        for line, name in found
        if FORBIDDEN.intersection(words_in(name)) or name in PARTICIPLES
        if name not in ALLOWED
    ] == []


def public_definitions() -> Iterator[tuple[str, Path]]:
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not (
                node.name.startswith("_")
            ):
                yield node.name, path


def test_a_public_name_occurs_once() -> None:
    places: dict[str, list[str]] = {}
    for name, path in public_definitions():
        places.setdefault(name, []).append(str(path.relative_to(PACKAGE)))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_functions_of_modules_do_not_end_in_a_preposition() -> None:
    # Verbs such as "wait_for" and "log_in" may; relations such as "region_of" may not.
    assert [
        f"{path.relative_to(PACKAGE)}: {name}"
        for name, path in public_definitions()
        if re.search(r"_(?:of|in|by)$", name) and name != "digest_of"
    ] == []
