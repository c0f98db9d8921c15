"""The canonical form of a flag: equal policies have one form and one digest.

The form is a policy document again. It flattens, sorts and deduplicates conditions, but it never
reasons about them: `{age: {$gte: 18}}` and `{age: {$not: {$lt: 18}}}` stay different. The constant
of an unknown operator stays as written, which is safe.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, TypeAlias, cast

from msgspec.structs import replace

from flagkit._core.model.conditions import OPERATORS, OPTIONS, SEGMENT, TYPE_NAMES, Field, parse
from flagkit._core.model.flags import Flag, Prerequisite, Rollout, Rule, Serves, encode
from flagkit._core.model.rollouts import allocate
from flagkit._core.model.segments import Segment, encode_segment
from flagkit._core.model.values import DECIMAL128, INT64_MAX, INT64_MIN, Value, revived
from flagkit.errors import InvalidDocumentError

_Document: TypeAlias = dict[str, Any]
_TESTS = (*OPERATORS, OPTIONS)


def digest(flag: Flag) -> str:
    """Return the hex SHA-256 of a flag's canonical form, as JSON without spaces, in UTF-8."""
    return hashlib.sha256(_text(canonical(flag)).encode()).hexdigest()


def canonical(flag: Flag) -> _Document:
    """Return the policy document of a flag in canonical form.

    Defaults and intervals that follow from the weights are left out. Order is kept where it counts:
    of rules, of weights, and within the values of variants and constants.
    """
    document = encode(_sorted(flag))
    if flag.state == "active":
        del document["state"]
    for served in _parts(document):
        rollout: _Document | None = served.get("rollout")
        if rollout is not None and _follow_from_weights(rollout):
            del rollout["intervals"]
    return document


def segment_digest(segment: Segment) -> str:
    """Return the hex SHA-256 of a segment's canonical form, in which keys are their hashes.

    Listed keys are hashed with the public seed for it, so the digest of a file stays the same.
    """
    return hashlib.sha256(_text(canonical_segment(segment)).encode()).hexdigest()


def canonical_segment(segment: Segment) -> _Document:
    """Return the document of a segment in canonical form."""
    when = None if segment.when is None else _condition(segment.when)
    return encode_segment(replace(segment, when=when, metadata=_metadata(segment.metadata)))


def extended(value: Value) -> Value:
    """Return a value with what JSON cannot say in MongoDB's Extended JSON: dates, NaN, infinity."""
    match value:
        case dict():
            return {name: extended(item) for name, item in value.items()}
        case list():
            return [extended(item) for item in value]
        case datetime():
            return {"$date": date_text(value)}
        case float() if not math.isfinite(value):
            named = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
            return {"$numberDouble": named}
        case _:
            return value


def date_text(date: datetime) -> str:
    """Return a date as text, in UTC, to the millisecond."""
    return date.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _text(value: Any) -> str:
    return json.dumps(extended(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _sorted(flag: Flag) -> Flag:
    prerequisites = {
        Prerequisite(item.flag, tuple(sorted(set(item.variants)))) for item in flag.prerequisites
    }
    return replace(
        flag,
        variants=dict(sorted(flag.variants.items())),
        sensitive=tuple(sorted(flag.sensitive)),
        prerequisites=tuple(sorted(prerequisites, key=lambda item: (item.flag, item.variants))),
        rules=tuple(_rule(rule) for rule in flag.rules),
        fallthrough=_serves(flag.fallthrough),
        metadata=_metadata(flag.metadata),
    )


def _metadata(metadata: Mapping[str, Value]) -> _Document:
    tags = metadata.get("tags")
    return {**metadata, "tags": _set(tags)} if isinstance(tags, list) else {**metadata}


def _rule(rule: Rule) -> Rule:
    return replace(rule, when=_condition(rule.when), serves=_serves(rule.serves))


def _serves(serves: Serves) -> Serves:
    if not isinstance(serves, Rollout):
        return serves
    intervals = allocate(serves.weights, serves.intervals)
    weights = {variant: serves.weights[variant] for _, variant in intervals}
    return replace(serves, weights=weights, intervals=intervals)


def _parts(document: _Document) -> list[_Document]:
    return [*document.get("rules", []), document["fallthrough"]]


def _follow_from_weights(rollout: _Document) -> bool:
    # Each variant has one interval, and weights are in the order of intervals.
    return len(rollout["intervals"]) == len(rollout["weights"])


# Conditions: a document is the conjunction of its atoms, each a document of one field.


def _condition(document: _Document) -> _Document:
    atoms = {_text(atom): atom for atom in _atoms(document)}
    found: _Document = {}
    left: list[_Document] = []
    for text in sorted(atoms):
        ((name, tests),) = atoms[text].items()
        if name not in found:
            found[name] = tests
        elif not name.startswith("$") and not found[name].keys() & tests.keys():
            found[name] = dict(sorted((found[name] | tests).items()))
        else:
            left.append({name: _short(name, tests)})
    if left:
        found["$and"] = left
    return {name: _short(name, found[name]) for name in sorted(found, key=_logical_last)}


def _logical_last(name: str) -> tuple[bool, str]:
    return name.startswith("$"), name


def _short(name: str, tests: Any) -> Any:
    """Return the tests of an attribute, `{$eq: value}` as the value where that is read as one.

    Besides being shorter, it is no deeper than what was written, which may be as deep as can be.
    """
    if name.startswith("$") or tests.keys() != {"$eq"}:
        return tests
    value = tests["$eq"]
    return value if _is_read_as_value(value) else tests


def _is_read_as_value(value: Value) -> bool:
    constant = revived(value)
    if isinstance(constant, dict) and next(iter(constant), "").startswith("$"):
        return False
    try:
        parse({"a": value}, "")
    except InvalidDocumentError:  # it looks like a bare operator
        return False
    return True


def _atoms(document: _Document) -> Iterator[_Document]:
    for name, value in document.items():
        if name == "$and":
            for branch in value:
                yield from _atoms(branch)
        elif name in ("$or", "$nor"):
            yield {name: _unique(_condition(branch) for branch in value)}
        elif name == SEGMENT:
            yield {name: _one_or_more(value)}
        elif name.startswith("$"):
            yield {name: value}
        elif _has_operators(value):
            yield from ({name: test} for test in _tests(value))
        else:
            yield {name: {"$eq": _constant(value)}}


def _has_operators(value: Any) -> bool:
    # Values in Extended JSON have a field that begins with $, too.
    return isinstance(value, dict) and next(iter(cast("_Document", value)), "") in _TESTS


def _tests(operators: _Document) -> Iterator[_Document]:
    for operator, constant in operators.items():
        if operator == "$regex":
            yield {operator: constant} | _options(operators.get(OPTIONS, ""))
        elif operator != OPTIONS:
            yield {operator: _CONSTANTS.get(operator, lambda written: written)(constant)}


def _options(options: str) -> _Document:
    return {OPTIONS: "".join(sorted({*options}))} if options else {}


def _operators(operators: _Document) -> _Document:
    tests = [test for found in _tests(operators) for test in found.items()]
    return dict(sorted(tests))


def _constant(value: Value) -> Value:
    """Return a constant with its numbers in one form: to conditions, 1.0 is 1."""
    match value:
        case {"$numberDecimal": str(text), **more} if not more:
            return _number(DECIMAL128.create_decimal(text))
        case float() if value.is_integer() and INT64_MIN <= value <= INT64_MAX:
            return int(value)
        case list():
            return [_constant(item) for item in value]
        case dict():
            return {name: _constant(item) for name, item in value.items()}
        case _:
            return value


def _number(number: Decimal) -> Value:
    if number == number.to_integral_value() and INT64_MIN <= number <= INT64_MAX:
        return int(number)
    return {"$numberDecimal": str(DECIMAL128.normalize(number))}


def _unique(values: Iterable[Any]) -> list[Any]:
    found = {_text(value): value for value in values}
    return [found[text] for text in sorted(found)]


def _set(constant: list[Any]) -> list[Any]:
    return _unique(map(_constant, constant))


def _all(constant: list[Any]) -> list[Any]:
    if any(map(_has_operators, constant)):
        return _unique(map(_operators, constant))
    return _set(constant)


def _one_or_more(constant: Value) -> Value:
    """Return the constant of an operator that takes one value or a list of them."""
    if not isinstance(constant, list):
        return constant
    values = _set(constant)
    return values[0] if len(values) == 1 else values


def _types(constant: Value) -> Value:
    match _constant(constant):
        case list() as types:
            return _one_or_more([_type(item) for item in types])
        case one:
            return _type(one)


def _type(one: Value) -> Value:
    return TYPE_NAMES[one] if isinstance(one, int) else one


def _exists(constant: Value) -> bool:
    return isinstance(parse({"a": {"$exists": constant}}, ""), Field)


def _elem_match(constant: _Document) -> _Document:
    return _operators(constant) if _has_operators(constant) else _condition(constant)


def _versions(constant: _Document) -> _Document:
    return {
        comparison: _set(value) if comparison in ("$in", "$nin") else value
        for comparison, value in sorted(constant.items())
    }


_CONSTANTS: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("$eq", "$ne", "$gt", "$gte", "$lt", "$lte"), _constant),
    **dict.fromkeys(("$size", "$mod"), _constant),
    **dict.fromkeys(("$in", "$nin"), _set),
    **dict.fromkeys(("$startsWith", "$endsWith", "$contains"), _one_or_more),
    "$exists": _exists,
    "$type": _types,
    "$all": _all,
    "$elemMatch": _elem_match,
    "$not": _operators,
    "$semver": _versions,
}
"""How the constant of each operator is put into canonical form."""
