"""Keeping: clients that fold what has changed, serve from a file, and keep it current."""

import asyncio
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flagkit import Client
from flagkit._core.cooperative import run_slices
from flagkit._core.model.changes import Change
from flagkit._core.snapshot import Arena, Snapshot, SnapshotFile, compact_snapshot
from flagkit._core.snapshot import snapshot as snapshots
from flagkit._core.source import Route
from flagkit.client import persistence as keeping
from flagkit.errors import StoreUnavailableError
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
    header = file.read_header()
    return 0 if header is None else header.tip.revision


def troubles(caplog: pytest.LogCaptureFixture, words: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if words in record.getMessage()]


def base_of(client: Client) -> tuple[int, int]:
    """Return the revision of the base that a client answers from, and the size of its overlay."""
    assert client.snapshot is not None
    return client.snapshot.base.tip.revision, len(client.snapshot.overlay)


def snapshot_at(history: MemoryHistory) -> Snapshot:
    """Return the snapshot of the tip, whose overlay is empty."""
    return asyncio.run(history.create_source().load(Route.NEAREST))


def after(snapshot: Snapshot, *changes: Change) -> Snapshot:
    return snapshot.apply(changes)


async def ended(keeping: "asyncio.Future[None]") -> None:
    """Cancel a keeper, once, and see it end."""
    keeping.cancel()
    done, _ = await asyncio.wait([keeping], timeout=PATIENCE_SECONDS)
    assert done, "it does not end"


def write(file: SnapshotFile, snapshot: Snapshot) -> None:
    with file.claim() as mine:
        assert mine
        file.write(run_slices(compact_snapshot(snapshot, with_members=True)))


# Folding


def test_an_overlay_that_grows_is_folded_and_evaluations_stay_right(
    history: MemoryHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "OVERLAY_MIN", 8)
    with Client.from_source(history.create_source) as client:
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
    with Client.from_source(history.create_source) as client:
        client.wait_ready()
        # A client publishes its first view again once it watches: what is compiled meanwhile may
        # stay behind in the older one.
        history.commit(flag("shop.first"))
        eventually(lambda: base_of(client) == (2, 0))
        assert client.is_enabled("shop.express")
        assert client._evaluator is not None
        before = client._evaluator.find("shop.express")
        history.commit(flag("shop.other"))
        eventually(lambda: base_of(client) == (3, 0))
        assert client._evaluator.find("shop.express") is before


def test_a_base_is_given_up_as_soon_as_there_is_another(
    history: MemoryHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "OVERLAY_MIN", 0)

    with Client.from_source(history.create_source) as client:
        client.wait_ready()
        assert client.snapshot is not None
        # No other object refers to these bytes by this view of them, and an arena has no weak ones.
        content = weakref.ref(client.snapshot.base.content)
        history.commit(flag(on=False))
        # The thread that has folded it waits for the next revision meanwhile.
        eventually(lambda: content() is None)
        assert base_of(client) == (2, 0)


def test_what_cannot_be_folded_is_said_and_tried_again(
    history: MemoryHistory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(snapshots, "OVERLAY_MIN", 0)
    monkeypatch.setattr(keeping, "SAVE_SECONDS_MAX", 0.0)
    tried = asyncio.Semaphore(0)

    def rebase(*_: object) -> None:
        tried.release()
        raise MemoryError("no more of it")

    changed = after(snapshot_at(history), history.commit(flag(on=False)))

    async def fold_thrice() -> None:
        keeper = keeping.SnapshotPersister(rebase, None)
        keeper.on_snapshot(changed)
        running = asyncio.ensure_future(keeper.run())
        for _ in range(3):
            await tried.acquire()
        await ended(running)

    asyncio.run(fold_thrice())
    assert len(troubles(caplog, "not folded: MemoryError('no more of it')")) == 1


# The file


def test_the_file_has_the_newest_revision_soon(history: MemoryHistory, file: SnapshotFile) -> None:
    with Client.from_source(history.create_source, file):
        eventually(lambda: saved(file) == 1)
        history.commit(flag(on=False))
        eventually(lambda: saved(file) == 2)


def test_a_client_goes_on_from_the_file_that_it_wrote(
    history: MemoryHistory, file: SnapshotFile
) -> None:
    with Client.from_source(history.create_source, file) as client:
        eventually(lambda: saved(file) == 1)
        history.commit(flag(on=False))
        eventually(lambda: base_of(client) == (2, 0))
        assert client.snapshot is not None
        assert client.snapshot.base.content.readonly
        assert not client.is_enabled("shop.express")


def test_what_the_file_holds_is_served_before_anything_else(
    history: MemoryHistory, file: SnapshotFile
) -> None:
    with Client.from_source(history.create_source, file):
        eventually(lambda: saved(file) == 1)
    history.fault = StoreUnavailableError("on fire")
    client = Client.from_source(history.create_source, file)
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
    with Client.from_source(history.create_source, file):
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
    with Client.from_source(history.create_source, file) as client:
        eventually(lambda: saved(file) == 1)
        history.commit(flag(on=False))
        client.wait_for(2)
        assert saved(file) == 1
    assert saved(file) == 2


def test_another_history_replaces_the_file(history: MemoryHistory, file: SnapshotFile) -> None:
    for number in range(5):
        history.commit(flag(f"shop.f{number}"))
    with Client.from_source(history.create_source, file):
        eventually(lambda: saved(file) == 6)
    other = MemoryHistory()
    other.commit(flag(on=False))
    with Client.from_source(other.create_source, file) as client:
        # What it has is served until the database says otherwise.
        eventually(lambda: saved(file) == 1)
        assert client.revision == 1
        assert not client.is_enabled("shop.express")


def test_an_older_revision_never_replaces_a_newer_one(
    history: MemoryHistory, file: SnapshotFile
) -> None:
    with Client.from_source(history.create_source, file):
        eventually(lambda: saved(file) == 1)
    lagging = Client.from_source(None, file)
    history.commit(flag(on=False))
    with Client.from_source(history.create_source, file):
        eventually(lambda: saved(file) == 2)
    assert lagging.snapshot is not None
    keeper = keeping.SnapshotPersister(lambda *_: None, file)
    keeper.on_snapshot(lagging.snapshot)
    keeper.save_now()
    assert saved(file) == 2


def test_who_lags_behind_folds_in_memory_and_leaves_the_newer_file(
    history: MemoryHistory, file: SnapshotFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "OVERLAY_MIN", 0)
    lagging = after(snapshot_at(history), history.commit(flag(on=False)))
    history.commit(flag())
    write(file, snapshot_at(history))

    async def keep() -> None:
        bases: asyncio.Queue[Arena] = asyncio.Queue()
        keeper = keeping.SnapshotPersister(lambda _, base, __: bases.put_nowait(base), file)
        keeper.on_snapshot(lagging)
        running = asyncio.ensure_future(keeper.run())
        assert (await bases.get()).tip.revision == 2
        await ended(running)

    asyncio.run(keep())
    assert saved(file) == 3


def test_a_file_is_taken_over_at_any_revision_that_was_passed_through(
    history: MemoryHistory, file: SnapshotFile
) -> None:
    before = snapshot_at(history)
    changes = [history.commit(flag(f"shop.f{number}")) for number in range(4)]
    write(file, before.apply(changes[:2]))

    async def keep() -> None:
        bases: asyncio.Queue[Arena] = asyncio.Queue()
        keeper = keeping.SnapshotPersister(lambda _, base, __: bases.put_nowait(base), file)
        keeper.on_snapshot(before)
        # All at once, as a stream brings them.
        keeper.on_snapshot(before.apply(changes), changes)
        running = asyncio.ensure_future(keeper.run())
        assert (await bases.get()).tip.revision == 3
        await ended(running)

    asyncio.run(keep())


def test_while_another_writes_for_ever_changes_are_folded_all_the_same(
    history: MemoryHistory, file: SnapshotFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "OVERLAY_MIN", 2)
    with Client.from_source(history.create_source, file) as client:
        with file.claim() as mine:
            assert mine
            client.wait_ready()
            for number in range(8):
                history.commit(flag(f"shop.f{number}"))
            eventually(lambda: base_of(client)[0] > 1 and base_of(client)[1] <= 4)
            assert saved(file) == 0
        eventually(lambda: saved(file) == 9)


def test_a_file_of_what_the_database_was_put_back_from_is_replaced(
    history: MemoryHistory, file: SnapshotFile
) -> None:
    for number in range(4):
        history.commit(flag(f"shop.f{number}"))
    write(file, snapshot_at(history))
    # A backup was put back: the same epoch, at an older revision.
    del history.changes[2:]
    with Client.from_source(history.create_source, file) as client:
        assert client.revision == 5
        eventually(lambda: saved(file) == 2)
        assert client.keys() == ["shop.express", "shop.f0"]


@pytest.mark.parametrize("turns", range(6))
def test_a_keeper_that_is_cancelled_while_news_come_ends(
    history: MemoryHistory, file: SnapshotFile, turns: int
) -> None:
    snapshot = snapshot_at(history)
    write(file, snapshot)

    async def cancel() -> None:
        keeper = keeping.SnapshotPersister(lambda *_: None, file)
        keeper.on_snapshot(snapshot)
        keeper._save_after = time.monotonic() + 3600
        running = asyncio.ensure_future(keeper.run())
        await asyncio.sleep(0)
        keeper.on_snapshot(snapshot)
        for _ in range(turns):
            await asyncio.sleep(0)
        await ended(running)

    asyncio.run(cancel())


def test_a_keeper_that_is_cancelled_while_it_fails_to_write_ends(
    history: MemoryHistory, tmp_path: Path
) -> None:
    # Of such a name, there can be the lock but not what is to be renamed.
    file = SnapshotFile(tmp_path / ("n" * 245), ENVIRONMENT, "*")
    snapshot = snapshot_at(history)

    async def cancel() -> None:
        go_on = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            asyncio.get_running_loop().set_default_executor(pool)
            waiting = pool.submit(go_on.wait)
            keeper = keeping.SnapshotPersister(lambda *_: None, file)
            keeper.on_snapshot(snapshot)
            running = asyncio.ensure_future(keeper.run())
            while pool._work_queue.empty():  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0)
            running.cancel()
            await asyncio.sleep(0)
            go_on.set()
            done, _ = await asyncio.wait([running], timeout=PATIENCE_SECONDS)
            assert done, "it does not end"
            assert running.cancelled()
            assert waiting.result()

    asyncio.run(cancel())


def test_a_trouble_is_the_same_whatever_temporary_file_it_is_about(
    history: MemoryHistory,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keeping, "SAVE_SECONDS_MAX", 0.0)
    file = SnapshotFile(tmp_path / ("n" * 245), ENVIRONMENT, "*")
    with Client.from_source(history.create_source, file):
        eventually(lambda: bool(troubles(caplog, "is not written: File name too long")))
    # Tried again when it closed, if not before.
    assert len(troubles(caplog, "is not written")) == 1


def test_clients_that_share_a_file_go_on_from_what_one_of_them_wrote(
    history: MemoryHistory, file: SnapshotFile
) -> None:
    with (
        Client.from_source(history.create_source, file) as one,
        Client.from_source(history.create_source, file) as other,
    ):
        for client in (one, other):
            # One that loaded the last revision itself would have a base of its own.
            client.wait_ready()
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
    with Client.from_source(history.create_source, file) as client:
        eventually(lambda: saved(file) == 1)
        assert client.is_enabled("shop.express")
    assert len(troubles(caplog, "is not served")) == 1
    assert file.read() is not None


def test_a_damaged_file_whose_header_is_sound_is_replaced_at_once(
    history: MemoryHistory, file: SnapshotFile, caplog: pytest.LogCaptureFixture
) -> None:
    with Client.from_source(history.create_source, file):
        eventually(lambda: saved(file) == 1)
    content = file.path.read_bytes()
    file.path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with Client.from_source(history.create_source, file):
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
    with caplog.at_level(logging.INFO), Client.from_source(history.create_source, file) as client:
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
        eventually(lambda: saved(file) == 12)
    assert len(troubles(caplog, "is written again")) == 1


def test_the_path_may_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, history: MemoryHistory, file: SnapshotFile
) -> None:
    with Client.from_source(history.create_source, file):
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


# A path that several clients name


REGIONAL = {**flag(on=False), "region": "eu"}


def left_alone(caplog: pytest.LogCaptureFixture) -> list[str]:
    return troubles(caplog, "is that of others, and is not replaced")


def other_file(file: SnapshotFile, **scope: Any) -> SnapshotFile:
    asked: dict[str, Any] = {"environment": ENVIRONMENT, "region": "*", **scope}
    return SnapshotFile(file.path, **asked)


@pytest.mark.parametrize(
    ("scope", "whose"),
    [
        ({"environment": "staging"}, f"it is of the environment '{ENVIRONMENT}'"),
        ({"namespaces": ("cart.",)}, "its namespaces are others: all"),
        ({"region": "us"}, "it is of the region eu"),
        ({}, "it is of the region eu"),
    ],
    ids=["environment", "namespaces", "region", "all regions"],
)
def test_a_file_of_others_is_said_once_and_left_alone(
    scope: dict[str, Any],
    whose: str,
    history: MemoryHistory,
    file: SnapshotFile,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keeping, "SAVE_SECONDS_MAX", 0.01)
    monkeypatch.setattr(snapshots, "OVERLAY_MIN", 2)
    history.commit(REGIONAL)
    european = other_file(file, region="eu")
    with Client.from_source(lambda: history.create_source("eu"), european):
        eventually(lambda: saved(european) == 2)
    content = file.path.read_bytes()
    mine = MemoryHistory(scope.get("environment", ENVIRONMENT))
    if "environment" not in scope:
        mine = history
    region = scope.get("region", "*")
    with Client.from_source(
        lambda: mine.create_source(region), other_file(file, **scope)
    ) as client:
        for number in range(10):
            mine.commit(flag(f"shop.f{number}"))
        client.wait_for(mine.tip.revision)
        # Changes are folded in memory meanwhile.
        eventually(lambda: base_of(client)[1] <= 2)
        eventually(lambda: client.status().file is not None)
        assert whose in str(client.status().file)
    assert file.path.read_bytes() == content
    assert len(left_alone(caplog)) == 1
    assert whose in left_alone(caplog)[0]
    assert "writer" not in caplog.text


def test_a_file_without_overrides_is_that_of_all_regions(
    history: MemoryHistory, file: SnapshotFile, caplog: pytest.LogCaptureFixture
) -> None:
    for region in ("eu", "*", "us"):
        theirs = other_file(file, region=region)
        revision = history.commit(flag()).revision
        source = partial(history.create_source, region)
        with Client.from_source(source, theirs) as client:
            eventually(lambda theirs=theirs, revision=revision: saved(theirs) == revision)  # type: ignore[misc]
            assert client.status().file is None
    assert left_alone(caplog) == []


def test_a_file_that_lacks_a_region_is_not_called_altered(
    history: MemoryHistory, file: SnapshotFile, caplog: pytest.LogCaptureFixture
) -> None:
    history.commit(REGIONAL)
    with Client.from_source(history.create_source, file):
        eventually(lambda: saved(file) == 2)
    client = Client.from_source(None, other_file(file, region="eu"))
    assert client.keys() == []
    [said] = left_alone(caplog)
    assert "it has not the overrides of the region eu: it is of *" in said
    assert client.status().file == said


def test_clients_of_two_databases_do_not_replace_the_file_in_turns(
    history: MemoryHistory,
    file: SnapshotFile,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keeping, "FOREIGN_AGAIN_SECONDS", 0.01)
    other = MemoryHistory()
    other.commit(flag(on=False))
    with Client.from_source(history.create_source, file) as first:
        eventually(lambda: saved(file) == 1)
        second = Client.from_source(other.create_source, other_file(file))
        with second:
            header = file.read_header()
            eventually(lambda: (file.read_header() or header).tip.epoch == other.tip.epoch)  # type: ignore[union-attr]
            first.wait_for(history.commit(flag()).revision)
            eventually(lambda: first.status().file is not None)
            second.wait_for(other.commit(flag()).revision)
            eventually(lambda: saved(file) == 2)
            assert second.status().file is None
    kept = file.read_header()
    assert kept is not None
    assert kept.tip.epoch == other.tip.epoch
    assert len(left_alone(caplog)) == 1
    assert "such as another database's" in left_alone(caplog)[0]


def test_a_path_that_others_have_left_is_written(
    history: MemoryHistory,
    file: SnapshotFile,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keeping, "SAVE_SECONDS_MAX", 0.01)
    staging = MemoryHistory("staging")
    staging.commit(flag())
    theirs = other_file(file, environment="staging")
    with Client.from_source(staging.create_source, theirs):
        eventually(lambda: saved(theirs) == 1)
    with Client.from_source(history.create_source, file) as client:
        eventually(lambda: client.status().file is not None)
        file.path.unlink()
        history.commit(flag())
        eventually(lambda: saved(file) == 2)
        eventually(lambda: client.status().file is None)
