"""Sources: one contract for memory and for MongoDB, and what can only go wrong in MongoDB."""

import asyncio
import contextlib
import gc
import random
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import pytest
from bson import ObjectId
from pymongo import MongoClient, WriteConcern
from pymongo.errors import OperationFailure

from flagkit import Client
from flagkit._core.cooperative import PAUSED_THRESHOLD
from flagkit._core.model import packing
from flagkit._core.model.changes import Change
from flagkit._core.snapshot import Record, Snapshot
from flagkit._core.source import Route, Source
from flagkit._core.storage.driver import translate_errors
from flagkit._core.storage.layout import FLAGS, SEGMENTS
from flagkit._core.storage.source import MongoSource
from flagkit.client.refresher import (
    ActionFailed,
    CatchUp,
    CatchUpDone,
    ReadHead,
    Refresher,
    Timer,
    Wait,
    Watch,
)
from flagkit.errors import (
    ConfigurationError,
    FlagkitError,
    HistoryLostError,
    NotReadyError,
    StoreError,
)
from flagkit.testing import MemoryHistory
from flagkit.writer import Writer


def flag(key: str, serve: str = "on", **more: Any) -> dict[str, Any]:
    return {
        "key": key,
        "variants": {"on": True, "off": False},
        "fallthrough": {"serve": serve},
        **more,
    }


class World(Protocol):
    """A history that can be written to, and sources of it."""

    def commit(self, *documents: dict[str, Any]) -> None: ...

    def set_segment(self, document: dict[str, Any]) -> None: ...

    def prune(self, revision: int) -> None: ...

    def source(self, region: str = "*") -> Source: ...


class MemoryWorld:
    def __init__(self) -> None:
        self.history = MemoryHistory()

    def commit(self, *documents: dict[str, Any]) -> None:
        self.history.commit(*documents)

    def set_segment(self, document: dict[str, Any]) -> None:
        self.history.commit(segments=[document])

    def prune(self, revision: int) -> None:
        self.history.prune(revision)

    def source(self, region: str = "*") -> Source:
        return self.history.create_source(region)


class MongoWorld:
    def __init__(self, uri: str, database: str, writer: Writer) -> None:
        self.uri, self.database, self.writer = uri, database, writer

    def commit(self, *documents: dict[str, Any]) -> None:
        with self.writer.store.open_reader() as reading:
            held = reading.find_flags(document["key"] for document in documents)
        with self.writer.change() as change:
            for document in documents:
                there = (document.get("region", "*"), document["key"]) in held
                (change.update if there else change.create)(document)

    def set_segment(self, document: dict[str, Any]) -> None:
        with self.writer.store.open_reader() as reading:
            held = reading.find_segments([document["key"]])
        (self.writer.update_segment if held else self.writer.create_segment)(document)

    def prune(self, revision: int) -> None:
        with MongoClient[dict[str, Any]](self.uri) as client:
            client[self.database].ledger.delete_many({"revision": {"$lte": revision}})

    def source(self, region: str = "*") -> Source:
        return MongoSource(
            self.uri, environment="production", region=region, database=self.database
        )


@pytest.fixture(params=["memory", pytest.param("mongo", marks=pytest.mark.mongo)])
def world(request: pytest.FixtureRequest) -> World:
    if request.param == "memory":
        return MemoryWorld()
    writer: Writer = request.getfixturevalue("writer")
    uri: str = request.getfixturevalue("mongo_uri")
    return MongoWorld(uri, request.getfixturevalue("database"), writer)


def keys(snapshot: Snapshot) -> set[tuple[str, str, int]]:
    return {(record.region, record.key, record.version) for record in snapshot.iter_records()}


def records(snapshot: Snapshot) -> set[Record]:
    return {*snapshot.iter_records()}


def load(uri: str, database: str, region: str = "*") -> Snapshot:
    async def story() -> Snapshot:
        source = MongoSource(uri, environment="production", region=region, database=database)
        try:
            return await source.load(Route.NEAREST)
        finally:
            await source.close()

    return asyncio.run(story())


def revisions(changes: Sequence[Change]) -> list[int]:
    return [change.revision for change in changes]


class TestContract:
    def test_a_new_environment_loads_as_revision_0(self, world: World) -> None:
        async def story() -> None:
            source = world.source()
            snapshot = await source.load(Route.NEAREST)
            assert (snapshot.tip.revision, keys(snapshot)) == (0, set())
            assert await source.catch_up(snapshot.tip, Route.NEAREST) in ((), [])
            await source.close()

        asyncio.run(story())

    def test_a_load_is_of_the_newest_revision(self, world: World) -> None:
        world.commit(flag("a.one"), flag("a.two"))
        world.commit(flag("a.one", "off"))

        async def story() -> None:
            source = world.source()
            snapshot = await source.load(Route.NEAREST)
            assert snapshot.tip.revision == 2
            assert keys(snapshot) == {("*", "a.one", 2), ("*", "a.two", 1)}
            await source.close()

        asyncio.run(story())

    def test_a_load_has_the_flags_for_all_regions_and_its_own(self, world: World) -> None:
        for region in ("*", "eu", "us"):
            world.commit(flag("a.one", region=region))

        async def story() -> None:
            source = world.source("eu")
            snapshot = await source.load(Route.NEAREST)
            assert keys(snapshot) == {("*", "a.one", 1), ("eu", "a.one", 1)}
            await source.close()

        asyncio.run(story())

    def test_catching_up_brings_every_change_in_order(self, world: World) -> None:
        async def story() -> None:
            source = world.source()
            snapshot = await source.load(Route.NEAREST)
            for i in range(5):
                await asyncio.to_thread(world.commit, flag("a.one"), flag(f"b.b{i}"))
            changes = await source.catch_up(snapshot.tip, Route.NEAREST)
            assert revisions(changes) == [1, 2, 3, 4, 5]
            caught_up = snapshot.apply(changes)
            assert keys(caught_up) == keys(await source.load(Route.NEAREST))
            assert revisions(await source.catch_up(changes[2].tip, Route.NEAREST)) == [4, 5]
            await source.close()

        asyncio.run(story())

    def test_a_watch_brings_the_changes_since_it_was_opened(self, world: World) -> None:
        async def story() -> None:
            source = world.source()
            await asyncio.to_thread(world.commit, flag("a.zero"))
            snapshot = await source.load(Route.NEAREST)
            await source.open(Route.NEAREST)
            for i in range(3):
                await asyncio.to_thread(world.commit, flag(f"a.a{i}"))
            seen: list[Change] = []
            while len(seen) < 3:
                seen += await source.watch()
            assert revisions(seen) == [2, 3, 4]
            assert snapshot.apply(seen).tip.revision == 4
            await source.close()

        asyncio.run(story())

    def test_segments_come_with_their_members(self, world: World) -> None:
        def staff(*keys: str) -> dict[str, Any]:
            return {"key": "staff", "included": keys}

        def enabled(snapshot: Snapshot, user: str) -> bool:
            return Client.from_snapshot(snapshot).is_enabled("a.one", user)

        async def story() -> None:
            source = world.source("eu")
            await asyncio.to_thread(world.set_segment, staff("ada"))
            rule = {"name": "staff", "when": {"$segment": "staff"}, "serve": "on"}
            await asyncio.to_thread(world.commit, flag("a.one", "off", rules=[rule]))
            loaded = await source.load(Route.NEAREST)
            assert [enabled(loaded, user) for user in ("ada", "grace")] == [True, False]
            await source.open(Route.NEAREST)
            await asyncio.to_thread(world.set_segment, staff("grace"))
            watched = loaded.apply(await source.watch())
            assert [enabled(watched, user) for user in ("ada", "grace")] == [False, True]
            await asyncio.to_thread(world.set_segment, staff("grace", "eve"))
            await asyncio.to_thread(world.set_segment, staff("ada", "eve"))
            caught_up = watched.apply(await source.catch_up(watched.tip, Route.NEAREST))
            assert [enabled(caught_up, user) for user in ("ada", "grace")] == [True, False]
            assert caught_up.parts == (await source.load(Route.NEAREST)).parts
            assert len(caught_up.parts) == 1
            await source.close()

        asyncio.run(story())

    def test_a_policy_is_the_newest_that_the_region_sees(self, world: World) -> None:
        async def story() -> None:
            source = world.source("eu")
            assert await source.read_policy("a.one") is None
            for region, owner in (("*", "first"), ("us", "other"), ("*", "second")):
                await asyncio.to_thread(world.commit, flag("a.one", region=region, owner=owner))
            found = await source.read_policy("a.one")
            assert found is not None
            assert found["owner"] == "second"
            await asyncio.to_thread(world.commit, flag("a.one", region="eu", owner="ours"))
            found = await source.read_policy("a.one")
            assert found is not None
            assert found["owner"] == "ours"
            await source.close()

        asyncio.run(story())

    def test_a_watch_opened_anew_goes_on(self, world: World) -> None:
        async def story() -> None:
            source = world.source()
            await source.open(Route.NEAREST)
            await source.open(Route.NEAREST)
            await asyncio.to_thread(world.commit, flag("a.one"))
            assert revisions(await source.watch()) == [1]
            await source.close()

        asyncio.run(story())

    def test_a_pruned_ledger_is_history_lost(self, world: World) -> None:
        async def story() -> None:
            source = world.source()
            snapshot = await source.load(Route.NEAREST)
            for i in range(4):
                await asyncio.to_thread(world.commit, flag(f"a.a{i}"))
            later = (await source.catch_up(snapshot.tip, Route.NEAREST))[2].tip
            await asyncio.to_thread(world.prune, 2)
            with pytest.raises(HistoryLostError):
                await source.catch_up(snapshot.tip, Route.NEAREST)
            assert revisions(await source.catch_up(later, Route.NEAREST)) == [4]
            await source.close()

        asyncio.run(story())

    def test_a_pending_watch_is_cancelled_at_once(self, world: World) -> None:
        async def story() -> None:
            source = world.source()
            await source.open(Route.NEAREST)
            watching = asyncio.create_task(source.watch())
            await asyncio.wait([watching], timeout=0.05)
            watching.cancel()
            done, _ = await asyncio.wait([watching], timeout=1)
            assert done == {watching}
            await source.close()

        asyncio.run(story())


Edit = Callable[[Any], object]


@pytest.mark.mongo
class TestMongo:
    @pytest.fixture
    def client(self, mongo_uri: str, database: str, writer: Writer) -> Iterator[Client]:
        writer.create(flag("a.one"))
        with Client(mongo_uri, environment="production", database=database) as client:
            client.wait_ready()
            yield client

    def test_a_scan_does_not_wait_for_the_projection(
        self, mongo_uri: str, database: str, writer: Writer
    ) -> None:
        writer.create(flag("a.one"))
        writer.update(flag("a.one", "off"))
        with MongoClient[dict[str, Any]](mongo_uri) as direct:
            # As if the writer had died between the compare-and-set and the projection.
            direct[database].ledger.delete_one({"revision": 2})
            direct[database].flags.update_one(
                {"_id.key": "a.one"}, {"$set": {"revision": 1, "version": 1, "policy": None}}
            )
        with Client(mongo_uri, environment="production", database=database) as client:
            client.wait_ready()
            evaluation = client.evaluate("a.one", default=True)
            assert (evaluation.value, evaluation.version, evaluation.revision) == (False, 2, 2)

    @pytest.mark.usefixtures("_unvalidated")
    @pytest.mark.parametrize(
        "edit",
        [
            {"body": packing.pack_fault(ValueError("x"))},
            {"body": None},
            {"seal": "0" * 16},
            {"version": 7},
            {"version": "7"},
            {"hash": "0" * 16},
            {"hash": None},
            {"format": None, "policy.fallthrough.serve": "off"},
        ],
        ids=str,
    )
    def test_an_edit_past_the_writer_of_what_clients_read_is_not_served(
        self, mongo_uri: str, database: str, writer: Writer, edit: dict[str, Any]
    ) -> None:
        writer.create(flag("a.one"))
        writer.create(flag("a.two"))
        with MongoClient[dict[str, Any]](mongo_uri) as direct:
            direct[database].flags.update_one({"_id.key": "a.one"}, {"$set": edit})
        with (
            Client(mongo_uri, environment="production", database=database) as client,
            pytest.raises(NotReadyError, match="past the writer"),
        ):
            client.wait_ready(timeout=0.5)

    def test_what_clients_read_of_one_flag_is_not_taken_for_anothers(
        self, mongo_uri: str, database: str, writer: Writer
    ) -> None:
        writer.create(flag("a.one"))
        writer.create(flag("a.two", "off"))
        writer.create(flag("a.three"))
        with MongoClient[dict[str, Any]](mongo_uri) as direct:
            flags = direct[database].flags
            documents = [flags.find_one({"_id.key": key}) for key in ("a.one", "a.two")]
            for document, other in zip(documents, reversed(documents), strict=True):
                assert document is not None
                assert other is not None
                flags.replace_one({"_id": document["_id"]}, other | {"_id": document["_id"]})
        with (
            Client(mongo_uri, environment="production", database=database) as client,
            pytest.raises(NotReadyError, match="past the writer"),
        ):
            client.wait_ready(timeout=0.5)

    def test_an_edit_of_a_policy_past_the_writer_changes_nothing_that_is_served(
        self, mongo_uri: str, database: str, writer: Writer
    ) -> None:
        writer.create(flag("a.one"))
        writer.create(flag("a.two"))
        with MongoClient[dict[str, Any]](mongo_uri) as direct:
            direct[database].flags.update_one(
                {"_id.key": "a.one"}, {"$set": {"policy.fallthrough.serve": "off"}}
            )
        with Client(mongo_uri, environment="production", database=database) as client:
            client.wait_ready()
            assert client.is_enabled("a.one")
        assert writer.reader.verify() != []
        with pytest.raises(StoreError, match="past the writer"):
            writer.update(flag("a.one"))

    @pytest.mark.parametrize(
        "older",
        [{"$unset": {"body": 1, "format": 1, "seal": 1}}, {"$set": {"format": 99, "body": b"?"}}],
        ids=str,
    )
    def test_flags_without_a_body_that_is_known_are_read_from_their_policies(
        self, mongo_uri: str, database: str, writer: Writer, older: dict[str, Any]
    ) -> None:
        for key in ("a.one", "a.two", "a.three"):
            writer.create(flag(key))
        with MongoClient[dict[str, Any]](mongo_uri) as direct:
            whole = load(mongo_uri, database)
            direct[database].flags.update_many({"_id.key": {"$in": ["a.one", "a.three"]}}, older)
        assert records(load(mongo_uri, database)) == records(whole)

    def test_a_scan_puts_the_tips_change_in_its_place(
        self, mongo_uri: str, database: str, writer: Writer
    ) -> None:
        with writer.change() as change:
            for key in ("b.b0", "b.b1", "b.b3", "b.b4"):
                change.create(flag(key))
            change.create(flag("b.b1", region="eu"))
            change.create_segment({"key": "s.one", "included": ["ada"]})
        with MongoClient[dict[str, Any]](mongo_uri) as direct:
            before = {name: [*direct[database][name].find()] for name in (FLAGS, SEGMENTS)}
            with writer.change() as change:
                for key in ("a.first", "b.b2", "c.last"):
                    change.create(flag(key))
                change.create(flag("b.b0", region="eu"))
                change.update(flag("b.b3", "off"))
                change.create_segment({"key": "r.before"})
                change.change_members("s.one", include=["eve"])
            whole = load(mongo_uri, database, "eu")
            for name, documents in before.items():
                direct[database][name].delete_many({})
                direct[database][name].insert_many(documents)
        pending = load(mongo_uri, database, "eu")
        assert records(pending) == records(whole)
        assert pending.list_keys() == whole.list_keys() == sorted(whole.list_keys())
        assert pending.parts == whole.parts

    @pytest.mark.usefixtures("_unvalidated")
    @pytest.mark.parametrize("enabled", [True, False], ids=repr)
    @pytest.mark.parametrize("damage", [{}, {"body": None}], ids=["good", "bad"])
    def test_a_load_leaves_the_garbage_collector_as_it_was(
        self, mongo_uri: str, database: str, writer: Writer, damage: dict[str, Any], enabled: bool
    ) -> None:
        writer.create(flag("a.one"))
        with MongoClient[dict[str, Any]](mongo_uri) as direct:
            direct[database].flags.update_one(
                {"_id.key": "a.one"}, {"$set": {"revision": 1, **damage}}
            )
        before, thresholds = gc.isenabled(), gc.get_threshold()
        try:
            (gc.enable if enabled else gc.disable)()
            with contextlib.suppress(StoreError):
                load(mongo_uri, database)
            assert (gc.isenabled(), gc.get_threshold()) == (enabled, thresholds)
        finally:
            (gc.enable if before else gc.disable)()

    def test_a_cancelled_load_puts_the_garbage_collector_back(
        self, mongo_uri: str, database: str, writer: Writer
    ) -> None:
        writer.create(flag("a.one"))

        before = gc.get_threshold()

        async def story() -> None:
            source = MongoSource(mongo_uri, environment="production", region="*", database=database)
            loading = asyncio.create_task(source.load(Route.NEAREST))
            await asyncio.sleep(0)
            assert gc.get_threshold()[0] == PAUSED_THRESHOLD
            while not loading.done():
                loading.cancel()
                await asyncio.wait([loading], timeout=0.02)
            await source.close()

        asyncio.run(story())
        assert gc.get_threshold() == before

    @pytest.mark.parametrize(
        "edit",
        [
            pytest.param(lambda heads: heads.drop(), id="dropped"),
            pytest.param(lambda heads: heads.rename(f"x{uuid.uuid4().hex}"), id="renamed"),
            pytest.param(
                lambda heads: heads.update_one({}, {"$set": {"hash": "0"}}), id="head edited"
            ),
        ],
    )
    def test_a_broken_stream_leaves_the_last_snapshot_serving(
        self, client: Client, mongo_uri: str, database: str, edit: Edit
    ) -> None:
        with MongoClient[dict[str, Any]](mongo_uri) as direct:
            head = direct[database].heads.find_one()
            assert head is not None
            edit(direct[database].heads)
            with pytest.raises(NotReadyError):
                client.wait_for(2, timeout=0.3)
            assert client.is_enabled("a.one")
            direct[database].heads.replace_one({"_id": "production"}, head, upsert=True)
        with Writer(mongo_uri, "production", actor="tester", database=database) as writer:
            client.wait_for(writer.update(flag("a.one", "off")).revision)
        assert not client.is_enabled("a.one")

    @pytest.mark.usefixtures("_unvalidated")
    @pytest.mark.parametrize(
        "garbage",
        [
            {"change.request": ObjectId("0" * 24)},
            {"time": ObjectId("0" * 24)},
            {
                "change.policies": [
                    {"region": ["*"], "key": ObjectId("0" * 24), "before": None, "after": None}
                ]
            },
            {"change": 5},
            {"digests": None},
        ],
        ids=str,
    )
    def test_garbage_in_the_head_is_survived(
        self, client: Client, mongo_uri: str, database: str, garbage: dict[str, Any]
    ) -> None:
        with MongoClient[dict[str, Any]](mongo_uri) as direct:
            heads = direct[database].heads
            head = heads.find_one()
            assert head is not None
            broken = {**head, "revision": 2, "change": {**head["change"]}}
            for path, value in garbage.items():
                name, _, inner = path.partition(".")
                if inner:
                    broken[name][inner] = value
                else:
                    broken[name] = value
            heads.replace_one({}, broken)
            with pytest.raises(NotReadyError):
                client.wait_for(2, timeout=0.3)
            assert client.is_enabled("a.one")
            heads.replace_one({}, head)
        with Writer(mongo_uri, "production", actor="tester", database=database) as writer:
            client.wait_for(writer.update(flag("a.one", "off")).revision)
        assert not client.is_enabled("a.one")

    def test_another_history_is_a_new_base_said_aloud(
        self,
        client: Client,
        mongo_uri: str,
        database: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        with MongoClient[dict[str, Any]](mongo_uri) as direct:
            direct.drop_database(database)
        with Writer(mongo_uri, "production", actor="tester", database=database) as writer:
            writer.create_environment()
            writer.create(flag("b.b0"))
            client.wait_for(writer.create(flag("b.b1")).revision)
        assert client.is_enabled("b.b1")
        assert not client.is_enabled("a.one")
        assert "replaced by a new base" in caplog.text

    def test_a_revision_that_no_majority_has_yet_when_the_stream_opens_is_not_missed(
        self, mongo_uri: str, database: str, writer: Writer
    ) -> None:
        writer.create(flag("a.one"))

        async def story() -> None:
            source = MongoWorld(mongo_uri, database, writer).source()
            snapshot = await source.load(Route.NEAREST)
            with MongoClient[dict[str, Any]](mongo_uri) as direct:
                heads = direct[database].heads
                mine = {"_id": "production"}
                before = heads.find_one(mine) or {}
                await asyncio.to_thread(writer.update, flag("a.one", "off"))
                after = heads.find_one(mine) or {}
                heads.replace_one(mine, before)
                # Acknowledged some 50 ms before the journal, and so the majority, has it.
                heads.with_options(write_concern=WriteConcern(1)).replace_one(mine, after)
            await source.open(Route.NEAREST)
            assert revisions(await source.catch_up(snapshot.tip, Route.NEAREST)) == [2]
            await source.close()

        asyncio.run(story())

    def test_an_environment_without_a_head_is_not_known(
        self, mongo_uri: str, database: str
    ) -> None:
        with (
            Client(mongo_uri, environment="nowhere", database=database) as client,
            pytest.raises(NotReadyError, match="'nowhere' is not known"),
        ):
            client.wait_ready(timeout=0.5)

    def test_environments_do_not_see_each_other(
        self, client: Client, mongo_uri: str, database: str
    ) -> None:
        with Writer(mongo_uri, "staging", actor="tester", database=database) as writer:
            writer.create_environment()
            writer.create(flag("a.one", "off"))
            writer.create(flag("s.only"))
            with Client(mongo_uri, environment="staging", database=database) as other:
                other.wait_for(2)
                assert not other.is_enabled("a.one")
        assert client.revision == 1
        assert client.is_enabled("a.one")

    def test_errors_of_the_driver_are_flagkits(self) -> None:
        with pytest.raises(ConfigurationError):
            MongoSource("mongodb://", environment="x", region="*", database="x")
        for uri in ("mongodb://h:99999/", "mongodb://h/?tlsCAFile=/no"):
            with (
                Client(uri, environment="x") as client,
                pytest.raises(NotReadyError, match="connection settings make no sense"),
            ):
                client.wait_ready(timeout=0.5)
            with pytest.raises(ConfigurationError):
                Writer(uri, "x", actor="tester")
        for secret in ("sec[ret", "sec\u2100ret", "sec/ret", "sec:ret@x", "sec?ret"):
            with pytest.raises(ConfigurationError) as caught:
                MongoSource(
                    f"mongodb://user:{secret}@h:1x/", environment="x", region="*", database="x"
                )
            assert "ret" not in str(caught.value)
            assert caught.value.__cause__ is None
        with pytest.raises(ConfigurationError, match="is no name"):
            Client("mongodb://h", environment="x", database="a.b")
        source = MongoSource(
            "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=50",
            environment="x",
            region="*",
            database="x",
        )

        async def story() -> None:
            with pytest.raises(FlagkitError, match="while loading all flags"):
                await source.load(Route.NEAREST)
            await source.close()

        asyncio.run(story())

    def test_a_user_who_is_not_let_in_is_told_so_without_the_password(self, mongo_uri: str) -> None:
        secret = mongo_uri.replace("mongodb://", "mongodb://someone:very-secret@")
        source = MongoSource(secret, environment="x", region="*", database="x")

        async def story() -> None:
            with pytest.raises(StoreError) as caught:
                await source.load(Route.NEAREST)
            assert "not let in" in str(caught.value)
            assert "very-secret" not in str(caught.value)
            await source.close()

        asyncio.run(story())


@pytest.mark.parametrize(
    "code", [43, 136, 189, 237, 260, 280, 286, 10107, 10334], ids=lambda code: f"code {code}"
)
def test_whatever_ends_a_stream_is_waited_out_and_asked_of_the_ledger(code: int) -> None:
    refresher = Refresher(
        random.Random(1), asyncio.run(MemoryHistory().create_source().load(Route.NEAREST))
    )
    refresher.step(CatchUpDone(()), 0.0)
    with pytest.raises(StoreError) as caught, translate_errors("watching for changes"):
        raise OperationFailure("the stream has ended", code)
    wait = refresher.step(ActionFailed(caught.value), 0.0)
    while isinstance(wait, ReadHead | Watch):
        wait = refresher.step(ActionFailed(caught.value), 0.0)
    assert isinstance(wait, Wait)
    again = refresher.step(Timer(), wait.until)
    assert isinstance(again, CatchUp)
    assert again.reopen
