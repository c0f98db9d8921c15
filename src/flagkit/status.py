"""Status: where a client stands, for people, dashboards and health checks."""

from collections.abc import Mapping

from msgspec import Struct

from flagkit.breaker import Circuit
from flagkit.counting import Counts
from flagkit.refresh import State


class Status(Struct, frozen=True, kw_only=True):
    """Where a client stands at a moment.

    Attributes:
        environment: Whose flags it serves; empty before any are there.
        region: Whose overrides it applies; "*" for none.
        state: What its refresher does; None of a client that has none, or is not started. A client
            whose thread is not running is backing off: it starts the thread again after a pause.
        epoch: The history that it follows.
        revision: The revision that it answers from; 0 before there is any.
        head: The newest revision that the primary told; None if it has not.
        staleness: Seconds since it was known to be current; infinity if it never was.
        is_stale: Whether that is more than `max_staleness`.
        breakers: What its ways to the database let through: to near members, to the primary, and
            the question for the head.
        error: What keeps it from being current, in words without secrets.
        error_count: How often something did, since it was started, or its process forked.
        troubles: What is in the way of other background work, by its name: `keeping` the snapshot
            file, `registering`, fetching `keys`, telling callbacks of `changes`. The client serves
            current flags all the same.
        counts: Of a client that counts.
        file: What keeps the snapshot file from being served or written; None while nothing does.
    """

    environment: str
    region: str
    state: State | None
    epoch: str
    revision: int
    head: int | None
    staleness: float
    is_stale: bool
    breakers: Mapping[str, Circuit]
    error: str | None
    error_count: int
    troubles: Mapping[str, str]
    counts: Counts | None
    file: str | None = None
