"""Planning: operations and a read of the environment become the next revision, checked as a whole.

All checks use the one revision that the commit is compared with. Planning is pure except for what
it asks the reader: it checks references, cycles and sizes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime
from typing import Any

from msgspec import Struct

from flagkit._core.cooperative import pause_gc
from flagkit._core.model import EVERYWHERE, Flag, decode, encode
from flagkit._core.model.access import (
    Grants,
    check_has_admin,
    decode_grants,
    encode_grants,
    encode_limits,
)
from flagkit._core.model.changes import (
    ACCESS,
    CUT,
    GRANTS,
    LIMITS,
    SEGMENTS,
    Cut,
    PolicyChange,
    PolicyId,
    PolicyState,
    build_state,
)
from flagkit._core.model.flags import check_size, collect_flag_segments
from flagkit._core.model.references import ReferenceChecker
from flagkit._core.model.segments import SegmentWithMembers, encode_segment
from flagkit._core.storage.pages import count_bytes
from flagkit._core.storage.reader import EnvironmentReader
from flagkit._core.suggestions import suggested
from flagkit.errors import BrokenReferenceError, InvalidDocumentError, RevisionNotFoundError
from flagkit.writer.operations import (
    ListedKeys,
    Operation,
    PolicyLookup,
    PolicyValue,
    Reinstate,
    expand_operations,
)

CHANGE_BYTES_MAX = 256 * 1024 * 1024
"""Documents before and after; the writer has all of them in memory, some four times."""
_NEVER_DELETED = {GRANTS, LIMITS, CUT}


class ChangePlan(Struct, frozen=True):
    """A planned change of policies, with its new parts of members.

    `flags` are those that documents after it decode to.
    """

    changes: list[PolicyChange]
    parts: dict[str, bytes]
    flags: dict[PolicyId, Flag] = {}


class _RevisionLookup(Struct, frozen=True):
    """A reading, asked for nothing beyond its revision."""

    reading: EnvironmentReader
    revision: int
    new_parts: dict[str, bytes]
    deleted: dict[PolicyId, PolicyState]
    find_current: Callable[[PolicyId], PolicyState | None]
    listed_keys: Mapping[str, ListedKeys] = {}

    @property
    def now(self) -> datetime:
        return self.reading.now

    def find_state(self, policy: PolicyId, revision: int) -> PolicyState | None:
        if not 0 < revision <= self.revision:
            raise RevisionNotFoundError(
                f"there is no revision {revision}: the newest is {self.revision}"
            )
        return self.reading.history.find_state(policy, revision)

    def find_last_state(self, policy: PolicyId) -> PolicyState | None:
        return self.deleted.get(policy)

    def find_base_flag(self, key: str) -> PolicyState | None:
        return self.find_current((EVERYWHERE, key))

    def find_similar_keys(self, policy: PolicyId) -> Iterable[str]:
        return self.reading.find_similar_keys(policy)

    def find_author(self, policy: PolicyId) -> tuple[str, datetime] | None:
        return self.reading.history.find_author(policy)

    def read_parts(self, names: Iterable[str]) -> Mapping[str, bytes]:
        wanted = set(names)
        new_parts = {name: self.new_parts[name] for name in wanted & self.new_parts.keys()}
        return new_parts | dict(self.reading.read_parts(wanted - new_parts.keys()))

    def find_listed_keys(self, seed: str) -> ListedKeys | None:
        return self.listed_keys.get(seed)


def plan(
    operations: Sequence[Operation],
    reading: EnvironmentReader,
    revision: int,
    parts: Mapping[str, bytes],
    listed_keys: Mapping[str, ListedKeys] | None = None,
) -> ChangePlan:
    """Return what the operations do, one after the other, to an environment at a revision.

    A policy's version rises by one however many of the operations touch it, and not at all where
    they leave it as it was. `parts` are those of the members that the operations bring, and
    `listed_keys` has the keys of segments' documents by the seeds that were made for them, as far
    as known.

    Raises:
        WriteError: an operation cannot follow, or would break a reference.
        InvalidDocumentError: it would be too large, or refers to members that are not there.
    """
    operations = expand_operations(operations, reading.history, revision)
    touched = _collect_ids(operations)
    flag_keys = {key for region, key in touched if region not in (SEGMENTS, ACCESS)}
    segment_keys = {key for region, key in touched if region == SEGMENTS}
    found = {**reading.find_flags(flag_keys), **reading.find_segments(segment_keys)}
    if touched & _NEVER_DELETED:
        found |= reading.access
    tombs = reading.history.find_deleted(touched - found.keys() - _NEVER_DELETED)
    after: dict[PolicyId, PolicyState | None] = {}
    flags: dict[PolicyId, Flag | None] = {}
    new_parts = {**parts}

    def find_state(identity: PolicyId) -> PolicyState | None:
        return after.get(identity, found.get(identity))

    earlier = _RevisionLookup(
        reading, revision, new_parts, {**tombs}, find_state, listed_keys or {}
    )
    for operation in operations:
        identity = operation.policy_id
        before = find_state(identity)
        next_one = operation.apply(before, earlier)
        if isinstance(next_one, SegmentWithMembers):
            new_parts |= next_one.parts
        elif operation.region not in (SEGMENTS, ACCESS):
            assert next_one is None or isinstance(next_one, Flag), "other regions have flags"
            flags[identity] = next_one
        if next_one is None:
            after[identity] = None
            if before is not None:
                earlier.deleted[identity] = before
            continue
        held = found.get(identity) or tombs.get(identity)
        version = held.version + 1 if held else 1
        after[identity] = _encode_state(operation, version, next_one)
    changes = [
        PolicyChange(found.get(identity), state)
        for identity, state in after.items()
        if _get_packed(found.get(identity)) != _get_packed(state)
    ]
    grants = after.get(GRANTS)
    if grants is not None:
        check_has_admin(decode_grants(grants.policy))
    whole = any(isinstance(operation, Reinstate) for operation in operations)
    _check_size(changes, "Roll back flag by flag" if whole else "Split it up")
    has_prerequisites = any(flag is not None and flag.prerequisites for flag in flags.values())
    # A chain of prerequisites makes many objects that stay until the commit. Collections would walk
    # all of them again and again, and stop other threads.
    with pause_gc() if has_prerequisites else nullcontext():
        ReferenceChecker(reading, found, flags).check()
    check_segments(reading, flags, {key: after[SEGMENTS, key] is not None for key in segment_keys})
    states = [state for state in after.values() if state is not None]
    left = {identity: flag for identity, flag in flags.items() if flag is not None}
    return ChangePlan(changes, _collect_new_parts(reading, states, found, new_parts), left)


def build_lookup(reading: EnvironmentReader) -> PolicyLookup:
    """Return what a reading knows besides the newest states."""
    return _RevisionLookup(reading, reading.tip.revision, {}, {}, lambda _: None)


def _encode_state(operation: Operation, version: int, value: PolicyValue) -> PolicyState:
    packed = operation.find_packed_document(value)
    if packed is not None:
        return PolicyState(operation.key, operation.region, version, packed)
    subject = f"flag {operation.key!r}"
    document: Mapping[str, Any]
    if isinstance(value, Flag):
        document = encode(value)
    elif isinstance(value, SegmentWithMembers):
        document, subject = encode_segment(value.segment), f"segment {operation.key!r}"
    elif isinstance(value, Cut):
        document, subject = value.policy, "cut"
    else:
        document = encode_grants(value) if isinstance(value, Grants) else encode_limits(value)
        subject = "grants" if isinstance(value, Grants) else "limits"
    try:
        check_size(document)
    except InvalidDocumentError as error:
        raise error.about(subject) from None
    return build_state(operation.key, operation.region, version, document)


def _get_packed(state: PolicyState | None) -> bytes | None:
    return None if state is None else state.packed


def _collect_ids(operations: Iterable[Operation]) -> set[PolicyId]:
    return {operation.policy_id for operation in operations}


def check_segments(
    reading: EnvironmentReader, flags: Mapping[PolicyId, Flag | None], changed: Mapping[str, bool]
) -> None:
    """Refuse flags that refer to segments that are neither there nor in this change.

    `changed` has the segments of this change, and whether they are there after it.
    """
    gone = {key for key, there in changed.items() if not there}
    here = changed.keys() - gone
    named = {
        identity: keys
        for identity, flag in flags.items()
        if flag is not None and flag.rules and (keys := collect_flag_segments(flag) - here)
    }
    missing = {key for keys in named.values() for key in keys}
    missing -= {key for _, key in reading.find_segments(missing)} - gone
    if gone:
        referring = reading.find_referring(gone).items()
        named |= {
            identity: collect_flag_segments(decode(state.policy, stored=True))
            for identity, state in referring
            if identity not in flags
        }
        missing |= gone
    for (_, flag), keys in sorted(named.items()):
        if lacking := keys & missing:
            segment = min(lacking)
            remedy = (
                "Change them before, or in the same change"
                if segment in gone
                else suggested(
                    "Create it before, or in the same change",
                    segment,
                    [*here, *reading.find_similar_keys((SEGMENTS, segment))],
                )
            )
            raise BrokenReferenceError(
                "rules",
                f"refer to the segment {segment!r}, which does not exist"
                + (" any more" if segment in gone else ""),
                remedy,
                subject=f"flag {flag!r}",
            )


def _collect_new_parts(
    reading: EnvironmentReader,
    states: Iterable[PolicyState],
    found: Mapping[PolicyId, PolicyState],
    brought: Mapping[str, bytes],
) -> dict[str, bytes]:
    """Return the parts to store: those that come with the change, be they there already or lost.

    All others that segments refer to anew must be there.
    """
    new: dict[str, bytes] = {}
    for state in states:
        if state.region != SEGMENTS:
            continue
        held = found[state.id].parts if state.id in found else ()
        new |= {name: brought[name] for name in state.parts if name in brought}
        others = set(state.parts).difference(held, brought)
        if others - reading.find_known_parts(others):
            raise InvalidDocumentError(
                "included",
                "or excluded refer to members that are not there",
                "List the keys themselves",
                subject=f"segment {state.key!r}",
            )
    return new


def _check_size(changes: Iterable[PolicyChange], remedy: str) -> None:
    size = count_bytes(changes)
    if size > CHANGE_BYTES_MAX:
        raise InvalidDocumentError(
            "", f"the change is {size:,} bytes; the limit is {CHANGE_BYTES_MAX:,}", remedy
        )
