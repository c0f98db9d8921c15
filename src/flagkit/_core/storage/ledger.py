"""The ledger: changes read in order, and an environment rebuilt as of a revision or a moment.

The writer of a small change does not wait until a majority has its ledger document. The head holds
the change as well, so a reader that looks right after a commit does not miss it.

Rebuilding starts at the nearest known state: the present, a checkpoint or the beginning. From there
it follows the ledger, forwards or backwards. Each change must continue the one before it, and the
result is compared with the digests of the revision. It reads what clients may read, and never the
audit.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias

from msgspec import Struct
from pymongo import ASCENDING, DESCENDING
from pymongo.database import Database

from flagkit._core.cooperative import whole
from flagkit._core.model.changes import DIGEST_MODULUS, Change, PolicyId, PolicyState, Tip
from flagkit._core.snapshot import (
    Arena,
    Snapshot,
    arena_of,
    check_digests,
    kept_of,
    record_of,
    snapshot_of,
)
from flagkit._core.storage.checkpoints import FLAGS_PER_REVISION, Checkpoint
from flagkit._core.storage.documents import change_of, ledgered
from flagkit._core.storage.layout import (
    HEADS,
    LEDGER,
    PAGES,
    Document,
    ledger_after,
    ledger_of,
    pages_named,
)
from flagkit._core.storage.pages import names_in, pages_in
from flagkit._core.storage.reader import Reading
from flagkit.errors import (
    ConfigurationError,
    HistoryLostError,
    RevisionNotFoundError,
    SnapshotFormatError,
    StoreError,
    StoreUnavailableError,
)


class Wanted(Struct, frozen=True):
    """Which changes: after a revision, of a key, from a moment on, before another; in an order."""

    after: int = 0
    key: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    newest_first: bool = False

    def holds(self, change: Change) -> bool:
        """Tell whether a change is wanted."""
        time = change.tip.time
        return (
            change.revision > self.after
            and (self.key is None or any(item.id[1] == self.key for item in change.policies))
            and (self.since is None or time >= self.since)
            and (self.until is None or time < self.until)
        )


def changes_in(database: Database[Document], environment: str, wanted: Wanted) -> Iterator[Change]:
    """Yield the changes that are wanted, in order, up to the head's at least."""
    # Before the ledger, which then has all that the head had but for its own change.
    head = database[HEADS].find_one({"_id": environment})
    body = None if head is None else head.get("change")
    tip = None if head is None else change_of(head, _pages(database, environment, body))
    missing = tip if tip is not None and wanted.holds(tip) else None
    for change in _ledgered(database, environment, wanted):
        if missing is not None and wanted.newest_first and change.revision < missing.revision:
            yield missing
        if missing is not None and (wanted.newest_first or change.revision == missing.revision):
            missing = None
        yield change
    if missing is not None:
        yield missing


def _ledgered(database: Database[Document], environment: str, wanted: Wanted) -> Iterator[Change]:
    key = wanted.key
    named = {} if key is None else {"_id.environment": environment, "keys": key}
    on_pages = database[PAGES].distinct("_id.page", named) if named else ()
    asked = ledger_of(key, wanted.since, wanted.until, on_pages)
    order = [("_id", DESCENDING if wanted.newest_first else ASCENDING)]
    for document in database[LEDGER].find(
        ledger_after(environment, wanted.after) | asked, sort=order
    ):
        yield ledgered(document, _pages(database, environment, document))


def _pages(
    database: Database[Document], environment: str, document: Mapping[str, Any] | None
) -> dict[str, bytes]:
    names = names_in(document)
    return pages_in(database[PAGES].find(pages_named(environment, names))) if names else {}


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
