"""The simulation: clients on a replica set in bad weather, and what must hold after each step.

A discrete-event simulation on one seed: no threads, no I/O, no time but its own. `run(seed)` is a
storm of so many steps, then fair weather in which all clients must become current. What breaks a
rule is raised with its seed, which alone reproduces it.
"""

import heapq
import random
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import Struct

from flagkit._core.snapshot import Snapshot
from flagkit._core.source import Route
from flagkit.client.refresher import BreakerState, Event, Refresher, RefreshIntervals, RefreshState
from flagkit.testing import ManualClock
from tests.support.simulation.client import CALL_SECONDS_MAX, GOOD_CALL_SECONDS_MAX, SimulatedClient
from tests.support.simulation.faults import Storm
from tests.support.simulation.invariants import THRESHOLDS, InvariantChecker
from tests.support.simulation.replica_set import SimulatedReplicaSet
from tests.support.simulation.stream import FaultRates

STORM_STEPS: Final = 470
"""How many steps a storm takes."""
PACE: Final = RefreshIntervals()
BRISK: Final = RefreshIntervals(head=1.0, lag=1.0, poll=1.0)
"""As clients have it that are told to be hardly ever stale: one seed in four."""
DRAWN_MAX: Final = 1.2
"""The longest that an interval is drawn, as a part of it."""
CONVERGED_SECONDS_MAX: Final = (
    # A call that hangs; the wait for a way that was behind; the head, asked for late; what it told,
    # awaited in vain; the wait before a new base; and the head once more.
    CALL_SECONDS_MAX
    + THRESHOLDS.lag_seconds
    + THRESHOLDS.max_seconds
    + PACE.lag
    + THRESHOLDS.max_seconds
    + PACE.head * DRAWN_MAX
    + 10 * GOOD_CALL_SECONDS_MAX
)
"""So long after the last fault every client is current."""
SETTLED_SECONDS_MAX: Final = (
    THRESHOLDS.lag_seconds + 2 * PACE.head * DRAWN_MAX + PACE.lag + 10 * GOOD_CALL_SECONDS_MAX
)
"""So long after that every client is back with who is near, and its breakers are closed."""


class BrokenRuleError(AssertionError):
    """A rule that did not hold, with the seed and the last steps of the client."""


class SimulationReport(Struct):
    """What happened."""

    steps: int = 0
    seconds: float = 0.0
    converged_seconds: float = 0.0
    settled_seconds: float = 0.0
    faults: Counter[str] = msgspec.field(default_factory=Counter)


def run_simulation(seed: int) -> SimulationReport:
    """Simulate one seed.

    Raises:
        BrokenRuleError: a rule did not hold.
    """
    return Simulation(seed).run()


class Simulation:
    """One world: its time, what is to happen in it, and the rules."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.chance = chance = random.Random(seed)
        self.now = 0.0
        self.story = SimulationReport()
        self.faults = self.story.faults
        # What the clock on the wall says. Nothing but evaluations may depend on it.
        self.clock = ManualClock()
        self.weather = FaultRates()
        self.members = SimulatedReplicaSet(chance, self.clock())
        self.pace = BRISK if seed % 4 == 3 else PACE
        self.clients = [
            SimulatedClient(self, number, region="eu" if number % 2 else "*")
            for number in range(chance.randint(2, 6))
        ]
        self._storm = Storm(self)
        self._happenings: list[
            tuple[float, int, SimulatedClient | None, Callable[..., None], tuple[Any, ...]]
        ] = []
        self._happening_count = 0
        self._rules = InvariantChecker(self)

    def run(self) -> SimulationReport:
        """Let the storm pass, and see all clients become current."""
        story = self.story
        for client in self.clients:
            self.begin(client, None)
        self._storm.begin()
        while story.steps < STORM_STEPS:
            self._happen()
        healed_at = self._storm.end()
        self._await(healed_at, CONVERGED_SECONDS_MAX, self._lacks_currency)
        story.converged_seconds = max(self.now - healed_at, 0.0)
        converged_at = self.now
        self._await(converged_at, SETTLED_SECONDS_MAX, self._is_unsettled)
        story.settled_seconds = self.now - converged_at
        for client in self.clients:
            self._rules.check_in_full(client)
        story.seconds = self.now
        return story

    # What happens

    def at(
        self,
        time: float,
        happen: Callable[..., None],
        *arguments: Any,
        of: SimulatedClient | None = None,
    ) -> None:
        """Have something happen at a time; to a client, not before it is awake."""
        self._happening_count += 1
        heapq.heappush(self._happenings, (time, self._happening_count, of, happen, arguments))

    def begin(self, client: SimulatedClient, snapshot: Snapshot | None) -> None:
        """Start a client, or start it anew, with what was in its file."""
        self._rules.begin(client, snapshot)
        client.start(Refresher(self.chance, snapshot, self.pace, THRESHOLDS))

    def some_snapshot(self, region: str) -> Snapshot | None:
        """Return one that a client of a region has had."""
        found = [snapshot for snapshot in self._rules.snapshots if snapshot.region == region]
        return self.chance.choice(found) if found else None

    def _happen(self) -> None:
        time, _, client, happen, arguments = heapq.heappop(self._happenings)
        if client is not None and time < client.asleep_until:
            self.at(client.asleep_until, happen, *arguments, of=client)
            return
        self.clock.advance(time - self.now)
        self.now = time
        happen(*arguments)

    def _await(
        self, since: float, seconds_max: float, lacks: Callable[[SimulatedClient, float], str]
    ) -> None:
        """Go on until no client lacks anything."""
        for client in self.clients:
            while lack := lacks(client, since):
                self._happen()
                if self.now > since + seconds_max:
                    raise self.broken(client, f"{self.now - since:.0f} s later it {lack}")

    def _lacks_currency(self, client: SimulatedClient, since: float) -> str:
        refresher, head = client.refresher, self.members.head
        if refresher.snapshot is None or refresher.snapshot.tip != head.tip:
            return f"is not at revision {head.revision}"
        as_of = refresher.current_as_of
        return "" if as_of is not None and as_of >= since else "does not know that it is current"

    def _is_unsettled(self, client: SimulatedClient, _: float) -> str:
        refresher = client.refresher
        if refresher.state not in (RefreshState.WATCHING, RefreshState.POLLING):
            return f"is {refresher.state}"
        if refresher._route is not Route.NEAREST:
            return "is not back with who is near"
        for breaker in (refresher.breakers[Route.NEAREST], refresher.head_breaker):
            if breaker.get_state(self.now) is not BreakerState.CLOSED:
                return "has a breaker that is not closed"
        return ""

    def judge(self, client: SimulatedClient, event: Event, before: Snapshot | None) -> None:
        """Look whether a client may be where a step has led it.

        Raises:
            BrokenRuleError: it may not.
        """
        self.story.steps += 1
        self._rules.judge(client, event, before)

    def broken(self, client: SimulatedClient, rule: str) -> BrokenRuleError:
        """Return what to raise about a client that broke a rule."""
        steps = "\n".join(map(str, client.steps))
        return BrokenRuleError(
            f"seed {self.seed}, step {self.story.steps}, client {client.number}: {rule}\n"
            f"{steps}\n"
            f"SIMULATION_SEED={self.seed} pytest tests/client/test_simulation.py shows it again"
        )
