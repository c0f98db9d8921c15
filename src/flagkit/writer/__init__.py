"""Writing flags: versioned changes, each in the ledger. Who only reads never loads this."""

from flagkit.storage.checkpoints import Checkpoint
from flagkit.writer.checkpoints import write_checkpoint
from flagkit.writer.drafts import Commit, Draft
from flagkit.writer.ledger import Entry, entries, verify
from flagkit.writer.staleness import StaleFlag, stale_flags
from flagkit.writer.writer import Writer

__all__ = [
    "Checkpoint",
    "Commit",
    "Draft",
    "Entry",
    "StaleFlag",
    "Writer",
    "entries",
    "stale_flags",
    "verify",
    "write_checkpoint",
]
