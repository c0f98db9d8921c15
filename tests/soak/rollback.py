"""Rollback rehearsals: a long random history, and the environment rolled back to points of it."""

import random
import time
import uuid
from collections.abc import Iterator

from benchmarks.report import Result
from flagkit.embedded import EmbeddedMongo
from flagkit.writer import Writer, verify
from tests.rehearsal import Rehearsal

KEYS = 100
CHANGES_PER_POINT = 20


def soak(points: int, seed: int) -> Iterator[Result]:
    """Make CHANGES_PER_POINT revisions for each point, then roll back to random ones of all."""
    database = f"soak-{uuid.uuid4().hex}"
    with (
        EmbeddedMongo() as server,
        Writer(server.uri, "soak", actor="soak", database=database) as writer,
    ):
        writer.create_environment()
        rehearsal = Rehearsal(writer, random.Random(seed), KEYS)
        for _ in range(points * CHANGES_PER_POINT):
            rehearsal.change()
        slowest = 0.0
        for _ in range(points):
            started = time.monotonic()
            rehearsal.roll_back()
            slowest = max(slowest, time.monotonic() - started)
        problems = [*rehearsal.problems, *verify(writer.store)]
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
