"""Status: where a client stands, and how old what it answers from may be."""

import math

import pytest

from flagkit.client.client import Client
from flagkit.client.refresher import BreakerState, RefreshState
from flagkit.config import resolve_settings
from flagkit.errors import ConfigurationError, StoreUnavailableError
from flagkit.testing import MemoryHistory, client_from

URI = "mongodb://127.0.0.1:1/"
THEME = {"key": "shop.theme", "variants": {"dark": "dark"}, "fallthrough": {"serve": "dark"}}


def current(client: Client) -> bool:
    """Wait until the primary has vouched for the client."""
    status = client.status()
    while status.head is None or status.staleness == math.inf:
        client.wait_for(status.revision)
        status = client.status()
    return True


def test_a_client_that_is_not_started_has_nothing_to_tell() -> None:
    status = Client(URI, environment="production").status()
    assert (status.state, status.revision, status.head, status.error) == (None, 0, None, None)
    assert status.staleness == math.inf
    assert status.breakers == {}


def test_a_client_of_documents_tells_what_it_has() -> None:
    status = client_from([THEME], region="eu").status()
    assert (status.environment, status.region, status.revision) == ("test", "eu", 1)
    assert not status.is_stale


def test_a_client_that_is_current_says_so() -> None:
    history = MemoryHistory()
    change = history.commit(THEME)
    with Client.from_source(history.create_source) as client:
        client.wait_ready()
        assert current(client)
        status = client.status()
        assert (status.state, status.revision, status.head) == (RefreshState.WATCHING, 1, 1)
        assert status.epoch == change.tip.epoch
        assert 0 <= status.staleness < 60
        assert client.staleness >= status.staleness
        assert status.breakers == dict.fromkeys(("near", "primary", "head"), BreakerState.CLOSED)
        assert status.error is None
    assert client.status().state is None


def test_what_is_in_the_way_is_told_in_words() -> None:
    history = MemoryHistory()
    history.fault = StoreUnavailableError("no member answers")
    with Client.from_source(history.create_source) as client:
        while client.status().error is None:
            pass
        status = client.status()
        assert status.error == "no member answers"
        assert status.state in {RefreshState.LOADING, RefreshState.BACKING_OFF}


@pytest.mark.parametrize(
    ("argument", "variable", "seconds"),
    [(None, None, math.inf), (60, None, 60.0), (None, "45000", 45.0), (60, "45000", 60.0)],
)
def test_how_old_it_may_be_comes_from_an_argument_or_a_variable_in_milliseconds(
    argument: float | None,
    variable: str | None,
    seconds: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if variable is not None:
        monkeypatch.setenv("FLAGKIT_MAX_STALENESS_MS", variable)
    settings = resolve_settings(URI, environment="production", max_staleness=argument)
    assert settings.max_staleness == seconds


@pytest.mark.parametrize("seconds", [0, -1, 2.9, math.nan])
def test_what_cannot_be_kept_is_refused(seconds: float) -> None:
    with pytest.raises(ConfigurationError, match=r"use 3\.0 s or more"):
        Client(URI, environment="production", max_staleness=seconds)


def test_a_variable_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAGKIT_MAX_STALENESS_MS", "1 minute")
    with pytest.raises(ConfigurationError, match="write milliseconds"):
        Client(URI, environment="production")
