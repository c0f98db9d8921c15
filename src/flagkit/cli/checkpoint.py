"""Checkpoint: one is made, and people see on stderr how far it is."""

import contextlib

from rich.console import Console
from rich.markup import escape

from flagkit.settings import Settings
from flagkit.storage.checkpoints import Checkpoint
from flagkit.storage.store import Store
from flagkit.writer.checkpoints import checkpoint_in_steps


def made(settings: Settings, console: Console) -> Checkpoint:
    """Publish a checkpoint of an environment.

    Args:
        settings: Where it is.
        console: Shows how far it is, if it is a terminal.

    Raises:
        StoreError, EnvironmentNotFoundError: as `write_checkpoint` does.
    """
    store = Store(settings.uri, environment=settings.environment, database=settings.database)
    with contextlib.closing(store), console.status("looking at the environment") as status:
        steps = checkpoint_in_steps(store)
        while True:
            try:
                step = next(steps)
            except StopIteration as done:
                checkpoint: Checkpoint = done.value
                return checkpoint
            if step is not None:
                status.update(escape(step))


def told(checkpoint: Checkpoint, seconds: float) -> str:
    """Return in a line what was made."""
    flags = "flag" if checkpoint.flags == 1 else "flags"
    return (
        f"{checkpoint.id}: {checkpoint.flags:,} {flags} of {checkpoint.tip.environment} at revision"
        f" {checkpoint.tip.revision:,}, {checkpoint.bytes / 1e6:,.1f} MB, in {seconds:,.1f} s"
    )
