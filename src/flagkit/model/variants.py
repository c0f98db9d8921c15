"""Variants: the values that a flag can have, all of one type, and what refers to them."""

from collections.abc import Collection, Mapping
from typing import Final, cast, get_args

from flagkit.errors import InvalidDocumentError
from flagkit.model.documents import VariantType
from flagkit.model.sensitive import Sealed, Secret, VariantValue, sealed_in
from flagkit.model.values import Value, join
from flagkit.suggestions import suggested

_SIMPLE: Final[Mapping[type, VariantType]] = {bool: "boolean", str: "string", int: "integer"}
"""Classes of which every value can be a variant's."""


def typed_variants(
    variants: dict[str, Value], sensitive: Collection[str] = ()
) -> tuple[VariantType, dict[str, VariantValue]]:
    """Return the type that all variants have, and the variants; integers among floats are floats.

    Those named by `sensitive` are Sealed or, where they are not encrypted yet, Secret.

    Raises:
        InvalidDocumentError: there are none, or of several types, or of none that variants have.
    """
    if not variants:
        raise InvalidDocumentError("variants", "is empty", "Name at least one variant")
    classes = {*map(type, variants.values())}
    simple = _SIMPLE.get(classes.pop()) if len(classes) == 1 and not sensitive else None
    if simple is not None:
        return simple, {**variants}
    sealed = _sealed(variants, sensitive)
    found: dict[str, VariantType] = {
        name: sealed[name].type if name in sealed else variant_type(value, f"variants.{name}")
        for name, value in variants.items()
    }
    kind = _common_type(found)
    typed: dict[str, VariantValue] = {**variants}
    if kind == "float":
        plain = variants.keys() - sealed.keys()
        typed |= {name: float(cast("float", variants[name])) for name in variants if name in plain}
    typed |= {name: Sealed(value.ciphertext, kind) for name, value in sealed.items()}
    for i, name in enumerate(sensitive):
        check_variant(name, variants, f"sensitive[{i}]")
        if name not in sealed:
            typed[name] = Secret(cast("Value", typed[name]))
    return kind, typed


def _sealed(variants: dict[str, Value], sensitive: Collection[str]) -> dict[str, Sealed]:
    """Return those that are encrypted."""
    found: dict[str, Sealed] = {}
    for name, value in variants.items():
        sealed = sealed_in(value, f"variants.{name}")
        if sealed is not None:
            found[name] = sealed
            if name not in sensitive:
                raise InvalidDocumentError(
                    f"variants.{name}", "is encrypted", "Name the variant in `sensitive`"
                )
    return found


def _common_type(found: Mapping[str, VariantType]) -> VariantType:
    if set(found.values()) == {"integer", "float"}:
        return "float"
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
    return kind


def variant_type(value: Value, path: str) -> VariantType:
    """Return the type of a variant's value.

    Raises:
        InvalidDocumentError: it has none that variants have.
    """
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
            variant_type(value, path)


def check_variant(name: str, variants: Mapping[str, object], path: str) -> None:
    """Refuse the name of a variant that a flag has not."""
    if name not in variants:
        raise InvalidDocumentError(
            path,
            f"{name!r} is not a variant of this flag",
            suggested(f"Use one of: {', '.join(variants)}", name, variants),
        )


def variant_with(value: bool, variants: Mapping[str, object], path: str) -> str:  # noqa: FBT001 - a value
    """Return the name of the variant of a boolean flag that has a value.

    Raises:
        InvalidDocumentError: the flag is not boolean, or has not exactly one such variant.
    """
    names = [name for name, found in variants.items() if found is value]
    if len(names) != 1:
        raise InvalidDocumentError(
            path,
            f"{str(value).lower()} is the value of {len(names)} variants of this flag",
            f"Name the variant: {', '.join(variants)}",
        )
    return names[0]


def bare_weights(
    share: float | None, variants: Mapping[str, object], path: str
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
