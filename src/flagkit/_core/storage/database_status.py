"""What a database holds, and the state of its replica set, for people. Only reads."""

import contextlib
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from msgspec import Struct
from pymongo import ASCENDING
from pymongo.errors import OperationFailure
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import PrimaryPreferred

from flagkit._core.model.changes import Tip
from flagkit._core.storage.checkpoints import Checkpoint, decode_manifest
from flagkit._core.storage.client_registry import (
    Census,
    ConvergenceGoal,
    RegisteredClient,
    build_census_pipeline,
    build_laggards_pipeline,
    decode_census,
    decode_count,
)
from flagkit._core.storage.documents import decode_head_tip
from flagkit._core.storage.driver import (
    OPERATION_MILLISECONDS_MAX,
    DatabaseHandle,
    translate_errors,
)
from flagkit._core.storage.layout import CHECKPOINTS, CLIENTS, HEADS, Document, filter_checkpoints
from flagkit.errors import StoreError

_BY_ID = [("_id", ASCENDING)]
_TIP = dict.fromkeys(("epoch", "revision", "hash", "time", "digests"), True)
# Not allowed; no such command, which is so where a proxy or a hosted service stands in between.
_REFUSED_CODES = {13, 59, 115, 8000}
_NO_REPLICATION = 76


class Member(Struct, frozen=True):
    """A member of the replica set.

    Attributes:
        name: Its host and port.
        state: As MongoDB has it, such as PRIMARY or SECONDARY; empty where it may not be asked for.
        lag_seconds: Seconds that its newest write is older than the primary's; None where that is
            not known.
    """

    name: str
    state: str
    lag_seconds: float | None


class DatabaseStatus(DatabaseHandle):
    """Reads what a database holds, from its primary or, without one, from any member."""

    def __init__(self, uri: str, database: str) -> None:
        super().__init__(uri, database, PrimaryPreferred())
        self.database = database
        """The name of the database."""

    def read_environments(self) -> tuple[datetime, list[Tip]]:
        """Return the server's time, and where each environment stands, by name.

        Raises:
            StoreError: the database did not answer, or refused.
        """
        with translate_errors("reading the heads"):
            now: datetime = self._send_hello()["localTime"]
            heads = self._database[HEADS].find(
                {}, _TIP, sort=_BY_ID, max_time_ms=OPERATION_MILLISECONDS_MAX
            )
            return now, [decode_head_tip(head) for head in heads]

    def read_checkpoints(self, environment: str | None = None) -> list[Checkpoint]:
        """Return the checkpoints that are whole, by environment, the newest of each first.

        Raises:
            StoreError: the database did not answer, or refused.
        """
        chosen = {} if environment is None else filter_checkpoints(environment)
        with translate_errors("reading the checkpoints"):
            manifests = list(self._database[CHECKPOINTS].find(chosen))
        found: list[Checkpoint] = []
        for manifest in manifests:
            # One that is damaged, or of a later version, is none here, as it is to clients.
            with contextlib.suppress(StoreError):
                found.append(decode_manifest(manifest))
        return sorted(found, key=lambda each: (each.tip.environment, -each.tip.revision))

    def read_census(self, environment: str | None = None, service: str | None = None) -> Census:
        """Return how many registered clients are alive, and the first of them.

        They are in the order of environment, service and region.

        Raises:
            StoreError: the database did not answer, or refused.
        """
        return decode_census(self._aggregate_registry(build_census_pipeline(environment, service)))

    def read_clients(
        self, environment: str | None = None, service: str | None = None
    ) -> list[RegisteredClient]:
        """Return the first of the registered clients that are alive, as `read_census` does.

        Raises:
            StoreError: the database did not answer, or refused.
        """
        return [*self.read_census(environment, service).clients]

    def read_laggards(self, goal: ConvergenceGoal) -> tuple[int, Census]:
        """Return how many clients that are alive have reached a goal, and those that have not.

        Raises:
            StoreError: the database did not answer, or refused.
        """
        facets = self._aggregate_registry(build_laggards_pipeline(goal))
        return decode_count(facets["good"]), decode_census(facets)

    def _aggregate_registry(self, pipeline: list[Document]) -> Document:
        # Heartbeats do not wait for a majority either.
        clients = self._database[CLIENTS].with_options(read_concern=ReadConcern("local"))
        with translate_errors("reading the registry"):
            (facets,) = clients.aggregate(pipeline, maxTimeMS=OPERATION_MILLISECONDS_MAX)
        return facets

    def read_members(self) -> list[Member]:
        """Return the members of the replica set; their names alone, where more may not be asked.

        Raises:
            StoreError: the database did not answer.
        """
        with translate_errors("asking for the members"):
            try:
                status: Mapping[str, Any] = self._client.admin.command(
                    "replSetGetStatus", read_preference=PrimaryPreferred()
                )
            except OperationFailure as error:
                if error.code == _NO_REPLICATION:
                    return []
                if error.code not in _REFUSED_CODES:
                    raise
                hello = self._send_hello()
                named = (*hello.get("hosts", ()), *hello.get("passives", ()))
                primary = hello.get("primary")
                return [Member(name, "PRIMARY" if name == primary else "", None) for name in named]
        members = status["members"]
        newest = [member["optimeDate"] for member in members if member["stateStr"] == "PRIMARY"]
        return [
            Member(member["name"], member["stateStr"], _compute_lag(member, newest))
            for member in members
        ]

    def _send_hello(self) -> Mapping[str, Any]:
        codec = self._database.codec_options
        return self._client.admin.command(
            "hello", read_preference=PrimaryPreferred(), codec_options=codec
        )


def _compute_lag(member: Mapping[str, Any], newest: list[datetime]) -> float | None:
    """Return the seconds between a member's newest write and the primary's."""
    # Who is down, or only votes, has a date in 1970, or none.
    if not newest or member["stateStr"] not in {"PRIMARY", "SECONDARY", "RECOVERING"}:
        return None
    seconds: float = (newest[0] - member["optimeDate"]).total_seconds()
    return max(seconds, 0.0)
