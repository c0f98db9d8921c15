"""`flagkit prune`: show what can be deleted, and delete it on request."""

from collections.abc import Sequence

import click
import msgspec

from flagkit._core.model.access import checked_actor
from flagkit.cli.options import Place, guards_named, place_options, settings_at, store_at
from flagkit.cli.output import PROGRAMS, Progress, Teller, emit, output_option, say, work_is_done
from flagkit.writer.retention import DAYS_MAX, Pruned, Retention, prunable, prune_in_steps
from flagkit.writer.writer import Writer

_days = click.IntRange(1, DAYS_MAX)


@click.command("prune")
@place_options
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
def prune(  # noqa: PLR0913, PLR0917 - who, why, and what is asked
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
    """Show what need not be kept any more, and remove it with --apply.

    Nothing goes for which no number of days is given. Of the ledger stays what clients need that
    start from the newest two checkpoints; the rest is proved before it goes.
    """
    if not any(days.values()):
        raise click.UsageError("say what, and after how many days: as in --ledger-days 90")
    if applies and actor is None:
        raise click.UsageError("say who removes it: --actor, or FLAGKIT_ACTOR")
    asking = Place(uri=uri, environment=environment, database=database)
    retention = Retention(**days)
    if actor is not None:
        checked_actor(actor)
    if applies and actor is not None:
        place = settings_at(**asking)
        with Writer(
            place.uri,
            place.environment,
            actor=actor,
            database=place.database,
            guards=guards_named(guards),
        ) as writer:
            rows = _applied(writer, retention, reason)
            work_is_done()
            tip = writer.store.tip()
    else:
        with store_at(**asking) as store:
            rows, tip = prunable(store, retention), store.tip()
    if output in PROGRAMS:
        told = {
            "environment": tip.environment,
            "applied": applies,
            "revision": tip.revision,
            "hash": tip.hash,
            "parts": [msgspec.to_builtins(row) for row in rows],
        }
        emit(told, output)
        return
    _tell(rows)
    if applies:
        say(f"{tip.environment} is at revision {tip.revision:,}")
        say(f"anchor: {tip.revision}:{tip.hash}")
    else:
        say(f"dry run on {tip.environment}: nothing was removed; --apply removes it")


def _applied(writer: Writer, retention: Retention, reason: str) -> list[Pruned]:
    steps = prune_in_steps(writer, retention, reason=reason)
    with Progress() as progress:
        while True:
            try:
                progress.show(next(steps))
            except StopIteration as done:
                rows: list[Pruned] = done.value
                return rows


def _tell(rows: Sequence[Pruned]) -> None:
    Teller().table(
        ("what", "documents", "bytes", "until"),
        [(row.what, f"{row.documents:,}", f"{row.bytes:,}", row.until) for row in rows],
        right=("documents", "bytes"),
    )
