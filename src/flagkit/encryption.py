"""Encryption: the settings by which the values of sensitive variants are encrypted.

Data keys encrypt the values; they are in the database themselves, encrypted by a master key, which
is not: it is in a file, or with a provider (KMS). What does it is `storage.encryption`.
"""

import base64
import binascii
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

from msgspec import Struct

from flagkit.errors import ConfigurationError, MissingExtraError

MASTER_KEY_BYTES: Final = 96


@runtime_checkable
class DataKeys(Protocol):
    """The data keys of an environment. Once they were fetched, nothing waits for anything."""

    @property
    def are_there(self) -> bool:
        """Whether they were fetched."""
        ...

    def fetch(self) -> None:
        """Fetch them, from the database and from who guards the master key.

        Raises:
            EncryptionError: one cannot be had; it says why.
            StoreError: the database did not give them.
        """
        ...

    def seal(self, content: bytes) -> bytes:
        """Encrypt: the same content becomes the same ciphertext."""
        ...

    def unseal(self, ciphertext: bytes) -> bytes:
        """Decrypt what is as it was encrypted, or raise EncryptionError. Never waits."""
        ...

    def go_on_after_fork(self) -> None:
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

    def names(self, environment: str) -> tuple[str, ...]:
        """Return the names of the data keys for an environment."""
        return tuple(self.keys) or (environment,)

    def vault(self, database: str) -> str:
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
