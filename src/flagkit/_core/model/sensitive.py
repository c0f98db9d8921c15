"""Sensitive values: values of variants that are stored encrypted and never shown.

A document holds `{$encrypted: {type, base64}}`. A flag holds one of the three types here, and only
one of them contains the value. `_core.secrets` encrypts and decrypts.
"""

import base64
from collections.abc import Mapping
from typing import Any, Final, TypeAlias, cast, get_args

from msgspec import Struct

from flagkit._core.model.documents import VariantType
from flagkit._core.model.values import FORMS, Value, join_path
from flagkit.errors import InvalidDocumentError

SENSITIVE: Final = "(sensitive)"
"""The text that replaces a secret value in output."""
ENCRYPTED: Final = "$encrypted"
_BASE64: Final = FORMS["$binary"]


class EncryptedValue(Struct, frozen=True):
    """A value as it is stored: encrypted. `type` is its flag's, for readers without a key."""

    ciphertext: bytes
    type: VariantType


class SecretValue:
    """A value in the clear, which its `repr` does not show."""

    __slots__ = ("value",)

    def __init__(self, value: Value) -> None:
        self.value = value

    def __repr__(self) -> str:
        return SENSITIVE


class UnavailableValue(Struct, frozen=True):
    """A value that could not be decrypted, and why. `is_temporary` if it may be, in a while."""

    problem: str
    is_temporary: bool


VariantValue: TypeAlias = "Value | EncryptedValue | SecretValue | UnavailableValue"


def encode_variant(value: VariantValue, path: str) -> Value:
    """Return a variant's value in the form of documents.

    Raises:
        InvalidDocumentError: it is sensitive, but not encrypted.
    """
    match value:
        case EncryptedValue(ciphertext, kind):
            text = base64.b64encode(ciphertext).decode()
            return {ENCRYPTED: {"type": kind, "base64": text}}
        case SecretValue() | UnavailableValue():
            raise InvalidDocumentError(
                path,
                "is sensitive, and not encrypted",
                "Write it by a Writer that has encryption=, as docs/secrets.md says; or, if it is"
                " none, leave it out of `sensitive`",
            )
        case _:
            return value


def find_encrypted_value(value: Value, path: str) -> EncryptedValue | None:
    """Return the encrypted value of a variant in a document, None if it is not encrypted.

    Raises:
        InvalidDocumentError: it has the form of an encrypted value, but is malformed.
    """
    if not isinstance(value, dict) or value.keys() != {ENCRYPTED}:
        return None
    found = value[ENCRYPTED]
    if isinstance(found, Mapping):
        fields = cast("Mapping[str, Any]", found)
        kind, text = fields.get("type"), fields.get("base64")
        known = len(fields) == 2 and kind in get_args(VariantType)  # noqa: PLR2004 - the two
        if known and isinstance(text, str) and _BASE64.fullmatch(text):
            return EncryptedValue(base64.b64decode(text), cast("VariantType", kind))
    raise InvalidDocumentError(
        join_path(path, ENCRYPTED),
        "is nothing that flagkit has encrypted",
        "Write the value itself, or what `policy` returns, as it is",
    )


def redact_error(error: InvalidDocumentError, document: object) -> InvalidDocumentError:
    """Return the fault of a document, without the sensitive values that it quotes."""
    place = find_sensitive_path(error.path, document)
    if place is None:
        return error
    return InvalidDocumentError(
        place,
        "is not what the value of this variant may be; it is sensitive, so no more is said",
        "Leave it out of `sensitive`, with an invented value, to be told what is wrong with that",
    )


def find_sensitive_path(path: str, document: object) -> str | None:
    """Return the path of the sensitive variant that a path leads into, None if it leads to none."""
    if not path.startswith("variants.") or not isinstance(document, Mapping):
        return None
    named = cast("Mapping[object, object]", document).get("sensitive")
    if not named:
        return None
    if isinstance(named, list | tuple):
        for name in cast("list[object]", named):
            place = join_path("variants", name)
            if path == place or path.startswith((f"{place}.", f"{place}[")):
                return place
        if all(isinstance(name, str) for name in cast("list[object]", named)):
            return None
    # The list is malformed, so any variant may be sensitive.
    return "variants"
