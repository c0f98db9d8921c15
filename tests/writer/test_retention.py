"""Pruning: what goes, what never does, and that everybody goes on as if nothing had gone."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import Any

import bson
import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace
from pymongo import MongoClient
from pymongo.database import Database

from flagkit import Client
from flagkit._core.cooperative import run_slices as whole_of
from flagkit._core.model import decode, encode
from flagkit._core.model.changes import (
    CUT,
    PolicyChange,
    build_genesis_tip,
    build_next_change,
    build_state,
)
from flagkit._core.storage import pages
from flagkit._core.storage import pruning as storage
from flagkit._core.storage.documents import encode_head, encode_policy_document
from flagkit._core.storage.pages import UNPAGED_POLICIES_MAX
from flagkit._core.storage.validation import VALIDATORS
from flagkit.cli.main import flagkit
from flagkit.errors import (
    AccessDeniedError,
    ConfigurationError,
    HistoryLostError,
    RequestConflictError,
    RevisionNotFoundError,
    StoreError,
)
from flagkit.history import client_at
from flagkit.writer import (
    PruneResult,
    Retention,
    Writer,
)
from flagkit.writer.retention import delete_in_steps, find_deletable_flags
from flagkit.writer.verification import LedgerVerifier, run_verification
from tests.storage.test_checkpoints import assert_same, loads, scanned
from tests.storage.test_pages import created, killed_before
from tests.writer.test_writer import flag

pytestmark = pytest.mark.mongo

PATIENCE_SECONDS = 20.0
DAYS = 90
NOON = datetime(2020, 1, 1, 12, tzinfo=UTC)
WHOLE = Retention(
    archived_days=DAYS, ledger_days=DAYS, audit_days=DAYS, denials_days=DAYS, remains_days=DAYS
)
LEDGER = Retention(ledger_days=DAYS)


@pytest.fixture
def direct(mongo_uri: str, database: str) -> Iterator[Database[dict[str, Any]]]:
    with MongoClient[dict[str, Any]](mongo_uri, tz_aware=True) as client:
        yield client[database]


@pytest.fixture
def history(writer: Writer) -> Writer:
    """Return a writer after twelve revisions, up to the eighth of which is to be cut."""
    writer.create(flag("a.one"), reason="launch", idempotency_key="first")
    writer.create(
        flag("a.two", fallthrough={"rollout": {"weights": {"on": 10, "off": 90}, "salt": "s"}})
    )
    writer.create(
        flag("a.gone", fallthrough={"rollout": {"weights": {"on": 50, "off": 50}, "salt": "old"}})
    )
    with writer.change(idempotency_key="gone") as change:
        change.archive("a.gone")
        change.delete("a.gone")
    with writer.change() as change:
        change.create_segment({"key": "staff", "included": ["ada", "grace"]})
        change.create(
            flag("a.staff", rules=[{"name": "s", "when": {"$segment": "staff"}, "serve": "on"}])
        )
    writer.set_rollout("a.two", 20)
    writer.change_members("staff", include=["eve"])
    writer.create(flag("a.old"))
    # The window begins here.
    writer.set_rollout("a.two", 30, idempotency_key="ninth")
    writer.pause("a.one")
    writer.change_members("staff", remove=["ada"])
    writer.create(flag("a.new"))
    return writer


CUT_AT, LAST = 8, 12


def later(writer: Writer, revision: int = CUT_AT) -> datetime:
    """Return the moment at which a revision, and none after it, is as old as it takes."""
    (change,) = [change for change in writer.store.iter_changes() if change.revision == revision]
    return change.tip.time + timedelta(days=DAYS)


def rows(pruned: list[PruneResult]) -> dict[str, int]:
    return {row.what: row.documents for row in pruned}


def revisions(direct: Database[dict[str, Any]]) -> list[int]:
    return [document["revision"] for document in direct.ledger.find(sort=[("_id", 1)])]


@pytest.fixture
def pruned(history: Writer) -> Writer:
    history.prune(LEDGER, reason="a year is enough", now=later(history))
    return history


# Looking


def test_a_dry_run_tells_what_goes_and_writes_nothing(
    history: Writer, direct: Database[dict[str, Any]]
) -> None:
    def everything() -> dict[str, list[dict[str, Any]]]:
        return {name: [*direct[name].find()] for name in direct.list_collection_names()}

    before = everything()
    found = history.reader.list_prunable(WHOLE, later(history))
    assert everything() == before
    assert rows(found) == {
        "archived flags": 0,
        "ledger": 8,
        "pages": 0,
        "audit": 7,
        "abandoned requests": 0,
        "denials": 0,
        "unreferred members": 0,
        "unreferred pages": 0,
        "checkpoint remains": 0,
    }
    ledger = next(row for row in found if row.what == "ledger")
    cut = [*direct.ledger.find({"revision": {"$lte": CUT_AT}})]
    assert ledger.until.startswith(f"up to revision 8, {cut[-1]['time']:%Y-%m-%d %H:%M:%S} UTC")
    sizes = direct.ledger.aggregate(
        [
            {"$match": {"revision": {"$lte": CUT_AT}}},
            {"$group": {"_id": None, "bytes": {"$sum": {"$bsonSize": "$$ROOT"}}}},
        ]
    )
    assert ledger.bytes == next(iter(sizes))["bytes"]


def test_what_is_young_or_has_no_number_stays(
    history: Writer, direct: Database[dict[str, Any]]
) -> None:
    assert history.prune(Retention(), now=later(history)) == []
    history.prune(Retention(denials_days=1, remains_days=1), now=later(history))
    assert set(rows(history.prune(WHOLE)).values()) == {0}
    assert revisions(direct) == [*range(1, LAST + 1)]
    assert direct.audit.count_documents({}) == LAST
    with pytest.raises(ConfigurationError, match="ledger_days is 0"):
        history.prune(Retention(ledger_days=0))
    with pytest.raises(ConfigurationError, match="audit_days is -1"):
        history.reader.list_prunable(Retention(audit_days=-1))


# The ledger


def test_the_ledger_is_cut_once_and_that_stands_in_it(
    pruned: Writer, direct: Database[dict[str, Any]]
) -> None:
    before = revisions(direct)
    assert before == [*range(CUT_AT + 1, LAST + 2)]
    proof = run_verification(pruned.store)
    assert (proof.problems, proof.after) == ((), CUT_AT)
    (*_, last) = pruned.reader.entries()
    assert (last.revision, last.actor, last.reason) == (LAST + 1, "tester", "a year is enough")
    assert last.actions == (f"prune the ledger up to revision {CUT_AT}",)
    (line,) = last.differences
    assert line.startswith(f"ledger pruned up to revision {CUT_AT}, of ")
    again = later(pruned, CUT_AT + 1) - timedelta(milliseconds=1)
    assert rows(pruned.prune(LEDGER, now=again)) == {"ledger": 0, "pages": 0}
    assert revisions(direct) == before


def test_it_is_cut_again_further_on(pruned: Writer, direct: Database[dict[str, Any]]) -> None:
    pruned.archive("a.old")
    pruned.delete("a.old")
    pruned.create(flag("a.gone"))
    assert rows(pruned.prune(LEDGER, now=later(pruned, LAST + 3))) == {"ledger": 7, "pages": 0}
    assert revisions(direct) == [LAST + 4, LAST + 5]
    assert pruned.reader.verify() == []
    pruned.create(flag("a.old"))
    assert pruned.reader.verify() == []
    with pruned.store.open_reader() as reading:
        versions = {key: state.version for (_, key), state in reading.read_all().items()}
    assert versions["a.gone"] == 2
    assert versions["a.old"] == 3


def test_the_ledger_stays_from_the_older_of_two_checkpoints_on(
    history: Writer, direct: Database[dict[str, Any]]
) -> None:
    history.reader.write_checkpoint()
    history.resume("a.one")
    newer = history.reader.write_checkpoint()
    history.pause("a.one")
    assert newer.tip.revision == LAST + 1
    history.prune(LEDGER, now=later(history, LAST + 1))
    # They were older than what is cut: others took their place.
    kept = [made.tip.revision for made in history.store.list_checkpoints()]
    assert kept == [LAST + 2, LAST + 2]
    assert revisions(direct)[0] == LAST + 2
    assert history.reader.verify() == []


def test_the_newest_revision_stays_however_old(
    history: Writer, direct: Database[dict[str, Any]]
) -> None:
    history.prune(LEDGER, now=later(history, LAST) + timedelta(days=1))
    assert revisions(direct) == [LAST, LAST + 1]
    assert history.reader.verify() == []


def test_a_ledger_that_does_not_prove_is_not_cut(
    history: Writer, direct: Database[dict[str, Any]]
) -> None:
    now = later(history)
    direct.ledger.update_one({"revision": 3}, {"$set": {"policies": []}})
    before = [*direct.ledger.find()]
    looks: list[Callable[[], object]] = [
        lambda: history.reader.list_prunable(LEDGER, now),
        lambda: history.prune(LEDGER, now=now),
    ]
    for look in looks:
        with pytest.raises(StoreError, match=r"nothing is pruned.*revision 3 was altered"):
            look()
    assert [*direct.ledger.find()] == before


# Going on


def test_writers_go_on(pruned: Writer) -> None:
    pruned.set_rollout("a.two", 40)
    pruned.update(flag("a.old", description="edited"))
    pruned.pause("a.old")
    pruned.update_segment({"key": "staff", "included": ["ada"]})
    with pruned.store.open_reader() as reading:
        states = reading.read_all()
    assert states["*", "a.two"].version == 4
    assert states["*", "a.old"].version == 3
    assert pruned.reader.verify() == []


def test_a_flag_that_was_deleted_before_goes_on_from_its_version_and_salt(pruned: Writer) -> None:
    pruned.create(flag("a.gone", fallthrough={"rollout": 20}))
    with pruned.store.open_reader() as reading:
        state = reading.read_all()["*", "a.gone"]
    assert state.version == 2
    assert state.policy["fallthrough"]["rollout"]["salt"] == "old"
    assert pruned.reader.verify() == []


def test_requests_that_are_sent_again_return_the_first_commit(pruned: Writer) -> None:
    """Inside the window from the ledger, before it from the audit."""
    assert pruned.set_rollout("a.two", 30, idempotency_key="ninth").revision == CUT_AT + 1
    first = pruned.create(flag("a.one"), reason="launch", idempotency_key="first")
    assert (first.revision, first.request) == (1, "first")
    with pruned.change(idempotency_key="gone") as change:
        change.archive("a.gone")
        change.delete("a.gone")
    assert change.commit is not None
    assert change.commit.revision == 4
    with pytest.raises(RequestConflictError):
        pruned.create(flag("a.other"), idempotency_key="first")
    assert pruned.store.read_tip().revision == LAST + 1


def test_a_rollback_to_the_cut_finds_what_a_large_change_changed_first(writer: Writer) -> None:
    keys = [f"many.{i}" for i in range(UNPAGED_POLICIES_MAX + 1)]
    with writer.change() as change:
        for key in keys:
            change.create(flag(key, description="before the cut"))
    writer.create(flag("a.new"))
    writer.prune(LEDGER, now=later(writer, 1))
    with writer.change() as change:
        for key in keys:
            change.update(flag(key, description="on pages"))
    writer.update(flag(keys[0], description="after that"))
    with writer.change() as change:
        change.rollback(keys[0], to=1)
        change.rollback(keys[1], to=1)
    with writer.store.open_reader() as reading:
        found = reading.find_flags(keys[:3]).values()
    assert [state.policy["description"] for state in found] == [
        "before the cut",
        "before the cut",
        "on pages",
    ]


def test_a_rollback_goes_back_to_the_cut_and_no_further(pruned: Writer) -> None:
    pruned.rollback("a.two", to=CUT_AT)
    pruned.rollback("a.old", to=CUT_AT)
    with pruned.store.open_reader() as reading:
        weights = reading.read_all()["*", "a.two"].policy["fallthrough"]["rollout"]["weights"]
    assert weights == {"on": 20, "off": 80}
    beyond: list[Callable[[], object]] = [
        lambda: pruned.rollback("a.two", to=CUT_AT - 1),
        lambda: pruned.rollback("a.old", to=1),
        lambda: pruned.rollback(to=CUT_AT - 1),
        lambda: pruned.rollback_segment("staff", to=5),
    ]
    for ask in beyond:
        with pytest.raises(RevisionNotFoundError, match="pruned up to revision 8"):
            ask()
    with pytest.raises(RevisionNotFoundError, match="did not exist at revision 8"):
        pruned.rollback("a.new", to=CUT_AT)
    assert pruned.reader.verify() == []


def test_an_environment_is_rolled_back_to_the_cut(
    pruned: Writer, mongo_uri: str, database: str
) -> None:
    pruned.rollback(to=CUT_AT)
    with pruned.store.open_reader() as reading:
        states = {key: state for (_, key), state in reading.read_all().items() if key[0] != "@"}
    assert sorted(states) == ["a.old", "a.one", "a.staff", "a.two", "staff"]
    assert states["a.one"].policy.get("state", "active") == "active"
    with Client(mongo_uri, environment="production", database=database) as client:
        client.wait_ready(PATIENCE_SECONDS)
        assert client.is_enabled("a.staff", "ada")
    assert pruned.reader.verify() == []


def test_stale_flags_are_told_as_before(history: Writer) -> None:
    now = later(history, LAST) + timedelta(days=DAYS)
    asked = [(days, history.reader.stale_flags(days, now)) for days in (1, DAYS, 2 * DAYS)]
    history.prune(LEDGER, now=later(history))
    assert [(days, history.reader.stale_flags(days, now)) for days, _ in asked] == asked
    assert [flag.key for flag in asked[2][1]] == ["a.new", "a.old", "a.staff"][: len(asked[2][1])]


# Clients


def test_clients_converge(history: Writer, mongo_uri: str, database: str, tmp_path: Path) -> None:
    """One that is connected, one that comes back with an older file, and new ones."""
    follow = partial(Client, mongo_uri, environment="production", database=database)
    path = tmp_path / "flags.fk"
    with follow(snapshot_path=path) as asleep:
        asleep.wait_for(LAST, PATIENCE_SECONDS)
    history.set_rollout("a.two", 50)
    with follow() as connected:
        connected.wait_for(LAST + 1, PATIENCE_SECONDS)
        history.prune(LEDGER, now=later(history, LAST + 1))
        last = history.pause("a.two").revision
        connected.wait_for(last, PATIENCE_SECONDS)
        with follow(snapshot_path=path) as back:
            assert back.status().revision == LAST
            back.wait_for(last, PATIENCE_SECONDS)
            (from_checkpoint,) = loads(history, mongo_uri)
            from_scan = scanned(history, mongo_uri)
            assert_same(from_checkpoint, from_scan)
            for client in (connected, back):
                assert client.snapshot is not None
                assert client.snapshot.tip == from_scan.tip
                assert {*client.snapshot.iter_records()} == {*from_scan.iter_records()}


# Tampering after a cut

Tampering = Callable[[Any], object]
TAMPERING: dict[str, tuple[Tampering, str]] = {
    "altered": (
        lambda db: db.ledger.update_one({"revision": 9}, {"$set": {"policies": []}}),
        "revision 9 was altered",
    ),
    "first removed": (lambda db: db.ledger.delete_one({"revision": 9}), "revision 9 is missing"),
    "removed": (lambda db: db.ledger.delete_one({"revision": 10}), "revision 10 is missing"),
    "more cut off": (
        lambda db: db.ledger.delete_many({"revision": {"$lte": 11}}),
        "revisions 9 to 11 are missing",
    ),
    "inserted": (
        lambda db: db.ledger.insert_one(
            db.ledger.find_one({"revision": 9})
            | {"_id": {"environment": "production", "revision": 8}, "revision": 8, "request": "y"}
        ),
        "revision 8 was altered",
    ),
    "renumbered": (
        lambda db: db.ledger.insert_one(
            db.ledger.find_one_and_delete({"revision": 10})
            | {"_id": {"environment": "production", "revision": 9.5}},
            bypass_document_validation=True,
        ),
        "",
    ),
    "flag edited": (
        lambda db: db.flags.update_one({"_id.key": "a.old"}, {"$set": {"policy.owner": "m"}}),
        "a.old",
    ),
    "flag removed": (lambda db: db.flags.delete_one({"_id.key": "a.old"}), "where the ledger was"),
    "flag planted": (
        lambda db: db.flags.insert_one(
            db.flags.find_one({"_id.key": "a.old"})
            | {"_id": {"environment": "production", "key": "a.two", "region": "eu"}}
        ),
        "",
    ),
    "tombstone removed": (
        lambda db: db.flags.delete_one({"_id.key": "a.gone"}),
        "where the ledger was",
    ),
    "tombstone edited": (
        lambda db: db.flags.update_one({"_id.key": "a.gone"}, {"$set": {"last.policy.off": "on"}}),
        "a.gone",
    ),
    "tombstone of another version": (
        lambda db: db.flags.update_one({"_id.key": "a.gone"}, {"$set": {"version": 7}}),
        "",
    ),
    "cut edited": (
        lambda db: db.access.update_one({"_id.key": "@cut"}, {"$set": {"policy.revision": 9}}),
        "@cut",
    ),
    "cut removed": (lambda db: db.access.delete_one({"_id.key": "@cut"}), "@access"),
}


def test_tampering_after_a_cut_is_found(pruned: Writer, direct: Database[dict[str, Any]]) -> None:
    collections = ("ledger", "flags", "access")
    before = {name: [*direct[name].find()] for name in collections}
    for name, (tamper, problem) in TAMPERING.items():
        tamper(direct)
        problems = pruned.reader.verify()
        assert problems, name
        assert any(problem in found for found in problems), (name, problems)
        for collection, documents in before.items():
            direct[collection].delete_many({})
            direct[collection].insert_many(documents)
    assert pruned.reader.verify() == []


def test_a_cut_that_was_forged_is_found(pruned: Writer, direct: Database[dict[str, Any]]) -> None:
    """Whoever makes a revision of a cut must say what was there, and how it led to what is kept."""
    with pruned.store.open_reader() as reading:
        cut = reading.history.cut
        assert cut is not None
        walk = LedgerVerifier(reading, 10)
        walk.run()
        assert walk.cut is not None
    further = walk.cut
    forgeries = {
        "another hash": (replace(further, tip=replace(further.tip, hash="0" * 64)), "does not"),
        "other contents": (replace(further, contents="0" * 64), "is not as it was then"),
        "other digests": (
            replace(further, tip=replace(further.tip, digests=cut.tip.digests)),
            "is not as it was then",
        ),
        "another epoch": (replace(further, tip=replace(further.tip, epoch="x")), "does not"),
    }
    direct.ledger.delete_many({"revision": {"$lte": 10}})
    head = direct.heads.find_one({})
    assert head is not None
    for name, (forged, problem) in forgeries.items():
        with pruned.store.open_reader() as reading:
            held = reading.access[CUT]
            after = build_state(CUT[1], CUT[0], held.version + 1, forged.policy)
            change = build_next_change(
                reading.tip, "forged", reading.now, [PolicyChange(held, after)]
            )
            tip = reading.tip
        assert pruned.store.compare_and_set(tip, change)
        pruned.store.project(change)
        problems = pruned.reader.verify()
        assert any(problem in found for found in problems), (name, problems)
        direct.heads.replace_one({}, head)
        direct.ledger.delete_one({"revision": change.revision})
        document = encode_policy_document("production", LAST + 1, PolicyChange(None, held))
        direct.access.replace_one({"_id.key": CUT[1]}, document)


def test_an_anchor_from_before_the_cut_is_held_to_nothing_and_said_so(history: Writer) -> None:
    hashes = {change.revision: change.tip.hash for change in history.store.iter_changes()}
    history.prune(LEDGER, now=later(history))
    assert history.reader.verify([(CUT_AT, hashes[CUT_AT]), (10, hashes[10])]) == []
    (problem,) = history.reader.verify([(3, hashes[3])])
    assert "revision 3 was pruned, up to revision 8" in problem
    (problem,) = history.reader.verify([(CUT_AT, "0" * 64)])
    assert "revision 8 is not the one whose hash was kept" in problem


def test_writers_do_not_build_upon_what_was_changed_past_them(
    pruned: Writer, direct: Database[dict[str, Any]]
) -> None:
    place = {"_id.key": "a.old"}
    before = direct.flags.find_one(place)
    assert before is not None
    for edit in ({"policy.owner": "mallory"}, {"revision": CUT_AT + 1}):
        direct.flags.update_one(place, {"$set": edit})
        with pytest.raises(StoreError, match="past the writer"):
            pruned.pause("a.old")
        direct.flags.replace_one(place, before)
    direct.flags.update_one({"_id.key": "a.gone"}, {"$unset": {"last": 1}})
    with pytest.raises(StoreError, match="past the writer"):
        pruned.create(flag("a.gone"))


def test_a_ledger_that_somebody_else_cut_is_found(
    history: Writer, direct: Database[dict[str, Any]]
) -> None:
    direct.ledger.delete_many({"revision": {"$lte": CUT_AT}})
    assert f"revisions 1 to {CUT_AT} are missing" in history.reader.verify()


# Flags


def test_flags_that_were_archived_long_ago_are_deleted(writer: Writer) -> None:
    def archived(key: str, **more: Any) -> dict[str, Any]:
        return flag(key, state="archived", **more)

    needs = {name: [{"flag": name, "variants": ["on"]}] for name in ("b.kept", "b.deep", "b.base")}
    with writer.change() as change:
        change.create(archived("b.base"))
        change.create(archived("b.upper", prerequisites=needs["b.base"]))
        change.create(archived("b.deep"))
        change.create(archived("b.kept", prerequisites=needs["b.deep"]))
        change.create(flag("b.live", prerequisites=needs["b.kept"]))
        change.create(archived("b.half"))
        change.create(flag("b.half", region="eu"))
        change.create(archived("b.young"))
        change.create(archived("b.regional", region="eu"))
        change.create(archived("b.regional"))
    long_ago = later(writer, 1)
    writer.restore("b.young")
    writer.archive("b.young")
    # Whose last change the ledger has no more is known all the same.
    writer.prune(LEDGER, now=later(writer, 2))
    wanted = Retention(archived_days=2 * DAYS)
    now = long_ago + timedelta(days=DAYS)
    assert rows(writer.reader.list_prunable(wanted, now)) == {"archived flags": 4}
    assert rows(writer.prune(wanted, reason="over", now=now)) == {"archived flags": 4}
    with writer.store.open_reader() as reading:
        assert sorted({key for _, key in reading.read_all() if key[0] != "@"}) == [
            "b.deep",
            "b.half",
            "b.kept",
            "b.live",
            "b.young",
        ]
    (*_, last) = writer.reader.entries()
    assert last.actions == (
        "delete b.upper",
        "delete b.base",
        "delete b.regional",
        "delete b.regional in eu",
    )
    assert last.reason == "over"
    assert writer.reader.verify() == []
    assert rows(writer.prune(wanted, now=now)) == {"archived flags": 0}


def test_a_flag_that_moved_meanwhile_stays(writer: Writer) -> None:
    with writer.change() as change:
        for key in ("b.one", "b.two", "b.three"):
            change.create(flag(key, state="archived"))
    with writer.store.open_reader() as reading:
        found = find_deletable_flags(reading, reading.now)
    writer.restore("b.two")
    gone = whole_of(delete_in_steps(writer.change, found, "over"))
    assert [flag.key for flag in gone] == ["b.one", "b.three"]
    assert writer.reader.verify() == []


# Who and why, denials, and what nothing refers to


def test_audit_goes_after_the_ledger_and_later_if_wanted(
    history: Writer, direct: Database[dict[str, Any]]
) -> None:
    now = later(history)
    history.prune(Retention(ledger_days=DAYS, audit_days=2 * DAYS), now=now)
    assert direct.audit.count_documents({}) == LAST + 1
    wanted = Retention(audit_days=DAYS)
    assert rows(history.reader.list_prunable(wanted, now)) == {"audit": 7, "abandoned requests": 0}
    assert rows(history.prune(wanted, reason="tidy", now=now))["audit"] == 7
    (*_, last) = history.reader.entries()
    assert last.reason == "tidy"
    assert last.actions[0].startswith("prune audit before ")
    # The key is free again.
    again = history.create(flag("a.again"), idempotency_key="first")
    assert again.revision == LAST + 3
    assert history.reader.verify() == []


def test_requests_that_were_abandoned_go_and_others_stay(
    history: Writer, direct: Database[dict[str, Any]], mongo_uri: str
) -> None:
    with (
        MongoClient[dict[str, Any]](mongo_uri) as mine,
        mine.start_session() as session,
        session.start_transaction(),
    ):
        waiting = history.in_transaction(session).pause("a.old")
    content = {"actor": "a", "reason": "", "operations": [], "digest": "x"}
    for name, days in (("old", 100), ("young", 10)):
        sent = later(history) - timedelta(days=days)
        history.store.add_request(name, {**content, "sent": sent})
    direct.audit.update_many({"_id.request": {"$nin": ["old", "young"]}}, {"$set": {"sent": NOON}})
    direct.ledger.delete_one({"revision": LAST})
    wanted = Retention(audit_days=DAYS)
    now = later(history)
    assert rows(history.prune(wanted, now=now)) == {"audit": 0, "abandoned requests": 1}
    assert direct.audit.find_one({"_id.request": "old"}) is None
    assert direct.audit.find_one({"_id.request": "young"}) is not None
    assert waiting.commit().revision == LAST + 1
    assert all(entry.actor for entry in history.reader.entries())


def test_denials_go_and_that_stands_in_the_ledger(history: Writer) -> None:
    told = {"action": "edit", "key": "a.one", "reason": "", "operations": list[Any]()}
    history.store.denials.add(NOON, {**told, "actor": "eve"})
    history.store.denials.add(later(history), {**told, "actor": "mallory"})
    wanted = Retention(denials_days=DAYS)
    assert rows(history.reader.list_prunable(wanted, later(history))) == {"denials": 1}
    assert rows(history.prune(wanted, reason="old", now=later(history))) == {"denials": 1}
    assert [denial["actor"] for denial in history.store.denials.read_all()] == ["mallory"]
    (*_, last) = history.reader.entries()
    assert last.reason == "old"
    assert last.actions[0].startswith("prune denials before ")
    before = history.store.read_tip()
    assert rows(history.prune(wanted, now=later(history))) == {"denials": 0}
    assert history.store.read_tip() == before


def test_members_that_nothing_refers_to_go_in_the_second_run(
    history: Writer, direct: Database[dict[str, Any]], mongo_uri: str
) -> None:
    """And none that a kept change, or the newest, or a segment refers to."""
    wanted = Retention(remains_days=1)
    with history.store.open_reader() as reading:
        now = reading.now
    days = [now + timedelta(days=2 * number) for number in range(1, 4)]
    history.store.add_parts({sha256(b"12345678").hexdigest(): b"12345678"})
    count = direct.members.count_documents({})
    assert rows(history.prune(wanted, now=days[0]))["unreferred members"] == 0
    assert rows(history.prune(wanted, now=days[1]))["unreferred members"] == 1
    assert direct.members.count_documents({}) == count - 1
    history.prune(LEDGER, now=later(history, LAST))
    assert rows(history.prune(wanted, now=days[1]))["unreferred members"] == 0
    gone = rows(history.prune(wanted, now=days[2]))["unreferred members"]
    assert gone == count - 1 - 1
    assert history.reader.verify() == []
    (snapshot,) = loads(history, mongo_uri)
    assert not snapshot.has_missing_parts


def test_members_of_what_is_pending_or_proposed_stay(history: Writer, mongo_uri: str) -> None:
    with MongoClient[dict[str, Any]](mongo_uri) as mine, mine.start_session() as session:
        with session.start_transaction():
            asked = {"key": "a.asked", "included": ["asked"]}
            pending = history.in_transaction(session).create_segment(asked)
        with history.proposals.propose() as change:
            change.create_segment({"key": "a.proposed", "included": ["proposed"]})
    wanted, start = Retention(remains_days=1), later(history)
    for day in range(3):
        history.prune(wanted, now=start + timedelta(days=2 * day))
    pending.commit()
    history.proposals.approve(change.proposal or "", actor="ada")
    history.proposals.apply(change.proposal or "")
    assert history.reader.verify() == []


def test_members_that_are_stored_again_are_not_removed(
    history: Writer, direct: Database[dict[str, Any]]
) -> None:
    name = sha256(b"12345678").hexdigest()
    history.store.add_parts({name: b"12345678"})
    with history.store.open_reader() as reading:
        now = reading.now
    pruning = history.store.pruner
    pruning.mark_unreferenced("members", set(), now)
    pruning.mark_unreferenced("members", {name}, now)
    assert not direct.members.find_one({"_id.part": name, "unreferred": {"$exists": True}})
    pruning.mark_unreferenced("members", set(), now)
    found = [*chain(*pruning.iter_unreferenced("members", set(), now + timedelta(days=1)))]
    assert name in [item.id["part"] for item in found]
    history.store.add_parts({name: b"12345678"})
    pruning.remove("members", found, unreferred={"$lt": now + timedelta(days=1)})
    assert direct.members.find_one({"_id.part": name}) is not None


def test_what_is_left_of_checkpoints_goes(
    history: Writer, direct: Database[dict[str, Any]]
) -> None:
    made = history.reader.write_checkpoint()
    left = {"environment": "production", "checkpoint": "20260101T000000Z-x", "slice": 0}
    direct.slices.insert_one({"_id": left, "content": b"x"})
    wanted = Retention(remains_days=1)
    assert rows(history.reader.list_prunable(wanted))["checkpoint remains"] == 1
    assert rows(history.prune(wanted))["checkpoint remains"] == 1
    assert {found["_id"]["checkpoint"] for found in direct.slices.find()} == {made.id}


# Large changes

MANY = 20
"""Flags of a change that is on pages for their number, with the fixture `low_bound`."""


@pytest.fixture
def low_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put changes of more than ten flags on pages; test_pages.py has the bound itself."""
    monkeypatch.setattr(pages, "UNPAGED_POLICIES_MAX", 10)


@pytest.fixture
def large(writer: Writer, low_bound: None) -> Writer:  # noqa: ARG001 - changes are on pages
    """Return a writer after two large changes before revision 3, where it is cut, and one after."""
    created(writer, MANY)
    update_many(writer, "second")
    writer.pause("a.f1")
    update_many(writer, "fourth")
    writer.archive("a.f2")
    return writer


LARGE_CUT = 3


def update_many(writer: Writer, description: str) -> None:
    with writer.change() as change:
        for i in range(MANY):
            change.update(flag(f"a.f{i}", description=description))


def descriptions(writer: Writer, *keys: str) -> list[str]:
    with writer.store.open_reader() as reading:
        states = reading.find_flags(keys)
    return [states["*", key].policy.get("description", "") for key in keys]


def page_names(direct: Database[dict[str, Any]]) -> set[str]:
    return {page["_id"]["page"] for page in direct.pages.find({}, {"_id": True})}


def named_pages(direct: Database[dict[str, Any]]) -> set[str]:
    """Return the pages that the ledger names."""
    return {name for change in direct.ledger.find() for name in change.get("pages", ())}


def test_pages_go_with_the_changes_that_are_on_them(
    large: Writer, direct: Database[dict[str, Any]], mongo_uri: str
) -> None:
    sizes = [
        (page["projected"], len(bson.encode(page)))
        for page in direct.pages.find(sort=[("projected", 1)])
    ]
    assert [revision for revision, _ in sizes] == [1, 2, 4]
    now = later(large, LARGE_CUT)
    (_, found) = large.reader.list_prunable(LEDGER, now)
    assert (found.what, found.documents) == ("pages", 2)
    assert found.bytes == sum(size for revision, size in sizes if revision <= LARGE_CUT)
    with Client(mongo_uri, environment="production", database=direct.name) as connected:
        connected.wait_for(5, PATIENCE_SECONDS)
        assert rows(large.prune(LEDGER, now=now)) == {"ledger": 3, "pages": 2}
        assert page_names(direct) == named_pages(direct)
        assert len(page_names(direct)) == 1
        assert large.reader.verify() == []
        last = large.pause("a.f9").revision
        connected.wait_for(last, PATIENCE_SECONDS)
        (from_checkpoint,) = loads(large, mongo_uri)
        assert_same(from_checkpoint, scanned(large, mongo_uri))
        assert connected.snapshot is not None
        assert {*connected.snapshot.iter_records()} == {*from_checkpoint.iter_records()}
    ask = partial(client_at, mongo_uri, "production", database=direct.name)
    assert [ask(at=revision).is_enabled("a.f2") for revision in (4, 5)] == [True, False]
    with pytest.raises(HistoryLostError, match=r"pruned\. Ask for revision 4"):
        ask(at=2)


def test_a_rollback_goes_back_to_the_cut_through_pages(large: Writer) -> None:
    """What was there at it, the first change after it has found, which is a large one."""
    large.prune(LEDGER, now=later(large, LARGE_CUT))
    assert descriptions(large, "a.f1", "a.f7") == ["fourth", "fourth"]
    large.rollback("a.f7", to=LARGE_CUT)
    large.rollback("a.f1", to=LARGE_CUT)
    assert descriptions(large, "a.f1", "a.f7") == ["second", "second"]
    with pytest.raises(RevisionNotFoundError, match="pruned up to revision 3"):
        large.rollback("a.f7", to=2)
    large.rollback(to=LARGE_CUT)
    assert set(descriptions(large, *(f"a.f{i}" for i in range(MANY)))) == {"second"}
    with large.store.open_reader() as reading:
        assert reading.read_all()["*", "a.f1"].policy["state"] == "paused"
    # Again, where what is cut anew was large, and the tip is.
    assert rows(large.prune(LEDGER, now=later(large, 6)))["pages"] == 1
    assert large.reader.verify() == []
    assert [entry.revision for entry in large.reader.entries(key="a.f7")] == [7]
    assert [entry.revision for entry in large.reader.entries(key="a.f8")] == [9]
    assert large.update(flag("a.f8", description="on")).revision == 11


@pytest.mark.usefixtures("low_bound")
def test_flags_that_a_large_change_deleted_go_on_from_their_versions(writer: Writer) -> None:
    created(writer, MANY, state="archived")
    with writer.change() as change:
        for i in range(1, MANY):
            change.delete(f"a.f{i}")
    writer.create(flag("b.last"))
    assert rows(writer.prune(LEDGER, now=later(writer, 2)))["pages"] == 2
    writer.create(flag("a.f7"))
    with writer.store.open_reader() as reading:
        assert reading.read_all()["*", "a.f7"].version == 2
    assert writer.reader.verify() == []


@pytest.mark.usefixtures("low_bound")
@pytest.mark.parametrize("step", ["project", "project_own_pages"])
def test_the_ledger_is_not_cut_past_what_is_not_projected(
    step: str, writer: Writer, direct: Database[dict[str, Any]]
) -> None:
    """A dry run leaves it; who prunes brings it to an end first."""
    writer.create(flag("b.first"))
    killed_before(step, writer, lambda: created(writer, MANY))
    # At the tip it stays anyhow, be it in the ledger or not.
    tip = later(writer, 1) + timedelta(hours=1)
    assert rows(writer.reader.list_prunable(LEDGER, tip))["pages"] == 0
    writer.pause("b.first")
    now = later(writer, 2)
    ledger, found = writer.reader.list_prunable(LEDGER, now)
    assert (ledger.documents, found.documents) == (1, 0)
    assert direct.flags.count_documents({"revision": 2}) == 0
    assert rows(writer.prune(LEDGER, now=now)) == {"ledger": 2, "pages": 1}
    assert direct.flags.count_documents({"revision": 2}) == MANY
    assert "unprojected" not in next(direct.heads.find())
    assert writer.reader.verify() == []
    writer.pause("a.f7")


@pytest.mark.usefixtures("low_bound")
@pytest.mark.parametrize("step", ["project", "project_own_pages"])
def test_a_tip_that_is_not_projected_is_read_after_a_cut(
    step: str, writer: Writer, direct: Database[dict[str, Any]], mongo_uri: str
) -> None:
    writer.create(flag("a.f3"))
    writer.create(flag("b.first"))
    writer.prune(LEDGER, now=later(writer, 1))
    killed_before(step, writer, lambda: update_or_create(writer))
    assert writer.reader.verify() == []
    with writer.store.open_reader() as reading:
        then = reading.history.find_state(("*", "a.f3"), 1)
    assert then is not None
    assert "description" not in then.policy
    for days in range(2):
        writer.prune(Retention(remains_days=1), now=NOON + timedelta(days=36_500 + 2 * days))
    assert named_pages(direct) <= page_names(direct) != set()
    with Client(mongo_uri, environment="production", database=direct.name) as client:
        client.wait_for(4, PATIENCE_SECONDS)
        assert client.snapshot is not None
        assert len(client.snapshot.list_keys()) == MANY + 1
    writer.rollback("a.f3", to=1)
    assert writer.reader.verify() == []


def update_or_create(writer: Writer) -> None:
    with writer.change() as change:
        for i in range(MANY):
            (change.update if i == 3 else change.create)(flag(f"a.f{i}", description="large"))


def test_pages_that_nothing_refers_to_go_in_the_second_run(
    large: Writer, direct: Database[dict[str, Any]]
) -> None:
    """Those of a writer that died before its commit; never those of a change, or of the head."""
    kept = page_names(direct)
    killed_before("compare_and_set", large, lambda: update_many(large, "abandoned"))
    (abandoned,) = page_names(direct) - kept
    wanted, start = Retention(remains_days=1), later(large, 5)
    assert rows(large.prune(wanted, now=start))["unreferred pages"] == 0
    assert [
        page["_id"]["page"] for page in direct.pages.find({"unreferred": {"$exists": True}})
    ] == [abandoned]
    # A writer that stores it again takes the mark away.
    killed_before("compare_and_set", large, lambda: update_many(large, "abandoned"))
    assert direct.pages.count_documents({"unreferred": {"$exists": True}}) == 0
    for days, count in ((2, 0), (4, 1)):
        found = rows(large.prune(wanted, now=start + timedelta(days=days)))
        assert found["unreferred pages"] == count
    assert page_names(direct) == kept
    assert large.reader.verify() == []


def test_pages_that_a_later_change_is_on_stay(
    large: Writer, direct: Database[dict[str, Any]]
) -> None:
    pruning = large.store.pruner
    assert len([*chain(*pruning.iter_pages(LARGE_CUT))]) == 2
    first = direct.ledger.find_one({"revision": 1})
    assert first is not None
    direct.ledger.update_one({"revision": 4}, {"$push": {"pages": first["pages"][0]}})
    assert len([*chain(*pruning.iter_pages(LARGE_CUT))]) == 1


# Who may


def test_it_takes_an_admin_of_the_environment(
    history: Writer, direct: Database[dict[str, Any]], mongo_uri: str, database: str
) -> None:
    with history.change() as change:
        change.grant("dana@example.com", "admin")
        change.grant("ada@example.com", "releaser")
    before = revisions(direct)
    now = later(history)
    with (
        Writer(mongo_uri, "production", actor="ada@example.com", database=database) as ada,
        pytest.raises(AccessDeniedError, match="admin"),
    ):
        ada.prune(LEDGER, now=now)
    assert revisions(direct) == before
    with Writer(mongo_uri, "production", actor="dana@example.com", database=database) as dana:
        assert rows(dana.prune(LEDGER, now=now)) == {"ledger": CUT_AT, "pages": 0}
    assert history.reader.verify() == []


KINDS = {
    "archived": Retention(archived_days=1),
    "ledger": LEDGER,
    "audit": Retention(audit_days=1),
    "denials": Retention(denials_days=1),
    "remains": Retention(remains_days=1),
    "all": Retention(
        archived_days=1, ledger_days=DAYS, audit_days=1, denials_days=1, remains_days=1
    ),
}


@pytest.mark.parametrize("actor", ["nobody", "ada@example.com", "bob@example.com"])
@pytest.mark.parametrize("kind", KINDS)
def test_who_is_no_admin_of_everything_writes_nothing_whatever_is_to_go(
    kind: str, actor: str, history: Writer, direct: Database[dict[str, Any]], mongo_uri: str
) -> None:
    """Not even a mark, a checkpoint, or what the ledger has of policies."""
    with history.change() as change:
        change.grant("tester", "admin")
        change.grant("ada@example.com", "releaser")
        change.grant("bob@example.com", "admin", ["a."])
        change.archive("a.old")
    history.store.add_parts({sha256(b"12345678").hexdigest(): b"12345678"})
    content = {"actor": "a", "reason": "", "operations": [], "digest": "x", "sent": NOON}
    history.store.add_request("abandoned", content)
    told = {"action": "edit", "key": "a.one", "reason": "", "operations": list[Any]()}
    history.store.denials.add(NOON, {**told, "actor": "eve"})
    now = later(history) if kind in {"ledger", "all"} else later(history, LAST)

    def held() -> dict[str, list[Any]]:
        return {name: [*direct[name].find(sort=[("_id", 1)])] for name in VALIDATORS}

    with Writer(mongo_uri, "production", actor=actor, database=direct.name) as acting:
        before = held()
        logged = len(history.reader.denials())
        with pytest.raises(AccessDeniedError, match="may not grant") as denied:
            acting.prune(KINDS[kind], reason="tidy", now=now)
        assert denied.value.roles == ("admin",)
        after = held()
        del before["denials"], after["denials"]
        assert after == before
        (*_, last) = history.reader.denials()
        assert (last.actor, last.action, last.reason) == (actor, "grant", "tidy")
        assert len(history.reader.denials()) == logged + 1
    assert rows(history.prune(KINDS[kind], now=now))


def test_a_role_that_is_revoked_on_the_way_stops_the_pruning(
    history: Writer, direct: Database[dict[str, Any]], mongo_uri: str
) -> None:
    with history.change() as change:
        change.grant("tester", "admin")
        change.grant("dana@example.com", "admin")
    before = revisions(direct)
    with Writer(mongo_uri, "production", actor="dana@example.com", database=direct.name) as dana:
        steps = dana.prune_in_steps(LEDGER, reason="", now=later(history))
        next(steps)
        with history.change() as change:
            change.revoke("dana@example.com")
        with pytest.raises(AccessDeniedError):
            for _ in steps:
                pass
    assert revisions(direct) == [*before, LAST + 2]


# Killed on the way


def test_killed_anywhere_and_run_again_it_is_done(
    writer: Writer, direct: Database[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken off after each of its steps, with all that goes in batches of three.

    There are large changes, too, and their writers died before they were projected.
    """
    monkeypatch.setattr(storage, "BATCH_DOCUMENTS", 3)
    monkeypatch.setattr("flagkit.writer.retention.PAUSE_SECONDS_MIN", 0.0)
    monkeypatch.setattr(pages, "UNPAGED_POLICIES_MAX", 1)
    monkeypatch.setattr(pages, "PAGE_POLICIES", 1)
    writer.create(flag("b.f0"), idempotency_key="b0")
    writer.create(flag("b.f1", state="archived"))
    writer.delete("b.f1")
    writer.create(flag("b.f2"))
    writer.create(flag("b.f3"))
    whole = Retention(ledger_days=DAYS, denials_days=DAYS, remains_days=DAYS)
    step, done, first, met = 0, False, writer.store.read_tip().revision, set[str]()
    while not done:
        killed_before("project_own_pages", writer, partial(update_two, writer, step))
        (writer.resume if step % 2 else writer.pause)("b.f0")
        met |= page_names(direct)
        last = writer.store.read_tip().revision
        steps = writer.prune_in_steps(whole, reason="", now=later(writer, last))
        done = sum(1 for _ in islice(steps, step)) < step
        steps.close()
        # As it was left: all is proved, told and gone on from.
        assert writer.reader.verify() == []
        assert writer.create(flag("b.f0"), idempotency_key="b0").revision == 1
        step += 1
    assert step > 6
    writer.prune(whole, now=later(writer, writer.store.read_tip().revision))
    assert revisions(direct)[0] > first
    assert page_names(direct) == named_pages(direct)
    assert len(met - page_names(direct)) > 6
    writer.update(flag("b.f2"))
    assert writer.reader.verify() == []


def update_two(writer: Writer, step: int) -> None:
    with writer.change() as change:
        for key in ("b.f2", "b.f3"):
            change.update(flag(key, description=f"step {step}"))


# The command


@pytest.fixture
def aged(writer: Writer, direct: Database[dict[str, Any]]) -> Writer:
    """Return a writer after five revisions that were made a year ago, and one of today."""
    tip = build_genesis_tip(
        "production", "e", datetime.now(UTC).replace(microsecond=0) - timedelta(days=365)
    )
    direct.heads.replace_one({}, encode_head(tip, None))
    for number in range(5):
        asked = {"sent": tip.time, "actor": "ada", "reason": "", "operations": [], "digest": "x"}
        writer.store.add_request(f"r{number}", asked)
        state = build_state(f"b.f{number}", "*", 1, encode(decode(flag(f"b.f{number}"))))
        change = build_next_change(tip, f"r{number}", tip.time, [PolicyChange(None, state)])
        assert writer.store.compare_and_set(tip, change)
        writer.store.project(change)
        tip = change.tip
    writer.pause("b.f0")
    return writer


def test_the_command_shows_first_and_removes_when_it_is_told(
    aged: Writer, mongo_uri: str, database: str
) -> None:
    def run(*arguments: str) -> Result:
        place = ("--uri", mongo_uri, "--environment", "production", "--database", database)
        return CliRunner().invoke(flagkit, ["prune", *place, *arguments])

    days = ("--ledger-days", "30", "--audit-days", "400")
    dry = run(*days)
    assert dry.exit_code == 0, dry.output
    assert dry.stdout.startswith("what ")
    assert "ledger" in dry.stdout
    assert "up to revision 5, " in dry.stdout
    assert "dry run on production: nothing was removed" in dry.stdout
    assert aged.store.read_tip().revision == 6
    told = json.loads(run(*days, "--output", "json").stdout)
    assert (told["applied"], told["revision"]) == (False, 6)
    assert {part["what"]: part["documents"] for part in told["parts"]} == {
        "ledger": 5,
        "pages": 0,
        "audit": 0,
        "abandoned requests": 0,
    }
    applied = run(*days, "--apply", "--actor", "dana@example.com", "--reason", "a month is enough")
    assert applied.exit_code == 0, applied.output
    tip = aged.store.read_tip()
    assert applied.stdout.endswith(
        f"production is at revision 7\nanchor: {tip.revision}:{tip.hash}\n"
    )
    (_, last) = aged.reader.entries()
    assert (last.actor, last.reason) == ("dana@example.com", "a month is enough")
    again = json.loads(run(*days, "--apply", "--actor", "dana", "--output", "json").stdout)
    assert {part["documents"] for part in again["parts"]} == {0}
    assert again["revision"] == 7


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "say what"),
        (("--ledger-days", "0"), "--ledger-days"),
        (("--ledger-days", "30", "--apply"), "--actor"),
    ],
)
def test_the_command_says_what_it_lacks(
    arguments: tuple[str, ...], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLAGKIT_ACTOR", raising=False)
    done = CliRunner().invoke(flagkit, ["prune", *arguments])
    assert done.exit_code == 2
    assert problem in done.output


@pytest.mark.usefixtures("pruned")
def test_verify_says_from_where_on_it_proved(mongo_uri: str, database: str) -> None:
    place = ("--uri", mongo_uri, "--environment", "production", "--database", database)
    done = CliRunner().invoke(flagkit, ["ledger", "verify", *place])
    assert done.exit_code == 0
    assert "all is well from revision 9, after what was pruned, up to revision 13\n" in done.output
    told = CliRunner().invoke(flagkit, ["ledger", "verify", *place, "--output", "json"])
    assert json.loads(told.output)["after"] == CUT_AT
    shown = CliRunner().invoke(flagkit, ["ledger", "show", *place, "--key", "a.old"])
    assert shown.stdout == "No such change.\n"
    assert shown.stderr == "What came up to revision 8 was pruned.\n"
