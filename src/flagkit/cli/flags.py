"""Flags: `flagkit flags`, which tells of the flags of an environment. Reads alone."""

import contextlib
import json

import click
import msgspec
from rich.console import Console

from flagkit.cli.options import database_option, environment_option, uri_option
from flagkit.cli.telling import Teller
from flagkit.settings import settings_from
from flagkit.storage.store import Store
from flagkit.writer.staleness import stale_flags


@click.group("flags")
def flags() -> None:
    """Look at the flags of an environment."""


@flags.command("stale")
@uri_option
@environment_option
@database_option
@click.option("--days", type=click.IntRange(0), default=30, show_default=True, help="How long.")
@click.option("--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def _stale(
    uri: str | None, environment: str | None, database: str | None, days: int, output: str
) -> None:
    """List flags whose time seems to be over.

    Those past their `expires`; and those that nobody touched for some days, and that never changed,
    are archived, or have each rollout at 0 or 100 %.
    """
    settings = settings_from(uri, environment=environment, database=database)
    store = Store(settings.uri, environment=settings.environment, database=settings.database)
    with contextlib.closing(store):
        found = stale_flags(store, days)
    if output == "json":
        click.echo(json.dumps([msgspec.to_builtins(flag) for flag in found], indent=2))
    elif found:
        Teller(Console(highlight=False)).table(
            ("flag", "region", "owner", "why"),
            [(flag.key, flag.region, flag.owner, "\n".join(flag.reasons)) for flag in found],
        )
    else:
        click.echo("No flag is stale.")
