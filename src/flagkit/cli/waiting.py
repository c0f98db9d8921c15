"""Waiting: until all clients that are registered and alive have a revision, or time is up."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from flagkit.changes import Tip
from flagkit.cli.standing import client_document, client_rows, tip_in
from flagkit.cli.telling import Teller, progress_console
from flagkit.errors import StoreUnavailableError
from flagkit.storage.registry import Registered
from flagkit.storage.survey import Survey

ASK_AGAIN_SECONDS = 0.5


class Goal(Struct, frozen=True):
    """What is waited for; `service` may be None for all."""

    environment: str
    service: str | None
    revision: int


class Progressed(Struct, frozen=True):
    """How far clients are: of those that are alive, who has the revision and who does not."""

    tip: Tip
    good: Sequence[Registered]
    laggards: Sequence[Registered]

    @property
    def is_reached(self) -> bool:
        """Whether all have it. Where there is nobody, nothing shows that it has arrived."""
        return bool(self.good) and not self.laggards


def progressed(survey: Survey, goal: Goal) -> Progressed:
    """Return how far clients are at this moment.

    Raises:
        EnvironmentNotFoundError: the environment is not there.
        StoreError: the database did not answer, or refused.
    """
    # First who is there: whoever comes later begins with a newer revision.
    clients = survey.clients(goal.environment, goal.service)
    tip = tip_in(survey, goal.environment)
    good = [client for client in clients if _has(client, tip, goal.revision)]
    return Progressed(tip, good, [client for client in clients if client not in good])


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
            total = len(found.good) + len(found.laggards)
            progress.update(task, total=total or None, completed=len(found.good))

        return wait(survey, goal, timeout, tell)


def verdict(found: Progressed, goal: Goal, timeout: float) -> str:
    """Return in a sentence what came of waiting."""
    of_service = "" if goal.service is None else f" of {goal.service}"
    count = len(found.good) + len(found.laggards)
    if not count:
        return (
            f"no client{of_service} is registered in {goal.environment}: have them started with"
            " register=, or FLAGKIT_REGISTER"
        )
    clients = f"client{of_service}" if count == 1 else f"clients{of_service}"
    if found.is_reached:
        return f"{count} {clients} in {goal.environment} at revision {goal.revision} or later"
    return (
        f"{len(found.laggards)} of {count} {clients} in {goal.environment} did not get to revision"
        f" {goal.revision} within {timeout:g} s; the head is at {found.tip.revision}"
    )


def show_laggards(found: Progressed) -> None:
    """Print a table of those that are behind."""
    if found.laggards:
        Teller().table(*client_rows(found.laggards, [found.tip]))


def document_of(found: Progressed, goal: Goal) -> dict[str, Any]:
    """Return it for programs."""
    return {
        "environment": goal.environment,
        "epoch": found.tip.epoch,
        "revision": goal.revision,
        "head": found.tip.revision,
        "reached": found.is_reached,
        "clients": len(found.good) + len(found.laggards),
        "laggards": [client_document(client) for client in found.laggards],
    }


def _has(client: Registered, tip: Tip, revision: int) -> bool:
    heartbeat = client.heartbeat
    return heartbeat.epoch == tip.epoch and heartbeat.revision >= revision
