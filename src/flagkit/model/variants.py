"""Variants: the values that a flag can have, all of one type, and what refers to them."""

from collections.abc import Mapping
from typing import cast, get_args

from flagkit.errors import InvalidDocumentError
from flagkit.model.flags import VariantType
from flagkit.model.values import Value, join


def typed_variants(variants: dict[str, Value]) -> tuple[VariantType, dict[str, Value]]:
    """Return the type that all variants have, and the variants; integers among floats are floats.

    Raises:
        InvalidDocumentError: there are none, or of several types, or of none that variants have.
    """
    if not variants:
        raise InvalidDocumentError("variants", "is empty", "Name at least one variant")
    found: dict[str, VariantType] = {
        name: _variant_type(value, f"variants.{name}") for name, value in variants.items()
    }
    kinds = set(found.values())
    if kinds == {"integer", "float"}:
        floats: dict[str, Value] = {
            name: float(cast("float", value)) for name, value in variants.items()
        }
        return "float", floats
    first, kind = next(iter(found.items()))
    for name, other in found.items():
        if other != kind:
            raise InvalidDocumentError(
                f"variants.{name}",
                f"is of type {other}, but {first} is of type {kind}",
                "Give all variants of a flag the same type; quote on, off, yes and no, which YAML"
                " 1.1 readers take for booleans"
                if {other, kind} == {"boolean", "string"}
                else "Give all variants of a flag the same type",
            )
    return kind, variants


def _variant_type(value: Value, path: str) -> VariantType:
    match value:
        case bool():
            return "boolean"
        case str():
            return "string"
        case int():
            return "integer"
        case float() if value - value == 0:
            return "float"
        case dict() | list():
            _check_json(value, path)
            return "object"
        case _:
            raise InvalidDocumentError(
                path,
                f"is {value!r}, which is no variant",
                f"Use one of these types: {', '.join(get_args(VariantType))}; quote a date",
            )


def _check_json(value: Value, path: str) -> None:
    match value:
        case dict():
            for name, item in value.items():
                _check_json(item, join(path, name))
        case list():
            for i, item in enumerate(value):
                _check_json(item, f"{path}[{i}]")
        case None:
            pass
        case _:
            _variant_type(value, path)


def check_variant(name: str, variants: Mapping[str, object], path: str) -> None:
    """Refuse the name of a variant that a flag has not."""
    if name not in variants:
        raise InvalidDocumentError(
            path, f"{name!r} is not a variant of this flag", f"Use one of: {', '.join(variants)}"
        )


def bare_weights(
    share: float | None, variants: Mapping[str, Value], path: str
) -> dict[str, int | float]:
    """Return the weights that a bare percentage stands for: the share of the true variant.

    Raises:
        InvalidDocumentError: it is none, or the variants are not one true and one false.
    """
    names = {value: name for name, value in variants.items() if isinstance(value, bool)}
    if len(names) != len(variants) or len(names) != 2 or share is None:  # noqa: PLR2004 - true, false
        raise InvalidDocumentError(
            path,
            f"{share!r} alone does not say which variants",
            "Write weights; a bare percentage is for flags with one true and one false variant",
        )
    if not 0 <= share <= 100:  # noqa: PLR2004 - percent
        raise InvalidDocumentError(path, f"is {share!r}", "Write a percentage from 0 to 100")
    return {names[True]: share, names[False]: round(100 - share, 9)}
