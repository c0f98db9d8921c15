"""Approvals: what takes another person's, whose counts, what makes a proposal void."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database

from flagkit.errors import (
    AccessDeniedError,
    ConfigurationError,
    FlagkitError,
    GuardError,
    InvalidArgumentError,
    NotApprovedError,
    ProposalClosedError,
    ProposalNotFoundError,
    ProposalVoidError,
    RateLimitedError,
    StoreError,
)
from flagkit.writer import Approval, Draft, Freeze, Writer
from flagkit.writer.approvals import hash_proposal
from flagkit.writer.ledger import DECISIONS
from tests.writer.test_writer import flag, policy

pytestmark = pytest.mark.mongo

Open = Callable[..., Writer]
GUARDED = [Approval()]


@pytest.fixture
def team(writer: Writer, mongo_uri: str, database: str) -> Iterator[Open]:
    """Opens guarded writers, by actor, in an environment where everybody has a role."""
    writer.create(flag())
    with writer.change() as change:
        change.grant("tester", "admin")
        change.grant("ada", "editor")
        change.grant("eve", "editor", ["pay."])
        change.grant("bob", "releaser", ["shop."])
        change.grant("dana", "releaser")
        change.grant("carol", "releaser", ["pay."])
    with contextlib.ExitStack() as opened:

        def writer_of(actor: str, **more: Any) -> Writer:
            given = {"guards": GUARDED, **more}
            return opened.enter_context(
                Writer(mongo_uri, "production", actor=actor, database=database, **given)
            )

        yield writer_of


@pytest.fixture
def direct(mongo_uri: str, database: str) -> Iterator[Database[dict[str, Any]]]:
    with MongoClient[dict[str, Any]](mongo_uri) as client:
        yield client[database]


def proposed(writer: Writer, *asked: Callable[[Draft], object], reason: str = "launch") -> str:
    with writer.proposals.propose(reason=reason) as change:
        for ask in asked:
            ask(change)
    assert change.commit is None
    assert change.proposal is not None
    return change.proposal


def off(draft: Draft) -> None:
    draft.update(flag(fallthrough={"serve": "off"}))


def test_a_change_takes_the_approval_of_another_person(team: Open, writer: Writer) -> None:
    ada, bob = team("ada"), team("bob")
    with pytest.raises(GuardError, match="takes the approval of another person in production"):
        bob.update(flag(fallthrough={"serve": "off"}))
    tip = writer.store.read_tip()
    proposal = proposed(ada, off)
    assert writer.store.read_tip() == tip
    seen = bob.reader.proposal(proposal)
    assert (seen.state, seen.actor, seen.reason, seen.verdicts) == ("open", "ada", "launch", ())
    assert seen.actions == ("update shop.search",)
    assert seen.differences == ("shop.search: fallthrough: serves on -> serves off",)
    approved = bob.proposals.approve(proposal, reason="looks good")
    (verdict,) = approved.verdicts
    assert (verdict.actor, verdict.verdict, verdict.reason) == ("bob", "approve", "looks good")
    commit = team("dana").proposals.apply(proposal)
    assert commit.revision == tip.revision + 1
    assert policy(writer)["fallthrough"] == {"serve": "off"}
    assert ada.proposals.apply(proposal) == commit
    (entry,) = writer.reader.entries(tip.revision)
    assert (entry.actor, entry.reason, entry.proposal) == ("ada", "launch", proposal)
    assert (entry.approvers, entry.applier) == (("bob",), "dana")
    done = writer.reader.proposal(proposal)
    assert (done.state, done.revision) == ("applied", commit.revision)
    assert writer.reader.verify() == []


def test_no_idempotency_key_is_an_application(writer: Writer) -> None:
    writer.create(flag())
    proposal = proposed(writer, off)
    writer.proposals.approve(proposal, actor="dana")
    applied = f"flagkit:apply {proposal}"
    with pytest.raises(InvalidArgumentError, match="does not begin with flagkit:"):
        writer.pause("shop.search", idempotency_key=applied)
    writer.create(flag("a.new"), idempotency_key=proposal)
    assert writer.reader.proposal(proposal).state == "open"
    assert writer.proposals.apply(proposal).request == applied


def test_nobody_approves_of_what_they_propose(team: Open) -> None:
    dana = team("dana")
    proposal = proposed(dana, off)
    with pytest.raises(NotApprovedError, match="somebody else has to approve"):
        dana.proposals.approve(proposal)
    with pytest.raises(NotApprovedError, match="not approved of by anybody"):
        dana.proposals.apply(proposal)


def test_an_approval_that_was_forged_for_who_proposed_it_does_not_count(
    team: Open, direct: Database[dict[str, Any]]
) -> None:
    dana = team("dana")
    proposal = proposed(dana, off)
    made = direct.proposals.find_one({"_id.proposal": proposal})
    assert made is not None
    dana.store.proposals.add(
        proposal, "dana", "approve", {name: made[name] for name in ("time", "reason", "digest")}
    )
    with pytest.raises(NotApprovedError):
        dana.proposals.apply(proposal)


@pytest.mark.parametrize(
    ("actor", "may"), [("ada", False), ("carol", False), ("bob", True), ("dana", True)]
)
def test_to_approve_takes_the_role_that_the_change_takes(
    actor: str, may: bool, team: Open, writer: Writer
) -> None:
    proposal = proposed(team("tester"), off)
    if may:
        team(actor).proposals.approve(proposal)
        assert team("tester").proposals.apply(proposal).revision == 3
        return
    with pytest.raises(AccessDeniedError, match=f"'{actor}' may not release"):
        team(actor).proposals.approve(proposal)
    assert [denial.actor for denial in writer.reader.denials()] == [actor]
    with pytest.raises(NotApprovedError):
        team("tester").proposals.apply(proposal)


def test_to_propose_and_to_apply_take_a_role_that_may_edit(team: Open, writer: Writer) -> None:
    for actor in ("eve", "nobody"):
        with pytest.raises(AccessDeniedError, match="may not edit shop"):
            proposed(team(actor), off)
    assert writer.reader.proposals() == []
    assert [denial.actor for denial in writer.reader.denials()] == ["eve", "nobody"]
    proposal = proposed(team("ada"), off)
    team("bob").proposals.approve(proposal)
    with pytest.raises(AccessDeniedError, match="'eve' may not edit"):
        team("eve").proposals.apply(proposal)
    # Who proposed it has left the team.
    with writer.change() as change:
        change.revoke("ada")
    with pytest.raises(AccessDeniedError, match="'ada' may not edit"):
        team("bob").proposals.apply(proposal)


def test_what_is_not_right_cannot_be_proposed(team: Open, writer: Writer) -> None:
    for ask, problem in (
        (lambda draft: draft.create(flag()), "is there already"),
        (lambda draft: draft.pause("shop.gone"), "no flag"),
        (lambda draft: draft.edit("shop.search", dict), "update it with expected_version"),
        (lambda draft: draft.bypass_guards("now"), "is for a change that cannot wait"),
        (lambda draft: draft.update(flag(), expected_version=7), "expected 7"),
    ):
        with pytest.raises(FlagkitError, match=problem):
            proposed(team("ada"), ask)
    assert writer.reader.proposals() == []


def test_a_proposal_is_void_once_what_it_touches_has_moved(team: Open, writer: Writer) -> None:
    proposal = proposed(team("ada"), off)
    team("bob").proposals.approve(proposal)
    writer.create(flag("shop.unrelated"))
    writer.pause("shop.search", actor="dana")
    with pytest.raises(
        ProposalVoidError, match=r"shop\.search is at version 2, and was at 1 \('dana' at"
    ) as caught:
        team("ada").proposals.apply(proposal)
    assert (caught.value.key, caught.value.actor) == ("shop.search", "dana")
    with pytest.raises(ProposalVoidError):
        team("dana").proposals.approve(proposal)
    seen = writer.reader.proposal(proposal)
    assert seen.state == "void"
    assert "is at version 2" in seen.problem
    assert [listed.state for listed in writer.reader.proposals()] == ["void"]


def test_what_was_not_there_must_not_be_there(team: Open, writer: Writer) -> None:
    first = proposed(team("ada"), lambda draft: draft.create(flag("shop.new")))
    second = proposed(team("ada"), lambda draft: draft.create(flag("shop.new", owner="ada")))
    for proposal in (first, second):
        team("bob").proposals.approve(proposal)
    team("ada").proposals.apply(second)
    with pytest.raises(ProposalVoidError, match="was not there"):
        team("ada").proposals.apply(first)
    assert policy(writer, "shop.new")["owner"] == "ada"


def test_a_rollback_of_everything_changes_no_more_than_was_proposed(
    team: Open, writer: Writer
) -> None:
    writer.pause("shop.search")
    proposal = proposed(team("ada"), lambda draft: draft.rollback_all(to=2))
    team("dana").proposals.approve(proposal)
    writer.create(flag("shop.later"))
    with pytest.raises(ProposalVoidError, match=r"shop\.later would be changed, too"):
        team("ada").proposals.apply(proposal)


def test_nothing_slips_in_between_the_look_and_the_commit(
    team: Open, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def apply_after(ask: Callable[[str], object]) -> Callable[[], object]:
        proposal = proposed(team("ada"), off)
        team("bob").proposals.approve(proposal)
        applying = team("ada")
        compare_and_set = applying.store.compare_and_set

        def late(*asked: Any) -> bool:
            monkeypatch.undo()
            ask(proposal)
            return compare_and_set(*asked)

        monkeypatch.setattr(applying.store, "compare_and_set", late)
        return lambda: applying.proposals.apply(proposal)

    def revoke(_proposal: str) -> None:
        with writer.change() as change:
            change.revoke("bob")

    with pytest.raises(ProposalVoidError):
        apply_after(lambda _: writer.pause("shop.search"))()
    with pytest.raises(ProposalClosedError, match="rejected by 'dana'"):
        apply_after(team("dana").proposals.reject)()
    with pytest.raises(ProposalClosedError, match="withdrawn by 'ada'"):
        apply_after(team("ada").proposals.withdraw)()
    with pytest.raises(NotApprovedError, match="bob may not make this change"):
        apply_after(revoke)()
    assert [entry for entry in writer.reader.entries() if entry.proposal] == []


def test_two_who_apply_at_once_make_one_revision(
    team: Open, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposal = proposed(team("ada"), off)
    team("bob").proposals.approve(proposal)
    slow = team("ada")
    compare_and_set = slow.store.compare_and_set
    fast: list[object] = []

    def late(*asked: Any) -> bool:
        monkeypatch.undo()
        fast.append(team("bob").proposals.apply(proposal))
        return compare_and_set(*asked)

    monkeypatch.setattr(slow.store, "compare_and_set", late)
    assert slow.proposals.apply(proposal) == fast[0]
    assert writer.store.read_tip().revision == 3


def test_a_rejection_and_an_application_exclude_each_other(
    team: Open, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposal = proposed(team("ada"), off)
    team("bob").proposals.approve(proposal)
    rejecting = team("dana")
    compare_and_set = rejecting.store.compare_and_set

    def late(*asked: Any) -> bool:
        monkeypatch.undo()
        # It read the proposal before it was rejected.
        with pytest.raises(ProposalClosedError):
            team("ada").proposals.apply(proposal)
        return compare_and_set(*asked)

    monkeypatch.setattr(rejecting.store, "compare_and_set", late)
    rejecting.proposals.reject(proposal, reason="not before Christmas")
    seen = writer.reader.proposal(proposal)
    assert seen.state == "rejected"
    with pytest.raises(ProposalClosedError):
        team("bob").proposals.approve(proposal)
    with pytest.raises(ProposalClosedError):
        team("ada").proposals.withdraw(proposal)


def test_who_closes_a_proposal_stands_in_the_ledger(team: Open, writer: Writer) -> None:
    rejected, withdrawn = (proposed(team("ada"), off) for _ in range(2))
    with pytest.raises(AccessDeniedError):
        team("carol").proposals.reject(rejected)
    with pytest.raises(NotApprovedError, match="'bob' would withdraw it: reject it"):
        team("bob").proposals.withdraw(withdrawn)
    team("bob").proposals.reject(rejected, reason="no")
    team("ada").proposals.withdraw(withdrawn, reason="a mistake")
    assert {listed.id: listed.state for listed in writer.reader.proposals()} == {
        withdrawn: "withdrawn",
        rejected: "rejected",
    }
    decisions = [entry for name in DECISIONS for entry in writer.reader.entries(action=name)]
    assert [(entry.actor, entry.reason, entry.actions) for entry in decisions] == [
        ("bob", "no", (f"reject proposal {rejected}",)),
        ("ada", "a mistake", (f"withdraw proposal {withdrawn}",)),
    ]
    applied = proposed(team("ada"), off)
    team("bob").proposals.approve(applied)
    team("ada").proposals.apply(applied)
    with pytest.raises(ProposalClosedError, match="was applied as revision"):
        team("bob").proposals.reject(applied)


def test_an_approval_holds_as_long_as_its_role(team: Open, writer: Writer) -> None:
    proposal = proposed(team("ada"), off)
    team("bob").proposals.approve(proposal)
    with writer.change() as change:
        change.revoke("bob")
    with pytest.raises(NotApprovedError, match="bob may not make this change"):
        team("ada").proposals.apply(proposal)
    team("dana").proposals.approve(proposal)
    team("ada").proposals.apply(proposal)


@pytest.mark.parametrize("digest", [False, True], ids=["as it was", "made anew"])
def test_a_proposal_that_was_altered_is_refused(
    digest: bool, team: Open, direct: Database[dict[str, Any]]
) -> None:
    proposal = proposed(team("ada"), off)
    team("bob").proposals.approve(proposal)
    wanted = {"_id.proposal": proposal, "_id.verdict": "propose"}
    direct.proposals.update_one(wanted, {"$set": {"operations.0.policy.off": "on"}})
    if not digest:
        dana = team("dana")
        for use in (dana.reader.proposal, dana.proposals.approve, dana.proposals.apply):
            with pytest.raises(StoreError, match="changed past the writer"):
                use(proposal)
        other = proposed(team("ada"), off)
        states = {found.id: found.state for found in team("dana").reader.proposals()}
        assert states == {proposal: "void", other: "open"}
        return
    altered = direct.client.get_database(
        direct.name, direct.codec_options.with_options(tz_aware=True)
    ).proposals.find_one(wanted)
    assert altered is not None
    direct.proposals.update_one(wanted, {"$set": {"digest": hash_proposal("ada", altered)}})
    # Whoever can write to the database can do that; what was approved of was something else.
    with pytest.raises(NotApprovedError):
        team("ada").proposals.apply(proposal)


def test_the_kill_switch_takes_no_approval(team: Open, writer: Writer) -> None:
    team("ada").pause("shop.search", reason="incident 7")
    assert policy(writer)["state"] == "paused"
    with pytest.raises(GuardError):
        team("bob").resume("shop.search")


def test_the_glass_can_be_broken_and_that_is_loud(
    team: Open, writer: Writer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "flagkit.writer"), team("bob").change() as change:
        change.bypass_guards("incident 7")
        off(change)
    assert "bob broke the glass" in caplog.text
    assert [*writer.reader.entries()][-1].bypass_reason == "incident 7"


SCOPES: dict[str, tuple[Approval, bool]] = {
    "everything that is released": (Approval(), False),
    "this environment": (Approval(environments=["production"]), False),
    "another environment": (Approval(environments=["staging"]), True),
    "this namespace": (Approval(namespaces=["pay.", "shop."]), False),
    "another namespace": (Approval(namespaces=["pay."]), True),
    "edits alone": (Approval(actions=["edit"]), True),
    "edits and releases": (Approval(actions=["edit", "release"]), False),
}


@pytest.mark.parametrize("scope", SCOPES)
def test_what_is_out_of_its_scope_takes_no_approval(scope: str, team: Open) -> None:
    guard, passes = SCOPES[scope]
    context = contextlib.nullcontext() if passes else pytest.raises(GuardError, match="Propose it")
    with context:
        team("dana", guards=[guard]).update(flag(fallthrough={"serve": "off"}))


def test_an_edit_takes_an_approval_where_that_is_asked_for(team: Open) -> None:
    team("ada").update(flag(owner="ada"))
    with pytest.raises(GuardError):
        team("ada", guards=[Approval(actions=["edit"])]).update(flag(owner="bob"))


def test_two_have_to_approve_where_that_is_asked_for(team: Open) -> None:
    dana = team("dana", guards=[Approval(count=2)])
    proposal = proposed(team("ada"), off)
    team("bob").proposals.approve(proposal)
    with pytest.raises(GuardError, match="takes the approval of 1 more"):
        dana.proposals.apply(proposal)
    team("tester").proposals.approve(proposal)
    dana.proposals.apply(proposal)


@pytest.mark.parametrize(
    "wrong",
    [{"count": 0}, {"actions": ["pause"]}, {"actions": []}, {"namespaces": "shop."}],
    ids=str,
)
def test_a_guard_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="Approval"):
        Approval(**wrong)


def test_other_guards_and_limits_hold_when_it_is_applied(team: Open, writer: Writer) -> None:
    proposal = proposed(team("ada"), off)
    team("bob").proposals.approve(proposal)
    frozen = Freeze({"from": "2020-01-01T00:00:00Z"})
    with pytest.raises(GuardError, match="is frozen"):
        team("ada", guards=[*GUARDED, frozen]).proposals.apply(proposal)
    with writer.change() as change:
        change.set_limit("actor", capacity=1, rate=0.001)
    team("ada").create_segment({"key": "shop.draft"})
    with pytest.raises(RateLimitedError):
        team("bob").proposals.apply(proposal)


def test_in_an_open_environment_anybody_else_may_approve(writer: Writer) -> None:
    proposal = proposed(writer, lambda draft: draft.create(flag()))
    writer.proposals.approve(proposal, actor="bob")
    assert writer.proposals.apply(proposal).revision == 1


def test_grants_and_segments_can_be_proposed(team: Open, writer: Writer) -> None:
    def ask(draft: Draft) -> None:
        draft.grant("eve", "releaser", ["pay."])
        draft.create_segment({"key": "pay.beta", "included": [f"user-{i}" for i in range(2_000)]})
        draft.create(flag("pay.new", state="paused"))

    proposal = proposed(team("ada"), ask)
    with pytest.raises(AccessDeniedError, match="may not grant"):
        team("dana").proposals.approve(proposal)
    writer.proposals.approve(proposal)
    team("ada").proposals.apply(proposal)
    assert writer.reader.verify() == []
    assert writer.reader.proposal(proposal).state == "applied"


def test_proposals_are_listed_newest_first(team: Open, writer: Writer) -> None:
    made = [
        proposed(team("ada"), lambda draft: draft.update(flag()), reason=str(i)) for i in range(3)
    ]
    listed = writer.reader.proposals(2)
    assert len(listed) == 2
    assert {item.id for item in writer.reader.proposals()} == {*made}
    assert [item.id for item in listed] == sorted(made, reverse=True)[:2]


def test_what_is_not_there_cannot_be_approved_of(writer: Writer) -> None:
    made = writer.proposals
    for use in (writer.reader.proposal, made.approve, made.reject, made.withdraw, made.apply):
        with pytest.raises(ProposalNotFoundError, match="flagkit approvals list"):
            use("20261121-103200-00000000")
