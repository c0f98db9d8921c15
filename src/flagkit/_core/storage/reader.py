"""Reads one environment at one revision, from one snapshot session of the database."""

import contextlib
import functools
import string
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

from pymongo import ASCENDING, DESCENDING
from pymongo.client_session import ClientSession

from flagkit._core.model import EVERYWHERE
from flagkit._core.model.changes import ACCESS as ACCESS_REGION
from flagkit._core.model.changes import SEGMENTS as SEGMENTS_REGION
from flagkit._core.model.changes import (
    PolicyId,
    PolicyState,
)
from flagkit._core.model.keys import KEY_LENGTH_MAX
from flagkit._core.model.segments import decode_part
from flagkit._core.snapshot import Arena, check_digests
from flagkit._core.storage import layout
from flagkit._core.storage.checkpoints import Checkpoint, decode_manifests, load_checkpoint_base
from flagkit._core.storage.documents import (
    check_body,
    decode_last_state,
    decode_members_part,
    decode_policy_state,
    find_prerequisites,
    find_segment_names,
    is_tombstone,
    read_buckets,
    read_operations,
    read_policy_id,
    read_revision,
    read_time,
    read_version,
)
from flagkit._core.storage.driver import translate_errors
from flagkit._core.storage.policy_history import PolicyHistory
from flagkit._core.storage.prefetch import Prefetch, PrefetchMemo, PrefetchResult
from flagkit._core.storage.requests import tolerate_bad_dates
from flagkit._core.storage.scan import (
    BATCH_DOCUMENTS,
    PROJECTIONS,
    PolicyScan,
    filter_without_body,
    merge_full_documents,
)
from flagkit._core.storage.validation import check_form, find_fault
from flagkit.errors import StoreError

_BY_ID = [("_id", ASCENDING)]
KEYS_AROUND_MAX: Final = 5_000
"""So many keys on either side of a mistyped one are looked at for what was meant."""
_MISTYPED_LENGTH_MAX: Final = 64
_KEY_CHARACTERS: Final = f"{string.ascii_lowercase}{string.digits}-_."


class CarriedFlag(NamedTuple):
    """The revision that a policy stands at, and the time of it where the ledger has it no more.

    `lacks_last` tells that it was deleted, and what it was is not there.
    """

    revision: int
    time: datetime | None
    lacks_last: bool


class EnvironmentReader:
    """An environment at one revision.

    If the change of the tip is not projected yet, the reader adds it to what it reads. `history`
    reads the changes that led to the revision.
    """

    def __init__(
        self,
        database: Any,
        session: ClientSession,
        prefetched: PrefetchResult,
        prefetch: Prefetch,
        memo: PrefetchMemo,
    ) -> None:
        self._database = database
        self._session = session
        self.history = PolicyHistory(database, session, prefetched, prefetch, memo)
        self.tip = self.history.tip
        self.now: datetime = prefetched.head["now"]
        """The server's time."""
        self.buckets: Mapping[str, int] = read_buckets(prefetched.head)
        """By name, when a bucket of the rate limits is full again, in microseconds since 1970."""

    def find_flags(self, keys: Iterable[str]) -> dict[PolicyId, PolicyState]:
        """Return the states of some flags, in all regions."""
        return self.history.find_states(layout.FLAGS, set(keys))

    def find_segments(self, keys: Iterable[str]) -> dict[PolicyId, PolicyState]:
        """Return the states of some segments."""
        return self.history.find_states(layout.SEGMENTS, set(keys))

    @property
    def access(self) -> Mapping[PolicyId, PolicyState]:
        """The states of the grants, the limits and the cut; see PolicyHistory.access."""
        return self.history.access

    def read_parts(self, names: Iterable[str]) -> dict[str, bytes]:
        """Return parts of members, by their SHA-256, as far as they are there."""
        wanted = set(names)
        if not wanted:
            return {}
        found = self._database[layout.MEMBERS].find(
            layout.filter_parts(self.tip.environment, wanted), session=self._session
        )
        return dict(map(decode_members_part, found))

    def find_known_parts(self, names: Iterable[str]) -> set[str]:
        """Return those of some parts of members that are there."""
        wanted = set(names)
        if not wanted:
            return set()
        found = self._database[layout.MEMBERS].find(
            layout.filter_parts(self.tip.environment, wanted), {"_id": True}, session=self._session
        )
        return {document["_id"]["part"] for document in found}

    def read_all(
        self, collections: Iterable[str] = layout.PROJECTED
    ) -> dict[PolicyId, PolicyState]:
        """Return the states of all that is in some collections: flags, in all regions, and so on.

        No other collections are read: who reads flags may not be allowed to.
        """
        wanted = {*collections}
        return self.history.decode_states(
            self._iter_all_documents(wanted),
            lambda state: layout.get_collection_name(state.region) in wanted,
        )

    def read_base(self) -> Generator[str | None, None, Arena]:
        """Return the base of all regions, with all members and without grants, in slices.

        Yields now and then how far it is.

        Raises:
            HistoryLostError: they do not add up to the tip's digests: something changed them past
                the writer.
            StoreError: members of segments are missing, or were changed past the writer.
        """
        scan, count = PolicyScan(self.tip, self.history.unprojected_changes, None), 0
        for collection, projection in PROJECTIONS.items():
            found = self._database[collection].find(
                scan.build_filter(collection),
                projection,
                sort=_BY_ID,
                session=self._session,
                batch_size=BATCH_DOCUMENTS,
            )
            while documents := found.to_list(BATCH_DOCUMENTS):
                lacking = filter_without_body(documents)
                if lacking is not None:
                    whole = self._database[collection].find(lacking, session=self._session)
                    documents = merge_full_documents(documents, whole)
                scan.add_documents(collection, documents)
                count += len(documents)
                yield f"{count:,} flags and segments are read"
        parts = self.read_parts(scan.parts)
        if parts.keys() != scan.parts:
            raise StoreError("members of segments are missing: they were removed past the writer")
        base = yield from scan.build(
            {name: decode_part(part).tobytes() for name, part in parts.items()}
        )
        found = base.header.digests
        places = (found.keys() | self.tip.digests.keys()) - {ACCESS_REGION}
        check_digests(found, self.tip, places)
        return base

    def iter_checkpoints(self) -> Iterator[tuple[Checkpoint, Callable[[], Arena]]]:
        """Yield the checkpoints of this epoch that can be read here, and what reads their bases."""
        found = self._database[layout.CHECKPOINTS].find(
            layout.filter_checkpoints(self.tip.environment), session=self._session
        )
        for checkpoint in decode_manifests(found):
            if checkpoint.tip.epoch == self.tip.epoch and checkpoint.is_readable:
                yield (
                    checkpoint,
                    functools.partial(
                        load_checkpoint_base, self._database, checkpoint, self._session
                    ),
                )

    def read_projected(
        self, collections: Iterable[str] = layout.PROJECTED, faults: list[str] | None = None
    ) -> dict[PolicyId, tuple[int, PolicyState | None]]:
        """Return what is projected to some collections, as it stands: revisions and states.

        States are None of what was deleted. What is wrong with a document is put in `faults`, if
        that is given, and it is left out.

        Raises:
            StoreError: a flag's body is not that of its policy, or a document has not its form.
        """
        found: dict[PolicyId, tuple[int, PolicyState | None]] = {}
        for collection in collections:
            for document in self._iter_all_documents([collection]):
                try:
                    if faults is not None:
                        check_form(collection, document)
                    state = decode_policy_state(document)
                    if state is not None:
                        check_body(document, state)
                    found[read_policy_id(document)] = read_revision(document), state
                except StoreError as error:
                    if faults is None:
                        raise
                    faults.append(str(error))
        return found

    def read_carried(self) -> dict[PolicyId, CarriedFlag]:
        """Return what policies have of their last changes that the ledger has no more.

        Documents that have not their form are left out.
        """
        found: dict[PolicyId, CarriedFlag] = {}
        for document in self._iter_all_documents(layout.PROJECTED):
            if (
                find_fault(layout.get_collection_name(str(document["_id"].get("region"))), document)
                is None
            ):
                revision, time = read_revision(document), document.get("time")
                lacks_last = is_tombstone(document) and "last" not in document
                found[read_policy_id(document)] = CarriedFlag(revision, time, lacks_last=lacks_last)
        return found

    def iter_documents(self, collection: str) -> Iterator[layout.Document]:
        """Yield all documents of an environment in a collection, as they are."""
        found = self._database[collection].find(
            layout.filter_environment(self.tip.environment), sort=_BY_ID, session=self._session
        )
        with translate_errors(f"reading {collection}"):
            yield from found

    def find_audit_document(self, request: str) -> layout.Document | None:
        """Return the audit document of a request, as it is."""
        identity = {"environment": self.tip.environment, "request": request}
        found: layout.Document | None = self._database[layout.AUDIT].find_one(
            {"_id": identity}, session=self._session
        )
        return found

    def read_checkpoint(self, checkpoint: Checkpoint) -> Arena:
        """Return the base of a checkpoint.

        Raises:
            SnapshotFormatError, StoreError: as `load_checkpoint_base` does.
        """
        return load_checkpoint_base(self._database, checkpoint, self._session)

    def read_tombstones(self, faults: list[str]) -> dict[PolicyId, tuple[int, PolicyState | None]]:
        """Return the versions of what was deleted, and the last states, where tombstones have them.

        What is wrong with one is put in `faults`, and it is left out.
        """
        found: dict[PolicyId, tuple[int, PolicyState | None]] = {}
        for collection in layout.PROJECTED:
            for document in self._database[collection].find(
                layout.filter_policies(self.tip.environment) | {"policy": None},
                session=self._session,
            ):
                try:
                    found[read_policy_id(document)] = (
                        read_version(document),
                        decode_last_state(document),
                    )
                except StoreError as error:
                    faults.append(str(error))
        return found

    def read_carried_times(self) -> dict[PolicyId, datetime]:
        """Return when flags were changed last whose last change the ledger has no more."""
        found = self._database[layout.FLAGS].find(
            layout.filter_policies(self.tip.environment) | {"time": {"$exists": True}},
            {"time": True},
            session=self._session,
        )
        return {read_policy_id(document): read_time(document) for document in found}

    def _iter_all_documents(self, collections: Iterable[str]) -> Iterator[layout.Document]:
        for collection in collections:
            yield from self._database[collection].find(
                layout.filter_policies(self.tip.environment), session=self._session
            )

    def find_dependents(self, keys: Iterable[str]) -> dict[PolicyId, PolicyState]:
        """Return the states of the flags that have one of `keys` as a direct prerequisite."""
        wanted = set(keys)
        asked = layout.filter_dependents(self.tip.environment, wanted)
        documents = self._database[layout.FLAGS].find(asked, session=self._session)
        return self.history.decode_states(
            documents,
            lambda state: (
                b"prerequisites" in state.packed
                and not wanted.isdisjoint(find_prerequisites(state))
            ),
        )

    def find_similar_keys(self, policy: PolicyId) -> set[str]:
        """Return keys of flags, or of segments, among them those that are near to a mistyped one.

        All keys of a small environment are returned. Of a large one, it is KEYS_AROUND_MAX on
        either side of the key in their order, and what a single typing mistake can be meant as.
        """
        region, key = policy[0], policy[1].lower()
        found: dict[PolicyId, bool] = {}
        if not key.isprintable() or len(key) > KEY_LENGTH_MAX:
            return set()
        collection = self._database[layout.get_collection_name(region)]
        environment = self.tip.environment
        is_there: layout.Document = {"policy": {"$ne": None}}
        is_whole = True
        for is_after, order in ((True, ASCENDING), (False, DESCENDING)):
            count = 0
            for document in collection.find(
                layout.filter_neighbours(environment, key, is_after=is_after) | is_there,
                {"_id": True},
                sort=[("_id", order)],
                limit=KEYS_AROUND_MAX,
                session=self._session,
            ):
                count += 1
                found[read_policy_id(document)] = True
            is_whole = is_whole and count < KEYS_AROUND_MAX
        if not is_whole and len(key) <= _MISTYPED_LENGTH_MAX:
            stored = SEGMENTS_REGION if region == SEGMENTS_REGION else EVERYWHERE
            meant = [
                layout.build_policy_id(environment, other, stored) for other in _generate_typos(key)
            ]
            for document in collection.find(
                {"_id": {"$in": meant}} | is_there, {"_id": True}, session=self._session
            ):
                found[read_policy_id(document)] = True
        for change in self.history.unprojected_changes:
            found |= {each.id: each.after is not None for each in change.policies}
        wanted = layout.get_collection_name(region)
        return {
            other
            for (place, other), is_retained in found.items()
            if is_retained and layout.get_collection_name(place) == wanted
        }

    def find_referring(self, segments: Iterable[str]) -> dict[PolicyId, PolicyState]:
        """Return the states of the flags whose rules refer to one of some segments."""
        wanted = set(segments)
        documents = self._database[layout.FLAGS].find(
            {"_id.environment": self.tip.environment, "segments": {"$in": sorted(wanted)}},
            session=self._session,
        )
        return self.history.decode_states(
            documents, lambda state: not wanted.isdisjoint(find_segment_names(state))
        )

    def read_proposal(self, proposal: str) -> list[layout.Document]:
        """Return the documents of a proposal, the oldest first."""
        wanted = layout.filter_proposals_by_id(self.tip.environment, [proposal])
        found = tolerate_bad_dates(self._database[layout.PROPOSALS]).find(
            wanted, session=self._session
        )
        return [*found.sort("time", ASCENDING)]

    def iter_pending_operations(self) -> Iterator[layout.Document]:
        """Yield the operations that are recorded of pending changes and of proposals."""
        environment = self.tip.environment
        waiting = self._database[layout.PENDING].find(
            layout.filter_pending(environment), {"_id": True}, session=self._session
        )
        asked = {"_id": {"$in": [document["_id"] for document in waiting]}}
        for document in self._database[layout.AUDIT].find(
            asked, {"operations": True}, session=self._session
        ):
            yield from read_operations(document)
        for document in tolerate_bad_dates(self._database[layout.PROPOSALS]).find(
            layout.filter_proposals(environment), {"operations": True}, session=self._session
        ):
            # A proposal that was changed past the writer can never be applied, so it needs nothing.
            with contextlib.suppress(StoreError):
                yield from read_operations(document)


def _generate_typos(key: str) -> set[str]:
    """Return all texts that one mistake makes a key of: a character too many, too few or wrong."""
    parts = [(key[:at], key[at:]) for at in range(len(key) + 1)]
    found = {f"{head}{tail[1:]}" for head, tail in parts if tail}
    found |= {f"{head}{tail[1]}{tail[0]}{tail[2:]}" for head, tail in parts if tail[1:]}
    for character in _KEY_CHARACTERS:
        found |= {f"{head}{character}{tail[1:]}" for head, tail in parts if tail}
        found |= {f"{head}{character}{tail}" for head, tail in parts}
    return found - {key, ""}
