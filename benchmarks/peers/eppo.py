"""Eppo: flags as its universal flag configuration has them; evaluated in Rust."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

from benchmarks.interleave import Call
from benchmarks.peers.flags import FULL, Ask, AttributeTest, Peer, PlainFlag, RolloutStep

SHARDS: Final = 10_000
OPERATORS: Final = {
    "among": "ONE_OF",
    "version from": "GTE",
    "number from": "GTE",
    "equals": "ONE_OF",
}


def to_native(flag: PlainFlag) -> Mapping[str, Any]:
    """Return a flag with an allocation for each step."""
    return {
        "key": flag.key,
        "enabled": True,
        "variationType": "BOOLEAN",
        "variations": {
            "on": {"key": "on", "value": True},
            "off": {"key": "off", "value": False},
        },
        "totalShards": SHARDS,
        "allocations": [_build_allocation(flag.key, i, step) for i, step in enumerate(flag.steps)],
    }


def _build_allocation(key: str, index: int, step: RolloutStep) -> dict[str, Any]:
    rules = [{"conditions": [_build_condition(test) for test in step.tests]}] if step.tests else []
    return {
        "key": f"allocation-{index}",
        "rules": rules,
        "splits": _build_splits(key, step.percent),
        "doLog": False,
    }


def _build_splits(key: str, percent: float) -> list[dict[str, Any]]:
    everyone: dict[str, Any] = {"variationKey": "on" if percent == FULL else "off", "shards": []}
    if percent in (0, FULL):
        return [everyone]
    ranges = [{"start": 0, "end": round(percent * SHARDS / FULL)}]
    return [{"variationKey": "on", "shards": [{"salt": key, "ranges": ranges}]}, everyone]


def _build_condition(test: AttributeTest) -> dict[str, Any]:
    value = [test.operand] if test.operator == "equals" else test.operand
    return {"attribute": test.attribute, "operator": OPERATORS[test.operator], "value": value}


def load(payload: bytes) -> Ask:
    """Start its client on a configuration, with nothing to poll and nothing to log."""
    eppo = import_module("eppo_client")
    client = eppo.init(
        eppo.ClientConfig(
            api_key="none",
            base_url="http://127.0.0.1:9",
            assignment_logger=eppo.AssignmentLogger(),
            poll_interval_seconds=None,
            initial_configuration=eppo.Configuration(flags_configuration=payload),
        )
    )

    def ask(key: str, context: Mapping[str, Any]) -> Call:
        attributes = dict(context)
        user = attributes.pop("targeting_key")
        return Call(client.get_boolean_assignment, (key, user, attributes, False))

    return ask


PEER: Final = Peer(
    name="Eppo",
    distribution="eppo-server-sdk",
    module="eppo_client",
    to_native=to_native,
    before='{"createdAt": "2026-11-22T00:00:00.000Z", "format": "SERVER",'
    ' "environment": {"name": "benchmark"}, "flags": {',
    after="}}",
    is_keyed=True,
    load=load,
)
