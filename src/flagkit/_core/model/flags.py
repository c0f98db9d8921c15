"""Flags: rules, rollouts, ramps and variants, decoded from a policy document and checked.

`decode` refuses an unknown field and names its path. It cannot check references to other flags; the
writer does, because only the writer sees the whole environment.
"""

import difflib
import re
from collections.abc import Collection, Mapping
from datetime import datetime
from itertools import pairwise
from typing import Final, TypeAlias, TypeVar, cast, get_args

import msgspec
from msgspec import Struct

from flagkit._core.model.conditions import (
    ALWAYS,
    Condition,
    collect_condition_segments,
    count_tests,
    parse_condition,
)
from flagkit._core.model.documents import (
    DOCUMENTS,
    EVERYWHERE,
    TARGETING_KEY,
    FlagDocument,
    PrerequisiteDocument,
    RampDocument,
    RolloutDocument,
    ServesDocument,
    State,
    StepDocument,
    VariantType,
    WhenStale,
)
from flagkit._core.model.keys import check_key, check_region, parse_attribute_path
from flagkit._core.model.rollouts import (
    BUCKETS,
    Intervals,
    allocate,
    list_spans,
    parse_shares,
    parse_weight,
    to_percent,
)
from flagkit._core.model.sensitive import (
    EncryptedValue,
    SecretValue,
    VariantValue,
    encode_variant,
    find_encrypted_value,
    redact_error,
)
from flagkit._core.model.values import (
    Value,
    check_name,
    floor_to_milliseconds,
    join_path,
    normalize,
    to_plain,
)
from flagkit._core.model.windows import Window, build_window, encode_window, to_date
from flagkit._core.suggestions import suggested
from flagkit.errors import InvalidDocumentError


class Prerequisite(Struct, frozen=True, gc=False):
    """Another flag that must serve one of some variants first."""

    flag: str
    variants: tuple[str, ...]


class Serve(Struct, frozen=True, gc=False):
    """One variant for everyone who gets here."""

    variant: str


class Rollout(Struct, frozen=True, gc=False):
    """Weights over variants, stored as intervals of buckets.

    `by` is the path of the attribute that is hashed; `salt` seeds the hash.
    """

    by: tuple[str, ...]
    salt: str
    weights: dict[str, int]
    intervals: Intervals


class Ramp(Struct, frozen=True, gc=False):
    """A rollout of one variant whose share follows the clock, from bucket 0 upwards.

    `points` are ascending (seconds since 1970, share of BUCKETS) pairs. Between two of them the
    share runs on evenly, or, if `stepped`, stays that of the earlier one. Before the first it is
    the first's, or none if `stepped`; after the last it is the last's.
    """

    by: tuple[str, ...]
    salt: str
    variant: str
    otherwise: str
    points: tuple[tuple[float, int], ...]
    stepped: bool


Serves: TypeAlias = Serve | Rollout | Ramp
"""The decision of a targeting rule or of the fallthrough."""


class Rule(Struct, frozen=True, gc=False):
    """A targeting rule: its condition, its window, and the variant or rollout that it serves.

    `when` is `condition` as written.
    """

    name: str
    when: dict[str, Value]
    condition: Condition
    during: Window | None
    serves: Serves


class Flag(Struct, frozen=True, kw_only=True, gc=False):
    """A named decision with typed variants, checked; `decode` is the way to one.

    The values of the variants named by `sensitive` are of `model.sensitive`, all others are plain.
    """

    key: str
    region: str
    state: State
    type: VariantType
    variants: dict[str, VariantValue]
    sensitive: tuple[str, ...] = ()
    off: str | None
    prerequisites: tuple[Prerequisite, ...]
    rules: tuple[Rule, ...]
    fallthrough: Serves
    when_stale: WhenStale = "hold"
    metadata: dict[str, Value]


def collect_flag_segments(flag: Flag) -> set[str]:
    """Return the keys of the segments that a flag's rules refer to."""
    return {key for rule in flag.rules for key in collect_condition_segments(rule.condition)}


def encode(flag: Flag) -> dict[str, Value]:
    """Return the document of a flag: defaults left out, rollouts with their intervals.

    Raises:
        InvalidDocumentError: a sensitive value is not encrypted.
    """
    document: dict[str, Value] = {"key": flag.key}
    if flag.region != EVERYWHERE:
        document["region"] = flag.region
    document["state"] = flag.state
    # Only sensitive variants have another form in a document.
    document["variants"] = cast("dict[str, Value]", {**flag.variants})
    if flag.sensitive:
        document["variants"] = {
            name: encode_variant(value, join_path("variants", name))
            for name, value in flag.variants.items()
        }
        document["sensitive"] = [*flag.sensitive]
    if flag.off is not None:
        document["off"] = flag.off
    if flag.prerequisites:
        document["prerequisites"] = [
            {"flag": item.flag, "variants": list(item.variants)} for item in flag.prerequisites
        ]
    if flag.rules:
        document["rules"] = [_encode_rule(rule, flag.key) for rule in flag.rules]
    document["fallthrough"] = _encode_serves(flag.fallthrough, flag.key)
    if flag.when_stale != "hold":
        document["when_stale"] = flag.when_stale
    return document | flag.metadata


def _encode_rule(rule: Rule, key: str) -> dict[str, Value]:
    document: dict[str, Value] = {"name": rule.name}
    if rule.when:
        document["when"] = rule.when
    if rule.during is not None:
        document["during"] = {**encode_window(rule.during)}
    return document | _encode_serves(rule.serves, key)


def _encode_serves(serves: Serves, key: str) -> dict[str, Value]:
    if isinstance(serves, Serve):
        return {"serve": serves.variant}
    rollout: dict[str, Value] = {}
    if serves.by != (TARGETING_KEY,):
        rollout["by"] = ".".join(serves.by)
    if serves.salt != key:
        rollout["salt"] = serves.salt
    if isinstance(serves, Ramp):
        return {"ramp": rollout | _encode_ramp(serves)}
    rollout["weights"] = {name: to_percent(share) for name, share in serves.weights.items()}
    rollout["intervals"] = [[end, variant] for end, variant in serves.intervals]
    return {"rollout": rollout}


def _encode_ramp(ramp: Ramp) -> dict[str, Value]:
    document: dict[str, Value] = {"variant": ramp.variant, "otherwise": ramp.otherwise}
    if ramp.stepped:
        document["steps"] = [
            {"at": to_date(at), "percent": to_percent(share)} for at, share in ramp.points
        ]
        return document
    (start, first), (end, last) = ramp.points
    ends: dict[str, Value] = {"start": to_date(start), "end": to_date(end)}
    return document | {"from": to_percent(first), "to": to_percent(last)} | ends


_SIMPLE: Final[Mapping[type, VariantType]] = {bool: "boolean", str: "string", int: "integer"}
"""Classes of which every value can be a variant's."""


def unify_variants(
    variants: dict[str, Value], sensitive: Collection[str] = ()
) -> tuple[VariantType, dict[str, VariantValue]]:
    """Return the type that all variants have, and the variants; integers among floats are floats.

    Variants that `sensitive` names are encrypted values or, before encryption, secret values.

    Raises:
        InvalidDocumentError: there are no variants, or their types differ or are not supported.
    """
    if not variants:
        raise InvalidDocumentError("variants", "is empty", "Name at least one variant")
    classes = {*map(type, variants.values())}
    simple = _SIMPLE.get(classes.pop()) if len(classes) == 1 and not sensitive else None
    if simple is not None:
        return simple, {**variants}
    sealed = _decode_encrypted(variants, sensitive)
    found: dict[str, VariantType] = {
        name: sealed[name].type if name in sealed else get_variant_type(value, f"variants.{name}")
        for name, value in variants.items()
    }
    kind = _unify_types(found)
    typed: dict[str, VariantValue] = {**variants}
    if kind == "float":
        plain = variants.keys() - sealed.keys()
        typed |= {name: float(cast("float", variants[name])) for name in variants if name in plain}
    typed |= {name: EncryptedValue(value.ciphertext, kind) for name, value in sealed.items()}
    for i, name in enumerate(sensitive):
        check_variant(name, variants, f"sensitive[{i}]")
        if name not in sealed:
            typed[name] = SecretValue(cast("Value", typed[name]))
    return kind, typed


def _decode_encrypted(
    variants: dict[str, Value], sensitive: Collection[str]
) -> dict[str, EncryptedValue]:
    """Return those that are encrypted."""
    found: dict[str, EncryptedValue] = {}
    for name, value in variants.items():
        sealed = find_encrypted_value(value, f"variants.{name}")
        if sealed is not None:
            found[name] = sealed
            if name not in sensitive:
                raise InvalidDocumentError(
                    f"variants.{name}", "is encrypted", "Name the variant in `sensitive`"
                )
    return found


def _unify_types(found: Mapping[str, VariantType]) -> VariantType:
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


def get_variant_type(value: Value, path: str) -> VariantType:
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
                _check_json(item, join_path(path, name))
        case list():
            for i, item in enumerate(value):
                _check_json(item, f"{path}[{i}]")
        case None:
            pass
        case _:
            get_variant_type(value, path)


def check_variant(name: str, variants: Mapping[str, object], path: str) -> None:
    """Reject the name of a variant that a flag does not have."""
    if name not in variants:
        raise InvalidDocumentError(
            path,
            f"{name!r} is not a variant of this flag",
            suggested(f"Use one of: {', '.join(variants)}", name, variants),
        )


def get_boolean_variant(value: bool, variants: Mapping[str, object], path: str) -> str:  # noqa: FBT001 - a value
    """Return the name of the variant of a boolean flag that has a value.

    Raises:
        InvalidDocumentError: the flag is not boolean, or does not have exactly one such variant.
    """
    names = [name for name, found in variants.items() if found is value]
    if len(names) != 1:
        raise InvalidDocumentError(
            path,
            f"{str(value).lower()} is the value of {len(names)} variants of this flag",
            f"Name the variant: {', '.join(variants)}",
        )
    return names[0]


def build_boolean_weights(
    share: float | None, variants: Mapping[str, object], path: str
) -> dict[str, int | float]:
    """Return the weights that a bare percentage means: the share of the true variant.

    Raises:
        InvalidDocumentError: it is no percentage, or the variants are not one true and one false.
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


T = TypeVar("T", bound=Struct)

DOCUMENT_BYTES_MAX = 1024 * 1024
RULES_MAX = 256
TESTS_MAX = 2048
"""The most tests in the conditions of one flag."""
_CHOICES = {"state": get_args(State), "when_stale": get_args(WhenStale)}
_MISREAD = {
    "bool": "on, off, yes and no for booleans",
    "int": "22:00 for the number 1320",
    "float": "1.0 and 22:00:00.5 for numbers",
}
"""The types that YAML 1.1 makes of unquoted text, with examples."""
_DATE_REMEDY = "Write it like 2026-12-01T08:00:00Z"
_KINDS = {
    "array": ("a list", "Write its members in brackets, as in [a, b]"),
    "object": ("a document", "Write fields, each with its value"),
    "str": ("text", "Write text, in quotes"),
    "int": ("a whole number", "Write it without a fraction and without quotes"),
    "float": ("a number", "Write a number, without quotes"),
    "bool": ("a boolean", ""),
    "datetime": ("a date", _DATE_REMEDY),
    "null": ("null", ""),
    "bytes": ("binary data", ""),
    "ext": ("an extension", ""),
}
"""The words for msgspec's types in messages, and a remedy for each."""


def decode(document: object, *, environment: str | None = None, stored: bool = False) -> Flag:
    """Check a policy document and return its flag.

    Args:
        document: A mapping in the shape of the YAML form; its rollouts may have intervals.
        stored: True if it was checked when it was written. It is then in normal form, and its size
            is not checked again, so that a flag at the limit can still be paused.
        environment: The required value of the document's own `environment`, if it has one.

    Raises:
        InvalidDocumentError: with the path of the fault and the remedy.
    """
    try:
        if stored:
            wire = convert(document, FlagDocument)
        else:
            values = normalize_fields(document)
            check_size(values)
            wire = convert(values, FlagDocument)
        check_environment(wire.environment, environment)
        return _build_flag(wire)
    except InvalidDocumentError as error:
        raise redact_error(error, document).about(_describe_subject(document)) from None


def _describe_subject(document: object) -> str:
    if not isinstance(document, Mapping):
        return ""
    key = cast("Mapping[object, object]", document).get("key")
    return f"flag {key!r}" if isinstance(key, str) else ""


def normalize_fields(document: object) -> dict[str, Value]:
    """Return the fields of a document in normal form."""
    if not isinstance(document, Mapping):
        raise InvalidDocumentError("", "is not a document", "Write a mapping of fields")
    fields = cast("Mapping[object, object]", document)
    if (values := to_plain(fields)) is not None:
        return values
    # The values of variants are the callers' data, in which no extended values are decoded.
    return {
        check_name(key, ""): normalize(value, join_path("", key), 1, extended=key != "variants")
        for key, value in fields.items()
    }


def check_environment(declared: str | None, environment: str | None) -> None:
    """Refuse a document that is written for another environment."""
    if environment is not None and declared not in (None, environment):
        raise InvalidDocumentError(
            "environment",
            f"is {declared!r}, but this goes to {environment!r}",
            "Remove the field, or write to the other environment",
        )


def check_size(values: dict[str, Value]) -> None:
    """Refuse a document that is over the limit.

    Raises:
        InvalidDocumentError: it names the largest part.
    """
    size = len(msgspec.msgpack.encode(values))
    if size > DOCUMENT_BYTES_MAX:
        raise InvalidDocumentError(
            max(values, key=lambda name: len(msgspec.msgpack.encode(values[name]))),
            f"makes the document {size:,} bytes long; the limit is {DOCUMENT_BYTES_MAX:,}",
            "Shorten this part: a flag is for rules, not for data",
        )


def convert(values: object, shape: type[T]) -> T:
    """Return fields as the shape of document that they must have."""
    try:
        return msgspec.convert(values, shape)
    except msgspec.ValidationError as error:
        raise _build_located_error(str(error), shape) from None


def _build_located_error(message: str, shape: type[Struct]) -> InvalidDocumentError:
    # msgspec puts the path last; text quoted before it may have user input.
    parts = re.fullmatch(r"(.*) - at `\$\.?(.*)`", message, re.DOTALL)
    problem, path = parts.groups() if parts else (message, "")
    missing = re.fullmatch(r"Object missing required field `(.*)`", problem)
    if missing:
        remedy = "Write fallthrough: {serve: VARIANT}" if "fall" in missing[1] else "Add it"
        return InvalidDocumentError(join_path(path, missing[1]), "is missing", remedy)
    found = re.fullmatch(r"Object contains unknown field `(.*)`", problem, re.DOTALL)
    if found is None:
        return _build_type_error(path, problem)
    document = DOCUMENTS.get(re.sub(r"\[\d+\]", "", path).rpartition(".")[2], shape)
    known = [field.encode_name for field in msgspec.structs.fields(document)]
    close = difflib.get_close_matches(found[1], known, n=1)
    remedy = (f"Did you mean {close[0]}? " if close else "") + f"Known here: {', '.join(known)}"
    return InvalidDocumentError(join_path(path, found[1]), "is not a known field", remedy)


def _build_type_error(path: str, problem: str) -> InvalidDocumentError:
    remedy = "docs/policy.md has the form of a flag"
    found = re.fullmatch(r"Expected `(.*)`, got `(\w+)`", problem)
    if found:
        # Any optional field may be null; the message does not recommend that.
        wanted = sorted(name for name in found[1].split(" | ") if name != "null")
        if "float" in wanted:
            wanted.remove("int")
        names = " or ".join(_KINDS[name][0] for name in wanted)
        problem = f"is {_KINDS[found[2]][0]}, where {names} belongs"
        remedy = _KINDS[wanted[0]][1]
        if wanted == ["str"] and found[2] in _MISREAD:
            # If text is required here, YAML 1.1 is the usual cause.
            remedy = f"Quote it: YAML 1.1 readers take {_MISREAD[found[2]]}"
    elif "datetime" in problem:
        problem, remedy = "is no date", _DATE_REMEDY
    elif "of length" in problem:
        problem, remedy = "is not [END, VARIANT]", "Leave the intervals out: the writer keeps them"
    elif path in _CHOICES:
        remedy = f"Use one of: {', '.join(_CHOICES[path])}"
    return InvalidDocumentError(path, problem, remedy)


def _build_flag(wire: FlagDocument) -> Flag:
    key = check_key(wire.key)
    kind, variants = unify_variants(wire.variants, wire.sensitive)
    if wire.off is not None:
        check_variant(wire.off, variants, "off")
    if len(wire.rules) > RULES_MAX:
        raise InvalidDocumentError(
            "rules", f"are {len(wire.rules)}; the limit is {RULES_MAX}", "Join rules with $or"
        )
    rules: dict[str, Rule] = {}
    for i, rule in enumerate(wire.rules):
        path = f"rules[{i}]"
        if rule.name in rules:
            raise InvalidDocumentError(
                f"{path}.name", f"{rule.name!r} is the name of two rules", "Name each rule once"
            )
        serves = _build_serves(rule, path, key, variants)
        condition = parse_condition(rule.when, f"{path}.when") if rule.when else ALWAYS
        during = None if rule.during is None else build_window(rule.during, f"{path}.during")
        rules[rule.name] = Rule(rule.name, rule.when, condition, during, serves)
    check_tests({f"rules[{i}].when": rule.condition for i, rule in enumerate(rules.values())})
    return Flag(
        key=key,
        region=check_region(wire.region),
        state=wire.state,
        type=kind,
        variants=variants,
        sensitive=tuple(dict.fromkeys(wire.sensitive)),
        off=wire.off,
        prerequisites=_build_prerequisites(wire.prerequisites, key),
        rules=tuple(rules.values()),
        fallthrough=_build_serves(wire.fallthrough, "fallthrough", key, variants),
        when_stale=wire.when_stale,
        metadata=build_metadata(wire.owner, wire.description, wire.tags, wire.expires),
    )


def check_tests(conditions: Mapping[str, Condition], tests_max: int = TESTS_MAX) -> None:
    """Refuse conditions, given by their paths, that are more tests than are allowed together."""
    count = 0
    for path, condition in conditions.items():
        count += count_tests(condition)
        if count > tests_max:
            raise InvalidDocumentError(
                path,
                f"brings the tests to {count:,}; the limit is {tests_max:,}",
                "Use $in for one of many values; it counts once",
            )


def build_metadata(
    owner: str | None,
    description: str | None,
    tags: list[str] | None,
    expires: datetime | None = None,
) -> dict[str, Value]:
    """Return the metadata fields that are present."""
    until = expires and floor_to_milliseconds(expires, "expires")
    listed: list[Value] | None = [*tags] if tags else None
    found = {"owner": owner, "description": description, "tags": listed, "expires": until}
    return {name: value for name, value in found.items() if value is not None}


def _build_prerequisites(items: list[PrerequisiteDocument], key: str) -> tuple[Prerequisite, ...]:
    for i, item in enumerate(items):
        check_key(item.flag, f"prerequisites[{i}].flag")
        if item.flag == key:
            raise InvalidDocumentError(
                f"prerequisites[{i}].flag", "is the flag itself", "Name another flag"
            )
        if not item.variants:
            raise InvalidDocumentError(
                f"prerequisites[{i}].variants", "is empty", "Name the variants that must be served"
            )
    return tuple(Prerequisite(item.flag, tuple(item.variants)) for item in items)


def _build_serves(
    wire: ServesDocument, path: str, key: str, variants: dict[str, VariantValue]
) -> Serves:
    if (wire.serve, wire.rollout, wire.ramp).count(None) != 2:  # noqa: PLR2004 - one of three
        raise InvalidDocumentError(
            path, "must say what it serves, once", "Write one of serve:, rollout: and ramp:"
        )
    if wire.ramp is not None:
        return _build_ramp(wire.ramp, f"{path}.ramp", key, variants)
    if wire.serve is not None:
        check_variant(wire.serve, variants, f"{path}.serve")
        return Serve(wire.serve)
    rollout = wire.rollout
    if not isinstance(rollout, RolloutDocument):
        rollout = RolloutDocument(build_boolean_weights(rollout, variants, f"{path}.rollout"))
    return _build_rollout(rollout, f"{path}.rollout", key, variants)


def _build_rollout(
    wire: RolloutDocument, path: str, key: str, variants: dict[str, VariantValue]
) -> Rollout:
    for variant in wire.weights:
        check_variant(variant, variants, f"{path}.weights.{variant}")
    weights = parse_shares(wire.weights, f"{path}.weights")
    intervals = allocate(weights)
    if wire.intervals is not None:
        intervals = tuple(wire.intervals)
        _check_intervals(intervals, weights, f"{path}.intervals")
    return Rollout(*_parse_bucketing(wire, path, key), weights, intervals)


def _parse_bucketing(
    wire: RolloutDocument | RampDocument, path: str, key: str
) -> tuple[tuple[str, ...], str]:
    """Return the attribute to hash by, and the salt."""
    by = parse_attribute_path(wire.by, f"{path}.by")
    if wire.salt == "":
        raise InvalidDocumentError(f"{path}.salt", "is empty", "Leave it out for the flag's key")
    return by, wire.salt or key


def _build_ramp(wire: RampDocument, path: str, key: str, variants: dict[str, VariantValue]) -> Ramp:
    check_variant(wire.variant, variants, f"{path}.variant")
    check_variant(wire.otherwise, variants, f"{path}.otherwise")
    if wire.variant == wire.otherwise:
        raise InvalidDocumentError(f"{path}.otherwise", "is the same variant", "Name another one")
    line = (wire.first, wire.last, wire.start, wire.end)
    if wire.steps is not None and line == (None, None, None, None):
        points = _build_points(wire.steps, f"{path}.steps")
    elif wire.steps is None and wire.start is not None and wire.end is not None:
        points = (
            _build_point(wire.start, wire.first or 0, f"{path}.start", f"{path}.from"),
            _build_point(
                wire.end, 100 if wire.last is None else wire.last, f"{path}.end", f"{path}.to"
            ),
        )
    else:
        raise InvalidDocumentError(
            path, "must say when", "Write start: and end:, with from: and to:, or else steps:"
        )
    times = [at for at, _ in points]
    if any(later <= earlier for earlier, later in pairwise(times)):
        raise InvalidDocumentError(path, "does not go forward in time", "Write the later date last")
    by, salt = _parse_bucketing(wire, path, key)
    return Ramp(by, salt, wire.variant, wire.otherwise, points, wire.steps is not None)


def _build_points(steps: list[StepDocument], path: str) -> tuple[tuple[float, int], ...]:
    if not steps:
        raise InvalidDocumentError(path, "are none", "Write at least one {at:, percent:}")
    return tuple(
        _build_point(step.at, step.percent, f"{path}[{i}].at", f"{path}[{i}].percent")
        for i, step in enumerate(steps)
    )


def _build_point(
    at: datetime, percent: float, at_path: str, percent_path: str
) -> tuple[float, int]:
    return floor_to_milliseconds(at, at_path).timestamp(), parse_weight(percent, percent_path)


def _check_intervals(intervals: Intervals, weights: dict[str, int], path: str) -> None:
    remedy = "Leave the intervals out: they are kept by the writer"
    owned = dict.fromkeys(weights, 0)
    for start, end, variant in list_spans(intervals):
        if not start < end <= BUCKETS or variant not in weights:
            raise InvalidDocumentError(path, f"are wrong at [{end}, {variant!r}]", remedy)
        owned[variant] += end - start
    if owned != weights:
        raise InvalidDocumentError(path, "do not agree with the weights", remedy)
