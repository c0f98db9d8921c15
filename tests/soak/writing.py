"""One writer process of the soak: random changes of several flags, each told of on lines of JSON.

Arguments: URI, database, environment, number of flags, seed, and perhaps a request to send first,
which a dead writer has left. Prints {"asked"} before each change, {"committed"} and {"projected"}
on its way, and {"revision", "request", "time", "ended"} once it is acknowledged, the last in
seconds of the machine's monotonic clock; until it is ended.
"""

import json
import random
import sys
import time
import uuid
from collections.abc import Collection, Iterable
from typing import Any

from flagkit._core.model.changes import Change, Tip
from flagkit._core.storage.store import Store
from flagkit.errors import NotFoundError, WriteError
from flagkit.writer import Commit, Draft, Writer


def build_contended_flag(number: int) -> dict[str, Any]:
    """Return one of the flags that all writers fight for."""
    return {
        "key": f"soak.flag-{number}",
        "variants": {"on": True, "off": False},
        "off": "off",
        "fallthrough": {"rollout": 10},
    }


def send(writer: Writer, request: str, flag_count: int) -> Commit:
    """Make the change that a request stands for: the same one whenever it is sent."""
    chance = random.Random(request)
    numbers = chance.sample(range(flag_count), chance.randint(1, 4))
    with writer.change(idempotency_key=request, actor="soak") as change:
        for number in numbers:
            _edit(change, number, chance)
    assert change.commit is not None
    return change.commit


def _edit(change: Draft, number: int, chance: random.Random) -> None:
    key = f"soak.flag-{number}"
    match chance.randrange(4):
        case 0:
            change.pause(key)
        case 1:
            change.resume(key)
        case 2:
            change.set_rollout(key, chance.randrange(100_001) / 1000)
        case _:
            change.update(build_contended_flag(number) | {"description": str(chance.random())})


class ReportingStore(Store):
    """A store that says where on its way a change is."""

    def compare_and_set(self, tip: Tip, change: Change, *kept: Any) -> bool:
        """Commit, and say so."""
        done = super().compare_and_set(tip, change, *kept)
        if done:
            print_message(committed=change.revision)
        return done

    def project(
        self, change: Change, pages: Collection[str] = (), *, is_mine: bool = False
    ) -> None:
        """Project, and say so."""
        super().project(change, pages, is_mine=is_mine)
        print_message(projected=change.revision)


def print_message(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def _iter_requests(left: Iterable[str], chance: random.Random) -> Iterable[str]:
    yield from left
    while True:
        yield uuid.UUID(int=chance.getrandbits(128)).hex


def main() -> None:
    """Write until ended."""
    uri, database, environment, flag_count, seed, *left = sys.argv[1:]
    with Writer(uri, environment, actor="soak", database=database) as writer:
        # The same store, that others of the writer know as well, and that tells.
        writer.store.__class__ = ReportingStore
        for request in _iter_requests(left, random.Random(int(seed))):
            print_message(asked=request)
            try:
                commit = send(writer, request, int(flag_count))
            except (WriteError, NotFoundError) as error:
                print_message(error=str(error))
                raise
            print_message(
                request=request,
                revision=commit.revision,
                time=commit.time.isoformat(),
                ended=time.monotonic(),
            )


if __name__ == "__main__":
    main()
