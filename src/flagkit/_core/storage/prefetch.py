"""What a change will certainly need, read together with the head in one round trip.

Each answer is a document of its own, so no size limit of a single document applies. The writer
reads the rest when it is needed, from the same snapshot: prerequisites, dependants of a deleted
flag, members, and the history of many flags.
"""

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Final

from msgspec import Struct
from pymongo.client_session import ClientSession

from flagkit._core.model import EVERYWHERE
from flagkit._core.model.changes import ACCESS as ACCESS_REGION
from flagkit._core.model.changes import SEGMENTS as SEGMENTS_REGION
from flagkit._core.model.changes import Change, PolicyId, PolicyState, Tip
from flagkit._core.storage.documents import id_in, revision_in
from flagkit._core.storage.layout import (
    ACCESS,
    FLAGS,
    LEDGER,
    PAGES,
    PROJECTED,
    SEGMENTS,
    Document,
    changed_last,
    collection_of,
    ledger_after,
    policies_named,
    policy_id,
    request_of,
)
from flagkit._core.storage.validation import judged

POLICIES_MAX: Final = 8
"""Of changes that touch more, policies are not read with the head but in batches after it."""

NEWEST, REQUEST, ENTRIES, PAGED = "newest", "request", "entries", "paged"


class Foreseen(Struct, frozen=True):
    """What a change will ask for: its request, where it may have been committed, and policies."""

    request: str | None = None
    policies: frozenset[PolicyId] = frozenset()

    @property
    def is_read(self) -> bool:
        """Whether the policies are few enough to be read with the head."""
        return 0 < len(self.policies) <= POLICIES_MAX


@dataclass
class Remembered:
    """What one reading leaves to the next, which looks whether it still holds.

    `access` are states of grants and limits: a digest is of all of them. `newest` are the flags of
    the newest change: whether they are projected is asked of each tip, as a rule of this one.
    """

    access: Mapping[PolicyId, PolicyState] = field(default_factory=dict[PolicyId, PolicyState])
    newest: frozenset[PolicyId] = frozenset()

    def take(self, change: Change) -> None:
        """Remember the newest change."""
        lightly = projects_lightly(change)
        self.newest = frozenset(policy.id for policy in change.policies if lightly)

    def policies(self, foreseen: Foreseen) -> AbstractSet[PolicyId]:
        """Return the policies to be read with the head."""
        return foreseen.policies | self.newest if foreseen.is_read else self.newest


NOTHING: Final = Foreseen()


class Found(Struct, frozen=True):
    """What was read with the head, which has also `now`: of which policies, and what it answers."""

    head: Document
    policies: AbstractSet[PolicyId]
    answers: Mapping[str, list[Document]]


def projects_lightly(change: Change) -> bool:
    """Tell whether who commits a change need not wait until a majority has its flags and ledger.

    They are few enough for the next reading to look whether they are still there.
    """
    regions = {policy.id[0] for policy in change.policies}
    return len(change.policies) <= POLICIES_MAX and {*map(collection_of, regions)} <= {FLAGS}


def keys_in(collection: str, policies: Iterable[PolicyId]) -> list[str]:
    """Return the keys of those of some policies that stand in a collection."""
    return sorted({key for region, key in policies if collection_of(region) == collection})


def pipeline(
    environment: str, foreseen: Foreseen, policies: AbstractSet[PolicyId]
) -> list[Document]:
    """Return the aggregation on heads that reads the head, what is foreseen, and some policies."""
    answers = [_answer(NEWEST, LEDGER, _newest(environment))]
    if foreseen.request is not None:
        asked = request_of(environment, foreseen.request)
        answers.append(_answer(REQUEST, LEDGER, [{"$match": asked}]))
    answers += [
        _answer(collection, collection, [{"$match": policies_named(environment, keys)}])
        for collection in (FLAGS, SEGMENTS)
        if (keys := keys_in(collection, policies))
    ]
    if foreseen.is_read:
        any_of = {"$in": sorted({key for _, key in foreseen.policies})}
        named: Document = {"_id.environment": environment, "keys": any_of}
        once: list[Document] = [{"$match": named}, {"$limit": 1}, {"$project": {"_id": True}}]
        answers.append(_answer(PAGED, PAGES, once))
        answers += [
            _answer(ENTRIES, LEDGER, changed_last(environment, policy))
            for policy in sorted(foreseen.policies)
        ]
    return [{"$match": {"_id": environment}}, {"$set": {"now": "$$NOW"}}, *answers]


@judged
def found_in(
    documents: Iterable[Document], policies: AbstractSet[PolicyId] = frozenset()
) -> Found | None:
    """Return what the aggregation gave on some policies; None if there is no head.

    Raises:
        StoreError: a document has not the form that it should have.
    """
    head: Document | None = None
    answers: dict[str, list[Document]] = {}
    for document in documents:
        if "answers" in document:
            answers.setdefault(document["answers"], []).append(document["document"])
        else:
            head = document
    if head is None:
        return None
    return Found(head, policies, answers)


def _newest(environment: str) -> list[Document]:
    return [
        {"$match": ledger_after(environment, 0)},
        {"$sort": {"_id": -1}},
        {"$limit": 1},
        {"$project": {"hash": True}},
    ]


def _answer(name: str, collection: str, stages: list[Document]) -> Document:
    named = {"$project": {"_id": False, "answers": name, "document": "$$ROOT"}}
    return {"$unionWith": {"coll": collection, "pipeline": [*stages, named]}}


_ASKED_AT_ONCE: Final = 10_000
"""A query has its size, too."""
_REGION_OF = {SEGMENTS: SEGMENTS_REGION, ACCESS: ACCESS_REGION}


class Standing:
    """What is projected of an environment, at one time; tombstones, too."""

    def __init__(
        self,
        database: Any,
        session: ClientSession,
        tip: Tip,
        foreseen: Foreseen,
        found: Found,
    ) -> None:
        self._database = database
        self._session = session
        self._environment = tip.environment
        # All that have a flag: by whole `_id`s a thousand are found in an eighth of the time that
        # ranges take.
        touched = {region for region, _ in foreseen.policies | found.policies}
        self._regions = sorted({EVERYWHERE, *tip.digests, *touched} - {*_REGION_OF.values()})
        self._documents: dict[PolicyId, Document] = {}
        self._asked: dict[str, set[str]] = {collection: set() for collection in PROJECTED}
        for collection in (FLAGS, SEGMENTS):
            self._add(found.answers.get(collection, ()))
            self._asked[collection].update(keys_in(collection, found.policies))

    def of(self, collection: str, keys: set[str]) -> Iterator[Document]:
        """Yield the documents of some keys, in all regions."""
        self._ask(collection, keys)
        for region in self._regions_of(collection):
            for key in sorted(keys):
                document = self._documents.get((region, key))
                if document is not None:
                    yield document

    def at(self, policies: Iterable[PolicyId]) -> dict[PolicyId, Document]:
        """Return the documents of some policies, as far as there are any."""
        wanted = set(policies)
        by_collection: dict[str, list[PolicyId]] = {}
        for policy in wanted:
            by_collection.setdefault(collection_of(policy[0]), []).append(policy)
        for collection, mine in by_collection.items():
            self._ask(collection, {key for _, key in mine})
            # In regions whose last flag was deleted.
            regions = {*self._regions_of(collection)}
            others = [policy for policy in mine if policy[0] not in regions]
            if others:
                self._read(collection, others)
        return {policy: self._documents[policy] for policy in wanted & self._documents.keys()}

    def revisions(self, policies: Iterable[PolicyId]) -> dict[PolicyId, int]:
        """Return at which revisions some policies stand, as far as there are any."""
        return {policy: revision_in(found) for policy, found in self.at(policies).items()}

    def _ask(self, collection: str, keys: set[str]) -> None:
        unknown = keys - self._asked[collection]
        if not unknown:
            return
        regions = self._regions_of(collection)
        self._read(collection, [(region, key) for key in sorted(unknown) for region in regions])
        self._asked[collection] |= unknown

    def _read(self, collection: str, policies: Iterable[PolicyId]) -> None:
        identities = [policy_id(self._environment, key, region) for region, key in policies]
        for first in range(0, len(identities), _ASKED_AT_ONCE):
            wanted = {"_id": {"$in": identities[first : first + _ASKED_AT_ONCE]}}
            self._add(self._database[collection].find(wanted, session=self._session))

    def _regions_of(self, collection: str) -> list[str]:
        return self._regions if collection == FLAGS else [_REGION_OF[collection]]

    def _add(self, documents: Iterable[Document]) -> None:
        for document in documents:
            self._documents[id_in(document)] = document
