"""What tests share: one real MongoDB for the whole run, in it an own environment for each test."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from pymongo import MongoClient
from pymongo.database import Database

from flagkit._core.storage.provision import provision_database
from flagkit._core.storage.validation import VALIDATORS
from flagkit.cli import wait_notice
from flagkit.testing.embedded import EmbeddedMongo
from flagkit.writer import Writer

# A shared, noisy machine: a slow example is no failure.
settings.register_profile("flagkit", deadline=None)
settings.load_profile("flagkit")
# For the same reason a slow answer shall not add a line to what commands print in this process.
wait_notice.SILENCE_SECONDS = 20.0


@pytest.fixture(scope="session")
def mongo_uri() -> Iterator[str]:
    with EmbeddedMongo() as server:
        yield server.uri


_emptied: list[str] = []
"""Databases that have all collections and no document, for the next test: making them takes most of
what many a test takes."""


@pytest.fixture(scope="session")
def _mongo(mongo_uri: str) -> Iterator[MongoClient[dict[str, Any]]]:
    """Return the client that empties databases. Connecting again takes as long as emptying one.

    It polls the server, so that it starts no thread and opens no connection during a later test.
    """
    with MongoClient[dict[str, Any]](mongo_uri, serverMonitoringMode="poll") as mongo:
        mongo.admin.command("ping")
        yield mongo


@pytest.fixture
def database(_mongo: MongoClient[dict[str, Any]]) -> Iterator[str]:
    name = _emptied.pop() if _emptied else f"test-{uuid.uuid4().hex}"
    yield name
    if _emptied_again(_mongo[name]):
        _emptied.append(name)


def _emptied_again(database: Database[dict[str, Any]]) -> bool:
    """Remove all documents, if the test has left collections, validators and indexes alone."""
    if {found["name"] for found in database.list_collections()} != {*VALIDATORS}:
        return False
    if [*provision_database(database, mend=True)]:
        return False
    for name in VALIDATORS:
        database[name].delete_many({})
    return True


@pytest.fixture
def writer(mongo_uri: str, database: str) -> Iterator[Writer]:
    with Writer(mongo_uri, "production", actor="tester", database=database) as writer:
        writer.create_environment()
        yield writer


@pytest.fixture
def _unvalidated(writer: Writer, mongo_uri: str) -> None:
    """Lift the validators, for documents of a form that nobody else could write."""
    with MongoClient[dict[str, Any]](mongo_uri) as direct:
        database = direct[writer.store._database.name]
        for collection in database.list_collection_names():
            database.command("collMod", collection, validationLevel="off")
