"""Failovers: the primary is killed again and again under a steady stream of revisions.

Services follow it by several read preferences, each in a process of its own, and evaluate all the
while. In the end each one's story is compared with the ledger's, revision by revision.
"""

import contextlib
import random
import time
import uuid
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from benchmarks.report import Result
from flagkit._core.model.changes import Change
from flagkit.writer import Writer
from tests.soak.steady import Acknowledged, SteadyWriter, create_stocked_writer
from tests.support.followers import ENVIRONMENT, FollowerProcess, identify_revision
from tests.support.replica_set import MongodReplicaSet

REVISIONS_PER_SECOND = 50
WRITERS = 3
"""Each makes its share: one alone would wait too long for its majority."""
BETWEEN_SECONDS = 2.0
"""How long, on average, the set is left alone once it is whole; a dead member half as long."""
DRAIN_SECONDS = 60.0
SPELL_SECONDS = 0.5
"""A longer time without a commit is a failover's."""
PREFERENCES = ("primary", "secondary", "nearest")
SLOWER_PERCENT_MAX = 10.0


def soak(kills: int, seed: int) -> Iterator[Result]:
    """Kill the primary so often, and tell what became of the revisions."""
    chance = random.Random(seed)
    with contextlib.ExitStack() as stack:
        members = stack.enter_context(MongodReplicaSet(3, proxied=False))
        database = f"soak-{uuid.uuid4().hex}"
        writer = stack.enter_context(create_stocked_writer(members.uri(), database))
        services = {
            preference: stack.enter_context(start_service(members, database, preference))
            for preference in PREFERENCES
        }
        # Beside them, in the same minutes, one that does nothing but answer.
        idle = stack.enter_context(start_service(members, database, "primary"))
        for each in (*services.values(), idle):
            each.assert_current(writer, DRAIN_SECONDS)
        idle.close_clients()
        for each in (*services.values(), idle):
            each.rate()
        writers = [
            stack.enter_context(
                Writer(members.uri(), ENVIRONMENT, actor=f"soak {number}", database=database)
            )
            for number in range(WRITERS)
        ]
        with contextlib.ExitStack() as writing:
            steady = [
                writing.enter_context(SteadyWriter(each, REVISIONS_PER_SECOND / WRITERS))
                for each in writers
            ]
            kill_primaries(members, kills, chance)
        acknowledged = sorted(
            (each for one in steady for each in one.acknowledged), key=lambda each: each[2]
        )
        rates = {preference: each.rate() for preference, each in services.items()}
        idle_rate = idle.rate()
        for each in services.values():
            each.assert_current(writer, DRAIN_SECONDS)
        yield from iter_ledger_results(writer, acknowledged)
        changes = list(writer.store.iter_changes())
        for preference, each in services.items():
            yield from iter_service_results(preference, each, changes, acknowledged)
            yield build_result(
                f"{preference}: fewer evaluations than at rest",
                round(100 * (1 - rates[preference] / idle_rate), 1),
                SLOWER_PERCENT_MAX,
                "%",
                details={"per_cpu_second": rates[preference], "at_rest": idle_rate},
            )


def start_service(members: MongodReplicaSet, database: str, preference: str) -> FollowerProcess:
    """Return a service that reads as it prefers."""
    return FollowerProcess(
        members.uri(f"readPreference={preference}"), database, options=["--meter"]
    )


def kill_primaries(members: MongodReplicaSet, kills: int, chance: random.Random) -> None:
    """Kill the primary of a set that is whole, and bring it back once there is another."""
    for _ in range(kills):
        members.settle()
        time.sleep(chance.uniform(0, 2 * BETWEEN_SECONDS))
        primary = members.primary()
        primary.kill()
        members.primary()
        time.sleep(chance.uniform(0, BETWEEN_SECONDS))
        primary.start()
        primary.wait_listening()
    members.settle()


def iter_ledger_results(writer: Writer, acknowledged: list[Acknowledged]) -> Iterator[Result]:
    """Tell what became of what was acknowledged."""
    made = {change.request: change.revision for change in writer.store.iter_changes()}
    lost = [revision for request, revision, _ in acknowledged if made.get(request) != revision]
    moments = [moment for _, _, moment in acknowledged]
    seconds = moments[-1] - moments[0]
    yield build_result("revisions acknowledged", len(moments))
    pauses = [after - before for before, after in pairwise(moments)]
    steady = [pause for pause in pauses if pause < SPELL_SECONDS]
    yield build_result("revisions a second, between failovers", round(len(steady) / sum(steady), 1))
    yield build_result("revisions a second, failovers included", round(len(moments) / seconds, 1))
    yield build_result("acknowledged revisions lost", len(lost), 0)
    yield build_result("faults in the ledger", len(writer.reader.verify()), 0)
    yield build_result(
        "longest spell without a commit", round(compute_longest_gap(moments), 3), unit="s"
    )


def iter_service_results(
    preference: str,
    service: FollowerProcess,
    changes: list[Change],
    acknowledged: list[Acknowledged],
) -> Iterator[Result]:
    """Compare what a service has published with the ledger, and with when it was acknowledged."""
    said = service.published()
    there = [tuple(each) for each in said["places"]]
    truth = {identify_revision(change.tip) for change in changes}
    seen = set(there)
    first = min(revision for _, revision, _ in there)
    missed = sum(1 for _, revision, _ in truth - seen if revision > first)
    yield build_result(f"{preference}: revisions missed", missed, 0)
    yield build_result(f"{preference}: revisions that are not in the ledger", len(seen - truth), 0)
    yield build_result(f"{preference}: revisions applied twice", len(there) - len(seen), 0)
    backwards = sum(after[1] <= before[1] for before, after in pairwise(there))
    yield build_result(f"{preference}: revisions out of order", backwards, 0)
    yield build_result(f"{preference}: new bases", len(said["bases"]) - 1, 0)
    arrived = dict(zip((revision for _, revision, _ in there), said["moments"], strict=True))
    blind = [
        arrived[revision] - moment for _, revision, moment in acknowledged if revision in arrived
    ]
    yield build_result(f"{preference}: longest blind spell", round(max(0, *blind), 3), unit="s")
    silence = compute_longest_gap(said["moments"])
    yield build_result(
        f"{preference}: longest time without a revision", round(silence, 3), unit="s"
    )


def compute_longest_gap(moments: list[float]) -> float:
    """Return the longest time between two moments, in seconds."""
    return max(after - before for before, after in pairwise(moments))


def build_result(
    case: str,
    value: float,
    bound: float | None = None,
    unit: str = "",
    details: dict[str, Any] | None = None,
) -> Result:
    return Result(
        benchmark="failover",
        case=case,
        value=value,
        unit=unit,
        bound=bound,
        details=details or {},
    )
