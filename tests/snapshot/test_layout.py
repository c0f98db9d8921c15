"""The frame of a snapshot, and docs/snapshot-format.md: a reader that follows the page alone."""

import hashlib
import re
import struct
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
import xxhash
from hypothesis import given
from msgspec.structs import replace

from flagkit._core.cooperative import run_slices
from flagkit._core.model import decode, encode, packing
from flagkit._core.model.changes import Tip
from flagkit._core.snapshot import Arena, Record, arena, build_arena, builder, compaction, layout
from flagkit._core.snapshot.arena import open_arena
from flagkit._core.snapshot.compaction import compact_arena
from flagkit._core.snapshot.layout import compute_checksum, encode_prefix, read_header, read_prefix
from flagkit.errors import SnapshotFormatError
from tests.model.test_flags import documents
from tests.snapshot.test_arena import MODELS, TIP, Model
from tests.soak.fuzzing import FLAG_COUNT, PolicyGenerator

PAGE = (Path(__file__).parents[2] / "docs" / "snapshot-format.md").read_text()


def sealed(found: Arena) -> bytes:
    """Return the bytes of an arena as a file has them."""
    _, length, header_length = read_prefix(found.content)
    prefix = encode_prefix(compute_checksum(found.content), length, header_length)
    return prefix + found.content[len(prefix) :].tobytes()


def with_header(content: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """Return sound bytes whose header was written by something else."""
    (length,) = struct.unpack_from("<Q", content, 24)
    header = msgspec.msgpack.decode(content[32 : 32 + length])
    data = content[-(-(32 + length) // 8) * 8 :]
    change(header)
    encoded = msgspec.msgpack.encode(header)
    rest = encoded + bytes(-len(encoded) % 8) + data
    tail = struct.pack("<QQ", 32 + len(rest), len(encoded)) + rest
    return content[:8] + xxhash.xxh3_64_digest(tail)[::-1] + tail


SMALL = [
    Record("*", "shop.express", 3, 17, b"body"),
    Record("*", "shop.extra", 300, 18, b"body"),
    Record("eu", "shop.express", 1, 2**64 - 1, b"x" * 200),
    Record("@segments", "beta", 1, 5, b"\x80"),
]
PART = struct.pack("=3Q", 1, 2, 2**64 - 1)


def small() -> bytes:
    tip = Tip("production", "epoch", 7, "ab" * 32, datetime(2026, 1, 1, 12, tzinfo=UTC), {"*": 35})
    name = hashlib.sha256(PART).hexdigest()
    return sealed(run_slices(compact_arena(build_arena(TIP, SMALL), tip, {}, {name: PART})))


# The page, followed


class Reader:
    """Reads a snapshot by the page alone."""

    def __init__(self, content: bytes) -> None:
        assert content[:8] == b"flagkit\x01"
        checksum, length, header_length = struct.unpack_from("<QQQ", content, 8)
        assert length == len(content)
        assert checksum == xxhash.xxh3_64_intdigest(content[16:])
        self.header = msgspec.msgpack.decode(content[32 : 32 + header_length])
        assert self.header["packing"] == 1
        self.data = content[-(-(32 + header_length) // 8) * 8 :]
        self.order = {"little": "<", "big": ">"}[self.header["byte_order"]]
        self.sizes = {"directory": 4, "hashes": 8, "states": 8, "offsets": 4}
        self.sizes["versions"] = self.header["version_bytes"]

    def part(self, place: tuple[int, int]) -> bytes:
        offset, length = place
        assert offset % 8 == 0
        assert offset + length <= len(self.data)
        return self.data[offset : offset + length]

    def numbers(self, content: bytes, size: int) -> list[int]:
        kind = {1: "B", 2: "H", 4: "I", 8: "Q"}[size]
        return [*struct.unpack(f"{self.order}{len(content) // size}{kind}", content)]

    def section(self, name: str) -> list[int]:
        return self.numbers(self.part(self.header["sections"][name]), self.sizes[name])

    def length_number(self, content: bytes, at: int) -> tuple[int, int]:
        length = shift = 0
        while True:
            length |= (content[at] & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if content[at - 1] < 0x80:
                return length, at

    def find(self, region: str, key: str) -> tuple[int, int, bytes] | None:
        for place, name, *found in self.header["colliding"]:
            if (place, name) == (region, key):
                return (found[0], found[1], found[2])
        if region not in self.header["counts"]:
            return None
        seed = xxhash.xxh3_64_intdigest(region.encode())
        key_hash = xxhash.xxh3_64_intdigest(key.encode(), seed)
        directory, hashes = self.section("directory"), self.section("hashes")
        assert len(directory) == 2 ** self.header["directory_bits"] + 1
        top = key_hash >> 64 - self.header["directory_bits"]
        place = bisect_left(hashes, key_hash, directory[top], directory[top + 1])
        if place == directory[top + 1] or hashes[place] != key_hash:
            return None
        bodies = self.part(self.header["sections"]["bodies"])
        length, at = self.length_number(bodies, self.section("offsets")[place])
        body = bodies[at : at + length]
        return self.section("versions")[place], self.section("states")[place], body

    def keys(self, region: str) -> Iterator[str]:
        if region not in self.header["names"]:
            return
        places = self.header["names"][region]
        text = self.part(places[1])
        starts = [*self.numbers(self.part(places[0]), 4), len(text)]
        for at, end in pairwise(starts):
            key, place = b"", at
            while place < end:
                shared = text[place]
                length, rest = self.length_number(text, place + 1)
                key, place = key[:shared] + text[rest : rest + length], rest + length
                yield key.decode()


def assert_read(content: bytes, model: Model) -> None:
    reader = Reader(content)
    counts: dict[str, int] = {}
    digests: dict[str, int] = {}
    for (region, key), record in model.items():
        assert reader.find(region, key) == (record.version, record.hash, record.body)
        counts[region] = counts.get(region, 0) + 1
        digests[region] = (digests.get(region, 0) + record.hash) % 2**64
    assert reader.header["counts"] == counts
    assert reader.header["digests"] == {
        place: digest for place, digest in digests.items() if digest
    }
    for region in ("*", "eu", "us", "@segments"):
        assert [*reader.keys(region)] == sorted(key for place, key in model if place == region)
        assert reader.find(region, "nobody") is None


@given(MODELS)
def test_what_is_written_is_read_by_the_page(model: Model) -> None:
    # The keys of flags are text; those of the arena's own test need not be.
    model = {place: model[place] for place in model if is_text(place[1])}
    assert_read(sealed(build_arena(TIP, model.values())), model)


def is_text(key: str) -> bool:
    return key.encode("utf-8", "ignore").decode() == key


def test_what_is_folded_is_read_by_the_page() -> None:
    content = small()
    assert_read(content, {record.id: record for record in SMALL})
    reader = Reader(content)
    ((name, place),) = reader.header["parts"].items()
    members = reader.numbers(reader.part(place), 8)
    assert members == [1, 2, 2**64 - 1]
    assert name == hashlib.sha256(struct.pack("<3Q", *members)).hexdigest()
    tip = reader.header["tip"]
    assert (tip["environment"], tip["epoch"], tip["revision"]) == ("production", "epoch", 7)
    assert (tip["time"], tip["digests"]) == (datetime(2026, 1, 1, 12, tzinfo=UTC), {"*": 35})


def test_colliding_records_are_read_by_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    for room in (arena, builder, compaction):
        monkeypatch.setattr(room, "compute_key_hash", lambda *_: 5)
    content = sealed(build_arena(TIP, SMALL))
    assert_read(content, {record.id: record for record in SMALL})
    assert len(Reader(content).header["colliding"]) == len(SMALL)


STATES = ("active", "paused", "archived")
TYPES = ("boolean", "string", "integer", "float", "object")
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
OPERATORS = dict(re.findall(r"(\d+) (\$\w+)", PAGE))


class BodyReader:
    """Reads the body of a flag by the page alone, into its document."""

    def __init__(self, key: str, body: bytes) -> None:
        state, self.type, self.variants, off, served, *rest = msgspec.msgpack.decode(body)
        missing: list[Any] = [[], [], 0]
        rules, prerequisites, when_stale = [*rest, *missing[len(rest) :]][:3]
        self.names = [*self.variants]
        self.document = {"key": key, "state": STATES[state], "variants": self.variants}
        if off != -1:
            self.document["off"] = self.names[off]
        if prerequisites:
            self.document["prerequisites"] = [
                {"flag": flag, "variants": variants} for flag, variants in prerequisites
            ]
        if rules:
            self.document["rules"] = [self.rule(*rule) for rule in rules]
        self.document["fallthrough"] = self.served(served)
        if when_stale:
            self.document["when_stale"] = ["hold", "off"][when_stale]

    def rule(self, name: str, served: Any, when: Any = None, window: Any = None) -> dict[str, Any]:
        rule: dict[str, Any] = {"name": name}
        if when:
            rule["when"] = self.condition(when)
        if window is not None:
            rule["during"] = self.window(*window)
        return rule | self.served(served)

    def served(self, served: Any) -> dict[str, Any]:
        if isinstance(served, int):
            return {"serve": self.names[served]}
        return self.ramp(*served[1:]) if served[0] else self.rollout(*served[1:])

    def hashed(self, salt: str | None, by: list[str] | None) -> dict[str, Any]:
        document = {} if by is None else {"by": ".".join(by)}
        return document if salt is None else document | {"salt": salt}

    def rollout(
        self, flat: list[int], salt: Any = None, by: Any = None, weights: Any = None
    ) -> dict[str, Any]:
        intervals = [[end, self.names[place]] for end, place in batched(flat)]
        if weights is None:
            weights, start = {}, 0
            for end, name in intervals:
                weights[name] = weights.get(name, 0) + end - start
                start = end
        shares = {name: percent(share) for name, share in weights.items()}
        return {"rollout": self.hashed(salt, by) | {"weights": shares, "intervals": intervals}}

    def ramp(
        self, variant: int, otherwise: int, points: Any, stepped: Any, salt: Any, by: Any
    ) -> dict[str, Any]:
        ramp = self.hashed(salt, by)
        ramp |= {"variant": self.names[variant], "otherwise": self.names[otherwise]}
        if stepped:
            steps = [{"at": date(at), "percent": percent(share)} for at, share in points]
            return {"ramp": ramp | {"steps": steps}}
        (start, first), (end, last) = points
        ramp |= {"from": percent(first), "to": percent(last)}
        return {"ramp": ramp | {"start": date(start), "end": date(end)}}

    def window(
        self, start: float, end: float, zone: Any = None, days: Any = (), minutes: Any = (0, 0)
    ) -> dict[str, Any]:
        ends = {"from": start, "until": end}
        window: dict[str, Any] = {name: date(at) for name, at in ends.items() if abs(at) < 1e300}
        if zone is None:
            return window
        if len(days) < 7:
            window["days"] = [DAYS[day] for day in days]
        if minutes != [0, 1440] or len(days) == 7:
            hours = (f"{minute // 60:02}:{minute % 60:02}" for minute in minutes)
            window["hours"] = dict(zip(("from", "until"), hours, strict=True))
        return window | {"zone": zone}

    def condition(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.condition(item) for item in value]
        if not isinstance(value, dict):
            return value
        return {
            name if isinstance(name, str) else OPERATORS[str(name)]: self.condition(item)
            for name, item in value.items()
        }


def batched(flat: list[int]) -> list[tuple[int, int]]:
    return [*zip(flat[::2], flat[1::2], strict=True)]


def percent(share: int) -> float:
    return share // 1000 if share % 1000 == 0 else share / 1000


def date(seconds: float) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=round(seconds * 1000))


@given(documents())
def test_a_flag_is_read_from_its_body_by_the_page(made: dict[str, Any]) -> None:
    flag = replace(decode(made), region="*", metadata={})
    reader = BodyReader(flag.key, packing.pack(flag))
    assert repr(reader.document) == repr(encode(flag))
    assert TYPES[reader.type] == flag.type


def test_flags_of_all_conditions_are_read_from_their_bodies_by_the_page() -> None:
    draw = PolicyGenerator(Random(7))
    for i in range(300):
        flag = replace(decode(draw.good(i % FLAG_COUNT)), metadata={})
        assert repr(BodyReader(flag.key, packing.pack(flag)).document) == repr(encode(flag))


def test_the_page_has_all_fields_sections_and_operators() -> None:
    for name in (*msgspec.structs.fields(layout.Header), *msgspec.structs.fields(Tip)):
        assert f"`{name.encode_name}`" in PAGE
    for section in layout.Columns._fields:
        assert f"| `{section}` |" in PAGE
    listed = re.findall(r"(\d+) (\$\w+)", PAGE)
    numbers = sorted((number, name) for name, number in packing.KEYWORD_NUMBERS.items())
    assert listed == [(str(number), name) for number, name in numbers]
    assert f"This is format {layout.FORMAT}, with bodies of format {packing.FORMAT}." in PAGE


# What is refused


def test_sound_bytes_are_opened() -> None:
    found = open_arena(small())
    assert sorted(
        record for region in ("*", "eu", "@segments") for record in found.iter_records(region)
    ) == sorted(SMALL)


def test_no_damaged_bit_is_overlooked() -> None:
    content = bytearray(small())
    for at in range(len(content)):
        for bit in range(8):
            content[at] ^= 1 << bit
            with pytest.raises(SnapshotFormatError):
                open_arena(content)
            content[at] ^= 1 << bit
    assert open_arena(content).count == len(SMALL)


def test_no_length_that_is_cut_off_is_overlooked() -> None:
    content = small()
    for length in range(len(content)):
        with pytest.raises(SnapshotFormatError, match=r"cut off|no snapshot"):
            open_arena(content[:length])
    with pytest.raises(SnapshotFormatError, match="cut off"):
        open_arena(content + b"\0")


FOREIGN: Mapping[str, tuple[bytes, str]] = {
    "nothing": (b"", "no snapshot of flagkit's"),
    "another program's": (b"\x7fELF" + bytes(100), "no snapshot of flagkit's"),
    "an older format": (b"flagkit\x00" + small()[8:], "it has format 0; this version reads 1"),
    "a newer format": (b"flagkit\x02" + small()[8:], "it has format 2; this version reads 1"),
    "another packing": (
        with_header(small(), lambda header: header.update(packing=2)),
        "its bodies have format 2; this version reads 1",
    ),
    "another byte order": (
        with_header(small(), lambda header: header.update(byte_order="middle")),
        "written on a middle-endian machine",
    ),
    "a header without a tip": (
        with_header(small(), lambda header: header.pop("tip")),
        "its header is damaged: .*missing required field `tip`",
    ),
    "a header of other types": (
        with_header(small(), lambda header: header.update(counts=[])),
        "its header is damaged: Expected `object`, got `array`",
    ),
}


@pytest.mark.parametrize(("content", "problem"), FOREIGN.values(), ids=FOREIGN)
def test_what_cannot_be_read_here_is_refused(content: bytes, problem: str) -> None:
    with pytest.raises(SnapshotFormatError, match=problem):
        open_arena(content)


def test_a_header_that_is_no_messagepack_is_refused() -> None:
    content = small()
    spoiled = content[:32] + b"\xc1" + content[33:]
    with pytest.raises(SnapshotFormatError, match="its header is damaged"):
        read_header(memoryview(spoiled))


def test_an_older_reader_passes_over_what_it_does_not_know() -> None:
    def newer(header: dict[str, Any]) -> None:
        header["since"] = {"a": [1]}
        header["sections"]["new"] = [0, 8]
        header["tip"]["witness"] = "text"

    found = open_arena(with_header(small(), newer))
    assert found.tip == open_arena(small()).tip
    assert [*found.iter_records("*")] == SMALL[:2]
