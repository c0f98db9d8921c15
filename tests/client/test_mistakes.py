"""Mistakes: what callers get wrong is logged, once for each kind and flag, and never raised."""

import logging
from typing import Any

import pytest

from flagkit import Client, CountingClient
from flagkit._core.evaluation.bucketing import compute_bucket, compute_seed
from flagkit._core.evaluation.evaluator import Evaluator
from flagkit.client.mistakes import LOGGED_MAX
from flagkit.testing import MemoryHistory, client_from

BOOLEAN = {"on": True, "off": False}
HALF = {"key": "half", "variants": BOOLEAN, "fallthrough": {"rollout": 50}}
TEXT = {"key": "text", "variants": {"a": "x"}, "fallthrough": {"serve": "a"}}
DEEP = {
    "key": "deep",
    "variants": BOOLEAN,
    "prerequisites": [{"flag": "text", "variants": ["a"]}],
    "fallthrough": {"rollout": {"by": "company.id", "weights": {"on": 50, "off": 50}}},
}


@pytest.fixture(params=[Client, CountingClient])
def client(request: pytest.FixtureRequest) -> Client:
    snapshot = client_from([HALF, TEXT, DEEP]).snapshot
    assert snapshot is not None
    kind: type[Client] = request.param
    return kind.from_snapshot(snapshot)


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Return the flags and the kinds of the mistakes that were logged."""
    found = [record.args for record in caplog.records if record.name == "flagkit"]
    mistakes = [args for args in found if isinstance(args, tuple) and len(args) == 3]
    return [(str(args[0]), str(args[1])) for args in mistakes]


ODD: Any = 1.5
MISTAKES: list[tuple[str, str, Any, Any, str]] = [
    ("misspelt", "is_enabled", "u", False, "FLAG_NOT_FOUND"),
    ("misspelt", "evaluate", "u", None, "FLAG_NOT_FOUND"),
    ("text", "is_enabled", "u", False, "TYPE_MISMATCH"),
    ("text", "evaluate", "u", 5, "TYPE_MISMATCH"),
    ("half", "is_enabled", {"user_id": "u"}, False, "TARGETING_KEY_MISSING"),
    ("half", "evaluate", {"user_id": "u"}, None, "TARGETING_KEY_MISSING"),
    ("deep", "is_enabled", {"company": "c"}, False, "TARGETING_KEY_MISSING"),
    ("half", "is_enabled", {"targeting_key": ODD}, False, "INVALID_CONTEXT"),
    ("half", "evaluate", {"targeting_key": ODD}, None, "INVALID_CONTEXT"),
    ("deep", "is_enabled", {"company": {"id": ODD}}, False, "INVALID_CONTEXT"),
    ("half", "is_enabled", ODD, False, "INVALID_CONTEXT"),
    ("half", "evaluate", ODD, None, "INVALID_CONTEXT"),
]


@pytest.mark.parametrize("used_before", [False, True], ids=["first", "later"])
@pytest.mark.parametrize(("key", "method", "context", "default", "kind"), MISTAKES)
def test_a_mistake_is_logged_once_for_its_flag(  # noqa: PLR0913, PLR0917 - a table's columns
    client: Client,
    caplog: pytest.LogCaptureFixture,
    key: str,
    method: str,
    context: Any,
    default: Any,
    kind: str,
    used_before: bool,
) -> None:
    if used_before and key in ("half", "deep"):
        client.is_enabled(key, {"targeting_key": "u", "company": {"id": "c"}}, True)
        client.evaluate(key, {"targeting_key": "u", "company": {"id": "c"}})
    for _ in range(3):
        getattr(client, method)(key, context, default)
    assert told(caplog) == [(key, kind)]


def test_what_is_right_is_not_logged(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    context = {"targeting_key": "u", "company": {"id": "c"}}
    for _ in range(2):
        client.is_enabled("half", context)
        client.evaluate("half", context, False)
        client.value("text", context, default="y")
        client.is_enabled("deep", context)
        client.evaluate_all()
        client.explain("half", {})
    assert told(caplog) == []


def test_a_flag_answers_as_before_once_a_missing_key_was_logged(client: Client) -> None:
    for default in (True, False):
        for _ in range(3):
            assert client.is_enabled("half", {}, default) is default
            assert client.is_enabled("half", {"targeting_key": ODD}, default) is default
            for user in map(str, range(20)):
                expected = compute_bucket(compute_seed("half"), user) < 50_000
                assert client.is_enabled("half", user, default) is expected


def test_a_missing_key_is_not_logged_again_after_a_change(caplog: pytest.LogCaptureFixture) -> None:
    history = MemoryHistory()
    client = Client.from_source(history.create_source)
    history.commit(HALF, TEXT)
    with client:
        client.wait_ready()
        assert client.is_enabled("half", {}, True) is True
        change = history.commit(HALF | {"fallthrough": {"rollout": 0}}, TEXT)
        client.wait_for(change.revision)
        assert client.is_enabled("half", {}, True) is True
        assert client.is_enabled("half", "u", True) is False
    assert told(caplog) == [("half", "TARGETING_KEY_MISSING")]


def test_a_switch_is_replaced_by_a_silent_one(monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_from([HALF])
    client.is_enabled("half", {})
    asked: list[str] = []
    monkeypatch.setattr(Evaluator, "evaluate", lambda *_: asked.append("evaluated"))
    assert client.is_enabled("half", {}, True) is True
    assert asked == []


def test_no_more_than_some_mistakes_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    client = client_from([HALF])
    for number in range(LOGGED_MAX + 50):
        client.is_enabled(f"made-up.{number}")
    assert len(told(caplog)) == LOGGED_MAX
    assert f"{LOGGED_MAX} mistakes of callers were logged" in caplog.records[-1].getMessage()
    assert len(client._mistakes._logged) == LOGGED_MAX


def test_what_a_context_holds_and_long_keys_are_not_logged(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    class Hostile:
        def __eq__(self, _: object) -> bool:
            raise RuntimeError("the secret")

        __hash__ = None  # type: ignore[assignment]

    client.evaluate("half", {"targeting_key": Hostile()})
    client.evaluate("half", {"targeting_key": ["the secret"]})
    keys: list[Any] = ["x" * 10_000_000, object(), ["x"], 5, None]
    for key in keys:
        client.evaluate(key)
        client.is_enabled(key)
    assert "secret" not in caplog.text
    assert len(caplog.text) < 10_000


def test_a_prefix_that_is_no_string_finds_nothing_and_is_logged(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        bad: Any
        for bad in (None, 5, [], b"half", object()):
            assert client.keys(bad) == []
            assert client.evaluate_all("u", bad) == {}
            assert client.bind("u").evaluate_all(bad) == {}
    assert told(caplog) == [("", "INVALID_PREFIX")]
    assert client.keys("ha") == ["half"]
