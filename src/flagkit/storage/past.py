"""Past: what the ledger has of an environment, up to the revision that is read."""

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from datetime import datetime
from typing import Any, Final

from pymongo import ASCENDING, DESCENDING
from pymongo.client_session import ClientSession

from flagkit.changes import Change, Cut, PolicyChange, PolicyId, PolicyState, Tip
from flagkit.errors import RevisionNotFoundError, StoreError
from flagkit.storage.auditing import audited
from flagkit.storage.foreseen import (
    ENTRIES,
    NEWEST,
    REQUEST,
    Foreseen,
    Found,
    projects_lightly,
)
from flagkit.storage.forms import (
    change_of,
    judged,
    last_state,
    ledgered,
    policy_state,
    sequenced,
    tip_of,
)
from flagkit.storage.layout import (
    AUDIT,
    LEDGER,
    POLICY_HISTORY,
    Document,
    changed_last,
    changes_at,
    changes_beyond,
    ledger_after,
    request_of,
)
from flagkit.storage.standing import Standing

_GROUPS_MAX: Final = 16


class Past:
    """The changes that led to a revision. Its own is read through where it is not yet projected.

    Where the ledger was cut, what came before is not told, and what goes on from it is.
    """

    def __init__(
        self, database: Any, session: ClientSession, found: Found, foreseen: Foreseen
    ) -> None:
        self.tip = tip_of(found.head)
        self._database = database
        self._session = session
        self._foreseen = foreseen
        self._answers = found.answers
        self._standing = Standing(database, session, self.tip, foreseen, found)
        change = change_of(found.head)
        if change is None and self.tip.revision > 0:
            raise StoreError(f"the head of {self.tip.environment!r} has lost its change")
        self._newest = change
        self.pending = change if change is not None and not self._is_ledgered(change) else None
        """The tip's change, if the ledger has not got it yet."""
        behind = change is not None and not self._is_projected(change)
        self.unprojected = change if behind else self.pending
        """The tip's change, if the ledger or its flags have not got it yet, or have lost it."""

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
        if request == self._foreseen.request:
            documents = self._answers.get(REQUEST, [])
        else:
            asked = request_of(self.tip.environment, request)
            documents = self._database[LEDGER].find(asked, session=self._session).to_list(1)
        if documents:
            return ledgered(documents[0]).tip
        if self.cut is None:
            return None
        # Who prunes the ledger leaves there what became of a request.
        identity = {"environment": self.tip.environment, "request": request}
        recorded = self._database[AUDIT].find_one({"_id": identity}, session=self._session)
        return None if recorded is None else sequenced(recorded)

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
        standing = self._standing.at(wanted)
        gone = {policy for policy in standing if standing[policy]["policy"] is None}
        last = self._last(gone)
        own = self.unprojected.policies if self.unprojected is not None else ()
        last |= {policy.id: policy for policy in own if policy.id in wanted}
        # Of those that were deleted before the ledger was cut, their tombstones tell.
        kept = {policy: last_state(standing[policy]) for policy in gone - last.keys()}
        return {policy: state for policy, state in kept.items() if state is not None} | {
            identity: policy.before
            for identity, policy in last.items()
            if identity in wanted and policy.after is None and policy.before is not None
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
        return None if self.cut is None else self._at_cut(policy)

    def _at_cut(self, policy: PolicyId) -> PolicyState | None:
        """Return what a policy was when the ledger was cut: what its first change after it found.

        If there is none, it is as it stands.
        """
        itself = {"$elemMatch": {"key": policy[1], "region": policy[0]}}
        document = self._database[LEDGER].find_one(
            {"_id.environment": self.tip.environment, "policies": itself},
            sort=[("_id.revision", ASCENDING)],
            session=self._session,
        )
        changes = [] if document is None else [ledgered(document)]
        changes += [self.pending] if self.pending is not None else []
        for item in (item for change in changes for item in change.policies):
            if item.id == policy:
                return item.before
        standing = self._standing.at([policy]).get(policy)
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
        document = next(
            self._database[LEDGER].aggregate(
                changed_last(self.tip.environment, policy, revision), session=self._session
            ),
            None,
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
        by_id = {change.id: change for change in changes}
        own = self.unprojected.policies if self.unprojected is not None else ()
        read_through = {change.id: change for change in own}
        asked = by_id.keys() - read_through.keys()
        last = self._last(asked) | read_through
        later = self._changed_since(asked)
        for identity, change in by_id.items():
            newest = last.get(identity)
            if newest is None and self.cut is not None:
                follows = self._follows_cut(change, self.cut)
            else:
                follows = _follows(newest, change)
            if identity in later or not follows:
                region, key = identity
                raise StoreError(
                    f"{key} ({region}) is not as the ledger has it: it was changed past the"
                    " writer; nothing was written"
                )

    def _follows_cut(self, change: PolicyChange, cut: Cut) -> bool:
        """Tell whether a change goes on from what stands since before the ledger was cut."""
        standing = self._standing.at([change.id]).get(change.id)
        if standing is None:
            return change.before is None
        if standing["revision"] > cut.tip.revision:
            return False
        if standing["policy"] is None:
            after = change.after
            return change.before is None and bool(after and after.version > standing["version"])
        return change.before == policy_state(standing)

    def _last(self, policies: AbstractSet[PolicyId]) -> dict[PolicyId, PolicyChange]:
        """Return the ledger's last changes to policies; or, of many, those that they stand at.

        What came after these is told by `_changed_since`.
        """
        if self._are_foreseen(policies):
            changes = map(ledgered, self._answers.get(ENTRIES, ()))
            items = (item for change in changes for item in change.policies)
            return {item.id: item for item in items if item.id in policies}
        stand = self._standing.revisions(policies)
        pipeline = changes_at(self.tip.environment, stand.values(), {key for _, key in policies})
        found = self._database[LEDGER].aggregate(pipeline, session=self._session) if stand else ()
        return {
            item.id: item
            for change in map(ledgered, found)
            for item in change.policies
            if stand.get(item.id) == change.revision
        }

    def _changed_since(self, policies: AbstractSet[PolicyId]) -> set[PolicyId]:
        """Return the policies that the ledger has changes to after those that they stand at."""
        if self._are_foreseen(policies):
            return set()
        stand = self._standing.revisions(policies)
        ordered = sorted(policies, key=lambda policy: stand.get(policy, 0))
        keys: dict[int, set[str]] = {}
        # Most were imported together. Where they were not, some groups of them are enough, for what
        # is found too early is passed over.
        size = max(len(ordered) // _GROUPS_MAX, 1)
        for first in range(0, len(ordered), size):
            some = ordered[first : first + size]
            keys.setdefault(stand.get(some[0], 0), set()).update(key for _, key in some)
        if not keys:
            return set()
        found = self._database[LEDGER].aggregate(
            changes_beyond(self.tip.environment, keys), session=self._session, hint=POLICY_HISTORY
        )
        return _named_beyond(found, stand) & policies

    def _are_foreseen(self, policies: AbstractSet[PolicyId]) -> bool:
        return self._foreseen.is_read and policies <= self._foreseen.policies

    def _is_projected(self, change: Change) -> bool:
        """Tell whether the flags stand where the tip's change, which is in the ledger, led them.

        Only a failover can have taken them back, and only where a majority was not waited for.
        """
        if self.pending is not None or not projects_lightly(change):
            return True
        policies = {policy.id for policy in change.policies}
        stand = self._standing.revisions(policies)
        return all(stand.get(policy, 0) >= self.tip.revision for policy in policies)

    def _is_ledgered(self, change: Change) -> bool:
        """Tell whether the ledger has the tip's change. It must have no other, and no later one."""
        found = self._answers.get(NEWEST, ())
        newest = {document["_id"]["revision"]: document.get("hash") for document in found}
        hashes = {revision: newest[revision] for revision in newest if revision >= change.revision}
        if not change.is_sealed or hashes not in ({}, {self.tip.revision: self.tip.hash}):
            beyond = [str(revision) for revision in hashes if revision != self.tip.revision]
            also = f" (the ledger has revision {beyond[0]} too)" if beyond else ""
            raise StoreError(
                f"head and ledger of {self.tip.environment!r} are of different histories at"
                f" revision {self.tip.revision}{also}: one was restored or edited; nothing was"
                " written"
            )
        return bool(hashes)


@judged
def _named_beyond(documents: Iterable[Document], stand: Mapping[PolicyId, int]) -> set[PolicyId]:
    """Return the policies in what `changes_beyond` found that was later than they stand."""
    named = (
        ((policy["region"], policy["key"]), document["_id"]["revision"])
        for document in documents
        for policy in document["policies"]
    )
    return {policy for policy, revision in named if revision > stand.get(policy, 0)}


def _follows(newest: PolicyChange | None, change: PolicyChange) -> bool:
    """Tell whether a change goes on from where a policy's newest one left it."""
    if newest is None or newest.after is not None:
        return change.before == (None if newest is None else newest.after)
    # Where a tombstone was removed, versions would begin anew.
    last, after = newest.before, change.after
    return change.before is None and bool(last and after and after.version > last.version)
