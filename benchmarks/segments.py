"""Segments: what a look-up among a million members costs, and what they take in memory."""

import random
import statistics
import time
from collections.abc import Iterator
from typing import Final

from benchmarks.report import MeasurementPlan, Result, measure_with_retries
from flagkit._core.evaluation.matching import MemberSet
from flagkit._core.model.segments import build_keys, decode_part, generate_seed, hash_keys

MEMBER_COUNT: Final = 1_000_000
ASKED_COUNT: Final = 20_000
BOUND_MICROSECONDS: Final = 2.0
BOUND_BYTES: Final = 8.1


def run(plan: MeasurementPlan) -> Iterator[Result]:
    """Measure look-ups of random keys, of which half are members."""
    seed = generate_seed()
    users = (f"user-{i}" for i in range(MEMBER_COUNT))
    keys, stored = build_keys(hash_keys(users, "included", seed))
    parts = [decode_part(stored[name]) for name in keys.parts]
    members = MemberSet(parts, seed)
    yield from measure_with_retries(lambda: _measure(members, plan))
    size = sum(part.itemsize * len(part) for part in parts) + sum(map(len, keys.parts))
    yield Result(
        benchmark="segments",
        case="bytes a member",
        value=size / MEMBER_COUNT,
        unit="B",
        bound=BOUND_BYTES,
    )


def _measure(members: MemberSet, plan: MeasurementPlan) -> list[Result]:
    round_count = 5 if plan.quick else 25
    chance = random.Random(20261122)
    asked = [f"user-{chance.randrange(2 * MEMBER_COUNT)}" for _ in range(ASKED_COUNT)]
    rounds: list[float] = []
    for _ in range(round_count):
        # Processor time: what others do on the machine's cores is no part of a look-up.
        start = time.process_time()
        for key in asked:
            key in members  # noqa: B015 - the look-up is what is measured
        rounds.append((time.process_time() - start) / ASKED_COUNT * 1e6)
    return [
        Result(
            benchmark="segments",
            case="a look-up among a million",
            value=statistics.median(rounds),
            unit="us",
            bound=None if plan.quick else BOUND_MICROSECONDS,
            details={"members": MEMBER_COUNT, "asked": ASKED_COUNT, "round_count": round_count},
        )
    ]
