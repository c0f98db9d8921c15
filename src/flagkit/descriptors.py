"""Descriptors: which sockets of an event loop still belong to it.

A process that becomes a daemon closes all descriptors, and other files get their numbers. The
objects of the loop must then neither read, nor write, nor close what has these numbers.
"""

import contextlib
import errno
import os
import selectors
import socket
import stat
import time
from typing import Any, Final, TypeAlias

Identity: TypeAlias = tuple[int, int]
"""The device and the inode of an open file, which no other open socket has."""

LOOK_SECONDS: Final = 1.0
"""At most so long after its descriptors were closed a loop that waits ends."""


class DescriptorsLostError(Exception):
    """The descriptors of a loop were closed, or the process of the loop was forked."""


_identities: dict[int, Identity] = {}
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
        if self.fileno() >= 0 and identity_of(self.fileno()) != _identities.get(id(self)):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    # What `socket.close` calls, once no file object uses the socket.
    def _real_close(self) -> None:
        number, known = self.fileno(), _identities.pop(id(self), None)
        if number >= 0 and identity_of(number) != known:
            self.detach()
        else:
            super()._real_close()  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]

    def __del__(self) -> None:
        # At the exit of the interpreter there may be nothing left to ask with.
        with contextlib.suppress(Exception):
            self._real_close()


def own(sock: socket.socket) -> None:
    """Have a socket that is not connected yet be nothing else from now on.

    Raises:
        OSError: it is something else already.
    """
    identity = identity_of(sock.fileno())
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
        self._watched: dict[int, Identity | None] = {}
        self._pid = os.getpid()

    @property
    def is_forked(self) -> bool:
        """Whether this is a copy, in a process that was forked from the one that opened it."""
        return os.getpid() != self._pid

    @property
    def is_own(self) -> bool:
        """Whether what is watched is what it was, in the process that it was opened in."""
        return not self.is_forked and all(
            identity_of(number) == known for number, known in self._watched.items()
        )

    def watch(self, *socks: socket.socket) -> None:
        """Watch the sockets that stand for all others: a daemon closes all of them, or none."""
        self._watched = {sock.fileno(): identity_of(sock.fileno()) for sock in socks}

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready; see selectors.BaseSelector."""
        ends = None if timeout is None else time.monotonic() + timeout
        while True:
            left = LOOK_SECONDS if ends is None else ends - time.monotonic()
            ready = super().select(min(left, LOOK_SECONDS))
            # Before what is ready is read and written.
            if not self.is_own:
                raise DescriptorsLostError("the process closed the descriptors of flagkit's thread")
            if ready or (ends is not None and time.monotonic() >= ends):
                return ready


def identity_of(number: int) -> Identity | None:
    """Return what a descriptor leads to; None if it is closed."""
    try:
        found = os.fstat(number)
    except OSError:
        return None
    return found.st_dev, found.st_ino
