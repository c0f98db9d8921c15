"""The rules of the simulation: what must hold of a client after each of its steps.

They know all that the client cannot: what was written, what a majority had at any moment, and what
the primary's ledger said.
"""

from collections.abc import Sequence
from typing import Final, Protocol

from flagkit._core.evaluation.evaluator import Evaluator
from flagkit._core.model.changes import Change, Tip
from flagkit._core.snapshot import Snapshot
from flagkit._core.source import Route
from flagkit.client.refresher import (
    BreakerState,
    CatchUp,
    ChangesReceived,
    Event,
    HeadRead,
    Load,
    LoadDone,
    RefreshIntervals,
    Thresholds,
    Wait,
    Watch,
)
from flagkit.testing import ManualClock
from tests.support.simulation.client import STEPS_KEPT, ClientWorld, SimulatedClient
from tests.support.simulation.replica_set import KEYS

THRESHOLDS: Final = Thresholds()
CALLS_A_SECOND_MAX: Final = 20
"""How often a client asks within a second, whatever arrives or fails."""
RECORDS_EVERY: Final = 8
EVALUATIONS_EVERY: Final = 64
"""One in so many snapshots is looked at in full, and evaluated."""


class RulesWorld(ClientWorld, Protocol):
    """What the rules are of."""

    clock: ManualClock
    pace: RefreshIntervals


class InvariantChecker:
    """What is remembered of each client, and the rules. What breaks one, the world tells."""

    def __init__(self, world: RulesWorld) -> None:
        self._world = world
        self.snapshots: list[Snapshot] = []
        """Some of those that clients have had."""
        self._views: dict[int, Evaluator] = {}
        self._as_of: dict[int, float | None] = {}
        # Since when it knows of a head that it has not got.
        self._behind: dict[int, HeadRead] = {}

    def begin(self, client: SimulatedClient, snapshot: Snapshot | None) -> None:
        """Forget what a client was before, for it begins with this."""
        self._as_of[client.number] = None
        self._behind.pop(client.number, None)
        self._views.pop(client.number, None)
        if snapshot is not None:
            self._views[client.number] = Evaluator(snapshot, self._seconds)

    def check_in_full(self, client: SimulatedClient) -> None:
        """Look at all that a client has.

        Raises:
            BrokenRuleError: it should not have it.
        """
        self._check_records(client)
        self._check_evaluations(client)

    def judge(self, client: SimulatedClient, event: Event, before: Snapshot | None) -> None:
        """Look whether a client may be where a step has led it.

        Raises:
            BrokenRuleError: it may not.
        """
        refresher = client.refresher
        after, applied = refresher.snapshot, refresher.applied
        self._check_pace(client)
        if isinstance(event, ChangesReceived):
            assert before is not None
            self._check_arrived(client, event.changes, before.tip)
        if applied is None:
            self._check_base(client, event, before)
        elif after is not before or applied:
            self._check_applied(client, before, applied)
        if applied is None or applied:
            self._look(client, applied)
        self._check_currency(client, event)
        self._check_patience(client, event)

    def _check_pace(self, client: SimulatedClient) -> None:
        """Nothing is tried in a tight loop, nor what an open breaker keeps from being tried."""
        action, calls = client.action, client.calls
        if isinstance(action, Wait) and action.until < self._world.now:
            raise self._world.broken(client, "it waits for what is past")
        if len(client.steps) == STEPS_KEPT and client.steps[0].time == self._world.now:
            raise self._world.broken(client, f"{STEPS_KEPT} steps in one moment")
        if isinstance(action, Load | CatchUp):
            breaker = client.refresher.breakers[action.route]
            # A loss that who is near told, or what was heard of the head, is asked of the primary.
            waited = isinstance(client.steps[-2].action, Wait)
            is_open = breaker.get_state(self._world.now) is BreakerState.OPEN
            if is_open and (waited or action.route is Route.NEAREST):
                raise self._world.broken(client, f"it goes to {action.route} past an open breaker")
            if (
                len(calls) > CALLS_A_SECOND_MAX
                and calls[-CALLS_A_SECOND_MAX - 1] > self._world.now - 1.0
            ):
                raise self._world.broken(client, f"over {CALLS_A_SECOND_MAX} calls within a second")
        for breaker in (*client.refresher.breakers.values(), client.refresher.head_breaker):
            longest = max(THRESHOLDS.max_seconds, THRESHOLDS.lag_seconds)
            if breaker.retry_at > self._world.now + longest:
                raise self._world.broken(client, "a breaker waits for too long")

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
            raise self._world.broken(
                client, f"what arrived was {'' if doubt else 'not '}to be doubted"
            )

    def _check_base(self, client: SimulatedClient, event: Event, before: Snapshot | None) -> None:
        """A snapshot is replaced where the primary's ledger does not lead on from it, only."""
        after, read_of = client.refresher.snapshot, client.loaded_of
        assert after is not None
        if not isinstance(event, LoadDone) or after is not event.snapshot:
            raise self._world.broken(client, "a new base is not what was loaded")
        if before is None:
            return
        verdict = client.verdict
        if verdict is None or verdict.reaches_back_to(before.tip):
            raise self._world.broken(client, "a base was replaced that nothing was wrong with")
        goes_on = after.tip.epoch == before.tip.epoch and after.tip.revision >= before.tip.revision
        if not goes_on and (read_of is None or read_of.has(before.tip)):
            raise self._world.broken(
                client, "the revision fell, and the true history has what it had"
            )

    def _check_applied(
        self, client: SimulatedClient, before: Snapshot | None, applied: Sequence[Change]
    ) -> None:
        """Revisions are applied in order, without a gap, and only what a majority has."""
        after = client.refresher.snapshot
        if before is None or after is None:
            raise self._world.broken(client, "changes were applied to nothing")
        tip = before.tip
        for change in applied:
            if change.revision != tip.revision + 1 or change.previous_hash != tip.hash:
                raise self._world.broken(
                    client, f"revision {change.revision} was applied out of order"
                )
            if not self._is_genuine(change):
                raise self._world.broken(
                    client, f"revision {change.revision} is not what was written"
                )
            tip = change.tip
        if after.tip != tip:
            raise self._world.broken(client, "the snapshot is not where the changes lead")

    def _is_genuine(self, change: Change) -> bool:
        """Tell whether a change is just as it was written, and a majority has or had it."""
        branch = self._world.members.branch_of.get(change.tip.hash)
        pending = self._world.members.log[self._world.members.committed :]
        return (
            branch is not None
            and branch.changes[change.revision - 1] is change
            and all(entry.change is not change for entry in pending)
        )

    def _look(self, client: SimulatedClient, applied: Sequence[Change] | None) -> None:
        """Publish as the thread does; look at some snapshots in full."""
        snapshot, view = client.refresher.snapshot, self._views.get(client.number)
        assert snapshot is not None
        if view is None or applied is None:
            view = Evaluator(snapshot, self._seconds)
        else:
            view = view.advance(snapshot, applied)
        self._views[client.number] = view
        if applied is None or self._world.chance.random() * RECORDS_EVERY < 1:
            self._check_records(client)
            self.snapshots.append(snapshot)
        if self._world.chance.random() * EVALUATIONS_EVERY < 1:
            self._check_evaluations(client)

    def _check_records(self, client: SimulatedClient) -> None:
        """A snapshot is what its revision says, record by record."""
        snapshot = client.refresher.snapshot
        assert snapshot is not None
        tip = snapshot.tip
        branch = self._world.members.branch_of.get(tip.hash)
        if branch is None:
            raise self._world.broken(client, f"revision {tip.revision} is none that was committed")
        wanted = {
            policy: (state.version, state.hash)
            for policy, state in branch.states[tip.revision].items()
            if policy[0] in ("*", "@segments", client.region)
        }
        if {
            record.id: (record.version, record.hash) for record in snapshot.iter_records()
        } != wanted:
            raise self._world.broken(client, f"it does not hold what revision {tip.revision} is")
        if snapshot.has_missing_parts:
            raise self._world.broken(client, "members of segments are missing")

    def _check_evaluations(self, client: SimulatedClient) -> None:
        """A view that is carried on answers as one made anew."""
        snapshot, view = client.refresher.snapshot, self._views[client.number]
        assert snapshot is not None
        fresh = Evaluator(snapshot, self._seconds)
        for key in KEYS:
            for user in ("ada", "eve"):
                answer = view.evaluate(key, user, 0)
                if answer != fresh.evaluate(key, user, 0):
                    raise self._world.broken(client, f"{key} is {answer} for {user}")

    def _check_currency(self, client: SimulatedClient, event: Event) -> None:
        """A client that says it was current at a moment had all that a majority had by then."""
        as_of, before = client.refresher.current_as_of, self._as_of[client.number]
        if as_of is None or as_of == before:
            return
        self._as_of[client.number] = as_of
        if isinstance(event, ChangesReceived) and not event.changes:
            raise self._world.broken(client, "a silent stream made it current")
        if before is not None and as_of < before:
            raise self._world.broken(client, "it was current later, before")
        snapshot = client.refresher.snapshot
        assert snapshot is not None
        branch = self._world.members.branch_of[snapshot.tip.hash]
        # Of a history that only goes on, who has a later head has the one of then; and who asks a
        # primary that others have replaced hears what was true when they did.
        heads = [self._world.members.head_at(as_of), *self._world.members.since(as_of)]
        heads += [
            spell.entry
            for spell in self._world.members.deposed
            if spell.since <= as_of <= spell.until
        ]
        if not any(branch.has(head.tip, snapshot.tip.revision) for head in heads):
            raise self._world.broken(
                client,
                f"it says it was current at {as_of:.3f}, and has not got"
                f" revision {heads[0].revision} of then",
            )

    def _check_patience(self, client: SimulatedClient, event: Event) -> None:
        """A stream is not trusted for longer than `lag` to bring what the primary has."""
        behind, number, action = self._behind, client.number, client.action
        snapshot = client.refresher.snapshot
        if isinstance(event, HeadRead):
            assert snapshot is not None
            if event.tip == snapshot.tip:
                # What it told before, if anything, was taken back by a restore.
                behind.pop(number, None)
            else:
                behind.setdefault(number, HeadRead(event.tip, self._world.now))
        if number not in behind:
            return
        assert snapshot is not None
        seen = behind[number]
        has_it = self._world.members.branch_of[snapshot.tip.hash].has(
            seen.tip, snapshot.tip.revision
        )
        if has_it or isinstance(action, Load | CatchUp | Wait):
            del behind[number]
        elif isinstance(action, Watch) and action.until > max(
            seen.asked_at + self._world.pace.lag, self._world.now
        ):
            raise self._world.broken(client, "it trusts a stream that does not bring the head")

    def _seconds(self) -> float:
        return self._world.clock().timestamp()
