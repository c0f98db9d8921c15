"""Requests: whether what is sent again is the same, and the audit still has what was asked for.

The hash chain has the request's id. So the audit may lack nothing that the ledger has, and what was
asked must be what its digest was made of, unless it was erased.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from flagkit.changes import Tip
from flagkit.errors import InvalidDocumentError, NotPendingError, RequestConflictError
from flagkit.model.values import text
from flagkit.storage.layout import ERASED, UNSEEDED, comparable_digest
from flagkit.storage.reading import Reading
from flagkit.writer.drafts import Draft
from flagkit.writer.recorded import documents_of, request_digest

_AT_ONCE: Final = 500
KEY_LENGTH_MAX: Final = 1_000
_OWN: Final = "flagkit:"
"""Requests of these names are the library's: what was done by them, nobody else can have done."""


def content_of(draft: Draft, actor: str, reason: str, *, is_new: bool = False) -> dict[str, Any]:
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
        InvalidDocumentError: the reason is no text.
    """
    if not isinstance(reason, str):  # pyright: ignore[reportUnnecessaryIsInstance] - not all callers check types
        raise InvalidDocumentError("reason", f"is {reason!r}", "Write text")
    content: dict[str, Any] = {
        "sent": datetime.now(UTC),
        "actor": actor,
        "reason": reason,
        "operations": draft.recorded or documents_of(draft.operations),
    }
    if draft.glass:
        content["glass"] = draft.glass
    content["digest"] = request_digest(content)
    if draft.lists and not is_new:
        unseeded = draft.recorded or documents_of(draft.unseeded())
        content[UNSEEDED] = request_digest({**content, "operations": unseeded})
    return content


def check_same(request: str, recorded: str, content: Mapping[str, Any], *, done: bool) -> None:
    """Refuse what is another request than the one on record, by the digests.

    Of one that was erased nobody can tell. If it was done, it is not done again.

    Raises:
        RequestConflictError: it is another.
    """
    if recorded != comparable_digest(content) and not (done and recorded == ERASED):
        raise RequestConflictError(
            f"the idempotency key {request!r} was used before, for another request"
        )


def made_by(reading: Reading, request: str) -> Tip | None:
    """Return the tip that a request led to, None if it has not been committed.

    Raises:
        NotPendingError: it never will be, for it waited and was dropped.
    """
    done = reading.commit_of(request)
    dropped = None if done is not None else reading.commit_of(drop_of(request))
    if dropped is not None:
        raise NotPendingError(
            f"the pending change {request!r} was dropped at revision {dropped.revision}: ask for it"
            " anew, under another idempotency key"
        )
    return done


def checked_key(key: object) -> str:
    """Return an idempotency key, if it can be one."""
    if not isinstance(key, str) or not key:
        raise InvalidDocumentError(
            "idempotency_key", f"is {key!r}", "Write a string that names the request"
        )
    if key.startswith(_OWN):
        raise InvalidDocumentError(
            "idempotency_key", f"is {key!r}", f"Write one that does not begin with {_OWN}"
        )
    if len(key) > KEY_LENGTH_MAX:
        raise InvalidDocumentError(
            "idempotency_key",
            f"has {len(key):,} characters",
            f"Write {KEY_LENGTH_MAX:,} at most",
        )
    return text(key, "idempotency_key")


def drop_of(request: str) -> str:
    """Return the request by which a pending one is dropped."""
    return f"{_OWN}drop {request}"


def closing_of(proposal: str, says: str) -> str:
    """Return the request by which a proposal is closed: `says` is reject, or withdraw."""
    return f"{_OWN}{says} {proposal}"


def application_of(proposal: str) -> str:
    """Return the request by which a proposal is applied."""
    return f"{_OWN}apply {proposal}"
