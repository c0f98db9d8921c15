"""Foreign values: attributes of types that are not Python's own, made native.

Programs pass lazy and proxied strings of web frameworks, ObjectIds, members of enumerations and
numbers of NumPy. Conditions, rollouts and segments all see the native value.

This module imports no library to recognize its types. A library that the program never imported has
no values.
"""

import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import Any, Final, Protocol, cast
from uuid import UUID

from msgspec import Struct


class ObjectIdLike(Protocol):
    """What a type checker knows of `bson.ObjectId`, which flagkit does not import."""

    @property
    def binary(self) -> bytes:
        """Its 12 bytes."""
        ...

    @property
    def generation_time(self) -> datetime:
        """When it was made."""
        ...


class Oid(Struct, frozen=True):
    """An ObjectId, as its 12 bytes: flagkit's own, since bson must not be loaded for it."""

    content: bytes

    def __str__(self) -> str:
        return self.content.hex()

    def __repr__(self) -> str:
        return f"ObjectId({str(self)!r})"


NATIVE: Final = frozenset(
    {
        *(type(None), bool, int, float, str, bytes, dict, list, tuple),
        *(datetime, Decimal, UUID, Oid),
    }
)
"""The types of native values."""

_EXACT: Final[Mapping[type, Callable[[Any], object]]] = {
    str: str.__str__,
    int: int.__int__,
    float: float.__float__,
    bytes: bytes.__bytes__,
    datetime: lambda value: None if value != value else value,  # noqa: PLR0124 - pandas.NaT is none
}
"""How an instance of a derived class becomes what it derives from, without the class's methods."""
_PROXIED: Final[Mapping[type, Callable[[Any], object]]] = {
    type(None): lambda _: None,
    bool: bool,
    int: lambda proxy: proxy.__int__(),
    float: lambda proxy: proxy.__float__(),
    str: str,
    bytes: lambda proxy: proxy.__bytes__(),
    dict: lambda proxy: dict(proxy.items()),
    list: lambda proxy: list(proxy.__iter__()),
    tuple: lambda proxy: tuple(proxy.__iter__()),
    datetime: lambda proxy: proxy.replace(),
    Decimal: lambda proxy: Decimal(str(proxy)),
    UUID: lambda proxy: UUID(str(proxy)),
    Oid: lambda proxy: Oid(proxy.content),
}
"""How the value that a proxy stands for is asked for, by the type that the proxy says it has."""
_NUMPY_SCALARS: Final = frozenset({type(None), bool, int, float, str, bytes, datetime})


def to_native(value: object) -> Any:
    """Return the native value that an attribute stands for; the attribute itself if there is none.

    - An instance of a derived class stands for its base: a text, a number, bytes.
    - A member of an enumeration stands for its value.
    - A `bson.ObjectId` stands for an Oid.
    - A scalar of NumPy stands for Python's; NaT and pandas.NA stand for None.
    - A proxy stands for the object behind it, a lazy text for the text.

    Raises what the object raises, if it misbehaves.
    """
    kind = type(value)
    if kind in NATIVE:
        return value
    for base in kind.__mro__:
        if base in NATIVE:
            exact: Callable[[Any], object] | None = _EXACT.get(base)
            return value if exact is None else exact(cast("Any", value))
    if issubclass(kind, Enum):
        return to_native(cast("Enum", value)._value_)
    found = _convert_library_value(kind, value)
    return _unwrap_proxy(kind, value) if found is value else found


def _convert_library_value(kind: type, value: Any) -> object:
    """Return what a value of a known library stands for, the value itself if it is of none."""
    object_id = _find_loaded_class("bson.objectid", "ObjectId")
    if object_id is not None and issubclass(kind, object_id):
        return Oid(value.binary)
    generic = _find_loaded_class("numpy", "generic")
    if generic is not None and issubclass(kind, generic):
        if kind.__name__ == "datetime64":
            value = value.astype("datetime64[us]")
        item = value.item()
        return item if type(item) in _NUMPY_SCALARS else value
    pandas = sys.modules.get("pandas")
    if pandas is not None and value is getattr(pandas, "NA", pandas):
        return None
    return value


def _find_loaded_class(module: str, name: str) -> type | None:
    """Return a class of a module if that is loaded."""
    found = getattr(sys.modules.get(module), name, None)
    return found if isinstance(found, type) else None


def _unwrap_proxy(kind: type, proxy: Any) -> object:
    """Return the value behind a proxy, which says that it has another class than its type."""
    said = cast("type[object]", proxy.__class__)
    # What a proxy says may be anything.
    if said is kind or not isinstance(said, type):  # pyright: ignore[reportUnnecessaryIsInstance]
        return str.__str__(str(proxy)) if _is_text(kind) else proxy
    if vars(object)["__str__"] is kind.__str__:
        # A proxy passes this on. This is an object that only says that it is something else.
        return proxy
    if issubclass(said, Enum):
        return to_native(proxy._value_)
    object_id = _find_loaded_class("bson.objectid", "ObjectId")
    if object_id is not None and issubclass(said, object_id):
        return Oid(proxy.binary)
    for base in said.__mro__:
        if base in _PROXIED:
            found = _PROXIED[base](proxy)
            return (
                to_native(found) if isinstance(found, base) and type(found) is not kind else proxy
            )
    return str.__str__(str(proxy)) if _is_text(said) else proxy


def _is_text(kind: type) -> bool:
    """Tell whether a class that does not derive from `str` has the methods of one."""
    return hasattr(kind, "casefold") and hasattr(kind, "encode")
