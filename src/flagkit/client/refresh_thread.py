"""The background thread of a client: acts for the refresher and publishes snapshots.

It runs an asyncio loop of its own, because only the cancellation of a coroutine ends a pending read
at once in any state of the connection. The blocked `getMore` of a change stream outlives both
`killCursors` and the close of its client.
"""

import asyncio
import concurrent.futures
import concurrent.futures.thread  # pyright: ignore[reportUnusedImport] - forks.py says why
import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from flagkit._core.aio import (
    CANCEL_AGAIN_SECONDS,
    DaemonResolverLoop,
    DescriptorsLostError,
    cancel_task,
    open_loop,
)
from flagkit._core.background import (
    BackgroundThread,
    LogOnce,
    format_error,
    repeat_until_done,
)
from flagkit._core.cooperative import pause_gc
from flagkit._core.evaluation.evaluator import Staleness
from flagkit._core.model.changes import Change, PolicyId
from flagkit._core.secrets import VariantDecrypter
from flagkit._core.snapshot import Arena, Record, Snapshot, SnapshotFile
from flagkit._core.source import Source
from flagkit.client.persistence import SnapshotPersister
from flagkit.client.refresher import (
    Action,
    ActionFailed,
    BreakerState,
    CatchUp,
    CatchUpDone,
    ChangesReceived,
    Event,
    HeadRead,
    Load,
    LoadDone,
    ReadHead,
    Refresher,
    RefreshState,
    Timer,
    Wait,
    Watch,
)
from flagkit.client.registration import HeartbeatSender
from flagkit.errors import ClosedError, FlagkitError, NotReadyError

OPEN_AGAIN_SECONDS = 5.0
KEYS_SECONDS_MAX = 3.0
"""So long are data keys waited for, by who waits for flags; in the background, for ever."""
KEYS_AGAIN_SECONDS = 5.0

Publish: TypeAlias = Callable[[Snapshot, "Sequence[Change] | None"], None]
"""Takes a new snapshot, and the changes that led to it from the last one: None for a new base."""


class RefreshThread:
    """A thread that obeys a refresher. After any error it begins anew from the last snapshot.

    Attributes:
        refresher: The refresher that it obeys.
        error: The error that keeps it from being current; None while nothing does.
        error_count: The number of such errors.

    Args:
        open_source: Makes the source, within the thread. The thread tries again if it raises.
        publish: Called in the thread.
        staleness: Learns as of when the snapshot is known to be current.
        refresher: It goes on from its snapshot, of the same source, if it has one.
        file: The file to keep snapshots in, if there is one.
        service: The name by which the client registers itself, if it does.
        decrypter: Its keys are fetched, if it has any.
    """

    _task: asyncio.Task[None]
    _source: asyncio.Future[Source]

    def __init__(  # noqa: PLR0913 - all that one thread does
        self,
        open_source: Callable[[], Source],
        publish: Publish,
        staleness: Staleness,
        refresher: Refresher,
        file: SnapshotFile | None = None,
        service: str | None = None,
        *,
        decrypter: VariantDecrypter | None = None,
    ) -> None:
        self.error: Exception | None = None
        self.error_count = 0
        self._currency_log = LogOnce(
            "flagkit.refresh",
            "not current: %s",
            "current again",
            known=(FlagkitError, DescriptorsLostError),
        )
        self.refresher = refresher
        self._open_source = open_source
        self._publish = publish
        self._is_published = True
        self._staleness = staleness
        self._file = file
        self._service = service
        self._instance = uuid.uuid4().hex
        self._decrypter = decrypter or VariantDecrypter()
        self._clock = time.monotonic
        # Questions, and the wish to close, reach a loop while this lock is held, or none.
        self._condition = threading.Condition()
        self._is_closing = False
        self._loop: DaemonResolverLoop | None = None
        self._reset()
        self._thread = BackgroundThread("flagkit", self._run_loop, self._on_failure)

    def start(self) -> None:
        """Start the thread, or start it again if it has died, after a pause. Never raises."""
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """True while the thread is alive."""
        return self._thread.is_running

    @property
    def troubles(self) -> dict[str, str]:
        """The problems of work beside the refresher, by the name of the work."""
        registrar = self._heartbeat_sender
        found = {
            "keeping": self._persister.trouble,
            "registering": None if registrar is None else registrar.trouble,
            "keys": self._keys_log.problem,
        }
        return {work: trouble for work, trouble in found.items() if trouble is not None}

    @property
    def head_revision(self) -> int | None:
        """The newest revision that the primary told, None if it has not."""
        head = self.refresher.head
        return None if head is None else head.revision

    @property
    def breaker_states(self) -> dict[str, BreakerState]:
        """The state of each breaker at this moment."""
        now, refresher = self._clock(), self.refresher
        circuits = {
            route.value: breaker.get_state(now) for route, breaker in refresher.breakers.items()
        }
        return circuits | {"head": refresher.head_breaker.get_state(now)}

    def close(self, timeout: float) -> bool:
        """End the thread. Waits at most `timeout` seconds; returns whether the end was seen."""
        with self._condition:
            self._is_closing = True
            self._condition.notify_all()
            if self._loop is not None:
                # A loop that closed in this very moment has nothing left to cancel.
                with contextlib.suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(self._cancel, self._loop)
        return self._thread.close(timeout)

    def release_snapshot(self) -> None:
        """Forget the parent's snapshot in a forked child, which has no thread of this."""
        self.refresher.snapshot = None
        self._persister.release_snapshot()

    def read_policy(self, key: str, timeout: float) -> dict[str, Any] | None:
        """Return the newest document of a flag, read by the thread.

        Raises:
            NotReadyError: it could not be read in time.
            StoreError: it could not be read.
        """
        found: concurrent.futures.Future[dict[str, Any] | None] = concurrent.futures.Future()
        ends = time.monotonic() + timeout
        with self._condition:
            self._condition.wait_for(lambda: self._is_closing or self._loop is not None, timeout)
            if self._is_closing:
                raise _build_closed_error()
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._start_reading, key, found)
        try:
            return found.result(max(ends - time.monotonic(), 0))
        except TimeoutError:
            raise NotReadyError(f"{key!r} could not be read within {timeout} s") from self.error

    def _start_reading(
        self, key: str, found: "concurrent.futures.Future[dict[str, Any] | None]"
    ) -> None:
        task = asyncio.ensure_future(self._read_policy(key, found))
        self._policy_reads.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._policy_reads.discard(task)
            # A task that is cancelled before its first step has told nobody.
            if not found.done():
                again = NotReadyError("the flag could not be read: the refresh thread begins anew")
                found.set_exception(_build_closed_error() if self._is_closing else again)

        task.add_done_callback(ended)

    async def _read_policy(
        self, key: str, found: "concurrent.futures.Future[dict[str, Any] | None]"
    ) -> None:
        try:
            found.set_result(await (await asyncio.shield(self._source)).read_policy(key))
        except Exception as error:  # noqa: BLE001 - it is the caller's
            found.set_exception(error)

    def _run_loop(self) -> None:
        """Run a loop of its own until the client is closed; raise whatever ends it before."""
        loop = open_loop()
        try:
            with self._condition:
                if self._is_closing:
                    return
                self._reset()
                self._source = loop.create_future()
                self._task = loop.create_task(self._run(self._source))
                self._loop = loop
                self._condition.notify_all()
            try:
                loop.run_until_complete(self._task)
            except asyncio.CancelledError:
                if not self._is_closing:
                    raise
        finally:
            with self._condition:
                # What is asked from here on is refused; what was asked before has its task.
                self._loop = None
            loop.end()

    def _reset(self) -> None:
        """Make what belongs to one loop."""
        self._watching: asyncio.Future[Sequence[Change]] | None = None
        self._is_executing = True
        self._policy_reads: set[asyncio.Future[None]] = set()
        self._keys_log = LogOnce("flagkit.refresh", "sensitive values are not served: %s")
        self._persister = SnapshotPersister(self._rebase, self._file)
        service = self._service
        self._heartbeat_sender = (
            None if service is None else HeartbeatSender(service, self._staleness, self._instance)
        )

    async def _run(self, source_future: asyncio.Future[Source]) -> None:
        source = await self._open_with_retries()
        source_future.set_result(source)
        refresher = self.refresher
        if self._heartbeat_sender is not None:
            self._heartbeat_sender.begin(source)
        if refresher.snapshot is not None:
            self._on_snapshot(refresher.snapshot, ())
        beside = [
            asyncio.ensure_future(self._persister.run()),
            asyncio.ensure_future(
                repeat_until_done(self._fetch_keys, self._on_keys_failure, asyncio.sleep)
            ),
        ]
        try:
            action = refresher.start(self._clock())
            reached = False
            while True:
                event = await self._run_action(source, action)
                action = self._step(event)
                # Once more when the source has been reached: only now all modules are loaded.
                first = not reached and refresher.state is RefreshState.WATCHING
                reached = reached or first
                self._publish_step(again=first)
                self._update_staleness(event)
        finally:
            self._is_executing = False
            for task in beside:
                task.cancel()
            await self._stop_watching()
            last = () if self._heartbeat_sender is None else (self._heartbeat_sender.end(),)
            await asyncio.gather(*last, *beside, return_exceptions=True)
            await asyncio.gather(source.close(), return_exceptions=True)
            if self._is_closing:
                refresher.close()
                self._persister.save_now()

    def _publish_step(self, *, again: bool) -> None:
        """Publish the snapshot that the last step led to, if any or if `again`."""
        # Not a local of `_run`, which would keep its base in memory while it waits for the next.
        snapshot, applied = self.refresher.snapshot, self.refresher.applied
        if snapshot is not None and (applied != () or again or not self._is_published):
            with pause_gc():
                self._publish_safely(snapshot, applied)
            self._on_snapshot(snapshot, applied)

    def _update_staleness(self, event: Event) -> None:
        """Tell how current the published snapshot is, by what has happened."""
        if not self._is_published:
            return
        if self.refresher.current_as_of is not None:
            self._staleness.as_of = self.refresher.current_as_of
        if isinstance(event, ChangesReceived | HeadRead):
            # Not before: a stream that is refused again and again must not be said each time.
            self._set_error(None)

    def _on_snapshot(self, snapshot: Snapshot, changes: Sequence[Change] | None) -> None:
        self._persister.on_snapshot(snapshot, changes)
        if self._heartbeat_sender is not None:
            self._heartbeat_sender.on_snapshot(snapshot)

    def _rebase(
        self, compacted: Snapshot, base: Arena, overlay: Mapping[PolicyId, Record | None]
    ) -> None:
        """Go on from a base that has what is the same in another form."""
        snapshot = self.refresher.snapshot
        # A new one may have been loaded meanwhile.
        if snapshot is not None and snapshot.base is compacted.base:
            rebased = self.refresher.snapshot = snapshot.rebase(base, overlay)
            self._publish_safely(rebased, ())
            self._persister.on_snapshot(rebased)

    def _publish_safely(self, snapshot: Snapshot, changes: Sequence[Change] | None) -> None:
        """Publish a snapshot. What fails is tried again with each step, since the thread goes on.

        Without the changes that led to it nothing of the last evaluator is carried over.
        """
        for update in (changes, None) if self._is_published else (None,):
            try:
                self._publish(snapshot, update)
            except Exception as error:  # noqa: BLE001 - there may be no memory left, for example
                self._is_published = False
                self._set_error(error)
            else:
                self._is_published = True
                return

    async def _fetch_keys(self) -> None:
        """Fetch the data keys, for as long as it takes; say once what is in the way."""
        decrypter = self._decrypter
        if not decrypter.is_waiting:
            return
        while decrypter.is_waiting:
            # In a thread of its own: the driver's encryption knows no other way to wait.
            fetched = asyncio.ensure_future(asyncio.to_thread(decrypter.fetch))
            try:
                await asyncio.wait({fetched}, timeout=KEYS_SECONDS_MAX)
                if not fetched.done():
                    self._settle_keys()
                await fetched
            except Exception as error:  # noqa: BLE001 - whatever fails, all other flags are served
                self._keys_log.report(error)
                self._settle_keys()
                await asyncio.sleep(KEYS_AGAIN_SECONDS)
            finally:
                fetched.cancel()
                await asyncio.gather(fetched, return_exceptions=True)
        self._keys_log.clear()
        self._settle_keys()

    def _settle_keys(self) -> None:
        """Have those go on that wait for keys, and answer from flags as they can be read now."""
        if self._decrypter.is_settled and self._decrypter.is_waiting:
            return
        self._decrypter.is_settled = True
        snapshot = self.refresher.snapshot
        if snapshot is not None:
            self._publish_safely(snapshot, ())

    async def _open_with_retries(self) -> Source:
        while True:
            try:
                return self._open_source()
            except Exception as error:  # noqa: BLE001 - as below
                self._set_error(error)
                await asyncio.sleep(OPEN_AGAIN_SECONDS)

    def _cancel(self, loop: DaemonResolverLoop) -> None:
        """Cancel what is being obeyed in a loop, again and again until it ends."""
        # The driver swallows a cancellation now and then: some 2 % of those that come within 6 ms
        # of the start.
        if self._is_executing:
            self._task.cancel()
            loop.call_later(CANCEL_AGAIN_SECONDS, self._cancel, loop)

    async def _run_action(self, source: Source, action: Action) -> Event:
        """Obey an action; return what came of it."""
        try:
            return await self._execute(source, action)
        except Exception as error:  # noqa: BLE001 - whatever fails, the thread goes on
            self._set_error(error)
            return ActionFailed(error)

    def _step(self, event: Event) -> Action:
        """Return the action that follows an event."""
        try:
            with pause_gc():
                return self.refresher.step(event, self._clock())
        except Exception as error:  # noqa: BLE001 - whatever is stored, the thread goes on
            self._set_error(error)
            return self.refresher.step(ActionFailed(error), self._clock())

    async def _execute(self, source: Source, action: Action) -> Event:
        match action:
            case Load(route):
                await self._stop_watching()
                return LoadDone(await source.load(route))
            case CatchUp(tip, route, reopen):
                if reopen:
                    await self._stop_watching()
                    await source.open(route)
                return CatchUpDone(await source.catch_up(tip, route))
            case ReadHead():
                asked = self._clock()
                return HeadRead(await source.read_head(), asked)
            case Watch(until):
                return await self._watch(source, until)
            case Wait(until):
                await self._stop_watching()
                await asyncio.sleep(until - self._clock())
                return Timer()

    async def _watch(self, source: Source, until: float) -> Event:
        """Wait for what the stream brings. What is asked meanwhile does not disturb it."""
        if self._watching is None:
            self._watching = asyncio.ensure_future(source.watch())
        watching = self._watching
        done, _ = await asyncio.wait({watching}, timeout=max(until - self._clock(), 0))
        if not done:
            return Timer()
        self._watching = None
        return ChangesReceived(watching.result())

    async def _stop_watching(self) -> None:
        if self._watching is not None:
            # The ledger has what it brought.
            await cancel_task(self._watching)
            self._watching = None

    def _on_failure(self, error: Exception) -> None:
        """Note an error that has ended the loop, or kept the thread from being started."""
        self.refresher = self.refresher.renew()
        self._set_error(error)

    def _on_keys_failure(self, error: Exception) -> None:
        self._keys_log.problem = format_error(error)

    def _set_error(self, error: Exception | None) -> None:
        """Log an error once, and once that it is over."""
        self.error = error
        if error is None:
            self._currency_log.clear()
        else:
            self.error_count += 1
            self._currency_log.report(error)


def _build_closed_error() -> ClosedError:
    return ClosedError("this client was closed: make a new one")
