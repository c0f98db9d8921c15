"""Positions: which characters of a pattern can follow which others, and between what.

A position is a character of the pattern, repetitions written out. A border is what stands before
and after a place in a text; a boundary such as `$` is a set of borders, so that a boundary is no
step of its own: each position knows at which borders which others follow.

Source: Glushkov, "The abstract theory of automata", 1961.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, TypeAlias

from msgspec import Struct

from flagkit.model.patterns import Boundary, Chars, Choice, Node, Place, Ranges, Repeat, Sequence

BORDERS = 20
NOTHING, NEWLINE, WORD, OTHER, LAST_NEWLINE = range(5)
"""What stands on a side of a border. The last is, on its right, a newline that ends the text."""

Edges: TypeAlias = dict[int, int]
"""The positions that are reached, by the borders at which they are: bits of integers, both."""


def border(before: int, after: int) -> int:
    """Return the number of a border."""
    return before * 5 + after


def _borders(holds: Callable[[int, int], bool]) -> int:
    return sum(
        1 << border(before, after)
        for before in (NOTHING, NEWLINE, WORD, OTHER)
        for after in (NOTHING, NEWLINE, WORD, OTHER, LAST_NEWLINE)
        if holds(before, after)
    )


ALL: Final = _borders(lambda _, __: True)
START: Final = _borders(lambda before, _: before == NOTHING)
PLACES: Final[Mapping[Place, int]] = {
    "start": START,
    # After a newline that ends the text, MongoDB has no line.
    "line start": START | _borders(lambda before, after: before == NEWLINE and after != NOTHING),
    "end": _borders(lambda _, after: after in (NOTHING, LAST_NEWLINE)),
    "line end": _borders(lambda _, after: after in (NOTHING, LAST_NEWLINE, NEWLINE)),
    "word edge": _borders(lambda before, after: (before == WORD) != (after == WORD)),
    "no word edge": _borders(lambda before, after: (before == WORD) == (after == WORD)),
}


class Part(Struct, frozen=True):
    """What a part of a pattern begins and ends with, and at which borders it may be empty."""

    first: Edges
    last: Edges
    empty: int


_EMPTY = Part({}, {}, ALL)
_NEVER = Part({}, {}, 0)


class Positions:
    """The positions of a pattern: `characters` of each, `follow` of each, and the `whole`.

    If `plain`, a search that tries one way after the other never gets to one place in the text by
    two ways: no two positions with a character in common can come next, none follows another for
    two reasons, and nothing is empty for two reasons.

    Source of `plain`: Brüggemann-Klein, "Unambiguity of extended regular expressions", 1993.
    """

    def __init__(self, tree: Node) -> None:
        self.characters: list[Ranges] = []
        self.follow: list[Edges] = []
        self.plain = True
        self.endless = False
        self.whole = self.part(tree)
        self.bounds, self.members = _members(self.characters)
        nexts = {all_of(edges) for edges in (self.whole.first, *self.follow)}
        self.plain = self.plain and not any(
            (members & positions).bit_count() > 1
            for members in set(self.members)
            for positions in nexts
        )

    @property
    def anchored(self) -> bool:
        """Whether all that is found is found at the start of the text."""
        return not any(borders & ~START for borders in (self.whole.empty, *self.whole.first))

    def part(self, node: Node) -> Part:
        """Add the positions of a part of the pattern."""
        match node:
            case Chars(ranges):
                edges = {ALL: 1 << len(self.characters)}
                self.characters.append(ranges)
                self.follow.append({})
                return Part(edges, edges, 0)
            case Boundary(place):
                return Part({}, {}, PLACES[place])
            case Sequence(parts):
                return functools.reduce(self.join, map(self.part, parts), _EMPTY)
            case Choice(branches):
                return functools.reduce(self.either, map(self.part, branches), _NEVER)
            case Repeat(inner, least, most):
                if most is None:
                    return self.endlessly(inner, least)
                # x{2,4} is xx(x(x)?)?: written so, none follows another for two reasons.
                whole = _EMPTY
                for i in range(most, 0, -1):
                    whole = self.join(self.part(inner), whole)
                    if i > least:
                        whole = self.either(whole, _EMPTY)
                return whole

    def endlessly(self, node: Node, least: int) -> Part:
        """Return a part that is there at least so often: the last one as often as it likes."""
        before = functools.reduce(self.join, (self.part(node) for _ in range(least - 1)), _EMPTY)
        loop = self.part(node)
        self.endless = True
        self.plain &= not loop.empty
        self.connect(loop.last, loop.first)
        return self.join(before, loop if least else self.either(loop, _EMPTY))

    def join(self, left: Part, right: Part) -> Part:
        """Return two parts in sequence."""
        self.connect(left.last, right.first)
        return Part(
            _either(left.first, _at(right.first, left.empty)),
            _either(right.last, _at(left.last, right.empty)),
            left.empty & right.empty,
        )

    def either(self, left: Part, right: Part) -> Part:
        """Return one part or the other."""
        self.plain &= not (left.empty and right.empty)
        return Part(
            _either(left.first, right.first),
            _either(left.last, right.last),
            left.empty | right.empty,
        )

    def connect(self, last: Edges, first: Edges) -> None:
        """Let positions follow others, where both may."""
        for last_at, ends in last.items():
            for first_at, starts in first.items():
                if not last_at & first_at:
                    continue
                for position in bits(ends):
                    edges = self.follow[position]
                    self.plain &= not all_of(edges) & starts
                    edges[last_at & first_at] = edges.get(last_at & first_at, 0) | starts


def _members(characters: Iterable[Ranges]) -> tuple[list[int], list[int]]:
    """Return bounds of code points, and the positions that have what is before and after each."""
    sharing: dict[Ranges, int] = {}
    for i, ranges in enumerate(characters):
        sharing[ranges] = sharing.get(ranges, 0) | 1 << i
    changes: dict[int, int] = {}
    for ranges, positions in sharing.items():
        for low, high in ranges:
            changes[low] = changes.get(low, 0) ^ positions
            changes[high + 1] = changes.get(high + 1, 0) ^ positions
    bounds = sorted(changes)
    members = [0]
    for bound in bounds:
        members.append(members[-1] ^ changes[bound])
    return bounds, members


def all_of(edges: Edges) -> int:
    """Return the positions that are reached at any border."""
    found = 0
    for positions in edges.values():
        found |= positions
    return found


def bits(number: int) -> Iterator[int]:
    """Yield the places of the bits of a number."""
    while number:
        low = number & -number
        yield low.bit_length() - 1
        number ^= low


def _at(edges: Edges, borders: int) -> Edges:
    found: Edges = {}
    for at, positions in edges.items():
        if at & borders:
            found[at & borders] = found.get(at & borders, 0) | positions
    return found


def _either(left: Edges, right: Edges) -> Edges:
    found = dict(left)
    for at, positions in right.items():
        found[at] = found.get(at, 0) | positions
    return found
