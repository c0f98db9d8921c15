"""The values that a policy document may hold, in one normal form.

Normal form: None, bool, int of 64 bits, float, str without lone surrogates, aware datetime in UTC
cut to the millisecond, and lists and string-keyed dicts of these. It survives BSON and MessagePack
unchanged, which the hash chain of the ledger relies on. Key order is kept: it counts in MongoDB.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TypeAlias, cast

from flagkit.errors import InvalidDocumentError

Value: TypeAlias = "bool | int | float | str | datetime | list[Value] | dict[str, Value] | None"

DEPTH_MAX = 32
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


def normal(value: object, path: str, depth: int = 0) -> Value:  # noqa: C901, PLR0911 - one for each type
    """Return `value` in normal form.

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
            return text(value, path)
        case datetime():
            return milliseconds(value, path)
        case list() | tuple():
            items = cast("list[object] | tuple[object, ...]", value)
            return [normal(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(items)]
        case Mapping():
            fields = cast("Mapping[object, object]", value)
            if "$ref" in fields and "$id" in fields:
                raise InvalidDocumentError(
                    path, "has $ref and $id, which MongoDB takes for a reference", "Rename one"
                )
            return {
                name(key, path): normal(item, join(path, key), depth + 1)
                for key, item in fields.items()
            }
        case _:
            raise InvalidDocumentError(
                path,
                f"has the type {type(value).__name__}, which policies cannot hold",
                "Use null, a boolean, number, string, date with a time zone, list or document",
            )


def text(value: str, path: str) -> str:
    """Return `value` as a plain str, refusing what UTF-8 cannot carry."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidDocumentError(
            path, "holds a lone surrogate, which is no character", "Remove or replace it"
        ) from None
    return str.__str__(value)


def name(key: object, path: str) -> str:
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
    return text(key, path)


def milliseconds(value: datetime, path: str) -> datetime:
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


def join(path: str, field: object) -> str:
    """Return the path of `field` below `path`."""
    return f"{path}.{field}" if path else str(field)
