"""Ledger: the history of an environment, read for people."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from itertools import islice
from typing import Any, Final, TypedDict, Unpack

from msgspec import Struct

from flagkit.arguments import near, refusing_unknown, revision
from flagkit.changes import ACCESS, SEGMENTS, Change
from flagkit.errors import InvalidArgumentError
from flagkit.storage.layout import AUDIT, LEDGER, ledger_id
from flagkit.storage.malformed import judging
from flagkit.storage.store import Store, checked_store
from flagkit.writer.differences import differences

_CHUNK = 500


DECISIONS: Final = ("drop-pending", "reject-proposal", "withdraw-proposal")
"""What is decided of pending changes and proposals, in revisions that change nothing else."""
ACTIONS: Final = (
    *("create", "update", "edit", "set-rollout", "serve", "pause", "resume"),
    *("archive", "restore", "delete", "rollback", "rollback-all"),
    *("create-segment", "update-segment", "change-members", "delete-segment"),
    *("grant", "revoke", "set-limit", "import", "prune"),
    *DECISIONS,
)
"""What entries may be asked for by."""


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
    glass: str = ""
    proposal: str = ""
    approvers: tuple[str, ...] = ()
    applier: str = ""


class Wanted(TypedDict, total=False):
    """Which entries are asked for; all of what is given must hold.

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


@refusing_unknown
def entries(
    store: Store, after: int = 0, *, newest_first: bool = False, **wanted: Unpack[Wanted]
) -> Iterator[Entry]:
    """Yield the ledger of an environment after a revision, oldest first, with who and why.

    Takes `key`, `actor`, `action`, `since` and `until`, as Wanted has them.

    Raises:
        InvalidArgumentError: an argument is of another type, or no action has this name.
    """
    checked_store(store)
    return _entries(store, revision(after, "after"), newest_first=newest_first, **_checked(wanted))


def _checked(wanted: Wanted) -> Wanted:
    types: dict[str, type] = {"key": str, "actor": str, "action": str}
    types |= {"since": datetime, "until": datetime}
    for name, value in wanted.items():
        if value is not None and not isinstance(value, types[name]):
            raise InvalidArgumentError(
                f"{name} is {value!r}: pass a value of the type {types[name].__name__}"
            )
        if isinstance(value, datetime) and value.tzinfo is None:
            raise InvalidArgumentError(
                f"{name} is {value!r}, which has no time zone: pass an aware datetime"
            )
    action = wanted.get("action")
    if action is not None and action not in ACTIONS:
        raise InvalidArgumentError(f"action is {action!r}. {near(action, ACTIONS)}")
    return wanted


def _entries(
    store: Store, after: int, *, newest_first: bool, **wanted: Unpack[Wanted]
) -> Iterator[Entry]:
    actor, action = wanted.get("actor"), wanted.get("action")
    changes = store.changes(
        after,
        key=wanted.get("key"),
        since=wanted.get("since"),
        until=wanted.get("until"),
        newest_first=newest_first,
    )
    while chunk := list(islice(changes, _CHUNK)):
        requests = store.requests(change.request for change in chunk)
        proposed = [request["proposal"] for request in requests.values() if "proposal" in request]
        said = store.proposals.said(proposed)
        for change in chunk:
            request = requests.get(change.request, {})
            operations = request.get("operations", ())
            if actor is not None and request.get("actor") != actor:
                continue
            with judging(AUDIT, request):
                if action is not None and action not in map(_name, operations):
                    continue
            yield _entry(store.environment, change, request, said)


def _entry(
    environment: str,
    change: Change,
    request: Mapping[str, Any],
    said: Mapping[str, Iterable[Mapping[str, Any]]],
) -> Entry:
    """Return the entry of a change, of what the audit has of it, and of what was said of proposals.

    Raises:
        StoreError: one of them has not the form that it should have.
    """
    with judging(LEDGER, {"_id": ledger_id(environment, change.revision)}):
        lines = tuple(line for policy in change.policies for line in differences(policy))
    with judging(AUDIT, request):
        actions = sentences(request.get("operations", ()))
    proposal = request.get("proposal", "")
    with judging():
        approvers = _approvers(request, said.get(proposal, ()), change.tip.time)
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


@refusing_unknown
def newer(store: Store, after: int, **wanted: Unpack[Wanted]) -> tuple[int, list[Entry]]:
    """Return the entries after a revision, as far as there are any, and the one to go on after.

    Takes what `entries` takes.
    """
    tip = store.tip()
    found = [*entries(store, after, **wanted)]
    # The tip itself may not be in the ledger yet. All before it is.
    return max(after, tip.revision - 1, *(entry.revision for entry in found[-1:])), found


def begins_after(store: Store) -> int:
    """Return the revision up to which the ledger was pruned; 0 if it was not."""
    with store.reading() as reading:
        return 0 if reading.cut is None else reading.cut.tip.revision


def _approvers(
    request: Mapping[str, Any], said: Iterable[Mapping[str, Any]], until: datetime
) -> tuple[str, ...]:
    """Return on whose approval a proposal was applied.

    The audit says it. Of what an earlier version applied, it is who had approved by a time.
    """
    if "approved" in request:
        return tuple(request["approved"]["by"])
    return tuple(
        verdict["_id"]["actor"]
        for verdict in said
        if verdict["_id"]["verdict"] == "approve"
        and isinstance(verdict.get("time"), datetime)
        and verdict["time"] <= until
    )


def sentences(operations: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return what was asked for, by what is recorded of it, in sentences."""
    return tuple(map(_action, operations))


def _name(operation: Mapping[str, Any]) -> str:
    """Return which of ACTIONS an operation is."""
    match operation["operation"]:
        case "set_state":
            return str(operation["verb"])
        case "set_segment":
            return "create-segment" if operation["create"] else "update-segment"
        case name:
            return str(name).replace("_", "-")


def _action(operation: Mapping[str, Any]) -> str:
    if operation["region"] == ACCESS:
        return _action_on_access(operation)
    words = [_name(operation).replace("-", " "), operation["key"]]
    match operation["operation"]:
        case "set_rollout":
            words.append(_weights(operation["weights"], operation.get("rule")))
        case "serve":
            rule = operation.get("rule")
            variant = str(operation["variant"])
            words.append(variant.lower() if operation["variant"] in (True, False) else variant)
            words += [] if rule is None else [f"in rule {rule}"]
        case "rollback":
            words.append(f"to revision {operation['to']}")
        case "import":
            count, batch = len(operation["flags"]), operation["batch"]
            return f"import {count:,} flags, batch {batch} of {operation['of']}"
        case "rollback_all":
            return f"rollback everything to revision {operation['to']}"
        case "edit":
            words.append(f"by {operation['function']}")
        case "change_members":
            counts = [
                f"{len(operation[side])} {side}d" for side in ("include", "exclude", "remove")
            ]
            return f"change members of {operation['key']}: {', '.join(counts)}"
        case _:
            pass
    if operation["region"] not in ("*", SEGMENTS):
        words.append(f"in {operation['region']}")
    return " ".join(words)


def _weights(weights: float | Mapping[str, float], rule: str | None) -> str:
    given = weights.items() if isinstance(weights, Mapping) else [("", weights)]
    listed = ", ".join(f"{variant} {weight:g} %".lstrip() for variant, weight in given)
    return f"to {listed}" if rule is None else f"rule {rule} to {listed}"


def _action_on_access(operation: Mapping[str, Any]) -> str:
    match operation["operation"]:
        case "grant":
            listed = ", ".join(operation["namespaces"])
            where = f" on {listed}" if listed else ""
            return f"grant {operation['role']} to {operation['actor']}{where}"
        case "revoke":
            return f"revoke {operation['role'] or 'all roles'} of {operation['actor']}"
        case "prune":
            ledger = [f"the ledger up to revision {operation['to']}"] if operation["policy"] else []
            others = [f"{name} before {moment}" for name, moment in operation["removed"].items()]
            return f"prune {', '.join(ledger + others)}"
        case "set_limit":
            whose = "each actor" if operation["whose"] == "actor" else "all"
            limit = operation["limit"]
            to = f"{limit['capacity']} and {limit['rate']} a second" if limit else "any number"
            return f"set limit of {whose} to {to}"
        case _:
            return f"rollback all grants to revision {operation['to']}"
