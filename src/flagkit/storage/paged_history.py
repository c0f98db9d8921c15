"""Paged history: what large changes did to policies, read from as few of their pages as can be."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from pymongo import ASCENDING, DESCENDING
from pymongo.client_session import ClientSession

from flagkit.changes import Change, PolicyChange, PolicyId
from flagkit.errors import HistoryLostError
from flagkit.storage.forms import part_of_change
from flagkit.storage.layout import LEDGER, PAGES, Document, ledger_id, page_id, pages_named
from flagkit.storage.malformed import fault_in, told
from flagkit.storage.pages import keys_of, names_in, pages_in, policies_on

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
