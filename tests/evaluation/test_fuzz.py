"""Random policies and contexts, hostile ones included: nothing reaches a caller of evaluation.

How long calls take is the soak's to see: `python -m tests.soak fuzz`.
"""

import random
from datetime import datetime

import pytest

from flagkit import ErrorCode
from flagkit._core.model import Flag, decode
from flagkit.errors import InvalidDocumentError
from flagkit.testing import client_from
from tests.soak.fuzz import METHODS, run, run_calls
from tests.soak.fuzzing import (
    FLAG_COUNT,
    NO_CONTEXTS,
    ODD_VALUES,
    SEGMENTS,
    ContextGenerator,
    PolicyGenerator,
)

pytestmark = pytest.mark.every_python

SEED = 20_261_122


@pytest.fixture(scope="module")
def policies() -> PolicyGenerator:
    return PolicyGenerator(random.Random(SEED))


def test_no_exception_reaches_a_caller_of_evaluation() -> None:
    story = run(20_000, SEED, timed=False)
    assert story.raised == []
    assert 0.4 < story.bad / story.documents < 0.6
    # Every way to answer was gone: some answered well, some not for want of one thing or another.
    assert len(story.codes) == 6


def test_no_exception_reaches_a_caller_of_any_method_whatever_is_passed() -> None:
    story = run_calls(10_000, SEED)
    assert story.raised == []
    assert story.codes.keys() == {*METHODS}


def test_what_is_drawn_as_good_is_valid_and_as_bad_mostly_not(policies: PolicyGenerator) -> None:
    assert all(isinstance(decode(policies.good(number)), Flag) for number in range(200))
    bad = 0
    for number in range(200):
        try:
            decode(policies.bad(number))
        except InvalidDocumentError:
            bad += 1
    assert bad > 100


def test_any_context_is_answered_by_the_first_call_and_by_later_ones() -> None:
    rules = [{"name": "r", "when": {"a": {"$in": ["x", 1]}, "b.c": None}, "serve": "on"}]
    policy = {"key": "f", "variants": {"on": 1}, "rules": rules, "fallthrough": {"serve": "on"}}
    client = client_from([policy])
    for context in NO_CONTEXTS * 2:
        assert client.value("f", context, default=2) in (1, 2)
        assert client.evaluate("f", context).error_code in (None, "INVALID_CONTEXT", "GENERAL")


def test_a_boolean_flag_is_enabled_where_it_evaluates_to_true() -> None:
    chance = random.Random(SEED)
    policies = PolicyGenerator(chance)
    contexts = ContextGenerator(chance, policies.conditions)
    asked = 0
    for _ in range(60):
        drawn = [policies.good(number) for number in range(FLAG_COUNT)]
        client = client_from(drawn, map(policies.segment, SEGMENTS), datetime(2026, 1, 1))  # noqa: DTZ001 - UTC
        for context in [contexts.prompt() for _ in range(20)]:
            for key in [policy["key"] for policy in drawn]:
                for default in (True, False):
                    found = client.evaluate(key, context, default)
                    enabled = client.is_enabled(key, context, default)
                    # What misbehaves may do so where only `evaluate` asks: until when it is valid.
                    assert enabled is found.value or found.error_code is ErrorCode.GENERAL
                    asked += found.error_code is None
    assert asked > 4_000


def test_an_odd_attribute_is_asked_after_in_every_way(policies: PolicyGenerator) -> None:
    for number in range(100):
        policy = policies.good(number) | {"prerequisites": []}
        client = client_from([policy], map(policies.segment, SEGMENTS))
        for value in ODD_VALUES:
            context = {"targeting_key": value, "a": value, "b": [value], "0": {"a": value}}
            assert client.evaluate(policy["key"], context).revision == 1
