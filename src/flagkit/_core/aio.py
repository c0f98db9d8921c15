"""asyncio helpers: the event loop of a background thread, and cooperative sliced work.

The loop resolves host names in daemon threads of its own. A resolver that does not answer takes 10
s or more and cannot be interrupted; asyncio's own pool would delay the exit of the process until it
answers.

The loop ends all its tasks before it is closed. If the process became a daemon and closed its
descriptors, other files may have received their numbers. The loop then neither reads, writes nor
closes them.
"""

import _socket
import asyncio
import contextlib
import errno
import os
import selectors
import socket
import stat
import time
from collections.abc import Callable, Generator
from typing import Any, Final, TypeAlias, TypeVar

from flagkit._core.background import Log, is_green, start_helper
from flagkit._core.cooperative import pause_gc

T = TypeVar("T")


PACED_SECONDS_MIN: Final = 0.0005


async def run_cooperatively(slices: Generator[None, None, T], *, is_paced: bool = False) -> T:
    """Return the result of work in slices. Other tasks of the loop run between the slices.

    A paced run pauses after each slice for as long as the slice took, for the other threads.
    """
    while True:
        started = time.perf_counter()
        try:
            with pause_gc():
                next(slices)
        except StopIteration as done:
            result: T = done.value
            return result
        took = time.perf_counter() - started
        await asyncio.sleep(max(PACED_SECONDS_MIN, took) if is_paced else 0)


async def cancel_task(task: "asyncio.Future[Any]") -> None:
    """Cancel a task until it has ended: the driver swallows a cancellation now and then."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=CANCEL_AGAIN_SECONDS)
    if not task.cancelled():
        # Nobody needs its error, and asyncio logs an error that nobody reads.
        task.exception()


FileIdentity: TypeAlias = tuple[int, int]
"""The device and the inode of an open file, which no other open socket has."""

POLL_SECONDS: Final = 1.0
"""At most so long after its descriptors were closed a loop that waits ends."""


class DescriptorsLostError(Exception):
    """The descriptors of a loop were closed, or the process of the loop was forked."""


_identities: dict[int, FileIdentity] = {}
"""By the id of a socket, what it was when it was owned: sockets take no attributes."""


class OwnedSocket(socket.socket):
    """A socket that is as good as closed once its number leads to another file."""

    __slots__ = ()

    def send(self, data: Any, flags: int = 0, /) -> int:
        """Send to what was owned, and to nothing else."""
        self._check()
        return super().send(data, flags)

    def sendmsg(self, *args: Any) -> int:
        """Send to what was owned, and to nothing else."""
        self._check()
        return super().sendmsg(*args)

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """Receive from what was owned, and from nothing else."""
        self._check()
        return super().recv(bufsize, flags)

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """Receive from what was owned, and from nothing else."""
        self._check()
        return super().recv_into(buffer, nbytes, flags)

    def shutdown(self, how: int, /) -> None:
        """Shut down what was owned, and nothing else."""
        self._check()
        super().shutdown(how)

    def _check(self) -> None:
        if self.fileno() >= 0 and find_file_identity(self.fileno()) != _identities.get(id(self)):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    # What `socket.close` calls, once no file object uses the socket.
    def _real_close(self) -> None:
        number, known = self.fileno(), _identities.pop(id(self), None)
        if number >= 0 and find_file_identity(number) != known:
            self.detach()
        else:
            super()._real_close()  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]

    def __del__(self) -> None:
        # At the exit of the interpreter there may be nothing left to ask with.
        with contextlib.suppress(Exception):
            self._real_close()


def claim_socket(sock: socket.socket) -> None:
    """Have a socket that is not connected yet be nothing else from now on.

    Raises:
        OSError: it is something else already.
    """
    identity = find_file_identity(sock.fileno())
    if identity is None or not stat.S_ISSOCK(os.fstat(sock.fileno()).st_mode):
        sock.detach()
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    # gevent's and eventlet's are of other classes; their hubs do not survive what this is about.
    if type(sock) is OwnedSocket.__base__ and type(sock).__module__ == "socket":
        _identities[id(sock)] = identity
        sock.__class__ = OwnedSocket


class WatchfulSelector(selectors.PollSelector):
    """A selector that raises DescriptorsLostError once sockets of its loop are something else.

    It polls, since epoll has a descriptor of its own. That can be lost as well, and it is shared
    with the process that a fork has left.
    """

    def __init__(self) -> None:
        super().__init__()
        self._watched_files: dict[int, FileIdentity | None] = {}
        self._pid = os.getpid()

    @property
    def is_forked(self) -> bool:
        """True for a copy in a process that was forked from the one that opened it."""
        return os.getpid() != self._pid

    @property
    def is_intact(self) -> bool:
        """True while the descriptor is still the one that this process opened."""
        return not self.is_forked and all(
            find_file_identity(number) == known for number, known in self._watched_files.items()
        )

    def watch(self, *socks: socket.socket) -> None:
        """Watch the sockets that stand for all others: a daemon closes all of them, or none."""
        self._watched_files = {sock.fileno(): find_file_identity(sock.fileno()) for sock in socks}

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready; see selectors.BaseSelector."""
        ends = None if timeout is None else time.monotonic() + timeout
        while True:
            left = POLL_SECONDS if ends is None else ends - time.monotonic()
            ready = super().select(min(left, POLL_SECONDS))
            # Before what is ready is read and written.
            if not self.is_intact:
                raise DescriptorsLostError("the process closed the descriptors of flagkit's thread")
            if ready or (ends is not None and time.monotonic() >= ends):
                return ready


def find_file_identity(number: int) -> FileIdentity | None:
    """Return what a descriptor leads to; None if it is closed."""
    try:
        found = os.fstat(number)
    except OSError:
        return None
    return found.st_dev, found.st_ino


R = TypeVar("R")

_log = Log("flagkit.refresh")

END_SECONDS_MAX: Final = 5.0
"""How long a loop that ends waits for its tasks."""
CANCEL_AGAIN_SECONDS: Final = 0.02

_open_loops: "list[DaemonResolverLoop]" = []
"""Loops that cannot be closed. Python would close their descriptors if it freed them."""


def open_loop() -> "DaemonResolverLoop":
    """Return a new loop.

    Raises:
        OSError: the process has no descriptors left.
    """
    # Tried before: asyncio can neither close nor free a loop that gets no descriptors half way.
    pair = socket.socketpair()
    for end in pair:
        claim_socket(end)
    for end in pair:
        end.close()
    return DaemonResolverLoop()


class DaemonResolverLoop(asyncio.SelectorEventLoop):
    """An event loop whose look-ups of names end with the process, if they must.

    Running it raises DescriptorsLostError once the process has closed its descriptors.
    """

    def __init__(self) -> None:
        self._watchful_selector = WatchfulSelector()
        super().__init__(self._watchful_selector)
        self.set_exception_handler(_log_exception)
        self._claim_pipe()

    def __del__(self) -> None:
        # asyncio closes what is freed, and cannot close what was only half made.
        with contextlib.suppress(Exception):
            super().__del__()

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        """Connect a socket, which is this loop's own from now on."""
        claim_socket(sock)
        await super().sock_connect(sock, address)

    async def getaddrinfo(
        self,
        host: "bytes | str | None",
        port: "bytes | str | int | None",
        *,
        family: int = 0,
        type: int = 0,  # noqa: A002 - as the base class has it
        proto: int = 0,
        flags: int = 0,
    ) -> list[Any]:
        """Return what socket.getaddrinfo does."""
        found: asyncio.Future[list[Any]] = self.create_future()

        def notify(callback: Callable[[Any], None], what: object) -> None:
            def call_if_wanted() -> None:
                if not found.done():
                    callback(what)

            # Who has been cancelled, or whose loop is closed, does not want to know.
            with contextlib.suppress(RuntimeError):
                self.call_soon_threadsafe(call_if_wanted)

        def resolve() -> None:
            # A green look-up would never end: nothing runs the hub of this thread.
            getaddrinfo = _socket.getaddrinfo if is_green("socket") else socket.getaddrinfo
            try:
                addresses = getaddrinfo(host, port, family, type, proto, flags)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the caller's
                notify(found.set_exception, error)
            else:
                notify(found.set_result, addresses)

        start_helper("flagkit-names", resolve)
        return await found

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., R], *args: Any
    ) -> asyncio.Future[R]:
        """Call a function in a thread of a pool, or of its own where pools have green threads."""
        if executor is not None or not is_green("threading"):
            return super().run_in_executor(executor, func, *args)
        found: asyncio.Future[R] = self.create_future()

        def notify(callback: Callable[[Any], None], what: object) -> None:
            if not found.done():
                callback(what)

        def work() -> None:
            with contextlib.suppress(RuntimeError):
                try:
                    result = func(*args)
                except Exception as error:  # noqa: BLE001 - whatever it is, it is the caller's
                    self.call_soon_threadsafe(notify, found.set_exception, error)
                else:
                    self.call_soon_threadsafe(notify, found.set_result, result)

        start_helper("flagkit-work", work)
        return found

    def end(self) -> None:
        """End all tasks, wait for them, and close the loop. Never raises."""
        if self._watchful_selector.is_forked:
            # Its connections are the parent's, which would miss what is sent or received here.
            _open_loops.append(self)
            return
        ends = time.monotonic() + END_SECONDS_MAX
        if not self._watchful_selector.is_intact:
            self._replace_lost()
        while time.monotonic() < ends:
            # A task that raises an exit ends the loop's run, and only its own.
            with contextlib.suppress(BaseException):
                self.run_until_complete(self._end_tasks(ends))
                break
        try:
            self.close()
        except Exception as error:  # noqa: BLE001 - it is left behind, then
            _log.debug("an event loop cannot be closed", exc_info=error)
            _open_loops.append(self)

    async def _end_tasks(self, deadline: float) -> None:
        mine = asyncio.current_task()
        while time.monotonic() < deadline and (tasks := asyncio.all_tasks() - {mine}):
            # Again and again: the driver swallows a cancellation now and then.
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=CANCEL_AGAIN_SECONDS)
        generators = asyncio.ensure_future(self.shutdown_asyncgens())
        await asyncio.wait({generators}, timeout=max(deadline - time.monotonic(), 0))

    def _replace_lost(self) -> None:
        """Let go of descriptors that are no longer the loop's; its tasks see closed connections."""
        self._watchful_selector.watch()
        for key in list(self._watchful_selector.get_map().values()):
            self._watchful_selector.unregister(key.fd)
        with contextlib.suppress(OSError):
            # What asyncio wakes itself by: without it other threads cannot tell it anything.
            self._make_self_pipe()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
            self._claim_pipe()

    def _claim_pipe(self) -> None:
        ends = [vars(self).get(name) for name in ("_ssock", "_csock")]
        pipe = [end for end in ends if isinstance(end, socket.socket)]
        for end in pipe:
            claim_socket(end)
        self._watchful_selector.watch(*pipe)


def _log_exception(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what no task sees. asyncio's own handler would raise what the host's log filters do."""
    _log.debug("%s", context.get("message"), exc_info=context.get("exception"))
