"""Limits: how many changes may be made, as token buckets. Exact: times are whole microseconds."""

import math
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias, get_args

import msgspec
from msgspec import Struct

from flagkit.errors import InvalidDocumentError
from flagkit.model.grants import ALTERED
from flagkit.model.values import Value

Whose: TypeAlias = Literal["actor", "environment"]
WHOSE: Final[tuple[Whose, ...]] = get_args(Whose)
"""Each actor has a bucket of its own; all of an environment share another."""
CAPACITY_MAX: Final = 1_000_000
RATE_MIN, RATE_MAX = 1e-6, 1e6
_MICROSECONDS: Final = 1_000_000


class Limit(Struct, frozen=True):
    """A bucket of `capacity` tokens, of which each change takes one, refilled by `rate` a second.

    What there is of a bucket is told by a time: when it is full again, in microseconds since 1970.
    """

    capacity: int
    rate: float

    def taken(self, full_at: int, now: int) -> int:
        """Return when a bucket is full again from which a token is taken now."""
        return max(full_at, now) + self._interval

    def full_by(self, now: int) -> int:
        """Return when a bucket that is empty now is full again: no bucket can have less."""
        return now + self.capacity * self._interval

    def free_at(self, full_at: int) -> int:
        """Return when a bucket has a token."""
        return full_at - (self.capacity - 1) * self._interval

    @property
    def _interval(self) -> int:
        # Not less: rather a token too late than one too many.
        return math.ceil(_MICROSECONDS / self.rate)


class Limits(Struct, frozen=True, omit_defaults=True):
    """The limits of an environment, as far as it has any."""

    actor: Limit | None = None
    environment: Limit | None = None


def checked_whose(whose: object) -> Whose:
    """Return whose limit is meant, or raise InvalidDocumentError."""
    for known in WHOSE:
        if whose == known:
            return known
    raise InvalidDocumentError("whose", f"is {whose!r}", f"Write one of: {', '.join(WHOSE)}")


def checked_limit(capacity: object, rate: object) -> Limit:
    """Return a limit from what a caller says.

    Raises:
        InvalidDocumentError: it makes no sense.
    """
    if type(capacity) is not int or not 1 <= capacity <= CAPACITY_MAX:
        raise InvalidDocumentError(
            "capacity", f"is {capacity!r}", f"Write how many changes: 1 to {CAPACITY_MAX:,}"
        )
    if type(rate) is bool or not isinstance(rate, int | float) or not RATE_MIN <= rate <= RATE_MAX:
        raise InvalidDocumentError("rate", f"is {rate!r}", "Write changes a second, such as 0.5")
    return Limit(capacity, float(rate))


def decode_limits(document: Mapping[str, Any]) -> Limits:
    """Return the limits of a stored document.

    Raises:
        InvalidDocumentError: it is no document of limits.
    """
    try:
        found = msgspec.convert(dict(document), Limits)
        for limit in (found.actor, found.environment):
            if limit is not None:
                checked_limit(limit.capacity, limit.rate)
    except (TypeError, ValueError, msgspec.ValidationError) as error:
        raise InvalidDocumentError("limits", f"are none: {error}", ALTERED) from None
    return found


def encode_limits(limits: Limits) -> dict[str, Value]:
    """Return the document of limits."""
    document: dict[str, Value] = msgspec.to_builtins(limits)
    return document
