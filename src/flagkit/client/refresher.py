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


class Circuit(StrEnum):
    """What a breaker lets through: all, nothing, or one attempt by which it decides."""

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

    def __init__(self, chance: random.Random, thresholds: Thresholds) -> None:
        self.retry_at = 0.0
        """When the next attempt may be made."""
        self._chance = chance
        self._thresholds = thresholds
        self._failure_count = 0

    def circuit(self, now: float) -> Circuit:
        """Return what it lets through at a moment."""
        if self._failure_count < self._thresholds.failure_count:
            return Circuit.CLOSED
        return Circuit.OPEN if now < self.retry_at else Circuit.HALF_OPEN

    def succeeded(self) -> None:
        """Close it."""
        self._failure_count = 0
        self.retry_at = 0.0

    def failed(self, now: float) -> None:
        """Count a failure: wait with full jitter, with half of it once the breaker is open."""
        self._failure_count += 1
        doubled = self._thresholds.first_seconds * 2 ** min(self._failure_count - 1, 16)
        longest = min(self._thresholds.max_seconds, doubled)
        # An open breaker that could be tried again at once would not be open.
        is_open = self._failure_count >= self._thresholds.failure_count
        self.retry_at = now + self._chance.uniform(longest / 2 if is_open else 0, longest)

    def trip(self, now: float) -> None:
        """Open it at once: what it leads to answers, and cannot be relied upon."""
        self._failure_count = max(self._failure_count, self._thresholds.failure_count)
        longest = self._thresholds.lag_seconds
        self.retry_at = now + self._chance.uniform(longest / 2, longest)


class State(StrEnum):
    """Where a refresher is."""

    LOADING = "loading"
    CATCHING_UP = "catching up"
    WATCHING = "watching"
    POLLING = "polling"
    BACKING_OFF = "backing off"
    CLOSED = "closed"


class Pace(Struct, frozen=True):
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


def pace_for(max_staleness: float) -> Pace:
    """Return the pace at which a snapshot can be known not to be older than so many seconds."""
    # Drawn longer than it says, and missed once, it must still be in time.
    head = min(Pace().head, max_staleness / 3)
    return Pace(head=head, lag=min(Pace().lag, head), poll=min(Pace().poll, head))


class Load(Struct, frozen=True):
    """Read everything."""

    route: Route


class CatchUp(Struct, frozen=True):
    """Read every change after a tip; first begin to watch, if `reopen` is set."""

    tip: Tip
    route: Route
    reopen: bool


class AskHead(Struct, frozen=True):
    """Ask the primary where the head is."""


class Watch(Struct, frozen=True):
    """Wait for changes, until a moment at the most. What is waited for goes on beyond it."""

    until: float


class Wait(Struct, frozen=True):
    """Do nothing until a moment."""

    until: float


Action: TypeAlias = Load | CatchUp | AskHead | Watch | Wait


class Loaded(Struct, frozen=True):
    """Everything was read."""

    snapshot: Snapshot


class CaughtUp(Struct, frozen=True):
    """Every change after the tip that was asked for."""

    changes: Sequence[Change]


class HeadSeen(Struct, frozen=True):
    """Where the primary has the head, which it was asked for at a moment."""

    tip: Tip
    asked: float


class Arrived(Struct, frozen=True):
    """What the stream brought, perhaps nothing."""

    changes: Sequence[Change]


class Due(Struct, frozen=True):
    """The moment came before any changes, or the wait is over."""


class Failed(Struct, frozen=True):
    """The action could not be carried out."""

    error: Exception


Event: TypeAlias = Loaded | CaughtUp | HeadSeen | Arrived | Due | Failed

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
        chance: random.Random,
        snapshot: Snapshot | None = None,
        pace: Pace | None = None,
        thresholds: Thresholds | None = None,
    ) -> None:
        self.state = State.LOADING
        self.snapshot = snapshot
        self.applied: Sequence[Change] | None = ()
        self.head: Tip | None = None
        self.current_as_of: float | None = None
        self._thresholds = thresholds = thresholds or Thresholds()
        self.breakers: Mapping[Route, Breaker] = {
            route: Breaker(chance, thresholds) for route in Route
        }
        # Of its own: that the primary tells the head does not mean that a stream holds.
        self.head_breaker = Breaker(chance, thresholds)
        self._chance = chance
        self._pace = pace or Pace()
        self._route = Route.NEAR
        self._needs_base = False
        self._reopens = self._asks_head = False
        self._head_due = self._watched_since = _FIRST
        # The tip that the stream is to bring, when it was asked for, and until when.
        self._awaited: HeadSeen | None = None
        self._patience_ends = _FIRST
        # Where there is no stream, until when none is tried.
        self._polls_until: float | None = None

    def start(self, now: float) -> Action:
        """Return the first action: a base is loaded only where none was given."""
        return self._go_on(now)

    def renewed(self) -> "Refresher":
        """Return a refresher that goes on from this one's snapshot, and knows nothing else."""
        renewed = Refresher(self._chance, self.snapshot, self._pace, self._thresholds)
        renewed.state, renewed.head = State.BACKING_OFF, self.head
        return renewed

    def step(self, event: Event, now: float) -> Action:
        """Take in what came of the last action and return the next. Never raises."""
        self.applied = ()
        asked_head, self._asks_head = self._asks_head, False
        match event:
            case Failed(error):
                return self._failed(error, now) if not asked_head else self._head_failed(now)
            case Loaded(snapshot):
                return self._loaded(snapshot)
            case CaughtUp(changes):
                return self._caught_up(changes, now)
            case HeadSeen():
                return self._head_seen(event, now)
            case Arrived(changes):
                return self._arrived(changes, now)
            case Due():
                return self._due(now)

    def close(self) -> None:
        """Say that no more will be done."""
        self.state = State.CLOSED

    def _go_on(self, now: float) -> Action:
        """Return what leads to being current again, on a way that may be tried now."""
        # What replaces a snapshot has to be the primary's.
        replaces = self._needs_base and self.snapshot is not None
        retries: list[float] = []
        for route in (Route.PRIMARY,) if replaces else (Route.NEAR, Route.PRIMARY):
            breaker = self.breakers[route]
            if now >= breaker.retry_at:
                return self._go(route, now)
            retries.append(breaker.retry_at)
            if breaker.circuit(now) is Circuit.CLOSED:
                # It is not given up, only given a pause.
                break
        self.state = State.BACKING_OFF
        return Wait(min(retries))

    def _go(self, route: Route, now: float) -> Action:
        if self.snapshot is None or self._needs_base:
            self.state, self._route = State.LOADING, route
            return Load(route)
        return self._catch_up(route, reopen=self._polls_until is None or now >= self._polls_until)

    def _loaded(self, snapshot: Snapshot) -> Action:
        self.snapshot, self.applied = snapshot, None
        self._needs_base = False
        return self._catch_up(self._route, reopen=True)

    def _catch_up(self, route: Route, *, reopen: bool) -> Action:
        self.state, self._route, self._reopens = State.CATCHING_UP, route, reopen
        return CatchUp(self._held().tip, route, reopen)

    def _caught_up(self, changes: Sequence[Change], now: float) -> Action:
        try:
            self._apply(changes)
        except HistoryLostError as error:
            return self._failed(error, now)
        if self._reopens:
            self._polls_until = None
            self._watched_since = now
        elif self._polls_until is not None:
            # There is no stream that could still break.
            self.breakers[self._route].succeeded()
        return self._rest(now)

    def _rest(self, now: float) -> Action:
        """Wait for what comes; ask for the head first, where that is due."""
        polling = self._polls_until is not None
        self.state = State.POLLING if polling else State.WATCHING
        if now >= self._head_due:
            self._asks_head = True
            return AskHead()
        if polling:
            return Wait(now + self._drawn(self._pace.poll))
        until = self._head_due
        return Watch(until if self._awaited is None else min(until, self._patience_ends))

    def _arrived(self, changes: Sequence[Change], now: float) -> Action:
        # Not before: a stream that breaks whenever it is opened must be backed off from, too.
        self.breakers[self._route].succeeded()
        tip = self._held().tip
        try:
            self._apply([change for change in changes if not _known(change, tip)])
        except HistoryLostError:
            # A gap or another history: the stream alone cannot tell. The ledger can.
            return self._catch_up(self._route, reopen=False)
        return self._due(now)

    def _due(self, now: float) -> Action:
        if self.state is not State.WATCHING:
            return self._go_on(now)
        if self._awaited is not None and now >= self._patience_ends:
            # The primary has what the stream does not bring: it is cut off, or far behind.
            self._awaited = None
            self.breakers[self._route].trip(now)
            return self._catch_up(Route.PRIMARY, reopen=True)
        if now - self._watched_since >= self._pace.lag:
            self.breakers[self._route].succeeded()
        return self._rest(now)

    def _head_seen(self, seen: HeadSeen, now: float) -> Action:
        self.head_breaker.succeeded()
        self.head = seen.tip
        self._head_due = now + self._drawn(self._pace.head)
        mine = self._held().tip
        if (seen.tip.epoch, seen.tip.hash) == (mine.epoch, mine.hash):
            self.current_as_of = seen.asked
            # If it comes after all, from who is behind, it is no longer the primary's.
            self._awaited = None
            if self._route is Route.PRIMARY and now >= self.breakers[Route.NEAR].retry_at:
                # Back to who is near.
                return self._go_on(now)
            return self._rest(now)
        if seen.tip.epoch != mine.epoch or seen.tip.revision <= mine.revision:
            # Behind what I have, or of another history: the ledger tells, of the same member.
            return self._catch_up(Route.PRIMARY, reopen=True)
        if self._awaited is None or self._polls_until is not None:
            # A stream gets no more time to bring one for being asked for again.
            self._awaited, self._patience_ends = seen, now + self._pace.lag
        if self._polls_until is not None:
            return self._catch_up(self._route, reopen=False)
        return self._rest(now)

    def _head_failed(self, now: float) -> Action:
        """Go on without the primary's word; until it comes, the snapshot grows stale."""
        self.head_breaker.failed(now)
        self._head_due = max(self.head_breaker.retry_at, now + self._pace.lag)
        return self._rest(now)

    def _failed(self, error: Exception, now: float) -> Action:
        self._awaited = None
        if isinstance(error, StreamsUnavailableError) and self.snapshot is not None:
            self._polls_until = now + self._drawn(self._pace.stream)
            return self._catch_up(self._route, reopen=False)
        self.breakers[self._route].failed(now)
        if isinstance(error, HistoryLostError) and self.state is State.CATCHING_UP:
            if self._route is Route.NEAR:
                # Who lags behind what I have cannot tell that from what is lost.
                return self._catch_up(Route.PRIMARY, reopen=True)
            self._needs_base = True
        return self._go_on(now)

    def _apply(self, changes: Sequence[Change]) -> None:
        if changes:
            self.snapshot = self._held().apply(changes)
            self.applied = changes
        awaited = self._awaited
        # By its hash: another history has such a revision, too.
        if awaited is not None and any(change.tip.hash == awaited.tip.hash for change in changes):
            self.current_as_of = awaited.asked
            self._awaited = None

    def _drawn(self, seconds: float) -> float:
        # A fleet that started together must not ask together for ever.
        return seconds * self._chance.uniform(0.8, 1.2)

    def _held(self) -> Snapshot:
        assert self.snapshot is not None, "only Load is obeyed before there is a snapshot"
        return self.snapshot


def _known(change: Change, tip: Tip) -> bool:
    """Tell whether a change is one that led to this tip. Another history at its place is not."""
    if change.tip.epoch != tip.epoch or change.revision > tip.revision:
        return False
    return change.revision < tip.revision or change.tip.hash == tip.hash
