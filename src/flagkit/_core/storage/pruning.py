"""Finds what can be deleted from the database, and deletes it in small batches.

Callers decide what may be deleted. Every deletion can be interrupted and started again. It needs a
database user who may update and remove; the user of a writer may not.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeAlias, cast

from pymongo import ASCENDING, UpdateOne
from pymongo.database import Database
from pymongo.errors import OperationFailure

from flagkit._core.cooperative import split_batches
from flagkit._core.model.changes import PolicyId, PolicyState
from flagkit._core.storage import layout
from flagkit._core.storage.checkpoints import find_orphans, remove_orphan
from flagkit._core.storage.driver import translate_errors
from flagkit._core.storage.pages import read_page_names
from flagkit._core.storage.validation import translate_form_errors
from flagkit.errors import StoreError

BATCH_DOCUMENTS: Final = 100
"""So many are removed, or updated, at once: between batches writers have their turn."""
_NOT_ALLOWED: Final = 13
_REMOVED_FROM: Final = (
    layout.LEDGER,
    layout.AUDIT,
    layout.DENIALS,
    layout.MEMBERS,
    layout.PAGES,
    layout.CHECKPOINTS,
    layout.SLICES,
)
_UPDATED: Final = (*layout.PROJECTED, layout.AUDIT, layout.MEMBERS, layout.PAGES)
_TIP: Final = ("epoch", "revision", "hash", "time", "digests")

PARTS: Final[Mapping[str, str]] = {layout.MEMBERS: "part", layout.PAGES: "page"}
"""Collections of parts, which others refer to by hash; and what of their `_id`s that is."""
REQUESTS_NAMED: Final[Mapping[str, str]] = {
    layout.LEDGER: "request",
    layout.HEADS: "change.request",
    layout.PENDING: "_id.request",
}
"""The collections that name requests with an outcome. Other requests were abandoned."""


class PrunableDocument(NamedTuple):
    """A document that can go: its `_id`, and how many bytes of BSON it is."""

    id: Any
    bytes: int


Batches: TypeAlias = Iterator[list[PrunableDocument]]


class CarriedState(NamedTuple):
    """A policy whose last change goes with the ledger: what of that must stay with the policy."""

    id: PolicyId
    revision: int
    time: datetime
    last: PolicyState | None
    """The last state of a deleted policy."""


class DocumentPruner:
    """The deletable documents of one environment. The iterators yield after each batch."""

    def __init__(self, database: Database[layout.Document], environment: str) -> None:
        self._database = database
        self._environment = environment

    def check_allowed(self) -> None:
        """Refuse if the database's user may not update and remove what can be pruned.

        Raises:
            StoreError: it may not; nothing was written.
        """
        nothing: layout.Document = {"_id": None}
        with _translate_errors():
            for name in _UPDATED:
                self._database[name].update_many(nothing, {"$set": {"time": None}})
            for name in _REMOVED_FROM:
                self._database[name].delete_many(nothing)

    def carry_states(self, carried: Iterable[CarriedState]) -> Iterator[int]:
        """Leave with policies what only the ledger has of their last changes."""
        for batch in split_batches(carried, BATCH_DOCUMENTS):
            for collection in layout.PROJECTED:
                updates = [
                    UpdateOne(
                        {
                            "_id": layout.build_policy_id(
                                self._environment, item.id[1], item.id[0]
                            ),
                            "revision": item.revision,
                        },
                        {"$set": _encode_carried(item)},
                    )
                    for item in batch
                    if layout.get_collection_name(item.id[0]) == collection
                ]
                with _translate_errors():
                    if updates:
                        self._database[collection].bulk_write(updates, ordered=False)
            yield len(batch)

    def iter_ledger(self, revision: int) -> Batches:
        """Yield the ledger's documents up to a revision, the oldest first."""
        return self._iter_prunable(
            layout.LEDGER, layout.filter_ledger_through(self._environment, revision)
        )

    def remove_ledger(self, documents: Sequence[PrunableDocument]) -> None:
        """Remove some of them, after their audit documents have been told what became of them."""
        chosen = {"_id": {"$in": [found.id for found in documents]}}
        with _translate_errors():
            changes = self._database[layout.LEDGER].find(
                chosen, dict.fromkeys(("request", *_TIP), True)
            )
            self._database[layout.AUDIT].bulk_write(
                [
                    UpdateOne(
                        {"_id": self._build_request_id(change["request"])},
                        {"$set": {"tip": {name: change[name] for name in _TIP}}},
                    )
                    for change in changes
                ],
                ordered=False,
            )
            self._database[layout.LEDGER].delete_many(chosen)

    def iter_pages(self, revision: int) -> Batches:
        """Yield the pages that only changes up to a revision are on, which is in the past.

        They go after the ledger's documents, or else these could not be read any more.
        """
        projected = layout.filter_environment(self._environment) | {"projected": {"$lte": revision}}
        for batch in self._iter_prunable(layout.PAGES, projected):
            referenced = self._find_pages_after(revision, [found.id["page"] for found in batch])
            yield [found for found in batch if found.id["page"] not in referenced]

    def _find_pages_after(self, revision: int, pages: Sequence[str]) -> set[str]:
        """Return the pages, of some and maybe more, that a change after a revision is on."""
        named = {**layout.filter_ledger_after(self._environment, revision), "pages": {"$in": pages}}
        with _translate_errors():
            bodies: list[Any] = self._database[layout.LEDGER].find(named, {"pages": True}).to_list()
            head = self._database[layout.HEADS].find_one(
                self._filter_environment(layout.HEADS), {"change": True}
            )
        bodies += [head["change"]] if head is not None else []
        return {name for body in bodies for name in read_page_names(body)}

    def iter_audit(self, revision: int, before: datetime) -> Batches:
        """Yield audit documents of changes before a moment that a cut at a revision would cut."""
        wanted = layout.filter_ledger_through(self._environment, revision) | {
            "time": {"$lt": before}
        }
        with _translate_errors():
            found = self._database[layout.LEDGER].find(wanted, {"request": True})
            while changes := found.to_list(BATCH_DOCUMENTS):
                identities = [self._build_request_id(change["request"]) for change in changes]
                yield from self._iter_prunable(layout.AUDIT, {"_id": {"$in": identities}})

    def iter_expired_audit(self, before: datetime) -> Batches:
        """Yield audit documents of changes before a moment that the ledger has no more."""
        return self._iter_prunable(
            layout.AUDIT,
            layout.filter_environment(self._environment) | {"tip.time": {"$lt": before}},
        )

    def iter_abandoned_requests(self, before: datetime) -> Batches:
        """Yield requests that were sent before a moment and never became a change."""
        sent = {"sent": {"$lt": before}, "tip": {"$exists": False}}
        for batch in self._iter_prunable(
            layout.AUDIT, layout.filter_environment(self._environment) | sent
        ):
            requests = [found.id["request"] for found in batch]
            named: set[object] = set()
            with _translate_errors():
                for collection, path in REQUESTS_NAMED.items():
                    mine = self._filter_environment(collection) | {path: {"$in": requests}}
                    for document in self._database[collection].find(mine, {path: True}):
                        named |= {*_iter_values(document, path.split("."))}
            yield [found for found in batch if found.id["request"] not in named]

    def iter_denials(self, before: datetime) -> Batches:
        """Yield what was logged of denials before a moment."""
        return self._iter_prunable(
            layout.DENIALS, layout.filter_environment(self._environment) | {"time": {"$lt": before}}
        )

    def remove(self, collection: str, documents: Sequence[PrunableDocument], **guard: Any) -> None:
        """Remove documents, as long as they are still as the guard says."""
        with _translate_errors():
            chosen = {"_id": {"$in": [found.id for found in documents]}}
            self._database[collection].delete_many(chosen | guard)

    def iter_unreferenced(
        self, collection: str, referred: AbstractSet[str], before: datetime
    ) -> Batches:
        """Yield parts that are not referred to, and that were marked so before a moment."""
        marked = layout.filter_environment(self._environment) | {"unreferred": {"$lt": before}}
        for batch in self._iter_prunable(collection, marked):
            yield [found for found in batch if found.id[PARTS[collection]] not in referred]

    def mark_unreferenced(self, collection: str, referred: AbstractSet[str], now: datetime) -> None:
        """Mark the parts that are not referred to, and no others.

        A part may have been written for a change that is not committed yet: so it is not removed
        when it is first met with. A writer that stores it again takes the mark away.
        """
        parts, name = self._database[collection], PARTS[collection]
        with _translate_errors():
            found = parts.find(layout.filter_environment(self._environment), {"unreferred": True})
            while batch := found.to_list(BATCH_DOCUMENTS):
                new, wrong = list[Any](), list[Any]()
                for document in batch:
                    identity, is_marked = document["_id"], "unreferred" in document
                    if is_marked == (identity[name] in referred):
                        (wrong if is_marked else new).append(identity)
                if new:
                    parts.update_many({"_id": {"$in": new}}, {"$set": {"unreferred": now}})
                if wrong:
                    parts.update_many({"_id": {"$in": wrong}}, {"$unset": {"unreferred": True}})

    def iter_checkpoint_orphans(self, epoch: str, now: datetime) -> Batches:
        """Yield what is left of checkpoints that are not kept, each by itself."""
        with _translate_errors():
            orphans = find_orphans(self._database, self._environment, epoch, now)
        for rest in orphans:
            itself = {"_id": layout.build_checkpoint_id(self._environment, rest)}
            slices = self._iter_prunable(
                layout.SLICES, layout.filter_slices(self._environment, rest)
            )
            batches = [*self._iter_prunable(layout.CHECKPOINTS, itself), *slices]
            yield [found for batch in batches for found in batch]

    def remove_checkpoints(self, documents: Sequence[PrunableDocument]) -> None:
        """Remove all that is left of the checkpoints that some documents are of."""
        with _translate_errors():
            for rest in {found.id["checkpoint"] for found in documents}:
                remove_orphan(self._database, self._environment, rest)

    def _iter_prunable(self, collection: str, query: layout.Document) -> Batches:
        with _translate_errors():
            found = self._database[collection].aggregate(
                [
                    {"$match": query},
                    {"$sort": {"_id": ASCENDING}},
                    {"$project": {"bytes": {"$bsonSize": "$$ROOT"}}},
                ],
                batchSize=BATCH_DOCUMENTS,
            )
            while batch := found.to_list(BATCH_DOCUMENTS):
                yield [PrunableDocument(document["_id"], document["bytes"]) for document in batch]

    def _filter_environment(self, collection: str) -> layout.Document:
        return (
            {"_id": self._environment}
            if collection == layout.HEADS
            else layout.filter_environment(self._environment)
        )

    def _build_request_id(self, request: str) -> layout.Document:
        return {"environment": self._environment, "request": request}


@contextmanager
def _translate_errors() -> Generator[None]:
    with translate_errors("pruning"), translate_form_errors():
        try:
            yield
        except OperationFailure as error:
            if error.code != _NOT_ALLOWED:
                raise
            raise StoreError(
                "this user of the database may not prune: that takes one who may update and remove"
                f" in {', '.join(sorted({*_REMOVED_FROM, *_UPDATED}))}, which a writer may not"
            ) from error


def _encode_carried(carried: CarriedState) -> layout.Document:
    if carried.last is None:
        return {"time": carried.time}
    last = {"policy": carried.last.policy, "hash": f"{carried.last.hash:016x}"}
    return {"time": carried.time, "last": last}


def _iter_values(part: object, path: Sequence[str]) -> Iterator[object]:
    """Yield what stands at a path of a document, in all items of lists on the way."""
    if isinstance(part, list):
        for item in cast("list[object]", part):
            yield from _iter_values(item, path)
    elif not path:
        yield part
    elif isinstance(part, Mapping):
        yield from _iter_values(cast("Mapping[str, object]", part).get(path[0]), path[1:])
