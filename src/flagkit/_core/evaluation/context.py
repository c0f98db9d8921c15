"""Contexts: the targeting key and attributes that a flag is evaluated for.

Whatever a caller passes becomes one plain dict of attributes. The targeting key is an attribute
named `targeting_key`, so conditions and rollouts read it like any other attribute.
"""

import functools
from collections.abc import Callable, Mapping
from contextlib import ContextDecorator
from contextvars import ContextVar, Token
from itertools import islice
from typing import Any, Final, TypeAlias, TypeVar, cast
from uuid import UUID

from flagkit._core.interruptions import is_interruption
from flagkit._core.model import TARGETING_KEY
from flagkit._core.model.foreign import NATIVE, ObjectIdLike, Oid, to_native
from flagkit.errors import InvalidArgumentError, InvalidContextError

TargetingKey: TypeAlias = str | int | UUID | ObjectIdLike
"""A value that identifies a user or thing. Booleans, which Python counts as integers, do not."""
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
_Function = TypeVar("_Function", bound=Callable[..., Any])


class _ActiveContext:
    """One block of `use_context`: its attributes, and the enclosing block."""

    __slots__ = ("attributes", "is_over", "outer")

    def __init__(
        self, attributes: "Attributes | InvalidContextError", outer: "_ActiveContext | None" = None
    ) -> None:
        self.attributes = attributes
        self.outer = outer
        # True if the block ended, but could not be removed from the context that entered it.
        self.is_over = False


_ambient: ContextVar[_ActiveContext] = ContextVar("flagkit_context", default=_ActiveContext({}))  # noqa: B039 - nobody changes it


class ContextBlock(ContextDecorator):
    """The result of `use_context`: `with` enters it, or it decorates a function."""

    def __init__(self, context: ContextLike) -> None:
        self._context = context
        self._active: list[tuple[_ActiveContext, Token[_ActiveContext]]] = []

    def __enter__(self) -> None:
        use = _ActiveContext(_resolve_context(self._context), _get_current())
        self._active.append((use, _ambient.set(use)))

    def __exit__(self, *_: object) -> None:
        innermost = _get_current()
        # Several threads may have entered this one: each leaves its own.
        mine = [entered for entered in self._active if entered[0] is innermost] or self._active
        use, token = mine[-1]
        self._active.remove((use, token))
        if innermost is not use:
            # A block inside of this one is still open, or this is another task or thread.
            use.is_over = True
            return
        try:
            _ambient.reset(token)
        except ValueError:
            # This is a task that was started in the block.
            use.is_over = True

    def __call__(self, func: _Function) -> _Function:
        """Decorate a function, or a coroutine function: each call runs in such a block.

        Raises:
            InvalidArgumentError: it is a generator function. Its body would run later, interleaved
                with its caller.
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
                with ContextBlock(context):
                    return await func(*args, **kwargs)

            return cast("_Function", functools.wraps(func)(called_later))

        def called(*args: Any, **kwargs: Any) -> Any:
            with ContextBlock(context):
                return func(*args, **kwargs)

        return cast("_Function", functools.wraps(func)(called))


def use_context(context: ContextLike) -> ContextBlock:
    """Make `context` the ambient one, which evaluations without a context of their own use.

    This holds for the block, in this thread or asyncio task and the tasks that it starts. A block
    may be left in another task or thread than it was entered in, as generators of web frameworks
    are. The block then ends in both. The ambient context of the other task or thread stays as it
    is. As a decorator, it holds for each call of a function or coroutine function.

    Never raises: if the context is not valid, evaluations in the block answer INVALID_CONTEXT.
    """
    return ContextBlock(context)


def _get_current() -> _ActiveContext:
    use = _ambient.get()
    while use.is_over and use.outer is not None:
        use = use.outer
    return use


def _resolve_context(context: ContextLike) -> "Attributes | InvalidContextError":
    """Return the attributes of a context, or the error if it is not valid."""
    try:
        return get_attributes(context)
    except InvalidContextError as error:
        return error
    except Exception as error:
        if is_interruption(error):
            raise
        return InvalidContextError(f"the ambient context raised {type(error).__name__}")


def get_attributes(context: ContextLike) -> Attributes:
    """Return the attributes of a context, as a plain dict that the caller must not change.

    Raises:
        InvalidContextError: it is none of the forms of a context.
    """
    if context is None:
        found = _get_current().attributes
        if isinstance(found, InvalidContextError):
            # A new one: each time that an exception is raised its traceback grows.
            raise InvalidContextError(str(found))
        return found
    if isinstance(context, Context):
        return context.attributes
    if isinstance(context, str):
        return {TARGETING_KEY: context}
    if isinstance(context, dict):
        # `isinstance` accepts proxies of a dict, too.
        context = to_native(context)
    if isinstance(context, Mapping):
        return _copy_attributes(context)
    key = to_native(context)
    if type(key) in _KEYS:
        return {TARGETING_KEY: key}
    raise InvalidContextError(
        "a context is a targeting key (a string, an integer, a UUID or an ObjectId), a mapping, a"
        f" Context or None, not {type(context).__name__}"
    )


def convert_foreign_attributes(context: ContextLike) -> Attributes | None:
    """Return the attributes of a context with native values for foreign ones, None if it has none.

    The code of flags accepts any object that claims to be a string. Some proxies do so, and then
    fail at a string operation.
    """
    attributes = get_attributes(context)
    found = {
        name: to_native(value) for name, value in attributes.items() if type(value) not in NATIVE
    }
    if all(found[name] is attributes[name] for name in found):
        return None
    return attributes | found


def _copy_attributes(context: Mapping[str, Any]) -> Attributes:
    if type(context) is dict:
        return cast("Attributes", context).copy()
    copied = {name: context[name] for name in islice(context, ATTRIBUTES_MAX + 1)}
    if len(copied) > ATTRIBUTES_MAX:
        raise InvalidContextError(f"the context has more than {ATTRIBUTES_MAX:,} attributes")
    return copied
