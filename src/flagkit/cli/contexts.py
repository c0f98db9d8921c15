"""Contexts: who asks, as the command is told: by a key, by attributes, by a file."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypedDict, TypeVar, cast

import click

from flagkit.cli.yaml_nodes import NodeReading, composed
from flagkit.errors import ConfigurationError, InvalidDocumentError
from flagkit.model import TARGETING_KEY
from flagkit.model.values import normal, revived

_Command = TypeVar("_Command", bound=Callable[..., Any])

_STANDARD_INPUT = "-"


class Who(TypedDict):
    """What the options say of who asks."""

    user: str | None
    attributes: dict[str, Any]
    file: str | None


def value_of(text: str) -> Any:
    """Return what a text says as JSON, MongoDB's Extended JSON included; else itself."""
    try:
        found = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return text
    return revived(normal(found, ""))


def _no_number(name: str) -> NoReturn:
    """Leave NaN and Infinity, which JSON has not, to be text."""
    raise ValueError(name)


def context_options(command: _Command) -> _Command:
    """Give a command the options that say who asks, which `context_from` takes."""
    user = click.option("--user", metavar="ID", help="The targeting key.")
    attribute = click.option(
        "--attribute",
        "attributes",
        metavar="NAME=VALUE",
        multiple=True,
        callback=_attributes,
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


def context_from(who: Who) -> dict[str, Any]:
    """Return the context that options tell of.

    Raises:
        ConfigurationError: the file cannot be read.
        InvalidDocumentError: it is no mapping of attributes, or what MongoDB has not is in it.
    """
    context = {} if who["file"] is None else _read(who["file"])
    key = {} if who["user"] is None else {TARGETING_KEY: who["user"]}
    return context | who["attributes"] | key


def _attributes(_context: object, _parameter: object, pairs: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        if not name or not separator:
            raise click.BadParameter(f"{pair!r} names no attribute: write NAME=VALUE")
        try:
            found[name] = value_of(text)
        except InvalidDocumentError as error:
            raise click.BadParameter(f"{name}: {error.problem}. {error.remedy}") from None
    return found


def _read(file: str) -> dict[str, Any]:
    name = "<stdin>" if file == _STANDARD_INPUT else file
    try:
        standard = file == _STANDARD_INPUT
        content = sys.stdin.buffer.read() if standard else Path(file).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"the context {file} cannot be read: {error.strerror}") from error
    root = composed(name, content)
    found = None if root is None else NodeReading(name).value(root)
    if not isinstance(found, dict):
        raise InvalidDocumentError(
            "", "is no mapping of attributes", "Write them as name: value", subject=name
        )
    try:
        attributes = cast("dict[str, object]", found)
        return cast("dict[str, Any]", revived(normal(attributes, "")))
    except InvalidDocumentError as error:
        raise error.about(name) from None
