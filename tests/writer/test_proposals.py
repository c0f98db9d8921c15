"""Proposals as they are stored: what was changed past the writer is told, and breaks no other."""

import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from bson import DatetimeMS, Decimal128, Int64, ObjectId
from pymongo import MongoClient
from pymongo.database import Database

from flagkit.errors import FlagkitError, NotApprovedError, StoreError
from flagkit.writer import Proposal, Retention, Writer
from flagkit.writer.approvals import hash_proposal
from tests.support.cli_runner import CommandRunner
from tests.writer.test_writer import flag

pytestmark = [pytest.mark.mongo, pytest.mark.usefixtures("_unvalidated")]

REMOVED = object()


def named(value: object) -> str:
    """Return the name of a case, the same in each process."""
    return "removed" if value is REMOVED else repr(value)


WRONG: tuple[Any, ...] = (
    REMOVED,
    None,
    7,
    True,
    Int64(2**62),
    Decimal128("1"),
    "x" * 1_000_000,
    [],
    ["x"],
    [{}],
    [7, {"operation": "set_state"}],
    {},
    {"$x": 1},
    ObjectId(),
    DatetimeMS(2**62),
    datetime(1970, 1, 1, tzinfo=UTC),
)


@pytest.fixture
def direct(mongo_uri: str, database: str) -> Iterator[Database[dict[str, Any]]]:
    with MongoClient[dict[str, Any]](mongo_uri, tz_aware=True) as client:
        yield client[database]


def proposed(writer: Writer, actor: str = "ada") -> str:
    with writer.proposals.propose(actor=actor, reason="launch") as change:
        change.update(
            flag(
                fallthrough={"serve": "off"},
                rules=[{"name": "s", "when": {"$segment": "staff"}, "serve": "on"}],
            )
        )
        change.grant("dana", "admin")
    assert change.proposal is not None
    return change.proposal


@pytest.fixture
def two(writer: Writer) -> tuple[str, str]:
    """Return a proposal that bob approved of, and another one, which nobody touches."""
    writer.create(flag())
    writer.create_segment({"key": "staff", "included": ["ada"]})
    first, other = proposed(writer), proposed(writer, "carol")
    writer.proposals.approve(first, actor="bob", reason="fine")
    return first, other


def fields_of(document: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Return the paths of all that a document has, to two levels, but for its name."""
    found: list[tuple[Any, ...]] = []
    for name, value in document.items():
        if name == "_id":
            continue
        found.append((name,))
        if isinstance(value, list) and value:
            found.append((name, 0))
            found += [(name, 0, inner) for inner in value[0]]
    return found


def edited(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    copy = document.copy()
    if len(path) > 1:
        copy[path[0]] = edited(copy[path[0]], path[1:], value)
    elif value is REMOVED:
        del copy[path[0]]
    else:
        copy[path[0]] = value
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("verdict", ["propose", "approve"])
def test_whatever_field_is_malformed_the_others_are_told_as_before(
    verdict: str,
    two: tuple[str, str],
    writer: Writer,
    direct: Database[dict[str, Any]],
    mongo_uri: str,
    database: str,
) -> None:
    first, other = two
    command = CommandRunner(mongo_uri, database)
    before = {listed.id: listed for listed in writer.reader.proposals()}
    where = {"_id.proposal": first, "_id.verdict": verdict}
    document = direct.proposals.find_one(where)
    assert document is not None
    for path in fields_of(document):
        for value in WRONG:
            altered = edited(document, path, value)
            if altered == document:
                continue
            direct.proposals.replace_one(where, altered)
            told = {listed.id: listed for listed in writer.reader.proposals()}
            assert told[other] == before[other], (path, value)
            if verdict == "approve" and path == ("digest",) and isinstance(value, str):
                # What is said of something else does not count, and that is all.
                assert told[first].verdicts == ()
                with pytest.raises(NotApprovedError):
                    writer.proposals.apply(first)
            elif path == ("seal",) and value is REMOVED:
                # Verdicts of an earlier version have none.
                assert told[first] == before[first]
            else:
                assert_altered(told[first])
                if value is REMOVED:
                    assert_of_no_use(writer, first)
        listed = command.data("approvals", "list")
        assert {found["id"] for found in listed} == {first, other}
        table = command.told("approvals", "list")
        assert table.count(" open ") == table.count("void:") == 1
        assert [*writer.reader.entries()]
        writer.reader.list_prunable(Retention(remains_days=1))
    direct.proposals.replace_one(where, document)
    assert {listed.id: listed for listed in writer.reader.proposals()} == before
    assert writer.reader.verify() == []
    writer.proposals.apply(first)
    assert writer.reader.denials() == []


def assert_altered(found: Proposal) -> None:
    assert found.state == "void"
    assert "was changed past the writer" in found.problem
    assert len(found.problem) < 1_000
    assert len(found.reason) <= 1_000


def assert_of_no_use(writer: Writer, proposal: str) -> None:
    uses: tuple[Callable[[str], object], ...] = (
        writer.reader.proposal,
        lambda it: writer.proposals.approve(it, actor="eve"),
        lambda it: writer.proposals.reject(it, actor="eve"),
        lambda it: writer.proposals.withdraw(it, actor="ada"),
        writer.proposals.apply,
    )
    tip = writer.store.read_tip()
    for use in uses:
        with pytest.raises(StoreError, match="was changed past the writer"):
            use(proposal)
    assert writer.store.read_tip() == tip
    assert any(proposal in problem for problem in writer.reader.verify())


@pytest.mark.slow
@pytest.mark.parametrize("field", ["environment", "proposal", "actor", "verdict"])
@pytest.mark.parametrize("value", [REMOVED, None, 7, {}, [], {"x": 1}, "other"], ids=named)
@pytest.mark.parametrize("verdict", ["propose", "approve"])
def test_whatever_name_a_document_has_the_others_are_told_as_before(
    field: str,
    value: Any,
    verdict: str,
    two: tuple[str, str],
    writer: Writer,
    direct: Database[dict[str, Any]],
) -> None:
    first, other = two
    (before,) = [listed for listed in writer.reader.proposals() if listed.id == other]
    document = direct.proposals.find_one({"_id.proposal": first, "_id.verdict": verdict})
    assert document is not None
    direct.proposals.delete_one({"_id": document["_id"]})
    with contextlib.suppress(TypeError):
        direct.proposals.insert_one(edited(document, ("_id", field), value))
    listed = {found.id: found for found in writer.reader.proposals()}
    assert listed[other] == before
    made = writer.proposals
    for use in (writer.reader.proposal, made.apply, lambda it: made.reject(it, actor="eve")):
        if verdict == "propose" or use == made.apply:
            with pytest.raises(FlagkitError):
                use(first)
    writer.reader.verify()
    assert [*writer.reader.entries()]


def test_a_forged_proposal_whose_digest_is_right_breaks_nothing(
    two: tuple[str, str], writer: Writer, direct: Database[dict[str, Any]]
) -> None:
    first, other = two
    where = {"_id.proposal": first, "_id.verdict": "propose"}
    made = direct.proposals.find_one(where)
    assert made is not None
    for operation in (
        {"operation": "nothing"},
        {"operation": "update", "key": "shop.search", "region": "*", "policy": {"x": 1}},
        {"operation": "set_state", "key": "", "region": "", "verb": "pause"},
        {"operation": "grant", "key": "grants", "region": "shop", "actor": "x", "role": "admin"},
        {"operation": "rollback", "key": "shop.search", "region": "*", "to": -5},
        {"operation": "create", "key": "a", "region": "*", "policy": {"key": 7}},
    ):
        forged = {**made, "operations": [operation]}
        forged["digest"] = hash_proposal("ada", forged)
        direct.proposals.replace_one(where, forged)
        told = {listed.id: listed.state for listed in writer.reader.proposals()}
        assert told[other] == "open"
        with contextlib.suppress(StoreError):
            assert writer.reader.proposal(first).state == "void", operation
        with pytest.raises(FlagkitError):
            writer.proposals.approve(first, actor="eve")
        with pytest.raises(FlagkitError):
            writer.proposals.apply(first)


def test_members_that_a_malformed_proposal_refers_to_do_not_stop_a_pruning(
    writer: Writer, direct: Database[dict[str, Any]]
) -> None:
    with writer.proposals.propose() as change:
        change.create_segment({"key": "staff", "included": ["ada"]})
    where = {"_id.proposal": change.proposal}
    made = direct.proposals.find_one(where)
    assert made is not None
    for path in (("policy",), ("policy", "included"), ("policy", "included", "parts")):
        for value in WRONG:
            altered = edited(made, ("operations", 0, *path), value)
            direct.proposals.replace_one(where, altered)
            writer.reader.list_prunable(Retention(remains_days=1))
            (listed,) = writer.reader.proposals()
            assert listed.state == "void"


def test_two_proposals_of_one_name_are_none(
    two: tuple[str, str], writer: Writer, direct: Database[dict[str, Any]]
) -> None:
    first, other = two
    made = direct.proposals.find_one({"_id.proposal": first, "_id.verdict": "propose"})
    assert made is not None
    direct.proposals.insert_one({**made, "_id": {**made["_id"], "actor": "mallory"}})
    told = {listed.id: listed.state for listed in writer.reader.proposals()}
    assert told == {first: "void", other: "open"}
    with pytest.raises(StoreError, match="there are two of that name"):
        writer.proposals.apply(first)


def test_an_approval_of_another_digest_never_counts(
    two: tuple[str, str], writer: Writer, direct: Database[dict[str, Any]]
) -> None:
    first, other = two
    (bobs,) = direct.proposals.find({"_id.proposal": first, "_id.verdict": "approve"})
    forged = {**bobs, "_id": {**bobs["_id"], "proposal": other, "actor": "eve"}}
    direct.proposals.insert_one(forged)
    assert writer.reader.proposal(other).verdicts == ()
    with pytest.raises(NotApprovedError):
        writer.proposals.apply(other)
    (problem,) = writer.reader.verify()
    assert f"what 'eve' said of the proposal {other} ('approve') is of another one" in problem
