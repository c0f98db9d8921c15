"""Comparing: whether a peer answers rightly, how long it takes beside flagkit, and what it needs.

What stands here but `iter_payload` runs in a peer's own process.
"""

import json
import random
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from benchmarks.catalogue import StoredCatalogue
from benchmarks.interleave import Call, time_interleaved
from benchmarks.peers.flags import Ask, Peer, to_plain_flag
from benchmarks.subprocesses import measure_resident_bytes
from benchmarks.workloads import ASIA, CONTEXT, EUROZONE, FLAGS, NORTH, W1, W2, W3, Workload
from flagkit.testing import client_from

USER_COUNT: Final = 2_000
CONTEXT_COUNT: Final = 300
TOLERANCE_PERCENT: Final = 5.0
SHARES: Final = {W2: 50.0, W3: 30.0}
SEED: Final = 20261122


class WrongAnswerError(Exception):
    """A peer does not answer as the flags say."""


class LoadCost(Struct, frozen=True):
    """What it takes to have flags: bytes that the process grew by, and seconds to the first answer.

    The processor's seconds, of all threads.
    """

    grown_bytes: int
    seconds: float


def iter_payload(peer: Peer, flags: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the text of a peer's own document of some flags."""
    yield peer.before
    for i, document in enumerate(flags):
        flag = to_plain_flag(document)
        text = json.dumps(peer.to_native(flag))
        name = f"{json.dumps(flag.key)}: " if peer.is_keyed else ""
        yield f"{', ' if i else ''}{name}{text}"
    yield peer.after


def iter_contexts() -> Iterator[dict[str, Any]]:
    """Yield contexts of all sorts, with all attributes."""
    chance = random.Random(SEED)
    for i in range(CONTEXT_COUNT):
        yield {
            "targeting_key": f"user-{i}",
            "country": chance.choice([*ASIA, *NORTH, *EUROZONE, "US", "BR"]),
            "plan": chance.choice(["free", "team", "enterprise"]),
            "app_version": chance.choice(["2.5.9", "2.6.0", "3.1.10", "3.2.0", "3.10.0", "10.0.0"]),
            "age": chance.choice([17, 18, 64, 65]),
        }


def check_answers(ask: Ask) -> None:
    """Hold a peer's answers to flagkit's, and its shares to their percentages.

    Raises:
        WrongAnswerError: one is another.
    """
    ours = client_from(FLAGS)
    for context in iter_contexts():
        for key in (W1, W3):
            expected = ours.evaluate(key, context)
            # Each library has its own users in a rollout.
            if expected.reason != "SPLIT" and ask(key, context)() is not expected.value:
                raise WrongAnswerError(f"{key} is not {expected.value} for {context}")
    for key, percent in SHARES.items():
        users = (CONTEXT | {"targeting_key": f"user-{i}"} for i in range(USER_COUNT))
        found = 100 * sum(ask(key, user)() for user in users) / USER_COUNT
        if abs(found - percent) > TOLERANCE_PERCENT:
            raise WrongAnswerError(f"{key} is on for {found:g} %, not {percent:g} %")


def check_peer(peer: Peer) -> None:
    """Load W1 to W3 into a peer, and check it.

    Raises:
        WrongAnswerError: it answers something else.
    """
    check_answers(peer.load("".join(iter_payload(peer, FLAGS)).encode()))


def time_peer(peer: Peer, case: Workload, round_count: int) -> list[list[float]]:
    """Return flagkit's nanoseconds a check and the peer's, round by round.

    Raises:
        WrongAnswerError: the peer answers something else.
    """
    ask = peer.load("".join(iter_payload(peer, FLAGS)).encode())
    check_answers(ask)
    context = dict(CONTEXT)
    ours = Call(client_from(FLAGS).is_enabled, (case.key, context))
    return time_interleaved(
        [ours.create_timer(), ask(case.key, context).create_timer()], round_count
    )


def measure_peer_load(peer: Peer, path: Path) -> LoadCost:
    """Load a payload of many flags, among them W1.

    Raises:
        WrongAnswerError: W1 is not on.
    """
    # What is made once, whatever the number of flags, is not counted.
    peer.load("".join(iter_payload(peer, FLAGS)).encode())(W1, CONTEXT)()
    payload = path.read_bytes()
    size = len(payload)
    before = measure_resident_bytes() - size
    start = time.process_time()
    ask = peer.load(payload)
    if ask(W1, CONTEXT)() is not True:
        raise WrongAnswerError(f"{W1} is not on among many")
    seconds = time.process_time() - start
    del payload
    return LoadCost(measure_resident_bytes() - before, seconds)


def measure_own_load(stored: StoredCatalogue) -> LoadCost:
    """Load a catalogue into flagkit, from a snapshot file, whose pages are counted as memory."""
    client_from(FLAGS).is_enabled(W1, CONTEXT)
    before = measure_resident_bytes()
    start = time.process_time()
    client = stored.create_client()
    if client.is_enabled(W1, CONTEXT) is not True:
        raise WrongAnswerError(f"{W1} is not on among many")
    seconds = time.process_time() - start
    return LoadCost(measure_resident_bytes() - before, seconds)
