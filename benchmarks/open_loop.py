"""Open loop: a service that checks flags on a schedule while they change and are folded.

The service's thread makes CHECKS_A_BATCH checks each millisecond, whether it is late or not, and
is told from when a batch was due to when it was done. First nothing happens beside it. Then its
client starts, from a snapshot file of the whole catalogue, and revisions come at a steady rate. The
service goes on until its client has folded and has built its base anew (a compaction), in the file
both. W2 is changed by each revision, and from its 256th version on a base has to be built anew.

What the machine itself does to a thread is told apart: a control in a process of its own makes
the same checks by the same schedule at the same time, of a client that has nothing else to do.
The database and what feeds it would be elsewhere, so they run at a lower priority.
"""

import gc
import itertools
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from msgspec import Struct
from pymongo import MongoClient

from benchmarks import catalogue
from benchmarks.catalogue import ENVIRONMENT, ROLLOUT, StoredCatalogue
from benchmarks.report import MeasurementPlan, Result, compute_percentile, measure_with_retries
from benchmarks.revision_feed import iter_changes
from benchmarks.subprocesses import WorkerProcess
from benchmarks.workloads import CONTEXT
from flagkit._core.model.changes import Change, Tip
from flagkit._core.storage.documents import encode_head, encode_ledger
from flagkit._core.storage.layout import HEADS, LEDGER
from flagkit.client.client import Client
from flagkit.config import DATABASE
from flagkit.testing.embedded import EmbeddedMongo

BATCHES_A_SECOND: Final = 1_000
CHECKS_A_BATCH: Final = 50
REVISIONS_A_SECOND: Final = 500
OTHERS_COUNT: Final = 3
"""How many flags a revision changes beside W2."""
LEDGERED_AT_ONCE: Final = 50
HOT_MAX: Final = 10_000
LOWER_PRIORITY: Final = 10
"""The nice value of what would run elsewhere."""
FULL: Final = 2
"""The generation of all objects."""
SETTLED_SECONDS: Final = 1.0
"""So long a client is left alone that has been started."""
AFTERWARDS_SECONDS: Final = 0.5
"""So long the service goes on, for what was replaced last has to be freed, too."""
LOOP_SECONDS_MAX: Final = 240.0
PATIENCE_SECONDS: Final = 60.0
SEED: Final = 20261122

STALL_BOUND_MILLISECONDS: Final = 10.0
SERVED_BOUND: Final = 0.9
APPLIED_BOUND: Final = 0.9 * REVISIONS_A_SECOND


class LoopTiming(Struct, frozen=True):
    """What a thread met with: for how long it went on, and how late it was done with each batch."""

    seconds: float
    late_seconds: Sequence[float]

    @property
    def checks_a_second(self) -> float:
        """How many checks it made."""
        return len(self.late_seconds) * CHECKS_A_BATCH / self.seconds

    def get_stall(self, percent: float = 100) -> float:
        """Return the longest time from when a batch was due until it was done, in ms."""
        return compute_percentile(self.late_seconds, percent) * 1000


class ServiceTiming(Struct, frozen=True):
    """What a service met with, idle and busy, and what its client did meanwhile."""

    idle: LoopTiming
    busy: LoopTiming
    applied_count: int
    fold_count: int
    compaction_count: int
    collections: Sequence[float]
    """How long each run of the collector of cycles took, in seconds of its thread."""
    full_count: int
    """How many of them walked all objects."""


class BaseCounter:
    """The bases that a client has had: how many were folded, and how many were built anew."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.fold_count = self.compaction_count = 0
        self._last = self._read_base()

    def has_seen_both(self) -> bool:
        """Look at the client; tell whether it has folded and has built anew."""
        found = self._read_base()
        if found != self._last:
            # Merged, the base would have kept what it had.
            if found[1] != self._last[1]:
                self.compaction_count += 1
            else:
                self.fold_count += 1
            self._last = found
        return self.fold_count > 0 and self.compaction_count > 0

    def _read_base(self) -> tuple[int, int]:
        """Return which base it is, and in how many bytes it has versions."""
        snapshot = self._client.snapshot
        assert snapshot is not None, "it has a file"
        header = snapshot.base.header
        return header.tip.revision, header.version_bytes


class GcTimer:
    """The runs of the collector of cycles, which stops all threads: their processor's time."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.full_count = 0
        self._began = 0.0
        gc.callbacks.append(self._on_collection)

    def _on_collection(self, phase: str, info: Mapping[str, int]) -> None:
        if phase == "start":
            self._began = time.thread_time()
        else:
            self.seconds.append(time.thread_time() - self._began)
            self.full_count += info["generation"] == FULL


def run(plan: MeasurementPlan) -> Iterator[Result]:
    """Measure at the full number of flags."""
    stored = catalogue.store_catalogue(plan.flag_count)
    yield from measure_with_retries(lambda: _measure(stored, plan))


def feed_revisions(tip: Tip, flag_count: int, connection: Connection) -> None:
    """Have a database; send its URI; once told to, feed revisions until told to stop."""
    os.nice(LOWER_PRIORITY)
    with EmbeddedMongo() as server, MongoClient[dict[str, Any]](server.uri, w=1) as mongo:
        heads, ledger = mongo[DATABASE][HEADS], mongo[DATABASE][LEDGER]
        heads.insert_one(encode_head(tip, None))
        connection.send(server.uri)
        connection.recv()
        history = iter_changes(tip, flag_count, OTHERS_COUNT)
        ahead: list[Change] = []
        start = time.perf_counter()
        for number in itertools.count():
            if not ahead:
                ahead = list(itertools.islice(history, LEDGERED_AT_ONCE))
                # Before their heads, where nobody looks for them.
                ledger.insert_many(map(encode_ledger, ahead))
                ahead.reverse()
            time.sleep(max(0.0, start + number / REVISIONS_A_SECOND - time.perf_counter()))
            if connection.poll():
                break
            change = ahead.pop()
            heads.replace_one({"_id": ENVIRONMENT}, encode_head(change.tip, change))
        connection.send(None)
        connection.recv()


def run_service(
    uri: str, path: str, stored: StoredCatalogue, idle_seconds: float, connection: Connection
) -> None:
    """Check flags with nothing beside it; start the client, say so, and check on."""
    client = Client(uri, environment=ENVIRONMENT, snapshot_path=path)
    keys = _list_hot_keys(stored.count)
    idle = _run_loop(client, keys, lambda: False, idle_seconds)
    with client:
        # A service has long walked what a start leaves, the driver's modules included.
        time.sleep(SETTLED_SECONDS)
        gc.collect()
        first, bases, collections = client.revision, BaseCounter(client), GcTimer()
        connection.send(None)
        busy = _run_loop(client, keys, bases.has_seen_both, LOOP_SECONDS_MAX)
        applied = client.revision - first
        counts = bases.fold_count, bases.compaction_count
        runs = collections.seconds, collections.full_count
        connection.send(ServiceTiming(idle, busy, applied, *counts, *runs))


def run_control(stored: StoredCatalogue, connection: Connection) -> None:
    """Check flags until told to stop, with nothing beside it."""
    client = stored.create_client()
    keys = _list_hot_keys(stored.count)
    connection.recv()
    connection.send(_run_loop(client, keys, connection.poll, LOOP_SECONDS_MAX))


def _run_loop(
    client: Client, keys: Sequence[str], enough: Callable[[], bool], seconds_max: float
) -> LoopTiming:
    context, turn = dict(CONTEXT), itertools.cycle(keys)
    for key in keys:
        client.is_enabled(key, context)
    late: list[float] = []
    start = time.perf_counter()
    end = start + seconds_max
    over = False
    for number in itertools.count():
        due = start + number / BATCHES_A_SECOND
        if due >= end:
            break
        time.sleep(max(0.0, due - time.perf_counter()))
        for key in itertools.islice(turn, CHECKS_A_BATCH):
            client.is_enabled(key, context)
        late.append(time.perf_counter() - due)
        if not over and enough():
            over, end = True, due + AFTERWARDS_SECONDS
    return LoopTiming(time.perf_counter() - start, late)


def _list_hot_keys(count: int) -> list[str]:
    keys = list(itertools.islice(catalogue.iter_keys(ROLLOUT, count), HOT_MAX))
    random.Random(SEED).shuffle(keys)
    return keys


def _measure(stored: StoredCatalogue, plan: MeasurementPlan) -> list[Result]:
    tip = stored.tip
    with (
        tempfile.TemporaryDirectory(prefix="flagkit-benchmarks-") as directory,
        WorkerProcess(feed_revisions, tip, stored.count) as feeder,
        WorkerProcess(run_control, stored) as other,
    ):
        path = shutil.copy(stored.path, Path(directory, "flags.snapshot"))
        uri = feeder.receive(PATIENCE_SECONDS)
        idle_seconds = 1.0 if plan.quick else 5.0
        with WorkerProcess(run_service, uri, str(path), stored, idle_seconds) as service:
            service.receive(PATIENCE_SECONDS)
            feeder.send(None)
            other.send(None)
            served: ServiceTiming = service.receive(LOOP_SECONDS_MAX + PATIENCE_SECONDS)
            other.send(None)
            beside: LoopTiming = other.receive(PATIENCE_SECONDS)
            feeder.send(None)
            feeder.receive(PATIENCE_SECONDS)
            feeder.send(None)
    return _build_results(served, beside, plan)


def _build_results(
    served: ServiceTiming, beside: LoopTiming, plan: MeasurementPlan
) -> list[Result]:
    idle, busy = served.idle, served.busy
    # Seconds are the machine's, so that CI judges ratios alone, and that the work was done.
    stall, applied = (None, None) if plan.quick else (STALL_BOUND_MILLISECONDS, APPLIED_BOUND)
    details: dict[str, object] = {
        "flag_count": plan.flag_count,
        "seconds": busy.seconds,
        "checks_a_second": busy.checks_a_second,
        "late_p99_ms": busy.get_stall(99),
        "collections": len(served.collections),
        "full_collections": served.full_count,
    }
    figures = [
        ("longest stall", busy.get_stall(), "ms", stall, False),
        ("longest stall of a control", beside.get_stall(), "ms", None, False),
        ("longest stall before", idle.get_stall(), "ms", None, False),
        (
            "longest collection of cycles",
            max(served.collections, default=0.0) * 1000,
            "ms",
            None,
            False,
        ),
        ("stall, p99.9", busy.get_stall(99.9), "ms", None, False),
        ("stall of a control, p99.9", beside.get_stall(99.9), "ms", None, False),
        (
            "checks served / before",
            busy.checks_a_second / idle.checks_a_second,
            *("x", SERVED_BOUND, True),
        ),
        ("revisions applied", served.applied_count / busy.seconds, "1/s", applied, True),
        ("folds", served.fold_count, "", 1, True),
        ("compactions", served.compaction_count, "", 1, True),
    ]
    return [
        Result(
            benchmark="refresh",
            case=f"open loop, {what}",
            value=value,
            unit=unit,
            bound=bound,
            at_least=at_least,
            details=details,
        )
        for what, value, unit, bound, at_least in figures
    ]
