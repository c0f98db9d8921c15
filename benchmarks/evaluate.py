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
from benchmarks.interleave import compute_ratios, create_timer, time_interleaved
from benchmarks.report import MeasurementPlan, Result, compute_percentile, measure_with_retries
from benchmarks.workloads import CONTEXT, FLAGS, HASHES, VARIANTS, W1, W2, W3, WORKLOADS, Workload
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


def create_client() -> Client:
    """Return the client that W1 to W3 are measured on."""
    return client_from(FLAGS)


def run(plan: MeasurementPlan) -> Iterator[Result]:
    """Measure hot flags, many hot keys, one hot flag among many, and cold flags among many."""
    round_count = 15 if plan.quick else 75
    asked = create_client()
    for case in WORKLOADS:
        yield from measure_with_retries(
            functools.partial(_measure_by_hand, asked, case, round_count)
        )
        yield from measure_with_retries(
            functools.partial(_measure_counting, asked, case, plan, round_count)
        )
    hot = shuffle_hot_keys(random.Random(SEED))
    table = build_by_hand_table(hot)
    many_keys = client_from(build_rollout(key) for key in hot)
    yield from measure_with_retries(
        lambda: _measure_hot_keys(many_keys, table, hot, max(round_count // 5, 5))
    )
    few = catalogue.store_catalogue(FEW_FLAGS).create_client()
    many = catalogue.store_catalogue(plan.flag_count).create_client()
    yield from measure_with_retries(lambda: _measure_catalogue_size(few, many, plan, round_count))
    yield from _measure_cold(many, plan)
    yield from _measure_cold_bodies()
    yield from measure_with_retries(functools.partial(_build_shape_benchmark(), plan))


def _measure_by_hand(asked: Client, case: Workload, round_count: int) -> list[Result]:
    names = {"key": case.key, "context": dict(CONTEXT)}
    ours, by_hand, look_up = time_interleaved(
        (
            create_timer("client.is_enabled(key, context)", client=asked, **names),
            create_timer("by_hand(key, context)", by_hand=case.by_hand, **names),
            create_timer("table[key]", table=dict.fromkeys((W1, W2, W3), True), **names),
        ),
        round_count,
    )
    to_hand = compute_ratios(ours, by_hand)
    details: dict[str, object] = {
        "flagkit_ns": statistics.median(ours),
        "by_hand_ns": statistics.median(by_hand),
        "dict_look_up_ns": statistics.median(look_up),
        "round_count": round_count,
        "quartiles": [compute_percentile(to_hand, 25), compute_percentile(to_hand, 75)],
    }
    to_look_up = statistics.median(compute_ratios(ours, look_up))
    return [
        _build_result(f"{case.name} flagkit / by hand", to_hand, "x", case.bound, details),
        _build_result(f"{case.name} flagkit", ours, "ns"),
        _build_result(f"{case.name} by hand", by_hand, "ns"),
        _build_result(f"{case.name} a dict look-up", look_up, "ns"),
        _build_result(f"{case.name} flagkit / a dict look-up", [to_look_up], "x"),
    ]


def _measure_counting(
    asked: Client, case: Workload, plan: MeasurementPlan, round_count: int
) -> list[Result]:
    assert asked.snapshot is not None, "it is of a snapshot"
    names = {"key": case.key, "context": dict(CONTEXT)}
    statement = "client.is_enabled(key, context)"
    plain, counted = time_interleaved(
        [
            create_timer(statement, client=client, **names)
            for client in (asked, CountingClient.from_snapshot(asked.snapshot))
        ],
        round_count,
    )
    added = [with_counts - without for with_counts, without in zip(counted, plain, strict=True)]
    bound = None if plan.quick else COUNTING_BOUND_NANOSECONDS
    return [_build_result(f"{case.name} counting adds", added, "ns", bound)]


def shuffle_hot_keys(chance: random.Random) -> list[str]:
    """Return keys of the catalogue, in no order."""
    keys = [document["key"] for document in catalogue.iter_documents(HOT_KEY_COUNT)]
    chance.shuffle(keys)
    return keys


def build_rollout(key: str) -> dict[str, Any]:
    """Return W2 under another key."""
    return {"key": key, "variants": VARIANTS, "fallthrough": {"rollout": 50}}


def build_by_hand_table(
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


def _measure_hot_keys(
    asked: Client,
    by_hand: Callable[[str, dict[str, Any]], bool],
    keys: Sequence[str],
    round_count: int,
) -> list[Result]:
    context = dict(CONTEXT)
    loop = "for key in keys: check(key, context)"
    times = time_interleaved(
        [
            create_timer(loop, check=check, keys=keys, context=context)
            for check in (asked.is_enabled, by_hand)
        ],
        round_count,
    )
    ours, theirs = ([value / len(keys) for value in values] for values in times)
    name = f"W2 over {len(keys):,} keys"
    return [
        _build_result(
            f"{name}, flagkit / by hand", compute_ratios(ours, theirs), "x", HOT_KEYS_BOUND
        ),
        _build_result(f"{name}, flagkit", ours, "ns"),
        _build_result(f"{name}, by hand", theirs, "ns"),
    ]


def _measure_catalogue_size(
    few: Client, many: Client, plan: MeasurementPlan, round_count: int
) -> list[Result]:
    context = dict(CONTEXT)
    statement = "client.is_enabled(key, context)"
    among_many, among_few = time_interleaved(
        [create_timer(statement, client=asked, key=W2, context=context) for asked in (many, few)],
        round_count,
    )
    name = f"W2 of {plan.flag_count:,} flags"
    return [
        _build_result(
            f"{name} / of {FEW_FLAGS:,}", compute_ratios(among_many, among_few), "x", SIZE_BOUND
        ),
        _build_result(name, among_many, "ns"),
    ]


def _measure_cold(asked: Client, plan: MeasurementPlan) -> Iterator[Result]:
    """Measure first calls of flags that are rollouts, whose shape is known since the first."""
    asked.is_enabled(W2, CONTEXT)
    keys = catalogue.iter_keys(catalogue.ROLLOUT, plan.flag_count)
    # Flags are cold once, so each attempt takes the next of them, spread over the catalogue.
    count = min(COLD_COUNT, plan.flag_count // 20)
    shuffled = list(islice(keys, plan.flag_count))
    random.Random(SEED).shuffle(shuffled)
    cold = iter(shuffled)

    def attempt() -> list[Result]:
        found = [time_first_call(asked, key) for key in islice(cold, count)]
        details: dict[str, object] = {"flag_count": plan.flag_count, "asked": len(found)}
        name = f"W2 cold, of {plan.flag_count:,}"
        return [
            Result(
                benchmark="evaluate",
                case=f"{name}, p{percent}",
                value=compute_percentile(found, percent),
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

    yield from measure_with_retries(attempt)


def _measure_cold_bodies() -> Iterator[Result]:
    """Measure first calls of rollouts no two of which have the same share."""
    flags = [
        build_rollout(f"own.flag-{i}") | {"fallthrough": {"rollout": i / 1000}}
        for i in range(1, COLD_COUNT + 1)
    ]
    asked = client_from(flags)
    found = [time_first_call(asked, flag["key"]) for flag in flags]
    for percent in (50, 99):
        name = f"W2 cold, of a body of its own, p{percent}"
        yield _build_result(
            name, [compute_percentile(found, percent)], "us", details={"asked": len(found)}
        )


def _build_shape_benchmark() -> Callable[[MeasurementPlan], list[Result]]:
    """Return what measures first calls of flags whose shapes nobody has met before."""
    rules = iter(iter_shapes())

    def attempt(plan: MeasurementPlan) -> list[Result]:
        results: list[Result] = []
        for rule_count, bound in ((1, SHAPE_BOUND_MICROSECONDS), (5, None)):
            flags = [
                build_shaped_flag(f"shapes.flag-{i}", list(islice(rules, rule_count)))
                for i in range(SHAPE_COUNT)
            ]
            asked = client_from(flags)
            found = [time_first_call(asked, flag["key"]) for flag in flags]
            results.append(
                Result(
                    benchmark="evaluate",
                    case=f"first of a shape, {rule_count} rule{'s' * (rule_count > 1)}",
                    value=statistics.median(found),
                    unit="us",
                    bound=None if plan.quick else bound,
                    details={"asked": len(found), "p99": compute_percentile(found, 99)},
                )
            )
        return results

    return attempt


def iter_shapes() -> Iterator[Mapping[str, Any]]:
    """Yield conditions of two tests; no two are of one shape."""
    for one, other in permutations(CONDITIONS, 2):
        if "app_version" in one:
            continue
        for operator in ("$or", "$and", "$nor"):
            yield {operator: [one, other]}


def build_shaped_flag(key: str, conditions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return W2 behind some rules."""
    rules = [
        {"name": f"rule-{i}", "when": condition, "serve": "on"}
        for i, condition in enumerate(conditions)
    ]
    return build_rollout(key) | {"rules": rules}


def time_first_call(asked: Client, key: str) -> float:
    """Return the microseconds of a check."""
    start = time.thread_time_ns()
    asked.is_enabled(key, CONTEXT)
    return (time.thread_time_ns() - start) / 1000


def _build_result(
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
