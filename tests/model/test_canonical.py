"""Canonical form and digest: what says the same has one digest, and nothing is lost."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from datetime import timedelta, timezone
from decimal import Decimal
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from ruamel.yaml import YAML

from flagkit._core.evaluation.matching import matches
from flagkit._core.model import Flag, Rollout, Serves, decode
from flagkit._core.model.canonical import (
    _NORMALIZERS,
    canonicalize_flag,
    compute_flag_digest,
    compute_segment_digest,
)
from flagkit._core.model.conditions import LOGICAL_OPERATORS, OPERATORS
from flagkit._core.model.rollouts import allocate
from flagkit._core.model.segments import decode_segment
from flagkit.errors import InvalidDocumentError
from flagkit.policy_files.dump import dump_json, dump_yaml
from flagkit.policy_files.reader import FlagPolicy, PolicyFile
from tests.model.test_flags import MOMENT, document, documents, rollout, rule, same, when
from tests.support.mongod_oracle import BatchGenerator

SHOP = Path(__file__).parents[2] / "examples" / "shop" / "flags.yaml"
EAST = timezone(timedelta(hours=1))


def both(*conditions: dict[str, Any]) -> dict[str, Any]:
    return rule(when={"$and": list(conditions)})


SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the order of fields": (document(owner="a", off="on"), document(off="on", owner="a")),
    "defaults spelled out": (
        document(),
        document(
            region="*",
            state="active",
            when_stale="hold",
            rules=[],
            prerequisites=[],
            tags=[],
            owner=None,
        ),
    ),
    "the environment": (document(), document(environment="production")),
    "the order of variants": (document(), document(variants={"off": False, "on": True})),
    "integers among floats": (
        document(variants={"on": 1, "off": 0.5}),
        document(variants={"on": 1.0, "off": 0.5}),
    ),
    "dates in other zones": (
        document(expires=MOMENT),
        document(expires=MOMENT.astimezone(EAST).isoformat()),
    ),
    "the order and repetition of tags": (document(tags=["a", "b"]), document(tags=["b", "a", "b"])),
    "a bare percentage": (
        document(fallthrough={"rollout": 20}),
        rollout(weights={"on": 20, "off": 80}),
    ),
    "defaults of a rollout": (rollout(), rollout(by="targeting_key", salt="f")),
    "a weight of nothing": (rollout(weights={"on": 100}), rollout(weights={"off": 0, "on": 100})),
    "intervals that follow": (rollout(), rollout(intervals=[[50_000, "on"], [100_000, "off"]])),
    "the order of weights where intervals say it": (
        rollout(),
        rollout(
            weights={"off": 50, "on": 50}, intervals=[[9, "on"], [50_000, "on"], [100_000, "off"]]
        ),
    ),
    "the order of prerequisites": (
        document(prerequisites=[{"flag": "a", "variants": ["x", "y"]}] * 2
                 + [{"flag": "b", "variants": ["x"]}]),
        document(prerequisites=[{"flag": "b", "variants": ["x"]},
                                {"flag": "a", "variants": ["y", "x", "x"]}]),
    ),
    "no condition": (rule(), rule(when={})),
    "an empty conjunction": (rule(), rule(when={"$and": [{}, {"$and": [{}]}]})),
    "the order of attributes": (when(a=1, b=2), when(b=2, a=1)),
    "the order of operators": (when(a={"$gt": 1, "$lt": 5}), when(a={"$lt": 5, "$gt": 1})),
    "equality spelled out": (when(a=[1]), when(a={"$eq": [1]})),
    "kinds of numbers": (when(a={"x": 1}, b=[2]), when(a={"x": 1.0}, b=[2.0])),
    "minus nothing": (when(a=0), when(a=-0.0)),
    "the order and repetition in a set": (
        when(a={"$in": [1, "b", 1.0], "$nin": [None, 2]}),
        when(a={"$nin": [2, None, 2], "$in": ["b", 1]}),
    ),
    "the order in $all": (
        when(a={"$all": ["x", "y"]}),
        when(a={"$all": ["y", "x", "y"]}),
    ),
    "nested conjunctions": (
        when(a={"$gt": 1, "$lt": 5}, b=1),
        both({"a": {"$lt": 5}}, {"$and": [{"b": 1}, {"a": {"$gt": 1}}]}),
    ),
    "what stands twice": (when(a={"$gt": 1}), both({"a": {"$gt": 1}}, {"a": {"$gt": 1}})),
    "the order of what one field cannot hold": (
        both({"a": {"$ne": 1}}, {"a": {"$ne": 2}}, {"a": {"$ne": 3}}),
        both({"a": {"$ne": 3}}, {"a": {"$ne": 2}}, {"a": {"$ne": 1}}),
    ),
    "the order of branches": (
        rule(when={"$or": [{"a": 1}, {"b": 1}], "$nor": [{"c": 1}, {"d": 1}]}),
        rule(when={"$nor": [{"d": 1}, {"c": 1}], "$or": [{"b": 1}, {"a": 1}, {"a": 1}]}),
    ),
    "the order within $not": (
        when(a={"$not": {"$gt": 1, "$in": [1, 2]}}),
        when(a={"$not": {"$in": [2, 1], "$gt": 1}}),
    ),
    "the order within $elemMatch": (
        when(a={"$elemMatch": {"x": 1, "$or": [{"y": 1}]}}),
        when(a={"$elemMatch": {"$or": [{"y": 1}], "x": 1}}),
    ),
    "the order of $elemMatch's operators": (
        when(a={"$all": [{"$elemMatch": {"$gt": 1, "$in": [2, 3]}}]}),
        when(a={"$all": [{"$elemMatch": {"$in": [3, 2.0], "$gt": 1}}]}),
    ),
    "a regular expression's options": (
        when(a={"$regex": "x", "$options": "im"}),
        when(a={"$options": "mii", "$regex": "x"}),
    ),
    "no options": (when(a={"$regex": "x", "$options": ""}), when(a={"$regex": "x"})),
    "what stands beside a regular expression": (
        when(a={"$regex": "x", "$in": ["x", "y"]}),
        both({"a": {"$in": ["y", "x"]}}, {"a": {"$regex": "x"}}),
    ),
    "presence": (
        when(a={"$exists": True}, b={"$exists": False}),
        when(a={"$exists": "no"}, b={"$exists": {"$numberDecimal": "0"}}),
    ),
    "a type by its number": (
        when(a={"$type": [2, 16.0]}, b={"$type": "string"}),
        when(a={"$type": ["int", "string"]}, b={"$type": {"$numberDecimal": "2.0"}}),
    ),
    "decimals": (
        when(a=Decimal("1.50"), b=[Decimal("2.0")]),
        when(a=Decimal("1.5"), b=[2]),
    ),
    "one type in a list": (when(a={"$type": "int"}), when(a={"$type": ["int"]})),
    "one text in a list": (when(a={"$contains": "x"}), when(a={"$contains": ["x", "x"]})),
    "the order of versions": (
        when(a={"$semver": {"$in": ["1.0.0", "2.0.0"], "$ne": "3.0.0"}}),
        when(a={"$semver": {"$ne": "3.0.0", "$in": ["2.0.0", "1.0.0"]}}),
    ),
}  # fmt: skip
DIFFERENT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the key": (document(), document(key="g")),
    "the region": (document(), document(region="eu")),
    "the state": (document(), document(state="paused")),
    "what holds when stale": (document(), document(when_stale="off")),
    "off": (document(), document(off="off")),
    "a variant's name": (document(), document(variants={"one": True, "off": False})),
    "an integer and a float": (
        document(variants={"on": 1, "off": 2}),
        document(variants={"on": 1.0, "off": 2}),
    ),
    "an integer and a float far down": (
        document(variants={"on": [1], "off": {}}),
        document(variants={"on": [1.0], "off": {}}),
    ),
    "true and a string": (
        document(variants={"on": "true", "off": ""}),
        document(variants={"on": "True", "off": ""}),
    ),
    "minus nothing as a variant": (
        document(variants={"on": 0.0, "off": 1.5}),
        document(variants={"on": -0.0, "off": 1.5}),
    ),
    "the order of weights": (rollout(), rollout(weights={"off": 50, "on": 50})),
    "intervals": (
        rollout(),
        rollout(intervals=[[1, "off"], [50_001, "on"], [100_000, "off"]]),
    ),
    "intervals, and weights in their order": (
        rollout(weights={"off": 50, "on": 50}),
        rollout(intervals=[[1, "off"], [50_001, "on"], [100_000, "off"]]),
    ),
    "the salt": (rollout(), rollout(salt="g")),
    "what is hashed": (rollout(), rollout(by="org.id")),
    "all of them, and a rollout to all of them": (
        document(fallthrough={"serve": "on"}),
        rollout(weights={"on": 100}),
    ),
    "the name of a rule": (rule(), rule(name="s")),
    "the order of rules": (
        document(rules=[{"name": "a", "serve": "on"}, {"name": "b", "serve": "off"}]),
        document(rules=[{"name": "b", "serve": "off"}, {"name": "a", "serve": "on"}]),
    ),
    "the time of a rule": (rule(), rule(during={"from": MOMENT})),
    "which end of time": (rule(during={"until": MOMENT}), rule(during={"from": MOMENT})),
    "a millisecond": (
        rule(during={"from": MOMENT}),
        rule(during={"from": MOMENT + timedelta(milliseconds=1)}),
    ),
    "one prerequisite for two": (
        document(prerequisites=[{"flag": "a", "variants": ["x", "y"]}]),
        document(prerequisites=[{"flag": "a", "variants": [v]} for v in "xy"]),
    ),
    "the order within a list": (when(a=[1, 2]), when(a=[2, 1])),
    "the order within a document": (when(a={"x": 1, "y": 1}), when(a={"y": 1, "x": 1})),
    "the order within a document in a set": (
        when(a={"$in": [{"x": 1, "y": 1}]}),
        when(a={"$in": [{"y": 1, "x": 1}]}),
    ),
    "decimals of 34 digits": (
        when(a=Decimal("0." + "1" * 34)),
        when(a=Decimal("0." + "1" * 33 + "2")),
    ),
    "decimals that are no numbers": (when(a=Decimal("NaN")), when(a=Decimal("Infinity"))),
    "presence and absence": (when(a={"$exists": True}), when(a={"$exists": 0})),
    "a document and its first field": (when(a={"b": 1}), when(a={"b": {"b": 1}})),
    "true and 1": (when(a=True), when(a=1)),
    "null and false": (when(a=None), when(a=False)),
    "a number and a string": (when(a=1), when(a="1")),
    "a date and its text": (when(a=MOMENT), when(a="2026-12-01T08:00:00.000Z")),
    "integers that floats cannot tell apart": (when(a=2**53 + 1), when(a=float(2**53))),
    "NaN and infinity": (when(a=math.nan), when(a=math.inf)),
    "two infinities": (when(a=-math.inf), when(a=math.inf)),
    "an operator": (when(a={"$gt": 1}), when(a={"$gte": 1})),
    "one operator of two": (when(a={"$gt": 1, "$lt": 5}), when(a={"$gt": 1})),
    "one test of two with one operator": (both({"a": {"$ne": 1}}, {"a": {"$ne": 2}}),
                                          when(a={"$ne": 1})),
    "the other test of two": (both({"a": {"$ne": 1}}, {"a": {"$ne": 2}}), when(a={"$ne": 2})),
    "one disjunction of two": (
        both({"$or": [{"a": 1}, {"b": 1}]}, {"$or": [{"c": 1}, {"d": 1}]}),
        both({"$or": [{"a": 1}, {"b": 1}]}),
    ),
    "the other disjunction of two": (
        both({"$or": [{"a": 1}, {"b": 1}]}, {"$or": [{"c": 1}, {"d": 1}]}),
        both({"$or": [{"c": 1}, {"d": 1}]}),
    ),
    "an operator and a document that looks like one": (
        when(a={"$gt": 1}),
        when(a={"$eq": {"$gt": 1}}),
    ),
    "an operator and a document with its bare name": (
        when(a={"$gt": 1}),
        when(a={"$eq": {"gt": 1}}),
    ),
    "a path and a document": (when(**{"a.b": 1}), when(a={"b": 1})),
    "and and or": (both({"a": 1}, {"b": 1}), rule(when={"$or": [{"a": 1}, {"b": 1}]})),
    "or and nor": (rule(when={"$or": [{"a": 1}]}), rule(when={"$nor": [{"a": 1}]})),
    "an empty document and none": (when(a={}), rule()),
    "element and whole": (when(a={"$elemMatch": {"x": 1}}), when(a={"x": 1})),
    "metadata": (document(owner="a"), document(owner="b")),
    "nobody as an owner": (document(owner=""), document()),
}  # fmt: skip


@pytest.mark.parametrize(("one", "other"), SAME.values(), ids=SAME)
def test_what_says_the_same_has_one_digest(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert canonicalize_flag(decode(one)) == canonicalize_flag(decode(other))
    assert compute_flag_digest(decode(one)) == compute_flag_digest(decode(other))


@pytest.mark.parametrize(("one", "other"), DIFFERENT.values(), ids=DIFFERENT)
def test_what_differs_has_another_digest(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert compute_flag_digest(decode(one)) != compute_flag_digest(decode(other))
    for form in map(canonicalize_flag, map(decode, (one, other))):
        assert repr(canonicalize_flag(decode(form))) == repr(form)


def test_the_digest_is_that_of_the_canonical_json() -> None:
    text = (
        '{"key":"f","variants":{"off":false,"on":true},"rules":[{"name":"r","when":{"a":{"$gt":'
        '{"$date":"2026-12-01T08:00:00.000Z"}},"ü":{"$numberDouble":"NaN"}},"serve":"on"}],'
        '"fallthrough":{"serve":"off"}}'
    )
    flag = decode(when(ü=math.nan, a={"$gt": MOMENT}))
    assert compute_flag_digest(flag) == hashlib.sha256(text.encode()).hexdigest()


def test_segments_that_say_the_same_have_one_digest() -> None:
    first = {"key": "s", "included": ["ada", 7, "eve"], "when": {"a": 1, "b": {"$in": [2, 1]}}}
    same_words = {
        "when": {"b": {"$in": [1, 2, 1.0]}, "a": {"$eq": 1}},
        "included": ["7", "eve", "ada", "ada"],
        "by": "targeting_key",
        "excluded": [],
        "key": "s",
    }
    others = [
        first | {"included": ["ada", 7]},
        first | {"excluded": ["ada"]},
        first | {"by": "id"},
        first | {"when": {}},
        {name: first[name] for name in ("key", "included")},
    ]
    digests = [
        compute_segment_digest(decode_segment(written).segment) for written in (first, *others)
    ]
    assert compute_segment_digest(decode_segment(same_words).segment) == digests[0]
    assert len(set(digests)) == len(digests)


def test_a_regular_expression_keeps_its_options() -> None:
    first, other, without = (
        decode(when(a=test))
        for test in (
            {"$options": "i", "$regex": "^x"},
            {"$regex": "^x", "$options": "i"},
            {"$regex": "^x"},
        )
    )
    assert compute_flag_digest(first) == compute_flag_digest(other)
    assert compute_flag_digest(first) != compute_flag_digest(without)


def test_every_operator_has_its_canonical_constant() -> None:
    operators = (*OPERATORS.values(), *LOGICAL_OPERATORS.values())
    assert {operator.constant.form for operator in operators} == _NORMALIZERS.keys()


@pytest.mark.parametrize(
    "last", [1, {"$numberDecimal": "0.1"}, {"$uuid": str(UUID(int=1))}], ids=str
)
def test_the_canonical_form_of_the_deepest_document_is_no_deeper(last: Any) -> None:
    deepest = last
    for _ in range(28):
        deepest = {"b": deepest}
    flag = decode(when(a=deepest))
    with pytest.raises(InvalidDocumentError, match="nested more than 32 deep"):
        decode(when(a={"b": deepest}))
    again = decode(canonicalize_flag(flag))
    assert again.rules[0].when == {"a": deepest}
    assert canonicalize_flag(again) == canonicalize_flag(flag)


@pytest.mark.parametrize("first", ["$x", "$gt", "gte", ">="])
def test_a_document_that_looks_like_operators_keeps_its_equality(first: str) -> None:
    flag = decode(when(a={"$eq": {first: 1}}))
    assert canonicalize_flag(flag)["rules"][0]["when"] == {"a": {"$eq": {first: 1}}}
    assert decode(canonicalize_flag(flag)).rules == flag.rules


def shuffled(chance: Random, written: Mapping[str, Any]) -> dict[str, Any]:
    return dict(chance.sample(list(written.items()), len(written)))


def scrambled(chance: Random, written: Mapping[str, Any]) -> dict[str, Any]:
    """Return a condition that says the same in other words."""
    made: dict[str, Any] = {}
    for name, value in shuffled(chance, written).items():
        first = next(iter(value), "") if isinstance(value, dict) else ""
        if name.startswith("$"):
            made[name] = [scrambled(chance, branch) for branch in value]
            if name != "$and":
                made[name] += made[name][:1]
        elif first.startswith("$"):
            made[name] = shuffled(chance, value)
        else:
            made[name] = {"$eq": value} if chance.random() < 0.5 else value
    if "$and" not in made and chance.random() < 0.5:
        made = {"$and": [{name: value} for name, value in made.items()] or [{}]}
    return made


@settings(max_examples=200)
@given(documents(), st.randoms(use_true_random=False))
def test_other_words_have_the_same_digest(made: dict[str, Any], chance: Random) -> None:
    rewritten = shuffled(chance, made) | {"variants": shuffled(chance, made["variants"])}
    rewritten["rules"] = [
        shuffled(chance, rule | {"when": scrambled(chance, rule.get("when", {}))})
        for rule in made.get("rules", [])
    ]
    assert compute_flag_digest(decode(rewritten)) == compute_flag_digest(decode(made))


# A digest is of the canonical form, so flags of one digest have one form; that the form means what
# the flag means is therefore all that is needed for flags of one digest to mean the same.


@settings(max_examples=200)
@given(documents())
def test_the_canonical_form_stands_for_the_same_flag(made: dict[str, Any]) -> None:
    flag = decode(made)
    again = decode(canonicalize_flag(flag))
    assert repr(canonicalize_flag(again)) == repr(canonicalize_flag(flag))
    assert (again.key, again.region, again.state, again.type, again.off) == (
        *(flag.key, flag.region, flag.state, flag.type, flag.off),
    )
    assert repr(sorted(again.variants.items())) == repr(sorted(flag.variants.items()))
    assert set(again.prerequisites) == {
        replace(item, variants=tuple(sorted(set(item.variants)))) for item in flag.prerequisites
    }
    assert again.metadata.keys() == flag.metadata.keys()
    assert [(rule.name, rule.during) for rule in again.rules] == [
        (rule.name, rule.during) for rule in flag.rules
    ]
    for one, other in zip(served(again), served(flag), strict=True):
        if isinstance(one, Rollout) and isinstance(other, Rollout):
            assert (one.by, one.salt) == (other.by, other.salt)
            assert one.intervals == allocate(other.weights, other.intervals)
        else:
            assert one == other


def served(flag: Flag) -> list[Serves]:
    return [*(rule.serves for rule in flag.rules), flag.fallthrough]


def test_canonical_conditions_hold_for_the_same_attributes() -> None:
    chance = Random(2026)
    compared = held = 0
    for _ in range(3_000):
        draw = BatchGenerator(chance)
        try:
            flag = decode(rule(when=draw.condition()))
        except InvalidDocumentError:  # a constant of a type that policies cannot hold
            continue
        (again,) = decode(canonicalize_flag(flag)).rules
        for attributes in (draw.document() for _ in range(10)):
            holds = matches(flag.rules[0].condition, attributes)
            assert matches(again.condition, attributes) is holds, (again.when, attributes)
            compared, held = compared + 1, held + holds
    assert compared > 10_000
    assert 0.1 < held / compared < 0.9


# Files


def written_and_read(text: str) -> list[FlagPolicy]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "flags.yaml"
        path.write_text(text)
        return PolicyFile(path).policies


LONG_NAMES = st.builds(
    lambda word, count, last: " ".join([word] * count) + last,
    *(st.sampled_from(["on", "a long one"]), st.integers(8, 400), st.sampled_from(["", "."])),
)


@settings(max_examples=50)
@given(LONG_NAMES, LONG_NAMES)
def test_names_of_any_length_are_read_as_they_were_written(name: str, other: str) -> None:
    made = when(a={name: {other: name}}) | {"variants": {name: [other], other: {}}}
    made |= {"rules": [made["rules"][0] | {"serve": name}], "fallthrough": {"serve": other}}
    flag = decode(made)
    for write in (dump_yaml, dump_json):
        (read,) = written_and_read(write([FlagPolicy(made, flag)]))
        assert canonicalize_flag(read.flag) == canonicalize_flag(flag)


def test_lines_end_where_what_is_on_them_ends() -> None:
    line = {"variant": "on", "otherwise": "off", "salt": "s" * 100, "start": MOMENT}
    made = rule(serve=None, ramp=line | {"end": MOMENT + timedelta(days=1)})
    text = dump_yaml([FlagPolicy(made, decode(made))])
    assert not re.search(r"\s$", text.rstrip("\n"), re.MULTILINE)
    assert re.search(r" end: 2026-12-02T08:00:00Z\b", text)


@settings(max_examples=200)
@given(documents())
def test_yaml_and_json_are_read_as_the_flags_that_were_written(made: dict[str, Any]) -> None:
    flag = decode(made)
    first = FlagPolicy(made, flag)
    for policy in (first, *written_and_read(dump_yaml([first]))):
        (from_yaml,) = written_and_read(dump_yaml([policy]))
        (from_json,) = written_and_read(dump_json([policy]))
        for read in (from_yaml, from_json):
            assert repr(canonicalize_flag(read.flag)) == repr(canonicalize_flag(flag))
            assert ("state" in read.document) == ("state" in made or flag.state != "active")
        assert same(from_yaml.flag, from_json.flag)
        assert dump_yaml([from_json]) == dump_yaml([from_yaml]) == dump_yaml([first])
        assert dump_json([from_yaml]) == dump_json([from_json]) == dump_json([first])


@pytest.mark.parametrize(
    "text",
    [
        *("on", "Off", "YES", "no", "y", "N", "true", "NULL", "~", "null", "", " ", "a ", " a"),
        *("1", "1.5", "1e5", "0x1F", "010", "22:00", "190:20:30.15", "1_000", "-1", ".5", ".inf"),
        *(".nan", "2026-12-01", "2026-12-01T08:00:00Z", "=", "<<", "- a", "? a", "a: b", "a #b"),
        *("#a", "&a", "*a", "!a", "|", ">", "%a", "@a", "`a", "'", '"', "[a", "{a", "a,b", "\\"),
        *("a\nb", "\t", "\x85", "\x7f", "\u2028", "\ufeff", "\uffff", "😀", "ü", "x" * 500),
        *("---", "...", "a b", "$in", "team-a", "ada@example.com", "a.b", "1.0.0", "v1"),
        *("e1", "_1", "nan", "inf"),
    ],
    ids=ascii,
)  # fmt: skip
def test_every_text_is_read_as_text_by_all_readers(text: str) -> None:
    flag = decode(document(owner=text, variants={text: text}, fallthrough={"serve": text}))
    policies = [FlagPolicy({}, flag)]
    for written in (dump_yaml(policies), dump_json(policies)):
        assert written_and_read(written)[0].flag == flag
    for version in ("1.1", "1.2"):
        reader = YAML(typ="safe", pure=True)
        reader.version = version
        (read,) = reader.load(dump_yaml(policies))["flags"]
        assert read == canonicalize_flag(flag)


def test_what_json_cannot_say_is_extended_json() -> None:
    constants = [MOMENT, math.nan, math.inf, -math.inf, 2**63 - 1, -(2**63), 1e300, 5e-324]
    flag = decode(when(a=constants, b=float(2**63)))
    text = dump_json([FlagPolicy({}, flag)])
    assert repr(written_and_read(text)[0].flag.rules) == repr(flag.rules)
    for written in ('{"$date": "2026-12-01T08:00:00.000Z"}', '{"$numberDouble": "-Infinity"}'):
        assert written in re.sub(r"\s+", " ", text).replace("{ ", "{").replace(" }", "}")
    text = json.dumps({"flags": [when(a=[{"$date": "2026-12-01T09:00:00+01:00"}])]})
    assert written_and_read(text)[0].flag.rules[0].when == {"a": [MOMENT]}


def test_the_example_is_the_same_in_either_format() -> None:
    policies = PolicyFile(SHOP).policies
    digests = [compute_flag_digest(policy.flag) for policy in policies]
    assert len(set(digests)) == len(policies)
    for text in (dump_yaml(policies), dump_json(policies)):
        assert [compute_flag_digest(policy.flag) for policy in written_and_read(text)] == digests
    assert dump_yaml([]) == "flags: []\n"
    assert written_and_read(dump_json([])) == []
