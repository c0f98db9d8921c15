"""The source of a client's snapshots in MongoDB: load, watch and catch up. Only reads.

One event of the stream on `heads` is one revision. Every read uses a majority or one snapshot. If
the stream cannot prove that its events are complete, it fails, and the client asks the ledger. A
near member may lag, so each member must have at least what an earlier one returned.
"""

import contextlib
import functools
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from typing import Any, cast

import msgspec
from bson.timestamp import Timestamp
from pymongo import ASCENDING, AsyncMongoClient, ReadPreference
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.command_cursor import AsyncRawBatchCommandCursor
from pymongo.asynchronous.cursor import AsyncCursor
from pymongo.errors import OperationFailure
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import Nearest
from pymongo.write_concern import WriteConcern

from flagkit._core.aio import run_cooperatively
from flagkit._core.cooperative import pause_gc, split_batches
from flagkit._core.model import EVERYWHERE
from flagkit._core.model.changes import SEGMENTS as SEGMENTS_REGION
from flagkit._core.model.changes import Change, Tip, collect_added_parts
from flagkit._core.snapshot import Snapshot, check_digests, list_regions, list_snapshot_regions
from flagkit._core.source import Heartbeat, Route
from flagkit._core.storage import layout
from flagkit._core.storage.change_stream import ChangeReader, build_stream_pipeline, decode_batch
from flagkit._core.storage.checkpoints import CheckpointLoader
from flagkit._core.storage.client_registry import build_client_filter, build_heartbeat_update
from flagkit._core.storage.documents import CODEC, decode_head_tip, decode_policy_state
from flagkit._core.storage.driver import (
    NO_SNAPSHOTS,
    OPERATION_MILLISECONDS_MAX,
    compute_await_milliseconds,
    connect,
    describe_server_error,
    has_read_preference,
    translate_errors,
    translate_settings_errors,
    translate_stream_errors,
)
from flagkit._core.storage.scan import (
    BATCH_DOCUMENTS,
    PROJECTIONS,
    PolicyScan,
    filter_without_body,
    merge_full_documents,
)
from flagkit.errors import (
    HistoryLostError,
    StoreError,
    StoreUnavailableError,
)

PARTS_AT_ONCE = 1_000
"""So many parts of members are asked for at once: a query has its size, too."""
CATCH_UP_MAX = 10_000
"""A client further behind than this many revisions loads a new base: it is quicker."""

EVENTS_AT_ONCE = 128
"""So many revisions are decoded and applied at once: some milliseconds, before others' turn."""

HEAD_SECONDS_MAX = 3.0
"""How long the primary may take to tell the head."""
GOODBYE_SECONDS = 0.5
"""How long a member may take to hear that it is no longer asked."""

_BY_ID = [("_id", ASCENDING)]
_MAJORITY = ReadConcern("majority")
_LINEARIZABLE = ReadConcern("linearizable")


class MongoSource:
    """A refresher's source for one environment and region, made and used in one asyncio loop."""

    # Near are those that the connection string says; else members whose tag `region` is the
    # client's, and any others where there are none, or none that answer.
    def __init__(
        self,
        uri: str,
        *,
        environment: str,
        region: str,
        database: str,
        namespaces: tuple[str, ...] = (),
    ) -> None:
        self._environment = environment
        self._region = region
        self._namespaces = namespaces
        self._client = connect(uri, AsyncMongoClient[layout.Document])
        with translate_settings_errors(uri):
            self._await_milliseconds = compute_await_milliseconds(self._client.options)
            near = Nearest(None if region == EVERYWHERE else [{"region": region}, {}])
            self._databases = {
                Route.NEAREST: self._client.get_database(
                    database,
                    CODEC,
                    read_concern=_MAJORITY,
                    read_preference=self._client.read_preference
                    if has_read_preference(uri)
                    else near,
                ),
                Route.PRIMARY: self._client.get_database(
                    database, CODEC, read_concern=_MAJORITY, read_preference=ReadPreference.PRIMARY
                ),
            }
        self._paging = {
            route: ChangeReader(read, environment) for route, read in self._databases.items()
        }
        self._checkpoints = {
            route: CheckpointLoader(
                read, environment, region, functools.partial(self._attach_parts, route=route)
            )
            for route, read in self._databases.items()
        }
        self._route = Route.NEAREST
        self._stream: AsyncRawBatchCommandCursor[layout.Document] | None = None
        # What members are asked to have before they answer; none where there is no replica set.
        self._operation_time: Timestamp | None = None
        self._has_snapshots = True

    async def load(self, route: Route) -> Snapshot:
        """Read all that concerns the region, in one snapshot of the database."""
        with pause_gc():
            return await self._load_checkpoint(route) or await self._scan(route)

    async def _load_checkpoint(self, route: Route) -> Snapshot | None:
        if self._namespaces:
            # It would have all flags.
            return None
        with translate_errors("loading all flags"):
            async with self._open_snapshot_session() as session:
                head = await self._read_head(route, session)
                return await self._checkpoints[route].load_snapshot(session, head)

    async def _scan(self, route: Route) -> Snapshot:
        database = self._databases[route]
        with translate_errors("loading all flags"):
            async with self._open_snapshot_session() as session:
                head = await self._read_head(route, session)
                lacking = await self._paging[route].read_unprojected(head, session)
                scan = PolicyScan(
                    decode_head_tip(head),
                    lacking,
                    list_snapshot_regions(self._region),
                    self._namespaces,
                )
                for collection, projection in PROJECTIONS.items():
                    found = database[collection].find(
                        scan.build_filter(collection),
                        projection,
                        sort=_BY_ID,
                        session=session,
                        batch_size=BATCH_DOCUMENTS,
                    )
                    while documents := await self._read_batch(found, session):
                        scan.add_documents(collection, documents)
                parts = await self._read_parts(scan.parts, route, session)
        base = await run_cooperatively(scan.build({}))
        # Of some namespaces only, nobody knows what the flags add up to.
        places = (SEGMENTS_REGION,) if self._namespaces else list_snapshot_regions(self._region)
        check_digests(base.header.digests, base.tip, places)
        loaded = Snapshot(base.tip, self._region, base, namespaces=self._namespaces)
        return loaded.with_parts(parts)

    async def _read_batch(
        self, found: AsyncCursor[layout.Document], session: AsyncClientSession
    ) -> Sequence[Mapping[str, Any]]:
        # Whole batches: to iterate over documents would cost as much as to decode them.
        documents = await found.to_list(BATCH_DOCUMENTS)
        lacking = filter_without_body(documents)
        if lacking is None:
            return documents
        whole = found.collection.find(lacking, session=session)
        return merge_full_documents(documents, await whole.to_list())

    async def open(self, route: Route) -> None:
        """Begin to watch."""
        await self._close_stream()
        self._route, database = route, self._databases[route]
        # Left to itself, the stream begins after the last write, which a majority may not have yet:
        # catching up would not see that write, and the stream would not bring it.
        with translate_errors("asking for the time"):
            async with self._client.start_session(causal_consistency=True) as session:
                await database.command(
                    "ping", session=session, read_preference=database.read_preference
                )
                now = session.operation_time
        # Not the latest: what was restored may not have come so far, and would never answer.
        self._operation_time = now
        pipeline = build_stream_pipeline(self._environment, now)
        with translate_errors("opening the change stream"), translate_stream_errors():
            stream: object = await database[layout.HEADS].aggregate_raw_batches(
                pipeline, batchSize=EVENTS_AT_ONCE, maxAwaitTimeMS=self._await_milliseconds
            )
        # The driver's annotations have it as another kind of cursor.
        self._stream = cast("AsyncRawBatchCommandCursor[layout.Document]", stream)

    async def read_head(self) -> Tip:
        """Return where the primary has the head."""
        # What the stream brings meanwhile has to wait.
        with translate_errors("asking the primary for the head", HEAD_SECONDS_MAX):
            async with self._client.start_session(causal_consistency=True) as session:
                head = await self._read_head(Route.PRIMARY, session, {"change": False})
                self._advance_time(session.operation_time)
        return decode_head_tip(head)

    async def watch(self) -> Sequence[Change]:
        """Wait for changes."""
        stream = self._stream
        if stream is None or not stream.alive:
            raise StoreUnavailableError("the change stream has ended")
        with translate_errors("watching for changes"):
            batch = cast("bytes | None", await stream.try_next())
        found, time = decode_batch(batch) if batch else ([], None)
        self._advance_time(time)
        changes = [await self._complete_change(item) for item in found]
        return await self._attach_parts(changes, self._route)

    async def _complete_change(self, head: Change | layout.Document) -> Change:
        if isinstance(head, Change):
            return head
        with translate_errors("reading a large change"):
            async with self._open_causal_session() as session:
                return await self._paging[self._route].read_newest(head, session)

    async def catch_up(self, tip: Tip, route: Route) -> Sequence[Change]:
        """Return every change after `tip`, from the ledger and the head."""
        with translate_errors("reading the ledger"):
            async with self._open_causal_session() as session:
                head = await self._read_head(route, session)
                self._advance_time(session.operation_time)
                last = decode_head_tip(head)
                if last == tip:
                    return ()
                if last.epoch != tip.epoch or last.revision <= tip.revision:
                    if route is Route.PRIMARY:
                        await self._check_primary()
                    raise HistoryLostError(
                        f"the head stands at revision {last.revision} of epoch {last.epoch}, which"
                        f" does not follow revision {tip.revision} of epoch {tip.epoch}"
                    )
                if last.revision - tip.revision > CATCH_UP_MAX:
                    raise HistoryLostError(f"{last.revision - tip.revision} revisions behind")
                between = {
                    "$gt": layout.build_ledger_id(self._environment, tip.revision),
                    "$lt": layout.build_ledger_id(self._environment, last.revision),
                }
                found = self._databases[route][layout.LEDGER].find(
                    {"_id": between},
                    sort=_BY_ID,
                    session=session,
                    batch_size=EVENTS_AT_ONCE,
                    max_time_ms=OPERATION_MILLISECONDS_MAX,
                )
                paging = self._paging[route]
                with pause_gc():
                    changes = [
                        await paging.decode_ledger_change(document, session)
                        async for document in found
                    ]
                newest = await paging.read_newest(head, session)
        changes.append(newest)
        if len(changes) != last.revision - tip.revision:
            raise HistoryLostError(f"the ledger does not reach back to revision {tip.revision}")
        return await self._attach_parts(changes, route)

    async def read_policy(self, key: str) -> dict[str, Any] | None:
        """Read the newest document of a flag as the region sees it."""
        with translate_errors("reading a flag"):
            async with self._open_snapshot_session() as session:
                head = await self._read_head(Route.PRIMARY, session)
                found = {
                    document["_id"]["region"]: decode_policy_state(document)
                    async for document in self._databases[Route.PRIMARY][layout.FLAGS].find(
                        layout.filter_policies_by_key(self._environment, [key]), session=session
                    )
                }
                lacking = await self._paging[Route.PRIMARY].read_unprojected(head, session)
        for change in lacking:
            newest = {policy.id: policy.after for policy in change.policies}
            found |= {region: state for (region, name), state in newest.items() if name == key}
        states = (found.get(region) for region in list_regions(self._region))
        return next((state.policy for state in states if state is not None), None)

    async def send_heartbeat(self, heartbeat: Heartbeat) -> None:
        """Put a heartbeat in the place of the last one of its client."""
        clients = self._databases[Route.PRIMARY][layout.CLIENTS]
        # One member is enough: the next comes soon.
        clients = clients.with_options(write_concern=WriteConcern(1))
        with translate_errors("registering this client"):
            await clients.update_one(
                build_client_filter(heartbeat), build_heartbeat_update(heartbeat), upsert=True
            )

    async def close(self) -> None:
        """Free everything."""
        with translate_errors("closing the connections", GOODBYE_SECONDS):
            await self._client.close()

    @contextlib.asynccontextmanager
    async def _open_causal_session(self) -> AsyncGenerator[AsyncClientSession]:
        async with self._client.start_session(causal_consistency=True) as session:
            if self._operation_time is not None:
                session.advance_operation_time(self._operation_time)
            yield session

    @contextlib.asynccontextmanager
    async def _open_snapshot_session(self) -> AsyncGenerator[AsyncClientSession]:
        """Give a session of one snapshot of the database, where it has such.

        Elsewhere the digests tell whether something was changed while it was read.
        """
        try:
            async with self._client.start_session(snapshot=self._has_snapshots) as session:
                yield session
        except OperationFailure as error:
            if error.code in NO_SNAPSHOTS and self._has_snapshots:
                self._has_snapshots = False
                raise StoreUnavailableError(
                    f"no snapshots can be read: {describe_server_error(error)}"
                ) from error
            raise

    async def _read_head(
        self, route: Route, session: AsyncClientSession, projection: layout.Document | None = None
    ) -> layout.Document:
        head = await self._databases[route][layout.HEADS].find_one(
            {"_id": self._environment},
            projection,
            session=session,
            max_time_ms=OPERATION_MILLISECONDS_MAX,
        )
        if head is None:
            raise StoreError(
                f"the environment {self._environment!r} is not known in the database"
                f" {self._databases[route].name!r}: a writer creates it"
            )
        return head

    def _advance_time(self, time: Timestamp | None) -> None:
        if time is not None and (self._operation_time is None or time > self._operation_time):
            self._operation_time = time

    async def _check_primary(self) -> None:
        """Have the primary prove that it is one: others may have elected another since.

        Raises:
            OperationFailure: it is none, or cannot be sure in time.
        """
        if self._operation_time is not None:
            await (
                self._databases[Route.PRIMARY][layout.HEADS]
                .with_options(read_concern=_LINEARIZABLE)
                .find_one({"_id": self._environment}, max_time_ms=OPERATION_MILLISECONDS_MAX)
            )

    async def _attach_parts(self, changes: list[Change], route: Route) -> list[Change]:
        """Return changes with the parts of members that are there after them, and not before."""
        with pause_gc():
            added = collect_added_parts(changes)
        if not added:
            return changes
        with translate_errors("reading members"):
            async with self._open_causal_session() as session:
                parts = await self._read_parts(added, route, session)
        return [*changes[:-1], msgspec.structs.replace(changes[-1], parts=parts)]

    async def _read_parts(
        self, names: Iterable[str], route: Route, session: AsyncClientSession
    ) -> dict[str, bytes]:
        parts: dict[str, bytes] = {}
        for some in split_batches(sorted(set(names)), PARTS_AT_ONCE):
            found = self._databases[route][layout.MEMBERS].find(
                layout.filter_parts(self._environment, some), session=session
            )
            # Whether they are what their names say, the snapshot finds, whatever the source.
            parts |= {
                document["_id"]["part"]: document["hashes"]
                async for document in found
                if isinstance(document.get("hashes"), bytes)
            }
        return parts

    async def _close_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            # A member that answers nothing does not hear of it either: its stream ends by itself.
            translating = translate_errors("closing the change stream", GOODBYE_SECONDS)
            with contextlib.suppress(StoreUnavailableError), translating:
                await stream.close()
