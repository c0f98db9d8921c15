"""Contexts: who asks, as a targeting key and attributes.

Whatever a caller passes becomes one plain dict of attributes, in which the targeting key stands
under `targeting_key`: conditions and rollouts read it like any other attribute.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias

from flagkit.errors import InvalidContextError
from flagkit.model import TARGETING_KEY

Attributes: TypeAlias = dict[str, Any]


class Context:
    """A targeting key and attributes, put together once and reusable.

    Args:
        targeting_key: The key to bucket by, such as a user's id.
        attributes: JSON-like values by name; dates are aware datetimes. Copied one level deep.
    """

    __slots__ = ("attributes",)

    def __init__(
        self, targeting_key: str | None = None, attributes: Mapping[str, Any] | None = None
    ) -> None:
        self.attributes: Attributes = dict(attributes or {})
        if targeting_key is not None:
            self.attributes[TARGETING_KEY] = targeting_key

    def __repr__(self) -> str:
        return f"Context({self.attributes!r})"


ContextLike: TypeAlias = str | Mapping[str, Any] | Context | None
"""A targeting key, a mapping with `targeting_key` and attributes, a Context; None: the ambient."""

_NOBODY: Attributes = {}
_ambient: ContextVar[Attributes] = ContextVar("flagkit_context", default=_NOBODY)


@contextmanager
def use_context(context: ContextLike) -> Generator[None]:
    """Make `context` the ambient one, which evaluations without a context of their own use.

    Holds for the block, in this thread or asyncio task and the tasks that it starts.

    Raises:
        InvalidContextError: it is none of the forms of a context.
    """
    token = _ambient.set(attributes_of(context))
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
        return _ambient.get()
    if isinstance(context, Context):
        return context.attributes
    if isinstance(context, str):
        return {TARGETING_KEY: context}
    if isinstance(context, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] - not all callers check types
        return dict(context)
    raise InvalidContextError(
        f"a context is a targeting key, a mapping, a Context or None, not {type(context).__name__}"
    )
