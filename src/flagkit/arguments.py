"""Arguments: what a call was given, checked before the call does anything.

A function that takes keyword arguments by a TypedDict accepts any name when it runs: only a type
checker knows better. So each such function of the public API is decorated.
"""

import functools
import math
import threading
from collections.abc import Callable, Iterable
from typing import Any, Final, ParamSpec, TypeVar

from flagkit.errors import InvalidArgumentError

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T", bound=type)

INT32_MAX: Final = 2**31 - 1
INT64_MAX: Final = 2**63 - 1
_VARIABLE_KEYWORDS: Final = 0x08
"""The flag of a function's code that says that it takes any keyword arguments."""


def refusing_unknown(function: Callable[P, R]) -> Callable[P, R]:
    """Have a function with keyword arguments by a TypedDict refuse all others.

        @refusing_unknown
        def change(self, **asked: Unpack[Asked]) -> Commit: ...

    Raises:
        InvalidArgumentError: an argument has another name. It names the nearest.
    """
    known = _known(function)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in known:
                raise InvalidArgumentError(
                    f"{function.__qualname__}() got an unexpected keyword argument {name!r}."
                    f" {near(name, known)}"
                )
        return function(*args, **kwargs)

    return checked


def refusing_unknown_in_methods(cls: T) -> T:
    """Decorate all methods of a class that take keyword arguments by a TypedDict."""
    for name, method in list(vars(cls).items()):
        code = getattr(_undecorated(method), "__code__", None)
        if code is not None and code.co_flags & _VARIABLE_KEYWORDS:
            setattr(cls, name, refusing_unknown(method))
    return cls


def near(name: str, known: Iterable[str]) -> str:
    """Return a sentence on which known name is likely meant."""
    # Deferred: it is only wanted where something is wrong.
    import difflib  # noqa: PLC0415

    names = sorted(known)
    found = difflib.get_close_matches(name, names, 1)
    return f"Did you mean {found[0]!r}?" if found else f"It takes: {', '.join(names)}"


def seconds(value: object, name: str = "timeout") -> float:
    """Return how many seconds to wait, as threads can wait.

    Raises:
        InvalidArgumentError: it is no number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise InvalidArgumentError(
            f"{name} is {value!r}: pass a number of seconds, or math.inf to wait for ever"
        )
    return min(max(value, 0), threading.TIMEOUT_MAX)


def revision(value: object, name: str = "revision") -> int:
    """Return the number of a revision.

    Raises:
        InvalidArgumentError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= INT64_MAX:
        raise InvalidArgumentError(f"{name} is {value!r}: pass a number, as in commit.revision")
    return value


def count(value: object, name: str, most: int = INT32_MAX) -> int:
    """Return how many of something are meant.

    Raises:
        InvalidArgumentError: it is no whole number from 0 to `most`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise InvalidArgumentError(f"{name} is {value!r}: pass a whole number from 0 to {most:,}")
    return value


def _known(function: Callable[..., Any]) -> frozenset[str]:
    """Return the names of the arguments that a function takes by name."""
    inner = _undecorated(function)
    code = inner.__code__
    count = code.co_argcount + code.co_kwonlyargcount
    named, rest = code.co_varnames[:count], code.co_varnames[count:]
    # Behind the named ones are *args, where there are such, and then **kwargs.
    unpacked = next(inner.__annotations__[name] for name in rest if name in inner.__annotations__)
    [typed] = unpacked.__args__
    return frozenset({*named[code.co_posonlyargcount :], *typed.__annotations__} - {"self"})


def _undecorated(function: Any) -> Any:
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function
