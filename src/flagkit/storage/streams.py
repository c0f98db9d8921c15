"""Streams: what the change stream on heads is asked for, and what its batches hold."""

from typing import Any, Final

import bson
from bson.timestamp import Timestamp

from flagkit.changes import Change
from flagkit.collector import collector_paused
from flagkit.errors import StoreUnavailableError
from flagkit.storage.forms import CODEC, change_of
from flagkit.storage.layout import Document
from flagkit.storage.pages import names_in

_ENDINGS: Final = ("drop", "rename", "dropDatabase", "invalidate")


def pipeline_of(environment: str, after: Timestamp | None) -> list[Document]:
    """Return the pipeline of a stream of an environment's changes after a time.

    What tells no time is no replica set, and refuses the stream.
    """
    since = {"startAtOperationTime": Timestamp(after.time, after.inc + 1)} if after else {}
    mine = {"documentKey._id": environment}
    # What ends the collection must get through: a stream without it would be silent for ever.
    endings = {"operationType": {"$in": [*_ENDINGS]}}
    return [{"$changeStream": since}, {"$match": {"$or": [mine, endings]}}]


def arrived(batch: bytes) -> tuple[list[Change | Document], Timestamp | None]:
    """Return the changes of a raw batch, and the time of the last.

    Of a change that is on pages its head is returned.

    Raises:
        StoreUnavailableError: it has what is no revision: the collection was dropped, say.
    """
    # What is decoded is gone at the end of this. Met in between, it would count as what stays.
    with collector_paused():
        events: list[Document] = bson.decode_all(batch, CODEC)  # pyright: ignore[reportUnknownMemberType] - its mmap has no parameter
        changes = list(map(_change, events))
        time = events[-1].get("clusterTime") if events else None
        del events
    return changes, time


def _change(event: Document) -> Change | Document:
    head: dict[str, Any] | None = event.get("fullDocument")
    if head and names_in(head.get("change")):
        return head
    change = change_of(head) if head else None
    if change is None:
        raise StoreUnavailableError(
            f"the change stream brought a {event['operationType']}, which is no revision"
        )
    return change
