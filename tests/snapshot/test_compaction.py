"""Folding: an arena and what has changed since, made one, is an arena built anew."""

import random
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from flagkit._core.cooperative import run_slices
from flagkit._core.model.changes import PolicyId, build_genesis_tip
from flagkit._core.snapshot import Arena, Record, build_arena, compaction
from flagkit._core.snapshot.arena import BLOCK_KEYS
from flagkit._core.snapshot.chunks import (
    SLICE_BYTES,
    SORTED_AT_ONCE,
    Chunks,
    allocate_zeroed,
    copy_in_slices,
    release_pages,
    sort_in_slices,
)
from flagkit._core.snapshot.compaction import (
    EDIT_RUN,
    GAPS_MIN,
    RUN_SLICE,
    _Edit,
    _Edits,
    compact_arena,
)
from flagkit._core.snapshot.layout import Columns
from tests.snapshot.test_arena import KEYS, MODELS, RECORDS, TIP, Model, assert_same

NEXT = replace(
    build_genesis_tip("production", "epoch", datetime(2026, 1, 2, tzinfo=UTC)), revision=7
)

Edits = Mapping[PolicyId, Record | None]
IDS = st.tuples(st.sampled_from(["*", "eu", "us"]), KEYS)


@pytest.fixture
def rebuilds(monkeypatch: pytest.MonkeyPatch) -> list[Arena]:
    """The bases that were built anew and not merged."""
    bases: list[Arena] = []
    rebuilt = compaction._rebuild

    def noted(base: Arena, *rest: Any) -> Any:
        bases.append(base)
        return rebuilt(base, *rest)

    monkeypatch.setattr(compaction, "_rebuild", noted)
    return bases


def after(model: Model, edits: Edits) -> dict[PolicyId, Record]:
    edited = {identity: record for identity, record in model.items() if identity not in edits}
    return edited | {identity: record for identity, record in edits.items() if record is not None}


def record(key: str, version: int = 1, body: bytes = b"body", region: str = "*") -> Record:
    return Record(region, key, version, hash((key, version)) % 2**64, body)


def plain(count: int) -> dict[PolicyId, Record]:
    return {("*", key): record(key) for key in (f"flag-{i:06}" for i in range(count))}


# What comes of it


@given(MODELS, st.lists(st.dictionaries(IDS, st.none(), max_size=5), max_size=4), st.data())
def test_folds_one_after_the_other_are_building_anew(
    model: Model, removals: list[dict[PolicyId, None]], data: st.DataObject
) -> None:
    base = build_arena(TIP, model.values())
    for removed in removals:
        there = data.draw(st.sets(st.sampled_from(sorted(model)), max_size=9)) if model else set()
        added = data.draw(st.lists(RECORDS, max_size=20))
        news = {edit.id: edit for edit in added}
        edits: Edits = {**removed, **dict.fromkeys(there), **news}
        model = after(model, edits)
        part = memoryview(data.draw(st.binary(max_size=3))).cast("B")
        base = run_slices(compact_arena(base, NEXT, edits, {"name": bytes(part) * 8}))
        assert_same(base, model)
        assert base.tip == NEXT
        assert base.get_part("name").tobytes() == bytes(part) * 8
        assert_same(Arena(bytes(base.content)), model)
        anew = build_arena(NEXT, model.values()).header
        assert (base.header.counts, base.header.digests) == (anew.counts, anew.digests)
        assert base.header.directory_bits == anew.directory_bits


EDITS: Mapping[str, Callable[[], Edits]] = {
    "none": dict,
    "edits": lambda: {("*", f"flag-{i:06}"): record(f"flag-{i:06}", 2) for i in range(0, 180, 9)},
    "one new": lambda: {("*", "flag-000100x"): record("flag-000100x")},
    "new ones before all": lambda: {("*", key): record(key) for key in "abc"},
    "new ones after all": lambda: {("*", f"z{i}"): record(f"z{i}") for i in range(99)},
    "all gone": lambda: dict.fromkeys(plain(200)),
    "all gone but one": lambda: dict.fromkeys([*plain(200)][1:]),
    "what was never there gone": lambda: {("*", "x"): None, ("us", "flag-000001"): None},
    "a new region": lambda: {("eu", "flag-000001"): record("flag-000001", region="eu")},
    "each replaced by another": lambda: (
        dict.fromkeys(plain(200))
        | {("eu", f"g{i}"): record(f"g{i}", region="eu") for i in range(200)}
    ),
}


@pytest.mark.parametrize("edits", [make() for make in EDITS.values()], ids=EDITS)
def test_edits_of_each_kind_are_merged(edits: Edits, rebuilds: list[Arena]) -> None:
    model = plain(200)
    base = run_slices(compact_arena(build_arena(TIP, model.values()), NEXT, edits, {}))
    assert_same(base, after(model, edits))
    assert rebuilds == []


def test_a_region_that_is_emptied_comes_and_goes() -> None:
    there = {("eu", "f"): record("f", region="eu")}
    base = build_arena(TIP, plain(3).values())
    for edits in (there, dict.fromkeys(there), there, dict.fromkeys({**there, **plain(3)})):
        base = run_slices(compact_arena(base, NEXT, edits, {}))
        assert ("eu" in base.header.names) == ("eu" in base.header.counts) == (edits is there)
    assert_same(base, {})


def test_parts_are_those_that_are_given() -> None:
    base = build_arena(TIP, plain(3).values())
    for parts in ({"a": b"12345678", "b": b""}, {"c": b"87654321" * 200_000}, {}):
        base = run_slices(compact_arena(base, NEXT, {}, parts))
        assert {name: base.get_part(name).tobytes() for name in base.header.parts} == parts


# When it is built anew


@pytest.mark.parametrize("version", [256, 2**40])
def test_a_version_that_does_not_fit_leads_to_a_new_arena(
    version: int, rebuilds: list[Arena]
) -> None:
    model = plain(100)
    edits = {("*", "flag-000007"): record("flag-000007", version)}
    base = run_slices(compact_arena(build_arena(TIP, model.values()), NEXT, edits, {}))
    assert len(rebuilds) == 1
    assert_same(base, after(model, edits))


def test_gaps_are_let_be_until_they_may_be_half_of_all(rebuilds: list[Arena]) -> None:
    body = bytes(GAPS_MIN // 8)
    model = {("*", key): record(key, body=b"%d" % i + body) for i, key in enumerate("abcdefghij")}
    base = build_arena(TIP, model.values())
    packed_bytes = base.header.packed_bytes
    lengths: list[int] = []
    while not rebuilds:
        version = len(lengths) + 2
        edits = {("*", "a"): record("a", version, b"version %d" % version + body)}
        model = after(model, edits)
        base = run_slices(compact_arena(base, NEXT, edits, {}))
        assert_same(base, model)
        lengths.append(base.header.sections["bodies"].length)
    assert max(lengths) <= 2 * packed_bytes + GAPS_MIN < max(lengths) + len(body) + 20
    assert lengths == [*sorted(lengths[:-1]), lengths[-1]]
    assert abs(lengths[-1] - packed_bytes) < 20
    assert base.header.packed_bytes == lengths[-1]


def test_blocks_of_keys_that_have_fallen_apart_are_made_anew(
    rebuilds: list[Arena], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "BLOCKS_MIN", 8)
    model: dict[PolicyId, Record] = plain(40 * BLOCK_KEYS)
    base = build_arena(TIP, model.values())
    # Of each block but one key.
    edits = dict.fromkeys([identity for i, identity in enumerate(model) if i % BLOCK_KEYS])
    model = after(model, edits)
    base = run_slices(compact_arena(base, NEXT, edits, {}))
    assert rebuilds == []
    base = run_slices(compact_arena(base, NEXT, {}, {}))
    assert len(rebuilds) == 1
    assert_same(base, model)
    assert base.header.names["*"][0].length // 4 == -(-len(model) // BLOCK_KEYS)


def test_keys_that_come_one_by_one_fill_their_blocks() -> None:
    chance = random.Random(4)
    model: dict[PolicyId, Record] = plain(200)
    base = build_arena(TIP, model.values())
    for i in range(300):
        key = f"flag-{chance.randrange(200):06}.{i}"
        model["*", key] = record(key)
        base = run_slices(compact_arena(base, NEXT, {("*", key): record(key)}, {}))
    assert_same(base, model)
    assert base.header.names["*"][0].length // 4 <= len(model) / (BLOCK_KEYS / 2)


# In slices


@pytest.mark.parametrize("step", [7, 1000, 8191, 65_537, 200_000], ids="each {}th".format)
def test_no_slice_copies_more_records_than_are_copied_at_once(step: int) -> None:
    count = 200_000
    old, new = columns(range(1, count + 1)), columns([0] * count)
    edits = _Edits(build_arena(TIP, []))
    edits.offsets = {b"": 0}
    edits.edits += [
        _Edit(place + 1, ("*", "f"), place, True, Record("*", "f", 1, place + 1, b""))
        for place in range(0, count, step)
    ]
    edit_count = len(edits.edits)
    slices = compaction._merge_columns(old, new, edits)
    ends = (bisect_left(new.hashes, True, key=lambda number: number == 0) for _ in slices)
    done = [0, *ends, count]
    assert max(later - earlier for earlier, later in pairwise(done)) <= RUN_SLICE
    assert len(done) <= 3 + (count + edit_count * EDIT_RUN) // (RUN_SLICE - EDIT_RUN)
    for source, target in zip(old[1:4], new[1:4], strict=True):
        assert source == target


def columns(numbers: Iterable[int]) -> Columns:
    wide = array("Q", numbers)
    narrow = array("I", bytes(4 * len(wide)))
    ones = array("Q", wide)
    versions = array("Q", [1] * len(wide))
    return Columns(
        directory=memoryview(narrow),
        hashes=memoryview(wide),
        states=memoryview(ones),
        versions=memoryview(versions),
        offsets=memoryview(narrow),
        bodies=memoryview(b""),
    )


def test_copies_and_sorts_are_made_in_pieces() -> None:
    content = random.Random(5).randbytes(5 * SLICE_BYTES // 2)
    target = allocate_zeroed(len(content))
    assert target.tobytes() == bytes(len(content))
    steps = [target.tobytes().rstrip(b"\0") for _ in copy_in_slices(memoryview(content), target)]
    assert [len(step) for step in steps] == [SLICE_BYTES, 2 * SLICE_BYTES, len(content)]
    assert target == content
    numbers = random.Random(6).sample(range(10**6), 5000)
    ordered = sort_in_slices(numbers)
    assert sum(1 for _ in ordered) == len(numbers) // SORTED_AT_ONCE
    assert list(run_slices(sort_in_slices(numbers))) == sorted(numbers)


def test_what_grows_is_one_run_in_the_end() -> None:
    chance = random.Random(6)
    pieces = [chance.randbytes(SLICE_BYTES // 7) for _ in range(20)]
    chunks = Chunks()
    starts = []
    for piece in pieces:
        starts.append(len(chunks))
        chunks.append(piece)
    assert [chunks.get_tail(start)[: len(pieces[0])] for start in starts] == pieces
    with pytest.raises(IndexError):
        chunks.get_tail(len(chunks))
    assert chunks.join() == b"".join(pieces)
    target = allocate_zeroed(len(chunks))
    assert sum(1 for _ in chunks.move_into(target)) == 3
    assert target == b"".join(pieces)
    assert (len(chunks), chunks.join()) == (0, b"")


def test_what_is_given_back_is_blank_again() -> None:
    memory = allocate_zeroed(5 * SLICE_BYTES // 2)
    memory[:] = b"x" * len(memory)
    assert sum(1 for _ in release_pages(memory[SLICE_BYTES:])) == 3
    assert memory.tobytes() == bytes(len(memory))


def test_what_is_short_is_freed_at_once_and_not_given_back() -> None:
    memory = allocate_zeroed(SLICE_BYTES - 1)
    memory[:1] = b"x"
    assert sum(1 for _ in release_pages(memory)) == 0
    assert memory[:1].tobytes() == b"x"


@pytest.mark.parametrize("count", [0, 1, SORTED_AT_ONCE, SORTED_AT_ONCE + 1], ids=str)
def test_what_is_short_needs_no_pause(count: int) -> None:
    assert sum(1 for _ in sort_in_slices([*range(count)])) == (count > SORTED_AT_ONCE)
    assert list(run_slices(sort_in_slices([*range(count)][::-1]))) == [*range(count)]
