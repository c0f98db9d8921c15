"""The simulation at length: seeds one after the other, each of which can be run alone."""

import time
from collections import Counter
from collections.abc import Iterator

from benchmarks.report import Result
from tests.support.simulation.run import (
    CONVERGED_SECONDS_MAX,
    SETTLED_SECONDS_MAX,
    BrokenRuleError,
    SimulationReport,
    run_simulation,
)

ROUND_SEEDS = 200


def soak(seeds: int, seed: int) -> Iterator[Result]:
    """Simulate so many seeds, from one on, in rounds of ROUND_SEEDS."""
    stories: list[SimulationReport] = []
    broken = 0
    for first in range(seed, seed + seeds, ROUND_SEEDS):
        started = time.monotonic()
        for number in range(first, min(first + ROUND_SEEDS, seed + seeds)):
            try:
                stories.append(run_simulation(number))
            except BrokenRuleError as error:
                broken += 1
                print(f"  {error}")
        yield _build_result(
            f"broken rules, up to seed {number}",
            broken,
            "",
            bound=0,
            seconds=round(time.monotonic() - started, 1),
        )
    yield from _iter_results(stories)


def _iter_results(stories: list[SimulationReport]) -> Iterator[Result]:
    faults: Counter[str] = Counter()
    for story in stories:
        faults += story.faults
    yield _build_result("steps", sum(story.steps for story in stories), "")
    yield _build_result("simulated time", sum(story.seconds for story in stories) / 3600, "h")
    converged = max((story.converged_seconds for story in stories), default=0.0)
    yield _build_result("longest until current", converged, "s", bound=CONVERGED_SECONDS_MAX)
    settled = max((story.settled_seconds for story in stories), default=0.0)
    yield _build_result("longest until settled", settled, "s", bound=SETTLED_SECONDS_MAX)
    for kind, count in faults.most_common():
        yield _build_result(f"fault: {kind}", count, "")


def _build_result(
    case: str, value: float, unit: str, bound: float | None = None, **details: object
) -> Result:
    return Result(
        benchmark="simulation", case=case, value=value, unit=unit, bound=bound, details=details
    )
