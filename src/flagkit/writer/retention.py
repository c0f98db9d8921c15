"""Retention: finds what an environment no longer needs after a number of days, and prunes it.

Pruning first proves the plan, then records it as a revision, and only then deletes, in small
batches with pauses. A killed run leaves nothing half-done, and the next run continues. This module
also deletes archived flags and erases the names of actors.
"""

import contextlib
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from functools import partial
from itertools import chain
from typing import Final, NamedTuple, TypeAlias

import msgspec
from msgspec import Struct

from flagkit._core.arguments import check_instance, check_moment, subtract_days
from flagkit._core.cooperative import pace_slices, split_batches
from flagkit._core.model.access import check_stored_actor
from flagkit._core.model.changes import CUT, SEGMENTS, PolicyId, PolicyState, get_member_parts
from flagkit._core.storage.admin import DatabaseAdmin
from flagkit._core.storage.checkpoints import CHECKPOINTS_MAX
from flagkit._core.storage.layout import AUDIT, DENIALS, MEMBERS, PAGES
from flagkit._core.storage.pruning import Batches, CarriedState, DocumentPruner, PrunableDocument
from flagkit._core.storage.reader import EnvironmentReader
from flagkit._core.storage.store import Store
from flagkit._core.storage.validation import FORM_FAULTS
from flagkit.config import resolve_connection
from flagkit.errors import (
    AccessDeniedError,
    ConfigurationError,
    GuardError,
    NotFoundError,
    RateLimitedError,
    StoreError,
    WriteError,
)
from flagkit.writer.access import check_access, log_denial
from flagkit.writer.checkpoints import write_checkpoint_in_steps
from flagkit.writer.draft import Draft
from flagkit.writer.operations import Prune
from flagkit.writer.stale_flags import read_unchanged_flags
from flagkit.writer.verification import LedgerVerifier

DAYS_MAX: Final = 100_000

ChangeFunction: TypeAlias = Callable[..., AbstractContextManager[Draft]]


class Pruner(NamedTuple):
    """Prunes an environment: its store, the name of the actor, and `Writer.change`."""

    store: Store
    actor: str
    change: ChangeFunction


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


class PruneTarget(Struct, frozen=True):
    """Documents of one kind that can go: how they are found, and how they are removed."""

    what: str
    until: str
    find_batches: Callable[[], Batches]
    remove: Callable[[list[PrunableDocument]], None]


class PrunePlan:
    """The data that can be deleted, counted back from a moment.

    Args:
        pruning: The storage's side.
        retention: For how long what is kept.
        reading: Of the environment.
        now: The moment; the server's time by default.

    Raises:
        ConfigurationError: the retention makes no sense.
    """

    def __init__(
        self,
        pruning: DocumentPruner,
        retention: Retention,
        reading: EnvironmentReader,
        now: datetime | None,
    ) -> None:
        self.now = now or reading.now
        before = {
            name: None if days is None else subtract_days(self.now, _check_days(name, days))
            for name, days in msgspec.structs.asdict(retention).items()
        }
        self.archived_before = before["archived_days"]
        self.audit_before = before["audit_days"]
        self.denials_before = before["denials_days"]
        self.remains_before = before["remains_days"]
        self.cut = reading.history.cut
        """The revision at which the ledger is or will be cut."""
        self.has_new_cut = False
        self.carried_states: list[CarriedState] = []
        self.checkpoints_needed = 0
        """How many must be made before it is cut."""
        self.referenced_parts = (
            {} if self.remains_before is None else _collect_referenced_parts(reading)
        )
        """By collection of parts, those that something refers to."""
        self._pruning = pruning
        self._epoch = reading.tip.epoch
        self._should_cut = before["ledger_days"] is not None
        self._cut_revision = 0
        if before["ledger_days"] is not None:
            self._find_cut(reading, before["ledger_days"])

    @property
    def last_pruned_revision(self) -> int:
        """The last revision that the ledger need not have."""
        return 0 if self.cut is None else self.cut.tip.revision

    def prove(self, reading: EnvironmentReader) -> None:
        """Look what there is where the ledger is to be cut, and prove all of it.

        Raises:
            StoreError: it does not prove: nothing may go.
        """
        if self._cut_revision <= self.last_pruned_revision:
            return
        walk = LedgerVerifier(reading, self._cut_revision)
        walk.run()
        if walk.problems:
            raise StoreError(
                f"nothing is pruned, for the ledger does not prove: {walk.problems[0]}; flagkit"
                " ledger verify tells all"
            )
        self.cut, self.carried_states, self.has_new_cut = walk.cut, walk.carried_states, True

    def list_targets(self) -> list[PruneTarget]:
        """Return all that can go but flags, in the order in which it goes."""
        pruning, parts = self._pruning, list[PruneTarget]()
        if self._should_cut:
            found = partial(pruning.iter_ledger, self.last_pruned_revision)
            parts.append(PruneTarget("ledger", self._describe_cut(), found, pruning.remove_ledger))
            found = partial(pruning.iter_pages, self.last_pruned_revision)
            remove = partial(pruning.remove, PAGES, projected={"$lte": self.last_pruned_revision})
            parts.append(PruneTarget("pages", self._describe_cut(), found, remove))
        if self.audit_before is not None:
            until, remove = format_before(self.audit_before), partial(pruning.remove, AUDIT)
            parts += [
                PruneTarget("audit", until, self.iter_audit, remove),
                PruneTarget(
                    "abandoned requests",
                    until,
                    partial(pruning.iter_abandoned_requests, self.audit_before),
                    remove,
                ),
            ]
        if self.denials_before is not None:
            found = partial(pruning.iter_denials, self.denials_before)
            remove = partial(pruning.remove, DENIALS)
            parts.append(PruneTarget("denials", format_before(self.denials_before), found, remove))
        if self.remains_before is not None:
            until = format_before(self.remains_before)
            for name, referred in self.referenced_parts.items():
                found = partial(pruning.iter_unreferenced, name, referred, self.remains_before)
                remove = partial(pruning.remove, name, unreferred={"$lt": self.remains_before})
                parts.append(PruneTarget(f"unreferred {name}", until, found, remove))
            found = partial(pruning.iter_checkpoint_orphans, self._epoch, self.now)
            until = f"not among the newest {CHECKPOINTS_MAX}"
            parts.append(
                PruneTarget("checkpoint remains", until, found, pruning.remove_checkpoints)
            )
        return parts

    def iter_audit(self) -> Generator[list[PrunableDocument]]:
        """Yield who asked for what has been cut, and for what is going to be, as far as it goes."""
        if self.audit_before is not None:
            yield from self._pruning.iter_expired_audit(self.audit_before)
            if self._should_cut:
                yield from self._pruning.iter_audit(self.last_pruned_revision, self.audit_before)

    def _find_cut(self, reading: EnvironmentReader, moment: datetime) -> None:
        """Find where the ledger can be cut: not past the older of the newest checkpoints.

        Clients that start from them go on by the ledger.
        """
        if self.cut is None or moment > self.cut.tip.time:
            history = reading.history
            self._cut_revision = min(history.find_revision(moment), history.tip.revision - 1)
            if history.first_unprojected is not None:
                # Flags may lack what it did: only its pages have that.
                self._cut_revision = min(self._cut_revision, history.first_unprojected - 1)
        if self._cut_revision > self.last_pruned_revision:
            retained = [checkpoint.tip.revision for checkpoint, _ in reading.iter_checkpoints()][
                :CHECKPOINTS_MAX
            ]
            too_old = sum(revision <= self._cut_revision for revision in retained)
            self.checkpoints_needed = too_old if retained else 1

    def _describe_cut(self) -> str:
        if self.cut is None:
            return "nothing is so old"
        tip, first = self.cut.tip, ""
        if self.checkpoints_needed:
            first = f", after {self.checkpoints_needed} more checkpoints"
        return f"up to revision {tip.revision:,}, {_format_moment(tip.time)}{first}"


def _collect_referenced_parts(reading: EnvironmentReader) -> dict[str, set[str]]:
    """Return the parts that there are, or may come to be, by their collections.

    A rollback can bring parts back; pending changes and proposals have theirs already.
    """
    members = {part for state in reading.read_all().values() for part in state.parts}
    for operation in reading.iter_pending_operations():
        # What was changed past the writer cannot be made any more, so it keeps nothing.
        with contextlib.suppress(*FORM_FAULTS):
            if operation.get("region") == SEGMENTS:
                members.update(get_member_parts(operation.get("policy", {})))
    newest = reading.history.tip_not_in_ledger
    for change in chain(reading.history.iter_changes(), () if newest is None else (newest,)):
        for policy in change.policies:
            for state in (policy.before, policy.after):
                members.update(state.parts if state is not None else ())
    return {MEMBERS: members, PAGES: reading.history.read_page_names()}


def format_before(moment: datetime) -> str:
    """Return in words what was before a moment."""
    return f"before {_format_moment(moment)}"


def _format_moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _check_days(name: str, days: object) -> int:
    # What is younger may be in the hands of somebody who is at work on it.
    if isinstance(days, bool) or not isinstance(days, int) or not 1 <= days <= DAYS_MAX:
        raise ConfigurationError(
            f"{name} is {days!r}: it is a whole number of days, 1 to {DAYS_MAX:,}"
        )
    return days


FLAGS_AT_ONCE: Final = 100


class DeletableFlag(Struct, frozen=True):
    """A flag that can be deleted, as long as it is at this version; `bytes` of its document."""

    region: str
    key: str
    version: int
    bytes: int


def find_deletable_flags(reading: EnvironmentReader, before: datetime) -> list[DeletableFlag]:
    """Return the flags that are archived since before a moment, those that rest on others first.

    Of a key all regions must be: without an override, the flag of all regions would be served. And
    none that stays may rest on it.
    """
    states, still = read_unchanged_flags(reading, before)
    keys: dict[str, list[PolicyId]] = {}
    for identity in states:
        keys.setdefault(identity[1], []).append(identity)
    going = {
        key
        for key, identities in keys.items()
        if all(identity in still and _is_archived(states[identity]) for identity in identities)
    }
    dependants = {key: set[str]() for key in keys}
    for (_, key), state in states.items():
        for needed in state.policy.get("prerequisites", ()):
            dependants.setdefault(needed["flag"], set()).add(key)
    staying = [key for key in dependants if key not in going]
    needs: dict[str, set[str]] = {}
    for needed, others in dependants.items():
        for other in others:
            needs.setdefault(other, set()).add(needed)
    while staying:
        retained = needs.get(staying.pop(), set()) & going
        going -= retained
        staying += retained
    return [
        DeletableFlag(region, key, states[region, key].version, len(states[region, key].packed))
        for key in _sort_by_dependents(going, dependants)
        for region, _ in sorted(keys[key])
    ]


def delete_in_steps(
    change: ChangeFunction, flags: Sequence[DeletableFlag], reason: str
) -> Generator[str, None, list[DeletableFlag]]:
    """Delete flags; return those that were, which are all but those that changed meanwhile."""
    gone: list[DeletableFlag] = []
    for batch in split_batches(flags, FLAGS_AT_ONCE):
        if _delete_flags(change, batch, reason):
            gone += batch
        else:
            gone += [flag for flag in batch if _delete_flags(change, [flag], reason)]
        yield f"{len(gone):,} archived flags are deleted"
    return gone


def _delete_flags(change: ChangeFunction, flags: Iterable[DeletableFlag], reason: str) -> bool:
    try:
        with change(reason=reason) as draft:
            for flag in flags:
                draft.delete(flag.key, region=flag.region, expected_version=flag.version)
    except (AccessDeniedError, GuardError, RateLimitedError):
        raise
    except (WriteError, NotFoundError):
        # Another writer changed, deleted or referred to one of them after the plan: it stays.
        return False
    return True


def _sort_by_dependents(keys: Iterable[str], dependents: Mapping[str, set[str]]) -> list[str]:
    """Return keys in an order in which none goes before those that rest on it."""
    ordered: dict[str, None] = {}
    for start in sorted(keys):
        way = [start]
        while way:
            before = sorted(dependents[way[-1]] - ordered.keys())
            if before:
                way.append(before[0])
            else:
                ordered[way.pop()] = None
    return [*ordered]


def _is_archived(state: PolicyState) -> bool:
    return bool(state.policy.get("state") == "archived")


PAUSE_SECONDS_MIN: Final = 0.03
"""Between batches, for other writers; longer where a batch took longer."""


class PruneResult(Struct, frozen=True):
    """The data of one kind that was or would be deleted.

    How many documents, how many bytes of BSON they are, and `until` when they are of.
    """

    what: str
    documents: int
    bytes: int
    until: str


PruneSteps: TypeAlias = Generator[str, None, list[PruneResult]]


def list_prunable(store: Store, retention: Retention, now: datetime | None) -> list[PruneResult]:
    """Return what would be deleted, as `Environment.list_prunable` does."""
    retention, asked = _check_retention(retention), check_moment(now)
    with store.open_reader() as reading:
        plan = PrunePlan(store.pruner, retention, reading, asked)
        plan.prove(reading)
        flags = (
            []
            if plan.archived_before is None
            else find_deletable_flags(reading, plan.archived_before)
        )
    rows = _build_archived_rows(plan, flags)
    for part in plan.list_targets():
        sizes = [found.bytes for batch in part.find_batches() for found in batch]
        rows.append(PruneResult(part.what, len(sizes), sum(sizes), part.until))
    return rows


def _check_retention(retention: object) -> Retention:
    return check_instance(retention, Retention, "retention", "pass a Retention, of flagkit.writer")


def prune_in_steps(
    pruner: Pruner, retention: Retention, *, reason: str, now: datetime | None = None
) -> PruneSteps:
    """Do what `Writer.prune` does in short steps, pause after each, and yield its progress."""
    # The audit takes the reason after the first flags are gone.
    check_instance(reason, str, "reason", "pass text")
    steps = _run_prune(pruner, _check_retention(retention), reason, check_moment(now))
    # The pause is for others, who need the same disk and cores.
    return pace_slices(steps, lambda seconds: time.sleep(max(PAUSE_SECONDS_MIN, seconds)))


def _run_prune(
    pruner: Pruner, retention: Retention, reason: str, now: datetime | None
) -> PruneSteps:
    store = pruner.store
    with store.open_reader() as reading:
        _check_prune_access(pruner, reading, reason)
    store.pruner.check_allowed()
    with store.open_reader() as reading:
        plan = PrunePlan(store.pruner, retention, reading, now)
        flags = (
            []
            if plan.archived_before is None
            else find_deletable_flags(reading, plan.archived_before)
        )
    gone = yield from delete_in_steps(pruner.change, flags, reason)
    rows = _build_archived_rows(plan, gone)
    if retention.ledger_days is not None:
        yield from _project_unfinished(store)
    plan = yield from _build_proved_plan(pruner, retention, reason, now)
    # Before the cut is known: then they have what the ledger need not have any more.
    for count in store.pruner.carry_states(plan.carried_states):
        yield f"what the ledger has of {count:,} policies is kept with them"
    _record_prune(pruner, plan, reason)
    yield "what goes is on record"
    if plan.remains_before is not None:
        for collection, referred in plan.referenced_parts.items():
            store.pruner.mark_unreferenced(collection, referred, plan.now)
    for part in plan.list_targets():
        documents = size = 0
        for batch in part.find_batches():
            part.remove(batch)
            documents, size = documents + len(batch), size + sum(found.bytes for found in batch)
            yield f"{part.what}: {documents:,} documents are removed"
        rows.append(PruneResult(part.what, documents, size, part.until))
    return rows


def _check_prune_access(pruner: Pruner, reading: EnvironmentReader, reason: str) -> None:
    try:
        check_access(reading, pruner.actor, [("grant", "")])
    except AccessDeniedError as error:
        log_denial(pruner.store, reading.now, error, reason, ())
        raise


def _build_archived_rows(plan: PrunePlan, flags: list[DeletableFlag]) -> list[PruneResult]:
    if plan.archived_before is None:
        return []
    size = sum(flag.bytes for flag in flags)
    return [PruneResult("archived flags", len(flags), size, format_before(plan.archived_before))]


def _project_unfinished(store: Store) -> Generator[str]:
    """Bring a large change to an end whose writer may be dead: the ledger is not cut past it."""
    with store.open_reader() as reading:
        history = reading.history
        unprojected, pages, first_unprojected = (
            history.unprojected_tip,
            history.pages,
            history.first_unprojected,
        )
    if first_unprojected is None:
        return
    if unprojected is not None:
        store.project(unprojected, pages)
    while left := store.project_pages(first_unprojected, 1):
        yield f"{left:,} pages of revision {first_unprojected:,} are still to be projected"


def _build_proved_plan(
    pruner: Pruner, retention: Retention, reason: str, now: datetime | None
) -> Generator[str, None, PrunePlan]:
    """Return what can go, after the checkpoints have been made that this takes."""
    store = pruner.store
    for _ in range(CHECKPOINTS_MAX + 1):
        with store.open_reader() as reading:
            _check_prune_access(pruner, reading, reason)
            plan = PrunePlan(store.pruner, retention, reading, now)
            if not plan.checkpoints_needed:
                plan.prove(reading)
                return plan
        for step in write_checkpoint_in_steps(store):
            yield step or "looking at the environment"
    raise StoreError("checkpoints of others come in between: try again")


def _record_prune(pruner: Pruner, plan: PrunePlan, reason: str) -> None:
    """Make a revision that says what goes, if there is anything that is not merely left over."""
    removed: dict[str, str] = {}
    if plan.audit_before is not None and (plan.has_new_cut or any(plan.iter_audit())):
        removed["audit"] = plan.audit_before.isoformat()
    if plan.denials_before is not None and any(
        pruner.store.pruner.iter_denials(plan.denials_before)
    ):
        removed["denials"] = plan.denials_before.isoformat()
    if not plan.has_new_cut and not removed:
        return
    policy = plan.cut.policy if plan.has_new_cut and plan.cut is not None else None
    region, key = CUT
    asked = Prune(
        to=plan.last_pruned_revision,
        policy=policy,
        removed=removed,
        environment=pruner.store.environment,
        key=key,
        region=region,
    )
    with pruner.change(reason=reason) as draft:
        draft.operations.append(asked)


class Erasure(Struct, frozen=True):
    """The result of the erasure of an actor, or of its dry run.

    Attributes:
        name: What stands in the actor's place; empty if nothing was erased.
        documents: By collection, how many documents named the actor.
        chained: The environments and revisions whose grants name the actor, in the ledger, which
            nobody can alter.
    """

    name: str
    documents: dict[str, int]
    chained: tuple[tuple[str, int], ...]


def erase_actor(
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
    actor = check_stored_actor(actor)
    with DatabaseAdmin(*resolve_connection(uri, database)) as administration:
        held = administration.find_role_environments(actor)
        documents = administration.count_mentions(actor)
        chained = tuple(administration.list_grant_revisions(actor))
        if dry_run:
            return Erasure("", documents, chained)
        if held:
            raise WriteError(
                f"{actor!r} still holds a role in {', '.join(held)}: revoke it first; nothing was"
                " erased"
            )
        return Erasure(administration.erase_actor(actor), documents, chained)
