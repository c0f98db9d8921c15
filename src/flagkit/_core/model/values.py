"""Values of policy documents: their normal form, MongoDB's order of them, and semantic versions.

The normal form has None, bool, 64-bit int, float, str without lone surrogates, aware datetime in
UTC cut to the millisecond, lists, and dicts with string keys. It survives BSON and MessagePack
unchanged; the hash chain of the ledger depends on that. The order of keys counts, as in MongoDB.

Values that JSON and YAML cannot express are written as MongoDB's Extended JSON. Decimals, UUIDs,
ObjectIds and binaries keep that form; `decode_extended_json` returns their values.

Sources: https://www.mongodb.com/docs/manual/reference/mongodb-extended-json; mongod's answers to
`find`, which tests/evaluation/test_matching.py compares with these; Semantic Versioning 2.0.0
(https://semver.org), items 9 to 11.
"""

import base64
import decimal
import functools
import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, TypeAlias, cast
from uuid import UUID

import msgspec

from flagkit._core.model.foreign import Oid, to_native
from flagkit.errors import InvalidDocumentError

Value: TypeAlias = "bool | int | float | str | datetime | list[Value] | dict[str, Value] | None"
Scalar: TypeAlias = bool | int | float | str | datetime | Decimal | UUID | Oid | bytes | None
Constant: TypeAlias = "Scalar | list[Constant] | dict[str, Constant]"
"""A value that conditions compare with: extended values in it are decoded."""

DEPTH_MAX = 32
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
_EXTENDED: Final[Mapping[str, str]] = {
    "$binary": '{base64: "AQI=", subType: "00"}',
    "$date": '"2026-12-01T08:00:00Z"',
    "$numberDecimal": '"0.1", of at most 34 digits',
    "$numberDouble": '"NaN"',
    "$numberInt": '"5", of 32 bits; $numberLong has 64',
    "$numberLong": '"5"',
    "$oid": '"507f1f77bcf86cd799439011", 24 hexadecimal digits',
    "$uuid": '"00112233-4455-6677-8899-aabbccddeeff"',
}
"""Examples of extended values, by the operator that marks them."""
_NOT_PLAIN: Final = {*_EXTENDED, "$ref", "$id"}
_AS_THEY_ARE: Final = {bool, float, type(None)}
_NUMBER: Final = r"-?(\d+(\.\d*)?|\.\d+)([Ee][+-]?\d+)?|-?Infinity|NaN"
_INTEGER: Final = r"-?\d{1,19}"
_HEX: Final = "[0-9A-Fa-f]"
_DATE: Final = r"\d{4}-\d\d-\d\d([Tt ]([01]\d|2[0-3]):\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d(:?\d\d)?)?)?"
FORMS: Final[Mapping[str, re.Pattern[str]]] = {
    operator: re.compile(form, re.ASCII)
    for operator, form in {
        "$binary": "([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?",
        "$date": _DATE,
        "$numberDecimal": _NUMBER,
        "$numberDouble": _NUMBER,
        "$numberInt": _INTEGER,
        "$numberLong": _INTEGER,
        "$oid": f"{_HEX}{{24}}",
        "$uuid": f"{_HEX}{{32}}|{_HEX}{{8}}(-{_HEX}{{4}}){{3}}-{_HEX}{{12}}",
    }.items()
}
"""The syntax of extended values as text; that of a binary is base64."""
# BSON's decimals are IEEE 754's decimal128. A value that does not fit is rejected, never rounded.
DECIMAL128: Final = decimal.Context(
    prec=34,
    Emin=-6143,
    Emax=6144,
    clamp=1,
    traps=[decimal.InvalidOperation, decimal.Overflow, decimal.Inexact],
)


def is_same(one: object, other: object) -> bool:
    """Return True if two values in normal form are the same, in type and order as well.

    Python's `==` equates True with 1 and 1.0, and ignores the order of a document's fields.
    MongoDB's operators do not, so evaluations may distinguish such values.

    >>> is_same({"$ne": True}, {"$ne": 1}), is_same({"a": 1, "b": 2}, {"b": 2, "a": 1})
    (False, False)
    """
    return encode_exactly(one) == encode_exactly(other)


encode_exactly: Final[Callable[[object], bytes]] = msgspec.msgpack.Encoder().encode
"""Returns bytes that identify a value with its types and its order."""


class _NotPlainError(Exception):
    """A value is not plain."""


def to_plain(fields: Mapping[Any, object]) -> dict[str, Value] | None:
    """Normalize the fields of a document as `normalize` does, if all are of plain types.

    None means that `normalize` must convert them, or find their fault. Imports have hundreds of
    thousands of documents, and most take half the time this way.
    """
    try:
        return cast("dict[str, Value]", _to_plain_value(fields, 0))
    except _NotPlainError:
        return None


def _to_plain_value(value: object, depth: int) -> Value:
    kind = type(value)
    if kind in _AS_THEY_ARE:
        return cast("Value", value)
    if kind is str and cast("str", value).isascii():
        return cast("str", value)
    if kind is int and INT64_MIN <= cast("int", value) <= INT64_MAX:
        return cast("int", value)
    if depth == DEPTH_MAX:
        raise _NotPlainError
    if kind is dict:
        return _to_plain_document(cast("dict[object, object]", value), depth + 1)
    if kind is list:
        return [_to_plain_value(item, depth + 1) for item in cast("list[object]", value)]
    raise _NotPlainError


def _to_plain_document(fields: dict[object, object], depth: int) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for key, value in fields.items():
        if type(key) is not str or key in _NOT_PLAIN or not key.isascii() or "\0" in key:
            raise _NotPlainError
        kind = type(value)
        # Nearly all values are one of these, and a call for each takes as long as all the rest.
        if kind in _AS_THEY_ARE or (kind is str and cast("str", value).isascii()):
            found[key] = cast("Value", value)
        else:
            found[key] = _to_plain_value(value, depth)
    return found


def normalize(  # noqa: C901, PLR0911 - one for each type
    value: object, path: str, depth: int = 0, *, extended: bool = True
) -> Value:
    """Return `value` in normal form.

    Args:
        value: Anything.
        path: Its path in the document.
        depth: The depth of that path.
        extended: True if it may have extended values; if not, documents like them are data.

    Raises:
        InvalidDocumentError: it has a type, size or depth that a policy cannot hold.
    """
    if depth > DEPTH_MAX:
        raise InvalidDocumentError(
            path, f"is nested more than {DEPTH_MAX} deep", "Flatten the document"
        )
    match value:
        case None | bool():
            return value
        case float():
            return float(value)
        case int():
            if not INT64_MIN <= value <= INT64_MAX:
                raise InvalidDocumentError(
                    path, "is an integer beyond 64 bits", "Write it as a string"
                )
            return int(value)
        case str():
            return check_text(value, path)
        case datetime():
            return floor_to_milliseconds(value, path)
        case Decimal() | UUID() | Oid() | bytes() if extended:
            return _encode_extended(value, path)
        case list() | tuple():
            items = cast("list[object] | tuple[object, ...]", value)
            return [
                normalize(item, f"{path}[{i}]", depth + 1, extended=extended)
                for i, item in enumerate(items)
            ]
        case Mapping():
            return _normalize_document(
                cast("Mapping[object, object]", value), path, depth, extended=extended
            )
        case _:
            found = to_native(value)
            if isinstance(found, Oid) and extended:
                return _encode_extended(found, path)
            raise InvalidDocumentError(
                path,
                f"has the type {type(value).__name__}, which cannot stand here",
                "Use null, a boolean, number, string, date with a time zone, list or document",
            )


def _normalize_document(
    fields: Mapping[object, object], path: str, depth: int, *, extended: bool
) -> Value:
    operator = find_extended_form(fields) if extended else None
    if operator is not None:
        return _decode_extended(operator, fields[operator], join_path(path, operator))
    if "$ref" in fields and "$id" in fields:
        raise InvalidDocumentError(
            path, "has $ref and $id, which MongoDB takes for a reference", "Rename one"
        )
    return {
        check_name(key, path): normalize(item, join_path(path, key), depth + 1, extended=extended)
        for key, item in fields.items()
    }


def decode_extended_json(value: Value) -> Constant:
    """Return a value in normal form, with extended values decoded."""
    match value:
        case dict():
            operator = find_extended_form(value)
            if operator is not None:
                return _convert_extended(operator, value[operator])
            return {key: decode_extended_json(item) for key, item in value.items()}
        case list():
            return [decode_extended_json(item) for item in value]
        case _:
            return value


def find_extended_form(fields: Mapping[Any, object]) -> str | None:
    """Return the operator that marks a document as an extended value, None if there is none."""
    key = next(iter(fields), None)
    return key if len(fields) == 1 and isinstance(key, str) and key in _EXTENDED else None


def _decode_extended(operator: str, written: object, path: str) -> Value:
    try:
        value = _convert_extended(operator, written)
    except (ArithmeticError, ValueError):
        raise InvalidDocumentError(
            path, "cannot be read", f"Write {operator}: {_EXTENDED[operator]}"
        ) from None
    return normalize(value, path)


def _convert_extended(operator: str, written: object) -> Constant:
    """Return the value that an extended value encodes.

    Raises:
        ArithmeticError: a decimal is malformed, or does not fit.
        ValueError: it is invalid in any other way.
    """
    match operator, written:
        case "$binary", Mapping():
            return _decode_binary(cast("Mapping[object, object]", written))
        case _, str() if operator in _READERS and FORMS[operator].fullmatch(written):
            return _READERS[operator](written)
        case _:
            raise ValueError(operator)


def _decode_binary(written: Mapping[object, object]) -> bytes | UUID:
    text, kind = written.get("base64"), written.get("subType")
    if (
        len(written) != 2  # noqa: PLR2004 - the two
        or kind not in ("00", "04")
        or not isinstance(text, str)
        or not FORMS["$binary"].fullmatch(text)
    ):
        raise ValueError("$binary")
    content = base64.b64decode(text)
    return content if kind == "00" else UUID(bytes=content)


def parse_date(text: str) -> datetime:
    """Return the date of a text.

    Raises:
        ValueError: it is no date, or has another form than `2026-12-01T08:00:00Z`.
    """
    if not FORMS["$date"].fullmatch(text):
        raise ValueError(text)
    return datetime.fromisoformat(text)


def _parse_double(text: str) -> float:
    value = float(text)
    if math.isinf(value) and "Infinity" not in text:
        raise ValueError(text)
    return value


def _parse_int32(text: str) -> int:
    value = int(text)
    if not INT32_MIN <= value <= INT32_MAX:
        raise ValueError(text)
    return value


_READERS: Final[Mapping[str, Callable[[str], Constant]]] = {
    "$date": parse_date,
    "$numberDecimal": DECIMAL128.create_decimal,
    "$numberDouble": _parse_double,
    "$numberInt": _parse_int32,
    "$numberLong": int,
    "$oid": lambda text: Oid(bytes.fromhex(text)),
    "$uuid": UUID,
}


def _encode_extended(value: Decimal | UUID | Oid | bytes, path: str) -> Value:
    match value:
        case Decimal():
            return {"$numberDecimal": _format_decimal(value, path)}
        case UUID():
            return {"$uuid": str(value)}
        case Oid():
            return {"$oid": str(value)}
        case bytes():
            return {"$binary": {"base64": base64.b64encode(value).decode(), "subType": "00"}}


def _format_decimal(value: Decimal, path: str) -> str:
    if value.is_nan():
        # MongoDB has one NaN: sign, payload and signalling make no difference.
        return "NaN"
    try:
        return str(DECIMAL128.create_decimal(value))
    except ArithmeticError:
        raise InvalidDocumentError(
            path, "is a decimal that BSON cannot hold", "Round it to 34 digits, or write a string"
        ) from None


def check_text(value: str, path: str) -> str:
    """Return `value` as a plain str; reject characters that UTF-8 cannot encode."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidDocumentError(
            path, "holds a lone surrogate, which is no character", "Remove or replace it"
        ) from None
    return str.__str__(value)


def check_name(key: object, path: str) -> str:
    """Return `key` as the name of a field."""
    if not isinstance(key, str):
        kind = type(key).__name__
        raise InvalidDocumentError(
            path,
            f"has the key {key}" if isinstance(key, bool) else f"has a key of the type {kind}",
            "Quote it: YAML 1.1 readers take on, off, yes and no for booleans"
            if isinstance(key, bool)
            else 'Quote it, as in "1"',
        )
    if "\0" in key:
        raise InvalidDocumentError(path, "has a key with a NUL character", "Remove the character")
    return check_text(key, path)


def floor_to_milliseconds(value: datetime, path: str) -> datetime:
    """Return `value` in UTC, floored to the millisecond, as BSON keeps dates."""
    if value.utcoffset() is None:
        raise InvalidDocumentError(
            path,
            f"is the date {value.isoformat()} without a time zone",
            f"Write the zone, as in {value.isoformat()}Z",
        )
    try:
        value = value.astimezone(UTC)
    except OverflowError:
        raise InvalidDocumentError(
            path, f"is {value.isoformat()}, which UTC cannot say", "Use the years 1 to 9999"
        ) from None
    cut = value.microsecond // 1000 * 1000
    return datetime.combine(value.date(), value.time().replace(microsecond=cut, fold=0), UTC)


def join_path(path: str, field: object) -> str:
    """Return the path of `field` below `path`."""
    field = escape_for_display(str(field))
    return f"{path}.{field}" if path else field


def escape_for_display(text: str) -> str:
    """Return a text for a message: characters that may control a terminal are escaped."""
    return text if text.isprintable() else repr(text)


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


def get_kind(value: object) -> int | None:
    """Return the place of a value's type in BSON's order; numbers of all types share one.

    Subclasses count as their base. The result is None for types that BSON lacks. Convert foreign
    values with `to_native` before.
    """
    found = _KINDS.get(type(value))
    if found is None:
        for base in type(value).__mro__:
            if base in _KINDS:
                return _KINDS[base]
    return found


def to_identity(value: Any) -> object:  # noqa: PLR0911 - one for each kind
    """Return an object that is equal, and hashes alike, for scalars that are equal in MongoDB.

    The result for a list, a document or a type that BSON lacks equals nothing. A string is itself.
    """
    place = get_kind(value)
    if place == TEXT:
        return str.__str__(value)
    if place == NUMBER:
        # Python's numbers are equal, and hash alike, by numeric value; True equals 1.
        return (NUMBER,) if is_nan(value) else value
    if place == NULL:
        return None
    if place == BOOLEAN:
        return (BOOLEAN, value)
    if place == DATE:
        return (DATE, _to_milliseconds(value))
    if place == BINARY:
        return (BINARY, *_to_binary_order(value))
    if place == OBJECT_ID:
        return (OBJECT_ID, value.content)
    return _NOTHING


def compare(left: Any, right: Any) -> int:
    """Order two values as BSON does: negative, zero or positive. The left one may be foreign."""
    left = to_native(left)
    left_kind, right_kind = get_kind(left), get_kind(right)
    if left_kind is None or left_kind != right_kind:
        return (-1 if left_kind is None else left_kind) - (-1 if right_kind is None else right_kind)
    return _compare_same_kind(left_kind, left, right)


def _compare_same_kind(place: int, left: Any, right: Any) -> int:
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
            left = _shorten_integer(left)
    elif place == DATE:
        left, right = _to_milliseconds(left), _to_milliseconds(right)
    elif place == BINARY:
        left, right = _to_binary_order(left), _to_binary_order(right)
    elif place == OBJECT_ID:
        left, right = left.content, right.content
    return int(left > right) - int(left < right)


def is_equal(left: object, right: object) -> bool:
    """Return True if two values are equal in MongoDB: they have one kind, and NaN equals itself."""
    place = get_kind(left)
    return (
        place is not None
        and place == get_kind(right)
        and _compare_same_kind(place, left, right) == 0
    )


def is_ordered(operator: str, value: object, constant: object) -> bool:
    """Compare within one kind only: MongoDB's type bracketing."""
    value_kind = get_kind(value)
    if value_kind is None or value_kind != get_kind(constant):
        return False
    order = _compare_same_kind(value_kind, value, constant)
    if order == 0:
        # Null and NaN are equal to themselves, and neither above nor below anything: the strict
        # orderings fall out here, since equal is never strictly ordered.
        return operator in ("$eq", "$gte", "$lte")
    if value_kind == NUMBER and (is_nan(value) or is_nan(constant)):
        return False
    return operator in (("$gt", "$gte") if order > 0 else ("$lt", "$lte"))


def is_nan(value: Any) -> bool:
    """Return True if a value is not a number, of any type that has one."""
    return (
        value.is_nan()
        if isinstance(value, Decimal)
        else isinstance(value, float) and math.isnan(value)
    )


def _shorten_integer(value: int) -> int:
    """Return an integer, or a shorter one if it is beyond all of BSON's decimals.

    Python takes seconds to compare one of a million digits with a decimal.
    """
    return value >> max(value.bit_length() - _BITS_MAX, 0)


def _to_milliseconds(value: datetime) -> int:
    aware = value.replace(tzinfo=UTC) if value.utcoffset() is None else value
    elapsed = aware - _EPOCH
    return (elapsed.days * 86_400 + elapsed.seconds) * 1000 + elapsed.microseconds // 1000


def _to_binary_order(value: bytes | UUID) -> tuple[int, int, bytes]:
    """Return length, BSON subtype and content: the order of binary values."""
    if isinstance(value, UUID):
        return (16, 4, value.bytes)
    return (len(value), 0, value)


def _compare_documents(left: Mapping[Any, Any], right: Mapping[Any, Any]) -> int:
    """Compare pair by pair: the value's kind, then the name, then the value. Key order counts."""
    for (left_name, left_value), (right_name, right_value) in zip(
        left.items(), right.items(), strict=False
    ):
        left_kind, right_kind = get_kind(to_native(left_value)), get_kind(right_value)
        if left_kind != right_kind:
            return compare(left_value, right_value)
        if left_name != right_name:
            # Contexts may have names that are no strings. BSON has none, so they come first.
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


VersionKey: TypeAlias = tuple[object, ...]

LENGTH_MAX = 256
_VERSION_NUMBER = "(?:0|[1-9][0-9]*)"
_PRERELEASE = f"(?:{_VERSION_NUMBER}|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
VERSION = re.compile(
    rf"({_VERSION_NUMBER})\.({_VERSION_NUMBER})\.({_VERSION_NUMBER})"
    rf"(?:-({_PRERELEASE}(?:\.{_PRERELEASE})*))?"
    r"(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?"
)


def parse_version(text: str) -> VersionKey | None:
    """Return the key of a version, None for other texts, such as "1.0" or "v1.0.0".

    A release comes after its prereleases, numeric identifiers before others, and build metadata
    does not count.
    """
    # Judged before the memo is asked: it must not keep strings of any length.
    return _parse_version(text) if len(text) <= LENGTH_MAX else None


@functools.lru_cache(4096)
def _parse_version(text: str) -> VersionKey | None:
    found = VERSION.fullmatch(text)
    if found is None:
        return None
    major, minor, patch, prerelease = found.groups()
    core = (int(major), int(minor), int(patch))
    if prerelease is None:
        return (*core, 1)
    identifiers = prerelease.split(".")
    # A digits-only identifier is a number and comes before one that is not.
    return (*core, 0, *((0, int(i), "") if i.isdigit() else (1, 0, i) for i in identifiers))
