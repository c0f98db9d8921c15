"""The rules of the layout: import directions, owners of dependencies, the size of modules."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from flagkit.writer import Writer
from tests.support.module_trace import trace_modules

SOURCE = Path(__file__).parent.parent / "src"
PACKAGE = SOURCE / "flagkit"
MODULES = sorted(PACKAGE.rglob("*.py"))

# From the bottom up. A module imports only from its own area and from lower lines; areas of one
# line never import each other. A path names a module or a package below src/flagkit.
LEVELS = [
    ["_core/__init__", "_core/printable", "_core/interruptions", "_core/cooperative"],
    ["errors"],
    [
        "_core/regex",
        "_core/background",
        "_core/arguments",
        "_core/suggestions",
        "_core/strict_json",
    ],
    ["_core/model", "_core/aio"],
    ["_core/secrets", "_core/snapshot"],
    ["_core/source", "_core/evaluation"],
    ["_core/storage"],
    ["config", "policy_files"],
    ["client", "writer"],
    ["__init__"],
    ["history", "testing"],
    ["integrations"],
    ["cli"],
]
LEVEL_OF = {area: level for level, areas in enumerate(LEVELS) for area in areas}

OWNERS = {
    "pymongo": {"_core/storage", "testing/embedded"},
    "bson": {"_core/storage"},
    "msgspec": {"_core", "client", "config", "history", "writer", "policy_files", "cli"},
    "xxhash": {"_core/model", "_core/evaluation", "_core/snapshot"},
    "cachetools": {"_core/evaluation"},
    "asyncio": {"_core/aio", "_core/storage", "client", "testing"},
    "click": {"cli"},
    "rich": {"cli"},
    "ruamel": {"policy_files"},
    "opentelemetry": {"integrations/opentelemetry"},
}
PURE = {
    *("_core/printable", "_core/strict_json", "_core/model", "_core/regex", "_core/snapshot"),
    *("_core/evaluation", "client/refresher", "errors"),
}
IMPURE = {"asyncio", "socket", "logging", "subprocess", "bson", "pymongo"}
PURE_BUT_FOR_WARNINGS = {"_core/evaluation/evaluator"}
# Imports inside functions, each deferred for the same reason: `import flagkit` must stay small.
DEFERRED = {
    ("client/sources", "flagkit._core.strict_json"),
    ("client/client", "flagkit.client.refresh_thread"),
    ("client/sources", "flagkit._core.storage.source"),
    ("client/sources", "flagkit._core.storage.encryption"),
    ("writer/draft", "flagkit._core.storage.encryption"),
    ("cli/__init__", "flagkit.cli.main"),
}
LINES_MAX = 1_200
LONGER: dict[str, str] = {}
"""Modules that may be longer, each with the reason."""
ENTRIES_MAX = 14
MODULES_MAX = 135
IMPORT_LINES_MAX = 0.07
ENTERED_MAX = 26


def name_of(path: Path) -> str:
    """Return the path of a module below the package, such as `_core/model/values`."""
    return str(path.relative_to(PACKAGE).with_suffix(""))


def path_of(module: str) -> str:
    """Return the path that a dotted name stands for."""
    return "/".join(module.split(".")[1:]) or "__init__"


def is_within(name: str, area: str) -> bool:
    return name == area or name.startswith(f"{area}/")


def area_of(name: str) -> str:
    """Return the area of LEVELS that a module is in."""
    (area,) = [area for area in LEVEL_OF if is_within(name, area)]
    return area


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for name in node.names:
                whole = f"{node.module}.{name.name}"
                yield whole if is_module(whole) else str(node.module)


def is_module(dotted: str) -> bool:
    path = SOURCE.joinpath(*dotted.split("."))
    return path.with_suffix(".py").is_file() or path.joinpath("__init__.py").is_file()


def deferred_imports(tree: ast.AST) -> Iterator[str]:
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imports(function)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    own = area_of(name_of(path))
    for module in imports(ast.parse(path.read_text())):
        if module.split(".")[0] != "flagkit":
            continue
        target = area_of(path_of(module))
        assert target == own or LEVEL_OF[target] < LEVEL_OF[own], f"{own} must not import {module}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_each_dependency_has_its_owners(path: Path) -> None:
    own = name_of(path)
    is_pure = any(is_within(own, area) for area in PURE - PURE_BUT_FOR_WARNINGS)
    for module in imports(ast.parse(path.read_text())):
        library = module.split(".")[0]
        owners = OWNERS.get(library)
        assert owners is None or any(is_within(own, area) for area in owners), (
            f"{own} must not use {module}"
        )
        assert not is_pure or library not in IMPURE, f"{own} is pure"
        assert not is_pure or own in PURE_BUT_FOR_WARNINGS or module != "flagkit._core.background"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_stand_at_the_top(path: Path) -> None:
    deferred = {(name_of(path), module) for module in deferred_imports(ast.parse(path.read_text()))}
    assert {pair for pair in deferred if pair[1].startswith("flagkit")} <= DEFERRED


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_long_module_has_a_reason(path: Path) -> None:
    # Ruff bounds functions, by statements and by branches.
    assert path.read_text().count("\n") <= LINES_MAX or name_of(path) in LONGER


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_has_a_docstring(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring
    assert path.name == "errors.py" or docstring.count("\n") < 25


def test_every_module_has_a_level() -> None:
    assert {area_of(name_of(path)) for path in MODULES} == set(LEVEL_OF)


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    edges: dict[str, set[str]] = {}
    for path in MODULES:
        module = f"flagkit.{name_of(path).replace('/', '.')}".removesuffix(".__init__")
        tree = ast.parse(path.read_text())
        known = set(imports(tree)) - set(deferred_imports(tree)) - {module}
        edges[module] = {found for found in known if found.startswith("flagkit")}
    remaining = dict(edges)
    while remaining:
        free = {module for module, known in remaining.items() if not known & remaining.keys()}
        assert free, f"a circle among {sorted(remaining)}"
        for module in free:
            del remaining[module]


def test_the_layout_stays_small() -> None:
    entries = {path.name for path in PACKAGE.iterdir()} - {"__pycache__"}
    assert len(entries) <= ENTRIES_MAX
    assert len(MODULES) <= MODULES_MAX


@pytest.mark.mongo
def test_a_change_of_weights_enters_few_modules(writer: Writer) -> None:
    writer.create(
        {
            "key": "shop.express",
            "variants": {"on": True, "off": False},
            "off": "off",
            "fallthrough": {"rollout": {"weights": {"on": 10, "off": 90}}},
        }
    )
    writer.set_rollout("shop.express", {"on": 20, "off": 80})
    entered = trace_modules(lambda: writer.set_rollout("shop.express", {"on": 30, "off": 70}))
    assert len(entered) <= ENTERED_MAX, entered


def test_imports_are_a_small_part_of_the_source() -> None:
    lines = imported = 0
    for path in MODULES:
        text = path.read_text()
        lines += text.count("\n")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                imported += (node.end_lineno or node.lineno) - node.lineno + 1
    assert imported <= IMPORT_LINES_MAX * lines, f"{imported} of {lines}"


def test_the_page_on_the_architecture_has_each_module() -> None:
    page = (SOURCE.parent / "docs" / "architecture" / "modules.md").read_text()
    missing = [name_of(path) for path in MODULES if f"`{name_of(path)}.py`" not in page]
    assert missing == []
    stale = [
        line
        for line in page.splitlines()
        if line.startswith("| `") and not (PACKAGE / line.split("`")[1]).is_file()
    ]
    assert stale == []
