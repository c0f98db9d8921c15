"""What a command says while the database does not answer: hosts and limits, and no secret."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from flagkit._core.storage.driver import read_timeouts
from flagkit.cli import wait_notice
from flagkit.cli.main import flagkit
from flagkit.cli.wait_notice import format_notice, parse_hosts
from tests.support.replica_set import MongodReplicaSet

LOCAL = "mongodb://localhost"


def test_the_line_names_hosts_and_limits() -> None:
    said = format_notice("mongodb://ada:s3cret@db1.example.com:27017,db2.example.com/shop?tls=true")
    assert said == (
        "Waiting for the database at db1.example.com:27017,db2.example.com: it has not answered"
        " yet. An attempt is given up after 3 s if no server can be reached, after 30 s if a server"
        " does not answer; a change is attempted again for 30 s."
    )
    assert "given up after 5 s;" in format_notice("mongodb://localhost/?timeoutMS=5000")
    assert "never if a server" in format_notice("mongodb://localhost/?socketTimeoutMS=0")


def test_limits_are_those_of_the_connection_string_but_for_those_that_are_too_low() -> None:
    assert read_timeouts(LOCAL) == (None, 3, 30)
    assert read_timeouts(f"{LOCAL}/?serverSelectionTimeoutMS=9000&SocketTimeoutMS=0") == (
        None,
        9,
        None,
    )
    assert read_timeouts(f"{LOCAL}/?timeoutMS=60000") == (60, 3, 30)
    assert read_timeouts(f"{LOCAL}/?serverSelectionTimeoutMS=1&socketTimeoutMS=1") == (None, 1, 2)


@given(st.text("ab@/?:%\n", max_size=12), st.text("ab@/?:", max_size=4))
def test_no_part_of_a_password_is_taken_for_a_host(password: str, tail: str) -> None:
    hosts = parse_hosts(f"mongodb://ada:S{password}@db.example.com/{tail}")
    assert hosts in ("", "db.example.com")
    assert "S" not in format_notice(f"mongodb://ada:S{password}@h/{tail}").replace("Waiting", "")


def test_hosts_of_every_form_are_found() -> None:
    assert parse_hosts("mongodb+srv://ada:x@cluster.example.com/?a=b") == "cluster.example.com"
    assert parse_hosts("mongodb://[::1]:27017") == "[::1]:27017"
    assert parse_hosts("mongodb://ada:p/q@host/") == ""
    assert parse_hosts("mongodb://ada:p@q@host/") == ""
    assert parse_hosts("mongodb://h\x1b[2J/") == ""


@pytest.fixture(scope="module")
def suspended() -> Iterator[MongodReplicaSet]:
    with MongodReplicaSet(proxied=False) as members:
        members.members[0].suspend()
        yield members


CALLS = [
    ["flags", "list", "--output", "json"],
    ["flags", "pause", "shop.search"],
    ["flags", "import", "FILE"],
    ["segments", "show", "shop.beta"],
    ["eval", "shop.search", "--user", "u-1"],
    ["status", "--output", "yaml"],
    ["admin", "init"],
    ["checkpoint"],
    ["ledger", "tail", "--follow"],
    ["rollout", "wait", "--revision", "1"],
]


@pytest.mark.mongo
@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_a_command_says_what_it_waits_for_before_anything_else(
    call: list[str], suspended: MongodReplicaSet, tmp_path: Path
) -> None:
    path = tmp_path / "flags.json"
    variants = {"on": True, "off": False}
    flag = {"key": "shop.search", "variants": variants, "fallthrough": {"serve": "on"}}
    path.write_text(json.dumps({"flags": [flag]}))
    host = suspended.members[0].host
    uri = suspended.uri(user="ada:s3cret").replace("replicaSet=rs0", "replicaSet=rs0&appName=x")
    command = subprocess.Popen(
        [sys.executable, "-m", "flagkit.cli", *(str(path) if a == "FILE" else a for a in call)],
        env={
            "FLAGKIT_URI": uri,
            "FLAGKIT_ENVIRONMENT": "production",
            "FLAGKIT_ACTOR": "ada@example.com",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with command:
        assert command.stderr is not None
        assert command.stdout is not None
        said = command.stderr.readline()
        command.terminate()
        assert command.stdout.read() == ""
    assert said.startswith(f"Waiting for the database at {host}: "), said
    assert "s3cret" not in said


@pytest.mark.mongo
def test_it_says_so_once_and_fails_as_ever(
    suspended: MongodReplicaSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wait_notice, "SILENCE_SECONDS", 0.5)
    uri = suspended.uri("serverSelectionTimeoutMS=4000")
    result = CliRunner().invoke(
        flagkit, ["flags", "list", "--uri", uri, "--environment", "production"]
    )
    waiting, error = result.stderr.splitlines()
    assert (result.exit_code, result.stdout) == (1, "")
    assert "given up after 4 s if no server can be reached" in waiting
    assert error.startswith("Error: while reading the environment: no member")


def test_a_command_without_a_database_says_nothing_of_one() -> None:
    result = CliRunner().invoke(flagkit, ["schema"])
    assert (result.exit_code, result.stderr) == (0, "")
