"""The interface between the refresher and storage: `Source`, `Route` and `Heartbeat`.

A heartbeat says what a client reports to the registry, and how long that report holds.
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
    """Where a client stood at a moment, which the registry has the time of.

    Attributes:
        instance: The random name of a client in one process.
        service: What it is a part of, by its own word.
        host: The machine, or container, that it runs on.
        pid: Its process there.
        environment: Whose flags it serves.
        region: Whose overrides it applies; "*" for none.
        epoch: The history that it follows.
        revision: The revision that it answers from.
        staleness: Seconds since it was known to be current; None if it never was.
        lifetime: Seconds for which it is to be taken for alive; 0 when it ends.
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
    """Which members of the replica set are asked."""

    NEAREST = "near"
    PRIMARY = "primary"


class Source(Protocol):
    """Where snapshots and changes come from. All its errors are FlagkitErrors."""

    async def load(self, route: Route) -> Snapshot:
        """Read everything, at one revision."""
        ...

    async def open(self, route: Route) -> None:
        """Begin to watch, anew where a watch was open: later changes are had from `watch`.

        Raises:
            StreamsUnavailableError: changes cannot be watched here, only asked for.
        """
        ...

    async def read_head(self) -> Tip:
        """Return where the environment stands, as the primary has it from a majority."""
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
