"""Random policies and contexts, hostile ones included: nothing reaches a caller of evaluation.

How long calls take is the soak's to see: `python -m tests.soak fuzz`.
"""

import random

import pytest

from flagkit.errors import InvalidDocumentError
from flagkit.model import Flag, decode
from flagkit.testing import client_from
from tests.soak.fuzz import run
from tests.soak.fuzzing import NO_CONTEXTS, ODD_VALUES, SEGMENTS, PolicyDraw

SEED = 20_261_122


@pytest.fixture(scope="module")
def policies() -> PolicyDraw:
    return PolicyDraw(random.Random(SEED))


def test_no_exception_reaches_a_caller_of_evaluation() -> None:
    story = run(20_000, SEED, timed=False)
    assert story.raised == []
    assert 0.4 < story.bad / story.documents < 0.6
    # Every way to answer was gone: some answered well, some not for want of one thing or another.
    assert len(story.codes) == 6


def test_what_is_drawn_as_good_is_valid_and_as_bad_mostly_not(policies: PolicyDraw) -> None:
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


def test_an_odd_attribute_is_asked_after_in_every_way(policies: PolicyDraw) -> None:
    for number in range(100):
        policy = policies.good(number) | {"prerequisites": []}
        client = client_from([policy], map(policies.segment, SEGMENTS))
        for value in ODD_VALUES:
            context = {"targeting_key": value, "a": value, "b": [value], "0": {"a": value}}
            assert client.evaluate(policy["key"], context).revision == 1
