"""Snapshot: what a flag takes up and what a check costs, from a thousand flags to a million.

Each catalogue is loaded in a process of its own. Checks are of one hot flag, of hot flags at
random (at most 10,000 of them, all rollouts), and of cold ones, each a first call by itself. What
the plot shows is from here.

A further worker is a process that maps the file of the largest catalogue while this one has it
mapped. What it costs the machine is its private memory; the file's pages are the same for both.
"""

import random
import statistics
from collections.abc import Iterator
from itertools import islice
from typing import Final

from msgspec import Struct

from benchmarks import catalogue
from benchmarks.catalogue import ROLLOUT, StoredCatalogue
from benchmarks.evaluate import time_first_call
from benchmarks.interleave import create_timer, time_interleaved
from benchmarks.report import FLAG_COUNT, MeasurementPlan, Result
from benchmarks.subprocesses import measure_private_bytes, measure_resident_bytes, run_in_subprocess
from benchmarks.workloads import CONTEXT, FLAGS, W2
from flagkit.testing import client_from

COUNTS: Final = (1_000, 10_000, 100_000, 1_000_000)
HOT_MAX: Final = 10_000
COLD_MAX: Final = 2_000
SEED: Final = 20261122
BYTES_BOUND: Final = 70.0
WORKER_BYTES_BOUND: Final = 2.0


class SizeTiming(Struct, frozen=True):
    """What was found at one size: bytes a flag in memory, and nanoseconds a check."""

    bytes_a_flag: float
    hot: float
    at_random: float
    cold: float


def run(plan: MeasurementPlan) -> Iterator[Result]:
    """Measure each size up to the largest that is asked for, and there a further worker."""
    for count in COUNTS:
        if count <= plan.flag_count:
            stored = catalogue.store_catalogue(count)
            yield from _build_results(
                count, run_in_subprocess(measure_size, stored, 5 if plan.quick else 25)
            )
    yield _measure_further_worker(plan.flag_count)


def measure_size(stored: StoredCatalogue, round_count: int) -> SizeTiming:
    """Load a catalogue and ask it; in a process that has done nothing else."""
    client_from(FLAGS).is_enabled(W2, CONTEXT)
    before = measure_resident_bytes()
    client = stored.create_client()
    client.is_enabled(W2, CONTEXT)
    grown = measure_resident_bytes() - before
    keys = list(catalogue.iter_keys(ROLLOUT, stored.count))
    random.Random(SEED).shuffle(keys)
    cold = [time_first_call(client, key) for key in islice(keys, COLD_MAX)]
    hot_keys = keys[:HOT_MAX]
    for key in hot_keys:
        client.is_enabled(key, CONTEXT)
    names = {"client": client, "context": dict(CONTEXT)}
    hot, at_random = time_interleaved(
        [
            create_timer("client.is_enabled(key, context)", key=W2, **names),
            create_timer(
                "for key in keys: client.is_enabled(key, context)", keys=hot_keys, **names
            ),
        ],
        round_count,
    )
    return SizeTiming(
        grown / stored.count,
        statistics.median(hot),
        statistics.median(at_random) / len(hot_keys),
        statistics.median(cold) * 1000,
    )


def measure_private_growth(stored: StoredCatalogue) -> int:
    """Return the private bytes that a process grows by when it loads a catalogue and asks it."""
    client_from(FLAGS).is_enabled(W2, CONTEXT)
    before = measure_private_bytes()
    client = stored.create_client()
    client.is_enabled(W2, CONTEXT)
    return measure_private_bytes() - before


def _measure_further_worker(count: int) -> Result:
    stored = catalogue.store_catalogue(count)
    first = stored.create_client()
    grown = run_in_subprocess(measure_private_growth, stored)
    assert first.snapshot is not None, "it has the file mapped until here"
    return Result(
        benchmark="snapshot",
        case=f"private bytes of a further worker, of {count:,}",
        value=grown / count,
        unit="B",
        bound=WORKER_BYTES_BOUND if count >= FLAG_COUNT else None,
        details={"flag_count": count},
    )


def _build_results(count: int, found: SizeTiming) -> Iterator[Result]:
    figures = [
        # Of a full catalogue only: in a small one the directory and the header weigh more.
        ("bytes a flag", found.bytes_a_flag, "B", BYTES_BOUND if count >= FLAG_COUNT else None),
        ("one hot flag", found.hot / 1000, "us", None),
        ("hot flags at random", found.at_random / 1000, "us", None),
        ("a cold flag", found.cold / 1000, "us", None),
    ]
    for what, value, unit, bound in figures:
        yield Result(
            benchmark="snapshot",
            case=f"{what}, of {count:,}",
            value=value,
            unit=unit,
            bound=bound,
            details={"what": what, "flag_count": count},
        )
