"""Pages: the policies of a large change, in documents of their own, named by their SHA-256.

The writer stores pages before the commit that refers to them. Abandoned pages are harmless, because
the name fixes the content. A change is always read whole: a missing or altered page is an error. A
page that is projected holds the revision in its field `projected`.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, cast

import msgspec
from msgspec import Struct

from flagkit._core.model.changes import (
    PolicyChange,
    PolicyState,
    encode_list_header,
    encode_policies,
)
from flagkit._core.storage.layout import Document, build_page_id
from flagkit.errors import HistoryLostError

UNPAGED_BYTES_MAX: Final = 4 * 1024 * 1024
UNPAGED_POLICIES_MAX: Final = 500
"""A change with more bytes of documents, before and after, or of more policies, is on pages.

Of so many policies nobody waits for the projection, who has something urgent to change.
"""
PAGE_BYTES: Final = 1024 * 1024
PAGE_POLICIES: Final = 1_000
"""A page ends once it has either: to decode one, or to project it, is a step that is not long."""

_Side = tuple[int, bytes]
_decode = msgspec.msgpack.Decoder(list[tuple[str, str, _Side | None, _Side | None]]).decode


def count_bytes(policies: Iterable[PolicyChange]) -> int:
    """Return how many bytes of documents a change has, before and after."""
    sides = (side for change in policies for side in (change.before, change.after))
    return sum(len(side.packed) for side in sides if side is not None)


class Page(Struct, frozen=True):
    """The policies of a page. The name of the page is the SHA-256 of `content`."""

    policies: Sequence[PolicyChange]
    content: bytes


def split_pages(policies: Sequence[PolicyChange]) -> dict[str, Page]:
    """Return the pages of a change by their names, in order; none if it needs none."""
    if len(policies) <= UNPAGED_POLICIES_MAX and count_bytes(policies) <= UNPAGED_BYTES_MAX:
        return {}
    pages = map(_build_page, _group_policies(policies))
    return {hashlib.sha256(page.content).hexdigest(): page for page in pages}


def _group_policies(policies: Sequence[PolicyChange]) -> Iterable[Sequence[PolicyChange]]:
    first, size = 0, 0
    for i, policy in enumerate(policies):
        size += count_bytes((policy,))
        if size >= PAGE_BYTES or i + 1 - first == PAGE_POLICIES:
            yield policies[first : i + 1]
            first, size = i + 1, 0
    if first < len(policies):
        yield policies[first:]


def _build_page(policies: Sequence[PolicyChange]) -> Page:
    return Page(policies, encode_list_header(len(policies)) + encode_policies(policies))


def join_pages(names: Iterable[str], pages: Mapping[str, bytes]) -> tuple[PolicyChange, ...]:
    """Return what a change did to policies, from its pages.

    Raises:
        HistoryLostError: a page is missing, or something changed it past the writer.
    """
    policies: list[PolicyChange] = []
    for name in names:
        policies += decode_page(name, pages.get(name))
    return tuple(policies)


def decode_page(name: str, content: bytes | None) -> list[PolicyChange]:
    """Return what stands on a page.

    Raises:
        HistoryLostError: it is missing, or is not what its name says.
    """
    if content is None:
        raise HistoryLostError(f"the page {name} of a change is missing")
    if hashlib.sha256(content).hexdigest() != name:
        raise HistoryLostError(f"the page {name} of a change was changed past the writer")
    try:
        found = _decode(content)
    except msgspec.DecodeError as error:
        raise HistoryLostError(f"the page {name} of a change is none: {error}") from error
    return [
        PolicyChange(_decode_state(key, region, before), _decode_state(key, region, after))
        for region, key, before, after in found
    ]


def _decode_state(key: str, region: str, side: _Side | None) -> PolicyState | None:
    return None if side is None else PolicyState(key, region, *side)


def encode_page(environment: str, name: str, page: Page) -> Document:
    """Return the document of a page; by its `keys` the history of a flag or a segment is found."""
    identity = build_page_id(environment, name)
    return {"_id": identity, "keys": list_page_keys(page.policies), "content": page.content}


def list_page_keys(policies: Iterable[PolicyChange]) -> list[str]:
    """Return the keys by which the page of some policies is found."""
    return sorted({policy.id[1] for policy in policies})


def read_page_contents(documents: Iterable[Mapping[str, Any]]) -> dict[str, bytes]:
    """Return what is on the pages of some documents, by their names. `join_pages` judges it."""
    return {
        document["_id"]["page"]: document["content"]
        for document in documents
        if isinstance(document.get("content"), bytes)
    }


def read_page_names(body: object) -> list[str]:
    """Return the names of the pages that the change of a head, or of the ledger, refers to."""
    if not isinstance(body, Mapping):
        return []
    names = cast("Mapping[str, object]", body).get("pages")
    listed = cast("list[object]", names) if isinstance(names, list) else []
    return [name for name in listed if isinstance(name, str)]
