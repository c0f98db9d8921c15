"""The JSON schema of policy files, for editors.

The fields come from `model.documents` and the operators from `model.conditions`. The tables here
describe each of them, and a missing entry is an error. The schema accepts everything that `decode`
accepts. It leaves checks across fields, such as whether a variant exists, to `decode`.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias, get_args

import msgspec
from msgspec import Struct

from flagkit._core.model.conditions import (
    LOGICAL_OPERATORS,
    OPERATORS,
    OPTIONS,
    TYPE_NAMES,
    VERSION_OPERATORS,
)
from flagkit._core.model.documents import FlagDocument, SegmentDocument, VariantType
from flagkit._core.model.flags import RULES_MAX
from flagkit._core.model.keys import KEY, KEY_LENGTH_MAX, PATH_NAMES_MAX, REGION
from flagkit._core.model.rollouts import BUCKETS
from flagkit._core.model.sensitive import ENCRYPTED
from flagkit._core.model.values import FORMS, LENGTH_MAX, VERSION
from flagkit._core.model.windows import DAYS, TIME
from flagkit._core.regex import parser

Schema: TypeAlias = dict[str, Any]
Entry: TypeAlias = "str | tuple[str, Schema]"
"""A description, and the schema where the type does not say all of it."""


def to(name: str) -> Schema:
    """Return the reference to a part of the schema."""
    return {"$ref": f"#/$defs/{name}"}


def _list(items: Schema, **limits: int) -> Schema:
    return {"type": "array", "items": items} | limits


def _any(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def _whole(pattern: str) -> str:
    return f"^(?:{pattern})$"


def _given(*fields: str) -> Schema:
    """Return the schema of documents that have some fields, and not as null."""
    said: Schema = {field: {"not": {"type": "null"}} for field in fields}
    return {"properties": said, "required": list(fields)}


def _only(names: Schema) -> Schema:
    """Return the schema of documents all of whose fields have such names."""
    return {"type": "object", "minProperties": 1, "propertyNames": names}


ATTRIBUTE_PATH = rf"^[^.$][^.]*(\.[^.$][^.]*){{0,{PATH_NAMES_MAX - 1}}}$"
_ATTRIBUTE = {"type": "string", "pattern": ATTRIBUTE_PATH, "examples": ["targeting_key"]}
_FLAG_KEY = {"type": "string", "pattern": _whole(KEY.pattern), "maxLength": KEY_LENGTH_MAX}
_VERSION = {
    "type": "string",
    "pattern": _whole(VERSION.pattern),
    "maxLength": LENGTH_MAX,
    "examples": ["2.3.0"],
}
_TIME = {"type": "string", "pattern": _whole(TIME.pattern), "examples": ["09:00"]}
_TEXT = {"type": "string", "minLength": 1}
_WRITTEN = {
    operator: {"type": "string", "pattern": _whole(form.pattern)}
    for operator, form in FORMS.items()
}
_BINARY = {
    "type": "object",
    "properties": {
        "base64": {
            "description": "The bytes, in base64.",
            **_WRITTEN["$binary"],
        },
        "subType": {"description": "00 for bytes, 04 for a UUID.", "enum": ["00", "04"]},
    },
    "required": ["base64", "subType"],
    "additionalProperties": False,
}
_NUMBER = _any({"type": "number"}, to("extended"))
_TYPE = _any({"enum": ["number", *TYPE_NAMES.values(), *TYPE_NAMES]}, to("extended"))
_BARE = [name.removeprefix("$") for name in OPERATORS]

VALUES: Schema = {
    "date": {
        "description": "A date with a time zone.",
        **_any(
            {
                "type": "string",
                "pattern": r"^\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d.*([Zz]|[+-]\d\d(:?\d\d)?)$",
                "examples": ["2026-12-01T08:00:00Z"],
            },
            {"type": "object", "required": ["$date"]},
        ),
    },
    "encrypted": {
        "description": "The value of a sensitive variant, as it is stored.",
        "type": "object",
        "properties": {
            ENCRYPTED: {
                "description": "What flagkit has encrypted.",
                "type": "object",
                "properties": {
                    "type": {
                        "description": "The type of the flag.",
                        "enum": [*get_args(VariantType)],
                    },
                    "base64": {"description": "The ciphertext.", "type": "string"},
                },
                "required": ["type", "base64"],
                "additionalProperties": False,
            }
        },
        "required": [ENCRYPTED],
        "additionalProperties": False,
    },
    "percent": {
        "description": "A percentage, to 0.001.",
        **_any({"type": "number", "minimum": 0, "maximum": 100}, to("extended")),
    },
    "extended": {
        "description": "A value that JSON has no word for, in MongoDB's Extended JSON.",
        "type": "object",
        "properties": {
            "$date": {"description": "A date with a time zone.", **_WRITTEN["$date"]},
            "$numberDouble": {
                "description": 'A number: also "NaN" or "Infinity".',
                **_WRITTEN["$numberDouble"],
            },
            "$numberDecimal": {
                "description": "A decimal of at most 34 digits.",
                **_WRITTEN["$numberDecimal"],
            },
            "$numberInt": {"description": "An integer of 32 bits.", **_WRITTEN["$numberInt"]},
            "$numberLong": {"description": "An integer.", **_WRITTEN["$numberLong"]},
            "$oid": {"description": "An ObjectId.", **_WRITTEN["$oid"]},
            "$uuid": {"description": "A UUID.", **_WRITTEN["$uuid"]},
            "$binary": {"description": "Bytes, or a UUID with the subType 04.", **_BINARY},
        },
        "minProperties": 1,
        "maxProperties": 1,
        "additionalProperties": False,
    },
    "value": {
        "description": "A value; not an operator.",
        **_any(to("extended"), {"not": _only({"pattern": r"^\$"})}),
    },
    "test": _any(
        to("operators"),
        to("extended"),
        {
            "description": "A value, for equality.",
            "not": _any(_only({"pattern": r"^\$"}), _only({"enum": _BARE})),
        },
    ),
}
_ONE_OF_THREE: Schema = {"oneOf": [_given(name) for name in ("serve", "rollout", "ramp")]}
_LINE = ("start", "end")
SHAPES: Mapping[str, Schema] = {
    "ServesDocument": _ONE_OF_THREE,
    "RuleDocument": _ONE_OF_THREE,
    "WindowDocument": {
        "minProperties": 1,
        "if": _any(_given("days"), _given("hours")),
        "then": _given("zone"),
        "else": {"properties": {"zone": {"type": "null"}}},
    },
    "RampDocument": {
        "oneOf": [
            _given(*_LINE) | {"not": _given("steps")},
            _given("steps") | {"not": _any(*(_given(name) for name in (*_LINE, "from", "to")))},
        ]
    },
}
"""What a document must have as a whole."""

_SERVES: Mapping[str, Entry] = {
    "serve": "The variant that is served.",
    "rollout": (
        "A percentage of the true variant, or weights of variants.",
        _any(to("percent"), to("RolloutDocument")),
    ),
    "ramp": "A rollout of one variant whose share follows the clock.",
}
_HASHED: Mapping[str, Entry] = {
    "by": ("The attribute that is hashed, a path such as org.id.", _ATTRIBUTE),
    "salt": ("Seeds the hash; the flag's key if left out.", _TEXT),
}
_KEYS = _any(_list(_any(_TEXT, {"type": "integer"})), to("MembersDocument"))
FIELDS: Mapping[str, Mapping[str, Entry]] = {
    "FlagDocument": {
        "key": (
            "product.team.feature: lower case letters, digits, - and _, joined by dots.",
            _FLAG_KEY,
        ),
        "environment": "If it is there, it must be that of the writer.",
        "region": (
            'One region, or "*" for all. A flag for one region replaces the one for "*" there.',
            {"type": "string", "pattern": _whole(REGION.pattern)},
        ),
        "state": "Other than active, the flag serves `off`.",
        "variants": (
            "Values by name, all of one type: boolean, string, number, or document and list.",
            {
                "type": "object",
                "minProperties": 1,
                **_any(
                    *(
                        {"additionalProperties": _any({"type": kinds}, to("encrypted"))}
                        for kinds in ("boolean", "string", "number", ["object", "array"])
                    )
                ),
                "examples": [{"on": True, "off": False}],
            },
        ),
        "sensitive": (
            "The variants whose values are secrets: kept encrypted, and shown nowhere.",
            _list({"type": "string"}),
        ),
        "off": "The variant served when the flag is not active or a prerequisite is not met.",
        "prerequisites": "Flags that must each serve one of some variants first.",
        "rules": (
            "Targeting rules. The first whose `when` and `during` hold decides.",
            _list(to("RuleDocument"), maxItems=RULES_MAX),
        ),
        "fallthrough": "What is served when no rule decides.",
        "when_stale": (
            "What a client serves whose flags are older than it allows: the last known, or `off`."
        ),
        "owner": "Who to ask. For people.",
        "description": "What the flag is for. For people.",
        "tags": "Words to find the flag by. For people.",
        "expires": ("When the flag should be gone. For people.", to("date")),
    },
    "RuleDocument": {
        "name": "The rule's name, which evaluations give; each rule has its own.",
        "when": ("Who the rule is for; everyone if left out.", to("condition")),
        "during": "When the rule holds; always if left out.",
        **_SERVES,
    },
    "ServesDocument": _SERVES,
    "RolloutDocument": {
        "weights": (
            "Percentages by variant, which add up to 100.",
            {
                "type": "object",
                "minProperties": 1,
                "additionalProperties": to("percent"),
                "examples": [{"on": 20, "off": 80}],
            },
        ),
        **_HASHED,
        "intervals": (
            "Which buckets belong to which variant: kept by the writer, never by hand.",
            _list(
                {
                    "type": "array",
                    "prefixItems": [
                        _any({"type": "integer", "minimum": 1, "maximum": BUCKETS}, to("extended")),
                        {"type": "string"},
                    ],
                    "minItems": 2,
                    "maxItems": 2,
                },
                minItems=1,
            ),
        ),
    },
    "RampDocument": {
        "variant": "The variant that is ramped up or down.",
        "otherwise": "The variant for the others.",
        "from": ("The share at the start; 0 if left out.", to("percent")),
        "to": ("The share at the end; 100 if left out.", to("percent")),
        "start": ("When the share begins to change.", to("date")),
        "end": ("When the share is what it will stay.", to("date")),
        "steps": (
            "In the place of from, to, start and end: shares that hold from a date on.",
            _list(to("StepDocument"), minItems=1),
        ),
        **_HASHED,
    },
    "StepDocument": {
        "at": ("When the share changes.", to("date")),
        "percent": ("The share from then on.", to("percent")),
    },
    "WindowDocument": {
        "from": ("From when on, inclusive.", to("date")),
        "until": ("Until when, exclusive.", to("date")),
        "days": ("The days of the week; all if left out.", _list({"enum": [*DAYS]}, minItems=1)),
        "hours": "The hours of those days; all if left out.",
        "zone": "The IANA time zone of days and hours, such as Europe/Berlin.",
    },
    "HoursDocument": {
        "from": ("From when on, inclusive; quoted.", _TIME),
        "until": ("Until when, exclusive; before from, on the next day; quoted.", _TIME),
    },
    "SegmentDocument": {
        "key": ("team.name: lower case letters, digits, - and _, joined by dots.", _FLAG_KEY),
        "environment": "If it is there, it must be that of the writer.",
        "when": ("Who is in, besides the included keys; `{}` for everyone.", to("condition")),
        "by": ("The attribute that is looked up among the keys.", _ATTRIBUTE),
        "seed": (
            "What the hashed keys are hashed with, as the writer made it.",
            {"type": "string", "pattern": "^[0-9a-f]{16}$"},
        ),
        "included": ("Keys that are in: strings or integers.", _KEYS),
        "excluded": ("Keys that are not in, whatever else holds.", _KEYS),
        "owner": "Who to ask. For people.",
        "description": "What the segment is for. For people.",
        "tags": "Words to find the segment by. For people.",
    },
    "MembersDocument": {
        "count": ("How many keys there are.", _any({"type": "integer"}, to("extended"))),
        "parts": "The SHA-256 of each part of the hashed keys.",
    },
    "PrerequisiteDocument": {
        "flag": ("The key of the other flag.", _FLAG_KEY),
        "variants": (
            "The variants one of which must be served.",
            _list({"type": "string"}, minItems=1),
        ),
    },
}
"""What each field is for, and its limits where its type does not say them."""

_BRANCHES = _list(to("condition"), minItems=1)
LOGICAL_OPERATOR_FIELDS: Mapping[str, Entry] = {
    "$and": ("All of the conditions hold.", _BRANCHES),
    "$or": ("At least one of the conditions holds.", _BRANCHES),
    "$nor": ("None of the conditions holds.", _BRANCHES),
    "$segment": (
        "The context is in the segment, or in any of them.",
        _any(_FLAG_KEY, _list(_FLAG_KEY, minItems=1)),
    ),
}
_AFFIX = _any(_TEXT, _list(_TEXT, minItems=1))
_COMPARISONS = {
    name: _list(_VERSION) if name in ("$in", "$nin") else _VERSION for name in VERSION_OPERATORS
}
OPERATOR_FIELDS: Mapping[str, Entry] = {
    "$regex": (
        "A string has the regular expression in it.",
        {"type": "string", "maxLength": parser.LENGTH_MAX},
    ),
    "$options": (
        "Of $regex: i, m, s and x.",
        {"type": "string", "pattern": "^[imsx]*$"},
    ),
    "$eq": "Equals the value.",
    "$ne": "Does not equal the value; also where there is no such attribute.",
    "$gt": "Is of the same type and greater.",
    "$gte": "Is of the same type and greater or equal.",
    "$lt": "Is of the same type and less.",
    "$lte": "Is of the same type and less or equal.",
    "$in": ("Equals one of the values.", _list(to("value"))),
    "$nin": ("Equals none of the values; also where it is missing.", _list(to("value"))),
    "$exists": ("Is there, be it null; false: is not there.", {"examples": [True, False]}),
    "$size": (
        "Is a list with so many elements.",
        _any({"type": "integer", "minimum": 0, "maximum": 2**31 - 1}, to("extended")),
    ),
    "$mod": (
        "Is a number that, divided by the first, leaves the second.",
        {
            "type": "array",
            "prefixItems": [
                _NUMBER
                | {"not": {"type": "number", "exclusiveMinimum": -1, "exclusiveMaximum": 1}},
                _NUMBER,
            ],
            "minItems": 2,
            "maxItems": 2,
            "examples": [[4, 0]],
        },
    ),
    "$type": ("Is of a BSON type, or of one of some.", _any(_TYPE, _list(_TYPE, minItems=1))),
    "$elemMatch": (
        "Is a list with an element for which all of the conditions hold.",
        _any(to("operators"), to("condition")),
    ),
    "$all": (
        "Is a list with all of the values; each may be an $elemMatch.",
        _any(
            _list(to("value")),
            _list({**to("operators"), "required": ["$elemMatch"]}),
        ),
    ),
    "$startsWith": ("Is a string that starts with it, or with one of some.", _AFFIX),
    "$endsWith": ("Is a string that ends with it, or with one of some.", _AFFIX),
    "$contains": ("Is a string that contains it, or one of some.", _AFFIX),
    "$semver": (
        "Is a semantic version in such an order to others.",
        {
            "type": "object",
            "properties": _COMPARISONS,
            "minProperties": 1,
            "additionalProperties": False,
        },
    ),
    "$not": ("The operators inside do not hold.", to("operators")),
}
"""What each operator means, and what it may be given."""


_LISTS: Mapping[str, tuple[type[Struct], str]] = {
    "flags": (FlagDocument, "The flags of this file."),
    "segments": (SegmentDocument, "The segments of this file."),
}
"""The fields of a policy file: lists of documents."""


def schema() -> Schema:
    """Return the schema of a policy file; those of a flag and of a segment are in `$defs`."""
    documents = [document for document, _ in _LISTS.values()]
    _, structs = msgspec.json.schema_components(documents, ref_template=to("{name}")["$ref"])
    lists = {
        name: {"description": text, "type": "array", "items": to(document.__name__)}
        for name, (document, text) in _LISTS.items()
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "flagkit policy file",
        "type": "object",
        "properties": lists,
        "minProperties": 1,
        "additionalProperties": False,
        "$defs": {name: _struct(name, found) for name, found in structs.items()}
        | VALUES
        | {"condition": _condition(), "operators": _operators()},
    }


def _struct(name: str, generated: Schema) -> Schema:
    fields = {
        field: _field(found, FIELDS[name][field])
        for field, found in generated["properties"].items()
    }
    return {
        "description": generated["description"],
        "type": "object",
        "properties": fields,
        "required": generated["required"],
        "additionalProperties": False,
    } | SHAPES.get(name, {})


def _field(generated: Schema, said: Entry) -> Schema:
    """Return the schema of a field: what the table has of it replaces what is generated."""
    text, limits = (said, {}) if isinstance(said, str) else said
    nullable = {"type": "null"} in generated.get("anyOf", [])
    default = {} if generated.get("default") is None else {"default": generated["default"]}
    if limits and nullable:
        limits = {"anyOf": [limits, {"type": "null"}]}
    elif not limits:
        limits = {name: found for name, found in generated.items() if name != "default"}
    return {"description": text} | limits | default


def _condition() -> Schema:
    return {
        "description": "A MongoDB query document over the attributes of the context.",
        "type": "object",
        "properties": {
            name: _field({}, LOGICAL_OPERATOR_FIELDS[name]) for name in LOGICAL_OPERATORS
        },
        "patternProperties": {ATTRIBUTE_PATH: to("test")},
        "additionalProperties": False,
    }


def _operators() -> Schema:
    return {
        "type": "object",
        "properties": {name: _field({}, OPERATOR_FIELDS[name]) for name in (*OPERATORS, OPTIONS)},
        "minProperties": 1,
        "additionalProperties": False,
    }
