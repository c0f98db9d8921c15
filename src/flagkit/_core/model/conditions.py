"""Conditions: MongoDB query documents, checked and parsed into a tree.

The tables at the end declare each operator once: the parser of its constant, its number in packed
bodies, its canonical form and its text for editors. `evaluation.matching` defines what the tests
mean, and `evaluation.compiler` makes the common ones fast. Negations (`$ne`, `$nin`, `$not`,
`$exists: false`) are `Nor` around the positive test, because MongoDB negates the whole path and
never a single element.
"""

import difflib
from collections.abc import Callable, Container, Iterable, Mapping
from decimal import Decimal
from typing import Any, Literal, TypeAlias, cast, get_args

from msgspec import Struct

from flagkit._core.model.keys import KEY, KEY_LENGTH_MAX, check_key, parse_attribute_path
from flagkit._core.model.values import (
    BOOLEAN,
    LENGTH_MAX,
    NUMBER,
    VERSION,
    Constant,
    Value,
    VersionKey,
    decode_extended_json,
    get_kind,
    is_nan,
    join_path,
    parse_version,
    to_identity,
)
from flagkit._core.regex.parser import LENGTH_MAX as PATTERN_LENGTH_MAX
from flagkit._core.regex.parser import parse_pattern
from flagkit.errors import InvalidDocumentError

PATTERN_TESTS, SEGMENT_TESTS = 40, 32
Ordering: TypeAlias = Literal["$eq", "$gt", "$gte", "$lt", "$lte"]
AffixOperator: TypeAlias = Literal["$startsWith", "$endsWith", "$contains"]


class Compare(Struct, frozen=True, gc=False):
    """A test against one constant, by MongoDB's order within the constant's type."""

    operator: Ordering
    value: Constant


class In(Struct, frozen=True, gc=False):
    """A test for equality with any of some constants.

    `scalars` are the identities (`values.to_identity`) of those that are neither lists nor
    documents: there may be many thousands. `containers` are the others.
    """

    scalars: frozenset[object]
    containers: tuple[Constant, ...]


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

    operator: AffixOperator
    texts: tuple[str, ...]


class Version(Struct, frozen=True, gc=False):
    """A test for a semantic version in some order to others, given by their keys.

    What is no version passes none of them, `$ne` and `$nin` included.
    """

    operator: str
    keys: tuple[VersionKey, ...]


class Pattern(Struct, frozen=True, gc=False):
    """A test for a string with a pattern in it, which `regex.parser` can parse."""

    source: str
    options: str


class CompiledPattern(Struct, frozen=True, gc=False):
    """A test for a string that a pattern is found in, which is ready to be searched for."""

    search: Callable[[str], object]


class MemberTest(Struct, frozen=True, gc=False):
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
    | CompiledPattern
    | MemberTest
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


Parse: TypeAlias = Callable[[tuple[str, ...], str, Constant, str], Condition]
"""A parser of constants.

It takes the attribute path, the operator, the constant and the place for errors.
"""
ConstantForm: TypeAlias = Literal[
    "value", "set", "one or more", "presence", "types", "versions", "condition", "conditions"
]
"""A form of constants: it decides which of them are equal in the canonical form.

A `value` keeps the order of a list. The order and the duplicates of a `set` do not count. `one or
more` is a set or a single value. `model.canonical` has a function for each form.
"""


class ConstantKind(Struct, frozen=True):
    """A kind of constants: its JSON schema for editors, and its canonical form."""

    schema: Mapping[str, Any]
    form: ConstantForm = "value"


class Keyword(Struct, frozen=True):
    """A name in conditions that begins with `$`.

    - `number`: stands for the name in packed bodies and never changes. A new name takes the next
      free number of the list in docs/snapshot-format.md.
    - `description`: the text that editors show.
    """

    number: int
    description: str
    constant: ConstantKind


class Operator(Keyword, frozen=True):
    """A keyword that makes a condition by itself."""

    parse: Parse


def collect_condition_segments(condition: Condition) -> set[str]:
    """Return the keys of the segments that a condition refers to."""
    match condition:
        case InSegment(key):
            return {key}
        case Field():
            return set()
        case And(conditions) | Or(conditions) | Nor(conditions):
            return {key for item in conditions for key in collect_condition_segments(item)}


def count_tests(condition: Condition) -> int:
    """Return how many steps a condition may take, each about as long as the others.

    Each test is one, each part that joins some, and each constant that is tried by itself. A
    search goes through a text, and is PATTERN_TESTS; a segment has tests of its own, and is
    SEGMENT_TESTS.
    """
    match condition:
        case Field(_, ElemMatch(inner, _)):
            return 1 + count_tests(inner)
        case Field(_, In(_, items) | Affix(_, items) | Version(_, items)):
            return 1 + len(items)
        case Field(_, Pattern()):
            return PATTERN_TESTS
        case InSegment():
            return SEGMENT_TESTS
        case Field():
            return 1
        case And(conditions) | Or(conditions) | Nor(conditions):
            return 1 + sum(map(count_tests, conditions))


TYPE_NAMES: Mapping[int, str] = {
    1: "double",
    2: "string",
    3: "object",
    4: "array",
    5: "binData",
    7: "objectId",
    8: "bool",
    9: "date",
    10: "null",
    16: "int",
    18: "long",
    19: "decimal",
}
"""The BSON types that a context may hold, by MongoDB's numbers."""
_NUMBERS = {"double", "int", "long", "decimal"}
_TYPES = {"number", *TYPE_NAMES.values()}


def parse_condition(document: Value, path: str) -> Condition:
    """Parse a condition document in normal form; `values.normalize` has bounded its depth.

    Raises:
        InvalidDocumentError: it is not one; the path leads to the fault.
    """
    return _parse_document(decode_extended_json(document), path)


def _parse_document(document: Constant, path: str) -> Condition:
    if not isinstance(document, dict):
        raise InvalidDocumentError(
            path, "is not a document", "Write `attribute: value` or `attribute: {$operator: value}`"
        )
    return _combine_all(
        _parse_member(key, value, join_path(path, key)) for key, value in document.items()
    )


def _combine_all(conditions: Iterable[Condition]) -> Condition:
    found = tuple(conditions)
    return found[0] if len(found) == 1 else And(found)


def _parse_member(key: str, value: Constant, path: str) -> Condition:
    if (logical := LOGICAL_OPERATORS.get(key)) is not None:
        return logical.parse((), key, value, path)
    if key.startswith("$"):
        raise _build_unknown_error(key, path, LOGICAL_OPERATORS)
    parts = parse_attribute_path(key, path)
    if isinstance(value, dict):
        first = next(iter(value), "")
        if first.startswith("$"):
            return _parse_tests(parts, value, path)
        if (meant := _SYMBOLS.get(first, f"${first}")) in OPERATORS:
            raise InvalidDocumentError(
                join_path(path, first),
                "is no operator",
                f"Did you mean {meant}? For equality with a document write $eq: {{{first}: ...}}",
            )
    return Field(parts, Compare("$eq", value))


def _parse_segments(_: tuple[str, ...], __: str, value: Constant, path: str) -> Condition:
    keys = [value] if isinstance(value, str) else value
    if not isinstance(keys, list) or not keys:
        raise InvalidDocumentError(
            path, "names no segment", f"Write {SEGMENT}: KEY, or a list of keys"
        )
    found = [
        InSegment(check_key(key, path if key is value else f"{path}[{i}]", "segment"))
        for i, key in enumerate(keys)
    ]
    return found[0] if len(found) == 1 else Or(tuple(found))


def _parse_logical(_: tuple[str, ...], operator: str, value: Constant, path: str) -> Condition:
    if not isinstance(value, list) or not value:
        raise InvalidDocumentError(
            path, "is not a list of conditions, or is empty", "List at least one condition"
        )
    branches = tuple(_parse_document(branch, f"{path}[{i}]") for i, branch in enumerate(value))
    return _COMBINATIONS[operator](branches)


_COMBINATIONS: Mapping[str, type[And | Or | Nor]] = {"$and": And, "$or": Or, "$nor": Nor}


def _parse_tests(parts: tuple[str, ...], operators: Mapping[str, Constant], path: str) -> Condition:
    if OPTIONS in operators and "$regex" not in operators:
        raise InvalidDocumentError(
            join_path(path, OPTIONS), "has no $regex", "Write both in one document"
        )
    conditions: list[Condition] = []
    for operator, constant in operators.items():
        if operator == OPTIONS:
            continue
        found = OPERATORS.get(operator)
        if found is None:
            raise _build_unknown_error(operator, join_path(path, operator), (*OPERATORS, OPTIONS))
        given = [constant, operators.get(OPTIONS, "")] if operator == "$regex" else constant
        conditions.append(found.parse(parts, operator, given, join_path(path, operator)))
    return _combine_all(conditions)


def _build_misplaced_error(path: str) -> InvalidDocumentError:
    return InvalidDocumentError(
        path,
        f"has {SEGMENT} within an attribute, but a segment looks at the whole context",
        f"Write {SEGMENT} beside the attributes",
    )


def _build_unknown_error(operator: str, path: str, known: Iterable[str]) -> InvalidDocumentError:
    if operator == SEGMENT:
        return _build_misplaced_error(path)
    names = sorted(known)
    close = difflib.get_close_matches(operator, names, n=1, cutoff=0.7)
    remedy = f"Did you mean {close[0]}? " if close else ""
    return InvalidDocumentError(
        path, f"unknown operator {operator!r}", f"{remedy}Known here: {' '.join(names)}"
    )


def _parse_compare(parts: tuple[str, ...], operator: str, constant: Constant, _: str) -> Condition:
    return Field(parts, Compare(cast("Ordering", operator), constant))


def _parse_not_equal(parts: tuple[str, ...], _: str, constant: Constant, path: str) -> Condition:
    return Nor((_parse_compare(parts, "$eq", constant, path),))


def _parse_in(parts: tuple[str, ...], operator: str, constant: Constant, path: str) -> Condition:
    if not isinstance(constant, list):
        raise InvalidDocumentError(path, "is not a list", f"Write {operator}: [value, ...]")
    for i, value in enumerate(constant):
        if isinstance(value, dict) and next(iter(value), "").startswith("$"):
            raise InvalidDocumentError(
                f"{path}[{i}]", "is an operator", f"{operator} lists plain values; use $or instead"
            )
    wholes = tuple(value for value in constant if isinstance(value, list | dict))
    scalars = (to_identity(value) for value in constant if not isinstance(value, list | dict))
    return Field(parts, In(frozenset(scalars), wholes))


def _parse_not_in(
    parts: tuple[str, ...], operator: str, constant: Constant, path: str
) -> Condition:
    return Nor((_parse_in(parts, operator, constant, path),))


def _parse_exists(parts: tuple[str, ...], _: str, constant: Constant, __: str) -> Condition:
    field = Field(parts, Exists())
    # MongoDB's truth, not Python's: 0 and null are false; "" and [] are true.
    absent = constant is None or (get_kind(constant) in (NUMBER, BOOLEAN) and constant == 0)
    return Nor((field,)) if absent else field


def _parse_not(parts: tuple[str, ...], operator: str, constant: Constant, path: str) -> Condition:
    if not isinstance(constant, dict) or not constant:
        raise InvalidDocumentError(
            path, "is not a document of operators", f"Write {operator}: {{$operator: value}}"
        )
    return Nor((_parse_tests(parts, constant, path),))


def _parse_size(parts: tuple[str, ...], operator: str, constant: Constant, path: str) -> Condition:
    count = _to_whole_number(constant)
    if count is None or not 0 <= count < 2**31:
        raise InvalidDocumentError(path, "is not a length", f"Write {operator}: 2")
    return Field(parts, Size(count))


def _parse_mod(parts: tuple[str, ...], operator: str, constant: Constant, path: str) -> Condition:
    numbers = constant if isinstance(constant, list) else []
    found = [_to_integer(number) for number in numbers]
    truncated = [number for number in found if number is not None]
    if len(numbers) != 2 or len(truncated) != 2 or truncated[0] == 0:  # noqa: PLR2004 - a pair
        raise InvalidDocumentError(
            path, "is not a divisor and a remainder", f"Write {operator}: [4, 0]"
        )
    return Field(parts, Mod(*truncated))


def _parse_has_type(
    parts: tuple[str, ...], operator: str, constant: Constant, path: str
) -> Condition:
    wanted = constant if isinstance(constant, list) else [constant]
    names: set[str] = set()
    for value in wanted:
        name = value if isinstance(value, str) else TYPE_NAMES.get(_to_whole_number(value) or 0)
        if name not in _TYPES:
            raise InvalidDocumentError(
                path, f"{value!r} is not a type", f"Known here: {' '.join(sorted(_TYPES))}"
            )
        names |= _NUMBERS if name == "number" else {name}
    if not names:
        raise InvalidDocumentError(path, "names no type", f"Write {operator}: string")
    return Field(parts, HasType(frozenset(names)))


def _parse_elem_match(
    parts: tuple[str, ...], operator: str, constant: Constant, path: str
) -> Condition:
    if not isinstance(constant, dict):
        raise InvalidDocumentError(
            path, "is not a document", f"Write {operator}: {{field: value}} or {{$gt: 1}}"
        )
    first = next(iter(constant), "")
    if first.startswith("$") and first not in LOGICAL_OPERATORS:
        return Field(parts, ElemMatch(_parse_tests((), constant, path), by_value=True))
    condition = _parse_document(constant, path)
    if collect_condition_segments(condition):
        raise _build_misplaced_error(path)
    return Field(parts, ElemMatch(condition, by_value=False))


def _parse_all(parts: tuple[str, ...], operator: str, constant: Constant, path: str) -> Condition:
    if not isinstance(constant, list):
        raise InvalidDocumentError(path, "is not a list", f"Write {operator}: [value, ...]")
    operators = [next(iter(value), "") for value in constant if isinstance(value, dict)]
    inner = [name for name in operators if name.startswith("$")]
    if inner and (len(inner) != len(constant) or set(inner) != {"$elemMatch"}):
        raise InvalidDocumentError(
            path, "mixes operators and values", f"{operator} lists values, or $elemMatch alone"
        )
    conditions = [
        _parse_tests(parts, value, f"{path}[{i}]")
        if inner and isinstance(value, dict)
        else Field(parts, Compare("$eq", value))
        for i, value in enumerate(constant)
    ]
    # All of nothing never holds, in MongoDB.
    return _combine_all(conditions) if conditions else NEVER


def _parse_affix(parts: tuple[str, ...], operator: str, constant: Constant, path: str) -> Condition:
    texts = constant if isinstance(constant, list) else [constant]
    found = tuple(text for text in texts if isinstance(text, str) and text)
    if not texts or len(found) != len(texts):
        raise InvalidDocumentError(
            path, "is not a string or a list of strings, or one is empty", f'Write {operator}: "x"'
        )
    return Field(parts, Affix(cast("AffixOperator", operator), found))


def _parse_regex(parts: tuple[str, ...], operator: str, constant: Constant, path: str) -> Condition:
    """Build the test for `$regex`, whose constant comes in a list with that of `$options`."""
    source, options = constant if isinstance(constant, list) else (None, None)
    if not isinstance(source, str):
        raise InvalidDocumentError(path, "is not a string", f'Write {operator}: "^[a-z]+$"')
    if not isinstance(options, str) or not set(options) <= set("imsx"):
        raise InvalidDocumentError(
            f"{path.removesuffix(operator)}{OPTIONS}",
            f"is {options!r}, not a string of i, m, s and x",
            'Write $options: "i" to ignore case',
        )
    parse_pattern(source, options, path)
    return Field(parts, Pattern(source, "".join(sorted({*options}))))


def _parse_version_test(
    parts: tuple[str, ...], operator: str, constant: Constant, path: str
) -> Condition:
    if not isinstance(constant, dict) or not constant:
        raise InvalidDocumentError(
            path, "is not a document of comparisons", f'Write {operator}: {{$gte: "2.3.0"}}'
        )
    tests: list[Condition] = []
    for comparison, value in constant.items():
        place = join_path(path, comparison)
        if comparison not in _VERSION_OPERATORS:
            raise _build_unknown_error(comparison, place, _VERSION_OPERATORS)
        values = value if isinstance(value, list) else [value]
        if isinstance(value, list) is not (comparison in ("$in", "$nin")):
            raise InvalidDocumentError(
                place, "is a list, or is none", "Only $in and $nin have lists"
            )
        keys = [parse_version(item) if isinstance(item, str) else None for item in values]
        found = tuple(key for key in keys if key is not None)
        if len(found) != len(keys):
            wrong = values[keys.index(None)]
            raise InvalidDocumentError(
                place, f"{wrong!r} is not a version", 'Write all three numbers, quoted: "2.3.0"'
            )
        tests.append(Field(parts, Version(comparison, found)))
    return _combine_all(tests)


def _to_integer(value: Constant) -> int | None:
    """Return what is left of a number of 64 bits without its fraction; a boolean is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal) or is_nan(value):
        return None
    return int(value) if -(2**63) < value < 2**63 else None


def _to_whole_number(value: Constant) -> int | None:
    """Return a number as an integer if it is one."""
    integer = _to_integer(value)
    return integer if integer == value else None


SEGMENT = "$segment"
OPTIONS = "$options"
_VERSION_OPERATORS = (*get_args(Ordering), "$ne", "$in", "$nin")
"""The comparisons within `$semver`."""
_SYMBOLS: Mapping[str, str] = {
    "==": "$eq",
    "=": "$eq",
    "!=": "$ne",
    ">": "$gt",
    ">=": "$gte",
    "<": "$lt",
    "<=": "$lte",
}

KEY_SCHEMA = {"type": "string", "pattern": f"^(?:{KEY.pattern})$", "maxLength": KEY_LENGTH_MAX}
"""The JSON schema of a key of a flag or of a segment."""
# References lead to the parts that `policy_files.json_schema` defines.
_EXTENDED = {"$ref": "#/$defs/extended"}
_OPERATORS = {"$ref": "#/$defs/operators"}
_CONDITION = {"$ref": "#/$defs/condition"}
_NUMBER = {"anyOf": [{"type": "number"}, _EXTENDED]}
_NEAR_ZERO = {"type": "number", "exclusiveMinimum": -1, "exclusiveMaximum": 1}
_VERSION = {
    "type": "string",
    "pattern": f"^(?:{VERSION.pattern})$",
    "maxLength": LENGTH_MAX,
    "examples": ["2.3.0"],
}


def _build_list(items: Mapping[str, Any], **limits: int) -> dict[str, Any]:
    return {"type": "array", "items": items, **limits}


def _build_one_or_more(one: Mapping[str, Any], form: ConstantForm = "one or more") -> ConstantKind:
    return ConstantKind({"anyOf": [one, _build_list(one, minItems=1)]}, form)


_VALUE = ConstantKind({})
_VALUES = ConstantKind(_build_list({"$ref": "#/$defs/value"}), "set")
_PRESENCE = ConstantKind({"examples": [True, False]}, "presence")
_LENGTH = ConstantKind(
    {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 2**31 - 1}, _EXTENDED]}
)
_DIVISION = ConstantKind(
    {
        "type": "array",
        "prefixItems": [{**_NUMBER, "not": _NEAR_ZERO}, _NUMBER],
        "minItems": 2,
        "maxItems": 2,
        "examples": [[4, 0]],
    }
)
_TYPE_CHOICE = _build_one_or_more(
    {"anyOf": [{"enum": ["number", *TYPE_NAMES.values(), *TYPE_NAMES]}, _EXTENDED]}, "types"
)
_ELEMENT = ConstantKind({"anyOf": [_OPERATORS, _CONDITION]}, "condition")
_ELEMENTS = ConstantKind(
    {"anyOf": [_VALUES.schema, _build_list({**_OPERATORS, "required": ["$elemMatch"]})]}, "set"
)
_TEXTS = _build_one_or_more({"type": "string", "minLength": 1})
_PATTERN = ConstantKind({"type": "string", "maxLength": PATTERN_LENGTH_MAX})
_PATTERN_OPTIONS = ConstantKind({"type": "string", "pattern": "^[imsx]*$"})
_VERSIONS = ConstantKind(
    {
        "type": "object",
        "properties": {
            name: _build_list(_VERSION) if name in ("$in", "$nin") else _VERSION
            for name in _VERSION_OPERATORS
        },
        "minProperties": 1,
        "additionalProperties": False,
    },
    "versions",
)
_TESTS = ConstantKind(_OPERATORS, "condition")
_CONDITIONS = ConstantKind(_build_list(_CONDITION, minItems=1), "conditions")
_SEGMENTS = _build_one_or_more(KEY_SCHEMA)

OPERATORS: Mapping[str, Operator] = {
    "$eq": Operator(0, "Equals the value.", _VALUE, _parse_compare),
    "$gt": Operator(2, "Is of the same type and greater.", _VALUE, _parse_compare),
    "$gte": Operator(3, "Is of the same type and greater or equal.", _VALUE, _parse_compare),
    "$lt": Operator(4, "Is of the same type and less.", _VALUE, _parse_compare),
    "$lte": Operator(5, "Is of the same type and less or equal.", _VALUE, _parse_compare),
    "$ne": Operator(
        1,
        "Does not equal the value; also where there is no such attribute.",
        _VALUE,
        _parse_not_equal,
    ),
    "$in": Operator(6, "Equals one of the values.", _VALUES, _parse_in),
    "$nin": Operator(
        7, "Equals none of the values; also where it is missing.", _VALUES, _parse_not_in
    ),
    "$exists": Operator(8, "Is there, be it null; false: is not there.", _PRESENCE, _parse_exists),
    "$size": Operator(16, "Is a list with so many elements.", _LENGTH, _parse_size),
    "$mod": Operator(
        17, "Is a number that, divided by the first, leaves the second.", _DIVISION, _parse_mod
    ),
    "$type": Operator(18, "Is of a BSON type, or of one of some.", _TYPE_CHOICE, _parse_has_type),
    "$elemMatch": Operator(
        15,
        "Is a list with an element for which all of the conditions hold.",
        _ELEMENT,
        _parse_elem_match,
    ),
    "$all": Operator(
        14, "Is a list with all of the values; each may be an $elemMatch.", _ELEMENTS, _parse_all
    ),
    "$startsWith": Operator(
        21, "Is a string that starts with it, or with one of some.", _TEXTS, _parse_affix
    ),
    "$endsWith": Operator(
        22, "Is a string that ends with it, or with one of some.", _TEXTS, _parse_affix
    ),
    "$contains": Operator(
        23, "Is a string that contains it, or one of some.", _TEXTS, _parse_affix
    ),
    "$regex": Operator(19, "A string has the regular expression in it.", _PATTERN, _parse_regex),
    "$semver": Operator(
        24, "Is a semantic version in such an order to others.", _VERSIONS, _parse_version_test
    ),
    "$not": Operator(9, "The operators inside do not hold.", _TESTS, _parse_not),
}
"""The operators of an attribute."""

LOGICAL_OPERATORS: Mapping[str, Operator] = {
    "$and": Operator(10, "All of the conditions hold.", _CONDITIONS, _parse_logical),
    "$or": Operator(11, "At least one of the conditions holds.", _CONDITIONS, _parse_logical),
    "$nor": Operator(12, "None of the conditions holds.", _CONDITIONS, _parse_logical),
    SEGMENT: Operator(
        13, "The context is in the segment, or in any of them.", _SEGMENTS, _parse_segments
    ),
}
"""The operators that stand where an attribute could."""

KEYWORDS: Mapping[str, Keyword] = {
    **OPERATORS,
    OPTIONS: Keyword(20, "Of $regex: i, m, s and x.", _PATTERN_OPTIONS),
    **LOGICAL_OPERATORS,
}
"""The operators, and `$options` beside `$regex`."""
