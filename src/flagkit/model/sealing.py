"""Sealing: sensitive variants encrypted for one place, and opened there alone.

What is encrypted is the value with its place: environment, region, flag and variant. So what is
moved to another place is found out, and the same value looks another there. The same value in the
same place is the same ciphertext: what is sent again is the same request. Never raises the value.
"""

from collections.abc import Callable
from typing import Any, Final, TypeAlias, cast

import msgspec
from msgspec.structs import replace

from flagkit.errors import EncryptionError, InvalidDocumentError
from flagkit.model.flags import Flag
from flagkit.model.sensitive import Sealed, Secret, VariantValue
from flagkit.model.values import Value
from flagkit.model.variants import variant_type

Cipher: TypeAlias = Callable[[bytes], bytes]
"""Encrypts or decrypts. Raises EncryptionError."""
FORMAT: Final = 1

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Any]).decode


def sealed(flag: Flag, environment: str, seal: Cipher, unseal: Cipher) -> Flag:
    """Return a flag with all that is sensitive in it encrypted.

    What is encrypted already has to be of its place, and stays as it is.

    Raises:
        InvalidDocumentError: it is of another one, or cannot be decrypted.
        EncryptionError: nothing can be encrypted.
    """
    variants: dict[str, VariantValue] = {**flag.variants}
    for name in flag.sensitive:
        value = variants[name]
        if isinstance(value, Secret):
            content = _encode([*_place(flag, environment, name), value.value])
            variants[name] = Sealed(seal(content), flag.type)
        else:
            try:
                value_of(flag, environment, name, unseal)
            except EncryptionError as error:
                raise InvalidDocumentError(
                    f"variants.{name}",
                    str(error),
                    "Write the value itself",
                    subject=f"flag {flag.key!r}",
                ) from None
    return replace(flag, variants=variants)


def value_of(flag: Flag, environment: str, variant: str, unseal: Cipher) -> Value:
    """Return the value of an encrypted variant.

    Raises:
        EncryptionError: it is of another place or type, was altered, or there is no key to it.
    """
    value = flag.variants[variant]
    assert isinstance(value, Sealed), "others need no key"
    content = unseal(value.ciphertext)
    try:
        *place, plain = _decode(content)
        kind = variant_type(plain, "")
    except (msgspec.MsgspecError, ValueError):
        raise EncryptionError("is encrypted, but was not by flagkit") from None
    if place != _place(flag, environment, variant):
        raise EncryptionError(
            "was encrypted for another environment, region, flag or variant than it stands in"
        )
    if kind == "integer" and flag.type == "float":
        return float(cast("int", plain))
    if kind != flag.type:
        raise EncryptionError(f"is of type {kind}, in a flag of type {flag.type}")
    return cast("Value", plain)


def _place(flag: Flag, environment: str, variant: str) -> list[object]:
    return [FORMAT, environment, flag.region, flag.key, variant]
