"""The writer's side of the database: readings, requests, the compare-and-set, projection.

The compare-and-set of the head is the commit. What stands before it may be abandoned, what comes
after it may be done by anyone, again, and in any order. No transaction holds a lock that a killed
writer would keep.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from pymongo import ASCENDING, DESCENDING, MongoClient, ReplaceOne
from pymongo.client_session import ClientSession
from pymongo.errors import BulkWriteError, CollectionInvalid, DuplicateKeyError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from flagkit.changes import Change, FlagId, FlagState, Tip, genesis
from flagkit.errors import EnvironmentNotFoundError, StoreError
from flagkit.model import EVERYWHERE
from flagkit.storage.driver import (
    NO_REPLICA_SET,
    OPERATION_MILLISECONDS_MAX,
    settings_for,
    translated,
)
from flagkit.storage.layout import (
    AUDIT,
    FLAGS,
    HEADS,
    INDEXES,
    LEDGER,
    Document,
    active_in_region,
    change_of,
    flag_document,
    flag_state,
    flags_named,
    flags_of,
    head_document,
    ledger_after,
    ledger_document,
    ledger_id,
    ledgered,
    tip_of,
)

_BY_ID = [("_id", ASCENDING)]
_DUPLICATE_KEY = 11000


class Store:
    """One environment in the database, for writers and auditors. May be used from many threads."""

    def __init__(self, uri: str, *, environment: str, database: str) -> None:
        self.environment = environment
        with translated("reading the connection string"):
            self._client: MongoClient[Document] = MongoClient(uri, **settings_for(uri))
        self._database = self._client.get_database(
            database, read_concern=ReadConcern("majority"), write_concern=WriteConcern("majority")
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def create_environment(self, epoch: str) -> Tip:
        """Make collections, indexes and the head at revision 0, where they are not there yet."""
        with translated("creating the environment"):
            codec = self._database.codec_options
            hello = self._database.command("hello", codec_options=codec)
            if "setName" not in hello:
                raise StoreError(NO_REPLICA_SET)
            for name, indexes in INDEXES.items():
                try:
                    collection = self._database.create_collection(name)
                except CollectionInvalid:
                    collection = self._database[name]
                if indexes:
                    collection.create_indexes(list(indexes))
            tip = genesis(self.environment, epoch, hello["localTime"])
            try:
                self._database[HEADS].insert_one(head_document(tip, None))
            except DuplicateKeyError:
                return self.tip()
            return tip

    def tip(self) -> Tip:
        """Return where the environment stands.

        Raises:
            EnvironmentNotFoundError: it was never created.
        """
        with translated("reading the head"):
            head = self._database[HEADS].find_one({"_id": self.environment})
        if head is None:
            raise self._unknown()
        return tip_of(head)

    @contextmanager
    def reading(self) -> "Generator[Reading]":
        """Give a reading of the environment at one revision, for the block."""
        with (
            translated("reading the environment"),
            self._client.start_session(snapshot=True) as session,
        ):
            at_tip = self._database[HEADS].aggregate(
                [{"$match": {"_id": self.environment}}, {"$set": {"now": "$$NOW"}}],
                session=session,
                maxTimeMS=OPERATION_MILLISECONDS_MAX,
            )
            head = next(iter(at_tip), None)
            if head is None:
                raise self._unknown()
            yield Reading(self._database, session, head)

    def add_request(self, request: str, content: Mapping[str, Any]) -> str:
        """Record who asks for what, and why; return the digest on record, the first one's.

        `content` has `digest`, and whatever else audit documents have.
        """
        identity = {"environment": self.environment, "request": request}
        audit = self._database[AUDIT]
        with translated("recording the request"):
            try:
                audit.insert_one({"_id": identity, **content})
            except DuplicateKeyError:
                earlier = audit.find_one({"_id": identity})
                assert earlier is not None, "audit documents are never removed"
                return str(earlier["digest"])
        return str(content["digest"])

    def compare_and_set(self, tip: Tip, change: Change) -> bool:
        """Commit a change if the head still stands at `tip`; return whether it did."""
        expected = {
            "_id": tip.environment,
            "epoch": tip.epoch,
            "revision": tip.revision,
            "hash": tip.hash,
        }
        with translated("committing"):
            done = self._database[HEADS].replace_one(expected, head_document(change.tip, change))
        return done.matched_count == 1

    def project(self, change: Change) -> None:
        """Bring a committed change into flags and ledger, wherever it is not there yet."""
        environment, revision = change.tip.environment, change.revision
        documents = [flag_document(environment, revision, flag) for flag in change.flags]
        # A newer state stays: the guard finds nothing to replace, and the upsert meets its `_id`.
        replacements = [
            ReplaceOne(
                {"_id": document["_id"], "revision": {"$lt": revision}}, document, upsert=True
            )
            for document in documents
        ]
        with translated("projecting a change"):
            if replacements:
                try:
                    self._database[FLAGS].bulk_write(replacements, ordered=False)
                except BulkWriteError as error:
                    if any(
                        fault["code"] != _DUPLICATE_KEY for fault in error.details["writeErrors"]
                    ):
                        raise
            try:
                self._database[LEDGER].insert_one(ledger_document(change))
            except DuplicateKeyError:
                self._check_same(change)

    def changes(self, after: int = 0) -> Iterator[Change]:
        """Yield the ledger's changes after a revision, in order."""
        with translated("reading the ledger"):
            found = self._database[LEDGER].find(ledger_after(self.environment, after), sort=_BY_ID)
            yield from map(ledgered, found)

    def requests(self, requests: Iterable[str]) -> dict[str, Document]:
        """Return audit documents by request id."""
        identities = [{"environment": self.environment, "request": request} for request in requests]
        with translated("reading the audit"):
            found = self._database[AUDIT].find({"_id": {"$in": identities}})
            return {document["_id"]["request"]: document for document in found}

    def active_flags(self, region: str, at: datetime) -> list[str]:
        """Return the keys of the flags that are active in a region at a moment, sorted.

        Active is a flag in state active that is not past its `expires`; an override that is not
        hides the flag for all regions. Answered from the index `active_in_region`, with no scan.
        """
        key_only = {"_id.key": True}
        with translated("asking for active flags"):
            flags = self._database[FLAGS]
            mine = {
                document["_id"]["key"]
                for document in flags.find(active_in_region(self.environment, region, at), key_only)
            }
            everywhere = {
                document["_id"]["key"]
                for document in flags.find(
                    active_in_region(self.environment, EVERYWHERE, at), key_only
                )
            }
            overridden = {
                document["_id"]["key"]
                for document in flags.find(
                    {
                        "_id.environment": self.environment,
                        "_id.region": region,
                        "policy.state": {"$ne": None},
                    },
                    key_only,
                )
            }
        return sorted(mine | (everywhere - overridden))

    def _check_same(self, change: Change) -> None:
        found = self._database[LEDGER].find_one(
            {"_id": ledger_id(change.tip.environment, change.revision)}, {"hash": True}
        )
        if found is None or found["hash"] != change.tip.hash:
            raise StoreError(
                f"the ledger holds another change as revision {change.revision} of"
                f" {change.tip.environment!r}: the database was restored or edited"
            )

    def _unknown(self) -> EnvironmentNotFoundError:
        return EnvironmentNotFoundError(
            f"the environment {self.environment!r} is not in the database {self._database.name!r}:"
            " create it once with Writer.create_environment()"
        )


class Reading:
    """An environment at one revision.

    What the tip's change did is read through where it is not yet projected.
    """

    def __init__(self, database: Any, session: ClientSession, head: Document) -> None:
        self.tip = tip_of(head)
        self.now: datetime = head["now"]
        """The server's time."""
        self._database = database
        self._session = session
        change = change_of(head)
        self._newest = change
        self.pending = change if change is not None and not self._is_ledgered() else None
        """The tip's change, if the ledger has not got it yet."""

    def commit_of(self, request: str) -> Tip | None:
        """Return the tip that a request led to, None if it has not been committed."""
        if self._newest is not None and self._newest.request == request:
            return self.tip
        document = self._database[LEDGER].find_one(
            {"_id.environment": self.tip.environment, "request": request}, session=self._session
        )
        return None if document is None else ledgered(document).tip

    def changes(self) -> Iterator[Change]:
        """Yield all of the ledger's changes, in order; without the pending one."""
        found = self._database[LEDGER].find(
            ledger_after(self.tip.environment, 0), sort=_BY_ID, session=self._session
        )
        return map(ledgered, found)

    def find(self, keys: Iterable[str]) -> dict[FlagId, FlagState]:
        """Return the states of some flags, in all regions."""
        wanted = sorted(set(keys))
        if not wanted:
            return {}
        documents = self._database[FLAGS].find(
            flags_named(self.tip.environment, wanted), session=self._session
        )
        return self._read_through(documents, lambda state: state.key in wanted)

    def all(self) -> dict[FlagId, FlagState]:
        """Return the states of all flags, in all regions."""
        documents = self._database[FLAGS].find(
            flags_of(self.tip.environment), session=self._session
        )
        return self._read_through(documents, lambda _: True)

    def dependents(self, keys: Iterable[str]) -> dict[FlagId, FlagState]:
        """Return the states of the flags that have one of `keys` as a direct prerequisite."""
        wanted = sorted(set(keys))
        documents = self._database[FLAGS].find(
            {
                "_id.environment": self.tip.environment,
                "policy.prerequisites.flag": {"$in": wanted},
            },
            session=self._session,
        )
        return self._read_through(
            documents,
            lambda state: any(
                item["flag"] in wanted for item in state.policy.get("prerequisites", ())
            ),
        )

    def at(self, flag: FlagId, revision: int) -> FlagState | None:
        """Return the state that a flag had at a revision, None if there was none."""
        region, key = flag
        document = self._database[LEDGER].find_one(
            {
                "_id.environment": self.tip.environment,
                "flags": {"$elemMatch": {"key": key, "region": region}},
                "_id.revision": {"$lte": revision},
            },
            sort=[("_id.revision", DESCENDING)],
            session=self._session,
        )
        changes = [] if document is None else [ledgered(document)]
        if self.pending is not None and self.pending.revision <= revision:
            changes.append(self.pending)
        for change in reversed(changes):
            for item in change.flags:
                if item.id == flag:
                    return item.after
        return None

    def _is_ledgered(self) -> bool:
        identity = ledger_id(self.tip.environment, self.tip.revision)
        found = self._database[LEDGER].find_one(
            {"_id": identity}, {"_id": 1}, session=self._session
        )
        return found is not None

    def _read_through(
        self, documents: Iterable[Document], wanted: Callable[[FlagState], bool]
    ) -> dict[FlagId, FlagState]:
        states: dict[FlagId, FlagState | None] = {
            (document["_id"]["region"], document["_id"]["key"]): flag_state(document)
            for document in documents
        }
        if self.pending is not None:
            states |= {flag.id: flag.after for flag in self.pending.flags}
        return {
            identity: state
            for identity, state in states.items()
            if state is not None and wanted(state)
        }
