"""Change streams of the heads, and changes read in the event loop of a client with their pages."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import bson
from bson.timestamp import Timestamp
from pymongo import ASCENDING
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.database import AsyncDatabase

from flagkit._core.cooperative import pause_gc
from flagkit._core.model.changes import Change
from flagkit._core.storage.documents import (
    CODEC,
    decode_head_change,
    decode_head_tip,
    decode_ledger,
)
from flagkit._core.storage.driver import OPERATION_MILLISECONDS_MAX
from flagkit._core.storage.layout import LEDGER, PAGES, Document, build_ledger_id, filter_pages
from flagkit._core.storage.pages import read_page_contents, read_page_names
from flagkit.errors import HistoryLostError, StoreUnavailableError


class ChangeReader:
    """Reads the pages of an environment's changes from one database.

    Everything raises HistoryLostError where a page is missing, or was altered past the writer.
    """

    def __init__(self, database: AsyncDatabase[Document], environment: str) -> None:
        self._database = database
        self._environment = environment

    async def read_newest(self, head: Document, session: AsyncClientSession) -> Change:
        """Return the change that led to a head past revision 0."""
        change = decode_head_change(
            head, await self._read_pages(read_page_names(head["change"]), session)
        )
        assert change is not None, "a head past revision 0 has its change"
        return change

    async def decode_ledger_change(
        self, document: Mapping[str, Any], session: AsyncClientSession
    ) -> Change:
        """Return the change that a document of the ledger holds."""
        return decode_ledger(document, await self._read_pages(read_page_names(document), session))

    async def read_unprojected(
        self, head: Document, session: AsyncClientSession
    ) -> Sequence[Change]:
        """Return the changes that flags may lack at a head, in order."""
        first, last = head.get("unprojected"), decode_head_tip(head).revision
        if first is not None and await self._is_projected(head, first, session):
            first = None
        changes: list[Change] = []
        if first is not None and first < last:
            between = {
                "$gte": build_ledger_id(self._environment, first),
                "$lt": build_ledger_id(self._environment, last),
            }
            found = self._database[LEDGER].find(
                {"_id": between}, sort=[("_id", ASCENDING)], session=session
            )
            changes = [
                await self.decode_ledger_change(document, session) async for document in found
            ]
            if len(changes) != last - first:
                raise HistoryLostError(f"the ledger does not reach back to revision {first}")
        # Of a change on pages it is known whether it is projected; of others nobody asks.
        if last > 0 and (first is not None or not read_page_names(head["change"])):
            changes.append(await self.read_newest(head, session))
        return changes

    async def _is_projected(self, head: Document, first: int, session: AsyncClientSession) -> bool:
        names = read_page_names(head["change"])
        if first != decode_head_tip(head).revision:
            identity = build_ledger_id(self._environment, first)
            names = read_page_names(
                await self._database[LEDGER].find_one(
                    {"_id": identity}, {"pages": True}, session=session
                )
            )
        projected = await self._database[PAGES].count_documents(
            filter_pages(self._environment, names) | {"projected": first}, session=session
        )
        return bool(names) and projected == len(names)

    async def _read_pages(
        self, names: Sequence[str], session: AsyncClientSession
    ) -> dict[str, bytes]:
        if not names:
            return {}
        found = self._database[PAGES].find(
            filter_pages(self._environment, names),
            session=session,
            max_time_ms=OPERATION_MILLISECONDS_MAX,
        )
        return read_page_contents(await found.to_list())


_ENDINGS: Final = ("drop", "rename", "dropDatabase", "invalidate")


def build_stream_pipeline(environment: str, after: Timestamp | None) -> list[Document]:
    """Return the pipeline of a stream of an environment's changes after a time.

    What tells no time is no replica set, and refuses the stream.
    """
    since = {"startAtOperationTime": Timestamp(after.time, after.inc + 1)} if after else {}
    mine = {"documentKey._id": environment}
    # What ends the collection must get through: a stream without it would be silent for ever.
    endings = {"operationType": {"$in": [*_ENDINGS]}}
    return [{"$changeStream": since}, {"$match": {"$or": [mine, endings]}}]


def decode_batch(batch: bytes) -> tuple[list[Change | Document], Timestamp | None]:
    """Return the changes of a raw batch, and the time of the last.

    Of a change that is on pages its head is returned.

    Raises:
        StoreUnavailableError: it has what is no revision: the collection was dropped, say.
    """
    # What is decoded is gone at the end of this. Met in between, it would count as what stays.
    with pause_gc():
        events: list[Document] = bson.decode_all(batch, CODEC)  # pyright: ignore[reportUnknownMemberType] - its mmap has no parameter
        changes = list(map(_decode_event, events))
        time = events[-1].get("clusterTime") if events else None
        del events
    return changes, time


def _decode_event(event: Document) -> Change | Document:
    head: dict[str, Any] | None = event.get("fullDocument")
    if head and read_page_names(head.get("change")):
        return head
    change = decode_head_change(head) if head else None
    if change is None:
        raise StoreUnavailableError(
            f"the change stream brought a {event['operationType']}, which is no revision"
        )
    return change
