"""`flagkit ledger tail`: the newest changes, and each that is made while it follows."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import pytest
from ruamel.yaml import YAML

from flagkit.writer import Writer
from tests.support.cli_runner import CommandRunner
from tests.support.replica_set import MongodReplicaSet
from tests.writer.test_writer import flag

pytestmark = pytest.mark.mongo


@pytest.fixture
def command(mongo_uri: str, database: str, writer: Writer) -> CommandRunner:
    del writer  # there is an environment
    return CommandRunner(mongo_uri, database)


class Follower:
    """A `flagkit ledger tail --follow` of its own."""

    def __init__(self, command: CommandRunner, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flagkit.cli", "ledger", "tail", "--follow", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **{k: v for k, v in command.variables.items() if v is not None}},
        )

    @property
    def stdout(self) -> IO[str]:
        assert self.process.stdout is not None
        return self.process.stdout

    @property
    def stderr(self) -> IO[str]:
        assert self.process.stderr is not None
        return self.process.stderr

    def revision(self) -> int:
        """Return the revision of the next line of JSON."""
        found: dict[str, Any] = json.loads(self.stdout.readline())
        return int(found["revision"])


@contextmanager
def following(command: CommandRunner, *arguments: str) -> Iterator[Follower]:
    follower = Follower(command, *arguments)
    with follower.process as process:
        try:
            yield follower
        finally:
            process.kill()


@pytest.mark.parametrize(
    "arguments",
    [
        ("ledger", "show", "--since", "9999-12-31T23:59-14:00"),
        ("ledger", "show", "--limit", "1" + "0" * 20),
        ("ledger", "tail", "--limit", "1" + "0" * 20),
        ("approvals", "list", "--limit", "1" + "0" * 20),
        ("access", "denials", "--limit", "1" + "0" * 20),
        ("eval", "shop.search", "--at", "9999-12-31T23:59-14:00"),
        ("prune", "--ledger-days", "1000000"),
        ("flags", "stale", "--days", "1000000"),
    ],
)
def test_what_is_beyond_all_numbers_and_dates_is_wrong_usage(
    arguments: tuple[str, ...], command: CommandRunner
) -> None:
    result = command.ask(*arguments)
    assert result.exit_code == 2, result.output
    assert "Invalid value" in result.stderr


def test_the_newest_are_told_the_newest_last(command: CommandRunner, writer: Writer) -> None:
    assert command.told("ledger", "tail") == ""
    writer.create(flag("a.one"), reason="launch")
    writer.pause("a.one", actor="ana", reason="incident 7")
    writer.pause("a.one", actor="bot")
    lines = command.told("ledger", "tail", "--limit", "2").splitlines()
    assert [line[:3] for line in lines] == ["2  ", "   ", "3  ", "   "]
    assert lines[0].endswith("  ana: incident 7")
    assert lines[1].strip() == "a.one: state: active -> paused"
    assert lines[2].endswith("  bot")
    assert lines[3].strip() == "pause a.one: no change"
    assert command.told("ledger", "tail", "--actor", "tester").splitlines()[0].startswith("1  ")
    assert command.told("ledger", "tail", "--action", "archive") == ""


def test_it_is_told_where_the_glass_was_broken(command: CommandRunner, writer: Writer) -> None:
    with writer.change(reason="fix") as change:
        change.bypass_guards("incident 7")
        change.create(flag("shop.search"))
    assert "broke the glass: incident 7" in command.told("ledger", "show")
    [head, *_] = command.told("ledger", "tail").splitlines()
    assert head.endswith("tester: fix: broke the glass: incident 7")


def test_people_are_told_the_first_differences_and_programs_all(
    command: CommandRunner, writer: Writer
) -> None:
    with writer.change() as change:
        for number in range(25):
            change.create(flag(f"a.f{number:02}"))
    for asked in (("ledger", "show"), ("ledger", "tail")):
        told = command.told(*asked)
        assert "a.f09: created" in told
        assert "a.f10" not in told
        assert "and 30 more" in told
        assert command.told(*asked, "--output", "json").count(": created") == 25
        assert command.told(*asked, "--output", "yaml").count(": created") == 25


def test_programs_are_told_a_line_or_an_item_each(command: CommandRunner, writer: Writer) -> None:
    for key in ("a.one", "a.two"):
        writer.create(flag(key))
    lines = command.told("ledger", "tail", "--output", "json").splitlines()
    assert [json.loads(line)["revision"] for line in lines] == [1, 2]
    listed = YAML(typ="safe").load(command.told("ledger", "tail", "--output", "yaml"))
    assert [entry["revision"] for entry in listed] == [1, 2]


def test_it_follows_what_is_changed_until_it_is_interrupted(
    command: CommandRunner, writer: Writer
) -> None:
    writer.create(flag("a.one"))
    with following(command, "--output", "json") as follower:
        assert follower.revision() == 1
        for number in (2, 3):
            (writer.pause if number % 2 == 0 else writer.resume)("a.one")
            assert follower.revision() == number
        follower.process.send_signal(signal.SIGINT)
        assert follower.process.wait(20) == 0
        assert follower.stdout.read() == follower.stderr.read() == ""


def test_it_follows_only_what_is_asked_for(command: CommandRunner, writer: Writer) -> None:
    writer.create(flag("a.one"))
    with following(command, "--output", "json", "--actor", "ana", "--limit", "0") as follower:
        writer.pause("a.one")
        writer.pause("a.one", actor="ana")
        assert follower.revision() == 3
        writer.resume("a.one", actor="bob")
        writer.resume("a.one", actor="ana")
        assert follower.revision() == 5


def test_it_waits_for_a_database_that_is_away_and_says_so_once() -> None:
    with MongodReplicaSet() as members:
        command = CommandRunner(members.uri("serverSelectionTimeoutMS=300"), "flagkit")
        with Writer(members.uri(), "production", actor="dana") as writer:
            writer.create_environment()
            writer.create(flag("a.one"))
            with following(command, "--output", "json") as follower:
                assert follower.revision() == 1
                members.members[0].kill()
                lines = iter(follower.stderr.readline, "")
                # A slow attempt may have been announced before it failed.
                said = next(line for line in lines if not line.startswith("Waiting for the "))
                assert said.startswith("Waiting: ")
                assert "mongodb://" not in said
                members.heal()
                writer.pause("a.one")
                assert follower.revision() == 2


def test_an_environment_that_is_not_there_is_one_sentence(command: CommandRunner) -> None:
    command.variables["FLAGKIT_ENVIRONMENT"] = "nowhere"
    assert "which has 'production': check the name" in command.fault("ledger", "tail")


def test_the_lines_of_a_key_that_is_asked_for_are_always_shown(
    command: CommandRunner, writer: Writer
) -> None:
    with writer.change() as change:
        for number in range(60):
            change.create(flag(f"k.f{number:03}"))
    assert "k.f050" not in command.told("ledger", "show")
    for asked in ("show", "tail"):
        told = command.told("ledger", asked, "--key", "k.f050")
        assert "k.f050: created" in told
        assert "and 100 more" in told


def test_since_takes_an_age(command: CommandRunner, writer: Writer) -> None:
    writer.create(flag("k.new"))
    for age in ("90s", "5m", "2h", "3d", "1w"):
        assert "k.new: created" in command.told("ledger", "show", "--since", age)
        assert command.told("ledger", "show", "--until", age) == "No such change.\n"
    for wrong in ("2y", "h", "-2h", "999999999w"):
        result = command.ask("ledger", "show", "--since", wrong)
        assert result.exit_code == 2
        assert "or 2h for two hours ago" in result.stderr
