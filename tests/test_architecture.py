"""The rules of the layout: who may import whom, who owns each dependency, how long a module is."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src"
ROOMS = sorted((SOURCE / "flagkit").rglob("*.py"))

# From the ground up: a room imports only what stands on a lower line.
LEVELS = [
    ["printable"],
    ["errors", "interruptions", "logs"],
    ["background", "suggestions"],
    ["descriptors", "mistakes", "model", "policy_json"],
    [
        *(
            "arguments",
            "core",
            "changes",
            "forks",
            "counting",
            "breaker",
            "heartbeat",
            "names_loop",
            "collector",
        ),
        "encryption",
    ],
    ["snapshot", "unsealing"],
    ["refresh", "view", "bootstrap", "references"],
    ["storage", "keeping", "registering", "explaining", "settings", "status", "subscriptions"],
    ["answers", "origin"],
    ["refresh_thread"],
    ["client"],
    ["counting_client"],
    ["__init__"],
    ["testing", "embedded", "writer", "telemetry", "history"],
    ["cli"],
]
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}

OWNERS = {
    "pymongo": {"storage", "embedded"},
    "bson": {"storage"},
    "msgspec": {
        "model",
        "core",
        "changes",
        "snapshot",
        "refresh",
        "breaker",
        "view",
        "settings",
        "status",
        "heartbeat",
        "registering",
        "encryption",
        "unsealing",
        "counting",
        "client",
        "storage",
        "writer",
        "history",
        "cli",
    },
    "xxhash": {"model", "core", "changes", "snapshot"},
    "cachetools": {"core"},
    "asyncio": {"names_loop", "keeping", "registering", "refresh_thread", "storage", "testing"},
    "click": {"cli"},
    "rich": {"cli"},
    "ruamel": {"cli"},
    "opentelemetry": {"telemetry"},
}
PURE = {
    *(
        "printable",
        "errors",
        "suggestions",
        "model",
        "policy_json",
        "core",
        "changes",
        "snapshot",
        "breaker",
    ),
    "refresh",
}
IMPURE = {"asyncio", "socket", "logging", "subprocess", "bson", "pymongo"}
# Imports inside functions, each deferred for the same reason: `import flagkit` must stay small.
DEFERRED = {
    ("bootstrap", "flagkit.policy_json"),
    ("client", "flagkit.refresh_thread"),
    ("origin", "flagkit.storage.source"),
    ("origin", "flagkit.storage.encryption"),
    ("writer", "flagkit.storage.encryption"),
    ("cli", "flagkit.cli.commands"),
}
LINES_MAX = 1_200


def room(path: Path) -> str:
    parts = path.relative_to(SOURCE / "flagkit").with_suffix("").parts
    return parts[0]


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield str(node.module)


def deferred_imports(tree: ast.AST) -> Iterator[str]:
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imports(function)


def target(module: str) -> str:
    """Return the room that a module of flagkit is in."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    own = room(path)
    for module in imports(ast.parse(path.read_text())):
        if module.split(".")[0] != "flagkit" or target(module) == own:
            continue
        assert LEVEL_OF[target(module)] < LEVEL_OF[own], f"{own} must not know {module}"


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: str(path.relative_to(SOURCE)))
def test_each_dependency_has_its_owners(path: Path) -> None:
    own = room(path)
    for module in imports(ast.parse(path.read_text())):
        owners = OWNERS.get(module.split(".")[0])
        assert owners is None or own in owners, f"{own} must not use {module}"
        assert own not in PURE or module.split(".")[0] not in IMPURE, f"{own} is pure"
        assert own not in PURE or module != "flagkit.logs", f"{own} is pure"


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_stand_at_the_top(path: Path) -> None:
    deferred = {(room(path), module) for module in deferred_imports(ast.parse(path.read_text()))}
    assert {pair for pair in deferred if pair[1].startswith("flagkit")} <= DEFERRED


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: str(path.relative_to(SOURCE)))
def test_modules_are_short_enough_to_own_one_noun(path: Path) -> None:
    # Ruff bounds functions, by statements and by branches.
    assert path.read_text().count("\n") <= LINES_MAX


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: str(path.relative_to(SOURCE)))
def test_every_room_says_what_it_is(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring
    assert path.name == "errors.py" or docstring.count("\n") < 15


def test_every_room_has_its_level() -> None:
    assert {room(path) for path in ROOMS} == set(LEVEL_OF)


def test_rooms_do_not_import_each_other_in_a_circle() -> None:
    edges: dict[str, set[str]] = {}
    for path in ROOMS:
        module = ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        tree = ast.parse(path.read_text())
        known = set(imports(tree)) - set(deferred_imports(tree)) - {module}
        edges[module] = {found for found in known if found.startswith("flagkit")}
    remaining = dict(edges)
    while remaining:
        free = {module for module, known in remaining.items() if not known & remaining.keys()}
        assert free, f"a circle among {sorted(remaining)}"
        for module in free:
            del remaining[module]


def test_the_page_on_the_design_has_each_room() -> None:
    page = (SOURCE.parent / "docs" / "design.md").read_text()
    tables = page[page.index("\n## Rooms\n") : page.index("\n## Evaluation\n")]
    listed: dict[str, list[str]] = {}
    package = ""
    for line in tables.splitlines():
        if not line.startswith("|"):
            package = ""
            continue
        names = re.findall(r"`([\w/.]+)`", line.split("|")[1])
        if line.startswith("| of "):
            [package] = names
        else:
            listed.setdefault(package, []).extend(names)
    found: dict[str, list[str]] = {}
    for room in ROOMS:
        name = room.relative_to(SOURCE / "flagkit")
        if len(name.parts) == 1:
            found.setdefault("", []).append(str(name))
        elif name.name != "__init__.py":
            found.setdefault(f"{name.parts[0]}/", []).append(name.stem)
    found[""] += [package for package in found if package]
    assert {package: sorted(names) for package, names in listed.items()} == {
        package: sorted(names) for package, names in found.items()
    }
