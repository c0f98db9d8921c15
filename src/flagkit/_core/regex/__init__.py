"""Regular expressions in linear time. `search` here chooses Python's `re` or the automaton.

Python's `re` is about seven times as fast, but backtracking may take exponential time. It gets only
patterns that provably cause little work, rewritten from their trees.
"""

import functools
import re
from collections.abc import Callable
from typing import Final, TypeAlias

from flagkit._core.regex import parser
from flagkit._core.regex.automaton import Automaton, Positions, union_positions

Search: TypeAlias = Callable[[str], object]
"""Returns a true value if a text contains the pattern."""

TEXT_MAX = 1_024
"""Longer texts match no pattern: they are not searched."""
_WORK_MAX = 256
"""The most tries from one start; at worst a search of TEXT_MAX starts takes 1 ms."""

_PLACES: Final[dict[parser.Place, str]] = {
    "start": r"\A",
    "line start": r"(?:\A|(?<=\n)(?!\Z))",
    "end": r"(?=\n?\Z)",
    "line end": r"(?=\n|\Z)",
    "word edge": r"\b",
    "no word edge": r"(?!\b)",  # Before Python 3.14, \B is not in the empty text.
}


@functools.lru_cache(1024)
def compile_search(source: str, options: str) -> Search:
    """Return the search for a pattern that has been checked."""
    tree = parser.parse_pattern(source, options, "")
    positions = Positions(tree)
    if not is_harmless(positions):
        return Automaton(positions).search
    pattern = re.compile(to_python_pattern(tree), re.ASCII)
    return pattern.match if positions.is_anchored else pattern.search


def is_harmless(positions: Positions) -> bool:
    """Return True if backtracking through the pattern takes little work.

    In a plain pattern, one start reaches each character of the text at most once, and tries as many
    positions there as can come next. So a pattern with one start makes at most that many tries for
    each character of the text. One without endless repetitions tries each successor at most once.
    """
    if not positions.plain:
        return False
    nexts = [
        union_positions(edges).bit_count() for edges in (positions.pattern.first, *positions.follow)
    ]
    return positions.is_anchored or (not positions.endless and sum(nexts) <= _WORK_MAX)


def has_match(text: str, source: str, options: str) -> bool:
    """Return True if a text contains a pattern; texts that are too long contain none."""
    return len(text) <= TEXT_MAX and bool(compile_search(source, options)(text))


def to_python_pattern(node: parser.Node) -> str:  # noqa: PLR0911 - one for each node
    """Return a tree as Python writes it, with nothing left to its reading."""
    match node:
        case parser.Chars(()):
            return "(?!)"
        case parser.Chars(((low, high),)) if low == high:
            return re.escape(chr(low))
        case parser.Chars(ranges):
            # Python takes 1.6 ms to compile a class that extends to the last character.
            negated = ranges[-1][1] == parser.LAST
            shown = parser.invert_ranges(ranges) if negated else ranges
            inside = "".join(f"\\U{low:08x}-\\U{high:08x}" for low, high in shown)
            return f"[{'^' * negated}{inside}]" if shown else "(?s:.)"
        case parser.Boundary(place):
            return _PLACES[place]
        case parser.Sequence(parts):
            return "".join(map(to_python_pattern, parts))
        case parser.Choice(branches):
            return f"(?:{'|'.join(map(to_python_pattern, branches))})"
        case parser.Repeat(part, least, most):
            return f"(?:{to_python_pattern(part)}){{{least},{'' if most is None else most}}}"
