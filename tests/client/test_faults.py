"""Faults, on real servers: whatever happens, clients answer, and are current soon after it ends.

The long forms of these, and failovers under load, are soaks: `python -m tests.soak faults`.
"""

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from pymongo import WriteConcern
from pymongo.errors import AutoReconnect

from flagkit import Client, ErrorCode
from flagkit._core.model.changes import build_genesis_tip, build_next_change
from flagkit._core.storage.documents import encode_head, encode_ledger
from flagkit._core.storage.layout import COLLECTIONS
from flagkit.client.refresher import RefreshIntervals, RefreshState, Thresholds
from flagkit.errors import NotReadyError
from flagkit.writer import Writer
from tests.support.followers import (
    ENVIRONMENT,
    FLAG_COUNT,
    FollowerProcess,
    RecordingClient,
    assert_current,
    build_followed_flag,
    identify_revision,
    run_callers,
)
from tests.support.replica_set import Mongo, MongodReplicaSet, wait_until
from tests.support.tcp_proxy import TcpProxy

pytestmark = pytest.mark.mongo

OUTAGE_SECONDS = float(os.environ.get("FLAGKIT_OUTAGE_SECONDS", "1"))
"""How long outages last; a minute in the soak."""
SOON_SECONDS = 10.0
"""The bound where a client notices by itself that something was amiss, as by a broken read."""
AFTER_SECONDS = SOON_SECONDS + min(Thresholds().max_seconds, 2 * OUTAGE_SECONDS)
"""The bound after an outage: clients that met it have backed off, each time for longer."""
IS_SHORT = OUTAGE_SECONDS < 10
HEAD_SECONDS = 1.0 if IS_SHORT else RefreshIntervals().head
"""How often clients ask the primary for the head, where only that tells that something is amiss."""
LATER_SECONDS = SOON_SECONDS + HEAD_SECONDS
"""The bound there."""

Record = Callable[[str, object], None]
Documents = dict[str, list[dict[str, Any]]]


class Scene:
    """An environment with some flags, its writer and its clients, closed with their block."""

    def __init__(self, members: MongodReplicaSet) -> None:
        self.members = members
        self.database = f"test-{uuid.uuid4().hex}"
        self._stack = contextlib.ExitStack()
        self.writer = self._writer(members.uri())
        self.mongo: Mongo = self._stack.enter_context(members.mongo())
        """A client past the proxies, of the member that is the primary at the beginning."""
        self._threads = {*threading.enumerate()}
        self.recoveries: list[tuple[float, float]] = []
        """How long it took to be current, each time, and the bound, in seconds."""
        self._edits = 0

    def change(self, count: int = 1) -> int:
        """Make some revisions; return the last one."""
        revision = 0
        for _ in range(count):
            self._edits += 1
            serve = "off" if self._edits // FLAG_COUNT % 2 else "on"
            changed = build_followed_flag(
                self._edits % FLAG_COUNT, serve, description=f"edit {self._edits}"
            )
            revision = self.writer.update(changed).revision
        return revision

    def client(self, options: str = "", user: str = "", **more: Any) -> RecordingClient:
        """Return a client that watches, connected with some options and as some user."""
        client = RecordingClient(self.members.uri(options, user), self.database, **more)
        self._stack.enter_context(client)
        wait_until(lambda: client.status().state is RefreshState.WATCHING, "the watch")
        return client

    def watchful(self, options: str) -> RecordingClient:
        """Return a client that asks for the head every HEAD_SECONDS."""
        return self.client(options, max_staleness=3 * HEAD_SECONDS)

    def write_past_the_proxies(self) -> None:
        """Let the writer reach the primary, whatever becomes of the ways to it."""
        self.writer = self._writer(self.members.uri(member=self.members.primary()))

    def outlast(self) -> None:
        """Let what is amiss last."""
        time.sleep(OUTAGE_SECONDS)

    def assert_current(self, client: Client | FollowerProcess, seconds: float) -> None:
        """Hold a client to being current so soon, and to what the database holds."""
        if isinstance(client, FollowerProcess):
            took = client.assert_current(self.writer, seconds)
        else:
            took = assert_current(client, self.writer, seconds)
        self.recoveries.append((took, seconds))

    def dumped(self) -> Documents:
        """Return a backup."""
        database = self.mongo[self.database]
        names = database.list_collection_names()
        return {name: [*database[name].find()] for name in names}

    def restore(self, backup: Documents) -> None:
        """Put a backup in the place of what is there."""
        self.mongo.drop_database(self.database)
        for name, documents in backup.items():
            collection = self.mongo[self.database][name]
            if COLLECTIONS[name].indexes:
                collection.create_indexes([*COLLECTIONS[name].indexes])
            if documents:
                collection.insert_many(documents)

    def _writer(self, uri: str) -> Writer:
        writer = Writer(uri, ENVIRONMENT, actor="tester", database=self.database)
        return self._stack.enter_context(writer)

    def __enter__(self) -> Self:
        with self._stack as stack:
            self.writer.create_environment()
            with self.writer.change() as change:
                for number in range(FLAG_COUNT):
                    change.create(build_followed_flag(number))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        # Whatever is still amiss, and whatever they were doing, clients have ended.
        left = {*threading.enumerate()} - self._threads
        assert [each for each in left if each.name == "flagkit"] == []


@pytest.fixture(scope="module")
def one_member() -> Iterator[MongodReplicaSet]:
    with MongodReplicaSet(small_oplog=True) as members:
        yield members


@pytest.fixture(scope="module")
def three_members() -> Iterator[MongodReplicaSet]:
    with MongodReplicaSet(3) as members:
        yield members


@pytest.fixture
def single(one_member: MongodReplicaSet, record_property: Record) -> Iterator[Scene]:
    one_member.heal()
    with Scene(one_member) as scene:
        yield scene
    record_property("recoveries", scene.recoveries)


@pytest.fixture
def triple(three_members: MongodReplicaSet, record_property: Record) -> Iterator[Scene]:
    three_members.heal()
    with Scene(three_members) as scene:
        yield scene
    record_property("recoveries", scene.recoveries)


@contextlib.contextmanager
def cut_off(scene: Scene) -> Generator[None]:
    """Keep the clients of a single member away from it, and let the writer go on."""
    proxy = scene.members.members[0].proxy
    scene.write_past_the_proxies()
    proxy.cut()
    yield
    proxy.heal()


class TestConnections:
    def test_a_server_that_was_killed_comes_back_on_another_port(self, single: Scene) -> None:
        client = single.client()
        with run_callers(client):
            member = single.members.primary()
            member.kill()
            single.outlast()
            before = member.port
            member.start()
            assert member.port != before
            single.change()
            single.assert_current(client, AFTER_SECONDS)
        assert len(client.bases) == 1

    @pytest.mark.parametrize("fault", [TcpProxy.cut, TcpProxy.stall], ids=["cut", "stalled"])
    def test_a_way_that_is_closed_for_a_while(
        self, single: Scene, fault: Callable[[TcpProxy], None]
    ) -> None:
        client = single.client()
        proxy = single.members.members[0].proxy
        single.write_past_the_proxies()
        with run_callers(client):
            fault(proxy)
            revision = single.change(3)
            with pytest.raises(NotReadyError):
                client.wait_for(revision, timeout=OUTAGE_SECONDS)
            assert client.staleness >= OUTAGE_SECONDS
            proxy.heal()
            single.assert_current(client, AFTER_SECONDS)
        assert len(client.bases) == 1

    @pytest.mark.parametrize(
        "fault",
        [
            lambda proxy: proxy.delay(0.05),
            lambda proxy: proxy.reset(),
            lambda proxy: proxy.break_answers(5),
        ],
        ids=["slow", "reset", "broken in mid-message"],
    )
    def test_a_way_that_is_bad_does_not_have_to_be_mended(
        self, single: Scene, fault: Callable[[TcpProxy], None]
    ) -> None:
        client = single.client()
        single.write_past_the_proxies()
        with run_callers(client):
            fault(single.members.members[0].proxy)
            for _ in range(5):
                single.change()
                single.assert_current(client, SOON_SECONDS)

    def test_a_client_of_a_server_that_never_answers_has_defaults_until_it_does(
        self, single: Scene
    ) -> None:
        proxy = single.members.members[0].proxy
        single.write_past_the_proxies()
        proxy.stall()
        uri = single.members.uri()
        with Client(uri, environment=ENVIRONMENT, database=single.database) as client:
            with pytest.raises(NotReadyError):
                client.wait_ready(timeout=OUTAGE_SECONDS)
            found = client.evaluate("shop.flag-0", default="default")
            assert (found.value, found.error_code) == ("default", ErrorCode.PROVIDER_NOT_READY)
            proxy.heal()
            single.assert_current(client, AFTER_SECONDS)

    def test_a_client_that_starts_without_a_server_serves_its_file_until_there_is_one(
        self, single: Scene, tmp_path: Path
    ) -> None:
        path = tmp_path / "flags"
        single.client(snapshot_path=path).close()
        with cut_off(single):
            single.change()
            client = RecordingClient(single.members.uri(), single.database, snapshot_path=path)
            assert client.is_enabled("shop.flag-0")
            with client, run_callers(client):
                single.outlast()
                single.members.members[0].proxy.heal()
                single.assert_current(client, AFTER_SECONDS)
        assert client.bases == []

    def test_a_password_that_is_changed_and_changed_back(self, record_property: Record) -> None:
        with MongodReplicaSet(password="of-root") as members, Scene(members) as scene:
            scene.write_past_the_proxies()
            readable = {"role": "read", "db": scene.database}
            scene.mongo.admin.command("createUser", "reader", pwd="old-secret", roles=[readable])
            # So often the driver looks again at a member that did not let it in.
            options = "heartbeatFrequencyMS=500" if IS_SHORT else ""
            client = scene.client(options, user="reader:old-secret")
            proxy = members.members[0].proxy
            with run_callers(client):
                scene.mongo.admin.command("updateUser", "reader", pwd="new-secret")
                proxy.reset()
                revision = scene.change()
                with pytest.raises(NotReadyError, match=r"not let in|Authentication failed"):
                    client.wait_for(revision, timeout=OUTAGE_SECONDS)
                assert "secret" not in str(client.status())
                scene.mongo.admin.command("updateUser", "reader", pwd="old-secret")
                # One attempt more may be in vain, until the driver has looked again.
                scene.assert_current(client, AFTER_SECONDS + SOON_SECONDS)
            record_property("recoveries", scene.recoveries)


class TestHistories:
    def test_an_oplog_that_was_rolled_over_while_nobody_looked(self, single: Scene) -> None:
        client = single.client()
        with run_callers(client):
            with cut_off(single):
                single.change(3)
                single.members.roll_oplog()
            single.assert_current(client, SOON_SECONDS)
        assert len(client.bases) == 1

    def test_a_ledger_that_was_pruned_up_to_the_head(self, single: Scene) -> None:
        client = single.client()
        with run_callers(client):
            with cut_off(single):
                single.change(3)
                single.mongo[single.database].ledger.delete_many({})
            single.assert_current(client, SOON_SECONDS)
        assert len(client.bases) == 2

    @pytest.mark.parametrize("everything", [False, True], ids=["the heads", "all"])
    def test_collections_that_are_dropped_and_restored(
        self, single: Scene, everything: bool
    ) -> None:
        client = single.client()
        with run_callers(client):
            backup = single.dumped()
            if everything:
                single.restore(backup)
            else:
                single.mongo[single.database].heads.drop()
                single.mongo[single.database].heads.insert_many(backup["heads"])
            single.change()
            single.assert_current(client, SOON_SECONDS)

    def test_an_older_backup_that_was_restored_with_no_word_said(self, single: Scene) -> None:
        client = single.client()
        backup = single.dumped()
        with run_callers(client, histories=True):
            single.change(3)
            single.assert_current(client, SOON_SECONDS)
            with cut_off(single):
                single.restore(backup)
            single.assert_current(client, LATER_SECONDS)
            assert client.revision == 1
            # Another history of as many revisions, with nothing to tell it from the first but this.
            single.change(3)
            single.assert_current(client, SOON_SECONDS)

    def test_an_older_backup_that_was_restored_as_another_history(self, single: Scene) -> None:
        client = single.client()
        backup = single.dumped()
        with run_callers(client, histories=True):
            single.change(3)
            single.assert_current(client, SOON_SECONDS)
            single.restore(declared(backup, single.writer))
            single.change()
            single.assert_current(client, LATER_SECONDS)

    def test_a_file_of_another_cluster(self, single: Scene, tmp_path: Path) -> None:
        path = tmp_path / "flags"
        with Scene(single.members) as other:
            other.change(5)
            other.client(snapshot_path=path).close()
        client = single.client(snapshot_path=path)
        with run_callers(client, histories=True):
            single.assert_current(client, SOON_SECONDS)

    def test_an_edit_past_the_writer_is_not_served_and_ends_with_its_mending(
        self, single: Scene
    ) -> None:
        client = single.client()
        flags = single.mongo[single.database].flags
        with run_callers(client):
            with cut_off(single):
                revision = single.change(3)
                single.mongo[single.database].ledger.delete_many({})
                found = flags.find_one({"_id.key": "shop.flag-0"})
                assert found is not None
                flags.update_one({"_id": found["_id"]}, {"$set": {"hash": "0" * 16}})
            with pytest.raises(NotReadyError, match="past the writer"):
                client.wait_for(revision, timeout=OUTAGE_SECONDS)
            flags.replace_one({"_id": found["_id"]}, found)
            single.assert_current(client, AFTER_SECONDS)


def declared(backup: Documents, writer: Writer) -> Documents:
    """Return a backup as another history, of a new epoch, that has the same revisions."""
    tip = build_genesis_tip(ENVIRONMENT, uuid.uuid4().hex, writer.store.read_tip().time)
    changes = []
    for change in writer.store.iter_changes():
        if change.revision > len(backup["ledger"]):
            break
        changes.append(build_next_change(tip, change.request, change.tip.time, change.policies))
        tip = changes[-1].tip
    head = encode_head(tip, changes[-1])
    return backup | {"heads": [head], "ledger": [*map(encode_ledger, changes)]}


class TestProcesses:
    def test_a_process_that_is_suspended_for_a_while(self, single: Scene) -> None:
        with FollowerProcess(single.members.uri(), single.database) as follower:
            single.assert_current(follower, SOON_SECONDS)
            follower.suspend()
            single.change(3)
            single.outlast()
            follower.resume()
            single.assert_current(follower, SOON_SECONDS)

    @pytest.mark.parametrize("seconds", [-3600, 3600], ids=["back", "on"])
    def test_a_clock_that_is_stepped_by_an_hour(self, single: Scene, seconds: int) -> None:
        with FollowerProcess(single.members.uri(), single.database) as follower:
            single.assert_current(follower, SOON_SECONDS)
            follower.step_clock(seconds)
            single.change(3)
            single.assert_current(follower, SOON_SECONDS)
            assert 0 < follower.staleness() < abs(seconds)

    def test_a_disk_that_is_full_costs_the_file_alone(self, single: Scene, tmp_path: Path) -> None:
        path = tmp_path / "flags"
        options = ["--file", str(path), "--file-bytes-max", "100"]
        with FollowerProcess(single.members.uri(), single.database, options=options) as follower:
            single.change(3)
            single.assert_current(follower, SOON_SECONDS)
        assert not path.exists()


PREFERENCES = ["primary", "secondaryPreferred", "nearest"]


class TestMembers:
    def test_a_primary_that_is_killed(self, triple: Scene) -> None:
        clients = [triple.client(f"readPreference={each}") for each in PREFERENCES]
        with run_callers(*clients):
            triple.members.primary().kill()
            triple.change(3)
            for client in clients:
                triple.assert_current(client, SOON_SECONDS)
        assert [len(client.bases) for client in clients] == [1, 1, 1]

    def test_a_write_that_a_failover_rolls_back_is_seen_by_nobody(self, triple: Scene) -> None:
        clients = [triple.client(f"readPreference={each}") for each in PREFERENCES]
        members = triple.members
        members.spread()
        with run_callers(*clients):
            tip = triple.writer.store.read_tip()
            lost = build_next_change(tip, "lost", tip.time, [])
            # It takes it as long as it does not know that it is alone, which it finds in a second.
            matched = 0
            for _ in range(5):
                primary = members.primary()
                with members.mongo(primary) as mongo, contextlib.suppress(AutoReconnect):
                    heads = mongo[triple.database].heads
                    alone = heads.with_options(write_concern=WriteConcern(1, j=True))
                    members.part(primary)
                    head = encode_head(lost.tip, lost)
                    matched = alone.replace_one({"_id": ENVIRONMENT}, head).matched_count
                    break
                members.heal()
            assert matched == 1
            triple.change(2)
            members.heal()
            triple.change()
            for client in clients:
                triple.assert_current(client, SOON_SECONDS)
        assert triple.writer.reader.verify() == []
        for client in clients:
            assert identify_revision(lost.tip) not in client.published

    def test_a_secondary_that_is_cut_off_from_the_others(self, triple: Scene) -> None:
        away = triple.members.secondaries()[0]
        client = triple.watchful(near(away.region))
        with run_callers(client):
            triple.members.part(away)
            triple.change(3)
            triple.assert_current(client, LATER_SECONDS)

    def test_a_lagging_secondary_that_is_asked_after_a_fresh_one(self, triple: Scene) -> None:
        fresh, late = triple.members.secondaries()
        triple.members.lag(late, 3600)
        tags = f"readPreferenceTags=region:{fresh.region}&{near(late.region)}"
        client = triple.watchful(tags)
        with run_callers(client):
            triple.change(3)
            triple.assert_current(client, SOON_SECONDS)
            fresh.proxy.keep_out([os.getpid()])
            triple.change(3)
            triple.assert_current(client, LATER_SECONDS)
        triple.members.lag(late, 0)

    def test_a_secondary_that_accepts_and_never_answers(self, triple: Scene) -> None:
        away = triple.members.secondaries()[0]
        client = triple.watchful(near(away.region))
        with run_callers(client):
            away.suspend()
            triple.change(3)
            triple.assert_current(client, LATER_SECONDS)

    def test_a_primary_that_answers_members_and_never_clients(self, triple: Scene) -> None:
        away = triple.members.secondaries()[0]
        client = triple.watchful(near(away.region))
        triple.write_past_the_proxies()
        with run_callers(client):
            triple.members.primary().proxy.ignore([os.getpid()])
            # Asking the primary in vain must not hold up what the secondary brings.
            triple.outlast()
            triple.change(3)
            triple.assert_current(client, SOON_SECONDS)
            assert client.staleness >= OUTAGE_SECONDS
        # The writer would say goodbye to it for long.
        triple.members.heal()

    def test_a_region_that_is_lost_and_comes_back(self, triple: Scene) -> None:
        away = triple.members.secondaries()[0]
        client = triple.client(near(away.region))
        with run_callers(client):
            away.kill()
            triple.change(3)
            triple.assert_current(client, SOON_SECONDS)
            triple.members.heal()
            triple.change(3)
            triple.assert_current(client, SOON_SECONDS)

    def test_a_region_that_is_cut_off_serves_on_says_so_and_is_told_all(
        self, triple: Scene
    ) -> None:
        away = triple.members.secondaries()[0]
        triple.write_past_the_proxies()
        triple.writer.create(build_followed_flag(0, "off", region=away.region))
        client = triple.client(region=away.region)
        triple.assert_current(client, SOON_SECONDS)
        with run_callers(client):
            for member in triple.members.members:
                member.proxy.keep_out([os.getpid()])
            revision = triple.change(3)
            with pytest.raises(NotReadyError):
                client.wait_for(revision, timeout=OUTAGE_SECONDS)
            assert client.evaluate("shop.flag-0", default=None).value is False
            assert client.status().error is not None
            assert client.staleness >= OUTAGE_SECONDS
            for member in triple.members.members:
                member.proxy.heal()
            triple.assert_current(client, AFTER_SECONDS)
        assert len(client.bases) == 1


def near(region: str) -> str:
    """Return the options of a client that reads in a region, and elsewhere if it must."""
    return f"readPreference=nearest&readPreferenceTags=region:{region}&readPreferenceTags="
