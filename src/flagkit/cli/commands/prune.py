"""`flagkit prune`: show what can be deleted, and delete it on request."""

from collections.abc import Sequence

import click
import msgspec

from flagkit._core.cooperative import run_slices
from flagkit._core.model.access import check_actor
from flagkit.cli.options import (
    EnvironmentOptions,
    environment_options,
    load_guards,
    load_settings,
)
from flagkit.cli.output import (
    PROGRAM_FORMATS,
    Printer,
    Progress,
    emit,
    mark_work_done,
    output_option,
    print_lines,
)
from flagkit.writer import Environment, PruneResult, Retention, Writer
from flagkit.writer.retention import DAYS_MAX

_days = click.IntRange(1, DAYS_MAX)


@click.command("prune")
@environment_options
@click.option("--archived-days", type=_days, help="Flags archived so long, unless needed.")
@click.option("--ledger-days", type=_days, help="The ledger before; no rollback goes further back.")
@click.option("--audit-days", type=_days, help="Who and why of what the ledger has no more.")
@click.option("--denials-days", type=_days, help="What was logged of denials.")
@click.option("--remains-days", type=_days, help="What nothing refers to any more.")
@click.option("--apply/--dry-run", "applies", help="Remove it; by default it is only shown.")
@click.option("--actor", envvar="FLAGKIT_ACTOR", show_envvar=True, help="Who removes it.")
@click.option("--reason", default="", help="Why, for the audit.")
@click.option(
    "--guards",
    envvar="FLAGKIT_GUARDS",
    metavar="MODULE:NAME",
    show_envvar=True,
    help="Python guards to ask about flags.",
)
@output_option("table")
def prune_command(  # noqa: PLR0913, PLR0917 - who, why, and what is asked
    actor: str | None,
    reason: str,
    guards: str | None,
    output: str,
    uri: str | None,
    environment: str | None,
    database: str | None,
    *,
    applies: bool,
    **days: int | None,
) -> None:
    """Show the data that is no longer needed, and remove it with --apply.

    Data without an option for its days stays. The ledger keeps the revisions that clients need to
    start from the newest two checkpoints; the others are verified before they are removed.
    """
    if not any(days.values()):
        raise click.UsageError("say what, and after how many days: as in --ledger-days 90")
    if applies and actor is None:
        raise click.UsageError("say who removes it: --actor, or FLAGKIT_ACTOR")
    asking = EnvironmentOptions(uri=uri, environment=environment, database=database)
    retention = Retention(**days)
    if actor is not None:
        check_actor(actor)
    if applies and actor is not None:
        place = load_settings(**asking)
        with Writer(
            place.uri,
            place.environment,
            actor=actor,
            database=place.database,
            guards=load_guards(guards),
        ) as writer:
            with Progress() as progress:
                steps = writer.prune_in_steps(retention, reason=reason)
                rows = run_slices(steps, progress.show)
            mark_work_done()
            tip = writer.store.read_tip()
    else:
        with Environment(**asking) as reader:
            rows, tip = reader.list_prunable(retention), reader.read_tip()
    if output in PROGRAM_FORMATS:
        document = {
            "environment": tip.environment,
            "applied": applies,
            "revision": tip.revision,
            "hash": tip.hash,
            "parts": [msgspec.to_builtins(row) for row in rows],
        }
        emit(document, output)
        return
    _print_rows(rows)
    if applies:
        print_lines(f"{tip.environment} is at revision {tip.revision:,}")
        print_lines(f"anchor: {tip.revision}:{tip.hash}")
    else:
        print_lines(f"dry run on {tip.environment}: nothing was removed; --apply removes it")


def _print_rows(rows: Sequence[PruneResult]) -> None:
    Printer().print_table(
        ("what", "documents", "bytes", "until"),
        [(row.what, f"{row.documents:,}", f"{row.bytes:,}", row.until) for row in rows],
        right=("documents", "bytes"),
    )
