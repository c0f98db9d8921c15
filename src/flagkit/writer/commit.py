"""The commit protocol: a request becomes a revision as a whole, exactly once, or not at all.

An attempt reads and checks at one revision, records the request, compares and sets the head (which
is the commit), and projects. A lost race starts again with the read. Planning a batch of an import
takes tens of milliseconds, so a retry reuses what it can; otherwise an import would lose every
race.

The hash chain covers the id of the request. So the audit must have everything that the ledger has,
and a request must match its digest unless it was erased.

docs/architecture/commit-protocol.md describes the protocol.
"""

import random
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain, repeat
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from flagkit._core.arguments import check_instance
from flagkit._core.background import Log
from flagkit._core.model import Flag
from flagkit._core.model.access import check_actor
from flagkit._core.model.changes import (
    ACCESS,
    GRANTS,
    SEGMENTS,
    Change,
    PolicyChange,
    PolicyId,
    PolicyState,
    Tip,
    build_next_change,
)
from flagkit._core.secrets import DataKeys
from flagkit._core.storage.documents import EncodedPolicy, encode_change
from flagkit._core.storage.layout import ERASED, UNSEEDED, compute_request_digest
from flagkit._core.storage.pages import Page, split_pages
from flagkit._core.storage.prefetch import Prefetch
from flagkit._core.storage.reader import EnvironmentReader
from flagkit._core.storage.store import Store
from flagkit.errors import (
    AccessDeniedError,
    InvalidArgumentError,
    NotPendingError,
    RequestConflictError,
    StoreError,
    StoreUnavailableError,
)
from flagkit.writer.access import (
    check_access,
    compute_buckets,
    list_required_permissions,
    log_denial,
)
from flagkit.writer.draft import Commit, Draft
from flagkit.writer.guards import Guard, build_planned_changes, check_guards
from flagkit.writer.operations import encode_operations, hash_request
from flagkit.writer.planning import ChangePlan, plan
from flagkit.writer.shortcuts import ChangeOptions


class PlannedCommit(NamedTuple):
    """A planned request: the tip that it led to if it was committed, else the next change."""

    committed_as: Tip | None
    change: Change
    parts: Mapping[str, bytes]
    buckets: Mapping[str, int]
    pages: Mapping[str, Page]
    flags: Mapping[PolicyId, Flag]
    encoded: Mapping[PolicyId, EncodedPolicy]
    base_tip: Tip

    def is_still_valid(self, reading: EnvironmentReader, request: str) -> bool:
        """Tell whether it may be committed as it is, upon the revision of a reading."""
        history, base = reading.history, self.base_tip
        if history.tip.epoch != base.epoch or history.find_commit(request) is not None:
            return False
        unledgered = () if history.tip_not_in_ledger is None else (history.tip_not_in_ledger,)
        return is_unaffected(self.flags, chain(history.iter_changes(base.revision), unledgered))


def build_prefetch(draft: Draft, request: str | None) -> Prefetch:
    """Return what a draft will ask for, and the request, where it may have been committed."""
    return Prefetch(request, frozenset(operation.policy_id for operation in draft.operations))


def is_unaffected(flags: Mapping[PolicyId, Flag], changes: Iterable[Change]) -> bool:
    """Tell whether flags may be written as they were planned, after what came in between.

    They may, if nothing was changed that a check of theirs has seen: they themselves, what they
    rest on, segments, access; and if no other flag came to rest on something else.
    """
    seen = {key for _, key in flags}
    seen.update(needed.flag for flag in flags.values() for needed in flag.prerequisites)
    return all(
        policy.id[0] not in (ACCESS, SEGMENTS)
        and policy.id[1] not in seen
        and _get_prerequisites(policy.before) == _get_prerequisites(policy.after)
        for change in changes
        for policy in change.policies
    )


def _get_prerequisites(state: PolicyState | None) -> object:
    if state is None or b"prerequisites" not in state.packed:
        return None
    return state.policy.get("prerequisites")


_AT_ONCE: Final = 500
KEY_LENGTH_MAX: Final = 1_000
_OWN_PREFIX: Final = "flagkit:"
"""Requests of these names are the library's: what was done by them, nobody else can have done."""


def build_audit_content(
    draft: Draft, actor: str, reason: str, *, is_new: bool = False
) -> dict[str, Any]:
    """Return what the audit is to have of a request.

    The caller has checked the actor.

    The digest covers the seeds of segments, which are random. So a request that may be sent again
    has another digest besides, without them, which is the same each time.

    Args:
        draft: What is asked for.
        actor: Who asks.
        reason: Why.
        is_new: Whether nobody can send the request again.

    Raises:
        InvalidArgumentError: the reason is no text.
    """
    check_instance(reason, str, "reason", "pass text")
    content: dict[str, Any] = {
        "sent": datetime.now(UTC),
        "actor": actor,
        "reason": reason,
        "operations": draft.audit_form or encode_operations(draft.operations),
    }
    if draft.bypass_reason:
        content["glass"] = draft.bypass_reason
    content["digest"] = hash_request(content)
    if draft.listed_keys and not is_new:
        unseeded = draft.audit_form or encode_operations(draft.strip_seeds())
        content[UNSEEDED] = hash_request({**content, "operations": unseeded})
    return content


CommitFunction: TypeAlias = Callable[[Draft, str, Mapping[str, Any], float | None], Commit]
"""Commits a draft under the id of a request, with its content for the audit, within seconds."""


class RequestBuilder:
    """Builds drafts and requests for one writer, with its actor and its data keys."""

    def __init__(self, environment: str, actor: str, keys: DataKeys | None) -> None:
        self._environment = environment
        self.actor = actor
        self._keys = keys

    def create_draft(self) -> Draft:
        """Return a new draft that encrypts sensitive variants with the data keys."""
        return Draft(self._environment, self._keys)

    def resolve_actor(self, actor: str | None) -> str:
        """Return the actor of a request; the writer's own if the request names none."""
        return self.actor if actor is None else check_actor(actor)

    def build(self, draft: Draft, options: ChangeOptions) -> tuple[str, dict[str, Any]]:
        """Return the id of a request, and its content for the audit."""
        key = options.get("idempotency_key")
        request = uuid.uuid4().hex if key is None else check_idempotency_key(key)
        actor, reason = self.resolve_actor(options.get("actor")), options.get("reason", "")
        return request, build_audit_content(draft, actor, reason, is_new=key is None)


def check_same_request(
    request: str, recorded_digest: str, content: Mapping[str, Any], *, is_committed: bool
) -> None:
    """Refuse what is another request than the one on record, by the digests.

    Of one that was erased nobody can tell. If it was done, it is not done again.

    Raises:
        RequestConflictError: it is another.
    """
    if recorded_digest != compute_request_digest(content) and not (
        is_committed and recorded_digest == ERASED
    ):
        raise RequestConflictError(
            f"the idempotency key {request!r} was used before, for another request"
        )


def find_commit(reading: EnvironmentReader, request: str) -> Tip | None:
    """Return the tip that a request led to, None if it has not been committed.

    Raises:
        NotPendingError: it never will be, for it waited and was dropped.
    """
    done = reading.history.find_commit(request)
    if done is not None:
        return done
    dropped = reading.history.find_commit(format_drop_request(request))
    if dropped is not None:
        raise NotPendingError(
            f"the pending change {request!r} was dropped at revision {dropped.revision}: ask for it"
            " anew, under another idempotency key"
        )
    return None


def check_idempotency_key(key: object) -> str:
    """Return an idempotency key.

    Raises:
        InvalidArgumentError: the database cannot store it, or flagkit reserves its prefix.
    """
    if not isinstance(key, str) or not key:
        problem = f"is {key!r}: pass a string that names the request"
    elif key.startswith(_OWN_PREFIX):
        problem = f"is {key!r}: pass one that does not begin with {_OWN_PREFIX}"
    elif len(key) > KEY_LENGTH_MAX:
        problem = f"has {len(key):,} characters: pass {KEY_LENGTH_MAX:,} at most"
    elif key.encode(errors="ignore").decode() != key:
        problem = "holds a lone surrogate: pass characters that UTF-8 can encode"
    else:
        return str.__str__(key)
    raise InvalidArgumentError(f"idempotency_key {problem}")


def format_drop_request(request: str) -> str:
    """Return the request by which a pending one is dropped."""
    return f"{_OWN_PREFIX}drop {request}"


def format_closing_request(proposal: str, decision: str) -> str:
    """Return the request by which a proposal is closed: `decision` is reject, or withdraw."""
    return f"{_OWN_PREFIX}{decision} {proposal}"


def format_application_request(proposal: str) -> str:
    """Return the request by which a proposal is applied."""
    return f"{_OWN_PREFIX}apply {proposal}"


_log = Log("flagkit.writer")

T = TypeVar("T")

LOST_RACE_SECONDS, LOST_RACE_SECONDS_MAX = 0.02, 0.16
"""The bounds in seconds of the random pause after a lost race: the first one, and the largest."""
UNAVAILABLE_SECONDS_MAX = 0.5
LAG_MAX = timedelta(seconds=2)
"""How long a large change may be projected before others help."""


def retry_until(
    deadline: float, attempt: Callable[[], T | None], problem: str, *, pause_max: float
) -> T:
    """Return the first result of the attempts that is not None.

    The pauses are random, so that writers do not meet again. Their bound doubles up to `pause_max`.

    Raises:
        StoreUnavailableError: the deadline has passed; with `problem`, or that of the last attempt.
    """
    longest = LOST_RACE_SECONDS
    while True:
        try:
            found = attempt()
            pause, longest = longest, min(longest * 2, pause_max)
        except StoreUnavailableError:
            if time.monotonic() > deadline:
                raise
            found, pause = None, UNAVAILABLE_SECONDS_MAX
        if found is not None:
            return found
        if time.monotonic() > deadline:
            raise StoreUnavailableError(problem)
        time.sleep(random.uniform(0, pause))  # noqa: S311 - jitter, not secrets


class CommitResult(NamedTuple):
    """The tip that a request led to, and whether it changed anything or was skipped."""

    tip: Tip
    changed: bool = True


class CommitProtocol:
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
        self._lock = threading.Lock()

    def commit(
        self,
        draft: Draft,
        request: str,
        content: Mapping[str, Any],
        timeout: float | None = None,
        *,
        is_new: bool = False,
    ) -> CommitResult:
        """Make a revision of a draft, under a request's id; return the tip that it made.

        A draft that skips what changes nothing makes no revision then. The tip is the newest one.

        Args:
            draft: What is asked for.
            request: The id.
            content: What the audit is to have of it.
            timeout: Seconds, if other than the writer's.
            is_new: Whether nobody can have sent the request before.

        Raises:
            WriteError, NotFoundError, InvalidDocumentError: refused; nothing was written.
            StoreUnavailableError: the database cannot be reached, or others were always first.
        """
        prefetches = chain([None if is_new else request], repeat(request))
        lost: list[PlannedCommit] = []
        seconds = self._timeout if timeout is None else timeout
        deadline = time.monotonic() + seconds

        def attempt() -> CommitResult | None:
            # After an error nobody knows whether it was committed: this looks for the request.
            prefetch = build_prefetch(draft, next(prefetches))
            return self._attempt(draft, request, content, prefetch, lost)

        with self._lock:
            return retry_until(
                deadline,
                attempt,
                f"other writers won every race for {seconds:g} s: nothing was changed",
                pause_max=LOST_RACE_SECONDS_MAX,
            )

    def _attempt(
        self,
        draft: Draft,
        request: str,
        content: Mapping[str, Any],
        prefetch: Prefetch,
        lost_plans: list[PlannedCommit],
    ) -> CommitResult | None:
        """Try once. Return the tip that the request led to, None if it lost the race."""
        with self._store.open_reader(prefetch) as reading:
            # Nothing that rests on all of the history, as a rollback does.
            earlier = lost_plans.pop() if lost_plans and draft.audit_form is not None else None
            again = earlier and self._replan(reading, earlier, draft, request, content)
            try:
                planned = again or self.plan_commit(
                    reading, draft, request, content, is_new=prefetch.request is None
                )
            except AccessDeniedError as error:
                log_denial(self._store, reading.now, error, content["reason"], draft.operations)
                raise
            first_unprojected = reading.history.first_unprojected
            is_late = reading.history.projection_lag > LAG_MAX
        if (
            draft.should_skip_unchanged
            and planned.committed_as is None
            and not planned.change.policies
        ):
            return CommitResult(reading.tip, changed=False)
        if again is None and not self._record_request(draft, request, content, planned):
            return None
        if reading.history.unprojected_tip is not None:
            self._project_previous_tip()
        if planned.committed_as is not None:
            return CommitResult(planned.committed_as)
        change, pages = planned.change, planned.pages
        if pages and first_unprojected is not None:
            # One large change at a time is carried on; who makes the next one can wait.
            self._store.project_pages(first_unprojected)
            return None
        if again is None:
            self._store.add_parts(planned.parts)
            self._store.add_pages(pages)
        lost_plans.append(planned)
        unprojected = change.revision if pages else first_unprojected
        if not self._store.compare_and_set(
            reading.tip, change, planned.buckets, pages, unprojected
        ):
            return None
        self._project(planned, first_unprojected if is_late else None)
        return CommitResult(change.tip)

    @property
    def has_guards(self) -> bool:
        """True if there are guards to ask."""
        return bool(self._guards)

    def check_changes(
        self, reading: EnvironmentReader, changes: Sequence[PolicyChange], actor: str, reason: str
    ) -> None:
        """Refuse changes that their actor may not make, or that a guard refuses.

        Nothing is written, and no token is taken.

        Raises:
            AccessDeniedError, GuardError: refused.
        """
        if GRANTS in reading.access:
            check_access(reading, actor, list_required_permissions((), changes))
        if self._guards:
            planned = build_planned_changes(changes, reading, actor=actor, reason=reason)
            check_guards(self._guards, planned)

    def _record_request(
        self, draft: Draft, request: str, content: Mapping[str, Any], planned: PlannedCommit
    ) -> bool:
        """Record a request; return whether it is on record as it would be committed now.

        Raises:
            RequestConflictError: another one is on record.
        """
        terms, is_done = draft.commit_policy, planned.committed_as is not None
        if terms.has_own_request and is_done:
            return True
        asked = terms.complete_audit_content(content)
        recorded = self._store.add_request(request, asked)
        if terms.has_own_request:
            # Another attempt was first, with other approvals. The next reading has its record.
            return recorded == compute_request_digest(asked)
        check_same_request(request, recorded, content, is_committed=is_done)
        return True

    def _project_previous_tip(self) -> None:
        """See to it that ledger and flags have the tip before the head forgets it."""
        # Who committed it did not wait for a majority, which has it by now, with the request; or is
        # dead.
        with self._store.open_reader() as reading:
            unprojected, pages = reading.history.unprojected_tip, reading.history.pages
        if unprojected is not None:
            self._store.project(unprojected, pages)

    def _project(self, planned: PlannedCommit, overdue_revision: int | None) -> None:
        """Bring what was committed to where it is read, and a page of what was not, for too long.

        That is a change on pages, whose writer may be dead; so it comes to an end.
        """
        change, pages = planned.change, planned.pages
        try:
            self._store.project(change, pages, is_mine=True)
            if pages:
                self._store.project_own_pages(change.revision, pages, planned.encoded)
            elif overdue_revision is not None:
                self._store.project_pages(overdue_revision, 1)
        except StoreError as error:
            # It is committed all the same, and the next writer projects it.
            _log.warning(
                "revision %s is committed and not yet projected: %s", change.revision, error
            )

    def _replan(
        self,
        reading: EnvironmentReader,
        lost_plan: PlannedCommit,
        draft: Draft,
        request: str,
        content: Mapping[str, Any],
    ) -> PlannedCommit | None:
        """Return what was planned upon an earlier revision, if it still holds upon this one."""
        if not lost_plan.is_still_valid(reading, request):
            return None
        policies = lost_plan.change.policies
        return lost_plan._replace(
            change=build_next_change(reading.tip, request, reading.now, policies),
            buckets=self._check_permissions(draft, reading, [*policies], content),
            base_tip=reading.tip,
        )

    def plan_commit(
        self,
        reading: EnvironmentReader,
        draft: Draft,
        request: str,
        content: Mapping[str, Any],
        *,
        is_new: bool = False,
        is_preview: bool = False,
    ) -> PlannedCommit:
        """Return what a request would do at a reading's revision, with all checks made.

        A preview does not make the key of the rate limits.
        """
        done = None if is_new else find_commit(reading, request)
        planned, buckets = ChangePlan([], {}), dict[str, int]()
        if done is None:
            draft.commit_policy.check(reading)
            planned = plan(
                draft.operations, reading, reading.tip.revision, draft.parts, draft.listed_keys
            )
            draft.encrypter.check(planned.changes)
            reading.history.check_newest(planned.changes)
            buckets = self._check_permissions(
                draft, reading, planned.changes, content, is_preview=is_preview
            )
        change = build_next_change(reading.tip, request, reading.now, planned.changes)
        pages = split_pages(change.policies)
        ready = encode_change(change, content, pages, planned.flags, draft.preencoded)
        return PlannedCommit(
            done, change, planned.parts, buckets, pages, planned.flags, ready, reading.tip
        )

    def _check_permissions(
        self,
        draft: Draft,
        reading: EnvironmentReader,
        changes: list[PolicyChange],
        content: Mapping[str, Any],
        *,
        is_preview: bool = False,
    ) -> dict[str, int]:
        """Refuse what its actor may not do, or guards or limits stop; return the buckets after."""
        actor, reason = content["actor"], content["reason"]
        terms, has_bypass = draft.commit_policy, bool(draft.bypass_reason)
        needed = terms.list_required_permissions(
            draft.operations, changes, is_bypassing_guards=has_bypass
        )
        approvers = terms.get_approvers(reading, actor, needed, changes)
        if self._guards and not has_bypass:
            planned = build_planned_changes(
                changes,
                reading,
                actor=actor,
                reason=reason,
                approvers=approvers,
            )
            check_guards(self._guards, planned)
        epoch = reading.tip.epoch
        return compute_buckets(
            reading,
            actor,
            lambda: self._store.read_bucket_key(epoch, make=not is_preview),
            is_limited=terms.is_limited(needed),
        )
