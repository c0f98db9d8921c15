"""Planning: from operations and a reading of the environment to the next revision, checked whole.

Pure but for what it asks the reading: every check is made at the one revision that the commit will
be compared with, so nothing can slip in between.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from flagkit.changes import FlagChange, FlagId, FlagState, state_of
from flagkit.errors import BrokenReferenceError, InvalidDocumentError, RevisionNotFoundError
from flagkit.model import EVERYWHERE, Flag, decode, encode
from flagkit.model.decoding import check_size
from flagkit.writer.operations import Operation

CHANGE_BYTES_MAX = 4 * 1024 * 1024


class Reading(Protocol):
    """An environment at one revision, as storage reads it."""

    def find(self, keys: Iterable[str]) -> dict[FlagId, FlagState]:
        """Return the states of some flags, in all regions."""
        ...

    def dependents(self, keys: Iterable[str]) -> dict[FlagId, FlagState]:
        """Return the states of the flags that have one of `keys` as a direct prerequisite."""
        ...

    def at(self, flag: FlagId, revision: int) -> FlagState | None:
        """Return the state that a flag had at a revision."""
        ...


def plan(operations: Sequence[Operation], reading: Reading, revision: int) -> list[FlagChange]:
    """Return what the operations do, one after the other, to an environment at a revision.

    A flag's version rises by one however many of the operations touch it, and not at all where they
    leave it as it was.

    Raises:
        WriteError: an operation cannot follow, or would break a reference.
        InvalidDocumentError: the change would be too large.
    """

    def history(flag: FlagId, at: int) -> FlagState | None:
        if not 0 < at <= revision:
            raise RevisionNotFoundError(f"there is no revision {at}: the newest is {revision}")
        return reading.at(flag, at)

    found = reading.find(operation.key for operation in operations)
    after: dict[FlagId, FlagState] = {}
    flags: dict[FlagId, Flag] = {}
    for operation in operations:
        flag = operation.next(after.get(operation.flag, found.get(operation.flag)), history)
        before = found.get(operation.flag)
        version = before.version + 1 if before else 1
        document = encode(flag)
        try:
            check_size(document)
        except InvalidDocumentError as error:
            raise error.about(f"flag {flag.key!r}") from None
        after[operation.flag] = state_of(flag.key, flag.region, version, document)
        flags[operation.flag] = flag
    changes = [
        FlagChange(found.get(identity), state)
        for identity, state in after.items()
        if identity not in found or found[identity].packed != state.packed
    ]
    _check_size(changes)
    _References(reading, found, flags).check()
    return changes


def _check_size(changes: Iterable[FlagChange]) -> None:
    sides = (side for change in changes for side in (change.before, change.after) if side)
    size = sum(len(side.packed) for side in sides)
    if size > CHANGE_BYTES_MAX:
        raise InvalidDocumentError(
            "", f"the change is {size:,} bytes; the limit is {CHANGE_BYTES_MAX:,}", "Split it up"
        )


class _References:
    """The flags that a change touches and those around them, in their next state."""

    def __init__(
        self, reading: Reading, found: Mapping[FlagId, FlagState], changed: Mapping[FlagId, Flag]
    ) -> None:
        self._reading = reading
        self._changed = changed
        self._by_key: dict[str, dict[str, Flag]] = {}
        self._learn(found, {key for _, key in changed})

    def check(self) -> None:
        """Raise BrokenReferenceError where a prerequisite would dangle or close a cycle."""
        self._gather()
        for flag in self._changed.values():
            for i in range(len(flag.prerequisites)):
                self._check_prerequisite(flag, i)
        changed_keys = {key for _, key in self._changed}
        for identity, state in self._reading.dependents(changed_keys).items():
            if identity not in self._changed:
                flag = decode(state.policy, stored=True)
                for i, prerequisite in enumerate(flag.prerequisites):
                    if prerequisite.flag in changed_keys:
                        self._check_prerequisite(flag, i)
        for key in changed_keys:
            self._check_cycle(key)

    def _learn(self, states: Mapping[FlagId, FlagState], keys: Iterable[str]) -> None:
        for key in keys:
            self._by_key[key] = {}
        for (region, key), state in states.items():
            if (region, key) not in self._changed:
                self._by_key[key][region] = decode(state.policy, stored=True)
        for (region, key), flag in self._changed.items():
            self._by_key.setdefault(key, {})[region] = flag

    def _gather(self) -> None:
        """Read all that the changed flags rest on, level by level."""
        while True:
            wanted = {
                prerequisite.flag
                for regions in self._by_key.values()
                for flag in regions.values()
                for prerequisite in flag.prerequisites
            } - self._by_key.keys()
            if not wanted:
                return
            self._learn(self._reading.find(wanted), wanted)

    def _check_prerequisite(self, flag: Flag, index: int) -> None:
        prerequisite = flag.prerequisites[index]
        path = f"prerequisites[{index}]"
        regions = self._by_key[prerequisite.flag]
        if EVERYWHERE not in regions and flag.region not in regions:
            raise BrokenReferenceError(
                f"{path}.flag",
                f"{prerequisite.flag!r} does not exist{_in_region(flag.region)}",
                "Create it before, or in the same change",
                subject=f"flag {flag.key!r}",
            )
        for region, other in regions.items():
            # Where this flag is an override, what counts is the other flag as its region sees it.
            hidden = region == EVERYWHERE and flag.region in regions
            if flag.region != EVERYWHERE and (hidden or region not in (EVERYWHERE, flag.region)):
                continue
            unknown = set(prerequisite.variants) - other.variants.keys()
            if unknown:
                raise BrokenReferenceError(
                    f"{path}.variants",
                    f"{min(unknown)!r} is no variant of {prerequisite.flag!r}{_in_region(region)}",
                    f"It has: {', '.join(other.variants)}",
                    subject=f"flag {flag.key!r}",
                )

    def _check_cycle(self, start: str) -> None:
        """Follow prerequisites from a key, of all regions alike; a way back to it is a cycle."""
        ways: list[tuple[str, ...]] = [(start,)]
        seen: set[str] = set()
        while ways:
            way = ways.pop()
            for flag in self._by_key[way[-1]].values():
                for prerequisite in flag.prerequisites:
                    if prerequisite.flag == start:
                        raise BrokenReferenceError(
                            "prerequisites",
                            f"form a cycle: {' -> '.join((*way, start))}",
                            "Remove one of these prerequisites",
                            subject=f"flag {start!r}",
                        )
                    if prerequisite.flag not in seen:
                        seen.add(prerequisite.flag)
                        ways.append((*way, prerequisite.flag))


def _in_region(region: str) -> str:
    return "" if region == EVERYWHERE else f" in region {region}"
