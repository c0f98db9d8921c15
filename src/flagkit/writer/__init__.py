"""Write flags: versioned changes, each recorded in the ledger. Clients never load this package."""

from flagkit._core.storage.checkpoints import Checkpoint
from flagkit.writer.access import Denial, denials, grants, limits
from flagkit.writer.approvals import Proposal, Proposals, Verdict
from flagkit.writer.bulk_import import Import, ImportProgress, ImportResult
from flagkit.writer.checkpoints import write_checkpoint
from flagkit.writer.draft import Commit, Draft, PendingChange, Preview
from flagkit.writer.guards import (
    Approval,
    Freeze,
    Guard,
    LargestStep,
    PlannedChange,
    Refusal,
    Required,
)
from flagkit.writer.ledger import Entry, entries
from flagkit.writer.pending import PendingQueue, PendingRequest, SweepResult, TransactionWriter
from flagkit.writer.retention import (
    Erasure,
    PruneResult,
    Retention,
    erase_actor,
    list_prunable,
    prune,
)
from flagkit.writer.stale_flags import StaleFlag, stale_flags
from flagkit.writer.verification import verify
from flagkit.writer.writer import Writer

__all__ = [
    "Approval",
    "Checkpoint",
    "Commit",
    "Denial",
    "Draft",
    "Entry",
    "Erasure",
    "Freeze",
    "Guard",
    "Import",
    "ImportProgress",
    "ImportResult",
    "LargestStep",
    "PendingChange",
    "PendingQueue",
    "PendingRequest",
    "PlannedChange",
    "Preview",
    "Proposal",
    "Proposals",
    "PruneResult",
    "Refusal",
    "Required",
    "Retention",
    "StaleFlag",
    "SweepResult",
    "TransactionWriter",
    "Verdict",
    "Writer",
    "denials",
    "entries",
    "erase_actor",
    "grants",
    "limits",
    "list_prunable",
    "prune",
    "stale_flags",
    "verify",
    "write_checkpoint",
]
