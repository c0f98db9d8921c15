"""Namespaces: clients that keep only the flags whose keys begin in a way."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flagkit.client.client import Client
from flagkit.config import resolve_settings
from flagkit.errors import ConfigurationError
from flagkit.writer import Writer

pytestmark = pytest.mark.mongo
URI = "mongodb://127.0.0.1:1/"


def flag(key: str, **fields: Any) -> dict[str, Any]:
    return {
        "key": key,
        "variants": {"on": True, "off": False},
        "fallthrough": {"serve": "on"},
        **fields,
    }


@pytest.fixture
def written(writer: Writer) -> Writer:
    writer.create_segment({"key": "beta", "included": ["ada"]})
    with writer.change() as change:
        for key in ("checkout.pay", "checkout.risk.check", "checkouts.other", "search.fuzzy"):
            change.create(flag(key))
        change.create(flag("search.beta", rules=[], fallthrough={"serve": "off"}))
        change.create(flag("checkout.pay", region="eu", fallthrough={"serve": "off"}))
    return writer


Opened = Callable[..., Client]


@pytest.fixture
def opened(mongo_uri: str, database: str) -> Opened:
    def opened(*namespaces: str, **options: Any) -> Client:
        return Client(
            mongo_uri,
            environment="production",
            database=database,
            namespaces=namespaces,
            **options,
        )

    return opened


def test_only_flags_of_the_namespaces_are_loaded_and_all_segments(
    written: Writer, opened: Opened
) -> None:
    with opened("checkout.") as client:
        client.wait_for(written.store.read_tip().revision)
        assert client.keys() == ["checkout.pay", "checkout.risk.check"]
        assert client.snapshot is not None
        assert client.snapshot.find_segment("beta") is not None
        assert not client.is_enabled("search.fuzzy")
        assert client.is_enabled("checkout.pay")


def test_regions_override_within_them(written: Writer, opened: Opened) -> None:
    with opened("checkout.", "search.b", region="eu") as client:
        client.wait_for(written.store.read_tip().revision)
        assert client.keys() == ["checkout.pay", "checkout.risk.check", "search.beta"]
        assert not client.is_enabled("checkout.pay", default=True)


def test_changes_of_other_flags_pass_by(written: Writer, opened: Opened) -> None:
    with opened("checkout.") as client:
        client.wait_ready()
        written.create(flag("search.new"))
        written.pause("search.fuzzy")
        written.create(flag("checkout.new"))
        commit = written.update(flag("checkout.pay", off="off", state="paused"))
        client.wait_for(commit.revision)
        assert client.keys() == ["checkout.new", "checkout.pay", "checkout.risk.check"]
        assert not client.is_enabled("checkout.pay", default=True)


def test_a_scan_reads_the_tips_change_through_for_its_namespaces_alone(
    written: Writer, opened: Opened
) -> None:
    with written.change() as change:
        change.create(flag("checkout.tip"))
        change.create(flag("search.tip"))
    with opened("checkout.") as client:
        client.wait_ready()
        assert client.keys() == ["checkout.pay", "checkout.risk.check", "checkout.tip"]


def test_a_file_of_other_namespaces_is_neither_served_nor_replaced(
    written: Writer, opened: Opened, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "flags.snapshot"
    revision = written.store.read_tip().revision
    with opened("checkout.", snapshot_path=path) as client:
        client.wait_for(revision)
    with opened("checkout.", snapshot_path=path) as again:
        assert again.revision == revision
        assert again.keys() == ["checkout.pay", "checkout.risk.check"]
    other = opened("search.", snapshot_path=path)
    assert other.revision == 0
    assert "its namespaces are others: checkout." in caplog.text
    with other:
        other.wait_for(revision)
    assert opened("search.", snapshot_path=path).keys() == []
    kept = opened("checkout.", snapshot_path=path).keys()
    assert kept == ["checkout.pay", "checkout.risk.check"]


def test_a_prerequisite_in_no_namespace_is_said(
    written: Writer, opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    needs = [{"flag": "search.fuzzy", "variants": ["on"]}]
    commit = written.create(flag("checkout.fuzzy", off="off", prerequisites=needs))
    with opened("checkout.") as client:
        client.wait_for(commit.revision)
        assert client.evaluate("checkout.fuzzy").error_code == "PARSE_ERROR"
    assert "search.fuzzy, which is in none of the namespaces" in caplog.text


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ([], ()),
        (["b.", "a."], ("a.", "b.")),
        (["a.", "a.b.", "a", "b"], ("a", "b")),
        (None, ("x.", "y.")),
    ],
)
def test_they_are_brought_into_one_form(
    given: list[str] | None, kept: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLAGKIT_NAMESPACES", "y., x.,")
    settings = resolve_settings(URI, environment="production", namespaces=given)
    assert settings.namespaces == kept


@pytest.mark.parametrize("given", ["checkout.", [""], ["Checkout."], ["a~"], [".a"]])
def test_what_no_key_begins_with_is_refused(given: Any) -> None:
    with pytest.raises(ConfigurationError, match="namespace"):
        resolve_settings(URI, environment="production", namespaces=given)
