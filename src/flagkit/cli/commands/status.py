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
from flagkit._core.storage.client_registry import COUNTED_MAX, Census, RegisteredClient
from flagkit._core.storage.database_status import DatabaseStatus, Member
from flagkit._core.suggestions import environment_not_found
from flagkit.cli.output import Printer, create_progress_console, print_lines
from flagkit.errors import StoreUnavailableError

_EPOCH_SHOWN_LENGTH = 8
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


class StatusReport(Struct, frozen=True):
    """The contents of the report, at one time of the server's clock."""

    now: datetime
    environments: Sequence[Tip]
    checkpoints: Sequence[Checkpoint]
    members: Sequence[Member]
    clients: Census


def read_status(uri: str, database: str, environment: str | None) -> StatusReport:
    """Return the status of one environment or of all.

    Raises:
        EnvironmentNotFoundError: the environment does not exist.
        StoreError: the database did not answer, or refused.
    """
    with DatabaseStatus(uri, database) as survey:
        now, tips = survey.read_environments()
        if environment is not None:
            tips = [_get_tip(environment, tips, database)]
        checkpoints = survey.read_checkpoints(environment)
        return StatusReport(
            now, tips, checkpoints, survey.read_members(), survey.read_census(environment)
        )


def read_tip(survey: DatabaseStatus, environment: str) -> Tip:
    """Return the tip of an environment.

    Raises:
        EnvironmentNotFoundError: it does not exist.
        StoreError: the database did not answer, or refused.
    """
    return _get_tip(environment, survey.read_environments()[1], survey.database)


def print_status(report: StatusReport, database: str) -> None:
    """Print tables for people."""
    printer = Printer()
    if report.environments:
        printer.print_table(
            ("environment", "revision", "last change", "ago", "epoch", "checkpoint"),
            [
                (
                    tip.environment,
                    f"{tip.revision:,}",
                    f"{tip.time:%Y-%m-%d %H:%M:%S} UTC",
                    format_duration((report.now - tip.time).total_seconds()),
                    tip.epoch[:_EPOCH_SHOWN_LENGTH],
                    _format_newest_checkpoint(report.checkpoints, tip),
                )
                for tip in report.environments
            ],
            right=("revision", "ago", "checkpoint"),
        )
    else:
        printer.print_paragraph(
            f"No environment is in the database {database!r}: a writer creates one."
        )
    if report.members:
        printer.print_table(
            ("member", "state", "behind"),
            [
                (member.name, member.state or "not told", _format_lag(member))
                for member in report.members
            ],
            right=("behind",),
        )
    if report.clients.clients:
        printer.print_table(*build_client_table(report.clients.clients, report.environments))
    if report.clients.omitted_count:
        printer.print_paragraph(describe_omitted_clients(report.clients))


def build_client_table(
    clients: Sequence[RegisteredClient], tips: Sequence[Tip]
) -> tuple[Sequence[str], Sequence[Sequence[object]], Sequence[str]]:
    """Return columns, rows and right-hand columns of a table of clients.

    Args:
        clients: The clients.
        tips: The tips of their environments.
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
            _format_revision(client, epochs),
            "never current" if client.staleness is None else format_duration(client.staleness),
            f"{format_duration(client.seconds_since_heartbeat)} ago",
        )
        for client in clients
    ]
    return columns, rows, ("pid", "revision", "staleness", "heard")


def describe_omitted_clients(census: Census) -> str:
    """Return in a sentence how many clients are not listed."""
    or_more = " or more" if census.count == COUNTED_MAX else ""
    return f"{census.omitted_count:,}{or_more} other clients are not listed."


def encode_client(client: RegisteredClient) -> dict[str, Any]:
    """Return a client as plain data for programs; `staleness` and `heard` are seconds."""
    document: dict[str, Any] = msgspec.to_builtins(client.heartbeat)
    del document["lifetime"]
    return document | {"staleness": client.staleness, "heard": client.seconds_since_heartbeat}


def encode_status(report: StatusReport) -> dict[str, Any]:
    """Return it for programs, with times in ISO 8601 and durations in seconds."""
    return {
        "time": report.now.isoformat(),
        "environments": [
            {
                "environment": tip.environment,
                "epoch": tip.epoch,
                "revision": tip.revision,
                "hash": tip.hash,
                "changed": tip.time.isoformat(),
            }
            for tip in report.environments
        ],
        "checkpoints": [
            {
                "environment": checkpoint.tip.environment,
                "epoch": checkpoint.tip.epoch,
                "revision": checkpoint.tip.revision,
                "flags": checkpoint.flags,
                "bytes": checkpoint.bytes,
            }
            for checkpoint in report.checkpoints
        ],
        "members": [
            {"name": member.name, "state": member.state or None, "behind": member.lag_seconds}
            for member in report.members
        ],
        "clients": [encode_client(client) for client in report.clients.clients],
        "clients_left_out": report.clients.omitted_count,
    }


def format_duration(seconds: float) -> str:
    """Return a duration in a short form: `0.4 s`, `12 s`, `5 min`, `3 h`, `2 d`."""
    if seconds < _MINUTE:
        return f"{max(seconds, 0):.{0 if seconds >= 10 else 1}f} s"  # noqa: PLR2004 - two digits
    for size, unit in ((_DAY, "d"), (_HOUR, "h")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / _MINUTE:.0f} min"


def _get_tip(environment: str, tips: Sequence[Tip], database: str) -> Tip:
    for tip in tips:
        if tip.environment == environment:
            return tip
    raise environment_not_found(environment, database, [tip.environment for tip in tips])


def _format_newest_checkpoint(checkpoints: Sequence[Checkpoint], tip: Tip) -> str:
    """Return the revision of the newest checkpoint of a tip's history, if there is one."""
    history = (tip.environment, tip.epoch)
    revisions = [
        checkpoint.tip.revision
        for checkpoint in checkpoints
        if (checkpoint.tip.environment, checkpoint.tip.epoch) == history
    ]
    return f"{max(revisions):,}" if revisions else "none"


def _format_revision(client: RegisteredClient, epochs: Mapping[str, str]) -> str:
    heartbeat = client.heartbeat
    # Its revisions count in another history.
    lost = epochs.get(heartbeat.environment, heartbeat.epoch) != heartbeat.epoch
    return f"{heartbeat.revision:,}" + (" of another epoch" if lost else "")


def _format_lag(member: Member) -> str:
    return "" if member.lag_seconds is None else format_duration(member.lag_seconds)


POLL_SECONDS = 0.5


class WaitGoal(Struct, frozen=True):
    """The revision to wait for; `service` may be None for all."""

    environment: str
    service: str | None
    revision: int


class RolloutProgress(Struct, frozen=True):
    """The progress of live clients: how many have the revision, and which ones do not."""

    tip: Tip
    reached_count: int
    laggards: Census

    @property
    def count(self) -> int:
        """The number of clients that are alive."""
        return self.reached_count + self.laggards.count

    @property
    def is_reached(self) -> bool:
        """True if all have it. It is False without clients, since nothing shows an arrival."""
        return bool(self.reached_count) and not self.laggards.count


def read_progress(survey: DatabaseStatus, goal: WaitGoal) -> RolloutProgress:
    """Return the progress of clients at this moment.

    Raises:
        EnvironmentNotFoundError: the environment does not exist.
        StoreError: the database did not answer, or refused.
    """
    tip = read_tip(survey, goal.environment)
    wanted = client_registry.ConvergenceGoal(
        goal.environment, goal.service, tip.epoch, goal.revision
    )
    return RolloutProgress(tip, *survey.read_laggards(wanted))


def wait(
    survey: DatabaseStatus,
    goal: WaitGoal,
    timeout: float,
    on_progress: Callable[[RolloutProgress], None],
) -> RolloutProgress:
    """Poll until the goal is reached or `timeout` seconds are over; return the last progress.

    Raises:
        EnvironmentNotFoundError: the environment does not exist.
        StoreError: the database refused, or did not answer until the time was up.
    """
    ends = time.monotonic() + timeout
    while True:
        try:
            found = read_progress(survey, goal)
        except StoreUnavailableError:
            # It may come back, as after a failover.
            if time.monotonic() >= ends:
                raise
        else:
            on_progress(found)
            if found.is_reached or time.monotonic() >= ends:
                return found
        time.sleep(max(min(POLL_SECONDS, ends - time.monotonic()), 0))


def wait_with_bar(survey: DatabaseStatus, goal: WaitGoal, timeout: float) -> RolloutProgress:
    """Wait as `wait` does, with a bar that shows how many clients have the revision."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("clients"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=create_progress_console()) as progress:
        task = progress.add_task(f"revision {goal.revision}", total=None)

        def show_progress(found: RolloutProgress) -> None:
            progress.update(task, total=found.count or None, completed=found.reached_count)

        return wait(survey, goal, timeout, show_progress)


def describe_outcome(progress: RolloutProgress, goal: WaitGoal, timeout: float) -> str:
    """Return a sentence on the outcome of waiting."""
    of_service = "" if goal.service is None else f" of {goal.service}"
    count = progress.count
    if not count:
        return (
            f"no client{of_service} is registered in {goal.environment}: have them started with"
            " register=, or FLAGKIT_REGISTER"
        )
    clients = f"client{of_service}" if count == 1 else f"clients{of_service}"
    if progress.is_reached:
        return f"{count} {clients} in {goal.environment} at revision {goal.revision} or later"
    return (
        f"{progress.laggards.count} of {count} {clients} in {goal.environment} did not get to"
        f" revision {goal.revision} within {timeout:g} s; the head is at {progress.tip.revision}"
    )


def print_laggards(progress: RolloutProgress) -> None:
    """Print a table of the clients that lag."""
    if progress.laggards.clients:
        Printer().print_table(*build_client_table(progress.laggards.clients, [progress.tip]))
    if progress.laggards.omitted_count:
        print_lines(describe_omitted_clients(progress.laggards))


def encode_progress(progress: RolloutProgress, goal: WaitGoal) -> dict[str, Any]:
    """Return it for programs."""
    return {
        "environment": goal.environment,
        "epoch": progress.tip.epoch,
        "revision": goal.revision,
        "head": progress.tip.revision,
        "reached": progress.is_reached,
        "clients": progress.count,
        "laggards": [encode_client(client) for client in progress.laggards.clients],
        "laggards_left_out": progress.laggards.omitted_count,
    }
