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

from flagkit._core.cooperative import whole
from flagkit._core.model import EVERYWHERE, Flag, decode, packing
from flagkit._core.model.changes import (
    SEGMENTS,
    Change,
    Digests,
    PolicyId,
    PolicyState,
    Tip,
    parts_of,
)
from flagkit._core.model.segments import MEMBER_BYTES, Segment, decode_segment, unpacked_part
from flagkit._core.snapshot.arena import Arena
from flagkit._core.snapshot.builder import Builder
from flagkit._core.snapshot.compaction import folded
from flagkit._core.snapshot.layout import Buffer, Record
from flagkit.errors import HistoryLostError, InvalidDocumentError

OVERLAY_MIN = 1024
"""An overlay smaller than this is never folded into its base."""
BASE_PER_OVERLAY = 64
"""An overlay is to be folded once it holds more than one record for this many of the base."""

Part: TypeAlias = Sequence[int]
"""Hashes of members, of 64 bits, ascending."""
Overlay: TypeAlias = Mapping[PolicyId, Record | None]
"""Records changed since the base; None where one was deleted."""


_decode = msgspec.msgpack.Decoder().decode


class Snapshot(Struct, frozen=True):
    """All flags of an environment at its tip that concern one region, and all segments.

    `parts` are the hashed members of segments, ascending, by the SHA-256 of their bytes. Of flags,
    only those are kept whose keys begin with one of `namespaces`, if there are any.
    """

    tip: Tip
    region: str
    base: Arena
    overlay: Overlay = {}
    parts: Mapping[str, Part] = {}
    namespaces: tuple[str, ...] = ()

    @property
    def regions(self) -> tuple[str, ...]:
        """The regions whose flags are kept, the one that overrides first."""
        return regions_of(self.region)

    def find(self, key: str) -> Record | None:
        """Return the record of a flag that holds in this region: its override, else `"*"`."""
        for region in self.regions:
            record = self._record((region, key))
            if record is not None:
                return record
        return None

    def keeps(self, policy: PolicyId) -> bool:
        """Tell whether a flag or a segment is one of those that are kept, if it is there."""
        region, key = policy
        if region == SEGMENTS:
            return True
        return region in self.regions and (not self.namespaces or key.startswith(self.namespaces))

    def segment(self, key: str) -> Record | None:
        """Return the record of a segment."""
        return self._record((SEGMENTS, key))

    def records(self) -> Iterator[Record]:
        """Yield every record that is kept, overridden ones included, in no order."""
        for region in kept_of(self.region):
            yield from self._records_in(region)

    def keys(self, prefix: str = "") -> list[str]:
        """Return the keys of all flags of this region that begin with a prefix, ascending."""
        found: list[str] = []
        for region in self.regions:
            found += [
                key for key in self.base.keys(region, prefix) if (region, key) not in self.overlay
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
            HistoryLostError: one does not continue what is before it, or changes what is not here.
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
                if not self.keeps(identity):
                    continue
                held = overlay[identity] if identity in overlay else self.base.find(*identity)
                if not _same(held, policy.before):
                    raise HistoryLostError(
                        f"{identity[1]} is not as revision {tip.revision} found it"
                    )
                overlay[identity] = None if policy.after is None else record_of(policy.after)
        after = msgspec.structs.replace(self, tip=tip, overlay=overlay)
        segments_changed = any(
            policy.id[0] == SEGMENTS for change in changes for policy in change.policies
        )
        if not segments_changed:
            return after
        after = after.with_parts(parts)
        if after.parts_missing:
            raise HistoryLostError(f"members of segments did not come with revision {tip.revision}")
        return after

    def with_parts(self, arrived: Mapping[str, bytes]) -> "Snapshot":
        """Return this snapshot with the parts that its segments refer to, and no others.

        Those that are missing, or are not what their names say, are left out.
        """
        needed = self.parts_needed()
        parts = {name: self.parts[name] for name in needed & self.parts.keys()}
        for name in needed & arrived.keys() - parts.keys():
            content = arrived[name]
            if hashlib.sha256(content).hexdigest() == name and len(content) % MEMBER_BYTES == 0:
                parts[name] = unpacked_part(content)
        return msgspec.structs.replace(self, parts=parts)

    def parts_needed(self) -> set[str]:
        """Return the names of all parts that segments refer to."""
        return {name for record in self._records_in(SEGMENTS) for name in parts_in(record)}

    @property
    def parts_missing(self) -> bool:
        """Whether segments refer to members that are not there."""
        return not self.parts_needed() <= self.parts.keys()

    @property
    def to_be_folded(self) -> bool:
        """Whether the overlay has grown so large that it costs more than folding it."""
        return len(self.overlay) > self._overlay_max

    @property
    def folding_is_overdue(self) -> bool:
        """Whether it is twice as large as it should be, however good the reasons to wait are."""
        return len(self.overlay) > 2 * self._overlay_max

    @property
    def _overlay_max(self) -> int:
        return max(OVERLAY_MIN, self.base.count // BASE_PER_OVERLAY)

    def rebased(self, base: Arena, folded: Overlay) -> "Snapshot":
        """Return this snapshot on a base that an earlier overlay has been folded into.

        Members stay where they are: evaluators that are in use would keep what they move from.
        """
        overlay = {
            identity: record
            for identity, record in self.overlay.items()
            if identity not in folded or folded[identity] is not record
        }
        return msgspec.structs.replace(self, base=base, overlay=overlay)

    def _records_in(self, region: str) -> Iterator[Record]:
        for record in self.base.records(region):
            if record.id not in self.overlay:
                yield record
        for changed in self.overlay.values():
            if changed is not None and changed.region == region:
                yield changed

    def _record(self, identity: PolicyId) -> Record | None:
        if identity in self.overlay:
            return self.overlay[identity]
        return self.base.find(*identity)


def build(
    tip: Tip,
    region: str,
    states: Iterable[PolicyState],
    parts: Mapping[str, bytes] | None = None,
) -> Snapshot:
    """Build a snapshot from the states of a region and of `"*"`, and of all segments.

    Raises:
        HistoryLostError: the states do not add up to the tip's digests: something changed them
            past the writer, or they are not of this revision.
    """
    base = arena_of(tip, map(record_of, states))
    check_digests(base.header.digests, tip, kept_of(region))
    return Snapshot(tip, region, base).with_parts(parts or {})


def arena_of(tip: Tip, records: Iterable[Record]) -> Arena:
    """Return the arena of some records, in any order."""
    builder = Builder()
    for record in sorted(records):
        builder.add(*msgspec.structs.astuple(record))
    return whole(builder.finished(tip, {}))


def snapshot_of(base: Arena, region: str) -> Snapshot:
    """Return the snapshot that an arena with all members is, as a region sees it.

    Of some namespaces only, it is not known whether flags are missing.

    Raises:
        HistoryLostError: it is not of the revision that it says.
    """
    namespaces = base.header.namespaces
    check_digests(base.header.digests, base.tip, (SEGMENTS,) if namespaces else kept_of(region))
    parts = {name: base.part(name) for name in base.header.parts}
    return Snapshot(base.tip, region, base, parts=parts, namespaces=namespaces)


def fold(snapshot: Snapshot, *, with_members: bool = False) -> Generator[None, None, Arena]:
    """Return the arena of a snapshot, in slices.

    Its members go with it where it is to be read elsewhere; here the snapshot has them.
    """
    kept = snapshot.parts.items() if with_members else ()
    parts = {name: memoryview(cast("Buffer", part)).cast("B") for name, part in kept}
    return folded(snapshot.base, snapshot.tip, snapshot.overlay, parts)


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


def record_of(state: PolicyState, flag: Flag | None = None) -> Record:
    """Return the record of a state. A document that is none makes a record that says so.

    `flag` is what the document decodes to, if that is known.
    """
    if state.region == SEGMENTS:
        body = state.packed
    else:
        try:
            body = packing.pack(flag or decode(state.policy, stored=True))
        except Exception as error:
            # Whatever is stored, the other flags live.
            if not packing.is_fault_of(state.packed, error):
                raise
            body = packing.fault(error)
    return Record(state.region, state.key, state.version, state.hash, body)


def _same(record: Record | None, state: PolicyState | None) -> bool:
    if record is None or state is None:
        return record is None and state is None
    return (record.version, record.hash) == (state.version, state.hash)


def flag_of(record: Record) -> Flag:
    """Return the flag of a record, without metadata.

    Raises:
        InvalidDocumentError: its document is none.
    """
    return packing.unpack(record.key, record.region, record.body)


def segment_of(record: Record) -> Segment:
    """Return the segment of a record.

    Raises:
        InvalidDocumentError: its document is none.
        msgspec.DecodeError: nor is it MessagePack.
    """
    try:
        return decode_segment(_decode(record.body), stored=True).segment
    except RecursionError as error:
        if not packing.is_fault_of(record.body, error):
            raise
        raise InvalidDocumentError("", "is nested too deep", "Write the segment anew") from None


def parts_in(record: Record) -> tuple[str, ...]:
    """Return the names of the parts that a segment refers to."""
    return parts_of(_decode(record.body))


def kept_of(region: str) -> tuple[str, ...]:
    """Return the regions whose flags concern a region, and where segments stand."""
    return (*regions_of(region), SEGMENTS)


def regions_of(region: str) -> tuple[str, ...]:
    """Return the regions whose flags concern a region, the one that overrides first."""
    return (region, EVERYWHERE) if region != EVERYWHERE else (EVERYWHERE,)
