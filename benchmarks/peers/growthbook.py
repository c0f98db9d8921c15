"""GrowthBook: features with forced rules and coverage; a client is of one user, reused here."""

import json
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

from benchmarks.interleave import Call
from benchmarks.peers.flags import FULL, Ask, AttributeTest, Peer, PlainFlag, RolloutStep


def to_native(flag: PlainFlag) -> Mapping[str, Any]:
    """Return a feature with a rule for each step that is on for someone."""
    *rules, last = flag.steps
    if not rules and last.percent in (0, FULL):
        return {"defaultValue": last.percent == FULL}
    return {
        "defaultValue": False,
        "rules": [_build_rule(flag.key, step) for step in flag.steps if step.percent > 0],
    }


def _build_rule(key: str, step: RolloutStep) -> dict[str, Any]:
    rule: dict[str, Any] = {"force": True}
    if step.tests:
        rule["condition"] = {test.attribute: _build_condition(test) for test in step.tests}
    if step.percent < FULL:
        rule |= {"coverage": step.percent / FULL, "hashAttribute": "id", "seed": key}
    return rule


def _build_condition(test: AttributeTest) -> Any:
    match test.operator:
        case "among":
            return {"$in": test.operand}
        case "version from":
            return {"$vgte": test.operand}
        case "number from":
            return {"$gte": test.operand}
        case "equals":
            return test.operand


def load(payload: bytes) -> Ask:
    """Start its client on a payload."""
    client = import_module("growthbook").GrowthBook(features=json.loads(payload)["features"])

    def ask(key: str, context: Mapping[str, Any]) -> Call:
        attributes = dict(context)
        client.set_attributes({"id": attributes.pop("targeting_key"), **attributes})
        return Call(client.is_on, (key,))

    return ask


PEER: Final = Peer(
    name="GrowthBook",
    distribution="growthbook",
    module="growthbook",
    to_native=to_native,
    before='{"status": 200, "features": {',
    after="}}",
    is_keyed=True,
    load=load,
)
