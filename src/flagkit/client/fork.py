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

from flagkit._core.background import delay_after_fork, silence


class Stage(IntEnum):
    """How much is there that might have hooks."""

    NOTHING = 0
    STARTED = 1
    LOADED = 2


class ForkHandler(Protocol):
    """An object that acts in the child after a fork."""

    def after_fork_in_child(self) -> None:
        """Replace what has not survived."""
        ...


_handlers: weakref.WeakSet[ForkHandler] = weakref.WeakSet()
_live_objects: list[object] = []
_stages = [Stage.NOTHING]


def register_fork_handler(client: ForkHandler, stage: Stage) -> None:
    """Have a client go on in every child that is forked from now on, for as long as it lives."""
    _handlers.add(client)
    if stage > _stages[-1]:
        _stages.append(stage)
        os.register_at_fork(after_in_child=functools.partial(_run_handlers, stage))


def keep_alive(thing: object) -> None:
    """Keep something of the parent for ever, which would close descriptors if it was freed.

    The child may have closed them, and opened others that have the same numbers.
    """
    _live_objects.append(thing)


def _run_handlers(stage: Stage) -> None:
    if stage == _stages[-1]:
        delay_after_fork()
        with silence():
            for client in list(_handlers):
                # Each by itself: what one client cannot do must not keep others from going on.
                with contextlib.suppress(BaseException):
                    client.after_fork_in_child()
