"""Unsealing: what opens the sensitive variants of a client's flags, as far as its keys allow.

An evaluation asks when it compiles a flag, and must not wait: so data keys are fetched before, in
the background, and without them values are withheld. Which is said once.
"""

from collections.abc import Callable, Mapping
from typing import Final

from msgspec.structs import replace

from flagkit.background import Log
from flagkit.encryption import DataKeys
from flagkit.errors import EncryptionError, FlagkitError
from flagkit.model import Flag
from flagkit.model.documents import VariantType
from flagkit.model.sealing import value_of
from flagkit.model.sensitive import Sealed, Secret, Withheld
from flagkit.model.values import Value

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


class Unsealing:
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
        self._said = False

    @property
    def is_waiting(self) -> bool:
        """Whether keys are wanted that are not there."""
        return self._make is not None and (self._keys is None or not self._keys.are_there)

    def prepare(self) -> None:
        """Load what keys are fetched with."""
        if self._make is not None and self._keys is None:
            self._keys = self._make()

    def fetch(self) -> None:
        """Fetch the keys; waits for that. Raises what DataKeys.fetch raises."""
        self.prepare()
        if self._keys is not None:
            self._keys.fetch()

    def fetch_or_say(self) -> None:
        """Fetch the keys, or log why they cannot be had: values that take them are withheld."""
        try:
            self.fetch()
        except FlagkitError as error:
            _log.warning("sensitive values are not served: %s", error)

    def opened(self, flag: Flag, environment: str) -> Flag:
        """Return a flag with its sensitive values in the clear, or why they are withheld."""
        if not flag.sensitive:
            return flag
        variants = {
            name: self._value(flag, environment, name) if isinstance(value, Sealed) else value
            for name, value in flag.variants.items()
        }
        return replace(flag, variants=variants)

    def go_on_after_fork(self) -> None:
        """Replace what has not survived a fork, in the child."""
        if self._keys is not None:
            self._keys.go_on_after_fork()

    def _value(self, flag: Flag, environment: str, variant: str) -> Secret | Withheld:
        keys = self._keys
        if self._make is None:
            if not self._said:
                self._said = True
                _log.warning("variant %s of %s %s", variant, flag.key, _NO_KEYS)
            return Withheld(f"variant {variant!r} {_NO_KEYS}", is_passing=False)
        if keys is None or not keys.are_there:
            return Withheld(f"variant {variant!r} {_NOT_YET}", is_passing=True)
        try:
            return Secret(value_of(flag, environment, variant, keys.unseal))
        except EncryptionError as error:
            _log.warning("variant %s of %s %s", variant, flag.key, error)
            return Withheld(f"variant {variant!r} {error}", is_passing=False)


class Unread(Unsealing):
    """For those who ask which variant was served, and never for its value: no key is needed."""

    def opened(self, flag: Flag, environment: str) -> Flag:  # noqa: ARG002 - any will do
        """Return a flag with values of its type in the place of those that are sensitive."""
        unread = Secret(_UNREAD[flag.type])
        return replace(flag, variants=flag.variants | dict.fromkeys(flag.sensitive, unread))
