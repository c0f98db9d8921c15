"""Options that several commands have, said once, and what becomes of them."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypedDict, TypeVar, Unpack

import click

from flagkit.model import EVERYWHERE
from flagkit.settings import Settings, settings_from
from flagkit.storage.store import Store

_Command = TypeVar("_Command", bound=Callable[..., Any])

HOW_MANY_MAX: Final = 1_000_000
HOW_MANY: Final = click.IntRange(1, HOW_MANY_MAX)

_URI: Final = "flagkit.uri"


def noted_uri(context: click.Context) -> str | None:
    """Return the connection string that the command has, None if it needs no database."""
    found: str | None = context.meta.get(_URI)
    return found


def _note_uri(context: click.Context, _parameter: object, uri: str | None) -> str | None:
    context.meta[_URI] = uri or os.environ.get("FLAGKIT_URI")
    return uri


uri_option = click.option(
    "--uri",
    callback=_note_uri,
    help="MongoDB connection string; by default FLAGKIT_URI, where others do not see it.",
)
environment_option = click.option(
    "--environment", help="Whose flags; by default FLAGKIT_ENVIRONMENT."
)
database_option = click.option(
    "--database",
    help="Where flagkit's collections are; by default FLAGKIT_DATABASE, or flagkit.",
)
region_option = click.option(
    "--region",
    default=EVERYWHERE,
    show_default=True,
    help="Whose override is meant; * is the flag of all regions.",
)
rule_option = click.option(
    "--rule", metavar="NAME", help="Change this rule; by default the fallthrough."
)
expected_version_option = click.option(
    "--expected-version",
    type=click.IntRange(1),
    metavar="N",
    help="Refuse, with exit code 4, if it is at another version.",
)
reassign_option = click.option(
    "--reassign", is_flag=True, help="Let keys pass from one treated variant to another."
)
to_option = click.option(
    "--to",
    type=click.IntRange(0),
    metavar="REVISION",
    required=True,
    help="The revision whose content it is given.",
)
key_argument = click.argument("key")
keys_argument = click.argument("keys", metavar="KEY...", nargs=-1, required=True)
file_argument = click.argument("file", type=click.Path(path_type=Path))


class Place(TypedDict):
    """Which environment is meant; None where variables say it."""

    uri: str | None
    environment: str | None
    database: str | None


def place_options(command: _Command) -> _Command:
    """Give a command the options that say which environment is meant."""
    return uri_option(environment_option(database_option(command)))


def settings_at(**place: Unpack[Place]) -> Settings:
    """Return where an environment is.

    Raises:
        ConfigurationError: it is not said which.
    """
    return settings_from(place["uri"], environment=place["environment"], database=place["database"])


def store_at(**place: Unpack[Place]) -> contextlib.closing[Store]:
    """Return an environment to read, which closes at the end of a block.

    Raises:
        ConfigurationError: it is not said which.
    """
    settings = settings_at(**place)
    store = Store(settings.uri, environment=settings.environment, database=settings.database)
    return contextlib.closing(store)


def only_one(keys: tuple[str, ...], expected_version: int | None) -> None:
    """Refuse an expected version of several policies."""
    if expected_version is not None and len(keys) > 1:
        raise click.UsageError("--expected-version is of one key, and there are several")
