"""Compiled evaluators, held to a plain reading of what a flag says."""

import math
from collections import UserDict
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import Enum, StrEnum
from types import CodeType
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flagkit._core.evaluation import compiler
from flagkit._core.evaluation.bucketing import compute_bucket, compute_seed, hash_key
from flagkit._core.evaluation.compiler import (
    LEAVES_MAX,
    BooleanFn,
    EvaluationFn,
    MissingKeyError,
    compile_boolean_fn,
    compile_flag,
)
from flagkit._core.evaluation.context import Context, ContextLike, get_attributes, use_context
from flagkit._core.evaluation.matching import get_attribute, matches
from flagkit._core.evaluation.result import CALLERS_DEFAULT, ErrorCode, Outcome, Reason
from flagkit._core.model import Flag, Rollout, Serve, Serves, decode
from flagkit._core.model.keys import to_bucketing_key
from flagkit._core.model.values import DEPTH_MAX
from flagkit.errors import InvalidContextError, InvalidDocumentError

pytestmark = pytest.mark.every_python

NOW = datetime(2026, 12, 1, 8, tzinfo=UTC)


def flag_from(**fields: Any) -> Flag:
    document = {"key": "f", "variants": {"on": True, "off": False}, "fallthrough": {"serve": "off"}}
    return decode(document | fields)


def flag_when(when: Mapping[str, Any]) -> Flag:
    return flag_from(rules=[{"name": "only", "when": when, "serve": "on"}])


def function(flag: Flag, *prerequisites: Outcome | EvaluationFn) -> EvaluationFn:
    evaluator = compile_flag(flag, prerequisites)
    assert not isinstance(evaluator, Outcome)
    return evaluator


def code(flag: Flag) -> tuple[bytes, tuple[str, ...]]:
    """Return the instructions of a flag's evaluator, and the names that they use."""
    compiled: CodeType = cast("Any", function(flag)).__code__
    return (compiled.co_code, compiled.co_names)


def variant(flag: Flag, context: Any) -> str | None:
    evaluator = compile_flag(flag)
    assert not isinstance(evaluator, Outcome)
    return evaluator(context).variant


# The reference: what a flag says, read from top to bottom.


def reference(
    flag: Flag, attributes: dict[str, Any], now: float, prerequisites: list[Outcome]
) -> tuple[str | None, Reason, str | None, ErrorCode | None]:
    """Return variant, reason, rule and error code."""
    if flag.state != "active":
        return (flag.off, Reason.DISABLED, None, None)
    for wanted, found in zip(flag.prerequisites, prerequisites, strict=True):
        if found.variant not in wanted.variants:
            return (flag.off, Reason.DISABLED, None, None)
    for rule in flag.rules:
        if rule.during is None or rule.during.start <= now < rule.during.end:  # noqa: SIM102
            if matches(rule.condition, attributes):
                return served(rule.serves, attributes, Reason.TARGETING_MATCH, rule.name)
    constant = not flag.rules and not flag.prerequisites
    reason = Reason.STATIC if constant else Reason.DEFAULT
    return served(flag.fallthrough, attributes, reason, None)


def served(
    serves: Serves, attributes: dict[str, Any], reason: Reason, rule: str | None
) -> tuple[str | None, Reason, str | None, ErrorCode | None]:
    if isinstance(serves, Serve):
        return (serves.variant, reason, rule, None)
    found = get_attribute(attributes, serves.by)
    key = to_bucketing_key(found)
    if key is None:
        code = ErrorCode.INVALID_CONTEXT
        if found is None or found == "":
            code = ErrorCode.TARGETING_KEY_MISSING
        return (None, Reason.ERROR, None, code)
    assert isinstance(serves, Rollout), "ramps have tests of their own"
    place = compute_bucket(compute_seed(serves.salt), key)
    variant = next(variant for end, variant in serves.intervals if place < end)
    return (variant, Reason.SPLIT, rule, None)


NAMES = st.sampled_from(["a", "b", "c.d", "targeting_key", "a.0", "c"])
MOMENTS = st.sampled_from([NOW.replace(hour=hour) for hour in (7, 8, 9)])
SCALARS = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, 1, 2, 1.0, 0.5, math.nan, 2**53, 2**53 + 1, "", "a", "b", "1", NOW])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("de0"), inner),
    max_leaves=3,
)
OPERATORS = st.one_of(
    st.tuples(st.sampled_from(["$eq", "$ne", "$gt", "$gte", "$lt", "$lte"]), VALUES),
    st.tuples(st.sampled_from(["$in", "$nin"]), st.lists(VALUES, max_size=3)),
    st.tuples(st.just("$in"), st.lists(st.sampled_from("ab1"), min_size=1)),
    st.tuples(st.just("$nin"), st.lists(st.integers(0, 2), min_size=1)),
    st.tuples(st.just("$exists"), st.booleans()),
)
TESTS = VALUES | OPERATORS.map(lambda pair: dict([pair]))
CONDITIONS = st.recursive(
    st.dictionaries(NAMES, TESTS, max_size=2),
    lambda inner: st.tuples(
        st.sampled_from(["$and", "$or", "$nor"]), st.lists(inner, min_size=1, max_size=2)
    ).map(lambda pair: dict([pair])),
    max_leaves=4,
)
WEIGHTS = st.sampled_from([{"on": 100}, {"on": 50, "off": 50}, {"x": 0.001, "off": 99.999}])
ROLLOUTS = st.fixed_dictionaries(
    {"weights": WEIGHTS}, optional={"by": NAMES, "salt": st.text("aé😀'\n", min_size=1)}
)
SERVES = st.sampled_from(["on", "off", "x"]).map(
    lambda name: {"serve": name}
) | ROLLOUTS.map(lambda rollout: {"rollout": rollout})  # fmt: skip
WINDOWS = st.sampled_from(
    [{"from": NOW}, {"until": NOW}, {"from": NOW, "until": NOW.replace(hour=9)}]
)
RULES = st.builds(
    lambda serves, others: serves | others,
    SERVES,
    st.fixed_dictionaries({}, optional={"when": CONDITIONS, "during": WINDOWS}),
)
VARIANT_LISTS = st.lists(st.sampled_from(["on", "off"]), min_size=1, max_size=2)


TEXTS: dict[str, Any] = {"on": "1", "off": "0", "x": "x"}
BOOLEANS: dict[str, Any] = {"on": True, "off": False, "x": True}


@st.composite
def flags(
    draw: st.DrawFn, variants: dict[str, Any] = TEXTS, rule: st.SearchStrategy[Any] = RULES
) -> Flag:
    rules = draw(st.lists(rule, max_size=3))
    needed = draw(st.lists(VARIANT_LISTS, max_size=2))
    fields: dict[str, Any] = {
        "variants": variants,
        "rules": [rule | {"name": f"rule {i}"} for i, rule in enumerate(rules)],
        "prerequisites": [
            {"flag": f"needed.{i}", "variants": variants} for i, variants in enumerate(needed)
        ],
        "fallthrough": draw(SERVES),
        "state": draw(st.sampled_from(["active", "active", "active", "paused", "archived"])),
        "off": draw(st.sampled_from([None, "off"])),
    }
    return flag_from(**fields)


ATTRIBUTES = st.dictionaries(
    st.sampled_from(["a", "b", "c", "d", "targeting_key"]),
    VALUES | st.sampled_from(["user-1", "user-2", "\ud800", 7, object()]),
)
ANSWERS = st.sampled_from(
    [Outcome(variant=name, reason=Reason.DEFAULT) for name in ("on", "off", None)]
)


@settings(max_examples=600)
@given(flags(), st.lists(ATTRIBUTES, min_size=1, max_size=4), MOMENTS, st.data())
def test_a_compiled_flag_answers_what_the_flag_says(
    flag: Flag, contexts: list[dict[str, Any]], now: datetime, data: st.DataObject
) -> None:
    answers = [data.draw(ANSWERS) for _ in flag.prerequisites]
    # A prerequisite is constant or not, and must not differ by that.
    asked: list[Outcome | EvaluationFn] = [
        answer if data.draw(st.booleans()) else lambda _, answer=answer: answer  # type: ignore[misc]
        for answer in answers
    ]
    evaluator = compile_flag(flag, asked, now.timestamp)
    for attributes in contexts:
        outcome = evaluator if isinstance(evaluator, Outcome) else evaluator(attributes)
        found = (outcome.variant, outcome.reason, outcome.rule, outcome.error_code)
        assert found == reference(flag, attributes, now.timestamp(), answers)
        if outcome.variant is None:
            assert outcome.value is CALLERS_DEFAULT
        else:
            assert outcome.value == flag.variants[outcome.variant]
        assert (outcome.error_message is None) is (outcome.error_code is None)


# Switches, held to evaluators, which are held to the reference

RAMPS = st.builds(
    lambda by, inside, hours: {
        "ramp": {
            "by": by,
            "variant": inside,
            "otherwise": "off" if inside == "on" else "on",
            "start": NOW - timedelta(hours=hours),
            "end": NOW + timedelta(hours=1),
        }
    },
    NAMES, st.sampled_from(["on", "off"]), st.integers(0, 3),
)  # fmt: skip
SPLITS = st.lists(st.sampled_from(["on", "off", "x"]), unique=True, min_size=1).map(
    lambda names: {"rollout": {"weights": {name: 60 // len(names) for name in names[:-1]} | {
        names[-1]: 100 - 60 // len(names) * (len(names) - 1)}}}
)  # fmt: skip


def assert_same(switch: bool | BooleanFn, evaluator: Outcome | EvaluationFn, context: Any) -> None:
    outcome = evaluator if isinstance(evaluator, Outcome) else evaluator(context)
    for default in (True, False):
        if outcome.error_code is ErrorCode.INVALID_CONTEXT:
            assert not isinstance(switch, bool)
            with pytest.raises(InvalidContextError):
                switch(context, default)
            continue
        found = switch if isinstance(switch, bool) else switch(context, default)
        assert found is (default if outcome.value is CALLERS_DEFAULT else outcome.value)


@settings(max_examples=400)
@given(
    flags(BOOLEANS, RULES | RAMPS | SPLITS),
    st.lists(ATTRIBUTES, min_size=1, max_size=4),
    MOMENTS,
    st.data(),
)
def test_a_switch_answers_what_the_evaluator_does(
    flag: Flag, contexts: list[dict[str, Any]], now: datetime, data: st.DataObject
) -> None:
    asked: list[Outcome | EvaluationFn] = [
        answer if data.draw(st.booleans()) else lambda _, answer=answer: answer  # type: ignore[misc]
        for answer in (data.draw(ANSWERS) for _ in flag.prerequisites)
    ]
    evaluator = compile_flag(flag, asked, now.timestamp)
    switch = compile_boolean_fn(flag, asked, now.timestamp)
    for attributes in contexts:
        assert_same(switch, evaluator, attributes)


@pytest.mark.parametrize(
    "serves",
    [
        {"serve": "on"},
        {"rollout": {"weights": {"on": 50, "off": 50}}},
        {"rollout": {"weights": {"off": 50, "on": 50}}},
        {"rollout": {"weights": {"on": 100}}},
        {"rollout": {"weights": {"on": 50, "x": 50}}},
        {"rollout": {"weights": {"on": 20, "off": 30, "x": 50}}},
        {"ramp": {"variant": "on", "otherwise": "off", "start": NOW, "end": NOW.replace(hour=9)}},
        {"ramp": {"variant": "on", "otherwise": "x", "start": NOW, "end": NOW.replace(hour=9)}},
    ],
    ids=str,
)
@pytest.mark.parametrize("by", ["targeting_key", "account", "account.id"])
@pytest.mark.parametrize("asked_before", [True, False], ids=["fetched", "unfetched"])
def test_a_switch_serves_as_the_evaluator_does(
    serves: dict[str, Any], by: str, asked_before: bool
) -> None:
    part = {name: {"by": by} | value for name, value in serves.items() if isinstance(value, dict)}
    fields: dict[str, Any] = {"variants": BOOLEANS, "fallthrough": serves | part}
    if asked_before:
        when = {by.split(".", maxsplit=1)[0]: {"$exists": True}, "targeting_key": {"$ne": "nobody"}}
        fields["rules"] = [{"name": "first", "when": {"a": 1}, "serve": "off"},
                           {"name": "rule", "when": when} | fields["fallthrough"]]  # fmt: skip
    flag = flag_from(**fields)
    moment = NOW.timestamp() + 1800
    evaluator = compile_flag(flag, now=lambda: moment)
    switch = compile_boolean_fn(flag, now=lambda: moment)
    for key in [*KEYS, *NO_KEYS, *(f"user-{i}" for i in range(50))]:
        for context in ({"targeting_key": key}, {"account": key}, {"account": {"id": key}}, {}):
            assert_same(switch, evaluator, context)


def test_a_switch_takes_any_form_of_context() -> None:
    flag = flag_when({"plan": "pro"})
    switch = compile_boolean_fn(flag)
    assert not isinstance(switch, bool)
    assert [switch(context, False) for context in PRO] == [True] * len(PRO)
    assert [switch(context, True) for context in NOT_PRO] == [False] * len(NOT_PRO)
    rollout = compile_boolean_fn(SPLIT)
    assert not isinstance(rollout, bool)
    expected = rollout({"targeting_key": "u"}, False)
    contexts: list[Any] = ["u", Context("u"), UserDict({"targeting_key": "u"}), Plan("u")]
    assert [rollout(context, not expected) for context in contexts] == [expected] * len(contexts)
    with use_context("u"):
        assert rollout(None, not expected) is expected
    with pytest.raises(InvalidContextError):
        switch(cast("Any", 5.5), False)


def test_a_switch_that_is_always_the_same_is_a_boolean() -> None:
    assert compile_boolean_fn(flag_from()) is False
    assert compile_boolean_fn(flag_from(fallthrough={"serve": "on"})) is True
    assert compile_boolean_fn(flag_from(state="paused", off="on")) is True
    for flag in (flag_from(state="paused"), flag_from(variants={"on": 1, "off": 0})):
        switch = compile_boolean_fn(flag)
        assert not isinstance(switch, bool)
        assert [switch("u", default) for default in (True, False)] == [True, False]


def test_a_boolean_attribute_is_no_number_and_a_number_no_boolean() -> None:
    for one, other in ((1, True), (0, False), (1.0, True), (0.0, False)):
        for when in ({"a": one}, {"a": {"$in": [one, 7]}}, {"a": {"$gte": one, "$lte": one}}):
            switch = compile_boolean_fn(flag_when(when))
            assert not isinstance(switch, bool)
            assert switch({"a": one}, False) is True
            assert switch({"a": other}, True) is False
            assert switch({"a": [other]}, True) is False
            assert variant(flag_when(when), {"a": other}) == "off"
            assert variant(flag_when({"a": {"$in": [other, "x"]}}), {"a": one}) == "off"
            assert variant(flag_when({"a": other}), {"a": one}) == "off"


# Shapes


def test_flags_of_one_structure_have_the_same_code() -> None:
    one = flag_from(
        key="one",
        rules=[{"name": "staff", "when": {"plan": "pro", "age": {"$gt": 3}}, "rollout": 10}],
    )
    other = flag_from(
        key="other",
        variants={"yes": True, "no": False},
        rules=[{"name": "dach", "when": {"country": "DE", "n": {"$gt": 4.5}}, "rollout": 90}],
        fallthrough={"serve": "no"},
    )
    assert code(one) == code(other)
    assert function(one)({"plan": "pro", "age": 4, "targeting_key": "u"}).rule == "staff"
    assert function(other)({"country": "DE", "n": 5, "targeting_key": "u"}).rule == "dach"


class Untouchable(list[Any]):
    """An attribute that no test may look into."""

    def __iter__(self) -> Any:
        raise AssertionError("it was looked into")


@pytest.mark.parametrize(
    "dear",
    [
        {"b": {"$semver": {"$gte": "1.2.3"}}},
        {"b": {"$regex": "x+y"}},
        {"b.c": "x"},
        {"b": {"$elemMatch": {"c": 1}}},
        {"$or": [{"a": "w"}, {"b": {"$semver": {"$lt": "1.2.3"}}}]},
    ],
    ids=str,
)
def test_cheap_tests_decide_before_dear_ones_in_whatever_order_they_are_written(
    dear: dict[str, Any],
) -> None:
    cheap = {"a": {"$in": ["x", "y"]}}
    for operator, decided in (("$and", "z"), ("$or", "x"), ("$nor", "x")):
        either = [flag_when({operator: tests}) for tests in ([dear, cheap], [cheap, dear])]
        assert code(either[0]) == code(either[1])
        answers = {variant(flag, {"a": decided, "b": Untouchable("x")}) for flag in either}
        assert answers == {"on" if operator == "$or" else "off"}


def test_another_structure_has_another_code() -> None:
    assert code(flag_when({"a": 1})) != code(flag_when({"a": "1"}))
    same, two = {"$or": [{"a": 1}, {"a": 2}]}, {"$or": [{"a": 1}, {"b": 2}]}
    assert code(flag_when(same)) != code(flag_when(two))


def disguised(value: Any) -> Any:
    """Return a condition of the same structure with other attributes and constants."""
    match value:
        case bool() | None:
            return value
        case int() | float():
            return value + 1000
        case str():
            return f"'\n{value}"
        case list():
            return [disguised(item) for item in value]
        case dict():
            return {
                name if name.startswith("$") else f'"{name}': disguised(item)
                for name, item in value.items()
            }
        case _:
            return value


@given(CONDITIONS)
def test_neither_constants_nor_attributes_are_read_as_code(when: dict[str, Any]) -> None:
    assert code(flag_when(when)) == code(flag_when(disguised(when)))


HOSTILE = (
    "'", '"', "\\", "\n", "\r\n", "\0", '"""', "'); raise SystemExit #", "__import__('os').abort()",
    "{}", "{0}", "{c}", "%s", "c0", "n0", "context", "\u2028", "😀", "None", "lambda: 0", "#", " ",
)  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_what_looks_like_code_is_data(text: str) -> None:
    for when in ({"a": text}, {"a": {"$in": [text, "x"]}}, {"a": {"$gte": text, "$lte": text}}):
        assert variant(flag_when(when), {"a": text}) == "on"
        assert variant(flag_when(when), {"a": f"{text}."}) == "off"
    if "\0" not in text:
        text = text.replace(".", "")
        assert variant(flag_when({text: 1}), {text: 1}) == "on"
        assert variant(flag_when({text: 1}), {"a": 1}) == "off"
        flag = flag_from(
            variants={text: text},
            rules=[{"name": text, "when": {"a": 1}, "serve": text}],
            fallthrough={"rollout": {"weights": {text: 100}, "salt": text, "by": text}},
        )
        outcome = function(flag)({"a": 1})
        assert (outcome.value, outcome.rule) == (text, text)
        assert function(flag)({text: "user"}).reason is Reason.SPLIT


def test_an_interval_ends_before_its_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    # No key is known whose hash is a threshold: so one is made a threshold.
    monkeypatch.setattr(
        compiler, "compute_threshold", lambda _: hash_key(compute_seed("f"), "user")
    )
    assert variant(SPLIT, "user") == "off"


# Constant flags


def test_a_flag_that_always_answers_the_same_is_its_outcome() -> None:
    assert compile_flag(flag_from()) == Outcome(value=False, variant="off", reason=Reason.STATIC)
    paused = flag_from(state="paused", off="off", rules=[{"name": "r", "serve": "on"}])
    assert compile_flag(paused) == Outcome(value=False, variant="off", reason=Reason.DISABLED)
    assert compile_flag(flag_from(state="archived")) == Outcome(reason=Reason.DISABLED)


def test_a_prerequisite_that_is_never_met_makes_a_flag_constant() -> None:
    flag = flag_from(off="off", prerequisites=[{"flag": "g", "variants": ["on"]}], rules=[
        {"name": "r", "when": {"a": 1}, "serve": "on"}])  # fmt: skip
    never = Outcome(value=1, variant="off", reason=Reason.STATIC)
    assert compile_flag(flag, [never]) == Outcome(
        value=False, variant="off", reason=Reason.DISABLED
    )


def test_a_prerequisite_that_is_always_met_costs_nothing() -> None:
    flag = flag_from(prerequisites=[{"flag": "g", "variants": ["on"]}])
    always = Outcome(value=1, variant="on", reason=Reason.STATIC)
    assert compile_flag(flag, [always]) == Outcome(
        value=False, variant="off", reason=Reason.DEFAULT
    )


def test_prerequisites_are_asked_with_the_same_context() -> None:
    flag = flag_from(off="off", prerequisites=[{"flag": "g", "variants": ["on"]}],
                     fallthrough={"serve": "on"})  # fmt: skip
    evaluator = function(flag, function(flag_when({"plan": "pro"})))
    contexts: list[ContextLike] = [{"plan": "pro"}, Context("u", {"plan": "pro"})]
    for context in contexts:
        assert evaluator(context).variant == "on"
        with use_context(context):
            assert evaluator(None).variant == "on"
    assert evaluator({"plan": "free"}).reason is Reason.DISABLED


def test_a_rule_without_a_name_is_a_rule() -> None:
    outcome = function(flag_from(rules=[{"name": "", "when": {"a": 1}, "serve": "on"}]))({"a": 1})
    assert (outcome.rule, outcome.reason) == ("", Reason.TARGETING_MATCH)


# Odd contexts


class Plan(str):
    __slots__ = ()


class Level(Enum):
    PRO = "pro"


class Grade(str, Enum):  # noqa: UP042 - what many have, and whose str() is not its content
    PRO = "pro"


class Tier(StrEnum):
    PRO = "pro"


class Defaulting(dict[str, Any]):
    def __missing__(self, key: str) -> str:
        return "pro"


PRO: list[Any] = [
    {"plan": "pro"},
    Context(attributes={"plan": "pro"}),
    UserDict({"plan": "pro"}),
    Defaulting(plan="pro"),
    {"plan": Plan("pro")},
    {"plan": Tier.PRO},
    {"plan": Level.PRO},
    {"plan": Grade.PRO},
    {"plan": ["free", "pro"]},
    {"plan": ("pro",)},
]
NOT_PRO: list[Any] = [
    "pro",
    {},
    Context("pro"),
    Defaulting(),
    {"plan": object()},
    {"plan": {"pro"}},
    {"plan": {"plan": "pro"}},
    {"plan": b"pro"},
    {"plan": 10**5000},
    {"plan": "\ud800"},
    {1: "pro", None: "pro"},
]


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ({"plan": "pro"}, ("on", "off")),
        ({"plan": {"$in": ["pro", "x"]}}, ("on", "off")),
        ({"plan": {"$ne": "pro"}}, ("off", "on")),
        ({"plan": {"$nin": ["pro", "x"]}}, ("off", "on")),
        ({"$and": [{"plan": {"$gte": "pro"}}, {"plan": {"$lte": "pro"}}]}, ("on", "off")),
    ],
    ids=str,
)
def test_any_form_of_context_is_answered(when: dict[str, Any], expected: tuple[str, str]) -> None:
    flag = flag_when(when)
    assert [variant(flag, context) for context in PRO] == [expected[0]] * len(PRO)
    assert [variant(flag, context) for context in NOT_PRO] == [expected[1]] * len(NOT_PRO)


@pytest.mark.parametrize(
    "value", [10**5000, -(10**400), 2**64], ids=lambda n: f"{n.bit_length()} bits"
)
def test_huge_integers_compare_exactly(value: int) -> None:
    for constant in (1, 0.5, 2**53, 1e300, float("inf"), float("-inf")):
        expected = "on" if value > constant else "off"
        assert variant(flag_when({"n": {"$gt": constant}}), {"n": value}) == expected
        assert variant(flag_when({"n": {"$gt": constant}}), {"n": [value]}) == expected
        assert variant(flag_when({"n": constant}), {"n": value}) == "off"
        assert variant(flag_when({"n": {"$in": [constant, 3]}}), {"n": value}) == "off"


@pytest.mark.parametrize("context", [True, 1.5, b"user", ["user"], Ellipsis, {"user"}], ids=str)
def test_what_is_no_context_raises_its_own_error(context: Any) -> None:
    with pytest.raises(InvalidContextError, match=type(context).__name__):
        function(flag_when({"a": 1}))(context)


def test_a_str_subclass_is_a_targeting_key() -> None:
    flag = flag_when({"targeting_key": "pro"})
    assert variant(flag, Plan("pro")) == "on"
    assert variant(flag, Tier.PRO) == "on"


def test_the_ambient_context_serves_where_none_is_passed() -> None:
    evaluator = function(flag_when({"plan": "pro"}))
    assert evaluator(None).variant == "off"
    with use_context({"plan": "pro"}):
        assert evaluator(None).variant == "on"
        assert evaluator({}).variant == "off"
        with use_context("someone"):
            assert evaluator(None).variant == "off"
        assert evaluator(None).variant == "on"
    assert evaluator(None).variant == "off"


def test_evaluation_leaves_contexts_as_they_were() -> None:
    flag = flag_from(rules=[{"name": "r", "when": {"x": 1, "y.z": 2}, "rollout": 50}])
    for context in ({"targeting_key": "u", "x": [1]}, Context("u", {"x": 1, "y": {"z": [2]}})):
        before = repr(context)
        function(flag)(context)
        assert repr(context) == before


# Targeting keys

SPLIT = flag_from(fallthrough={"rollout": 50})
KEYS: list[Any] = ["user", Plan("user"), Tier.PRO, 7, 0, -7, 10**4000, "\ud800", "a\0b", "😀", " "]
NO_KEYS: list[Any] = ["", None, True, False, 7.0, b"user", ["user"], {"a": 1}, Ellipsis]


def test_a_rollout_serves_strings_and_integers() -> None:
    for key in KEYS:
        outcome = function(SPLIT)({"targeting_key": key})
        text = str(key)
        expected = "on" if compute_bucket(compute_seed("f"), text) < 50_000 else "off"
        assert (outcome.variant, outcome.reason) == (expected, Reason.SPLIT)


def test_an_integer_is_bucketed_as_its_decimal_form() -> None:
    for number in range(-20, 200):
        by_number = function(SPLIT)({"targeting_key": number})
        assert by_number is function(SPLIT)(str(number)) or by_number == function(SPLIT)(
            str(number)
        )


@pytest.mark.parametrize("key", NO_KEYS, ids=ascii)
def test_a_rollout_without_a_key_is_the_callers_default(key: Any) -> None:
    outcome = function(SPLIT)({"targeting_key": key})
    assert (outcome.value, outcome.variant) == (CALLERS_DEFAULT, None)
    assert outcome.reason is Reason.ERROR
    if key is None or key == "":
        assert outcome.error_code is ErrorCode.TARGETING_KEY_MISSING
        assert outcome == function(SPLIT)({})
    else:
        assert outcome.error_code is ErrorCode.INVALID_CONTEXT
        assert type(key).__name__ in str(outcome.error_message)


@pytest.mark.parametrize("by", ["targeting_key", "account.id"])
def test_a_switch_that_tells_raises_where_there_is_nothing_to_hash(by: str) -> None:
    weights = {"on": 50, "off": 50}
    flag = flag_from(variants=BOOLEANS, fallthrough={"rollout": {"by": by, "weights": weights}})
    telling, silent = compile_boolean_fn(flag, raises=True), compile_boolean_fn(flag)
    assert not isinstance(telling, bool)
    assert not isinstance(silent, bool)
    context: Any
    for context in ({}, {by: None}, {by: ""}, {"account": {"id": ""}}, {"account": 5}):
        with pytest.raises(MissingKeyError):
            telling(context, True)
        assert silent(context, True) is True
    for key in KEYS:
        context = {"targeting_key": key, "account": {"id": key}}
        assert telling(context, True) is silent(context, True) is silent(context, False)
    context = {"targeting_key": 1.5, "account": {"id": 1.5}}
    for switch in (telling, silent):
        with pytest.raises(InvalidContextError):
            switch(context, True)


def test_a_rollout_by_another_attribute() -> None:
    def by(path: str) -> EvaluationFn:
        weights = {"on": 50, "off": 50}
        return function(flag_from(fallthrough={"rollout": {"by": path, "weights": weights}}))

    flat, deep = by("account"), by("account.id")
    for i in range(50):
        expected = function(SPLIT)(f"account-{i}")
        assert flat({"account": f"account-{i}"}) == expected
        assert deep({"account": {"id": f"account-{i}"}, "targeting_key": "u"}) == expected
    for context in ({}, {"account": "a"}, {"account": [{"id": "a"}]}, {"account.id": "a"}):
        assert deep(context).error_code is ErrorCode.TARGETING_KEY_MISSING
    assert "account.id" in str(deep({}).error_message)


def test_a_variant_of_no_weight_is_never_served() -> None:
    flag = flag_from(
        variants={"a": 1, "b": 2, "c": 3},
        fallthrough={"rollout": {"weights": {"a": 0, "b": 100, "c": 0}}},
    )
    assert {function(flag)(f"user-{i}").variant for i in range(1000)} == {"b"}


# Windows


@pytest.mark.parametrize(
    ("during", "expected"),
    [
        ({"from": NOW}, ["off", "on", "on", "on", "on"]),
        ({"until": NOW.replace(hour=9)}, ["on", "on", "on", "off", "off"]),
        ({"from": NOW, "until": NOW.replace(hour=9)}, ["off", "on", "on", "off", "off"]),
    ],
    ids=["from", "until", "both"],
)
def test_a_window_begins_inclusive_and_ends_exclusive(
    during: dict[str, datetime], expected: list[str]
) -> None:
    flag = flag_from(rules=[{"name": "window", "during": during, "serve": "on"}])
    start, end = NOW.timestamp(), NOW.replace(hour=9).timestamp()
    moments = [math.nextafter(start, 0), start, math.nextafter(end, 0), end, end + 1]
    clock = iter(moments)
    evaluator = compile_flag(flag, now=lambda: next(clock))
    assert not isinstance(evaluator, Outcome)
    assert [evaluator({}).variant for _ in moments] == expected


def test_each_flag_keeps_its_own_clock_in_a_shared_shape() -> None:
    flag = flag_from(rules=[{"name": "window", "during": {"from": NOW}, "serve": "on"}])
    early, late = (
        compile_flag(flag, now=lambda moment=moment: moment)  # type: ignore[misc]
        for moment in (0.0, NOW.timestamp() + 1)
    )
    assert not isinstance(early, Outcome)
    assert not isinstance(late, Outcome)
    assert (early({}).variant, late({}).variant) == ("off", "on")


# Limits


@pytest.mark.parametrize("count", [LEAVES_MAX - 1, LEAVES_MAX, LEAVES_MAX + 1, 500])
def test_a_condition_of_many_tests(count: int) -> None:
    flag = flag_when({"$or": [{"n": {"$gte": i, "$lt": i + 1}} for i in range(0, count, 2)]})
    evaluator = function(flag)
    last = (count - 1) // 2 * 2
    for value in (0, 1, last, last + 1, [1, last + 0.5], "0"):
        attributes = {"n": value}
        expected = "on" if matches(flag.rules[0].condition, attributes) else "off"
        assert evaluator(attributes).variant == expected


def test_a_large_condition_is_not_made_into_code() -> None:
    small = flag_when({f"a{i}": i for i in range(LEAVES_MAX)})
    large = flag_when({f"a{i}": i for i in range(LEAVES_MAX + 1)})
    assert len(code(large)[0]) < 300 < len(code(small)[0])
    everything = {f"a{i}": i for i in range(LEAVES_MAX + 1)}
    assert variant(small, everything) == variant(large, everything) == "on"
    assert variant(small, everything | {"a5": 6}) == variant(large, everything | {"a5": 6}) == "off"


@pytest.mark.parametrize("operator", ["$and", "$or", "$nor"])
def test_conditions_nested_as_deep_as_a_policy_may_be(operator: str) -> None:
    when: dict[str, Any] = {"a": 1}
    # Each level is a list and a document, below `rules[0].when`.
    depth = (DEPTH_MAX - 4) // 2
    for _ in range(depth):
        when = {operator: [when]}
    with pytest.raises(InvalidDocumentError, match="nested"):
        flag_when({operator: [when]})
    negated = operator == "$nor" and depth % 2 == 1
    for attributes, holds in (({"a": 1}, True), ({"a": [1]}, True), ({"a": 2}, False), ({}, False)):
        assert variant(flag_when(when), attributes) == ("on" if holds is not negated else "off")


def test_many_rules_of_many_attributes() -> None:
    rules = [
        {"name": f"rule {i}", "when": {f"a{i}": {"$in": [i]}, "shared": "x"}, "serve": "on"}
        for i in range(256)
    ]
    evaluator = function(flag_from(rules=rules))
    for i in (0, 100, 255):
        assert evaluator({f"a{i}": i, "shared": "x"}).rule == f"rule {i}"
        assert evaluator({f"a{i}": i}).rule is None


def test_attributes_are_a_copy_where_a_context_is_no_dict() -> None:
    odd = UserDict({"a": 1})
    assert get_attributes(odd) == {"a": 1}
    assert type(get_attributes(odd)) is dict
    assert get_attributes(odd) is not odd.data


def ramp(**fields: Any) -> Flag:
    return decode(
        {
            "key": "ramped",
            "variants": {"on": True, "off": False},
            "fallthrough": {"ramp": {"variant": "on", "otherwise": "off"} | fields},
        }
    )


START, END = datetime(2026, 12, 1, tzinfo=UTC), datetime(2026, 12, 11, tzinfo=UTC)
USERS = [f"user-{i}" for i in range(2_000)]


def ramped(flag: Flag, moment: datetime) -> set[str]:
    """Return the users who are in at a moment."""
    evaluator = compile_flag(flag, now=moment.timestamp)
    assert not isinstance(evaluator, Outcome)
    return {user for user in USERS if evaluator(user).variant == "on"}


def below(percent: float) -> set[str]:
    """Return the users whose bucket is below a percentage."""
    return {user for user in USERS if compute_bucket(compute_seed("ramped"), user) < percent * 1000}


@pytest.mark.parametrize(
    ("days", "percent"),
    [(-1, 20), (0, 20), (2.5, 35), (5, 50), (9, 74), (10, 80), (365, 80)],
)
def test_a_ramp_runs_evenly_between_its_ends(days: float, percent: float) -> None:
    flag = ramp(start=START, end=END, **{"from": 20, "to": 80})
    assert ramped(flag, START + timedelta(days=days)) == below(percent)


@pytest.mark.parametrize(
    ("days", "percent"), [(-1, 0), (0, 5), (0.999, 5), (1, 50), (4, 50), (5, 100), (99, 100)]
)
def test_a_stepped_ramp_stays_where_it_is_until_the_next_step(days: float, percent: float) -> None:
    steps = [
        {"at": START + timedelta(days=day), "percent": share}
        for day, share in ((0, 5), (1, 50), (5, 100))
    ]
    assert ramped(ramp(steps=steps), START + timedelta(days=days)) == below(percent)


@given(st.lists(st.floats(-1, 12), min_size=2, max_size=6))
def test_a_rising_ramp_never_takes_anyone_out(days: list[float]) -> None:
    flag = ramp(start=START, end=END)
    seen: set[str] = set()
    for day in sorted(days):
        now = ramped(flag, START + timedelta(days=day))
        assert seen <= now
        seen = now


def test_a_ramp_needs_a_key_and_says_split() -> None:
    evaluator = compile_flag(ramp(start=START, end=END, by="org.id"), now=END.timestamp)
    assert not isinstance(evaluator, Outcome)
    assert evaluator("user").error_code is ErrorCode.TARGETING_KEY_MISSING
    assert evaluator({"org": {"id": 7}}).reason is Reason.SPLIT
