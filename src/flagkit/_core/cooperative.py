"""Long CPU work without stalls: pauses of the garbage collector, and work in slices.

A full collection walks every object of the process. That takes 40 ms or more, and no other thread
runs meanwhile. While a pause lasts, new objects do not trigger collections.

A pause raises the collector's first threshold. It never calls `gc.disable`, because the application
owns that switch.
"""

import gc
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Final, TypeVar

PAUSED_THRESHOLD: Final = 1_000_003
"""The first threshold in a pause: more objects than a pause makes that stay.

It is no number that somebody else sets. It is no larger, for an application that reads it in a
pause may set it again later.
"""

_lock = threading.RLock()
_pauses: set[object] = set()
_threshold_before = gc.get_threshold()[0]


@contextmanager
def pause_gc() -> Generator[None]:
    """Pause the collector for the block, and leave it as the application wants it."""
    pause = object()
    _begin_pause(pause)
    try:
        yield
    finally:
        _end_pause(pause)


def _begin_pause(pause: object) -> None:
    global _threshold_before  # noqa: PLW0603 - the collector is the process's, too
    with _lock:
        threshold = gc.get_threshold()[0]
        # 0 stands for never.
        if not _pauses and 0 < threshold < PAUSED_THRESHOLD:
            _threshold_before = threshold
            _set_threshold(PAUSED_THRESHOLD)
        _pauses.add(pause)


def _end_pause(pause: object) -> None:
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
        _end_pause(pause)


os.register_at_fork(after_in_child=_resume_in_child)


S = TypeVar("S")
T = TypeVar("T")


def split_batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield items in lists of a size; the last one may be shorter."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def run_slices(slices: Generator[S, None, T], on_slice: Callable[[S], object] | None = None) -> T:
    """Return the result of work in slices; call `on_slice` with the value of each slice."""
    while True:
        try:
            value = next(slices)
        except StopIteration as done:
            result: T = done.value
            return result
        if on_slice is not None:
            on_slice(value)


def pace_slices(
    slices: Generator[S, None, T], pause: Callable[[float], object]
) -> Generator[S, None, T]:
    """Yield the values of the slices, and call `pause` with the seconds that each slice took."""
    while True:
        started = time.perf_counter()
        try:
            value = next(slices)
        except StopIteration as done:
            result: T = done.value
            return result
        yield value
        pause(time.perf_counter() - started)
