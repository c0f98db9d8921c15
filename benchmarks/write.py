"""Write: what a change costs, against what it costs to change two documents without flagkit.

The two take turns. Bare is a transaction, made by hand, that replaces a document and inserts
another, of about the bytes that head and ledger have of the change, for a majority. The change is
one of a rollout, with a grant, a limit and a guard in place; its commit point is when the
compare-and-set of the head was acknowledged. The floor is the driver's part of that, one document
read, one inserted for a majority, and then one replaced for a majority.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, islice
from typing import Any, Final

import bson
from pymongo import MongoClient
from pymongo.client_session import ClientSession

from benchmarks.report import MeasurementPlan, Result, compute_percentile, measure_with_retries
from flagkit._core.model.changes import Change, Tip
from flagkit._core.storage.layout import HEADS, LEDGER
from flagkit._core.storage.store import Store
from flagkit.config import DATABASE
from flagkit.testing.embedded import EmbeddedMongo
from flagkit.writer import Writer
from flagkit.writer.guards import LargestStep

COMMIT_BOUND: Final = 2.0
WHOLE_BOUND: Final = 3.0
MEMBER_COUNTS: Final = (1, 3)
WARM_UP_COUNT: Final = 20
"""How many first turns are not counted."""
FLAG_COUNT: Final = 100

ENVIRONMENT, ACTOR = "benchmark", "ada@example.com"
BARE, FLOOR, COMMIT, WHOLE = "bare", "floor", "call to commit", "whole call"


class TimedStore(Store):
    """A store that notes when a commit was acknowledged, in nanoseconds of the monotonic clock."""

    committed_at = 0

    def compare_and_set(self, tip: Tip, change: Change, *kept: Any) -> bool:
        """Commit a change, and note when that was done."""
        done = super().compare_and_set(tip, change, *kept)
        self.committed_at = time.monotonic_ns()
        return done


def use_timed_store(store: Store) -> TimedStore:
    """Have a writer's store note when its commits were acknowledged."""
    store.__class__ = TimedStore
    assert isinstance(store, TimedStore)
    return store


class WritePair:
    """A change and the bare transaction beside it, in one database, each made when it is asked."""

    def __init__(self, uri: str) -> None:
        self._writer = Writer(uri, ENVIRONMENT, actor=ACTOR, guards=[LargestStep(100)])
        self._store = use_timed_store(self._writer.store)
        self._mongo = MongoClient[dict[str, Any]](uri, w="majority")
        self._prepare()

    def close(self) -> None:
        """Close the connections."""
        self._writer.close()
        self._mongo.close()

    def time_change(self, number: int) -> tuple[int, int]:
        """Make a change; return how long it took to its commit, and in all."""
        called = time.monotonic_ns()
        self._writer.set_rollout(_build_key(number), 1 + number % 99)
        returned = time.monotonic_ns()
        return self._store.committed_at - called, returned - called

    def time_bare(self, number: int) -> int:
        """Make a bare transaction; return how long it took."""
        called = time.monotonic_ns()
        with self._mongo.start_session() as session, session.start_transaction():
            self._write_two_documents(number, session)
        return time.monotonic_ns() - called

    def time_floor(self, number: int) -> int:
        """Read, insert and replace a document, one after the other; return how long it took."""
        called = time.monotonic_ns()
        self._mongo[BARE]["replaced"].find_one({"_id": 0})
        self._write_two_documents(-number)
        return time.monotonic_ns() - called

    def _prepare(self) -> None:
        self._writer.create_environment()
        with self._writer.change() as change:
            for number in range(FLAG_COUNT):
                change.create(
                    {
                        "key": _build_key(number),
                        "variants": {"on": True, "off": False},
                        "fallthrough": {"rollout": 0},
                    }
                )
        with self._writer.change() as change:
            change.grant(ACTOR, "admin")
            change.set_limit("actor", capacity=10_000, rate=1_000)
        self._writer.set_rollout(_build_key(0), 50)
        database = self._mongo[DATABASE]
        self._sizes = [
            len(bson.encode(next(database[name].find(sort=[("_id", -1)], limit=1))))
            for name in (HEADS, LEDGER)
        ]
        self._mongo[BARE].create_collection("inserted")
        self._mongo[BARE]["replaced"].insert_one({"_id": 0})

    def _write_two_documents(self, number: int, session: ClientSession | None = None) -> None:
        replaced, inserted = ({"_id": 0, "text": "x" * size} for size in self._sizes)
        bare = self._mongo[BARE]
        bare["inserted"].insert_one(inserted | {"_id": number}, session=session)
        bare["replaced"].replace_one({"_id": 0}, replaced | {"number": number}, session=session)


def run(plan: MeasurementPlan) -> Iterator[Result]:
    """Measure on one member and on three."""
    for member_count in MEMBER_COUNTS:
        with EmbeddedMongo(members=member_count) as server:
            yield from _measure_members(server.uri, member_count, plan)


def _measure_members(uri: str, member_count: int, plan: MeasurementPlan) -> Sequence[Result]:
    pair, turns = WritePair(uri), count(1)
    try:
        return measure_with_retries(lambda: _measure(pair, turns, member_count, quick=plan.quick))
    finally:
        pair.close()


def _measure(
    pair: WritePair, turns: Iterator[int], member_count: int, *, quick: bool
) -> Sequence[Result]:
    turn_count = 40 if quick else 1_000
    bare: list[int] = []
    floor: list[int] = []
    changes: list[tuple[int, int]] = []
    for number in islice(turns, WARM_UP_COUNT + turn_count):
        bare.append(pair.time_bare(number))
        floor.append(pair.time_floor(number))
        changes.append(pair.time_change(number))
    commits, wholes = zip(*changes, strict=True)
    times = {BARE: bare, FLOOR: floor, COMMIT: commits, WHOLE: wholes}
    counted = {what: some[WARM_UP_COUNT:] for what, some in times.items()}
    return _build_results(counted, member_count, quick=quick)


def _build_results(
    found: Mapping[str, Sequence[int]], member_count: int, *, quick: bool
) -> list[Result]:
    details: dict[str, object] = {"turn_count": len(found[BARE]), "member_count": member_count}
    where = "one member" if member_count == 1 else f"{member_count} members"

    def line(what: str, value: float, unit: str, bound: float | None = None) -> Result:
        case = f"{what}, {where}"
        bound = None if quick else bound
        return Result(
            benchmark="write", case=case, value=value, unit=unit, bound=bound, details=details
        )

    p50 = {what: compute_percentile(values, 50) for what, values in found.items()}
    times = [
        line(f"{what}, p{percent}", compute_percentile(values, percent) / 1e6, "ms")
        for what, values in found.items()
        for percent in (50, 99)
    ]
    ratios = [
        line(f"{what} / bare, p50", p50[what] / p50[BARE], "x", bound)
        for what, bound in ((FLOOR, None), (COMMIT, COMMIT_BOUND), (WHOLE, WHOLE_BOUND))
    ]
    return times + ratios


def _build_key(number: int) -> str:
    return f"benchmark.flag-{number % FLAG_COUNT}"
