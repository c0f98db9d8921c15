"""Startup: how long a service waits for its first right answer, by where its flags come from.

Starts are in processes that do nothing else, once all modules are imported, up to W2's answer:

- from a snapshot file, which is in the page cache, and is verified; time that it waits for a
  processor, which others have, is told apart;
- from a scan of all flags' documents, beside a bare drain of `find_raw_batches` over what the scan
  asks for, in the same order, which takes its turn in the same process;
- from a checkpoint, with so many revisions after it in the ledger, to the head's.

The environment is in a MongoDB of its own, of one member.
"""

import statistics
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

from pymongo import ASCENDING, MongoClient

from benchmarks import catalogue, database
from benchmarks.catalogue import ENVIRONMENT, StoredCatalogue
from benchmarks.interleave import compute_ratios, read_waited_seconds
from benchmarks.report import FLAG_COUNT, MeasurementPlan, Result, measure_with_retries
from benchmarks.revision_feed import iter_changes
from benchmarks.subprocesses import run_in_subprocess
from benchmarks.workloads import CONTEXT, W2, check_w2_by_hand
from flagkit._core.model.changes import Tip
from flagkit._core.storage.layout import FLAGS, filter_policies
from flagkit._core.storage.scan import BATCH_DOCUMENTS, PROJECTIONS
from flagkit.client.client import Client
from flagkit.config import DATABASE
from flagkit.testing.embedded import EmbeddedMongo
from flagkit.writer import Environment

TAIL: Final = 1_000
TAIL_FLAGS: Final = 8
"""From a checkpoint that has fewer flags for each revision after it, a client does not start."""
FILE_BOUND_MILLISECONDS: Final = 20.0
CHECKPOINT_BOUND_SECONDS: Final = 1.0
SCAN_BOUND: Final = 3.0
PATIENCE_SECONDS: Final = 600.0
NOWHERE: Final = "mongodb://127.0.0.1:1/?replicaSet=none"


def run(plan: MeasurementPlan) -> Iterator[Result]:
    """Measure each at the largest number of flags."""
    stored = catalogue.store_catalogue(plan.flag_count)
    yield from measure_with_retries(lambda: _measure_file(stored, plan))
    with EmbeddedMongo() as server:
        tip = database.insert(server.uri, plan.flag_count)
        yield from measure_with_retries(lambda: _measure_scan(server.uri, plan))
        yield from _measure_checkpoint(server.uri, tip, plan)


def start_from_file(stored: StoredCatalogue) -> tuple[float, float]:
    """Return the seconds until a client of a file answers, and how many of them it waited."""
    start = time.perf_counter()
    waited = read_waited_seconds()
    client = Client(NOWHERE, environment=ENVIRONMENT, snapshot_path=stored.path)
    answer = client.is_enabled(W2, CONTEXT)
    waited = read_waited_seconds() - waited
    seconds = time.perf_counter() - start
    _check_answer(client, answer)
    return seconds, waited


def start_from_scan(uri: str, round_count: int) -> list[tuple[float, float]]:
    """Return the seconds until a client that has nothing answers, and those of a bare drain."""
    found: list[tuple[float, float]] = []
    for number in range(round_count):
        if number % 2:
            drained = _time_drain(uri)
            found.append((_time_start(uri), drained))
        else:
            found.append((_time_start(uri), _time_drain(uri)))
    return found


def start_from_checkpoint(uri: str, checkpoint: int, revision: int) -> float:
    """Return the seconds until a client that has nothing answers from a revision."""
    start = time.perf_counter()
    with Client(uri, environment=ENVIRONMENT) as client:
        client.wait_for(revision, PATIENCE_SECONDS)
        answer = client.evaluate(W2, CONTEXT, default=False)
        seconds = time.perf_counter() - start
        snapshot = client.snapshot
        if snapshot is None or snapshot.base.tip.revision != checkpoint:
            raise AssertionError("it did not start from the checkpoint")
        if answer.version != 1 + revision - checkpoint:
            raise AssertionError(f"{W2} has version {answer.version} at revision {revision}")
    return seconds


def _time_start(uri: str) -> float:
    start = time.perf_counter()
    with Client(uri, environment=ENVIRONMENT) as client:
        client.wait_ready(PATIENCE_SECONDS)
        answer = client.is_enabled(W2, CONTEXT)
        seconds = time.perf_counter() - start
        _check_answer(client, answer)
    return seconds


def _time_drain(uri: str) -> float:
    start = time.perf_counter()
    with MongoClient[dict[str, Any]](uri) as mongo:
        found = mongo[DATABASE][FLAGS].find_raw_batches(
            filter_policies(ENVIRONMENT),
            PROJECTIONS[FLAGS],
            sort=[("_id", ASCENDING)],
            batch_size=BATCH_DOCUMENTS,
        )
        for _ in found:
            pass
        return time.perf_counter() - start


def _check_answer(client: Client, answer: bool) -> None:  # noqa: FBT001 - it is an answer
    expected = check_w2_by_hand(W2, CONTEXT)
    if answer is not expected or client.evaluate(W2, CONTEXT, default=not expected).value != answer:
        raise AssertionError(f"{W2} answered {answer}")


def _measure_file(stored: StoredCatalogue, plan: MeasurementPlan) -> list[Result]:
    found = [run_in_subprocess(start_from_file, stored) for _ in range(3 if plan.quick else 7)]
    bound = FILE_BOUND_MILLISECONDS if plan.flag_count >= FLAG_COUNT else None
    own = statistics.median(seconds - waited for seconds, waited in found) * 1000
    elapsed = statistics.median(seconds for seconds, _ in found) * 1000
    name = f"from a file, of {plan.flag_count:,}"
    return [
        _build_result(name, own, "ms", bound),
        _build_result(f"{name}, with waits", elapsed, "ms"),
    ]


def _measure_scan(uri: str, plan: MeasurementPlan) -> list[Result]:
    found = run_in_subprocess(start_from_scan, uri, 9 if plan.quick else 3, network=True)
    scans, drains = zip(*found, strict=True)
    name = f"from a scan, of {plan.flag_count:,}"
    return [
        _build_result(
            f"{name} / a drain", statistics.median(compute_ratios(scans, drains)), "x", SCAN_BOUND
        ),
        _build_result(name, statistics.median(scans), "s"),
        _build_result(f"a bare drain, of {plan.flag_count:,}", statistics.median(drains), "s"),
    ]


def _measure_checkpoint(uri: str, tip: Tip, plan: MeasurementPlan) -> Iterator[Result]:
    with Environment(uri, ENVIRONMENT, database=DATABASE) as environment:
        environment.write_checkpoint()
    tail = min(TAIL, plan.flag_count // TAIL_FLAGS)
    database.commit(uri, list(islice(iter_changes(tip, plan.flag_count, others_count=0), tail)))

    def attempt() -> list[Result]:
        found = [
            run_in_subprocess(
                start_from_checkpoint, uri, tip.revision, tip.revision + tail, network=True
            )
            for _ in range(3 if plan.quick else 7)
        ]
        return [
            _build_result(
                f"from a checkpoint + {tail:,}, of {plan.flag_count:,}",
                statistics.median(found),
                "s",
                CHECKPOINT_BOUND_SECONDS if plan.flag_count >= FLAG_COUNT else None,
            )
        ]

    yield from measure_with_retries(attempt)


def _build_result(case: str, value: float, unit: str, bound: float | None = None) -> Result:
    return Result(benchmark="startup", case=case, value=value, unit=unit, bound=bound)
