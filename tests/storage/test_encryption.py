"""Sensitive variants: encrypted before anything is recorded, opened where there is a key alone.

A canary is a value that is then searched for wherever it might have got to. The control of each
search is a canary in a flag that is not sensitive: that one is found.
"""

import base64
import gc
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import pytest
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from bson.timestamp import Timestamp
from click.testing import CliRunner, Result
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from pymongo import MongoClient
from pymongo.encryption import ClientEncryption

from flagkit import Client, CountingClient, ErrorCode
from flagkit._core.evaluation.evaluator import Evaluator
from flagkit._core.model import decode, encode
from flagkit._core.model.changes import build_state
from flagkit._core.model.packing import pack, unpack
from flagkit._core.model.sensitive import EncryptedValue
from flagkit._core.secrets import (
    Encryption,
    VariantDecrypter,
    decrypt_variant,
    encrypt_flag,
    local_encryption,
)
from flagkit._core.snapshot import unpack_flag
from flagkit._core.snapshot.snapshot import encode_record
from flagkit._core.storage.encryption import MongoDataKeys
from flagkit.cli.main import flagkit
from flagkit.client import refresh_thread
from flagkit.client.sources import build_policy_snapshot
from flagkit.errors import (
    ConfigurationError,
    EncryptionError,
    FlagkitError,
    InvalidDocumentError,
    MissingExtraError,
    RequestConflictError,
)
from flagkit.history import client_at, digest_of, replay
from flagkit.integrations.opentelemetry import instrument
from flagkit.testing import client_from
from flagkit.writer import Import, Writer
from tests.support.forked import ForkedChild, poll_until

DOCUMENT = {"user": "ada", "keys": ["a", 1, 2.5, None, True], "deep": {"b": 1}}


def flag(key: str, secret: Any, other: Any = "", **more: Any) -> dict[str, Any]:
    """Return a flag that serves a sensitive variant."""
    return {
        "key": key,
        "variants": {"live": secret, "none": other},
        "sensitive": ["live"],
        "off": "none",
        "fallthrough": {"serve": "live"},
        **more,
    }


@pytest.fixture(scope="module")
def master() -> dict[str, Any]:
    return {"local": {"key": os.urandom(96)}}


@pytest.fixture
def encryption(master: dict[str, Any]) -> Encryption:
    return Encryption(kms_providers=master)


@pytest.fixture
def sealing(mongo_uri: str, database: str, encryption: Encryption) -> Iterator[Writer]:
    """Return a writer with keys."""
    with Writer(
        mongo_uri, "production", actor="tester", database=database, encryption=encryption
    ) as writer:
        writer.create_environment()
        assert writer.create_data_key() == "production"
        yield writer


@pytest.fixture
def plain(mongo_uri: str, database: str, sealing: Writer) -> Iterator[Writer]:
    """Return a writer without keys, of the same environment."""
    assert sealing.environment == "production"
    with Writer(mongo_uri, "production", actor="other", database=database) as writer:
        yield writer


@pytest.fixture
def keys(mongo_uri: str, database: str, encryption: Encryption, sealing: Writer) -> MongoDataKeys:
    found = MongoDataKeys(mongo_uri, encryption, environment=sealing.environment, database=database)
    found.fetch()
    return found


@pytest.fixture
def where(mongo_uri: str, database: str) -> dict[str, Any]:
    """Return what clients are told to find the environment."""
    return {"uri": mongo_uri, "environment": "production", "database": database}


def all_bytes(uri: str, database: str, since: Timestamp) -> Iterator[tuple[str, bytes]]:
    """Yield every document of a database, and what the oplog has since a time, as they are."""
    raw: Any = CodecOptions(document_class=RawBSONDocument)
    with MongoClient[Any](uri) as client:
        for name in client[database].list_collection_names():
            for document in client[database].get_collection(name, raw).find():
                yield name, document.raw
        oplog = client["local"].get_collection("oplog.rs", raw)
        for document in oplog.find({"ts": {"$gte": since}}):
            yield "oplog.rs", document.raw


def now(uri: str) -> Timestamp:
    with MongoClient[dict[str, Any]](uri) as client:
        time: Timestamp = client.admin.command("ping")["operationTime"]
        return time


def places_of(canary: str, uri: str, database: str, since: Timestamp) -> set[str]:
    """Return the collections in which a text is, as it is or in base64."""
    forms = [canary.encode(), base64.b64encode(canary.encode())[:-4]]
    return {
        name
        for name, content in all_bytes(uri, database, since)
        if any(form in content for form in forms)
    }


def outputs(
    where: dict[str, Any], encryption: Encryption, folder: Path, update: dict[str, Any]
) -> list[str]:
    """Return what commands print that have the master key."""
    master, file = folder / "master.key", folder / "flags.json"
    master.write_bytes(encryption.kms_providers["local"]["key"])
    file.write_text(json.dumps({"flags": [update]}))
    place = ["--environment", "production", "--database", where["database"], "--uri", where["uri"]]
    told: list[str] = []
    for command in (
        ["ledger", "show"],
        ["ledger", "show", "--output", "json"],
        ["eval", "pay.key", "--explain"],
        ["eval", "pay.key", "--output", "json"],
        ["flags", "show", "pay.key"],
        ["flags", "show", "pay.open"],
        ["flags", "update", str(file), "--dry-run", "--actor", "ada@example.com"],
    ):
        environment = {"FLAGKIT_LOCAL_KEY_PATH": str(master)}
        done = CliRunner().invoke(flagkit, [*command, *place], env=environment)
        assert "pay." in done.output
        assert done.exit_code == 0, done.output
        told.append(done.output)
    return told


# That it is nowhere


def test_a_secret_is_nowhere_in_the_database_nor_in_what_is_kept_or_printed(
    sealing: Writer,
    where: dict[str, Any],
    encryption: Encryption,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    mongo_uri, database = where["uri"], where["database"]
    since = now(mongo_uri)
    secret, later, control = (f"CANARY{uuid.uuid4().hex}" for _ in range(3))
    said: list[str] = []
    sealing.create(flag("pay.key", secret, rules=[]), idempotency_key="first")
    sealing.create({**flag("pay.open", control), "sensitive": []})
    sealing.update(flag("pay.key", later))
    sealing.rollback("pay.key", to=1)
    sealing.edit("pay.key", lambda found: {**found, "owner": "team-pay"})
    with pytest.raises(RequestConflictError) as refused:
        sealing.create(flag("pay.key", later), idempotency_key="first")
    said.append("".join(traceback.format_exception(refused.value)))
    sealing.reader.write_checkpoint()
    revision = sealing.pause("pay.open").revision
    sealing.resume("pay.open")
    path = tmp_path / "flags"
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader])
    with CountingClient(**where, encryption=encryption, snapshot_path=path) as client:
        instrument(client, meters)
        client.on_change("pay.key", lambda change: said.append(repr(change)))
        client.wait_for(revision + 1)
        assert client.value("pay.key", default="") == secret
        assert client.value("pay.open", default="") == control
        for key in ("pay.key", "pay.open"):
            found = client.explain(key)
            said += [
                repr(client.evaluate(key)),
                str(found),
                repr(found),
                json.dumps(found.as_dict()),
            ]
            said += [repr(client.policy(key)), repr(client.policy(key, metadata=True))]
        said += [repr(client.status()), repr(client.evaluate_all()), repr(client.counts())]
        told = reader.get_metrics_data()
        assert told is not None
        said.append(told.to_json())
    for entry in sealing.reader.entries():
        said += [repr(entry), *entry.differences, *entry.actions]
    assert sealing.reader.verify() == []
    said += outputs(where, encryption, tmp_path, flag("pay.key", later))
    kept = path.read_bytes()
    for canary in (secret, later):
        assert places_of(canary, mongo_uri, database, since) == set()
        assert canary not in caplog.text
        assert not any(canary in text for text in said)
        assert canary.encode() not in kept
    # The control: each of these would have shown it.
    found_in = places_of(control, mongo_uri, database, since)
    assert found_in == {"flags", "ledger", "audit", "slices", "oplog.rs", "heads"}
    assert control in caplog.text
    assert control.encode() in kept
    assert sum(control in text for text in said) >= 6


def test_a_secret_that_is_imported_is_nowhere(
    sealing: Writer,
    where: dict[str, Any],
    encryption: Encryption,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    since = now(where["uri"])
    secret, later, control = (f"CANARY{uuid.uuid4().hex}" for _ in range(3))
    master, lines, whole = (tmp_path / name for name in ("master.key", "f.jsonl", "f.json"))
    master.write_bytes(encryption.kms_providers["local"]["key"])
    lines.write_text(json.dumps(flag("pay.key", secret)))
    opened = {**flag("pay.open", control), "sensitive": []}
    whole.write_text(json.dumps({"flags": [flag("pay.key", later), opened]}))
    place = ["--environment", "production", "--database", where["database"], "--uri", where["uri"]]

    def run(*command: str, key: str | None = str(master)) -> Result:
        variables = {"FLAGKIT_LOCAL_KEY_PATH": key, "FLAGKIT_ACTOR": "ada@example.com"}
        return CliRunner().invoke(flagkit, ["flags", "import", *command, *place], env=variables)

    done = [run(str(lines), key=None), run(str(whole), key=None)]
    assert [found.exit_code for found in done] == [3, 3]
    assert all("this import has no keys" in found.output for found in done)
    done += [run(str(lines), "--dry-run"), run(str(lines)), run(str(lines)), run(str(whole))]
    assert [found.stdout for found in done[2:]] == [
        (
            "pay.key: created\npay.key: fallthrough: serves live\n"
            "1 would be created, 0 updated, 0 as asked\n"
        ),
        "1 created, 0 updated, 0 as asked: revision 1\n",
        "0 created, 0 updated, 1 as asked\n",
        "1 created, 1 updated, 0 as asked: revision 2\n",
    ]
    said = [found.output for found in done]
    with Client(**where, encryption=encryption) as client:
        client.wait_for(2)
        assert client.value("pay.key", default="") == later
        # From Python it is the same; so is what is encrypted already.
        again = Import("production", keys=sealing.keys)
        again.add(flag("pay.key", later))
        stored = client.policy("pay.key")
        assert stored is not None
        moved = Import("production", keys=sealing.keys)
        moved.add(stored)
        with pytest.raises(InvalidDocumentError, match="another"):
            moved.add({**stored, "key": "pay.copy"})
    assert again.run(sealing) == moved.preview(sealing)
    for entry in sealing.reader.entries():
        said += [repr(entry), *entry.differences, *entry.actions]
    assert sealing.reader.verify() == []
    for canary in (secret, later):
        assert places_of(canary, where["uri"], where["database"], since) == set()
        assert canary not in caplog.text
        assert not any(canary in text for text in said)
    # The control: each of these would have shown it.
    assert places_of(control, where["uri"], where["database"], since) >= {"flags", "oplog.rs"}
    assert control in caplog.text


INVALID: Mapping[str, dict[str, Any]] = {
    "a date": {"variants": {"live": "CANARY", "none": None}},
    "another type": {"variants": {"live": "CANARY", "none": 1}},
    "a type that no variant has": {"variants": {"live": {"CANARY": {"x": {"CANARY"}}}}},
    "a key that is no text": {"variants": {"live": {"CANARY": {5: "CANARY"}}}},
    "a name with a NUL": {"variants": {"live": {"CANARY": {"CANARY\0": 1}}}},
    "a lone surrogate": {"variants": {"live": "CANARY\ud800"}},
    "a reference": {"variants": {"live": {"CANARY": {"$ref": "CANARY", "$id": 1}}}},
    "an unknown field": {"variants": {"live": "CANARY"}, "more": 1},
    "no variant": {"variants": {"live": "CANARY"}, "sensitive": ["live", "gone"]},
    "no list of names": {"variants": {"live": {"CANARY": object()}}, "sensitive": "live"},
    "no names": {"variants": {"live": {"CANARY": object()}}, "sensitive": [{"a": 1}]},
    "an off variant that is not": {"variants": {"live": "CANARY"}, "off": "gone"},
    "nothing served": {"variants": {"live": "CANARY"}, "fallthrough": {}},
    "a number for text": {"variants": {"live": "CANARY"}, "owner": 5},
    "a rollout of nothing": {"variants": {"live": "CANARY"}, "fallthrough": {"rollout": 20}},
    "too long": {"variants": {"live": "CANARY" * 200_000}},
    "ciphertext of nobody": {"variants": {"live": {"$encrypted": {"CANARY": 1}}}},
    "what only looks encrypted": {
        "variants": {"live": {"$encrypted": {"type": "string", "base64": "CANARY"}}}
    },
    "nested too deep": {"variants": {"live": json.loads('{"CANARY":' * 40 + "1" + "}" * 40)}},
    "another environment": {"variants": {"live": "CANARY"}, "environment": "elsewhere"},
}


@pytest.mark.parametrize("wrong", INVALID.values(), ids=INVALID)
def test_what_is_refused_is_not_repeated(
    wrong: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    document = {
        "key": "a",
        "sensitive": ["live"],
        "fallthrough": {"serve": "live"},
        **wrong,
    }
    with Writer("mongodb://127.0.0.1:9", "production", actor="tester") as writer:
        for operation in (writer.create, writer.update):
            with pytest.raises(InvalidDocumentError) as refused:
                operation(document)
            error = refused.value
            text = "".join(traceback.format_exception(error))
            # The source lines that a traceback shows are those of this test, and have none.
            assert "CANARY" not in text + repr(error) + str(error) + caplog.text
            assert error.path


def test_a_value_that_is_no_variant_would_be_repeated_otherwise() -> None:
    with pytest.raises(InvalidDocumentError, match="CANARY"):
        decode(
            {"key": "a", "variants": {"live": {"CANARY": {5}}}, "fallthrough": {"serve": "live"}}
        )


def test_a_policy_file_with_a_secret_is_validated_and_printed_nowhere(tmp_path: Path) -> None:
    def run(*arguments: str, text: str) -> str:
        file = tmp_path / "flags.yaml"
        file.write_text(text)
        done = CliRunner().invoke(flagkit, [*arguments, str(file)])
        return f"{done.exit_code}\n{done.output}"

    def file_of(value: str, sensitive: str) -> str:
        return (
            f"flags:\n  - key: a.b\n    variants: {{live: {value}}}\n    sensitive: {sensitive}\n"
            "    fallthrough: {serve: live}\n"
        )

    valid = file_of("CANARY", "[live]")
    assert "1 flag, all valid" in run("validate", text=valid)
    for form in ("yaml", "json", "digest"):
        told = run("format", "--output", form, text=valid)
        assert "variants.live: is sensitive, and not encrypted" in told
        assert "CANARY" not in told
        assert not told.startswith("0")
    # Dates, numbers, doubts, aliases and what is no YAML are told of by what stands there.
    for value in ("2026-13-45", "!!int CANARY", "0o7_77", "1_0:30", "*CANARY", "[CANARY", "yes"):
        text = file_of(value, "[live]")
        told = run("validate", text=text) + run("format", text=text)
        assert "CANARY" not in told
        assert value not in told
    assert "2026-13-45" in run("validate", text=file_of("2026-13-45", "[]"))
    assert "!" not in run("validate", text=file_of("!!int CANARY", "live"))


def test_differences_tell_that_a_secret_changed_and_not_to_what(
    sealing: Writer, where: dict[str, Any]
) -> None:
    assert where
    sealing.create(flag("a.b", "CANARY1"))
    sealing.update(flag("a.b", "CANARY2"))
    sealing.update({**flag("a.b", "CANARY2"), "sensitive": []})
    sealing.update({**flag("a.b", "other"), "sensitive": []})
    told = [entry.differences for entry in sealing.reader.entries()]
    assert told[1] == ("a.b: variant live: (sensitive) -> (sensitive)",)
    assert told[2] == (
        'a.b: sensitive removed: ["live"]',
        "a.b: variant live: (sensitive) -> (sensitive)",
    )
    assert told[3] == ("a.b: variant live: CANARY2 -> other",)


# Written and read

VALUES: Mapping[str, tuple[Any, Any]] = {
    "a string": ("sk-1", ""),
    "an empty string": ("", "x"),
    "an integer": (2**62, 0),
    "a float": (2.5, 0.0),
    "an integer among floats": (5, 0.5),
    "a boolean": (True, False),
    "an object": (DOCUMENT, {}),
    "a list": ([1, "a", {"b": None}], []),
    "what looks encrypted within": ({"$encrypted": 1, "also": 2}, {}),
}


def test_values_of_all_types_come_back_as_they_were(
    sealing: Writer, where: dict[str, Any], encryption: Encryption
) -> None:
    with sealing.change() as change:
        for i, (secret, other) in enumerate(VALUES.values()):
            change.create(flag(f"f.{i}", secret, other))
    assert change.commit is not None
    with Client(**where, encryption=encryption) as client:
        client.wait_for(change.commit.revision)
        for i, (secret, other) in enumerate(VALUES.values()):
            found = client.evaluate(f"f.{i}", default=other)
            wanted = float(secret) if type(other) is float else secret
            assert (found.value, found.variant, found.is_sensitive) == (wanted, "live", True)
            assert type(found.value) is type(wanted)
            assert client.evaluate(f"f.{i}").value == wanted
            stored = client.policy(f"f.{i}")
            assert stored is not None
            assert stored["variants"]["live"].keys() == {"$encrypted"}
            assert stored["variants"]["none"] == other
        assert client.is_enabled("f.5") is True
        mistyped = client.evaluate("f.0", default=5)
        assert (mistyped.value, mistyped.error_code) == (5, ErrorCode.TYPE_MISMATCH)
        assert not mistyped.is_sensitive


def test_rules_rollouts_and_prerequisites_serve_secrets_as_they_serve_others(
    sealing: Writer, where: dict[str, Any], encryption: Encryption
) -> None:
    rules = [{"name": "at", "when": {"country": "AT"}, "serve": "none"}]
    half = {"rollout": {"weights": {"live": 50, "none": 50}}}
    with sealing.change() as change:
        change.create(flag("a.flag", True, other=False, rules=rules, fallthrough=half))
        change.create(
            flag("a.rests", "sk-1", prerequisites=[{"flag": "a.flag", "variants": ["live"]}])
        )
    assert change.commit is not None
    with Client(**where, encryption=encryption) as client, Client(**where) as other:
        client.wait_for(change.commit.revision)
        other.wait_for(change.commit.revision)
        users = [{"targeting_key": f"u{i}"} for i in range(40)]
        on = {user["targeting_key"] for user in users if client.is_enabled("a.flag", user)}
        assert 5 < len(on) < 35
        for user in users:
            is_on = user["targeting_key"] in on
            assert client.evaluate("a.flag", user, default=False).value is is_on
            assert client.value("a.rests", user, default="x") == ("sk-1" if is_on else "")
            told = client.explain("a.rests", user)
            assert len(told.flags) == 2
            assert told.evaluation.value == ("(sensitive)" if is_on else "")
            # Which variant is served, nobody needs a key for.
            assert other.is_enabled("a.flag", user, default=True) is is_on
            assert other.value("a.rests", user, default="x") == ("x" if is_on else "")
        assert client.is_enabled("a.flag", {"country": "AT", **users[0]}) is False
        assert client.evaluate_all(users[0], "a.r").keys() == (set() if "u0" in on else {"a.rests"})


def test_without_keys_sensitive_variants_alone_are_left_to_callers(
    sealing: Writer, where: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with sealing.change() as change:
        change.create(flag("a.b", "sk-1"))
        change.create(flag("a.c", 5, 0))
        change.create(flag("a.d", "x", sensitive=[]))
        change.create(flag("a.e", "x", fallthrough={"serve": "none"}))
    assert change.commit is not None
    with Client(**where) as client:
        client.wait_for(change.commit.revision)
        found = client.evaluate("a.b", default="mine")
        assert (found.value, found.variant, found.reason) == ("mine", None, "ERROR")
        assert found.error_code is ErrorCode.PARSE_ERROR
        assert "pass encryption=, or set FLAGKIT_LOCAL_KEY_PATH" in str(found.error_message)
        assert client.value("a.c", default=7) == 7
        assert client.value("a.d", default="") == "x"
        assert client.value("a.e", default="mine") == ""
        assert "the default, ERROR" in str(client.explain("a.b"))
        assert client.is_enabled("a.b", default=True) is True
    warnings = [record.getMessage() for record in caplog.records if "encryption=" in record.message]
    assert len(warnings) == 1
    assert "variant live of a.b is sensitive" in warnings[0]


def test_a_paused_flag_serves_its_secret_off_variant(
    sealing: Writer, where: dict[str, Any], encryption: Encryption
) -> None:
    sealing.create(flag("a.b", "sk-1", off="live"))
    revision = sealing.pause("a.b").revision
    with Client(**where, encryption=encryption) as client:
        client.wait_for(revision)
        found = client.evaluate("a.b", default="")
        assert (found.value, found.reason) == ("sk-1", "DISABLED")


def test_another_master_key_serves_all_but_secrets_and_says_so_once(
    sealing: Writer, where: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with sealing.change() as change:
        change.create(flag("a.b", "sk-1"))
        change.create(flag("a.d", "x", sensitive=[]))
    another = Encryption(kms_providers={"local": {"key": os.urandom(96)}})
    with Client(**where, encryption=another) as client:
        client.wait_ready()
        found = client.evaluate("a.b", default="mine")
        assert (found.value, found.error_code) == ("mine", ErrorCode.PROVIDER_NOT_READY)
        assert client.value("a.d", default="") == "x"
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    (warning,) = warnings
    assert warning.startswith(
        "sensitive values are not served: while fetching data keys: the master"
    )
    assert warning.endswith("key is not the one that the data key was made with")
    with (
        Writer(
            where["uri"],
            "production",
            actor="x",
            database=where["database"],
            encryption=another,
        ) as writer,
        pytest.raises(EncryptionError, match="the master key is not the one"),
    ):
        writer.update(flag("a.b", "sk-2"))


def test_keys_that_come_later_open_what_was_withheld(
    sealing: Writer,
    where: dict[str, Any],
    encryption: Encryption,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refresh_thread, "KEYS_AGAIN_SECONDS", 0.05)
    sealing.create(flag("a.b", True, other=False))
    with MongoClient[dict[str, Any]](where["uri"]) as mongo:
        vault = mongo[where["database"]]["keys"]
        held = vault.find_one_and_delete({})
        assert held is not None
        with Client(**where, encryption=encryption) as client:
            client.wait_ready()
            assert client.evaluate("a.b", default=False).error_code == "PROVIDER_NOT_READY"
            assert client.is_enabled("a.b") is False
            vault.insert_one(held)
            poll_until(lambda: client.is_enabled("a.b"), bool)
            assert client.evaluate("a.b", default=False).value is True


def test_an_evaluation_needs_neither_the_key_vault_nor_the_master_key_any_more(
    sealing: Writer, where: dict[str, Any], encryption: Encryption
) -> None:
    sealing.create(flag("a.b", "sk-1"))
    with Client(**where, encryption=encryption) as client:
        client.wait_ready()
        with MongoClient[dict[str, Any]](where["uri"]) as mongo:
            mongo[where["database"]]["keys"].drop()
        revision = sealing.create(flag("a.c", "sk-2")).revision
        client.wait_for(revision)
        assert client.value("a.b", default="") == "sk-1"
        assert client.value("a.c", default="") == "sk-2"


def test_a_local_file_has_secrets_encrypted_and_serves_them_once_there_are_keys(
    sealing: Writer, where: dict[str, Any], encryption: Encryption, tmp_path: Path
) -> None:
    revision = sealing.create(flag("a.b", "sk-1")).revision
    options = {**where, "encryption": encryption, "snapshot_path": tmp_path / "flags"}
    with Client(**options) as client:
        client.wait_for(revision)
    again = Client(**options)
    found = again.evaluate("a.b", default="mine")
    assert (found.revision, found.error_code) == (revision, ErrorCode.PROVIDER_NOT_READY)
    with again:
        again.wait_ready()
        assert again.value("a.b", default="mine") == "sk-1"


def test_a_client_closes_while_its_keys_are_waited_for(
    encryption: Encryption, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"mongodb://127.0.0.1:{silent.getsockname()[1]}/?serverSelectionTimeoutMS=500"
        client = Client(uri, environment="production", encryption=encryption).start()
        # The driver of the keys, beside that of the flags.
        connections = [silent.accept()[0] for _ in range(2)]
        client.close()
        for connection in connections:
            connection.close()
    gc.collect()
    assert not any("Task was destroyed" in record.message for record in caplog.records)
    assert not any(thread.name == "flagkit" for thread in threading.enumerate())


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_child_opens_what_its_parent_had_not_asked_for(
    sealing: Writer, where: dict[str, Any], encryption: Encryption
) -> None:
    with sealing.change() as change:
        change.create(flag("a.b", "sk-1"))
        change.create(flag("a.c", "sk-2"))
    with Client(**where, encryption=encryption) as client:
        client.wait_ready()
        assert client.value("a.b", default="") == "sk-1"

        def tell(says: Connection) -> None:
            says.send((client.value("a.b", default=""), client.value("a.c", default="")))

        with ForkedChild(tell) as child:
            assert child.says() == ("sk-1", "sk-2")
            assert child.exit_code() == 0


def test_keys_in_use_while_a_process_forks_are_fetched_anew(keys: MongoDataKeys) -> None:
    sealed_bytes = keys.encrypt(b"x")
    keys.after_fork_in_child()
    assert keys.decrypt(sealed_bytes) == b"x"
    with keys._lock:
        keys.after_fork_in_child()
    assert not keys.is_fetched
    with pytest.raises(EncryptionError):
        keys.decrypt(sealed_bytes)
    assert keys.encrypt(b"x") == sealed_bytes


def test_past_clients_open_secrets_and_replays_need_no_key(
    sealing: Writer, where: dict[str, Any], encryption: Encryption, caplog: pytest.LogCaptureFixture
) -> None:
    sealing.create(flag("a.b", "sk-1"))
    sealing.create(flag("a.c", {"x": 1}, {}))
    last = sealing.update(flag("a.b", "sk-2"))
    past = client_at(**where, at=1, encryption=encryption)
    assert past.value("a.b", default="") == "sk-1"
    assert client_at(**where, at=1).evaluate("a.b").error_code == ErrorCode.PARSE_ERROR
    another = Encryption(kms_providers={"local": {"key": os.urandom(96)}})
    held = client_at(**where, at=1, encryption=another).evaluate("a.b")
    assert held.error_code == ErrorCode.PROVIDER_NOT_READY
    assert "sensitive values are not served: while fetching data keys" in caplog.text
    told = {"uri": where["uri"], "database": where["database"]}
    with (
        Client(**where, encryption=encryption) as client,
        Client(**where) as other,
        Client(**where, encryption=another) as early,
    ):
        for asked in (client, other, early):
            asked.wait_for(last.revision)
            for key, default in (("a.b", None), ("a.b", 5), ("a.c", None), ("a.c", "text")):
                found = asked.evaluate(key, "ada", default)
                digest = digest_of(asked, found, "ada")
                again = replay(digest=digest, context="ada", **told)
                assert again.is_same, (again, found)
                assert "sk-" not in repr(again)


# What writers do with ciphertext


def test_the_same_value_in_the_same_place_is_the_same_request(sealing: Writer) -> None:
    first = sealing.create(flag("a.b", "sk-1"), idempotency_key="k")
    assert sealing.create(flag("a.b", "sk-1"), idempotency_key="k") == first
    with pytest.raises(RequestConflictError):
        sealing.create(flag("a.b", "sk-2"), idempotency_key="k")
    sealing.update(flag("a.b", "sk-1"))
    sealing.update(flag("a.b", "sk-2"))
    sealing.rollback("a.b", to=1)
    told = [entry.differences for entry in sealing.reader.entries()]
    assert told[1] == ()
    assert told[2] == told[3] == ("a.b: variant live: (sensitive) -> (sensitive)",)
    with sealing.store.open_reader() as reading:
        (state,) = reading.find_flags(["a.b"]).values()
    assert state.version == 3


def test_writers_without_keys_change_all_but_secrets(
    sealing: Writer, plain: Writer, where: dict[str, Any], encryption: Encryption
) -> None:
    sealing.create(flag("a.b", "sk-1"))
    with Client(**where) as reader:
        reader.wait_ready()
        document = reader.policy("a.b")
    assert document is not None
    plain.update({**document, "owner": "team-b"})
    plain.edit("a.b", lambda found: {**found, "tags": ["x"]})
    plain.pause("a.b")
    plain.resume("a.b")
    plain.edit("a.b", lambda found: {**found, "variants": {**found["variants"], "none": "-"}})
    plain.rollback("a.b", to=1)
    plain.archive("a.b")
    revision = plain.restore("a.b").revision
    revision = plain.resume("a.b").revision
    with Client(**where, encryption=encryption) as client:
        client.wait_for(revision)
        assert client.value("a.b", default="") == "sk-1"


def test_secrets_are_encrypted_in_transactions_and_proposals(
    sealing: Writer, plain: Writer, where: dict[str, Any], encryption: Encryption
) -> None:
    since = now(where["uri"])
    with MongoClient[dict[str, Any]](where["uri"]) as mine, mine.start_session() as session:
        with session.start_transaction():
            pending = sealing.in_transaction(session).create(flag("a.b", "canary-asked"))
        with sealing.proposals.propose() as change:
            change.create(flag("a.c", "canary-proposed"))
        # Who makes them needs no keys.
        assert plain.pending.sweep().commits == (pending.commit(),)
        plain.proposals.approve(change.proposal or "", actor="ada")
        revision = plain.proposals.apply(change.proposal or "").revision
        stored: dict[str, Any] = {}
        sealing.edit("a.b", lambda found: kept(found, stored))
        session.start_transaction()
        with pytest.raises(InvalidDocumentError, match="outside of a transaction"):
            plain.in_transaction(session).update(stored)
        session.abort_transaction()
    with (
        pytest.raises(InvalidDocumentError, match="is not what the flag has"),
        plain.proposals.propose() as p,
    ):
        p.create({**stored, "key": "a.d"})
    with plain.proposals.propose() as change:
        change.update({**stored, "owner": "ada"})
    for canary in ("canary-asked", "canary-proposed"):
        assert places_of(canary, where["uri"], where["database"], since) == set()
    with Client(**where, encryption=encryption) as client:
        client.wait_for(revision)
        assert client.value("a.b", default="") == "canary-asked"
        assert client.value("a.c", default="") == "canary-proposed"


def test_writers_without_keys_are_told_so_before_anything_is_written(
    sealing: Writer, plain: Writer, where: dict[str, Any]
) -> None:
    sealing.create(flag("a.b", "sk-1"))
    sealing.create(flag("a.c", "sk-1"))
    stored: dict[str, Any] = {}
    sealing.edit("a.b", lambda found: kept(found, stored))
    with MongoClient[dict[str, Any]](where["uri"]) as mongo:

        def counts() -> dict[str, int]:
            database = mongo[where["database"]]
            return {name: database[name].count_documents({}) for name in ("ledger", "flags")}

        before = counts()
        unable: tuple[Callable[[], object], ...] = (
            lambda: plain.create(flag("a.d", "sk-1")),
            lambda: plain.update(flag("a.b", "sk-1")),
            lambda: plain.edit("a.b", lambda _: flag("a.b", "sk-1")),
        )
        for operation in unable:
            with pytest.raises(InvalidDocumentError, match=r"this writer cannot encrypt it.*_PATH"):
                operation()
        # Moved to another flag, or in an override: nobody could read it there.
        moved: tuple[Callable[[], object], ...] = (
            lambda: plain.create({**stored, "key": "a.d"}),
            lambda: plain.update({**stored, "key": "a.c"}),
            lambda: plain.create({**stored, "region": "eu"}),
        )
        for operation in moved:
            with pytest.raises(InvalidDocumentError, match="is not what the flag has there"):
                operation()
        with pytest.raises(ConfigurationError, match="this writer has no encryption"):
            plain.create_data_key()
        assert counts() == before


def test_what_was_encrypted_for_another_place_is_refused(sealing: Writer) -> None:
    sealing.create(flag("a.b", "sk-1", other="x"))
    stored: dict[str, Any] = {}
    sealing.edit("a.b", lambda found: kept(found, stored))
    swapped = {
        **stored,
        "variants": {"live": "y", "none": stored["variants"]["live"]},
        "sensitive": ["none"],
    }
    for document in (
        {**stored, "key": "a.c"},
        {**stored, "region": "eu"},
        swapped,
    ):
        with pytest.raises(InvalidDocumentError, match="was encrypted for another environment"):
            sealing.create(document)
    with pytest.raises(InvalidDocumentError, match=r"Name the variant in `sensitive`"):
        sealing.update({**stored, "sensitive": []})


def test_a_type_that_was_chosen_stays_though_ciphertext_hides_it(
    sealing: Writer, plain: Writer
) -> None:
    sealing.create(flag("a.b", 5, 0))
    for writer in (sealing, plain):
        with pytest.raises(InvalidDocumentError, match="of type string, but live is of type int"):
            writer.edit("a.b", lambda found: _with(found, none="x"))
    plain.edit("a.b", lambda found: _with(found, none=0.5))


def kept(found: dict[str, Any], stored: dict[str, Any]) -> dict[str, Any]:
    """Return a document as it is, and keep it."""
    stored |= found
    return found


def _with(found: dict[str, Any], **variants: Any) -> dict[str, Any]:
    return {**found, "variants": {**found["variants"], **variants}}


# What readers do with it


def served(document: dict[str, Any], keys: MongoDataKeys) -> Any:
    """Return the evaluation of a stored document in production."""
    snapshot = build_policy_snapshot([document], (), environment="production", region="*")
    unsealing = VariantDecrypter(lambda: keys)
    unsealing.prepare()
    view = Evaluator(snapshot, time.time, None, unsealing)
    return view.evaluate(document["key"], None, "mine")


def test_a_reader_opens_nothing_that_was_altered_or_moved(
    keys: MongoDataKeys, caplog: pytest.LogCaptureFixture
) -> None:
    stored = encode(
        encrypt_flag(decode(flag("a.b", "sk-1")), "production", keys.encrypt, keys.decrypt)
    )
    assert served(stored, keys).value == "sk-1"
    secret: Any = stored["variants"]
    ciphertext = base64.b64decode(secret["live"]["$encrypted"]["base64"])
    for place in (0, 1, 16, 17, 18, 40, len(ciphertext) - 1):
        altered = bytearray(ciphertext)
        altered[place] ^= 1
        text = base64.b64encode(altered).decode()
        found = served(_with(stored, live={"$encrypted": {"type": "string", "base64": text}}), keys)
        assert (found.value, found.error_code) == ("mine", ErrorCode.PARSE_ERROR), place
    for text in ("", "AQ==", base64.b64encode(ciphertext[:17]).decode()):
        found = served(_with(stored, live={"$encrypted": {"type": "string", "base64": text}}), keys)
        assert found.error_code == ErrorCode.PARSE_ERROR
    elsewhere = encode(
        encrypt_flag(decode(flag("a.b", "sk-1")), "staging", keys.encrypt, keys.decrypt)
    )
    assert served(elsewhere, keys).error_code == ErrorCode.PARSE_ERROR
    moved = served({**stored, "key": "a.c"}, keys)
    assert moved.error_code == ErrorCode.PARSE_ERROR
    assert "was encrypted for another environment, region, flag or variant" in moved.error_message
    assert served({**stored, "region": "*"}, keys).value == "sk-1"
    mistyped = {"$encrypted": {"type": "integer", "base64": secret["live"]["$encrypted"]["base64"]}}
    found = served({**stored, "variants": {"live": mistyped, "none": 1}}, keys)
    assert "is of type string, in a flag of type integer" in found.error_message
    foreign = base64.b64encode(keys.encrypt(b"not from here")).decode()
    found = served(_with(stored, live={"$encrypted": {"type": "string", "base64": foreign}}), keys)
    assert "was not by flagkit" in found.error_message
    assert "sk-1" not in caplog.text


def test_a_secret_that_was_stored_in_the_clear_is_served_to_nobody(keys: MongoDataKeys) -> None:
    document = flag("a.b", "CANARY")
    with pytest.raises(InvalidDocumentError, match="is sensitive, and not encrypted"):
        pack(decode(document, stored=True))
    # What a reader makes of it, and keeps in its file.
    record = encode_record(build_state("a.b", "*", 1, document))
    assert b"CANARY" not in record.body
    with pytest.raises(InvalidDocumentError, match="is sensitive, and not encrypted"):
        unpack_flag(record)
    # Nor is it a test's, or what a service begins with.
    with pytest.raises(InvalidDocumentError, match="leave it out of `sensitive`"):
        client_from([document])
    with pytest.raises(InvalidDocumentError, match="is sensitive, and not encrypted"):
        served(document, keys)


def test_bodies_have_ciphertext_as_binaries_and_are_else_as_they_were(keys: MongoDataKeys) -> None:
    one = encrypt_flag(decode(flag("a.b", "sk-1")), "production", keys.encrypt, keys.decrypt)
    body = pack(one)
    live = one.variants["live"]
    assert isinstance(live, EncryptedValue)
    assert msgspec.msgpack.decode(body)[2] == {"live": live.ciphertext, "none": ""}
    assert unpack("a.b", "*", body) == one
    assert encode(unpack("a.b", "*", body)) == encode(one)
    # As one release older reads it: of another type, so callers get their defaults.
    with pytest.raises(InvalidDocumentError, match="not all of type"):
        unpack("a.b", "*", msgspec.msgpack.encode([0, 1, {"live": live.ciphertext, "n": 1}, -1, 0]))


# Keys


def test_a_new_data_key_encrypts_from_then_on_and_older_ones_still_open(
    sealing: Writer, where: dict[str, Any], master: dict[str, Any]
) -> None:
    sealing.create(flag("a.b", "sk-1"))
    both = Encryption(kms_providers=master, keys=("production-2", "production"))
    with Writer(
        where["uri"], "production", actor="x", database=where["database"], encryption=both
    ) as writer:
        with pytest.raises(EncryptionError, match=r"no data key 'production-2' in .*\.keys"):
            writer.update(flag("a.b", "sk-2"))
        assert writer.create_data_key() == "production-2"
        writer.edit("a.b", lambda found: {**found, "owner": "x"})
        revision = writer.create(flag("a.c", "sk-2")).revision
    with Client(**where, encryption=both) as client:
        client.wait_for(revision)
        assert [client.value(key, default="") for key in ("a.b", "a.c")] == ["sk-1", "sk-2"]
    with Client(**where, encryption=Encryption(kms_providers=master)) as client:
        client.wait_for(revision)
        assert client.value("a.b", default="") == "sk-1"
        found = client.evaluate("a.c", default="mine")
        assert found.error_code == ErrorCode.PARSE_ERROR
        assert "name it in `keys` of encryption=" in str(found.error_message)


def test_a_new_master_key_takes_over_data_keys_as_the_manual_has_it(
    sealing: Writer, where: dict[str, Any], master: dict[str, Any]
) -> None:
    revision = sealing.create(flag("a.b", "sk-1")).revision
    new = {"local:new": {"key": os.urandom(96)}}
    with (
        MongoClient[dict[str, Any]](where["uri"]) as mongo,
        ClientEncryption[dict[str, Any]](
            {**master, **new}, f"{where['database']}.keys", mongo, CodecOptions()
        ) as manager,
    ):
        manager.rewrap_many_data_key({}, provider="local:new")
    with Client(**where, encryption=Encryption(kms_providers=new)) as client:
        client.wait_for(revision)
        assert client.value("a.b", default="") == "sk-1"


def test_a_master_key_is_read_from_a_file_and_shown_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sealing: Writer, where: dict[str, Any]
) -> None:
    key, path = os.urandom(96), tmp_path / "master.key"
    path.write_bytes(key)
    one = local_encryption(path)
    path.write_text(base64.b64encode(key).decode() + "\n")
    assert local_encryption(path) == one
    shown = repr(one) + str(one)
    assert shown.startswith("Encryption(local; ")
    assert repr(key)[2:20] not in shown
    for content in (b"", b"short", os.urandom(95), base64.b64encode(os.urandom(32))):
        path.write_bytes(content)
        with pytest.raises(ConfigurationError, match="has no master key: make one by `openssl"):
            local_encryption(path)
    with pytest.raises(ConfigurationError, match=r"gone cannot be read: No such file"):
        local_encryption(tmp_path / "gone")
    with pytest.raises(ConfigurationError, match=r"write DATABASE\.COLLECTION"):
        Encryption(kms_providers={"local": {}}, key_vault="vault")
    with pytest.raises(ConfigurationError, match=r"pass a tuple, such as \('one',\)"):
        Encryption(kms_providers={"local": {}}, keys="one")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="kms_providers is empty"):
        Encryption(kms_providers={})
    path.write_bytes(sealing.keys._encryption.kms_providers["local"]["key"])  # type: ignore[union-attr]
    monkeypatch.setenv("FLAGKIT_LOCAL_KEY_PATH", str(path))
    with Writer(where["uri"], "production", actor="x", database=where["database"]) as writer:
        revision = writer.create(flag("a.b", "sk-1")).revision
    with Client(**where) as client:
        client.wait_for(revision)
        assert client.value("a.b", default="") == "sk-1"


def test_settings_that_the_driver_refuses_are_not_repeated(where: dict[str, Any]) -> None:
    for providers in ({"local": {"key": "CANARY"}}, {"aws": {"accessKeyId": "CANARY"}}, {"x": 5}):
        bad = Encryption(kms_providers=providers)
        keys = MongoDataKeys(
            where["uri"], bad, environment="production", database=where["database"]
        )
        with pytest.raises(FlagkitError) as refused:
            keys.create()
        assert "CANARY" not in "".join(traceback.format_exception(refused.value))


def test_what_is_missing_is_named_where_it_is_first_wanted() -> None:
    program = (
        "import sys; sys.modules['pymongocrypt'] = None\n"
        "from flagkit._core.secrets import Encryption\n"
        "from flagkit.errors import MissingExtraError\n"
        "try: Encryption(kms_providers={})\n"
        "except MissingExtraError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "pip install 'flagkit-mongodb[encryption]'" in done.stdout
    assert issubclass(MissingExtraError, ImportError)


def test_importing_flagkit_or_its_writer_loads_no_cryptography() -> None:
    program = (
        "import sys, flagkit.writer, flagkit.client.client, flagkit._core.storage.source\n"
        "print([name for name in ('pymongocrypt', 'pymongo.encryption') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_what_is_encrypted_is_bound_to_its_place_by_any_cipher() -> None:
    def same(content: bytes) -> bytes:
        return content

    one = encrypt_flag(decode(flag("a.b", "sk-1")), "production", same, same)
    assert decrypt_variant(one, "production", "live", same) == "sk-1"
    with pytest.raises(EncryptionError, match="another environment"):
        decrypt_variant(one, "staging", "live", same)
    live = one.variants["live"]
    assert isinstance(live, EncryptedValue)
    assert msgspec.msgpack.decode(live.ciphertext) == [1, "production", "*", "a.b", "live", "sk-1"]
