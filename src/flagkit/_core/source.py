"""The interface between the refresher and storage: `Source`, `Route` and `Heartbeat`.

A heartbeat says what a client reports to the registry, and how long that report holds.
"""

from typing import Final

from msgspec import Struct

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
