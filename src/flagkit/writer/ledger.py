"""Entries of the ledger for people, with the differences of each change in lines.

Two documents that differ in a value, a type or an order have at least one line.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final, TypeAlias, TypedDict, Unpack

from msgspec import Struct

from flagkit._core.arguments import check_revision, suggest_name
from flagkit._core.cooperative import split_batches
from flagkit._core.model import EVERYWHERE
from flagkit._core.model.access import LIMIT_SCOPES, Grants, decode_grants
from flagkit._core.model.canonical import to_extended_json
from flagkit._core.model.changes import ACCESS, CUT, GRANTS, SEGMENTS, Change, PolicyChange
from flagkit._core.model.sensitive import SENSITIVE
from flagkit._core.model.values import is_same
from flagkit._core.storage.layout import AUDIT, LEDGER, build_ledger_id
from flagkit._core.storage.store import Store
from flagkit._core.storage.validation import translate_form_errors
from flagkit.errors import InvalidArgumentError
from flagkit.writer.operations import OPERATIONS, AuditForm, Operation

_Document: TypeAlias = Mapping[str, Any]

SHOWN_LENGTH_MAX: Final = 80
"""Values that are longer as JSON are cut."""
_SAME_MEANING: Final = "written differently, with the same meaning"
_SEPARATE_FIELDS: Final = {
    *("key", "region", "variants", "prerequisites", "rules", "fallthrough"),
    *("seed", "included", "excluded"),
}


def format_differences(change: PolicyChange) -> tuple[str, ...]:
    """Return lines such as "shop.search: fallthrough: on 10 -> 50 %", at least one."""
    region, key = change.id
    if region == ACCESS:
        return tuple(_iter_access_lines(change)) or (f"{key}: {_SAME_MEANING}",)
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
        lines = [*_iter_creation_lines(after)]
    else:
        lines = [*_iter_update_lines(before, after)] or [_SAME_MEANING]
    return tuple(f"{name}: {line}" for line in lines)


def _iter_access_lines(change: PolicyChange) -> Iterator[str]:
    if change.id == GRANTS:
        before, after = (
            Grants() if side is None else decode_grants(side.policy)
            for side in (change.before, change.after)
        )
        for verb, scopes in (
            ("revoked", before.list_scopes() - after.list_scopes()),
            ("granted", after.list_scopes() - before.list_scopes()),
        ):
            for actor, role, namespace in sorted(scopes):
                yield f"{verb}: {role} of {actor} on {namespace or 'everything'}"
        return
    old, new = ({} if side is None else side.policy for side in (change.before, change.after))
    if change.id == CUT:
        yield f"ledger pruned up to revision {new['revision']:,}, of {_format_value(new['time'])}"
        return
    for whose in LIMIT_SCOPES:
        yield from _iter_value_lines(f"limit of {whose}", old.get(whose), new.get(whose))


def _iter_creation_lines(after: _Document) -> Iterator[str]:
    state = after.get("state", "active")
    yield "created" if state == "active" else f"created, {state}"
    for rule in after.get("rules", ()):
        yield f"rule {rule['name']}: {format_serving(rule)}"
    if "fallthrough" in after:
        yield f"fallthrough: {format_serving(after['fallthrough'])}"
    for side in ("included", "excluded"):
        if side in after:
            yield f"{side}: {after[side]['count']:,} keys"


def _iter_update_lines(before: _Document, after: _Document) -> Iterator[str]:
    names = [*dict.fromkeys((*after, *before))]
    for name in names:
        if name not in _SEPARATE_FIELDS:
            yield from _iter_value_lines(name, before.get(name), after.get(name))
    # Of what was sensitive before, and is not now, the value may still be the secret.
    sensitive = {*before.get("sensitive", ()), *after.get("sensitive", ())}
    old, new = before.get("variants", {}), after.get("variants", {})
    for variant in dict.fromkeys((*new, *old)):
        yield from _iter_value_lines(
            f"variant {variant}", old.get(variant), new.get(variant), hidden=variant in sensitive
        )
    yield from _iter_value_lines(
        "prerequisites", _format_prerequisites(before), _format_prerequisites(after)
    )
    yield from _iter_rule_lines(before.get("rules", ()), after.get("rules", ()))
    if "fallthrough" in after:
        yield from _iter_serving_lines("fallthrough", before["fallthrough"], after["fallthrough"])
    for side in ("included", "excluded"):
        yield from _iter_key_lines(side, before, after)
    has_keys = (before.keys() | after.keys()) & {"included", "excluded"}
    if not has_keys and before.get("seed") != after.get("seed"):
        # Nothing else may be different, and a change has at least one line.
        yield "another seed for its keys"


def _iter_rule_lines(before: list[_Document], after: list[_Document]) -> Iterator[str]:
    old = {rule["name"]: rule for rule in before}
    new = {rule["name"]: rule for rule in after}
    for name in old:
        if name not in new:
            yield f"rule {name} removed"
    for name, rule in new.items():
        if name not in old:
            yield f"rule {name} added: {format_serving(rule)}"
            continue
        for field in ("when", "during"):
            yield from _iter_value_lines(
                f"rule {name}: {field}", old[name].get(field), rule.get(field)
            )
        yield from _iter_serving_lines(f"rule {name}", old[name], rule)
    common = [name for name in old if name in new]
    if common != (now := [name for name in new if name in old]):
        yield f"rules in another order: {', '.join(now)}"


_FIELDS_OF_SERVES: Final = ("serve", "rollout", "ramp")


def _iter_serving_lines(place: str, before: _Document, after: _Document) -> Iterator[str]:
    """Yield how what is served changed, weight by weight where both are rollouts."""
    old, new = before.get("rollout"), after.get("rollout")
    if old is None or new is None:
        sides = [[side.get(field) for field in _FIELDS_OF_SERVES] for side in (before, after)]
        if not is_same(*sides):
            yield f"{place}: {format_serving(before)} -> {format_serving(after)}"
        return
    for field in ("by", "salt"):
        yield from _iter_value_lines(f"{place}: {field}", old.get(field), new.get(field))
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


def format_serving(part: _Document) -> str:
    """Return what a rule or the fallthrough serves, and by which attribute and salt if named."""
    if "serve" in part:
        return f"serves {part['serve']}"
    if "rollout" in part:
        weights = part["rollout"]["weights"].items()
        listed = ", ".join(f"{variant} {weight:g} %" for variant, weight in weights)
        return listed + _format_hashing(part["rollout"])
    return _format_ramp(part["ramp"]) + _format_hashing(part["ramp"])


def _format_hashing(split: _Document) -> str:
    return "".join(f", {name} {split[name]}" for name in ("by", "salt") if name in split)


def _format_ramp(ramp: _Document) -> str:
    variant, otherwise = ramp["variant"], f"otherwise {ramp['otherwise']}"
    if "steps" in ramp:
        steps = (f"{step['percent']:g} % at {_format_value(step['at'])}" for step in ramp["steps"])
        return f"{variant} in steps, {otherwise}: {', '.join(steps)}"
    span = f"{_format_value(ramp['start'])} to {_format_value(ramp['end'])}"
    return f"{variant} from {ramp['from']:g} to {ramp['to']:g} %, {otherwise}, {span}"


def _format_prerequisites(document: _Document) -> str | None:
    needed = [
        f"{item['flag']} serves {' or '.join(item['variants'])}"
        for item in document.get("prerequisites", ())
    ]
    return ", ".join(needed) or None


def _iter_key_lines(side: str, before: _Document, after: _Document) -> Iterator[str]:
    old, new = before.get(side), after.get(side)
    if is_same(old, new):
        return
    counts = [0 if keys is None else keys["count"] for keys in (old, new)]
    also = ""
    if counts[0] == counts[1]:
        # Hashes of two seeds do not tell whether the keys are the same.
        also = ", others" if before.get("seed") == after.get("seed") else ", hashed anew"
    yield f"{side}: {counts[0]:,} -> {counts[1]:,} keys{also}"


def _iter_value_lines(name: str, before: Any, after: Any, *, hidden: bool = False) -> Iterator[str]:
    if is_same(before, after):
        return
    old, new = (SENSITIVE, SENSITIVE) if hidden else _format_contrast(before, after)
    if before is None:
        yield f"{name} added: {new}"
    elif after is None:
        yield f"{name} removed: {old}"
    else:
        yield f"{name}: {old} -> {new}"


def _format_contrast(before: Any, after: Any) -> tuple[str, str]:
    """Return two values as texts that are cut, and show where they begin to differ."""
    old, new = _format_text(before), _format_text(after)
    if _truncate(old) != _truncate(new):
        return _truncate(old), _truncate(new)
    if old == new:
        # They differ in what JSON does not tell apart, such as a text and a date.
        return (
            f"{_truncate(old)} ({type(before).__name__})",
            f"{_truncate(new)} ({type(after).__name__})",
        )
    pairs = enumerate(zip(old, new, strict=False))
    first = next((place for place, (one, other) in pairs if one != other), min(len(old), len(new)))
    start = max(0, first - SHOWN_LENGTH_MAX // 2)
    return f"...{_truncate(old[start:])}", f"...{_truncate(new[start:])}"


def _format_value(value: Any) -> str:
    return _truncate(_format_text(value))


def _format_text(value: Any) -> str:
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S} UTC"
    return (
        value if isinstance(value, str) else json.dumps(to_extended_json(value), ensure_ascii=False)
    )


def _truncate(text: str) -> str:
    return text if len(text) <= SHOWN_LENGTH_MAX else f"{text[:SHOWN_LENGTH_MAX]}..."


_CHUNK = 500


DECISIONS: Final = ("drop-pending", "reject-proposal", "withdraw-proposal")
"""The decisions on pending changes and proposals; their revisions change nothing else."""
ACTIONS: Final = (
    *(
        action
        for tag, found in OPERATIONS.items()
        for action in ((tag.replace("_", "-"),) if found.actions is None else found.actions)
    ),
    *DECISIONS,
)
"""The filters of entries."""


class Entry(Struct, frozen=True):
    """One revision as people read it.

    `actions` are what was asked for, in sentences such as "pause shop.search"; `differences` what
    came of it, such as "shop.search: state: active -> paused". `glass` says why guards were passed
    by, if they were. Of a change that was proposed, the actor is who proposed it; `approvers` are
    those who had approved, and `applier` who applied it.
    """

    revision: int
    time: datetime
    actor: str
    reason: str
    actions: tuple[str, ...]
    differences: tuple[str, ...]
    hash: str
    bypass_reason: str = ""
    proposal: str = ""
    approvers: tuple[str, ...] = ()
    applier: str = ""


class EntryFilter(TypedDict, total=False):
    """A filter of entries; all of its conditions must hold.

    - `key`: of a flag or a segment that was changed.
    - `actor`: who changed it.
    - `action`: one of ACTIONS, that was asked for.
    - `since`: the first moment; `until`: the one after the last.
    """

    key: str | None
    actor: str | None
    action: str | None
    since: datetime | None
    until: datetime | None


def iter_entries(
    store: Store, after: int, *, newest_first: bool, **wanted: Unpack[EntryFilter]
) -> Iterator[Entry]:
    """Check the arguments, and yield the entries as `Environment.entries` does."""
    return _iter_entries(
        store, check_revision(after, "after"), newest_first=newest_first, **_check_filter(wanted)
    )


def _check_filter(entry_filter: EntryFilter) -> EntryFilter:
    types: dict[str, type] = {"key": str, "actor": str, "action": str}
    types |= {"since": datetime, "until": datetime}
    for name, value in entry_filter.items():
        if value is not None and not isinstance(value, types[name]):
            raise InvalidArgumentError(
                f"{name} is {value!r}: pass a value of the type {types[name].__name__}"
            )
        if isinstance(value, datetime) and value.tzinfo is None:
            raise InvalidArgumentError(
                f"{name} is {value!r}, which has no time zone: pass an aware datetime"
            )
    action = entry_filter.get("action")
    if action is not None and action not in ACTIONS:
        raise InvalidArgumentError(f"action is {action!r}. {suggest_name(action, ACTIONS)}")
    return entry_filter


def _iter_entries(
    store: Store, after: int, *, newest_first: bool, **wanted: Unpack[EntryFilter]
) -> Iterator[Entry]:
    actor, action = wanted.get("actor"), wanted.get("action")
    changes = store.iter_changes(
        after,
        key=wanted.get("key"),
        since=wanted.get("since"),
        until=wanted.get("until"),
        newest_first=newest_first,
    )
    for chunk in split_batches(changes, _CHUNK):
        requests = store.read_requests(change.request for change in chunk)
        proposed = [request["proposal"] for request in requests.values() if "proposal" in request]
        verdicts = store.proposals.read_many(proposed)
        for change in chunk:
            request = requests.get(change.request, {})
            operations = request.get("operations", ())
            if actor is not None and request.get("actor") != actor:
                continue
            with translate_form_errors(AUDIT, request):
                if action is not None and action not in map(_get_action_name, operations):
                    continue
            yield _build_entry(store.environment, change, request, verdicts)


def _build_entry(
    environment: str,
    change: Change,
    request: Mapping[str, Any],
    verdicts: Mapping[str, Iterable[Mapping[str, Any]]],
) -> Entry:
    """Return the entry of a change, of what the audit has of it, and of what was said of proposals.

    Raises:
        StoreError: one of them has not the form that it should have.
    """
    with translate_form_errors(LEDGER, {"_id": build_ledger_id(environment, change.revision)}):
        lines = tuple(line for policy in change.policies for line in format_differences(policy))
    with translate_form_errors(AUDIT, request):
        actions = format_actions(request.get("operations", ()))
    proposal = request.get("proposal", "")
    with translate_form_errors():
        approvers = _list_approvers(request, verdicts.get(proposal, ()), change.tip.time)
    return Entry(
        change.revision,
        change.tip.time,
        request.get("actor", ""),
        request.get("reason", ""),
        actions,
        lines,
        change.tip.hash,
        request.get("glass", ""),
        proposal,
        approvers,
        request.get("applied_by", ""),
    )


def _list_approvers(
    request: Mapping[str, Any], verdicts: Iterable[Mapping[str, Any]], until: datetime
) -> tuple[str, ...]:
    """Return on whose approval a proposal was applied.

    The audit says it. Of what an earlier version applied, it is who had approved by a time.
    """
    if "approved" in request:
        return tuple(request["approved"]["by"])
    return tuple(
        verdict["_id"]["actor"]
        for verdict in verdicts
        if verdict["_id"]["verdict"] == "approve"
        and isinstance(verdict.get("time"), datetime)
        and verdict["time"] <= until
    )


def format_actions(operations: Iterable[AuditForm]) -> tuple[str, ...]:
    """Return what was asked for, by what is recorded of it, in sentences."""
    return tuple(_find_class(operation).describe(operation) for operation in operations)


def _get_action_name(operation: AuditForm) -> str:
    """Return the name of an operation among ACTIONS."""
    return _find_class(operation).get_action(operation)


def _find_class(operation: AuditForm) -> type[Operation]:
    # Decisions have no class, nor have operations of later versions.
    return OPERATIONS.get(str(operation["operation"]), Operation)
