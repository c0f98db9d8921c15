"""Projecting: a committed change brought to where it is read. By anyone, again, in any order.

A change that is on pages is in the ledger first and projected page by page: whoever comes meanwhile
reads through it, and need not wait. A page that is projected says so, by the revision.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, TypeAlias

from pymongo import InsertOne, ReplaceOne
from pymongo.database import Database
from pymongo.errors import BulkWriteError

from flagkit.changes import PolicyChange, PolicyId
from flagkit.errors import StoreError, StoreUnavailableError
from flagkit.storage.forms import policy_document
from flagkit.storage.layout import (
    LEDGER,
    PAGES,
    PROJECTED,
    Document,
    collection_of,
    ledger_id,
    page_id,
    pages_named,
)
from flagkit.storage.pages import Page, names_in, page_document, pages_in, policies_on
from flagkit.storage.preparing import Prepared

_Write: TypeAlias = ReplaceOne[Document] | InsertOne[Document]
_DUPLICATE_KEY: Final = 11000
PAGES_AT_ONCE: Final = 8
"""So many pages are stored in one call: a megabyte each."""


def project_policies(
    database: Database[Document],
    environment: str,
    revision: int,
    policies: Sequence[PolicyChange],
    ready: Mapping[PolicyId, Prepared] | None = None,
) -> None:
    """Bring what a revision did to policies to where they are read.

    `ready` is what was prepared of them, as far as it was.
    """
    known = ready or {}
    writes: dict[str, list[_Write]] = {collection: [] for collection in PROJECTED}
    for policy in policies:
        identity = policy.id
        made = known.get(identity)
        fields = None if made is None else made.fields
        document = policy_document(environment, revision, policy, fields)
        writes[collection_of(identity[0])].append(_write(document))
    for collection, some in writes.items():
        with duplicates_passed():
            if some:
                database[collection].bulk_write(some, ordered=False)


def _write(document: Document) -> _Write:
    # A newer state stays: the guard finds nothing to replace, and what is inserted meets its `_id`.
    if document["version"] == 1 and document["hash"] is not None:
        # There never was another, so there is nothing to look for.
        return InsertOne(document)
    older = {"_id": document["_id"], "revision": {"$lt": document["revision"]}}
    return ReplaceOne(older, document, upsert=True)


def add_pages(database: Database[Document], environment: str, pages: Mapping[str, Page]) -> None:
    """Store the pages of a change that is to be committed."""
    names = [*pages]
    for first in range(0, len(names), PAGES_AT_ONCE):
        some = names[first : first + PAGES_AT_ONCE]
        replacements = [
            ReplaceOne(
                {
                    "_id": page_id(environment, name),
                    # What nothing referred to is marked to be pruned: it is not any more.
                    "$or": [
                        {"content": {"$ne": pages[name].content}},
                        {"unreferred": {"$exists": True}},
                    ],
                },
                page_document(environment, name, pages[name]),
                upsert=True,
            )
            for name in some
        ]
        with duplicates_passed():
            database[PAGES].bulk_write(replacements, ordered=False)


def project_own_pages(
    database: Database[Document],
    environment: str,
    revision: int,
    pages: Mapping[str, Page],
    ready: Mapping[PolicyId, Prepared],
) -> None:
    """Project the pages of a revision that were just written."""
    for name, page in pages.items():
        project_policies(database, environment, revision, page.policies, ready)
        _mark(database, environment, revision, name)


def project_pages(
    database: Database[Document], environment: str, revision: int, limit: int | None = None
) -> int:
    """Project the pages of a revision of the ledger that are not yet, `limit` at most.

    Returns how many are left.

    Raises:
        StoreError: one is missing, or was changed past the writer.
    """
    names = _unprojected(database, environment, revision)
    for name in names[:limit]:
        found = database[PAGES].find_one({"_id": page_id(environment, name)})
        content = pages_in([] if found is None else [found]).get(name)
        project_policies(database, environment, revision, policies_on(name, content))
        _mark(database, environment, revision, name)
    return len(names[limit:]) if limit is not None else 0


def _mark(database: Database[Document], environment: str, revision: int, name: str) -> None:
    database[PAGES].update_one(
        {"_id": page_id(environment, name)}, {"$set": {"projected": revision}}
    )


def _unprojected(database: Database[Document], environment: str, revision: int) -> list[str]:
    document = database[LEDGER].find_one({"_id": ledger_id(environment, revision)}, {"pages": True})
    if document is None:
        raise StoreError(f"the ledger of {environment!r} has lost revision {revision}")
    names = names_in(document)
    projected = database[PAGES].find(
        pages_named(environment, names) | {"projected": revision}, {"_id": True}
    )
    done = {found["_id"]["page"] for found in projected}
    return [name for name in names if name not in done]


@contextmanager
def duplicates_passed() -> Generator[None]:
    """Pass over documents that are there already, in a bulk of unordered writes."""
    try:
        yield
    except BulkWriteError as error:
        if error.details["writeConcernErrors"]:
            raise StoreUnavailableError("the majority has not got it yet") from error
        if any(fault["code"] != _DUPLICATE_KEY for fault in error.details["writeErrors"]):
            raise
