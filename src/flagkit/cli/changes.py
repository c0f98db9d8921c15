"""What all commands that change something share: their options, the change, and the report.

With `--dry-run` a command makes the same checks and prints the same report, and writes nothing.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar, Unpack, cast

import click
import msgspec

from flagkit._core.model.canonical import format_date
from flagkit.cli.errors import redact_secrets
from flagkit.cli.options import (
    EnvironmentOptions,
    check_single_key,
    environment_options,
    file_argument,
    load_guards,
)
from flagkit.cli.output import (
    PROGRAM_FORMATS,
    emit,
    mark_work_done,
    output_option,
    print_lines,
    warn,
)
from flagkit.config import require_value
from flagkit.errors import FlagkitError, InvalidDocumentError
from flagkit.policy_files.reader import FlagPolicy, PolicyFile, SegmentPolicy
from flagkit.writer import Commit, Draft, Preview, Proposal, Writer
from flagkit.writer.shortcuts import ChangeOptions

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
    environment_options,
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


class ChangeCommandOptions(EnvironmentOptions):
    """The options of a command that changes something."""

    actor: str
    reason: str
    idempotency_key: str | None
    skip_unchanged: bool
    guards: str | None
    break_glass: str | None
    dry_run: bool
    propose: bool
    output: str


class DecisionOptions(EnvironmentOptions):
    """The options of a command that decides on the change of another actor."""

    actor: str
    reason: str
    output: str


def decision_options(command: _Command) -> _Command:
    """Give a command the options of all that decide of somebody's change."""
    return environment_options(actor_option(reason_option(output_option("text")(command))))


def change_options(command: _Command) -> _Command:
    """Give a command the options of all that change something."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def open_decision_writer(options: DecisionOptions) -> Writer:
    """Return the writer of a command that decides of somebody's change."""
    return Writer(
        options["uri"],
        options["environment"],
        actor=options["actor"],
        database=options["database"],
    )


@contextmanager
def open_draft(**asking: Unpack[ChangeCommandOptions]) -> Generator[Draft]:
    """Give a draft that is committed, proposed or looked at, as asked; tell what came of it.

    Raises:
        WriteError, NotFoundError, InvalidDocumentError: refused; nothing was written.
        StoreError: the database cannot be reached, or refused.
    """
    if asking["propose"] and (asking["dry_run"] or asking["idempotency_key"] is not None):
        raise click.UsageError("--propose goes with neither --dry-run nor --idempotency-key")
    with Writer(
        asking["uri"],
        asking["environment"],
        actor=asking["actor"],
        database=asking["database"],
        guards=load_guards(asking["guards"]),
    ) as writer:
        with _open_writer_draft(writer, asking) as draft:
            if asking["break_glass"] is not None:
                draft.bypass_guards(asking["break_glass"])
            yield draft
        if draft.preview is None:
            mark_work_done()
        if draft.preview is not None:
            _print_preview(draft.preview, writer.environment, asking["output"])
        elif draft.proposal is not None:
            print_proposal(writer.reader.proposal(draft.proposal), asking["output"])
        else:
            assert draft.commit is not None, "the block ended without error"
            print_commit(draft.commit, writer, asking["output"])
            if draft.bypass_reason:
                warn(f"guards were passed by: {draft.bypass_reason}")


def _open_writer_draft(
    writer: Writer, options: ChangeCommandOptions
) -> AbstractContextManager[Draft]:
    if options["propose"]:
        return writer.proposals.propose(reason=options["reason"])
    change = writer.preview if options["dry_run"] else writer.change
    return change(
        **ChangeOptions(
            reason=options["reason"],
            idempotency_key=options["idempotency_key"],
            skip_unchanged=options["skip_unchanged"],
        )
    )


def print_proposal(proposal: Proposal, output: str) -> None:
    """Tell of a proposal, and what became of it."""
    if output in PROGRAM_FORMATS:
        emit(msgspec.to_builtins(proposal), output)
        return
    _print_differences(proposal.differences or proposal.actions)
    print_lines(f"{proposal.id}: proposed by {proposal.actor}{_format_reason(proposal.reason)}")
    for verdict in proposal.verdicts:
        print_lines(f"{verdict.verdict}: {verdict.actor}{_format_reason(verdict.reason)}")
    became = "" if proposal.revision is None else f" as revision {proposal.revision:,}"
    print_lines(f"{proposal.state}{became}{_format_reason(proposal.problem)}")


def _format_reason(reason: str) -> str:
    return f": {reason}" if reason else ""


def print_commit(commit: Commit, writer: Writer, output: str) -> None:
    """Tell what a commit did. Nothing that fails here makes the command fail."""
    mark_work_done()
    lines: tuple[str, ...] | None = ()
    try:
        # Of a request that was sent again, the ledger knows what it did the first time.
        entry = next(writer.reader.entries(commit.revision - 1), None) if commit.changed else None
        lines = () if entry is None else entry.differences
    except FlagkitError as error:
        lines = None
        warn(redact_secrets(f"the change was made, but its differences cannot be told: {error}"))
    if output in PROGRAM_FORMATS:
        document = {
            "environment": writer.environment,
            "revision": commit.revision,
            "time": format_date(commit.time),
            "request": commit.request,
            "changed": commit.changed,
            "differences": None if lines is None else [*lines],
        }
        emit(document, output)
        return
    if lines is not None:
        _print_differences(lines)
    note = "" if commit.changed else ", as before: no revision was made"
    print_lines(f"revision {commit.revision:,} of {writer.environment}{note}")


def _print_preview(preview: Preview, environment: str, output: str) -> None:
    if output in PROGRAM_FORMATS:
        document = {
            "environment": environment,
            "dry_run": True,
            "upon": preview.base_revision,
            "done": preview.committed_as,
            "differences": [*preview.differences],
            "notes": [*preview.notes],
        }
        emit(document, output)
        return
    if preview.committed_as is not None:
        print_lines(f"nothing: this request was revision {preview.committed_as:,} of {environment}")
        return
    _print_differences(preview.differences)
    print_notes(preview.notes)
    print_lines(
        f"dry run upon revision {preview.base_revision:,} of {environment}: nothing was written"
    )


def print_notes(notes: Iterable[str], *, err: bool = False) -> None:
    """Tell what people should know before a change is made."""
    for note in notes:
        print_lines(f"Note: {note}", err=err)


def _print_differences(lines: Sequence[str]) -> None:
    print_lines(*(lines or ["no difference"]))


def load_policies(
    kind: str, file: Path, environment: str | None
) -> tuple[PolicyFile, Sequence[FlagPolicy | SegmentPolicy]]:
    """Return a policy file and what it has of one kind: "flag" or "segment".

    Raises:
        ConfigurationError, InvalidDocumentError: as PolicyFile does; or it has none of this kind.
    """
    found = PolicyFile(file, require_value("environment", environment))
    policies: Sequence[FlagPolicy | SegmentPolicy] = found.policies
    others: Sequence[FlagPolicy | SegmentPolicy] = found.segments
    other = "segment"
    if kind == "segment":
        policies, others, other = others, policies, "flag"
    if not policies:
        also = f"; `flagkit {other}s` takes the {other}s in it" if others else ""
        raise InvalidDocumentError(
            f"{kind}s", "has none", f"Write {kind}s to it{also}", subject=str(file)
        )
    if others:
        print_lines(f"{file}: {other}s are left alone: `flagkit {other}s` takes them", err=True)
    return found, policies


def take_change_options(given: dict[str, Any]) -> ChangeCommandOptions:
    """Remove the options of `change_options` from the options of a command, and return them."""
    taken = {name: given.pop(name) for name in ChangeCommandOptions.__required_keys__}
    return cast("ChangeCommandOptions", taken)


def add_change_command(
    group: click.Group,
    name: str,
    operation: Callable[..., object],
    description: str,
    *options: Callable[[Any], Any],
) -> None:
    """Add a command that makes one change. Its options are the arguments of the operation.

    With `keys_argument`, it calls the operation for each key, and all become one revision.

    Example: add_change_command(flags, "pause", Draft.pause, "Pause flags.", keys_argument)
    """

    def run(**given: Any) -> None:
        asking = take_change_options(given)
        keys: tuple[str, ...] | None = given.pop("keys", None)
        if keys is not None:
            check_single_key(keys, given["expected_version"])
        with open_draft(**asking) as draft:
            for key in [{}] if keys is None else [{"key": key} for key in keys]:
                operation(draft, **key, **given)

    _add_command(group, name, run, description, options)


def add_file_command(
    group: click.Group,
    name: str,
    kind: str,
    operation: Callable[..., object],
    description: str,
    *options: Callable[[Any], Any],
) -> None:
    """Add a command that calls an operation for each document of a policy file, as one change."""

    def run(file: Path, **given: Any) -> None:
        asking = take_change_options(given)
        found, policies = load_policies(kind, file, asking["environment"])
        check_single_key(policies, given.get("expected_version"))
        with found.locate_errors(), open_draft(**asking) as draft:
            for policy in policies:
                operation(draft, policy.document, **given)

    _add_command(group, name, run, description, (file_argument, *options))


def _add_command(
    group: click.Group,
    name: str,
    command: Callable[..., None],
    description: str,
    options: Sequence[Callable[[Any], Any]],
) -> None:
    for option in (change_options, *reversed(options)):
        command = option(command)
    group.command(name, help=description)(command)
