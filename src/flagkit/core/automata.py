"""Automata: searching for a pattern in time linear in the text, whatever the pattern.

A search holds the set of positions that the text so far can end with, as the bits of an integer,
and takes one step for each character. What was worked out is kept, and makes the next search fast:
the sets as states, the steps from them, what can follow. All automata together keep KEPT_MAX of
these, the newest. Threads share them without a lock: what two of them work out at once is the same.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable
from typing import Any, Final, TypeVar

from flagkit.core.positions import (
    BORDERS,
    LAST_NEWLINE,
    NEWLINE,
    NOTHING,
    OTHER,
    WORD,
    Edges,
    Positions,
    bits,
    border,
)
from flagkit.model.patterns import LAST

_Key = TypeVar("_Key")
_Kept = TypeVar("_Kept")

KEPT_MAX = 32_768
_ASCII = 128
_BEYOND = chr(_ASCII)
_END = ""
_LAST = "\n$"
_AFTER: Final = {_END: NOTHING, _LAST: LAST_NEWLINE, "\n": NEWLINE} | dict.fromkeys(
    "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz", WORD
)

_kept: deque[tuple[dict[Any, Any], object]] = deque()
"""The tables and keys of all that is kept, the oldest first."""


def _keep(table: dict[_Key, _Kept], key: _Key, value: _Kept) -> _Kept:
    """Put a value into a table, in the place of the oldest of all if there are too many."""
    if len(_kept) >= KEPT_MAX:
        oldest, its_key = _kept.popleft()
        oldest.pop(its_key, None)
    _kept.append((table, key))
    table[key] = value
    return value


class _State(dict[str, "_State"]):
    """A set of positions, and what stands before the next character; by it, the next state."""

    __slots__ = ("automaton", "before", "positions")

    def __init__(self, automaton: "Automaton | None", positions: int, before: int) -> None:
        self.automaton = automaton
        self.positions = positions
        self.before = before

    def __missing__(self, symbol: str) -> "_State":
        assert self.automaton is not None, "the search ends where it has found"
        return self.automaton.step(self, symbol)


class _Unions(dict[str, int]):
    """What can come after some of four positions, at one border; by the bits of these, in hex."""

    __slots__ = ("at", "automaton", "first")

    def __init__(self, automaton: "Automaton", at: int, first: int) -> None:
        self.automaton = automaton
        self.at = at
        self.first = first

    def __missing__(self, digit: str) -> int:
        found = 0
        for position in bits(int(digit, 16) << self.first):
            found |= _at(self.automaton.follow[position], self.at)
        return _keep(self, digit, found)


_FOUND: Final = _State(None, 0, NOTHING)


class Automaton:
    """A pattern that can be searched for."""

    def __init__(self, positions: Positions) -> None:
        self.follow = positions.follow
        self.first = [_at(positions.whole.first, at) for at in range(BORDERS)]
        self.last = [_at(positions.whole.last, at) for at in range(BORDERS)]
        self.empty = positions.whole.empty
        self.bounds, self.members = positions.bounds, positions.members
        # One character stands for all that no position and no border tells from it, so a state has
        # few steps, whatever the text.
        alike: dict[tuple[int, int], str] = {}
        for symbol in map(chr, range(_ASCII)):
            alike.setdefault(self._kind(symbol), symbol)
        self.ascii = "".join(alike[self._kind(chr(code))] for code in range(_ASCII))
        self.beyond = [chr(min(max(bound, _ASCII), LAST)) for bound in (0, *self.bounds)]
        self.start = _State(self, 0, NOTHING)
        self.states: dict[tuple[int, int], _State] = {}
        self.unions: dict[int, list[_Unions]] = {}

    def search(self, text: str) -> bool:
        """Tell whether a text has the pattern in it."""
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

    def _kind(self, symbol: str) -> tuple[int, int]:
        return bisect_right(self.bounds, ord(symbol)), _AFTER.get(symbol, OTHER)

    def step(self, state: _State, symbol: str) -> _State:
        """Work out the state after a symbol, and keep it."""
        after = _AFTER.get(symbol, OTHER)
        at = border(state.before, after)
        if state.positions & self.last[at] or self.empty >> at & 1:
            reached = _FOUND
        elif symbol == _END:
            reached = self.start  # Any but _FOUND.
        else:
            members = self.members[bisect_right(self.bounds, ord(symbol[0]))]
            positions = self.nexts(state.positions, at) & members
            before = NEWLINE if after == LAST_NEWLINE else after
            known = self.states.get((positions, before))
            if known is None:
                known = _State(self, positions, before)
                _keep(self.states, (positions, before), known)
            reached = known
        return _keep(state, symbol, reached)

    def nexts(self, positions: int, at: int) -> int:
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


def _at(edges: Edges, at: int) -> int:
    found = 0
    for borders, positions in edges.items():
        if borders >> at & 1:
            found |= positions
    return found
