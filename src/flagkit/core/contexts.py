"""Contexts: who asks, as a targeting key and attributes.

Whatever a caller passes becomes one plain dict of attributes, in which the targeting key stands
under `targeting_key`: conditions and rollouts read it like any other attribute.
"""

import functools
from collections.abc import Callable, Mapping
from contextlib import ContextDecorator
from contextvars import ContextVar, Token
from typing import Any, TypeAlias, TypeVar, cast

from flagkit.errors import InvalidArgumentError, InvalidContextError
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


_Function = TypeVar("_Function", bound=Callable[..., Any])


class _Use:
    """One block of `use_context`: its attributes, and the block that it stands in."""

    __slots__ = ("attributes", "is_over", "outer")

    def __init__(self, attributes: Attributes, outer: "_Use | None" = None) -> None:
        self.attributes = attributes
        self.outer = outer
        # Whether the block was left without taking it out of the context that it was entered in.
        self.is_over = False


_ambient: ContextVar[_Use] = ContextVar("flagkit_context", default=_Use({}))  # noqa: B039 - nobody changes it


class Block(ContextDecorator):
    """What `use_context` returns: it is entered by `with`, or decorates a function."""

    def __init__(self, context: ContextLike) -> None:
        self._context = context
        self._uses: list[tuple[_Use, Token[_Use]]] = []

    def __enter__(self) -> None:
        use = _Use(attributes_of(self._context), _current())
        self._uses.append((use, _ambient.set(use)))

    def __exit__(self, *_: object) -> None:
        innermost = _current()
        # Several threads may have entered this one: each leaves its own.
        mine = [entered for entered in self._uses if entered[0] is innermost] or self._uses
        use, token = mine[-1]
        self._uses.remove((use, token))
        if innermost is not use:
            # Another block stands in this one still, or this is another task or thread.
            use.is_over = True
            return
        try:
            _ambient.reset(token)
        except ValueError:
            # This is a task that was started in the block.
            use.is_over = True

    def __call__(self, func: _Function) -> _Function:
        """Have a function, or a coroutine function, called in such a block each time.

        Raises:
            InvalidArgumentError: it is a generator function, whose body runs later, in between
                what its caller does.
        """
        # Deferred, for it takes some milliseconds to import.
        import inspect  # noqa: PLC0415

        if inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func):
            raise InvalidArgumentError(
                f"{func.__qualname__} is a generator function, which use_context cannot decorate:"
                " write `with use_context(...):` in it"
            )
        context = self._context
        if inspect.iscoroutinefunction(func):

            async def called_later(*args: Any, **kwargs: Any) -> Any:
                with Block(context):
                    return await func(*args, **kwargs)

            return cast("_Function", functools.wraps(func)(called_later))

        def called(*args: Any, **kwargs: Any) -> Any:
            with Block(context):
                return func(*args, **kwargs)

        return cast("_Function", functools.wraps(func)(called))


def use_context(context: ContextLike) -> Block:
    """Make `context` the ambient one, which evaluations without a context of their own use.

    Holds for the block, in this thread or asyncio task and the tasks that it starts. A block may be
    left in another task or thread than it was entered in, as generators of web frameworks are. It
    is over then in both, and the ambient context of the other task or thread stays as it is. As a
    decorator, it holds for each call of a function or coroutine function.

    Raises:
        InvalidContextError: it is none of the forms of a context.
    """
    return Block(context)


def _current() -> _Use:
    use = _ambient.get()
    while use.is_over and use.outer is not None:
        use = use.outer
    return use


def attributes_of(context: ContextLike) -> Attributes:
    """Return the attributes of a context, as a plain dict that the caller must not change.

    Raises:
        InvalidContextError: it is none of the forms of a context.
    """
    if context is None:
        return _current().attributes
    if isinstance(context, Context):
        return context.attributes
    if isinstance(context, str):
        return {TARGETING_KEY: context}
    if isinstance(context, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] - not all callers check types
        return dict(context)
    raise InvalidContextError(
        f"a context is a targeting key, a mapping, a Context or None, not {type(context).__name__}"
    )
