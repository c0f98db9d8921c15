"""Auditing: ledger documents that hold what a writer put there, and nothing else."""

from collections.abc import Mapping
from typing import Any, cast

from flagkit.changes import Change
from flagkit.errors import StoreError
from flagkit.storage.forms import ledger_document, ledgered
from flagkit.storage.pages import names_in


def audited(document: Mapping[str, Any], pages: Mapping[str, bytes] | None = None) -> Change:
    """Return the change that a ledger document holds, if it holds nothing else.

    Raises:
        StoreError: it has not the form that it should have; with its revision.
    """
    try:
        change = ledgered(document, pages)
    except StoreError as error:
        raise StoreError(
            f"revision {document['_id']['revision']} of the ledger: {error}"
        ) from error
    whole = all(item.before or item.after for item in change.policies)
    if not whole or _names(document) != _names(ledger_document(change, names_in(document))):
        raise StoreError(f"revision {change.revision} of the ledger was altered")
    return change


def _names(part: object) -> Any:
    """Return the names of fields in a ledger document, without what is in policies."""
    if isinstance(part, list):
        return list(map(_names, cast("list[object]", part)))
    if not isinstance(part, Mapping):
        return None
    fields = cast("Mapping[str, object]", part)
    return {name: name == "policy" or _names(value) for name, value in fields.items()}
