"""The output of the command: text, tables, JSON and YAML, readable without colour.

Everything written for people passes `to_printable`, so foreign text adds no line and no column, and
controls no terminal. JSON and YAML have escapes of their own.

A pipe may be closed, a disk full, and a terminal unable to show a character. A command that has
already made a change then continues silently, because its exit code says whether it made the
change.
"""

import contextlib
import errno
import io
import itertools
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, Self, TextIO, TypeAlias, TypeVar, cast

import click
from msgspec import Struct
from rich.cells import cell_len
from rich.console import Console
from rich.status import Status
from rich.text import Text

from flagkit._core.model import decode
from flagkit._core.model.canonical import to_extended_json
from flagkit._core.model.changes import PolicyState
from flagkit._core.model.segments import decode_segment, encode_segment
from flagkit._core.model.values import Value
from flagkit._core.printable import to_printable
from flagkit.policy_files.dump import dump_yaml, dump_yaml_value
from flagkit.policy_files.reader import FlagPolicy, SegmentPolicy
from flagkit.writer.ledger import format_serving
from flagkit.writer.operations import to_written_document

_Command = TypeVar("_Command", bound=Callable[..., Any])

PROGRAM_FORMATS: Final = ("json", "yaml")
"""The forms for programs, which `format_document` knows."""
_BEYOND_ASCII: Final = re.compile(r"[^\x00-\x7f]")


def output_option(default: str, *others: str) -> Callable[[_Command], _Command]:
    """Return the option for the format of output. Its default is the format for people.

    Args:
        default: The name of the default format.
        others: Formats beside it and those for programs.
    """
    return click.option(
        "--output",
        type=click.Choice([default, *PROGRAM_FORMATS, *others]),
        default=default,
        show_default=True,
        help="For people, or for programs.",
    )


def format_document(document: Any, output: str) -> str:
    """Return a document as JSON or YAML, without the last line's end; dates are Extended JSON."""
    plain = to_extended_json(document)
    return dump_yaml_value(plain).rstrip("\n") if output == "yaml" else json.dumps(plain, indent=2)


def emit(document: Any, output: str) -> None:
    """Write a document for programs, to standard output."""
    emit_text(f"{format_document(document, output)}\n", output)


def emit_text(text: str, output: str) -> None:
    """Write a text that is JSON or YAML already, as it is.

    Characters that the encoding of standard output lacks are escaped as the format does.
    """
    if output == "json" and not _is_encodable(text):
        # Beyond ASCII there is nothing in JSON but the insides of strings.
        text = _BEYOND_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], text)
    sys.stdout.write(text)
    sys.stdout.flush()


def _is_encodable(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return False
    return True


LISTED_MAX: Final = 1_000
"""Nobody reads a longer table, and to lay it out takes longer than to read the database."""
_GAP: Final = "  "
_RULE_MAX: Final = 120
_NARROWEST: Final = 12
"""A column of prose is not folded to fewer characters than this."""
_PAIR: Final = 2
_TERMINAL: Final = -1


def print_lines(*lines: str, err: bool = False) -> None:
    """Write lines, made printable, to standard output or standard error.

    Line breaks in quoted text are escaped, so they cannot end a line.
    """
    stream = sys.stderr if err else sys.stdout
    stream.write("".join(f"{to_printable(line)}\n" for line in lines))
    stream.flush()


def warn(text: str) -> None:
    """Write a warning to standard error."""
    print_lines(f"Warning: {text}", err=True)


def create_progress_console() -> Console:
    """Return the console for progress: plain text on standard error."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


class Progress:
    """A line on a terminal that names the current step, for a `with` block."""

    def __init__(self) -> None:
        # The spinner is one of ASCII, which any terminal shows.
        self._status = Status(
            "looking at the environment", console=create_progress_console(), spinner="line"
        )

    def show(self, step: str | None) -> None:
        """Show the step that runs now; None leaves the line as it is."""
        if step is not None:
            self._status.update(Text(to_printable(step)))

    def __enter__(self) -> Self:
        self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()


class Printer:
    """Writes numbered steps, short paragraphs, and tables that need no colour.

    Args:
        width: The greatest width of tables; None if no line of a table may be broken. By default
            it is the width of the terminal, and None if standard output is no terminal.
    """

    def __init__(self, width: int | None = _TERMINAL) -> None:
        self._console = Console(highlight=False, markup=False, emoji=False)
        self._width = _get_terminal_width() if width == _TERMINAL else width
        self._steps = 0

    def start_step(self, title: str) -> None:
        """Begin the next step."""
        self._steps += 1
        print_lines("")
        self._emphasize(f"{self._steps}. {to_printable(title)}", "bold cyan")

    def print_paragraph(self, text: str) -> None:
        """Write a paragraph."""
        line = to_printable(text)
        print_lines(*([line] if self._width is None else _wrap_line(line, self._width)))

    def print_listing(
        self, columns: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[str] = ()
    ) -> None:
        """Print a table, of LISTED_MAX rows at most, and how many there are besides."""
        self.print_table(columns, rows[:LISTED_MAX], right)
        more = len(rows) - LISTED_MAX
        if more > 0:
            # Overrides of one key have several rows, which stay together in the next list.
            last = next(
                row[0] for row in reversed(rows[:LISTED_MAX]) if row[0] != rows[LISTED_MAX][0]
            )
            print_lines(f"and {more:,} more: go on with --after {last}, or take --output json")

    def print_table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[object]],
        right: Sequence[str] = (),
    ) -> None:
        """Print a table; the columns in `right` hold numbers.

        A cell that is a list or tuple has several lines. Words are never broken or truncated, so
        keys can be searched for and copied. Without a terminal no line is broken. On a terminal
        that is too narrow for the longest words, each row is printed field by field instead.
        """
        grid = _Grid(columns, rows, right)
        if self._width is not None and not grid.can_fit(self._width):
            print_lines(*grid.iter_fields(self._width), "")
            return
        head, *body = grid.iter_lines(self._width)
        self._emphasize(head, "bold")
        print_lines(*body, "")

    def _emphasize(self, line: str, style: str) -> None:
        self._console.print(Text(line, style), soft_wrap=True)


class _Grid:
    """Cells of printable lines, in rows and columns."""

    def __init__(
        self, columns: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str]
    ) -> None:
        self._heads = [to_printable(column) for column in columns]
        self._is_right_aligned = [column in right for column in columns]
        self._rows = [
            [_format_cell(cell) for cell in (*row, *[""] * (len(columns) - len(row)))]
            for row in rows
        ]
        self._widths = self._measure_columns(lambda line: [line])
        self._words = self._measure_columns(lambda line: line.split(" "))

    def _measure_columns(self, parts: Callable[[str], list[str]]) -> list[int]:
        return [
            max(
                cell_len(head),
                *(cell_len(part) for row in self._rows for line in row[at] for part in parts(line)),
                0,
            )
            for at, head in enumerate(self._heads)
        ]

    def _get_min_width(self, at: int) -> int:
        """Return how narrow a column may be made: numbers and words stay whole, prose readable."""
        width = self._widths[at]
        return width if self._is_right_aligned[at] else max(self._words[at], min(width, _NARROWEST))

    def can_fit(self, width: int) -> bool:
        """Return True if the columns fit side by side. Two columns always do."""
        least = sum(map(self._get_min_width, range(len(self._heads))))
        return len(self._heads) <= _PAIR or least + len(_GAP) * (len(self._heads) - 1) <= width

    def iter_lines(self, width: int | None) -> Iterator[str]:
        """Yield the lines of a table: its head, a horizontal line, and the rows."""
        widths = [*self._widths]
        if width is not None:
            space = width - len(_GAP) * (len(widths) - 1)
            widths = [
                max(self._get_min_width(at), min(widths[at], space)) for at in range(len(widths))
            ]
            while sum(widths) > space:
                at = max(range(len(widths)), key=lambda at: widths[at] - self._get_min_width(at))
                if widths[at] == self._get_min_width(at):
                    break
                widths[at] -= 1
            # A word in the last column may be wider than the terminal: it shifts no other column.
            left = space - sum(widths[:-1])
            widths[-1] = min(widths[-1], max(left, _NARROWEST))
        yield self._format_line(self._heads, widths)
        yield _get_rule_character() * min(sum(widths) + len(_GAP) * (len(widths) - 1), _RULE_MAX)
        for row in self._rows:
            cells = [
                [part for line in cell for part in _wrap_line(line, widths[at])]
                for at, cell in enumerate(row)
            ]
            for parts in itertools.zip_longest(*cells, fillvalue=""):
                yield self._format_line(parts, widths)

    def _format_line(self, parts: Sequence[str], widths: Sequence[int]) -> str:
        padded = (
            f"{' ' * (width - cell_len(part))}{part}"
            if is_right
            else f"{part}{' ' * (width - cell_len(part))}"
            for part, width, is_right in zip(parts, widths, self._is_right_aligned, strict=True)
        )
        return _GAP.join(padded).rstrip(" ")

    def iter_fields(self, width: int) -> Iterator[str]:
        """Yield one or more lines for each cell of each row, beginning with the column's name."""
        label = max(map(cell_len, self._heads))
        space = max(width - label - len(_GAP), _NARROWEST)
        for number, row in enumerate(self._rows):
            if number:
                yield ""
            for head, cell in zip(self._heads, row, strict=True):
                names = itertools.chain([head], itertools.repeat(""))
                for part in (part for line in cell for part in _wrap_line(line, space)):
                    if part:
                        yield f"{(name := next(names))}{' ' * (label - cell_len(name))}{_GAP}{part}"


def _format_cell(cell: object) -> list[str]:
    if isinstance(cell, list | tuple):
        lines = cast("Sequence[object]", cell)
        return [to_printable(str(line)) for line in lines]
    return [to_printable(str(cell))]


def _wrap_line(line: str, width: int) -> list[str]:
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


def _get_rule_character() -> str:
    """Return the character to draw a line with."""
    return "─" if (sys.stdout.encoding or "utf-8").lower().startswith("utf") else "-"


def _get_terminal_width() -> int | None:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


_Document: TypeAlias = dict[str, Any]


class FlagRow(Struct, frozen=True):
    """A flag in a line; `serves` is a summary of its rules and fallthrough."""

    key: str
    region: str
    version: int
    state: str
    type: str
    serves: str
    owner: str


class SegmentRow(Struct, frozen=True):
    """A segment in a line; `by` is the attribute that is looked up among its keys."""

    key: str
    version: int
    condition: bool
    by: str
    included: int
    excluded: int
    owner: str


def build_flag_row(state: PolicyState) -> FlagRow:
    """Return a flag in a line."""
    flag = decode(state.policy, stored=True)
    serves = format_serving(state.policy["fallthrough"])
    if flag.rules:
        rules = "1 rule" if len(flag.rules) == 1 else f"{len(flag.rules)} rules"
        serves = f"{rules}, else {serves}"
    owner = str(flag.metadata.get("owner", ""))
    return FlagRow(state.key, state.region, state.version, flag.state, flag.type, serves, owner)


def build_segment_row(state: PolicyState) -> SegmentRow:
    """Return a segment in a line."""
    segment = decode_segment(state.policy, stored=True).segment
    return SegmentRow(
        state.key,
        state.version,
        segment.when is not None,
        ".".join(segment.by),
        segment.included.count,
        segment.excluded.count,
        str(segment.metadata.get("owner", "")),
    )


def build_flag_document(state: PolicyState) -> _Document:
    """Return a flag's document as people write it."""
    return to_written_document(decode(state.policy, stored=True))


def build_segment_document(state: PolicyState) -> _Document:
    """Return a segment's document; of its keys there are only hashes."""
    return encode_segment(decode_segment(state.policy, stored=True).segment)


def format_flag_file(state: PolicyState) -> str:
    """Return a policy file of a flag, to edit it and to update the flag with it.

    It has no state, so that the update does not undo a pause in the meantime.
    """
    document = build_flag_document(state)
    del document["state"]
    return dump_yaml([FlagPolicy(document, decode(document))])


def format_segment_file(state: PolicyState) -> str:
    """Return a policy file of a segment, to change and to update it with."""
    document = build_segment_document(state)
    return dump_yaml([], [SegmentPolicy(document, decode_segment(document).segment)])


def iter_document_rows(document: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of each field of a document, and the lines of its value."""
    for name, value in document.items():
        # A seed is of no use to people.
        if name in ("key", "seed"):
            continue
        match name:
            case "variants":
                yield name, [f"{variant}: {_format_value(value[variant])}" for variant in value]
            case "prerequisites":
                yield (
                    name,
                    [f"{item['flag']} serves {' or '.join(item['variants'])}" for item in value],
                )
            case "rules":
                for rule in value:
                    yield f"rule {rule['name']}", [*_iter_rule_lines(rule)]
            case "fallthrough":
                yield name, [format_serving(value)]
            case "included" | "excluded":
                yield name, [f"{value['count']:,} keys"]
            case _:
                yield name, [_format_value(value)]


def _iter_rule_lines(rule: _Document) -> Iterator[str]:
    for name in ("when", "during"):
        if name in rule:
            yield f"{name} {_format_value(rule[name])}"
    yield format_serving(rule)


def _format_value(value: Value) -> str:
    return (
        value if isinstance(value, str) else json.dumps(to_extended_json(value), ensure_ascii=False)
    )


_UNENCODABLE: Final = "backslashreplace"
"""Shows a character that the terminal's encoding lacks as `to_printable` shows escapes."""


class OutputLostError(click.ClickException):
    """Standard output cannot be written, and the output was the only result of the command.

    If `is_silent`, no message is needed: the reader of a pipe has closed it.
    """

    def __init__(self, error: OSError | ValueError) -> None:
        self.is_silent = isinstance(error, BrokenPipeError)
        why = error.strerror if isinstance(error, OSError) else "it is closed"
        super().__init__(f"standard output cannot be written: {why}")


class _WorkState:
    """Records if the current command has made a permanent change."""

    is_done = False


_work: Final = _WorkState()


def mark_work_done() -> None:
    """Record that the command has done its work, apart from printing the result.

    After this, neither lost output nor an error makes the command fail. A command calls this
    between its last change and the first line that it prints.
    """
    _work.is_done = True


def is_work_done() -> bool:
    """Return True if the command has called `mark_work_done`."""
    return _work.is_done


@contextlib.contextmanager
def guard_streams() -> Generator[None]:
    """Guard standard output and error for the block."""
    _work.is_done = False
    before = sys.stdout, sys.stderr
    sys.stdout = cast("TextIO", _GuardedStream(before[0], is_output=True))
    sys.stderr = cast("TextIO", _GuardedStream(before[1], is_output=False))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


# Click writes past a stream that has an attribute `buffer`, if the encoding is ASCII.
class _GuardedStream(io.TextIOBase):
    """A text stream whose writes fail only where output is all that was asked for."""

    def __init__(self, stream: TextIO | None, *, is_output: bool) -> None:
        self._stream = stream
        self._is_output = is_output
        self._is_lost = False

    def write(self, text: str | bytes, /) -> int:
        """Write a text, with escapes for the characters that the encoding lacks."""
        if isinstance(text, bytes):
            # Click writes completions as bytes.
            text = text.decode()
        self._attempt(partial(self._write, text))
        return len(text)

    def flush(self) -> None:
        self._attempt(self._flush)

    def _flush(self) -> None:
        self._open_stream.flush()

    def _write(self, text: str) -> None:
        try:
            self._open_stream.write(text)
        except UnicodeEncodeError:
            encoding = self._open_stream.encoding
            self._open_stream.write(text.encode(encoding, _UNENCODABLE).decode(encoding))

    def isatty(self) -> bool:
        with contextlib.suppress(OSError, ValueError):
            return self._stream is not None and self._stream.isatty()
        return False

    def fileno(self) -> int:
        return self._open_stream.fileno()

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        # A stream that holds texts, as in tests, has none.
        return (self._stream and self._stream.encoding) or "utf-8"

    @property
    def _open_stream(self) -> TextIO:
        # Python has no stream if the process was started with a closed one.
        if self._stream is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._stream

    def _attempt(self, action: Callable[[], None]) -> None:
        """Do something with the stream; the first failure is the last attempt."""
        if self._is_lost:
            return
        try:
            action()
        except (OSError, ValueError) as error:
            self._is_lost = True
            self._discard()
            if self._is_output and not _work.is_done:
                raise OutputLostError(error) from error

    def _discard(self) -> None:
        """Discard the rest of the buffers, or the interpreter would fail at its exit."""
        with contextlib.suppress(OSError, ValueError):
            number = self._open_stream.fileno()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)
