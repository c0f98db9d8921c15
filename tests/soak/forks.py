"""Forks: hundreds of children, many of which become daemons or get no thread; all follow."""

import collections
import os
import random
import resource
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.report import Result
from flagkit import Client
from flagkit.testing.embedded import EmbeddedMongo
from flagkit.writer import Writer

FOLLOW_SECONDS_MAX = 20.0
FLAG: dict[str, Any] = {
    "key": "shop.on",
    "variants": {"on": True, "off": False},
    "fallthrough": {"serve": "on"},
}


class DescriptorGuard:
    """A process that closes all descriptors some time after its fork, and opens others."""

    def __init__(self, chance: random.Random, says: int) -> None:
        # At once, soon, or once its thread waits for changes.
        time.sleep(chance.choice([0, chance.uniform(0, 0.05), chance.uniform(0.8, 1.5)]))
        os.closerange(3, says)
        os.closerange(says + 1, 1024)
        self._file = Path(os.devnull).open("rb")  # noqa: SIM115 - it stays open
        self._pairs = [socket.socketpair() for _ in range(8)]

    def check(self) -> None:
        """Check that nobody has closed, read or written what is this process's own."""
        os.fstat(self._file.fileno())
        for pair in self._pairs:
            for here, there in (pair, pair[::-1]):
                there.sendall(b"x")
                assert here.recv(10) == b"x", "somebody else reads or writes"


def follow(client: Client, chance: random.Random, says: int) -> None:
    """Follow what comes."""
    del chance, says
    wait_until_caught_up(client)


def become_a_daemon(client: Client, chance: random.Random, says: int) -> None:
    """Close all descriptors."""
    daemon = DescriptorGuard(chance, says)
    wait_until_caught_up(client)
    daemon.check()
    client.close()
    daemon.check()


def fork_again(client: Client, chance: random.Random, says: int) -> None:
    """Become a daemon by two forks."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            become_a_daemon(client, chance, says)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0, "the grandchild failed"
    wait_until_caught_up(client)


def exhaust_descriptors(client: Client, chance: random.Random, says: int) -> None:
    """Have no descriptor left for a while."""
    del says
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    time.sleep(chance.uniform(0, 0.5))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    wait_until_caught_up(client)


def follow_interrupted(client: Client, chance: random.Random, says: int) -> None:
    """Be interrupted by signals all the time."""
    del chance, says
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    wait_until_caught_up(client)


DEEDS: tuple[Callable[[Client, random.Random, int], None], ...] = (
    follow,
    become_a_daemon,
    become_a_daemon,
    fork_again,
    exhaust_descriptors,
    follow_interrupted,
)


def wait_until_caught_up(client: Client) -> None:
    """Wait until the client has a revision that was made after this."""
    client.is_enabled("shop.on")
    client.wait_for(client.revision + 3, FOLLOW_SECONDS_MAX)


def soak(forks: int, seed: int) -> Iterator[Result]:
    """Fork so many children, each of which does what chance says while revisions come."""
    chance = random.Random(seed)
    with EmbeddedMongo() as server, Writer(server.uri, "production", actor="soak") as writer:
        writer.create_environment()
        writer.create(FLAG)
        ending = threading.Event()

        def change() -> None:
            while not ending.wait(0.02):
                writer.pause("shop.on")
                writer.resume("shop.on")

        changing = threading.Thread(target=change)
        with Client(server.uri, environment="production", max_staleness=3) as client:
            client.wait_ready()
            changing.start()
            began, opened = time.monotonic(), count_descriptors()
            failed: collections.Counter[str] = collections.Counter()
            for number in range(forks):
                deed = chance.choice(DEEDS)
                if not run_child(deed, client, random.Random(f"{seed} {number}")):
                    failed[deed.__name__] += 1
                    print(f"  failed: {deed.__name__}, fork {number}")
            took = time.monotonic() - began
            wait_until_caught_up(client)
            left = count_descriptors() - opened
            ending.set()
            changing.join()
    yield build_result("children that failed", failed.total(), 0)
    # The driver may have one connection more or less.
    yield build_result("descriptors that the parent has more", left, 2)
    yield build_result(
        "a fork, until its child has followed", took / forks, FOLLOW_SECONDS_MAX, "s"
    )


def run_child(
    deed: Callable[[Client, random.Random, int], None], client: Client, chance: random.Random
) -> bool:
    """Fork a child; return whether it could do what it is to do, in time."""
    heard, says = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(heard)
        try:
            deed(client, chance, says)
            os.write(says, b"done")
        except BaseException as error:  # noqa: BLE001 - it must not get out of the child
            os.write(says, f"{error!r} {client.status()}".encode()[:2_000])
        finally:
            os._exit(0)
    os.close(says)
    said = b"it hangs"
    if select.select([heard], [], [], 2 * FOLLOW_SECONDS_MAX)[0]:
        said = os.read(heard, 4_000)
    os.close(heard)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    if said != b"done":
        print(f"  {said.decode()}")
    return said == b"done"


def count_descriptors() -> int:
    """Return how many descriptors this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


def build_result(case: str, value: float, bound: float, unit: str = "") -> Result:
    return Result(benchmark="forks", case=case, value=round(value, 2), unit=unit, bound=bound)
