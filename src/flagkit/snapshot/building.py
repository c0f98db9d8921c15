"""Building: records in, an arena out, in slices: no step over all of a million records at once.

Records come by ascending keys within each region. They are kept as numbers, in partitions by the
leading bits of their hashes; sorting a partition takes a millisecond.
"""

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from typing import Final, NamedTuple

from flagkit.changes import DIGEST_MODULUS, Tip
from flagkit.errors import SnapshotFormatError
from flagkit.snapshot.arena import HASH_BITS, Arena, hash_of, seed_of
from flagkit.snapshot.frame import (
    SLICE_BYTES,
    Buffer,
    Columns,
    Header,
    Plan,
    Record,
    Slices,
    allocated,
    directory_bits,
)
from flagkit.snapshot.lengths import encoded_length
from flagkit.snapshot.names import Names, NamesWriter

PARTITION_BITS: Final = 10
BODIES_BYTES_MAX: Final = 2**32
DIRECTORY_SLICE: Final = 1024
VERSION_BYTES: Final = (1, 2, 4, 8)


class _Partition:
    """The records whose hashes begin alike: columns of one length."""

    __slots__ = ("hashes", "offsets", "regions", "states", "versions")

    def __init__(self) -> None:
        self.hashes = array("Q")
        self.regions = array("H")
        self.states = array("Q")
        self.versions = array("Q")
        self.offsets = array("I")

    def sort(self) -> "list[_Twin]":
        """Sort by hashes; return, and leave out, the records whose hash is there twice."""
        hashes = self.hashes
        places = range(len(hashes))
        counted = Counter(hashes) if len(set(hashes)) < len(hashes) else Counter[int]()
        twins = [
            _Twin(
                hashes[place],
                self.regions[place],
                self.versions[place],
                self.states[place],
                self.offsets[place],
            )
            for place in places
            if counted[hashes[place]] > 1
        ]
        order = sorted(
            (place for place in places if counted[hashes[place]] <= 1), key=hashes.__getitem__
        )
        self.hashes = array("Q", map(hashes.__getitem__, order))
        self.states = array("Q", map(self.states.__getitem__, order))
        self.versions = array("Q", map(self.versions.__getitem__, order))
        self.offsets = array("I", map(self.offsets.__getitem__, order))
        return twins


class _Twin(NamedTuple):
    """A record that shares its hash with another; which key it is of, its place among them says."""

    hash: int
    region: int
    version: int
    state: int
    offset: int


class Builder:
    """Takes records, and makes an arena of them."""

    def __init__(self) -> None:
        self._partitions: dict[int, _Partition] = {}
        self._bodies = bytearray()
        self._offsets: dict[bytes, int] = {}
        self._regions: dict[str, _Region] = {}
        self._version_max = 0

    @property
    def digests(self) -> dict[str, int]:
        """The sum of the hashes of the states in each region, as `changes.digest` has it."""
        return {
            name: region.digest % DIGEST_MODULUS
            for name, region in self._regions.items()
            if region.digest % DIGEST_MODULUS
        }

    def add(self, region: str, key: str, version: int, state_hash: int, body: bytes) -> None:
        """Add a record, whose key comes after those of its region so far."""
        into = self._regions.get(region)
        if into is None:
            into = self._regions[region] = _Region(len(self._regions), seed_of(region))
        offset = self._offsets.get(body)
        if offset is None:
            offset = self._store(body)
        key_hash = hash_of(into.seed, key)
        number = key_hash >> HASH_BITS - PARTITION_BITS
        partition = self._partitions.get(number)
        if partition is None:
            partition = self._partitions[number] = _Partition()
        partition.hashes.append(key_hash)
        partition.regions.append(into.number)
        partition.states.append(state_hash)
        partition.versions.append(version)
        partition.offsets.append(offset)
        into.names.write(key.encode("utf-8", "surrogatepass"))
        into.count += 1
        into.digest += state_hash
        self._version_max = max(self._version_max, version)

    def finished(self, tip: Tip, parts: Mapping[str, Buffer]) -> Generator[None, None, Arena]:
        """Return the arena, in slices.

        Raises:
            SnapshotFormatError: the bodies are over 4 GiB.
        """
        partitions = [self._partitions[number] for number in sorted(self._partitions)]
        twins: list[_Twin] = []
        for partition in partitions:
            twins += partition.sort()
            yield
        count = sum(len(partition.hashes) for partition in partitions)
        header = Header(
            tip=tip,
            counts={name: region.count for name, region in self._regions.items()},
            digests=self.digests,
            directory_bits=directory_bits(count),
            version_bytes=version_bytes(self._version_max),
            packed_bytes=len(self._bodies),
            colliding=tuple(self._named(twins)),
        )
        names = {
            name: (region.names.starts.tobytes(), region.names.text)
            for name, region in self._regions.items()
        }
        content, columns = allocated(header, Plan(count, len(self._bodies), names, parts))
        yield from copied(memoryview(self._bodies), columns.bodies)
        place = 0
        for partition in partitions:
            end = place + len(partition.hashes)
            columns.hashes[place:end] = memoryview(partition.hashes)
            columns.states[place:end] = memoryview(partition.states)
            columns.offsets[place:end] = memoryview(partition.offsets)
            columns.versions[place:end] = memoryview(
                array(columns.versions.format, partition.versions)
            )
            place = end
            yield
        yield from fill_directory(columns, header.directory_bits)
        return Arena(content)

    def _store(self, body: bytes) -> int:
        offset = self._offsets[body] = len(self._bodies)
        self._bodies += encoded_length(len(body)) + body
        if len(self._bodies) > BODIES_BYTES_MAX:
            raise SnapshotFormatError("the flags are over 4 GiB: use fewer, or smaller ones")
        return offset

    def _named(self, twins: list[_Twin]) -> Iterator[Record]:
        """Yield twins with their keys: those of a region came in the order of its keys."""
        if not twins:
            return
        hashes = {twin.hash for twin in twins}
        bodies = {offset: body for body, offset in self._offsets.items()}
        for name, region in self._regions.items():
            writer = region.names
            names = Names(memoryview(writer.starts), memoryview(writer.text))
            waiting = [twin for twin in twins if twin.region == region.number]
            for key in names.starting_with(""):
                key_hash = hash_of(region.seed, key)
                if key_hash in hashes:
                    twin = next(twin for twin in waiting if twin.hash == key_hash)
                    waiting.remove(twin)
                    yield Record(name, key, twin.version, twin.state, bodies[twin.offset])


class _Region:
    """What was added of one region."""

    def __init__(self, number: int, seed: int) -> None:
        self.number = number
        self.seed = seed
        self.names = NamesWriter()
        self.count = 0
        self.digest = 0


def version_bytes(version_max: int) -> int:
    """Return in how many bytes a version is stored."""
    return next(size for size in VERSION_BYTES if version_max < 1 << 8 * size)


def copied(source: memoryview, target: memoryview) -> Slices:
    """Copy bytes in slices."""
    for start in range(0, len(source), SLICE_BYTES):
        end = min(start + SLICE_BYTES, len(source))
        target[start:end] = source[start:end]
        yield


def fill_directory(columns: Columns, bits: int) -> Slices:
    """Write down where the hashes of each leading value begin, in slices."""
    directory, hashes = columns.directory, columns.hashes
    place, shift = 0, HASH_BITS - bits
    for top in range(1, 2**bits):
        first = top << shift
        # Not far: some 16 records have the same leading bits.
        place = bisect_left(hashes, first, place, len(hashes))
        directory[top] = place
        if top % DIRECTORY_SLICE == 0:
            yield
    directory[2**bits] = len(hashes)
