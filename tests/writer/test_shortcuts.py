"""Workflows: what a flag's state may become, what a deletion leaves, edits, and who did it."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args

import pytest
from pymongo import MongoClient
from pymongo.database import Database

from flagkit._core.model.changes import build_next_change
from flagkit._core.model.documents import State
from flagkit.client.client import Client
from flagkit.errors import (
    BrokenReferenceError,
    FlagExistsError,
    FlagkitError,
    FlagNotFoundError,
    InvalidArgumentError,
    InvalidDocumentError,
    RequestConflictError,
    SegmentNotFoundError,
    StoreError,
    VersionConflictError,
)
from flagkit.writer import Commit, Writer
from flagkit.writer.operations import AS_BEFORE, AS_WRITTEN, TRANSITIONS, FlagState, SetState
from flagkit.writer.planning import plan
from tests.writer.test_writer import flag, needing, policy, state

pytestmark = pytest.mark.mongo

KEY = "shop.search"
WAYS: dict[FlagState, tuple[str, ...]] = {
    "active": (),
    "paused": ("pause",),
    "archived": ("archive",),
    "absent": ("archive", "delete"),
}
"""How a flag that is active comes to stand so."""


@pytest.fixture
def direct(mongo_uri: str, database: str) -> Iterator[Database[dict[str, Any]]]:
    with MongoClient[dict[str, Any]](mongo_uri) as client:
        yield client[database]


def standing(writer: Writer) -> FlagState:
    with writer.store.open_reader() as reading:
        found = reading.find_flags([KEY]).get(("*", KEY))
    return "absent" if found is None else found.policy["state"]


@pytest.mark.parametrize("start", get_args(FlagState))
@pytest.mark.parametrize("verb", TRANSITIONS)
def test_the_table_of_transitions_is_what_the_writer_does(
    verb: str, start: FlagState, writer: Writer
) -> None:
    writer.create(flag())
    asks: dict[str, Callable[[], Commit]] = {
        "create": lambda: writer.create(flag(state="paused")),
        "update": lambda: writer.update(flag(state="paused")),
        "pause": lambda: writer.pause(KEY),
        "resume": lambda: writer.resume(KEY),
        "archive": lambda: writer.archive(KEY),
        "restore": lambda: writer.restore(KEY),
        "delete": lambda: writer.delete(KEY),
        "rollback": lambda: writer.rollback(KEY, to=1),
    }
    for step in WAYS[start]:
        asks[step]()
    ask = asks[verb]
    after = TRANSITIONS[verb].get(start)
    if after is None:
        with pytest.raises((InvalidDocumentError, FlagExistsError, FlagNotFoundError)) as refused:
            ask()
        assert KEY in str(refused.value)
    else:
        ask()
    expected = {AS_WRITTEN: "paused", AS_BEFORE: "active", None: start}
    assert standing(writer) == expected.get(after, after)
    assert writer.reader.verify() == []


def test_states_and_standings_are_the_same_but_for_absence() -> None:
    assert {*get_args(FlagState)} == {*get_args(State), "absent"}
    assert all(row.keys() <= {*get_args(FlagState)} for row in TRANSITIONS.values())


def test_a_deleted_flag_is_gone_for_clients_and_goes_on_when_created_again(
    writer: Writer, mongo_uri: str, database: str
) -> None:
    writer.create(flag())
    writer.archive(KEY)
    with Client(mongo_uri, environment="production", database=database) as client:
        client.wait_for(writer.delete(KEY).revision)
        assert client.evaluate(KEY, {}, default=True).error_code == "FLAG_NOT_FOUND"
        client.wait_for(writer.create(flag()).revision)
        assert client.is_enabled(KEY, {})
    assert state(writer).version == 3
    assert writer.reader.verify() == []


def test_a_flag_created_again_keeps_its_salts_and_keys(writer: Writer) -> None:
    def rollout(percent: float, **more: Any) -> dict[str, Any]:
        return {"rollout": {"weights": {"on": percent, "off": 100 - percent}, **more}}

    rule = {"name": "beta", "when": {"plan": "pro"}}
    writer.create(flag(rules=[rule | rollout(10, salt="wave")], fallthrough=rollout(5)))
    with writer.change(reason="cleaning up") as change:
        change.archive(KEY)
        change.delete(KEY)
    again = rule | {"rollout": {"weights": {"off": 80, "on": 20}}}
    writer.create(flag(rules=[again], fallthrough=rollout(5, salt="new")))
    stored = policy(writer)
    assert stored["rules"][0]["rollout"] == {
        "salt": "wave",
        "weights": {"off": 80, "on": 20},
        "intervals": [[10_000, "on"], [90_000, "off"], [100_000, "on"]],
    }
    assert stored["fallthrough"]["rollout"]["salt"] == "new"
    assert state(writer).version == 2


def test_a_flag_may_be_deleted_and_created_in_one_change(writer: Writer) -> None:
    writer.create(flag())
    with writer.change() as change:
        change.archive(KEY)
        change.delete(KEY)
        change.create(flag(owner="team-search"))
    assert (state(writer).version, policy(writer)["owner"]) == (2, "team-search")
    with writer.change() as change:
        change.create(flag("a.brief", state="archived"))
        change.delete("a.brief")
    assert [entry.revision for entry in writer.reader.entries()] == [1, 2, 3]
    assert writer.reader.verify() == []


def test_a_tombstone_that_was_removed_is_missed(
    writer: Writer, direct: Database[dict[str, Any]]
) -> None:
    writer.create(flag(state="archived"))
    writer.delete(KEY)
    writer.create(flag("another.flag"))
    direct.flags.delete_one({"_id.key": KEY})
    with pytest.raises(StoreError, match="past the writer"):
        writer.create(flag())
    assert writer.reader.verify() != []


def test_a_deletion_that_is_not_projected_yet_is_seen(writer: Writer) -> None:
    writer.create(flag(state="archived"))
    before = state(writer)
    with writer.store.open_reader() as reading:
        planned = plan([SetState(key=KEY, verb="delete")], reading, 1, {})
    change = build_next_change(reading.tip, "the-dead-one", reading.now, planned.changes)
    assert writer.store.compare_and_set(reading.tip, change)
    with writer.store.open_reader() as reading:
        assert reading.history.find_deleted([("*", KEY), ("*", "no.such")]) == {("*", KEY): before}
    writer.create(flag())
    assert state(writer).version == 2


def test_what_others_rest_on_is_not_deleted(writer: Writer) -> None:
    writer.create(flag("a.base", state="archived"))
    writer.create(needing("a.upper", "a.base"))
    with pytest.raises(BrokenReferenceError, match=r"a\.upper.*'a\.base' does not exist any more"):
        writer.delete("a.base")
    with writer.change() as change:
        change.update(flag("a.upper"))
        change.delete("a.base")
    writer.create(flag("a.base"))


def test_an_override_is_deleted_without_the_flag_of_all_regions(writer: Writer) -> None:
    writer.create(flag())
    writer.create(flag(region="eu", state="archived"))
    writer.delete(KEY, region="eu")
    assert standing(writer) == "active"


def test_a_segment_that_a_flag_refers_to_is_not_deleted(writer: Writer) -> None:
    writer.create_segment({"key": "staff", "included": ["ada"]})
    when = {"$nor": [{"$or": [{"$segment": ["staff"]}, {"country": "AT"}]}]}
    writer.create(flag(rules=[{"name": "r", "when": when, "serve": "off"}]))
    for_sale = flag("shop.sale", rules=[{"name": "r", "when": {"plan": "$segment"}, "serve": "on"}])
    writer.create(for_sale)
    with pytest.raises(BrokenReferenceError, match=r"'shop\.search': rules: .*'staff'"):
        writer.delete_segment("staff")
    with writer.change() as change:
        change.delete_segment("staff")
        change.update(flag())
    writer.create_segment({"key": "staff"})
    with writer.store.open_reader() as reading:
        assert reading.find_segments(["staff"])["@segments", "staff"].version == 2
    assert writer.reader.verify() == []


def test_a_flag_is_not_written_for_a_segment_that_goes_with_the_same_change(
    writer: Writer,
) -> None:
    writer.create_segment({"key": "staff"})
    when = {"$segment": "staff"}

    def change_both() -> None:
        with writer.change() as change:
            change.create(flag(rules=[{"name": "r", "when": when, "serve": "off"}]))
            change.delete_segment("staff")

    with pytest.raises(BrokenReferenceError, match="does not exist any more"):
        change_both()
    with pytest.raises(SegmentNotFoundError, match="no segment 'none'"):
        writer.delete_segment("none")


def test_where_segments_are_referred_to_is_held_to_the_policies(
    writer: Writer, direct: Database[dict[str, Any]]
) -> None:
    writer.create_segment({"key": "staff"})
    rules = [{"name": "r", "when": {"$segment": "staff"}, "serve": "off"}]
    writer.create(flag(rules=rules))
    direct.flags.update_one({}, {"$unset": {"segments": 1}})
    assert writer.reader.verify() != []


def test_edits_by_many_at_once_all_count(writer: Writer, mongo_uri: str, database: str) -> None:
    writer.create(flag(tags=[]))

    def edit(number: int) -> None:
        def tagged(document: dict[str, Any]) -> dict[str, Any]:
            return document | {"tags": [*document.get("tags", ()), f"t{number}"]}

        with Writer(mongo_uri, "production", actor=f"a{number}", database=database) as other:
            for _ in range(5):
                other.edit(KEY, tagged)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(edit, range(4)))
    assert sorted(policy(writer)["tags"]) == sorted(f"t{i}" for i in range(4) for _ in range(5))
    assert state(writer).version == 21


def test_an_edit_sees_the_document_as_people_write_it(writer: Writer) -> None:
    writer.create(flag(fallthrough={"rollout": 10}))
    writer.pause(KEY)

    def widened(document: dict[str, Any]) -> dict[str, Any]:
        assert document["fallthrough"] == {"rollout": {"weights": {"on": 10, "off": 90}}}
        document["fallthrough"]["rollout"]["weights"] = {"on": 25, "off": 75}
        return document

    writer.edit(KEY, widened, reason="it went well")
    assert policy(writer)["fallthrough"]["rollout"]["intervals"][0] == [25_000, "on"]
    assert policy(writer)["state"] == "paused"
    assert "widened" in [*writer.reader.entries()][-1].actions[0]


def test_an_edit_is_no_way_to_another_key_and_fails_whole(writer: Writer) -> None:
    writer.create(flag())
    for field, value in (("key", "a.b"), ("region", "eu"), ("environment", "staging")):
        more = {field: value}
        with pytest.raises(InvalidDocumentError, match=field):
            writer.edit(KEY, more.__ror__)
    with pytest.raises(ZeroDivisionError):
        writer.edit(KEY, lambda _: {"key": 1 // 0})
    assert writer.store.read_tip().revision == 1


def test_an_edit_that_is_sent_again_does_not_ask_the_function_again(writer: Writer) -> None:
    writer.create(flag(tags=[]))

    def tagged(document: dict[str, Any]) -> dict[str, Any]:
        return document | {"tags": [*document.get("tags", ()), "x"]}

    first = writer.edit(KEY, tagged, idempotency_key="order-1")
    assert writer.edit(KEY, tagged, idempotency_key="order-1") == first
    assert policy(writer)["tags"] == ["x"]


def test_a_conflict_says_who_was_first_and_when(writer: Writer) -> None:
    writer.create(flag())
    commit = writer.update(flag(owner="me"), actor="ana")
    asks: list[Callable[[], Commit]] = [
        lambda: writer.update(flag(), expected_version=1),
        lambda: writer.archive(KEY, expected_version=1),
        lambda: writer.restore(KEY, expected_version=1),
        lambda: writer.delete(KEY, expected_version=1),
    ]
    for ask in asks:
        with pytest.raises(VersionConflictError, match=r"at version 2, which 'ana' wrote") as found:
            ask()
        error = found.value
        assert (error.expected, error.actual, error.actor) == (1, 2, "ana")
        assert error.time == commit.time


def test_a_conflict_with_nobody_on_record_is_told_all_the_same(
    writer: Writer, direct: Database[dict[str, Any]]
) -> None:
    writer.create(flag())
    direct.audit.delete_many({})
    with pytest.raises(VersionConflictError, match="is at version 1, expected 9") as found:
        writer.update(flag(), expected_version=9)
    assert (found.value.actor, found.value.time) == (None, None)


def test_a_change_may_name_its_own_actor(writer: Writer) -> None:
    writer.create(flag(), actor="ana", reason="launch")
    with writer.change(actor="bo") as change:
        change.pause(KEY)
    writer.resume(KEY)
    found = [(entry.actor, entry.reason) for entry in writer.reader.entries()]
    assert found == [("ana", "launch"), ("bo", ""), ("tester", "")]
    writer.pause(KEY, idempotency_key="k", actor="ana")
    with pytest.raises(RequestConflictError):
        writer.pause(KEY, idempotency_key="k", actor="bo")


def test_each_workflow_can_be_sent_again(writer: Writer) -> None:
    document = flag(fallthrough={"rollout": 10})
    asks: dict[str, Callable[[str], FlagkitError | Commit]] = {
        "create": lambda key: writer.create(document, idempotency_key=key),
        "set": lambda key: writer.set_rollout(KEY, 50, idempotency_key=key),
        "pause": lambda key: writer.pause(KEY, idempotency_key=key),
        "resume": lambda key: writer.resume(KEY, idempotency_key=key),
        "archive": lambda key: writer.archive(KEY, idempotency_key=key),
        "restore": lambda key: writer.restore(KEY, idempotency_key=key),
        "archive again": lambda key: writer.archive(KEY, idempotency_key=key),
        "delete": lambda key: writer.delete(KEY, idempotency_key=key),
        "rollback": lambda key: writer.rollback(KEY, to=2, idempotency_key=key),
        "segment": lambda key: writer.create_segment({"key": "s"}, idempotency_key=key),
        "delete segment": lambda key: writer.delete_segment("s", idempotency_key=key),
        "all": lambda key: writer.rollback(to=1, idempotency_key=key),
    }
    first = {name: ask(name) for name, ask in asks.items()}
    assert {name: ask(name) for name, ask in asks.items()} == first
    assert writer.store.read_tip().revision == len(asks)
    assert writer.reader.verify() == []


DACH = {"name": "dach", "when": {"country": "DE"}, "serve": "off"}


def test_a_flag_that_serves_one_variant_is_told_to_serve_another(writer: Writer) -> None:
    writer.create(flag(rules=[DACH]))
    writer.serve(KEY, "off", reason="not yet")
    assert policy(writer)["fallthrough"] == {"serve": "off"}
    writer.serve(KEY, variant=True, rule="dach", expected_version=2)
    assert policy(writer)["rules"] == [DACH | {"serve": "on"}]
    writer.serve(KEY, variant=False, rule="dach")
    assert policy(writer)["rules"] == [DACH]
    told = [entry.actions[0] for entry in writer.reader.entries()]
    assert told[1:] == [
        "serve shop.search off",
        "serve shop.search true in rule dach",
        "serve shop.search false in rule dach",
    ]
    assert [entry.revision for entry in writer.reader.entries(action="serve")] == [2, 3, 4]
    assert writer.reader.verify() == []


@pytest.mark.parametrize(
    ("document", "asked", "problem"),
    [
        (flag(state="paused"), {}, "is paused.*Resume it: flagkit flags resume"),
        (flag(state="archived"), {}, "is archived.*Restore it, then resume it"),
        (flag(), {"variant": "onn"}, "'onn' is not a variant of this flag. Use one of: on, off"),
        (flag(), {"rule": "dach"}, "'dach' is not a rule of shop.search. It has: no rules"),
        (flag(fallthrough={"rollout": 10}), {}, "has a rollout. Set its weights with set_rollout"),
        (
            flag(variants={"on": "a", "off": "b"}),
            {"variant": True},
            "true is the value of 0 variants of this flag. Name the variant: on, off",
        ),
        (
            flag(variants={"on": True, "also": True, "off": False}),
            {"variant": True},
            "true is the value of 2 variants",
        ),
    ],
)
def test_what_cannot_be_told_to_serve_a_variant_says_what_can(
    document: dict[str, Any], asked: dict[str, Any], problem: str, writer: Writer
) -> None:
    writer.create(document)
    with pytest.raises(InvalidDocumentError, match=problem):
        writer.serve(KEY, **{"variant": "off", **asked})
    assert writer.store.read_tip().revision == 1


def test_a_rollout_of_what_serves_one_variant_leads_to_serve(writer: Writer) -> None:
    writer.create(flag(rules=[DACH, {"name": "beta", "when": {"plan": "pro"}, "rollout": 5}]))
    with pytest.raises(InvalidDocumentError) as caught:
        writer.set_rollout(KEY, 50)
    assert "name a rule that has a rollout (rules: beta), or use serve" in caught.value.remedy
    assert "flagkit flags enable and disable" in caught.value.remedy


def test_what_changes_nothing_makes_no_revision_if_that_is_asked_for(
    writer: Writer, direct: Database[dict[str, Any]]
) -> None:
    first = writer.create(flag())
    before = {name: [*direct[name].find()] for name in direct.list_collection_names()}
    again = writer.update(flag(), skip_unchanged=True, idempotency_key="deploy-7")
    assert (again.revision, again.time, again.changed) == (1, first.time, False)
    with writer.change(skip_unchanged=True) as change:
        change.pause(KEY)
        change.resume(KEY)
    assert change.commit is not None
    assert not change.commit.changed
    assert {name: [*direct[name].find()] for name in before} == before
    made = writer.pause(KEY, skip_unchanged=True, idempotency_key="deploy-8")
    assert (made.revision, made.changed) == (2, True)
    # A request that is sent again is told what it did.
    assert writer.pause(KEY, skip_unchanged=True, idempotency_key="deploy-8") == made
    assert writer.pause(KEY).revision == 3


def test_what_waits_for_a_transaction_is_not_skipped(writer: Writer, mongo_uri: str) -> None:
    with (
        MongoClient[dict[str, Any]](mongo_uri) as client,
        client.start_session() as session,
        session.start_transaction(),
        pytest.raises(InvalidArgumentError, match="skip_unchanged cannot be used in a transaction"),
    ):
        writer.in_transaction(session).pause(KEY, skip_unchanged=True)
