"""Paging: changes read whole in a client's loop, with the pages of those that are on some."""

from collections.abc import Mapping, Sequence
from typing import Any

from pymongo import ASCENDING
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.database import AsyncDatabase

from flagkit.changes import Change
from flagkit.errors import HistoryLostError
from flagkit.storage.driver import OPERATION_MILLISECONDS_MAX
from flagkit.storage.forms import change_of, ledgered, tip_of
from flagkit.storage.layout import LEDGER, PAGES, Document, ledger_id, pages_named
from flagkit.storage.pages import names_in, pages_in


class Paging:
    """Reads the pages of an environment's changes from one database.

    Everything raises HistoryLostError where a page is missing, or was altered past the writer.
    """

    def __init__(self, database: AsyncDatabase[Document], environment: str) -> None:
        self._database = database
        self._environment = environment

    async def newest(self, head: Document, session: AsyncClientSession) -> Change:
        """Return the change that led to a head past revision 0."""
        change = change_of(head, await self._pages(names_in(head["change"]), session))
        assert change is not None, "a head past revision 0 has its change"
        return change

    async def ledgered(self, document: Mapping[str, Any], session: AsyncClientSession) -> Change:
        """Return the change that a document of the ledger holds."""
        return ledgered(document, await self._pages(names_in(document), session))

    async def unprojected(self, head: Document, session: AsyncClientSession) -> Sequence[Change]:
        """Return the changes that flags may lack at a head, in order."""
        first, last = head.get("unprojected"), tip_of(head).revision
        if first is not None and await self._is_projected(head, first, session):
            first = None
        changes: list[Change] = []
        if first is not None and first < last:
            between = {
                "$gte": ledger_id(self._environment, first),
                "$lt": ledger_id(self._environment, last),
            }
            found = self._database[LEDGER].find(
                {"_id": between}, sort=[("_id", ASCENDING)], session=session
            )
            changes = [await self.ledgered(document, session) async for document in found]
            if len(changes) != last - first:
                raise HistoryLostError(f"the ledger does not reach back to revision {first}")
        # Of a change on pages it is known whether it is projected; of others nobody asks.
        if last > 0 and (first is not None or not names_in(head["change"])):
            changes.append(await self.newest(head, session))
        return changes

    async def _is_projected(self, head: Document, first: int, session: AsyncClientSession) -> bool:
        names = names_in(head["change"])
        if first != tip_of(head).revision:
            identity = ledger_id(self._environment, first)
            names = names_in(
                await self._database[LEDGER].find_one(
                    {"_id": identity}, {"pages": True}, session=session
                )
            )
        projected = await self._database[PAGES].count_documents(
            pages_named(self._environment, names) | {"projected": first}, session=session
        )
        return bool(names) and projected == len(names)

    async def _pages(self, names: Sequence[str], session: AsyncClientSession) -> dict[str, bytes]:
        if not names:
            return {}
        found = self._database[PAGES].find(
            pages_named(self._environment, names),
            session=session,
            max_time_ms=OPERATION_MILLISECONDS_MAX,
        )
        return pages_in(await found.to_list())
