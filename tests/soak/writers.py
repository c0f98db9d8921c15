"""Writers that fight for the same flags and are killed, while a client follows."""

import contextlib
import json
import queue
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from msgspec import Struct

from benchmarks.report import Result
from flagkit.changes import Change
from flagkit.core.freshness import Freshness
from flagkit.embedded import EmbeddedMongo
from flagkit.refresh import Refresher
from flagkit.refresh_thread import RefreshThread
from flagkit.snapshot import Snapshot, record_of
from flagkit.storage.source import MongoSource
from flagkit.storage.store import Store
from flagkit.writer import Writer, verify
from tests.soak import writing

ENVIRONMENT = "soak"
STUCK_SECONDS = 30


class Story(Struct):
    """What happened: every line that a writer printed, the kills, and what a client saw."""

    acknowledged: list[dict[str, Any]] = []
    kills: list[float] = []
    errors: list[str] = []
    published: list[int] = []
    bases: int = 0
    snapshot: Snapshot | None = None


class Fleet:
    """Writer processes, whose lines arrive in one queue."""

    def __init__(self, uri: str, database: str, count: int, chance: random.Random) -> None:
        self.lines: queue.Queue[str] = queue.Queue()
        self._arguments = [uri, database, ENVIRONMENT]
        self._chance = chance
        self._running: list[tuple[subprocess.Popen[str], threading.Thread]] = []
        self._readers: list[threading.Thread] = []
        for _ in range(count):
            self._start()

    def kill_one(self) -> None:
        """Kill a writer, whatever it does, and start another in its place."""
        process, reader = self._running.pop(self._chance.randrange(len(self._running)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        reader.join()
        self._start()

    def close(self) -> None:
        """Kill all writers and read what they still said."""
        for process, _ in self._running:
            process.kill()
        for process, reader in self._running:
            process.wait()
            reader.join()

    def _start(self) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", writing.__name__, *self._arguments, str(self._seed())],
            stdout=subprocess.PIPE,
            text=True,
        )
        reader = threading.Thread(target=self._read, args=[process])
        reader.start()
        self._running.append((process, reader))

    def _seed(self) -> int:
        return self._chance.randrange(2**32)

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self.lines.put(line)


def run(uri: str, *, changes: int, kills: int, writers: int, seed: int) -> tuple[Story, list[str]]:
    """Let writers make some changes, of which some are killed; return the story and what is wrong.

    The killing moments are spread at random over the run.
    """
    chance = random.Random(seed)
    database = f"soak-{uuid.uuid4().hex}"
    story = Story()
    with Writer(uri, ENVIRONMENT, actor="soak", database=database) as writer:
        writer.create_environment()
        with writer.change() as change:
            for number in range(writing.FLAG_COUNT):
                change.create(writing.flag(number))
        with following(uri, database, story) as caught_up:
            fleet = Fleet(uri, database, writers, chance)
            moments = sorted(chance.randrange(1, changes) for _ in range(kills))
            try:
                while len(story.acknowledged) < changes:
                    note(fleet.lines.get(timeout=STUCK_SECONDS), story)
                    while moments and len(story.acknowledged) >= moments[0]:
                        moments.pop(0)
                        story.kills.append(time.monotonic())
                        fleet.kill_one()
            finally:
                fleet.close()
            while not fleet.lines.empty():
                note(fleet.lines.get(), story)
            # The last word: whatever the dead left behind is projected by this change.
            caught_up(writer.pause("soak.flag-0").revision)
        return story, problems(writer.store, story)


def note(line: str, story: Story) -> None:
    """Take in a line of a writer. One that was cut off by a kill says nothing."""
    with contextlib.suppress(json.JSONDecodeError):
        said = json.loads(line)
        if "error" in said:
            story.errors.append(said["error"])
        else:
            story.acknowledged.append(said)


@contextlib.contextmanager
def following(uri: str, database: str, story: Story) -> "Iterator[Any]":
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
        Freshness(),
        Refresher(random.Random()),
    )
    try:
        caught_up(0)
        yield caught_up
    finally:
        assert thread.close(5)


def problems(store: Store, story: Story) -> list[str]:
    """Return every broken promise."""
    found = list(story.errors) + verify(store)
    changes = list(store.changes())
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
    versions: Counter[str] = Counter()
    for change in changes:
        for flag in change.policies:
            versions[flag.id[1]] += 1
            if flag.after is None or flag.after.version != versions[flag.id[1]]:
                found.append(f"revision {change.revision} skips a version of {flag.id[1]}")
    found += followed_badly(store, story, changes)
    return found


def followed_badly(store: Store, story: Story, changes: Sequence[Change]) -> list[str]:
    """Return how the client's story differs from the ledger's."""
    found: list[str] = []
    if story.bases != 1:
        found.append(f"the client took {story.bases} bases")
    if any(after != before + 1 for before, after in pairwise(story.published)):
        found.append("the client saw revisions out of order, or missed some")
    if story.published[-1] != len(changes):
        found.append(f"the client ended at {story.published[-1]}, the ledger at {len(changes)}")
    with store.reading() as reading:
        states = set(map(record_of, reading.all().values()))
    if story.snapshot is None or set(story.snapshot.records()) != states:
        found.append("the client's flags are not the database's")
    return found


def longest_spell(story: Story) -> float:
    """Return the longest time without a commit, in seconds, from the first acknowledgement on."""
    moments = sorted(said["ended"] for said in story.acknowledged)
    return float(max(after - before for before, after in pairwise(moments)))


def soak(seconds: int, seed: int) -> Iterator[Result]:
    """Run rounds of 1,000 changes and ten kills by four writers, for some seconds at least."""
    with EmbeddedMongo() as server:
        yield from rounds(server.uri, seconds, seed)


def rounds(uri: str, seconds: int, seed: int) -> Iterator[Result]:
    until = time.monotonic() + seconds
    for count in range(1_000_000):
        if time.monotonic() > until and count:
            return
        story, wrong = run(uri, changes=1000, kills=10, writers=4, seed=seed + count)
        for problem in wrong:
            print(f"  seed {seed + count}: {problem}")
        name = f"round {count + 1}"
        yield Result(
            benchmark="writers", case=f"{name}: broken promises", value=len(wrong), unit="", bound=0
        )
        yield Result(
            benchmark="writers",
            case=f"{name}: longest spell without a commit",
            value=round(longest_spell(story), 3),
            unit="s",
            bound=1.0,
        )
