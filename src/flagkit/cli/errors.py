"""How an error ends the command: one sentence on stderr, and an exit code.

This module alone maps errors to exit codes. It removes credentials from every message.
"""

import re
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

import click

from flagkit._core.printable import format_traceback, to_printable
from flagkit.cli.output import OutputLostError, is_work_done, print_lines, warn
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
"""The exit code if the stored state is not the expected one. Click has the code of wrong usage."""

_CONFLICTS: Final = (
    FlagExistsError,
    ProposalClosedError,
    ProposalVoidError,
    RequestConflictError,
    VersionConflictError,
)
# The whole string: passwords may be before the host and in options after it, and malformed.
_CONNECTION_STRING = re.compile(r"(mongodb(?:\+srv)?://)\S*")


class _FailureError(click.ClickException):
    exit_code = FAILED


class _ConflictError(click.ClickException):
    exit_code = CONFLICT


def redact_secrets(text: str) -> str:
    """Return a text without the connection strings that are in it."""
    return _CONNECTION_STRING.sub(r"\1...", text)


@contextmanager
def report_errors() -> Generator[None]:
    """Convert errors of the block to click's, which end the command with a sentence."""
    try:
        yield
    except FlagkitError as error:
        kind = _ConflictError if isinstance(error, _CONFLICTS) else _FailureError
        raise kind(str(error)) from error


def run_command(run: Callable[[], object]) -> int:
    """Run a command, print its error if it fails, and return its exit code.

    A failure after the work is done, such as a full disk for the output, is printed, but does not
    change the exit code: an exit code of 1 means that nothing was done.
    """
    code = _run_to_exit_code(run)
    # Flushing the buffers may fail, too.
    flushed = _run_to_exit_code(sys.stdout.flush)
    return code or flushed


def _run_to_exit_code(run: Callable[[], object]) -> int:
    try:
        returned = run()
        code = returned if isinstance(returned, int) else 0
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else FAILED if ended.code else 0
    except click.ClickException as error:
        _print_error(error)
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        print_lines("Aborted!", err=True)
        code = FAILED
    except Exception as error:  # noqa: BLE001 - a bug of flagkit: print the whole traceback
        print_lines(*redact_secrets(format_traceback(error)).split("\n"), err=True)
        code = FAILED
    return 0 if is_work_done() else code


def _print_error(error: click.ClickException) -> None:
    if is_work_done():
        warn(f"it was done, but not all of it could be told: {_format_message(error)}")
    elif isinstance(error, click.UsageError):
        if type(error).show is not click.UsageError.show:
            # This is help, which quotes nothing.
            error.show()
        else:
            click.UsageError(to_printable(_format_message(error)), error.ctx).show()
    elif not isinstance(error, OutputLostError) or not error.is_silent:
        print_lines(f"Error: {_format_message(error)}", err=True)


def _format_message(error: click.ClickException) -> str:
    """Return the message of an error. A surplus argument may be a connection string."""
    message = error.format_message()
    if isinstance(error, click.MissingParameter):
        # Click lists the choices on lines of their own.
        message = message.replace("\n\t", " ")
    return redact_secrets(message)
