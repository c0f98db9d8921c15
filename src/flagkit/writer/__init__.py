"""Writing flags: versioned changes, each in the ledger. Who only reads never loads this."""

from flagkit.storage.checkpoints import Checkpoint
from flagkit.writer.access import Denial, denials, grants
from flagkit.writer.checkpoints import write_checkpoint
from flagkit.writer.drafts import Commit, Draft, Preview
from flagkit.writer.erasing import Erasure, erase
from flagkit.writer.guards import Freeze, Guard, LargestStep, Planned, Refusal, Required
from flagkit.writer.ledger import Entry, entries
from flagkit.writer.limits import limits
from flagkit.writer.pruning import Pruned, prunable, prune
from flagkit.writer.retention import Retention
from flagkit.writer.staleness import StaleFlag, stale_flags
from flagkit.writer.verifying import verify
from flagkit.writer.writer import Writer

__all__ = [
    "Checkpoint",
    "Commit",
    "Denial",
    "Draft",
    "Entry",
    "Erasure",
    "Freeze",
    "Guard",
    "LargestStep",
    "Planned",
    "Preview",
    "Pruned",
    "Refusal",
    "Required",
    "Retention",
    "StaleFlag",
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
