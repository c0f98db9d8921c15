"""Retention: finds what an environment no longer needs after a number of days, and prunes it.

Pruning first proves the plan, then records it as a revision, and only then deletes, in small
batches with pauses. A killed run leaves nothing half-done, and the next run continues. This module
also deletes archived flags and erases the names of actors.
"""

import contextlib
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from itertools import chain, islice
from typing import Final, TypeAlias

import msgspec
from msgspec import Struct

from flagkit._core.arguments import days_before, instance, moment
from flagkit._core.model.access import stored_actor
from flagkit._core.model.changes import CUT, SEGMENTS, PolicyId, PolicyState, parts_of
from flagkit._core.storage.admin import Administration
from flagkit._core.storage.checkpoints import CHECKPOINTS_KEPT
from flagkit._core.storage.layout import AUDIT, DENIALS, MEMBERS, PAGES
from flagkit._core.storage.pruning import Batches, Carried, Found, Pruning
from flagkit._core.storage.reader import Reading
from flagkit._core.storage.store import Store, checked_store
from flagkit._core.storage.validation import FORM_FAULTS
from flagkit.config import connection_from
from flagkit.errors import (
    AccessDeniedError,
    ConfigurationError,
    GuardError,
    RateLimitedError,
    StoreError,
    WriteError,
)
from flagkit.writer.access import check_access, log_denial
from flagkit.writer.checkpoints import checkpoint_in_steps
from flagkit.writer.operations import Prune
from flagkit.writer.stale_flags import standing
from flagkit.writer.verification import Walk
from flagkit.writer.writer import Writer

DAYS_MAX: Final = 100_000


class Retention(Struct, frozen=True, kw_only=True):
    """For how many days what is kept; None keeps all of it.

    - `archived_days`: flags that have been archived so long, and nothing refers to, are deleted.
    - `ledger_days`: the ledger, which is how far back a rollback can go.
    - `audit_days`: who asked for a change that the ledger has no more, why, and under which
      idempotency key; and requests that were abandoned.
    - `denials_days`: who was denied what.
    - `remains_days`: members of segments, and pages, that nothing refers to any more; and what is
      left of checkpoints.
    """

    archived_days: int | None = None
    ledger_days: int | None = None
    audit_days: int | None = None
    denials_days: int | None = None
    remains_days: int | None = None


class Part(Struct, frozen=True):
    """Documents of one kind that can go: how they are found, and how they are removed."""

    what: str
    until: str
    found: Callable[[], Batches]
    remove: Callable[[list[Found]], None]


class Plan:
    """What can go, counted back from a moment.

    Args:
        pruning: The storage's side.
        retention: For how long what is kept.
        reading: Of the environment.
        now: The moment; the server's time by default.

    Raises:
        ConfigurationError: the retention makes no sense.
    """

    def __init__(
        self, pruning: Pruning, retention: Retention, reading: Reading, now: datetime | None
    ) -> None:
        self.now = now or reading.now
        before = {
            name: None if days is None else days_before(self.now, _checked_days(name, days))
            for name, days in msgspec.structs.asdict(retention).items()
        }
        self.archived_before = before["archived_days"]
        self.audit_before = before["audit_days"]
        self.denials_before = before["denials_days"]
        self.remains_before = before["remains_days"]
        self.cut = reading.cut
        """Where the ledger is cut, or will be."""
        self.is_cut_anew = False
        self.carried: list[Carried] = []
        self.checkpoints_first = 0
        """How many must be made before it is cut."""
        self.referred = {} if self.remains_before is None else _referred(reading)
        """By collection of parts, those that something refers to."""
        self._pruning = pruning
        self._epoch = reading.tip.epoch
        self._cuts = before["ledger_days"] is not None
        self._wanted = 0
        if before["ledger_days"] is not None:
            self._look(reading, before["ledger_days"])

    @property
    def through(self) -> int:
        """The last revision that the ledger need not have."""
        return 0 if self.cut is None else self.cut.tip.revision

    def prove(self, reading: Reading) -> None:
        """Look what there is where the ledger is to be cut, and prove all of it.

        Raises:
            StoreError: it does not prove: nothing may go.
        """
        if self._wanted <= self.through:
            return
        walk = Walk(reading, self._wanted)
        walk.run()
        if walk.problems:
            raise StoreError(
                f"nothing is pruned, for the ledger does not prove: {walk.problems[0]}; flagkit"
                " ledger verify tells all"
            )
        self.cut, self.carried, self.is_cut_anew = walk.cut, walk.carried, True

    def parts(self) -> list[Part]:
        """Return all that can go but flags, in the order in which it goes."""
        pruning, parts = self._pruning, list[Part]()
        if self._cuts:
            found = partial(pruning.ledger, self.through)
            parts.append(Part("ledger", self._until(), found, pruning.remove_ledger))
            found = partial(pruning.pages, self.through)
            remove = partial(pruning.remove, PAGES, projected={"$lte": self.through})
            parts.append(Part("pages", self._until(), found, remove))
        if self.audit_before is not None:
            until, remove = told_before(self.audit_before), partial(pruning.remove, AUDIT)
            parts += [
                Part("audit", until, self.audit, remove),
                Part(
                    "abandoned requests",
                    until,
                    partial(pruning.abandoned, self.audit_before),
                    remove,
                ),
            ]
        if self.denials_before is not None:
            found = partial(pruning.denials, self.denials_before)
            remove = partial(pruning.remove, DENIALS)
            parts.append(Part("denials", told_before(self.denials_before), found, remove))
        if self.remains_before is not None:
            until = told_before(self.remains_before)
            for name, referred in self.referred.items():
                found = partial(pruning.unreferred, name, referred, self.remains_before)
                remove = partial(pruning.remove, name, unreferred={"$lt": self.remains_before})
                parts.append(Part(f"unreferred {name}", until, found, remove))
            found = partial(pruning.checkpoint_rests, self._epoch, self.now)
            until = f"not among the newest {CHECKPOINTS_KEPT}"
            parts.append(Part("checkpoint remains", until, found, pruning.remove_checkpoints))
        return parts

    def audit(self) -> Generator[list[Found]]:
        """Yield who asked for what has been cut, and for what is going to be, as far as it goes."""
        if self.audit_before is not None:
            yield from self._pruning.expired(self.audit_before)
            if self._cuts:
                yield from self._pruning.audit_of(self.through, self.audit_before)

    def _look(self, reading: Reading, moment: datetime) -> None:
        """Find where the ledger can be cut: not past the older of the newest checkpoints.

        Clients that start from them go on by the ledger.
        """
        if self.cut is None or moment > self.cut.tip.time:
            self._wanted = min(reading.revision_at(moment), reading.tip.revision - 1)
            if reading.lagging is not None:
                # Flags may lack what it did: only its pages have that.
                self._wanted = min(self._wanted, reading.lagging - 1)
        if self._wanted > self.through:
            kept = [made.tip.revision for made, _ in reading.checkpoints()][:CHECKPOINTS_KEPT]
            too_old = sum(revision <= self._wanted for revision in kept)
            self.checkpoints_first = too_old if kept else 1

    def _until(self) -> str:
        if self.cut is None:
            return "nothing is so old"
        tip, first = self.cut.tip, ""
        if self.checkpoints_first:
            first = f", after {self.checkpoints_first} more checkpoints"
        return f"up to revision {tip.revision:,}, {_told(tip.time)}{first}"


def _referred(reading: Reading) -> dict[str, set[str]]:
    """Return the parts that there are, or may come to be, by their collections.

    A rollback can bring parts back; pending changes and proposals have theirs already.
    """
    members = {part for state in reading.all().values() for part in state.parts}
    for operation in reading.awaited():
        # What was changed past the writer cannot be made any more, so it keeps nothing.
        with contextlib.suppress(*FORM_FAULTS):
            if operation.get("region") == SEGMENTS:
                members.update(parts_of(operation.get("policy", {})))
    unledgered = [reading.unledgered] if reading.unledgered is not None else []
    for change in chain(reading.changes(), unledgered):
        for policy in change.policies:
            for state in (policy.before, policy.after):
                members.update(state.parts if state is not None else ())
    return {MEMBERS: members, PAGES: reading.page_names()}


def told_before(moment: datetime) -> str:
    """Return in words what was before a moment."""
    return f"before {_told(moment)}"


def _told(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _checked_days(name: str, days: object) -> int:
    # What is younger may be in the hands of somebody who is at work on it.
    if isinstance(days, bool) or not isinstance(days, int) or not 1 <= days <= DAYS_MAX:
        raise ConfigurationError(
            f"{name} is {days!r}: it is a whole number of days, 1 to {DAYS_MAX:,}"
        )
    return days


FLAGS_AT_ONCE: Final = 100


class Deletable(Struct, frozen=True):
    """A flag that can be deleted, as long as it is at this version; `bytes` of its document."""

    region: str
    key: str
    version: int
    bytes: int


def to_delete(reading: Reading, before: datetime) -> list[Deletable]:
    """Return the flags that are archived since before a moment, those that rest on others first.

    Of a key all regions must be: without an override, the flag of all regions would be served. And
    none that stays may rest on it.
    """
    states, still = standing(reading, before)
    keys: dict[str, list[PolicyId]] = {}
    for identity in states:
        keys.setdefault(identity[1], []).append(identity)
    going = {
        key
        for key, identities in keys.items()
        if all(identity in still and _is_archived(states[identity]) for identity in identities)
    }
    resting = {key: set[str]() for key in keys}
    for (_, key), state in states.items():
        for needed in state.policy.get("prerequisites", ()):
            resting.setdefault(needed["flag"], set()).add(key)
    staying = [key for key in resting if key not in going]
    needs: dict[str, set[str]] = {}
    for needed, others in resting.items():
        for other in others:
            needs.setdefault(other, set()).add(needed)
    while staying:
        kept = needs.get(staying.pop(), set()) & going
        going -= kept
        staying += kept
    return [
        Deletable(region, key, states[region, key].version, len(states[region, key].packed))
        for key in _in_order(going, resting)
        for region, _ in sorted(keys[key])
    ]


def deleted_in_steps(
    writer: Writer, flags: Sequence[Deletable], reason: str
) -> Generator[str, None, list[Deletable]]:
    """Delete flags; return those that were, which are all but those that changed meanwhile."""
    gone: list[Deletable] = []
    rest = iter(flags)
    while batch := [*islice(rest, FLAGS_AT_ONCE)]:
        if _is_deleted(writer, batch, reason):
            gone += batch
        else:
            gone += [flag for flag in batch if _is_deleted(writer, [flag], reason)]
        yield f"{len(gone):,} archived flags are deleted"
    return gone


def _is_deleted(writer: Writer, flags: Iterable[Deletable], reason: str) -> bool:
    try:
        with writer.change(reason=reason) as change:
            for flag in flags:
                change.delete(flag.key, region=flag.region, expected_version=flag.version)
    except (AccessDeniedError, GuardError, RateLimitedError):
        raise
    except WriteError:
        # One of them was changed, or is referred to, since it was looked at: it stays.
        return False
    return True


def _in_order(keys: Iterable[str], resting: Mapping[str, set[str]]) -> list[str]:
    """Return keys in an order in which none goes before those that rest on it."""
    ordered: dict[str, None] = {}
    for start in sorted(keys):
        way = [start]
        while way:
            before = sorted(resting[way[-1]] - ordered.keys())
            if before:
                way.append(before[0])
            else:
                ordered[way.pop()] = None
    return [*ordered]


def _is_archived(state: PolicyState) -> bool:
    return bool(state.policy.get("state") == "archived")


PAUSE_SECONDS_MIN: Final = 0.03
"""Between batches, for other writers; longer where a batch took longer."""


class Pruned(Struct, frozen=True):
    """What goes, or went, of one kind.

    How many documents, how many bytes of BSON they are, and `until` when they are of.
    """

    what: str
    documents: int
    bytes: int
    until: str


Steps: TypeAlias = Generator[str, None, list[Pruned]]


def prunable(store: Store, retention: Retention, now: datetime | None = None) -> list[Pruned]:
    """Return what would go, by kind. Nothing is written.

    Args:
        store: The environment.
        retention: For how long what is kept.
        now: The moment to count the days back from; the server's time by default.

    Raises:
        ConfigurationError: the retention makes no sense.
        EnvironmentNotFoundError: it was never created.
        StoreError: the ledger does not prove, so nothing may go; or it could not be read.
    """
    retention, asked = _checked(retention), moment(now)
    with checked_store(store).reading() as reading:
        plan = Plan(store.pruning, retention, reading, asked)
        plan.prove(reading)
        flags = [] if plan.archived_before is None else to_delete(reading, plan.archived_before)
    rows = _archived(plan, flags)
    for part in plan.parts():
        sizes = [found.bytes for batch in part.found() for found in batch]
        rows.append(Pruned(part.what, len(sizes), sum(sizes), part.until))
    return rows


def prune(
    writer: Writer, retention: Retention, *, reason: str = "", now: datetime | None = None
) -> list[Pruned]:
    """Remove what need not be kept any more, and return what went, by kind.

    It takes a user of the database who may remove, and where there are grants an actor who is an
    admin of everything. That is checked before anything is written, whatever is to go. Killed on
    the way it has left nothing half-done, and can be run again.

    Raises:
        ConfigurationError: the retention makes no sense.
        AccessDeniedError: the actor is no admin of everything; nothing was written.
        WriteError: somebody else prunes.
        StoreError: the database's user may not; or the ledger does not prove, so nothing may go; or
            the database cannot be reached.
    """
    steps = prune_in_steps(writer, retention, reason=reason, now=now)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            pruned: list[Pruned] = done.value
            return pruned


def _checked(retention: object) -> Retention:
    return instance(retention, Retention, "retention", "pass a Retention, of flagkit.writer")


def prune_in_steps(
    writer: Writer, retention: Retention, *, reason: str, now: datetime | None = None
) -> Steps:
    """Do what `prune` does in short steps, and pause after each; yields how far it is."""
    instance(writer, Writer, "writer", "pass a Writer, of flagkit.writer")
    # The audit takes the reason after the first flags are gone.
    instance(reason, str, "reason", "pass text")
    steps = _pruned(writer, _checked(retention), reason, moment(now))
    while True:
        started = time.perf_counter()
        try:
            yield next(steps)
        except StopIteration as done:
            rows: list[Pruned] = done.value
            return rows
        # As long as it took: others, who want the same disk and cores, have their turn.
        time.sleep(max(PAUSE_SECONDS_MIN, time.perf_counter() - started))


def _pruned(writer: Writer, retention: Retention, reason: str, now: datetime | None) -> Steps:
    store = writer.store
    with store.reading() as reading:
        _check_may(writer, reading, reason)
    store.pruning.check_allowed()
    with store.reading() as reading:
        plan = Plan(store.pruning, retention, reading, now)
        flags = [] if plan.archived_before is None else to_delete(reading, plan.archived_before)
    gone = yield from deleted_in_steps(writer, flags, reason)
    rows = _archived(plan, gone)
    if retention.ledger_days is not None:
        yield from _projected(store)
    plan = yield from _proved(writer, retention, reason, now)
    # Before the cut is known: then they have what the ledger need not have any more.
    for count in store.pruning.carry(plan.carried):
        yield f"what the ledger has of {count:,} policies is kept with them"
    _record(writer, plan, reason)
    yield "what goes is on record"
    if plan.remains_before is not None:
        for collection, referred in plan.referred.items():
            store.pruning.mark_unreferred(collection, referred, plan.now)
    for part in plan.parts():
        documents = size = 0
        for batch in part.found():
            part.remove(batch)
            documents, size = documents + len(batch), size + sum(found.bytes for found in batch)
            yield f"{part.what}: {documents:,} documents are removed"
        rows.append(Pruned(part.what, documents, size, part.until))
    return rows


def _check_may(writer: Writer, reading: Reading, reason: str) -> None:
    try:
        check_access(reading, writer.actor, [("grant", "")])
    except AccessDeniedError as error:
        log_denial(writer.store, reading.now, error, reason, ())
        raise


def _archived(plan: Plan, flags: list[Deletable]) -> list[Pruned]:
    if plan.archived_before is None:
        return []
    size = sum(flag.bytes for flag in flags)
    return [Pruned("archived flags", len(flags), size, told_before(plan.archived_before))]


def _projected(store: Store) -> Generator[str]:
    """Bring a large change to an end whose writer may be dead: the ledger is not cut past it."""
    with store.reading() as reading:
        behind, pages, lagging = reading.behind, reading.pages, reading.lagging
    if lagging is None:
        return
    if behind is not None:
        store.project(behind, pages)
    while left := store.project_pages(lagging, 1):
        yield f"{left:,} pages of revision {lagging:,} are still to be projected"


def _proved(
    writer: Writer, retention: Retention, reason: str, now: datetime | None
) -> Generator[str, None, Plan]:
    """Return what can go, after the checkpoints have been made that this takes."""
    store = writer.store
    for _ in range(CHECKPOINTS_KEPT + 1):
        with store.reading() as reading:
            _check_may(writer, reading, reason)
            plan = Plan(store.pruning, retention, reading, now)
            if not plan.checkpoints_first:
                plan.prove(reading)
                return plan
        steps = checkpoint_in_steps(store)
        while True:
            try:
                step = next(steps)
            except StopIteration:
                break
            yield step or "looking at the environment"
    raise StoreError("checkpoints of others come in between: try again")


def _record(writer: Writer, plan: Plan, reason: str) -> None:
    """Make a revision that says what goes, if there is anything that is not merely left over."""
    removed: dict[str, str] = {}
    if plan.audit_before is not None and (plan.is_cut_anew or any(plan.audit())):
        removed["audit"] = plan.audit_before.isoformat()
    if plan.denials_before is not None and any(writer.store.pruning.denials(plan.denials_before)):
        removed["denials"] = plan.denials_before.isoformat()
    if not plan.is_cut_anew and not removed:
        return
    policy = plan.cut.policy if plan.is_cut_anew and plan.cut is not None else None
    region, key = CUT
    asked = Prune(
        to=plan.through,
        policy=policy,
        removed=removed,
        environment=writer.environment,
        key=key,
        region=region,
    )
    with writer.change(reason=reason) as draft:
        draft.operations.append(asked)


class Erasure(Struct, frozen=True):
    """What was erased of an actor, or would be.

    Attributes:
        name: What stands in the actor's place; empty if nothing was erased.
        documents: By collection, how many documents named the actor.
        chained: The environments and revisions whose grants name the actor, in the ledger, which
            nobody can alter.
    """

    name: str
    documents: dict[str, int]
    chained: tuple[tuple[str, int], ...]


def erase(
    actor: str, *, uri: str | None = None, database: str | None = None, dry_run: bool = False
) -> Erasure:
    """Erase an actor in all environments of a database.

    In the audit and among the denials a salted hash stands in the place of the name, and nothing in
    that of the actor's words. Other people's operations that name the actor have the hash, too.

    Args:
        actor: The name, exactly as it is stored. It may be one that no writer takes any more.
        uri: As Writer has it; of a user with the role flagkitAdmin.
        database: As Writer has it.
        dry_run: Only tell what would be erased.

    Raises:
        WriteError: the actor still holds a role.
        InvalidDocumentError: that is no text that a database can hold.
        StoreError: the database did not answer, or refused. Done again, it goes on.
    """
    actor = stored_actor(actor)
    with Administration(*connection_from(uri, database)) as administration:
        held = administration.roles_held(actor)
        documents = administration.mentions(actor)
        chained = tuple(administration.chained(actor))
        if dry_run:
            return Erasure("", documents, chained)
        if held:
            raise WriteError(
                f"{actor!r} still holds a role in {', '.join(held)}: revoke it first; nothing was"
                " erased"
            )
        return Erasure(administration.erase(actor), documents, chained)
