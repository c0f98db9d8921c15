"""Hooks that restart clients in forked children, after all other hooks of the fork have run.

Hooks run in the order of their registration. Python's thread pools and the driver replace their
locks in hooks of their own, and a thread that waits for such a lock waits for ever. So this hook is
registered when a client starts, and again when flags are loaded; only the newest one acts. There is
no hook before the fork, because it would delay the parent.
"""

import contextlib
import functools
import os
import weakref
from enum import IntEnum
from typing import Protocol

from flagkit._core.background import settle, silence


class Stage(IntEnum):
    """How much is there that might have hooks."""

    NOTHING = 0
    STARTED = 1
    LOADED = 2


class GoesOn(Protocol):
    """What has to do something after a fork, in the child."""

    def go_on_after_fork(self) -> None:
        """Replace what has not survived."""
        ...


_watched: weakref.WeakSet[GoesOn] = weakref.WeakSet()
_left_behind: list[object] = []
_stages = [Stage.NOTHING]


def watch(client: GoesOn, stage: Stage) -> None:
    """Have a client go on in every child that is forked from now on, for as long as it lives."""
    _watched.add(client)
    if stage > _stages[-1]:
        _stages.append(stage)
        os.register_at_fork(after_in_child=functools.partial(_go_on, stage))


def leave_behind(thing: object) -> None:
    """Keep something of the parent for ever, which would close descriptors if it was freed.

    The child may have closed them, and opened others that have the same numbers.
    """
    _left_behind.append(thing)


def _go_on(stage: Stage) -> None:
    if stage == _stages[-1]:
        settle()
        with silence():
            for client in list(_watched):
                # Each by itself: what one client cannot do must not keep others from going on.
                with contextlib.suppress(BaseException):
                    client.go_on_after_fork()
