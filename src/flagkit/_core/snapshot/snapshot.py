"""Snapshots: all policies of one environment at one revision, as one region sees them.

A snapshot is a base arena with a small overlay of later changes. Applying a change copies only the
overlay. `"*"` and the override of a region both stay, so that the end of an override uncovers
`"*"`. Segments are stored like flags, with the members that they refer to.
"""

import hashlib
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias, cast

import msgspec
from msgspec import Struct

from flagkit._core.cooperative import run_slices
from flagkit._core.model import EVERYWHERE, Flag, packing
from flagkit._core.model.changes import (
    SEGMENTS,
    Change,
    Digests,
    PolicyId,
    PolicyState,
    Tip,
    get_member_parts,
)
from flagkit._core.model.segments import MEMBER_BYTES, Segment, decode_part, decode_segment
from flagkit._core.snapshot.arena import Arena
from flagkit._core.snapshot.builder import ArenaBuilder
from flagkit._core.snapshot.compaction import compact_arena
from flagkit._core.snapshot.layout import Buffer, Record
from flagkit.errors import HistoryLostError, InvalidDocumentError

OVERLAY_MIN = 1024
"""An overlay smaller than this is never folded into its base."""
BASE_PER_OVERLAY = 64
"""An overlay needs compaction if it has more than one record for so many of the base."""

Part: TypeAlias = Sequence[int]
"""Hashes of members, of 64 bits, ascending."""
Overlay: TypeAlias = Mapping[PolicyId, Record | None]
"""Records changed since the base; None for a deleted one."""


_decode = msgspec.msgpack.Decoder().decode


class Snapshot(Struct, frozen=True):
    """All flags of an environment at its tip that concern one region, and all segments.

    `parts` are the hashed members of segments, ascending, by the SHA-256 of their bytes. If there
    are `namespaces`, the snapshot has only flags whose keys begin with one of them.
    """

    tip: Tip
    region: str
    base: Arena
    overlay: Overlay = {}
    parts: Mapping[str, Part] = {}
    namespaces: tuple[str, ...] = ()

    @property
    def regions(self) -> tuple[str, ...]:
        """The regions whose flags the snapshot has, the one with overrides first."""
        return list_regions(self.region)

    def find(self, key: str) -> Record | None:
        """Return the record of a flag that holds in this region: its override, else `"*"`."""
        for region in self.regions:
            record = self._find_record((region, key))
            if record is not None:
                return record
        return None

    def is_in_scope(self, policy: PolicyId) -> bool:
        """Return True if the snapshot has a flag or a segment, provided that it exists."""
        region, key = policy
        if region == SEGMENTS:
            return True
        return region in self.regions and (not self.namespaces or key.startswith(self.namespaces))

    def find_segment(self, key: str) -> Record | None:
        """Return the record of a segment."""
        return self._find_record((SEGMENTS, key))

    def iter_records(self) -> Iterator[Record]:
        """Yield every record, overridden ones included, in no order."""
        for region in list_snapshot_regions(self.region):
            yield from self._iter_region(region)

    def list_keys(self, prefix: str = "") -> list[str]:
        """Return the keys of all flags of this region that begin with a prefix, ascending."""
        found: list[str] = []
        for region in self.regions:
            found += [
                key
                for key in self.base.iter_keys(region, prefix)
                if (region, key) not in self.overlay
            ]
        found += [
            key
            for (region, key), record in self.overlay.items()
            if record is not None and region in self.regions and key.startswith(prefix)
        ]
        # Nearly all of them are in order. To sort a set of 100,000 would hold up other threads.
        found.sort()
        return [*dict.fromkeys(found)]

    def apply(self, changes: Sequence[Change]) -> "Snapshot":
        """Return the snapshot after some changes, which must continue this one.

        Raises:
            HistoryLostError: a change does not continue the one before, or does not fit records.
        """
        tip = self.tip
        overlay = {**self.overlay}
        parts: dict[str, bytes] = {}
        for change in changes:
            if not change.continues(tip):
                raise HistoryLostError(
                    f"revision {change.revision} does not continue revision {tip.revision}"
                )
            tip = change.tip
            parts |= change.parts
            for policy in change.policies:
                identity = policy.id
                if not self.is_in_scope(identity):
                    continue
                held = overlay[identity] if identity in overlay else self.base.find(*identity)
                if not _is_same(held, policy.before):
                    raise HistoryLostError(
                        f"{identity[1]} is not as revision {tip.revision} found it"
                    )
                overlay[identity] = None if policy.after is None else encode_record(policy.after)
        after = msgspec.structs.replace(self, tip=tip, overlay=overlay)
        segments_changed = any(
            policy.id[0] == SEGMENTS for change in changes for policy in change.policies
        )
        if not segments_changed:
            return after
        after = after.with_parts(parts)
        if after.has_missing_parts:
            raise HistoryLostError(f"members of segments did not come with revision {tip.revision}")
        return after

    def with_parts(self, new_parts: Mapping[str, bytes]) -> "Snapshot":
        """Return this snapshot with the parts that its segments refer to, and no others.

        It leaves out parts that are missing, or whose hashes do not match their names.
        """
        needed = self.collect_part_names()
        parts = {name: self.parts[name] for name in needed & self.parts.keys()}
        for name in needed & new_parts.keys() - parts.keys():
            content = new_parts[name]
            if hashlib.sha256(content).hexdigest() == name and len(content) % MEMBER_BYTES == 0:
                parts[name] = decode_part(content)
        return msgspec.structs.replace(self, parts=parts)

    def collect_part_names(self) -> set[str]:
        """Return the names of all parts that segments refer to."""
        return {name for record in self._iter_region(SEGMENTS) for name in read_part_names(record)}

    @property
    def has_missing_parts(self) -> bool:
        """True if segments refer to members that are missing."""
        return not self.collect_part_names() <= self.parts.keys()

    @property
    def needs_compaction(self) -> bool:
        """True if the overlay has grown so large that it costs more than a compaction."""
        return len(self.overlay) > self._overlay_max

    @property
    def is_compaction_overdue(self) -> bool:
        """True if the overlay is twice as large as it should be: compaction must not wait."""
        return len(self.overlay) > 2 * self._overlay_max

    @property
    def _overlay_max(self) -> int:
        return max(OVERLAY_MIN, self.base.count // BASE_PER_OVERLAY)

    def rebase(self, base: Arena, compacted: Overlay) -> "Snapshot":
        """Return this snapshot on a base that an earlier overlay has been folded into.

        Members are not moved: evaluators that are in use would keep the old memory alive.
        """
        overlay = {
            identity: record
            for identity, record in self.overlay.items()
            if identity not in compacted or compacted[identity] is not record
        }
        return msgspec.structs.replace(self, base=base, overlay=overlay)

    def _iter_region(self, region: str) -> Iterator[Record]:
        for record in self.base.iter_records(region):
            if record.id not in self.overlay:
                yield record
        for changed in self.overlay.values():
            if changed is not None and changed.region == region:
                yield changed

    def _find_record(self, identity: PolicyId) -> Record | None:
        if identity in self.overlay:
            return self.overlay[identity]
        return self.base.find(*identity)


def build_snapshot(
    tip: Tip,
    region: str,
    states: Iterable[PolicyState],
    parts: Mapping[str, bytes] | None = None,
) -> Snapshot:
    """Build a snapshot from the states of a region and of `"*"`, and of all segments.

    Raises:
        HistoryLostError: the states do not match the tip's digests: something outside flagkit
            changed them, or they are of another revision.
    """
    base = build_arena(tip, map(encode_record, states))
    check_digests(base.header.digests, tip, list_snapshot_regions(region))
    return Snapshot(tip, region, base).with_parts(parts or {})


def build_arena(tip: Tip, records: Iterable[Record]) -> Arena:
    """Return the arena of some records, in any order."""
    builder = ArenaBuilder()
    for record in sorted(records):
        builder.add(*msgspec.structs.astuple(record))
    return run_slices(builder.build(tip, {}))


def create_snapshot(base: Arena, region: str) -> Snapshot:
    """Return the snapshot of an arena with all members, as a region sees it.

    If it has only some namespaces, digests cannot show whether flags are missing.

    Raises:
        HistoryLostError: its records do not match the digests of its tip.
    """
    namespaces = base.header.namespaces
    check_digests(
        base.header.digests, base.tip, (SEGMENTS,) if namespaces else list_snapshot_regions(region)
    )
    parts = {name: base.get_part(name) for name in base.header.parts}
    return Snapshot(base.tip, region, base, parts=parts, namespaces=namespaces)


def compact_snapshot(
    snapshot: Snapshot, *, with_members: bool = False
) -> Generator[None, None, Arena]:
    """Return the arena of a snapshot, in slices.

    The arena needs the members if another process reads it; in this one, the snapshot has them.
    """
    members = snapshot.parts.items() if with_members else ()
    parts = {name: memoryview(cast("Buffer", part)).cast("B") for name, part in members}
    return compact_arena(snapshot.base, snapshot.tip, snapshot.overlay, parts)


def check_digests(found: Digests, tip: Tip, places: Iterable[str]) -> None:
    """Compare the digests of the records of some regions, or SEGMENTS, with a tip's.

    Raises:
        HistoryLostError: they differ.
    """
    for place in places:
        if found.get(place, 0) != tip.digests.get(place, 0):
            raise HistoryLostError(
                f"the policies of {place!r} are not those of revision {tip.revision}"
                f" of {tip.environment!r}: they were changed past the writer"
            )


def encode_record(state: PolicyState, flag: Flag | None = None) -> Record:
    """Return the record of a state. The record of an invalid document marks it as invalid.

    `flag` is the decoded document, if it is known.
    """
    is_segment = state.region == SEGMENTS
    body = state.packed if is_segment else packing.pack_document(state.packed, flag)
    return Record(state.region, state.key, state.version, state.hash, body)


def _is_same(record: Record | None, state: PolicyState | None) -> bool:
    if record is None or state is None:
        return record is None and state is None
    return (record.version, record.hash) == (state.version, state.hash)


def unpack_flag(record: Record) -> Flag:
    """Return the flag of a record, without metadata.

    Raises:
        InvalidDocumentError: its document is not valid.
    """
    return packing.unpack(record.key, record.region, record.body)


def unpack_segment(record: Record) -> Segment:
    """Return the segment of a record.

    Raises:
        InvalidDocumentError: its document is not valid.
        msgspec.DecodeError: it is not MessagePack.
    """
    try:
        return decode_segment(_decode(record.body), stored=True).segment
    except RecursionError as error:
        if not packing.is_document_fault(record.body, error):
            raise
        raise InvalidDocumentError("", "is nested too deep", "Write the segment anew") from None


def read_part_names(record: Record) -> tuple[str, ...]:
    """Return the names of the parts that a segment refers to."""
    return get_member_parts(_decode(record.body))


def list_snapshot_regions(region: str) -> tuple[str, ...]:
    """Return the regions of the policies in a region's snapshot: flags, overrides and segments."""
    return (*list_regions(region), SEGMENTS)


def list_regions(region: str) -> tuple[str, ...]:
    """Return the regions whose flags concern a region, the one that overrides first."""
    return (region, EVERYWHERE) if region != EVERYWHERE else (EVERYWHERE,)
