"""Exceptions that a signal handler raises while flagkit's code runs.

Celery's `SoftTimeLimitExceeded`, for example, is an ordinary Exception that a signal handler raises
in any line of the main thread. An evaluation answers with the caller's default when it fails. Such
an exception is meant for the caller, so the evaluation lets it pass.
"""

import inspect
from types import FrameType
from typing import Final, cast


def is_interruption(error: BaseException) -> bool:
    """Return True if a signal handler, or a function that it called, raised an exception.

    Python calls a handler with the frame that it interrupts, which is also the frame that the
    handler returns to. No other function gets its own caller as an argument, apart from trace
    functions, whose exceptions are not for flagkit either. This reads only the traceback, so only
    failures pay for it. It cannot see handlers that are not written in Python. If one exception
    object was raised several times, only the last time counts.
    """
    step = error.__traceback__
    before: FrameType | None = None
    while step is not None:
        frame = step.tb_frame
        step = step.tb_next
        caller, code = frame.f_back, frame.f_code
        # Python puts the steps of an exception that is raised again in front of its earlier ones.
        # One object that is raised each time would have more and more of them. The earlier ones
        # begin with a frame that the last one of the newer ones did not call.
        if before is not None and frame is not before and caller not in (before, None):
            return False
        before = frame
        count = code.co_argcount
        has_rest = code.co_flags & inspect.CO_VARARGS
        if caller is None or not (count or has_rest):
            continue
        values = frame.f_locals
        for name in code.co_varnames[:count]:
            if values.get(name) is caller:
                return True
        if has_rest:
            rest: object = values.get(code.co_varnames[count + code.co_kwonlyargcount])
            # Compare by identity: `==` would run code of the caller's object.
            if type(rest) is tuple:
                for value in cast("tuple[object, ...]", rest):
                    if value is caller:
                        return True
    return False


class _Suppression:
    """A context manager that ends exceptions, apart from interruptions."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        return isinstance(error, Exception) and not is_interruption(error)


FAILURES_SUPPRESSED: Final = _Suppression()
"""Use it as `with FAILURES_SUPPRESSED:` around code that must not raise. It may be nested."""
