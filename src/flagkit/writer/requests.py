"""Requests: the digest of what somebody asked for, and whether the audit still has what was asked.

The hash chain has the request's id. So the audit may lack nothing that the ledger has, and what was
asked must be what its digest was made of, unless it was erased.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final

import msgspec

from flagkit.errors import InvalidDocumentError, RequestConflictError
from flagkit.storage.layout import ERASED
from flagkit.storage.store import Store

_AT_ONCE: Final = 500


# The driver reads long integers as a subclass of int, which MessagePack takes only as an int.
def _plain_integer(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{type(value).__name__} cannot be asked for")
    return int(value)


_encode = msgspec.msgpack.Encoder(enc_hook=_plain_integer).encode


def digest_of(content: Mapping[str, Any]) -> str:
    """Return the hex SHA-256 of who asks for what, and of why guards are passed by.

    Sent again without the latter, a request is another one: what stands in the audit must have it.

    Raises:
        InvalidDocumentError: it cannot be recorded.
    """
    asked = [content["actor"], content["operations"], *filter(None, [content.get("glass")])]
    try:
        return hashlib.sha256(_encode(asked)).hexdigest()
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidDocumentError("", f"cannot be recorded: {error}", "Mend it") from None


def check_same(request: str, recorded: str, content: Mapping[str, Any], *, done: bool) -> None:
    """Refuse what is another request than the one on record, by the digests.

    Of one that was erased nobody can tell. If it was done, it is not done again.

    Raises:
        RequestConflictError: it is another.
    """
    if recorded != content["digest"] and not (done and recorded == ERASED):
        raise RequestConflictError(
            f"the idempotency key {request!r} was used before, for another request"
        )


def check_requests(store: Store, revisions: Iterable[tuple[int, str]]) -> Iterator[str]:
    """Yield what is wrong with the audit of some revisions, by their requests' ids."""
    left = iter(revisions)
    while some := list(islice(left, _AT_ONCE)):
        found = store.requests(request for _, request in some)
        for revision, request in some:
            document = found.get(request)
            if document is None:
                yield f"revision {revision}: the audit has lost who asked for it, and why"
            elif not _is_whole(document):
                yield f"revision {revision}: what was asked for was altered in the audit"


def _is_whole(document: Mapping[str, Any]) -> bool:
    if document.get("digest") == ERASED:
        return True
    try:
        return digest_of(document) == str(document["digest"])
    except (KeyError, InvalidDocumentError):
        return False
