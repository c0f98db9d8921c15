"""Run a soak: `python -m tests.soak NAME [--seconds N] [--seed N] [--json FILE]`.

Exits with 1 if a result is out of its bound. The seed is printed; what the operating system does
with several processes no seed can repeat.
"""

import argparse
import contextlib
import random
import sys
from pathlib import Path

from benchmarks.report import report
from flagkit.embedded import EmbeddedMongo
from tests.soak import writers

SOAKS = {"writers": writers.soak}


def main() -> int:
    """Run what the arguments name; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("name", choices=SOAKS)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(EmbeddedMongo())
        lines = stack.enter_context(arguments.json.open("w")) if arguments.json else None
        results = SOAKS[arguments.name](server.uri, arguments.seconds, arguments.seed)
        return 0 if report(results, lines) else 1


if __name__ == "__main__":
    sys.exit(main())
