"""The benchmarks: that they compare like with like, and that a missed bound is told. No timing."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.evaluate import ASIA, CASES, CONTEXT, EUROZONE, NORTH, Case, client
from benchmarks.imports import slowest
from benchmarks.report import ATTEMPTS_MAX, Result, measured, percentile


def result(value: float, bound: float | None = 2.0, case: str = "W1") -> Result:
    return Result(benchmark="evaluate", case=case, value=value, unit="x", bound=bound)


def contexts(count: int) -> Iterator[dict[str, Any]]:
    """Yield contexts of all sorts, with attributes missing here and there."""
    chance = random.Random(20261122)
    for _ in range(count):
        context = {
            "targeting_key": f"user-{chance.randrange(10**6)}",
            "country": chance.choice([*ASIA, *NORTH, *EUROZONE, "US", "BR"]),
            "plan": chance.choice(["free", "team", "enterprise"]),
            "app_version": chance.choice(
                ["2.5.9", "2.6.0", "3.1.10", "3.2.0", "3.10.0", "4.0.0", "10.0.0"]
            ),
            "age": chance.choice([17, 18, 64, 65, chance.randrange(10, 90)]),
        }
        yield {name: value for name, value in context.items() if chance.random() < 0.85}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("default", [False, True])
def test_by_hand_is_the_same_logic(case: Case, default: bool) -> None:
    asked = client()
    answers = [
        (asked.is_enabled(case.key, context, default), case.by_hand(case.key, context, default))
        for context in contexts(1000)
    ]
    assert all(ours is theirs for ours, theirs in answers)
    assert len(set(answers)) == (1 if case.name == "W1" else 2)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_by_hand_looks_the_flag_up(case: Case) -> None:
    for default in (False, True):
        assert case.by_hand("no.such.flag", CONTEXT, default) is default
        assert client().is_enabled("no.such.flag", CONTEXT, default) is default


def test_w3_is_decided_by_the_fifth_rule_and_a_rollout() -> None:
    found = client().evaluate(CASES[2].key, CONTEXT)
    assert (found.rule, found.reason) == ("adults", "SPLIT")


def test_a_kept_bound_is_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = {"evaluate": lambda _quick: iter([result(2.0), result(9.0, None, "W1 flagkit")])}
    assert main(["--json", str(tmp_path / "lines")], kept) == 0
    lines = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]
    assert [line["ok"] for line in lines] == [True, True]
    assert capsys.readouterr().out.splitlines()[1].endswith("yes")


def test_a_missed_bound_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missed = {"evaluate": lambda _quick: iter([result(2.1), result(1.0, case="W2")])}
    assert main(["evaluate", "--json", str(tmp_path / "lines")], missed) == 1
    first, second = map(json.loads, (tmp_path / "lines").read_text().splitlines())
    assert (first["ok"], second["ok"]) == (False, True)
    assert "NO" in capsys.readouterr().out


def test_a_bound_is_not_kept_by_no_number() -> None:
    assert not result(float("nan")).ok


def test_lines_have_their_fields(tmp_path: Path) -> None:
    main(["--json", str(tmp_path / "lines")], {"evaluate": lambda _quick: iter([result(1.5)])})
    line = json.loads((tmp_path / "lines").read_text())
    expected = {"benchmark": "evaluate", "case": "W1", "value": 1.5, "unit": "x", "bound": 2.0}
    assert line | expected | {"ok": True, "missed": []} == line
    versions = {"python", "flagkit", "pymongo", "xxhash", "msgspec", "cpu_count"}
    assert all(line[name] for name in versions)


def test_the_benchmarks_asked_for_run_as_asked() -> None:
    ran: list[tuple[str, bool]] = []

    def benchmark(name: str) -> Any:
        def run(quick: bool) -> Iterator[Result]:
            ran.append((name, quick))
            return iter(())

        return run

    all_of_them = {name: benchmark(name) for name in ("one", "two")}
    assert main([], all_of_them) == main(["two", "--quick"], all_of_them) == 0
    assert main(["all"], all_of_them) == 0
    assert ran == [("one", False), ("two", False), ("two", True), ("one", False), ("two", False)]
    with pytest.raises(SystemExit):
        main(["three"], all_of_them)


def test_an_attempt_that_misses_is_repeated_and_told() -> None:
    values = iter([3.0, 2.5, 1.9])
    assert measured(lambda: [result(next(values))]) == [
        Result(benchmark="evaluate", case="W1", value=1.9, unit="x", bound=2.0, missed=(3.0, 2.5))
    ]


def test_what_is_too_slow_stays_so() -> None:
    values = iter([3.0] * ATTEMPTS_MAX)
    (found,) = measured(lambda: [result(next(values))])
    assert not found.ok
    assert next(values, None) is None


def test_a_good_attempt_is_enough() -> None:
    values = iter([1.0])
    assert measured(lambda: [result(next(values))]) == [result(1.0)]


def test_percentiles_are_by_nearest_rank() -> None:
    values = list(range(1, 101))
    assert [percentile(values, p) for p in (0, 1, 50, 99, 100)] == [1, 1, 50, 99, 100]
    assert percentile([7], 99) == 7


def test_slowest_modules_leave_out_the_interpreters_own() -> None:
    report = (
        "import time: self [us] | cumulative | imported package\n"
        "import time:      9000 |       9000 |   encodings\n"
        "import time:      2000 |      11000 | site\n"
        "import time:       500 |        500 |   msgspec\n"
        "import time:      1500 |       2000 | flagkit\n"
    )
    assert slowest(report) == [("flagkit", 1.5), ("msgspec", 0.5)]
