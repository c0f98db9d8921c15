"""Telling: the one place from which the command writes to people, readable without colour.

All that it writes is made printable: text of others makes no line and no column of its own, and no
terminal obeys it.
"""

import itertools
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Self, cast

from rich.cells import cell_len
from rich.console import Console
from rich.status import Status
from rich.text import Text

from flagkit.printable import printable

LISTED_MAX: Final = 1_000
"""Nobody reads a longer table, and to lay it out takes longer than to read the database."""
_GAP: Final = "  "
_RULE_MAX: Final = 120
_NARROWEST: Final = 12
"""A column of prose is not folded to fewer characters than this."""
_PAIR: Final = 2
_TERMINAL: Final = -1


def say(*lines: str, err: bool = False) -> None:
    """Write lines, each of them printable: to standard output, or to standard error.

    What a line quotes cannot end the line.
    """
    stream = sys.stderr if err else sys.stdout
    stream.write("".join(f"{printable(line)}\n" for line in lines))
    stream.flush()


def warn(text: str) -> None:
    """Write a warning to standard error."""
    say(f"Warning: {text}", err=True)


def progress_console() -> Console:
    """Return what shows progress: on standard error, and as plain text."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


class Progress:
    """A line on a terminal that says what is being done, for a `with` block."""

    def __init__(self) -> None:
        # The spinner is one of ASCII, which any terminal shows.
        self._status = Status(
            "looking at the environment", console=progress_console(), spinner="line"
        )

    def show(self, step: str) -> None:
        """Say what is being done now."""
        self._status.update(Text(printable(step)))

    def __enter__(self) -> Self:
        self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()


class Teller:
    """Writes numbered steps, short paragraphs, and tables that need no colour.

    Args:
        width: How wide tables are at most; None where no line of a table may be broken. By default
            it is the width of the terminal that standard output is, and None if it is none.
    """

    def __init__(self, width: int | None = _TERMINAL) -> None:
        self._console = Console(highlight=False, markup=False, emoji=False)
        self._width = _width_of_terminal() if width == _TERMINAL else width
        self._steps = 0

    def step(self, title: str) -> None:
        """Begin the next step."""
        self._steps += 1
        say("")
        self._emphasize(f"{self._steps}. {printable(title)}", "bold cyan")

    def say(self, text: str) -> None:
        """Write a paragraph."""
        line = printable(text)
        say(*([line] if self._width is None else _wrapped(line, self._width)))

    def listing(
        self, columns: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[str] = ()
    ) -> None:
        """Print a table, of LISTED_MAX rows at most, and how many there are besides."""
        self.table(columns, rows[:LISTED_MAX], right)
        more = len(rows) - LISTED_MAX
        if more > 0:
            # Overrides of one key stand in several rows, which stay together in the next list.
            last = next(
                row[0] for row in reversed(rows[:LISTED_MAX]) if row[0] != rows[LISTED_MAX][0]
            )
            say(f"and {more:,} more: go on with --after {last}, or take --output json")

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[object]],
        right: Sequence[str] = (),
    ) -> None:
        """Print a table; the columns in `right` hold numbers.

        A cell that is a list or tuple has several lines. No word is ever broken or cut, so keys can
        be searched for and copied. Where there is no terminal no line is broken. On a terminal that
        is too narrow for the longest words, each row is told field by field instead.
        """
        grid = _Grid(columns, rows, right)
        if self._width is not None and not grid.fits(self._width):
            say(*grid.fields(self._width), "")
            return
        head, *body = grid.lines(self._width)
        self._emphasize(head, "bold")
        say(*body, "")

    def _emphasize(self, line: str, style: str) -> None:
        self._console.print(Text(line, style), soft_wrap=True)


class _Grid:
    """Cells of printable lines, in rows and columns."""

    def __init__(
        self, columns: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str]
    ) -> None:
        self._heads = [printable(column) for column in columns]
        self._is_right = [column in right for column in columns]
        self._rows = [
            [_lines_of(cell) for cell in (*row, *[""] * (len(columns) - len(row)))] for row in rows
        ]
        self._widths = self._widest(lambda line: [line])
        self._words = self._widest(lambda line: line.split(" "))

    def _widest(self, parts: Callable[[str], list[str]]) -> list[int]:
        return [
            max(
                cell_len(head),
                *(cell_len(part) for row in self._rows for line in row[at] for part in parts(line)),
                0,
            )
            for at, head in enumerate(self._heads)
        ]

    def _least(self, at: int) -> int:
        """Return how narrow a column may be made: numbers and words stay whole, prose readable."""
        width = self._widths[at]
        return width if self._is_right[at] else max(self._words[at], min(width, _NARROWEST))

    def fits(self, width: int) -> bool:
        """Tell whether columns can stand side by side; two always do, as a name and what it is."""
        least = sum(map(self._least, range(len(self._heads))))
        return len(self._heads) <= _PAIR or least + len(_GAP) * (len(self._heads) - 1) <= width

    def lines(self, width: int | None) -> Iterator[str]:
        """Yield the lines of a table: its head, a rule, and the rows."""
        widths = [*self._widths]
        if width is not None:
            room = width - len(_GAP) * (len(widths) - 1)
            widths = [max(self._least(at), min(widths[at], room)) for at in range(len(widths))]
            while sum(widths) > room:
                at = max(range(len(widths)), key=lambda at: widths[at] - self._least(at))
                if widths[at] == self._least(at):
                    break
                widths[at] -= 1
            # In the last column, a word that is too wide for the terminal moves nothing else.
            left = room - sum(widths[:-1])
            widths[-1] = min(widths[-1], max(left, _NARROWEST))
        yield self._line(self._heads, widths)
        yield _rule() * min(sum(widths) + len(_GAP) * (len(widths) - 1), _RULE_MAX)
        for row in self._rows:
            cells = [
                [part for line in cell for part in _wrapped(line, widths[at])]
                for at, cell in enumerate(row)
            ]
            for parts in itertools.zip_longest(*cells, fillvalue=""):
                yield self._line(parts, widths)

    def _line(self, parts: Sequence[str], widths: Sequence[int]) -> str:
        padded = (
            f"{' ' * (width - cell_len(part))}{part}"
            if is_right
            else f"{part}{' ' * (width - cell_len(part))}"
            for part, width, is_right in zip(parts, widths, self._is_right, strict=True)
        )
        return _GAP.join(padded).rstrip(" ")

    def fields(self, width: int) -> Iterator[str]:
        """Yield a line or more for each cell of each row, beginning with what its column is."""
        label = max(map(cell_len, self._heads))
        room = max(width - label - len(_GAP), _NARROWEST)
        for number, row in enumerate(self._rows):
            if number:
                yield ""
            for head, cell in zip(self._heads, row, strict=True):
                names = itertools.chain([head], itertools.repeat(""))
                for part in (part for line in cell for part in _wrapped(line, room)):
                    if part:
                        yield f"{(name := next(names))}{' ' * (label - cell_len(name))}{_GAP}{part}"


def _lines_of(cell: object) -> list[str]:
    if isinstance(cell, list | tuple):
        lines = cast("Sequence[object]", cell)
        return [printable(str(line)) for line in lines]
    return [printable(str(cell))]


def _wrapped(line: str, width: int) -> list[str]:
    """Return a line in parts of at most a width, each broken at a space, and no word broken."""
    if cell_len(line) <= width:
        return [line]
    parts: list[str] = []
    part, used = "", 0
    for word in line.split(" "):
        length = cell_len(word)
        if part and used + 1 + length > width:
            parts.append(part)
            part, used = word, length
        else:
            part, used = (f"{part} {word}", used + 1 + length) if part else (word, length)
    return [*parts, part]


def _rule() -> str:
    """Return what a line is drawn with."""
    return "─" if (sys.stdout.encoding or "utf-8").lower().startswith("utf") else "-"


def _width_of_terminal() -> int | None:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
