"""Snapshot: all policies of one environment at one revision, as one region sees them.

An immutable base and a small overlay of what changed since: applying a change copies the overlay
only. States are kept packed, so a flag costs bytes and no objects until it is asked for. `"*"` and
a region's override both stay, so that an override's end uncovers `"*"`. Segments are kept as flags
are, and the members that they refer to beside them.
"""

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TypeAlias

import msgspec
from msgspec import Struct

from flagkit.changes import SEGMENTS, Change, Digests, PolicyState, Tip, digest
from flagkit.errors import HistoryLostError
from flagkit.model import EVERYWHERE
from flagkit.model.segments import MEMBER_BYTES, unpacked_part

OVERLAY_MIN = 1024
"""An overlay smaller than this is never folded into its base."""
BASE_PER_OVERLAY = 8
"""An overlay is folded once it holds more than one flag for this many of the base."""

Part: TypeAlias = "array[int]"
"""Hashes of members, of 64 bits, ascending; stored as little-endian bytes."""
Record: TypeAlias = tuple[int, bytes]
"""A state's version and packed policy."""
Layer: TypeAlias = Mapping[str, Mapping[str, Record]]
"""Records by region and key."""
Overlay: TypeAlias = dict[str, dict[str, Record | None]]
"""Records changed since the base; None where a flag was deleted."""


class Snapshot(Struct, frozen=True):
    """All flags of an environment at its tip that concern one region, and all segments.

    `parts` are the hashed members of segments, ascending, by the SHA-256 of their bytes.
    """

    tip: Tip
    region: str
    base: Layer
    overlay: Mapping[str, Mapping[str, Record | None]]
    parts: Mapping[str, Part] = {}

    @property
    def regions(self) -> tuple[str, ...]:
        """The regions whose flags are kept, the one that overrides first."""
        return regions_of(self.region)

    def find(self, key: str) -> PolicyState | None:
        """Return the state of a flag that holds in this region: its override, else `"*"`."""
        for region in self.regions:
            record = self._record(region, key)
            if record is not None:
                return PolicyState(key, region, *record)
        return None

    def segment(self, key: str) -> PolicyState | None:
        """Return the state of a segment."""
        record = self._record(SEGMENTS, key)
        return None if record is None else PolicyState(key, SEGMENTS, *record)

    def states(self) -> Iterator[PolicyState]:
        """Return every state that is kept, overridden ones included, in no order."""
        return chain.from_iterable(map(self._states_in, kept_of(self.region)))

    def keys(self) -> set[str]:
        """Return the keys of all flags of this region."""
        return {state.key for region in self.regions for state in self._states_in(region)}

    def apply(self, changes: Sequence[Change]) -> "Snapshot":
        """Return the snapshot after some changes, which must continue this one.

        Raises:
            HistoryLostError: one does not continue what is before it, or changes what is not here.
        """
        tip = self.tip
        overlay: Overlay = {region: dict(flags) for region, flags in self.overlay.items()}
        kept = kept_of(self.region)
        parts: dict[str, bytes] = {}
        for change in changes:
            if not change.continues(tip):
                raise HistoryLostError(
                    f"revision {change.revision} does not continue revision {tip.revision}"
                )
            tip = change.tip
            parts |= change.parts
            for policy in change.policies:
                region, key = policy.id
                if region not in kept:
                    continue
                changed = overlay.setdefault(region, {})
                held = changed[key] if key in changed else self._record(region, key)
                if held != _record(policy.before):
                    raise HistoryLostError(f"{key} is not as revision {tip.revision} found it")
                changed[key] = _record(policy.after)
        after = Snapshot(tip, self.region, self.base, overlay, self.parts)._folded()
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
        needed = {part for state in self._states_in(SEGMENTS) for part in state.parts}
        parts = {name: self.parts[name] for name in needed & self.parts.keys()}
        for name in needed & arrived.keys() - parts.keys():
            content = arrived[name]
            if hashlib.sha256(content).hexdigest() == name and len(content) % MEMBER_BYTES == 0:
                parts[name] = unpacked_part(content)
        return msgspec.structs.replace(self, parts=parts)

    @property
    def parts_missing(self) -> bool:
        """Whether segments refer to members that are not there."""
        return any(
            part not in self.parts for state in self._states_in(SEGMENTS) for part in state.parts
        )

    def _states_in(self, region: str) -> Iterator[PolicyState]:
        changed = self.overlay.get(region, {})
        kept = self.base.get(region, {})
        for key, record in chain(kept.items(), changed.items()):
            if record is not None and changed.get(key, record) is record:
                yield PolicyState(key, region, *record)

    def _record(self, region: str, key: str) -> Record | None:
        changed = self.overlay.get(region)
        if changed is not None and key in changed:
            return changed[key]
        kept = self.base.get(region)
        return kept.get(key) if kept is not None else None

    def _folded(self) -> "Snapshot":
        overlay_count = sum(map(len, self.overlay.values()))
        base_count = sum(map(len, self.base.values()))
        if overlay_count <= max(OVERLAY_MIN, base_count // BASE_PER_OVERLAY):
            return self
        return Snapshot(self.tip, self.region, layer(self.states()), {}, self.parts)


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
    snapshot = Snapshot(tip, region, layer(states), {})
    check_digests(snapshot, tip.digests)
    return snapshot.with_parts(parts or {})


def check_digests(snapshot: Snapshot, expected: Digests) -> None:
    """Compare a snapshot's states with digests.

    Raises:
        HistoryLostError: they differ.
    """
    found = digest(snapshot.states())
    for region in kept_of(snapshot.region):
        if found.get(region, 0) != expected.get(region, 0):
            raise HistoryLostError(
                f"the policies of {region!r} are not those of revision {snapshot.tip.revision}"
                f" of {snapshot.tip.environment!r}: they were changed past the writer"
            )


def _record(state: PolicyState | None) -> Record | None:
    return None if state is None else (state.version, state.packed)


def layer(states: Iterable[PolicyState]) -> Layer:
    """Return states as records by region and key."""
    found: dict[str, dict[str, Record]] = {}
    for state in states:
        found.setdefault(state.region, {})[state.key] = (state.version, state.packed)
    return found


def kept_of(region: str) -> tuple[str, ...]:
    """Return the regions whose flags concern a region, and where segments stand."""
    return (*regions_of(region), SEGMENTS)


def regions_of(region: str) -> tuple[str, ...]:
    """Return the regions whose flags concern a region, the one that overrides first."""
    return (region, EVERYWHERE) if region != EVERYWHERE else (EVERYWHERE,)
