"""Served: the documents by which a flag's callers are served before a change, and after it.

These are not always the two documents of the change. An override hides the flag of all regions, and
a flag that is resumed goes on from what it was when it was active.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from msgspec import Struct

from flagkit.changes import ACCESS, SEGMENTS, PolicyChange, PolicyId, PolicyState
from flagkit.model import EVERYWHERE


class History(Protocol):
    """An environment at one revision, and the states that its policies had before."""

    def find(self, keys: Iterable[str]) -> dict[PolicyId, PolicyState]:
        """Return the states of some flags, in all regions."""
        ...

    def states_before(self, policy: PolicyId) -> Iterator[PolicyState | None]:
        """Yield the states that a flag or a segment had before its present one, newest first."""
        ...


class Served(Struct, frozen=True):
    """The states by which a flag's callers in its region are served; None where there is none."""

    before: PolicyState | None
    after: PolicyState | None


def is_active(state: PolicyState | None) -> bool:
    """Tell whether a state is that of an active flag."""
    return state is not None and state.policy.get("state", "active") == "active"


def last_active(history: History, flag: PolicyId) -> PolicyState | None:
    """Return the state that a flag had when it was active before its present state.

    None if it never was, or if the ledger does not reach back so far.
    """
    return next(filter(is_active, history.states_before(flag)), None)


def served_by(
    change: PolicyChange, history: History, changed: Mapping[PolicyId, PolicyChange]
) -> Served:
    """Return the states by which a flag's callers are served before and after a change of it.

    - A flag that becomes active goes on from its last active state. If the ledger does not have
      one, it goes on from its present state, which serves `off`.
    - A flag that was never active, and has no `off`, has served nobody.
    - A new override goes on from the flag of all regions. So does what a deleted one leaves.
    - A flag that is created again goes on from its last active state before it was deleted.

    Args:
        change: What becomes of the flag.
        history: The environment before the change.
        changed: All changes of flags in the same revision.
    """
    region, key = change.id
    assert region not in (SEGMENTS, ACCESS), "only flags are served"
    before, after = change.before, change.after
    if region != EVERYWHERE and (before is None or after is None):
        base = (EVERYWHERE, key)
        hidden = history.find([key]).get(base)
        before = before or hidden
        after = after or (changed[base].after if base in changed else hidden)
    # Versions go on where a flag was deleted.
    is_created_again = before is None and after is not None and after.version > 1
    is_resumed = is_active(after) and change.before is not None and not is_active(change.before)
    if is_created_again or is_resumed:
        before = _served_last(history, change.id, before)
    return Served(before, after)


def _served_last(
    history: History, flag: PolicyId, present: PolicyState | None
) -> PolicyState | None:
    """Return the last active state of a flag, or else its newest one, if that serves something."""
    newest = oldest = present
    for oldest in history.states_before(flag):
        if is_active(oldest):
            return oldest
        newest = newest or oldest
    has_off = newest is not None and newest.policy.get("off") is not None
    # Before its oldest state there was no flag: it was never active.
    return None if oldest is None and not has_off else newest
