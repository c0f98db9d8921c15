"""The refresher, by events alone: what arrives, what fails, and what it does about it."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from flagkit._core.model.changes import Change, PolicyChange, Tip, build_next_change
from flagkit._core.snapshot import Snapshot, build_snapshot
from flagkit._core.source import Route
from flagkit.client.refresher import (
    Action,
    ActionFailed,
    BreakerState,
    CatchUp,
    CatchUpDone,
    ChangesReceived,
    Event,
    HeadRead,
    Load,
    LoadDone,
    ReadHead,
    Refresher,
    RefreshIntervals,
    RefreshState,
    Thresholds,
    Timer,
    Wait,
    Watch,
)
from flagkit.errors import HistoryLostError, StoreUnavailableError, StreamsUnavailableError
from flagkit.testing import MemoryHistory

NEAR, PRIMARY = Route.NEAREST, Route.PRIMARY
UNAVAILABLE = ActionFailed(StoreUnavailableError("no member answers"))
LOST = ActionFailed(HistoryLostError("pruned"))
NO_STREAMS = ActionFailed(StreamsUnavailableError("no replica set"))

PACE = RefreshIntervals(head=10.0, lag=2.0, poll=5.0, stream=300.0)
THRESHOLDS = Thresholds(failure_count=3, first_seconds=0.5, max_seconds=30.0, lag_seconds=60.0)


class Longest(random.Random):
    """Chance that always draws the longest wait."""

    def uniform(self, a: float, b: float) -> float:  # noqa: ARG002 - the least is not of interest
        return b


HEAD = PACE.head * 1.2
POLL = PACE.poll * 1.2
"""As the longest waits are drawn."""


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
    tip = history.get_tip(revision)
    return build_snapshot(tip, "*", history.get_states(tip).values())


def refresher_of(snapshot: Snapshot | None = None) -> Refresher:
    return Refresher(Longest(), snapshot, PACE, THRESHOLDS)


def watching(history: MemoryHistory, revision: int, now: float = 0.0) -> Refresher:
    """Return a refresher that has loaded a revision, which is the head, and watches."""
    refresher = refresher_of()
    assert refresher.start(now) == Load(NEAR)
    snapshot = base(history, revision)
    assert refresher.step(LoadDone(snapshot), now) == CatchUp(snapshot.tip, NEAR, reopen=True)
    assert refresher.step(CatchUpDone(()), now) == ReadHead()
    assert refresher.step(HeadRead(snapshot.tip, now), now) == Watch(now + HEAD)
    return refresher


def watching_primary(history: MemoryHistory, revision: int) -> Refresher:
    """Return a refresher that watches the primary, since what is near was behind."""
    refresher = watching(history, revision)
    refresher.step(LOST, 0.0)
    assert refresher.step(LOST, 0.0) == CatchUp(history.get_tip(revision), PRIMARY, reopen=True)
    refresher.step(CatchUpDone(()), 0.0)
    return refresher


def revision_of(refresher: Refresher) -> int:
    assert refresher.snapshot is not None
    return refresher.snapshot.tip.revision


# The way in


def test_it_loads_then_opens_the_stream_then_catches_up_then_asks_for_the_head_then_watches() -> (
    None
):
    history = history_of(5)
    refresher = refresher_of()
    assert (refresher.start(0.0), refresher.state) == (Load(NEAR), RefreshState.LOADING)
    snapshot = base(history, 3)
    assert refresher.step(LoadDone(snapshot), 1.0) == CatchUp(snapshot.tip, NEAR, reopen=True)
    assert (refresher.state, refresher.snapshot) == (RefreshState.CATCHING_UP, snapshot)
    assert refresher.applied is None
    assert refresher.step(CatchUpDone(history.changes[3:]), 2.0) == ReadHead()
    assert (refresher.state, revision_of(refresher)) == (RefreshState.WATCHING, 5)
    assert refresher.applied == history.changes[3:]
    assert refresher.current_as_of is None
    assert refresher.step(HeadRead(history.tip, 2.0), 3.0) == Watch(3.0 + HEAD)
    assert refresher.current_as_of == 2.0
    assert refresher.head == history.tip


def test_what_it_has_already_is_only_caught_up() -> None:
    history = history_of(5)
    refresher = refresher_of(base(history, 3))
    assert refresher.start(0.0) == CatchUp(history.get_tip(3), NEAR, reopen=True)


def test_what_arrives_in_order_is_applied() -> None:
    history = history_of(5)
    refresher = watching(history, 2)
    for batch in (history.changes[2:3], history.changes[3:5]):
        assert refresher.step(ChangesReceived(batch), 1.0) == Watch(HEAD)
        assert refresher.applied == batch
    assert refresher.snapshot is not None
    assert set(refresher.snapshot.iter_records()) == set(base(history, 5).iter_records())


def test_a_closed_refresher_says_so() -> None:
    refresher = watching(history_of(1), 1)
    refresher.close()
    assert refresher.state is RefreshState.CLOSED


# Doubt


def test_a_gap_leads_to_the_ledger() -> None:
    history = history_of(5)
    refresher = watching(history, 2)
    gap = ChangesReceived([history.changes[3]])
    assert refresher.step(gap, 1.0) == CatchUp(history.get_tip(2), NEAR, reopen=False)
    assert (revision_of(refresher), refresher.applied) == (2, ())
    assert refresher.step(CatchUpDone(history.changes[2:]), 1.0) == Watch(HEAD)
    assert revision_of(refresher) == 5


def test_a_gap_within_a_batch_applies_none_of_it() -> None:
    history = history_of(5)
    refresher = watching(history, 1)
    batch = [history.changes[1], history.changes[3]]
    assert refresher.step(ChangesReceived(batch), 1.0) == CatchUp(
        history.get_tip(1), NEAR, reopen=False
    )
    assert revision_of(refresher) == 1


def test_duplicates_are_dropped() -> None:
    history = history_of(4)
    refresher = watching(history, 3)
    assert refresher.step(ChangesReceived(history.changes[:3]), 1.0) == Watch(HEAD)
    assert (revision_of(refresher), refresher.applied) == (3, ())
    assert refresher.step(ChangesReceived(history.changes), 1.0) == Watch(HEAD)
    assert (revision_of(refresher), refresher.applied) == (4, history.changes[3:])


def test_another_hash_at_my_revision_leads_to_the_ledger_and_then_to_the_primarys() -> None:
    history = history_of(3)
    refresher = watching(history, 3)
    fork = build_next_change(history.get_tip(2), "fork", history.tip.time, [])
    assert refresher.step(ChangesReceived([fork]), 1.0) == CatchUp(history.tip, NEAR, reopen=False)
    assert refresher.step(LOST, 1.0) == CatchUp(history.tip, PRIMARY, reopen=True)


def test_another_epoch_leads_to_the_ledger() -> None:
    history = history_of(3)
    restored = history_of(2)
    refresher = watching(history, 3)
    arrived = ChangesReceived([restored.changes[1]])
    assert refresher.step(arrived, 1.0) == CatchUp(history.tip, NEAR, reopen=False)


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
    tip = history.get_tip(2)
    assert refresher.step(ChangesReceived([bad]), 1.0) == CatchUp(tip, NEAR, reopen=False)
    # The same from the ledger, near and of the primary: then only a new base helps.
    assert refresher.step(CatchUpDone([bad]), 1.0) == CatchUp(tip, PRIMARY, reopen=True)
    assert refresher.step(CatchUpDone([bad]), 1.0) == Wait(1.5)
    assert (revision_of(refresher), refresher.applied) == (2, ())
    assert refresher.step(Timer(), 1.5) == Load(PRIMARY)


# The head


def test_the_head_is_asked_for_though_the_stream_is_busy() -> None:
    history = history_of(5)
    refresher = watching(history, 2)
    assert refresher.step(ChangesReceived(history.changes[2:3]), HEAD - 0.1) == Watch(HEAD)
    assert refresher.step(ChangesReceived(history.changes[3:4]), HEAD) == ReadHead()
    assert refresher.applied == history.changes[3:4]


def test_an_empty_stream_proves_nothing() -> None:
    history = history_of(2)
    refresher = watching(history, 2)
    for now in (1.0, 2.0, 11.0):
        assert refresher.step(ChangesReceived(()), now) == Watch(HEAD)
        assert refresher.current_as_of == 0.0
    assert refresher.step(Timer(), HEAD) == ReadHead()
    assert refresher.step(HeadRead(history.tip, HEAD), HEAD + 1) == Watch(2 * HEAD + 1)
    assert refresher.current_as_of == HEAD


def test_a_head_beyond_mine_makes_it_current_once_the_stream_has_brought_it() -> None:
    history = history_of(4)
    refresher = watching(history, 2)
    refresher.step(Timer(), HEAD)
    assert refresher.step(HeadRead(history.tip, HEAD), HEAD) == Watch(HEAD + PACE.lag)
    refresher.step(ChangesReceived(history.changes[2:3]), HEAD + 1)
    assert refresher.current_as_of == 0.0
    assert refresher.step(ChangesReceived(history.changes[3:]), HEAD + 1) == Watch(2 * HEAD)
    # As of when it was asked for, not as of when it came.
    assert refresher.current_as_of == HEAD


def test_another_history_that_reaches_the_heads_revision_does_not_make_it_current() -> None:
    history = history_of(4)
    # Restored without a word: the primary has another third and fourth revision.
    third = build_next_change(history.get_tip(2), "other", history.tip.time, [])
    fourth = build_next_change(third.tip, "other", history.tip.time, [])
    refresher = watching(history, 2)
    refresher.step(Timer(), HEAD)
    refresher.step(HeadRead(fourth.tip, HEAD), HEAD)
    # Who is near, and behind, has the old ones still.
    assert refresher.step(ChangesReceived(history.changes[2:]), HEAD + 1) == Watch(HEAD + PACE.lag)
    assert refresher.current_as_of == 0.0
    late = HEAD + PACE.lag
    assert refresher.step(Timer(), late) == CatchUp(history.tip, PRIMARY, reopen=True)


def test_a_stream_that_does_not_bring_the_head_is_left_for_the_primarys() -> None:
    history = history_of(4)
    refresher = watching(history, 2)
    refresher.step(Timer(), HEAD)
    refresher.step(HeadRead(history.tip, HEAD), HEAD)
    late = HEAD + PACE.lag
    assert refresher.step(Timer(), late) == CatchUp(history.get_tip(2), PRIMARY, reopen=True)
    assert refresher.breakers[NEAR].get_state(late) is BreakerState.OPEN
    assert refresher.step(CatchUpDone(history.changes[2:]), late) == Watch(2 * HEAD)
    assert refresher.breakers[PRIMARY].get_state(late) is BreakerState.CLOSED


def test_an_awaited_head_that_was_taken_back_does_not_make_it_current_when_it_comes() -> None:
    history = history_of(3)
    refresher = watching(history, 2)
    refresher.step(Timer(), HEAD)
    refresher.step(HeadRead(history.tip, HEAD), HEAD)
    # Restored: the primary has what the client has, and who is near goes on with what was before.
    refresher.step(HeadRead(history.get_tip(2), HEAD + 1), HEAD + 1)
    refresher.step(ChangesReceived(history.changes[2:]), HEAD + 2)
    assert (revision_of(refresher), refresher.current_as_of) == (3, HEAD + 1)


def test_asking_again_gives_a_stream_no_more_time() -> None:
    history = history_of(3)
    pace = RefreshIntervals(head=1.0, lag=1.0)
    refresher = Refresher(random.Random(1), base(history, 2), pace, THRESHOLDS)
    refresher.start(0.0)
    action, now = refresher.step(CatchUpDone(()), 0.0), 0.0
    asked = 0
    while not isinstance(action, CatchUp):
        if isinstance(action, ReadHead):
            asked += 1
            action = refresher.step(HeadRead(history.tip, now), now)
        else:
            assert isinstance(action, Watch)
            now = action.until
            action = refresher.step(Timer(), now)
    assert action == CatchUp(history.get_tip(2), PRIMARY, reopen=True)
    assert (now, asked) == (pace.lag, 2)


def test_it_goes_back_to_what_is_near_when_that_may_be_tried_again() -> None:
    history = history_of(4)
    refresher = watching(history, 2)
    refresher.step(Timer(), HEAD)
    refresher.step(HeadRead(history.tip, HEAD), HEAD)
    refresher.step(Timer(), HEAD + PACE.lag)
    refresher.step(CatchUpDone(history.changes[2:]), HEAD + PACE.lag)
    now, again = HEAD + PACE.lag, HEAD + PACE.lag + THRESHOLDS.lag_seconds
    while now + HEAD < again:
        now += HEAD
        assert refresher.step(Timer(), now) == ReadHead()
        assert refresher.step(HeadRead(history.tip, now), now) == Watch(now + HEAD)
    assert refresher.step(Timer(), again) == ReadHead()
    back = refresher.step(HeadRead(history.tip, again), again)
    assert back == CatchUp(history.tip, NEAR, reopen=True)


@pytest.mark.parametrize("revision", [1, 3])
def test_a_head_that_is_not_ahead_and_not_mine_is_asked_of_the_primarys_ledger(
    revision: int,
) -> None:
    history, restored = history_of(3), history_of(revision)
    refresher = watching(history, 3)
    refresher.step(Timer(), HEAD)
    seen = HeadRead(restored.tip, HEAD)
    assert refresher.step(seen, HEAD) == CatchUp(history.tip, PRIMARY, reopen=True)
    assert refresher.current_as_of == 0.0


def test_without_the_primarys_word_it_goes_on_watching_what_is_near() -> None:
    history = history_of(4)
    refresher = watching(history, 2)
    now = HEAD
    assert refresher.step(Timer(), now) == ReadHead()
    for _ in range(5):
        action = refresher.step(UNAVAILABLE, now)
        assert isinstance(action, Watch)
        assert refresher.state is RefreshState.WATCHING
        now = action.until
        assert refresher.step(Timer(), now) == ReadHead()
    assert refresher.head_breaker.get_state(now - 0.1) is BreakerState.OPEN
    assert refresher.breakers[NEAR].get_state(now) is BreakerState.CLOSED
    assert refresher.current_as_of == 0.0
    assert refresher.step(HeadRead(history.get_tip(2), now), now) == Watch(now + HEAD)
    assert refresher.head_breaker.get_state(now) is BreakerState.CLOSED
    assert refresher.current_as_of == now


# A new base


def lost(history: MemoryHistory, revision: int) -> Refresher:
    """Return a refresher whose history is lost, near and of the primary; it is to wait for 0.5."""
    refresher = watching(history, revision)
    refresher.step(ChangesReceived(history.changes[:0]), 0.0)
    assert refresher.step(UNAVAILABLE, 0.0) == Wait(THRESHOLDS.first_seconds)
    assert refresher.step(Timer(), 0.5) == CatchUp(history.get_tip(revision), NEAR, reopen=True)
    assert refresher.step(LOST, 0.5) == CatchUp(history.get_tip(revision), PRIMARY, reopen=True)
    assert refresher.step(LOST, 0.5) == Wait(1.0)
    return refresher


def test_a_lost_history_leads_to_a_new_base_that_replaces_the_old_one() -> None:
    history, restored = history_of(5), history_of(2)
    refresher = lost(history, 5)
    assert refresher.step(Timer(), 1.0) == Load(PRIMARY)
    assert revision_of(refresher) == 5
    snapshot = base(restored, 2)
    assert refresher.step(LoadDone(snapshot), 1.0) == CatchUp(restored.tip, PRIMARY, reopen=True)
    assert refresher.snapshot is snapshot
    assert refresher.applied is None


def test_a_new_base_is_not_tried_in_a_tight_loop() -> None:
    history = history_of(2)
    refresher = lost(history, 2)
    now, waits = 1.0, []
    for _ in range(6):
        assert refresher.step(Timer(), now) == Load(PRIMARY)
        refresher.step(LoadDone(base(history, 2)), now)
        wait = refresher.step(LOST, now)
        assert isinstance(wait, Wait)
        waits.append(wait.until - now)
        now = wait.until
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0]


def test_a_base_that_does_not_add_up_is_asked_of_the_primary_too_and_not_in_a_tight_loop() -> None:
    refresher = refresher_of()
    action = refresher.start(0.0)
    now, routes = 0.0, []
    for _ in range(12):
        assert isinstance(action, Load)
        routes.append(action.route)
        action = refresher.step(LOST, now)
        if isinstance(action, Wait):
            now = action.until
            action = refresher.step(Timer(), now)
    assert routes[:4] == [NEAR, NEAR, NEAR, PRIMARY]
    assert now > 30


def test_a_needed_base_stays_needed_through_other_failures() -> None:
    history = history_of(2)
    refresher = lost(history, 2)
    now = 1.0
    for _ in range(3):
        assert refresher.step(Timer(), now) == Load(PRIMARY)
        wait = refresher.step(UNAVAILABLE, now)
        assert isinstance(wait, Wait)
        now = wait.until
    refresher.step(Timer(), now)
    refresher.step(LoadDone(base(history, 2)), now)
    assert refresher.step(CatchUpDone(()), now) == Watch(HEAD)
    assert isinstance(refresher.step(UNAVAILABLE, now), CatchUp)


# Backing off


def test_what_is_near_is_given_up_after_so_many_failures_and_the_primary_is_asked() -> None:
    history = history_of(2)
    refresher = watching(history, 2)
    assert refresher.step(UNAVAILABLE, 0.0) == Wait(0.5)
    assert refresher.state is RefreshState.BACKING_OFF
    assert refresher.step(Timer(), 0.5) == CatchUp(history.tip, NEAR, reopen=True)
    assert refresher.step(UNAVAILABLE, 0.5) == Wait(1.5)
    assert refresher.step(Timer(), 1.5) == CatchUp(history.tip, NEAR, reopen=True)
    assert refresher.step(UNAVAILABLE, 1.5) == CatchUp(history.tip, PRIMARY, reopen=True)
    assert refresher.breakers[NEAR].get_state(1.5) is BreakerState.OPEN


def test_where_nobody_answers_it_asks_ever_more_seldom() -> None:
    refresher = refresher_of()
    action: Action = refresher.start(0.0)
    now = 0.0
    asked: list[float] = []
    while now < 600:
        if isinstance(action, Wait):
            assert action.until > now
            now = action.until
            action = refresher.step(Timer(), now)
        else:
            asked.append(now)
            action = refresher.step(UNAVAILABLE, now)
    assert len(asked) < 60
    last_minute = [moment for moment in asked if moment > 540]
    assert len(last_minute) <= 5


def test_success_ends_the_backing_off() -> None:
    history = history_of(2)
    refresher = watching(history, 2)
    refresher.step(UNAVAILABLE, 0.0)
    refresher.step(Timer(), 0.5)
    refresher.step(UNAVAILABLE, 0.5)
    refresher.step(Timer(), 1.5)
    assert refresher.step(CatchUpDone(()), 1.5) == Watch(HEAD)
    refresher.step(ChangesReceived(()), 1.6)
    assert refresher.step(UNAVAILABLE, 2.0) == Wait(2.5)


def test_a_stream_that_breaks_whenever_it_is_opened_is_backed_off_from_too() -> None:
    history = history_of(2)
    refresher = watching(history, 2)
    now, broken = 0.0, 0
    action = refresher.step(UNAVAILABLE, now)
    while now < 300:
        match action:
            case Wait(until):
                now = until
                action = refresher.step(Timer(), now)
            case CatchUp():
                action = refresher.step(CatchUpDone(()), now)
            case ReadHead():
                action = refresher.step(HeadRead(history.tip, now), now)
            case Watch():
                broken += 1
                action = refresher.step(UNAVAILABLE, now)
            case _:
                pytest.fail("there is no doubt")
    assert broken < 40


def test_a_stream_that_has_held_for_a_while_was_a_success() -> None:
    history = history_of(2)
    refresher = watching(history, 2)
    refresher.step(UNAVAILABLE, 0.0)
    refresher.step(Timer(), 0.5)
    refresher.step(CatchUpDone(()), 0.5)
    assert refresher.step(Timer(), HEAD) == ReadHead()
    refresher.step(HeadRead(history.tip, HEAD), HEAD)
    assert refresher.step(UNAVAILABLE, HEAD) == Wait(HEAD + THRESHOLDS.first_seconds)


def test_any_kind_of_failure_is_waited_out() -> None:
    history = history_of(2)
    for error in (StoreUnavailableError("x"), ValueError("x"), RuntimeError(), TimeoutError()):
        refresher = watching(history, 2)
        assert refresher.step(ActionFailed(error), 0.0) == Wait(0.5)
        assert refresher.step(Timer(), 0.5) == CatchUp(history.tip, NEAR, reopen=True)
        assert revision_of(refresher) == 2


# Without streams


def polling(history: MemoryHistory, revision: int) -> Refresher:
    refresher = refresher_of(base(history, revision))
    tip = history.get_tip(revision)
    assert refresher.start(0.0) == CatchUp(tip, NEAR, reopen=True)
    assert refresher.step(NO_STREAMS, 0.0) == CatchUp(tip, NEAR, reopen=False)
    assert refresher.step(CatchUpDone(()), 0.0) == ReadHead()
    assert refresher.step(HeadRead(tip, 0.0), 0.0) == Wait(POLL)
    assert refresher.state is RefreshState.POLLING
    return refresher


def test_where_there_are_no_streams_the_ledger_is_asked_again_and_again() -> None:
    history = history_of(4)
    refresher = polling(history, 2)
    assert refresher.step(Timer(), POLL) == CatchUp(history.get_tip(2), NEAR, reopen=False)
    assert refresher.step(CatchUpDone(history.changes[2:]), POLL) == Wait(2 * POLL)
    assert (refresher.state, revision_of(refresher)) == (RefreshState.POLLING, 4)
    assert refresher.step(Timer(), 2 * POLL) == CatchUp(history.tip, NEAR, reopen=False)
    assert refresher.step(CatchUpDone(()), 2 * POLL) == ReadHead()


def test_a_head_that_the_ledger_has_not_told_yet_is_asked_for_at_once() -> None:
    history = history_of(4)
    refresher = polling(history, 2)
    refresher.step(Timer(), HEAD)
    refresher.step(CatchUpDone(()), HEAD)
    seen = HeadRead(history.tip, HEAD)
    assert refresher.step(seen, HEAD) == CatchUp(history.get_tip(2), NEAR, reopen=False)
    assert refresher.step(CatchUpDone(history.changes[2:]), HEAD) == Wait(HEAD + POLL)
    assert refresher.current_as_of == HEAD


def test_where_there_are_no_streams_a_head_that_never_comes_is_not_awaited_for_ever() -> None:
    history = history_of(4)
    fork = build_next_change(history.get_tip(2), "fork", history.tip.time, [])
    refresher = polling(history, 2)
    refresher.step(Timer(), HEAD)
    refresher.step(CatchUpDone(()), HEAD)
    refresher.step(HeadRead(fork.tip, HEAD), HEAD)
    # Restored just now.
    refresher.step(CatchUpDone(history.changes[2:3]), HEAD)
    assert refresher.current_as_of == 0.0
    refresher.step(Timer(), 2 * HEAD)
    assert refresher.step(CatchUpDone(()), 2 * HEAD) == ReadHead()
    refresher.step(HeadRead(history.tip, 2 * HEAD), 2 * HEAD)
    refresher.step(CatchUpDone(history.changes[3:]), 2 * HEAD)
    assert refresher.current_as_of == 2 * HEAD


def test_a_ledger_that_answers_where_there_are_no_streams_is_a_success() -> None:
    refresher = polling(history_of(2), 2)
    now = POLL
    for _ in range(3):
        action = refresher.step(Timer(), now)
        while isinstance(action, CatchUp):
            action = refresher.step(UNAVAILABLE, now)
        assert isinstance(action, Wait)
        now = action.until
    assert refresher.breakers[NEAR].get_state(now) is not BreakerState.CLOSED
    now = refresher.breakers[NEAR].retry_at
    assert isinstance(refresher.step(Timer(), now), CatchUp)
    refresher.step(CatchUpDone(()), now)
    assert refresher.state is RefreshState.POLLING
    assert refresher.breakers[NEAR].get_state(now) is BreakerState.CLOSED


def test_a_stream_is_tried_again_after_a_while() -> None:
    history = history_of(2)
    refresher = polling(history, 2)
    later = PACE.stream * 1.2
    assert refresher.step(Timer(), later) == CatchUp(history.tip, NEAR, reopen=True)
    assert refresher.step(CatchUpDone(()), later) == ReadHead()
    assert refresher.state is RefreshState.WATCHING


# Any course of events


class Course:
    """A refresher on a history, and the invariants after each step."""

    def __init__(self, history: MemoryHistory, seed: int) -> None:
        self.history = history
        self.refresher = Refresher(random.Random(seed), None, PACE, THRESHOLDS)
        self.now = 0.0
        self.action = self.refresher.start(self.now)

    def step(self, event: Event) -> None:
        before = self.refresher.snapshot
        self.action = self.refresher.step(event, self.now)
        after, applied = self.refresher.snapshot, self.refresher.applied
        if applied is None:
            assert isinstance(event, LoadDone)
            assert after is event.snapshot
        elif before is None or after is None:
            assert (before, after, list(applied)) == (None, None, [])
        else:
            start = before.tip.revision
            assert [change.revision for change in applied] == list(
                range(start + 1, after.tip.revision + 1)
            )
            assert after.tip == self.history.get_tip(after.tip.revision)
            assert set(after.iter_records()) == set(
                base(self.history, after.tip.revision).iter_records()
            )

    def obey(self, delivered: Sequence[Change]) -> None:
        """Carry out the action, soundly; a watch brings what is delivered, or its time ends."""
        match self.action:
            case Load():
                self.step(LoadDone(base(self.history, len(self.history.changes) // 2)))
            case CatchUp(tip, _):
                self.step(CatchUpDone(self.history.changes[tip.revision :]))
            case ReadHead():
                self.step(HeadRead(self.history.tip, self.now))
            case Watch(until) if not delivered:
                self.now = max(self.now, until)
                self.step(Timer())
            case Watch():
                self.step(ChangesReceived(delivered))
            case Wait(until):
                self.now = max(self.now, until)
                self.step(Timer())


LONG = history_of(8)
# The second change after a fork: the first one is as good as the true one to who holds neither.
FORKS = [
    build_next_change(
        build_next_change(LONG.get_tip(i), "fork", LONG.tip.time, []).tip, "on", LONG.tip.time, []
    )
    for i in range(7)
]
ALTERED = [replace(change, request="altered") for change in LONG.changes]
DELIVERIES = st.lists(
    st.sampled_from([*LONG.changes, *LONG.changes, *FORKS, *ALTERED]), max_size=4
) | st.tuples(st.integers(0, 8), st.integers(0, 8)).map(
    lambda ends: LONG.changes[min(ends) : max(ends)]
)
FAILURES = st.sampled_from([UNAVAILABLE, LOST, NO_STREAMS])
HEADS: st.SearchStrategy[Tip] = st.sampled_from(
    [*(LONG.get_tip(revision) for revision in range(9)), *(fork.tip for fork in FORKS)]
)


@settings(max_examples=300)
@given(
    st.lists(DELIVERIES | FAILURES | HEADS, max_size=16),
    st.integers(0, 8),
    st.integers(0, 1000),
)
def test_no_deliveries_make_the_revision_fall_or_skip_and_in_the_end_it_is_current(
    deliveries: list[list[Change] | ActionFailed | Tip], start: int, seed: int
) -> None:
    course = Course(LONG, seed)
    course.step(LoadDone(base(LONG, start)))
    # The ledger answers late: what is caught up with is empty until the end.
    course.step(CatchUpDone(()))
    for delivered in deliveries:
        if isinstance(delivered, ActionFailed):
            course.step(delivered)
        elif isinstance(delivered, Tip):
            if isinstance(course.action, ReadHead):
                course.step(HeadRead(delivered, course.now))
        elif isinstance(course.action, CatchUp):
            course.step(CatchUpDone(delivered))
        else:
            course.obey(delivered)
    quiet = course.now
    for _ in range(24):
        course.obey(())
    assert revision_of(course.refresher) == 8
    assert course.refresher.current_as_of is not None
    assert course.refresher.current_as_of >= quiet
