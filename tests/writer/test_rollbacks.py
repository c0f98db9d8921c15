"""Rollbacks of a whole environment: exact, one revision or none, and checked as any change."""

import random
from typing import Any

import pytest
from pymongo import MongoClient

from flagkit._core.model.changes import build_next_change
from flagkit.client.client import Client
from flagkit.errors import InvalidArgumentError, InvalidDocumentError, RevisionNotFoundError
from flagkit.writer import Writer, planning
from flagkit.writer.operations import SetState
from flagkit.writer.planning import plan
from tests.support.random_history import RandomHistory, count_segments
from tests.writer.test_writer import flag, policy, state

pytestmark = pytest.mark.mongo


@pytest.mark.parametrize("seed", range(4))
def test_an_environment_is_rolled_back_to_the_byte(seed: int, writer: Writer) -> None:
    rehearsal = RandomHistory(writer, random.Random(seed), keys=12)
    for _ in range(10):
        for _ in range(4):
            rehearsal.change()
        rehearsal.roll_back()
    assert rehearsal.problems == []
    assert any(map(count_segments, rehearsal.policies))
    assert writer.reader.verify() == []


def test_a_rollback_of_everything_is_one_revision_that_says_what_it_was(writer: Writer) -> None:
    writer.create(flag("a.kept"))
    writer.create(flag("a.lost", state="archived"))
    salted = {"rollout": {"salt": "wave", "weights": {"on": 10, "off": 90}}}
    point = writer.create(flag("a.salted", fallthrough=salted))
    writer.update(flag("a.salted"))
    writer.delete("a.lost")
    writer.create(flag("a.new"))
    commit = writer.rollback(to=point.revision, reason="incident 7", actor="ana")
    assert commit.revision == point.revision + 4
    assert policy(writer, "a.salted")["fallthrough"]["rollout"]["salt"] == "wave"
    versions = [state(writer, f"a.{key}").version for key in ("kept", "lost", "salted")]
    assert versions == [1, 2, 3]
    with writer.store.open_reader() as reading:
        assert reading.find_flags(["a.new"]) == {}
    last = [*writer.reader.entries()][-1]
    assert last.actions == (f"rollback everything to revision {point.revision}",)
    assert (last.actor, last.reason, last.time) == ("ana", "incident 7", commit.time)
    assert last.time >= point.time


def test_clients_follow_a_rollback_of_everything_to_nothing(
    writer: Writer, mongo_uri: str, database: str
) -> None:
    writer.create(flag())
    with Client(mongo_uri, environment="production", database=database) as client:
        client.wait_for(1)
        client.wait_for(writer.rollback(to=0).revision)
        assert not client.is_enabled("shop.search", {})
        client.wait_for(writer.rollback(to=1).revision)
        assert client.is_enabled("shop.search", {})
    assert writer.rollback(to=3).revision == 4
    assert writer.reader.verify() == []


def test_what_is_not_projected_yet_is_rolled_back_too(writer: Writer) -> None:
    writer.create(flag())
    with writer.store.open_reader() as reading:
        planned = plan([SetState(key="shop.search", verb="pause")], reading, 1, {})
    change = build_next_change(reading.tip, "the-dead-one", reading.now, planned.changes)
    assert writer.store.compare_and_set(reading.tip, change)
    writer.rollback(to=2)
    assert policy(writer)["state"] == "paused"
    writer.rollback(to=1)
    assert policy(writer)["state"] == "active"


def test_a_rollback_to_where_nothing_is_known(writer: Writer) -> None:
    writer.create(flag())
    for revision in (-1, 2):
        with pytest.raises(RevisionNotFoundError, match=f"no revision {revision}: the newest is 1"):
            writer.rollback(to=revision)
    odd: Any = "1"
    with pytest.raises(InvalidArgumentError, match=r"commit\.revision"):
        writer.rollback(to=odd)
    with pytest.raises(InvalidArgumentError, match="leave region out"):
        writer.rollback(to=1, region="eu")


def test_a_rollback_of_everything_comes_alone(writer: Writer) -> None:
    writer.create(flag())

    def change_all() -> None:
        with writer.change() as change:
            change.pause("shop.search")
            change.rollback_all(to=0)

    with pytest.raises(InvalidDocumentError, match="Make two changes of it"):
        change_all()
    assert writer.store.read_tip().revision == 1


def test_a_rollback_that_is_too_large_is_refused_whole(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "CHANGE_BYTES_MAX", 4 * 2**20)
    for i in range(4):
        writer.create(flag(f"a.a{i}", description="x" * 900_000))
        writer.update(flag(f"a.a{i}", description="y" * 900_000))
    with pytest.raises(InvalidDocumentError, match=r"the limit is .*Roll back flag by flag"):
        writer.rollback(to=1)
    assert writer.store.read_tip().revision == 8


def test_a_rollback_of_everything_needs_the_members_that_segments_had(
    writer: Writer, mongo_uri: str, database: str
) -> None:
    writer.create_segment({"key": "staff", "included": ["ada"]})
    writer.delete_segment("staff")
    with MongoClient[dict[str, Any]](mongo_uri) as client:
        client[database].members.delete_many({})
    with pytest.raises(InvalidDocumentError, match="members that are not there"):
        writer.rollback(to=1)
