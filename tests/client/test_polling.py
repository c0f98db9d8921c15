"""Polling: databases without change streams, which are asked again and again instead."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from flagkit._core.storage.layout import FLAGS, HEADS, LEDGER, MEMBERS, PAGES, SEGMENTS
from flagkit.client.client import Client
from flagkit.client.refresher import RefreshState
from flagkit.testing.embedded import _FLAGS
from flagkit.writer import Writer
from tests.support.replica_set import MongodProcess, MongodReplicaSet

pytestmark = pytest.mark.mongo

THEME: dict[str, Any] = {
    "key": "shop.theme",
    "variants": {"dark": "dark", "light": "light"},
    "fallthrough": {"serve": "dark"},
}
BETA = {"key": "beta", "included": ["ada"]}
Mongo = MongoClient[dict[str, Any]]


def copied(source: Mongo, target: Mongo, database: str) -> None:
    """Put what a database has in the place of what another one has, as a nightly copy does."""
    for name in (SEGMENTS, MEMBERS, PAGES, FLAGS, LEDGER, HEADS):
        target[database][name].delete_many({})
        documents = list(source[database][name].find())
        if documents:
            target[database][name].insert_many(documents)


@pytest.fixture
def standalone(tmp_path: Path) -> Iterator[MongodProcess]:
    """A server that is no replica set."""
    flags = [*_FLAGS]
    del flags[flags.index("--replSet") : flags.index("--replSet") + 2]
    member = MongodProcess(tmp_path / "standalone", flags, "eu", proxied=False)
    with member.proxy:
        try:
            member.start()
            member.wait_listening()
            yield member
        finally:
            member.kill()


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if "no change streams here" in record.getMessage()
    ]


def test_a_standalone_server_is_polled_and_that_is_said_once(
    standalone: MongodProcess,
    writer: Writer,
    mongo_uri: str,
    database: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    writer.create_segment(BETA)
    commit = writer.create(THEME)
    uri = f"mongodb://{standalone.host}/"
    with Mongo(mongo_uri) as source, Mongo(uri) as target:
        copied(source, target, database)
        with Client(uri, environment="production", database=database, max_staleness=3) as client:
            client.wait_for(commit.revision)
            assert client.value("shop.theme", default="none") == "dark"
            for variant in ("light", "dark", "light"):
                commit = writer.update({**THEME, "fallthrough": {"serve": variant}})
                copied(source, target, database)
                client.wait_for(commit.revision)
                assert client.value("shop.theme", default="none") == variant
            with writer.change() as change:
                for i in range(600):
                    change.create({**THEME, "key": f"many.f{i}"})
            assert change.commit is not None
            copied(source, target, database)
            client.wait_for(change.commit.revision)
            assert client.value("many.f7", default="none") == "dark"
            assert client.status().state in {RefreshState.POLLING, RefreshState.CATCHING_UP}
    [words] = said(caplog)
    assert "this MongoDB is not a replica set" in words


def test_a_user_who_may_not_watch_polls(caplog: pytest.LogCaptureFixture) -> None:
    with MongodReplicaSet(password="of-root") as members:
        with Mongo(members.uri()) as mongo:
            readable = {
                "resource": {"db": "flagkit", "collection": ""},
                "actions": ["find"],
            }
            mongo["flagkit"].command("createRole", "finder", privileges=[readable], roles=[])
            mongo["flagkit"].command("createUser", "service", pwd="of-service", roles=["finder"])
        uri = members.uri("authSource=flagkit", "service:of-service")
        with Writer(members.uri(), "production", actor="tester") as writer:
            writer.create_environment()
            commit = writer.create(THEME)
            with Client(uri, environment="production", max_staleness=3) as client:
                client.wait_for(commit.revision)
                commit = writer.update({**THEME, "fallthrough": {"serve": "light"}})
                client.wait_for(commit.revision)
                assert client.value("shop.theme", default="none") == "light"
    [words] = said(caplog)
    assert "the user is not allowed to do this" in words
    assert "of-service" not in caplog.text
