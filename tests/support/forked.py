"""Forked children that are told from, waited for and ended; whose connections are whose."""

import contextlib
import os
import select
import signal
import time
import traceback
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self, TypeVar

from pymongo import MongoClient

SECONDS_MAX = 20
"""So long is anything waited for."""

T = TypeVar("T")


class ForkedChild:
    """A forked process that does what a function says, and is ended with its block.

    The function takes the pipe on which to send what the child has to say.
    """

    def __init__(self, does: Callable[[Connection], None]) -> None:
        self._heard, says = Pipe(duplex=False)
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                does(says)
                code = 0
            except BaseException:  # noqa: BLE001 - whatever it is, it must not get out of the child
                traceback.print_exc()
            finally:
                os._exit(code)
        says.close()
        self._handle = os.pidfd_open(self.pid)
        self._code: int | None = None

    def says(self) -> Any:
        """Return what the child says next."""
        assert self._heard.poll(SECONDS_MAX), "the child hangs"
        return self._heard.recv()

    def exit_code(self) -> int:
        """Return how the child ended, by itself."""
        if self._code is None:
            assert select.select([self._handle], [], [], SECONDS_MAX)[0], "the child does not end"
            self._bury()
        assert self._code is not None
        return self._code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._code is None:
            signal.pidfd_send_signal(self._handle, signal.SIGKILL)
            self._bury()
        os.close(self._handle)
        self._heard.close()

    def _bury(self) -> None:
        self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def poll_until(ask: Callable[[], T], good: Callable[[T], bool]) -> T:
    """Ask again and again until the answer is good; return it."""
    deadline = time.monotonic() + SECONDS_MAX
    while not good(answer := ask()):
        assert time.monotonic() < deadline, f"still {answer}"
    return answer


def list_sockets(pid: int) -> dict[int, str]:
    """Return the sockets that a process holds: the system's names of them, by descriptor."""
    found = {}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        # It may have been closed meanwhile.
        with contextlib.suppress(FileNotFoundError):
            found[int(link.name)] = str(link.readlink())
    return {number: name for number, name in found.items() if name.startswith("socket:")}


def list_ports(pid: int) -> set[int]:
    """Return the local TCP ports of the sockets that a process holds, inherited ones included."""
    held = set(list_sockets(pid).values())
    table = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    rows = [line.split() for line in table]
    return {int(row[1].partition(":")[2], 16) for row in rows if f"socket:[{row[9]}]" in held}


def list_watcher_ports(mongo: MongoClient[dict[str, Any]], database: str) -> set[int]:
    """Return the ports from which revisions are being watched, as the server sees them."""
    found = mongo.admin.aggregate(
        [
            {"$currentOp": {"allUsers": True}},
            {"$match": {"ns": f"{database}.heads", "op": "getmore"}},
        ]
    )
    return {int(operation["client"].rpartition(":")[2]) for operation in found}
