"""Flags: what W1 to W3 and the catalogue say, in the simplest form that all peers can be told.

A flag is steps: the first whose tests all hold turns the flag on for a share of all users, by
targeting key. All steps but the last that have rules serve all, so that "the first that holds" and
"any that holds", which is what Unleash knows, are the same.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Literal, TypeAlias

from msgspec import Struct

from benchmarks.interleave import Call

Operator: TypeAlias = Literal["among", "version from", "number from", "equals"]
Ask: TypeAlias = Callable[[str, Mapping[str, Any]], Call]
"""Gives the call that answers for a flag's key and attributes, ready to be made again and again."""

FULL: Final = 100.0


class AttributeTest(Struct, frozen=True):
    """A condition on one attribute."""

    attribute: str
    operator: Operator
    operand: Any


class RolloutStep(Struct, frozen=True):
    """A percentage that is on where all tests hold."""

    tests: tuple[AttributeTest, ...]
    percent: float


class PlainFlag(Struct, frozen=True):
    """A boolean flag. The last of its steps has no tests."""

    key: str
    steps: tuple[RolloutStep, ...]


class Peer(Struct, frozen=True):
    """A library that is measured.

    `to_native` makes its document of a flag, `before` and `after` stand around all of them in a
    payload, as an object by key if `is_keyed`, else as a list. `load` takes the payload, as it
    comes from the network.
    """

    name: str
    distribution: str
    module: str
    to_native: Callable[[PlainFlag], Mapping[str, Any]]
    before: str
    after: str
    is_keyed: bool
    load: Callable[[bytes], Ask]


def to_plain_flag(document: Mapping[str, Any]) -> PlainFlag:
    """Return a policy document in the simple form.

    Raises:
        ValueError: it says more than that form can.
    """
    steps = [
        RolloutStep(tuple(_list_tests(rule["when"])), _get_percent(rule))
        for rule in document.get("rules", ())
    ]
    last = RolloutStep((), _get_percent(document["fallthrough"]))
    if any(step.percent != FULL for step in steps[:-1]) or (steps and last.percent > 0):
        raise ValueError(f"{document['key']} is not the same where any rule counts")
    return PlainFlag(document["key"], (*steps, last))


def _list_tests(condition: Mapping[str, Any]) -> Iterator[AttributeTest]:
    for attribute, test in condition.items():
        match test:
            case {"$in": operand, **rest} if not rest:
                yield AttributeTest(attribute, "among", operand)
            case {"$semver": {"$gte": operand, **rest}} if not rest:
                yield AttributeTest(attribute, "version from", operand)
            case {"$gte": operand, **rest} if not rest:
                yield AttributeTest(attribute, "number from", operand)
            case str():
                yield AttributeTest(attribute, "equals", test)
            case _:
                raise ValueError(f"no peer was told of {test}")


def _get_percent(serves: Mapping[str, Any]) -> float:
    if "rollout" in serves:
        return float(serves["rollout"])
    return FULL if serves["serve"] == "on" else 0.0
