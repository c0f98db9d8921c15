"""Stale flags: what is listed for people to look at, and why."""

import json
from datetime import timedelta
from typing import Any

import pytest

from flagkit._core.model.changes import build_next_change
from flagkit.writer import Writer
from flagkit.writer.operations import SetState
from flagkit.writer.planning import plan
from flagkit.writer.stale_flags import StaleFlag
from tests.cli.test_cli import in_environment, run
from tests.writer.test_writer import flag

pytestmark = pytest.mark.mongo

LATER = timedelta(days=31)


def reasons(writer: Writer, later: timedelta = LATER) -> dict[str, tuple[str, ...]]:
    now = writer.store.read_tip().time + later
    return {found.key: found.reasons for found in writer.reader.stale_flags(30, now)}


def touched(writer: Writer, key: str, **more: Any) -> None:
    writer.create(flag(key, description="first"))
    writer.update(flag(key, **more))


def test_flags_that_were_never_changed_are_stale_after_some_days(writer: Writer) -> None:
    writer.create(flag("a.old", owner="team-search"))
    touched(writer, "a.changed")
    assert reasons(writer) == {"a.old": ("never changed for 30 days",)}
    assert reasons(writer, timedelta(days=29)) == {}
    now = writer.store.read_tip().time + LATER
    (found,) = writer.reader.stale_flags(30, now)
    assert found == StaleFlag("a.old", "*", 1, "team-search", ("never changed for 30 days",))


def test_flags_whose_rollouts_are_decided_are_stale(writer: Writer) -> None:
    decided = "at 0 or 100 % for 30 days"
    half = {"name": "half", "when": {"country": "DE"}, "rollout": 50}
    whole = {"name": "whole", "when": {"country": "AT"}, "rollout": 100}
    ramp = {"variant": "on", "otherwise": "off"}
    past = {"start": "2026-01-01T00:00:00Z", "end": "2026-01-02T00:00:00Z"}
    ahead = {"start": "2026-01-01T00:00:00Z", "end": "2999-01-02T00:00:00Z"}
    touched(writer, "a.whole", fallthrough={"rollout": 100})
    touched(writer, "a.none", fallthrough={"rollout": 0})
    touched(writer, "a.half", fallthrough={"rollout": 50})
    touched(writer, "a.mixed", rules=[half, whole])
    touched(writer, "a.ruled", rules=[whole], fallthrough={"serve": "off"})
    touched(writer, "a.ramped", fallthrough={"ramp": ramp | past})
    touched(writer, "a.part", fallthrough={"ramp": ramp | past | {"to": 50}})
    touched(writer, "a.ramping", fallthrough={"ramp": ramp | ahead})
    assert reasons(writer) == dict.fromkeys(
        ("a.none", "a.ramped", "a.ruled", "a.whole"), (decided,)
    )


def test_flags_that_time_still_changes_are_not_stale(writer: Writer) -> None:
    ramp = {"variant": "on", "otherwise": "off", "start": "2026-01-01T00:00:00Z"}
    windows: dict[str, dict[str, Any]] = {
        "a.ends": {"until": "2999-01-01T00:00:00Z"},
        "a.begins": {"from": "2999-01-01T00:00:00Z"},
        "a.recurs": {"days": ["sat"], "zone": "UTC"},
        "a.ended": {"until": "2026-01-01T00:00:00Z"},
        "a.begun": {"from": "2026-01-01T00:00:00Z"},
    }
    for key, during in windows.items():
        rule = {"name": "sale", "during": during, "rollout": 100}
        writer.create(flag(key, rules=[rule], fallthrough={"serve": "off"}))
    writer.create(flag("a.ramping", fallthrough={"ramp": ramp | {"end": "2999-01-01T00:00:00Z"}}))
    writer.create(flag("a.ramped", fallthrough={"ramp": ramp | {"end": "2026-01-02T00:00:00Z"}}))
    assert {*reasons(writer)} == {"a.ended", "a.begun", "a.ramped"}


def test_flags_past_expires_are_stale_at_once_and_archived_ones_after_some_days(
    writer: Writer,
) -> None:
    touched(writer, "a.expired", expires="2026-01-01T00:00:00Z")
    touched(writer, "a.lasting", expires="2999-01-01T00:00:00Z")
    touched(writer, "a.archived", state="archived")
    touched(writer, "a.deleted", state="archived")
    writer.delete("a.deleted")
    writer.create_segment({"key": "staff"})
    expired = ("past its expires, 2026-01-01",)
    assert reasons(writer, timedelta()) == {"a.expired": expired}
    assert reasons(writer) == {"a.archived": ("archived for 30 days",), "a.expired": expired}


def test_a_change_that_is_not_projected_yet_is_no_old_one(writer: Writer) -> None:
    point = writer.create(flag("a.old"))
    with writer.store.open_reader() as reading:
        planned = plan([SetState(key="a.old", verb="pause")], reading, 1, {})
    change = build_next_change(reading.tip, "the-dead-one", point.time + LATER, planned.changes)
    assert writer.store.compare_and_set(reading.tip, change)
    assert writer.reader.stale_flags(30, point.time + LATER) == []


def test_the_command_lists_them(mongo_uri: str, database: str, writer: Writer) -> None:
    where = in_environment(mongo_uri, database)
    assert run("flags", "stale", **where).stdout == "No flag is stale.\n"
    writer.create(flag("a.old", owner="team-search", region="eu"))
    shown = run("flags", "stale", "--days", "0", **where)
    assert shown.returncode == 0, shown.stderr
    for words in ("a.old", "eu", "team-search", "never changed for 0 days"):
        assert words in shown.stdout
    told = json.loads(run("flags", "stale", "--days", "0", "--output", "json", **where).stdout)
    assert [(found["key"], found["version"]) for found in told] == [("a.old", 1)]


def test_grants_and_segments_are_no_flags(writer: Writer) -> None:
    writer.create(flag("a.old"))
    writer.create_segment({"key": "a.beta", "included": ["u-1"]})
    with writer.change() as change:
        change.grant("dana", "admin")
    assert [*reasons(writer)] == ["a.old"]
