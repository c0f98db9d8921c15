"""Succession: whether changes of policies go on from the last ones that the ledger has of them."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from flagkit.changes import PolicyChange, PolicyId
from flagkit.storage.layout import Document
from flagkit.storage.malformed import judged

_GROUPS_MAX: Final = 16
_POLICIES_AT_ONCE: Final = 1_000


def together(stand: Mapping[PolicyId, int]) -> Iterator[dict[PolicyId, int]]:
    """Yield policies and the revisions that they stand at, some at a time, by revisions."""
    ordered = sorted(stand.items(), key=lambda item: (item[1], item[0][1]))
    for first in range(0, len(ordered), _POLICIES_AT_ONCE):
        yield dict(ordered[first : first + _POLICIES_AT_ONCE])


def grouped(stand: Mapping[PolicyId, int]) -> dict[int, set[str]]:
    """Return keys by a revision that none of them stands before.

    Most were imported together. Where they were not, some groups of them are enough, for what is
    found too early is passed over.
    """
    ordered = sorted(stand, key=lambda policy: stand[policy])
    keys: dict[int, set[str]] = {}
    size = max(len(ordered) // _GROUPS_MAX, 1)
    for first in range(0, len(ordered), size):
        some = ordered[first : first + size]
        keys.setdefault(stand[some[0]], set()).update(key for _, key in some)
    return keys


@judged
def named_beyond(documents: Iterable[Document], stand: Mapping[PolicyId, int]) -> set[PolicyId]:
    """Return the policies in what `changes_beyond` found that was later than they stand."""
    named = (
        ((policy["region"], policy["key"]), document["_id"]["revision"])
        for document in documents
        for policy in document["policies"]
    )
    return {policy for policy, revision in named if revision > stand.get(policy, 0)}


def follows(newest: PolicyChange | None, change: PolicyChange) -> bool:
    """Tell whether a change goes on from where a policy's newest one left it."""
    if newest is None or newest.after is not None:
        return change.before == (None if newest is None else newest.after)
    # Where a tombstone was removed, versions would begin anew.
    last, after = newest.before, change.after
    return change.before is None and bool(last and after and after.version > last.version)
