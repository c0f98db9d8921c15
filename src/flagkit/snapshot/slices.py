"""Slices: work on a million records in steps of about a millisecond.

Between two steps other threads can have their turn: a call into C that copies, sorts or frees much
holds the interpreter until it ends.
"""

import heapq
import mmap
from collections.abc import Generator, Iterator
from typing import Any, Final, Protocol, TypeAlias, TypeVar

SLICE_BYTES: Final = 1024 * 1024
"""So much is hashed or copied at once: about 0.1 ms, or 0.5 ms into memory that is new."""
SORTED_AT_ONCE: Final = 1024

Slices: TypeAlias = Generator[None, None, None]


class _Ordered(Protocol):
    def __lt__(self, other: Any, /) -> bool: ...


T = TypeVar("T", bound=_Ordered)


def blank(length: int) -> memoryview:
    """Return so many bytes, all zero."""
    if length < SLICE_BYTES:
        return memoryview(bytearray(length))
    # A bytearray is zeroed in one call, 40 ms for a million flags; this is when it is first used.
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    return memoryview(mmap.mmap(-1, length, flags=private))


def copied(source: memoryview, target: memoryview) -> Slices:
    """Copy bytes into as many others, in slices."""
    for start in range(0, len(source), SLICE_BYTES):
        end = min(start + SLICE_BYTES, len(source))
        target[start:end] = source[start:end]
        yield


def ascending(items: list[T]) -> Generator[None, None, Iterator[T]]:
    """Return items in ascending order, sorted in slices."""
    runs: list[list[T]] = []
    for start in range(0, len(items), SORTED_AT_ONCE):
        if start:
            yield
        runs.append(sorted(items[start : start + SORTED_AT_ONCE]))
    return heapq.merge(*runs)
