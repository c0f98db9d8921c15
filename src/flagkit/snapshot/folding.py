"""Folding: an arena and what has changed since, made one arena, in slices, off the hot path.

Between the places of edits whole runs are copied. Bodies that nothing refers to any more stay
behind; once they may be half of all, and where an edit does not fit in, the arena is built anew.
"""

import heapq
import itertools
import operator
from array import array
from bisect import bisect_left
from collections.abc import Generator, Iterator, Mapping
from typing import Final, NamedTuple

from msgspec.structs import replace

from flagkit.changes import DIGEST_MODULUS, PolicyId, Tip
from flagkit.snapshot.arena import Arena, hash_of, seed_of
from flagkit.snapshot.building import (
    BODIES_BYTES_MAX,
    Builder,
    copied,
    fill_directory,
    version_bytes,
)
from flagkit.snapshot.frame import (
    Buffer,
    Columns,
    Plan,
    Record,
    Slices,
    allocated,
    directory_bits,
)
from flagkit.snapshot.lengths import encoded_length
from flagkit.snapshot.names import Names

GAPS_MIN: Final = 64 * 1024
"""Bodies are not packed anew for gaps of fewer bytes."""
RECORDS_SLICE: Final = 128
EDITS_SLICE: Final = 64
RUN_SLICE: Final = 128 * 1024
"""So many numbers of a column are copied at once: up to a megabyte."""


class _Edit(NamedTuple):
    """What becomes of the record at a place of the base, or before it where it has none yet."""

    hash: int
    id: PolicyId
    place: int
    there: bool
    record: Record | None


def folded(
    base: Arena, tip: Tip, changed: Mapping[PolicyId, Record | None], parts: Mapping[str, Buffer]
) -> Generator[None, None, Arena]:
    """Return the arena of a tip, in slices.

    Args:
        base: The records as they were.
        tip: Where they stand now.
        changed: All records that are others now than in the base; None where they are gone.
        parts: All members that segments refer to now.
    """
    edits = yield from _edits(base, changed)
    offsets: dict[bytes, int] = {}
    end = len(base.columns.bodies)
    for edit in edits:
        if edit.record is not None and edit.record.body not in offsets:
            offsets[edit.record.body] = end
            end += len(_stored(edit.record.body))
    if _fits(base, edits, end):
        return (yield from _merged(base, tip, edits, parts, offsets))
    return (yield from _rebuilt(base, tip, changed, parts))


def _edits(
    base: Arena, changed: Mapping[PolicyId, Record | None]
) -> Generator[None, None, list[_Edit]]:
    edits: list[_Edit] = []
    hashes = base.columns.hashes
    seeds = {region: seed_of(region) for region, _ in changed}
    for done, (identity, record) in enumerate(changed.items()):
        region, key = identity
        key_hash = hash_of(seeds[region], key)
        place = bisect_left(hashes, key_hash)
        there = place < len(hashes) and hashes[place] == key_hash
        if there or record is not None:
            edits.append(_Edit(key_hash, identity, place, there, record))
        if done % RECORDS_SLICE == 0:
            yield
    edits.sort(key=operator.itemgetter(0))
    return edits


def _fits(base: Arena, edits: list[_Edit], bodies_end: int) -> bool:
    header = base.header
    versions = (edit.record.version for edit in edits if edit.record is not None)
    return (
        not header.colliding
        and all(one.hash != other.hash for one, other in itertools.pairwise(edits))
        and version_bytes(max(versions, default=0)) <= header.version_bytes
        and bodies_end <= min(BODIES_BYTES_MAX, 2 * header.packed_bytes + GAPS_MIN)
    )


def _merged(
    base: Arena,
    tip: Tip,
    edits: list[_Edit],
    parts: Mapping[str, Buffer],
    offsets: Mapping[bytes, int],
) -> Generator[None, None, Arena]:
    header, old = base.header, base.columns
    counts, digests = {**header.counts}, {**header.digests}
    for edit in edits:
        region, _ = edit.id
        state = edit.record.hash if edit.record is not None else 0
        before = old.states[edit.place] if edit.there else 0
        digests[region] = (digests.get(region, 0) - before + state) % DIGEST_MODULUS
        counts[region] = counts.get(region, 0) + (edit.record is not None) - edit.there
    names = yield from _names(base, edits)
    added = b"".join(map(_stored, offsets))
    record_count = sum(counts.values())
    header = replace(
        header,
        tip=tip,
        counts={region: count for region, count in counts.items() if count},
        digests={region: digest for region, digest in digests.items() if digest},
        directory_bits=directory_bits(record_count),
        sections={},
    )
    content, new = allocated(header, Plan(record_count, len(old.bodies) + len(added), names, parts))
    yield from copied(old.bodies, new.bodies)
    new.bodies[len(old.bodies) :] = added
    yield from _columns(old, new, edits, offsets)
    yield from fill_directory(new, header.directory_bits)
    return Arena(content)


def _names(
    base: Arena, edits: list[_Edit]
) -> Generator[None, None, dict[str, tuple[bytes, bytes]]]:
    found: dict[str, tuple[bytes, bytes]] = {}
    for region in {*base.names, *(edit.id[0] for edit in edits)}:
        mine = [edit for edit in edits if edit.id[0] == region and edit.there != bool(edit.record)]
        names = base.names.get(region) or Names(memoryview(array("I")), memoryview(b""))
        added = [edit.id[1] for edit in mine if edit.record is not None]
        removed = [edit.id[1] for edit in mine if edit.record is None]
        edited = yield from names.edited(added, removed)
        if edited[0]:
            found[region] = edited
    return found


def _columns(
    old: Columns, new: Columns, edits: list[_Edit], offsets: Mapping[bytes, int]
) -> Slices:
    pairs = (
        (old.hashes, new.hashes),
        (old.states, new.states),
        (old.versions, new.versions),
        (old.offsets, new.offsets),
    )
    read = written = 0
    ends = (edit.place for edit in edits)
    for done, end in enumerate((*ends, len(old.hashes))):
        while read < end:
            run = min(end - read, RUN_SLICE)
            for source, target in pairs:
                target[written : written + run] = source[read : read + run]
            read, written = read + run, written + run
            if run > RUN_SLICE // 16:
                yield
        if done < len(edits):
            edit = edits[done]
            record = edit.record
            read += edit.there
            if record is not None:
                new.hashes[written] = edit.hash
                new.states[written] = record.hash
                new.versions[written] = record.version
                new.offsets[written] = offsets[record.body]
                written += 1
        if done % EDITS_SLICE == 0:
            yield


def _rebuilt(
    base: Arena, tip: Tip, changed: Mapping[PolicyId, Record | None], parts: Mapping[str, Buffer]
) -> Generator[None, None, Arena]:
    builder = Builder()
    regions = {*base.header.counts, *(region for region, _ in changed)}
    for region in sorted(regions):
        edits = sorted(key for place, key in changed if place == region)
        for done, record in enumerate(_with_edits(base, region, edits, changed)):
            builder.add(*record)
            if done % RECORDS_SLICE == 0:
                yield
    return (yield from builder.finished(tip, parts))


def _with_edits(
    base: Arena, region: str, edits: list[str], changed: Mapping[PolicyId, Record | None]
) -> Iterator[Record]:
    kept = (record for record in base.records(region) if record.id not in changed)
    news = (record for key in edits if (record := changed[region, key]) is not None)
    return heapq.merge(kept, news, key=operator.attrgetter("key"))


def _stored(body: bytes) -> bytes:
    return encoded_length(len(body)) + body
