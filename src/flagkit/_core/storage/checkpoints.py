"""Checkpoints: published bases from which clients start without a scan.

A checkpoint is the arena of all regions of one environment at one revision, in slices under an id
that is never used again. The manifest is written last and never changes, so a checkpoint with a
manifest is complete. Old checkpoints are removed manifest first, so a client never finds a manifest
without its slices. A writer that dies midway leaves slices without a manifest; a later writer
removes them.
"""

import asyncio
import contextlib
import os
import sys
from array import array
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import Struct
from pymongo import ASCENDING, DESCENDING
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.client_session import ClientSession
from pymongo.database import Database

from flagkit._core.aio import in_turns
from flagkit._core.background import Log
from flagkit._core.model import packing
from flagkit._core.model.changes import SEGMENTS as SEGMENTS_REGION
from flagkit._core.model.changes import Change, Tip
from flagkit._core.snapshot import Arena, Snapshot, snapshot_of
from flagkit._core.snapshot.arena import opened
from flagkit._core.snapshot.chunks import blank, copied
from flagkit._core.snapshot.layout import (
    FORMAT,
    PREFIX_BYTES,
    checksum_of,
    prefix_of,
    written_prefix,
)
from flagkit._core.storage.change_stream import Paging
from flagkit._core.storage.documents import tip_fields, tip_in, tip_of
from flagkit._core.storage.driver import translated
from flagkit._core.storage.layout import (
    CHECKPOINTS,
    LEDGER,
    SLICES,
    Document,
    checkpoint_id,
    checkpoints_of,
    ledger_id,
    slice_id,
    slices_of,
)
from flagkit._core.storage.validation import judged
from flagkit.errors import SnapshotFormatError, StoreError, StoreUnavailableError

_log = Log("flagkit.refresh")

SLICE_BYTES: Final = 4 * 1024 * 1024
"""How long a slice is: to decode one holds the interpreter for a millisecond or two."""
SLICE_BYTES_MAX: Final = 16 * 1024 * 1024
"""A document of MongoDB ends here, whoever wrote it."""
SLICES_MAX: Final = 4096
TAIL_MIN, TAIL_MAX, FLAGS_PER_REVISION = 64, 10_000, 8
"""How many revisions a checkpoint may be behind: as many as take no longer than to scan its flags.

To read a revision from the ledger takes some eight times as long as to scan a flag.
"""
TAIL_AT_ONCE: Final = 500
"""So many revisions are read and applied at once: some 30 ms, between which a client can close."""

Complete: TypeAlias = Callable[[list[Change]], "Awaitable[list[Change]]"]
"""Adds the members that come with some changes."""


class Checkpoint(Struct, frozen=True, kw_only=True):
    """What the manifest of a checkpoint says.

    `id` begins with the moment at which it was read, by the server's clock. `flags` is how many
    there are, in all regions. `checksum` is the arena's. The others are the formats of its bytes.
    """

    id: str
    tip: Tip
    flags: int
    slices: int
    bytes: int
    checksum: int
    frame: int = FORMAT
    packing: int = packing.FORMAT
    byte_order: str = sys.byteorder

    @property
    def is_readable(self) -> bool:
        """Whether its bytes are of the formats that are read here."""
        formats = self.frame, self.packing, self.byte_order
        return formats == (FORMAT, packing.FORMAT, sys.byteorder)

    def is_worth_it(self, revision: int) -> bool:
        """Tell whether to go on from it to a revision is quicker than to scan all flags."""
        behind = revision - self.tip.revision
        return behind <= min(TAIL_MAX, max(TAIL_MIN, self.flags // FLAGS_PER_REVISION))


def manifest(checkpoint: Checkpoint) -> Document:
    """Return the manifest of a checkpoint."""
    fields = msgspec.structs.asdict(checkpoint)
    del fields["id"], fields["tip"]
    identity = checkpoint_id(checkpoint.tip.environment, checkpoint.id)
    fields["checksum"] = f"{checkpoint.checksum:016x}"
    return {"_id": identity, **tip_fields(checkpoint.tip), **fields}


@judged
def checkpoint_of(document: Mapping[str, Any]) -> Checkpoint:
    """Return the checkpoint that a manifest is of."""
    numbers = {name: int(document[name]) for name in ("flags", "slices", "bytes")}
    bytes_max = min(numbers["slices"], SLICES_MAX) * SLICE_BYTES_MAX
    if not 0 < numbers["bytes"] <= bytes_max:
        raise StoreError("a manifest has sizes that cannot be")
    return Checkpoint(
        id=document["_id"]["checkpoint"],
        tip=tip_in(document),
        checksum=int(document["checksum"], 16),
        frame=int(document["frame"]),
        packing=int(document["packing"]),
        byte_order=document["byte_order"],
        **numbers,
    )


@judged
def base_in(checkpoint: Checkpoint, content: memoryview) -> Arena:
    """Return the base that a checkpoint's slices, joined, are.

    Raises:
        SnapshotFormatError: they are damaged, or foreign.
        StoreError: they are those of another.
    """
    base = opened(content)
    if base.tip != checkpoint.tip or base.checksum != checkpoint.checksum:
        raise StoreError("its manifest is that of another")
    return base


class Checkpoints:
    """The checkpoints of an environment, as a source starts from them.

    Each is used at most once: who loads again has reason to doubt what was loaded.
    """

    def __init__(
        self, database: AsyncDatabase[Document], environment: str, region: str, complete: Complete
    ) -> None:
        self._database = database
        self._environment = environment
        self._region = region
        self._complete = complete
        self._paging = Paging(database, environment)
        self._passed: set[str] = set()

    async def start(self, session: AsyncClientSession, head: Document) -> Snapshot | None:
        """Return a snapshot from the newest checkpoint that is of use, at the revision of a head.

        None where there is none. What is wrong with one is said once.

        Args:
            session: One of a snapshot of the database.
            head: The head in it.

        Raises:
            StoreUnavailableError: the database cannot be reached, or broke off.
        """
        last = tip_of(head)
        for document in await self._manifests(session, last):
            identity = f"checkpoint {document['_id']['checkpoint']}"
            if identity in self._passed:
                continue
            with self._unless_bad(identity), translated("reading a checkpoint"):
                checkpoint = checkpoint_of(document)
                if not checkpoint.is_worth_it(last.revision):
                    continue
                snapshot = self._snapshot(await self._base(session, checkpoint, last))
                snapshot = await self._brought_to(head, snapshot, session)
                self._passed.add(identity)
                return snapshot
        return None

    @contextlib.contextmanager
    def _unless_bad(self, identity: str) -> Generator[None]:
        """Say what is wrong with a checkpoint, or with all of them, and have it used no more."""
        try:
            yield
        except StoreUnavailableError:
            raise
        except (StoreError, SnapshotFormatError, OSError) as error:
            if identity not in self._passed:
                _log.warning("%s is not used to start from: %s", identity, error)
            self._passed.add(identity)

    async def _manifests(self, session: AsyncClientSession, last: Tip) -> list[Document]:
        """Return the manifests of the history of a tip, the newest first."""
        revisions = {"$gte": last.revision - TAIL_MAX, "$lte": last.revision}
        with self._unless_bad("any checkpoint"), translated("looking for checkpoints"):
            found = self._database[CHECKPOINTS].find(
                {**checkpoints_of(self._environment), "epoch": last.epoch, "revision": revisions},
                sort=[("revision", DESCENDING)],
                session=session,
            )
            return await found.to_list()
        return []

    async def _base(self, session: AsyncClientSession, checkpoint: Checkpoint, last: Tip) -> Arena:
        if not checkpoint.is_readable:
            raise SnapshotFormatError("it has formats that this version does not read")
        if not await self._is_of(last, checkpoint.tip, session):
            raise StoreError("it is not of the history that the ledger has")
        return base_in(checkpoint, await self._content(session, checkpoint))

    async def _is_of(self, last: Tip, tip: Tip, session: AsyncClientSession) -> bool:
        """Tell whether a tip is one of those that led to the last one."""
        if tip.revision == last.revision:
            return tip == last
        found = await self._database[LEDGER].find_one(
            {"_id": ledger_id(self._environment, tip.revision)},
            dict.fromkeys(tip_fields(tip), True),
            session=session,
        )
        return found is not None and tip_in(found) == tip

    def _snapshot(self, base: Arena) -> Snapshot:
        snapshot = snapshot_of(base, self._region)
        # Members outlive their base, which they would keep in memory if they were a part of it.
        parts = {name: array("Q", base.part(name).tobytes()) for name in base.header.parts}
        return msgspec.structs.replace(snapshot, parts=parts)

    async def _content(self, session: AsyncClientSession, checkpoint: Checkpoint) -> memoryview:
        content, end = blank(checkpoint.bytes), 0
        for number in range(checkpoint.slices):
            found = await self._database[SLICES].find_one(
                {"_id": slice_id(self._environment, checkpoint.id, number)}, session=session
            )
            part = None if found is None else found.get("content")
            if not isinstance(part, bytes):
                raise StoreError(f"its slice {number} is missing")
            start, end = end, end + len(part)
            if end > checkpoint.bytes:
                raise StoreError(f"its slice {number} is too long")
            await in_turns(copied(memoryview(part), content[start:end]))
        return content

    async def _brought_to(
        self, head: Document, snapshot: Snapshot, session: AsyncClientSession
    ) -> Snapshot:
        """Return a snapshot after what the ledger, and a head, have after it."""
        last = tip_of(head)
        between = {
            "$gt": ledger_id(self._environment, snapshot.tip.revision),
            "$lt": ledger_id(self._environment, last.revision),
        }
        found = self._database[LEDGER].find(
            {"_id": between}, sort=[("_id", ASCENDING)], session=session, batch_size=TAIL_AT_ONCE
        )
        while documents := await found.to_list(TAIL_AT_ONCE):
            read = [await self._paging.ledgered(each, session) for each in documents]
            changes = await self._complete(read)
            snapshot = snapshot.apply(changes)
            await asyncio.sleep(0)
        if snapshot.tip != last:
            newest = await self._paging.newest(head, session)
            snapshot = snapshot.apply(await self._complete([newest]))
        return snapshot


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
