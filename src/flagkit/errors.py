"""Every exception of flagkit.

    FlagkitError
      ConfigurationError(ValueError)     a setting is missing or makes no sense
      InvalidArgumentError(TypeError)    a call cannot take an argument that it got
      MissingExtraError(ImportError)     an optional part is not installed
      NotReadyError(TimeoutError)        no data came within the time to wait
      ClosedError(RuntimeError)          used after close
      InvalidContextError(TypeError)     the context is no mapping, text or None
      InvalidDocumentError(ValueError)   .path: where in the policy document, .remedy: what to do
      EncryptionError                    a sensitive value cannot be encrypted or decrypted
      EmbeddedMongoError(RuntimeError)   no mongod was found, or it did not start
      NotFoundError(LookupError)         nothing has the name that was asked for
        EnvironmentNotFoundError
        FlagNotFoundError
        SegmentNotFoundError
        GrantNotFoundError               the environment has no grants yet
        RevisionNotFoundError
        ProposalNotFoundError
      WriteError
        FlagExistsError
        VersionConflictError             .expected .actual .actor .time: who wrote first; read again
        BrokenReferenceError             also an InvalidDocumentError: a prerequisite dangles, or
                                         prerequisites form a cycle
        AccessDeniedError                .actor .action .key .roles: what the actor may not do,
                                         and who may
        GuardError                       .guard .path .remedy .retry_at: a guard refused
        RateLimitedError                 .whose .retry_at .retry_after: too many changes; later
        RequestConflictError             an idempotency key used for two different requests
        NotPendingError(LookupError)     no such change waits: its transaction is not committed, or
                                         was aborted; or it was dropped
        ProposalClosedError              it was rejected, withdrawn or applied
        ProposalVoidError                .key: a flag that it touches has moved since; propose anew
        NotApprovedError                 it lacks approvals; or who proposed it would approve it
      StoreError                         __cause__ is the driver's error
        StoreUnavailableError            try again later
        StreamsUnavailableError          changes cannot be watched here, only asked for
        HistoryLostError                 the ledger does not continue what the reader holds
      SnapshotFormatError(ValueError)    a snapshot's bytes are foreign, damaged or too new
      EvaluationDigestError(ValueError)  the digest of an evaluation is malformed or was altered

A change of a flag that does not exist raises FlagNotFoundError, which is no WriteError.
Evaluation raises none of them: it answers with `Evaluation.error_code`.
"""

import datetime as dt

from flagkit._core.printable import to_printable


class FlagkitError(Exception):
    """The base of all that flagkit raises.

    `str()` shows control and invisible characters as escapes, for messages quote stored text. So a
    message is one line, wherever it is printed or logged. `args` and attributes keep the text.
    """

    def __str__(self) -> str:
        return to_printable(super().__str__())


class ConfigurationError(FlagkitError, ValueError):
    """A setting is missing or makes no sense."""


class InvalidArgumentError(FlagkitError, TypeError):
    """A call cannot take an argument: its name is unknown, or its type or value is wrong."""


class MissingExtraError(FlagkitError, ImportError):
    """An optional part of flagkit is needed and not installed."""


class NotReadyError(FlagkitError, TimeoutError):
    """Nothing came within the time that the caller was ready to wait."""


class ClosedError(FlagkitError, RuntimeError):
    """A client or writer was used after `close`."""


class InvalidContextError(FlagkitError, TypeError):
    """The context is not a mapping, a string or None."""


class InvalidDocumentError(FlagkitError, ValueError):
    """A policy document is not valid; nothing was written.

    `path` names the place, as in `rules[0].when.country`; it is empty for the document itself.
    `remedy` says what to do about it. `subject` names the document, where that is known.
    """

    def __init__(self, path: str, problem: str, remedy: str, *, subject: str = "") -> None:
        self.path = path
        self.problem = problem
        self.remedy = remedy
        self.subject = subject
        super().__init__(path, problem, remedy)

    def __str__(self) -> str:
        place = ": ".join(part for part in (self.subject, self.path or "document") if part)
        return to_printable(f"{place}: {self.problem}. {self.remedy}")

    def about(self, subject: str) -> "InvalidDocumentError":
        """Return the same error with the document named."""
        return type(self)(self.path, self.problem, self.remedy, subject=subject)


class EncryptionError(FlagkitError):
    """A value of a sensitive variant cannot be encrypted or decrypted. It never says the value."""


class EmbeddedMongoError(FlagkitError, RuntimeError):
    """The embedded MongoDB server was not found or did not start."""


class NotFoundError(FlagkitError, LookupError):
    """Nothing has the name, or the number, that was asked for."""


class EnvironmentNotFoundError(NotFoundError):
    """The database has no such environment: nobody created it, or its name is mistyped."""


class FlagNotFoundError(NotFoundError):
    """No flag has this key and region."""


class SegmentNotFoundError(NotFoundError):
    """No segment has this key."""


class GrantNotFoundError(NotFoundError):
    """The environment has no grants yet."""


class RevisionNotFoundError(NotFoundError):
    """The ledger has no such revision, or the flag did not exist at it."""


class ProposalNotFoundError(NotFoundError):
    """No proposal has this id."""


class WriteError(FlagkitError):
    """A change was refused; nothing was written."""


class FlagExistsError(WriteError):
    """A flag with this key and region exists already."""


class VersionConflictError(WriteError):
    """The flag is no longer at the version that the caller expected.

    `actor` is who wrote the version that it is at, and `time` when, in UTC; None where not known.
    """

    def __init__(
        self,
        key: str,
        expected: int,
        actual: int,
        author: tuple[str, dt.datetime] | None = None,
    ) -> None:
        self.key = key
        self.expected = expected
        self.actual = actual
        self.actor = None if author is None else author[0]
        self.time = None if author is None else author[1]
        wrote = (
            f", which {self.actor!r} wrote at {self.time:%Y-%m-%d %H:%M:%S} UTC" if author else ""
        )
        super().__init__(
            f"{key} is at version {actual}{wrote}, expected {expected}: read it again and retry"
        )


class BrokenReferenceError(WriteError, InvalidDocumentError):
    """The change would leave a prerequisite dangling, or close a cycle of them."""


class AccessDeniedError(WriteError):
    """The actor has no role that may do this; it was logged.

    `action` is edit, pause, release, break glass or grant; `key` the flag or segment, "" for all of
    them, or a namespace if `action` is grant. `roles` are those that would do.
    """

    def __init__(
        self, actor: str, action: str, key: str, environment: str, roles: tuple[str, ...]
    ) -> None:
        self.actor = actor
        self.action = action
        self.key = key
        self.environment = environment
        self.roles = roles
        what = key or "everything"
        if action == "grant":
            what = f"roles and limits of {what}"
        elif action == "break glass":
            what = f"for {what}"
        super().__init__(
            f"{actor!r} may not {action} {what} in {environment}: that takes the role"
            f" {' or '.join(roles)} there, which an admin can grant"
        )


class GuardError(WriteError):
    """A guard of the writer refused the change.

    `guard` is its name, `path` the place in the policy, `remedy` says what to do. `retry_at` is
    when it would let the change pass, by the server's clock, where time alone is in the way.
    """

    def __init__(
        self,
        guard: str,
        path: str,
        problem: str,
        remedy: str,
        *,
        subject: str = "",
        retry_at: dt.datetime | None = None,
    ) -> None:
        self.retry_at = retry_at
        self.guard = guard
        self.path = path
        self.problem = problem
        self.remedy = remedy
        self.subject = subject
        place = ": ".join(part for part in (subject, path) if part)
        super().__init__(f"{place}: {problem}. {remedy} (guard {guard})")


class RateLimitedError(WriteError):
    """There were too many changes.

    `whose` says of whom: actor, or environment. `retry_at` is when there is room for another, by
    the server's clock, and `retry_after` is in how many seconds.
    """

    def __init__(self, whose: str, retry_at: dt.datetime, retry_after: float) -> None:
        self.whose = whose
        self.retry_at = retry_at
        self.retry_after = retry_after
        super().__init__(
            f"the limit on changes of this {whose} is reached: try again in {retry_after:.3f} s, at"
            f" {retry_at.isoformat()}; to pause is always possible"
        )


class RequestConflictError(WriteError):
    """The idempotency key was used before, for a different request."""


class NotPendingError(WriteError, LookupError):
    """No such change waits to be sequenced.

    Its transaction is not committed yet, or was aborted; or the change was dropped.
    """


class ProposalClosedError(WriteError):
    """The proposal was rejected, withdrawn or applied: nothing more can become of it."""


class ProposalVoidError(WriteError):
    """Flags that the proposal changes or depends on have changed since: propose it again.

    A flag depends on the segments and prerequisites that it refers to, at any depth.

    `key` names it. `actor` is who moved it and `time` when, in UTC; None where not known.
    """

    def __init__(self, key: str, problem: str, author: tuple[str, dt.datetime] | None) -> None:
        self.key = key
        self.actor = None if author is None else author[0]
        self.time = None if author is None else author[1]
        wrote = f" ({self.actor!r} at {self.time:%Y-%m-%d %H:%M:%S} UTC)" if author else ""
        super().__init__(
            f"the proposal is void: {key} {problem}{wrote}: look at it again, and propose anew"
        )


class NotApprovedError(WriteError):
    """The proposal lacks approvals that count, or who proposed it would approve it."""


class StoreError(FlagkitError):
    """The database refused or failed; `__cause__` is the driver's error."""


class StoreUnavailableError(StoreError):
    """The database cannot be reached, or broke off: try again later."""


class StreamsUnavailableError(StoreError):
    """There are no change streams: no replica set, no privilege, or a database without them."""


class HistoryLostError(StoreError):
    """The ledger does not continue what the reader holds: load a new base."""


class SnapshotFormatError(FlagkitError, ValueError):
    """The bytes of a snapshot are none of flagkit's, damaged, or of a format not known here."""


class EvaluationDigestError(FlagkitError, ValueError):
    """The digest of an evaluation is malformed, was altered, or cannot be replayed."""
