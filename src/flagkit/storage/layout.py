"""Layout: which collections there are, what their documents look like, and what indexes they need.

- heads: {_id: environment, epoch, revision, hash, time, digests, change}
- ledger: {_id: {environment, revision}} and the fields of a head and of its change
- flags: {_id: {environment, key, region}, revision, version, policy, hash}; the hash is that of the
  state; both are null once the flag is deleted
- audit: {_id: {environment, request}, sent, actor, reason, operations, digest}

The head is the truth; flags and ledger are projections of it. A change is {request, previous_hash,
flags}, its flags a list of {region, key, before, after}, each side {version, policy} or null.
"""

import functools
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final, ParamSpec, TypeAlias, TypeVar

from bson import MaxKey, MinKey
from pymongo import ASCENDING, IndexModel

from flagkit.changes import Change, FlagChange, FlagState, Tip, state_of
from flagkit.errors import StoreError

Document: TypeAlias = dict[str, Any]

HEADS, LEDGER, FLAGS, AUDIT = "heads", "ledger", "flags", "audit"

INDEXES: Final[Mapping[str, tuple[IndexModel, ...]]] = {
    HEADS: (),
    AUDIT: (),
    LEDGER: (
        IndexModel(
            [("_id.environment", ASCENDING), ("request", ASCENDING)], name="request", unique=True
        ),
        IndexModel(
            [("_id.environment", ASCENDING), ("flags.key", ASCENDING), ("_id.revision", ASCENDING)],
            name="flag_history",
        ),
    ),
    FLAGS: (
        IndexModel(
            [
                ("_id.environment", ASCENDING),
                ("_id.region", ASCENDING),
                ("policy.state", ASCENDING),
                ("policy.expires", ASCENDING),
                ("_id.key", ASCENDING),
            ],
            name="active_in_region",
        ),
        IndexModel(
            [("_id.environment", ASCENDING), ("policy.prerequisites.flag", ASCENDING)],
            name="dependents",
            partialFilterExpression={"policy.prerequisites.flag": {"$exists": True}},
        ),
    ),
}


def ledger_id(environment: str, revision: Any) -> Document:
    """Return a ledger document's `_id`. Field order counts: ranges compare whole `_id`s."""
    return {"environment": environment, "revision": revision}


def flag_id(environment: str, key: Any, region: Any) -> Document:
    """Return a flag document's `_id`. Field order counts: ranges compare whole `_id`s."""
    return {"environment": environment, "key": key, "region": region}


def ledger_after(environment: str, revision: int) -> Document:
    """Return the filter of an environment's ledger after a revision, a range of the `_id` index."""
    # Whatever number a revision is, a string comes after it in BSON's order.
    return {"_id": {"$gt": ledger_id(environment, revision), "$lt": ledger_id(environment, "")}}


def flags_of(environment: str) -> Document:
    """Return the filter of all of an environment's flags, a range of the `_id` index."""
    return {
        "_id": {
            "$gte": flag_id(environment, MinKey(), MinKey()),
            "$lte": flag_id(environment, MaxKey(), MaxKey()),
        }
    }


def flags_named(environment: str, keys: list[str]) -> Document:
    """Return the filter of some flags in all regions, ranges of the `_id` index."""
    ranges = [
        {
            "_id": {
                "$gte": flag_id(environment, key, MinKey()),
                "$lte": flag_id(environment, key, MaxKey()),
            }
        }
        for key in keys
    ]
    return {"$or": ranges}


def active_in_region(environment: str, region: str, at: datetime) -> Document:
    """Return the filter of flags written for one region, active and not past `expires`."""
    return {
        "_id.environment": environment,
        "_id.region": region,
        "policy.state": "active",
        "policy.expires": {"$not": {"$lte": at}},
    }


def head_document(tip: Tip, change: Change | None) -> Document:
    """Return the head at a tip, with the change that led to it."""
    body = None if change is None else _change_body(change)
    return {"_id": tip.environment, **_tip_fields(tip), "change": body}


P = ParamSpec("P")
R = TypeVar("R")


def _judged(read: Callable[P, R]) -> Callable[P, R]:
    """Raise a StoreError where a stored document has not the form that it should have."""

    @functools.wraps(read)
    def judging(*arguments: P.args, **named: P.kwargs) -> R:
        try:
            return read(*arguments, **named)
        except (KeyError, TypeError, ValueError, AttributeError, AssertionError) as error:
            raise StoreError(
                "a stored document has not the form that it should have: it was changed past the"
                f" writer ({type(error).__name__}: {error})"
            ) from error

    return judging


@_judged
def tip_of(head: Mapping[str, Any]) -> Tip:
    """Return the tip that a head stands at."""
    return _tip(head["_id"], head)


@_judged
def change_of(head: Mapping[str, Any]) -> Change | None:
    """Return the change that led to a head; None at revision 0."""
    return None if head["change"] is None else _change(tip_of(head), head["change"])


def ledger_document(change: Change) -> Document:
    """Return the ledger's document of a change."""
    identity = ledger_id(change.tip.environment, change.revision)
    return {"_id": identity, **_tip_fields(change.tip), **_change_body(change)}


@_judged
def ledgered(document: Mapping[str, Any]) -> Change:
    """Return the change that a ledger document holds.

    Raises:
        StoreError: it stands in the place of another revision.
    """
    if document["_id"]["revision"] != document["revision"]:
        raise StoreError(f"the ledger has revision {document['revision']} in another's place")
    return _change(_tip(document["_id"]["environment"], document), document)


def flag_document(environment: str, revision: int, change: FlagChange) -> Document:
    """Return the document of a flag as a change left it; without a policy where it was deleted."""
    state = change.after or change.before
    assert state is not None, "a change has a side"
    return {
        "_id": flag_id(environment, state.key, state.region),
        "revision": revision,
        "version": state.version,
        "policy": None if change.after is None else change.after.policy,
        "hash": None if change.after is None else f"{change.after.hash:016x}",
    }


@_judged
def flag_state(document: Mapping[str, Any]) -> FlagState | None:
    """Return the state that a flag document holds; None where it was deleted.

    Raises:
        StoreError: something changed it past the writer.
    """
    identity = document["_id"]
    if document["policy"] is None:
        return None
    state = state_of(
        identity["key"], identity["region"], int(document["version"]), document["policy"]
    )
    if document.get("hash") != f"{state.hash:016x}":
        raise StoreError(
            f"{identity['key']} (region {identity['region']}) was changed past the writer: undo it"
        )
    return state


def _tip_fields(tip: Tip) -> Document:
    return {
        "epoch": tip.epoch,
        "revision": tip.revision,
        "hash": tip.hash,
        "time": tip.time,
        "digests": {region: f"{digest:016x}" for region, digest in tip.digests.items()},
    }


def _tip(environment: str, fields: Mapping[str, Any]) -> Tip:
    digests = {region: int(digest, 16) for region, digest in fields["digests"].items()}
    revision = int(fields["revision"])
    return Tip(environment, fields["epoch"], revision, fields["hash"], fields["time"], digests)


def _change_body(change: Change) -> Document:
    return {
        "request": change.request,
        "previous_hash": change.previous_hash,
        "flags": [
            {
                "region": flag.id[0],
                "key": flag.id[1],
                "before": _side(flag.before),
                "after": _side(flag.after),
            }
            for flag in change.flags
        ],
    }


def _side(state: FlagState | None) -> Document | None:
    return None if state is None else {"version": state.version, "policy": state.policy}


def _change(tip: Tip, body: Mapping[str, Any]) -> Change:
    flags = tuple(
        FlagChange(_state(flag, flag["before"]), _state(flag, flag["after"]))
        for flag in body["flags"]
    )
    return Change(tip, body["request"], body["previous_hash"], flags)


def _state(flag: Mapping[str, Any], side: Mapping[str, Any] | None) -> FlagState | None:
    if side is None:
        return None
    return state_of(flag["key"], flag["region"], int(side["version"]), side["policy"])
