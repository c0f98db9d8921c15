"""The command: run benchmarks, print a table, and fail where a bound is missed."""

import argparse
import contextlib
import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from benchmarks import (
    bulk_import,
    evaluate,
    imports,
    refresh,
    result_store,
    segments,
    snapshot,
    stalls,
    startup,
    write,
)
from benchmarks.peers import runner
from benchmarks.plot import IMAGE, build_curves, draw
from benchmarks.render_docs import PAGE, render_page
from benchmarks.report import FLAG_COUNT, QUICK_FLAG_COUNT, Line, MeasurementPlan, report
from benchmarks.subprocesses import WorkerError
from flagkit.errors import FlagkitError

QUICK_TOLERANCE = 1.1
"""A quick run is too short, on a machine that others use, to tell the last tenth of a ratio."""

Benchmark: TypeAlias = Callable[[MeasurementPlan], Iterator[Line]]
"""Takes how to measure, and measures as results are asked for."""

BENCHMARKS: Mapping[str, Benchmark] = {
    "evaluate": evaluate.run,
    "snapshot": snapshot.run,
    "startup": startup.run,
    "refresh": refresh.run,
    "import": imports.run,
    "segments": segments.run,
    "stalls": stalls.run,
    "write": write.run,
    "load": bulk_import.run,
    "peers": runner.run,
}

PLOT = "plot"


def main(
    arguments: Sequence[str] | None = None, benchmarks: Mapping[str, Benchmark] = BENCHMARKS
) -> int:
    """Run the benchmarks asked for.

    Returns:
        The exit code: 0 if all bounds are kept, 1 if one is missed or a part could not run.
    """
    options = _build_parser(benchmarks).parse_args(arguments)
    if options.names == [PLOT]:
        found = list(result_store.read_results(result_store.get_release_path()))
        draw(build_curves(found), IMAGE)
        PAGE.write_text(render_page(PAGE.read_text(), found))
        return 0
    flag_count = options.flags or (QUICK_FLAG_COUNT if options.quick else FLAG_COUNT)
    plan = MeasurementPlan(options.quick, flag_count)
    names = list(benchmarks) if "all" in options.names else options.names
    to_keep = io.StringIO()
    with contextlib.ExitStack() as stack:
        lines = stack.enter_context(options.json.open("w")) if options.json else to_keep
        results = (result for name in names for result in benchmarks[name](plan))
        try:
            good = report(results, lines, QUICK_TOLERANCE if plan.quick else 1.0)
        except (FlagkitError, WorkerError) as error:
            print(f"could not go on: {error}", file=sys.stderr)
            return 1
    if options.keep:
        result_store.store_results(to_keep.getvalue(), names, options.keep)
    if not good:
        print("a bound was missed", file=sys.stderr)
    return 0 if good else 1


def _build_parser(benchmarks: Mapping[str, Benchmark]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="benchmark",
        choices=[*benchmarks, "all", PLOT],
        default="all",
        help=f"{', '.join(benchmarks)} or all, which is what none means;"
        f" or {PLOT} alone, which puts kept results into docs/performance.md",
    )
    parser.add_argument("--quick", action="store_true", help="measure less often, for CI")
    parser.add_argument(
        "--flags",
        type=int,
        metavar="COUNT",
        help=f"size of the largest catalogue, {FLAG_COUNT:,}, or {QUICK_FLAG_COUNT:,} if quick",
    )
    written = parser.add_mutually_exclusive_group()
    written.add_argument("--json", type=Path, metavar="FILE", help="write results as JSON lines")
    written.add_argument(
        "--keep",
        type=Path,
        nargs="?",
        const=result_store.get_release_path(),
        metavar="FILE",
        help="put results in the place of those that are kept of this version",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
