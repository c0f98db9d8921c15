"""The arena: records and sorted keys, read in place from one run of bytes.

The garbage collector has nothing to walk in an arena, and a fork copies nothing of it. Mapping a
file loads it. Records are ordered by 64-bit hashes of their ids, and a look-up trusts the hash. Two
ids with one hash are stored by name beside the rest. So every existing policy is found; an unknown
id is mistaken for a known one with a probability of n / 2**64.

The keys of a region are ascending and front-coded in blocks. They serve listing, never look-ups. A
key is one byte with the length shared with the previous key, the length of the rest, and the rest.
A block has BLOCK_KEYS keys when it is written and up to BLOCK_KEYS_MAX later. `starts` has the
position of each block.

docs/snapshot-format.md describes the layout.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Generator, Iterator
from typing import Final

import xxhash

from flagkit._core.model.changes import Tip
from flagkit._core.snapshot.chunks import Chunks, Slices, sort_in_slices
from flagkit._core.snapshot.layout import (
    LENGTH_SHORT_MAX,
    Buffer,
    Record,
    compute_checksum,
    decode_varint,
    encode_varint,
    read_columns,
    read_data,
    read_header,
    read_prefix,
    read_section,
)
from flagkit.errors import SnapshotFormatError

BLOCK_KEYS: Final = 16
BLOCK_KEYS_MAX: Final = 32
"""A block to which keys are added is parted once it has more: others have room for some."""
SHARED_MAX: Final = 255
SLICE_BLOCKS: Final = 256
EDITED_AT_ONCE: Final = 16
WRITTEN_AT_ONCE: Final = 256


class KeyIndex:
    """A reader of keys. Immutable.

    Args:
        starts: The offsets of blocks in `text`, as ascending 32-bit numbers.
        text: The blocks, one after the other.
    """

    __slots__ = ("_starts", "_text")

    def __init__(self, starts: memoryview, text: memoryview) -> None:
        self._starts = starts
        self._text = text

    def iter_with_prefix(self, prefix: str) -> Iterator[str]:
        """Yield the keys that begin with a prefix, ascending."""
        wanted = encode_key(prefix)
        for block in range(self.find_block(wanted), len(self._starts)):
            for key in self.iter_block(block):
                if key.startswith(wanted):
                    yield key.decode("utf-8", "surrogatepass")
                elif key > wanted:
                    return

    def __contains__(self, key: bytes) -> bool:
        return len(self._starts) > 0 and key in self.iter_block(self.find_block(key))

    def find_block(self, key: bytes) -> int:
        """Return the number of the block that a key is in, or would be."""
        return max(bisect_right(range(len(self._starts)), key, key=self._read_first_key) - 1, 0)

    def iter_block(self, number: int) -> Iterator[bytes]:
        """Yield the keys of a block."""
        text, at, end = self._text, self._starts[number], self._find_block_end(number)
        key = b""
        while at < end:
            shared = text[at]
            length, at = decode_varint(text, at + 1)
            key = key[:shared] + text[at : at + length]
            at += length
            yield key

    def apply_edits(
        self, edits: list[tuple[bytes, bool]]
    ) -> Generator[None, None, tuple[bytes, Chunks]]:
        """Return `starts` and `text` with some keys more and some less, in slices.

        Blocks in which nothing changes are copied as they are.

        Args:
            edits: Keys, and whether they are there from now on; each at most once.
        """
        starts, text = array("I"), Chunks()
        ordered = yield from sort_in_slices(edits)
        done, block = 0, 0
        group: dict[bytes, bool] = {}
        for turn, (key, there) in enumerate(ordered, 1):
            number = self.find_block(key)
            if group and number != block:
                yield from self._copy_blocks(done, block, starts, text)
                yield from self._rewrite_block(block, group, starts, text)
                done = block + 1
                group = {}
            block = number
            group[key] = there
            if turn % EDITED_AT_ONCE == 0:
                yield
        if group:
            yield from self._copy_blocks(done, block, starts, text)
            yield from self._rewrite_block(block, group, starts, text)
            done = block + 1
        yield from self._copy_blocks(done, len(self._starts), starts, text)
        return starts.tobytes(), text

    def _rewrite_block(
        self, number: int, edits: dict[bytes, bool], starts: "array[int]", text: Chunks
    ) -> Slices:
        there = dict.fromkeys(self.iter_block(number), True) if len(self._starts) else {}
        there |= edits
        remaining = [key for key in there if there[key]]
        keys = yield from sort_in_slices(remaining)
        blocks = max(1, -(-len(remaining) // BLOCK_KEYS_MAX))
        writer = KeyIndexWriter(max(1, -(-len(remaining) // blocks)))
        for done, key in enumerate(keys, 1):
            writer.write(key)
            if done % WRITTEN_AT_ONCE == 0:
                yield
        starts.extend(len(text) + start for start in writer.starts)
        text.append(writer.text.join())

    def _copy_blocks(self, first: int, last: int, starts: "array[int]", text: Chunks) -> Slices:
        for block in range(first, last, SLICE_BLOCKS):
            end = min(block + SLICE_BLOCKS, last)
            shift = len(text) - self._starts[block]
            starts.extend(start + shift for start in self._starts[block:end])
            text.append(self._text[self._starts[block] : self._find_block_end(end - 1)])
            # A shorter copy is not worth a pause.
            if end - block == SLICE_BLOCKS:
                yield

    def _read_first_key(self, number: int) -> bytes:
        # Written out: a search asks for some seventeen.
        text, at = self._text, self._starts[number] + 2
        length = text[at - 1]
        if length > LENGTH_SHORT_MAX:
            length, at = decode_varint(text, at - 1)
        return text[at : at + length].tobytes()

    def _find_block_end(self, number: int) -> int:
        return self._starts[number + 1] if number + 1 < len(self._starts) else len(self._text)


class KeyIndexWriter:
    """Takes ascending keys, and front-codes them as they come.

    Args:
        block_keys: The number of keys in a block. The last block may have fewer.
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
            # Start at the shared length of the last two keys: neighbours share about as much.
            shared = min(self._shared, len(key))
            while not last.startswith(key[:shared]):
                shared -= 1
            limit = min(len(key), len(last), SHARED_MAX)
            while shared < limit and key[shared] == last[shared]:
                shared += 1
        rest = key[shared:]
        self.text.append(shared.to_bytes() + encode_varint(len(rest)) + rest)
        self._last, self._shared = key, shared
        self._count += 1


def encode_key(key: str) -> bytes:
    """Return a key in the form in which keys are compared."""
    return str.encode(key, "utf-8", "surrogatepass")


HASH_BITS: Final = 64


class Arena:
    """A reader of an arena's bytes. Immutable, and safe to use from many threads."""

    __slots__ = (
        "_bodies",
        "_colliding",
        "_data",
        "_directory",
        "_hashes",
        "_offsets",
        "_seeds",
        "_shift",
        "_states",
        "_versions",
        "columns",
        "content",
        "header",
        "key_indexes",
    )

    def __init__(self, content: Buffer) -> None:
        """Read the header of some bytes. `check` verifies the contents.

        Raises:
            SnapshotFormatError: they are no arena of a known format.
        """
        self.content = memoryview(content)
        self.header = header = read_header(self.content)
        self._data = data = read_data(self.content)
        self.columns = read_columns(header, data)
        # Attributes of their own save time: each look-up takes some microseconds.
        columns = self.columns
        self._directory, self._hashes, self._states = columns[:3]
        self._versions, self._offsets, self._bodies = columns[3:]
        self._shift = HASH_BITS - header.directory_bits
        self.key_indexes = {
            region: KeyIndex(read_section(data, starts).cast("I"), read_section(data, text))
            for region, (starts, text) in header.names.items()
        }
        self._seeds = {
            region: derive_seed(region) for region, count in header.counts.items() if count
        }
        self._colliding = {record.id: record for record in header.colliding}

    @property
    def tip(self) -> Tip:
        """The tip of its environment."""
        return self.header.tip

    @property
    def checksum(self) -> int:
        """The checksum that its bytes claim; 0 if they never left this process."""
        return read_prefix(self.content)[0]

    @property
    def count(self) -> int:
        """The number of records."""
        return len(self._hashes) + len(self._colliding)

    def find(self, region: str, key: str) -> Record | None:
        """Return a record, None if there is none."""
        seed = self._seeds.get(region)
        if seed is None:
            return None
        if self._colliding and (region, key) in self._colliding:
            return self._colliding[region, key]
        key_hash = compute_key_hash(seed, key)
        place = self.find_place(key_hash)
        if place == len(self._hashes) or self._hashes[place] != key_hash:
            return None
        bodies, start = self._bodies, self._offsets[place] + 1
        length = bodies[start - 1]
        if length > LENGTH_SHORT_MAX:
            length, start = decode_varint(bodies, start - 1)
        body = bodies[start : start + length].tobytes()
        return Record(region, key, self._versions[place], self._states[place], body)

    def find_place(self, key_hash: int) -> int:
        """Return the place of the first record with a hash or a greater one."""
        top = key_hash >> self._shift
        return bisect_left(self._hashes, key_hash, self._directory[top], self._directory[top + 1])

    def iter_keys(self, region: str, prefix: str = "") -> Iterator[str]:
        """Yield the keys of a region that begin with a prefix, ascending."""
        names = self.key_indexes.get(region)
        return iter(()) if names is None else names.iter_with_prefix(prefix)

    def iter_records(self, region: str) -> Iterator[Record]:
        """Yield the records of a region, by ascending keys."""
        for key in self.iter_keys(region):
            record = self.find(region, key)
            assert record is not None, "every name has a record"
            yield record

    def get_part(self, name: str) -> memoryview:
        """Return members of a segment, hashes of 64 bits, by the SHA-256 of their bytes.

        Raises:
            KeyError: they are not here.
        """
        return read_section(self._data, self.header.parts[name]).cast("Q")


def open_arena(content: Buffer) -> Arena:
    """Return the arena of bytes that come from elsewhere, which have to be sound.

    Raises:
        SnapshotFormatError: they are no arena, of another format, cut off or damaged.
    """
    view = memoryview(content)
    checksum, length, _ = read_prefix(view)
    if length != len(view):
        raise SnapshotFormatError(f"it is {len(view):,} of {length:,} bytes: it was cut off")
    if compute_checksum(view) != checksum:
        raise SnapshotFormatError("its checksum is wrong: it was damaged")
    return Arena(view)


def derive_seed(region: str) -> int:
    """Return the seed of the hashes of a region's keys."""
    return xxhash.xxh3_64_intdigest(region.encode())


def compute_key_hash(seed: int, key: str) -> int:
    """Return the hash by which a record is found."""
    try:
        # `key.encode()` may crash Python 3.11 if a caller passes a class such as `str` for a key.
        content = str.encode(key)
    except UnicodeEncodeError:
        content = encode_key(key)
    return xxhash.xxh3_64_intdigest(content, seed)
