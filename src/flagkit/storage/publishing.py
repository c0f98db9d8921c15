"""Publishing: bases as checkpoints in the database, for clients to start from.

Slices first, the manifest last, and then what is not needed any more is removed, manifests first: a
client never finds a manifest whose slices are not there yet. Whoever dies on the way leaves slices
without a manifest, which a later one removes.
"""

import os
from collections.abc import Generator, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from pymongo import ASCENDING
from pymongo.client_session import ClientSession
from pymongo.database import Database

from flagkit.changes import SEGMENTS as SEGMENTS_REGION
from flagkit.errors import StoreError
from flagkit.snapshot import Arena
from flagkit.snapshot.frame import PREFIX_BYTES, checksum_of, prefix_of, written_prefix
from flagkit.storage.checkpoints import (
    SLICE_BYTES,
    Checkpoint,
    base_in,
    checkpoint_of,
    manifest,
)
from flagkit.storage.layout import (
    CHECKPOINTS,
    SLICES,
    Document,
    checkpoint_id,
    checkpoints_of,
    slice_id,
    slices_of,
)
from flagkit.storage.malformed import judged

CHECKPOINTS_KEPT: Final = 2
"""So that a client that has just found the older one can still read it."""
LEFT_OVER_AFTER: Final = timedelta(hours=1)
"""Slices without a manifest for so long have lost their writer."""


def published(
    database: Database[Document], base: Arena, read_at: datetime
) -> Generator[str, None, Checkpoint]:
    """Write a base of all regions, and remove what it replaces; yields how far it is.

    Args:
        database: To be written with majority.
        base: With all members.
        read_at: When it was read, by the server's clock.
    """
    environment, content = base.tip.environment, base.content
    _, length, header_length = prefix_of(content)
    checksum = checksum_of(content)
    identity = f"{_moment(read_at)}-{os.urandom(8).hex()}"
    starts = range(0, length, SLICE_BYTES)
    for number, start in enumerate(starts):
        part = content[start : start + SLICE_BYTES].tobytes()
        if start == 0:
            # In memory it has no checksum.
            part = written_prefix(checksum, length, header_length) + part[PREFIX_BYTES:]
        document = {"_id": slice_id(environment, identity, number), "content": part}
        database[SLICES].insert_one(document)
        yield f"{(start + len(part)) / 1e6:,.1f} of {length / 1e6:,.1f} MB are written"
    checkpoint = Checkpoint(
        id=identity,
        tip=base.tip,
        flags=flags_in(base),
        slices=len(starts),
        bytes=length,
        checksum=checksum,
    )
    database[CHECKPOINTS].insert_one(manifest(checkpoint))
    _remove_old(database, checkpoint, read_at)
    return checkpoint


def flags_in(base: Arena) -> int:
    """Return how many flags a base has, in all regions."""
    counts = base.header.counts.items()
    return sum(count for region, count in counts if region != SEGMENTS_REGION)


def newest_first(documents: Iterable[Mapping[str, Any]]) -> list[Checkpoint]:
    """Return the checkpoints of manifests, without those that make no sense."""
    found: list[Checkpoint] = []
    for document in documents:
        try:
            found.append(checkpoint_of(document))
        except StoreError:
            continue
    return sorted(found, key=lambda checkpoint: (checkpoint.tip.revision, checkpoint.id))[::-1]


def read_back(
    database: Database[Document], checkpoint: Checkpoint, session: ClientSession
) -> Arena:
    """Return the base of a checkpoint, for auditors: clients have `Checkpoints`.

    Raises:
        SnapshotFormatError: it is damaged, foreign, or of another format.
        StoreError: slices are missing, or are those of another.
    """
    mine = slices_of(checkpoint.tip.environment, checkpoint.id)
    found = database[SLICES].find(mine, sort=[("_id", ASCENDING)], session=session).to_list()
    if [document["_id"].get("slice") for document in found] != [*range(checkpoint.slices)]:
        raise StoreError("its slices are not those that its manifest counts")
    content = _joined(found)
    base = base_in(checkpoint, content)
    if (len(content), flags_in(base)) != (checkpoint.bytes, checkpoint.flags):
        raise StoreError("its manifest counts other bytes or flags than it has")
    return base


@judged
def _joined(slices: Iterable[Mapping[str, Any]]) -> memoryview:
    return memoryview(b"".join(document["content"] for document in slices))


def _remove_old(database: Database[Document], newest: Checkpoint, now: datetime) -> None:
    environment = newest.tip.environment
    for rest in left_over(database, environment, newest.tip.epoch, now):
        remove_left_over(database, environment, rest)


def left_over(
    database: Database[Document], environment: str, epoch: str, now: datetime
) -> list[str]:
    """Return the ids of checkpoints that are not kept, and of what killed writers left of some.

    Kept are the newest of this history.
    """
    there = list(database[CHECKPOINTS].find(checkpoints_of(environment)))
    mine = [found for found in newest_first(there) if found.tip.epoch == epoch]
    kept = {found.id for found in mine[:CHECKPOINTS_KEPT]}
    old = {document["_id"]["checkpoint"] for document in there} - kept
    # From the index alone: the slices themselves are not read.
    with_slices = {
        document["_id"]["checkpoint"]
        for document in database[SLICES].find(slices_of(environment), {"_id": True})
    }
    left_over_before = _moment(now - LEFT_OVER_AFTER)
    return sorted(
        old | {identity for identity in with_slices - kept if identity < left_over_before}
    )


def remove_left_over(database: Database[Document], environment: str, checkpoint: str) -> None:
    """Remove a checkpoint, or what there is of it: its manifest first."""
    database[CHECKPOINTS].delete_one({"_id": checkpoint_id(environment, checkpoint)})
    database[SLICES].delete_many(slices_of(environment, checkpoint))


def _moment(at: datetime) -> str:
    return f"{at:%Y%m%dT%H%M%SZ}"
