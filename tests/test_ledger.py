"""The ledger: who did what and why, and that any alteration is found."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec.structs import astuple, replace
from pymongo import MongoClient
from pymongo.database import Database

from flagkit.changes import PolicyId, genesis
from flagkit.snapshot import Record, snapshot_of, whole
from flagkit.snapshot.building import Builder
from flagkit.snapshot.folding import folded
from flagkit.writer import Writer, entries, verify, write_checkpoint
from flagkit.writer.checkpoints import problem_with
from tests.test_writer import flag

pytestmark = pytest.mark.mongo

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def direct(mongo_uri: str, database: str) -> Iterator[Database[dict[str, Any]]]:
    with MongoClient[dict[str, Any]](mongo_uri) as client:
        yield client[database]


@pytest.fixture
def history(writer: Writer) -> Writer:
    writer.create(flag("a.one"), reason="launch")
    writer.create(flag("a.two", fallthrough={"rollout": 10}))
    writer.set_rollout("a.two", 50, reason="it went well")
    with writer.change(reason="incident 7") as change:
        change.pause("a.one")
        change.pause("a.two")
    writer.rollback("a.two", to=2)
    with writer.change(reason="launch of segments") as change:
        change.create_segment({"key": "staff", "included": ["ada", "grace"]})
        change.change_members("staff", include=["eve"], remove=["ada", "bob"])
    return writer


def test_entries_say_who_did_what_and_why(history: Writer) -> None:
    found = list(entries(history.store))
    assert [(entry.revision, entry.actions, entry.reason) for entry in found] == [
        (1, ("create a.one",), "launch"),
        (2, ("create a.two",), ""),
        (3, ("set rollout a.two to 50",), "it went well"),
        (4, ("pause a.one", "pause a.two"), "incident 7"),
        (5, ("rollback a.two to revision 2",), ""),
        (
            6,
            (
                "create segment staff",
                "change members of staff: 1 included, 0 excluded, 2 removed",
            ),
            "launch of segments",
        ),
    ]
    assert {entry.actor for entry in found} == {"tester"}
    assert [entry.time for entry in found] == sorted(entry.time for entry in found)
    assert [entry.revision for entry in entries(history.store, after=3)] == [4, 5, 6]


def test_an_unaltered_history_verifies(history: Writer) -> None:
    assert verify(history.store) == []


Tampering = Callable[[Any], object]
TAMPERING: dict[str, Tampering] = {
    "altered policy": lambda db: db.ledger.update_one(
        {"revision": 3}, {"$set": {"policies.0.after.policy.state": "paused"}}
    ),
    "altered time": lambda db: db.ledger.update_one(
        {"revision": 2}, [{"$set": {"time": {"$add": ["$time", 1000]}}}]
    ),
    "altered request": lambda db: db.ledger.update_one({"revision": 2}, {"$set": {"request": "x"}}),
    "removed": lambda db: db.ledger.delete_one({"revision": 3}),
    "removed first": lambda db: db.ledger.delete_one({"revision": 1}),
    "emptied": lambda db: db.ledger.delete_many({}),
    "inserted": lambda db: db.ledger.insert_one(
        db.ledger.find_one({"revision": 2})
        | {"_id": {"environment": "production", "revision": 7}, "revision": 7, "request": "y"}
    ),
    "swapped": lambda db: (
        db.ledger.update_one({"revision": 2}, {"$set": {"policies": []}}),
        db.ledger.update_one({"revision": 3}, {"$set": {"policies": []}}),
    ),
    "flag edited": lambda db: db.flags.update_one(
        {"_id.key": "a.one"}, {"$set": {"policy.state": "active"}}
    ),
    "body edited": lambda db: db.flags.update_one({"_id.key": "a.one"}, {"$set": {"body": b"x"}}),
    "seal edited": lambda db: db.flags.update_one({"_id.key": "a.one"}, {"$set": {"seal": "x"}}),
    "body removed": lambda db: db.flags.update_one({"_id.key": "a.one"}, {"$unset": {"body": 1}}),
    "flag ahead": lambda db: db.flags.update_one({"_id.key": "a.one"}, {"$set": {"revision": 99}}),
    "flag planted": lambda db: db.flags.insert_one(
        {
            "_id": {"environment": "production", "key": "b.b", "region": "*"},
            "revision": 99,
            "version": 1,
            "policy": None,
            "hash": None,
        }
    ),
    "head's change edited": lambda db: db.heads.update_one({}, {"$set": {"change.request": "x"}}),
    "head without a change": lambda db: db.heads.update_one({}, {"$set": {"change": None}}),
    "head's change is a number": lambda db: db.heads.update_one({}, {"$set": {"change": 5}}),
    "head's digests are a list": lambda db: db.heads.update_one({}, {"$set": {"digests": [1]}}),
    "ledger without flags": lambda db: db.ledger.update_one(
        {"revision": 2}, {"$unset": {"policies": 1}}
    ),
    "flag without a policy": lambda db: db.flags.update_one(
        {"_id.key": "a.one"}, {"$unset": {"policy": 1}}
    ),
    "head's hash edited": lambda db: db.heads.update_one({}, {"$set": {"hash": "0" * 64}}),
    "ledger renumbered": lambda db: db.ledger.insert_one(
        db.ledger.find_one_and_delete({"revision": 2})
        | {"_id": {"environment": "production", "revision": 2.5}}
    ),
    "segment edited": lambda db: db.segments.update_one({}, {"$set": {"policy.by": "id"}}),
    "segment removed": lambda db: db.segments.delete_one({}),
    "members altered": lambda db: db.members.update_one({}, {"$set": {"hashes": b"12345678"}}),
    "members removed": lambda db: db.members.delete_one({}),
    "flag removed": lambda db: db.flags.delete_one({"_id.key": "a.one"}),
}


@pytest.mark.parametrize("name", TAMPERING)
def test_tampering_is_found(name: str, history: Writer, direct: Database[dict[str, Any]]) -> None:
    TAMPERING[name](direct)
    assert verify(history.store) != []


def forged(history: Writer, change: Callable[[dict[PolicyId, Record]], object]) -> None:
    """Publish a checkpoint of the tip as someone would who can make all of it add up."""
    with history.store.reading() as reading:
        base = whole(reading.base())
        records = {record.id: record for record in snapshot_of(base, "*").records()}
        change(records)
        builder = Builder()
        for record in sorted(records.values()):
            builder.add(*astuple(record))
        parts = {name: base.part(name).tobytes() for name in base.header.parts}
        whole(history.store.publish(whole(builder.finished(reading.tip, parts)), reading.now))


A_ONE: PolicyId = ("*", "a.one")
FORGERIES: dict[str, tuple[Callable[[dict[PolicyId, Record]], object], str]] = {
    "another body": (
        lambda records: records.update({A_ONE: replace(records[A_ONE], body=b"x")}),
        "another a.one",
    ),
    "a flag too few": (lambda records: records.pop(A_ONE), "other flags"),
    "a flag too many": (
        lambda records: records.update({("eu", "x"): Record("eu", "x", 1, 1, b"x")}),
        "other flags",
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_checkpoint_that_was_forged_is_found(name: str, history: Writer) -> None:
    change, problem = FORGERIES[name]
    forged(history, lambda _: None)
    assert verify(history.store) == []
    forged(history, change)
    (found,) = verify(history.store)
    assert found.startswith("checkpoint ")
    assert problem in found


def test_a_checkpoint_of_other_members_is_found(history: Writer) -> None:
    with history.store.reading() as reading:
        base, states = whole(reading.base()), [*reading.all().values()]
    for parts, problem in (
        ({}, "not the members"),
        (dict.fromkeys(base.header.parts, b"12345678"), "other members"),
    ):
        changed = whole(folded(base, base.tip, {}, parts))
        assert problem in str(problem_with(changed, base.tip, states))
    assert problem_with(base, base.tip, states) is None
    assert "not of the history" in str(problem_with(base, genesis("x", "x", NOON), states))


@pytest.mark.parametrize("edit", ["damaged", "missing"])
def test_a_checkpoint_that_cannot_be_read_is_found(
    history: Writer, direct: Database[dict[str, Any]], edit: str
) -> None:
    write_checkpoint(history.store)
    if edit == "missing":
        direct.slices.delete_many({})
    else:
        direct.slices.update_one({}, {"$set": {"content": 5}})
    (found,) = verify(history.store)
    assert "cannot be used" in found
