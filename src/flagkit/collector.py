"""Collector: Python's cyclic garbage collector, paused while much is made that is no garbage.

Each of its runs walks what has been made so far, and, after some, all that the service has: 40 ms
and more, in which no thread goes on. What is made and gone within a pause counts for nothing.

A pause raises the first threshold of the collector. It does not call `gc.disable`, for whether the
collector is enabled belongs to the application: nobody could tell afterwards whether the
application has disabled it, too.
"""

import gc
import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

PAUSED_THRESHOLD: Final = 1_000_003
"""The first threshold in a pause: more objects than a pause makes that stay.

It is no number that somebody else sets. It is no larger, for an application that reads it in a
pause may set it again later.
"""

_lock = threading.RLock()
_pauses: set[object] = set()
_threshold_before = gc.get_threshold()[0]


@contextmanager
def collector_paused() -> Generator[None]:
    """Pause the collector for the block, and leave it as the application wants it."""
    pause = object()
    _begin(pause)
    try:
        yield
    finally:
        _end(pause)


def _begin(pause: object) -> None:
    global _threshold_before  # noqa: PLW0603 - the collector is the process's, too
    with _lock:
        threshold = gc.get_threshold()[0]
        # 0 stands for never.
        if not _pauses and 0 < threshold < PAUSED_THRESHOLD:
            _threshold_before = threshold
            _set_threshold(PAUSED_THRESHOLD)
        _pauses.add(pause)


def _end(pause: object) -> None:
    with _lock:
        _pauses.discard(pause)
        # Another value was set by the application meanwhile, and stays.
        if not _pauses and gc.get_threshold()[0] == PAUSED_THRESHOLD:
            _set_threshold(_threshold_before)


def _set_threshold(first: int) -> None:
    gc.set_threshold(first, *gc.get_threshold()[1:])


def _resume_in_child() -> None:
    global _lock  # noqa: PLW0603 - another thread of the parent may hold it
    _lock = threading.RLock()
    # The threads that paused it are not there to put it back.
    for pause in [*_pauses]:
        _end(pause)


os.register_at_fork(after_in_child=_resume_in_child)
