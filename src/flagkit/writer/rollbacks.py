"""Rollbacks: what a flag, a segment or a whole environment was at a revision, made anew.

Content and salts come back, never version, time or actor; and what comes back is checked as any
change is.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from flagkit.changes import ACCESS, SEGMENTS, Change, PolicyId, PolicyState
from flagkit.errors import InvalidDocumentError, RevisionNotFoundError
from flagkit.model import decode
from flagkit.model.grants import decode_grants
from flagkit.model.segments import decode_segment
from flagkit.writer.operations import Earlier, Next, Operation


class History(Protocol):
    """The changes that led to where an environment stands."""

    def changes(self, after: int = 0) -> Iterable[Change]:
        """Yield those after a revision, in order; without the unledgered one."""
        ...

    def check_told(self, revision: int) -> None:
        """Refuse to tell what was at a revision if the ledger does not reach back to it."""
        ...

    @property
    def unledgered(self) -> Change | None:
        """The newest change, if it is not among the others yet."""
        ...


class Rollback(Operation, frozen=True, tag="rollback", kw_only=True):
    """Give a flag, or a segment, the content that it had at a revision; deleted ones come back.

    A deleted one has the version that it had last.
    """

    to: int

    def next(self, before: PolicyState | None, earlier: Earlier, /) -> Next:
        """Return the flag, segment or grants as it was; never its version, which goes on."""
        last = earlier.last(self.policy_id) if before is None else None
        if last is None:
            self._existing(before, earlier)
        else:
            self._check_version(last, earlier)
        then = earlier.at(self.policy_id, self.to)
        if then is None:
            if self.region == ACCESS:
                raise RevisionNotFoundError(f"nothing was granted yet at revision {self.to}")
            raise RevisionNotFoundError(f"{self.key!r} did not exist at revision {self.to}")
        return _decoded(self.region, then.policy)


class RollbackAll(Operation, frozen=True, tag="rollback_all", kw_only=True):
    """Give a whole environment the content that it had at a revision; see `expanded`."""

    key: str = ""
    to: int


class Reinstate(Operation, frozen=True, tag="reinstate", kw_only=True):
    """Give a flag, or a segment, some content, or delete it if there is none. Never recorded."""

    policy: dict[str, Any] | None

    def next(self, _before: PolicyState | None, _earlier: Earlier, /) -> Next | None:
        """Return the flag, or segment, of that content."""
        return None if self.policy is None else _decoded(self.region, self.policy)


def expanded(
    operations: Sequence[Operation], history: History, revision: int
) -> Sequence[Operation]:
    """Return operations on single flags and segments, whatever some operations are on.

    Args:
        operations: What is asked for.
        history: What led to where the environment stands.
        revision: Where that is.

    Raises:
        RevisionNotFoundError: an environment is to be as at a revision that there is not, or not
            any more.
        InvalidDocumentError: with it something else is asked for.
    """
    whole = next((asked for asked in operations if isinstance(asked, RollbackAll)), None)
    if whole is None:
        return operations
    if len(operations) > 1:
        raise InvalidDocumentError(
            "", "rolls back the environment, and does more", "Make two changes of it"
        )
    if not 0 <= whole.to <= revision:
        raise RevisionNotFoundError(f"there is no revision {whole.to}: the newest is {revision}")
    history.check_told(whole.to)
    then: dict[PolicyId, PolicyState | None] = {}
    unledgered = history.unledgered
    later = () if unledgered is None or unledgered.revision <= whole.to else (unledgered,)
    for changes in (history.changes(whole.to), later):
        for change in changes:
            for policy in change.policies:
                if policy.id[0] == ACCESS:
                    # Who was revoked since does not come back with the flags.
                    continue
                # What the first change after the revision found is what was there at it.
                then.setdefault(policy.id, policy.before)
    return [
        Reinstate(key=key, region=region, policy=None if state is None else state.policy)
        for (region, key), state in then.items()
    ]


def _decoded(region: str, policy: dict[str, Any]) -> Next:
    if region == ACCESS:
        return decode_grants(policy)
    decoded = decode_segment if region == SEGMENTS else decode
    return decoded(policy, stored=True)
