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

from flagkit._core.storage import layout
from flagkit.errors import StoreError

VALIDATORS: Final[Mapping[str, layout.Document]] = {
    name: each.validator for name, each in layout.COLLECTIONS.items() if each.validator is not None
}
"""The validators that a document of each collection must match."""

# By the second field of the `_id`. The first collection has it: a pending request is in the audit.
_COLLECTION_BY_FIELD: Final = {
    [*validator["$expr"]["$eq"][1]][1]: name
    for name, validator in reversed([*VALIDATORS.items()])
    if "$expr" in validator
}


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
"""The errors that reading a malformed document raises."""
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
    def checked_read(*arguments: P.args, **named: P.kwargs) -> R:
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

    return checked_read


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
    fault = find_fault(place, stored)
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
    found = (_COLLECTION_BY_FIELD[name] for name in fields if name in _COLLECTION_BY_FIELD)
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
