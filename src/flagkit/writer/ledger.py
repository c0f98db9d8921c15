"""Ledger: the history of an environment, read for people and verified for auditors."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from itertools import chain, islice
from typing import Any

from msgspec import Struct

from flagkit.changes import ACCESS, GRANTS, SEGMENTS, Change, PolicyId, PolicyState, Tip
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

_CHUNK = 500


class Entry(Struct, frozen=True):
    """One revision as people read it: `actions` are sentences such as "pause shop.search".

    `glass` says why guards were passed by, if they were.
    """

    revision: int
    time: datetime
    actor: str
    reason: str
    actions: tuple[str, ...]
    hash: str
    glass: str = ""


def entries(store: Store, after: int = 0) -> Iterator[Entry]:
    """Yield the ledger of an environment after a revision, oldest first, with who and why."""
    changes = store.changes(after)
    while chunk := list(islice(changes, _CHUNK)):
        requests = store.requests(change.request for change in chunk)
        for change in chunk:
            request = requests.get(change.request, {})
            yield Entry(
                change.revision,
                change.tip.time,
                request.get("actor", ""),
                request.get("reason", ""),
                tuple(map(_action, request.get("operations", ()))),
                change.tip.hash,
                request.get("glass", ""),
            )


def verify(store: Store) -> list[str]:
    """Return what is wrong with an environment's ledger and what stands beside it, if anything.

    The chain proves that the ledger was not altered, shortened or reordered on its way to the head.
    Whoever can rewrite all of it, head included, is found only against a hash kept elsewhere.
    """
    try:
        return _problems(store)
    except StoreUnavailableError:
        raise
    except StoreError as error:
        return [str(error)]


def _problems(store: Store) -> list[str]:
    problems: list[str] = []
    tip: Tip | None = None
    expected: dict[PolicyId, tuple[int, PolicyState | None]] = {}
    with store.reading() as reading:
        head = reading.tip
        found = reading.projected()
        pending = [reading.pending] if reading.pending else []
        checkpoints = [*reading.checkpoints()]
        for change in chain(reading.changes(), pending):
            problems += _check_step(tip, change)
            tip = change.tip
            for policy in change.policies:
                if expected.get(policy.id, (0, None))[1] != policy.before:
                    problems.append(
                        f"revision {change.revision} did not find {policy.id[1]} as it was left"
                    )
            expected |= {policy.id: (change.revision, policy.after) for policy in change.policies}
            problems += _check_checkpoints(checkpoints, tip, expected)
        problems += _check_members(reading, (state for _, state in expected.values() if state))
        # What the tip did may not be there yet: its writer, or the next one, brings it.
        for identity in [policy.id for change in pending for policy in change.policies]:
            expected.pop(identity, None)
            found.pop(identity, None)
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
            states = [state for _, state in expected.values() if state and state.id != GRANTS]
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
    return [f"revision {change.revision} does not continue revision {tip.revision}, or was altered"]


def _action(operation: dict[str, Any]) -> str:
    if operation["region"] == ACCESS:
        return _action_on_access(operation)
    words = [operation["operation"].replace("_", " "), operation["key"]]
    match operation["operation"]:
        case "set_state":
            words[0] = operation["verb"]
        case "set_rollout":
            words.append(f"to {operation['weights']}")
        case "rollback":
            words.append(f"to revision {operation['to']}")
        case "rollback_all":
            return f"rollback everything to revision {operation['to']}"
        case "edit":
            words.append(f"by {operation['function']}")
        case "set_segment":
            words[0] = f"{'create' if operation['create'] else 'update'} segment"
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


def _action_on_access(operation: dict[str, Any]) -> str:
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
            return f"limit changes of {whose} to {to}"
        case _:
            return f"rollback all grants to revision {operation['to']}"
