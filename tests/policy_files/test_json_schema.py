"""The schema of policy files: it accepts what decode accepts, and refuses what a schema can see."""

import json
import re
from collections.abc import Iterator
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from random import Random
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from flagkit._core.model import decode, encode
from flagkit._core.model.canonical import canonicalize_flag, format_date, to_extended_json
from flagkit._core.model.segments import decode_segment
from flagkit.cli.main import flagkit
from flagkit.errors import InvalidDocumentError
from flagkit.policy_files.json_schema import build_schema
from flagkit.policy_files.reader import PolicyFile
from tests.model.test_flags import BAD, EXTENDED, MOMENT, document, documents, rollout, rule, when
from tests.model.test_segments import BAD as BAD_SEGMENTS
from tests.support.mongod_oracle import BatchGenerator
from tests.test_docs import blocks

SHOP = Path(__file__).parents[2] / "examples" / "shop" / "flags.yaml"
SCHEMA = build_schema()
Draft202012Validator.check_schema(SCHEMA)
VALIDATOR = Draft202012Validator(SCHEMA)


def faults(*flags: Any) -> list[str]:
    """Return where the schema finds something wrong with flags, as they stand in a JSON file."""
    return [
        error.json_path for error in VALIDATOR.iter_errors({"flags": to_extended_json([*flags])})
    ]


def segment_faults(*segments: Any) -> list[str]:
    """Return where the schema finds something wrong with segments."""
    return [error.json_path for error in VALIDATOR.iter_errors({"segments": [*segments]})]


def as_text(value: Any) -> Any:
    """Return a document with its dates as text, as editors see them in YAML."""
    match value:
        case dict():
            return {name: as_text(item) for name, item in value.items()}
        case list():
            return [as_text(item) for item in value]
        case datetime():
            return format_date(value)
        case _:
            return value


def is_json(made: object) -> bool:
    """Tell whether a document can stand in a JSON file at all."""
    try:
        return bool(json.loads(json.dumps(made, allow_nan=False)) == made)
    except (TypeError, ValueError):
        return False


# The file


def test_the_shipped_schema_is_the_generated_one() -> None:
    shipped = files("flagkit.policy_files").joinpath("flagkit.schema.json").read_text("utf-8")
    printed = CliRunner().invoke(flagkit, ["schema"], catch_exceptions=False).output
    assert shipped == printed, "run: flagkit schema > src/flagkit/policy_files/flagkit.schema.json"
    assert json.loads(printed) == SCHEMA


def properties(part: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(part, dict):
        if isinstance(part.get("properties"), dict) and "additionalProperties" in part:
            yield from ((f"{path}.{name}", found) for name, found in part["properties"].items())
        for name, found in part.items():
            yield from properties(found, f"{path}.{name}")


def test_every_field_and_operator_is_described() -> None:
    found = dict(properties(SCHEMA))
    undescribed = [
        path for path, part in found.items() if "description" not in part and "$semver" not in path
    ]
    assert undescribed == []
    assert len(found) > 60


def test_all_references_lead_somewhere() -> None:
    references = set(re.findall(r'"\$ref": "#/\$defs/(\w+)"', json.dumps(SCHEMA)))
    assert references == SCHEMA["$defs"].keys()


# What is accepted


@settings(max_examples=300)
@given(documents())
def test_what_decode_accepts_is_accepted(made: dict[str, Any]) -> None:
    flag = decode(made)
    assert faults(made) == faults(as_text(made)) == []
    assert faults(encode(flag)) == faults(canonicalize_flag(flag)) == []


def test_conditions_that_decode_accepts_are_accepted() -> None:
    chance = Random(2026)
    accepted = 0
    for _ in range(3_000):
        made = when(**BatchGenerator(chance).condition())
        try:
            flag = decode(made)
        except InvalidDocumentError:  # a constant of a type that policies cannot hold
            continue
        assert faults(encode(flag)) == [], made
        accepted += 1
    assert accepted > 1_000


def test_the_example_is_accepted() -> None:
    assert faults(*(policy.document for policy in PolicyFile(SHOP).policies)) == []


@pytest.mark.parametrize("code", blocks("yaml"))
def test_the_documents_of_the_documentation_are_accepted(code: str) -> None:
    part = YAML(typ="safe").load(code)
    if "included" in part:
        assert segment_faults(part) == []
    else:
        assert faults(part if "key" in part else document() | whole_of(part)) == []


def whole_of(part: dict[str, Any]) -> dict[str, Any]:
    return part if "rules" in part else {"fallthrough": part}


@pytest.mark.parametrize(
    "made",
    [
        {"key": "s"},
        {"key": "s", "when": {}, "by": "org.id", "included": ["ada", 5], "excluded": []},
        {"key": "s", "included": {"count": 1, "parts": ["0" * 64]}, "tags": ["a"], "owner": "b"},
        {"key": "s", "included": {"count": {"$numberInt": "1"}, "parts": ["0" * 64]}},
    ],
)
def test_segments_are_accepted(made: dict[str, Any]) -> None:
    decode_segment(made)
    assert segment_faults(made) == []


@pytest.mark.parametrize("name", [case[0] for case in BAD_SEGMENTS])
def test_bad_segments_are_refused_as_far_as_a_schema_can(name: str) -> None:
    made = next(case[1] for case in BAD_SEGMENTS if case[0] == name)
    beyond = {
        "too many tests",
        "a segment within",
        "another environment",
        "parts that are none",
        "too few parts",
    }
    if name != "an integer of 5,000 digits":  # jsonschema cannot say it
        assert bool(segment_faults(made)) is (name not in beyond)


RAMP = {"variant": "on", "otherwise": "off"}
STEP = {"at": MOMENT, "percent": 5}
LATER = "2027-01-01 00:00:00Z"


@pytest.mark.parametrize(
    "made",
    [
        rule(serve=None, rollout=20, ramp=None),
        rule(serve="on", during={"from": None, "until": MOMENT, "days": None, "zone": None}),
        rule(serve="on", during={"hours": {"from": "22:00", "until": "24:00"}, "zone": "UTC"}),
        rollout(by="org.id", salt=None, intervals=None),
        document(off=None, owner=None, tags=None, expires=None, environment=None),
        rule(serve=None, ramp=RAMP | {"start": MOMENT, "end": LATER}),
        rule(serve=None, ramp=RAMP | {"steps": [STEP], "start": None, "from": None}),
        when(a={"b": 1, "$gt": 2}),
        when(a={"b": 1, "gte": 2}),
        when(a={}),
        when(a={"$elemMatch": {}}),
        when(a={"$all": []}),
        when(a={"$exists": "yes"}),
        when(a={"$size": 2.0, "$mod": [4.5, 0], "$type": [1.0, "number"]}),
        when(a={"$semver": {"$gte": "1.0.0-rc.1+b", "$in": []}}),
        document(fallthrough={"rollout": {"$numberInt": "20"}}),
        rollout(weights={"on": {"$numberInt": "20"}, "off": {"$numberDouble": "80.0"}}),
        rollout(intervals=[[{"$numberInt": "50000"}, "on"], [100_000, "off"]]),
        rule(
            serve=None,
            ramp=RAMP | {"start": MOMENT, "end": LATER, "from": {"$numberInt": "1"}},
        ),
        rule(serve=None, ramp=RAMP | {"steps": [STEP | {"percent": {"$numberLong": "5"}}]}),
        *(when(a=constant) for constant, _, _ in EXTENDED if is_json(constant)),
    ],
    ids=str,
)
def test_rare_forms_are_accepted(made: dict[str, Any]) -> None:
    decode(made)
    assert faults(made) == []


# What is refused

BAD_TESTS: list[dict[str, Any]] = [
    *({"$gtte": 1}, {"gte": 18, "lt": 65}, {"$size": -1}, {"$mod": [0, 1]}, {"$not": {}}),
    *({"$mod": ["2", 0]}, {"$mod": [2]}),
    *({"$in": "DE"}, {"$in": [{"$gt": 1}]}, {"$type": "String"}, {"$all": [{"$gt": 1}]}),
    *({"$numberInt": "1_000"}, {"$numberDouble": "inf"}, {"$date": "2026-W01-1T00:00:00Z"}),
    *(
        {"$oid": "0" * 23},
        {"$oid": 5},
        {"$uuid": "0-0-1"},
        {"$binary": {"base64": "AQ=I", "subType": "00"}},
    ),
    *({"$elemMatch": {"$x": 1}}, {"$startsWith": ""}, {"$semver": {"$gte": "1.0"}}),
]
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "$.flags[0]"),
    (document(varients={}), "$.flags[0]"),
    (document(key="A b"), "$.flags[0].key"),
    (document(key="k" * 201), "$.flags[0].key"),
    (document(region="EU"), "$.flags[0].region"),
    (document(state="on"), "$.flags[0].state"),
    (document(variants={}), "$.flags[0].variants"),
    (document(variants={"on": True, "off": "no"}), "$.flags[0].variants"),
    (document(variants={"on": None}), "$.flags[0].variants"),
    (document(off=False), "$.flags[0].off"),
    (document(expires="2026-12-01T08:00:00"), "$.flags[0].expires"),
    (document(expires="2026-12-01"), "$.flags[0].expires"),
    (document(fallthrough={}), "$.flags[0].fallthrough"),
    (document(fallthrough={"serve": None}), "$.flags[0].fallthrough"),
    (document(fallthrough={"serve": "on", "rollout": 5}), "$.flags[0].fallthrough"),
    (document(fallthrough={"rollout": 101}), "$.flags[0].fallthrough.rollout"),
    (document(rules=[{"serve": "on"}]), "$.flags[0].rules[0]"),
    (document(rules=[{"name": str(i), "serve": "on"} for i in range(257)]), "$.flags[0].rules"),
    (rule(during={}), "$.flags[0].rules[0].during"),
    (rule(during={"form": MOMENT}), "$.flags[0].rules[0].during"),
    (rule(during={"days": ["mon"]}), "$.flags[0].rules[0].during"),
    (rule(during={"from": MOMENT, "zone": "UTC"}), "$.flags[0].rules[0].during"),
    (rule(during={"days": ["Monday"], "zone": "UTC"}), "$.flags[0].rules[0].during"),
    (
        rule(during={"hours": {"from": 1320, "until": "24:00"}, "zone": "UTC"}),
        "$.flags[0].rules[0].during",
    ),
    (rollout(weights={}), "$.flags[0].fallthrough.rollout"),
    (rollout(weights={"on": "50"}), "$.flags[0].fallthrough.rollout"),
    (rollout(by="a..b"), "$.flags[0].fallthrough.rollout"),
    (rollout(salt=""), "$.flags[0].fallthrough.rollout"),
    (rollout(intervals=[[0, "on"]]), "$.flags[0].fallthrough.rollout"),
    (document(fallthrough={"ramp": RAMP}), "$.flags[0].fallthrough.ramp"),
    (document(fallthrough={"ramp": RAMP | {"steps": []}}), "$.flags[0].fallthrough.ramp"),
    (
        document(fallthrough={"ramp": RAMP | {"steps": [STEP], "to": 5}}),
        "$.flags[0].fallthrough.ramp",
    ),
    (document(prerequisites=[{"flag": "g", "variants": []}]), "$.flags[0].prerequisites[0]"),
    (rule(when=[]), "$.flags[0].rules[0].when"),
    (when(**{"$gt": 1}), "$.flags[0].rules[0].when"),
    (when(**{"$or": []}), "$.flags[0].rules[0].when"),
    (when(**{"a..b": 1}), "$.flags[0].rules[0].when"),
    *((when(a=test), "$.flags[0].rules[0].when.a") for test in BAD_TESTS),
]


@pytest.mark.parametrize(("made", "path"), REFUSED, ids=str)
def test_what_a_schema_can_see_is_refused_by_both(made: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidDocumentError):
        decode(made)
    found = faults(made)
    assert found
    assert all(place.startswith(path) for place in found)


def test_most_of_what_decode_refuses_is_refused() -> None:
    plain = [bad.document for bad in BAD if is_json(bad.document)]
    refused = sum(bool(faults(made)) for made in plain)
    assert refused > 0.75 * len(plain) > 100


@pytest.mark.parametrize("made", [{}, {"flags": {}}, {"flag": []}, {"flags": [], "x": 1}, []])
def test_what_is_no_policy_file_is_refused(made: object) -> None:
    assert not VALIDATOR.is_valid(made)
