"""Breaker: when to ask again what has failed, so that a fleet does not stampede what recovers.

A circuit breaker whose waits are its back-off: each failure doubles the wait, up to a ceiling, and
each is drawn anew. Pure: time is told, in seconds of the monotonic clock.
"""

import random
from enum import StrEnum

from msgspec import Struct


class Circuit(StrEnum):
    """What a breaker lets through: all, nothing, or one attempt by which it decides."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Thresholds(Struct, frozen=True):
    """When a breaker opens, and how long waits are.

    Attributes:
        failure_count: So many failures in a row open it.
        first_seconds: The longest wait after a first failure.
        max_seconds: The longest wait at all.
        lag_seconds: The longest wait for what answered, but was behind.
    """

    failure_count: int = 5
    first_seconds: float = 0.1
    max_seconds: float = 30.0
    lag_seconds: float = 60.0


class Breaker:
    """Tells when one way to the data may be tried. It is closed to begin with."""

    def __init__(self, chance: random.Random, thresholds: Thresholds) -> None:
        self.retry_at = 0.0
        """When the next attempt may be made."""
        self._chance = chance
        self._thresholds = thresholds
        self._failure_count = 0

    def circuit(self, now: float) -> Circuit:
        """Return what it lets through at a moment."""
        if self._failure_count < self._thresholds.failure_count:
            return Circuit.CLOSED
        return Circuit.OPEN if now < self.retry_at else Circuit.HALF_OPEN

    def succeeded(self) -> None:
        """Close it."""
        self._failure_count = 0
        self.retry_at = 0.0

    def failed(self, now: float) -> None:
        """Count a failure: wait with full jitter, with half of it once the breaker is open."""
        self._failure_count += 1
        doubled = self._thresholds.first_seconds * 2 ** min(self._failure_count - 1, 16)
        longest = min(self._thresholds.max_seconds, doubled)
        # An open breaker that could be tried again at once would not be open.
        is_open = self._failure_count >= self._thresholds.failure_count
        self.retry_at = now + self._chance.uniform(longest / 2 if is_open else 0, longest)

    def trip(self, now: float) -> None:
        """Open it at once: what it leads to answers, and cannot be relied upon."""
        self._failure_count = max(self._failure_count, self._thresholds.failure_count)
        longest = self._thresholds.lag_seconds
        self.retry_at = now + self._chance.uniform(longest / 2, longest)
