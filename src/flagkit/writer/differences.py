"""Differences: what a change did to a flag or a segment, in lines for people.

Two documents that are not the same, type by type and in the same order, have at least one line.
"""

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
from flagkit.model.values import is_same

_Document: TypeAlias = Mapping[str, Any]

SHOWN_LENGTH_MAX: Final = 80
"""Values that are longer as JSON are cut."""
_SAME_MEANING: Final = "written differently, with the same meaning"
_OF_THEIR_OWN: Final = {
    *("key", "region", "variants", "prerequisites", "rules", "fallthrough"),
    *("seed", "included", "excluded"),
}


def differences(change: PolicyChange) -> tuple[str, ...]:
    """Return lines such as "shop.search: fallthrough: on 10 -> 50 %", at least one."""
    region, key = change.id
    if region == ACCESS:
        return tuple(_access(change)) or (f"{key}: {_SAME_MEANING}",)
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
        lines = [*_changed(before, after)] or [_SAME_MEANING]
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


_FIELDS_OF_SERVES: Final = ("serve", "rollout", "ramp")


def _serving(place: str, before: _Document, after: _Document) -> Iterator[str]:
    """Yield how what is served changed, weight by weight where both are rollouts."""
    old, new = before.get("rollout"), after.get("rollout")
    if old is None or new is None:
        sides = [[side.get(field) for field in _FIELDS_OF_SERVES] for side in (before, after)]
        if not is_same(*sides):
            yield f"{place}: {told(before)} -> {told(after)}"
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
    elif not is_same(old["intervals"], new["intervals"]):
        yield f"{place}: other keys, at the same weights"
    elif [*old["weights"]] != [*new["weights"]]:
        yield f"{place}: weights in another order: {', '.join(new['weights'])}"


def told(part: _Document) -> str:
    """Return what a rule or the fallthrough serves, and by which attribute and salt if named."""
    if "serve" in part:
        return f"serves {part['serve']}"
    if "rollout" in part:
        weights = part["rollout"]["weights"].items()
        listed = ", ".join(f"{variant} {weight:g} %" for variant, weight in weights)
        return listed + _hashed(part["rollout"])
    return _ramped(part["ramp"]) + _hashed(part["ramp"])


def _hashed(split: _Document) -> str:
    return "".join(f", {name} {split[name]}" for name in ("by", "salt") if name in split)


def _ramped(ramp: _Document) -> str:
    variant, otherwise = ramp["variant"], f"otherwise {ramp['otherwise']}"
    if "steps" in ramp:
        steps = (f"{step['percent']:g} % at {_shown(step['at'])}" for step in ramp["steps"])
        return f"{variant} in steps, {otherwise}: {', '.join(steps)}"
    span = f"{_shown(ramp['start'])} to {_shown(ramp['end'])}"
    return f"{variant} from {ramp['from']:g} to {ramp['to']:g} %, {otherwise}, {span}"


def _needed(document: _Document) -> str | None:
    needed = [
        f"{item['flag']} serves {' or '.join(item['variants'])}"
        for item in document.get("prerequisites", ())
    ]
    return ", ".join(needed) or None


def _keys(side: str, before: _Document, after: _Document) -> Iterator[str]:
    old, new = before.get(side), after.get(side)
    if is_same(old, new):
        return
    counts = [0 if keys is None else keys["count"] for keys in (old, new)]
    also = ""
    if counts[0] == counts[1]:
        # Hashes of two seeds do not tell whether the keys are the same.
        also = ", others" if before.get("seed") == after.get("seed") else ", hashed anew"
    yield f"{side}: {counts[0]:,} -> {counts[1]:,} keys{also}"


def _step(name: str, before: Any, after: Any, *, hidden: bool = False) -> Iterator[str]:
    if is_same(before, after):
        return
    old, new = (SENSITIVE, SENSITIVE) if hidden else _shown_apart(before, after)
    if before is None:
        yield f"{name} added: {new}"
    elif after is None:
        yield f"{name} removed: {old}"
    else:
        yield f"{name}: {old} -> {new}"


def _shown_apart(before: Any, after: Any) -> tuple[str, str]:
    """Return two values as texts that are cut, and show where they begin to differ."""
    old, new = _text(before), _text(after)
    if _cut(old) != _cut(new):
        return _cut(old), _cut(new)
    if old == new:
        # They differ in what JSON does not tell apart, such as a text and a date.
        return f"{_cut(old)} ({type(before).__name__})", f"{_cut(new)} ({type(after).__name__})"
    pairs = enumerate(zip(old, new, strict=False))
    first = next((place for place, (one, other) in pairs if one != other), min(len(old), len(new)))
    start = max(0, first - SHOWN_LENGTH_MAX // 2)
    return f"...{_cut(old[start:])}", f"...{_cut(new[start:])}"


def _shown(value: Any) -> str:
    return _cut(_text(value))


def _text(value: Any) -> str:
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S} UTC"
    return value if isinstance(value, str) else json.dumps(extended(value), ensure_ascii=False)


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_LENGTH_MAX else f"{text[:SHOWN_LENGTH_MAX]}..."
