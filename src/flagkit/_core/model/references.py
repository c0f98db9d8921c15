"""References between flags: prerequisites that must exist after a change and must form no cycle.

A change loads only the flags that it touches and the flags around them.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NoReturn, Protocol

from flagkit._core.model import EVERYWHERE, Flag, decode
from flagkit._core.model.changes import ACCESS, SEGMENTS, PolicyId, PolicyState
from flagkit._core.suggestions import suggested
from flagkit.errors import BrokenReferenceError


class Neighbours(Protocol):
    """Finds the flags that a change refers to, and those that depend on it."""

    def find_flags(self, keys: Iterable[str]) -> dict[PolicyId, PolicyState]:
        """Return the states of some flags, in all regions."""
        ...

    def find_dependents(self, keys: Iterable[str]) -> dict[PolicyId, PolicyState]:
        """Return the states of the flags that have one of `keys` as a direct prerequisite."""
        ...

    def find_similar_keys(self, policy: PolicyId) -> Iterable[str]:
        """Return keys of flags, or of segments, among them those that are near to a key."""
        ...


class ReferenceChecker:
    """The flags that a change touches and those around them, in their next state."""

    def __init__(
        self,
        neighbours: Neighbours,
        previous: Mapping[PolicyId, PolicyState],
        changed: Mapping[PolicyId, Flag | None],
    ) -> None:
        self._neighbours = neighbours
        self._previous = previous
        self._changed = changed
        self._by_key: dict[str, dict[str, Flag]] = {}
        self._add_states(previous, {key for _, key in changed})
        for (region, key), flag in changed.items():
            if flag is not None:
                self._by_key[key][region] = flag

    def check(self) -> None:
        """Raise BrokenReferenceError if a prerequisite would dangle or close a cycle."""
        self._load_prerequisites()
        for flag in filter(None, self._changed.values()):
            for i in range(len(flag.prerequisites)):
                self._check_prerequisite(flag, i)
        changed_keys = {key for _, key in self._changed}
        # No flag can depend on a flag that existed in no region.
        there = {key for _, key in self._previous}
        lessened = {
            identity[1]
            for identity in self._changed
            if identity[1] in there and self._can_break_dependents(identity)
        }
        dependents = self._neighbours.find_dependents(lessened) if lessened else {}
        for identity, state in dependents.items():
            if identity not in self._changed:
                flag = decode(state.policy, stored=True)
                for i, prerequisite in enumerate(flag.prerequisites):
                    if prerequisite.flag in changed_keys:
                        self._check_prerequisite(flag, i)
        self._check_cycles(
            {key for (_, key), flag in self._changed.items() if flag and flag.prerequisites}
        )

    def _can_break_dependents(self, identity: PolicyId) -> bool:
        """Return True if a change may break flags that depend on the changed flag."""
        before, after = self._previous.get(identity), self._changed[identity]
        if before is None or after is None:
            # A new override hides the flag of all regions.
            return True
        return not before.policy.get("variants", {}).keys() <= after.variants.keys()

    def _add_states(self, states: Mapping[PolicyId, PolicyState], keys: Iterable[str]) -> None:
        for key in keys:
            self._by_key[key] = {}
        for (region, key), state in states.items():
            if region not in (SEGMENTS, ACCESS) and (region, key) not in self._changed:
                self._by_key[key][region] = decode(state.policy, stored=True)

    def _load_prerequisites(self) -> None:
        """Read all that the changed flags depend on, level by level.

        Each flag is looked at once: chains of prerequisites may be thousands of flags long.
        """
        level: Iterable[str] = tuple(self._by_key)
        while wanted := {
            needed
            for key in level
            for needed in self._iter_prerequisites(key)
            if needed not in self._by_key
        }:
            self._add_states(self._neighbours.find_flags(wanted), wanted)
            level = wanted

    def _check_prerequisite(self, flag: Flag, index: int) -> None:
        prerequisite = flag.prerequisites[index]
        path = f"prerequisites[{index}]"
        regions = self._by_key[prerequisite.flag]
        if EVERYWHERE not in regions and flag.region not in regions:
            gone = any(key == prerequisite.flag for _, key in self._changed)
            remedy = f"{'Remove' if gone else 'Create'} it before, or in the same change"
            if not gone:
                others = {key for _, key in self._changed} - {flag.key}
                near = self._neighbours.find_similar_keys((EVERYWHERE, prerequisite.flag))
                known = [key for key in (*others, *near) if key != flag.key]
                remedy = suggested(remedy, prerequisite.flag, known)
            raise BrokenReferenceError(
                f"{path}.flag",
                f"{prerequisite.flag!r} does not exist{' any more' if gone else ''}"
                f"{_format_region(flag.region)}",
                remedy,
                subject=f"flag {flag.key!r}",
            )
        for region, other in regions.items():
            # An override refers to the other flag as the override's region sees it.
            hidden = region == EVERYWHERE and flag.region in regions
            if flag.region != EVERYWHERE and (hidden or region not in (EVERYWHERE, flag.region)):
                continue
            unknown = set(prerequisite.variants) - other.variants.keys()
            if unknown:
                variant = min(unknown)
                raise BrokenReferenceError(
                    f"{path}.variants",
                    f"{variant!r} is no variant of {prerequisite.flag!r}{_format_region(region)}",
                    suggested(f"It has: {', '.join(other.variants)}", variant, other.variants),
                    subject=f"flag {flag.key!r}",
                )

    def _check_cycles(self, keys: Iterable[str]) -> None:
        """Follow prerequisites in all regions together; a path back to its start is a cycle."""
        done: set[str] = set()
        for start in sorted(keys):
            way: dict[str, Iterator[str]] = {}
            following = [start] if start not in done else []
            while following:
                key = following.pop()
                way[key] = iter(self._iter_prerequisites(key))
                while way:
                    last = next(reversed(way))
                    needed = next((name for name in way[last] if name not in done), None)
                    if needed is None:
                        way.popitem()
                        done.add(last)
                        continue
                    if needed in way:
                        self._refuse_cycle([*way], needed)
                    following.append(needed)
                    break

    def _iter_prerequisites(self, key: str) -> Iterator[str]:
        for flag in self._by_key[key].values():
            for prerequisite in flag.prerequisites:
                yield prerequisite.flag

    def _refuse_cycle(self, way: list[str], start: str) -> NoReturn:
        cycle = way[way.index(start) :]
        raise BrokenReferenceError(
            "prerequisites",
            f"form a cycle: {' -> '.join((*cycle, start))}",
            "Remove one of these prerequisites",
            subject=f"flag {start!r}",
        )


def _format_region(region: str) -> str:
    return "" if region == EVERYWHERE else f" in region {region}"
