"""`flagkit pending`: show and sequence changes that were requested in transactions."""

from collections.abc import Callable
from typing import Any, Final, TypeVar, Unpack

import click
import msgspec

from flagkit.cli.changes import (
    DecisionOptions,
    decision_options,
    guards_option,
    open_decision_writer,
    print_commit,
)
from flagkit.cli.options import EnvironmentOptions, environment_options, load_guards
from flagkit.cli.output import (
    PROGRAM_FORMATS,
    Printer,
    emit,
    mark_work_done,
    output_option,
    print_lines,
)
from flagkit.writer import Environment, PendingRequest, Writer

_Command = TypeVar("_Command", bound=Callable[..., Any])

# The actor of each sequenced change is the one who requested it.
_NOBODY: Final = "flagkit"
request_argument = click.argument("request")


@click.group("pending")
def pending() -> None:
    """Look at changes that were asked for in transactions, and make them."""


def _sequencing_options(command: _Command) -> _Command:
    return environment_options(guards_option(output_option("text")(command)))


@pending.command("list")
@environment_options
@output_option("table")
def _list(output: str, **place: Unpack[EnvironmentOptions]) -> None:
    """List changes that wait to be made, and those that were refused, in order."""
    with Environment(**place) as reader:
        found = reader.pending()
    if output in PROGRAM_FORMATS:
        emit([msgspec.to_builtins(waiting) for waiting in found], output)
    elif found:
        Printer().print_table(
            ("request", "since (UTC)", "actor", "what", "state", "reason"),
            [
                (
                    waiting.request,
                    f"{waiting.since:%Y-%m-%d %H:%M:%S}",
                    waiting.actor,
                    waiting.actions,
                    _format_state(waiting),
                    waiting.reason,
                )
                for waiting in found
            ],
        )
    else:
        print_lines("Nothing is pending.")


@pending.command("sweep")
@_sequencing_options
def _sweep(guards: str | None, output: str, **place: Unpack[EnvironmentOptions]) -> None:
    """Commit the pending changes, in order.

    It skips changes that were refused before.
    """
    with Writer(**place, actor=_NOBODY, guards=load_guards(guards)) as writer:
        swept = writer.pending.sweep()
        mark_work_done()
        if output in PROGRAM_FORMATS:
            emit(msgspec.to_builtins(swept), output)
            return
        for commit in swept.commits:
            print_commit(commit, writer, output)
    print_lines(
        f"{len(swept.commits)} made, {swept.refused} refused, {swept.waiting} go on waiting"
    )


@pending.command("commit")
@request_argument
@_sequencing_options
def _commit(
    request: str, guards: str | None, output: str, **place: Unpack[EnvironmentOptions]
) -> None:
    """Commit a pending change, or one that was refused before.

    Earlier pending changes of the same flags are committed first.
    """
    with Writer(**place, actor=_NOBODY, guards=load_guards(guards)) as writer:
        print_commit(writer.pending.commit(request), writer, output)


@pending.command("drop")
@request_argument
@decision_options
def _drop(request: str, **deciding: Unpack[DecisionOptions]) -> None:
    """Drop a pending change, so that it is never committed.

    This creates a revision that changes no flag.
    """
    with open_decision_writer(deciding) as writer:
        dropped = writer.pending.drop(request, reason=deciding["reason"])
        print_commit(dropped, writer, deciding["output"])


def _format_state(waiting: PendingRequest) -> str:
    if waiting.refused:
        return f"refused: {waiting.trouble}"
    if waiting.not_before is None:
        return "waits"
    return f"waits until {waiting.not_before:%Y-%m-%d %H:%M:%S}: {waiting.trouble}"
