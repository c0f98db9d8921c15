"""Telling: how the command writes to people, readable without colour and at 80 columns."""

from collections.abc import Iterable, Sequence
from typing import Final

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

LISTED_MAX: Final = 1_000
"""Nobody reads a longer table, and to lay it out takes longer than to read the database."""


class Teller:
    """Writes the demo's text: numbered steps, short paragraphs, tables that need no colour."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._steps = 0

    def step(self, title: str) -> None:
        """Begin the next step."""
        self._steps += 1
        self._console.print(f"\n[bold cyan]{self._steps}. {title}[/]")

    def say(self, text: str) -> None:
        """Write a paragraph."""
        self._console.print(escape(text))

    def listing(
        self, columns: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[str] = ()
    ) -> None:
        """Print a table, of LISTED_MAX rows at most, and how many there are besides."""
        self.table(columns, rows[:LISTED_MAX], right)
        more = len(rows) - LISTED_MAX
        if more > 0:
            self.say(f"and {more:,} more: name a --namespace, or take --output json")

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[object]],
        right: Sequence[str] = (),
        whole: Sequence[str] = (),
    ) -> None:
        """Print a table; the columns in `right` hold numbers, those in `whole` what is copied."""
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        for column in columns:
            numeric = column in right
            table.add_column(
                column,
                justify="right" if numeric else "left",
                no_wrap=numeric or column in whole,
                overflow="fold",
            )
        for row in rows:
            table.add_row(*(escape(str(cell)) for cell in row))
        self._console.print(table)
        self._console.print()
