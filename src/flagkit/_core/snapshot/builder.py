"""Builds an arena from records, in slices: no step works on all of a million records at once.

Records come in ascending order of their keys within each region. The builder stores them as
numbers, in partitions by the leading bits of their hashes. Sorting a partition takes a millisecond.
"""

from array import array
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Generator, Mapping
from typing import Final, NamedTuple

from flagkit._core.model.changes import DIGEST_MODULUS, Tip
from flagkit._core.snapshot.arena import (
    HASH_BITS,
    Arena,
    KeyIndex,
    KeyIndexWriter,
    compute_key_hash,
    derive_seed,
    encode_key,
)
from flagkit._core.snapshot.chunks import Chunks, Slices
from flagkit._core.snapshot.layout import (
    Buffer,
    Columns,
    Header,
    Layout,
    Record,
    allocate_arena,
    compute_directory_bits,
    decode_varint,
    encode_varint,
)
from flagkit.errors import SnapshotFormatError

PARTITION_BITS: Final = 10
BODIES_BYTES_MAX: Final = 2**32
OFFSETS_TABLES: Final = 256
DIRECTORY_SLICE: Final = 512
KEYS_SLICE: Final = 512
RECORDS_SLICE: Final = 512
"""So many records are sorted, or written, between two pauses."""
VERSION_BYTES: Final = (1, 2, 4, 8)


class _Partition:
    """The records whose hashes have the same leading bits: columns of one length."""

    __slots__ = ("hashes", "offsets", "regions", "states", "versions")

    def __init__(self) -> None:
        self.hashes = array("Q")
        self.regions = array("H")
        self.states = array("Q")
        self.versions = array("Q")
        self.offsets = array("I")

    def sort(self) -> "list[_CollidingRecord]":
        """Sort by hashes; return, and leave out, the records whose hash is there twice."""
        hashes = self.hashes
        twins: list[_CollidingRecord] = []
        order = sorted(range(len(hashes)), key=hashes.__getitem__)
        if len(set(hashes)) < len(hashes):
            counted = Counter(hashes)
            # The order of equal ones is that in which they came.
            twins = [self._read_colliding(place) for place in order if counted[hashes[place]] > 1]
            order = [place for place in order if counted[hashes[place]] == 1]
        self.hashes = array("Q", map(hashes.__getitem__, order))
        self.states = array("Q", map(self.states.__getitem__, order))
        self.versions = array("Q", map(self.versions.__getitem__, order))
        self.offsets = array("I", map(self.offsets.__getitem__, order))
        return twins

    def _read_colliding(self, place: int) -> "_CollidingRecord":
        return _CollidingRecord(
            self.hashes[place],
            self.regions[place],
            self.versions[place],
            self.states[place],
            self.offsets[place],
        )


class _CollidingRecord(NamedTuple):
    """A record that shares its hash with another. Its place among them identifies its key."""

    hash: int
    region: int
    version: int
    state: int
    offset: int


class ArenaBuilder:
    """Collects records, and builds an arena of them.

    Args:
        namespaces: The prefixes of the flags' keys; none if these are all flags.
    """

    def __init__(self, namespaces: tuple[str, ...] = ()) -> None:
        self._namespaces = namespaces
        self._partitions: dict[int, _Partition] = {}
        self._bodies = Chunks()
        self._offsets: list[dict[bytes, int]] = [{} for _ in range(OFFSETS_TABLES)]
        self._regions: dict[str, _Region] = {}
        self._version_max = 0

    @property
    def digests(self) -> dict[str, int]:
        """The sum of the hashes of the states in each region, as in the digests of a tip."""
        return {
            name: region.digest % DIGEST_MODULUS
            for name, region in self._regions.items()
            if region.digest % DIGEST_MODULUS
        }

    def add(self, region: str, key: str, version: int, state_hash: int, body: bytes) -> None:
        """Add a record, whose key comes after those of its region so far."""
        into = self._regions.get(region)
        if into is None:
            into = self._regions[region] = _Region(len(self._regions), derive_seed(region))
        # Many small tables: a large one holds the interpreter while it grows.
        offsets = self._offsets[hash(body) % OFFSETS_TABLES]
        offset = offsets.get(body)
        if offset is None:
            offset = offsets[body] = self._store_body(body)
        key_hash = compute_key_hash(into.seed, key)
        number = key_hash >> HASH_BITS - PARTITION_BITS
        partition = self._partitions.get(number)
        if partition is None:
            partition = self._partitions[number] = _Partition()
        partition.hashes.append(key_hash)
        partition.regions.append(into.number)
        partition.states.append(state_hash)
        partition.versions.append(version)
        partition.offsets.append(offset)
        into.names.write(encode_key(key))
        into.count += 1
        into.digest += state_hash
        self._version_max = max(self._version_max, version)

    def build(self, tip: Tip, parts: Mapping[str, Buffer]) -> Generator[None, None, Arena]:
        """Return the arena, in slices.

        Raises:
            SnapshotFormatError: the bodies are over 4 GiB.
        """
        partitions = deque(self._partitions[number] for number in sorted(self._partitions))
        self._partitions.clear()
        twins: list[_CollidingRecord] = []
        done = 0
        for partition in partitions:
            done += len(partition.hashes)
            twins += partition.sort()
            if done >= RECORDS_SLICE:
                yield
                done = 0
        colliding = yield from self._resolve_keys(twins)
        yield from self._free_bodies()
        count = sum(len(partition.hashes) for partition in partitions)
        header = Header(
            tip=tip,
            counts={name: region.count for name, region in self._regions.items()},
            digests=self.digests,
            directory_bits=compute_directory_bits(count),
            version_bytes=compute_version_bytes(self._version_max),
            packed_bytes=len(self._bodies),
            colliding=tuple(colliding),
            namespaces=self._namespaces,
        )
        names = {
            name: (region.names.starts.tobytes(), region.names.text)
            for name, region in self._regions.items()
        }
        plan = Layout(count, len(self._bodies), names, parts)
        content, columns = yield from allocate_arena(header, plan)
        self._regions.clear()
        del names, plan
        yield from self._bodies.move_into(columns.bodies)
        yield from _fill_columns(columns, partitions)
        yield from fill_directory(columns, header.directory_bits)
        return Arena(content)

    def _free_bodies(self) -> Slices:
        """Free the bodies as the keys of tables; all at once that would take long, too."""
        done = 0
        while self._offsets:
            done += len(self._offsets.pop())
            if done >= RECORDS_SLICE:
                yield
                done = 0

    def _store_body(self, body: bytes) -> int:
        offset = len(self._bodies)
        self._bodies.append(encode_varint(len(body)) + body)
        if len(self._bodies) > BODIES_BYTES_MAX:
            raise SnapshotFormatError("the flags are over 4 GiB: use fewer, or smaller ones")
        return offset

    def _resolve_keys(self, twins: list[_CollidingRecord]) -> Generator[None, None, list[Record]]:
        """Return twins with their keys: those of a region came in the order of its keys."""
        found: list[Record] = []
        for name, region in self._regions.items() if twins else ():
            waiting: dict[int, list[_CollidingRecord]] = {}
            for twin in reversed(twins):
                if twin.region == region.number:
                    waiting.setdefault(twin.hash, []).append(twin)
            # One run of all keys takes its time: it happens once in a myriad of environments.
            names = KeyIndex(memoryview(region.names.starts), memoryview(region.names.text.join()))
            for done, key in enumerate(names.iter_with_prefix(""), 1):
                named = waiting.get(compute_key_hash(region.seed, key))
                if named:
                    twin = named.pop()
                    stored = self._bodies.get_tail(twin.offset)
                    length, start = decode_varint(stored, 0)
                    body = stored[start : start + length].tobytes()
                    found.append(Record(name, key, twin.version, twin.state, body))
                if done % KEYS_SLICE == 0:
                    yield
        return found


class _Region:
    """The records of one region that were added."""

    def __init__(self, number: int, seed: int) -> None:
        self.number = number
        self.seed = seed
        self.names = KeyIndexWriter()
        self.count = 0
        self.digest = 0


def _fill_columns(columns: Columns, partitions: deque[_Partition]) -> Slices:
    """Write the numbers of partitions into the columns of an arena, in slices.

    It frees them one by one: freeing all of them at once would take long.
    """
    place = done = 0
    while partitions:
        partition = partitions.popleft()
        end = place + len(partition.hashes)
        columns.hashes[place:end] = memoryview(partition.hashes)
        columns.states[place:end] = memoryview(partition.states)
        columns.offsets[place:end] = memoryview(partition.offsets)
        columns.versions[place:end] = memoryview(array(columns.versions.format, partition.versions))
        if end - done >= RECORDS_SLICE:
            yield
            done = end
        place = end


def compute_version_bytes(version_max: int) -> int:
    """Return the number of bytes that versions up to a maximum are stored in."""
    return next(size for size in VERSION_BYTES if version_max < 1 << 8 * size)


def fill_directory(columns: Columns, bits: int) -> Slices:
    """Write the place of the first hash with each leading value, in slices."""
    directory, hashes = columns.directory, columns.hashes
    place, shift = 0, HASH_BITS - bits
    for top in range(1, 2**bits):
        first = top << shift
        # The search is short: about 16 records have the same leading bits.
        place = bisect_left(hashes, first, place, len(hashes))
        directory[top] = place
        if top % DIRECTORY_SLICE == 0:
            yield
    directory[2**bits] = len(hashes)
