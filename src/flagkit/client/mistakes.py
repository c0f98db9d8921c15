"""Mistakes of callers, logged once for each kind and flag.

An evaluation never raises, so a misspelt key or a targeting key of a wrong type would otherwise go
unnoticed.
"""

from typing import Final

from flagkit._core.background import Log
from flagkit._core.interruptions import FAILURES_SUPPRESSED

_log = Log("flagkit")

LOGGED_MAX: Final = 1_000
"""So many mistakes are logged by a client. Callers may make up keys without end."""
_LENGTH_MAX: Final = 300
_KEY_LENGTH_MAX: Final = 200


class MistakeLog:
    """The mistakes that one client has logged. Any thread may add to them."""

    __slots__ = ("_logged",)

    def __init__(self) -> None:
        self._logged: set[tuple[str, str]] = set()

    def log(self, kind: str, key: object, problem: str | None) -> None:
        """Log a mistake, unless one of its kind was logged for this flag. Never raises.

        Args:
            kind: The error code of an evaluation, or the name of a method.
            key: The flag's key, as the caller gave it.
            problem: What is wrong. It must not say what the context holds.
        """
        with FAILURES_SUPPRESSED:
            name = (
                key[:_KEY_LENGTH_MAX] if type(key) is str else f"a key of type {type(key).__name__}"
            )
            mistake = (kind, name)
            if mistake in self._logged or len(self._logged) >= LOGGED_MAX:
                return
            self._logged.add(mistake)
            _log.warning(
                "callers of %r are told their default: %s: %s",
                name,
                kind,
                (problem or "")[:_LENGTH_MAX],
            )
            if len(self._logged) >= LOGGED_MAX:
                _log.warning("%s mistakes of callers were logged; others will not be", LOGGED_MAX)
