"""Standing: what `flagkit status` tells of a database, as tables or as data. Never its URI."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Struct

from flagkit.changes import Tip
from flagkit.cli.telling import Teller
from flagkit.storage.checkpoints import Checkpoint
from flagkit.storage.registry import COUNTED_MAX, Census, Registered
from flagkit.storage.survey import Member, Survey
from flagkit.suggestions import environment_not_found

_EPOCH_SHOWN_LENGTH = 8
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


class Standing(Struct, frozen=True):
    """What there is to tell, at a moment of the server's."""

    now: datetime
    environments: Sequence[Tip]
    checkpoints: Sequence[Checkpoint]
    members: Sequence[Member]
    clients: Census


def standing_of(uri: str, database: str, environment: str | None) -> Standing:
    """Return how things stand, of one environment or of all.

    Raises:
        EnvironmentNotFoundError: the environment is not there.
        StoreError: the database did not answer, or refused.
    """
    with Survey(uri, database) as survey:
        now, tips = survey.environments()
        if environment is not None:
            tips = [_named(environment, tips, database)]
        checkpoints = survey.checkpoints(environment)
        return Standing(now, tips, checkpoints, survey.members(), survey.census(environment))


def tip_in(survey: Survey, environment: str) -> Tip:
    """Return where an environment stands.

    Raises:
        EnvironmentNotFoundError: it is not there.
        StoreError: the database did not answer, or refused.
    """
    return _named(environment, survey.environments()[1], survey.database)


def show(standing: Standing, database: str) -> None:
    """Print tables for people."""
    tell = Teller()
    if standing.environments:
        tell.table(
            ("environment", "revision", "last change", "ago", "epoch", "checkpoint"),
            [
                (
                    tip.environment,
                    f"{tip.revision:,}",
                    f"{tip.time:%Y-%m-%d %H:%M:%S} UTC",
                    duration((standing.now - tip.time).total_seconds()),
                    tip.epoch[:_EPOCH_SHOWN_LENGTH],
                    _newest(standing.checkpoints, tip),
                )
                for tip in standing.environments
            ],
            right=("revision", "ago", "checkpoint"),
        )
    else:
        tell.say(f"No environment is in the database {database!r}: a writer creates one.")
    if standing.members:
        tell.table(
            ("member", "state", "behind"),
            [
                (member.name, member.state or "not told", _behind(member))
                for member in standing.members
            ],
            right=("behind",),
        )
    if standing.clients.clients:
        tell.table(*client_rows(standing.clients.clients, standing.environments))
    if standing.clients.left_out:
        tell.say(told_left_out(standing.clients))


def client_rows(
    clients: Sequence[Registered], tips: Sequence[Tip]
) -> tuple[Sequence[str], Sequence[Sequence[object]], Sequence[str]]:
    """Return columns, rows and right-hand columns of a table of clients.

    Args:
        clients: The clients.
        tips: Where their environments stand.
    """
    columns = ("environment", "service", "region", "host", "pid", "revision", "staleness", "heard")
    epochs = {tip.environment: tip.epoch for tip in tips}
    rows = [
        (
            client.heartbeat.environment,
            client.heartbeat.service,
            client.heartbeat.region,
            client.heartbeat.host,
            client.heartbeat.pid,
            _revision(client, epochs),
            "never current" if client.staleness is None else duration(client.staleness),
            f"{duration(client.heard)} ago",
        )
        for client in clients
    ]
    return columns, rows, ("pid", "revision", "staleness", "heard")


def told_left_out(census: Census) -> str:
    """Return in a sentence how many clients are not listed."""
    or_more = " or more" if census.count == COUNTED_MAX else ""
    return f"{census.left_out:,}{or_more} other clients are not listed."


def client_document(client: Registered) -> dict[str, Any]:
    """Return a client as programs have it; staleness and heard are seconds."""
    told: dict[str, Any] = msgspec.to_builtins(client.heartbeat)
    del told["lifetime"]
    return told | {"staleness": client.staleness, "heard": client.heard}


def document_of(standing: Standing) -> dict[str, Any]:
    """Return it for programs, with times in ISO 8601 and durations in seconds."""
    return {
        "time": standing.now.isoformat(),
        "environments": [
            {
                "environment": tip.environment,
                "epoch": tip.epoch,
                "revision": tip.revision,
                "hash": tip.hash,
                "changed": tip.time.isoformat(),
            }
            for tip in standing.environments
        ],
        "checkpoints": [
            {
                "environment": checkpoint.tip.environment,
                "epoch": checkpoint.tip.epoch,
                "revision": checkpoint.tip.revision,
                "flags": checkpoint.flags,
                "bytes": checkpoint.bytes,
            }
            for checkpoint in standing.checkpoints
        ],
        "members": [
            {"name": member.name, "state": member.state or None, "behind": member.behind}
            for member in standing.members
        ],
        "clients": [client_document(client) for client in standing.clients.clients],
        "clients_left_out": standing.clients.left_out,
    }


def duration(seconds: float) -> str:
    """Return a duration as people say it: `0.4 s`, `12 s`, `5 min`, `3 h`, `2 d`."""
    if seconds < _MINUTE:
        return f"{max(seconds, 0):.{0 if seconds >= 10 else 1}f} s"  # noqa: PLR2004 - two digits
    for size, unit in ((_DAY, "d"), (_HOUR, "h")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / _MINUTE:.0f} min"


def _named(environment: str, tips: Sequence[Tip], database: str) -> Tip:
    for tip in tips:
        if tip.environment == environment:
            return tip
    raise environment_not_found(environment, database, [tip.environment for tip in tips])


def _newest(checkpoints: Sequence[Checkpoint], tip: Tip) -> str:
    """Return the revision of the newest checkpoint of a tip's history, if there is one."""
    history = (tip.environment, tip.epoch)
    revisions = [
        checkpoint.tip.revision
        for checkpoint in checkpoints
        if (checkpoint.tip.environment, checkpoint.tip.epoch) == history
    ]
    return f"{max(revisions):,}" if revisions else "none"


def _revision(client: Registered, epochs: Mapping[str, str]) -> str:
    heartbeat = client.heartbeat
    # Its revisions count in another history.
    lost = epochs.get(heartbeat.environment, heartbeat.epoch) != heartbeat.epoch
    return f"{heartbeat.revision:,}" + (" of another epoch" if lost else "")


def _behind(member: Member) -> str:
    return "" if member.behind is None else duration(member.behind)
