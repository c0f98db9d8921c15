"""Client: what services call. Evaluation never raises; waiting and closing are bounded."""

import asyncio
import copy
import functools
import gc
import itertools
import json
import pickle
import subprocess
import sys
import threading
import weakref
from collections import UserDict
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import pytest

import flagkit
from flagkit import Client, Context, CountingClient, ErrorCode, Evaluation, Reason, use_context
from flagkit._core.evaluation import evaluator as view
from flagkit._core.evaluation.context import _ambient, get_attributes
from flagkit._core.evaluation.evaluator import Evaluator
from flagkit._core.evaluation.result import Outcome, build_evaluation
from flagkit._core.model import decode
from flagkit.client import client as client_module
from flagkit.client.client import EQUAL_CLIENTS_MAX
from flagkit.client.sources import FlagSource, build_policy_snapshot
from flagkit.config import resolve_settings
from flagkit.errors import (
    ClosedError,
    ConfigurationError,
    InvalidArgumentError,
    InvalidDocumentError,
    NotReadyError,
    StoreUnavailableError,
)
from flagkit.testing import ManualClock, MemoryHistory, client_from
from flagkit.writer import Writer

NOWHERE = "mongodb://127.0.0.1:1/?replicaSet=rs0&serverSelectionTimeoutMS=100"

EXPRESS_PAY: dict[str, Any] = {
    "key": "checkout.express-pay",
    "variants": {"on": True, "off": False},
    "off": "off",
    "rules": [{"name": "dach", "when": {"country": {"$in": ["DE", "AT", "CH"]}}, "serve": "on"}],
    "fallthrough": {"serve": "off"},
}
THEME: dict[str, Any] = {
    "key": "shop.theme",
    "variants": {"light": "light", "dark": "dark"},
    "fallthrough": {"serve": "dark"},
}
LIMIT: dict[str, Any] = {
    "key": "cart.limit",
    "variants": {"low": 10, "high": 50},
    "fallthrough": {"serve": "high"},
}
FACTOR: dict[str, Any] = {
    "key": "cart.factor",
    "variants": {"one": 1, "more": 1.5},
    "fallthrough": {"serve": "one"},
}
BANNER: dict[str, Any] = {
    "key": "shop.banner",
    "variants": {"plain": {"text": "hi", "sizes": [1, 2]}},
    "fallthrough": {"serve": "plain"},
}
HALF: dict[str, Any] = {
    "key": "shop.half",
    "variants": {"on": True, "off": False},
    "fallthrough": {"rollout": 50},
}


@pytest.fixture
def client() -> Client:
    return client_from([EXPRESS_PAY, THEME, LIMIT, FACTOR, BANNER, HALF])


@pytest.fixture
def history() -> MemoryHistory:
    return MemoryHistory()


@pytest.fixture
def running(history: MemoryHistory) -> Iterator[Client]:
    with Client.from_source(history.create_source) as client:
        client.wait_ready()
        yield client


def test_a_flag_is_enabled_for_whom_its_rules_say(client: Client) -> None:
    assert client.is_enabled("checkout.express-pay", {"targeting_key": "u1", "country": "DE"})
    assert not client.is_enabled("checkout.express-pay", {"targeting_key": "u1", "country": "FR"})
    assert not client.is_enabled("checkout.express-pay")


def test_the_first_answer_and_the_compiled_ones_are_the_same(client: Client) -> None:
    contexts = [f"user-{i}" for i in range(200)]
    first = [client_from([HALF]).is_enabled("shop.half", context) for context in contexts]
    assert [client.is_enabled("shop.half", context) for context in contexts] == first
    assert {True, False} == set(first)


def test_values_have_the_type_of_the_default(client: Client) -> None:
    assert client.value("shop.theme", default="light") == "dark"
    assert client.value("cart.limit", default=1) == 50
    assert client.value("shop.banner", default={}) == {"text": "hi", "sizes": [1, 2]}
    assert client.value("shop.theme", default=None) == "dark"


def test_an_integer_serves_as_a_float_and_never_the_other_way_round(client: Client) -> None:
    assert client.value("cart.limit", default=1.0) == 50.0
    assert isinstance(client.value("cart.limit", default=1.0), float)
    assert client.value("cart.factor", default=7) == 7


@pytest.mark.parametrize(
    ("key", "default"),
    [
        ("shop.theme", 1),
        ("shop.theme", True),
        ("shop.theme", {}),
        ("cart.limit", True),
        ("cart.limit", "10"),
        ("checkout.express-pay", 1),
        ("checkout.express-pay", 1.0),
        ("shop.banner", "plain"),
        ("shop.banner", []),
    ],
)
def test_a_value_of_another_type_is_the_default_and_says_so(
    client: Client, key: str, default: object
) -> None:
    evaluation = client.evaluate(key, default=default)
    assert evaluation.value is default
    assert (evaluation.reason, evaluation.error_code) == (Reason.ERROR, ErrorCode.TYPE_MISMATCH)
    assert evaluation.error_message is not None
    assert key in evaluation.error_message


def test_is_enabled_answers_the_default_for_a_flag_that_is_not_boolean(client: Client) -> None:
    for _ in range(2):  # at first, and compiled
        assert client.is_enabled("shop.theme", default=True)
        assert not client.is_enabled("shop.theme")


def test_an_object_is_the_callers_own(client: Client) -> None:
    first: dict[str, Any] = client.value("shop.banner", default={})
    first["text"] = "changed"
    first["sizes"].append(3)
    assert client.value("shop.banner", default={}) == {"text": "hi", "sizes": [1, 2]}


def test_an_unknown_flag_answers_the_default(client: Client) -> None:
    evaluation = client.evaluate("no.such", default="x")
    assert (evaluation.value, evaluation.error_code) == ("x", ErrorCode.FLAG_NOT_FOUND)
    assert client.is_enabled("no.such", default=True)


def test_before_any_flags_the_default_and_provider_not_ready() -> None:
    client = Client.from_source()
    assert client.is_enabled("a", default=True)
    assert client.evaluate("a", default=3).error_code is ErrorCode.PROVIDER_NOT_READY
    assert client.revision == 0


def test_odd_keys_and_contexts_never_raise(client: Client) -> None:
    odd: list[Any] = [None, 3, [], {}, object(), b"x", ("a",)]
    for key in odd:
        assert client.is_enabled(key) is False
        assert client.value(key, default="d") == "d"
    for context in [3.5, True, [], object(), b"x", ("a",)]:
        bad: Any = context
        assert client.is_enabled("checkout.express-pay", bad) is False
        code = client.evaluate("checkout.express-pay", bad).error_code
        assert code is ErrorCode.INVALID_CONTEXT


class Plan(StrEnum):
    PRO = "pro"


def test_a_class_as_a_key_is_no_flag(client: Client) -> None:
    # Python 3.11 crashes in `key.encode()` once that line has run several times with strings.
    classes: list[Any] = [str, Plan]
    for _ in range(100):
        client.is_enabled("unknown")
        for key in classes:
            assert client.is_enabled(key) is False
            assert client.evaluate(key).error_code is ErrorCode.GENERAL


def test_a_policy_that_cannot_be_looked_up_is_none(client: Client) -> None:
    odd: list[Any] = [None, 5, [], str, object(), "none"]
    for key in odd:
        assert client.policy(key) is None
        assert client.policy(key, metadata=True) is None
    assert client.policy("shop.half") is not None


def test_paths_to_redact_that_never_end_show_nothing() -> None:
    client = client_from([HALF])
    odd: list[Any] = [itertools.repeat("email"), 5, [5], None]
    for redact in odd:
        found = client.explain("shop.half", {"targeting_key": "u", "email": "e"}, redact=redact)
        assert found.flags == ()
        assert found.evaluation.error_code is None


def test_a_context_that_raises_is_a_general_error_that_tells_nothing_of_it() -> None:
    class Hostile(UserDict[str, str]):
        def __getitem__(self, key: str) -> str:
            raise RuntimeError("the secret")

    hostile = Hostile({"targeting_key": "u"})
    evaluation = client_from([HALF]).evaluate("shop.half", hostile, default=True)
    assert evaluation.error_code is ErrorCode.GENERAL
    assert evaluation.value is True
    assert "secret" not in str(evaluation)


def test_a_context_is_a_key_a_mapping_or_a_context(client: Client) -> None:
    answers = {
        client.is_enabled("shop.half", context)
        for context in (
            "u7",
            {"targeting_key": "u7"},
            Context("u7"),
            Context("u7", {"plan": "pro"}),
        )
    }
    assert len(answers) == 1


def test_the_ambient_context_serves_where_none_is_passed(client: Client) -> None:
    with use_context({"targeting_key": "u", "country": "DE"}):
        assert client.is_enabled("checkout.express-pay")
        assert not client.is_enabled("checkout.express-pay", {"country": "FR"})
        with use_context("someone else"):
            assert not client.is_enabled("checkout.express-pay")
        assert client.is_enabled("checkout.express-pay")
    assert not client.is_enabled("checkout.express-pay")


def test_the_ambient_context_is_not_another_threads(client: Client) -> None:
    seen: list[bool] = []
    with use_context({"country": "DE"}):
        thread = threading.Thread(
            target=lambda: seen.append(client.is_enabled("checkout.express-pay"))
        )
        thread.start()
        thread.join()
    assert seen == [False]


DE = {"targeting_key": "u", "country": "DE"}
FR = {"targeting_key": "u", "country": "FR"}


def test_a_block_that_is_left_in_another_context_leaves_the_other_alone(client: Client) -> None:
    here, there = copy_context(), copy_context()
    block = use_context(DE)
    here.run(block.__enter__)
    other = use_context(FR)
    there.run(other.__enter__)
    there.run(block.__exit__, None, None, None)
    assert there.run(get_attributes, None) == FR
    there.run(other.__exit__, None, None, None)
    assert there.run(get_attributes, None) == {}
    # A thread of a pool must not answer the next request for the person of the last one.
    assert here.run(get_attributes, None) == {}
    assert not client.is_enabled("checkout.express-pay")


@pytest.mark.parametrize("copies", [(0, 1, 1), (0, 0, 1), (0, 1, 0), (1, 1, 1)])
def test_blocks_that_are_left_elsewhere_never_raise_and_are_over(
    copies: tuple[int, int, int],
) -> None:
    contexts = [copy_context(), copy_context()]
    outer, inner = use_context(DE), use_context(FR)
    contexts[0].run(outer.__enter__)
    contexts[copies[0]].run(inner.__enter__)
    contexts[copies[1]].run(inner.__exit__, None, None, None)
    contexts[copies[2]].run(outer.__exit__, None, None, None)
    assert [context.run(get_attributes, None) for context in contexts] == [{}, {}]


def test_a_generator_that_ends_late_takes_its_own_context_alone() -> None:
    def block(context: dict[str, str]) -> Generator[None]:
        with use_context(context):
            yield

    late = block(DE)
    next(late)
    with use_context(FR):
        late.close()
        assert get_attributes(None) == FR
    assert get_attributes(None) == {}


def test_a_task_goes_on_with_the_context_that_it_was_started_in() -> None:
    with use_context(DE):
        task = copy_context()
    assert task.run(get_attributes, None) == DE
    with use_context(FR):
        child = copy_context()
        block = use_context(DE)
        block.__enter__()
        grandchild = copy_context()
        grandchild.run(block.__exit__, None, None, None)
    assert (child.run(get_attributes, None), grandchild.run(get_attributes, None)) == (FR, FR)
    assert get_attributes(None) == {}


def test_blocks_left_elsewhere_again_and_again_take_no_memory() -> None:
    here = copy_context()
    for _ in range(3):
        block = use_context(DE)
        here.run(block.__enter__)
        copy_context().run(block.__exit__, None, None, None)
    use = here.run(_ambient.get)
    assert use.outer is not None
    assert use.outer.outer is None


def test_a_context_decorates_functions_and_coroutine_functions() -> None:
    @use_context(DE)
    def called() -> dict[str, Any]:
        return get_attributes(None)

    @use_context(DE)
    async def called_later() -> dict[str, Any]:
        await asyncio.sleep(0)
        return get_attributes(None)

    assert [called(), called(), asyncio.run(called_later())] == [DE, DE, DE]
    assert called_later.__name__ == "called_later"
    assert get_attributes(None) == {}


def test_a_context_does_not_decorate_what_runs_in_between() -> None:
    def generated() -> Iterator[int]:
        yield 1

    async def generated_later() -> AsyncIterator[int]:
        yield 1

    for function in (generated, generated_later):
        with pytest.raises(InvalidArgumentError, match="is a generator function"):
            use_context(DE)(function)


def test_a_block_may_be_entered_again_and_by_several_threads() -> None:
    block = use_context(DE)
    contexts = [copy_context() for _ in range(3)]
    for context in contexts:
        context.run(block.__enter__)
    for context in contexts:
        assert context.run(get_attributes, None) == DE
        context.run(block.__exit__, None, None, None)
        assert context.run(get_attributes, None) == {}
    with block, block:
        assert get_attributes(None) == DE
    assert get_attributes(None) == {}


def test_an_async_generator_may_be_closed_by_another_task() -> None:
    async def block() -> AsyncIterator[None]:
        with use_context(DE):
            yield

    async def story() -> dict[str, Any]:
        blocks = block()

        async def enter() -> None:
            await anext(blocks)

        await asyncio.create_task(enter())
        await blocks.aclose()  # type: ignore[attr-defined]
        return get_attributes(None)

    assert asyncio.run(story()) == {}


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, pickle.dumps, lambda client: copy.deepcopy({"a": [client]})],
)
@pytest.mark.parametrize("kind", [Client, CountingClient])
def test_a_client_is_neither_copied_nor_sent(
    copied: Callable[[Client], Any], kind: type[Client], client: Client
) -> None:
    assert client.snapshot is not None
    with pytest.raises(InvalidArgumentError, match=f"a {kind.__name__} cannot be copied"):
        copied(kind.from_snapshot(client.snapshot))


def test_clients_that_are_made_again_and_again_are_told_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_too_many", {})
    for _ in range(EQUAL_CLIENTS_MAX + 3):
        with Client(NOWHERE, environment="closed"):
            pass
    some = [Client(NOWHERE, environment=f"e{number}").start() for number in range(8)]
    assert "clients of equal settings" not in caplog.text
    many = [Client(NOWHERE, environment="many").start() for _ in range(EQUAL_CLIENTS_MAX + 3)]
    for each in some + many:
        each.close()
    assert caplog.text.count("clients of equal settings are open") == 1


def test_an_ambient_context_that_is_none_is_told_by_evaluations(client: Client) -> None:
    bad: Any = 5.5
    with use_context(bad):
        assert client.is_enabled("checkout.express-pay", default=True)
        found = client.evaluate("checkout.express-pay")
        assert found.error_code is ErrorCode.INVALID_CONTEXT
        assert client.evaluate("checkout.express-pay", {"country": "DE"}).value is True
    assert client.evaluate("checkout.express-pay").error_code is None


def test_a_bound_client_need_not_be_told_again(client: Client) -> None:
    bound = client.bind({"targeting_key": "u", "country": "AT"})
    assert bound.is_enabled("checkout.express-pay")
    assert bound.value("shop.theme", default="light") == "dark"
    assert bound.evaluate("checkout.express-pay").rule == "dach"


def test_a_bound_context_that_is_none_answers_the_default(client: Client) -> None:
    bad: Any = 5.5
    bound = client.bind(bad)
    assert bound.is_enabled("checkout.express-pay", default=True)
    assert bound.evaluate("checkout.express-pay").error_code is ErrorCode.INVALID_CONTEXT


def test_a_default_that_cannot_be_looked_at_is_answered_all_the_same(client: Client) -> None:
    class Lazy:
        def __getattribute__(self, name: str) -> Any:
            raise RuntimeError("not bound yet")

    lazy = Lazy()
    assert client.value("shop.theme", default=lazy) is lazy
    assert client.evaluate("shop.theme", default=lazy).error_code is ErrorCode.GENERAL


def test_following_another_source_forgets_the_flags_of_the_first(running: Client) -> None:
    other = MemoryHistory()
    other.fault = StoreUnavailableError("not there yet")
    running.follow(FlagSource(lambda: other.create_source))
    assert running.revision == 0
    with pytest.raises(NotReadyError):
        running.wait_for(0, timeout=0.05)


def parity(revision: int) -> dict[str, Any]:
    """A flag that is on at even revisions."""
    serves = {"serve": "off"} if revision % 2 else {"rollout": {"weights": {"on": 100}}}
    return {"key": "even", "variants": {"on": True, "off": False}, "fallthrough": serves}


def test_what_is_enabled_is_of_the_revision_that_the_client_names_at_any_moment(
    history: MemoryHistory, running: Client
) -> None:
    views: list[Evaluator] = []
    for revision in (1, 2):
        history.commit(parity(revision))
        running.wait_for(revision)
        running.is_enabled("even", "user")
        assert running._evaluator is not None
        views.append(running._evaluator)
    seen: list[int] = []

    def ask(frame: FrameType, *_: object) -> Callable[..., Any]:
        """Ask between any two lines, as another thread may."""
        if frame.f_code is Client._publish_evaluator.__code__:
            seen.append(running.revision)
            assert running.is_enabled("even", "user") is (running.revision % 2 == 0)
        return ask

    others = sys.gettrace()
    sys.settrace(ask)
    try:
        for view in views * 2:
            running._publish_evaluator(view)
    finally:
        sys.settrace(others)
    assert set(seen) == {1, 2}


def test_what_is_compiled_late_in_an_old_view_is_not_asked_by_the_new(
    history: MemoryHistory, running: Client
) -> None:
    history.commit(parity(1))
    running.wait_for(1)
    old = running._evaluator
    assert old is not None
    history.commit(parity(2))
    running.wait_for(2)
    assert old.get_boolean_fn("even") is False
    assert running.is_enabled("even", "user")


def test_a_child_forked_in_the_middle_of_publishing_is_quick_again(client: Client) -> None:
    client._boolean_functions = {}
    client.after_fork_in_child()
    client.is_enabled("shop.half", "u")
    assert list(client._boolean_functions) == ["shop.half"]


def test_evaluations_say_why(client: Client) -> None:
    matched = client.evaluate("checkout.express-pay", {"country": "CH"})
    assert (matched.variant, matched.reason, matched.rule) == ("on", Reason.TARGETING_MATCH, "dach")
    fell_through = client.evaluate("checkout.express-pay", {"country": "FR"})
    assert (fell_through.variant, fell_through.reason) == ("off", Reason.DEFAULT)
    assert client.evaluate("shop.theme").reason is Reason.STATIC
    assert client.evaluate("shop.half", "u").reason is Reason.SPLIT
    assert client.evaluate("shop.half").error_code is ErrorCode.TARGETING_KEY_MISSING
    assert (matched.version, matched.revision) == (1, 1)


def test_all_flags_of_a_namespace_are_evaluated_at_one_revision(client: Client) -> None:
    assert Client.from_source().evaluate_all() == {}
    every = client.evaluate_all({"targeting_key": "u", "country": "DE"})
    assert list(every) == sorted(
        [
            "checkout.express-pay",
            "shop.theme",
            "cart.limit",
            "cart.factor",
            "shop.banner",
            "shop.half",
        ]
    )
    assert every["checkout.express-pay"].rule == "dach"
    assert {evaluation.revision for evaluation in every.values()} == {1}
    assert list(client.evaluate_all("u", prefix="cart.")) == ["cart.factor", "cart.limit"]
    assert client.evaluate_all("u", prefix="none.") == {}
    assert client.keys("cart.") == ["cart.factor", "cart.limit"]
    assert client.keys() == list(every)
    assert Client.from_source().keys() == []
    bad: Any = 5.5
    codes = {found.error_code for found in client.evaluate_all(bad, prefix="shop.half").values()}
    assert codes == {ErrorCode.INVALID_CONTEXT}


def test_the_collector_tracks_few_objects_of_an_evaluation_of_all_flags() -> None:
    client = client_from(
        {
            "key": f"many.flag-{i}",
            "variants": {"on": True, "off": False},
            "rules": [
                {"name": "dach", "when": {"country": {"$in": ["DE", "CH"]}}, "serve": "on"},
                {"name": "adult", "when": {"age": {"$gte": 18}, "plan": f"p{i}"}, "serve": "on"},
            ][: 2 * (i % 10 == 0)],
            "fallthrough": {"serve": "off"},
        }
        for i in range(2_000)
    )
    gc.collect()
    before = len(gc.get_objects())
    found = client.evaluate_all({"country": "DE"})
    gc.collect()
    # Of the 2,000 flags 200 are compiled; a plain one needs nothing of its own.
    assert len(gc.get_objects()) - before < 2_000
    assert not any(map(gc.is_tracked, found.values()))
    assert [evaluation.value for evaluation in found.values()].count(True) == 200


@pytest.mark.parametrize("threshold", [700, 0, 2_000_000])
@pytest.mark.parametrize("is_enabled", [True, False])
def test_an_evaluation_of_all_flags_leaves_the_collector_as_the_application_has_it(
    monkeypatch: pytest.MonkeyPatch,
    is_enabled: bool,
    threshold: int,
) -> None:
    monkeypatch.setattr(view, "OBJECTS_AT_ONCE", 5)
    client = client_from(
        {"key": f"many.flag-{i}", "variants": {"a": [i]}, "fallthrough": {"serve": "a"}}
        for i in range(200)
    )
    before = gc.get_threshold()
    try:
        gc.set_threshold(threshold, *before[1:])
        if not is_enabled:
            gc.disable()
        assert [found.value for found in client.evaluate_all().values()] == [
            [i] for i in sorted(range(200), key=str)
        ]
        assert gc.isenabled() is is_enabled
        assert gc.get_threshold() == (threshold, *before[1:])
    finally:
        gc.enable()
        gc.set_threshold(*before)


def test_a_chain_of_prerequisites_is_taken_once_in_an_evaluation_of_all_flags() -> None:
    length, calls = 500, 0

    def now() -> datetime:
        nonlocal calls
        calls += 1
        return datetime(2026, 1, 1, tzinfo=UTC)

    window = {"from": "2025-01-01T00:00:00Z", "until": "2027-01-01T00:00:00Z"}
    rule = {"name": "pro", "when": {"plan": "pro"}, "during": window, "serve": "on"}
    client = client_from(
        (
            {
                "key": f"chain.flag-{i}",
                "variants": {"on": True, "off": False},
                "off": "off",
                "prerequisites": [{"flag": f"chain.flag-{i - 1}", "variants": ["on"]}] * (i > 0),
                "rules": [rule],
                "fallthrough": {"serve": "off"},
            }
            for i in range(length)
        ),
        now=now,
    )
    for plan, value in (("pro", True), ("free", False)):
        calls = 0
        found = client.evaluate_all({"plan": plan})
        assert {evaluation.value for evaluation in found.values()} == {value}
        assert calls < 70 * length
        one = client.evaluate("chain.flag-499", {"plan": plan})
        assert one == found["chain.flag-499"]


def test_the_collector_frees_a_default_that_holds_its_own_evaluation(client: Client) -> None:
    class Holder:
        evaluation: object = None

    holder = Holder()
    holder.evaluation = client.evaluate("shop.unknown", default=holder)
    freed = weakref.ref(holder)
    del holder
    gc.collect()
    assert freed() is None


def test_the_collector_frees_an_object_that_holds_its_own_evaluation(client: Client) -> None:
    class Member:
        pass

    evaluation = client.evaluate_all(prefix="shop.banner")["shop.banner"]
    member = Member()
    evaluation.value["itself"] = [evaluation, member]
    freed = weakref.ref(member)
    del evaluation, member
    gc.collect()
    assert freed() is None


@pytest.mark.parametrize("value", [True, "text", 1.5, None, [1], {"a": 1}])
def test_evaluations_are_equal_where_their_fields_are(value: Any) -> None:
    own = Evaluation(flag_key="a.b", value=value, variant=None, reason=Reason.STATIC)
    found = build_evaluation("a.b", Outcome(reason=Reason.STATIC), value)
    assert own == found
    assert found == own
    assert own != msgspec.structs.replace(found, version=2)
    assert own != msgspec.structs.astuple(found)
    assert repr(own) == repr(found)
    for copied in (copy.copy(found), pickle.loads(pickle.dumps(found))):
        assert copied == own
    if not isinstance(value, list | dict):
        assert hash(own) == hash(found)


def test_a_client_of_documents_refuses_a_region_that_is_none() -> None:
    with pytest.raises(InvalidDocumentError, match="is not a region"):
        client_from([HALF], region="EU west")


def test_a_date_without_a_zone_is_in_utc_for_a_client_of_documents() -> None:
    noon = datetime(2026, 12, 1, 12)  # noqa: DTZ001 - as people write it in tests
    client = client_from([HALF], now=noon)
    assert client.explain("shop.half", "u").time == noon.replace(tzinfo=UTC)
    assert client_from([HALF], now=lambda: noon).explain("shop.half", "u").time.hour == 12


def test_the_policy_is_the_document_that_is_evaluated(client: Client) -> None:
    assert client.policy("shop.theme") == {**THEME, "state": "active"}
    assert client.policy("no.such") is None
    override = {**THEME, "region": "eu", "fallthrough": {"serve": "light"}}
    found = client_from([THEME, override], region="eu").policy("shop.theme")
    assert found == {**override, "state": "active"}
    assert decode(found) == decode(override)
    assert Client.from_source().policy("shop.theme") is None


def test_what_is_for_people_is_read_from_the_database_on_request() -> None:
    history = MemoryHistory()
    people = {"owner": "team", "description": "d", "tags": ["t"], "expires": datetime.now(UTC)}
    history.commit({**THEME, **people, "region": "eu"}, THEME)
    with Client.from_source(lambda: history.create_source("eu")) as client:
        history.fault = StoreUnavailableError("on fire")
        with pytest.raises(StoreUnavailableError, match="on fire"):
            client.policy("shop.theme", metadata=True)
        history.fault = None
        client.wait_ready()
        without = client.policy("shop.theme")
        assert without == {**THEME, "region": "eu", "state": "active"}
        found = client.policy("shop.theme", metadata=True)
        assert found is not None
        assert found["owner"] == "team"
        assert found.keys() - without.keys() == people.keys()
        assert client.policy("no.such", metadata=True) is None
    alone = client_from([{**THEME, "owner": "team"}])
    for metadata in (False, True):
        assert alone.policy("shop.theme", metadata=metadata) == {**THEME, "state": "active"}


def test_a_source_that_never_comes_is_waited_for_no_longer_than_asked() -> None:
    def never() -> Any:
        raise StoreUnavailableError("no database")

    with Client.from_source(never) as client, pytest.raises(NotReadyError, match="within"):
        client.policy("shop.theme", metadata=True, timeout=0.05)


def test_a_paused_flag_serves_off_or_the_default() -> None:
    with_off = client_from([{**EXPRESS_PAY, "state": "paused"}])
    without = client_from([{**THEME, "state": "archived"}])
    assert with_off.evaluate("checkout.express-pay").variant == "off"
    evaluation = without.evaluate("shop.theme", default="light")
    assert (evaluation.value, evaluation.variant) == ("light", None)
    assert (evaluation.reason, evaluation.error_code) == (Reason.DISABLED, None)


def test_a_region_sees_its_override() -> None:
    override = {**THEME, "region": "eu-west-1", "fallthrough": {"serve": "light"}}
    flags = [THEME, override]
    assert client_from(flags).value("shop.theme", default="") == "dark"
    assert client_from(flags, region="eu-west-1").value("shop.theme", default="") == "light"
    assert client_from(flags, region="us-east-1").value("shop.theme", default="") == "dark"


def test_a_flag_that_is_given_twice_is_refused() -> None:
    with pytest.raises(InvalidDocumentError, match=r"'shop\.theme' is there 2 times"):
        client_from([THEME, THEME])


def test_windows_follow_the_clock_that_is_given() -> None:
    clock = ManualClock(datetime(2026, 12, 1, tzinfo=UTC))
    flag = {
        "key": "shop.sale",
        "variants": {"on": True, "off": False},
        "rules": [
            {
                "name": "week",
                "during": {"from": "2026-12-01T00:00:10Z", "until": "2026-12-01T00:00:20Z"},
                "serve": "on",
            }
        ],
        "fallthrough": {"serve": "off"},
    }
    client = client_from([flag], now=clock)
    answers = []
    for _ in range(5):
        answers.append(client.is_enabled("shop.sale"))
        clock.advance(5)
    assert answers == [False, False, True, True, False]
    assert client_from([flag], now=datetime(2026, 12, 1, 0, 0, 15, tzinfo=UTC)).is_enabled(
        "shop.sale"
    )


@pytest.mark.parametrize(
    "clock", [ManualClock(), lambda: datetime.now(UTC)], ids=["manual", "real"]
)
def test_a_clock_says_when_it_is_and_never_goes_back(clock: Callable[[], datetime]) -> None:
    first, second = clock(), clock()
    assert first.utcoffset() == timedelta(0)
    assert first <= second
    if isinstance(clock, ManualClock):
        clock.advance(1.5)
        assert clock() == second + timedelta(seconds=1.5)


def test_time_does_not_run_backwards() -> None:
    with pytest.raises(InvalidArgumentError, match="backwards"):
        ManualClock().advance(-1)


def test_a_change_becomes_visible(history: MemoryHistory, running: Client) -> None:
    assert running.evaluate("shop.theme").error_code is ErrorCode.FLAG_NOT_FOUND
    running.wait_for(history.commit(THEME).revision)
    assert running.value("shop.theme", default="") == "dark"
    changed = {**THEME, "fallthrough": {"serve": "light"}}
    running.wait_for(history.commit(changed).revision)
    evaluation = running.evaluate("shop.theme", default="")
    assert (evaluation.value, evaluation.version, evaluation.revision) == ("light", 2, 2)


def test_a_revision_is_visible_whole(history: MemoryHistory, running: Client) -> None:
    history.commit(THEME, LIMIT)
    running.wait_for(1)
    assert running.value("shop.theme", default="") == "dark"
    assert running.value("cart.limit", default=0) == 50
    running.wait_for(
        history.commit(HALF, delete=[("*", "shop.theme"), ("*", "cart.limit")]).revision
    )
    assert running.value("shop.theme", default="gone") == "gone"
    assert running.value("cart.limit", default=0) == 0


def test_waiting_for_what_does_not_come_is_bounded(running: Client) -> None:
    with pytest.raises(NotReadyError, match=r"revision 99 did not come within 0\.05 s"):
        running.wait_for(99, timeout=0.05)


def test_waiting_says_what_is_in_the_way() -> None:
    history = MemoryHistory()
    history.fault = StoreUnavailableError("the network is down")
    with (
        Client.from_source(history.create_source) as client,
        pytest.raises(NotReadyError, match="the network is down"),
    ):
        client.wait_ready(timeout=0.2)


def test_a_closed_client_goes_on_answering_and_is_not_started_again(
    history: MemoryHistory, running: Client
) -> None:
    running.wait_for(history.commit(THEME).revision)
    running.close()
    assert running.value("shop.theme", default="") == "dark"
    with pytest.raises(ClosedError):
        running.start()
    with pytest.raises(ClosedError):
        running.wait_for(99)


def test_close_ends_the_thread_and_a_wait(running: Client) -> None:
    ended: list[type[Exception]] = []

    def wait() -> None:
        try:
            running.wait_for(99)
        except ClosedError as error:
            ended.append(type(error))

    waiting = threading.Thread(target=wait)
    waiting.start()
    running.close()
    waiting.join(5)
    assert ended == [ClosedError]
    assert not [thread for thread in threading.enumerate() if thread.name == "flagkit"]


def test_waiting_before_anything_is_configured_says_so() -> None:
    with pytest.raises(ConfigurationError, match=r"flagkit\.configure"):
        Client.from_source().wait_ready()


def test_settings_come_from_arguments_before_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLAGKIT_URI", raising=False)
    with pytest.raises(ConfigurationError, match="FLAGKIT_URI"):
        Client(environment="production")
    monkeypatch.setenv("FLAGKIT_URI", "mongodb://localhost/?replicaSet=rs0")
    with pytest.raises(ConfigurationError, match="FLAGKIT_ENVIRONMENT"):
        Client()
    monkeypatch.setenv("FLAGKIT_ENVIRONMENT", "production")
    assert Client().revision == 0
    with pytest.raises(ConfigurationError, match="mongodb://"):
        Client("http://localhost", environment="production")
    monkeypatch.setenv("FLAGKIT_REGION", "EU WEST")
    with pytest.raises(ConfigurationError, match="eu-west-1"):
        Client()


IMPORT = """
import json, sys, threading
sockets = []
sys.addaudithook(lambda event, _: sockets.append(event) if event.startswith("socket.") else None)
import flagkit
print(json.dumps([threading.active_count(), sockets, sorted(sys.modules)]))
"""


def test_importing_flagkit_starts_nothing_and_loads_no_driver() -> None:
    printed = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, check=True).stdout
    threads, sockets, modules = json.loads(printed)
    assert threads == 1
    assert sockets == []
    loaded = {module.split(".")[0] for module in modules}
    assert not loaded & {"pymongo", "bson", "asyncio", "click", "rich", "ruamel"}
    rooms = {module.split(".")[1] for module in modules if module.startswith("flagkit.")}
    assert not rooms & {"writer", "storage", "cli", "testing", "embedded", "refresh_thread"}


ENDING = """
import asyncio, atexit, threading
from flagkit import Client

failed = threading.Event()

class Resolving:
    async def load(self, route):
        try:
            while True:
                await asyncio.get_running_loop().run_in_executor(None, int)
        except RuntimeError:
            failed.set()
            raise

    async def close(self):
        pass

client = Client.from_source(Resolving).start()
atexit.register(client.close)
atexit.register(failed.wait, 10)
"""


def test_a_process_that_ends_while_its_client_connects_ends_without_a_word() -> None:
    ended = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, check=True)
    assert ended.stderr == b""


def test_the_module_asks_one_default_client(history: MemoryHistory) -> None:
    history.commit(THEME)
    client = flagkit.is_enabled.__self__  # type: ignore[attr-defined]
    assert flagkit.value("shop.theme", default="none") == "none"
    client.follow(FlagSource(lambda: history.create_source))
    try:
        flagkit.wait_ready()
        assert flagkit.value("shop.theme", default="none") == "dark"
        assert flagkit.bind("u").value("shop.theme", default="none") == "dark"
    finally:
        flagkit.close()


def test_a_view_that_cannot_be_published_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    history = MemoryHistory()
    history.commit(HALF)
    with Client.from_source(history.create_source) as client:
        client.wait_ready()

        def fail(*_: object) -> Any:
            raise RuntimeError("Set changed size during iteration")

        monkeypatch.setattr(Evaluator, "advance", fail)
        client.wait_for(history.commit({**HALF, "description": "later"}).revision)
        assert client.revision == 2
        client.wait_for(history.commit(HALF).revision)


def test_asking_for_a_policy_while_the_client_closes_ends_at_once() -> None:
    history = MemoryHistory()
    history.commit(HALF)
    for _ in range(50):
        client = Client.from_source(history.create_source).start()
        outcomes: list[object] = []

        def ask(client: Client = client, outcomes: list[object] = outcomes) -> None:
            try:
                while len(outcomes) < 500:
                    outcomes.append(client.policy("shop.half", metadata=True, timeout=30))
            except ClosedError as error:
                outcomes.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        client.close()
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def default_client() -> Iterator[Client]:
    """The client of the module's functions, without flags, and closed in the end."""
    client = flagkit.is_enabled.__self__  # type: ignore[attr-defined]
    yield client
    client.follow(FlagSource())
    client.close()


def test_configuring_with_equal_settings_changes_nothing(
    default_client: Client, mongo_uri: str, database: str, writer: Writer
) -> None:
    writer.create(THEME)
    settings: dict[str, Any] = {
        "environment": "production",
        "database": database,
        "namespaces": ["shop."],
        "bootstrap": [HALF],
    }
    flagkit.configure(mongo_uri, **settings)
    flagkit.wait_ready()
    refresh, view = default_client._refresh, default_client._evaluator
    flagkit.configure(mongo_uri, **{**settings, "namespaces": ("shop.",), "bootstrap": (HALF,)})
    assert (default_client._refresh, default_client._evaluator) == (refresh, view)
    flagkit.configure(mongo_uri, **{**settings, "bootstrap": [LIMIT]})
    assert default_client._refresh is not refresh


def test_documents_that_the_caller_has_changed_are_other_settings(default_client: Client) -> None:
    documents = [{**HALF}]
    settings: dict[str, Any] = {"environment": "production", "bootstrap": documents}
    flagkit.configure(NOWHERE, **settings)
    documents[0]["key"] = "shop.other"
    flagkit.configure(NOWHERE, **settings)
    assert default_client.keys() == ["shop.other"]


def test_a_client_that_is_configured_again_after_its_end_answers_all_the_time(
    default_client: Client, history: MemoryHistory
) -> None:
    history.commit(THEME)
    settings = resolve_settings(NOWHERE, environment="test")
    default_client.follow(FlagSource(lambda: history.create_source, settings=settings))
    default_client.wait_ready()
    default_client.close()
    history.fault = StoreUnavailableError("the database is away")
    flagkit.configure(NOWHERE, environment="test")
    flagkit.wait_ready()
    assert flagkit.value("shop.theme", default="none") == "dark"


def test_settings_that_make_no_sense_leave_the_client_as_it_was(
    default_client: Client, history: MemoryHistory, tmp_path: Path
) -> None:
    history.commit(THEME)
    default_client.follow(FlagSource(lambda: history.create_source))
    default_client.wait_ready()
    senseless: list[Any] = [str(tmp_path / "none.json"), [{}], {"flags": []}, 5]
    for bootstrap in senseless:
        with pytest.raises((ConfigurationError, InvalidDocumentError)):
            flagkit.configure(NOWHERE, environment="test", bootstrap=bootstrap)
    default_client.wait_for(history.commit(LIMIT).revision)
    assert flagkit.value("shop.theme", default="none") == "dark"


def test_threads_that_configure_at_once_all_have_their_flags(default_client: Client) -> None:
    histories = [MemoryHistory(), MemoryHistory()]
    for history in histories:
        history.commit(THEME)
    origins = [
        FlagSource(
            functools.partial(getattr, history, "create_source"),
            settings=resolve_settings(NOWHERE, environment=f"e{number}"),
        )
        for number, history in enumerate(histories)
    ]
    together = threading.Barrier(12)
    raised: list[BaseException] = []

    def serve(number: int) -> None:
        try:
            together.wait(20)
            for turn in range(5):
                default_client.follow(origins[(number + turn) % 2])
                flagkit.wait_ready()
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is to be seen
            raised.append(error)

    threads = [threading.Thread(target=serve, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert raised == []
    assert sum(thread.name == "flagkit" for thread in threading.enumerate()) == 1


def test_other_threads_wait_subscribe_and_ask_while_the_client_moves(
    default_client: Client,
) -> None:
    histories = [MemoryHistory(), MemoryHistory()]
    for history in histories:
        history.commit(HALF)
    default_client.follow(FlagSource(lambda: histories[0].create_source))
    moved = threading.Event()
    raised: list[BaseException] = []

    def ask() -> None:
        try:
            while not moved.is_set():
                flagkit.on_change("shop.", print).close()
                flagkit.wait_ready()
                flagkit.wait_for(1)
                flagkit.policy("shop.half", metadata=True)
                flagkit.is_enabled("shop.half", "u")
                default_client.start()
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is to be seen
            raised.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for history in histories * 20:
        default_client.follow(FlagSource(functools.partial(getattr, history, "create_source")))
    moved.set()
    for thread in threads:
        thread.join(60)
    assert raised == []


def test_a_thread_that_is_left_publishes_nothing_more(running: Client) -> None:
    refresh = running._refresh
    assert refresh is not None
    publish = refresh._publish
    other = MemoryHistory()
    other.commit(THEME)
    running.follow(FlagSource(lambda: other.create_source))
    running.wait_ready()
    publish(build_policy_snapshot([LIMIT], [], environment="test", region="*"), None)
    assert running.keys() == ["shop.theme"]


def test_who_waits_for_too_short_learns_that_the_database_has_not_answered() -> None:
    with (
        Client("mongodb://127.0.0.1:1/?replicaSet=rs0", environment="e") as client,
        pytest.raises(NotReadyError, match="within 0 s: the database has not answered yet: wait"),
    ):
        client.wait_ready(0)
