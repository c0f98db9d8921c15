"""Background threads that no code of the host can end, and the log that they write to.

Log filters, handlers, callbacks and meters belong to the host application. They run in these
threads and may raise anything. A thread continues after an error and pauses longer after each one.

This module is the only one that takes loggers from `logging`.
"""

import _thread
import contextlib
import logging
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Mapping
from typing import Any, Final, ParamSpec, cast

from flagkit._core.printable import format_safely, format_traceback, to_printable
from flagkit.errors import ConfigurationError, FlagkitError

_PLAIN: Final = (bool, int, float, type(None))
"""The types of arguments that keep their type, so that formats such as %d work."""


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a name, which makes the text in its records printable.

    A key, a reason or an error can neither begin a new line nor reach a terminal as an escape. This
    holds for every handler, since it happens to the record before any handler sees it.
    """
    found = logging.getLogger(name)
    # A logger keeps a filter once, however often it is added.
    found.addFilter(_FILTER)
    return found


class _PrintableFilter(logging.Filter):
    """Passes all records, after it has made their text printable."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg = to_printable(format_safely(record.msg))
        args: Any = record.args
        if isinstance(args, Mapping):
            named = cast("Mapping[str, object]", args)
            record.args = {name: _to_printable(value) for name, value in named.items()}
        elif args:
            record.args = tuple(map(_to_printable, args))
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            # A formatter takes this text, where there is one, instead of making its own.
            record.exc_text = format_traceback(error)
        return True


_FILTER: Final = _PrintableFilter()


def _to_printable(value: object) -> object:
    return value if type(value) in _PLAIN else to_printable(format_safely(value))


P = ParamSpec("P")

PAUSE_SECONDS_MIN: Final = 0.1
PAUSE_SECONDS_MAX: Final = 30.0
"""The bounds of the pause after an error. Each pause is up to twice as long as the last one."""
SETTLE_SECONDS: Final = 0.1
"""How long the threads of a forked child wait: see `delay_after_fork`."""


# What it is before gevent or eventlet replaces it, if they do so after this.
_start_new_thread = _thread.start_new_thread

_LIBRARIES: Final = {"asyncio", "concurrent", "pymongo"}


class _ThreadState(threading.local):
    is_background = False
    is_silent = False
    is_handling = False


_state = _ThreadState()


class Log:
    """A logger that raises nothing which a filter, a handler or a formatter raises.

    Outside of background threads it still raises what is no `Exception`, such as
    KeyboardInterrupt: there it belongs to the caller.
    """

    def __init__(self, name: str) -> None:
        self._logger = get_logger(name)

    def debug(self, message: str, *args: object, exc_info: BaseException | None = None) -> None:
        """Log a message that only helps to debug."""
        self._write(logging.DEBUG, message, args, exc_info)

    def info(self, message: str, *args: object, exc_info: BaseException | None = None) -> None:
        """Log a message that needs no action."""
        self._write(logging.INFO, message, args, exc_info)

    def warning(self, message: str, *args: object, exc_info: BaseException | None = None) -> bool:
        """Log a message that may need action; return False if this is no time for it."""
        return self._write(logging.WARNING, message, args, exc_info)

    def _write(
        self, level: int, message: str, args: tuple[object, ...], error: BaseException | None
    ) -> bool:
        if _state.is_silent:
            return False
        # The record names the line that called `warning`, three frames up.
        call_safely(self._logger.log, level, message, *args, exc_info=error, stacklevel=4)
        return True


class LogOnce(Log):
    """Logs a problem once for as long as it lasts, and once that it is over.

    Attributes:
        problem: The text of the last problem; None if there is none.

    Args:
        name: The logger's name.
        message: The warning, with a place for the problem's text.
        over: The message for the end of a problem.
        known: The classes of errors that are logged without a traceback.
    """

    def __init__(
        self,
        name: str,
        message: str,
        over: str = "",
        *,
        known: tuple[type[Exception], ...] = (FlagkitError,),
    ) -> None:
        super().__init__(name)
        self.problem: str | None = None
        self._message = message
        self._over = over
        self._known = known
        self._last_logged: str | None = None

    def report(self, problem: Exception | str) -> None:
        """Log a problem, unless it was the last one, or the interpreter is about to exit."""
        error = problem if isinstance(problem, Exception) else None
        self.problem = problem if isinstance(problem, str) else format_error(problem)
        if self.problem == self._last_logged or (error and is_shutdown_error(error)):
            return
        cause = None if isinstance(error, self._known) else error
        if self._write(logging.WARNING, self._message, (self.problem,), cause):
            self._last_logged = self.problem

    def clear(self) -> None:
        """Log that the problem is over, if there was one."""
        if self.problem is not None and self._over:
            self._write(logging.INFO, self._over, (), None)
        self.problem = self._last_logged = None


class _GuardingFilter(logging.Filter):
    """Has a logger of another library raise nothing in background threads.

    It is the first filter of the logger. It hands a record to all others, and to the handlers, by
    itself, and tells the logger that nothing is left to do.
    """

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__()
        self._logger = logger

    def filter(self, record: logging.LogRecord) -> bool:
        if not _state.is_background or _state.is_handling:
            return True
        _state.is_handling = True
        try:
            call_safely(self._logger.handle, record)
        finally:
            _state.is_handling = False
        return False


def _guard_loggers() -> None:
    """Guard the loggers of the libraries that background threads call."""
    for name, other in list(logging.Logger.manager.loggerDict.items()):
        if name.partition(".")[0] not in _LIBRARIES or not isinstance(other, logging.Logger):
            continue
        if not any(isinstance(found, _GuardingFilter) for found in other.filters):
            other.filters.insert(0, _GuardingFilter(other))


@contextlib.contextmanager
def silence() -> Generator[None]:
    """Log nothing in this thread: after a fork the locks of the host's handlers may be held."""
    _state.is_silent = True
    try:
        yield
    finally:
        _state.is_silent = False


def call_safely(call: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> Exception | None:
    """Call code of the host; return the error that it raised, if it raised one.

    In a background thread an exit is an error, too.
    """
    try:
        call(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 - the host's code may raise anything
        return error
    except BaseException as error:
        if not _state.is_background:
            raise
        return RuntimeError(f"{type(error).__name__}: {format_error(error)}")
    return None


def format_error(error: BaseException) -> str:
    """Return the text of an error, or the name of its class if it has no usable text."""
    try:
        return str(error) or type(error).__name__
    except Exception:  # noqa: BLE001 - the host's class may raise anything
        return type(error).__name__


def is_shutdown_error(error: Exception) -> bool:
    """Tell whether an error only says that the interpreter is about to exit."""
    # From the exit on no thread begins work. Python says so by an error of no class of its own.
    return type(error) is RuntimeError and "shutdown" in format_error(error)


def check_threads_are_real() -> None:
    """Check that threads run beside each other, as the background threads need it.

    Raises:
        ConfigurationError: gevent or eventlet has put green threads in the place of threads.
    """
    for library, remedy in (
        ("gevent", "gevent.monkey.patch_all(thread=False)"),
        ("eventlet", "eventlet.monkey_patch(select=False, thread=False)"),
    ):
        if _is_patched(library, "threading"):
            raise ConfigurationError(
                f"{library} has replaced Python's threads, and a flagkit client needs a real one"
                f" for its background work: patch with {remedy}, or run threads or processes"
                " instead (gunicorn -k gthread); docs/workers.md says more"
            )


def is_green(module: str) -> bool:
    """Tell whether gevent or eventlet has replaced a module: `threading` or `socket`."""
    return _is_patched("gevent", module) or _is_patched("eventlet", module)


def _is_patched(library: str, module: str) -> bool:
    try:
        if library == "gevent":
            return bool(sys.modules["gevent.monkey"].is_module_patched(module))
        name = "thread" if module == "threading" else module
        return bool(sys.modules["eventlet.patcher"].is_monkey_patched(name))
    except Exception:  # noqa: BLE001 - it is not loaded, or does not know the question
        return False


def start_helper(name: str, work: Callable[[], object]) -> None:
    """Start a real thread for one call that must not raise, even where threads are green by now."""
    if is_green("threading"):
        _start_new_thread(work, ())
    else:
        threading.Thread(target=work, name=name, daemon=True).start()


_delayed_until = 0.0


def delay_after_fork() -> None:
    """Have threads of a forked child wait a moment before they open anything.

    A daemon closes all descriptors right after its fork. A socket that is just being made then
    could not know that its number has another file by now.
    """
    global _delayed_until  # noqa: PLW0603 - a fork is the whole process's
    _delayed_until = time.monotonic() + SETTLE_SECONDS


class Backoff:
    """The lengths of the pauses after errors in a row. A long time without one ends the row."""

    def __init__(self) -> None:
        self._count = 0
        self._last = time.monotonic()

    def compute_delay(self) -> float:
        """Return how many seconds to pause after an error at this moment."""
        now = time.monotonic()
        if now - self._last > 2 * PAUSE_SECONDS_MAX:
            self._count = 0
        self._last = now
        longest = min(PAUSE_SECONDS_MAX, PAUSE_SECONDS_MIN * 2.0 ** min(self._count, 16))
        self._count += 1
        # Many processes that fail at once should not try again at once.
        return longest * random.uniform(0.5, 1)  # noqa: S311 - jitter, not secrets


class BackgroundThread:
    """A thread that does its work until the work is done, whatever the work raises.

    No method raises. A thread that cannot be started, or that has died all the same, is started
    again by the next call of `start` once the pause is over.

    Args:
        name: The thread's name.
        work: Called in the thread. It is called again after an error if `repeats` is set.
        on_error: Called with each error. It may run in any thread.
        repeats: Whether the work is repeated after an error.
        is_real: Whether a green thread will not do.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], object],
        on_error: Callable[[Exception], object],
        *,
        repeats: bool = True,
        is_real: bool = True,
    ) -> None:
        self._name = name
        self._work = work
        self._on_error = on_error
        self._repeats = repeats
        self._is_real = is_real
        self._is_done = False
        self._stop_event = threading.Event()
        self._start_lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        self._backoff = Backoff()
        self._start_after = 0.0

    @property
    def is_running(self) -> bool:
        """True while the thread is alive, at work or in a pause."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Start the thread if it is not running, unless its work is done or a pause is not over."""
        # Another caller that is starting it will do.
        if not self._start_lock.acquire(blocking=False):
            return
        try:
            if self._should_run and not self.is_running and time.monotonic() >= self._start_after:
                self._start()
        finally:
            self._start_lock.release()

    def close(self, timeout: float) -> bool:
        """End the pauses, and wait for the thread; return whether it ended in time.

        The work has to be told by its owner. A thread that closes itself is not waited for.
        """
        self._stop_event.set()
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return True
        thread.join(timeout)
        return not thread.is_alive()

    @property
    def _should_run(self) -> bool:
        return not self._is_done and not self._stop_event.is_set()

    def _start(self) -> None:
        try:
            if self._thread is not None:
                # Nothing in Python ends it; a library that ends threads from outside may.
                self._thread = None
                error = RuntimeError(f"the thread {self._name} ended unexpectedly")
                self._start_after = time.monotonic() + self._report_error(error)
                return
            if self._is_real:
                check_threads_are_real()
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            thread.start()
            self._thread = thread
        except Exception as error:  # noqa: BLE001 - there may be no thread or no memory left
            self._start_after = time.monotonic() + self._report_error(error)

    def _run(self) -> None:
        _state.is_background = True
        call_safely(_guard_loggers)
        call_safely(self._stop_event.wait, max(_delayed_until - time.monotonic(), 0))
        while self._should_run:
            try:
                self._work_once()
            except BaseException:  # noqa: BLE001 - an error while an error is handled: no memory
                with contextlib.suppress(BaseException):
                    time.sleep(PAUSE_SECONDS_MIN)

    def _work_once(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - nothing may end the thread
            # A fork within the work leaves a copy of this thread in the child, which has its own.
            self._is_done = not self._repeats or os.getpid() != self._pid
            if os.getpid() == self._pid:
                pause = self._report_error(error)
                if self._repeats:
                    self._stop_event.wait(pause)
        else:
            self._is_done = True

    def _report_error(self, error: BaseException) -> float:
        """Report an error; return how long to pause."""
        pause = self._backoff.compute_delay()
        if not isinstance(error, Exception):
            error = RuntimeError(f"{type(error).__name__}: {format_error(error)}")
        call_safely(self._on_error, error)
        return pause


async def repeat_until_done(
    work: Callable[[], Coroutine[Any, Any, None]],
    on_error: Callable[[Exception], object],
    sleep: Callable[[float], Coroutine[Any, Any, None]],
) -> None:
    """Do a coroutine's work until it is done, again after each error, with a pause before."""
    pauses = Backoff()
    while True:
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - nothing may end background work
            call_safely(on_error, error)
            await sleep(pauses.compute_delay())
        else:
            return
