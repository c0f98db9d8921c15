"""Checks of the arguments of public functions, made before the function does anything.

A function that takes its keyword arguments as a TypedDict accepts any name at run time. The
decorator here refuses unknown names with an error.
"""

import functools
import math
import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, ParamSpec, TypeVar

from flagkit.errors import InvalidArgumentError

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T", bound=type)
V = TypeVar("V")

INT32_MAX: Final = 2**31 - 1
INT64_MAX: Final = 2**63 - 1
_VARIABLE_KEYWORDS: Final = 0x08
"""The code flag of a function that takes any keyword arguments."""


def refuse_unknown_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function whose keyword arguments are a TypedDict reject all other arguments.

        @refuse_unknown_arguments
        def change(self, **options: Unpack[ChangeOptions]) -> Commit: ...

    Raises:
        InvalidArgumentError: an argument has another name. The error names the most similar one.
    """
    known = _collect_argument_names(function)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in known:
                raise InvalidArgumentError(
                    f"{function.__qualname__}() got an unexpected keyword argument {name!r}."
                    f" {suggest_name(name, known)}"
                )
        return function(*args, **kwargs)

    return checked


def refuse_unknown_in_methods(cls: T) -> T:
    """Decorate all methods of a class that take keyword arguments by a TypedDict."""
    for name, method in list(vars(cls).items()):
        code = getattr(_unwrap(method), "__code__", None)
        if code is not None and code.co_flags & _VARIABLE_KEYWORDS:
            setattr(cls, name, refuse_unknown_arguments(method))
    return cls


def suggest_name(name: str, known: Iterable[str]) -> str:
    """Return a sentence on which known name is likely meant."""
    # Deferred: it is only wanted where something is wrong.
    import difflib  # noqa: PLC0415

    names = sorted(known)
    found = difflib.get_close_matches(name, names, 1)
    return f"Did you mean {found[0]!r}?" if found else f"It takes: {', '.join(names)}"


def check_seconds(value: object, name: str = "timeout") -> float:
    """Return how many seconds to wait, as threads can wait.

    Raises:
        InvalidArgumentError: it is no number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise InvalidArgumentError(
            f"{name} is {value!r}: pass a number of seconds, or math.inf to wait for ever"
        )
    return min(max(value, 0), threading.TIMEOUT_MAX)


def check_revision(value: object, name: str = "revision") -> int:
    """Return the number of a revision.

    Raises:
        InvalidArgumentError: it is no revision.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= INT64_MAX:
        raise InvalidArgumentError(f"{name} is {value!r}: pass a number, as in commit.revision")
    return value


def check_count(value: object, name: str, most: int = INT32_MAX) -> int:
    """Return how many of something are meant.

    Raises:
        InvalidArgumentError: it is no whole number from 0 to `most`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise InvalidArgumentError(f"{name} is {value!r}: pass a whole number from 0 to {most:,}")
    return value


def check_instance(value: object, kind: type[V], name: str, remedy: str) -> V:
    """Return a value of a type.

        instance(retention, Retention, "retention", "pass a Retention, of flagkit.writer")

    Raises:
        InvalidArgumentError: the value is of another type. The error does not show the value.
    """
    if not isinstance(value, kind):
        raise InvalidArgumentError(f"{name} is of the type {type(value).__name__}: {remedy}")
    return value


def check_list(value: object, name: str, remedy: str) -> list[Any]:
    """Return the elements of a list, or of another iterable that is no text and no mapping.

    Raises:
        InvalidArgumentError: the value is none of these. The error does not show the value.
    """
    given: Any = value
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | bytearray | Mapping):
        raise InvalidArgumentError(f"{name} is of the type {type(given).__name__}: {remedy}")
    return list(given)


def check_texts(value: object, name: str) -> list[str]:
    """Return the elements of a list of texts.

    Raises:
        InvalidArgumentError: the value is no list, or an element is no text.
    """
    remedy = 'pass a list of texts, such as ["a", "b"]'
    return [
        check_instance(text, str, f"an element of {name}", remedy)
        for text in check_list(value, name, remedy)
    ]


def check_moment(value: object, name: str = "now") -> datetime | None:
    """Return a moment in UTC; None for None.

    Raises:
        InvalidArgumentError: the value is no datetime, or has no time zone, or is beyond the years
            1 to 9999 in UTC.
    """
    if value is None:
        return None
    remedy = "pass a datetime with a time zone, such as datetime.now(UTC)"
    found = check_instance(value, datetime, name, remedy)
    if found.tzinfo is None:
        raise InvalidArgumentError(f"{name} is {found!r}, which has no time zone: {remedy}")
    try:
        return found.astimezone(UTC)
    except OverflowError:
        raise InvalidArgumentError(
            f"{name} is {found!r}: pass one of the years 1 to 9999"
        ) from None


def subtract_days(now: datetime, days: int) -> datetime:
    """Return the moment that is some days before another; the first one that there is, if none."""
    try:
        return now - timedelta(days=days)
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)


def _collect_argument_names(function: Callable[..., Any]) -> frozenset[str]:
    """Return the names of the arguments that a function takes by name."""
    inner = _unwrap(function)
    code = inner.__code__
    count = code.co_argcount + code.co_kwonlyargcount
    named, rest = code.co_varnames[:count], code.co_varnames[count:]
    # After the named parameters come *args, if there is one, and then **kwargs.
    unpacked = next(inner.__annotations__[name] for name in rest if name in inner.__annotations__)
    [typed] = unpacked.__args__
    return frozenset({*named[code.co_posonlyargcount :], *typed.__annotations__} - {"self"})


def _unwrap(function: Any) -> Any:
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function
