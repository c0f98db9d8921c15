"""Validators: the database itself refuses documents of a wrong form, and none that is written."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from bson import ObjectId
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.errors import WriteError

from flagkit._core.source import Heartbeat
from flagkit._core.storage import pages
from flagkit._core.storage.client_registry import build_client_filter, build_heartbeat_update
from flagkit._core.storage.provision import provision_database
from flagkit._core.storage.validation import VALIDATORS
from flagkit.errors import AccessDeniedError
from flagkit.writer import Writer, erase_actor
from tests.writer.test_writer import flag

pytestmark = pytest.mark.mongo

NOT_VALID = 121
WRONG = ObjectId("0" * 24)
Document = dict[str, Any]


@pytest.fixture(scope="module")
def held(mongo_uri: str) -> Iterator[Database[Document]]:
    """A database that has every kind of document in each of its collections."""
    name = f"test-{uuid.uuid4().hex}"
    with MongoClient[Document](mongo_uri, tz_aware=True) as direct:
        with Writer(mongo_uri, "production", actor="dana", database=name) as writer:
            writer.create_environment()
            writer.store.create_environment("another")
            writer.create_segment({"key": "staff", "included": ["ada", "bob"], "by": "id"})
            ruled = {"name": "staff", "when": {"$segment": "staff"}, "serve": "on"}
            writer.create(flag("a.one", rules=[ruled]), reason="first")
            writer.create(flag("a.two"))
            writer.archive("a.two")
            writer.delete("a.two")
            with writer.change() as change:
                change.set_limit("actor", capacity=5, rate=0.01)
                change.grant("dana", "admin")
                change.grant("ada", "releaser")
            with writer.change() as change:
                change.bypass_guards("incident 7")
                change.archive("a.one")
            with pytest.raises(AccessDeniedError):
                writer.restore("a.one", actor="mallory")
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(pages, "UNPAGED_POLICIES_MAX", 0)
                writer.create(flag("a.paged"), actor="dana")
            writer.reader.write_checkpoint()
            with writer.proposals.propose() as change:
                change.restore("a.one")
                change.create(flag("a.three"))
            proposal = change.proposal or ""
            writer.proposals.approve(proposal, actor="ada")
            writer.proposals.apply(proposal)
            with direct.start_session() as session, session.start_transaction():
                writer.in_transaction(session).pause("a.gone")
            writer.pending.sweep()
            with direct.start_session() as session, session.start_transaction():
                writer.in_transaction(session).rollback(to=1)
                writer.in_transaction(session).pause("a.one")
        erase_actor("bob", uri=mongo_uri, database=name)
        for staleness in (None, 0.5):
            told = Heartbeat(
                instance=f"with staleness {staleness}",
                service="shop",
                host="host-7",
                pid=7,
                environment="production",
                region="*",
                epoch="an epoch",
                revision=3,
                staleness=staleness,
            )
            direct[name].clients.update_one(
                build_client_filter(told), build_heartbeat_update(told), upsert=True
            )
        yield direct[name]


def elsewhere(document: Document) -> Document:
    """Return a document as it would stand in another environment."""
    identity = document["_id"]
    other = "other" if isinstance(identity, str) else {**identity, "environment": "other"}
    return document | {"_id": other}


def is_refused(held: Database[Document], collection: str, document: Document) -> bool:
    """Tell whether the database refuses a document, for its form."""
    try:
        held[collection].insert_one(document)
    except WriteError as error:
        return error.code == NOT_VALID
    held[collection].delete_one({"_id": document["_id"]})
    return False


def places(part: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the places in a document whose types are fixed; what a policy says is the model's."""
    fields = part.items() if isinstance(part, dict) else ()
    for name, value in [*fields, *(enumerate(part) if isinstance(part, list) else ())]:
        yield (*path, name)
        if name not in ("policy", "operations"):
            yield from places(value, (*path, name))


def edited(part: Any, path: tuple[str | int, ...], *value: object) -> Any:
    """Return a document with a value in the place of another, or without it."""
    (name, *rest), copy = path, part.copy()
    if rest:
        copy[name] = edited(part[name], tuple(rest), *value)
    elif value:
        (copy[name],) = value
    else:
        del copy[name]
    return copy


def test_each_collection_has_its_validator_and_its_documents(held: Database[Document]) -> None:
    assert VALIDATORS.keys() == {*held.list_collection_names()}
    for name in VALIDATORS:
        assert held[name].count_documents({}) > 0, name


@pytest.mark.parametrize("collection", VALIDATORS)
def test_a_document_of_a_wrong_form_is_refused(held: Database[Document], collection: str) -> None:
    may_be_missing = {
        *("body", "format", "seal", "segments", "glass", "buckets", "proposal", "applied_by"),
        "approved",
        *("tries", "not_before", "trouble", "refused", "projected", "unprojected"),
    }
    for found in held[collection].find():
        document = elsewhere(found)
        assert not is_refused(held, collection, document)
        for path in places(document):
            assert is_refused(held, collection, edited(document, path, WRONG)), path
            if path in (("operations",), ("touched",), ("depends",)) and collection == "proposals":
                # Verdicts have none of them.
                continue
            if isinstance(path[-1], str) and path[-2:-1] not in (("digests",), ("buckets",)):
                refused = is_refused(held, collection, edited(document, path))
                assert refused == (path[0] == "_id" or path[-1] not in may_be_missing), path


@pytest.mark.parametrize("collection", sorted(VALIDATORS.keys() - {"heads", "erasures"}))
def test_an_id_has_these_fields_in_this_order_and_no_others(
    held: Database[Document], collection: str
) -> None:
    found = held[collection].find_one()
    assert found is not None
    document = elsewhere(found)
    identity = document["_id"]
    turned = dict(reversed(identity.items()))
    more: Document = {**identity, "more": 1}
    assert is_refused(held, collection, document | {"_id": turned})
    assert is_refused(held, collection, document | {"_id": more})


def test_replacements_and_updates_are_held_to_the_form_too(held: Database[Document]) -> None:
    head = held.heads.find_one({})
    assert head is not None
    with pytest.raises(WriteError) as raised:
        held.heads.replace_one({}, head | {"revision": "7"})
    assert raised.value.code == NOT_VALID
    with pytest.raises(WriteError) as raised:
        held.heads.update_one({}, {"$unset": {"hash": 1}})
    assert raised.value.code == NOT_VALID


def test_fields_of_a_later_version_are_let_through(held: Database[Document]) -> None:
    head = held.heads.find_one({})
    assert head is not None
    assert not is_refused(held, "heads", elsewhere(head) | {"later": True})


def test_what_is_not_there_is_made_and_what_is_other_is_brought_up_to_date(mongo_uri: str) -> None:
    with MongoClient[Document](mongo_uri) as direct:
        mine = direct[f"test-{uuid.uuid4().hex}"]
        mine.create_collection("heads")
        mine.create_collection("ledger", validator={"x": 1}, validationLevel="moderate")
        assert len([*provision_database(mine)]) == len(VALIDATORS) - 1
        assert "validator" not in mine["heads"].options()
        assert [*provision_database(mine, mend=True)] == [
            "heads: validator brought up to date",
            "ledger: validator brought up to date",
        ]
        assert [*provision_database(mine, mend=True)] == []
        assert mine["ledger"].options()["validator"] == VALIDATORS["ledger"]
        assert mine["ledger"].options()["validationLevel"] == "strict"
