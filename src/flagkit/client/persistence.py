"""Compacts the overlay of a client, and writes or adopts the shared snapshot file.

One of the processes that share a file compacts and writes at a time. The others adopt its file, so
all of them share its pages. The work runs in slices with pauses of equal length, so neither
evaluations nor revisions wait for it.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Final, TypeAlias

from flagkit._core.aio import run_cooperatively
from flagkit._core.background import LogOnce, is_shutdown_error, repeat_until_done
from flagkit._core.cooperative import run_slices
from flagkit._core.model.changes import Change, PolicyId, Tip
from flagkit._core.snapshot import Arena, Record, Snapshot, SnapshotFile, compact_snapshot
from flagkit._core.snapshot.chunks import release_pages
from flagkit.errors import SnapshotFormatError

SAVE_BYTES_PER_SECOND: Final = 1024 * 1024
SAVE_SECONDS_MIN, SAVE_SECONDS_MAX = 1.0, 60.0
"""Between two writes of a file; in between, the more the larger it is."""
CLAIM_AGAIN_SECONDS: Final = 0.2
FOREIGN_AGAIN_SECONDS: Final = 5.0
"""Another history is looked at again: others may see first that an environment was made anew."""
UNSAVED_REVISIONS_MAX: Final = 32_768
"""As many as come in SAVE_SECONDS_MAX, if there are some 500 a second."""

Rebase: TypeAlias = "Callable[[Snapshot, Arena, Mapping[PolicyId, Record | None]], None]"
"""Takes the snapshot that a base was made from, the base, and what of its overlay it has."""


class SnapshotPersister:
    """Compacts and saves the snapshots that it is shown. To be used in one asyncio loop.

    Args:
        rebase: Called with new bases.
        file: Where to keep them; without one they stay in memory.
    """

    def __init__(self, rebase: Rebase, file: SnapshotFile | None) -> None:
        self._rebase = rebase
        self._file = file
        self._newest: Snapshot | None = None
        self._news = asyncio.Event()
        self._save_after = 0.0
        # The hashes of revisions that were seen, and of those that are history no more.
        self._hashes: dict[int, str] = {}
        self._lost_hashes: dict[int, str] = {}
        self._log_once = LogOnce("flagkit.refresh", "%s", "the snapshot file is written again")
        self._log_once.problem = None if file is None else file.trouble
        # The histories that were seen, and another one that the file was of at the last look.
        self._epochs: set[str] = set()
        self._foreign_history: str | None = None

    def on_snapshot(self, snapshot: Snapshot, changes: Sequence[Change] | None = ()) -> None:
        """Take note of a snapshot, and of the changes that led to it; None where it is a new base.

        A new base may be of another history than what was seen before.
        """
        if changes is None:
            self._hashes, self._lost_hashes = {}, self._hashes
        self._newest = snapshot
        self._epochs.add(snapshot.tip.epoch)
        for tip in (*(change.tip for change in changes or ()), snapshot.tip):
            self._hashes[tip.revision] = tip.hash
        while len(self._hashes) > UNSAVED_REVISIONS_MAX:
            del self._hashes[next(iter(self._hashes))]
        self._news.set()

    @property
    def trouble(self) -> str | None:
        """The problem in words; None if there is none."""
        return self._log_once.problem

    async def run(self) -> None:
        """Compact and save for ever."""
        await repeat_until_done(self._run, self._on_run_failure, asyncio.sleep)

    def release_snapshot(self) -> None:
        """Let go of the snapshot that was shown last."""
        self._newest = None

    def save_now(self) -> None:
        """Save the newest snapshot at once, if another has not; a trouble is logged."""
        snapshot, file = self._newest, self._file
        if snapshot is None or file is None or self._is_saved(file, snapshot):
            return
        try:
            with file.claim() as mine:
                # Another may have written it in this very moment.
                if (
                    mine
                    and not self._is_saved(file, snapshot)
                    and self._describe_owner(file) is None
                ):
                    file.write(run_slices(compact_snapshot(snapshot, with_members=True)))
        except Exception as error:  # noqa: BLE001 - the client closes all the same
            self._on_failure(file, error)

    async def _run(self) -> None:
        while True:
            await self._persist(await self._wait_until_due())

    def _on_run_failure(self, error: Exception) -> None:
        self._set_trouble(f"what has changed is not kept: {_format_error(error)}")

    async def _persist(self, snapshot: Snapshot) -> None:
        """Keep a snapshot in the file, if there is one, or else fold it, if that is due."""
        file = self._file
        if file is not None and self._is_foreign(file):
            self._save_after = time.monotonic() + (
                FOREIGN_AGAIN_SECONDS if self._foreign_history else SAVE_SECONDS_MAX
            )
        elif file is not None:
            try:
                if await self._sync_with_file(file, snapshot):
                    self._set_trouble(None)
                    return
            except Exception as error:  # noqa: BLE001 - whatever fails, flags are served
                self._on_failure(file, error)
                self._save_after = time.monotonic() + SAVE_SECONDS_MAX
            else:
                if not snapshot.is_compaction_overdue:
                    # Another is about to write what can be taken from it.
                    await asyncio.sleep(CLAIM_AGAIN_SECONDS)
                    return
        if snapshot.needs_compaction:
            try:
                self._rebase(
                    snapshot,
                    await run_cooperatively(compact_snapshot(snapshot), is_paced=True),
                    snapshot.overlay,
                )
            except Exception as error:  # noqa: BLE001 - as above
                self._set_trouble(f"what has changed is not folded: {_format_error(error)}")
                await asyncio.sleep(SAVE_SECONDS_MAX)

    async def _wait_until_due(self) -> Snapshot:
        """Wait until a snapshot is to be folded or kept, and return it."""
        while True:
            self._news.clear()
            snapshot, wait = self._newest, None
            if snapshot is not None and snapshot.needs_compaction:
                return snapshot
            if snapshot is not None and self._file is not None:
                wait = self._save_after - time.monotonic()
                if wait <= 0:
                    if self._needs_sync(self._file, snapshot):
                        return snapshot
                    wait = None
            # Not wait_for, which on 3.11 forgets that it was cancelled if news come meanwhile.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._news.wait()

    async def _sync_with_file(self, file: SnapshotFile, snapshot: Snapshot) -> bool:
        """Take the base from the file, or write it; return whether either could be done now."""
        if await self._adopt_from_file(file, snapshot):
            return True
        with file.claim() as mine:
            # What another has written that is newer has to stay.
            if not mine or self._is_saved(file, snapshot) or self._describe_owner(file) is not None:
                return False
            base = await run_cooperatively(
                compact_snapshot(snapshot, with_members=True), is_paced=True
            )
            writing = asyncio.ensure_future(asyncio.to_thread(file.write, base))
            try:
                await asyncio.shield(writing)
            except asyncio.CancelledError:
                # As long as it is written, nobody else may. Whether it could be matters no more.
                await asyncio.gather(writing, return_exceptions=True)
                raise
            saved = await asyncio.to_thread(file.read)
            if saved is None or saved.tip != base.tip:
                self._rebase(snapshot, base, snapshot.overlay)
            else:
                self._rebase(snapshot, saved.base, snapshot.overlay)
                await run_cooperatively(release_pages(base.content), is_paced=True)
            self._schedule_save(base)
            return True

    async def _adopt_from_file(self, file: SnapshotFile, snapshot: Snapshot) -> bool:
        """Go on from what another process has saved, if it is newer, and this one was there."""
        header = file.read_header()
        if header is None or not self._is_ahead(header.tip, snapshot):
            return False
        saved = await asyncio.to_thread(file.read)
        if saved is None or saved.tip != header.tip:
            return False
        self._rebase(
            snapshot,
            saved.base,
            await run_cooperatively(_find_common_records(snapshot, saved.base), is_paced=True),
        )
        self._schedule_save(saved.base)
        return True

    def _needs_sync(self, file: SnapshotFile, snapshot: Snapshot) -> bool:
        """Tell whether the file is older than a snapshot, or newer than its base."""
        if not self._is_saved(file, snapshot):
            return True
        header = file.read_header()
        return header is not None and self._is_ahead(header.tip, snapshot)

    def _is_ahead(self, tip: Tip, snapshot: Snapshot) -> bool:
        """Tell whether a tip is on the way from a snapshot's base to it."""
        revision = tip.revision
        return (
            tip.epoch == snapshot.tip.epoch
            and snapshot.base.tip.revision < revision <= snapshot.tip.revision
            and self._hashes.get(revision) == tip.hash
        )

    def _schedule_save(self, base: Arena) -> None:
        seconds = len(base.content) / SAVE_BYTES_PER_SECOND
        wait = max(SAVE_SECONDS_MIN, min(SAVE_SECONDS_MAX, seconds))
        self._save_after = time.monotonic() + wait

    def _is_saved(self, file: SnapshotFile, snapshot: Snapshot) -> bool:
        """Tell whether the file has a snapshot, or a newer one, which is never replaced."""
        header = file.read_header()
        if header is None or header.tip.epoch != snapshot.tip.epoch:
            return False
        tip = header.tip
        if tip.revision <= snapshot.tip.revision:
            return tip == snapshot.tip
        # Newer, unless the database was put back to what it was before.
        return self._lost_hashes.get(tip.revision) != tip.hash

    def _describe_owner(self, file: SnapshotFile) -> str | None:
        """Return whose the file is, if it is not to be replaced by this client."""
        foreign = file.describe_foreign_scope()
        if foreign is not None:
            return foreign
        header = file.read_header()
        if header is None or header.tip.epoch in self._epochs:
            return None
        return f"it is of another history of {header.tip.environment!r}, such as another database's"

    def _is_foreign(self, file: SnapshotFile) -> bool:
        """Tell whether the file is that of others; say so once."""
        whose = self._describe_owner(file)
        if whose is None:
            self._foreign_history = None
            return False
        is_sure = file.describe_foreign_scope() is not None or self._foreign_history == whose
        self._foreign_history = None if is_sure else whose
        if is_sure:
            self._set_trouble(file.describe_refusal(whose))
        return True

    def _on_failure(self, file: SnapshotFile, error: Exception) -> None:
        if is_shutdown_error(error):
            return
        self._set_trouble(
            f"the snapshot file {file.path} is not written: {_format_error(error)};"
            " flags are served from memory"
        )

    def _set_trouble(self, trouble: str | None) -> None:
        """Log a problem once, and once that it is over."""
        if trouble is None:
            self._log_once.clear()
        elif trouble != self.trouble:
            self._log_once.report(trouble)
        if self._file is not None:
            self._file.trouble = trouble


def _format_error(error: Exception) -> str:
    """Return what went wrong, in the same words each time: without names of temporary files."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) if isinstance(error, SnapshotFormatError) else repr(error)


def _find_common_records(
    snapshot: Snapshot, base: Arena
) -> Generator[None, None, dict[PolicyId, Record | None]]:
    """Return what of a snapshot's overlay a base has, in slices."""
    found: dict[PolicyId, Record | None] = {}
    for done, (identity, record) in enumerate(snapshot.overlay.items()):
        if base.find(*identity) == record:
            found[identity] = record
        if done % 128 == 0:
            yield
    return found
