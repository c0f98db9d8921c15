"""A step of a simulated client, as people read it."""

from typing import NamedTuple

from flagkit._core.model.changes import Tip
from flagkit.client.refresher import (
    Action,
    ActionFailed,
    CatchUp,
    CatchUpDone,
    ChangesReceived,
    Event,
    HeadRead,
    Load,
    LoadDone,
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
        return (
            f"{self.time:9.3f}  {format_step_item(self.event)}  ->  {format_step_item(self.action)}"
        )


def format_step_item(item: Event | Action | None) -> str:
    """Return an event or an action in short."""
    match item:
        case None:
            return "start"
        case LoadDone(snapshot):
            content = _shorten_tip(snapshot.tip)
        case CatchUpDone(changes) | ChangesReceived(changes):
            content = ", ".join(_shorten_tip(change.tip) for change in changes)
        case HeadRead(tip, asked):
            content = f"{_shorten_tip(tip)}, asked at {asked:.3f}"
        case ActionFailed(error):
            content = type(error).__name__
        case CatchUp(tip, route, reopen):
            content = f"{_shorten_tip(tip)}, {route}, reopen={reopen}"
        case Load(route):
            content = f"{route}"
        case Watch(until) | Wait(until):
            content = f"{until:.3f}"
        case _:
            content = ""
    return f"{type(item).__name__}({content})"


def _shorten_tip(tip: Tip) -> str:
    return f"{tip.revision} {tip.hash[:6]} of {tip.epoch[:4]}"
