"""Importing: `flagkit flags import`, with a bar that says how far it is."""

import json
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from flagkit.cli.import_files import FAULTS_MAX, ImportFiles
from flagkit.cli.options import FAULTS_FOUND, database_option, environment_option, uri_option
from flagkit.settings import Settings, settings_from
from flagkit.writer.importing import Import, Imported, Step
from flagkit.writer.writer import Writer


@click.command("import")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@uri_option
@environment_option
@database_option
@click.option("--reason", default="", help="Why, for the audit.")
@click.option("--actor", help="Who, for the audit; by default FLAGKIT_ACTOR, or the user's name.")
@click.option(
    "--reassign", is_flag=True, help="Let keys pass from one treated variant to another."
)
@click.option("--dry-run", is_flag=True, help="Say what it would do, and write nothing.")
@click.option("--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def import_flags(  # noqa: PLR0913 - each is an option
    files: tuple[Path, ...],
    uri: str | None,
    environment: str | None,
    database: str | None,
    reason: str,
    actor: str | None,
    *,
    reassign: bool,
    dry_run: bool,
    output: str,
) -> None:
    """Create or update the flags and segments of files, in batches, each of them one revision.

    FILES are policy files, in YAML or JSON, or JSON lines (.jsonl): a flag in each line. All are
    checked before anything is written. Flags that are as in the files already are left alone: an
    import that was broken off is resumed by running it again. Exits with 3 if a file is not valid.
    """
    settings = settings_from(uri, environment=environment, database=database)
    wanted = Import(settings.environment, reassign=reassign)
    found = ImportFiles(files, wanted, settings.environment)
    if found.faults:
        for fault in found.faults[:FAULTS_MAX]:
            click.echo(str(fault), err=True)
        raise SystemExit(FAULTS_FOUND)
    with found.locating(), _writer(settings, actor) as writer:
        made = wanted.look(writer.store) if dry_run else _run(wanted, writer, reason)
    if output == "json":
        click.echo(json.dumps(msgspec.to_builtins(made)))
    else:
        click.echo(_told(made, dry_run=dry_run))


def _writer(settings: Settings, actor: str | None) -> Writer:
    return Writer(
        settings.uri, settings.environment, actor=actor_of(actor), database=settings.database
    )


def _run(wanted: Import, writer: Writer, reason: str) -> Imported:
    columns = ("imported", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def show(step: Step) -> None:
            bar.update(task, completed=step.done, total=step.total)

        return wanted.run(writer, reason=reason, progress=show)


def _told(made: Imported, *, dry_run: bool) -> str:
    verb = "would be " if dry_run else ""
    counts = f"{made.created:,} {verb}created, {made.updated:,} updated, {made.unchanged:,} as asked"
    if not made.revisions:
        return counts
    first, last = made.revisions[0], made.revisions[-1]
    span = f"revision {first:,}" if first == last else f"revisions {first:,} to {last:,}"
    return f"{counts}: {span}"
