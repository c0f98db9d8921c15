"""Changes: the numbered steps of an environment's history, their hash chain and the digests.

An environment is an immutable value for each revision; a `Change` leads from one to the next. Pure:
readers verify with the same functions as writers seal with. The hashes are over MessagePack of
plain values in normal form, whose key order BSON and MessagePack keep.
"""

import hashlib
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, TypeAlias

import msgspec
import xxhash
from msgspec import Struct

FORMAT = 1
DIGEST_MODULUS = 2**64

FlagId: TypeAlias = tuple[str, str]
"""A flag's region and key: what tells its states apart within an environment."""
Digests: TypeAlias = Mapping[str, int]
"""For each region, the sum of the hashes of its flags' states, modulo DIGEST_MODULUS."""


# The driver reads long integers as a subclass of int, which MessagePack takes only as an int.
def _plain_integer(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{type(value).__name__} is not in normal form")
    return int(value)


_encode = msgspec.msgpack.Encoder(enc_hook=_plain_integer).encode
_decode = msgspec.msgpack.Decoder().decode


class FlagState(Struct, frozen=True):
    """One flag in one region at one version. `packed` is its policy document in MessagePack."""

    key: str
    region: str
    version: int
    packed: bytes

    @property
    def id(self) -> FlagId:
        """What tells this flag's states from others'."""
        return (self.region, self.key)

    @property
    def policy(self) -> dict[str, Any]:
        """The policy document; a new copy each time."""
        policy: dict[str, Any] = _decode(self.packed)
        return policy

    @property
    def hash(self) -> int:
        """A 64-bit hash of all of the state: a digest's summand."""
        head = _encode([self.region, self.key, self.version])
        return xxhash.xxh3_64_intdigest(self.packed, xxhash.xxh3_64_intdigest(head))


def state_of(key: str, region: str, version: int, policy: Mapping[str, Any]) -> FlagState:
    """Return the state of a flag from its policy document in normal form."""
    return FlagState(key, region, version, _encode(policy))


class FlagChange(Struct, frozen=True):
    """What a revision did to one flag in one region; None stands for absence."""

    before: FlagState | None
    after: FlagState | None

    @property
    def id(self) -> FlagId:
        """The flag that changed."""
        state = self.after or self.before
        assert state is not None, "a change has a side"
        return state.id


class Tip(Struct, frozen=True):
    """Where an environment stands: the revision, and what proves the way there.

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


class Change(Struct, frozen=True):
    """One committed revision: the tip that it made, what it changed, and the hash before it."""

    tip: Tip
    request: str
    previous_hash: str
    flags: tuple[FlagChange, ...]

    @property
    def revision(self) -> int:
        """The revision that this change made."""
        return self.tip.revision

    def continues(self, tip: Tip) -> bool:
        """Tell whether this change is the next after a tip, of the same history, and unaltered."""
        return (
            self.tip.environment == tip.environment
            and self.tip.epoch == tip.epoch
            and self.tip.revision == tip.revision + 1
            and self.previous_hash == tip.hash
            and all(flag.before or flag.after for flag in self.flags)
            and self.tip.digests == advance(tip.digests, self.flags)
            and self.is_sealed
        )

    @property
    def is_sealed(self) -> bool:
        """Whether nothing of the change was altered since its hash was made."""
        return self.tip.hash == self._recomputed()

    def _recomputed(self) -> str:
        return _seal(self.tip, self.request, self.previous_hash, self.flags)


def genesis(environment: str, epoch: str, time: datetime) -> Tip:
    """Return the tip of an environment that nothing has changed yet: revision 0."""
    tip = Tip(environment, epoch, 0, "", time, {})
    return msgspec.structs.replace(tip, hash=_seal(tip, "", "", ()))


def next_change(tip: Tip, request: str, time: datetime, flags: Iterable[FlagChange]) -> Change:
    """Return the change that leads on from a tip; its time is never before the tip's."""
    changed = tuple(flags)
    after = msgspec.structs.replace(
        tip,
        revision=tip.revision + 1,
        hash="",
        time=max(time, tip.time),
        digests=advance(tip.digests, changed),
    )
    sealed = msgspec.structs.replace(after, hash=_seal(after, request, tip.hash, changed))
    return Change(sealed, request, tip.hash, changed)


def advance(digests: Digests, flags: Iterable[FlagChange]) -> dict[str, int]:
    """Return digests after some changes."""
    after = dict(digests)
    for change in flags:
        for sign, state in ((-1, change.before), (1, change.after)):
            if state is not None:
                total = after.get(state.region, 0) + sign * state.hash
                after[state.region] = total % DIGEST_MODULUS
    return {region: digest for region, digest in after.items() if digest}


def digest(states: Iterable[FlagState]) -> dict[str, int]:
    """Return the digests of some states, counted from nothing."""
    return advance({}, (FlagChange(None, state) for state in states))


def _seal(tip: Tip, request: str, previous_hash: str, flags: Iterable[FlagChange]) -> str:
    """Return the hex SHA-256 of everything that a change says; the tip's own hash is not read."""
    content = [
        FORMAT,
        tip.environment,
        tip.epoch,
        tip.revision,
        tip.time,
        sorted(tip.digests.items()),
        request,
        previous_hash,
        [
            [
                *change.id,
                *(side and [side.version, side.packed] for side in (change.before, change.after)),
            ]
            for change in flags
        ],
    ]
    return hashlib.sha256(_encode(content)).hexdigest()
