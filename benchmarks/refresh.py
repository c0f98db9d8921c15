"""Refresh: how long a change takes from its writer to a client in another process.

`apply_backlog` measures how fast a client applies revisions. `open_loop` measures the effect on a
service. This module runs all three.

A writer here commits a change, rests, and commits the next. A client in a second process notes when
it answers by each revision; a bare change stream in a third notes when the event of the same change
arrives, which is the floor. All read one clock, CLOCK_MONOTONIC, which processes share.

The commit happens within the writer's call, and nobody outside can see when. So times are told from
the start of the call, which is more than the truth, and from its return, which is less: the client
may be there before the call returns. The bound is on the former.
"""

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any, Final, TypeAlias

from msgspec import Struct
from pymongo import MongoClient

from benchmarks import apply_backlog, open_loop
from benchmarks.report import MeasurementPlan, Result, compute_percentile, measure_with_retries
from benchmarks.subprocesses import WorkerProcess
from flagkit._core.storage.layout import HEADS
from flagkit.client.client import Client
from flagkit.config import DATABASE
from flagkit.errors import NotReadyError
from flagkit.testing.embedded import EmbeddedMongo
from flagkit.writer import Writer

BOUND_MILLISECONDS: Final = 50.0
WARM_UP_COUNT: Final = 20
"""How many first changes are not counted."""
REST_SECONDS_MAX: Final = 0.02
PATIENCE_SECONDS: Final = 60.0

ENVIRONMENT, KEY = "benchmark", "benchmark.refresh"
FLAG: Final[Mapping[str, Any]] = {
    "key": KEY,
    "variants": {"on": True, "off": False},
    "fallthrough": {"rollout": 0},
}

Follower: TypeAlias = Callable[[str, range, Connection], None]
"""Takes a URI and revisions; sends None when it follows, and at the end when it saw each, in ns."""


class TimedCommit(Struct, frozen=True):
    """A change as its writer saw it, in nanoseconds of the monotonic clock."""

    revision: int
    called_at: int
    returned_at: int


def run(plan: MeasurementPlan) -> Iterator[Result]:
    """Measure how soon, how fast, and how smoothly."""
    yield from _measure_visibility(plan)
    yield from apply_backlog.run(plan)
    yield from open_loop.run(plan)


def _measure_visibility(plan: MeasurementPlan) -> Iterator[Result]:
    """Measure on a server of one member."""
    with (
        EmbeddedMongo() as server,
        Writer(server.uri, ENVIRONMENT, actor="benchmark") as writer,
    ):
        writer.create_environment()
        writer.create(FLAG)
        yield from measure_with_retries(lambda: _measure(server.uri, writer, plan))


def follow_with_client(uri: str, revisions: range, parent: Connection) -> None:
    """Note when a client answers by each revision."""
    seen: dict[int, int] = {}
    with Client(uri, environment=ENVIRONMENT) as client:
        client.wait_ready(PATIENCE_SECONDS)
        parent.send(None)
        for revision in revisions:
            client.wait_for(revision, PATIENCE_SECONDS)
            answer = client.evaluate(KEY, "user-1", default=False)
            seen[revision] = time.monotonic_ns()
            # The environment's first revision made the flag, and each later one changed it.
            if answer.version < revision or answer.revision < revision:
                raise NotReadyError(f"at revision {revision} the client answered {answer}")
    parent.send(seen)


def follow_with_stream(uri: str, revisions: range, parent: Connection) -> None:
    """Note when a bare change stream brings each revision."""
    seen: dict[int, int] = {}
    with MongoClient[dict[str, Any]](uri) as mongo, mongo[DATABASE][HEADS].watch() as stream:
        parent.send(None)
        for event in stream:
            revision = event["fullDocument"]["revision"]
            seen[revision] = time.monotonic_ns()
            if revision >= revisions[-1]:
                break
    parent.send(seen)


def _measure(uri: str, writer: Writer, plan: MeasurementPlan) -> list[Result]:
    change_count = 100 if plan.quick else 500
    first = writer.create_environment().revision + 1
    revisions = range(first, first + WARM_UP_COUNT + change_count)
    with ExitStack() as stack:
        ready = [
            stack.enter_context(WorkerProcess(follower, uri, revisions))
            for follower in (follow_with_client, follow_with_stream)
        ]
        for process in ready:
            process.receive(PATIENCE_SECONDS)
        commits = _write_revisions(writer, revisions)[WARM_UP_COUNT:]
        client, stream = (process.receive(PATIENCE_SECONDS) for process in ready)
    bound = None if plan.quick else BOUND_MILLISECONDS
    return _build_results(commits, client, stream, bound)


def _write_revisions(writer: Writer, revisions: range) -> list[TimedCommit]:
    chance = random.Random(len(revisions))
    commits: list[TimedCommit] = []
    for revision in revisions:
        time.sleep(chance.uniform(0, REST_SECONDS_MAX))
        called = time.monotonic_ns()
        commit = writer.set_rollout(KEY, 1 + revision % 99)
        commits.append(TimedCommit(commit.revision, called, time.monotonic_ns()))
    return commits


def _build_results(
    commits: Sequence[TimedCommit],
    client: Mapping[int, int],
    stream: Mapping[int, int],
    visible_bound: float | None,
) -> list[Result]:
    details: dict[str, object] = {"change_count": len(commits), "member_count": 1}

    def line(what: str, percent: int, values: Sequence[int], bound: float | None = None) -> Result:
        return Result(
            benchmark="refresh",
            case=f"{what}, p{percent}",
            value=compute_percentile(values, percent) / 1e6,
            unit="ms",
            bound=bound,
            details=details,
        )

    def since_call(seen: Mapping[int, int]) -> list[int]:
        return [seen[commit.revision] - commit.called_at for commit in commits]

    def since_return(seen: Mapping[int, int]) -> list[int]:
        return [seen[commit.revision] - commit.returned_at for commit in commits]

    behind = [client[commit.revision] - stream[commit.revision] for commit in commits]
    return [
        line("call to visible", 50, since_call(client)),
        line("call to visible", 99, since_call(client), visible_bound),
        line("call to a bare stream", 50, since_call(stream)),
        line("call to a bare stream", 99, since_call(stream)),
        line("return to visible", 50, since_return(client)),
        line("return to visible", 99, since_return(client)),
        line("return to a bare stream", 50, since_return(stream)),
        line("return to a bare stream", 99, since_return(stream)),
        line("client after a bare stream", 50, behind),
        line("client after a bare stream", 99, behind),
        line(
            "the writer's call", 50, [commit.returned_at - commit.called_at for commit in commits]
        ),
        line(
            "the writer's call", 99, [commit.returned_at - commit.called_at for commit in commits]
        ),
    ]
