"""The suite of peers: which there are, and the rows of each beside flagkit's."""

import functools
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Final

from msgspec import Struct

from benchmarks import catalogue
from benchmarks.imports import list_loaded_modules, time_import
from benchmarks.interleave import compute_ratios
from benchmarks.peers import eppo, growthbook, launchdarkly, unleash
from benchmarks.peers.flags import Peer
from benchmarks.peers.harness import (
    LoadCost,
    iter_payload,
    measure_own_load,
    measure_peer_load,
    time_peer,
)
from benchmarks.report import Line, MeasurementPlan, Result, SkippedBenchmark, measure_with_retries
from benchmarks.subprocesses import WorkerError, run_in_subprocess
from benchmarks.workloads import FLAGS, WORKLOADS, Workload

PEERS: Final = (eppo.PEER, growthbook.PEER, unleash.PEER, launchdarkly.PEER)
TIMES_FASTER: Final[Mapping[str, Mapping[str, float]]] = {
    "Eppo": {"W1": 8.0, "W2": 3.5, "W3": 1.8},
}
"""How many times as fast as a peer flagkit is at least."""
LOADED_COUNT: Final = 100_000
QUICK_LOADED_COUNT: Final = 10_000


class _Library(Struct, frozen=True):
    """What is installed under a name, and the module that a service imports."""

    name: str
    distribution: str
    module: str


_OURS: Final = _Library("flagkit", "flagkit-mongodb", "flagkit")


def run(plan: MeasurementPlan, peers: Sequence[Peer] = PEERS) -> Iterator[Line]:
    """Measure flagkit, and each peer that can be imported."""
    count = min(QUICK_LOADED_COUNT if plan.quick else LOADED_COUNT, plan.flag_count)
    found = run_in_subprocess(measure_own_load, catalogue.store_catalogue(count))
    yield from _measure_needs(_OURS, found, count, plan)
    round_count = 10 if plan.quick else 50
    for peer in peers:
        if find_spec(peer.module) is None:
            yield _build_skipped(peer, f"{peer.distribution} is not installed")
            continue
        try:
            for case in WORKLOADS:
                yield from measure_with_retries(
                    functools.partial(_measure_speed, peer, case, round_count)
                )
            library = _Library(peer.name, peer.distribution, peer.module)
            yield from _measure_needs(library, _measure_load(peer, count), count, plan)
        except WorkerError as error:
            yield _build_skipped(peer, str(error), ok=False)


def _build_skipped(peer: Peer, reason: str, *, ok: bool = True) -> SkippedBenchmark:
    return SkippedBenchmark(benchmark="peers", case=peer.name, reason=reason, ok=ok)


def _measure_speed(peer: Peer, case: Workload, round_count: int) -> list[Result]:
    ours, theirs = run_in_subprocess(time_peer, peer, case, round_count)
    bound = TIMES_FASTER.get(peer.name, {}).get(case.name)
    details: dict[str, object] = {
        "flagkit_ns": statistics.median(ours),
        "peer_ns": statistics.median(theirs),
        "version": version(peer.distribution),
        "round_count": round_count,
    }
    faster = compute_ratios(theirs, ours)
    name = f"{peer.name} {case.name}"
    return [
        _build_result(f"{name} / flagkit", faster, "x", details, bound),
        _build_result(name, [nanoseconds / 1000 for nanoseconds in theirs], "us", details),
    ]


def _measure_load(peer: Peer, count: int) -> LoadCost:
    with tempfile.TemporaryDirectory(prefix="flagkit-benchmarks-") as directory:
        path = Path(directory, "payload.json")
        with path.open("w") as file:
            file.writelines(iter_payload(peer, chain(FLAGS, catalogue.iter_documents(count))))
        return run_in_subprocess(measure_peer_load, peer, path)


def _measure_needs(
    library: _Library, found: LoadCost, count: int, plan: MeasurementPlan
) -> Iterator[Result]:
    """Yield what a library takes up: of memory, of time to load and to import, of packages."""
    name = library.name
    # Itself, whatever an installation that is edited in place says of it, and what it loads.
    packages = sorted({library.distribution, *list_packages(list_loaded_modules(library.module))})
    details: dict[str, object] = {"flag_count": count, "version": version(library.distribution)}
    yield _build_result(
        f"{name} bytes a flag, of {count:,}", [found.grown_bytes / count], "B", details
    )
    yield _build_result(f"{name} load of {count:,}", [found.seconds], "s", details)
    times = [time_import(library.module)[1] for _ in range(3 if plan.quick else 9)]
    yield _build_result(f"{name} import", times, "ms", details)
    details = {"packages": packages, "version": version(library.distribution)}
    yield _build_result(f"{name} packages", [len(packages)], "", details)


def list_packages(modules: Sequence[str]) -> list[str]:
    """Return the installed packages that some modules are of, sorted."""
    installed = packages_distributions()
    roots = {module.partition(".")[0] for module in modules}
    return sorted({name for root in roots for name in installed.get(root, ())})


def _build_result(
    case: str,
    values: Sequence[float],
    unit: str,
    details: dict[str, object],
    bound: float | None = None,
) -> Result:
    return Result(
        benchmark="peers",
        case=case,
        value=statistics.median(values),
        unit=unit,
        bound=bound,
        at_least=bound is not None,
        details=details,
    )
