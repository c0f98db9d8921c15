"""Strict JSON: the one reader of policy files in JSON, for commands, bootstraps and tests.

It refuses input on which readers of JSON disagree: repeated fields, NaN, infinity, lone surrogates,
and any encoding but UTF-8. It skips a byte order mark.
"""

import json
from collections.abc import Mapping
from typing import Any, Final, NoReturn, cast

from flagkit.errors import InvalidDocumentError

LISTS: Final[Mapping[str, str]] = {"flags": "flag", "segments": "segment"}
"""The lists of a policy file, and the word for a member."""


def parse_json(content: bytes | str, name: str, line: int = 1) -> Any:
    """Return the value of a text in JSON.

    Args:
        content: The text. Bytes are read as UTF-8.
        name: The name of the file in errors.
        line: The line of the file in which the text begins.

    Raises:
        InvalidDocumentError: it is not JSON, or readers disagree on it. `subject` is `file:line`.

    >>> parse_json('{"flags": []}', "flags.json")
    {'flags': []}
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
    except UnicodeDecodeError as error:
        raise InvalidDocumentError(
            "", f"is not UTF-8: {error}", "Save it as UTF-8", subject=name
        ) from None
    try:
        return json.loads(text, object_pairs_hook=_build_fields, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise InvalidDocumentError(
            "",
            f"is not JSON: {error.msg} at column {error.colno}",
            "Correct it and try again",
            subject=f"{name}:{line + error.lineno - 1}",
        ) from None
    except RecursionError:
        raise InvalidDocumentError("", "is nested too deeply", "Flatten it", subject=name) from None
    except ValueError as error:
        # Python refuses to read numbers of thousands of digits.
        raise InvalidDocumentError(
            "", f"has a number that cannot be read: {error}", "Shorten it", subject=name
        ) from None
    except _RefusedError as refused:
        # The parser does not give the place. A text of one line has only one.
        place = f"{name}:{line}" if "\n" not in text.strip() else name
        raise InvalidDocumentError("", refused.problem, refused.remedy, subject=place) from None


def parse_policies(content: bytes | str, name: str) -> dict[str, list[Any]]:
    """Return the lists of a policy file in JSON: its flags and segments, as far as it has them.

    Raises:
        InvalidDocumentError: it is not JSON, or has another form.
    """
    found = parse_json(content, name)
    fields = cast("dict[str, list[Any]]", found) if isinstance(found, dict) else {}
    if LISTS.keys().isdisjoint(fields):
        raise InvalidDocumentError(
            "flags",
            "is missing",
            'Write {"flags": [...]}, and in it the flags, each with a "key"',
            subject=name,
        )
    lists: dict[str, list[Any]] = {}
    for field, members in fields.items():
        if field not in LISTS:
            known = " and ".join(LISTS)
            raise InvalidDocumentError(
                field, "is not a known field", f"A policy file has {known}", subject=name
            )
        if not isinstance(members, list):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidDocumentError(
                field, "is not a list", f"Write a list of {field}", subject=name
            )
        lists[field] = members
    return lists


class _RefusedError(Exception):
    """JSON that readers disagree on. It is no ValueError, which the parser raises itself."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.problem, self.remedy = problem, remedy


def _build_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _RefusedError(f"the field {twice!r} is there twice", "Keep one")
    return fields


def _refuse_constant(constant: str) -> NoReturn:
    raise _RefusedError(
        f"has {constant}, which is not JSON",
        f'Write a number; in a condition, {{"$numberDouble": "{constant}"}}',
    )
