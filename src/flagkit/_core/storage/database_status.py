"""What a database holds, and the state of its replica set, for people. Only reads."""

import contextlib
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Self

from msgspec import Struct
from pymongo import ASCENDING, MongoClient
from pymongo.errors import OperationFailure
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import PrimaryPreferred

from flagkit._core.model.changes import Tip
from flagkit._core.storage.checkpoints import Checkpoint, checkpoint_of
from flagkit._core.storage.client_registry import (
    Census,
    Goal,
    Registered,
    census_in,
    census_pipeline,
    count_in,
    laggards_pipeline,
)
from flagkit._core.storage.documents import CODEC, tip_of
from flagkit._core.storage.driver import (
    OPERATION_MILLISECONDS_MAX,
    configured,
    settings_for,
    translated,
)
from flagkit._core.storage.layout import CHECKPOINTS, CLIENTS, HEADS, Document, checkpoints_of
from flagkit.errors import StoreError

_BY_ID = [("_id", ASCENDING)]
_TIP = dict.fromkeys(("epoch", "revision", "hash", "time", "digests"), True)
# Not allowed; no such command, which is so where a proxy or a hosted service stands in between.
_NOT_TOLD = {13, 59, 115, 8000}
_NO_REPLICATION = 76


class Member(Struct, frozen=True):
    """A member of the replica set.

    Attributes:
        name: Its host and port.
        state: As MongoDB has it, such as PRIMARY or SECONDARY; empty where it may not be asked for.
        behind: Seconds that its newest write is older than the primary's; None where that is not
            known.
    """

    name: str
    state: str
    behind: float | None


class Survey:
    """A database, whoever of its members answers. To be closed, by `close` or as a context manager.

    Raises:
        ConfigurationError: the connection string makes no sense.
    """

    def __init__(self, uri: str, database: str) -> None:
        self.database = database
        """The name of the database."""
        with configured(uri):
            self._client: MongoClient[Document] = MongoClient(uri, **settings_for(uri))
            # Without a primary there is most need to look.
            self._database = self._client.get_database(
                database,
                CODEC,
                read_concern=ReadConcern("majority"),
                read_preference=PrimaryPreferred(),
            )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def environments(self) -> tuple[datetime, list[Tip]]:
        """Return the server's time, and where each environment stands, by name.

        Raises:
            StoreError: the database did not answer, or refused.
        """
        with translated("reading the heads"):
            now: datetime = self._hello()["localTime"]
            heads = self._database[HEADS].find(
                {}, _TIP, sort=_BY_ID, max_time_ms=OPERATION_MILLISECONDS_MAX
            )
            return now, [tip_of(head) for head in heads]

    def checkpoints(self, environment: str | None = None) -> list[Checkpoint]:
        """Return the checkpoints that are whole, by environment, the newest of each first.

        Raises:
            StoreError: the database did not answer, or refused.
        """
        chosen = {} if environment is None else checkpoints_of(environment)
        with translated("reading the checkpoints"):
            manifests = list(self._database[CHECKPOINTS].find(chosen))
        found: list[Checkpoint] = []
        for manifest in manifests:
            # One that is damaged, or of a later version, is none here, as it is to clients.
            with contextlib.suppress(StoreError):
                found.append(checkpoint_of(manifest))
        return sorted(found, key=lambda each: (each.tip.environment, -each.tip.revision))

    def census(self, environment: str | None = None, service: str | None = None) -> Census:
        """Return how many registered clients are alive, and the first of them.

        They are in the order of environment, service and region.

        Raises:
            StoreError: the database did not answer, or refused.
        """
        return census_in(self._registry(census_pipeline(environment, service)))

    def clients(
        self, environment: str | None = None, service: str | None = None
    ) -> list[Registered]:
        """Return the first of the registered clients that are alive, as `census` does.

        Raises:
            StoreError: the database did not answer, or refused.
        """
        return [*self.census(environment, service).clients]

    def laggards(self, goal: Goal) -> tuple[int, Census]:
        """Return how many clients that are alive have reached a goal, and those that have not.

        Raises:
            StoreError: the database did not answer, or refused.
        """
        facets = self._registry(laggards_pipeline(goal))
        return count_in(facets["good"]), census_in(facets)

    def _registry(self, pipeline: list[Document]) -> Document:
        # Heartbeats do not wait for a majority either.
        clients = self._database[CLIENTS].with_options(read_concern=ReadConcern("local"))
        with translated("reading the registry"):
            (facets,) = clients.aggregate(pipeline, maxTimeMS=OPERATION_MILLISECONDS_MAX)
        return facets

    def members(self) -> list[Member]:
        """Return the members of the replica set; their names alone, where more may not be asked.

        Raises:
            StoreError: the database did not answer.
        """
        with translated("asking for the members"):
            try:
                status: Mapping[str, Any] = self._client.admin.command(
                    "replSetGetStatus", read_preference=PrimaryPreferred()
                )
            except OperationFailure as error:
                if error.code == _NO_REPLICATION:
                    return []
                if error.code not in _NOT_TOLD:
                    raise
                hello = self._hello()
                named = (*hello.get("hosts", ()), *hello.get("passives", ()))
                primary = hello.get("primary")
                return [Member(name, "PRIMARY" if name == primary else "", None) for name in named]
        members = status["members"]
        newest = [member["optimeDate"] for member in members if member["stateStr"] == "PRIMARY"]
        return [
            Member(member["name"], member["stateStr"], _behind(member, newest))
            for member in members
        ]

    def _hello(self) -> Mapping[str, Any]:
        codec = self._database.codec_options
        return self._client.admin.command(
            "hello", read_preference=PrimaryPreferred(), codec_options=codec
        )


def _behind(member: Mapping[str, Any], newest: list[datetime]) -> float | None:
    """Return the seconds between a member's newest write and the primary's."""
    # Who is down, or only votes, has a date in 1970, or none.
    if not newest or member["stateStr"] not in {"PRIMARY", "SECONDARY", "RECOVERING"}:
        return None
    seconds: float = (newest[0] - member["optimeDate"]).total_seconds()
    return max(seconds, 0.0)
