"""LaunchDarkly: flags as its service sends them, in its store in memory; no events are sent."""

import json
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

from benchmarks.interleave import Call
from benchmarks.peers.flags import FULL, Ask, AttributeTest, Peer, PlainFlag, RolloutStep

ON, OFF = 0, 1
WEIGHT_OF_PERCENT: Final = 1000


def to_native(flag: PlainFlag) -> Mapping[str, Any]:
    """Return a flag with a rule for each step but the last, which is its fallthrough."""
    *rules, last = flag.steps
    return {
        "key": flag.key,
        "version": 1,
        "on": True,
        "prerequisites": [],
        "targets": [],
        "contextTargets": [],
        "rules": [
            {
                "id": f"rule-{i}",
                "clauses": [_build_clause(test) for test in step.tests],
                "trackEvents": False,
            }
            | _build_serving(step)
            for i, step in enumerate(rules)
        ],
        "fallthrough": _build_serving(last),
        "offVariation": OFF,
        "variations": [True, False],
        "salt": flag.key,
        "clientSideAvailability": {"usingMobileKey": False, "usingEnvironmentId": False},
        "trackEvents": False,
        "trackEventsFallthrough": False,
        "debugEventsUntilDate": None,
        "deleted": False,
    }


def _build_serving(step: RolloutStep) -> dict[str, Any]:
    if step.percent in (0, FULL):
        return {"variation": ON if step.percent == FULL else OFF}
    weights = (step.percent, FULL - step.percent)
    variations = [
        {"variation": variation, "weight": round(weight * WEIGHT_OF_PERCENT)}
        for variation, weight in zip((ON, OFF), weights, strict=True)
    ]
    return {"rollout": {"contextKind": "user", "bucketBy": "key", "variations": variations}}


def _build_clause(test: AttributeTest) -> dict[str, Any]:
    told: dict[str, Any]
    match test.operator:
        case "among":
            told = {"op": "in", "values": test.operand}
        case "version from":
            told = {"op": "semVerLessThan", "values": [test.operand], "negate": True}
        case "number from":
            told = {"op": "greaterThanOrEqual", "values": [test.operand]}
        case "equals":
            told = {"op": "in", "values": [test.operand]}
    return {"contextKind": "user", "attribute": test.attribute, "negate": False} | told


def load(payload: bytes) -> Ask:
    """Start its client on a store that has the flags already."""
    package = import_module("ldclient")
    kinds = import_module("ldclient.versioned_data_kind")
    store = import_module("ldclient.feature_store").InMemoryFeatureStore()
    store.init({kinds.FEATURES: json.loads(payload)["flags"], kinds.SEGMENTS: {}})
    settings = import_module("ldclient.config").Config(
        "none", feature_store=store, use_ldd=True, send_events=False
    )
    client = package.LDClient(settings, start_wait=0)

    def ask(key: str, context: Mapping[str, Any]) -> Call:
        attributes = dict(context)
        builder = package.Context.builder(attributes.pop("targeting_key"))
        for name, value in attributes.items():
            builder.set(name, value)
        return Call(client.variation, (key, builder.build(), False))

    return ask


PEER: Final = Peer(
    name="LaunchDarkly",
    distribution="launchdarkly-server-sdk",
    module="ldclient",
    to_native=to_native,
    before='{"segments": {}, "flags": {',
    after="}}",
    is_keyed=True,
    load=load,
)
