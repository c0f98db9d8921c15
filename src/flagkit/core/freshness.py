"""Freshness: how old a snapshot may be, and how old it is, shared by all views of one client."""

import math
import time
from typing import Final

from flagkit.core.bucketing import Clock
from flagkit.core.contexts import ContextLike
from flagkit.core.evaluation import Outcome, Reason
from flagkit.model.flags import Prerequisite

FRESH: Final = Prerequisite("@fresh", ("fresh",))
"""What a flag rests on that is off when its snapshot is stale. No flag has this key."""
_FRESH: Final = Outcome(variant="fresh", reason=Reason.STATIC)
_STALE: Final = Outcome(variant="stale", reason=Reason.STATIC)


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

    @property
    def is_judged(self) -> bool:
        """Whether there is an age that is too old."""
        return self.max_seconds < math.inf

    def evaluate(self, _: ContextLike) -> Outcome:
        """Return what a flag that is off when it is stale has for its first prerequisite."""
        return _STALE if self.is_stale else _FRESH
