"""Policy JSON: all that read policy files refuse and accept the same."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flagkit._core.strict_json import parse_json, parse_policies
from flagkit.cli.commands.flags_import import ImportFiles
from flagkit.client.sources import load_bootstrap_snapshot
from flagkit.errors import FlagkitError, InvalidDocumentError
from flagkit.policy_files.reader import PolicyFile
from flagkit.writer import Import
from tests.writer.test_writer import flag

FLAG = json.dumps(flag("a.b"))
SEGMENT = json.dumps({"key": "staff", "included": ["ada"]})


def nested(depth: int) -> str:
    return f'{{"flags": [{{"key": "a.b", "variants": {{"on": {"[" * depth}{"]" * depth}}}}}]}}'


REFUSED: dict[str, str | bytes] = {
    "a field twice": f'{{"flags": [{FLAG[:-1]}, "off": "on"}}]}}',
    "a list twice": f'{{"flags": [{FLAG}], "flags": []}}',
    "a flag twice in one line": f'{{"flags": [{FLAG}, {FLAG}]}}',
    "a flag twice in two lines": f'{{"flags": [{FLAG},\n{FLAG}]}}',
    "a segment twice in one line": f'{{"segments": [{SEGMENT}, {SEGMENT}]}}',
    "NaN": '{"flags": [{"key": "a.b", "variants": {"on": NaN}, "fallthrough": {"serve": "on"}}]}',
    "infinity": '{"flags": [{"key": "a.b", "variants": {"on": -Infinity}}]}',
    "deep": nested(40),
    "far too deep": nested(50_000),
    "a number of many digits": f'{{"flags": [{{"variants": {{"on": {"9" * 5000}}}}}]}}',
    "empty": "",
    "an empty document": "{}",
    "a list": "[]",
    "another field": '{"flag": []}',
    "another field as well": f'{{"flags": [{FLAG}], "flag": []}}',
    "no list": '{"flags": {}}',
    "no documents": '{"flags": [1]}',
    "more behind it": f'{{"flags": [{FLAG}]}} {{}}',
    "no UTF-8": b'{"flags": [{"key": "\xff"}]}',
    "a lone surrogate": '{"flags": [{"key": "a.b", "variants": {"on": "\\ud800"}}]}',
}
ACCEPTED = {
    "a flag": f'{{"flags": [{FLAG}]}}',
    "a byte order mark": f'\ufeff{{"flags": [{FLAG}]}}',
    "a pair of surrogates": json.dumps({"flags": [flag("a.b", owner="\U0001f600")]}),
    "a separator of lines": f'{{"flags": [{json.dumps(flag("a.b", owner="x"))}]}}'.replace(
        '"x"', '"\u2028"'
    ),
    "segments alone": f'{{"segments": [{SEGMENT}]}}',
    "a list that is empty": '{"flags": []}',
}


def by_command(path: Path) -> None:
    PolicyFile(path, "production")


def by_import(path: Path) -> None:
    found = ImportFiles([path], Import("production"), "production")
    if found.faults:
        raise found.faults[0]


def by_bootstrap(path: Path) -> None:
    load_bootstrap_snapshot(path, "production", "*")


READERS = [by_command, by_import, by_bootstrap]


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
@pytest.mark.parametrize("case", REFUSED)
def test_each_reader_refuses_what_readers_disagree_on(
    case: str, reader: Any, tmp_path: Path
) -> None:
    content = REFUSED[case]
    path = tmp_path / "flags.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FlagkitError) as caught:
        reader(path)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
@pytest.mark.parametrize("case", ACCEPTED)
def test_each_reader_accepts_the_same(case: str, reader: Any, tmp_path: Path) -> None:
    path = tmp_path / "flags.json"
    path.write_text(ACCEPTED[case], "utf-8")
    reader(path)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"key": "a.c", "key": "a.d"}', "the field 'key' is there twice. Keep one"),
        ('{"key": NaN}', "has NaN, which is not JSON"),
        ("[" * 50_000, "is nested too deeply"),
        ('{"key": ', "is not JSON: Expecting value at column 9"),
        (b"\xff", "is not UTF-8"),
    ],
)
def test_a_fault_in_json_lines_is_named_by_its_line(
    line: str | bytes, problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "flags.jsonl"
    content = line if isinstance(line, bytes) else line.encode()
    path.write_bytes(b"\xef\xbb\xbf" + FLAG.encode() + b"\n" + content + b"\n")
    found = ImportFiles([path], Import("production"), "production")
    (fault,) = found.faults
    assert str(fault).startswith(str(path))
    assert problem in str(fault)


def test_a_fault_is_named_by_its_line() -> None:
    with pytest.raises(InvalidDocumentError) as caught:
        parse_policies('{"flags": [\n  {"key": }\n]}', "flags.json")
    problem = "document: is not JSON: Expecting value at column 11"
    assert str(caught.value) == f"flags.json:2: {problem}. Correct it and try again"


def test_what_is_read_is_what_json_says() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": [1, 2.5, null]}', "x") == {"a": [1, 2.5, None]}


def test_a_bootstrap_needs_nothing_of_the_command() -> None:
    names = "('ruamel', 'click')"
    code = f"import sys, flagkit.client.sources; sys.exit(any(n in sys.modules for n in {names}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
