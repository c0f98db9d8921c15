"""`Environment`: reads one environment for people, from its ledger to the flags that are stale."""

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Self, Unpack

from flagkit._core.arguments import check_count, refuse_unknown_in_methods
from flagkit._core.cooperative import run_slices
from flagkit._core.model.access import Grant, Limits
from flagkit._core.model.changes import GRANTS, LIMITS, Tip
from flagkit._core.storage.checkpoints import Checkpoint
from flagkit._core.storage.store import Store
from flagkit.config import resolve_settings
from flagkit.writer.access import Denial, read_denials
from flagkit.writer.approvals import Proposal, list_proposals, read_proposal
from flagkit.writer.checkpoints import write_checkpoint_in_steps
from flagkit.writer.ledger import Entry, EntryFilter, iter_entries
from flagkit.writer.operations import get_grants, get_limits
from flagkit.writer.pending import PendingRequest, list_pending
from flagkit.writer.retention import PruneResult, Retention, list_prunable
from flagkit.writer.stale_flags import StaleFlag, list_stale_flags
from flagkit.writer.verification import run_verification


@refuse_unknown_in_methods
class Environment:
    """Reads one environment: its ledger, access, proposals, pending changes and stale flags.

    Threads may share it. Close it, or use it as a context manager. It needs no actor, because it
    changes no flag. `Writer.reader` is the same handle on the connections of a writer.

    Example:
        with Environment(uri, "production") as environment:
            newest = next(environment.entries(key="shop.search", newest_first=True))
            faults = environment.verify()

    Args:
        uri: A MongoDB connection string of a replica set; or FLAGKIT_URI.
        environment: The name of the environment; or FLAGKIT_ENVIRONMENT.
        database: The database with flagkit's collections; or FLAGKIT_DATABASE, or "flagkit".

    All methods raise EnvironmentNotFoundError if nobody created the environment, unless a method
    finds nothing in that case. They raise StoreError if the database does not answer or refuses.

    Raises:
        ConfigurationError: an argument is missing or makes no sense.
    """

    def __init__(
        self,
        uri: str | None = None,
        environment: str | None = None,
        *,
        database: str | None = None,
    ) -> None:
        settings = resolve_settings(uri, environment=environment, database=database)
        self.name = settings.environment
        """The name of the environment."""
        self.store = Store(settings.uri, environment=self.name, database=settings.database)
        """Flagkit's own access to the database. It may change without notice."""

    def close(self) -> None:
        """Close the connections."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read_tip(self) -> Tip:
        """Return the newest revision with its hash and time."""
        return self.store.read_tip()

    def entries(
        self, after: int = 0, *, newest_first: bool = False, **wanted: Unpack[EntryFilter]
    ) -> Iterator[Entry]:
        """Yield the entries of the ledger after a revision, the oldest first by default.

        Takes `key`, `actor`, `action`, `since` and `until`, as EntryFilter describes them.

        Raises:
            InvalidArgumentError: an argument has another type, or no action has this name.
        """
        return iter_entries(self.store, after, newest_first=newest_first, **wanted)

    def read_newer_entries(
        self, after: int, **wanted: Unpack[EntryFilter]
    ) -> tuple[int, list[Entry]]:
        """Return the revision to continue after, and the entries after a revision.

        Takes the same filters as `entries`. A caller that polls passes the returned revision next.
        """
        tip = self.store.read_tip()
        found = [*self.entries(after, **wanted)]
        # The ledger has every revision before the tip. It may lack the tip itself.
        return max(after, tip.revision - 1, *(entry.revision for entry in found[-1:])), found

    def read_pruned_revision(self) -> int:
        """Return the revision up to which the ledger was pruned; 0 if it was not."""
        with self.store.open_reader() as reading:
            return 0 if reading.history.cut is None else reading.history.cut.tip.revision

    def grants(self) -> tuple[Grant, ...]:
        """Return the grants, ordered by actor and role. An open environment has none."""
        with self.store.open_reader() as reading:
            return get_grants(reading.access.get(GRANTS)).grants

    def limits(self) -> Limits:
        """Return the rate limits."""
        with self.store.open_reader() as reading:
            return get_limits(reading.access.get(LIMITS))

    def denials(self) -> list[Denial]:
        """Return the log of denials, the oldest first."""
        return read_denials(self.store)

    def proposal(self, proposal: str) -> Proposal:
        """Return a proposal, with the differences that it would make now.

        Raises:
            ProposalNotFoundError: no proposal has this id.
            StoreError: somebody changed it past the writer.
        """
        return read_proposal(self.store, proposal)

    def proposals(self, limit: int = 20) -> list[Proposal]:
        """Return proposals, the newest first, without their differences."""
        return list_proposals(self.store, check_count(limit, "limit"))

    def pending(self) -> list[PendingRequest]:
        """Return the changes that wait to be sequenced, and the refused ones, in order."""
        return list_pending(self.store)

    def stale_flags(self, days: int, now: datetime | None = None) -> list[StaleFlag]:
        """Return the flags that look finished, sorted by key and region.

        A flag is stale if it is past its `expires`. It also is stale if nobody touched it for
        `days`, and it is archived, was never changed, or has each rollout at 0 or 100 %. The last
        two reasons do not hold for a flag that a ramp or a window still changes.

        Args:
            days: For how long nobody must have touched a flag.
            now: The moment to ask for; the server's time by default.

        Raises:
            StoreError: somebody changed a flag past the writer.
            InvalidArgumentError: the days are no whole number, or `now` has no time zone.
        """
        return list_stale_flags(self.store, days, now)

    def verify(self, anchors: Iterable[tuple[int, str]] = ()) -> list[str]:
        """Return the faults of the ledger and of all documents that it proves, if there are any.

        The hash chain proves that nobody altered, shortened or reordered the ledger. An attacker
        who can rewrite all of it, with the head, is found only by a hash that was kept elsewhere.

        Args:
            anchors: Revisions and their hashes that were kept elsewhere.

        Raises:
            InvalidArgumentError: an anchor is no pair of a revision and its hash.
            StoreUnavailableError: the database cannot be reached.
        """
        return [*run_verification(self.store, anchors).problems]

    def write_checkpoint(self) -> Checkpoint:
        """Publish the newest revision as a checkpoint, from which new clients start.

        The digests prove it first. The database keeps the newest two.

        Raises:
            StoreError: somebody changed a policy past the writer.
        """
        return run_slices(write_checkpoint_in_steps(self.store))

    def list_prunable(self, retention: Retention, now: datetime | None = None) -> list[PruneResult]:
        """Return what `Writer.prune` would delete, by kind. This method deletes nothing.

        Args:
            retention: How long to keep each kind of document.
            now: The moment to count the days back from; the server's time by default.

        Raises:
            ConfigurationError: the retention makes no sense.
            StoreError: the ledger does not prove, so nothing may be deleted.
        """
        return list_prunable(self.store, retention, now)
