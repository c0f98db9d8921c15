"""Pruning: `flagkit prune`, which shows what need not be kept, and removes it if asked to."""

import contextlib
import json
import time
from collections.abc import Sequence

import click
import msgspec
from rich.console import Console
from rich.markup import escape

from flagkit.cli.options import database_option, environment_option, uri_option
from flagkit.cli.telling import Teller
from flagkit.settings import settings_from
from flagkit.storage.store import Store
from flagkit.writer.pruning import PAUSE_SECONDS, Pruned, prunable, prune_in_steps
from flagkit.writer.retention import Retention
from flagkit.writer.writer import Writer

_days = click.IntRange(1)


@click.command("prune")
@uri_option
@environment_option
@database_option
@click.option("--archived-days", type=_days, help="Flags archived so long, unless needed.")
@click.option("--ledger-days", type=_days, help="The ledger before; no rollback goes further back.")
@click.option("--audit-days", type=_days, help="Who and why of what the ledger has no more.")
@click.option("--denials-days", type=_days, help="What was logged of denials.")
@click.option("--remains-days", type=_days, help="What nothing refers to any more.")
@click.option("--apply/--dry-run", "applies", help="Remove it; by default it is only shown.")
@click.option("--actor", envvar="FLAGKIT_ACTOR", show_envvar=True, help="Who removes it.")
@click.option("--reason", default="", help="Why, for the audit.")
@click.option("--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def prune(  # noqa: PLR0913 - where, who and why
    uri: str | None,
    environment: str | None,
    database: str | None,
    actor: str | None,
    reason: str,
    output: str,
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
    if applies and not actor:
        raise click.UsageError("say who removes it: --actor, or FLAGKIT_ACTOR")
    retention = Retention(**days)
    if applies:
        with Writer(uri, environment, actor=str(actor), database=database) as writer:
            rows = _applied(writer, retention, reason)
            tip = writer.store.tip()
    else:
        settings = settings_from(uri, environment=environment, database=database)
        place = {"environment": settings.environment, "database": settings.database}
        with contextlib.closing(Store(settings.uri, **place)) as store:
            rows, tip = prunable(store, retention), store.tip()
    if output == "json":
        told = {
            "environment": tip.environment,
            "applied": applies,
            "revision": tip.revision,
            "hash": tip.hash,
            "parts": [msgspec.to_builtins(row) for row in rows],
        }
        click.echo(json.dumps(told, indent=2))
        return
    _tell(rows)
    if applies:
        click.echo(f"{tip.environment} is at revision {tip.revision:,}")
        click.echo(f"anchor: {tip.revision}:{tip.hash}")
    else:
        click.echo(f"dry run on {tip.environment}: nothing was removed; --apply removes it")


def _applied(writer: Writer, retention: Retention, reason: str) -> list[Pruned]:
    steps = prune_in_steps(writer, retention, reason=reason)
    with Console(stderr=True).status("looking at the environment") as status:
        while True:
            try:
                status.update(escape(next(steps)))
            except StopIteration as done:
                rows: list[Pruned] = done.value
                return rows
            time.sleep(PAUSE_SECONDS)


def _tell(rows: Sequence[Pruned]) -> None:
    Teller(Console(highlight=False)).table(
        ("what", "documents", "bytes", "until"),
        [(row.what, f"{row.documents:,}", f"{row.bytes:,}", row.until) for row in rows],
        right=("documents", "bytes"),
    )
