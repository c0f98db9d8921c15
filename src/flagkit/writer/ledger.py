"""Ledger: the history of an environment, read for people and verified for auditors."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from itertools import chain, islice
from typing import Any, Final, TypedDict, Unpack

from msgspec import Struct

from flagkit.changes import ACCESS, SEGMENTS, Change, PolicyId, PolicyState, Tip
from flagkit.errors import (
    FlagkitError,
    SnapshotFormatError,
    StoreError,
    StoreUnavailableError,
)
from flagkit.model.segments import check_members, decode_segment
from flagkit.snapshot import Arena
from flagkit.storage.checkpoints import Checkpoint
from flagkit.storage.reading import Reading
from flagkit.storage.store import Store
from flagkit.writer.checkpoints import problem_with
from flagkit.writer.differences import differences
from flagkit.writer.requests import check_requests

_CHUNK = 500


DECISIONS: Final = ("drop-pending", "reject-proposal", "withdraw-proposal")
"""What is decided of pending changes and proposals, in revisions that change nothing else."""
ACTIONS: Final = (
    *("create", "update", "edit", "set-rollout", "pause", "resume"),
    *("archive", "restore", "delete", "rollback", "rollback-all"),
    *("create-segment", "update-segment", "change-members", "delete-segment"),
    *("grant", "revoke", "set-limit", "import"),
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


def entries(
    store: Store, after: int = 0, *, newest_first: bool = False, **wanted: Unpack[Wanted]
) -> Iterator[Entry]:
    """Yield the ledger of an environment after a revision, oldest first, with who and why.

    Takes `key`, `actor`, `action`, `since` and `until`, as Wanted has them.
    """
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
            if action is not None and action not in map(_name, operations):
                continue
            yield Entry(
                change.revision,
                change.tip.time,
                request.get("actor", ""),
                request.get("reason", ""),
                sentences(operations),
                tuple(line for policy in change.policies for line in differences(policy)),
                change.tip.hash,
                request.get("glass", ""),
                request.get("proposal", ""),
                _approvers(said.get(request.get("proposal", ""), ()), change.tip.time),
                request.get("applied_by", ""),
            )


def newer(store: Store, after: int, **wanted: Unpack[Wanted]) -> tuple[int, list[Entry]]:
    """Return the entries after a revision, as far as there are any, and the one to go on after.

    Takes what `entries` takes.
    """
    tip = store.tip()
    found = [*entries(store, after, **wanted)]
    # The tip itself may not be in the ledger yet. All before it is.
    return max(after, tip.revision - 1, *(entry.revision for entry in found[-1:])), found


def verify(store: Store, anchors: Iterable[tuple[int, str]] = ()) -> list[str]:
    """Return what is wrong with an environment's ledger and what stands beside it, if anything.

    The chain proves that the ledger was not altered, shortened or reordered on its way to the head.
    Whoever can rewrite all of it, head included, is found only against a hash kept elsewhere:
    `anchors` are such revisions and hashes.
    """
    try:
        return _problems(store, {*anchors})
    except StoreUnavailableError:
        raise
    except StoreError as error:
        return [str(error)]


def _problems(store: Store, anchors: set[tuple[int, str]]) -> list[str]:
    tip: Tip | None = None
    expected: dict[PolicyId, tuple[int, PolicyState | None]] = {}
    asked: list[tuple[int, str]] = []
    with store.reading() as reading:
        head = reading.tip
        problems = [f"the ledger has {place!r} for a revision" for place in reading.strays()]
        found = reading.projected()
        pending = [reading.pending] if reading.pending else []
        checkpoints = [*reading.checkpoints()]
        for change in chain(reading.changes(), pending):
            problems += _check_step(tip, change)
            tip = change.tip
            asked.append((change.revision, change.request))
            anchors.discard((tip.revision, tip.hash))
            for policy in change.policies:
                if expected.get(policy.id, (0, None))[1] != policy.before:
                    problems.append(
                        f"revision {change.revision} did not find {policy.id[1]} as it was left"
                    )
            expected |= {policy.id: (change.revision, policy.after) for policy in change.policies}
            problems += _check_checkpoints(checkpoints, tip, expected)
        problems += _check_members(reading, (state for _, state in expected.values() if state))
        # What was done last may not be there yet: its writer, or the next one, brings it.
        for identity in [item.id for change in reading.unprojected for item in change.policies]:
            expected.pop(identity, None)
            found.pop(identity, None)
    problems += check_requests(store, asked)
    problems += [
        f"revision {revision} is not the one whose hash was kept, {digest}: the ledger was"
        " rewritten"
        for revision, digest in sorted(anchors)
    ]
    if tip is None and head.revision > 0:
        problems.append(f"the ledger is empty, and the head stands at revision {head.revision}")
    if tip is not None and tip != head:
        problems.append(f"the ledger ends in revision {tip.revision}, the head in {head.revision}")
    for region, key in sorted(expected.keys() | found.keys()):
        if expected.get((region, key)) != found.get((region, key)):
            problems.append(f"{key} ({region}) is not as the ledger has it")
    return problems


def _check_checkpoints(
    checkpoints: Iterable[tuple[Checkpoint, Callable[[], Arena]]],
    tip: Tip,
    expected: Mapping[PolicyId, tuple[int, PolicyState | None]],
) -> list[str]:
    """Hold the checkpoints of a tip's revision to what the ledger has at it."""
    problems: list[str] = []
    for checkpoint, read in checkpoints:
        if checkpoint.tip.revision != tip.revision:
            continue
        try:
            # Clients start from them, and grants are none of theirs.
            states = [state for _, state in expected.values() if state and state.region != ACCESS]
            problem = problem_with(read(), tip, states)
        except (StoreError, SnapshotFormatError) as error:
            problem = f"cannot be used: {error}"
        if problem is not None:
            problems.append(f"checkpoint {checkpoint.id} {problem}")
    return problems


def _check_members(reading: Reading, states: Iterable[PolicyState]) -> list[str]:
    problems: list[str] = []
    for state in states:
        if not state.parts:
            continue
        try:
            check_members(decode_segment(state.policy, stored=True).segment, reading.parts)
        except FlagkitError as error:
            problems.append(f"members of {state.key}: {error}")
    return problems


def _check_step(tip: Tip | None, change: Change) -> list[str]:
    if tip is None:
        # What revision 0 was is known only from here on: its hash has the time of its making.
        tip = Tip(
            change.tip.environment, change.tip.epoch, 0, change.previous_hash, change.tip.time, {}
        )
    if change.continues(tip):
        return []
    if not change.is_sealed:
        return [f"revision {change.revision} was altered"]
    missing = range(tip.revision + 1, change.revision)
    if missing:
        first, last = missing[0], missing[-1]
        span = f"revision {first} is" if first == last else f"revisions {first} to {last} are"
        return [f"{span} missing"]
    return [f"revision {change.revision} does not continue revision {tip.revision}"]


def _approvers(said: Iterable[Mapping[str, Any]], until: datetime) -> tuple[str, ...]:
    """Return who had approved of a proposal by a time."""
    return tuple(
        verdict["_id"]["actor"]
        for verdict in said
        if verdict["_id"]["verdict"] == "approve" and verdict["time"] <= until
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
            words.append(f"to {operation['weights']}")
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


def _action_on_access(operation: Mapping[str, Any]) -> str:
    match operation["operation"]:
        case "grant":
            listed = ", ".join(operation["namespaces"])
            where = f" on {listed}" if listed else ""
            return f"grant {operation['role']} to {operation['actor']}{where}"
        case "revoke":
            return f"revoke {operation['role'] or 'all roles'} of {operation['actor']}"
        case "set_limit":
            whose = "each actor" if operation["whose"] == "actor" else "all"
            limit = operation["limit"]
            to = f"{limit['capacity']} and {limit['rate']} a second" if limit else "any number"
            return f"set limit of {whose} to {to}"
        case _:
            return f"rollback all grants to revision {operation['to']}"
