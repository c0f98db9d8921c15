"""`flagkit admin`: commands for the administrator of the database."""

import click
import msgspec

from flagkit._core.storage.admin import Administration
from flagkit.cli.options import database_option, uri_option
from flagkit.cli.output import PROGRAMS, emit, output_option, say, work_is_done
from flagkit.config import connection_from
from flagkit.writer import Erasure, Writer, erase


@click.group("admin")
def admin() -> None:
    """Prepare a database, or erase a person from it, as its administrator."""


@admin.command("init")
@uri_option
@database_option
@click.option("--environment", help="Make this environment, too; by default none is made.")
@click.option(
    "--roles", is_flag=True, help="Make the roles flagkitReader, flagkitWriter, flagkitAdmin, too."
)
@output_option("text")
def _init(
    uri: str | None, database: str | None, environment: str | None, output: str, *, roles: bool
) -> None:
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
        with Writer(place[0], environment, actor="flagkit", database=place[1]) as writer:
            tip = writer.create_environment()
        done.append(f"{environment}: stands at revision {tip.revision}")
    work_is_done()
    if output in PROGRAMS:
        emit({"done": done}, output)
    else:
        say(*(done or ["Nothing was to be done."]))


@admin.command("erase")
@click.argument("actor")
@uri_option
@database_option
@click.option("--dry-run", is_flag=True, help="Only tell what would be erased.")
@output_option("text")
def _erase(
    actor: str, uri: str | None, database: str | None, output: str, *, dry_run: bool
) -> None:
    """Erase an actor's name and words from audit and denials, in all environments.

    A salted hash stands in the place of the name, so that what one person did stays together. The
    ledger is not altered: it has no actors, but for those that roles were granted to, whose
    revisions are told. Takes the role flagkitAdmin; done again, it goes on where it was broken off.
    """
    found = erase(actor, uri=uri, database=database, dry_run=dry_run)
    if not dry_run:
        work_is_done()
    if output in PROGRAMS:
        emit(msgspec.to_builtins(found), output)
    else:
        say(*_told(actor, found))


def _told(actor: str, found: Erasure) -> list[str]:
    lines = [f"{name}: {count:,} named {actor}" for name, count in found.documents.items()]
    revisions: dict[str, list[str]] = {}
    for environment, revision in found.chained:
        revisions.setdefault(environment, []).append(str(revision))
    lines += [
        f"The ledger of {environment} keeps the name, in the grants of revision {', '.join(named)}."
        for environment, named in revisions.items()
    ]
    done = f"{actor} is {found.name} from now on." if found.name else "Nothing was erased."
    return [*lines, done]
