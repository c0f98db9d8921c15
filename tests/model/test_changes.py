"""The chain of changes, and the digests of states."""

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from flagkit._core.model.changes import (
    DIGEST_MODULUS,
    Change,
    PolicyChange,
    PolicyState,
    Tip,
    advance_digests,
    build_genesis_tip,
    build_next_change,
    build_state,
    compute_digests,
)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
GENESIS = build_genesis_tip("production", "epoch", NOON)


def state(key: str = "f", version: int = 1, *, region: str = "*", value: int = 0) -> PolicyState:
    return build_state(key, region, version, {"key": key, "value": value})


CREATED = PolicyChange(None, state())
UPDATED = PolicyChange(state(), state(version=2, value=1))
DELETED = PolicyChange(state(version=2, value=1), None)
SECOND = build_next_change(
    build_next_change(GENESIS, "first", NOON, [CREATED, PolicyChange(None, state("g"))]).tip,
    "second",
    NOON + timedelta(seconds=1),
    [UPDATED, PolicyChange(state("g"), None), PolicyChange(None, state("h", region="eu"))],
)
FIRST_TIP = build_next_change(GENESIS, "first", NOON, [CREATED, PolicyChange(None, state("g"))]).tip
# A new hash of old content would break the chain of every environment there is.
GOLDEN_GENESIS = "6c601fdac5dc988b4ee36c6738ba323750a457a55bbc996f224f1544e1b47489"
GOLDEN_SECOND = "2105574f2acf0e3f6f91c9bc322c44eaceca2cfc52ecaab8bbc8158f69daa999"
GOLDEN_STATE = 16340192134001668208


def test_a_change_leads_from_one_tip_to_the_next() -> None:
    change = build_next_change(GENESIS, "request", NOON + timedelta(seconds=1), [CREATED])
    assert change.revision == change.tip.revision == 1
    assert change.previous_hash == GENESIS.hash
    assert (change.tip.environment, change.tip.epoch) == ("production", "epoch")
    assert change.tip.time == NOON + timedelta(seconds=1)
    assert change.tip.digests == {"*": state().hash}
    assert change.continues(GENESIS)


def test_time_never_runs_backwards_along_the_chain() -> None:
    late = build_next_change(GENESIS, "a", NOON + timedelta(hours=1), [CREATED])
    early = build_next_change(late.tip, "b", NOON, [UPDATED])
    assert early.tip.time == late.tip.time
    assert early.continues(late.tip)


def test_the_genesis_of_each_environment_and_epoch_is_another() -> None:
    tips = [
        GENESIS,
        build_genesis_tip("staging", "epoch", NOON),
        build_genesis_tip("production", "another", NOON),
        build_genesis_tip("production", "epoch", NOON + timedelta(milliseconds=1)),
    ]
    assert len({tip.hash for tip in tips}) == 4
    assert {(tip.revision, len(tip.digests)) for tip in tips} == {(0, 0)}


def test_the_hash_of_a_known_history_never_changes() -> None:
    assert GENESIS.hash == GOLDEN_GENESIS
    assert SECOND.tip.hash == GOLDEN_SECOND
    assert state().hash == GOLDEN_STATE


def test_the_zone_that_a_time_is_written_in_does_not_count() -> None:
    east = timezone(timedelta(hours=5, minutes=30))
    assert build_genesis_tip("production", "epoch", NOON.astimezone(east)).hash == GENESIS.hash


def test_a_change_of_nothing_is_a_revision_too() -> None:
    change = build_next_change(GENESIS, "nothing", NOON, [])
    assert change.continues(GENESIS)
    assert change.tip.digests == GENESIS.digests


# Alterations


class Alteration(NamedTuple):
    name: str
    alter: Callable[[Change], Change]


def in_tip(name: str, alter: Callable[[Tip], Tip]) -> Alteration:
    return Alteration(f"tip.{name}", lambda change: replace(change, tip=alter(change.tip)))


def in_flag(name: str, alter: Callable[[PolicyChange], PolicyChange]) -> Alteration:
    return Alteration(
        f"policies[0].{name}",
        lambda change: replace(change, policies=(alter(change.policies[0]), *change.policies[1:])),
    )


def in_state(side: str, name: str, alter: Callable[[PolicyState], PolicyState]) -> Alteration:
    return in_flag(
        f"{side}.{name}", lambda flag: replace(flag, **{side: alter(getattr(flag, side))})
    )


ALTERATIONS = [
    in_tip("environment", lambda tip: replace(tip, environment="staging")),
    in_tip("epoch", lambda tip: replace(tip, epoch="another")),
    in_tip("revision higher", lambda tip: replace(tip, revision=tip.revision + 1)),
    in_tip("revision lower", lambda tip: replace(tip, revision=tip.revision - 1)),
    in_tip("hash", lambda tip: replace(tip, hash=GENESIS.hash)),
    in_tip("hash emptied", lambda tip: replace(tip, hash="")),
    in_tip("time", lambda tip: replace(tip, time=tip.time + timedelta(microseconds=1))),
    in_tip("digests", lambda tip: replace(tip, digests={**tip.digests, "*": 1})),
    in_tip("digests emptied", lambda tip: replace(tip, digests={})),
    in_tip(
        "digests of one region more", lambda tip: replace(tip, digests={**tip.digests, "us": 1})
    ),
    Alteration("request", lambda change: replace(change, request="third")),
    Alteration("previous_hash", lambda change: replace(change, previous_hash=GENESIS.hash)),
    Alteration(
        "policies reordered", lambda change: replace(change, policies=change.policies[::-1])
    ),
    Alteration("one policy less", lambda change: replace(change, policies=change.policies[1:])),
    Alteration("one policy twice", lambda change: replace(change, policies=change.policies * 2)),
    Alteration("no flags", lambda change: replace(change, policies=())),
    in_flag("before left out", lambda flag: replace(flag, before=None)),
    in_flag("after left out", lambda flag: replace(flag, after=None)),
    in_flag("sides swapped", lambda flag: PolicyChange(flag.after, flag.before)),
    *(
        alteration
        for side in ("before", "after")
        for alteration in (
            in_state(side, "key", lambda state: replace(state, key="x")),
            in_state(side, "region", lambda state: replace(state, region="eu")),
            in_state(side, "version", lambda state: replace(state, version=7)),
            in_state(side, "packed", lambda state: replace(state, packed=state.packed + b"\xc0")),
        )
    ),
    in_flag(
        "both sides' key",
        lambda flag: PolicyChange(
            *(side and replace(side, key="x") for side in (flag.before, flag.after))
        ),
    ),
]


def test_what_is_to_be_altered_continues_unaltered() -> None:
    assert SECOND.continues(FIRST_TIP)


@pytest.mark.parametrize("alteration", ALTERATIONS, ids=lambda alteration: alteration.name)
def test_an_altered_change_does_not_continue(alteration: Alteration) -> None:
    altered = alteration.alter(SECOND)
    assert altered != SECOND
    assert not altered.continues(FIRST_TIP)
    # Nor where the forger recomputes what the tip says of the flags.
    forged = replace(
        altered,
        tip=replace(altered.tip, digests=advance_digests(FIRST_TIP.digests, altered.policies)),
    )
    assert forged == SECOND or not forged.continues(FIRST_TIP)


def test_every_field_of_a_change_is_among_the_alterations() -> None:
    names = " ".join(alteration.name for alteration in ALTERATIONS)
    for struct in (Change, Tip, PolicyChange, PolicyState):
        for field in struct.__struct_fields__:
            # Parts are named by their own hashes, and held to them by the snapshot.
            assert field in names or (struct, field) == (Change, "parts")


@pytest.mark.parametrize(
    "tip",
    [
        GENESIS,
        SECOND.tip,
        replace(FIRST_TIP, environment="staging"),
        replace(FIRST_TIP, epoch="another"),
        replace(FIRST_TIP, hash=GENESIS.hash),
        replace(FIRST_TIP, revision=0),
        replace(FIRST_TIP, digests={}),
    ],
    ids=["earlier", "its own", "environment", "epoch", "hash", "revision", "digests"],
)
def test_a_change_continues_no_other_tip(tip: Tip) -> None:
    assert not SECOND.continues(tip)


def test_a_sealed_change_of_another_history_does_not_continue() -> None:
    fork = build_next_change(FIRST_TIP, "fork", NOON, [UPDATED])
    assert fork.continues(FIRST_TIP)
    assert not build_next_change(fork.tip, "third", NOON, []).continues(SECOND.tip)


# Digests

STATES = st.builds(
    state,
    st.sampled_from("abc"),
    st.integers(1, 3),
    region=st.sampled_from(["*", "eu", "us"]),
    value=st.integers(0, 3),
)


@given(st.lists(STATES), st.randoms(use_true_random=False))
def test_a_digest_does_not_depend_on_the_order(
    states: list[PolicyState], chance: random.Random
) -> None:
    shuffled = states.copy()
    chance.shuffle(shuffled)
    assert compute_digests(shuffled) == compute_digests(states)


@given(st.lists(STATES), st.lists(STATES))
def test_digests_add_up(some: list[PolicyState], others: list[PolicyState]) -> None:
    one, other, both = (
        compute_digests(some),
        compute_digests(others),
        compute_digests(some + others),
    )
    for region in ("*", "eu", "us"):
        total = one.get(region, 0) + other.get(region, 0)
        assert both.get(region, 0) == total % DIGEST_MODULUS
    assert all(0 < value < DIGEST_MODULUS for value in both.values())


@given(st.dictionaries(st.tuples(st.sampled_from(["*", "eu"]), st.sampled_from("abc")), STATES),
       st.data())  # fmt: skip
def test_advancing_a_digest_is_counting_anew(
    written: dict[tuple[str, str], PolicyState], data: st.DataObject
) -> None:
    held = {flag: replace(state, region=flag[0], key=flag[1]) for flag, state in written.items()}
    edits: list[PolicyChange] = []
    for flag in data.draw(
        st.lists(st.sampled_from([("*", "a"), ("eu", "b"), ("us", "c")]), max_size=4)
    ):
        after = data.draw(st.none() | STATES)
        before = held.pop(flag, None)
        if after is not None:
            held[flag] = after = replace(after, region=flag[0], key=flag[1])
        if before is not None or after is not None:
            edits.append(PolicyChange(before, after))
    start = compute_digests(
        replace(state, region=flag[0], key=flag[1]) for flag, state in written.items()
    )
    assert advance_digests(start, edits) == compute_digests(held.values())


def test_each_part_of_a_state_counts_in_its_hash() -> None:
    states = [
        state(),
        state("g"),
        state(version=2),
        state(region="eu"),
        state(value=1),
        PolicyState("*", "f", 1, state().packed),
        PolicyState("f*", "", 1, state().packed),
    ]
    assert len({each.hash for each in states}) == len(states)


def test_a_state_hands_out_its_own_copy_of_the_policy() -> None:
    first = state()
    first.policy["value"] = 99
    assert first.policy == {"key": "f", "value": 0}
    assert first.id == ("*", "f")


def test_the_id_of_a_flag_change_is_that_of_the_side_there_is() -> None:
    assert CREATED.id == UPDATED.id == DELETED.id == ("*", "f")
