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

from flagkit._core.arguments import check_instance
from flagkit._core.model import EVERYWHERE, decode
from flagkit._core.model.access import ACTOR_LENGTH_MAX, decode_grants
from flagkit._core.model.changes import (
    ACCESS,
    GRANTS,
    SEGMENTS,
    PolicyChange,
    PolicyId,
    PolicyState,
    build_next_change,
)
from flagkit._core.model.flags import collect_flag_segments
from flagkit._core.storage.documents import encode_change
from flagkit._core.storage.layout import ERASED
from flagkit._core.storage.reader import EnvironmentReader
from flagkit._core.storage.requests import PROPOSE
from flagkit._core.storage.store import Store
from flagkit._core.storage.validation import FORM_FAULTS
from flagkit.errors import (
    AccessDeniedError,
    ClosedError,
    FlagkitError,
    InvalidArgumentError,
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
    CommitPolicy,
    Permission,
    check_access,
    compute_buckets,
    find_denied_permission,
    list_required_permissions,
    log_denial,
)
from flagkit.writer.commit import (
    CommitFunction,
    RequestBuilder,
    format_application_request,
    format_closing_request,
)
from flagkit.writer.draft import Commit, Draft
from flagkit.writer.ledger import format_actions, format_differences
from flagkit.writer.operations import (
    APPLICATION_FIELDS,
    Operation,
    build_decision_content,
    check_readable,
    decode_operations,
    encode_operations,
    hash_content,
    hash_request,
    list_policies,
)
from flagkit.writer.planning import ChangePlan, plan
from flagkit.writer.shortcuts import ChangeOptions

_ANY_VERSION: Final = 0

DependencyScope: TypeAlias = Literal["exact", "seen", "all", "overridden"]


class RegionVersion(Struct, frozen=True, order=True):
    """The version of a flag or a segment, of which each region has its own."""

    region: str
    version: int


class Dependency(Struct, frozen=True, kw_only=True):
    """The dependencies of a change, with their versions.

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
    which: DependencyScope
    region: str = EVERYWHERE
    but: tuple[str, ...] = ()
    versions: tuple[RegionVersion, ...] = ()

    def find_moved_policy(self, now: Sequence[RegionVersion]) -> tuple[PolicyId, str] | None:
        """Return what has another version now, and in words which; None if nothing has."""
        then_by, now_by = _index_by_region(self.versions), _index_by_region(now)
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
        change = describe_version_change(then_by.get(region), now_by.get(region))
        return (region, self.key), f"({kind} that it depends on{where}) {change}"


def describe_version_change(then: int | None, now: int | None) -> str:
    """Return in words how a version differs from what it was; None is of what is not there."""
    there = "is not there any more" if now is None else f"is at version {now}"
    return f"{there}, and {'was not there' if then is None else f'was at {then}'}"


def find_dependencies(
    reading: EnvironmentReader, changes: Iterable[PolicyChange]
) -> list[Dependency]:
    """Return all that the flags of a planned change depend on, as it stands at a reading."""
    found = _DependencyWalker(reading, changes).run()
    versions = read_dependency_versions(reading, found)
    return [
        msgspec.structs.replace(dependency, versions=there)
        for dependency, there in zip(found, versions, strict=True)
        if there or dependency.which != "overridden"
    ]


def read_dependency_versions(
    reading: EnvironmentReader, dependencies: Sequence[Dependency]
) -> list[tuple[RegionVersion, ...]]:
    """Return the versions that dependencies have at a reading, each sorted by region."""
    segments = {item.key for item in dependencies if item.region == SEGMENTS}
    flags = {item.key for item in dependencies if item.region != SEGMENTS}
    by_key: dict[str, dict[str, int]] = {}
    for (region, key), state in reading.find_flags(flags).items() if flags else ():
        by_key.setdefault(key, {})[region] = state.version
    found = reading.find_segments(segments) if segments else {}
    versions: list[tuple[RegionVersion, ...]] = []
    for item in dependencies:
        if item.region != SEGMENTS:
            there = _select_regions(by_key.get(item.key, {}), item)
        elif (SEGMENTS, item.key) in found:
            there = {SEGMENTS: found[SEGMENTS, item.key].version}
        else:
            there = {}
        versions.append(tuple(sorted(RegionVersion(*pair) for pair in there.items())))
    return versions


def encode_dependencies(dependencies: Iterable[Dependency]) -> list[dict[str, Any]]:
    """Return the documents that a proposal has of its dependencies."""
    return [msgspec.to_builtins(dependency) for dependency in dependencies]


class _DependencyWalker:
    """The way from the flags that a change touches to all that they depend on."""

    def __init__(self, reading: EnvironmentReader, changes: Iterable[PolicyChange]) -> None:
        self._reading = reading
        self._changes = {
            change.id: change for change in changes if change.id[0] not in (SEGMENTS, ACCESS)
        }
        self._states: dict[str, dict[str, PolicyState]] = {}
        self._found: dict[Dependency, None] = {}
        self._queue: list[Dependency] = []

    def run(self) -> list[Dependency]:
        self._load_states({key for _, key in self._changes})
        for change in self._changes.values():
            self._begin(change)
        while self._queue:
            some, self._queue = self._queue, []
            self._load_states({item.key for item in some})
            for item in some:
                for state in self._iter_states(item):
                    self._follow(state, item)
        return [*self._found]

    def _begin(self, change: PolicyChange) -> None:
        region, key = change.id
        sides = [side for side in (change.before, change.after) if side is not None]
        if region == EVERYWHERE:
            stay = [
                other
                for other in self._states[key]
                if other != EVERYWHERE and self._find_state_after((other, key)) is not None
            ]
            self._found[Dependency(key=key, which="overridden")] = None
            scope = Dependency(key=key, which="all", but=tuple(sorted(stay)))
        else:
            scope = Dependency(key=key, which="seen", region=region)
            if len(sides) == 1:
                # An override that comes or goes hides, or bares, the flag of all regions.
                bare = Dependency(key=key, which="exact")
                self._found[bare] = None
                sides += self._iter_states(bare)
        for side in sides:
            self._follow(side, scope)

    def _follow(self, state: PolicyState, scope: Dependency) -> None:
        """Note what a flag refers to, for regions as a dependency has them."""
        if b"$segment" not in state.packed and b"prerequisites" not in state.packed:
            return
        flag = decode(state.policy, stored=True)
        for segment in sorted(collect_flag_segments(flag)):
            self._found[Dependency(key=segment, which="exact", region=SEGMENTS)] = None
        for needed in flag.prerequisites:
            item = msgspec.structs.replace(scope, key=needed.flag)
            if item not in self._found:
                self._found[item] = None
                self._queue.append(item)

    def _iter_states(self, item: Dependency) -> Iterator[PolicyState]:
        """Yield the flags that a dependency is on, before the change and after it."""
        before = self._states.get(item.key, {})
        yield from _select_regions(before, item).values()
        after = {
            region: state
            for region in {*before, *(region for region, key in self._changes if key == item.key)}
            if (state := self._find_state_after((region, item.key))) is not None
        }
        yield from _select_regions(after, item).values()

    def _find_state_after(self, identity: PolicyId) -> PolicyState | None:
        change = self._changes.get(identity)
        if change is not None:
            return change.after
        return self._states.get(identity[1], {}).get(identity[0])

    def _load_states(self, keys: set[str]) -> None:
        new = keys - self._states.keys()
        if new:
            self._states |= {key: {} for key in new}
            for (region, key), state in self._reading.find_flags(new).items():
                self._states[key][region] = state


def _select_regions(by_region: Mapping[str, Any], item: Dependency) -> dict[str, Any]:
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


def _index_by_region(versions: Iterable[RegionVersion]) -> dict[str, int]:
    return {item.region: item.version for item in versions}


Decision: TypeAlias = Literal["approve", "reject", "withdraw"]
ProposalState: TypeAlias = Literal["open", "void", "applied", "rejected", "withdrawn"]

_REASON_LENGTH_MAX: Final = 1_000
_UNKNOWN_TIME: Final = datetime(1970, 1, 1, tzinfo=UTC)
"""What is told of a proposal that was changed past the writer is bounded, and has some time."""
_STATE_BY_DECISION: Final[Mapping[str, ProposalState]] = {
    "reject": "rejected",
    "withdraw": "withdrawn",
}


class Verdict(Struct, frozen=True):
    """What an actor said of a proposal; whether it counts, the roles at its application say."""

    actor: str
    verdict: Decision
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
    state: ProposalState
    problem: str = ""
    revision: int | None = None
    differences: tuple[str, ...] = ()


def read_proposal(store: Store, proposal: str) -> Proposal:
    """Return a proposal, with what would come of it now.

    Raises:
        ProposalNotFoundError: there is none of that name.
        StoreError: it was changed past the writer.
    """
    name = check_proposal_name(proposal)
    with store.open_reader() as reading:
        return resolve_proposal(
            reading, decode_proposal(name, reading.read_proposal(name)), with_differences=True
        )


def check_proposal_name(proposal: object) -> str:
    """Return the name of a proposal, if it is text.

    Raises:
        InvalidArgumentError: it is something else.
    """
    return check_instance(proposal, str, "proposal", "pass its name, as in Proposal.id")


def list_proposals(store: Store, limit: int = 20) -> list[Proposal]:
    """Return the proposals of an environment, the newest first, without their differences.

    One that was changed past the writer is void, and its `problem` says what is wrong.
    """
    documents_by_proposal = store.proposals.read_many(store.proposals.list_newest(limit))
    found: list[Proposal] = []
    with store.open_reader() as reading:
        for proposal, documents in documents_by_proposal.items():
            try:
                found.append(
                    resolve_proposal(
                        reading, decode_proposal(proposal, documents), with_differences=False
                    )
                )
            except (StoreUnavailableError, ClosedError):
                raise
            except ProposalNotFoundError:
                # It was removed since it was listed.
                continue
            except StoreError as error:
                # The others are none the worse for it.
                found.append(_build_altered_proposal(proposal, documents, str(error)))
    return found


class StoredProposal(Struct, frozen=True):
    """A proposal as it is stored."""

    id: str
    actor: str
    reason: str
    time: datetime
    documents: list[dict[str, Any]]
    touched_versions: dict[PolicyId, int | None]
    dependencies: tuple[Dependency, ...]
    digest: str
    verdicts: tuple[Verdict, ...]

    @property
    def operations(self) -> list[Operation]:
        """A proposed change."""
        return decode_operations(self.documents)


class ApplyProposal(CommitPolicy):
    """The terms of applying a proposal: it is open, unmoved and approved of."""

    has_own_request = True

    def __init__(self, proposal: StoredProposal, applier: str) -> None:
        self._proposal = proposal
        self._applier = applier
        self._approvers: tuple[str, ...] = ()
        self._earlier_request: Mapping[str, Any] | None = None

    def check(self, reading: EnvironmentReader) -> None:
        """Refuse it, if it was closed, or if something that it touches has moved."""
        found = decode_proposal(self._proposal.id, reading.read_proposal(self._proposal.id))
        if found.digest != self._proposal.digest:
            raise StoreError(f"the proposal {found.id} was changed past the writer: propose anew")
        self._proposal = found
        check_open(reading, self._proposal)
        _check_versions(reading, self._proposal)
        self._earlier_request = reading.find_audit_document(format_application_request(found.id))

    def get_approvers(
        self,
        reading: EnvironmentReader,
        actor: str,
        permissions: Sequence[Permission],
        changes: Sequence[PolicyChange],
    ) -> tuple[str, ...]:
        """Return who approved of it, and may make the change."""
        found = self._proposal
        _check_touched(reading, found, changes)
        for who in (actor, self._applier):
            check_access(reading, who, list_proposing_permissions(permissions))
        approvers = _list_approvers(reading, found, permissions)
        if not approvers:
            asked = [verdict.actor for verdict in found.verdicts if verdict.verdict == "approve"]
            lost = f": {', '.join(asked)} may not make this change" if asked else ""
            raise NotApprovedError(
                f"{found.id} is not approved of by anybody who may, besides {found.actor!r}{lost}:"
                " have somebody approve of it who may make the change"
            )
        # What an attempt has recorded that came to nothing stays on record, so it must still hold.
        gone = [who for who in self._list_recorded_approvers() if who not in approvers]
        if gone:
            raise NotApprovedError(
                f"{found.id} was about to be applied on the approval of {', '.join(gone)}, which"
                " does not count any more: propose it anew"
            )
        self._approvers = approvers
        return approvers

    def complete_audit_content(self, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what the audit is to have: also what the application relies on.

        Raises:
            RequestConflictError: something else is on record in its place.
        """
        found, earlier = self._proposal, self._earlier_request
        approved = {"digest": found.digest, "by": [*self._approvers]}
        whole: dict[str, Any] = {**content, "proposal": found.id, "applied_by": self._applier}
        if earlier is None:
            whole["approved"] = approved
        else:
            whole |= {name: earlier[name] for name in APPLICATION_FIELDS if name in earlier}
        whole["digest"] = hash_request(whole)
        if earlier is not None and (
            whole["digest"] != earlier.get("digest") or whole["proposal"] != found.id
        ):
            raise RequestConflictError(
                f"the audit has another request in the place of the application of {found.id}:"
                " it was changed past the writer, or a person in it was erased; propose it anew"
            )
        return whole

    def _list_recorded_approvers(self) -> list[str]:
        """Return the approvals that an earlier attempt has recorded."""
        try:
            return msgspec.convert(
                (self._earlier_request or {}).get("approved", {}), _RecordedApprovals
            ).by
        except msgspec.ValidationError:
            # It is refused when it is compared with what is to be recorded.
            return []


class CloseProposal(CommitPolicy):
    """The terms of closing a proposal: it is not applied."""

    def __init__(self, proposal: StoredProposal, permissions: list[Permission]) -> None:
        self._proposal = proposal
        self._permissions = permissions

    def check(self, reading: EnvironmentReader) -> None:
        """Refuse to close what was applied, or closed otherwise."""
        _check_not_applied(reading, self._proposal)
        closed = _find_closing_state(reading, self._proposal.id)
        if closed is not None:
            raise ProposalClosedError(
                f"{self._proposal.id} was {closed}: nothing more is to be done"
            )

    def list_required_permissions(self, *_: object, **__: object) -> list[Permission]:
        """Return what it takes to close it."""
        return self._permissions

    def is_limited(self, permissions: Collection[Permission]) -> bool:
        """Tell that it takes a token: whatever roles it takes, it stops no harm."""
        del permissions
        return True


class _VerdictId(Struct, frozen=True):
    proposal: str
    actor: str
    verdict: Literal["propose", "approve", "reject", "withdraw"]


class _TouchedPolicy(Struct, frozen=True):
    region: str
    key: str
    version: int | None


class _VerdictDocument(Struct, frozen=True, kw_only=True, rename={"identity": "_id"}):
    """The form of what is said of a proposal, as it is stored."""

    identity: _VerdictId
    time: datetime
    reason: str
    digest: str
    seal: str = ERASED


class _RecordedApprovals(Struct):
    by: list[str] = []


class _ProposalDocument(_VerdictDocument, frozen=True, kw_only=True):
    """The form of a proposal, as it is stored."""

    operations: list[dict[str, Any]]
    touched: tuple[_TouchedPolicy, ...]
    depends: tuple[Dependency, ...] = ()


def decode_proposal(proposal: str, documents: Sequence[Mapping[str, Any]]) -> StoredProposal:
    """Return a proposal from its documents, with the verdicts that are bound to it.

    Raises:
        ProposalNotFoundError: it is not among them.
        StoreError: it, or a verdict that is bound to it, was changed past the writer.
    """
    proposed = [found for found in documents if get_verdict(found) == PROPOSE]
    if not proposed:
        raise ProposalNotFoundError(
            f"there is no proposal {proposal!r}: see writer.reader.proposals(), or flagkit"
            " approvals list"
        )
    try:
        if len(proposed) > 1:
            raise ValueError("there are two of that name")
        return _build_stored_proposal(
            proposal, proposed[0], [found for found in documents if found is not proposed[0]]
        )
    except (*FORM_FAULTS, InvalidDocumentError) as error:
        raise StoreError(
            f"the proposal {proposal} was changed past the writer ({error!s:.200}): propose it anew"
        ) from error


def _build_stored_proposal(
    proposal: str, document: Mapping[str, Any], others: Iterable[Mapping[str, Any]]
) -> StoredProposal:
    form = msgspec.convert(document, _ProposalDocument)
    actor, digest = form.identity.actor, form.digest
    if digest not in (ERASED, hash_proposal(actor, document)):
        raise ValueError("it is not what its digest was made of")
    # They must be read back, be it that nobody asks for them here.
    decode_operations(form.operations)
    verdicts: list[Verdict] = []
    for other in others:
        bound = other.get("digest")
        if isinstance(bound, str) and bound != digest:
            # It was said of something else.
            continue
        verdict_document = msgspec.convert(other, _VerdictDocument)
        who, verdict = verdict_document.identity.actor, verdict_document.identity.verdict
        if verdict == "propose":
            raise ValueError("there are two of that name")
        if verdict_document.seal not in (ERASED, hash_verdict(proposal, who, verdict, other)):
            raise ValueError(f"what {who!r:.200} said of it is not as it was said")
        verdicts.append(Verdict(who, verdict, verdict_document.reason, verdict_document.time))
    touched = {(item.region, item.key): item.version for item in form.touched}
    return StoredProposal(
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


def get_verdict(document: Mapping[str, Any]) -> object:
    """Return what verdict a stored document is, whatever it is."""
    return get_identity(document).get("verdict")


def get_identity(document: Mapping[str, Any]) -> Mapping[str, object]:
    """Return the `_id` of a stored document; an empty one of what has none of that form."""
    identity = document.get("_id")
    return cast("Mapping[str, object]", identity) if isinstance(identity, Mapping) else {}


def hash_proposal(actor: str, document: Mapping[str, Any]) -> str:
    """Return what binds approvals to a proposal: the hex SHA-256 of all that it says."""
    # Those of an earlier version have no dependencies.
    depends = [document["depends"]] if "depends" in document else []
    fields = [
        actor,
        document["time"],
        document["reason"],
        document["operations"],
        document["touched"],
    ]
    return hash_content([*fields, *depends])


def hash_verdict(proposal: str, actor: str, verdict: Decision, document: Mapping[str, Any]) -> str:
    """Return what binds a verdict's words to it: the hex SHA-256 of all that it says.

    Verdicts of an earlier version have none.
    """
    return hash_content(
        [proposal, actor, verdict, document["time"], document["reason"], document["digest"]]
    )


def resolve_proposal(
    reading: EnvironmentReader, proposal: StoredProposal, *, with_differences: bool
) -> Proposal:
    """Return what became of a proposal; if `with_differences`, with what would come of it now."""
    done = reading.history.find_commit(format_application_request(proposal.id))
    closed: list[ProposalState] = [
        _STATE_BY_DECISION[verdict.verdict]
        for verdict in proposal.verdicts
        if verdict.verdict in _STATE_BY_DECISION
    ]
    state: ProposalState = "open"
    problem, lines = "", tuple[str, ...]()
    if done is not None:
        state = "applied"
    elif closed:
        state = closed[0]
    elif (ledgered := _find_closing_state(reading, proposal.id)) is not None:
        state = ledgered
    else:
        try:
            _check_versions(reading, proposal)
            if with_differences:
                changes = plan_proposal(reading, proposal).changes
                lines = tuple(line for change in changes for line in format_differences(change))
        except (StoreUnavailableError, ClosedError):
            raise
        except FlagkitError as error:
            state, problem = "void", str(error)
    return Proposal(
        proposal.id,
        proposal.actor,
        proposal.reason,
        proposal.time,
        format_actions(encode_operations(proposal.operations)),
        proposal.verdicts,
        state,
        problem,
        None if done is None else done.revision,
        lines,
    )


def _build_altered_proposal(
    proposal: str, documents: Iterable[Mapping[str, Any]], problem: str
) -> Proposal:
    """Return what can be told of a proposal that is not as it was made."""
    proposed = next(found for found in documents if get_verdict(found) == PROPOSE)
    actor, reason, time = (
        get_identity(proposed).get("actor"),
        proposed.get("reason"),
        proposed.get("time"),
    )
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


def plan_proposal(reading: EnvironmentReader, proposal: StoredProposal) -> ChangePlan:
    """Return what a proposal would do now, or refuse it if that is not what was proposed."""
    _check_versions(reading, proposal)
    try:
        planned = plan(proposal.operations, reading, reading.tip.revision, {})
    except FlagkitError:
        raise
    except FORM_FAULTS as error:
        raise StoreError(
            f"the proposal {proposal.id} cannot be planned, so it was changed past the writer"
            f" ({type(error).__name__}: {error!s:.200}): propose it anew"
        ) from error
    _check_touched(reading, proposal, planned.changes)
    return planned


def check_open(reading: EnvironmentReader, proposal: StoredProposal) -> None:
    """Refuse a proposal of which nothing more can become."""
    _check_not_applied(reading, proposal)
    for verdict in proposal.verdicts:
        if verdict.verdict in _STATE_BY_DECISION:
            raise ProposalClosedError(
                f"{proposal.id} was {_STATE_BY_DECISION[verdict.verdict]} by {verdict.actor!r}:"
                " propose it anew"
            )
    closed = _find_closing_state(reading, proposal.id)
    if closed is not None:
        raise ProposalClosedError(f"{proposal.id} was {closed}: propose it anew")


def is_already_closed(
    reading: EnvironmentReader, proposal: StoredProposal, decision: Decision, actor: str
) -> bool:
    """Refuse to close a proposal that is not open; return whether `actor` has closed it already.

    Then the revision that says so may be missing: the writer may have been killed, or refused for a
    rate limit.
    """
    if any((verdict.actor, verdict.verdict) == (actor, decision) for verdict in proposal.verdicts):
        _check_not_applied(reading, proposal)
        return True
    check_open(reading, proposal)
    return False


def _find_closing_state(reading: EnvironmentReader, proposal: str) -> ProposalState | None:
    """Return how a proposal was closed by the ledger, whatever became of its documents."""
    for decision_name, state in _STATE_BY_DECISION.items():
        if reading.history.find_commit(format_closing_request(proposal, decision_name)) is not None:
            return state
    return None


def _check_not_applied(reading: EnvironmentReader, proposal: StoredProposal) -> None:
    """Refuse a proposal that was applied."""
    done = reading.history.find_commit(format_application_request(proposal.id))
    if done is not None:
        raise ProposalClosedError(f"{proposal.id} was applied as revision {done.revision}")


def _check_versions(reading: EnvironmentReader, proposal: StoredProposal) -> None:
    """Refuse a proposal if what it touches, or depends on, has another version than at first."""
    if proposal.digest == ERASED:
        raise ProposalClosedError(f"{proposal.id} is not as it was made, a person in it was erased")
    for identity, version in read_versions(reading, proposal.touched_versions).items():
        then = proposal.touched_versions[identity]
        if version != then:
            problem = describe_version_change(then, version)
            raise ProposalVoidError(identity[1], problem, reading.history.find_author(identity))
    for dependency, now in zip(
        proposal.dependencies, read_dependency_versions(reading, proposal.dependencies), strict=True
    ):
        other = dependency.find_moved_policy(now)
        if other is not None:
            identity, problem = other
            raise ProposalVoidError(identity[1], problem, reading.history.find_author(identity))


def _check_touched(
    reading: EnvironmentReader, proposal: StoredProposal, changes: Iterable[PolicyChange]
) -> None:
    """Refuse a proposal that would change more than was proposed: a rollback of everything may."""
    for change in changes:
        if change.id not in proposal.touched_versions:
            raise ProposalVoidError(
                change.id[1], "would be changed, too", reading.history.find_author(change.id)
            )


def read_versions(
    reading: EnvironmentReader, policies: Iterable[PolicyId]
) -> dict[PolicyId, int | None]:
    """Return the versions of flags, segments, grants and limits; None of what is not there."""
    asked = [*policies]
    states = {
        **reading.find_flags({key for region, key in asked if region not in (SEGMENTS, ACCESS)}),
        **reading.find_segments({key for region, key in asked if region == SEGMENTS}),
    }
    if any(region == ACCESS for region, _ in asked):
        states |= reading.access
    return {item: states[item].version if item in states else None for item in asked}


def list_proposing_permissions(permissions: Iterable[Permission]) -> list[Permission]:
    """Return what it takes to propose what takes all of that."""
    return [(action if action == "pause" else "edit", key) for action, key in permissions]


def _list_approvers(
    reading: EnvironmentReader, proposal: StoredProposal, permissions: Sequence[Permission]
) -> tuple[str, ...]:
    """Return who approved, and may make the change at a reading's revision."""
    approved = [verdict.actor for verdict in proposal.verdicts if verdict.verdict == "approve"]
    others = [actor for actor in approved if actor != proposal.actor]
    held = reading.access.get(GRANTS)
    if held is None:
        return tuple(others)
    grants = decode_grants(held.policy)
    return tuple(
        actor for actor in others if find_denied_permission(grants, actor, permissions) is None
    )


class Proposals:
    """The proposals of an environment, as `writer.proposals` has them.

    with ada.proposals.propose(reason="it went well") as change:
        change.set_rollout("shop.search", 100)
    dana.proposals.approve(change.proposal)
    ada.proposals.apply(change.proposal)
    """

    def __init__(self, store: Store, requests: RequestBuilder, commit: CommitFunction) -> None:
        self._store = store
        self._requests = requests
        self._commit = commit

    @contextmanager
    def propose(self, *, reason: str = "", actor: str | None = None) -> Generator[Draft]:
        """Collect operations as `Writer.change` does, and propose them when the block ends.

        The draft's `proposal` is then the name of the proposal. The operations are checked as those
        of a change are. The actor needs a role that may edit the flags and segments. An approval
        takes the role that the change itself takes.

        Raises:
            WriteError, NotFoundError, InvalidDocumentError: the proposal is refused. Nothing is
                written.
            StoreUnavailableError: the database cannot be reached.
        """
        draft = self._requests.create_draft()
        yield draft
        draft.proposal = self._propose(draft, {"reason": reason, "actor": actor})

    def approve(self, proposal: str, *, reason: str = "", actor: str | None = None) -> Proposal:
        """Approve of what somebody else proposed, as it is; return it.

        Raises:
            AccessDeniedError: the actor may not make this change.
            NotApprovedError: the actor proposed it.
            ProposalNotFoundError, ProposalClosedError, ProposalVoidError: there is nothing to
                approve of.
        """
        who, proposal = self._requests.resolve_actor(actor), check_proposal_name(proposal)
        with self._store.open_reader() as reading:
            found = decode_proposal(proposal, reading.read_proposal(proposal))
            check_open(reading, found)
            if who == found.actor:
                raise NotApprovedError(
                    f"{who!r} proposed {proposal}: somebody else has to approve of it"
                )
            planned = plan_proposal(reading, found)
            self._check_access(
                reading,
                who,
                list_required_permissions(found.operations, planned.changes),
                reason,
                found.operations,
            )
        self._record_verdict(found, who, "approve", reason, reading.now)
        return read_proposal(self._store, proposal)

    def reject(self, proposal: str, *, reason: str = "", actor: str | None = None) -> Commit:
        """Close a proposal: it can be applied no more. That stands in the ledger as a revision.

        Asked again by the same actor, it returns the same Commit.

        Raises:
            AccessDeniedError: to edit what it touches takes another role.
            RateLimitedError: the actor has made too many changes; the proposal stays open.
            ProposalNotFoundError, ProposalClosedError: there is nothing to reject.
        """
        return self._close_proposal(proposal, "reject", reason, actor)

    def withdraw(self, proposal: str, *, reason: str = "", actor: str | None = None) -> Commit:
        """Close a proposal of one's own, as `reject` does; for errors see there."""
        return self._close_proposal(proposal, "withdraw", reason, actor)

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
        who, proposal = self._requests.resolve_actor(actor), check_proposal_name(proposal)
        documents = self._store.proposals.read_many([proposal])[proposal]
        if not documents:
            # An environment that does not exist has no proposals, either.
            self._store.read_tip()
        found = decode_proposal(proposal, documents)
        draft = self._requests.create_draft()
        _, content = self._requests.build(draft, {"reason": found.reason})
        draft.operations = [*found.operations]
        draft.commit_policy = ApplyProposal(found, who)
        content |= {"actor": found.actor, "operations": found.documents}
        content["digest"] = hash_request(content)
        return self._commit(draft, format_application_request(proposal), content, None)

    def _propose(self, draft: Draft, options: ChangeOptions) -> str:
        if draft.bypass_reason:
            raise InvalidArgumentError(
                "bypass_guards is for a change that cannot wait: make the change, or propose it"
                " without"
            )
        check_readable(draft.operations)
        draft.reuse_seeds(self._store)
        request, content = self._requests.build(draft, options)
        with self._store.open_reader() as reading:
            planned = plan(
                draft.operations, reading, reading.tip.revision, draft.parts, draft.listed_keys
            )
            # That a flag has it already holds as long as the proposal does, for its version does.
            draft.encrypter.check(planned.changes)
            reading.history.check_newest(planned.changes)
            lessened = list_proposing_permissions(
                list_required_permissions(draft.operations, planned.changes)
            )
            self._check_access(
                reading, content["actor"], lessened, content["reason"], draft.operations
            )
            change = build_next_change(reading.tip, request, reading.now, planned.changes)
            encode_change(change, content)
            named = [
                *(list_policies(draft.operations) or ()),
                *(item.id for item in planned.changes),
            ]
            versions = read_versions(reading, dict.fromkeys(named))
            depends = find_dependencies(reading, planned.changes)
        touched = [
            {"region": region, "key": key, "version": version}
            for (region, key), version in versions.items()
        ]
        proposed = {
            "time": reading.now,
            "reason": content["reason"],
            "operations": content["operations"],
            "touched": touched,
            "depends": encode_dependencies(depends),
        }
        proposed["digest"] = hash_proposal(content["actor"], proposed)
        self._store.add_parts(draft.parts)
        proposal = f"{reading.now:%Y%m%d-%H%M%S}-{os.urandom(4).hex()}"
        self._store.proposals.add(proposal, content["actor"], PROPOSE, proposed)
        return proposal

    def _close_proposal(
        self, proposal: str, decision: Decision, reason: str, actor: str | None
    ) -> Commit:
        who, proposal = self._requests.resolve_actor(actor), check_proposal_name(proposal)
        with self._store.open_reader() as reading:
            found = decode_proposal(proposal, reading.read_proposal(proposal))
            is_closed = is_already_closed(reading, found, decision, who)
            needed: list[Permission] = []
            if decision == "reject":
                needed = [
                    ("grant", "") if region == ACCESS else ("edit", key)
                    for region, key in found.touched_versions
                ] or [("edit", "")]
                self._check_access(reading, who, needed, reason, ())
            elif who != found.actor:
                raise NotApprovedError(
                    f"{found.actor!r} proposed {proposal}, and {who!r} would withdraw it: reject it"
                )
            closing = CloseProposal(found, needed)
            epoch = reading.tip.epoch
            compute_buckets(
                reading,
                who,
                lambda: self._store.read_bucket_key(epoch, make=False),
                is_limited=closing.is_limited(needed),
            )
        if not is_closed:
            self._record_verdict(found, who, decision, reason, reading.now)
        # Whoever has read the proposal before this revision loses the race against it.
        draft = self._requests.create_draft()
        draft.commit_policy = closing
        _, content = self._requests.build(draft, {"reason": reason, "actor": who})
        content = build_decision_content(
            content, f"{decision}_proposal", proposal, digest=found.digest
        )
        try:
            return self._commit(draft, format_closing_request(proposal, decision), content, None)
        except RequestConflictError:
            raise ProposalClosedError(f"{proposal} was closed by somebody else meanwhile") from None

    def _record_verdict(
        self, proposal: StoredProposal, actor: str, decision: Decision, reason: str, now: datetime
    ) -> None:
        content: dict[str, Any] = {"time": now, "reason": reason, "digest": proposal.digest}
        content["seal"] = hash_verdict(proposal.id, actor, decision, content)
        self._store.proposals.add(proposal.id, actor, decision, content)

    def _check_access(
        self,
        reading: EnvironmentReader,
        actor: str,
        permissions: Iterable[Permission],
        reason: str,
        operations: Sequence[Operation],
    ) -> None:
        try:
            check_access(reading, actor, permissions)
        except AccessDeniedError as error:
            log_denial(self._store, reading.now, error, reason, operations)
            raise
