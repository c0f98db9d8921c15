"""Proposals: what was proposed and said of it, read and judged at one revision.

A proposal is bound to the versions of what it touches, and of the segments and prerequisites that
this depends on. An approval is bound to the proposal's digest. Both are looked at in the reading
that the commit is compared with, so nothing can slip in between: no newer flag, no revoked role, no
rejection.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeAlias, cast

import msgspec
from msgspec import Struct

from flagkit.arguments import instance
from flagkit.changes import ACCESS, GRANTS, SEGMENTS, PolicyChange, PolicyId
from flagkit.errors import (
    ClosedError,
    FlagkitError,
    InvalidDocumentError,
    NotApprovedError,
    ProposalClosedError,
    ProposalNotFoundError,
    ProposalVoidError,
    RequestConflictError,
    StoreError,
    StoreUnavailableError,
)
from flagkit.model.grants import ACTOR_LENGTH_MAX, decode_grants
from flagkit.storage.layout import ERASED
from flagkit.storage.malformed import FORM_FAULTS
from flagkit.storage.proposals import PROPOSE
from flagkit.storage.reading import Reading
from flagkit.storage.store import Store
from flagkit.writer.access import Need, check_access, first_denied
from flagkit.writer.dependencies import Dependency, moved, standing
from flagkit.writer.differences import differences
from flagkit.writer.ledger import sentences
from flagkit.writer.operations import Operation
from flagkit.writer.planning import Plan, plan
from flagkit.writer.recorded import RELIED, digest_of, documents_of, operations_of, request_digest
from flagkit.writer.requests import application_of, closing_of
from flagkit.writer.terms import Terms

Says: TypeAlias = Literal["approve", "reject", "withdraw"]
State: TypeAlias = Literal["open", "void", "applied", "rejected", "withdrawn"]

_REASON_LENGTH_MAX: Final = 1_000
_UNKNOWN_TIME: Final = datetime(1970, 1, 1, tzinfo=UTC)
"""What is told of a proposal that was changed past the writer is bounded, and has some time."""
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
    in lines, where that was asked for. `state` is open, void, applied (at `revision`), rejected or
    withdrawn. A proposal is void once something that it touches or depends on has moved, or if it
    was changed past the writer; `problem` says why.
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
    name = checked_proposal(proposal)
    with store.reading() as reading:
        return told(reading, read(name, reading.said_of(name)), whole=True)


def checked_proposal(proposal: object) -> str:
    """Return the name of a proposal, if it is text.

    Raises:
        InvalidArgumentError: it is something else.
    """
    return instance(proposal, str, "proposal", "pass its name, as in Proposal.id")


def proposals_in(store: Store, limit: int = 20) -> list[Proposal]:
    """Return the proposals of an environment, the newest first, without their differences.

    One that was changed past the writer is void, and its `problem` says what is wrong.
    """
    said = store.proposals.said(store.proposals.newest(limit))
    found: list[Proposal] = []
    with store.reading() as reading:
        for proposal, documents in said.items():
            try:
                found.append(told(reading, read(proposal, documents), whole=False))
            except (StoreUnavailableError, ClosedError):
                raise
            except ProposalNotFoundError:
                # It was removed since it was listed.
                continue
            except StoreError as error:
                # The others are none the worse for it.
                found.append(_altered(proposal, documents, str(error)))
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

    has_own_request = True

    def __init__(self, found: Proposed, applier: str) -> None:
        self._found = found
        self._applier = applier
        self._approvers: tuple[str, ...] = ()
        self._earlier: Mapping[str, Any] | None = None

    def check(self, reading: Reading) -> None:
        """Refuse it, if it was closed, or if something that it touches has moved."""
        found = read(self._found.id, reading.said_of(self._found.id))
        if found.digest != self._found.digest:
            raise StoreError(f"the proposal {found.id} was changed past the writer: propose anew")
        self._found = found
        check_open(reading, self._found)
        _check_unmoved(reading, self._found)
        self._earlier = reading.asked(application_of(found.id))

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
        # What an attempt has recorded that came to nothing stays on record, so it must still hold.
        gone = [who for who in self._relied_on() if who not in approvers]
        if gone:
            raise NotApprovedError(
                f"{found.id} was about to be applied on the approval of {', '.join(gone)}, which"
                " does not count any more: propose it anew"
            )
        self._approvers = approvers
        return approvers

    def recorded(self, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what the audit is to have: also what the application relies on.

        Raises:
            RequestConflictError: something else is on record in its place.
        """
        found, earlier = self._found, self._earlier
        approved = {"digest": found.digest, "by": [*self._approvers]}
        whole: dict[str, Any] = {**content, "proposal": found.id, "applied_by": self._applier}
        if earlier is None:
            whole["approved"] = approved
        else:
            whole |= {name: earlier[name] for name in RELIED if name in earlier}
        whole["digest"] = request_digest(whole)
        if earlier is not None and (
            whole["digest"] != earlier.get("digest") or whole["proposal"] != found.id
        ):
            raise RequestConflictError(
                f"the audit has another request in the place of the application of {found.id}:"
                " it was changed past the writer, or a person in it was erased; propose it anew"
            )
        return whole

    def _relied_on(self) -> list[str]:
        """Return the approvals that an earlier attempt has recorded."""
        try:
            return msgspec.convert((self._earlier or {}).get("approved", {}), _Approved).by
        except msgspec.ValidationError:
            # It is refused when it is compared with what is to be recorded.
            return []


class Closing(Terms):
    """The terms of closing a proposal: it is not applied."""

    def __init__(self, found: Proposed, needed: list[Need]) -> None:
        self._found = found
        self._needed = needed

    def check(self, reading: Reading) -> None:
        """Refuse to close what was applied, or closed otherwise."""
        _check_unapplied(reading, self._found)
        closed = _closed_by_ledger(reading, self._found.id)
        if closed is not None:
            raise ProposalClosedError(f"{self._found.id} was {closed}: nothing more is to be done")

    def needed(self, *_: object, **__: object) -> list[Need]:
        """Return what it takes to close it."""
        return self._needed

    def is_limited(self, needed: Collection[Need]) -> bool:
        """Tell that it takes a token: whatever roles it takes, it stops no harm."""
        del needed
        return True


class _Identity(Struct, frozen=True):
    proposal: str
    actor: str
    verdict: Literal["propose", "approve", "reject", "withdraw"]


class _Touched(Struct, frozen=True):
    region: str
    key: str
    version: int | None


class _Said(Struct, frozen=True, kw_only=True, rename={"identity": "_id"}):
    """The form of what is said of a proposal, as it is stored."""

    identity: _Identity
    time: datetime
    reason: str
    digest: str
    seal: str = ERASED


class _Approved(Struct):
    by: list[str] = []


class _Made(_Said, frozen=True, kw_only=True):
    """The form of a proposal, as it is stored."""

    operations: list[dict[str, Any]]
    touched: tuple[_Touched, ...]
    depends: tuple[Dependency, ...] = ()


def read(proposal: str, documents: Sequence[Mapping[str, Any]]) -> Proposed:
    """Return a proposal from its documents, with the verdicts that are bound to it.

    Raises:
        ProposalNotFoundError: it is not among them.
        StoreError: it, or a verdict that is bound to it, was changed past the writer.
    """
    made = [found for found in documents if verdict_of(found) == PROPOSE]
    if not made:
        raise ProposalNotFoundError(
            f"there is no proposal {proposal!r}: see Writer.proposals(), or flagkit approvals list"
        )
    try:
        if len(made) > 1:
            raise ValueError("there are two of that name")
        return _read(proposal, made[0], [found for found in documents if found is not made[0]])
    except (*FORM_FAULTS, InvalidDocumentError) as error:
        raise StoreError(
            f"the proposal {proposal} was changed past the writer ({error!s:.200}): propose it anew"
        ) from error


def _read(proposal: str, made: Mapping[str, Any], others: Iterable[Mapping[str, Any]]) -> Proposed:
    form = msgspec.convert(made, _Made)
    actor, digest = form.identity.actor, form.digest
    if digest not in (ERASED, proposal_digest(actor, made)):
        raise ValueError("it is not what its digest was made of")
    # They must be read back, be it that nobody asks for them here.
    operations_of(form.operations)
    verdicts: list[Verdict] = []
    for said in others:
        bound = said.get("digest")
        if isinstance(bound, str) and bound != digest:
            # It was said of something else.
            continue
        is_said = msgspec.convert(said, _Said)
        who, verdict = is_said.identity.actor, is_said.identity.verdict
        if verdict == "propose":
            raise ValueError("there are two of that name")
        if is_said.seal not in (ERASED, verdict_seal(proposal, who, verdict, said)):
            raise ValueError(f"what {who!r:.200} said of it is not as it was said")
        verdicts.append(Verdict(who, verdict, is_said.reason, is_said.time))
    touched = {(item.region, item.key): item.version for item in form.touched}
    return Proposed(
        proposal,
        actor,
        form.reason,
        form.time,
        form.operations,
        touched,
        form.depends,
        digest,
        tuple(verdicts),
    )


def verdict_of(document: Mapping[str, Any]) -> object:
    """Return what verdict a stored document is, whatever it is."""
    return identity_of(document).get("verdict")


def identity_of(document: Mapping[str, Any]) -> Mapping[str, object]:
    """Return the `_id` of a stored document; an empty one of what has none of that form."""
    identity = document.get("_id")
    return cast("Mapping[str, object]", identity) if isinstance(identity, Mapping) else {}


def proposal_digest(actor: str, made: Mapping[str, Any]) -> str:
    """Return what binds approvals to a proposal: the hex SHA-256 of all that it says."""
    # Those of an earlier version have no dependencies.
    depends = [made["depends"]] if "depends" in made else []
    said = [actor, made["time"], made["reason"], made["operations"], made["touched"]]
    return digest_of([*said, *depends])


def verdict_seal(proposal: str, actor: str, verdict: Says, said: Mapping[str, Any]) -> str:
    """Return what binds a verdict's words to it: the hex SHA-256 of all that it says.

    Verdicts of an earlier version have none.
    """
    return digest_of([proposal, actor, verdict, said["time"], said["reason"], said["digest"]])


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
        except (StoreUnavailableError, ClosedError):
            raise
        except FlagkitError as error:
            state, problem = "void", str(error)
    return Proposal(
        found.id,
        found.actor,
        found.reason,
        found.time,
        sentences(documents_of(found.operations)),
        found.verdicts,
        state,
        problem,
        None if done is None else done.revision,
        lines,
    )


def _altered(proposal: str, documents: Iterable[Mapping[str, Any]], problem: str) -> Proposal:
    """Return what can be told of a proposal that is not as it was made."""
    made = next(found for found in documents if verdict_of(found) == PROPOSE)
    actor, reason, time = identity_of(made).get("actor"), made.get("reason"), made.get("time")
    return Proposal(
        proposal,
        actor[:ACTOR_LENGTH_MAX] if isinstance(actor, str) else "",
        reason[:_REASON_LENGTH_MAX] if isinstance(reason, str) else "",
        time if isinstance(time, datetime) else _UNKNOWN_TIME,
        (),
        (),
        "void",
        problem,
    )


def planned_by(reading: Reading, found: Proposed) -> Plan:
    """Return what a proposal would do now, or refuse it if that is not what was proposed."""
    _check_unmoved(reading, found)
    try:
        planned = plan(found.operations, reading, reading.tip.revision, {})
    except FlagkitError:
        raise
    except FORM_FAULTS as error:
        raise StoreError(
            f"the proposal {found.id} cannot be planned, so it was changed past the writer"
            f" ({type(error).__name__}: {error!s:.200}): propose it anew"
        ) from error
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
