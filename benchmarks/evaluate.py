"""Evaluate: what a check costs, beside the same logic written by hand.

W1 is a flag that is on for all; W2 a rollout of 50 % by targeting key; W3 five rules of two
conditions each, of which the fifth holds and leads to a rollout of 30 %. What is written by hand is
what a good engineer writes for these three flags and no others: one plain function each, with the
flag's data in a table by its key, bucketing by the same hash, missing attributes at home. It knows
the types of its attributes; flagkit has to ask.
"""

import functools
import statistics
import time
import timeit
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

from msgspec import Struct
from xxhash import xxh3_64_intdigest

from benchmarks.report import Result, measured, percentile
from flagkit.client import Client
from flagkit.testing import client_from

BOUND: Final = 2.0
SLICES_A_SECOND: Final = 100
"""How finely measurements take turns."""

Check: TypeAlias = Callable[[str, dict[str, Any], bool], bool]

ASIA = ["JP", "KR", "SG", "TH", "VN", "MY", "ID", "PH", "TW", "HK"]
NORTH = ["DE", "DK", "NO", "SE", "FI", "IS", "NL", "BE", "EE", "LV"]
EUROZONE = ["AT", "BE", "DE", "ES", "FI", "FR", "IE", "IT", "NL", "PT"]

W1, W2, W3 = "checkout.express-pay", "search.new-ranking", "pricing.seat-bundles"
VARIANTS = {"on": True, "off": False}
FLAGS: Final[Sequence[Mapping[str, Any]]] = (
    {"key": W1, "variants": VARIANTS, "fallthrough": {"serve": "on"}},
    {"key": W2, "variants": VARIANTS, "fallthrough": {"rollout": 50}},
    {
        "key": W3,
        "variants": VARIANTS,
        "rules": [
            {
                "name": "launch",
                "when": {"country": {"$in": ASIA}, "build": {"$gte": 380}},
                "serve": "on",
            },
            {
                "name": "enterprise",
                "when": {"build": {"$gte": 400}, "plan": "enterprise"},
                "serve": "on",
            },
            {
                "name": "seniors",
                "when": {"country": {"$in": NORTH}, "age": {"$gte": 65}},
                "serve": "on",
            },
            {
                "name": "trial",
                "when": {"plan": "free", "build": {"$gte": 350}},
                "serve": "off",
            },
            {
                "name": "adults",
                "when": {"country": {"$in": EUROZONE}, "age": {"$gte": 18}},
                "rollout": 30,
            },
        ],
        "fallthrough": {"serve": "off"},
    },
)
CONTEXT: Final[dict[str, Any]] = {
    "targeting_key": "user-20417",
    "country": "DE",
    "plan": "team",
    "build": 412,
    "age": 34,
    "language": "de",
}

_HASHES = 2**64
_SWITCHES = {W1: True}
_ROLLOUTS = {
    W2: (xxh3_64_intdigest(W2.encode()), 50 * _HASHES // 100),
    W3: (xxh3_64_intdigest(W3.encode()), -(-30 * _HASHES // 100)),
}
_ASIA, _NORTH, _EUROZONE = frozenset(ASIA), frozenset(NORTH), frozenset(EUROZONE)


def by_hand_1(key: str, _context: dict[str, Any], default: bool = False) -> bool:  # noqa: FBT001, FBT002 - as the client's
    """Answer for W1."""
    return _SWITCHES.get(key, default)


def by_hand_2(key: str, context: dict[str, Any], default: bool = False) -> bool:  # noqa: FBT001, FBT002 - as the client's
    """Answer for W2."""
    rollout = _ROLLOUTS.get(key)
    user = context.get("targeting_key")
    if rollout is None or user is None:
        return default
    seed, share = rollout
    return xxh3_64_intdigest(user.encode(), seed) < share


def by_hand_3(key: str, context: dict[str, Any], default: bool = False) -> bool:  # noqa: FBT001, FBT002, PLR0911 - as the client's; rule by rule
    """Answer for W3."""
    rollout = _ROLLOUTS.get(key)
    if rollout is None:
        return default
    country = context.get("country")
    build = context.get("build", 0)
    if country in _ASIA and build >= 380:
        return True
    plan = context.get("plan")
    if build >= 400 and plan == "enterprise":
        return True
    age = context.get("age", 0)
    if country in _NORTH and age >= 65:
        return True
    if plan == "free" and build >= 350:
        return False
    if country in _EUROZONE and age >= 18:
        user = context.get("targeting_key")
        if user is None:
            return default
        seed, share = rollout
        return xxh3_64_intdigest(user.encode(), seed) < share
    return False


class Case(Struct, frozen=True):
    """A flag, and the function that does the same by hand."""

    name: str
    key: str
    by_hand: Check


CASES: Final = (Case("W1", W1, by_hand_1), Case("W2", W2, by_hand_2), Case("W3", W3, by_hand_3))


def client() -> Client:
    """Return the client that is measured."""
    return client_from(FLAGS)


def run(quick: bool) -> Iterator[Result]:  # noqa: FBT001 - the form of all benchmarks
    """Measure each case."""
    asked = client()
    for case in CASES:
        yield from measured(functools.partial(_measure, asked, case, 15 if quick else 75))


def _measure(asked: Client, case: Case, round_count: int) -> list[Result]:
    names = {"key": case.key, "context": dict(CONTEXT)}
    ours, by_hand, look_up = _in_turn(
        (
            _timer("client.is_enabled(key, context)", client=asked, **names),
            _timer("by_hand(key, context)", by_hand=case.by_hand, **names),
            _timer("table[key]", table=dict.fromkeys((W1, W2, W3), True), **names),
        ),
        round_count,
    )
    ratios = [mine / theirs for mine, theirs in zip(ours, by_hand, strict=True)]
    details: dict[str, object] = {
        "flagkit_ns": statistics.median(ours),
        "by_hand_ns": statistics.median(by_hand),
        "dict_look_up_ns": statistics.median(look_up),
        "round_count": round_count,
        "quartiles": [percentile(ratios, 25), percentile(ratios, 75)],
    }
    figures = [
        ("flagkit / by hand", statistics.median(ratios), "x", BOUND),
        ("flagkit", statistics.median(ours), "ns", None),
        ("by hand", statistics.median(by_hand), "ns", None),
        ("a dict look-up", statistics.median(look_up), "ns", None),
        ("flagkit / a dict look-up", statistics.median(map(_ratio, ours, look_up)), "x", None),
    ]
    return [
        Result(
            benchmark="evaluate",
            case=f"{case.name} {what}",
            value=value,
            unit=unit,
            bound=bound,
            details=details if bound is not None else {},
        )
        for what, value, unit, bound in figures
    ]


def _timer(statement: str, **names: object) -> timeit.Timer:
    """Return a timer of a statement whose names are local variables, as in a service's function."""
    given = [f"{name} = given[{name!r}]" for name in names]
    # Processor time: what others do on the machine's cores is no part of a check.
    return timeit.Timer(statement, "\n".join(given), time.process_time, {"given": names})


def _in_turn(timers: Sequence[timeit.Timer], round_count: int) -> list[list[float]]:
    """Return nanoseconds a call for each timer, round by round: all slow down together."""
    counts = []
    for timer in timers:
        count, seconds = timer.autorange()
        counts.append(max(int(count / seconds / SLICES_A_SECOND), 1))
    times: list[list[float]] = [[] for _ in timers]
    for _ in range(round_count):
        for timer, count, found in zip(timers, counts, times, strict=True):
            found.append(timer.timeit(count) / count * 1e9)
    return times


def _ratio(value: float, base: float) -> float:
    return value / base
