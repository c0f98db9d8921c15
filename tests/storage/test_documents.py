"""Preparing: once for each state, and anew where a change came to another one."""

from datetime import UTC, datetime

import bson
import pytest

from flagkit._core.model import decode, encode
from flagkit._core.model.changes import (
    PolicyChange,
    PolicyState,
    build_genesis_tip,
    build_next_change,
    build_state,
)
from flagkit._core.storage.documents import (
    POLICY_BYTES_MAX,
    EncodedPolicy,
    encode_change,
    encode_policy,
    encode_policy_document,
)
from flagkit.errors import InvalidDocumentError
from tests.writer.test_writer import flag

NOW = datetime(2026, 12, 1, tzinfo=UTC)
TIP = build_genesis_tip("production", "epoch", NOW)


def state(key: str, version: int = 1, **fields: object) -> PolicyState:
    return build_state(key, "*", version, encode(decode(flag(key, **fields))))


def fitted(*states: PolicyState, ahead: dict[tuple[str, str], EncodedPolicy]) -> object:
    changes = [PolicyChange(None, each) for each in states]
    change = build_next_change(TIP, "request", NOW, changes)
    return encode_change(change, {}, ["a page"], {}, ahead)


def test_what_was_prepared_is_taken_over_if_it_is_of_the_same_state() -> None:
    first, second = state("a.one"), state("a.two")
    ahead = {each.id: encode_policy(each) for each in (first, second)}
    changed = state("a.two", 2)
    ready = fitted(first, changed, ahead=ahead)
    assert isinstance(ready, dict)
    assert ready["*", "a.one"] is ahead["*", "a.one"]
    assert ready["*", "a.two"].state == changed


def test_it_is_what_a_projection_would_make() -> None:
    rule = {"name": "staff", "when": {"$segment": "staff"}, "serve": "on"}
    for each in (state("a.one"), state("a.two", 3, rules=[rule], owner="shop")):
        change = PolicyChange(None, each)
        made = encode_policy_document("production", 7, change, encode_policy(each).fields)
        known = encode_policy_document(
            "production", 7, change, encode_policy(each, decode(each.policy)).fields
        )
        direct = encode_policy_document("production", 7, change)
        assert bson.encode(made) == bson.encode(known) == bson.encode(direct)


def test_what_bson_has_not_is_refused_before_anything_is_written() -> None:
    with pytest.raises(InvalidDocumentError, match="cannot be stored"):
        encode_policy(PolicyState("a.one", "*", 1, b"\x81\xa3k\x00y\x01"))
    large = state("a.one", description="x" * 1_000)
    ahead = {large.id: EncodedPolicy(large, POLICY_BYTES_MAX + 1, True, {})}
    with pytest.raises(InvalidDocumentError, match="a policy is"):
        fitted(large, ahead=ahead)
    with pytest.raises(InvalidDocumentError, match="would not be read back"):
        fitted(large, ahead={large.id: EncodedPolicy(large, 1, False, {})})
