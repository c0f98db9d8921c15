"""A step of a simulated client, as people read it."""

from typing import NamedTuple

from flagkit._core.model.changes import Tip
from flagkit.client.refresher import (
    Action,
    Arrived,
    CatchUp,
    CaughtUp,
    Event,
    Failed,
    HeadSeen,
    Load,
    Loaded,
    Wait,
    Watch,
)


class Step(NamedTuple):
    """When it was, what was taken in, and what is done next. No event begins it all."""

    time: float
    event: Event | None
    action: Action

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.time:9.3f}  {told(self.event)}  ->  {told(self.action)}"


def told(item: Event | Action | None) -> str:
    """Return an event or an action in short."""
    match item:
        case None:
            return "start"
        case Loaded(snapshot):
            content = _short(snapshot.tip)
        case CaughtUp(changes) | Arrived(changes):
            content = ", ".join(_short(change.tip) for change in changes)
        case HeadSeen(tip, asked):
            content = f"{_short(tip)}, asked at {asked:.3f}"
        case Failed(error):
            content = type(error).__name__
        case CatchUp(tip, route, reopen):
            content = f"{_short(tip)}, {route}, reopen={reopen}"
        case Load(route):
            content = f"{route}"
        case Watch(until) | Wait(until):
            content = f"{until:.3f}"
        case _:
            content = ""
    return f"{type(item).__name__}({content})"


def _short(tip: Tip) -> str:
    return f"{tip.revision} {tip.hash[:6]} of {tip.epoch[:4]}"
