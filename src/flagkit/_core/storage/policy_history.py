"""The history of policies in the ledger and its pages, up to the revision that is read."""

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime, timedelta
from typing import Any, Final

from pymongo import ASCENDING, DESCENDING
from pymongo.client_session import ClientSession

from flagkit._core.cooperative import split_batches
from flagkit._core.model.changes import ACCESS as ACCESS_REGION
from flagkit._core.model.changes import (
    CUT,
    GRANTS,
    LIMITS,
    Change,
    Cut,
    PolicyChange,
    PolicyId,
    PolicyState,
    Tip,
    compute_digests,
    decode_cut,
)
from flagkit._core.snapshot import check_digests
from flagkit._core.storage import layout
from flagkit._core.storage.documents import (
    check_access_policy,
    check_head,
    decode_committed_tip,
    decode_head_change,
    decode_head_tip,
    decode_last_state,
    decode_ledger,
    decode_ledger_strict,
    decode_partial_change,
    decode_policy_state,
    decode_tip,
    is_tombstone,
    read_policy_id,
    read_revision,
    read_version,
)
from flagkit._core.storage.pages import (
    decode_page,
    list_page_keys,
    read_page_contents,
    read_page_names,
)
from flagkit._core.storage.prefetch import (
    ENTRIES,
    NEWEST,
    PAGED,
    REQUEST,
    DocumentCache,
    Prefetch,
    PrefetchMemo,
    PrefetchResult,
    can_skip_majority,
)
from flagkit._core.storage.validation import check_form, describe_fault, find_fault, validates_form
from flagkit.errors import (
    HistoryLostError,
    RevisionNotFoundError,
    StoreError,
    StoreUnavailableError,
)

_GROUPS_MAX: Final = 16
_POLICIES_AT_ONCE: Final = 1_000


def iter_batches(known_revisions: Mapping[PolicyId, int]) -> Iterator[dict[PolicyId, int]]:
    """Yield policies and the revisions that they stand at, some at a time, by revisions."""
    ordered = sorted(known_revisions.items(), key=lambda item: (item[1], item[0][1]))
    yield from map(dict, split_batches(ordered, _POLICIES_AT_ONCE))


def group_by_revision(known_revisions: Mapping[PolicyId, int]) -> dict[int, set[str]]:
    """Return keys by a revision that none of them stands before.

    Most were imported together. Where they were not, some groups of them are enough, for what is
    found too early is passed over.
    """
    ordered = sorted(known_revisions, key=lambda policy: known_revisions[policy])
    keys: dict[int, set[str]] = {}
    for some in split_batches(ordered, max(len(ordered) // _GROUPS_MAX, 1)):
        keys.setdefault(known_revisions[some[0]], set()).update(key for _, key in some)
    return keys


@validates_form
def find_changed_after(
    documents: Iterable[layout.Document], known_revisions: Mapping[PolicyId, int]
) -> set[PolicyId]:
    """Return the policies that a pipeline of later changes found to have changed later."""
    named = (
        ((policy["region"], policy["key"]), document["_id"]["revision"])
        for document in documents
        for policy in document["policies"]
    )
    return {policy for policy, revision in named if revision > known_revisions.get(policy, 0)}


def continues(newest: PolicyChange | None, change: PolicyChange) -> bool:
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

    def read_contents(self, names: Sequence[str]) -> dict[str, bytes]:
        """Return what is on some pages, by their names, as far as they are there."""
        if not names:
            return {}
        found = self._database[layout.PAGES].find(
            layout.filter_pages(self._environment, names), session=self._session
        )
        return read_page_contents(found)

    def read_names(self) -> set[str]:
        """Return the names of all pages that changes of the ledger are on."""
        found = self._database[layout.LEDGER].find(
            {"_id.environment": self._environment, "pages": {"$exists": True}},
            {"pages": True},
            session=self._session,
        )
        return {name for document in found for name in read_page_names(document)}

    def iter_faults(
        self, newest: Mapping[int, Sequence[str]], first_unprojected: int | None
    ) -> Iterator[str]:
        """Yield what is wrong with the pages of the ledger.

        Args:
            newest: The pages of the tip's change, by its revision.
            first_unprojected: The revision from which on pages need not be projected yet; None if
                all are.
        """
        documents = self._database[layout.LEDGER].find(
            {"_id.environment": self._environment, "pages": {"$exists": True}},
            {"pages": True},
            session=self._session,
        )
        revisions: dict[str, set[object]] = {}
        for revision, names in (
            *(
                (document["_id"].get("revision"), read_page_names(document))
                for document in documents
            ),
            *newest.items(),
        ):
            for name in names:
                revisions.setdefault(name, set()).add(revision)
        for name in sorted(revisions):
            page = self._database[layout.PAGES].find_one(
                {"_id": layout.build_page_id(self._environment, name)}, session=self._session
            )
            fault = None if page is None else find_fault(layout.PAGES, page)
            if page is not None and fault is not None:
                yield describe_fault(layout.PAGES, page, fault)
                continue
            try:
                policies = decode_page(
                    name, read_page_contents([] if page is None else [page]).get(name)
                )
            except HistoryLostError as error:
                yield str(error)
                continue
            if page is None or page["keys"] != list_page_keys(policies):
                yield f"the page {name} of a change has other keys than what is on it"
            elif not _is_projected(page.get("projected"), revisions[name], first_unprojected):
                yield f"the page {name} of a change is not marked with a revision that it is of"

    def count_projected(self, revision: int, names: Sequence[str]) -> int:
        """Return how many of a revision's pages are projected."""
        count: int = self._database[layout.PAGES].count_documents(
            layout.filter_pages(self._environment, names) | {"projected": revision},
            session=self._session,
        )
        return count

    def find_last(self, policy: PolicyId, until: int) -> Change | None:
        """Return the last large change to a policy up to a revision, of which it keeps that part.

        Raises:
            HistoryLostError: a page is missing, or was changed past the writer.
        """
        return self._find_nearest(policy, {"$lte": until}, DESCENDING)

    def find_first(self, policy: PolicyId, after: int) -> Change | None:
        """Return the first large change to a policy after a revision, of which it keeps that part.

        Raises:
            HistoryLostError: a page is missing, or was changed past the writer.
        """
        return self._find_nearest(policy, {"$gt": after}, ASCENDING)

    def _find_nearest(
        self, policy: PolicyId, revisions: layout.Document, direction: int
    ) -> Change | None:
        named = self._find_pages([policy[1]])
        if not named:
            return None
        documents = self._database[layout.LEDGER].find(
            {**self._filter_by_pages(named), "_id.revision": revisions},
            sort=[("_id.revision", direction)],
            session=self._session,
        )
        for document in documents:
            names = [name for name in read_page_names(document) if name in named]
            item = self._read_policies(names).get(policy)
            if item is not None:
                return decode_partial_change(document, (item,))
        return None

    def read_changes(self, known_revisions: Mapping[PolicyId, int]) -> dict[PolicyId, PolicyChange]:
        """Return what large changes did to policies, each at a revision."""
        identities = [
            layout.build_ledger_id(self._environment, revision)
            for revision in {*known_revisions.values()}
        ]
        documents = self._database[layout.LEDGER].find(
            {"_id": {"$in": identities}, "pages": {"$exists": True}},
            {"pages": True},
            session=self._session,
        )
        found: dict[PolicyId, PolicyChange] = {}
        for document in documents:
            revision, names = document["_id"]["revision"], {*read_page_names(document)}
            mine = {policy for policy, at in known_revisions.items() if at == revision}
            on = self._read_policies(
                [name for name in self._find_pages({key for _, key in mine}) if name in names]
            )
            found |= {policy: on[policy] for policy in mine & on.keys()}
        return found

    def find_changed(self, known_revisions: Mapping[PolicyId, int]) -> set[PolicyId]:
        """Return the policies that large changes touched after the revision that each is at."""
        named = self._find_pages({key for _, key in known_revisions})
        if not named:
            return set()
        policies: dict[str, set[PolicyId]] = {}
        for policy in known_revisions:
            policies.setdefault(policy[1], set()).add(policy)
        documents = self._database[layout.LEDGER].find(
            self._filter_by_pages(named), {"pages": True}, session=self._session
        )
        later: set[PolicyId] = set()
        for document in documents:
            revision = document["_id"]["revision"]
            for name in named.keys() & {*read_page_names(document)}:
                doubtful = {
                    policy
                    for key in named[name]
                    for policy in policies.get(key, ())
                    if revision > known_revisions[policy]
                }
                # It may be another region's.
                later |= doubtful & self._read_policies([name]).keys() if doubtful else set()
        return later

    def _find_pages(self, keys: Collection[str]) -> dict[str, list[str]]:
        """Return the pages that name some keys, and which of these."""
        named: dict[str, list[str]] = {}
        for some in split_batches(sorted(keys), _KEYS_AT_ONCE):
            found: Iterable[layout.Document] = self._database[layout.PAGES].aggregate(
                [
                    {"$match": {"_id.environment": self._environment, "keys": {"$in": some}}},
                    {"$project": {"keys": {"$setIntersection": ["$keys", {"$literal": some}]}}},
                ],
                session=self._session,
            )
            for document in found:
                named.setdefault(document["_id"]["page"], []).extend(document["keys"])
        return named

    def _filter_by_pages(self, names: Iterable[str]) -> layout.Document:
        return {"_id.environment": self._environment, "pages": {"$in": [*names]}}

    def _read_policies(self, names: Sequence[str]) -> Mapping[PolicyId, PolicyChange]:
        """Return what stands on some pages, by policies."""
        unread = [name for name in names if name not in self._read]
        contents = self.read_contents(unread)
        for name in unread:
            items = decode_page(name, contents.get(name))
            self._read[name] = {item.id: item for item in items}
        if len(names) == 1:
            return self._read[names[0]]
        return {policy: item for name in names for policy, item in self._read[name].items()}


def _is_projected(
    projected: object, revisions: Collection[object], first_unprojected: int | None
) -> bool:
    """Tell whether a page that some revisions are on is marked as it should be."""
    if projected is None:
        return first_unprojected is not None and any(
            isinstance(revision, int) and revision >= first_unprojected for revision in revisions
        )
    return projected in revisions


class PolicyHistory:
    """The changes that led to a revision.

    The change of the revision itself may not be projected yet, so it is read from the head. The
    history begins at the cut, which is one of the states of `access`.
    """

    def __init__(
        self,
        database: Any,
        session: ClientSession,
        prefetched: PrefetchResult,
        prefetch: Prefetch,
        memo: PrefetchMemo,
    ) -> None:
        self.tip = decode_head_tip(prefetched.head)
        self._database = database
        self._session = session
        self._prefetch = prefetch
        self._answers = prefetched.answers
        self._documents = DocumentCache(database, session, self.tip, prefetch, prefetched)
        self._paged = PagedHistory(database, session, self.tip.environment)
        self._head = check_head(prefetched.head)
        self.pages = read_page_names(prefetched.head["change"])
        """The pages that the tip's change is on, if it is on any."""
        self._newest, ledgered_already = self._read_newest()
        self.tip_not_in_ledger = None if ledgered_already else self._newest
        """The tip's change, if the ledger has not got it yet."""
        self._memo = memo
        if self._newest is not None:
            memo.remember(self._newest)

    @functools.cached_property
    def unprojected_tip(self) -> Change | None:
        """The tip's change, if the ledger or its flags have not got it yet, or have lost it.

        One that is on pages is only about the ledger: `unprojected_changes` has its flags.

        Raises:
            StoreError: the document of such a flag has not the form that it should have.
        """
        change = self._newest
        is_unprojected = change is not None and not self.pages and not self._is_projected(change)
        return change if is_unprojected else self.tip_not_in_ledger

    @functools.cached_property
    def first_unprojected(self) -> int | None:
        """The revision of a change on pages that flags may lack in part; None if they lack none."""
        revision = self._head.get("unprojected")
        if revision is None:
            return None
        names = self.pages
        if revision != self.tip.revision:
            identity = layout.build_ledger_id(self.tip.environment, revision)
            names = read_page_names(
                self._database[layout.LEDGER].find_one(
                    {"_id": identity}, {"pages": True}, session=self._session
                )
            )
        done = self._paged.count_projected(revision, names)
        return None if names and done == len(names) else int(revision)

    @functools.cached_property
    def unprojected_changes(self) -> Sequence[Change]:
        """The changes that flags may lack, in order; the last is the tip's."""
        unprojected = [] if self.unprojected_tip is None else [self.unprojected_tip]
        if self.first_unprojected is None:
            return unprojected
        earlier = [*self.iter_changes(self.first_unprojected - 1)]
        return (
            earlier
            if unprojected and earlier and earlier[-1] == unprojected[0]
            else [*earlier, *unprojected]
        )

    def iter_head_faults(self) -> Iterator[str]:
        """Yield what is wrong with a head beside its tip, which the chain is held to."""
        head, tip = self._head, self.tip
        fault = find_fault(layout.HEADS, head)
        if fault is not None:
            yield describe_fault(layout.HEADS, head, fault)
        document = self._find_ledger_document(tip.revision)
        body: Mapping[str, Any] = head["change"] or {}
        if document is not None and body != {name: document.get(name) for name in body}:
            yield f"the head has another change than the ledger has as revision {tip.revision}"
        first = head.get("unprojected")
        if isinstance(first, int) and not 0 < first <= tip.revision:
            yield f"the head says that flags lack revision {first}, which there is not"

    def _find_ledger_document(self, revision: int) -> Mapping[str, Any] | None:
        identity = layout.build_ledger_id(self.tip.environment, revision)
        found: Mapping[str, Any] | None = self._database[layout.LEDGER].find_one(
            {"_id": identity}, session=self._session
        )
        return found

    def read_page_names(self) -> set[str]:
        """Return the names of the pages that the ledger's changes, and the tip's, are on."""
        return self._paged.read_names().union(self.pages)

    def iter_page_faults(self) -> Iterator[str]:
        """Yield what is wrong with the pages that the ledger's changes, and the tip's, are on."""
        return self._paged.iter_faults(
            {self.tip.revision: self.pages}, self._head.get("unprojected")
        )

    @property
    def projection_lag(self) -> timedelta:
        """How much older than the tip the oldest of the changes is that flags may lack."""
        return (
            self.tip.time - self.unprojected_changes[0].tip.time
            if self.unprojected_changes
            else timedelta()
        )

    @property
    def access(self) -> Mapping[PolicyId, PolicyState]:
        """The states of the grants, the limits and the cut, as far as there are any.

        Raises:
            HistoryLostError: they are not those of this revision: something changed them past the
                writer.
        """
        # What was read before is no other where the digest is the same, for it is of all of it. An
        # environment that has none pays no query.
        wanted = self.tip.digests.get(ACCESS_REGION)
        held = self._memo.access
        if compute_digests(held.values()).get(ACCESS_REGION) != wanted:
            held = self.find_states(
                layout.ACCESS, {GRANTS[1], LIMITS[1], CUT[1]} if wanted is not None else set()
            )
            check_digests(compute_digests(held.values()), self.tip, (ACCESS_REGION,))
            for state in held.values():
                check_access_policy(self.tip.environment, state)
            self._memo.access = held
        return held

    @property
    def cut(self) -> Cut | None:
        """Up to where the ledger was cut, None if it reaches back to revision 1."""
        state = self.access.get(CUT)
        return None if state is None else decode_cut(self.tip.environment, state.policy)

    def find_states(self, collection: str, wanted: set[str]) -> dict[PolicyId, PolicyState]:
        """Return the states of the policies of a collection that have one of some keys."""
        return self.decode_states(
            self._documents.iter_documents(collection, wanted),
            lambda state: (
                state.key in wanted and layout.get_collection_name(state.region) == collection
            ),
        )

    def decode_states(
        self, documents: Iterable[layout.Document], wanted: Callable[[PolicyState], bool]
    ) -> dict[PolicyId, PolicyState]:
        """Return the states in documents and unprojected changes that a predicate wants."""
        states: dict[PolicyId, PolicyState | None] = {
            read_policy_id(document): decode_policy_state(document) for document in documents
        }
        for change in self.unprojected_changes:
            states |= {policy.id: policy.after for policy in change.policies}
        return {
            identity: state
            for identity, state in states.items()
            if state is not None and wanted(state)
        }

    def check_within_retention(self, revision: int) -> None:
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

    def find_commit(self, request: str) -> Tip | None:
        """Return the tip that a request led to, None if it has not been committed."""
        body = self._head["change"]
        if body is not None and body["request"] == request:
            return self.tip
        if request == self._prefetch.request:
            documents = self._answers.get(REQUEST, [])
        else:
            asked = layout.filter_ledger_request(self.tip.environment, request)
            documents = self._database[layout.LEDGER].find(asked, session=self._session).to_list(1)
        if documents:
            return decode_tip(documents[0])
        if self.cut is None:
            return None
        # Who prunes the ledger leaves there what became of a request.
        identity = {"environment": self.tip.environment, "request": request}
        recorded = self._database[layout.AUDIT].find_one({"_id": identity}, session=self._session)
        return None if recorded is None else decode_committed_tip(recorded)

    def iter_changes(self, after: int = 0, faults: list[str] | None = None) -> Iterator[Change]:
        """Yield the ledger's changes after a revision, in order; without the unledgered one.

        What is wrong with a document is put in `faults`, if that is given, and the next one comes.

        Raises:
            StoreError: a document was altered, or has not the form that it should have.
        """
        found = self._database[layout.LEDGER].find(
            layout.filter_ledger_after(self.tip.environment, after),
            sort=[("_id", ASCENDING)],
            session=self._session,
        )
        for document in found:
            try:
                change = decode_ledger_strict(
                    document, self._paged.read_contents(read_page_names(document))
                )
            except StoreUnavailableError:
                raise
            except StoreError as error:
                if faults is None:
                    raise
                faults.append(str(error))
            else:
                yield change

    def find_revision(self, moment: datetime) -> int:
        """Return the last revision that is not later than a moment; 0 if none is."""
        if self.tip_not_in_ledger is not None and self.tip.time <= moment:
            return self.tip.revision
        found = self._database[layout.LEDGER].find_one(
            layout.filter_ledger_after(self.tip.environment, 0) | {"time": {"$lte": moment}},
            {"revision": True},
            sort=[("_id", DESCENDING)],
            session=self._session,
        )
        return 0 if found is None else read_revision(found)

    def find_unexpected_ledger_documents(self) -> list[Any]:
        """Return what stands in the ledger in the place of a revision and is no revision."""
        found = self._database[layout.LEDGER].find(
            {
                "_id.environment": self.tip.environment,
                "$nor": [layout.filter_ledger_after(self.tip.environment, 0)],
            },
            {"_id": True},
            session=self._session,
        )
        return [document["_id"].get("revision") for document in found]

    def find_deleted(self, policies: Iterable[PolicyId]) -> dict[PolicyId, PolicyState]:
        """Return the last states of those of some flags and segments that were deleted."""
        wanted = set(policies)
        documents = self._documents.find_documents(wanted)
        gone = {policy for policy in documents if is_tombstone(documents[policy])}
        last = self._find_last_changes(gone)
        last |= {
            policy.id: policy for policy in self._iter_unprojected_policies() if policy.id in wanted
        }
        # Of those that were deleted before the ledger was cut, their tombstones tell.
        last_states = {
            policy: decode_last_state(documents[policy]) for policy in gone - last.keys()
        }
        return {policy: state for policy, state in last_states.items() if state is not None} | {
            identity: policy.before
            for identity, policy in last.items()
            if identity in wanted and policy.after is None and policy.before is not None
        }

    def find_state(self, policy: PolicyId, revision: int) -> PolicyState | None:
        """Return the state that a flag or a segment had at a revision, None if there was none.

        Raises:
            RevisionNotFoundError: the ledger does not reach back to it.
        """
        self.check_within_retention(revision)
        newest = self._find_newest(policy, revision)
        if newest is not None:
            return newest[1].after
        return None if self.cut is None else self._find_state_before_cut(policy)

    def _find_state_before_cut(self, policy: PolicyId) -> PolicyState | None:
        """Return what a policy was when the ledger was cut: what its first change after it found.

        If there is none, it is as it stands.
        """
        cut = self.cut
        after = 0 if cut is None else cut.tip.revision
        itself = {"$elemMatch": {"key": policy[1], "region": policy[0]}}
        document = self._database[layout.LEDGER].find_one(
            {
                "_id.environment": self.tip.environment,
                "policies": itself,
                "_id.revision": {"$gt": after},
            },
            sort=[("_id.revision", ASCENDING)],
            session=self._session,
        )
        changes = [] if document is None else [decode_ledger(document)]
        paged = self._paged.find_first(policy, after)
        if paged is not None:
            changes = sorted((*changes, paged), key=lambda change: change.revision)
        changes += [self.tip_not_in_ledger] if self.tip_not_in_ledger is not None else []
        for item in (item for change in changes for item in change.policies):
            if item.id == policy:
                return item.before
        documents = self._documents.find_documents([policy]).get(policy)
        return None if documents is None else decode_policy_state(documents)

    def find_author(self, policy: PolicyId) -> tuple[str, datetime] | None:
        """Return who changed a flag or a segment last, and when; None if it is not known."""
        newest = self._find_newest(policy, self.tip.revision)
        if newest is None:
            return None
        identity = {"environment": self.tip.environment, "request": newest[0].request}
        request = self._database[layout.AUDIT].find_one({"_id": identity}, session=self._session)
        return (
            None
            if request is None
            else (check_form(layout.AUDIT, request)["actor"], newest[0].tip.time)
        )

    def iter_previous_states(self, policy: PolicyId) -> Iterator[PolicyState | None]:
        """Yield the states that a flag or a segment had before its present one, newest first.

        That goes as far back as the ledger reaches. None stands for absence.
        """
        revision = self.tip.revision
        while (newest := self._find_newest(policy, revision)) is not None:
            change, item = newest
            yield item.before
            revision = change.revision - 1

    def find_last_revision(self, policy: PolicyId) -> int | None:
        """Return the revision that changed a flag or a segment last.

        None if the ledger does not reach back to it.
        """
        newest = self._find_newest(policy, self.tip.revision)
        return None if newest is None else newest[0].revision

    def _find_newest(self, policy: PolicyId, revision: int) -> tuple[Change, PolicyChange] | None:
        """Return the last change to a flag or a segment up to a revision, or that part of it."""
        document = next(
            self._database[layout.LEDGER].aggregate(
                layout.build_last_change_pipeline(self.tip.environment, policy, revision),
                session=self._session,
            ),
            None,
        )
        changes = [] if document is None else [decode_ledger(document)]
        paged = self._paged.find_last(policy, revision)
        if paged is not None:
            changes = sorted((*changes, paged), key=lambda change: change.revision)
        if self.tip_not_in_ledger is not None and self.tip_not_in_ledger.revision <= revision:
            changes.append(self.tip_not_in_ledger)
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
        read_through = {change.id: change for change in self._iter_unprojected_policies()}
        asked = by_id.keys() - read_through.keys()
        last = self._find_last_changes(asked) | read_through
        later = self._find_changed(asked)
        cut = self.cut
        for identity, change in by_id.items():
            newest = last.get(identity)
            if newest is None and cut is not None:
                goes_on = self._continues_cut(change, cut)
            else:
                goes_on = continues(newest, change)
            if identity in later or not goes_on:
                region, key = identity
                raise StoreError(
                    f"{key} ({region}) is not as the ledger has it: it was changed past the"
                    " writer; nothing was written"
                )

    def _continues_cut(self, change: PolicyChange, cut: Cut) -> bool:
        """Tell whether a change goes on from what stands since before the ledger was cut."""
        documents = self._documents.find_documents([change.id]).get(change.id)
        if documents is None:
            return change.before is None
        if read_revision(documents) > cut.tip.revision:
            return False
        if is_tombstone(documents):
            after, version = change.after, read_version(documents)
            return change.before is None and bool(after and after.version > version)
        return change.before == decode_policy_state(documents)

    def _find_last_changes(self, policies: AbstractSet[PolicyId]) -> dict[PolicyId, PolicyChange]:
        """Return the ledger's last changes to policies; or, of many, those that they stand at.

        What came after these is told by `_find_changed`.
        """
        if self._is_prefetched(policies):
            changes = [*map(decode_ledger, self._answers.get(ENTRIES, ()))]
            if self._answers.get(PAGED):
                found_on_pages = (
                    self._paged.find_last(each, self.tip.revision) for each in policies
                )
                changes += (change for change in found_on_pages if change is not None)
                changes.sort(key=lambda change: change.revision)
            items = (item for change in changes for item in change.policies)
            return {item.id: item for item in items if item.id in policies}
        stand = self._documents.find_revisions(policies)
        last = self._paged.read_changes(stand)
        # Most were changed together, with those at the same revision.
        for some in iter_batches(stand):
            keys = {key for _, key in some}
            pipeline = layout.build_changes_pipeline(self.tip.environment, some.values(), keys)
            for change in map(
                decode_ledger,
                self._database[layout.LEDGER].aggregate(pipeline, session=self._session),
            ):
                last |= {
                    item.id: item
                    for item in change.policies
                    if some.get(item.id) == change.revision
                }
        return last

    def _find_changed(self, policies: AbstractSet[PolicyId]) -> set[PolicyId]:
        """Return the policies that the ledger has changes to after those that they stand at."""
        if self._is_prefetched(policies):
            return set()
        stand = dict.fromkeys(policies, 0) | self._documents.find_revisions(policies)
        later = self._paged.find_changed(stand)
        for some in iter_batches(stand):
            found = self._database[layout.LEDGER].aggregate(
                layout.build_later_changes_pipeline(self.tip.environment, group_by_revision(some)),
                session=self._session,
                hint=layout.POLICY_HISTORY,
            )
            later |= find_changed_after(found, stand) & policies
        return later

    def _is_prefetched(self, policies: AbstractSet[PolicyId]) -> bool:
        return self._prefetch.is_small and policies <= self._prefetch.policies

    def _iter_unprojected_policies(self) -> Iterator[PolicyChange]:
        return (policy for change in self.unprojected_changes for policy in change.policies)

    def _is_projected(self, change: Change) -> bool:
        """Tell whether the flags stand where the tip's change, which is in the ledger, led them.

        Only a failover can have taken them back, and only where a majority was not waited for.
        """
        if self.tip_not_in_ledger is not None or not can_skip_majority(change):
            return True
        policies = {policy.id for policy in change.policies}
        stand = self._documents.find_revisions(policies)
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
            change = decode_head_change(self._head, self._paged.read_contents(self.pages))
            if change is None:
                if self.tip.revision > 0:
                    raise StoreError(f"the head of {self.tip.environment!r} has lost its change")
                return None, True
        is_altered = change is not None and not change.is_intact
        if is_altered or hashes not in ({}, {self.tip.revision: self.tip.hash}):
            beyond = [str(revision) for revision in hashes if revision != self.tip.revision]
            also = f" (the ledger has revision {beyond[0]} too)" if beyond else ""
            raise StoreError(
                f"head and ledger of {self.tip.environment!r} are of different histories at"
                f" revision {self.tip.revision}{also}: one was restored or edited; nothing was"
                " written"
            )
        return change, bool(hashes)
