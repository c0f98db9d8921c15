"""Keys of flags, segments and regions, targeting keys, and paths to attributes."""

import re
from typing import Any, cast
from uuid import UUID

from flagkit._core.model.foreign import Oid, to_native
from flagkit.errors import InvalidDocumentError

KEY_LENGTH_MAX = 200
KEY_BITS_MAX = 14_000
"""Longer integers name nobody: Python does not write out those of over 4,300 digits."""
PATH_NAMES_MAX = 16
PATH_NUMBERS_MAX = 4
KEY = re.compile(r"[a-z0-9][a-z0-9_-]*(\.[a-z0-9][a-z0-9_-]*)*")
REGION = re.compile(r"\*|[a-z0-9][a-z0-9_-]{0,62}")


def check_key(key: object, path: str = "key", kind: str = "flag") -> str:
    """Return `key` if it is a flag's or segment's: dotted, lower case, at most 200 characters."""
    if not isinstance(key, str) or len(key) > KEY_LENGTH_MAX or not KEY.fullmatch(key):
        raise InvalidDocumentError(
            path,
            f"{key!r} is not a {kind} key",
            f"Write product.team.feature: lower case letters, digits, - and _, joined by dots, "
            f"at most {KEY_LENGTH_MAX} characters",
        )
    return key


def check_region(region: object, path: str = "region") -> str:
    """Return `region` if it is the name of one, or "*"."""
    if not isinstance(region, str) or not REGION.fullmatch(region):
        raise InvalidDocumentError(
            path, f"{region!r} is not a region", 'Write "*", or a name such as eu-west-1'
        )
    return region


def parse_attribute_path(text: str, path: str) -> tuple[str, ...]:
    """Return the names of a dotted path to an attribute.

    Raises:
        InvalidDocumentError: it is no path, or has too many names.
    """
    names = tuple(text.split("."))
    if "" in names or ("$" in text and any(name.startswith("$") for name in names)):
        raise InvalidDocumentError(
            path, f"{text!r} is not an attribute path", "Write names joined by single dots"
        )
    # A number is an index and a name: each may double the ways through lists of lists.
    if len(names) > PATH_NUMBERS_MAX and (
        len(names) > PATH_NAMES_MAX or sum(map(str.isdigit, names)) > PATH_NUMBERS_MAX
    ):
        raise InvalidDocumentError(
            path,
            "is too long a path",
            f"Write at most {PATH_NAMES_MAX} names, and among them {PATH_NUMBERS_MAX} numbers",
        )
    return names


def to_bucketing_key(value: object) -> str | None:
    """Return the string that a bucketing attribute hashes as, or None if it has a wrong type.

    Non-empty strings are themselves. Integers are their decimal form, UUIDs and ObjectIds their
    usual text: `00112233-4455-6677-8899-aabbccddeeff`, 24 hexadecimal digits. No other type is
    accepted. Lazy and proxied values count as the values behind them.
    """
    found: Any = to_native(value)
    kind = cast("type[object]", type(found))
    if kind is str:
        return found or None
    if kind is int:
        return str(found) if found.bit_length() <= KEY_BITS_MAX else None
    if issubclass(kind, UUID):
        return UUID.__str__(found)
    return str(found) if kind is Oid else None
