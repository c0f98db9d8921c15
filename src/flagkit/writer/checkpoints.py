"""Publishes a checkpoint now and then, so that new clients need no scan.

A background thread writes checkpoints at its own pace. No change waits for it.
"""

import contextlib
import functools
import hashlib
import os
import threading
from array import array
from collections.abc import Collection, Generator
from typing import Final

from flagkit._core.background import BackgroundThread, LogOnce
from flagkit._core.cooperative import pace_slices, run_slices
from flagkit._core.model.changes import PolicyState, Tip
from flagkit._core.model.segments import encode_part
from flagkit._core.snapshot import Arena, encode_record
from flagkit._core.storage.checkpoints import Checkpoint
from flagkit._core.storage.store import Store
from flagkit.errors import ClosedError

CLOSE_SECONDS: Final = 5.0
"""How long a writer that closes waits for a checkpoint that is being made to be left off."""
# Who makes one in this process, by process: a forked child makes none.
_claims: dict[int, object] = {}


def write_checkpoint_in_steps(store: Store) -> Generator[str | None, None, Checkpoint]:
    """Do what `Environment.write_checkpoint` does in short steps; yield its progress at times.

    A caller may stop it. Nobody uses what it wrote, and a later checkpoint removes that.
    """
    with store.open_reader() as reading:
        base = yield from reading.read_base()
    return (yield from store.publish_checkpoint(base, reading.now))


def find_checkpoint_problem(base: Arena, tip: Tip, states: Collection[PolicyState]) -> str | None:
    """Return what is wrong with a checkpoint's base, if it should be of a tip and of its states."""
    if base.tip != tip:
        return f"is not of the history that led to revision {tip.revision}"
    listed = [(region, key) for region in base.key_indexes for key in base.iter_keys(region)]
    if sorted(listed) != sorted(state.id for state in states) or base.count != len(listed):
        return f"has other flags than revision {tip.revision}"
    for state in states:
        if base.find(*state.id) != encode_record(state):
            return f"has another {state.key} ({state.region}) than revision {tip.revision}"
    parts = {part for state in states for part in state.parts}
    for name in base.header.parts:
        members = encode_part(array("Q", base.get_part(name).tobytes()))
        if hashlib.sha256(members).hexdigest() != name:
            return "has other members than its segments refer to"
    return None if parts == base.header.parts.keys() else "has not the members of its segments"


class CheckpointPublisher:
    """Makes a checkpoint whenever the newest one is so many revisions old. Never raises.

    Args:
        store: To read, and to write to.
        every: Revisions.
    """

    def __init__(self, store: Store, every: int) -> None:
        self._store = store
        self._every = every
        self._thread: BackgroundThread | None = None
        self._stop = threading.Event()
        # Where the newest checkpoint is, as far as is known; or where one could not be made.
        self._newest_revision = -every
        self._log_once = LogOnce("flagkit.writer", "no checkpoint is made: %s")

    def on_commit(self, tip: Tip) -> None:
        """Take note of where the environment stands, and begin a checkpoint if one is due."""
        thread = self._thread
        if tip.revision - self._newest_revision < self._every or (
            thread is not None and thread.is_running
        ):
            return
        self._thread = BackgroundThread(
            "flagkit-checkpoint",
            functools.partial(self._publish, tip),
            functools.partial(self._on_failure, tip),
            repeats=False,
            is_real=False,
        )
        self._thread.start()

    def close(self) -> None:
        """Leave off what is being made, and wait for it, for CLOSE_SECONDS at most."""
        self._stop.set()
        if self._thread is not None:
            self._thread.close(CLOSE_SECONDS)

    def _publish(self, tip: Tip) -> None:
        with _claim_process() as mine:
            if not mine:
                return
            self._newest_revision = self._publish_if_due(tip)
            self._log_once.clear()

    def _on_failure(self, tip: Tip, error: Exception) -> None:
        """Try again as many revisions later."""
        self._newest_revision = tip.revision
        if not self._stop.is_set():
            self._log_once.report(error)

    def _publish_if_due(self, tip: Tip) -> int:
        """Return the revision of a checkpoint that is new enough at a tip; make it, if need be."""
        # Another writer may have made one.
        for checkpoint in self._store.list_checkpoints():
            if (
                checkpoint.tip.epoch == tip.epoch
                and tip.revision - checkpoint.tip.revision < self._every
            ):
                return checkpoint.tip.revision
        steps = write_checkpoint_in_steps(self._store)
        with contextlib.closing(steps):
            # The pauses are for the evaluations in this process.
            return run_slices(pace_slices(steps, self._pause)).tip.revision

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise ClosedError("the writer was closed")


@contextlib.contextmanager
def _claim_process() -> Generator[bool]:
    """Give whether this thread may make a checkpoint for the block: one at a time may."""
    process, mine = os.getpid(), object()
    if _claims.setdefault(process, mine) is not mine:
        yield False
        return
    try:
        yield True
    finally:
        del _claims[process]
