"""Keeping: what has changed is folded into new bases, and kept in a file.

Of the processes that share a file one folds and writes at a time; the others take the file that it
wrote, so that all go on sharing its pages. It is done beside the refresher's work, in slices,
with pauses as long as they are: neither evaluations nor revisions wait for it.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Generator, Mapping
from typing import Final, TypeAlias, TypeVar

from flagkit.changes import PolicyId, Tip
from flagkit.errors import SnapshotFormatError
from flagkit.snapshot import Arena, Record, Snapshot, SnapshotFile, fold, whole

T = TypeVar("T")

_log = logging.getLogger("flagkit.refresh")

PAUSE_SECONDS: Final = 0.0005
SAVE_BYTES_PER_SECOND: Final = 1024 * 1024
SAVE_SECONDS_MIN, SAVE_SECONDS_MAX = 1.0, 60.0
"""Between two writes of a file; in between, the more the larger it is."""
CLAIM_AGAIN_SECONDS: Final = 0.2
TIPS_KEPT_MAX: Final = 16_384

Rebase: TypeAlias = "Callable[[Snapshot, Arena, Mapping[PolicyId, Record | None]], None]"
"""Takes the snapshot that a base was made from, the base, and what of its overlay it has."""


class Keeper:
    """Folds and saves the snapshots that it is shown. To be used in one asyncio loop.

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
        self._tips: dict[int, Tip] = {}
        self._trouble: str | None = None

    def saw(self, snapshot: Snapshot, *, anew: bool = False) -> None:
        """Take note of a snapshot that follows the last one, or, `anew`, of one that does not."""
        if anew:
            self._tips.clear()
        self._newest = snapshot
        self._tips[snapshot.tip.revision] = snapshot.tip
        if len(self._tips) > TIPS_KEPT_MAX:
            del self._tips[next(iter(self._tips))]
        self._news.set()

    async def run(self) -> None:
        """Fold and save for ever."""
        while True:
            snapshot = await self._due()
            if self._file is None:
                self._rebase(snapshot, await _paced(fold(snapshot)), snapshot.overlay)
                continue
            try:
                await self._kept_in(self._file, snapshot)
                self._note(None)
            except (OSError, SnapshotFormatError) as error:
                self._note(f"the snapshot file {self._file.path} is not written: {error}")
                self._save_after = time.monotonic() + SAVE_SECONDS_MAX
                if snapshot.to_be_folded:
                    self._rebase(snapshot, await _paced(fold(snapshot)), snapshot.overlay)

    def save_now(self) -> None:
        """Save the newest snapshot at once, if another has not; a trouble is logged."""
        snapshot, file = self._newest, self._file
        if snapshot is None or file is None or self._is_saved(file, snapshot):
            return
        try:
            with file.claimed() as mine:
                if mine:
                    file.write(whole(fold(snapshot, with_members=True)))
        except OSError as error:
            self._note(f"the snapshot file {file.path} is not written: {error}")

    async def _due(self) -> Snapshot:
        """Wait until a snapshot is to be folded or kept, and return it."""
        while True:
            self._news.clear()
            snapshot, wait = self._newest, None
            if snapshot is not None and snapshot.to_be_folded:
                return snapshot
            if snapshot is not None and self._file is not None:
                wait = self._save_after - time.monotonic()
                if wait <= 0:
                    if self._to_be_kept(self._file, snapshot):
                        return snapshot
                    wait = None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), wait)

    async def _kept_in(self, file: SnapshotFile, snapshot: Snapshot) -> None:
        if await self._taken_from(file, snapshot):
            return
        with file.claimed() as mine:
            if mine:
                base = await _paced(fold(snapshot, with_members=True))
                writing = asyncio.ensure_future(asyncio.to_thread(file.write, base))
                try:
                    await asyncio.shield(writing)
                except asyncio.CancelledError:
                    # As long as it is written, nobody else may.
                    await writing
                    raise
                saved = await asyncio.to_thread(file.read)
                if saved is not None and saved.tip == base.tip:
                    base = saved.base
                self._rebase(snapshot, base, snapshot.overlay)
                self._rest(base)
                return
        await asyncio.sleep(CLAIM_AGAIN_SECONDS)

    async def _taken_from(self, file: SnapshotFile, snapshot: Snapshot) -> bool:
        """Go on from what another process has saved, if it is newer, and this one was there."""
        header = file.header()
        if (
            header is None
            or not snapshot.base.tip.revision < header.tip.revision <= snapshot.tip.revision
            or self._tips.get(header.tip.revision) != header.tip
        ):
            return False
        saved = await asyncio.to_thread(file.read)
        if saved is None or saved.tip != header.tip:
            return False
        self._rebase(snapshot, saved.base, await _paced(_common(snapshot, saved.base)))
        self._rest(saved.base)
        return True

    def _to_be_kept(self, file: SnapshotFile, snapshot: Snapshot) -> bool:
        """Tell whether the file is older than a snapshot, or newer than its base."""
        if not self._is_saved(file, snapshot):
            return True
        header = file.header()
        return (
            header is not None
            and snapshot.base.tip.revision < header.tip.revision <= snapshot.tip.revision
        )

    def _rest(self, base: Arena) -> None:
        seconds = len(base.content) / SAVE_BYTES_PER_SECOND
        wait = max(SAVE_SECONDS_MIN, min(SAVE_SECONDS_MAX, seconds))
        self._save_after = time.monotonic() + wait

    def _is_saved(self, file: SnapshotFile, snapshot: Snapshot) -> bool:
        header = file.header()
        if header is None or header.tip.epoch != snapshot.tip.epoch:
            return False
        return header.tip.revision >= snapshot.tip.revision

    def _note(self, trouble: str | None) -> None:
        """Say a trouble once, and once that it is over."""
        if trouble is not None and trouble != self._trouble:
            _log.warning("%s; flags are served from memory", trouble)
        elif trouble is None and self._trouble is not None:
            _log.info("the snapshot file is written again")
        self._trouble = trouble


def _common(
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


async def _paced(slices: Generator[None, None, T]) -> T:
    """Do work in slices, with a pause after each that is as long."""
    while True:
        started = time.perf_counter()
        try:
            next(slices)
        except StopIteration as done:
            result: T = done.value
            return result
        await asyncio.sleep(max(PAUSE_SECONDS, time.perf_counter() - started))
