"""Background threads: nothing that the host plugs in ends one, and one that died begins anew."""

import asyncio
import ctypes
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagkit import Client
from flagkit._core import background
from flagkit._core.background import (
    BackgroundThread,
    Backoff,
    Log,
    LogOnce,
    format_error,
    silence,
)
from flagkit._core.snapshot import Snapshot, SnapshotFile
from flagkit._core.source import Route
from flagkit.client.refresher import RefreshState
from flagkit.client.sources import FlagSource
from flagkit.errors import FlagkitError, StoreError
from flagkit.testing import MemoryHistory, MemorySource
from flagkit.writer import Writer
from tests.support.forked import poll_until

pytestmark = pytest.mark.every_python

FAULTS: list[BaseException] = [ValueError("broken"), SystemExit(3), KeyboardInterrupt()]
LOGGERS = ("flagkit", "flagkit.refresh", "flagkit.writer")


def flag(*, on: bool = True) -> dict[str, Any]:
    serve = {"serve": "on" if on else "off"}
    return {"key": "shop.express", "variants": {"on": True, "off": False}, "fallthrough": serve}


def threads() -> list[threading.Thread]:
    return [found for found in threading.enumerate() if found.name.startswith("flagkit")]


def goes_on(client: Client, history: MemoryHistory) -> None:
    """Check that a client follows the next change and says that it is well."""
    client.wait_for(history.commit(flag()).revision, 20)
    poll_until(client.status, lambda status: status.error is None and not status.troubles)
    assert client.status().state is RefreshState.WATCHING


@pytest.fixture
def history() -> MemoryHistory:
    history = MemoryHistory()
    history.commit(flag())
    return history


@pytest.fixture
def client(history: MemoryHistory) -> Iterator[Client]:
    # At this pace it asks for the head each second, and then says that all is well.
    origin = FlagSource(lambda: history.create_source, max_staleness=3.0)
    with Client.from_source().follow(origin) as client:
        client.wait_ready()
        yield client
    assert threads() == []


@pytest.fixture(params=FAULTS, ids=lambda fault: type(fault).__name__)
def fault(request: pytest.FixtureRequest) -> BaseException:
    found: BaseException = request.param
    return found


def raising(fault: BaseException, calls: list[str]) -> Callable[..., NoReturn]:
    def call(*_: object, **__: object) -> NoReturn:
        calls.append(threading.current_thread().name)
        raise fault

    return call


class RaisingFilter(logging.Filter):
    def __init__(self, raises: Callable[..., NoReturn]) -> None:
        super().__init__()
        self.raises = raises

    def filter(self, record: logging.LogRecord) -> bool:
        self.raises(record)


class RaisingHandler(logging.Handler):
    def __init__(self, raises: Callable[..., NoReturn]) -> None:
        super().__init__()
        self.raises = raises

    def emit(self, record: logging.LogRecord) -> None:
        self.raises(record)


class RaisingFormatter(logging.Formatter):
    def __init__(self, raises: Callable[..., NoReturn]) -> None:
        super().__init__()
        self.raises = raises

    def format(self, record: logging.LogRecord) -> str:
        self.raises(record)


class FormattingHandler(logging.Handler):
    """A handler that formats, and handles no errors of its formatter."""

    def emit(self, record: logging.LogRecord) -> None:
        self.format(record)


@pytest.fixture(params=["filter", "handler", "formatter"])
def broken_logs(
    request: pytest.FixtureRequest, fault: BaseException, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Break the logs of flagkit in a way that ended its thread; give the threads that logged."""
    calls: list[str] = []
    raises = raising(fault, calls)
    monkeypatch.setattr(logging, "raiseExceptions", True)
    for name in LOGGERS:
        logger = logging.getLogger(name)
        monkeypatch.setattr(logger, "level", logging.DEBUG)
        if request.param == "filter":
            monkeypatch.setattr(logger, "filters", [RaisingFilter(raises)])
            continue
        handler = RaisingHandler(raises) if request.param == "handler" else FormattingHandler()
        handler.setFormatter(RaisingFormatter(raises))
        monkeypatch.setattr(logger, "handlers", [handler])
        monkeypatch.setattr(logger, "propagate", False)
    return calls


def test_logs_that_raise_end_no_thread(
    client: Client, history: MemoryHistory, broken_logs: list[str]
) -> None:
    [before] = threads()
    with client.on_change("", raising(ValueError("a callback"), [])):
        history.fault = OutageError()
        history.commit(flag(on=False))
        poll_until(lambda: "flagkit" in broken_logs, bool)
        history.fault = None
        goes_on(client, history)
        # The callback raised, too, and that was logged.
        poll_until(lambda: "flagkit-changes" in broken_logs, bool)
        goes_on(client, history)
        assert before in threads()
        assert len(threads()) == 2


class OutageError(FlagkitError):
    """What a source raises here; it is logged."""

    def __init__(self) -> None:
        super().__init__("no member answers")


@pytest.mark.mongo
def test_logs_of_the_driver_and_of_asyncio_that_raise_keep_no_client_from_its_flags(
    writer: Writer,
    mongo_uri: str,
    database: str,
    fault: BaseException,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []

    class RaisingInBackground(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if threading.current_thread().name == "flagkit":
                calls.append(record.name.partition(".")[0])
                raise fault

    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [RaisingInBackground()])
    monkeypatch.setattr(root, "level", logging.DEBUG)
    logging.getLogger("pymongo").manager._clear_cache()  # type: ignore[attr-defined]
    try:
        writer.create(flag())
        with Client(mongo_uri, environment="production", database=database) as client:
            client.wait_ready()
            client.wait_for(writer.update(flag(on=False)).revision)
            assert client.status().error_count == 0
        assert {"asyncio", "pymongo"} <= set(calls)
    finally:
        monkeypatch.undo()
        logging.getLogger("pymongo").manager._clear_cache()  # type: ignore[attr-defined]


def test_callbacks_that_raise_end_no_thread(
    client: Client, history: MemoryHistory, fault: BaseException
) -> None:
    calls: list[str] = []
    told: list[int] = []
    with (
        client.on_change("", raising(fault, calls)),
        client.on_change("", lambda change: told.append(change.revision)),
    ):
        for _ in range(3):
            revision = history.commit(flag()).revision
            poll_until(lambda: told[-1:], lambda found, last=revision: found == [last])  # type: ignore[misc]
    assert set(calls) == {"flagkit-changes"}
    goes_on(client, history)


def test_meters_that_raise_end_no_thread_and_keep_no_others_from_being_told(
    client: Client,
    history: MemoryHistory,
    fault: BaseException,
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls: list[str] = []
    heard: list[int] = []
    client.on_publish(raising(fault, calls))
    client.on_publish(lambda snapshot, _: heard.append(snapshot.tip.revision))
    [before] = threads()
    for _ in range(3):
        goes_on(client, history)
    assert heard == [2, 3, 4]
    assert calls == ["flagkit"] * 3
    assert threads() == [before]
    assert len([record for record in caplog.records if "a listener" in record.message]) == 1


def test_a_snapshot_that_could_not_be_published_is_published_later(
    client: Client, history: MemoryHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Out of memory for as long as the test says so, with whatever led to the snapshot.
    refresh = client._refresh
    assert refresh is not None
    publish, is_short = refresh._publish, threading.Event()
    failed = threading.Event()

    def perhaps(*what: Any) -> None:
        if is_short.is_set():
            failed.set()
            raise MemoryError
        publish(*what)

    monkeypatch.setattr(refresh, "_publish", perhaps)
    is_short.set()
    history.commit(flag(on=False))
    assert failed.wait(20)
    poll_until(client.status, lambda status: status.error == "MemoryError")
    assert client.revision == 1
    as_of = client._staleness.as_of
    is_short.clear()
    # It is not taken for current meanwhile.
    assert client._staleness.as_of == as_of
    client.wait_for(history.commit(flag(on=False)).revision, 20)
    assert not client.is_enabled("shop.express")
    goes_on(client, history)


@pytest.mark.parametrize("where", ["task", "callback"])
def test_an_exit_within_the_loop_has_the_same_thread_begin_anew(
    client: Client, history: MemoryHistory, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    refresh = client._refresh
    assert refresh is not None
    assert refresh._loop is not None
    [before] = threads()

    async def leave() -> None:
        raise SystemExit(3)

    def begin() -> None:
        if where == "callback":
            raise SystemExit(3)
        tasks.append(asyncio.ensure_future(leave()))

    tasks: list[asyncio.Future[None]] = []
    refresh._loop.call_soon_threadsafe(begin)
    poll_until(lambda: client.status().error_count, bool)
    goes_on(client, history)
    assert threads() == [before]
    assert [record for record in caplog.records if "SystemExit" in record.message]


class Crashing(MemorySource):
    """A source whose loads end the thread's loop, a few times."""

    crashes = 3

    async def load(self, route: Route) -> Snapshot:
        if Crashing.crashes:
            Crashing.crashes -= 1
            raise SystemExit
        return await super().load(route)


def test_a_loop_that_ends_again_and_again_is_begun_anew_each_time(history: MemoryHistory) -> None:
    Crashing.crashes = 3
    with Client.from_source(lambda: Crashing(history)) as client:
        client.wait_ready(20)
        assert client.status().error_count >= 3
        goes_on(client, history)


def test_keeping_that_fails_shows_in_the_status_and_begins_anew(
    history: MemoryHistory, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = SnapshotFile(tmp_path / "flags.snapshot", "test", "*")
    is_short = threading.Event()
    is_short.set()
    header = file.read_header

    def perhaps() -> Any:
        if is_short.is_set() and threading.current_thread().name == "flagkit":
            raise MemoryError
        return header()

    monkeypatch.setattr(file, "read_header", perhaps)
    with Client.from_source(history.create_source, file) as client:
        client.wait_ready()
        poll_until(client.status, lambda status: "keeping" in status.troubles)
        assert client.status().error is None
        is_short.clear()
        poll_until(header, lambda found: found is not None)
        goes_on(client, history)


def kill(thread: threading.Thread) -> None:
    """Have a thread end as libraries do it which end others' threads."""
    assert thread.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)
    )


# The exit may reach a thread within a callback of the garbage collector, such as hypothesis's.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_threads_that_are_told_to_exit_from_outside_go_on(
    client: Client, history: MemoryHistory
) -> None:
    told: list[int] = []
    with client.on_change("", lambda change: told.append(change.revision)):
        for _ in range(3):
            for thread in threads():
                kill(thread)
            revision = history.commit(flag()).revision
            client.wait_for(revision, 20)
            poll_until(lambda: told[-1:], lambda found, last=revision: found == [last])  # type: ignore[misc]
        goes_on(client, history)


@pytest.mark.parametrize("ask", ["status", "is_enabled", "evaluate", "on_change"])
def test_a_thread_that_has_died_shows_in_the_status_and_is_started_by_whoever_asks(
    client: Client, history: MemoryHistory, ask: str
) -> None:
    refresh = client._refresh
    assert refresh is not None
    assert client.is_enabled("shop.express")
    # No guard holds against this.
    refresh._thread._pid = 0
    assert refresh._loop is not None
    refresh._loop.call_soon_threadsafe(refresh._task.cancel)
    poll_until(threads, lambda found: not found)
    refresh._thread._pid, refresh._thread._is_done = os.getpid(), False
    status = client.status()
    assert status.state is RefreshState.BACKING_OFF
    assert status.error == "the thread flagkit ended unexpectedly"
    assert client._boolean_functions == {}

    def is_back() -> bool:
        if ask == "on_change":
            client.on_change("", print).close()
        elif ask == "status":
            client.status()
        else:
            assert getattr(client, ask)("shop.express", "user")
        return refresh.is_running

    poll_until(is_back, bool)
    goes_on(client, history)
    assert client.is_enabled("shop.express")
    assert client._boolean_functions, "the hot path is open again"


def test_without_a_thread_to_be_had_a_client_says_so_and_begins_when_there_is_one(
    history: MemoryHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        client = Client.from_source(history.create_source).start()
        subscription = client.on_change("", print)
        status = client.status()
        assert status.state is RefreshState.BACKING_OFF
        assert status.error == "can't start new thread"
        assert status.troubles == {"changes": "can't start new thread"}
        # Evaluations go on, without flags here.
        assert client.is_enabled("shop.express", default=True)
    client.wait_ready(20)
    goes_on(client, history)
    subscription.close()
    client.close()
    assert threads() == []


class Unspeakable(Exception):  # noqa: N818 - it is a fault, not an error of a library
    def __str__(self) -> str:
        raise ValueError("nor this")


def test_an_error_without_words_is_named_by_its_class() -> None:
    assert format_error(Unspeakable()) == "Unspeakable"
    assert format_error(MemoryError()) == "MemoryError"
    assert format_error(ValueError("words")) == "words"


def test_outside_of_background_threads_an_exit_is_still_the_callers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logger = logging.getLogger("flagkit.refresh")
    monkeypatch.setattr(logger, "filters", [RaisingFilter(raising(KeyboardInterrupt(), []))])
    with pytest.raises(KeyboardInterrupt):
        Log("flagkit.refresh").warning("stop")
    monkeypatch.setattr(logger, "filters", [RaisingFilter(raising(ValueError(), []))])
    Log("flagkit.refresh").warning("go on")


def test_a_record_names_the_line_that_logged(caplog: pytest.LogCaptureFixture) -> None:
    Log("flagkit.refresh").warning("here")
    assert caplog.records[-1].funcName == "test_a_record_names_the_line_that_logged"


def test_a_problem_is_logged_once_until_another_one_and_once_when_it_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    log = LogOnce("flagkit.refresh", "not current: %s", "current again")
    log.clear()
    for problem in (StoreError("down"), StoreError("down"), "slow", StoreError("down")):
        log.report(problem)
    assert log.problem == "down"
    log.clear()
    log.clear()
    assert log.problem is None
    log.report("down")
    assert caplog.messages == [
        "not current: down",
        "not current: slow",
        "not current: down",
        "current again",
        "not current: down",
    ]
    assert {record.funcName for record in caplog.records} == {
        "test_a_problem_is_logged_once_until_another_one_and_once_when_it_is_over"
    }


def test_only_unknown_errors_are_logged_with_their_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = LogOnce("flagkit.refresh", "%s")
    for problem in (StoreError("known"), ValueError("unknown"), "text"):
        log.report(problem)
    assert [record.exc_info is not None for record in caplog.records] == [False, True, False]


def test_a_problem_that_could_not_be_logged_is_logged_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = LogOnce("flagkit.refresh", "not current: %s")
    with silence():
        log.report("down")
    assert (log.problem, caplog.messages) == ("down", [])
    log.report("down")
    assert caplog.messages == ["not current: down"]


def test_what_only_says_that_the_interpreter_exits_is_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = LogOnce("flagkit.refresh", "not current: %s")
    log.report(RuntimeError("cannot schedule new futures after interpreter shutdown"))
    assert log.problem is not None
    assert caplog.messages == []


@given(st.integers(1, 200))
def test_pauses_grow_and_are_bounded(count: int) -> None:
    pauses = Backoff()
    found = [pauses.compute_delay() for _ in range(count)]
    assert all(0 < pause <= background.PAUSE_SECONDS_MAX for pause in found)
    assert found[0] <= background.PAUSE_SECONDS_MIN
    if count > 10:
        assert found[-1] >= background.PAUSE_SECONDS_MAX / 2


def test_a_thread_repeats_its_work_until_it_is_done(fault: BaseException) -> None:
    noted: list[Exception] = []
    faults = [fault, fault]

    def work() -> None:
        if faults:
            raise faults.pop()

    thread = BackgroundThread("flagkit-test", work, noted.append)
    thread.start()
    poll_until(lambda: thread.is_running, lambda running: not running)
    assert (len(noted), faults) == (2, [])
    thread.start()
    assert not thread.is_running, "its work is done"


def test_a_thread_goes_on_though_nothing_can_be_noted(fault: BaseException) -> None:
    left = [1, 2, 3]

    def work() -> None:
        if left:
            left.pop()
            raise fault

    thread = BackgroundThread("flagkit-test", work, raising(fault, []))
    thread.start()
    poll_until(lambda: thread.is_running, lambda running: not running)
    assert left == []


def test_a_pause_ends_when_the_thread_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "PAUSE_SECONDS_MIN", 600.0)
    monkeypatch.setattr(background, "PAUSE_SECONDS_MAX", 600.0)
    noted = threading.Event()
    thread = BackgroundThread("flagkit-test", raising(ValueError(), []), lambda _: noted.set())
    thread.start()
    assert noted.wait(20)
    began = time.monotonic()
    assert thread.close(20)
    assert time.monotonic() - began < 20


def test_a_client_that_is_closed_by_its_own_thread_is_closed(history: MemoryHistory) -> None:
    with Client.from_source(history.create_source) as client:
        client.wait_ready()
        client.on_publish(lambda *_: client.close())
        history.commit(flag())
        poll_until(threads, lambda found: found == [])
