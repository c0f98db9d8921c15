"""Standing: what `flagkit status` tells of a database, as tables or as JSON. Never its URI."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from msgspec import Struct
from rich.console import Console

from flagkit.changes import Tip
from flagkit.cli.telling import Teller
from flagkit.errors import EnvironmentNotFoundError
from flagkit.storage.survey import Member, Survey

_EPOCH_SHOWN_LENGTH = 8
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


class Standing(Struct, frozen=True):
    """What there is to tell, at a moment of the server's."""

    now: datetime
    environments: Sequence[Tip]
    members: Sequence[Member]


def standing_of(uri: str, database: str, environment: str | None) -> Standing:
    """Return how things stand, of one environment or of all.

    Raises:
        EnvironmentNotFoundError: the environment is not there.
        StoreError: the database did not answer, or refused.
    """
    with Survey(uri, database) as survey:
        now, tips = survey.environments()
        members = survey.members()
    chosen = [tip for tip in tips if environment in {None, tip.environment}]
    if environment is not None and not chosen:
        known = ", ".join(tip.environment for tip in tips) or "none"
        raise EnvironmentNotFoundError(
            f"the environment {environment!r} is not in the database {database!r}; there: {known}"
        )
    return Standing(now, chosen, members)


def show(standing: Standing, database: str, console: Console) -> None:
    """Print tables for people."""
    tell = Teller(console)
    if standing.environments:
        tell.table(
            ("environment", "revision", "last change", "ago", "epoch"),
            [
                (
                    tip.environment,
                    f"{tip.revision:,}",
                    f"{tip.time:%Y-%m-%d %H:%M:%S} UTC",
                    duration((standing.now - tip.time).total_seconds()),
                    tip.epoch[:_EPOCH_SHOWN_LENGTH],
                )
                for tip in standing.environments
            ],
            right=("revision", "ago"),
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


def json_of(standing: Standing) -> str:
    """Return it as JSON, with times in ISO 8601 and durations in seconds."""
    document: dict[str, Any] = {
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
        "members": [
            {"name": member.name, "state": member.state or None, "behind": member.behind}
            for member in standing.members
        ],
    }
    return json.dumps(document, indent=2)


def duration(seconds: float) -> str:
    """Return a duration as people say it: `0.4 s`, `12 s`, `5 min`, `3 h`, `2 d`."""
    if seconds < _MINUTE:
        return f"{max(seconds, 0):.{0 if seconds >= 10 else 1}f} s"  # noqa: PLR2004 - two digits
    for size, unit in ((_DAY, "d"), (_HOUR, "h")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / _MINUTE:.0f} min"


def _behind(member: Member) -> str:
    return "" if member.behind is None else duration(member.behind)
