"""Documentation that runs: every Python block, every policy document, and every link."""

import doctest
import importlib
import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from flagkit._core.model import decode, encode
from flagkit._core.model.conditions import KEYWORDS
from flagkit._core.model.segments import decode_segment, encode_segment
from flagkit._core.storage.provision import ALL, ROLES
from flagkit.policy_files.reader import PolicyFile
from flagkit.testing import client_from
from flagkit.writer.operations import TRANSITIONS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(language: str) -> list[Any]:
    found = []
    for page in PAGES:
        for number, code in enumerate(
            re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
        ):
            found.append(pytest.param(code, id=f"{name_of(page)}-{number}"))
    return found


def modules_with_examples() -> list[str]:
    source = ROOT / "src"
    return [
        ".".join(path.relative_to(source).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted(source.rglob("*.py"))
        if re.search(r"^ +>>> ", path.read_text(), re.MULTILINE)
    ]


@pytest.mark.parametrize("module", modules_with_examples())
def test_examples_in_docstrings_run(module: str) -> None:
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted > 0
    assert found.failed == 0


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_run(code: str) -> None:
    exec(compile(code, "<docs>", "exec"), {})


@pytest.mark.parametrize("code", blocks("python notest"))
def test_python_blocks_that_need_a_database_are_python(code: str) -> None:
    compile(code, "<docs>", "exec")


@pytest.mark.parametrize("code", blocks("yaml"))
def test_yaml_blocks_are_policies_or_parts_of_them(code: str) -> None:
    document = YAML(typ="safe").load(code)
    if "included" in document:
        segment = decode_segment(document).segment
        assert decode_segment(encode_segment(segment)).segment == segment
        return
    part = {"fallthrough": document} if {"rollout", "ramp"} & document.keys() else document
    minimal = {
        "key": "docs.example",
        "variants": {"on": True, "off": False},
        "fallthrough": {"serve": "off"},
    }
    flag = decode(minimal | part)
    assert decode(encode(flag)) == flag


def test_the_first_example_of_the_readme_is_a_flag() -> None:
    assert len(PolicyFile(ROOT / "examples" / "shop" / "flags.yaml").policies) >= 12


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", text):
        if not target.startswith("http"):
            found = (page.parent / target).resolve() if target else page
            assert found.exists(), target
            assert not anchor or found.suffix != ".md" or anchor in anchors(found), anchor


def test_the_overview_of_the_architecture_is_short() -> None:
    assert len((DOCS / "architecture" / "index.md").read_text().split()) <= 2_500


def test_the_overview_of_the_architecture_lists_each_page() -> None:
    index = (DOCS / "architecture" / "index.md").read_text()
    for page in (DOCS / "architecture").glob("*.md"):
        assert page.name == "index.md" or page.name in index, page.name


def test_the_index_of_decisions_lists_each_of_them_in_order() -> None:
    pages = sorted(page for page in (DOCS / "decisions").glob("*.md") if page.name != "index.md")
    index = (DOCS / "decisions" / "index.md").read_text()
    listed = re.findall(r"^- \[(\d{3})\]\(([\w.-]+)\) (.+)$", index, re.MULTILINE)
    assert [name for _, name, _ in listed] == [page.name for page in pages]
    assert [int(number) for number, _, _ in listed] == [*range(1, len(pages) + 1)]
    for page, (number, _, title) in zip(pages, listed, strict=True):
        assert page.read_text().startswith(f"# {number}. {title}\n"), page.name


def test_each_decision_has_its_sections() -> None:
    for page in (DOCS / "decisions").glob("[0-9]*.md"):
        sections = re.findall(r"^## (.+)$", page.read_text(), re.MULTILINE)
        assert sections[:3] == ["Context", "Decision", "Rejected"], page.name
        assert 60 <= len(page.read_text().split()) <= 200, page.name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_page_tells_to_install_another_projects_package(page: Path) -> None:
    assert not re.search(r"pip install (-\S+ )*['\"]?flagkit(?!-mongodb)", page.read_text())


POLICY = (ROOT / "docs" / "policy.md").read_text()


def spans(cell: str) -> list[Any]:
    """Return what stands in backticks, as YAML has it."""
    written = re.findall(r"`([^`]+)`", cell)
    return [YAML(typ="safe").load(code.replace(r"\|", "|")) for code in written]


def examples() -> list[Any]:
    table = POLICY.partition("| condition | holds if |")[2].partition("\n\n")[0]
    found = []
    for line in table.splitlines()[2:]:
        condition, _, holds, does_not = re.split(r"(?<!\\)\|", line.strip("| "))
        found.append(
            pytest.param(spans(condition)[0], spans(holds), spans(does_not), id=condition.strip())
        )
    return found


@pytest.mark.parametrize(("condition", "holds", "does_not"), examples())
def test_each_operator_does_what_its_example_says(
    condition: dict[str, Any], holds: list[Any], does_not: list[Any]
) -> None:
    segments = [YAML(typ="safe").load(param.values[0]) for param in blocks("yaml")]
    flag = {
        "key": "docs.example",
        "variants": {"on": True, "off": False},
        "rules": [{"name": "only", "when": condition, "serve": "on"}],
        "fallthrough": {"serve": "off"},
    }
    client = client_from([flag], [segment for segment in segments if "included" in segment])
    assert [context for context in holds if not client.is_enabled("docs.example", context)] == []
    assert [context for context in does_not if client.is_enabled("docs.example", context)] == []
    assert holds
    assert does_not


def test_each_operator_has_an_example() -> None:
    written = str([param.values[0] for param in examples()])
    for operator in KEYWORDS:
        assert f"'{operator}'" in written, operator


def test_the_page_on_writing_has_the_table_of_transitions() -> None:
    page = (ROOT / "docs" / "writing.md").read_text()
    head, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if line.startswith("| ")
    )
    found = {
        row[0].strip("`"): {
            standing: after for standing, after in zip(head[1:], row[1:], strict=True) if after
        }
        for row in rows
    }
    assert found == TRANSITIONS
    assert [*found] == [*TRANSITIONS]


def test_the_page_on_access_has_the_table_of_roles() -> None:
    page = (ROOT / "docs" / "access.md").read_text()
    head, _, *rows = page[page.index("| collection |") :].partition("\n\n")[0].splitlines()
    roles = [cell.strip() for cell in head.strip("|").split("|")][1:]
    found: dict[str, dict[str, tuple[str, ...]]] = {role: {} for role in roles}
    for row in rows:
        name, *cells = [cell.strip() for cell in row.strip("|").split("|")]
        collection = ALL if name == "all of them" else name.strip("`")
        for role, cell in zip(roles, cells, strict=True):
            if cell:
                found[role][collection] = tuple(cell.split(", "))
    assert found == ROLES
