"""Preparing: what is to be stored, in BSON, judged before anything of it is written.

Of a large change it is made once, to be judged and to be projected; and since only the revision is
not known before the commit, it may be made ahead of it. Which documents there are, forms says.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import bson
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument
from msgspec import Struct

from flagkit.changes import Change, PolicyId, PolicyState
from flagkit.errors import InvalidDocumentError
from flagkit.model import Flag
from flagkit.storage.forms import CODEC, fields_of, is_kept, ledger_document, ledgered
from flagkit.storage.layout import Document

STORED_BYTES_MAX = 12 * 1024 * 1024
"""A change larger than this in BSON is refused: a document of MongoDB ends at 16 MiB."""
POLICY_BYTES_MAX = STORED_BYTES_MAX // 3
"""So that a policy can always be changed by itself, which stores it before and after."""
_SURELY_FITS_BYTES = POLICY_BYTES_MAX // 16
"""A null in a list is one byte in MessagePack, and up to nine in BSON."""
_FAULTS = (BSONError, OverflowError, UnicodeError, TypeError)


class Prepared(Struct, frozen=True, gc=False):
    """What is stored of a state, but for the revision.

    `size` is that of its policy in BSON; `is_kept` tells whether MongoDB gives it back as it was.
    """

    state: PolicyState
    size: int
    is_kept: bool
    fields: Document


def prepared(state: PolicyState, flag: Flag | None = None) -> Prepared:
    """Return what is to be stored of a state; `flag` is what it decodes to, if that is known.

    Raises:
        InvalidDocumentError: it holds what BSON has not.
    """
    try:
        encoded = bson.encode(state.policy)
        kept = is_kept(state, encoded)
    except _FAULTS as error:
        raise _unfit(error) from None
    # The driver copies these bytes, in the place of encoding the document again.
    return Prepared(state, len(encoded), kept, fields_of(state, RawBSONDocument(encoded), flag))


def fitting(
    change: Change,
    content: Mapping[str, Any],
    pages: Collection[str] = (),
    flags: Mapping[PolicyId, Flag] | None = None,
    ahead: Mapping[PolicyId, Prepared] | None = None,
) -> dict[PolicyId, Prepared]:
    """Refuse what MongoDB could not store, or not give back as it was, before anything is.

    Return what was prepared of a change on pages; nothing of others, which are judged as a whole.

    Args:
        change: What is to be stored.
        content: What the audit is to have of it.
        pages: The names of those that the change is on, if it is on any.
        flags: What documents after it decode to, as far as that is known.
        ahead: What was prepared before. It is passed over where the change came to another state.

    Raises:
        InvalidDocumentError: it is too large, or holds what BSON has not.
    """
    states = [policy.after for policy in change.policies if policy.after]
    ready = _ready(states, flags or {}, ahead or {}) if pages else {}
    try:
        encoded = bson.encode(ledger_document(change, pages))
        size = max(len(encoded), len(bson.encode({**content})))
        if pages:
            sizes = [each.size for each in ready.values()]
            same = all(each.is_kept for each in ready.values())
        else:
            sizes = [len(bson.encode(state.policy)) for state in states]
            read: Document = bson.decode(encoded, CODEC)  # pyright: ignore[reportUnknownMemberType]
            same = ledgered(read) == change
    except _FAULTS as error:
        raise _unfit(error) from None
    _check_size(size, "change")
    _check_policy_size(max(sizes, default=0))
    if not same:
        raise InvalidDocumentError("", "would not be read back as it is", "Mend it")
    return ready


def check_policy_fits(state: PolicyState) -> None:
    """Refuse a policy that MongoDB could not store.

    Raises:
        InvalidDocumentError: it is too large, or holds what BSON does not have.
    """
    if len(state.packed) > _SURELY_FITS_BYTES:
        _check_policy_size(prepared(state).size)


def _check_policy_size(size: int) -> None:
    if size > POLICY_BYTES_MAX:
        raise InvalidDocumentError(
            "",
            f"a policy is {size:,} bytes in MongoDB; the limit is {POLICY_BYTES_MAX:,}",
            "Shorten its lists: a flag is for rules, not for data",
        )


def check_request_fits(content: Mapping[str, Any]) -> None:
    """Refuse a request that MongoDB could not store."""
    try:
        size = len(bson.encode({**content}))
    except _FAULTS as error:
        raise _unfit(error) from None
    _check_size(size, "request")


def _ready(
    states: Iterable[PolicyState],
    flags: Mapping[PolicyId, Flag],
    ahead: Mapping[PolicyId, Prepared],
) -> dict[PolicyId, Prepared]:
    found: dict[PolicyId, Prepared] = {}
    for state in states:
        identity = state.id
        ready = ahead.get(identity)
        if ready is None or ready.state != state:
            ready = prepared(state, flags.get(identity))
        found[identity] = ready
    return found


def _check_size(size: int, what: str) -> None:
    if size > STORED_BYTES_MAX:
        raise InvalidDocumentError(
            "",
            f"the {what} is {size:,} bytes in MongoDB; the limit is {STORED_BYTES_MAX:,}",
            "Split it up",
        )


def _unfit(error: Exception) -> InvalidDocumentError:
    return InvalidDocumentError("", f"cannot be stored: {error}", "Mend it")
