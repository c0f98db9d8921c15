"""Rebasing: whether what was planned upon a revision holds upon a later one, as it is.

A batch of an import takes tens of milliseconds to plan. Where others change something all the time,
it would lose each race for the head, and never come to an end.
"""

from collections.abc import Iterable, Mapping

from flagkit.changes import ACCESS, SEGMENTS, Change, PolicyId, PolicyState
from flagkit.model import Flag


def still_holds(flags: Mapping[PolicyId, Flag], between: Iterable[Change]) -> bool:
    """Tell whether flags may be written as they were planned, after what came in between.

    They may, if nothing was changed that a check of theirs has seen: they themselves, what they
    rest on, segments, access; and if no other flag came to rest on something else.
    """
    seen = {key for _, key in flags}
    seen.update(needed.flag for flag in flags.values() for needed in flag.prerequisites)
    return all(
        policy.id[0] not in (ACCESS, SEGMENTS)
        and policy.id[1] not in seen
        and _needed(policy.before) == _needed(policy.after)
        for change in between
        for policy in change.policies
    )


def _needed(state: PolicyState | None) -> object:
    if state is None or b"prerequisites" not in state.packed:
        return None
    return state.policy.get("prerequisites")
