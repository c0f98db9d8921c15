"""Assignments: which variant each bucket is served, compared between two states of a flag."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from flagkit.core.schedule import share_at
from flagkit.model import Flag, Ramp, Rollout, Serve, Serves
from flagkit.model.rollouts import BUCKETS, Intervals, allocate, owned_by
from flagkit.model.values import Value, exact
from flagkit.model.windows import Window


class Place(NamedTuple):
    """A rule, or the fallthrough, which stands last and has no name.

    `test` stands for the condition and the window that a context has to pass to be decided here.
    """

    path: str
    name: str | None
    test: bytes
    serves: Serves

    @property
    def is_split(self) -> bool:
        """Whether it serves different keys different variants."""
        return not isinstance(self.serves, Serve)


class Meeting(NamedTuple):
    """Two places, and whether one became the other: it has the same name or the same test."""

    old: Place
    new: Place
    is_same_place: bool

    @property
    def is_hashed_anew(self) -> bool:
        """Whether one place goes on splitting keys, but puts them into other buckets."""
        stays_split = self.is_same_place and self.old.is_split and self.new.is_split
        return stays_split and not has_same_hash(self.old.serves, self.new.serves)


def _test(when: Mapping[str, Value], during: Window | None) -> bytes:
    return exact((when, during))


_ALWAYS: Final = _test({}, None)
"""The test of the fallthrough, and of a rule with neither a condition nor a window."""


def places_of(flag: Flag) -> list[Place]:
    """Return the places of a flag, in the order in which a context meets them."""
    rules = [
        Place(f"rules[{i}]", rule.name, _test(rule.when, rule.during), rule.serves)
        for i, rule in enumerate(flag.rules)
    ]
    return [*rules, Place("fallthrough", None, _ALWAYS, flag.fallthrough)]


def meetings(old: Flag, new: Flag) -> Iterator[Meeting]:
    """Yield each place of the old flag with each place of the new one that may decide after it.

    A context that place P decides in the old flag, and place Q in the new one, passes the tests of
    both. It fails every test before P in the old flag, and every test before Q in the new one. Two
    places that no context can meet so are left out. In a flag whose tests stay as they are, each
    place meets only itself.
    """
    before, after = places_of(old), places_of(new)
    first_before, first_after = _first_positions(before), _first_positions(after)
    for j, place in enumerate(after):
        for i, earlier in enumerate(before):
            is_reached = (
                first_after.get(earlier.test, j) >= j
                and first_before.get(place.test, i) >= i
                and first_after[_ALWAYS] >= j
                and first_before[_ALWAYS] >= i
            )
            if is_reached:
                same = earlier.name == place.name or earlier.test == place.test
                yield Meeting(earlier, place, same)


def _first_positions(places: list[Place]) -> dict[bytes, int]:
    return {place.test: i for i, place in reversed([*enumerate(places)])}


def has_same_hash(one: Serves, other: Serves) -> bool:
    """Tell whether two splits put each key into the same bucket."""
    if isinstance(one, Serve) or isinstance(other, Serve):
        return False
    return (one.by, one.salt) == (other.by, other.salt)


def intervals_at(serves: Serves, moment: float) -> Intervals:
    """Return the intervals by which keys are served at a moment, in seconds since 1970.

    One variant for everybody is one interval of all buckets.
    """
    match serves:
        case Serve():
            return ((BUCKETS, serves.variant),)
        case Rollout():
            return serves.intervals
        case Ramp():
            # A ramp fills the buckets from below.
            share = share_at(serves, moment)
            shares = {serves.variant: share, serves.otherwise: BUCKETS - share}
            return allocate(shares)


class Moved(NamedTuple):
    """A share of BUCKETS that is served one variant before, and another or the same one after."""

    share: float
    before: str
    after: str


def moves(old: Serves, new: Serves, moment: float) -> Iterator[Moved]:
    """Yield what becomes of the keys that one place serves before a change, and another after it.

    Keys that are hashed by another attribute or another salt fall into independent buckets. Then
    shares are expected values.
    """
    before, after = intervals_at(old, moment), intervals_at(new, moment)
    if isinstance(old, Serve) or isinstance(new, Serve) or has_same_hash(old, new):
        yield from _overlay(before, after)
        return
    for ours, one in owned_by(before).items():
        for theirs, other in owned_by(after).items():
            yield Moved(one * other / BUCKETS, ours, theirs)


def is_drawn_again(found: Sequence[Moved]) -> bool:
    """Tell whether more keys move than the shares differ, so that variants exchange keys."""
    change: dict[str, float] = defaultdict(float)
    for share, before, after in found:
        change[after] += share
        change[before] -= share
    least = sum(map(abs, change.values())) / 2
    return sum(share for share, before, after in found if before != after) > least + 0.5


def _overlay(before: Intervals, after: Intervals) -> Iterator[Moved]:
    start, i, j = 0, 0, 0
    while start < BUCKETS:
        (one, ours), (other, theirs) = before[i], after[j]
        end = min(one, other)
        yield Moved(end - start, ours, theirs)
        start, i, j = end, i + (end == one), j + (end == other)
