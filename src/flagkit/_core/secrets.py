"""Encryption of sensitive variants: settings, the data-key protocol, encryption and decryption.

Data keys encrypt the values. The database stores the data keys, encrypted by a master key. The
master key stays outside, in a file or at a provider (KMS). `storage.encryption` does the work with
the driver.

The ciphertext covers the value and its place: environment, region, flag and variant. A ciphertext
that is moved to another place is detected, and equal values look different in different places. An
equal value in an equal place has an equal ciphertext, so a repeated request stays the same request.
Errors never contain the value.

An evaluation decrypts when it compiles a flag, and it must not wait. The data keys are therefore
fetched beforehand, in the background. Without them the value is unavailable, and a warning is
logged once.
"""

import base64
import binascii
import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias, cast, runtime_checkable

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from flagkit._core.background import Log
from flagkit._core.model.documents import VariantType
from flagkit._core.model.flags import Flag, get_variant_type
from flagkit._core.model.sensitive import (
    EncryptedValue,
    SecretValue,
    UnavailableValue,
    VariantValue,
)
from flagkit._core.model.values import Value
from flagkit.errors import (
    ConfigurationError,
    EncryptionError,
    FlagkitError,
    InvalidDocumentError,
    MissingExtraError,
)

MASTER_KEY_BYTES: Final = 96


@runtime_checkable
class DataKeys(Protocol):
    """The data keys of an environment. Once they were fetched, nothing waits for anything."""

    @property
    def is_fetched(self) -> bool:
        """True once the keys were fetched."""
        ...

    def fetch(self) -> None:
        """Fetch them, from the database and from who guards the master key.

        Raises:
            EncryptionError: one cannot be had; it says why.
            StoreError: the database did not give them.
        """
        ...

    def encrypt(self, content: bytes) -> bytes:
        """Encrypt: the same content becomes the same ciphertext."""
        ...

    def decrypt(self, ciphertext: bytes) -> bytes:
        """Decrypt what is as it was encrypted, or raise EncryptionError. Never waits."""
        ...

    def after_fork_in_child(self) -> None:
        """Replace what has not survived a fork, in the child."""
        ...


class Encryption(Struct, frozen=True, kw_only=True):
    """How the values of sensitive variants are encrypted. Never printed with its keys.

    Attributes:
        kms_providers: Who guards the master key, as pymongo's ClientEncryption takes it, such as
            `{"local": {"key": <96 bytes>}}` or `{"aws": {...}}`.
        keys: The names of data keys: the first encrypts, all of them decrypt. The environment's own
            name, if there are none.
        key_vault: Where the data keys are, DATABASE.COLLECTION; in flagkit's database, `keys`.
        kms_tls_options: As pymongo's ClientEncryption takes it.

    Raises:
        ConfigurationError: it makes no sense.
        MissingExtraError: what it takes is not installed.
    """

    kms_providers: Mapping[str, Any]
    keys: tuple[str, ...] = ()
    key_vault: str | None = None
    kms_tls_options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if importlib.util.find_spec("pymongocrypt") is None:
            raise MissingExtraError(
                "encryption takes pymongocrypt, which is not installed: pip install"
                " 'flagkit-mongodb[encryption]'"
            )
        names: object = self.keys
        if isinstance(names, str):
            raise ConfigurationError(f"keys is one text: pass a tuple, such as ({names!r},)")
        if not self.kms_providers:
            raise ConfigurationError("kms_providers is empty: name one, such as local")
        if self.key_vault is not None and not all(self.key_vault.partition(".")):
            raise ConfigurationError(
                f"key_vault is {self.key_vault!r}: write DATABASE.COLLECTION, such as flagkit.keys"
            )

    def __repr__(self) -> str:
        providers = ", ".join(sorted(self.kms_providers))
        return f"Encryption({providers}; keys={self.keys!r}, key_vault={self.key_vault!r})"

    def get_key_names(self, environment: str) -> tuple[str, ...]:
        """Return the names of the data keys for an environment."""
        return tuple(self.keys) or (environment,)

    def get_vault(self, database: str) -> str:
        """Return where the data keys are, if flagkit's collections are in `database`."""
        return self.key_vault or f"{database}.keys"


def local_encryption(path: str | os.PathLike[str]) -> Encryption:
    """Return the encryption by a master key in a file: 96 bytes, as they are or in base64.

    Raises:
        ConfigurationError: the file cannot be read, or has none.
        MissingExtraError: what encryption takes is not installed.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"the master key {os.fspath(path)} cannot be read: {error.strerror}"
        ) from None
    key = content
    if len(key) != MASTER_KEY_BYTES:
        try:
            key = base64.b64decode(content.strip(), validate=True)
        except binascii.Error:
            key = b""
    if len(key) != MASTER_KEY_BYTES:
        raise ConfigurationError(
            f"the file {os.fspath(path)} has no master key: make one by"
            f" `openssl rand {MASTER_KEY_BYTES}`"
        )
    return Encryption(kms_providers={"local": {"key": key}})


Cipher: TypeAlias = Callable[[bytes], bytes]
"""Encrypts or decrypts. Raises EncryptionError."""
FORMAT: Final = 1

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Any]).decode


def encrypt_flag(flag: Flag, environment: str, encrypt: Cipher, decrypt: Cipher) -> Flag:
    """Return a flag with all that is sensitive in it encrypted.

    What is encrypted already has to be of its place, and stays as it is.

    Raises:
        InvalidDocumentError: it is of another one, or cannot be decrypted.
        EncryptionError: nothing can be encrypted.
    """
    variants: dict[str, VariantValue] = {**flag.variants}
    for name in flag.sensitive:
        value = variants[name]
        if isinstance(value, SecretValue):
            content = _encode([*_build_location(flag, environment, name), value.value])
            variants[name] = EncryptedValue(encrypt(content), flag.type)
        else:
            try:
                decrypt_variant(flag, environment, name, decrypt)
            except EncryptionError as error:
                raise InvalidDocumentError(
                    f"variants.{name}",
                    str(error),
                    "Write the value itself",
                    subject=f"flag {flag.key!r}",
                ) from None
    return replace(flag, variants=variants)


def decrypt_variant(flag: Flag, environment: str, variant: str, decrypt: Cipher) -> Value:
    """Return the value of an encrypted variant.

    Raises:
        EncryptionError: it is of another place or type, was altered, or there is no key to it.
    """
    value = flag.variants[variant]
    assert isinstance(value, EncryptedValue), "others need no key"
    content = decrypt(value.ciphertext)
    try:
        *place, plain = _decode(content)
        kind = get_variant_type(plain, "")
    except (msgspec.MsgspecError, ValueError):
        raise EncryptionError("is encrypted, but was not by flagkit") from None
    if place != _build_location(flag, environment, variant):
        raise EncryptionError(
            "was encrypted for another environment, region, flag or variant than it stands in"
        )
    if kind == "integer" and flag.type == "float":
        return float(cast("int", plain))
    if kind != flag.type:
        raise EncryptionError(f"is of type {kind}, in a flag of type {flag.type}")
    return cast("Value", plain)


def _build_location(flag: Flag, environment: str, variant: str) -> list[object]:
    return [FORMAT, environment, flag.region, flag.key, variant]


_log = Log("flagkit")

_UNREAD: Final[Mapping[VariantType, Value]] = {
    "boolean": False,
    "string": "",
    "integer": 0,
    "float": 0.0,
    "object": {},
}
_NO_KEYS: Final = (
    "is sensitive, and this client has no keys: pass encryption=, or set FLAGKIT_LOCAL_KEY_PATH"
)
_NOT_YET: Final = (
    "is sensitive, and the data keys have not been fetched yet: wait_ready waits for them"
)


class VariantDecrypter:
    """The keys of a client, be they there or not.

    Attributes:
        is_settled: Whether there is nothing to wait for: no keys, or they are there, or they could
            not be had in time.

    Args:
        make: Makes the keys, unfetched; it loads the driver. None where there are none.
    """

    def __init__(self, make: Callable[[], DataKeys] | None = None) -> None:
        self.is_settled = make is None
        self._make = make
        self._keys: DataKeys | None = None
        self._has_warned = False

    @property
    def is_waiting(self) -> bool:
        """True while an evaluation needs keys that nobody has fetched."""
        return self._make is not None and (self._keys is None or not self._keys.is_fetched)

    def prepare(self) -> None:
        """Load what keys are fetched with."""
        if self._make is not None and self._keys is None:
            self._keys = self._make()

    def fetch(self) -> None:
        """Fetch the keys; waits for that. Raises what DataKeys.fetch raises."""
        self.prepare()
        if self._keys is not None:
            self._keys.fetch()

    def fetch_or_warn(self) -> None:
        """Fetch the keys, or log why they cannot be had: values that take them are withheld."""
        try:
            self.fetch()
        except FlagkitError as error:
            _log.warning("sensitive values are not served: %s", error)

    def decrypt(self, flag: Flag, environment: str) -> Flag:
        """Return a flag with its sensitive values in the clear, or why they are withheld."""
        if not flag.sensitive:
            return flag
        variants = {
            name: self._decrypt_value(flag, environment, name)
            if isinstance(value, EncryptedValue)
            else value
            for name, value in flag.variants.items()
        }
        return replace(flag, variants=variants)

    def after_fork_in_child(self) -> None:
        """Replace what has not survived a fork, in the child."""
        if self._keys is not None:
            self._keys.after_fork_in_child()

    def _decrypt_value(
        self, flag: Flag, environment: str, variant: str
    ) -> SecretValue | UnavailableValue:
        keys = self._keys
        if self._make is None:
            if not self._has_warned:
                self._has_warned = True
                _log.warning("variant %s of %s %s", variant, flag.key, _NO_KEYS)
            return UnavailableValue(f"variant {variant!r} {_NO_KEYS}", is_temporary=False)
        if keys is None or not keys.is_fetched:
            return UnavailableValue(f"variant {variant!r} {_NOT_YET}", is_temporary=True)
        try:
            return SecretValue(decrypt_variant(flag, environment, variant, keys.decrypt))
        except EncryptionError as error:
            _log.warning("variant %s of %s %s", variant, flag.key, error)
            return UnavailableValue(f"variant {variant!r} {error}", is_temporary=False)


class PlaceholderDecrypter(VariantDecrypter):
    """For those who ask which variant was served, and never for its value: no key is needed."""

    def decrypt(self, flag: Flag, environment: str) -> Flag:  # noqa: ARG002 - any will do
        """Return a flag with values of its type in the place of those that are sensitive."""
        unread = SecretValue(_UNREAD[flag.type])
        return replace(flag, variants=flag.variants | dict.fromkeys(flag.sensitive, unread))
