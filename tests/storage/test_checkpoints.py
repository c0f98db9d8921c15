"""Checkpoints: published bases that clients start from, and go on to the head by the ledger."""

import asyncio
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database

from flagkit import Client
from flagkit._core.cooperative import run_slices
from flagkit._core.snapshot import Snapshot, SnapshotFile, compact_snapshot
from flagkit._core.source import Route
from flagkit._core.storage import checkpoints as publishing
from flagkit._core.storage import checkpoints as reading
from flagkit._core.storage.source import MongoSource
from flagkit._core.storage.store import Store
from flagkit.errors import (
    ConfigurationError,
    EnvironmentNotFoundError,
    SnapshotFormatError,
    StoreError,
)
from flagkit.writer import Checkpoint, Writer, checkpoints

pytestmark = pytest.mark.mongo

PATIENCE_SECONDS = 20.0
REGIONS = ("*", "eu", "us")
USERS = [f"user-{number}" for number in range(20)]

Edit = Callable[[Database[Any]], object]


def flag(key: str, serve: str = "on", **more: Any) -> dict[str, Any]:
    return {
        "key": key,
        "variants": {"on": True, "off": False},
        "off": "off",
        "fallthrough": {"serve": serve},
        **more,
    }


STAFF = {"name": "staff", "when": {"$segment": "staff"}, "serve": "on"}


@pytest.fixture
def stored(mongo_uri: str, database: str) -> Iterator[Database[Any]]:
    with MongoClient[Any](mongo_uri) as client:
        yield client[database]


@pytest.fixture
def filled(writer: Writer) -> Writer:
    """Fill an environment: overrides, a rollout, a segment with members."""
    with writer.change() as change:
        for number in range(40):
            change.create(flag(f"shop.f{number}", "on" if number % 2 else "off"))
        for region in ("eu", "us"):
            change.create(flag("shop.f3", "off", region=region))
            change.create(flag(f"shop.only-{region}", region=region))
        change.create(flag("shop.rollout", fallthrough={"rollout": 30}))
        change.create_segment({"key": "staff", "included": ["user-1", "user-2"]})
        change.create(flag("shop.staff", "off", rules=[STAFF]))
    return writer


def source(writer: Writer, uri: str, region: str = "*") -> MongoSource:
    database = writer.store._database.name
    return MongoSource(uri, environment=writer.environment, region=region, database=database)


def loads(writer: Writer, uri: str, region: str = "*", times: int = 1) -> list[Snapshot]:
    """Return what a new source loads, so many times."""

    async def story() -> list[Snapshot]:
        opened = source(writer, uri, region)
        try:
            return [await opened.load(Route.NEAREST) for _ in range(times)]
        finally:
            await opened.close()

    return asyncio.run(story())


def scanned(writer: Writer, uri: str, region: str = "*") -> Snapshot:
    """Return what a source loads that knows no checkpoint."""

    async def story() -> Snapshot:
        opened = source(writer, uri, region)
        try:
            return await opened._scan(Route.NEAREST)
        finally:
            await opened.close()

    return asyncio.run(story())


def assert_same(found: Snapshot, expected: Snapshot) -> None:
    """Hold a snapshot to another, in all that is asked of one."""
    assert found.tip == expected.tip
    assert {*found.iter_records()} == {*expected.iter_records()}
    assert found.list_keys() == expected.list_keys()
    assert found.list_keys("shop.only") == expected.list_keys("shop.only")
    assert {name: [*part] for name, part in found.parts.items()} == {
        name: [*part] for name, part in expected.parts.items()
    }
    for key in (*expected.list_keys(), "shop.f3", "shop.only-us", "shop.missing"):
        assert found.find(key) == expected.find(key)
    one, other = Client.from_snapshot(found), Client.from_snapshot(expected)
    for key in [*expected.list_keys()]:
        for user in USERS:
            assert one.evaluate(key, user) == other.evaluate(key, user)


def change_all_kinds(writer: Writer) -> None:
    """Change flags of all regions, and members."""
    writer.pause("shop.f1")
    writer.update(flag("shop.f3", "on", region="us"))
    writer.set_rollout("shop.rollout", 60)
    writer.create(flag("shop.new", region="eu"))
    writer.create(flag("shop.f5", "off", region="us"))
    writer.change_members("staff", include=["user-7"], remove=["user-1"])
    writer.create_segment({"key": "beta", "included": ["user-3"], "excluded": ["user-4"]})
    writer.resume("shop.f1")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# Starting


@pytest.mark.parametrize("region", REGIONS)
def test_a_start_from_a_checkpoint_is_a_scan(filled: Writer, mongo_uri: str, region: str) -> None:
    checkpoint = filled.reader.write_checkpoint()
    (snapshot,) = loads(filled, mongo_uri, region)
    # A scan has the other regions' flags in no case.
    assert set(snapshot.base.header.counts) == {*REGIONS, "@segments"}
    assert checkpoint.flags == 46
    assert_same(snapshot, scanned(filled, mongo_uri, region))


@pytest.mark.parametrize("region", REGIONS)
def test_what_came_after_it_is_had_from_the_ledger(
    filled: Writer, mongo_uri: str, region: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "TAIL_AT_ONCE", 3)
    checkpoint = filled.reader.write_checkpoint()
    change_all_kinds(filled)
    (snapshot,) = loads(filled, mongo_uri, region)
    assert snapshot.base.tip == checkpoint.tip
    assert snapshot.tip.revision == checkpoint.tip.revision + 8
    assert_same(snapshot, scanned(filled, mongo_uri, region))


def test_the_tips_change_need_not_be_projected(
    filled: Writer, mongo_uri: str, stored: Database[Any]
) -> None:
    filled.reader.write_checkpoint()
    change_all_kinds(filled)
    expected = scanned(filled, mongo_uri)
    stored.ledger.delete_one({"revision": expected.tip.revision})
    (snapshot,) = loads(filled, mongo_uri)
    assert snapshot.base.tip.revision == 1
    assert_same(snapshot, expected)


def test_a_checkpoint_may_be_of_a_change_that_is_not_projected(
    filled: Writer, mongo_uri: str, stored: Database[Any]
) -> None:
    filled.pause("shop.f1")
    flags, ledger = stored.flags, stored.ledger
    flags.update_one({"_id.key": "shop.f1"}, {"$set": {"revision": 1, "version": 1}})
    ledger.delete_one({"revision": 2})
    assert filled.reader.write_checkpoint().tip.revision == 2
    (snapshot,) = loads(filled, mongo_uri)
    assert snapshot.base.tip.revision == 2
    found = snapshot.find("shop.f1")
    assert found is not None
    assert found.version == 2


@pytest.mark.parametrize("region", REGIONS)
def test_what_is_kept_in_a_file_later_is_right_for_its_region_alone(
    filled: Writer, mongo_uri: str, tmp_path: Path, region: str
) -> None:
    filled.reader.write_checkpoint()
    change_all_kinds(filled)
    (snapshot,) = loads(filled, mongo_uri, region)
    file = SnapshotFile(tmp_path / "flags", filled.environment, region)
    with file.claim() as mine:
        assert mine
        file.write(run_slices(compact_snapshot(snapshot, with_members=True)))
    saved = file.read()
    assert saved is not None
    assert_same(saved, scanned(filled, mongo_uri, region))
    # What it has of the others is as old as the checkpoint.
    for other in {"eu", "us"} - {region}:
        with pytest.raises(SnapshotFormatError):
            SnapshotFile(file.path, filled.environment, other).read()


def test_members_outlive_the_base_that_they_came_with(filled: Writer, mongo_uri: str) -> None:
    filled.reader.write_checkpoint()
    (snapshot,) = loads(filled, mongo_uri)
    parts = [memoryview(part) for part in snapshot.parts.values()]  # type: ignore[arg-type]
    assert parts
    assert all(part.obj is not snapshot.base.content.obj for part in parts)


def test_a_client_starts_from_one(
    filled: Writer, mongo_uri: str, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    filled.reader.write_checkpoint()
    filled.pause("shop.f1")
    with Client(mongo_uri, environment="production", region="eu", database=database) as client:
        client.wait_ready()
        assert client.revision == 2
        assert client.snapshot is not None
        assert client.snapshot.base.tip.revision == 1
        assert not client.is_enabled("shop.f1")
        client.wait_for(filled.resume("shop.f1").revision)
        assert client.is_enabled("shop.f1")
    assert warnings(caplog) == []


def test_who_loads_again_has_doubts_and_scans(filled: Writer, mongo_uri: str) -> None:
    filled.reader.write_checkpoint()
    filled.pause("shop.f1")
    first, second = loads(filled, mongo_uri, times=2)
    assert [first.base.tip.revision, second.base.tip.revision] == [1, 2]
    assert_same(first, second)


def test_where_there_is_a_long_way_to_go_a_scan_is_quicker(
    filled: Writer,
    mongo_uri: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reading, "TAIL_MIN", 7)
    filled.reader.write_checkpoint()
    change_all_kinds(filled)
    (snapshot,) = loads(filled, mongo_uri)
    assert snapshot.base.tip == snapshot.tip
    assert warnings(caplog) == []


def test_checkpoints_of_another_epoch_are_passed_over(
    filled: Writer, mongo_uri: str, stored: Database[Any], caplog: pytest.LogCaptureFixture
) -> None:
    filled.reader.write_checkpoint()
    for name in ("heads", "ledger", "flags", "segments", "audit"):
        stored[name].delete_many({})
    filled.create_environment()
    filled.create(flag("shop.other"))
    (snapshot,) = loads(filled, mongo_uri)
    assert snapshot.list_keys() == ["shop.other"]
    assert warnings(caplog) == []
    # The next one takes their place.
    made = filled.reader.write_checkpoint()
    assert filled.store.list_checkpoints() == [made]
    assert stored.slices.count_documents({}) == made.slices


# What is of no use


def with_slice(change: Callable[[bytes], bytes]) -> Edit:
    def edit(stored: Database[Any]) -> None:
        found = stored.slices.find_one({})
        assert found is not None
        stored.slices.update_one({}, {"$set": {"content": change(found["content"])}})

    return edit


def with_manifest(**fields: Any) -> Edit:
    return lambda stored: stored.checkpoints.update_one({}, {"$set": fields})


FAULTS: Mapping[str, tuple[Edit, str]] = {
    "a slice is damaged": (with_slice(lambda content: content[:-1] + b"?"), "was damaged"),
    "a slice is cut off": (with_slice(lambda content: content[:-1]), "was damaged"),
    "a slice is too long": (with_slice(lambda content: content + b"?"), "slice 0 is too long"),
    "a slice is foreign": (with_slice(lambda content: b"?" * len(content)), "is no snapshot"),
    "no slices": (lambda stored: stored.slices.delete_many({}), "slice 0 is missing"),
    "no bytes": (
        lambda stored: stored.slices.update_one({}, {"$set": {"content": 7}}),
        "slice 0 is missing",
    ),
    "frame": (with_manifest(frame=99), "formats that this version does not read"),
    "packing": (with_manifest(packing=99), "formats that this version does not read"),
    "byte order": (with_manifest(byte_order="middle"), "formats that this version does not read"),
    "hash": (with_manifest(hash="0" * 64), "not of the history"),
    "revision": (with_manifest(revision=2), "not of the history"),
    "digests": (with_manifest(digests={}), "not of the history"),
    "checksum": (with_manifest(checksum="0" * 16), "that of another"),
    "too many bytes": (with_manifest(bytes=2**40), "sizes that cannot be"),
    "0 bytes": (with_manifest(bytes=0), "sizes that cannot be"),
    "far too many slices": (with_manifest(slices=2**40, bytes=2**60), "sizes that cannot be"),
    "too many slices": (with_manifest(slices=2), "slice 1 is missing"),
    "no number": (with_manifest(slices="many"), "not the form"),
    "nothing": (with_manifest(digests=None), "not the form"),
    "a pruned ledger": (
        lambda stored: stored.ledger.delete_one({"revision": 1}),
        "not of the history",
    ),
    "a gap in the ledger": (
        lambda stored: stored.ledger.delete_one({"revision": 2}),
        "does not continue",
    ),
}
"""What can be wrong with one, and what is said of it."""


@pytest.mark.usefixtures("_unvalidated")
@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_one_is_said_once_and_all_is_scanned(
    filled: Writer,
    mongo_uri: str,
    stored: Database[Any],
    caplog: pytest.LogCaptureFixture,
    fault: str,
) -> None:
    edit, said = FAULTS[fault]
    filled.reader.write_checkpoint()
    filled.pause("shop.f1")
    filled.resume("shop.f1")
    edit(stored)
    for snapshot in loads(filled, mongo_uri, "eu", times=2):
        assert snapshot.base.tip.revision == 3
        assert_same(snapshot, scanned(filled, mongo_uri, "eu"))
    (message,) = warnings(caplog)
    assert message.startswith("checkpoint 20")
    assert said in message


def test_an_older_one_is_used_where_the_newest_is_of_no_use(
    filled: Writer, mongo_uri: str, stored: Database[Any], caplog: pytest.LogCaptureFixture
) -> None:
    filled.reader.write_checkpoint()
    filled.pause("shop.f1")
    newest = filled.reader.write_checkpoint()
    stored.slices.delete_many({"_id.checkpoint": newest.id})
    (snapshot,) = loads(filled, mongo_uri)
    assert (snapshot.base.tip.revision, snapshot.tip.revision) == (1, 2)
    assert len(warnings(caplog)) == 1


def test_bytes_of_another_checkpoint_are_not_taken_for_these(
    filled: Writer, mongo_uri: str, stored: Database[Any], caplog: pytest.LogCaptureFixture
) -> None:
    older = filled.reader.write_checkpoint()
    filled.pause("shop.f1")
    newer = filled.reader.write_checkpoint()
    (content,) = [found["content"] for found in stored.slices.find({"_id.checkpoint": older.id})]
    stored.slices.update_one({"_id.checkpoint": newer.id}, {"$set": {"content": content}})
    stored.checkpoints.update_one({"_id.checkpoint": newer.id}, {"$set": {"bytes": len(content)}})
    stored.checkpoints.delete_one({"_id.checkpoint": older.id})
    (snapshot,) = loads(filled, mongo_uri)
    assert snapshot.base.tip.revision == 2
    assert "that of another" in warnings(caplog)[0]


# Writing


def test_a_checkpoint_in_many_slices_is_joined_again(
    filled: Writer, mongo_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "SLICE_BYTES", 500)
    checkpoint = filled.reader.write_checkpoint()
    assert checkpoint.slices == -(-checkpoint.bytes // 500) > 3
    (snapshot,) = loads(filled, mongo_uri, "us")
    assert "us" in snapshot.base.header.counts
    assert_same(snapshot, scanned(filled, mongo_uri, "us"))


def test_the_newest_two_are_kept_with_their_slices(filled: Writer, stored: Database[Any]) -> None:
    made = []
    for _ in range(4):
        made.append(filled.reader.write_checkpoint())
        filled.pause("shop.f1")
        filled.resume("shop.f1")
    assert filled.store.list_checkpoints() == [made[3], made[2]]
    with_slices = {document["_id"]["checkpoint"] for document in stored.slices.find()}
    assert with_slices == {made[3].id, made[2].id}


def test_what_killed_writers_left_is_removed_after_a_while(
    filled: Writer, stored: Database[Any]
) -> None:
    with filled.store.open_reader() as read:
        now = read.now

    def left(at: Any, environment: str = "production") -> dict[str, Any]:
        identity = f"{publishing._format_moment(at)}-0123456789abcdef"
        document = {
            "_id": {"environment": environment, "checkpoint": identity, "slice": 0},
            "content": b"?",
        }
        stored.slices.insert_one(document)
        return document

    left(now - timedelta(minutes=61))
    young = left(now - timedelta(minutes=59))
    foreign = left(now - timedelta(days=1), "staging")
    made = filled.reader.write_checkpoint()
    there = [document["_id"]["checkpoint"] for document in stored.slices.find()]
    assert sorted(there) == sorted(
        [made.id, young["_id"]["checkpoint"], foreign["_id"]["checkpoint"]]
    )


@pytest.mark.usefixtures("_unvalidated")
def test_a_manifest_that_makes_no_sense_is_removed_by_the_next(
    filled: Writer, stored: Database[Any]
) -> None:
    filled.reader.write_checkpoint()
    with_manifest(revision="many")(stored)
    made = filled.reader.write_checkpoint()
    assert filled.store.list_checkpoints() == [made]
    assert stored.checkpoints.count_documents({}) == 1


def test_writers_at_the_same_time_are_not_in_each_others_way(
    filled: Writer, mongo_uri: str, stored: Database[Any]
) -> None:
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(filled.reader.write_checkpoint) for _ in range(8)]
        made = {future.result().id for future in futures}
    assert len(made) == 8
    kept = {checkpoint.id for checkpoint in filled.store.list_checkpoints()}
    assert len(kept) == 2
    assert kept <= {document["_id"]["checkpoint"] for document in stored.slices.find()}
    assert_same(*loads(filled, mongo_uri, times=2))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda stored: stored.flags.update_one({}, {"$set": {"body": b"?"}}), "past the writer"),
        (lambda stored: stored.flags.delete_one({"_id.region": "us"}), "'us' are not those"),
        (lambda stored: stored.members.delete_many({}), "members of segments are missing"),
        (
            lambda stored: stored.members.update_one({}, {"$set": {"hashes": b"12345678"}}),
            "past the writer",
        ),
    ],
    ids=["body", "override", "no members", "members"],
)
def test_what_was_changed_past_the_writer_is_not_published(
    filled: Writer, stored: Database[Any], edit: Edit, said: str
) -> None:
    # What a tip's change did is read from the head.
    filled.pause("shop.f1")
    edit(stored)
    with pytest.raises(StoreError, match=said):
        filled.reader.write_checkpoint()
    assert filled.store.list_checkpoints() == []
    assert stored.slices.count_documents({}) == 0


def test_there_is_none_of_an_environment_that_is_not_there(mongo_uri: str, database: str) -> None:
    with (
        Writer(mongo_uri, "staging", actor="tester", database=database) as writer,
        pytest.raises(EnvironmentNotFoundError),
    ):
        writer.reader.write_checkpoint()


def test_an_empty_environment_has_one_too(writer: Writer, mongo_uri: str) -> None:
    assert writer.reader.write_checkpoint().flags == 0
    assert_same(*loads(writer, mongo_uri, times=2))


# A writer that makes them


@pytest.fixture
def keen(filled: Writer, mongo_uri: str, database: str) -> Iterator[Writer]:
    """Return a writer that publishes a checkpoint each third revision."""
    with Writer(
        mongo_uri, filled.environment, actor="tester", database=database, checkpoint_every=3
    ) as writer:
        yield writer


def wait_for_thread(writer: Writer) -> None:
    """Wait until the thread that makes a checkpoint has ended, if there is one."""
    assert writer._checkpoint_publisher is not None
    background = writer._checkpoint_publisher._thread
    thread = None if background is None else background._thread
    if thread is not None:
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()


def toggled(writer: Writer, times: int) -> None:
    """Make so many revisions, and wait for the checkpoint that each may lead to."""
    for _ in range(times):
        writer.set_rollout("shop.rollout", 50)
        if writer._checkpoint_publisher is not None:
            wait_for_thread(writer)


def revisions(writer: Writer) -> list[int]:
    return [checkpoint.tip.revision for checkpoint in writer.store.list_checkpoints()]


def test_a_writer_makes_none_unless_it_is_asked_to(filled: Writer) -> None:
    toggled(filled, 3)
    assert revisions(filled) == []


@pytest.mark.parametrize("every", [0, -1])
def test_a_number_of_revisions_makes_sense(mongo_uri: str, every: int) -> None:
    with pytest.raises(ConfigurationError, match="1 or more"):
        Writer(mongo_uri, "production", actor="tester", checkpoint_every=every)


def test_a_writer_makes_one_whenever_the_newest_is_old_enough(keen: Writer) -> None:
    toggled(keen, 1)
    assert revisions(keen) == [2]
    toggled(keen, 2)
    assert revisions(keen) == [2]
    toggled(keen, 4)
    assert revisions(keen) == [8, 5]


def test_a_writer_looks_first_whether_another_has_made_one(keen: Writer) -> None:
    keen.reader.write_checkpoint()
    toggled(keen, 2)
    assert revisions(keen) == [1]
    toggled(keen, 1)
    assert revisions(keen) == [4, 1]


def test_one_of_another_epoch_counts_for_nothing(keen: Writer, stored: Database[Any]) -> None:
    keen.reader.write_checkpoint()
    with_manifest(epoch="another")(stored)
    toggled(keen, 1)
    assert revisions(keen) == [2]


def test_changes_do_not_wait_for_a_checkpoint(
    keen: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go_on = threading.Event(), threading.Event()
    in_steps = checkpoints.write_checkpoint_in_steps

    def slow(store: Store) -> Generator[str | None, None, Checkpoint]:
        reached.set()
        assert go_on.wait(PATIENCE_SECONDS)
        return (yield from in_steps(store))

    monkeypatch.setattr(checkpoints, "write_checkpoint_in_steps", slow)
    keen.set_rollout("shop.rollout", 40)
    assert reached.wait(PATIENCE_SECONDS)
    # It is being made meanwhile.
    for percent in range(10):
        keen.set_rollout("shop.rollout", percent)
    assert revisions(keen) == []
    go_on.set()
    wait_for_thread(keen)
    assert revisions(keen) == [12]


def test_one_is_made_at_a_time_in_a_process(keen: Writer) -> None:
    with checkpoints._claim_process() as mine:
        assert mine
        toggled(keen, 3)
        assert revisions(keen) == []
    toggled(keen, 1)
    assert revisions(keen) == [5]


def test_what_keeps_a_writer_from_making_one_is_said_once_and_changes_go_on(
    keen: Writer, stored: Database[Any], caplog: pytest.LogCaptureFixture
) -> None:
    stored.flags.update_one({"_id.key": "shop.f1"}, {"$set": {"seal": "0" * 16}})
    toggled(keen, 1)
    (message,) = warnings(caplog)
    assert message.startswith("no checkpoint is made: ")
    # Not at once again, and not again the same.
    toggled(keen, 6)
    assert warnings(caplog) == [message]
    assert revisions(keen) == []


def test_a_writer_that_closes_leaves_off_what_it_makes(
    keen: Writer,
    stored: Database[Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    reached, left = threading.Event(), threading.Event()

    def endless(store: Store) -> Generator[str | None, None, Checkpoint]:
        assert store is keen.store
        try:
            while True:
                reached.set()
                yield None
        finally:
            left.set()

    monkeypatch.setattr(checkpoints, "write_checkpoint_in_steps", endless)
    keen.set_rollout("shop.rollout", 40)
    assert reached.wait(PATIENCE_SECONDS)
    keen.close()
    assert left.is_set()
    wait_for_thread(keen)
    assert warnings(caplog) == []
    assert stored.checkpoints.count_documents({}) == 0


def test_a_script_that_does_not_close_its_writer_ends(mongo_uri: str, database: str) -> None:
    script = f"""
from flagkit.writer import Writer
writer = Writer({mongo_uri!r}, "x", actor="x", database={database!r}, checkpoint_every=1)
writer.create_environment()
writer.create({flag("a.one")!r})
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, timeout=60, check=False, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
