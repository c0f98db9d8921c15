"""The refresher, by events alone: what arrives, what fails, and what it does about it."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from flagkit.changes import Change, PolicyChange, next_change
from flagkit.errors import HistoryLostError, StoreUnavailableError
from flagkit.refresh import (
    BACKOFF_FIRST_SECONDS,
    BACKOFF_MAX_SECONDS,
    Action,
    Arrived,
    CatchUp,
    CaughtUp,
    Event,
    Failed,
    Load,
    Loaded,
    Refresher,
    State,
    Wait,
    Waited,
    Watch,
)
from flagkit.snapshot import Snapshot, build
from flagkit.testing import MemoryHistory

UNAVAILABLE = Failed(StoreUnavailableError("no primary"))
LOST = Failed(HistoryLostError("pruned"))


class Longest(random.Random):
    """Chance that always draws the longest wait."""

    def uniform(self, a: float, b: float) -> float:  # noqa: ARG002 - the least is not of interest
        return b


def history_of(count: int) -> MemoryHistory:
    history = MemoryHistory()
    for i in range(count):
        document: dict[str, Any] = {
            "key": f"f{i % 3}",
            "variants": {"a": i},
            "fallthrough": {"serve": "a"},
        }
        history.commit(document)
    return history


def base(history: MemoryHistory, revision: int) -> Snapshot:
    tip = history.tip_at(revision)
    return build(tip, "*", history.states_at(tip).values())


def watching(history: MemoryHistory, revision: int) -> Refresher:
    """Return a refresher that has loaded a revision and watches."""
    refresher = Refresher(Longest())
    assert refresher.start() == Load()
    snapshot = base(history, revision)
    assert refresher.step(Loaded(snapshot)) == CatchUp(snapshot.tip, reopen=True)
    assert refresher.step(CaughtUp(())) == Watch()
    return refresher


def revision_of(refresher: Refresher) -> int:
    assert refresher.snapshot is not None
    return refresher.snapshot.tip.revision


# The way in


def test_it_loads_then_opens_the_stream_then_catches_up_then_watches() -> None:
    history = history_of(5)
    refresher = Refresher(random.Random(1))
    assert (refresher.start(), refresher.state) == (Load(), State.LOADING)
    snapshot = base(history, 3)
    assert refresher.step(Loaded(snapshot)) == CatchUp(history.tip_at(3), reopen=True)
    assert (refresher.state, refresher.snapshot) == (State.CATCHING_UP, snapshot)
    assert refresher.applied is None
    assert refresher.step(CaughtUp(history.changes[3:])) == Watch()
    assert (refresher.state, revision_of(refresher)) == (State.WATCHING, 5)
    assert refresher.applied == history.changes[3:]


def test_what_arrives_in_order_is_applied() -> None:
    history = history_of(5)
    refresher = watching(history, 2)
    for batch in (history.changes[2:3], history.changes[3:5]):
        assert refresher.step(Arrived(batch)) == Watch()
        assert refresher.applied == batch
    assert refresher.snapshot is not None
    assert set(refresher.snapshot.records()) == set(base(history, 5).records())


# Doubt


def test_a_gap_leads_to_the_ledger() -> None:
    history = history_of(5)
    refresher = watching(history, 2)
    assert refresher.step(Arrived([history.changes[3]])) == CatchUp(history.tip_at(2), reopen=False)
    assert (revision_of(refresher), refresher.applied) == (2, ())
    assert refresher.step(CaughtUp(history.changes[2:])) == Watch()
    assert revision_of(refresher) == 5


def test_a_gap_within_a_batch_applies_none_of_it() -> None:
    history = history_of(5)
    refresher = watching(history, 1)
    batch = [history.changes[1], history.changes[3]]
    assert refresher.step(Arrived(batch)) == CatchUp(history.tip_at(1), reopen=False)
    assert revision_of(refresher) == 1


def test_duplicates_are_dropped() -> None:
    history = history_of(4)
    refresher = watching(history, 3)
    assert refresher.step(Arrived(history.changes[:3])) == Watch()
    assert (revision_of(refresher), refresher.applied) == (3, ())
    assert refresher.step(Arrived(history.changes)) == Watch()
    assert (revision_of(refresher), refresher.applied) == (4, history.changes[3:])


def test_another_hash_at_my_revision_leads_to_the_ledger() -> None:
    history = history_of(3)
    refresher = watching(history, 3)
    fork = next_change(history.tip_at(2), "fork", history.tip.time, [])
    assert refresher.step(Arrived([fork])) == CatchUp(history.tip_at(3), reopen=False)
    assert refresher.step(LOST) == Load()


def test_another_epoch_leads_to_the_ledger() -> None:
    history = history_of(3)
    restored = history_of(2)
    refresher = watching(history, 3)
    assert refresher.step(Arrived([restored.changes[1]])) == CatchUp(history.tip, reopen=False)


@pytest.mark.parametrize(
    "altered",
    [
        {"request": "another"},
        {"previous_hash": ""},
        {"policies": ()},
        {"policies": (PolicyChange(None, None),)},
    ],
    ids=["request", "previous hash", "no flags", "a flag without sides"],
)
def test_an_altered_change_is_never_applied(altered: dict[str, Any]) -> None:
    history = history_of(3)
    bad = replace(history.changes[2], **altered)
    refresher = watching(history, 2)
    assert refresher.step(Arrived([bad])) == CatchUp(history.tip_at(2), reopen=False)
    assert (revision_of(refresher), refresher.applied) == (2, ())
    # The same from the ledger: then only a new base helps.
    assert refresher.step(CaughtUp([bad])) == Load()
    assert (revision_of(refresher), refresher.applied) == (2, ())


def test_silence_leads_to_the_ledger_and_back() -> None:
    history = history_of(3)
    refresher = watching(history, 3)
    assert refresher.step(Arrived(())) == CatchUp(history.tip, reopen=False)
    assert refresher.state is State.CATCHING_UP
    assert refresher.step(CaughtUp(())) == Watch()
    assert refresher.applied == ()


# A new base


def test_a_lost_history_leads_to_a_new_base_that_replaces_the_old_one() -> None:
    history, restored = history_of(5), history_of(2)
    refresher = watching(history, 5)
    assert refresher.step(UNAVAILABLE) == Wait(BACKOFF_FIRST_SECONDS)
    assert refresher.step(Waited()) == CatchUp(history.tip, reopen=True)
    assert isinstance(refresher.step(LOST), Wait)
    assert refresher.step(Waited()) == Load()
    assert revision_of(refresher) == 5
    snapshot = base(restored, 2)
    assert refresher.step(Loaded(snapshot)) == CatchUp(restored.tip, reopen=True)
    assert refresher.snapshot is snapshot
    assert refresher.applied is None


def test_a_first_loss_loads_at_once() -> None:
    history = history_of(2)
    refresher = watching(history, 2)
    refresher.step(Arrived(()))
    assert refresher.step(LOST) == Load()
    assert refresher.state is State.LOADING


def test_a_new_base_is_not_tried_in_a_tight_loop() -> None:
    history = history_of(2)
    refresher = watching(history, 2)
    refresher.step(Arrived(()))
    assert refresher.step(LOST) == Load()
    waits = []
    for _ in range(6):
        assert refresher.step(Loaded(base(history, 2))) == CatchUp(history.tip, reopen=True)
        wait = refresher.step(LOST)
        assert isinstance(wait, Wait)
        waits.append(wait.seconds)
        assert refresher.step(Waited()) == Load()
    assert waits == [BACKOFF_FIRST_SECONDS * 2**i for i in range(1, 7)]


def test_a_base_that_does_not_add_up_is_not_tried_in_a_tight_loop() -> None:
    refresher = Refresher(Longest())
    refresher.start()
    for i in range(4):
        assert refresher.step(LOST) == Wait(BACKOFF_FIRST_SECONDS * 2**i)
        assert refresher.step(Waited()) == Load()


def test_a_needed_base_stays_needed_through_other_failures() -> None:
    history = history_of(2)
    refresher = watching(history, 2)
    refresher.step(Arrived(()))
    refresher.step(LOST)
    for _ in range(3):
        assert isinstance(refresher.step(UNAVAILABLE), Wait)
        assert refresher.step(Waited()) == Load()
    refresher.step(Loaded(base(history, 2)))
    assert refresher.step(CaughtUp(())) == Watch()
    assert isinstance(refresher.step(UNAVAILABLE), Wait)
    assert refresher.step(Waited()) == CatchUp(history.tip, reopen=True)


# Backing off


def waits_of(refresher: Refresher, event: Event, count: int) -> list[float]:
    waits = []
    for _ in range(count):
        action = refresher.step(event)
        assert isinstance(action, Wait)
        assert refresher.state is State.BACKING_OFF
        waits.append(action.seconds)
        refresher.step(Waited())
    return waits


def test_repeated_failures_double_the_wait_up_to_a_ceiling() -> None:
    refresher = Refresher(Longest())
    refresher.start()
    waits = waits_of(refresher, UNAVAILABLE, 2000)
    assert waits[:4] == [BACKOFF_FIRST_SECONDS * factor for factor in (1, 2, 4, 8)]
    assert set(waits[9:]) == {BACKOFF_MAX_SECONDS}


def test_the_wait_is_drawn_from_all_of_the_range() -> None:
    waits: list[float] = []
    for seed in range(50):
        refresher = Refresher(random.Random(seed))
        refresher.start()
        waits += waits_of(refresher, UNAVAILABLE, 20)[12:]
    assert 0 <= min(waits) < 1
    assert 29 < max(waits) <= BACKOFF_MAX_SECONDS
    assert 13 < sum(waits) / len(waits) < 17


def test_success_ends_the_backing_off() -> None:
    history = history_of(2)
    refresher = watching(history, 2)
    waits_of(refresher, UNAVAILABLE, 5)
    assert refresher.step(CaughtUp(())) == Watch()
    refresher.step(Arrived(()))
    refresher.step(CaughtUp(()))
    assert refresher.step(UNAVAILABLE) == Wait(BACKOFF_FIRST_SECONDS)


def test_a_stream_that_breaks_whenever_it_is_opened_is_backed_off_from_too() -> None:
    history = history_of(2)
    refresher = watching(history, 2)
    waits = []
    for _ in range(10):
        action = refresher.step(UNAVAILABLE)
        assert isinstance(action, Wait)
        waits.append(action.seconds)
        assert refresher.step(Waited()) == CatchUp(history.tip, reopen=True)
        assert refresher.step(CaughtUp(())) == Watch()
    assert waits[-1] > 10 * waits[0]


def test_any_kind_of_failure_is_waited_out() -> None:
    history = history_of(2)
    for error in (StoreUnavailableError("x"), ValueError("x"), RuntimeError(), TimeoutError()):
        refresher = watching(history, 2)
        assert isinstance(refresher.step(Failed(error)), Wait)
        assert refresher.step(Waited()) == CatchUp(history.tip, reopen=True)
        assert revision_of(refresher) == 2


# Any course of events


class Course:
    """A refresher on a history, and the invariants after each step."""

    def __init__(self, history: MemoryHistory, seed: int) -> None:
        self.history = history
        self.refresher = Refresher(random.Random(seed))
        self.action = self.refresher.start()

    def step(self, event: Event) -> None:
        before = self.refresher.snapshot
        self.action = self.refresher.step(event)
        after, applied = self.refresher.snapshot, self.refresher.applied
        if applied is None:
            assert isinstance(event, Loaded)
            assert after is event.snapshot
        elif before is None or after is None:
            assert (before, after, list(applied)) == (None, None, [])
        else:
            start = before.tip.revision
            assert [change.revision for change in applied] == list(
                range(start + 1, after.tip.revision + 1)
            )
            assert after.tip == self.history.tip_at(after.tip.revision)
            assert set(after.records()) == set(base(self.history, after.tip.revision).records())

    def obey(self, delivered: Sequence[Change]) -> None:
        """Carry out the action, soundly; a watch brings what is delivered."""
        match self.action:
            case Load():
                self.step(Loaded(base(self.history, len(self.history.changes) // 2)))
            case CatchUp(tip, _):
                self.step(CaughtUp(self.history.changes[tip.revision :]))
            case Watch():
                self.step(Arrived(delivered))
            case Wait():
                self.step(Waited())


LONG = history_of(8)
# The second change after a fork: the first one is as good as the true one to who holds neither.
FORKS = [
    next_change(next_change(LONG.tip_at(i), "fork", LONG.tip.time, []).tip, "on", LONG.tip.time, [])
    for i in range(7)
]
ALTERED = [replace(change, request="altered") for change in LONG.changes]
DELIVERIES = st.lists(
    st.sampled_from([*LONG.changes, *LONG.changes, *FORKS, *ALTERED]), max_size=4
) | st.tuples(st.integers(0, 8), st.integers(0, 8)).map(
    lambda ends: LONG.changes[min(ends) : max(ends)]
)


@settings(max_examples=200)
@given(
    st.lists(DELIVERIES | st.sampled_from([UNAVAILABLE, LOST]), max_size=12),
    st.integers(0, 8),
    st.integers(0, 1000),
)
def test_no_deliveries_make_the_revision_fall_or_skip(
    deliveries: list[list[Change] | Failed], start: int, seed: int
) -> None:
    course = Course(LONG, seed)
    course.step(Loaded(base(LONG, start)))
    # The ledger answers late: what is caught up with is empty until the end.
    course.step(CaughtUp(()))
    for delivered in deliveries:
        if isinstance(delivered, Failed):
            course.step(delivered)
        elif isinstance(course.action, CatchUp):
            course.step(CaughtUp(delivered))
        else:
            course.obey(delivered)
    for _ in range(4):
        course.obey(())
    assert revision_of(course.refresher) == 8
    assert course.action == Watch() or isinstance(course.action, CatchUp)


def test_each_action_is_answered_by_the_event_that_it_asks_for() -> None:
    history = history_of(3)
    refresher = Refresher(random.Random(3))
    loaded, caught_up = Loaded(base(history, 1)), CaughtUp(history.changes[1:])
    events: list[Event] = [UNAVAILABLE, Waited(), loaded, caught_up]
    actions: list[Action] = [refresher.start(), *map(refresher.step, events)]
    assert [type(action) for action in actions] == [Load, Wait, Load, CatchUp, Watch]
