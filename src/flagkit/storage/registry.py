"""Registry: which clients are there, and how far they are. They write, by heartbeats; people read.

- clients: {_id: {environment, instance}, service, host, pid, region, epoch, revision, staleness,
  time, until}; as of `time`, and forgotten after `until`, both of the server's clock

Whoever is to write needs insert and update on this collection, and nothing else there.
"""

from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct

from flagkit.heartbeat import Heartbeat
from flagkit.storage.forms import judged
from flagkit.storage.layout import Document

_TOLD: Final = ("service", "host", "pid", "region", "epoch", "revision", "staleness")


class Registered(Struct, frozen=True):
    """A client that is alive, and the seconds since it was heard of."""

    heartbeat: Heartbeat
    heard: float

    @property
    def staleness(self) -> float | None:
        """Seconds since it was known to be current, as far as that is known; None if it never was.

        That may have changed since it was heard of.
        """
        age = self.heartbeat.staleness
        return None if age is None else age + self.heard


def identity_of(heartbeat: Heartbeat) -> Document:
    """Return the filter of a client's document."""
    return {"_id": {"environment": heartbeat.environment, "instance": heartbeat.instance}}


def registering(heartbeat: Heartbeat) -> list[Document]:
    """Return the update by which a client's document becomes that of a heartbeat."""
    # Literally: a string that begins with a dollar would be a field.
    told = {name: {"$literal": getattr(heartbeat, name)} for name in _TOLD}
    milliseconds = round(heartbeat.lifetime * 1000)
    return [{"$set": told | {"time": "$$NOW", "until": {"$add": ["$$NOW", milliseconds]}}}]


def living(environment: str | None, service: str | None) -> list[Document]:
    """Return the pipeline that gives the documents of clients that are alive, by service."""
    chosen: Document = {"$expr": {"$gt": ["$until", "$$NOW"]}}
    if environment is not None:
        chosen["_id.environment"] = environment
    if service is not None:
        chosen["service"] = service
    order = dict.fromkeys(("_id.environment", "service", "region", "revision", "_id"), 1)
    return [
        {"$match": chosen},
        {"$set": {"heard": {"$subtract": ["$$NOW", "$time"]}}},
        {"$sort": order},
    ]


@judged
def registered(document: Mapping[str, Any]) -> Registered:
    """Return the client of a document that `living` gives."""
    identity = document["_id"]
    told = {name: document[name] for name in _TOLD}
    heartbeat = Heartbeat(
        environment=identity["environment"], instance=identity["instance"], **told
    )
    return Registered(heartbeat, document["heard"] / 1000)
