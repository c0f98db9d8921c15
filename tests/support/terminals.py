"""Pseudo-terminals: what the command writes to one, in this process or in one of its own."""

import contextlib
import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Generator, Iterator, Mapping
from typing import NamedTuple, TextIO

import click
import pytest

from tests.support.hostile import ANSI


class TerminalOutput(NamedTuple):
    """How the command ended, and what a terminal got of it: the bytes, as text."""

    code: int
    text: str

    @property
    def lines(self) -> list[str]:
        """The lines, without the sequences by which the command itself draws.

        A bar is drawn again and again from the beginning of its line: each time is a line here.
        """
        return re.split(r"[\r\n]", ANSI.sub("", self.text.replace("\r\n", "\n")))


@contextlib.contextmanager
def _open_terminal(columns: int) -> Generator[tuple[int, list[bytes]]]:
    """Give a terminal to write to, and what it has got, which is all there after the block."""
    reading, writing = os.openpty()
    fcntl.ioctl(writing, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    got: list[bytes] = []

    def read() -> None:
        # A terminal whose last writer has gone fails to be read.
        with contextlib.suppress(OSError):
            while part := os.read(reading, 65_536):
                got.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield writing, got
    finally:
        with contextlib.suppress(OSError):
            os.close(writing)
        reader.join()
        os.close(reading)


def run_on_terminal(*arguments: str, columns: int, **variables: str) -> TerminalOutput:
    """Run the command in a process of its own, on a terminal of so many columns."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm"}
    environment.pop("COLUMNS", None)
    with _open_terminal(columns) as (writing, got):
        code = subprocess.run(
            [sys.executable, "-m", "flagkit.cli", *arguments],
            stdin=writing,
            stdout=writing,
            stderr=writing,
            check=False,
            timeout=60,
            env=environment | variables,
        ).returncode
    return TerminalOutput(code, b"".join(got).decode())


def show_on_terminal(
    command: click.Command,
    arguments: list[str],
    columns: int,
    variables: Mapping[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> TerminalOutput:
    """Run a command in this process, with a terminal as standard output and error."""
    with _open_terminal(columns) as (writing, got), monkeypatch.context() as patch:
        for name, value in {**variables, "TERM": "xterm", "COLUMNS": str(columns)}.items():
            patch.setenv(name, value)
        with _open_streams(writing) as stream:
            patch.setattr(sys, "stdout", stream)
            patch.setattr(sys, "stderr", stream)
            with pytest.raises(SystemExit) as ended:
                command.main(arguments, prog_name="flagkit")
    code = ended.value.code
    assert isinstance(code, int)
    return TerminalOutput(code, b"".join(got).decode())


@contextlib.contextmanager
def _open_streams(writing: int) -> Iterator[TextIO]:
    with os.fdopen(os.dup(writing), "w", encoding="utf-8") as stream:
        yield stream
