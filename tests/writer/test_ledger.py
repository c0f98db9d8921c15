"""The ledger: who did what and why, and that any alteration is found."""

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import combinations
from typing import Any

import pytest
from msgspec.structs import astuple, replace
from pymongo import MongoClient
from pymongo.database import Database

from flagkit._core.cooperative import run_slices
from flagkit._core.model.changes import (
    PolicyChange,
    PolicyId,
    build_genesis_tip,
    build_next_change,
    build_state,
)
from flagkit._core.snapshot import Record, create_snapshot
from flagkit._core.snapshot.builder import ArenaBuilder
from flagkit._core.snapshot.compaction import compact_arena
from flagkit._core.storage.documents import (
    decode_policy_state,
    encode_head,
    encode_ledger,
    encode_policy_document,
)
from flagkit.writer import Retention, Writer
from flagkit.writer.bulk_import import Import
from flagkit.writer.checkpoints import find_checkpoint_problem
from flagkit.writer.ledger import ACTIONS, DECISIONS, EntryFilter
from tests.writer.test_writer import flag

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
    found = list(history.reader.entries())
    assert [(entry.revision, entry.actions, entry.reason) for entry in found] == [
        (1, ("create a.one",), "launch"),
        (2, ("create a.two",), ""),
        (3, ("set rollout a.two to 50 %",), "it went well"),
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
    assert [entry.revision for entry in history.reader.entries(after=3)] == [4, 5, 6]


def test_a_rollout_that_was_set_is_told_with_its_rule(writer: Writer) -> None:
    rules = [{"name": "dach", "when": {"country": "DE"}, "rollout": 10}]
    writer.create(flag("a.one", rules=rules))
    writer.set_rollout("a.one", {"on": 33.3, "off": 66.7}, rule="dach")
    *_, entry = writer.reader.entries()
    assert entry.actions == ("set rollout a.one rule dach to on 33.3 %, off 66.7 %",)


def test_an_unaltered_history_verifies(history: Writer) -> None:
    assert history.reader.verify() == []


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
    "audit lost": lambda db: db.audit.delete_one({"reason": "launch"}),
    "actor edited": lambda db: db.audit.update_one({}, {"$set": {"actor": "mallory"}}),
    "asked edited": lambda db: db.audit.update_one({}, {"$set": {"operations.0.key": "a.two"}}),
    "asked removed": lambda db: db.audit.update_one({}, {"$set": {"operations": []}}),
    "digest removed": lambda db: db.audit.update_one({}, {"$unset": {"digest": 1}}),
    "segment edited": lambda db: db.segments.update_one({}, {"$set": {"policy.by": "id"}}),
    "segment removed": lambda db: db.segments.delete_one({}),
    "members altered": lambda db: db.members.update_one({}, {"$set": {"hashes": b"12345678"}}),
    "members removed": lambda db: db.members.delete_one({}),
    "flag removed": lambda db: db.flags.delete_one({"_id.key": "a.one"}),
}


@pytest.mark.usefixtures("_unvalidated")
@pytest.mark.parametrize("name", TAMPERING)
def test_tampering_is_found(name: str, history: Writer, direct: Database[dict[str, Any]]) -> None:
    TAMPERING[name](direct)
    assert history.reader.verify() != []


LAST = 6


def named(problems: list[str], *revisions: int) -> bool:
    """Tell whether one of some revisions is named in what is wrong."""
    numbers = {int(number) for text in problems for number in re.findall(r"\b[0-9]+\b", text)}
    return bool(numbers & {*revisions}) and any("revision" in text for text in problems)


@pytest.mark.usefixtures("_unvalidated")
def test_whatever_is_altered_in_a_ledger_document_is_found_and_named(
    history: Writer, direct: Database[dict[str, Any]]
) -> None:
    for document in direct.ledger.find():
        place, revision = {"_id": document["_id"]}, document["revision"]
        alterations: list[dict[str, Any]] = [
            {"$set": {"epoch": "another"}},
            {"$set": {"revision": revision + 1}},
            {"$set": {"revision": revision + 0.5}},
            {"$set": {"hash": "0" * 64}},
            {"$set": {"time": NOON}},
            {"$set": {"digests": {"*": "0" * 16}}},
            {"$set": {"request": "another"}},
            {"$set": {"previous_hash": "0" * 64}},
            {"$set": {"policies": []}},
            {"$set": {"policies.0.key": "another"}},
            {"$set": {"policies.0.region": "eu"}},
            {"$set": {"policies.0.after.version": 99}},
            {"$set": {"policies.0.after.policy.owner": "mallory"}},
            {"$set": {"policies.0.before": None, "policies.0.after": None}},
            {"$set": {"policies.0.note": "planted"}},
            {"$set": {"planted": 1}},
            *({"$unset": {name: 1}} for name in document if name != "_id"),
        ]
        for alteration in alterations:
            direct.ledger.update_one(place, alteration)
            changed = direct.ledger.find_one(place)
            assert named(history.reader.verify(), revision), (revision, alteration, changed)
            direct.ledger.replace_one(place, document)
    assert history.reader.verify() == []


def test_whatever_is_removed_from_the_ledger_is_found_and_named(
    history: Writer, direct: Database[dict[str, Any]]
) -> None:
    documents = [*direct.ledger.find(sort=[("_id", 1)])]
    for first in range(LAST - 1):
        for last in range(first, LAST - 1):
            gone = documents[first : last + 1]
            direct.ledger.delete_many({"_id": {"$in": [document["_id"] for document in gone]}})
            one = f"revision {first + 1} is missing"
            several = f"revisions {first + 1} to {last + 1} are missing"
            assert (one if first == last else several) in history.reader.verify()
            direct.ledger.insert_many(gone)
    assert history.reader.verify() == []


def test_a_flag_that_was_altered_is_found_though_it_seems_not_to_be_projected(
    history: Writer, direct: Database[dict[str, Any]]
) -> None:
    history.update(flag("a.one", owner="search"))
    (found,) = direct.flags.find({"_id.key": "a.one"})
    held = decode_policy_state(found)
    assert held is not None
    forged = build_state("a.one", "*", held.version, {**held.policy, "owner": "eve"})
    document = encode_policy_document("production", found["revision"], PolicyChange(None, forged))
    direct.flags.replace_one({"_id": found["_id"]}, document)
    problem = ["a.one (*) is not as the ledger has it"]
    direct.heads.update_one({}, {"$set": {"unprojected": 1}})
    assert history.reader.verify() == problem
    direct.heads.update_one({}, {"$unset": {"unprojected": True}})
    direct.ledger.delete_one({"_id.revision": 7})
    assert history.reader.verify() == problem
    # What is not there yet, and stands as it did before, is no problem.
    direct.flags.replace_one({"_id": found["_id"]}, found)
    assert history.reader.verify() == []


def test_a_newest_document_that_was_removed_is_brought_back_from_the_head(
    history: Writer, direct: Database[dict[str, Any]]
) -> None:
    gone = direct.ledger.find_one_and_delete({"revision": LAST})
    assert history.reader.verify() == []
    history.resume("a.one")
    assert direct.ledger.find_one({"revision": LAST}) == gone


@pytest.mark.usefixtures("_unvalidated")
def test_whatever_is_inserted_into_the_ledger_is_found_and_named(
    history: Writer, direct: Database[dict[str, Any]]
) -> None:
    documents = [*direct.ledger.find()]
    for document in documents:
        for place in (-1, 0, 0.5, 3.5, LAST + 1, LAST + 5, "x", None):
            identity = {"environment": "production", "revision": place}
            for also in ({}, {"revision": place}):
                planted = document | {"_id": identity, "request": "planted"} | also
                direct.ledger.insert_one(planted)
                problems = history.reader.verify()
                itself = re.compile(rf"(?<![\w.-]){re.escape(str(place))}(?![\w.])")
                found = any(map(itself.search, problems))
                assert found or named(problems, document["revision"]), (place, also)
                direct.ledger.delete_one({"_id": identity})
    assert history.reader.verify() == []


def test_whatever_is_reordered_in_the_ledger_is_found_and_named(
    history: Writer, direct: Database[dict[str, Any]]
) -> None:
    documents = [*direct.ledger.find(sort=[("_id", 1)])]
    for one, other in combinations(documents, 2):
        for fields in (["_id"], ["_id", "revision"], ["_id", "revision", "hash", "previous_hash"]):
            swapped = [
                one | {name: other[name] for name in fields},
                other | {name: one[name] for name in fields},
            ]
            direct.ledger.delete_many({"_id": {"$in": [one["_id"], other["_id"]]}})
            direct.ledger.insert_many(swapped)
            assert named(history.reader.verify(), one["revision"], other["revision"])
            direct.ledger.delete_many({"_id": {"$in": [one["_id"], other["_id"]]}})
            direct.ledger.insert_many([one, other])
    assert history.reader.verify() == []


def rewritten(history: Writer, direct: Database[dict[str, Any]], revision: int) -> None:
    """Rewrite all from a revision on, so that everything adds up: head, ledger, audit, flags."""
    changes = [*history.store.iter_changes()]
    tip = changes[revision - 2].tip
    for change in changes[revision - 1 :]:
        request = f"{change.request}x"
        forgery = build_next_change(tip, request, change.tip.time, change.policies)
        (asked,) = history.store.read_requests([change.request]).values()
        direct.audit.insert_one(asked | {"_id": {**asked["_id"], "request": request}})
        direct.ledger.replace_one({"revision": change.revision}, encode_ledger(forgery))
        tip = forgery.tip
        direct.heads.replace_one({}, encode_head(tip, forgery))


def test_a_rewrite_of_everything_is_found_only_against_an_anchor(
    history: Writer, direct: Database[dict[str, Any]]
) -> None:
    anchors = {entry.revision: entry.hash for entry in history.reader.entries()}
    assert history.reader.verify(anchors.items()) == []
    rewritten(history, direct, 4)
    assert history.reader.verify() == []
    assert history.reader.verify([(3, anchors[3])]) == []
    for revision in (4, 5, 6):
        (problem,) = history.reader.verify([(3, anchors[3]), (revision, anchors[revision])])
        assert problem.startswith(f"revision {revision} is not the one whose hash was kept")
    assert len(history.reader.verify([(99, anchors[3])])) == 1


def test_entries_may_be_asked_for_by_who_what_and_when(history: Writer) -> None:
    history.pause("a.one", actor="ana")
    history.change_members("staff", include=["bo"], actor="ana")
    times = {entry.revision: entry.time for entry in history.reader.entries()}
    asked: list[tuple[EntryFilter, list[int]]] = [
        ({}, [1, 2, 3, 4, 5, 6, 7, 8]),
        ({"key": "a.two"}, [2, 3, 4, 5]),
        ({"key": "staff"}, [6, 8]),
        ({"key": "no.such"}, []),
        ({"actor": "ana"}, [7, 8]),
        ({"action": "pause"}, [4, 7]),
        ({"action": "set-rollout"}, [3]),
        ({"action": "create-segment"}, [6]),
        ({"action": "pause", "actor": "ana", "key": None}, [7]),
        ({"since": times[4]}, [n for n in times if times[n] >= times[4]]),
        ({"until": times[4]}, [n for n in times if times[n] < times[4]]),
        ({"since": times[2], "until": times[2] + timedelta(milliseconds=1), "key": "a.two"}, [2]),
    ]
    for wanted, revisions in asked:
        found = [entry.revision for entry in history.reader.entries(**wanted)]
        assert found == revisions, wanted
        backwards = history.reader.entries(newest_first=True, **wanted)
        assert [entry.revision for entry in backwards] == revisions[::-1]


def test_entries_say_what_came_of_it(history: Writer) -> None:
    found = {entry.revision: entry.differences for entry in history.reader.entries()}
    assert found[3] == ("a.two: fallthrough: on 10 -> 50 %, off 90 -> 50 %",)
    assert found[4] == ("a.one: state: active -> paused", "a.two: state: active -> paused")
    assert found[6] == ("segment staff: created", "segment staff: included: 2 keys")
    assert history.pause("a.one").revision == 7
    assert [entry.differences for entry in history.reader.entries(after=6)] == [()]


def test_entries_say_who_has_which_roles_and_limits_then(writer: Writer) -> None:
    with writer.change() as change:
        change.grant("tester", "admin")
        change.grant("ada", "editor", ["shop.", "pay."])
        change.set_limit("actor", capacity=5, rate=0.5)
    with writer.change() as change:
        change.grant("ada", "editor", ["pay."])
        change.grant("ada", "releaser", ["shop."])
        change.lift_limit("actor")
    assert [entry.differences for entry in writer.reader.entries()] == [
        (
            "granted: editor of ada on pay.",
            "granted: editor of ada on shop.",
            "granted: admin of tester on everything",
            'limit of actor added: {"capacity": 5, "rate": 0.5}',
        ),
        (
            "revoked: editor of ada on shop.",
            "granted: releaser of ada on shop.",
            'limit of actor removed: {"capacity": 5, "rate": 0.5}',
        ),
    ]


def test_every_action_has_its_word(history: Writer) -> None:
    history.update(flag("a.one"), reason="x")
    history.edit("a.one", dict)
    history.archive("a.one")
    history.restore("a.one")
    history.resume("a.one")
    history.serve("a.one", "on")
    history.archive("a.one")
    history.delete("a.one")
    history.update_segment({"key": "staff"})
    history.delete_segment("staff")
    history.rollback(to=3)
    documents = Import("production")
    documents.add(flag("a.imported"))
    documents.run(history)
    with history.change() as change:
        change.grant("tester", "admin")
        change.revoke("ada")
        change.set_limit("actor", capacity=5, rate=0.5)
    oldest = next(history.reader.entries())
    history.prune(Retention(ledger_days=1), now=oldest.time + timedelta(days=1))
    for action in set(ACTIONS).difference(DECISIONS):
        (first, *_) = history.reader.entries(action=action)
        words = [sentence.partition(" ")[0] for sentence in first.actions]
        assert action.partition("-")[0] in words


def forged(history: Writer, change: Callable[[dict[PolicyId, Record]], object]) -> None:
    """Publish a checkpoint of the tip as someone would who can make all of it add up."""
    with history.store.open_reader() as reading:
        base = run_slices(reading.read_base())
        records = {record.id: record for record in create_snapshot(base, "*").iter_records()}
        change(records)
        builder = ArenaBuilder()
        for record in sorted(records.values()):
            builder.add(*astuple(record))
        parts = {name: base.get_part(name).tobytes() for name in base.header.parts}
        run_slices(
            history.store.publish_checkpoint(
                run_slices(builder.build(reading.tip, parts)), reading.now
            )
        )


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
    assert history.reader.verify() == []
    forged(history, change)
    (found,) = history.reader.verify()
    assert found.startswith("checkpoint ")
    assert problem in found


def test_a_checkpoint_of_other_members_is_found(history: Writer) -> None:
    with history.store.open_reader() as reading:
        base, states = run_slices(reading.read_base()), [*reading.read_all().values()]
    for parts, problem in (
        ({}, "not the members"),
        (dict.fromkeys(base.header.parts, b"12345678"), "other members"),
    ):
        changed = run_slices(compact_arena(base, base.tip, {}, parts))
        assert problem in str(find_checkpoint_problem(changed, base.tip, states))
    assert find_checkpoint_problem(base, base.tip, states) is None
    assert "not of the history" in str(
        find_checkpoint_problem(base, build_genesis_tip("x", "x", NOON), states)
    )


@pytest.mark.usefixtures("_unvalidated")
@pytest.mark.parametrize("edit", ["damaged", "missing"])
def test_a_checkpoint_that_cannot_be_read_is_found(
    history: Writer, direct: Database[dict[str, Any]], edit: str
) -> None:
    history.reader.write_checkpoint()
    if edit == "missing":
        direct.slices.delete_many({})
    else:
        direct.slices.update_one({}, {"$set": {"content": 5}})
    (found,) = history.reader.verify()
    assert "cannot be used" in found
