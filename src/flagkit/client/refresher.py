"""The refresher: a state machine without I/O that decides how a client stays current.

`Refresher.step(event, now) -> action` decides, and `refresh_thread` acts on a `Source`. Invariants:
a snapshot is followed only by one that continues its hash, or replaced by a new base; any doubt
ends in a question to the ledger; only a read from the primary proves that a snapshot is current or
that its history is lost.

Its circuit breakers double the wait after each failure, up to a maximum, and randomize each wait.
All times are seconds of the monotonic clock.
"""

import random
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final, TypeAlias

from msgspec import Struct

from flagkit._core.model.changes import Change, Tip
from flagkit._core.snapshot import Snapshot
from flagkit._core.source import Route
from flagkit.errors import HistoryLostError, StreamsUnavailableError


class BreakerState(StrEnum):
    """The state of a breaker: it lets all attempts pass, none, or a single one."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Thresholds(Struct, frozen=True):
    """When a breaker opens, and how long waits are.

    Attributes:
        failure_count: So many failures in a row open it.
        first_seconds: The longest wait after a first failure.
        max_seconds: The longest wait at all.
        lag_seconds: The longest wait for what answered, but was behind.
    """

    failure_count: int = 5
    first_seconds: float = 0.1
    max_seconds: float = 30.0
    lag_seconds: float = 60.0


class Breaker:
    """Tells when one way to the data may be tried. It is closed to begin with."""

    def __init__(self, rng: random.Random, thresholds: Thresholds) -> None:
        self.retry_at = 0.0
        """When the next attempt may be made."""
        self._rng = rng
        self._thresholds = thresholds
        self._failure_count = 0

    def get_state(self, now: float) -> BreakerState:
        """Return what it lets through at a moment."""
        if self._failure_count < self._thresholds.failure_count:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now < self.retry_at else BreakerState.HALF_OPEN

    def record_success(self) -> None:
        """Close it."""
        self._failure_count = 0
        self.retry_at = 0.0

    def record_failure(self, now: float) -> None:
        """Count a failure: wait with full jitter, with half of it once the breaker is open."""
        self._failure_count += 1
        doubled = self._thresholds.first_seconds * 2 ** min(self._failure_count - 1, 16)
        longest = min(self._thresholds.max_seconds, doubled)
        # An open breaker that could be tried again at once would not be open.
        is_open = self._failure_count >= self._thresholds.failure_count
        self.retry_at = now + self._rng.uniform(longest / 2 if is_open else 0, longest)

    def force_open(self, now: float) -> None:
        """Open it at once: what it leads to answers, and cannot be relied upon."""
        self._failure_count = max(self._failure_count, self._thresholds.failure_count)
        longest = self._thresholds.lag_seconds
        self.retry_at = now + self._rng.uniform(longest / 2, longest)


class RefreshState(StrEnum):
    """The state of a refresher."""

    LOADING = "loading"
    CATCHING_UP = "catching up"
    WATCHING = "watching"
    POLLING = "polling"
    BACKING_OFF = "backing off"
    CLOSED = "closed"


class RefreshIntervals(Struct, frozen=True):
    """How often things are asked, in seconds. Each is drawn anew from 0.8 to 1.2 of it.

    Attributes:
        head: Between two questions to the primary where the head is.
        lag: So long a stream may take to bring what the primary has, which is not drawn.
        poll: Between two questions to the ledger where there is no stream.
        stream: After so long a stream is tried again where there was none.
    """

    head: float = 10.0
    lag: float = 2.0
    poll: float = 5.0
    stream: float = 300.0


def build_intervals(max_staleness: float) -> RefreshIntervals:
    """Return the pace at which a snapshot can be known not to be older than so many seconds."""
    # Drawn longer than it says, and missed once, it must still be in time.
    head = min(RefreshIntervals().head, max_staleness / 3)
    return RefreshIntervals(
        head=head, lag=min(RefreshIntervals().lag, head), poll=min(RefreshIntervals().poll, head)
    )


class Load(Struct, frozen=True):
    """Read everything."""

    route: Route


class CatchUp(Struct, frozen=True):
    """Read every change after a tip; first begin to watch, if `reopen` is set."""

    tip: Tip
    route: Route
    reopen: bool


class ReadHead(Struct, frozen=True):
    """Ask the primary where the head is."""


class Watch(Struct, frozen=True):
    """Wait for changes, until a moment at the most. What is waited for goes on beyond it."""

    until: float


class Wait(Struct, frozen=True):
    """Do nothing until a moment."""

    until: float


Action: TypeAlias = Load | CatchUp | ReadHead | Watch | Wait


class LoadDone(Struct, frozen=True):
    """Everything was read."""

    snapshot: Snapshot


class CatchUpDone(Struct, frozen=True):
    """Every change after the tip that was asked for."""

    changes: Sequence[Change]


class HeadRead(Struct, frozen=True):
    """The head that the primary returned, with the moment of the question."""

    tip: Tip
    asked_at: float


class ChangesReceived(Struct, frozen=True):
    """The changes that the stream returned, perhaps none."""

    changes: Sequence[Change]


class Timer(Struct, frozen=True):
    """The moment came before any changes, or the wait is over."""


class ActionFailed(Struct, frozen=True):
    """The action could not be carried out."""

    error: Exception


Event: TypeAlias = LoadDone | CatchUpDone | HeadRead | ChangesReceived | Timer | ActionFailed

_FIRST: Final = float("-inf")


class Refresher:
    """The state machine. `snapshot` is the last good one; `step` says what to do next.

    After a step, `applied` holds the changes that led from the previous snapshot to this one, or
    None where this one is a new base. `head` is the newest tip that the primary told, and
    `current_as_of` the moment of asking for the last one that the snapshot has reached. `breakers`
    are those of the ways to the data, `head_breaker` that of the question for the head.
    """

    def __init__(
        self,
        rng: random.Random,
        snapshot: Snapshot | None = None,
        intervals: RefreshIntervals | None = None,
        thresholds: Thresholds | None = None,
    ) -> None:
        self.state = RefreshState.LOADING
        self.snapshot = snapshot
        self.applied: Sequence[Change] | None = ()
        self.head: Tip | None = None
        self.current_as_of: float | None = None
        self._thresholds = thresholds = thresholds or Thresholds()
        self.breakers: Mapping[Route, Breaker] = {
            route: Breaker(rng, thresholds) for route in Route
        }
        # Of its own: that the primary tells the head does not mean that a stream holds.
        self.head_breaker = Breaker(rng, thresholds)
        self._rng = rng
        self._intervals = intervals or RefreshIntervals()
        self._route = Route.NEAREST
        self._needs_base = False
        self._is_reopening = self._is_reading_head = False
        self._head_due_at = self._watched_since = _FIRST
        # The tip that the stream is to bring, when it was asked for, and until when.
        self._expected_head: HeadRead | None = None
        self._expected_until = _FIRST
        # Where there is no stream, until when none is tried.
        self._polls_until: float | None = None

    def start(self, now: float) -> Action:
        """Return the first action: a base is loaded only where none was given."""
        return self._recover(now)

    def renew(self) -> "Refresher":
        """Return a refresher that goes on from this one's snapshot, and knows nothing else."""
        renewed = Refresher(self._rng, self.snapshot, self._intervals, self._thresholds)
        renewed.state, renewed.head = RefreshState.BACKING_OFF, self.head
        return renewed

    def step(self, event: Event, now: float) -> Action:
        """Take in what came of the last action and return the next. Never raises."""
        self.applied = ()
        asked_head, self._is_reading_head = self._is_reading_head, False
        match event:
            case ActionFailed(error):
                return (
                    self._on_failure(error, now) if not asked_head else self._on_head_failure(now)
                )
            case LoadDone(snapshot):
                return self._on_loaded(snapshot)
            case CatchUpDone(changes):
                return self._on_caught_up(changes, now)
            case HeadRead():
                return self._on_head(event, now)
            case ChangesReceived(changes):
                return self._on_changes(changes, now)
            case Timer():
                return self._on_timer(now)

    def close(self) -> None:
        """Say that no more will be done."""
        self.state = RefreshState.CLOSED

    def _recover(self, now: float) -> Action:
        """Return what leads to being current again, on a way that may be tried now."""
        # What replaces a snapshot has to be the primary's.
        replaces = self._needs_base and self.snapshot is not None
        retries: list[float] = []
        for route in (Route.PRIMARY,) if replaces else (Route.NEAREST, Route.PRIMARY):
            breaker = self.breakers[route]
            if now >= breaker.retry_at:
                return self._try_route(route, now)
            retries.append(breaker.retry_at)
            if breaker.get_state(now) is BreakerState.CLOSED:
                # It is not given up, only given a pause.
                break
        self.state = RefreshState.BACKING_OFF
        return Wait(min(retries))

    def _try_route(self, route: Route, now: float) -> Action:
        if self.snapshot is None or self._needs_base:
            self.state, self._route = RefreshState.LOADING, route
            return Load(route)
        return self._catch_up(route, reopen=self._polls_until is None or now >= self._polls_until)

    def _on_loaded(self, snapshot: Snapshot) -> Action:
        self.snapshot, self.applied = snapshot, None
        self._needs_base = False
        return self._catch_up(self._route, reopen=True)

    def _catch_up(self, route: Route, *, reopen: bool) -> Action:
        self.state, self._route, self._is_reopening = RefreshState.CATCHING_UP, route, reopen
        return CatchUp(self._get_snapshot().tip, route, reopen)

    def _on_caught_up(self, changes: Sequence[Change], now: float) -> Action:
        try:
            self._apply(changes)
        except HistoryLostError as error:
            return self._on_failure(error, now)
        if self._is_reopening:
            self._polls_until = None
            self._watched_since = now
        elif self._polls_until is not None:
            # There is no stream that could still break.
            self.breakers[self._route].record_success()
        return self._wait(now)

    def _wait(self, now: float) -> Action:
        """Wait for what comes; ask for the head first, where that is due."""
        polling = self._polls_until is not None
        self.state = RefreshState.POLLING if polling else RefreshState.WATCHING
        if now >= self._head_due_at:
            self._is_reading_head = True
            return ReadHead()
        if polling:
            return Wait(now + self._add_jitter(self._intervals.poll))
        until = self._head_due_at
        return Watch(until if self._expected_head is None else min(until, self._expected_until))

    def _on_changes(self, changes: Sequence[Change], now: float) -> Action:
        # Not before: a stream that breaks whenever it is opened must be backed off from, too.
        self.breakers[self._route].record_success()
        tip = self._get_snapshot().tip
        try:
            self._apply([change for change in changes if not _is_known(change, tip)])
        except HistoryLostError:
            # A gap or another history: the stream alone cannot tell. The ledger can.
            return self._catch_up(self._route, reopen=False)
        return self._on_timer(now)

    def _on_timer(self, now: float) -> Action:
        if self.state is not RefreshState.WATCHING:
            return self._recover(now)
        if self._expected_head is not None and now >= self._expected_until:
            # The primary has what the stream does not bring: it is cut off, or far behind.
            self._expected_head = None
            self.breakers[self._route].force_open(now)
            return self._catch_up(Route.PRIMARY, reopen=True)
        if now - self._watched_since >= self._intervals.lag:
            self.breakers[self._route].record_success()
        return self._wait(now)

    def _on_head(self, head: HeadRead, now: float) -> Action:
        self.head_breaker.record_success()
        self.head = head.tip
        self._head_due_at = now + self._add_jitter(self._intervals.head)
        mine = self._get_snapshot().tip
        if (head.tip.epoch, head.tip.hash) == (mine.epoch, mine.hash):
            self.current_as_of = head.asked_at
            # If it comes after all, from who is behind, it is no longer the primary's.
            self._expected_head = None
            if self._route is Route.PRIMARY and now >= self.breakers[Route.NEAREST].retry_at:
                # Back to who is near.
                return self._recover(now)
            return self._wait(now)
        if head.tip.epoch != mine.epoch or head.tip.revision <= mine.revision:
            # Behind what I have, or of another history: the ledger tells, of the same member.
            return self._catch_up(Route.PRIMARY, reopen=True)
        if self._expected_head is None or self._polls_until is not None:
            # A stream gets no more time to bring one for being asked for again.
            self._expected_head, self._expected_until = head, now + self._intervals.lag
        if self._polls_until is not None:
            return self._catch_up(self._route, reopen=False)
        return self._wait(now)

    def _on_head_failure(self, now: float) -> Action:
        """Go on without the primary's word; until it comes, the snapshot grows stale."""
        self.head_breaker.record_failure(now)
        self._head_due_at = max(self.head_breaker.retry_at, now + self._intervals.lag)
        return self._wait(now)

    def _on_failure(self, error: Exception, now: float) -> Action:
        self._expected_head = None
        if isinstance(error, StreamsUnavailableError) and self.snapshot is not None:
            self._polls_until = now + self._add_jitter(self._intervals.stream)
            return self._catch_up(self._route, reopen=False)
        self.breakers[self._route].record_failure(now)
        if isinstance(error, HistoryLostError) and self.state is RefreshState.CATCHING_UP:
            if self._route is Route.NEAREST:
                # Who lags behind what I have cannot tell that from what is lost.
                return self._catch_up(Route.PRIMARY, reopen=True)
            self._needs_base = True
        return self._recover(now)

    def _apply(self, changes: Sequence[Change]) -> None:
        if changes:
            self.snapshot = self._get_snapshot().apply(changes)
            self.applied = changes
        awaited = self._expected_head
        # By its hash: another history has such a revision, too.
        if awaited is not None and any(change.tip.hash == awaited.tip.hash for change in changes):
            self.current_as_of = awaited.asked_at
            self._expected_head = None

    def _add_jitter(self, seconds: float) -> float:
        # A fleet that started together must not ask together for ever.
        return seconds * self._rng.uniform(0.8, 1.2)

    def _get_snapshot(self) -> Snapshot:
        assert self.snapshot is not None, "only Load is obeyed before there is a snapshot"
        return self.snapshot


def _is_known(change: Change, tip: Tip) -> bool:
    """Tell whether a change is one that led to this tip. Another history at its place is not."""
    if change.tip.epoch != tip.epoch or change.revision > tip.revision:
        return False
    return change.revision < tip.revision or change.tip.hash == tip.hash
