"""Names of actors: which are taken, and that every way by which a name comes in checks it."""

import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymongo import MongoClient

from flagkit._core.model.access import check_actor
from flagkit._core.storage.validation import VALIDATORS
from flagkit.errors import InvalidDocumentError
from flagkit.writer import Import, Writer
from tests.support.cli_runner import CommandRunner
from tests.writer.test_writer import flag

pytestmark = pytest.mark.every_python

REFUSED: dict[str, Any] = {
    "empty": "",
    "a blank": " ",
    "blanks": " \t\u3000",
    "a blank before": " ada",
    "a blank after": "ada ",
    "a line break": "ada\neve",
    "an escape": "ada\x1b[2J",
    "a NUL": "a\0da",
    "DEL": "ada\x7f",
    "C1": "ada\x9b31m",
    "a line separator": "a\u2028da",
    "a paragraph separator": "a\u2029da",
    "a direction override": "\u202eada",
    "a direction isolate": "\u2066ada",
    "a character of no width": "a\u200bda",
    "a no-break space": "ada\u00a0lovelace",
    "a filler": "\u3164",
    "a variation selector": "ada\ufe0f",
    "a lone surrogate": "ada\ud800",
    "not in normal form": "Jose\u0301",
    "too long": "a" * 201,
    "no text": 7,
    "bytes": b"ada",
    "false": False,
    "a list": ["ada"],
}
TAKEN = (
    "ada@example.com",
    "deploy-bot",
    "Ada Lovelace",
    "José",
    "李四",
    "a" * 200,
    "erased:0f",
    "*",
)


@pytest.mark.parametrize("name", TAKEN)
def test_names_are_taken_as_they_are(name: str) -> None:
    assert check_actor(name) == name


@given(st.text(max_size=210))
def test_a_name_is_taken_if_people_can_tell_it_from_all_others(name: str) -> None:
    try:
        check_actor(name)
    except InvalidDocumentError:
        return
    assert name == name.strip() == unicodedata.normalize("NFC", name)
    assert 0 < len(name) <= 200
    assert name.isprintable()
    name.encode()


@pytest.mark.parametrize("case", REFUSED)
def test_no_writer_acts_by_a_name_that_is_none(case: str) -> None:
    with pytest.raises(InvalidDocumentError, match="actor"):
        Writer("mongodb://127.0.0.1:1/", "production", actor=REFUSED[case])


def test_an_error_does_not_repeat_all_of_a_long_name() -> None:
    with pytest.raises(InvalidDocumentError) as caught:
        check_actor("a" * 10_000_000)
    assert len(str(caught.value)) < 200


Call = Callable[[Writer, Any], object]


def _changed(writer: Writer, actor: Any) -> None:
    with writer.change(actor=actor) as change:
        change.pause("shop.search")


def _previewed(writer: Writer, actor: Any) -> None:
    with writer.preview(actor=actor) as change:
        change.pause("shop.search")


def _proposed(writer: Writer, actor: Any) -> None:
    with writer.proposals.propose(actor=actor) as change:
        change.pause("shop.search")


def _granted(writer: Writer, actor: Any) -> None:
    with writer.change() as change:
        change.grant(actor, "admin")


def _revoked(writer: Writer, actor: Any) -> None:
    with writer.change() as change:
        change.revoke(actor)


def _imported(writer: Writer, actor: Any) -> None:
    # With nothing to do, too.
    Import("production").run(writer, actor=actor)


def _put(writer: Writer, actor: Any) -> None:
    client = writer.store._client
    with client.start_session() as session, session.start_transaction():
        writer.in_transaction(session).pause("shop.search", actor=actor)


CALLS: dict[str, Call] = {
    "change": _changed,
    "preview": _previewed,
    "propose": _proposed,
    "grant": _granted,
    "revoke": _revoked,
    "import": _imported,
    "a workflow": lambda w, actor: w.pause("shop.search", actor=actor),
    "a workflow of segments": lambda w, actor: w.create_segment({"key": "s"}, actor=actor),
    "a rollback": lambda w, actor: w.rollback(to=1, actor=actor),
    "with a key": lambda w, actor: w.pause("shop.search", actor=actor, idempotency_key="k"),
    "in a transaction": _put,
    "approve": lambda w, actor: w.proposals.approve("p", actor=actor),
    "reject": lambda w, actor: w.proposals.reject("p", actor=actor),
    "withdraw": lambda w, actor: w.proposals.withdraw("p", actor=actor),
    "apply": lambda w, actor: w.proposals.apply("p", actor=actor),
    "drop": lambda w, actor: w.pending.drop("r", actor=actor),
}


@pytest.mark.mongo
@pytest.mark.parametrize("call", CALLS)
def test_no_call_takes_a_name_that_is_none(call: str, writer: Writer, mongo_uri: str) -> None:
    writer.create(flag())
    name = writer.store._database.name
    with MongoClient[dict[str, Any]](mongo_uri) as direct:

        def held() -> list[Any]:
            return [[*direct[name][collection].find()] for collection in VALIDATORS]

        before = held()
        for refused in REFUSED.values():
            with pytest.raises(InvalidDocumentError, match="actor"):
                CALLS[call](writer, refused)
        assert held() == before


@pytest.mark.mongo
def test_none_is_the_writers_own_name(writer: Writer) -> None:
    writer.create(flag(), actor=None)
    assert writer.actor == "tester"
    found = writer.store.read_requests([change.request for change in writer.store.iter_changes()])
    assert [request["actor"] for request in found.values()] == ["tester"]


@pytest.mark.mongo
def test_a_name_that_was_granted_a_role_earlier_can_be_revoked(writer: Writer) -> None:
    odd = " ada\x1b"
    with writer.change() as change:
        change.grant("tester", "admin")
        change.grant("ada", "admin")
        # An earlier version took this name.
        change.operations[-1] = type(change.operations[-1])(
            **{
                name: getattr(change.operations[-1], name)
                for name in change.operations[-1].__struct_fields__
            }
            | {"actor": odd}
        )
    assert odd in [grant.actor for grant in writer.reader.grants()]
    with writer.change() as change:
        change.revoke(odd)
    assert odd not in [grant.actor for grant in writer.reader.grants()]
    with pytest.raises(InvalidDocumentError, match="which nobody sees"), writer.change() as change:
        change.revoke(odd)
    assert writer.reader.verify() == []


COMMANDS = (
    ("flags", "pause", "shop.search"),
    ("flags", "pause", "shop.search", "--dry-run"),
    ("flags", "pause", "shop.search", "--propose"),
    ("access", "grant", "ada", "admin"),
    ("approvals", "approve", "p"),
    ("approvals", "reject", "p"),
    ("approvals", "withdraw", "p"),
    ("approvals", "apply", "p"),
    ("pending", "drop", "r"),
    ("prune", "--remains-days", "1", "--apply"),
    ("prune", "--remains-days", "1"),
)


@pytest.mark.mongo
@pytest.mark.parametrize("asked", COMMANDS, ids=" ".join)
def test_no_command_takes_a_name_that_is_none(
    asked: tuple[str, ...], writer: Writer, mongo_uri: str, database: str
) -> None:
    writer.create(flag())
    command = CommandRunner(mongo_uri, database)
    for name in (" ", "ada ", "ada\x1b", "a" * 201):
        assert "actor" in command.ask(*asked, FLAGKIT_ACTOR=name).stderr
        assert "actor" in command.ask(*asked, "--actor", name).stderr
    assert "actor" in command.ask(*asked, "--actor", "").stderr
    assert "actor" in command.ask("access", "grant", "", "admin").stderr
    assert writer.store.read_tip().revision == 1
