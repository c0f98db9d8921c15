"""Committing: the protocol by which a request becomes a revision, whole, once, or not at all.

Read and check at one revision; record the request; compare-and-set the head, which is the commit;
project. Lost races are tried again from the reading on. See docs/design.md.
"""

import random
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from flagkit.background import Log
from flagkit.changes import GRANTS, PolicyChange, Tip, next_change
from flagkit.errors import AccessDeniedError, StoreError, StoreUnavailableError
from flagkit.storage.foreseen import Foreseen
from flagkit.storage.layout import comparable_digest
from flagkit.storage.pages import split
from flagkit.storage.preparing import fitting
from flagkit.storage.reading import Reading
from flagkit.storage.store import Store
from flagkit.writer.access import check_access, log_denial, needs
from flagkit.writer.drafts import Draft
from flagkit.writer.guards import Guard, check_guards, planned_of
from flagkit.writer.limits import buckets_after
from flagkit.writer.looks import Look, foreseen_by
from flagkit.writer.planning import Plan, plan
from flagkit.writer.requests import check_same, made_by

_log = Log("flagkit.writer")

LOST_RACE_SECONDS, LOST_RACE_SECONDS_MAX = 0.02, 0.16
"""Up to so long who lost a race waits, twice as long for each that it loses, up to the latter."""
UNAVAILABLE_SECONDS_MAX = 0.5
LAG_MAX = timedelta(seconds=2)
"""How long a large change may be projected before others help."""


class Made(NamedTuple):
    """The tip that a request led to, and whether it changed anything or was skipped."""

    tip: Tip
    changed: bool = True


class Committer:
    """Commits the drafts of one writer, of whose threads one has its turn at a time.

    Args:
        store: Where to.
        guards: Are asked about each change.
        timeout: Seconds within which a change commits or fails.
    """

    def __init__(self, store: Store, guards: Iterable[Guard], timeout: float) -> None:
        self._store = store
        self._guards = tuple(guards)
        self._timeout = timeout
        # Threads of one process would only make each other lose races for the head.
        self._turn = threading.Lock()

    def commit(
        self,
        draft: Draft,
        request: str,
        content: Mapping[str, Any],
        timeout: float | None = None,
        *,
        is_new: bool = False,
    ) -> Made:
        """Make a revision of a draft, under a request's id; return the tip that it made.

        A draft that skips what changes nothing makes no revision then. The tip is the newest one.

        Args:
            draft: What is asked for.
            request: The id.
            content: What the audit is to have of it.
            timeout: Seconds, if other than the writer's.
            is_new: Whether nobody can have sent the request before.

        Raises:
            WriteError, InvalidDocumentError: refused; nothing was written.
            StoreUnavailableError: the database cannot be reached, or others were always first.
        """
        foreseen = foreseen_by(draft, None if is_new else request)
        lost: list[Look] = []
        losses = -1
        seconds = self._timeout if timeout is None else timeout
        deadline = time.monotonic() + seconds
        with self._turn:
            while True:
                try:
                    made = self._attempt(draft, request, content, foreseen, lost)
                    losses += 1
                    pause = min(LOST_RACE_SECONDS * 2**losses, LOST_RACE_SECONDS_MAX)
                except StoreUnavailableError:
                    # Unsure whether it was committed: the next reading looks for the request.
                    if time.monotonic() > deadline:
                        raise
                    made, pause = None, UNAVAILABLE_SECONDS_MAX
                if made is not None:
                    return made
                foreseen = foreseen_by(draft, request)
                if time.monotonic() > deadline:
                    raise StoreUnavailableError(
                        f"other writers won every race for {seconds:g} s: nothing was changed"
                    )
                time.sleep(random.uniform(0, pause))  # noqa: S311 - jitter, not secrets

    def _attempt(
        self,
        draft: Draft,
        request: str,
        content: Mapping[str, Any],
        foreseen: Foreseen,
        lost: list[Look],
    ) -> Made | None:
        """Try once. Return the tip that the request led to; None if it was `lost` to another."""
        with self._store.reading(foreseen) as reading:
            # Nothing that rests on all of the history, as a rollback does.
            earlier = lost.pop() if lost and draft.recorded is not None else None
            again = earlier and self._again(reading, earlier, draft, request, content)
            try:
                look = again or self.look(
                    reading, draft, request, content, is_new=foreseen.request is None
                )
            except AccessDeniedError as error:
                log_denial(self._store, reading.now, error, content["reason"], draft.operations)
                raise
            lagging, is_late = reading.lagging, reading.lags_by > LAG_MAX
        if draft.skips_unchanged and look.done is None and not look.change.policies:
            return Made(reading.tip, changed=False)
        if again is None and not self._is_recorded(draft, request, content, look):
            return None
        if reading.behind is not None:
            self._help()
        if look.done is not None:
            return Made(look.done)
        change, pages = look.change, look.pages
        if pages and lagging is not None:
            # One large change at a time is carried on; who makes the next one can wait.
            self._store.project_pages(lagging)
            return None
        if again is None:
            self._store.add_parts(look.parts)
            self._store.add_pages(pages)
        lost.append(look)
        unprojected = change.revision if pages else lagging
        if not self._store.compare_and_set(reading.tip, change, look.buckets, pages, unprojected):
            return None
        self._project(look, lagging if is_late else None)
        return Made(change.tip)

    @property
    def has_guards(self) -> bool:
        """Whether there are guards to ask."""
        return bool(self._guards)

    def check_changes(
        self, reading: Reading, changes: Sequence[PolicyChange], actor: str, reason: str
    ) -> None:
        """Refuse changes that their actor may not make, or that a guard refuses.

        Nothing is written, and no token is taken.

        Raises:
            AccessDeniedError, GuardError: refused.
        """
        if GRANTS in reading.access:
            check_access(reading, actor, needs((), changes))
        if self._guards:
            planned = planned_of(changes, reading, actor=actor, reason=reason)
            check_guards(self._guards, planned)

    def _is_recorded(
        self, draft: Draft, request: str, content: Mapping[str, Any], look: Look
    ) -> bool:
        """Record a request; return whether it is on record as it would be committed now.

        Raises:
            RequestConflictError: another one is on record.
        """
        terms, is_done = draft.terms, look.done is not None
        if terms.has_own_request and is_done:
            return True
        asked = terms.recorded(content)
        recorded = self._store.add_request(request, asked)
        if terms.has_own_request:
            # Another attempt was first, with other approvals. The next reading has its record.
            return recorded == comparable_digest(asked)
        check_same(request, recorded, content, done=is_done)
        return True

    def _help(self) -> None:
        """See to it that ledger and flags have the tip before the head forgets it."""
        # Who committed it did not wait for a majority, which has it by now, with the request; or is
        # dead.
        with self._store.reading() as reading:
            behind, pages = reading.behind, reading.pages
        if behind is not None:
            self._store.project(behind, pages)

    def _project(self, look: Look, late: int | None) -> None:
        """Bring what was committed to where it is read, and a page of what was not, for too long.

        That is a change on pages, whose writer may be dead; so it comes to an end.
        """
        change, pages = look.change, look.pages
        try:
            self._store.project(change, pages, is_mine=True)
            if pages:
                self._store.project_own_pages(change.revision, pages, look.ready)
            elif late is not None:
                self._store.project_pages(late, 1)
        except StoreError as error:
            # It is committed all the same, and the next writer projects it.
            _log.warning(
                "revision %s is committed and not yet projected: %s", change.revision, error
            )

    def _again(
        self,
        reading: Reading,
        lost: Look,
        draft: Draft,
        request: str,
        content: Mapping[str, Any],
    ) -> Look | None:
        """Return what was planned upon an earlier revision, if it still holds upon this one."""
        if not lost.holds(reading, request):
            return None
        policies = lost.change.policies
        return lost._replace(
            change=next_change(reading.tip, request, reading.now, policies),
            buckets=self._permitted(draft, reading, [*policies], content),
            upon=reading.tip,
        )

    def look(
        self,
        reading: Reading,
        draft: Draft,
        request: str,
        content: Mapping[str, Any],
        *,
        is_new: bool = False,
        is_preview: bool = False,
    ) -> Look:
        """Return what a request would do at a reading's revision, with all checks made.

        A preview does not make the key of the rate limits.
        """
        done = None if is_new else made_by(reading, request)
        planned, buckets = Plan([], {}), dict[str, int]()
        if done is None:
            draft.terms.check(reading)
            planned = plan(
                draft.operations, reading, reading.tip.revision, draft.parts, draft.lists
            )
            draft.sealing.check(planned.changes)
            reading.check_newest(planned.changes)
            buckets = self._permitted(
                draft, reading, planned.changes, content, is_preview=is_preview
            )
        change = next_change(reading.tip, request, reading.now, planned.changes)
        pages = split(change.policies)
        ready = fitting(change, content, pages, planned.flags, draft.ahead)
        return Look(done, change, planned.parts, buckets, pages, planned.flags, ready, reading.tip)

    def _permitted(
        self,
        draft: Draft,
        reading: Reading,
        changes: list[PolicyChange],
        content: Mapping[str, Any],
        *,
        is_preview: bool = False,
    ) -> dict[str, int]:
        """Refuse what its actor may not do, or guards or limits stop; return the buckets after."""
        actor, reason = content["actor"], content["reason"]
        terms, glass = draft.terms, bool(draft.glass)
        needed = terms.needed(draft.operations, changes, breaks_glass=glass)
        approvers = terms.approvers(reading, actor, needed, changes)
        if self._guards and not glass:
            planned = planned_of(
                changes,
                reading,
                actor=actor,
                reason=reason,
                approvers=approvers,
            )
            check_guards(self._guards, planned)
        epoch = reading.tip.epoch
        return buckets_after(
            reading,
            actor,
            lambda: self._store.bucket_key(epoch, make=not is_preview),
            is_limited=terms.is_limited(needed),
        )
