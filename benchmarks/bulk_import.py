"""Load: an import of many flags beside a bare insert of the same bytes, and in nobody's way.

The bare insert is one `insert_many` for a majority, in the same run, into collections without
indexes: once of the documents of the flags alone, and once of every document that the import left,
those of the ledger, its pages and the audit, too. The documents to import are in memory; to check
and decode them is part of the import, and so are its pauses. Then the flags are imported into
another database, while a process beside it pauses and resumes a flag without end.
"""

import functools
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import bson
from pymongo import MongoClient
from pymongo.write_concern import WriteConcern

from benchmarks import catalogue, kill_switch_process
from benchmarks.report import MeasurementPlan, Result, compute_percentile, measure_with_retries
from flagkit._core.storage.layout import FLAGS
from flagkit.config import DATABASE
from flagkit.testing.embedded import EmbeddedMongo
from flagkit.writer import Import, Writer

FLAG_COUNT: Final = 100_000
RATIO_BOUND: Final = 0.2
SWITCH_BOUND: Final = 200.0
QUICK_RATIO_BOUND: Final = 0.05
QUICK_SWITCH_BOUND: Final = 1000.0
"""What a quick run is held to, with few flags and on whatever machine: not to be far worse."""
MEMBER_COUNTS: Final = (1, 3)

Document = dict[str, Any]


def run(plan: MeasurementPlan) -> Iterator[Result]:
    """Measure on one member and on three."""
    flags = [*catalogue.iter_documents(min(plan.flag_count, FLAG_COUNT))]
    for member_count in MEMBER_COUNTS:
        yield from measure_with_retries(
            functools.partial(_measure_members, member_count, flags, plan)
        )


def _measure_members(
    member_count: int, flags: Sequence[Document], plan: MeasurementPlan
) -> Sequence[Result]:
    return [*_iter_results(member_count, flags, quick=plan.quick)]


def _iter_results(member_count: int, flags: Sequence[Document], *, quick: bool) -> Iterator[Result]:
    where = f"{member_count} member{'s' if member_count > 1 else ''}"
    ratio_bound = QUICK_RATIO_BOUND if quick else RATIO_BOUND
    switch_bound = QUICK_SWITCH_BOUND if quick else SWITCH_BOUND
    with EmbeddedMongo(members=member_count) as server:
        seconds = _time_import(server.uri, flags)
        with MongoClient[Document](server.uri) as client:
            written = _read_documents(client)
            alone, alone_bytes = _time_bare_inserts(client, {FLAGS: written[FLAGS]})
            whole, whole_bytes = _time_bare_inserts(client, written)
    told: dict[str, object] = {"flags": len(flags), "seconds": round(seconds, 2)}
    for of, bare, size in (
        ("all that it writes", whole, whole_bytes),
        ("the flags alone", alone, alone_bytes),
    ):
        yield Result(
            benchmark="load",
            case=f"import to insert, {of}, {where}",
            value=round(bare / seconds, 3),
            unit="x",
            bound=ratio_bound if of == "all that it writes" else None,
            at_least=True,
            details=told | {"bare_seconds": round(bare, 2), "bytes": size},
        )
    with EmbeddedMongo(members=member_count) as server:
        took = _time_kill_switch(server.uri, flags)
    for name, value, bound in (
        ("p50", compute_percentile(took, 50), None),
        ("p99", compute_percentile(took, 99), switch_bound),
        ("longest", max(took), None),
    ):
        yield Result(
            benchmark="load",
            case=f"a pause meanwhile, {name}, {where}",
            value=round(value, 1),
            unit="ms",
            bound=bound,
            details={"calls": len(took)},
        )


def _time_import(uri: str, flags: Sequence[Document]) -> float:
    """Import flags, and return how many seconds that took."""
    with Writer(uri, catalogue.ENVIRONMENT, actor="load") as writer:
        writer.create_environment()
        started = time.monotonic()
        wanted = Import(catalogue.ENVIRONMENT)
        for flag in flags:
            wanted.add(flag)
        wanted.run(writer, reason="benchmark")
        return time.monotonic() - started


def _read_documents(client: MongoClient[Document]) -> dict[str, list[Document]]:
    database = client[DATABASE]
    return {name: [*database[name].find()] for name in database.list_collection_names()}


def _time_bare_inserts(
    client: MongoClient[Document], written: dict[str, list[Document]]
) -> tuple[float, int]:
    """Insert documents, and return how many seconds that took, and how many bytes they have."""
    client.drop_database("bare")
    majority = WriteConcern("majority")
    filled = {name: documents for name, documents in written.items() if documents}
    targets = {
        name: client["bare"].create_collection(name, write_concern=majority) for name in filled
    }
    started = time.monotonic()
    for name, documents in filled.items():
        targets[name].insert_many(documents)
    seconds = time.monotonic() - started
    return seconds, sum(len(bson.encode(each)) for some in filled.values() for each in some)


def _time_kill_switch(uri: str, flags: Sequence[Document]) -> list[float]:
    """Import flags beside a kill switch; return how many milliseconds each of its calls took."""
    switch = {"key": kill_switch_process.KEY, "variants": {"on": True, "off": False}, "off": "off"}
    with Writer(uri, catalogue.ENVIRONMENT, actor="load") as writer:
        writer.create_environment()
        writer.create({**switch, "fallthrough": {"serve": "on"}})
    process = subprocess.Popen(  # noqa: S603 - it is this Python
        [sys.executable, "-m", kill_switch_process.__name__, uri],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None, "it is a pipe"
        process.stdout.readline()
        _time_import(uri, flags)
        told, _ = process.communicate("")
    took: list[float] = json.loads(told)
    return took
