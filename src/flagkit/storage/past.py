"""Past: what the ledger has of an environment, up to the revision that is read."""

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from pymongo import ASCENDING, DESCENDING
from pymongo.client_session import ClientSession

from flagkit.changes import Change, PolicyChange, PolicyId, PolicyState, Tip
from flagkit.errors import StoreError
from flagkit.storage.auditing import audited
from flagkit.storage.forms import change_of, ledgered, tip_of
from flagkit.storage.layout import (
    AUDIT,
    LEDGER,
    PROJECTED,
    Document,
    collection_of,
    ledger_after,
    policy_id,
)

_CHANGE_FIELDS = (
    *("epoch", "revision", "hash", "time", "digests"),
    *("request", "previous_hash", "policies"),
)
"""What a ledger document has, besides its `_id`."""


class Past:
    """The changes that led to a revision. Its own change is read through where it is pending."""

    def __init__(self, database: Any, session: ClientSession, head: Document) -> None:
        self.tip = tip_of(head)
        self._database = database
        self._session = session
        change = change_of(head)
        if change is None and self.tip.revision > 0:
            raise StoreError(f"the head of {self.tip.environment!r} has lost its change")
        self._newest = change
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
            ledger_after(self.tip.environment, after),
            sort=[("_id", ASCENDING)],
            session=self._session,
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


def _follows(newest: PolicyChange | None, change: PolicyChange) -> bool:
    """Tell whether a change goes on from where a policy's newest one left it."""
    if newest is None or newest.after is not None:
        return change.before == (None if newest is None else newest.after)
    # Where a tombstone was removed, versions would begin anew.
    last, after = newest.before, change.after
    return change.before is None and bool(last and after and after.version > last.version)
