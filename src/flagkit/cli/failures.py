"""Failures: how what goes wrong ends the command: one sentence on stderr, and an exit code.

The one place that knows which error has which code; and no connection string passes it.
"""

import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

import click

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
        raise kind(without_secrets(str(error))) from error
    except click.UsageError as error:
        # An argument too many may be the connection string.
        told = error.format_message()
        if without_secrets(told) == told:
            raise
        raise click.UsageError(without_secrets(told), error.ctx) from None
