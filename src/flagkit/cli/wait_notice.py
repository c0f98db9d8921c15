"""The line that says what a command waits for, if the database does not answer soon.

The driver reports commands that it has sent. It does not report its search for a server or the
opening of a connection. A thread therefore looks at the stack of the command: while one call of the
driver continues, the command waits for the database.
"""

import re
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from flagkit._core.background import start_helper
from flagkit._core.storage.driver import read_timeouts
from flagkit.cli.output import print_lines
from flagkit.writer.writer import TIMEOUT_SECONDS

SILENCE_SECONDS = 0.7
"""A command that waits longer for one answer prints a notice. Its start has taken time before."""
_POLL_SECONDS: Final = 0.05
_DRIVER: Final = "pymongo."
_HOSTS: Final = re.compile(r"[A-Za-z0-9_.:,%\[\]-]{1,500}")


@contextmanager
def notify_waiting(get_uri: Callable[[], str | None]) -> Generator[None]:
    """Print on standard error what this thread waits for in the block, at most once.

    Nothing is printed if each call of the driver ends within SILENCE_SECONDS.

    Args:
        get_uri: Returns the connection string once it is known. Only its hosts are printed.
    """
    watched = threading.get_ident()
    ended = threading.Event()
    is_over = threading.Event()

    def watch() -> None:
        try:
            _watch_thread(watched, get_uri, ended)
        finally:
            is_over.set()

    start_helper("flagkit-patience", watch)
    try:
        yield
    finally:
        ended.set()
        is_over.wait(1)


def _watch_thread(thread: int, get_uri: Callable[[], str | None], ended: threading.Event) -> None:
    call: FrameType | None = None
    since = 0.0
    while not ended.wait(_POLL_SECONDS):
        now = time.monotonic()
        found = _find_driver_call(thread)
        if found is None or found is not call:
            call, since = found, now
        elif now - since >= SILENCE_SECONDS:
            uri = get_uri()
            if uri is not None:
                print_lines(format_notice(uri), err=True)
            return


def _find_driver_call(thread: int) -> FrameType | None:
    """Return the outermost frame of the call of the driver that a thread is in, if it is in one."""
    frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage] - it is documented
    frame = frames.get(thread)
    found: FrameType | None = None
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).startswith(_DRIVER):
            found = frame
        frame = frame.f_back
    return found


def format_notice(uri: str) -> str:
    """Return the line that names the database that does not answer, and the time limit."""
    limits = read_timeouts(uri)
    hosts = parse_hosts(uri)
    where = f"the database at {hosts}" if hosts else "the database"
    if limits.operation is not None:
        patience = f"after {limits.operation:g} s"
    else:
        answer = "never" if limits.answer is None else f"after {limits.answer:g} s"
        patience = (
            f"after {limits.selection:g} s if no server can be reached, {answer} if a server does"
            " not answer"
        )
    return (
        f"Waiting for {where}: it has not answered yet. An attempt is given up {patience}; a change"
        f" is attempted again for {TIMEOUT_SECONDS:g} s."
    )


def parse_hosts(uri: str) -> str:
    """Return the hosts of a connection string, without anything that may be a password.

    If it has a sign that was not percent-encoded, hosts cannot be recognized: the result is empty.
    """
    _, _, rest = uri.partition("://")
    authority, *others = re.split(r"[/?]", rest, maxsplit=1)
    hosts = authority.rpartition("@")[2]
    is_plain = authority.count("@") <= 1 and not any("@" in other for other in others)
    return hosts if is_plain and _HOSTS.fullmatch(hosts) else ""
