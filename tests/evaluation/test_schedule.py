"""What follows the clock: windows that recur, ramps, and when an answer may change next."""

import math
import random
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import FrameType
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flagkit import Client
from flagkit._core.evaluation import schedule
from flagkit._core.evaluation.schedule import (
    compute_share,
    find_flag_change,
    find_ramp_change,
    find_window_change,
    is_open,
)
from flagkit._core.model import Ramp, decode
from flagkit._core.model.rollouts import BUCKETS
from flagkit._core.model.windows import DAY_MINUTES, Recurrence, Window
from flagkit.testing import ManualClock, client_from

BERLIN = "Europe/Berlin"
ZONES = [BERLIN, "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "UTC", "Pacific/Apia"]
# In 2026 Berlin's clocks go from 2:00 to 3:00 on 29 March, and from 3:00 to 2:00 on 25 October.
SPRING, AUTUMN = datetime(2026, 3, 29, 1, tzinfo=UTC), datetime(2026, 10, 25, 1, tzinfo=UTC)


def flag_during(**during: Any) -> dict[str, Any]:
    return {
        "key": "f",
        "variants": {"on": True, "off": False},
        "rules": [{"name": "r", "during": during, "serve": "on"}],
        "fallthrough": {"serve": "off"},
    }


def window(**during: Any) -> Window:
    found = decode(flag_during(**during)).rules[0].during
    assert found is not None
    return found


def open_at(during: Window, *local: int, zone: str = BERLIN, fold: int = 0) -> bool:
    return is_open(during, datetime(*local, fold=fold, tzinfo=ZoneInfo(zone)).timestamp())  # type: ignore[misc,arg-type]


OFFICE = window(
    days=["mon", "tue", "wed", "thu", "fri"], hours={"from": "09:00", "until": "17:00"}, zone=BERLIN
)


def test_hours_begin_inclusive_and_end_exclusive() -> None:
    friday = (2026, 11, 20)
    assert not open_at(OFFICE, *friday, 8, 59, 59)
    assert open_at(OFFICE, *friday, 9)
    assert open_at(OFFICE, *friday, 16, 59, 59)
    assert not open_at(OFFICE, *friday, 17)
    assert not open_at(OFFICE, 2026, 11, 21, 12)


def test_hours_are_those_of_the_zone_in_summer_and_in_winter() -> None:
    for month in (1, 7):
        assert open_at(OFFICE, 2026, month, 6, 9) is (datetime(2026, month, 6).weekday() < 5)  # noqa: DTZ001
        assert open_at(OFFICE, 2026, month, 7, 9)
        assert not open_at(OFFICE, 2026, month, 7, 8, 59)
    utc = datetime(2026, 1, 7, 8, 30, tzinfo=UTC), datetime(2026, 7, 7, 8, 30, tzinfo=UTC)
    assert [is_open(OFFICE, moment.timestamp()) for moment in utc] == [True, True]
    early = datetime(2026, 1, 7, 7, 30, tzinfo=UTC), datetime(2026, 7, 7, 7, 30, tzinfo=UTC)
    assert [is_open(OFFICE, moment.timestamp()) for moment in early] == [False, True]


def test_hours_past_midnight_belong_to_the_day_on_which_they_begin() -> None:
    friday_night = window(days=["fri"], hours={"from": "22:00", "until": "06:00"}, zone=BERLIN)
    assert open_at(friday_night, 2026, 11, 20, 22)
    assert open_at(friday_night, 2026, 11, 21, 5, 59)
    assert not open_at(friday_night, 2026, 11, 21, 6)
    assert not open_at(friday_night, 2026, 11, 20, 5)
    assert not open_at(friday_night, 2026, 11, 21, 22)


def test_days_alone_are_whole_days_of_the_zone() -> None:
    sunday = window(days=["sun"], zone="America/New_York")
    assert is_open(sunday, datetime(2026, 11, 22, 5, tzinfo=UTC).timestamp())
    assert not is_open(sunday, datetime(2026, 11, 22, 4, 59, tzinfo=UTC).timestamp())
    assert is_open(sunday, datetime(2026, 11, 23, 4, 59, tzinfo=UTC).timestamp())


def test_an_hour_that_is_skipped_never_comes_and_one_that_is_repeated_counts_twice() -> None:
    early = window(hours={"from": "02:15", "until": "02:45"}, zone=BERLIN)
    skipped = [SPRING + timedelta(minutes=minute) for minute in range(-120, 120)]
    assert not any(is_open(early, moment.timestamp()) for moment in skipped)
    repeated = [AUTUMN + timedelta(minutes=minute) for minute in range(-120, 120)]
    assert sum(is_open(early, moment.timestamp()) for moment in repeated) == 60


def test_what_begins_in_a_skipped_hour_opens_when_the_clock_has_jumped() -> None:
    from_half_past = window(hours={"from": "02:30", "until": "05:00"}, zone=BERLIN)
    assert not is_open(from_half_past, SPRING.timestamp() - 1)
    assert is_open(from_half_past, SPRING.timestamp())
    assert find_window_change(from_half_past, SPRING.timestamp() - 3600) == SPRING.timestamp()


def test_a_recurring_window_is_bounded_by_its_dates() -> None:
    bounded = window(**{
        "from": datetime(2026, 11, 18, 11, tzinfo=UTC),
        "until": datetime(2026, 11, 19, 10, tzinfo=UTC),
        "hours": {"from": "09:00", "until": "17:00"},
        "zone": BERLIN,
    })  # fmt: skip
    assert not open_at(bounded, 2026, 11, 18, 11, 59)
    assert open_at(bounded, 2026, 11, 18, 12)
    assert not open_at(bounded, 2026, 11, 18, 17)
    assert open_at(bounded, 2026, 11, 19, 10, 59)
    assert not open_at(bounded, 2026, 11, 19, 11)
    turns = [datetime(2026, 11, 17, tzinfo=UTC).timestamp()]
    while math.isfinite(turns[-1]):
        turns.append(find_window_change(bounded, turns[-1]))
    assert [datetime.fromtimestamp(turn, UTC).strftime("%d %H:%M") for turn in turns[1:-1]] == [
        "18 11:00",
        "18 16:00",
        "19 08:00",
        "19 10:00",
    ]


def test_what_has_not_begun_may_change_when_it_begins_however_far_away() -> None:
    far = datetime(9999, 12, 25, tzinfo=UTC)
    rule = {"name": "r", "during": {"from": far, "days": ["mon"], "zone": BERLIN}, "serve": "off"}
    flag = {**CHANGING, "rules": [rule], "fallthrough": {"serve": "on"}}
    client = client_from([flag], now=datetime(2026, 11, 22, tzinfo=UTC))
    found = client.evaluate("f", "ada")
    assert (found.value, found.error_code, found.valid_until) == (True, None, far)
    assert [client.is_enabled("f", "ada") for _ in range(2)] == [True, True]


@pytest.mark.parametrize(
    ("now", "zone", "value", "valid_until"),
    [
        # The next Monday is the 27th, and after it there is none.
        (datetime(9999, 12, 25, tzinfo=UTC), "UTC", False, datetime(9999, 12, 27, tzinfo=UTC)),
        (datetime(9999, 12, 29, tzinfo=UTC), "UTC", False, datetime(9999, 12, 29, tzinfo=UTC)),
        (
            # In Berlin it is the year 10000.
            datetime(9999, 12, 31, 23, 30, tzinfo=UTC),
            BERLIN,
            False,
            datetime(9999, 12, 31, 23, 30, tzinfo=UTC),
        ),
        (datetime(1, 1, 1, tzinfo=UTC), "UTC", True, datetime(1, 1, 2, tzinfo=UTC)),
        (datetime(1, 1, 1, tzinfo=UTC), "America/New_York", False, datetime(1, 1, 1, tzinfo=UTC)),
        (datetime(1969, 12, 31, tzinfo=UTC), "UTC", False, datetime(1970, 1, 5, tzinfo=UTC)),
    ],
)
def test_at_the_ends_of_the_calendar_an_answer_is_sure_and_valid_until_now_at_least(
    now: datetime, zone: str, value: bool, valid_until: datetime
) -> None:
    client = client_from([flag_during(days=["mon"], zone=zone)], now=now)
    found = client.evaluate("f", "ada")
    assert (found.value, found.error_code, found.valid_until) == (value, None, valid_until)
    assert [client.is_enabled("f", "ada") for _ in range(2)] == [value, value]


@pytest.mark.parametrize("moment", [math.nan, -math.inf, 1e18, -1e18])
def test_where_a_clock_shows_no_date_no_window_recurs_and_no_answer_is_to_be_kept(
    moment: float,
) -> None:
    source = client_from([flag_during(days=["mon"], zone=BERLIN)])
    assert source.snapshot is not None
    client = Client.from_snapshot(source.snapshot, clock=lambda: moment)
    found = client.evaluate("f", "ada", default=True)
    assert (found.value, found.error_code) == (False, None)
    assert found.valid_until == datetime(1970, 1, 1, tzinfo=UTC)
    assert [client.is_enabled("f", "ada") for _ in range(2)] == [False, False]


def calls_of(ask: Callable[[], object]) -> list[str]:
    """Return the files of the functions that are called, those of C aside."""
    files: list[str] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            files.append(frame.f_code.co_filename)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        ask()
    finally:
        sys.setprofile(before)
    return files


def test_a_zone_is_read_once_however_many_are_in_use() -> None:
    zones = [*ZONES, *(f"Etc/GMT+{hours}" for hours in range(1, 11))]
    during = [window(days=["mon"], zone=zone) for zone in zones]

    def ask() -> list[bool]:
        return [is_open(recurring, START.timestamp()) for recurring in during]

    opened = ask()
    assert set(calls_of(ask)) == {__file__, schedule.__file__}
    assert ask() == opened


def test_the_next_change_is_found_once_for_all_moments_until_then() -> None:
    morning, evening = (datetime(2026, 11, 20, hour, tzinfo=UTC).timestamp() for hour in (8, 16))
    assert find_window_change(OFFICE, morning) == evening
    known = calls_of(lambda: find_window_change(OFFICE, evening - 1))
    assert find_window_change(OFFICE, evening - 1) == evening
    anew = calls_of(lambda: find_window_change(OFFICE, evening))
    assert len(known) <= 5 < len(anew), "a call within the same hours only looks it up"
    assert find_window_change(OFFICE, morning - 1) == morning, "a clock may be put back"


recurrences = st.builds(
    lambda zone, days, ends: Recurrence(zone, tuple(sorted(days)), *ends),
    st.sampled_from(ZONES),
    st.sets(st.integers(0, 6), min_size=1),
    st.tuples(
        st.integers(0, DAY_MINUTES // 15 - 1).map(lambda n: n * 15),
        st.integers(1, DAY_MINUTES // 15).map(lambda n: n * 15),
    ).filter(lambda ends: ends[0] != ends[1]),
)
# Around the changes of some zones' clocks in 2026, and Apia's lost day at the end of 2011.
moments = st.sampled_from([
    SPRING, AUTUMN, datetime(2026, 3, 8, 7, tzinfo=UTC), datetime(2026, 11, 1, 6, tzinfo=UTC),
    datetime(2026, 4, 4, 15, tzinfo=UTC), datetime(2011, 12, 30, 10, tzinfo=UTC),
]).flatmap(
    lambda change: st.integers(-3 * 86_400, 3 * 86_400).map(
        lambda seconds: change.timestamp() + seconds
    )
)  # fmt: skip


@given(recurrence=recurrences, moment=moments, seed=st.integers(0, 2**32))
def test_a_window_stays_as_it_is_until_its_next_change_and_changes_then(
    recurrence: Recurrence, moment: float, seed: int
) -> None:
    recurring = Window(-math.inf, math.inf, recurrence)
    change = find_window_change(recurring, moment)
    before = is_open(recurring, moment)
    always = len(recurrence.days) == 7 and (recurrence.start, recurrence.end) == (0, DAY_MINUTES)
    assert math.isinf(change) is always
    end = moment + 7 * 86_400 if always else change
    chance = random.Random(seed)
    for _ in range(200):
        assert is_open(recurring, chance.uniform(moment, math.nextafter(end, 0))) is before
    if not always:
        assert moment < change
        assert is_open(recurring, change) is not before


@given(
    shares=st.lists(st.integers(0, BUCKETS), min_size=2, max_size=5),
    stepped=st.booleans(),
    place=st.integers(0, BUCKETS - 1),
    moment=st.floats(-100, 600, allow_nan=False),
)
@example(shares=[0, BUCKETS], stepped=False, place=0, moment=0.0)
@example(shares=[BUCKETS, 0], stepped=False, place=0, moment=0.0)
def test_a_ramp_keeps_a_bucket_in_or_out_until_its_next_change(
    shares: list[int], stepped: bool, place: int, moment: float
) -> None:
    start = 1_764_576_000.0
    points = tuple((start + i * 100.0, share) for i, share in enumerate(shares))
    ramp = Ramp(("k",), "s", "on", "off", points if stepped else points[:2], stepped)
    moment = round((start + moment) * 1e6) / 1e6
    inside = place < compute_share(ramp, moment)
    change = find_ramp_change(ramp, place, moment)
    # The clock has microseconds, and so has an answer.
    ticks = range(round(moment * 1e6), round(min(change, start + 1000.0) * 1e6))
    for tick in {ticks[-1], *ticks[:: max(1, len(ticks) // 100)]}:
        assert (place < compute_share(ramp, tick / 1e6)) is inside
    if math.isfinite(change):
        assert change > moment
        assert (place < compute_share(ramp, change + (0 if stepped else 2e-6))) is not inside


START = datetime(2026, 12, 1, 8, tzinfo=UTC)
CHANGING = {
    "key": "f",
    "variants": {"on": True, "off": False},
    "rules": [
        {"name": "tests", "when": {"country": "DE"}, "during": {"from": START}, "serve": "on"},
        {
            "name": "ends",
            "when": {"plan": "pro"},
            "during": {"until": START + timedelta(hours=1)},
            "serve": "on",
        },
    ],
    "fallthrough": {"serve": "off"},
}


@pytest.mark.parametrize(
    ("context", "hours"),
    [
        ({"country": "AT"}, None),
        ({"country": "DE"}, 0),
        ({"plan": "pro"}, 1),
        ({"country": "DE", "plan": "pro"}, 0),
    ],
)
def test_an_answer_is_valid_until_a_rule_that_concerns_it_opens_or_closes(
    context: dict[str, Any], hours: float | None
) -> None:
    client = client_from([CHANGING], now=START - timedelta(hours=1))
    expected = None if hours is None else START + timedelta(hours=hours)
    assert client.evaluate("f", context).valid_until == expected


def test_an_answer_of_prerequisites_that_follow_the_clock_follows_it_too() -> None:
    rests = {
        "key": "rests",
        "variants": {"on": True, "off": False},
        "off": "off",
        "prerequisites": [{"flag": "middle", "variants": ["on"]}],
        "fallthrough": {"serve": "on"},
    }
    middle = {**rests, "key": "middle", "prerequisites": [{"flag": "f", "variants": ["on"]}]}
    clock = ManualClock(START - timedelta(hours=1))
    client = client_from([CHANGING, middle, rests], now=clock)
    before = client.evaluate("rests", {"country": "DE"})
    assert (before.value, before.valid_until) == (False, START)
    clock.advance(3600)
    after = client.evaluate("rests", {"country": "DE"})
    assert (after.value, after.valid_until) == (True, None)


def test_a_ramps_answer_is_valid_until_the_keys_bucket_comes_in() -> None:
    flag = {
        "key": "f",
        "variants": {"on": True, "off": False},
        "fallthrough": {
            "ramp": {
                "variant": "on",
                "otherwise": "off",
                "start": START,
                "end": START + timedelta(days=7),
            }
        },
    }
    clock = ManualClock(START - timedelta(days=1))
    client = client_from([flag], now=clock)
    before = client.evaluate("f", "ada")
    assert before.valid_until is not None
    assert START < before.valid_until < START + timedelta(days=7)
    clock.advance((before.valid_until - clock()).total_seconds() - 1e-6)
    assert client.is_enabled("f", "ada") is False
    clock.advance(3e-6)
    assert client.is_enabled("f", "ada") is True
    assert client.evaluate("f", "ada").valid_until is None
    assert client.evaluate("f", {}).valid_until is None, "without a key nothing will change"


def test_a_flag_that_is_paused_or_has_no_times_is_valid_until_it_is_changed() -> None:
    flag = decode({**CHANGING, "state": "paused"})
    assert find_flag_change(flag, flag.key, {"country": "DE"}, START.timestamp() - 1) == math.inf
    still = {**CHANGING, "rules": []}
    assert client_from([still]).evaluate("f", "ada").valid_until is None


def test_two_windows_that_meet_leave_no_moment_between_them() -> None:
    rules = [
        {"name": "before", "during": {"until": START}, "serve": "on"},
        {"name": "after", "during": {"from": START}, "serve": "on"},
    ]
    moments = iter([START.timestamp() - 1e-6, START.timestamp()] * 2)
    times = iter(moments)
    client = client_from(
        [{**CHANGING, "rules": rules}],
        now=lambda: datetime.fromtimestamp(next(times), UTC),
    )
    assert client.is_enabled("f", "ada") is True
    assert client.is_enabled("f", "ada") is True
