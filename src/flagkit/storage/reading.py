"""Reading: an environment at one revision, from one snapshot of the database."""

import functools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from pymongo import ASCENDING, DESCENDING
from pymongo.client_session import ClientSession

from flagkit.changes import ACCESS as ACCESS_REGION
from flagkit.changes import GRANTS, LIMITS, Change, PolicyChange, PolicyId, PolicyState, Tip, digest
from flagkit.errors import StoreError
from flagkit.model.segments import unpacked_part
from flagkit.snapshot import Arena, check_digests
from flagkit.storage.auditing import audited
from flagkit.storage.checkpoints import Checkpoint
from flagkit.storage.layout import (
    ACCESS,
    AUDIT,
    CHECKPOINTS,
    FLAGS,
    LEDGER,
    MEMBERS,
    PROJECTED,
    SEGMENTS,
    Document,
    change_of,
    check_body,
    checkpoints_of,
    collection_of,
    ledger_after,
    ledgered,
    members_part,
    parts_named,
    policies_named,
    policies_of,
    policy_id,
    policy_state,
    segments_named,
    tip_of,
)
from flagkit.storage.publishing import newest_first, read_back
from flagkit.storage.scanning import (
    BATCH_DOCUMENTS,
    PROJECTIONS,
    Scan,
    completed,
    without_body,
)

_CHANGE_FIELDS = (
    *("epoch", "revision", "hash", "time", "digests"),
    *("request", "previous_hash", "policies"),
)
"""What a ledger document has, besides its `_id`."""
_BY_ID = [("_id", ASCENDING)]


class Reading:
    """An environment at one revision.

    What the tip's change did is read through where it is not yet projected.
    """

    def __init__(self, database: Any, session: ClientSession, head: Document) -> None:
        self.tip = tip_of(head)
        self.now: datetime = head["now"]
        """The server's time."""
        self.buckets: Mapping[str, int] = head.get("buckets", {})
        """By name, when a bucket of the rate limits is full again, in microseconds since 1970."""
        self._database = database
        self._session = session
        self._head = head
        change = change_of(head)
        if change is None and self.tip.revision > 0:
            raise StoreError(f"the head of {self.tip.environment!r} has lost its change")
        self._newest = change
        self._access: dict[PolicyId, PolicyState] | None = None
        self.pending = change if change is not None and not self._is_ledgered(change) else None
        """The tip's change, if the ledger has not got it yet."""

    def commit_of(self, request: str) -> Tip | None:
        """Return the tip that a request led to, None if it has not been committed."""
        if self._newest is not None and self._newest.request == request:
            return self.tip
        document = self._database[LEDGER].find_one(
            {"_id.environment": self.tip.environment, "request": request}, session=self._session
        )
        return None if document is None else ledgered(document).tip

    def changes(self, after: int = 0) -> Iterator[Change]:
        """Yield the ledger's changes after a revision, in order; without the pending one."""
        found = self._database[LEDGER].find(
            ledger_after(self.tip.environment, after), sort=_BY_ID, session=self._session
        )
        return map(audited, found)

    def revision_at(self, moment: datetime) -> int:
        """Return the last revision in the ledger that is not later than a moment; 0 if none is."""
        found = self._database[LEDGER].find_one(
            ledger_after(self.tip.environment, 0) | {"time": {"$lte": moment}},
            {"revision": True},
            sort=[("_id", DESCENDING)],
            session=self._session,
        )
        return 0 if found is None else int(found["revision"])

    def strays(self) -> list[Any]:
        """Return what stands in the ledger in the place of a revision and is no revision."""
        found = self._database[LEDGER].find(
            {
                "_id.environment": self.tip.environment,
                "$nor": [ledger_after(self.tip.environment, 0)],
            },
            {"_id": True},
            session=self._session,
        )
        return [document["_id"].get("revision") for document in found]

    def find(self, keys: Iterable[str]) -> dict[PolicyId, PolicyState]:
        """Return the states of some flags, in all regions."""
        return self._find(FLAGS, set(keys))

    def segments(self, keys: Iterable[str]) -> dict[PolicyId, PolicyState]:
        """Return the states of some segments."""
        return self._find(SEGMENTS, set(keys))

    @property
    def access(self) -> Mapping[PolicyId, PolicyState]:
        """The states of the grants and of the limits, as far as there are any.

        Raises:
            HistoryLostError: they are not those of this revision: something changed them past the
                writer.
        """
        # An environment that has none pays no query; and the digest tells an older state.
        if self._access is None:
            wanted = {GRANTS[1], LIMITS[1]} if ACCESS_REGION in self.tip.digests else set[str]()
            states = self._find(ACCESS, wanted)
            check_digests(digest(states.values()), self.tip, (ACCESS_REGION,))
            self._access = states
        return self._access

    def _find(self, collection: str, wanted: set[str]) -> dict[PolicyId, PolicyState]:
        if not wanted:
            return {}
        documents = self._database[collection].find(
            policies_named(self.tip.environment, sorted(wanted)), session=self._session
        )
        return self._read_through(
            documents,
            lambda state: state.key in wanted and collection_of(state.region) == collection,
        )

    def parts(self, names: Iterable[str]) -> dict[str, bytes]:
        """Return parts of members, by their SHA-256, as far as they are there."""
        wanted = set(names)
        if not wanted:
            return {}
        found = self._database[MEMBERS].find(
            parts_named(self.tip.environment, wanted), session=self._session
        )
        return dict(map(members_part, found))

    def known_parts(self, names: Iterable[str]) -> set[str]:
        """Return those of some parts of members that are there."""
        wanted = set(names)
        if not wanted:
            return set()
        found = self._database[MEMBERS].find(
            parts_named(self.tip.environment, wanted), {"_id": True}, session=self._session
        )
        return {document["_id"]["part"] for document in found}

    def all(self) -> dict[PolicyId, PolicyState]:
        """Return the states of all flags, in all regions, and of all segments."""
        return self._read_through(self._all_documents(), lambda _: True)

    def base(self) -> Generator[str | None, None, Arena]:
        """Return the base of all regions, with all members and without grants, in slices.

        Yields now and then how far it is.

        Raises:
            HistoryLostError: they do not add up to the tip's digests: something changed them past
                the writer.
            StoreError: members of segments are missing, or were changed past the writer.
        """
        scan, count = Scan(self._head, None), 0
        for collection, projection in PROJECTIONS.items():
            found = self._database[collection].find(
                scan.filter(collection),
                projection,
                sort=_BY_ID,
                session=self._session,
                batch_size=BATCH_DOCUMENTS,
            )
            while documents := found.to_list(BATCH_DOCUMENTS):
                lacking = without_body(documents)
                if lacking is not None:
                    whole = self._database[collection].find(lacking, session=self._session)
                    documents = completed(documents, whole)
                scan.take(collection, documents)
                count += len(documents)
                yield f"{count:,} flags and segments are read"
        parts = self.parts(scan.parts)
        if parts.keys() != scan.parts:
            raise StoreError("members of segments are missing: they were removed past the writer")
        base = yield from scan.finished(
            {name: unpacked_part(part).tobytes() for name, part in parts.items()}
        )
        found = base.header.digests
        places = (found.keys() | self.tip.digests.keys()) - {ACCESS_REGION}
        check_digests(found, self.tip, places)
        return base

    def checkpoints(self) -> Iterator[tuple[Checkpoint, Callable[[], Arena]]]:
        """Yield the checkpoints of this epoch that can be read here, and what reads their bases."""
        found = self._database[CHECKPOINTS].find(
            checkpoints_of(self.tip.environment), session=self._session
        )
        for checkpoint in newest_first(found):
            if checkpoint.tip.epoch == self.tip.epoch and checkpoint.is_readable:
                yield (
                    checkpoint,
                    functools.partial(read_back, self._database, checkpoint, self._session),
                )

    def projected(self) -> dict[PolicyId, tuple[int, PolicyState | None]]:
        """Return what is projected, as it stands: revisions and states, None if deleted.

        Raises:
            StoreError: a flag's body is not that of its policy.
        """
        found: dict[PolicyId, tuple[int, PolicyState | None]] = {}
        for document in self._all_documents():
            state = policy_state(document)
            if state is not None:
                check_body(document, state)
            identity = document["_id"]["region"], document["_id"]["key"]
            found[identity] = document["revision"], state
        return found

    def _all_documents(self) -> Iterator[Document]:
        for collection in PROJECTED:
            yield from self._database[collection].find(
                policies_of(self.tip.environment), session=self._session
            )

    def dependents(self, keys: Iterable[str]) -> dict[PolicyId, PolicyState]:
        """Return the states of the flags that have one of `keys` as a direct prerequisite."""
        wanted = set(keys)
        documents = self._database[FLAGS].find(
            {
                "_id.environment": self.tip.environment,
                "policy.prerequisites.flag": {"$in": sorted(wanted)},
            },
            session=self._session,
        )
        return self._read_through(
            documents,
            lambda state: any(
                item["flag"] in wanted for item in state.policy.get("prerequisites", ())
            ),
        )

    def referring(self, segments: Iterable[str]) -> dict[PolicyId, PolicyState]:
        """Return the states of the flags whose rules refer to one of some segments."""
        wanted = set(segments)
        documents = self._database[FLAGS].find(
            {"_id.environment": self.tip.environment, "segments": {"$in": sorted(wanted)}},
            session=self._session,
        )
        return self._read_through(
            documents, lambda state: not wanted.isdisjoint(segments_named(state))
        )

    def deleted(self, policies: Iterable[PolicyId]) -> dict[PolicyId, PolicyState]:
        """Return the last states of those of some flags and segments that were deleted."""
        wanted = set(policies)
        pending = self.pending.policies if self.pending is not None else ()
        gone = {policy.id for policy in pending if policy.after is None} & wanted
        for collection in PROJECTED:
            identities = [
                policy_id(self.tip.environment, key, region)
                for region, key in sorted(wanted - gone)
                if collection_of(region) == collection
            ]
            if identities:
                tombstones = self._database[collection].find(
                    {"_id": {"$in": identities}, "policy": None},
                    {"_id": True},
                    session=self._session,
                )
                gone |= {(found["_id"]["region"], found["_id"]["key"]) for found in tombstones}
        newest = {identity: self._newest_of(identity, self.tip.revision) for identity in gone}
        return {
            identity: found[1].before
            for identity, found in newest.items()
            if found is not None and found[1].before is not None
        }

    def at(self, policy: PolicyId, revision: int) -> PolicyState | None:
        """Return the state that a flag or a segment had at a revision, None if there was none."""
        newest = self._newest_of(policy, revision)
        return None if newest is None else newest[1].after

    def author(self, policy: PolicyId) -> tuple[str, datetime] | None:
        """Return who changed a flag or a segment last, and when; None if it is not known."""
        newest = self._newest_of(policy, self.tip.revision)
        if newest is None:
            return None
        identity = {"environment": self.tip.environment, "request": newest[0].request}
        request = self._database[AUDIT].find_one({"_id": identity}, session=self._session)
        return None if request is None else (request["actor"], newest[0].tip.time)

    def _newest_of(self, policy: PolicyId, revision: int) -> tuple[Change, PolicyChange] | None:
        """Return the last change to a flag or a segment up to a revision, or that part of it."""
        itself = {"$elemMatch": {"key": policy[1], "region": policy[0]}}
        document = self._database[LEDGER].find_one(
            {
                "_id.environment": self.tip.environment,
                "policies": itself,
                "_id.revision": {"$lte": revision},
            },
            # Not what else it changed: of bulk changes that is too much for each of their flags.
            dict.fromkeys(_CHANGE_FIELDS, True) | {"policies": itself},
            sort=[("_id.revision", DESCENDING)],
            session=self._session,
        )
        changes = [] if document is None else [ledgered(document)]
        if self.pending is not None and self.pending.revision <= revision:
            changes.append(self.pending)
        for change in reversed(changes):
            for item in change.policies:
                if item.id == policy:
                    return change, item
        return None

    def check_newest(self, changes: Iterable[PolicyChange]) -> None:
        """Refuse to build upon a state that is not the newest that the ledger has.

        Raises:
            StoreError: an older one was put back past the writer, or one was removed.
        """
        for change in changes:
            newest = self._newest_of(change.id, self.tip.revision)
            if not _follows(None if newest is None else newest[1], change):
                region, key = change.id
                raise StoreError(
                    f"{key} ({region}) is not as the ledger has it: it was changed past the"
                    " writer; nothing was written"
                )

    def _is_ledgered(self, change: Change) -> bool:
        """Tell whether the ledger has the tip's change. It must have no other, and no later one."""
        found = self._database[LEDGER].find(
            ledger_after(self.tip.environment, self.tip.revision - 1),
            {"hash": True},
            limit=2,
            session=self._session,
        )
        hashes = {document["_id"]["revision"]: document.get("hash") for document in found}
        if not change.is_sealed or hashes not in ({}, {self.tip.revision: self.tip.hash}):
            beyond = [str(revision) for revision in hashes if revision != self.tip.revision]
            also = f" (the ledger has revision {beyond[0]} too)" if beyond else ""
            raise StoreError(
                f"head and ledger of {self.tip.environment!r} are of different histories at"
                f" revision {self.tip.revision}{also}: one was restored or edited; nothing was"
                " written"
            )
        return bool(hashes)

    def _read_through(
        self, documents: Iterable[Document], wanted: Callable[[PolicyState], bool]
    ) -> dict[PolicyId, PolicyState]:
        states: dict[PolicyId, PolicyState | None] = {
            (document["_id"]["region"], document["_id"]["key"]): policy_state(document)
            for document in documents
        }
        if self.pending is not None:
            states |= {flag.id: flag.after for flag in self.pending.policies}
        return {
            identity: state
            for identity, state in states.items()
            if state is not None and wanted(state)
        }


def _follows(newest: PolicyChange | None, change: PolicyChange) -> bool:
    """Tell whether a change goes on from where a policy's newest one left it."""
    if newest is None or newest.after is not None:
        return change.before == (None if newest is None else newest.after)
    # Where a tombstone was removed, versions would begin anew.
    last, after = newest.before, change.after
    return change.before is None and bool(last and after and after.version > last.version)
