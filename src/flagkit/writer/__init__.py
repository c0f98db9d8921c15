"""Writing flags: versioned changes, each in the ledger. Who only reads never loads this."""

from flagkit.writer.ledger import Entry, entries, verify
from flagkit.writer.writer import Change, Commit, Writer

__all__ = ["Change", "Commit", "Entry", "Writer", "entries", "verify"]
