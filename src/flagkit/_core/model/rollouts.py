"""Rollouts as intervals of buckets: resizing moves as few keys as possible.

A rollout stores intervals, because weights alone do not determine which keys are in. After 10 % ->
50 % -> 30 % the same keys are in as after 10 % -> 30 %. All arithmetic is on integers.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from flagkit.errors import InvalidDocumentError

BUCKETS = 100_000
PERCENT = BUCKETS // 100

Intervals: TypeAlias = "tuple[tuple[int, str], ...]"
"""Ascending (end, variant) pairs: each variant is served below its end, from the end before it."""


def parse_weight(percent: object, path: str) -> int:
    """Return a percentage in [0, 100], given to 0.001, as a share of BUCKETS."""
    if isinstance(percent, bool) or not isinstance(percent, int | float) or not 0 <= percent <= 100:  # noqa: PLR2004
        raise InvalidDocumentError(path, f"is {percent!r}", "Write a percentage from 0 to 100")
    share = round(percent * PERCENT)
    if abs(percent * PERCENT - share) > 1e-6:  # noqa: PLR2004 - far below a bucket, above float error
        raise InvalidDocumentError(
            path, f"is {percent!r}, finer than 0.001 %", "Round it to three decimals"
        )
    return share


def to_percent(share: int) -> int | float:
    """Return a share of BUCKETS as a percentage, as an integer if possible."""
    return share // PERCENT if share % PERCENT == 0 else share / PERCENT


def parse_shares(weights: Mapping[str, int | float], path: str) -> dict[str, int]:
    """Return weights in percent as shares of BUCKETS, which add up to BUCKETS.

    Raises:
        InvalidDocumentError: a weight is not a percentage, or they do not add up to 100 %.
    """
    found = {
        variant: parse_weight(share, f"{path}.{variant}") for variant, share in weights.items()
    }
    total = sum(found.values())
    if total != BUCKETS:
        raise InvalidDocumentError(
            path, f"add up to {to_percent(total)} %", "Make the weights add up to 100 %"
        )
    return found


def allocate(
    wanted: Mapping[str, int], current: Intervals = (), untreated: str | None = None
) -> Intervals:
    """Return intervals in which each variant has its wanted share of BUCKETS.

    Without `current` the variants lie in the order of `wanted`. Starting from it, exactly as many
    buckets change hands as the shares differ, which is the least possible. A variant gives from the
    end that faces the taker, so a share that grows and shrinks again has its first keys back.

    With an `untreated` variant, buckets that another variant gives go to it, and buckets that
    another takes come from it, as far as it has any. So as few buckets as possible move, without
    an exchange between treated variants.
    """
    if not current:
        ends = itertools.accumulate(wanted.values())
        return tuple(
            (end, variant)
            for end, (variant, share) in zip(ends, wanted.items(), strict=True)
            if share
        )
    segments = list_spans(current)
    owned = count_shares(current)
    order = [*dict.fromkeys((*wanted, *owned))]
    for giver, taker, count in _iter_transfers(wanted, owned, order, untreated):
        lowest = order.index(taker) < order.index(giver)
        segments = _move_buckets(segments, giver, taker, count, lowest=lowest)
    return _merge_segments(segments)


def count_shares(intervals: Intervals) -> dict[str, int]:
    """Return the share of BUCKETS that each variant has."""
    owned: dict[str, int] = {}
    for start, end, variant in list_spans(intervals):
        owned[variant] = owned.get(variant, 0) + end - start
    return owned


def _iter_transfers(
    wanted: Mapping[str, int], owned: Mapping[str, int], order: Sequence[str], untreated: str | None
) -> Iterator[tuple[str, str, int]]:
    """Yield who gives how many buckets to whom, in an order in which nobody passes any on."""
    surplus = {name: owned.get(name, 0) - wanted.get(name, 0) for name in order}
    if untreated is not None:
        left = owned.get(untreated, 0)
        for taker in order:
            if taker != untreated and (count := min(-surplus[taker], left)) > 0:
                yield untreated, taker, count
                left -= count
                surplus[taker] += count
                surplus[untreated] = surplus.get(untreated, 0) - count
    for taker in order:
        for giver in order:
            count = min(-surplus[taker], surplus[giver])
            if count > 0:
                yield giver, taker, count
                surplus[taker] += count
                surplus[giver] -= count


def list_spans(intervals: Intervals) -> list[tuple[int, int, str]]:
    """Return intervals as (start, end, variant) triples."""
    starts = [0, *(end for end, _ in intervals)]
    return [(start, end, variant) for start, (end, variant) in zip(starts, intervals, strict=False)]


def _move_buckets(
    segments: list[tuple[int, int, str]], giver: str, taker: str, count: int, *, lowest: bool
) -> list[tuple[int, int, str]]:
    result: list[tuple[int, int, str]] = []
    for start, end, variant in segments if lowest else reversed(segments):
        taken = min(count, end - start) if variant == giver else 0
        count -= taken
        if lowest:
            parts = [(start, start + taken, taker), (start + taken, end, variant)]
        else:
            parts = [(end - taken, end, taker), (start, end - taken, variant)]
        result += [part for part in parts if part[0] < part[1]]
    return result if lowest else result[::-1]


def _merge_segments(segments: Sequence[tuple[int, int, str]]) -> Intervals:
    merged: list[tuple[int, str]] = []
    for _, end, variant in segments:
        if merged and merged[-1][1] == variant:
            merged[-1] = (end, variant)
        else:
            merged.append((end, variant))
    return tuple(merged)
