"""Packing: the body of a flag says all that the flag says, and nothing else is read from one."""

import random
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from flagkit._core.evaluation.compiler import compile_flag
from flagkit._core.evaluation.result import Outcome
from flagkit._core.model import Flag, decode, encode
from flagkit._core.model.changes import build_genesis_tip
from flagkit._core.model.conditions import KEYWORDS
from flagkit._core.model.flags import collect_flag_segments
from flagkit._core.model.packing import FORMAT, KEYWORD_NUMBERS, pack, pack_fault, unpack
from flagkit._core.model.values import FORMS
from flagkit._core.model.windows import Recurrence, Window
from flagkit._core.snapshot import Record, Snapshot, build_arena
from flagkit.client.client import Client
from flagkit.errors import InvalidDocumentError
from tests.model.test_flags import MOMENT, document, documents, rollout, rule, same, when
from tests.soak.fuzzing import FLAG_COUNT, ContextGenerator, PolicyGenerator

NOON = datetime(2026, 12, 1, 12, tzinfo=UTC)
TIP = build_genesis_tip("production", "epoch", NOON)


def drawn(seed: int, count: int) -> Iterator[Flag]:
    draw = PolicyGenerator(random.Random(seed))
    return (decode(draw.good(i % FLAG_COUNT)) for i in range(count))


def assert_survives(flag: Flag) -> None:
    body = pack(flag)
    again = unpack(flag.key, flag.region, body)
    bare = replace(flag, metadata={})
    assert same(again, bare)
    assert repr(encode(again)) == repr(encode(bare))
    assert pack(again) == body


# There and back


@given(documents())
def test_a_flag_survives_the_way_through_its_body(made: dict[str, Any]) -> None:
    assert_survives(decode(made))


def test_a_flag_of_any_conditions_survives_the_way_through_its_body() -> None:
    for flag in drawn(1, 500):
        assert_survives(flag)


SURVIVING: Mapping[str, dict[str, Any]] = {
    "a salt": rollout(salt="another"),
    "an attribute to hash": rollout(by="org.id"),
    "weights of nothing": rollout(weights={"on": 0, "off": 100}),
    "weights in an order that intervals do not tell": rollout(
        weights={"off": 50, "on": 50}, intervals=[[9, "on"], [50_009, "off"], [100_000, "on"]]
    ),
    "intervals in pieces": rollout(intervals=[[1, "off"], [50_001, "on"], [100_000, "off"]]),
    "intervals that meet": rollout(intervals=[[9, "on"], [50_000, "on"], [100_000, "off"]]),
    "a ramp with a salt": document(
        fallthrough={"ramp": {"variant": "on", "otherwise": "off", "salt": "another",
                              "start": MOMENT, "end": MOMENT + timedelta(days=1)}}
    ),
    "steps": document(
        fallthrough={"ramp": {"variant": "off", "otherwise": "on", "by": "a.b",
                              "steps": [{"at": MOMENT, "percent": 0.001}]}}
    ),
    "an open window": rule(during={"from": MOMENT}),
    "a window that has ended": rule(during={"until": MOMENT}),
    "midnight to midnight": rule(
        during={"hours": {"from": "00:00", "until": "24:00"}, "zone": "Europe/Berlin"}
    ),
    "days": rule(during={"days": ["sun", "mon"], "zone": "Europe/Berlin"}),
    "a window and no condition": rule(during={"until": MOMENT}, when={}),
    "names that look like numbers": when(**{"0": {"$in": ["1", 2]}}),
    "operators within documents": when(a={"$eq": {"$gt": {"$date": "2026-12-01T08:00:00Z"}}}),
    "variants that look like operators": document(
        variants={"on": {"$in": [{"$date": 5}]}, "off": {}}
    ),
    "a paused flag that has no off": document(state="paused"),
    "prerequisites": document(prerequisites=[{"flag": "g", "variants": ["b", "a"]}]),
}  # fmt: skip


@pytest.mark.parametrize("made", SURVIVING.values(), ids=SURVIVING)
def test_what_could_be_left_out_by_mistake_survives(made: dict[str, Any]) -> None:
    assert_survives(decode(made))


def answer(flag: Flag, context: Any) -> tuple[Any, ...]:
    """Return what a flag answers, apart from others: or what a context that misbehaves raises."""
    alone = replace(flag, prerequisites=())
    compiled = compile_flag(alone, now=NOON.timestamp)
    if isinstance(compiled, Outcome):
        return (compiled,)
    try:
        return (repr(compiled(context)),)
    except Exception as error:  # noqa: BLE001 - whatever it is, both are to raise it
        return (type(error), str(error))


def test_a_flag_from_a_body_answers_as_the_one_from_the_document() -> None:
    chance = random.Random(2)
    draw = PolicyGenerator(chance)
    contexts = ContextGenerator(chance, draw.conditions)
    told: set[str] = set()
    for i in range(300):
        flag = decode(draw.good(i % FLAG_COUNT))
        if collect_flag_segments(flag):
            continue
        again = unpack(flag.key, flag.region, pack(flag))
        for context in (contexts.prompt() for _ in range(10)):
            found = answer(again, context)
            assert found == answer(flag, context)
            told.add(repr(found))
    assert len(told) > 50


def salts(made: dict[str, Any]) -> Iterator[str]:
    for serves in (made["fallthrough"], *made.get("rules", ())):
        for form in (serves.get("rollout"), serves.get("ramp")):
            if isinstance(form, dict) and "salt" in form:
                yield form["salt"]


@given(documents(), st.sampled_from(["other.key", "a"]), st.sampled_from(["*", "eu"]))
def test_equal_policies_have_equal_bodies(made: dict[str, Any], key: str, region: str) -> None:
    assume(all(item["flag"] != key for item in made.get("prerequisites", ())))
    # A salt that is the key is not kept, and is another policy's under another key.
    assume({key, made["key"]}.isdisjoint(salts(made)))
    other = {**made, "key": key, "region": region, "owner": "else", "tags": ["x"]}
    assert pack(decode(other)) == pack(decode(made))


# The format


GOLDEN: Mapping[str, tuple[dict[str, Any], str]] = {
    "served to all": (
        document(fallthrough={"serve": "on"}),
        "97000082a26f6ec3a36f6666c2ff009090",
    ),
    "paused, with an off": (
        document(state="paused", off="off"),
        "97010082a26f6ec3a36f6666c201019090",
    ),
    "a rollout": (
        rollout(weights={"on": 20, "off": 80}),
        "97000082a26f6ec3a36f6666c2ff950094cd4e2000ce000186a001c0c0c09090",
    ),
    "a rollout with all of its own": (
        rollout(
            by="org.id",
            salt="s",
            weights={"off": 40, "on": 60},
            intervals=[[60_000, "on"], [100_000, "off"]],
        ),
        (
            "97000082a26f6ec3a36f6666c2ff950094cdea6000ce000186a001a17392a36f7267a2696482a36f"
            "6666cd9c40a26f6ecdea609090"
        ),
    ),
    "a ramp": (
        document(
            fallthrough={
                "ramp": {
                    "variant": "on",
                    "otherwise": "off",
                    "start": MOMENT,
                    "end": MOMENT + timedelta(days=1),
                }
            }
        ),
        (
            "97000082a26f6ec3a36f6666c2ff970100019292cb41dac39fa00000000092cb41dac3f400000000"
            "ce000186a0c2c0c09090"
        ),
    ),
    "conditions": (
        when(
            a={"$in": ["x", 1, 1.5, None, MOMENT]}, b={"$not": {"$regex": "^y"}}, c=Decimal("0.1")
        ),
        (
            "97000082a26f6ec3a36f6666c2ff019194a1720083a161810695a17801cb3ff8000000000000c0d6"
            "ff6b0e7e80a16281098113a25e79a163811aa3302e31c090"
        ),
    ),
    "a window": (
        rule(
            during={
                "until": MOMENT,
                "days": ["mon", "sun"],
                "hours": {"from": "22:30", "until": "06:00"},
                "zone": "UTC",
            }
        ),
        (
            "97000082a26f6ec3a36f6666c2ff019194a172008095cbfff0000000000000cb41dac39fa0000000"
            "a355544392000692cd0546cd016890"
        ),
    ),
    "a prerequisite": (
        document(
            variants={"a": "x", "b": ""},
            prerequisites=[{"flag": "g", "variants": ["on"]}],
            fallthrough={"serve": "b"},
        ),
        "97000182a161a178a162a0ff01909192a16791a26f6e",
    ),
    "off when stale": (
        document(off="off", fallthrough={"serve": "on"}, when_stale="off"),
        "98000082a26f6ec3a36f6666c20100909001",
    ),
}


@pytest.mark.parametrize(("made", "body"), GOLDEN.values(), ids=GOLDEN)
def test_bodies_never_change_but_with_the_format(made: dict[str, Any], body: str) -> None:
    assert FORMAT == 1
    flag = decode(made)
    assert pack(flag).hex() == body
    assert same(unpack("f", "*", bytes.fromhex(body)), flag)


def test_every_operator_has_its_number() -> None:
    assert KEYWORD_NUMBERS.keys() == {*KEYWORDS, *FORMS}
    assert sorted(KEYWORD_NUMBERS.values()) == [*range(len(KEYWORD_NUMBERS))]


# What is no body


BODIES = [pack(flag) for flag in drawn(3, 200)]


def read(body: bytes) -> Flag | None:
    """Return the flag of what may be no body; anything but the one error fails the test."""
    try:
        return unpack("fuzz.flag-0", "*", body)
    except InvalidDocumentError:
        return None


@settings(max_examples=500)
@given(st.binary(max_size=40))
@example(b"")
@example(b"\xdd\xff\xff\xff\xff")
@example(bytes.fromhex("95000082a26f6ec3a36f6666c2ff9200ddffffffff"))
def test_any_bytes_are_a_flag_or_refused(body: bytes) -> None:
    read(body)


@given(st.sampled_from(BODIES), st.data())
def test_a_body_that_is_cut_off_is_refused(body: bytes, data: st.DataObject) -> None:
    assert read(body[: data.draw(st.integers(0, len(body) - 1))]) is None


@settings(max_examples=200)
@given(st.sampled_from(BODIES), st.lists(st.integers(0, 2**20), min_size=1, max_size=4))
def test_a_damaged_body_is_a_flag_or_refused(body: bytes, bits: list[int]) -> None:
    damaged = bytearray(body)
    for bit in bits:
        damaged[bit // 8 % len(body)] ^= 1 << bit % 8
    flag = read(bytes(damaged))
    assert flag is None or flag.key == "fuzz.flag-0"


PARTS = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(-3, 40), st.integers(-(2**63), 2**64 - 1)),
        *(st.floats(), st.text(max_size=3), st.binary(max_size=2)),
        st.sampled_from(["1E99999", "NaN", "a.b", "$gt", "9" * 5000, "1.0.0", "Europe/Berlin"]),
        st.just(msgspec.msgpack.Ext(5, b"x")),
    ),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.integers(-2, 35) | st.sampled_from(["a", "b.c", "$gt"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)


def changed(tree: Any, data: st.DataObject) -> Any:
    """Return MessagePack's tree of a body with another part somewhere."""
    if isinstance(tree, list) and tree and data.draw(st.integers(0, 4)):
        place = data.draw(st.integers(0, len(tree) - 1))
        return [*tree[:place], changed(tree[place], data), *tree[place + 1 :]]
    if isinstance(tree, dict) and tree and data.draw(st.integers(0, 4)):
        place = data.draw(st.sampled_from(list(tree)))
        return tree | {place: changed(tree[place], data)}
    return data.draw(PARTS)


@settings(max_examples=200)
@given(st.sampled_from(BODIES), st.data())
def test_a_body_with_another_part_never_hurts_a_caller(body: bytes, data: st.DataObject) -> None:
    spoiled = msgspec.msgpack.encode(changed(msgspec.msgpack.decode(body), data))
    read(spoiled)
    assert_never_hurts(spoiled)


def assert_never_hurts(body: bytes) -> None:
    """Hold what a flag of some body answers to what callers are promised of any flag."""
    served = client(body)
    for context in (None, "someone", {"targeting_key": "someone", "a": 1}):
        assert served.evaluate("f", context, "default").flag_key == "f"
        for default in (True, False):
            assert isinstance(served.is_enabled("f", context, default), bool)
    assert served.is_enabled("sound")


def client(body: bytes) -> Client:
    """Return a client of a flag with some body, and a sound one."""
    records = [Record("*", "f", 1, 1, body), Record("*", "sound", 1, 2, pack(decode(SOUND)))]
    return Client.from_snapshot(Snapshot(TIP, "*", build_arena(TIP, records)))


SOUND = document(key="sound", fallthrough={"serve": "on"})


def packed(*elements: Any) -> bytes:
    return msgspec.msgpack.encode(elements)


ON_OFF = {"on": True, "off": False}
OUT_OF_RANGE: Mapping[str, bytes] = {
    "a state": packed(3, 0, ON_OFF, -1, 0),
    "a negative state": packed(-1, 0, ON_OFF, -1, 0),
    "a type": packed(0, 5, ON_OFF, -1, 0),
    "a negative type": packed(0, -1, ON_OFF, -1, 0),
    "off": packed(0, 0, ON_OFF, 2, 0),
    "a negative off": packed(0, 0, ON_OFF, -2, 0),
    "the fallthrough": packed(0, 0, ON_OFF, -1, 2),
    "a negative fallthrough": packed(0, 0, ON_OFF, -1, -1),
    "no variants": packed(0, 0, {}, -1, 0),
    "a share's variant": packed(0, 0, ON_OFF, -1, [0, [100_000, 2]]),
    "a share's negative variant": packed(0, 0, ON_OFF, -1, [0, [100_000, -1]]),
    "a share without a variant": packed(0, 0, ON_OFF, -1, [0, [50_000, 1, 100_000]]),
    "a ramp's variant": packed(0, 0, ON_OFF, -1, [1, 2, 0, [[0.0, 5]], True]),
    "a ramp's negative variant": packed(0, 0, ON_OFF, -1, [1, -1, 0, [[0.0, 5]], True]),
    "a ramp's negative other": packed(0, 0, ON_OFF, -1, [1, 0, -2, [[0.0, 5]], True]),
    "neither rollout nor ramp": packed(0, 0, ON_OFF, -1, [2, [100_000, 1]]),
    "a rule's negative variant": packed(0, 0, ON_OFF, -1, 0, [["r", -1]]),
    "an operator": packed(0, 0, ON_OFF, -1, 0, [["r", 0, {"a": {len(KEYWORD_NUMBERS): 1}}]]),
    "a negative operator": packed(0, 0, ON_OFF, -1, 0, [["r", 0, {"a": {-1: 1}}]]),
    "a negative operator of the whole": packed(0, 0, ON_OFF, -1, 0, [["r", 0, {-20: [{}]}]]),
    "a day": packed(0, 0, ON_OFF, -1, 0, [["r", 0, {}, [0.0, 1.0, "UTC", [7], [0, 1440]]]]),
    "a negative day": packed(0, 0, ON_OFF, -1, 0, [["r", 0, {}, [0.0, 1.0, "UTC", [-1], [0, 9]]]]),
    "a number too large": packed(
        0, 0, ON_OFF, -1, 0, [["r", 0, {"a": {"$numberDecimal": "1E99999"}}]]
    ),
}


@pytest.mark.parametrize("body", OUT_OF_RANGE.values(), ids=OUT_OF_RANGE)
def test_places_out_of_range_are_refused(body: bytes) -> None:
    with pytest.raises(InvalidDocumentError, match=r"is no body of a flag|unknown operator"):
        unpack("f", "*", body)


OF_ANOTHER_TYPE: Mapping[str, tuple[int, Any]] = {
    "nothing for a boolean": (0, None),
    "a number for a boolean": (0, 1),
    "a string for a boolean": (0, "yes"),
    "a boolean for a string": (1, True),
    "a boolean for an integer": (2, True),
    "a float for an integer": (2, 1.0),
    "an integer for a float": (3, 1),
    "nothing for an object": (4, None),
    "an extension for an object": (4, msgspec.msgpack.Ext(1, b"x")),
}


@pytest.mark.parametrize(("kind", "value"), OF_ANOTHER_TYPE.values(), ids=OF_ANOTHER_TYPE)
def test_variants_of_another_type_than_the_flags_are_refused(kind: int, value: Any) -> None:
    sound = {0: False, 1: "", 2: 0, 3: 0.5, 4: {}}[kind]
    for served in (0, [0, [50_000, 0, 100_000, 1]]):
        body = packed(0, kind, {"on": value, "off": sound}, -1, served)
        with pytest.raises(InvalidDocumentError, match="variants: are not all of type"):
            unpack("f", "*", body)
        assert_never_hurts(body)


def test_elements_that_are_not_known_are_passed_over() -> None:
    flag = decode(when(a=1))
    tree = [*msgspec.msgpack.decode(pack(flag)), 0, [], "more"]
    tree[5][0] += [None, "more"]
    assert unpack("f", "*", msgspec.msgpack.encode(tree)) == flag


# Faults


def test_what_was_wrong_with_a_document_is_said() -> None:
    body = pack_fault(InvalidDocumentError("rules[0].when", "is wrong", "Mend it"))
    with pytest.raises(InvalidDocumentError, match=r"rules\[0\].when: is wrong"):
        unpack("f", "*", body)
    assert client(body).evaluate("f", "someone", "default").value == "default"


@pytest.mark.parametrize(
    "zone", ["Mars/Olympus", "../../etc/passwd", "\0", "", "x" * 300], ids=ascii
)
def test_a_zone_that_is_not_known_here_is_a_fault_of_its_flag_alone(zone: str) -> None:
    flag = decode(rule(during={"days": ["mon"], "zone": "Europe/Berlin"}))
    window = Window(float("-inf"), float("inf"), Recurrence(zone, (0,), 0, 1440))
    elsewhere = replace(flag, rules=(replace(flag.rules[0], during=window),))
    body = pack(elsewhere)
    with pytest.raises(InvalidDocumentError, match=r"rules\[0\].during.zone"):
        unpack("f", "*", body)
    served = client(body)
    assert served.evaluate("f", "someone", "default").error_code == "PARSE_ERROR"
    assert served.is_enabled("f", "someone", default=True)
    assert served.is_enabled("sound")
