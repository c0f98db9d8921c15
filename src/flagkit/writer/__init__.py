"""Write flags: versioned changes, each recorded in the ledger. Clients never load this package."""

from flagkit._core.storage.checkpoints import Checkpoint
from flagkit.writer.access import Denial
from flagkit.writer.approvals import Proposal, Proposals, Verdict
from flagkit.writer.bulk_import import Import, ImportProgress, ImportResult
from flagkit.writer.draft import Commit, Draft, PendingChange, Preview
from flagkit.writer.environment import Environment
from flagkit.writer.guards import (
    Approval,
    Freeze,
    Guard,
    LargestStep,
    PlannedChange,
    Refusal,
    Required,
)
from flagkit.writer.ledger import Entry
from flagkit.writer.pending import PendingQueue, PendingRequest, SweepResult, TransactionWriter
from flagkit.writer.retention import (
    Erasure,
    PruneResult,
    Retention,
    erase_actor,
)
from flagkit.writer.stale_flags import StaleFlag
from flagkit.writer.writer import Writer

__all__ = [
    "Approval",
    "Checkpoint",
    "Commit",
    "Denial",
    "Draft",
    "Entry",
    "Environment",
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
    "erase_actor",
]
