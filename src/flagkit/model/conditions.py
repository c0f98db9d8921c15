"""Conditions: MongoDB query documents, checked and parsed into a small tree.

Owns which operators there are and what they may be given. Meaning is core.matching's; speed is
core.compiler's. Negations (`$ne`, `$nin`, `$not`, `$exists: false`) become `Nor` around the
positive test, since MongoDB negates the whole path and never an element: one mechanism serves them
all.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, TypeAlias

from msgspec import Struct

from flagkit.errors import InvalidDocumentError
from flagkit.model.values import Value, join

Ordering: TypeAlias = Literal["$eq", "$gt", "$gte", "$lt", "$lte"]


class Compare(Struct, frozen=True):
    """A test against one constant, by MongoDB's order within the constant's type."""

    operator: Ordering
    value: Value


class In(Struct, frozen=True):
    """A test for equality with any of some constants."""

    values: tuple[Value, ...]


class Exists(Struct, frozen=True):
    """A test for presence; null is present."""


Test: TypeAlias = Compare | In | Exists


class Field(Struct, frozen=True):
    """A test of what a dotted path reaches; true if any of the values reached passes."""

    path: tuple[str, ...]
    test: Test


class And(Struct, frozen=True):
    """All of some conditions; true when there are none."""

    conditions: "tuple[Condition, ...]"


class Or(Struct, frozen=True):
    """At least one of some conditions."""

    conditions: "tuple[Condition, ...]"


class Nor(Struct, frozen=True):
    """None of some conditions."""

    conditions: "tuple[Condition, ...]"


Condition: TypeAlias = And | Or | Nor | Field
ALWAYS = And(())


def parse(document: Value, path: str) -> Condition:
    """Parse a condition document, given in normal form (`values.normal`, which bounds its depth).

    Raises:
        InvalidDocumentError: it is not one; the path leads to the fault.
    """
    if not isinstance(document, dict):
        raise InvalidDocumentError(
            path, "is not a document", "Write `attribute: value` or `attribute: {$operator: value}`"
        )
    return _all_of(_member(key, value, join(path, key)) for key, value in document.items())


def _all_of(conditions: Iterable[Condition]) -> Condition:
    found = tuple(conditions)
    return found[0] if len(found) == 1 else And(found)


def _member(key: str, value: Value, path: str) -> Condition:
    if key in _LOGICAL:
        return _LOGICAL[key](_branches(value, path))
    if key.startswith("$"):
        raise _unknown(key, path, _LOGICAL)
    parts = tuple(key.split("."))
    if not all(parts) or any(part.startswith("$") for part in parts):
        raise InvalidDocumentError(
            path, f"{key!r} is not an attribute path", "Write names joined by single dots"
        )
    if isinstance(value, dict) and next(iter(value), "").startswith("$"):
        return _tests(parts, value, path)
    return Field(parts, Compare("$eq", value))


def _branches(value: Value, path: str) -> tuple[Condition, ...]:
    if not isinstance(value, list) or not value:
        raise InvalidDocumentError(
            path, "is not a list of conditions, or is empty", "List at least one condition"
        )
    return tuple(parse(branch, f"{path}[{i}]") for i, branch in enumerate(value))


def _tests(parts: tuple[str, ...], operators: Mapping[str, Value], path: str) -> Condition:
    conditions: list[Condition] = []
    for operator, constant in operators.items():
        build = _OPERATORS.get(operator)
        if build is None:
            raise _unknown(operator, join(path, operator), _OPERATORS)
        conditions.append(build(parts, operator, constant, join(path, operator)))
    return _all_of(conditions)


def _unknown(operator: str, path: str, known: Iterable[str]) -> InvalidDocumentError:
    names = sorted(known)
    close = difflib.get_close_matches(operator, names, n=1)
    remedy = f"Did you mean {close[0]}? " if close else ""
    return InvalidDocumentError(
        path, f"unknown operator {operator!r}", f"{remedy}Known here: {' '.join(names)}"
    )


def _compare(parts: tuple[str, ...], operator: str, constant: Value, _: str) -> Condition:
    return Field(parts, Compare(_ORDERINGS[operator], constant))


def _not_equal(parts: tuple[str, ...], _: str, constant: Value, path: str) -> Condition:
    return Nor((_compare(parts, "$eq", constant, path),))


def _in(parts: tuple[str, ...], operator: str, constant: Value, path: str) -> Condition:
    if not isinstance(constant, list):
        raise InvalidDocumentError(path, "is not a list", f"Write {operator}: [value, ...]")
    for i, value in enumerate(constant):
        if isinstance(value, dict) and next(iter(value), "").startswith("$"):
            raise InvalidDocumentError(
                f"{path}[{i}]", "is an operator", f"{operator} lists plain values; use $or instead"
            )
    return Field(parts, In(tuple(constant)))


def _not_in(parts: tuple[str, ...], operator: str, constant: Value, path: str) -> Condition:
    return Nor((_in(parts, operator, constant, path),))


def _exists(parts: tuple[str, ...], _: str, constant: Value, __: str) -> Condition:
    field = Field(parts, Exists())
    # MongoDB's truth, not Python's: 0 and null are false; "" and [] are true.
    absent = constant is None or (isinstance(constant, bool | int | float) and constant == 0)
    return Nor((field,)) if absent else field


def _not(parts: tuple[str, ...], operator: str, constant: Value, path: str) -> Condition:
    if not isinstance(constant, dict) or not constant:
        raise InvalidDocumentError(
            path, "is not a document of operators", f"Write {operator}: {{$operator: value}}"
        )
    return Nor((_tests(parts, constant, path),))


_LOGICAL: Mapping[str, Callable[[tuple[Condition, ...]], Condition]] = {
    "$and": And,
    "$or": Or,
    "$nor": Nor,
}
_ORDERINGS: Mapping[str, Ordering] = {
    "$eq": "$eq",
    "$gt": "$gt",
    "$gte": "$gte",
    "$lt": "$lt",
    "$lte": "$lte",
}
_OPERATORS: Mapping[str, Callable[[tuple[str, ...], str, Value, str], Condition]] = {
    **dict.fromkeys(_ORDERINGS, _compare),
    "$ne": _not_equal,
    "$in": _in,
    "$nin": _not_in,
    "$exists": _exists,
    "$not": _not,
}
