"""How an error ends the command: one sentence on stderr, and an exit code.

This module alone maps errors to exit codes. It removes credentials from every message.
"""

import re
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

import click

from flagkit._core.printable import printable, printable_traceback
from flagkit.cli.output import OutputLostError, say, warn, was_work_done
from flagkit.errors import (
    FlagExistsError,
    FlagkitError,
    ProposalClosedError,
    ProposalVoidError,
    RequestConflictError,
    VersionConflictError,
)

FAILED: Final = 1
FAULTS_FOUND: Final = 3
"""The exit code of a check that found something."""
CONFLICT: Final = 4
"""The exit code where what stands is not what the caller took to stand. Wrong usage is click's."""

_CONFLICTS: Final = (
    FlagExistsError,
    ProposalClosedError,
    ProposalVoidError,
    RequestConflictError,
    VersionConflictError,
)
# All of it: passwords stand before the host, in options after it, and need not be well-formed.
_CONNECTION_STRING = re.compile(r"(mongodb(?:\+srv)?://)\S*")


class _Failed(click.ClickException):
    exit_code = FAILED


class _Conflict(click.ClickException):
    exit_code = CONFLICT


def without_secrets(text: str) -> str:
    """Return a text without the connection strings that are in it."""
    return _CONNECTION_STRING.sub(r"\1...", text)


@contextmanager
def failures_told() -> Generator[None]:
    """Make errors of the block such as click tells in a sentence."""
    try:
        yield
    except FlagkitError as error:
        kind = _Conflict if isinstance(error, _CONFLICTS) else _Failed
        raise kind(str(error)) from error


def exit_code_of(run: Callable[[], object]) -> int:
    """Run a command, tell how it failed if it did, and return its exit code.

    Whatever fails once its work is done, such as a full disk where its output was to go, is told
    and does not count: an exit code of 1 means that nothing was done.
    """
    code = _code_of(run)
    # What is still in a buffer may fail, too.
    flushed = _code_of(sys.stdout.flush)
    return code or flushed


def _code_of(run: Callable[[], object]) -> int:
    try:
        returned = run()
        code = returned if isinstance(returned, int) else 0
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else FAILED if ended.code else 0
    except click.ClickException as error:
        _tell(error)
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        say("Aborted!", err=True)
        code = FAILED
    except Exception as error:  # noqa: BLE001 - a fault of flagkit's: all that is known is told
        say(*without_secrets(printable_traceback(error)).split("\n"), err=True)
        code = FAILED
    return 0 if was_work_done() else code


def _tell(error: click.ClickException) -> None:
    if was_work_done():
        warn(f"it was done, but not all of it could be told: {_message_of(error)}")
    elif isinstance(error, click.UsageError):
        if type(error).show is not click.UsageError.show:
            # This is help, which quotes nothing.
            error.show()
        else:
            click.UsageError(printable(_message_of(error)), error.ctx).show()
    elif not isinstance(error, OutputLostError) or not error.is_silent:
        say(f"Error: {_message_of(error)}", err=True)


def _message_of(error: click.ClickException) -> str:
    """Return what an error says. An argument too many may be a connection string."""
    message = error.format_message()
    if isinstance(error, click.MissingParameter):
        # Click lists the choices on lines of their own.
        message = message.replace("\n\t", " ")
    return without_secrets(message)
