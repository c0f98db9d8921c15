"""Waiting: until all clients that are registered and alive have a revision, or time is up."""

import time
from collections.abc import Callable
from typing import Any

from msgspec import Struct
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from flagkit.changes import Tip
from flagkit.cli.standing import client_document, client_rows, tip_in, told_left_out
from flagkit.cli.telling import Teller, progress_console, say
from flagkit.errors import StoreUnavailableError
from flagkit.storage import registry
from flagkit.storage.registry import Census
from flagkit.storage.survey import Survey

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
    wanted = registry.Goal(goal.environment, goal.service, tip.epoch, goal.revision)
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


def document_of(found: Progressed, goal: Goal) -> dict[str, Any]:
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
