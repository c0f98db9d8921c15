"""What the fuzz draws: policy documents, good and bad, and contexts, friendly and hostile.

Good documents keep the limits within which an evaluation is prompt (docs/policy.md); so do the
contexts that are not `OVERSIZED`.
"""

import itertools
import random
from collections import ChainMap, UserDict
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import StrEnum
from types import MappingProxyType
from typing import Any, TypeAlias
from uuid import UUID

from flagkit import Context
from tests.support.mongod_oracle import SCALARS, BatchGenerator, Document

FLAG_COUNT = 20
"""The flags of one client; prerequisites are among them."""
SEGMENTS = ("fuzz.group", "fuzz.crowd")
Make: TypeAlias = Callable[[], Any]


def format_key(number: int) -> str:
    """Return the key of a flag."""
    return f"fuzz.flag-{number}"


class PolicyGenerator:
    """Draws policy documents whose conditions fit the documents of an oracle's draw."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.conditions = BatchGenerator(chance)

    def good(self, number: int) -> Document:
        """Return a document that a flag can be decoded from."""
        variants = self.variants()
        policy: Document = {
            "key": format_key(number),
            "variants": variants,
            "fallthrough": self.serves(),
            "rules": [self.rule(i) for i in range(self.chance.choice((0, 1, 1, 2, 3)))],
        }
        if self.chance.random() < 0.5:
            policy["off"] = self.chance.choice(list(variants))
        if self.chance.random() < 0.1:
            policy["state"] = self.chance.choice(("active", "paused", "archived"))
        if self.chance.random() < 0.1:
            others = (format_key(self.chance.randrange(FLAG_COUNT)) for _ in range(2))
            policy["prerequisites"] = [
                {"flag": other, "variants": ["on"]} for other in others if other != policy["key"]
            ]
        if self.chance.random() < 0.1:
            policy |= {"owner": "é", "tags": ["a"], "expires": self.date()}
        return policy

    def variants(self) -> Document:
        return self.chance.choice(
            (
                {"on": True, "off": False},
                {"on": "x", "off": ""},
                {"on": 2**63 - 1, "off": -1},
                {"on": 1, "off": 0.5},
                {"on": {"a": [None, {"$date": "x"}]}, "off": []},
            )
        )

    def rule(self, number: int) -> Document:
        rule = {"name": f"rule {number}", **self.serves()}
        if self.chance.random() < 0.9:
            rule["when"] = self.condition()
        if self.chance.random() < 0.2:
            rule["during"] = self.chance.choice(
                (
                    {"from": self.date()},
                    {"until": self.date(), "days": ["mon", "sun"], "zone": "Europe/Berlin"},
                    {"hours": {"from": "22:30", "until": "06:00"}, "zone": "America/New_York"},
                )
            )
        return rule

    def condition(self) -> Document:
        match self.chance.randrange(40):
            case 0:
                return {"$or": [self.conditions.condition() for _ in range(20)]}
            case 1:
                return {"a": {"$in": [*range(200), *map(str, range(200)), *SCALARS]}}
            case 5 | 6 | 7:
                return {"$segment": self.chance.choice((*SEGMENTS, [*SEGMENTS]))}
            case 8 | 9:
                test = {
                    "$regex": self.chance.choice(("^a", "b$", "a.b", "(a|b)*b")),
                    "$options": "i",
                }
                return {self.conditions.path(): test}
            case 2 | 3 | 4:
                return {"a": {"$semver": {"$gte": "1.0.0", "$in": ["1.2.3", "1.0.0-rc.1"]}}}
            case _:
                return self.conditions.condition()

    def serves(self) -> Document:
        by = {"by": self.chance.choice(("targeting_key", "a", "a.b", "b.0"))}
        date = self.date()
        return self.chance.choice(
            (
                {"serve": "on"},
                {"serve": "off"},
                {"rollout": by | {"weights": {"on": 33.333, "off": 66.667}}},
                {
                    "ramp": by
                    | {"variant": "on", "otherwise": "off", "start": date}
                    | {"end": date + timedelta(days=1)}
                },
                {
                    "ramp": by
                    | {"variant": "off", "otherwise": "on"}
                    | {"steps": [{"at": date, "percent": 30}]}
                },
            )
        )

    def segment(self, key: str) -> Document:
        """Return a segment's document."""
        segment: Document = {"key": key, "by": self.chance.choice(("targeting_key", "a", "b.0"))}
        if self.chance.random() < 0.7:
            segment["when"] = self.conditions.condition()
        for side in ("included", "excluded"):
            if self.chance.random() < 0.7:
                segment[side] = self.chance.sample(("someone", 7, "a", "ab", 1, "x"), 3)
        return segment

    def date(self) -> datetime:
        return datetime(2026, 11, 1, tzinfo=UTC) + timedelta(hours=self.chance.randrange(2000))

    def bad(self, number: int) -> object:
        """Return what is most probably no policy document."""
        if self.chance.random() < 0.05:
            return self.junk()
        policy = _copy_value(self.good(number))
        for _ in range(self.chance.choice((1, 1, 2))):
            self.spoil(policy)
        return policy

    def spoil(self, policy: Document) -> None:
        """Replace, remove, rename or add one part somewhere in a document."""
        part: Any = policy
        while True:
            places = list(part) if isinstance(part, dict) else list(range(len(part)))
            if not places:
                return
            place = self.chance.choice(places)
            inner = part[place]
            if not isinstance(inner, dict | list) or not inner or self.chance.random() < 0.3:
                break
            part = inner
        match self.chance.randrange(4):
            case 0:
                del part[place]
            case 1 if isinstance(part, dict):
                part[self.chance.choice(JUNK_NAMES)] = part.pop(place)
            case 2 if isinstance(part, dict):
                part[self.chance.choice(JUNK_NAMES)] = self.junk()
            case _:
                part[place] = self.junk()

    def junk(self) -> Any:
        if self.chance.random() < 0.3:
            return self.conditions.fresh(0)
        return self.chance.choice(JUNK)()


def _copy_value(value: Any) -> Any:
    """Return a copy whose lists and documents can be changed."""
    if isinstance(value, dict):
        return {name: _copy_value(item) for name, item in value.items()}
    return [_copy_value(item) for item in value] if isinstance(value, list) else value


def nest(depth: int, wrap: Callable[[Any], Any]) -> Any:
    """Return a value wrapped in itself some times."""
    value: Any = 1
    for _ in range(depth):
        value = wrap(value)
    return value


def create_endless_list() -> list[Any]:
    """Return a list that contains itself, several times."""
    items: list[Any] = []
    items += [items, {"0": items, "a": items, "b": items}, 1, items]
    return items


def create_endless_document() -> Document:
    """Return a document that contains itself."""
    made: Document = {}
    made |= {"a": made, "b": [made, made], "0": made}
    return made


FIRST, LAST = datetime(1, 1, 1), datetime.max  # noqa: DTZ001, DTZ901 - zones are put on them
WEST, EAST = timezone(-timedelta(hours=23, minutes=59)), timezone(timedelta(hours=23, minutes=59))
JUNK_NAMES: tuple[Any, ...] = (
    *("", "a..b", "$gt", "$in", "$not", "$or", "$date", "$uuid", "$regex", "a\0", "\ud800", "when"),
    *(".".join("0" * 20), "x" * 300, "serve", "on", 1, None, True, 10**5000, ("a",)),
)
JUNK: tuple[Make, ...] = (
    *(list, dict, object, lambda: 1j, lambda: b"\xff", lambda: {1, 2}, lambda: range(3)),
    *(lambda: 2**64, lambda: 10**5000, lambda: "\ud800", lambda: "x" * 2000, lambda: True),
    *(lambda: FIRST, lambda: FIRST.replace(tzinfo=EAST), lambda: LAST.replace(tzinfo=WEST)),
    *(lambda: nest(40, lambda inner: [inner]), lambda: nest(40, lambda inner: {"a": inner})),
    *(
        lambda: nest(40, lambda inner: {"$not": inner}),
        create_endless_list,
        create_endless_document,
    ),
    *(lambda: {"$date": 5}, lambda: {"$numberDecimal": "1e99999"}, lambda: {"$uuid": "x"}),
    *(lambda: {"$in": "x"}, lambda: {"$or": []}, lambda: {"$gt": 1, "b": 2}),
    *(lambda: {"$all": [{}]}, lambda: Decimal("sNaN"), lambda: Decimal("1E+999999"), tuple),
)


class RaisingObject:
    """Raises whatever is asked of it, and says that it is a string."""

    def _refuse(self, *_: object) -> Any:
        raise RuntimeError("misbehaved")

    __eq__ = __lt__ = __gt__ = __le__ = __ge__ = __hash__ = __bool__ = __len__ = _refuse
    __iter__ = __getitem__ = __contains__ = __str__ = __repr__ = __index__ = __float__ = _refuse


class HostileString(str):
    """A string whose own ideas of equality, hash and order are to be left alone."""

    __slots__ = ()

    def _refuse(self, *_: object) -> Any:
        raise RuntimeError("misbehaved")

    __eq__ = __lt__ = __gt__ = __hash__ = __contains__ = __str__ = encode = _refuse  # type: ignore[assignment]


class HostileInteger(int):
    """An integer with ideas of its own."""

    def _refuse(self, *_: object) -> Any:
        raise RuntimeError("misbehaved")

    __eq__ = __lt__ = __gt__ = __hash__ = __int__ = __index__ = __mod__ = _refuse


class HostileFloat(float):
    """A float with ideas of its own."""

    __slots__ = ()

    def __eq__(self, _: object) -> bool:
        raise ZeroDivisionError

    __hash__ = None  # type: ignore[assignment]


class FakeString:
    """Says that it is a string, and has nothing of one."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return str


class ClasslessObject:
    """Does not even say what it is."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise RuntimeError("misbehaved")


class HostileDict(dict[str, Any]):
    """A dict whose methods fail."""

    def _refuse(self, *_: object) -> Any:
        raise RuntimeError("misbehaved")

    get = items = keys = values = __getitem__ = __iter__ = __contains__ = __len__ = _refuse


class HostileMapping(Mapping[str, Any]):
    """A mapping of which every way to read it fails."""

    def __getitem__(self, key: str) -> Any:
        raise RuntimeError("misbehaved")

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("misbehaved")

    def __len__(self) -> int:
        raise RuntimeError("misbehaved")


class HostileZone(tzinfo):
    """A zone that says what it was made with, or raises it."""

    def __init__(self, offset: Any) -> None:
        self.offset = offset

    def utcoffset(self, _: datetime | None) -> Any:
        if isinstance(self.offset, Exception):
            raise self.offset
        return self.offset

    def dst(self, _: datetime | None) -> None:
        return None

    def tzname(self, _: datetime | None) -> None:
        return None


ODD_VALUES: tuple[Any, ...] = (
    *(
        RaisingObject(),
        FakeString(),
        ClasslessObject(),
        HostileDict(a=1),
        HostileDict,
        [RaisingObject(), ClasslessObject(), HostileDict()],
    ),
    *(object(), len, 1j, {1, 2}, range(3), iter([1]), MappingProxyType({"b": 1}), True, [], {}),
    *(
        HostileString("a"),
        HostileString(""),
        HostileInteger(1),
        HostileFloat(1.5),
        [HostileString("a"), HostileInteger(0), HostileFloat(0)],
    ),
    *(nest(100_000, lambda inner: [inner]), nest(100_000, lambda inner: (inner,))),
    *(nest(100_000, lambda inner: {"a": inner}), nest(100_000, lambda inner: [{"0": inner}])),
    *(create_endless_list(), create_endless_document(), {1: 2, None: 3}, {"b": {(): 1}}, [{1: 1}]),
    *(2**64, -(10**5000), 10**100_000, [10**5000]),
    *map(Decimal, ("sNaN", "-NaN7", "-Infinity", "0E+99999", "1E+99999999999", "1E-99999999999")),
    *("\ud800", "\udfff" * 9, "\0", "9" * 1000, "a" * 1000, b"\xff", bytearray(b"a"), UUID(int=0)),
    *(FIRST, LAST, FIRST.replace(tzinfo=EAST), LAST.replace(tzinfo=WEST)),
    *(
        FIRST.replace(tzinfo=HostileZone(offset))
        for offset in (None, 5, timedelta(days=2), ValueError())
    ),
    *([0] * 20, [[0] * 4] * 4, [{"b": [{"0": 1}]}] * 4, nest(9, lambda inner: [{"0": inner}])),
)
"""Attributes that are odd, of no BSON type, or hostile."""
OVERSIZED: tuple[Make, ...] = (
    *(lambda: [0] * 100_000, lambda: ["x"] * 100_000, lambda: [{"b": 1}] * 50_000),
    *(lambda: "x" * 10_000_000, lambda: [[0] * 1000] * 1000, lambda: b"x" * 10_000_000),
)
"""Attributes beyond the sizes within which an evaluation is prompt."""
NO_CONTEXTS: tuple[Any, ...] = (
    *(None, 5, b"a", [], object(), set(), iter(()), [("a", 1)], RaisingObject, Context),
    *(RaisingObject(), FakeString(), ClasslessObject(), HostileDict(a=1), HostileMapping()),
    *(HostileString("a"), "", "\ud800", {1: 2}, {None: 1}, Context("a", {"b": 1})),
    *(MappingProxyType({"a": 1}), ChainMap({"a": 1}), UserDict(a=1)),
)
"""Contexts that are none, misbehave, or are given in other forms than a dict."""


class EndlessMapping(Mapping[str, Any]):
    """A mapping that never ends."""

    def __getitem__(self, key: str) -> Any:
        return key

    def __iter__(self) -> Iterator[str]:
        return map(str, itertools.count())

    def __len__(self) -> int:
        return 1


class OpaqueObject:
    """An object of which nothing can be asked."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("misbehaved")


class RaisingMetaclass(type):
    """A class of classes that raise where it is asked what belongs to them."""

    def __instancecheck__(cls, _: object) -> bool:
        raise RuntimeError("misbehaved")

    def __subclasscheck__(cls, _: type) -> bool:
        raise RuntimeError("misbehaved")

    def __repr__(cls) -> str:
        raise RuntimeError("misbehaved")


class RaisingClassObject(metaclass=RaisingMetaclass):
    """An object of such a class."""


def _iter_forever() -> Iterator[str]:
    while True:
        yield "a"


async def _await_nothing() -> None:
    """Do nothing: it is never awaited."""


def _create_recursive() -> dict[Any, Any]:
    made: dict[Any, Any] = {"key": "value"}
    made |= {"self": made, "targeting_key": made}
    return made


ARGUMENTS: tuple[Make, ...] = (
    *(lambda value=value: value for value in (*ODD_VALUES, *NO_CONTEXTS, *SCALARS)),
    *(
        itertools.count,
        _iter_forever,
        lambda: iter(["a"]),
        lambda: (c for c in "ab"),
        _create_recursive,
    ),
    *(
        OpaqueObject,
        lambda: OpaqueObject,
        RaisingClassObject,
        lambda: RaisingClassObject,
        lambda: random,
        lambda: print,
        lambda: ...,
    ),
    *(lambda: NotImplemented, lambda: memoryview(b"x"), lambda: range(10**18), lambda: -0.0),
    *(lambda: float("nan"), lambda: "x" * 100_000, lambda: 2**100_000, lambda: "\ud800" * 300),
    *(
        lambda: {"targeting_key": OpaqueObject()},
        lambda: {"a": OpaqueObject(), "targeting_key": "u"},
    ),
    *(
        lambda: HostileString("fuzz.flag-1"),
        lambda: frozenset({"a"}),
        lambda: "fuzz.",
    ),
    *(lambda: Exception("x"), lambda: KeyError, lambda: LAST, lambda: timedelta.max),
    *(lambda: Context(7, {"a": OpaqueObject()}), lambda: KeyEnum.ON, lambda: KeyEnum),
)
"""What may be passed for any argument of any method of a client."""
SELDOM: tuple[Make, ...] = (
    EndlessMapping,
    lambda: Context("u", {"a": EndlessMapping()}),
    lambda: [EndlessMapping()],
)
"""Arguments that take long to see through."""


class KeyEnum(StrEnum):
    """An enumeration, whose members may be keys, attributes and defaults."""

    ON = "on"


class ArgumentGenerator:
    """Draws arguments, most of them as they should be, so that calls get far enough."""

    def __init__(self, chance: random.Random, contexts: "ContextGenerator") -> None:
        self.chance = chance
        self.contexts = contexts

    def odd(self) -> Any:
        """Return anything."""
        if self.chance.random() < 0.001:
            return self.chance.choice(SELDOM)()
        return self.chance.choice(ARGUMENTS)()

    def key(self) -> Any:
        """Return the key of a flag, or anything."""
        return self.odd() if self.chance.random() < 0.3 else self._known_key()

    def _known_key(self) -> str:
        return format_key(self.chance.randrange(FLAG_COUNT + 1))

    def context(self) -> Any:
        """Return a context, or anything."""
        if self.chance.random() < 0.3:
            return self.odd()
        context = self.contexts.prompt()
        if type(context) is dict and self.chance.random() < 0.4:
            context[self.chance.choice(("targeting_key", "a", "b"))] = self.odd()
        return context

    def of(self, *usual: Any) -> Any:
        """Return one of some usual arguments, or anything."""
        return self.odd() if self.chance.random() < 0.4 else self.chance.choice(usual)


class ContextGenerator:
    """Draws contexts that fit the conditions of an oracle's draw, with odd attributes in them."""

    def __init__(self, chance: random.Random, conditions: BatchGenerator) -> None:
        self.chance = chance
        self.conditions = conditions

    def prompt(self) -> Any:
        """Return a context of a size within which evaluations are prompt."""
        if self.chance.random() < 0.1:
            return self.chance.choice(NO_CONTEXTS)
        context = self.conditions.document()
        if self.chance.random() < 0.9:
            odd = (self.chance.choice(SCALARS), self.chance.choice(ODD_VALUES))
            context["targeting_key"] = self.chance.choice(("someone", "", 7, "\U0001f600", *odd))
        if self.chance.random() < 0.4:
            context[self.chance.choice("aaab0")] = self.chance.choice(ODD_VALUES)
        return context

    def oversized(self) -> Any:
        """Return a context that is larger."""
        return self.conditions.document() | {"a": self.chance.choice(OVERSIZED)()}
