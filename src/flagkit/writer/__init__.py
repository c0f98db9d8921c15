"""Write flags: versioned changes, each recorded in the ledger. Clients never load this package."""

from flagkit._core.storage.checkpoints import Checkpoint
from flagkit.writer.access import Denial, denials, grants, limits
from flagkit.writer.approvals import Proposal, Verdict
from flagkit.writer.bulk_import import Import, Imported, Step
from flagkit.writer.checkpoints import write_checkpoint
from flagkit.writer.draft import Commit, Draft, PendingChange, Preview
from flagkit.writer.guards import Approval, Freeze, Guard, LargestStep, Planned, Refusal, Required
from flagkit.writer.ledger import Entry, entries
from flagkit.writer.pending import Swept, Waiting
from flagkit.writer.retention import Erasure, Pruned, Retention, erase, prunable, prune
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
    "Imported",
    "LargestStep",
    "PendingChange",
    "Planned",
    "Preview",
    "Proposal",
    "Pruned",
    "Refusal",
    "Required",
    "Retention",
    "StaleFlag",
    "Step",
    "Swept",
    "Verdict",
    "Waiting",
    "Writer",
    "denials",
    "entries",
    "erase",
    "grants",
    "limits",
    "prunable",
    "prune",
    "stale_flags",
    "verify",
    "write_checkpoint",
]
