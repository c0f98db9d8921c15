"""The matcher and the compiled fast path, held to a real mongod's `find`."""

import itertools
import operator
import random
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, NamedTuple, TypeAlias
from uuid import UUID

import msgspec
import pytest
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions, TypeRegistry
from bson.decimal128 import Decimal128
from pymongo import MongoClient, WriteConcern
from pymongo.collection import Collection

from flagkit.core import matching
from flagkit.core.compiler import compile_flag
from flagkit.core.evaluation import Outcome
from flagkit.core.matching import matches
from flagkit.model import Rule, Serve, decode
from flagkit.model.conditions import (
    And,
    Compare,
    Condition,
    ElemMatch,
    Exists,
    Field,
    Nor,
    Or,
    Size,
    Test,
)
from flagkit.model.queries import TYPE_NAMES, parse
from flagkit.model.values import Value

Document: TypeAlias = dict[str, Any]
Matcher: TypeAlias = Callable[[Condition, Mapping[str, Any]], bool]

CONDITION_COUNT = 5_000
DOCUMENTS_PER_CONDITION = 20
SEED = 20_261_122

NAN = float("nan")
NAIVE = datetime(2026, 1, 1, 12)  # noqa: DTZ001 - what an attribute without a zone means is tested
NOON = NAIVE.replace(tzinfo=UTC)
ID = UUID("00112233-4455-6677-8899-aabbccddeeff")

OFF = decode({"key": "f", "variants": {"on": True, "off": False}, "fallthrough": {"serve": "off"}})


def compiled(condition: Condition) -> Callable[[Mapping[str, Any]], bool]:
    """Return the fast path of a condition: a flag whose only rule has it."""
    rule = Rule("only", {}, condition, None, Serve("on"))
    evaluator = compile_flag(msgspec.structs.replace(OFF, rules=(rule,)))
    assert not isinstance(evaluator, Outcome)
    return lambda attributes: evaluator(attributes).variant == "on"


def fast_path(condition: Condition, attributes: Mapping[str, Any]) -> bool:
    return compiled(condition)(attributes)


@pytest.fixture(scope="module")
def collection(mongo_uri: str) -> Iterator[Collection[Document]]:
    codec: CodecOptions[Document] = CodecOptions(
        uuid_representation=UuidRepresentation.STANDARD,
        type_registry=TypeRegistry(fallback_encoder=Decimal128),
    )
    with MongoClient[Document](mongo_uri) as client:
        name = f"test_matching_{uuid.uuid4().hex}"
        yield client.get_database(name).get_collection(
            "attributes", codec_options=codec, write_concern=WriteConcern(1, j=False)
        )
        client.drop_database(name)


def found(
    collection: Collection[Document], condition: Document, first_id: int, count: int
) -> set[int]:
    """Ask mongod which of the documents with some consecutive ids a condition matches."""
    among = {"_id": {"$gte": first_id, "$lt": first_id + count}, "$and": [condition]}
    return {answer["_id"] - first_id for answer in collection.find(among, {"_id": 1})}


class Case(NamedTuple):
    """A condition, and values of `a` that it holds for or not; `...` is an absent attribute."""

    name: str
    condition: Document
    yes: Sequence[Any]
    no: Sequence[Any]

    def wrong(self, answer: Callable[[Document], bool]) -> list[Document]:
        """Return the attributes that someone answers other than stated."""
        stated = [*((value, True) for value in self.yes), *((value, False) for value in self.no)]
        met = [({} if value is ... else {"a": value}, expected) for value, expected in stated]
        return [attributes for attributes, expected in met if answer(attributes) is not expected]


AT_MILLISECOND = datetime(2026, 1, 1, 12, 0, 0, 123_000, UTC)
BEFORE_1970 = datetime(1969, 12, 31, 23, 59, 59, 999_000, UTC)
EAST = timezone(timedelta(hours=5, minutes=30))

CASES = [
    # Paths
    Case("an element equals", {"a": 1}, [1, [1], [0, 1], 1.0], [[[1]], [], ..., None]),
    Case("the list itself equals", {"a": [1, 2]}, [[1, 2], [[1, 2]]], [[2, 1], [[[1, 2]]]]),
    Case("the empty list", {"a": []}, [[], [[]], [1, []]], [..., None, {}, [1], [[[]]]]),
    Case("a.b in a document", {"a.b": 1}, [{"b": 1}, {"b": [1]}], [1, {"b": 2}, {}, ...]),
    Case("a.b enters a list", {"a.b": 1}, [[{"b": 1}], [7, {"b": 1}]], [[[{"b": 1}]], [1]]),
    Case(
        "a.b is null",
        {"a.b": None},
        [..., 1, None, {}, {"b": None}, [{}], [1, {}], [{"b": None}]],
        [[], [1], [None], [[]], [[{}]], {"b": 1}, [{"b": 1}]],
    ),
    Case(
        "a.b exists",
        {"a.b": {"$exists": True}},
        [{"b": None}, [{"b": 1}]],
        [..., 1, {}, [], [1], [[{"b": 1}]]],
    ),
    Case(
        "a number is an index and a name",
        {"a.0": 5},
        [[5], {"0": 5}, [1, {"0": 5}], [{"0": 5}]],
        [[[[5]]], [1, 5], 5, [], {"1": 5}],
    ),
    Case("an index does not look into its element", {"a.0": 5}, [], [[[5]]]),
    Case("an index reaches a list itself", {"a.0": [5]}, [[[5]]], [[5]]),
    Case("path left at an index", {"a.0.b": None}, [..., 5, {}, [{}]], [[5], [None], [[5]]]),
    Case("path left at an inner index", {"a.b.0.c": None}, [{"b": 5}], [{"b": [5]}, [{"b": [5]}]]),
    Case("00 is no index", {"a.00": 5}, [{"00": 5}], [[5], {"0": 5}]),
    Case("a.0.b enters lists in lists", {"a.0.b": 1}, [[{"b": 1}], [[{"b": 1}]]], [{"b": 1}]),
    Case("an index beyond the list", {"a.3": None}, [..., 1, {}, [{}]], [[], [1], [[]]]),
    Case("a huge index", {"a.99999999999999999999": None}, [...], [[1]]),
    Case("$ne negates the path", {"a": {"$ne": 1}}, [2, ..., [], [2], "1", True], [1, [1, 2]]),
    Case("$nin negates the path", {"a": {"$nin": [1, 2]}}, [..., 3, [3]], [[3, 2], 1.0]),
    Case("$not negates the path", {"a": {"$not": {"$gt": 1}}}, [..., 1, "5", [1]], [[0, 2]]),
    Case(
        "$not of two operators negates both together",
        {"a": {"$not": {"$gt": 1, "$lt": 5}}},
        [1, 5, [1], ...],
        [3, [0, 9]],
    ),
    Case(
        "each operator may be met by another element",
        {"a": {"$gt": 1, "$lt": 5}},
        [[0, 9], 3],
        [[9], 0, []],
    ),
    # Values
    Case("null equals missing", {"a": None}, [..., None, [None]], [0, "", False, [], {}]),
    Case("$gte null", {"a": {"$gte": None}}, [..., None, [None]], [0, [], ""]),
    Case("$lte null", {"a": {"$lte": None}}, [..., None], [0]),
    Case("$gt null", {"a": {"$gt": None}}, [], [..., None, 1, [None]]),
    Case("$lt null", {"a": {"$lt": None}}, [], [..., None, -1]),
    Case("$in with null", {"a": {"$in": [1, None]}}, [..., None, 1, [None]], [0, []]),
    Case("$nin with null", {"a": {"$nin": [1, None]}}, [0, []], [..., None, 1]),
    Case("$ne null", {"a": {"$ne": None}}, [0, [], ""], [..., None, [None]]),
    Case("$exists", {"a": {"$exists": True}}, [None, 0, []], [...]),
    Case("$exists: false", {"a": {"$exists": False}}, [...], [None, 0, []]),
    Case("$exists: 0 is false", {"a": {"$exists": 0}}, [...], [None]),
    Case("$exists: -0.0 is false", {"a": {"$exists": -0.0}}, [...], [None]),
    Case("$exists: null is false", {"a": {"$exists": None}}, [...], [None]),
    Case('$exists: "" is true', {"a": {"$exists": ""}}, [None], [...]),
    Case("$exists: [] is true", {"a": {"$exists": []}}, [None], [...]),
    Case("$exists: NaN is true", {"a": {"$exists": NAN}}, [None], [...]),
    Case("a bool is no number", {"a": {"$in": [1, 0]}}, [1, 0.0], [True, False, [True]]),
    Case("a number is no bool", {"a": True}, [True, [True]], [1, 1.0, "true"]),
    Case("$in of bools", {"a": {"$in": [True]}}, [True], [1, [1]]),
    Case("bools are ordered", {"a": {"$gt": False}}, [True], [False, 1, "x", ...]),
    Case("$gte a number", {"a": {"$gte": 0}}, [0, -0.0, Decimal(0)], [True, "1", ..., None]),
    Case("NaN equals NaN", {"a": NAN}, [NAN, Decimal("NaN"), [NAN]], [0, None, ...]),
    Case("NaN among others", {"a": {"$in": [1, NAN]}}, [NAN, 1, Decimal("NaN")], [2]),
    Case("$ne NaN", {"a": {"$ne": NAN}}, [1, ...], [NAN]),
    Case("$gte NaN", {"a": {"$gte": NAN}}, [NAN], [1, float("inf"), ...]),
    Case("$lte NaN", {"a": {"$lte": NAN}}, [NAN], [1, float("-inf")]),
    Case("$lt NaN", {"a": {"$lt": NAN}}, [], [NAN, 1]),
    Case("$gt NaN", {"a": {"$gt": NAN}}, [], [NAN, 1]),
    Case("NaN is under nothing", {"a": {"$lt": 5}}, [4], [NAN, Decimal("NaN"), [NAN]]),
    Case("NaN is above nothing", {"a": {"$gte": float("-inf")}}, [0], [NAN]),
    Case("NaN in a list constant", {"a": [NAN]}, [[NAN]], [[0], [None]]),
    Case("a signalling NaN", {"a": {"$lte": 1}}, [], [Decimal("sNaN")]),
    Case("zero has no sign", {"a": 0}, [0.0, -0.0, Decimal("-0.0")], [False]),
    Case(
        "integers compare exactly with floats",
        {"a": 2**53 + 1},
        [2**53 + 1, Decimal(2**53 + 1)],
        [2.0**53, 2**53, 2**53 + 2],
    ),
    Case("exactly in $in", {"a": {"$in": [2.0**53]}}, [2**53, 2.0**53], [2**53 + 1]),
    Case("exactly in order", {"a": {"$gt": 2.0**53}}, [2**53 + 1], [2**53]),
    Case("decimals compare exactly", {"a": {"$lt": 0.1}}, [Decimal("0.1")], [0.1]),
    Case("Decimal 5 is 5", {"a": 5}, [Decimal(5), Decimal("5.00")], [Decimal("5.01")]),
    Case("infinity", {"a": float("inf")}, [Decimal("Infinity"), float("inf")], [2**63 - 1]),
    Case("5 is not its text", {"a": 5}, [], ["5", b"5", {"5": 5}]),
    Case("strings by code points", {"a": {"$lt": "a"}}, ["", "A", "Z"], ["a", "é", "😀"]),
    Case("beyond the first plane", {"a": {"$gt": "\uffff"}}, ["😀"], ["\ufffe", "é"]),
    Case("strings are not normalised", {"a": "é"}, ["é"], ["e\u0301"]),
    Case("NUL in strings", {"a": "x\0y"}, ["x\0y"], ["x", "x\0"]),
    Case("case counts", {"a": {"$in": ["DE", "AT"]}}, ["DE"], ["de", "", None]),
    Case(
        "the order of keys counts",
        {"a": {"b": 1, "c": 2}},
        [{"b": 1, "c": 2}, [{"b": 1.0, "c": 2}]],
        [{"c": 2, "b": 1}, {"b": 1}, {"b": 1, "c": 2, "d": 3}, {"b": True, "c": 2}],
    ),
    Case("a document is whole", {"a": {}}, [{}, [{}]], [{"b": 1}, ..., None, []]),
    Case("a literal with an operator second", {"a": {"b": 1, "$gt": 1}}, [], [{"b": 1}, 2]),
    Case("$eq of a document", {"a": {"$eq": {"b": [1]}}}, [{"b": [1]}], [{"b": 1}]),
    Case("kinds before names", {"a": {"$gt": {"b": 1}}}, [{"a": "x"}, {"c": 1}], [{"a": 9}]),
    Case("names before values", {"a": {"$gt": {"b": 1}}}, [{"c": 0}, {"b": 2}], [{"b": 0}]),
    Case("a prefix is less", {"a": {"$lt": {"b": 1, "c": 1}}}, [{"b": 1}, {}], [{"c": 1}]),
    Case("lists are ordered", {"a": {"$gt": [1, 2]}}, [[1, 3], [2], ["x"]], [[1], [0, 9], 5]),
    Case("kinds order within lists", {"a": {"$lt": [""]}}, [[None], [9], []], [[{}], [True]]),
    Case(
        "documents, lists and binaries are below bools in lists",
        {"a": {"$lt": [False]}},
        [["x"], [{}], [[]], [b""], [ID]],
        [[True], [NOON]],
    ),
    # Dates
    Case(
        "dates are cut to the millisecond",
        {"a": AT_MILLISECOND},
        [
            AT_MILLISECOND,
            AT_MILLISECOND + timedelta(microseconds=999),
            AT_MILLISECOND.astimezone(EAST),
        ],
        [AT_MILLISECOND - timedelta(microseconds=1), AT_MILLISECOND.isoformat()],
    ),
    Case(
        "cut downwards before 1970",
        {"a": BEFORE_1970},
        [BEFORE_1970 + timedelta(microseconds=500)],
        [BEFORE_1970 - timedelta(microseconds=500), BEFORE_1970 + timedelta(milliseconds=1)],
    ),
    Case("within a millisecond", {"a": {"$gt": AT_MILLISECOND}}, [],
           [AT_MILLISECOND + timedelta(microseconds=999)]),
    Case("a naive date is in UTC", {"a": NOON}, [NAIVE, NOON, [NAIVE]], [NAIVE.replace(hour=13)]),
    Case("dates have an order", {"a": {"$lt": NOON}}, [BEFORE_1970], [NAIVE, 0, "2025"]),
    Case("the first date", {"a": {"$lt": BEFORE_1970}}, [datetime(1, 1, 1, tzinfo=UTC)], []),
    # Binary attributes: a policy cannot hold any, so they equal nothing.
    Case("binaries equal no text", {"a": "x"}, [], [b"x", ID]),
    Case("binaries are not null", {"a": {"$in": [None, "x"]}}, [], [b"", ID]),
    Case("$ne and binaries", {"a": {"$ne": "x"}}, [b"x", ID], []),
    # Lists of constants, and logic
    Case("$in matches any element", {"a": {"$in": [1, "x"]}}, [[0, "x"], 1], [[[1]], [], "y"]),
    Case("$in with a list", {"a": {"$in": [[1], 2]}}, [[1], [[1]], [2]], [1, [[2]]]),
    Case("$in with a document", {"a": {"$in": [{"b": 1}]}}, [{"b": 1}], [{"b": 2}]),
    Case("$in: [] never", {"a": {"$in": []}}, [], [..., None, 1, []]),
    Case("$nin: [] always", {"a": {"$nin": []}}, [..., None, 1, []], []),
    Case("$and", {"$and": [{"a": 1}, {"a": 2}]}, [[1, 2]], [1, [1]]),
    Case("$or", {"$or": [{"a": 1}, {"a": 2}]}, [1, 2, [3, 2]], [3, ...]),
    Case("$nor", {"$nor": [{"a": 1}, {"a": 2}]}, [3, ...], [1, 2]),
    Case("$not $ne", {"a": {"$not": {"$ne": 1}}}, [1, [1, 2]], [2, ...]),
    Case("$not $exists", {"a": {"$not": {"$exists": False}}}, [None], [...]),
    Case("$not $in with null", {"a": {"$not": {"$in": [None]}}}, [1], [..., None]),
    # Regular expressions; tests/test_patterns.py has what they mean.
    Case(
        "$regex looks at strings alone",
        {"a": {"$regex": ""}},
        ["", "x", [1, "x"]],
        [..., None, 1, True, NOON, b"x", ID, {"b": "x"}, [], [1], [["x"]]],
    ),
    Case("$regex that takes `re`", {"a": {"$regex": "^(DE|AT)$"}}, ["DE", ["x", "AT"]], ["DEU"]),
    Case("$regex that takes an automaton", {"a": {"$regex": "a.*b"}}, ["xa-b", ["ab"]], ["ba", 1]),
    Case(
        "$options may stand first",
        {"a": {"$options": "i", "$regex": "^X"}},
        ["x", "Xy", ["y", "x"]],
        ["yx", ...],
    ),
    Case(
        "$regex among others",
        {"a": {"$regex": "b", "$ne": "b", "$options": "i"}},
        ["B", "ab", ["B", "c"]],
        ["b", ["b", "B"], ...],
    ),
    Case("$not $regex", {"a": {"$not": {"$regex": "b"}}}, ["a", ..., 1, ["a"]], ["b", ["a", "b"]]),
    Case(
        "$regex in $elemMatch",
        {"a": {"$elemMatch": {"$options": "i", "$regex": "^B", "$gt": "a"}}},
        [["b"], [1, "bc"]],
        ["b", ["B"], ["a", "B"], []],
    ),
    Case("$regex at a path", {"a.b": {"$regex": "c$"}}, [{"b": "c"}, [{"b": ["ac"]}]], [{}, "c"]),
    Case("the empty condition", {}, [..., 1], []),
    Case("the empty condition in $nor", {"$nor": [{}]}, [], [..., 1]),
]  # fmt: skip


@pytest.mark.mongo
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_mongod_answers_as_stated(collection: Collection[Document], case: Case) -> None:
    ids = itertools.count(10_000_000)

    def answer(attributes: Document) -> bool:
        first = next(ids)
        collection.replace_one({"_id": first}, attributes, upsert=True)
        return found(collection, case.condition, first, 1) == {0}

    assert case.wrong(answer) == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_matcher_and_the_fast_path_answer_as_stated(case: Case) -> None:
    condition = parse(case.condition, "")
    assert case.wrong(lambda attributes: matches(condition, attributes)) == []
    assert case.wrong(compiled(condition)) == []


def test_a_flat_key_is_never_matched_and_hides_no_path() -> None:
    for matcher in (matches, fast_path):
        assert not matcher(parse({"a.b": 1}, ""), {"a.b": 1})
        assert matcher(parse({"a.b": 1}, ""), {"a.b": 2, "a": {"b": 1}})


def test_attributes_are_joined_by_and() -> None:
    for matcher in (matches, fast_path):
        assert matcher(parse({"a": 1, "b": 2}, ""), {"a": 1, "b": 2})
        assert not matcher(parse({"a": 1, "b": 2}, ""), {"a": 1, "b": 3})


def test_tuples_and_subclasses_count_as_what_they_derive_from() -> None:
    class Plan(str):
        __slots__ = ()

    for matcher in (matches, fast_path):
        assert matcher(parse({"a": 1}, ""), {"a": (0, 1)})
        assert matcher(parse({"a": [0, 1]}, ""), {"a": (0, 1)})
        assert matcher(parse({"a.b": 1}, ""), {"a": ({"b": 1},)})
        assert matcher(parse({"a": "pro"}, ""), {"a": Plan("pro")})


def test_types_that_bson_has_not_match_nothing_and_exist() -> None:
    positive: list[Document] = [
        {"a": 1},
        {"a": None},
        {"a": {"$in": [1, "x"]}},
        {"a": {"$lt": {}}},
        {"a": {"$gte": [[]]}},
    ]
    odd: list[object] = [object(), {1, 2}, 1j, range(3), [object()], {"b": object()}]
    for value in odd:
        for matcher in (matches, fast_path):
            for written in positive:
                assert not matcher(parse(written, ""), {"a": value})
            assert matcher(parse({"a": {"$ne": 1}}, ""), {"a": value})
            assert matcher(parse({"a": {"$exists": True}}, ""), {"a": value})


VERSIONS = (
    *("1.0.0-0", "1.0.0-1", "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta"),
    *("1.0.0-beta.2", "1.0.0-beta.11", "1.0.0-rc.1", "1.0.0", "1.0.1", "1.2.0", "1.10.0", "2.0.0"),
)
COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "$eq": operator.eq,
    "$ne": operator.ne,
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}


@pytest.mark.parametrize("comparison", COMPARISONS)
@pytest.mark.parametrize("matcher", [matches, fast_path])
def test_versions_have_the_precedence_of_semver(matcher: Matcher, comparison: str) -> None:
    for i, constant in enumerate(VERSIONS):
        condition = parse({"app": {"$semver": {comparison: constant}}}, "")
        answers = [matcher(condition, {"app": f"{version}+build.7"}) for version in VERSIONS]
        assert answers == [COMPARISONS[comparison](n, i) for n in range(len(VERSIONS))]


NO_VERSIONS: list[object] = [
    *("1.0", "v1.0.0", "1.0.0.0", "01.0.0", "1.0.0-01", "1.0.0-", "1.0.0+", " 1.0.0", "1.0.0\n"),
    *("", "1.0.0-é", "\u0661.0.0", "9" * 5000 + ".0.0", 1, 1.0, None, True, {"1": 0}, []),
]


@pytest.mark.parametrize("comparison", ["$eq", "$ne", "$lt", "$nin", "$in"])
@pytest.mark.parametrize("matcher", [matches, fast_path])
def test_what_is_no_version_passes_no_comparison(matcher: Matcher, comparison: str) -> None:
    constant: Value = ["1.0.0"] if "in" in comparison else "1.0.0"
    condition = parse({"app": {"$semver": {comparison: constant}}}, "")
    assert not [value for value in NO_VERSIONS if matcher(condition, {"app": value})]
    assert not matcher(condition, {})


@pytest.mark.parametrize("matcher", [matches, fast_path])
def test_a_list_of_versions_passes_by_any_of_them(matcher: Matcher) -> None:
    condition = parse({"app": {"$semver": {"$gte": "2.0.0", "$lt": "3.0.0"}}}, "")
    assert matcher(condition, {"app": ["1.0.0", "2.5.0"]})
    assert not matcher(condition, {"app": ["1.0.0", "none"]})
    condition = parse({"app": {"$semver": {"$nin": ["1.0.0", "2.0.0"]}}}, "")
    assert matcher(condition, {"app": "1.5.0"})
    assert not matcher(condition, {"app": "2.0.0+x"})


AFFIXES = {"$startsWith": "^{}", "$endsWith": r"{}\z", "$contains": "{}"}


@pytest.mark.mongo
def test_affixes_are_what_regular_expressions_say(collection: Collection[Document]) -> None:
    chance = random.Random(SEED)
    letters = ("a", "b", ".", "A", "é", "\n", "$")

    def text(lengths: Sequence[int]) -> str:
        return "".join(chance.choices(letters, k=chance.choice(lengths)))

    first = 20_000_000
    values: list[Any] = [text((0, 1, 2, 3)) for _ in range(300)]
    values += [[text((1, 2)), chance.choice((1, None, text((2,))))] for _ in range(100)]
    values += [None, 1, {"a": "a"}, []]
    documents = [{"x": value} for value in values]
    collection.insert_many({"_id": first + i, **found} for i, found in enumerate(documents))
    for operator_name, pattern in AFFIXES.items():
        for _ in range(40):
            texts = [text((1, 1, 2)) for _ in range(chance.choice((1, 1, 2)))]
            written = [{"x": {"$regex": pattern.format(re.escape(part))}} for part in texts]
            answer = found(collection, {"$or": written}, first, len(documents))
            constant: Value = [*texts] if len(texts) > 1 else texts[0]
            condition = parse({"x": {operator_name: constant}}, "")
            for matcher in (matches, fast_path):
                ours = {i for i, document in enumerate(documents) if matcher(condition, document)}
                assert ours == answer, (operator_name, texts)


# The random oracle. Each condition meets documents of its own, made from a handful of values that
# it takes its constants from, too, or from their nearest neighbours: what differs least trips most.
#
# Left out of the generation, and why:
# - integers beyond 64 bits, decimals beyond 34 digits, names with NUL, lone surrogates: BSON has
#   none of them;
# - attribute paths that flagkit refuses (empty parts, `$` in front), and `{$ref: ...}`, which is no
#   operator in MongoDB: a policy cannot hold them;
# - years before 1 and after 9999: Python has no such dates.
# Constants include binaries, UUIDs, decimals and dates within a millisecond, which policies cannot
# hold: the matcher knows them as attributes, and a list may compare them with each other.

NAMES = ("a", "b", "c", "0", "1", "00")
SCALARS: tuple[Any, ...] = (
    *(None, True, False, 0, 1, 2, -1, 1.0, 0.0, -0.0, 0.1, 1.5, 2**53, 2**53 + 1, 2.0**53),
    *(2**63 - 1, -(2**63), 2.0**63, NAN, float("inf"), float("-inf")),
    *map(Decimal, ("1", "0.1", "1.50", "NaN", "Infinity", "9007199254740993")),
    *("", "a", "b", "A", "é", "e\u0301", "\uffff", "😀", "x\0y", "1"),
    *(b"", b"a", b"b", b"ab", ID.bytes, ID, UUID(int=1)),
    *(NAIVE, NOON, AT_MILLISECOND, BEFORE_1970, datetime(1970, 1, 1, tzinfo=UTC)),
)


class Draw:
    """Draws one condition and the documents that it meets."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.values = [self.fresh(0) for _ in range(3)]

    def fresh(self, depth: int) -> Any:
        kind = self.chance.random()
        if depth == 3 or kind < 0.6:
            return self.chance.choice(SCALARS)
        items = [self.fresh(depth + 1) for _ in range(self.chance.choice((0, 1, 1, 2, 2, 3)))]
        if kind < 0.8:
            return items
        return dict(zip(self.chance.sample(NAMES, len(items)), items, strict=True))

    def value(self) -> Any:
        """Return one of the values of this condition, a part of it, or one like it."""
        value = self.chance.choice(self.values)
        while isinstance(value, list | dict) and value and self.chance.random() < 0.3:
            value = self.chance.choice(list(value.values() if isinstance(value, dict) else value))
        choice = self.chance.random()
        if choice < 0.4:
            return value
        if choice < 0.8:
            return self.like(value)
        if choice < 0.9:
            return [value, self.chance.choice(self.values)][: self.chance.choice((1, 2))]
        return {self.chance.choice(NAMES): value}

    def like(self, value: Any) -> Any:  # noqa: PLR0911 - one for each type
        match value:
            case bool():
                return int(value)
            case int():
                return self.chance.choice((value == 1, float(value), Decimal(value), str(value)))
            case float() | Decimal() if -(2**62) < float(value) < 2**62:
                return self.chance.choice((int(value), Decimal(str(value)), float(value), -value))
            case datetime():
                away = self.chance.choice((-1000, -500, -1, 1, 500, 999, 1000))
                return value + timedelta(microseconds=away)
            case UUID():
                return value.bytes
            case bytes() if len(value) == 16:
                return UUID(bytes=value)
            case list():
                changed = [self.like(item) for item in value]
                return self.chance.choice((value[:1], value[::-1], [value], changed))
            case dict():
                items = list(value.items())
                likened = [(name, self.like(item)) for name, item in items]
                renamed = [(self.chance.choice(NAMES), item) for _, item in items]
                return dict(self.chance.choice((items[::-1], items[:1], likened, renamed)))
            case _:
                return self.chance.choice(SCALARS)

    def document(self) -> Document:
        names = self.chance.choice(((), "a", "a", "a", "b", "ab", "ab", "ba"))
        return {name: self.value() for name in names}

    def path(self) -> str:
        parts = [self.chance.choice("aab")]
        while self.chance.random() < 0.45 and len(parts) < 4:
            parts.append(self.chance.choice((*NAMES, "b", "0", "0")))
        return ".".join(parts)

    def literal(self) -> Any:
        """Return a constant; null, which a missing path equals, more often than by chance."""
        return None if self.chance.random() < 0.1 else self.value()

    def operators(self, depth: int = 0) -> Document:
        drawn: Document = {}
        for _ in range(self.chance.choice((1, 1, 1, 2))):
            operator = self.chance.choice(
                (
                    *("$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$exists", "$not"),
                    *("$all", "$elemMatch", "$elemMatch", "$size", "$mod", "$type"),
                )
            )
            if operator in ("$in", "$nin"):
                drawn[operator] = [self.literal() for _ in range(self.chance.choice((0, 1, 2, 3)))]
            elif operator == "$exists":
                drawn[operator] = self.chance.choice((True, False, 0, None, "", 1.0))
            elif operator == "$all":
                drawn[operator] = self.all_of(depth)
            elif operator == "$size":
                drawn[operator] = self.chance.choice((0, 1, 2, 1.0))
            elif operator == "$mod":
                divisor = self.chance.choice((1, 2, -2, 3, 2.9, 2**40))
                drawn[operator] = [divisor, self.chance.choice((0, 1, -1, 1.5, 2))]
            elif operator == "$type":
                drawn[operator] = self.types()
            elif operator not in ("$not", "$elemMatch"):
                drawn[operator] = self.literal()
            elif depth < 2:
                by_value = operator == "$not" or self.chance.random() < 0.5
                inner = self.operators if by_value else self.condition
                drawn[operator] = inner(depth + 1)
        return drawn or {"$eq": self.literal()}

    def all_of(self, depth: int) -> list[Any]:
        count = self.chance.choice((0, 1, 1, 2))
        if depth < 2 and self.chance.random() < 0.3:
            return [{"$elemMatch": self.operators(depth + 1)} for _ in range(count)]
        return [self.literal() for _ in range(count)]

    def types(self) -> Any:
        names = self.chance.sample(("number", 1.0, *TYPE_NAMES, *TYPE_NAMES.values()), 2)
        return self.chance.choice((names, names[0]))

    def condition(self, depth: int = 0) -> Document:
        drawn: Document = {}
        for _ in range(self.chance.choice((1, 1, 1, 2))):
            if depth < 2 and self.chance.random() < 0.15:
                operator = self.chance.choice(("$and", "$or", "$nor"))
                branches = self.chance.choice((1, 2, 2, 3))
                drawn[operator] = [self.condition(depth + 1) for _ in range(branches)]
            else:
                plain = self.chance.random() < 0.3
                drawn[self.path()] = self.literal() if plain else self.operators()
        return drawn


class Question(NamedTuple):
    """A condition, the documents that it meets, and which of them mongod finds."""

    written: Document
    parsed: Condition
    documents: list[Document]
    answer: set[int]


@pytest.fixture(scope="module")
def questions(collection: Collection[Document]) -> list[Question]:
    chance = random.Random(SEED)
    drawn: list[tuple[Document, list[Document]]] = []
    for _ in range(CONDITION_COUNT):
        draw = Draw(chance)
        drawn.append((draw.condition(), [draw.document() for _ in range(DOCUMENTS_PER_CONDITION)]))
    stored = (document for _, documents in drawn for document in documents)
    collection.insert_many({"_id": i, **document} for i, document in enumerate(stored))
    return [
        Question(
            written,
            parse(written, ""),
            documents,
            found(collection, written, i * DOCUMENTS_PER_CONDITION, DOCUMENTS_PER_CONDITION),
        )
        for i, (written, documents) in enumerate(drawn)
    ]


def disagreement(questions: list[Question], matcher: Matcher) -> str | None:
    """Return the first question that a matcher answers other than mongod, None if there is none."""
    for question in questions:
        for i, document in enumerate(question.documents):
            if matcher(question.parsed, document) is not (i in question.answer):
                return f"{question.written} on {document}: mongod says {i in question.answer}"
    return None


@pytest.mark.mongo
def test_the_matcher_agrees_with_mongod(questions: list[Question]) -> None:
    assert disagreement(questions, matches) is None


@pytest.mark.mongo
def test_the_fast_path_agrees_with_mongod(questions: list[Question]) -> None:
    fast = {id(question.parsed): compiled(question.parsed) for question in questions}
    assert disagreement(questions, lambda parsed, document: fast[id(parsed)](document)) is None


@pytest.mark.mongo
def test_the_questions_are_not_one_sided(questions: list[Question]) -> None:
    answered = sum(len(question.answer) for question in questions)
    assert 0.15 < answered / (CONDITION_COUNT * DOCUMENTS_PER_CONDITION) < 0.85
    split = sum(0 < len(question.answer) < len(question.documents) for question in questions)
    assert split > 0.25 * CONDITION_COUNT


# Deliberately wrong matchers, each by what it puts in the place of a part of the right one.


def negated_by_element(condition: Condition, attributes: Mapping[str, Any]) -> bool:
    match condition:
        case Nor((Field(path, test),)):
            whole = isinstance(test, Size | ElemMatch)
            reached = matching._reached(attributes, path, 0, whole)
            return any(not matching._passes(test, value) for value in reached)
        case And(conditions):
            return all(negated_by_element(item, attributes) for item in conditions)
        case Or(conditions):
            return any(negated_by_element(item, attributes) for item in conditions)
        case Nor(conditions):
            return not any(negated_by_element(item, attributes) for item in conditions)
        case _:
            return matches(condition, attributes)


def passes_missing_as_nothing(test: Test, value: object) -> bool:
    return value is not matching.MISSING and right_passes(test, value)


def passes_null_as_missing(test: Test, value: object) -> bool:
    if isinstance(test, Exists):
        return value is not matching.MISSING and value is not None
    return right_passes(test, value)


Path: TypeAlias = tuple[str, ...]


def spread_without_the_list(items: Any, path: Path, at: int, whole: bool) -> Iterator[object]:
    return iter(items) if at == len(path) else right_spread(items, path, at, whole)


def spread_always(items: Any, path: Path, at: int, whole: bool) -> Iterator[object]:
    del whole
    return right_spread(items, path, at, whole=False)


def spread_into_inner_lists(items: Any, path: Path, at: int, whole: bool) -> Iterator[object]:
    yield from right_spread(items, path, at, whole)
    for item in items:
        if isinstance(item, list):
            yield from right_spread(item, path, at, whole)


def spread_with_missing_scalars(items: Any, path: Path, at: int, whole: bool) -> Iterator[object]:
    yield from right_spread(items, path, at, whole)
    if at < len(path) and any(not isinstance(item, list | dict) for item in items):
        yield matching.MISSING


def remainder_of_python(value: Any, divisor: int) -> int | None:
    found = right_remainder(value, divisor)
    return found if found is None else int(value) % divisor


def remainder_of_the_fraction(value: Any, divisor: int) -> int | None:
    found = right_remainder(value, divisor)
    return found if found is None or value == int(value) else None


def types_with_one_integer(value: object) -> str | None:
    found = right_type(value)
    return "int" if found == "long" else found


def only_documents(items: Any) -> Iterator[Any]:
    return (item for item in items if isinstance(item, dict))


def indexed_with_missing_scalars(item: Any, path: Path, at: int, whole: bool) -> Iterator[object]:
    yield from right_indexed(item, path, at, whole)
    if at < len(path) and not isinstance(item, list | dict):
        yield matching.MISSING


def compare_by_float(left: Any, right: Any) -> int:
    if matching.kind(left) == matching.kind(right) == matching._NUMBER:
        left, right = float(left), float(right)
    return right_compare(left, right)


def equal_but_for_nan(left: Any, right: Any) -> bool:
    return right_equal(left, right) and not matching._is_nan(left)


def ordered_but_for_nan(operator: str, value: object, constant: object) -> bool:
    return right_ordered(operator, value, constant) and not matching._is_nan(constant)


def ordered_with_nan_least(operator: str, value: object, constant: object) -> bool:
    if operator in ("$lt", "$lte") and matching._is_nan(value):
        return matching.kind(constant) == matching._NUMBER
    return right_ordered(operator, value, constant)


def ordered_across_kinds(operator: str, value: object, constant: object) -> bool:
    order = right_compare(value, constant)
    if order and matching.kind(value) != matching.kind(constant):
        return operator in (("$gt", "$gte") if order > 0 else ("$lt", "$lte"))
    return right_ordered(operator, value, constant)


def ordered_null_strictly(operator: str, value: object, constant: object) -> bool:
    strict = constant is None and operator in ("$gte", "$lte")
    return not strict and right_ordered(operator, value, constant)


def documents_without_order(left: Mapping[str, Any], right: Mapping[str, Any]) -> int:
    return right_documents(dict(sorted(left.items())), dict(sorted(right.items())))


def documents_names_first(left: Mapping[str, Any], right: Mapping[str, Any]) -> int:
    for left_name, right_name in zip(left, right, strict=False):
        if left_name != right_name:
            return (left_name > right_name) - (left_name < right_name)
        order = matching.compare(left[left_name], right[right_name])
        if order:
            return order
    return len(left) - len(right)


def lists_by_length(left: list[Any], right: list[Any]) -> int:
    return len(left) - len(right) or right_lists(left, right)


def microseconds(value: datetime) -> int:
    whole = right_milliseconds(value)
    return whole * 1000 + value.microsecond % 1000


def milliseconds_towards_zero(value: datetime) -> int:
    return int(microseconds(value) / 1000)


def milliseconds_of_local_time(value: datetime) -> int:
    return right_milliseconds(value if value.tzinfo else value.replace(tzinfo=EAST))


def binary_without_length(value: bytes | UUID) -> tuple[int, int, bytes]:
    _, subtype, content = right_binary(value)
    return (0, subtype, content)


def binary_without_subtype(value: bytes | UUID) -> tuple[int, int, bytes]:
    length, _, content = right_binary(value)
    return (length, 0, content)


right_binary = matching._binary
right_compare = matching.compare
right_documents = matching._compare_documents
right_equal = matching.equal
right_indexed = matching._indexed
right_remainder = matching._remainder
right_type = matching.bson_type
right_lists = matching._compare_lists
right_milliseconds = matching._milliseconds
right_ordered = matching._ordered
right_passes = matching._passes
right_spread = matching._spread

BOOL_AS_NUMBER = {**matching._KINDS, bool: matching._NUMBER}
UNSUPPORTED = {kind: place for kind, place in matching._KINDS.items() if kind is not Decimal}

WRONG: dict[str, dict[str, object]] = {
    "a bool equals a number": {"_KINDS": BOOL_AS_NUMBER},
    "decimals are unknown": {"_KINDS": UNSUPPORTED},
    "$ne is judged by element": {"matches": negated_by_element},
    "missing is not null": {"_passes": passes_missing_as_nothing},
    "null does not exist": {"_passes": passes_null_as_missing},
    "lengths of elements count": {"_spread": spread_always},
    "the remainder has the divisor's sign": {"_remainder": remainder_of_python},
    "fractions have no remainder": {"_remainder": remainder_of_the_fraction},
    "int and long are one type": {"bson_type": types_with_one_integer},
    "lists are no documents of their indexes": {"_documents_in": only_documents},
    "the list itself is not compared": {"_spread": spread_without_the_list},
    "lists in lists are entered": {"_spread": spread_into_inner_lists},
    "a scalar in a list is a missing path": {"_spread": spread_with_missing_scalars},
    "a scalar at an index is a missing path": {"_indexed": indexed_with_missing_scalars},
    "no path part is an index": {"_INDEX": re.compile("(?!)")},
    "00 is an index": {"_INDEX": re.compile("[0-9]{1,9}")},
    "the order of keys is ignored": {"_compare_documents": documents_without_order},
    "names count before kinds": {"_compare_documents": documents_names_first},
    "the shorter list is less": {"_compare_lists": lists_by_length},
    "numbers are compared as floats": {"compare": compare_by_float},
    "NaN is not in [NaN]": {"equal": equal_but_for_nan},
    "NaN is not NaN": {"_ordered": ordered_but_for_nan},
    "NaN is below numbers": {"_ordered": ordered_with_nan_least},
    "types are not bracketed": {"_ordered": ordered_across_kinds},
    "$gte null matches nothing": {"_ordered": ordered_null_strictly},
    "microseconds are not cut": {"_milliseconds": microseconds},
    "dates before 1970 are cut upwards": {"_milliseconds": milliseconds_towards_zero},
    "a naive date is local": {"_milliseconds": milliseconds_of_local_time},
    "bytes order by content first": {"_binary": binary_without_length},
    "a UUID equals its bytes": {"_binary": binary_without_subtype},
}


@pytest.mark.mongo
@pytest.mark.parametrize("parts", WRONG.values(), ids=WRONG.keys())
def test_the_oracle_catches_a_wrong_matcher(
    questions: list[Question], parts: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, part in parts.items():
        monkeypatch.setattr(matching, name, part)
    assert disagreement(questions, matching.matches) is not None


def test_a_constant_of_each_operator_survives_the_way_through_a_policy() -> None:
    when = {
        "a": {"$gt": 1, "$nin": [2, "x"]},
        "b": {"$exists": True},
        "$or": [{"c": None}, {"c.d": {"$not": {"$lte": NOON}}}],
    }
    rules = [{"name": "r", "when": when, "serve": "on"}]
    flag = decode(
        {"key": "f", "variants": {"on": 1}, "rules": rules, "fallthrough": {"serve": "on"}}
    )
    assert flag.rules[0].condition == And(
        (
            And((Field(("a",), Compare("$gt", 1)), parse({"a": {"$nin": [2, "x"]}}, ""))),
            Field(("b",), Exists()),
            Or(
                (
                    Field(("c",), Compare("$eq", None)),
                    Nor((Field(("c", "d"), Compare("$lte", NOON)),)),
                )
            ),
        )
    )
