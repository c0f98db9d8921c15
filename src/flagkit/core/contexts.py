"""Contexts: who asks, as a targeting key and attributes.

Whatever a caller passes becomes one plain dict of attributes, in which the targeting key stands
under `targeting_key`: conditions and rollouts read it like any other attribute.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from typing import Any, Final, TypeAlias, cast
from uuid import UUID

from flagkit.errors import InvalidContextError
from flagkit.interruptions import is_interruption
from flagkit.model import TARGETING_KEY
from flagkit.model.foreign import NATIVE, ObjectIdLike, Oid, native

TargetingKey: TypeAlias = str | int | UUID | ObjectIdLike
"""What names somebody. A boolean, which is an integer to Python, does not."""
Attributes: TypeAlias = dict[str, Any]


class Context:
    """A targeting key and attributes, put together once and reusable.

    Args:
        targeting_key: The key to bucket by, such as a user's id.
        attributes: JSON-like values by name; dates are aware datetimes. Copied one level deep.
    """

    __slots__ = ("attributes",)

    def __init__(
        self,
        targeting_key: TargetingKey | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        self.attributes: Attributes = dict(attributes or {})
        if targeting_key is not None:
            self.attributes[TARGETING_KEY] = targeting_key

    def __repr__(self) -> str:
        return f"Context({self.attributes!r})"


ContextLike: TypeAlias = TargetingKey | Mapping[str, Any] | Context | None
"""A targeting key, a mapping with `targeting_key` and attributes, a Context; None: the ambient."""

ATTRIBUTES_MAX: Final = 100_000
"""A mapping of more attributes than this is no context. Some mappings never end."""
_KEYS: Final = frozenset({str, int, UUID, Oid})
_NOBODY: Attributes = {}
_ambient: ContextVar[Attributes | InvalidContextError] = ContextVar(
    "flagkit_context", default=_NOBODY
)


@contextmanager
def use_context(context: ContextLike) -> Generator[None]:
    """Make `context` the ambient one, which evaluations without a context of their own use.

    This holds for the block, in this thread or asyncio task and the tasks that it starts. Never
    raises: where the context is none, evaluations in the block answer INVALID_CONTEXT.
    """
    found: Attributes | InvalidContextError
    try:
        found = attributes_of(context)
    except InvalidContextError as error:
        found = error
    except Exception as error:
        if is_interruption(error):
            raise
        found = InvalidContextError(f"the ambient context raised {type(error).__name__}")
    token = _ambient.set(found)
    try:
        yield
    finally:
        _ambient.reset(token)


def attributes_of(context: ContextLike) -> Attributes:
    """Return the attributes of a context, as a plain dict that the caller must not change.

    Raises:
        InvalidContextError: it is none of the forms of a context.
    """
    if context is None:
        found = _ambient.get()
        if isinstance(found, InvalidContextError):
            # A new one: each time that an exception is raised its traceback grows.
            raise InvalidContextError(str(found))
        return found
    if isinstance(context, Context):
        return context.attributes
    if isinstance(context, str):
        return {TARGETING_KEY: context}
    if isinstance(context, dict):
        # A proxy of one says so, too.
        context = native(context)
    if isinstance(context, Mapping):
        return _copied(context)
    key = native(context)
    if type(key) in _KEYS:
        return {TARGETING_KEY: key}
    raise InvalidContextError(
        "a context is a targeting key (a string, an integer, a UUID or an ObjectId), a mapping, a"
        f" Context or None, not {type(context).__name__}"
    )


def settled(context: ContextLike) -> Attributes | None:
    """Return the attributes of a context with native values for foreign ones, None if it has none.

    The code of flags takes what says that it is a string for one. Some proxies do say so, and
    then fail at an operation that a string has.
    """
    attributes = attributes_of(context)
    found = {name: native(value) for name, value in attributes.items() if type(value) not in NATIVE}
    if all(found[name] is attributes[name] for name in found):
        return None
    return attributes | found


def _copied(context: Mapping[str, Any]) -> Attributes:
    if type(context) is dict:
        return cast("Attributes", context).copy()
    copied = {name: context[name] for name in islice(context, ATTRIBUTES_MAX + 1)}
    if len(copied) > ATTRIBUTES_MAX:
        raise InvalidContextError(f"the context has more than {ATTRIBUTES_MAX:,} attributes")
    return copied
