"""Digests: one evaluation as a short text, that a service can log and anybody can check later.

It binds what the answer followed from (environment, revision and its hash, region, key, moment, a
hash of the context) and the answer. The value is not in it: it follows from variant and revision,
and the hash of a secret that can be guessed would give it away. Pure: no database, no clock.
"""

import base64
import binascii
import hashlib
import hmac
from typing import Any, Final, cast

import msgspec
from msgspec import Struct

from flagkit.core.contexts import ContextLike, attributes_of
from flagkit.errors import DigestError, InvalidContextError
from flagkit.interruptions import is_interruption
from flagkit.model.foreign import native
from flagkit.model.order import (
    BINARY,
    BOOLEAN,
    DATE,
    DOCUMENT,
    LIST,
    NUMBER,
    OBJECT_ID,
    TEXT,
    identity,
    kind,
)

PREFIX: Final = "fk1."
"""What a digest begins with: its format."""
HASH_BYTES: Final = 16
_SEAL_BYTES: Final = 12
_CODES: Final = {BOOLEAN: 6, DATE: 7, OBJECT_ID: 8}
"""The numbers of kinds in hashes, where they differ from their order, so that old digests hold."""


class Digest(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a digest says, in the order in which it is written.

    `moment` is in microseconds since 1970. `anchor` is a revision of the history at or after
    `revision`, and `hash` the beginning of its hash, by which another history is told from this
    one. `context` is a hash. `default` names the type of the caller's default, where the answer
    was that it did not fit.
    """

    environment: str
    region: str
    namespaces: tuple[str, ...]
    key: str
    revision: int
    anchor: int
    hash: bytes
    moment: int
    context: bytes
    variant: str | None
    reason: str
    error_code: str | None
    default: str


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Digest)


def written(digest: Digest, secret: bytes) -> str:
    """Return a digest as text, sealed with a secret, or with none if that is empty."""
    payload = _encode(digest)
    return _text(payload + _seal(payload, secret))


def read(text: str, secret: bytes) -> Digest:
    """Return what a text says.

    Raises:
        DigestError: it is no digest, was altered, or was sealed with another secret.
    """
    try:
        content = base64.urlsafe_b64decode(text.removeprefix(PREFIX) + "==")
    except (binascii.Error, ValueError):
        content = b""
    payload, seal = content[:-_SEAL_BYTES], content[-_SEAL_BYTES:]
    # The last letter has bits that say nothing, and letters of no meaning are passed over.
    if not payload or _text(content) != text:
        raise DigestError("this is no digest, or not all of one: one begins with fk1.")
    if not hmac.compare_digest(seal, _seal(payload, secret)):
        raise DigestError(
            "this digest was altered, or was made with another secret than the one given here"
        )
    try:
        return _decoder.decode(payload)
    except msgspec.MsgspecError:
        raise DigestError("this digest says what no digest says: it was forged") from None


def context_hash(context: ContextLike, secret: bytes) -> bytes:
    """Return the hash of a context, keyed by a secret unless that is empty.

    Contexts that conditions and rollouts cannot tell apart may have different hashes; those that
    they can, have. The order of attributes does not count, that within documents does.

    Raises:
        InvalidContextError: it is none of the forms of a context, or an attribute misbehaves.
    """
    try:
        attributes = attributes_of(context).items()
        pairs = sorted((_named(name), _encode(_plain(value))) for name, value in attributes)
    except InvalidContextError:
        raise
    except Exception as error:
        if is_interruption(error):
            raise
        raise InvalidContextError(
            f"the context cannot be hashed: an attribute raised {type(error).__name__}"
        ) from None
    return _hash(_encode(pairs), secret, HASH_BYTES, b"flagkit.context")


def _plain(value: object) -> Any:  # noqa: PLR0911 - one for each kind
    """Return a value with its kind, for MessagePack: dates to the millisecond, as BSON has them.

    All that BSON has not is alike but for the type, as it matches nothing.
    """
    value = native(value)
    place = kind(value)
    match place:
        case None:
            return type(value).__name__
        case _ if place == TEXT:
            return [place, _named(value)]
        case _ if place == DOCUMENT:
            items: Any = value
            return [place, [[_named(name), _plain(item)] for name, item in items.items()]]
        case _ if place == LIST:
            elements: Any = value
            return [place, [_plain(item) for item in elements]]
        case _ if place == NUMBER:
            return [place, *_number(value)]
        case _ if place in (DATE, BINARY, OBJECT_ID):
            _, *parts = cast("tuple[Any, ...]", identity(value))
            return [_CODES.get(place, place), *parts]
        case _:
            return [_CODES.get(place, place), value]


def _number(value: Any) -> tuple[str, str]:
    """Return a number's type, which conditions may ask for, and its text."""
    if isinstance(value, int):
        # Of any length: Python refuses to write long ones in decimal.
        return "integer", f"{int(value):x}"
    if isinstance(value, float):
        return "float", float(value).hex()
    return "decimal", str(value)


def _named(name: object) -> bytes:
    """Return a text in UTF-8, lone surrogates included; of what is none, its type."""
    if isinstance(name, str):
        return str.encode(name, "utf-8", "surrogatepass")
    return b"\0" + type(name).__name__.encode()


def _text(content: bytes) -> str:
    return PREFIX + base64.urlsafe_b64encode(content).decode().rstrip("=")


def _seal(payload: bytes, secret: bytes) -> bytes:
    return _hash(PREFIX.encode() + payload, secret, _SEAL_BYTES, b"flagkit.digest")


def _hash(content: bytes, secret: bytes, size: int, purpose: bytes) -> bytes:
    # A key of BLAKE2b has 64 bytes at most, and a secret may be longer.
    key = hashlib.blake2b(secret).digest() if secret else b""
    return hashlib.blake2b(content, digest_size=size, key=key, person=purpose).digest()
