"""`flagkit flags import`: policy files and JSON lines, by way of the command."""

import json
from pathlib import Path
from typing import Any

import pytest

from flagkit.writer import Writer
from tests.support.cli_runner import CommandRunner, fetch_revision
from tests.writer.test_writer import flag, policy

pytestmark = pytest.mark.mongo


@pytest.fixture
def command(writer: Writer, mongo_uri: str, database: str) -> CommandRunner:
    assert writer.store.read_tip().revision == 0
    return CommandRunner(mongo_uri, database)


def lines(path: Path, *documents: Any) -> str:
    path.write_text("\n".join(map(json.dumps, documents)))
    return str(path)


def test_files_of_all_kinds_are_imported_together(
    command: CommandRunner, writer: Writer, tmp_path: Path
) -> None:
    ruled = {"name": "staff", "when": {"$segment": "staff"}, "serve": "on"}
    in_lines = lines(tmp_path / "flags.jsonl", flag("a.one"), flag("a.two", rules=[ruled]))
    in_json = tmp_path / "flags.json"
    in_json.write_text(json.dumps({"flags": [flag("a.three")]}))
    in_yaml = tmp_path / "segments.yaml"
    in_yaml.write_text("segments:\n- key: staff\n  included: [ada]\n")
    asked = ("flags", "import", in_lines, str(in_json), str(in_yaml), "--reason", "moved here")
    dry = command.told(*asked, "--dry-run")
    assert dry == (
        "segment staff: created\nsegment staff: included: 1 keys\n"
        "a.one: created\na.one: fallthrough: serves on\n"
        "a.two: created\na.two: rule staff: serves on\na.two: fallthrough: serves on\n"
        "a.three: created\na.three: fallthrough: serves on\n"
        "4 would be created, 0 updated, 0 as asked\n"
    )
    assert fetch_revision(writer) == 0
    assert command.told(*asked) == "4 created, 0 updated, 0 as asked: revisions 1 to 2\n"
    assert {entry.reason for entry in writer.reader.entries()} == {"moved here"}
    assert {entry.actor for entry in writer.reader.entries()} == {"ada@example.com"}
    assert policy(writer, "a.three")["off"] == "off"
    assert command.data(*asked) == {
        "created": 0,
        "updated": 0,
        "unchanged": 4,
        "revisions": [],
        "differences": [],
    }


def test_faults_are_told_with_file_and_line_and_nothing_is_written(
    command: CommandRunner, writer: Writer, tmp_path: Path
) -> None:
    twice = '{"key": "a.d", "key": "a.d"}'
    in_lines = tmp_path / "flags.jsonl"
    broken = {**flag("a.b"), "off": "none"}
    content = [json.dumps(flag("a.a")), json.dumps(broken), "", "{", twice, "7"]
    in_lines.write_text("\n".join(content))
    in_json = tmp_path / "flags.json"
    in_json.write_text(json.dumps({"flags": [flag("a.x"), {**flag("a.y"), "off": 7}]}, indent=1))
    result = command.ask(
        "flags", "import", str(in_lines), str(in_json), str(tmp_path / "none.yaml")
    )
    assert result.exit_code == 1
    (tmp_path / "none.yaml").write_text("flags:\n- key: A\n")
    result = command.ask(
        "flags", "import", str(in_lines), str(in_json), str(tmp_path / "none.yaml")
    )
    assert result.exit_code == 3
    told = result.stderr.splitlines()
    starts = [f"{in_lines}:2: flag 'a.b'", *(f"{in_lines}:{i}" for i in (4, 5, 6))]
    starts += [f"{in_json}:", f"{tmp_path / 'none.yaml'}:2"]
    assert len(told) == len(starts), told
    for line, start in zip(told, starts, strict=True):
        assert line.startswith(start), told
    assert "is there twice" in told[2]
    assert fetch_revision(writer) == 0


def test_what_is_nested_too_deep_is_a_fault(command: CommandRunner, tmp_path: Path) -> None:
    for name, content in (
        ("flags.jsonl", '{"a":' * 50_000 + "1" + "}" * 50_000),
        ("flags.json", "[" * 50_000 + "]" * 50_000),
    ):
        (tmp_path / name).write_text(content)
        result = command.ask("flags", "import", str(tmp_path / name))
        assert result.exit_code == 3, result.output
        assert result.stderr.startswith(str(tmp_path / name))


@pytest.mark.parametrize("name", ["flags.jsonl", "flags.json", "flags.yaml"])
def test_what_does_not_hold_together_is_told_with_file_and_line(
    name: str, command: CommandRunner, writer: Writer, tmp_path: Path
) -> None:
    path, resting = (
        tmp_path / name,
        flag("a.b", prerequisites=[{"flag": "a.c", "variants": ["on"]}]),
    )
    documents = [flag("a.a"), resting]
    if name == "flags.jsonl":
        lines(path, *documents)
    else:
        path.write_text(json.dumps({"flags": documents}, indent=1))
    fault = command.fault("flags", "import", str(path))
    assert fault.startswith(f"{path}:")
    assert "prerequisites[0].flag: 'a.c' does not exist" in fault
    assert fetch_revision(writer) == 0


def test_one_command_loads_the_example_shop_into_an_empty_database(
    mongo_uri: str, database: str
) -> None:
    command = CommandRunner(mongo_uri, database)
    shop = str(Path(__file__).parents[2] / "examples" / "shop" / "flags.yaml")
    refused = command.fault("flags", "import", shop)
    assert "create it once" in refused
    assert "--create-environment" in command.ask("flags", "import", "--help").stdout
    told = command.told("flags", "import", shop, "--create-environment")
    assert " created, 0 updated, 0 as asked: revision" in told
    assert "checkout.express-pay" in [flag["key"] for flag in command.data("flags", "list")]
    assert [found["key"] for found in command.data("segments", "list")] == ["beta-testers"]
    again = command.told("flags", "import", shop, "--create-environment")
    assert again.startswith("0 created, 0 updated")


def test_a_dry_run_creates_no_environment(mongo_uri: str, database: str, tmp_path: Path) -> None:
    path = tmp_path / "flags.yaml"
    path.write_text("flags: []")
    asked = ("flags", "import", str(path), "--create-environment", "--dry-run")
    result = CommandRunner(mongo_uri, database).ask(*asked)
    assert result.exit_code == 2
    assert "does not go with --dry-run" in result.stderr


def test_a_file_that_is_not_valid_creates_no_environment(
    mongo_uri: str, database: str, tmp_path: Path
) -> None:
    path = tmp_path / "flags.yaml"
    path.write_text("flags: [{key: A}]")
    command = CommandRunner(mongo_uri, database)
    assert command.ask("flags", "import", str(path), "--create-environment").exit_code == 3
    assert "which has none yet" in command.fault("flags", "list")
