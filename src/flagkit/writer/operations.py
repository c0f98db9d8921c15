"""Operations: what a writer may ask for, each a step from a policy's state to the next one.

Documents are checked when an operation is made, so bad input is refused before anything is read or
written. An operation says the same each time it is tried, on whatever revision it is tried.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol, TypeAlias

import msgspec
from msgspec import Struct

from flagkit.changes import ACCESS, SEGMENTS, Cut, PolicyId, PolicyState
from flagkit.errors import (
    FlagExistsError,
    FlagNotFoundError,
    InvalidDocumentError,
    VersionConflictError,
)
from flagkit.model import EVERYWHERE, Flag, Serve, decode, encode
from flagkit.model.grants import Grants
from flagkit.model.limits import Limits
from flagkit.model.segments import (
    PUBLIC_SEED,
    Hashed,
    Segment,
    decode_segment,
    edited_keys,
    encode_segment,
    members_of,
)
from flagkit.model.variants import bare_weights, check_variant, variant_with
from flagkit.suggestions import suggested
from flagkit.writer.leading import Lead
from flagkit.writer.transitions import Verb, moved

Lists: TypeAlias = Mapping[str, Sequence[Any]]
"""The keys that a segment's document lists, by `included` and `excluded`."""


class Earlier(Protocol):
    """What is known of an environment besides its newest states."""

    @property
    def now(self) -> datetime:
        """The server's time."""
        ...

    def at(self, policy: PolicyId, revision: int) -> PolicyState | None:
        """Return the state that a flag or a segment had at a revision."""
        ...

    def last(self, policy: PolicyId) -> PolicyState | None:
        """Return the state that a flag or a segment had when it was deleted, None if it was not."""
        ...

    def everywhere(self, key: str) -> PolicyState | None:
        """Return the state of the flag of all regions, which an override of one region hides."""
        ...

    def keys_near(self, policy: PolicyId) -> Iterable[str]:
        """Return keys of flags, or of segments, among them those that are near to a key."""
        ...

    def author(self, policy: PolicyId) -> tuple[str, datetime] | None:
        """Return who changed a flag or a segment last, and when."""
        ...

    def parts(self, names: Iterable[str]) -> Mapping[str, bytes]:
        """Return parts of members, by their SHA-256, as far as they are there."""
        ...

    def listed(self, seed: str) -> Lists | None:
        """Return the keys of the document that a seed was made for; None if they are not known."""
        ...


Next: TypeAlias = Flag | Hashed | Grants | Limits | Cut


class Operation(Struct, frozen=True, tag_field="operation", kw_only=True):
    """One step asked for. `expected_version`, where given, is what the flag's version must be."""

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

    def next(self, before: PolicyState | None, earlier: Earlier, /) -> Next | None:
        """Return the flag, segment, grants or limits after this operation; None if deleted.

        Raises:
            WriteError: it cannot follow the state before.
        """
        raise NotImplementedError

    def packed_as(self, _made: Next) -> bytes | None:
        """Return the document of what was made in MessagePack, if it is known already."""
        return None

    def _existing(self, before: PolicyState | None, earlier: Earlier) -> PolicyState:
        if before is None and self.region == ACCESS:
            raise FlagNotFoundError("there are no grants yet: grant admin first, to somebody")
        if before is None:
            what = "segment" if self.region == SEGMENTS else "flag"
            where = "" if self.region in (EVERYWHERE, SEGMENTS) else f" in region {self.region}"
            sentence = f"there is no {what} {self.key!r}{where}: check the key, or create it first"
            near = earlier.keys_near(self.policy_id)
            raise FlagNotFoundError(suggested(sentence, self.key, near))
        self._check_version(before, earlier)
        return before

    def _check_version(self, before: PolicyState, earlier: Earlier) -> None:
        if self.expected_version not in (None, before.version):
            raise VersionConflictError(
                self.key,
                self.expected_version or 0,
                before.version,
                earlier.author(self.policy_id),
            )

    def _existing_flag(self, before: PolicyState | None, earlier: Earlier) -> Flag:
        return decode(self._existing(before, earlier).policy, stored=True)


def _check_version(expected: object) -> None:
    if isinstance(expected, bool) or not isinstance(expected, int):
        raise InvalidDocumentError(
            "expected_version", f"is {expected!r}", "Write the number of a version, or None"
        )


class Create(Operation, frozen=True, tag="create", kw_only=True):
    """Create a flag. Rollouts of one that was deleted go on where they were, salts included."""

    policy: dict[str, Any]

    def next(self, before: PolicyState | None, earlier: Earlier, /) -> Flag:
        """Return the new flag."""
        if before is not None:
            raise FlagExistsError(
                f"the flag {self.key!r} is there already, at version {before.version}: update it"
            )
        return led_at_creation(decode(self.policy), earlier)


class Update(Operation, frozen=True, tag="update", kw_only=True):
    """Replace a flag's document.

    Rollouts that stay keep their keys as far as the weights allow, and a document without a state
    leaves the flag's as it is: the next deployment must not end a pause. Keys pass from one treated
    variant to another only if `reassign` says so.
    """

    policy: dict[str, Any]
    reassign: bool = False

    def next(self, before: PolicyState | None, earlier: Earlier, /) -> Flag:
        """Return the flag with the new document, its rollouts led on from the old ones."""
        old = self._existing_flag(before, earlier)
        return _updated(old, self.policy, earlier.now, reassign=self.reassign)


class SetRollout(Operation, frozen=True, tag="set_rollout", kw_only=True):
    """Change the weights of a rollout: of the rule so named, or of the fallthrough."""

    weights: dict[str, float] | float
    rule: str | None = None
    reassign: bool = False

    def next(self, before: PolicyState | None, earlier: Earlier, /) -> Flag:
        """Return the flag with the new weights, and as few moved keys as can be."""
        flag = self._existing_flag(before, earlier)
        document = encode(flag)
        part = _part_of(document, self.rule, self.key)
        weights = self.weights
        if not isinstance(weights, dict):
            weights = bare_weights(weights, flag.variants, "weights")
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
        kept = part.pop("rollout", None) or part.pop("ramp")
        part["rollout"] = {name: kept[name] for name in ("by", "salt") if name in kept}
        part["rollout"]["weights"] = weights
        return _updated(flag, document, earlier.now, reassign=self.reassign)


VariantNamed: TypeAlias = "str | bool"
"""The name of a variant. True and False stand for the one with this value, of a boolean flag."""


class ServeVariant(Operation, frozen=True, tag="serve", kw_only=True):
    """Serve another variant to all, in a rule or the fallthrough that serves one variant."""

    variant: VariantNamed
    rule: str | None = None

    def next(self, before: PolicyState | None, earlier: Earlier, /) -> Flag:
        """Return the flag that serves the variant."""
        flag = self._existing_flag(before, earlier)
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
            variant = variant_with(variant, flag.variants, "variant")
        check_variant(variant, flag.variants, "variant")
        document = encode(flag)
        part = _part_of(document, self.rule, self.key)
        if "serve" not in part:
            kind = "rollout" if "rollout" in part else "ramp"
            raise InvalidDocumentError(
                "rule",
                f"{self.rule or 'fallthrough'!r} of {self.key} has a {kind}",
                "Set its weights with set_rollout, or update the document",
                subject=f"flag {self.key!r}",
            )
        part["serve"] = variant
        return _updated(flag, document, earlier.now, reassign=False)


class Edit(Operation, frozen=True, tag="edit", kw_only=True):
    """Replace a flag's document by what a function makes of it.

    The function is asked in each attempt, so that it always sees what it changes. The audit has its
    name, the ledger what it made.
    """

    function: Callable[[dict[str, Any]], Mapping[str, Any]]
    environment: str
    reassign: bool = False

    def next(self, before: PolicyState | None, earlier: Earlier, /) -> Flag:
        """Return the flag with the new document, its rollouts led on from the old ones."""
        old = self._existing_flag(before, earlier)
        made = self.function(as_written(old))
        policy, key, region = checked_policy(made, self.environment)
        if (region, key) != self.policy_id:
            raise InvalidDocumentError(
                "key" if key != self.key else "region",
                "was edited, and is what the flag is known by",
                "Create another flag, and archive this one",
                subject=f"flag {self.key!r}",
            )
        if "state" not in made:
            del policy["state"]
        return _updated(old, policy, earlier.now, reassign=self.reassign)


class SetState(Operation, frozen=True, tag="set_state", kw_only=True):
    """Pause, resume, archive or restore a flag, or delete it."""

    verb: Verb

    def next(self, before: PolicyState | None, earlier: Earlier, /) -> Flag | None:
        """Return the flag in the new state; None if it is deleted."""
        flag = self._existing_flag(before, earlier)
        after = moved(self.verb, self.key, flag.state)
        return None if after == "absent" else msgspec.structs.replace(flag, state=after)


class DeleteSegment(Operation, frozen=True, tag="delete_segment", kw_only=True):
    """Delete a segment."""

    def next(self, before: PolicyState | None, earlier: Earlier, /) -> None:
        """Return None."""
        self._existing(before, earlier)


class SetSegment(Operation, frozen=True, tag="set_segment", kw_only=True):
    """Create a segment, or replace it: whichever `create` says.

    `policy` has a new seed, unless it takes hashed keys over. `keys` are those that the document
    listed, if they are few enough to be recorded; `taken_over` names the sides that it did not
    list.
    """

    policy: dict[str, Any]
    create: bool
    keys: dict[str, tuple[str, ...]] = {}
    taken_over: list[str] = []

    @property
    def seed(self) -> str:
        """The seed in the document; empty where it is the public one."""
        return str(self.policy.get("seed", ""))

    @property
    def takes_over(self) -> bool:
        """Whether the document has hashed keys of the segment's."""
        return any(side in self.policy for side in self.taken_over)

    def next(self, before: PolicyState | None, earlier: Earlier, /) -> Hashed:
        """Return the segment with the new document.

        Where the segment has the listed keys already, it keeps its seed.
        """
        if not self.create:
            self._existing(before, earlier)
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
        if self.takes_over and self.policy.get("seed") != held.get("seed"):
            raise InvalidDocumentError(
                "seed",
                "is not the one that the segment's keys are hashed with",
                "Write the seed that `flagkit segments show KEY --output policy` shows, or list the"
                " keys themselves",
                subject=f"segment {self.key!r}",
            )
        if before is None:
            return decode_segment(self.policy, stored=True)
        return self.led_on(before, earlier.listed(self.seed))

    def led_on(self, before: PolicyState, listed: Lists | None) -> Hashed:
        """Return the segment, with the seed that it had if its keys are the same.

        Args:
            before: The segment as it is.
            listed: What the document listed, if that is known. Otherwise `keys` are looked at.
        """
        made = decode_segment(self.policy, stored=True)
        if not self.takes_over:
            held = decode_segment(before.policy, stored=True).segment
            same_size = all(
                now.count == then.count
                for now, then in (
                    (made.segment.included, held.included),
                    (made.segment.excluded, held.excluded),
                )
            )
            if same_size:
                document = {**self.policy, **(self.keys if listed is None else listed)}
                again = decode_segment(document, seed=held.seed)
                if has_same_keys(again.segment, held):
                    return again
        return made

    def unseeded(self, listed: Lists) -> "SetSegment":
        """Return the same operation with the public seed, which is equal each time it is asked."""
        segment = decode_segment({**self.policy, **listed}).segment
        return msgspec.structs.replace(self, policy=dict(encode_segment(segment)))


def has_same_keys(made: Segment, held: Segment) -> bool:
    """Tell whether a segment that was hashed with the seed of another one has the same keys.

    Keys that were hashed with the public seed are always others: listed again, they get a new one.
    """
    if (made.included, made.excluded) != (held.included, held.excluded):
        return False
    has_keys = bool(held.included.count or held.excluded.count)
    return made.seed == held.seed and not (has_keys and held.seed == PUBLIC_SEED)


class ChangeMembers(Operation, frozen=True, tag="change_members", kw_only=True):
    """Move keys into a segment's included ones, its excluded ones, or out of both."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()

    def next(self, before: PolicyState | None, earlier: Earlier, /) -> Hashed:
        """Return the segment with the keys where they belong, all others where they are."""
        segment = decode_segment(self._existing(before, earlier).policy, stored=True).segment
        include = members_of(self.include, "include", segment.seed)
        exclude = members_of(self.exclude, "exclude", segment.seed)
        remove = members_of(self.remove, "remove", segment.seed)
        included, made = edited_keys(segment.included, include, exclude | remove, earlier.parts)
        excluded, more = edited_keys(segment.excluded, exclude, include | remove, earlier.parts)
        after = msgspec.structs.replace(segment, included=included, excluded=excluded)
        return Hashed(after, made | more)


def checked_policy(
    document: Mapping[str, Any], environment: str
) -> tuple[dict[str, Any], str, str]:
    """Return a policy document in its canonical form, intervals included, with its key and region.

    Raises:
        InvalidDocumentError: with the path of the fault and the remedy.
    """
    flag = decode(document, environment=environment)
    return dict(encode(flag)), flag.key, flag.region


def _part_of(document: Mapping[str, Any], rule: str | None, key: str) -> dict[str, Any]:
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


def led_at_creation(new: Flag, earlier: Earlier) -> Flag:
    """Return a flag that is created, its rollouts led on from what its callers were served before.

    An override goes on from the flag of all regions. A flag that was deleted goes on from its last
    state, and keeps its salts.
    """
    moment = earlier.now.timestamp()
    hidden = earlier.everywhere(new.key) if new.region != EVERYWHERE else None
    if hidden is not None:
        return Lead(decode(hidden.policy, stored=True), new, moment, reassign=True).flag()
    last = earlier.last((new.region, new.key))
    if last is None:
        return new
    lead = Lead(decode(last.policy, stored=True), new, moment, reassign=True)
    return lead.flag(keep_salts=True)


def _updated(old: Flag, policy: Mapping[str, Any], now: datetime, *, reassign: bool) -> Flag:
    """Return a flag with a new document, its rollouts led on from the old ones."""
    new = decode(policy)
    if "state" not in policy:
        new = msgspec.structs.replace(new, state=old.state)
    return Lead(old, new, now.timestamp(), reassign).flag()


def as_written(flag: Flag) -> dict[str, Any]:
    """Return a flag's document without intervals: weights alone say what people mean."""
    document: dict[str, Any] = dict(encode(flag))
    for part in (*document.get("rules", ()), document["fallthrough"]):
        part.get("rollout", {}).pop("intervals", None)
    return document
