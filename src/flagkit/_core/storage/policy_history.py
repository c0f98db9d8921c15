"""The history of policies in the ledger and its pages, up to the revision that is read."""

import functools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime, timedelta
from typing import Any, Final

from pymongo import ASCENDING, DESCENDING
from pymongo.client_session import ClientSession

from flagkit._core.model.changes import Change, Cut, PolicyChange, PolicyId, PolicyState, Tip
from flagkit._core.storage.documents import (
    audited,
    change_of,
    checked_head,
    is_tombstone,
    last_state,
    ledgered,
    part_of_change,
    policy_state,
    revision_in,
    sequenced,
    tip_in,
    tip_of,
    version_in,
)
from flagkit._core.storage.layout import (
    AUDIT,
    HEADS,
    LEDGER,
    PAGES,
    POLICY_HISTORY,
    Document,
    changed_last,
    changes_at,
    changes_beyond,
    ledger_after,
    ledger_id,
    page_id,
    pages_named,
    request_of,
)
from flagkit._core.storage.pages import keys_of, names_in, pages_in, policies_on
from flagkit._core.storage.prefetch import (
    ENTRIES,
    NEWEST,
    PAGED,
    REQUEST,
    Foreseen,
    Found,
    Standing,
    projects_lightly,
)
from flagkit._core.storage.validation import checked, fault_in, judged, told
from flagkit.errors import (
    HistoryLostError,
    RevisionNotFoundError,
    StoreError,
    StoreUnavailableError,
)

_GROUPS_MAX: Final = 16
_POLICIES_AT_ONCE: Final = 1_000


def together(stand: Mapping[PolicyId, int]) -> Iterator[dict[PolicyId, int]]:
    """Yield policies and the revisions that they stand at, some at a time, by revisions."""
    ordered = sorted(stand.items(), key=lambda item: (item[1], item[0][1]))
    for first in range(0, len(ordered), _POLICIES_AT_ONCE):
        yield dict(ordered[first : first + _POLICIES_AT_ONCE])


def grouped(stand: Mapping[PolicyId, int]) -> dict[int, set[str]]:
    """Return keys by a revision that none of them stands before.

    Most were imported together. Where they were not, some groups of them are enough, for what is
    found too early is passed over.
    """
    ordered = sorted(stand, key=lambda policy: stand[policy])
    keys: dict[int, set[str]] = {}
    size = max(len(ordered) // _GROUPS_MAX, 1)
    for first in range(0, len(ordered), size):
        some = ordered[first : first + size]
        keys.setdefault(stand[some[0]], set()).update(key for _, key in some)
    return keys


@judged
def named_beyond(documents: Iterable[Document], stand: Mapping[PolicyId, int]) -> set[PolicyId]:
    """Return the policies in what `changes_beyond` found that was later than they stand."""
    named = (
        ((policy["region"], policy["key"]), document["_id"]["revision"])
        for document in documents
        for policy in document["policies"]
    )
    return {policy for policy, revision in named if revision > stand.get(policy, 0)}


def follows(newest: PolicyChange | None, change: PolicyChange) -> bool:
    """Tell whether a change goes on from where a policy's newest one left it."""
    if newest is None or newest.after is not None:
        return change.before == (None if newest is None else newest.after)
    # Where a tombstone was removed, versions would begin anew.
    last, after = newest.before, change.after
    return change.before is None and bool(last and after and after.version > last.version)


_KEYS_AT_ONCE: Final = 10_000


class PagedHistory:
    """The pages of an environment, in a session of one snapshot; each is read once."""

    def __init__(self, database: Any, session: ClientSession, environment: str) -> None:
        self._database = database
        self._session = session
        self._environment = environment
        self._read: dict[str, Mapping[PolicyId, PolicyChange]] = {}

    def contents(self, names: Sequence[str]) -> dict[str, bytes]:
        """Return what is on some pages, by their names, as far as they are there."""
        if not names:
            return {}
        found = self._database[PAGES].find(
            pages_named(self._environment, names), session=self._session
        )
        return pages_in(found)

    def names(self) -> set[str]:
        """Return the names of all pages that changes of the ledger are on."""
        found = self._database[LEDGER].find(
            {"_id.environment": self._environment, "pages": {"$exists": True}},
            {"pages": True},
            session=self._session,
        )
        return {name for document in found for name in names_in(document)}

    def faults(self, newest: Mapping[int, Sequence[str]], lagging: int | None) -> Iterator[str]:
        """Yield what is wrong with the pages of the ledger.

        Args:
            newest: The pages of the tip's change, by its revision.
            lagging: The revision from which on pages need not be projected yet; None if all are.
        """
        documents = self._database[LEDGER].find(
            {"_id.environment": self._environment, "pages": {"$exists": True}},
            {"pages": True},
            session=self._session,
        )
        revisions: dict[str, set[object]] = {}
        for revision, names in (
            *((document["_id"].get("revision"), names_in(document)) for document in documents),
            *newest.items(),
        ):
            for name in names:
                revisions.setdefault(name, set()).add(revision)
        for name in sorted(revisions):
            page = self._database[PAGES].find_one(
                {"_id": page_id(self._environment, name)}, session=self._session
            )
            fault = None if page is None else fault_in(PAGES, page)
            if page is not None and fault is not None:
                yield told(PAGES, page, fault)
                continue
            try:
                policies = policies_on(name, pages_in([] if page is None else [page]).get(name))
            except HistoryLostError as error:
                yield str(error)
                continue
            if page is None or page["keys"] != keys_of(policies):
                yield f"the page {name} of a change has other keys than what is on it"
            elif not _is_projected(page.get("projected"), revisions[name], lagging):
                yield f"the page {name} of a change is not marked with a revision that it is of"

    def projected_count(self, revision: int, names: Sequence[str]) -> int:
        """Return how many of a revision's pages are projected."""
        count: int = self._database[PAGES].count_documents(
            pages_named(self._environment, names) | {"projected": revision}, session=self._session
        )
        return count

    def last(self, policy: PolicyId, until: int) -> Change | None:
        """Return the last large change to a policy up to a revision, of which it keeps that part.

        Raises:
            HistoryLostError: a page is missing, or was changed past the writer.
        """
        return self._next(policy, {"$lte": until}, DESCENDING)

    def first(self, policy: PolicyId, after: int) -> Change | None:
        """Return the first large change to a policy after a revision, of which it keeps that part.

        Raises:
            HistoryLostError: a page is missing, or was changed past the writer.
        """
        return self._next(policy, {"$gt": after}, ASCENDING)

    def _next(self, policy: PolicyId, revisions: Document, direction: int) -> Change | None:
        named = self._naming([policy[1]])
        if not named:
            return None
        documents = self._database[LEDGER].find(
            {**self._with_pages(named), "_id.revision": revisions},
            sort=[("_id.revision", direction)],
            session=self._session,
        )
        for document in documents:
            names = [name for name in names_in(document) if name in named]
            item = self._on(names).get(policy)
            if item is not None:
                return part_of_change(document, (item,))
        return None

    def at(self, stand: Mapping[PolicyId, int]) -> dict[PolicyId, PolicyChange]:
        """Return what large changes did to policies, each at a revision."""
        identities = [ledger_id(self._environment, revision) for revision in {*stand.values()}]
        documents = self._database[LEDGER].find(
            {"_id": {"$in": identities}, "pages": {"$exists": True}},
            {"pages": True},
            session=self._session,
        )
        found: dict[PolicyId, PolicyChange] = {}
        for document in documents:
            revision, names = document["_id"]["revision"], {*names_in(document)}
            mine = {policy for policy, at in stand.items() if at == revision}
            on = self._on(
                [name for name in self._naming({key for _, key in mine}) if name in names]
            )
            found |= {policy: on[policy] for policy in mine & on.keys()}
        return found

    def beyond(self, stand: Mapping[PolicyId, int]) -> set[PolicyId]:
        """Return the policies that large changes touched after the revision that each is at."""
        named = self._naming({key for _, key in stand})
        if not named:
            return set()
        policies: dict[str, set[PolicyId]] = {}
        for policy in stand:
            policies.setdefault(policy[1], set()).add(policy)
        documents = self._database[LEDGER].find(
            self._with_pages(named), {"pages": True}, session=self._session
        )
        later: set[PolicyId] = set()
        for document in documents:
            revision = document["_id"]["revision"]
            for name in named.keys() & {*names_in(document)}:
                doubtful = {
                    policy
                    for key in named[name]
                    for policy in policies.get(key, ())
                    if revision > stand[policy]
                }
                # It may be another region's.
                later |= doubtful & self._on([name]).keys() if doubtful else set()
        return later

    def _naming(self, keys: Collection[str]) -> dict[str, list[str]]:
        """Return the pages that name some keys, and which of these."""
        named: dict[str, list[str]] = {}
        for some in _some(sorted(keys)):
            found: Iterable[Document] = self._database[PAGES].aggregate(
                [
                    {"$match": {"_id.environment": self._environment, "keys": {"$in": some}}},
                    {"$project": {"keys": {"$setIntersection": ["$keys", {"$literal": some}]}}},
                ],
                session=self._session,
            )
            for document in found:
                named.setdefault(document["_id"]["page"], []).extend(document["keys"])
        return named

    def _with_pages(self, names: Iterable[str]) -> Document:
        return {"_id.environment": self._environment, "pages": {"$in": [*names]}}

    def _on(self, names: Sequence[str]) -> Mapping[PolicyId, PolicyChange]:
        """Return what stands on some pages, by policies."""
        unread = [name for name in names if name not in self._read]
        contents = self.contents(unread)
        for name in unread:
            items = policies_on(name, contents.get(name))
            self._read[name] = {item.id: item for item in items}
        if len(names) == 1:
            return self._read[names[0]]
        return {policy: item for name in names for policy, item in self._read[name].items()}


def _is_projected(projected: object, revisions: Collection[object], lagging: int | None) -> bool:
    """Tell whether a page that some revisions are on is marked as it should be."""
    if projected is None:
        return lagging is not None and any(
            isinstance(revision, int) and revision >= lagging for revision in revisions
        )
    return projected in revisions


def _some(keys: Sequence[str]) -> Iterable[Sequence[str]]:
    for first in range(0, len(keys), _KEYS_AT_ONCE):
        yield keys[first : first + _KEYS_AT_ONCE]


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
        self._paged = PagedHistory(database, session, self.tip.environment)
        self._head = checked_head(found.head)
        self.pages = names_in(found.head["change"])
        """The pages that the tip's change is on, if it is on any."""
        self._newest, ledgered_already = self._read_newest()
        self.unledgered = None if ledgered_already else self._newest
        """The tip's change, if the ledger has not got it yet."""

    @functools.cached_property
    def behind(self) -> Change | None:
        """The tip's change, if the ledger or its flags have not got it yet, or have lost it.

        One that is on pages is only about the ledger: its flags are `lagging`.

        Raises:
            StoreError: the document of such a flag has not the form that it should have.
        """
        change = self._newest
        is_behind = change is not None and not self.pages and not self._is_projected(change)
        return change if is_behind else self.unledgered

    @functools.cached_property
    def lagging(self) -> int | None:
        """The revision of a change on pages that flags may lack in part; None if they lack none."""
        revision = self._head.get("unprojected")
        if revision is None:
            return None
        names = self.pages
        if revision != self.tip.revision:
            identity = ledger_id(self.tip.environment, revision)
            names = names_in(
                self._database[LEDGER].find_one(
                    {"_id": identity}, {"pages": True}, session=self._session
                )
            )
        done = self._paged.projected_count(revision, names)
        return None if names and done == len(names) else int(revision)

    @functools.cached_property
    def unprojected(self) -> Sequence[Change]:
        """The changes that flags may lack, in order; the last is the tip's."""
        behind = [] if self.behind is None else [self.behind]
        if self.lagging is None:
            return behind
        earlier = [*self.changes(self.lagging - 1)]
        return earlier if behind and earlier and earlier[-1] == behind[0] else [*earlier, *behind]

    def head_faults(self) -> Iterator[str]:
        """Yield what is wrong with a head beside its tip, which the chain is held to."""
        head, tip = self._head, self.tip
        fault = fault_in(HEADS, head)
        if fault is not None:
            yield told(HEADS, head, fault)
        document = self._ledger_document(tip.revision)
        body: Mapping[str, Any] = head["change"] or {}
        if document is not None and body != {name: document.get(name) for name in body}:
            yield f"the head has another change than the ledger has as revision {tip.revision}"
        first = head.get("unprojected")
        if isinstance(first, int) and not 0 < first <= tip.revision:
            yield f"the head says that flags lack revision {first}, which there is not"

    def _ledger_document(self, revision: int) -> Mapping[str, Any] | None:
        identity = ledger_id(self.tip.environment, revision)
        found: Mapping[str, Any] | None = self._database[LEDGER].find_one(
            {"_id": identity}, session=self._session
        )
        return found

    def page_names(self) -> set[str]:
        """Return the names of the pages that the ledger's changes, and the tip's, are on."""
        return self._paged.names().union(self.pages)

    def page_faults(self) -> Iterator[str]:
        """Yield what is wrong with the pages that the ledger's changes, and the tip's, are on."""
        return self._paged.faults({self.tip.revision: self.pages}, self._head.get("unprojected"))

    @property
    def lags_by(self) -> timedelta:
        """How much older than the tip the oldest of the changes is that flags may lack."""
        return self.tip.time - self.unprojected[0].tip.time if self.unprojected else timedelta()

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
        body = self._head["change"]
        if body is not None and body["request"] == request:
            return self.tip
        if request == self._foreseen.request:
            documents = self._answers.get(REQUEST, [])
        else:
            asked = request_of(self.tip.environment, request)
            documents = self._database[LEDGER].find(asked, session=self._session).to_list(1)
        if documents:
            return tip_in(documents[0])
        if self.cut is None:
            return None
        # Who prunes the ledger leaves there what became of a request.
        identity = {"environment": self.tip.environment, "request": request}
        recorded = self._database[AUDIT].find_one({"_id": identity}, session=self._session)
        return None if recorded is None else sequenced(recorded)

    def changes(self, after: int = 0, faults: list[str] | None = None) -> Iterator[Change]:
        """Yield the ledger's changes after a revision, in order; without the unledgered one.

        What is wrong with a document is put in `faults`, if that is given, and the next one comes.

        Raises:
            StoreError: a document was altered, or has not the form that it should have.
        """
        found = self._database[LEDGER].find(
            ledger_after(self.tip.environment, after),
            sort=[("_id", ASCENDING)],
            session=self._session,
        )
        for document in found:
            try:
                change = audited(document, self._paged.contents(names_in(document)))
            except StoreUnavailableError:
                raise
            except StoreError as error:
                if faults is None:
                    raise
                faults.append(str(error))
            else:
                yield change

    def revision_at(self, moment: datetime) -> int:
        """Return the last revision that is not later than a moment; 0 if none is."""
        if self.unledgered is not None and self.tip.time <= moment:
            return self.tip.revision
        found = self._database[LEDGER].find_one(
            ledger_after(self.tip.environment, 0) | {"time": {"$lte": moment}},
            {"revision": True},
            sort=[("_id", DESCENDING)],
            session=self._session,
        )
        return 0 if found is None else revision_in(found)

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
        gone = {policy for policy in standing if is_tombstone(standing[policy])}
        last = self._last(gone)
        last |= {policy.id: policy for policy in self._policies_behind() if policy.id in wanted}
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
        cut = self.cut
        after = 0 if cut is None else cut.tip.revision
        itself = {"$elemMatch": {"key": policy[1], "region": policy[0]}}
        document = self._database[LEDGER].find_one(
            {
                "_id.environment": self.tip.environment,
                "policies": itself,
                "_id.revision": {"$gt": after},
            },
            sort=[("_id.revision", ASCENDING)],
            session=self._session,
        )
        changes = [] if document is None else [ledgered(document)]
        paged = self._paged.first(policy, after)
        if paged is not None:
            changes = sorted((*changes, paged), key=lambda change: change.revision)
        changes += [self.unledgered] if self.unledgered is not None else []
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
        return None if request is None else (checked(AUDIT, request)["actor"], newest[0].tip.time)

    def states_before(self, policy: PolicyId) -> Iterator[PolicyState | None]:
        """Yield the states that a flag or a segment had before its present one, newest first.

        That goes as far back as the ledger reaches. None stands for absence.
        """
        revision = self.tip.revision
        while (newest := self._newest_of(policy, revision)) is not None:
            change, item = newest
            yield item.before
            revision = change.revision - 1

    def changed_at(self, policy: PolicyId) -> int | None:
        """Return the revision that changed a flag or a segment last.

        None if the ledger does not reach back to it.
        """
        newest = self._newest_of(policy, self.tip.revision)
        return None if newest is None else newest[0].revision

    def _newest_of(self, policy: PolicyId, revision: int) -> tuple[Change, PolicyChange] | None:
        """Return the last change to a flag or a segment up to a revision, or that part of it."""
        document = next(
            self._database[LEDGER].aggregate(
                changed_last(self.tip.environment, policy, revision), session=self._session
            ),
            None,
        )
        changes = [] if document is None else [ledgered(document)]
        paged = self._paged.last(policy, revision)
        if paged is not None:
            changes = sorted((*changes, paged), key=lambda change: change.revision)
        if self.unledgered is not None and self.unledgered.revision <= revision:
            changes.append(self.unledgered)
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
        read_through = {change.id: change for change in self._policies_behind()}
        asked = by_id.keys() - read_through.keys()
        last = self._last(asked) | read_through
        later = self._changed_since(asked)
        cut = self.cut
        for identity, change in by_id.items():
            newest = last.get(identity)
            if newest is None and cut is not None:
                goes_on = self._follows_cut(change, cut)
            else:
                goes_on = follows(newest, change)
            if identity in later or not goes_on:
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
        if revision_in(standing) > cut.tip.revision:
            return False
        if is_tombstone(standing):
            after, version = change.after, version_in(standing)
            return change.before is None and bool(after and after.version > version)
        return change.before == policy_state(standing)

    def _last(self, policies: AbstractSet[PolicyId]) -> dict[PolicyId, PolicyChange]:
        """Return the ledger's last changes to policies; or, of many, those that they stand at.

        What came after these is told by `_changed_since`.
        """
        if self._are_foreseen(policies):
            changes = [*map(ledgered, self._answers.get(ENTRIES, ()))]
            if self._answers.get(PAGED):
                found_on_pages = (self._paged.last(each, self.tip.revision) for each in policies)
                changes += (change for change in found_on_pages if change is not None)
                changes.sort(key=lambda change: change.revision)
            items = (item for change in changes for item in change.policies)
            return {item.id: item for item in items if item.id in policies}
        stand = self._standing.revisions(policies)
        last = self._paged.at(stand)
        # Most were changed together, with those at the same revision.
        for some in together(stand):
            keys = {key for _, key in some}
            pipeline = changes_at(self.tip.environment, some.values(), keys)
            for change in map(
                ledgered, self._database[LEDGER].aggregate(pipeline, session=self._session)
            ):
                last |= {
                    item.id: item
                    for item in change.policies
                    if some.get(item.id) == change.revision
                }
        return last

    def _changed_since(self, policies: AbstractSet[PolicyId]) -> set[PolicyId]:
        """Return the policies that the ledger has changes to after those that they stand at."""
        if self._are_foreseen(policies):
            return set()
        stand = dict.fromkeys(policies, 0) | self._standing.revisions(policies)
        later = self._paged.beyond(stand)
        for some in together(stand):
            found = self._database[LEDGER].aggregate(
                changes_beyond(self.tip.environment, grouped(some)),
                session=self._session,
                hint=POLICY_HISTORY,
            )
            later |= named_beyond(found, stand) & policies
        return later

    def _are_foreseen(self, policies: AbstractSet[PolicyId]) -> bool:
        return self._foreseen.is_read and policies <= self._foreseen.policies

    def _policies_behind(self) -> Iterator[PolicyChange]:
        return (policy for change in self.unprojected for policy in change.policies)

    def _is_projected(self, change: Change) -> bool:
        """Tell whether the flags stand where the tip's change, which is in the ledger, led them.

        Only a failover can have taken them back, and only where a majority was not waited for.
        """
        if self.unledgered is not None or not projects_lightly(change):
            return True
        policies = {policy.id for policy in change.policies}
        stand = self._standing.revisions(policies)
        return all(stand.get(policy, 0) >= self.tip.revision for policy in policies)

    def _read_newest(self) -> tuple[Change | None, bool]:
        """Return the tip's change, and whether the ledger has it. It must have no other or later.

        One that is on pages is read where the ledger lacks it.
        """
        found = self._answers.get(NEWEST, ())
        newest = {document["_id"]["revision"]: document.get("hash") for document in found}
        hashes = {
            revision: newest[revision] for revision in newest if revision >= self.tip.revision
        }
        change = None
        if not self.pages or not hashes:
            change = change_of(self._head, self._paged.contents(self.pages))
            if change is None:
                if self.tip.revision > 0:
                    raise StoreError(f"the head of {self.tip.environment!r} has lost its change")
                return None, True
        is_altered = change is not None and not change.is_sealed
        if is_altered or hashes not in ({}, {self.tip.revision: self.tip.hash}):
            beyond = [str(revision) for revision in hashes if revision != self.tip.revision]
            also = f" (the ledger has revision {beyond[0]} too)" if beyond else ""
            raise StoreError(
                f"head and ledger of {self.tip.environment!r} are of different histories at"
                f" revision {self.tip.revision}{also}: one was restored or edited; nothing was"
                " written"
            )
        return change, bool(hashes)
