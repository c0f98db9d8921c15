"""Bootstrap: what serves until a database has answered."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from flagkit._core.cooperative import run_slices
from flagkit._core.evaluation.result import ErrorCode
from flagkit._core.model import EVERYWHERE
from flagkit._core.snapshot import SnapshotFile
from flagkit._core.snapshot.snapshot import compact_snapshot
from flagkit.client.client import Client
from flagkit.client.sources import FlagSource, build_policy_snapshot, load_bootstrap_snapshot
from flagkit.errors import ConfigurationError, InvalidDocumentError, NotReadyError
from flagkit.testing import MemoryHistory

SEARCH: Mapping[str, Any] = {
    "key": "shop.search",
    "variants": {"on": True, "off": False},
    "rules": [{"name": "beta", "when": {"$segment": "beta"}, "serve": "on"}],
    "fallthrough": {"serve": "off"},
}
BETA: Mapping[str, Any] = {"key": "beta", "included": ["ada"]}
THEME: Mapping[str, Any] = {
    "key": "shop.theme",
    "variants": {"dark": "dark", "light": "light"},
    "fallthrough": {"serve": "dark"},
}
NOWHERE = "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=100"


@pytest.fixture
def policy_file(tmp_path: Path) -> Path:
    path = tmp_path / "flags.json"
    path.write_text(json.dumps({"flags": [SEARCH, THEME], "segments": [BETA]}))
    return path


@pytest.fixture
def snapshot_file(tmp_path: Path) -> Path:
    snapshot = build_policy_snapshot([SEARCH], [BETA], environment="production", region=EVERYWHERE)
    file = SnapshotFile(tmp_path / "flags.snapshot", "production", EVERYWHERE)
    with file.claim():
        file.write(run_slices(compact_snapshot(snapshot, with_members=True)))
    return file.path


@pytest.mark.parametrize("form", ["policy_file", "snapshot_file"])
def test_a_file_serves_before_the_database_answers(
    form: str, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(form)
    with Client(NOWHERE, environment="production", bootstrap=path) as client:
        assert client.is_enabled("shop.search", "ada")
        assert not client.is_enabled("shop.search", "bob")


def test_defaults_that_are_declared_in_code_serve_too() -> None:
    client = Client(NOWHERE, environment="production", bootstrap=[THEME])
    assert client.value("shop.theme", default="none") == "dark"
    assert client.status().staleness == math.inf


def test_it_may_be_named_by_a_variable(policy_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAGKIT_BOOTSTRAP", str(policy_file))
    client = Client(NOWHERE, environment="production")
    assert client.value("shop.theme", default="none") == "dark"


def test_without_any_the_default_and_provider_not_ready() -> None:
    client = Client(NOWHERE, environment="production")
    evaluation = client.evaluate("shop.theme", default="none")
    assert (evaluation.value, evaluation.error_code) == ("none", ErrorCode.PROVIDER_NOT_READY)


def test_it_is_not_what_is_waited_for() -> None:
    client = Client(NOWHERE, environment="production", bootstrap=[THEME])
    with client, pytest.raises(NotReadyError):
        client.wait_ready(timeout=0.2)


def test_flags_of_the_database_replace_all_of_it(caplog: pytest.LogCaptureFixture) -> None:
    history = MemoryHistory()
    history.commit({**THEME, "fallthrough": {"serve": "light"}})
    snapshot = load_bootstrap_snapshot([{**SEARCH, "rules": []}, THEME], "test", EVERYWHERE)
    client = Client.from_source()
    client.follow(FlagSource(lambda: history.create_source, bootstrap=snapshot))
    with client:
        client.wait_ready()
        assert client.value("shop.theme", default="none") == "light"
        assert client.evaluate("shop.search").error_code is ErrorCode.FLAG_NOT_FOUND
        assert client.status().revision == 1
    (told,) = caplog.messages
    assert told.startswith("callers of 'shop.search' are told their default")


def test_what_a_snapshot_file_kept_comes_before_it(snapshot_file: Path) -> None:
    client = Client(
        NOWHERE, environment="production", bootstrap=[THEME], snapshot_path=snapshot_file
    )
    assert client.is_enabled("shop.search", "ada")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not JSON"),
        (b"flags:\n  - key: shop.search\n", "flagkit format --output json"),
        (b'{"flag": []}', "flags: is missing"),
        (b'{"flags": {}}', "is not a list"),
        (b"\xff\xfe", "flagkit format"),
        (b"flagkit\x63", "no snapshot|format|cut off"),
    ],
    ids=["empty", "YAML", "unknown field", "no list", "no text", "a cut-off snapshot"],
)
def test_a_file_that_is_none_is_refused_with_a_remedy(
    content: bytes, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "flags"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=words):
        Client(NOWHERE, environment="production", bootstrap=path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        Client(NOWHERE, environment="production", bootstrap=tmp_path / "flags.json")


def test_a_document_that_is_not_valid_is_refused_with_its_path() -> None:
    with pytest.raises(InvalidDocumentError, match="fallthrough"):
        Client(
            NOWHERE,
            environment="production",
            bootstrap=[{**THEME, "fallthrough": {"serve": "blue"}}],
        )


def test_a_snapshot_of_another_environment_is_refused(snapshot_file: Path) -> None:
    with pytest.raises(ConfigurationError, match="of the environment 'production'"):
        Client(NOWHERE, environment="staging", bootstrap=snapshot_file)
