"""The one background thread of a client: it obeys the refresher, and publishes what comes of it.

It runs an asyncio loop of its own, since cancelling a coroutine ends a pending read at once, in any
state of the connection, and nothing else does: a change stream's blocked `getMore` outlives both
`killCursors` and the close of its client.
"""

import asyncio
import concurrent.futures
import concurrent.futures.thread  # pyright: ignore[reportUnusedImport] - forks.py says why
import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from flagkit.breaker import Circuit
from flagkit.changes import Change, PolicyId
from flagkit.collector import collector_paused
from flagkit.core.freshness import Freshness
from flagkit.errors import ClosedError, FlagkitError, NotReadyError
from flagkit.keeping import Keeper
from flagkit.logs import logger
from flagkit.names_loop import NamesLoop
from flagkit.refresh import (
    Action,
    Arrived,
    AskHead,
    CatchUp,
    CaughtUp,
    Due,
    Event,
    Failed,
    HeadSeen,
    Load,
    Loaded,
    Refresher,
    Source,
    State,
    Wait,
    Watch,
)
from flagkit.registering import Registrar
from flagkit.snapshot import Arena, Record, Snapshot, SnapshotFile
from flagkit.unsealing import Unsealing

_log = logger("flagkit.refresh")

CANCEL_AGAIN_SECONDS = 0.02
OPEN_AGAIN_SECONDS = 5.0
KEYS_SECONDS_MAX = 3.0
"""So long are data keys waited for, by who waits for flags; in the background, for ever."""
KEYS_AGAIN_SECONDS = 5.0

Publish: TypeAlias = Callable[[Snapshot, "Sequence[Change] | None"], None]
"""Takes a new snapshot, and the changes that led to it from the last one: None for a new base."""


class RefreshThread:
    """A running refresher.

    Attributes:
        refresher: What it obeys, to be looked at.
        error: What keeps it from being current, None while nothing does.
        error_count: How often something did.

    Args:
        open_source: Makes the source, within the thread. Tried again if it raises.
        publish: Called in the thread.
        freshness: Told as of when the snapshot is known to be current.
        refresher: What to obey. It goes on from its snapshot, of the same source, if it has one.
        file: Where snapshots are kept, if they are.
        service: By what name the client registers itself, if it does.
        unsealing: Whose keys are to be fetched, if it has any.
    """

    def __init__(  # noqa: PLR0913 - all that one thread does
        self,
        open_source: Callable[[], Source],
        publish: Publish,
        freshness: Freshness,
        refresher: Refresher,
        file: SnapshotFile | None = None,
        service: str | None = None,
        *,
        unsealing: Unsealing | None = None,
    ) -> None:
        self.error: Exception | None = None
        self.error_count = 0
        self.refresher = refresher
        self._open_source = open_source
        self._publish = publish
        self._freshness = freshness
        self._watching: asyncio.Task[Sequence[Change]] | None = None
        self._obeying = True
        self._asking = threading.Lock()
        self._closing = False
        self._readings: set[asyncio.Task[None]] = set()
        self._keeper = Keeper(self._rebase, file)
        self._unsealing = unsealing or Unsealing()
        self._loop = NamesLoop()
        self._registrar = None if service is None else Registrar(service, freshness)
        self._source: asyncio.Future[Source] = self._loop.create_future()
        self._now = time.monotonic
        self._task = self._loop.create_task(self._run())
        self._thread = threading.Thread(target=self._obey_until_closed, name="flagkit", daemon=True)
        self._thread.start()

    @property
    def head_revision(self) -> int | None:
        """The newest revision that the primary told, None if it has not."""
        head = self.refresher.head
        return None if head is None else head.revision

    @property
    def circuits(self) -> dict[str, Circuit]:
        """What the breakers let through at this moment."""
        now, refresher = self._now(), self.refresher
        circuits = {
            route.value: breaker.circuit(now) for route, breaker in refresher.breakers.items()
        }
        return circuits | {"head": refresher.head_breaker.circuit(now)}

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
        refresher = self.refresher
        if self._registrar is not None:
            self._registrar.begin(source)
        if refresher.snapshot is not None:
            self._saw(refresher.snapshot, ())
        keeping = self._loop.create_task(self._keeper.run())
        fetching = self._loop.create_task(self._fetch_keys())
        try:
            action = refresher.start(self._now())
            reached = False
            while True:
                action = await self._advance(source, action)
                # Once more when the source has been reached: only now all modules are loaded.
                first = not reached and refresher.state is State.WATCHING
                reached = reached or first
                self._tell(again=first)
        finally:
            self._obeying = False
            refresher.close()
            keeping.cancel()
            fetching.cancel()
            await self._stop_watching()
            if self._registrar is not None:
                await self._registrar.end()
            await asyncio.gather(keeping, fetching, source.close(), return_exceptions=True)
            self._keeper.save_now()

    def _tell(self, *, again: bool) -> None:
        """Publish the snapshot that the last step led to, if any or if `again`."""
        # Not a local of `_run`, which would keep its base in memory while it waits for the next.
        snapshot, applied = self.refresher.snapshot, self.refresher.applied
        if snapshot is not None and (applied != () or again):
            with collector_paused():
                self._publish_safely(snapshot, applied)
            self._saw(snapshot, applied)

    def _saw(self, snapshot: Snapshot, changes: Sequence[Change] | None) -> None:
        self._keeper.saw(snapshot, changes)
        if self._registrar is not None:
            self._registrar.saw(snapshot)

    def _rebase(
        self, folded: Snapshot, base: Arena, overlay: Mapping[PolicyId, Record | None]
    ) -> None:
        """Go on from a base that has what is the same in another form."""
        snapshot = self.refresher.snapshot
        # A new one may have been loaded meanwhile.
        if snapshot is not None and snapshot.base is folded.base:
            rebased = self.refresher.snapshot = snapshot.rebased(base, overlay)
            self._publish_safely(rebased, ())
            self._keeper.saw(rebased)

    def _publish_safely(self, snapshot: Snapshot, changes: Sequence[Change] | None) -> None:
        try:
            self._publish(snapshot, changes)
        except Exception as error:  # noqa: BLE001 - whatever fails, the thread goes on
            self._note(error)
            # Without what led to it, nothing of the last view is carried over.
            self._publish(snapshot, None)

    async def _fetch_keys(self) -> None:
        """Fetch the data keys, for as long as it takes; say once what is in the way."""
        unsealing, said = self._unsealing, ""
        if not unsealing.is_waiting:
            return
        while unsealing.is_waiting:
            # In a thread of its own: the driver's encryption knows no other way to wait.
            fetched = asyncio.ensure_future(asyncio.to_thread(unsealing.fetch))
            try:
                await asyncio.wait({fetched}, timeout=KEYS_SECONDS_MAX)
                if not fetched.done():
                    self._settle_keys()
                await fetched
            except Exception as error:  # noqa: BLE001 - whatever fails, all other flags are served
                known = isinstance(error, FlagkitError)
                if str(error) != said and not _is_of_the_end(error):
                    cause = None if known else error
                    _log.warning("sensitive values are not served: %s", error, exc_info=cause)
                said = str(error)
                self._settle_keys()
                await asyncio.sleep(KEYS_AGAIN_SECONDS)
            finally:
                fetched.cancel()
                await asyncio.gather(fetched, return_exceptions=True)
        self._settle_keys()

    def _settle_keys(self) -> None:
        """Have those go on that wait for keys, and answer from flags as they can be read now."""
        if self._unsealing.is_settled and self._unsealing.is_waiting:
            return
        self._unsealing.is_settled = True
        snapshot = self.refresher.snapshot
        if snapshot is not None:
            self._publish_safely(snapshot, ())

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
        refresher = self.refresher
        try:
            event = await self._obey(source, action)
            with collector_paused():
                following = refresher.step(event, self._now())
        except Exception as error:  # noqa: BLE001 - whatever fails or is stored, the thread goes on
            self._note(error)
            return refresher.step(Failed(error), self._now())
        if refresher.current_as_of is not None:
            self._freshness.as_of = refresher.current_as_of
        if isinstance(event, Arrived | HeadSeen):
            # Not before: a stream that is refused again and again must not be said each time.
            self._note(None)
        return following

    async def _obey(self, source: Source, action: Action) -> Event:
        match action:
            case Load(route):
                await self._stop_watching()
                return Loaded(await source.load(route))
            case CatchUp(tip, route, reopen):
                if reopen:
                    await self._stop_watching()
                    await source.open(route)
                return CaughtUp(await source.catch_up(tip, route))
            case AskHead():
                asked = self._now()
                return HeadSeen(await source.head(), asked)
            case Watch(until):
                return await self._watch(source, until)
            case Wait(until):
                await self._stop_watching()
                await asyncio.sleep(until - self._now())
                return Due()

    async def _watch(self, source: Source, until: float) -> Event:
        """Wait for what the stream brings. What is asked meanwhile does not disturb it."""
        if self._watching is None:
            self._watching = self._loop.create_task(source.watch())
        watching = self._watching
        done, _ = await asyncio.wait({watching}, timeout=max(until - self._now(), 0))
        if not done:
            return Due()
        self._watching = None
        return Arrived(watching.result())

    async def _stop_watching(self) -> None:
        while self._watching is not None:
            # Again and again, as in `_cancel`.
            self._watching.cancel()
            await asyncio.wait({self._watching}, timeout=CANCEL_AGAIN_SECONDS)
            if self._watching.done():
                # What it brought is had from the ledger; that it failed matters no more.
                if not self._watching.cancelled():
                    self._watching.exception()
                self._watching = None

    def _note(self, error: Exception | None) -> None:
        """Say a trouble once, and once that it is over."""
        self.error_count += error is not None
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
