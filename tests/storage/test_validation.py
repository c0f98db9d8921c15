"""Malformed documents: they are told by collection, `_id` and field, and never as a traceback."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from bson import Int64
from click.testing import CliRunner, Result
from pymongo import MongoClient
from pymongo.database import Database

from flagkit._core.model.access import decode_grants, decode_limits
from flagkit._core.storage.validation import VALIDATORS, find_fault, translate_form_errors
from flagkit.cli.errors import FAULTS_FOUND
from flagkit.cli.main import flagkit
from flagkit.errors import FlagkitError, InvalidDocumentError, StoreError
from flagkit.writer import Writer
from tests.writer.test_writer import flag

Document = dict[str, Any]


@pytest.fixture
def direct(mongo_uri: str, database: str) -> Iterator[Database[Document]]:
    with MongoClient[Document](mongo_uri, tz_aware=True) as client:
        yield client[database]


@pytest.fixture
def filled(writer: Writer, _unvalidated: None) -> Writer:
    with writer.change(reason="launch") as change:
        change.create(flag("a.one", fallthrough={"rollout": 10}))
        change.create(flag("a.two"))
    with writer.change() as change:
        change.grant("tester", "admin")
        change.set_limit("environment", capacity=50, rate=1)
    writer.set_rollout("a.one", 20)
    with pytest.raises(FlagkitError):
        writer.pause("a.one", actor="mallory")
    return writer


@pytest.fixture
def ask(mongo_uri: str, database: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    for name, value in (("URI", mongo_uri), ("DATABASE", database), ("ACTOR", "tester")):
        monkeypatch.setenv(f"FLAGKIT_{name}", value)
    monkeypatch.setenv("FLAGKIT_ENVIRONMENT", "production")
    return lambda *arguments: CliRunner().invoke(flagkit, arguments)


Edit = Callable[[Database[Document]], object]
ONE = {"_id.key": "a.one"}
EDITS: dict[str, tuple[Edit, str]] = {
    "head without change": (
        lambda db: db.heads.update_one({}, {"$unset": {"change": 1}}),
        "heads 'production' has not the form that it should have: change: is missing",
    ),
    "head of a text for a time": (
        lambda db: db.heads.update_one({}, {"$set": {"time": "noon"}}),
        "heads 'production' has not the form that it should have: time: is 'noon', not date",
    ),
    "head whose change has no request": (
        lambda db: db.heads.update_one({}, {"$unset": {"change.request": 1}}),
        "heads 'production' has not the form that it should have: change.request: is missing",
    ),
    "flag without revision": (
        lambda db: db.flags.update_one(ONE, {"$unset": {"revision": 1}}),
        "flags {environment: 'production', key: 'a.one', region: '*'} has not the form that",
    ),
    "flag whose policy is a list": (
        lambda db: db.flags.update_one(ONE, {"$set": {"policy": [1]}}),
        "policy: is a list, not object or null",
    ),
    "grants of another version": (
        lambda db: db.access.update_one({"_id.key": "@grants"}, {"$set": {"version": "x"}}),
        "key: '@grants', region: '@access'} has not the form that it should have: version: is 'x'",
    ),
    "ledger with sides that are none": (
        lambda db: db.ledger.update_one({"revision": 1}, {"$set": {"policies.0.after": 7}}),
        "has not the form that it should have: policies.0.after: is 7, not object or null",
    ),
    "audit without an actor": (
        lambda db: db.audit.update_one({"reason": "launch"}, {"$unset": {"actor": 1}}),
        "has not the form that it should have: actor: is missing",
    ),
    "audit of operations that are none": (
        lambda db: db.audit.update_one({"reason": "launch"}, {"$set": {"operations": [7]}}),
        "has not the form that it should have: operations.0: is 7, not object",
    ),
    "denial without a time": (
        lambda db: db.denials.update_one({}, {"$unset": {"time": 1}}),
        "has not the form that it should have: time: is missing",
    ),
}


@pytest.mark.mongo
@pytest.mark.parametrize("name", EDITS)
def test_a_malformed_document_is_named_with_its_field_and_what_to_run(
    name: str, filled: Writer, direct: Database[Document], ask: Callable[..., Result]
) -> None:
    edit, said = EDITS[name]
    edit(direct)
    problems = filled.reader.verify()
    assert any(said in problem for problem in problems), problems
    assert any("run flagkit ledger verify" in problem for problem in problems)
    for arguments in (
        ("ledger", "verify"),
        ("ledger", "show"),
        ("access", "list"),
        ("access", "limits"),
        ("access", "denials"),
        ("pending", "list"),
        ("flags", "list"),
        ("flags", "set-rollout", "a.one", "30"),
        ("flags", "pause", "a.two"),
        ("status",),
    ):
        result = ask(*arguments)
        assert result.exception is None or isinstance(result.exception, SystemExit), arguments
        assert "Traceback" not in result.output
    edit(direct)
    told = ask("ledger", "verify")
    # Where the head itself makes no sense, there is nowhere to begin.
    assert told.exit_code == (1 if name.startswith("head of") else FAULTS_FOUND)


@pytest.mark.mongo
def test_verify_goes_on_with_the_rest(filled: Writer, direct: Database[Document]) -> None:
    for name in ("flag without revision", "audit without an actor", "denial without a time"):
        EDITS[name][0](direct)
    direct.flags.update_one({"_id.key": "a.two"}, {"$set": {"policy.state": "archived"}})
    direct.ledger.update_one({"revision": 2}, {"$unset": {"policies": 1}})
    problems = "\n".join(filled.reader.verify())
    for said in (
        "key: 'a.one', region: '*'} has not the form that it should have: revision: is missing",
        "actor: is missing",
        "time: is missing",
        "a.two (*) was changed past the writer",
        "revision 2 of the ledger",
    ):
        assert said in problems
    assert "revision 2 is missing" not in problems


@pytest.mark.mongo
def test_readers_of_a_malformed_document_raise_an_error_that_names_it(
    filled: Writer, direct: Database[Document]
) -> None:
    EDITS["audit without an actor"][0](direct)
    with pytest.raises(StoreError, match=r"audit \{environment: 'production', .*actor: is missing"):
        [*filled.reader.entries()]
    EDITS["denial without a time"][0](direct)
    with pytest.raises(StoreError, match=r"denials \{.*time: is missing.*flagkit ledger verify"):
        filled.reader.denials()
    EDITS["flag without revision"][0](direct)
    with pytest.raises(StoreError, match=r"flags \{.*key: 'a.one'.*revision: is missing"):
        filled.set_rollout("a.one", 30)


@pytest.mark.mongo
@pytest.mark.parametrize("revision", [Int64(2**62), Int64(2**63 - 1), -1, 0.5, "7", None])
def test_a_head_at_an_impossible_revision_raises_no_error_of_python(
    revision: object, filled: Writer, direct: Database[Document], ask: Callable[..., Result]
) -> None:
    direct.heads.update_one({}, {"$set": {"revision": revision}})
    assert filled.reader.verify() != []
    with pytest.raises(StoreError):
        filled.pause("a.one")
    for arguments in (("ledger", "verify"), ("ledger", "show"), ("status",)):
        result = ask(*arguments)
        assert result.exception is None or isinstance(result.exception, SystemExit), arguments


@pytest.mark.parametrize(
    "document",
    [{}, {"grants": 7}, {"grants": [7]}, {"grants": [{"actor": 1}]}, {"grants": [{"actor": "a"}]}],
)
def test_grants_that_are_none_are_refused(document: Document) -> None:
    with pytest.raises(InvalidDocumentError, match="flagkit ledger verify"):
        decode_grants(document)


@pytest.mark.parametrize("limit", [7, {}, {"capacity": 1, "rate": 0}, {"capacity": 0, "rate": 1}])
def test_limits_that_are_none_are_refused(limit: object) -> None:
    with pytest.raises(InvalidDocumentError, match="flagkit ledger verify"):
        decode_limits({"actor": limit})


@pytest.mark.parametrize("collection", VALIDATORS)
def test_what_is_no_document_of_a_collection_has_a_fault_in_each(collection: str) -> None:
    assert find_fault(collection, {"_id": 7}) is not None


@pytest.mark.parametrize("error", [KeyError("x"), RecursionError(), OverflowError(), TypeError()])
def test_errors_of_python_become_one_that_says_what_to_run(error: Exception) -> None:
    with pytest.raises(StoreError, match="flagkit ledger verify"), translate_form_errors():
        raise error
