"""Counters of evaluations: exact counts without locks, and sampled latencies.

A count is an iterator that one C call advances. The GIL makes that call atomic, and the length hint
of the iterator returns the count. No thread waits for a lock, so a signal handler may evaluate
flags while it interrupts the counting.
"""

import itertools
import operator
from collections.abc import Iterator
from typing import Final

from msgspec import Struct

SAMPLED_EACH: Final = 1024
"""One check in so many by `is_enabled` is timed."""
_MANY: Final = 2**62
_BUCKET_COUNT: Final = 40


class Counts(Struct, frozen=True, kw_only=True):
    """How often a client was asked since it was made, or since its process was forked.

    All but `latencies` is exact once no call is on its way. `explain` is not counted.

    Attributes:
        evaluations: Flags evaluated, by whichever method.
        hits: Those answered from a flag that was compiled already.
        misses: Those whose flag had to be compiled first, is unknown, or was not there yet.
        latencies: How long checks by `is_enabled` took, one in 1,024 of them: for each bound in
            nanoseconds, a power of two, the number of checks below it, and not below its half.
    """

    evaluations: int
    hits: int
    misses: int
    latencies: dict[int, int]


class _Batch:
    """A number of checks, the last of which is timed. `ticks` ends when that one is due."""

    __slots__ = ("_next_batch", "count_before", "ticks")

    def __init__(self, before: int) -> None:
        self.count_before = before
        self._next_batch: dict[None, _Batch] = {}
        self.ticks: Iterator[None] = itertools.repeat(None, SAMPLED_EACH - 1)

    @property
    def count(self) -> int:
        """How many checks there were, those before this lap included."""
        return self.count_before + SAMPLED_EACH - 1 - operator.length_hint(self.ticks)

    @property
    def next_batch(self) -> "_Batch | None":
        """The next lap, None if no check has asked for it yet."""
        return self._next_batch.get(None)

    def create_next(self) -> "_Batch":
        """Return the lap after this one, which has to be over. It is the same for all threads."""
        # One call of C code: of several threads that make a lap, one puts it in place.
        return self._next_batch.setdefault(None, _Batch(self.count))


class Counters:
    """The counts of one client. A check takes a tick of the current lap: `next(lap.ticks)`."""

    __slots__ = ("_evaluations", "_latencies", "_misses", "_timed", "batch")

    def __init__(self) -> None:
        self.batch = _Batch(0)
        self._timed = _create_counter()
        self._evaluations = _create_counter()
        self._misses = _create_counter()
        self._latencies = [_create_counter() for _ in range(_BUCKET_COUNT)]

    def start_batch(self) -> Iterator[None]:
        """Count the check that found no tick left, and return the ticks of the next lap."""
        next(self._timed)
        lap = self.batch
        while operator.length_hint(lap.ticks) == 0:
            lap = lap.create_next()
        # Another thread may be further by now. The next check without a tick finds its lap again.
        self.batch = lap
        return lap.ticks

    def record_latency(self, duration_ns: int) -> None:
        """Add the time that a check took, in nanoseconds."""
        next(self._latencies[min(duration_ns.bit_length(), _BUCKET_COUNT - 1)])

    def count_evaluation(self, *, hit: bool) -> None:
        """Count an evaluation by another method than `is_enabled`."""
        next(self._evaluations)
        if not hit:
            next(self._misses)

    def count_miss(self) -> None:
        """Count a miss of an evaluation that was counted."""
        next(self._misses)

    def read(self) -> Counts:
        """Return the counts."""
        # First the misses: their evaluations have been counted before.
        misses = _read_counter(self._misses)
        lap = self.batch
        while (later := lap.next_batch) is not None:
            lap = later
        evaluations = lap.count + _read_counter(self._timed) + _read_counter(self._evaluations)
        counts = enumerate(map(_read_counter, self._latencies))
        return Counts(
            evaluations=evaluations,
            hits=evaluations - misses,
            misses=misses,
            latencies={2**power: count for power, count in counts if count},
        )


def _create_counter() -> Iterator[None]:
    return itertools.repeat(None, _MANY)


def _read_counter(counter: Iterator[None]) -> int:
    return _MANY - operator.length_hint(counter)
