"""Roles: what the database itself lets its users do, and what it refuses them, over TLS."""

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.errors import OperationFailure

from flagkit import Client, FlagkitError
from flagkit._core.source import Route
from flagkit._core.storage import pages
from flagkit._core.storage.database_status import DatabaseStatus
from flagkit._core.storage.layout import KEYS
from flagkit._core.storage.provision import ADMIN, ALL, READER, ROLES, WRITER
from flagkit._core.storage.source import MongoSource
from flagkit._core.storage.validation import VALIDATORS
from flagkit.cli.main import flagkit
from flagkit.errors import AccessDeniedError, HistoryLostError, RateLimitedError, StoreError
from flagkit.history import client_at, digest_of, replay
from flagkit.writer import (
    Retention,
    Writer,
)
from tests.support.replica_set import MongodReplicaSet, create_certificate, wait_until
from tests.writer.test_writer import flag

pytestmark = pytest.mark.mongo

NOT_ALLOWED = 13
Document = dict[str, Any]
Stored = Database[Document]
UriOf = Callable[[str], str]


@pytest.fixture(scope="module")
def members() -> Iterator[MongodReplicaSet]:
    with MongodReplicaSet(proxied=False, password="of-root", tls=True) as members:
        yield members


@pytest.fixture(scope="module")
def uri_of(members: MongodReplicaSet) -> UriOf:
    """Give the connection string of a user, who has the role of that name."""

    def uri_of(user: str) -> str:
        return members.uri("authSource=flagkit", f"{user}:of-{user}")

    def add(user: str, role: str) -> None:
        mechanisms = ["SCRAM-SHA-256"]
        with members.mongo() as mongo:
            mongo["flagkit"].command(
                "createUser", user, pwd=f"of-{user}", roles=[role], mechanisms=mechanisms
            )

    add("owner", "dbOwner")
    init(uri_of("owner"), "--roles")
    for role in ROLES:
        add(role, role)
    init(uri_of(ADMIN), "--environment", "production")
    return uri_of


@pytest.fixture
def stored(request: pytest.FixtureRequest, uri_of: UriOf) -> Iterator[Stored]:
    """Give the database as the user that the test names."""
    with MongoClient[Document](uri_of(request.param)) as mongo:
        yield mongo["flagkit"]


def init(uri: str, *arguments: str) -> str:
    done = CliRunner().invoke(flagkit, ["admin", "init", "--uri", uri, *arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_init_says_what_it_did_and_may_be_run_again(
    members: MongodReplicaSet, uri_of: UriOf
) -> None:
    name = ("--database", "another")
    first = init(members.uri(), *name)
    assert first.count("created, with its validator\n") == len(VALIDATORS)
    assert init(members.uri(), *name) == "Nothing was to be done.\n"
    assert json.loads(init(members.uri(), *name, "--output", "json")) == {"done": []}
    assert init(members.uri(), *name, "--roles") == "".join(f"{role}: created\n" for role in ROLES)
    with members.mongo() as mongo:
        another = mongo["another"]
        another["ledger"].drop_index("request")
        another.command("collMod", "heads", validator={})
        audit = {"resource": {"db": "another", "collection": "audit"}, "actions": ["find"]}
        another.command("grantPrivilegesToRole", READER, privileges=[audit])
        heads = {"resource": {"db": "another", "collection": "heads"}, "actions": ["update"]}
        another.command("revokePrivilegesFromRole", WRITER, privileges=[heads])
    assert init(members.uri(), *name, "--roles").splitlines() == [
        "heads: validator brought up to date",
        "ledger: 1 index created",
        f"{READER}: brought up to date",
        f"{WRITER}: brought up to date",
    ]
    assert init(members.uri(), *name, "--roles") == "Nothing was to be done.\n"
    # The roles of a database are for its owner to make, and no more is asked of that one.
    assert init(uri_of("owner"), "--roles") == "Nothing was to be done.\n"


def test_an_environment_that_is_there_is_left_as_it_is(uri_of: UriOf) -> None:
    with Writer(uri_of(WRITER), "production", actor="dana") as writer:
        assert writer.create_environment() == writer.store.read_tip()
    assert "production: stands at" in init(uri_of(ADMIN), "--environment", "production")


def test_who_may_not_make_an_environment_is_told_what_to_run(uri_of: UriOf) -> None:
    for role in (READER, WRITER):
        with (
            Writer(uri_of(role), "staging", actor="dana") as writer,
            pytest.raises(StoreError, match="flagkit admin init --environment staging"),
        ):
            writer.create_environment()


def test_a_writer_does_all_that_writers_do(uri_of: UriOf) -> None:
    with Writer(uri_of(WRITER), "production", actor="dana") as writer:
        segment: Document = {"key": "w.staff", "included": ["ada"], "by": "id"}
        writer.create_segment(segment)
        writer.change_members("w.staff", include=["bob"])
        writer.update_segment(segment)
        ruled = {"name": "staff", "when": {"$segment": "w.staff"}, "serve": "on"}
        split = {"rollout": {"by": "targetingKey", "weights": {"on": 10, "off": 90}}}
        one = {**flag("w.one"), "rules": [ruled], "fallthrough": split}
        first = writer.create(one, reason="new")
        writer.set_rollout("w.one", 50)
        for verb in (writer.pause, writer.resume, writer.archive, writer.restore):
            verb("w.one")
        writer.edit("w.one", lambda document: {**document, "owner": "shop"}, idempotency_key="e")
        writer.edit("w.one", lambda document: {**document, "owner": "shop"}, idempotency_key="e")
        writer.rollback("w.one", to=first.revision)
        writer.archive("w.one")
        writer.delete("w.one")
        writer.delete_segment("w.staff")
        writer.rollback(to=first.revision)
        with writer.change() as change:
            change.set_limit("actor", capacity=1, rate=0.001)
            change.grant("dana", "admin")
        with pytest.raises(AccessDeniedError):
            writer.pause("w.one", actor="mallory")
        writer.set_rollout("w.one", 20)
        with pytest.raises(RateLimitedError):
            writer.set_rollout("w.one", 30)
        with writer.change() as change:
            change.lift_limit("actor")
        for _ in range(3):
            writer.reader.write_checkpoint()
        assert len(writer.store.list_checkpoints()) == 2
        assert writer.store.list_active_flags("*", writer.store.read_tip().time) == ["w.one"]
        assert writer.reader.verify() == []
        assert next(writer.reader.entries(newest_first=True)).actor == "dana"
        with pytest.raises(StoreError, match="not allowed"):
            writer.reader.denials()


def test_a_client_does_all_that_clients_do(uri_of: UriOf, caplog: pytest.LogCaptureFixture) -> None:
    uri = uri_of(READER)
    with Writer(uri_of(WRITER), "production", actor="dana") as writer:
        writer.create_segment({"key": "c.staff", "included": ["ada"]})
        ruled = {"name": "staff", "when": {"$segment": "c.staff"}, "serve": "on"}
        writer.create(flag("c.one", rules=[ruled]))
        made = writer.reader.write_checkpoint()
        writer.create(flag("c.two"))
        with (
            Client(uri, environment="production", register="shop") as client,
            Client(uri, environment="production", namespaces=["c."]) as scanning,
        ):
            client.wait_ready()
            scanning.wait_ready()
            assert client.is_enabled("c.one", "ada")
            commit = writer.change_members("c.staff", include=["bob"])
            for each in (client, scanning):
                each.wait_for(commit.revision)
                assert each.is_enabled("c.one", "bob")
                assert each.policy("c.one") is not None
            with DatabaseStatus(uri, "flagkit") as survey:
                (told,) = wait_until(lambda: survey.read_clients("production"), "the heartbeat")
                assert told.heartbeat.service == "shop"
                assert survey.read_checkpoints("production")[0] == made
                assert [tip.environment for tip in survey.read_environments()[1]] == ["production"]
                assert [member.state for member in survey.read_members()] == ["PRIMARY"]

    async def story() -> None:
        source = MongoSource(uri, environment="production", region="*", database="flagkit")
        tip = (await source.load(Route.NEAREST)).tip
        with Writer(uri_of(WRITER), "production", actor="dana") as writer:
            writer.pause("c.one")
        await source.open(Route.NEAREST)
        assert len(await source.catch_up(tip, Route.NEAREST)) == 1
        await source.close()

    asyncio.run(story())
    # Else it would ask again and again instead of watching, or scan instead of using checkpoints.
    assert "not allowed" not in caplog.text


NONE: Document = {"_id": {"environment": "none"}}
FORMLESS: list[Document] = [{"$project": {"_id": True}}]
OPERATIONS: dict[str, Callable[[Stored, str], object]] = {
    "find": lambda db, name: db[name].find_one(NONE),
    "look up": lambda db, name: [
        *db["heads"].aggregate(
            [
                {"$lookup": {"from": name, "localField": "x", "foreignField": "y", "as": "z"}},
                {"$limit": 1},
            ]
        )
    ],
    "watch": lambda db, name: db[name].watch().close(),
    "insert": lambda db, name: db[name].insert_one({"_id": 7}),
    "insert unvalidated": lambda db, name: db[name].insert_one(
        {"_id": 7}, bypass_document_validation=True
    ),
    "update": lambda db, name: db[name].update_one(NONE, {"$set": {"x": 1}}),
    "replace": lambda db, name: db[name].replace_one(NONE, {"x": 1}),
    "update unvalidated": lambda db, name: db[name].update_one(
        NONE, {"$set": {"x": 1}}, bypass_document_validation=True
    ),
    "upsert": lambda db, name: db[name].update_one({"_id": 7}, {"$set": {"x": 1}}, upsert=True),
    "find and modify": lambda db, name: db[name].find_one_and_update(NONE, {"$set": {"x": 1}}),
    "delete": lambda db, name: db[name].delete_many(NONE),
    "drop": lambda db, name: db[name].drop(),
    "modify": lambda db, name: db.command("collMod", name, validationLevel="off"),
    "index": lambda db, name: db[name].create_index("x"),
    "drop indexes": lambda db, name: db[name].drop_indexes(),
    "rename": lambda db, name: db[name].rename("elsewhere"),
    "put in its place": lambda db, name: db["heads"].rename(name, dropTarget=True),
    "out": lambda db, name: db["heads"].aggregate([*FORMLESS, {"$out": name}]),
    "merge": lambda db, name: db["heads"].aggregate(
        [*FORMLESS, {"$merge": {"into": name, "whenMatched": "replace"}}]
    ),
    "merge new": lambda db, name: db["heads"].aggregate(
        [*FORMLESS, {"$merge": {"into": name, "whenMatched": "fail"}}]
    ),
}
"""What is tried on each collection; where it is allowed, there is nothing that it finds or fits."""

READS = ("find", "look up")
ADDS = (*READS, "insert", "merge new")
PUTS = (*ADDS, "update", "replace", "upsert", "find and modify", "merge")
PUBLISHES = (*ADDS, "delete", "out")
ALLOWED: dict[tuple[str, str], tuple[str, ...]] = {
    **{
        (READER, name): READS
        for name in ("ledger", "flags", "segments", "members", "pages", "checkpoints", "slices")
    },
    (READER, "heads"): (*READS, "watch"),
    (READER, "clients"): PUTS,
    (WRITER, "heads"): (*READS, "watch", "update", "replace", "find and modify"),
    (WRITER, "ledger"): ADDS,
    (WRITER, "audit"): ADDS,
    (WRITER, "denials"): ("insert", "merge new"),
    (WRITER, "bucket_keys"): ADDS,
    (WRITER, "pending"): (*PUTS, "delete", "out"),
    (WRITER, "proposals"): ADDS,
    **{(WRITER, name): PUTS for name in ("flags", "segments", "members", "pages", "access")},
    **{(WRITER, name): PUBLISHES for name in ("checkpoints", "slices")},
    (WRITER, "clients"): READS,
    **{(ADMIN, name): PUTS for name in ("flags", "segments", "access", "clients")},
    (ADMIN, "heads"): (*PUTS, "watch"),
    (ADMIN, "ledger"): PUBLISHES,
    **{(ADMIN, name): ADDS for name in ("erasures", "bucket_keys")},
    **{
        (ADMIN, name): (*PUTS, "delete", "out")
        for name in ("audit", "denials", "members", "pages", "pending", "proposals")
    },
    **{(ADMIN, name): PUBLISHES for name in ("checkpoints", "slices")},
}
"""All that may be done. Administrators may also modify any collection, and make indexes."""


def is_let(db: Stored, name: str, operation: str) -> bool:
    """Tell whether the database lets its user do something; what else is wrong is no matter."""
    try:
        OPERATIONS[operation](db, name)
    except OperationFailure as error:
        return error.code != NOT_ALLOWED
    return True


def test_who_may_read_flags_may_ask_what_they_were(uri_of: UriOf) -> None:
    init(uri_of(ADMIN), "--environment", "past")
    with Writer(uri_of(WRITER), "past", actor="dana") as writer:
        with writer.change() as change:
            change.grant("dana", "admin")
            change.create_segment({"key": "past.staff", "included": ["ada"]})
        staff = {"name": "staff", "when": {"$segment": "past.staff"}, "serve": "on"}
        made = writer.create(flag("past.top", rules=[staff], fallthrough={"serve": "off"}))
        writer.reader.write_checkpoint()
        writer.change_members("past.staff", include=["bob"], remove=["ada"])
        writer.pause("past.top")
    uri = uri_of(READER)
    found = [client_at(uri, "past", at=at) for at in (2, 3, 4, made.time, None)]
    asked = [(then.revision, then.is_enabled("past.top", "ada")) for then in found]
    assert asked == [(2, True), (3, False), (4, False), (2, True), (4, False)]
    digest = digest_of(found[0], found[0].evaluate("past.top", "ada"), "ada")
    assert replay(uri, digest, "ada").is_same


def test_administrators_prune_and_writers_are_told_that_they_may_not(
    uri_of: UriOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "UNPAGED_POLICIES_MAX", 1)
    init(uri_of(ADMIN), "--environment", "old")
    with Writer(uri_of(WRITER), "old", actor="dana") as writer:
        with writer.change() as change:
            change.create_segment({"key": "old.staff", "included": ["ada"]})
            change.create(flag("old.one"))
        writer.create(flag("old.gone", state="archived"))
        writer.delete("old.gone")
        last = writer.pause("old.one")
        now = last.time + timedelta(days=90)
        wanted = Retention(ledger_days=90, audit_days=90, denials_days=90, remains_days=90)
        before = writer.store.read_tip()
        with pytest.raises(StoreError, match=r"may not prune: that takes one who may .* remove"):
            writer.prune(wanted, now=now)
        assert writer.store.read_tip() == before
    with Writer(uri_of(ADMIN), "old", actor="dana") as admin:
        done = {row.what: row.documents for row in admin.prune(wanted, now=now)}
        assert (done["ledger"], done["pages"], done["audit"]) == (3, 1, 3)
        assert admin.reader.verify() == []
    with Writer(uri_of(WRITER), "old", actor="dana") as writer:
        writer.create(flag("old.gone"))
        writer.resume("old.one")
        assert writer.reader.verify() == []
    uri = uri_of(READER)
    assert client_at(uri, "old", at=last.revision).is_enabled("old.one") is False
    with pytest.raises(HistoryLostError, match=r"pruned\. Ask for revision 4"):
        client_at(uri, "old", at=2)
    with Client(uri, environment="old") as client:
        client.wait_ready()
        assert client.is_enabled("old.one")


def test_a_writer_proposes_and_asks_in_transactions(uri_of: UriOf) -> None:
    init(uri_of(ADMIN), "--environment", "team")
    with Writer(uri_of(WRITER), "team", actor="dana") as writer:
        writer.create(flag("w.one", fallthrough={"rollout": 10}))
        with writer.change() as change:
            change.grant("dana", "admin")
            change.grant("ada", "releaser")
        with writer.proposals.propose(reason="later") as change:
            change.set_rollout("w.one", 30)
        proposal = change.proposal or ""
        writer.proposals.approve(proposal, actor="ada")
        writer.proposals.apply(proposal)
        with writer.proposals.propose() as change:
            change.set_rollout("w.one", 40)
        writer.proposals.reject(change.proposal or "")
        with MongoClient[Document](uri_of(WRITER)) as mine, mine.start_session() as session:
            with session.start_transaction():
                due = writer.in_transaction(session).set_rollout("w.one", 50)
                refused = writer.in_transaction(session).pause("w.gone")
            assert len(writer.pending.sweep().commits) == 1
            assert due.commit().revision < writer.pending.drop(refused.request).revision


@pytest.mark.parametrize("stored", [READER, WRITER], indirect=True, ids=str)
@pytest.mark.parametrize("collection", VALIDATORS)
def test_what_a_role_may_not_do_the_database_refuses(
    stored: Stored, collection: str, request: pytest.FixtureRequest
) -> None:
    role = request.node.callspec.params["stored"]
    let = {operation for operation in OPERATIONS if is_let(stored, collection, operation)}
    assert let == {*ALLOWED.get((role, collection), ())}


@pytest.mark.parametrize("collection", VALIDATORS)
def test_what_even_an_administrator_may_not_do_the_database_refuses(
    collection: str, uri_of: UriOf
) -> None:
    with MongoClient[Document](uri_of(ADMIN)) as mongo:
        # What modifies a collection would be no longer harmless.
        tried = OPERATIONS.keys() - {"modify", "index"}
        let = {name for name in tried if is_let(mongo["flagkit"], collection, name)}
    assert let == {*ALLOWED.get((ADMIN, collection), ())}


WHOLE: dict[str, Callable[[Stored], object]] = {
    "drop": lambda db: db.client.drop_database(db.name),
    "watch": lambda db: db.watch(),
    "make users": lambda db: db.command("createUser", "mallory", pwd="x", roles=[]),
    "make roles": lambda db: db.command("createRole", "all", privileges=[], roles=[]),
    "grant": lambda db: db.command("grantRolesToUser", WRITER, roles=[ADMIN]),
    "another": lambda db: db.client["other"]["flags"].insert_one({}),
    "users": lambda db: db.client["admin"]["system.users"].find_one(),
    "oplog": lambda db: db.client["local"]["oplog.rs"].find_one(),
    "profile": lambda db: db.command("profile", 2),
}


@pytest.mark.parametrize("stored", ROLES, indirect=True, ids=str)
@pytest.mark.parametrize("operation", WHOLE)
def test_nobody_may_do_what_is_for_owners(stored: Stored, operation: str) -> None:
    with pytest.raises(OperationFailure) as refused:
        WHOLE[operation](stored)
    assert refused.value.code == NOT_ALLOWED


def test_readers_look_by_the_command_and_writers_change(uri_of: UriOf) -> None:
    def ask(role: str, *arguments: str, stdin: str = "") -> str:
        variables = {
            "FLAGKIT_URI": uri_of(role),
            "FLAGKIT_ENVIRONMENT": "production",
            "FLAGKIT_ACTOR": "dana",
        }
        done = CliRunner().invoke(flagkit, arguments, input=stdin, env=variables)
        assert f"of-{role}" not in done.output
        return done.output

    theme = "flags: [{key: shop.theme, variants: {x: 1}, fallthrough: {serve: x}}]"
    assert "shop.theme: created\n" in ask(WRITER, "flags", "create", "-", stdin=theme)
    assert "nothing was written" in ask(WRITER, "flags", "pause", "shop.theme", "--dry-run")
    for role in (READER, WRITER):
        assert "shop.theme" in ask(role, "flags", "list")
        assert "serves x" in ask(role, "flags", "show", "shop.theme")
        assert ask(role, "flags", "stale") == "No flag is stale.\n"
        none = ask(role, "segments", "list", "--namespace", "none.")
        assert none == "No such segment.\n"
    pause = ask(READER, "flags", "pause", "shop.theme")
    assert "the user is not allowed to do this" in pause
    assert "the user is not allowed to do this" in ask(WRITER, "access", "denials")
    assert "not allowed" not in ask(ADMIN, "access", "denials")


@pytest.mark.parametrize("stored", [READER, WRITER], indirect=True, ids=str)
def test_a_reader_or_a_writer_makes_no_collections(stored: Stored) -> None:
    for operation in (
        lambda: stored.command("create", "more"),
        lambda: stored.list_collection_names(authorizedCollections=False),
    ):
        with pytest.raises(OperationFailure) as refused:
            operation()
        assert refused.value.code == NOT_ALLOWED


def test_the_table_of_roles_knows_each_collection() -> None:
    known = VALIDATORS.keys() | {KEYS}
    assert ROLES[ADMIN].keys() - {ALL} == known
    assert all(collections.keys() - {ALL} <= known for collections in ROLES.values())


def error_of(uri: str) -> str:
    """Return what is said, of a writer and of a client alike, to whom does not get in."""
    with (
        Writer(uri, "production", actor="dana", timeout=1) as writer,
        pytest.raises(FlagkitError) as refused,
    ):
        writer.store.read_tip()
    with Client(uri, environment="production") as client:
        told = wait_until(lambda: client.status().error, "the client's error")
    assert "of-" not in f"{told} {refused.value}"
    return str(refused.value)


def test_a_wrong_password_is_told_without_it(uri_of: UriOf) -> None:
    wrong = uri_of(READER).replace(f"of-{READER}", "of-nobody")
    assert "was not let in: check name, password and authSource (code 18)" in error_of(wrong)


def test_plain_tcp_is_told_to_use_tls(uri_of: UriOf) -> None:
    plain = re.sub("&tls.*", "", uri_of(READER)) + "&serverSelectionTimeoutMS=300"
    assert "add tls=true" in error_of(plain)


def test_a_server_of_another_authority_is_told(uri_of: UriOf, tmp_path: Path) -> None:
    create_certificate(tmp_path)
    other = re.sub("tlsCAFile=.*", f"tlsCAFile={tmp_path / 'ca.pem'}", uri_of(READER))
    said = error_of(f"{other}&serverSelectionTimeoutMS=300")
    assert "CERTIFICATE_VERIFY_FAILED" in said
    assert said.endswith("name the authority of its certificate, by tlsCAFile=")
