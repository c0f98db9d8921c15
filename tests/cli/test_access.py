"""`flagkit access`: who may change what, who was denied what, and how many changes may be made."""

import pytest

from flagkit._core.model.access import Grant, Limit, Limits
from flagkit.errors import AccessDeniedError
from flagkit.writer import Writer
from tests.support.cli_runner import CommandRunner, fetch_revision
from tests.writer.test_writer import flag

pytestmark = pytest.mark.mongo

ADMIN = Grant("ada@example.com", "admin")


@pytest.fixture
def command(mongo_uri: str, database: str, writer: Writer) -> CommandRunner:
    assert fetch_revision(writer) == 0
    return CommandRunner(mongo_uri, database)


def test_roles_are_granted_listed_revoked_and_rolled_back(
    command: CommandRunner, writer: Writer
) -> None:
    assert command.told("access", "list") == "No role is granted: anybody may change anything.\n"
    refused = command.fault("access", "grant", "bob@example.com", "editor")
    assert "would leave no admin" in refused
    assert command.told("access", "grant", "ada@example.com", "admin", "--reason", "ours") == (
        "granted: admin of ada@example.com on everything\nrevision 1 of production\n"
    )
    namespaces = ("--namespace", "shop.", "--namespace", "search.")
    command.told("access", "grant", "bob@example.com", "editor", *namespaces)
    command.told("access", "grant", "bob@example.com", "releaser", "--namespace", "shop.")
    assert command.data("access", "list") == [
        {"actor": "ada@example.com", "role": "admin", "namespaces": []},
        {"actor": "bob@example.com", "role": "editor", "namespaces": ["search.", "shop."]},
        {"actor": "bob@example.com", "role": "releaser", "namespaces": ["shop."]},
    ]
    lines = [" ".join(line.split()) for line in command.told("access", "list").splitlines()[2:]]
    assert lines[:3] == [
        "ada@example.com admin everything",
        "bob@example.com editor search.",
        "shop.",
    ]
    assert command.told("access", "revoke", "bob@example.com", "editor") == (
        "revoked: editor of bob@example.com on search.\n"
        "revoked: editor of bob@example.com on shop.\n"
        "revision 4 of production\n"
    )
    command.told("access", "revoke", "bob@example.com")
    assert writer.reader.grants() == (ADMIN,)
    command.told("access", "rollback", "--to", "3")
    assert len(writer.reader.grants()) == 3


def test_who_may_not_is_told_so_and_denials_are_shown(
    command: CommandRunner, writer: Writer
) -> None:
    assert command.told("access", "denials") == "Nobody was denied anything.\n"
    writer.create(flag())
    command.told("access", "grant", "ada@example.com", "admin")
    bob = ("--actor", "bob@example.com", "--reason", "sale")
    pause = ("flags", "pause", "shop.search", *bob)
    refused = "'bob@example.com' may not pause shop.search in production"
    assert refused in command.fault(*pause, "--dry-run")
    assert command.told("access", "denials") == "Nobody was denied anything.\n"
    assert refused in command.fault(*pause)
    assert refused not in command.fault("flags", "archive", "shop.search", *bob)
    with pytest.raises(AccessDeniedError):
        writer.pause("shop.search")
    told = command.told("access", "denials", "--limit", "2").splitlines()[2:4]
    assert [" ".join(line.split()[2:]) for line in told] == [
        "tester pause shop.search",
        "bob@example.com release shop.search sale",
    ]
    found = command.data("access", "denials")
    assert [denial["action"] for denial in found] == ["pause", "release", "pause"]
    assert found[2]["operations"] == [{"operation": "set_state", "key": "shop.search"}]


def test_changes_are_limited_and_limited_no_more(command: CommandRunner, writer: Writer) -> None:
    assert command.told("access", "limits", "show") == "Changes are not limited.\n"
    told = command.told("access", "limits", "set", "actor", "--capacity", "1", "--rate", "0.001")
    assert told.startswith("limit of actor added: ")
    assert writer.reader.limits() == Limits(Limit(1, 0.001))
    lines = command.told("access", "limits", "show").splitlines()
    assert lines[2].split() == ["actor", "1", "0.001"]
    assert command.data("access", "limits", "show") == {
        "actor": {"capacity": 1, "rate": 0.001},
        "environment": None,
    }
    writer.create(flag(), actor="ada@example.com")
    refused = command.fault("flags", "archive", "shop.search")
    assert "the limit on changes of this actor is reached" in refused
    command.told("flags", "pause", "shop.search")
    command.told("access", "limits", "lift", "actor")
    assert writer.reader.limits() == Limits()
    command.told("flags", "archive", "shop.search")
    assert "rate: is 0.0" in command.fault(
        *("access", "limits", "set", "environment", "--capacity", "1", "--rate", "0")
    )


def test_roles_and_limits_that_are_none_are_wrong_usage(command: CommandRunner) -> None:
    assert command.ask("access", "grant", "bob@example.com", "owner").exit_code == 2
    assert command.ask("access", "limits", "lift", "everybody").exit_code == 2


def test_an_environment_that_is_not_there_is_said_not_to_be(command: CommandRunner) -> None:
    for arguments in (
        ("access", "list"),
        ("access", "denials"),
        ("access", "limits", "show"),
        ("flags", "list"),
        ("flags", "show", "a.b"),
        ("segments", "list"),
        ("segments", "show", "a.b"),
        ("flags", "pause", "a.b"),
    ):
        result = command.ask(*arguments, "--environment", "staging")
        assert result.exit_code == 1
        assert result.stderr.startswith("Error: the environment 'staging' is not in the database")
