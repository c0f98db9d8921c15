"""Commits: what came of a change, or will."""

from collections.abc import Callable
from datetime import datetime

from msgspec import Struct


class Commit(Struct, frozen=True):
    """A committed change: its revision, the server's time of it (UTC), and the request's id.

    `changed` is False if nothing had to be changed and the change was to be skipped then. The
    revision and its time are those of the newest revision in that case.
    """

    revision: int
    time: datetime
    request: str
    changed: bool = True


class PendingChange:
    """A change that was asked for in a transaction.

    `request` names it: `writer.pending_change(request)` is the same in any other process.
    """

    def __init__(self, request: str, commit: Callable[[str, float], Commit]) -> None:
        self.request = request
        self._commit = commit

    def commit(self, timeout: float = 30.0) -> Commit:
        """Sequence the change, once its transaction is committed; return its Commit.

        Pending changes of the same flags that were asked for before it are sequenced before it.
        Called again, or where a sweep was first, it returns the same Commit.

        Raises:
            NotPendingError: its transaction is not committed, or was aborted; or it was dropped.
            WriteError, InvalidDocumentError: it was refused. What passes with time (a rate limit,
                a freeze) is tried again by sweeps; anything else only by `commit`.
            StoreUnavailableError: the database cannot be reached. The change is not lost.
        """
        return self._commit(self.request, timeout)

    def __repr__(self) -> str:
        return f"PendingChange({self.request!r})"
