"""Grants and rate limits: roles of actors and limits of changes, as checked values.

An environment stores all its grants and limits in one document. Token buckets are exact: times are
whole microseconds.
"""

import math
import re
import unicodedata
from collections.abc import Collection, Mapping
from typing import Any, Final, Literal, TypeAlias, get_args

import msgspec
from msgspec import Struct

from flagkit._core.model.keys import KEY_LENGTH_MAX
from flagkit._core.model.values import Value, check_text
from flagkit.errors import InvalidDocumentError

Role: TypeAlias = Literal["viewer", "editor", "releaser", "admin"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)
ACTOR_LENGTH_MAX: Final = 200
ALTERED: Final = "They were changed past the writer: run flagkit ledger verify"
_NAMESPACE: Final = re.compile(r"[a-z0-9][a-z0-9_.-]*")
_INVISIBLE: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Characters that are invisible, although Unicode calls them printable."""


class Grant(Struct, frozen=True, order=True):
    """A role of an actor, for keys that begin with one of `namespaces`; without them, all keys."""

    actor: str
    role: Role
    namespaces: tuple[str, ...] = ()

    def covers(self, key: str) -> bool:
        """Return True if the grant applies to a key."""
        return not self.namespaces or key.startswith(self.namespaces)


class Grants(Struct, frozen=True):
    """All grants of an environment, in order; each actor has a role at most once."""

    grants: tuple[Grant, ...] = ()

    def with_grant(self, grant: Grant) -> "Grants":
        """Return these grants and another, in the place of one of the same actor and role."""
        others = self.without_role(grant.actor, grant.role).grants
        return Grants(tuple(sorted((*others, grant))))

    def without_role(self, actor: str, role: Role | None = None) -> "Grants":
        """Return these grants without a role of an actor, or without all of the actor's."""
        return Grants(
            tuple(
                grant
                for grant in self.grants
                if grant.actor != actor or role not in (None, grant.role)
            )
        )

    def list_scopes(self) -> set[tuple[str, str, str]]:
        """Return all there is as actor, role and namespace, "" for everywhere."""
        return {
            (grant.actor, grant.role, namespace)
            for grant in self.grants
            for namespace in grant.namespaces or ("",)
        }


def build_grant(actor: object, role: object, namespaces: Collection[str]) -> Grant:
    """Return a grant from a caller's arguments.

    Raises:
        InvalidDocumentError: there is no such role, or the actor or a namespace is not valid.
    """
    if isinstance(namespaces, str):
        raise InvalidDocumentError("namespaces", "is one text", f"Pass a list: [{namespaces!r}]")
    if not isinstance(namespaces, Collection):  # pyright: ignore[reportUnnecessaryIsInstance] - not all callers check types
        raise InvalidDocumentError(
            "namespaces", f"is {namespaces!r}", "Pass a list, such as ['shop.']"
        )
    for i, namespace in enumerate(namespaces):
        if not _is_namespace(namespace):
            raise InvalidDocumentError(
                f"namespaces[{i}]",
                f"{namespace!r} is nothing that keys begin with",
                "Write it as in checkout. or checkout.express; leave namespaces out for all",
            )
    return Grant(check_actor(actor), check_role(role), tuple(sorted(set(namespaces))))


def _is_namespace(given: object) -> bool:
    return (
        isinstance(given, str)
        and len(given) <= KEY_LENGTH_MAX
        and _NAMESPACE.fullmatch(given) is not None
    )


def check_actor(actor: object) -> str:
    """Return the name of an actor. Every way by which a name comes in calls this function.

    It refuses names that people could take for another name: those with characters that nobody
    sees, with a blank at either end, or not in Unicode's normal form NFC.

    Raises:
        InvalidDocumentError: that is no name.
    """
    name = check_granted_actor(actor)
    unseen = next(filter(_is_invisible, name), None)
    if unseen is not None:
        raise InvalidDocumentError(
            "actor",
            f"is {name!r}, which has the character U+{ord(unseen):04X}, which nobody sees",
            "Remove it",
        )
    if name != name.strip():
        raise InvalidDocumentError(
            "actor", f"is {name!r}, which begins or ends with a blank", "Remove the blank"
        )
    if not unicodedata.is_normalized("NFC", name):
        raise InvalidDocumentError(
            "actor",
            f"is {name!r}, which looks like another name",
            "Write it in Unicode's normal form NFC",
        )
    return name


def check_granted_actor(actor: object) -> str:
    """Return an actor's name as grants may have it, even if it would not be accepted today.

    Raises:
        InvalidDocumentError: it is too long or empty, so no role can have been granted to it.
    """
    name = check_stored_actor(actor)
    if not 0 < len(name) <= ACTOR_LENGTH_MAX:
        problem = f"has {len(name):,} characters" if name else "is ''"
        raise InvalidDocumentError(
            "actor", problem, f"Write a name of at most {ACTOR_LENGTH_MAX} characters"
        )
    return name


def check_stored_actor(actor: object) -> str:
    """Return a name that the database can hold, though it may be none that is taken today.

    Raises:
        InvalidDocumentError: no database can hold it.
    """
    if not isinstance(actor, str):
        raise InvalidDocumentError("actor", f"is {actor!r:.100}", "Write a name as text")
    return check_text(actor, "actor")


def _is_invisible(character: str) -> bool:
    # Control and format characters, separators other than the space, and unassigned code points.
    return not character.isprintable() or _INVISIBLE.match(character) is not None


def check_role(role: object) -> Role:
    """Return the name of a role, or raise InvalidDocumentError."""
    for known in ROLES:
        if role == known:
            return known
    raise InvalidDocumentError("role", f"{role!r} is no role", f"Write one of: {', '.join(ROLES)}")


def check_has_admin(grants: Grants) -> None:
    """Refuse grants that leave nobody who may change all of them.

    Raises:
        InvalidDocumentError: they do.
    """
    if not any(grant.role == "admin" and not grant.namespaces for grant in grants.grants):
        raise InvalidDocumentError(
            "grants",
            "would leave no admin of the whole environment",
            "Grant admin, without namespaces, to somebody before, or in the same change",
        )


def decode_grants(document: Mapping[str, Any]) -> Grants:
    """Return the grants of a stored document.

    Raises:
        InvalidDocumentError: it is no document of grants.
    """
    try:
        return Grants(msgspec.convert(document["grants"], tuple[Grant, ...]))
    except (KeyError, TypeError, msgspec.ValidationError) as error:
        raise InvalidDocumentError("grants", f"are none: {error}", ALTERED) from None


def encode_grants(grants: Grants) -> dict[str, Value]:
    """Return the document of grants."""
    listed: list[Value] = []
    for grant in grants.grants:
        namespaces: dict[str, Value] = (
            {"namespaces": [*grant.namespaces]} if grant.namespaces else {}
        )
        listed.append({"actor": grant.actor, "role": grant.role, **namespaces})
    return {"grants": listed}


LimitScope: TypeAlias = Literal["actor", "environment"]
LIMIT_SCOPES: Final[tuple[LimitScope, ...]] = get_args(LimitScope)
"""Each actor has a bucket of its own; all of an environment share another."""
CAPACITY_MAX: Final = 1_000_000
RATE_MIN, RATE_MAX = 1e-6, 1e6
_MICROSECONDS: Final = 1_000_000


class Limit(Struct, frozen=True):
    """A bucket of `capacity` tokens, refilled by `rate` a second. Each change takes one token.

    A single time stores the state of a bucket: when it is full again, in microseconds since 1970.
    """

    capacity: int
    rate: float

    def take_token(self, full_at: int, now: int) -> int:
        """Return when a bucket is full again from which a token is taken now."""
        return max(full_at, now) + self._interval

    def find_full_time(self, now: int) -> int:
        """Return when a bucket that is empty now is full again: no bucket can have less."""
        return now + self.capacity * self._interval

    def find_token_time(self, full_at: int) -> int:
        """Return when a bucket has a token."""
        return full_at - (self.capacity - 1) * self._interval

    @property
    def _interval(self) -> int:
        # Rounded up: a token may come too late, but never one too many.
        return math.ceil(_MICROSECONDS / self.rate)


class Limits(Struct, frozen=True, omit_defaults=True):
    """The limits of an environment, as far as it has any."""

    actor: Limit | None = None
    environment: Limit | None = None


def check_limit_scope(scope: object) -> LimitScope:
    """Return whose limit is meant, or raise InvalidDocumentError."""
    for known in LIMIT_SCOPES:
        if scope == known:
            return known
    raise InvalidDocumentError("whose", f"is {scope!r}", f"Write one of: {', '.join(LIMIT_SCOPES)}")


def build_limit(capacity: object, rate: object) -> Limit:
    """Return a limit from a caller's arguments.

    Raises:
        InvalidDocumentError: capacity or rate is not valid.
    """
    if type(capacity) is not int or not 1 <= capacity <= CAPACITY_MAX:
        raise InvalidDocumentError(
            "capacity", f"is {capacity!r}", f"Write how many changes: 1 to {CAPACITY_MAX:,}"
        )
    if type(rate) is bool or not isinstance(rate, int | float) or not RATE_MIN <= rate <= RATE_MAX:
        raise InvalidDocumentError("rate", f"is {rate!r}", "Write changes a second, such as 0.5")
    return Limit(capacity, float(rate))


def decode_limits(document: Mapping[str, Any]) -> Limits:
    """Return the limits of a stored document.

    Raises:
        InvalidDocumentError: it is no document of limits.
    """
    try:
        found = msgspec.convert(dict(document), Limits)
        for limit in (found.actor, found.environment):
            if limit is not None:
                build_limit(limit.capacity, limit.rate)
    except (TypeError, ValueError, msgspec.ValidationError) as error:
        raise InvalidDocumentError("limits", f"are none: {error}", ALTERED) from None
    return found


def encode_limits(limits: Limits) -> dict[str, Value]:
    """Return the document of limits."""
    document: dict[str, Value] = msgspec.to_builtins(limits)
    return document
