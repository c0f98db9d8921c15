"""The JSON schema of policy files, for editors.

The fields come from `model.documents`, and FIELDS describes each of them; a missing entry is an
error. The operators and their descriptions come from the tables of `model.conditions`. The schema
accepts everything that `decode` accepts. It leaves checks across fields, such as whether a variant
exists, to `decode`.
"""

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, get_args

import msgspec
from msgspec import Struct

from flagkit._core.model.conditions import (
    KEY_SCHEMA,
    KEYWORDS,
    LOGICAL_OPERATORS,
    OPERATORS,
    OPTIONS,
)
from flagkit._core.model.documents import FlagDocument, SegmentDocument, VariantType
from flagkit._core.model.flags import RULES_MAX
from flagkit._core.model.keys import PATH_NAMES_MAX, REGION
from flagkit._core.model.rollouts import BUCKETS
from flagkit._core.model.sensitive import ENCRYPTED
from flagkit._core.model.values import FORMS
from flagkit._core.model.windows import DAYS, TIME

Schema: TypeAlias = dict[str, Any]
FieldEntry: TypeAlias = "str | tuple[str, Schema]"
"""A description, and the schema where the type does not say all of it."""


def build_ref(name: str) -> Schema:
    """Return the reference to a part of the schema."""
    return {"$ref": f"#/$defs/{name}"}


def _build_list(items: Schema, **limits: int) -> Schema:
    return {"type": "array", "items": items} | limits


def _build_any(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def _anchor_pattern(pattern: str) -> str:
    return f"^(?:{pattern})$"


def _require_fields(*fields: str) -> Schema:
    """Return the schema of documents that have some fields, and not as null."""
    absent: Schema = {field: {"not": {"type": "null"}} for field in fields}
    return {"properties": absent, "required": list(fields)}


def _restrict_names(names: Schema) -> Schema:
    """Return the schema of documents all of whose fields have such names."""
    return {"type": "object", "minProperties": 1, "propertyNames": names}


ATTRIBUTE_PATH = rf"^[^.$][^.]*(\.[^.$][^.]*){{0,{PATH_NAMES_MAX - 1}}}$"
_ATTRIBUTE = {"type": "string", "pattern": ATTRIBUTE_PATH, "examples": ["targeting_key"]}
_TIME = {"type": "string", "pattern": _anchor_pattern(TIME.pattern), "examples": ["09:00"]}
_TEXT = {"type": "string", "minLength": 1}
_OPERAND_PATTERNS = {
    operator: {"type": "string", "pattern": _anchor_pattern(form.pattern)}
    for operator, form in FORMS.items()
}
_BINARY = {
    "type": "object",
    "properties": {
        "base64": {
            "description": "The bytes, in base64.",
            **_OPERAND_PATTERNS["$binary"],
        },
        "subType": {"description": "00 for bytes, 04 for a UUID.", "enum": ["00", "04"]},
    },
    "required": ["base64", "subType"],
    "additionalProperties": False,
}
_BARE = [name.removeprefix("$") for name in OPERATORS]

VALUES: Schema = {
    "date": {
        "description": "A date with a time zone.",
        **_build_any(
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
        **_build_any({"type": "number", "minimum": 0, "maximum": 100}, build_ref("extended")),
    },
    "extended": {
        "description": "A value that JSON has no word for, in MongoDB's Extended JSON.",
        "type": "object",
        "properties": {
            "$date": {"description": "A date with a time zone.", **_OPERAND_PATTERNS["$date"]},
            "$numberDouble": {
                "description": 'A number: also "NaN" or "Infinity".',
                **_OPERAND_PATTERNS["$numberDouble"],
            },
            "$numberDecimal": {
                "description": "A decimal of at most 34 digits.",
                **_OPERAND_PATTERNS["$numberDecimal"],
            },
            "$numberInt": {
                "description": "An integer of 32 bits.",
                **_OPERAND_PATTERNS["$numberInt"],
            },
            "$numberLong": {"description": "An integer.", **_OPERAND_PATTERNS["$numberLong"]},
            "$oid": {"description": "An ObjectId.", **_OPERAND_PATTERNS["$oid"]},
            "$uuid": {"description": "A UUID.", **_OPERAND_PATTERNS["$uuid"]},
            "$binary": {"description": "Bytes, or a UUID with the subType 04.", **_BINARY},
        },
        "minProperties": 1,
        "maxProperties": 1,
        "additionalProperties": False,
    },
    "value": {
        "description": "A value; not an operator.",
        **_build_any(build_ref("extended"), {"not": _restrict_names({"pattern": r"^\$"})}),
    },
    "test": _build_any(
        build_ref("operators"),
        build_ref("extended"),
        {
            "description": "A value, for equality.",
            "not": _build_any(
                _restrict_names({"pattern": r"^\$"}), _restrict_names({"enum": _BARE})
            ),
        },
    ),
}
_ONE_OF_THREE: Schema = {"oneOf": [_require_fields(name) for name in ("serve", "rollout", "ramp")]}
_LINE = ("start", "end")
SHAPES: Mapping[str, Schema] = {
    "ServesDocument": _ONE_OF_THREE,
    "RuleDocument": _ONE_OF_THREE,
    "WindowDocument": {
        "minProperties": 1,
        "if": _build_any(_require_fields("days"), _require_fields("hours")),
        "then": _require_fields("zone"),
        "else": {"properties": {"zone": {"type": "null"}}},
    },
    "RampDocument": {
        "oneOf": [
            _require_fields(*_LINE) | {"not": _require_fields("steps")},
            _require_fields("steps")
            | {"not": _build_any(*(_require_fields(name) for name in (*_LINE, "from", "to")))},
        ]
    },
}
"""The rules for a document as a whole."""

_SERVES: Mapping[str, FieldEntry] = {
    "serve": "The variant that is served.",
    "rollout": (
        "A percentage of the true variant, or weights of variants.",
        _build_any(build_ref("percent"), build_ref("RolloutDocument")),
    ),
    "ramp": "A rollout of one variant whose share follows the clock.",
}
_HASHED: Mapping[str, FieldEntry] = {
    "by": ("The attribute that is hashed, a path such as org.id.", _ATTRIBUTE),
    "salt": ("Seeds the hash; the flag's key if left out.", _TEXT),
}
_KEYS = _build_any(
    _build_list(_build_any(_TEXT, {"type": "integer"})), build_ref("MembersDocument")
)
FIELDS: Mapping[str, Mapping[str, FieldEntry]] = {
    "FlagDocument": {
        "key": (
            "product.team.feature: lower case letters, digits, - and _, joined by dots.",
            KEY_SCHEMA,
        ),
        "environment": "If it is there, it must be that of the writer.",
        "region": (
            'One region, or "*" for all. A flag for one region replaces the one for "*" there.',
            {"type": "string", "pattern": _anchor_pattern(REGION.pattern)},
        ),
        "state": "Other than active, the flag serves `off`.",
        "variants": (
            "Values by name, all of one type: boolean, string, number, or document and list.",
            {
                "type": "object",
                "minProperties": 1,
                **_build_any(
                    *(
                        {
                            "additionalProperties": _build_any(
                                {"type": kinds}, build_ref("encrypted")
                            )
                        }
                        for kinds in ("boolean", "string", "number", ["object", "array"])
                    )
                ),
                "examples": [{"on": True, "off": False}],
            },
        ),
        "sensitive": (
            "The variants whose values are secrets: kept encrypted, and shown nowhere.",
            _build_list({"type": "string"}),
        ),
        "off": "The variant served when the flag is not active or a prerequisite is not met.",
        "prerequisites": "Flags that must each serve one of some variants first.",
        "rules": (
            "Targeting rules. The first whose `when` and `during` hold decides.",
            _build_list(build_ref("RuleDocument"), maxItems=RULES_MAX),
        ),
        "fallthrough": "What is served when no rule decides.",
        "when_stale": (
            "What a client serves whose flags are older than it allows: the last known, or `off`."
        ),
        "owner": "Who to ask. For people.",
        "description": "What the flag is for. For people.",
        "tags": "Words to find the flag by. For people.",
        "expires": ("When the flag should be gone. For people.", build_ref("date")),
    },
    "RuleDocument": {
        "name": "The rule's name, which evaluations give; each rule has its own.",
        "when": ("Who the rule is for; everyone if left out.", build_ref("condition")),
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
                "additionalProperties": build_ref("percent"),
                "examples": [{"on": 20, "off": 80}],
            },
        ),
        **_HASHED,
        "intervals": (
            "Which buckets belong to which variant: kept by the writer, never by hand.",
            _build_list(
                {
                    "type": "array",
                    "prefixItems": [
                        _build_any(
                            {"type": "integer", "minimum": 1, "maximum": BUCKETS},
                            build_ref("extended"),
                        ),
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
        "from": ("The share at the start; 0 if left out.", build_ref("percent")),
        "to": ("The share at the end; 100 if left out.", build_ref("percent")),
        "start": ("When the share begins to change.", build_ref("date")),
        "end": ("When the share is what it will stay.", build_ref("date")),
        "steps": (
            "In the place of from, to, start and end: shares that hold from a date on.",
            _build_list(build_ref("StepDocument"), minItems=1),
        ),
        **_HASHED,
    },
    "StepDocument": {
        "at": ("When the share changes.", build_ref("date")),
        "percent": ("The share from then on.", build_ref("percent")),
    },
    "WindowDocument": {
        "from": ("From when on, inclusive.", build_ref("date")),
        "until": ("Until when, exclusive.", build_ref("date")),
        "days": (
            "The days of the week; all if left out.",
            _build_list({"enum": [*DAYS]}, minItems=1),
        ),
        "hours": "The hours of those days; all if left out.",
        "zone": "The IANA time zone of days and hours, such as Europe/Berlin.",
    },
    "HoursDocument": {
        "from": ("From when on, inclusive; quoted.", _TIME),
        "until": ("Until when, exclusive; before from, on the next day; quoted.", _TIME),
    },
    "SegmentDocument": {
        "key": ("team.name: lower case letters, digits, - and _, joined by dots.", KEY_SCHEMA),
        "environment": "If it is there, it must be that of the writer.",
        "when": (
            "Who is in, besides the included keys; `{}` for everyone.",
            build_ref("condition"),
        ),
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
        "count": (
            "How many keys there are.",
            _build_any({"type": "integer"}, build_ref("extended")),
        ),
        "parts": "The SHA-256 of each part of the hashed keys.",
    },
    "PrerequisiteDocument": {
        "flag": ("The key of the other flag.", KEY_SCHEMA),
        "variants": (
            "The variants one of which must be served.",
            _build_list({"type": "string"}, minItems=1),
        ),
    },
}
"""The description of each field, with the limits that its type does not have."""

_LISTS: Mapping[str, tuple[type[Struct], str]] = {
    "flags": (FlagDocument, "The flags of this file."),
    "segments": (SegmentDocument, "The segments of this file."),
}
"""The fields of a policy file: lists of documents."""


def build_schema() -> Schema:
    """Return the schema of a policy file; those of a flag and of a segment are in `$defs`."""
    documents = [document for document, _ in _LISTS.values()]
    _, structs = msgspec.json.schema_components(documents, ref_template=build_ref("{name}")["$ref"])
    lists = {
        name: {"description": text, "type": "array", "items": build_ref(document.__name__)}
        for name, (document, text) in _LISTS.items()
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "flagkit policy file",
        "type": "object",
        "properties": lists,
        "minProperties": 1,
        "additionalProperties": False,
        "$defs": {name: _build_struct(name, found) for name, found in structs.items()}
        | VALUES
        | {"condition": _build_condition(), "operators": _build_operators()},
    }


def _build_struct(name: str, generated: Schema) -> Schema:
    fields = {
        field: _build_field(found, FIELDS[name][field])
        for field, found in generated["properties"].items()
    }
    return {
        "description": generated["description"],
        "type": "object",
        "properties": fields,
        "required": generated["required"],
        "additionalProperties": False,
    } | SHAPES.get(name, {})


def _build_field(generated: Schema, entry: FieldEntry) -> Schema:
    """Return the schema of a field: what the table has of it replaces what is generated."""
    text, limits = (entry, {}) if isinstance(entry, str) else entry
    nullable = {"type": "null"} in generated.get("anyOf", [])
    default = {} if generated.get("default") is None else {"default": generated["default"]}
    if limits and nullable:
        limits = {"anyOf": [limits, {"type": "null"}]}
    elif not limits:
        limits = {name: found for name, found in generated.items() if name != "default"}
    return {"description": text} | limits | default


def _build_condition() -> Schema:
    return {
        "description": "A MongoDB query document over the attributes of the context.",
        "type": "object",
        "properties": _build_keywords(LOGICAL_OPERATORS),
        "patternProperties": {ATTRIBUTE_PATH: build_ref("test")},
        "additionalProperties": False,
    }


def _build_operators() -> Schema:
    return {
        "type": "object",
        "properties": _build_keywords((*OPERATORS, OPTIONS)),
        "minProperties": 1,
        "additionalProperties": False,
    }


def _build_keywords(names: Iterable[str]) -> Schema:
    found = {name: KEYWORDS[name] for name in names}
    return {
        name: {"description": keyword.description, **keyword.constant.schema}
        for name, keyword in found.items()
    }
