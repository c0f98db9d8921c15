"""Arena: the records of all policies at one revision in one run of bytes, with no object for each.

Nothing in it is for the garbage collector to walk or for a fork to copy, and to map a file of it is
to load it. Records lie in the order of 64-bit hashes of their ids, which are trusted. Two ids of
one hash are both kept beside the rest, by name: every policy that there is is found as it is, and
one that there is not is taken for another with a probability of n / 2**64.

docs/snapshot-format.md has the layout.
"""

from bisect import bisect_left
from collections.abc import Iterator
from typing import Final

import xxhash

from flagkit.changes import Tip
from flagkit.errors import SnapshotFormatError
from flagkit.snapshot.frame import (
    Buffer,
    Record,
    checksum_of,
    columns_of,
    data_of,
    header_of,
    part_of,
    prefix_of,
)
from flagkit.snapshot.lengths import LENGTH_SHORT_MAX, length_at
from flagkit.snapshot.names import Names, encoded

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
        "names",
    )

    def __init__(self, content: Buffer) -> None:
        """Read the header of some bytes; whether they are sound, `check` tells.

        Raises:
            SnapshotFormatError: they are no arena that can be read here.
        """
        self.content = memoryview(content)
        self.header = header = header_of(self.content)
        self._data = data = data_of(self.content)
        self.columns = columns_of(header, data)
        # By names of their own, for each look-up takes some microseconds.
        columns = self.columns
        self._directory, self._hashes, self._states = columns[:3]
        self._versions, self._offsets, self._bodies = columns[3:]
        self._shift = HASH_BITS - header.directory_bits
        self.names = {
            region: Names(part_of(data, starts).cast("I"), part_of(data, text))
            for region, (starts, text) in header.names.items()
        }
        self._seeds = {region: seed_of(region) for region, count in header.counts.items() if count}
        self._colliding = {record.id: record for record in header.colliding}

    @property
    def tip(self) -> Tip:
        """Where its environment stood."""
        return self.header.tip

    @property
    def checksum(self) -> int:
        """The checksum that its bytes claim; 0 where they were never elsewhere."""
        return prefix_of(self.content)[0]

    @property
    def count(self) -> int:
        """How many records there are."""
        return len(self._hashes) + len(self._colliding)

    def find(self, region: str, key: str) -> Record | None:
        """Return a record, None where there is none."""
        seed = self._seeds.get(region)
        if seed is None:
            return None
        if self._colliding and (region, key) in self._colliding:
            return self._colliding[region, key]
        key_hash = hash_of(seed, key)
        place = self.place_of(key_hash)
        if place == len(self._hashes) or self._hashes[place] != key_hash:
            return None
        bodies, start = self._bodies, self._offsets[place] + 1
        length = bodies[start - 1]
        if length > LENGTH_SHORT_MAX:
            length, start = length_at(bodies, start - 1)
        body = bodies[start : start + length].tobytes()
        return Record(region, key, self._versions[place], self._states[place], body)

    def place_of(self, key_hash: int) -> int:
        """Return the place of the first record with a hash or a greater one."""
        top = key_hash >> self._shift
        return bisect_left(self._hashes, key_hash, self._directory[top], self._directory[top + 1])

    def keys(self, region: str, prefix: str = "") -> Iterator[str]:
        """Yield the keys of a region that begin with a prefix, ascending."""
        names = self.names.get(region)
        return iter(()) if names is None else names.starting_with(prefix)

    def records(self, region: str) -> Iterator[Record]:
        """Yield the records of a region, by ascending keys."""
        for key in self.keys(region):
            record = self.find(region, key)
            assert record is not None, "every name has a record"
            yield record

    def part(self, name: str) -> memoryview:
        """Return members of a segment, hashes of 64 bits, by the SHA-256 of their bytes.

        Raises:
            KeyError: they are not here.
        """
        return part_of(self._data, self.header.parts[name]).cast("Q")


def opened(content: Buffer) -> Arena:
    """Return the arena of bytes that come from elsewhere, which have to be sound.

    Raises:
        SnapshotFormatError: they are no arena, of another format, cut off or damaged.
    """
    view = memoryview(content)
    checksum, length, _ = prefix_of(view)
    if length != len(view):
        raise SnapshotFormatError(f"it is {len(view):,} of {length:,} bytes: it was cut off")
    if checksum_of(view) != checksum:
        raise SnapshotFormatError("its checksum is wrong: it was damaged")
    return Arena(view)


def seed_of(region: str) -> int:
    """Return the seed of the hashes of a region's keys."""
    return xxhash.xxh3_64_intdigest(region.encode())


def hash_of(seed: int, key: str) -> int:
    """Return the hash by which a record is found."""
    try:
        # Not `key.encode()`: where a caller passes a class such as `str` for a key, Python 3.11 may
        # crash in that call.
        content = str.encode(key)
    except UnicodeEncodeError:
        content = encoded(key)
    return xxhash.xxh3_64_intdigest(content, seed)
