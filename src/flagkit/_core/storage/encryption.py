"""Data keys in the database, with which the driver encrypts and decrypts on the client's side.

The keys are fetched once, and libmongocrypt keeps them while the process lives. So neither an
evaluation nor a change ever waits for the key vault or a KMS provider. A value under another data
key is refused before the driver would ask for that key.
"""

import contextlib
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, Final
from uuid import UUID

from bson.binary import Binary
from pymongo import MongoClient
from pymongo.encryption import ClientEncryption
from pymongo.errors import DuplicateKeyError, PyMongoError
from pymongo.errors import EncryptionError as DriverEncryptionError

from flagkit._core.secrets import Encryption
from flagkit._core.storage.documents import CODEC
from flagkit._core.storage.driver import connect, translate_errors
from flagkit._core.storage.layout import Document
from flagkit.errors import EncryptionError

_DETERMINISTIC: Final = "AEAD_AES_256_CBC_HMAC_SHA_512-Deterministic"
_HEADER: Final = bytes([1])
"""How a ciphertext of that algorithm begins; the id of its data key comes next."""
_ID: Final = slice(1, 17)
_ENCRYPTED: Final = 6
"""BSON's subtype of a ciphertext."""
_FOR_EVER: Final = 0

VAULT_SECONDS_MAX: Final = 10.0
"""How long the key vault, or a KMS provider, may take to answer."""


class MongoDataKeys:
    """The data keys of one environment. May be used from many threads."""

    def __init__(
        self, uri: str, encryption: Encryption, *, environment: str, database: str
    ) -> None:
        self._uri = uri
        self._encryption = encryption
        self._names = encryption.get_key_names(environment)
        self._vault = encryption.get_vault(database)
        self._lock = threading.Lock()
        self._opened: ClientEncryption[Document] | None = None
        self._ids: dict[bytes, str] = {}

    @property
    def is_fetched(self) -> bool:
        """True once the keys were fetched."""
        return self._opened is not None

    def fetch(self) -> None:
        """Fetch the keys, if not done yet: all or none.

        Raises:
            EncryptionError: one is not there, or its master key is another.
            StoreError: the database did not give them.
        """
        if self._opened is not None:
            return
        with (
            connect(self._uri, MongoClient[Document]) as client,
            _translate_errors("fetching data keys"),
        ):
            encrypter = _create_client_encryption(client, self._encryption, self._vault)
            ids = dict(self._fetch_key(encrypter, name) for name in self._names)
        with self._lock:
            self._ids, self._opened = ids, encrypter

    def create(self, master_key: Mapping[str, Any] | None = None) -> str:
        """Make the first of the keys, if it is not there; return its name.

        The first of the providers guards it, with `master_key` where it has several.

        Raises:
            EncryptionError: the provider refused.
            StoreError: the database did.
        """
        name, provider = self._names[0], next(iter(self._encryption.kms_providers))
        database, _, collection = self._vault.partition(".")
        with (
            connect(self._uri, MongoClient[Document]) as client,
            _translate_errors("making a data key"),
        ):
            # As the driver's manual has it: no name twice.
            client[database][collection].create_index(
                "keyAltNames",
                unique=True,
                partialFilterExpression={"keyAltNames": {"$exists": True}},
            )
            encrypter = _create_client_encryption(client, self._encryption, self._vault)
            with contextlib.closing(encrypter), contextlib.suppress(DuplicateKeyError):
                if encrypter.get_key_by_alt_name(name) is None:
                    encrypter.create_data_key(provider, master_key, key_alt_names=[name])
        return name

    def encrypt(self, content: bytes) -> bytes:
        """Encrypt with the first of the keys, fetching them if need be."""
        self.fetch()
        first = next(iter(self._ids))
        with self._lock, _translate_errors("encrypting"):
            assert self._opened is not None, "it was fetched"
            key = Binary(first, 4)
            return bytes(self._opened.encrypt(content, _DETERMINISTIC, key_id=key))

    def decrypt(self, ciphertext: bytes) -> bytes:
        """Decrypt what was encrypted with one of the keys. Never waits."""
        key = ciphertext[_ID]
        if ciphertext[:1] != _HEADER or len(ciphertext) <= _ID.stop:
            raise EncryptionError("is encrypted, but was not by flagkit")
        if key not in self._ids:
            raise EncryptionError(
                f"is encrypted with the data key {UUID(bytes=key)}, which is not"
                f" {' or '.join(self._names)}: name it in `keys` of encryption="
            )
        try:
            with self._lock:
                assert self._opened is not None, "its id is known"
                return bytes(self._opened.decrypt(Binary(ciphertext, _ENCRYPTED)))
        except DriverEncryptionError:
            raise EncryptionError("was altered since it was encrypted") from None

    def after_fork_in_child(self) -> None:
        """Go on with the keys, or fetch them anew if they were in use when the parent forked."""
        if self._lock.locked():
            self._opened, self._ids = None, {}
        self._lock = threading.Lock()

    def _fetch_key(self, encrypter: "ClientEncryption[Document]", name: str) -> tuple[bytes, str]:
        found = encrypter.get_key_by_alt_name(name)
        if found is None:
            raise EncryptionError(
                f"there is no data key {name!r} in {self._vault}: Writer.create_data_key makes it"
            )
        # Whatever is encrypted: the driver keeps the key that it takes.
        encrypter.encrypt(b"", _DETERMINISTIC, key_id=found["_id"])
        return bytes(found["_id"]), name


def _create_client_encryption(
    client: "MongoClient[Document]", encryption: Encryption, vault: str
) -> "ClientEncryption[Document]":
    return ClientEncryption(
        encryption.kms_providers,
        vault,
        client,
        CODEC,
        kms_tls_options=encryption.kms_tls_options,
        key_expiration_ms=_FOR_EVER,
    )


@contextmanager
def _translate_errors(action: str) -> Generator[None]:
    """Raise the driver's errors as flagkit's, without what settings hold."""
    with translate_errors(action, VAULT_SECONDS_MAX):
        try:
            yield
        except DriverEncryptionError as error:
            if isinstance(error.cause, PyMongoError):
                raise error.cause from None
            problem = str(error)
            if "HMAC" in problem:
                problem = "the master key is not the one that the data key was made with"
            raise EncryptionError(f"while {action}: {problem}") from None
        except (PyMongoError, EncryptionError):
            raise
        except Exception as error:  # noqa: BLE001 - options are the caller's, errors of many classes
            # Its words may repeat what is in the settings.
            raise EncryptionError(
                f"while {action}: kms_providers or kms_tls_options are not as the driver takes them"
                f" ({type(error).__name__})"
            ) from None
