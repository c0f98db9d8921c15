"""The arena: as a dict of records, in one run of bytes."""

import random
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.catalogue import iter_documents
from flagkit._core.cooperative import run_slices
from flagkit._core.model import decode, packing
from flagkit._core.model.changes import DIGEST_MODULUS, PolicyId, build_genesis_tip
from flagkit._core.snapshot import Arena, Record, arena, build_arena, builder, compaction
from flagkit._core.snapshot.arena import (
    BLOCK_KEYS,
    BLOCK_KEYS_MAX,
    KeyIndex,
    KeyIndexWriter,
    compute_key_hash,
    encode_key,
)
from flagkit._core.snapshot.compaction import compact_arena
from flagkit._core.snapshot.layout import decode_varint, encode_varint

TIP = build_genesis_tip("production", "epoch", datetime(2026, 1, 1, tzinfo=UTC))
REGIONS = ("*", "eu", "@segments")

Model: TypeAlias = Mapping[PolicyId, Record]


def modelled(records: Iterable[Record]) -> Model:
    return {record.id: record for record in records}


KEYS = st.one_of(
    st.sampled_from(["", "a", "a.b", "a.b.c", "ab", "é", "\ud800", "\U0001f600", "x" * 300]),
    st.text("ab.", max_size=6),
    st.text(st.characters(codec=None), max_size=4),
)
BODIES = st.one_of(
    st.sampled_from([b"", b"one", b"two"]),
    st.binary(max_size=8),
    st.builds(bytes, st.sampled_from([127, 128, 16_383, 16_384, 100_000])),
)
RECORDS = st.builds(
    Record,
    st.sampled_from(REGIONS),
    KEYS,
    st.one_of(st.integers(0, 300), st.integers(0, 2**40)),
    st.integers(0, 2**64 - 1),
    BODIES,
)
MODELS = st.lists(RECORDS, max_size=60).map(modelled)


def assert_same(found: Arena, model: Model) -> None:
    """Hold an arena to a dict of what should be in it."""
    assert found.count == len(model)
    for region in (*REGIONS, "us"):
        keys = sorted(key for place, key in model if place == region)
        assert list(found.iter_keys(region)) == keys
        assert list(found.iter_records(region)) == [model[region, key] for key in keys]
        for key in (*keys, "", "a", "a.", "nobody", "\ud800", "\U0010ffff"):
            assert found.find(region, key) == model.get((region, key))
            for prefix in (key, key[:1], key[:-1]):
                wanted = [name for name in keys if name.startswith(prefix)]
                assert list(found.iter_keys(region, prefix)) == wanted
    counts = {region: sum(place == region for place, _ in model) for region in REGIONS}
    assert found.header.counts == {region: count for region, count in counts.items() if count}
    digests = {
        region: sum(record.hash for record in model.values() if record.region == region)
        for region in REGIONS
    }
    wrapped = {region: digest % DIGEST_MODULUS for region, digest in digests.items()}
    assert found.header.digests == {region: digest for region, digest in wrapped.items() if digest}


# What is in it


@given(MODELS)
def test_an_arena_is_a_dict_of_records(model: Model) -> None:
    found = build_arena(TIP, model.values())
    assert_same(found, model)
    assert found.tip == TIP
    again = Arena(bytes(found.content))
    assert_same(again, model)
    assert again.header == found.header


@given(MODELS)
def test_equal_bodies_are_stored_once(model: Model) -> None:
    header = build_arena(TIP, model.values()).header
    bodies = {record.body for record in model.values()}
    stored = sum(len(encode_varint(len(body)) + body) for body in bodies)
    assert header.sections["bodies"].length == stored == header.packed_bytes


def test_an_empty_arena_has_nothing() -> None:
    assert_same(build_arena(TIP, []), {})


@pytest.mark.parametrize("version", [0, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, 2**64 - 1])
def test_versions_take_as_many_bytes_as_the_greatest_needs(version: int) -> None:
    model = modelled([Record("*", "a", version, 1, b""), Record("*", "b", 1, 2, b"")])
    found = build_arena(TIP, model.values())
    assert_same(found, model)
    assert found.header.sections["versions"].length == 2 * found.header.version_bytes
    assert version < 256**found.header.version_bytes
    assert found.header.version_bytes == 1 or version >= 256 ** (found.header.version_bytes // 2)


@given(st.integers(0, 2**35), st.binary(max_size=3))
def test_a_length_is_read_where_it_was_written(length: int, before: bytes) -> None:
    content = before + encode_varint(length) + b"\x00"
    assert decode_varint(memoryview(content), len(before)) == (length, len(content) - 1)


# Its size


@pytest.mark.parametrize(
    ("count", "bytes_max"),
    # The fewer keys there are, the less has each in common with its neighbour.
    [(2_000, 80), pytest.param(100_000, 70, marks=pytest.mark.slow)],
)
def test_a_flag_of_the_catalogue_takes_few_bytes(count: int, bytes_max: int) -> None:
    chance = random.Random(8)
    flags = map(decode, iter_documents(count))
    records = [
        Record("*", flag.key, 1, chance.getrandbits(64), packing.pack(flag)) for flag in flags
    ]
    found = build_arena(TIP, records)
    assert found.count == count
    assert len(found.content) <= bytes_max * count


# Listing


class CountingNames(KeyIndex):
    """Names that take note of the blocks that are read whole."""

    __slots__ = ("read",)

    def __init__(self, starts: memoryview, text: memoryview) -> None:
        super().__init__(starts, text)
        self.read: list[int] = []

    def iter_block(self, number: int) -> Iterator[bytes]:
        self.read.append(number)
        return super().iter_block(number)


def test_listing_reads_only_the_blocks_that_may_have_the_prefix() -> None:
    keys = [f"team{i // 100:02}.flag{i % 100:02}" for i in range(10_000)]
    writer = KeyIndexWriter()
    for key in keys:
        writer.write(key.encode())
    names = CountingNames(memoryview(writer.starts), memoryview(writer.text.join()))
    assert len(writer.starts) == len(keys) // BLOCK_KEYS
    for prefix in ("team42.", "team42.flag17", "team00", "team99.flag99", "nobody", "z", ""):
        names.read.clear()
        listed = list(names.iter_with_prefix(prefix))
        assert listed == [key for key in keys if key.startswith(prefix)]
        assert len(names.read) <= len(listed) // BLOCK_KEYS + 2
        assert names.read == sorted(set(names.read))


@given(st.sets(KEYS, max_size=60), st.sets(KEYS, max_size=20), st.data())
def test_names_with_some_more_and_some_less_are_those_written_anew(
    keys: set[str], edited: set[str], data: st.DataObject
) -> None:
    writer = KeyIndexWriter(data.draw(st.sampled_from([1, 3, BLOCK_KEYS])))
    for key in sorted(map(encode_key, keys)):
        writer.write(key)
    names = KeyIndex(memoryview(writer.starts), memoryview(writer.text.join()))
    assert [key in names for key in map(encode_key, edited)] == [key in keys for key in edited]
    starts, text = run_slices(
        names.apply_edits([(encode_key(key), key not in keys) for key in edited])
    )
    after = KeyIndex(memoryview(starts).cast("I"), memoryview(text.join()))
    assert list(after.iter_with_prefix("")) == sorted(keys ^ edited)
    for block in range(len(starts) // 4):
        assert 1 <= len(list(after.iter_block(block))) <= BLOCK_KEYS_MAX


# Collisions


@pytest.fixture(params=[0, 1, 5], ids=lambda bits: f"{bits} bits")
def short_hashes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Hashes so short that many keys share one; no two keys are known that share a whole one."""
    bits: int = request.param

    def cut(seed: int, key: str) -> int:
        return compute_key_hash(seed, key) >> 64 - bits << 64 - bits

    for room in (arena, builder, compaction):
        monkeypatch.setattr(room, "compute_key_hash", cut)
    return bits


def crowd(count: int, version: int = 1) -> dict[PolicyId, Record]:
    return {
        (region, f"flag-{i:03}"): Record(region, f"flag-{i:03}", version, i, b"%d" % (i % 7))
        for region in ("*", "eu")
        for i in range(count)
    }


def assert_kept(found: Arena, model: Model) -> None:
    """Hold what there is to a dict; with short hashes, what there is not may be taken for it."""
    assert found.count == sum(found.header.counts.values()) == len(model)
    for region in ("*", "eu", "us"):
        keys = sorted(key for place, key in model if place == region)
        assert list(found.iter_records(region)) == [model[region, key] for key in keys]


@pytest.mark.parametrize("count", [1, 2, 40])
def test_records_of_one_hash_are_all_found(short_hashes: int, count: int) -> None:
    model = crowd(count)
    found = build_arena(TIP, model.values())
    assert_kept(found, model)
    assert_kept(Arena(bytes(found.content)), model)
    alone = len(model) - len(found.header.colliding)
    assert alone == len(found.columns.hashes) <= 1 << short_hashes


@pytest.mark.usefixtures("short_hashes")
@pytest.mark.parametrize("before", [0, 1, 2, 20])
def test_records_of_one_hash_are_all_found_after_folding(before: int) -> None:
    model = crowd(before)
    found = build_arena(TIP, model.values())
    edits: list[dict[PolicyId, Record | None]] = [
        {("us", "another"): Record("us", "another", 1, 5, b"us")},
        {**crowd(before + 3)},
        {("*", "flag-001"): None, ("eu", "flag-002"): None, ("eu", "never-there"): None},
        {**crowd(2, version=2)},
        dict.fromkeys(crowd(before + 3)),
    ]
    for changed in edits:
        found = run_slices(compact_arena(found, TIP, changed, {}))
        for identity, record in changed.items():
            model.pop(identity, None)
            if record is not None:
                model[identity] = record
        assert_kept(found, model)
