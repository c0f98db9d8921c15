"""Run a soak: `python -m tests.soak NAME [--seed N] [--json FILE]` [--help].

Exits with 1 if a result is out of its bound. The seed is printed; what the operating system does
with several processes no seed can repeat.
"""

import argparse
import contextlib
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.report import Result, report
from tests.soak import failover, faults, fleet, forks, fuzz, oracle, rollback, simulation, writers


class Soak(NamedTuple):
    """A function of an amount and a seed, and the option that sets the amount."""

    run: Callable[[int, int], Iterator[Result]]
    option: str
    amount: int


SOAKS = {
    "failover": Soak(failover.soak, "--kills", 20),
    "faults": Soak(faults.soak, "--seconds", 60),
    "fleet": Soak(fleet.soak, "--clients", 300),
    "forks": Soak(forks.soak, "--forks", 300),
    "fuzz": Soak(fuzz.soak, "--pairs", 1_000_000),
    "oracle": Soak(oracle.soak, "--pairs", 10_000_000),
    "rollback": Soak(rollback.soak, "--points", 50),
    "simulation": Soak(simulation.soak, "--seeds", 2_000),
    "writers": Soak(writers.soak, "--changes", 10_000),
}


def main() -> int:
    """Run what the arguments name; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    names = parser.add_subparsers(dest="name", required=True)
    for name, soak in SOAKS.items():
        command = names.add_parser(name)
        command.add_argument(soak.option, dest="amount", type=int, default=soak.amount)
        command.add_argument("--seed", type=int, default=random.randrange(2**32))
        command.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}")
    with contextlib.ExitStack() as stack:
        lines = stack.enter_context(arguments.json.open("w")) if arguments.json else None
        results = SOAKS[arguments.name].run(arguments.amount, arguments.seed)
        return 0 if report(results, lines) else 1


if __name__ == "__main__":
    sys.exit(main())
