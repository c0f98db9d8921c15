"""`flagkit status` and `flagkit rollout wait`: the state of a database, as tables or data."""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Struct
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from flagkit._core.model.changes import Tip
from flagkit._core.storage import client_registry
from flagkit._core.storage.checkpoints import Checkpoint
from flagkit._core.storage.client_registry import COUNTED_MAX, Census, Registered
from flagkit._core.storage.database_status import Member, Survey
from flagkit._core.suggestions import environment_not_found
from flagkit.cli.output import Teller, progress_console, say
from flagkit.errors import StoreUnavailableError

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


ASK_AGAIN_SECONDS = 0.5


class Goal(Struct, frozen=True):
    """What is waited for; `service` may be None for all."""

    environment: str
    service: str | None
    revision: int


class Progressed(Struct, frozen=True):
    """How far the clients are that are alive: how many have the revision, and who does not."""

    tip: Tip
    good: int
    laggards: Census

    @property
    def count(self) -> int:
        """How many clients are alive."""
        return self.good + self.laggards.count

    @property
    def is_reached(self) -> bool:
        """Whether all have it. Where there is nobody, nothing shows that it has arrived."""
        return bool(self.good) and not self.laggards.count


def progressed(survey: Survey, goal: Goal) -> Progressed:
    """Return how far clients are at this moment.

    Raises:
        EnvironmentNotFoundError: the environment is not there.
        StoreError: the database did not answer, or refused.
    """
    tip = tip_in(survey, goal.environment)
    wanted = client_registry.Goal(goal.environment, goal.service, tip.epoch, goal.revision)
    return Progressed(tip, *survey.laggards(wanted))


def wait(
    survey: Survey, goal: Goal, timeout: float, tell: Callable[[Progressed], None]
) -> Progressed:
    """Ask again and again until the goal is reached or `timeout` seconds are over; return the last.

    Raises:
        EnvironmentNotFoundError: the environment is not there.
        StoreError: the database refused, or did not answer until the time was up.
    """
    ends = time.monotonic() + timeout
    while True:
        try:
            found = progressed(survey, goal)
        except StoreUnavailableError:
            # It may come back, as after a failover.
            if time.monotonic() >= ends:
                raise
        else:
            tell(found)
            if found.is_reached or time.monotonic() >= ends:
                return found
        time.sleep(max(min(ASK_AGAIN_SECONDS, ends - time.monotonic()), 0))


def wait_with_bar(survey: Survey, goal: Goal, timeout: float) -> Progressed:
    """Wait as `wait`, with a bar that says how many have it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("clients"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=progress_console()) as progress:
        task = progress.add_task(f"revision {goal.revision}", total=None)

        def tell(found: Progressed) -> None:
            progress.update(task, total=found.count or None, completed=found.good)

        return wait(survey, goal, timeout, tell)


def verdict(found: Progressed, goal: Goal, timeout: float) -> str:
    """Return in a sentence what came of waiting."""
    of_service = "" if goal.service is None else f" of {goal.service}"
    count = found.count
    if not count:
        return (
            f"no client{of_service} is registered in {goal.environment}: have them started with"
            " register=, or FLAGKIT_REGISTER"
        )
    clients = f"client{of_service}" if count == 1 else f"clients{of_service}"
    if found.is_reached:
        return f"{count} {clients} in {goal.environment} at revision {goal.revision} or later"
    return (
        f"{found.laggards.count} of {count} {clients} in {goal.environment} did not get to revision"
        f" {goal.revision} within {timeout:g} s; the head is at {found.tip.revision}"
    )


def show_laggards(found: Progressed) -> None:
    """Print a table of those that are behind."""
    if found.laggards.clients:
        Teller().table(*client_rows(found.laggards.clients, [found.tip]))
    if found.laggards.left_out:
        say(told_left_out(found.laggards))


def progress_document(found: Progressed, goal: Goal) -> dict[str, Any]:
    """Return it for programs."""
    return {
        "environment": goal.environment,
        "epoch": found.tip.epoch,
        "revision": goal.revision,
        "head": found.tip.revision,
        "reached": found.is_reached,
        "clients": found.count,
        "laggards": [client_document(client) for client in found.laggards.clients],
        "laggards_left_out": found.laggards.left_out,
    }
