"""Foreign values: keys and attributes as programs have them count as what they stand for."""

import importlib
import subprocess
import sys
from collections import UserString
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import Any
from uuid import UUID

import pytest
from bson import ObjectId
from hypothesis import given
from hypothesis import strategies as st

from flagkit import Client, Context, ErrorCode, use_context
from flagkit._core.evaluation.bucketing import compute_bucket, compute_seed
from flagkit._core.model.foreign import NATIVE, Oid, to_native
from flagkit._core.model.keys import to_bucketing_key
from flagkit.testing import client_from

ID = UUID("00112233-4455-6677-8899-aabbccddeeff")
OBJECT_ID = ObjectId("507f1f77bcf86cd799439011")
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
BOOLEAN = {"on": True, "off": False}


class Delegate:
    """A proxy in plain Python: it says that it is what it stands for, and passes everything on."""

    def __init__(self, inner: Any) -> None:
        object.__setattr__(self, "_inner", inner)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(object.__getattribute__(self, "_inner"))

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_inner"), name)

    def __str__(self) -> str:
        return str(object.__getattribute__(self, "_inner"))

    def __bool__(self) -> bool:
        return bool(object.__getattribute__(self, "_inner"))

    def __eq__(self, other: object) -> bool:
        return bool(object.__getattribute__(self, "_inner") == other)

    def __hash__(self) -> int:
        return hash(object.__getattribute__(self, "_inner"))


def library_proxies() -> dict[str, Callable[[Any], Any]]:
    """Return the proxies of the libraries that are installed."""
    found: dict[str, Callable[[Any], Any]] = {"plain Python": Delegate}
    for module, name, takes_function in (
        ("django.utils.functional", "SimpleLazyObject", True),
        ("werkzeug.local", "LocalProxy", True),
        ("wrapt", "ObjectProxy", False),
    ):
        try:
            proxy = getattr(importlib.import_module(module), name)
        except ImportError:
            continue
        found[name] = _of_function(proxy) if takes_function else proxy
    return found


def _of_function(proxy: Callable[[Callable[[], Any]], Any]) -> Callable[[Any], Any]:
    return lambda value: proxy(lambda: value)


PROXIES = library_proxies()


class Plan(Enum):
    """An enumeration that is of no other type."""

    PRO = "pro"
    SEVEN = 7


class Banner(StrEnum):
    """An enumeration of texts."""

    WELCOME = "Welcome"
    HELLO = "Hello"


class Level(IntEnum):
    """An enumeration of integers."""

    ONE = 1
    TWO = 2


class Mixed(str, Enum):  # noqa: UP042 - the older kind
    """An enumeration of texts whose members write themselves with its name."""

    PRO = "pro"


class Name(str):
    """A string of a type of its own."""

    __slots__ = ()

    def __str__(self) -> str:
        raise RuntimeError("its own ideas")

    __hash__ = None  # type: ignore[assignment]


KEYS: list[tuple[Any, str]] = [
    *(("u-1", "u-1"), (Name("u-1"), "u-1"), (UserString("u-1"), "u-1")),
    *((7, "7"), (-(10**30), f"-1{'0' * 30}"), (Level.TWO, "2"), (Plan.SEVEN, "7")),
    *((Plan.PRO, "pro"), (Mixed.PRO, "pro"), (Banner.HELLO, "Hello")),
    *((ID, str(ID)), (OBJECT_ID, str(OBJECT_ID)), (Oid(OBJECT_ID.binary), str(OBJECT_ID))),
]
NO_KEYS: list[Any] = [
    *(True, False, 1.0, 1.5, Decimal(1), b"x", [], ["u"], {}, {"a": 1}, object(), Plan, NOON),
    *(10**5000, lambda: "u", 1j),
]


@pytest.mark.parametrize("proxy", ["none", *PROXIES])
def test_a_key_has_one_text(proxy: str) -> None:
    for key, text in KEYS:
        if proxy != "none" and isinstance(key, Name):
            continue
        found = to_bucketing_key(PROXIES.get(proxy, lambda value: value)(key))
        assert (type(found), found) == (str, text), repr(key)


@pytest.mark.parametrize("proxy", ["none", *PROXIES])
def test_what_is_no_key_has_no_text(proxy: str) -> None:
    for value in (*NO_KEYS, None, ""):
        assert to_bucketing_key(PROXIES.get(proxy, lambda inner: inner)(value)) is None


def rolled() -> Client:
    """Return a client of a rollout, one with a rule by the same key, and one for a segment."""
    half = {"variants": BOOLEAN, "fallthrough": {"rollout": 50}}
    rule = {"name": "r", "when": {"targeting_key": {"$type": "string"}}, "rollout": 50}
    listed = {"name": "s", "when": {"$segment": "group"}, "serve": "on"}
    deep = {"rollout": {"by": "company.id", "weights": {"on": 50, "off": 50}}}
    keys = [key for key, _ in KEYS if isinstance(key, str | int)]
    group = {"key": "group", "included": [*keys, str(ID), str(OBJECT_ID)]}
    off = {"serve": "off"}
    return client_from(
        [
            {"key": "half", **half},
            {"key": "ruled", **half, "rules": [rule]},
            {"key": "deep", "variants": BOOLEAN, "fallthrough": deep},
            {"key": "group", "variants": BOOLEAN, "rules": [listed], "fallthrough": off},
        ],
        [group],
    )


@pytest.mark.parametrize("proxy", ["none", *PROXIES])
def test_a_key_of_any_type_is_in_the_bucket_of_its_text(proxy: str) -> None:
    client = rolled()
    for key, text in KEYS:
        if proxy != "none" and isinstance(key, Name):
            continue
        shown = PROXIES.get(proxy, lambda inner: inner)(key)
        for flag in ("half", "ruled"):
            expected = compute_bucket(compute_seed(flag), text) < 50_000
            contexts: list[Any] = [{"targeting_key": shown}, Context(shown), shown]
            for context in contexts:
                assert client.is_enabled(flag, context) is expected
                assert client.evaluate(flag, context).value is expected
                assert client.explain(flag, context).evaluation.value is expected
                assert client.explain(flag, context).flags != ()
                assert client.bind(context).is_enabled(flag) is expected
            with use_context(shown):
                assert client.is_enabled(flag) is expected
        inside = {"company": {"id": shown}}
        assert client.is_enabled("deep", inside) is (
            compute_bucket(compute_seed("deep"), text) < 50_000
        )
        assert client.is_enabled("group", shown) is True
        assert client.evaluate("group", shown).value is True


def test_a_key_of_another_type_is_an_invalid_context() -> None:
    client = rolled()
    for value in NO_KEYS:
        invalid: list[tuple[str, Any]] = [
            ("half", {"targeting_key": value}),
            ("ruled", {"targeting_key": value}),
            ("deep", {"company": {"id": value}}),
        ]
        for flag, context in invalid:
            found = client.evaluate(flag, context)
            assert found.error_code == ErrorCode.INVALID_CONTEXT
            assert type(value).__name__ in (found.error_message or "")
            assert client.is_enabled(flag, context, default=True) is True
            assert client.is_enabled(flag, context, default=False) is False
    for value in (None, ""):
        for flag in ("half", "ruled"):
            found = client.evaluate(flag, {"targeting_key": value})
            assert found.error_code == ErrorCode.TARGETING_KEY_MISSING
    odd: list[Any] = [1.5, True, b"u", [], object(), Decimal(1)]
    for context in odd:
        assert client.evaluate("half", context).error_code == ErrorCode.INVALID_CONTEXT


def test_an_invalid_ambient_context_is_told_by_evaluations() -> None:
    client = rolled()
    anything: Any = 1.5
    with use_context(anything):
        for _ in range(2):
            assert client.evaluate("half").error_code == ErrorCode.INVALID_CONTEXT
            assert client.is_enabled("half", default=True) is True
        assert client.is_enabled("half", "u") is (
            compute_bucket(compute_seed("half"), "u") < 50_000
        )


TYPES = ("string", "int", "double", "bool", "null", "date", "objectId", "object", "array")
CONDITIONS: dict[str, Any] = {
    "eq": {"a": "DE"},
    "in": {"a": {"$in": ["DE", "AT"]}},
    "ne": {"a": {"$ne": "DE"}},
    "nin": {"a": {"$nin": ["DE", "AT"]}},
    "starts": {"a": {"$startsWith": "D"}},
    "ends": {"a": {"$endsWith": "E"}},
    "contains": {"a": {"$contains": "E"}},
    "regex": {"a": {"$regex": "^D"}},
    "automaton": {"a": {"$regex": "D.*E"}},
    **{name: {"a": {f"${name}": "DA"}} for name in ("gt", "gte", "lt", "lte")},
    **{f"number {name}": {"a": {f"${name}": 5}} for name in ("eq", "gt", "gte", "lt", "lte")},
    "mod": {"a": {"$mod": [2, 1]}},
    "true": {"a": True},
    "false": {"a": False},
    "null": {"a": None},
    "date": {"a": {"$gte": NOON}},
    "uuid": {"a": ID},
    "oid": {"a": OBJECT_ID},
    "bytes": {"a": b"x"},
    "decimal": {"a": Decimal("1.5")},
    "semver": {"a": {"$semver": {"$gte": "1.0.0"}}},
    "document": {"a.b": 5},
    "whole document": {"a": {"b": 5}},
    "size": {"a": {"$size": 1}},
    "element": {"a": {"$elemMatch": {"$gte": 5}}},
    "segment": {"$segment": "group"},
    **{f"type {name}": {"a": {"$type": name}} for name in TYPES},
}  # fmt: skip
ATTRIBUTES: list[Any] = [
    *("DE", "1.2.3", "", "D\nE", 5, 6, 2**40, 1.5, True, False, None, NOON, ID, OBJECT_ID, b"x"),
    *(Decimal("1.5"), {"b": 5}, [5], [], ["DE"], (7,)),
]


def conditional() -> Client:
    flags = [
        {"key": f"c.{number}", "variants": BOOLEAN, "fallthrough": {"serve": "off"},
         "rules": [{"name": "r", "when": when, "serve": "on"}]}
        for number, when in enumerate(CONDITIONS.values())
    ]  # fmt: skip
    return client_from(flags, [{"key": "group", "by": "a", "included": ["DE", 5, str(ID)]}])


def answers(client: Client, context: Any) -> dict[str, Any]:
    """Return what each condition answers, which each method must agree on."""
    found: dict[str, Any] = {}
    for number, name in enumerate(CONDITIONS):
        evaluation = client.evaluate(f"c.{number}", context)
        found[name] = evaluation.error_code or evaluation.value
        assert client.is_enabled(f"c.{number}", context) is evaluation.value
        explanation = client.explain(f"c.{number}", context)
        assert explanation.evaluation.value is evaluation.value
        assert explanation.flags != ()
    return found


@pytest.mark.parametrize("proxy", PROXIES)
@pytest.mark.parametrize("value", ATTRIBUTES, ids=repr)
def test_a_proxy_matches_as_what_is_behind_it(proxy: str, value: Any) -> None:
    client = conditional()
    expected = answers(client, {"a": value})
    assert answers(client, {"a": PROXIES[proxy](value)}) == expected
    inside = {"a": [PROXIES[proxy](value)]}
    assert answers(client, inside) == answers(client, {"a": [value]})


@pytest.mark.parametrize("proxy", PROXIES)
def test_a_proxy_of_a_context_is_the_context(proxy: str) -> None:
    client = conditional()
    context = PROXIES[proxy]({"a": "DE"})
    assert answers(client, context) == answers(client, {"a": "DE"})


SAME: list[tuple[Any, Any]] = [
    *((Plan.PRO, "pro"), (Plan.SEVEN, 7), (Mixed.PRO, "pro"), (Banner.HELLO, "Hello")),
    *((Level.ONE, 1), (Name("DE"), "DE"), (UserString("DE"), "DE")),
]


def test_members_of_enumerations_and_derived_types_match_as_their_values() -> None:
    client = conditional()
    for odd, value in SAME:
        assert answers(client, {"a": odd}) == answers(client, {"a": value})
        assert type(to_native(odd)) in NATIVE


def test_scalars_of_numpy_match_as_those_of_python() -> None:
    numpy: Any = pytest.importorskip("numpy")
    client = conditional()
    pairs: list[tuple[Any, Any]] = [
        *((numpy.int64(5), 5), (numpy.uint8(6), 6), (numpy.float64(1.5), 1.5)),
        *((numpy.float32(1.5), 1.5), (numpy.bool_(True), True), (numpy.bool_(False), False)),
        *((numpy.str_("DE"), "DE"), (numpy.bytes_(b"x"), b"x")),
        *((numpy.datetime64("2026-01-01T12:00:00.000000000"), NOON), ),
        *((numpy.datetime64("2026-01-02"), datetime(2026, 1, 2, tzinfo=UTC)),),
        *((numpy.datetime64("NaT"), None),),
    ]  # fmt: skip
    for odd, value in pairs:
        assert answers(client, {"a": odd}) == answers(client, {"a": value})
        assert answers(client, {"a": [odd]}) == answers(client, {"a": [value]})
    assert to_bucketing_key(numpy.int64(7)) == "7"
    assert to_bucketing_key(numpy.bool_(True)) is None
    for odd in (
        numpy.timedelta64(1, "s"),
        numpy.complex128(1),
        numpy.longdouble(1),
    ):
        assert not any(
            answers(client, {"a": odd})[name] for name in ("eq", "null", "number gt", "bytes")
        )


def test_missing_values_of_pandas_are_null() -> None:
    pandas: Any = pytest.importorskip("pandas")
    client = conditional()
    for odd in (pandas.NaT, pandas.NA):
        assert answers(client, {"a": odd}) == answers(client, {"a": None})
        assert to_bucketing_key(odd) is None
    assert answers(client, {"a": pandas.Timestamp(NOON)}) == answers(client, {"a": NOON})


def test_lazy_texts_of_django_are_texts() -> None:
    functional: Any = pytest.importorskip("django.utils.functional")
    client = conditional()
    for value in ("DE", "1.2.3", ""):
        lazy = functional.lazystr(value)
        assert answers(client, {"a": lazy}) == answers(client, {"a": value})
        assert to_bucketing_key(lazy) == (value or None)


class Liar:
    """Says that it is of another type, and has nothing of it."""

    def __init__(self, said: Any) -> None:
        self._said = said

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return self._said


@given(st.sampled_from([str, int, float, bool, bytes, dict, list, UUID, datetime, ObjectId, 5, ""]))
def test_what_only_says_that_it_is_of_a_type_stands_for_nothing(said: Any) -> None:
    liar = Liar(said)
    assert to_native(liar) is liar
    assert to_bucketing_key(liar) is None


def test_a_default_of_an_enumeration_is_answered_with_a_member() -> None:
    def serving(value: Any) -> Client:
        variants = {"a": value, "b": value}
        return client_from([{"key": "f", "variants": variants, "fallthrough": {"serve": "a"}}])

    expectations: list[tuple[Any, Enum, Any]] = [
        *(("Hello", Banner.WELCOME, Banner.HELLO), ("pro", Mixed.PRO, Mixed.PRO)),
        *(("pro", Plan.SEVEN, Plan.PRO), (7, Plan.PRO, Plan.SEVEN), (2, Level.ONE, Level.TWO)),
        *(("other", Banner.WELCOME, None), (3, Level.ONE, None), (True, Level.TWO, None)),
        *(({"a": 1}, Banner.WELCOME, None), (1, Banner.WELCOME, None)),
    ]
    for value, default, expected in expectations:
        found = serving(value).evaluate("f", "u", default)
        assert found.value is (default if expected is None else expected)
        assert type(found.value) is type(default)
        assert found.error_code == (None if expected is not None else ErrorCode.TYPE_MISMATCH)


def test_no_library_is_loaded_for_its_types() -> None:
    program = (
        "import sys, flagkit; from flagkit.testing import client_from;"
        "served = {'rollout': {'weights': {'a': 100}}};"
        "c = client_from([{'key': 'f', 'variants': {'a': True}, 'fallthrough': served}]);"
        "c.evaluate('f', object()); c.evaluate('f', {'targeting_key': object()});"
        "print([m for m in ('bson', 'numpy', 'pandas', 'django') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
