"""The oracle: random conditions and documents, and mongod's answers to which it finds.

Conditions come in batches that share some documents. All of a batch is made from a handful of
values or their nearest neighbours, constants too: what differs least trips most.

Left out of the generation, and why; docs/policy.md has what flagkit refuses:

- integers beyond 64 bits, decimals beyond 34 digits, names with NUL, lone surrogates: BSON has none
- paths with empty parts or `$` in front, and of over 16 names or 4 numbers: refused
- `{$ref: ...}`, which is no operator in MongoDB, and constants of dates without a zone: refused
- types that a context cannot hold, such as timestamps and minimum keys
- years before 1 and after 9999: Python has no such dates
- `$semver`, which MongoDB has not; what text tests are asked as, `TEXT_TESTS` says
"""

import random
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple, TypeAlias
from uuid import UUID

import msgspec
from bson import ObjectId
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions, TypeRegistry
from bson.decimal128 import Decimal128
from pymongo import MongoClient, WriteConcern
from pymongo.collection import Collection

from flagkit._core.evaluation.compiler import compile_flag
from flagkit._core.evaluation.result import Outcome
from flagkit._core.model import Rule, Serve, decode
from flagkit._core.model.conditions import TYPE_NAMES, Condition, parse_condition
from flagkit._core.model.values import normalize

Document: TypeAlias = dict[str, Any]
Attributes: TypeAlias = Mapping[str, Any]
Documents: TypeAlias = Collection[Document]

DOCUMENT_COUNT = 50
CONDITION_COUNT = 10

NAN = float("nan")
ID = UUID("00112233-4455-6677-8899-aabbccddeeff")
OBJECT_ID = ObjectId("507f1f77bcf86cd799439011")
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
AT_MILLISECOND = datetime(2026, 1, 1, 12, 0, 0, 123_000, UTC)
BEFORE_1970 = datetime(1969, 12, 31, 23, 59, 59, 999_000, UTC)

NAMES = ("a", "b", "c", "0", "1", "00")
SCALARS: tuple[Any, ...] = (
    *(None, True, False, 0, 1, 2, -1, 1.0, 0.0, -0.0, 0.1, 1.5, 2**53, 2**53 + 1, 2.0**53),
    *(2**31 - 1, 2**31, -(2**31), 2**63 - 1, -(2**63), 2.0**63, 1e300, 5e-324),
    *(NAN, float("inf"), float("-inf")),
    *map(Decimal, ("1", "0.1", "1.50", "NaN", "-Infinity", "Infinity", "9007199254740993")),
    *map(Decimal, ("1E+6144", "-1E-6176", "0E+9", f"3.{3:3<33}")),
    *("", "a", "b", "ab", "A", "é", "e\u0301", "\uffff", "😀", "x\0y", "1", "a\n"),
    *(b"", b"a", b"b", b"ab", ID.bytes, ID, UUID(int=1), OBJECT_ID.binary, OBJECT_ID),
    *(ObjectId("0" * 24), ObjectId("0" * 23 + "1"), ObjectId("f" * 24)),
    *(NOON, AT_MILLISECOND, BEFORE_1970, datetime(1970, 1, 1, tzinfo=UTC)),
    *(datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999_999, UTC)),
)
TEXT_TESTS: Mapping[str, str] = {
    "$startsWith": "^(?:{})",
    "$endsWith": r"(?:{})\z",
    "$contains": "{}",
}
"""Operators that are asked of mongod as regular expressions."""
EXPRESSIONS = (*TEXT_TESTS, "$regex", "$options")
PATTERNS = (
    *("^a", "b$", "a.b", "[^a]", "(a|b)+$", r"\bab?", r"\w\W", "^$", "A", r"\n", "x.y", "^.$"),
    *("(a|ab)(b|)$", "1|A", "^(?:a|b){2}$"),
)
"""Some regular expressions; tests/regex/test_regex.py draws many."""


class Question(NamedTuple):
    """A condition, the documents that it meets, and which of them mongod finds."""

    written: Document
    parsed: Condition
    documents: list[Document]
    answer: set[int]

    def disagreement(self, matcher: Callable[[Attributes], bool]) -> str | None:
        """Return where a matcher of this condition answers other than mongod, None if nowhere."""
        for i, document in enumerate(self.documents):
            if matcher(document) is not (i in self.answer):
                return f"{self.written} on {document}: mongod says {i in self.answer}"
        return None


@contextmanager
def open_attribute_collection(uri: str) -> Iterator[Documents]:
    """Yield an empty collection that holds what contexts may."""
    codec: CodecOptions[Document] = CodecOptions(
        uuid_representation=UuidRepresentation.STANDARD,
        type_registry=TypeRegistry(fallback_encoder=Decimal128),
    )
    name = f"test_oracle_{uuid.uuid4().hex}"
    with MongoClient[Document](uri) as client:
        yield client.get_database(name).get_collection(
            "attributes", codec_options=codec, write_concern=WriteConcern(1, j=False)
        )
        client.drop_database(name)


def find_matches(collection: Documents, condition: Document, first_id: int, count: int) -> set[int]:
    """Ask mongod which of the documents with some consecutive ids a condition matches."""
    among = {"_id": {"$gte": first_id, "$lt": first_id + count}, "$and": [condition]}
    return {answer["_id"] - first_id for answer in collection.find(among, {"_id": 1})}


def find_matches_for_each(
    collection: Documents, conditions: Sequence[Document], first_id: int, count: int
) -> list[set[int]]:
    """Ask mongod as `found` does, for several conditions in one request, which is much quicker."""
    facets = {
        f"{i}": [{"$match": condition}, {"$project": {"_id": 1}}]
        for i, condition in enumerate(conditions)
    }
    among = {"_id": {"$gte": first_id, "$lt": first_id + count}}
    [answers] = collection.aggregate([{"$match": among}, {"$facet": facets}])
    return [{answer["_id"] - first_id for answer in answers[name]} for name in facets]


def iter_questions(
    collection: Documents, chance: random.Random, batch_count: int
) -> Iterator[Question]:
    """Draw some batches, and yield their questions with mongod's answers."""
    for batch in range(batch_count):
        draw = BatchGenerator(chance)
        documents = [draw.document() for _ in range(DOCUMENT_COUNT)]
        first_id = batch * DOCUMENT_COUNT
        collection.insert_many(
            {"_id": first_id + i, **document} for i, document in enumerate(documents)
        )
        conditions = [draw.condition() for _ in range(CONDITION_COUNT)]
        asked = [to_mongod_condition(written) for written in conditions]
        answers = find_matches_for_each(collection, asked, first_id, DOCUMENT_COUNT)
        for written, answer in zip(conditions, answers, strict=True):
            # By way of the form in which a policy is stored.
            yield Question(written, parse_condition(normalize(written, ""), ""), documents, answer)


_FLAG = decode(
    {"key": "f", "variants": {"on": True, "off": False}, "fallthrough": {"serve": "off"}}
)


def compile_condition(condition: Condition) -> Callable[[Attributes], bool]:
    """Return the fast path of a condition: a flag whose only rule has it."""
    rule = Rule("only", {}, condition, None, Serve("on"))
    evaluator = compile_flag(msgspec.structs.replace(_FLAG, rules=(rule,)))
    assert not isinstance(evaluator, Outcome)
    return lambda attributes: evaluator(dict(attributes)).variant == "on"


def to_mongod_condition(written: Any) -> Any:
    """Return a condition with flagkit's own text tests as mongod can be asked for them."""
    if isinstance(written, list):
        return [to_mongod_condition(item) for item in written]
    if not isinstance(written, dict):
        return written
    asked: Document = {}
    for name, value in written.items():
        if name in TEXT_TESTS:
            texts = value if isinstance(value, list) else [value]
            asked["$regex"] = TEXT_TESTS[name].format("|".join(map(_escape_text, texts)))
        else:
            asked[name] = to_mongod_condition(value)
    return asked


def _escape_text(text: str) -> str:
    return "".join(rf"\x{{{ord(character):x}}}" for character in text)


class BatchGenerator:
    """Draws the documents and the conditions of one batch."""

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
        """Return one of the values of this batch, a part of it, or one like it."""
        value = self.chance.choice(self.values)
        while isinstance(value, list | dict) and value and self.chance.random() < 0.3:
            value = self.chance.choice(list(value.values() if isinstance(value, dict) else value))
        choice = self.chance.random()
        if choice < 0.5:
            return value
        if choice < 0.8:
            return self.like(value)
        if choice < 0.9:
            return [value, self.chance.choice(self.values)][: self.chance.choice((1, 2))]
        return {self.chance.choice(NAMES): value}

    def like(self, value: Any) -> Any:  # noqa: C901, PLR0911 - one for each type
        match value:
            case bool():
                return int(value)
            case int():
                near = max(value - 1, -(2**63))
                return self.chance.choice((value == 1, float(value), Decimal(value), near))
            case float() | Decimal() if -(2**62) < float(value) < 2**62:
                written = Decimal(str(value))
                return self.chance.choice((int(value), written, float(value), -value))
            case datetime() if value.year in range(2, 9999):
                away = self.chance.choice((-1000, -500, -1, 1, 500, 999, 1000))
                return value + timedelta(microseconds=away)
            case UUID():
                return value.bytes
            case bytes() if len(value) == 16:
                return UUID(bytes=value)
            case ObjectId():
                whole = int.from_bytes(value.binary)
                after = ObjectId(min(whole + 1, 2**96 - 1).to_bytes(12))
                return self.chance.choice((value.binary, str(value), after))
            case bytes() if len(value) == 12:
                return ObjectId(value)
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
        names = self.chance.choice(((), "a", "a", "a", "ab", "ab", "ba", "a0", "0ab"))
        return {name: self.without_zones(self.value()) for name in names}

    def without_zones(self, value: Any) -> Any:
        """Return a value in which some dates lack the zone: only attributes may."""
        match value:
            case datetime() if self.chance.random() < 0.3:
                return value.replace(tzinfo=None)
            case list():
                return [self.without_zones(item) for item in value]
            case dict():
                return {name: self.without_zones(item) for name, item in value.items()}
            case _:
                return value

    def path(self) -> str:
        parts = [self.chance.choice(("a", "a", "a", "a", "a", "b", "b", "0"))]
        while self.chance.random() < 0.4 and len(parts) < 4:
            parts.append(self.chance.choice((*NAMES, "b", "0", "0")))
        return ".".join(parts)

    def literal(self) -> Any:
        """Return a constant; null, which a missing path equals, more often than by chance."""
        return None if self.chance.random() < 0.1 else self.value()

    def operators(self, depth: int = 0) -> Document:
        drawn: Document = {}
        for _ in range(self.chance.choice((1, 1, 1, 2))):
            operator = self.chance.choice(OPERATORS)
            if operator in EXPRESSIONS:
                # mongod is asked for one regular expression at a time.
                drawn = {name: test for name, test in drawn.items() if name not in EXPRESSIONS}
            drawn[operator] = self.constant(operator, depth)
            if operator == "$regex" and self.chance.random() < 0.5:
                drawn["$options"] = self.chance.choice(("", "i", "m", "s", "im"))
        return drawn

    def constant(self, operator: str, depth: int) -> Any:  # noqa: C901, PLR0911 - one for each
        match operator:
            case "$in" | "$nin":
                return [self.literal() for _ in range(self.chance.choice((0, 1, 2, 3)))]
            case "$exists":
                return self.chance.choice((True, False, 0, None, "", 1.0, Decimal(0), NAN))
            case "$all":
                return self.all_of(depth)
            case "$size":
                return self.chance.choice((0, 1, 2, 1.0, Decimal("2.0")))
            case "$mod":
                divisor = self.chance.choice((1, 2, -2, 3, 2.9, 2**40, Decimal("3.7")))
                return [divisor, self.chance.choice((0, 1, -1, 1.5, 2, Decimal("-1.9")))]
            case "$type":
                names = self.chance.sample(("number", 1.0, *TYPE_NAMES, *TYPE_NAMES.values()), 2)
                return self.chance.choice((names, names[0]))
            case "$startsWith" | "$endsWith" | "$contains":
                return self.chance.choice((self.text(), [self.text(), self.text()]))
            case "$regex":
                return self.chance.choice(PATTERNS)
            case "$not":
                return self.operators(depth + 1) if depth < 2 else {"$eq": self.literal()}
            case "$elemMatch":
                inner = self.operators if self.chance.random() < 0.5 else self.condition
                return inner(depth + 1) if depth < 2 else {"$eq": self.literal()}
            case _:
                return self.literal()

    def all_of(self, depth: int) -> list[Any]:
        count = self.chance.choice((0, 1, 1, 2))
        if depth < 2 and self.chance.random() < 0.3:
            return [{"$elemMatch": self.operators(depth + 1)} for _ in range(count)]
        return [self.literal() for _ in range(count)]

    def text(self) -> str:
        """Return a part of one of the strings there are; never an empty one."""
        value = self.value()
        whole = value if isinstance(value, str) else self.chance.choice(("a", "b", "\n", "$", "é"))
        start = self.chance.randrange(len(whole) + 1)
        return whole[start : start + 2] or "a"

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


OPERATORS = (
    *("$eq", "$ne", "$gt", "$gte", "$gte", "$lt", "$lte", "$lte", "$in", "$in", "$nin", "$exists"),
    *(
        "$not",
        "$not",
        "$all",
        "$elemMatch",
        "$elemMatch",
        "$size",
        "$size",
        "$mod",
        "$type",
        "$type",
    ),
    *TEXT_TESTS,
    "$regex",
)
