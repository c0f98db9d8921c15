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

from flagkit._core.aio import run_cooperatively
from flagkit._core.background import Log
from flagkit._core.model import packing
from flagkit._core.model.changes import SEGMENTS as SEGMENTS_REGION
from flagkit._core.model.changes import Change, Tip
from flagkit._core.snapshot import Arena, Snapshot, create_snapshot
from flagkit._core.snapshot.arena import open_arena
from flagkit._core.snapshot.chunks import allocate_zeroed, copy_in_slices
from flagkit._core.snapshot.layout import (
    FORMAT,
    PREFIX_BYTES,
    compute_checksum,
    encode_prefix,
    read_prefix,
)
from flagkit._core.storage import layout
from flagkit._core.storage.change_stream import ChangeReader
from flagkit._core.storage.documents import decode_head_tip, decode_tip, encode_tip
from flagkit._core.storage.driver import translate_errors
from flagkit._core.storage.validation import validates_form
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
    """The manifest of a checkpoint.

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
        """True if this version can read the formats of its bytes."""
        formats = self.frame, self.packing, self.byte_order
        return formats == (FORMAT, packing.FORMAT, sys.byteorder)

    def is_worth_using(self, revision: int) -> bool:
        """Tell whether to go on from it to a revision is quicker than to scan all flags."""
        lag = revision - self.tip.revision
        return lag <= min(TAIL_MAX, max(TAIL_MIN, self.flags // FLAGS_PER_REVISION))


def encode_manifest(checkpoint: Checkpoint) -> layout.Document:
    """Return the manifest of a checkpoint."""
    fields = msgspec.structs.asdict(checkpoint)
    del fields["id"], fields["tip"]
    identity = layout.build_checkpoint_id(checkpoint.tip.environment, checkpoint.id)
    fields["checksum"] = f"{checkpoint.checksum:016x}"
    return {"_id": identity, **encode_tip(checkpoint.tip), **fields}


@validates_form
def decode_manifest(document: Mapping[str, Any]) -> Checkpoint:
    """Return the checkpoint that a manifest is of."""
    numbers = {name: int(document[name]) for name in ("flags", "slices", "bytes")}
    bytes_max = min(numbers["slices"], SLICES_MAX) * SLICE_BYTES_MAX
    if not 0 < numbers["bytes"] <= bytes_max:
        raise StoreError("a manifest has sizes that cannot be")
    return Checkpoint(
        id=document["_id"]["checkpoint"],
        tip=decode_tip(document),
        checksum=int(document["checksum"], 16),
        frame=int(document["frame"]),
        packing=int(document["packing"]),
        byte_order=document["byte_order"],
        **numbers,
    )


@validates_form
def open_checkpoint_base(checkpoint: Checkpoint, content: memoryview) -> Arena:
    """Return the base that a checkpoint's slices, joined, are.

    Raises:
        SnapshotFormatError: they are damaged, or foreign.
        StoreError: they are those of another.
    """
    base = open_arena(content)
    if base.tip != checkpoint.tip or base.checksum != checkpoint.checksum:
        raise StoreError("its manifest is that of another")
    return base


class CheckpointLoader:
    """The checkpoints of an environment, as a source starts from them.

    Each is used at most once: who loads again has reason to doubt what was loaded.
    """

    def __init__(
        self,
        database: AsyncDatabase[layout.Document],
        environment: str,
        region: str,
        complete: Complete,
    ) -> None:
        self._database = database
        self._environment = environment
        self._region = region
        self._complete = complete
        self._paging = ChangeReader(database, environment)
        self._skipped: set[str] = set()

    async def load_snapshot(
        self, session: AsyncClientSession, head: layout.Document
    ) -> Snapshot | None:
        """Return a snapshot from the newest checkpoint that is of use, at the revision of a head.

        None where there is none. What is wrong with one is said once.

        Args:
            session: One of a snapshot of the database.
            head: The head in it.

        Raises:
            StoreUnavailableError: the database cannot be reached, or broke off.
        """
        last = decode_head_tip(head)
        for document in await self._read_manifests(session, last):
            identity = f"checkpoint {document['_id']['checkpoint']}"
            if identity in self._skipped:
                continue
            with self._skip_if_bad(identity), translate_errors("reading a checkpoint"):
                checkpoint = decode_manifest(document)
                if not checkpoint.is_worth_using(last.revision):
                    continue
                snapshot = self._build_snapshot(await self._load_base(session, checkpoint, last))
                snapshot = await self._catch_up(head, snapshot, session)
                self._skipped.add(identity)
                return snapshot
        return None

    @contextlib.contextmanager
    def _skip_if_bad(self, identity: str) -> Generator[None]:
        """Say what is wrong with a checkpoint, or with all of them, and have it used no more."""
        try:
            yield
        except StoreUnavailableError:
            raise
        except (StoreError, SnapshotFormatError, OSError) as error:
            if identity not in self._skipped:
                _log.warning("%s is not used to start from: %s", identity, error)
            self._skipped.add(identity)

    async def _read_manifests(
        self, session: AsyncClientSession, last: Tip
    ) -> list[layout.Document]:
        """Return the manifests of the history of a tip, the newest first."""
        revisions = {"$gte": last.revision - TAIL_MAX, "$lte": last.revision}
        with self._skip_if_bad("any checkpoint"), translate_errors("looking for checkpoints"):
            found = self._database[layout.CHECKPOINTS].find(
                {
                    **layout.filter_checkpoints(self._environment),
                    "epoch": last.epoch,
                    "revision": revisions,
                },
                sort=[("revision", DESCENDING)],
                session=session,
            )
            return await found.to_list()
        return []

    async def _load_base(
        self, session: AsyncClientSession, checkpoint: Checkpoint, last: Tip
    ) -> Arena:
        if not checkpoint.is_readable:
            raise SnapshotFormatError("it has formats that this version does not read")
        if not await self._is_ancestor(last, checkpoint.tip, session):
            raise StoreError("it is not of the history that the ledger has")
        return open_checkpoint_base(checkpoint, await self._read_content(session, checkpoint))

    async def _is_ancestor(self, last: Tip, tip: Tip, session: AsyncClientSession) -> bool:
        """Tell whether a tip is one of those that led to the last one."""
        if tip.revision == last.revision:
            return tip == last
        found = await self._database[layout.LEDGER].find_one(
            {"_id": layout.build_ledger_id(self._environment, tip.revision)},
            dict.fromkeys(encode_tip(tip), True),
            session=session,
        )
        return found is not None and decode_tip(found) == tip

    def _build_snapshot(self, base: Arena) -> Snapshot:
        snapshot = create_snapshot(base, self._region)
        # Members outlive their base, which they would keep in memory if they were a part of it.
        parts = {name: array("Q", base.get_part(name).tobytes()) for name in base.header.parts}
        return msgspec.structs.replace(snapshot, parts=parts)

    async def _read_content(
        self, session: AsyncClientSession, checkpoint: Checkpoint
    ) -> memoryview:
        content, end = allocate_zeroed(checkpoint.bytes), 0
        for number in range(checkpoint.slices):
            found = await self._database[layout.SLICES].find_one(
                {"_id": layout.build_slice_id(self._environment, checkpoint.id, number)},
                session=session,
            )
            part = None if found is None else found.get("content")
            if not isinstance(part, bytes):
                raise StoreError(f"its slice {number} is missing")
            start, end = end, end + len(part)
            if end > checkpoint.bytes:
                raise StoreError(f"its slice {number} is too long")
            await run_cooperatively(copy_in_slices(memoryview(part), content[start:end]))
        return content

    async def _catch_up(
        self, head: layout.Document, snapshot: Snapshot, session: AsyncClientSession
    ) -> Snapshot:
        """Return a snapshot after what the ledger, and a head, have after it."""
        last = decode_head_tip(head)
        between = {
            "$gt": layout.build_ledger_id(self._environment, snapshot.tip.revision),
            "$lt": layout.build_ledger_id(self._environment, last.revision),
        }
        found = self._database[layout.LEDGER].find(
            {"_id": between}, sort=[("_id", ASCENDING)], session=session, batch_size=TAIL_AT_ONCE
        )
        while documents := await found.to_list(TAIL_AT_ONCE):
            read = [await self._paging.decode_ledger_change(each, session) for each in documents]
            changes = await self._complete(read)
            snapshot = snapshot.apply(changes)
            await asyncio.sleep(0)
        if snapshot.tip != last:
            newest = await self._paging.read_newest(head, session)
            snapshot = snapshot.apply(await self._complete([newest]))
        return snapshot


CHECKPOINTS_MAX: Final = 2
"""So that a client that has just found the older one can still read it."""
LEFT_OVER_AFTER: Final = timedelta(hours=1)
"""Slices without a manifest for so long have lost their writer."""


def store_checkpoint(
    database: Database[layout.Document], base: Arena, read_at: datetime
) -> Generator[str, None, Checkpoint]:
    """Write a base of all regions, and remove what it replaces; yields how far it is.

    Args:
        database: To be written with majority.
        base: With all members.
        read_at: When it was read, by the server's clock.
    """
    environment, content = base.tip.environment, base.content
    _, length, header_length = read_prefix(content)
    checksum = compute_checksum(content)
    identity = f"{_format_moment(read_at)}-{os.urandom(8).hex()}"
    starts = range(0, length, SLICE_BYTES)
    for number, start in enumerate(starts):
        part = content[start : start + SLICE_BYTES].tobytes()
        if start == 0:
            # In memory it has no checksum.
            part = encode_prefix(checksum, length, header_length) + part[PREFIX_BYTES:]
        document = {"_id": layout.build_slice_id(environment, identity, number), "content": part}
        database[layout.SLICES].insert_one(document)
        yield f"{(start + len(part)) / 1e6:,.1f} of {length / 1e6:,.1f} MB are written"
    checkpoint = Checkpoint(
        id=identity,
        tip=base.tip,
        flags=count_flags(base),
        slices=len(starts),
        bytes=length,
        checksum=checksum,
    )
    database[layout.CHECKPOINTS].insert_one(encode_manifest(checkpoint))
    _remove_old(database, checkpoint, read_at)
    return checkpoint


def count_flags(base: Arena) -> int:
    """Return how many flags a base has, in all regions."""
    counts = base.header.counts.items()
    return sum(count for region, count in counts if region != SEGMENTS_REGION)


def decode_manifests(documents: Iterable[Mapping[str, Any]]) -> list[Checkpoint]:
    """Return the checkpoints of manifests, without those that make no sense."""
    found: list[Checkpoint] = []
    for document in documents:
        try:
            found.append(decode_manifest(document))
        except StoreError:
            continue
    return sorted(found, key=lambda checkpoint: (checkpoint.tip.revision, checkpoint.id))[::-1]


def load_checkpoint_base(
    database: Database[layout.Document], checkpoint: Checkpoint, session: ClientSession
) -> Arena:
    """Return the base of a checkpoint, for auditors: clients have `CheckpointLoader`.

    Raises:
        SnapshotFormatError: it is damaged, foreign, or of another format.
        StoreError: slices are missing, or are those of another.
    """
    mine = layout.filter_slices(checkpoint.tip.environment, checkpoint.id)
    found = database[layout.SLICES].find(mine, sort=[("_id", ASCENDING)], session=session).to_list()
    if [document["_id"].get("slice") for document in found] != [*range(checkpoint.slices)]:
        raise StoreError("its slices are not those that its manifest counts")
    content = _join_slices(found)
    base = open_checkpoint_base(checkpoint, content)
    if (len(content), count_flags(base)) != (checkpoint.bytes, checkpoint.flags):
        raise StoreError("its manifest counts other bytes or flags than it has")
    return base


@validates_form
def _join_slices(slices: Iterable[Mapping[str, Any]]) -> memoryview:
    return memoryview(b"".join(document["content"] for document in slices))


def _remove_old(database: Database[layout.Document], newest: Checkpoint, now: datetime) -> None:
    environment = newest.tip.environment
    for rest in find_orphans(database, environment, newest.tip.epoch, now):
        remove_orphan(database, environment, rest)


def find_orphans(
    database: Database[layout.Document], environment: str, epoch: str, now: datetime
) -> list[str]:
    """Return the ids of checkpoints that are not kept, and of what killed writers left of some.

    Kept are the newest of this history.
    """
    there = list(database[layout.CHECKPOINTS].find(layout.filter_checkpoints(environment)))
    mine = [found for found in decode_manifests(there) if found.tip.epoch == epoch]
    retained = {found.id for found in mine[:CHECKPOINTS_MAX]}
    old = {document["_id"]["checkpoint"] for document in there} - retained
    # From the index alone: the slices themselves are not read.
    with_slices = {
        document["_id"]["checkpoint"]
        for document in database[layout.SLICES].find(
            layout.filter_slices(environment), {"_id": True}
        )
    }
    left_over_before = _format_moment(now - LEFT_OVER_AFTER)
    return sorted(
        old | {identity for identity in with_slices - retained if identity < left_over_before}
    )


def remove_orphan(database: Database[layout.Document], environment: str, checkpoint: str) -> None:
    """Remove a checkpoint, or what there is of it: its manifest first."""
    database[layout.CHECKPOINTS].delete_one(
        {"_id": layout.build_checkpoint_id(environment, checkpoint)}
    )
    database[layout.SLICES].delete_many(layout.filter_slices(environment, checkpoint))


def _format_moment(at: datetime) -> str:
    return f"{at:%Y%m%dT%H%M%SZ}"
