"""Names: the keys of one region, ascending, front-coded in blocks: for listing, never for look-ups.

A block has up to BLOCK_KEYS keys. Each is a byte that says how many bytes it shares with the one
before it in the block, the length of the rest, and the rest. `starts` has where each block begins.
"""

from array import array
from bisect import bisect_right
from collections.abc import Generator, Iterable, Iterator
from itertools import groupby
from typing import Final

from flagkit.snapshot.lengths import encoded_length, length_at

BLOCK_KEYS: Final = 16
SHARED_MAX: Final = 255
SLICE_BLOCKS: Final = 512


class Names:
    """A reader of keys. Immutable.

    Args:
        starts: Where blocks begin in `text`, 32-bit numbers, ascending.
        text: The blocks, one after the other.
    """

    __slots__ = ("_starts", "_text")

    def __init__(self, starts: memoryview, text: memoryview) -> None:
        self._starts = starts
        self._text = text

    def starting_with(self, prefix: str) -> Iterator[str]:
        """Yield the keys that begin with a prefix, ascending."""
        wanted = _encoded(prefix)
        for block in range(self.block_of(wanted), len(self._starts)):
            for key in self.block(block):
                if key.startswith(wanted):
                    yield key.decode("utf-8", "surrogatepass")
                elif key > wanted:
                    return

    def block_of(self, key: bytes) -> int:
        """Return the number of the block that a key is in, or would be."""
        return max(bisect_right(range(len(self._starts)), key, key=self._first) - 1, 0)

    def block(self, number: int) -> Iterator[bytes]:
        """Yield the keys of a block."""
        text, at, end = self._text, self._starts[number], self._end(number)
        key = b""
        while at < end:
            shared = text[at]
            length, at = length_at(text, at + 1)
            key = key[:shared] + text[at : at + length]
            at += length
            yield key

    def edited(
        self, added: Iterable[str], removed: Iterable[str]
    ) -> Generator[None, None, tuple[bytes, bytes]]:
        """Return `starts` and `text` with some keys more and some less, in slices.

        Blocks in which nothing changes are copied as they are.
        """
        edits = sorted(
            [(_encoded(key), True) for key in added] + [(_encoded(key), False) for key in removed]
        )
        starts, text = array("I"), bytearray()
        done = 0
        for number, group in groupby(edits, key=lambda edit: self.block_of(edit[0])):
            yield from self._copied(done, number, starts, text)
            keys = set(self.block(number)) if len(self._starts) else set[bytes]()
            for key, there in group:
                (keys.add if there else keys.discard)(key)
            writer = NamesWriter()
            for key in sorted(keys):
                writer.write(key)
            starts.extend(len(text) + start for start in writer.starts)
            text += writer.text
            done = number + 1
            yield
        yield from self._copied(done, len(self._starts), starts, text)
        return starts.tobytes(), bytes(text)

    def _copied(
        self, first: int, last: int, starts: "array[int]", text: bytearray
    ) -> Generator[None, None, None]:
        for block in range(first, last, SLICE_BLOCKS):
            end = min(block + SLICE_BLOCKS, last)
            shift = len(text) - self._starts[block]
            starts.extend(start + shift for start in self._starts[block:end])
            text += self._text[self._starts[block] : self._end(end - 1)]
            yield

    def _first(self, number: int) -> bytes:
        return next(self.block(number))

    def _end(self, number: int) -> int:
        return self._starts[number + 1] if number + 1 < len(self._starts) else len(self._text)


class NamesWriter:
    """Takes ascending keys, and front-codes them as they come."""

    def __init__(self) -> None:
        self.starts = array("I")
        self.text = bytearray()
        self._last = b""
        self._shared = 0
        self._count = 0

    def write(self, key: bytes) -> None:
        """Add a key that comes after all others."""
        last, shared = self._last, 0
        if self._count % BLOCK_KEYS == 0:
            self.starts.append(len(self.text))
        else:
            # From where the last two parted: neighbours share about as much.
            shared = min(self._shared, len(key))
            while not last.startswith(key[:shared]):
                shared -= 1
            limit = min(len(key), len(last), SHARED_MAX)
            while shared < limit and key[shared] == last[shared]:
                shared += 1
        rest = key[shared:]
        self.text.append(shared)
        self.text += encoded_length(len(rest))
        self.text += rest
        self._last, self._shared = key, shared
        self._count += 1


def _encoded(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")
