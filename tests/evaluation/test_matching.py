"""The matcher and the compiled fast path, held to a real mongod's `find`."""

import functools
import itertools
import operator
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import Decimal
from typing import Any, NamedTuple, TypeAlias

import pytest
from bson import ObjectId

from flagkit._core.evaluation import matching
from flagkit._core.evaluation.matching import matches
from flagkit._core.model import conditions, decode, values
from flagkit._core.model.conditions import (
    And,
    Compare,
    Condition,
    Exists,
    Field,
    Nor,
    Or,
    parse_condition,
)
from flagkit._core.model.values import normalize
from tests.support.mongod_oracle import (
    AT_MILLISECOND,
    BEFORE_1970,
    CONDITION_COUNT,
    DOCUMENT_COUNT,
    ID,
    NAN,
    NOON,
    OBJECT_ID,
    Document,
    Documents,
    Question,
    compile_condition,
    find_matches,
    iter_questions,
    open_attribute_collection,
)
from tests.support.mutants import EAST, WRONG, Mutant

Matcher: TypeAlias = Callable[[Condition, Mapping[str, Any]], bool]

ASKED_COUNT = 20_000
SEED = 20_261_122

NAIVE = NOON.replace(tzinfo=None)


def fast_path(condition: Condition, attributes: Mapping[str, Any]) -> bool:
    return compile_condition(condition)(attributes)


@pytest.fixture(scope="module")
def collection(mongo_uri: str) -> Iterator[Documents]:
    with open_attribute_collection(mongo_uri) as collection:
        yield collection


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
    # Extended values
    Case("decimals", {"a": Decimal("0.1")}, [Decimal("0.10"), [Decimal("0.1")]], [0.1, "0.1"]),
    Case("a decimal and others", {"a": {"$gte": Decimal("0.1")}}, [0.1, 1, Decimal(1)], [0, True]),
    Case("decimals far out", {"a": {"$lt": Decimal("1E+6144")}}, [1e308, 2**63 - 1, -1], [NAN]),
    Case("NaN as a decimal", {"a": {"$in": [Decimal("NaN")]}}, [NAN, Decimal("sNaN")], [0, None]),
    Case("infinity as a decimal", {"a": Decimal("-Infinity")}, [float("-inf")], [-1e308]),
    Case("$in of numbers of all types",
         {"a": {"$in": [True, 0, Decimal("0.5"), 2.0**53]}},
         [True, Decimal("-0"), 0.5, 2**53, [0.5]], [1, False, 2**53 + 1, "0", Decimal("0.50001")]),
    Case("bytes", {"a": b"x"}, [b"x", [b"x"]], ["x", b"", b"xy", None]),
    Case("bytes order by length first", {"a": {"$gt": b"b"}}, [b"c", b"aa", ID], [b"a", b"", "c"]),
    Case("a UUID", {"a": ID}, [ID, [ID]], [ID.bytes, str(ID)]),
    Case("a UUID's bytes", {"a": ID.bytes}, [ID.bytes], [ID]),
    Case("a UUID orders after its bytes", {"a": {"$lt": ID}}, [ID.bytes, b"\xff"], [ID, "a"]),
    Case("an ObjectId", {"a": OBJECT_ID}, [OBJECT_ID, [OBJECT_ID]],
         [OBJECT_ID.binary, str(OBJECT_ID), ObjectId("0" * 24), None]),
    Case("ObjectIds have an order", {"a": {"$gt": OBJECT_ID}}, [ObjectId("f" * 24)],
         [OBJECT_ID, ObjectId("0" * 24), b"x" * 99, True, "x", NOON]),
    Case("ObjectIds are of one kind alone", {"a": {"$lte": OBJECT_ID}},
         [OBJECT_ID, ObjectId("0" * 24)], [b"", ID, False, 0, None, ..., BEFORE_1970]),
    Case("ObjectIds are between binaries and booleans in documents",
         {"a": {"$gt": {"b": OBJECT_ID}}},
         [{"b": False}, {"b": BEFORE_1970}, {"b": ObjectId("f" * 24)}],
         [{"b": b"x" * 20}, {"b": ID}, {"b": OBJECT_ID}, {"b": "x"}]),
    Case("$in of ObjectIds", {"a": {"$in": [OBJECT_ID, [OBJECT_ID]]}}, [OBJECT_ID, [[OBJECT_ID]]],
         [OBJECT_ID.binary, str(OBJECT_ID)]),
    Case("$type of ObjectIds", {"a": {"$type": ["objectId"]}}, [OBJECT_ID, [OBJECT_ID]],
         [OBJECT_ID.binary, str(OBJECT_ID), ID, None, ...]),
    Case("$type 7", {"a": {"$type": 7}}, [OBJECT_ID], [b"x"]),
    Case("$in of UUIDs, bytes and dates",
         {"a": {"$in": [ID, b"x", AT_MILLISECOND]}},
         [ID, b"x", AT_MILLISECOND + timedelta(microseconds=1), [b"x"]],
         [ID.bytes, "x", NOON, None]),
    Case("extended values within others",
         {"a": {"$in": [[ID, Decimal(1)], {"b": b"x"}]}},
         [[ID, 1], {"b": b"x"}, [{"b": b"x"}]], [[1, ID], [ID.bytes, 1], {"b": "x"}]),
    Case("lengths of elements do not count, far down either", {"a.b": {"$size": 1}},
         [{"b": [7]}, [{"b": [[7]]}]], [{"b": [[7], [7]]}, {"b": 7}, {"b": []}]),
    Case("$mod of decimals", {"a": {"$mod": [Decimal("2.9"), Decimal("1.5")]}}, [3, 3.9], [2, "3"]),
    Case("$size of a decimal", {"a": {"$size": Decimal("1.0")}}, [[7], [[]]], [[], 1]),
    Case("$exists: decimal 0 is false", {"a": {"$exists": Decimal("0E+3")}}, [...], [None]),
    # Binary attributes
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
    # Regular expressions; tests/regex/test_regex.py has what they mean.
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
def test_mongod_answers_as_stated(collection: Documents, case: Case) -> None:
    ids = itertools.count(10_000_000)

    def answer(attributes: Document) -> bool:
        first = next(ids)
        collection.replace_one({"_id": first}, attributes, upsert=True)
        return find_matches(collection, case.condition, first, 1) == {0}

    assert case.wrong(answer) == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_matcher_and_the_fast_path_answer_as_stated(case: Case) -> None:
    condition = parse_condition(normalize(case.condition, ""), "")
    assert case.wrong(lambda attributes: matches(condition, attributes)) == []
    assert case.wrong(compile_condition(condition)) == []


def test_a_flat_key_is_never_matched_and_hides_no_path() -> None:
    for matcher in (matches, fast_path):
        assert not matcher(parse_condition({"a.b": 1}, ""), {"a.b": 1})
        assert matcher(parse_condition({"a.b": 1}, ""), {"a.b": 2, "a": {"b": 1}})


def test_attributes_are_joined_by_and() -> None:
    for matcher in (matches, fast_path):
        assert matcher(parse_condition({"a": 1, "b": 2}, ""), {"a": 1, "b": 2})
        assert not matcher(parse_condition({"a": 1, "b": 2}, ""), {"a": 1, "b": 3})


def test_tuples_and_subclasses_count_as_what_they_derive_from() -> None:
    class Plan(str):
        __slots__ = ()

    for matcher in (matches, fast_path):
        assert matcher(parse_condition({"a": 1}, ""), {"a": (0, 1)})
        assert matcher(parse_condition({"a": [0, 1]}, ""), {"a": (0, 1)})
        assert matcher(parse_condition({"a.b": 1}, ""), {"a": ({"b": 1},)})
        assert matcher(parse_condition({"a": "pro"}, ""), {"a": Plan("pro")})


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
                assert not matcher(parse_condition(written, ""), {"a": value})
            assert matcher(parse_condition({"a": {"$ne": 1}}, ""), {"a": value})
            assert matcher(parse_condition({"a": {"$exists": True}}, ""), {"a": value})


def test_a_document_with_names_that_are_no_strings_equals_none() -> None:
    for matcher in (matches, fast_path):
        assert not matcher(parse_condition({"a": {"b": 1}}, ""), {"a": {1: 1}})
        assert not matcher(parse_condition({"a": {"$in": [{"b": 1}]}}, ""), {"a": {None: 1}})


def test_an_integer_beyond_all_decimals_is_beyond_them() -> None:
    huge = 10**100_000
    expectations = {"1E+6144": [True, False], "-Infinity": [True, True], "Infinity": [False, False]}
    for constant, expected in expectations.items():
        condition = parse_condition({"a": {"$gt": {"$numberDecimal": constant}}}, "")
        for matcher in (matches, fast_path):
            assert [matcher(condition, {"a": value}) for value in (huge, -huge)] == expected


def test_a_date_whose_zone_says_nothing_is_in_utc() -> None:
    class Silent(tzinfo):
        def utcoffset(self, _: datetime | None) -> None:
            return None

        dst = tzname = utcoffset

    for matcher in (matches, fast_path):
        assert matcher(parse_condition({"a": NOON}, ""), {"a": NAIVE.replace(tzinfo=Silent())})


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
        condition = parse_condition({"app": {"$semver": {comparison: constant}}}, "")
        answers = [matcher(condition, {"app": f"{version}+build.7"}) for version in VERSIONS]
        assert answers == [COMPARISONS[comparison](n, i) for n in range(len(VERSIONS))]


NO_VERSIONS: list[object] = [
    *("1.0", "v1.0.0", "1.0.0.0", "01.0.0", "1.0.0-01", "1.0.0-", "1.0.0+", " 1.0.0", "1.0.0\n"),
    *("", "1.0.0-é", "\u0661.0.0", "9" * 5000 + ".0.0", 1, 1.0, None, True, {"1": 0}, []),
]


@pytest.mark.parametrize("comparison", ["$eq", "$ne", "$lt", "$nin", "$in"])
@pytest.mark.parametrize("matcher", [matches, fast_path])
def test_what_is_no_version_passes_no_comparison(matcher: Matcher, comparison: str) -> None:
    constant: Any = ["1.0.0"] if "in" in comparison else "1.0.0"
    condition = parse_condition({"app": {"$semver": {comparison: constant}}}, "")
    assert not [value for value in NO_VERSIONS if matcher(condition, {"app": value})]
    assert not matcher(condition, {})


def test_what_is_too_long_for_a_version_is_not_kept() -> None:
    parse_condition({"a": {"$semver": {"$gt": "1.0.0"}}}, "")
    kept = values._parse_version.cache_info().currsize
    assert not matches(
        parse_condition({"a": {"$semver": {"$gt": "1.0.0"}}}, ""), {"a": "2.0.0-" + "a" * 300}
    )
    assert values._parse_version.cache_info().currsize == kept


@pytest.mark.parametrize("matcher", [matches, fast_path])
def test_a_list_of_versions_passes_by_any_of_them(matcher: Matcher) -> None:
    condition = parse_condition({"app": {"$semver": {"$gte": "2.0.0", "$lt": "3.0.0"}}}, "")
    assert matcher(condition, {"app": ["1.0.0", "2.5.0"]})
    assert not matcher(condition, {"app": ["1.0.0", "none"]})
    condition = parse_condition({"app": {"$semver": {"$nin": ["1.0.0", "2.0.0"]}}}, "")
    assert matcher(condition, {"app": "1.5.0"})
    assert not matcher(condition, {"app": "2.0.0+x"})


# The random oracle


@pytest.fixture(scope="module")
def asked(mongo_uri: str) -> list[Question]:
    with open_attribute_collection(mongo_uri) as collection:
        return list(iter_questions(collection, random.Random(SEED), ASKED_COUNT // CONDITION_COUNT))


@pytest.mark.mongo
@pytest.mark.timeout(300)
def test_the_matcher_agrees_with_mongod(asked: list[Question]) -> None:
    for question in asked:
        assert question.disagreement(functools.partial(matches, question.parsed)) is None


@pytest.mark.mongo
@pytest.mark.timeout(300)
def test_the_fast_path_agrees_with_mongod(asked: list[Question]) -> None:
    for question in asked:
        assert question.disagreement(compile_condition(question.parsed)) is None


@pytest.mark.mongo
@pytest.mark.timeout(300)
def test_the_questions_are_many_and_not_one_sided(asked: list[Question]) -> None:
    assert len(asked) == ASKED_COUNT
    answered = sum(len(question.answer) for question in asked)
    assert 0.1 < answered / (ASKED_COUNT * DOCUMENT_COUNT) < 0.85
    split = sum(0 < len(question.answer) < DOCUMENT_COUNT for question in asked)
    assert split > 0.25 * ASKED_COUNT


@pytest.mark.mongo
@pytest.mark.timeout(300)
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_the_oracle_catches_a_wrong_matcher(
    asked: list[Question], wrong: Mutant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wrong.room, wrong.name, wrong.part)

    def agrees(question: Question) -> bool:
        parsed = question.parsed
        if wrong.room is conditions:
            parsed = parse_condition(normalize(question.written, ""), "")
        return (
            question.disagreement(lambda attributes: matching.matches(parsed, attributes)) is None
        )

    assert not all(map(agrees, asked))


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
            And((Field(("a",), Compare("$gt", 1)), parse_condition({"a": {"$nin": [2, "x"]}}, ""))),
            Field(("b",), Exists()),
            Or(
                (
                    Field(("c",), Compare("$eq", None)),
                    Nor((Field(("c", "d"), Compare("$lte", NOON)),)),
                )
            ),
        )
    )
