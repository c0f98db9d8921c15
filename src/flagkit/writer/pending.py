"""Pending changes: requested inside the caller's transaction, and sequenced after its commit.

The transaction inserts only the request, so it takes no revision and no lock. Any writer sequences
the request later by its id. The compare-and-set applies it once, whoever tries and however often.
Changes of the same flags keep the order in which they were requested.
"""

import contextlib
import random
import threading
import time
from collections.abc import Collection, Generator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, Unpack

from msgspec import Struct

from flagkit._core.arguments import check_seconds, refuse_unknown_in_methods
from flagkit._core.background import BackgroundThread, Log, LogOnce
from flagkit._core.model.changes import GRANTS, PolicyId
from flagkit._core.storage.documents import check_request_fits
from flagkit._core.storage.layout import AUDIT
from flagkit._core.storage.reader import EnvironmentReader
from flagkit._core.storage.requests import Session
from flagkit._core.storage.store import Store
from flagkit._core.storage.validation import translate_form_errors
from flagkit.errors import (
    ClosedError,
    FlagkitError,
    GuardError,
    InvalidArgumentError,
    InvalidDocumentError,
    NotPendingError,
    RateLimitedError,
    StoreError,
    StoreUnavailableError,
)
from flagkit.writer.access import CommitPolicy, Permission
from flagkit.writer.commit import (
    LOST_RACE_SECONDS,
    CommitFunction,
    RequestBuilder,
    check_same_request,
    find_commit,
    format_drop_request,
    retry_until,
)
from flagkit.writer.draft import Commit, Draft, PendingChange
from flagkit.writer.ledger import format_actions
from flagkit.writer.operations import (
    build_decision_content,
    check_readable,
    decode_operations,
    hash_request,
    list_policies,
)
from flagkit.writer.shortcuts import ChangeOptions, ChangeShortcuts

_log = Log("flagkit.writer")

SWEEP_CHECK_SECONDS: Final = 10.0
"""So often at most a writer looks, after a change of its own, whether anything waits."""
CLOSE_SECONDS: Final = 5.0
BACKOFF_SECONDS_MAX: Final = 60.0


class PendingRequest(Struct, frozen=True):
    """A change that waits to be sequenced, or was refused.

    `since` is when it was asked for, and `actions` are sentences such as "pause shop.search".
    `tries` counts those that failed; `trouble` says why the last one did. One that was `refused`
    no sweep tries again: commit it when what is wrong is mended, or drop it. Others are tried from
    `not_before` on.
    """

    request: str
    since: datetime
    actor: str
    reason: str
    actions: tuple[str, ...]
    tries: int = 0
    not_before: datetime | None = None
    trouble: str = ""
    refused: bool = False


class SweepResult(Struct, frozen=True):
    """The commits of a sweep, and how many requests were refused or still wait."""

    commits: tuple[Commit, ...]
    refused: int
    waiting: int


class _DropPending(CommitPolicy):
    """The terms of dropping a change: it is not made yet, and who drops it may edit its flags."""

    def __init__(self, request: str, permissions: Sequence[Permission]) -> None:
        self._request = request
        self._permissions = permissions

    def check(self, reading: EnvironmentReader) -> None:
        done = reading.history.find_commit(self._request)
        if done is not None:
            raise NotPendingError(
                f"the change {self._request!r} was made as revision {done.revision}: roll it back"
                " instead"
            )

    def list_required_permissions(self, *_: object, **__: object) -> list[Permission]:
        return [*self._permissions]

    def is_limited(self, permissions: Collection[Permission]) -> bool:
        # It changes no access, whatever access it takes.
        del permissions
        return True


class PendingQueue:
    """The pending changes of an environment, as `writer.pending` has them.

    `Writer.in_transaction` inserts requests. The queue makes revisions of them after their
    transactions.
    """

    def __init__(self, store: Store, requests: RequestBuilder, commit: CommitFunction) -> None:
        self._store = store
        self._requests = requests
        self._commit_draft = commit
        self._last_check = -SWEEP_CHECK_SECONDS
        self._thread: BackgroundThread | None = None
        self._stop = threading.Event()
        self._log_once = LogOnce("flagkit.writer", "pending changes are not swept: %s")

    def insert(self, session: Session, draft: Draft, options: ChangeOptions) -> PendingChange:
        """Insert the request of a draft into the transaction of a session.

        Raises:
            RequestConflictError: its idempotency key names another request.
        """
        draft.reuse_seeds(self._store)
        request, content = self._requests.build(draft, options)
        check_readable(draft.operations)
        draft.encrypter.check_verified()
        check_request_fits(content)
        # Outside the transaction: a part is named by its content, so an orphan does no harm.
        self._store.add_parts(draft.parts)
        touched = list_policies(draft.operations)
        digest = self._store.pending.insert(session, request, content, touched)
        check_same_request(request, digest, content, is_committed=False)
        return PendingChange(request, self.commit)

    def commit(self, request: str, timeout: float = 30.0) -> Commit:
        """Make the revision of a pending change, as `PendingChange.commit` does.

        Any process may do so for any other. Earlier pending changes of the same flags come first.
        """
        deadline = time.monotonic() + check_seconds(timeout)
        # The caller's transaction may be committed, and the majority may not have it yet.
        return retry_until(
            deadline,
            lambda: self._try_commit(request, deadline),
            f"the majority has not got the pending change {request!r} yet",
            pause_max=LOST_RACE_SECONDS,
        )

    def _try_commit(self, request: str, deadline: float) -> Commit | None:
        """Try once; return None where the request is there, and not for the majority yet."""
        asked = self._store.pending.find(request)
        if asked is None:
            with self._store.open_reader() as reading:
                done = find_commit(reading, request)
            if done is not None:
                return Commit(done.revision, done.time, request)
            if self._store.pending.is_present(request):
                return None
            raise NotPendingError(
                f"there is no pending change {request!r}: its transaction is not committed, or was"
                " aborted"
            )
        for document in _list_blockers(self._store.pending.find_blockers(asked), asked):
            # Whoever waits for time to pass holds up what comes after; who was refused does not.
            with contextlib.suppress(_RefusedError, NotPendingError):
                self._sequence(document, deadline - time.monotonic())
        try:
            return self._sequence(asked, deadline - time.monotonic())
        except _RefusedError as refused:
            raise refused.error from None

    def sweep(self) -> SweepResult:
        """Make the revisions of all pending changes, in order, whoever requested them.

        A change waits if an earlier one of the same flags has to go on waiting.

        Raises:
            StoreUnavailableError: the database cannot be reached. Nothing is lost.
        """
        commits: list[Commit] = []
        refused, waiting = 0, 0
        held: list[set[PolicyId] | None] = []
        documents = self._store.pending.read_pending()
        if not documents:
            self._store.read_tip()
        for document in documents:
            if self._stop.is_set():
                break
            not_before, touched = document.get("not_before"), _get_touched_policies(document)
            try:
                if (not_before is None or not_before <= document["now"]) and not any(
                    _is_overlapping(touched, other) for other in held
                ):
                    commits.append(self._sequence(document, None))
                    continue
            except _RefusedError:
                refused += 1
                continue
            except NotPendingError:
                continue
            except (StoreUnavailableError, ClosedError):
                raise
            except FlagkitError as error:
                _log.info(
                    "the pending change %s is tried again: %s", _get_request_id(document), error
                )
            held.append(touched)
            waiting += 1
        return SweepResult(tuple(commits), refused, waiting)

    def drop(self, request: str, *, reason: str = "", actor: str | None = None) -> Commit:
        """Drop a pending change, so that nothing ever makes it. The drop is itself a revision.

        Raises:
            NotPendingError: no pending change has this id, or it was made meanwhile.
            AccessDeniedError: the actor has no role to edit the flags of the change.
        """
        draft = self._requests.create_draft()
        _, content = self._requests.build(draft, {"reason": reason, "actor": actor})
        document = self._store.pending.find(request)
        if document is None:
            self._store.read_tip()
            raise NotPendingError(
                f"there is no pending change {request!r}: see writer.reader.pending()"
            )
        draft.commit_policy = _DropPending(
            request, _list_drop_permissions(_get_touched_policies(document))
        )
        content = build_decision_content(content, "drop_pending", request)
        commit = self._commit_draft(draft, format_drop_request(request), content, None)
        self._store.pending.remove(request)
        return commit

    def maybe_sweep(self) -> None:
        """Sweep in the background, if anything waits, and if the last look was a while ago."""
        now = time.monotonic()
        running = self._thread is not None and self._thread.is_running
        if running or now - self._last_check < SWEEP_CHECK_SECONDS:
            return
        self._last_check = now
        try:
            if not self._store.pending.is_due():
                return
        except Exception as error:  # noqa: BLE001 - what looks is a change that is made already
            self._on_failure(error)
            return
        # The next look is the next try.
        sweeper = BackgroundThread(
            "flagkit-sweep",
            self._sweep_in_background,
            self._on_failure,
            repeats=False,
            is_real=False,
        )
        self._thread = sweeper
        sweeper.start()

    def close(self) -> None:
        """Leave off a sweep, and wait for it, for CLOSE_SECONDS at most."""
        self._stop.set()
        if self._thread is not None:
            self._thread.close(CLOSE_SECONDS)

    def _sequence(self, document: Mapping[str, Any], timeout: float | None) -> Commit:
        request = _get_request_id(document)
        waiting = self._store.pending
        try:
            commit = self._commit_request(request, timeout)
        except NotPendingError:
            # It was dropped, and who did was killed before removing it.
            waiting.remove(request)
            raise
        except (StoreUnavailableError, ClosedError):
            raise
        except Exception as error:
            later = _find_retry_time(error, document)
            if later is not None:
                waiting.retry_later(request, later, str(error))
                raise
            waiting.mark_refused(request, str(error))
            _log.warning("the pending change %s was refused: %s", request, error)
            raise _RefusedError(error) from error
        waiting.remove(request)
        return commit

    def _commit_request(self, request: str, timeout: float | None) -> Commit:
        content = self._store.read_requests([request]).get(request)
        if content is None:
            raise InvalidDocumentError(
                "", "is not in the audit: it was removed past the writer", "Ask for it anew"
            )
        del content["_id"]
        if hash_request(content) != content["digest"]:
            raise InvalidDocumentError(
                "", "was changed past the writer since it was asked for", "Ask for it anew"
            )
        draft = self._requests.create_draft()
        draft.operations = decode_operations(content["operations"])
        draft.bypass_reason = content.get("glass", "")
        return self._commit_draft(draft, request, content, timeout)

    def _sweep_in_background(self) -> None:
        self.sweep()
        self._log_once.clear()

    def _on_failure(self, error: Exception) -> None:
        if not self._stop.is_set():
            self._log_once.report(error)


@refuse_unknown_in_methods
class TransactionWriter(ChangeShortcuts[PendingChange]):
    """Requests changes inside a transaction of the caller's own client.

    `Writer.in_transaction` returns it. Each method inserts one request into the transaction and
    returns a PendingChange. Its `commit` makes the revision after the transaction. MongoDB cannot
    store a function, so there is no `edit`: call `update` with `expected_version`.
    """

    def __init__(self, queue: PendingQueue, requests: RequestBuilder, session: Session) -> None:
        self._queue = queue
        self._requests = requests
        self._session = session

    @contextlib.contextmanager
    def change(self, **options: Unpack[ChangeOptions]) -> Generator[Draft]:
        """Collect operations that become one request when the block ends without an error.

        The draft's `pending` is then the PendingChange.

            with writer.in_transaction(session).change(reason="orders moved") as change:
                change.pause("orders.old")
                change.resume("orders.new")
            session.commit_transaction()
            change.pending.commit()

        Raises:
            ConfigurationError: the session is in no transaction.
            InvalidDocumentError, RequestConflictError: the request is refused. The transaction does
                not contain it.
            EnvironmentNotFoundError: the session belongs to a cluster without the environment.
        """
        if options.get("skip_unchanged"):
            raise InvalidArgumentError(
                "skip_unchanged cannot be used in a transaction, because the change is compared"
                " after it: leave it out"
            )
        draft = self._requests.create_draft()
        yield draft
        draft.pending = self._queue.insert(self._session, draft, options)

    def _get_result(self, draft: Draft) -> PendingChange:
        assert draft.pending is not None, "the block ended without error"
        return draft.pending


class _RefusedError(Exception):
    """A pending change was refused for good, and marked so."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        super().__init__(str(error))


def list_pending(store: Store) -> list[PendingRequest]:
    """Return the pending changes and the refused ones, in order."""
    documents = store.pending.read_all()
    if not documents:
        # An environment that does not exist has no pending changes, either.
        store.read_tip()
    requests = store.read_requests(map(_get_request_id, documents))
    found: list[PendingRequest] = []
    for document in documents:
        request = requests.get(_get_request_id(document), {})
        found.append(
            PendingRequest(
                _get_request_id(document),
                document["since"],
                request.get("actor", ""),
                request.get("reason", ""),
                _format_actions(request),
                document.get("tries", 0),
                document.get("not_before"),
                document.get("trouble", ""),
                document.get("refused", False),
            )
        )
    return found


def _find_retry_time(error: Exception, document: Mapping[str, Any]) -> datetime | None:
    """Return when to try again after a refusal that passes with time; None if it does not."""
    retry_at = error.retry_at if isinstance(error, RateLimitedError | GuardError) else None
    if retry_at is not None:
        return retry_at
    if isinstance(error, StoreError):
        # Something else was changed past the writer, and may be mended.
        seconds = min(BACKOFF_SECONDS_MAX, 2.0 ** min(document.get("tries", 0), 10))
        now: datetime = document["now"]
        return now + timedelta(seconds=seconds * random.uniform(0.5, 1))  # noqa: S311 - jitter
    return None


def _list_blockers(
    predecessors: Sequence[Mapping[str, Any]], request: Mapping[str, Any]
) -> list[Mapping[str, Any]]:
    """Return what must be sequenced before a request: what touches the same flags, and so on."""
    touched = [_get_touched_policies(request)]
    found: list[Mapping[str, Any]] = []
    for document in reversed(predecessors):
        mine = _get_touched_policies(document)
        if any(_is_overlapping(mine, other) for other in touched):
            found.append(document)
            touched.append(mine)
    return found[::-1]


def _get_touched_policies(document: Mapping[str, Any]) -> set[PolicyId] | None:
    """Return the flags and segments that a request touches; None for all."""
    touched = document["touched"]
    return None if touched is None else {(item["region"], item["key"]) for item in touched}


def _is_overlapping(one: set[PolicyId] | None, other: set[PolicyId] | None) -> bool:
    return one is None or other is None or not one.isdisjoint(other)


def _list_drop_permissions(touched: set[PolicyId] | None) -> list[Permission]:
    if not touched:
        return [("edit", "")]
    return [("grant", "") if region == GRANTS[0] else ("edit", key) for region, key in touched]


def _format_actions(request: Mapping[str, Any]) -> tuple[str, ...]:
    with translate_form_errors(AUDIT, request):
        return format_actions(request.get("operations", ()))


def _get_request_id(document: Mapping[str, Any]) -> str:
    return str(document["_id"]["request"])
