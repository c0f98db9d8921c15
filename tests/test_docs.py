"""Documentation that runs: every Python block, every policy document, and every link."""

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from flagkit.cli.policy_files import PolicyFile
from flagkit.model import decode, encode
from flagkit.model.segments import decode_segment, encode_segment

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


def blocks(language: str) -> list[Any]:
    found = []
    for page in PAGES:
        for number, code in enumerate(
            re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
        ):
            found.append(pytest.param(code, id=f"{page.name}-{number}"))
    return found


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_tells_to_install_another_projects_package(page: Path) -> None:
    assert not re.search(r"pip install (-\S+ )*['\"]?flagkit(?!-mongodb)", page.read_text())
