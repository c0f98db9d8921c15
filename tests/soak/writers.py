"""Writers that fight for the same flags and are killed, while a client follows.

Some are killed at random, some as soon as they have committed and before they have projected. What
a dead writer asked for is sent again by the next one, under the same idempotency key.
"""

import contextlib
import json
import queue
import random
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from msgspec import Struct

from benchmarks.report import Result
from flagkit._core.evaluation.evaluator import Staleness
from flagkit._core.model.changes import Change
from flagkit._core.snapshot import Snapshot, encode_record
from flagkit._core.storage.source import MongoSource
from flagkit._core.storage.store import Store
from flagkit.client.refresh_thread import RefreshThread
from flagkit.client.refresher import Refresher
from flagkit.writer import Writer
from tests.soak import writing
from tests.support.replica_set import MongodReplicaSet

ENVIRONMENT = "soak"
STUCK_SECONDS = 60
WRITERS = 16
FLAG_COUNT = 50
CHANGES_PER_KILL = 50
KILLS_PER_BETWEEN = 8
"""Of so many kills, one at least is to fall between compare-and-set and projection."""
FAILOVERS = 5
FAILOVER_SECONDS = 5.0
RESENT = 500


class WritersReport(Struct):
    """What happened: what writers said, who was killed when, and what a client saw.

    `between` counts the writers that died between compare-and-set and projection.
    """

    asked: set[str] = set()
    acknowledged: list[dict[str, Any]] = []
    kills: int = 0
    between: int = 0
    failovers: list[float] = []
    errors: list[str] = []
    published: list[int] = []
    bases: int = 0
    snapshot: Snapshot | None = None


class _WriterProcess:
    """One writer, whose lines go to a story; it may be killed in the middle of a change."""

    def __init__(
        self, arguments: Sequence[str], left: list[str], lines: "queue.Queue[dict[str, Any]]"
    ) -> None:
        self.left = left[0] if left else None
        """What it asked for and had no answer to."""
        self.committed = 0
        """The revision that it committed last, until it has projected that."""
        self.doomed = threading.Event()
        """Once set, it is killed when it commits next."""
        self._lines = lines
        self._process = subprocess.Popen(
            [sys.executable, "-m", writing.__name__, *arguments, *left],
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def kill(self) -> None:
        """Kill it, whatever it does, and hear its last words."""
        self._process.kill()
        self.bury()

    def bury(self) -> None:
        """Wait until it is dead and has said all."""
        self._process.wait()
        self._reader.join()

    @property
    def dead(self) -> bool:
        """Whether it has ended."""
        return not self._reader.is_alive()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                # One that a kill has cut off says nothing.
                with contextlib.suppress(json.JSONDecodeError):
                    self._hear(json.loads(line))

    def _hear(self, said: dict[str, Any]) -> None:
        match said:
            case {"asked": request}:
                self.left = request
            case {"committed": revision}:
                self.committed = revision
                if self.doomed.is_set():
                    self._process.kill()
            case {"projected": revision}:
                if revision == self.committed:
                    self.committed = 0
            case _:
                self.left = None
        self._lines.put(said)


class WriterFleet:
    """Writer processes, each replaced when it is killed; their lines arrive in one queue."""

    def __init__(self, arguments: Sequence[str], count: int, chance: random.Random) -> None:
        self.lines: queue.Queue[dict[str, Any]] = queue.Queue()
        self.left: list[str] = []
        """What was asked for, and is nobody's yet."""
        self._arguments = arguments
        self._chance = chance
        self._running = [self._started() for _ in range(count)]

    def kill_one(self) -> bool:
        """Kill a writer, whatever it does; return whether it was between commit and projection."""
        process = self._running.pop(self._chance.randrange(len(self._running)))
        process.kill()
        return self._replace(process)

    def kill_one_between(self) -> bool:
        """Kill a writer as soon as it commits; return whether it had not projected by then."""
        process = self._running.pop(self._chance.randrange(len(self._running)))
        process.doomed.set()
        process.bury()
        return self._replace(process)

    def close(self) -> None:
        """Kill all writers and read what they still said."""
        for process in self._running:
            process.kill()
            self._bequeath(process)

    def _replace(self, process: _WriterProcess) -> bool:
        self._bequeath(process)
        self._running.append(self._started())
        return process.committed > 0

    def _bequeath(self, process: _WriterProcess) -> None:
        if process.left is not None:
            self.left.append(process.left)

    def _started(self) -> _WriterProcess:
        left = [self.left.pop()] if self.left else []
        seed = str(self._chance.randrange(2**32))
        return _WriterProcess([*self._arguments, seed], left, self.lines)


def run(  # noqa: PLR0913 - who fights, for what, and who dies
    uri: str,
    *,
    changes: int,
    kills: int,
    between: int,
    writers: int,
    flags: int,
    seed: int,
    failovers: "PrimaryKiller | None" = None,
) -> tuple[WritersReport, list[str]]:
    """Let writers make some changes, while some are killed; return the story and what is wrong.

    Kills are spread over the run; every other one waits for a commit, and more come until `between`
    of them fell between compare-and-set and projection.
    """
    chance = random.Random(seed)
    database = f"soak-{uuid.uuid4().hex}"
    story = WritersReport()
    with Writer(uri, ENVIRONMENT, actor="soak", database=database) as writer:
        writer.create_environment()
        with writer.change() as change:
            for number in range(flags):
                change.create(writing.build_contended_flag(number))
        with follow_environment(uri, database, story) as caught_up:
            fleet = WriterFleet([uri, database, ENVIRONMENT, str(flags)], writers, chance)
            moments = sorted(chance.randrange(1, changes) for _ in range(kills))
            try:
                while len(story.acknowledged) < changes or story.between < between:
                    record_message(fleet.lines.get(timeout=STUCK_SECONDS), story)
                    made = len(story.acknowledged)
                    if failovers is not None:
                        failovers.take(made / changes, story)
                    while (moments and made >= moments[0]) or made >= changes:
                        story.between += _kill_writer(fleet, story.kills % 2 == 1)
                        story.kills += 1
                        if not moments:
                            break
                        moments.pop(0)
            finally:
                fleet.close()
            while not fleet.lines.empty():
                record_message(fleet.lines.get(), story)
            # What the dead left behind is asked for once more, whether it had been done or not.
            for request in fleet.left:
                commit = writing.send(writer, request, flags)
                story.acknowledged.append(
                    {"request": request, "revision": commit.revision, "time": str(commit.time)}
                )
            caught_up(writer.pause("soak.flag-0").revision)
        found = find_problems(writer, story)
        return story, found + find_resend_problems(writer, story, flags, chance)


def _kill_writer(fleet: WriterFleet, waits: bool) -> bool:
    return fleet.kill_one_between() if waits else fleet.kill_one()


class PrimaryKiller:
    """Kills the primary now and then, and brings it back. To be used in the main thread."""

    def __init__(self, members: MongodReplicaSet, count: int) -> None:
        self._members = members
        self._due = [(number + 0.5) / count for number in range(count)]

    def take(self, progress: float, story: WritersReport) -> None:
        """Kill the primary if the run has come so far."""
        if not self._due or progress < self._due[0]:
            return
        self._due.pop(0)
        self._members.settle()
        primary = self._members.primary()
        story.failovers.append(time.monotonic())
        primary.kill()
        self._members.primary()
        primary.start()
        primary.wait_listening()


def record_message(said: dict[str, Any], story: WritersReport) -> None:
    """Take in what a writer said."""
    match said:
        case {"error": error}:
            story.errors.append(error)
        case {"asked": request}:
            story.asked.add(request)
        case {"ended": _}:
            story.acknowledged.append(said)
        case _:
            pass


@contextlib.contextmanager
def follow_environment(uri: str, database: str, story: WritersReport) -> "Generator[Any]":
    """Follow the environment as a client does, noting what is published."""
    arrival = threading.Condition()

    def publish(snapshot: Snapshot, changes: Sequence[Change] | None) -> None:
        with arrival:
            if changes is None:
                story.bases += 1
                story.published.append(snapshot.tip.revision)
            else:
                story.published += [change.revision for change in changes]
            story.snapshot = snapshot
            arrival.notify_all()

    def caught_up(revision: int) -> None:
        with arrival:
            assert arrival.wait_for(
                lambda: story.published and story.published[-1] >= revision, STUCK_SECONDS
            ), f"revision {revision} did not come"

    thread = RefreshThread(
        lambda: MongoSource(uri, environment=ENVIRONMENT, region="*", database=database),
        publish,
        Staleness(),
        Refresher(random.Random()),
    )
    thread.start()
    try:
        caught_up(0)
        yield caught_up
    finally:
        assert thread.close(5)


def find_problems(writer: Writer, story: WritersReport) -> list[str]:
    """Return every broken promise."""
    store = writer.store
    found = list(story.errors) + writer.reader.verify()
    changes = list(store.iter_changes())
    requests = {change.request: change.revision for change in changes}
    if len(requests) != len(changes):
        found.append("a request is in the ledger twice")
    if [change.revision for change in changes] != list(range(1, len(changes) + 1)):
        found.append("the ledger has gaps")
    found += [
        f"acknowledged revision {said['revision']} is not in the ledger"
        for said in story.acknowledged
        if requests.get(said["request"]) != said["revision"]
    ]
    found += [f"{request} was asked for and never made" for request in story.asked - {*requests}]
    versions: Counter[str] = Counter()
    for change in changes:
        for flag in change.policies:
            versions[flag.id[1]] += 1
            if flag.after is None or flag.after.version != versions[flag.id[1]]:
                found.append(f"revision {change.revision} skips a version of {flag.id[1]}")
    found += find_client_problems(store, story, changes)
    return found


def find_resend_problems(
    writer: Writer, story: WritersReport, flags: int, chance: random.Random
) -> list[str]:
    """Send some acknowledged requests again; return those that led to another Commit."""
    count = writer.store.read_tip().revision
    acknowledged = [said for said in story.acknowledged if "ended" in said]
    found = [
        f"{said['request']} was sent again, and led to another commit"
        for said in chance.sample(acknowledged, min(RESENT, len(acknowledged)))
        for commit in [writing.send(writer, said["request"], flags)]
        if (commit.revision, commit.time.isoformat()) != (said["revision"], said["time"])
    ]
    if writer.store.read_tip().revision != count:
        found.append("what was sent again made revisions")
    return found


def find_client_problems(
    store: Store, story: WritersReport, changes: Sequence[Change]
) -> list[str]:
    """Return how the client's story differs from the ledger's."""
    found: list[str] = []
    if story.bases != 1:
        found.append(f"the client took {story.bases} bases")
    if any(after != before + 1 for before, after in pairwise(story.published)):
        found.append("the client saw revisions out of order, or missed some")
    if story.published[-1] != len(changes):
        found.append(f"the client ended at {story.published[-1]}, the ledger at {len(changes)}")
    with store.open_reader() as reading:
        states = set(map(encode_record, reading.read_all().values()))
    if story.snapshot is None or set(story.snapshot.iter_records()) != states:
        found.append("the client's flags are not the database's")
    return found


def measure_longest_gap(story: WritersReport, *, failovers: bool = False) -> float:
    """Return the longest time without a commit, in seconds, from the first acknowledgement on.

    Of the time in which a primary was killed and for FAILOVER_SECONDS after, or else of all other.
    """
    moments = sorted(said["ended"] for said in story.acknowledged if "ended" in said)
    spells = [
        after - before
        for before, after in pairwise(moments)
        if _is_of_failover(before, after, story.failovers) == failovers
    ]
    return float(max(spells, default=0.0))


def _is_of_failover(before: float, after: float, failovers: Iterable[float]) -> bool:
    return any(before < killed + FAILOVER_SECONDS and after > killed for killed in failovers)


def soak(changes: int, seed: int) -> Iterator[Result]:
    """Let WRITERS make so many changes on three members, of which the primary is killed, too."""
    kills = changes // CHANGES_PER_KILL
    with MongodReplicaSet(3, proxied=False) as members:
        started = time.monotonic()
        story, wrong = run(
            members.uri(),
            changes=changes,
            kills=kills,
            between=kills // KILLS_PER_BETWEEN,
            writers=WRITERS,
            flags=FLAG_COUNT,
            seed=seed,
            failovers=PrimaryKiller(members, FAILOVERS),
        )
        seconds = time.monotonic() - started
    for problem in wrong:
        print(f"  {problem}")
    yield build_result("broken promises", len(wrong), bound=0)
    yield build_result("changes acknowledged", len(story.acknowledged))
    yield build_result("changes a second", round(len(story.acknowledged) / seconds, 1))
    yield build_result("writers killed", story.kills, bound=kills, at_least=True)
    yield build_result(
        "killed between commit and projection",
        story.between,
        bound=kills // KILLS_PER_BETWEEN,
        at_least=True,
    )
    yield build_result("primaries killed", len(story.failovers), bound=FAILOVERS, at_least=True)
    for what, failovers, bound in (("primary", True, FAILOVER_SECONDS), ("writer", False, 1.0)):
        spell = round(measure_longest_gap(story, failovers=failovers), 3)
        yield build_result(f"longest spell, {what} killed", spell, unit="s", bound=bound)


def build_result(
    case: str,
    value: float,
    *,
    unit: str = "",
    bound: float | None = None,
    at_least: bool = False,
) -> Result:
    return Result(
        benchmark="writers", case=case, value=value, unit=unit, bound=bound, at_least=at_least
    )
