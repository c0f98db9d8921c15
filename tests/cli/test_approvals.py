"""`flagkit approvals` and `flagkit pending`: changes that wait for a person, or for a revision."""

from typing import Any

import pytest
from pymongo import MongoClient

from flagkit.writer import Approval, Writer
from tests.support.cli_runner import CommandRunner, fetch_revision
from tests.writer.test_writer import flag

pytestmark = pytest.mark.mongo

GUARDS = [Approval()]
GUARDED = ("--guards", "tests.cli.test_approvals:GUARDS")


@pytest.fixture
def command(mongo_uri: str, database: str, writer: Writer) -> CommandRunner:
    writer.create(flag())
    return CommandRunner(mongo_uri, database)


def proposed(command: CommandRunner) -> str:
    """Propose to archive a flag, as ada, and return the proposal's id."""
    told = command.told("flags", "archive", "shop.search", "--propose", "--reason", "its time")
    line, proposal, state = told.splitlines()
    assert line == "shop.search: state: active -> archived"
    assert state == "open"
    assert proposal.endswith(": proposed by ada@example.com: its time")
    return proposal.partition(":")[0]


def test_a_change_is_proposed_approved_of_and_applied(
    command: CommandRunner, writer: Writer
) -> None:
    fault = command.fault("flags", "archive", "shop.search", *GUARDED)
    assert "takes the approval of another person in production. Propose it" in fault
    assert "--propose" in fault
    proposal = proposed(command)
    assert fetch_revision(writer) == 1
    own = command.fault("approvals", "approve", proposal)
    assert "somebody else has to approve" in own
    early = command.fault("approvals", "apply", proposal, *GUARDED)
    assert "is not approved of" in early
    bob = ("--actor", "bob@example.com")
    approved = command.told("approvals", "approve", proposal, *bob, "--reason", "fine")
    assert approved.splitlines()[2:] == ["approve: bob@example.com: fine", "open"]
    assert command.told("approvals", "show", proposal) == approved
    made = command.told("approvals", "apply", proposal, "--actor", "dana@example.com", *GUARDED)
    assert made.splitlines() == [
        "shop.search: state: active -> archived",
        "revision 2 of production",
    ]
    assert command.told("approvals", "show", proposal).splitlines()[-1] == "applied as revision 2"
    shown = command.told("ledger", "show", "--limit", "1")
    for who in ("ada@example.com", "approved: bob@example.com", "applied: dana@example.com"):
        assert who in shown
    (entry,) = command.data("ledger", "show", "--limit", "1")
    assert (entry["proposal"], entry["approvers"]) == (proposal, ["bob@example.com"])


def test_what_is_to_be_copied_is_not_broken_at_80_columns(command: CommandRunner) -> None:
    command.variables["COLUMNS"] = "80"
    proposal = proposed(command)
    assert f"\n{proposal} " in command.told("approvals", "list")


def test_a_proposal_that_is_void_or_closed_is_a_conflict(
    command: CommandRunner, writer: Writer
) -> None:
    proposal = proposed(command)
    command.told("approvals", "approve", proposal, "--actor", "bob@example.com")
    writer.pause("shop.search")
    fault = command.fault("approvals", "apply", proposal, code=4)
    assert fault.startswith("the proposal is void: shop.search is at version 2, and was at 1")
    assert command.data("approvals", "show", proposal)["state"] == "void"
    rejected = command.told("approvals", "reject", proposal, "--reason", "too late")
    assert rejected.splitlines() == ["no difference", "revision 3 of production"]
    assert "rejected by 'ada@example.com'" in command.fault("approvals", "apply", proposal, code=4)
    other = proposed_again(command)
    command.told("approvals", "withdraw", other)
    states = {item["id"]: item["state"] for item in command.data("approvals", "list")}
    assert states == {proposal: "rejected", other: "withdrawn"}
    table = command.told("approvals", "list")
    assert "archive shop.search" in table
    assert "bob@example.com" in table


def proposed_again(command: CommandRunner) -> str:
    found: str = command.data("flags", "archive", "shop.search", "--propose")["id"]
    return found


def test_to_propose_goes_with_no_dry_run(command: CommandRunner) -> None:
    for option in (["--dry-run"], ["--idempotency-key", "k"]):
        result = command.ask("flags", "archive", "shop.search", "--propose", *option)
        assert result.exit_code == 2
        assert "--propose goes with neither" in result.stderr
    fault = command.fault("flags", "archive", "shop.search", "--propose", "--break-glass", "now")
    assert "is for a change that cannot wait" in fault
    assert command.told("approvals", "list") == "Nothing is proposed.\n"
    assert "there is no proposal" in command.fault("approvals", "show", "gone")


def test_pending_changes_are_listed_swept_committed_and_dropped(
    command: CommandRunner, writer: Writer, mongo_uri: str
) -> None:
    assert command.told("pending", "list") == "Nothing is pending.\n"
    with MongoClient[dict[str, Any]](mongo_uri) as mine, mine.start_session() as session:
        with session.start_transaction():
            writer.in_transaction(session).pause("shop.search", reason="moved")
            gone = writer.in_transaction(session).pause("shop.gone").request
            late = writer.in_transaction(session).pause("shop.late").request
        assert [item["refused"] for item in command.data("pending", "list")] == [False] * 3
        assert "pause shop.search" in command.told("pending", "list")
    swept = command.told("pending", "sweep").splitlines()
    assert swept == [
        "shop.search: state: active -> paused",
        "revision 2 of production",
        "1 made, 2 refused, 0 go on waiting",
    ]
    assert command.data("pending", "sweep") == {"commits": [], "refused": 0, "waiting": 0}
    assert "refused: there is no flag 'shop.gone'" in command.told("pending", "list")
    assert "no flag 'shop.late'" in command.fault("pending", "commit", late)
    writer.create(flag("shop.late"))
    made = command.told("pending", "commit", late)
    assert made.splitlines() == [
        "shop.late: state: active -> paused",
        "revision 4 of production",
    ]
    command.told("pending", "drop", gone, "--reason", "a mistake")
    assert command.told("pending", "list") == "Nothing is pending.\n"
    assert "there is no pending change" in command.fault("pending", "drop", gone)
    (dropped,) = writer.reader.entries(action="drop-pending")
    assert (dropped.actor, dropped.reason) == ("ada@example.com", "a mistake")
