"""Freshness: what flags answer whose snapshot is older than it may be."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from flagkit._core.evaluation.compiled_flag import CALLS_MAX
from flagkit._core.evaluation.evaluator import Evaluator, Staleness
from flagkit._core.evaluation.explanation import explain_flag
from flagkit._core.evaluation.result import ErrorCode, Reason
from flagkit._core.model import EVERYWHERE
from flagkit.client.sources import build_policy_snapshot

ADA = {"targeting_key": "ada", "plan": "pro"}
VARIANTS = {"on": True, "off": False}


def flag(key: str, **fields: Any) -> dict[str, Any]:
    return {
        "key": key,
        "variants": VARIANTS,
        "off": "off",
        "fallthrough": {"serve": "on"},
        **fields,
    }


def guarded(key: str, **fields: Any) -> dict[str, Any]:
    return flag(key, when_stale="off", **fields)


class Aging:
    """A view whose snapshot was current at 1000 and may be 60 s old; `now` is the time."""

    def __init__(self, flags: Sequence[Mapping[str, Any]], max_seconds: float = 60.0) -> None:
        self.now = 1000.0
        self.freshness = Staleness(max_seconds, lambda: self.now)
        self.freshness.as_of = 1000.0
        snapshot = build_policy_snapshot(flags, (), environment="test", region=EVERYWHERE)
        self.view = Evaluator(snapshot, lambda: 0.0, self.freshness)

    def enabled(self, key: str) -> bool:
        switch = self.view.boolean_fns.get(key)
        if switch is None:
            switch = self.view.get_boolean_fn(key)
        return switch if isinstance(switch, bool) else switch(ADA, False)

    def reason(self, key: str) -> str:
        return self.view.evaluate(key, ADA, default=None).reason


def test_age_counts_from_when_it_was_known_to_be_current() -> None:
    now = [5.0]
    freshness = Staleness(60.0, lambda: now[0])
    assert freshness.age == math.inf
    assert freshness.is_stale
    freshness.as_of = 4.0
    assert (freshness.age, freshness.is_stale) == (1.0, False)
    now[0] = 64.0
    assert not freshness.is_stale
    now[0] = 64.1
    assert freshness.is_stale
    assert not Staleness(math.inf).is_stale


def test_what_holds_answers_as_before_and_says_that_it_is_stale() -> None:
    aging = Aging([flag("holds", rules=[{"name": "pro", "when": {"plan": "pro"}, "serve": "on"}])])
    assert (aging.enabled("holds"), aging.reason("holds")) == (True, Reason.TARGETING_MATCH)
    aging.now += 61
    evaluation = aging.view.evaluate("holds", ADA, default=False)
    assert (evaluation.value, evaluation.variant, evaluation.rule) == (True, "on", "pro")
    assert evaluation.reason is Reason.STALE
    assert aging.enabled("holds")


FORMS: Mapping[str, Mapping[str, Any]] = {
    "a constant": {},
    "a rollout": {"fallthrough": {"rollout": 100}},
    "a rule": {
        "rules": [{"name": "pro", "when": {"plan": "pro"}, "serve": "on"}],
        "fallthrough": {"serve": "off"},
    },
    "one with a prerequisite": {"prerequisites": [{"flag": "base", "variants": ["on"]}]},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_what_is_off_when_stale_is_off_then_and_on_again_later(form: Mapping[str, Any]) -> None:
    aging = Aging([flag("base"), guarded("guarded", **form)])
    for _ in range(2):
        assert aging.enabled("guarded")
        assert aging.reason("guarded") not in {Reason.STALE, Reason.DISABLED}
        aging.now += 61
        assert not aging.enabled("guarded")
        evaluation = aging.view.evaluate("guarded", ADA, default=True)
        assert (evaluation.value, evaluation.variant) == (False, "off")
        assert evaluation.reason is Reason.STALE
        aging.freshness.as_of = aging.now


def test_without_an_off_it_is_the_callers_default() -> None:
    aging = Aging([{**guarded("g"), "off": None}])
    aging.now += 61
    assert aging.view.evaluate("g", ADA, default=True).value is True
    assert aging.view.evaluate("g", ADA, default=False).value is False


def test_what_rests_on_it_is_off_with_it_in_chains_of_any_length() -> None:
    count = 3 * CALLS_MAX
    flags = [guarded("chain-0")]
    flags += [
        guarded(f"chain-{i}", prerequisites=[{"flag": f"chain-{i - 1}", "variants": ["on"]}])
        for i in range(1, count)
    ]
    flags.append(flag("last", prerequisites=[{"flag": f"chain-{count - 1}", "variants": ["on"]}]))
    aging = Aging(flags)
    assert aging.enabled("last")
    aging.now += 61
    assert not aging.enabled("last")
    assert aging.reason("last") == Reason.STALE


def test_a_client_that_does_not_judge_pays_nothing_for_it() -> None:
    aging = Aging([guarded("guarded")], max_seconds=math.inf)
    aging.now += 1e9
    assert aging.view.get_boolean_fn("guarded") is True
    assert aging.reason("guarded") == Reason.STATIC


def test_one_call_may_ask_for_less() -> None:
    aging = Aging([flag("holds"), guarded("guarded")], max_seconds=math.inf)
    aging.now += 10
    for seconds, reason, enabled in ((11, Reason.STATIC, True), (9, Reason.STALE, False)):
        evaluation = aging.view.evaluate("guarded", ADA, False, seconds)
        assert (evaluation.reason, evaluation.value) == (reason, enabled)
        evaluation = aging.view.evaluate("holds", ADA, False, seconds)
        assert (evaluation.reason, evaluation.value) == (reason, True)


@pytest.mark.parametrize("odd", ["60", object(), math.nan])
def test_an_odd_age_never_raises(odd: Any) -> None:
    aging = Aging([guarded("guarded")])
    assert aging.view.evaluate("guarded", ADA, False, odd).value is True


def test_what_cannot_be_answered_is_no_less_an_error() -> None:
    aging = Aging([])
    aging.now += 61
    evaluation = aging.view.evaluate("unknown", ADA, default=False)
    assert (evaluation.reason, evaluation.error_code) == (Reason.ERROR, ErrorCode.FLAG_NOT_FOUND)
    assert aging.view.evaluate("unknown", ADA, False, 1).error_code is ErrorCode.FLAG_NOT_FOUND


def test_explanations_say_that_it_is_stale_with_the_steps_of_what_holds() -> None:
    rule = {"name": "pro", "when": {"plan": "pro"}, "serve": "on"}
    aging = Aging([flag("holds", rules=[rule]), guarded("guarded", rules=[rule])])
    aging.now += 61
    holds = explain_flag(aging.view, "holds", ADA, default=False)
    assert holds.evaluation.reason is Reason.STALE
    assert holds.flags[0].rules[0].holds
    off = explain_flag(aging.view, "guarded", ADA, default=False)
    assert (off.evaluation.reason, off.evaluation.variant) == (Reason.STALE, "off")
    assert off.flags == ()
    assert "STALE" in str(off)
