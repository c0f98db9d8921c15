"""Differences: what a change did to a flag or a segment, in lines for people."""

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final, TypeAlias

from flagkit.changes import ACCESS, CUT, GRANTS, SEGMENTS, PolicyChange
from flagkit.model import EVERYWHERE
from flagkit.model.canonical import extended
from flagkit.model.grants import Grants, decode_grants
from flagkit.model.limits import WHOSE
from flagkit.model.sensitive import SENSITIVE

_Document: TypeAlias = Mapping[str, Any]

SHOWN_LENGTH_MAX: Final = 80
"""Values that are longer as JSON are cut."""
_OF_THEIR_OWN: Final = {
    *("key", "region", "variants", "prerequisites", "rules", "fallthrough"),
    *("seed", "included", "excluded"),
}


def differences(change: PolicyChange) -> tuple[str, ...]:
    """Return lines such as "shop.search: fallthrough: on 10 -> 50 %", at least one."""
    region, key = change.id
    if region == ACCESS:
        return tuple(_access(change))
    name = key
    if region == SEGMENTS:
        name = f"segment {key}"
    elif region != EVERYWHERE:
        name = f"{key} in {region}"
    before = None if change.before is None else change.before.policy
    after = None if change.after is None else change.after.policy
    if after is None:
        lines = ["deleted"]
    elif before is None:
        lines = [*_created(after)]
    else:
        lines = [*_changed(before, after)]
    return tuple(f"{name}: {line}" for line in lines)


def _access(change: PolicyChange) -> Iterator[str]:
    if change.id == GRANTS:
        before, after = (
            Grants() if side is None else decode_grants(side.policy)
            for side in (change.before, change.after)
        )
        for verb, scopes in (
            ("revoked", before.scopes() - after.scopes()),
            ("granted", after.scopes() - before.scopes()),
        ):
            for actor, role, namespace in sorted(scopes):
                yield f"{verb}: {role} of {actor} on {namespace or 'everything'}"
        return
    old, new = ({} if side is None else side.policy for side in (change.before, change.after))
    if change.id == CUT:
        yield f"ledger pruned up to revision {new['revision']:,}, of {_shown(new['time'])}"
        return
    for whose in WHOSE:
        yield from _step(f"limit of {whose}", old.get(whose), new.get(whose))


def _created(after: _Document) -> Iterator[str]:
    state = after.get("state", "active")
    yield "created" if state == "active" else f"created, {state}"
    for rule in after.get("rules", ()):
        yield f"rule {rule['name']}: {told(rule)}"
    if "fallthrough" in after:
        yield f"fallthrough: {told(after['fallthrough'])}"
    for side in ("included", "excluded"):
        if side in after:
            yield f"{side}: {after[side]['count']:,} keys"


def _changed(before: _Document, after: _Document) -> Iterator[str]:
    names = [*dict.fromkeys((*after, *before))]
    for name in names:
        if name not in _OF_THEIR_OWN:
            yield from _step(name, before.get(name), after.get(name))
    # Of what was sensitive before, and is not now, the value may still be the secret.
    sensitive = {*before.get("sensitive", ()), *after.get("sensitive", ())}
    old, new = before.get("variants", {}), after.get("variants", {})
    for variant in dict.fromkeys((*new, *old)):
        yield from _step(
            f"variant {variant}", old.get(variant), new.get(variant), hidden=variant in sensitive
        )
    yield from _step("prerequisites", _needed(before), _needed(after))
    yield from _rules(before.get("rules", ()), after.get("rules", ()))
    if "fallthrough" in after:
        yield from _serving("fallthrough", before["fallthrough"], after["fallthrough"])
    for side in ("included", "excluded"):
        yield from _keys(side, before, after)
    has_keys = (before.keys() | after.keys()) & {"included", "excluded"}
    if not has_keys and before.get("seed") != after.get("seed"):
        # Nothing else may be different, and a change has at least one line.
        yield "another seed for its keys"


def _rules(before: list[_Document], after: list[_Document]) -> Iterator[str]:
    old = {rule["name"]: rule for rule in before}
    new = {rule["name"]: rule for rule in after}
    for name in old:
        if name not in new:
            yield f"rule {name} removed"
    for name, rule in new.items():
        if name not in old:
            yield f"rule {name} added: {told(rule)}"
            continue
        for field in ("when", "during"):
            yield from _step(f"rule {name}: {field}", old[name].get(field), rule.get(field))
        yield from _serving(f"rule {name}", old[name], rule)
    kept = [name for name in old if name in new]
    if kept != (now := [name for name in new if name in old]):
        yield f"rules in another order: {', '.join(now)}"


def _serving(place: str, before: _Document, after: _Document) -> Iterator[str]:
    """Yield how what is served changed, weight by weight where both are rollouts."""
    old, new = before.get("rollout"), after.get("rollout")
    if old is None or new is None:
        yield from _step(place, told(before), told(after))
        return
    for field in ("by", "salt"):
        yield from _step(f"{place}: {field}", old.get(field), new.get(field))
    weights = [
        f"{variant} {was:g} -> {now:g} %"
        for variant in dict.fromkeys((*new["weights"], *old["weights"]))
        if (was := old["weights"].get(variant, 0)) != (now := new["weights"].get(variant, 0))
    ]
    if weights:
        yield f"{place}: {', '.join(weights)}"
    elif old["intervals"] != new["intervals"]:
        yield f"{place}: other keys, at the same weights"


def told(part: _Document) -> str:
    """Return what a rule or the fallthrough serves."""
    if "serve" in part:
        return f"serves {part['serve']}"
    if "rollout" in part:
        weights = part["rollout"]["weights"].items()
        return ", ".join(f"{variant} {weight:g} %" for variant, weight in weights)
    return _ramped(part["ramp"])


def _ramped(ramp: _Document) -> str:
    variant = ramp["variant"]
    if "steps" in ramp:
        steps = (f"{step['percent']:g} % at {_shown(step['at'])}" for step in ramp["steps"])
        return f"{variant} in steps: {', '.join(steps)}"
    span = f"{_shown(ramp['start'])} to {_shown(ramp['end'])}"
    return f"{variant} from {ramp['from']:g} to {ramp['to']:g} %, {span}"


def _needed(document: _Document) -> str | None:
    needed = [
        f"{item['flag']} serves {' or '.join(item['variants'])}"
        for item in document.get("prerequisites", ())
    ]
    return ", ".join(needed) or None


def _keys(side: str, before: _Document, after: _Document) -> Iterator[str]:
    old, new = before.get(side), after.get(side)
    if old == new:
        return
    counts = [0 if keys is None else keys["count"] for keys in (old, new)]
    also = ""
    if counts[0] == counts[1]:
        # Hashes of two seeds do not tell whether the keys are the same.
        also = ", others" if before.get("seed") == after.get("seed") else ", hashed anew"
    yield f"{side}: {counts[0]:,} -> {counts[1]:,} keys{also}"


def _step(name: str, before: Any, after: Any, *, hidden: bool = False) -> Iterator[str]:
    if before == after and type(before) is type(after):
        return
    old, new = (SENSITIVE if hidden else _shown(side) for side in (before, after))
    if before is None:
        yield f"{name} added: {new}"
    elif after is None:
        yield f"{name} removed: {old}"
    else:
        yield f"{name}: {old} -> {new}"


def _shown(value: Any) -> str:
    if isinstance(value, datetime):
        text = f"{value:%Y-%m-%d %H:%M:%S} UTC"
    else:
        text = value if isinstance(value, str) else json.dumps(extended(value), ensure_ascii=False)
    return text if len(text) <= SHOWN_LENGTH_MAX else f"{text[:SHOWN_LENGTH_MAX]}..."
