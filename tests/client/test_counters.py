"""Counting: exact with any number of threads, read without a trace, anew in each process."""

import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from flagkit import Client, CountingClient, Counts
from flagkit.client.counters import SAMPLED_EACH, Counters, _Batch
from flagkit.testing import MemoryHistory, client_from

BOOLEAN = {"on": True, "off": False}
CONSTANT: dict[str, Any] = {"key": "constant", "variants": BOOLEAN, "fallthrough": {"serve": "on"}}
HALF: dict[str, Any] = {"key": "half", "variants": BOOLEAN, "fallthrough": {"rollout": 50}}
TEXT: dict[str, Any] = {"key": "text", "variants": {"a": "a"}, "fallthrough": {"serve": "a"}}


@pytest.fixture
def client() -> CountingClient:
    snapshot = client_from([CONSTANT, HALF, TEXT]).snapshot
    assert snapshot is not None
    return CountingClient.from_snapshot(snapshot)


def numbers(client: Client) -> tuple[int, int, int]:
    """Return evaluations, hits and misses."""
    counts = client.counts()
    assert counts is not None
    return (counts.evaluations, counts.hits, counts.misses)


def test_a_client_that_counts_answers_as_one_that_does_not(client: CountingClient) -> None:
    plain = client_from([CONSTANT, HALF, TEXT])
    odd: Any = 5
    keys: list[Any] = ["constant", "half", "text", "unknown", odd, [odd]]
    for key in keys:
        for context in ("user-1", "user-2", {}, {"targeting_key": "u"}, odd):
            for default in (True, False):
                expected = plain.is_enabled(key, context, default)
                assert client.is_enabled(key, context, default) is expected
                assert client.is_enabled(key, context, default) is expected
    assert plain.counts() is None
    assert numbers(client)[0] == 120


def test_a_hit_is_answered_from_what_is_compiled_and_anything_else_is_a_miss(
    client: CountingClient,
) -> None:
    assert client.counts() == Counts(evaluations=0, hits=0, misses=0, latencies={})
    client.is_enabled("constant")
    assert numbers(client) == (1, 0, 1)
    client.is_enabled("constant")
    assert numbers(client) == (2, 1, 1)
    for _ in range(3):
        client.is_enabled("unknown")
    assert numbers(client) == (5, 1, 4)
    odd: Any = []
    client.is_enabled(odd)
    assert numbers(client) == (6, 1, 5)


def test_a_hit_that_a_context_spoils_is_a_hit(client: CountingClient) -> None:
    client.is_enabled("half", "user")
    odd: Any = 5.5
    assert client.is_enabled("half", odd, default=True)
    assert numbers(client) == (2, 1, 1)


def test_every_method_counts_each_flag_once_and_explanations_are_not_counted(
    client: CountingClient,
) -> None:
    client.value("text", default="b")
    client.evaluate("text")
    client.bind("user").evaluate("unknown")
    assert numbers(client) == (3, 1, 2)
    client.evaluate_all("user")
    assert numbers(client) == (6, 2, 4)
    client.explain("half", "user")
    assert numbers(client) == (6, 2, 4)
    assert client.counts() == Counts(evaluations=6, hits=2, misses=4, latencies={})


def test_before_there_are_flags_every_evaluation_is_a_miss() -> None:
    client = CountingClient.from_source()
    client.is_enabled("a")
    client.evaluate("a")
    assert numbers(client) == (2, 0, 2)


def test_a_change_makes_misses_of_what_it_touches() -> None:
    history = MemoryHistory()
    with CountingClient.from_source(history.create_source) as client:
        history.commit(CONSTANT, HALF)
        client.wait_for(1)
        for key in ("constant", "half") * 2:
            client.is_enabled(key, "user")
        assert numbers(client) == (4, 2, 2)
        history.commit(CONSTANT | {"description": "changed"})
        client.wait_for(2)
        for key in ("constant", "half"):
            client.is_enabled(key, "user")
        assert numbers(client) == (6, 3, 3)


def test_no_check_is_lost_among_threads(client: CountingClient) -> None:
    checks, thread_count = 20_000, 4
    client.is_enabled("half", "user")

    def ask() -> None:
        for _ in range(checks):
            client.is_enabled("half", "user")

    threads = [threading.Thread(target=ask) for _ in range(thread_count)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert numbers(client) == (1 + thread_count * checks, thread_count * checks, 1)
    counts = client.counts()
    assert counts is not None
    timed = sum(counts.latencies.values())
    assert timed >= thread_count * checks // SAMPLED_EACH


def test_reading_leaves_the_counts_as_they_are(client: CountingClient) -> None:
    for number in range(3 * SAMPLED_EACH):
        assert numbers(client)[0] == number
        client.is_enabled("constant")


def test_one_check_in_so_many_is_timed(client: CountingClient) -> None:
    for _ in range(5 * SAMPLED_EACH):
        client.is_enabled("constant")
    counts = client.counts()
    assert counts is not None
    assert sum(counts.latencies.values()) == 5
    assert all(bound > 0 and bound & (bound - 1) == 0 for bound in counts.latencies)


@pytest.mark.parametrize(
    ("duration_ns", "below"), [(0, 1), (1, 2), (255, 256), (256, 512), (2**50, 2**39)], ids=repr
)
def test_a_latency_is_counted_below_the_next_power_of_two(duration_ns: int, below: int) -> None:
    counting = Counters()
    counting.record_latency(duration_ns)
    assert counting.read().latencies == {below: 1}


class SoftLimitError(Exception):
    """What a signal handler raises."""


def interrupted_at(step: int, call: Callable[[], object]) -> bool:
    """Raise at one of the instructions of `start_batch`; tell whether the call came so far."""
    left = step

    def trace(frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        nonlocal left
        if frame.f_code not in (Counters.start_batch.__code__, _Batch.create_next.__code__):
            return trace
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left < 0:
                raise SoftLimitError
        return trace

    others = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except SoftLimitError:
        return True
    finally:
        sys.settrace(others)
    return False


def test_an_exception_in_the_midst_of_a_renewal_keeps_no_lap_from_the_next_checks() -> None:
    for step in itertools.count():
        counting = Counters()
        for _ in counting.batch.ticks:
            pass
        was_interrupted = interrupted_at(step, counting.start_batch)
        # The check that was interrupted is counted, unless the exception came before that.
        before = counting.read().evaluations
        assert SAMPLED_EACH - 1 <= before <= SAMPLED_EACH
        for _ in counting.start_batch():
            pass
        assert counting.read().evaluations == before + SAMPLED_EACH
        if not was_interrupted:
            break
    assert step > 10


def test_a_check_that_interrupts_a_renewal_is_counted() -> None:
    for step in itertools.count():
        counting = Counters()
        for _ in counting.batch.ticks:
            pass
        interrupted_at(step, counting.start_batch)
        before = counting.read().evaluations
        stale = counting.batch
        for _ in range(3):
            for _ in counting.start_batch():
                pass
        # As a thread does that was stopped before its last step.
        counting.batch = stale
        assert counting.read().evaluations == before + 3 * SAMPLED_EACH
        counting.start_batch()
        assert counting.read().evaluations == before + 3 * SAMPLED_EACH + 1
        if step > 60:
            break


def test_threads_that_renew_a_lap_at_once_get_the_same(client: CountingClient) -> None:
    threads = [
        threading.Thread(
            target=lambda: [client.is_enabled("constant") for _ in range(5 * SAMPLED_EACH)]
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert numbers(client)[0] == 20 * SAMPLED_EACH


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_counts_from_its_own_zero(client: CountingClient) -> None:
    for _ in range(7):
        client.is_enabled("constant")
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        client.is_enabled("constant")
        os._exit(0 if numbers(client) == (1, 1, 0) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert numbers(client) == (7, 6, 1)


@pytest.mark.parametrize(
    ("variable", "expected"), [("1", True), ("on", True), ("0", False), ("", False)], ids=repr
)
def test_the_default_client_counts_where_the_environment_says_so(
    variable: str, expected: bool
) -> None:
    script = "from flagkit import is_enabled, counts; is_enabled('a'); print(counts())"
    environment = os.environ | {"FLAGKIT_COUNTING": variable}
    found = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert found.startswith("Counts(evaluations=1, hits=0, misses=1") is expected
