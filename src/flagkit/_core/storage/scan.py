"""Builds a base from the documents of all policies, batch by batch. Does no I/O itself.

The documents may lack the change of the tip and a large change before it, so the scan reads through
unprojected changes. It takes the packed body of a flag, and the policy only if the body is missing.
"""

from collections.abc import Generator, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final, TypeAlias

from msgspec.structs import astuple

from flagkit._core.model import packing
from flagkit._core.model.changes import ACCESS, Change, PolicyState, Tip
from flagkit._core.model.changes import SEGMENTS as SEGMENTS_REGION
from flagkit._core.snapshot import Arena, Record, encode_record
from flagkit._core.snapshot.builder import ArenaBuilder
from flagkit._core.storage import layout
from flagkit._core.storage.documents import decode_policy_state
from flagkit._core.storage.validation import validates_form
from flagkit.errors import HistoryLostError

BATCH_DOCUMENTS: Final = 1_000
"""So many documents are decoded and taken in at once: a few milliseconds."""
PROJECTIONS: Final[Mapping[str, layout.Document | None]] = {
    layout.FLAGS: dict.fromkeys(("version", "hash", "body", "format", "seal"), True),
    layout.SEGMENTS: None,
}
"""The collections that clients need, with the projections of what they read."""

_Place: TypeAlias = tuple[bytes, bytes]
"""The position of a policy in the order of `_id`s: its key and region."""


class PolicyScan:
    """A scan of an environment, at the revision of a head.

    Args:
        tip: Where the environment stands in the snapshot of the database that documents are from.
        unprojected: The changes that they may lack, in order.
        regions: The regions that are wanted, the one of segments included; None for all.
        namespaces: What the keys of flags that are wanted begin with; none for all.

    Raises:
        HistoryLostError: one of the changes was altered past the writer.
    """

    def __init__(
        self,
        tip: Tip,
        unprojected: Sequence[Change],
        regions: Sequence[str] | None,
        namespaces: tuple[str, ...] = (),
    ) -> None:
        self.tip = tip
        self.parts: set[str] = set()
        """The parts of members that segments refer to, once all documents have been taken."""
        self._regions = regions
        self._namespaces = namespaces
        self._builder = ArenaBuilder(namespaces)
        self._pending: dict[str, list[tuple[_Place, Record | None]]] = {
            collection: [] for collection in PROJECTIONS
        }
        if not all(change.is_intact for change in unprojected):
            raise HistoryLostError("the head was changed past the writer")
        newest = {item.id: item.after for change in unprojected for item in change.policies}
        for (region, key), state in newest.items():
            if self._is_in_scope(region, key):
                record = None if state is None else self._encode_record(state)
                self._pending[layout.get_collection_name(region)].append(
                    (_build_place(key, region), record)
                )
        for waiting in self._pending.values():
            waiting.sort(key=itemgetter(0), reverse=True)

    def build_filter(self, collection: str) -> layout.Document:
        """Return the filter of what is to be taken from one of PROJECTIONS, sorted by `_id`."""
        environment = self.tip.environment
        regions = {} if self._regions is None else {"_id.region": {"$in": [*self._regions]}}
        if self._namespaces and collection == layout.FLAGS:
            return {**layout.filter_namespaces(environment, self._namespaces), **regions}
        return {**layout.filter_policies(environment), **regions}

    def _is_in_scope(self, region: str, key: str) -> bool:
        if region == ACCESS or (self._regions is not None and region not in self._regions):
            return False
        return region == SEGMENTS_REGION or not self._namespaces or key.startswith(self._namespaces)

    @validates_form
    def add_documents(self, collection: str, documents: Sequence[Mapping[str, Any]]) -> None:
        """Take the next documents of one of PROJECTIONS, by ascending `_id`s.

        Raises:
            HistoryLostError: something changed one past the writer.
        """
        if not documents:
            return
        waiting = self._pending[collection]
        if not waiting or waiting[-1][0] > _read_place(documents[-1]):
            self._add(documents)
            return
        merged: dict[_Place, Mapping[str, Any] | Record | None] = {
            _read_place(document): document for document in documents
        }
        last = max(merged)
        while waiting and waiting[-1][0] <= last:
            place, record = waiting.pop()
            merged[place] = record
        for _, found in sorted(merged.items(), key=itemgetter(0)):
            if isinstance(found, Record):
                self._builder.add(*astuple(found))
            elif found is not None:
                self._add((found,))

    def build(self, parts: Mapping[str, bytes]) -> Generator[None, None, Arena]:
        """Return the base, in slices, once all documents have been taken."""
        for waiting in self._pending.values():
            while waiting:
                _, record = waiting.pop()
                if record is not None:
                    self._builder.add(*astuple(record))
        return (yield from self._builder.build(self.tip, parts))

    def _add(self, documents: Sequence[Mapping[str, Any]]) -> None:
        add = self._builder.add
        for document in documents:
            identity = document["_id"]
            if document["hash"] is None:
                continue
            if document.get("format") != packing.FORMAT:
                state = decode_policy_state(document)
                if state is not None:
                    add(*astuple(self._encode_record(state)))
                continue
            key, version, body = identity["key"], document["version"], document["body"]
            state_hash = int(document["hash"], 16)
            if packing.compute_seal(key, version, state_hash, body) != document["seal"]:
                raise HistoryLostError(f"{key} was changed past the writer")
            add(identity["region"], key, version, state_hash, body)

    def _encode_record(self, state: PolicyState) -> Record:
        if state.region == SEGMENTS_REGION:
            self.parts.update(state.parts)
        return encode_record(state)


@validates_form
def filter_without_body(documents: Iterable[Mapping[str, Any]]) -> layout.Document | None:
    """Return the filter of those of some documents whose policy has to be read; None if none has.

    They are older, or newer writers wrote them in another format.
    """
    found = [
        document["_id"]
        for document in documents
        if document.get("format") != packing.FORMAT
        and document["hash"] is not None
        and "policy" not in document
    ]
    return {"_id": {"$in": found}} if found else None


def merge_full_documents(
    documents: Iterable[Mapping[str, Any]], read: Iterable[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Return documents with those that were read whole in their places."""
    whole = {_read_place(document): document for document in read}
    return [whole.get(_read_place(document), document) for document in documents]


def _build_place(key: str, region: str) -> _Place:
    return key.encode("utf-8", "surrogatepass"), region.encode("utf-8", "surrogatepass")


def _read_place(document: Mapping[str, Any]) -> _Place:
    return _build_place(document["_id"]["key"], document["_id"]["region"])
