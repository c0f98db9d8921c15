"""The form of stored documents: the server's validators, and the check of what is read.

A validator says which fields a document must have, of which BSON types, and what its `_id` is made
of, in this order. It does not know what the fields mean; the model and the hash chain do. It allows
further fields, so that a later version can add some before the validators are updated.

A database enforces validators on writers, but not on an administrator or on a restored backup. So
every document is checked again when it is read. This module alone knows which Python errors a
malformed document causes, and how they are reported.
"""

import functools
import struct
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final, ParamSpec, TypeVar, cast

import msgspec

from flagkit._core.source import HOST_LENGTH_MAX, SERVICE_LENGTH_MAX
from flagkit._core.storage import layout
from flagkit.errors import StoreError


def _build_kind_form(*types: str) -> layout.Document:
    return {"bsonType": [*types]}


def _build_object_form(
    required: Mapping[str, layout.Document], *also: str, **optional: layout.Document
) -> layout.Document:
    """Return the form of an object with fields that it must have, and some that it may."""
    return {
        "bsonType": ["object", *also],
        "required": [*required],
        "properties": {**required, **optional},
    }


def _build_text_form(length: int) -> layout.Document:
    """Return the form of a text of at most so many characters."""
    return {"bsonType": ["string"], "maxLength": length}


_TEXT: Final = _build_kind_form("string")
_WHOLE: Final = {**_build_kind_form("int", "long"), "minimum": 0}
_SECONDS_MAX: Final = 1e10
"""No client is alive for so long."""
_MOMENT: Final = _build_kind_form("date")
_BYTES: Final = _build_kind_form("binData")
_LIST: Final = _build_kind_form("array")
_ANY: Final = _build_kind_form("object")

_TIP: Final = {
    "epoch": _TEXT,
    "revision": _WHOLE,
    "hash": _TEXT,
    "time": _MOMENT,
    "digests": {**_ANY, "additionalProperties": _TEXT},
}
_SIDE: Final = _build_object_form({"version": _WHOLE, "policy": _ANY}, "null")
_CHANGE: Final = {
    "request": _TEXT,
    "previous_hash": _TEXT,
}
_DID: Final = {
    "policies": {
        **_LIST,
        "items": _build_object_form(
            {"region": _TEXT, "key": _TEXT, "before": _SIDE, "after": _SIDE}
        ),
    },
    "pages": {**_LIST, "items": _TEXT},
}
_POLICY_ID: Final = {"environment": _TEXT, "key": _TEXT, "region": _TEXT}
_POLICY: Final = {
    "revision": _WHOLE,
    "version": _WHOLE,
    # Both are null in a tombstone.
    "policy": _build_kind_form("object", "null"),
    "hash": _build_kind_form("string", "null"),
}
_CARRIED: Final = {
    "time": _MOMENT,
    "last": _build_object_form({"policy": _ANY, "hash": _TEXT}),
}
"""What a policy keeps of its last change where the ledger has it no more."""
_ASKED: Final = {"actor": _TEXT, "reason": _TEXT, "operations": {**_LIST, "items": _ANY}}


def _build_either_form(
    form: layout.Document, names: Mapping[str, layout.Document]
) -> layout.Document:
    """Return the form of an object that has at least one of some fields."""
    fields = {"properties": {**form["properties"], **names}}
    return form | fields | {"anyOf": [{"required": [name]} for name in names]}


def _build_validator(
    identity: Mapping[str, layout.Document],
    required: Mapping[str, layout.Document],
    **optional: layout.Document,
) -> layout.Document:
    """Return the validator of documents whose `_id` has exactly these fields, in this order."""
    form = _build_object_form({"_id": _build_object_form(identity), **required}, **optional)
    # Ranges compare whole `_id`s, so their order counts; a schema cannot say it.
    ordered = {name: f"$_id.{name}" for name in identity}
    return {"$jsonSchema": form, "$expr": {"$eq": ["$_id", ordered]}}


_LEDGER: Final = _build_validator({"environment": _TEXT, "revision": _WHOLE}, {**_TIP, **_CHANGE})

VALIDATORS: Final[Mapping[str, layout.Document]] = {
    layout.HEADS: {
        "$jsonSchema": _build_object_form(
            {
                "_id": _TEXT,
                **_TIP,
                "change": {
                    "anyOf": [
                        _build_kind_form("null"),
                        _build_either_form(_build_object_form(_CHANGE), _DID),
                    ]
                },
            },
            buckets={**_ANY, "additionalProperties": _WHOLE},
            unprojected=_WHOLE,
        )
    },
    layout.LEDGER: _LEDGER | {"$jsonSchema": _build_either_form(_LEDGER["$jsonSchema"], _DID)},
    layout.PAGES: _build_validator(
        {"environment": _TEXT, "page": _TEXT},
        {"keys": {**_LIST, "items": _TEXT}, "content": _BYTES},
        projected=_WHOLE,
        unreferred=_MOMENT,
    ),
    layout.FLAGS: _build_validator(
        _POLICY_ID,
        _POLICY,
        body=_BYTES,
        format=_WHOLE,
        seal=_TEXT,
        segments={**_LIST, "items": _TEXT},
        **_CARRIED,
    ),
    layout.SEGMENTS: _build_validator(_POLICY_ID, _POLICY, **_CARRIED),
    layout.ACCESS: _build_validator(_POLICY_ID, _POLICY, **_CARRIED),
    layout.MEMBERS: _build_validator(
        {"environment": _TEXT, "part": _TEXT}, {"hashes": _BYTES}, unreferred=_MOMENT
    ),
    layout.AUDIT: _build_validator(
        {"environment": _TEXT, "request": _TEXT},
        {"sent": _MOMENT, **_ASKED, "digest": _TEXT},
        unseeded=_TEXT,
        glass=_TEXT,
        tip=_build_object_form(_TIP),
        proposal=_TEXT,
        applied_by=_TEXT,
        approved=_build_object_form({"digest": _TEXT, "by": {**_LIST, "items": _TEXT}}),
    ),
    layout.PENDING: _build_validator(
        {"environment": _TEXT, "request": _TEXT},
        {
            "since": _MOMENT,
            "place": _TEXT,
            # Null where all is touched.
            "touched": {
                **_build_kind_form("array", "null"),
                "items": _build_object_form({"region": _TEXT, "key": _TEXT}),
            },
        },
        tries=_WHOLE,
        not_before=_MOMENT,
        trouble=_TEXT,
        refused=_build_kind_form("bool"),
    ),
    layout.PROPOSALS: _build_validator(
        {"environment": _TEXT, "proposal": _TEXT, "actor": _TEXT, "verdict": _TEXT},
        {"time": _MOMENT, "reason": _TEXT, "digest": _TEXT},
        seal=_TEXT,
        operations={**_LIST, "items": _ANY},
        touched={
            **_LIST,
            "items": _build_object_form(
                {"region": _TEXT, "key": _TEXT, "version": _build_kind_form("int", "long", "null")}
            ),
        },
        depends={
            **_LIST,
            "items": _build_object_form(
                {
                    **dict.fromkeys(("key", "which", "region"), _TEXT),
                    "but": {**_LIST, "items": _TEXT},
                    "versions": {
                        **_LIST,
                        "items": _build_object_form({"region": _TEXT, "version": _WHOLE}),
                    },
                }
            ),
        },
    ),
    layout.DENIALS: _build_validator(
        {"environment": _TEXT, "denial": _TEXT},
        {
            "time": _MOMENT,
            "action": _TEXT,
            **{
                name: {**_TEXT, "maxLength": most}
                for name, most in layout.DENIAL_LENGTH_MAX.items()
            },
            "operations": {**_LIST, "items": _ANY, "maxItems": layout.DENIAL_OPERATIONS_MAX},
        },
    ),
    layout.CHECKPOINTS: _build_validator(
        {"environment": _TEXT, "checkpoint": _TEXT},
        {
            **_TIP,
            **dict.fromkeys(("flags", "slices", "bytes", "frame", "packing"), _WHOLE),
            "checksum": _TEXT,
            "byte_order": _TEXT,
        },
    ),
    layout.SLICES: _build_validator(
        {"environment": _TEXT, "checkpoint": _TEXT, "slice": _WHOLE}, {"content": _BYTES}
    ),
    layout.BUCKET_KEYS: _build_validator({"environment": _TEXT, "epoch": _TEXT}, {"key": _BYTES}),
    layout.ERASURES: {"$jsonSchema": _build_object_form({"_id": _TEXT, "salt": _BYTES})},
    layout.CLIENTS: _build_validator(
        {"environment": _build_text_form(1_000), "instance": _build_text_form(100)},
        {
            "service": _build_text_form(SERVICE_LENGTH_MAX),
            "host": _build_text_form(HOST_LENGTH_MAX),
            **dict.fromkeys(("region", "epoch"), _build_text_form(100)),
            **dict.fromkeys(("pid", "revision"), _WHOLE),
            "staleness": {
                **_build_kind_form("double", "int", "long", "null"),
                "minimum": 0,
                "maximum": _SECONDS_MAX,
            },
            "time": _MOMENT,
            "until": _MOMENT,
        },
    ),
}
"""What a document of each collection must match."""


def build_validation_options(collection: str) -> dict[str, Any]:
    """Return the options by which a collection is made, or modified, so that it is held to it."""
    return {
        "validator": VALIDATORS[collection],
        "validationLevel": "strict",
        "validationAction": "error",
    }


P = ParamSpec("P")
R = TypeVar("R")

FORM_FAULTS: Final = (
    *(KeyError, IndexError, TypeError, ValueError, AttributeError),
    *(AssertionError, OverflowError, RecursionError, msgspec.MsgspecError, struct.error),
)
"""What is raised by reading a document that has not its form."""
REMEDY: Final = "It was changed past the writer: run flagkit ledger verify"
_NO_FORM: Final = "has not the form that it should have"
_SHOWN_LENGTH_MAX: Final = 60
_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "string": (str,),
    "int": (int,),
    "long": (int,),
    "double": (float,),
    "bool": (bool,),
    "date": (datetime,),
    "binData": (bytes,),
    "array": (list, tuple),
    "object": (Mapping,),
    "null": (type(None),),
}
_NUMBERS: Final = ("int", "long", "double")
_WORDS: Final = {"binData": "bytes", "long": "int"}
# By the second field of its `_id`; a policy has a third one, which says more.
_COLLECTIONS: Final = {
    "revision": layout.LEDGER,
    "request": layout.AUDIT,
    "proposal": layout.PROPOSALS,
    "denial": layout.DENIALS,
    "part": layout.MEMBERS,
    "page": layout.PAGES,
    "checkpoint": layout.CHECKPOINTS,
    "instance": layout.CLIENTS,
    "epoch": layout.BUCKET_KEYS,
}


def find_fault(collection: str, document: Mapping[str, Any]) -> str | None:
    """Return which field of a document is not as it should be, and why; None if none is."""
    validator = VALIDATORS.get(collection)
    if validator is None:
        return None
    fault = next(_iter_faults(validator["$jsonSchema"], document, ""), None)
    if fault is None and "$expr" in validator:
        wanted = [*validator["$expr"]["$eq"][1]]
        if [*document["_id"]] != wanted:
            fault = f"_id: has other fields than {', '.join(wanted)}, in this order"
    return fault


def check_form(collection: str, document: layout.Document) -> layout.Document:
    """Return a document, if it has the form of its collection.

    Raises:
        StoreError: it has not; with the collection, the `_id` and the field.
    """
    fault = find_fault(collection, document)
    if fault is not None:
        raise StoreError(describe_fault(collection, document, fault))
    return document


def describe_fault(collection: str, document: Mapping[str, Any], fault: str) -> str:
    """Return in words what is wrong with a document of a collection."""
    return f"{collection} {format_id(document)} {_NO_FORM}: {fault}. {REMEDY}"


def format_id(document: Mapping[str, Any]) -> str:
    """Return the `_id` of a document in words."""
    identity = document.get("_id", "without an _id")
    if not isinstance(identity, Mapping):
        return _format_value(identity)
    fields = cast("Mapping[str, object]", identity)
    return (
        "{" + ", ".join(f"{name}: {_format_value(value)}" for name, value in fields.items()) + "}"
    )


@contextmanager
def translate_form_errors(
    collection: str | None = None, document: object = None
) -> Generator[None]:
    """Raise what a malformed document causes in the block as a StoreError that names it.

    Nothing of a caller's own may run in the block, for its errors would be taken for such.

    Args:
        collection: Where the document stands; None where its `_id` says so.
        document: The document; None where it is one of several.

    Raises:
        StoreError: the document has not the form that it should have.
    """
    try:
        yield
    except FORM_FAULTS as error:
        raise _build_form_error(collection, document, error) from error


def validates_form(read: Callable[P, R]) -> Callable[P, R]:
    """Have a function raise a StoreError where a stored document has not its form.

    The document is the first argument that has an `_id`. It is looked at only once something was
    raised, so a function that is called very often costs no more.
    """

    @functools.wraps(read)
    def judging_it(*arguments: P.args, **named: P.kwargs) -> R:
        try:
            return read(*arguments, **named)
        except FORM_FAULTS as error:
            mappings = [
                cast("Mapping[str, object]", each)
                for each in arguments
                if isinstance(each, Mapping)
            ]
            found = next((each for each in mappings if "_id" in each), None)
            raise _build_form_error(None, found, error) from error

    return judging_it


def check_whole_number(value: object) -> int:
    """Return a whole number, as an int.

    Raises:
        TypeError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{_format_value(value)} is no whole number")
    return int(value)


def check_type(value: object, kind: type[R]) -> R:
    """Return a value, if it is of a type.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{_format_value(value)} is no {kind.__name__}")
    return value


def _build_form_error(collection: str | None, document: object, error: Exception) -> StoreError:
    cause = f"{type(error).__name__}: {str(error)[:500]}"
    if not isinstance(document, Mapping):
        return StoreError(f"a stored document {_NO_FORM} ({cause}). {REMEDY}")
    stored = cast("Mapping[str, Any]", document)
    place = collection or _guess_collection(stored)
    fault = find_fault(place, stored) if place in VALIDATORS else None
    return StoreError(describe_fault(place, stored, fault or cause))


def _guess_collection(document: Mapping[str, Any]) -> str:
    """Return where a document stands, as far as its `_id` says so."""
    identity = document["_id"]
    if isinstance(identity, str):
        return layout.HEADS
    if not isinstance(identity, Mapping):
        return "the document"
    fields = cast("Mapping[str, object]", identity)
    if "slice" in fields:
        return layout.SLICES
    if "key" in fields:
        return layout.get_collection_name(str(fields.get("region")))
    found = (_COLLECTIONS[name] for name in fields if name in _COLLECTIONS)
    return next(found, "the document")


def _iter_faults(form: Mapping[str, Any], value: object, path: str) -> Iterator[str]:
    """Yield what is wrong with a value by the form of a validator, at the first place and on."""
    forms: Iterable[Mapping[str, Any]] = form.get("anyOf", ())
    if forms and all(next(_iter_faults(each, value, path), None) is not None for each in forms):
        yield from _iter_nearest_faults(forms, value, path)
        return
    types: list[str] | None = form.get("bsonType")
    if types is not None and not _has_type(types, value):
        wanted = " or ".join(dict.fromkeys(_WORDS.get(name, name) for name in types))
        yield f"{path or 'the document'}: is {_format_value(value)}, not {wanted}"
        return
    yield from _iter_bound_faults(form, value, path)
    if isinstance(value, Mapping):
        yield from _iter_field_faults(form, cast("Mapping[str, object]", value), path)
    elif isinstance(value, list | tuple) and "items" in form:
        for i, item in enumerate(cast("list[object]", value)):
            yield from _iter_faults(form["items"], item, f"{path}.{i}")


def _iter_nearest_faults(
    forms: Iterable[Mapping[str, Any]], value: object, path: str
) -> Iterator[str]:
    """Yield what is wrong by the form that a value comes nearest to."""
    fitting = [each for each in forms if _has_type(each.get("bsonType", ["object"]), value)]
    for each in (fitting or [*forms])[:1]:
        yield from _iter_faults(each, value, path)


def _iter_field_faults(
    form: Mapping[str, Any], fields: Mapping[str, object], path: str
) -> Iterator[str]:
    at = f"{path}." if path else ""
    for name in form.get("required", ()):
        if name not in fields:
            yield f"{at}{name}: is missing"
    known: Mapping[str, Mapping[str, Any]] = form.get("properties", {})
    for name, kind in known.items():
        if name in fields:
            yield from _iter_faults(kind, fields[name], f"{at}{name}")
    others = form.get("additionalProperties")
    if others is not None:
        for name in fields.keys() - known.keys():
            yield from _iter_faults(others, fields[name], f"{at}{name}")


def _iter_bound_faults(form: Mapping[str, Any], value: object, path: str) -> Iterator[str]:
    if isinstance(value, str) and len(value) > form.get("maxLength", len(value)):
        yield f"{path}: is longer than {form['maxLength']} characters"
    if isinstance(value, int | float) and not isinstance(value, bool):
        if "minimum" in form and not value >= form["minimum"]:
            yield f"{path}: is {value}, which is less than {form['minimum']}"
        if "maximum" in form and not value <= form["maximum"]:
            yield f"{path}: is {value}, which is more than {form['maximum']}"


def _has_type(types: Iterable[str], value: object) -> bool:
    is_bool = isinstance(value, bool)
    return any(
        isinstance(value, _TYPES[name]) and not (is_bool and name in _NUMBERS) for name in types
    )


def _format_value(value: object) -> str:
    name = "an object" if isinstance(value, Mapping) else "a list"
    text = name if isinstance(value, Mapping | list | tuple) else repr(value)
    return text if len(text) <= _SHOWN_LENGTH_MAX else f"{text[:_SHOWN_LENGTH_MAX]}..."
