"""`flagkit admin`: commands for the administrator of the database."""

import click
import msgspec

from flagkit._core.storage.admin import DatabaseAdmin
from flagkit.cli.options import database_option, uri_option
from flagkit.cli.output import PROGRAM_FORMATS, emit, mark_work_done, output_option, print_lines
from flagkit.config import resolve_connection
from flagkit.writer import Erasure, Writer, erase_actor


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

    The command shows its changes and is idempotent: run it with each new version of flagkit.
    --roles requires a user with the role dbOwner on the database, all else flagkitAdmin.
    """
    place = resolve_connection(uri, database)
    with DatabaseAdmin(*place) as administration:
        done = administration.prepare()
        if roles:
            done += administration.prepare_roles()
    if environment is not None:
        with Writer(place[0], environment, actor="flagkit", database=place[1]) as writer:
            tip = writer.create_environment()
        done.append(f"{environment}: stands at revision {tip.revision}")
    mark_work_done()
    if output in PROGRAM_FORMATS:
        emit({"done": done}, output)
    else:
        print_lines(*(done or ["Nothing was to be done."]))


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

    A salted hash replaces the name, so that the actions of one person stay together. The ledger is
    not altered. It names only actors that roles were granted to; the command lists those revisions.
    It requires the role flagkitAdmin. If it was interrupted, run it again to continue.
    """
    found = erase_actor(actor, uri=uri, database=database, dry_run=dry_run)
    if not dry_run:
        mark_work_done()
    if output in PROGRAM_FORMATS:
        emit(msgspec.to_builtins(found), output)
    else:
        print_lines(*_format_erasure(actor, found))


def _format_erasure(actor: str, erasure: Erasure) -> list[str]:
    lines = [f"{name}: {count:,} named {actor}" for name, count in erasure.documents.items()]
    revisions: dict[str, list[str]] = {}
    for environment, revision in erasure.chained:
        revisions.setdefault(environment, []).append(str(revision))
    lines += [
        f"The ledger of {environment} keeps the name, in the grants of revision {', '.join(named)}."
        for environment, named in revisions.items()
    ]
    done = f"{actor} is {erasure.name} from now on." if erasure.name else "Nothing was erased."
    return [*lines, done]
