"""The breaker, by moments alone: when what has failed may be tried again."""

import random

from hypothesis import given
from hypothesis import strategies as st

from flagkit.client.refresher import Breaker, BreakerState, Thresholds

THRESHOLDS = Thresholds(failure_count=3, first_seconds=1.0, max_seconds=30.0, lag_seconds=60.0)


class Longest(random.Random):
    """Chance that always draws the longest wait."""

    def uniform(self, a: float, b: float) -> float:  # noqa: ARG002 - the least is not of interest
        return b


def test_it_is_closed_until_so_many_failures_in_a_row() -> None:
    breaker = Breaker(Longest(), THRESHOLDS)
    breaker.record_failure(10.0)
    breaker.record_failure(20.0)
    assert breaker.get_state(20.0) is BreakerState.CLOSED
    breaker.record_success()
    breaker.record_failure(30.0)
    breaker.record_failure(40.0)
    assert breaker.get_state(40.0) is BreakerState.CLOSED
    breaker.record_failure(50.0)
    assert breaker.get_state(50.0) is BreakerState.OPEN


def test_once_its_wait_is_over_one_attempt_decides() -> None:
    breaker = Breaker(Longest(), THRESHOLDS)
    for _ in range(3):
        breaker.record_failure(0.0)
    assert breaker.retry_at == 4.0
    assert breaker.get_state(3.9) is BreakerState.OPEN
    assert breaker.get_state(4.0) is BreakerState.HALF_OPEN
    breaker.record_failure(4.0)
    assert (breaker.retry_at, breaker.get_state(11.9)) == (12.0, BreakerState.OPEN)
    breaker.record_success()
    assert (breaker.retry_at, breaker.get_state(12.0)) == (0.0, BreakerState.CLOSED)


def test_waits_double_up_to_a_ceiling_and_no_number_of_failures_is_too_many() -> None:
    breaker = Breaker(Longest(), THRESHOLDS)
    waits: list[float] = []
    for _ in range(2000):
        breaker.record_failure(100.0)
        waits.append(breaker.retry_at - 100.0)
    assert waits[:6] == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0]
    assert set(waits[5:]) == {30.0}


def test_what_is_not_relied_upon_is_left_at_once() -> None:
    breaker = Breaker(Longest(), THRESHOLDS)
    breaker.force_open(5.0)
    assert (breaker.retry_at, breaker.get_state(64.9)) == (65.0, BreakerState.OPEN)
    breaker.record_success()
    assert breaker.get_state(5.0) is BreakerState.CLOSED


@given(st.integers(0, 2**32), st.integers(1, 40), st.floats(0, 1e6))
def test_waits_are_drawn_from_all_of_their_range_or_its_upper_half_when_open(
    seed: int, failure_count: int, now: float
) -> None:
    breaker = Breaker(random.Random(seed), THRESHOLDS)
    for _ in range(failure_count):
        breaker.record_failure(now)
    longest = min(30.0, 2.0 ** (failure_count - 1))
    least = longest / 2 if failure_count >= 3 else 0.0
    assert now + least <= breaker.retry_at <= now + longest
