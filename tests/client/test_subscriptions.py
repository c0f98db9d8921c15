"""Subscriptions: callbacks that are told which flags may answer differently."""

import functools
import queue
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import pytest

import flagkit
from flagkit import Client, FlagChange
from flagkit._core.model import EVERYWHERE
from flagkit.client.sources import FlagSource, build_policy_snapshot
from flagkit.errors import (
    ClosedError,
    InvalidArgumentError,
    InvalidDocumentError,
    StoreUnavailableError,
)
from flagkit.testing import MemoryHistory, client_from
from flagkit.writer import Writer
from tests.support.forked import SECONDS_MAX, ForkedChild, poll_until

pytestmark = pytest.mark.every_python

THEME: dict[str, Any] = {
    "key": "shop.theme",
    "variants": {"light": "light", "dark": "dark"},
    "fallthrough": {"serve": "dark"},
}
LIGHT: dict[str, Any] = {**THEME, "fallthrough": {"serve": "light"}}
SEARCH: dict[str, Any] = {
    "key": "shop.search",
    "variants": {"on": True, "off": False},
    "rules": [{"name": "beta", "when": {"$segment": "beta"}, "serve": "on"}],
    "fallthrough": {"serve": "off"},
}
BETA: dict[str, Any] = {"key": "beta", "included": ["ada"]}
LIMIT: dict[str, Any] = {
    "key": "cart.limit",
    "variants": {"low": 10, "high": 50},
    "fallthrough": {"serve": "high"},
}


def resting(key: str, on: str, variant: str = "on") -> dict[str, Any]:
    """Return a flag with a prerequisite."""
    return {
        "key": key,
        "variants": {"on": True, "off": False},
        "off": "off",
        "prerequisites": [{"flag": on, "variants": [variant]}],
        "fallthrough": {"serve": "on"},
    }


class Heard:
    """A callback that keeps what it is told."""

    def __init__(self) -> None:
        self._told: queue.Queue[FlagChange] = queue.Queue()

    def __call__(self, change: FlagChange) -> None:
        self._told.put(change)

    def next(self) -> FlagChange:
        return self._told.get(timeout=SECONDS_MAX)

    def keys(self, count: int) -> list[str]:
        return [self.next().key for _ in range(count)]

    @property
    def nothing(self) -> bool:
        return self._told.empty()


@pytest.fixture
def history() -> MemoryHistory:
    return MemoryHistory()


@pytest.fixture
def client(history: MemoryHistory) -> Iterator[Client]:
    history.commit(THEME, LIMIT)
    with Client.from_source(history.create_source) as client:
        client.wait_ready()
        yield client


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "flagkit-changes"]


def versions(change: FlagChange) -> tuple[int | None, int | None]:
    return change.version_before, change.version_after


def test_a_callback_is_told_what_changed_and_from_what_to_what(
    client: Client, history: MemoryHistory
) -> None:
    heard = Heard()
    with client.on_change("shop.theme", heard):
        history.commit(LIGHT)
        change = heard.next()
    assert (change.key, change.revision, *versions(change)) == ("shop.theme", 2, 1, 2)
    before, after = change.policy_before, change.policy_after
    assert before is not None
    assert after is not None
    assert before["fallthrough"] == {"serve": "dark"}
    assert after["fallthrough"] == {"serve": "light"}
    assert repr(change) == "FlagChange('shop.theme', revision 2, version 1 -> 2)"


def test_evaluations_answer_from_the_revision_that_is_told(
    client: Client, history: MemoryHistory
) -> None:
    answers: queue.Queue[tuple[str, bool]] = queue.Queue()

    def ask(change: FlagChange) -> None:
        found = client.evaluate("shop.theme", default="none")
        answers.put((found.value, client.revision >= change.revision))

    with client.on_change("shop.theme", ask):
        history.commit(LIGHT)
        assert answers.get(timeout=SECONDS_MAX) == ("light", True)


def test_flags_come_and_go(client: Client, history: MemoryHistory) -> None:
    heard = Heard()
    with client.on_change("shop.search", heard):
        history.commit(SEARCH, segments=[BETA])
        created = heard.next()
        history.commit(delete=[(EVERYWHERE, "shop.search")])
        deleted = heard.next()
    assert (versions(created), versions(deleted)) == ((None, 1), (1, None))
    assert (created.policy_before, deleted.policy_after) == (None, None)


@pytest.mark.parametrize(
    ("key", "keys"),
    [
        ("shop.", ["shop.search", "shop.theme"]),
        ("", ["cart.limit", "shop.search", "shop.theme"]),
        ("shop.theme", ["shop.theme"]),
        ("shop", []),
    ],
)
def test_a_key_that_ends_in_a_dot_stands_for_its_namespace(
    key: str, keys: list[str], client: Client, history: MemoryHistory
) -> None:
    heard, last = Heard(), Heard()
    with client.on_change(key, heard), client.on_change("zone.last", last):
        history.commit(LIGHT, LIMIT, SEARCH, resting("zone.last", "cart.limit", "high"))
        last.next()
        assert heard.keys(len(keys)) == keys
        assert key == "" or heard.nothing


@pytest.mark.parametrize("key", ["Shop.theme", "shop..", ".", "shop theme", None, 0, (), b"a", []])
def test_what_is_no_key_is_refused(key: Any, client: Client) -> None:
    with pytest.raises(InvalidDocumentError, match="is not a flag key"):
        client.on_change(key, print)


async def later(*_: object) -> None:
    """What somebody has to await."""


async def yielding(*_: object) -> AsyncIterator[int]:
    """What somebody has to iterate over."""
    yield 1


class Later:
    async def __call__(self, change: FlagChange) -> None:
        """What somebody has to await."""

    async def told(self, change: FlagChange) -> None:
        """What somebody has to await."""


@pytest.mark.parametrize(
    "callback",
    [
        later,
        yielding,
        Later(),
        Later().told,
        functools.partial(later, 1),
        functools.partial(functools.partial(Later().told)),
        functools.partial(Later()),
    ],
)
def test_a_coroutine_function_is_refused(callback: Any, client: Client) -> None:
    with pytest.raises(InvalidArgumentError, match=r"asyncio\.run_coroutine_threadsafe"):
        client.on_change("shop.theme", callback)


@pytest.mark.parametrize("callback", [None, "print", 5])
def test_what_cannot_be_called_is_refused(callback: Any, client: Client) -> None:
    with pytest.raises(InvalidArgumentError, match="pass a function"):
        client.on_change("shop.theme", callback)


def test_a_coroutine_that_a_callback_returns_is_said_once(
    client: Client, history: MemoryHistory, caplog: pytest.LogCaptureFixture
) -> None:
    heard = Heard()
    with (
        client.on_change("shop.theme", lambda change: [later(change)][0]),
        client.on_change("", heard),
    ):
        for document in (LIGHT, THEME):
            history.commit(document)
            heard.next()
    client.close()
    assert caplog.text.count("InvalidArgumentError: it returned a coroutine") == 1


def test_what_rests_on_a_change_is_told_too_though_nobody_has_asked_for_it(
    client: Client, history: MemoryHistory
) -> None:
    history.commit(SEARCH, segments=[BETA])
    history.commit(resting("shop.page", "shop.search"), resting("shop.button", "shop.page"))
    client.wait_for(3)
    heard = Heard()
    with client.on_change("shop.", heard):
        history.commit(segments=[{"key": "beta", "included": ["bob"]}])
        told = [heard.next() for _ in range(3)]
    assert [change.key for change in told] == ["shop.button", "shop.page", "shop.search"]
    assert [versions(change) for change in told] == [(1, 1)] * 3


def test_references_follow_the_flags(client: Client, history: MemoryHistory) -> None:
    history.commit(resting("shop.page", "shop.theme", "dark"))
    client.wait_for(2)
    heard = Heard()
    with client.on_change("shop.page", heard):
        history.commit(resting("shop.page", "cart.limit", "low"))
        assert versions(heard.next()) == (1, 2)
        history.commit(LIGHT)
        history.commit({**LIMIT, "fallthrough": {"serve": "low"}})
        change = heard.next()
        assert (change.revision, *versions(change)) == (5, 2, 2)
        history.commit(resting("cart.limit", "shop.theme", "light"))
        assert heard.next().revision == 6
        history.commit(THEME)
        assert heard.next().revision == 7
    assert heard.nothing


def test_a_circle_of_prerequisites_ends(client: Client, history: MemoryHistory) -> None:
    heard = Heard()
    with client.on_change("shop.", heard):
        history.commit(resting("shop.one", "shop.two"), resting("shop.two", "shop.one"))
        assert heard.keys(2) == ["shop.one", "shop.two"]
        history.commit(resting("shop.one", "shop.two"))
        assert heard.keys(2) == ["shop.one", "shop.two"]


def test_a_change_for_another_region_or_under_an_override_is_none(history: MemoryHistory) -> None:
    history.commit(THEME, {**LIGHT, "region": "eu"})
    with Client.from_source(lambda: history.create_source("eu")) as client:
        client.wait_ready()
        heard = Heard()
        with client.on_change("shop.", heard):
            history.commit({**THEME, "off": "light"}, {**LIGHT, "region": "us"})
            history.commit(delete=[("eu", "shop.theme")])
            assert versions(heard.next()) == (1, 2)
        assert heard.nothing


def test_the_first_flags_are_told_to_who_was_there_before_them(history: MemoryHistory) -> None:
    history.commit(THEME, LIMIT)
    client = Client.from_source(history.create_source)
    heard = Heard()
    client.on_change("", heard)
    with client:
        told = [heard.next(), heard.next()]
    assert [(change.key, *versions(change)) for change in told] == [
        ("cart.limit", None, 1),
        ("shop.theme", None, 1),
    ]


def test_after_a_new_base_what_differs_is_told(client: Client, history: MemoryHistory) -> None:
    history.commit(SEARCH, segments=[BETA])
    client.wait_for(2)
    heard = Heard()
    client.on_change("shop.", heard)
    history.fault = StoreUnavailableError("no member answers")
    history.commit(LIMIT)
    history.commit(segments=[{"key": "beta", "included": ["bob"]}])
    history.prune(4)
    history.fault = None
    change = heard.next()
    assert (change.key, *versions(change)) == ("shop.search", 1, 1)
    assert heard.nothing


def test_a_slow_callback_is_told_of_the_newest_alone_and_delays_nobody(
    client: Client, history: MemoryHistory
) -> None:
    heard = Heard()
    entered, go_on = threading.Event(), threading.Event()

    def slow(change: FlagChange) -> None:
        heard(change)
        entered.set()
        assert go_on.wait(SECONDS_MAX)

    with client.on_change("", slow):
        history.commit(LIGHT)
        assert entered.wait(SECONDS_MAX)
        for _ in range(20):
            history.commit(THEME)
            history.commit(LIGHT, LIMIT)
        # The refresher goes on meanwhile.
        client.wait_for(42)
        go_on.set()
        told = [heard.next() for _ in range(3)]
    assert [(change.key, change.revision) for change in told] == [
        ("shop.theme", 2),
        ("cart.limit", 42),
        ("shop.theme", 42),
    ]
    assert [versions(change) for change in told[1:]] == [(1, 21), (2, 42)]


def test_what_a_callback_raises_is_said_once_and_the_others_are_told(
    client: Client, history: MemoryHistory, caplog: pytest.LogCaptureFixture
) -> None:
    def bad(change: FlagChange) -> None:
        raise SystemExit(f"no {change.key}")

    heard = Heard()
    client.on_change("shop.", bad)
    client.on_change("shop.theme", heard)
    for document in (LIGHT, THEME, LIGHT):
        history.commit(document)
        heard.next()
    client.close()
    [record] = caplog.records
    assert record.getMessage().startswith("a callback for changes of 'shop.' raised")
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], SystemExit)


def test_a_subscription_that_is_closed_is_told_no_more(
    client: Client, history: MemoryHistory
) -> None:
    first, second = Heard(), Heard()
    subscription = client.on_change("", first)
    client.on_change("", second)
    history.commit(LIGHT)
    second.next()
    first.next()
    subscription.close()
    subscription.close()
    history.commit(THEME)
    second.next()
    assert first.nothing


def test_there_is_a_thread_from_the_first_subscription_to_the_end_of_the_client(
    client: Client,
) -> None:
    assert threads() == []
    client.on_change("", print)
    client.on_change("shop.", print)
    assert len(threads()) == 1
    client.close()
    assert threads() == []
    with pytest.raises(ClosedError):
        client.on_change("", print)


def test_closing_waits_no_longer_than_it_is_told_for_a_callback(
    client: Client, history: MemoryHistory, caplog: pytest.LogCaptureFixture
) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def slow(_: FlagChange) -> None:
        entered.set()
        go_on.wait(SECONDS_MAX)

    client.on_change("", slow)
    history.commit(LIGHT)
    assert entered.wait(SECONDS_MAX)
    [thread] = threads()
    client.close(timeout=0)
    assert "a callback did not end within 0 s; its thread is left behind" in caplog.text
    go_on.set()
    thread.join(SECONDS_MAX)
    assert not thread.is_alive()


def test_a_callback_may_close_its_subscription_and_its_client(
    client: Client, history: MemoryHistory
) -> None:
    heard = Heard()
    done = threading.Event()

    def once(change: FlagChange) -> None:
        subscription.close()
        heard(change)

    def end(_: FlagChange) -> None:
        client.close()
        done.set()

    subscription = client.on_change("shop.theme", once)
    history.commit(LIGHT)
    heard.next()
    history.commit(THEME)
    client.on_change("cart.limit", end)
    history.commit(LIMIT)
    assert done.wait(SECONDS_MAX)
    assert heard.nothing
    assert poll_until(threads, lambda found: not found) == []


def test_a_client_of_one_snapshot_has_nothing_to_tell() -> None:
    client = client_from([THEME])
    with client.on_change("", print) as subscription:
        assert subscription.key == ""
    client.close()
    assert threads() == []


def test_the_default_client_keeps_its_subscriptions_when_it_is_configured_anew() -> None:
    first, second = MemoryHistory(), MemoryHistory()
    first.commit(THEME, LIMIT)
    second.commit(LIGHT, LIMIT)
    heard = Heard()
    client = Client.from_source()
    client.on_change("", heard)
    client.follow(FlagSource(lambda: first.create_source))
    assert heard.keys(2) == ["cart.limit", "shop.theme"]
    client.follow(FlagSource(lambda: second.create_source))
    assert heard.next().key == "shop.theme"
    client.close()
    assert heard.nothing
    assert callable(flagkit.on_change)


def test_what_a_bootstrap_answers_instead_is_told() -> None:
    first, second = MemoryHistory(), MemoryHistory()
    first.commit(THEME, LIMIT)
    second.fault = StoreUnavailableError("no member answers")
    heard = Heard()
    client = Client.from_source().follow(FlagSource(lambda: first.create_source))
    client.wait_ready()
    client.on_change("", heard)
    declared = build_policy_snapshot([LIGHT, LIMIT], [], environment="test", region=EVERYWHERE)
    client.follow(FlagSource(lambda: second.create_source, bootstrap=declared))
    change = heard.next()
    client.close()
    assert (change.key, change.policy_after) == ("shop.theme", client.policy("shop.theme"))
    assert heard.nothing


# 3.12 on: forking with threads is what this is about.
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_child_is_told_by_itself_of_what_changes_after_the_fork(
    client: Client, history: MemoryHistory
) -> None:
    heard = Heard()
    client.on_change("shop.", heard)

    def follow(says: Connection) -> None:
        history.commit(LIGHT)
        change = heard.next()
        says.send((change.key, change.revision))

    history.commit(LIMIT)
    client.wait_for(2)
    with ForkedChild(follow) as child:
        assert child.says() == ("shop.theme", 3)
        assert child.exit_code() == 0
    assert heard.nothing
    history.commit(SEARCH, segments=[BETA])
    assert heard.next().key == "shop.search"


def revisions(changes: Iterable[FlagChange]) -> set[tuple[str, int]]:
    return {(change.key, change.revision) for change in changes}


@pytest.mark.mongo
def test_changes_of_a_database_are_told(mongo_uri: str, database: str, writer: Writer) -> None:
    writer.create(THEME)
    heard = Heard()
    with Client(mongo_uri, environment="production", database=database) as client:
        client.wait_ready()
        client.on_change("shop.", heard)
        revision = writer.update(LIGHT).revision
        assert revisions([heard.next()]) == {("shop.theme", revision)}
        writer.create(resting("shop.page", "shop.theme", "light"))
        assert heard.next().key == "shop.page"
        revision = writer.pause("shop.theme", reason="incident 7").revision
        told = [heard.next(), heard.next()]
        assert revisions(told) == {("shop.page", revision), ("shop.theme", revision)}
