"""Policy documents: what is let in, what is refused and where, and the way back to the document."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any, NamedTuple
from uuid import UUID

import bson
import msgspec
import pytest
from bson import ObjectId
from bson.codec_options import CodecOptions
from hypothesis import given, settings
from hypothesis import strategies as st

from flagkit._core.model import Flag, Prerequisite, Rollout, Serve, decode, encode
from flagkit._core.model.conditions import parse_condition
from flagkit._core.model.foreign import Oid
from flagkit._core.model.windows import DAYS, Window
from flagkit.errors import FlagkitError, InvalidDocumentError

pytestmark = pytest.mark.every_python

BOOLEAN = {"on": True, "off": False}
MINIMAL = {"key": "f", "variants": BOOLEAN, "fallthrough": {"serve": "off"}}
MOMENT = datetime(2026, 12, 1, 8, tzinfo=UTC)
NAIVE = datetime(2026, 12, 1, 8)  # noqa: DTZ001 - refused for being so
WEST, EAST = timezone(timedelta(hours=-1)), timezone(timedelta(hours=1))
FIRST = datetime.min.replace(tzinfo=EAST)
LAST = datetime.max.replace(tzinfo=WEST)


def document(**fields: Any) -> dict[str, Any]:
    return MINIMAL | fields


def rule(**fields: Any) -> dict[str, Any]:
    return document(rules=[{"name": "r", "serve": "on"} | fields])


def when(**condition: Any) -> dict[str, Any]:
    return rule(when=condition)


def rollout(**fields: Any) -> dict[str, Any]:
    return document(fallthrough={"rollout": {"weights": {"on": 50, "off": 50}} | fields})


def weights(**percentages: Any) -> dict[str, Any]:
    return rollout(weights=percentages)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_a_document_says_all_that_the_design_says() -> None:
    flag = decode(
        {
            "key": "checkout.express-pay",
            "environment": "production",
            "region": "eu-west",
            "state": "paused",
            "variants": {"on": True, "off": False},
            "off": "off",
            "prerequisites": [{"flag": "checkout.v2", "variants": ["on"]}],
            "rules": [
                {"name": "staff", "when": {"email": "a@acme.com"}, "serve": "on"},
                {
                    "name": "dach",
                    "when": {"country": {"$in": ["DE", "AT", "CH"]}, "plan": "pro"},
                    "during": {"from": MOMENT, "until": MOMENT + timedelta(days=1)},
                    "rollout": {"by": "account.id", "weights": {"on": 20, "off": 80}},
                },
                {"name": "rest", "rollout": 10},
            ],
            "fallthrough": {"serve": "off"},
            "owner": "team-checkout",
            "description": "Pay at once",
            "tags": ["checkout", "pay"],
            "expires": MOMENT,
        },
        environment="production",
    )
    assert (flag.key, flag.region, flag.state) == ("checkout.express-pay", "eu-west", "paused")
    assert (flag.type, flag.variants, flag.off) == ("boolean", BOOLEAN, "off")
    assert flag.prerequisites == (Prerequisite("checkout.v2", ("on",)),)
    staff, dach, rest = flag.rules
    assert staff.serves == Serve("on")
    assert dach.during == Window(MOMENT.timestamp(), MOMENT.timestamp() + 86_400)
    assert dach.serves == Rollout(
        ("account", "id"),
        "checkout.express-pay",
        {"on": 20_000, "off": 80_000},
        ((20_000, "on"), (100_000, "off")),
    )
    assert rest.serves == Rollout(
        ("targeting_key",),
        "checkout.express-pay",
        {"on": 10_000, "off": 90_000},
        ((10_000, "on"), (100_000, "off")),
    )
    assert list(flag.metadata) == ["owner", "description", "tags", "expires"]


def test_a_minimal_document_stands_for_the_defaults() -> None:
    flag = decode(MINIMAL)
    assert (flag.region, flag.state, flag.off) == ("*", "active", None)
    assert (flag.prerequisites, flag.rules, flag.metadata) == ((), (), {})
    assert encode(flag) == MINIMAL | {"state": "active"}


@pytest.mark.parametrize(
    ("variants", "expected"),
    [
        ({"a": True}, "boolean"),
        ({"a": "", "b": "x"}, "string"),
        ({"a": 1, "b": -(2**63)}, "integer"),
        ({"a": 1.5}, "float"),
        ({"a": 1, "b": 0.5}, "float"),
        ({"a": {"b": [None, 1, "x"]}, "b": []}, "object"),
    ],
    ids=str,
)
def test_the_type_of_a_flag_is_that_of_its_variants(
    variants: dict[str, Any], expected: str
) -> None:
    flag = decode(document(variants=variants, fallthrough={"serve": "a"}))
    assert flag.type == expected
    assert {type(value) for value in flag.variants.values()} <= {bool, str, int, float, dict, list}


def test_integers_among_floats_become_floats() -> None:
    flag = decode(document(variants={"a": 1, "b": 0.5}, fallthrough={"serve": "a"}))
    assert [type(value) for value in flag.variants.values()] == [float, float]


def test_a_bare_percentage_is_the_share_of_the_true_variant() -> None:
    for variants in ({"yes": True, "no": False}, {"no": False, "yes": True}):
        flag = decode(document(variants=variants, fallthrough={"rollout": 33.333}))
        assert isinstance(flag.fallthrough, Rollout)
        assert flag.fallthrough.weights == {"yes": 33_333, "no": 66_667}


def test_dates_may_be_text_and_are_kept_in_utc_to_the_millisecond() -> None:
    flag = decode(document(expires="2026-12-01T09:00:00.123987+01:00"))
    assert flag.metadata["expires"] == MOMENT + timedelta(milliseconds=123)


class Country(str, Enum):  # noqa: UP042 - what many have, and whose str() is not its content
    GERMANY = "DE"


def test_subclasses_of_plain_types_are_kept_as_what_they_hold() -> None:
    flag = decode(when(a=Country.GERMANY, b=(1, 2)))
    assert flag.rules[0].when == {"a": "DE", "b": [1, 2]}
    assert type(flag.rules[0].when["a"]) is str


ID = UUID("00112233-4455-6677-8899-aabbccddeeff")
OBJECT_ID = ObjectId("507f1f77bcf86cd799439011")
EXTENDED: list[tuple[Any, Any, Any]] = [
    # As it is written, as it is stored, and what it is compared as.
    ({"$date": "2026-12-01T09:00:00.0005+01:00"}, MOMENT, MOMENT),
    ({"$numberDouble": "NaN"}, math.nan, math.nan),
    ({"$numberDouble": "-Infinity"}, -math.inf, -math.inf),
    ({"$numberDouble": "-1.5e+3"}, -1500.0, -1500.0),
    ({"$numberInt": "5"}, 5, 5),
    ({"$numberInt": "-2147483648"}, -(2**31), -(2**31)),
    ({"$numberLong": "-9223372036854775808"}, -(2**63), -(2**63)),
    ({"$numberDecimal": "0.10"}, {"$numberDecimal": "0.10"}, Decimal("0.10")),
    (Decimal("1e3"), {"$numberDecimal": "1E+3"}, Decimal("1E+3")),
    (Decimal("-sNaN7"), {"$numberDecimal": "NaN"}, Decimal("NaN")),
    ({"$numberDecimal": "Infinity"}, {"$numberDecimal": "Infinity"}, Decimal("Infinity")),
    ({"$uuid": "00112233445566778899AABBCCDDEEFF"}, {"$uuid": str(ID)}, ID),
    (ID, {"$uuid": str(ID)}, ID),
    ({"$binary": {"base64": "ABEiM0RVZneImaq7zN3u/w==", "subType": "04"}}, {"$uuid": str(ID)}, ID),
    ({"$oid": "507F1f77bcf86cd799439011"}, {"$oid": str(OBJECT_ID)}, Oid(OBJECT_ID.binary)),
    (OBJECT_ID, {"$oid": str(OBJECT_ID)}, Oid(OBJECT_ID.binary)),
    (b"\1\2", {"$binary": {"base64": "AQI=", "subType": "00"}}, b"\1\2"),
]


@pytest.mark.parametrize(("written", "stored", "compared"), EXTENDED, ids=repr)
def test_an_extended_value_may_stand_wherever_a_constant_may(
    written: Any, stored: Any, compared: Any
) -> None:
    def with_constant(value: Any) -> dict[str, Any]:
        return {
            "a": value,
            "b": {"$gte": value, "$not": {"$in": [value, {"x": [value]}]}},
            "c": {"$all": [value, [value]], "$elemMatch": {"y": value}},
            "$or": [{"d": {"$elemMatch": {"$eq": {"z": value}}}}],
        }

    flag = decode(rule(when=with_constant(written)))
    assert repr(flag.rules[0].when) == repr(with_constant(stored))
    assert repr(flag.rules[0].condition) == repr(parse_condition(with_constant(compared), ""))
    assert same(decode(encode(flag)), flag)


def test_dates_may_be_extended_values_in_every_field() -> None:
    def with_dates(start: Any, end: Any) -> dict[str, Any]:
        return rule(
            serve=None,
            during={"from": start, "until": end},
            ramp={"variant": "on", "otherwise": "off", "start": start, "end": end},
        ) | {"expires": end}

    later = MOMENT + timedelta(days=1)
    written = [{"$date": moment.isoformat()} for moment in (MOMENT, later)]
    assert decode(with_dates(*written)) == decode(with_dates(MOMENT, later))


def test_what_looks_like_an_extended_value_in_a_variant_is_data() -> None:
    data = {"$date": "soon", "list": [{"$numberDecimal": "0.1"}, {"$uuid": 5}]}
    flag = decode(document(variants={"a": data, "b": {"$oid": 1}}, fallthrough={"serve": "a"}))
    assert flag.variants["a"] == data


def test_given_intervals_are_kept() -> None:
    intervals = [[30_000, "on"], [80_000, "off"], [100_000, "on"]]
    flag = decode(rollout(intervals=intervals))
    assert isinstance(flag.fallthrough, Rollout)
    assert flag.fallthrough.intervals == ((30_000, "on"), (80_000, "off"), (100_000, "on"))


def test_the_limits_are_met_by_what_just_keeps_them() -> None:
    decode(document(key="k" * 200))
    decode(document(rules=[{"name": str(i), "serve": "on"} for i in range(256)]))
    decode(when(a=nested(28)))
    decode(document(description="x" * (1024 * 1024 - 200)))
    decode(when(a=[2**63 - 1, -(2**63)]))
    decode(when(**{".".join("a" * 12 + "0" * 4): 1}))
    decode(when(a={"$in": [*range(50_000)]}))
    decode(rule(when={"$or": [{"a": 1}] * 2047}))


# Refusals


class Bad(NamedTuple):
    name: str
    document: object
    path: str
    remedy: str = ""


NO_DOCUMENTS: list[object] = [None, 1, "x", [], ()]
NO_BRANCHES: list[object] = [[], {}, 1]
NOT_OPERATORS: list[object] = [{}, 5, None, []]

RAMP: dict[str, Any] = {
    "variant": "on",
    "otherwise": "off",
    "start": "2026-12-01T08:00:00Z",
    "end": "2026-12-08T08:00:00Z",
}
STEPS: list[Any] = [
    {"at": "2026-12-01T08:00:00Z", "percent": 5},
    {"at": "2026-12-02T08:00:00Z", "percent": 50},
]
HOURS = {"from": "09:00", "until": "17:00"}
BAD_RECURRENCES: list[tuple[str, dict[str, Any], str, str]] = [
    ("no zone", {"hours": HOURS}, ".zone", "Europe/Berlin"),
    ("days and no zone", {"days": ["mon"]}, ".zone", "Europe/Berlin"),
    ("a zone alone", {"from": MOMENT, "zone": "Europe/Berlin"}, ".zone", "Remove"),
    ("a zone that is none", {"hours": HOURS, "zone": "Mars/Base"}, ".zone", "tzdata"),
    ("a path for a zone", {"hours": HOURS, "zone": "../../etc/passwd"}, ".zone", "IANA"),
    ("a day that is none", {"days": ["mon", "Tuesday"], "zone": "UTC"}, ".days[1]", "mon, tue"),
    ("no days", {"days": [], "zone": "UTC"}, ".days", "mon, tue"),
    ("no length", {"hours": {"from": "09:00", "until": "09:00"}, "zone": "UTC"}, ".hours", "17:00"),
    ("no end", {"hours": {"from": "09:00"}, "zone": "UTC"}, ".hours.until", ""),
    ("a time that is none", {"hours": HOURS | {"until": "25:00"}, "zone": "UTC"}, ".hours.until",
     "24:00"),
    ("a time as an integer", {"hours": HOURS | {"from": 540}, "zone": "UTC"}, ".hours.from", ""),
    ("hours from midnight on", {"hours": {"from": "24:00", "until": "05:00"}, "zone": "UTC"},
     ".hours", "09:00"),
    ("an unknown field", {"hours": HOURS | {"to": "17:00"}, "zone": "UTC"}, ".hours.to", "until"),
]  # fmt: skip
BAD_RAMPS: list[tuple[str, dict[str, Any], str, str]] = [
    ("an unknown variant", {"variant": "blue"}, ".variant", "on, off"),
    ("an unknown other variant", {"otherwise": "blue"}, ".otherwise", "on, off"),
    ("one variant twice", {"otherwise": "on"}, ".otherwise", "another"),
    ("no end", {"end": None}, "", "start: and end:"),
    ("steps and a line", {"steps": STEPS}, "", "or else steps:"),
    ("its end first", {"end": "2026-11-01T08:00:00Z"}, "", "the later date last"),
    ("too much", {"to": 101}, ".to", "0 to 100"),
    ("a naive date", {"start": "2026-12-01T08:00:00"}, ".start", "zone"),
    ("no steps", {"start": None, "end": None, "steps": []}, ".steps", "at least one"),
    ("steps backwards", {"start": None, "end": None, "steps": STEPS[::-1]}, "", "last"),
    ("an empty salt", {"salt": ""}, ".salt", "Leave it out"),
    ("an unknown field", {"untill": 1}, ".untill", "Known here"),
]
NO_TESTS: dict[str, Any] = {"name": "a", "serve": "on"}
TOO_MANY: dict[str, dict[str, Any]] = {
    "$or": {"$or": [{"a": 1}] * 2048},
    "$and": {"$and": [{}] * 2048},
    "$in": {"a": {"$in": [[1]] * 2048}},
    "$all": {"a": {"$all": [1] * 2048}},
    "$contains": {"a": {"$contains": ["x"] * 2048}},
    "$segment": {"$segment": ["s"] * 64},
    "$semver": {"a": {"$semver": {"$in": ["1.0.0"] * 2048}}},
    "$elemMatch": {"a": {"$elemMatch": {"$nor": [{"a": 1}] * 2048}}},
}
NOT_EXTENDED: list[Any] = [
    *({"$date": value} for value in ("soon", 5, None, MOMENT, "2026-W01-1T00:00:00Z")),
    *({"$date": f"2026-01-01{rest}"} for rest in ("x00:00:00Z", "T00:00:00Z\n", "T24:00:00Z")),
    *({"$numberDecimal": value} for value in ("x", 0.1, "1E+6145", "1." + "1" * 34, "")),
    *({"$numberDecimal": value} for value in ("sNaN123", "1_0", "\u0661", " 1")),
    *({"$numberDouble": value} for value in ("x", 0.1, "1_0.5", "inf", "nan", "1e999", "1\n")),
    *({"$numberInt": value} for value in ("x", "0.1", 5, True, "9" * 5000, "1_000", " 5\n")),
    *({"$numberInt": value} for value in ("\u0661\u0662", str(2**31), str(2**40), "")),
    *({"$numberLong": value} for value in ("x", 5, "1_000", "\u0661")),
    *({"$uuid": value} for value in ("x", 5, None, ID, f"urn:uuid:{{{ID}}}", f"{{{ID}}}")),
    *({"$oid": value} for value in ("x", 5, None, ID.hex, "0" * 23, "0" * 23 + "g", "0" * 25)),
    {"$uuid": f"0-0-1-{str(ID).replace('-', '')[3:]}"},
    *({"$binary": value} for value in ("AQI=", {}, {"base64": "AQI=", "subType": "03"})),
    *(
        {"$binary": {"base64": text, "subType": "00"}}
        for text in ("?", "é", "A", 5, "AQ=I", "AQI=\n")
    ),
    {"$binary": {"base64": "AQI=", "subType": "04"}},
    {"$binary": {"base64": "AQI=", "subType": "00", "more": 1}},
]
NOT_DOCUMENTS: list[Any] = [1, [], "x", None]
NOT_ALL: list[Any] = [1, {"$elemMatch": {}}, [1, {"$elemMatch": {}}], [{"$gt": 1}]]
NOT_TYPES: list[Any] = [[], 0, "missing", 1.5, True, "String", None, ["string", 0]]
NOT_PAIRS: list[Any] = [
    *(1, [], [2], [0, 1], [0.5, 0], [2, 1, 0], [True, 1], ["2", 0], [float("inf"), 0]),
]
NOT_TEXTS: list[Any] = ["", [], 1, ["a", ""], [1]]
BAD = [
    # The document as a whole
    *(Bad(f"{value!r} for a document", value, "", "mapping") for value in NO_DOCUMENTS),
    Bad("nothing in it", {}, "key", "Add it"),
    Bad("no fallthrough", {"key": "f", "variants": BOOLEAN}, "fallthrough", "serve: VARIANT"),
    Bad("5 MB", document(description="x" * 5_000_000), "description", "Shorten"),
    Bad("5 MB of rules", when(a=["x" * 1000] * 5000), "rules", "Shorten"),
    Bad("too deep", when(a=nested(29)), "rules[0].when.a" + "[0]" * 29, "Flatten"),
    Bad("a key that is no string", document(description={1: 2}), "description", '"1"'),
    Bad("a key that is no string at the top", {1: 2}, "", '"1"'),
    Bad("a huge integer as a key", when(a={10**5000: 1}), "rules[0].when.a", "Quote"),
    Bad("NUL in a key", when(a={"b\0": 1}), "rules[0].when.a", "Remove"),
    Bad("a lone surrogate", document(owner="\ud800"), "owner", "Remove"),
    Bad("a lone surrogate far down", when(a={"$in": ["\udfff"]}), "rules[0].when.a.$in[0]"),
    Bad("a lone surrogate in a key", when(a={"\ud800": 1}), "rules[0].when.a"),
    Bad("an integer beyond 64 bits", when(a=2**63), "rules[0].when.a", "string"),
    Bad("an integer below 64 bits", when(a=[-(2**63) - 1]), "rules[0].when.a[0]", "string"),
    Bad("an integer variant beyond 64 bits", document(variants={"on": 2**64}), "variants.on"),
    Bad("a set", when(a={1}), "rules[0].when.a", "list"),
    *(Bad(f"{value!r}", when(a=value), f"rules[0].when.a.{next(iter(value))}", "Write $")
      for value in NOT_EXTENDED),
    Bad("a date without a zone", when(a={"$date": "2026-12-01"}), "rules[0].when.a.$date", "zone"),
    Bad("a long integer beyond 64 bits", when(a={"$numberLong": str(2**63)}),
        "rules[0].when.a.$numberLong", "string"),
    *(Bad(f"{value!r}", when(a=[value]), "rules[0].when.a[0]", "34 digits")
      for value in (Decimal("1." + "1" * 34), Decimal("1E+6145"), Decimal("1E-6177"))),
    Bad("an extended value and more", when(a={"$numberDecimal": "1", "b": 2}),
        "rules[0].when.a.$numberDecimal", "Known"),
    Bad("an extended value where operators belong", when(a={"$not": {"$uuid": str(ID)}}),
        "rules[0].when.a.$not", "operator"),
    Bad("an extended value for a condition", rule(when={"$uuid": str(ID)}), "rules[0].when"),
    Bad("a date for a rule", document(rules=[{"$date": "2026-12-01T08:00:00Z"}]), "rules[0]"),
    *(Bad(f"{value!r} as a variant", document(variants={"on": value}), "variants.on", "string")
      for value in (Decimal(1), ID, b"x")),
    Bad("a decimal within a variant", document(variants={"on": [Decimal(1)]}), "variants.on[0]"),
    Bad("an object", document(variants={"on": object()}), "variants.on"),
    # Unknown fields, at every level
    Bad("unknown field", document(varients={}), "varients", "variants"),
    Bad("unknown field of a rule", rule(wen={}), "rules[0].wen", "when"),
    Bad("unknown field of a window", rule(during={"form": MOMENT}), "rules[0].during.form", "from"),
    Bad("a reference", when(a={"b": {"$ref": "x", "$id": "y"}}), "rules[0].when.a.b", "Rename"),
    Bad("an empty salt", rollout(salt=""), "fallthrough.rollout.salt", "Leave it out"),
    Bad("unknown field of a rollout", rollout(slat="x"), "fallthrough.rollout.slat", "salt"),
    Bad("unknown field of a fallthrough", document(fallthrough={"serv": "on"}), "fallthrough.serv",
        "serve"),
    Bad("unknown field of a rule's rollout",
        document(rules=[{"name": "r", "rollout": {"weigths": {}}}]), "rules[0].rollout.weigths",
        "weights"),
    Bad("unknown field of a prerequisite", document(prerequisites=[{"flg": "a"}]),
        "prerequisites[0].flg", "flag"),
    Bad("unknown field with a line break", document(**{"a\nb": 1}), "'a\\nb'", "Known"),
    Bad("unknown field that a terminal obeys", rule(**{"a\x1b[0m": 1}), "rules[0].'a\\x1b[0m'",
        "Known"),
    # Names
    *(Bad(f"key {key!r:.20}", document(key=key), "key", "lower case")
      for key in ("", "a b", "A", "a..b", ".a", "a.", "-a", "a\n", "ä", "k" * 201)),
    Bad("key 5", document(key=5), "key"),
    Bad("a key beyond 64 bits", document(key=10**5000), "key", "string"),
    *(Bad(f"region {region!r:.20}", document(region=region), "region", "eu-west-1")
      for region in ("", "EU", "**", "eu west", "eu\n", "r" * 64)),
    Bad("a state of others", document(state="on"), "state", "active, paused, archived"),
    Bad("duplicate rule name", document(rules=[{"name": "r", "serve": "on"}] * 2), "rules[1].name"),
    Bad("a rule without a name", document(rules=[{"serve": "on"}]), "rules[0].name"),
    Bad("too many rules", document(rules=[{"name": str(i), "serve": "on"} for i in range(257)]),
        "rules", "$or"),
    # Variants
    Bad("no variants", document(variants={}), "variants", "at least one"),
    Bad("variants as a list", document(variants=["on"]), "variants"),
    Bad("a null variant", document(variants={"on": None}), "variants.on", "types"),
    Bad("a date as a variant", document(variants={"on": MOMENT}), "variants.on", "quote"),
    Bad("NaN as a variant", document(variants={"on": math.nan}), "variants.on"),
    Bad("infinity within a variant", document(variants={"on": {"a": [math.inf]}}),
        "variants.on.a[0]"),
    Bad("a date within a variant", document(variants={"on": {"a": MOMENT}}), "variants.on.a"),
    Bad("mixed variants", document(variants={"on": True, "off": "no"}), "variants.off",
        "same type"),
    Bad("a boolean among integers", document(variants={"a": 1, "b": True}), "variants.b"),
    Bad("unknown variant as off", document(off="x"), "off", "on, off"),
    Bad("unknown variant in a rule", rule(serve="x"), "rules[0].serve", "on, off"),
    Bad("unknown variant in a fallthrough", document(fallthrough={"serve": "x"}),
        "fallthrough.serve", "on, off"),
    Bad("unknown variant in weights", weights(x=100), "fallthrough.rollout.weights.x", "on, off"),
    # What readers of YAML 1.1 make of on, off, yes, no and 22:00
    Bad("a boolean for a variant's name", rule(serve=True), "rules[0].serve", "YAML 1.1"),
    Bad("a boolean as off", document(off=False), "off", "Quote it"),
    Bad("a boolean as the key", document(key=True), "key", "Quote it"),
    Bad("another word when stale", document(when_stale="on"), "when_stale", "hold, off"),
    Bad("a boolean when stale", document(when_stale=False), "when_stale", "Quote it"),
    Bad("a boolean as the state", document(state=True), "state", "Quote it"),
    Bad("a boolean among names", document(prerequisites=[{"flag": "g", "variants": [True]}]),
        "prerequisites[0].variants[0]", "YAML 1.1"),
    Bad("a boolean among tags", document(tags=["a", False]), "tags[1]", "YAML 1.1"),
    Bad("a number for a text", rule(name=1320), "rules[0].name", "22:00"),
    Bad("a fraction for a text", document(owner=1.5), "owner", "Quote it"),
    Bad("a boolean as a field", MINIMAL | {False: "off"}, "", "YAML 1.1"),
    Bad("booleans as variants", document(variants={True: 1, False: 2}), "variants", "YAML 1.1"),
    Bad("booleans as weights", rollout(weights={True: 50, False: 50}),
        "fallthrough.rollout.weights", "YAML 1.1"),
    Bad("a boolean among strings", document(variants={"on": "x", "off": False}), "variants.off",
        "quote on, off, yes and no"),
    # What is served
    Bad("serve and rollout", rule(rollout=10), "rules[0]", "one of"),
    *(Bad(f"a ramp with {problem}", rule(serve=None, ramp=RAMP | change), f"rules[0].ramp{path}",
          remedy)
      for problem, change, path, remedy in BAD_RAMPS),
    Bad("neither serve nor rollout", document(fallthrough={}), "fallthrough", "one of"),
    Bad("neither in a rule", document(rules=[{"name": "r"}]), "rules[0]", "one of"),
    Bad("weights of 99.9 %", weights(on=50, off=49.9), "fallthrough.rollout.weights", "100 %"),
    Bad("weights of 100.001 %", weights(on=50, off=50.001), "fallthrough.rollout.weights", "100 %"),
    Bad("no weights", weights(), "fallthrough.rollout.weights", "100 %"),
    Bad("a weight too fine", weights(on=0.0005, off=99.9995), "fallthrough.rollout.weights.on",
        "three decimals"),
    *(Bad(f"a weight of {share!r}", weights(on=share, off=50), "fallthrough.rollout.weights.on",
          "0 to 100")
      for share in (-1, 101, True, "50", None, math.nan, math.inf, [50])),
    *(Bad(f"a bare weight of {share!r}", document(fallthrough={"rollout": share}),
          "fallthrough.rollout") for share in (-1, 100.001, True, "50", math.nan)),
    Bad("a bare percentage of strings",
        document(variants={"on": "a", "off": "b"}, fallthrough={"rollout": 20}),
        "fallthrough.rollout", "Write weights"),
    Bad("a bare percentage of three",
        document(variants={"a": True, "b": False, "off": False}, fallthrough={"rollout": 20}),
        "fallthrough.rollout", "Write weights"),
    Bad("a bare percentage of two that are true",
        document(variants={"a": True, "off": True}, fallthrough={"rollout": 20}),
        "fallthrough.rollout", "Write weights"),
    Bad("no path to hash by", rollout(by=""), "fallthrough.rollout.by"),
    Bad("a bad path to hash by", rollout(by="a..b"), "fallthrough.rollout.by"),
    *(Bad(f"intervals {ends}", rollout(intervals=ends), "fallthrough.rollout.intervals", "Leave")
      for ends in (
          [], [[50_000, "on"]], [[40_000, "on"], [100_000, "off"]],
          [[50_000, "on"], [50_000, "off"]], [[50_000, "x"], [100_000, "off"]],
          [[50_000, "on"], [100_001, "off"]], [[-1, "on"], [100_000, "off"]],
          [[100_000, "off"], [50_000, "on"]],
      )),
    Bad("intervals of the wrong form", rollout(intervals=[[50_000]]),
        "fallthrough.rollout.intervals[0]"),
    # Conditions
    Bad("a path of 17 names", when(**{".".join("a" * 17): 1}),
        "rules[0].when." + ".".join("a" * 17), "16 names"),
    Bad("a path of 5 numbers", when(**{"a.0.0.b.0.0.0": 1}), "rules[0].when.a.0.0.b.0.0.0",
        "4 numbers"),
    Bad("a path of 17 names to hash by", rollout(by=".".join("a" * 17)),
        "fallthrough.rollout.by", "16 names"),
    *(Bad(f"too many tests of {name}",
          document(rules=[NO_TESTS, {"name": "b", "when": tests, "serve": "on"}]),
          "rules[1].when", "$in")
      for name, tests in TOO_MANY.items()),
    # Prerequisites
    Bad("a prerequisite on itself", document(prerequisites=[{"flag": "f", "variants": ["on"]}]),
        "prerequisites[0].flag", "another"),
    Bad("a prerequisite that is no key",
        document(prerequisites=[{"flag": "F", "variants": ["on"]}]), "prerequisites[0].flag"),
    Bad("a prerequisite without variants", document(prerequisites=[{"flag": "g", "variants": []}]),
        "prerequisites[0].variants", "Name"),
    # Times
    Bad("a naive date", document(expires=NAIVE), "expires", "zone"),
    Bad("a naive date as text", document(expires="2026-12-01T08:00:00"), "expires", "zone"),
    Bad("a naive date in a window", rule(during={"from": NAIVE}), "rules[0].during.from", "zone"),
    Bad("a naive date in a condition", when(a={"$gt": NAIVE}), "rules[0].when.a.$gt", "zone"),
    Bad("text that is no date", rule(during={"from": "soon"}), "rules[0].during.from"),
    Bad("a window reversed", rule(during={"from": MOMENT, "until": MOMENT - timedelta(days=1)}),
        "rules[0].during", "later date last"),
    *(Bad(f"a recurring window with {problem}", rule(during=during), f"rules[0].during{path}",
          remedy)
      for problem, during, path, remedy in BAD_RECURRENCES),
    Bad("an empty window", rule(during={"from": MOMENT, "until": MOMENT}), "rules[0].during"),
    Bad("a window without ends", rule(during={}), "rules[0].during"),
    Bad("a window within a millisecond",
        rule(during={"from": MOMENT, "until": MOMENT + timedelta(microseconds=999)}),
        "rules[0].during"),
    Bad("a date after the last in UTC", document(expires=LAST), "expires"),
    Bad("a date before the first in UTC", when(a=FIRST), "rules[0].when.a"),
    Bad("the same as text", document(expires="9999-12-31T23:59:59-01:00"), "expires"),
    # Conditions
    Bad("a condition as a list", rule(when=[]), "rules[0].when"),
    Bad("unknown operator", when(a={"$regx": "x"}), "rules[0].when.a.$regx", "$in"),
    Bad("unknown operator that is close", when(a={"$gtte": 1}), "rules[0].when.a.$gtte",
        "mean $gte"),
    Bad("unknown operator at the top", when(**{"$where": "1"}), "rules[0].when.$where", "$or"),
    Bad("an attribute's operator at the top", when(**{"$gt": 1}), "rules[0].when.$gt", "$or"),
    Bad("a logical operator of an attribute", when(a={"$and": []}), "rules[0].when.a.$and"),
    *(Bad(f"$size of {size!r}", when(a={"$size": size}), "rules[0].when.a.$size", "$size: 2")
      for size in (1.5, -1, True, None, "1", 2**31, float("nan"))),
    *(Bad(f"$mod of {pair!r}", when(a={"$mod": pair}), "rules[0].when.a.$mod", "[4, 0]")
      for pair in NOT_PAIRS),
    *(Bad(f"$type of {kind!r}", when(a={"$type": kind}), "rules[0].when.a.$type")
      for kind in NOT_TYPES),
    *(Bad(f"$elemMatch of {inner!r}", when(a={"$elemMatch": inner}), "rules[0].when.a.$elemMatch")
      for inner in NOT_DOCUMENTS),
    Bad("unknown operator in $elemMatch", when(a={"$elemMatch": {"$x": 1}}),
        "rules[0].when.a.$elemMatch.$x"),
    *(Bad(f"$all of {values!r}", when(a={"$all": values}), "rules[0].when.a.$all")
      for values in NOT_ALL),
    *(Bad(f"{name} of {text!r}", when(a={name: text}), f"rules[0].when.a.{name}")
      for name in ("$startsWith", "$endsWith", "$contains") for text in NOT_TEXTS),
    Bad("$semver of a string", when(a={"$semver": "1.0.0"}), "rules[0].when.a.$semver", "$gte"),
    Bad("$semver of nothing", when(a={"$semver": {}}), "rules[0].when.a.$semver"),
    *(Bad(f"$semver with {version!r}", when(a={"$semver": {"$gt": version}}),
          "rules[0].when.a.$semver.$gt", "three numbers")
      for version in ("1.0", "v1.0.0", 1.5, None)),
    Bad("$semver with a list", when(a={"$semver": {"$gt": ["1.0.0"]}}),
        "rules[0].when.a.$semver.$gt", "$in"),
    Bad("$semver with an unknown comparison", when(a={"$semver": {"$near": "1.0.0"}}),
        "rules[0].when.a.$semver.$near", "$gte"),
    *(Bad(f"the bare operator {name}", when(a={name: 1}), f"rules[0].when.a.{name}", meant)
      for name, meant in (("gte", "$gte"), ("in", "$in"), (">=", "$gte"), ("==", "$eq"))),
    Bad("unknown operator far down", when(**{"$or": [{"a": 1}, {"b": {"$not": {"$x": 1}}}]}),
        "rules[0].when.$or[1].b.$not.$x"),
    Bad("a name among operators", when(a={"$gt": 1, "b": 2}), "rules[0].when.a.b"),
    *(Bad(f"the path {path!r}", when(**{path: 1}), f"rules[0].when.{path}", "single dots")
      for path in ("", ".", "a..b", ".a", "a.", "a.$b")),
    *(Bad(f"{operator} of {branches}", when(**{operator: branches}), f"rules[0].when.{operator}",
          "at least one")
      for operator in ("$and", "$or", "$nor") for branches in NO_BRANCHES),
    Bad("a branch that is no document", when(**{"$and": [{}, 1]}), "rules[0].when.$and[1]"),
    *(Bad(f"{operator} of no list", when(a={operator: 1}), f"rules[0].when.a.{operator}", "[value")
      for operator in ("$in", "$nin")),
    *(Bad(f"an operator under {operator}", when(a={operator: [1, {"$gt": 1}]}),
          f"rules[0].when.a.{operator}[1]", "$or") for operator in ("$in", "$nin")),
    *(Bad(f"$not of {value}", when(a={"$not": value}), "rules[0].when.a.$not", "$operator")
      for value in NOT_OPERATORS),
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: ascii(bad.name)[1:-1])
def test_a_bad_document_is_refused_by_its_path_and_with_a_remedy(bad: Bad) -> None:
    with pytest.raises(InvalidDocumentError) as caught:
        decode(bad.document)
    error = caught.value
    assert error.path == bad.path
    assert bad.remedy in error.remedy
    assert error.remedy
    assert error.problem
    assert str(error).endswith(f"{error.path or 'document'}: {error.problem}. {error.remedy}")


MISTYPED: list[tuple[dict[str, Any], str]] = [
    (document(rules={}), "a document, where a list belongs. Write its members in brackets"),
    (document(variants=[]), "a list, where a document belongs. Write fields, each with"),
    (document(prerequisites=["g"]), "text, where a document belongs. Write fields"),
    (rule(serve=[1]), "a list, where text belongs. Write text, in quotes"),
    (document(owner=MOMENT), "a date, where text belongs. Write text, in quotes"),
    (document(state=None), "null, where text belongs. Write text, in quotes"),
    (document(tags=[1.5]), "a number, where text belongs. Quote it: YAML 1.1"),
    (document(fallthrough={"rollout": "5"}), "text, where a number or a document belongs. Write a"),
    (rule(serve=None, ramp=RAMP | {"from": True}), "a boolean, where a number belongs. Write a"),
    (rollout(intervals=[[1.5, "on"]]), "a number, where a whole number belongs. Write it without"),
    (rollout(intervals=[[1]]), "not [END, VARIANT]. Leave the intervals out"),
    (rule(during={"from": "2026-01-01"}), "no date. Write it like 2026-12-01T08:00:00Z"),
    (rule(during={"from": 5}), "a whole number, where a date belongs. Write it like 2026-12-01T"),
    (document(expires="soon"), "no date. Write it like 2026-12-01T08:00:00Z"),
]


@pytest.mark.parametrize(("made", "said"), MISTYPED, ids=str)
def test_what_is_of_the_wrong_type_is_named_in_words(made: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidDocumentError) as caught:
        decode(made)
    assert f": is {said}" in str(caught.value)
    assert "`" not in str(caught.value)


def test_an_error_names_the_flag_and_is_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"^flag 'f': rules\[0\]\.serve: 'x' is not") as caught:
        decode(rule(serve="x"))
    assert isinstance(caught.value, FlagkitError)


def test_a_document_for_another_environment_is_refused() -> None:
    decode(document(environment="production"))
    decode(document(), environment="production")
    with pytest.raises(InvalidDocumentError) as caught:
        decode(document(environment="staging"), environment="production")
    assert caught.value.path == "environment"


# Properties

CHARACTERS = "aZ.$ é😀\n'\u2028"
TEXTS = st.text(CHARACTERS, max_size=4)
DATES = st.builds(
    lambda day, microsecond, zone: (MOMENT + timedelta(day, 0, microsecond)).astimezone(zone),
    st.integers(-730_000, 2_900_000),
    st.integers(0, 10**10),
    st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))]),
)
INTEGERS = st.integers(-(2**63), 2**63 - 1)
DECIMALS = st.decimals(-(10**20), 10**20, places=3) | st.sampled_from(
    [Decimal(text) for text in ("1.50", "1E+6144", "-0", "NaN", "sNaN", "Infinity")]
)
SCALARS = st.one_of(
    *(st.none(), st.booleans(), INTEGERS, st.floats(), TEXTS, DATES),
    *(DECIMALS, st.uuids(), st.binary(max_size=3)),
)
CONSTANTS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab", max_size=2), inner),
    max_leaves=4,
)
PATHS = st.sampled_from(["a", "b.c", "a.0", "targeting_key"])
OPERATORS = (
    st.dictionaries(st.sampled_from(["$eq", "$ne", "$gt", "$exists"]), CONSTANTS, min_size=1)
    | st.lists(CONSTANTS, max_size=2).map(lambda listed: {"$in": listed, "$nin": listed})
)  # fmt: skip
CONDITIONS = st.recursive(
    st.dictionaries(PATHS, CONSTANTS | OPERATORS | OPERATORS.map(lambda test: {"$not": test})),
    lambda inner: st.dictionaries(
        st.sampled_from(["$and", "$or", "$nor"]), st.lists(inner, min_size=1, max_size=2)
    ),
    max_leaves=3,
)
KEYS = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,4}(\.[a-z0-9]{1,3}){0,2}", fullmatch=True)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab"), inner, max_size=2),
    max_leaves=3,
)
VARIANTS = st.one_of(
    st.just(BOOLEAN),
    *(
        st.dictionaries(TEXTS, values, min_size=1, max_size=3)
        for values in (
            TEXTS,
            INTEGERS,
            st.floats(allow_nan=False, allow_infinity=False),
            st.integers(-5, 5) | st.floats(-5, 5),
            st.lists(JSON, max_size=2) | st.dictionaries(st.text("ab"), JSON, max_size=2),
        )
    ),
)


@st.composite
def serves(draw: st.DrawFn, variants: Mapping[str, Any]) -> dict[str, Any]:
    names = st.sampled_from(list(variants))
    if draw(st.booleans()):
        return {"serve": draw(names)}
    if len(variants) > 1 and draw(st.booleans()):
        return draw(ramps(list(variants)))
    if variants == BOOLEAN and draw(st.booleans()):
        return {"rollout": draw(st.integers(0, 100_000)) / 1000}
    taking = draw(st.lists(names, min_size=1, unique=True))
    cuts = sorted(draw(st.lists(st.integers(0, 100_000), min_size=len(taking) - 1,
                                max_size=len(taking) - 1)))  # fmt: skip
    shares = [end - start for start, end in zip([0, *cuts], [*cuts, 100_000], strict=True)]
    percentages = dict(zip(taking, (share / 1000 for share in shares), strict=True))
    optional = st.fixed_dictionaries({}, optional={"by": PATHS, "salt": TEXTS.filter(bool)})
    return {"rollout": draw(optional) | {"weights": percentages}}


@st.composite
def ramps(draw: st.DrawFn, names: list[str]) -> dict[str, Any]:
    inside, outside = draw(st.permutations(names))[:2]
    ramp: dict[str, Any] = {"variant": inside, "otherwise": outside}
    ramp |= draw(st.fixed_dictionaries({}, optional={"by": PATHS, "salt": TEXTS.filter(bool)}))
    share = st.integers(0, 100_000).map(lambda thousandths: thousandths / 1000)
    times = [
        MOMENT + timedelta(days=day)
        for day in sorted(draw(st.sets(st.integers(0, 99), min_size=2, max_size=4)))
    ]
    if draw(st.booleans()):
        return {"ramp": ramp | {"steps": [{"at": at, "percent": draw(share)} for at in times]}}
    optional = draw(st.fixed_dictionaries({}, optional={"from": share, "to": share}))
    return {"ramp": ramp | optional | {"start": times[0], "end": times[1]}}


@st.composite
def windows(draw: st.DrawFn) -> dict[str, Any]:
    start, end = sorted((draw(DATES), draw(DATES)))
    if end - start < timedelta(milliseconds=2):
        end += timedelta(seconds=1)
    ends = draw(st.sampled_from([{"from": start, "until": end}, {"from": start}, {"until": end}]))
    times = st.tuples(st.integers(0, 23), st.integers(0, 59)).map(
        lambda time: f"{time[0]:02}:{time[1]:02}"
    )
    hours = st.fixed_dictionaries({"from": times, "until": times})
    again = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "days": st.lists(st.sampled_from(DAYS), min_size=1),
                "hours": hours.filter(lambda hours: hours["from"] != hours["until"]),
            },
        )
    )
    return {**ends, **again, "zone": "Europe/Berlin"} if again else dict(ends)


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    key, variants = draw(KEYS), draw(VARIANTS)
    names = list(variants)
    made: dict[str, Any] = {"key": key, "variants": variants, "fallthrough": draw(serves(variants))}
    made |= draw(
        st.fixed_dictionaries(
            {},
            optional={
                "region": st.sampled_from(["*", "eu", "us-east-1"]),
                "state": st.sampled_from(["active", "paused", "archived"]),
                "when_stale": st.sampled_from(["hold", "off"]),
                "off": st.sampled_from([None, *names]),
                "owner": TEXTS,
                "description": TEXTS,
                "tags": st.lists(TEXTS, max_size=2),
                "expires": DATES,
                "prerequisites": st.lists(
                    st.fixed_dictionaries(
                        {"flag": KEYS.filter(lambda other: other != key),
                         "variants": st.lists(TEXTS, min_size=1, max_size=2)}
                    ), max_size=2
                ),
            },
        )
    )  # fmt: skip
    if draw(st.booleans()):
        optional = st.fixed_dictionaries({}, optional={"when": CONDITIONS, "during": windows()})
        made["rules"] = [
            draw(serves(variants)) | draw(optional) | {"name": f"rule {i}"}
            for i in range(draw(st.integers(0, 3)))
        ]
    return made


def same(one: Flag, other: Flag) -> bool:
    """Compare by what is written: NaN equals itself, and 1 is neither 1.0 nor true."""
    return repr(one) == repr(other)


@settings(max_examples=200)
@given(documents())
def test_a_flag_survives_the_way_through_its_document(made: dict[str, Any]) -> None:
    flag = decode(made)
    assert same(decode(encode(flag)), flag)
    assert repr(encode(decode(encode(flag)))) == repr(encode(flag))


@settings(max_examples=200)
@given(documents())
def test_an_encoded_flag_is_the_same_after_messagepack_and_bson(made: dict[str, Any]) -> None:
    encoded = encode(decode(made))
    packed = msgspec.msgpack.decode(msgspec.msgpack.encode(encoded))
    options: CodecOptions[dict[str, Any]] = CodecOptions(tz_aware=True)
    stored = bson.decode(bson.encode(encoded), options)
    for read in (packed, stored):
        assert repr(encode(decode(read))) == repr(encoded)
        assert same(decode(read), decode(made))


@settings(max_examples=50)
@given(documents())
def test_decoding_leaves_the_document_as_it_was(made: dict[str, Any]) -> None:
    before = repr(made)
    encode(decode(made))
    assert repr(made) == before


JUNK = st.recursive(
    st.one_of(
        SCALARS,
        st.integers(),
        st.sampled_from([4299, 5000]).map(lambda digits: 10**digits),
        st.sampled_from([1j, b"x", object(), math.nan, math.inf, "\ud800", "$gt", "on"]),
        st.datetimes(),
        st.datetimes(timezones=st.sampled_from([WEST, EAST])),
        st.sampled_from([LAST.replace(tzinfo=EAST), LAST.replace(tzinfo=WEST), FIRST]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner),
        st.dictionaries(
            st.sampled_from(["a", "$in", "$not", "$or", "", "a\0", "\ud800", "serve", "weights"])
            | st.sampled_from([None, 1, (), b"a"])
            | st.just(5000).map(lambda digits: 10**digits),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=5,
)


@st.composite
def spoiled(draw: st.DrawFn) -> dict[str, Any]:
    """A good document of which one part is replaced by something else."""
    made = draw(documents())
    part: Any = made
    while True:
        place = draw(st.sampled_from(list(part if isinstance(part, dict) else range(len(part)))))
        inner = part[place]
        if not isinstance(inner, dict | list) or not inner or draw(st.booleans()):
            break
        part[place] = part = inner.copy()
    part[place] = draw(JUNK)
    return made


def flag_or_refusal(made: object) -> Flag | InvalidDocumentError:
    try:
        return decode(made)
    except InvalidDocumentError as error:
        return error


@settings(max_examples=300)
@given(spoiled() | JUNK)
def test_whatever_comes_in_is_a_flag_or_an_invalid_document(made: object) -> None:
    decoded = flag_or_refusal(made)
    if isinstance(decoded, Flag):
        assert same(decode(encode(decoded)), decoded)
    else:
        assert decoded.problem
        assert decoded.remedy
        assert str(decoded)
