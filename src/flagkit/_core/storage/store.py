"""The writer's side of the database: requests, the compare-and-set of the head, and projection.

The compare-and-set of the head is the commit. What precedes it may be abandoned. What follows it
can be done by anyone, again, and in any order. No transaction holds a lock that a killed writer
would keep.

A change on pages enters the ledger first and is projected page by page. Readers read through it and
need not wait. A projected page holds the revision.
"""

import contextlib
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final, TypeAlias

from pymongo import InsertOne, ReplaceOne
from pymongo.database import Database
from pymongo.errors import BulkWriteError, DuplicateKeyError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from flagkit._core.model import EVERYWHERE
from flagkit._core.model.changes import Change, PolicyChange, PolicyId, Tip
from flagkit._core.snapshot import Arena
from flagkit._core.storage import layout
from flagkit._core.storage.checkpoints import Checkpoint, decode_manifests, store_checkpoint
from flagkit._core.storage.documents import (
    EncodedPolicy,
    decode_head_tip,
    encode_head,
    encode_ledger,
    encode_policy_document,
    read_policy_id,
)
from flagkit._core.storage.driver import (
    OPERATION_MILLISECONDS_MAX,
    DatabaseHandle,
    translate_errors,
)
from flagkit._core.storage.ledger import LedgerQuery, iter_ledger_changes
from flagkit._core.storage.pages import (
    Page,
    decode_page,
    encode_page,
    read_page_contents,
    read_page_names,
)
from flagkit._core.storage.prefetch import (
    NOTHING,
    Prefetch,
    PrefetchMemo,
    build_prefetch_pipeline,
    can_skip_majority,
    decode_prefetch,
)
from flagkit._core.storage.provision import create_environment, ensure_bucket_key, find_bucket_key
from flagkit._core.storage.pruning import DocumentPruner
from flagkit._core.storage.reader import EnvironmentReader
from flagkit._core.storage.requests import DenialLog, PendingRequests, ProposalStore
from flagkit._core.storage.validation import check_form
from flagkit._core.suggestions import environment_not_found
from flagkit.errors import (
    EnvironmentNotFoundError,
    StoreError,
    StoreUnavailableError,
)

_Write: TypeAlias = ReplaceOne[layout.Document] | InsertOne[layout.Document]
_DUPLICATE_KEY: Final = 11000
PAGES_AT_ONCE: Final = 8
"""So many pages are stored in one call: a megabyte each."""


def project_policies(
    database: Database[layout.Document],
    environment: str,
    revision: int,
    policies: Sequence[PolicyChange],
    encoded: Mapping[PolicyId, EncodedPolicy] | None = None,
) -> None:
    """Write the states of policies at a revision to the collections that readers read.

    `encoded` has the documents that were prepared for some of them.
    """
    known = encoded or {}
    writes: dict[str, list[_Write]] = {collection: [] for collection in layout.PROJECTED}
    for policy in policies:
        identity = policy.id
        earlier = known.get(identity)
        fields = None if earlier is None else earlier.fields
        document = encode_policy_document(environment, revision, policy, fields)
        writes[layout.get_collection_name(identity[0])].append(_build_write(document))
    for collection, some in writes.items():
        with ignore_duplicates():
            if some:
                database[collection].bulk_write(some, ordered=False)


def _build_write(document: layout.Document) -> _Write:
    # A newer state stays: the guard finds nothing to replace, and what is inserted meets its `_id`.
    if document["version"] == 1 and document["hash"] is not None:
        # There never was another, so there is nothing to look for.
        return InsertOne(document)
    older = {"_id": document["_id"], "revision": {"$lt": document["revision"]}}
    return ReplaceOne(older, document, upsert=True)


@contextmanager
def ignore_duplicates() -> Generator[None]:
    """Pass over documents that are there already, in a bulk of unordered writes."""
    try:
        yield
    except BulkWriteError as error:
        if error.details["writeConcernErrors"]:
            raise StoreUnavailableError("the majority has not got it yet") from error
        if any(fault["code"] != _DUPLICATE_KEY for fault in error.details["writeErrors"]):
            raise


ENVIRONMENTS_ASKED_MAX: Final = 10_000
"""So many environments are looked at for one that a mistyped name could mean."""


class Store(DatabaseHandle):
    """One environment in the database, for writers and auditors. May be used from many threads."""

    def __init__(self, uri: str, *, environment: str, database: str) -> None:
        # The primary answers, because checks must read what a commit compares.
        super().__init__(uri, database)
        self.environment = environment
        self._memo = PrefetchMemo()
        self._bucket_keys: dict[str, bytes] = {}
        self.pending = PendingRequests(self._database, environment)
        self.proposals = ProposalStore(self._database, environment)
        self.denials = DenialLog(self._database, environment)
        """The log of denials."""
        self.pruner = DocumentPruner(self._database, environment)
        """The deletion of data that is no longer needed."""

    def create_environment(self, epoch: str) -> Tip:
        """Make collections, indexes and the head at revision 0, where they are not there yet."""
        with translate_errors("creating the environment"):
            created = create_environment(self._database, self.environment, epoch)
            if created is not None:
                # Else the first change that needs it makes it.
                with contextlib.suppress(StoreError):
                    self.read_bucket_key(created.epoch, make=True)
        return created or self.read_tip()

    def read_tip(self) -> Tip:
        """Return where the environment stands.

        Raises:
            EnvironmentNotFoundError: it was never created.
        """
        with translate_errors("reading the head"):
            head = self._database[layout.HEADS].find_one({"_id": self.environment})
        if head is None:
            raise self._build_not_found_error()
        return decode_head_tip(head)

    @contextmanager
    def open_reader(self, prefetch: Prefetch = NOTHING) -> "Generator[EnvironmentReader]":
        """Give a reading of the environment at one revision, for the block.

        What is foreseen is read at once, all else when it is asked for.
        """
        policies = self._memo.select_policies(prefetch)
        with (
            translate_errors("reading the environment"),
            self._client.start_session(snapshot=True) as session,
        ):
            documents = self._database[layout.HEADS].aggregate(
                build_prefetch_pipeline(self.environment, prefetch, policies),
                session=session,
                maxTimeMS=OPERATION_MILLISECONDS_MAX,
            )
            found = decode_prefetch(documents, policies)
            if found is None:
                raise self._build_not_found_error()
            yield EnvironmentReader(self._database, session, found, prefetch, self._memo)

    def read_bucket_key(self, epoch: str, *, make: bool) -> bytes | None:
        """Return the secret by which the buckets of actors are named in a history.

        It is read once. If there is none, it is made, where that is asked for.

        Raises:
            StoreError: this user may not read it, or something changed it past the writer.
        """
        key = self._bucket_keys.get(epoch)
        if key is None:
            find = ensure_bucket_key if make else find_bucket_key
            with translate_errors("reading the key of the rate limits"):
                key = find(self._database, self.environment, epoch)
            if key is not None:
                self._bucket_keys[epoch] = key
        return key

    def add_request(self, request: str, content: Mapping[str, Any]) -> str:
        """Record who asks for what, and why; return the comparable digest on record.

        That is the digest of the first one to record it.

        `content` has `digest`, and whatever else audit documents have.
        """
        identity = {"environment": self.environment, "request": request}
        audit = self._database[layout.AUDIT]
        with translate_errors("recording the request"):
            try:
                audit.insert_one({"_id": identity, **content})
            except DuplicateKeyError:
                earlier = audit.find_one({"_id": identity})
                if earlier is None:
                    # Another's insert, which the majority has not got yet.
                    raise StoreUnavailableError("the request is being recorded elsewhere") from None
                return layout.compute_request_digest(check_form(layout.AUDIT, earlier))
        return layout.compute_request_digest(content)

    def add_parts(self, parts: Mapping[str, bytes]) -> None:
        """Store parts of members, by their SHA-256, in the place of any that were altered."""
        identities = [{"environment": self.environment, "part": name} for name in parts]
        replacements = [
            ReplaceOne(
                {
                    "_id": identity,
                    # What nothing referred to is marked to be pruned: it is not any more.
                    "$or": [{"hashes": {"$ne": hashes}}, {"unreferred": {"$exists": True}}],
                },
                {"_id": identity, "hashes": hashes},
                upsert=True,
            )
            for identity, hashes in zip(identities, parts.values(), strict=True)
        ]
        with translate_errors("storing members"), ignore_duplicates():
            if replacements:
                self._database[layout.MEMBERS].bulk_write(replacements, ordered=False)

    def add_pages(self, pages: Mapping[str, Page]) -> None:
        """Store the pages of a change before its commit, by their SHA-256."""
        names = [*pages]
        for first in range(0, len(names), PAGES_AT_ONCE):
            replacements = [
                ReplaceOne(
                    {
                        "_id": layout.build_page_id(self.environment, name),
                        # Pruning marks pages that nothing refers to. The change refers to these.
                        "$or": [
                            {"content": {"$ne": pages[name].content}},
                            {"unreferred": {"$exists": True}},
                        ],
                    },
                    encode_page(self.environment, name, pages[name]),
                    upsert=True,
                )
                for name in names[first : first + PAGES_AT_ONCE]
            ]
            with translate_errors("storing a large change"), ignore_duplicates():
                self._database[layout.PAGES].bulk_write(replacements, ordered=False)

    def compare_and_set(
        self,
        tip: Tip,
        change: Change,
        buckets: Mapping[str, int] | None = None,
        pages: Collection[str] = (),
        unprojected: int | None = None,
    ) -> bool:
        """Commit a change if the head still stands at `tip`; return whether it did.

        The buckets are those of the rate limits, as the change leaves them. `pages` are what the
        change is on, if it is large. `unprojected` is the first revision that flags may lack.
        """
        expected = {"_id": tip.environment, "revision": tip.revision, "hash": tip.hash}
        expected["epoch"] = tip.epoch
        with translate_errors("committing"):
            head = encode_head(change.tip, change, buckets, pages, unprojected)
            done = self._database[layout.HEADS].replace_one(expected, head).matched_count == 1
        if done:
            self._memo.remember(change)
        return done

    def project(
        self, change: Change, pages: Collection[str] = (), *, is_mine: bool = False
    ) -> None:
        """Bring a committed change to where it is read, wherever it is not there yet.

        Who has committed it says that it is theirs; whoever is about to commit the next one needs
        all of it to have reached a majority. Of one on pages only the ledger is done here.
        """
        # What a failover takes back, the next reading misses.
        projected = self._database
        if is_mine and can_skip_majority(change):
            projected = projected.with_options(
                write_concern=WriteConcern(1), read_concern=ReadConcern("local")
            )
        with translate_errors("projecting a change"):
            if not pages:
                project_policies(projected, self.environment, change.revision, change.policies)
            try:
                projected[layout.LEDGER].insert_one(encode_ledger(change, pages))
            except DuplicateKeyError:
                self._check_unchanged(projected, change)

    def project_own_pages(
        self, revision: int, pages: Mapping[str, Page], encoded: Mapping[PolicyId, EncodedPolicy]
    ) -> None:
        """Project the pages of a change that this process just committed.

        `encoded` has the documents that were prepared for it.
        """
        with translate_errors("projecting a large change"):
            for name, page in pages.items():
                self._project_page(revision, name, page.policies, encoded)

    def project_pages(self, revision: int, limit: int | None = None) -> int:
        """Project pages of a revision that are not projected yet; return how many are left.

        Raises:
            StoreError: a page is missing, or somebody changed it past the writer.
        """
        with translate_errors("projecting a large change"):
            names = self._find_unprojected_pages(revision)
            for name in names[:limit]:
                page = {"_id": layout.build_page_id(self.environment, name)}
                found = self._database[layout.PAGES].find_one(page)
                content = read_page_contents([] if found is None else [found]).get(name)
                self._project_page(revision, name, decode_page(name, content))
        return len(names[limit:]) if limit is not None else 0

    def _project_page(
        self,
        revision: int,
        name: str,
        policies: Sequence[PolicyChange],
        encoded: Mapping[PolicyId, EncodedPolicy] | None = None,
    ) -> None:
        project_policies(self._database, self.environment, revision, policies, encoded)
        self._database[layout.PAGES].update_one(
            {"_id": layout.build_page_id(self.environment, name)}, {"$set": {"projected": revision}}
        )

    def _find_unprojected_pages(self, revision: int) -> list[str]:
        document = self._database[layout.LEDGER].find_one(
            {"_id": layout.build_ledger_id(self.environment, revision)}, {"pages": True}
        )
        if document is None:
            raise StoreError(f"the ledger of {self.environment!r} has lost revision {revision}")
        names = read_page_names(document)
        projected = self._database[layout.PAGES].find(
            layout.filter_pages(self.environment, names) | {"projected": revision}, {"_id": True}
        )
        done = {found["_id"]["page"] for found in projected}
        return [name for name in names if name not in done]

    def iter_changes(
        self,
        after: int = 0,
        *,
        key: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        newest_first: bool = False,
    ) -> Iterator[Change]:
        """Yield the ledger's changes after a revision, in order, or the newest first.

        Only those of a flag or segment, from a moment on, or before another, where these are given.
        """
        wanted = LedgerQuery(after, key, since, until, newest_first)
        with translate_errors("reading the ledger"):
            yield from iter_ledger_changes(self._database, self.environment, wanted)

    def read_requests(self, requests: Iterable[str]) -> dict[str, layout.Document]:
        """Return audit documents by request id.

        Raises:
            StoreError: one has not the form that it should have.
        """
        identities = [{"environment": self.environment, "request": request} for request in requests]
        with translate_errors("reading the audit"):
            found = self._database[layout.AUDIT].find({"_id": {"$in": identities}})
            return {
                document["_id"]["request"]: check_form(layout.AUDIT, document) for document in found
            }

    def iter_audit_documents(self) -> Iterator[layout.Document]:
        """Yield all audit documents of the environment, as they are."""
        with translate_errors("reading the audit"):
            yield from self._database[layout.AUDIT].find(
                layout.filter_environment(self.environment)
            )

    def list_active_flags(self, region: str, at: datetime) -> list[str]:
        """Return the keys of the flags that are active in a region at a moment, sorted.

        Active is a flag in state active that is not past its `expires`; an override that is not
        hides the flag for all regions. Answered from the index `active_in_region`, with no scan.
        """
        key_only = {"_id": True}
        with translate_errors("asking for active flags"):
            flags = self._database[layout.FLAGS]
            mine = {
                read_policy_id(document)[1]
                for document in flags.find(
                    layout.filter_active_flags(self.environment, region, at), key_only
                )
            }
            everywhere = {
                read_policy_id(document)[1]
                for document in flags.find(
                    layout.filter_active_flags(self.environment, EVERYWHERE, at), key_only
                )
            }
            overridden = {
                read_policy_id(document)[1]
                for document in flags.find(
                    {
                        "_id.environment": self.environment,
                        "_id.region": region,
                        "policy.state": {"$ne": None},
                    },
                    key_only,
                )
            }
        return sorted(mine | (everywhere - overridden))

    def list_checkpoints(self) -> list[Checkpoint]:
        """Return what there is to start from, the newest revision first."""
        with translate_errors("looking for checkpoints"):
            return decode_manifests(
                self._database[layout.CHECKPOINTS].find(layout.filter_checkpoints(self.environment))
            )

    def publish_checkpoint(
        self, base: Arena, read_at: datetime
    ) -> Generator[str, None, Checkpoint]:
        """Write a base as the newest checkpoint, as `store_checkpoint` does."""
        with translate_errors("writing a checkpoint"):
            return (yield from store_checkpoint(self._database, base, read_at))

    def _check_unchanged(self, database: Database[layout.Document], change: Change) -> None:
        found = database[layout.LEDGER].find_one(
            {"_id": layout.build_ledger_id(change.tip.environment, change.revision)}, {"hash": True}
        )
        if found is None:
            raise StoreUnavailableError("the ledger document is being written elsewhere")
        if found.get("hash") != change.tip.hash:
            raise StoreError(
                f"the ledger holds another change as revision {change.revision} of"
                f" {change.tip.environment!r}: the database was restored or edited"
            )

    def _build_not_found_error(self) -> EnvironmentNotFoundError:
        with translate_errors("looking for environments"):
            heads = self._database[layout.HEADS].find(
                {}, {"_id": True}, limit=ENVIRONMENTS_ASKED_MAX
            )
            known = [head["_id"] for head in heads if isinstance(head["_id"], str)]
        return environment_not_found(self.environment, self._database.name, known)
