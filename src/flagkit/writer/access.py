"""Authorization of a planned change: roles, approvals and rate limits, and the log of denials.

The required role depends on what a change does, not on the method that made it. Grants and limits
are read at the revision that the commit is compared with, so no change slips past a revocation.
Limits hold over processes without a lock, and a commit that loses its race takes no token.

An actor is whoever the writer says it is; docs/access.md says what that is worth.
"""

import hmac
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Struct

from flagkit._core.background import Log
from flagkit._core.model import EVERYWHERE
from flagkit._core.model.access import (
    Grant,
    Grants,
    Limits,
    Role,
    decode_grants,
)
from flagkit._core.model.changes import ACCESS, GRANTS, LIMITS, SEGMENTS, PolicyChange, PolicyState
from flagkit._core.model.documents import METADATA
from flagkit._core.model.values import is_same
from flagkit._core.storage.layout import DENIAL_OPERATIONS_MAX
from flagkit._core.storage.reader import Reading
from flagkit._core.storage.store import Store, checked_store
from flagkit.errors import AccessDeniedError, RateLimitedError, StoreError
from flagkit.writer.operations import Operation, SetState, get_grants, get_limits

_log = Log("flagkit.writer")

Action: TypeAlias = Literal["edit", "pause", "release", "break glass", "grant"]
MAY: Final[Mapping[Action, tuple[Role, ...]]] = {
    "edit": ("editor", "releaser", "admin"),
    "pause": ("editor", "releaser", "admin"),
    "release": ("releaser", "admin"),
    "break glass": ("releaser", "admin"),
    "grant": ("admin",),
}
"""What takes which role.

To edit changes nothing that anybody is served, to release does; to break glass passes guards by.
"""

Need: TypeAlias = tuple[Action, str]
"""What a change does, and the key that it does it to; of grants, the namespace."""


class _Inactive(Struct):
    """The fields that say what a flag serves unless it is active. Other fields are not read."""

    state: str = "active"
    off: str | None = None


_decode_inactive = msgspec.msgpack.Decoder(_Inactive).decode


class Denial(Struct, frozen=True):
    """Somebody who was denied something: the server's time, who, what, and to which key."""

    time: datetime
    actor: str
    action: str
    key: str
    reason: str
    operations: tuple[dict[str, Any], ...]


def grants(store: Store) -> tuple[Grant, ...]:
    """Return the grants of an environment, ordered by actor and role; none where it is open."""
    with checked_store(store).reading() as reading:
        return get_grants(reading.access.get(GRANTS)).grants


def denials(store: Store) -> list[Denial]:
    """Return who was denied what, oldest first."""
    return [
        Denial(
            document["time"],
            document["actor"],
            document["action"],
            document["key"],
            document["reason"],
            tuple(document["operations"]),
        )
        for document in checked_store(store).denials.all()
    ]


def check_access(reading: Reading, actor: str, needed: Iterable[Need]) -> None:
    """Refuse a planned change that its actor may not make.

    Raises:
        AccessDeniedError: with the first thing that the actor may not do.
    """
    held = reading.access.get(GRANTS)
    if held is None:
        return
    denied = first_denied(decode_grants(held.policy), actor, needed)
    if denied is not None:
        action, key = denied
        raise AccessDeniedError(actor, action, key, reading.tip.environment, MAY[action])


def log_denial(
    store: Store,
    now: datetime,
    denied: AccessDeniedError,
    reason: str,
    operations: Sequence[Operation],
) -> None:
    """Log what somebody was denied at a time of the server's. Never raises.

    What is logged is bounded: of long texts the beginning, and a few denials of an actor a minute.
    """
    asked = [
        {"operation": type(operation).__struct_config__.tag, "key": operation.key}
        for operation in operations[:DENIAL_OPERATIONS_MAX]
    ]
    what = {"actor": denied.actor, "action": denied.action, "key": denied.key}
    try:
        store.denials.add(now, {**what, "reason": reason, "operations": asked})
    except StoreError as error:
        _log.warning("a denial could not be logged: %s", error)


def first_denied(held: Grants, actor: str, needed: Iterable[Need]) -> Need | None:
    """Return the first need that no grant of an actor covers, None if all are covered."""
    mine = [grant for grant in held.grants if grant.actor == actor]
    for action, key in needed:
        if not any(grant.role in MAY[action] and grant.covers(key) for grant in mine):
            return action, key
    return None


def needs(
    operations: Iterable[Operation], changes: Iterable[PolicyChange], *, breaks_glass: bool = False
) -> list[Need]:
    """Return what a change does to which keys. One that does nothing at all is an edit of all."""
    found: dict[Need, None] = {}
    changed = {change.id: change for change in changes}
    for change in changed.values():
        found |= dict.fromkeys(_needs_of(change))
        if breaks_glass:
            found["break glass", change.id[1] if change.id[0] != ACCESS else ""] = None
    for operation in operations:
        if operation.policy_id not in changed:
            found[_need_of_nothing(operation)] = None
    return [*found] or [("edit", "")]


def _need_of_nothing(operation: Operation) -> Need:
    """Return what it takes to ask for what is so already: it is a revision all the same."""
    if operation.region == ACCESS:
        return "grant", ""
    pauses = isinstance(operation, SetState) and operation.verb == "pause"
    return "pause" if pauses else "edit", operation.key


def _needs_of(change: PolicyChange) -> list[Need]:
    if change.id == GRANTS:
        differing = get_grants(change.before).scopes() ^ get_grants(change.after).scopes()
        return [("grant", namespace) for namespace in sorted({item[2] for item in differing})]
    region, key = change.id
    return [(action_of(change), "" if region == ACCESS else key)]


def action_of(change: PolicyChange) -> Action:
    """Return what a change does to a policy, judged by what the states before and after serve.

    Whatever could change any answer is a release. A change is an edit only where the two states
    cannot differ in any answer: their documents are compared with their types and their order.
    """
    if change.id[0] == ACCESS:
        return "grant"
    if change.after is None:
        return "release"
    if change.before is None:
        return _action_of_creating(change.after)
    return _action_of_updating(change.before, change.after)


def _action_of_creating(state: PolicyState) -> Action:
    """Return what creating a policy does: nobody refers to a new segment yet."""
    if state.region == SEGMENTS:
        return "edit"
    flag = _decode_inactive(state.packed)
    # A new override hides the flag of all regions, whatever its own state is. A paused flag serves
    # its `off` variant to callers who had their own default before.
    serves = state.region != EVERYWHERE or flag.state == "active" or flag.off is not None
    return "release" if serves else "edit"


def _action_of_updating(old: PolicyState, new: PolicyState) -> Action:
    before, after = _served(old), _served(new)
    if is_same(before, after):
        return "edit"
    if old.region == SEGMENTS:
        return "release"
    if _is_active(before) and is_same(after, {**before, "state": "paused"}):
        return "pause"
    is_idle = not _is_active(before) and not _is_active(after)
    return "edit" if is_idle and is_same(_off(before), _off(after)) else "release"


def _served(state: PolicyState) -> dict[str, Any]:
    """Return the part of a policy's document that answers depend on."""
    policy = {name: value for name, value in state.policy.items() if name not in METADATA}
    return policy if state.region == SEGMENTS else {"state": "active", **policy}


def _is_active(policy: Mapping[str, Any]) -> bool:
    return bool(policy["state"] == "active")


def _off(policy: Mapping[str, Any]) -> list[Any]:
    off = policy.get("off")
    return [] if off is None else [off, policy["variants"][off]]


EVERYBODY: Final = "*"
"""The name of the bucket of all actors."""
_NAME_LENGTH: Final = 16
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def limits(store: Store) -> Limits:
    """Return the limits of an environment."""
    with checked_store(store).reading() as reading:
        return get_limits(reading.access.get(LIMITS))


def buckets_after(
    reading: Reading, actor: str, secret: Callable[[], bytes | None], *, is_limited: bool
) -> dict[str, int]:
    """Return the buckets as a change leaves them; those that are full are left out.

    `secret` gives the key by which actors' buckets are named; None where none was named yet. It is
    asked for only where a bucket of an actor is needed.

    Raises:
        RateLimitedError: one of them has no token.
        StoreError: the key cannot be read.
    """
    held = get_limits(reading.access.get(LIMITS))
    time = max(reading.now, reading.tip.time)
    now = (time - _EPOCH) // _MICROSECOND
    buckets = {name: full_at for name, full_at in reading.buckets.items() if full_at > now}
    if not is_limited:
        return buckets
    if held.actor is None:
        everybody = {name: buckets[name] for name in buckets.keys() & {EVERYBODY}}
        return taken(held, everybody, "", now)
    key = secret()
    mine = "" if key is None else actor_bucket(key, actor)
    return taken(held, buckets, mine, now)


def taken(held: Limits, buckets: Mapping[str, int], mine: str, now: int) -> dict[str, int]:
    """Return buckets with a token taken from the actor's, and one from all actors'.

    Args:
        held: The limits.
        buckets: By name, when each is full again, in microseconds since 1970.
        mine: The name of the actor's.
        now: In microseconds since 1970.

    Raises:
        RateLimitedError: one of them has no token.
    """
    after = {**buckets}
    for name, whose, limit in (
        (mine, "actor", held.actor),
        (EVERYBODY, "environment", held.environment),
    ):
        if limit is None:
            after.pop(name, None)
            continue
        # What is stored may be of another limit, or was changed past the writer.
        full_at = min(buckets.get(name, now), limit.full_by(now))
        free_at = limit.free_at(full_at)
        if free_at > now:
            wait = (free_at - now) / 1e6
            raise RateLimitedError(whose, _EPOCH + free_at * _MICROSECOND, wait)
        after[name] = limit.taken(full_at, now)
    return after


def actor_bucket(key: bytes, actor: str) -> str:
    """Return the name of an actor's bucket, by which a reader of the head cannot test a guess."""
    return hmac.digest(key, actor.encode(), "sha256").hex()[:_NAME_LENGTH]


UNLIMITED: Final[frozenset[Action]] = frozenset(("pause", "grant"))
"""What takes no token of a rate limit: pauses and changes of access."""


class Terms:
    """The terms of most changes: their actor has the roles that they take."""

    has_own_request = False
    """Whether the library names the request, so that what has its name is the same request."""

    def check(self, reading: Reading) -> None:
        """Refuse a change that may not be made at all, before it is planned."""

    def needed(
        self,
        operations: Sequence[Operation],
        changes: Iterable[PolicyChange],
        *,
        breaks_glass: bool,
    ) -> list[Need]:
        """Return what roles are asked for."""
        return needs(operations, changes, breaks_glass=breaks_glass)

    def is_limited(self, needed: Collection[Need]) -> bool:
        """Tell whether the change takes a token: all do but those that stop harm."""
        return not needed or any(action not in UNLIMITED for action, _ in needed)

    def approvers(
        self, reading: Reading, actor: str, needed: Sequence[Need], changes: Sequence[PolicyChange]
    ) -> tuple[str, ...]:
        """Return who approved of a planned change, or refuse it.

        Raises:
            AccessDeniedError: its actor may not make it.
        """
        del changes
        check_access(reading, actor, needed)
        return ()

    def recorded(self, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what the audit is to have of a change, now that it meets the terms."""
        return content
