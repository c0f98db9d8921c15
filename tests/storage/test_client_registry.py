"""The registry: clients that are asked to tell where they stand, and who waits for them."""

import asyncio
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from typing import Any

import pytest
from msgspec.structs import replace
from pymongo import MongoClient
from pymongo.collection import Collection

from flagkit import Client
from flagkit._core.evaluation.evaluator import Staleness
from flagkit._core.source import LIFETIME_SECONDS, Heartbeat, Source
from flagkit._core.storage.client_registry import (
    SHOWN_MAX,
    RegisteredClient,
    build_census_pipeline,
    build_client_filter,
    build_heartbeat_update,
)
from flagkit._core.storage.client_registry import ConvergenceGoal as RegistryGoal
from flagkit._core.storage.database_status import DatabaseStatus
from flagkit._core.storage.layout import CLIENTS
from flagkit.cli.commands.status import RolloutProgress, WaitGoal, wait
from flagkit.client.registration import BEAT_SECONDS_MIN, HeartbeatSender
from flagkit.client.sources import FlagSource
from flagkit.config import resolve_settings
from flagkit.errors import ConfigurationError, StoreError, StoreUnavailableError
from flagkit.testing import MemoryHistory, MemorySource, client_from
from flagkit.writer import Writer
from tests.cli.test_cli import run
from tests.support.forked import SECONDS_MAX, ForkedChild, poll_until
from tests.support.replica_set import MongodReplicaSet

THEME: dict[str, Any] = {
    "key": "shop.theme",
    "variants": {"light": "light", "dark": "dark"},
    "fallthrough": {"serve": "dark"},
}
LAGGARD = Heartbeat(
    instance="0" * 32,
    service="billing",
    host="host-7",
    pid=4711,
    environment="production",
    region="us-east-1",
    epoch="",
    revision=0,
    staleness=None,
)

Start = Callable[..., AbstractContextManager[Client]]


def followed(open_source: Callable[[], Source], service: str | None = "shop") -> Client:
    """Return a client of a source that registers itself."""
    return Client.from_source().follow(FlagSource(lambda: open_source, service=service))


@pytest.fixture
def history() -> MemoryHistory:
    history = MemoryHistory()
    history.commit(THEME)
    return history


def beats(history: MemoryHistory) -> list[Heartbeat]:
    return [*history.heartbeats.values()]


# Clients that register


def test_a_client_that_is_asked_to_tells_where_it_stands(history: MemoryHistory) -> None:
    with closing(followed(lambda: history.create_source("eu"))):
        [beat] = poll_until(lambda: beats(history), bool)
    assert (beat.service, beat.host, beat.pid) == ("shop", socket.gethostname(), os.getpid())
    assert (beat.environment, beat.region) == ("test", "eu")
    assert (beat.epoch, beat.revision) == (history.tip.epoch, 1)
    assert beat.lifetime == LIFETIME_SECONDS


def test_it_tells_of_new_revisions_and_when_it_ends(history: MemoryHistory) -> None:
    with closing(followed(history.create_source)) as client:
        poll_until(lambda: beats(history), bool)
        client.wait_for(history.commit(THEME).revision)
        [beat] = poll_until(lambda: beats(history), lambda found: found[0].revision == 2)
        assert beat.staleness is not None
    assert beats(history) == []


def test_a_client_that_is_not_asked_to_tells_nothing(history: MemoryHistory) -> None:
    with closing(followed(history.create_source, None)) as client:
        client.wait_for(history.commit(THEME).revision)
    assert beats(history) == []


class Deaf(MemorySource):
    """A source that takes no heartbeats."""

    async def send_heartbeat(self, heartbeat: Heartbeat) -> None:  # noqa: ARG002 - as it is said to
        raise StoreError("the user is not allowed to do this (code 13)")


def test_what_cannot_be_registered_is_said_once_and_serves_flags_as_ever(
    history: MemoryHistory, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(followed(lambda: Deaf(history))) as client:
        client.wait_ready()
        poll_until(lambda: caplog.messages, bool)
        client.wait_for(history.commit(THEME).revision)
        assert client.value("shop.theme", default="none") == "dark"
        assert client.status().error is None
    [said] = caplog.messages
    assert said == (
        "this client is not registered: the user is not allowed to do this (code 13);"
        " it serves flags as ever"
    )


class Stalling(MemorySource):
    """A source that takes one heartbeat and never answers to another."""

    async def send_heartbeat(self, heartbeat: Heartbeat) -> None:
        if self._history.heartbeats:
            await asyncio.Event().wait()
        await super().send_heartbeat(heartbeat)


def test_a_registry_that_never_answers_does_not_keep_a_client_from_ending(
    history: MemoryHistory,
) -> None:
    client = followed(lambda: Stalling(history))
    poll_until(lambda: beats(history), bool)
    client.close(SECONDS_MAX)
    assert "flagkit" not in [thread.name for thread in threading.enumerate()]
    assert len(beats(history)) == 1, "it is forgotten by itself"


def test_however_many_revisions_come_there_is_a_heartbeat_a_second_at_most() -> None:
    snapshot = client_from([THEME]).snapshot
    assert snapshot is not None

    class Watch:
        def __init__(self) -> None:
            self.times: list[float] = []

        async def send_heartbeat(self, _: Heartbeat) -> None:
            self.times.append(time.monotonic())

    async def revisions(watch: Watch) -> None:
        registrar = HeartbeatSender("shop", Staleness(), "1")
        registrar.begin(watch)
        while len(watch.times) < 3:
            registrar.on_snapshot(snapshot)
            await asyncio.sleep(0.001)
        await registrar.end()

    watch = Watch()
    asyncio.run(revisions(watch))
    first, second, third, _ = watch.times
    assert min(second - first, third - second) >= BEAT_SECONDS_MIN - 0.01


@pytest.mark.parametrize("name", ["$name", "a b", "x" * 101, "-"])
def test_a_service_has_a_plain_name(name: str) -> None:
    with pytest.raises(ConfigurationError, match="name the service by letters"):
        Client("mongodb://127.0.0.1:1/", environment="production", register=name)


def test_the_name_may_come_from_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAGKIT_REGISTER", "shop/web.1")
    found = resolve_settings("mongodb://127.0.0.1:1/", environment="production")
    assert found.register == "shop/web.1"


# The registry in MongoDB


@pytest.fixture
def survey(mongo_uri: str, database: str) -> Iterator[DatabaseStatus]:
    with DatabaseStatus(mongo_uri, database) as survey:
        yield survey


@pytest.fixture
def start(mongo_uri: str, database: str, writer: Writer) -> Start:
    writer.create(THEME)

    def start(service: str = "shop", **options: Any) -> AbstractContextManager[Client]:
        return Client(
            mongo_uri, environment="production", database=database, register=service, **options
        )

    return start


@pytest.fixture
def add(
    mongo_uri: str, database: str, survey: DatabaseStatus
) -> Iterator[Callable[[Heartbeat], None]]:
    """Give what adds a client to the registry that does not run."""
    with MongoClient[dict[str, Any]](mongo_uri) as mongo:

        def add(heartbeat: Heartbeat) -> None:
            [tip] = survey.read_environments()[1]
            told = replace(heartbeat, epoch=heartbeat.epoch or tip.epoch)
            clients = mongo[database][CLIENTS]
            clients.update_one(build_client_filter(told), build_heartbeat_update(told), upsert=True)

        yield add


@pytest.fixture
def clients(mongo_uri: str, database: str) -> Iterator[Collection[dict[str, Any]]]:
    with MongoClient[dict[str, Any]](mongo_uri, tz_aware=True) as mongo:
        yield mongo[database][CLIENTS]


FORGERIES: dict[str, Callable[[datetime], dict[str, Any]]] = {
    "holds for more than a minute": lambda now: {"until": now + timedelta(seconds=62)},
    "holds forever": lambda _: {"until": datetime(9999, 1, 1, tzinfo=UTC)},
    "holds until a text": lambda _: {"until": "9999-01-01"},
    "long service": lambda _: {"service": "x" * 101},
    "huge host": lambda _: {"host": "x" * 300_000},
    "long region": lambda _: {"region": "x" * 101},
    "long epoch": lambda _: {"epoch": "x" * 101},
    "service is no text": lambda _: {"service": 7},
    "host is an object": lambda _: {"host": {"$ne": 1}},
    "process is no number": lambda _: {"pid": True},
    "process is negative": lambda _: {"pid": -1},
    "revision is a text": lambda _: {"revision": "99"},
    "revision has a fraction": lambda _: {"revision": 0.5},
    "revision is a list": lambda _: {"revision": [99]},
    "staleness is no number": lambda _: {"staleness": float("nan")},
    "staleness is infinite": lambda _: {"staleness": float("inf")},
    "staleness is negative": lambda _: {"staleness": -1.0},
    "time is a number": lambda _: {"time": 7},
    "name is a number": lambda _: {"_id": {"environment": "production", "instance": 7}},
    "name has more": lambda _: {"_id": {"environment": "production", "instance": "x", "y": 1}},
}


def names(clients: list[RegisteredClient]) -> list[tuple[str, str]]:
    return [(client.heartbeat.service, client.heartbeat.region) for client in clients]


@pytest.mark.mongo
class TestRegistry:
    def test_clients_are_there_from_their_start_to_their_close(
        self, start: Start, survey: DatabaseStatus
    ) -> None:
        with start(), start("billing", region="eu-west-1"):
            found = poll_until(survey.read_clients, lambda found: len(found) == 2)
            assert names(found) == [("billing", "eu-west-1"), ("shop", "*")]
            assert names(survey.read_clients("production", "shop")) == [("shop", "*")]
            assert survey.read_clients("staging") == []
            assert all(client.seconds_since_heartbeat >= 0 for client in found)
            assert {client.heartbeat.revision for client in found} == {1}
        assert survey.read_clients() == []

    def test_the_database_forgets_who_is_not_heard_of(
        self, writer: Writer, mongo_uri: str, database: str
    ) -> None:
        assert writer.environment == "production"
        with MongoClient[dict[str, Any]](mongo_uri) as mongo:
            index = mongo[database][CLIENTS].index_information()["until"]
        assert (index["key"], index["expireAfterSeconds"]) == ([("until", 1)], 0)

    def test_who_was_not_heard_of_for_its_lifetime_is_not_there(
        self, writer: Writer, survey: DatabaseStatus, add: Callable[[Heartbeat], None]
    ) -> None:
        assert writer.environment == "production"
        add(replace(LAGGARD, staleness=5.0))
        [client] = survey.read_clients()
        assert client.staleness is not None
        assert client.staleness >= 5
        add(replace(LAGGARD, lifetime=0.0))
        assert survey.read_clients() == []

    def test_what_looks_like_an_expression_is_kept_as_it_is(
        self, writer: Writer, survey: DatabaseStatus, add: Callable[[Heartbeat], None]
    ) -> None:
        assert writer.environment == "production"
        add(replace(LAGGARD, host="$$NOW"))
        assert survey.read_clients()[0].heartbeat.host == "$$NOW"

    @pytest.mark.parametrize("name", FORGERIES)
    def test_heartbeats_that_no_client_writes_are_ignored(
        self,
        name: str,
        writer: Writer,
        survey: DatabaseStatus,
        add: Callable[[Heartbeat], None],
        clients: Collection[dict[str, Any]],
    ) -> None:
        add(LAGGARD)
        [honest] = survey.read_clients(writer.environment)
        now = datetime.now(UTC)
        clients.database.command("collMod", CLIENTS, validationLevel="off")
        forged = clients.find_one({}, {"_id": False}) or {}
        identity = {"environment": "production", "instance": "forged"}
        clients.insert_one(forged | {"_id": identity, "revision": 99} | FORGERIES[name](now))
        assert [found.heartbeat for found in survey.read_clients()] == [honest.heartbeat]
        assert survey.read_census(writer.environment, "billing").count == 1
        goal = RegistryGoal("production", None, honest.heartbeat.epoch, 0)
        assert survey.read_laggards(goal)[0] == 1

    def test_however_many_clients_there_are_few_are_read_and_all_are_counted(
        self,
        writer: Writer,
        survey: DatabaseStatus,
        add: Callable[[Heartbeat], None],
        clients: Collection[dict[str, Any]],
    ) -> None:
        assert writer.environment == "production"
        add(LAGGARD)
        one = clients.find_one() or {}
        clients.insert_many(
            one | {"_id": {"environment": "production", "instance": str(i)}, "planted": "x" * 999}
            for i in range(SHOWN_MAX + 9)
        )
        found = survey.read_census("production")
        assert (len(found.clients), found.count, found.omitted_count) == (
            SHOWN_MAX,
            SHOWN_MAX + 10,
            10,
        )
        reached, behind = survey.read_laggards(RegistryGoal("production", None, one["epoch"], 7))
        assert (reached, len(behind.clients), behind.count) == (0, SHOWN_MAX, SHOWN_MAX + 10)
        (facets,) = clients.aggregate(build_census_pipeline("production", None))
        assert "planted" not in str(facets)

    def test_heartbeats_outside_of_the_time_that_counts_are_not_even_looked_at(
        self, writer: Writer, add: Callable[[Heartbeat], None], clients: Collection[dict[str, Any]]
    ) -> None:
        assert writer.environment == "production"
        add(LAGGARD)
        one = clients.find_one() or {}
        forever = one | {"until": datetime(9999, 1, 1, tzinfo=UTC)}
        clients.insert_many(
            forever | {"_id": {"environment": "production", "instance": str(i)}} for i in range(500)
        )
        command = {
            "aggregate": CLIENTS,
            "pipeline": build_census_pipeline(None, None),
            "cursor": {},
        }
        told = clients.database.command("explain", command, verbosity="executionStats")
        examined = re.findall(r"'totalDocsExamined': ([0-9]+)", str(told))
        assert examined == ["1"]

    # 3.12 on: forking with threads is what this is about.
    @pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
    def test_a_forked_child_registers_itself(self, start: Start, survey: DatabaseStatus) -> None:
        with start() as client:
            client.wait_ready()
            poll_until(survey.read_clients, lambda found: len(found) == 1)

            def stay(says: Connection) -> None:
                client.wait_for(2)
                says.send("done")
                client.close()

            with ForkedChild(stay) as child:
                found = poll_until(survey.read_clients, lambda found: len(found) == 2)
                assert {beat.heartbeat.pid for beat in found} == {os.getpid(), child.pid}


# flagkit status, and flagkit rollout wait


@pytest.mark.mongo
class TestCommands:
    @pytest.fixture(autouse=True)
    def _variables(self, mongo_uri: str, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FLAGKIT_URI", mongo_uri)
        monkeypatch.setenv("FLAGKIT_DATABASE", database)

    def test_status_tells_of_them(self, start: Start, survey: DatabaseStatus) -> None:
        with start("shop", region="eu-west-1"):
            poll_until(survey.read_clients, bool)
            result = ask("status")
            assert f" shop     eu-west-1  {socket.gethostname()}" in result.stdout
            found = json.loads(ask("status", "--output", "json").stdout)["clients"]
        assert [(client["service"], client["revision"]) for client in found] == [("shop", 1)]
        assert found[0]["pid"] == os.getpid()

    def test_waiting_ends_when_all_have_the_revision(
        self, start: Start, writer: Writer, survey: DatabaseStatus
    ) -> None:
        with start(), start("billing"):
            poll_until(survey.read_clients, lambda found: len(found) == 2)
            revision = str(writer.pause("shop.theme", reason="incident 7").revision)
            result = ask("rollout", "wait", "--revision", revision, "--environment", "production")
        assert result.returncode == 0, result.stderr
        assert result.stdout == "2 clients in production at revision 2 or later\n"
        assert "revision 2" in result.stderr
        assert "2/2 clients" in result.stderr

    def test_laggards_are_named(
        self, start: Start, survey: DatabaseStatus, add: Callable[[Heartbeat], None]
    ) -> None:
        wait = ("rollout", "wait", "--revision", "1", "--environment", "production")
        with start():
            poll_until(survey.read_clients, bool)
            add(LAGGARD)
            result = ask(*wait, "--timeout", "0")
            assert result.returncode == 1
            assert " billing  us-east-1  host-7  4711 " in result.stdout
            assert "never current" in result.stdout
            assert " shop " not in result.stdout
            assert result.stderr.endswith(
                "Error: 1 of 2 clients in production did not get to revision 1 within 0 s;"
                " the head is at 1\n"
            )
            result = ask(*wait, "--timeout", "0", "--output", "json")
            assert result.returncode == 1
            found = json.loads(result.stdout)
            assert (found["reached"], found["clients"], found["head"]) == (False, 2, 1)
            assert [laggard["pid"] for laggard in found["laggards"]] == [4711]
            assert ask(*wait, "--service", "shop").returncode == 0

    def test_revisions_of_another_epoch_do_not_count(
        self, writer: Writer, add: Callable[[Heartbeat], None]
    ) -> None:
        assert writer.environment == "production"
        add(replace(LAGGARD, epoch="f" * 32, revision=99))
        result = ask(
            *("rollout", "wait", "--revision", "1", "--environment", "production"),
            *("--timeout", "0"),
        )
        assert result.returncode == 1
        assert "99 of another epoch" in result.stdout

    def test_where_nobody_is_registered_nothing_is_shown_to_have_arrived(
        self, writer: Writer
    ) -> None:
        assert writer.environment == "production"
        result = ask(
            *("rollout", "wait", "--revision", "0", "--environment", "production"),
            *("--service", "shop", "--timeout", "0"),
        )
        assert result.returncode == 1
        assert "no client of shop is registered in production" in result.stderr

    def test_a_heartbeat_that_a_reader_forges_neither_ends_a_wait_nor_holds_it_up(
        self,
        start: Start,
        survey: DatabaseStatus,
        add: Callable[[Heartbeat], None],
        clients: Collection[dict[str, Any]],
    ) -> None:
        add(LAGGARD)
        forever = {"until": datetime(9999, 1, 1, tzinfo=UTC)}
        clients.update_one({}, {"$set": forever | {"revision": 99, "service": "shop"}})
        wait = ("rollout", "wait", "--revision", "1", "--environment", "production")
        result = ask(*wait, "--service", "shop", "--timeout", "0")
        assert (result.returncode, "no client of shop is registered" in result.stderr) == (1, True)
        clients.update_one({}, {"$set": {"revision": 0}})
        with start():
            poll_until(survey.read_clients, bool)
            assert ask(*wait, "--service", "shop").returncode == 0

    def test_clients_that_are_not_listed_are_counted(
        self, writer: Writer, add: Callable[[Heartbeat], None], clients: Collection[dict[str, Any]]
    ) -> None:
        assert writer.environment == "production"
        add(LAGGARD)
        one = clients.find_one() or {}
        clients.insert_many(
            one | {"_id": {"environment": "production", "instance": str(i)}}
            for i in range(SHOWN_MAX + 9)
        )
        assert "10 other clients are not listed." in ask("status").stdout
        told = json.loads(ask("status", "--output", "json").stdout)
        assert (len(told["clients"]), told["clients_left_out"]) == (SHOWN_MAX, 10)
        wait = ("rollout", "wait", "--revision", "1", "--environment", "production")
        result = ask(*wait, "--timeout", "0")
        assert "10 other clients are not listed." in result.stdout
        assert f"Error: {SHOWN_MAX + 10} of {SHOWN_MAX + 10} clients" in result.stderr
        told = json.loads(ask(*wait, "--timeout", "0", "--output", "json").stdout)
        assert (len(told["laggards"]), told["laggards_left_out"]) == (SHOWN_MAX, 10)

    def test_an_environment_that_is_not_there_is_said_to_be_none(self, writer: Writer) -> None:
        assert writer.environment == "production"
        result = ask("rollout", "wait", "--revision", "1", "--environment", "prod")
        assert result.returncode == 1
        assert "'prod' is not in the database" in result.stderr


@pytest.mark.mongo
@pytest.mark.timeout(180)
def test_waiting_outlasts_a_server_that_is_away_for_a_while() -> None:
    with (
        MongodReplicaSet() as members,
        Writer(members.uri(), "production", actor="tester") as writer,
        DatabaseStatus(members.uri("serverSelectionTimeoutMS=100"), "flagkit") as survey,
    ):
        writer.create_environment()
        with Client(members.uri(), environment="production", register="shop") as client:
            poll_until(survey.read_clients, bool)
            revision = writer.create(THEME).revision
            client.wait_for(revision)
            [member] = members.members
            member.kill()
            found: list[RolloutProgress] = []
            goal = WaitGoal("production", None, revision)
            waiting = threading.Thread(
                target=lambda: found.append(wait(survey, goal, 60.0, lambda _: None))
            )
            waiting.start()
            members.heal()
            waiting.join(60)
        assert [progressed.is_reached for progressed in found] == [True]


def test_a_server_that_stays_away_is_said_to_be() -> None:
    nowhere = "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=50"
    with DatabaseStatus(nowhere, "flagkit") as survey, pytest.raises(StoreUnavailableError):
        wait(survey, WaitGoal("production", None, 1), 0.2, lambda _: None)


def ask(*arguments: str) -> Any:
    variables = {name: os.environ[name] for name in ("FLAGKIT_URI", "FLAGKIT_DATABASE")}
    return run(*arguments, **variables)
