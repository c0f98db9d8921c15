"""Proposals: what was proposed and said of it, read and judged at one revision.

A proposal is bound to the versions of what it touches, and of the segments and prerequisites that
this depends on. An approval is bound to the proposal's digest. Both are looked at in the reading
that the commit is compared with, so nothing can slip in between: no newer flag, no revoked role, no
rejection.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Struct

from flagkit.changes import ACCESS, GRANTS, SEGMENTS, PolicyChange, PolicyId
from flagkit.errors import (
    FlagkitError,
    NotApprovedError,
    ProposalClosedError,
    ProposalNotFoundError,
    ProposalVoidError,
    StoreError,
)
from flagkit.model.grants import decode_grants
from flagkit.storage.layout import ERASED
from flagkit.storage.proposals import PROPOSE
from flagkit.storage.reading import Reading
from flagkit.storage.store import Store
from flagkit.writer.access import Need, check_access, first_denied
from flagkit.writer.dependencies import Dependency, moved, standing
from flagkit.writer.differences import differences
from flagkit.writer.ledger import sentences
from flagkit.writer.operations import Operation
from flagkit.writer.planning import Plan, plan
from flagkit.writer.recorded import digest_of, operations_of
from flagkit.writer.requests import application_of, closing_of
from flagkit.writer.terms import Terms

Says: TypeAlias = Literal["approve", "reject", "withdraw"]
State: TypeAlias = Literal["open", "void", "applied", "rejected", "withdrawn"]

_CLOSED: Final[Mapping[str, State]] = {"reject": "rejected", "withdraw": "withdrawn"}


class Verdict(Struct, frozen=True):
    """What an actor said of a proposal; whether it counts, the roles at its application say."""

    actor: str
    verdict: Says
    reason: str
    time: datetime


class Proposal(Struct, frozen=True):
    """A change that somebody proposed, and what became of it.

    `actions` are sentences such as "pause shop.search"; `differences` what would come of it now,
    in lines, where that was asked for. `state` is open, void (something that it touches has moved
    since), applied (at `revision`), rejected or withdrawn; `problem` says why it is void.
    """

    id: str
    actor: str
    reason: str
    time: datetime
    actions: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    state: State
    problem: str = ""
    revision: int | None = None
    differences: tuple[str, ...] = ()


def proposal_in(store: Store, proposal: str) -> Proposal:
    """Return a proposal, with what would come of it now.

    Raises:
        ProposalNotFoundError: there is none of that name.
        StoreError: it was changed past the writer.
    """
    with store.reading() as reading:
        return told(reading, read(proposal, reading.said_of(proposal)), whole=True)


def proposals_in(store: Store, limit: int = 20) -> list[Proposal]:
    """Return the proposals of an environment, the newest first, without their differences.

    One that was changed past the writer is void.
    """
    said = store.proposals.said(store.proposals.newest(limit))
    found: list[Proposal] = []
    with store.reading() as reading:
        for proposal, documents in said.items():
            try:
                proposed = read(proposal, documents)
            except StoreError as error:
                # The others are none the worse for it.
                found.append(_altered(proposal, documents[0], str(error)))
            else:
                found.append(told(reading, proposed, whole=False))
    return found


class Proposed(Struct, frozen=True):
    """A proposal as it is stored."""

    id: str
    actor: str
    reason: str
    time: datetime
    documents: list[dict[str, Any]]
    touched: dict[PolicyId, int | None]
    depends: tuple[Dependency, ...]
    digest: str
    verdicts: tuple[Verdict, ...]

    @property
    def operations(self) -> list[Operation]:
        """What was proposed."""
        return operations_of(self.documents)


class Application(Terms):
    """The terms of applying a proposal: it is open, unmoved and approved of."""

    def __init__(self, found: Proposed, applier: str) -> None:
        self._found = found
        self._applier = applier

    def check(self, reading: Reading) -> None:
        """Refuse it, if it was closed, or if something that it touches has moved."""
        found = read(self._found.id, reading.said_of(self._found.id))
        if found.digest != self._found.digest:
            raise StoreError(f"the proposal {found.id} was changed past the writer: propose anew")
        self._found = found
        check_open(reading, self._found)
        _check_unmoved(reading, self._found)

    def approvers(
        self, reading: Reading, actor: str, needed: Sequence[Need], changes: Sequence[PolicyChange]
    ) -> tuple[str, ...]:
        """Return who approved of it, and may make the change."""
        found = self._found
        _check_same(reading, found, changes)
        for who in (actor, self._applier):
            check_access(reading, who, lesser(needed))
        approvers = _approvers(reading, found, needed)
        if not approvers:
            asked = [verdict.actor for verdict in found.verdicts if verdict.verdict == "approve"]
            lost = f": {', '.join(asked)} may not make this change" if asked else ""
            raise NotApprovedError(
                f"{found.id} is not approved of by anybody who may, besides {found.actor!r}{lost}:"
                " have somebody approve of it who may make the change"
            )
        return approvers


class Closing(Terms):
    """The terms of closing a proposal: it is not applied."""

    def __init__(self, found: Proposed, needed: list[Need]) -> None:
        self._found = found
        self._needed = needed

    def check(self, reading: Reading) -> None:
        """Refuse to close what was applied."""
        _check_unapplied(reading, self._found)

    def needed(self, *_: object, **__: object) -> list[Need]:
        """Return what it takes to close it."""
        return self._needed

    def is_limited(self, needed: Collection[Need]) -> bool:
        """Tell that it takes a token: whatever roles it takes, it stops no harm."""
        del needed
        return True


def read(proposal: str, documents: Sequence[Mapping[str, Any]]) -> Proposed:
    """Return a proposal from its documents, with the verdicts that are bound to it.

    Raises:
        ProposalNotFoundError: it is not among them.
        StoreError: it was changed past the writer.
    """
    made = next((found for found in documents if found["_id"]["verdict"] == PROPOSE), None)
    if made is None:
        raise ProposalNotFoundError(
            f"there is no proposal {proposal!r}: see Writer.proposals(), or flagkit approvals list"
        )
    digest = made["digest"]
    if digest not in (ERASED, proposal_digest(made["_id"]["actor"], made)):
        raise StoreError(f"the proposal {proposal} was changed past the writer: propose it anew")
    verdicts = tuple(
        Verdict(said["_id"]["actor"], said["_id"]["verdict"], said["reason"], said["time"])
        for said in documents
        if said is not made and said["digest"] == digest
    )
    touched = {(item["region"], item["key"]): item["version"] for item in made["touched"]}
    return Proposed(
        proposal,
        made["_id"]["actor"],
        made["reason"],
        made["time"],
        made["operations"],
        touched,
        tuple(msgspec.convert(made.get("depends", ()), tuple[Dependency, ...])),
        digest,
        verdicts,
    )


def proposal_digest(actor: str, made: Mapping[str, Any]) -> str:
    """Return what binds approvals to a proposal: the hex SHA-256 of all that it says."""
    # Those of an earlier version have no dependencies.
    depends = [made["depends"]] if "depends" in made else []
    said = [actor, made["time"], made["reason"], made["operations"], made["touched"]]
    return digest_of([*said, *depends])


def told(reading: Reading, found: Proposed, *, whole: bool) -> Proposal:
    """Return what became of a proposal; if `whole`, with what would come of it now."""
    done = reading.commit_of(application_of(found.id))
    closed: list[State] = [
        _CLOSED[said.verdict] for said in found.verdicts if said.verdict in _CLOSED
    ]
    state: State = "open"
    problem, lines = "", tuple[str, ...]()
    if done is not None:
        state = "applied"
    elif closed:
        state = closed[0]
    elif (ledgered := _closed_by_ledger(reading, found.id)) is not None:
        state = ledgered
    else:
        try:
            _check_unmoved(reading, found)
            if whole:
                changes = planned_by(reading, found).changes
                lines = tuple(line for change in changes for line in differences(change))
        except FlagkitError as error:
            state, problem = "void", str(error)
    return Proposal(
        found.id,
        found.actor,
        found.reason,
        found.time,
        sentences(found.documents),
        found.verdicts,
        state,
        problem,
        None if done is None else done.revision,
        lines,
    )


def _altered(proposal: str, made: Mapping[str, Any], problem: str) -> Proposal:
    return Proposal(
        proposal, made["_id"]["actor"], made["reason"], made["time"], (), (), "void", problem
    )


def planned_by(reading: Reading, found: Proposed) -> Plan:
    """Return what a proposal would do now, or refuse it if that is not what was proposed."""
    _check_unmoved(reading, found)
    planned = plan(found.operations, reading, reading.tip.revision, {})
    _check_same(reading, found, planned.changes)
    return planned


def check_open(reading: Reading, found: Proposed) -> None:
    """Refuse a proposal of which nothing more can become."""
    _check_unapplied(reading, found)
    for said in found.verdicts:
        if said.verdict in _CLOSED:
            raise ProposalClosedError(
                f"{found.id} was {_CLOSED[said.verdict]} by {said.actor!r}: propose it anew"
            )
    closed = _closed_by_ledger(reading, found.id)
    if closed is not None:
        raise ProposalClosedError(f"{found.id} was {closed}: propose it anew")


def check_closable(reading: Reading, found: Proposed, says: Says, who: str) -> bool:
    """Refuse to close a proposal that is not open; return whether `who` has closed it already.

    Then the revision that says so may be missing: the writer may have been killed, or refused for a
    rate limit.
    """
    if any((said.actor, said.verdict) == (who, says) for said in found.verdicts):
        _check_unapplied(reading, found)
        return True
    check_open(reading, found)
    return False


def _closed_by_ledger(reading: Reading, proposal: str) -> State | None:
    """Return how a proposal was closed by the ledger, whatever became of its documents."""
    for says, state in _CLOSED.items():
        if reading.commit_of(closing_of(proposal, says)) is not None:
            return state
    return None


def _check_unapplied(reading: Reading, found: Proposed) -> None:
    """Refuse a proposal that was applied."""
    done = reading.commit_of(application_of(found.id))
    if done is not None:
        raise ProposalClosedError(f"{found.id} was applied as revision {done.revision}")


def _check_unmoved(reading: Reading, found: Proposed) -> None:
    """Refuse a proposal if what it touches, or depends on, has another version than at first."""
    if found.digest == ERASED:
        raise ProposalClosedError(f"{found.id} is not as it was made, a person in it was erased")
    for identity, version in versions_of(reading, found.touched).items():
        then = found.touched[identity]
        if version != then:
            problem = moved(then, version)
            raise ProposalVoidError(identity[1], problem, reading.author(identity))
    for dependency, now in zip(found.depends, standing(reading, found.depends), strict=True):
        other = dependency.moved(now)
        if other is not None:
            identity, problem = other
            raise ProposalVoidError(identity[1], problem, reading.author(identity))


def _check_same(reading: Reading, found: Proposed, changes: Iterable[PolicyChange]) -> None:
    """Refuse a proposal that would change more than was proposed: a rollback of everything may."""
    for change in changes:
        if change.id not in found.touched:
            raise ProposalVoidError(
                change.id[1], "would be changed, too", reading.author(change.id)
            )


def versions_of(reading: Reading, wanted: Iterable[PolicyId]) -> dict[PolicyId, int | None]:
    """Return the versions of flags, segments, grants and limits; None of what is not there."""
    asked = [*wanted]
    states = {
        **reading.find({key for region, key in asked if region not in (SEGMENTS, ACCESS)}),
        **reading.segments({key for region, key in asked if region == SEGMENTS}),
    }
    if any(region == ACCESS for region, _ in asked):
        states |= reading.access
    return {item: states[item].version if item in states else None for item in asked}


def lesser(needed: Iterable[Need]) -> list[Need]:
    """Return what it takes to propose what takes all of that."""
    return [(action if action == "pause" else "edit", key) for action, key in needed]


def _approvers(reading: Reading, found: Proposed, needed: Sequence[Need]) -> tuple[str, ...]:
    """Return who approved, and may make the change at a reading's revision."""
    approved = [said.actor for said in found.verdicts if said.verdict == "approve"]
    others = [actor for actor in approved if actor != found.actor]
    held = reading.access.get(GRANTS)
    if held is None:
        return tuple(others)
    grants = decode_grants(held.policy)
    return tuple(actor for actor in others if first_denied(grants, actor, needed) is None)
