"""Conditions: the small tree that query documents are parsed into; `queries` is the way to one.

Meaning is core.matching's; speed is core.compiler's. Negations (`$ne`, `$nin`, `$not`, `$exists:
false`) are `Nor` around the positive test, since MongoDB negates the whole path and never an
element: one mechanism serves them all.
"""

from collections.abc import Callable, Container
from typing import Literal, TypeAlias

from msgspec import Struct

from flagkit.model.values import Constant
from flagkit.model.versions import VersionKey

PATTERN_TESTS, SEGMENT_TESTS = 40, 32
Ordering: TypeAlias = Literal["$eq", "$gt", "$gte", "$lt", "$lte"]


class Compare(Struct, frozen=True, gc=False):
    """A test against one constant, by MongoDB's order within the constant's type."""

    operator: Ordering
    value: Constant


class In(Struct, frozen=True, gc=False):
    """A test for equality with any of some constants.

    `scalars` are the identities (`order.identity`) of those that are neither lists nor documents:
    there may be many thousands. `wholes` are the others.
    """

    scalars: frozenset[object]
    wholes: tuple[Constant, ...]


class Exists(Struct, frozen=True, gc=False):
    """A test for presence; null is present."""


class Size(Struct, frozen=True, gc=False):
    """A test for a list of some length. It looks at the list itself, never at its elements."""

    count: int


class Mod(Struct, frozen=True, gc=False):
    """A test for a remainder, with C's sign; both are integers of 64 bits."""

    divisor: int
    remainder: int


class HasType(Struct, frozen=True, gc=False):
    """A test for any of some BSON types, by their names."""

    names: frozenset[str]


class ElemMatch(Struct, frozen=True, gc=False):
    """A test for a list with an element for which a condition holds.

    The condition is on the element itself (its fields have empty paths) if `by_value`, else on the
    documents, and the lists as documents, among the elements.
    """

    condition: "Condition"
    by_value: bool


class Affix(Struct, frozen=True, gc=False):
    """A test for a string that begins with, ends with or contains any of some others."""

    operator: Literal["$startsWith", "$endsWith", "$contains"]
    texts: tuple[str, ...]


class Version(Struct, frozen=True, gc=False):
    """A test for a semantic version in some order to others, given by their keys.

    What is no version passes none of them, `$ne` and `$nin` included.
    """

    operator: str
    keys: tuple[VersionKey, ...]


class Pattern(Struct, frozen=True, gc=False):
    """A test for a string that has a pattern in it, which `patterns.parse_pattern` can parse."""

    source: str
    options: str


class Found(Struct, frozen=True, gc=False):
    """A test for a string that a pattern is found in, which is ready to be searched for."""

    search: Callable[[str], object]


class Among(Struct, frozen=True, gc=False):
    """A test for a key among the members of a segment; strings and integers are keys."""

    members: Container[object]


Test: TypeAlias = (
    Compare
    | In
    | Exists
    | Size
    | Mod
    | HasType
    | ElemMatch
    | Affix
    | Version
    | Pattern
    | Found
    | Among
)


class Field(Struct, frozen=True, gc=False):
    """A test of what a dotted path reaches; true if any of the values reached passes."""

    path: tuple[str, ...]
    test: Test


class And(Struct, frozen=True, gc=False):
    """All of some conditions; true when there are none."""

    conditions: "tuple[Condition, ...]"


class Or(Struct, frozen=True, gc=False):
    """At least one of some conditions."""

    conditions: "tuple[Condition, ...]"


class Nor(Struct, frozen=True, gc=False):
    """None of some conditions."""

    conditions: "tuple[Condition, ...]"


class InSegment(Struct, frozen=True, gc=False):
    """A reference to a segment, in whose place its meaning is put before anything is matched."""

    key: str


Condition: TypeAlias = And | Or | Nor | Field | InSegment
ALWAYS = And(())
NEVER = Nor((ALWAYS,))


def segments_in(condition: Condition) -> set[str]:
    """Return the keys of the segments that a condition refers to."""
    match condition:
        case InSegment(key):
            return {key}
        case Field():
            return set()
        case And(conditions) | Or(conditions) | Nor(conditions):
            return {key for item in conditions for key in segments_in(item)}


def tests_in(condition: Condition) -> int:
    """Return how many steps a condition may take, each about as long as the others.

    Each test is one, each part that joins some, and each constant that is tried by itself. A
    search goes through a text, and is PATTERN_TESTS; a segment has tests of its own, and is
    SEGMENT_TESTS.
    """
    match condition:
        case Field(_, ElemMatch(inner, _)):
            return 1 + tests_in(inner)
        case Field(_, In(_, items) | Affix(_, items) | Version(_, items)):
            return 1 + len(items)
        case Field(_, Pattern()):
            return PATTERN_TESTS
        case InSegment():
            return SEGMENT_TESTS
        case Field():
            return 1
        case And(conditions) | Or(conditions) | Nor(conditions):
            return 1 + sum(map(tests_in, conditions))
