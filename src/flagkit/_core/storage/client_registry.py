"""The client registry: clients write heartbeats to it, and people read them.

- clients: {_id: {environment, instance}, service, host, pid, region, epoch, revision, staleness,
  time, until}; as of `time`, and forgotten after `until`, both by the server's clock

A client's database user needs insert and update on this collection and nothing else there. Such a
user can write anything into it. The server therefore leaves out heartbeats that claim to hold too
long or have an unknown form, and it counts and limits the rest.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

from flagkit._core.source import LIFETIME_SECONDS_MAX, Heartbeat
from flagkit._core.storage.layout import CLIENTS, Document
from flagkit._core.storage.validation import VALIDATORS, validates_form
from flagkit.errors import StoreError

SHOWN_MAX: Final = 200
"""So many clients are read at most; of the others the server tells how many there are."""
COUNTED_MAX: Final = 100_000
"""The server stops counting clients at so many."""

_REPORTED_FIELDS: Final = ("service", "host", "pid", "region", "epoch", "revision", "staleness")


class RegisteredClient(Struct, frozen=True):
    """A client that is alive, and the seconds since it was heard of."""

    heartbeat: Heartbeat
    seconds_since_heartbeat: float

    @property
    def staleness(self) -> float | None:
        """Seconds since it was known to be current, as far as that is known; None if it never was.

        That may have changed since it was heard of.
        """
        age = self.heartbeat.staleness
        return None if age is None else age + self.seconds_since_heartbeat


def build_client_filter(heartbeat: Heartbeat) -> Document:
    """Return the filter of a client's document."""
    return {"_id": {"environment": heartbeat.environment, "instance": heartbeat.instance}}


def build_heartbeat_update(heartbeat: Heartbeat) -> list[Document]:
    """Return the update by which a client's document becomes that of a heartbeat."""
    # Literally: a string that begins with a dollar would be a field.
    reported = {name: {"$literal": getattr(heartbeat, name)} for name in _REPORTED_FIELDS}
    milliseconds = round(heartbeat.lifetime * 1000)
    return [{"$set": reported | {"time": "$$NOW", "until": {"$add": ["$$NOW", milliseconds]}}}]


class Census(Struct, frozen=True):
    """The clients that are alive: the first of them, and how many there are.

    `count` ends at COUNTED_MAX.
    """

    clients: Sequence[RegisteredClient]
    count: int

    @property
    def omitted_count(self) -> int:
        """How many clients are counted and not among `clients`."""
        return self.count - len(self.clients)


class ConvergenceGoal(Struct, frozen=True):
    """A revision of an epoch, and whose clients are to have it; `service` may be None for all."""

    environment: str
    service: str | None
    epoch: str
    revision: int


def build_census_pipeline(environment: str | None, service: str | None) -> list[Document]:
    """Return the pipeline that counts the clients that are alive, and gives the first of them."""
    return [
        {"$match": _build_alive_filter(environment, service)},
        {"$limit": COUNTED_MAX},
        {"$facet": {"shown": _SHOWN, "counted": _COUNTED}},
    ]


def build_laggards_pipeline(goal: ConvergenceGoal) -> list[Document]:
    """Return the pipeline that counts who has a revision and who has not, and gives laggards."""
    has_it = {"epoch": goal.epoch, "revision": {"$gte": goal.revision}}
    return [
        {"$match": _build_alive_filter(goal.environment, goal.service)},
        {
            "$facet": {
                "good": [{"$match": has_it}, *_COUNTED],
                "shown": [{"$match": {"$nor": [has_it]}}, *_SHOWN],
                "counted": [{"$match": {"$nor": [has_it]}}, *_COUNTED],
            }
        },
    ]


def decode_census(facets: Mapping[str, Sequence[Mapping[str, Any]]]) -> Census:
    """Return the census that a pipeline gives."""
    return Census(_decode_clients(facets["shown"]), decode_count(facets["counted"]))


def decode_count(counted: Sequence[Mapping[str, Any]]) -> int:
    """Return what a pipeline counted; it gives no document for none."""
    return int(counted[0]["count"]) if counted else 0


def _build_alive_filter(environment: str | None, service: str | None) -> Document:
    """Return the filter of heartbeats that hold now, and are such as clients write.

    The index `until` answers the first part, so that no others are looked at.
    """
    latest = {"$add": ["$$NOW", round(LIFETIME_SECONDS_MAX * 1000)]}
    window = [{"$gt": ["$until", "$$NOW"]}, {"$lte": ["$until", latest]}]
    form = VALIDATORS[CLIENTS]
    chosen: Document = {
        "$expr": {"$and": [*window, form["$expr"]]},
        "$jsonSchema": form["$jsonSchema"],
    }
    if environment is not None:
        chosen["_id.environment"] = environment
    if service is not None:
        chosen["service"] = service
    return chosen


_ORDER: Final = ("_id.environment", "service", "region", "revision", "_id")
_SHOWN: Final[list[Document]] = [
    {"$sort": dict.fromkeys(_ORDER, 1)},
    {"$limit": SHOWN_MAX},
    # Nothing that somebody else put beside these fields is sent.
    {
        "$project": {
            **dict.fromkeys(_REPORTED_FIELDS, True),
            "heard": {"$subtract": ["$$NOW", "$time"]},
        }
    },
]
_COUNTED: Final[list[Document]] = [{"$count": "count"}]


def _decode_clients(documents: Iterable[Mapping[str, Any]]) -> list[RegisteredClient]:
    found: list[RegisteredClient] = []
    for document in documents:
        try:
            found.append(decode_client(document))
        except StoreError:
            continue
    return found


@validates_form
def decode_client(document: Mapping[str, Any]) -> RegisteredClient:
    """Return the client of a document that a pipeline gives."""
    identity = document["_id"]
    reported = {name: document[name] for name in _REPORTED_FIELDS}
    heartbeat = Heartbeat(
        environment=identity["environment"], instance=identity["instance"], **reported
    )
    return RegisteredClient(heartbeat, document["heard"] / 1000)
