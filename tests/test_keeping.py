"""Keeping: clients that fold what has changed, serve from a file, and keep it current."""

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from flagkit import Client, keeping
from flagkit.errors import StoreUnavailableError
from flagkit.snapshot import SnapshotFile, snapshots
from flagkit.testing import ENVIRONMENT, MemoryHistory

PATIENCE_SECONDS = 20.0


def flag(key: str = "shop.express", *, on: bool = True) -> dict[str, Any]:
    serve = {"serve": "on" if on else "off"}
    return {"key": key, "variants": {"on": True, "off": False}, "fallthrough": serve}


def eventually(happened: Callable[[], bool]) -> None:
    """Wait until something has happened; fail if it has not in time."""
    ending = time.monotonic() + PATIENCE_SECONDS
    pause = threading.Event()
    while not happened():
        assert time.monotonic() < ending, "it never happened"
        pause.wait(0.005)


@pytest.fixture
def history() -> MemoryHistory:
    history = MemoryHistory()
    history.commit(flag())
    return history


@pytest.fixture
def file(tmp_path: Path) -> SnapshotFile:
    return SnapshotFile(tmp_path / "flags.snapshot", ENVIRONMENT, "*")


@pytest.fixture(autouse=True)
def _eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tests not wait for the next time that a file may be written."""
    monkeypatch.setattr(keeping, "SAVE_SECONDS_MIN", 0.0)


def saved(file: SnapshotFile) -> int:
    header = file.header()
    return 0 if header is None else header.tip.revision


def troubles(caplog: pytest.LogCaptureFixture, words: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if words in record.getMessage()]


def base_of(client: Client) -> tuple[int, int]:
    """Return the revision of the base that a client answers from, and the size of its overlay."""
    assert client.snapshot is not None
    return client.snapshot.base.tip.revision, len(client.snapshot.overlay)


# Folding


def test_an_overlay_that_grows_is_folded_and_evaluations_stay_right(
    history: MemoryHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "OVERLAY_MIN", 8)
    with Client.from_source(history.source) as client:
        client.wait_ready()
        for number in range(40):
            history.commit(flag(f"shop.f{number}", on=number % 2 == 0))
        client.wait_for(41)
        eventually(lambda: base_of(client)[0] > 1 and base_of(client)[1] <= 8)
        assert [client.is_enabled(f"shop.f{number}") for number in range(40)] == [True, False] * 20
        assert client.revision == 41


def test_evaluators_in_use_are_carried_over_a_fold(
    history: MemoryHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "OVERLAY_MIN", 0)
    with Client.from_source(history.source) as client:
        client.wait_ready()
        assert client.is_enabled("shop.express")
        assert client._view is not None
        before = client._view.find("shop.express")
        history.commit(flag("shop.other"))
        eventually(lambda: base_of(client) == (2, 0))
        assert client._view.find("shop.express") is before


# The file


def test_the_file_has_the_newest_revision_soon(history: MemoryHistory, file: SnapshotFile) -> None:
    with Client.from_source(history.source, file):
        eventually(lambda: saved(file) == 1)
        history.commit(flag(on=False))
        eventually(lambda: saved(file) == 2)


def test_a_client_goes_on_from_the_file_that_it_wrote(
    history: MemoryHistory, file: SnapshotFile
) -> None:
    with Client.from_source(history.source, file) as client:
        eventually(lambda: saved(file) == 1)
        history.commit(flag(on=False))
        eventually(lambda: base_of(client) == (2, 0))
        assert client.snapshot is not None
        assert client.snapshot.base.content.readonly
        assert not client.is_enabled("shop.express")


def test_what_the_file_holds_is_served_before_anything_else(
    history: MemoryHistory, file: SnapshotFile
) -> None:
    with Client.from_source(history.source, file):
        eventually(lambda: saved(file) == 1)
    history.fault = StoreUnavailableError("on fire")
    client = Client.from_source(history.source, file)
    assert client.is_enabled("shop.express")
    assert client.evaluate("shop.express").revision == 1
    with client:
        client.wait_ready(timeout=0)
        assert client.is_enabled("shop.express")
        # Once the database is there again, it catches up.
        history.commit(flag(on=False))
        history.fault = None
        client.wait_for(2, PATIENCE_SECONDS)
        assert not client.is_enabled("shop.express")


def test_members_of_segments_are_served_from_the_file(
    history: MemoryHistory, file: SnapshotFile
) -> None:
    rule = {"name": "beta", "when": {"$segment": "beta"}, "serve": "on"}
    document = {**flag(on=False), "rules": [rule]}
    history.commit(document, segments=[{"key": "beta", "included": ["ada"]}])
    with Client.from_source(history.source, file):
        eventually(lambda: saved(file) == 2)
    alone = Client.from_source(None, file)
    assert (alone.is_enabled("shop.express", "ada"), alone.is_enabled("shop.express", "bob")) == (
        True,
        False,
    )


def test_the_last_revision_is_saved_when_the_client_closes(
    history: MemoryHistory, file: SnapshotFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "SAVE_SECONDS_MIN", 3600.0)
    monkeypatch.setattr(keeping, "SAVE_SECONDS_MAX", 3600.0)
    with Client.from_source(history.source, file) as client:
        eventually(lambda: saved(file) == 1)
        history.commit(flag(on=False))
        client.wait_for(2)
        assert saved(file) == 1
    assert saved(file) == 2


def test_another_history_replaces_the_file(history: MemoryHistory, file: SnapshotFile) -> None:
    for number in range(5):
        history.commit(flag(f"shop.f{number}"))
    with Client.from_source(history.source, file):
        eventually(lambda: saved(file) == 6)
    other = MemoryHistory()
    other.commit(flag(on=False))
    with Client.from_source(other.source, file) as client:
        # What it has is served until the database says otherwise.
        eventually(lambda: saved(file) == 1)
        assert client.revision == 1
        assert not client.is_enabled("shop.express")


def test_an_older_revision_never_replaces_a_newer_one(
    history: MemoryHistory, file: SnapshotFile
) -> None:
    with Client.from_source(history.source, file):
        eventually(lambda: saved(file) == 1)
    lagging = Client.from_source(None, file)
    history.commit(flag(on=False))
    with Client.from_source(history.source, file):
        eventually(lambda: saved(file) == 2)
    assert lagging.snapshot is not None
    keeper = keeping.Keeper(lambda *_: None, file)
    keeper.saw(lagging.snapshot)
    keeper.save_now()
    assert saved(file) == 2


def test_clients_that_share_a_file_go_on_from_what_one_of_them_wrote(
    history: MemoryHistory, file: SnapshotFile
) -> None:
    with (
        Client.from_source(history.source, file) as one,
        Client.from_source(history.source, file) as other,
    ):
        for number in range(20):
            history.commit(flag(f"shop.f{number}"))
        for client in (one, other):
            client.wait_for(21)
        eventually(lambda: base_of(one) == base_of(other) == (21, 0))
        for client in (one, other):
            assert client.snapshot is not None
            assert client.snapshot.base.content.readonly
            assert all(client.is_enabled(f"shop.f{number}") for number in range(20))


@pytest.mark.parametrize("content", [b"", b"no snapshot at all, but longer than a prefix of one"])
def test_a_file_that_is_of_no_use_is_said_once_and_replaced(
    history: MemoryHistory, file: SnapshotFile, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    file.path.write_bytes(content)
    with Client.from_source(history.source, file) as client:
        eventually(lambda: saved(file) == 1)
        assert client.is_enabled("shop.express")
    assert len(troubles(caplog, "is not served")) == 1
    assert file.read() is not None


def test_a_damaged_file_whose_header_is_sound_is_replaced_at_once(
    history: MemoryHistory, file: SnapshotFile, caplog: pytest.LogCaptureFixture
) -> None:
    with Client.from_source(history.source, file):
        eventually(lambda: saved(file) == 1)
    content = file.path.read_bytes()
    file.path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with Client.from_source(history.source, file):
        # It says that it has the newest revision, but nobody could be served from it.
        eventually(lambda: file.path.read_bytes() == content)
    assert len(troubles(caplog, "is not served")) == 1


def test_where_no_file_can_be_written_it_is_said_once_and_work_goes_on(
    history: MemoryHistory,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keeping, "SAVE_SECONDS_MAX", 0.01)
    monkeypatch.setattr(snapshots, "OVERLAY_MIN", 2)
    directory = tmp_path / "missing"
    file = SnapshotFile(directory / "flags.snapshot", ENVIRONMENT, "*")
    with caplog.at_level(logging.INFO), Client.from_source(history.source, file) as client:
        eventually(lambda: bool(troubles(caplog, "is not written")))
        for number in range(10):
            history.commit(flag(f"shop.f{number}"))
        client.wait_for(11)
        # Folded all the same, in memory.
        eventually(lambda: base_of(client)[0] > 1 and base_of(client)[1] <= 2)
        assert client.is_enabled("shop.f9")
        assert len(troubles(caplog, "is not written")) == 1
        directory.mkdir()
        history.commit(flag(on=False))
        eventually(lambda: bool(troubles(caplog, "is written again")))
        assert saved(file) == 12
    assert len(troubles(caplog, "is written again")) == 1


def test_the_path_may_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, history: MemoryHistory, file: SnapshotFile
) -> None:
    with Client.from_source(history.source, file):
        eventually(lambda: saved(file) == 1)
    variables: Mapping[str, str] = {
        "FLAGKIT_URI": "mongodb://127.0.0.1:9/?directConnection=true",
        "FLAGKIT_ENVIRONMENT": ENVIRONMENT,
        "FLAGKIT_SNAPSHOT_PATH": os.fspath(file.path),
    }
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    assert Client().is_enabled("shop.express")
    assert Client(snapshot_path=file.path).is_enabled("shop.express")
