"""Evaluate: what a check costs, beside the same logic written by hand.

W1 is a flag that is on for all; W2 a rollout of 50 % by targeting key; W3 five rules of two
conditions each (a list of 10, a semantic version, a number, an equality), of which the fifth holds
and leads to a rollout of 30 %. What is written by hand is what a careful engineer writes for these
three flags and no others: one plain function each, with the flag's data in a table by its key,
bucketing by the same hash, missing attributes at home, the version parsed once a call. It knows the
types of its attributes, and that versions are three numbers; flagkit has to ask.
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
                "when": {"country": {"$in": ASIA}, "app_version": {"$semver": {"$gte": "3.2.0"}}},
                "serve": "on",
            },
            {
                "name": "enterprise",
                "when": {"app_version": {"$semver": {"$gte": "4.0.0"}}, "plan": "enterprise"},
                "serve": "on",
            },
            {
                "name": "seniors",
                "when": {"country": {"$in": NORTH}, "age": {"$gte": 65}},
                "serve": "on",
            },
            {
                "name": "trial",
                "when": {"plan": "free", "app_version": {"$semver": {"$gte": "2.6.0"}}},
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
    "app_version": "4.12.0",
    "age": 34,
    "language": "de",
}

_HASHES = 2**64
_SWITCHES = {W1: True}
_ROLLOUTS = {
    W2: (xxh3_64_intdigest(W2.encode()), 50 * _HASHES // 100),
    W3: (xxh3_64_intdigest(W3.encode()), -(-30 * _HASHES // 100)),
}
_NO_VERSION: tuple[int, ...] = ()
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
    text = context.get("app_version")
    version = _NO_VERSION if text is None else tuple(map(int, text.split(".")))
    if country in _ASIA and version >= (3, 2, 0):
        return True
    plan = context.get("plan")
    if version >= (4, 0, 0) and plan == "enterprise":
        return True
    age = context.get("age", 0)
    if country in _NORTH and age >= 65:
        return True
    if plan == "free" and version >= (2, 6, 0):
        return False
    if country in _EUROZONE and age >= 18:
        user = context.get("targeting_key")
        if user is None:
            return default
        seed, share = rollout
        return xxh3_64_intdigest(user.encode(), seed) < share
    return False


class Case(Struct, frozen=True):
    """A flag, the function that does the same by hand, and how often its cost flagkit may take."""

    name: str
    key: str
    by_hand: Check
    bound: float


CASES: Final = (
    Case("W1", W1, by_hand_1, 1.5),
    Case("W2", W2, by_hand_2, 1.4),
    Case("W3", W3, by_hand_3, 0.8),
)


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
        ("flagkit / by hand", statistics.median(ratios), "x", case.bound),
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
