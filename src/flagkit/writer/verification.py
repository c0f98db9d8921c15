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
from itertools import chain, groupby, islice
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from flagkit._core.arguments import instance, listed
from flagkit._core.arguments import revision as revision_of
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
    advance,
    contents_hash,
    digest,
)
from flagkit._core.model.segments import check_members, decode_segment
from flagkit._core.snapshot import Arena
from flagkit._core.snapshot.layout import FORMAT
from flagkit._core.storage.checkpoints import Checkpoint, checkpoint_of
from flagkit._core.storage.documents import sequenced
from flagkit._core.storage.layout import AUDIT, CHECKPOINTS, DENIALS, ERASED, MEMBERS, PENDING
from flagkit._core.storage.pruning import Carried
from flagkit._core.storage.reader import CarriedFlag, Reading
from flagkit._core.storage.requests import PROPOSE, beginnings_of_names
from flagkit._core.storage.store import Store, checked_store
from flagkit._core.storage.validation import fault_in, judging, told
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
from flagkit.writer.approvals import Proposed, identity_of, read, verdict_of
from flagkit.writer.checkpoints import problem_with
from flagkit.writer.commit import application_of, closing_of
from flagkit.writer.operations import operations_of, policies_of, request_digest

_ERASED_NAME: Final = re.compile(rf"{ERASED}:[0-9a-f]{{16}}")
_NOT_ALLOWED: Final = "(code 13)"
_APPLICATION: Final = application_of("")


class CheckpointInspection:
    """The checkpoints of an environment, which are read and held to the ledger as it is walked."""

    def __init__(self, reading: Reading) -> None:
        self.problems: list[str] = []
        self._reading = reading
        self._unmet: dict[int, list[Checkpoint]] = {}
        for document in reading.documents(CHECKPOINTS):
            fault = fault_in(CHECKPOINTS, document)
            if fault is not None:
                self.problems.append(told(CHECKPOINTS, document, fault))
                continue
            try:
                checkpoint = checkpoint_of(document)
            except StoreError as error:
                self._note(document["_id"]["checkpoint"], f"cannot be used: {error}")
            else:
                self._unmet.setdefault(checkpoint.tip.revision, []).append(checkpoint)

    def meet(self, tip: Tip, states: Iterable[PolicyState]) -> None:
        """Hold the checkpoints of a tip's revision to what the ledger has at it."""
        there = [*states] if tip.revision in self._unmet else []
        for checkpoint in self._unmet.pop(tip.revision, ()):
            base = self._base(checkpoint)
            # Another epoch is another history, which clients do not follow.
            if base is not None and checkpoint.tip.epoch == tip.epoch:
                self._note(checkpoint.id, problem_with(base, tip, there))

    def end(self, head: Tip) -> None:
        """Look at the checkpoints of revisions that the ledger does not tell."""
        for checkpoint in (each for some in self._unmet.values() for each in some):
            if checkpoint.tip.revision > head.revision and checkpoint.tip.epoch == head.epoch:
                self._note(checkpoint.id, f"is of a revision after {head.revision}")
            self._base(checkpoint)

    def _base(self, checkpoint: Checkpoint) -> Arena | None:
        """Return the base of a checkpoint; None if it is of another version of flagkit."""
        try:
            base = self._reading.read_checkpoint(_as_ours(checkpoint))
        except StoreUnavailableError:
            raise
        except (StoreError, SnapshotFormatError) as error:
            if checkpoint.is_readable:
                self._note(checkpoint.id, f"cannot be used: {error}")
            return None
        if not checkpoint.is_readable:
            self._note(checkpoint.id, "has a manifest of other formats than its slices")
        return base

    def _note(self, name: str, problem: str | None) -> None:
        if problem is not None:
            self.problems.append(f"checkpoint {name} {problem}")


def _as_ours(checkpoint: Checkpoint) -> Checkpoint:
    ours = {"frame": FORMAT, "packing": packing.FORMAT}
    return replace(checkpoint, **ours)


def members_problems(reading: Reading) -> Iterator[str]:
    """Yield the parts of members that are not what their names say."""
    for document in reading.documents(MEMBERS):
        fault = fault_in(MEMBERS, document)
        if fault is not None:
            yield told(MEMBERS, document, fault)
        elif hashlib.sha256(document["hashes"]).hexdigest() != document["_id"]["part"]:
            yield f"the members {document['_id']['part']} were changed past the writer"


def pending_problems(reading: Reading) -> Iterator[str]:
    """Yield what is wrong with the changes that wait, by what the audit has of them."""
    for document in reading.documents(PENDING):
        fault = fault_in(PENDING, document)
        if fault is not None:
            yield told(PENDING, document, fault)
            continue
        request = document["_id"]["request"]
        asked = reading.recorded(request)
        if asked is None:
            yield f"the pending change {request!r}: the audit has lost who asked for it, and why"
        elif not _touches(document["touched"], asked):
            yield f"the pending change {request!r} touches other flags than were asked for"


def _touches(touched: list[Mapping[str, str]] | None, asked: Mapping[str, Any]) -> bool:
    try:
        wanted = policies_of(operations_of(asked.get("operations")))
    except FlagkitError:
        # What is in the audit cannot be read back, which is told of the audit.
        return True
    found = None if touched is None else [(item["region"], item["key"]) for item in touched]
    return found == wanted


def denials_problems(reading: Reading) -> Iterator[str]:
    """Yield what is wrong with the log of denials, where this user may read it."""
    try:
        for document in reading.documents(DENIALS):
            fault = fault_in(DENIALS, document)
            if fault is not None:
                yield told(DENIALS, document, fault)
            elif not document["_id"]["denial"].startswith(beginnings_of_names(document["time"])):
                yield told(DENIALS, document, "time: is not that of its name")
    except StoreError as error:
        if _NOT_ALLOWED not in str(error):
            raise


class AuditInspection:
    """Holds the audit to the ledger.

    Args:
        environment: Whose.
        asked: The requests that led to revisions that the ledger has, and these.
        cut: Where the ledger was cut, if it was.
        carried: What policies have of changes that the ledger has no more.
    """

    def __init__(
        self,
        asked: Iterable[tuple[int, str]],
        cut: Cut | None,
        carried: Iterable[CarriedFlag],
    ) -> None:
        self._revisions = {request: revision for revision, request in asked}
        self._cut = cut
        self._carried = [*carried]
        self._tips: dict[int, Tip] = {}

    def problems(self, store: Store) -> Iterator[str]:
        """Yield what is wrong with the audit."""
        lost = dict(self._revisions)
        for document in store.recorded():
            fault = fault_in(AUDIT, document)
            request = document["_id"].get("request")
            revision = lost.pop(request, None) if isinstance(request, str) else None
            if fault is not None:
                at = "" if revision is None else f"revision {revision}: "
                yield at + told(AUDIT, document, fault)
                continue
            name = f"the request {request!r}" if revision is None else f"revision {revision}"
            if not _is_whole(document):
                yield f"{name}: what was asked for was altered in the audit"
            if document.get("proposal", "") != _proposal_of(request):
                yield f"{name}: the audit names another proposal than was applied"
            yield from self._tip_problems(name, document, is_kept=revision is not None)
        for revision in sorted(lost.values()):
            yield f"revision {revision}: the audit has lost who asked for it, and why"
        yield from self._carried_problems()

    def _tip_problems(
        self, name: str, document: Mapping[str, Any], *, is_kept: bool
    ) -> Iterator[str]:
        """Yield what is wrong with what the audit has of a revision that was cut."""
        with judging(AUDIT, document):
            tip = sequenced(document)
        if tip is None:
            return
        cut = None if self._cut is None else self._cut.tip
        if cut is None or is_kept or tip.revision > cut.revision or tip.epoch != cut.epoch:
            yield f"{name}: the audit says that it is revision {tip.revision}, which it is not"
        elif tip.revision in self._tips:
            yield f"{name}: the audit has another request for revision {tip.revision}, too"
        elif tip.time > cut.time or (tip.revision == cut.revision and tip != cut):
            yield f"{name}: the audit does not have revision {tip.revision} as it was"
        self._tips[tip.revision] = tip

    def _carried_problems(self) -> Iterator[str]:
        """Yield what policies and audit say differently of revisions that were cut."""
        cut = 0 if self._cut is None else self._cut.tip.revision
        oldest = min(self._tips, default=cut + 1)
        for carried in self._carried:
            if carried.time is None or carried.revision > cut:
                continue
            tip = self._tips.get(carried.revision)
            if tip is None and carried.revision > oldest:
                yield f"the audit has lost revision {carried.revision}, which flags are at"
            elif tip is not None and tip.time != carried.time:
                yield f"flags and audit have different times for revision {carried.revision}"


def carried_problems(
    found: Mapping[tuple[str, str], CarriedFlag], cut: int, kept: Mapping[int, datetime]
) -> Iterator[str]:
    """Yield the policies that lack what only the ledger had, or have another time than it.

    Args:
        found: What policies have.
        cut: The revision at which the ledger was cut; 0 if it was not.
        kept: The revisions that the ledger has, with their times.
    """
    for (region, key), carried in found.items():
        is_gone = carried.revision <= cut and carried.revision not in kept
        if carried.time is not None and kept.get(carried.revision, carried.time) != carried.time:
            yield f"{key} ({region}) has another time than revision {carried.revision}"
        elif is_gone and (carried.time is None or carried.lacks_last):
            yield f"{key} ({region}) has lost what the ledger had of its last change"


def _is_whole(document: Mapping[str, Any]) -> bool:
    if document["digest"] == ERASED:
        return _is_erased(document)
    try:
        return request_digest(document) == str(document["digest"])
    except FlagkitError:
        return False


def _is_erased(document: Mapping[str, Any]) -> bool:
    """Tell whether a request names somebody who was erased, as one without a digest does."""
    texts = [document["actor"], *_texts_in(document["operations"])]
    return any(_ERASED_NAME.fullmatch(text) for text in texts)


def _texts_in(part: Any) -> Iterator[str]:
    if isinstance(part, str):
        yield part
    elif isinstance(part, Mapping | list):
        for item in part.values() if isinstance(part, Mapping) else part:  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
            yield from _texts_in(item)


def _proposal_of(request: str) -> str:
    """Return the proposal that a request applied; an empty text if it applied none."""
    return request[len(_APPLICATION) :] if request.startswith(_APPLICATION) else ""


_AT_ONCE: Final = 200
_DID: Final = {
    application_of(""): "applied",
    closing_of("", "reject"): "rejected",
    closing_of("", "withdraw"): "withdrew",
}
"""What revisions did to proposals, by how their requests begin."""


def check_reliance(store: Store, revisions: Iterable[tuple[int, str]]) -> Iterator[str]:
    """Yield what is wrong with the proposals that revisions, by their requests, decided on.

    Of a request that the audit has lost, others tell.
    """
    decided: dict[str, str] = {}
    left = ((revision, request, *_decision(request)) for revision, request in revisions)
    decisions = (item for item in left if item[2])
    while some := list(islice(decisions, _AT_ONCE)):
        requests = store.requests(request for _, request, _, _ in some)
        said = store.proposals.said(proposal for _, _, _, proposal in some)
        for revision, request, did, proposal in some:
            told = f"revision {revision} {did} the proposal {proposal}"
            if proposal in decided:
                yield f"{told}, which had been {decided[proposal]} before"
            decided[proposal] = {"withdrew": "withdrawn"}.get(did, did)
            try:
                found = read(proposal, said[proposal])
            except ProposalNotFoundError:
                yield f"{told}, which was removed"
            except StoreError as error:
                yield f"{told}, and {error}"
            else:
                asked = requests.get(request)
                problems = () if asked is None else _compared(did, found, asked)
                yield from (f"{told}, {problem}" for problem in problems)


def check_proposals(store: Store) -> Iterator[str]:
    """Yield what is wrong with the proposals themselves, and with what was said of them."""
    for proposal, documents in groupby(store.proposals.all(), _name_of):
        if proposal is None:
            for document in documents:
                yield f"the proposals have {document['_id']!r:.200} for a name"
            continue
        there = [*documents]
        try:
            found = read(proposal, there)
        except ProposalNotFoundError:
            yield f"the proposal {proposal} was removed, and what was said of it is there"
        except StoreError as error:
            yield str(error)
        else:
            yield from _forged(found, there)


def _decision(request: str) -> tuple[str, str]:
    """Return what a request did to which proposal; empty texts where it is about none."""
    for beginning, did in _DID.items():
        if request.startswith(beginning):
            return did, request.removeprefix(beginning)
    return "", ""


def _compared(did: str, found: Proposed, asked: Mapping[str, Any]) -> Iterator[str]:
    """Yield how a proposal differs from what the audit has of its decision."""
    try:
        if did == "applied":
            yield from _applied(found, asked)
        else:
            yield from _closed(did, found, asked)
    except (KeyError, TypeError, IndexError, AttributeError):
        yield "and the audit of that has not the form that it should have"


def _applied(found: Proposed, asked: Mapping[str, Any]) -> Iterator[str]:
    if asked["operations"] != found.documents:
        yield "and did something else than it says"
    if asked["actor"] != found.actor:
        yield f"and not as {found.actor!r}, who proposed it"
    if asked["proposal"] != found.id:
        yield "and the audit names another one"
    approvals = {said.actor for said in found.verdicts if said.verdict == "approve"}
    approvals -= {found.actor}
    if "approved" not in asked:
        # It was applied by an earlier version, which did not record whose approvals counted.
        if not approvals:
            yield "and nobody has approved of it"
        return
    if not _is_same(asked["approved"]["digest"], found.digest):
        yield "which was another one then"
    for who in asked["approved"]["by"]:
        if who not in approvals:
            yield f"on the approval of {who!r}, which is not there any more"


def _closed(did: str, found: Proposed, asked: Mapping[str, Any]) -> Iterator[str]:
    says = "reject" if did == "rejected" else "withdraw"
    if not _is_same(asked["operations"][0]["digest"], found.digest):
        yield "which was another one then"
    if all((said.actor, said.verdict) != (asked["actor"], says) for said in found.verdicts):
        yield f"which {asked['actor']!r} said, and that is not there any more"


def _forged(found: Proposed, documents: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield what nobody can have said of a proposal."""
    if found.digest != ERASED:
        for document in documents:
            if verdict_of(document) != PROPOSE and document.get("digest") != found.digest:
                who, verdict = identity_of(document).get("actor"), verdict_of(document)
                yield (
                    f"what {who!r:.200} said of the proposal {found.id} ({verdict!r:.20}) is of"
                    " another one: one of them was changed past the writer"
                )
    for said in found.verdicts:
        is_own = said.actor == found.actor
        if is_own if said.verdict == "approve" else said.verdict == "withdraw" and not is_own:
            yield (
                f"{said.actor!r} cannot have said {said.verdict} of the proposal {found.id}, which"
                f" {found.actor!r} made"
            )


def _is_same(then: str, now: str) -> bool:
    """Tell whether two digests are of the same, as far as that can be told after erasing."""
    return then == now or ERASED in (then, now)


def _name_of(document: Mapping[str, Any]) -> str | None:
    name = identity_of(document).get("proposal")
    return name if isinstance(name, str) else None


_States = Mapping[PolicyId, tuple[int, PolicyState | None]]


class Proof(Struct, frozen=True):
    """What a verification found: what is wrong, and after which revision it began."""

    problems: tuple[str, ...]
    after: int


def verify(store: Store, anchors: Iterable[tuple[int, str]] = ()) -> list[str]:
    """Return what is wrong with an environment's ledger and what stands beside it, if anything.

    The chain proves that the ledger was not altered, shortened or reordered on its way to the head.
    Whoever can rewrite all of it, head included, is found only against a hash kept elsewhere:
    `anchors` are such revisions and hashes.

    Raises:
        InvalidArgumentError: an anchor is no pair of a revision and its hash.
        EnvironmentNotFoundError: the environment was never created.
        StoreUnavailableError: the database cannot be reached.
    """
    return [*proof_of(store, anchors).problems]


def proof_of(store: Store, anchors: Iterable[tuple[int, str]] = ()) -> Proof:
    """Verify as `verify` does, and tell also from where on."""
    checked_store(store)
    kept = _anchors(anchors)
    problems: list[str] = []
    after = 0
    try:
        with store.reading() as reading, judging():
            after = reading.cut.tip.revision if reading.cut is not None else 0
            walk = Walk(reading, problems=problems)
            walk.run(kept)
            carried = reading.carried()
            problems += carried_problems(carried, after, walk.kept)
            problems += members_problems(reading)
            problems += pending_problems(reading)
            problems += denials_problems(reading)
            gone = [each for each in carried.values() if each.revision not in walk.kept]
            audit = AuditInspection(walk.asked, reading.cut, gone)
        with judging():
            problems += audit.problems(store)
            problems += check_reliance(store, walk.asked)
            problems += check_proposals(store)
    except (StoreUnavailableError, ClosedError, EnvironmentNotFoundError):
        raise
    except FlagkitError as error:
        problems.append(str(error))
    return Proof(tuple(dict.fromkeys(problems)), after)


def _anchors(given: object) -> list[tuple[int, str]]:
    remedy = 'pass a list of revisions and their hashes, such as [(17, "4f0c...")]'
    anchors: list[tuple[int, str]] = []
    for anchor in listed(given, "anchors", remedy):
        pair = listed(anchor, "an element of anchors", remedy)
        if len(pair) != 2:  # noqa: PLR2004 - a revision and a hash
            raise InvalidArgumentError(f"an element of anchors has {len(pair)} elements: {remedy}")
        number = revision_of(pair[0], "the revision of an anchor")
        anchors.append((number, instance(pair[1], str, "the hash of an anchor", remedy)))
    return anchors


class Walk:
    """The way through the ledger from where it begins to the head.

    Args:
        reading: Of the environment.
        through: A revision at which to note what there was, for the ledger to be cut there.
        problems: The list that problems are put in, so that those are there that come before an
            error.
    """

    def __init__(
        self,
        reading: Reading,
        through: int | None = None,
        problems: list[str] | None = None,
    ) -> None:
        self.problems: list[str] = [] if problems is None else problems
        self.cut: Cut | None = None
        """What a cut at `through` would say."""
        self.carried: list[Carried] = []
        """What it takes along."""
        self.asked: list[tuple[int, str]] = []
        """The revisions on the way, and what requests led to them."""
        self._reading = reading
        self._through = through
        self._tip: Tip | None = None
        self._expected: dict[PolicyId, tuple[int, PolicyState | None]] = {}
        self._gone: dict[PolicyId, int] = {}
        self._last: dict[PolicyId, PolicyState | None] = {}
        self.kept: dict[int, datetime] = {}
        """The revisions that the ledger has, and when they were made; also those up to a cut."""
        self._times: dict[int, datetime] = {}
        self._faults: list[str] = []
        self._faults_told = 0
        self._found = reading.projected(faults=self.problems)
        self._unledgered = [reading.unledgered] if reading.unledgered else []

    def run(self, anchors: Iterable[tuple[int, str]] = ()) -> None:
        """Go all the way, and note what is wrong."""
        reading, kept = self._reading, {*anchors}
        self.problems += [f"the ledger has {place!r} for a revision" for place in reading.strays()]
        self.problems += reading.head_faults()
        checkpoints = CheckpointInspection(reading)
        cut = reading.cut
        if cut is not None:
            self._begin_at(cut)
            kept.discard((cut.tip.revision, cut.tip.hash))
        for change in chain(reading.changes(faults=self._faults), self._unledgered):
            self._step(change, cut)
            kept.discard((change.revision, change.tip.hash))
            if not self._faults and (cut is None or change.revision > cut.tip.revision):
                # Clients start from checkpoints, and grants are none of theirs.
                checkpoints.meet(change.tip, self._states())
        self._tell_faults()
        checkpoints.end(reading.tip)
        self.problems += checkpoints.problems
        states = (state for _, state in self._expected.values() if state)
        self.problems += _check_members(reading, states)
        self.problems += [
            problem
            for problem in reading.page_faults()
            if not any(problem in told for told in self._faults)
        ]
        self._check_anchors(kept, cut)
        self._check_end()

    def _states(self) -> Iterator[PolicyState]:
        """Yield the flags and segments that there are by now."""
        return (state for _, state in self._expected.values() if state and state.region != ACCESS)

    def _tell_faults(self) -> bool:
        """Tell of documents of the ledger that could not be read; return whether there were any."""
        news = self._faults[self._faults_told :]
        self.problems += news
        self._faults_told = len(self._faults)
        return bool(news)

    def _begin_at(self, cut: Cut) -> None:
        """Put together what there was at a cut, and hold it to what the cut says."""
        first: dict[PolicyId, PolicyChange] = {}
        for change in chain(self._reading.changes(cut.tip.revision, []), self._unledgered):
            for policy in change.policies:
                first.setdefault(policy.id, policy)
        tombstones = self._reading.tombstones(self.problems)
        for identity, (revision, state) in self._found.items():
            if identity not in first and revision <= cut.tip.revision:
                self._expected[identity] = (revision, state)
                if state is None and identity in tombstones:
                    self._gone[identity], self._last[identity] = tombstones[identity]
        for identity, policy in first.items():
            # What is created with a higher version than 1 had a tombstone.
            version = policy.after.version - 1 if policy.after else 0
            if policy.before is not None or version > 0:
                self._expected[identity] = (cut.tip.revision, policy.before)
                if policy.before is None:
                    self._gone[identity] = version
        there = digest(state for _, state in self._expected.values() if state is not None)
        regions = {region for region, _ in cut.tip.digests.items() ^ there.items()}
        if regions or contents_hash(self._contents()) != cut.contents:
            where = f" ({', '.join(sorted(regions))})" if regions else ""
            self.problems.append(
                f"what was changed last up to revision {cut.tip.revision}, where the ledger was"
                f" cut, is not as it was then{where}: it was changed past the writer"
            )

    def _contents(self) -> list[tuple[PolicyId, int, bytes | None]]:
        return [
            (identity, self._gone.get(identity, 0), None)
            if state is None
            else (identity, state.version, state.packed)
            for identity, (_, state) in self._expected.items()
        ]

    def _step(self, change: Change, cut: Cut | None) -> None:
        if self._tell_faults():
            # Nobody knows what it went on from.
            undone = [PolicyChange(policy.after, policy.before) for policy in change.policies]
            self._tip = replace(
                change.tip,
                revision=change.revision - 1,
                hash=change.previous_hash,
                digests=advance(change.tip.digests, undone),
            )
        self.kept[change.revision] = change.tip.time
        if cut is not None and change.revision <= cut.tip.revision:
            # Its removal is not done yet. Only whether it led to the cut is of interest.
            if self._tip is not None:
                self.problems += _check_step(self._tip, change)
            elif not change.is_sealed:
                self.problems.append(f"revision {change.revision} was altered")
            self._tip = change.tip
            return
        if cut is not None and (self._tip is None or self._tip.revision <= cut.tip.revision):
            self.problems += _check_end_of_rest(self._tip, cut.tip)
            self._tip = cut.tip
        self.problems += _check_step(self._tip, change)
        self._tip = change.tip
        self.asked.append((change.revision, change.request))
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
                self._gone[policy.id] = policy.before.version
                self._last[policy.id] = policy.before
        if change.revision == self._through:
            self._note(change.tip)

    def _note(self, tip: Tip) -> None:
        """Note what there is at a tip."""
        self.cut = Cut(tip, contents_hash(self._contents()))
        self.carried = [
            Carried(
                identity,
                revision,
                self._times[revision],
                self._last[identity] if state is None else None,
            )
            for identity, (revision, state) in self._expected.items()
            # Others were carried when they were cut.
            if revision in self._times
        ]

    def _check_anchors(self, anchors: Iterable[tuple[int, str]], cut: Cut | None) -> None:
        for revision, kept in sorted(anchors):
            if cut is not None and revision < cut.tip.revision:
                problem = (
                    f"revision {revision} was pruned, up to revision {cut.tip.revision}: its hash,"
                    f" {kept}, cannot be held to anything any more; keep a newer anchor"
                )
            else:
                problem = (
                    f"revision {revision} is not the one whose hash was kept, {kept}: the ledger"
                    " was rewritten"
                )
            self.problems.append(problem)

    def _unprojected(self) -> Sequence[Change]:
        """Return the changes that flags may lack; none where that cannot be told."""
        try:
            return self._reading.unprojected
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
        for change in self._unprojected():
            for policy in change.policies:
                stages.setdefault(policy.id, [policy.before]).append(policy.after)
        for identity, states in stages.items():
            _, found = self._found.get(identity, (0, None))
            if found in states:
                self._expected.pop(identity, None)
                self._found.pop(identity, None)
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
        for region, key in sorted(self._expected.keys() | self._found.keys()):
            if self._expected.get((region, key)) != self._found.get((region, key)):
                self.problems.append(f"{key} ({region}) is not as the ledger has it")


def _check_members(reading: Reading, states: Iterable[PolicyState]) -> list[str]:
    problems: list[str] = []
    for state in states:
        try:
            with judging(SEGMENTS, {"_id": {"key": state.key, "region": state.region}}):
                if not state.parts:
                    continue
            check_members(decode_segment(state.policy, stored=True).segment, reading.parts)
        except FlagkitError as error:
            problems.append(f"members of {state.key}: {error}")
    return problems


def _check_end_of_rest(tip: Tip | None, cut: Tip) -> list[str]:
    """Hold what the ledger still has up to a cut to it, if it has anything."""
    if tip is None or tip == cut:
        return []
    if tip.revision < cut.revision:
        return [_missing(tip.revision + 1, cut.revision)]
    return [f"revision {cut.revision} is not the one where the ledger was cut"]


def _missing(first: int, last: int) -> str:
    span = f"revision {first} is" if first == last else f"revisions {first} to {last} are"
    return f"{span} missing"


def _check_step(tip: Tip | None, change: Change) -> list[str]:
    if tip is None:
        # What revision 0 was is known only from here on: its hash has the time of its making.
        tip = Tip(
            change.tip.environment, change.tip.epoch, 0, change.previous_hash, change.tip.time, {}
        )
    if change.continues(tip):
        return []
    if not change.is_sealed:
        return [f"revision {change.revision} was altered"]
    if change.revision > tip.revision + 1:
        return [_missing(tip.revision + 1, change.revision - 1)]
    return [f"revision {change.revision} does not continue revision {tip.revision}"]
