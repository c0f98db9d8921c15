"""Drafts: operations that are collected and become one revision.

A draft encrypts sensitive values at once, so neither an operation nor the audit holds them in the
clear.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

import msgspec
from msgspec import Struct

from flagkit._core.arguments import check_instance
from flagkit._core.model import EVERYWHERE, Flag, decode, encode
from flagkit._core.model.access import (
    Limit,
    LimitScope,
    Role,
    build_grant,
    build_limit,
    check_granted_actor,
    check_limit_scope,
    check_role,
)
from flagkit._core.model.changes import (
    GRANTS,
    LIMITS,
    SEGMENTS,
    PolicyChange,
    PolicyId,
    get_member_parts,
)
from flagkit._core.model.keys import check_key, check_region
from flagkit._core.model.segments import (
    decode_segment,
    encode_segment,
    generate_seed,
    get_key_lists,
    normalize_keys,
)
from flagkit._core.model.sensitive import EncryptedValue, SecretValue
from flagkit._core.model.values import INT64_MAX, INT64_MIN
from flagkit._core.secrets import DataKeys, encrypt_flag
from flagkit._core.storage.documents import EncodedPolicy
from flagkit._core.storage.store import Store
from flagkit.config import Settings
from flagkit.errors import InvalidArgumentError, InvalidDocumentError
from flagkit.writer.access import CommitPolicy
from flagkit.writer.ledger import format_differences
from flagkit.writer.operations import (
    ChangeMembers,
    Create,
    DeleteSegment,
    Edit,
    GrantRole,
    ListedKeys,
    Operation,
    RevokeRole,
    Rollback,
    RollbackAll,
    ServeVariant,
    SetLimit,
    SetRollout,
    SetSegment,
    SetState,
    Update,
    VariantName,
    Verb,
    normalize_policy,
)

if TYPE_CHECKING:
    from flagkit._core.storage.encryption import MongoDataKeys

_Document: TypeAlias = Mapping[str, Any]


class VariantEncrypter:
    """Encrypts for one draft, where there are keys; where there are none, what is encrypted stays.

    Whether that is right, nobody without keys can tell: so it has to be what the flag has already.
    """

    def __init__(self, environment: str, keys: DataKeys | None = None) -> None:
        self._environment = environment
        self._keys = keys
        self._unverified: set[tuple[str, str, str, bytes]] = set()

    def encrypt(self, document: _Document) -> _Document:
        """Return a policy document with all that is sensitive in it encrypted.

        Raises:
            InvalidDocumentError: it is not valid, or there are no keys to encrypt it with.
            EncryptionError, StoreError: the keys cannot be had.
        """
        if not _has_sensitive_variants(document):
            return document
        flag = decode(document, environment=self._environment)
        if self._keys is None:
            self._check_encrypted(flag)
        else:
            self._keys.fetch()
            flag = encrypt_flag(flag, self._environment, self._keys.encrypt, self._keys.decrypt)
        policy = dict(encode(flag))
        if "state" not in document:
            # To an update, that it is left out says something.
            del policy["state"]
        return policy

    def encrypt_results(
        self, function: Callable[[dict[str, Any]], _Document]
    ) -> Callable[[dict[str, Any]], _Document]:
        """Return a function whose documents are encrypted, of the same name."""

        @wraps(function, updated=())
        def build_once(document: dict[str, Any]) -> _Document:
            return self.encrypt(function(document))

        return build_once

    def check(self, changes: Iterable[PolicyChange]) -> None:
        """Refuse what came encrypted, and was neither checked nor is what a flag has already."""
        for change in changes if self._unverified else ():
            before = None if change.before is None else decode(change.before.policy, stored=True)
            for region, key, variant, ciphertext in sorted(self._unverified):
                if (region, key) != change.id:
                    continue
                held = None if before is None else before.variants.get(variant)
                if not isinstance(held, EncryptedValue) or held.ciphertext != ciphertext:
                    raise InvalidDocumentError(
                        f"variants.{variant}",
                        "is encrypted, and is not what the flag has there",
                        "Give the writer encryption=, by which it can check it, or leave it as"
                        " it is",
                        subject=f"flag {key!r}",
                    )

    def check_verified(self) -> None:
        """Refuse what came encrypted and was not checked, where nobody can ask what a flag has."""
        for _, key, variant, _ in sorted(self._unverified):
            raise InvalidDocumentError(
                f"variants.{variant}",
                "is encrypted, and who makes the change later cannot tell whether it is right",
                "Give the writer encryption=, or make the change outside of a transaction",
                subject=f"flag {key!r}",
            )

    def _check_encrypted(self, flag: Flag) -> None:
        for name in flag.sensitive:
            value = flag.variants[name]
            if isinstance(value, SecretValue):
                raise InvalidDocumentError(
                    f"variants.{name}",
                    "is sensitive, and this writer cannot encrypt it",
                    "Give it encryption=, or set FLAGKIT_LOCAL_KEY_PATH; docs/secrets.md says how",
                    subject=f"flag {flag.key!r}",
                )
            if isinstance(value, EncryptedValue):
                self._unverified.add((flag.region, flag.key, name, value.ciphertext))


def _has_sensitive_variants(document: object) -> bool:
    # What is no document is refused by who takes it for one.
    if not isinstance(document, Mapping):
        return False
    return bool(cast("Mapping[object, object]", document).get("sensitive"))


def build_data_keys(settings: Settings) -> "MongoDataKeys | None":
    """Return the data keys that settings lead to; None if they say nothing of encryption."""
    if settings.encryption is None:
        return None
    # Deferred: it loads the driver's cryptography, which takes longer than all the rest.
    from flagkit._core.storage.encryption import MongoDataKeys  # noqa: PLC0415

    return MongoDataKeys(
        settings.uri,
        settings.encryption,
        environment=settings.environment,
        database=settings.database,
    )


class Commit(Struct, frozen=True):
    """A committed change: its revision, the server's time of it (UTC), and the request's id.

    `changed` is False if nothing had to be changed and the change was to be skipped then. The
    revision and its time are those of the newest revision in that case.
    """

    revision: int
    time: datetime
    request: str
    changed: bool = True


class PendingChange:
    """A change that was asked for in a transaction.

    `request` names it: in any other process, `writer.pending.commit(request)` does the same.
    """

    def __init__(self, request: str, commit: Callable[[str, float], Commit]) -> None:
        self.request = request
        self._commit = commit

    def commit(self, timeout: float = 30.0) -> Commit:
        """Sequence the change, once its transaction is committed; return its Commit.

        Pending changes of the same flags that were asked for before it are sequenced before it.
        Called again, or where a sweep was first, it returns the same Commit.

        Raises:
            NotPendingError: its transaction is not committed, or was aborted; or it was dropped.
            WriteError, InvalidDocumentError: it was refused. What passes with time (a rate limit,
                a freeze) is tried again by sweeps; anything else only by `commit`.
            StoreUnavailableError: the database cannot be reached. The change is not lost.
        """
        return self._commit(self.request, timeout)

    def __repr__(self) -> str:
        return f"PendingChange({self.request!r})"


CHANGED_MEMBERS_MAX: Final = 10_000
RECORDED_MEMBERS_MAX: Final = 1_000
"""Longer lists of a segment's keys are recorded by their hashes alone."""
_SIDES: Final = ("include", "exclude", "remove")


class Preview(Struct, frozen=True):
    """The effect that a change would have on a revision.

    `committed_as` is the revision that the same request, by its idempotency key, has led to
    already: then it would do nothing. `notes` are consequences that the differences do not show:
    edits of a flag that would be resumed, made since it was last active; and flags that would open
    because a prerequisite of theirs is paused.
    """

    base_revision: int
    changes: tuple[PolicyChange, ...]
    committed_as: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def differences(self) -> tuple[str, ...]:
        """The differences in lines, as the ledger would show them."""
        return tuple(line for change in self.changes for line in format_differences(change))


class Draft:
    """Several operations that become one revision; `commit` is there once the block has ended.

    Of a block that was only looked at, it is `preview` that is there; in a transaction of the
    caller's, `pending`; and where it was proposed, `proposal`, which is its id.

    Each method checks what it is given at once, and changes nothing before the end of the block.
    """

    def __init__(self, environment: str, keys: DataKeys | None = None) -> None:
        self.encrypter = VariantEncrypter(environment, keys)
        self.operations: list[Operation] = []
        self.parts: dict[str, bytes] = {}
        self.listed_keys: dict[str, ListedKeys] = {}
        """The keys that documents of segments list, by the seeds that were made for them."""
        self.commit: Commit | None = None
        self.audit_form: list[dict[str, Any]] | None = None
        """The audit form of the operations, where it differs from them."""
        self.preencoded: Mapping[PolicyId, EncodedPolicy] = {}
        """The encoded states that the change will probably produce."""
        self.preview: Preview | None = None
        self.pending: PendingChange | None = None
        self.proposal: str | None = None
        self.commit_policy = CommitPolicy()
        self.bypass_reason = ""
        """Why the guards are passed by; empty where they are not."""
        self.should_skip_unchanged = False
        """True if a change without an effect makes no revision."""
        self._environment = environment

    def create(self, flag: Mapping[str, Any]) -> None:
        """Create a flag from its policy document."""
        policy, key, region = normalize_policy(self.encrypter.encrypt(flag), self._environment)
        self.operations.append(Create(policy=policy, key=key, region=region))

    def add_batch(
        self,
        operations: Iterable[Operation],
        audit_form: dict[str, Any],
        preencoded: Mapping[PolicyId, EncodedPolicy],
    ) -> None:
        """Do what was checked before; the audit has `audit_form` of it, as one operation."""
        self.operations += operations
        self.preencoded = preencoded
        self.audit_form = [audit_form]

    def update(
        self,
        flag: Mapping[str, Any],
        *,
        expected_version: int | None = None,
        reassign: bool = False,
    ) -> None:
        """Replace a flag's policy document; the document's key and region say which.

        Without `state` in it, the flag stays paused if it is. Weights that move keys from one
        treated variant to another are refused, unless `reassign` says that this is meant. Not
        treated is the `off` variant, or else the false one.
        """
        policy, key, region = normalize_policy(self.encrypter.encrypt(flag), self._environment)
        if "state" not in flag:
            del policy["state"]
        self.operations.append(
            Update(
                policy=policy,
                reassign=_check_reassign(reassign),
                key=key,
                region=region,
                expected_version=expected_version,
            )
        )

    def set_rollout(
        self,
        key: str,
        weights: Mapping[str, float] | float,
        *,
        rule: str | None = None,
        region: str = EVERYWHERE,
        expected_version: int | None = None,
        reassign: bool = False,
    ) -> None:
        """Change the weights, in percent, of a rule's rollout, or of the fallthrough's.

        A bare percentage is the share of the true variant of a boolean flag. For `reassign` see
        `update`.
        """
        self.operations.append(
            SetRollout(
                weights=_check_weights(weights),
                rule=_check_rule(rule),
                reassign=_check_reassign(reassign),
                key=check_key(key),
                region=check_region(region),
                expected_version=expected_version,
            )
        )

    def serve(
        self,
        key: str,
        variant: VariantName,
        *,
        rule: str | None = None,
        region: str = EVERYWHERE,
        expected_version: int | None = None,
    ) -> None:
        """Serve another variant to all, in a rule or the fallthrough that serves one variant.

        True and False stand for the variant of a boolean flag that has this value.

        That is a release. The kill switch is `pause`. A paused or archived flag is refused, since
        it serves its `off` variant whatever its rules say.
        """
        self.operations.append(
            ServeVariant(
                variant=_check_variant(variant),
                rule=_check_rule(rule),
                key=check_key(key),
                region=check_region(region),
                expected_version=expected_version,
            )
        )

    def edit(
        self,
        key: str,
        function: Callable[[dict[str, Any]], Mapping[str, Any]],
        *,
        region: str = EVERYWHERE,
        reassign: bool = False,
    ) -> None:
        """Replace a flag's policy document by what a function makes of it.

        Where another writer was first, the function is asked again, with the newer document: it is
        to be quick, and to do nothing else. What it is given has weights and no intervals, and is
        its own to change. For `reassign` see `update`.
        """
        self.operations.append(
            Edit(
                function=self.encrypter.encrypt_results(_check_callable(function)),
                environment=self._environment,
                reassign=_check_reassign(reassign),
                key=check_key(key),
                region=check_region(region),
            )
        )

    def pause(
        self, key: str, *, region: str = EVERYWHERE, expected_version: int | None = None
    ) -> None:
        """Pause a flag: it serves its `off` variant."""
        self._set_state("pause", key, region, expected_version)

    def resume(
        self, key: str, *, region: str = EVERYWHERE, expected_version: int | None = None
    ) -> None:
        """Make a paused flag active again."""
        self._set_state("resume", key, region, expected_version)

    def archive(
        self, key: str, *, region: str = EVERYWHERE, expected_version: int | None = None
    ) -> None:
        """Archive a flag: it serves its `off` variant, and neither pauses nor resumes."""
        self._set_state("archive", key, region, expected_version)

    def restore(
        self, key: str, *, region: str = EVERYWHERE, expected_version: int | None = None
    ) -> None:
        """Make an archived flag a paused one."""
        self._set_state("restore", key, region, expected_version)

    def delete(
        self, key: str, *, region: str = EVERYWHERE, expected_version: int | None = None
    ) -> None:
        """Delete an archived flag: checks answer with their callers' defaults.

        Created again, it goes on from the version that it had, its rollouts from their salts.
        """
        self._set_state("delete", key, region, expected_version)

    def rollback(
        self,
        key: str,
        *,
        to: int,
        region: str = EVERYWHERE,
        expected_version: int | None = None,
    ) -> None:
        """Give a flag the content that it had at revision `to`; a deleted one comes back."""
        self.operations.append(
            Rollback(
                to=_check_revision(to),
                key=check_key(key),
                region=check_region(region),
                expected_version=expected_version,
            )
        )

    def rollback_all(self, *, to: int) -> None:
        """Give all flags and segments the content that they had at revision `to`.

        What was created since is deleted, what was deleted comes back. Nothing else may be in the
        same change.
        """
        self.operations.append(RollbackAll(to=_check_revision(to)))

    def create_segment(self, segment: Mapping[str, Any]) -> None:
        """Create a segment from its document; `included` and `excluded` list keys of any number."""
        self._set_segment(segment, None, create=True)

    def update_segment(
        self, segment: Mapping[str, Any], *, expected_version: int | None = None
    ) -> None:
        """Replace a segment's document, its keys included.

        Lists of other keys than the segment has are hashed with a new seed.
        """
        self._set_segment(segment, expected_version, create=False)

    def change_members(
        self,
        key: str,
        *,
        include: Iterable[str | int] = (),
        exclude: Iterable[str | int] = (),
        remove: Iterable[str | int] = (),
        expected_version: int | None = None,
    ) -> None:
        """Move keys into a segment's included ones, its excluded ones, or out of both.

        The audit has them as they are, so they are at most CHANGED_MEMBERS_MAX at a time.
        """
        sides = [
            _normalize_keys(keys, name)
            for keys, name in zip((include, exclude, remove), _SIDES, strict=True)
        ]
        operation = ChangeMembers(
            include=sides[0],
            exclude=sides[1],
            remove=sides[2],
            key=check_key(key, kind="segment"),
            region=SEGMENTS,
            expected_version=expected_version,
        )
        if sum(map(len, sides)) > CHANGED_MEMBERS_MAX:
            raise InvalidDocumentError(
                "", f"has more than {CHANGED_MEMBERS_MAX:,} keys", "Make several changes of them"
            )
        if sum(map(len, sides)) != len(set[str]().union(*sides)):
            raise InvalidDocumentError(
                "", "has a key on two sides", "Include, exclude or remove it"
            )
        self.operations.append(operation)

    def rollback_segment(self, key: str, *, to: int, expected_version: int | None = None) -> None:
        """Give a segment the content that it had at revision `to`, its keys included."""
        self.operations.append(
            Rollback(
                to=_check_revision(to),
                key=check_key(key, kind="segment"),
                region=SEGMENTS,
                expected_version=expected_version,
            )
        )

    def grant(self, actor: str, role: Role, namespaces: Collection[str] = ()) -> None:
        """Grant a role on the keys that begin with one of `namespaces`, or on all.

        It replaces what the actor has of this role.
        """
        grant = build_grant(actor, role, namespaces)
        self.operations.append(
            GrantRole(
                actor=grant.actor,
                role=grant.role,
                namespaces=grant.namespaces,
                key=GRANTS[1],
                region=GRANTS[0],
            )
        )

    def revoke(self, actor: str, role: Role | None = None) -> None:
        """Take a role from an actor, or all roles.

        A name that would be refused today can be revoked as long as it holds a role.
        """
        taken = None if role is None else check_role(role)
        self.operations.append(
            RevokeRole(
                actor=check_granted_actor(actor), role=taken, key=GRANTS[1], region=GRANTS[0]
            )
        )

    def bypass_guards(self, reason: str) -> None:
        """Pass the writer's guards by. It is logged as a warning, and stands in the audit."""
        self.bypass_reason = _check_bypass_reason(reason)

    def set_limit(self, scope: LimitScope, *, capacity: int, rate: float) -> None:
        """Limit the changes of each actor, or of the whole environment.

        In every t seconds there are then at most `capacity` + `rate` * t of them, pauses and
        changes of access not counted.
        """
        self._set_limit(scope, build_limit(capacity, rate))

    def lift_limit(self, scope: LimitScope) -> None:
        """Limit them no more."""
        self._set_limit(scope, None)

    def _set_limit(self, scope: LimitScope, limit: Limit | None) -> None:
        region, key = LIMITS
        self.operations.append(
            SetLimit(whose=check_limit_scope(scope), limit=limit, key=key, region=region)
        )

    def rollback_grants(self, *, to: int) -> None:
        """Give back all roles as they were granted at revision `to`."""
        self.operations.append(Rollback(to=_check_revision(to), key=GRANTS[1], region=GRANTS[0]))

    def delete_segment(self, key: str, *, expected_version: int | None = None) -> None:
        """Delete a segment that no flag refers to."""
        self.operations.append(
            DeleteSegment(
                key=check_key(key, kind="segment"),
                region=SEGMENTS,
                expected_version=expected_version,
            )
        )

    def strip_seeds(self) -> list[Operation]:
        """Return the operations without what is random in them: the seeds of segments."""
        return [
            operation.strip_seed(self.listed_keys[operation.seed])
            if isinstance(operation, SetSegment) and operation.seed in self.listed_keys
            else operation
            for operation in self.operations
        ]

    def reuse_seeds(self, store: Store) -> None:
        """Keep the seeds of segments that have the listed keys already.

        The process that makes the change compares short lists itself. It does not have long ones,
        so they are compared here.
        """
        long = {
            place: (operation, lists)
            for place, operation in enumerate(self.operations)
            if isinstance(operation, SetSegment)
            and (lists := self.listed_keys.get(operation.seed)) is not None
            and lists.keys() != operation.keys.keys()
        }
        if not long:
            return
        with store.open_reader() as reading:
            held = reading.find_segments({operation.key for operation, _ in long.values()})
        for place, (operation, lists) in long.items():
            before = held.get(operation.policy_id)
            if before is not None:
                hashed = operation.carry_over_seed(before, lists)
                policy = dict(encode_segment(hashed.segment))
                if policy == operation.policy:
                    continue
                settled = msgspec.structs.replace(operation, policy=policy)
                self.operations[place] = settled
                self.listed_keys[settled.seed] = lists
                for part in get_member_parts(operation.policy):
                    self.parts.pop(part, None)
                self.parts |= hashed.parts

    def _set_state(self, verb: Verb, key: str, region: str, expected_version: int | None) -> None:
        self.operations.append(
            SetState(
                verb=verb,
                key=check_key(key),
                region=check_region(region),
                expected_version=expected_version,
            )
        )

    def _set_segment(
        self, document: Mapping[str, Any], expected_version: int | None, *, create: bool
    ) -> None:
        listed = get_key_lists(document)
        given = {**document, **listed} if listed else document
        hashed = decode_segment(given, environment=self._environment, seed=generate_seed())
        policy = dict(encode_segment(hashed.segment))
        self.parts |= hashed.parts
        few = {
            name: _normalize_keys(keys, name)
            for name, keys in listed.items()
            if len(keys) <= RECORDED_MEMBERS_MAX
        }
        operation = SetSegment(
            policy=policy,
            create=create,
            keys=few,
            taken_over=[side for side in ("included", "excluded") if side not in listed],
            key=hashed.segment.key,
            region=SEGMENTS,
            expected_version=expected_version,
        )
        self.operations.append(operation)
        if not operation.has_reused_keys:
            self.listed_keys[operation.seed] = listed


def _normalize_keys(keys: Iterable[object], path: str) -> tuple[str, ...]:
    """Return keys as the audit has them: sorted, each once, for a request may be sent again."""
    return tuple(sorted(set(normalize_keys(keys, path))))


def _check_revision(to: object) -> int:
    if isinstance(to, bool) or not isinstance(to, int) or not INT64_MIN <= to <= INT64_MAX:
        raise InvalidArgumentError(f"to is {to!r}: pass a revision, as in commit.revision")
    return to


def _check_bypass_reason(text: object) -> str:
    if not isinstance(text, str) or not text.strip():
        problem = "is empty" if isinstance(text, str) else f"is {text!r}"
        raise InvalidArgumentError(f"reason {problem}: write why the guards are bypassed")
    return text


def _check_rule(name: object) -> str | None:
    return (
        None
        if name is None
        else check_instance(name, str, "rule", "pass the name of a rule, or None")
    )


def _check_variant(variant: object) -> str | bool:
    if isinstance(variant, bool):
        return variant
    return check_instance(variant, str, "variant", "pass the name of a variant, or True or False")


def _check_reassign(reassign: object) -> bool:
    return check_instance(reassign, bool, "reassign", "pass True or False")


def _check_weights(given: object) -> dict[str, float] | float:
    if isinstance(given, Mapping):
        return dict(cast("Mapping[str, float]", given))
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise InvalidDocumentError(
            "weights",
            f"is {given!r}",
            'Write weights in percent by variant, such as {"on": 10, "off": 90}, or a percentage',
        )
    return given


def _check_callable(function: Callable[[dict[str, Any]], Mapping[str, Any]]) -> Callable[..., Any]:
    if not callable(function):
        raise InvalidArgumentError(
            f"function is {function!r}: pass a function that takes and returns a document"
        )
    return function
