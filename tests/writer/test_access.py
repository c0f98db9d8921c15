"""Access: who may do what where, all of it as one table; and that a revocation holds at once."""

import contextlib
import copy
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database

from flagkit._core.model import Flag, decode, encode
from flagkit._core.model.access import ROLES, Grant, Role
from flagkit._core.model.changes import Change, PolicyChange, Tip, build_state
from flagkit._core.model.values import is_same
from flagkit.client.client import Client
from flagkit.errors import (
    AccessDeniedError,
    FlagkitError,
    GrantNotFoundError,
    InvalidArgumentError,
    InvalidDocumentError,
    RevisionNotFoundError,
    StoreError,
)
from flagkit.testing import client_from
from flagkit.writer import (
    Draft,
    Writer,
)
from flagkit.writer.access import ROLES_BY_ACTION, AccessAction, classify_change
from flagkit.writer.ledger import format_differences
from tests.soak.fuzzing import SEGMENTS, PolicyGenerator
from tests.writer.test_writer import flag

pytestmark = pytest.mark.mongo

Ask = Callable[[Draft, str], object]
"""Asks for something in a namespace."""


def without_off(key: str, **more: Any) -> dict[str, Any]:
    return {name: value for name, value in flag(key, **more).items() if name != "off"}


def not_equal(constant: object) -> dict[str, Any]:
    return {"name": "others", "when": {"plan": {"$ne": constant}}, "serve": "off"}


def break_glass(draft: Draft, key: str) -> None:
    draft.bypass_guards("in a hurry")
    draft.update(flag(key, owner="ada"))


# Each flag and segment that it names is there once in each namespace.
ASKED: dict[str, tuple[AccessAction, Ask]] = {
    "create a paused flag that serves nothing": (
        "edit",
        lambda d, ns: d.create(without_off(f"{ns}.new", state="paused")),
    ),
    "create a paused flag that serves its off variant": (
        "release",
        lambda d, ns: d.create(flag(f"{ns}.new", state="paused")),
    ),
    "create an archived flag that serves its off variant": (
        "release",
        lambda d, ns: d.create(flag(f"{ns}.new", state="archived")),
    ),
    "change a constant of a live flag from true to 1": (
        "release",
        lambda d, ns: d.update(flag(f"{ns}.tested", rules=[not_equal(1)])),
    ),
    "change a constant of a live flag from true to 1, and metadata": (
        "release",
        lambda d, ns: d.update(flag(f"{ns}.tested", rules=[not_equal(1)], owner="ada")),
    ),
    "change the off variant's value of a paused flag from false to 0": (
        "release",
        lambda d, ns: d.update(flag(f"{ns}.draft", variants={"on": 1, "off": 0})),
    ),
    "change a constant of a segment from 1 to 1.0": (
        "release",
        lambda d, ns: d.update_segment({"key": f"{ns}.tested", "when": {"a": {"b": 1.0}}}),
    ),
    "edit what nobody is served": (
        "edit",
        lambda d, ns: d.update(flag(f"{ns}.draft", fallthrough={"serve": "off"})),
    ),
    "edit metadata": (
        "edit",
        lambda d, ns: d.update(flag(f"{ns}.live", owner="ada", fallthrough={"rollout": 10})),
    ),
    "archive a paused flag by its verb": ("edit", lambda d, ns: d.archive(f"{ns}.draft")),
    "restore": ("edit", lambda d, ns: d.restore(f"{ns}.old")),
    "edit by a function": (
        "edit",
        lambda d, ns: d.edit(f"{ns}.live", lambda policy: policy | {"owner": "ada"}),
    ),
    "archive a live flag by its verb": ("release", lambda d, ns: d.archive(f"{ns}.live")),
    "delete": ("release", lambda d, ns: d.delete(f"{ns}.old")),
    "delete a segment": ("release", lambda d, ns: d.delete_segment(f"{ns}.staff")),
    "archive a paused flag": (
        "edit",
        lambda d, ns: d.update(flag(f"{ns}.draft", state="archived")),
    ),
    "create a segment": ("edit", lambda d, ns: d.create_segment({"key": f"{ns}.new"})),
    "edit a segment's metadata": (
        "edit",
        lambda d, ns: d.update_segment({"key": f"{ns}.staff", "included": ["ada"], "owner": "ada"}),
    ),
    "resume what is active": ("edit", lambda d, ns: d.resume(f"{ns}.live")),
    "pause": ("pause", lambda d, ns: d.pause(f"{ns}.live")),
    "pause what is paused": ("pause", lambda d, ns: d.pause(f"{ns}.draft")),
    "create a live flag": ("release", lambda d, ns: d.create(flag(f"{ns}.new"))),
    "create a paused override": (
        "release",
        lambda d, ns: d.create(flag(f"{ns}.live", region="eu", state="paused")),
    ),
    "update a live flag": (
        "release",
        lambda d, ns: d.update(flag(f"{ns}.live", fallthrough={"serve": "off"})),
    ),
    "archive a live flag": (
        "release",
        lambda d, ns: d.update(flag(f"{ns}.live", fallthrough={"rollout": 10}, state="archived")),
    ),
    "change what a paused flag serves": (
        "release",
        lambda d, ns: d.update(flag(f"{ns}.draft", off="on")),
    ),
    "set a rollout": ("release", lambda d, ns: d.set_rollout(f"{ns}.live", 50)),
    "resume": ("release", lambda d, ns: d.resume(f"{ns}.draft")),
    "roll back": ("release", lambda d, ns: d.rollback(f"{ns}.live", to=1)),
    "change members": ("release", lambda d, ns: d.change_members(f"{ns}.staff", include=["eve"])),
    "change a segment": (
        "release",
        lambda d, ns: d.update_segment({"key": f"{ns}.staff", "when": {"country": "DE"}}),
    ),
    "break the glass for an edit": (
        "break glass",
        lambda d, ns: break_glass(d, f"{ns}.draft"),
    ),
    "grant": ("grant", lambda d, ns: d.grant("eve", "viewer", [f"{ns}."])),
    "revoke": ("grant", lambda d, ns: d.revoke(f"{ns}-guest")),
}
NAMESPACES = ("shop", "pay")
ENVIRONMENTS = ("production", "staging")


@pytest.fixture
def acting(mongo_uri: str, database: str) -> Iterator["Acting"]:
    """Makes writers of this database, by actor and environment."""
    with contextlib.ExitStack() as opened:

        def writer_of(actor: str, environment: str = "production") -> Writer:
            return opened.enter_context(
                Writer(mongo_uri, environment, actor=actor, database=database)
            )

        yield writer_of


Acting = Callable[..., Writer]


@pytest.fixture
def direct(mongo_uri: str, database: str) -> Iterator[Database[dict[str, Any]]]:
    with MongoClient[dict[str, Any]](mongo_uri) as client:
        yield client[database]


def furnish(writer: Writer, namespaces: Iterable[str]) -> None:
    with writer.change() as change:
        for namespace in namespaces:
            change.create(flag(f"{namespace}.live", fallthrough={"rollout": 5}))
            change.create(flag(f"{namespace}.draft", state="paused"))
            change.create(flag(f"{namespace}.old", state="archived"))
            change.create(flag(f"{namespace}.tested", rules=[not_equal(True)]))
            change.create_segment({"key": f"{namespace}.staff", "included": ["ada"]})
            change.create_segment({"key": f"{namespace}.tested", "when": {"a": {"b": 1}}})
    with writer.change() as change:
        for namespace in namespaces:
            change.set_rollout(f"{namespace}.live", 10)
            change.grant(f"{namespace}-guest", "viewer", [f"{namespace}."])
        change.grant("tester", "admin")


def granted(writer: Writer, **roles: tuple[Role, list[str]]) -> None:
    """Close an environment: its tester is admin, and others are what is said."""
    with writer.change(reason="who may do what") as change:
        change.grant("tester", "admin")
        for actor, (role, namespaces) in roles.items():
            change.grant(actor, role, namespaces)


def grant(actor: str, role: Role, namespaces: Iterable[str] = ()) -> Callable[[Draft], None]:
    return lambda draft: draft.grant(actor, role, [*namespaces])


def ask_all(writer: Writer, *asked: Callable[[Draft], object]) -> None:
    with writer.change() as change:
        for ask in asked:
            ask(change)


def is_allowed(writer: Writer, ask: Callable[..., object], *arguments: Any) -> bool:
    try:
        with writer.change() as change:
            ask(change, *arguments)
    except AccessDeniedError:
        return False
    return True


@pytest.mark.parametrize("asked", ASKED)
def test_a_role_allows_what_its_row_says_in_its_environment_and_namespace_alone(
    asked: str, acting: Acting
) -> None:
    action, ask = ASKED[asked]
    for environment in ENVIRONMENTS:
        admin = acting("tester", environment)
        admin.create_environment()
        # To each role flags of its own in each namespace: what is allowed happens.
        furnish(admin, [f"{namespace}.{role}" for namespace in NAMESPACES for role in ROLES])
        if environment == "production":
            granted(admin, **{role: (role, ["shop."]) for role in ROLES})
        denied = 0
        for role in ROLES:
            writer = acting(role, environment)
            for namespace in NAMESPACES:
                within = f"{namespace}.{role}"
                expected = (
                    role in ROLES_BY_ACTION[action]
                    and environment == "production"
                    and namespace == "shop"
                )
                allowed = is_allowed(writer, ask, within)
                assert allowed == expected, (role, environment, namespace)
                denied += not expected
        assert len(admin.reader.denials()) == denied
        assert admin.reader.verify() == []


def test_every_role_can_do_all_that_a_lesser_one_can() -> None:
    assert [sum(role in roles for roles in ROLES_BY_ACTION.values()) for role in ROLES] == [
        0,
        2,
        4,
        5,
    ]
    assert {action for action, _ in ASKED.values()} == ROLES_BY_ACTION.keys()


def test_an_environment_without_grants_is_open(writer: Writer, acting: Acting) -> None:
    acting("anybody").create(flag())
    assert writer.reader.grants() == ()
    assert "@access" not in writer.store.read_tip().digests


def test_the_first_grants_leave_an_admin_of_everything(writer: Writer) -> None:
    for namespaces in (["shop."], ["shop.", "pay."]):
        with pytest.raises(InvalidDocumentError, match="no admin of the whole environment"):
            ask_all(writer, grant("ada", "editor"), grant("ada", "admin", namespaces))
    assert writer.store.read_tip().revision == 0
    granted(writer, ada=("editor", []))
    assert writer.reader.grants() == (Grant("ada", "editor"), Grant("tester", "admin"))


def test_the_last_admin_stays(writer: Writer) -> None:
    granted(writer, ada=("editor", []))
    for role in (None, "admin"):
        with pytest.raises(InvalidDocumentError, match="no admin"), writer.change() as change:
            change.revoke("tester", role)
    with writer.change() as change:
        change.revoke("tester")
        change.grant("ada", "admin")
    assert writer.reader.grants() == (Grant("ada", "admin"), Grant("ada", "editor"))


def test_a_role_is_granted_anew_in_the_place_of_the_old_grant(writer: Writer) -> None:
    granted(writer, ada=("editor", ["shop.", "pay."]))
    granted(writer, ada=("editor", ["pay.", "pay."]))
    granted(writer, ada=("releaser", ["shop."]))
    assert writer.reader.grants()[:2] == (
        Grant("ada", "editor", ("pay.",)),
        Grant("ada", "releaser", ("shop.",)),
    )


def test_a_denial_says_who_would_be_allowed_and_is_logged(writer: Writer, acting: Acting) -> None:
    writer.create(flag("shop.search", fallthrough={"rollout": 5}))
    granted(writer, ada=("editor", ["shop."]))
    before = writer.store.read_tip()
    with pytest.raises(
        AccessDeniedError,
        match=r"^'ada' may not release shop.search in production: "
        r"that takes the role releaser or admin there, which an admin can grant$",
    ) as caught:
        acting("ada").set_rollout("shop.search", 50, reason="launch")
    error = caught.value
    assert (error.actor, error.action, error.key) == ("ada", "release", "shop.search")
    assert error.roles == ("releaser", "admin")
    assert writer.store.read_tip() == before
    (denial,) = writer.reader.denials()
    assert (denial.actor, denial.action, denial.key) == ("ada", "release", "shop.search")
    assert denial.reason == "launch"
    assert denial.operations == ({"operation": "set_rollout", "key": "shop.search"},)
    assert denial.time >= before.time


def test_a_denied_change_leaves_nothing_but_its_denial(
    writer: Writer, acting: Acting, direct: Database[dict[str, Any]]
) -> None:
    granted(writer)
    names = ("heads", "ledger", "audit", "flags", "segments", "access", "members")
    before = {name: list(direct[name].find()) for name in names}
    with pytest.raises(AccessDeniedError):
        acting("ada").create(flag(), idempotency_key="deploy-7")
    assert {name: list(direct[name].find()) for name in names} == before
    granted(writer, ada=("admin", []))
    assert acting("ada").create(flag(), idempotency_key="deploy-7").revision == 3


def test_what_cannot_be_logged_is_denied_all_the_same(
    writer: Writer,
    acting: Acting,
    direct: Database[dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    granted(writer)
    direct.denials.drop()
    # Nothing can be inserted into a view.
    direct.create_collection("denials", viewOn="heads")
    with pytest.raises(AccessDeniedError):
        acting("ada").create(flag())
    assert "a denial could not be logged" in caplog.text


def test_one_forbidden_operation_forbids_the_change(writer: Writer, acting: Acting) -> None:
    furnish(writer, ["shop", "pay"])
    granted(writer, ada=("releaser", ["shop."]))
    with pytest.raises(AccessDeniedError, match=r"pay\.live"):
        ask_all(acting("ada"), lambda d: d.pause("shop.live"), lambda d: d.pause("pay.live"))
    with pytest.raises(AccessDeniedError, match="may not edit everything"):
        ask_all(acting("ada"))


def test_a_namespace_is_what_keys_begin_with(writer: Writer, acting: Acting) -> None:
    for key in ("shop.a", "shopping.a", "other.shop.a"):
        writer.create(flag(key))
    granted(writer, dot=("editor", ["shop."]), bare=("editor", ["shop"]))
    for actor, key, expected in (
        ("dot", "shop.a", True),
        ("dot", "shopping.a", False),
        ("bare", "shopping.a", True),
        ("bare", "other.shop.a", False),
    ):
        assert is_allowed(acting(actor), Draft.pause, key) == expected


def test_an_admin_of_a_namespace_grants_there_alone(writer: Writer, acting: Acting) -> None:
    granted(writer, ada=("admin", ["shop."]), bob=("editor", ["pay."]))
    ada = acting("ada")
    for role, namespaces, expected in (
        ("editor", ["shop."], True),
        ("admin", ["shop.search."], True),
        ("editor", ["shop"], False),
        ("editor", ["shop.", "pay."], False),
        ("editor", [], False),
    ):
        asked = is_allowed(ada, Draft.grant, "eve", role, namespaces)
        assert asked == expected, (role, namespaces)
    assert not is_allowed(ada, Draft.revoke, "bob")
    assert not is_allowed(ada, Draft.grant, "bob", "editor", ["shop."])
    assert is_allowed(ada, Draft.grant, "bob", "editor", ["pay.", "shop."])
    assert is_allowed(ada, Draft.revoke, "eve")


def test_a_revocation_that_comes_first_is_obeyed(writer: Writer, acting: Acting) -> None:
    """Between the check and the commit nothing is taken back: the commit would be lost."""
    writer.create(flag())
    granted(writer, ada=("admin", []))
    ada = acting("ada")
    compare_and_set = ada.store.compare_and_set
    attempts: list[bool] = []

    def revoked_in_between(tip: Tip, change: Change, *kept: Any) -> bool:
        if not attempts:
            with writer.change() as revocation:
                revocation.revoke("ada")
        attempts.append(compare_and_set(tip, change, *kept))
        return attempts[-1]

    ada.store.compare_and_set = revoked_in_between  # type: ignore[assignment, method-assign]
    with pytest.raises(AccessDeniedError):
        ada.update(flag(owner="ada"))
    assert attempts == [False]
    assert [entry.actor for entry in writer.reader.entries()] == ["tester"] * 3


def test_who_was_revoked_still_hears_of_what_was_done(writer: Writer, acting: Acting) -> None:
    granted(writer, ada=("admin", []))
    first = acting("ada").create(flag(), idempotency_key="deploy-7")
    with writer.change() as change:
        change.revoke("ada")
    assert acting("ada").create(flag(), idempotency_key="deploy-7") == first
    assert writer.store.read_tip().revision == 3


def test_grants_are_in_the_ledger_and_can_be_rolled_back(writer: Writer, acting: Acting) -> None:
    granted(writer, ada=("releaser", ["shop."]))
    with writer.change(reason="left the team") as change:
        change.revoke("ada", "releaser")
        change.revoke("eve")
    with writer.change() as change:
        change.rollback_grants(to=1)
    actions = [entry.actions for entry in writer.reader.entries()]
    assert actions == [
        ("grant admin to tester", "grant releaser to ada on shop."),
        ("revoke releaser of ada", "revoke all roles of eve"),
        ("rollback all grants to revision 1",),
    ]
    assert writer.reader.grants() == (
        Grant("ada", "releaser", ("shop.",)),
        Grant("tester", "admin"),
    )
    assert writer.reader.verify() == []
    with pytest.raises(AccessDeniedError), acting("ada").change() as change:
        change.rollback_grants(to=1)
    with pytest.raises(AccessDeniedError), acting("ada").change() as change:
        change.rollback_grants(to=2)


def test_grants_are_not_rolled_back_to_when_there_were_none(writer: Writer) -> None:
    writer.create(flag("shop.search"))
    granted(writer)
    with (
        pytest.raises(RevisionNotFoundError, match="nothing was granted yet at revision 1"),
        writer.change() as change,
    ):
        change.rollback_grants(to=1)


def test_a_rollback_of_the_environment_gives_nobody_a_role_back(
    writer: Writer, acting: Acting
) -> None:
    granted(writer, ada=("releaser", []), bob=("releaser", ["shop."]))
    created = writer.create(flag("shop.search", fallthrough={"rollout": 5}))
    writer.set_rollout("shop.search", 50)
    with writer.change() as change:
        change.revoke("ada")
    with pytest.raises(AccessDeniedError):
        acting("ada").rollback(to=created.revision)
    # Of everything, who may release all: not who may release all that it changes.
    with pytest.raises(AccessDeniedError, match="may not edit everything"):
        acting("bob").rollback(to=created.revision)
    held = writer.reader.grants()
    writer.rollback(to=created.revision)
    assert writer.reader.grants() == held
    assert writer.reader.verify() == []


def test_who_asks_for_a_single_change_needs_the_role(writer: Writer) -> None:
    granted(writer, ada=("editor", []))
    with pytest.raises(AccessDeniedError, match="'ada' may not release"):
        writer.create(flag(), actor="ada")
    writer.create(without_off("shop.search", state="paused"), actor="ada")


TAMPERING: dict[str, Callable[[Database[dict[str, Any]], dict[str, Any]], object]] = {
    "altered": lambda db, _: db.access.update_one({}, {"$set": {"policy.grants.0.role": "admin"}}),
    "removed": lambda db, _: db.access.delete_many({}),
    "an older one put back": lambda db, old: db.access.replace_one({}, old),
}


@pytest.mark.parametrize("tampering", TAMPERING)
def test_grants_that_were_changed_past_the_writer_are_not_obeyed(
    tampering: str, writer: Writer, acting: Acting, direct: Database[dict[str, Any]]
) -> None:
    granted(writer, ada=("editor", []))
    old = direct.access.find_one()
    assert old is not None
    with writer.change() as change:
        change.revoke("ada")
        change.grant("eve", "editor")
    writer.create(flag())
    TAMPERING[tampering](direct, old)
    with pytest.raises(StoreError, match="changed past the writer"):
        acting("ada").pause("shop.search")
    assert writer.reader.verify() != []


def test_grants_that_a_dead_writer_did_not_project_hold(
    writer: Writer, acting: Acting, direct: Database[dict[str, Any]]
) -> None:
    granted(writer)
    direct.access.delete_many({})
    direct.ledger.delete_many({})
    assert writer.reader.grants() == (Grant("tester", "admin"),)
    with pytest.raises(AccessDeniedError):
        acting("ada").create(flag())
    writer.create(flag())
    assert writer.reader.verify() == []


@pytest.mark.parametrize("from_checkpoint", [False, True])
def test_clients_neither_load_nor_need_grants(
    writer: Writer,
    mongo_uri: str,
    database: str,
    direct: Database[dict[str, Any]],
    from_checkpoint: bool,
) -> None:
    writer.create(flag())
    granted(writer, ada=("editor", []))
    with writer.change() as change:
        change.set_limit("actor", capacity=100, rate=1)
    if from_checkpoint:
        assert writer.reader.write_checkpoint().flags == 1
        assert writer.reader.verify() == []
    held = list(direct.access.find())
    direct.access.drop()
    with Client(mongo_uri, environment="production", database=database) as client:
        client.wait_ready(20)
        loaded = client.snapshot
        assert loaded is not None
        assert loaded.base.count == 1
        assert client.keys() == ["shop.search"]
        direct.access.insert_many(held)
        granted(writer, ada=("releaser", []))
        client.wait_for(4, 20)
        assert client.keys() == ["shop.search"]
        followed = client.snapshot
        assert followed is not None
        assert followed.overlay == {}
        client.wait_for(writer.pause("shop.search").revision, 20)
        assert not client.is_enabled("shop.search")


INVALID: dict[str, tuple[Callable[[Draft], object], str]] = {
    "no role": (lambda d: d.grant("ada", "owner"), "'owner' is no role. Write one of: viewer,"),  # type: ignore[arg-type]
    "no role to take": (lambda d: d.revoke("ada", "owner"), "'owner' is no role"),  # type: ignore[arg-type]
    "no name": (lambda d: d.grant("", "editor"), "actor: is ''"),
    "long name": (lambda d: d.revoke("a" * 201), "at most 200 characters"),
    "no text": (lambda d: d.grant(7, "editor"), "actor: is 7"),  # type: ignore[arg-type]
    "no character": (lambda d: d.grant("\ud800", "editor"), "lone surrogate"),
    "one text": (lambda d: d.grant("ada", "editor", "shop."), r"Pass a list: \['shop.'\]"),
    "empty": (lambda d: d.grant("ada", "editor", [""]), "leave namespaces out for all"),
    "no prefix of keys": (lambda d: d.grant("ada", "editor", ["a.", "*"]), r"namespaces\[1\]"),
    "no prefix at all": (lambda d: d.grant("ada", "editor", [7]), "7 is nothing that keys"),  # type: ignore[list-item]
}


@pytest.mark.parametrize("case", INVALID)
def test_what_makes_no_sense_is_refused_before_anything_is_read(case: str) -> None:
    ask, message = INVALID[case]
    draft = Draft("production")
    with pytest.raises(InvalidDocumentError, match=message):
        ask(draft)
    assert draft.operations == []


def test_a_revision_of_grants_is_a_number() -> None:
    draft = Draft("production")
    with pytest.raises(InvalidArgumentError, match="to is '1'"):
        draft.rollback_grants(to="1")  # type: ignore[arg-type]
    assert draft.operations == []


def test_grants_that_never_were_cannot_be_rolled_back(writer: Writer) -> None:
    with pytest.raises(GrantNotFoundError, match="there are no grants"), writer.change() as change:
        change.rollback_grants(to=1)


PROPERTY_ROUNDS = 2_000


def test_whatever_changes_an_answer_is_a_release_and_has_a_line() -> None:
    chance = random.Random(20_261_129)
    judged = Counter[str]()
    for _ in range(PROPERTY_ROUNDS):
        policies = PolicyGenerator(chance)
        before, after = drawn_edit(policies)
        if before is None or after is None:
            continue
        sides = [
            build_state(found.key, found.region, 1, encode(found)) for found in (before, after)
        ]
        change = PolicyChange(*sides)
        action = classify_change(change)
        told = [line.partition(": ")[2] for line in format_differences(change)]
        if sides[0].packed != sides[1].packed:
            assert told, "every change has a line"
        clients = [client_from([side.policy], SEGMENT_DOCUMENTS, now=NOON) for side in sides]
        contexts = [
            *(policies.conditions.document() | {"targeting_key": f"u{i}"} for i in range(20)),
            *({"targeting_key": f"u{i}"} for i in range(10)),
        ]
        differ = any(
            not is_same(*(answered(client, before.key, context) for client in clients))
            for context in contexts
        )
        judged[f"{action}, {'other' if differ else 'the same'} answers"] += 1
        if differ:
            assert action in ("release", "pause"), (encode(before), encode(after))
            assert told != ["written differently, with the same meaning"]
    assert judged["release, other answers"] > 100, judged
    assert judged["edit, the same answers"] > 20, judged


SEGMENT_DOCUMENTS = [{"key": key, "when": {"a": 1}} for key in SEGMENTS]
NOON = datetime(2026, 12, 1, 12, tzinfo=UTC)
TWINS: Mapping[object, tuple[object, ...]] = {1: (True, 1.0), 0: (False, 0.0)}
"""Values that Python takes for equal, and MongoDB does not."""


def drawn_edit(policies: PolicyGenerator) -> tuple[Flag | None, Flag | None]:
    """Return a flag, and the same after an edit somewhere in its document; None if not valid."""
    chance = policies.chance
    document = policies.good(0) | {"prerequisites": []}
    edited = copy.deepcopy(document)
    match chance.randrange(4):
        case 0:
            edited = with_twins(edited, chance)
        case 1:
            edited["state"] = chance.choice(("active", "paused", "archived"))
            edited["owner"] = "somebody"
        case 2:
            edited = reordered(edited, chance)
        case _:
            policies.spoil(edited)
    return decoded(document), decoded(edited)


def decoded(document: Any) -> Flag | None:
    try:
        found = decode(document)
    except FlagkitError:
        return None
    return found if found.key == "fuzz.flag-0" and found.region == "*" else None


def with_twins(value: Any, chance: random.Random) -> Any:
    """Return a document in which some constants are others that `==` takes for the same."""
    if isinstance(value, dict):
        return {name: with_twins(item, chance) for name, item in value.items()}
    if isinstance(value, list):
        return [with_twins(item, chance) for item in value]
    if type(value) in (bool, int, float) and value in TWINS and chance.random() < 0.5:
        return chance.choice((value, int(value), *TWINS[int(value)]))
    return value


def reordered(value: Any, chance: random.Random) -> Any:
    """Return a document whose fields stand in another order, on all levels."""
    if isinstance(value, dict):
        items = [(name, reordered(item, chance)) for name, item in value.items()]
        return dict(chance.sample(items, len(items)))
    return [reordered(item, chance) for item in value] if isinstance(value, list) else value


def answered(client: Client, key: str, context: dict[str, Any]) -> list[Any]:
    found = client.evaluate(key, context, default=None)
    return [found.value, found.variant, found.rule]
