"""The syntax that `$regex` may use, parsed into a small tree.

The syntax is an allow-list: it excludes oddities of single server versions and everything that
cannot be searched in linear time. The parser resolves options, so the tree has only explicit
characters and boundaries.

Source: mongod's answers, which tests/regex/test_regex.py compares with these. Classes and word
boundaries are ASCII. Letters follow Unicode where case is ignored.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Final, Literal, TypeAlias

from msgspec import Struct

from flagkit.errors import InvalidDocumentError

DEPTH_MAX: Final = 32
"""As deep as documents may nest."""

LENGTH_MAX = 1_000
SIZE_MAX = 128
"""The most characters and boundaries in a pattern once its repetitions are written out."""

Ranges: TypeAlias = tuple[tuple[int, int], ...]
Place: TypeAlias = Literal["start", "line start", "end", "line end", "word edge", "no word edge"]


class Chars(Struct, frozen=True):
    """One character of some ranges of code points: both ends included, in order, none adjacent."""

    ranges: Ranges


class Boundary(Struct, frozen=True):
    """A place between characters. `end` is the end of the text, or its last newline."""

    place: Place


class Sequence(Struct, frozen=True):
    """Parts that follow each other; the empty text if there are none."""

    parts: "tuple[Node, ...]"


class Choice(Struct, frozen=True):
    """Any of some branches."""

    branches: "tuple[Node, ...]"


class Repeat(Struct, frozen=True):
    """A part, as often as from `least` to `most` times, or without end."""

    part: "Node"
    least: int
    most: int | None


Node: TypeAlias = Chars | Boundary | Sequence | Choice | Repeat

LAST = 0x10FFFF
_QUANTIFIERS: Mapping[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_COUNTED = re.compile(r"\{([0-9]{1,5})(,([0-9]{1,5})?)?\}")
_HEX = re.compile(r"x(?:([0-9A-Fa-f]{2})|\{([0-9A-Fa-f]{1,6})\})")
_CONTROLS: Mapping[str, str] = {"n": "\n", "t": "\t", "r": "\r", "f": "\f"}
_PUNCTUATION = frozenset(" !\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
_SPACES = frozenset("\t\n\v\f\r ")
_NEWER_SPACES = frozenset("\x85\u200e\u200f\u2028\u2029")
_NAMING = frozenset(":.=")
_ESCAPES = r"\d \w \s \D \W \S \b \B \A \n \t \r \f \x41 \x{1F600}, or a mark such as \."


def parse_pattern(source: str, options: str, path: str) -> Node:
    """Parse a pattern, with options out of `imsx`.

    Raises:
        InvalidDocumentError: it is not one, or has what is not allowed; the problem says where.
    """
    if len(source) > LENGTH_MAX:
        raise InvalidDocumentError(
            path, f"has more than {LENGTH_MAX} characters", "Write a shorter pattern"
        )
    if "\0" in source:
        raise InvalidDocumentError(path, "has a NUL character", r"Write \x00")
    parser = _Parser(source, options, path)
    tree = parser.parse_choice(0)
    if parser.position < len(source):
        raise parser.build_error("closes a group that is not open", r"Write \)")
    if measure_size(tree) > SIZE_MAX:
        raise InvalidDocumentError(
            path,
            f"has more than {SIZE_MAX} characters once its repetitions are written out",
            "Repeat less, or use * or +",
        )
    return tree


def measure_size(node: Node) -> int:
    """Return how many characters and boundaries a tree has, repetitions written out; at least 1."""
    match node:
        case Chars() | Boundary():
            return 1
        case Sequence(parts) | Choice(parts):
            return max(1, sum(map(measure_size, parts)))
        case Repeat(part, least, most):
            return measure_size(part) * max(1, least, most or 0)


def join_ranges(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Return ranges in order, with those that meet made one."""
    found: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if found and low <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(high, found[-1][1]))
        else:
            found.append((low, high))
    return tuple(found)


def invert_ranges(ranges: Ranges) -> Ranges:
    """Return all that some ranges leave out."""
    starts = [0, *(high + 1 for _, high in ranges)]
    ends = [*(low - 1 for low, _ in ranges), LAST]
    return tuple((low, high) for low, high in zip(starts, ends, strict=True) if low <= high)


_DIGITS: Ranges = ((0x30, 0x39),)
_WORDS: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_BLANKS: Ranges = ((0x09, 0x0D), (0x20, 0x20))
_CLASSES: Final[Mapping[str, Ranges]] = {
    "d": _DIGITS,
    "w": _WORDS,
    "s": _BLANKS,
    "D": invert_ranges(_DIGITS),
    "W": invert_ranges(_WORDS),
    "S": invert_ranges(_BLANKS),
}
# Beyond ASCII, two signs are letters of it with another case: the Kelvin sign and the long s.
_FOLDS = ((0x41, 0x5A, 0x20), (0x61, 0x7A, -0x20), (0x4B, 0x4B, 0x20DF), (0x53, 0x53, 0x12C))


def fold_case(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Return ranges of ASCII with the other cases of their letters."""
    found = list(ranges)
    for first, last, away in _FOLDS:
        # In this order the list has the upper case of each letter when the signs are looked for.
        for low, high in tuple(found):
            if max(low, first) <= min(high, last):
                found.append((max(low, first) + away, min(high, last) + away))
    return join_ranges(found)


class _Parser:
    """Recursive descent over the characters of one pattern."""

    def __init__(self, source: str, options: str, path: str) -> None:
        self.source = source
        self.options = options
        self.path = path
        self.position = 0

    def build_error(self, problem: str, remedy: str, at: int | None = None) -> InvalidDocumentError:
        place = self.position if at is None else at
        return InvalidDocumentError(self.path, f"{problem}, at character {place + 1}", remedy)

    def is_next(self, text: str) -> bool:
        return self.source.startswith(text, self.position)

    def accept(self, text: str) -> bool:
        if found := self.is_next(text):
            self.position += len(text)
        return found

    def take_character(self) -> str:
        self.position += 1
        return self.source[self.position - 1]

    def skip_blanks(self) -> None:
        """Skip the blanks and comments of the option `x`."""
        while "x" in self.options and self.position < len(self.source):
            character = self.source[self.position]
            if character in _NEWER_SPACES:
                raise self.build_error(
                    "has a blank that only newer servers skip", r"Write it as \x{...}"
                )
            if character == "#":
                end = self.source.find("\n", self.position)
                if end < 0:
                    raise self.build_error("has a comment without an end", "End it with a newline")
                self.position = end
            elif character not in _SPACES:
                return
            self.position += 1

    def parse_choice(self, depth: int) -> Node:
        if depth > DEPTH_MAX:
            raise self.build_error(f"is nested more than {DEPTH_MAX} deep", "Use fewer groups")
        branches = [self.parse_sequence(depth)]
        while self.accept("|"):
            branches.append(self.parse_sequence(depth))
        return branches[0] if len(branches) == 1 else Choice(tuple(branches))

    def parse_sequence(self, depth: int) -> Node:
        parts: list[Node] = []
        self.skip_blanks()
        while self.position < len(self.source) and not self.is_next("|") and not self.is_next(")"):
            parts.append(self.parse_repeat(self.parse_atom(depth)))
            self.skip_blanks()
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def parse_repeat(self, part: Node) -> Node:
        self.skip_blanks()
        start = self.position
        counted = _COUNTED.match(self.source, start)
        if counted:
            self.position = counted.end()
            least = int(counted[1])
            most = least if counted[2] is None else int(counted[3]) if counted[3] else None
        elif self.source[start : start + 1] in _QUANTIFIERS:
            least, most = _QUANTIFIERS[self.take_character()]
        else:
            return part
        if most is not None and least > most:
            raise self.build_error(
                "repeats from more to less", "Write the smaller number first", start
            )
        if _is_empty(part):
            raise self.build_error(
                "repeats what has no characters", "Leave the repetition out", start
            )
        if self.is_next("+"):
            raise self.build_error("has a possessive repetition", "Leave the second + out")
        self.accept("?")  # Lazy or greedy: the answer is the same.
        return Repeat(part, least, most)

    def parse_atom(self, depth: int) -> Node:  # noqa: PLR0911 - one for each sign
        start = self.position
        match character := self.take_character():
            case "(":
                return self.parse_group(start, depth)
            case "[":
                return self.parse_bracket(start)
            case ".":
                return Chars(((0, LAST),) if "s" in self.options else invert_ranges(((10, 10),)))
            case "^":
                return Boundary("line start" if "m" in self.options else "start")
            case "$":
                return Boundary("line end" if "m" in self.options else "end")
            case "\\":
                return self.parse_escape(start)
            case "{" if not _COUNTED.match(self.source, start):
                raise self.build_error(
                    "has a { that is no repetition such as {2,5}", r"Write \{", start
                )
            case "*" | "+" | "?" | "{":
                raise self.build_error(
                    "repeats nothing, or a repetition", f"Write \\{character}", start
                )
            case _:
                return self.build_literal(character, start)

    def build_literal(self, character: str, at: int) -> Chars:
        return Chars(self.fold_if_ignored([self.build_range(character, at)]))

    def build_range(self, character: str, at: int) -> tuple[int, int]:
        """Return the range of one character."""
        if "i" in self.options and not character.isascii():
            raise self.build_error(
                f"has {character!r} where case is ignored, which works for ASCII alone",
                "Leave the option i out, and write both cases",
                at,
            )
        return (ord(character), ord(character))

    def fold_if_ignored(self, ranges: Iterable[tuple[int, int]]) -> Ranges:
        return fold_case(ranges) if "i" in self.options else join_ranges(ranges)

    def parse_group(self, start: int, depth: int) -> Node:
        if self.is_next("?") and not self.accept("?:"):
            raise self.build_error(
                "has a group with (? that is not (?:",
                "Use $and, $not and $options for look-arounds and inline options",
                start,
            )
        inside = self.parse_choice(depth + 1)
        if not self.accept(")"):
            raise self.build_error("has a group without an end", r"Close it, or write \(", start)
        return inside

    def parse_escape(self, start: int) -> Node:
        places: Mapping[str, Place] = {"b": "word edge", "B": "no word edge", "A": "start"}
        for letter, place in places.items():
            if self.accept(letter):
                return Boundary(place)
        found = self.parse_escaped(start)
        return Chars(found) if isinstance(found, tuple) else self.build_literal(found, start)

    def parse_escaped(self, start: int) -> str | Ranges:
        """Return the character, or the class, that is written after a backslash."""
        letter = self.source[self.position : self.position + 1]
        if letter in _CLASSES:
            self.position += 1
            return _CLASSES[letter]
        if letter in _CONTROLS or letter in _PUNCTUATION:
            self.position += 1
            return _CONTROLS.get(letter, letter)
        if found := _HEX.match(self.source, self.position):
            self.position = found.end()
            code = int(found[1] or found[2], 16)
            if code <= LAST and not 0xD800 <= code <= 0xDFFF:  # noqa: PLR2004 - the surrogates
                return chr(code)
            raise self.build_error(
                "has a code that is no character", "Write one up to 10FFFF", start
            )
        raise self.build_error(
            f"has \\{letter}, which is not among what is allowed", _ESCAPES, start
        )

    def parse_bracket(self, start: int) -> Node:
        negated = self.accept("^")
        first = self.position
        ranges: list[tuple[int, int]] = []
        classes: list[tuple[int, int]] = []
        while self.position == first or not self.is_next("]"):
            at = self.position
            low = self.parse_member(start)
            if low == "-" and self.source[at] == "-" and at > first and not self.is_next("]"):
                raise self.build_error("has a - within a class that joins nothing", r"Write \-", at)
            high = low
            if self.is_next("-") and not self.is_next("-]"):
                self.position += 1
                high = self.parse_member(start)
            if isinstance(low, str) and isinstance(high, str):
                if low > high:
                    raise self.build_error(
                        "has a range that ends before it starts", "Swap its ends", at
                    )
                ranges.append((self.build_range(low, at)[0], self.build_range(high, at)[1]))
            elif not isinstance(low, str) and high is low:
                classes += low
            else:
                raise self.build_error("has a range from or to a class", r"Write \-", at)
        inside = self.source[start + 1 : self.position]
        if len(inside) > 1 and inside[0] == inside[-1] and inside[0] in _NAMING:
            raise self.build_error(
                "has a class by name", rf"Write \{inside[0]} for {inside[0]}", start
            )
        self.position += 1
        found = join_ranges((*self.fold_if_ignored(ranges), *classes))
        return Chars(invert_ranges(found) if negated else found)

    def parse_member(self, start: int) -> str | Ranges:
        """Return the next character or class within brackets."""
        at = self.position
        if at >= len(self.source):
            raise self.build_error(
                "has a class without an end", r"Close it with ], or write \[", start
            )
        character = self.take_character()
        if character == "[" and self.source[self.position : self.position + 1] in _NAMING:
            raise self.build_error(
                "has a class by name", r"Write \d, \w, \s, or the characters; \[ for [", at
            )
        return self.parse_escaped(at) if character == "\\" else character


def _is_empty(node: Node) -> bool:
    match node:
        case Chars():
            return False
        case Boundary():
            return True
        case Sequence(parts) | Choice(parts):
            return all(map(_is_empty, parts))
        case Repeat(part, _, most):
            return most == 0 or _is_empty(part)
