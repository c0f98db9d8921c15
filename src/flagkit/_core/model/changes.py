"""Changes: the numbered steps of an environment's history, their hash chain and their digests.

An environment is an immutable value at each revision, and a `Change` leads from one revision to the
next. Readers verify the chain with the same functions with which writers build it. The hashes cover
MessagePack of values in normal form, whose key order BSON and MessagePack keep.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias

import msgspec
import xxhash
from msgspec import Struct

FORMAT = 1
DIGEST_MODULUS = 2**64
HASHED_AT_ONCE = 1_000
_FIXED_LIST, _SHORT_LIST = 16, 65_536

SEGMENTS = "@segments"
"""The region field of segments, which belong to no region. No region has this name."""
ACCESS = "@access"
"""The region field of role grants and rate limits, in the same way. Clients do not load them."""
GRANTS, LIMITS = (ACCESS, "@grants"), (ACCESS, "@limits")
"""The ids of the two policies there, which have all of them."""
CUT = (ACCESS, "@cut")
"""The id of the policy that records where the ledger of a pruned environment was cut."""

PolicyId: TypeAlias = tuple[str, str]
"""Identifies a policy: a flag's region and key, or SEGMENTS and a segment's key."""
Digests: TypeAlias = Mapping[str, int]
"""By region, SEGMENTS or ACCESS, the sum of the hashes of the states, modulo DIGEST_MODULUS."""


# The driver reads long integers as a subclass of int, which MessagePack takes only as an int.
def _to_plain_integer(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{type(value).__name__} is not in normal form")
    return int(value)


_encode = msgspec.msgpack.Encoder(enc_hook=_to_plain_integer).encode
_decode = msgspec.msgpack.Decoder().decode


# The garbage collector does not track these types: for every few thousand new objects it would
# walk the heap.
class PolicyState(Struct, frozen=True, gc=False):
    """A policy, which is a flag in one region or a segment, at one version.

    `packed` is its document in MessagePack. A segment's region is SEGMENTS.
    """

    key: str
    region: str
    version: int
    packed: bytes

    @property
    def id(self) -> PolicyId:
        """The region and key, which identify the policy."""
        return (self.region, self.key)

    @property
    def policy(self) -> dict[str, Any]:
        """The policy document; a new copy each time."""
        policy: dict[str, Any] = _decode(self.packed)
        return policy

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of members that a segment refers to, by their SHA-256; none for a flag."""
        return get_member_parts(self.policy) if self.region == SEGMENTS else ()

    @property
    def hash(self) -> int:
        """A 64-bit hash of all of the state: a digest's summand."""
        head = _encode([self.region, self.key, self.version])
        return xxhash.xxh3_64_intdigest(self.packed, xxhash.xxh3_64_intdigest(head))


def build_state(key: str, region: str, version: int, policy: Mapping[str, Any]) -> PolicyState:
    """Return the state of a policy from its document in normal form."""
    return PolicyState(key, region, version, _encode(policy))


def get_member_parts(policy: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the parts of members that a segment's document refers to."""
    found: list[str] = []
    for side in ("included", "excluded"):
        keys = policy.get(side)
        if keys is not None:
            found += keys["parts"]
    return tuple(found)


class PolicyChange(Struct, frozen=True, gc=False):
    """The effect of a revision on one policy: before and after, None if it does not exist."""

    before: PolicyState | None
    after: PolicyState | None

    @property
    def id(self) -> PolicyId:
        """The policy that changed."""
        state = self.after or self.before
        assert state is not None, "a change has a side"
        return state.id


class Tip(Struct, frozen=True, gc=False):
    """The state of an environment: its revision, and the hashes that prove its history.

    `epoch` is the random name of one history; revisions are ordered within it. `hash` is the hex
    SHA-256 that ends the chain. `time` is the server's, in UTC, never before the previous
    revision's.
    """

    environment: str
    epoch: str
    revision: int
    hash: str
    time: datetime
    digests: Digests


class Change(Struct, frozen=True, gc=False):
    """One committed revision: its tip, its changes of policies, and the hash before it.

    `parts` are members that its segments refer to by SHA-256, as far as the change includes them.
    The hash of the change covers the references.
    """

    tip: Tip
    request: str
    previous_hash: str
    policies: tuple[PolicyChange, ...]
    parts: Mapping[str, bytes] = {}

    @property
    def revision(self) -> int:
        """The revision that this change made."""
        return self.tip.revision

    def continues(self, tip: Tip) -> bool:
        """Return True if this change directly follows a tip of its history, and is unaltered."""
        return (
            self.tip.environment == tip.environment
            and self.tip.epoch == tip.epoch
            and self.tip.revision == tip.revision + 1
            and self.previous_hash == tip.hash
            and all(policy.before or policy.after for policy in self.policies)
            and self.tip.digests == advance_digests(tip.digests, self.policies)
            and self.is_intact
        )

    @property
    def is_intact(self) -> bool:
        """True if the change has not been altered since it was hashed."""
        return self.tip.hash == self._recompute_hash()

    def _recompute_hash(self) -> str:
        return _compute_hash(self.tip, self.request, self.previous_hash, self.policies)


class Cut(Struct, frozen=True):
    """The place where a ledger was cut: the tip there, and a hash of the contents at that tip.

    The first remaining change continues this tip, so the chain is bound to it. The cut is a policy
    of a later revision, so the chain is bound to the contents.
    """

    tip: Tip
    contents: str

    @property
    def policy(self) -> dict[str, Any]:
        """The policy document of the cut."""
        return {
            "epoch": self.tip.epoch,
            "revision": self.tip.revision,
            "hash": self.tip.hash,
            "time": self.tip.time,
            "digests": {region: f"{total:016x}" for region, total in self.tip.digests.items()},
            "contents": self.contents,
        }


def decode_cut(environment: str, policy: Mapping[str, Any]) -> Cut:
    """Return the cut of a policy document."""
    digests = {region: int(total, 16) for region, total in policy["digests"].items()}
    epoch, revision, digest_there = policy["epoch"], int(policy["revision"]), policy["hash"]
    tip = Tip(environment, epoch, revision, digest_there, policy["time"], digests)
    return Cut(tip, policy["contents"])


def hash_contents(contents: Iterable[tuple[PolicyId, int, bytes | None]]) -> str:
    """Return the hex SHA-256 of the contents of an environment, in any order.

    Each policy is an id, a version, and its document in MessagePack; None if it was deleted.
    """
    found = hashlib.sha256()
    for identity, version, packed in sorted(contents, key=lambda item: item[0]):
        found.update(_encode([*identity, version, packed]))
    return found.hexdigest()


def collect_added_parts(changes: Iterable[Change]) -> set[str]:
    """Return the parts of members that exist after consecutive changes, but not before them."""
    before: dict[PolicyId, set[str]] = {}
    after: dict[PolicyId, set[str]] = {}
    for policy in (policy for change in changes for policy in change.policies):
        old, new = policy.before, policy.after
        before.setdefault(policy.id, set(old.parts) if old is not None else set())
        after[policy.id] = set(new.parts) if new is not None else set()
    return {part for identity in after for part in after[identity] - before[identity]}


def build_genesis_tip(environment: str, epoch: str, time: datetime) -> Tip:
    """Return the tip of an environment that nothing has changed yet: revision 0."""
    tip = Tip(environment, epoch, 0, "", time, {})
    return msgspec.structs.replace(tip, hash=_compute_hash(tip, "", "", ()))


def build_next_change(
    tip: Tip,
    request: str,
    time: datetime,
    policies: Iterable[PolicyChange],
    parts: Mapping[str, bytes] | None = None,
) -> Change:
    """Return the change that leads on from a tip; its time is never before the tip's."""
    changed = tuple(policies)
    after = msgspec.structs.replace(
        tip,
        revision=tip.revision + 1,
        hash="",
        time=max(time, tip.time),
        digests=advance_digests(tip.digests, changed),
    )
    sealed = msgspec.structs.replace(after, hash=_compute_hash(after, request, tip.hash, changed))
    return Change(sealed, request, tip.hash, changed, parts or {})


def advance_digests(digests: Digests, policies: Iterable[PolicyChange]) -> dict[str, int]:
    """Return digests after some changes."""
    after = dict(digests)
    for change in policies:
        for sign, state in ((-1, change.before), (1, change.after)):
            if state is not None:
                total = after.get(state.region, 0) + sign * state.hash
                after[state.region] = total % DIGEST_MODULUS
    return {region: digest for region, digest in after.items() if digest}


def compute_digests(states: Iterable[PolicyState]) -> dict[str, int]:
    """Return the digests of some states, counted from nothing."""
    return advance_digests({}, (PolicyChange(None, state) for state in states))


def _compute_hash(
    tip: Tip, request: str, previous_hash: str, policies: Iterable[PolicyChange]
) -> str:
    """Return the hex SHA-256 of everything in a change, except for the tip's own hash.

    The hashed text is one list in MessagePack, written piece by piece. A change may have a hundred
    megabytes, and encoding it in one call would hold the interpreter for as long.
    """
    changed = tuple(policies)
    content = [
        FORMAT,
        tip.environment,
        tip.epoch,
        tip.revision,
        tip.time,
        sorted(tip.digests.items()),
        request,
        previous_hash,
    ]
    hashed = hashlib.sha256(encode_list_header(len(content) + 1) + _encode(content)[1:])
    hashed.update(encode_list_header(len(changed)))
    for first in range(0, len(changed), HASHED_AT_ONCE):
        hashed.update(encode_policies(changed[first : first + HASHED_AT_ONCE]))
    return hashed.hexdigest()


def encode_policies(policies: Sequence[PolicyChange]) -> bytes:
    """Return changes of policies in MessagePack, one after the other, without a list around them.

    Each is [region, key, before, after]; a side is [version, document in MessagePack], or null.
    """
    listed = [
        [
            *change.id,
            *(side and [side.version, side.packed] for side in (change.before, change.after)),
        ]
        for change in policies
    ]
    return _encode(listed)[len(encode_list_header(len(listed))) :]


def encode_list_header(length: int) -> bytes:
    """Return the MessagePack header of a list."""
    if length < _FIXED_LIST:
        return bytes([0x90 | length])
    if length < _SHORT_LIST:
        return b"\xdc" + length.to_bytes(2, "big")
    return b"\xdd" + length.to_bytes(4, "big")
