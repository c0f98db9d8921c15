"""What all commands that change something share: their options, the change, and the report.

With `--dry-run` a command makes the same checks and prints the same report, and writes nothing.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar, Unpack

import click
import msgspec

from flagkit._core.model.canonical import date_text
from flagkit.cli.errors import without_secrets
from flagkit.cli.options import Place, guards_named, place_options
from flagkit.cli.output import PROGRAMS, emit, output_option, say, warn, work_is_done
from flagkit.config import required
from flagkit.errors import FlagkitError, InvalidDocumentError
from flagkit.policy_files.reader import PolicyFile
from flagkit.writer import Commit, Draft, Preview, Proposal, Writer, entries
from flagkit.writer.shortcuts import Asked

_Command = TypeVar("_Command", bound=Callable[..., Any])

actor_option = click.option(
    "--actor",
    envvar="FLAGKIT_ACTOR",
    required=True,
    show_envvar=True,
    help="Who changes it, for the audit.",
)
reason_option = click.option("--reason", default="", help="Why, for the audit.")
guards_option = click.option(
    "--guards",
    envvar="FLAGKIT_GUARDS",
    metavar="MODULE:NAME",
    show_envvar=True,
    help="Python guards to ask.",
)
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Check it and show what it would do, no more."
)

_OPTIONS = (
    place_options,
    actor_option,
    reason_option,
    click.option(
        "--idempotency-key",
        metavar="NAME",
        help="Names the request: sent again, it changes nothing, and tells the same.",
    ),
    click.option(
        "--skip-unchanged",
        is_flag=True,
        help="Make no revision if nothing would change.",
    ),
    guards_option,
    click.option(
        "--break-glass", metavar="WHY", help="Pass guards by; it is warned of, and recorded."
    ),
    dry_run_option,
    click.option(
        "--propose", is_flag=True, help="Have another person approve of it: flagkit approvals."
    ),
    output_option("text"),
)


class Asking(Place):
    """What the options of a command that changes something say."""

    actor: str
    reason: str
    idempotency_key: str | None
    skip_unchanged: bool
    guards: str | None
    break_glass: str | None
    dry_run: bool
    propose: bool
    output: str


class Deciding(Place):
    """What the options of a command that decides of somebody's change say."""

    actor: str
    reason: str
    output: str


def deciding_options(command: _Command) -> _Command:
    """Give a command the options of all that decide of somebody's change."""
    return place_options(actor_option(reason_option(output_option("text")(command))))


def writing_options(command: _Command) -> _Command:
    """Give a command the options of all that change something."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@contextmanager
def changing(**asking: Unpack[Asking]) -> Generator[Draft]:
    """Give a draft that is committed, proposed or looked at, as asked; tell what came of it.

    Raises:
        WriteError, InvalidDocumentError: refused; nothing was written.
        StoreError: the database cannot be reached, or refused.
    """
    if asking["propose"] and (asking["dry_run"] or asking["idempotency_key"] is not None):
        raise click.UsageError("--propose goes with neither --dry-run nor --idempotency-key")
    with Writer(
        asking["uri"],
        asking["environment"],
        actor=asking["actor"],
        database=asking["database"],
        guards=guards_named(asking["guards"]),
    ) as writer:
        with _collecting(writer, asking) as draft:
            if asking["break_glass"] is not None:
                draft.break_glass(asking["break_glass"])
            yield draft
        if draft.preview is None:
            work_is_done()
        if draft.preview is not None:
            _tell_preview(draft.preview, writer.environment, asking["output"])
        elif draft.proposal is not None:
            tell_proposal(writer.proposal(draft.proposal), asking["output"])
        else:
            assert draft.commit is not None, "the block ended without error"
            tell_commit(draft.commit, writer, asking["output"])
            if draft.glass:
                warn(f"guards were passed by: {draft.glass}")


def _collecting(writer: Writer, asking: Asking) -> AbstractContextManager[Draft]:
    if asking["propose"]:
        return writer.propose(reason=asking["reason"])
    change = writer.preview if asking["dry_run"] else writer.change
    return change(
        **Asked(
            reason=asking["reason"],
            idempotency_key=asking["idempotency_key"],
            skip_unchanged=asking["skip_unchanged"],
        )
    )


def tell_proposal(proposal: Proposal, output: str) -> None:
    """Tell of a proposal, and what became of it."""
    if output in PROGRAMS:
        emit(msgspec.to_builtins(proposal), output)
        return
    _tell_lines(proposal.differences or proposal.actions)
    say(f"{proposal.id}: proposed by {proposal.actor}{_because(proposal.reason)}")
    for said in proposal.verdicts:
        say(f"{said.verdict}: {said.actor}{_because(said.reason)}")
    became = "" if proposal.revision is None else f" as revision {proposal.revision:,}"
    say(f"{proposal.state}{became}{_because(proposal.problem)}")


def _because(why: str) -> str:
    return f": {why}" if why else ""


def tell_commit(commit: Commit, writer: Writer, output: str) -> None:
    """Tell what a commit did. Nothing that fails here makes the command fail."""
    work_is_done()
    lines: tuple[str, ...] | None = ()
    try:
        # Of a request that was sent again, the ledger knows what it did the first time.
        entry = next(entries(writer.store, commit.revision - 1), None) if commit.changed else None
        lines = () if entry is None else entry.differences
    except FlagkitError as error:
        lines = None
        warn(without_secrets(f"the change was made, but its differences cannot be told: {error}"))
    if output in PROGRAMS:
        document = {
            "environment": writer.environment,
            "revision": commit.revision,
            "time": date_text(commit.time),
            "request": commit.request,
            "changed": commit.changed,
            "differences": None if lines is None else [*lines],
        }
        emit(document, output)
        return
    if lines is not None:
        _tell_lines(lines)
    made = "" if commit.changed else ", as before: no revision was made"
    say(f"revision {commit.revision:,} of {writer.environment}{made}")


def _tell_preview(preview: Preview, environment: str, output: str) -> None:
    if output in PROGRAMS:
        document = {
            "environment": environment,
            "dry_run": True,
            "upon": preview.upon,
            "done": preview.done,
            "differences": [*preview.differences],
            "notes": [*preview.notes],
        }
        emit(document, output)
        return
    if preview.done is not None:
        say(f"nothing: this request was revision {preview.done:,} of {environment}")
        return
    _tell_lines(preview.differences)
    tell_notes(preview.notes)
    say(f"dry run upon revision {preview.upon:,} of {environment}: nothing was written")


def tell_notes(notes: Iterable[str], *, err: bool = False) -> None:
    """Tell what people should know before a change is made."""
    for note in notes:
        say(f"Note: {note}", err=err)


def _tell_lines(lines: Sequence[str]) -> None:
    say(*(lines or ["no difference"]))


def flags_in(file: Path, environment: str | None) -> PolicyFile:
    """Return a file that has flags for an environment.

    Raises:
        ConfigurationError, InvalidDocumentError: as PolicyFile does; or it has no flags.
    """
    found = PolicyFile(file, required("environment", environment))
    _check(found.policies, file, "flag", others=len(found.segments))
    return found


def segments_in(file: Path, environment: str | None) -> PolicyFile:
    """Return a file that has segments for an environment; for errors see `flags_in`."""
    found = PolicyFile(file, required("environment", environment))
    _check(found.segments, file, "segment", others=len(found.policies))
    return found


def _check(wanted: Sequence[object], file: Path, kind: str, *, others: int) -> None:
    other = {"flag": "segment", "segment": "flag"}[kind]
    if not wanted:
        also = f"; `flagkit {other}s` takes the {other}s in it" if others else ""
        raise InvalidDocumentError(
            f"{kind}s", "has none", f"Write {kind}s to it{also}", subject=str(file)
        )
    if others:
        say(f"{file}: {other}s are left alone: `flagkit {other}s` takes them", err=True)
