"""Descriptors: which sockets of an event loop still belong to it.

A process that becomes a daemon closes all descriptors, and other files get their numbers. The
objects of the loop must then neither read, nor write, nor close what has these numbers.
"""

import os
import selectors
import socket
import time
import weakref
from typing import Final, TypeAlias

Identity: TypeAlias = tuple[int, int]
"""The device and the inode of an open file, which no other open socket has."""

LOOK_SECONDS: Final = 1.0
"""At most so long after its descriptors were closed a loop that waits ends."""


class DescriptorsLostError(Exception):
    """The descriptors of a loop were closed, or the process of the loop was forked."""


class Sockets:
    """The sockets of one loop, and what they were when the loop got them."""

    def __init__(self) -> None:
        self._known: weakref.WeakKeyDictionary[socket.socket, Identity] = (
            weakref.WeakKeyDictionary()
        )

    def add(self, sock: socket.socket) -> None:
        """Note what a socket is."""
        identity = identity_of(sock.fileno())
        if identity is not None:
            self._known[sock] = identity

    def disown(self) -> None:
        """Let go of all sockets that are something else by now, without closing that."""
        for sock, identity in list(self._known.items()):
            if sock.fileno() >= 0 and identity_of(sock.fileno()) != identity:
                sock.detach()


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
    def is_own(self) -> bool:
        """Whether what is watched is what it was, in the process that it was opened in."""
        if os.getpid() != self._pid:
            return False
        return all(identity_of(number) == known for number, known in self._watched.items())

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
