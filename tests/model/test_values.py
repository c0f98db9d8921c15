"""Values: the quick way to normal form says what the slow one does, or leaves it to that."""

import enum
from collections import OrderedDict
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flagkit._core.model.values import (
    DEPTH_MAX,
    INT64_MAX,
    check_name,
    is_same,
    join_path,
    normalize,
    to_plain,
)
from flagkit.errors import InvalidDocumentError

pytestmark = pytest.mark.every_python


class Word(str):
    """A string that is not quite one."""

    __slots__ = ()


class Level(enum.IntEnum):
    LOW = 1


UNUSUAL = st.sampled_from(
    (
        *("é", "\ud800", Word("a"), Level.LOW, INT64_MAX + 1, -INT64_MAX - 1, -INT64_MAX - 2),
        *(Decimal("0.1"), UUID(int=7), b"\x01", ("a", 1), {1, 2}, object(), float("nan")),
        *(datetime(2026, 12, 1), datetime(2026, 12, 1, 8, 0, 0, 1234, UTC)),  # noqa: DTZ001
        *(datetime(2026, 12, 1, tzinfo=timezone(timedelta(hours=2))), OrderedDict(a=1)),
    )
)
USUAL = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(st.characters(max_codepoint=127), max_size=8),
)
NAMES = st.sampled_from(("a", "b", "variants", "when", "$in", "$semver", "$regex", ""))
ODD_NAMES = st.one_of(
    NAMES, st.sampled_from(("$date", "$uuid", "$ref", "$id", "a\0", "é", "\ud800", Word("c"), 1))
)


def documents(names: st.SearchStrategy[Any], values: st.SearchStrategy[Any]) -> Any:
    nested = st.recursive(
        values,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
        max_leaves=8,
    )
    return st.dictionaries(names, nested, max_size=4)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return {"a": value}


def slowly(fields: dict[Any, Any]) -> dict[str, Any]:
    return {
        check_name(key, ""): normalize(value, join_path("", key), 1, extended=key != "variants")
        for key, value in fields.items()
    }


def written(value: object) -> bytes:
    """Return bytes that tell 1 from True and 1.0, and one order of fields from another."""
    return msgspec.msgpack.encode(value)


@given(documents(ODD_NAMES, USUAL | UNUSUAL))
@example({"a": {"$date": "2026-12-01T08:00:00Z"}})
@example({"variants": {"$uuid": "x"}})
@example(nested(DEPTH_MAX - 1))
@example(nested(DEPTH_MAX))
@example(nested(DEPTH_MAX + 1))
def test_what_is_plain_is_as_the_slow_way_has_it(fields: dict[Any, Any]) -> None:
    quick = to_plain(fields)
    if quick is None:
        return
    slow = slowly(fields)
    assert written(quick) == written(slow)
    assert [*map(type, quick.values())] == [*map(type, slow.values())]


@given(documents(NAMES, USUAL))
@example(nested(DEPTH_MAX - 1))
def test_usual_documents_are_plain(fields: dict[Any, Any]) -> None:
    quick = to_plain(fields)
    assert quick is not None
    assert quick is not fields
    assert written(quick) == written(slowly(fields))


@given(documents(ODD_NAMES, USUAL | UNUSUAL))
@example(nested(DEPTH_MAX + 1))
@example({"a": "\ud800"})
def test_what_the_slow_way_refuses_is_not_plain(fields: dict[Any, Any]) -> None:
    try:
        slowly(fields)
    except InvalidDocumentError:
        assert to_plain(fields) is None


@pytest.mark.parametrize(
    "fields",
    [OrderedDict(a=1), {"a": OrderedDict(b=1)}, {"a": (1,)}, {"a": Word("b")}, {Word("a"): 1}],
    ids=repr,
)
def test_subclasses_are_left_to_the_slow_way(fields: dict[Any, Any]) -> None:
    assert to_plain(fields) is None
    assert {*map(type, slowly(fields))} == {str}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (1, True, False),
        (1, 1.0, False),
        (0.0, -0.0, False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, False),
        ([1, 2], [2, 1], False),
        ("2026-01-01T00:00:00Z", datetime(2026, 1, 1, tzinfo=UTC), False),
        (float("nan"), float("nan"), True),
        ({"a": [1, {"b": None}]}, {"a": [1, {"b": None}]}, True),
    ],
)
def test_values_are_the_same_only_in_type_and_order_as_well(
    one: object, other: object, *, same: bool
) -> None:
    assert is_same(one, other) is same
    assert is_same({"within": [one]}, {"within": [other]}) is same
