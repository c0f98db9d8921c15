"""A linear-time automaton for a parsed pattern.

A position is a character of the pattern after repetitions are expanded. A border is the pair of
characters around a place in the text. A boundary such as `$` is a set of borders, so it needs no
step of its own: each position knows which positions may follow it at which borders.

A search holds the set of positions that the text so far can end with, as the bits of an integer,
and takes one step for each character. States, steps and successors are cached. All automata
together keep the newest CACHE_ENTRIES_MAX entries. Threads share them without a lock, because two
threads that compute the same entry get the same result.

Source: Glushkov, "The abstract theory of automata", 1961.
"""

import functools
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, TypeAlias, TypeVar

from msgspec import Struct

from flagkit._core.regex import parser

BORDERS = 20
NOTHING, NEWLINE, WORD, OTHER, LAST_NEWLINE = range(5)
"""The kinds of characters at a border. LAST_NEWLINE, on its right, is a newline at the end."""

Edges: TypeAlias = dict[int, int]
"""The positions that are reached, by the borders at which they are: bits of integers, both."""


def get_border(before: int, after: int) -> int:
    """Return the number of a border."""
    return before * 5 + after


def _collect_borders(holds: Callable[[int, int], bool]) -> int:
    return sum(
        1 << get_border(before, after)
        for before in (NOTHING, NEWLINE, WORD, OTHER)
        for after in (NOTHING, NEWLINE, WORD, OTHER, LAST_NEWLINE)
        if holds(before, after)
    )


ALL: Final = _collect_borders(lambda _, __: True)
START: Final = _collect_borders(lambda before, _: before == NOTHING)
PLACES: Final[Mapping[parser.Place, int]] = {
    "start": START,
    # After a newline that ends the text, MongoDB has no line.
    "line start": START
    | _collect_borders(lambda before, after: before == NEWLINE and after != NOTHING),
    "end": _collect_borders(lambda _, after: after in (NOTHING, LAST_NEWLINE)),
    "line end": _collect_borders(lambda _, after: after in (NOTHING, LAST_NEWLINE, NEWLINE)),
    "word edge": _collect_borders(lambda before, after: (before == WORD) != (after == WORD)),
    "no word edge": _collect_borders(lambda before, after: (before == WORD) == (after == WORD)),
}


class PatternPart(Struct, frozen=True):
    """The first and last positions of a part of a pattern, and borders where it may be empty."""

    first: Edges
    last: Edges
    empty: int


_EMPTY = PatternPart({}, {}, ALL)
_NEVER = PatternPart({}, {}, 0)


class Positions:
    """The positions of a pattern: `characters` of each, `follow` of each, and the `pattern`.

    If `plain`, a search that tries one way after the other never gets to one place in the text by
    two ways: no two positions with a character in common can come next, none follows another for
    two reasons, and nothing is empty for two reasons.

    Source of `plain`: Brüggemann-Klein, "Unambiguity of extended regular expressions", 1993.
    """

    def __init__(self, tree: parser.Node) -> None:
        self.characters: list[parser.Ranges] = []
        self.follow: list[Edges] = []
        self.plain = True
        self.endless = False
        self.pattern = self.add_part(tree)
        self.bounds, self.members = _partition_characters(self.characters)
        nexts = {union_positions(edges) for edges in (self.pattern.first, *self.follow)}
        self.plain = self.plain and not any(
            (members & positions).bit_count() > 1
            for members in set(self.members)
            for positions in nexts
        )

    @property
    def is_anchored(self) -> bool:
        """True if every match begins at the start of the text."""
        return not any(borders & ~START for borders in (self.pattern.empty, *self.pattern.first))

    def add_part(self, node: parser.Node) -> PatternPart:
        """Add the positions of a part of the pattern."""
        match node:
            case parser.Chars(ranges):
                edges = {ALL: 1 << len(self.characters)}
                self.characters.append(ranges)
                self.follow.append({})
                return PatternPart(edges, edges, 0)
            case parser.Boundary(place):
                return PatternPart({}, {}, PLACES[place])
            case parser.Sequence(parts):
                return functools.reduce(self.join_parts, map(self.add_part, parts), _EMPTY)
            case parser.Choice(branches):
                return functools.reduce(
                    self.merge_alternatives, map(self.add_part, branches), _NEVER
                )
            case parser.Repeat(inner, least, most):
                if most is None:
                    return self.repeat_unbounded(inner, least)
                # x{2,4} is xx(x(x)?)?: written so, none follows another for two reasons.
                whole = _EMPTY
                for i in range(most, 0, -1):
                    whole = self.join_parts(self.add_part(inner), whole)
                    if i > least:
                        whole = self.merge_alternatives(whole, _EMPTY)
                return whole

    def repeat_unbounded(self, node: parser.Node, least: int) -> PatternPart:
        """Return a part that is there at least so often: the last one as often as it likes."""
        before = functools.reduce(
            self.join_parts, (self.add_part(node) for _ in range(least - 1)), _EMPTY
        )
        loop = self.add_part(node)
        self.endless = True
        self.plain &= not loop.empty
        self.connect_edges(loop.last, loop.first)
        return self.join_parts(before, loop if least else self.merge_alternatives(loop, _EMPTY))

    def join_parts(self, left: PatternPart, right: PatternPart) -> PatternPart:
        """Return two parts in sequence."""
        self.connect_edges(left.last, right.first)
        return PatternPart(
            _merge_edges(left.first, _restrict_edges(right.first, left.empty)),
            _merge_edges(right.last, _restrict_edges(left.last, right.empty)),
            left.empty & right.empty,
        )

    def merge_alternatives(self, left: PatternPart, right: PatternPart) -> PatternPart:
        """Return one part or the other."""
        self.plain &= not (left.empty and right.empty)
        return PatternPart(
            _merge_edges(left.first, right.first),
            _merge_edges(left.last, right.last),
            left.empty | right.empty,
        )

    def connect_edges(self, last: Edges, first: Edges) -> None:
        """Let positions follow others, at the borders that both allow."""
        for last_at, ends in last.items():
            for first_at, starts in first.items():
                if not last_at & first_at:
                    continue
                for position in iter_bits(ends):
                    edges = self.follow[position]
                    self.plain &= not union_positions(edges) & starts
                    edges[last_at & first_at] = edges.get(last_at & first_at, 0) | starts


def _partition_characters(characters: Iterable[parser.Ranges]) -> tuple[list[int], list[int]]:
    """Return bounds of code points, and the positions that match the characters between them."""
    sharing: dict[parser.Ranges, int] = {}
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


def union_positions(edges: Edges) -> int:
    """Return the positions that are reached at any border."""
    found = 0
    for positions in edges.values():
        found |= positions
    return found


def iter_bits(number: int) -> Iterator[int]:
    """Yield the places of the bits of a number."""
    while number:
        low = number & -number
        yield low.bit_length() - 1
        number ^= low


def _restrict_edges(edges: Edges, borders: int) -> Edges:
    found: Edges = {}
    for at, positions in edges.items():
        if at & borders:
            found[at & borders] = found.get(at & borders, 0) | positions
    return found


def _merge_edges(left: Edges, right: Edges) -> Edges:
    found = dict(left)
    for at, positions in right.items():
        found[at] = found.get(at, 0) | positions
    return found


_Key = TypeVar("_Key")
_Value = TypeVar("_Value")

CACHE_ENTRIES_MAX = 32_768
_ASCII = 128
_BEYOND = chr(_ASCII)
_END = ""
_LAST = "\n$"
_AFTER: Final = {_END: NOTHING, _LAST: LAST_NEWLINE, "\n": NEWLINE} | dict.fromkeys(
    "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz", WORD
)

_cache_entries: deque[tuple[dict[Any, Any], object]] = deque()
"""The tables and keys of all cache entries, the oldest first."""


def _cache(table: dict[_Key, _Value], key: _Key, value: _Value) -> _Value:
    """Put a value into a table, in the place of the oldest of all if there are too many."""
    if len(_cache_entries) >= CACHE_ENTRIES_MAX:
        oldest, its_key = _cache_entries.popleft()
        oldest.pop(its_key, None)
    _cache_entries.append((table, key))
    table[key] = value
    return value


class _State(dict[str, "_State"]):
    """A set of positions, and the kind of the last character. Maps the next one to a state."""

    __slots__ = ("automaton", "before", "positions")

    def __init__(self, automaton: "Automaton | None", positions: int, before: int) -> None:
        self.automaton = automaton
        self.positions = positions
        self.before = before

    def __missing__(self, symbol: str) -> "_State":
        assert self.automaton is not None, "the search ends where it has found"
        return self.automaton.advance(self, symbol)


class _Unions(dict[str, int]):
    """The positions after some of four positions, at one border. Keys are their bits in hex."""

    __slots__ = ("at", "automaton", "first")

    def __init__(self, automaton: "Automaton", at: int, first: int) -> None:
        self.automaton = automaton
        self.at = at
        self.first = first

    def __missing__(self, digit: str) -> int:
        found = 0
        for position in iter_bits(int(digit, 16) << self.first):
            found |= _collect_at_border(self.automaton.follow[position], self.at)
        return _cache(self, digit, found)


_FOUND: Final = _State(None, 0, NOTHING)


class Automaton:
    """A pattern that can be searched for."""

    def __init__(self, positions: Positions) -> None:
        self.follow = positions.follow
        self.first = [_collect_at_border(positions.pattern.first, at) for at in range(BORDERS)]
        self.last = [_collect_at_border(positions.pattern.last, at) for at in range(BORDERS)]
        self.empty = positions.pattern.empty
        self.bounds, self.members = positions.bounds, positions.members
        # One character represents all that no position and no border distinguishes from it. A state
        # thus has few transitions for any text.
        alike: dict[tuple[int, int], str] = {}
        for symbol in map(chr, range(_ASCII)):
            alike.setdefault(self._classify(symbol), symbol)
        self.ascii = "".join(alike[self._classify(chr(code))] for code in range(_ASCII))
        self.beyond = [chr(min(max(bound, _ASCII), parser.LAST)) for bound in (0, *self.bounds)]
        self.start = _State(self, 0, NOTHING)
        self.states: dict[tuple[int, int], _State] = {}
        self.unions: dict[int, list[_Unions]] = {}

    def search(self, text: str) -> bool:
        """Return True if a text contains the pattern."""
        state = self.start
        last = text.endswith("\n")
        if last:
            text = text[:-1]
        symbols: Iterable[str] = text.translate(self.ascii)
        if not text.isascii():
            symbols = [
                symbol if symbol < _BEYOND else self.beyond[bisect_right(self.bounds, ord(symbol))]
                for symbol in symbols
            ]
        for character in symbols:
            state = state[character]
            if state is _FOUND:
                return True
        if last:
            state = state[_LAST]
        return state is _FOUND or state[_END] is _FOUND

    def _classify(self, symbol: str) -> tuple[int, int]:
        return bisect_right(self.bounds, ord(symbol)), _AFTER.get(symbol, OTHER)

    def advance(self, state: _State, symbol: str) -> _State:
        """Work out the state after a symbol, and keep it."""
        after = _AFTER.get(symbol, OTHER)
        at = get_border(state.before, after)
        if state.positions & self.last[at] or self.empty >> at & 1:
            reached = _FOUND
        elif symbol == _END:
            reached = self.start  # Any but _FOUND.
        else:
            members = self.members[bisect_right(self.bounds, ord(symbol[0]))]
            positions = self.get_successors(state.positions, at) & members
            before = NEWLINE if after == LAST_NEWLINE else after
            known = self.states.get((positions, before))
            if known is None:
                known = _State(self, positions, before)
                _cache(self.states, (positions, before), known)
            reached = known
        return _cache(state, symbol, reached)

    def get_successors(self, positions: int, at: int) -> int:
        """Return what can come after some positions, or first, at a border."""
        found = self.first[at]
        # By four positions at once: one by one, a step would take several times as long.
        unions = self.unions.get(at)
        if unions is None:
            starts = range(0, len(self.follow) + 1, 4)
            unions = self.unions[at] = [_Unions(self, at, start) for start in starts]
        for union, digit in zip(unions, reversed(f"{positions:0{len(unions)}x}"), strict=True):
            found |= union[digit]
        return found


def _collect_at_border(edges: Edges, at: int) -> int:
    found = 0
    for borders, positions in edges.items():
        if borders >> at & 1:
            found |= positions
    return found
