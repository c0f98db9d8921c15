"""Closing: it is bounded in every state, and leaves nothing behind."""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flagkit._core.model.changes import Change, Tip
from flagkit._core.snapshot import Snapshot, SnapshotFile
from flagkit._core.source import Route
from flagkit.client.client import Client
from flagkit.client.refresher import RefreshState
from flagkit.client.sources import FlagSource
from flagkit.errors import ConfigurationError, InvalidDocumentError, StreamsUnavailableError
from flagkit.testing import ENVIRONMENT, MemoryHistory, MemorySource
from flagkit.writer import Writer

pytestmark = pytest.mark.every_python

THEME = {"key": "shop.theme", "variants": {"dark": "dark"}, "fallthrough": {"serve": "dark"}}
SECONDS = 5.0


def flagkit_threads() -> list[str]:
    return [found.name for found in threading.enumerate() if found.name.startswith("flagkit")]


def sockets() -> set[str]:
    found: set[str] = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except OSError:
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found


def closed_within_bounds(client: Client) -> None:
    start = time.monotonic()
    client.close(SECONDS)
    assert time.monotonic() - start < SECONDS
    assert flagkit_threads() == []
    assert client.status().state is None


def reached(client: Client, state: RefreshState) -> None:
    while client.status().state is not state:
        assert client.status().state is not RefreshState.CLOSED


class Hanging(MemorySource):
    """A source that hangs where it is told to, and says when it does."""

    def __init__(self, history: MemoryHistory, where: str) -> None:
        super().__init__(history)
        self._where = where

    async def _perhaps(self, here: str) -> None:
        if here == self._where:
            await asyncio.Event().wait()

    async def load(self, route: Route) -> Snapshot:
        await self._perhaps("load")
        return await super().load(route)

    async def open(self, route: Route) -> None:
        if self._where == "poll":
            raise StreamsUnavailableError("there are none")
        await self._perhaps("open")
        await super().open(route)

    async def read_head(self) -> Tip:
        await self._perhaps("head")
        return await super().read_head()

    async def catch_up(self, tip: Tip, route: Route) -> Sequence[Change]:
        await self._perhaps("catch up")
        return await super().catch_up(tip, route)


@pytest.mark.parametrize(
    ("where", "state"),
    [
        ("load", RefreshState.LOADING),
        ("open", RefreshState.CATCHING_UP),
        ("catch up", RefreshState.CATCHING_UP),
        ("head", RefreshState.WATCHING),
        ("watch", RefreshState.WATCHING),
        ("poll", RefreshState.POLLING),
    ],
)
def test_a_client_is_closed_in_every_state(where: str, state: RefreshState) -> None:
    history = MemoryHistory()
    history.commit(THEME)
    client = Client.from_source(lambda: Hanging(history, where)).start()
    reached(client, state)
    closed_within_bounds(client)


def test_a_client_that_backs_off_is_closed(tmp_path: Path) -> None:
    history = MemoryHistory()
    history.fault = StreamsUnavailableError("nothing is available")
    file = SnapshotFile(tmp_path / "flags.snapshot", ENVIRONMENT, "*")
    client = Client.from_source(history.create_source, file).start()
    reached(client, RefreshState.BACKING_OFF)
    closed_within_bounds(client)
    assert list(tmp_path.iterdir()) == []


@contextmanager
def silent_server() -> Iterator[int]:
    """Give the port of a server that accepts, and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(16)
        yield listening.getsockname()[1]


def test_a_server_that_accepts_and_never_answers_holds_up_nobody() -> None:
    before = sockets()
    with silent_server() as port:
        client = Client(f"mongodb://127.0.0.1:{port}/", environment="production").start()
        while client.status().error is None:
            assert client.status().state in {RefreshState.LOADING, RefreshState.BACKING_OFF}
        closed_within_bounds(client)
    assert sockets() <= before


@pytest.mark.mongo
def test_nothing_is_left_of_a_client_that_watched(
    writer: Writer, mongo_uri: str, database: str, tmp_path: Path
) -> None:
    commit = writer.create(THEME)
    before = sockets()
    client = Client(
        mongo_uri,
        environment="production",
        database=database,
        snapshot_path=tmp_path / "flags.snapshot",
    )
    with client:
        client.wait_for(commit.revision)
        reached(client, RefreshState.WATCHING)
    assert flagkit_threads() == []
    assert sockets() <= before
    # The lock stays, for others that share the file.
    assert {path.name for path in tmp_path.iterdir()} <= {"flags.snapshot", "flags.snapshot.lock"}


@pytest.mark.parametrize(
    "construct",
    [
        lambda: Client("mongodb://127.0.0.1:1/", environment="production", region="EU!"),
        lambda: Client("mongodb://127.0.0.1:1/", environment="production", max_staleness=0),
        lambda: Client("mongodb://127.0.0.1:1/", environment="production", bootstrap="/nowhere"),
        lambda: Client("mongodb://127.0.0.1:1/", environment="production", bootstrap=[{}]),
        lambda: Client("mongodb://127.0.0.1:x/", environment="production").start(),
    ],
    ids=["region", "max_staleness", "bootstrap file", "bootstrap documents", "a bad port"],
)
def test_a_failed_construction_leaks_nothing(construct: Callable[[], Any]) -> None:
    before = sockets()
    client: Client | None = None
    try:
        client = construct()
    except (ConfigurationError, InvalidDocumentError):
        pass
    else:
        client.close(SECONDS)
    assert flagkit_threads() == []
    assert sockets() <= before


def test_a_client_that_follows_another_source_leaves_nothing_of_the_first() -> None:
    client = Client.from_source()
    for _ in range(3):
        history = MemoryHistory()
        client.follow(FlagSource(lambda history=history: history.create_source))  # type: ignore[misc]
        client.wait_ready()
        assert len(flagkit_threads()) == 1
    closed_within_bounds(client)


RESOLVING = """
import sys, threading, time
from flagkit import Client

client = Client("mongodb://flags.example:27017/", environment="production").start()
while not any(thread.name == "flagkit-names" for thread in threading.enumerate()):
    time.sleep(0.001)
started = time.monotonic()
client.close(5)
assert time.monotonic() - started < 5, "close waits for the resolver"
assert not any(thread.name == "flagkit" for thread in threading.enumerate())
print("closed")
"""


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs a resolver of its own"
)
def test_a_resolver_that_never_answers_holds_up_neither_close_nor_the_exit(tmp_path: Path) -> None:
    resolver = tmp_path / "resolv.conf"
    resolver.write_text("nameserver 127.0.0.66\noptions timeout:30 attempts:5\n")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.66", 53))
        mounted = f"mount --bind {resolver} /etc/resolv.conf && exec {sys.executable} -c '$0'"
        started = time.monotonic()
        ended = subprocess.run(
            ["unshare", "-m", "sh", "-c", mounted.replace("'$0'", '"$0"'), RESOLVING],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if "mount" in ended.stderr:
            pytest.skip("mounts are not allowed here")
        assert (ended.stdout, ended.stderr) == ("closed\n", "")
        # The look-up would take 150 s.
        assert time.monotonic() - started < 30
        assert silent.recv(512), "it was asked"


AT_EXIT = """
import atexit, logging, sys, threading
import flagkit

logging.basicConfig(level=logging.INFO)
logging.getLogger("pymongo").setLevel(logging.WARNING)
if sys.argv[4] == "threading":
    # Before the threads of pools are joined.
    threading._register_atexit(flagkit.close)
elif sys.argv[4] == "atexit":
    atexit.register(flagkit.close)
flagkit.configure(sys.argv[1], environment="production", database=sys.argv[2])
if sys.argv[3] != "at once":
    flagkit.wait_ready()
if sys.argv[4] == "exit":
    flagkit.close()
"""


@pytest.mark.mongo
@pytest.mark.parametrize("moment", ["at once", "ready"])
@pytest.mark.parametrize("way", ["atexit", "threading", "exit", "never"])
def test_a_client_that_is_closed_at_exit_ends_all_its_tasks_and_prints_nothing(
    writer: Writer, mongo_uri: str, database: str, moment: str, way: str
) -> None:
    writer.create(THEME)
    ended = subprocess.run(
        [sys.executable, "-c", AT_EXIT, mongo_uri, database, moment, way],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
