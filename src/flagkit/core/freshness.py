"""Freshness: how old a snapshot may be, and how old it is, shared by all views of one client."""

import math
import time

from flagkit.core.bucketing import Clock


class Freshness:
    """As of when a snapshot is known to be current, and what counts as stale.

    Args:
        max_seconds: The greatest age that is not stale.
        now: A monotonic clock: what sets the system's time must not make a snapshot younger.
    """

    __slots__ = ("_now", "as_of", "max_seconds")

    def __init__(self, max_seconds: float = math.inf, now: Clock = time.monotonic) -> None:
        self.max_seconds = max_seconds
        self.as_of = -math.inf
        """When the database was asked for the last revision that the snapshot has reached."""
        self._now = now

    @property
    def age(self) -> float:
        """Seconds since the snapshot is known to have been current; infinity if it never was."""
        return self._now() - self.as_of

    @property
    def is_stale(self) -> bool:
        """Whether the snapshot is older than it may be."""
        return self.age > self.max_seconds
