"""Verification: proves the ledger against the head, and everything beside it against the ledger.

Each check yields its problems and continues with the next document. docs/writing.md lists what none
of them can find.

The audit of an applied proposal has its digest and the approvals that counted; the audit of a
rejection or withdrawal has the digest. A later alteration or removal is therefore found.

If the ledger was pruned, the proof starts at the cut: the first change must continue the tip there,
and unchanged policies must equal those at the cut.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain, groupby
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from flagkit._core.arguments import check_instance, check_list
from flagkit._core.arguments import check_revision as revision_of
from flagkit._core.cooperative import split_batches
from flagkit._core.model import packing
from flagkit._core.model.changes import (
    ACCESS,
    SEGMENTS,
    Change,
    Cut,
    PolicyChange,
    PolicyId,
    PolicyState,
    Tip,
    advance_digests,
    compute_digests,
    hash_contents,
)
from flagkit._core.model.segments import check_members, decode_segment
from flagkit._core.snapshot import Arena
from flagkit._core.snapshot.layout import FORMAT
from flagkit._core.storage.checkpoints import Checkpoint, decode_manifest
from flagkit._core.storage.documents import decode_committed_tip
from flagkit._core.storage.layout import AUDIT, CHECKPOINTS, DENIALS, ERASED, MEMBERS, PENDING
from flagkit._core.storage.pruning import CarriedState
from flagkit._core.storage.reader import CarriedFlag, EnvironmentReader
from flagkit._core.storage.requests import PROPOSE, list_name_prefixes
from flagkit._core.storage.store import Store
from flagkit._core.storage.validation import describe_fault, find_fault, translate_form_errors
from flagkit.errors import (
    ClosedError,
    EnvironmentNotFoundError,
    FlagkitError,
    InvalidArgumentError,
    ProposalNotFoundError,
    SnapshotFormatError,
    StoreError,
    StoreUnavailableError,
)
from flagkit.writer.approvals import StoredProposal, decode_proposal, get_identity, get_verdict
from flagkit.writer.checkpoints import find_checkpoint_problem
from flagkit.writer.commit import format_application_request, format_closing_request
from flagkit.writer.operations import decode_operations, hash_request, list_policies

_ERASED_NAME: Final = re.compile(rf"{ERASED}:[0-9a-f]{{16}}")
_NOT_ALLOWED: Final = "(code 13)"
_APPLICATION: Final = format_application_request("")


class CheckpointInspection:
    """The checkpoints of an environment, which are read and held to the ledger as it is walked."""

    def __init__(self, reading: EnvironmentReader) -> None:
        self.problems: list[str] = []
        self._reading = reading
        self._unchecked: dict[int, list[Checkpoint]] = {}
        for document in reading.iter_documents(CHECKPOINTS):
            fault = find_fault(CHECKPOINTS, document)
            if fault is not None:
                self.problems.append(describe_fault(CHECKPOINTS, document, fault))
                continue
            try:
                checkpoint = decode_manifest(document)
            except StoreError as error:
                self._report(document["_id"]["checkpoint"], f"cannot be used: {error}")
            else:
                self._unchecked.setdefault(checkpoint.tip.revision, []).append(checkpoint)

    def check_tip(self, tip: Tip, states: Iterable[PolicyState]) -> None:
        """Hold the checkpoints of a tip's revision to what the ledger has at it."""
        there = [*states] if tip.revision in self._unchecked else []
        for checkpoint in self._unchecked.pop(tip.revision, ()):
            base = self._read_base(checkpoint)
            # Another epoch is another history, which clients do not follow.
            if base is not None and checkpoint.tip.epoch == tip.epoch:
                self._report(checkpoint.id, find_checkpoint_problem(base, tip, there))

    def finish(self, head: Tip) -> None:
        """Look at the checkpoints of revisions that the ledger does not tell."""
        for checkpoint in (each for some in self._unchecked.values() for each in some):
            if checkpoint.tip.revision > head.revision and checkpoint.tip.epoch == head.epoch:
                self._report(checkpoint.id, f"is of a revision after {head.revision}")
            self._read_base(checkpoint)

    def _read_base(self, checkpoint: Checkpoint) -> Arena | None:
        """Return the base of a checkpoint; None if it is of another version of flagkit."""
        try:
            base = self._reading.read_checkpoint(_set_current_formats(checkpoint))
        except StoreUnavailableError:
            raise
        except (StoreError, SnapshotFormatError) as error:
            if checkpoint.is_readable:
                self._report(checkpoint.id, f"cannot be used: {error}")
            return None
        if not checkpoint.is_readable:
            self._report(checkpoint.id, "has a manifest of other formats than its slices")
        return base

    def _report(self, name: str, problem: str | None) -> None:
        if problem is not None:
            self.problems.append(f"checkpoint {name} {problem}")


def _set_current_formats(checkpoint: Checkpoint) -> Checkpoint:
    ours = {"frame": FORMAT, "packing": packing.FORMAT}
    return replace(checkpoint, **ours)


def iter_members_problems(reading: EnvironmentReader) -> Iterator[str]:
    """Yield the parts of members that are not what their names say."""
    for document in reading.iter_documents(MEMBERS):
        fault = find_fault(MEMBERS, document)
        if fault is not None:
            yield describe_fault(MEMBERS, document, fault)
        elif hashlib.sha256(document["hashes"]).hexdigest() != document["_id"]["part"]:
            yield f"the members {document['_id']['part']} were changed past the writer"


def iter_pending_problems(reading: EnvironmentReader) -> Iterator[str]:
    """Yield what is wrong with the changes that wait, by what the audit has of them."""
    for document in reading.iter_documents(PENDING):
        fault = find_fault(PENDING, document)
        if fault is not None:
            yield describe_fault(PENDING, document, fault)
            continue
        request = document["_id"]["request"]
        asked = reading.find_audit_document(request)
        if asked is None:
            yield f"the pending change {request!r}: the audit has lost who asked for it, and why"
        elif not _has_same_touched(document["touched"], asked):
            yield f"the pending change {request!r} touches other flags than were asked for"


def _has_same_touched(touched: list[Mapping[str, str]] | None, request: Mapping[str, Any]) -> bool:
    try:
        wanted = list_policies(decode_operations(request.get("operations")))
    except FlagkitError:
        # What is in the audit cannot be read back, which is told of the audit.
        return True
    found = None if touched is None else [(item["region"], item["key"]) for item in touched]
    return found == wanted


def iter_denials_problems(reading: EnvironmentReader) -> Iterator[str]:
    """Yield what is wrong with the log of denials, where this user may read it."""
    try:
        for document in reading.iter_documents(DENIALS):
            fault = find_fault(DENIALS, document)
            if fault is not None:
                yield describe_fault(DENIALS, document, fault)
            elif not document["_id"]["denial"].startswith(list_name_prefixes(document["time"])):
                yield describe_fault(DENIALS, document, "time: is not that of its name")
    except StoreError as error:
        if _NOT_ALLOWED not in str(error):
            raise


class AuditInspection:
    """Holds the audit to the ledger.

    Args:
        requests: The requests that led to revisions that the ledger has, and these.
        cut: Where the ledger was cut, if it was.
        carried: What policies have of changes that the ledger has no more.
    """

    def __init__(
        self,
        requests: Iterable[tuple[int, str]],
        cut: Cut | None,
        carried: Iterable[CarriedFlag],
    ) -> None:
        self._revisions = {request: revision for revision, request in requests}
        self._cut = cut
        self._carried_flags = [*carried]
        self._tips: dict[int, Tip] = {}

    def iter_problems(self, store: Store) -> Iterator[str]:
        """Yield what is wrong with the audit."""
        lost = dict(self._revisions)
        for document in store.iter_audit_documents():
            fault = find_fault(AUDIT, document)
            request = document["_id"].get("request")
            revision = lost.pop(request, None) if isinstance(request, str) else None
            if fault is not None:
                at = "" if revision is None else f"revision {revision}: "
                yield at + describe_fault(AUDIT, document, fault)
                continue
            name = f"the request {request!r}" if revision is None else f"revision {revision}"
            if not _is_intact(document):
                yield f"{name}: what was asked for was altered in the audit"
            if document.get("proposal", "") != _parse_proposal(request):
                yield f"{name}: the audit names another proposal than was applied"
            yield from self._iter_tip_problems(name, document, is_retained=revision is not None)
        for revision in sorted(lost.values()):
            yield f"revision {revision}: the audit has lost who asked for it, and why"
        yield from self._iter_carried_problems()

    def _iter_tip_problems(
        self, name: str, document: Mapping[str, Any], *, is_retained: bool
    ) -> Iterator[str]:
        """Yield what is wrong with what the audit has of a revision that was cut."""
        with translate_form_errors(AUDIT, document):
            tip = decode_committed_tip(document)
        if tip is None:
            return
        cut = None if self._cut is None else self._cut.tip
        if cut is None or is_retained or tip.revision > cut.revision or tip.epoch != cut.epoch:
            yield f"{name}: the audit says that it is revision {tip.revision}, which it is not"
        elif tip.revision in self._tips:
            yield f"{name}: the audit has another request for revision {tip.revision}, too"
        elif tip.time > cut.time or (tip.revision == cut.revision and tip != cut):
            yield f"{name}: the audit does not have revision {tip.revision} as it was"
        self._tips[tip.revision] = tip

    def _iter_carried_problems(self) -> Iterator[str]:
        """Yield what policies and audit say differently of revisions that were cut."""
        cut = 0 if self._cut is None else self._cut.tip.revision
        oldest = min(self._tips, default=cut + 1)
        for carried in self._carried_flags:
            if carried.time is None or carried.revision > cut:
                continue
            tip = self._tips.get(carried.revision)
            if tip is None and carried.revision > oldest:
                yield f"the audit has lost revision {carried.revision}, which flags are at"
            elif tip is not None and tip.time != carried.time:
                yield f"flags and audit have different times for revision {carried.revision}"


def iter_carried_problems(
    carried_flags: Mapping[tuple[str, str], CarriedFlag],
    cut: int,
    ledger_times: Mapping[int, datetime],
) -> Iterator[str]:
    """Yield the policies that lack what only the ledger had, or have another time than it.

    Args:
        carried_flags: What policies have.
        cut: The revision at which the ledger was cut; 0 if it was not.
        ledger_times: The revisions that the ledger has, with their times.
    """
    for (region, key), carried in carried_flags.items():
        is_gone = carried.revision <= cut and carried.revision not in ledger_times
        if (
            carried.time is not None
            and ledger_times.get(carried.revision, carried.time) != carried.time
        ):
            yield f"{key} ({region}) has another time than revision {carried.revision}"
        elif is_gone and (carried.time is None or carried.lacks_last):
            yield f"{key} ({region}) has lost what the ledger had of its last change"


def _is_intact(document: Mapping[str, Any]) -> bool:
    if document["digest"] == ERASED:
        return _is_erased(document)
    try:
        return hash_request(document) == str(document["digest"])
    except FlagkitError:
        return False


def _is_erased(document: Mapping[str, Any]) -> bool:
    """Tell whether a request names somebody who was erased, as one without a digest does."""
    texts = [document["actor"], *_iter_texts(document["operations"])]
    return any(_ERASED_NAME.fullmatch(text) for text in texts)


def _iter_texts(part: Any) -> Iterator[str]:
    if isinstance(part, str):
        yield part
    elif isinstance(part, Mapping | list):
        for item in part.values() if isinstance(part, Mapping) else part:  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
            yield from _iter_texts(item)


def _parse_proposal(request: str) -> str:
    """Return the proposal that a request applied; an empty text if it applied none."""
    return request[len(_APPLICATION) :] if request.startswith(_APPLICATION) else ""


_AT_ONCE: Final = 200
_OUTCOMES: Final = {
    format_application_request(""): "applied",
    format_closing_request("", "reject"): "rejected",
    format_closing_request("", "withdraw"): "withdrew",
}
"""The outcomes of proposals, by the beginning of the request's name."""


def iter_reliance_problems(store: Store, revisions: Iterable[tuple[int, str]]) -> Iterator[str]:
    """Yield what is wrong with the proposals that revisions, by their requests, decided on.

    Of a request that the audit has lost, others tell.
    """
    decided: dict[str, str] = {}
    left = ((revision, request, *_parse_decision(request)) for revision, request in revisions)
    decisions = (item for item in left if item[2])
    for some in split_batches(decisions, _AT_ONCE):
        requests = store.read_requests(request for _, request, _, _ in some)
        verdicts = store.proposals.read_many(proposal for _, _, _, proposal in some)
        for revision, request, did, proposal in some:
            place = f"revision {revision} {did} the proposal {proposal}"
            if proposal in decided:
                yield f"{place}, which had been {decided[proposal]} before"
            decided[proposal] = {"withdrew": "withdrawn"}.get(did, did)
            try:
                found = decode_proposal(proposal, verdicts[proposal])
            except ProposalNotFoundError:
                yield f"{place}, which was removed"
            except StoreError as error:
                yield f"{place}, and {error}"
            else:
                asked = requests.get(request)
                problems = () if asked is None else _iter_decision_problems(did, found, asked)
                yield from (f"{place}, {problem}" for problem in problems)


def iter_proposal_problems(store: Store) -> Iterator[str]:
    """Yield what is wrong with the proposals themselves, and with what was said of them."""
    for proposal, documents in groupby(store.proposals.iter_all(), _get_proposal_name):
        if proposal is None:
            for document in documents:
                yield f"the proposals have {document['_id']!r:.200} for a name"
            continue
        there = [*documents]
        try:
            found = decode_proposal(proposal, there)
        except ProposalNotFoundError:
            yield f"the proposal {proposal} was removed, and what was said of it is there"
        except StoreError as error:
            yield str(error)
        else:
            yield from _iter_forged_verdicts(found, there)


def _parse_decision(request: str) -> tuple[str, str]:
    """Return what a request did to which proposal; empty texts where it is about none."""
    for beginning, did in _OUTCOMES.items():
        if request.startswith(beginning):
            return did, request.removeprefix(beginning)
    return "", ""


def _iter_decision_problems(
    outcome: str, proposal: StoredProposal, request: Mapping[str, Any]
) -> Iterator[str]:
    """Yield how a proposal differs from what the audit has of its decision."""
    try:
        if outcome == "applied":
            yield from _iter_application_problems(proposal, request)
        else:
            yield from _iter_closing_problems(outcome, proposal, request)
    except (KeyError, TypeError, IndexError, AttributeError):
        yield "and the audit of that has not the form that it should have"


def _iter_application_problems(
    proposal: StoredProposal, request: Mapping[str, Any]
) -> Iterator[str]:
    if request["operations"] != proposal.documents:
        yield "and did something else than it says"
    if request["actor"] != proposal.actor:
        yield f"and not as {proposal.actor!r}, who proposed it"
    if request["proposal"] != proposal.id:
        yield "and the audit names another one"
    approvals = {verdict.actor for verdict in proposal.verdicts if verdict.verdict == "approve"}
    approvals -= {proposal.actor}
    if "approved" not in request:
        # It was applied by an earlier version, which did not record whose approvals counted.
        if not approvals:
            yield "and nobody has approved of it"
        return
    if not _is_same_digest(request["approved"]["digest"], proposal.digest):
        yield "which was another one then"
    for who in request["approved"]["by"]:
        if who not in approvals:
            yield f"on the approval of {who!r}, which is not there any more"


def _iter_closing_problems(
    outcome: str, proposal: StoredProposal, request: Mapping[str, Any]
) -> Iterator[str]:
    decision_name = "reject" if outcome == "rejected" else "withdraw"
    if not _is_same_digest(request["operations"][0]["digest"], proposal.digest):
        yield "which was another one then"
    if all(
        (verdict.actor, verdict.verdict) != (request["actor"], decision_name)
        for verdict in proposal.verdicts
    ):
        yield f"which {request['actor']!r} said, and that is not there any more"


def _iter_forged_verdicts(
    proposal: StoredProposal, documents: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """Yield what nobody can have said of a proposal."""
    if proposal.digest != ERASED:
        for document in documents:
            if get_verdict(document) != PROPOSE and document.get("digest") != proposal.digest:
                who, verdict = get_identity(document).get("actor"), get_verdict(document)
                yield (
                    f"what {who!r:.200} said of the proposal {proposal.id} ({verdict!r:.20}) is of"
                    " another one: one of them was changed past the writer"
                )
    for found in proposal.verdicts:
        is_own = found.actor == proposal.actor
        if is_own if found.verdict == "approve" else found.verdict == "withdraw" and not is_own:
            yield (
                f"{found.actor!r} cannot have said {found.verdict} of the proposal {proposal.id},"
                f" which {proposal.actor!r} made"
            )


def _is_same_digest(then: str, now: str) -> bool:
    """Tell whether two digests are of the same, as far as that can be told after erasing."""
    return then == now or ERASED in (then, now)


def _get_proposal_name(document: Mapping[str, Any]) -> str | None:
    name = get_identity(document).get("proposal")
    return name if isinstance(name, str) else None


class VerificationResult(Struct, frozen=True):
    """The result of a verification: its problems, and the revision after which it began."""

    problems: tuple[str, ...]
    after: int


def run_verification(store: Store, anchors: Iterable[tuple[int, str]] = ()) -> VerificationResult:
    """Verify as `Environment.verify` does, and also return the first revision."""
    anchors_by_revision = _check_anchors(anchors)
    problems: list[str] = []
    after = 0
    try:
        with store.open_reader() as reading, translate_form_errors():
            after = reading.history.cut.tip.revision if reading.history.cut is not None else 0
            walk = LedgerVerifier(reading, problems=problems)
            walk.run(anchors_by_revision)
            carried = reading.read_carried()
            problems += iter_carried_problems(carried, after, walk.ledger_times)
            problems += iter_members_problems(reading)
            problems += iter_pending_problems(reading)
            problems += iter_denials_problems(reading)
            gone = [each for each in carried.values() if each.revision not in walk.ledger_times]
            audit = AuditInspection(walk.requests, reading.history.cut, gone)
        with translate_form_errors():
            problems += audit.iter_problems(store)
            problems += iter_reliance_problems(store, walk.requests)
            problems += iter_proposal_problems(store)
    except (StoreUnavailableError, ClosedError, EnvironmentNotFoundError):
        raise
    except FlagkitError as error:
        problems.append(str(error))
    return VerificationResult(tuple(dict.fromkeys(problems)), after)


def _check_anchors(given: object) -> list[tuple[int, str]]:
    remedy = 'pass a list of revisions and their hashes, such as [(17, "4f0c...")]'
    anchors: list[tuple[int, str]] = []
    for anchor in check_list(given, "anchors", remedy):
        pair = check_list(anchor, "an element of anchors", remedy)
        if len(pair) != 2:  # noqa: PLR2004 - a revision and a hash
            raise InvalidArgumentError(f"an element of anchors has {len(pair)} elements: {remedy}")
        number = revision_of(pair[0], "the revision of an anchor")
        anchors.append((number, check_instance(pair[1], str, "the hash of an anchor", remedy)))
    return anchors


class LedgerVerifier:
    """The way through the ledger from where it begins to the head.

    Args:
        reading: Of the environment.
        through: A revision at which to note what there was, for the ledger to be cut there.
        problems: The list that problems are put in, so that those are there that come before an
            error.
    """

    def __init__(
        self,
        reading: EnvironmentReader,
        through: int | None = None,
        problems: list[str] | None = None,
    ) -> None:
        self.problems: list[str] = [] if problems is None else problems
        self.cut: Cut | None = None
        """The cut that pruning at `through` would record."""
        self.carried_states: list[CarriedState] = []
        """The states that the cut carries along."""
        self.requests: list[tuple[int, str]] = []
        """The revisions on the way, and what requests led to them."""
        self._reading = reading
        self._through = through
        self._tip: Tip | None = None
        self._expected: dict[PolicyId, tuple[int, PolicyState | None]] = {}
        self._deleted_versions: dict[PolicyId, int] = {}
        self._last_states: dict[PolicyId, PolicyState | None] = {}
        self.ledger_times: dict[int, datetime] = {}
        """The revisions that the ledger has, and when they were made; also those up to a cut."""
        self._times: dict[int, datetime] = {}
        self._faults: list[str] = []
        self._reported_fault_count = 0
        self._projected = reading.read_projected(faults=self.problems)
        newest = reading.history.tip_not_in_ledger
        self._tip_not_in_ledger = () if newest is None else (newest,)

    def run(self, anchors: Iterable[tuple[int, str]] = ()) -> None:
        """Go all the way, and note what is wrong."""
        reading, anchors_by_revision = self._reading, {*anchors}
        self.problems += [
            f"the ledger has {place!r} for a revision"
            for place in reading.history.find_unexpected_ledger_documents()
        ]
        self.problems += reading.history.iter_head_faults()
        checkpoints = CheckpointInspection(reading)
        cut = reading.history.cut
        if cut is not None:
            self._start_after_cut(cut)
            anchors_by_revision.discard((cut.tip.revision, cut.tip.hash))
        ledgered = reading.history.iter_changes(faults=self._faults)
        for change in chain(ledgered, self._tip_not_in_ledger):
            self._check_change(change, cut)
            anchors_by_revision.discard((change.revision, change.tip.hash))
            if not self._faults and (cut is None or change.revision > cut.tip.revision):
                # Clients start from checkpoints, and grants are none of theirs.
                checkpoints.check_tip(change.tip, self._iter_states())
        self._report_faults()
        checkpoints.finish(reading.tip)
        self.problems += checkpoints.problems
        states = (state for _, state in self._expected.values() if state)
        self.problems += _find_members_problems(reading, states)
        self.problems += [
            problem
            for problem in reading.history.iter_page_faults()
            if not any(problem in fault for fault in self._faults)
        ]
        self._check_anchors(anchors_by_revision, cut)
        self._check_end()

    def _iter_states(self) -> Iterator[PolicyState]:
        """Yield the flags and segments that there are by now."""
        return (state for _, state in self._expected.values() if state and state.region != ACCESS)

    def _report_faults(self) -> bool:
        """Tell of documents of the ledger that could not be read; return whether there were any."""
        news = self._faults[self._reported_fault_count :]
        self.problems += news
        self._reported_fault_count = len(self._faults)
        return bool(news)

    def _start_after_cut(self, cut: Cut) -> None:
        """Put together what there was at a cut, and hold it to what the cut says."""
        first: dict[PolicyId, PolicyChange] = {}
        for change in chain(
            self._reading.history.iter_changes(cut.tip.revision, []), self._tip_not_in_ledger
        ):
            for policy in change.policies:
                first.setdefault(policy.id, policy)
        tombstones = self._reading.read_tombstones(self.problems)
        for identity, (revision, state) in self._projected.items():
            if identity not in first and revision <= cut.tip.revision:
                self._expected[identity] = (revision, state)
                if state is None and identity in tombstones:
                    self._deleted_versions[identity], self._last_states[identity] = tombstones[
                        identity
                    ]
        for identity, policy in first.items():
            # What is created with a higher version than 1 had a tombstone.
            version = policy.after.version - 1 if policy.after else 0
            if policy.before is not None or version > 0:
                self._expected[identity] = (cut.tip.revision, policy.before)
                if policy.before is None:
                    self._deleted_versions[identity] = version
        there = compute_digests(state for _, state in self._expected.values() if state is not None)
        regions = {region for region, _ in cut.tip.digests.items() ^ there.items()}
        if regions or hash_contents(self._list_contents()) != cut.contents:
            where = f" ({', '.join(sorted(regions))})" if regions else ""
            self.problems.append(
                f"what was changed last up to revision {cut.tip.revision}, where the ledger was"
                f" cut, is not as it was then{where}: it was changed past the writer"
            )

    def _list_contents(self) -> list[tuple[PolicyId, int, bytes | None]]:
        return [
            (identity, self._deleted_versions.get(identity, 0), None)
            if state is None
            else (identity, state.version, state.packed)
            for identity, (_, state) in self._expected.items()
        ]

    def _check_change(self, change: Change, cut: Cut | None) -> None:
        if self._report_faults():
            # Nobody knows what it went on from.
            undone = [PolicyChange(policy.after, policy.before) for policy in change.policies]
            self._tip = replace(
                change.tip,
                revision=change.revision - 1,
                hash=change.previous_hash,
                digests=advance_digests(change.tip.digests, undone),
            )
        self.ledger_times[change.revision] = change.tip.time
        if cut is not None and change.revision <= cut.tip.revision:
            # Its removal is not done yet. Only whether it led to the cut is of interest.
            if self._tip is not None:
                self.problems += _find_chain_problems(self._tip, change)
            elif not change.is_intact:
                self.problems.append(f"revision {change.revision} was altered")
            self._tip = change.tip
            return
        if cut is not None and (self._tip is None or self._tip.revision <= cut.tip.revision):
            self.problems += _find_cut_problems(self._tip, cut.tip)
            self._tip = cut.tip
        self.problems += _find_chain_problems(self._tip, change)
        self._tip = change.tip
        self.requests.append((change.revision, change.request))
        self._times[change.revision] = change.tip.time
        for policy in change.policies:
            held = self._expected.get(policy.id, (0, None))[1]
            # What a document did that cannot be read nobody knows.
            if held != policy.before and not self._faults:
                self.problems.append(
                    f"revision {change.revision} did not find {policy.id[1]} as it was left"
                )
            self._expected[policy.id] = (change.revision, policy.after)
            if policy.after is None and policy.before is not None:
                self._deleted_versions[policy.id] = policy.before.version
                self._last_states[policy.id] = policy.before
        if change.revision == self._through:
            self._record_cut(change.tip)

    def _record_cut(self, tip: Tip) -> None:
        """Note what there is at a tip."""
        self.cut = Cut(tip, hash_contents(self._list_contents()))
        self.carried_states = [
            CarriedState(
                identity,
                revision,
                self._times[revision],
                self._last_states[identity] if state is None else None,
            )
            for identity, (revision, state) in self._expected.items()
            # Others were carried when they were cut.
            if revision in self._times
        ]

    def _check_anchors(self, anchors: Iterable[tuple[int, str]], cut: Cut | None) -> None:
        for revision, anchor in sorted(anchors):
            if cut is not None and revision < cut.tip.revision:
                problem = (
                    f"revision {revision} was pruned, up to revision {cut.tip.revision}: its hash,"
                    f" {anchor}, cannot be held to anything any more; keep a newer anchor"
                )
            else:
                problem = (
                    f"revision {revision} is not the one whose hash was kept, {anchor}: the ledger"
                    " was rewritten"
                )
            self.problems.append(problem)

    def _read_unprojected(self) -> Sequence[Change]:
        """Return the changes that flags may lack; none where that cannot be told."""
        try:
            return self._reading.history.unprojected_changes
        except StoreUnavailableError:
            raise
        except StoreError as error:
            self.problems.append(str(error))
            return ()

    def _check_end(self) -> None:
        """Hold the head, and what is projected, to what the ledger came to."""
        tip, head = self._tip, self._reading.tip
        # What was done last may not be there yet: its writer, or the next one, brings it.
        stages: dict[PolicyId, list[PolicyState | None]] = {}
        for change in self._read_unprojected():
            for policy in change.policies:
                stages.setdefault(policy.id, [policy.before]).append(policy.after)
        for identity, states in stages.items():
            _, found = self._projected.get(identity, (0, None))
            if found in states:
                self._expected.pop(identity, None)
                self._projected.pop(identity, None)
        if tip is None and head.revision > 0:
            self.problems.append(
                f"the ledger is empty, and the head stands at revision {head.revision}"
            )
        if tip is not None and tip != head:
            self.problems.append(
                f"the ledger ends in revision {tip.revision}, the head in {head.revision}"
            )
        if self._faults:
            return
        for region, key in sorted(self._expected.keys() | self._projected.keys()):
            if self._expected.get((region, key)) != self._projected.get((region, key)):
                self.problems.append(f"{key} ({region}) is not as the ledger has it")


def _find_members_problems(reading: EnvironmentReader, states: Iterable[PolicyState]) -> list[str]:
    problems: list[str] = []
    for state in states:
        try:
            with translate_form_errors(
                SEGMENTS, {"_id": {"key": state.key, "region": state.region}}
            ):
                if not state.parts:
                    continue
            check_members(decode_segment(state.policy, stored=True).segment, reading.read_parts)
        except FlagkitError as error:
            problems.append(f"members of {state.key}: {error}")
    return problems


def _find_cut_problems(tip: Tip | None, cut: Tip) -> list[str]:
    """Hold what the ledger still has up to a cut to it, if it has anything."""
    if tip is None or tip == cut:
        return []
    if tip.revision < cut.revision:
        return [_describe_missing(tip.revision + 1, cut.revision)]
    return [f"revision {cut.revision} is not the one where the ledger was cut"]


def _describe_missing(first: int, last: int) -> str:
    span = f"revision {first} is" if first == last else f"revisions {first} to {last} are"
    return f"{span} missing"


def _find_chain_problems(tip: Tip | None, change: Change) -> list[str]:
    if tip is None:
        # What revision 0 was is known only from here on: its hash has the time of its making.
        tip = Tip(
            change.tip.environment, change.tip.epoch, 0, change.previous_hash, change.tip.time, {}
        )
    if change.continues(tip):
        return []
    if not change.is_intact:
        return [f"revision {change.revision} was altered"]
    if change.revision > tip.revision + 1:
        return [_describe_missing(tip.revision + 1, change.revision - 1)]
    return [f"revision {change.revision} does not continue revision {tip.revision}"]
