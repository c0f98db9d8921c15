"""One writer process of the soak: random changes of several flags, each acknowledged on a line.

Arguments: URI, database, environment, seed. Prints {"revision", "request", "started", "ended"} for
each change, times in seconds of the machine's monotonic clock, until it is ended.
"""

import json
import random
import sys
import time
import uuid
from typing import Any

from flagkit.errors import WriteError
from flagkit.writer import Draft, Writer

FLAG_COUNT = 12


def flag(number: int) -> dict[str, Any]:
    """Return one of the flags that all writers fight for."""
    return {
        "key": f"soak.flag-{number}",
        "variants": {"on": True, "off": False},
        "off": "off",
        "fallthrough": {"rollout": 10},
    }


def edit(change: Draft, number: int, chance: random.Random) -> None:
    """Add a random operation on a flag to a change."""
    key = f"soak.flag-{number}"
    match chance.randrange(4):
        case 0:
            change.pause(key)
        case 1:
            change.resume(key)
        case 2:
            change.set_rollout(key, chance.randrange(100_001) / 1000)
        case _:
            change.update(flag(number) | {"description": str(chance.random())})


def main() -> None:
    """Write until ended."""
    uri, database, environment, seed = sys.argv[1:]
    chance = random.Random(int(seed))
    with Writer(uri, environment, actor=f"writer {seed}", database=database) as writer:
        while True:
            request = uuid.UUID(int=chance.getrandbits(128)).hex
            started = time.monotonic()
            try:
                with writer.change(idempotency_key=request) as change:
                    for number in chance.sample(range(FLAG_COUNT), chance.randint(1, 4)):
                        edit(change, number, chance)
            except WriteError as error:
                print(json.dumps({"error": str(error)}), flush=True)
                raise
            assert change.commit is not None
            acknowledged = {
                "revision": change.commit.revision,
                "request": request,
                "started": started,
                "ended": time.monotonic(),
            }
            print(json.dumps(acknowledged), flush=True)


if __name__ == "__main__":
    main()
