"""The simulation: no rule breaks in any weather, and what is broken on purpose is found.

`SIMULATION_SEED=7 pytest tests/client/test_simulation.py` runs that seed alone.
`python -m tests.soak simulation` runs two thousand seeds.
"""

import os
from collections.abc import Callable, Sequence

import pytest
from msgspec.structs import replace

from flagkit._core.model.changes import Change, Tip
from flagkit._core.source import Route
from flagkit.client import refresher
from flagkit.client.refresher import Action, Breaker, HeadRead, Refresher, RefreshState
from flagkit.errors import HistoryLostError
from tests.support.simulation import run
from tests.support.simulation.client import Answer, SimulatedClient
from tests.support.simulation.replica_set import SimulatedMember, SimulatedReplicaSet
from tests.support.simulation.run import BrokenRuleError, run_simulation

# Fifty; the first one since few others tell an awaited head from another of its number.
SEEDS = (186, *range(49))
ONE = os.environ.get("SIMULATION_SEED")


@pytest.mark.parametrize("seed", SEEDS if ONE is None else (int(ONE),))
def test_no_weather_breaks_a_rule_and_all_clients_become_current(seed: int) -> None:
    run_simulation(seed)


def test_a_seed_alone_tells_all_that_happens() -> None:
    assert run_simulation(3) == run_simulation(3) != run_simulation(4)


# What is broken on purpose


def without_the_gap_check(patch: pytest.MonkeyPatch) -> None:
    def continues(self: Change, tip: Tip) -> bool:
        return self.tip.epoch == tip.epoch and self.is_intact

    patch.setattr(Change, "continues", continues)


def by_the_revision_alone(patch: pytest.MonkeyPatch) -> None:
    def continues(self: Change, tip: Tip) -> bool:
        return (self.tip.epoch, self.revision) == (tip.epoch, tip.revision + 1) and self.is_intact

    patch.setattr(Change, "continues", continues)


def without_the_seal(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Change, "is_intact", True)


def without_the_duplicate_check(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(refresher, "_is_known", lambda *_: False)


def with_silence_as_current(patch: pytest.MonkeyPatch) -> None:
    class Trusting(Refresher):
        def _on_changes(self, changes: Sequence[Change], now: float) -> Action:
            if not changes:
                self.current_as_of = now
            return super()._on_changes(changes, now)

    patch.setattr(run, "Refresher", Trusting)


def with_the_head_of_who_is_near(patch: pytest.MonkeyPatch) -> None:
    ask = SimulatedClient._ask

    def ask_near(self: SimulatedClient, route: Route, answer: Answer) -> None:
        ask(self, Route.NEAREST if answer == self._head else route, answer)

    patch.setattr(SimulatedClient, "_ask", ask_near)


def with_the_heads_revision_alone(patch: pytest.MonkeyPatch) -> None:
    class Careless(Refresher):
        def _on_head(self, seen: HeadRead, now: float) -> Action:
            mine = self._get_snapshot().tip
            if seen.tip.revision == mine.revision:
                seen = replace(seen, tip=mine)
            return super()._on_head(seen, now)

    patch.setattr(run, "Refresher", Careless)


def with_the_awaited_revision_alone(patch: pytest.MonkeyPatch) -> None:
    class Careless(Refresher):
        def _apply(self, changes: Sequence[Change]) -> None:
            awaited = self._expected_head
            super()._apply(changes)
            if awaited is not None and self._get_snapshot().tip.revision >= awaited.tip.revision:
                self.current_as_of = awaited.asked_at

    patch.setattr(run, "Refresher", Careless)


def with_a_loss_that_who_is_near_told(patch: pytest.MonkeyPatch) -> None:
    class Hasty(Refresher):
        def _on_failure(self, error: Exception, now: float) -> Action:
            if isinstance(error, HistoryLostError) and self.state is RefreshState.CATCHING_UP:
                self._route = Route.PRIMARY
            return super()._on_failure(error, now)

    patch.setattr(run, "Refresher", Hasty)


def with_endless_patience(patch: pytest.MonkeyPatch) -> None:
    class Patient(Refresher):
        def _on_timer(self, now: float) -> Action:
            self._expected_head = None
            return super()._on_timer(now)

    patch.setattr(run, "Refresher", Patient)


def with_patience_begun_anew(patch: pytest.MonkeyPatch) -> None:
    class Patient(Refresher):
        def _on_head(self, seen: HeadRead, now: float) -> Action:
            self._expected_head = None
            return super()._on_head(seen, now)

    patch.setattr(run, "Refresher", Patient)


def without_backing_off(patch: pytest.MonkeyPatch) -> None:
    def failed(self: Breaker, now: float) -> None:
        self.retry_at = now

    patch.setattr(Breaker, "record_failure", failed)


def with_what_no_majority_has(patch: pytest.MonkeyPatch) -> None:
    position = SimulatedReplicaSet.position

    def newest(self: SimulatedReplicaSet, member: SimulatedMember, now: float) -> int:
        return len(self.log) if member is self.primary else position(self, member, now)

    patch.setattr(SimulatedReplicaSet, "position", newest)


@pytest.mark.parametrize(
    "break_it",
    [
        without_the_gap_check,
        by_the_revision_alone,
        without_the_seal,
        without_the_duplicate_check,
        with_silence_as_current,
        with_the_head_of_who_is_near,
        with_the_heads_revision_alone,
        with_the_awaited_revision_alone,
        with_a_loss_that_who_is_near_told,
        with_endless_patience,
        with_patience_begun_anew,
        without_backing_off,
        with_what_no_majority_has,
    ],
)
def test_what_is_broken_on_purpose_is_found(
    monkeypatch: pytest.MonkeyPatch, break_it: Callable[[pytest.MonkeyPatch], None]
) -> None:
    break_it(monkeypatch)
    with pytest.raises(BrokenRuleError, match="SIMULATION_SEED="):
        _run_all()


def _run_all() -> None:
    for seed in SEEDS:
        run_simulation(seed)
