"""Deliberately wrong matchers, each by what it puts in the place of a part of the right one.

The oracle must catch every one of them: a mistake that it is blind to is one that we could make.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias
from uuid import UUID

from msgspec.structs import replace

from flagkit._core.evaluation import matching
from flagkit._core.model import conditions as queries
from flagkit._core.model import values
from flagkit._core.model.conditions import (
    ALWAYS,
    And,
    Condition,
    ElemMatch,
    Exists,
    Field,
    Nor,
    Or,
    Size,
    Test,
)
from flagkit._core.model.values import Constant

EAST = timezone(timedelta(hours=5, minutes=30))


class Mutant(NamedTuple):
    """What a name in a room means to a wrong matcher."""

    room: ModuleType
    name: str
    part: object


def negated_by_element(condition: Condition, attributes: Mapping[str, Any]) -> bool:
    match condition:
        case Nor((Field(path, test),)) if path:
            whole = isinstance(test, Size | ElemMatch)
            reached = matching._iter_values(attributes, path, 0, whole)
            return any(not matching._passes(test, value) for value in reached)
        case And(conditions):
            return all(negated_by_element(item, attributes) for item in conditions)
        case Or(conditions):
            return any(negated_by_element(item, attributes) for item in conditions)
        case Nor(conditions):
            return not any(negated_by_element(item, attributes) for item in conditions)
        case _:
            return right_matches(condition, attributes)


def passes_missing_as_nothing(test: Test, value: object) -> bool:
    return value is not matching.MISSING and right_passes(test, value)


def passes_null_as_missing(test: Test, value: object) -> bool:
    if isinstance(test, Exists):
        return value is not matching.MISSING and value is not None
    return right_passes(test, value)


Path: TypeAlias = tuple[str, ...]


def spread_without_the_list(items: Any, path: Path, at: int, whole: bool) -> Iterator[object]:
    return iter(items) if at == len(path) else right_spread(items, path, at, whole)


def value_passes_by_element(test: Test, value: Any) -> bool:
    items = value if isinstance(value, list) else []
    return any(matching._passes(test, item) for item in items) or matching._passes(test, value)


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
    if values.get_kind(left) == values.get_kind(right) == values.NUMBER:
        left, right = float(left), float(right)
    return right_compare(left, right)


def identity_but_for_nan(value: Any) -> object:
    return object() if values.is_nan(value) else right_identity(value)


def ordered_but_for_nan(operator: str, value: object, constant: object) -> bool:
    return right_ordered(operator, value, constant) and not values.is_nan(constant)


def ordered_with_nan_least(operator: str, value: object, constant: object) -> bool:
    if operator in ("$lt", "$lte") and values.is_nan(value):
        return values.get_kind(constant) == values.NUMBER
    return right_ordered(operator, value, constant)


def ordered_across_kinds(operator: str, value: object, constant: object) -> bool:
    found = right_compare(value, constant)
    if found and values.get_kind(value) != values.get_kind(constant):
        return operator in (("$gt", "$gte") if found > 0 else ("$lt", "$lte"))
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
        found = values.compare(left[left_name], right[right_name])
        if found:
            return found
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


def spread_by_name_or_index(items: Any, path: Path, at: int, whole: bool) -> Iterator[object]:
    if at < len(path) and matching._INDEX.fullmatch(path[at]):
        items = [item for i, item in enumerate(items) if i == int(path[at])]
    return right_spread(items, path, at, whole)


def identity_of_python(value: Any) -> object:
    return value if isinstance(value, bool) else right_identity(value)


def presence_for_zero(parts: Path, name: str, constant: Constant, path: str) -> Condition:
    return right_exists(parts, name, constant is not None and constant is not False, path)


def revived_as_floats(value: Any) -> Any:
    if isinstance(value, dict) and values.find_extended_form(value) is None:
        return {name: revived_as_floats(item) for name, item in value.items()}
    if isinstance(value, list):
        return [revived_as_floats(item) for item in value]
    found = right_revived(value)
    return float(found) if isinstance(found, Decimal) else found


right_matches = matching.matches
right_revived = values.decode_extended_json
right_identity = values.to_identity
right_exists = queries._parse_exists
right_binary = values._to_binary_order
right_compare = values.compare
right_documents = values._compare_documents
right_indexed = matching._iter_indexed_values
right_remainder = matching._compute_remainder
right_type = matching.get_bson_type
right_lists = values._compare_lists
right_milliseconds = values._to_milliseconds
right_ordered = values.is_ordered
right_passes = matching._passes
right_spread = matching._iter_list_values

BOOL_AS_NUMBER = {**values._KINDS, bool: values.NUMBER}
UNSUPPORTED = {kind: place for kind, place in values._KINDS.items() if kind is not Decimal}

WRONG: dict[str, Mutant] = {
    "a bool equals a number": Mutant(values, "_KINDS", BOOL_AS_NUMBER),
    "decimals are unknown": Mutant(values, "_KINDS", UNSUPPORTED),
    "$ne is judged by element": Mutant(matching, "matches", negated_by_element),
    "missing is not null": Mutant(matching, "_passes", passes_missing_as_nothing),
    "null does not exist": Mutant(matching, "_passes", passes_null_as_missing),
    "lengths of elements count": Mutant(matching, "value_passes", value_passes_by_element),
    "the remainder has the divisor's sign": Mutant(
        matching, "_compute_remainder", remainder_of_python
    ),
    "fractions have no remainder": Mutant(
        matching, "_compute_remainder", remainder_of_the_fraction
    ),
    "int and long are one type": Mutant(matching, "get_bson_type", types_with_one_integer),
    "lists are no documents of their indexes": Mutant(matching, "_iter_documents", only_documents),
    "the list itself is not compared": Mutant(
        matching, "_iter_list_values", spread_without_the_list
    ),
    "lists in lists are entered": Mutant(matching, "_iter_list_values", spread_into_inner_lists),
    "a scalar in a list is a missing path": Mutant(
        matching, "_iter_list_values", spread_with_missing_scalars
    ),
    "a scalar at an index is a missing path": Mutant(
        matching, "_iter_indexed_values", indexed_with_missing_scalars
    ),
    "no path part is an index": Mutant(matching, "_INDEX", re.compile("(?!)")),
    "00 is an index": Mutant(matching, "_INDEX", re.compile("[0-9]{1,9}")),
    "the order of keys is ignored": Mutant(values, "_compare_documents", documents_without_order),
    "names count before kinds": Mutant(values, "_compare_documents", documents_names_first),
    "the shorter list is less": Mutant(values, "_compare_lists", lists_by_length),
    "numbers are compared as floats": Mutant(values, "compare", compare_by_float),
    "NaN is not in [NaN]": Mutant(matching, "to_identity", identity_but_for_nan),
    "NaN is not NaN": Mutant(matching, "is_ordered", ordered_but_for_nan),
    "NaN is below numbers": Mutant(matching, "is_ordered", ordered_with_nan_least),
    "types are not bracketed": Mutant(matching, "is_ordered", ordered_across_kinds),
    "$gte null matches nothing": Mutant(matching, "is_ordered", ordered_null_strictly),
    "microseconds are not cut": Mutant(values, "_to_milliseconds", microseconds),
    "dates before 1970 are cut upwards": Mutant(
        values, "_to_milliseconds", milliseconds_towards_zero
    ),
    "a naive date is local": Mutant(values, "_to_milliseconds", milliseconds_of_local_time),
    "bytes order by content first": Mutant(values, "_to_binary_order", binary_without_length),
    "a UUID equals its bytes": Mutant(values, "_to_binary_order", binary_without_subtype),
    "an index is no name where there is such an element": Mutant(
        matching, "_iter_list_values", spread_by_name_or_index
    ),
    "true is among [1]": Mutant(matching, "to_identity", identity_of_python),
    "all of nothing always holds": Mutant(queries, "NEVER", ALWAYS),
    "$exists: 0 is presence": Mutant(
        queries,
        "OPERATORS",
        {
            **queries.OPERATORS,
            "$exists": replace(queries.OPERATORS["$exists"], parse=presence_for_zero),
        },
    ),
    "decimals are read as floats": Mutant(queries, "decode_extended_json", revived_as_floats),
}
