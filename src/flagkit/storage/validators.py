"""Validators: the form of each collection's documents, which the database itself holds writers to.

They say which fields a document must have, of which BSON types, and what its `_id` is made of, in
this order. Of what the fields say they know nothing: that is the model's, and the hash chain's.
Fields beside those are let through, so that a later version can add some before the validators are
brought up to date.
"""

from collections.abc import Mapping
from typing import Any, Final

from flagkit.heartbeat import HOST_LENGTH_MAX, SERVICE_LENGTH_MAX
from flagkit.storage.layout import (
    ACCESS,
    AUDIT,
    BUCKET_KEYS,
    CHECKPOINTS,
    CLIENTS,
    DENIAL_LENGTH_MAX,
    DENIAL_OPERATIONS_MAX,
    DENIALS,
    ERASURES,
    FLAGS,
    HEADS,
    LEDGER,
    MEMBERS,
    PAGES,
    PENDING,
    PROPOSALS,
    SEGMENTS,
    SLICES,
    Document,
)


def _kind(*types: str) -> Document:
    return {"bsonType": [*types]}


def _object(required: Mapping[str, Document], *also: str, **optional: Document) -> Document:
    """Return the form of an object with fields that it must have, and some that it may."""
    return {
        "bsonType": ["object", *also],
        "required": [*required],
        "properties": {**required, **optional},
    }


def _short(length: int) -> Document:
    """Return the form of a text of at most so many characters."""
    return {"bsonType": ["string"], "maxLength": length}


_TEXT: Final = _kind("string")
_WHOLE: Final = {**_kind("int", "long"), "minimum": 0}
_SECONDS_MAX: Final = 1e10
"""No client is alive for so long."""
_MOMENT: Final = _kind("date")
_BYTES: Final = _kind("binData")
_LIST: Final = _kind("array")
_ANY: Final = _kind("object")

_TIP: Final = {
    "epoch": _TEXT,
    "revision": _WHOLE,
    "hash": _TEXT,
    "time": _MOMENT,
    "digests": {**_ANY, "additionalProperties": _TEXT},
}
_SIDE: Final = _object({"version": _WHOLE, "policy": _ANY}, "null")
_CHANGE: Final = {
    "request": _TEXT,
    "previous_hash": _TEXT,
}
_DID: Final = {
    "policies": {
        **_LIST,
        "items": _object({"region": _TEXT, "key": _TEXT, "before": _SIDE, "after": _SIDE}),
    },
    "pages": {**_LIST, "items": _TEXT},
}
_POLICY_ID: Final = {"environment": _TEXT, "key": _TEXT, "region": _TEXT}
_POLICY: Final = {
    "revision": _WHOLE,
    "version": _WHOLE,
    # Both are null in a tombstone.
    "policy": _kind("object", "null"),
    "hash": _kind("string", "null"),
}
_CARRIED: Final = {
    "time": _MOMENT,
    "last": _object({"policy": _ANY, "hash": _TEXT}),
}
"""What a policy keeps of its last change where the ledger has it no more."""
_ASKED: Final = {"actor": _TEXT, "reason": _TEXT, "operations": {**_LIST, "items": _ANY}}


def _either(form: Document, names: Mapping[str, Document]) -> Document:
    """Return the form of an object that has at least one of some fields."""
    fields = {"properties": {**form["properties"], **names}}
    return form | fields | {"anyOf": [{"required": [name]} for name in names]}


def _document(
    identity: Mapping[str, Document], required: Mapping[str, Document], **optional: Document
) -> Document:
    """Return the validator of documents whose `_id` has exactly these fields, in this order."""
    form = _object({"_id": _object(identity), **required}, **optional)
    # Ranges compare whole `_id`s, so their order counts; a schema cannot say it.
    ordered = {name: f"$_id.{name}" for name in identity}
    return {"$jsonSchema": form, "$expr": {"$eq": ["$_id", ordered]}}


_LEDGER: Final = _document({"environment": _TEXT, "revision": _WHOLE}, {**_TIP, **_CHANGE})

VALIDATORS: Final[Mapping[str, Document]] = {
    HEADS: {
        "$jsonSchema": _object(
            {
                "_id": _TEXT,
                **_TIP,
                "change": {"anyOf": [_kind("null"), _either(_object(_CHANGE), _DID)]},
            },
            buckets={**_ANY, "additionalProperties": _WHOLE},
            unprojected=_WHOLE,
        )
    },
    LEDGER: _LEDGER | {"$jsonSchema": _either(_LEDGER["$jsonSchema"], _DID)},
    PAGES: _document(
        {"environment": _TEXT, "page": _TEXT},
        {"keys": {**_LIST, "items": _TEXT}, "content": _BYTES},
        projected=_WHOLE,
        unreferred=_MOMENT,
    ),
    FLAGS: _document(
        _POLICY_ID,
        _POLICY,
        body=_BYTES,
        format=_WHOLE,
        seal=_TEXT,
        segments={**_LIST, "items": _TEXT},
        **_CARRIED,
    ),
    SEGMENTS: _document(_POLICY_ID, _POLICY, **_CARRIED),
    ACCESS: _document(_POLICY_ID, _POLICY, **_CARRIED),
    MEMBERS: _document(
        {"environment": _TEXT, "part": _TEXT}, {"hashes": _BYTES}, unreferred=_MOMENT
    ),
    AUDIT: _document(
        {"environment": _TEXT, "request": _TEXT},
        {"sent": _MOMENT, **_ASKED, "digest": _TEXT},
        unseeded=_TEXT,
        glass=_TEXT,
        tip=_object(_TIP),
        proposal=_TEXT,
        applied_by=_TEXT,
        approved=_object({"digest": _TEXT, "by": {**_LIST, "items": _TEXT}}),
    ),
    PENDING: _document(
        {"environment": _TEXT, "request": _TEXT},
        {
            "since": _MOMENT,
            "place": _TEXT,
            # Null where all is touched.
            "touched": {
                **_kind("array", "null"),
                "items": _object({"region": _TEXT, "key": _TEXT}),
            },
        },
        tries=_WHOLE,
        not_before=_MOMENT,
        trouble=_TEXT,
        refused=_kind("bool"),
    ),
    PROPOSALS: _document(
        {"environment": _TEXT, "proposal": _TEXT, "actor": _TEXT, "verdict": _TEXT},
        {"time": _MOMENT, "reason": _TEXT, "digest": _TEXT},
        seal=_TEXT,
        operations={**_LIST, "items": _ANY},
        touched={
            **_LIST,
            "items": _object(
                {"region": _TEXT, "key": _TEXT, "version": _kind("int", "long", "null")}
            ),
        },
        depends={
            **_LIST,
            "items": _object(
                {
                    **dict.fromkeys(("key", "which", "region"), _TEXT),
                    "but": {**_LIST, "items": _TEXT},
                    "versions": {**_LIST, "items": _object({"region": _TEXT, "version": _WHOLE})},
                }
            ),
        },
    ),
    DENIALS: _document(
        {"environment": _TEXT, "denial": _TEXT},
        {
            "time": _MOMENT,
            "action": _TEXT,
            **{name: {**_TEXT, "maxLength": most} for name, most in DENIAL_LENGTH_MAX.items()},
            "operations": {**_LIST, "items": _ANY, "maxItems": DENIAL_OPERATIONS_MAX},
        },
    ),
    CHECKPOINTS: _document(
        {"environment": _TEXT, "checkpoint": _TEXT},
        {
            **_TIP,
            **dict.fromkeys(("flags", "slices", "bytes", "frame", "packing"), _WHOLE),
            "checksum": _TEXT,
            "byte_order": _TEXT,
        },
    ),
    SLICES: _document(
        {"environment": _TEXT, "checkpoint": _TEXT, "slice": _WHOLE}, {"content": _BYTES}
    ),
    BUCKET_KEYS: _document({"environment": _TEXT, "epoch": _TEXT}, {"key": _BYTES}),
    ERASURES: {"$jsonSchema": _object({"_id": _TEXT, "salt": _BYTES})},
    CLIENTS: _document(
        {"environment": _short(1_000), "instance": _short(100)},
        {
            "service": _short(SERVICE_LENGTH_MAX),
            "host": _short(HOST_LENGTH_MAX),
            **dict.fromkeys(("region", "epoch"), _short(100)),
            **dict.fromkeys(("pid", "revision"), _WHOLE),
            "staleness": {
                **_kind("double", "int", "long", "null"),
                "minimum": 0,
                "maximum": _SECONDS_MAX,
            },
            "time": _MOMENT,
            "until": _MOMENT,
        },
    ),
}
"""What a document of each collection must match."""


def validation(collection: str) -> dict[str, Any]:
    """Return the options by which a collection is made, or modified, so that it is held to it."""
    return {
        "validator": VALIDATORS[collection],
        "validationLevel": "strict",
        "validationAction": "error",
    }
