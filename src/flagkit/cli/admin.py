"""Admin: `flagkit admin`, which an administrator of the database runs."""

import click

from flagkit.cli.options import database_option, uri_option
from flagkit.settings import connection_from
from flagkit.storage.administration import Administration
from flagkit.writer import Writer


@click.group("admin")
def admin() -> None:
    """Prepare a database for flagkit, as its administrator."""


@admin.command("init")
@uri_option
@database_option
@click.option("--environment", help="Make this environment, too; by default none is made.")
@click.option(
    "--roles", is_flag=True, help="Make the roles flagkitReader, flagkitWriter, flagkitAdmin, too."
)
def _init(uri: str | None, database: str | None, environment: str | None, *, roles: bool) -> None:
    """Make collections, indexes and validators, or bring them up to date.

    Says what it did, and may be run again at any time: run it with each new version of flagkit.
    --roles takes a user with the role dbOwner on the database, all else flagkitAdmin.
    """
    place = connection_from(uri, database)
    with Administration(*place) as administration:
        done = administration.prepare()
        if roles:
            done += administration.prepare_roles()
    if environment is not None:
        with Writer(place[0], environment, actor="", database=place[1]) as writer:
            tip = writer.create_environment()
        done.append(f"{environment}: stands at revision {tip.revision}")
    for line in done or ["Nothing was to be done."]:
        click.echo(line)
