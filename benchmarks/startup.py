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
from contextlib import closing
from itertools import islice
from typing import Any, Final

from pymongo import ASCENDING, MongoClient

from benchmarks import catalogue, database
from benchmarks.apart import apart
from benchmarks.cases import CONTEXT, W2, by_hand_2
from benchmarks.catalogue import ENVIRONMENT, Stored
from benchmarks.report import FLAG_COUNT, Plan, Result, measured
from benchmarks.revisions import changes
from benchmarks.timing import ratios, waited_seconds
from flagkit._core.model.changes import Tip
from flagkit._core.storage.layout import FLAGS, policies_of
from flagkit._core.storage.scan import BATCH_DOCUMENTS, PROJECTIONS
from flagkit._core.storage.store import Store
from flagkit.client.client import Client
from flagkit.config import DATABASE
from flagkit.testing.embedded import EmbeddedMongo
from flagkit.writer import write_checkpoint

TAIL: Final = 1_000
TAIL_FLAGS: Final = 8
"""From a checkpoint that has fewer flags for each revision after it, a client does not start."""
FILE_BOUND_MILLISECONDS: Final = 20.0
CHECKPOINT_BOUND_SECONDS: Final = 1.0
SCAN_BOUND: Final = 3.0
PATIENCE_SECONDS: Final = 600.0
NOWHERE: Final = "mongodb://127.0.0.1:1/?replicaSet=none"


def run(plan: Plan) -> Iterator[Result]:
    """Measure each at the largest number of flags."""
    stored = catalogue.stored(plan.flag_count)
    yield from measured(lambda: _from_file(stored, plan))
    with EmbeddedMongo() as server:
        tip = database.insert(server.uri, plan.flag_count)
        yield from measured(lambda: _from_scan(server.uri, plan))
        yield from _from_checkpoint(server.uri, tip, plan)


def start_from_file(stored: Stored) -> tuple[float, float]:
    """Return the seconds until a client of a file answers, and how many of them it waited."""
    start = time.perf_counter()
    waited = waited_seconds()
    client = Client(NOWHERE, environment=ENVIRONMENT, snapshot_path=stored.path)
    answer = client.is_enabled(W2, CONTEXT)
    waited = waited_seconds() - waited
    seconds = time.perf_counter() - start
    _check(client, answer)
    return seconds, waited


def start_from_scan(uri: str, round_count: int) -> list[tuple[float, float]]:
    """Return the seconds until a client that has nothing answers, and those of a bare drain."""
    found: list[tuple[float, float]] = []
    for number in range(round_count):
        if number % 2:
            drained = _drained(uri)
            found.append((_started(uri), drained))
        else:
            found.append((_started(uri), _drained(uri)))
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


def _started(uri: str) -> float:
    start = time.perf_counter()
    with Client(uri, environment=ENVIRONMENT) as client:
        client.wait_ready(PATIENCE_SECONDS)
        answer = client.is_enabled(W2, CONTEXT)
        seconds = time.perf_counter() - start
        _check(client, answer)
    return seconds


def _drained(uri: str) -> float:
    start = time.perf_counter()
    with MongoClient[dict[str, Any]](uri) as mongo:
        found = mongo[DATABASE][FLAGS].find_raw_batches(
            policies_of(ENVIRONMENT),
            PROJECTIONS[FLAGS],
            sort=[("_id", ASCENDING)],
            batch_size=BATCH_DOCUMENTS,
        )
        for _ in found:
            pass
        return time.perf_counter() - start


def _check(client: Client, answer: bool) -> None:  # noqa: FBT001 - it is an answer
    expected = by_hand_2(W2, CONTEXT)
    if answer is not expected or client.evaluate(W2, CONTEXT, default=not expected).value != answer:
        raise AssertionError(f"{W2} answered {answer}")


def _from_file(stored: Stored, plan: Plan) -> list[Result]:
    found = [apart(start_from_file, stored) for _ in range(3 if plan.quick else 7)]
    bound = FILE_BOUND_MILLISECONDS if plan.flag_count >= FLAG_COUNT else None
    own = statistics.median(seconds - waited for seconds, waited in found) * 1000
    elapsed = statistics.median(seconds for seconds, _ in found) * 1000
    name = f"from a file, of {plan.flag_count:,}"
    return [
        _result(name, own, "ms", bound),
        _result(f"{name}, with waits", elapsed, "ms"),
    ]


def _from_scan(uri: str, plan: Plan) -> list[Result]:
    found = apart(start_from_scan, uri, 9 if plan.quick else 3, network=True)
    scans, drains = zip(*found, strict=True)
    name = f"from a scan, of {plan.flag_count:,}"
    return [
        _result(f"{name} / a drain", statistics.median(ratios(scans, drains)), "x", SCAN_BOUND),
        _result(name, statistics.median(scans), "s"),
        _result(f"a bare drain, of {plan.flag_count:,}", statistics.median(drains), "s"),
    ]


def _from_checkpoint(uri: str, tip: Tip, plan: Plan) -> Iterator[Result]:
    with closing(Store(uri, environment=ENVIRONMENT, database=DATABASE)) as store:
        write_checkpoint(store)
    tail = min(TAIL, plan.flag_count // TAIL_FLAGS)
    database.commit(uri, list(islice(changes(tip, plan.flag_count, others_count=0), tail)))

    def attempt() -> list[Result]:
        found = [
            apart(start_from_checkpoint, uri, tip.revision, tip.revision + tail, network=True)
            for _ in range(3 if plan.quick else 7)
        ]
        return [
            _result(
                f"from a checkpoint + {tail:,}, of {plan.flag_count:,}",
                statistics.median(found),
                "s",
                CHECKPOINT_BOUND_SECONDS if plan.flag_count >= FLAG_COUNT else None,
            )
        ]

    yield from measured(attempt)


def _result(case: str, value: float, unit: str, bound: float | None = None) -> Result:
    return Result(benchmark="startup", case=case, value=value, unit=unit, bound=bound)
