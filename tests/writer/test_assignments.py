"""Leading on: an edit of a rollout never passes keys between treated variants silently."""

import random
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from flagkit import Client, Reason
from flagkit._core.model import Flag, decode, encode
from flagkit._core.model.rollouts import BUCKETS
from flagkit.errors import InvalidDocumentError
from flagkit.testing import client_from
from flagkit.writer.assignments import KeyMove, RolloutCarryOver, iter_moves, iter_rule_pairs

NOW = datetime(2026, 12, 1, 12, tzinfo=UTC)
VARIANTS = {"a": "red", "b": "blue", "control": "grey"}
DE = {"name": "dach", "when": {"country": "DE"}}


def flag(fallthrough: Any, *rules: Any, **more: Any) -> dict[str, Any]:
    document = {"key": "shop.search", "variants": VARIANTS, "off": "control"}
    return document | {"rules": [*rules], "fallthrough": fallthrough} | more


def split(weights: Mapping[str, float] | None = None, **more: Any) -> dict[str, Any]:
    return {"rollout": {"weights": weights or {"a": 50, "b": 50}, **more}}


def ramp(**more: Any) -> dict[str, Any]:
    """Return a ramp of which half the way is made by now."""
    hours = timedelta(hours=1)
    ends = {"start": NOW - hours, "end": NOW + hours}
    return {"ramp": {"variant": "a", "otherwise": "b", **ends, **more}}


def led(before: dict[str, Any], after: dict[str, Any], *, reassign: bool = False) -> Flag:
    return RolloutCarryOver(decode(before), decode(after), NOW.timestamp(), reassign).carry_over()


def intervals(found: Flag) -> list[Any]:
    document: Any = encode(found)
    parts = [*document.get("rules", []), document["fallthrough"]]
    return [part["rollout"]["intervals"] for part in parts if "rollout" in part]


HISTORY = [[20_000, "a"], [70_000, "b"], [100_000, "a"]]
"""Intervals that no fresh rollout has."""

REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "another salt": (
        flag(split()),
        flag(split(salt="wave")),
        "fallthrough.rollout.salt",
        "draws the keys again: 50 % of the keys pass",
    ),
    "another attribute": (
        flag(split()),
        flag(split(by="org.id")),
        "fallthrough.rollout.by",
        "draws the keys again: 50 % of the keys pass",
    ),
    "another salt of a rollout on or off": (
        flag(split({"a": 50, "control": 50})),
        flag(split({"a": 50, "control": 50}, salt="wave")),
        "fallthrough.rollout.salt",
        "draws the keys again: 50 % of the keys pass",
    ),
    "another salt with a larger share": (
        flag(split({"a": 10, "control": 90})),
        flag(split({"a": 20, "control": 80}, salt="wave")),
        "fallthrough.rollout.salt",
        "draws the keys again: 26 % of the keys pass",
    ),
    "weights that treated variants exchange": (
        flag(split()),
        flag(split({"a": 30, "b": 70})),
        "fallthrough.rollout.weights",
        "move 20 % of the keys from one treated variant to another",
    ),
    "other weights in a new rule": (
        flag(split()),
        flag(split(), DE | split({"a": 90, "b": 10})),
        "rules[0].rollout.weights",
        "move 40 % of the keys that the fallthrough decided before",
    ),
    "another salt in a new rule": (
        flag(split()),
        flag(split(), DE | split(salt="wave")),
        "rules[0].rollout.weights",
        "move 50 % of the keys that the fallthrough decided before",
    ),
    "a rule removed whose weights are others": (
        flag(split(), DE | split({"a": 90, "b": 10})),
        flag(split()),
        "fallthrough.rollout.weights",
        "move 40 % of the keys that the rule 'dach' decided before",
    ),
    "a condition that lets others in": (
        flag(split(), DE | split({"a": 90, "b": 10})),
        flag(
            split(), DE | {"when": {"country": {"$in": ["DE", "AT"]}}} | split({"a": 90, "b": 10})
        ),
        "rules[0].rollout.weights",
        "move 40 % of the keys that the fallthrough decided before",
    ),
    "rules in another order": (
        flag(split(), DE | split({"a": 90, "b": 10}), {"name": "all", **split()}),
        flag(split(), {"name": "all", **split()}, DE | split({"a": 90, "b": 10})),
        "rules[0].rollout.weights",
        "move 40 % of the keys that the rule 'dach' decided before",
    ),
    "one variant for all becomes a rollout": (
        flag({"serve": "a"}),
        flag(split()),
        "fallthrough.rollout.weights",
        "move 50 % of the keys",
    ),
    "a rollout becomes one variant for all": (
        flag(split()),
        flag({"serve": "a"}),
        "fallthrough.serve",
        "move 50 % of the keys",
    ),
    "values that are swapped": (
        flag(split()),
        flag(split(), variants=VARIANTS | {"a": "blue", "b": "red"}),
        "fallthrough.rollout.weights",
        "move 100 % of the keys",
    ),
    "a ramp in the place of a rollout": (
        flag(split({"a": 50, "b": 50}, intervals=[[50_000, "b"], [100_000, "a"]])),
        flag(ramp()),
        "fallthrough.ramp",
        "move 100 % of the keys",
    ),
    "a ramp with another salt": (
        flag(ramp()),
        flag(ramp(salt="wave")),
        "fallthrough.ramp.salt",
        "draws the keys again: 50 % of the keys pass",
    ),
    "another off variant": (
        flag(split()),
        flag(split({"a": 60, "b": 40}), off="b"),
        "fallthrough.rollout.weights",
        "move 10 % of the keys",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_keys_that_would_change_arms_are_refused_unless_that_is_meant(case: str) -> None:
    before, after, path, problem = REFUSED[case]
    with pytest.raises(InvalidDocumentError) as caught:
        led(before, after)
    assert caught.value.path == path
    assert problem in caught.value.problem
    assert "reassign=True, or --reassign" in caught.value.remedy
    led(before, after, reassign=True)


ALLOWED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a share that grows": (
        flag(split({"a": 5, "control": 95})),
        flag(split({"a": 60, "control": 40})),
    ),
    "another salt where nobody was treated": (
        flag(split({"a": 0, "control": 100})),
        flag(split({"a": 30, "control": 70}, salt="wave")),
    ),
    "another salt where nobody is treated any more": (
        flag(split({"a": 30, "control": 70})),
        flag(split({"a": 0, "control": 100}, salt="wave")),
    ),
    "a variant with another name": (
        flag(split()),
        flag(
            split({"red": 50, "b": 50}, intervals=[[50_000, "red"], [100_000, "b"]]),
            variants={"red": "red", "b": "blue", "control": "grey"},
        ),
    ),
    "the value of a variant": (flag(split()), flag(split(), variants=VARIANTS | {"a": "crimson"})),
    "one variant for some, by a new rule": (flag(split()), flag(split(), DE | {"serve": "a"})),
    "a rule that serves one variant removed": (flag(split(), DE | {"serve": "a"}), flag(split())),
    "one variant for all in the place of another": (flag({"serve": "a"}), flag({"serve": "b"})),
    "one that is not treated becomes a rollout": (flag({"serve": "control"}), flag(split())),
    "a new rule with the same weights": (flag(split()), flag(split(), DE | split())),
}


@pytest.mark.parametrize("case", ALLOWED)
def test_edits_that_leave_keys_in_their_arms_are_made(case: str) -> None:
    led(*ALLOWED[case])


def test_a_rollout_that_moves_into_a_rule_takes_its_keys_along() -> None:
    before = flag(split(intervals=HISTORY))
    assert intervals(led(before, flag(split(), DE | split()))) == [HISTORY, HISTORY]
    moved = flag({"serve": "control"}, {"name": "all", **split({"b": 50, "a": 50})})
    assert intervals(led(before, moved)) == [HISTORY]


def test_a_rollout_keeps_its_keys_where_its_rule_has_another_name() -> None:
    before = flag({"serve": "control"}, DE | split(intervals=HISTORY))
    after = flag({"serve": "control"}, DE | {"name": "germany"} | split({"b": 50, "a": 50}))
    assert intervals(led(before, after)) == [HISTORY]


def test_a_rollout_that_moves_back_into_the_fallthrough_keeps_its_keys() -> None:
    before = flag({"serve": "control"}, {"name": "all", **split(intervals=HISTORY)})
    assert intervals(led(before, flag(split()))) == [HISTORY]


def test_places_meet_only_where_a_context_can_come_from_one_to_the_other() -> None:
    first, second = DE | {"serve": "a"}, {"name": "pro", "when": {"plan": "pro"}, "serve": "b"}
    before, after = flag({"serve": "a"}, first, second), flag({"serve": "b"}, first, second)
    assert pairs(before, after) == {("dach", "dach"), ("pro", "pro"), (None, None)}
    assert pairs(before, flag({"serve": "a"}, second, first)) == {
        ("dach", "pro"),
        ("dach", "dach"),
        ("pro", "pro"),
        (None, None),
    }
    everybody = {"name": "all", "serve": "a"}
    assert pairs(before, flag({"serve": "a"}, everybody)) == {
        ("dach", "all"),
        ("pro", "all"),
        (None, "all"),
    }


def pairs(before: dict[str, Any], after: dict[str, Any]) -> set[tuple[str | None, str | None]]:
    found = iter_rule_pairs(decode(before), decode(after))
    return {(met.old.name, met.new.name) for met in found}


def test_moves_of_one_split_add_up_to_all_buckets() -> None:
    old, new = decode(flag(split(intervals=HISTORY))), decode(flag(split()))
    found = [*iter_moves(old.fallthrough, new.fallthrough, NOW.timestamp())]
    assert found == [
        KeyMove(20_000, "a", "a"),
        KeyMove(30_000, "b", "a"),
        KeyMove(20_000, "b", "b"),
        KeyMove(30_000, "a", "b"),
    ]
    assert sum(moved.share for moved in found) == BUCKETS


CONTEXTS = [
    {"targeting_key": f"user-{i}", "org": {"id": i % 97}, "x": i % 3, "y": i % 2}
    for i in range(120)
]


class Edits:
    """Draws flags with rollouts in several places, and edits of them."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance

    def document(self) -> dict[str, Any]:
        count = self.chance.randrange(3)
        rules = [{"name": f"rule {i}", **self.rule()} for i in range(count)]
        return flag(self.serves(), *rules)

    def rule(self) -> dict[str, Any]:
        tests: list[dict[str, Any]] = [{"x": 0}, {"x": {"$in": [0, 1]}}, {"y": 1}, {}]
        return {"when": self.chance.choice(tests), **self.serves()}

    def serves(self) -> dict[str, Any]:
        draw = self.chance.random()
        if draw < 0.15:
            return {"serve": self.chance.choice([*VARIANTS])}
        more: dict[str, Any] = {}
        if self.chance.random() < 0.15:
            more["salt"] = "wave"
        if self.chance.random() < 0.15:
            more["by"] = "org.id"
        if draw < 0.3:
            return ramp(**more)
        names = self.chance.sample([*VARIANTS], 3)
        ends = sorted(self.chance.choice((0, 20, 50, 80, 100)) for _ in names[1:])
        sizes = [end - start for start, end in zip([0, *ends], [*ends, 100], strict=True)]
        return split(dict(zip(names, sizes, strict=True)), **more)

    def edited(self, document: dict[str, Any]) -> dict[str, Any]:
        """Return the document after one edit of its rollouts, or of the rules around them."""
        rules = [{**rule} for rule in document["rules"]]
        fallthrough = document["fallthrough"]
        match self.chance.randrange(7):
            case 0:
                fallthrough = self.serves()
            case 1 if rules:
                place = self.chance.randrange(len(rules))
                rules[place] |= {"serve": None, "rollout": None, "ramp": None} | self.serves()
                rules[place] = {name: it for name, it in rules[place].items() if it is not None}
            case 2:
                rules.insert(
                    self.chance.randrange(len(rules) + 1), {"name": "moved", **fallthrough}
                )
                fallthrough = self.serves()
            case 3 if rules:
                fallthrough = {
                    name: it
                    for name, it in rules.pop(self.chance.randrange(len(rules))).items()
                    if name in ("serve", "rollout", "ramp")
                }
            case 4:
                self.chance.shuffle(rules)
            case 5 if rules:
                rules[0]["when"] = self.rule()["when"]
            case _:
                rules.insert(0, {"name": "new", **self.rule()})
        return document | {"rules": rules, "fallthrough": fallthrough}


def test_no_key_passes_between_treated_variants_in_any_edit() -> None:
    chance = random.Random(20_261_129)
    edits = Edits(chance)
    told = Counter[str]()
    for _ in range(1_500):
        document = edits.document()
        # So that intervals have a history.
        before = led(document, edits.document(), reassign=True)
        edited = decode(edits.edited(written(before)))
        try:
            after = RolloutCarryOver(before, edited, NOW.timestamp(), reassign=False).carry_over()
        except InvalidDocumentError:
            told["refused"] += 1
            continue
        told["made"] += 1
        assert_nobody_passes(before, after)
    assert min(told["refused"], told["made"]) > 300, told


def written(found: Flag) -> dict[str, Any]:
    """Return a flag's document as people write it, without intervals."""
    document: dict[str, Any] = {"rules": [], **encode(found)}
    for part in (*document["rules"], document["fallthrough"]):
        part.get("rollout", {}).pop("intervals", None)
    return document


def assert_nobody_passes(before: Flag, after: Flag) -> None:
    clients: list[Client] = [client_from([encode(side)], now=NOW) for side in (before, after)]
    for context in CONTEXTS:
        old, new = (client.evaluate("shop.search", context, default=None) for client in clients)
        if old.variant == new.variant or "control" in (old.variant, new.variant):
            continue
        # Who comes from one place to another is targeted anew, if either serves one variant to all.
        splits = [side.reason == Reason.SPLIT for side in (old, new)]
        is_judged = any(splits) if old.rule == new.rule else all(splits)
        assert not is_judged, (encode(before), encode(after), context)
