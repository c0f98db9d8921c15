"""Standing: the documents of policies as they stand in a snapshot, each asked for once."""

from collections.abc import Iterable, Iterator
from typing import Any, Final

from pymongo.client_session import ClientSession

from flagkit.changes import ACCESS as ACCESS_REGION
from flagkit.changes import SEGMENTS as SEGMENTS_REGION
from flagkit.changes import PolicyId, Tip
from flagkit.model import EVERYWHERE
from flagkit.storage.foreseen import Foreseen, Found, keys_in
from flagkit.storage.forms import id_in, revision_in
from flagkit.storage.layout import (
    ACCESS,
    FLAGS,
    PROJECTED,
    SEGMENTS,
    Document,
    collection_of,
    policy_id,
)

_ASKED_AT_ONCE: Final = 10_000
"""A query has its size, too."""
_REGION_OF = {SEGMENTS: SEGMENTS_REGION, ACCESS: ACCESS_REGION}


class Standing:
    """What is projected of an environment, at one time; tombstones, too."""

    def __init__(
        self,
        database: Any,
        session: ClientSession,
        tip: Tip,
        foreseen: Foreseen,
        found: Found,
    ) -> None:
        self._database = database
        self._session = session
        self._environment = tip.environment
        # All that have a flag: by whole `_id`s a thousand are found in an eighth of the time that
        # ranges take.
        touched = {region for region, _ in foreseen.policies | found.policies}
        self._regions = sorted({EVERYWHERE, *tip.digests, *touched} - {*_REGION_OF.values()})
        self._documents: dict[PolicyId, Document] = {}
        self._asked: dict[str, set[str]] = {collection: set() for collection in PROJECTED}
        for collection in (FLAGS, SEGMENTS):
            self._add(found.answers.get(collection, ()))
            self._asked[collection].update(keys_in(collection, found.policies))

    def of(self, collection: str, keys: set[str]) -> Iterator[Document]:
        """Yield the documents of some keys, in all regions."""
        self._ask(collection, keys)
        for region in self._regions_of(collection):
            for key in sorted(keys):
                document = self._documents.get((region, key))
                if document is not None:
                    yield document

    def at(self, policies: Iterable[PolicyId]) -> dict[PolicyId, Document]:
        """Return the documents of some policies, as far as there are any."""
        wanted = set(policies)
        by_collection: dict[str, list[PolicyId]] = {}
        for policy in wanted:
            by_collection.setdefault(collection_of(policy[0]), []).append(policy)
        for collection, mine in by_collection.items():
            self._ask(collection, {key for _, key in mine})
            # In regions whose last flag was deleted.
            regions = {*self._regions_of(collection)}
            others = [policy for policy in mine if policy[0] not in regions]
            if others:
                self._read(collection, others)
        return {policy: self._documents[policy] for policy in wanted & self._documents.keys()}

    def revisions(self, policies: Iterable[PolicyId]) -> dict[PolicyId, int]:
        """Return at which revisions some policies stand, as far as there are any."""
        return {policy: revision_in(found) for policy, found in self.at(policies).items()}

    def _ask(self, collection: str, keys: set[str]) -> None:
        unknown = keys - self._asked[collection]
        if not unknown:
            return
        regions = self._regions_of(collection)
        self._read(collection, [(region, key) for key in sorted(unknown) for region in regions])
        self._asked[collection] |= unknown

    def _read(self, collection: str, policies: Iterable[PolicyId]) -> None:
        identities = [policy_id(self._environment, key, region) for region, key in policies]
        for first in range(0, len(identities), _ASKED_AT_ONCE):
            wanted = {"_id": {"$in": identities[first : first + _ASKED_AT_ONCE]}}
            self._add(self._database[collection].find(wanted, session=self._session))

    def _regions_of(self, collection: str) -> list[str]:
        return self._regions if collection == FLAGS else [_REGION_OF[collection]]

    def _add(self, documents: Iterable[Document]) -> None:
        for document in documents:
            self._documents[id_in(document)] = document
