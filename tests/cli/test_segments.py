"""`flagkit segments`: what it tells of segments, and what it changes."""

from pathlib import Path
from typing import Any

import pytest

from flagkit._core.model.changes import SEGMENTS
from flagkit.cli.output import build_segment_document
from flagkit.writer import Writer
from tests.support.cli_runner import CommandRunner, fetch_revision
from tests.writer.test_writer import flag

pytestmark = pytest.mark.mongo

BETA = """
segments:
  - key: shop.beta
    included: [u-1, u-2, 17]
    owner: shop
  - key: shop.staff
    when: {staff: true}
    by: company.id
"""


@pytest.fixture
def filled(mongo_uri: str, database: str, writer: Writer) -> CommandRunner:
    """Two segments, at revision 1."""
    assert fetch_revision(writer) == 0
    command = CommandRunner(mongo_uri, database)
    assert command.told("segments", "create", "-", stdin=BETA) == (
        "segment shop.beta: created\n"
        "segment shop.beta: included: 3 keys\n"
        "segment shop.staff: created\n"
        "revision 1 of production\n"
    )
    return command


def document(writer: Writer, key: str = "shop.beta") -> dict[str, Any]:
    with writer.store.open_reader() as reading:
        return build_segment_document(reading.find_segments([key])[SEGMENTS, key])


def test_segments_are_listed_in_a_line_each(filled: CommandRunner, writer: Writer) -> None:
    writer.create(flag())
    told = filled.told("segments", "list").splitlines()[2:4]
    assert [" ".join(line.split()) for line in told] == [
        "shop.beta 1 targeting_key 3 0 shop",
        "shop.staff 1 yes company.id 0 0",
    ]
    assert filled.data("segments", "list", "--namespace", "shop.b") == [
        {
            "key": "shop.beta",
            "version": 1,
            "condition": False,
            "by": "targeting_key",
            "included": 3,
            "excluded": 0,
            "owner": "shop",
        }
    ]
    assert filled.told("segments", "list", "--namespace", "x") == "No such segment.\n"


def test_a_segment_is_shown_with_its_flags(filled: CommandRunner, writer: Writer) -> None:
    rule = {"name": "beta", "when": {"$segment": "shop.beta"}, "serve": "on"}
    writer.create(flag(rules=[rule]))
    lines = [
        " ".join(line.split()) for line in filled.told("segments", "show", "shop.beta").splitlines()
    ]
    assert [line for line in lines if line][2:] == [
        "version 1 at revision 2",
        "included 3 keys",
        "owner shop",
        "flags shop.search",
    ]
    told = filled.data("segments", "show", "shop.beta")
    assert (told["key"], told["version"], told["flags"]) == ("shop.beta", 1, ["shop.search"])
    assert told["document"]["included"]["count"] == 3
    assert "there is no segment 'shop.none'" in filled.fault("segments", "show", "shop.none")
    assert "is not a segment key" in filled.fault("segments", "show", "Shop")


def test_a_segment_that_is_shown_as_a_policy_file_may_be_edited_and_updated(
    filled: CommandRunner, writer: Writer
) -> None:
    written = filled.told("segments", "show", "shop.beta", "--output", "policy")
    edited = written.replace("owner: shop", "owner: search")
    told = filled.told("segments", "update", "-", "--expected-version", "1", stdin=edited)
    assert told == "segment shop.beta: owner: shop -> search\nrevision 2 of production\n"
    assert document(writer)["included"]["count"] == 3
    filled.fault("segments", "update", "-", "--expected-version", "1", stdin=edited, code=4)


def test_a_segment_that_is_shown_as_a_policy_file_has_the_seed_of_its_keys(
    filled: CommandRunner, writer: Writer, tmp_path: Path
) -> None:
    seed = document(writer)["seed"]
    assert seed not in filled.told("segments", "show", "shop.beta")
    shown = filled.told("segments", "show", "shop.beta", "--output", "policy")
    assert seed in shown
    path = tmp_path / "beta.yaml"
    path.write_text(shown)
    again = tmp_path / "again.json"
    again.write_text(filled.told("format", str(path), "--output", "json"))
    for file in (path, again):
        told = filled.told("flags", "import", str(file))
        assert told.startswith("0 created, 0 updated, 1 as asked")
    # A list beside hashed keys is hashed as they are.
    edited = filled.told("format", str(path)) + "    excluded: [u-2]\n"
    told = filled.told("segments", "update", "-", stdin=edited)
    assert told.startswith("segment shop.beta: excluded: 0 -> 1 keys\n")
    held = document(writer)
    assert held["seed"] == seed
    malformed = shown.replace(seed, seed.upper() + "x")
    refused = filled.fault("segments", "update", "-", stdin=malformed)
    assert "<stdin>:5: segment 'shop.beta': seed: is not 16 hexadecimal digits" in refused
    without = "\n".join(line for line in shown.splitlines() if "seed:" not in line)
    refused = filled.fault("segments", "update", "-", stdin=without)
    assert "seed: is not the one that the segment's keys are hashed with" in refused
    assert seed not in refused
    assert document(writer) == held


def test_members_are_moved(filled: CommandRunner, writer: Writer, tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    path.write_text("u-3\n\n u-4 \r\nu-5")
    told = filled.told(
        *("segments", "change-members", "shop.beta", "--include-from", str(path)),
        *("--exclude", "u-1", "--remove-from", "-", "--expected-version", "1"),
        stdin="u-2\n",
    )
    assert told == (
        "segment shop.beta: included: 3 -> 4 keys\n"
        "segment shop.beta: excluded: 0 -> 1 keys\n"
        "revision 2 of production\n"
    )
    again = ("segments", "change-members", "shop.beta", "--include", "u-1", "--include", "u-9")
    assert "included: 4 -> 6 keys" in filled.told(*again, "--dry-run")
    assert filled.ask("segments", "change-members", "shop.beta").exit_code == 2
    path.write_bytes(b"\xff")
    refused = filled.fault("segments", "change-members", "shop.beta", "--exclude-from", str(path))
    assert f"{path} is not UTF-8: 'utf-8' codec" in refused
    assert fetch_revision(writer) == 2


def test_segments_are_rolled_back_and_deleted(filled: CommandRunner, writer: Writer) -> None:
    before = document(writer)
    filled.told("segments", "change-members", "shop.beta", "--remove", "u-1")
    filled.told("segments", "rollback", "shop.beta", "--to", "1")
    assert document(writer) == before
    writer.create(flag(rules=[{"name": "beta", "when": {"$segment": "shop.beta"}, "serve": "on"}]))
    refused = filled.fault("segments", "delete", "shop.staff", "shop.beta")
    assert "refer to the segment 'shop.beta', which does not exist any more" in refused
    assert filled.told("segments", "delete", "shop.staff", "--expected-version", "1") == (
        "segment shop.staff: deleted\nrevision 5 of production\n"
    )


def test_a_file_without_segments_is_refused(filled: CommandRunner) -> None:
    theme = "flags: [{key: a.b, variants: {x: 1}, fallthrough: {serve: x}}]"
    refused = filled.fault("segments", "create", "-", stdin=theme)
    assert refused == (
        "-: segments: has none. Write segments to it; `flagkit flags` takes the flags in it"
    )


def test_keys_of_a_file_end_with_newlines_alone(
    filled: CommandRunner, writer: Writer, tmp_path: Path
) -> None:
    writer.create_segment({"key": "shop.s", "included": ["seed"]})
    listed = tmp_path / "keys.txt"
    listed.write_bytes("\ufeffu-1\r\n\n u-2 \nx\u2028y\nv\x85w".encode())
    filled.told("segments", "change-members", "shop.s", "--include-from", str(listed))
    (entry,) = writer.reader.entries(2)
    assert entry.actions == ("change members of shop.s: 4 included, 0 excluded, 0 removed",)
    with writer.store.open_reader() as reading:
        policy = reading.find_segments(["shop.s"])["@segments", "shop.s"].policy
    assert policy["included"]["count"] == 5
    listed.write_bytes(b"\xff")
    fault = filled.fault("segments", "change-members", "shop.s", "--include-from", str(listed))
    assert "is not UTF-8" in fault
