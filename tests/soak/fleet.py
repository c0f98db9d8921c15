"""A fleet: many clients on one server, at rest, under changes, and after the server was gone."""

import contextlib
import json
import os
import random
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from benchmarks.report import Result
from flagkit.writer import Writer
from tests.soak.steady import SteadyWriter, create_stocked_writer
from tests.support.followers import FLAG_COUNT, FollowerProcess, build_followed_flag
from tests.support.replica_set import MongodProcess, MongodReplicaSet

PROCESSES = 3
START_SECONDS = 120.0
SETTLED_SECONDS = 15.0
IDLE_SECONDS = 30.0
IDLE_PERCENT_MAX = 3.0
LOAD_SECONDS = 10.0
KEPT_UP_SECONDS = 1.0
"""A fleet keeps up whose last client has a revision so soon after it is acknowledged."""
RATES = (1, 2, 4, 8, 16, 32, 64, 128)
AWAY_SECONDS = 5.0
CONVERGED_SECONDS = 60.0

_ACCEPTED = '"id":22943,'  # mongod's log line "Connection accepted"


def soak(clients: int, seed: int) -> Iterator[Result]:
    """Follow with so many clients, in some processes; they choose their moments themselves."""
    random.seed(seed)
    for jitter in (True, False):
        with contextlib.ExitStack() as stack:
            members = stack.enter_context(MongodReplicaSet(proxied=False))
            database = f"soak-{uuid.uuid4().hex}"
            writer = stack.enter_context(create_stocked_writer(members.uri(), database))
            followers = [
                stack.enter_context(
                    FollowerProcess(
                        members.uri(),
                        database,
                        clients // PROCESSES,
                        options=[] if jitter else ["--no-jitter"],
                    )
                )
                for _ in range(PROCESSES)
            ]
            for follower in followers:
                follower.assert_current(writer, START_SECONDS)
            member = members.members[0]
            time.sleep(SETTLED_SECONDS)
            if jitter:
                yield measure_idle(member)
                yield from measure_capacity(writer, followers, clients)
            yield from measure_restart(member, writer, followers, "with" if jitter else "without")


def measure_idle(member: MongodProcess) -> Result:
    """Tell what the server does while nothing changes."""
    before = read_processor_seconds(member.pid)
    time.sleep(IDLE_SECONDS)
    used = read_processor_seconds(member.pid) - before
    return build_result(
        "server at rest", round(100 * used / IDLE_SECONDS, 2), IDLE_PERCENT_MAX, "% CPU"
    )


def measure_capacity(
    writer: Writer, followers: Sequence[FollowerProcess], clients: int
) -> Iterator[Result]:
    """Raise the rate until the fleet does not keep up; tell what the last one was that it kept."""
    best = 0.0
    for rate in RATES:
        with SteadyWriter(writer, rate) as steady:
            time.sleep(LOAD_SECONDS)
        try:
            converge(writer, followers, KEPT_UP_SECONDS)
        except AssertionError:
            converge(writer, followers, CONVERGED_SECONDS)
            break
        achieved = len(steady.acknowledged) / LOAD_SECONDS
        best = max(best, achieved)
        if achieved < 0.9 * rate:
            break
    yield build_result("revisions a second that all keep up with", round(best, 1))
    yield build_result("clients times revisions a second", round(best * clients), unit="1/s")


def measure_restart(
    member: MongodProcess, writer: Writer, followers: Sequence[FollowerProcess], jitter: str
) -> Iterator[Result]:
    """Kill the server, bring it back, and tell how all of them come back to it."""
    member.kill()
    time.sleep(AWAY_SECONDS)
    member.start()
    member.wait_listening()
    began = time.monotonic()
    writer.update(
        build_followed_flag(random.randrange(FLAG_COUNT), description="after the restart")
    )
    converge(writer, followers, CONVERGED_SECONDS)
    seconds = time.monotonic() - began
    yield build_result(f"{jitter} jitter: all are current again", round(seconds, 1), unit="s")
    peak = compute_peak_per_second(read_accept_times(member.log))
    yield build_result(f"{jitter} jitter: most new connections in a second", peak, unit="1/s")


def converge(writer: Writer, followers: Sequence[FollowerProcess], seconds: float) -> None:
    for follower in followers:
        follower.assert_current(writer, seconds)


def read_processor_seconds(pid: int) -> float:
    """Return the processor's time that a process has used, in user and system mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def read_accept_times(log: Path) -> list[float]:
    """Return the moments at which a server accepted connections, in seconds since 1970."""
    lines = log.read_text(errors="replace").splitlines()
    moments = [json.loads(line)["t"]["$date"] for line in lines if _ACCEPTED in line]
    return [datetime.fromisoformat(moment).timestamp() for moment in moments]


def compute_peak_per_second(moments: Sequence[float]) -> int:
    """Return the most moments within any one second."""
    recent: deque[float] = deque()
    peak = 0
    for moment in sorted(moments):
        recent.append(moment)
        while recent[0] <= moment - 1:
            recent.popleft()
        peak = max(peak, len(recent))
    return peak


def build_result(case: str, value: float, bound: float | None = None, unit: str = "") -> Result:
    return Result(benchmark="fleet", case=case, value=value, unit=unit, bound=bound)
