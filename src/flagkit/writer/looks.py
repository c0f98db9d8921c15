"""Looks: what a request would do at a revision, and whether that holds upon a later one, as it is.

A batch of an import takes tens of milliseconds to plan. Where others change something all the time,
it would lose each race for the head, and never come to an end.
"""

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import NamedTuple

from flagkit.changes import ACCESS, SEGMENTS, Change, PolicyId, PolicyState, Tip
from flagkit.model import Flag
from flagkit.storage.foreseen import Foreseen
from flagkit.storage.pages import Page
from flagkit.storage.preparing import Prepared
from flagkit.storage.reading import Reading
from flagkit.writer.drafts import Draft


class Look(NamedTuple):
    """What a request would do: where it led to, if it was done; else the next change."""

    done: Tip | None
    change: Change
    parts: Mapping[str, bytes]
    buckets: Mapping[str, int]
    pages: Mapping[str, Page]
    flags: Mapping[PolicyId, Flag]
    ready: Mapping[PolicyId, Prepared]
    upon: Tip

    def holds(self, reading: Reading, request: str) -> bool:
        """Tell whether it may be committed as it is, upon the revision of a reading."""
        if reading.tip.epoch != self.upon.epoch or reading.commit_of(request) is not None:
            return False
        unledgered = () if reading.unledgered is None else (reading.unledgered,)
        return still_holds(self.flags, chain(reading.changes(self.upon.revision), unledgered))


def foreseen_by(draft: Draft, request: str | None) -> Foreseen:
    """Return what a draft will ask for, and the request, where it may have been committed."""
    return Foreseen(request, frozenset(operation.policy_id for operation in draft.operations))


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
