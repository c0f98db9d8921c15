"""Large changes: on pages, whole for whoever gets them, and in nobody's way."""

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymongo import MongoClient
from pymongo.database import Database

from flagkit import Client
from flagkit._core.model.changes import (
    FORMAT,
    PolicyChange,
    PolicyState,
    build_genesis_tip,
    build_next_change,
    encode_list_header,
)
from flagkit._core.source import Route
from flagkit._core.storage import pages
from flagkit._core.storage.pages import PAGE_POLICIES
from flagkit._core.storage.source import MongoSource
from flagkit.errors import HistoryLostError, StoreError
from flagkit.writer import Writer
from tests.writer.test_writer import flag, policy

MANY = 700
"""Flags of a change that is on pages for their number."""


@pytest.fixture
def direct(mongo_uri: str, database: str) -> Iterator[Database[dict[str, Any]]]:
    with MongoClient[dict[str, Any]](mongo_uri) as client:
        yield client[database]


def created(writer: Writer, count: int = MANY, **more: Any) -> int:
    """Create some flags in one revision, and return it."""
    with writer.change(reason="many") as change:
        for i in range(count):
            change.create(flag(f"a.f{i}", **more))
    assert change.commit is not None
    return change.commit.revision


def killed_before(step: str, writer: Writer, make: Callable[[], object]) -> None:
    """Make a change with a writer that dies at a step of its store."""

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(writer.store, step, die)
        with pytest.raises(KeyboardInterrupt):
            make()


def keys_of(client: Client) -> int:
    assert client.snapshot is not None
    return len(client.snapshot.list_keys())


def policies(writer: Writer) -> dict[Any, bytes]:
    with writer.store.open_reader() as reading:
        return {identity: state.packed for identity, state in reading.read_all().items()}


SIDES = st.none() | st.tuples(st.integers(1, 3), st.binary(max_size=100))
CHANGES = st.lists(
    st.builds(
        lambda key, *sides: PolicyChange(
            *(None if side is None else PolicyState(key, "*", *side) for side in sides)
        ),
        st.sampled_from("abcdef"),
        st.tuples(st.integers(1, 3), st.binary(max_size=100)),
        SIDES,
    ),
    max_size=12,
)


@given(CHANGES, st.integers(1, 600), st.integers(1, 5))
def test_a_change_that_is_split_and_joined_is_the_same(
    changed: list[PolicyChange], page_bytes: int, page_policies: int
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pages, "PAGE_BYTES", page_bytes)
        patched.setattr(pages, "PAGE_POLICIES", page_policies)
        patched.setattr(pages, "UNPAGED_POLICIES_MAX", -1)
        found = pages.split_pages(tuple(changed))
    contents = {name: page.content for name, page in found.items()}
    # What stands twice stands on pages of one name.
    if len({*changed}) == len(changed):
        assert pages.join_pages(found, contents) == tuple(changed)
    for name, page in found.items():
        assert hashlib.sha256(page.content).hexdigest() == name
        assert 0 < len(page.policies) <= page_policies
        assert pages.count_bytes(page.policies[:-1]) < page_bytes


@pytest.mark.parametrize("length", [0, 1, 15, 16, 999, 1000, 1001, 65_535, 65_536])
def test_a_hash_is_of_one_list_however_many_pieces_it_is_made_of(length: int) -> None:
    tip = build_genesis_tip("production", "e" * 32, datetime(2026, 11, 21, tzinfo=UTC))
    state = PolicyState("a.a", "*", 1, b"\x80")
    changed = [PolicyChange(None, state)] * length
    change = build_next_change(tip, "request", tip.time, changed)
    whole = [
        FORMAT,
        *("production", "e" * 32, 1, change.tip.time, sorted(change.tip.digests.items())),
        *("request", tip.hash, [["*", "a.a", None, [1, b"\x80"]]] * length),
    ]
    assert change.tip.hash == hashlib.sha256(msgspec.msgpack.encode(whole)).hexdigest()
    assert encode_list_header(length) == msgspec.msgpack.encode([None] * length)[: -length or None]


@pytest.mark.mongo
def test_a_change_of_megabytes_is_on_pages_and_the_head_stays_small(
    writer: Writer, direct: Database[dict[str, Any]]
) -> None:
    before = writer.create(flag("a.small")).revision
    revision = created(writer, 12, description="x" * 600_000)
    (head,) = direct.heads.find()
    assert head["change"].keys() == {"request", "previous_hash", "pages"}
    assert len(head["change"]["pages"]) == direct.pages.count_documents({"projected": revision})
    assert direct.flags.count_documents({}) == 13
    assert policy(writer, "a.f11")["description"] == "x" * 600_000
    assert writer.reader.verify() == []
    writer.rollback(to=before)
    assert [key for _, key in policies(writer)] == ["a.small"]
    writer.rollback(to=revision)
    assert policy(writer, "a.f3")["description"] == "x" * 600_000
    assert writer.reader.verify() == []


@pytest.mark.mongo
def test_the_history_of_a_flag_is_found_on_pages(writer: Writer) -> None:
    created(writer)
    writer.pause("a.f5")
    writer.rollback(to=0)
    writer.rollback("a.f5", to=2)
    found = [entry.revision for entry in writer.reader.entries(key="a.f5")]
    assert found == [1, 2, 3, 4]
    assert [entry.revision for entry in writer.reader.entries(key="a.f6")] == [1, 3]
    with writer.store.open_reader() as reading:
        assert reading.history.find_author(("*", "a.f6")) is not None
        (then, gone) = (reading.history.find_state(("*", "a.f6"), revision) for revision in (2, 3))
    assert then is not None
    assert gone is None
    assert writer.create(flag("a.f6")).revision == 5
    assert writer.reader.verify() == []


@pytest.mark.mongo
@pytest.mark.parametrize("step", ["add_pages", "compare_and_set"])
def test_a_writer_that_dies_before_the_commit_leaves_nothing_that_counts(
    step: str, writer: Writer
) -> None:
    writer.create(flag("a.small"))
    killed_before(step, writer, lambda: created(writer))
    assert writer.store.read_tip().revision == 1
    assert list(policies(writer)) == [("*", "a.small")]
    assert writer.reader.verify() == []
    assert created(writer) == 2


@pytest.mark.mongo
@pytest.mark.parametrize("step", ["project", "project_own_pages"])
def test_nobody_waits_for_the_projection_of_a_writer_that_died(
    step: str,
    writer: Writer,
    direct: Database[dict[str, Any]],
    mongo_uri: str,
    database: str,
) -> None:
    writer.create(flag("a.f1"))
    writer.create(flag("b.f", prerequisites=[{"flag": "a.f1", "variants": ["on"]}]))

    def change_many() -> None:
        with writer.change() as change:
            change.update(flag("a.f1", description="late"))
            for i in range(2, MANY):
                change.create(flag(f"a.f{i}"))

    killed_before(step, writer, change_many)
    writer.pause("a.f7")
    assert direct.flags.count_documents({"revision": 3}) == 0
    (head,) = direct.heads.find()
    assert head["unprojected"] == 3
    # All that reads, reads through it.
    assert policy(writer, "a.f1")["description"] == "late"
    assert policy(writer, "a.f7")["state"] == "paused"
    assert len(policies(writer)) == MANY
    assert writer.reader.verify() == []
    with Client(mongo_uri, environment="production", database=database) as client:
        client.wait_ready(30)
        assert client.status().revision == 4
        assert keys_of(client) == MANY
        assert not client.is_enabled("a.f7", default=True)
    assert writer.reader.write_checkpoint().flags == MANY
    # And whoever makes the next large change finishes it.
    assert created_again(writer) == 5
    assert direct.flags.count_documents({"revision": 3}) == MANY - 2
    writer.resume("a.f7")
    assert "unprojected" not in next(direct.heads.find())
    assert writer.reader.verify() == []


def created_again(writer: Writer) -> int:
    with writer.change() as change:
        for i in range(MANY):
            change.create(flag(f"c.f{i}"))
    assert change.commit is not None
    return change.commit.revision


@pytest.mark.mongo
def test_a_change_that_lags_for_long_is_projected_by_who_comes_by(
    writer: Writer, direct: Database[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flagkit.writer.commit.LAG_MAX", timedelta(-1))
    killed_before("project_own_pages", writer, lambda: created(writer, PAGE_POLICIES + 200))
    for expected in (PAGE_POLICIES, PAGE_POLICIES + 200):
        writer.pause("a.f7")
        assert direct.flags.count_documents({}) == expected
    writer.resume("a.f7")
    assert "unprojected" not in next(direct.heads.find())
    assert writer.reader.verify() == []


def damaged(direct: Database[dict[str, Any]], how: str) -> str:
    """Remove or alter a page, and return its name."""
    page = next(iter(direct.pages.find().sort("_id.page", 1)))
    if how == "removed":
        direct.pages.delete_one({"_id": page["_id"]})
    else:
        altered = page["content"].replace(b"search", b"sEarch", 1)
        direct.pages.update_one({"_id": page["_id"]}, {"$set": {"content": altered}})
    return str(page["_id"]["page"])


@pytest.mark.mongo
def test_a_page_that_hides_what_is_on_it_is_found(
    writer: Writer, direct: Database[dict[str, Any]]
) -> None:
    created(writer, owner="search")
    assert writer.reader.verify() == []
    page = direct.pages.find_one({})
    assert page is not None
    direct.pages.update_one({"_id": page["_id"]}, {"$pop": {"keys": 1}})
    name = page["_id"]["page"]
    assert writer.reader.verify() == [
        f"the page {name} of a change has other keys than what is on it"
    ]


@pytest.mark.mongo
@pytest.mark.parametrize("how", ["removed", "altered"])
def test_a_page_that_is_not_as_it_was_is_found_and_refused(
    how: str, writer: Writer, direct: Database[dict[str, Any]], mongo_uri: str, database: str
) -> None:
    writer.create(flag("b.first"))
    created(writer, owner="search")
    writer.pause("b.first")
    name = damaged(direct, how)
    (problem,) = writer.reader.verify()
    assert problem.startswith("revision 2 of the ledger: the page ")
    assert name in problem

    async def follow() -> None:
        source = MongoSource(mongo_uri, environment="production", region="*", database=database)
        try:
            loaded = await source.load(Route.PRIMARY)
            first = next(writer.store.iter_changes())
            assert loaded.tip.revision == 3
            with pytest.raises(HistoryLostError, match=name):
                await source.catch_up(first.tip, Route.PRIMARY)
        finally:
            await source.close()

    asyncio.run(follow())
    with pytest.raises(StoreError):
        writer.pause("a.f1")


@pytest.mark.mongo
@pytest.mark.parametrize("way", ["stream", "file", "checkpoint"])
def test_clients_follow_a_large_change(
    way: str, writer: Writer, mongo_uri: str, database: str, tmp_path: Path
) -> None:
    writer.create(flag("a.small"))
    if way == "checkpoint":
        writer.reader.write_checkpoint()

    def client() -> Client:
        return Client(
            mongo_uri,
            environment="production",
            database=database,
            snapshot_path=tmp_path / "flags" if way == "file" else None,
        )

    if way == "file":
        with client() as before:
            before.wait_ready(30)
    follower = client() if way == "stream" else None
    if follower is not None:
        follower.wait_ready(30)
    created(writer)
    revision = writer.pause("a.f3").revision
    with follower or client() as after:
        after.wait_for(revision, 30)
        assert keys_of(after) == MANY + 1
        assert not after.is_enabled("a.f3", default=True)
        assert after.is_enabled("a.f4")
