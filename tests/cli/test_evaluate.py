"""`flagkit eval` and `flagkit replay`: what a flag answers, now and then, and if it still does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from flagkit.history import client_at, digest_of
from flagkit.writer import Writer
from tests.support.cli_runner import CommandRunner
from tests.writer.test_writer import flag

pytestmark = [pytest.mark.every_python, pytest.mark.mongo]

GERMANS = {"name": "germans", "when": {"country": "DE", "age": {"$gte": 18}}, "serve": "on"}


@pytest.fixture
def command(writer: Writer, mongo_uri: str, database: str) -> CommandRunner:
    """Return the command, where shop.search is revision 1, and paused since revision 2."""
    writer.create(flag(rules=[GERMANS], fallthrough={"rollout": 30}))
    writer.pause("shop.search")
    return CommandRunner(mongo_uri, database)


def test_an_answer_is_told_of_now_and_of_then(command: CommandRunner, writer: Writer) -> None:
    who = ("--user", "ada", "--attribute", "country=DE", "--attribute", "age=42")
    now = command.told("eval", "shop.search", *who)
    assert now.startswith("shop.search is False: 'off', DISABLED\n  at revision 2, 20")
    then = command.told("eval", "shop.search", *who, "--at", "1")
    assert then.startswith("shop.search is True: 'on', TARGETING_MATCH by rule 'germans'\n")
    made = [change.tip.time for change in writer.store.iter_changes()]
    last = command.data("eval", "shop.search", *who, "--at", made[1].isoformat())
    assert (last["revision"], last["reason"]) == (2, "DISABLED")
    assert last["time"] == made[1].isoformat().replace("+00:00", "Z")
    first = command.data("eval", "shop.search", *who, "--at", "1")
    assert first["time"] == made[0].isoformat().replace("+00:00", "Z")
    assert (first["value"], first["rule"], first["flag_key"]) == (True, "germans", "shop.search")
    assert "flags" not in first


def test_it_is_explained_as_the_client_does(command: CommandRunner) -> None:
    who = ("--user", "ada", "--attribute", "country=AT", "--at", "1", "--explain")
    told = command.told("eval", "shop.search", *who)
    place = command.variables
    then = client_at(place["FLAGKIT_URI"], "production", at=1, database=place["FLAGKIT_DATABASE"])
    assert told == f"{then.explain('shop.search', {'targeting_key': 'ada', 'country': 'AT'})}\n"
    data = command.data("eval", "shop.search", *who)
    assert data["flags"][0]["rules"][0]["conditions"][0]["seen"] == "AT"
    written = command.told("eval", "shop.search", *who, "--output", "yaml")
    yaml: Any = YAML(typ="safe")
    assert yaml.load(written) == data


def test_a_region_and_a_default_are_taken(command: CommandRunner, writer: Writer) -> None:
    writer.create(flag(region="eu"))
    assert command.data("eval", "shop.search")["value"] is False
    assert command.data("eval", "shop.search", "--region", "eu")["value"] is True
    result = command.ask("eval", "shop.search", "--region", "eu", "--default", "text")
    assert (result.exit_code, result.stderr) == (
        1,
        "Error: TYPE_MISMATCH: the answer is the default\n",
    )
    result = command.ask("eval", "shop.none", "--default", '{"a": 1}', "--output", "json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["value"] == {"a": 1}
    assert "FLAG_NOT_FOUND" in result.stderr


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("country: DE\nage: 42", True),
        ('{"country": "DE", "age": 17}', False),
        ("since: 2026-12-01T08:00:00Z\ncountry: DE\nage: {$numberLong: '20'}", True),
    ],
)
def test_a_context_is_read_from_a_file_or_from_standard_input(
    written: str, expected: bool, command: CommandRunner, tmp_path: Path
) -> None:
    path = tmp_path / "context.yaml"
    path.write_text(f"targeting_key: user-9\n{written}" if written[0] != "{" else written)
    asked = (
        "eval",
        "shop.search",
        "--at",
        "1",
        "--user",
        "user-9",
        "--output",
        "json",
        "--context",
    )
    for found in (
        command.told(*asked, str(path)),
        command.told(*asked, "-", stdin=path.read_text()),
    ):
        assert (json.loads(found)["rule"] == "germans") is expected
    over = command.told(*asked, str(path), "--attribute", "country=AT")
    assert json.loads(over)["rule"] is None


def test_attributes_are_json_or_text(command: CommandRunner) -> None:
    shown: list[Any] = []
    for text in ("42", '"42"', "pro", "true", "[1, 2]", "NaN", "2.3.0", "", "a=b", "{"):
        data = command.data(
            "eval",
            "shop.search",
            "--user",
            "ada",
            "--at",
            "1",
            "--explain",
            "--attribute",
            f"country={text}",
        )
        shown.append(data["flags"][0]["rules"][0]["conditions"][0]["seen"])
    assert shown == [42, "42", "pro", True, [1, 2], "NaN", "2.3.0", "", "a=b", "{"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("--at", "2026-11-21T10:32"),
            "'2026-11-21T10:32' has no time zone: write 2026-11-21T10:32:00Z",
        ),
        (("--at", "yesterday"), "'yesterday' is no moment and no revision: write it like 2026"),
        (("--attribute", "country"), "'country' names no attribute: write NAME=VALUE"),
        (("--attribute", "=DE"), "'=DE' names no attribute"),
        (("--attribute", '"$date"={"$date": "x"}'), "cannot be read. Write $date:"),
        (("--default", '{"$date": "x"}'), "cannot be read. Write $date:"),
        (("--output", "text", "more"), "unexpected extra argument"),
    ],
)
def test_wrong_usage_exits_with_2(
    command: CommandRunner, arguments: tuple[str, ...], words: str
) -> None:
    result = command.ask("eval", "shop.search", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--at", "3"), "'production' has no revision 3 to ask: there are 1 to 2"),
        (("--at", "2020-01-01T00:00Z"), "had no flags at 2020-01-01 00:00:00 UTC: its first rev"),
        (("--at", "2126-01-01T00:00Z"), "still to come"),
        (("--environment", "elsewhere"), "'elsewhere' is not in the database"),
        (("--context", "/none/there.yaml"), "the context /none/there.yaml cannot be read: No such"),
    ],
)
def test_what_cannot_be_answered_exits_with_1(
    command: CommandRunner, arguments: tuple[str, ...], words: str
) -> None:
    assert words in command.fault("eval", "shop.search", *arguments)


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("[1]", "<stdin>: document: is no mapping of attributes"),
        ("", "is no mapping of attributes"),
        ("a: 2026-12-01T08:00:00", "<stdin>: a: is the date 2026-12-01T08:00:00 without a time"),
        ("a: *b", "is not YAML"),
        ("a: 1\na: 2", "<stdin>:2: a: is there twice"),
    ],
)
def test_a_context_that_is_none_is_refused(
    command: CommandRunner, written: str, words: str
) -> None:
    assert words in command.fault("eval", "shop.search", "--context", "-", stdin=written)


def test_no_password_is_printed(command: CommandRunner) -> None:
    uri = "mongodb://ada:hunter2@127.0.0.1:1/?replicaSet=rs0&serverSelectionTimeoutMS=1"
    for arguments in (("eval", "shop.search"), ("replay", "fk1.AAAA"), ("eval",)):
        result = command.ask(*arguments, "--uri", uri)
        assert result.exit_code in (1, 2)
        assert "hunter2" not in result.output


@pytest.fixture
def digest(command: CommandRunner) -> Callable[[str], str]:
    """Return what makes a digest of the answer at revision 1, with a secret."""
    place = command.variables

    def digest(secret: str) -> str:
        then = client_at(
            place["FLAGKIT_URI"], "production", at=1, database=place["FLAGKIT_DATABASE"]
        )
        who = {"targeting_key": "ada", "country": "DE", "age": 42}
        return digest_of(then, then.evaluate("shop.search", who), who, secret=secret)

    return digest


def test_a_replay_says_whether_the_answer_is_the_same(
    command: CommandRunner, digest: Callable[[str], str]
) -> None:
    kept = digest("")
    who = ("--user", "ada", "--attribute", "age=42", "--attribute")
    told = command.told("replay", kept, *who, "country=DE")
    assert told.startswith("shop.search was 'on' at revision 1 of production, 20")
    assert told.endswith(": so it is\n")
    data = command.data("replay", kept, *who, "country=DE")
    assert (data["is_same"], data["evaluation"]["value"], data["differences"]) == (True, True, [])
    other = command.ask("replay", kept, *who, "country=AT")
    assert other.exit_code == 3
    assert (
        other.stdout.splitlines()[1] == "  the context is another: its hash is not the one of then"
    )
    other = command.ask("replay", kept, *who, "country=AT", "--output", "json")
    assert other.exit_code == 3
    assert not json.loads(other.stdout)["is_same"]


def test_a_digest_that_was_altered_or_has_another_secret_is_refused(
    command: CommandRunner, digest: Callable[[str], str]
) -> None:
    who = ("--user", "ada", "--attribute", "age=42", "--attribute", "country=DE")
    kept = digest("s3cret")
    result = command.ask("replay", kept, *who, FLAGKIT_DIGEST_SECRET="s3cret")
    assert result.exit_code == 0
    assert "s3cret" not in result.output
    assert "made with another secret" in command.fault("replay", kept, *who)
    assert "this is no digest" in command.fault("replay", kept[1:], *who)
    # Without its last letter it may still be the text of some bytes; then the seal is wrong.
    cut = command.fault("replay", kept[:-1], *who)
    assert "this is no digest" in cut or "was altered" in cut
