"""Clients without a database, for the tests of services and of flagkit.

`client_from` is all that most tests need. `MemoryHistory` is a whole history in memory; its sources
pass the same contract tests as those of MongoDB. `ManualClock` is a clock that moves only by its
methods.
"""

import asyncio
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from flagkit._core.arguments import check_instance, check_list
from flagkit._core.arguments import check_revision as revision_of
from flagkit._core.model import EVERYWHERE
from flagkit._core.model.changes import (
    SEGMENTS,
    Change,
    PolicyChange,
    PolicyId,
    PolicyState,
    Tip,
    build_genesis_tip,
    build_next_change,
)
from flagkit._core.model.keys import check_region
from flagkit._core.snapshot import Snapshot, build_snapshot, list_regions, list_snapshot_regions
from flagkit._core.source import Heartbeat, Route
from flagkit.client.client import Client
from flagkit.client.sources import build_initial_segment, build_initial_state, build_policy_snapshot
from flagkit.config import check_environment_name
from flagkit.errors import (
    FlagkitError,
    FlagNotFoundError,
    HistoryLostError,
    InvalidArgumentError,
    SegmentNotFoundError,
)

__all__ = ["ManualClock", "MemoryHistory", "MemorySource", "client_from"]

ENVIRONMENT = "test"


class ManualClock:
    """A clock that moves only by its methods. Calling it gives the time, an aware datetime."""

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._now = _to_utc(check_instance(start, datetime, "start", "pass a datetime"))

    def __call__(self) -> datetime:
        """Return the time."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Move on by some seconds.

        Raises:
            InvalidArgumentError: they are negative, or no number, or lead beyond the year 9999.
        """
        remedy = "pass a number of seconds, 0 or more: time does not run backwards"
        given: Any = seconds
        if isinstance(given, bool) or not isinstance(given, int | float) or not given >= 0:
            raise InvalidArgumentError(f"seconds is {seconds!r}: {remedy}")
        try:
            self._now += timedelta(seconds=seconds)
        except OverflowError:
            raise InvalidArgumentError(
                f"seconds is {seconds!r}: the clock would pass the year 9999; advance it by fewer"
            ) from None


def client_from(
    flags: Iterable[Mapping[str, Any]],
    segments: Iterable[Mapping[str, Any]] = (),
    now: datetime | Callable[[], datetime] | None = None,
    *,
    region: str = EVERYWHERE,
) -> Client:
    """Return a client of plain policy documents, with no database and no thread.

    Args:
        flags: Policy documents, in the shape of the YAML form.
        segments: Documents of segments, with their keys.
        now: The time of evaluations, or a clock that returns it, in UTC if it has no zone. By
            default it is the system's time.
        region: The region whose overrides to apply.

    Raises:
        InvalidDocumentError: a document is not valid.
        InvalidArgumentError: an argument is of another type.
    """
    check_region(region)
    flags = check_list(flags, "flags", "pass a list of the documents of flags")
    segments = check_list(segments, "segments", "pass a list of the documents of segments")
    clock = _build_clock(now)
    snapshot = build_policy_snapshot(flags, segments, environment=ENVIRONMENT, region=region)
    return Client.from_snapshot(snapshot, clock)


class MemoryHistory:
    """A history in memory, which any number of sources read: `commit` adds a revision.

    May be used from any thread. While `fault` is set, every read of a source raises it.
    `heartbeats` has those of the clients that are alive, by instance.
    """

    def __init__(
        self,
        environment: str = ENVIRONMENT,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._now = _check_clock(now)
        self.fault: FlagkitError | None = None
        self.changes: list[Change] = []
        self.pruned_to = 0
        self.heartbeats: dict[str, Heartbeat] = {}
        self._genesis = build_genesis_tip(
            check_environment_name(environment), uuid.uuid4().hex, self._now()
        )
        self._lock = threading.Lock()
        self._listeners: list[Callable[[], object]] = []

    @property
    def tip(self) -> Tip:
        """The tip of the history."""
        return self.get_tip(len(self.changes))

    def get_tip(self, revision: int) -> Tip:
        """Return the tip of the history at a revision.

        Raises:
            InvalidArgumentError: there is no such revision.
        """
        if revision_of(revision) > len(self.changes):
            raise InvalidArgumentError(
                f"revision is {revision}: pass one from 0 to {len(self.changes)}"
            )
        return self.changes[revision - 1].tip if revision else self._genesis

    def commit(
        self,
        *documents: Mapping[str, Any],
        segments: Iterable[Mapping[str, Any]] = (),
        delete: Sequence[PolicyId] = (),
    ) -> Change:
        """Add a revision that creates or updates flags and segments, and deletes some by id.

        Raises:
            InvalidDocumentError: a document is not valid.
            FlagNotFoundError, SegmentNotFoundError: a policy to delete does not exist.
            InvalidArgumentError: an argument is of another type.
        """
        segments = check_list(segments, "segments", "pass a list of the documents of segments")
        ids = [_check_policy_id(policy) for policy in check_list(delete, "delete", _IDS)]
        with self._lock:
            held = self.get_states(self.tip)
            for policy in ids:
                if policy not in held:
                    kind = SegmentNotFoundError if policy[0] == SEGMENTS else FlagNotFoundError
                    raise kind(f"there is no {policy[1]!r} in {policy[0]}")
            after: dict[PolicyId, PolicyState | None] = dict.fromkeys(ids)
            hashed = [build_initial_segment(document) for document in segments]
            for state in [*map(build_initial_state, documents), *(state for state, _ in hashed)]:
                before = held.get(state.id)
                version = before.version + 1 if before else 1
                after[state.id] = PolicyState(state.key, state.region, version, state.packed)
            edits = [PolicyChange(held.get(policy), state) for policy, state in after.items()]
            parts = {name: part for _, new_parts in hashed for name, part in new_parts.items()}
            change = build_next_change(self.tip, uuid.uuid4().hex, self._now(), edits, parts)
            self.changes.append(change)
        for wake in self._listeners:
            wake()
        return change

    def prune(self, revision: int) -> None:
        """Forget the ledger up to a revision; the flags stay."""
        self.pruned_to = revision_of(revision)

    def get_states(self, tip: Tip) -> dict[PolicyId, PolicyState]:
        """Return the states of all flags and segments at a tip."""
        held = {
            policy.id: policy.after
            for change in self.changes[: _check_tip(tip).revision]
            for policy in change.policies
        }
        return {policy: state for policy, state in held.items() if state is not None}

    def get_parts(self, tip: Tip) -> dict[str, bytes]:
        """Return the parts of members that any revision up to a tip brought."""
        changes = self.changes[: _check_tip(tip).revision]
        return {name: part for change in changes for name, part in change.parts.items()}

    def create_source(self, region: str = EVERYWHERE) -> "MemorySource":
        """Return a new source of this history, as one region sees it."""
        return MemorySource(self, check_region(region))

    def on_commit(self, wake: Callable[[], object]) -> Callable[[], None]:
        """Call `wake` after each commit, until the returned function is called."""
        if not callable(wake):
            raise InvalidArgumentError(
                f"wake is of the type {type(wake).__name__}: pass a function without parameters"
            )
        self._listeners.append(wake)
        return lambda: self._listeners.remove(wake)


class MemorySource:
    """A refresher's source whose history lives in memory. To be used in one asyncio loop."""

    def __init__(self, history: MemoryHistory, region: str = EVERYWHERE) -> None:
        self._history = history
        self._region = region
        self._watched_to = 0
        self._arrived = asyncio.Event()
        self._stop_watching: Callable[[], None] = lambda: None

    async def load(self, route: Route) -> Snapshot:  # noqa: ARG002 - memory is near
        """Read everything, at one revision."""
        self._check_fault()
        tip = self._history.tip
        regions = list_snapshot_regions(self._region)
        states = self._history.get_states(tip).values()
        return build_snapshot(
            tip,
            self._region,
            [state for state in states if state.region in regions],
            self._history.get_parts(tip),
        )

    async def open(self, route: Route) -> None:  # noqa: ARG002 - as in `load`
        """Begin to watch."""
        self._check_fault()
        self._stop_watching()
        loop, arrived = asyncio.get_running_loop(), self._arrived
        self._watched_to = self._history.tip.revision
        self._stop_watching = self._history.on_commit(
            lambda: loop.call_soon_threadsafe(arrived.set)
        )

    async def read_head(self) -> Tip:
        """Return the tip of the history."""
        self._check_fault()
        return self._history.tip

    async def catch_up(self, tip: Tip, route: Route) -> Sequence[Change]:  # noqa: ARG002 - as in `load`
        """Return every change after `tip`."""
        self._check_fault()
        history = self._history
        if tip.revision > history.tip.revision or history.get_tip(tip.revision) != tip:
            raise HistoryLostError(f"revision {tip.revision} is of another history")
        if tip.revision < history.pruned_to:
            raise HistoryLostError(f"the ledger does not reach back to revision {tip.revision}")
        return history.changes[tip.revision :]

    async def watch(self) -> Sequence[Change]:
        """Wait for changes."""
        self._check_fault()
        self._arrived.clear()
        if self._watched_to == self._history.tip.revision:
            await self._arrived.wait()
            self._check_fault()
        news = self._history.changes[self._watched_to :]
        self._watched_to += len(news)
        return news

    async def read_policy(self, key: str) -> dict[str, Any] | None:
        """Read the newest document of a flag as the region sees it."""
        self._check_fault()
        held = self._history.get_states(self._history.tip)
        states = (held.get((region, key)) for region in list_regions(self._region))
        return next((state.policy for state in states if state is not None), None)

    async def send_heartbeat(self, heartbeat: Heartbeat) -> None:
        """Put a heartbeat in the place of the last one of its client."""
        self._check_fault()
        self._history.heartbeats[heartbeat.instance] = heartbeat
        if not heartbeat.lifetime:
            del self._history.heartbeats[heartbeat.instance]

    async def close(self) -> None:
        """Free everything."""
        self._stop_watching()

    def _check_fault(self) -> None:
        if self._history.fault is not None:
            raise self._history.fault


_IDS = 'pass a list of pairs of a region and a key, such as [("*", "shop.search")]'


def _check_policy_id(given: object) -> PolicyId:
    pair = check_list(given, "an element of delete", _IDS)
    if len(pair) != 2 or not all(isinstance(part, str) for part in pair):  # noqa: PLR2004 - region and key
        raise InvalidArgumentError(f"an element of delete is no such pair: {_IDS}")
    return pair[0], pair[1]


def _check_tip(tip: object) -> Tip:
    return check_instance(tip, Tip, "tip", "pass a tip of this history, as in history.tip")


def _build_clock(now: datetime | Callable[[], datetime] | None) -> Callable[[], float]:
    if now is None:
        return time.time
    if isinstance(now, datetime):
        moment = _to_utc(now).timestamp()
        return lambda: moment
    moments = _check_clock(now)
    return lambda: _to_utc(moments()).timestamp()


def _check_clock(now: Callable[[], datetime]) -> Callable[[], datetime]:
    if not callable(now):
        raise InvalidArgumentError(
            f"now is of the type {type(now).__name__}: pass a function that returns a datetime"
        )
    return now


def _to_utc(moment: datetime) -> datetime:
    """Return a date with a zone: one without is in UTC, as an attribute is."""
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
