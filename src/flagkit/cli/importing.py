"""Importing: `flagkit flags import`, with a bar that says how far it is."""

from pathlib import Path
from typing import Unpack

import click
import msgspec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from flagkit.cli.failures import FAULTS_FOUND
from flagkit.cli.guarding import guards_named
from flagkit.cli.import_files import ImportFiles
from flagkit.cli.options import Place, place_options, reassign_option, settings_at
from flagkit.cli.output import PROGRAMS, emit, output_option
from flagkit.cli.streams import work_is_done
from flagkit.cli.telling import progress_console, say
from flagkit.cli.writing import actor_option, dry_run_option, guards_option, reason_option
from flagkit.writer.importing import DIFFERENCES_MAX, Import, Imported, Step
from flagkit.writer.sealing import data_keys_of
from flagkit.writer.writer import Writer


@click.command("import")
@click.argument(
    "files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option(
    "--create-environment", is_flag=True, help="Create the environment first if it does not exist."
)
@reassign_option
@place_options
@actor_option
@reason_option
@guards_option
@dry_run_option
@output_option("text")
def import_flags(  # noqa: PLR0913 - each is an option
    files: tuple[Path, ...],
    actor: str,
    reason: str,
    guards: str | None,
    output: str,
    *,
    create_environment: bool,
    reassign: bool,
    dry_run: bool,
    **place: Unpack[Place],
) -> None:
    """Create or update the flags and segments of files, in batches.

    Each batch is one revision. FILE is a policy file, in YAML or JSON; or JSON lines (.jsonl), a
    flag in each line, which is the quickest to read. All is checked before anything is written.
    Flags that are as asked for already are left alone: an import that was broken off is resumed by
    running it again. Exits with 3 if a file is not valid.
    """
    if create_environment and dry_run:
        raise click.UsageError("--create-environment does not go with --dry-run: it writes")
    settings = settings_at(**place)
    wanted = Import(settings.environment, reassign=reassign, keys=data_keys_of(settings))
    found = ImportFiles(files, wanted, settings.environment)
    for fault in found.faults:
        say(str(fault), err=True)
    if found.faults:
        raise SystemExit(FAULTS_FOUND)
    with (
        found.locating(),
        Writer(
            settings.uri,
            settings.environment,
            actor=actor,
            database=settings.database,
            guards=guards_named(guards),
        ) as writer,
    ):
        if create_environment:
            writer.create_environment()
        if dry_run:
            made = found.wanted.look(writer, reason=reason)
        else:
            made = _run(found.wanted, writer, reason)
            work_is_done()
    if output in PROGRAMS:
        emit(msgspec.to_builtins(made), output)
    else:
        for line in made.differences:
            say(line)
        if len(made.differences) == DIFFERENCES_MAX:
            say("and others: these are the first lines")
        say(_told(made, dry_run=dry_run))


def _run(wanted: Import, writer: Writer, reason: str) -> Imported:
    columns = ("imported", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = progress_console()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def show(step: Step) -> None:
            bar.update(task, completed=step.done, total=step.total)

        return wanted.run(writer, reason=reason, progress=show)


def _told(made: Imported, *, dry_run: bool) -> str:
    verb = "would be " if dry_run else ""
    counts = (
        f"{made.created:,} {verb}created, {made.updated:,} updated, {made.unchanged:,} as asked"
    )
    if not made.revisions:
        return counts
    first, last = made.revisions[0], made.revisions[-1]
    span = f"revision {first:,}" if first == last else f"revisions {first:,} to {last:,}"
    return f"{counts}: {span}"
