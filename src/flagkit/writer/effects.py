"""Effects of a change beyond its own documents: what callers are served before and after it.

The documents of a change do not always show this. An override hides the flag of all regions, and a
resumed flag continues from its last active state. `iter_notes` describes such effects for people.
"""

from collections.abc import Iterable, Iterator, Mapping

from msgspec import Struct

from flagkit._core.model import EVERYWHERE, Flag, decode
from flagkit._core.model.changes import (
    ACCESS,
    SEGMENTS,
    PolicyChange,
    PolicyId,
    PolicyState,
    build_state,
)
from flagkit._core.model.documents import METADATA
from flagkit._core.storage.policy_history import PolicyHistory
from flagkit._core.storage.reader import EnvironmentReader
from flagkit.writer.ledger import format_differences


class ServedStates(Struct, frozen=True):
    """The states by which a flag's callers in its region are served; None where there is none."""

    before: PolicyState | None
    after: PolicyState | None


def is_active(state: PolicyState | None) -> bool:
    """Tell whether a state is that of an active flag."""
    return state is not None and state.policy.get("state", "active") == "active"


def find_last_active(history: PolicyHistory, flag: PolicyId) -> PolicyState | None:
    """Return the state that a flag had when it was active before its present state.

    None if it never was, or if the ledger does not reach back so far.
    """
    return next(filter(is_active, history.iter_previous_states(flag)), None)


def find_served_states(
    change: PolicyChange, reading: EnvironmentReader, changed: Mapping[PolicyId, PolicyChange]
) -> ServedStates:
    """Return the states by which a flag's callers are served before and after a change of it.

    - A flag that becomes active goes on from its last active state. If the ledger does not have
      one, it goes on from its present state, which serves `off`.
    - A flag that was never active, and has no `off`, has served nobody.
    - A new override goes on from the flag of all regions. So does what a deleted one leaves.
    - A flag that is created again goes on from its last active state before it was deleted.

    Args:
        change: What becomes of the flag.
        reading: The environment before the change.
        changed: All changes of flags in the same revision.
    """
    region, key = change.id
    assert region not in (SEGMENTS, ACCESS), "only flags are served"
    before, after = change.before, change.after
    if region != EVERYWHERE and (before is None or after is None):
        base = (EVERYWHERE, key)
        hidden = reading.find_flags([key]).get(base)
        before = before or hidden
        after = after or (changed[base].after if base in changed else hidden)
    # Versions go on where a flag was deleted.
    is_created_again = before is None and after is not None and after.version > 1
    is_resumed = is_active(after) and change.before is not None and not is_active(change.before)
    if is_created_again or is_resumed:
        before = _find_last_served(reading.history, change.id, before)
    return ServedStates(before, after)


def _find_last_served(
    history: PolicyHistory, flag: PolicyId, present: PolicyState | None
) -> PolicyState | None:
    """Return the last active state of a flag, or else its newest one, if that serves something."""
    newest = oldest = present
    for oldest in history.iter_previous_states(flag):
        if is_active(oldest):
            return oldest
        newest = newest or oldest
    has_off = newest is not None and newest.policy.get("off") is not None
    # Before its oldest state there was no flag: it was never active.
    return None if oldest is None and not has_off else newest


def iter_notes(reading: EnvironmentReader, changes: Iterable[PolicyChange]) -> Iterator[str]:
    """Yield what people should know before changes are made upon a reading's revision.

    - A flag that is resumed may have been edited since it was last active.
    - A flag that is paused or archived may meet a prerequisite of another flag, which opens.
    """
    changed = {change.id: change for change in changes}
    for change in changed.values():
        if change.id[0] in (SEGMENTS, ACCESS) or change.before is None or change.after is None:
            continue
        if is_active(change.after) and not is_active(change.before):
            yield from iter_edits_since_active(reading, change.before)
        if not is_active(change.after):
            yield from _iter_opened_flags(reading, change, changed)


def iter_edits_since_active(reading: EnvironmentReader, state: PolicyState) -> Iterator[str]:
    """Yield how a paused or archived flag differs from what it was when it was last active.

    Nothing is yielded for a flag that was never active.
    """
    active = find_last_active(reading.history, state.id)
    if active is not None:
        change = PolicyChange(_extract_rules(active), _extract_rules(state))
        for line in format_differences(change) if change.before != change.after else ():
            name, _, difference = line.partition(": ")
            yield f"{name} was edited since it was last active: {difference}"
        return
    *_, oldest = [state, *reading.history.iter_previous_states(state.id)]
    if oldest is not None:
        yield f"{state.key}: the ledger no longer has what it served when it was last active"


def _extract_rules(state: PolicyState) -> PolicyState:
    """Return a state without its version, and with only the fields that decide what is served."""
    without = {"state", *METADATA}
    policy = {name: value for name, value in state.policy.items() if name not in without}
    return build_state(state.key, state.region, 1, policy)


def _iter_opened_flags(
    reading: EnvironmentReader, change: PolicyChange, changed: Mapping[PolicyId, PolicyChange]
) -> Iterator[str]:
    """Yield the flags that every context passes into while a flag serves `off`."""
    assert change.before is not None
    assert change.after is not None
    region, key = change.id
    before, after = (decode(side.policy, stored=True) for side in (change.before, change.after))
    if after.off is None or _get_inactive_off(before) == after.off:
        return
    states = reading.find_dependents([key]) | {
        identity: other.after for identity, other in changed.items() if other.after is not None
    }
    for (other_region, other), state in sorted(states.items()):
        if other_region in (SEGMENTS, ACCESS) or not is_active(state):
            continue
        if not _can_coincide(region, other_region):
            continue
        needed = decode(state.policy, stored=True).prerequisites
        if any(item.flag == key and after.off in item.variants for item in needed):
            where = "" if region == EVERYWHERE else f" in {region}"
            yield (
                f"{other} depends on {key} serving {after.off!r}: every context meets that"
                f"{where} while {key} is {after.state}"
            )


def _get_inactive_off(flag: Flag) -> str | None:
    return None if flag.state == "active" else flag.off


def _can_coincide(region: str, other: str) -> bool:
    """Tell whether flags of two regions can be evaluated for the same client."""
    return EVERYWHERE in (region, other) or region == other
