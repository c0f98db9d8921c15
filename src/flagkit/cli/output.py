"""Output: what commands tell programs, as JSON or YAML of the same data."""

import json
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from flagkit.cli.policy_text import yaml_of
from flagkit.model.canonical import extended

_Command = TypeVar("_Command", bound=Callable[..., Any])

PROGRAMS: Final = ("json", "yaml")
"""The forms for programs, which `written` knows."""


def output_option(people: str, *others: str) -> Callable[[_Command], _Command]:
    """Return the option for the form of output: the one for people, which is the default.

    Args:
        people: What it is called.
        others: Forms beside it and those for programs.
    """
    return click.option(
        "--output",
        type=click.Choice([people, *PROGRAMS, *others]),
        default=people,
        show_default=True,
        help="For people, or for programs.",
    )


def written(document: Any, output: str) -> str:
    """Return a document as JSON or YAML, without the last line's end; dates are Extended JSON."""
    plain = extended(document)
    return yaml_of(plain).rstrip("\n") if output == "yaml" else json.dumps(plain, indent=2)
