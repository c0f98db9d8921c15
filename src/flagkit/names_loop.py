"""Names loop: an event loop that looks names up in threads that nobody waits for.

Nothing ends a look-up that a resolver does not answer, for which it takes some 10 s and more. In
the loop's own pool of threads the exit of the process waits for it.
"""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any


class NamesLoop(asyncio.SelectorEventLoop):
    """An event loop whose look-ups of names end with the process, if they must."""

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
            try:
                addresses = socket.getaddrinfo(host, port, family, type, proto, flags)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the caller's
                tell(found.set_exception, error)
            else:
                tell(found.set_result, addresses)

        threading.Thread(target=look_up, name="flagkit-names", daemon=True).start()
        return await found
