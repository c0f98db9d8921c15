"""Time windows and ramps: their state at a moment, and the moment of their next change.

Pure functions of a moment, in seconds since 1970.
"""

import bisect
import functools
import itertools
import math
import operator
from datetime import datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

from flagkit._core.evaluation.bucketing import compute_bucket, compute_seed, compute_threshold
from flagkit._core.evaluation.matching import get_attribute, matches
from flagkit._core.interruptions import is_interruption
from flagkit._core.model import Flag, Ramp, Serves
from flagkit._core.model.keys import to_bucketing_key
from flagkit._core.model.windows import DAY_MINUTES, DAYS, Recurrence, Window

_DAY_SECONDS: Final = 86_400
_HORIZON_DAYS: Final = 16
"""The search covers two weeks: daylight saving may skip the hours of one week, never of two."""
_EPOCH_WEEKDAY: Final = 3
"""1970 began on a Thursday."""
_CACHED_RECURRENCES_MAX: Final = 16_384
"""The cache has the next change of so many recurrences: some megabytes, 64 full flags."""
_MICROSECOND: Final = 1_000_000
NO_DATE: Final = (OverflowError, ValueError, OSError)
"""The errors that `datetime` raises for a time that no calendar has."""

# ZoneInfo caches only eight zones, and reads the file of any other again.
_zone = functools.cache(ZoneInfo)


def is_open(window: Window, moment: float) -> bool:
    """Return True if a window is open."""
    again = window.recurrence
    return window.start <= moment < window.end and (
        again is None or is_recurrence_open(again, moment)
    )


def is_recurrence_open(recurrence: Recurrence, moment: float) -> bool:
    """Return True if a recurring window is open, by the local time of its zone.

    An hour that daylight saving repeats counts twice, one that it skips never comes. A moment
    before the calendar's year 1, or after 9999, is in no window.
    """
    zone = _zone(recurrence.zone)
    try:
        local = datetime.fromtimestamp(moment, zone)
    except NO_DATE as error:
        if is_interruption(error):
            raise
        return False
    return _is_in_hours(recurrence, local.weekday(), local.hour * 60 + local.minute)


def _is_in_hours(recurrence: Recurrence, day: int, minute: int) -> bool:
    if recurrence.start < recurrence.end:
        return day in recurrence.days and recurrence.start <= minute < recurrence.end
    if minute < recurrence.end:
        return (day - 1) % len(DAYS) in recurrence.days
    return day in recurrence.days and minute >= recurrence.start


def find_window_change(window: Window, moment: float) -> float:
    """Return when a window opens or closes next, infinity if never.

    Before the window begins, the result is its begin, although its first hours may come later.

    Raises:
        OverflowError, ValueError, OSError: the calendar ends before the next change.
    """
    if moment >= window.end:
        return math.inf
    if moment < window.start:
        return window.start
    change = math.inf if window.recurrence is None else _find_next_turn(window.recurrence, moment)
    if change < window.end:
        return change
    return window.end if is_open(window, moment) else math.inf


def _find_next_turn(recurrence: Recurrence, moment: float) -> float:
    """Return when a recurring window opens or closes next, cached for all moments until then.

    Raises:
        OverflowError, ValueError, OSError: as in `find_window_change`.
    """
    cached = _get_cached_turn(recurrence)
    since, until = cached[0]
    if not since <= moment < until:
        until = _compute_next_turn(recurrence, moment)
        # A single assignment: other threads see the previous pair or this one, both correct.
        cached[0] = (moment, until)
    return until


@functools.lru_cache(maxsize=_CACHED_RECURRENCES_MAX)
def _get_cached_turn(_: Recurrence) -> list[tuple[float, float]]:
    """Return the cache entry of a recurrence: its next change, and since when that is the next."""
    return [(math.inf, math.inf)]


def _compute_next_turn(recurrence: Recurrence, moment: float) -> float:
    zone = _zone(recurrence.zone)
    now_open = is_recurrence_open(recurrence, moment)
    hours = sorted({recurrence.start % DAY_MINUTES, recurrence.end % DAY_MINUTES})
    start = math.floor(moment)
    for _ in range(_HORIZON_DAYS):
        end, offset = _find_steady_offset(zone, start)
        today = (start + offset) // _DAY_SECONDS
        for day, minute in itertools.product((today, today + 1), hours):
            turn = day * _DAY_SECONDS + minute * 60 - offset
            weekday = (day + _EPOCH_WEEKDAY) % len(DAYS)
            if moment < turn < end and _is_in_hours(recurrence, weekday, minute) != now_open:
                return float(turn)
        if is_recurrence_open(recurrence, end) != now_open:
            return float(end)
        start = end
    return math.inf


def _find_steady_offset(zone: ZoneInfo, start: int) -> tuple[int, int]:
    """Return until when a zone keeps its offset from UTC, at most a day on, and the offset."""

    def offset(second: int) -> timedelta | None:
        return datetime.fromtimestamp(second, zone).utcoffset()

    before, end = offset(start), start + _DAY_SECONDS
    if offset(end) != before:
        seconds = range(start, end)
        end = start + bisect.bisect_left(seconds, x=True, key=lambda at: offset(at) != before)
    return end, (before or timedelta()) // timedelta(seconds=1)


def compute_share(ramp: Ramp, moment: float) -> int:
    """Return the share of BUCKETS that a ramp has at a moment."""
    place = bisect.bisect_right(ramp.points, moment, key=operator.itemgetter(0))
    if place == 0:
        return 0 if ramp.stepped else ramp.points[0][1]
    start, share = ramp.points[place - 1]
    if place < len(ramp.points) and not ramp.stepped:
        end, last = ramp.points[place]
        share += math.floor((last - share) * (moment - start) / (end - start))
    return share


def compute_ramp_threshold(ramp: Ramp, moment: float) -> int:
    """Return the least hash that a ramp leaves out at a moment."""
    return compute_threshold(compute_share(ramp, moment))


def find_ramp_change(ramp: Ramp, place: int, moment: float) -> float:
    """Return when a ramp takes a bucket in, or leaves it out, after a moment; else infinity."""
    inside = place < compute_share(ramp, moment)
    start = moment
    for end, _ in ramp.points:
        if end <= moment:
            continue
        if (place < compute_share(ramp, end)) != inside:
            return end if ramp.stepped else _find_crossing(ramp, place, start, end)
        start = end
    return math.inf


def _find_crossing(ramp: Ramp, place: int, start: float, end: float) -> float:
    """Return when an even ramp reaches a bucket between two moments, at most 1 us early.

    It bisects, since the inverse of the formula rounds differently from evaluations.
    """
    inside = place < compute_share(ramp, start)
    ticks = range(math.floor(start * _MICROSECOND) + 1, round(end * _MICROSECOND) + 1)
    crossed = bisect.bisect_left(
        ticks, x=True, key=lambda tick: (place < compute_share(ramp, tick / _MICROSECOND)) != inside
    )
    # The crossing may lie between the previous tick and this one.
    return ticks[max(crossed - 1, 0)] / _MICROSECOND


def find_flag_change(flag: Flag, key: str, attributes: dict[str, Any], moment: float) -> float:
    """Return when time alone may next change a flag's answer, apart from its prerequisites.

    The result is infinity if never. Conditions do not depend on time, so rules whose condition
    does not hold are skipped.

    Args:
        flag: The flag, or one that differs only in its key.
        key: The flag's key.
        attributes: The attributes of the context.
        moment: In seconds since 1970.
    """

    def serves_changes_after(serves: Serves) -> float:
        if not isinstance(serves, Ramp):
            return math.inf
        hashed = to_bucketing_key(get_attribute(attributes, serves.by))
        if hashed is None:
            return math.inf
        salt = key if serves.salt == flag.key else serves.salt
        return find_ramp_change(serves, compute_bucket(compute_seed(salt), hashed), moment)

    soonest = math.inf
    if flag.state != "active":
        return soonest
    for rule in flag.rules:
        if not matches(rule.condition, attributes):
            continue
        if rule.during is not None:
            soonest = min(soonest, find_window_change(rule.during, moment))
            if not is_open(rule.during, moment):
                continue
        return min(soonest, serves_changes_after(rule.serves))
    return min(soonest, serves_changes_after(flag.fallthrough))


def is_time_dependent(flag: Flag) -> bool:
    """Return True if a flag's answers can change by time alone."""
    for rule in flag.rules:
        if rule.during is not None or isinstance(rule.serves, Ramp):
            return True
    return isinstance(flag.fallthrough, Ramp)
