"""The one background thread of a client: it obeys the refresher, and publishes what comes of it.

It runs an asyncio loop of its own, since cancelling a coroutine ends a pending read at once, in any
state of the connection, and nothing else does: a change stream's blocked `getMore` outlives both
`killCursors` and the close of its client.
"""

import asyncio
import concurrent.futures
import concurrent.futures.thread  # pyright: ignore[reportUnusedImport] - forks.py says why
import contextlib
import logging
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from flagkit.changes import Change, PolicyId
from flagkit.errors import ClosedError, FlagkitError, NotReadyError
from flagkit.keeping import Keeper
from flagkit.refresh import (
    Action,
    Arrived,
    CatchUp,
    CaughtUp,
    Event,
    Failed,
    Load,
    Loaded,
    Refresher,
    Source,
    State,
    Wait,
    Waited,
    Watch,
)
from flagkit.snapshot import Arena, Record, Snapshot, SnapshotFile

_log = logging.getLogger("flagkit.refresh")

CANCEL_AGAIN_SECONDS = 0.02
OPEN_AGAIN_SECONDS = 5.0

Publish: TypeAlias = Callable[[Snapshot, "Sequence[Change] | None"], None]
"""Takes a new snapshot, and the changes that led to it from the last one: None for a new base."""


class RefreshThread:
    """A running refresher. `error` is what keeps it from being current, None while nothing does.

    Args:
        open_source: Makes the source, within the thread. Tried again if it raises.
        publish: Called in the thread.
        snapshot: What to go on from, of the same source; without one, a base is loaded.
        file: Where snapshots are kept, if they are.
    """

    def __init__(
        self,
        open_source: Callable[[], Source],
        publish: Publish,
        snapshot: Snapshot | None = None,
        file: SnapshotFile | None = None,
    ) -> None:
        self.error: Exception | None = None
        self._open_source = open_source
        self._publish = publish
        self._refresher = Refresher(random.Random(), snapshot)  # noqa: S311 - jitter, not secrets
        self._obeying = True
        self._asking = threading.Lock()
        self._closing = False
        self._readings: set[asyncio.Task[None]] = set()
        self._keeper = Keeper(self._rebase, file)
        self._loop = asyncio.new_event_loop()
        self._source: asyncio.Future[Source] = self._loop.create_future()
        self._task = self._loop.create_task(self._run())
        self._thread = threading.Thread(target=self._obey_until_closed, name="flagkit", daemon=True)
        self._thread.start()

    def close(self, timeout: float) -> bool:
        """End the thread. Waits at most `timeout` seconds; returns whether the end was seen."""
        if self._thread.is_alive():
            # A loop that closed in this very moment has nothing left to cancel.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._cancel)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def policy(self, key: str, timeout: float) -> dict[str, Any] | None:
        """Return the newest document of a flag, read by the thread.

        Raises:
            NotReadyError: it could not be read in time.
            StoreError: it could not be read.
        """
        found: concurrent.futures.Future[dict[str, Any] | None] = concurrent.futures.Future()
        with self._asking:
            if self._closing:
                raise _closed()
            self._loop.call_soon_threadsafe(self._answer, key, found)
        try:
            return found.result(timeout)
        except TimeoutError:
            raise NotReadyError(f"{key!r} could not be read within {timeout} s") from self.error

    def _answer(self, key: str, found: "concurrent.futures.Future[dict[str, Any] | None]") -> None:
        task = self._loop.create_task(self._read_policy(key, found))
        self._readings.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._readings.discard(task)
            # A task that is cancelled before its first step has told nobody.
            if not found.done():
                found.set_exception(_closed())

        task.add_done_callback(ended)

    async def _read_policy(
        self, key: str, found: "concurrent.futures.Future[dict[str, Any] | None]"
    ) -> None:
        try:
            found.set_result(await (await asyncio.shield(self._source)).policy(key))
        except Exception as error:  # noqa: BLE001 - it is the caller's
            found.set_exception(error)

    def _obey_until_closed(self) -> None:
        try:
            with contextlib.suppress(asyncio.CancelledError):
                self._loop.run_until_complete(self._task)
            with self._asking:
                # What is asked from here on is refused; what was asked before has its task.
                self._closing = True
            self._loop.run_until_complete(self._end_readings())
        finally:
            self._loop.close()

    async def _end_readings(self) -> None:
        """Cancel what others asked for, and wait until they have been told."""
        # Once around, for what was asked for in the last moment has no task yet.
        await asyncio.sleep(0)
        readings = [*self._readings]
        for reading in readings:
            reading.cancel()
        await asyncio.gather(*readings, return_exceptions=True)

    async def _run(self) -> None:
        source = await self._opened()
        self._source.set_result(source)
        if self._refresher.snapshot is not None:
            self._keeper.saw(self._refresher.snapshot)
        keeping = self._loop.create_task(self._keeper.run())
        try:
            action = self._refresher.start()
            reached = False
            while True:
                action = await self._advance(source, action)
                # Once more when the source has been reached: only now all modules are loaded.
                first = not reached and self._refresher.state is State.WATCHING
                reached = reached or first
                self._tell(again=first)
        finally:
            self._obeying = False
            keeping.cancel()
            await asyncio.gather(keeping, source.close(), return_exceptions=True)
            self._keeper.save_now()

    def _tell(self, *, again: bool) -> None:
        """Publish the snapshot that the last step led to, if any or if `again`."""
        # Not a local of `_run`, which would keep its base in memory while it waits for the next.
        snapshot, applied = self._refresher.snapshot, self._refresher.applied
        if snapshot is not None and (applied != () or again):
            self._publish_safely(snapshot, applied)
            self._keeper.saw(snapshot, applied)

    def _rebase(
        self, folded: Snapshot, base: Arena, overlay: Mapping[PolicyId, Record | None]
    ) -> None:
        """Go on from a base that has what is the same in another form."""
        snapshot = self._refresher.snapshot
        # A new one may have been loaded meanwhile.
        if snapshot is not None and snapshot.base is folded.base:
            rebased = self._refresher.snapshot = snapshot.rebased(base, overlay)
            self._publish_safely(rebased, ())
            self._keeper.saw(rebased)

    def _publish_safely(self, snapshot: Snapshot, changes: Sequence[Change] | None) -> None:
        try:
            self._publish(snapshot, changes)
        except Exception as error:  # noqa: BLE001 - whatever fails, the thread goes on
            self._note(error)
            # Without what led to it, nothing of the last view is carried over.
            self._publish(snapshot, None)

    async def _opened(self) -> Source:
        while True:
            try:
                return self._open_source()
            except Exception as error:  # noqa: BLE001 - as below
                self._note(error)
                await asyncio.sleep(OPEN_AGAIN_SECONDS)

    def _cancel(self) -> None:
        """Cancel what is being obeyed, again and again until it ends."""
        # The driver swallows a cancellation now and then: some 2 % of those that come within 6 ms
        # of the start.
        if self._obeying:
            self._task.cancel()
            self._loop.call_later(CANCEL_AGAIN_SECONDS, self._cancel)

    async def _advance(self, source: Source, action: Action) -> Action:
        """Obey an action; return the next one."""
        try:
            event = await _obey(source, action)
            following = self._refresher.step(event)
        except Exception as error:  # noqa: BLE001 - whatever fails or is stored, the thread goes on
            self._note(error)
            return self._refresher.step(Failed(error))
        if isinstance(event, Arrived):
            # Not before: a stream that is refused again and again must not be said each time.
            self._note(None)
        return following

    def _note(self, error: Exception | None) -> None:
        """Say a trouble once, and once that it is over."""
        if error is None and self.error is not None:
            _log.info("current again")
        elif error is not None and str(error) != str(self.error) and not _is_of_the_end(error):
            known = isinstance(error, FlagkitError)
            _log.warning("not current: %s", error, exc_info=None if known else error)
        self.error = error


def _is_of_the_end(error: Exception) -> bool:
    """Tell whether an error is none of the refresher's: the interpreter is going to exit."""
    # Names are resolved in pools of threads, which begin no work from the exit on, and say so by
    # an error of no class of its own. That it is the exit, any other pool can tell.
    if type(error) is RuntimeError:
        try:
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                pool.submit(int)
        except RuntimeError:
            return True
    return False


def _closed() -> ClosedError:
    return ClosedError("this client was closed: make a new one")


async def _obey(source: Source, action: Action) -> Event:
    match action:
        case Load():
            return Loaded(await source.load())
        case CatchUp(tip, reopen):
            if reopen:
                await source.open()
            return CaughtUp(await source.catch_up(tip))
        case Watch():
            return Arrived(await source.watch())
        case Wait(seconds):
            await asyncio.sleep(seconds)
            return Waited()
