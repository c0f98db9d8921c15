"""Snapshot: all flags of one environment at one revision, as one region sees them.

An immutable base and a small overlay of what changed since: applying a change copies the overlay
only. States are kept packed, so a flag costs bytes and no objects until it is asked for. `"*"` and
a region's override both stay, so that an override's end uncovers `"*"`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TypeAlias

from msgspec import Struct

from flagkit.changes import Change, Digests, FlagState, Tip, digest
from flagkit.errors import HistoryLostError
from flagkit.model import EVERYWHERE

OVERLAY_MIN = 1024
"""An overlay smaller than this is never folded into its base."""
BASE_PER_OVERLAY = 8
"""An overlay is folded once it holds more than one flag for this many of the base."""

Record: TypeAlias = tuple[int, bytes]
"""A state's version and packed policy."""
Layer: TypeAlias = Mapping[str, Mapping[str, Record]]
"""Records by region and key."""
Overlay: TypeAlias = dict[str, dict[str, Record | None]]
"""Records changed since the base; None where a flag was deleted."""


class Snapshot(Struct, frozen=True):
    """All flags of an environment at its tip that concern one region."""

    tip: Tip
    region: str
    base: Layer
    overlay: Mapping[str, Mapping[str, Record | None]]

    @property
    def regions(self) -> tuple[str, ...]:
        """The regions whose flags are kept, the one that overrides first."""
        return regions_of(self.region)

    def find(self, key: str) -> FlagState | None:
        """Return the state of a flag that holds in this region: its override, else `"*"`."""
        for region in self.regions:
            record = self._record(region, key)
            if record is not None:
                return FlagState(key, region, *record)
        return None

    def states(self) -> Iterator[FlagState]:
        """Yield every state that is kept, overridden ones included, in no order."""
        for region in self.regions:
            changed = self.overlay.get(region, {})
            kept = self.base.get(region, {})
            for key, record in chain(kept.items(), changed.items()):
                if record is not None and changed.get(key, record) is record:
                    yield FlagState(key, region, *record)

    def keys(self) -> set[str]:
        """Return the keys of all flags of this region."""
        return {state.key for state in self.states()}

    def apply(self, changes: Sequence[Change]) -> "Snapshot":
        """Return the snapshot after some changes, which must continue this one.

        Raises:
            HistoryLostError: one does not continue what is before it, or changes what is not here.
        """
        tip = self.tip
        overlay: Overlay = {region: dict(flags) for region, flags in self.overlay.items()}
        for change in changes:
            if not change.continues(tip):
                raise HistoryLostError(
                    f"revision {change.revision} does not continue revision {tip.revision}"
                )
            tip = change.tip
            for flag in change.flags:
                region, key = flag.id
                if region not in self.regions:
                    continue
                changed = overlay.setdefault(region, {})
                held = changed[key] if key in changed else self._record(region, key)
                if held != _record(flag.before):
                    raise HistoryLostError(f"{key} is not as revision {tip.revision} found it")
                changed[key] = _record(flag.after)
        return Snapshot(tip, self.region, self.base, overlay)._folded()

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
        return Snapshot(self.tip, self.region, layer(self.states()), {})


def build(tip: Tip, region: str, states: Iterable[FlagState]) -> Snapshot:
    """Build a snapshot from the states of a region and of `"*"`.

    Raises:
        HistoryLostError: the states do not add up to the tip's digests: something changed them
            past the writer, or they are not of this revision.
    """
    snapshot = Snapshot(tip, region, layer(states), {})
    check_digests(snapshot, tip.digests)
    return snapshot


def check_digests(snapshot: Snapshot, expected: Digests) -> None:
    """Compare a snapshot's states with digests.

    Raises:
        HistoryLostError: they differ.
    """
    found = digest(snapshot.states())
    for region in snapshot.regions:
        if found.get(region, 0) != expected.get(region, 0):
            raise HistoryLostError(
                f"the flags of region {region!r} are not those of revision {snapshot.tip.revision}"
                f" of {snapshot.tip.environment!r}: they were changed past the writer"
            )


def _record(state: FlagState | None) -> Record | None:
    return None if state is None else (state.version, state.packed)


def layer(states: Iterable[FlagState]) -> Layer:
    """Return states as records by region and key."""
    found: dict[str, dict[str, Record]] = {}
    for state in states:
        found.setdefault(state.region, {})[state.key] = (state.version, state.packed)
    return found


def regions_of(region: str) -> tuple[str, ...]:
    """Return the regions whose flags concern a region, the one that overrides first."""
    return (region, EVERYWHERE) if region != EVERYWHERE else (EVERYWHERE,)
