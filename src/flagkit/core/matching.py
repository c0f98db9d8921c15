"""Matching: whether a condition holds for attributes, by MongoDB's rules. The slow, complete path.

It alone knows lists, documents and the rarer types; the compiler answers plain strings and numbers
inline and asks here for the rest. Attributes of a type that BSON has not match nothing. Never
raises.

Source: mongod's answers to `find`, which tests/test_matching.py compares with these.
"""

import math
import operator as operator_module
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, TypeAlias, TypeGuard, cast
from uuid import UUID

from flagkit.core.searching import found_in
from flagkit.model.conditions import (
    Affix,
    Among,
    And,
    Compare,
    Condition,
    ElemMatch,
    Exists,
    Field,
    HasType,
    In,
    InSegment,
    Mod,
    Nor,
    Or,
    Pattern,
    Size,
    Test,
    Version,
)
from flagkit.model.versions import VersionKey, version_key

Node: TypeAlias = Mapping[str, Any]
Items: TypeAlias = "list[Any] | tuple[Any, ...]"

MISSING: Final = object()
_INDEX = re.compile("0|[1-9][0-9]{0,8}")

_NULL, _NUMBER, _TEXT, _DOCUMENT, _LIST, _BINARY, _BOOLEAN, _DATE = range(8)
_KINDS: Mapping[type, int] = {
    type(None): _NULL,
    int: _NUMBER,
    float: _NUMBER,
    Decimal: _NUMBER,
    str: _TEXT,
    dict: _DOCUMENT,
    list: _LIST,
    tuple: _LIST,
    bytes: _BINARY,
    UUID: _BINARY,
    bool: _BOOLEAN,
    datetime: _DATE,
}


_PYTHON: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "$eq": operator_module.eq,
    "$ne": operator_module.ne,
    "$gt": operator_module.gt,
    "$gte": operator_module.ge,
    "$lt": operator_module.lt,
    "$lte": operator_module.le,
}
_TYPES = ("null", "", "string", "object", "array", "binData", "bool", "date")


def matches(condition: Condition, attributes: Any) -> bool:
    """Tell whether a condition holds for attributes, or, with empty paths, for one value."""
    match condition:
        case Field((), test):
            return _passes(test, attributes)
        case Field(path, test):
            whole = isinstance(test, Size | ElemMatch)
            return any(_passes(test, value) for value in _reached(attributes, path, 0, whole))
        case And(conditions):
            return all(matches(item, attributes) for item in conditions)
        case Or(conditions):
            return any(matches(item, attributes) for item in conditions)
        case Nor(conditions):
            return not any(matches(item, attributes) for item in conditions)
        case InSegment():
            # Its meaning stands there before anyone is asked; nobody is in a mere name.
            return False


def attribute(attributes: Mapping[str, Any], path: tuple[str, ...]) -> object:
    """Return the value at a path through documents, None if there is none. Enters no lists."""
    value: object = attributes
    for name in path:
        if not isinstance(value, dict):
            return None
        value = cast("dict[str, object]", value).get(name)
    return value


def value_passes(test: Test, value: object) -> bool:
    """Tell whether an attribute that is present passes a test, by itself or by an element of it."""
    if _is_list(value):
        return any(_passes(test, item) for item in value) or _passes(test, value)
    return _passes(test, value)


def kind(value: object) -> int | None:
    """Return the place of a value's type in BSON's order; numbers of all types share one.

    Subclasses count as what they derive from. None for types that BSON has not.
    """
    found = _KINDS.get(type(value))
    if found is None:
        for base in type(value).__mro__:
            if base in _KINDS:
                return _KINDS[base]
    return found


def compare(left: Any, right: Any) -> int:
    """Order two values as BSON does: negative, zero or positive. Both must be of known kinds."""
    left_kind, right_kind = kind(left), kind(right)
    if left_kind != right_kind or left_kind is None or right_kind is None:
        return (-1 if left_kind is None else left_kind) - (-1 if right_kind is None else right_kind)
    if left_kind == _NULL:
        return 0
    if left_kind == _DOCUMENT:
        return _compare_documents(left, right)
    if left_kind == _LIST:
        return _compare_lists(left, right)
    if left_kind == _NUMBER:
        left_nan, right_nan = _is_nan(left), _is_nan(right)
        if left_nan or right_nan:
            return right_nan - left_nan
    elif left_kind == _DATE:
        left, right = _milliseconds(left), _milliseconds(right)
    elif left_kind == _BINARY:
        left, right = _binary(left), _binary(right)
    return int(left > right) - int(left < right)


def _reached(node: Node, path: tuple[str, ...], at: int, whole: bool) -> Iterator[object]:  # noqa: FBT001
    """Yield the values that `path[at:]` reaches in a document, MISSING where it breaks off.

    A list at the end of the path stands for its elements and itself, or, if `whole`, for itself.
    """
    value = node.get(path[at], MISSING)
    at += 1
    if _is_list(value):
        yield from _spread(value, path, at, whole)
    elif at == len(path):
        yield value
    elif isinstance(value, dict):
        yield from _reached(cast("Node", value), path, at, whole)
    else:
        yield MISSING


def _spread(items: Items, path: tuple[str, ...], at: int, whole: bool) -> Iterator[object]:  # noqa: FBT001
    if at == len(path):
        if not whole:
            yield from items
        yield items
        return
    for item in items:
        # Only documents are entered by name: a scalar or a list in a list is not even "missing".
        if isinstance(item, dict):
            yield from _reached(cast("Node", item), path, at, whole)
    index = path[at]
    if _INDEX.fullmatch(index) and int(index) < len(items):
        yield from _indexed(items[int(index)], path, at + 1, whole)


def _indexed(item: object, path: tuple[str, ...], at: int, whole: bool) -> Iterator[object]:  # noqa: FBT001
    if at == len(path):
        yield item
    elif _is_list(item):
        yield from _spread(item, path, at, whole)
    elif isinstance(item, dict):
        yield from _reached(cast("Node", item), path, at, whole)
    # With path left, a scalar is nothing, and not even "missing": as one that stands in a list.


def _passes(test: Test, value: object) -> bool:  # noqa: C901, PLR0911, PLR0912 - one for each test
    match test:
        case Exists():
            return value is not MISSING
        case Size(count):
            return _is_list(value) and len(value) == count
        case HasType(names):
            return value is not MISSING and bson_type(value) in names
        case Mod(divisor, remainder):
            return _remainder(value, divisor) == remainder
        case ElemMatch(condition, by_value):
            if not _is_list(value):
                return False
            items = value if by_value else _documents_in(value)
            return any(matches(condition, item) for item in items)
        case Affix(operator, texts):
            return isinstance(value, str) and AFFIXES[operator](value, texts)
        case Pattern(source, options):
            return isinstance(value, str) and found_in(value, source, options)
        case Version(operator, keys):
            return isinstance(value, str) and version_passes(operator, value, keys)
        case Among(members):
            return value in members
        case Compare(operator, constant):
            return _ordered(operator, None if value is MISSING else value, constant)
        case In(constants, texts):
            if type(value) is str:
                # Strings equal strings alone, and there may be many thousands of them.
                return value in texts
            found = None if value is MISSING else value
            return any(equal(found, constant) for constant in constants)


AFFIXES: Final[Mapping[str, Callable[[str, tuple[str, ...]], bool]]] = {
    "$startsWith": str.startswith,
    "$endsWith": str.endswith,
    "$contains": lambda value, texts: any(text in value for text in texts),
}


def version_passes(operator: str, value: str, keys: tuple[VersionKey, ...]) -> bool:
    """Tell whether a string is a version, and in an order to some others; no other string is."""
    key = version_key(value)
    if key is None:
        return False
    match operator:
        case "$in":
            return key in keys
        case "$nin":
            return key not in keys
        case _:
            return bool(_PYTHON[operator](key, keys[0]))


def bson_type(value: object) -> str | None:
    """Return the name of the BSON type of a value, None if it has none."""
    place = kind(value)
    if place == _NUMBER:
        return _number_type(value)
    return None if place is None else _TYPES[place]


def _number_type(value: object) -> str | None:
    if isinstance(value, int):
        if -(2**31) <= value < 2**31:
            return "int"
        return "long" if -(2**63) <= value < 2**63 else None
    return "double" if isinstance(value, float) else "decimal"


def _remainder(value: Any, divisor: int) -> int | None:
    """Return the remainder as C has it, of what is left of a number without its fraction."""
    if kind(value) != _NUMBER or _is_nan(value) or not -(2**63) <= value < 2**63:
        return None
    whole = int(value)
    remainder = abs(whole) % abs(divisor)
    return -remainder if whole < 0 else remainder


def _documents_in(items: Items) -> Iterator[Node]:
    """Yield the documents among some elements; lists are documents of their indexes, too."""
    for item in items:
        if _is_list(item):
            yield {str(i): inner for i, inner in enumerate(item)}
        elif isinstance(item, dict):
            yield cast("Node", item)


def equal(left: object, right: object) -> bool:
    """Tell whether two values are equal in MongoDB: of one kind, NaN equal to itself."""
    left_kind = kind(left)
    return left_kind is not None and left_kind == kind(right) and compare(left, right) == 0


def _ordered(operator: str, value: object, constant: object) -> bool:
    """Compare within one kind only: MongoDB's type bracketing."""
    value_kind = kind(value)
    if value_kind is None or value_kind != kind(constant):
        return False
    order = compare(value, constant)
    if order == 0:
        # Null and NaN are equal to themselves, and neither above nor below anything: the strict
        # orderings fall out here, since equal is never strictly ordered.
        return operator in ("$eq", "$gte", "$lte")
    if value_kind == _NUMBER and (_is_nan(value) or _is_nan(constant)):
        return False
    return operator in (("$gt", "$gte") if order > 0 else ("$lt", "$lte"))


def _is_list(value: object) -> TypeGuard[Items]:
    return isinstance(value, list | tuple)


def _is_nan(value: Any) -> bool:
    return (
        value.is_nan()
        if isinstance(value, Decimal)
        else isinstance(value, float) and math.isnan(value)
    )


def _milliseconds(value: datetime) -> int:
    aware = value if value.tzinfo else value.replace(tzinfo=UTC)
    elapsed = aware - datetime(1970, 1, 1, tzinfo=UTC)
    return (elapsed.days * 86_400 + elapsed.seconds) * 1000 + elapsed.microseconds // 1000


def _binary(value: bytes | UUID) -> tuple[int, int, bytes]:
    """Return length, BSON subtype and content: the order of binary values."""
    if isinstance(value, UUID):
        return (16, 4, value.bytes)
    return (len(value), 0, value)


def _compare_documents(left: Mapping[str, Any], right: Mapping[str, Any]) -> int:
    """Compare pair by pair: the value's kind, then the name, then the value. Key order counts."""
    for (left_name, left_value), (right_name, right_value) in zip(
        left.items(), right.items(), strict=False
    ):
        left_kind, right_kind = kind(left_value), kind(right_value)
        if left_kind != right_kind:
            return compare(left_value, right_value)
        if left_name != right_name:
            return (left_name > right_name) - (left_name < right_name)
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
