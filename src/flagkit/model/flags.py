"""Flags: the checked form of policy documents, and the way back to the document.

decoding is the way in. What a flag refers to in other flags is the writer's to check, since only it
sees the whole environment.
"""

from typing import TypeAlias, cast

from msgspec import Struct

from flagkit.model.conditions import Condition, segments_in
from flagkit.model.documents import EVERYWHERE, TARGETING_KEY, State, VariantType, WhenStale
from flagkit.model.rollouts import Intervals, percent
from flagkit.model.sensitive import VariantValue, written
from flagkit.model.values import Value, join
from flagkit.model.windows import Window, date, encode_window


class Prerequisite(Struct, frozen=True, gc=False):
    """Another flag that must serve one of some variants first."""

    flag: str
    variants: tuple[str, ...]


class Serve(Struct, frozen=True, gc=False):
    """One variant for everyone who gets here."""

    variant: str


class Rollout(Struct, frozen=True, gc=False):
    """Weights over variants, kept as intervals of buckets.

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
"""What a targeting rule or the fallthrough serves."""


class Rule(Struct, frozen=True, gc=False):
    """A targeting rule: who and when it is for, and what it serves.

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


def segments_of(flag: Flag) -> set[str]:
    """Return the keys of the segments that a flag's rules refer to."""
    return {key for rule in flag.rules for key in segments_in(rule.condition)}


def encode(flag: Flag) -> dict[str, Value]:
    """Return the document of a flag: defaults left out, rollouts with their intervals.

    Raises:
        InvalidDocumentError: a sensitive value is not encrypted.
    """
    document: dict[str, Value] = {"key": flag.key}
    if flag.region != EVERYWHERE:
        document["region"] = flag.region
    document["state"] = flag.state
    # Only those that are named as sensitive stand in a document as anything but themselves.
    document["variants"] = cast("dict[str, Value]", {**flag.variants})
    if flag.sensitive:
        document["variants"] = {
            name: written(value, join("variants", name)) for name, value in flag.variants.items()
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
    rollout["weights"] = {name: percent(share) for name, share in serves.weights.items()}
    rollout["intervals"] = [[end, variant] for end, variant in serves.intervals]
    return {"rollout": rollout}


def _encode_ramp(ramp: Ramp) -> dict[str, Value]:
    document: dict[str, Value] = {"variant": ramp.variant, "otherwise": ramp.otherwise}
    if ramp.stepped:
        document["steps"] = [
            {"at": date(at), "percent": percent(share)} for at, share in ramp.points
        ]
        return document
    (start, first), (end, last) = ramp.points
    ends: dict[str, Value] = {"start": date(start), "end": date(end)}
    return document | {"from": percent(first), "to": percent(last)} | ends
