"""Denials: the log of who was denied what. No revision is made for one, and no client reads it.

A document is {_id: {environment, denial}, time, actor, action, key, reason, operations}.
"""

import os
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from bson import MaxKey, MinKey
from pymongo import ASCENDING
from pymongo.database import Database

from flagkit.storage.driver import translated
from flagkit.storage.layout import DENIALS, Document
from flagkit.storage.malformed import checked


def add_denial(
    database: Database[Document], environment: str, now: datetime, told: Mapping[str, Any]
) -> None:
    """Log what is told of a denial at a time of the server's."""
    identity = _identity(environment, f"{now:%Y%m%dT%H%M%S.%f}Z-{os.urandom(8).hex()}")
    with translated("logging a denial"):
        database[DENIALS].insert_one({"_id": identity, "time": now, **told})


def denials_in(database: Database[Document], environment: str) -> list[Document]:
    """Return what was logged, oldest first."""
    mine = {"$gte": _identity(environment, MinKey()), "$lte": _identity(environment, MaxKey())}
    with translated("reading the denials"):
        found = database[DENIALS].find({"_id": mine}, sort=[("_id", ASCENDING)])
        return [checked(DENIALS, document) for document in found]


def _identity(environment: str, denial: Any) -> Document:
    # Field order counts: ranges compare whole `_id`s.
    return {"environment": environment, "denial": denial}
