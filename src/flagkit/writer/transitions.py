"""Transitions: what a flag's state may become, by which verb. The one table of it.

docs/writing.md has the same table for people; a test holds the page to this one.
"""

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

from flagkit.errors import InvalidDocumentError
from flagkit.model.documents import State

Verb: TypeAlias = Literal["pause", "resume", "archive", "restore", "delete"]
Standing: TypeAlias = Literal["active", "paused", "archived", "absent"]
"""A flag's state, or that there is none; a deleted flag is absent, too."""

WRITTEN: Final = "as written"
"""The state that the document says; an update of one that says none leaves it as it is."""
EARLIER: Final = "as it was"

TRANSITIONS: Final[Mapping[str, Mapping[Standing, str]]] = {
    "create": {"absent": WRITTEN},
    "update": {"active": WRITTEN, "paused": WRITTEN, "archived": WRITTEN},
    "pause": {"active": "paused", "paused": "paused"},
    "resume": {"active": "active", "paused": "active"},
    "archive": {"active": "archived", "paused": "archived", "archived": "archived"},
    "restore": {"paused": "paused", "archived": "paused"},
    "delete": {"archived": "absent"},
    "rollback": {"active": EARLIER, "paused": EARLIER, "archived": EARLIER, "absent": EARLIER},
}
"""By verb and standing, what a flag's state becomes; what is not here is refused."""

_REMEDIES: Final[Mapping[tuple[Verb, State], str]] = {
    ("pause", "archived"): "Restore it first: it is paused then",
    ("resume", "archived"): "Restore it first, then resume it",
    ("restore", "active"): "It needs no restoring; to switch it off, pause it",
    ("delete", "active"): "Archive it first: it serves its off variant then, to who still asks",
    ("delete", "paused"): "Archive it first",
}


def moved(verb: Verb, key: str, state: State) -> Standing:
    """Return what a flag's state becomes by a verb.

    Raises:
        InvalidDocumentError: it may not become that from where it is.
    """
    after = TRANSITIONS[verb].get(state)
    if after is None:
        raise InvalidDocumentError(
            "state", f"of {key} is {state}", _REMEDIES[verb, state], subject=f"flag {key!r}"
        )
    return _STANDINGS[after]


_STANDINGS: Final[Mapping[str, Standing]] = {
    "active": "active",
    "paused": "paused",
    "archived": "archived",
    "absent": "absent",
}
