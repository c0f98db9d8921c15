"""Denials: the log of who was denied what. No revision is made for one, and no client reads it.

A document is {_id: {environment, denial}, time, actor, action, key, reason, operations}. A writer
may only insert, so the `_id` bounds how many there are: it is one of a few slots that an actor has
in a minute. A denial that finds all of them taken is not logged.

Each actor has the slots 0 to 7 of one of 256 groups, and then the slots 8 and 9 of another group.
Both groups follow from a hash of the actor and the minute. So a flood of one actor hides another
actor's denials only if both groups are the same two, and only for that minute.
"""

import hashlib
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from bson import MaxKey, MinKey
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from flagkit.storage.driver import translated
from flagkit.storage.layout import (
    DENIAL_LENGTH_MAX,
    DENIAL_OPERATIONS_MAX,
    DENIALS,
    Document,
)
from flagkit.storage.malformed import checked

FIRST_SLOTS, SECOND_SLOTS = 8, 2
DENIALS_A_MINUTE_MAX: Final = FIRST_SLOTS + SECOND_SLOTS
"""So many denials of one actor are logged in a minute."""
GROUPS: Final = 256
"""So an environment has at most GROUPS times as many in a minute, by whatever names."""
_CUT: Final = "..."


class Denials:
    """The denials of an environment."""

    def __init__(self, database: Database[Document], environment: str) -> None:
        self._collection = database[DENIALS]
        self._environment = environment
        self._minute = ""
        self._taken: dict[str, int] = {}
        """By actor, how many slots of this minute are known to be taken."""

    def add(self, now: datetime, told: Mapping[str, Any]) -> bool:
        """Log what is told of a denial at a time of the server's; return whether there was room."""
        bounded: Document = {**told}
        for name in DENIAL_LENGTH_MAX:
            bounded[name] = shortened(told[name], name)
        bounded["operations"] = [
            {**operation, "key": shortened(operation["key"], "key")}
            for operation in told["operations"][:DENIAL_OPERATIONS_MAX]
        ]
        minute = _minute(now)
        if minute != self._minute:
            self._minute, self._taken = minute, {}
        taken, actor = self._taken, bounded["actor"]
        for number, slot in enumerate(_slots(minute, actor)):
            if number < taken.get(actor, 0):
                continue
            taken[actor] = number + 1
            document = {"_id": _identity(self._environment, slot), "time": now, **bounded}
            with translated("logging a denial"):
                try:
                    self._collection.insert_one(document)
                except DuplicateKeyError:
                    continue
            return True
        return False

    def all(self) -> list[Document]:
        """Return what was logged, oldest first."""
        first, last = (_identity(self._environment, end) for end in (MinKey(), MaxKey()))
        with translated("reading the denials"):
            found = [
                checked(DENIALS, document)
                for document in self._collection.find({"_id": {"$gte": first, "$lte": last}})
            ]
        return sorted(found, key=lambda document: document["time"])


def shortened(text: str, name: str) -> str:
    """Return as much of a text as is logged of it."""
    # What UTF-8 cannot carry, no document can hold.
    length = DENIAL_LENGTH_MAX[name]
    whole = text[: length + 1].encode(errors="replace").decode()
    return whole if len(whole) <= length else whole[: length - len(_CUT)] + _CUT


def beginnings_of_names(time: datetime) -> tuple[str, ...]:
    """Return what the name of a denial of some time begins with: its minute.

    Earlier versions gave each denial a name of its own, with the microsecond.
    """
    return f"{_minute(time)}-", f"{time:%Y%m%dT%H%M%S.%f}Z-"


def _minute(time: datetime) -> str:
    return f"{time:%Y%m%dT%H%M}Z"


def _slots(minute: str, actor: str) -> Iterator[str]:
    hashed = hashlib.sha256(f"{minute} {actor}".encode()).digest()
    for group, numbers in (
        (hashed[0], range(FIRST_SLOTS)),
        (hashed[1], range(FIRST_SLOTS, DENIALS_A_MINUTE_MAX)),
    ):
        for number in numbers:
            yield f"{minute}-{group:02x}-{number}"


def _identity(environment: str, denial: Any) -> Document:
    # Field order counts: ranges compare whole `_id`s.
    return {"environment": environment, "denial": denial}
