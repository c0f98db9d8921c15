"""A TCP proxy between clients and a server, which fails them as it is told to.

It runs an asyncio loop in a thread of its own. What it is told holds when the call returns.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Collection, Coroutine
from enum import Enum
from pathlib import Path
from typing import Any, Self, TypeVar

from tests.support.forked import list_sockets

PIECE_BYTES = 65_536
LOOKS = 5
HOST = "127.0.0.1"

T = TypeVar("T")


class ProxyMode(Enum):
    """What becomes of a connection, new or there already."""

    OPEN = "bytes pass"
    CUT = "refused; those that are there are reset"
    STALLED = "accepted, and no byte passes; none is lost either"


class TcpProxy:
    """Listens at `port` of 127.0.0.1, and passes what comes to `server_port` and back.

    The port stays the same, and nobody else's, until the end of the block; the server may move.
    Peers are known by process: `keep_out` closes the way to some and leaves it open to others.
    """

    def __init__(self, server_port: int | None = None) -> None:
        self.server_port = server_port
        self._way = ProxyMode.OPEN
        self._delay_seconds = 0.0
        self._to_break = 0
        self._kept_out: Collection[int] = ()
        self._unheard: Collection[int] = ()
        self._streams: dict[asyncio.Task[None], socket.socket] = {}
        # Bound and never listening: it keeps the port while nobody is to be let in.
        self._holder = _bind_socket(0)
        self.port: int = self._holder.getsockname()[1]
        self._listener: socket.socket | None = None
        self._listening: asyncio.Task[None] | None = None
        self._loop = asyncio.new_event_loop()
        self._gates: dict[socket.socket, asyncio.Event] = {}
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    @property
    def host(self) -> str:
        """Where it listens, as `host:port`."""
        return f"{HOST}:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self.heal()
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._holder.close()

    def cut(self) -> None:
        """Reset all connections and refuse new ones."""
        self._set(ProxyMode.CUT)

    def stall(self) -> None:
        """Accept new connections and pass nothing, on any."""
        self._set(ProxyMode.STALLED)

    def heal(self) -> None:
        """Let everything pass at once, that which was stalled too, and everybody in."""
        self._delay_seconds, self._to_break = 0.0, 0
        self._kept_out = self._unheard = ()
        self._set(ProxyMode.OPEN)

    def delay(self, seconds: float) -> None:
        """Let each piece, in each direction, pass so much later."""
        self._delay_seconds = seconds

    def break_answers(self, count: int) -> None:
        """Reset `count` connections, each in the middle of the next thing that the server says."""
        self._to_break = count

    def reset(self) -> None:
        """Reset all connections; new ones are let in."""
        self._do(self._reset())

    def keep_out(self, processes: Collection[int]) -> None:
        """Reset the connections of some processes, and any that they make; others do not notice."""
        self._kept_out = processes
        self._do(self._reset(lambda client: self._is_of(client, processes)))

    def ignore(self, processes: Collection[int]) -> None:
        """Pass nothing on the connections of some processes, those that they make included."""
        self._unheard = processes
        self._do(self._hold(processes))

    def _set(self, way: ProxyMode) -> None:
        self._do(self._go(way))

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _go(self, way: ProxyMode) -> None:
        self._way = way
        for passing in self._gates.values():
            if way is ProxyMode.OPEN:
                passing.set()
            else:
                passing.clear()
        if way is ProxyMode.CUT:
            await self._close_listener()
            await self._reset()
        elif self._listening is None:
            self._listener = _bind_socket(self.port)
            self._listener.listen(1024)
            self._listening = self._loop.create_task(self._listen(self._listener))

    async def _listen(self, listener: socket.socket) -> None:
        while True:
            client, _ = await self._loop.sock_accept(listener)
            client.setblocking(False)
            stream = self._loop.create_task(self._stream(client))
            self._streams[stream] = client
            stream.add_done_callback(self._forget)

    def _forget(self, stream: asyncio.Task[None]) -> None:
        # One that was cancelled before its first step has closed nothing.
        client = self._streams.pop(stream)
        self._gates.pop(client, None)
        _reset_socket(client)

    async def _stream(self, client: socket.socket) -> None:
        """Carry one connection, until either side ends it."""
        if self._is_of(client, self._kept_out):
            return
        passing = self._gates[client] = asyncio.Event()
        if self._way is ProxyMode.OPEN and not self._is_of(client, self._unheard):
            passing.set()
        with socket.socket() as server:
            server.setblocking(False)
            with contextlib.suppress(OSError):
                await passing.wait()
                await self._loop.sock_connect(server, (HOST, self.server_port))
                for side in (client, server):
                    side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                pumps = [
                    self._loop.create_task(self._pump(client, server, passing)),
                    self._loop.create_task(self._pump(server, client, passing, answers=True)),
                ]
                try:
                    await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for pump in pumps:
                        pump.cancel()
                    await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(
        self,
        source: socket.socket,
        sink: socket.socket,
        passing: asyncio.Event,
        *,
        answers: bool = False,
    ) -> None:
        while piece := await self._loop.sock_recv(source, PIECE_BYTES):
            await passing.wait()
            if self._delay_seconds:
                await asyncio.sleep(self._delay_seconds)
            if answers and self._to_break:
                self._to_break -= 1
                await self._loop.sock_sendall(sink, piece[: len(piece) // 2])
                return
            await self._loop.sock_sendall(sink, piece)

    def _is_of(self, client: socket.socket, processes: Collection[int]) -> bool:
        if not processes:
            return False
        with contextlib.suppress(OSError):
            ends = client.getpeername()[1], self.port
            # The system's table may lack a row that is there, while others come and go.
            found = next(filter(None, (_find_socket(*ends) for _ in range(LOOKS))), None)
            return any(found in list_sockets(process).values() for process in processes)
        return False

    async def _hold(self, processes: Collection[int]) -> None:
        for client, passing in self._gates.items():
            if self._is_of(client, processes):
                passing.clear()

    async def _reset(self, which: Callable[[socket.socket], bool] = lambda _: True) -> None:
        streams = [stream for stream, client in self._streams.items() if which(client)]
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)

    async def _close_listener(self) -> None:
        if self._listening is not None and self._listener is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
            self._listener.close()
            self._listening = None

    async def _end(self) -> None:
        await self._close_listener()
        await self._reset()


def _find_socket(port: int, other: int) -> str | None:
    """Return the system's name of the socket at a local port that leads to another one."""
    ends = f":{port:04X}", f":{other:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        row = line.split()
        if row[1].endswith(ends[0]) and row[2].endswith(ends[1]) and row[9] != "0":
            return f"socket:[{row[9]}]"
    return None


def _bind_socket(port: int) -> socket.socket:
    found = socket.socket()
    found.setblocking(False)
    # Of two sockets with this option, at one port, the one that listens gets all connections.
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    found.bind((HOST, port))
    return found


def _reset_socket(found: socket.socket) -> None:
    """Close a socket so that the other side sees a reset, not an end."""
    found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    found.close()
