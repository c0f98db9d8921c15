"""Timing: calls that take turns, so that what slows one down slows all down."""

import time
import timeit
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

SLICES_A_SECOND: Final = 100
"""How finely measurements take turns."""


class Call(Struct, frozen=True):
    """A function and what it is called with. Calling this makes the call."""

    function: Callable[..., Any]
    arguments: tuple[object, ...]

    def __call__(self) -> Any:
        """Make the call."""
        return self.function(*self.arguments)

    def create_timer(self) -> timeit.Timer:
        """Return a timer of the call, all names being local variables, as in a service's code."""
        names = [f"argument_{i}" for i in range(len(self.arguments))]
        return create_timer(
            f"function({', '.join(names)})",
            function=self.function,
            **dict(zip(names, self.arguments, strict=True)),
        )


def read_waited_seconds() -> float:
    """Return how long this process's main thread has waited for a processor that others had.

    Nothing where the system does not count it.
    """
    try:
        return int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0


def create_timer(statement: str, **names: object) -> timeit.Timer:
    """Return a timer of a statement whose names are local variables, as in a service's function."""
    given = [f"{name} = given[{name!r}]" for name in names]
    # Processor time: what others do on the machine's cores is no part of a check.
    return timeit.Timer(statement, "\n".join(given), time.process_time, {"given": names})


def time_interleaved(timers: Sequence[timeit.Timer], round_count: int) -> list[list[float]]:
    """Return nanoseconds a call for each timer, round by round: all slow down together."""
    counts = []
    for measured in timers:
        count, seconds = measured.autorange()
        counts.append(max(int(count / seconds / SLICES_A_SECOND), 1))
    times: list[list[float]] = [[] for _ in timers]
    for _ in range(round_count):
        for measured, count, found in zip(timers, counts, times, strict=True):
            found.append(measured.timeit(count) / count * 1e9)
    return times


def compute_ratios(values: Sequence[float], bases: Sequence[float]) -> list[float]:
    """Return values by what they are measured against, round by round."""
    return [value / base for value, base in zip(values, bases, strict=True)]
