"""Evaluate: what a check costs, beside the same logic written by hand, and among how many flags.

Hot flags are compiled already. W1 to W3 are of `cases`; the hand-written table of many keys is a
seed and a share by key. A cold flag is one that was not asked before; its time is the processor's,
of the thread, for each first call by itself. Of the catalogue's, many have the body of another, as
a service's have; what one costs that has a body of its own is told beside them.
"""

import functools
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice, permutations
from typing import Any, Final

from xxhash import xxh3_64_intdigest

from benchmarks import catalogue
from benchmarks.cases import CASES, CONTEXT, FLAGS, HASHES, VARIANTS, W1, W2, W3, Case
from benchmarks.report import Plan, Result, measured, percentile
from benchmarks.timing import in_turn, ratios, timer
from flagkit.client.client import Client, CountingClient
from flagkit.testing import client_from

COUNTING_BOUND_NANOSECONDS: Final = 40.0
HOT_KEY_COUNT: Final = 10_000
HOT_KEYS_BOUND: Final = 2.0
FEW_FLAGS: Final = 1_000
SIZE_BOUND: Final = 1.1
COLD_COUNT: Final = 2_000
COLD_BOUND_MICROSECONDS: Final = 15.0
COLD_BOUND_P99_MICROSECONDS: Final = 60.0
SHAPE_COUNT: Final = 12
SHAPE_BOUND_MICROSECONDS: Final = 1_000.0
SEED: Final = 20261122

CONDITIONS: Final[Sequence[Mapping[str, Any]]] = (
    {"country": {"$in": ["DE", "AT", "CH"]}},
    {"app_version": {"$semver": {"$gte": "2.3.0"}}},
    {"age": {"$gte": 18}},
    {"plan": "team"},
    {"language": {"$startsWith": "d"}},
    {"email": {"$endsWith": "@acme.com"}},
    {"beta": {"$exists": True}},
    {"device": {"$ne": "tablet"}},
    {"seats": {"$lt": 50}},
    {"carrier": {"$contains": "tel"}},
)
"""Of different forms, so that each choice of some of them, and each order, is a shape of its own.

But for the version: the compiler has it tested last.
"""


def client() -> Client:
    """Return the client that W1 to W3 are measured on."""
    return client_from(FLAGS)


def run(plan: Plan) -> Iterator[Result]:
    """Measure hot flags, many hot keys, one hot flag among many, and cold flags among many."""
    round_count = 15 if plan.quick else 75
    asked = client()
    for case in CASES:
        yield from measured(functools.partial(_beside_hand, asked, case, round_count))
        yield from measured(functools.partial(_counting, asked, case, plan, round_count))
    hot = hot_keys(random.Random(SEED))
    table = by_hand_table(hot)
    many_keys = client_from(rollout_of(key) for key in hot)
    yield from measured(lambda: _over_keys(many_keys, table, hot, max(round_count // 5, 5)))
    few = catalogue.stored(FEW_FLAGS).client()
    many = catalogue.stored(plan.flag_count).client()
    yield from measured(lambda: _among_many(few, many, plan, round_count))
    yield from _cold(many, plan)
    yield from _cold_of_own_bodies()
    yield from measured(functools.partial(_first_shapes(), plan))


def _beside_hand(asked: Client, case: Case, round_count: int) -> list[Result]:
    names = {"key": case.key, "context": dict(CONTEXT)}
    ours, by_hand, look_up = in_turn(
        (
            timer("client.is_enabled(key, context)", client=asked, **names),
            timer("by_hand(key, context)", by_hand=case.by_hand, **names),
            timer("table[key]", table=dict.fromkeys((W1, W2, W3), True), **names),
        ),
        round_count,
    )
    to_hand = ratios(ours, by_hand)
    details: dict[str, object] = {
        "flagkit_ns": statistics.median(ours),
        "by_hand_ns": statistics.median(by_hand),
        "dict_look_up_ns": statistics.median(look_up),
        "round_count": round_count,
        "quartiles": [percentile(to_hand, 25), percentile(to_hand, 75)],
    }
    to_look_up = statistics.median(ratios(ours, look_up))
    return [
        _result(f"{case.name} flagkit / by hand", to_hand, "x", case.bound, details),
        _result(f"{case.name} flagkit", ours, "ns"),
        _result(f"{case.name} by hand", by_hand, "ns"),
        _result(f"{case.name} a dict look-up", look_up, "ns"),
        _result(f"{case.name} flagkit / a dict look-up", [to_look_up], "x"),
    ]


def _counting(asked: Client, case: Case, plan: Plan, round_count: int) -> list[Result]:
    assert asked.snapshot is not None, "it is of a snapshot"
    names = {"key": case.key, "context": dict(CONTEXT)}
    statement = "client.is_enabled(key, context)"
    plain, counted = in_turn(
        [
            timer(statement, client=client, **names)
            for client in (asked, CountingClient.from_snapshot(asked.snapshot))
        ],
        round_count,
    )
    added = [with_counts - without for with_counts, without in zip(counted, plain, strict=True)]
    bound = None if plan.quick else COUNTING_BOUND_NANOSECONDS
    return [_result(f"{case.name} counting adds", added, "ns", bound)]


def hot_keys(chance: random.Random) -> list[str]:
    """Return keys of the catalogue, in no order."""
    keys = [document["key"] for document in catalogue.documents(HOT_KEY_COUNT)]
    chance.shuffle(keys)
    return keys


def rollout_of(key: str) -> dict[str, Any]:
    """Return W2 under another key."""
    return {"key": key, "variants": VARIANTS, "fallthrough": {"rollout": 50}}


def by_hand_table(
    keys: Sequence[str],
) -> Callable[[str, dict[str, Any]], bool]:
    """Return what is written by hand for W2 under many keys: a seed and a share for each."""
    table = {key: (xxh3_64_intdigest(key.encode()), HASHES // 2) for key in keys}

    def by_hand(key: str, context: dict[str, Any], default: bool = False) -> bool:  # noqa: FBT001, FBT002 - as the client's
        rollout = table.get(key)
        user = context.get("targeting_key")
        if rollout is None or user is None:
            return default
        seed, share = rollout
        return xxh3_64_intdigest(user.encode(), seed) < share

    return by_hand


def _over_keys(
    asked: Client,
    by_hand: Callable[[str, dict[str, Any]], bool],
    keys: Sequence[str],
    round_count: int,
) -> list[Result]:
    context = dict(CONTEXT)
    loop = "for key in keys: check(key, context)"
    times = in_turn(
        [
            timer(loop, check=check, keys=keys, context=context)
            for check in (asked.is_enabled, by_hand)
        ],
        round_count,
    )
    ours, theirs = ([value / len(keys) for value in values] for values in times)
    name = f"W2 over {len(keys):,} keys"
    return [
        _result(f"{name}, flagkit / by hand", ratios(ours, theirs), "x", HOT_KEYS_BOUND),
        _result(f"{name}, flagkit", ours, "ns"),
        _result(f"{name}, by hand", theirs, "ns"),
    ]


def _among_many(few: Client, many: Client, plan: Plan, round_count: int) -> list[Result]:
    context = dict(CONTEXT)
    statement = "client.is_enabled(key, context)"
    among_many, among_few = in_turn(
        [timer(statement, client=asked, key=W2, context=context) for asked in (many, few)],
        round_count,
    )
    name = f"W2 of {plan.flag_count:,} flags"
    return [
        _result(f"{name} / of {FEW_FLAGS:,}", ratios(among_many, among_few), "x", SIZE_BOUND),
        _result(name, among_many, "ns"),
    ]


def _cold(asked: Client, plan: Plan) -> Iterator[Result]:
    """Measure first calls of flags that are rollouts, whose shape is known since the first."""
    asked.is_enabled(W2, CONTEXT)
    keys = catalogue.keys_of(catalogue.ROLLOUT, plan.flag_count)
    # Flags are cold once, so each attempt takes the next of them, spread over the catalogue.
    count = min(COLD_COUNT, plan.flag_count // 20)
    shuffled = list(islice(keys, plan.flag_count))
    random.Random(SEED).shuffle(shuffled)
    cold = iter(shuffled)

    def attempt() -> list[Result]:
        found = [first_call(asked, key) for key in islice(cold, count)]
        details: dict[str, object] = {"flag_count": plan.flag_count, "asked": len(found)}
        name = f"W2 cold, of {plan.flag_count:,}"
        return [
            Result(
                benchmark="evaluate",
                case=f"{name}, p{percent}",
                value=percentile(found, percent),
                unit="us",
                # Of a full catalogue only: those of a small one promise nothing.
                bound=None if plan.quick else bound,
                details=details,
            )
            for percent, bound in (
                (50, COLD_BOUND_MICROSECONDS),
                (99, COLD_BOUND_P99_MICROSECONDS),
            )
        ]

    yield from measured(attempt)


def _cold_of_own_bodies() -> Iterator[Result]:
    """Measure first calls of rollouts no two of which have the same share."""
    flags = [
        rollout_of(f"own.flag-{i}") | {"fallthrough": {"rollout": i / 1000}}
        for i in range(1, COLD_COUNT + 1)
    ]
    asked = client_from(flags)
    found = [first_call(asked, flag["key"]) for flag in flags]
    for percent in (50, 99):
        name = f"W2 cold, of a body of its own, p{percent}"
        yield _result(name, [percentile(found, percent)], "us", details={"asked": len(found)})


def _first_shapes() -> Callable[[Plan], list[Result]]:
    """Return what measures first calls of flags whose shapes nobody has met before."""
    rules = iter(shapes())

    def attempt(plan: Plan) -> list[Result]:
        results: list[Result] = []
        for rule_count, bound in ((1, SHAPE_BOUND_MICROSECONDS), (5, None)):
            flags = [
                shaped(f"shapes.flag-{i}", list(islice(rules, rule_count)))
                for i in range(SHAPE_COUNT)
            ]
            asked = client_from(flags)
            found = [first_call(asked, flag["key"]) for flag in flags]
            results.append(
                Result(
                    benchmark="evaluate",
                    case=f"first of a shape, {rule_count} rule{'s' * (rule_count > 1)}",
                    value=statistics.median(found),
                    unit="us",
                    bound=None if plan.quick else bound,
                    details={"asked": len(found), "p99": percentile(found, 99)},
                )
            )
        return results

    return attempt


def shapes() -> Iterator[Mapping[str, Any]]:
    """Yield conditions of two tests; no two are of one shape."""
    for one, other in permutations(CONDITIONS, 2):
        if "app_version" in one:
            continue
        for operator in ("$or", "$and", "$nor"):
            yield {operator: [one, other]}


def shaped(key: str, conditions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return W2 behind some rules."""
    rules = [
        {"name": f"rule-{i}", "when": condition, "serve": "on"}
        for i, condition in enumerate(conditions)
    ]
    return rollout_of(key) | {"rules": rules}


def first_call(asked: Client, key: str) -> float:
    """Return the microseconds of a check."""
    start = time.thread_time_ns()
    asked.is_enabled(key, CONTEXT)
    return (time.thread_time_ns() - start) / 1000


def _result(
    case: str,
    values: Sequence[float],
    unit: str,
    bound: float | None = None,
    details: dict[str, object] | None = None,
) -> Result:
    return Result(
        benchmark="evaluate",
        case=case,
        value=statistics.median(values),
        unit=unit,
        bound=bound,
        details=details or {},
    )
