"""Recorded: what is asked for is read back by another process as it was, or refused."""

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import bson
import pytest
from bson.codec_options import CodecOptions
from hypothesis import given, settings
from hypothesis import strategies as st

from flagkit.errors import InvalidDocumentError
from flagkit.writer import Draft
from flagkit.writer.operations import (
    OPERATIONS,
    READABLE_OPERATIONS,
    Edit,
    Operation,
    Prune,
    Reinstate,
    UpsertFlag,
    check_readable,
    decode_operations,
    encode_operations,
    hash_content,
    list_policies,
)
from tests.writer.test_writer import flag

KEYS = st.from_regex(r"[a-z]{1,5}\.[a-z]{1,5}", fullmatch=True)
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=9)
DATES = st.integers(0, 4 * 10**9).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))
VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | TEXTS
    | DATES
)
VERSIONS = st.none() | st.integers(0, 2**40)
MEMBERS = st.sets(st.integers(-9, 9).map(str), max_size=3)
ROLES = st.sampled_from(["viewer", "editor", "releaser", "admin"])


@st.composite
def flags(draw: Any) -> dict[str, Any]:
    listed = draw(st.lists(VALUES, min_size=1, max_size=3))
    rule = {"name": "only", "when": {"attribute": {"$in": listed}}, "serve": "on"}
    share = draw(st.integers(0, 100))
    return flag(
        draw(KEYS),
        rules=[rule],
        fallthrough={"rollout": {"weights": {"on": share, "off": 100 - share}}},
        expires=draw(DATES).isoformat(),
        description=draw(TEXTS),
    )


ASKED: dict[str, Callable[[Draft, Any], object]] = {
    "create": lambda draft, draw: draft.create(draw(flags())),
    "update": lambda draft, draw: draft.update(
        draw(flags()), expected_version=draw(VERSIONS), reassign=draw(st.booleans())
    ),
    "set_rollout": lambda draft, draw: draft.set_rollout(
        draw(KEYS),
        draw(st.floats(0, 100) | st.just({"on": 12.5, "off": 87.5}) | st.integers(0, 100)),
        rule=draw(st.none() | TEXTS),
        expected_version=draw(VERSIONS),
    ),
    "serve": lambda draft, draw: draft.serve(
        draw(KEYS), draw(st.booleans() | TEXTS), rule=draw(st.none() | TEXTS)
    ),
    "pause": lambda draft, draw: draft.pause(draw(KEYS), region="eu"),
    "resume": lambda draft, draw: draft.resume(draw(KEYS)),
    "archive": lambda draft, draw: draft.archive(draw(KEYS), expected_version=draw(VERSIONS)),
    "restore": lambda draft, draw: draft.restore(draw(KEYS)),
    "delete": lambda draft, draw: draft.delete(draw(KEYS)),
    "create_segment": lambda draft, draw: draft.create_segment(
        {"key": draw(KEYS), "included": draw(MEMBERS), "when": {"joined": {"$gt": draw(DATES)}}}
    ),
    "update_segment": lambda draft, draw: draft.update_segment(
        {"key": draw(KEYS)}, expected_version=draw(VERSIONS)
    ),
    "change_members": lambda draft, draw: draft.change_members(draw(KEYS), include=draw(MEMBERS)),
    "delete_segment": lambda draft, draw: draft.delete_segment(draw(KEYS)),
    "rollback": lambda draft, draw: draft.rollback(draw(KEYS), to=draw(st.integers(0, 2**40))),
    "rollback_segment": lambda draft, draw: draft.rollback_segment(draw(KEYS), to=3),
    "rollback_all": lambda draft, draw: draft.rollback_all(to=draw(st.integers(0, 9))),
    "grant": lambda draft, draw: draft.grant("ada", draw(ROLES), draw(st.sets(KEYS, max_size=2))),
    "revoke": lambda draft, draw: draft.revoke("ada", draw(st.none() | ROLES)),
    "rollback_grants": lambda draft, draw: draft.rollback_grants(to=draw(st.integers(0, 9))),
    "set_limit": lambda draft, draw: draft.set_limit(
        "actor", capacity=draw(st.integers(1, 99)), rate=draw(st.floats(0.001, 10))
    ),
    "lift_limit": lambda draft, draw: draft.lift_limit(
        draw(st.sampled_from(["actor", "environment"]))
    ),
}


def through_the_database(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    codec: CodecOptions[dict[str, Any]] = CodecOptions(tz_aware=True)
    found: list[dict[str, Any]] = bson.decode(bson.encode({"it": documents}), codec)["it"]
    return found


@settings(max_examples=50)
@given(st.data())
def test_what_is_recorded_is_read_back_as_it_was(data: st.DataObject) -> None:
    draft = Draft("production")
    for name in data.draw(st.lists(st.sampled_from([*ASKED]), min_size=1, max_size=4)):
        ASKED[name](draft, data.draw)
    check_readable(draft.operations)
    recorded = encode_operations(draft.operations)
    read = through_the_database(recorded)
    assert decode_operations(read) == draft.operations
    assert hash_content(read) == hash_content(recorded)


def test_every_operation_is_read_back_but_for_edits() -> None:
    def below(kind: type[Operation]) -> set[type[Operation]]:
        return {kind}.union(*map(below, kind.__subclasses__()))

    every = below(Operation) - {Operation}
    assert {*OPERATIONS.values()} == every, "operations are declared in writer/operations.py"
    # What can neither wait nor be proposed needs no reading back.
    assert {*READABLE_OPERATIONS} == every - {
        Edit,
        Reinstate,
        Prune,
        UpsertFlag,
    }


def test_an_edit_is_refused_where_it_must_be_read_back() -> None:
    draft = Draft("production")
    draft.edit("shop.search", lambda document: document)
    with pytest.raises(InvalidDocumentError, match="update it with expected_version"):
        check_readable(draft.operations)
    (recorded,) = encode_operations(draft.operations)
    assert "<lambda>" in recorded["function"]
    with pytest.raises(InvalidDocumentError, match="cannot be read back"):
        decode_operations([recorded])


@pytest.mark.parametrize("weight", [Decimal(10), "10"])
def test_what_would_be_read_back_as_something_else_is_refused(weight: Any) -> None:
    draft = Draft("production")
    draft.set_rollout("shop.search", {"on": weight})
    with pytest.raises(InvalidDocumentError, match="read back"):
        check_readable(draft.operations)


@pytest.mark.parametrize(
    "altered", [{"operation": "reinstate"}, {"verb": "explode"}, {"key": 3}, {"region": None}]
)
def test_what_was_altered_is_not_taken_for_an_operation(altered: dict[str, Any]) -> None:
    draft = Draft("production")
    draft.pause("shop.search")
    (recorded,) = encode_operations(draft.operations)
    with pytest.raises(InvalidDocumentError, match="cannot be read back"):
        decode_operations([recorded | altered])


def test_what_operations_are_on() -> None:
    draft = Draft("production")
    draft.pause("shop.search")
    draft.resume("shop.search")
    draft.delete_segment("staff")
    assert list_policies(draft.operations) == [("*", "shop.search"), ("@segments", "staff")]
    draft.rollback_all(to=1)
    assert list_policies(draft.operations) is None
