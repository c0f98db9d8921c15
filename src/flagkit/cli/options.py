"""Options that commands share: the environment, the context of an evaluation, and guards."""

import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn, TypedDict, TypeVar, Unpack, cast

import click

from flagkit._core.model import EVERYWHERE, TARGETING_KEY
from flagkit._core.model.values import decode_extended_json, normalize
from flagkit._core.storage.store import Store
from flagkit.config import Settings, resolve_settings
from flagkit.errors import ConfigurationError, InvalidDocumentError
from flagkit.policy_files.yaml import YamlReader, compose
from flagkit.writer import Guard

_Command = TypeVar("_Command", bound=Callable[..., Any])

LIMIT_MAX: Final = 1_000_000
LIMIT_RANGE: Final = click.IntRange(1, LIMIT_MAX)

_URI: Final = "flagkit.uri"


def get_noted_uri(context: click.Context) -> str | None:
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


class EnvironmentOptions(TypedDict):
    """The options that select an environment; None where a variable does."""

    uri: str | None
    environment: str | None
    database: str | None


def environment_options(command: _Command) -> _Command:
    """Give a command the options that say which environment is meant."""
    return uri_option(environment_option(database_option(command)))


def load_settings(**place: Unpack[EnvironmentOptions]) -> Settings:
    """Return where an environment is.

    Raises:
        ConfigurationError: it is not said which.
    """
    return resolve_settings(
        place["uri"], environment=place["environment"], database=place["database"]
    )


def open_store(**place: Unpack[EnvironmentOptions]) -> Store:
    """Return the store of an environment, to read its policies in a `with` block.

    Raises:
        ConfigurationError: no option or variable names the environment.
    """
    settings = load_settings(**place)
    return Store(settings.uri, environment=settings.environment, database=settings.database)


def check_single_key(keys: Sequence[object], expected_version: int | None) -> None:
    """Refuse an expected version of several policies."""
    if expected_version is not None and len(keys) > 1:
        raise click.UsageError("--expected-version is of one key, and there are several")


def load_guards(place: str | None) -> tuple[Guard, ...]:
    """Return the guards at `module:name`, which is a guard or several; none without a place.

    Raises:
        ConfigurationError: there are none.
    """
    if not place:
        return ()
    module, _, name = place.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"the guards {place!r} cannot be loaded: {error}: write module:name, and have"
            " PYTHONPATH lead to the module"
        ) from error
    guards: tuple[Any, ...] = tuple(found) if hasattr(found, "__iter__") else (found,)
    if not all(map(callable, guards)):
        raise ConfigurationError(f"the guards {place!r} are none: a guard is a function")
    return guards


_ContextCommand = TypeVar("_ContextCommand", bound=Callable[..., Any])

_STANDARD_INPUT = "-"


class ContextOptions(TypedDict):
    """The options that describe the context of an evaluation."""

    user: str | None
    attributes: dict[str, Any]
    file: str | None


def parse_value(text: str) -> Any:
    """Return what a text says as JSON, MongoDB's Extended JSON included; else itself."""
    try:
        found = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return text
    return decode_extended_json(normalize(found, ""))


def _refuse_constant(name: str) -> NoReturn:
    """Leave NaN and Infinity, which JSON has not, to be text."""
    raise ValueError(name)


def context_options(command: _ContextCommand) -> _ContextCommand:
    """Give a command the options that say who asks, which `load_context` takes."""
    user = click.option("--user", metavar="ID", help="The targeting key.")
    attribute = click.option(
        "--attribute",
        "attributes",
        metavar="NAME=VALUE",
        multiple=True,
        callback=_parse_attributes,
        help="An attribute, as JSON or else as text: age=42, plan=pro, zip='\"42\"'; repeatable.",
    )
    file = click.option(
        "--context",
        "file",
        metavar="FILE",
        help="A mapping of attributes, in YAML or JSON; - for standard input. What the other"
        " options say comes before it.",
    )
    return user(attribute(file(command)))


def load_context(options: ContextOptions) -> dict[str, Any]:
    """Return the context that options tell of.

    Raises:
        ConfigurationError: the file cannot be read.
        InvalidDocumentError: it is no mapping of attributes, or what MongoDB has not is in it.
    """
    context = {} if options["file"] is None else _read_context_file(options["file"])
    key = {} if options["user"] is None else {TARGETING_KEY: options["user"]}
    return context | options["attributes"] | key


def _parse_attributes(
    _context: object, _parameter: object, pairs: tuple[str, ...]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        if not name or not separator:
            raise click.BadParameter(f"{pair!r} names no attribute: write NAME=VALUE")
        try:
            found[name] = parse_value(text)
        except InvalidDocumentError as error:
            raise click.BadParameter(f"{name}: {error.problem}. {error.remedy}") from None
    return found


def _read_context_file(file: str) -> dict[str, Any]:
    name = "<stdin>" if file == _STANDARD_INPUT else file
    try:
        standard = file == _STANDARD_INPUT
        content = sys.stdin.buffer.read() if standard else Path(file).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"the context {file} cannot be read: {error.strerror}") from error
    root = compose(name, content)
    found = None if root is None else YamlReader(name).read_value(root)
    if not isinstance(found, dict):
        raise InvalidDocumentError(
            "", "is no mapping of attributes", "Write them as name: value", subject=name
        )
    try:
        attributes = cast("dict[str, object]", found)
        return cast("dict[str, Any]", decode_extended_json(normalize(attributes, "")))
    except InvalidDocumentError as error:
        raise error.about(name) from None
