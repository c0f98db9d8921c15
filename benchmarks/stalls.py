"""Stalls: how late other threads run while one thread evaluates all flags.

A second thread sleeps for a millisecond again and again, and notes how late it wakes. A control
process does the same beside a plain loop of Python, for as long: by as much as that is late, the
interpreter's switching and the machine are to blame. The two take turns, in fresh processes.
"""

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from benchmarks import catalogue
from benchmarks.catalogue import Document, StoredCatalogue
from benchmarks.report import MeasurementPlan, Result, measure_with_retries
from benchmarks.subprocesses import run_in_subprocess
from benchmarks.workloads import CONTEXT
from flagkit.client.client import Client
from flagkit.testing import client_from

FLAG_COUNT: Final = 100_000
QUICK_FLAG_COUNT: Final = 10_000
CHAIN_LENGTH: Final = 5_000
BOUND_MILLISECONDS: Final = 30.0
NAP_SECONDS: Final = 0.001

Found = tuple[float, float]
"""How many milliseconds the other thread was late at most, and how many seconds the work took."""


def run(plan: MeasurementPlan) -> Iterator[Result]:
    """Measure all flags of a catalogue, at first and again, and a chain of prerequisites."""
    count = min(plan.flag_count, QUICK_FLAG_COUNT if plan.quick else FLAG_COUNT)
    rounds = 3 if plan.quick else 5
    stored = catalogue.store_catalogue(count)
    yield from measure_with_retries(
        lambda: _compare_with_loop(
            (f"all of {count:,}, at first", f"all of {count:,}, again"),
            lambda: run_in_subprocess(measure_delay_during_evaluations, stored),
            rounds,
        )
    )
    yield from measure_with_retries(
        lambda: _compare_with_loop(
            (f"a chain of {CHAIN_LENGTH:,}, at first", f"a chain of {CHAIN_LENGTH:,}, again"),
            lambda: run_in_subprocess(measure_delay_during_chain, CHAIN_LENGTH),
            rounds,
        )
    )


def measure_delay_during_evaluations(stored: StoredCatalogue) -> list[Found]:
    """Return how late another thread is while all flags are evaluated at first, and again."""
    client = stored.create_client()
    # The result is kept, as services keep it, and freed when the next one takes its place.
    kept: list[object] = []
    found: list[Found] = []
    for _ in range(2):
        found.append(measure_delay(lambda: kept.append(client.evaluate_all(CONTEXT))))
        found.append(measure_delay(kept.clear))
    first, freed_first, again, freed_again = found
    return [_select_longest(first, freed_first), _select_longest(again, freed_again)]


def measure_delay_during_chain(length: int) -> list[Found]:
    """Return how late another thread is while the end of a chain is evaluated, at first and again.

    Raises:
        ValueError: the chain is not evaluated right.
    """
    client: Client = client_from(iter_chain(length))
    last = f"chain.flag-{length - 1}"
    found = [measure_delay(lambda: client.evaluate(last, CONTEXT)) for _ in range(2)]
    if client.evaluate(last, CONTEXT).variant != "on":
        raise ValueError(f"{last} answers {client.evaluate(last, CONTEXT)}")
    return found


def iter_chain(length: int) -> Iterator[Document]:
    """Yield flags, each with the one before it for its prerequisite; none is constant."""
    for i in range(length):
        flag: Document = {
            "key": f"chain.flag-{i}",
            "variants": {"on": True, "off": False},
            "off": "off",
            "rules": [{"name": "age", "when": {"age": {"$gte": 0}}, "serve": "on"}],
            "fallthrough": {"serve": "off"},
        }
        if i:
            flag["prerequisites"] = [{"flag": f"chain.flag-{i - 1}", "variants": ["on"]}]
        yield flag


def measure_delay_during_loop(seconds: float) -> Found:
    """Return how late another thread is beside a loop of Python."""

    def loop() -> None:
        ends = time.perf_counter() + seconds
        total = 0
        while time.perf_counter() < ends:
            for i in range(1_000):
                total += i

    return measure_delay(loop)


def measure_delay(work: Callable[[], object]) -> Found:
    """Return how late another thread is while this one does some work."""
    late = [0.0]
    ended = threading.Event()
    begun = threading.Event()

    def nap() -> None:
        while not ended.is_set():
            started = time.perf_counter()
            time.sleep(NAP_SECONDS)
            late.append(time.perf_counter() - started - NAP_SECONDS)
            begun.set()

    thread = threading.Thread(target=nap, daemon=True)
    thread.start()
    begun.wait()
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    ended.set()
    thread.join()
    return max(late) * 1000, seconds


def _select_longest(one: Found, other: Found) -> Found:
    return max(one[0], other[0]), one[1]


def _compare_with_loop(
    cases: Sequence[str], work: Callable[[], list[Found]], rounds: int
) -> list[Result]:
    above: list[list[float]] = [[] for _ in cases]
    seconds: list[list[float]] = [[] for _ in cases]
    controls: list[float] = []
    for _ in range(rounds):
        found = work()
        control, _ = run_in_subprocess(
            measure_delay_during_loop, max(sum(took for _, took in found), 0.5)
        )
        controls.append(control)
        for i, (late, took) in enumerate(found):
            above[i].append(late - control)
            seconds[i].append(took)
    return [
        result
        for i, case in enumerate(cases)
        for result in (
            _build_result(
                f"{case}, late above a control",
                above[i],
                "ms",
                BOUND_MILLISECONDS,
                {"round_count": rounds, "control_ms": statistics.median(controls)},
            ),
            _build_result(case, seconds[i], "s"),
        )
    ]


def _build_result(
    case: str,
    values: Sequence[float],
    unit: str,
    bound: float | None = None,
    details: dict[str, object] | None = None,
) -> Result:
    return Result(
        benchmark="stalls",
        case=case,
        value=statistics.median(values),
        unit=unit,
        bound=bound,
        details=details or {},
    )
