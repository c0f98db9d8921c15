"""Recorded: operations as the audit and proposals have them, and read back from there.

What is read back by another process is equal to what was asked for, and so is its digest. A
function cannot be: of an edit there is its name alone.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypeAlias

import msgspec

from flagkit.changes import PolicyId
from flagkit.errors import InvalidDocumentError
from flagkit.model import EVERYWHERE
from flagkit.writer.access import GrantRole, RevokeRole
from flagkit.writer.limits import SetLimit
from flagkit.writer.operations import (
    ChangeMembers,
    Create,
    DeleteSegment,
    Edit,
    Operation,
    ServeVariant,
    SetRollout,
    SetSegment,
    SetState,
    Update,
)
from flagkit.writer.rollbacks import Rollback, RollbackAll

_Readable: TypeAlias = (
    Create
    | Update
    | SetRollout
    | ServeVariant
    | SetState
    | SetSegment
    | ChangeMembers
    | DeleteSegment
    | Rollback
    | RollbackAll
    | GrantRole
    | RevokeRole
    | SetLimit
)
READABLE: Final = _Readable.__args__
"""The operations that can be read back."""


RELIED: Final = ("proposal", "applied_by", "approved")
"""What the audit has of the application of a proposal, beside what all requests have.

`approved` is {digest, by}: the digest of the proposal, and the approvals that were relied on.
"""


def documents_of(operations: Iterable[Operation]) -> list[dict[str, Any]]:
    """Return what is recorded of operations; of an edit's function, its name."""
    return [
        msgspec.to_builtins(operation, builtin_types=(datetime,), enc_hook=_name_of)
        for operation in operations
    ]


def operations_of(documents: object) -> list[Operation]:
    """Return the operations that were recorded.

    Raises:
        InvalidDocumentError: they were changed past the writer, or one is an edit.
    """
    try:
        return [*msgspec.convert(documents, list[_Readable])]
    except msgspec.ValidationError as error:
        raise InvalidDocumentError(
            "operations", f"cannot be read back: {error}", "Ask for it anew"
        ) from None


def check_readable(operations: Sequence[Operation]) -> None:
    """Refuse operations that another process could not read back.

    Raises:
        InvalidDocumentError: with what to ask for instead.
    """
    for operation in operations:
        if isinstance(operation, Edit):
            raise InvalidDocumentError(
                "edit",
                "has a function, which another process cannot be given",
                "Read the flag, and update it with expected_version",
                subject=f"flag {operation.key!r}",
            )
    if operations_of(documents_of(operations)) != [*operations]:
        raise InvalidDocumentError(
            "", "would not be read back as it is", "Use plain numbers, texts, lists and mappings"
        )


def policies_of(operations: Iterable[Operation]) -> list[PolicyId] | None:
    """Return the flags and segments that operations are on; None if it is all of them."""
    found: dict[PolicyId, None] = {}
    for operation in operations:
        if isinstance(operation, RollbackAll):
            return None
        found[operation.policy_id] = None
    return [*found]


def digest_of(asked: object) -> str:
    """Return the hex SHA-256 of what is asked for, the same when it is read back.

    Raises:
        InvalidDocumentError: it has what cannot be recorded.
    """
    try:
        content = msgspec.msgpack.encode(asked, enc_hook=_plain)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidDocumentError("", f"cannot be recorded: {error}", "Mend it") from None
    return hashlib.sha256(content).hexdigest()


def request_digest(content: Mapping[str, Any]) -> str:
    """Return the digest of a request by what the audit has of it, or is to have."""
    # Sent again with it, a request is another one: what stands in the audit must have it.
    glass = [content["glass"]] if "glass" in content else []
    relied = [content[name] for name in RELIED] if "approved" in content else []
    return digest_of([content["actor"], content["operations"], *glass, *relied])


def decision(content: Mapping[str, Any], verb: str, subject: str, **more: str) -> dict[str, Any]:
    """Return what the audit has of a request that decides something, and changes no flag."""
    operations = [{"operation": verb, "key": subject, "region": EVERYWHERE, **more}]
    decided = {**content, "operations": operations}
    return decided | {"digest": request_digest(decided)}


def _plain(value: object) -> int:
    # The driver reads long integers as a subclass of int.
    if not isinstance(value, int):
        raise TypeError(f"{type(value).__name__} is none of the types that it may have")
    return int(value)


def _name_of(function: Any) -> str:
    return str(getattr(function, "__qualname__", type(function).__qualname__))
