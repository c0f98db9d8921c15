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

from flagkit._core.cooperative import split_batches
from flagkit._core.model import EVERYWHERE
from flagkit._core.model.changes import ACCESS as ACCESS_REGION
from flagkit._core.model.changes import SEGMENTS as SEGMENTS_REGION
from flagkit._core.model.changes import Change, PolicyId, PolicyState, Tip
from flagkit._core.storage import layout
from flagkit._core.storage.documents import read_policy_id, read_revision
from flagkit._core.storage.validation import validates_form

POLICIES_MAX: Final = 8
"""A change of more policies reads them in batches after the head."""

NEWEST, REQUEST, ENTRIES, PAGED = "newest", "request", "entries", "paged"


class Prefetch(Struct, frozen=True):
    """The reads that a change will need: its request, if it may be committed, and policies."""

    request: str | None = None
    policies: frozenset[PolicyId] = frozenset()

    @property
    def is_small(self) -> bool:
        """True if the policies are few enough to be read with the head."""
        return 0 < len(self.policies) <= POLICIES_MAX


@dataclass
class PrefetchMemo:
    """The results that one read leaves to the next, which checks that they still hold.

    `access` are states of grants and limits: a digest is of all of them. `newest` are the flags of
    the newest change: whether they are projected is asked of each tip, as a rule of this one.
    """

    access: Mapping[PolicyId, PolicyState] = field(default_factory=dict[PolicyId, PolicyState])
    newest: frozenset[PolicyId] = frozenset()

    def remember(self, change: Change) -> None:
        """Remember the newest change."""
        lightly = can_skip_majority(change)
        self.newest = frozenset(policy.id for policy in change.policies if lightly)

    def select_policies(self, prefetch: Prefetch) -> AbstractSet[PolicyId]:
        """Return the policies to be read with the head."""
        return prefetch.policies | self.newest if prefetch.is_small else self.newest


NOTHING: Final = Prefetch()


class PrefetchResult(Struct, frozen=True):
    """The results of the read of the head: the policies that it asked for, and the answers."""

    head: layout.Document
    policies: AbstractSet[PolicyId]
    answers: Mapping[str, list[layout.Document]]


def can_skip_majority(change: Change) -> bool:
    """Tell whether who commits a change need not wait until a majority has its flags and ledger.

    They are few enough for the next reading to look whether they are still there.
    """
    regions = {policy.id[0] for policy in change.policies}
    return len(change.policies) <= POLICIES_MAX and {*map(layout.get_collection_name, regions)} <= {
        layout.FLAGS
    }


def select_keys(collection: str, policies: Iterable[PolicyId]) -> list[str]:
    """Return the keys of those of some policies that stand in a collection."""
    return sorted(
        {key for region, key in policies if layout.get_collection_name(region) == collection}
    )


def build_prefetch_pipeline(
    environment: str, prefetch: Prefetch, policies: AbstractSet[PolicyId]
) -> list[layout.Document]:
    """Return the aggregation on heads that reads the head, what is foreseen, and some policies."""
    answers = [_build_lookup_stage(NEWEST, layout.LEDGER, _build_newest_stages(environment))]
    if prefetch.request is not None:
        asked = layout.filter_ledger_request(environment, prefetch.request)
        answers.append(_build_lookup_stage(REQUEST, layout.LEDGER, [{"$match": asked}]))
    answers += [
        _build_lookup_stage(
            collection, collection, [{"$match": layout.filter_policies_by_key(environment, keys)}]
        )
        for collection in (layout.FLAGS, layout.SEGMENTS)
        if (keys := select_keys(collection, policies))
    ]
    if prefetch.is_small:
        any_of = {"$in": sorted({key for _, key in prefetch.policies})}
        named: layout.Document = {"_id.environment": environment, "keys": any_of}
        once: list[layout.Document] = [
            {"$match": named},
            {"$limit": 1},
            {"$project": {"_id": True}},
        ]
        answers.append(_build_lookup_stage(PAGED, layout.PAGES, once))
        answers += [
            _build_lookup_stage(
                ENTRIES, layout.LEDGER, layout.build_last_change_pipeline(environment, policy)
            )
            for policy in sorted(prefetch.policies)
        ]
    return [{"$match": {"_id": environment}}, {"$set": {"now": "$$NOW"}}, *answers]


@validates_form
def decode_prefetch(
    documents: Iterable[layout.Document], policies: AbstractSet[PolicyId] = frozenset()
) -> PrefetchResult | None:
    """Return what the aggregation gave on some policies; None if there is no head.

    Raises:
        StoreError: a document has not the form that it should have.
    """
    head: layout.Document | None = None
    answers: dict[str, list[layout.Document]] = {}
    for document in documents:
        if "answers" in document:
            answers.setdefault(document["answers"], []).append(document["document"])
        else:
            head = document
    if head is None:
        return None
    return PrefetchResult(head, policies, answers)


def _build_newest_stages(environment: str) -> list[layout.Document]:
    return [
        {"$match": layout.filter_ledger_after(environment, 0)},
        {"$sort": {"_id": -1}},
        {"$limit": 1},
        {"$project": {"hash": True}},
    ]


def _build_lookup_stage(
    name: str, collection: str, stages: list[layout.Document]
) -> layout.Document:
    named = {"$project": {"_id": False, "answers": name, "document": "$$ROOT"}}
    return {"$unionWith": {"coll": collection, "pipeline": [*stages, named]}}


_ASKED_AT_ONCE: Final = 10_000
"""A query has its size, too."""
_REGION_OF = {layout.SEGMENTS: SEGMENTS_REGION, layout.ACCESS: ACCESS_REGION}


class DocumentCache:
    """The projected documents of an environment at one time, with tombstones."""

    def __init__(
        self,
        database: Any,
        session: ClientSession,
        tip: Tip,
        prefetch: Prefetch,
        prefetched: PrefetchResult,
    ) -> None:
        self._database = database
        self._session = session
        self._environment = tip.environment
        # All that have a flag: by whole `_id`s a thousand are found in an eighth of the time that
        # ranges take.
        touched = {region for region, _ in prefetch.policies | prefetched.policies}
        self._regions = sorted({EVERYWHERE, *tip.digests, *touched} - {*_REGION_OF.values()})
        self._documents: dict[PolicyId, layout.Document] = {}
        self._queried: dict[str, set[str]] = {collection: set() for collection in layout.PROJECTED}
        for collection in (layout.FLAGS, layout.SEGMENTS):
            self._add(prefetched.answers.get(collection, ()))
            self._queried[collection].update(select_keys(collection, prefetched.policies))

    def iter_documents(self, collection: str, keys: set[str]) -> Iterator[layout.Document]:
        """Yield the documents of some keys, in all regions."""
        self._query(collection, keys)
        for region in self._list_regions(collection):
            for key in sorted(keys):
                document = self._documents.get((region, key))
                if document is not None:
                    yield document

    def find_documents(self, policies: Iterable[PolicyId]) -> dict[PolicyId, layout.Document]:
        """Return the documents of some policies, as far as there are any."""
        wanted = set(policies)
        by_collection: dict[str, list[PolicyId]] = {}
        for policy in wanted:
            by_collection.setdefault(layout.get_collection_name(policy[0]), []).append(policy)
        for collection, mine in by_collection.items():
            self._query(collection, {key for _, key in mine})
            # In regions whose last flag was deleted.
            regions = {*self._list_regions(collection)}
            others = [policy for policy in mine if policy[0] not in regions]
            if others:
                self._read(collection, others)
        return {policy: self._documents[policy] for policy in wanted & self._documents.keys()}

    def find_revisions(self, policies: Iterable[PolicyId]) -> dict[PolicyId, int]:
        """Return at which revisions some policies stand, as far as there are any."""
        return {
            policy: read_revision(found) for policy, found in self.find_documents(policies).items()
        }

    def _query(self, collection: str, keys: set[str]) -> None:
        unknown = keys - self._queried[collection]
        if not unknown:
            return
        regions = self._list_regions(collection)
        self._read(collection, [(region, key) for key in sorted(unknown) for region in regions])
        self._queried[collection] |= unknown

    def _read(self, collection: str, policies: Iterable[PolicyId]) -> None:
        identities = (
            layout.build_policy_id(self._environment, key, region) for region, key in policies
        )
        for batch in split_batches(identities, _ASKED_AT_ONCE):
            wanted = {"_id": {"$in": batch}}
            self._add(self._database[collection].find(wanted, session=self._session))

    def _list_regions(self, collection: str) -> list[str]:
        return self._regions if collection == layout.FLAGS else [_REGION_OF[collection]]

    def _add(self, documents: Iterable[layout.Document]) -> None:
        for document in documents:
            self._documents[read_policy_id(document)] = document
