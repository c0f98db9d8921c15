"""Guarding: the guards that the command's writer asks, which are Python and named by a module."""

import importlib
from typing import Any

from flagkit.errors import ConfigurationError
from flagkit.writer import Guard


def guards_named(place: str | None) -> tuple[Guard, ...]:
    """Return the guards at `module:name`, which is a guard or several; none without a place.

    Raises:
        ConfigurationError: there are none.
    """
    if not place:
        return ()
    module, _, name = place.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"the guards {place!r} cannot be loaded: {error}: write module:name, and have"
            " PYTHONPATH lead to the module"
        ) from error
    guards: tuple[Any, ...] = tuple(found) if hasattr(found, "__iter__") else (found,)
    if not all(map(callable, guards)):
        raise ConfigurationError(f"the guards {place!r} are none: a guard is a function")
    return guards
