"""Requests that wait in the database: pending changes, proposals and denials.

A document of `pending` is {_id: {environment, request}, since, place, touched, tries, not_before,
trouble, refused}. The request itself is in `audit`, from which nothing is removed. The caller's
transaction inserts both. They are ordered by `since`, the server's time, and then by `place`, the
order within one process.

A proposal is {_id: {environment, proposal, actor, verdict}, time, reason, digest}. The first
document of a proposal has the verdict "propose" and also {operations, touched, depends}. `touched`
is [{region, key, version}]; the version is null where there was nothing. `depends` has the versions
of everything that the proposal depends on. Later documents have the digest that their actors saw,
and a `seal` over what they say.

A denial is {_id: {environment, denial}, time, actor, action, key, reason, operations}. A writer may
only insert, so the `_id` limits their number. It is one of a few slots that an actor has in a
minute; a denial that finds all of them taken is not logged. Each actor has the slots 0 to 7 of one
of 256 groups, and the slots 8 and 9 of another group. A hash of the actor and the minute selects
both groups. A flood by one actor hides another actor's denials only if both groups are the same,
and only for that minute.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final, TypeAlias

from bson import MaxKey, MinKey, ObjectId
from bson.codec_options import DatetimeConversion
from pymongo import ASCENDING, DESCENDING
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError
from pymongo.read_concern import ReadConcern

from flagkit._core.model.changes import PolicyId
from flagkit._core.storage import layout
from flagkit._core.storage.documents import CODEC
from flagkit._core.storage.driver import translate_errors
from flagkit._core.storage.validation import check_form
from flagkit.errors import ConfigurationError, EnvironmentNotFoundError

Session: TypeAlias = ClientSession
"""A session of the caller's own client."""

READ_MAX = 1_000
"""So many of those that wait are looked at in one go, the oldest."""


class PendingRequests:
    """The requests of an environment that wait for a revision."""

    def __init__(self, database: Database[layout.Document], environment: str) -> None:
        self._database = database
        self._environment = environment

    def insert(
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
                "in_transaction() takes a session of pymongo's in which a transaction was started:"
                " session.start_transaction(), or with_transaction()"
            )
        identity = self._build_id(request)
        # The settings of their client say how their own documents are read.
        theirs = session.client.get_database(self._database.name, CODEC)
        mine = {"_id": self._environment}
        if theirs[layout.HEADS].find_one(mine, {"_id": True}, session=session) is None:
            raise EnvironmentNotFoundError(
                f"where the session is, there is no environment {self._environment!r} in the"
                f" database {self._database.name!r}: take a session of a client of the same cluster"
            )
        wanted = layout.compute_request_digest(content)
        digests = {"digest": True, layout.UNSEEDED: True}
        earlier = theirs[layout.AUDIT].find_one({"_id": identity}, digests, session=session)
        if earlier is None:
            theirs[layout.AUDIT].insert_one({"_id": identity, **content}, session=session)
        elif (recorded := layout.compute_request_digest(earlier)) != wanted:
            return recorded
        listed = (
            None if touched is None else [{"region": item[0], "key": item[1]} for item in touched]
        )
        first = {"since": "$$NOW", "place": str(ObjectId()), "touched": {"$literal": listed}}
        fields = {name: {"$ifNull": [f"${name}", value]} for name, value in first.items()}
        theirs[layout.PENDING].update_one(
            {"_id": identity}, [{"$set": fields}], upsert=True, session=session
        )
        return wanted

    def read_pending(self) -> list[layout.Document]:
        """Return what waits and is not refused, in order, each with `now`, the server's time."""
        return self._read({"refused": {"$ne": True}})

    def read_all(self) -> list[layout.Document]:
        """Return what waits, and what was refused, in order."""
        return self._read({})

    def find(self, request: str) -> layout.Document | None:
        """Return what waits of that name, with `now`."""
        return next(iter(self._read({"_id": self._build_id(request)})), None)

    def find_blockers(self, document: Mapping[str, Any]) -> list[layout.Document]:
        """Return what waits, is not refused, and was put there before a document, in order."""
        since, place = document["since"], document["place"]
        before = [{"since": {"$lt": since}}, {"since": since, "place": {"$lt": place}}]
        # All of them: what is just before it counts as much as what is the oldest.
        return self._read({"refused": {"$ne": True}, "$or": before}, whole=True)

    def is_due(self) -> bool:
        """Tell whether anything waits whose time has come."""
        come = {"$lte": [{"$ifNull": ["$not_before", "$since"]}, "$$NOW"]}
        wanted = {
            **layout.filter_pending(self._environment),
            "refused": {"$ne": True},
            "$expr": come,
        }
        with translate_errors("looking for pending changes"):
            return self._database[layout.PENDING].find_one(wanted, {"_id": True}) is not None

    def is_present(self, request: str) -> bool:
        """Tell whether a request stands there, be it that the majority has not got it yet."""
        newest = self._database[layout.PENDING].with_options(read_concern=ReadConcern("local"))
        with translate_errors("looking for a pending change"):
            return newest.find_one({"_id": self._build_id(request)}, {"_id": True}) is not None

    def retry_later(self, request: str, not_before: datetime, trouble: str) -> None:
        """Note that a request is to be tried again from a moment on, and why."""
        self._update(request, {"not_before": not_before, "trouble": trouble})

    def mark_refused(self, request: str, trouble: str) -> None:
        """Note that a request was refused, and why."""
        self._update(request, {"trouble": trouble, "refused": True})

    def remove(self, request: str) -> None:
        """Remove a request that waits no more; it may be gone."""
        with translate_errors("removing what waited"):
            self._database[layout.PENDING].delete_one({"_id": self._build_id(request)})

    def _update(self, request: str, fields: Mapping[str, Any]) -> None:
        with translate_errors("noting what became of a pending change"):
            self._database[layout.PENDING].update_one(
                {"_id": self._build_id(request)}, {"$set": {**fields}, "$inc": {"tries": 1}}
            )

    def _read(self, wanted: Mapping[str, Any], *, whole: bool = False) -> list[layout.Document]:
        with translate_errors("reading pending changes"):
            found = self._database[layout.PENDING].aggregate(
                [
                    {"$match": {**layout.filter_pending(self._environment), **wanted}},
                    {"$sort": {"since": ASCENDING, "place": ASCENDING}},
                    *([] if whole else [{"$limit": READ_MAX}]),
                    {"$set": {"now": "$$NOW"}},
                ]
            )
            return [check_form(layout.PENDING, document) for document in found]

    def _build_id(self, request: str) -> layout.Document:
        return {"environment": self._environment, "request": request}


PROPOSE: Final = "propose"


class ProposalStore:
    """The proposals of an environment."""

    def __init__(self, database: Database[layout.Document], environment: str) -> None:
        self._collection = tolerate_bad_dates(database[layout.PROPOSALS])
        self._environment = environment

    def add(self, proposal: str, actor: str, verdict: str, content: Mapping[str, Any]) -> None:
        """Insert a proposal, or what an actor says of one; what was said before stands."""
        identity = {
            "environment": self._environment,
            "proposal": proposal,
            "actor": actor,
            "verdict": verdict,
        }
        with translate_errors("recording what is said of a proposal"):
            try:
                self._collection.insert_one({"_id": identity, **content})
            except DuplicateKeyError:
                return

    def list_newest(self, limit: int) -> list[str]:
        """Return the ids of proposals, the newest first: they begin with when they were made."""
        named = {"_id.proposal": {"$type": "string"}, "_id.verdict": PROPOSE}
        wanted = {**layout.filter_proposals(self._environment), **named}
        with translate_errors("reading the proposals"):
            found = self._collection.find(wanted, {"_id": True})
            return [
                document["_id"]["proposal"]
                for document in found.sort("_id", DESCENDING).limit(limit)
            ]

    def read_many(self, proposals: Iterable[str]) -> dict[str, list[layout.Document]]:
        """Return the documents of some proposals, the oldest first."""
        verdicts: dict[str, list[layout.Document]] = {proposal: [] for proposal in proposals}
        if not verdicts:
            return verdicts
        wanted = layout.filter_proposals_by_id(self._environment, verdicts)
        with translate_errors("reading what was said of proposals"):
            for document in self._collection.find(wanted).sort("time", ASCENDING):
                verdicts[document["_id"]["proposal"]].append(document)
        return verdicts

    def iter_all(self) -> Iterator[layout.Document]:
        """Yield all documents, those of a proposal after each other."""
        with translate_errors("reading the proposals"):
            yield from self._collection.find(layout.filter_proposals(self._environment)).sort(
                "_id", ASCENDING
            )


def tolerate_bad_dates(proposals: Collection[layout.Document]) -> Collection[layout.Document]:
    """Return the collection such that a moment that no clock can tell does not break a reading."""
    options = proposals.codec_options.with_options(
        datetime_conversion=DatetimeConversion.DATETIME_AUTO
    )
    return proposals.with_options(codec_options=options)


FIRST_SLOTS, SECOND_SLOTS = 8, 2
DENIALS_A_MINUTE_MAX: Final = FIRST_SLOTS + SECOND_SLOTS
"""So many denials of one actor are logged in a minute."""
GROUPS: Final = 256
"""So an environment has at most GROUPS times as many in a minute, by whatever names."""
_CUT: Final = "..."


class DenialLog:
    """The denials of an environment."""

    def __init__(self, database: Database[layout.Document], environment: str) -> None:
        self._collection = database[layout.DENIALS]
        self._environment = environment
        self._minute = ""
        self._taken_slots: dict[str, int] = {}
        """By actor, how many slots of this minute are known to be taken."""

    def add(self, now: datetime, details: Mapping[str, Any]) -> bool:
        """Log what is told of a denial at a time of the server's; return whether there was room."""
        bounded: layout.Document = {**details}
        for name in layout.DENIAL_LENGTH_MAX:
            bounded[name] = shorten_text(details[name], name)
        bounded["operations"] = [
            {**operation, "key": shorten_text(operation["key"], "key")}
            for operation in details["operations"][: layout.DENIAL_OPERATIONS_MAX]
        ]
        minute = _format_minute(now)
        if minute != self._minute:
            self._minute, self._taken_slots = minute, {}
        taken, actor = self._taken_slots, bounded["actor"]
        for number, slot in enumerate(_iter_slots(minute, actor)):
            if number < taken.get(actor, 0):
                continue
            taken[actor] = number + 1
            document = {"_id": _build_denial_id(self._environment, slot), "time": now, **bounded}
            with translate_errors("logging a denial"):
                try:
                    self._collection.insert_one(document)
                except DuplicateKeyError:
                    continue
            return True
        return False

    def read_all(self) -> list[layout.Document]:
        """Return what was logged, oldest first."""
        first, last = (_build_denial_id(self._environment, end) for end in (MinKey(), MaxKey()))
        with translate_errors("reading the denials"):
            found = [
                check_form(layout.DENIALS, document)
                for document in self._collection.find({"_id": {"$gte": first, "$lte": last}})
            ]
        return sorted(found, key=lambda document: document["time"])


def shorten_text(text: str, name: str) -> str:
    """Return as much of a text as is logged of it."""
    # What UTF-8 cannot carry, no document can hold.
    length = layout.DENIAL_LENGTH_MAX[name]
    whole = text[: length + 1].encode(errors="replace").decode()
    return whole if len(whole) <= length else whole[: length - len(_CUT)] + _CUT


def list_name_prefixes(time: datetime) -> tuple[str, ...]:
    """Return what the name of a denial of some time begins with: its minute.

    Earlier versions gave each denial a name of its own, with the microsecond.
    """
    return f"{_format_minute(time)}-", f"{time:%Y%m%dT%H%M%S.%f}Z-"


def _format_minute(time: datetime) -> str:
    return f"{time:%Y%m%dT%H%M}Z"


def _iter_slots(minute: str, actor: str) -> Iterator[str]:
    hashed = hashlib.sha256(f"{minute} {actor}".encode()).digest()
    for group, numbers in (
        (hashed[0], range(FIRST_SLOTS)),
        (hashed[1], range(FIRST_SLOTS, DENIALS_A_MINUTE_MAX)),
    ):
        for number in numbers:
            yield f"{minute}-{group:02x}-{number}"


def _build_denial_id(environment: str, denial: Any) -> layout.Document:
    # Field order counts: ranges compare whole `_id`s.
    return {"environment": environment, "denial": denial}
