"""Differences: lines in which people read what a change did."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from flagkit._core.model import EVERYWHERE, decode, encode
from flagkit._core.model.changes import SEGMENTS, PolicyChange, PolicyState, build_state
from flagkit._core.model.segments import decode_segment, encode_segment
from flagkit.writer.ledger import format_differences

KEY = "shop.search"
RULE = {"name": "dach", "when": {"country": "DE"}, "rollout": 10}
OTHER = {"name": "beta", "when": {"plan": "pro"}, "serve": "on"}
RAMP = {
    "variant": "on",
    "otherwise": "off",
    "start": "2026-12-01T08:00:00Z",
    "end": "2026-12-08T08:00:00Z",
}

START = "2026-12-01 08:00:00 UTC"
SHARE = "on from 0 to 100 %, otherwise off"
SPAN = f"{START} to 2026-12-08 08:00:00 UTC"


def flag(**more: Any) -> PolicyState:
    variants = {"on": True, "off": False}
    document = {"key": KEY, "variants": variants, "off": "off", "fallthrough": {"serve": "on"}}
    made = decode(document | more)
    return build_state(KEY, made.region, 1, encode(made))


def segment(*included: str, **more: Any) -> PolicyState:
    made = decode_segment({"key": "staff", "included": [*included], **more}).segment
    return build_state("staff", SEGMENTS, 1, encode_segment(made))


def rollout(percent: float, **more: Any) -> Mapping[str, Any]:
    return {"rollout": {"weights": {"on": percent, "off": 100 - percent}, **more}}


CASES: dict[str, tuple[PolicyState | None, PolicyState | None, list[str]]] = {
    "created": (None, flag(), ["created", "fallthrough: serves on"]),
    "created with rules": (
        None,
        flag(rules=[RULE, OTHER], state="paused", fallthrough={"ramp": RAMP}),
        [
            "created, paused",
            "rule dach: on 10 %, off 90 %",
            "rule beta: serves on",
            f"fallthrough: on from 0 to 100 %, otherwise off, {SPAN}",
        ],
    ),
    "deleted": (flag(), None, ["deleted"]),
    "paused": (flag(), flag(state="paused"), ["state: active -> paused"]),
    "a rule added": (
        flag(rules=[OTHER]),
        flag(rules=[RULE, OTHER]),
        ["rule dach added: on 10 %, off 90 %"],
    ),
    "a rule removed": (flag(rules=[RULE, OTHER]), flag(rules=[OTHER]), ["rule dach removed"]),
    "rules in another order": (
        flag(rules=[RULE, OTHER]),
        flag(rules=[OTHER, RULE]),
        ["rules in another order: beta, dach"],
    ),
    "a condition": (
        flag(rules=[RULE]),
        flag(rules=[RULE | {"when": {"country": "AT"}}]),
        ['rule dach: when: {"country": "DE"} -> {"country": "AT"}'],
    ),
    "a window": (
        flag(rules=[OTHER]),
        flag(rules=[OTHER | {"during": {"days": ["mon"], "zone": "UTC"}}]),
        ['rule beta: during added: {"days": ["mon"], "zone": "UTC"}'],
    ),
    "a rule's rollout": (
        flag(rules=[RULE]),
        flag(rules=[RULE | {"rollout": 50}]),
        ["rule dach: on 10 -> 50 %, off 90 -> 50 %"],
    ),
    "a fallthrough's rollout": (
        flag(fallthrough=rollout(10)),
        flag(fallthrough=rollout(12.5)),
        ["fallthrough: on 10 -> 12.5 %, off 90 -> 87.5 %"],
    ),
    "a ramp": (
        flag(fallthrough={"ramp": RAMP}),
        flag(
            fallthrough={
                "ramp": {
                    "variant": "on",
                    "otherwise": "off",
                    "steps": [{"at": RAMP["start"], "percent": 10}],
                }
            }
        ),
        [f"fallthrough: {SHARE}, {SPAN} -> on in steps, otherwise off: 10 % at {START}"],
    ),
    "a text that is long": (
        flag(),
        flag(description="x" * 99),
        [f"description added: {'x' * 80}..."],
    ),
    "a rollout's salt and keys": (
        flag(fallthrough=rollout(10)),
        flag(fallthrough=rollout(10, salt="wave", by="org.id")),
        ["fallthrough: by added: org.id", "fallthrough: salt added: wave"],
    ),
    "other keys at the same weights": (
        flag(fallthrough=rollout(10)),
        flag(fallthrough=rollout(10, intervals=[[90_000, "off"], [100_000, "on"]])),
        ["fallthrough: other keys, at the same weights"],
    ),
    "what is served": (
        flag(),
        flag(fallthrough=rollout(10)),
        ["fallthrough: serves on -> on 10 %, off 90 %"],
    ),
    "variants": (
        flag(variants={"on": 1.0, "off": 0.0}),
        flag(variants={"on": 2.0, "off": 0.0, "half": 0.5}),
        ["variant on: 1.0 -> 2.0", "variant half added: 0.5"],
    ),
    "a variant's type": (
        flag(variants={"on": 1, "off": 0}),
        flag(),
        ["variant on: 1 -> true", "variant off: 0 -> false"],
    ),
    "prerequisites": (
        flag(),
        flag(prerequisites=[{"flag": "a.base", "variants": ["x", "y"]}]),
        ["prerequisites added: a.base serves x or y"],
    ),
    "what is for people": (
        flag(owner="ana", tags=["x"], expires=datetime(2026, 12, 1, tzinfo=UTC)),
        flag(owner="bo", when_stale="off"),
        [
            "when_stale added: off",
            "owner: ana -> bo",
            'tags removed: ["x"]',
            "expires removed: 2026-12-01 00:00:00 UTC",
        ],
    ),
    "a condition's type": (
        flag(rules=[OTHER | {"when": {"plan": {"$ne": True}}}]),
        flag(rules=[OTHER | {"when": {"plan": {"$ne": 1}}}]),
        ['rule beta: when: {"plan": {"$ne": true}} -> {"plan": {"$ne": 1}}'],
    ),
    "the order of a constant's fields": (
        flag(rules=[OTHER | {"when": {"size": {"w": 1, "h": 2}}}]),
        flag(rules=[OTHER | {"when": {"size": {"h": 2, "w": 1}}}]),
        ['rule beta: when: {"size": {"w": 1, "h": 2}} -> {"size": {"h": 2, "w": 1}}'],
    ),
    "values that begin alike": (
        flag(description="x" * 99 + "yes"),
        flag(description="x" * 99 + "no"),
        [f"description: ...{'x' * 40}yes -> ...{'x' * 40}no"],
    ),
    "a ramp's keys and the other variant": (
        flag(fallthrough={"ramp": RAMP}),
        flag(fallthrough={"ramp": RAMP | {"salt": "wave", "variant": "off", "otherwise": "on"}}),
        [f"fallthrough: {SHARE}, {SPAN} -> off from 0 to 100 %, otherwise on, {SPAN}, salt wave"],
    ),
    "weights in another order": (
        flag(fallthrough=rollout(50)),
        flag(
            fallthrough={
                "rollout": {
                    "weights": {"off": 50, "on": 50},
                    "intervals": [[50_000, "on"], [100_000, "off"]],
                }
            }
        ),
        ["fallthrough: weights in another order: off, on"],
    ),
    "the order of variants": (
        flag(),
        flag(variants={"off": False, "on": True}),
        ["written differently, with the same meaning"],
    ),
    "an override": (None, flag(region="eu"), ["created", "fallthrough: serves on"]),
    "a segment created": (None, segment("ada"), ["created", "included: 1 keys"]),
    "a segment's members": (segment("ada"), segment("ada", "bo"), ["included: 1 -> 2 keys"]),
    "other members": (segment("ada"), segment("bo"), ["included: 1 -> 1 keys, others"]),
    "all members removed": (segment("ada"), segment(), ["included: 1 -> 0 keys"]),
    "a segment's condition": (
        segment(),
        segment(when={"plan": "pro"}),
        ['when added: {"plan": "pro"}'],
    ),
    "a segment deleted": (segment(), None, ["deleted"]),
}


@pytest.mark.parametrize("name", CASES)
def test_a_change_is_told_in_lines(name: str) -> None:
    before, after, lines = CASES[name]
    region, key = PolicyChange(before, after).id
    subject = {EVERYWHERE: key, SEGMENTS: f"segment {key}"}.get(region, f"{key} in {region}")
    assert format_differences(PolicyChange(before, after)) == tuple(
        f"{subject}: {line}" for line in lines
    )
