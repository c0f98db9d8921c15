"""Intervals of rollouts: exact shares, and as few moved buckets as can be."""

import itertools
from functools import reduce

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flagkit._core.model.rollouts import (
    BUCKETS,
    Intervals,
    allocate,
    list_spans,
    parse_shares,
    parse_weight,
    to_percent,
)
from flagkit.errors import InvalidDocumentError


def on(percentage: float) -> dict[str, int]:
    share = parse_weight(percentage, "")
    return {"on": share, "off": BUCKETS - share}


def owners(intervals: Intervals) -> list[str]:
    """Return whose each bucket is."""
    return [variant for start, end, variant in list_spans(intervals) for _ in range(start, end)]


def owned(intervals: Intervals) -> dict[str, int]:
    found: dict[str, int] = {}
    for start, end, variant in list_spans(intervals):
        found[variant] = found.get(variant, 0) + end - start
    return found


def moved(before: Intervals, after: Intervals) -> int:
    """Return how many buckets have another owner, counted on the pieces between all ends."""
    cuts = sorted({0, *(end for end, _ in (*before, *after))})
    ours, theirs = (
        [next(variant for end, variant in intervals if start < end) for start in cuts[:-1]]
        for intervals in (before, after)
    )
    pieces = zip(itertools.pairwise(cuts), ours, theirs, strict=True)
    return sum(end - start for (start, end), one, other in pieces if one != other)


def buckets_of(variant: str, intervals: Intervals) -> set[tuple[int, int]]:
    return {(start, end) for start, end, owner in list_spans(intervals) if owner == variant}


def distance(before: dict[str, int], after: dict[str, int]) -> int:
    """Return half of how much the shares differ: no fewer buckets can move."""
    names = before.keys() | after.keys()
    return sum(abs(before.get(name, 0) - after.get(name, 0)) for name in names) // 2


# Examples


def test_variants_lie_in_the_order_of_the_weights() -> None:
    assert allocate({"b": 30_000, "a": 70_000}) == ((30_000, "b"), (100_000, "a"))
    assert allocate({"a": 70_000, "b": 30_000}) == ((70_000, "a"), (100_000, "b"))


def test_a_variant_without_weight_has_no_interval() -> None:
    assert allocate({"a": 0, "b": BUCKETS, "c": 0}) == ((BUCKETS, "b"),)
    assert allocate(on(0), allocate(on(100))) == ((BUCKETS, "off"),)


def test_10_to_50_to_10_percent_restores_the_same_intervals() -> None:
    ten = allocate(on(10))
    fifty = allocate(on(50), ten)
    assert ten == ((10_000, "on"), (100_000, "off"))
    assert fifty == ((50_000, "on"), (100_000, "off"))
    assert allocate(on(10), fifty) == ten


def test_the_same_weights_change_nothing() -> None:
    scattered = ((10, "a"), (50_000, "b"), (50_010, "a"), (100_000, "c"))
    assert allocate(owned(scattered), scattered) == scattered


def test_treated_variants_do_not_exchange_users_while_both_grow() -> None:
    five = allocate({"a": 5_000, "b": 5_000, "control": 90_000})
    twenty = allocate({"a": 20_000, "b": 20_000, "control": 60_000}, five)
    for variant in ("a", "b"):
        ours = [owners(intervals)[:10_000] for intervals in (five, twenty)]
        assert [i for i, owner in enumerate(ours[0]) if owner == variant] == [
            i for i, owner in enumerate(ours[1]) if owner == variant
        ]
    assert owned(twenty) == {"a": 20_000, "b": 20_000, "control": 60_000}


def test_a_new_variant_takes_from_those_that_shrink_only() -> None:
    before = allocate({"a": 50_000, "b": 50_000})
    after = allocate({"a": 50_000, "b": 20_000, "c": 30_000}, before)
    assert after == ((50_000, "a"), (70_000, "b"), (100_000, "c"))


def test_a_variant_that_is_no_longer_wanted_gives_all() -> None:
    before = allocate({"a": 40_000, "b": 20_000, "c": 40_000})
    after = allocate({"a": 50_000, "c": 50_000}, before)
    assert after == ((50_000, "a"), (100_000, "c"))


def test_a_tenth_of_a_hundredth_of_a_percent_is_one_bucket() -> None:
    assert allocate(on(0.001)) == ((1, "on"), (100_000, "off"))
    assert allocate(on(99.999)) == ((99_999, "on"), (100_000, "off"))


# Percentages


@pytest.mark.parametrize(
    ("percentage", "share"),
    [(0, 0), (0.001, 1), (33.333, 33_333), (33.334, 33_334), (66.667, 66_667), (100.0, BUCKETS),
     (0.1 + 0.2, 300), (1.1 + 2.2, 3_300), (-0.0, 0)],
)  # fmt: skip
def test_a_percentage_is_an_exact_share(percentage: float, share: int) -> None:
    assert parse_weight(percentage, "") == share


@given(st.integers(0, BUCKETS))
def test_each_share_survives_as_a_percentage(share: int) -> None:
    assert parse_weight(to_percent(share), "") == share
    assert parse_weight(float(f"{share / 1000:.3f}"), "") == share
    assert isinstance(to_percent(share), int) is (share % 1000 == 0)


@given(st.integers(0, BUCKETS - 1), st.floats(1e-5, 0.99999))
def test_a_percentage_finer_than_a_bucket_is_refused(share: int, fraction: float) -> None:
    with pytest.raises(InvalidDocumentError, match="finer than"):
        parse_weight((share + fraction) / 1000, "there")


@given(st.lists(st.integers(0, BUCKETS), max_size=4))
def test_weights_of_100_percent_are_accepted_and_no_others(parts: list[int]) -> None:
    weights = {str(i): to_percent(share) for i, share in enumerate(parts)}
    rest = BUCKETS - sum(parts)
    if rest >= 0:
        total = weights | {"rest": to_percent(rest)}
        assert sum(parse_shares(total, "weights").values()) == BUCKETS
    if rest:
        with pytest.raises(InvalidDocumentError, match="100 %"):
            parse_shares(weights, "weights")


# Properties


@st.composite
def weightings(draw: st.DrawFn, total: int = BUCKETS, names: str = "abcd") -> dict[str, int]:
    taking = draw(st.lists(st.sampled_from(names), min_size=1, max_size=4, unique=True))
    ends = sorted(draw(st.integers(0, total)) for _ in taking[1:])
    pieces = itertools.pairwise([0, *ends, total])
    return {name: end - start for name, (start, end) in zip(taking, pieces, strict=True)}


HISTORIES = st.lists(weightings(), min_size=1, max_size=6)


def after(history: list[dict[str, int]]) -> Intervals:
    start: Intervals = ()
    return reduce(lambda intervals, wanted: allocate(wanted, intervals), history, start)


@settings(max_examples=300)
@given(HISTORIES)
def test_after_any_history_the_shares_are_exact(history: list[dict[str, int]]) -> None:
    intervals = after(history)
    assert owned(intervals) == {name: share for name, share in history[-1].items() if share}
    ends = [end for end, _ in intervals]
    assert ends == sorted(set(ends))
    assert ends[-1] == BUCKETS
    assert all(one != other for (_, one), (_, other) in itertools.pairwise(intervals))


@settings(max_examples=300)
@given(HISTORIES, weightings())
def test_no_more_buckets_move_than_the_shares_differ(
    history: list[dict[str, int]], wanted: dict[str, int]
) -> None:
    before = after(history)
    assert moved(before, allocate(wanted, before)) == distance(history[-1], wanted)


@settings(max_examples=300)
@given(HISTORIES, weightings(), st.data())
def test_a_share_that_does_not_fall_loses_no_bucket(
    history: list[dict[str, int]], wanted: dict[str, int], data: st.DataObject
) -> None:
    before = after(history)
    grown = [name for name, share in wanted.items() if share >= owned(before).get(name, 0)]
    assume(grown)
    variant = data.draw(st.sampled_from(grown))
    now = allocate(wanted, before)
    for start, end in buckets_of(variant, before):
        assert any(low <= start and end <= high for low, high in buckets_of(variant, now))


@given(weightings(), weightings())
def test_a_share_that_grows_and_shrinks_again_has_its_first_buckets(
    first: dict[str, int], second: dict[str, int]
) -> None:
    # One variant grows and all others give, or keep.
    grown = [name for name in first if second.get(name, 0) > first[name]]
    assume(len(grown) == 1)
    assume(all(name in first for name in second))
    start = allocate(first)
    back = allocate(first, allocate({name: second.get(name, 0) for name in first}, start))
    assert buckets_of(grown[0], back) == buckets_of(grown[0], start)


@given(st.lists(st.integers(0, BUCKETS), min_size=1))
def test_two_variants_never_remember_the_way(path: list[int]) -> None:
    history = [{"on": share, "off": BUCKETS - share} for share in path]
    assert after(history) == allocate(history[-1])


def cheapest(before: list[str], wanted: dict[str, int]) -> int:
    """Return the fewest moves by trying every assignment of a few buckets."""
    wished = [name for name, share in wanted.items() for _ in range(share)]
    assignments = set(itertools.permutations(wished))
    return min(
        sum(one != other for one, other in zip(before, assignment, strict=True))
        for assignment in assignments
    )


@settings(max_examples=100)
@given(
    st.lists(weightings(total=6, names="abc"), min_size=1, max_size=4),
    weightings(total=6, names="abc"),
)
def test_no_other_assignment_moves_fewer(
    history: list[dict[str, int]], wanted: dict[str, int]
) -> None:
    before = after(history)
    found = owners(allocate(wanted, before))
    assert {name: found.count(name) for name in wanted} == wanted
    made = sum(one != other for one, other in zip(owners(before), found, strict=True))
    assert made == cheapest(owners(before), wanted)


# Treated variants: what is not "c" is treated


def exchanges(before: list[str], after: list[str], untreated: str = "c") -> int:
    pairs = zip(before, after, strict=True)
    return sum(one != other and untreated not in (one, other) for one, other in pairs)


def test_what_a_treated_variant_gives_goes_to_the_untreated_one() -> None:
    before = allocate({"a": 30_000, "b": 30_000, "off": 40_000})
    wanted = {"a": 20_000, "b": 40_000, "off": 40_000}
    after = allocate(wanted, before, "off")
    assert owned(after) == wanted
    assert after == ((20_000, "a"), (30_000, "off"), (70_000, "b"), (100_000, "off"))
    direct = allocate(wanted, before)
    assert direct == ((20_000, "a"), (60_000, "b"), (100_000, "off"))


def test_without_enough_untreated_some_have_to_be_exchanged() -> None:
    before = allocate({"a": 70_000, "b": 20_000, "off": 10_000})
    after = allocate({"a": 40_000, "b": 50_000, "off": 10_000}, before, "off")
    assert exchanges(owners(before), owners(after), "off") == 20_000


@settings(max_examples=300)
@given(HISTORIES, weightings())
def test_shares_are_exact_whichever_way_buckets_go(
    history: list[dict[str, int]], wanted: dict[str, int]
) -> None:
    before = after(history)
    now = allocate(wanted, before, "c")
    assert owned(now) == {name: share for name, share in wanted.items() if share}


@settings(max_examples=100)
@given(
    st.lists(weightings(total=6, names="abc"), min_size=1, max_size=4),
    weightings(total=6, names="abc"),
)
def test_no_other_assignment_exchanges_fewer_nor_moves_fewer_at_that(
    history: list[dict[str, int]], wanted: dict[str, int]
) -> None:
    before = owners(after(history))
    found = owners(allocate(wanted, after(history), "c"))
    wished = [name for name, share in wanted.items() for _ in range(share)]
    costs = {
        (
            exchanges(before, list(other)),
            sum(one != two for one, two in zip(before, other, strict=True)),
        )
        for other in set(itertools.permutations(wished))
    }
    made = sum(one != two for one, two in zip(before, found, strict=True))
    assert (exchanges(before, found), made) == min(costs)
