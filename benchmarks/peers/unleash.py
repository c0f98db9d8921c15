"""Unleash: features with a strategy for each step; since version 6 evaluated in Rust, by JSON."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

from benchmarks.interleave import Call
from benchmarks.peers.flags import Ask, AttributeTest, Peer, PlainFlag, RolloutStep


def to_native(flag: PlainFlag) -> Mapping[str, Any]:
    """Return a feature, on where any of its strategies is."""
    return {
        "name": flag.key,
        "type": "release",
        "enabled": any(step.percent for step in flag.steps),
        "stale": False,
        "impressionData": False,
        "project": "default",
        "variants": [],
        "strategies": [_build_strategy(flag.key, step) for step in flag.steps if step.percent > 0],
    }


def _build_strategy(key: str, step: RolloutStep) -> dict[str, Any]:
    return {
        "name": "flexibleRollout",
        "parameters": {
            "rollout": f"{step.percent:g}",
            "stickiness": "userId",
            "groupId": key,
        },
        "constraints": [_build_constraint(test) for test in step.tests],
        "variants": [],
    }


def _build_constraint(test: AttributeTest) -> dict[str, Any]:
    told: dict[str, Any]
    match test.operator:
        case "among":
            told = {"operator": "IN", "values": test.operand}
        case "version from":
            told = {"operator": "SEMVER_LT", "value": test.operand, "inverted": True}
        case "number from":
            told = {"operator": "NUM_GTE", "value": str(test.operand)}
        case "equals":
            told = {"operator": "IN", "values": [test.operand]}
    return {"contextName": test.attribute, "inverted": False, "caseInsensitive": False} | told


def load(payload: bytes) -> Ask:
    """Start its client on a bootstrapped cache, without fetching, metrics or registration."""
    package = import_module("UnleashClient")
    features = import_module("UnleashClient.constants").FEATURES_URL
    base: Any = import_module("UnleashClient.cache").BaseCache

    class Cache(base):  # type: ignore[misc]
        """A cache in memory: the one of files would write to the user's directory."""

        bootstrapped = True

        def __init__(self) -> None:
            self._values: dict[str, Any] = {features: payload.decode()}

        def set(self, key: str, value: Any) -> None:
            self._values[key] = value

        def mset(self, data: dict[str, Any]) -> None:
            self._values.update(data)

        def get(self, key: str, default: Any = None) -> Any:
            return self._values.get(key, default)

        def exists(self, key: str) -> bool:
            return key in self._values

        def destroy(self) -> None:
            self._values.clear()

    client = package.UnleashClient(
        url="http://127.0.0.1:9",
        app_name="benchmark",
        disable_metrics=True,
        disable_registration=True,
        cache=Cache(),
    )

    def ask(key: str, context: Mapping[str, Any]) -> Call:
        properties = dict(context)
        user = properties.pop("targeting_key")
        properties = {name: str(value) for name, value in properties.items()}
        return Call(client.is_enabled, (key, {"userId": user, "properties": properties}))

    return ask


PEER: Final = Peer(
    name="Unleash",
    distribution="UnleashClient",
    module="UnleashClient",
    to_native=to_native,
    before='{"version": 2, "features": [',
    after="]}",
    is_keyed=False,
    load=load,
)
