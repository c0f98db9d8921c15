"""Proposals: changes that wait for another person, and what was said of them. Insert-only.

A document is {_id: {environment, proposal, actor, verdict}, time, reason, digest}. The first one of
a proposal has the verdict "propose", and also {operations, touched, depends}. `touched` is
[{region, key, version}], the version null where there was nothing. `depends` has the versions
of what that depends on. Those of the others have the digest of the proposal that their actors saw,
and a `seal`, which binds what they say to them.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from bson.codec_options import DatetimeConversion
from pymongo import ASCENDING, DESCENDING
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from flagkit.storage.driver import translated
from flagkit.storage.layout import PROPOSALS, Document, proposals_named, proposals_of

PROPOSE: Final = "propose"


class Proposals:
    """The proposals of an environment."""

    def __init__(self, database: Database[Document], environment: str) -> None:
        self._collection = readable(database[PROPOSALS])
        self._environment = environment

    def say(self, proposal: str, actor: str, verdict: str, content: Mapping[str, Any]) -> None:
        """Insert a proposal, or what an actor says of one; what was said before stands."""
        identity = {
            "environment": self._environment,
            "proposal": proposal,
            "actor": actor,
            "verdict": verdict,
        }
        with translated("recording what is said of a proposal"):
            try:
                self._collection.insert_one({"_id": identity, **content})
            except DuplicateKeyError:
                return

    def newest(self, limit: int) -> list[str]:
        """Return the ids of proposals, the newest first: they begin with when they were made."""
        named = {"_id.proposal": {"$type": "string"}, "_id.verdict": PROPOSE}
        wanted = {**proposals_of(self._environment), **named}
        with translated("reading the proposals"):
            found = self._collection.find(wanted, {"_id": True})
            return [
                document["_id"]["proposal"]
                for document in found.sort("_id", DESCENDING).limit(limit)
            ]

    def said(self, proposals: Iterable[str]) -> dict[str, list[Document]]:
        """Return the documents of some proposals, the oldest first."""
        said: dict[str, list[Document]] = {proposal: [] for proposal in proposals}
        if not said:
            return said
        wanted = proposals_named(self._environment, said)
        with translated("reading what was said of proposals"):
            for document in self._collection.find(wanted).sort("time", ASCENDING):
                said[document["_id"]["proposal"]].append(document)
        return said

    def all(self) -> Iterator[Document]:
        """Yield all documents, those of a proposal after each other."""
        with translated("reading the proposals"):
            yield from self._collection.find(proposals_of(self._environment)).sort("_id", ASCENDING)


def readable(proposals: Collection[Document]) -> Collection[Document]:
    """Return the collection such that a moment that no clock can tell does not break a reading."""
    options = proposals.codec_options.with_options(
        datetime_conversion=DatetimeConversion.DATETIME_AUTO
    )
    return proposals.with_options(codec_options=options)
