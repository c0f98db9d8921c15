"""Time windows of targeting rules, once or recurring, checked.

`evaluation.schedule` says whether a window is open at a moment.
"""

import errno
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from msgspec import Struct

from flagkit._core.interruptions import is_interruption
from flagkit._core.model.documents import HoursDocument, WindowDocument
from flagkit._core.model.values import Value, floor_to_milliseconds
from flagkit.errors import InvalidDocumentError

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_MINUTES: Final = 24 * 60
_CIRCUMSTANCES: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EIO, errno.EINTR}
)
"""Numbers of system errors that do not depend on the file to open."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TIME = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])|24:00")


class Recurrence(Struct, frozen=True):
    """Days of the week and hours, by the clock on the wall in an IANA time zone.

    `days` are ascending, 0 for Monday. `start` and `end` are minutes of the day, from 0 to 1440;
    with an end that is not after the start, the hours pass midnight, and belong to the day on which
    they begin.
    """

    zone: str
    days: tuple[int, ...]
    start: int
    end: int


class Window(Struct, frozen=True):
    """A time from `start`, inclusive, until `end`, exclusive: seconds since 1970, or infinite.

    With a recurrence it is open only then.
    """

    start: float
    end: float
    recurrence: Recurrence | None = None


def build_window(wire: WindowDocument, path: str) -> Window:
    """Return the window of a checked shape.

    Raises:
        InvalidDocumentError: it is never open, or always, or its times do not make sense.
    """
    start = (
        floor_to_milliseconds(wire.start, f"{path}.from").timestamp() if wire.start else -math.inf
    )
    end = floor_to_milliseconds(wire.end, f"{path}.until").timestamp() if wire.end else math.inf
    recurrence = _build_recurrence(wire, path)
    if start == -end and recurrence is None:
        raise InvalidDocumentError(
            path, "does not say when", "Write from: and until:, or days: and hours: with a zone:"
        )
    if start >= end:
        raise InvalidDocumentError(path, "ends before it begins", "Write the later date last")
    return Window(start, end, recurrence)


def _build_recurrence(wire: WindowDocument, path: str) -> Recurrence | None:
    if wire.days is None and wire.hours is None:
        if wire.zone is not None:
            raise InvalidDocumentError(
                f"{path}.zone", "is for days and hours", "Remove it: dates have zones of their own"
            )
        return None
    if wire.zone is None:
        raise InvalidDocumentError(
            f"{path}.zone", "is missing", "Write the zone of days and hours, as in Europe/Berlin"
        )
    check_zone(wire.zone, f"{path}.zone")
    days = _parse_days(wire.days, f"{path}.days")
    start, end = (
        (0, DAY_MINUTES) if wire.hours is None else _parse_hours(wire.hours, f"{path}.hours")
    )
    return Recurrence(wire.zone, days, start, end)


def check_zone(zone: str, path: str) -> None:
    """Reject a time zone that this machine does not know.

    An OSError that does not depend on the zone, such as one for too many open files, propagates.
    So does an error that a signal handler raises.
    """
    try:
        ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        if getattr(error, "errno", None) in _CIRCUMSTANCES or is_interruption(error):
            raise
        raise InvalidDocumentError(
            path,
            f"{zone!r} is not a time zone known here",
            "Write an IANA name such as Europe/Berlin; without the system's zones, install tzdata",
        ) from None


def _parse_days(days: list[str] | None, path: str) -> tuple[int, ...]:
    if days is None:
        return tuple(range(len(DAYS)))
    for i, day in enumerate(days):
        if day not in DAYS:
            raise InvalidDocumentError(
                f"{path}[{i}]", f"{day!r} is not a day", f"Use some of: {', '.join(DAYS)}"
            )
    if not days:
        raise InvalidDocumentError(path, "is empty", f"Use some of: {', '.join(DAYS)}")
    return tuple(sorted({DAYS.index(day) for day in days}))


def _parse_hours(wire: HoursDocument, path: str) -> tuple[int, int]:
    start, end = (
        _parse_minutes(wire.start, f"{path}.from"),
        _parse_minutes(wire.end, f"{path}.until"),
    )
    if start in (end, DAY_MINUTES):
        raise InvalidDocumentError(
            path, "have no beginning or no length", 'Write from: "09:00" and until: "17:00"'
        )
    return start, end or DAY_MINUTES


def _parse_minutes(time: str, path: str) -> int:
    if not TIME.fullmatch(time):
        raise InvalidDocumentError(
            path, f"{time!r} is not a time of day", 'Write it like "09:30", up to "24:00"'
        )
    hours, _, minutes = time.partition(":")
    return int(hours) * 60 + int(minutes)


def encode_window(window: Window) -> Mapping[str, Value]:
    """Return the document of a window."""
    ends = {"from": window.start, "until": window.end}
    document: dict[str, Value] = {
        name: to_date(end) for name, end in ends.items() if math.isfinite(end)
    }
    again = window.recurrence
    if again is None:
        return document
    if len(again.days) < len(DAYS):
        document["days"] = [DAYS[day] for day in again.days]
    if (again.start, again.end) != (0, DAY_MINUTES) or "days" not in document:
        document["hours"] = {"from": _format_time(again.start), "until": _format_time(again.end)}
    return document | {"zone": again.zone}


def _format_time(minutes: int) -> str:
    return f"{minutes // 60:02}:{minutes % 60:02}"


def to_date(seconds: float) -> datetime:
    """Return seconds since 1970 as a date in UTC, to the millisecond."""
    return _EPOCH + timedelta(milliseconds=round(seconds * 1000))
