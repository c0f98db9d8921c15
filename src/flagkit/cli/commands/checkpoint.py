"""`flagkit checkpoint`: write a checkpoint and show the progress on stderr."""

import contextlib

from flagkit._core.cooperative import run_slices
from flagkit._core.storage.checkpoints import Checkpoint
from flagkit._core.storage.store import Store
from flagkit.cli.output import Progress
from flagkit.config import Settings
from flagkit.writer.checkpoints import write_checkpoint_in_steps


def publish_checkpoint(settings: Settings) -> Checkpoint:
    """Publish a checkpoint of an environment, and show the progress on a terminal.

    Args:
        settings: The database and environment.

    Raises:
        StoreError, EnvironmentNotFoundError: as `write_checkpoint` does.
    """
    store = Store(settings.uri, environment=settings.environment, database=settings.database)
    with contextlib.closing(store), Progress() as progress:
        return run_slices(write_checkpoint_in_steps(store), progress.show)


def format_checkpoint(checkpoint: Checkpoint, seconds: float) -> str:
    """Return in a line what was made."""
    flags = "flag" if checkpoint.flags == 1 else "flags"
    return (
        f"{checkpoint.id}: {checkpoint.flags:,} {flags} of {checkpoint.tip.environment} at revision"
        f" {checkpoint.tip.revision:,}, {checkpoint.bytes / 1e6:,.1f} MB, in {seconds:,.1f} s"
    )
