"""Policy sets: files that are valid by themselves are held to each other."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from flagkit.cli.main import flagkit

BASE = """
- key: a.base
  variants: {"on": true, "off": false}
  fallthrough: {serve: "on"}
"""
NEEDS = """
- key: a.needs
  variants: {"on": true, "off": false}
  prerequisites: [{flag: a.base, variants: ["VARIANT"]}]
  fallthrough: {serve: "on"}
"""
STAFF = """
- key: a.staff
  variants: {"on": true, "off": false}
  rules: [{name: staff, when: {$segment: staff}, serve: "on"}]
  fallthrough: {serve: "off"}
"""
CYCLE = """
- key: a.base
  variants: {"on": true, "off": false}
  prerequisites: [{flag: a.needs, variants: ["on"]}]
  fallthrough: {serve: "on"}
"""
SEGMENT = "segments: [{key: staff, included: [ada]}]"


def flags(*documents: str) -> str:
    return "flags:" + "".join(documents)


def validated(folder: Path, *contents: str, partial: bool = False) -> tuple[int, str]:
    paths = []
    for number, content in enumerate(contents):
        path = folder / f"{number}.yaml"
        path.write_text(content)
        paths.append(str(path))
    options = ["--partial"] if partial else []
    result = CliRunner().invoke(flagkit, ["validate", *options, *paths])
    return result.exit_code, result.output.replace(f"{folder}/", "")


FAULTS: dict[str, tuple[list[str], str]] = {
    "a flag in two files": ([flags(BASE), flags(BASE)], "1.yaml:2: flag 'a.base': key: is in"),
    "a segment in two files": (
        [SEGMENT, SEGMENT],
        "1.yaml:1: segment 'staff': key: is in another file, too",
    ),
    "a variant that there is not": (
        [flags(BASE), flags(NEEDS.replace("VARIANT", "yes"))],
        "1.yaml:4: flag 'a.needs': prerequisites[0].variants: 'yes' is no variant of 'a.base'",
    ),
    "a cycle": (
        [flags(CYCLE), flags(NEEDS.replace("VARIANT", "on"))],
        "prerequisites: form a cycle: a.base -> a.needs -> a.base",
    ),
}
MISSING: dict[str, tuple[str, str]] = {
    "a prerequisite": (
        flags(NEEDS.replace("VARIANT", "on")),
        "0.yaml:4: flag 'a.needs': prerequisites[0].flag: 'a.base' is in none of the files. Add it",
    ),
    "a segment": (
        flags(STAFF),
        "0.yaml:4: flag 'a.staff': rules: refer to the segment 'staff', which is in none of",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
@pytest.mark.parametrize("partial", [False, True])
def test_files_that_do_not_fit_together_are_refused(
    case: str, *, partial: bool, tmp_path: Path
) -> None:
    contents, problem = FAULTS[case]
    code, told = validated(tmp_path, *contents, partial=partial)
    assert code == 3
    assert problem in told
    assert "all valid" not in told


@pytest.mark.parametrize("case", MISSING)
def test_what_is_in_none_of_the_files_is_refused_unless_it_may_be_elsewhere(
    case: str, tmp_path: Path
) -> None:
    content, problem = MISSING[case]
    code, told = validated(tmp_path, content)
    assert (code, "all valid" in told) == (3, False)
    assert problem in told
    assert validated(tmp_path, content, partial=True)[0] == 0


def test_files_complete_each_other(tmp_path: Path) -> None:
    needs = flags(NEEDS.replace("VARIANT", "on"), STAFF)
    code, told = validated(tmp_path, needs, flags(BASE), SEGMENT)
    assert code == 0
    assert told.count("all valid") == 3


def test_a_tab_is_named_as_a_tab(tmp_path: Path) -> None:
    for content in ("flags:\n\t- key: a.c\n", "flags:\n  - key: a.b\n\tvariants: {}\n"):
        code, told = validated(tmp_path, content)
        assert code == 3
        assert "a tab stands where YAML takes spaces alone: indent with spaces" in told
