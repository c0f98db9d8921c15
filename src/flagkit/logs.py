"""Loggers: each of flagkit's loggers writes records that stored or given text cannot break.

Modules take their logger from `logger` and never from `logging` itself.
"""

import logging
from collections.abc import Mapping
from typing import Any, Final, cast

from flagkit.printable import printable, printable_traceback, text_of

_PLAIN: Final = (bool, int, float, type(None))
"""The types of arguments that keep their type, so that formats such as %d work."""


def logger(name: str) -> logging.Logger:
    """Return the logger of a name, which makes the text in its records printable.

    A key, a reason or an error can neither begin a new line nor reach a terminal as an escape. This
    holds for every handler, since it happens to the record before any handler sees it.
    """
    found = logging.getLogger(name)
    # A logger keeps a filter once, however often it is added.
    found.addFilter(_FILTER)
    return found


class _PrintableRecords(logging.Filter):
    """Passes all records, after it has made their text printable."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg = printable(text_of(record.msg))
        args: Any = record.args
        if isinstance(args, Mapping):
            named = cast("Mapping[str, object]", args)
            record.args = {name: _shown(value) for name, value in named.items()}
        elif args:
            record.args = tuple(map(_shown, args))
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            # A formatter takes this text, where there is one, instead of making its own.
            record.exc_text = printable_traceback(error)
        return True


_FILTER: Final = _PrintableRecords()


def _shown(value: object) -> object:
    return value if type(value) in _PLAIN else printable(text_of(value))
