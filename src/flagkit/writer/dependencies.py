"""Dependencies: the segments and prerequisites that the answers of changed flags depend on.

A proposal records their versions, so that it is void once one of them moves. They are followed to
any depth, from the documents before and after the change, in the regions that it concerns.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Struct

from flagkit.changes import ACCESS, SEGMENTS, PolicyChange, PolicyId, PolicyState
from flagkit.model import EVERYWHERE, decode
from flagkit.model.flags import segments_of
from flagkit.storage.reading import Reading

_ANY_VERSION: Final = 0

Which: TypeAlias = Literal["exact", "seen", "all", "overridden"]


class Version(Struct, frozen=True, order=True):
    """The version of a flag or a segment, of which each region has its own."""

    region: str
    version: int


class Dependency(Struct, frozen=True, kw_only=True):
    """What a change depends on, with the versions that it had.

    Attributes:
        key: Of a flag, or a segment.
        which: `exact` is the one in `region`. `seen` is the flag that `region` is served: its
            override, or else the flag of all regions. `all` are the flags in all regions but those
            in `but`. `overridden` are the regions whose overrides hide a changed flag, at whatever
            version.
        region: Of `exact` and `seen`.
        but: The regions that `all` leaves out: an override that stays hides the changed flag there.
        versions: By region; none of what was not there.
    """

    key: str
    which: Which
    region: str = EVERYWHERE
    but: tuple[str, ...] = ()
    versions: tuple[Version, ...] = ()

    def moved(self, now: Sequence[Version]) -> tuple[PolicyId, str] | None:
        """Return what has another version now, and in words which; None if nothing has."""
        then_by, now_by = _by_region(self.versions), _by_region(now)
        # A new override takes nothing but a region from what was proposed.
        regions = then_by if self.which == "overridden" else then_by | now_by
        differing = [region for region in regions if then_by.get(region) != now_by.get(region)]
        if not differing:
            return None
        # Where another flag is seen instead, it is that one that says more.
        region = next((name for name in sorted(differing) if name in now_by), min(differing))
        if self.which == "overridden":
            return (region, self.key), f"is not overridden in {region} any more"
        kind = "a segment" if region == SEGMENTS else "a flag"
        where = "" if region in (SEGMENTS, EVERYWHERE) else f", in {region}"
        change = moved(then_by.get(region), now_by.get(region))
        return (region, self.key), f"({kind} that it depends on{where}) {change}"


def moved(then: int | None, now: int | None) -> str:
    """Return in words how a version differs from what it was; None is of what is not there."""
    there = "is not there any more" if now is None else f"is at version {now}"
    return f"{there}, and {'was not there' if then is None else f'was at {then}'}"


def dependencies_of(reading: Reading, changes: Iterable[PolicyChange]) -> list[Dependency]:
    """Return all that the flags of a planned change depend on, as it stands at a reading."""
    found = _Walk(reading, changes).run()
    versions = standing(reading, found)
    return [
        msgspec.structs.replace(dependency, versions=there)
        for dependency, there in zip(found, versions, strict=True)
        if there or dependency.which != "overridden"
    ]


def standing(reading: Reading, dependencies: Sequence[Dependency]) -> list[tuple[Version, ...]]:
    """Return the versions that dependencies have at a reading, each sorted by region."""
    segments = {item.key for item in dependencies if item.region == SEGMENTS}
    flags = {item.key for item in dependencies if item.region != SEGMENTS}
    by_key: dict[str, dict[str, int]] = {}
    for (region, key), state in reading.find(flags).items() if flags else ():
        by_key.setdefault(key, {})[region] = state.version
    found = reading.segments(segments) if segments else {}
    versions: list[tuple[Version, ...]] = []
    for item in dependencies:
        if item.region != SEGMENTS:
            there = _chosen(by_key.get(item.key, {}), item)
        elif (SEGMENTS, item.key) in found:
            there = {SEGMENTS: found[SEGMENTS, item.key].version}
        else:
            there = {}
        versions.append(tuple(sorted(Version(*pair) for pair in there.items())))
    return versions


def documents_of(dependencies: Iterable[Dependency]) -> list[dict[str, Any]]:
    """Return the documents that a proposal has of its dependencies."""
    return [msgspec.to_builtins(dependency) for dependency in dependencies]


class _Walk:
    """The way from the flags that a change touches to all that they depend on."""

    def __init__(self, reading: Reading, changes: Iterable[PolicyChange]) -> None:
        self._reading = reading
        self._changes = {
            change.id: change for change in changes if change.id[0] not in (SEGMENTS, ACCESS)
        }
        self._states: dict[str, dict[str, PolicyState]] = {}
        self._found: dict[Dependency, None] = {}
        self._next: list[Dependency] = []

    def run(self) -> list[Dependency]:
        self._learn({key for _, key in self._changes})
        for change in self._changes.values():
            self._begin(change)
        while self._next:
            some, self._next = self._next, []
            self._learn({item.key for item in some})
            for item in some:
                for state in self._seen(item):
                    self._follow(state, item)
        return [*self._found]

    def _begin(self, change: PolicyChange) -> None:
        region, key = change.id
        sides = [side for side in (change.before, change.after) if side is not None]
        if region == EVERYWHERE:
            stay = [
                other
                for other in self._states[key]
                if other != EVERYWHERE and self._after((other, key)) is not None
            ]
            self._found[Dependency(key=key, which="overridden")] = None
            scope = Dependency(key=key, which="all", but=tuple(sorted(stay)))
        else:
            scope = Dependency(key=key, which="seen", region=region)
            if len(sides) == 1:
                # An override that comes or goes hides, or bares, the flag of all regions.
                bare = Dependency(key=key, which="exact")
                self._found[bare] = None
                sides += self._seen(bare)
        for side in sides:
            self._follow(side, scope)

    def _follow(self, state: PolicyState, scope: Dependency) -> None:
        """Note what a flag refers to, for regions as a dependency has them."""
        if b"$segment" not in state.packed and b"prerequisites" not in state.packed:
            return
        flag = decode(state.policy, stored=True)
        for segment in sorted(segments_of(flag)):
            self._found[Dependency(key=segment, which="exact", region=SEGMENTS)] = None
        for needed in flag.prerequisites:
            item = msgspec.structs.replace(scope, key=needed.flag)
            if item not in self._found:
                self._found[item] = None
                self._next.append(item)

    def _seen(self, item: Dependency) -> Iterator[PolicyState]:
        """Yield the flags that a dependency is on, before the change and after it."""
        before = self._states.get(item.key, {})
        yield from _chosen(before, item).values()
        after = {
            region: state
            for region in {*before, *(region for region, key in self._changes if key == item.key)}
            if (state := self._after((region, item.key))) is not None
        }
        yield from _chosen(after, item).values()

    def _after(self, identity: PolicyId) -> PolicyState | None:
        change = self._changes.get(identity)
        if change is not None:
            return change.after
        return self._states.get(identity[1], {}).get(identity[0])

    def _learn(self, keys: set[str]) -> None:
        new = keys - self._states.keys()
        if new:
            self._states |= {key: {} for key in new}
            for (region, key), state in self._reading.find(new).items():
                self._states[key][region] = state


def _chosen(by_region: Mapping[str, Any], item: Dependency) -> dict[str, Any]:
    """Return those of a flag's states, or versions, that a dependency is on."""
    match item.which:
        case "exact":
            regions = {item.region}
        case "seen":
            regions = {item.region if item.region in by_region else EVERYWHERE}
        case "overridden":
            return dict.fromkeys(by_region.keys() - {EVERYWHERE}, _ANY_VERSION)
        case _:
            regions = by_region.keys() - {*item.but}
    return {region: by_region[region] for region in regions if region in by_region}


def _by_region(versions: Iterable[Version]) -> dict[str, int]:
    return {item.region: item.version for item in versions}
