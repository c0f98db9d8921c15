"""Foreseen: what a change will surely ask for, read together with the head, in one round trip.

Each answer is a document of its own, so that no limit on one document is met. What cannot be
foreseen (prerequisites, who rests on a flag that goes, members, the history of many flags) is asked
for when it is needed, of the same snapshot.
"""

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Final

from msgspec import Struct

from flagkit.changes import Change, PolicyId, PolicyState
from flagkit.storage.layout import (
    FLAGS,
    LEDGER,
    PAGES,
    SEGMENTS,
    Document,
    changed_last,
    collection_of,
    ledger_after,
    policies_named,
    request_of,
)
from flagkit.storage.malformed import judged

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
