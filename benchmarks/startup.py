"""Startup: how long a service waits for its first right answer, by where its flags come from.

Each start is in a fresh process, once all modules are imported, up to W2's answer:

- from a snapshot file, which is in the page cache, and is verified;
- from a scan of all flags' documents, beside a bare drain of `find_raw_batches` over what the scan
  asks for, in the same order, which takes its turn in the same process.

The environment is in a MongoDB of its own, of one member.
"""

import statistics
import time
from collections.abc import Iterator
from typing import Any, Final

from pymongo import ASCENDING, MongoClient

from benchmarks import catalogue, database
from benchmarks.apart import apart
from benchmarks.cases import CONTEXT, W2, by_hand_2
from benchmarks.catalogue import ENVIRONMENT, Stored
from benchmarks.report import FLAG_COUNT, Plan, Result, measured
from benchmarks.timing import ratios
from flagkit.client import Client
from flagkit.embedded import EmbeddedMongo
from flagkit.settings import DATABASE
from flagkit.storage.layout import FLAGS, policies_of
from flagkit.storage.scanning import BATCH_DOCUMENTS, PROJECTIONS

FILE_BOUND_MILLISECONDS: Final = 20.0
SCAN_BOUND: Final = 3.0
PATIENCE_SECONDS: Final = 600.0
NOWHERE: Final = "mongodb://127.0.0.1:1/?replicaSet=none"


def run(plan: Plan) -> Iterator[Result]:
    """Measure each at the largest number of flags."""
    stored = catalogue.stored(plan.flag_count)
    yield from measured(lambda: _from_file(stored, plan))
    with EmbeddedMongo() as server:
        database.insert(server.uri, plan.flag_count)
        yield from measured(lambda: _from_scan(server.uri, plan))


def start_from_file(stored: Stored) -> float:
    """Return the seconds until a client of a file answers."""
    start = time.perf_counter()
    client = Client(NOWHERE, environment=ENVIRONMENT, snapshot_path=stored.path)
    answer = client.is_enabled(W2, CONTEXT)
    seconds = time.perf_counter() - start
    _check(client, answer)
    return seconds


def start_from_scan(uri: str, drains_first: bool) -> tuple[float, float]:  # noqa: FBT001 - as pickled
    """Return the seconds until a client that has nothing answers, and those of a bare drain."""
    if drains_first:
        drained = _drained(uri)
        return _started(uri), drained
    return _started(uri), _drained(uri)


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
    return [
        _result(
            f"from a file, of {plan.flag_count:,}",
            statistics.median(found) * 1000,
            "ms",
            FILE_BOUND_MILLISECONDS if plan.flag_count >= FLAG_COUNT else None,
        )
    ]


def _from_scan(uri: str, plan: Plan) -> list[Result]:
    found = [
        apart(start_from_scan, uri, bool(number % 2), network=True)
        for number in range(5 if plan.quick else 3)
    ]
    scans, drains = zip(*found, strict=True)
    name = f"from a scan, of {plan.flag_count:,}"
    return [
        _result(f"{name} / a drain", statistics.median(ratios(scans, drains)), "x", SCAN_BOUND),
        _result(name, statistics.median(scans), "s"),
        _result(f"a bare drain, of {plan.flag_count:,}", statistics.median(drains), "s"),
    ]


def _result(case: str, value: float, unit: str, bound: float | None = None) -> Result:
    return Result(benchmark="startup", case=case, value=value, unit=unit, bound=bound)
