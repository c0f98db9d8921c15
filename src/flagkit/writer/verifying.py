"""Verifying: the ledger is proved against the head, and what stands beside it against the ledger.

Where the ledger was cut, the proof goes on from the cut: its first change must continue the tip
there, and what was not changed since must be what there was at it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain

from msgspec import Struct
from msgspec.structs import replace

from flagkit.arguments import instance, listed
from flagkit.arguments import revision as revision_of
from flagkit.changes import (
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
from flagkit.errors import (
    ClosedError,
    EnvironmentNotFoundError,
    FlagkitError,
    InvalidArgumentError,
    StoreError,
    StoreUnavailableError,
)
from flagkit.model.segments import check_members, decode_segment
from flagkit.storage.malformed import judging
from flagkit.storage.pruning import Carried
from flagkit.storage.reading import Reading
from flagkit.storage.store import Store, checked_store
from flagkit.writer.inspecting import (
    AuditInspection,
    CheckpointInspection,
    carried_problems,
    denials_problems,
    members_problems,
    pending_problems,
)
from flagkit.writer.reliance import check_proposals, check_reliance

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
