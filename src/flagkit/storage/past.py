"""Past: what the ledger has of an environment, up to the revision that is read."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from pymongo import ASCENDING, DESCENDING
from pymongo.client_session import ClientSession

from flagkit.changes import Change, PolicyChange, PolicyId, PolicyState, Tip
from flagkit.errors import StoreError
from flagkit.storage.auditing import audited
from flagkit.storage.forms import change_of, ledgered, tip_in, tip_of
from flagkit.storage.layout import (
    AUDIT,
    LEDGER,
    PAGES,
    PROJECTED,
    Document,
    collection_of,
    ledger_after,
    ledger_id,
    pages_named,
    policy_id,
)
from flagkit.storage.pages import names_in, pages_in, policies_on

_CHANGE_FIELDS = (
    *("epoch", "revision", "hash", "time", "digests"),
    *("request", "previous_hash", "policies"),
)
"""What a ledger document has, besides its `_id`."""


class Past:
    """The changes that led to a revision. Its own change is read through where it is pending."""

    def __init__(self, database: Any, session: ClientSession, head: Document) -> None:
        self.tip = tip_of(head)
        self._head = head
        self._database = database
        self._session = session
        if head["change"] is None and self.tip.revision > 0:
            raise StoreError(f"the head of {self.tip.environment!r} has lost its change")
        self.pages = names_in(head["change"])
        """The pages that the tip's change is on, if it is on any."""
        self.pending = self._unledgered() if self.tip.revision > 0 else None
        """The tip's change, if the ledger has not got it yet."""

    def commit_of(self, request: str) -> Tip | None:
        """Return the tip that a request led to, None if it has not been committed."""
        if self._head["change"] is not None and self._head["change"]["request"] == request:
            return self.tip
        document = self._database[LEDGER].find_one(
            {"_id.environment": self.tip.environment, "request": request}, session=self._session
        )
        return None if document is None else tip_in(document)

    def changes(self, after: int = 0) -> Iterator[Change]:
        """Yield the ledger's changes after a revision, in order; without the pending one."""
        found = self._database[LEDGER].find(
            ledger_after(self.tip.environment, after),
            sort=[("_id", ASCENDING)],
            session=self._session,
        )
        for document in found:
            yield audited(document, self._pages(names_in(document)))

    @functools.cached_property
    def lagging(self) -> int | None:
        """The first revision that flags may lack; None if they lack none but the pending one."""
        revision = self._head.get("unprojected")
        if revision is None:
            return None
        names = self.pages
        if revision != self.tip.revision:
            identity = ledger_id(self.tip.environment, revision)
            found = self._database[LEDGER].find_one(
                {"_id": identity}, {"pages": True}, session=self._session
            )
            names = names_in(found)
        projected = self._database[PAGES].count_documents(
            pages_named(self.tip.environment, names) | {"projected": revision},
            session=self._session,
        )
        return revision if projected < len(names) or not names else None

    @functools.cached_property
    def unprojected(self) -> Sequence[Change]:
        """The changes that flags may lack, in order; the last is the tip's."""
        pending = [] if self.pending is None else [self.pending]
        return pending if self.lagging is None else [*self.changes(self.lagging - 1), *pending]

    @property
    def lags_by(self) -> timedelta:
        """How much older than the tip the oldest of the changes is that flags may lack."""
        return self.tip.time - self.unprojected[0].tip.time if self.unprojected else timedelta()

    def _pages(self, names: Sequence[str]) -> dict[str, bytes]:
        if not names:
            return {}
        found = self._database[PAGES].find(
            pages_named(self.tip.environment, names), session=self._session
        )
        return pages_in(found)

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
        newest = {item.id: item.after for change in self.unprojected for item in change.policies}
        gone = {identity for identity in wanted & newest.keys() if newest[identity] is None}
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
        last = {identity: self._newest_of(identity, self.tip.revision) for identity in gone}
        return {
            identity: found[1].before
            for identity, found in last.items()
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
        changes += self._newest_on_pages(policy, revision)
        changes.sort(key=lambda change: change.revision)
        if self.pending is not None and self.pending.revision <= revision:
            changes.append(self.pending)
        for change in reversed(changes):
            for item in change.policies:
                if item.id == policy:
                    return change, item
        return None

    def _newest_on_pages(self, policy: PolicyId, revision: int) -> list[Change]:
        """Return what the last large change to a flag or a segment did to it; none if none did."""
        mine = {"_id.environment": self.tip.environment, "keys": policy[1]}
        found = self._database[PAGES].find(mine, session=self._session)
        pages = pages_in(found)
        if not pages:
            return []
        documents = self._database[LEDGER].find(
            {
                "_id.environment": self.tip.environment,
                "pages": {"$in": [*pages]},
                "_id.revision": {"$lte": revision},
            },
            sort=[("_id.revision", DESCENDING)],
            session=self._session,
        )
        for document in documents:
            # Not what stands on its other pages.
            for name in names_in(document):
                items = policies_on(name, pages[name]) if name in pages else []
                if item := next((item for item in items if item.id == policy), None):
                    request, previous = document["request"], document["previous_hash"]
                    return [Change(tip_in(document), request, previous, (item,))]
        return []

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

    def _unledgered(self) -> Change | None:
        """Return the tip's change if the ledger lacks it. It must have no other, and no later."""
        found = self._database[LEDGER].find(
            ledger_after(self.tip.environment, self.tip.revision - 1),
            {"hash": True},
            limit=2,
            session=self._session,
        )
        hashes = {document["_id"]["revision"]: document.get("hash") for document in found}
        change = None
        if not hashes or not self.pages:
            change = change_of(self._head, self._pages(self.pages))
        is_sealed = change is None or change.is_sealed
        if not is_sealed or hashes not in ({}, {self.tip.revision: self.tip.hash}):
            beyond = [str(revision) for revision in hashes if revision != self.tip.revision]
            also = f" (the ledger has revision {beyond[0]} too)" if beyond else ""
            raise StoreError(
                f"head and ledger of {self.tip.environment!r} are of different histories at"
                f" revision {self.tip.revision}{also}: one was restored or edited; nothing was"
                " written"
            )
        return None if hashes else change


def _follows(newest: PolicyChange | None, change: PolicyChange) -> bool:
    """Tell whether a change goes on from where a policy's newest one left it."""
    if newest is None or newest.after is not None:
        return change.before == (None if newest is None else newest.after)
    # Where a tombstone was removed, versions would begin anew.
    last, after = newest.before, change.after
    return change.before is None and bool(last and after and after.version > last.version)
