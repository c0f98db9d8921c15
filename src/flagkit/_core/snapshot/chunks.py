"""Buffers copied, sorted and freed in steps of about a millisecond.

A C call that copies, sorts or frees a large buffer holds the GIL until it ends. Other threads run
between two steps.
"""

import heapq
import mmap
from collections import deque
from collections.abc import Generator, Iterator
from typing import Any, Final, Protocol, TypeAlias, TypeVar

SLICE_BYTES: Final = 1024 * 1024
"""So much is hashed or copied at once: about 0.1 ms, or 0.5 ms into memory that is new."""
SORTED_AT_ONCE: Final = 1024

Slices: TypeAlias = Generator[None, None, None]


class _Comparable(Protocol):
    def __lt__(self, other: Any, /) -> bool: ...


T = TypeVar("T", bound=_Comparable)


def allocate_zeroed(length: int) -> memoryview:
    """Return so many bytes, all zero."""
    if length < SLICE_BYTES:
        return memoryview(bytearray(length))
    # A bytearray is zeroed in one call, 40 ms for a million flags; this is when it is first used.
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    return memoryview(mmap.mmap(-1, length, flags=private))


def copy_in_slices(source: memoryview, target: memoryview) -> Slices:
    """Copy bytes into as many others, in slices."""
    for start in range(0, len(source), SLICE_BYTES):
        end = min(start + SLICE_BYTES, len(source))
        target[start:end] = source[start:end]
        yield


class Chunks:
    """Bytes that grow: chunk by chunk, for a single run is copied as it grows, and freed at once.

    A bytearray of 30 MB that grows can hold the interpreter for 15 ms.
    """

    def __init__(self) -> None:
        self._chunks = deque([bytearray()])
        self._offset = 0

    def __len__(self) -> int:
        return self._offset + (len(self._chunks[-1]) if self._chunks else 0)

    def append(self, content: bytes | memoryview) -> None:
        """Add some bytes, which stay together in a chunk."""
        last = self._chunks[-1]
        if len(last) >= SLICE_BYTES:
            self._offset += len(last)
            last = bytearray()
            self._chunks.append(last)
        last += content

    def get_tail(self, offset: int) -> memoryview:
        """Return the bytes from an offset to the end of their chunk.

        Raises:
            IndexError: the offset is not in any chunk.
        """
        for chunk in self._chunks:
            if offset < len(chunk):
                return memoryview(chunk)[offset:]
            offset -= len(chunk)
        raise IndexError("there are no such bytes")

    def join(self) -> bytes:
        """Return all of them as one run, at once."""
        return b"".join(self._chunks)

    def move_into(self, target: memoryview) -> Slices:
        """Copy them into as many bytes, in slices, and let go of them: nothing stays here."""
        end = self._offset = 0
        while self._chunks:
            chunk = self._chunks.popleft()
            start, end = end, end + len(chunk)
            target[start:end] = chunk
            yield


def release_pages(memory: memoryview) -> Slices:
    """Give back the pages of `allocate_zeroed` bytes that nobody reads any more, in slices.

    To free them all at once takes 5 ms for a million flags.
    """
    pages = memory.obj
    if isinstance(pages, mmap.mmap):
        for start in range(0, len(pages), SLICE_BYTES):
            pages.madvise(mmap.MADV_DONTNEED, start, min(SLICE_BYTES, len(pages) - start))
            yield


def sort_in_slices(items: list[T]) -> Generator[None, None, Iterator[T]]:
    """Return items in ascending order, sorted in slices."""
    runs: list[list[T]] = []
    for start in range(0, len(items), SORTED_AT_ONCE):
        if start:
            yield
        runs.append(sorted(items[start : start + SORTED_AT_ONCE]))
    return heapq.merge(*runs)
