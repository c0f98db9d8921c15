"""Output: what commands tell programs, as JSON or YAML of the same data.

Both have escapes of their own, so what is written here does not pass `printable`.
"""

import json
import re
import sys
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from flagkit.cli.policy_text import yaml_of
from flagkit.model.canonical import extended

_Command = TypeVar("_Command", bound=Callable[..., Any])

PROGRAMS: Final = ("json", "yaml")
"""The forms for programs, which `written` knows."""
_BEYOND_ASCII: Final = re.compile(r"[^\x00-\x7f]")


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


def emit(document: Any, output: str) -> None:
    """Write a document for programs, to standard output."""
    emit_text(f"{written(document, output)}\n", output)


def emit_text(text: str, output: str) -> None:
    """Write a text that is JSON or YAML already, as it is.

    What the encoding of standard output lacks is escaped in the way of the form.
    """
    if output == "json" and not _is_encodable(text):
        # Beyond ASCII there is nothing in JSON but the insides of strings.
        text = _BEYOND_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], text)
    sys.stdout.write(text)
    sys.stdout.flush()


def _is_encodable(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return False
    return True
