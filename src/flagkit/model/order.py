"""The order of values: which are of one kind, which are equal and which come first, as BSON has it.

Source: mongod's answers to `find`, which tests/test_matching.py compares with these.
"""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from flagkit.model.foreign import Oid, native

NULL, NUMBER, TEXT, DOCUMENT, LIST, BINARY, OBJECT_ID, BOOLEAN, DATE = range(9)
_KINDS: Mapping[type, int] = {
    type(None): NULL,
    int: NUMBER,
    float: NUMBER,
    Decimal: NUMBER,
    str: TEXT,
    dict: DOCUMENT,
    list: LIST,
    tuple: LIST,
    bytes: BINARY,
    UUID: BINARY,
    Oid: OBJECT_ID,
    bool: BOOLEAN,
    datetime: DATE,
}
_BITS_MAX: Final = 20_500
"""More bits than the integers have that decimals can hold, up to 10**6145."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NOTHING: Final = object()


def kind(value: object) -> int | None:
    """Return the place of a value's type in BSON's order; numbers of all types share one.

    Subclasses count as what they derive from. None for types that BSON has not. Foreign values
    have to be made plain before.
    """
    found = _KINDS.get(type(value))
    if found is None:
        for base in type(value).__mro__:
            if base in _KINDS:
                return _KINDS[base]
    return found


def identity(value: Any) -> object:  # noqa: PLR0911 - one for each kind
    """Return what is equal, and hashes alike, for scalars that are equal in MongoDB.

    That of a list, a document or a type that BSON has not equals nothing. A string's is itself.
    """
    place = kind(value)
    if place == TEXT:
        return str.__str__(value)
    if place == NUMBER:
        # Python's numbers equal each other, and hash, by what they are worth; so does True to 1.
        return (NUMBER,) if is_nan(value) else value
    if place == NULL:
        return None
    if place == BOOLEAN:
        return (BOOLEAN, value)
    if place == DATE:
        return (DATE, _milliseconds(value))
    if place == BINARY:
        return (BINARY, *_binary(value))
    if place == OBJECT_ID:
        return (OBJECT_ID, value.content)
    return _NOTHING


def compare(left: Any, right: Any) -> int:
    """Order two values as BSON does: negative, zero or positive. The left one may be foreign."""
    left = native(left)
    left_kind, right_kind = kind(left), kind(right)
    if left_kind is None or left_kind != right_kind:
        return (-1 if left_kind is None else left_kind) - (-1 if right_kind is None else right_kind)
    return _compare_alike(left_kind, left, right)


def _compare_alike(place: int, left: Any, right: Any) -> int:
    """Order two values of one kind."""
    if place == NULL:
        return 0
    if place == DOCUMENT:
        return _compare_documents(left, right)
    if place == LIST:
        return _compare_lists(left, right)
    if place == NUMBER:
        left_nan, right_nan = is_nan(left), is_nan(right)
        if left_nan or right_nan:
            return right_nan - left_nan
        if isinstance(right, Decimal) and isinstance(left, int):
            left = _shortened(left)
    elif place == DATE:
        left, right = _milliseconds(left), _milliseconds(right)
    elif place == BINARY:
        left, right = _binary(left), _binary(right)
    elif place == OBJECT_ID:
        left, right = left.content, right.content
    return int(left > right) - int(left < right)


def equal(left: object, right: object) -> bool:
    """Tell whether two values are equal in MongoDB: of one kind, NaN equal to itself."""
    place = kind(left)
    return place is not None and place == kind(right) and _compare_alike(place, left, right) == 0


def ordered(operator: str, value: object, constant: object) -> bool:
    """Compare within one kind only: MongoDB's type bracketing."""
    value_kind = kind(value)
    if value_kind is None or value_kind != kind(constant):
        return False
    order = _compare_alike(value_kind, value, constant)
    if order == 0:
        # Null and NaN are equal to themselves, and neither above nor below anything: the strict
        # orderings fall out here, since equal is never strictly ordered.
        return operator in ("$eq", "$gte", "$lte")
    if value_kind == NUMBER and (is_nan(value) or is_nan(constant)):
        return False
    return operator in (("$gt", "$gte") if order > 0 else ("$lt", "$lte"))


def is_nan(value: Any) -> bool:
    """Tell whether a value is not a number, of any type that has one."""
    return (
        value.is_nan()
        if isinstance(value, Decimal)
        else isinstance(value, float) and math.isnan(value)
    )


def _shortened(value: int) -> int:
    """Return an integer, or a shorter one if it is beyond all of BSON's decimals.

    Python takes seconds to compare one of a million digits with a decimal.
    """
    return value >> max(value.bit_length() - _BITS_MAX, 0)


def _milliseconds(value: datetime) -> int:
    aware = value.replace(tzinfo=UTC) if value.utcoffset() is None else value
    elapsed = aware - _EPOCH
    return (elapsed.days * 86_400 + elapsed.seconds) * 1000 + elapsed.microseconds // 1000


def _binary(value: bytes | UUID) -> tuple[int, int, bytes]:
    """Return length, BSON subtype and content: the order of binary values."""
    if isinstance(value, UUID):
        return (16, 4, value.bytes)
    return (len(value), 0, value)


def _compare_documents(left: Mapping[Any, Any], right: Mapping[Any, Any]) -> int:
    """Compare pair by pair: the value's kind, then the name, then the value. Key order counts."""
    for (left_name, left_value), (right_name, right_value) in zip(
        left.items(), right.items(), strict=False
    ):
        left_kind, right_kind = kind(native(left_value)), kind(right_value)
        if left_kind != right_kind:
            return compare(left_value, right_value)
        if left_name != right_name:
            # Contexts may have names that are no strings, which BSON has not: they come first.
            return 1 if isinstance(left_name, str) and left_name > right_name else -1
        order = compare(left_value, right_value)
        if order:
            return order
    return len(left) - len(right)


def _compare_lists(left: Any, right: Any) -> int:
    for left_item, right_item in zip(left, right, strict=False):
        order = compare(left_item, right_item)
        if order:
            return order
    return len(left) - len(right)
