"""Applying: how fast a client takes in a backlog of revisions, beside a bare watcher of the same.

Both open their stream before anything happens. Then revisions are written, and one after the
other they drain them, in turn the first. The client's part is its source, refresher and view, as
the refresh thread has them; it decodes, verifies, applies and publishes. The watcher is the
driver's, and only reads which revision it is.
"""

import asyncio
import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, Final, TypeAlias

from pymongo import MongoClient, ReplaceOne
from pymongo.collection import Collection

from benchmarks import catalogue
from benchmarks.catalogue import ENVIRONMENT, StoredCatalogue
from benchmarks.interleave import compute_ratios
from benchmarks.report import MeasurementPlan, Result, measure_with_retries
from benchmarks.revision_feed import iter_changes
from benchmarks.subprocesses import WorkerProcess
from flagkit._core.evaluation.evaluator import Evaluator
from flagkit._core.model import EVERYWHERE
from flagkit._core.storage.documents import encode_head
from flagkit._core.storage.layout import HEADS
from flagkit._core.storage.source import MongoSource
from flagkit.client.refresher import CatchUp, CatchUpDone, ChangesReceived, Refresher, RefreshState
from flagkit.config import DATABASE
from flagkit.testing.embedded import EmbeddedMongo

FLAG_COUNT: Final = 10_000
OTHERS_COUNT: Final = 0
"""How many flags a revision changes beside W2."""
BOUND: Final = 0.5
WRITTEN_AT_ONCE: Final = 1_000
PATIENCE_SECONDS: Final = 60.0

Drain: TypeAlias = Callable[[str, StoredCatalogue, Connection], None]
"""Takes a URI and what the history begins with; sends None when it has its stream, receives the
last revision when all are there, and sends in how many seconds it had them."""


def run(plan: MeasurementPlan) -> Iterator[Result]:
    """Measure on a server of one member."""
    stored = catalogue.store_catalogue(FLAG_COUNT)
    with EmbeddedMongo() as server, MongoClient[dict[str, Any]](server.uri) as mongo:
        heads = mongo[DATABASE][HEADS]
        count, rounds = (2_000, 5) if plan.quick else (10_000, 7)
        yield from measure_with_retries(lambda: _measure(server.uri, heads, stored, count, rounds))


def drain_with_client(uri: str, stored: StoredCatalogue, connection: Connection) -> None:
    """Drain the stream as a client does."""
    asyncio.run(_drain_with_client(uri, stored, connection))


async def _drain_with_client(uri: str, stored: StoredCatalogue, connection: Connection) -> None:
    snapshot = stored.create_client().snapshot
    assert snapshot is not None, "it is of a file"
    source = MongoSource(uri, environment=ENVIRONMENT, region=EVERYWHERE, database=DATABASE)
    refresher = Refresher(random.Random(), snapshot)
    view = Evaluator(snapshot, time.time)
    action = refresher.start(time.monotonic())
    assert isinstance(action, CatchUp), "it has a snapshot"
    await source.open(action.route)
    caught_up = CatchUpDone(await source.catch_up(action.tip, action.route))
    refresher.step(caught_up, time.monotonic())
    connection.send(None)
    last = connection.recv()
    start = time.perf_counter()
    while view.snapshot.tip.revision < last:
        refresher.step(ChangesReceived(await source.watch()), time.monotonic())
        assert refresher.state is RefreshState.WATCHING, "nothing is missing"
        assert refresher.snapshot is not None, "it began with one"
        view = view.advance(refresher.snapshot, refresher.applied or ())
    connection.send(time.perf_counter() - start)
    await source.close()


def drain_with_watcher(uri: str, _: StoredCatalogue, connection: Connection) -> None:
    """Drain the stream with the driver alone."""
    with MongoClient[dict[str, Any]](uri) as mongo, mongo[DATABASE][HEADS].watch() as stream:
        connection.send(None)
        last = connection.recv()
        start = time.perf_counter()
        for event in stream:
            if event["fullDocument"]["revision"] >= last:
                break
        connection.send(time.perf_counter() - start)


def _measure(
    uri: str,
    heads: Collection[dict[str, Any]],
    stored: StoredCatalogue,
    count: int,
    round_count: int,
) -> list[Result]:
    found: dict[Drain, list[float]] = {drain_with_client: [], drain_with_watcher: []}
    for number in range(round_count):
        order = list(found) if number % 2 else list(reversed(found))
        for drain, seconds in zip(
            order, _iter_drains(uri, heads, stored, count, order), strict=True
        ):
            found[drain].append(count / seconds)
    ours, bare = found.values()
    details: dict[str, object] = {"revisions": count, "round_count": round_count}
    figures = [
        ("applying / a bare watcher", compute_ratios(ours, bare), "x", BOUND),
        ("revisions applied", ours, "1/s", None),
        ("revisions that a bare watcher reads", bare, "1/s", None),
    ]
    return [
        Result(
            benchmark="refresh",
            case=case,
            value=statistics.median(values),
            unit=unit,
            bound=bound,
            at_least=bound is not None,
            details=details,
        )
        for case, values, unit, bound in figures
    ]


def _iter_drains(
    uri: str,
    heads: Collection[dict[str, Any]],
    stored: StoredCatalogue,
    count: int,
    order: list[Drain],
) -> Iterator[float]:
    """Yield the seconds of each, one after the other, over the same backlog."""
    tip = stored.tip
    heads.replace_one({"_id": ENVIRONMENT}, encode_head(tip, None), upsert=True)
    companions = [WorkerProcess(drain, uri, stored) for drain in order]
    try:
        for companion in companions:
            companion.receive(PATIENCE_SECONDS)
        history = iter_changes(tip, stored.count, OTHERS_COUNT)
        written = 0
        while written < count:
            some = list(itertools.islice(history, min(WRITTEN_AT_ONCE, count - written)))
            documents = [encode_head(change.tip, change) for change in some]
            heads.bulk_write([ReplaceOne({"_id": ENVIRONMENT}, head) for head in documents])
            written += len(some)
        for companion in companions:
            companion.send(tip.revision + count)
            yield companion.receive(PATIENCE_SECONDS)
    finally:
        for companion in companions:
            companion.end()
