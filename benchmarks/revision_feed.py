"""Revisions: a history that goes on from a catalogue, as fast as a benchmark wants it.

A writer commits some hundred changes a second. These are sealed and chained as a writer's are, and
put into heads and ledger as they would be; flags are not projected, which clients read only when
they load. A revision changes rollouts: W2, which each of them changes, and others in turn, all
through the catalogue and again.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Final

from benchmarks import catalogue
from benchmarks.catalogue import SHARES, Document, build_entry
from benchmarks.workloads import FLAGS, W2
from flagkit._core.model.changes import Change, PolicyChange, PolicyState, Tip, build_next_change

CHANGED: Final[Mapping[str, Any]] = next(flag for flag in FLAGS if flag["key"] == W2)


def iter_changes(tip: Tip, flag_count: int, others_count: int) -> Iterator[Change]:
    """Yield the changes after a tip for ever.

    Args:
        tip: Where the history stands, at a catalogue as it is drawn.
        flag_count: The size of the catalogue.
        others_count: How many flags a revision changes beside W2.
    """
    held: dict[str, PolicyState] = {}
    others = itertools.cycle(_iter_rollouts(flag_count))
    shares = itertools.cycle(SHARES)
    while True:
        flags = [CHANGED, *itertools.islice(others, others_count)]
        edits = [_build_edit(flag, held, next(shares)) for flag in flags]
        change = build_next_change(tip, f"request-{tip.revision + 1}", tip.time, edits)
        tip = change.tip
        yield change


def _build_edit(flag: Mapping[str, Any], held: dict[str, PolicyState], share: int) -> PolicyChange:
    key = flag["key"]
    before = held.get(key) or build_entry(flag).state
    changed = {**flag, "fallthrough": {"rollout": share}}
    after = held[key] = build_entry(changed, before.version + 1).state
    return PolicyChange(before, after)


def _iter_rollouts(flag_count: int) -> Iterator[Document]:
    documents = catalogue.iter_documents(flag_count)
    return (flag for flag in documents if "rollout" in flag["fallthrough"])
