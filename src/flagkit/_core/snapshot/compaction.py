"""Compaction: an arena and its overlay become one new arena, in slices and off the hot path.

Whole runs between the edited places are copied. Bodies that nothing refers to remain. The arena is
rebuilt once they may be half of all bodies, or if an edit does not fit in.
"""

import heapq
import operator
from array import array
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from typing import Final

from msgspec import Struct
from msgspec.structs import astuple, replace

from flagkit._core.model.changes import DIGEST_MODULUS, PolicyId, Tip
from flagkit._core.snapshot.arena import (
    BLOCK_KEYS,
    Arena,
    KeyIndex,
    compute_key_hash,
    derive_seed,
    encode_key,
)
from flagkit._core.snapshot.builder import (
    BODIES_BYTES_MAX,
    ArenaBuilder,
    compute_version_bytes,
    fill_directory,
)
from flagkit._core.snapshot.chunks import Chunks, Slices, copy_in_slices, sort_in_slices
from flagkit._core.snapshot.layout import (
    Buffer,
    Columns,
    Header,
    Layout,
    Record,
    allocate_arena,
    compute_directory_bits,
    encode_varint,
)

GAPS_MIN: Final = 64 * 1024
"""Bodies are not repacked for gaps of fewer bytes."""
BLOCKS_MIN: Final = 1024
"""Keys are not repacked for fewer blocks."""
EDITS_SLICE: Final = 32
RECORDS_SLICE: Final = 128
RUN_SLICE: Final = 64 * 1024
"""So many records are copied at once: over a megabyte."""
NEWS_SLICE: Final = 1024
EDIT_RUN: Final = 256
"""One edit takes as long as copying so many records."""


class _Edit(Struct, frozen=True, order=True, gc=False):
    """A change of the record at a place of the base, or an insertion before that place."""

    hash: int
    id: PolicyId
    place: int
    is_present: bool
    record: Record | None


class _Edits:
    """The changes of a base, and the counts, digests and offsets that result."""

    def __init__(self, base: Arena) -> None:
        header = base.header
        self.base = base
        self.edits: deque[_Edit] = deque()
        self.names: dict[str, list[tuple[bytes, bool]]] = {
            region: [] for region in base.key_indexes
        }
        self.counts, self.digests = {**header.counts}, {**header.digests}
        self.offsets: dict[bytes, int] = {}
        self.bodies_end = len(base.columns.bodies)
        self.can_merge = not header.colliding and not _has_fragmented_keys(header)
        """True if the edits can be merged into the base without building it from scratch."""

    def gather(self, changed: Mapping[PolicyId, Record | None]) -> Slices:
        """Add all changed records, in slices."""
        seeds: dict[str, int] = {}
        for done, ((region, key), record) in enumerate(changed.items(), 1):
            if region not in seeds:
                seeds[region] = derive_seed(region)
            self._add(compute_key_hash(seeds[region], key), (region, key), record)
            if done % EDITS_SLICE == 0:
                yield
        header = self.base.header
        if self.bodies_end > min(BODIES_BYTES_MAX, 2 * header.packed_bytes + GAPS_MIN):
            self.can_merge = False

    def _add(self, key_hash: int, identity: PolicyId, record: Record | None) -> None:
        base, (region, key) = self.base, identity
        hashes, place = base.columns.hashes, base.find_place(key_hash)
        found = place < len(hashes) and hashes[place] == key_hash
        there = found and region in base.key_indexes and encode_key(key) in base.key_indexes[region]
        if found and not there and record is not None:
            # Another key has this hash. Only a full build can store both.
            self.can_merge = False
        if not there and record is None:
            return
        self.edits.append(_Edit(key_hash, identity, place, there, record))
        before = base.columns.states[place] if there else 0
        state = 0
        if record is not None:
            state = record.hash
            if compute_version_bytes(record.version) > base.header.version_bytes:
                self.can_merge = False
            if record.body not in self.offsets:
                self.offsets[record.body] = self.bodies_end
                self.bodies_end += len(_encode_body(record.body))
        if there != (record is not None):
            self.names.setdefault(region, []).append((encode_key(key), not there))
            self.counts[region] = self.counts.get(region, 0) + (1 if record else -1)
        digest = self.digests.get(region, 0) - before + state
        self.digests[region] = digest % DIGEST_MODULUS

    def sort(self) -> Slices:
        """Put them in the order of their hashes; two of one hash do not fit in."""
        ordered = yield from sort_in_slices([*self.edits])
        self.edits.clear()
        last = -1
        for done, edit in enumerate(ordered, 1):
            if edit.hash == last:
                self.can_merge = False
            last = edit.hash
            self.edits.append(edit)
            if done % EDITS_SLICE == 0:
                yield

    def free(self) -> Slices:
        """Free them, a few at a time: thousands at once take milliseconds."""
        while self.edits:
            for _ in range(min(NEWS_SLICE, len(self.edits))):
                self.edits.pop()
            yield


def compact_arena(
    base: Arena, tip: Tip, changed: Mapping[PolicyId, Record | None], parts: Mapping[str, Buffer]
) -> Generator[None, None, Arena]:
    """Return the arena of a tip, in slices.

    Args:
        base: The previous records.
        tip: The tip of the new records.
        changed: All records that differ from the base; None for deleted ones.
        parts: All members that segments refer to at the tip.
    """
    edits = _Edits(base)
    yield from edits.gather(changed)
    yield from edits.sort()
    if edits.can_merge:
        return (yield from _merge(edits, tip, parts))
    yield from edits.free()
    return (yield from _rebuild(base, tip, changed, parts))


def _has_fragmented_keys(header: Header) -> bool:
    """Return True if blocks of keys have become so small that they must be rebuilt."""
    blocks = sum(starts.length for starts, _ in header.names.values()) // 4
    return blocks > max(BLOCKS_MIN, 2 * sum(header.counts.values()) // BLOCK_KEYS)


def _merge(edits: _Edits, tip: Tip, parts: Mapping[str, Buffer]) -> Generator[None, None, Arena]:
    old = edits.base.columns
    names = yield from _edit_key_indexes(edits)
    record_count = sum(edits.counts.values())
    header = replace(
        edits.base.header,
        tip=tip,
        counts={region: count for region, count in edits.counts.items() if count},
        digests={region: digest for region, digest in edits.digests.items() if digest},
        directory_bits=compute_directory_bits(record_count),
        sections={},
    )
    plan = Layout(record_count, edits.bodies_end, names, parts)
    content, new = yield from allocate_arena(header, plan)
    del names, plan
    yield from copy_in_slices(old.bodies, new.bodies[: len(old.bodies)])
    yield from _append_bodies(edits, new)
    yield from _merge_columns(old, new, edits)
    yield from fill_directory(new, header.directory_bits)
    return Arena(content)


def _edit_key_indexes(edits: _Edits) -> Generator[None, None, dict[str, tuple[Buffer, Chunks]]]:
    found: dict[str, tuple[Buffer, Chunks]] = {}
    for region, mine in edits.names.items():
        names = edits.base.key_indexes.get(region) or KeyIndex(
            memoryview(array("I")), memoryview(b"")
        )
        edited = yield from names.apply_edits(mine)
        if edited[0]:
            found[region] = edited
    return found


def _append_bodies(edits: _Edits, new: Columns) -> Slices:
    """Append the new bodies to those of the base."""
    for done, (body, offset) in enumerate(edits.offsets.items(), 1):
        stored = _encode_body(body)
        new.bodies[offset : offset + len(stored)] = stored
        if done % EDITS_SLICE == 0:
            yield


def _merge_columns(old: Columns, new: Columns, edits: _Edits) -> Slices:
    pairs = (
        (old.hashes, new.hashes),
        (old.states, new.states),
        (old.versions, new.versions),
        (old.offsets, new.offsets),
    )
    read = written = work = 0
    while True:
        # Taken out one by one, as in `free`.
        edit = edits.edits.popleft() if edits.edits else None
        end = len(old.hashes) if edit is None else edit.place
        while read < end:
            run = min(end - read, RUN_SLICE - work)
            for source, target in pairs:
                target[written : written + run] = source[read : read + run]
            read, written, work = read + run, written + run, work + run
            if work >= RUN_SLICE:
                yield
                work = 0
        if edit is None:
            return
        read += edit.is_present
        record = edit.record
        if record is not None:
            new.hashes[written] = edit.hash
            new.states[written] = record.hash
            new.versions[written] = record.version
            new.offsets[written] = edits.offsets[record.body]
            written += 1
        work = min(work + EDIT_RUN, RUN_SLICE - 1)


def _rebuild(
    base: Arena, tip: Tip, changed: Mapping[PolicyId, Record | None], parts: Mapping[str, Buffer]
) -> Generator[None, None, Arena]:
    builder = ArenaBuilder(base.header.namespaces)
    news: dict[str, list[str]] = {region: [] for region in base.header.counts}
    for done, ((region, key), record) in enumerate(changed.items(), 1):
        if record is not None:
            news.setdefault(region, []).append(key)
        if done % NEWS_SLICE == 0:
            yield
    for region in sorted(news):
        keys = yield from sort_in_slices(news[region])
        for done, record in enumerate(_iter_merged_records(base, region, keys, changed), 1):
            builder.add(*astuple(record))
            if done % RECORDS_SLICE == 0:
                yield
    return (yield from builder.build(tip, parts))


def _iter_merged_records(
    base: Arena, region: str, keys: Iterator[str], changed: Mapping[PolicyId, Record | None]
) -> Iterator[Record]:
    unchanged = (record for record in base.iter_records(region) if record.id not in changed)
    updated = (record for key in keys if (record := changed[region, key]) is not None)
    return heapq.merge(unchanged, updated, key=operator.attrgetter("key"))


def _encode_body(body: bytes) -> bytes:
    return encode_varint(len(body)) + body
