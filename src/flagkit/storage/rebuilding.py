"""Rebuilding: an environment as it was at a revision or a moment, put together from what is kept.

From the nearest of what there is: the present, a checkpoint or the beginning; and from there by the
ledger, on or back. Each change must continue the one before it, and what comes out is held to the
digests of the revision. Reads what clients may read, and never the audit.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import chain
from operator import itemgetter
from typing import NamedTuple, TypeAlias

from flagkit.changes import DIGEST_MODULUS, Change, PolicyId, PolicyState, Tip
from flagkit.errors import (
    ConfigurationError,
    HistoryLostError,
    RevisionNotFoundError,
    SnapshotFormatError,
    StoreError,
    StoreUnavailableError,
)
from flagkit.snapshot import (
    Arena,
    Snapshot,
    arena_of,
    check_digests,
    kept_of,
    record_of,
    snapshot_of,
    whole,
)
from flagkit.storage.checkpoints import FLAGS_PER_REVISION, Checkpoint
from flagkit.storage.reading import Reading

States: TypeAlias = Mapping[PolicyId, PolicyState | None]
"""What differs from a base; None where there is nothing."""
_Bases: TypeAlias = list[tuple[Checkpoint, Callable[[], Arena]]]
_Way: TypeAlias = Callable[[], Snapshot]

_NEVER = datetime(1970, 1, 1, tzinfo=UTC)
"""The time of a revision 0: nothing that is kept says it."""


class AsOf(NamedTuple):
    """All flags as a region saw them, and the time of their evaluations."""

    snapshot: Snapshot
    time: datetime


def as_of(reading: Reading, at: datetime | int | None, region: str) -> AsOf:
    """Return an environment as a region saw it at a moment, or at a revision; None: now.

    The time of a revision is that at which it was made; that of now is the server's.

    Raises:
        ConfigurationError: it is neither, or the moment has no time zone, or has not come yet.
        RevisionNotFoundError: there is no such revision, or none was made by then.
        HistoryLostError: the ledger does not reach back so far, something was changed past the
            writer, or members that segments had are not there any more.
    """
    if at is None:
        return AsOf(snapshot_at(reading, reading.tip.revision, region), reading.now)
    if isinstance(at, datetime):
        return AsOf(snapshot_at(reading, _revision_at(reading, at), region), at)
    if isinstance(at, bool) or not isinstance(at, int):  # pyright: ignore[reportUnnecessaryIsInstance] - not all callers check types
        raise ConfigurationError(
            f"at is {at!r}: pass a datetime with a time zone, or the number of a revision"
        )
    snapshot = snapshot_at(reading, at, region)
    return AsOf(snapshot, snapshot.tip.time)


def snapshot_at(reading: Reading, revision: int, region: str) -> Snapshot:
    """Return all flags of a revision as a region sees them.

    Raises:
        RevisionNotFoundError, HistoryLostError: as `as_of` does.
    """
    head = reading.tip
    if not 1 <= revision <= head.revision:
        known = f"there are 1 to {head.revision}" if head.revision else "nothing was changed yet"
        raise RevisionNotFoundError(
            f"{head.environment!r} has no revision {revision} to ask: {known}"
        )
    faults: list[StoreError | SnapshotFormatError] = []
    for way in _ways(reading, revision, region):
        try:
            return way()
        except StoreUnavailableError:
            raise
        except (StoreError, SnapshotFormatError) as error:
            faults.append(error)
    raise HistoryLostError(
        f"revision {revision} of {head.environment!r} cannot be put together: {faults[0]}"
    ) from faults[0]


def tip_at(reading: Reading, revision: int) -> Tip | None:
    """Return where the environment stood at a revision, None if the ledger has it no more.

    Raises:
        HistoryLostError: it was altered.
    """
    found = next(_changes(reading, revision - 1), None)
    if found is None or found.revision != revision:
        return None
    if not found.is_sealed:
        raise HistoryLostError(f"revision {revision} is not the one that was written")
    return found.tip


def _revision_at(reading: Reading, moment: datetime) -> int:
    """Return the last revision that was made by a moment."""
    if moment.utcoffset() is None:
        raise ConfigurationError(
            f"at is {moment.isoformat()}, without a time zone: write {moment.isoformat()}+00:00, or"
            " pass tzinfo="
        )
    if moment > reading.now:
        raise ConfigurationError(
            f"at is {_said(moment)}, which is still to come: the server has {_said(reading.now)}"
        )
    made = (base.tip for base, _ in reading.checkpoints())
    revision = max(
        reading.revision_at(moment), *(tip.revision for tip in made if tip.time <= moment), 0
    )
    if revision:
        return revision
    first = next(_changes(reading, 0), None)
    environment = reading.tip.environment
    if first is None:
        raise RevisionNotFoundError(f"{environment!r} has no revision yet: nothing was changed")
    if first.revision > 1:
        raise _lost(reading, f"at {_said(moment)}", first)
    raise RevisionNotFoundError(
        f"{environment!r} had no flags at {_said(moment)}: its first revision was made at"
        f" {_said(first.tip.time)}"
    )


def _ways(reading: Reading, revision: int, region: str) -> list[_Way]:
    """Return the ways to a revision, the shortest first, by how many revisions are to be read."""
    first = next(_changes(reading, 0), None)
    assert first is not None, "there is a revision"
    starts = [(checkpoint.tip, read, 0) for checkpoint, read in _connected(reading, first)]
    if first.revision == 1:
        tip = Tip(first.tip.environment, first.tip.epoch, 0, first.previous_hash, _NEVER, {})
        starts.append((tip, functools.partial(arena_of, tip, ()), 0))
    # As many revisions as take no longer than to scan the flags, as far as these were counted.
    counts = (checkpoint.flags for checkpoint, _ in reading.checkpoints())
    scan = max(counts, default=0) // FLAGS_PER_REVISION
    starts.append((reading.tip, lambda: whole(reading.base()), scan))
    ways: list[tuple[int, _Way]] = []
    for tip, read, more in starts:
        if tip.revision <= revision or first.revision <= revision:
            go = _gone_on if tip.revision <= revision else _undone
            way = functools.partial(go, reading, tip, read, revision, region)
            ways.append((more + abs(revision - tip.revision), way))
    if not ways:
        raise _lost(reading, f"revision {revision}", first)
    return [way for _, way in sorted(ways, key=itemgetter(0))]


def _connected(reading: Reading, first: Change) -> _Bases:
    """Return the checkpoints from which the ledger goes on."""
    return [found for found in reading.checkpoints() if found[0].tip.revision + 1 >= first.revision]


def _undone(
    reading: Reading, end: Tip, read: Callable[[], Arena], revision: int, region: str
) -> Snapshot:
    """Return a revision from a later base, without what came between them."""
    tip = last = tip_at(reading, revision)
    states: dict[PolicyId, PolicyState | None] = {}
    if tip is not None:
        for change in _in_order(tip, _changes(reading, revision)):
            if change.revision > end.revision:
                break
            last = change.tip
            for policy in change.policies:
                # What the first change after the revision found is what was there at it.
                states.setdefault(policy.id, policy.before)
    if tip is None or last != end:
        raise HistoryLostError(f"the ledger does not lead from there to revision {end.revision}")
    return _snapshot(reading, read(), tip, states, region)


def _gone_on(
    reading: Reading, start: Tip, read: Callable[[], Arena], revision: int, region: str
) -> Snapshot:
    """Return a revision from a base, with what came between them."""
    tip, states = start, dict[PolicyId, PolicyState | None]()
    for change in _in_order(start, _changes(reading, start.revision)):
        # The one that comes next is looked at, too: it says what it went on from.
        if change.revision > revision:
            break
        tip = change.tip
        states |= {policy.id: policy.after for policy in change.policies}
    if tip.revision != revision:
        raise HistoryLostError(f"the ledger ends in revision {tip.revision}")
    return _snapshot(reading, read(), tip, states, region)


def _snapshot(reading: Reading, base: Arena, tip: Tip, states: States, region: str) -> Snapshot:
    """Return what a base and what differs from it come to, held to the digests of a tip."""
    found = {**base.header.digests}
    seen = snapshot_of(base, region)
    overlay = {
        identity: None if state is None else record_of(state)
        for identity, state in states.items()
        if seen.keeps(identity)
    }
    for identity, record in overlay.items():
        held = base.find(*identity)
        gained = (record.hash if record else 0) - (held.hash if held else 0)
        found[identity[0]] = (found.get(identity[0], 0) + gained) % DIGEST_MODULUS
    check_digests(found, tip, kept_of(region))
    then = Snapshot(tip, region, base, overlay, seen.parts)
    then = then.with_parts(reading.parts(then.parts_needed() - then.parts.keys()))
    if then.parts_missing:
        raise StoreError(
            f"members that segments of {tip.environment!r} had at revision {tip.revision} are not"
            " there any more: ask a later revision, or restore the collection members"
        )
    return then


def _in_order(tip: Tip, changes: Iterable[Change]) -> Iterator[Change]:
    """Yield changes, each of which must continue the one before it; the first one a tip.

    Raises:
        HistoryLostError: one does not.
    """
    for change in changes:
        if not change.continues(tip):
            raise HistoryLostError(
                f"revision {change.revision} is not the one that was written, or does not continue"
                " the one before it: flagkit ledger verify says more"
            )
        tip = change.tip
        yield change


def _changes(reading: Reading, after: int) -> Iterator[Change]:
    """Yield all changes after a revision, with the one that the ledger has not got yet."""
    unledgered = reading.unledgered
    later = () if unledgered is None or unledgered.revision <= after else (unledgered,)
    return chain(reading.changes(after), later)


def _lost(reading: Reading, asked: str, first: Change) -> HistoryLostError:
    """Return the error that it is not known any more what was asked for."""
    known = [(first.revision, first.tip.time)]
    known += [(base.tip.revision, base.tip.time) for base, _ in _connected(reading, first)]
    revision, time = min(known)
    return HistoryLostError(
        f"what {reading.tip.environment!r} was {asked} is not known any more: its ledger was"
        f" pruned. Ask for revision {revision} ({_said(time)}) or a later one"
    )


def _said(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
