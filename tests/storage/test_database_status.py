"""The survey: what a database holds and how its members are, for whoever may ask."""

from collections.abc import Iterator
from typing import Any

import pytest
from pymongo import MongoClient

from flagkit import Client
from flagkit._core.storage.database_status import DatabaseStatus, Member
from flagkit._core.storage.layout import CHECKPOINTS
from flagkit.writer import Writer
from flagkit.writer.checkpoints import write_checkpoint_in_steps
from tests.support.forked import poll_until
from tests.support.replica_set import MongodReplicaSet

pytestmark = pytest.mark.mongo

THEME: dict[str, Any] = {
    "key": "shop.theme",
    "variants": {"light": "light", "dark": "dark"},
    "fallthrough": {"serve": "dark"},
}


@pytest.fixture
def survey(mongo_uri: str, database: str) -> Iterator[DatabaseStatus]:
    with DatabaseStatus(mongo_uri, database) as survey:
        yield survey


@pytest.mark.usefixtures("_unvalidated")
def test_checkpoints_are_told_by_environment_but_for_those_that_clients_refuse(
    writer: Writer, survey: DatabaseStatus, mongo_uri: str, database: str
) -> None:
    assert survey.read_checkpoints() == []
    for change in (writer.create, writer.update):
        change(THEME)
        assert list(write_checkpoint_in_steps(writer.store))
    found = survey.read_checkpoints()
    assert [checkpoint.tip.revision for checkpoint in found] == [2, 1]
    assert survey.read_checkpoints("production") == found
    assert survey.read_checkpoints("staging") == []
    with MongoClient[dict[str, Any]](mongo_uri) as mongo:
        mongo[database][CHECKPOINTS].update_one({"revision": 2}, {"$unset": {"checksum": True}})
    assert [checkpoint.tip.revision for checkpoint in survey.read_checkpoints()] == [1]


@pytest.mark.timeout(180)
def test_members_are_told_with_how_far_they_are_behind() -> None:
    with (
        MongodReplicaSet(3, proxied=False) as members,
        Writer(members.uri(), "production", actor="tester") as writer,
        DatabaseStatus(members.uri(), "flagkit") as survey,
    ):
        writer.create_environment()
        states = poll_until(lambda: by_name(survey), lambda found: len(found) == 3)
        assert sorted(member.state for member in states.values()) == [
            "PRIMARY",
            "SECONDARY",
            "SECONDARY",
        ]
        late, dead = members.secondaries()
        members.lag(late, 3600)
        writer.create(THEME)

        def behind() -> float:
            writer.update(THEME)
            return by_name(survey)[late.host].lag_seconds or 0

        poll_until(behind, lambda seconds: seconds >= 1)
        dead.kill()
        poll_until(lambda: by_name(survey)[dead.host].lag_seconds, lambda seconds: seconds is None)
        assert by_name(survey)[members.primary().host].lag_seconds == 0


def by_name(survey: DatabaseStatus) -> dict[str, Member]:
    return {member.name: member for member in survey.read_members()}


@pytest.mark.timeout(180)
def test_who_may_not_ask_for_more_is_told_the_names_of_the_members() -> None:
    with MongodReplicaSet(proxied=False, password="of-root") as members:
        [member] = members.members
        reads = {"role": "read", "db": "flagkit"}
        writes = {"resource": {"db": "flagkit", "collection": "clients"}}
        with members.mongo() as mongo:
            privileges = [writes | {"actions": ["insert", "update"]}]
            mongo.flagkit.command("createRole", "register", privileges=privileges, roles=[])
            roles = [reads, {"role": "register", "db": "flagkit"}]
            mongo.admin.command("createUser", "service", pwd="secret", roles=roles)
        with Writer(members.uri(), "production", actor="tester") as writer:
            writer.create_environment()
        uri = members.uri(user="service:secret")
        with DatabaseStatus(uri, "flagkit") as survey:
            assert survey.read_members() == [Member(member.host, "PRIMARY", None)]
            # All that a client needs to register itself.
            with Client(uri, environment="production", register="shop"):
                poll_until(survey.read_clients, lambda found: len(found) == 1)
            assert survey.read_clients() == []
