"""The simulation: clients on a replica set in bad weather, and what must hold after each step.

A discrete-event simulation on one seed: no threads, no I/O, no time but its own. `run(seed)` is a
storm of so many steps, then fair weather in which all clients must become current. What breaks a
rule is raised with its seed, which alone reproduces it.
"""

import heapq
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

from flagkit.breaker import Circuit, Thresholds
from flagkit.changes import Change, Tip
from flagkit.refresh import (
    Arrived,
    CatchUp,
    Event,
    Load,
    Loaded,
    Pace,
    Refresher,
    Route,
    State,
    Wait,
)
from flagkit.snapshot import Snapshot
from flagkit.testing import ManualClock
from flagkit.view import View
from tests.simulated_client import (
    CALL_SECONDS_MAX,
    GOOD_CALL_SECONDS_MAX,
    SimulatedClient,
)
from tests.simulated_set import KEYS, ReplicaSet
from tests.simulated_storm import Storm
from tests.simulated_stream import Weather

STORM_STEPS: Final = 470
"""How many steps a storm takes."""
PACE: Final = Pace()
THRESHOLDS: Final = Thresholds()
DRAWN_MAX: Final = 1.2
"""The longest that an interval is drawn, as a part of it."""
CALLS_A_SECOND_MAX: Final = 20
RECORDS_EVERY: Final = 8
EVALUATIONS_EVERY: Final = 64
"""One in so many snapshots is looked at in full, and evaluated."""

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


class Story(Struct):
    """What happened."""

    steps: int = 0
    seconds: float = 0.0
    converged_seconds: float = 0.0
    settled_seconds: float = 0.0
    faults: Counter[str] = msgspec.field(default_factory=Counter)


def run(seed: int) -> Story:
    """Simulate one seed.

    Raises:
        BrokenRuleError: a rule did not hold.
    """
    return Simulation(seed).run()


class Simulation:
    """One world: its clock, what is to happen in it, and the rules."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.chance = chance = random.Random(seed)
        self.now = 0.0
        self.story = Story()
        self.faults = self.story.faults
        # What the clock on the wall says. Nothing but evaluations may depend on it.
        self.clock = ManualClock()
        self.weather = Weather()
        self.members = ReplicaSet(chance, self.clock())
        self.clients = [
            SimulatedClient(self, number, region="eu" if number % 2 else "*")
            for number in range(chance.randint(2, 6))
        ]
        self._storm = Storm(self)
        self._happenings: list[
            tuple[float, int, SimulatedClient | None, Callable[..., None], tuple[Any, ...]]
        ] = []
        self._happening_count = 0
        self._views: dict[int, View] = {}
        self._as_of: dict[int, float | None] = {}
        self._snapshots: list[Snapshot] = []

    def run(self) -> Story:
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
            self._check_records(client)
            self._check_evaluations(client)
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
        self._as_of[client.number] = None
        if snapshot is not None:
            self._views[client.number] = View(snapshot, self._seconds)
        client.start(Refresher(self.chance, snapshot, PACE, THRESHOLDS))

    def some_snapshot(self, region: str) -> Snapshot | None:
        """Return one that a client of a region has had."""
        found = [snapshot for snapshot in self._snapshots if snapshot.region == region]
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
                    raise self._broken(client, f"{self.now - since:.0f} s later it {lack}")

    def _lacks_currency(self, client: SimulatedClient, since: float) -> str:
        refresher, head = client.refresher, self.members.head
        if refresher.snapshot is None or refresher.snapshot.tip != head.tip:
            return f"is not at revision {head.revision}"
        as_of = refresher.current_as_of
        return "" if as_of is not None and as_of >= since else "does not know that it is current"

    def _is_unsettled(self, client: SimulatedClient, _: float) -> str:
        refresher = client.refresher
        if refresher.state not in (State.WATCHING, State.POLLING):
            return f"is {refresher.state}"
        if refresher._route is not Route.NEAR:
            return "is not back with who is near"
        for breaker in (refresher.breakers[Route.NEAR], refresher.head_breaker):
            if breaker.circuit(self.now) is not Circuit.CLOSED:
                return "has a breaker that is not closed"
        return ""

    # The rules

    def judge(self, client: SimulatedClient, event: Event, before: Snapshot | None) -> None:
        """Look whether a client may be where a step has led it.

        Raises:
            BrokenRuleError: it may not.
        """
        self.story.steps += 1
        refresher = client.refresher
        after, applied = refresher.snapshot, refresher.applied
        self._check_pace(client)
        if isinstance(event, Arrived):
            assert before is not None
            self._check_arrived(client, event.changes, before.tip)
        if applied is None:
            self._check_base(client, event, before)
        elif after is not before or applied:
            self._check_applied(client, before, applied)
        if applied is None or applied:
            self._look(client, applied)
        self._check_currency(client, event)

    def _check_pace(self, client: SimulatedClient) -> None:
        """Nothing is tried in a tight loop, nor what an open breaker keeps from being tried."""
        action, calls = client.action, client.calls
        if isinstance(action, Wait) and action.until < self.now:
            raise self._broken(client, "it waits for what is past")
        if isinstance(action, Load | CatchUp):
            breaker = client.refresher.breakers[action.route]
            # A loss that who is near told, or what was heard of the head, is asked of the primary.
            waited = isinstance(client.recalled[-2][2], Wait)
            is_open = breaker.circuit(self.now) is Circuit.OPEN
            if is_open and (waited or action.route is Route.NEAR):
                raise self._broken(client, f"it goes to {action.route} past an open breaker")
            recent = len(calls) > CALLS_A_SECOND_MAX and calls[-CALLS_A_SECOND_MAX - 1]
            if recent and recent > self.now - 1.0:
                raise self._broken(client, f"over {CALLS_A_SECOND_MAX} calls within a second")
        for breaker in (*client.refresher.breakers.values(), client.refresher.head_breaker):
            longest = max(THRESHOLDS.max_seconds, THRESHOLDS.lag_seconds)
            if breaker.retry_at > self.now + longest:
                raise self._broken(client, "a breaker waits for too long")

    def _check_arrived(self, client: SimulatedClient, changes: Sequence[Change], mine: Tip) -> None:
        """What is known is dropped, what continues is applied, any doubt ends at the ledger."""
        fresh = [
            change
            for change in changes
            if change.tip.epoch != mine.epoch
            or change.revision > mine.revision
            or (change.revision == mine.revision and change.tip.hash != mine.hash)
        ]
        tip = mine
        for change in fresh:
            if change.previous_hash != tip.hash or not self._is_genuine(change):
                fresh, doubt = [], True
                break
            tip = change.tip
        else:
            doubt = False
        action, applied = client.action, client.refresher.applied
        asks_ledger = isinstance(action, CatchUp) and not action.reopen
        if applied is None or [*applied] != fresh or asks_ledger != doubt:
            raise self._broken(client, f"what arrived was {'' if doubt else 'not '}to be doubted")

    def _check_base(self, client: SimulatedClient, event: Event, before: Snapshot | None) -> None:
        """A snapshot is replaced where the primary's ledger does not lead on from it, only."""
        after, read_of = client.refresher.snapshot, client.loaded_of
        assert after is not None
        if not isinstance(event, Loaded) or after is not event.snapshot:
            raise self._broken(client, "a new base is not what was loaded")
        if before is None:
            return
        verdict = client.verdict
        if verdict is None or verdict.reaches_back_to(before.tip):
            raise self._broken(client, "a base was replaced that nothing was wrong with")
        falls = after.tip.epoch == before.tip.epoch and after.tip.revision < before.tip.revision
        if falls and (read_of is None or read_of.has(before.tip)):
            raise self._broken(client, "the revision fell, and the true history has what it had")

    def _check_applied(
        self, client: SimulatedClient, before: Snapshot | None, applied: Sequence[Change]
    ) -> None:
        """Revisions are applied in order, without a gap, and only what a majority has."""
        after = client.refresher.snapshot
        if before is None or after is None:
            raise self._broken(client, "changes were applied to nothing")
        tip = before.tip
        for change in applied:
            if change.revision != tip.revision + 1 or change.previous_hash != tip.hash:
                raise self._broken(client, f"revision {change.revision} was applied out of order")
            if not self._is_genuine(change):
                raise self._broken(client, f"revision {change.revision} is not what was written")
            tip = change.tip
        if after.tip != tip:
            raise self._broken(client, "the snapshot is not where the changes lead")

    def _is_genuine(self, change: Change) -> bool:
        """Tell whether a change is just as it was written, and a majority has or had it."""
        branch = self.members.branch_of.get(change.tip.hash)
        pending = self.members.log[self.members.committed :]
        return (
            branch is not None
            and branch.changes[change.revision - 1] is change
            and all(entry.change is not change for entry in pending)
        )

    def _look(self, client: SimulatedClient, applied: Sequence[Change] | None) -> None:
        """Publish as the thread does; look at some snapshots in full."""
        snapshot, view = client.refresher.snapshot, self._views.get(client.number)
        assert snapshot is not None
        anew = applied is None or view is None
        self._views[client.number] = (
            View(snapshot, self._seconds) if anew else view.after(snapshot, applied)  # type: ignore[union-attr, arg-type]
        )
        if anew or self.chance.random() * RECORDS_EVERY < 1:
            self._check_records(client)
            self._snapshots.append(snapshot)
        if self.chance.random() * EVALUATIONS_EVERY < 1:
            self._check_evaluations(client)

    def _check_records(self, client: SimulatedClient) -> None:
        """A snapshot is what its revision says, record by record."""
        snapshot = client.refresher.snapshot
        assert snapshot is not None
        tip = snapshot.tip
        branch = self.members.branch_of.get(tip.hash)
        if branch is None:
            raise self._broken(client, f"revision {tip.revision} is none that was committed")
        wanted = {
            policy: (state.version, state.hash)
            for policy, state in branch.states[tip.revision].items()
            if policy[0] in ("*", "@segments", client.region)
        }
        if {record.id: (record.version, record.hash) for record in snapshot.records()} != wanted:
            raise self._broken(client, f"it does not hold what revision {tip.revision} is")
        if snapshot.parts_missing:
            raise self._broken(client, "members of segments are missing")

    def _check_evaluations(self, client: SimulatedClient) -> None:
        """A view that is carried on answers as one made anew."""
        snapshot, view = client.refresher.snapshot, self._views[client.number]
        assert snapshot is not None
        fresh = View(snapshot, self._seconds)
        for key in KEYS:
            for user in ("ada", "eve"):
                answer = view.evaluate(key, user, 0)
                if answer != fresh.evaluate(key, user, 0):
                    raise self._broken(client, f"{key} is {answer} for {user}")

    def _check_currency(self, client: SimulatedClient, event: Event) -> None:
        """A client that says it was current at a moment had all that a majority had by then."""
        as_of, before = client.refresher.current_as_of, self._as_of[client.number]
        if as_of is None or as_of == before:
            return
        self._as_of[client.number] = as_of
        if isinstance(event, Arrived) and not event.changes:
            raise self._broken(client, "a silent stream made it current")
        if before is not None and as_of < before:
            raise self._broken(client, "it was current later, before")
        snapshot = client.refresher.snapshot
        assert snapshot is not None
        branch = self.members.branch_of[snapshot.tip.hash]
        # Of a history that only goes on, who has a later head has the one of then; and who asks a
        # primary that others have replaced hears what was true when they did.
        heads = [self.members.head_at(as_of), *self.members.since(as_of)]
        heads += [
            spell.entry for spell in self.members.deposed if spell.since <= as_of <= spell.until
        ]
        if not any(branch.has(head.tip, snapshot.tip.revision) for head in heads):
            raise self._broken(
                client,
                f"it says it was current at {as_of:.3f}, and has not got"
                f" revision {heads[0].revision} of then",
            )

    def _broken(self, client: SimulatedClient, rule: str) -> BrokenRuleError:
        return BrokenRuleError(
            f"seed {self.seed}, step {self.story.steps}, client {client.number}: {rule}\n"
            f"{client.describe()}\n"
            f"SIMULATION_SEED={self.seed} pytest tests/test_simulation.py shows it again"
        )

    def _seconds(self) -> float:
        return self.clock().timestamp()
