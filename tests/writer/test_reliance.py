"""Reliance: what revisions relied on is proved: altered, forged and removed approvals are found."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database

from flagkit.errors import (
    NotApprovedError,
    ProposalClosedError,
    RequestConflictError,
)
from flagkit.writer import Retention, Writer, erase_actor
from flagkit.writer.approvals import hash_proposal
from flagkit.writer.commit import format_application_request
from flagkit.writer.operations import hash_request
from tests.writer.test_writer import flag

pytestmark = pytest.mark.mongo

Direct = Database[dict[str, Any]]


@pytest.fixture
def direct(mongo_uri: str, database: str) -> Iterator[Direct]:
    with MongoClient[dict[str, Any]](mongo_uri, tz_aware=True) as client:
        yield client[database]


def proposed(writer: Writer, key: str, actor: str = "ada") -> str:
    with writer.proposals.propose(actor=actor, reason="launch") as change:
        change.create(flag(key))
    assert change.proposal is not None
    return change.proposal


@pytest.fixture
def decided(writer: Writer) -> dict[str, str]:
    """Return proposals that were applied, rejected and withdrawn, and one that is open."""
    found = {name: proposed(writer, f"a.{name}") for name in ("applied", "rejected", "withdrawn")}
    for who in ("bob", "carol"):
        writer.proposals.approve(found["applied"], actor=who)
    writer.proposals.apply(found["applied"], actor="dana")
    writer.proposals.reject(found["rejected"], actor="eve", reason="no")
    writer.proposals.withdraw(found["withdrawn"], actor="ada")
    found["open"] = proposed(writer, "a.open")
    writer.proposals.approve(found["open"], actor="bob")
    assert writer.reader.verify() == []
    return found


def test_the_audit_says_what_an_application_relied_on(
    decided: dict[str, str], writer: Writer, direct: Direct
) -> None:
    request = format_application_request(decided["applied"])
    asked = writer.store.read_requests([request])[request]
    made = direct.proposals.find_one({"_id.proposal": decided["applied"], "_id.verdict": "propose"})
    assert made is not None
    assert asked["approved"] == {"digest": made["digest"], "by": ["bob", "carol"]}
    assert asked["digest"] == hash_request(asked)
    first = next(writer.reader.entries())
    assert (first.approvers, first.applier) == (("bob", "carol"), "dana")


Tamper = Callable[[Direct, dict[str, str]], object]


def said(name: str, verdict: str, **more: str) -> Callable[[dict[str, str]], dict[str, Any]]:
    named = {f"_id.{field}": value for field, value in more.items()}
    return lambda ids: {"_id.proposal": ids[name], "_id.verdict": verdict, **named}


def gone(name: str, verdict: str, **more: str) -> Tamper:
    return lambda db, ids: db.proposals.delete_one(said(name, verdict, **more)(ids))


def all_gone(name: str) -> Tamper:
    return lambda db, ids: db.proposals.delete_many({"_id.proposal": ids[name]})


def other(name: str, verdict: str, **fields: Any) -> Tamper:
    return lambda db, ids: db.proposals.update_one(said(name, verdict)(ids), {"$set": fields})


def made_anew(db: Direct, ids: dict[str, str]) -> None:
    """Alter a proposal with all that is said of it, so that every digest there fits."""
    where = said("applied", "propose")(ids)
    made = db.proposals.find_one(where)
    assert made is not None
    made["operations"][0]["policy"]["owner"] = "mallory"
    made["digest"] = hash_proposal("ada", made)
    db.proposals.replace_one(where, made)
    db.proposals.update_many(
        {"_id.proposal": ids["applied"], "_id.verdict": "approve"},
        {"$set": {"digest": made["digest"]}, "$unset": {"seal": True}},
    )


def audited(name: str, request: Callable[[str], str], change: dict[str, Any]) -> Tamper:
    return lambda db, ids: db.audit.update_one({"_id.request": request(ids[name])}, change)


def inserted(name: str, actor: str, verdict: str) -> Tamper:
    def tamper(db: Direct, ids: dict[str, str]) -> None:
        made = db.proposals.find_one(said(name, "propose")(ids))
        assert made is not None
        identity = {**made["_id"], "actor": actor, "verdict": verdict}
        fields = {field: made[field] for field in ("time", "reason", "digest")}
        db.proposals.insert_one({"_id": identity, **fields})

    return tamper


TAMPERING: dict[str, tuple[Tamper, str]] = {
    "an applied proposal is removed": (
        gone("applied", "propose"),
        "revision 1 applied the proposal {applied}, which was removed",
    ),
    "it is removed with all that was said": (
        all_gone("applied"),
        "revision 1 applied the proposal {applied}, which was removed",
    ),
    "an approval is removed": (
        gone("applied", "approve", actor="carol"),
        "revision 1 applied the proposal {applied}, on the approval of 'carol', which is not",
    ),
    "an approval is of another digest": (
        other("applied", "approve", digest="0" * 64),
        "revision 1 applied the proposal {applied}, on the approval of",
    ),
    "an approval's words are altered": (
        other("applied", "approve", reason="I never said so"),
        "said of it is not as it was said",
    ),
    "an applied proposal is altered": (
        other("applied", "propose", reason="another"),
        "the proposal {applied} was changed past the writer",
    ),
    "it is altered so that all digests fit": (
        made_anew,
        "revision 1 applied the proposal {applied}, which was another one then",
    ),
    "the audit has other approvals": (
        audited("applied", format_application_request, {"$set": {"approved.by": ["bob"]}}),
        "revision 1: what was asked for was altered in the audit",
    ),
    "the audit has no approvals": (
        audited("applied", format_application_request, {"$unset": {"approved": True}}),
        "revision 1: what was asked for was altered in the audit",
    ),
    "the audit has another who applied it": (
        audited("applied", format_application_request, {"$set": {"applied_by": "mallory"}}),
        "revision 1: what was asked for was altered in the audit",
    ),
    "a rejected proposal is removed": (
        all_gone("rejected"),
        "revision 2 rejected the proposal {rejected}, which was removed",
    ),
    "a rejection is removed": (
        gone("rejected", "reject"),
        "revision 2 rejected the proposal {rejected}, which 'eve' said, and that is not there",
    ),
    "a withdrawal is removed": (
        gone("withdrawn", "withdraw"),
        "revision 3 withdrew the proposal {withdrawn}, which 'ada' said, and that is not there",
    ),
    "an open proposal is removed, and not what was said": (
        gone("open", "propose"),
        "the proposal {open} was removed, and what was said of it is there",
    ),
    "an open proposal is altered": (
        other("open", "propose", touched=[]),
        "the proposal {open} was changed past the writer",
    ),
    "an approval of one's own is forged": (
        inserted("open", "ada", "approve"),
        "'ada' cannot have said approve of the proposal {open}, which 'ada' made",
    ),
    "another's withdrawal is forged": (
        inserted("open", "eve", "withdraw"),
        "'eve' cannot have said withdraw of the proposal {open}, which 'ada' made",
    ),
}


@pytest.mark.parametrize("tampering", TAMPERING)
def test_what_was_altered_forged_or_removed_is_found(
    tampering: str, decided: dict[str, str], writer: Writer, direct: Direct
) -> None:
    tamper, problem = TAMPERING[tampering]
    tamper(direct, decided)
    found = writer.reader.verify()
    assert any(problem.format(**decided) in told for told in found), found


def test_what_no_revision_relies_on_may_vanish_unseen(
    decided: dict[str, str], writer: Writer, direct: Direct
) -> None:
    direct.proposals.delete_one(said("open", "approve")(decided))
    assert writer.reader.verify() == []
    direct.proposals.delete_one(said("open", "propose")(decided))
    assert writer.reader.verify() == []


def test_a_proposal_stays_closed_though_its_rejection_was_removed(
    decided: dict[str, str], writer: Writer, direct: Direct
) -> None:
    for name, verdict in (("rejected", "reject"), ("withdrawn", "withdraw")):
        direct.proposals.delete_one(said(name, verdict)(decided))
        assert writer.reader.proposal(decided[name]).state == name
        with pytest.raises(ProposalClosedError):
            writer.proposals.approve(decided[name], actor="bob")
        with pytest.raises(ProposalClosedError):
            writer.proposals.apply(decided[name])


def test_an_application_and_closings_of_an_earlier_version_still_prove(
    decided: dict[str, str], writer: Writer, direct: Direct
) -> None:
    request = format_application_request(decided["applied"])
    asked = direct.audit.find_one({"_id.request": request})
    assert asked is not None
    del asked["approved"]
    asked["digest"] = hash_request(asked)
    direct.audit.replace_one({"_id": asked["_id"]}, asked)
    direct.proposals.update_many({}, {"$unset": {"seal": True}})
    assert writer.reader.verify() == []
    assert next(writer.reader.entries()).approvers == ("bob", "carol")
    for who in ("bob", "carol"):
        direct.proposals.delete_one(said("applied", "approve", actor=who)(decided))
    (problem,) = writer.reader.verify()
    assert problem.endswith("and nobody has approved of it")


def test_persons_are_erased_and_all_of_it_still_proves(
    decided: dict[str, str], writer: Writer, direct: Direct, mongo_uri: str
) -> None:
    names = {
        who: erase_actor(who, uri=mongo_uri, database=direct.name).name
        for who in ("carol", "dana", "eve", "ada", "bob")
    }
    assert writer.reader.verify() == []
    held = str([[*direct[name].find()] for name in ("audit", "proposals")])
    assert not any(f"'{who}'" in held for who in names)
    first = next(writer.reader.entries())
    assert (first.actor, first.applier) == (names["ada"], names["dana"])
    assert first.approvers == (names["bob"], names["carol"])
    # What is removed after that is found as before.
    direct.proposals.delete_one(said("applied", "approve", actor=names["carol"])(decided))
    (problem,) = writer.reader.verify()
    assert f"on the approval of '{names['carol']}'" in problem


def test_what_was_decided_before_a_cut_is_not_asked_for(
    decided: dict[str, str], writer: Writer
) -> None:
    now = writer.store.read_tip().time + timedelta(days=9)
    writer.prune(Retention(ledger_days=1, audit_days=1), now=now)
    assert writer.reader.verify() == []
    assert writer.reader.proposal(decided["rejected"]).state == "rejected"


def test_an_attempt_that_came_to_nothing_binds_the_next_one(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The audit is written before the commit, and cannot be altered: what it says must be true."""
    with writer.change() as change:
        change.grant("tester", "admin")
        for who in ("ada", "bob", "carol"):
            change.grant(who, "releaser")

    def killed(proposal: str) -> None:
        monkeypatch.setattr(writer.store, "compare_and_set", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            writer.proposals.apply(proposal, actor="bob")
        monkeypatch.undo()

    one, two = proposed(writer, "a.one"), proposed(writer, "a.two")
    for proposal in (one, two):
        writer.proposals.approve(proposal, actor="bob")
        killed(proposal)
        writer.proposals.approve(proposal, actor="carol")
    # More approvals do no harm.
    commit = writer.proposals.apply(one, actor="carol")
    assert writer.proposals.apply(one) == commit
    (entry,) = writer.reader.entries(commit.revision - 1)
    assert (entry.approvers, entry.applier) == (("bob",), "bob")
    with writer.change() as change:
        change.revoke("bob")
    with pytest.raises(NotApprovedError, match="on the approval of bob, which does not count"):
        writer.proposals.apply(two, actor="carol")
    assert writer.reader.verify() == []


def test_two_attempts_at_once_record_one_truth(
    writer: Writer, mongo_uri: str, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposal = proposed(writer, "a.one")
    writer.proposals.approve(proposal, actor="bob")
    add_request = writer.store.add_request

    def late(*asked: Any) -> str:
        monkeypatch.undo()
        with Writer(mongo_uri, "production", actor="dana", database=database) as other_writer:
            other_writer.proposals.approve(proposal, actor="carol")
            monkeypatch.setattr(other_writer.store, "compare_and_set", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                other_writer.proposals.apply(proposal)
        return add_request(*asked)

    monkeypatch.setattr(writer.store, "add_request", late)
    writer.proposals.apply(proposal)
    (entry,) = writer.reader.entries()
    assert (entry.approvers, entry.applier) == (("bob", "carol"), "dana")
    assert writer.reader.verify() == []


def test_what_somebody_put_in_the_place_of_an_application_is_refused(
    writer: Writer, direct: Direct
) -> None:
    proposal = proposed(writer, "a.one")
    writer.proposals.approve(proposal, actor="bob")
    writer.create(flag("a.other"))
    asked = direct.audit.find_one()
    assert asked is not None
    for more in ({}, {"approved": {"digest": "x", "by": []}}):
        identity = {"environment": "production", "request": format_application_request(proposal)}
        direct.audit.delete_one({"_id": identity})
        forged = {**asked, **more, "proposal": proposal, "applied_by": "x", "_id": identity}
        direct.audit.insert_one(forged)
        with pytest.raises(RequestConflictError, match="another request in the place of"):
            writer.proposals.apply(proposal)


@pytest.mark.parametrize("closes", ["reject", "withdraw"])
def test_two_who_close_a_proposal_at_once_make_one_revision(
    closes: str, writer: Writer, mongo_uri: str, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposal = proposed(writer, "a.one")
    say = writer.store.proposals.add

    def late(*asked: Any) -> None:
        # It has read the proposal while it was open.
        monkeypatch.undo()
        with Writer(mongo_uri, "production", actor="ada", database=database) as ada:
            getattr(ada.proposals, closes)(proposal)
        say(*asked)

    monkeypatch.setattr(writer.store.proposals, "add", late)
    with pytest.raises(ProposalClosedError):
        writer.proposals.reject(proposal)
    assert writer.store.read_tip().revision == 1
    assert [entry.actor for entry in writer.reader.entries()] == ["ada"]
    assert writer.reader.verify() == []
