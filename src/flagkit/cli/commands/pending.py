"""`flagkit pending`: show and sequence changes that were requested in transactions."""

from collections.abc import Callable
from typing import Any, Final, TypeVar, Unpack

import click
import msgspec

from flagkit.cli.changes import Deciding, deciding_options, guards_option, tell_commit
from flagkit.cli.options import Place, guards_named, place_options
from flagkit.cli.output import PROGRAMS, Teller, emit, output_option, say, work_is_done
from flagkit.writer import Waiting, Writer

_Command = TypeVar("_Command", bound=Callable[..., Any])

# Those who asked are the actors of what is sequenced.
_NOBODY: Final = "flagkit"
request_argument = click.argument("request")


@click.group("pending")
def pending() -> None:
    """Look at changes that were asked for in transactions, and make them."""


def _sequencing_options(command: _Command) -> _Command:
    return place_options(guards_option(output_option("text")(command)))


@pending.command("list")
@place_options
@output_option("table")
def _list(output: str, **place: Unpack[Place]) -> None:
    """List changes that wait to be made, and those that were refused, in order."""
    with Writer(**place, actor=_NOBODY) as writer:
        found = writer.pending()
    if output in PROGRAMS:
        emit([msgspec.to_builtins(waiting) for waiting in found], output)
    elif found:
        Teller().table(
            ("request", "since (UTC)", "actor", "what", "state", "reason"),
            [
                (
                    waiting.request,
                    f"{waiting.since:%Y-%m-%d %H:%M:%S}",
                    waiting.actor,
                    waiting.actions,
                    _state(waiting),
                    waiting.reason,
                )
                for waiting in found
            ],
        )
    else:
        say("Nothing is pending.")


@pending.command("sweep")
@_sequencing_options
def _sweep(guards: str | None, output: str, **place: Unpack[Place]) -> None:
    """Make the changes that wait, in order.

    Those that were refused are left as they are.
    """
    with Writer(**place, actor=_NOBODY, guards=guards_named(guards)) as writer:
        swept = writer.sweep()
        work_is_done()
        if output in PROGRAMS:
            emit(msgspec.to_builtins(swept), output)
            return
        for commit in swept.commits:
            tell_commit(commit, writer, output)
    say(f"{len(swept.commits)} made, {swept.refused} refused, {swept.waiting} go on waiting")


@pending.command("commit")
@request_argument
@_sequencing_options
def _commit(request: str, guards: str | None, output: str, **place: Unpack[Place]) -> None:
    """Make a change that waits, or one that was refused before.

    What was asked for before it of the same flags is made before it.
    """
    with Writer(**place, actor=_NOBODY, guards=guards_named(guards)) as writer:
        tell_commit(writer.pending_change(request).commit(), writer, output)


@pending.command("drop")
@request_argument
@deciding_options
def _drop(request: str, **deciding: Unpack[Deciding]) -> None:
    """Make sure that a change that waits is never made.

    That is a revision, which changes no flag.
    """
    with Writer(
        deciding["uri"],
        deciding["environment"],
        actor=deciding["actor"],
        database=deciding["database"],
    ) as writer:
        dropped = writer.drop_pending(request, reason=deciding["reason"])
        tell_commit(dropped, writer, deciding["output"])


def _state(waiting: Waiting) -> str:
    if waiting.refused:
        return f"refused: {waiting.trouble}"
    if waiting.not_before is None:
        return "waits"
    return f"waits until {waiting.not_before:%Y-%m-%d %H:%M:%S}: {waiting.trouble}"
