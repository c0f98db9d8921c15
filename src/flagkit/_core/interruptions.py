"""Exceptions that a signal handler raises while flagkit's code runs.

Celery's `SoftTimeLimitExceeded`, for example, is an ordinary Exception that a signal handler raises
in any line of the main thread. An evaluation answers with the caller's default when it fails. Such
an exception is meant for the caller, so the evaluation lets it pass.
"""

import inspect
from types import FrameType
from typing import Final, cast


def is_interruption(error: BaseException) -> bool:
    """Tell whether a signal handler raised an exception, or something that the handler called.

    Python calls a handler with the frame that it interrupts, which is also the frame that the
    handler returns to. No other function gets its own caller as an argument, apart from trace
    functions, whose exceptions are not for flagkit either. This looks at the traceback alone, so
    only failures pay for it. It cannot see handlers that are not written in Python. Where one
    exception object was raised several times, the last time alone counts.
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
            # By identity: to compare with what a caller passed would run the caller's code.
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
"""Use it as `with FAILURES_SUPPRESSED:` around what must not raise. It may be nested."""
