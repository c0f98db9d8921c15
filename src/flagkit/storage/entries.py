"""Entries: the changes of an environment as the ledger has them, that of the tip included.

Who commits a small change does not wait until a majority has its ledger document. The head has the
change as well, so nobody who looks right after a commit misses it.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from msgspec import Struct
from pymongo import ASCENDING, DESCENDING
from pymongo.database import Database

from flagkit.changes import Change
from flagkit.storage.forms import change_of, ledgered
from flagkit.storage.layout import (
    HEADS,
    LEDGER,
    PAGES,
    Document,
    ledger_after,
    ledger_of,
    pages_named,
)
from flagkit.storage.pages import names_in, pages_in


class Wanted(Struct, frozen=True):
    """Which changes: after a revision, of a key, from a moment on, before another; in an order."""

    after: int = 0
    key: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    newest_first: bool = False

    def holds(self, change: Change) -> bool:
        """Tell whether a change is wanted."""
        time = change.tip.time
        return (
            change.revision > self.after
            and (self.key is None or any(item.id[1] == self.key for item in change.policies))
            and (self.since is None or time >= self.since)
            and (self.until is None or time < self.until)
        )


def changes_in(database: Database[Document], environment: str, wanted: Wanted) -> Iterator[Change]:
    """Yield the changes that are wanted, in order, up to the head's at least."""
    # Before the ledger, which then has all that the head had but for its own change.
    head = database[HEADS].find_one({"_id": environment})
    body = None if head is None else head.get("change")
    tip = None if head is None else change_of(head, _pages(database, environment, body))
    missing = tip if tip is not None and wanted.holds(tip) else None
    for change in _ledgered(database, environment, wanted):
        if missing is not None and wanted.newest_first and change.revision < missing.revision:
            yield missing
        if missing is not None and (wanted.newest_first or change.revision == missing.revision):
            missing = None
        yield change
    if missing is not None:
        yield missing


def _ledgered(database: Database[Document], environment: str, wanted: Wanted) -> Iterator[Change]:
    key = wanted.key
    named = {} if key is None else {"_id.environment": environment, "keys": key}
    on_pages = database[PAGES].distinct("_id.page", named) if named else ()
    asked = ledger_of(key, wanted.since, wanted.until, on_pages)
    order = [("_id", DESCENDING if wanted.newest_first else ASCENDING)]
    for document in database[LEDGER].find(
        ledger_after(environment, wanted.after) | asked, sort=order
    ):
        yield ledgered(document, _pages(database, environment, document))


def _pages(
    database: Database[Document], environment: str, document: Mapping[str, Any] | None
) -> dict[str, bytes]:
    names = names_in(document)
    return pages_in(database[PAGES].find(pages_named(environment, names))) if names else {}
