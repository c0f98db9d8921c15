"""Proposals: proposing a change, approving, rejecting and withdrawing it, and applying it.

A proposal is bound to the versions of everything it touches, and of the segments and prerequisites
that this depends on. An approval is bound to the digest of the proposal. Both are checked in the
read that the commit is compared with, so nothing changes in between.

Dependencies are followed to any depth, from the documents before and after the change, in the
regions concerned.

Proposals and verdicts are stored, and nothing changes or removes them. The end of a proposal is a
revision: its application, or the change that closes it.
"""

import os
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeAlias, cast

import msgspec
from msgspec import Struct

from flagkit._core.arguments import count, instance
from flagkit._core.model import EVERYWHERE, decode
from flagkit._core.model.access import ACTOR_LENGTH_MAX, decode_grants
from flagkit._core.model.changes import (
    ACCESS,
    GRANTS,
    SEGMENTS,
    PolicyChange,
    PolicyId,
    PolicyState,
    next_change,
)
from flagkit._core.model.flags import segments_of
from flagkit._core.secrets import DataKeys
from flagkit._core.storage.documents import fitting
from flagkit._core.storage.layout import ERASED
from flagkit._core.storage.reader import Reading
from flagkit._core.storage.requests import PROPOSE
from flagkit._core.storage.store import Store
from flagkit._core.storage.validation import FORM_FAULTS
from flagkit.errors import (
    AccessDeniedError,
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
from flagkit.writer.access import (
    Need,
    Terms,
    buckets_after,
    check_access,
    first_denied,
    log_denial,
    needs,
)
from flagkit.writer.commit import application_of, closing_of
from flagkit.writer.draft import Commit, Draft
from flagkit.writer.ledger import differences, sentences
from flagkit.writer.operations import (
    RELIED,
    Operation,
    check_readable,
    decision,
    digest_of,
    documents_of,
    operations_of,
    policies_of,
    request_digest,
)
from flagkit.writer.planning import Plan, plan
from flagkit.writer.shortcuts import Asked, SegmentWorkflows

_ANY_VERSION: Final = 0

Which: TypeAlias = Literal["exact", "seen", "all", "overridden"]


class Version(Struct, frozen=True, order=True):
    """The version of a flag or a segment, of which each region has its own."""

    region: str
    version: int


class Dependency(Struct, frozen=True, kw_only=True):
    """What a change depends on, with the versions that it had.

    Attributes:
        key: Of a flag, or a segment.
        which: `exact` is the one in `region`. `seen` is the flag that `region` is served: its
            override, or else the flag of all regions. `all` are the flags in all regions but those
            in `but`. `overridden` are the regions whose overrides hide a changed flag, at whatever
            version.
        region: Of `exact` and `seen`.
        but: The regions that `all` leaves out: an override that stays hides the changed flag there.
        versions: By region; none of what was not there.
    """

    key: str
    which: Which
    region: str = EVERYWHERE
    but: tuple[str, ...] = ()
    versions: tuple[Version, ...] = ()

    def moved(self, now: Sequence[Version]) -> tuple[PolicyId, str] | None:
        """Return what has another version now, and in words which; None if nothing has."""
        then_by, now_by = _by_region(self.versions), _by_region(now)
        # A new override takes nothing but a region from what was proposed.
        regions = then_by if self.which == "overridden" else then_by | now_by
        differing = [region for region in regions if then_by.get(region) != now_by.get(region)]
        if not differing:
            return None
        # Where another flag is seen instead, it is that one that says more.
        region = next((name for name in sorted(differing) if name in now_by), min(differing))
        if self.which == "overridden":
            return (region, self.key), f"is not overridden in {region} any more"
        kind = "a segment" if region == SEGMENTS else "a flag"
        where = "" if region in (SEGMENTS, EVERYWHERE) else f", in {region}"
        change = moved(then_by.get(region), now_by.get(region))
        return (region, self.key), f"({kind} that it depends on{where}) {change}"


def moved(then: int | None, now: int | None) -> str:
    """Return in words how a version differs from what it was; None is of what is not there."""
    there = "is not there any more" if now is None else f"is at version {now}"
    return f"{there}, and {'was not there' if then is None else f'was at {then}'}"


def dependencies_of(reading: Reading, changes: Iterable[PolicyChange]) -> list[Dependency]:
    """Return all that the flags of a planned change depend on, as it stands at a reading."""
    found = _Walk(reading, changes).run()
    versions = standing(reading, found)
    return [
        msgspec.structs.replace(dependency, versions=there)
        for dependency, there in zip(found, versions, strict=True)
        if there or dependency.which != "overridden"
    ]


def standing(reading: Reading, dependencies: Sequence[Dependency]) -> list[tuple[Version, ...]]:
    """Return the versions that dependencies have at a reading, each sorted by region."""
    segments = {item.key for item in dependencies if item.region == SEGMENTS}
    flags = {item.key for item in dependencies if item.region != SEGMENTS}
    by_key: dict[str, dict[str, int]] = {}
    for (region, key), state in reading.find(flags).items() if flags else ():
        by_key.setdefault(key, {})[region] = state.version
    found = reading.segments(segments) if segments else {}
    versions: list[tuple[Version, ...]] = []
    for item in dependencies:
        if item.region != SEGMENTS:
            there = _chosen(by_key.get(item.key, {}), item)
        elif (SEGMENTS, item.key) in found:
            there = {SEGMENTS: found[SEGMENTS, item.key].version}
        else:
            there = {}
        versions.append(tuple(sorted(Version(*pair) for pair in there.items())))
    return versions


def dependency_documents(dependencies: Iterable[Dependency]) -> list[dict[str, Any]]:
    """Return the documents that a proposal has of its dependencies."""
    return [msgspec.to_builtins(dependency) for dependency in dependencies]


class _Walk:
    """The way from the flags that a change touches to all that they depend on."""

    def __init__(self, reading: Reading, changes: Iterable[PolicyChange]) -> None:
        self._reading = reading
        self._changes = {
            change.id: change for change in changes if change.id[0] not in (SEGMENTS, ACCESS)
        }
        self._states: dict[str, dict[str, PolicyState]] = {}
        self._found: dict[Dependency, None] = {}
        self._next: list[Dependency] = []

    def run(self) -> list[Dependency]:
        self._learn({key for _, key in self._changes})
        for change in self._changes.values():
            self._begin(change)
        while self._next:
            some, self._next = self._next, []
            self._learn({item.key for item in some})
            for item in some:
                for state in self._seen(item):
                    self._follow(state, item)
        return [*self._found]

    def _begin(self, change: PolicyChange) -> None:
        region, key = change.id
        sides = [side for side in (change.before, change.after) if side is not None]
        if region == EVERYWHERE:
            stay = [
                other
                for other in self._states[key]
                if other != EVERYWHERE and self._after((other, key)) is not None
            ]
            self._found[Dependency(key=key, which="overridden")] = None
            scope = Dependency(key=key, which="all", but=tuple(sorted(stay)))
        else:
            scope = Dependency(key=key, which="seen", region=region)
            if len(sides) == 1:
                # An override that comes or goes hides, or bares, the flag of all regions.
                bare = Dependency(key=key, which="exact")
                self._found[bare] = None
                sides += self._seen(bare)
        for side in sides:
            self._follow(side, scope)

    def _follow(self, state: PolicyState, scope: Dependency) -> None:
        """Note what a flag refers to, for regions as a dependency has them."""
        if b"$segment" not in state.packed and b"prerequisites" not in state.packed:
            return
        flag = decode(state.policy, stored=True)
        for segment in sorted(segments_of(flag)):
            self._found[Dependency(key=segment, which="exact", region=SEGMENTS)] = None
        for needed in flag.prerequisites:
            item = msgspec.structs.replace(scope, key=needed.flag)
            if item not in self._found:
                self._found[item] = None
                self._next.append(item)

    def _seen(self, item: Dependency) -> Iterator[PolicyState]:
        """Yield the flags that a dependency is on, before the change and after it."""
        before = self._states.get(item.key, {})
        yield from _chosen(before, item).values()
        after = {
            region: state
            for region in {*before, *(region for region, key in self._changes if key == item.key)}
            if (state := self._after((region, item.key))) is not None
        }
        yield from _chosen(after, item).values()

    def _after(self, identity: PolicyId) -> PolicyState | None:
        change = self._changes.get(identity)
        if change is not None:
            return change.after
        return self._states.get(identity[1], {}).get(identity[0])

    def _learn(self, keys: set[str]) -> None:
        new = keys - self._states.keys()
        if new:
            self._states |= {key: {} for key in new}
            for (region, key), state in self._reading.find(new).items():
                self._states[key][region] = state


def _chosen(by_region: Mapping[str, Any], item: Dependency) -> dict[str, Any]:
    """Return those of a flag's states, or versions, that a dependency is on."""
    match item.which:
        case "exact":
            regions = {item.region}
        case "seen":
            regions = {item.region if item.region in by_region else EVERYWHERE}
        case "overridden":
            return dict.fromkeys(by_region.keys() - {EVERYWHERE}, _ANY_VERSION)
        case _:
            regions = by_region.keys() - {*item.but}
    return {region: by_region[region] for region in regions if region in by_region}


def _by_region(versions: Iterable[Version]) -> dict[str, int]:
    return {item.region: item.version for item in versions}


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


class Approvals(SegmentWorkflows):
    """What a writer does with proposals."""

    environment: str
    store: Store
    keys: DataKeys | None
    """What sensitive variants are encrypted by."""

    @contextmanager
    def propose(self, *, reason: str = "", actor: str | None = None) -> Generator[Draft]:
        """Collect operations as `change` does, and propose them; `proposal` of the draft names it.

        They are checked as a change is. To propose takes a role that may edit what they touch; to
        approve takes the role that the change itself takes.

        Raises:
            WriteError, InvalidDocumentError: refused; nothing was written.
            StoreUnavailableError: the database cannot be reached.
        """
        change = Draft(self.environment, self.keys)
        yield change
        change.proposal = self._propose(change, {"reason": reason, "actor": actor})

    def proposal(self, proposal: str) -> Proposal:
        """Return a proposal, with what would come of it now.

        Raises:
            ProposalNotFoundError: there is none of that name.
            StoreError: it was changed past the writer.
        """
        return proposal_in(self.store, proposal)

    def proposals(self, limit: int = 20) -> list[Proposal]:
        """Return proposals, the newest first, without their differences."""
        return proposals_in(self.store, count(limit, "limit"))

    def approve(self, proposal: str, *, reason: str = "", actor: str | None = None) -> Proposal:
        """Approve of what somebody else proposed, as it is; return it.

        Raises:
            AccessDeniedError: the actor may not make this change.
            NotApprovedError: the actor proposed it.
            ProposalNotFoundError, ProposalClosedError, ProposalVoidError: there is nothing to
                approve of.
        """
        who, proposal = self._who(actor), checked_proposal(proposal)
        with self.store.reading() as reading:
            found = read(proposal, reading.said_of(proposal))
            check_open(reading, found)
            if who == found.actor:
                raise NotApprovedError(
                    f"{who!r} proposed {proposal}: somebody else has to approve of it"
                )
            planned = planned_by(reading, found)
            self._check_may(
                reading, who, needs(found.operations, planned.changes), reason, found.operations
            )
        self._say(found, who, "approve", reason, reading.now)
        return self.proposal(proposal)

    def reject(self, proposal: str, *, reason: str = "", actor: str | None = None) -> Commit:
        """Close a proposal: it can be applied no more. That stands in the ledger as a revision.

        Asked again by the same actor, it returns the same Commit.

        Raises:
            AccessDeniedError: to edit what it touches takes another role.
            RateLimitedError: the actor has made too many changes; the proposal stays open.
            ProposalNotFoundError, ProposalClosedError: there is nothing to reject.
        """
        return self._close(proposal, "reject", reason, actor)

    def withdraw(self, proposal: str, *, reason: str = "", actor: str | None = None) -> Commit:
        """Close a proposal of one's own, as `reject` does; for errors see there."""
        return self._close(proposal, "withdraw", reason, actor)

    def apply(self, proposal: str, *, actor: str | None = None) -> Commit:
        """Commit what was proposed, as the one who proposed it, once it is approved of.

        Applied again, it returns the same Commit. The guards of this writer are asked.

        Raises:
            ProposalVoidError: something that it touches, or a segment or prerequisite that this
                depends on, has moved since it was proposed.
            NotApprovedError: nobody who may make the change, but who proposed it, has approved.
            AccessDeniedError: who proposed it, or who applies it, may not even edit what it
                touches.
            ProposalNotFoundError, ProposalClosedError: there is nothing to apply.
        """
        who, proposal = self._who(actor), checked_proposal(proposal)
        said = self.store.proposals.said([proposal])[proposal]
        if not said:
            # An environment that does not exist has no proposals, either.
            self.store.tip()
        found = read(proposal, said)
        draft = Draft(self.environment)
        draft.operations = [*found.operations]
        draft.terms = Application(found, who)
        _, content = self._request(Draft(self.environment), {"reason": found.reason})
        content |= {"actor": found.actor, "operations": found.documents}
        content["digest"] = request_digest(content)
        return self._commit(draft, application_of(proposal), content)

    def _who(self, actor: str | None) -> str:
        """Return who asks: the writer's own actor, where nobody is named."""
        raise NotImplementedError

    def _request(self, draft: Draft, asked: Asked) -> tuple[str, dict[str, Any]]:
        """Return the id of a request, and what the audit is to have of it."""
        raise NotImplementedError

    def _commit(self, draft: Draft, request: str, content: Mapping[str, Any]) -> Commit:
        """Make a revision of a draft."""
        raise NotImplementedError

    def _propose(self, draft: Draft, asked: Asked) -> str:
        if draft.glass:
            raise InvalidDocumentError(
                "break_glass", "is for what cannot wait", "Make the change, or propose it without"
            )
        check_readable(draft.operations)
        draft.settle(self.store)
        request, content = self._request(draft, asked)
        with self.store.reading() as reading:
            planned = plan(
                draft.operations, reading, reading.tip.revision, draft.parts, draft.lists
            )
            # That a flag has it already holds as long as the proposal does, for its version does.
            draft.sealing.check(planned.changes)
            reading.check_newest(planned.changes)
            lessened = lesser(needs(draft.operations, planned.changes))
            self._check_may(
                reading, content["actor"], lessened, content["reason"], draft.operations
            )
            change = next_change(reading.tip, request, reading.now, planned.changes)
            fitting(change, content)
            named = [*(policies_of(draft.operations) or ()), *(item.id for item in planned.changes)]
            versions = versions_of(reading, dict.fromkeys(named))
            depends = dependencies_of(reading, planned.changes)
        touched = [
            {"region": region, "key": key, "version": version}
            for (region, key), version in versions.items()
        ]
        proposed = {
            "time": reading.now,
            "reason": content["reason"],
            "operations": content["operations"],
            "touched": touched,
            "depends": dependency_documents(depends),
        }
        proposed["digest"] = proposal_digest(content["actor"], proposed)
        self.store.add_parts(draft.parts)
        proposal = f"{reading.now:%Y%m%d-%H%M%S}-{os.urandom(4).hex()}"
        self.store.proposals.say(proposal, content["actor"], PROPOSE, proposed)
        return proposal

    def _close(self, proposal: str, says: Says, reason: str, actor: str | None) -> Commit:
        who, proposal = self._who(actor), checked_proposal(proposal)
        with self.store.reading() as reading:
            found = read(proposal, reading.said_of(proposal))
            is_said = check_closable(reading, found, says, who)
            needed: list[Need] = []
            if says == "reject":
                needed = [
                    ("grant", "") if region == ACCESS else ("edit", key)
                    for region, key in found.touched
                ] or [("edit", "")]
                self._check_may(reading, who, needed, reason, ())
            elif who != found.actor:
                raise NotApprovedError(
                    f"{found.actor!r} proposed {proposal}, and {who!r} would withdraw it: reject it"
                )
            closing = Closing(found, needed)
            epoch = reading.tip.epoch
            buckets_after(
                reading,
                who,
                lambda: self.store.bucket_key(epoch, make=False),
                is_limited=closing.is_limited(needed),
            )
        if not is_said:
            self._say(found, who, says, reason, reading.now)
        # Whoever has read the proposal before this revision loses the race against it.
        draft = Draft(self.environment)
        draft.terms = closing
        _, content = self._request(Draft(self.environment), {"reason": reason, "actor": who})
        content = decision(content, f"{says}_proposal", proposal, digest=found.digest)
        try:
            return self._commit(draft, closing_of(proposal, says), content)
        except RequestConflictError:
            raise ProposalClosedError(f"{proposal} was closed by somebody else meanwhile") from None

    def _say(self, found: Proposed, who: str, says: Says, reason: str, now: datetime) -> None:
        content: dict[str, Any] = {"time": now, "reason": reason, "digest": found.digest}
        content["seal"] = verdict_seal(found.id, who, says, content)
        self.store.proposals.say(found.id, who, says, content)

    def _check_may(
        self,
        reading: Reading,
        actor: str,
        needed: Iterable[Need],
        reason: str,
        operations: Sequence[Operation],
    ) -> None:
        try:
            check_access(reading, actor, needed)
        except AccessDeniedError as error:
            log_denial(self.store, reading.now, error, reason, operations)
            raise
