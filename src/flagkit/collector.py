"""Collector: Python's cyclic garbage collector, paused while much is made that is no garbage.

Each of its runs walks what has been made so far, and, after some, all that the service has: 40 ms
and more, in which no thread goes on. What is made and gone within a pause counts for nothing.
"""

import gc
import os
from collections.abc import Generator
from contextlib import contextmanager

_pauses: set[object] = set()


@contextmanager
def collector_paused() -> Generator[None]:
    """Pause the collector for the block, and leave it as it was."""
    if not gc.isenabled():
        # Somebody else has paused it, and puts it back.
        yield
        return
    pause = object()
    _pauses.add(pause)
    gc.disable()
    try:
        yield
    finally:
        _pauses.discard(pause)
        gc.enable()


def _resume_in_child() -> None:
    # The thread that paused it is not there to put it back.
    if _pauses:
        _pauses.clear()
        gc.enable()


os.register_at_fork(after_in_child=_resume_in_child)
