"""The ledger: who did what and why, and that any alteration is found."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database

from flagkit.writer import Writer, entries, verify
from tests.test_writer import flag

pytestmark = pytest.mark.mongo


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
