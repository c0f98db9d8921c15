"""Schema: what a policy file may hold, as a JSON schema (draft 2020-12) for editors.

Generated: fields are those of `documents`, operators those of `queries`, and each has its entry in
`schema_tables`. It accepts all that `decode` accepts; what needs more than one field to judge, such
as whether a variant exists, it leaves to `decode`.
"""

from collections.abc import Mapping

import msgspec
from msgspec import Struct

from flagkit.model.documents import FlagDocument, SegmentDocument
from flagkit.model.queries import LOGICAL_OPERATORS, OPERATORS, OPTIONS
from flagkit.model.schema_tables import (
    ATTRIBUTE_PATH,
    FIELDS,
    LOGICAL_OPERATOR_FIELDS,
    OPERATOR_FIELDS,
    SHAPES,
    VALUES,
    Entry,
    Schema,
    to,
)

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
