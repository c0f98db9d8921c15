"""Faults that last: tests/client/test_faults.py with longer outages.

It reports how soon clients were current again.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import Result

TESTS = Path(__file__).parent.parent / "client" / "test_faults.py"


class RecoveryPlugin:
    """A plugin of pytest that keeps what each test says of recoveries, and what failed."""

    def __init__(self) -> None:
        self.results: list[Result] = []
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take in the report of one phase of one test."""
        name = report.nodeid.rpartition("::")[2].removeprefix("test_").replace("_", " ")
        if report.failed:
            self.failed.append(name)
        if report.when == "teardown":
            said: dict[str, Any] = dict(report.user_properties)
            if said.get("recoveries"):
                took, bound = max(said["recoveries"])
                self.results.append(build_result(name, took, bound, "s"))


def soak(seconds: int, seed: int) -> Iterator[Result]:  # noqa: ARG001 - faults need no chance
    """Run the tests with outages of so many seconds."""
    os.environ["FLAGKIT_OUTAGE_SECONDS"] = str(seconds)
    recoveries = RecoveryPlugin()
    options = ["-q", "-o", f"timeout={120 + 2 * seconds}", str(TESTS)]
    code = pytest.main(options, plugins=[recoveries])
    yield from recoveries.results
    for name in recoveries.failed:
        print(f"  failed: {name}")
    yield build_result("tests that failed", max(len(recoveries.failed), int(code != 0)), 0)


def build_result(case: str, value: float, bound: float, unit: str = "") -> Result:
    return Result(benchmark="faults", case=case, value=round(value, 2), unit=unit, bound=bound)
