"""Writing flags: versioned changes, each in the ledger. Who only reads never loads this."""

from flagkit.storage.checkpoints import Checkpoint
from flagkit.writer.access import Denial, denials, grants
from flagkit.writer.checkpoints import write_checkpoint
from flagkit.writer.commits import Commit, PendingChange
from flagkit.writer.drafts import Draft, Preview
from flagkit.writer.erasing import Erasure, erase
from flagkit.writer.guards import Approval, Freeze, Guard, LargestStep, Planned, Refusal, Required
from flagkit.writer.importing import Import, Imported, Step
from flagkit.writer.ledger import Entry, entries
from flagkit.writer.limits import limits
from flagkit.writer.pending import Swept, Waiting
from flagkit.writer.proposals import Proposal, Verdict
from flagkit.writer.pruning import Pruned, prunable, prune
from flagkit.writer.retention import Retention
from flagkit.writer.staleness import StaleFlag, stale_flags
from flagkit.writer.verifying import verify
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
