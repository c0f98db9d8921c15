"""Names loop: the event loop of a background thread.

It looks names up in threads that nobody waits for: nothing ends a look-up that a resolver does not
answer, which takes 10 s and more, and in asyncio's own pool the exit of the process waits for it.
It ends all its tasks before it is closed, and closes no descriptor that another file has by then.
"""

import _socket
import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from flagkit.background import Log, is_green, start_helper
from flagkit.descriptors import WatchfulSelector, own

T = TypeVar("T")

_log = Log("flagkit.refresh")

END_SECONDS_MAX: Final = 5.0
"""How long a loop that ends waits for its tasks."""
CANCEL_AGAIN_SECONDS: Final = 0.02

_kept: "list[NamesLoop]" = []
"""Loops that cannot be closed. Python would close their descriptors if it freed them."""


def opened_loop() -> "NamesLoop":
    """Return a new loop.

    Raises:
        OSError: the process has no descriptors left.
    """
    # Tried before: asyncio can neither close nor free a loop that gets no descriptors half way.
    pair = socket.socketpair()
    for end in pair:
        own(end)
    for end in pair:
        end.close()
    return NamesLoop()


class NamesLoop(asyncio.SelectorEventLoop):
    """An event loop whose look-ups of names end with the process, if they must.

    Running it raises DescriptorsLostError once the process has closed its descriptors.
    """

    def __init__(self) -> None:
        self._watchful = WatchfulSelector()
        super().__init__(self._watchful)
        self.set_exception_handler(_note_exception)
        self._own_pipe()

    def __del__(self) -> None:
        # asyncio closes what is freed, and cannot close what was only half made.
        with contextlib.suppress(Exception):
            super().__del__()

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        """Connect a socket, which is this loop's own from now on."""
        own(sock)
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

        def tell(say: Callable[[Any], None], what: object) -> None:
            def say_if_wanted() -> None:
                if not found.done():
                    say(what)

            # Who has been cancelled, or whose loop is closed, does not want to know.
            with contextlib.suppress(RuntimeError):
                self.call_soon_threadsafe(say_if_wanted)

        def look_up() -> None:
            # A green look-up would never end: nothing runs the hub of this thread.
            getaddrinfo = _socket.getaddrinfo if is_green("socket") else socket.getaddrinfo
            try:
                addresses = getaddrinfo(host, port, family, type, proto, flags)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the caller's
                tell(found.set_exception, error)
            else:
                tell(found.set_result, addresses)

        start_helper("flagkit-names", look_up)
        return await found

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Call a function in a thread of a pool, or of its own where pools have green threads."""
        if executor is not None or not is_green("threading"):
            return super().run_in_executor(executor, func, *args)
        found: asyncio.Future[T] = self.create_future()

        def tell(say: Callable[[Any], None], what: object) -> None:
            if not found.done():
                say(what)

        def work() -> None:
            with contextlib.suppress(RuntimeError):
                try:
                    result = func(*args)
                except Exception as error:  # noqa: BLE001 - whatever it is, it is the caller's
                    self.call_soon_threadsafe(tell, found.set_exception, error)
                else:
                    self.call_soon_threadsafe(tell, found.set_result, result)

        start_helper("flagkit-work", work)
        return found

    def end(self) -> None:
        """End all tasks, wait for them, and close the loop. Never raises."""
        if self._watchful.is_forked:
            # Its connections are the parent's, which would miss what is sent or received here.
            _kept.append(self)
            return
        ends = time.monotonic() + END_SECONDS_MAX
        if not self._watchful.is_own:
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
            _kept.append(self)

    async def _end_tasks(self, ends: float) -> None:
        mine = asyncio.current_task()
        while time.monotonic() < ends and (tasks := asyncio.all_tasks() - {mine}):
            # Again and again: the driver swallows a cancellation now and then.
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=CANCEL_AGAIN_SECONDS)
        generators = asyncio.ensure_future(self.shutdown_asyncgens())
        await asyncio.wait({generators}, timeout=max(ends - time.monotonic(), 0))

    def _replace_lost(self) -> None:
        """Let go of descriptors that are no longer the loop's; its tasks see closed connections."""
        self._watchful.watch()
        for key in list(self._watchful.get_map().values()):
            self._watchful.unregister(key.fd)
        with contextlib.suppress(OSError):
            # What asyncio wakes itself by: without it other threads cannot tell it anything.
            self._make_self_pipe()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
            self._own_pipe()

    def _own_pipe(self) -> None:
        ends = [vars(self).get(name) for name in ("_ssock", "_csock")]
        pipe = [end for end in ends if isinstance(end, socket.socket)]
        for end in pipe:
            own(end)
        self._watchful.watch(*pipe)


def _note_exception(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what no task sees. asyncio's own handler would raise what the host's log filters do."""
    _log.debug("%s", context.get("message"), exc_info=context.get("exception"))
