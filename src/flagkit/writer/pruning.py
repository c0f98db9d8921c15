"""Pruning: what an environment needs no more is removed, for whoever says after how many days.

First it is proved, then recorded as a revision, and only then removed, in small batches with
pauses: whoever is killed has left nothing half-done, and the next one goes on.
"""

import time
from collections.abc import Generator
from datetime import datetime
from typing import Any, Final, TypeAlias

from msgspec import Struct

from flagkit.arguments import instance, moment
from flagkit.changes import CUT, Cut, PolicyState, cut_in
from flagkit.errors import AccessDeniedError, StoreError, WriteError
from flagkit.storage.publishing import CHECKPOINTS_KEPT
from flagkit.storage.reading import Reading
from flagkit.storage.store import Store, checked_store
from flagkit.writer.access import check_access, log_denial
from flagkit.writer.checkpoints import checkpoint_in_steps
from flagkit.writer.deleting import Deletable, deleted_in_steps, to_delete
from flagkit.writer.operations import Earlier, Operation
from flagkit.writer.retention import Plan, Retention, told_before
from flagkit.writer.writer import Writer

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


class Prune(Operation, frozen=True, tag="prune", kw_only=True):
    """Cut the ledger as `policy` says, if it says so, and put on record what else goes.

    `to` is where the ledger is cut. `removed` has the moments before which other things go.
    """

    to: int
    policy: dict[str, Any] | None
    removed: dict[str, str]
    environment: str

    def next(self, before: PolicyState | None, _earlier: Earlier, /) -> Cut | None:
        """Return the new cut; the one that there is, if there is no new one.

        Raises:
            WriteError: the ledger was cut as far, or further.
        """
        held = None if before is None else cut_in(self.environment, before.policy)
        if self.policy is None:
            return held
        if held is not None and held.tip.revision >= self.to:
            raise WriteError(
                f"the ledger was pruned up to revision {held.tip.revision} meanwhile: look again"
            )
        return cut_in(self.environment, self.policy)


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
