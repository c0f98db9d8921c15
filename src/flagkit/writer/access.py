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
    Grants,
    Limits,
    Role,
    decode_grants,
)
from flagkit._core.model.changes import ACCESS, GRANTS, LIMITS, SEGMENTS, PolicyChange, PolicyState
from flagkit._core.model.documents import METADATA
from flagkit._core.model.values import is_same
from flagkit._core.storage.layout import DENIAL_OPERATIONS_MAX
from flagkit._core.storage.reader import EnvironmentReader
from flagkit._core.storage.store import Store
from flagkit.errors import AccessDeniedError, RateLimitedError, StoreError
from flagkit.writer.operations import Operation, SetState, get_grants, get_limits

_log = Log("flagkit.writer")

AccessAction: TypeAlias = Literal["edit", "pause", "release", "break glass", "grant"]
ROLES_BY_ACTION: Final[Mapping[AccessAction, tuple[Role, ...]]] = {
    "edit": ("editor", "releaser", "admin"),
    "pause": ("editor", "releaser", "admin"),
    "release": ("releaser", "admin"),
    "break glass": ("releaser", "admin"),
    "grant": ("admin",),
}
"""The actions that each role allows.

To edit changes nothing that anybody is served, to release does; to break glass passes guards by.
"""

Permission: TypeAlias = tuple[AccessAction, str]
"""The action of a change and its key; for a grant, the namespace."""


class _InactiveFlag(Struct):
    """The fields that say what a flag serves unless it is active. Other fields are not read."""

    state: str = "active"
    off: str | None = None


_decode_inactive = msgspec.msgpack.Decoder(_InactiveFlag).decode


class Denial(Struct, frozen=True):
    """Somebody who was denied something: the server's time, who, what, and to which key."""

    time: datetime
    actor: str
    action: str
    key: str
    reason: str
    operations: tuple[dict[str, Any], ...]


def read_denials(store: Store) -> list[Denial]:
    """Return the log of denials, the oldest first."""
    return [
        Denial(
            document["time"],
            document["actor"],
            document["action"],
            document["key"],
            document["reason"],
            tuple(document["operations"]),
        )
        for document in store.denials.read_all()
    ]


def check_access(reading: EnvironmentReader, actor: str, permissions: Iterable[Permission]) -> None:
    """Refuse a planned change that its actor may not make.

    Raises:
        AccessDeniedError: with the first thing that the actor may not do.
    """
    held = reading.access.get(GRANTS)
    if held is None:
        return
    denied = find_denied_permission(decode_grants(held.policy), actor, permissions)
    if denied is not None:
        action, key = denied
        raise AccessDeniedError(
            actor, action, key, reading.tip.environment, ROLES_BY_ACTION[action]
        )


def log_denial(
    store: Store,
    now: datetime,
    denial: AccessDeniedError,
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
    what = {"actor": denial.actor, "action": denial.action, "key": denial.key}
    try:
        store.denials.add(now, {**what, "reason": reason, "operations": asked})
    except StoreError as error:
        _log.warning("a denial could not be logged: %s", error)


def find_denied_permission(
    held: Grants, actor: str, permissions: Iterable[Permission]
) -> Permission | None:
    """Return the first permission that no grant of an actor covers, None if all are covered."""
    mine = [grant for grant in held.grants if grant.actor == actor]
    for action, key in permissions:
        if not any(grant.role in ROLES_BY_ACTION[action] and grant.covers(key) for grant in mine):
            return action, key
    return None


def list_required_permissions(
    operations: Iterable[Operation],
    changes: Iterable[PolicyChange],
    *,
    is_bypassing_guards: bool = False,
) -> list[Permission]:
    """Return what a change does to which keys. One that does nothing at all is an edit of all."""
    found: dict[Permission, None] = {}
    changed = {change.id: change for change in changes}
    for change in changed.values():
        found |= dict.fromkeys(_list_change_permissions(change))
        if is_bypassing_guards:
            found["break glass", change.id[1] if change.id[0] != ACCESS else ""] = None
    for operation in operations:
        if operation.policy_id not in changed:
            found[_get_noop_permission(operation)] = None
    return [*found] or [("edit", "")]


def _get_noop_permission(operation: Operation) -> Permission:
    """Return what it takes to ask for what is so already: it is a revision all the same."""
    if operation.region == ACCESS:
        return "grant", ""
    pauses = isinstance(operation, SetState) and operation.verb == "pause"
    return "pause" if pauses else "edit", operation.key


def _list_change_permissions(change: PolicyChange) -> list[Permission]:
    if change.id == GRANTS:
        differing = get_grants(change.before).list_scopes() ^ get_grants(change.after).list_scopes()
        return [("grant", namespace) for namespace in sorted({item[2] for item in differing})]
    region, key = change.id
    return [(classify_change(change), "" if region == ACCESS else key)]


def classify_change(change: PolicyChange) -> AccessAction:
    """Return what a change does to a policy, judged by what the states before and after serve.

    Whatever could change any answer is a release. A change is an edit only where the two states
    cannot differ in any answer: their documents are compared with their types and their order.
    """
    if change.id[0] == ACCESS:
        return "grant"
    if change.after is None:
        return "release"
    if change.before is None:
        return _classify_creation(change.after)
    return _classify_update(change.before, change.after)


def _classify_creation(state: PolicyState) -> AccessAction:
    """Return what creating a policy does: nobody refers to a new segment yet."""
    if state.region == SEGMENTS:
        return "edit"
    flag = _decode_inactive(state.packed)
    # A new override hides the flag of all regions, whatever its own state is. A paused flag serves
    # its `off` variant to callers who had their own default before.
    serves = state.region != EVERYWHERE or flag.state == "active" or flag.off is not None
    return "release" if serves else "edit"


def _classify_update(old: PolicyState, new: PolicyState) -> AccessAction:
    before, after = _extract_served_fields(old), _extract_served_fields(new)
    if is_same(before, after):
        return "edit"
    if old.region == SEGMENTS:
        return "release"
    if _is_active(before) and is_same(after, {**before, "state": "paused"}):
        return "pause"
    is_idle = not _is_active(before) and not _is_active(after)
    return (
        "edit" if is_idle and is_same(_get_off_value(before), _get_off_value(after)) else "release"
    )


def _extract_served_fields(state: PolicyState) -> dict[str, Any]:
    """Return the part of a policy's document that answers depend on."""
    policy = {name: value for name, value in state.policy.items() if name not in METADATA}
    return policy if state.region == SEGMENTS else {"state": "active", **policy}


def _is_active(policy: Mapping[str, Any]) -> bool:
    return bool(policy["state"] == "active")


def _get_off_value(policy: Mapping[str, Any]) -> list[Any]:
    off = policy.get("off")
    return [] if off is None else [off, policy["variants"][off]]


ALL_ACTORS: Final = "*"
"""The name of the bucket of all actors."""
_NAME_LENGTH: Final = 16
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def compute_buckets(
    reading: EnvironmentReader, actor: str, secret: Callable[[], bytes | None], *, is_limited: bool
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
        everybody = {name: buckets[name] for name in buckets.keys() & {ALL_ACTORS}}
        return take_tokens(held, everybody, "", now)
    key = secret()
    mine = "" if key is None else hash_actor_bucket(key, actor)
    return take_tokens(held, buckets, mine, now)


def take_tokens(held: Limits, buckets: Mapping[str, int], mine: str, now: int) -> dict[str, int]:
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
        (ALL_ACTORS, "environment", held.environment),
    ):
        if limit is None:
            after.pop(name, None)
            continue
        # What is stored may be of another limit, or was changed past the writer.
        full_at = min(buckets.get(name, now), limit.find_full_time(now))
        free_at = limit.find_token_time(full_at)
        if free_at > now:
            wait = (free_at - now) / 1e6
            raise RateLimitedError(whose, _EPOCH + free_at * _MICROSECOND, wait)
        after[name] = limit.take_token(full_at, now)
    return after


def hash_actor_bucket(key: bytes, actor: str) -> str:
    """Return the name of an actor's bucket, by which a reader of the head cannot test a guess."""
    return hmac.digest(key, actor.encode(), "sha256").hex()[:_NAME_LENGTH]


UNLIMITED_ACTIONS: Final[frozenset[AccessAction]] = frozenset(("pause", "grant"))
"""The actions that take no token of a rate limit: pauses and changes of access."""


class CommitPolicy:
    """The terms of most changes: their actor has the roles that they take."""

    has_own_request = False
    """True if the library names the request, so an equal name is the same request."""

    def check(self, reading: EnvironmentReader) -> None:
        """Refuse a change that may not be made at all, before it is planned."""

    def list_required_permissions(
        self,
        operations: Sequence[Operation],
        changes: Iterable[PolicyChange],
        *,
        is_bypassing_guards: bool,
    ) -> list[Permission]:
        """Return what roles are asked for."""
        return list_required_permissions(
            operations, changes, is_bypassing_guards=is_bypassing_guards
        )

    def is_limited(self, permissions: Collection[Permission]) -> bool:
        """Tell whether the change takes a token: all do but those that stop harm."""
        return not permissions or any(action not in UNLIMITED_ACTIONS for action, _ in permissions)

    def get_approvers(
        self,
        reading: EnvironmentReader,
        actor: str,
        permissions: Sequence[Permission],
        changes: Sequence[PolicyChange],
    ) -> tuple[str, ...]:
        """Return who approved of a planned change, or refuse it.

        Raises:
            AccessDeniedError: its actor may not make it.
        """
        del changes
        check_access(reading, actor, permissions)
        return ()

    def complete_audit_content(self, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what the audit is to have of a change, now that it meets the terms."""
        return content
