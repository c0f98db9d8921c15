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
    """The type of `bson.ObjectId` for type checkers, without importing it."""

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
"""The conversions from a derived class to its base, without methods of the derived class."""
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
"""The conversions from a proxy to the value behind it, by the class that the proxy claims."""
_NUMPY_SCALARS: Final = frozenset({type(None), bool, int, float, str, bytes, datetime})


def to_native(value: object) -> Any:
    """Return the native value of an attribute; the attribute itself if there is no conversion.

    - An instance of a derived class becomes its base: a text, a number, bytes.
    - A member of an enumeration becomes its value.
    - A `bson.ObjectId` becomes an Oid.
    - A scalar of NumPy becomes Python's; NaT and pandas.NA become None.
    - A proxy becomes the object behind it, a lazy text becomes the text.

    If the object misbehaves, its exceptions propagate.
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
    """Return the native value of a known library's value, the value itself for other libraries."""
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
    """Return the value behind a proxy: an object whose `__class__` differs from its type."""
    cls = cast("type[object]", proxy.__class__)
    # The `__class__` of a proxy may be anything.
    if cls is kind or not isinstance(cls, type):  # pyright: ignore[reportUnnecessaryIsInstance]
        return str.__str__(str(proxy)) if _is_text(kind) else proxy
    if vars(object)["__str__"] is kind.__str__:
        # A proxy forwards `__str__`. This object only claims to have another class.
        return proxy
    if issubclass(cls, Enum):
        return to_native(proxy._value_)
    object_id = _find_loaded_class("bson.objectid", "ObjectId")
    if object_id is not None and issubclass(cls, object_id):
        return Oid(proxy.binary)
    for base in cls.__mro__:
        if base in _PROXIED:
            found = _PROXIED[base](proxy)
            return (
                to_native(found) if isinstance(found, base) and type(found) is not kind else proxy
            )
    return str.__str__(str(proxy)) if _is_text(cls) else proxy


def _is_text(kind: type) -> bool:
    """Return True if a class that does not derive from `str` has the methods of `str`."""
    return hasattr(kind, "casefold") and hasattr(kind, "encode")
