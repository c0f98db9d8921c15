"""Clients that are followed: what they publish, whether they answer, whether they are current.

Run as a program, it is a process with some clients, which a `FollowerProcess` commands by lines of
JSON.
"""

import argparse
import contextlib
import hashlib
import json
import logging
import random
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterable, Sequence
from typing import Any, Self

from flagkit import Client, Reason
from flagkit._core.model.changes import Change, Tip
from flagkit._core.snapshot import Record, Snapshot, encode_record, list_snapshot_regions
from flagkit.writer import Writer
from tests.support.replica_set import wait_until

ENVIRONMENT = "production"
FLAG_COUNT = 8
BURST_SECONDS = 0.01
BURSTS_PER_SECOND = 5
PACE_SECONDS = 0.01
"""How long callers pause between two calls: they look on, and leave the cores to others."""


def build_followed_flag(number: int, serve: str = "on", **more: Any) -> dict[str, Any]:
    """Return one of the flags of an environment that is followed."""
    return {
        "key": f"shop.flag-{number}",
        "variants": {"on": True, "off": False},
        "off": "off",
        "fallthrough": {"serve": serve},
        **more,
    }


class RecordingClient(Client):
    """A client that notes each revision that it publishes, as (epoch, revision, hash).

    `bases` are those that did not follow from the one before. `moments` are on the monotonic clock.
    """

    __slots__ = ("bases", "moments", "published")

    def __init__(self, uri: str, database: str, **more: Any) -> None:
        self.published: list[tuple[str, int, str]] = []
        self.moments: list[float] = []
        self.bases: list[tuple[str, int, str]] = []
        super().__init__(uri, environment=ENVIRONMENT, database=database, **more)

    def _publish(self, turn: object, snapshot: Snapshot, changes: Sequence[Change] | None) -> None:
        if changes is None:
            self.bases.append(identify_revision(snapshot.tip))
        tips = [snapshot.tip] if changes is None else [change.tip for change in changes]
        self.published += map(identify_revision, tips)
        self.moments += [time.monotonic()] * len(tips)
        super()._publish(turn, snapshot, changes)


def identify_revision(tip: Tip) -> tuple[str, int, str]:
    """Return what tells one revision from all others, of other histories too."""
    return tip.epoch, tip.revision, tip.hash


class EvaluationLoop:
    """A service that evaluates all the while. What it is not to see, it keeps in `complaints`.

    Args:
        client: Whom to ask; it must have flags.
        histories: Whether revisions may go back, as they do where an older backup is restored.
    """

    def __init__(self, client: Client, *, histories: bool = False) -> None:
        self.complaints: list[str] = []
        self.count = 0
        self._client = client
        self._histories = histories
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._call, name="caller")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _call(self) -> None:
        last = 0
        while not self._over.wait(PACE_SECONDS):
            try:
                last = self._ask(last)
            except BaseException as error:  # noqa: BLE001 - none may come, of any kind
                self.complaints.append(repr(error))

    def _ask(self, last: int) -> int:
        key = f"shop.flag-{self.count % FLAG_COUNT}"
        found = self._client.evaluate(key, f"user-{self.count}", default=None)
        self._client.is_enabled(key, {"targeting_key": f"user-{self.count}", "plan": "pro"})
        self.count += 1
        revision = found.revision or 0
        if found.reason is Reason.ERROR:
            self.complaints.append(f"{key} at {revision}: {found.error_code}")
        if revision < last and not self._histories:
            self.complaints.append(f"revision {revision} after {last}")
        return revision


class ThroughputMeter:
    """A busy service: it evaluates in bursts, and takes the processor's time of the process.

    So what keeping current costs counts, and what others do on the machine does not.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._count = 0
        self._seconds = 0.0
        self._lock = threading.Lock()
        threading.Thread(target=self._run, name="meter", daemon=True).start()

    def take(self) -> float:
        """Return evaluations a second of the processor, since this was last asked."""
        with self._lock:
            rate = self._count / max(self._seconds, 1e-9)
            self._count, self._seconds = 0, 0.0
        return rate

    def _run(self) -> None:
        keys = [f"shop.flag-{number}" for number in range(FLAG_COUNT)]
        pause = threading.Event()
        while not pause.wait(1 / BURSTS_PER_SECOND - BURST_SECONDS):
            until = time.monotonic() + BURST_SECONDS
            with self._lock:
                before = time.process_time()
                while time.monotonic() < until:
                    for key in keys:
                        self._client.evaluate(key, "user", default=None)
                    self._count += len(keys)
                self._seconds += time.process_time() - before


@contextlib.contextmanager
def run_callers(*clients: Client, histories: bool = False) -> Generator[None]:
    """Let services evaluate during the block; at its end, nothing may have been amiss."""
    with contextlib.ExitStack() as stack:
        callers = [
            stack.enter_context(EvaluationLoop(each, histories=histories)) for each in clients
        ]
        yield
        # One more call each, of what the block led to.
        for caller in callers:
            seen = caller.count
            wait_until(lambda: caller.count > seen, "an evaluation")  # noqa: B023 - called at once
    assert [caller.complaints for caller in callers] == [[] for _ in callers]


def assert_current(client: Client, writer: Writer, seconds: float) -> float:
    """Wait until a client is where the head is; return how long that took, in seconds.

    It must then hold what the database holds.
    """
    tip = writer.store.read_tip()
    began = time.monotonic()
    deadline = began + seconds
    client.wait_for(tip.revision, seconds)
    # A history that was put back is behind where the client was.
    wait_until(lambda: get_tip(client) == tip, f"revision {tip.revision}", deadline)
    took = time.monotonic() - began
    snapshot = client.snapshot
    assert snapshot is not None
    assert hash_records(snapshot.iter_records()) == hash_records(
        read_expected_records(writer, snapshot.region)
    )
    return took


def get_tip(client: Client) -> Tip | None:
    """Return where a client stands."""
    return None if client.snapshot is None else client.snapshot.tip


def read_expected_records(writer: Writer, region: str) -> list[Record]:
    """Return what a client of a region should hold, read anew from the database."""
    kept = list_snapshot_regions(region)
    with writer.store.open_reader() as reading:
        return [
            encode_record(state) for state in reading.read_all().values() if state.region in kept
        ]


def hash_records(records: Iterable[Record]) -> str:
    """Return the SHA-256 of some records, in whatever order they come."""
    return hashlib.sha256(repr(sorted(records)).encode()).hexdigest()


class FollowerProcess:
    """Another process with some clients of one environment, ended with its block.

    Args:
        uri: Where the environment is.
        database: In which database.
        count: How many clients.
        options: Of this module as a program.
    """

    def __init__(
        self, uri: str, database: str, count: int = 1, options: Sequence[str] = ()
    ) -> None:
        command = [sys.executable, "-m", __name__, uri, database, str(count), *options]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.pid = self._process.pid

    def suspend(self) -> None:
        """Stop it in its tracks."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    def step_clock(self, seconds: float) -> None:
        """Set its clock on or back, as others have it; not the monotonic one."""
        assert self._ask({"step": seconds}, seconds=10) == {}

    def assert_current(self, writer: Writer, seconds: float) -> float:
        """Wait until all its clients are where the head is; return how long that took.

        They must then hold what the database holds, and have answered all the while.
        """
        tip = writer.store.read_tip()
        began = time.monotonic()
        said = self._ask({"wait": tip.revision, "seconds": seconds}, seconds=seconds + 10)
        assert said["complaints"] == []
        assert said["places"] == [list(identify_revision(tip))]
        assert said["digests"] == [hash_records(read_expected_records(writer, "*"))]
        return time.monotonic() - began

    def published(self) -> dict[str, Any]:
        """Return all that its first client has published: places and moments; and the bases."""
        return self._ask({"published": True}, seconds=30)

    def staleness(self) -> float:
        """Return how stale the stalest of its clients is, in seconds."""
        return float(self._ask({"staleness": True}, seconds=10)["staleness"])

    def close_clients(self) -> None:
        """Have its clients no longer follow; they go on answering."""
        assert self._ask({"close": True}, seconds=30) == {}

    def rate(self) -> float:
        """Return what its meter has, since this was last asked."""
        return float(self._ask({"rate": True}, seconds=10)["rate"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def _ask(self, question: dict[str, Any], seconds: float) -> dict[str, Any]:
        asked, answers = self._process.stdin, self._process.stdout
        assert asked is not None
        assert answers is not None
        asked.write(f"{json.dumps(question)}\n")
        assert select.select([answers], [], [], seconds)[0], "the follower says nothing"
        answer: dict[str, Any] = json.loads(answers.readline())
        return answer


def main() -> None:
    """Follow, and do as the lines of the input say, until it ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("uri")
    parser.add_argument("database")
    parser.add_argument("count", type=int)
    parser.add_argument("--file")
    parser.add_argument("--file-bytes-max", type=int)
    parser.add_argument("--meter", action="store_true")
    parser.add_argument("--no-jitter", action="store_true")
    given = parser.parse_args()
    logging.getLogger("flagkit").setLevel(logging.ERROR)  # what is not current, it will say itself
    if given.no_jitter:
        for owner, name in ((random, "uniform"), (random.Random, "uniform")):
            setattr(owner, name, get_latest_delay)
    if given.file_bytes_max is not None:
        limit = given.file_bytes_max
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(
                RecordingClient(given.uri, given.database, snapshot_path=given.file)
            )
            for _ in range(given.count)
        ]
        for client in clients:
            client.wait_ready(60)
        caller = stack.enter_context(EvaluationLoop(clients[0]))
        meter = ThroughputMeter(clients[0]) if given.meter else None
        for line in sys.stdin:
            answer = execute_request(json.loads(line), clients, caller, meter)
            sys.stdout.write(f"{json.dumps(answer)}\n")
            sys.stdout.flush()


def get_latest_delay(*given: float) -> float:
    """Return what chance allows at the latest: the last of what `uniform` is given."""
    return given[-1]


def execute_request(
    asked: dict[str, Any],
    clients: Sequence[RecordingClient],
    caller: EvaluationLoop,
    meter: ThroughputMeter | None,
) -> object:
    """Do what is asked, and return what came of it."""
    if "step" in asked:
        real = time.time
        time.time = lambda: real() + asked["step"]
        return {}
    if "staleness" in asked:
        return {"staleness": max(client.staleness for client in clients)}
    if "close" in asked:
        for client in clients:
            client.close()
        return {}
    if "rate" in asked:
        assert meter is not None
        return {"rate": meter.take()}
    if "published" in asked:
        client = clients[0]
        places, moments, bases = client.published, client.moments, client.bases
        return {"places": places, "moments": moments, "bases": bases}
    return wait_for_revision(asked, clients, caller)


def wait_for_revision(
    asked: dict[str, Any], clients: Sequence[RecordingClient], caller: EvaluationLoop
) -> dict[str, Any]:
    """Wait for a revision; return where all clients are and what they hold."""
    deadline = time.monotonic() + asked["seconds"]
    complaints: list[str] = []
    for client in clients:
        try:
            client.wait_for(asked["wait"], max(deadline - time.monotonic(), 0))
        except TimeoutError as error:
            complaints.append(str(error))
    snapshots = [client.snapshot for client in clients]
    seen = [snapshot for snapshot in snapshots if snapshot is not None]
    return {
        "complaints": complaints + caller.complaints,
        "places": sorted({identify_revision(snapshot.tip) for snapshot in seen}),
        "digests": sorted({hash_records(snapshot.iter_records()) for snapshot in seen}),
        "bases": sum(len(client.bases) for client in clients),
        "count": caller.count,
    }


if __name__ == "__main__":
    main()
