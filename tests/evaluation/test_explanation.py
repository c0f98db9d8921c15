"""Explanations: that they say what evaluation did, show what led to it, and hide what they must."""

import json
import math
import random
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

import flagkit
from flagkit import Client, ErrorCode, Reason
from flagkit._core.evaluation.bucketing import compute_bucket, compute_seed
from flagkit._core.evaluation.explanation import ConditionTrace, FlagTrace
from flagkit._core.model.changes import build_genesis_tip, build_state
from flagkit._core.snapshot import Arena, Record, Snapshot, build_arena, encode_record
from flagkit.client.sources import build_initial_state
from flagkit.testing import client_from
from tests.soak.fuzzing import FLAG_COUNT, SEGMENTS, PolicyGenerator

NOON = datetime(2026, 12, 1, 12, tzinfo=UTC)
VARIANTS = {"on": True, "off": False}
BASE = {"key": "base", "variants": VARIANTS, "fallthrough": {"serve": "on"}}
BETA = {"key": "beta", "when": {"plan": "pro"}, "included": ["ada"], "excluded": ["mallory"]}
EXPRESS = {
    "key": "express",
    "variants": VARIANTS,
    "off": "off",
    "prerequisites": [{"flag": "base", "variants": ["on"]}],
    "rules": [
        {"name": "staff", "when": {"email": {"$endsWith": "@acme.example"}}, "serve": "on"},
        {
            "name": "christmas",
            "when": {"country": {"$in": ["DE", "AT"], "$ne": "CH"}},
            "during": {"from": datetime(2026, 12, 24, tzinfo=UTC)},
            "serve": "on",
        },
        {
            "name": "beta",
            "when": {"$segment": "beta", "$or": [{"age": {"$gte": 18}}, {"adult": True, "age": 0}]},
            "rollout": {"by": "org.id", "salt": "shared", "weights": {"on": 20, "off": 80}},
        },
    ],
    "fallthrough": {
        "ramp": {
            "variant": "on",
            "otherwise": "off",
            "start": datetime(2026, 12, 1, tzinfo=UTC),
            "end": datetime(2026, 12, 2, tzinfo=UTC),
        }
    },
}


ROLLOUT = "rollout by org.id: '7' under salt 'shared' is in bucket 50,255, from 20 to 100 %: 'off'"


def client() -> Client:
    return client_from([BASE, EXPRESS], [BETA], now=NOON)


ADA = {
    "targeting_key": "ada",
    "email": "ada@lovelace.example",
    "country": "DE",
    "age": 36,
    "org": {"id": 7},
}


def test_an_explanation_as_text() -> None:
    assert str(client().explain("express", ADA)).splitlines() == [
        "express is False: 'off', SPLIT by rule 'beta'",
        "  at revision 1, 2026-12-01T12:00:00+00:00, valid until 2026-12-24T00:00:00+00:00",
        "flag express, version 1, active",
        "  prerequisite base serves 'on': met, wanted is 'on'",
        "  rule 'staff': does not hold",
        "    no  email $endsWith '@acme.example' (seen: 'ada@lovelace.example')",
        "  rule 'christmas': does not hold",
        "    the window is closed",
        "    yes country $in ['DE', 'AT'] (seen: 'DE')",
        "    yes country $ne 'CH' (seen: 'DE')",
        "  rule 'beta': holds",
        "    yes $segment 'beta'",
        "        no  targeting_key excluded (seen: 'ada')",
        "        yes targeting_key included (seen: 'ada')",
        "        no  plan $eq 'pro' (not there)",
        "    yes $or",
        "        yes age $gte 18 (seen: 36)",
        "        no  $and",
        "            no  adult $eq True (not there)",
        "            no  age $eq 0 (seen: 36)",
        f"    {ROLLOUT}",
        "  serves 'off': SPLIT",
        "flag base, version 1, active",
        "  serves 'on': STATIC",
    ]


def test_an_explanation_as_data() -> None:
    found = client().explain("express", ADA).as_dict()
    assert json.loads(json.dumps(found)) == found
    assert found["evaluation"] == {
        "flag_key": "express",
        "value": False,
        "variant": "off",
        "reason": "SPLIT",
        "rule": "beta",
        "error_code": None,
        "error_message": None,
        "version": 1,
        "revision": 1,
        "valid_until": "2026-12-24T00:00:00Z",
        "is_sensitive": False,
    }
    assert found["time"] == "2026-12-01T12:00:00Z"
    express, base = found["flags"]
    assert express["rules"][2]["rollout"] == {
        "by": "org.id",
        "salt": "shared",
        "key": "7",
        "bucket": 50_255,
        "interval": [20_000, 100_000],
        "variant": "off",
        "ramp_percent": None,
    }
    assert [rule["holds"] for rule in express["rules"]] == [False, False, True]
    assert [rule["open"] for rule in express["rules"]] == [None, False, None]
    assert base["reason"] == "STATIC"


def test_a_ramp_is_explained_with_its_share() -> None:
    found = client().explain("express", "ada").flags[0].rollout
    assert found is not None
    assert (found.ramp_percent, found.by, found.salt, found.key) == (
        50,
        "targeting_key",
        "express",
        "ada",
    )


def test_rules_after_the_one_that_decided_and_prerequisites_not_asked_are_not_there() -> None:
    staff = client().explain("express", {"email": "eve@acme.example"})
    assert [rule.name for rule in staff.flags[0].rules] == ["staff"]
    off = {**BASE, "key": "base", "state": "paused"}
    wanted = [{"flag": "base", "variants": ["on"]}, {"flag": "other", "variants": ["on"]}]
    second = {**EXPRESS, "prerequisites": wanted}
    paused = client_from([off, second, {**BASE, "key": "other"}], [BETA]).explain("express", ADA)
    assert [flag.flag_key for flag in paused.flags] == ["express", "base"]
    assert paused.flags[0].prerequisites[0].met is False
    assert paused.flags[0].rules == ()
    assert paused.evaluation.reason == "DISABLED"


@pytest.mark.parametrize("redact", [["org"], ["org.id"], ["org.id.part"]])
def test_redacted_attributes_are_nowhere(redact: list[str]) -> None:
    context = {**ADA, "email": "SECRET@acme", "org": {"id": "SECRET", "name": "SECRET"}}
    by_org = {
        **EXPRESS,
        "rules": [
            {"name": "whole", "when": {"org": {"$ne": {"id": "SECRET"}}}, "serve": "off"},
            {"name": "one", "when": {"org.id": {"$in": ["SECRET", "other"]}}, "serve": "off"},
            EXPRESS["rules"][2],  # type: ignore[index]
        ],
    }
    by_org["rules"] = by_org["rules"][1:]  # type: ignore[index]
    asked = client_from([BASE, by_org], [BETA], now=NOON)
    open_text = str(asked.explain("express", context))
    assert "SECRET" in open_text
    found = asked.explain("express", context, redact=redact)
    assert "SECRET" not in str(found)
    assert "SECRET" not in json.dumps(found.as_dict())
    assert found.evaluation == asked.evaluate("express", context)


def test_an_attribute_is_not_hidden_by_another_that_begins_like_it() -> None:
    asked = client_from([{**BASE, "rules": [{"name": "r", "when": {"organ": 1}, "serve": "on"}]}])
    assert "seen: 5" in str(asked.explain("base", {"organ": 5}, redact=["org", "organ.x.y"[:3]]))


@pytest.mark.parametrize(
    ("path", "redact"),
    [
        ("contacts.kind", ["contacts.phone"]),
        ("contacts.0.kind", ["contacts.phone"]),
        ("contacts.0.phone", ["contacts.phone"]),
        ("contacts.phone", ["contacts.0.phone"]),
        ("contacts.1.phone", ["contacts.0.phone"]),
        ("contacts.0", ["contacts.phone.home"]),
        ("contacts.kind", ["contacts"]),
        ("contacts.phone", "contacts.phone"),
        ("contacts.phone", "contacts"),
    ],
)
def test_a_hidden_attribute_is_not_shown_beside_another(path: str, redact: Collection[str]) -> None:
    when = {path: {"$ne": "x"}}
    asked = client_from([{**BASE, "rules": [{"name": "r", "when": when, "serve": "on"}]}])
    context = {"contacts": [{"kind": "home", "phone": "SECRET"}]}
    found = asked.explain("base", context, redact=redact)
    assert found.flags
    assert "SECRET" not in f"{found}{found.as_dict()}"
    assert "SECRET" in str(asked.explain("base", context, redact=["contact", "contacts2"]))


def test_what_stands_beside_a_hidden_attribute_in_a_document_is_shown() -> None:
    rules = [{"name": "r", "when": {"org.name": "x", "5": 5}, "serve": "on"}]
    asked = client_from([{**BASE, "rules": rules}])
    found = asked.explain("base", {"org": {"id": 1, "name": "y"}, "5": 7}, redact=["org.id", "6"])
    assert [condition.seen for condition in found.flags[0].rules[0].conditions] == ["y", 7]


def test_hidden_paths_may_be_any_iterable_and_nothing_is_shown_without_them() -> None:
    twice = {"email": {"$ne": "SECRET", "$startsWith": "S"}, "phone": "SECRET"}
    asked = client_from([{**BASE, "rules": [{"name": "r", "when": twice, "serve": "on"}]}])
    context = {"email": "SECRET", "phone": "SECRET"}
    once: Any = iter(["phone", "email"])
    found = asked.explain("base", context, redact=once)
    assert len(found.flags[0].rules[0].conditions) == 3
    assert "SECRET" not in str(found)
    bad: Any
    for bad in (5, [5], b"email"):
        found = asked.explain("base", context, redact=bad)
        assert (found.evaluation.value, found.flags) == (True, ())


def test_a_regular_expression_is_shown_with_its_options() -> None:
    rules = [{"name": "r", "when": {"a": {"$regex": "^x", "$options": "i"}}, "serve": "on"}]
    found = client_from([{**BASE, "rules": rules}]).explain("base", {"a": "XY"})
    condition = found.flags[0].rules[0].conditions[0]
    assert condition.holds
    assert condition.constant == {"$regex": "^x", "$options": "i"}


def test_long_values_are_cut() -> None:
    many = {"name": "r", "when": {"a": {"$in": [f"key-{i}" for i in range(1000)]}}, "serve": "on"}
    asked = client_from([{**BASE, "rules": [many]}])
    found = asked.explain("base", {"a": ["x" * 5000] * 500})
    assert len(str(found)) < 1000
    assert len(json.dumps(found.as_dict())) < 100_000
    assert len(found.flags[0].rules[0].conditions[0].constant) == 1000


def test_an_attribute_that_branches_on_and_on_is_cut() -> None:
    rules = [{"name": "r", "when": {"a": {"$exists": True}}, "serve": "on"}]
    asked = client_from([{**BASE, "rules": rules}])
    branching: list[Any] = []
    branching.extend([branching] * 16)
    fields: dict[str, Any] = {}
    fields.update({f"name-{i}": fields for i in range(16)})
    for value in (branching, fields, [["x" * 900] * 50] * 50, [[1] * 50] * 50):
        found = asked.explain("base", {"a": value})
        assert 1000 < len(json.dumps(found.as_dict())) < 30_000
    seen = asked.explain("base", {"a": [[1] * 50] * 50}).flags[0].rules[0].conditions[0].seen
    assert seen[18] == [1] * 50
    assert seen[19:] == [[1] * 30 + ["... 50 in all"], "... 50 in all"]


def test_a_long_key_is_cut_and_hashed_whole() -> None:
    long = "ada" * 300_000
    found = client().explain("express", long)
    rollout = found.flags[0].rollout
    assert rollout is not None
    assert rollout.key == f"{long[:1000]}..."
    assert rollout.bucket == compute_bucket(compute_seed("express"), long)
    assert len(str(found)) + len(json.dumps(found.as_dict())) < 10_000


def test_an_explanation_keeps_nothing_of_the_callers() -> None:
    context = {"targeting_key": "ada", "country": ["DE"]}
    found = client().explain("express", context)
    context["country"].append("CH")  # type: ignore[attr-defined]
    assert found.flags[0].rules[1].conditions[0].seen == ["DE"]


def test_prerequisites_at_any_depth_are_explained_once_each() -> None:
    rests_on = [
        {
            "key": f"f{i}",
            "variants": VARIANTS,
            "prerequisites": [{"flag": f"f{i - 1}", "variants": ["on"]}] * 2 if i else [],
            "fallthrough": {"serve": "on"},
        }
        for i in range(2000)
    ]
    found = client_from(rests_on).explain("f1999")
    assert found.evaluation.value is True
    assert [flag.flag_key for flag in found.flags] == [f"f{i}" for i in range(1999, -1, -1)]


def test_what_cannot_be_answered_is_explained_by_its_error() -> None:
    broken = {**BASE, "key": "broken", "prerequisites": [{"flag": "none", "variants": ["on"]}]}
    asked = client_from([BASE, broken])
    cases = {
        "none": ErrorCode.FLAG_NOT_FOUND,
        "broken": ErrorCode.PARSE_ERROR,
    }
    for key, code in cases.items():
        found = asked.explain(key, "ada", default=False)
        assert (found.evaluation.error_code, found.evaluation.value, found.flags) == (
            code,
            False,
            (),
        )
        assert code in str(found)
    bad: Any = 5.5
    found = client().explain("express", bad)
    assert found.evaluation.error_code is ErrorCode.INVALID_CONTEXT
    assert found.flags == ()
    not_ready = Client.from_source().explain("base")
    assert not_ready.evaluation.error_code is ErrorCode.PROVIDER_NOT_READY
    mismatch = asked.explain("base", "ada", default="text")
    assert mismatch.evaluation.error_code is ErrorCode.TYPE_MISMATCH


def test_hostile_contexts_are_explained_without_an_error_of_theirs() -> None:
    class Hostile:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    endless: list[Any] = []
    endless.append(endless)
    rules = [{"name": "r", "when": {"a": {"$ne": 1}}, "serve": "on"}]
    asked = client_from([{**BASE, "rules": rules}])
    values: list[Any] = [Hostile(), endless, 10**5000, "\ud800", {1: {2: {}}}, {("t",): 1}, b"x"]
    for value in values:
        found = asked.explain("base", {"a": value})
        assert found.evaluation.value is True
        assert str(found)
        assert found.as_dict()["flags"]


def test_an_extended_value_is_a_constant_and_no_operator() -> None:
    account = UUID(int=7)
    rules = [{"name": "r", "when": {"a": account, "b": {"$gte": account}}, "serve": "on"}]
    found = client_from([{**BASE, "rules": rules}]).explain("base", {"a": account, "b": account})
    first, second = found.flags[0].rules[0].conditions
    assert (first.operator, first.constant) == ("$eq", {"$uuid": str(account)})
    assert (second.operator, second.holds) == ("$gte", True)


class Evil:
    """Raises wherever it is looked at."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise RuntimeError("no")

    def __repr__(self) -> str:
        raise RuntimeError("no")


class EvilText(str):
    __slots__ = ()

    def __len__(self) -> int:
        raise RuntimeError("no")

    __str__ = __repr__ = __format__ = __len__  # type: ignore[assignment]


class EvilFloat(float):
    def __repr__(self) -> str:
        raise RuntimeError("no")


class EvilInt(int):
    def __repr__(self) -> str:
        raise RuntimeError("no")

    __int__ = bit_length = __repr__  # type: ignore[assignment]


ODD: list[Any] = [
    Evil(),
    object(),
    EvilFloat(2.5),
    EvilInt(7),
    EvilText("x"),
    "\ud800",
    {"a": Evil()},
]


@pytest.mark.parametrize("place", range(len(ODD)))
def test_odd_defaults_keys_and_attributes_can_be_written(place: int) -> None:
    odd = ODD[place]
    rules = [{"name": "r", "when": {"a.b": {"$exists": True}}, "rollout": 50}]
    asked = client_from([{**BASE, "rules": rules, "off": "off"}])
    for found in (
        asked.explain("none", "ada", default=odd),
        asked.explain("base", {"targeting_key": odd, "a": {"b": 1}}, default=odd),
        asked.explain("base", {"targeting_key": "ada", "a": {"b": odd}}),
        asked.explain(odd, "ada"),
        Client.from_source().explain(odd, default=odd),
    ):
        assert "revision" in str(found)
        plain = found.as_dict()
        assert json.loads(json.dumps(plain)) == plain


def test_subclasses_of_plain_types_are_shown_as_what_they_are() -> None:
    rules = [{"name": "r", "when": {"a": {"$exists": True}}, "serve": "on"}]
    asked = client_from([{**BASE, "rules": rules}])
    values = [EvilFloat(2.5), EvilInt(7), EvilText("x")]
    seen = asked.explain("base", {"a": values}).flags[0].rules[0].conditions[0].seen
    assert [(type(item), item) for item in seen] == [(float, 2.5), (int, 7), (str, "x")]


TIP = build_genesis_tip("test", "epoch", NOON)


class SnapshotAsked(Snapshot, frozen=True, kw_only=True):
    """A snapshot that notes which flags it was asked for."""

    asked: list[str]

    def find(self, key: str) -> Record | None:
        self.asked.append(key)
        return super().find(key)


def base_of(*flags: Mapping[str, Any]) -> Arena:
    return build_arena(TIP, map(encode_record, map(build_initial_state, flags)))


@pytest.mark.parametrize("moment", [math.nan, math.inf, -1e15, 1e15, None])
def test_a_clock_without_a_date_is_explained_at_the_epoch(moment: float | None) -> None:
    def clock() -> float:
        if moment is None:
            raise RuntimeError("no")
        return moment

    ramp = {**BASE, "key": "ramp", "fallthrough": EXPRESS["fallthrough"]}
    asked = Client.from_snapshot(Snapshot(TIP, "*", base_of(BASE, ramp)), clock)
    for key in ("base", "ramp"):
        found = asked.explain(key, "ada")
        assert found.evaluation == asked.evaluate(key, "ada")
        assert (found.time, found.flags) == (datetime.fromtimestamp(0, UTC), ())
        assert "1970" in str(found)
        assert found.as_dict()["time"] == "1970-01-01T00:00:00Z"


def test_a_flag_is_read_once_for_an_explanation() -> None:
    many = [{**BASE, "key": f"f{i}"} for i in range(20)]
    wanted = [{"flag": flag["key"], "variants": ["on"]} for flag in many]
    flags = base_of(*many, {**BASE, "prerequisites": wanted})
    snapshot = SnapshotAsked(TIP, "*", flags, {}, asked=[])
    asked = Client.from_snapshot(snapshot, lambda: 0.0)
    assert asked.is_enabled("base")
    snapshot.asked.clear()
    assert len(asked.explain("base").flags) == 21
    assert sorted(snapshot.asked) == sorted(["base", *(f"f{i}" for i in range(20))])


def test_the_default_and_a_bound_client_explain_too() -> None:
    assert flagkit.explain("no.such.flag").evaluation.value is None
    asked = client()
    assert asked.bind(ADA).explain("express") == asked.explain("express", ADA)


# What it says is what `evaluate` did


def conditions_hold(traces: Iterable[ConditionTrace]) -> bool:
    """Say what conditions come to, by what is said of their parts."""
    return all(map(condition_holds, traces))


def condition_holds(trace: ConditionTrace) -> bool:
    inner = [condition_holds(item) for item in trace.inner]
    match trace.operator:
        case "$and":
            return all(inner)
        case "$or":
            return any(inner)
        case "$nor":
            return not any(inner)
        case "$segment":
            return not inner[0] and any(inner[1:])
        case _:
            return trace.holds


def assert_consistent(flag: FlagTrace) -> None:
    for rule in flag.rules:
        assert rule.holds is (rule.open is not False and conditions_hold(rule.conditions))
    assert not any(rule.holds for rule in flag.rules[:-1])
    assert all(wanted.met for wanted in flag.prerequisites[:-1])
    decided = flag.rules[-1] if flag.rules and flag.rules[-1].holds else None
    off = flag.state != "active" or any(not wanted.met for wanted in flag.prerequisites)
    assert (flag.reason == "DISABLED") is off
    assert flag.rule == (decided.name if decided is not None and flag.variant else None)
    rollout = flag.rollout if decided is None else decided.rollout
    if flag.reason == "SPLIT":
        assert rollout is not None
        assert rollout.bucket is not None
        assert rollout.interval is not None
        assert rollout.key is not None
        assert rollout.bucket == compute_bucket(compute_seed(rollout.salt), rollout.key)
        assert rollout.interval[0] <= rollout.bucket < rollout.interval[1]
        assert rollout.variant == flag.variant


def test_over_the_whole_language_it_says_what_evaluate_did() -> None:
    chance = random.Random(20_261_122)
    explained = 0
    reasons = set()
    for _ in range(150):
        policies = PolicyGenerator(chance)
        flags = [policies.good(number) for number in range(FLAG_COUNT)]
        keys = {flag["key"] for flag in flags}
        for flag in flags:
            wanted = flag.get("prerequisites", [])
            flag["prerequisites"] = [item for item in wanted if item["flag"] < flag["key"]]
        asked = client_from(flags, map(policies.segment, SEGMENTS), now=NOON)
        contexts = [policies.conditions.document() for _ in range(4)]
        for context in contexts:
            if chance.random() < 0.8:
                context["targeting_key"] = chance.choice(("someone", "ab", 7))
            for key in keys:
                evaluation = asked.evaluate(key, context)
                found = asked.explain(key, context)
                assert found.evaluation == evaluation
                assert found.flags, "nothing here misbehaves, and the clock stands still"
                assert found.flags[0].variant == evaluation.variant
                for trace in found.flags:
                    assert_consistent(trace)
                assert str(found)
                assert found.as_dict()["evaluation"]["reason"] == evaluation.reason
                explained += 1
                reasons.add(evaluation.reason)
    assert explained == 150 * 4 * FLAG_COUNT
    assert reasons >= {*Reason} - {Reason.STATIC, Reason.STALE}


def test_a_value_that_json_cannot_say_is_shown_as_text() -> None:
    stored = {
        "key": "odd",
        "state": "active",
        "variants": {"on": {"a": 1, None: 2}},
        "fallthrough": {"serve": "on"},
    }
    snapshot = Snapshot(
        build_genesis_tip("test", "epoch", NOON),
        "*",
        build_arena(
            build_genesis_tip("test", "epoch", NOON),
            [encode_record(build_state("odd", "*", 1, stored))],
        ),
    )
    found = Client.from_snapshot(snapshot).explain("odd", ADA)
    assert isinstance(found.as_dict()["evaluation"], dict)
    assert str(found)
