"""What tests share: one real MongoDB for the whole run, in it an own environment for each test."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from pymongo import MongoClient

from flagkit.embedded import EmbeddedMongo
from flagkit.writer import Writer

# A shared, noisy machine: a slow example is no failure.
settings.register_profile("flagkit", deadline=None)
settings.load_profile("flagkit")


@pytest.fixture(scope="session")
def mongo_uri() -> Iterator[str]:
    with EmbeddedMongo() as server:
        yield server.uri


@pytest.fixture
def database() -> str:
    return f"test-{uuid.uuid4().hex}"


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
