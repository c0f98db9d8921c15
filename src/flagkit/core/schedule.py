"""Schedule: what follows the clock, windows and ramps, and when it changes next.

Pure functions of a moment, in seconds since 1970.
"""

import bisect
import math
import operator
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

from flagkit.core.bucketing import bucket, seed, threshold
from flagkit.core.matching import attribute, matches
from flagkit.model import Flag, Ramp, Serves
from flagkit.model.keys import key_of
from flagkit.model.windows import DAY_MINUTES, DAYS, Recurrence, Window

_DAY_SECONDS: Final = 86_400
_LOOK_AHEAD_DAYS: Final = 16
"""Two weeks and a bit: daylight saving may skip the hours of one week, never of two."""
_MICROSECOND: Final = 1_000_000


def is_open(window: Window, moment: float) -> bool:
    """Tell whether a window is open."""
    again = window.recurrence
    return window.start <= moment < window.end and (again is None or recurs(again, moment))


def recurs(recurrence: Recurrence, moment: float) -> bool:
    """Tell whether a recurring window is open, by what a clock on the wall shows.

    An hour that daylight saving repeats counts twice, one that it skips never comes.
    """
    local = datetime.fromtimestamp(moment, ZoneInfo(recurrence.zone))
    minute, day = local.hour * 60 + local.minute, local.weekday()
    if recurrence.start < recurrence.end:
        return day in recurrence.days and recurrence.start <= minute < recurrence.end
    if minute < recurrence.end:
        return (day - 1) % len(DAYS) in recurrence.days
    return day in recurrence.days and minute >= recurrence.start


def window_changes_after(window: Window, moment: float) -> float:
    """Return when a window opens or closes next, infinity if never."""
    if moment >= window.end:
        return math.inf
    if moment < window.start:
        if is_open(window, window.start):
            return window.start
        moment = window.start
    change = math.inf if window.recurrence is None else _turns_after(window.recurrence, moment)
    if change < window.end:
        return change
    return window.end if is_open(window, moment) else math.inf


def _turns_after(recurrence: Recurrence, moment: float) -> float:
    """Return when a recurring window opens or closes next."""
    zone = ZoneInfo(recurrence.zone)
    today = datetime.fromtimestamp(moment, zone).date()
    candidates = {
        _seconds(today + timedelta(days=ahead), minutes, fold, zone)
        for ahead in range(-1, _LOOK_AHEAD_DAYS)
        for minutes in (recurrence.start, recurrence.end)
        for fold in (0, 1)
    }
    candidates |= _offset_changes(zone, math.floor(moment))
    now_open = recurs(recurrence, moment)
    later = sorted(candidate for candidate in candidates if candidate > moment)
    return next((turn for turn in later if recurs(recurrence, turn) != now_open), math.inf)


def _seconds(day: date, minutes: int, fold: int, zone: ZoneInfo) -> float:
    day += timedelta(days=minutes // DAY_MINUTES)
    clock = time(minutes % DAY_MINUTES // 60, minutes % 60, fold=fold)
    return datetime.combine(day, clock, zone).timestamp()


def _offset_changes(zone: ZoneInfo, start: int) -> set[float]:
    """Return when the zone's offset from UTC changes, within the time looked ahead."""

    def offset(second: int) -> timedelta | None:
        return datetime.fromtimestamp(second, UTC).astimezone(zone).utcoffset()

    found: set[float] = set()
    for day in range(start, start + _LOOK_AHEAD_DAYS * _DAY_SECONDS, _DAY_SECONDS):
        seconds = range(day, day + _DAY_SECONDS + 1)
        before = offset(seconds[0])
        if offset(seconds[-1]) != before:
            place = bisect.bisect_left(seconds, x=True, key=lambda second: offset(second) != before)
            found.add(float(seconds[place]))
    return found


def share_at(ramp: Ramp, moment: float) -> int:
    """Return the share of BUCKETS that a ramp has at a moment."""
    place = bisect.bisect_right(ramp.points, moment, key=operator.itemgetter(0))
    if place == 0:
        return 0 if ramp.stepped else ramp.points[0][1]
    start, share = ramp.points[place - 1]
    if place < len(ramp.points) and not ramp.stepped:
        end, last = ramp.points[place]
        share += math.floor((last - share) * (moment - start) / (end - start))
    return share


def threshold_at(ramp: Ramp, moment: float) -> int:
    """Return the least hash that a ramp leaves out at a moment."""
    return threshold(share_at(ramp, moment))


def ramp_changes_after(ramp: Ramp, place: int, moment: float) -> float:
    """Return when a ramp takes a bucket in, or leaves it out, after a moment; else infinity."""
    inside = place < share_at(ramp, moment)
    start = moment
    for end, _ in ramp.points:
        if end <= moment:
            continue
        if (place < share_at(ramp, end)) != inside:
            return end if ramp.stepped else _crossing(ramp, place, start, end)
        start = end
    return math.inf


def _crossing(ramp: Ramp, place: int, start: float, end: float) -> float:
    """Return when an even ramp reaches a bucket between two moments, at most 1 us early.

    By halves, since the inverse of its formula would be off by a rounding from what evaluations do.
    """
    inside = place < share_at(ramp, start)
    ticks = range(math.floor(start * _MICROSECOND) + 1, round(end * _MICROSECOND) + 1)
    turned = bisect.bisect_left(
        ticks, x=True, key=lambda tick: (place < share_at(ramp, tick / _MICROSECOND)) != inside
    )
    # It may have turned since the tick before.
    return ticks[max(turned - 1, 0)] / _MICROSECOND


def flag_changes_after(flag: Flag, attributes: dict[str, Any], moment: float) -> float:
    """Return when a flag, its prerequisites aside, may answer otherwise by time alone.

    Infinity if never. Conditions do not depend on time: rules whose condition does not hold are
    passed over.
    """
    soonest = math.inf
    if flag.state != "active":
        return soonest
    for rule in flag.rules:
        if not matches(rule.condition, attributes):
            continue
        if rule.during is not None:
            soonest = min(soonest, window_changes_after(rule.during, moment))
            if not is_open(rule.during, moment):
                continue
        return min(soonest, _serves_changes_after(rule.serves, attributes, moment))
    return min(soonest, _serves_changes_after(flag.fallthrough, attributes, moment))


def _serves_changes_after(serves: Serves, attributes: dict[str, Any], moment: float) -> float:
    if not isinstance(serves, Ramp):
        return math.inf
    key = key_of(attribute(attributes, serves.by))
    if key is None:
        return math.inf
    return ramp_changes_after(serves, bucket(seed(serves.salt), key), moment)


def follows_clock(flag: Flag) -> bool:
    """Tell whether a flag's answers can change by time alone."""
    served = [flag.fallthrough, *(rule.serves for rule in flag.rules)]
    return any(rule.during is not None for rule in flag.rules) or any(
        isinstance(serves, Ramp) for serves in served
    )
