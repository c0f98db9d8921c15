"""Conditions and segments matched by MongoDB's rules: the slow, complete path.

The compiler compares plain strings and numbers itself and calls this module for lists, documents
and rarer types. Attributes of a type that BSON does not have match nothing. A function here raises
only if an attribute misbehaves.

Source: mongod's answers to `find`, which tests/evaluation/test_matching.py compares with these.
"""

import operator as operator_module
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias, TypeGuard, cast

from flagkit._core.model.conditions import (
    NEVER,
    Affix,
    And,
    Compare,
    CompiledPattern,
    Condition,
    ElemMatch,
    Exists,
    Field,
    HasType,
    In,
    InSegment,
    MemberTest,
    Mod,
    Nor,
    Or,
    Pattern,
    Size,
    Test,
    Version,
)
from flagkit._core.model.foreign import NATIVE, to_native
from flagkit._core.model.keys import to_bucketing_key
from flagkit._core.model.segments import Keys, Segment, get_part_index, hash_member
from flagkit._core.model.values import (
    NUMBER,
    VersionKey,
    get_kind,
    is_equal,
    is_nan,
    is_ordered,
    parse_version,
    to_identity,
)
from flagkit._core.regex import TEXT_MAX, has_match

Node: TypeAlias = Mapping[str, Any]
Items: TypeAlias = "list[Any] | tuple[Any, ...]"

MISSING: Final = object()
_INDEX = re.compile("0|[1-9][0-9]{0,8}")

_PYTHON: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "$eq": operator_module.eq,
    "$ne": operator_module.ne,
    "$gt": operator_module.gt,
    "$gte": operator_module.ge,
    "$lt": operator_module.lt,
    "$lte": operator_module.le,
}
_TYPES = ("null", "", "string", "object", "array", "binData", "objectId", "bool", "date")


def matches(condition: Condition, attributes: Any) -> bool:  # noqa: PLR0911 - one for each form
    """Return True if a condition holds for attributes, or, with empty paths, for one value."""
    match condition:
        case Field((name,), test):
            return value_passes(test, attributes.get(name, MISSING))
        case Field((), test):
            return _passes(test, attributes)
        case Field(path, test):
            whole = isinstance(test, Size | ElemMatch)
            return any(_passes(test, value) for value in _iter_values(attributes, path, 0, whole))
        case And(conditions):
            return all(matches(item, attributes) for item in conditions)
        case Or(conditions):
            return any(matches(item, attributes) for item in conditions)
        case Nor(conditions):
            return not any(matches(item, attributes) for item in conditions)
        case InSegment():
            # Flags bind segments to their conditions before evaluation. An unbound name matches
            # nobody.
            return False


def get_attribute(attributes: Mapping[str, Any], path: tuple[str, ...]) -> object:
    """Return the value at a path through documents, None if there is none. Enters no lists."""
    value: object = attributes
    for name in path:
        if not isinstance(value, dict):
            return None
        value = cast("dict[str, object]", value).get(name)
        if type(value) not in NATIVE:
            value = to_native(value)
    return value


def value_passes(test: Test, value: object) -> bool:
    """Return True if an attribute passes a test, by itself or by an element of it."""
    value = _to_native(value)
    if _is_list(value) and not isinstance(test, Size | ElemMatch):
        return any(_passes(test, item) for item in value) or _passes(test, value)
    return _passes(test, value)


def _iter_values(node: Node, path: tuple[str, ...], at: int, whole: bool) -> Iterator[object]:  # noqa: FBT001
    """Yield the values that `path[at:]` reaches in a document, MISSING if the path breaks off.

    A list at the end of the path yields its elements and itself, or, if `whole`, only itself.
    """
    value = _to_native(node.get(path[at], MISSING))
    at += 1
    while at < len(path) and isinstance(value, dict):
        value = _to_native(cast("Node", value).get(path[at], MISSING))
        at += 1
    if _is_list(value):
        yield from _iter_list_values(value, path, at, whole)
    else:
        yield value if at == len(path) else MISSING


def _iter_list_values(
    items: Items,
    path: tuple[str, ...],
    at: int,
    whole: bool,  # noqa: FBT001
) -> Iterator[object]:
    if at == len(path):
        if not whole:
            yield from items
        yield items
        return
    for item in map(_to_native, items):
        # Only documents are entered by name: a scalar or a list in a list is not even "missing".
        if isinstance(item, dict):
            yield from _iter_values(cast("Node", item), path, at, whole)
    index = path[at]
    if _INDEX.fullmatch(index) and int(index) < len(items):
        yield from _iter_indexed_values(_to_native(items[int(index)]), path, at + 1, whole)


def _iter_indexed_values(
    item: object,
    path: tuple[str, ...],
    at: int,
    whole: bool,  # noqa: FBT001
) -> Iterator[object]:
    if at == len(path):
        yield item
    elif _is_list(item):
        yield from _iter_list_values(item, path, at, whole)
    elif isinstance(item, dict):
        yield from _iter_values(cast("Node", item), path, at, whole)
    # A scalar inside of a list yields nothing if the path goes on, not even MISSING.


def _passes(test: Test, value: object) -> bool:  # noqa: C901, PLR0911, PLR0912 - one for each test
    value = _to_native(value)
    match test:
        case Compare(operator, constant):
            return is_ordered(operator, None if value is MISSING else value, constant)
        case In(scalars, wholes):
            found = None if value is MISSING else value
            return to_identity(found) in scalars or any(is_equal(found, whole) for whole in wholes)
        case Exists():
            return value is not MISSING
        case Size(count):
            return _is_list(value) and len(value) == count
        case HasType(names):
            return value is not MISSING and get_bson_type(value) in names
        case Mod(divisor, remainder):
            return _compute_remainder(value, divisor) == remainder
        case ElemMatch(condition, by_value):
            if not _is_list(value):
                return False
            items = value if by_value else _iter_documents(value)
            return any(matches(condition, item) for item in items)
        case Affix(operator, texts):
            return isinstance(value, str) and AFFIXES[operator](value, texts)
        case CompiledPattern(search):
            return isinstance(value, str) and _has_match(str.__str__(value), search)
        case Pattern(source, options):
            return isinstance(value, str) and has_match(value, source, options)
        case Version(operator, keys):
            return isinstance(value, str) and version_passes(operator, str.__str__(value), keys)
        case MemberTest(members):
            return value in members


def _has_match(text: str, search: Callable[[str], object]) -> bool:
    return len(text) <= TEXT_MAX and bool(search(text))


AFFIXES: Final[Mapping[str, Callable[[str, tuple[str, ...]], bool]]] = {
    "$startsWith": str.startswith,
    "$endsWith": str.endswith,
    "$contains": lambda value, texts: any(str.__contains__(value, text) for text in texts),
}


def version_passes(operator: str, value: str, keys: tuple[VersionKey, ...]) -> bool:
    """Return True if a string is a version that compares to some others as `operator` asks."""
    key = parse_version(value)
    if key is None:
        return False
    match operator:
        case "$in":
            return key in keys
        case "$nin":
            return key not in keys
        case _:
            return bool(_PYTHON[operator](key, keys[0]))


def get_bson_type(value: object) -> str | None:
    """Return the name of the BSON type of a value, None if it has none."""
    place = get_kind(value)
    if place == NUMBER:
        return _get_number_type(value)
    return None if place is None else _TYPES[place]


def _get_number_type(value: object) -> str | None:
    if isinstance(value, int):
        if -(2**31) <= value < 2**31:
            return "int"
        return "long" if -(2**63) <= value < 2**63 else None
    return "double" if isinstance(value, float) else "decimal"


def _compute_remainder(value: Any, divisor: int) -> int | None:
    """Return the remainder, with the sign that C gives it, of a number without its fraction."""
    if get_kind(value) != NUMBER or is_nan(value) or not -(2**63) <= value < 2**63:
        return None
    whole = int(value)
    remainder = abs(whole) % abs(divisor)
    return -remainder if whole < 0 else remainder


def _iter_documents(items: Items) -> Iterator[Node]:
    """Yield the documents among some elements; lists are documents of their indexes, too."""
    for item in map(_to_native, items):
        if _is_list(item):
            yield {str(i): inner for i, inner in enumerate(item)}
        elif isinstance(item, dict):
            yield cast("Node", item)


def _to_native(value: object) -> Any:
    return value if type(value) in NATIVE or value is MISSING else to_native(value)


def _is_list(value: object) -> TypeGuard[Items]:
    return isinstance(value, list | tuple)


class MemberSet:
    """A set of keys, stored as ascending 64-bit hashes in parts, 8 bytes a member.

    A key that is not among n members is mistaken for one with a probability of n / 2**64.

    Args:
        parts: The hashes.
        seed: The seed of the segment, which the keys were hashed with.
    """

    __slots__ = ("_parts", "_seed")

    def __init__(self, parts: "Sequence[Sequence[int]]", seed: int) -> None:
        self._parts = parts
        self._seed = seed

    def __contains__(self, value: object) -> bool:
        key = to_bucketing_key(value)
        if key is None or not self._parts:
            return False
        member = hash_member(key, self._seed)
        part = self._parts[get_part_index(member, len(self._parts))]
        place = bisect_left(part, member)
        return place < len(part) and part[place] == member


def build_segment_condition(segment: Segment, parts: "Mapping[str, Sequence[int]]") -> Condition:
    """Return the condition that contexts in a segment meet.

    Raises:
        KeyError: parts of members are missing.
    """
    conditions = [segment.condition] if segment.condition != NEVER else []
    if segment.included.count:
        conditions.insert(0, build_member_test(segment, segment.included, parts))
    inside = conditions[0] if len(conditions) == 1 else Or(tuple(conditions))
    if not segment.excluded.count:
        return inside
    return And((Nor((build_member_test(segment, segment.excluded, parts),)), inside))


def build_member_test(
    segment: Segment, keys: Keys, parts: "Mapping[str, Sequence[int]]"
) -> Condition:
    """Return the condition that contexts among some keys of a segment meet.

    Raises:
        KeyError: parts of members are missing.
    """
    members = MemberSet([parts[name] for name in keys.parts], segment.seed)
    return Field(segment.by, MemberTest(members))


def bind_segments(
    condition: Condition, conditions_by_segment: Mapping[str, Condition]
) -> Condition:
    """Return a condition with each segment's name replaced by the segment's condition.

    Raises:
        KeyError: the condition of a segment is missing.
    """
    match condition:
        case InSegment(key):
            return conditions_by_segment[key]
        case Field():
            return condition
        case And(conditions) | Or(conditions) | Nor(conditions):
            return type(condition)(
                tuple(bind_segments(item, conditions_by_segment) for item in conditions)
            )
