"""Operations: what a writer can be asked for. Each maps the state of a policy to the next state.

docs/writing.md has the same table for people, and a test compares the two. An operation checks its
documents when it is made, so bad input is refused before anything is read or written. Its result is
the same on every attempt, whatever the revision.

A rollback restores content and salts, never version, time or actor, and is checked like any change.

The class of an operation declares all of it: its fields, its effect (`apply`), whether its audit
form can be read back, and the sentence that people read in the ledger. OPERATIONS finds all
classes.

The audit form of an operation reads back as an equal operation with an equal digest. The function
of an edit cannot be stored, so the audit has only its name.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import reduce
from types import GenericAlias
from typing import Any, ClassVar, Final, Literal, Protocol, TypeAlias, cast, get_args

import msgspec
from msgspec import Struct

from flagkit._core.model import EVERYWHERE, Flag, Serve, decode, encode
from flagkit._core.model.access import (
    Grant,
    Grants,
    Limit,
    Limits,
    LimitScope,
    Role,
    check_actor,
    decode_grants,
    decode_limits,
)
from flagkit._core.model.changes import (
    ACCESS,
    SEGMENTS,
    Cut,
    PolicyId,
    PolicyState,
    decode_cut,
)
from flagkit._core.model.documents import State
from flagkit._core.model.flags import build_boolean_weights, check_variant, get_boolean_variant
from flagkit._core.model.segments import (
    PUBLIC_SEED,
    Segment,
    SegmentWithMembers,
    decode_segment,
    edit_keys,
    encode_segment,
    hash_keys,
)
from flagkit._core.storage.policy_history import PolicyHistory
from flagkit._core.suggestions import suggested
from flagkit.errors import (
    FlagExistsError,
    FlagNotFoundError,
    GrantNotFoundError,
    InvalidArgumentError,
    InvalidDocumentError,
    RevisionNotFoundError,
    SegmentNotFoundError,
    VersionConflictError,
    WriteError,
)
from flagkit.writer.assignments import RolloutCarryOver

Verb: TypeAlias = Literal["pause", "resume", "archive", "restore", "delete"]
FlagState: TypeAlias = Literal["active", "paused", "archived", "absent"]
"""A flag's state, or that there is none; a deleted flag is absent, too."""

AS_WRITTEN: Final = "as written"
"""The state that the document says; an update of one that says none leaves it as it is."""
AS_BEFORE: Final = "as it was"

TRANSITIONS: Final[Mapping[str, Mapping[FlagState, str]]] = {
    "create": {"absent": AS_WRITTEN},
    "update": {"active": AS_WRITTEN, "paused": AS_WRITTEN, "archived": AS_WRITTEN},
    "pause": {"active": "paused", "paused": "paused"},
    "resume": {"active": "active", "paused": "active"},
    "archive": {"active": "archived", "paused": "archived", "archived": "archived"},
    "restore": {"paused": "paused", "archived": "paused"},
    "delete": {"archived": "absent"},
    "rollback": {
        "active": AS_BEFORE,
        "paused": AS_BEFORE,
        "archived": AS_BEFORE,
        "absent": AS_BEFORE,
    },
}
"""By verb and standing, what a flag's state becomes; what is not here is refused."""

_REMEDIES: Final[Mapping[tuple[Verb, State], str]] = {
    ("pause", "archived"): "Restore it first: it is paused then",
    ("resume", "archived"): "Restore it first, then resume it",
    ("restore", "active"): "It needs no restoring; to switch it off, pause it",
    ("delete", "active"): "Archive it first: it serves its off variant then, to who still asks",
    ("delete", "paused"): "Archive it first",
}


def get_next_state(verb: Verb, key: str, state: State) -> FlagState:
    """Return what a flag's state becomes by a verb.

    Raises:
        InvalidDocumentError: it may not become that from where it is.
    """
    after = TRANSITIONS[verb].get(state)
    if after is None:
        raise InvalidDocumentError(
            "state", f"of {key} is {state}", _REMEDIES[verb, state], subject=f"flag {key!r}"
        )
    return _FLAG_STATES[after]


_FLAG_STATES: Final[Mapping[str, FlagState]] = {
    "active": "active",
    "paused": "paused",
    "archived": "archived",
    "absent": "absent",
}


ListedKeys: TypeAlias = Mapping[str, Sequence[Any]]
"""The keys that a segment's document lists, by `included` and `excluded`."""


class PolicyLookup(Protocol):
    """Looks up what an environment has besides its newest states."""

    @property
    def now(self) -> datetime:
        """The server's time."""
        ...

    def find_state(self, policy: PolicyId, revision: int) -> PolicyState | None:
        """Return the state that a flag or a segment had at a revision."""
        ...

    def find_last_state(self, policy: PolicyId) -> PolicyState | None:
        """Return the state that a flag or a segment had when it was deleted, None if it was not."""
        ...

    def find_base_flag(self, key: str) -> PolicyState | None:
        """Return the state of the flag of all regions, which an override of one region hides."""
        ...

    def find_similar_keys(self, policy: PolicyId) -> Iterable[str]:
        """Return keys of flags, or of segments, among them those that are near to a key."""
        ...

    def find_author(self, policy: PolicyId) -> tuple[str, datetime] | None:
        """Return who changed a flag or a segment last, and when."""
        ...

    def read_parts(self, names: Iterable[str]) -> Mapping[str, bytes]:
        """Return parts of members, by their SHA-256, as far as they are there."""
        ...

    def find_listed_keys(self, seed: str) -> ListedKeys | None:
        """Return the keys of the document that a seed was made for; None if they are not known."""
        ...


PolicyValue: TypeAlias = Flag | SegmentWithMembers | Grants | Limits | Cut
AuditForm: TypeAlias = Mapping[str, Any]
"""The fields of an operation in the audit, with its tag as `operation`."""


class Operation(Struct, frozen=True, tag_field="operation", kw_only=True):
    """One step of a change.

    If `expected_version` is given, the flag must have this version.
    """

    is_readable: ClassVar[bool] = True
    """True if the audit form reads back as an equal operation, which proposals need."""
    actions: ClassVar[tuple[str, ...] | None] = None
    """The names by which people find it in the ledger; None if that is the tag."""

    key: str
    region: str = EVERYWHERE
    expected_version: int | None = None

    def __post_init__(self) -> None:
        if self.expected_version is not None:
            _check_version(self.expected_version)

    @property
    def policy_id(self) -> PolicyId:
        """The flag, or segment, that it is about."""
        return (self.region, self.key)

    def apply(self, before: PolicyState | None, lookup: PolicyLookup, /) -> PolicyValue | None:
        """Return the flag, segment, grants or limits after this operation; None if deleted.

        Raises:
            WriteError, NotFoundError: it cannot follow the state before.
        """
        raise NotImplementedError

    def find_packed_document(self, _value: PolicyValue) -> bytes | None:
        """Return the document of what was made in MessagePack, if it is known already."""
        return None

    @classmethod
    def get_action(cls, recorded: AuditForm) -> str:
        """Return the name by which people find an operation in the ledger."""
        return str(recorded["operation"]).replace("_", "-")

    @classmethod
    def describe(cls, recorded: AuditForm) -> str:
        """Return an operation as a sentence for people, such as "pause shop.search in eu"."""
        region = recorded["region"]
        where = "" if region in (EVERYWHERE, SEGMENTS, ACCESS) else f" in {region}"
        return cls._describe(recorded) + where

    @classmethod
    def _describe(cls, recorded: AuditForm) -> str:
        return f"{cls.get_action(recorded).replace('-', ' ')} {recorded['key']}"

    def _get_existing(self, before: PolicyState | None, lookup: PolicyLookup) -> PolicyState:
        if before is None and self.region == ACCESS:
            raise GrantNotFoundError("there are no grants yet: grant admin first, to somebody")
        if before is None:
            what = "segment" if self.region == SEGMENTS else "flag"
            where = "" if self.region in (EVERYWHERE, SEGMENTS) else f" in region {self.region}"
            sentence = f"there is no {what} {self.key!r}{where}: check the key, or create it first"
            near = lookup.find_similar_keys(self.policy_id)
            kind = SegmentNotFoundError if self.region == SEGMENTS else FlagNotFoundError
            raise kind(suggested(sentence, self.key, near))
        self._check_version(before, lookup)
        return before

    def _check_version(self, before: PolicyState, lookup: PolicyLookup) -> None:
        if self.expected_version not in (None, before.version):
            raise VersionConflictError(
                self.key,
                self.expected_version or 0,
                before.version,
                lookup.find_author(self.policy_id),
            )

    def _get_existing_flag(self, before: PolicyState | None, lookup: PolicyLookup) -> Flag:
        return decode(self._get_existing(before, lookup).policy, stored=True)


def _check_version(expected: object) -> None:
    if isinstance(expected, bool) or not isinstance(expected, int):
        raise InvalidArgumentError(
            f"expected_version is {expected!r}: pass the number of a version, or None"
        )


class Create(Operation, frozen=True, tag="create", kw_only=True):
    """Create a flag. Rollouts of one that was deleted go on where they were, salts included."""

    policy: dict[str, Any]

    def apply(self, before: PolicyState | None, lookup: PolicyLookup, /) -> Flag:
        """Return the new flag."""
        if before is not None:
            raise FlagExistsError(
                f"the flag {self.key!r} is there already, at version {before.version}: update it"
            )
        return carry_over_to_new_flag(decode(self.policy), lookup)


class Update(Operation, frozen=True, tag="update", kw_only=True):
    """Replace a flag's document.

    Rollouts that stay keep their keys as far as the weights allow, and a document without a state
    leaves the flag's as it is: the next deployment must not end a pause. Keys pass from one treated
    variant to another only if `reassign` says so.
    """

    policy: dict[str, Any]
    reassign: bool = False

    def apply(self, before: PolicyState | None, lookup: PolicyLookup, /) -> Flag:
        """Return the flag with the new document, its rollouts led on from the old ones."""
        old = self._get_existing_flag(before, lookup)
        return _update_flag(old, self.policy, lookup.now, reassign=self.reassign)


class SetRollout(Operation, frozen=True, tag="set_rollout", kw_only=True):
    """Change the weights of a rollout: of the rule so named, or of the fallthrough."""

    weights: dict[str, float] | float
    rule: str | None = None
    reassign: bool = False

    def apply(self, before: PolicyState | None, lookup: PolicyLookup, /) -> Flag:
        """Return the flag with the new weights, and as few moved keys as can be."""
        flag = self._get_existing_flag(before, lookup)
        document = encode(flag)
        part = _get_rule_part(document, self.rule, self.key)
        weights = self.weights
        if not isinstance(weights, dict):
            weights = build_boolean_weights(weights, flag.variants, "weights")
        if "serve" in part:
            ruled = ", ".join(
                rule.name for rule in flag.rules if not isinstance(rule.serves, Serve)
            )
            other = f"name a rule that has a rollout (rules: {ruled}), or " if ruled else ""
            raise InvalidDocumentError(
                "rule",
                f"{self.rule or 'fallthrough'!r} of {self.key} serves {part['serve']!r} to all",
                f"To serve another variant to all, {other}use serve, or flagkit flags enable and"
                " disable. To begin a rollout, update the document",
            )
        rollout = part.pop("rollout", None) or part.pop("ramp")
        part["rollout"] = {name: rollout[name] for name in ("by", "salt") if name in rollout}
        part["rollout"]["weights"] = weights
        return _update_flag(flag, document, lookup.now, reassign=self.reassign)

    @classmethod
    def _describe(cls, recorded: AuditForm) -> str:
        weights: Mapping[str, float] | float = recorded["weights"]
        rule = recorded.get("rule")
        pairs = weights.items() if isinstance(weights, Mapping) else [("", weights)]
        listed = ", ".join(f"{variant} {weight:g} %".lstrip() for variant, weight in pairs)
        place = "" if rule is None else f" rule {rule}"
        return f"set rollout {recorded['key']}{place} to {listed}"


VariantName: TypeAlias = "str | bool"
"""The name of a variant. True and False stand for the one with this value, of a boolean flag."""


class ServeVariant(Operation, frozen=True, tag="serve", kw_only=True):
    """Serve another variant to all, in a rule or the fallthrough that serves one variant."""

    variant: VariantName
    rule: str | None = None

    def apply(self, before: PolicyState | None, lookup: PolicyLookup, /) -> Flag:
        """Return the flag that serves the variant."""
        flag = self._get_existing_flag(before, lookup)
        if flag.state != "active":
            first = "Resume it" if flag.state == "paused" else "Restore it, then resume it"
            raise InvalidDocumentError(
                "state",
                f"of {self.key} is {flag.state}: it serves its off variant to all",
                f"{first}: flagkit flags resume {self.key}",
                subject=f"flag {self.key!r}",
            )
        variant = self.variant
        if isinstance(variant, bool):
            variant = get_boolean_variant(variant, flag.variants, "variant")
        check_variant(variant, flag.variants, "variant")
        document = encode(flag)
        part = _get_rule_part(document, self.rule, self.key)
        if "serve" not in part:
            kind = "rollout" if "rollout" in part else "ramp"
            raise InvalidDocumentError(
                "rule",
                f"{self.rule or 'fallthrough'!r} of {self.key} has a {kind}",
                "Set its weights with set_rollout, or update the document",
                subject=f"flag {self.key!r}",
            )
        part["serve"] = variant
        return _update_flag(flag, document, lookup.now, reassign=False)

    @classmethod
    def _describe(cls, recorded: AuditForm) -> str:
        variant, rule = recorded["variant"], recorded.get("rule")
        name = str(variant).lower() if variant in (True, False) else variant
        place = "" if rule is None else f" in rule {rule}"
        return f"serve {recorded['key']} {name}{place}"


class Edit(Operation, frozen=True, tag="edit", kw_only=True):
    """Replace a flag's document by the result of a function.

    Each attempt calls the function, so that it always gets the document that it changes. The audit
    has its name, and the ledger has its result.
    """

    is_readable = False

    function: Callable[[dict[str, Any]], Mapping[str, Any]]
    environment: str
    reassign: bool = False

    def apply(self, before: PolicyState | None, lookup: PolicyLookup, /) -> Flag:
        """Return the flag with the new document, its rollouts led on from the old ones."""
        old = self._get_existing_flag(before, lookup)
        result = self.function(to_written_document(old))
        policy, key, region = normalize_policy(result, self.environment)
        if (region, key) != self.policy_id:
            raise InvalidDocumentError(
                "key" if key != self.key else "region",
                "was edited, and is what the flag is known by",
                "Create another flag, and archive this one",
                subject=f"flag {self.key!r}",
            )
        if "state" not in result:
            del policy["state"]
        return _update_flag(old, policy, lookup.now, reassign=self.reassign)

    @classmethod
    def _describe(cls, recorded: AuditForm) -> str:
        return f"edit {recorded['key']} by {recorded['function']}"


class SetState(Operation, frozen=True, tag="set_state", kw_only=True):
    """Pause, resume, archive or restore a flag, or delete it."""

    actions: ClassVar[tuple[str, ...] | None] = get_args(Verb)

    verb: Verb

    def apply(self, before: PolicyState | None, lookup: PolicyLookup, /) -> Flag | None:
        """Return the flag in the new state; None if it is deleted."""
        flag = self._get_existing_flag(before, lookup)
        after = get_next_state(self.verb, self.key, flag.state)
        return None if after == "absent" else msgspec.structs.replace(flag, state=after)

    @classmethod
    def get_action(cls, recorded: AuditForm) -> str:
        """Return the verb."""
        return str(recorded["verb"])


class DeleteSegment(Operation, frozen=True, tag="delete_segment", kw_only=True):
    """Delete a segment."""

    def apply(self, before: PolicyState | None, lookup: PolicyLookup, /) -> None:
        """Return None."""
        self._get_existing(before, lookup)


class SetSegment(Operation, frozen=True, tag="set_segment", kw_only=True):
    """Create a segment, or replace it: whichever `create` says.

    `policy` has a new seed, unless it takes hashed keys over. `keys` are those that the document
    listed, if they are few enough to be recorded; `taken_over` names the sides that it did not
    list.
    """

    actions: ClassVar[tuple[str, ...] | None] = ("create-segment", "update-segment")

    policy: dict[str, Any]
    create: bool
    keys: dict[str, tuple[str, ...]] = {}
    taken_over: list[str] = []

    @property
    def seed(self) -> str:
        """The seed in the document; empty where it is the public one."""
        return str(self.policy.get("seed", ""))

    @property
    def has_reused_keys(self) -> bool:
        """True if the document has hashed keys of the segment."""
        return any(side in self.policy for side in self.taken_over)

    def apply(self, before: PolicyState | None, lookup: PolicyLookup, /) -> SegmentWithMembers:
        """Return the segment with the new document.

        Where the segment has the listed keys already, it keeps its seed.
        """
        if not self.create:
            self._get_existing(before, lookup)
        elif before is not None:
            raise FlagExistsError(
                f"the segment {self.key!r} is there already, at version {before.version}: update it"
            )
        held = before.policy if before is not None else {}
        for side in self.taken_over:
            # Whether hashed keys are what they say, only the writer that hashed them knows.
            if side in self.policy and self.policy[side] != held.get(side):
                raise InvalidDocumentError(
                    side,
                    "are hashed keys, and not those that the segment has",
                    "List the keys themselves",
                    subject=f"segment {self.key!r}",
                )
        if self.has_reused_keys and self.policy.get("seed") != held.get("seed"):
            raise InvalidDocumentError(
                "seed",
                "is not the one that the segment's keys are hashed with",
                "Write the seed that `flagkit segments show KEY --output policy` shows, or list the"
                " keys themselves",
                subject=f"segment {self.key!r}",
            )
        if before is None:
            return decode_segment(self.policy, stored=True)
        return self.carry_over_seed(before, lookup.find_listed_keys(self.seed))

    def carry_over_seed(self, before: PolicyState, listed: ListedKeys | None) -> SegmentWithMembers:
        """Return the segment, with the seed that it had if its keys are the same.

        Args:
            before: The segment as it is.
            listed: What the document listed, if that is known. Otherwise `keys` are looked at.
        """
        result = decode_segment(self.policy, stored=True)
        if not self.has_reused_keys:
            held = decode_segment(before.policy, stored=True).segment
            same_size = all(
                now.count == then.count
                for now, then in (
                    (result.segment.included, held.included),
                    (result.segment.excluded, held.excluded),
                )
            )
            if same_size:
                document = {**self.policy, **(self.keys if listed is None else listed)}
                again = decode_segment(document, seed=held.seed)
                if has_same_keys(again.segment, held):
                    return again
        return result

    def strip_seed(self, listed: ListedKeys) -> "SetSegment":
        """Return the same operation with the public seed, which is equal each time it is asked."""
        segment = decode_segment({**self.policy, **listed}).segment
        return msgspec.structs.replace(self, policy=dict(encode_segment(segment)))

    @classmethod
    def get_action(cls, recorded: AuditForm) -> str:
        """Return the action for the value of `create`."""
        return "create-segment" if recorded["create"] else "update-segment"


def has_same_keys(new: Segment, previous: Segment) -> bool:
    """Tell whether a segment that was hashed with the seed of another one has the same keys.

    Keys that were hashed with the public seed are always others: listed again, they get a new one.
    """
    if (new.included, new.excluded) != (previous.included, previous.excluded):
        return False
    has_keys = bool(previous.included.count or previous.excluded.count)
    return new.seed == previous.seed and not (has_keys and previous.seed == PUBLIC_SEED)


class ChangeMembers(Operation, frozen=True, tag="change_members", kw_only=True):
    """Move keys into a segment's included ones, its excluded ones, or out of both."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()

    def apply(self, before: PolicyState | None, lookup: PolicyLookup, /) -> SegmentWithMembers:
        """Return the segment with the keys where they belong, all others where they are."""
        segment = decode_segment(self._get_existing(before, lookup).policy, stored=True).segment
        include = hash_keys(self.include, "include", segment.seed)
        exclude = hash_keys(self.exclude, "exclude", segment.seed)
        remove = hash_keys(self.remove, "remove", segment.seed)
        included, result = edit_keys(segment.included, include, exclude | remove, lookup.read_parts)
        excluded, more = edit_keys(segment.excluded, exclude, include | remove, lookup.read_parts)
        after = msgspec.structs.replace(segment, included=included, excluded=excluded)
        return SegmentWithMembers(after, result | more)

    @classmethod
    def _describe(cls, recorded: AuditForm) -> str:
        counts = [f"{len(recorded[side])} {side}d" for side in ("include", "exclude", "remove")]
        return f"change members of {recorded['key']}: {', '.join(counts)}"


def normalize_policy(
    document: Mapping[str, Any], environment: str
) -> tuple[dict[str, Any], str, str]:
    """Return a policy document in its canonical form, intervals included, with its key and region.

    Raises:
        InvalidDocumentError: with the path of the fault and the remedy.
    """
    flag = decode(document, environment=environment)
    return dict(encode(flag)), flag.key, flag.region


def _get_rule_part(document: Mapping[str, Any], rule: str | None, key: str) -> dict[str, Any]:
    """Return the part of a flag's document for a rule, or for the fallthrough if none is named."""
    if rule is None:
        part: dict[str, Any] = document["fallthrough"]
        return part
    parts: dict[str, dict[str, Any]] = {part["name"]: part for part in document.get("rules", [])}
    if rule not in parts:
        raise InvalidDocumentError(
            "rule",
            f"{rule!r} is not a rule of {key}",
            suggested(f"It has: {', '.join(parts) or 'no rules'}", rule, parts),
        )
    return parts[rule]


def carry_over_to_new_flag(new: Flag, lookup: PolicyLookup) -> Flag:
    """Return a flag that is created, its rollouts led on from what its callers were served before.

    An override goes on from the flag of all regions. A flag that was deleted goes on from its last
    state, and keeps its salts.
    """
    moment = lookup.now.timestamp()
    hidden = lookup.find_base_flag(new.key) if new.region != EVERYWHERE else None
    if hidden is not None:
        return RolloutCarryOver(
            decode(hidden.policy, stored=True), new, moment, reassign=True
        ).carry_over()
    last = lookup.find_last_state((new.region, new.key))
    if last is None:
        return new
    lead = RolloutCarryOver(decode(last.policy, stored=True), new, moment, reassign=True)
    return lead.carry_over(keep_salts=True)


def _update_flag(old: Flag, policy: Mapping[str, Any], now: datetime, *, reassign: bool) -> Flag:
    """Return a flag with a new document, its rollouts led on from the old ones."""
    new = decode(policy)
    if "state" not in policy:
        new = msgspec.structs.replace(new, state=old.state)
    return RolloutCarryOver(old, new, now.timestamp(), reassign).carry_over()


def to_written_document(flag: Flag) -> dict[str, Any]:
    """Return a flag's document without intervals: weights alone say what people mean."""
    document: dict[str, Any] = dict(encode(flag))
    for part in (*document.get("rules", ()), document["fallthrough"]):
        part.get("rollout", {}).pop("intervals", None)
    return document


class Rollback(Operation, frozen=True, tag="rollback", kw_only=True):
    """Give a flag, or a segment, the content that it had at a revision; deleted ones come back.

    A deleted one has the version that it had last.
    """

    to: int

    def apply(self, before: PolicyState | None, lookup: PolicyLookup, /) -> PolicyValue:
        """Return the flag, segment or grants as it was; never its version, which goes on."""
        last = lookup.find_last_state(self.policy_id) if before is None else None
        if last is None:
            self._get_existing(before, lookup)
        else:
            self._check_version(last, lookup)
        then = lookup.find_state(self.policy_id, self.to)
        if then is None:
            if self.region == ACCESS:
                raise RevisionNotFoundError(f"nothing was granted yet at revision {self.to}")
            raise RevisionNotFoundError(f"{self.key!r} did not exist at revision {self.to}")
        return _decode_policy(self.region, then.policy)

    @classmethod
    def _describe(cls, recorded: AuditForm) -> str:
        policy = "all grants" if recorded["region"] == ACCESS else recorded["key"]
        return f"rollback {policy} to revision {recorded['to']}"


class RollbackAll(Operation, frozen=True, tag="rollback_all", kw_only=True):
    """Give a whole environment the content that it had at a revision; see `expand_operations`."""

    key: str = ""
    to: int

    @classmethod
    def _describe(cls, recorded: AuditForm) -> str:
        return f"rollback everything to revision {recorded['to']}"


class Reinstate(Operation, frozen=True, tag="reinstate", kw_only=True):
    """Give a flag, or a segment, some content, or delete it if there is none. Never recorded."""

    is_readable = False
    actions: ClassVar[tuple[str, ...] | None] = ()

    policy: dict[str, Any] | None

    def apply(self, _before: PolicyState | None, _lookup: PolicyLookup, /) -> PolicyValue | None:
        """Return the flag, or segment, of that content."""
        return None if self.policy is None else _decode_policy(self.region, self.policy)


def expand_operations(
    operations: Sequence[Operation], history: PolicyHistory, revision: int
) -> Sequence[Operation]:
    """Return operations on single flags and segments, whatever some operations are on.

    Args:
        operations: What is asked for.
        history: What led to where the environment stands.
        revision: Where that is.

    Raises:
        RevisionNotFoundError: an environment is to be as at a revision that there is not, or not
            any more.
        InvalidDocumentError: with it something else is asked for.
    """
    whole = next((asked for asked in operations if isinstance(asked, RollbackAll)), None)
    if whole is None:
        return operations
    if len(operations) > 1:
        raise InvalidDocumentError(
            "", "rolls back the environment, and does more", "Make two changes of it"
        )
    if not 0 <= whole.to <= revision:
        raise RevisionNotFoundError(f"there is no revision {whole.to}: the newest is {revision}")
    history.check_within_retention(whole.to)
    then: dict[PolicyId, PolicyState | None] = {}
    unledgered = history.tip_not_in_ledger
    later = () if unledgered is None or unledgered.revision <= whole.to else (unledgered,)
    for changes in (history.iter_changes(whole.to), later):
        for change in changes:
            for policy in change.policies:
                if policy.id[0] == ACCESS:
                    # Who was revoked since does not come back with the flags.
                    continue
                # What the first change after the revision found is what was there at it.
                then.setdefault(policy.id, policy.before)
    return [
        Reinstate(key=key, region=region, policy=None if state is None else state.policy)
        for (region, key), state in then.items()
    ]


def _decode_policy(region: str, policy: dict[str, Any]) -> PolicyValue:
    if region == ACCESS:
        return decode_grants(policy)
    decoded = decode_segment if region == SEGMENTS else decode
    return decoded(policy, stored=True)


class GrantRole(Operation, frozen=True, tag="grant", kw_only=True):
    """Grant a role, in the place of what the actor has of it."""

    actor: str
    role: Role
    namespaces: tuple[str, ...]

    def apply(self, before: PolicyState | None, _earlier: PolicyLookup, /) -> Grants:
        """Return the grants with this one."""
        return get_grants(before).with_grant(Grant(self.actor, self.role, self.namespaces))

    @classmethod
    def _describe(cls, recorded: AuditForm) -> str:
        listed = ", ".join(recorded["namespaces"])
        where = f" on {listed}" if listed else ""
        return f"grant {recorded['role']} to {recorded['actor']}{where}"


class RevokeRole(Operation, frozen=True, tag="revoke", kw_only=True):
    """Take a role from an actor, or all roles."""

    actor: str
    role: Role | None

    def apply(self, before: PolicyState | None, _earlier: PolicyLookup, /) -> Grants:
        """Return the grants without it.

        Raises:
            InvalidDocumentError: the actor holds no role, and that is no name of an actor.
        """
        held = get_grants(before)
        if all(grant.actor != self.actor for grant in held.grants):
            check_actor(self.actor)
        return held.without_role(self.actor, self.role)

    @classmethod
    def _describe(cls, recorded: AuditForm) -> str:
        return f"revoke {recorded['role'] or 'all roles'} of {recorded['actor']}"


def get_grants(state: PolicyState | None) -> Grants:
    """Return the grants that a state holds, none where there is no state."""
    return Grants() if state is None else decode_grants(state.policy)


class SetLimit(Operation, frozen=True, tag="set_limit", kw_only=True):
    """Limit the changes of each actor, or of an environment; None lifts the limit."""

    whose: LimitScope
    limit: Limit | None

    def apply(self, before: PolicyState | None, _earlier: PolicyLookup, /) -> Limits:
        """Return the limits with this one."""
        return msgspec.structs.replace(get_limits(before), **{self.whose: self.limit})

    @classmethod
    def _describe(cls, recorded: AuditForm) -> str:
        whose = "each actor" if recorded["whose"] == "actor" else "all"
        limit = recorded["limit"]
        to = f"{limit['capacity']} and {limit['rate']} a second" if limit else "any number"
        return f"set limit of {whose} to {to}"


def get_limits(state: PolicyState | None) -> Limits:
    """Return the limits that a state holds, none where there is no state."""
    return Limits() if state is None else decode_limits(state.policy)


class UpsertFlag(Operation, frozen=True, tag="import", kw_only=True, gc=False):
    """Create a flag, or update it if it exists. An import consists of these.

    `packed` is the flag's document. If `has_state` is false, the flag keeps its state.
    """

    is_readable = False

    flag: Flag
    packed: bytes
    has_state: bool
    reassign: bool = False

    def apply(self, before: PolicyState | None, lookup: PolicyLookup, /) -> Flag:
        """Return the flag, its rollouts carried over from the flag that exists."""
        if before is None:
            return carry_over_to_new_flag(self.flag, lookup)
        old, moment = decode(before.policy, stored=True), lookup.now.timestamp()
        new = self.flag if self.has_state else msgspec.structs.replace(self.flag, state=old.state)
        return RolloutCarryOver(old, new, moment, self.reassign).carry_over()

    def find_packed_document(self, value: PolicyValue) -> bytes | None:
        """Return the flag's document, unless the carry-over changed the flag."""
        return self.packed if value is self.flag else None

    @classmethod
    def encode_batch(
        cls, upserts: Iterable["UpsertFlag"], number: int, total: int
    ) -> dict[str, Any]:
        """Return the audit form of a batch of an import.

        It is one for all flags: their keys, and a digest of their documents.
        """
        digest, names = hashlib.sha256(), list[str]()
        for put in upserts:
            digest.update(put.packed)
            names.append(put.key if put.region == EVERYWHERE else f"{put.key} in {put.region}")
        return {
            "operation": cls.__struct_config__.tag,
            "key": "",
            "region": EVERYWHERE,
            "batch": number,
            "of": total,
            "digest": digest.hexdigest(),
            "flags": names,
        }

    @classmethod
    def _describe(cls, recorded: AuditForm) -> str:
        batch = f"batch {recorded['batch']} of {recorded['of']}"
        return f"import {len(recorded['flags']):,} flags, {batch}"


class Prune(Operation, frozen=True, tag="prune", kw_only=True):
    """Cut the ledger as `policy` says, if it says so, and put on record what else goes.

    `to` is where the ledger is cut. `removed` has the moments before which other things go.
    """

    is_readable = False

    to: int
    policy: dict[str, Any] | None
    removed: dict[str, str]
    environment: str

    def apply(self, before: PolicyState | None, _earlier: PolicyLookup, /) -> Cut | None:
        """Return the new cut; the one that there is, if there is no new one.

        Raises:
            WriteError: the ledger was cut as far, or further.
        """
        held = None if before is None else decode_cut(self.environment, before.policy)
        if self.policy is None:
            return held
        if held is not None and held.tip.revision >= self.to:
            raise WriteError(
                f"the ledger was pruned up to revision {held.tip.revision} meanwhile: look again"
            )
        return decode_cut(self.environment, self.policy)

    @classmethod
    def _describe(cls, recorded: AuditForm) -> str:
        ledger = [f"the ledger up to revision {recorded['to']}"] if recorded["policy"] else []
        others = [f"{name} before {moment}" for name, moment in recorded["removed"].items()]
        return f"prune {', '.join(ledger + others)}"


OPERATIONS: Final[Mapping[str, type[Operation]]] = {
    str(found.__struct_config__.tag): found for found in Operation.__subclasses__()
}
"""The classes of operations, by their tags."""
READABLE_OPERATIONS: Final = tuple(found for found in OPERATIONS.values() if found.is_readable)
_READABLE_UNION: Final = reduce(
    lambda one, other: one | other, cast("Iterable[Any]", READABLE_OPERATIONS)
)


APPLICATION_FIELDS: Final = ("proposal", "applied_by", "approved")
"""The audit fields of an applied proposal, beside those of every request.

`approved` is {digest, by}: the digest of the proposal, and the approvals that were relied on.
"""


def encode_operations(operations: Iterable[Operation]) -> list[dict[str, Any]]:
    """Return what is recorded of operations; of an edit's function, its name."""
    return [
        msgspec.to_builtins(operation, builtin_types=(datetime,), enc_hook=_get_function_name)
        for operation in operations
    ]


def decode_operations(documents: object) -> list[Operation]:
    """Return the operations that were recorded.

    Raises:
        InvalidDocumentError: they were changed past the writer, or one is an edit.
    """
    try:
        return [*msgspec.convert(documents, GenericAlias(list, (_READABLE_UNION,)))]
    except msgspec.ValidationError as error:
        raise InvalidDocumentError(
            "operations", f"cannot be read back: {error}", "Ask for it anew"
        ) from None


def check_readable(operations: Sequence[Operation]) -> None:
    """Refuse operations that another process could not read back.

    Raises:
        InvalidDocumentError: with what to ask for instead.
    """
    for operation in operations:
        if isinstance(operation, Edit):
            raise InvalidDocumentError(
                "edit",
                "has a function, which another process cannot be given",
                "Read the flag, and update it with expected_version",
                subject=f"flag {operation.key!r}",
            )
    if decode_operations(encode_operations(operations)) != [*operations]:
        raise InvalidDocumentError(
            "", "would not be read back as it is", "Use plain numbers, texts, lists and mappings"
        )


def list_policies(operations: Iterable[Operation]) -> list[PolicyId] | None:
    """Return the flags and segments that operations are on; None if it is all of them."""
    found: dict[PolicyId, None] = {}
    for operation in operations:
        if isinstance(operation, RollbackAll):
            return None
        found[operation.policy_id] = None
    return [*found]


def hash_content(value: object) -> str:
    """Return the hex SHA-256 of what is asked for, the same when it is read back.

    Raises:
        InvalidDocumentError: it has what cannot be recorded.
    """
    try:
        content = msgspec.msgpack.encode(value, enc_hook=_to_plain)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidDocumentError("", f"cannot be recorded: {error}", "Mend it") from None
    return hashlib.sha256(content).hexdigest()


def hash_request(content: Mapping[str, Any]) -> str:
    """Return the digest of a request by what the audit has of it, or is to have."""
    # Sent again with it, a request is another one: what stands in the audit must have it.
    bypass = [content["glass"]] if "glass" in content else []
    relied = [content[name] for name in APPLICATION_FIELDS] if "approved" in content else []
    return hash_content([content["actor"], content["operations"], *bypass, *relied])


def build_decision_content(
    content: Mapping[str, Any], verb: str, subject: str, **more: str
) -> dict[str, Any]:
    """Return what the audit has of a request that decides something, and changes no flag."""
    operations = [{"operation": verb, "key": subject, "region": EVERYWHERE, **more}]
    decided = {**content, "operations": operations}
    return decided | {"digest": hash_request(decided)}


def _to_plain(value: object) -> int:
    # The driver reads long integers as a subclass of int.
    if not isinstance(value, int):
        raise TypeError(f"{type(value).__name__} is none of the types that it may have")
    return int(value)


def _get_function_name(function: Any) -> str:
    return str(getattr(function, "__qualname__", type(function).__qualname__))
