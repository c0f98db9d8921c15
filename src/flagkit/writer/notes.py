"""Notes: consequences of a change that its own differences do not show, in lines for people."""

from collections.abc import Iterable, Iterator, Mapping

from flagkit.changes import ACCESS, SEGMENTS, PolicyChange, PolicyId, PolicyState, state_of
from flagkit.model import EVERYWHERE, Flag, decode
from flagkit.model.documents import METADATA
from flagkit.storage.reading import Reading
from flagkit.writer.differences import differences
from flagkit.writer.served import is_active, last_active


def notes_on(reading: Reading, changes: Iterable[PolicyChange]) -> Iterator[str]:
    """Yield what people should know before changes are made upon a reading's revision.

    - A flag that is resumed may have been edited since it was last active.
    - A flag that is paused or archived may meet a prerequisite of another flag, which opens.
    """
    changed = {change.id: change for change in changes}
    for change in changed.values():
        if change.id[0] in (SEGMENTS, ACCESS) or change.before is None or change.after is None:
            continue
        if is_active(change.after) and not is_active(change.before):
            yield from edits_since_active(reading, change.before)
        if not is_active(change.after):
            yield from _opened_by(reading, change, changed)


def edits_since_active(reading: Reading, state: PolicyState) -> Iterator[str]:
    """Yield how a paused or archived flag differs from what it was when it was last active.

    Nothing is yielded for a flag that was never active.
    """
    active = last_active(reading, state.id)
    if active is not None:
        change = PolicyChange(_rules_of(active), _rules_of(state))
        for line in differences(change) if change.before != change.after else ():
            name, _, difference = line.partition(": ")
            yield f"{name} was edited since it was last active: {difference}"
        return
    *_, oldest = [state, *reading.states_before(state.id)]
    if oldest is not None:
        yield f"{state.key}: the ledger no longer has what it served when it was last active"


def _rules_of(state: PolicyState) -> PolicyState:
    """Return a state without its version, and with only the fields that decide what is served."""
    without = {"state", *METADATA}
    policy = {name: value for name, value in state.policy.items() if name not in without}
    return state_of(state.key, state.region, 1, policy)


def _opened_by(
    reading: Reading, change: PolicyChange, changed: Mapping[PolicyId, PolicyChange]
) -> Iterator[str]:
    """Yield the flags that every context passes into while a flag serves `off`."""
    assert change.before is not None
    assert change.after is not None
    region, key = change.id
    before, after = (decode(side.policy, stored=True) for side in (change.before, change.after))
    if after.off is None or _off_while_inactive(before) == after.off:
        return
    states = reading.dependents([key]) | {
        identity: other.after for identity, other in changed.items() if other.after is not None
    }
    for (other_region, other), state in sorted(states.items()):
        if other_region in (SEGMENTS, ACCESS) or not is_active(state):
            continue
        if not _may_meet(region, other_region):
            continue
        needed = decode(state.policy, stored=True).prerequisites
        if any(item.flag == key and after.off in item.variants for item in needed):
            where = "" if region == EVERYWHERE else f" in {region}"
            yield (
                f"{other} depends on {key} serving {after.off!r}: every context meets that"
                f"{where} while {key} is {after.state}"
            )


def _off_while_inactive(flag: Flag) -> str | None:
    return None if flag.state == "active" else flag.off


def _may_meet(region: str, other: str) -> bool:
    """Tell whether flags of two regions can be evaluated for the same client."""
    return EVERYWHERE in (region, other) or region == other
