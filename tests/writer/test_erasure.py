"""Erasing: a person's name and words are gone, what was done stays together, the chain whole."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner
from pymongo import MongoClient
from pymongo.database import Database

from flagkit._core.storage.validation import VALIDATORS
from flagkit.cli.main import flagkit
from flagkit.errors import (
    AccessDeniedError,
    InvalidDocumentError,
    ProposalClosedError,
    RequestConflictError,
    VersionConflictError,
    WriteError,
)
from flagkit.writer import Commit, Erasure, Writer, erase_actor
from flagkit.writer.operations import hash_request
from tests.writer.test_writer import flag

pytestmark = pytest.mark.mongo

ADA = "ada@example.com"
WORDS = "Ada said so"


@pytest.fixture
def direct(mongo_uri: str, database: str) -> Iterator[Database[dict[str, Any]]]:
    with MongoClient[dict[str, Any]](mongo_uri, tz_aware=True) as client:
        yield client[database]


@pytest.fixture
def history(writer: Writer) -> Writer:
    """Revisions 1 to 7, of which ada made 1, 2 and 4, and was granted a role in 6."""
    writer.create(flag("a.one"), actor=ADA, reason=WORDS, idempotency_key="first")
    with writer.change(actor=ADA, reason=WORDS) as change:
        change.bypass_guards(WORDS)
        change.pause("a.one")
    writer.create_segment({"key": "staff", "included": [ADA, "bob"], "excluded": ["eve"]})
    writer.change_members("staff", include=["dana"], remove=[ADA], actor=ADA, reason=WORDS)
    writer.change_members("staff", include=[ADA], exclude=["bob"], reason="back")
    with writer.change(reason="ours") as change:
        change.grant("tester", "admin")
        change.grant(ADA, "viewer")
    with pytest.raises(AccessDeniedError):
        writer.resume("a.one", actor=ADA, reason=WORDS)
    writer.pause("a.one")
    return writer


def erased(writer: Writer, mongo_uri: str, *, dry_run: bool = False) -> Erasure:
    return erase_actor(ADA, uri=mongo_uri, database=writer.store._database.name, dry_run=dry_run)


def revoked(writer: Writer) -> Writer:
    with writer.change() as change:
        change.revoke(ADA)
    return writer


def test_a_name_and_words_are_gone_and_the_chain_is_whole(
    history: Writer, mongo_uri: str, direct: Database[dict[str, Any]]
) -> None:
    before = [*revoked(history).reader.entries()]
    done = erased(history, mongo_uri)
    assert history.reader.verify() == []
    assert done.name.startswith("erased:")
    # Her own three, two that have her among keys, a grant and a revocation; and a denial.
    assert done.documents == {"audit": 7, "proposals": 0, "denials": 1}
    for collection in ("audit", "denials"):
        held = str([*direct[collection].find()])
        assert ADA not in held
        assert WORDS not in held
        assert done.name in held
    after = [*history.reader.entries()]
    assert [entry.revision for entry in after if entry.actor == done.name] == [1, 2, 4]
    for old, new in zip(before, after, strict=True):
        assert (old.differences, old.hash, old.time) == (new.differences, new.hash, new.time)
        assert new.reason == ("" if old.actor == ADA else old.reason)
    assert after[1].bypass_reason == "erased"
    assert after[5].actions == ("grant admin to tester", f"grant viewer to {done.name}")
    assert [*history.reader.entries(actor=done.name)] == [after[0], after[1], after[3]]
    assert [denial.actor for denial in history.reader.denials()] == [done.name]


def test_what_the_chain_keeps_is_told(history: Writer, mongo_uri: str) -> None:
    assert erased(history, mongo_uri, dry_run=True).chained == (("production", 6),)
    assert erased(revoked(history), mongo_uri).chained == (("production", 6), ("production", 8))


def test_the_same_person_has_the_same_name_and_another_another(
    history: Writer, mongo_uri: str, database: str
) -> None:
    first = erased(revoked(history), mongo_uri)
    history.archive("a.one", actor="tester", reason="of mine")
    assert erased(history, mongo_uri).documents == {"audit": 0, "proposals": 0, "denials": 0}
    assert erased(history, mongo_uri).name == first.name
    other = erase_actor("bob@example.com", uri=mongo_uri, database=database)
    assert other.name != first.name


def test_the_salt_is_never_made_anew(
    history: Writer, mongo_uri: str, direct: Database[dict[str, Any]]
) -> None:
    erased(revoked(history), mongo_uri)
    (salt,) = direct.erasures.find()
    erased(history, mongo_uri)
    assert [*direct.erasures.find()] == [salt]
    assert len(salt["salt"]) == 32


@pytest.mark.parametrize("author", [ADA, "tester"])
def test_no_digest_is_left_that_would_confirm_a_name_in_a_list(
    writer: Writer, mongo_uri: str, direct: Database[dict[str, Any]], author: str
) -> None:
    def ask() -> Commit:
        document = {"key": "beta", "included": [ADA, "bob"]}
        return writer.create_segment(document, actor=author, idempotency_key="beta")

    first = ask()
    (held,) = direct.audit.find()
    assert {held["digest"], held["unseeded"]}.isdisjoint({"erased"})
    erased(writer, mongo_uri)
    (left,) = direct.audit.find()
    assert left["digest"] == "erased"
    assert "unseeded" not in left
    assert ADA not in str(left)
    assert ask() == first
    assert writer.reader.verify() == []


def test_a_request_that_is_sent_again_is_not_done_again(
    history: Writer, mongo_uri: str, direct: Database[dict[str, Any]]
) -> None:
    revision = revoked(history).store.read_tip().revision
    erased(history, mongo_uri)
    with history.preview(actor=ADA, reason=WORDS, idempotency_key="first") as change:
        change.create(flag("a.one"))
    assert change.preview is not None
    assert change.preview.committed_as == 1
    commit = history.create(flag("a.one"), actor=ADA, reason=WORDS, idempotency_key="first")
    assert commit.revision == 1
    assert history.store.read_tip().revision == revision
    assert ADA not in str([*direct.audit.find()])


def test_a_request_that_was_never_done_is_not_done_after_it_was_erased(
    writer: Writer, mongo_uri: str, direct: Database[dict[str, Any]]
) -> None:
    # A writer that died between its request and its commit.
    asked: dict[str, Any] = {"actor": ADA, "reason": WORDS, "operations": []}
    content = {**asked, "sent": writer.store.read_tip().time, "digest": hash_request(asked)}
    writer.store.add_request("left", content)
    assert erased(writer, mongo_uri).documents["audit"] == 1
    with pytest.raises(RequestConflictError):
        writer.create(flag("a.one"), actor=ADA, reason=WORDS, idempotency_key="left")
    assert writer.store.read_tip().revision == 0
    assert ADA not in str([*direct.audit.find()])


def test_who_wrote_first_is_told_by_the_name_that_is_left(writer: Writer, mongo_uri: str) -> None:
    writer.create(flag("a.one"), actor=ADA)
    name = erased(writer, mongo_uri).name
    with pytest.raises(VersionConflictError) as conflict:
        writer.update(flag("a.one"), expected_version=7)
    assert conflict.value.actor == name


def proposed(writer: Writer, actor: str, *keys: str) -> str:
    with writer.proposals.propose(actor=actor, reason=WORDS if actor == ADA else "") as change:
        for key in keys:
            change.create(flag(key))
    assert change.proposal is not None
    return change.proposal


def test_proposals_and_what_was_said_of_them_are_kept_without_the_name(
    writer: Writer, mongo_uri: str, direct: Database[dict[str, Any]]
) -> None:
    applied = proposed(writer, ADA, "a.one")
    writer.proposals.approve(applied, actor="bob")
    commit = writer.proposals.apply(applied, actor=ADA)
    others = proposed(writer, "bob", "a.two")
    writer.proposals.approve(others, actor=ADA, reason=WORDS)
    left = proposed(writer, ADA, "a.three")
    writer.proposals.approve(left, actor="bob")
    done = erased(writer, mongo_uri)
    assert done.documents == {"audit": 1, "proposals": 3, "denials": 0}
    for collection in ("audit", "proposals"):
        held = str([*direct[collection].find()])
        assert ADA not in held
        assert WORDS not in held
    assert writer.reader.verify() == []
    assert writer.reader.proposal(applied).actor == done.name
    assert [verdict.actor for verdict in writer.reader.proposal(others).verdicts] == [done.name]
    assert writer.proposals.apply(applied, actor="bob") == commit
    # What she proposed is not as it was made; what others did, and she approved of, is.
    assert writer.reader.proposal(left).state == "void"
    with pytest.raises(ProposalClosedError, match="was erased"):
        writer.proposals.apply(left, actor="bob")
    assert writer.proposals.apply(others, actor="bob").revision == commit.revision + 1


def test_what_waits_of_a_person_is_refused_and_does_not_name_the_person(
    writer: Writer, mongo_uri: str, direct: Database[dict[str, Any]]
) -> None:
    with direct.client.start_session() as session, session.start_transaction():
        writer.in_transaction(session).create(flag("a.one"), actor=ADA, reason=WORDS)
    erased(writer, mongo_uri)
    writer.pending.sweep()
    assert writer.store.read_tip().revision == 0
    assert ADA not in str([*direct.pending.find(), *direct.audit.find()])


def test_who_holds_a_role_is_not_erased(
    history: Writer, mongo_uri: str, direct: Database[dict[str, Any]]
) -> None:
    before = [*direct.audit.find()]
    with pytest.raises(WriteError, match="still holds a role in production: revoke it first"):
        erased(history, mongo_uri)
    assert [*direct.audit.find()] == before


def test_a_dry_run_changes_nothing(
    history: Writer, mongo_uri: str, direct: Database[dict[str, Any]]
) -> None:
    def held() -> list[Any]:
        return [[*direct[name].find()] for name in VALIDATORS]

    before = held()
    found = erased(history, mongo_uri, dry_run=True)
    assert found.documents == {"audit": 6, "proposals": 0, "denials": 1}
    assert found.name == ""
    assert held() == before


@pytest.mark.parametrize("name", [None, 7, b"ada", "\ud800"])
def test_what_no_database_can_hold_is_refused(name: Any, mongo_uri: str) -> None:
    with pytest.raises(InvalidDocumentError, match="actor"):
        erase_actor(name, uri=mongo_uri)


@pytest.mark.parametrize(
    "name",
    ["", " ", "\t ", "ada\x1b[31m", "a\0b", "\u202eada", "a" * 500, "a\u0301", 'it\'s a "b"', ".*"],
)
def test_names_that_are_refused_today_are_erased(
    name: str, writer: Writer, mongo_uri: str, direct: Database[dict[str, Any]]
) -> None:
    writer.create(flag("a.one"))
    with writer.change() as change:
        change.grant("tester", "admin")
    # An earlier version took any name.
    writer._requests.actor = name
    with pytest.raises(AccessDeniedError):
        writer.pause("a.one", reason=WORDS)
    with direct.client.start_session() as session, session.start_transaction():
        writer.in_transaction(session).archive("a.one", reason=WORDS)
    writer.pending.sweep()
    trouble = {"refused": True, "trouble": "another's"}
    (waiting,) = direct.pending.find()
    direct.pending.insert_one({**waiting, "_id": waiting["_id"] | {"request": "x"}, **trouble})
    done = erase_actor(name, uri=mongo_uri, database=direct.name)
    assert done.documents == {"audit": 1, "proposals": 0, "denials": 2}
    assert direct.audit.count_documents({"actor": name}) == 0
    assert direct.denials.count_documents({"actor": name}) == 0
    assert [denial.actor for denial in writer.reader.denials()] == [done.name] * 2
    assert {found["trouble"] for found in direct.pending.find()} == {"erased", "another's"}


def test_the_command_erases_and_tells(history: Writer, mongo_uri: str, database: str) -> None:
    revoked(history)
    command = ["admin", "erase", ADA, "--uri", mongo_uri, "--database", database]
    told = CliRunner().invoke(flagkit, [*command, "--dry-run"])
    assert told.output.splitlines()[-1] == "Nothing was erased."
    data = CliRunner().invoke(flagkit, [*command, "--dry-run", "--output", "json"])
    assert json.loads(data.output) == {
        "name": "",
        "documents": {"audit": 7, "proposals": 0, "denials": 1},
        "chained": [["production", 6], ["production", 8]],
    }
    done = CliRunner().invoke(flagkit, command)
    *lines, last = done.output.splitlines()
    assert lines == [
        f"audit: 7 named {ADA}",
        f"proposals: 0 named {ADA}",
        f"denials: 1 named {ADA}",
        "The ledger of production keeps the name, in the grants of revision 6, 8.",
    ]
    assert last.startswith(f"{ADA} is erased:")
    assert next(history.reader.entries()).actor in last
