"""References: which flags rest on which policies, by prerequisites and segments, also indirectly.

A view knows the references of what it has compiled, which is enough to answer. Who is to be told
of changes may not have asked anything yet, so this knows those of all flags that it follows.
"""

import functools
from collections.abc import Iterable

from flagkit.changes import SEGMENTS, PolicyId
from flagkit.errors import InvalidDocumentError
from flagkit.model import EVERYWHERE, packing
from flagkit.model.flags import segments_of
from flagkit.snapshot import Snapshot


class References:
    """The references of flags that are followed. A flag stands for its key in all regions."""

    def __init__(self) -> None:
        # Only of flags that have any: most have none.
        self._references: dict[str, frozenset[PolicyId]] = {}
        self._dependents: dict[PolicyId, set[str]] = {}

    def follow(self, snapshot: Snapshot, key: str) -> None:
        """Take note of what a flag rests on, and of what that rests on in turn.

        A flag that has been noted is noted anew; so must each be that changes.
        """
        waiting = [key]
        while waiting:
            flag = waiting.pop()
            found = _references_of(snapshot, flag)
            self._note(flag, found)
            waiting += [
                name
                for region, name in found
                if region != SEGMENTS and name not in self._references
            ]

    def has(self, policy: PolicyId) -> bool:
        """Tell whether something that is followed rests on a policy, or it rests on something."""
        return policy in self._dependents or policy[1] in self._references

    @property
    def policies(self) -> set[PolicyId]:
        """All policies that something rests on."""
        return set(self._dependents)

    def resting_on(self, policies: Iterable[PolicyId]) -> set[str]:
        """Return the keys of the flags among some policies, and of all that rest on any of them."""
        reached: set[PolicyId] = set()
        waiting = [*policies]
        while waiting:
            policy = waiting.pop()
            if policy not in reached:
                reached.add(policy)
                waiting += [(EVERYWHERE, flag) for flag in self._dependents.get(policy, ())]
        return {key for region, key in reached if region != SEGMENTS}

    def _note(self, flag: str, found: frozenset[PolicyId]) -> None:
        held = self._references.pop(flag, frozenset())
        if found:
            self._references[flag] = found
        for policy in found - held:
            self._dependents.setdefault(policy, set()).add(flag)
        for policy in held - found:
            self._dependents[policy].discard(flag)
            if not self._dependents[policy]:
                del self._dependents[policy]


def _references_of(snapshot: Snapshot, key: str) -> frozenset[PolicyId]:
    record = snapshot.find(key)
    return frozenset() if record is None else _references_in(record.body)


# Most flags of a catalogue share some tens of bodies.
@functools.lru_cache(maxsize=1024)
def _references_in(body: bytes) -> frozenset[PolicyId]:
    try:
        flag = packing.unpack("", EVERYWHERE, body)
    except InvalidDocumentError:
        # It answers callers' defaults, whatever others do.
        return frozenset()
    found = {(EVERYWHERE, prerequisite.flag) for prerequisite in flag.prerequisites}
    return frozenset(found | {(SEGMENTS, segment) for segment in segments_of(flag)})
