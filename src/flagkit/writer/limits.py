"""Rate limits: token buckets on changes, kept in the head, which the commit is compared with.

So they hold over processes without a lock, and a commit that loses its race takes no token. The
terms of a change say whether it is limited.
"""

import hmac
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from flagkit.changes import LIMITS, PolicyState
from flagkit.errors import RateLimitedError
from flagkit.model.limits import Limit, Limits, Whose, decode_limits
from flagkit.storage.reading import Reading
from flagkit.storage.store import Store, checked_store
from flagkit.writer.operations import Earlier, Operation

EVERYBODY: Final = "*"
"""The name of the bucket of all actors."""
_NAME_LENGTH: Final = 16
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class SetLimit(Operation, frozen=True, tag="set_limit", kw_only=True):
    """Limit the changes of each actor, or of an environment; None lifts the limit."""

    whose: Whose
    limit: Limit | None

    def next(self, before: PolicyState | None, _earlier: Earlier, /) -> Limits:
        """Return the limits with this one."""
        return msgspec.structs.replace(_held(before), **{self.whose: self.limit})


def limits(store: Store) -> Limits:
    """Return the limits of an environment."""
    with checked_store(store).reading() as reading:
        return _held(reading.access.get(LIMITS))


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
    held = _held(reading.access.get(LIMITS))
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


def _held(state: PolicyState | None) -> Limits:
    return Limits() if state is None else decode_limits(state.policy)
