"""Sends heartbeats, so that a client appears in the registry if it is asked to.

The sender runs beside the refresher, and nothing depends on it. It logs a failure once.
"""

import asyncio
import contextlib
import math
import os
import random
import socket
import time
from typing import Final, Protocol

import msgspec

from flagkit._core.aio import cancel_task
from flagkit._core.background import LogOnce, format_error, repeat_until_done
from flagkit._core.evaluation.evaluator import Staleness
from flagkit._core.snapshot import Snapshot
from flagkit._core.source import HOST_LENGTH_MAX, Heartbeat

BEAT_SECONDS: Final = 10.0
"""Between two heartbeats of a client that nothing happens to; drawn anew from 0.8 to 1.2 of it."""
BEAT_SECONDS_MIN: Final = 1.0
"""Between any two heartbeats, however many revisions come."""
SPREAD_SECONDS: Final = 0.25
"""A fleet that gets a revision at once tells of it within so long."""
FAREWELL_SECONDS: Final = 1.0
"""So long is waited at most for the last one."""


class Registry(Protocol):
    """The registry that heartbeats are written to."""

    async def send_heartbeat(self, heartbeat: Heartbeat) -> None:
        """Put a heartbeat in the place of the last one of its client."""
        ...


class HeartbeatSender:
    """Writes the heartbeats of one client in one process. To be used in one asyncio loop.

    Args:
        service: The name that the client registers itself by.
        staleness: How old its snapshot is.
        instance: A name of this client that no other client has.
    """

    def __init__(self, service: str, staleness: Staleness, instance: str) -> None:
        self._service = service
        self._staleness = staleness
        self._instance = instance
        self._snapshot: Snapshot | None = None
        self._news = asyncio.Event()
        self._rng = random.Random()  # noqa: S311 - jitter, not secrets
        self._is_ending = False
        self._registry: Registry | None = None
        self._task: asyncio.Future[None] | None = None
        self._is_registered = False
        self._log_once = LogOnce(
            "flagkit.refresh",
            "this client is not registered: %s; it serves flags as ever",
            "this client is registered again",
        )

    @property
    def trouble(self) -> str | None:
        """The problem in words; None if there is none."""
        return self._log_once.problem

    def on_snapshot(self, snapshot: Snapshot) -> None:
        """Take note of what the client answers from."""
        self._snapshot = snapshot
        self._news.set()

    def begin(self, registry: Registry) -> None:
        """Begin to write heartbeats."""
        self._registry = registry
        self._task = asyncio.ensure_future(
            repeat_until_done(lambda: self._run(registry), self._on_failure, asyncio.sleep)
        )

    async def end(self) -> None:
        """End it, and say farewell, for FAREWELL_SECONDS at most, if the registry was there."""
        registry, task, snapshot = self._registry, self._task, self._snapshot
        if registry is None or task is None:
            return
        self._is_ending = True
        await cancel_task(task)
        if snapshot is not None and self._is_registered:
            farewell = msgspec.structs.replace(self._build_heartbeat(snapshot), lifetime=0.0)
            sending = asyncio.ensure_future(registry.send_heartbeat(farewell))
            await asyncio.wait({sending}, timeout=FAREWELL_SECONDS)
            await cancel_task(sending)

    async def _run(self, registry: Registry) -> None:
        last = -math.inf
        # Not for ever: a cancellation may be swallowed.
        while not self._is_ending:
            snapshot = await self._wait_until_due(last)
            last = time.monotonic()
            # Before it is told: who closes meanwhile has to take it back.
            self._is_registered = True
            try:
                await registry.send_heartbeat(self._build_heartbeat(snapshot))
            except Exception as error:  # noqa: BLE001 - whatever fails, flags are served
                self._on_failure(error)
            else:
                self._is_registered = True
                self._log_once.clear()

    async def _wait_until_due(self, last: float) -> Snapshot:
        """Wait until a heartbeat is due, and return what it is to tell of."""
        regular = last + BEAT_SECONDS * self._rng.uniform(0.8, 1.2)
        # Not wait_for, which on 3.11 forgets that it was cancelled if news come meanwhile.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(regular - time.monotonic() if self._snapshot else None):
                await self._news.wait()
        earliest = last + BEAT_SECONDS_MIN - time.monotonic()
        await asyncio.sleep(max(earliest, 0) + self._rng.uniform(0, SPREAD_SECONDS))
        self._news.clear()
        assert self._snapshot is not None, "news are of a snapshot"
        return self._snapshot

    def _build_heartbeat(self, snapshot: Snapshot) -> Heartbeat:
        age = self._staleness.age
        return Heartbeat(
            instance=self._instance,
            service=self._service,
            host=socket.gethostname()[:HOST_LENGTH_MAX],
            pid=os.getpid(),
            environment=snapshot.tip.environment,
            region=snapshot.region,
            epoch=snapshot.tip.epoch,
            revision=snapshot.tip.revision,
            staleness=age if age < math.inf else None,
        )

    def _on_failure(self, error: Exception) -> None:
        self._is_registered = False
        self._log_once.report(format_error(error))
