"""Past: what the ledger has of an environment, up to the revision that is read."""

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from pymongo import ASCENDING, DESCENDING
from pymongo.client_session import ClientSession

from flagkit.changes import Change, Cut, PolicyChange, PolicyId, PolicyState, Tip
from flagkit.errors import RevisionNotFoundError, StoreError
from flagkit.storage.auditing import audited
from flagkit.storage.forms import (
    change_of,
    last_state,
    ledgered,
    policy_state,
    sequenced,
    tip_of,
)
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
    """The changes that led to a revision. Its own change is read through where it is pending.

    Where the ledger was cut, what came before is not told, and what goes on from it is.
    """

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

    @property
    def cut(self) -> Cut | None:
        """Up to where the ledger was cut, None if it reaches back to revision 1."""
        raise NotImplementedError

    def check_told(self, revision: int) -> None:
        """Refuse to tell what was at a revision if the ledger does not reach back to it.

        Raises:
            RevisionNotFoundError: it does not.
        """
        cut = self.cut
        if cut is not None and revision < cut.tip.revision:
            raise RevisionNotFoundError(
                f"revision {revision} is not known any more: the ledger was pruned up to revision"
                f" {cut.tip.revision}, which is the first that can be asked for"
            )

    def commit_of(self, request: str) -> Tip | None:
        """Return the tip that a request led to, None if it has not been committed."""
        if self._newest is not None and self._newest.request == request:
            return self.tip
        document = self._database[LEDGER].find_one(
            {"_id.environment": self.tip.environment, "request": request}, session=self._session
        )
        if document is not None:
            return ledgered(document).tip
        if self.cut is None:
            return None
        # Who prunes the ledger leaves there what became of a request.
        identity = {"environment": self.tip.environment, "request": request}
        asked = self._database[AUDIT].find_one({"_id": identity}, session=self._session)
        return None if asked is None else sequenced(asked)

    def changes(self, after: int = 0) -> Iterator[Change]:
        """Yield the ledger's changes after a revision, in order; without the pending one."""
        found = self._database[LEDGER].find(
            ledger_after(self.tip.environment, after),
            sort=[("_id", ASCENDING)],
            session=self._session,
        )
        return map(audited, found)

    def revision_at(self, moment: datetime) -> int:
        """Return the last revision that is not later than a moment; 0 if none is.

        Raises:
            RevisionNotFoundError: the ledger does not reach back to it.
        """
        found = self._database[LEDGER].find_one(
            ledger_after(self.tip.environment, 0) | {"time": {"$lte": moment}},
            {"revision": True},
            sort=[("_id", DESCENDING)],
            session=self._session,
        )
        cut = self.cut
        revision = 0 if found is None else int(found["revision"])
        if cut is None or revision > cut.tip.revision:
            return revision
        if moment < cut.tip.time:
            raise RevisionNotFoundError(
                f"what was at {moment:%Y-%m-%d %H:%M:%S} UTC is not known any more: the ledger was"
                f" pruned up to revision {cut.tip.revision}, of {cut.tip.time:%Y-%m-%d %H:%M:%S}"
                " UTC"
            )
        return cut.tip.revision

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
        told: dict[PolicyId, PolicyState] = {}
        for collection in PROJECTED:
            identities = [
                policy_id(self.tip.environment, key, region)
                for region, key in sorted(wanted - gone)
                if collection_of(region) == collection
            ]
            if identities:
                tombstones = self._database[collection].find(
                    {"_id": {"$in": identities}, "policy": None},
                    {"version": True, "last": True},
                    session=self._session,
                )
                for found in tombstones:
                    identity = found["_id"]["region"], found["_id"]["key"]
                    gone.add(identity)
                    if (last := last_state(found)) is not None:
                        told[identity] = last
        newest = {identity: self._newest_of(identity, self.tip.revision) for identity in gone}
        return told | {
            identity: found[1].before
            for identity, found in newest.items()
            if found is not None and found[1].before is not None
        }

    def at(self, policy: PolicyId, revision: int) -> PolicyState | None:
        """Return the state that a flag or a segment had at a revision, None if there was none.

        Raises:
            RevisionNotFoundError: the ledger does not reach back to it.
        """
        self.check_told(revision)
        newest = self._newest_of(policy, revision)
        if newest is not None:
            return newest[1].after
        if self.cut is None:
            return None
        # What was there when the ledger was cut is what the first change after it found, if any.
        later = self._first_of(policy, revision)
        if later is not None:
            return later[1].before
        standing = self._standing(policy)
        return None if standing is None else policy_state(standing)

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
        changes = self._touching(policy, {"$lte": revision}, DESCENDING)
        if self.pending is not None and self.pending.revision <= revision:
            changes.append(self.pending)
        return _part_of(reversed(changes), policy)

    def _first_of(self, policy: PolicyId, revision: int) -> tuple[Change, PolicyChange] | None:
        """Return the first change to a flag or a segment after a revision, or that part of it."""
        changes = self._touching(policy, {"$gt": revision}, ASCENDING)
        if self.pending is not None and self.pending.revision > revision:
            changes.append(self.pending)
        return _part_of(changes, policy)

    def _touching(self, policy: PolicyId, revisions: Document, order: int) -> list[Change]:
        """Return the first change to a policy at some revisions, or none of the ledger's."""
        itself = {"$elemMatch": {"key": policy[1], "region": policy[0]}}
        document = self._database[LEDGER].find_one(
            {
                "_id.environment": self.tip.environment,
                "policies": itself,
                "_id.revision": revisions,
            },
            # Not what else it changed: of bulk changes that is too much for each of their flags.
            dict.fromkeys(_CHANGE_FIELDS, True) | {"policies": itself},
            sort=[("_id.revision", order)],
            session=self._session,
        )
        return [] if document is None else [ledgered(document)]

    def _standing(self, policy: PolicyId) -> Document | None:
        """Return the document of a policy as it is projected, tombstones included."""
        region, key = policy
        found: Document | None = self._database[collection_of(region)].find_one(
            {"_id": policy_id(self.tip.environment, key, region)}, session=self._session
        )
        return found

    def check_newest(self, changes: Iterable[PolicyChange]) -> None:
        """Refuse to build upon a state that is not the newest that the ledger has.

        Raises:
            StoreError: an older one was put back past the writer, or one was removed.
        """
        for change in changes:
            newest = self._newest_of(change.id, self.tip.revision)
            if newest is None and self.cut is not None:
                follows = self._follows_cut(change, self.cut)
            else:
                follows = _follows(None if newest is None else newest[1], change)
            if not follows:
                region, key = change.id
                raise StoreError(
                    f"{key} ({region}) is not as the ledger has it: it was changed past the"
                    " writer; nothing was written"
                )

    def _follows_cut(self, change: PolicyChange, cut: Cut) -> bool:
        """Tell whether a change goes on from what was there when the ledger was cut."""
        standing = self._standing(change.id)
        if standing is None:
            return change.before is None
        if standing["revision"] > cut.tip.revision:
            return False
        if standing["policy"] is None:
            after = change.after
            return change.before is None and bool(after and after.version > standing["version"])
        return change.before == policy_state(standing)

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


def _part_of(changes: Iterable[Change], policy: PolicyId) -> tuple[Change, PolicyChange] | None:
    """Return the first change to a policy, and that part of it."""
    for change in changes:
        for item in change.policies:
            if item.id == policy:
                return change, item
    return None


def _follows(newest: PolicyChange | None, change: PolicyChange) -> bool:
    """Tell whether a change goes on from where a policy's newest one left it."""
    if newest is None or newest.after is not None:
        return change.before == (None if newest is None else newest.after)
    # Where a tombstone was removed, versions would begin anew.
    last, after = newest.before, change.after
    return change.before is None and bool(last and after and after.version > last.version)
