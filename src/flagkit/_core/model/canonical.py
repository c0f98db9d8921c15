"""The canonical form of a flag: equal policies have one form and one digest.

The form is a policy document again. It flattens, sorts and deduplicates conditions, but it never
reasons about them: `{age: {$gte: 18}}` and `{age: {$not: {$lt: 18}}}` stay different.
`model.conditions` declares the form of each operator's constant; this module has a function for
each form.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, TypeAlias, cast

from msgspec.structs import replace

from flagkit._core.model.conditions import (
    LOGICAL_OPERATORS,
    OPERATORS,
    OPTIONS,
    TYPE_NAMES,
    ConstantForm,
    Field,
    parse_condition,
)
from flagkit._core.model.flags import Flag, Prerequisite, Rollout, Rule, Serves, encode
from flagkit._core.model.rollouts import allocate
from flagkit._core.model.segments import Segment, encode_segment
from flagkit._core.model.values import DECIMAL128, INT64_MAX, INT64_MIN, Value, decode_extended_json
from flagkit.errors import InvalidDocumentError

_Document: TypeAlias = dict[str, Any]
_TESTS = {*OPERATORS, OPTIONS}


def compute_flag_digest(flag: Flag) -> str:
    """Return the hex SHA-256 of a flag's canonical form, as JSON without spaces, in UTF-8."""
    return hashlib.sha256(_format_extended_value(canonicalize_flag(flag)).encode()).hexdigest()


def canonicalize_flag(flag: Flag) -> _Document:
    """Return the policy document of a flag in canonical form.

    Defaults and intervals that follow from the weights are left out. Order is kept where it counts:
    of rules, of weights, and within the values of variants and constants.
    """
    document = encode(_sort_flag(flag))
    if flag.state == "active":
        del document["state"]
    for served in _normalize_parts(document):
        rollout: _Document | None = served.get("rollout")
        if rollout is not None and _is_derivable_from_weights(rollout):
            del rollout["intervals"]
    return document


def compute_segment_digest(segment: Segment) -> str:
    """Return the hex SHA-256 of a segment's canonical form, in which keys are their hashes.

    Listed keys are hashed with the public seed for it, so the digest of a file stays the same.
    """
    return hashlib.sha256(
        _format_extended_value(canonicalize_segment(segment)).encode()
    ).hexdigest()


def canonicalize_segment(segment: Segment) -> _Document:
    """Return the document of a segment in canonical form."""
    when = None if segment.when is None else _normalize_condition(segment.when)
    return encode_segment(
        replace(segment, when=when, metadata=_normalize_metadata(segment.metadata))
    )


def to_extended_json(value: Value) -> Value:
    """Return a value with what JSON cannot say in MongoDB's Extended JSON: dates, NaN, infinity."""
    match value:
        case dict():
            return {name: to_extended_json(item) for name, item in value.items()}
        case list():
            return [to_extended_json(item) for item in value]
        case datetime():
            return {"$date": format_date(value)}
        case float() if not math.isfinite(value):
            named = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
            return {"$numberDouble": named}
        case _:
            return value


def format_date(date: datetime) -> str:
    """Return a date as text, in UTC, to the millisecond."""
    return date.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _format_extended_value(value: Any) -> str:
    return json.dumps(
        to_extended_json(value), ensure_ascii=False, allow_nan=False, separators=(",", ":")
    )


def _sort_flag(flag: Flag) -> Flag:
    prerequisites = {
        Prerequisite(item.flag, tuple(sorted(set(item.variants)))) for item in flag.prerequisites
    }
    return replace(
        flag,
        variants=dict(sorted(flag.variants.items())),
        sensitive=tuple(sorted(flag.sensitive)),
        prerequisites=tuple(sorted(prerequisites, key=lambda item: (item.flag, item.variants))),
        rules=tuple(_normalize_rule(rule) for rule in flag.rules),
        fallthrough=_normalize_serves(flag.fallthrough),
        metadata=_normalize_metadata(flag.metadata),
    )


def _normalize_metadata(metadata: Mapping[str, Value]) -> _Document:
    tags = metadata.get("tags")
    return {**metadata, "tags": _normalize_set(tags)} if isinstance(tags, list) else {**metadata}


def _normalize_rule(rule: Rule) -> Rule:
    return replace(
        rule, when=_normalize_condition(rule.when), serves=_normalize_serves(rule.serves)
    )


def _normalize_serves(serves: Serves) -> Serves:
    if not isinstance(serves, Rollout):
        return serves
    intervals = allocate(serves.weights, serves.intervals)
    weights = {variant: serves.weights[variant] for _, variant in intervals}
    return replace(serves, weights=weights, intervals=intervals)


def _normalize_parts(document: _Document) -> list[_Document]:
    return [*document.get("rules", []), document["fallthrough"]]


def _is_derivable_from_weights(rollout: _Document) -> bool:
    # Each variant has one interval, and weights are in the order of intervals.
    return len(rollout["intervals"]) == len(rollout["weights"])


# Conditions: a document is the conjunction of its atoms, each a document of one field.


def _normalize_condition(document: _Document) -> _Document:
    atoms = {_format_extended_value(atom): atom for atom in _iter_atoms(document)}
    found: _Document = {}
    left: list[_Document] = []
    for text in sorted(atoms):
        ((name, tests),) = atoms[text].items()
        if name not in found:
            found[name] = tests
        elif not name.startswith("$") and not found[name].keys() & tests.keys():
            found[name] = dict(sorted((found[name] | tests).items()))
        else:
            left.append({name: _shorten_tests(name, tests)})
    if left:
        found["$and"] = left
    return {
        name: _shorten_tests(name, found[name]) for name in sorted(found, key=_order_logical_last)
    }


def _order_logical_last(name: str) -> tuple[bool, str]:
    return name.startswith("$"), name


def _shorten_tests(name: str, tests: Any) -> Any:
    """Return the tests of an attribute, `{$eq: value}` as the value where that is read as one.

    Besides being shorter, it is no deeper than what was written, which may be as deep as can be.
    """
    if name.startswith("$") or tests.keys() != {"$eq"}:
        return tests
    value = tests["$eq"]
    return value if _is_read_as_value(value) else tests


def _is_read_as_value(value: Value) -> bool:
    constant = decode_extended_json(value)
    if isinstance(constant, dict) and next(iter(constant), "").startswith("$"):
        return False
    try:
        parse_condition({"a": value}, "")
    except InvalidDocumentError:  # it looks like a bare operator
        return False
    return True


def _iter_atoms(document: _Document) -> Iterator[_Document]:
    for name, value in document.items():
        if name == "$and":
            for branch in value:
                yield from _iter_atoms(branch)
        elif name in LOGICAL_OPERATORS:
            yield {name: _NORMALIZERS[LOGICAL_OPERATORS[name].constant.form](value)}
        elif _has_operators(value):
            yield from ({name: test} for test in _iter_tests(value))
        else:
            yield {name: {"$eq": _normalize_constant(value)}}


def _has_operators(value: Any) -> bool:
    # Values in Extended JSON have a field that begins with $, too.
    return isinstance(value, dict) and next(iter(cast("_Document", value)), "") in _TESTS


def _iter_tests(operators: _Document) -> Iterator[_Document]:
    for operator, constant in operators.items():
        if operator == "$regex":
            yield {operator: constant} | _normalize_options(operators.get(OPTIONS, ""))
        elif operator != OPTIONS:
            yield {operator: _NORMALIZERS[OPERATORS[operator].constant.form](constant)}


def _normalize_options(options: str) -> _Document:
    return {OPTIONS: "".join(sorted({*options}))} if options else {}


def _normalize_operators(operators: _Document) -> _Document:
    tests = [test for found in _iter_tests(operators) for test in found.items()]
    return dict(sorted(tests))


def _normalize_constant(value: Value) -> Value:
    """Return a constant with its numbers in one form: to conditions, 1.0 is 1."""
    match value:
        case {"$numberDecimal": str(text), **more} if not more:
            return _normalize_number(DECIMAL128.create_decimal(text))
        case float() if value.is_integer() and INT64_MIN <= value <= INT64_MAX:
            return int(value)
        case list():
            return [_normalize_constant(item) for item in value]
        case dict():
            return {name: _normalize_constant(item) for name, item in value.items()}
        case _:
            return value


def _normalize_number(number: Decimal) -> Value:
    if number == number.to_integral_value() and INT64_MIN <= number <= INT64_MAX:
        return int(number)
    return {"$numberDecimal": str(DECIMAL128.normalize(number))}


def _remove_duplicates(values: Iterable[Any]) -> list[Any]:
    found = {_format_extended_value(value): value for value in values}
    return [found[text] for text in sorted(found)]


def _normalize_set(constant: list[Any]) -> list[Any]:
    return _remove_duplicates(map(_normalize_constant, constant))


def _normalize_all(constant: list[Any]) -> list[Any]:
    if any(map(_has_operators, constant)):
        return _remove_duplicates(map(_normalize_operators, constant))
    return _normalize_set(constant)


def _normalize_one_or_more(constant: Value) -> Value:
    """Return the constant of an operator that takes one value or a list of them."""
    if not isinstance(constant, list):
        return constant
    values = _normalize_set(constant)
    return values[0] if len(values) == 1 else values


def _normalize_types(constant: Value) -> Value:
    match _normalize_constant(constant):
        case list() as types:
            return _normalize_one_or_more([_normalize_type(item) for item in types])
        case one:
            return _normalize_type(one)


def _normalize_type(one: Value) -> Value:
    return TYPE_NAMES[one] if isinstance(one, int) else one


def _normalize_exists(constant: Value) -> bool:
    return isinstance(parse_condition({"a": {"$exists": constant}}, ""), Field)


def _normalize_elem_match(constant: _Document) -> _Document:
    return (
        _normalize_operators(constant)
        if _has_operators(constant)
        else _normalize_condition(constant)
    )


def _normalize_versions(constant: _Document) -> _Document:
    return {
        comparison: _normalize_set(value) if comparison in ("$in", "$nin") else value
        for comparison, value in sorted(constant.items())
    }


_NORMALIZERS: Mapping[ConstantForm, Callable[[Any], Any]] = {
    "value": _normalize_constant,
    "set": _normalize_all,
    "one or more": _normalize_one_or_more,
    "presence": _normalize_exists,
    "types": _normalize_types,
    "versions": _normalize_versions,
    "condition": _normalize_elem_match,
    "conditions": lambda branches: _remove_duplicates(map(_normalize_condition, branches)),
}
"""The function that puts constants of each form into canonical form."""
