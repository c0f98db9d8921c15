r"""Printable text: one function that makes foreign text safe to show.

Stored or given text may hold characters that control a terminal, start a new line of a log, or are
invisible. `to_printable` shows each of them as an escape, such as `\x1b` or `\u202e`. JSON and YAML
have escapes of their own and do not need this function.
"""

import re
import traceback
from collections.abc import Iterator
from typing import Final

_INVISIBLE: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0100-\U000e01ef]"
)
"""Characters that Python calls printable although nobody sees them: fillers and selectors."""
_SPACES: Final = frozenset(
    "\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
)
"""Spaces that French, CJK and other text holds. Python does not call them printable."""
_EMOJI_STYLES: Final = frozenset("\ufe0e\ufe0f")
_FIRST_SYMBOL, _LAST_SYMBOL = "\u203c", "\u3299"
_FIRST_EMOJI, _LAST_EMOJI = "\U0001f000", "\U0001faff"
"""Unicode reserves the whole range for pictographs, so those newer than Python's tables stay."""
_ERRORS_MAX: Final = 50
"""A traceback shows at most this many errors of a chain."""


def to_printable(text: str) -> str:
    r"""Return a text with an escape in the place of each character that is no visible text.

    The escapes are those of a Python string: `\n`, `\x1b`, `\u202e`, `\U000e0001`. They replace
    control characters, line and paragraph separators, format characters such as those that change
    the direction of text, invisible fillers, lone surrogates and characters for private use.
    Accents, CJK and emoji stay. Backslashes stay too, so a text that is printable stays as it is.

    The joiner U+200D is a format character and is escaped, also inside an emoji: it is invisible,
    and terminals disagree about the width of joined characters. The selector that gives an emoji
    its colour stays after a symbol.

    Example:
        >>> to_printable("shop\x1b[2J\nnext")
        'shop\\x1b[2J\\nnext'
    """
    if text.isprintable() and not _INVISIBLE.search(text):
        return text
    shown: list[str] = []
    before = ""
    for character in text:
        is_shown = _is_visible(character, before)
        shown.append(character if is_shown else _escape(character))
        before = character
    return "".join(shown)


def format_traceback(error: BaseException) -> str:
    """Return the traceback of an error in which no text of an error can make a line of its own.

    Lines are separated by newlines; the last one has none.
    """
    chain: list[tuple[BaseException, str]] = [(error, "")]
    seen = {id(error)}
    while len(chain) < _ERRORS_MAX:
        latest = chain[-1][0]
        if latest.__cause__ is not None:
            earlier = latest.__cause__
            link = "The above exception was the direct cause of the following exception:"
        elif latest.__context__ is not None and not latest.__suppress_context__:
            earlier = latest.__context__
            link = "During handling of the above exception, another exception occurred:"
        else:
            break
        if id(earlier) in seen:
            break
        seen.add(id(earlier))
        chain.append((earlier, link))
    lines: list[str] = []
    for each, link in reversed(chain):
        lines += _iter_traceback_lines(each)
        if link:
            lines += ["", link, ""]
    return "\n".join(lines)


def format_safely(value: object) -> str:
    """Return `str(value)`, or the name of its type where its own `__str__` fails."""
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - a caller's object must not break a message about it
        return f"<{type(value).__qualname__} without a text>"


def _iter_traceback_lines(error: BaseException) -> Iterator[str]:
    if error.__traceback__ is not None:
        yield "Traceback (most recent call last):"
        for frame in traceback.format_tb(error.__traceback__):
            yield from map(to_printable, frame.rstrip("\n").split("\n"))
    kind = type(error)
    module = "" if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}."
    yield to_printable(": ".join(filter(None, (module + kind.__qualname__, format_safely(error)))))
    notes: object = getattr(error, "__notes__", None)
    if isinstance(notes, list):
        for note in notes:  # pyright: ignore[reportUnknownVariableType]
            yield to_printable(format_safely(note))  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
            yield from (f"  | {line}" for line in _iter_traceback_lines(inner))  # pyright: ignore[reportUnknownArgumentType]


def _is_visible(character: str, before: str) -> bool:
    if character in _EMOJI_STYLES:
        is_symbol = _FIRST_SYMBOL <= before <= _LAST_SYMBOL
        return is_symbol or _FIRST_EMOJI <= before <= _LAST_EMOJI
    if character.isprintable():
        return not _INVISIBLE.match(character)
    return character in _SPACES or _FIRST_EMOJI <= character <= _LAST_EMOJI


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
