"""Writer: workflows, what is refused and how, idempotency, and what the dead leave behind."""

import math
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pytest
from pymongo import MongoClient
from pymongo.database import Database

from flagkit._core.model import decode, encode
from flagkit._core.model.changes import (
    ACCESS,
    SEGMENTS,
    Change,
    PolicyChange,
    PolicyState,
    build_genesis_tip,
    build_next_change,
    build_state,
)
from flagkit._core.model.flags import DOCUMENT_BYTES_MAX
from flagkit._core.model.rollouts import list_spans
from flagkit._core.storage.prefetch import POLICIES_MAX, can_skip_majority
from flagkit.client.client import Client
from flagkit.errors import (
    BrokenReferenceError,
    ClosedError,
    EnvironmentNotFoundError,
    FlagExistsError,
    FlagNotFoundError,
    InvalidArgumentError,
    InvalidDocumentError,
    RequestConflictError,
    RevisionNotFoundError,
    StoreError,
    StoreUnavailableError,
    VersionConflictError,
)
from flagkit.writer import Writer, planning
from flagkit.writer.draft import Draft
from flagkit.writer.operations import SetState, hash_request
from flagkit.writer.planning import plan

pytestmark = pytest.mark.mongo

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def flag(key: str = "shop.search", **more: Any) -> dict[str, Any]:
    return {
        "key": key,
        "variants": {"on": True, "off": False},
        "off": "off",
        "fallthrough": {"serve": "on"},
        **more,
    }


def test_extended_values_survive_the_way_through_the_database(
    writer: Writer, mongo_uri: str, database: str
) -> None:
    attributes: dict[str, Any] = {
        "amount": Decimal("0.1"),
        "account": UUID(int=7),
        "token": b"\0\xff",
        "born": datetime(1969, 12, 31, 23, 59, 59, 999_000, UTC),
        "score": math.inf,
    }
    when: dict[str, Any] = {name: {"$in": [value]} for name, value in attributes.items()}
    rules = [{"name": "all", "when": when, "serve": "on"}]
    commit = writer.create(flag(rules=rules, fallthrough={"serve": "off"}))
    writer.pause("shop.search")
    resumed = writer.resume("shop.search")
    with Client(mongo_uri, environment="production", database=database) as client:
        client.wait_for(resumed.revision)
        assert client.is_enabled("shop.search", attributes)
        for name in attributes:
            assert not client.is_enabled("shop.search", attributes | {name: 5})
    assert writer.reader.verify() == []
    assert commit.revision == 1


def needing(key: str, *prerequisites: str, **more: Any) -> dict[str, Any]:
    wanted = [{"flag": other, "variants": ["on"]} for other in prerequisites]
    return flag(key, prerequisites=wanted, **more)


def state(writer: Writer, key: str = "shop.search", region: str = "*") -> PolicyState:
    with writer.store.open_reader() as reading:
        return reading.find_flags([key])[region, key]


def policy(writer: Writer, key: str = "shop.search", region: str = "*") -> dict[str, Any]:
    return state(writer, key, region).policy


@pytest.fixture
def direct(mongo_uri: str, database: str) -> Iterator[Database[dict[str, Any]]]:
    with MongoClient[dict[str, Any]](mongo_uri) as client:
        yield client[database]


def written(direct: Database[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    names = ("heads", "ledger", "flags", "segments", "members", "audit")
    return {name: list(direct[name].find()) for name in names}


def test_revisions_count_the_changes_of_an_environment(writer: Writer) -> None:
    assert writer.create(flag()).revision == 1
    assert writer.update(flag(owner="team-search")).revision == 2
    assert writer.pause("shop.search").revision == 3
    assert writer.resume("shop.search").revision == 4
    assert writer.store.read_tip().revision == 4
    assert state(writer).version == 4
    assert policy(writer)["owner"] == "team-search"


def test_a_pause_and_a_resume_change_the_state_alone(writer: Writer) -> None:
    writer.create(flag())
    before = policy(writer)
    writer.pause("shop.search")
    assert policy(writer) == {**before, "state": "paused"}
    writer.resume("shop.search")
    assert policy(writer) == before


def test_an_archived_flag_is_not_resumed_by_chance(writer: Writer) -> None:
    writer.create(flag(state="archived"))
    for change in (writer.pause, writer.resume):
        with pytest.raises(InvalidDocumentError, match="is archived"):
            change("shop.search")
    writer.update(flag(state="active"))
    assert policy(writer)["state"] == "active"


def test_a_change_of_several_flags_is_one_revision(writer: Writer) -> None:
    with writer.change(reason="launch") as change:
        change.create(flag("a.one"))
        change.create(flag("a.two"))
        change.pause("a.one")
    assert change.commit is not None
    assert change.commit.revision == 1
    assert state(writer, "a.one").version == 1
    assert policy(writer, "a.one")["state"] == "paused"


def test_a_block_that_fails_changes_nothing(
    writer: Writer, direct: Database[dict[str, Any]]
) -> None:
    before = written(direct)

    def fail() -> None:
        with writer.change() as change:
            change.create(flag())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert written(direct) == before


def test_widening_a_rollout_takes_nobody_out(writer: Writer) -> None:
    writer.create(flag(fallthrough={"rollout": 10}))
    seen: set[int] = set()
    for percent in (10, 25, 50, 99.999, 100):
        writer.set_rollout("shop.search", percent)
        rollout = policy(writer)["fallthrough"]["rollout"]
        treated = {
            bucket
            for start, end, variant in list_spans(rollout["intervals"])
            if variant == "on"
            for bucket in range(start, end)
        }
        assert len(treated) == round(percent * 1000)
        assert seen <= treated
        seen = treated


def test_a_ramp_that_becomes_a_rollout_keeps_its_first_keys_and_its_salt(writer: Writer) -> None:
    ends = {"start": "2026-12-01T08:00:00Z", "end": "2026-12-08T08:00:00Z"}
    ramp = {"variant": "on", "otherwise": "off", "salt": "wave", **ends}
    writer.create(flag(fallthrough={"ramp": ramp}))
    writer.set_rollout("shop.search", {"off": 60, "on": 40})
    rollout = policy(writer)["fallthrough"]["rollout"]
    assert (rollout["salt"], rollout["intervals"]) == ("wave", [[40_000, "on"], [100_000, "off"]])


def test_a_rollout_of_a_rule_is_set_by_its_name(writer: Writer) -> None:
    rules = [
        {
            "name": "beta",
            "when": {"plan": "pro"},
            "rollout": {"by": "org.id", "weights": {"on": 5, "off": 95}},
        }
    ]
    writer.create(flag(rules=rules))
    writer.set_rollout("shop.search", {"on": 60, "off": 40}, rule="beta")
    rollout = policy(writer)["rules"][0]["rollout"]
    assert rollout == {
        "by": "org.id",
        "weights": {"on": 60, "off": 40},
        "intervals": [[60_000, "on"], [100_000, "off"]],
    }
    with pytest.raises(InvalidDocumentError, match="'gamma' is not a rule"):
        writer.set_rollout("shop.search", 5, rule="gamma")


def test_a_bare_percentage_keeps_what_a_rollout_is_by(writer: Writer) -> None:
    rollout = {"by": "company.id", "salt": "beta", "weights": {"on": 5, "off": 95}}
    writer.create(flag(fallthrough={"rollout": rollout}))
    writer.set_rollout("shop.search", 50)
    assert policy(writer)["fallthrough"]["rollout"] == {
        "by": "company.id",
        "salt": "beta",
        "weights": {"on": 50, "off": 50},
        "intervals": [[50_000, "on"], [100_000, "off"]],
    }


def test_set_rollout_does_not_open_to_all_what_has_no_rollout(writer: Writer) -> None:
    rules = [{"name": "dach", "when": {"country": "DE"}, "rollout": 10}]
    writer.create(flag(rules=rules, fallthrough={"serve": "off"}))
    with pytest.raises(InvalidDocumentError, match=r"serves 'off' to all.*rules: dach"):
        writer.set_rollout("shop.search", 50)
    assert writer.set_rollout("shop.search", 50, rule="dach").revision == 2


def test_an_update_without_a_state_does_not_end_a_pause(writer: Writer) -> None:
    writer.create(flag())
    writer.pause("shop.search")
    writer.update(flag(description="the next deployment"))
    assert policy(writer)["state"] == "paused"
    writer.update(flag(state="active"))
    assert policy(writer)["state"] == "active"


def test_an_update_keeps_the_keys_of_rollouts_that_stay(writer: Writer) -> None:
    def document(**weights: int) -> dict[str, Any]:
        return {
            "key": "shop.search",
            "variants": {"a": "a", "b": "b", "c": "c"},
            "off": "c",
            "fallthrough": {"rollout": {"weights": weights}},
        }

    writer.create(document(a=20, b=30, c=50))
    writer.update(document(b=40, a=20, c=40))
    intervals = policy(writer)["fallthrough"]["rollout"]["intervals"]
    assert intervals == [[20_000, "a"], [60_000, "b"], [100_000, "c"]]


def test_keys_pass_between_treated_variants_only_when_that_is_meant(writer: Writer) -> None:
    def intervals() -> Any:
        return policy(writer)["fallthrough"]["rollout"]["intervals"]

    weights = {"a": 30, "b": 30, "control": 40}
    document = {
        "key": "shop.search",
        "variants": {"a": "a", "b": "b", "control": "c"},
        "off": "control",
        "fallthrough": {"rollout": {"weights": weights}},
    }
    writer.create(document)
    writer.set_rollout("shop.search", {"a": 20, "b": 40, "control": 40})
    by_way_of_control = [[20_000, "a"], [30_000, "control"], [70_000, "b"], [100_000, "control"]]
    assert intervals() == by_way_of_control
    for refused in ({"a": 90, "b": 0, "control": 10}, {"a": 0, "b": 100}):
        with pytest.raises(InvalidDocumentError, match="treated variant to another") as caught:
            writer.set_rollout("shop.search", refused)
        assert "reassign=True" in caught.value.remedy
    assert intervals() == by_way_of_control
    writer.set_rollout("shop.search", {"a": 90, "b": 0, "control": 10}, reassign=True)
    assert policy(writer)["fallthrough"]["rollout"]["weights"] == {"a": 90, "b": 0, "control": 10}
    with pytest.raises(InvalidDocumentError, match=r"fallthrough.rollout.weights: move 90 %"):
        writer.update({**document, "fallthrough": {"rollout": {"weights": {"a": 0, "b": 100}}}})
    writer.update(
        {**document, "fallthrough": {"rollout": {"weights": {"a": 0, "b": 100}}}}, reassign=True
    )
    assert intervals() == [[100_000, "b"]]


def test_a_rollback_restores_content_and_never_the_version(writer: Writer) -> None:
    writer.create(flag())
    first = policy(writer)
    writer.update(flag(description="later", fallthrough={"serve": "off"}))
    writer.pause("shop.search")
    writer.rollback("shop.search", to=1)
    assert policy(writer) == first
    assert state(writer).version == 4
    writer.rollback("shop.search", to=3)
    assert policy(writer)["state"] == "paused"


def test_a_rollback_to_where_there_is_nothing(writer: Writer) -> None:
    writer.create(flag("a.one"))
    writer.create(flag())
    with pytest.raises(RevisionNotFoundError, match="did not exist at revision 1"):
        writer.rollback("shop.search", to=1)
    for revision in (0, -1, 3):
        with pytest.raises(RevisionNotFoundError, match=f"no revision {revision}"):
            writer.rollback("shop.search", to=revision)


def test_an_override_leaves_keys_where_the_flag_of_all_regions_has_them(writer: Writer) -> None:
    document = flag(
        variants={"a": "a", "b": "b", "c": "c"},
        off="c",
        fallthrough={"rollout": {"weights": {"a": 20, "b": 30, "c": 50}}},
    )
    writer.create(document)
    writer.set_rollout("shop.search", {"a": 10, "b": 40, "c": 50})
    held = policy(writer)["fallthrough"]["rollout"]["intervals"]
    writer.create({**policy_as_written(writer), "region": "eu"})
    assert policy(writer, region="eu")["fallthrough"]["rollout"]["intervals"] == held


def policy_as_written(writer: Writer) -> dict[str, Any]:
    document = policy(writer)
    del document["fallthrough"]["rollout"]["intervals"]
    return document


def test_regions_have_flags_of_their_own(writer: Writer) -> None:
    writer.create(flag())
    writer.create(flag(region="eu-west-1"))
    writer.pause("shop.search", region="eu-west-1")
    assert policy(writer)["state"] == "active"
    assert policy(writer, region="eu-west-1")["state"] == "paused"
    with pytest.raises(FlagNotFoundError, match="in region us-east-1"):
        writer.pause("shop.search", region="us-east-1")


def test_versions_that_are_expected_and_not_there(writer: Writer) -> None:
    writer.create(flag())
    writer.update(flag(), expected_version=1)
    writer.update(flag(owner="me"), expected_version=1)
    with pytest.raises(VersionConflictError) as caught:
        writer.update(flag(owner="you"), expected_version=1)
    assert (caught.value.key, caught.value.expected, caught.value.actual) == ("shop.search", 1, 2)


def test_each_verb_takes_the_version_that_is_expected(writer: Writer) -> None:
    writer.create(flag())
    verbs: list[Callable[[int], object]] = [
        lambda version: writer.pause("shop.search", expected_version=version),
        lambda version: writer.resume("shop.search", expected_version=version),
        lambda version: writer.rollback("shop.search", to=3, expected_version=version),
        lambda version: writer.archive("shop.search", expected_version=version),
        lambda version: writer.delete("shop.search", expected_version=version),
        # A deleted flag has the version that it had last.
        lambda version: writer.rollback("shop.search", to=1, expected_version=version),
    ]
    writer.create_segment({"key": "shop.staff", "included": ["ada"]})
    for number, verb in enumerate(verbs):
        version = min(number + 1, 5)
        for wrong in (version - 1, version + 1):
            before = writer.store.read_tip()
            with pytest.raises(VersionConflictError) as caught:
                verb(wrong)
            assert (caught.value.expected, caught.value.actual) == (wrong, version)
            assert writer.store.read_tip() == before
        verb(version)
    writer.change_members("shop.staff", include=["bob"])
    with pytest.raises(VersionConflictError):
        writer.rollback_segment("shop.staff", to=2, expected_version=1)
    writer.rollback_segment("shop.staff", to=2, expected_version=2)


def test_a_rollback_of_everything_is_of_no_version(writer: Writer) -> None:
    writer.create(flag())
    with pytest.raises(InvalidArgumentError, match="expected_version is given without a key"):
        writer.rollback(to=0, expected_version=1)


def test_a_change_that_changes_nothing_is_a_revision_and_no_version(writer: Writer) -> None:
    writer.create(flag())
    assert writer.resume("shop.search").revision == 2
    assert state(writer).version == 1


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "unknown operator": (
        flag(rules=[{"name": "r", "when": {"country": {"$equals": "DE"}}, "serve": "on"}]),
        "rules[0].when.country.$equals",
        "Known here",
    ),
    "weights of 99.9 %": (
        flag(fallthrough={"rollout": {"weights": {"on": 49.9, "off": 50}}}),
        "fallthrough.rollout.weights",
        "add up to 100 %",
    ),
    "a key with spaces": (flag("shop search"), "key", "product.team.feature"),
    "a prerequisite that does not exist": (
        needing("shop.search", "shop.engine"),
        "prerequisites[0].flag",
        "Create it",
    ),
    "a prerequisite's variant that does not exist": (
        flag(prerequisites=[{"flag": "shop.base", "variants": ["blue"]}]),
        "prerequisites[0].variants",
        "on, off",
    ),
    "a 5 MB document": (flag(description="x" * 5_000_000), "description", "Shorten"),
    "a wrong type in variants": (
        flag(variants={"on": True, "off": "no"}),
        "variants.off",
        "same type",
    ),
    "another environment's document": (
        flag(environment="staging"),
        "environment",
        "other environment",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_before_any_write(
    name: str, writer: Writer, direct: Database[dict[str, Any]]
) -> None:
    document, path, remedy = BAD[name]
    writer.create(flag("shop.base"))
    before = written(direct)
    with pytest.raises(InvalidDocumentError) as caught:
        writer.create(document)
    assert caught.value.path == path
    assert remedy in caught.value.remedy
    assert str(document["key"]) in caught.value.subject
    assert written(direct) == before


def test_a_change_of_many_flags_that_is_too_large_is_refused(
    writer: Writer, direct: Database[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "CHANGE_BYTES_MAX", 4 * 2**20)
    before = written(direct)

    def create_all() -> None:
        with writer.change() as change:
            for i in range(6):
                change.create(flag(f"a.a{i}", description="x" * 1_000_000))

    with pytest.raises(InvalidDocumentError, match="Split it up"):
        create_all()
    assert written(direct) == before


def test_what_mongodb_could_not_store_is_refused_before_any_write(
    writer: Writer, direct: Database[dict[str, Any]]
) -> None:
    before = written(direct)
    nulls = {"key": "a.a", "variants": {"v": [None] * 700_000}, "fallthrough": {"serve": "v"}}
    with pytest.raises(InvalidDocumentError, match=r"a policy is .* bytes in MongoDB"):
        writer.create(nulls)
    for reason in ("\ud800", "x" * 13_000_000):
        with pytest.raises(InvalidDocumentError):
            writer.create(flag(), reason=reason)
    assert written(direct) == before


def test_a_flag_at_the_limit_cannot_grow_and_can_be_paused(writer: Writer) -> None:
    document = flag(description="x" * 100_000, fallthrough={"rollout": 50})
    room = DOCUMENT_BYTES_MAX - len(msgspec.msgpack.encode(encode(decode(document))))
    writer.create(document | {"description": "x" * (100_000 + room)})
    with pytest.raises(InvalidDocumentError, match="the limit is"):
        writer.set_rollout("shop.search", {"on": 33.333, "off": 66.667})
    writer.pause("shop.search")
    assert policy(writer)["state"] == "paused"


def test_a_flag_that_was_edited_past_the_writer_is_not_built_upon(
    writer: Writer, direct: Database[dict[str, Any]]
) -> None:
    writer.create(flag())
    writer.create(flag("another.flag"))
    edited = {"_id.key": "shop.search"}
    direct.flags.update_one(edited, {"$set": {"policy.description": "by hand"}})
    before = written(direct)
    with pytest.raises(StoreError, match="past the writer"):
        writer.pause("shop.search")
    assert written(direct) == before
    writer.pause("another.flag")
    direct.flags.update_one(edited, {"$unset": {"policy.description": 1}})
    writer.pause("shop.search")
    assert writer.reader.verify() == []


@pytest.mark.parametrize("beside", [0, POLICIES_MAX], ids=["alone", "among many"])
@pytest.mark.parametrize("put_back", [True, False], ids=["an older one", "none"])
def test_a_flag_that_is_not_the_newest_is_not_built_upon(
    writer: Writer, direct: Database[dict[str, Any]], put_back: bool, beside: int
) -> None:
    writer.create(flag(fallthrough={"rollout": 10}))
    older = direct.flags.find_one()
    writer.pause("shop.search")
    with writer.change() as change:
        for number in range(beside + 1):
            change.create(flag(f"a.a{number}"))
    direct.flags.delete_one({"_id.key": "shop.search"})
    if put_back and older is not None:
        direct.flags.insert_one(older)
    before = written(direct)

    def ask(what: Callable[[Draft], None]) -> None:
        with writer.change() as change:
            for number in range(beside):
                change.pause(f"a.a{number}")
            what(change)

    with pytest.raises((StoreError, FlagNotFoundError)):
        ask(lambda change: change.set_rollout("shop.search", 50))
    with pytest.raises((StoreError, FlagExistsError)):
        ask(lambda change: change.create(flag()))
    assert written(direct) == before
    assert writer.reader.verify() != []


def test_of_many_flags_with_histories_of_their_own_each_is_held_to_the_ledger(
    writer: Writer, direct: Database[dict[str, Any]]
) -> None:
    keys = [f"a.a{number}" for number in range(4 * POLICIES_MAX)]
    with writer.change() as change:
        for key in keys:
            change.create(flag(key, fallthrough={"rollout": 10}))
    for key in keys[::2]:
        writer.set_rollout(key, 20)
    older = direct.flags.find_one({"_id.key": keys[1]})
    writer.set_rollout(keys[1], 30)
    with writer.change() as change:
        for key in keys:
            change.set_rollout(key, 40)
    assert writer.reader.verify() == []
    assert older is not None
    direct.flags.replace_one({"_id.key": keys[1]}, older)
    writer.create(flag())

    def change_all() -> None:
        with writer.change() as change:
            for key in keys:
                change.set_rollout(key, 50)

    with pytest.raises(StoreError, match=re.escape(keys[1])):
        change_all()


@pytest.mark.parametrize("left", ["an older one", "none"])
def test_what_a_failover_took_back_of_the_newest_change_is_projected_again(
    writer: Writer, direct: Database[dict[str, Any]], left: str
) -> None:
    if left == "an older one":
        writer.create(flag())
        older = direct.flags.find_one()
        assert older is not None
        writer.pause("shop.search")
        direct.flags.replace_one({}, older)
    else:
        writer.create(flag(state="paused"))
        direct.flags.delete_one({})
    made = direct.ledger.count_documents({})
    assert writer.reader.verify() == []
    with writer.store.open_reader() as reading:
        assert reading.history.tip_not_in_ledger is None
        assert reading.history.unprojected_tip is not None
        assert reading.find_flags(["shop.search"])["*", "shop.search"].policy["state"] == "paused"
    writer.create(flag("another.flag"))
    assert policy(writer)["state"] == "paused"
    assert direct.ledger.count_documents({}) == made + 1
    assert writer.reader.verify() == []
    writer.resume("shop.search")


def test_changes_of_many_flags_and_of_segments_reach_a_majority_before_the_ledger() -> None:
    def change(*regions: str) -> Change:
        states = [build_state(f"a.a{i}", region, 1, {}) for i, region in enumerate(regions)]
        changes = [PolicyChange(None, state) for state in states]
        return build_next_change(build_genesis_tip("production", "", NOW), "", NOW, changes)

    assert can_skip_majority(change(*["*", "eu"] * (POLICIES_MAX // 2)))
    assert not can_skip_majority(change(*["*"] * (POLICIES_MAX + 1)))
    assert not can_skip_majority(change("*", SEGMENTS))
    assert not can_skip_majority(change(ACCESS))


def test_nothing_is_written_after_an_older_head_was_put_back(
    writer: Writer, direct: Database[dict[str, Any]]
) -> None:
    writer.create(flag("a.one"))
    older = direct.heads.find_one()
    assert older is not None
    writer.create(flag("a.two"))
    direct.heads.replace_one({}, older)
    before = written(direct)
    with pytest.raises(StoreError, match="different histories"):
        writer.create(flag("a.three"))
    assert written(direct) == before


def test_an_environment_is_not_created_over_the_remains_of_one(
    writer: Writer, direct: Database[dict[str, Any]]
) -> None:
    writer.create(flag())
    direct.heads.delete_many({})
    with pytest.raises(StoreError, match="a ledger and no head"):
        writer.create_environment()


def test_an_environment_can_be_created_by_many_at_once(mongo_uri: str, database: str) -> None:
    def create(_: int) -> str:
        with Writer(mongo_uri, "production", actor="tester", database=database) as writer:
            return writer.create_environment().epoch

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(create, range(8)))) == 1


def test_odd_arguments_are_refused_by_their_names(writer: Writer) -> None:
    odd: Any = "1"
    writer.create(flag())
    with pytest.raises(InvalidArgumentError, match=r"to is '1'.*commit\.revision"):
        writer.rollback("shop.search", to=odd)
    with pytest.raises(InvalidArgumentError, match="idempotency_key is ''"):
        writer.pause("shop.search", idempotency_key="")
    for key, problem in (
        ("\ud800", "holds a lone surrogate"),
        ("k" * 1001, "has 1,001 characters"),
        ("flagkit:drop other", "pass one that does not begin with flagkit:"),
    ):
        with pytest.raises(InvalidArgumentError, match=f"idempotency_key .*{problem}"):
            writer.pause("shop.search", idempotency_key=key)


def test_flags_that_are_there_or_not(writer: Writer) -> None:
    writer.create(flag())
    with pytest.raises(FlagExistsError, match="update it"):
        writer.create(flag())
    with pytest.raises(FlagNotFoundError, match="create it first"):
        writer.update(flag("no.such"))


def test_prerequisites_may_come_with_the_same_change(writer: Writer) -> None:
    with writer.change() as change:
        change.create(needing("a.upper", "a.lower"))
        change.create(flag("a.lower"))


def test_a_cycle_of_prerequisites_is_refused_however_long(writer: Writer) -> None:
    with writer.change() as change:
        change.create(flag("a.a0"))
        for i in range(1, 6):
            change.create(needing(f"a.a{i}", f"a.a{i - 1}"))
    with pytest.raises(BrokenReferenceError, match=r"a\.a0 -> a\.a5 -> a\.a4 .* -> a\.a0"):
        writer.update(needing("a.a0", "a.a5"))


def test_a_cycle_through_an_override_is_refused(writer: Writer) -> None:
    writer.create(flag("a.one"))
    writer.create(needing("a.two", "a.one"))
    with pytest.raises(BrokenReferenceError, match="cycle"):
        writer.create(needing("a.one", "a.two", region="eu"))


def test_a_variant_that_others_rest_on_cannot_be_removed(writer: Writer) -> None:
    writer.create(flag("a.base"))
    writer.create(needing("a.upper", "a.base"))
    renamed = flag(
        "a.base", variants={"yes": True, "no": False}, off="no", fallthrough={"serve": "yes"}
    )
    with pytest.raises(BrokenReferenceError, match=r"a\.upper.*'on' is no variant of 'a\.base'"):
        writer.update(renamed)
    with writer.change() as change:
        change.update(renamed)
        change.update(flag("a.upper"))


def test_prerequisites_are_looked_for_where_they_are_asked(writer: Writer) -> None:
    writer.create(flag("a.base", region="eu"))
    with pytest.raises(BrokenReferenceError, match="does not exist"):
        writer.create(needing("a.upper", "a.base"))
    writer.create(needing("a.upper", "a.base", region="eu"))
    with pytest.raises(BrokenReferenceError, match="does not exist in region us"):
        writer.create(needing("a.upper", "a.base", region="us"))


def test_an_idempotency_key_makes_a_resend_harmless(writer: Writer) -> None:
    first = writer.create(flag(), idempotency_key="order-1")
    writer.update(flag(owner="me"))
    assert writer.create(flag(), idempotency_key="order-1") == first
    assert writer.store.read_tip().revision == 2


def test_a_resend_by_another_process_is_the_same(
    writer: Writer, mongo_uri: str, database: str
) -> None:
    first = writer.create(flag(), idempotency_key="order-1")
    with Writer(mongo_uri, "production", actor="tester", database=database) as other:
        assert other.create(flag(), idempotency_key="order-1") == first


def test_an_idempotency_key_is_for_one_request(writer: Writer) -> None:
    writer.create(flag(), idempotency_key="order-1")
    with pytest.raises(RequestConflictError, match="order-1"):
        writer.create(flag("another.flag"), idempotency_key="order-1")
    assert writer.store.read_tip().revision == 1


def test_an_environment_must_be_created_and_can_be_again(mongo_uri: str, database: str) -> None:
    with Writer(mongo_uri, "production", actor="tester", database=database) as writer:
        with pytest.raises(EnvironmentNotFoundError, match="create_environment"):
            writer.create(flag())
        first = writer.create_environment()
        writer.create(flag())
        assert writer.create_environment().epoch == first.epoch
        assert writer.store.read_tip().revision == 1


def test_the_next_writer_projects_what_a_dead_one_left(
    writer: Writer, direct: Database[dict[str, Any]]
) -> None:
    writer.create(flag())
    # A writer that dies right after its compare-and-set.
    with writer.store.open_reader() as reading:
        planned = plan([SetState(key="shop.search", verb="pause")], reading, 1, {})
    change = build_next_change(reading.tip, "the-dead-one", reading.now, planned.changes)
    asked: dict[str, Any] = {"actor": "dana", "reason": "", "operations": []}
    content = {"sent": change.tip.time, **asked, "digest": hash_request(asked)}
    writer.store.add_request("the-dead-one", content)
    assert writer.store.compare_and_set(reading.tip, change)
    assert direct.ledger.count_documents({}) == 1

    with writer.store.open_reader() as reading:
        assert reading.history.tip_not_in_ledger == change
        assert reading.find_flags(["shop.search"])["*", "shop.search"].policy["state"] == "paused"
    writer.create(flag("another.flag"))
    assert direct.ledger.count_documents({}) == 3
    assert policy(writer)["state"] == "paused"
    assert writer.reader.verify() == []


def test_a_zombie_that_projects_late_changes_nothing(writer: Writer) -> None:
    writer.create(flag())
    (first,) = writer.store.iter_changes()
    writer.pause("shop.search")
    writer.store.project(first)
    assert policy(writer)["state"] == "paused"
    assert writer.reader.verify() == []


def test_a_compare_and_set_is_lost_to_whoever_was_first(writer: Writer) -> None:
    writer.create(flag())
    with writer.store.open_reader() as reading:
        planned = plan([SetState(key="shop.search", verb="pause")], reading, 1, {})
    writer.resume("shop.search")
    late = build_next_change(reading.tip, "late", reading.now, planned.changes)
    assert not writer.store.compare_and_set(reading.tip, late)
    assert policy(writer)["state"] == "active"


def test_a_writer_that_was_closed_says_so(mongo_uri: str, database: str) -> None:
    with Writer(mongo_uri, "production", actor="tester", database=database) as writer:
        writer.create_environment()
    with pytest.raises(ClosedError):
        writer.create(flag())


def test_threads_of_one_writer_take_turns(writer: Writer) -> None:
    def create(number: int) -> None:
        writer.create(flag(f"a.a{number}"))

    threads = [threading.Thread(target=create, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert writer.store.read_tip().revision == 8
    assert writer.reader.verify() == []


def test_a_database_that_is_not_there_is_said_in_time() -> None:
    uri = "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=50"
    with (
        Writer(uri, "production", actor="tester", timeout=0.1) as writer,
        pytest.raises(StoreUnavailableError, match="in time"),
    ):
        writer.create(flag())


def test_what_is_stored_is_the_policy_as_people_write_it(
    writer: Writer, direct: Database[dict[str, Any]]
) -> None:
    rules = [{"name": "r", "when": {"a.b": {"$gt": 2**40}, "$or": [{"c": None}]}, "serve": "on"}]
    writer.create(flag(rules=rules, tags=["x"]))
    (stored,) = direct.flags.find()
    assert stored["_id"] == {"environment": "production", "key": "shop.search", "region": "*"}
    assert stored["policy"]["rules"] == rules
    assert decode(stored["policy"]) == decode(flag(rules=rules, tags=["x"]))


def test_a_ramp_that_becomes_a_rollout_passes_no_treated_keys_on(writer: Writer) -> None:
    past = datetime(2026, 1, 1, tzinfo=UTC)
    ramp = {"variant": "a", "otherwise": "off", "start": past, "end": past + timedelta(days=1)}
    document: dict[str, Any] = {
        "key": "shop.search",
        "variants": {"a": 1, "b": 2, "off": 0},
        "off": "off",
        "fallthrough": {"ramp": ramp},
    }
    writer.create(document)
    for weights in ({"a": 50, "b": 50}, {"b": 100}):
        with pytest.raises(InvalidDocumentError, match="treated variant to another"):
            writer.set_rollout("shop.search", weights)
    writer.set_rollout("shop.search", {"a": 60, "off": 40})
    assert policy(writer)["fallthrough"]["rollout"]["intervals"] == [
        [60_000, "a"],
        [100_000, "off"],
    ]


def test_another_off_variant_is_no_way_round(writer: Writer) -> None:
    document: dict[str, Any] = {
        "key": "shop.search",
        "variants": {"a": 1, "b": 2, "off": 0},
        "off": "off",
        "fallthrough": {"rollout": {"weights": {"a": 30, "b": 30, "off": 40}}},
    }
    writer.create(document)
    changed = {
        **document,
        "off": "b",
        "fallthrough": {"rollout": {"weights": {"a": 60, "off": 40}}},
    }
    with pytest.raises(InvalidDocumentError, match="treated variant to another"):
        writer.update(changed)
    writer.update(changed, reassign=True)


def test_a_long_chain_of_prerequisites_is_checked_at_once(writer: Writer) -> None:
    with writer.change() as change:
        change.create(flag("a.f0"))
        for i in range(1, 1_000):
            change.create(needing(f"a.f{i}", f"a.f{i - 1}"))
    with pytest.raises(BrokenReferenceError, match="cycle"):
        writer.update(needing("a.f0", "a.f999"))


def test_a_chain_of_5_000_prerequisites_is_accepted_unless_it_closes_a_cycle(
    writer: Writer, mongo_uri: str, database: str
) -> None:
    def link(number: int, *needed: int) -> dict[str, Any]:
        return {
            "key": f"chain.flag-{number}",
            "variants": {"on": True, "off": False},
            "off": "off",
            "prerequisites": [{"flag": f"chain.flag-{i}", "variants": ["on"]} for i in needed],
            "rules": [{"name": "pro", "when": {"plan": "pro"}, "serve": "on"}],
            "fallthrough": {"serve": "off"},
        }

    with writer.change() as draft:
        draft.create(link(0))
        for number in range(1, 5_000):
            draft.create(link(number, number - 1))
    first = "chain.flag-0"
    with pytest.raises(BrokenReferenceError, match="form a cycle"):
        writer.update(link(0, 4_999))
    with Client(mongo_uri, environment="production", database=database) as client:
        client.wait_ready()
        assert client.is_enabled("chain.flag-4999", {"plan": "pro"})
        assert not client.is_enabled("chain.flag-4999", {"plan": "free"}, default=True)
        client.wait_for(writer.pause(first).revision)
        assert client.evaluate("chain.flag-4999", {"plan": "pro"}).variant == "off"
