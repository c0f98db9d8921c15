"""Foreseen: what a change will surely ask for, read together with the head, in one round trip.

Each answer is a document of its own, so that no limit on one document is met. What cannot be
foreseen (prerequisites, members, the history of many flags) is asked for when it is needed, of the
same snapshot.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from msgspec import Struct

from flagkit.changes import GRANTS, LIMITS, Change, PolicyId, Tip
from flagkit.storage.forms import judged
from flagkit.storage.layout import (
    ACCESS,
    FLAGS,
    LEDGER,
    PAGES,
    SEGMENTS,
    Document,
    changed_last,
    collection_of,
    dependents_of,
    ledger_after,
    policies_named,
    policy_id,
    request_of,
)

POLICIES_MAX: Final = 8
"""Of changes that touch more, policies are not read with the head but in batches after it."""

NEWEST, REQUEST, DEPENDENTS, ENTRIES = "newest", "request", "dependents", "entries"
PAGED = "paged"
_TIP = "tip_flags"


class Foreseen(Struct, frozen=True):
    """What a change will ask for: its request, where it may have been committed, and policies."""

    request: str | None = None
    policies: frozenset[PolicyId] = frozenset()

    @property
    def is_read(self) -> bool:
        """Whether the policies are few enough to be read with the head."""
        return 0 < len(self.policies) <= POLICIES_MAX

    def keys(self, collection: str) -> list[str]:
        """Return the keys of policies that stand in a collection."""
        return sorted({key for region, key in self.policies if collection_of(region) == collection})


NOTHING: Final = Foreseen()


class Found(Struct, frozen=True):
    """What was read with the head, by what it answers. The head has also `now`, and nothing else.

    `tip_revisions` are those of the flags that the tip's change is about, as they are projected.
    """

    head: Document
    tip_revisions: Mapping[PolicyId, int]
    answers: Mapping[str, list[Document]]

    def is_projected(self, tip: Tip, change: Change) -> bool:
        """Tell whether the flags stand where the tip's change, which is in the ledger, led them.

        Only a failover can have taken them back; and only those of `projects_lightly`.
        """
        return not projects_lightly(change) or all(
            self.tip_revisions.get(policy.id, 0) >= tip.revision for policy in change.policies
        )


def projects_lightly(change: Change) -> bool:
    """Tell whether the flags of a change need not reach a majority before its ledger document.

    They are few enough for the next reading to look whether they are still there.
    """
    regions = {policy.id[0] for policy in change.policies}
    return len(change.policies) <= POLICIES_MAX and {*map(collection_of, regions)} <= {FLAGS}


def pipeline(environment: str, foreseen: Foreseen) -> list[Document]:
    """Return the aggregation on heads that reads the head and all that is foreseen."""
    answers = [_answer(NEWEST, LEDGER, _newest(environment))]
    if foreseen.request is not None:
        asked = request_of(environment, foreseen.request)
        answers.append(_answer(REQUEST, LEDGER, [{"$match": asked}]))
    if foreseen.is_read:
        answers += _of_policies(environment, foreseen)
    return [
        {"$match": {"_id": environment}},
        {"$set": {"now": "$$NOW", _TIP: _tip_ids()}},
        {
            "$lookup": {
                "from": FLAGS,
                "localField": _TIP,
                "foreignField": "_id",
                "pipeline": [{"$project": {"revision": True}}],
                "as": _TIP,
            }
        },
        *answers,
    ]


@judged
def found_in(documents: Iterable[Document]) -> Found | None:
    """Return what the aggregation gave; None if there is no head.

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
    revisions: dict[PolicyId, int] = {}
    for flag in head.pop(_TIP):
        identity = flag["_id"]
        revisions[identity["region"], identity["key"]] = int(flag["revision"])
    return Found(head, revisions, answers)


def _tip_ids() -> Document:
    """Return the expression for the ids of what the tip's change is about, none at revision 0."""
    identity = {"environment": "$_id", "key": "$$this.key", "region": "$$this.region"}
    policies = {"$slice": [{"$ifNull": ["$change.policies", []]}, POLICIES_MAX]}
    return {"$map": {"input": policies, "in": identity}}


def _newest(environment: str) -> list[Document]:
    return [
        {"$match": ledger_after(environment, 0)},
        {"$sort": {"_id": -1}},
        {"$limit": 1},
        {"$project": {"hash": True}},
    ]


def _of_policies(environment: str, foreseen: Foreseen) -> list[Document]:
    flags = foreseen.keys(FLAGS)
    answers = [
        _answer(collection, collection, [{"$match": policies_named(environment, keys)}])
        for collection in (FLAGS, SEGMENTS)
        if (keys := foreseen.keys(collection))
    ]
    if flags:
        asked = dependents_of(environment, flags)
        answers.append(_answer(DEPENDENTS, FLAGS, [{"$match": asked}]))
    named = {"_id.environment": environment, "keys": {"$in": [key for _, key in foreseen.policies]}}
    once: list[Document] = [{"$match": named}, {"$limit": 1}, {"$project": {"_id": True}}]
    answers.append(_answer(PAGED, PAGES, once))
    access = [policy_id(environment, key, region) for region, key in (GRANTS, LIMITS)]
    answers.append(_answer(ACCESS, ACCESS, [{"$match": {"_id": {"$in": access}}}]))
    return answers + [
        _answer(ENTRIES, LEDGER, changed_last(environment, policy))
        for policy in sorted(foreseen.policies)
    ]


def _answer(name: str, collection: str, stages: list[Document]) -> Document:
    named = {"$project": {"_id": False, "answers": name, "document": "$$ROOT"}}
    return {"$unionWith": {"coll": collection, "pipeline": [*stages, named]}}
