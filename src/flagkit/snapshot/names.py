"""Names: the keys of one region, ascending, front-coded in blocks: for listing, never for look-ups.

A block has BLOCK_KEYS keys when it is written, and up to BLOCK_KEYS_MAX later. Each is a byte that
says how many bytes it shares with the one before it in the block, the length of the rest, and the
rest. `starts` has where each block begins.
"""

from array import array
from bisect import bisect_right
from collections.abc import Generator, Iterator
from typing import Final

from flagkit.snapshot.lengths import LENGTH_SHORT_MAX, encoded_length, length_at
from flagkit.snapshot.slices import Chunks, Slices, ascending

BLOCK_KEYS: Final = 16
BLOCK_KEYS_MAX: Final = 32
"""A block to which keys are added is parted once it has more: others have room for some."""
SHARED_MAX: Final = 255
SLICE_BLOCKS: Final = 256
EDITED_AT_ONCE: Final = 16
WRITTEN_AT_ONCE: Final = 256


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
        wanted = encoded(prefix)
        for block in range(self.block_of(wanted), len(self._starts)):
            for key in self.block(block):
                if key.startswith(wanted):
                    yield key.decode("utf-8", "surrogatepass")
                elif key > wanted:
                    return

    def __contains__(self, key: bytes) -> bool:
        return len(self._starts) > 0 and key in self.block(self.block_of(key))

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
        self, edits: list[tuple[bytes, bool]]
    ) -> Generator[None, None, tuple[bytes, Chunks]]:
        """Return `starts` and `text` with some keys more and some less, in slices.

        Blocks in which nothing changes are copied as they are.

        Args:
            edits: Keys, and whether they are there from now on; each at most once.
        """
        starts, text = array("I"), Chunks()
        ordered = yield from ascending(edits)
        done, block = 0, 0
        group: dict[bytes, bool] = {}
        for turn, (key, there) in enumerate(ordered, 1):
            number = self.block_of(key)
            if group and number != block:
                yield from self._copied(done, block, starts, text)
                yield from self._rewritten(block, group, starts, text)
                done = block + 1
                group = {}
            block = number
            group[key] = there
            if turn % EDITED_AT_ONCE == 0:
                yield
        if group:
            yield from self._copied(done, block, starts, text)
            yield from self._rewritten(block, group, starts, text)
            done = block + 1
        yield from self._copied(done, len(self._starts), starts, text)
        return starts.tobytes(), text

    def _rewritten(
        self, number: int, edits: dict[bytes, bool], starts: "array[int]", text: Chunks
    ) -> Slices:
        there = dict.fromkeys(self.block(number), True) if len(self._starts) else {}
        there |= edits
        kept = [key for key in there if there[key]]
        keys = yield from ascending(kept)
        blocks = max(1, -(-len(kept) // BLOCK_KEYS_MAX))
        writer = NamesWriter(max(1, -(-len(kept) // blocks)))
        for done, key in enumerate(keys, 1):
            writer.write(key)
            if done % WRITTEN_AT_ONCE == 0:
                yield
        starts.extend(len(text) + start for start in writer.starts)
        text.append(writer.text.joined())

    def _copied(self, first: int, last: int, starts: "array[int]", text: Chunks) -> Slices:
        for block in range(first, last, SLICE_BLOCKS):
            end = min(block + SLICE_BLOCKS, last)
            shift = len(text) - self._starts[block]
            starts.extend(start + shift for start in self._starts[block:end])
            text.append(self._text[self._starts[block] : self._end(end - 1)])
            # What is shorter is not worth a pause.
            if end - block == SLICE_BLOCKS:
                yield

    def _first(self, number: int) -> bytes:
        # Written out: a search asks for some seventeen.
        text, at = self._text, self._starts[number] + 2
        length = text[at - 1]
        if length > LENGTH_SHORT_MAX:
            length, at = length_at(text, at - 1)
        return text[at : at + length].tobytes()

    def _end(self, number: int) -> int:
        return self._starts[number + 1] if number + 1 < len(self._starts) else len(self._text)


class NamesWriter:
    """Takes ascending keys, and front-codes them as they come.

    Args:
        block_keys: How many a block has, but for the last.
    """

    def __init__(self, block_keys: int = BLOCK_KEYS) -> None:
        self.starts = array("I")
        self.text = Chunks()
        self._last = b""
        self._shared = 0
        self._count = 0
        self._block_keys = block_keys

    def write(self, key: bytes) -> None:
        """Add a key that comes after all others."""
        last, shared = self._last, 0
        if self._count % self._block_keys == 0:
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
        self.text.append(shared.to_bytes() + encoded_length(len(rest)) + rest)
        self._last, self._shared = key, shared
        self._count += 1


def encoded(key: str) -> bytes:
    """Return a key in the form in which keys are compared."""
    return str.encode(key, "utf-8", "surrogatepass")
