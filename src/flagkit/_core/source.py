"""The interface between the refresher and storage: `Source`, `Route` and `Heartbeat`.

A heartbeat has the report of a client to the registry, and the time for which it holds.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final, Protocol

from msgspec import Struct

from flagkit._core.model.changes import Change, Tip
from flagkit._core.snapshot import Snapshot

LIFETIME_SECONDS: Final = 50.0
"""A client that was not heard of for so long is taken for ended: some five heartbeats."""
LIFETIME_SECONDS_MAX: Final = 60.0
"""A heartbeat that claims to hold longer is ignored. The rest allows for servers' clocks."""
SERVICE_LENGTH_MAX: Final = 100
HOST_LENGTH_MAX: Final = 255


class Heartbeat(Struct, frozen=True, kw_only=True):
    """The state of a client at a moment. The registry adds the time.

    Attributes:
        instance: The random name of a client in one process.
        service: The name of the service that the client gave.
        host: The machine, or container, that it runs on.
        pid: Its process id there.
        environment: The environment whose flags it serves.
        region: The region whose overrides it applies; "*" for none.
        epoch: The history that it follows.
        revision: The revision that it answers from.
        staleness: Seconds since it was known to be current; None if it never was.
        lifetime: Seconds for which the registry counts it as alive; 0 when it ends.
    """

    instance: str
    service: str
    host: str
    pid: int
    environment: str
    region: str
    epoch: str
    revision: int
    staleness: float | None
    lifetime: float = LIFETIME_SECONDS


class Route(StrEnum):
    """The members of the replica set that a read may go to."""

    NEAREST = "near"
    PRIMARY = "primary"


class Source(Protocol):
    """The source of snapshots and changes. All its errors are FlagkitErrors."""

    async def load(self, route: Route) -> Snapshot:
        """Read everything, at one revision."""
        ...

    async def open(self, route: Route) -> None:
        """Open a watch, in place of an open one: `watch` then returns later changes.

        Raises:
            StreamsUnavailableError: changes cannot be watched here, only asked for.
        """
        ...

    async def read_head(self) -> Tip:
        """Return the tip of the environment, read from the primary with majority."""
        ...

    async def catch_up(self, tip: Tip, route: Route) -> Sequence[Change]:
        """Return every change after `tip`, in order.

        Raises:
            HistoryLostError: the history does not reach back to the tip, or is another one.
        """
        ...

    async def watch(self) -> Sequence[Change]:
        """Wait for changes; it may return without any now and then, which proves nothing."""
        ...

    async def read_policy(self, key: str) -> dict[str, Any] | None:
        """Read the newest document of a flag as the region sees it, with its metadata."""
        ...

    async def send_heartbeat(self, heartbeat: Heartbeat) -> None:
        """Put a heartbeat in the place of the last one of its client."""
        ...

    async def close(self) -> None:
        """Free everything. Nothing is called after it."""
        ...
