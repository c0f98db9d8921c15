"""Report: results, what to do about noise, and how results are printed and kept.

A line of JSON stands for itself: it says on what it was measured.
"""

import functools
import math
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TextIO, TypeAlias

import msgspec
from msgspec import Struct

import flagkit

ATTEMPTS_MAX = 3
"""How often a case is measured until it keeps its bound."""

FLAG_COUNT = 1_000_000
QUICK_FLAG_COUNT = 10_000

_PACKAGES = ("pymongo", "xxhash", "msgspec", "cachetools", "opentelemetry-api")
_ROW = "{:<9} {:<40} {:>10} {:<6} {:>8}  {}"


class MeasurementPlan(Struct, frozen=True):
    """How to measure: seldom and small, as CI does, or as results are made; and among how many.

    `flag_count` is the size of the largest catalogue.
    """

    quick: bool = False
    flag_count: int = FLAG_COUNT


class Result(Struct, frozen=True, kw_only=True):
    """One figure. It is good if it is not above its bound, or has none.

    With `at_least` it is good if it is not below it. `count_miss` are the values of earlier
    attempts, which missed the bound.
    """

    benchmark: str
    case: str
    value: float
    unit: str
    bound: float | None = None
    at_least: bool = False
    missed: tuple[float, ...] = ()
    details: dict[str, object] = {}

    @property
    def ok(self) -> bool:
        """Whether the bound is kept. Not a number keeps none."""
        return self.is_within(1.0)

    def is_within(self, tolerance: float) -> bool:
        """Tell whether the bound is kept, or missed by no more than a factor."""
        if self.bound is None:
            return True
        if self.at_least:
            return self.value * tolerance >= self.bound
        return self.value <= self.bound * tolerance


class SkippedBenchmark(Struct, frozen=True, kw_only=True):
    """What could not be measured, and why. It is good if nothing is wrong, and only missing."""

    benchmark: str
    case: str
    reason: str
    ok: bool = True

    def is_within(self, tolerance: float) -> bool:  # noqa: ARG002 - there is no figure
        """Tell whether nothing is wrong."""
        return self.ok


Line: TypeAlias = Result | SkippedBenchmark


def measure_with_retries(measure: Callable[[], Sequence[Result]]) -> Sequence[Result]:
    """Return what `measure` finds, from its first attempt to keep all bounds, else from its last.

    A noisy neighbour spoils an attempt; what is too slow spoils all of them.
    """
    missed: dict[str, tuple[float, ...]] = {}
    results = measure()
    for _ in range(ATTEMPTS_MAX - 1):
        if all(result.ok for result in results):
            break
        for result in results:
            if not result.ok:
                missed[result.case] = (*missed.get(result.case, ()), result.value)
        results = measure()
    return [
        msgspec.structs.replace(result, missed=missed.get(result.case, ())) for result in results
    ]


def compute_percentile(values: Iterable[float], percent: float) -> float:
    """Return the value that `percent` of 100 of all values do not exceed, by nearest rank."""
    ordered = sorted(values)
    return ordered[max(math.ceil(percent / 100 * len(ordered)), 1) - 1]


def report(results: Iterable[Line], lines: TextIO | None = None, tolerance: float = 1.0) -> bool:
    """Print results as a table, each as it comes, and write them as JSON; tell if all are good.

    Those are good that miss their bound by no more than a factor of `tolerance`.
    """
    print(_ROW.format("benchmark", "case", "value", "unit", "bound", "ok").rstrip())
    good = True
    for result in results:
        good = good and result.is_within(tolerance)
        print(format_row(result), flush=True)
        if lines is not None:
            lines.write(f"{encode_line(result)}\n")
            lines.flush()
    return good


def format_row(result: Line) -> str:
    """Return a result as a row of the table."""
    if isinstance(result, SkippedBenchmark):
        return f"{result.benchmark:<9} {result.case}: could not run: {result.reason}"
    verdict = "" if result.bound is None else "yes" if result.ok else "NO"
    if result.missed:
        verdict += f" (missed before: {', '.join(map(format_rounded, result.missed))})"
    bound = "" if result.bound is None else f"{'>= ' * result.at_least}{result.bound:g}"
    row = _ROW.format(
        result.benchmark, result.case, format_rounded(result.value), result.unit, bound, verdict
    )
    return row.rstrip()


def encode_line(result: Line) -> str:
    """Return a result as one line of JSON."""
    if isinstance(result, SkippedBenchmark):
        return msgspec.json.encode(msgspec.structs.asdict(result) | describe_environment()).decode()
    fields = {
        "benchmark": result.benchmark,
        "case": result.case,
        "value": result.value,
        "unit": result.unit,
        "bound": result.bound,
        "at_least": result.at_least,
        "ok": result.ok,
        "missed": result.missed,
        **result.details,
        **describe_environment(),
    }
    return msgspec.json.encode(fields).decode()


@functools.cache
def describe_environment() -> dict[str, object]:
    """Return what results depend on: versions, the machine, and the commit if it is known."""
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "flagkit": flagkit.__version__,
        **{name.removesuffix("-api"): _get_version(name) for name in _PACKAGES},
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu_count": os.cpu_count(),
        "commit": _find_commit(),
    }


def format_rounded(value: float) -> str:
    """Return a figure as tables have it, with three digits."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _get_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _find_commit() -> str | None:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],  # noqa: S607 - wherever git is, it says the same
            cwd=Path(__file__).parent,
            capture_output=True,
            check=True,
            text=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
