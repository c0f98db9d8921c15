"""Rollback rehearsals: a long random history, and the environment rolled back to points of it."""

import random
import resource
import time
import uuid
from collections.abc import Iterator

from benchmarks.report import Result
from flagkit import Client
from flagkit._core.model.changes import PolicyId
from flagkit.testing.embedded import EmbeddedMongo
from flagkit.writer import Import, Writer
from tests.support.random_history import RandomHistory

KEYS = 100
CHANGES_PER_POINT = 20
LARGE = 100_000
"""So many flags does one rollback change."""
LARGE_SECONDS_MAX = 60.0


def soak(points: int, seed: int) -> Iterator[Result]:
    """Make CHANGES_PER_POINT revisions for each point, then roll back to random ones of all."""
    database = f"soak-{uuid.uuid4().hex}"
    with (
        EmbeddedMongo() as server,
        Writer(server.uri, "soak", actor="soak", database=database) as writer,
    ):
        writer.create_environment()
        rehearsal = RandomHistory(writer, random.Random(seed), KEYS)
        for _ in range(points * CHANGES_PER_POINT):
            rehearsal.change()
        slowest = 0.0
        for _ in range(points):
            started = time.monotonic()
            rehearsal.roll_back()
            slowest = max(slowest, time.monotonic() - started)
        problems = [*rehearsal.problems, *writer.reader.verify()]
    for problem in problems:
        print(f"  {problem}")
    yield Result(
        benchmark="rollback",
        case=f"problems, {points * CHANGES_PER_POINT:,} revisions, {points} points",
        value=len(problems),
        unit="",
        bound=0,
        details={"policies": len(rehearsal.policies[-1])},
    )
    yield Result(
        benchmark="rollback",
        case="slowest rollback, with the look at what it made",
        value=round(slowest, 2),
        unit="s",
    )
    yield from measure_large_rollback()


def measure_large_rollback(count: int = LARGE) -> Iterator[Result]:
    """Change each of many flags, delete some, create some, and roll all of that back at once."""
    problems: list[str] = []
    with EmbeddedMongo() as server, Writer(server.uri, "soak", actor="soak") as writer:
        writer.create_environment()
        _import(writer, count, description="first")
        before, revision = _read_policies(writer), writer.store.read_tip().revision
        _import(writer, count + 1_000, description="second")
        with Client(server.uri, environment="soak") as client:
            client.wait_ready(120)
            started, used = time.monotonic(), time.process_time()
            commit = writer.rollback(to=revision, reason="rehearsal")
            seconds, used = time.monotonic() - started, time.process_time() - used
            client.wait_for(commit.revision, 300)
            assert client.snapshot is not None, "it is ready"
            if len(client.snapshot.list_keys()) != count:
                problems.append("the client has other flags")
        after = _read_policies(writer)
        if after != before:
            problems.append(f"{len(after.items() ^ before.items())} flags are not as they were")
        problems += writer.reader.verify()
    for problem in problems:
        print(f"  {problem}")
    yield Result(
        benchmark="rollback",
        case=f"problems, {count:,} flags at once",
        value=len(problems),
        unit="",
        bound=0,
    )
    yield Result(
        benchmark="rollback",
        case=f"rollback of {count:,} flags",
        value=round(seconds, 1),
        unit="s",
        bound=LARGE_SECONDS_MAX,
        details={
            "cpu_seconds": round(used, 1),
            "megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
        },
    )


def _import(writer: Writer, count: int, **more: str) -> None:
    documents = Import("soak")
    for i in range(count):
        weights = {"on": i % 101, "off": 100 - i % 101}
        documents.add(
            {
                "key": f"team-{i % 50}.flag-{i}",
                "variants": {"on": True, "off": False},
                "off": "off",
                "fallthrough": {"rollout": {"weights": weights}},
                **more,
            }
        )
    documents.run(writer)


def _read_policies(writer: Writer) -> dict[PolicyId, bytes]:
    """Return all policies in canonical form, byte for byte, without versions."""
    with writer.store.open_reader() as reading:
        return {identity: state.packed for identity, state in reading.read_all().items()}
