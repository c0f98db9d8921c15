"""Streams: standard output and error, which cannot fail a command that has done its work.

A pipe may be closed, a disk full, a terminal unable to show a character. A command that has made a
change then goes on in silence, for its exit code says whether the change was made.
"""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable, Generator
from functools import partial
from typing import Final, TextIO, cast

import click

_UNENCODABLE: Final = "backslashreplace"
"""Shows a character that the terminal's encoding lacks as `printable` shows escapes."""


class OutputLostError(click.ClickException):
    """Standard output cannot be written, and nothing but output was asked for.

    `is_silent` tells whether nobody needs to hear of it: the reader of a pipe has left.
    """

    def __init__(self, error: OSError | ValueError) -> None:
        self.is_silent = isinstance(error, BrokenPipeError)
        why = error.strerror if isinstance(error, OSError) else "it is closed"
        super().__init__(f"standard output cannot be written: {why}")


class _Work:
    """Whether the command that runs has done something that stays."""

    is_done = False


_work: Final = _Work()


def work_is_done() -> None:
    """Note that the command has done all that it was asked to do, but for telling of it.

    From here on neither output that is lost nor an error makes the command fail. A command calls
    this between the last change that it makes and the first line that it prints.
    """
    _work.is_done = True


def was_work_done() -> bool:
    """Tell whether the command has noted that its work is done."""
    return _work.is_done


@contextlib.contextmanager
def guarded_streams() -> Generator[None]:
    """Guard standard output and error for the block."""
    _work.is_done = False
    before = sys.stdout, sys.stderr
    sys.stdout = cast("TextIO", _Guarded(before[0], is_output=True))
    sys.stderr = cast("TextIO", _Guarded(before[1], is_output=False))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


# Click writes past a stream that has an attribute `buffer`, if the encoding is ASCII.
class _Guarded(io.TextIOBase):
    """A text stream whose writes fail only where output is all that was asked for."""

    def __init__(self, stream: TextIO | None, *, is_output: bool) -> None:
        self._stream = stream
        self._is_output = is_output
        self._is_lost = False

    def write(self, text: str | bytes, /) -> int:
        """Write a text, with escapes for the characters that the encoding lacks."""
        if isinstance(text, bytes):
            # Click writes completions as bytes, to whatever takes them.
            text = text.decode()
        self._attempt(partial(self._write, text))
        return len(text)

    def flush(self) -> None:
        self._attempt(self._flush)

    def _flush(self) -> None:
        self._there.flush()

    def _write(self, text: str) -> None:
        try:
            self._there.write(text)
        except UnicodeEncodeError:
            encoding = self._there.encoding
            self._there.write(text.encode(encoding, _UNENCODABLE).decode(encoding))

    def isatty(self) -> bool:
        with contextlib.suppress(OSError, ValueError):
            return self._stream is not None and self._stream.isatty()
        return False

    def fileno(self) -> int:
        return self._there.fileno()

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        # A stream that holds texts, as in tests, has none.
        return (self._stream and self._stream.encoding) or "utf-8"

    @property
    def _there(self) -> TextIO:
        # Python has no stream where the process was started with a closed one.
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
        """Send what is left in buffers nowhere, or the interpreter would fail at its exit."""
        with contextlib.suppress(OSError, ValueError):
            number = self._there.fileno()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)
