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

from flagkit._core.cooperative import run_slices
from flagkit._core.model.changes import DIGEST_MODULUS, Change, PolicyId, PolicyState, Tip
from flagkit._core.snapshot import (
    Arena,
    Snapshot,
    build_arena,
    check_digests,
    create_snapshot,
    encode_record,
    list_snapshot_regions,
)
from flagkit._core.storage import layout
from flagkit._core.storage.checkpoints import FLAGS_PER_REVISION, Checkpoint
from flagkit._core.storage.documents import decode_head_change, decode_ledger
from flagkit._core.storage.pages import read_page_contents, read_page_names
from flagkit._core.storage.reader import EnvironmentReader
from flagkit.errors import (
    ConfigurationError,
    HistoryLostError,
    RevisionNotFoundError,
    SnapshotFormatError,
    StoreError,
    StoreUnavailableError,
)


class LedgerQuery(Struct, frozen=True):
    """A selection of changes: after a revision, of a key, between two moments; in an order."""

    after: int = 0
    key: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    newest_first: bool = False

    def matches(self, change: Change) -> bool:
        """Tell whether a change is wanted."""
        time = change.tip.time
        return (
            change.revision > self.after
            and (self.key is None or any(item.id[1] == self.key for item in change.policies))
            and (self.since is None or time >= self.since)
            and (self.until is None or time < self.until)
        )


def iter_ledger_changes(
    database: Database[layout.Document], environment: str, query: LedgerQuery
) -> Iterator[Change]:
    """Yield the changes that are wanted, in order, up to the head's at least."""
    # Before the ledger, which then has all that the head had but for its own change.
    head = database[layout.HEADS].find_one({"_id": environment})
    body = None if head is None else head.get("change")
    tip = (
        None if head is None else decode_head_change(head, _read_pages(database, environment, body))
    )
    missing = tip if tip is not None and query.matches(tip) else None
    for change in _iter_ledger(database, environment, query):
        if missing is not None and query.newest_first and change.revision < missing.revision:
            yield missing
        if missing is not None and (query.newest_first or change.revision == missing.revision):
            missing = None
        yield change
    if missing is not None:
        yield missing


def _iter_ledger(
    database: Database[layout.Document], environment: str, query: LedgerQuery
) -> Iterator[Change]:
    key = query.key
    named = {} if key is None else {"_id.environment": environment, "keys": key}
    on_pages = database[layout.PAGES].distinct("_id.page", named) if named else ()
    asked = layout.filter_policy_ledger(key, query.since, query.until, on_pages)
    order = [("_id", DESCENDING if query.newest_first else ASCENDING)]
    for document in database[layout.LEDGER].find(
        layout.filter_ledger_after(environment, query.after) | asked, sort=order
    ):
        yield decode_ledger(document, _read_pages(database, environment, document))


def _read_pages(
    database: Database[layout.Document], environment: str, document: Mapping[str, Any] | None
) -> dict[str, bytes]:
    names = read_page_names(document)
    return (
        read_page_contents(database[layout.PAGES].find(layout.filter_pages(environment, names)))
        if names
        else {}
    )


States: TypeAlias = Mapping[PolicyId, PolicyState | None]
"""The states that differ from a base; None where there is none."""
_Bases: TypeAlias = list[tuple[Checkpoint, Callable[[], Arena]]]
_Way: TypeAlias = Callable[[], Snapshot]

_NEVER = datetime(1970, 1, 1, tzinfo=UTC)
"""The time of a revision 0: nothing that is kept says it."""


class HistoricalSnapshot(NamedTuple):
    """All flags as a region saw them, and the time of their evaluations."""

    snapshot: Snapshot
    time: datetime


def load_historical_snapshot(
    reader: EnvironmentReader, at: datetime | int | None, region: str
) -> HistoricalSnapshot:
    """Return an environment as a region saw it at a moment, or at a revision; None: now.

    The time of a revision is that at which it was made; that of now is the server's.

    Raises:
        ConfigurationError: it is neither, or the moment has no time zone, or has not come yet.
        RevisionNotFoundError: there is no such revision, or none was made by then.
        HistoryLostError: the ledger does not reach back so far, something was changed past the
            writer, or members that segments had are not there any more.
    """
    if at is None:
        return HistoricalSnapshot(
            load_revision_snapshot(reader, reader.tip.revision, region), reader.now
        )
    if isinstance(at, datetime):
        return HistoricalSnapshot(
            load_revision_snapshot(reader, _resolve_revision(reader, at), region), at
        )
    if isinstance(at, bool) or not isinstance(at, int):  # pyright: ignore[reportUnnecessaryIsInstance] - not all callers check types
        raise ConfigurationError(
            f"at is {at!r}: pass a datetime with a time zone, or the number of a revision"
        )
    snapshot = load_revision_snapshot(reader, at, region)
    return HistoricalSnapshot(snapshot, snapshot.tip.time)


def load_revision_snapshot(reader: EnvironmentReader, revision: int, region: str) -> Snapshot:
    """Return all flags of a revision as a region sees them.

    Raises:
        RevisionNotFoundError, HistoryLostError: as `load_historical_snapshot` does.
    """
    head = reader.tip
    if not 1 <= revision <= head.revision:
        known = f"there are 1 to {head.revision}" if head.revision else "nothing was changed yet"
        raise RevisionNotFoundError(
            f"{head.environment!r} has no revision {revision} to ask: {known}"
        )
    faults: list[StoreError | SnapshotFormatError] = []
    for way in _find_paths(reader, revision, region):
        try:
            return way()
        except StoreUnavailableError:
            raise
        except (StoreError, SnapshotFormatError) as error:
            faults.append(error)
    raise HistoryLostError(
        f"revision {revision} of {head.environment!r} cannot be put together: {faults[0]}"
    ) from faults[0]


def find_tip(reader: EnvironmentReader, revision: int) -> Tip | None:
    """Return where the environment stood at a revision, None if the ledger has it no more.

    Raises:
        HistoryLostError: it was altered.
    """
    found = next(_iter_changes(reader, revision - 1), None)
    if found is None or found.revision != revision:
        return None
    if not found.is_intact:
        raise HistoryLostError(f"revision {revision} is not the one that was written")
    return found.tip


def _resolve_revision(reader: EnvironmentReader, moment: datetime) -> int:
    """Return the last revision that was made by a moment."""
    if moment.utcoffset() is None:
        raise ConfigurationError(
            f"at is {moment.isoformat()}, without a time zone: write {moment.isoformat()}+00:00, or"
            " pass tzinfo="
        )
    if moment > reader.now:
        raise ConfigurationError(
            f"at is {_format_moment(moment)}, which is still to come:"
            f" the server has {_format_moment(reader.now)}"
        )
    tips = (base.tip for base, _ in reader.iter_checkpoints())
    revision = max(
        reader.history.find_revision(moment),
        *(tip.revision for tip in tips if tip.time <= moment),
        0,
    )
    if revision:
        return revision
    first = next(_iter_changes(reader, 0), None)
    environment = reader.tip.environment
    if first is None:
        raise RevisionNotFoundError(f"{environment!r} has no revision yet: nothing was changed")
    if first.revision > 1:
        raise _build_history_lost_error(reader, f"at {_format_moment(moment)}", first)
    raise RevisionNotFoundError(
        f"{environment!r} had no flags at {_format_moment(moment)}: its first revision was made at"
        f" {_format_moment(first.tip.time)}"
    )


def _find_paths(reader: EnvironmentReader, revision: int, region: str) -> list[_Way]:
    """Return the ways to a revision, the shortest first, by how many revisions are to be read."""
    first = next(_iter_changes(reader, 0), None)
    assert first is not None, "there is a revision"
    starts = [
        (checkpoint.tip, read, 0) for checkpoint, read in _find_connected_checkpoints(reader, first)
    ]
    if first.revision == 1:
        tip = Tip(first.tip.environment, first.tip.epoch, 0, first.previous_hash, _NEVER, {})
        starts.append((tip, functools.partial(build_arena, tip, ()), 0))
    # As many revisions as take no longer than to scan the flags, as far as these were counted.
    counts = (checkpoint.flags for checkpoint, _ in reader.iter_checkpoints())
    scan = max(counts, default=0) // FLAGS_PER_REVISION
    starts.append((reader.tip, lambda: run_slices(reader.read_base()), scan))
    ways: list[tuple[int, _Way]] = []
    for tip, read, more in starts:
        if tip.revision <= revision or first.revision <= revision:
            go = _redo_changes if tip.revision <= revision else _undo_changes
            way = functools.partial(go, reader, tip, read, revision, region)
            ways.append((more + abs(revision - tip.revision), way))
    if not ways:
        raise _build_history_lost_error(reader, f"revision {revision}", first)
    return [way for _, way in sorted(ways, key=itemgetter(0))]


def _find_connected_checkpoints(reader: EnvironmentReader, first: Change) -> _Bases:
    """Return the checkpoints from which the ledger goes on."""
    return [
        found for found in reader.iter_checkpoints() if found[0].tip.revision + 1 >= first.revision
    ]


def _undo_changes(
    reader: EnvironmentReader, end: Tip, read: Callable[[], Arena], revision: int, region: str
) -> Snapshot:
    """Return a revision from a later base, without what came between them."""
    tip = last = find_tip(reader, revision)
    states: dict[PolicyId, PolicyState | None] = {}
    if tip is not None:
        for change in _iter_checked(tip, _iter_changes(reader, revision)):
            if change.revision > end.revision:
                break
            last = change.tip
            for policy in change.policies:
                # What the first change after the revision found is what was there at it.
                states.setdefault(policy.id, policy.before)
    if tip is None or last != end:
        raise HistoryLostError(f"the ledger does not lead from there to revision {end.revision}")
    return _build_snapshot(reader, read(), tip, states, region)


def _redo_changes(
    reader: EnvironmentReader, start: Tip, read: Callable[[], Arena], revision: int, region: str
) -> Snapshot:
    """Return a revision from a base, with what came between them."""
    tip, states = start, dict[PolicyId, PolicyState | None]()
    for change in _iter_checked(start, _iter_changes(reader, start.revision)):
        # The one that comes next is looked at, too: it says what it went on from.
        if change.revision > revision:
            break
        tip = change.tip
        states |= {policy.id: policy.after for policy in change.policies}
    if tip.revision != revision:
        raise HistoryLostError(f"the ledger ends in revision {tip.revision}")
    return _build_snapshot(reader, read(), tip, states, region)


def _build_snapshot(
    reader: EnvironmentReader, base: Arena, tip: Tip, states: States, region: str
) -> Snapshot:
    """Return what a base and what differs from it come to, held to the digests of a tip."""
    found = {**base.header.digests}
    seen = create_snapshot(base, region)
    overlay = {
        identity: None if state is None else encode_record(state)
        for identity, state in states.items()
        if seen.is_in_scope(identity)
    }
    for identity, record in overlay.items():
        held = base.find(*identity)
        gained = (record.hash if record else 0) - (held.hash if held else 0)
        found[identity[0]] = (found.get(identity[0], 0) + gained) % DIGEST_MODULUS
    check_digests(found, tip, list_snapshot_regions(region))
    then = Snapshot(tip, region, base, overlay, seen.parts)
    then = then.with_parts(reader.read_parts(then.collect_part_names() - then.parts.keys()))
    if then.has_missing_parts:
        raise StoreError(
            f"members that segments of {tip.environment!r} had at revision {tip.revision} are not"
            " there any more: ask a later revision, or restore the collection members"
        )
    return then


def _iter_checked(tip: Tip, changes: Iterable[Change]) -> Iterator[Change]:
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


def _iter_changes(reader: EnvironmentReader, after: int) -> Iterator[Change]:
    """Yield all changes after a revision, with the one that the ledger has not got yet."""
    unledgered = reader.history.tip_not_in_ledger
    later = () if unledgered is None or unledgered.revision <= after else (unledgered,)
    return chain(reader.history.iter_changes(after), later)


def _build_history_lost_error(
    reader: EnvironmentReader, asked: str, first: Change
) -> HistoryLostError:
    """Return the error that it is not known any more what was asked for."""
    known = [(first.revision, first.tip.time)]
    known += [
        (base.tip.revision, base.tip.time) for base, _ in _find_connected_checkpoints(reader, first)
    ]
    revision, time = min(known)
    return HistoryLostError(
        f"what {reader.tip.environment!r} was {asked} is not known any more: its ledger was"
        f" pruned. Ask for revision {revision} ({_format_moment(time)}) or a later one"
    )


def _format_moment(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
