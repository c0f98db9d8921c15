"""Driver: clients and writers work with whatever a connection string says beside the hosts."""

import asyncio
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from bson.codec_options import DatetimeConversion, TypeRegistry
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient

from flagkit import Client
from flagkit._core.model import EVERYWHERE
from flagkit._core.source import Route
from flagkit._core.storage.driver import build_driver_settings, compute_await_milliseconds
from flagkit._core.storage.source import MongoSource
from flagkit.errors import ConfigurationError
from flagkit.writer import Writer

pytestmark = pytest.mark.every_python

URI = "mongodb://localhost:27017/"
DATED: dict[str, Any] = {
    "key": "shop.dated",
    "variants": {"on": {"at": "ä"}, "off": {}},
    "off": "off",
    "rules": [
        {
            "name": "late",
            "when": {"since": {"$gt": {"$date": "2026-01-01T00:00:00Z"}}},
            "serve": "on",
        },
        {
            "name": "one",
            "when": {"id": {"$uuid": "00112233-4455-6677-8899-aabbccddeeff"}},
            "serve": "on",
        },
    ],
    "fallthrough": {"serve": "off"},
}


@pytest.mark.parametrize(
    "option", ["socketTimeoutMS=300", "timeoutMS=300", "socketTimeoutMS=2500", "timeoutMS=2500"]
)
def test_a_stream_without_news_is_not_broken_off(
    option: str, mongo_uri: str, database: str, writer: Writer
) -> None:
    writer.create(DATED)

    async def story() -> None:
        source = MongoSource(
            f"{mongo_uri}&{option}", environment="production", region=EVERYWHERE, database=database
        )
        await source.load(Route.NEAREST)
        await source.open(Route.NEAREST)
        for _ in range(3):
            assert await source.watch() == []
        await source.close()

    asyncio.run(story())


SHORT = [
    "socketTimeoutMS=100",
    "timeoutMS=100",
    "serverSelectionTimeoutMS=10",
    "connectTimeoutMS=10",
    "waitQueueTimeoutMS=1",
    "waitQueueTimeoutMS=1&maxPoolSize=1",
    "wTimeoutMS=1",
    "w=0",
    "maxIdleTimeMS=1",
    "maxPoolSize=1",
    "heartbeatFrequencyMS=500",
    "readConcernLevel=local",
]
DECODING = [
    "tz_aware=false",
    "uuidRepresentation=standard",
    "uuidRepresentation=javaLegacy",
    "datetime_conversion=DATETIME_MS",
    "datetime_conversion=DATETIME_AUTO",
    "unicode_decode_error_handler=ignore",
]


@pytest.mark.parametrize("option", SHORT + DECODING)
def test_clients_and_writers_work_with_any_option(
    option: str, mongo_uri: str, database: str
) -> None:
    uri = f"{mongo_uri}&{option}"
    with Writer(uri, "production", actor="tester", database=database) as writer:
        writer.create_environment()
        writer.create(DATED)
        changed = {**DATED, "variants": {**DATED["variants"], "off": {"at": "ö"}}}
        with Client(uri, environment="production", database=database) as client:
            client.wait_ready()
            client.wait_for(writer.update(changed).revision)
            late = {"targeting_key": "u", "since": datetime(2026, 6, 1, tzinfo=UTC)}
            assert client.value("shop.dated", late, default={}) == {"at": "ä"}
            by_id = {"targeting_key": "u", "id": UUID("00112233-4455-6677-8899-aabbccddeeff")}
            assert client.value("shop.dated", by_id, default={}) == {"at": "ä"}
            policy = client.policy("shop.dated", metadata=True)
            assert policy is not None
            assert policy == {**(client.policy("shop.dated") or {}), **policy}
            assert client.status().error_count == 0
        writer.rollback("shop.dated", to=1)
        assert writer.reader.verify() == []


def options(uri: str) -> Any:
    with MongoClient[dict[str, Any]](uri, **build_driver_settings(uri), connect=False) as client:
        return client.options


@pytest.mark.parametrize(
    ("option", "milliseconds"),
    [
        ("", 15_000),
        ("socketTimeoutMS=0", 20_000),
        ("socketTimeoutMS=600000", 20_000),
        ("socketTimeoutMS=10000", 5_000),
        ("socketTimeoutMS=1", 1_000),
        ("timeoutMS=3000", 1_500),
        ("timeoutMS=0", 15_000),
        ("timeoutMS=60000&socketTimeoutMS=4000", 2_000),
    ],
)
def test_a_stream_waits_no_longer_than_half_of_what_a_socket_may(
    option: str, milliseconds: int
) -> None:
    assert compute_await_milliseconds(options(f"{URI}?{option}")) == milliseconds


def test_limits_that_are_too_low_are_raised_and_others_are_kept() -> None:
    low = options(f"{URI}?socketTimeoutMS=5;maxPoolSize=2;connectTimeoutMS=7000")
    pool = low.pool_options
    assert (pool.socket_timeout, pool.max_pool_size, pool.connect_timeout) == (2.0, 4, 7.0)
    assert not options(f"{URI}?maxPoolSize=0").pool_options.max_pool_size


def test_documents_are_decoded_in_one_way_whatever_a_connection_string_says() -> None:
    decoding = options(f"{URI}?{'&'.join(DECODING[1::2])}").codec_options
    assert decoding.tz_aware
    assert decoding.datetime_conversion == DatetimeConversion.DATETIME
    assert decoding == options(URI).codec_options


def test_an_option_that_the_driver_does_not_know_what_to_do_with_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="make no sense"):
        Writer(f"{URI}?datetime_conversion=some", "production", actor="tester")


def test_a_session_of_a_client_that_decodes_in_its_own_way_is_taken(
    mongo_uri: str, writer: Writer
) -> None:
    with MongoClient(
        mongo_uri,
        document_class=RawBSONDocument,
        tz_aware=False,
        datetime_conversion="DATETIME_MS",
        type_registry=TypeRegistry(),
    ) as theirs:
        revisions = []
        for _ in range(2):
            with theirs.start_session() as session, session.start_transaction():
                pending = writer.in_transaction(session).create(DATED, idempotency_key="once")
            revisions.append(pending.commit().revision)
        assert revisions == [1, 1]
