"""A simulated replica set: one log of what a majority has, and members that lag behind it.

No I/O and no time of its own: what happens, and when, it is told. Beyond what a majority has stand
writes that an election may roll back. A member that is cut off stays where it is; a primary that
others have replaced answers for a while as if it still were one.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypeAlias

from msgspec import Struct

from flagkit._core.model.changes import (
    Change,
    PolicyChange,
    PolicyId,
    PolicyState,
    Tip,
    build_genesis_tip,
    build_next_change,
)
from flagkit._core.snapshot import Snapshot, build_snapshot, list_snapshot_regions
from flagkit.client.sources import build_initial_segment, build_initial_state
from flagkit.testing import ENVIRONMENT

States: TypeAlias = Mapping[PolicyId, PolicyState]

KEYS: Final = ("f0", "f1", "f2", "f3", "f4")
MEMBER_COUNT: Final = 3


def _iter_documents() -> Iterator[dict[str, Any]]:
    """Yield versions of a few flags that rest on each other and on a segment."""
    for number, key in enumerate(KEYS):
        for region in ("*", "eu") if number < 2 else ("*",):
            for value in range(4):
                document: dict[str, Any] = {
                    "key": key,
                    "variants": {"a": value, "b": -value - 1},
                    "fallthrough": {"serve": "ab"[value % 2]},
                }
                if region != "*":
                    document["region"] = region
                if value > 1:
                    document["rules"] = [{"name": "s", "when": {"$segment": "staff"}, "serve": "b"}]
                if number > 2:
                    document["prerequisites"] = [{"flag": KEYS[number - 2], "variants": ["a"]}]
                yield document


_STAFF: Final = [
    build_initial_segment({"key": "staff", "included": included})
    for included in (["ada"], ["ada", "grace"], ["eve"])
]
_POOL: dict[PolicyId, list[PolicyState]] = {}
for _state in (*map(build_initial_state, _iter_documents()), *(state for state, _ in _STAFF)):
    _POOL.setdefault(_state.id, []).append(_state)
_IDS: Final = [*_POOL]
_DELETABLE: Final = {(region, key) for region, key in _IDS if region == "eu" or key in KEYS[3:]}
PARTS: Final = {name: part for _, parts in _STAFF for name, part in parts.items()}
"""All members that segments ever have."""


class HistoryBranch:
    """One course of a history: where it stood after each revision, and what led there."""

    def __init__(self, tips: list[Tip], changes: list[Change], states: list[States]) -> None:
        self.tips = tips
        self.changes = changes
        self.states = states

    def until(self, revision: int) -> "HistoryBranch":
        """Return a course that shares what this one was up to a revision."""
        return HistoryBranch(
            self.tips[: revision + 1], self.changes[:revision], self.states[: revision + 1]
        )

    def has(self, tip: Tip, revision: int) -> bool:
        """Tell whether a tip is one that led to a revision, or the tip there."""
        return tip.revision <= revision and self.tips[tip.revision].hash == tip.hash


class LogEntry(Struct):
    """Where the environment stands after an entry of the log, which a majority has since a time.

    `change` is what a stream brings of it, None if nothing; `ends` tells whether streams end at it.
    """

    time: float
    branch: HistoryBranch
    revision: int
    pruned_to: int
    change: Change | None = None
    ends: bool = False

    @property
    def tip(self) -> Tip:
        """Where the environment stands."""
        return self.branch.tips[self.revision]

    def has(self, tip: Tip) -> bool:
        """Tell whether a tip is of this history."""
        return self.branch.has(tip, self.revision)

    def reaches_back_to(self, tip: Tip) -> bool:
        """Tell whether the ledger leads on from a tip; the newest change is in the head."""
        return self.has(tip) and tip.revision >= min(self.pruned_to, self.revision - 1)

    def after(self, tip: Tip) -> Sequence[Change]:
        """Return the changes after a tip's revision, whatever they continue."""
        return self.branch.changes[tip.revision : self.revision]

    def snapshot(self, region: str) -> Snapshot:
        """Build what the environment is, as a region sees it."""
        kept = list_snapshot_regions(region)
        states = self.branch.states[self.revision].values()
        return build_snapshot(
            self.tip, region, [state for state in states if state.region in kept], PARTS
        )


class SimulatedMember:
    """One of the set. `position` counts the entries that it has; a restart breaks its streams."""

    def __init__(self) -> None:
        self.position = 1
        self.lag = 0.0
        self.restart_count = 0
        self.is_up = True
        self.is_cut_off = False


class StalePrimary(Struct):
    """A primary that goes on as one though another was elected: from when on, and until when.

    `entry` is the newest of what it has, `term` the one in which it was the primary.
    """

    member: SimulatedMember
    term: int
    entry: LogEntry
    since: float
    until: float


class SimulatedReplicaSet:
    """The set, its log and its one writer."""

    def __init__(self, chance: random.Random, wall: datetime) -> None:
        self._chance = chance
        self.members = [SimulatedMember() for _ in range(MEMBER_COUNT)]
        self.primary: SimulatedMember | None = self.members[0]
        self.term = 0
        self.deposed: list[StalePrimary] = []
        self.branch_of: dict[str, HistoryBranch] = {}
        """By the hash of a tip, a course that it is on."""
        self.rolled_back: set[str] = set()
        self._request_count = 0
        self.log = [LogEntry(0.0, self._begun(wall), 0, 0)]
        self.committed = 1

    @property
    def head(self) -> LogEntry:
        """The newest of what a majority has."""
        return self.log[self.committed - 1]

    def head_at(self, time: float) -> LogEntry:
        """Return what was the newest that a majority had, at a time."""
        index = self.committed - 1
        while self.log[index].time > time:
            index -= 1
        return self.log[index]

    def since(self, time: float) -> Iterator[LogEntry]:
        """Yield what a majority has since later than a time, the newest first."""
        index = self.committed - 1
        while self.log[index].time > time:
            yield self.log[index]
            index -= 1

    def of(self, member: SimulatedMember, now: float) -> LogEntry:
        """Return the newest of what a member knows that a majority has."""
        return self.log[self.position(member, now) - 1]

    def position(self, member: SimulatedMember, now: float) -> int:
        """Return how many entries a member has at a moment."""
        if member is self.primary:
            member.position = self.committed
        elif not member.is_cut_off and member.is_up:
            while (
                member.position < self.committed
                and self.log[member.position].time + member.lag <= now
            ):
                member.position += 1
        return member.position

    # What happens

    def write(self, now: float, wall: datetime) -> None:
        """Append a revision, which no majority has yet."""
        newest = self.log[-1]
        branch = newest.branch
        states = branch.states[-1]
        # All at first: what refers to a policy must find it.
        edits = [self._edit(states, policy) for policy in (self._some_ids() if states else _IDS)]
        change = self._append(branch, edits, wall)
        self.log.append(LogEntry(now, branch, change.revision, newest.pruned_to, change))

    def commit(self, now: float) -> None:
        """Have a majority have all that was written."""
        for entry in self.log[self.committed :]:
            entry.time = now
        self.committed = len(self.log)

    def roll_back(self) -> None:
        """Undo what no majority has."""
        for entry in reversed(self.log[self.committed :]):
            branch, tip = entry.branch, entry.tip
            self.rolled_back.add(tip.hash)
            del self.branch_of[tip.hash]
            del branch.tips[-1], branch.changes[-1], branch.states[-1]
        del self.log[self.committed :]

    def elect(self, now: float, reign: float) -> None:
        """Replace the primary by another that is up; it goes on as one for a while, if at all."""
        old = self.primary
        others = [member for member in self.members if member.is_up and member is not old]
        if not others:
            return
        if old is not None:
            self.position(old, now)
            if reign and old.is_up:
                old.is_cut_off = True
                self.deposed.append(StalePrimary(old, self.term, self.head, now, now + reign))
        self.primary = self._chance.choice(others)
        self.primary.is_cut_off = False
        self.term += 1
        for spell in self.deposed:
            if spell.member is self.primary:
                spell.until = min(spell.until, now)

    def prune(self, now: float, revision: int) -> None:
        """Forget the ledger up to a revision."""
        self.commit(now)
        head = self.head
        self.log.append(LogEntry(now, head.branch, head.revision, max(revision, head.pruned_to)))
        self.committed = len(self.log)

    def restore(self, now: float, revision: int) -> None:
        """Put an older state back without a word: what is written next forks the history."""
        self.roll_back()
        head = self.head
        branch = head.branch.until(revision)
        pruned_to = min(head.pruned_to, revision)
        self.log.append(LogEntry(now, branch, revision, pruned_to, ends=True))
        self.committed = len(self.log)

    def begin_anew(self, now: float, wall: datetime, revision: int, *, ends: bool) -> None:
        """Put an older state back as a new history, as one that was declared."""
        self.roll_back()
        held = self.head.branch.states[revision]
        branch = self._begun(wall)
        edits = [PolicyChange(None, state) for state in held.values()]
        change = self._append(branch, edits, wall)
        self.log.append(LogEntry(now, branch, 1, 0, None if ends else change, ends))
        self.committed = len(self.log)

    # What is written

    def _begun(self, wall: datetime) -> HistoryBranch:
        tip = build_genesis_tip(ENVIRONMENT, f"{self._chance.getrandbits(64):016x}", wall)
        branch = self.branch_of[tip.hash] = HistoryBranch([tip], [], [{}])
        return branch

    def _append(
        self, branch: HistoryBranch, edits: Iterable[PolicyChange], wall: datetime
    ) -> Change:
        self._request_count += 1
        edits = tuple(edits)
        states = {**branch.states[-1]}
        for edit in edits:
            if edit.after is None:
                del states[edit.id]
            else:
                states[edit.id] = edit.after
        parts = {name: PARTS[name] for edit in edits if edit.after for name in edit.after.parts}
        change = build_next_change(branch.tips[-1], f"{self._request_count}", wall, edits, parts)
        branch.tips.append(change.tip)
        branch.changes.append(change)
        branch.states.append(states)
        self.branch_of[change.tip.hash] = branch
        return change

    def _some_ids(self) -> Iterable[PolicyId]:
        count = 1 if self._chance.random() < 0.8 else 3
        # In the order drawn: a set would have another in each process.
        return dict.fromkeys(self._chance.choices(_IDS, k=count))

    def _edit(self, states: States, policy: PolicyId) -> PolicyChange:
        before = states.get(policy)
        if before is not None and policy in _DELETABLE and self._chance.random() < 0.2:
            return PolicyChange(before, None)
        drawn = self._chance.choice(_POOL[policy])
        version = before.version + 1 if before is not None else 1
        return PolicyChange(before, PolicyState(drawn.key, drawn.region, version, drawn.packed))
