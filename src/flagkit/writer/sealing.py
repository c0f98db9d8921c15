"""Sealing: what is sensitive in the documents that a draft is given, encrypted before all else.

So neither an operation nor the audit ever has it in the clear.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from flagkit.changes import PolicyChange
from flagkit.encryption import DataKeys
from flagkit.errors import InvalidDocumentError
from flagkit.model import Flag, decode, encode
from flagkit.model.sealing import sealed
from flagkit.model.sensitive import Sealed, Secret
from flagkit.settings import Settings

if TYPE_CHECKING:
    from flagkit.storage.encryption import MongoDataKeys

_Document: TypeAlias = Mapping[str, Any]


class Sealing:
    """Encrypts for one draft, where there are keys; where there are none, what is encrypted stays.

    Whether that is right, nobody without keys can tell: so it has to be what the flag has already.
    """

    def __init__(self, environment: str, keys: DataKeys | None = None) -> None:
        self._environment = environment
        self._keys = keys
        self._unproven: set[tuple[str, str, str, bytes]] = set()

    def sealed(self, document: _Document) -> _Document:
        """Return a policy document with all that is sensitive in it encrypted.

        Raises:
            InvalidDocumentError: it is not valid, or there are no keys to encrypt it with.
            EncryptionError, StoreError: the keys cannot be had.
        """
        if not _names_secrets(document):
            return document
        flag = decode(document, environment=self._environment)
        if self._keys is None:
            self._check_encrypted(flag)
        else:
            self._keys.fetch()
            flag = sealed(flag, self._environment, self._keys.seal, self._keys.unseal)
        policy = dict(encode(flag))
        if "state" not in document:
            # To an update, that it is left out says something.
            del policy["state"]
        return policy

    def sealing(
        self, function: Callable[[dict[str, Any]], _Document]
    ) -> Callable[[dict[str, Any]], _Document]:
        """Return a function whose documents are sealed, of the same name."""

        @wraps(function, updated=())
        def made(document: dict[str, Any]) -> _Document:
            return self.sealed(function(document))

        return made

    def check(self, changes: Iterable[PolicyChange]) -> None:
        """Refuse what came encrypted, and was neither checked nor is what a flag has already."""
        for change in changes if self._unproven else ():
            before = None if change.before is None else decode(change.before.policy, stored=True)
            for region, key, variant, ciphertext in sorted(self._unproven):
                if (region, key) != change.id:
                    continue
                held = None if before is None else before.variants.get(variant)
                if not isinstance(held, Sealed) or held.ciphertext != ciphertext:
                    raise InvalidDocumentError(
                        f"variants.{variant}",
                        "is encrypted, and is not what the flag has there",
                        "Give the writer encryption=, by which it can check it, or leave it as"
                        " it is",
                        subject=f"flag {key!r}",
                    )

    def check_proven(self) -> None:
        """Refuse what came encrypted and was not checked, where nobody can ask what a flag has."""
        for _, key, variant, _ in sorted(self._unproven):
            raise InvalidDocumentError(
                f"variants.{variant}",
                "is encrypted, and who makes the change later cannot tell whether it is right",
                "Give the writer encryption=, or make the change outside of a transaction",
                subject=f"flag {key!r}",
            )

    def _check_encrypted(self, flag: Flag) -> None:
        for name in flag.sensitive:
            value = flag.variants[name]
            if isinstance(value, Secret):
                raise InvalidDocumentError(
                    f"variants.{name}",
                    "is sensitive, and this writer cannot encrypt it",
                    "Give it encryption=, or set FLAGKIT_LOCAL_KEY_PATH; docs/secrets.md says how",
                    subject=f"flag {flag.key!r}",
                )
            if isinstance(value, Sealed):
                self._unproven.add((flag.region, flag.key, name, value.ciphertext))


def _names_secrets(document: object) -> bool:
    # What is no document is refused by who takes it for one.
    if not isinstance(document, Mapping):
        return False
    return bool(cast("Mapping[object, object]", document).get("sensitive"))


def data_keys_of(settings: Settings) -> "MongoDataKeys | None":
    """Return the data keys that settings lead to; None if they say nothing of encryption."""
    if settings.encryption is None:
        return None
    # Deferred: it loads the driver's cryptography, which takes longer than all the rest.
    from flagkit.storage.encryption import MongoDataKeys  # noqa: PLC0415

    return MongoDataKeys(
        settings.uri,
        settings.encryption,
        environment=settings.environment,
        database=settings.database,
    )
