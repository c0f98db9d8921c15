"""Terms: on what a change is made, besides its being right: asked at the revision of the commit."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from flagkit.changes import PolicyChange
from flagkit.storage.reading import Reading
from flagkit.writer.access import Action, Need, check_access, needs
from flagkit.writer.operations import Operation

UNLIMITED: Final[frozenset[Action]] = frozenset(("pause", "grant"))
"""What takes no token of a rate limit: pauses and changes of access."""


class Terms:
    """The terms of most changes: their actor has the roles that they take."""

    has_own_request = False
    """Whether the library names the request, so that what has its name is the same request."""

    def check(self, reading: Reading) -> None:
        """Refuse a change that may not be made at all, before it is planned."""

    def needed(
        self,
        operations: Sequence[Operation],
        changes: Iterable[PolicyChange],
        *,
        breaks_glass: bool,
    ) -> list[Need]:
        """Return what roles are asked for."""
        return needs(operations, changes, breaks_glass=breaks_glass)

    def is_limited(self, needed: Collection[Need]) -> bool:
        """Tell whether the change takes a token: all do but those that stop harm."""
        return not needed or any(action not in UNLIMITED for action, _ in needed)

    def approvers(
        self, reading: Reading, actor: str, needed: Sequence[Need], changes: Sequence[PolicyChange]
    ) -> tuple[str, ...]:
        """Return who approved of a planned change, or refuse it.

        Raises:
            AccessDeniedError: its actor may not make it.
        """
        del changes
        check_access(reading, actor, needed)
        return ()

    def recorded(self, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what the audit is to have of a change, now that it meets the terms."""
        return content
