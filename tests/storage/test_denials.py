"""Denials: the log is bounded in size and rate, over processes, and one flood hides nobody else."""

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import bson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymongo import MongoClient
from pymongo.database import Database

from flagkit._core.storage.layout import DENIAL_LENGTH_MAX, DENIAL_OPERATIONS_MAX
from flagkit._core.storage.requests import DENIALS_A_MINUTE_MAX, GROUPS, DenialLog, shorten_text
from flagkit.errors import AccessDeniedError
from flagkit.writer import Retention, Writer, erase_actor
from flagkit.writer.access import Denial
from tests.support.cli_runner import CommandRunner
from tests.writer.test_writer import flag

pytestmark = pytest.mark.mongo

NOON = datetime(2026, 12, 1, 12, tzinfo=UTC)
TOLD: dict[str, Any] = {"action": "edit", "key": "shop.search", "reason": "", "operations": []}


@pytest.fixture
def direct(mongo_uri: str, database: str) -> Iterator[Database[dict[str, Any]]]:
    with MongoClient[dict[str, Any]](mongo_uri, tz_aware=True) as client:
        yield client[database]


@pytest.fixture
def closed(writer: Writer) -> Writer:
    writer.create(flag())
    with writer.change() as change:
        change.grant("tester", "admin")
    return writer


def logged(writer: Writer, actor: str) -> list[Denial]:
    return [denial for denial in writer.reader.denials() if denial.actor == actor]


def test_a_denial_is_small_whatever_was_asked(
    closed: Writer, direct: Database[dict[str, Any]]
) -> None:
    def ask() -> None:
        with closed.change(actor="é" * 200, reason="é" * 11_000_000) as change:
            for _ in range(1_000):
                change.pause("shop.search")

    with pytest.raises(AccessDeniedError):
        ask()
    (document,) = direct.denials.find()
    assert len(bson.encode(document)) < 16_384
    assert document["reason"] == "é" * 997 + "..."
    assert document["actor"] == "é" * 200
    assert len(document["operations"]) == DENIAL_OPERATIONS_MAX


@given(st.text(max_size=40) | st.text(min_size=190, max_size=210), st.integers(1, 10))
def test_a_text_is_shortened_to_its_beginning(part: str, times: int) -> None:
    whole = part * times
    for name, most in DENIAL_LENGTH_MAX.items():
        short = shorten_text(whole, name)
        short.encode()
        assert len(short) <= most
        if len(whole) <= most:
            assert short == whole.encode(errors="replace").decode()


def test_a_reason_that_no_document_can_hold_does_not_keep_a_denial_from_being_logged(
    closed: Writer,
) -> None:
    assert closed.store.denials.add(NOON, {**TOLD, "actor": "eve", "reason": "a\ud800"})
    assert [denial.reason for denial in closed.reader.denials()] == ["a?"]


def test_a_flood_of_an_actor_leaves_a_few_and_hides_nobody_else(
    closed: Writer, mongo_uri: str, database: str
) -> None:
    """Over writers, which share nothing but the database; and after a restart."""
    for _ in range(3):
        with Writer(mongo_uri, "production", actor="mallory", database=database) as mallory:
            assert len({mallory.store.denials.add(NOON, TOLD | {"actor": "mallory"})}) == 1
            for second in range(100):
                now = NOON + timedelta(seconds=second % 60)
                mallory.store.denials.add(now, {**TOLD, "actor": "mallory"})
    assert len(logged(closed, "mallory")) == DENIALS_A_MINUTE_MAX
    for name in ("ada", "bob", "eve"):
        assert closed.store.denials.add(NOON, {**TOLD, "actor": name})
        assert len(logged(closed, name)) == 1
    # The next minute has room again.
    assert closed.store.denials.add(NOON + timedelta(minutes=1), {**TOLD, "actor": "mallory"})


def test_a_flood_through_the_writer_ends_by_itself(
    closed: Writer, direct: Database[dict[str, Any]]
) -> None:
    for _ in range(3 * DENIALS_A_MINUTE_MAX):
        with pytest.raises(AccessDeniedError):
            closed.pause("shop.search", actor="mallory")
    # It may have gone on into a second minute.
    assert DENIALS_A_MINUTE_MAX <= direct.denials.count_documents({}) <= 2 * DENIALS_A_MINUTE_MAX
    with pytest.raises(AccessDeniedError):
        closed.pause("shop.search", actor="ada")
    assert len(logged(closed, "ada")) == 1


@pytest.mark.slow
def test_not_even_a_flood_of_names_has_no_end(closed: Writer) -> None:
    held = DenialLog(closed.store._database, "production")
    rooms = 0
    for number in range(2_000):
        rooms += held.add(NOON, {**TOLD, "actor": f"name-{number % 700}"})
    assert len(closed.reader.denials()) == rooms <= GROUPS * DENIALS_A_MINUTE_MAX


@settings(max_examples=30)
@given(st.text(max_size=20), st.text(max_size=20))
def test_two_actors_seldom_have_the_same_slots(one: str, other: str) -> None:
    from flagkit._core.storage.requests import _iter_slots  # noqa: PLC0415 - of this test alone

    shared = {*_iter_slots("20261201T1200Z", one)} & {*_iter_slots("20261201T1200Z", other)}
    assert one == other or len(shared) < DENIALS_A_MINUTE_MAX


def test_denials_are_told_oldest_first_also_those_of_an_earlier_version(
    closed: Writer, direct: Database[dict[str, Any]]
) -> None:
    identity = {
        "environment": "production",
        "denial": f"20261201T120030.000000Z-{uuid.uuid4().hex}",
    }
    earlier = {**TOLD, "_id": identity, "time": NOON + timedelta(seconds=30), "actor": "b"}
    direct.denials.insert_one(earlier)
    for actor, seconds in (("c", 40), ("a", 20)):
        closed.store.denials.add(NOON + timedelta(seconds=seconds), {**TOLD, "actor": actor})
    assert [denial.actor for denial in closed.reader.denials()] == ["a", "b", "c"]


def test_the_command_shows_them_newest_first(closed: Writer, mongo_uri: str, database: str) -> None:
    for actor, seconds in (("carol", 40), ("ada", 20)):
        closed.store.denials.add(NOON + timedelta(seconds=seconds), {**TOLD, "actor": actor})
    told = CommandRunner(mongo_uri, database).data("access", "denials")
    assert [denial["actor"] for denial in told] == ["carol", "ada"]


def test_they_are_pruned_and_erased_as_before(
    closed: Writer, mongo_uri: str, database: str, direct: Database[dict[str, Any]]
) -> None:
    long = "a" * 500
    for number in range(5):
        closed.store.denials.add(NOON + timedelta(days=number), {**TOLD, "actor": long})
    assert {denial.actor for denial in closed.reader.denials()} == {"a" * 197 + "..."}
    done = erase_actor(long, uri=mongo_uri, database=database)
    assert done.documents["denials"] == 5
    assert {denial.actor for denial in closed.reader.denials()} == {done.name}
    wanted, now = Retention(denials_days=1), NOON + timedelta(days=4)
    assert [row.documents for row in closed.reader.list_prunable(wanted, now)] == [3]
    closed.prune(wanted, now=now)
    assert direct.denials.count_documents({}) == 2
