"""Interruptions: what the caller's circumstances raise is not kept, and not swallowed."""

import contextlib
import errno
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from types import FrameType
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flagkit import Client, CountingClient, ErrorCode, use_context
from flagkit._core.evaluation import compiled_flag, compiler
from flagkit._core.interruptions import FAILURES_SUPPRESSED, is_interruption
from flagkit._core.model import packing, windows
from flagkit._core.model.changes import PolicyState, build_genesis_tip, build_state
from flagkit._core.model.packing import NESTING_MAX, is_document_fault
from flagkit._core.snapshot import Snapshot, build_arena, encode_record
from flagkit.errors import InvalidDocumentError
from flagkit.history import digest_of
from flagkit.testing import client_from

pytestmark = pytest.mark.every_python

BOOLEAN = {"on": True, "off": False}
ON: dict[str, Any] = {"key": "base", "variants": BOOLEAN, "fallthrough": {"serve": "on"}}
BERLIN = {"hours": {"from": "08:00", "until": "18:00"}, "zone": "Europe/Berlin"}


def resting(**fields: Any) -> dict[str, Any]:
    """Return a flag that rests on another, with a rule and a pattern."""
    return {
        "key": "resting",
        "variants": BOOLEAN,
        "prerequisites": [{"flag": "base", "variants": ["on"]}],
        "rules": [
            {
                "name": "r",
                "when": {"$or": [{"p": 1}, {"q": {"$regex": "a(b|c)*d"}}]},
                "serve": "on",
            }
        ],
        "fallthrough": {"serve": "off"},
    } | fields


ALONE = resting(key="alone", prerequisites=[], rules=[{**resting()["rules"][0], "during": BERLIN}])
SEGMENTED = resting(
    key="segmented",
    prerequisites=[],
    rules=[{"name": "s", "when": {"$segment": "group"}, "serve": "on"}],
)
GROUP = {"key": "group", "when": {"$or": [{"p": 1}, {"q": {"$not": {"$lt": 3}}}]}}
CONTEXT = {"targeting_key": "u", "p": 1}


def new_client() -> Client:
    """Return a client that has compiled nothing, in a process that has neither."""
    compiler._templates.clear()
    compiled_flag._build_shared_body_cached.cache_clear()
    return client_from(
        [ON, resting(), ALONE, SEGMENTED], [GROUP], datetime(2026, 6, 1, 12, tzinfo=UTC)
    )


def answered(client: Client, key: str) -> object:
    """Return what a client answers in another thread, which has all of its stack."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(client.evaluate(key, CONTEXT, False)))
    thread.start()
    thread.join()
    return found[0].error_code or found[0].value


def with_frames_left(count: int, call: Callable[[], object]) -> None:
    """Make a call with about so many frames of the stack left."""
    depth = len_of_stack() + 3

    def deeper(left: int) -> object:
        return call() if left <= 0 else deeper(left - 1)

    with contextlib.suppress(RecursionError):
        deeper(sys.getrecursionlimit() - depth - count)


def len_of_stack() -> int:
    frame: FrameType | None = sys._getframe()
    count = 0
    while frame is not None:
        frame, count = frame.f_back, count + 1
    return count


@pytest.mark.parametrize("key", ["resting", "alone", "segmented"])
@pytest.mark.parametrize("method", ["is_enabled", "evaluate", "explain", "evaluate_all"])
def test_a_first_call_deep_in_the_stack_spoils_no_flag(key: str, method: str) -> None:
    for left in range(1, 90):
        client = new_client()
        ask = functools.partial(getattr(client, method), *(() if method[-3:] == "all" else (key,)))
        with_frames_left(left, functools.partial(ask, CONTEXT))
        assert answered(client, key) is True, left


def _extend(found: list[Any], states: list[PolicyState]) -> None:
    found.extend(map(encode_record, states))


def test_a_client_made_deep_in_the_stack_has_all_flags_or_none() -> None:
    states = [PolicyState("resting", "*", 1, build_state("resting", "*", 1, resting()).packed)]
    whole = [encode_record(state) for state in states]
    for left in range(1, 120):
        found: list[Any] = []
        with_frames_left(left, functools.partial(_extend, found, states))
        assert found in ([], whole), left


def test_what_memory_raises_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for room, name in ((packing, "_unpack_flag"), (compiler, "compile")):
        client = new_client()
        with monkeypatch.context() as patch:
            patch.setattr(room, name, _raise(MemoryError()), raising=False)
            for key in ("resting", "segmented"):
                assert client.evaluate(key, CONTEXT).error_code == ErrorCode.GENERAL
        for key in ("resting", "segmented"):
            assert answered(client, key) is True


def _raise(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise error

    return fail


def test_an_exception_that_strikes_once_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    # As another thread injects one: its type is that of a fault of the document.
    original = packing._unpack_flag
    struck: list[bool] = []

    def once(*arguments: Any) -> Any:
        if not struck:
            struck.append(True)
            raise ValueError("injected")
        return original(*arguments)

    client = new_client()
    client.evaluate("base", CONTEXT)
    monkeypatch.setattr(packing, "_unpack_flag", once)
    compiled_flag._build_shared_body_cached.cache_clear()
    with contextlib.suppress(ValueError):
        client.evaluate("resting", CONTEXT)
    assert struck
    assert answered(client, "resting") is True


def test_too_many_open_files_spoil_no_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    client = new_client()
    with monkeypatch.context() as patch:
        patch.setattr(windows, "ZoneInfo", _raise(OSError(errno.EMFILE, "too many open files")))
        assert client.evaluate("alone", CONTEXT).error_code == ErrorCode.GENERAL
    assert answered(client, "alone") is True


def of_packed(packed: bytes, key: str = "deep", region: str = "*") -> Client:
    tip = build_genesis_tip("test", "epoch", datetime(2026, 1, 1, tzinfo=UTC))
    record = encode_record(PolicyState(key, region, 1, packed))
    return Client.from_snapshot(Snapshot(tip, "*", build_arena(tip, [record])))


@pytest.mark.parametrize(
    "wrap", [b"\x91", b"\x81\xa1a", b"\xdc\x00\x01", b"\xdf\x00\x00\x00\x01\xa1a"]
)
def test_a_document_that_is_too_deep_is_a_parse_error_from_any_depth(wrap: bytes) -> None:
    deep = b"\x81\xa8variants" + wrap * 100_000 + b"\xc0"
    client = of_packed(deep)
    for left in (40, 400):
        with_frames_left(left, lambda: client.evaluate("deep"))
    assert answered(client, "deep") == ErrorCode.PARSE_ERROR


def test_a_document_as_deep_as_may_be_is_compiled() -> None:
    when: dict[str, Any] = {"p": 1}
    for _ in range(14):
        when = {"$or": [when, {"q": 2}]}
    rules = [{"name": "r", "when": when, "serve": "on"}]
    assert answered(client_from([ON, resting(rules=rules)]), "resting") is True
    rules[0]["when"] = {"$or": [{"$or": [when]}]}
    with pytest.raises(InvalidDocumentError, match="nested more than 32 deep"):
        client_from([ON, resting(rules=rules)])


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
    | st.binary() | st.datetimes(timezones=st.just(UTC)),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(), inner, max_size=20),
)  # fmt: skip


def _depth(value: object) -> int:
    match value:
        case list():
            return 1 + max(map(_depth, value), default=0)
        case dict():
            return 1 + max(map(_depth, value.values()), default=0)
        case _:
            return 0


@given(values)
@settings(max_examples=300)
def test_the_depth_of_packed_values_is_told_without_recursion(value: object) -> None:
    packed, depth = msgspec.msgpack.encode(value), _depth(value)
    assert not packing._is_nested_deeper(packed, depth)
    assert depth == 0 or packing._is_nested_deeper(packed, depth - 1)
    big = msgspec.msgpack.encode([["x" * 300, b"x" * 70_000, [value] * 20]])
    assert not packing._is_nested_deeper(big, depth + 3)
    assert packing._is_nested_deeper(big, depth + 2)


def test_a_recursion_error_is_the_fault_of_a_document_that_is_too_deep_alone() -> None:
    error = RecursionError()
    assert not is_document_fault(b"\x91" * NESTING_MAX + b"\xc0", error)
    assert is_document_fault(b"\x91" * (NESTING_MAX + 1) + b"\xc0", error)


# Signal handlers.


class SoftLimitError(Exception):
    """As a task queue raises it in its workers."""


def _plain(_: int, __: FrameType | None) -> None:
    raise SoftLimitError


def _rest(*_: Any) -> None:
    raise SoftLimitError


def _nested(signum: int, frame: FrameType | None) -> None:
    _rest(signum, frame)


def _known(_: int, __: FrameType | None) -> None:
    # TimeoutError is an OSError, which clocks raise, too.
    raise TimeoutError


def _as_value(_: int, __: FrameType | None) -> None:
    raise ValueError("a limit")


class Handler:
    """Handlers that are methods and objects."""

    def method(self, _: int, __: FrameType | None) -> None:
        raise SoftLimitError

    def __call__(self, _: int, __: FrameType | None) -> None:
        raise SoftLimitError


def _extra(_: str, __: int, ___: FrameType | None) -> None:
    raise SoftLimitError


HANDLERS: list[Callable[..., Any]] = [
    *(_plain, _rest, _nested, _known, _as_value, Handler().method, Handler()),
    *(lambda *_: _rest(), functools.partial(_extra, "more")),
]


@pytest.fixture(
    params=HANDLERS, ids=lambda handler: getattr(handler, "__name__", type(handler).__name__)
)
def handler(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    before = signal.signal(signal.SIGUSR1, request.param)
    yield request.param
    signal.signal(signal.SIGUSR1, before)


def strike(*_: object) -> None:
    """Have the process's signal handler run here and now."""
    os.kill(os.getpid(), signal.SIGUSR1)


class Striking(Mapping[str, Any]):
    """A context in the midst of which a signal arrives."""

    def __iter__(self) -> Iterator[str]:
        strike()
        return iter(())

    def __getitem__(self, key: str) -> Any:
        raise KeyError(key)

    def __len__(self) -> int:
        return 0


class StrikingValue:
    """An attribute in the midst of which a signal arrives."""

    def __eq__(self, _: object) -> bool:
        strike()
        return False

    __hash__ = None  # type: ignore[assignment]

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        strike()
        return StrikingValue


class Failing(Striking):
    """A context that raises one exception object each time, in a signal handler or not."""

    def __init__(self, error: Exception, *, strikes: bool) -> None:
        self.error = error
        self.strikes = strikes

    def __iter__(self) -> Iterator[str]:
        if self.strikes:
            strike()
        raise self.error


def test_an_exception_of_a_handler_is_none_when_a_context_raises_it_later() -> None:
    error = ValueError("raised each time")

    def handle(*_: object) -> None:
        raise error

    handler_before = signal.signal(signal.SIGUSR1, handle)
    try:
        client = new_client()
        for _ in range(3):
            with pytest.raises(ValueError, match="raised each time"):
                client.evaluate("alone", Failing(error, strikes=True))
            for _ in range(10):
                found = client.evaluate("alone", Failing(error, strikes=False), False)
                assert found.error_code == ErrorCode.GENERAL
    finally:
        signal.signal(signal.SIGUSR1, handler_before)


def test_only_the_newest_steps_of_an_exception_are_looked_at() -> None:
    error = ValueError("raised each time")
    seen: list[object] = []

    def count(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code is is_interruption.__code__:
            if event == "line":
                seen.append(frame.f_lineno)
            return count
        return None

    counts: list[int] = []
    for _ in range(50):
        with contextlib.suppress(ValueError):
            _raise(error)()
        seen.clear()
        others = sys.gettrace()
        sys.settrace(count)
        try:
            assert not is_interruption(error)
        finally:
            sys.settrace(others)
        counts.append(len(seen))
    assert max(counts) <= 2 * counts[0]


LIMITS = (SoftLimitError, TimeoutError, ValueError)


@pytest.mark.parametrize("kind", [Client, CountingClient])
@pytest.mark.usefixtures("handler")
def test_what_a_signal_handler_raises_reaches_the_caller(kind: type[Client]) -> None:
    snapshot = new_client().snapshot
    assert snapshot is not None
    client = kind.from_snapshot(snapshot)
    for context in (Striking(), {"targeting_key": "u", "p": StrikingValue()}):
        for key in ("resting", "alone", "segmented"):
            calls: list[Callable[[], object]] = [
                functools.partial(client.is_enabled, key, context),
                functools.partial(client.value, key, context, default=False),
                functools.partial(client.evaluate, key, context),
                functools.partial(client.explain, key, context),
                functools.partial(client.evaluate_all, context),
            ]
            for call in calls:
                # The first time the flag is compiled, the second it is there.
                for _ in range(2):
                    with pytest.raises(LIMITS):
                        call()
    with pytest.raises(LIMITS):
        client.bind(Striking())
    with pytest.raises(LIMITS), use_context(Striking()):
        pass
    evaluation = client.evaluate("alone", CONTEXT)
    for context in (Striking(), {"targeting_key": "u", "p": StrikingValue()}):
        with pytest.raises(LIMITS):
            digest_of(client, evaluation, context)


@pytest.mark.parametrize("place", ["_unpack_flag", "_unpack_rule", "_name_operators"])
@pytest.mark.usefixtures("handler")
def test_a_signal_during_a_compile_spoils_no_flag(
    monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    client = new_client()
    with monkeypatch.context() as patch:
        patch.setattr(packing, place, strike)
        for key in ("resting", "alone", "segmented"):
            with pytest.raises(LIMITS):
                client.evaluate(key, CONTEXT)
            with pytest.raises(LIMITS):
                client.is_enabled(key, CONTEXT)
    for key in ("resting", "alone", "segmented"):
        assert client.evaluate(key, CONTEXT).value is True
        assert client.is_enabled(key, CONTEXT) is True


def test_what_objects_of_the_caller_raise_is_no_interruption() -> None:
    class Odd:
        def __eq__(self, other: object) -> bool:
            raise SoftLimitError

        __hash__ = None  # type: ignore[assignment]

    with pytest.raises(SoftLimitError) as raised:
        Odd() == 1  # noqa: B015 - it raises
    assert not is_interruption(raised.value)
    is_reached = False
    with FAILURES_SUPPRESSED:
        is_reached = True
        _raise(SoftLimitError())()
    assert is_reached
    assert new_client().is_enabled("resting", {"p": Odd()}, True) in (True, False)
