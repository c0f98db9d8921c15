"""Measures `import flagkit` in fresh processes, without the start of the interpreter.

The floor imports only the modules of the core packages that flagkit loads. The bound is a ratio to
the floor, because milliseconds depend on the machine. Where the system counts the time that a
process waits for a processor (/proc/self/schedstat), the figures leave it out.
"""

import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Final

from benchmarks.report import MeasurementPlan, Result, measure_with_retries

RATIO_BOUND: Final = 2.5
SLOWEST_COUNT: Final = 6
PACKAGES: Final = ("pymongo", "bson", "msgspec", "cachetools", "xxhash", "opentelemetry")

_TIME = """
from time import perf_counter
def waited():
    try:
        with open("/proc/self/schedstat") as file:
            return int(file.read().split()[1]) / 1e9
    except OSError:
        return 0.0
before = waited()
start = perf_counter()
import {}
elapsed = perf_counter() - start
print(elapsed * 1000, (elapsed - waited() + before) * 1000)
"""
_LOADED = """
import sys
before = set(sys.modules)
import {}
print(*(sys.modules.keys() - before))
"""
_IMPORT_TIME = re.compile(r"import time: +(\d+) \| +(\d+) \| +(\S+)")


def run(plan: MeasurementPlan) -> Iterator[Result]:
    """Measure the import."""
    # Also writes what is to be written into the caches of bytecode.
    packages = [name for name in list_loaded_modules() if name.partition(".")[0] in PACKAGES]
    yield from measure_with_retries(lambda: _measure(packages, plan))
    for name, milliseconds in list_slowest(_run_python("import flagkit", "-X", "importtime")):
        yield Result(benchmark="import", case=f"of it {name} itself", value=milliseconds, unit="ms")


def list_loaded_modules(module: str = "flagkit") -> list[str]:
    """Return the modules that an import loads in a fresh interpreter."""
    return _run_python(_LOADED.format(module)).splitlines()[-1].split()


def time_import(modules: str) -> tuple[float, float]:
    """Return the milliseconds of an import, with and without waits for a processor."""
    elapsed, own = map(float, _run_python(_TIME.format(modules)).splitlines()[-1].split())
    return elapsed, own


def list_slowest(report: str) -> list[tuple[str, float]]:
    """Return the modules that took longest by themselves, in ms, from what -X importtime prints."""
    found = [(match[3], int(match[1]) / 1000) for match in _IMPORT_TIME.finditer(report)]
    started = next((i for i, (name, _) in enumerate(found) if name == "site"), -1)
    return sorted(found[started + 1 :], key=lambda item: -item[1])[:SLOWEST_COUNT]


def _measure(packages: Sequence[str], plan: MeasurementPlan) -> list[Result]:
    round_count = 5 if plan.quick else 15
    elapsed: list[float] = []
    ours: list[float] = []
    floor: list[float] = []
    for _ in range(round_count):
        with_waits, without = time_import("flagkit")
        elapsed.append(with_waits)
        ours.append(without)
        floor.append(time_import(", ".join(packages))[1])
    ratios = [mine / theirs for mine, theirs in zip(ours, floor, strict=True)]
    figures = [
        ("flagkit", statistics.median(ours), "ms", None),
        ("with waits for a processor", statistics.median(elapsed), "ms", None),
        ("only its packages", statistics.median(floor), "ms", None),
        ("flagkit / only its packages", statistics.median(ratios), "x", RATIO_BOUND),
    ]
    details: dict[str, object] = {
        "elapsed_ms": statistics.median(elapsed),
        "only_packages_ms": statistics.median(floor),
        "fastest_ms": min(ours),
        "slowest_ms": max(ours),
        "round_count": round_count,
        "packages": sorted({name.partition(".")[0] for name in packages}),
    }
    return [
        Result(
            benchmark="import",
            case=case,
            value=value,
            unit=unit,
            bound=bound,
            details=details if case == "flagkit" else {},
        )
        for case, value, unit, bound in figures
    ]


def _run_python(code: str, *options: str) -> str:
    """Return what a fresh interpreter prints, to either stream."""
    environment = dict(os.environ)
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(  # noqa: S603 - of the code above
        [sys.executable, *options, "-c", code],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.stdout
