"""Waiting: requests that stand in the database with somebody's own data, and wait for a revision.

A document of `pending` is {_id: {environment, request}, since, place, touched, tries, not_before,
trouble, refused}; the request itself stands in `audit`, which nothing is removed from. Both are
inserted in a transaction of the caller's. The order is that of `since`, the server's time, then of
`place`, in which documents of one process are in order.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, TypeAlias

from bson import ObjectId
from pymongo import ASCENDING
from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.read_concern import ReadConcern

from flagkit.changes import PolicyId
from flagkit.errors import ConfigurationError, EnvironmentNotFoundError
from flagkit.storage.driver import translated
from flagkit.storage.forms import CODEC
from flagkit.storage.layout import (
    AUDIT,
    HEADS,
    PENDING,
    UNSEEDED,
    Document,
    comparable_digest,
    pending_of,
)
from flagkit.storage.malformed import checked

Session: TypeAlias = ClientSession
"""A session of the caller's own client."""

READ_MAX = 1_000
"""So many of those that wait are looked at in one go, the oldest."""


class WaitingRequests:
    """The requests of an environment that wait for a revision."""

    def __init__(self, database: Database[Document], environment: str) -> None:
        self._database = database
        self._environment = environment

    def put(
        self,
        session: object,
        request: str,
        content: Mapping[str, Any],
        touched: Iterable[PolicyId] | None,
    ) -> str:
        """Insert a request into the transaction of a session.

        Return the comparable digest on record. If it is another one, nothing is inserted. What the
        driver raises is left as it is, for who retries the transaction looks at it.

        Raises:
            ConfigurationError: the session is in no transaction.
            EnvironmentNotFoundError: where the session is, there is no such environment.
        """
        if not isinstance(session, ClientSession) or not session.in_transaction:
            raise ConfigurationError(
                "session= takes a session of pymongo's in which a transaction was started:"
                " session.start_transaction(), or with_transaction()"
            )
        identity = self._identity(request)
        # The settings of their client say how their own documents are read.
        theirs = session.client.get_database(self._database.name, CODEC)
        mine = {"_id": self._environment}
        if theirs[HEADS].find_one(mine, {"_id": True}, session=session) is None:
            raise EnvironmentNotFoundError(
                f"where the session is, there is no environment {self._environment!r} in the"
                f" database {self._database.name!r}: take a session of a client of the same cluster"
            )
        wanted = comparable_digest(content)
        digests = {"digest": True, UNSEEDED: True}
        earlier = theirs[AUDIT].find_one({"_id": identity}, digests, session=session)
        if earlier is None:
            theirs[AUDIT].insert_one({"_id": identity, **content}, session=session)
        elif (recorded := comparable_digest(earlier)) != wanted:
            return recorded
        listed = (
            None if touched is None else [{"region": item[0], "key": item[1]} for item in touched]
        )
        first = {"since": "$$NOW", "place": str(ObjectId()), "touched": {"$literal": listed}}
        kept = {name: {"$ifNull": [f"${name}", value]} for name, value in first.items()}
        theirs[PENDING].update_one(
            {"_id": identity}, [{"$set": kept}], upsert=True, session=session
        )
        return wanted

    def in_order(self) -> list[Document]:
        """Return what waits and is not refused, in order, each with `now`, the server's time."""
        return self._read({"refused": {"$ne": True}})

    def all(self) -> list[Document]:
        """Return what waits, and what was refused, in order."""
        return self._read({})

    def find(self, request: str) -> Document | None:
        """Return what waits of that name, with `now`."""
        return next(iter(self._read({"_id": self._identity(request)})), None)

    def ahead_of(self, document: Mapping[str, Any]) -> list[Document]:
        """Return what waits, is not refused, and was put there before a document, in order."""
        since, place = document["since"], document["place"]
        before = [{"since": {"$lt": since}}, {"since": since, "place": {"$lt": place}}]
        # All of them: what is just before it counts as much as what is the oldest.
        return self._read({"refused": {"$ne": True}, "$or": before}, whole=True)

    def is_due(self) -> bool:
        """Tell whether anything waits whose time has come."""
        come = {"$lte": [{"$ifNull": ["$not_before", "$since"]}, "$$NOW"]}
        wanted = {**pending_of(self._environment), "refused": {"$ne": True}, "$expr": come}
        with translated("looking for pending changes"):
            return self._database[PENDING].find_one(wanted, {"_id": True}) is not None

    def is_there(self, request: str) -> bool:
        """Tell whether a request stands there, be it that the majority has not got it yet."""
        newest = self._database[PENDING].with_options(read_concern=ReadConcern("local"))
        with translated("looking for a pending change"):
            return newest.find_one({"_id": self._identity(request)}, {"_id": True}) is not None

    def postpone(self, request: str, not_before: datetime, trouble: str) -> None:
        """Note that a request is to be tried again from a moment on, and why."""
        self._set(request, {"not_before": not_before, "trouble": trouble})

    def refuse(self, request: str, trouble: str) -> None:
        """Note that a request was refused, and why."""
        self._set(request, {"trouble": trouble, "refused": True})

    def remove(self, request: str) -> None:
        """Remove a request that waits no more; it may be gone."""
        with translated("removing what waited"):
            self._database[PENDING].delete_one({"_id": self._identity(request)})

    def _set(self, request: str, fields: Mapping[str, Any]) -> None:
        with translated("noting what became of a pending change"):
            self._database[PENDING].update_one(
                {"_id": self._identity(request)}, {"$set": {**fields}, "$inc": {"tries": 1}}
            )

    def _read(self, wanted: Mapping[str, Any], *, whole: bool = False) -> list[Document]:
        with translated("reading pending changes"):
            found = self._database[PENDING].aggregate(
                [
                    {"$match": {**pending_of(self._environment), **wanted}},
                    {"$sort": {"since": ASCENDING, "place": ASCENDING}},
                    *([] if whole else [{"$limit": READ_MAX}]),
                    {"$set": {"now": "$$NOW"}},
                ]
            )
            return [checked(PENDING, document) for document in found]

    def _identity(self, request: str) -> Document:
        return {"environment": self._environment, "request": request}
