"""Imports many flags and segments in batches, with pauses for urgent changes.

Everything is checked before the first batch: documents, references and cycles. A batch is one
revision, whole or not at all. Policies that are already as requested are left out, so running a
killed import again resumes it and reaches the same state.
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, Final

import msgspec
from msgspec import Struct

from flagkit._core.arguments import check_instance
from flagkit._core.cooperative import pause_gc
from flagkit._core.model import Flag, decode, encode
from flagkit._core.model.access import check_actor
from flagkit._core.model.changes import SEGMENTS, PolicyChange, PolicyId, PolicyState, build_state
from flagkit._core.model.references import ReferenceChecker
from flagkit._core.model.segments import decode_segment, encode_segment, get_key_lists
from flagkit._core.secrets import DataKeys
from flagkit._core.storage.documents import EncodedPolicy, check_policy_fits, encode_policy
from flagkit._core.storage.reader import EnvironmentReader
from flagkit.config import check_environment_name
from flagkit.errors import (
    ConfigurationError,
    InvalidArgumentError,
    InvalidDocumentError,
    RateLimitedError,
)
from flagkit.writer.draft import Draft, VariantEncrypter
from flagkit.writer.ledger import format_differences
from flagkit.writer.operations import UpsertFlag, has_same_keys
from flagkit.writer.planning import build_lookup, check_segments, plan
from flagkit.writer.shortcuts import ChangeOptions
from flagkit.writer.writer import Writer

BATCH_FLAGS: Final = 1_000
BATCH_BYTES: Final = 4 * 1024 * 1024
PAUSE_SECONDS: Final = 0.03
"""Between two batches while others change something, who would else lose races for the head."""
DIFFERENCES_MAX: Final = 1_000
TURN_SECONDS: Final = 0.005
"""Between any two, for threads that wait for the same writer's turn."""


class ImportResult(Struct, frozen=True, kw_only=True):
    """The result of an import or of its dry run: how many flags and segments it creates, and so on.

    `revisions` are those that it made, in order; none in a dry run. `differences` are lines of what
    a dry run would change, DIFFERENCES_MAX of them at most.
    """

    created: int
    updated: int
    unchanged: int
    revisions: tuple[int, ...] = ()
    differences: tuple[str, ...] = ()

    @property
    def changed(self) -> int:
        """How many are not as they are asked for, at the beginning."""
        return self.created + self.updated


class ImportProgress(Struct, frozen=True):
    """How far an import is: so many of the flags and segments that it changes are done."""

    done: int
    total: int


class _Batch(Struct, frozen=True):
    """The content of one revision: flags, or one segment and whether it exists already."""

    upserts: Sequence[UpsertFlag] = ()
    created: AbstractSet[PolicyId] = frozenset()
    segment: Mapping[str, Any] | None = None
    is_existing: bool = False

    def __len__(self) -> int:
        return len(self.upserts) or 1

    def encode_new_flags(self) -> dict[PolicyId, EncodedPolicy]:
        """Return what is to be stored of the flags that are new, if they still are by then."""
        return {
            put.policy_id: encode_policy(PolicyState(put.key, put.region, 1, put.packed), put.flag)
            for put in self.upserts
            if put.policy_id in self.created
        }

    def add_to_draft(
        self, draft: Draft, number: int, total: int, preencoded: Mapping[PolicyId, EncodedPolicy]
    ) -> None:
        """Ask for it in a draft. Of flags the audit has the keys, and a digest of the documents."""
        if self.segment is not None:
            (draft.update_segment if self.is_existing else draft.create_segment)(self.segment)
            return
        draft.add_batch(
            self.upserts, UpsertFlag.encode_batch(self.upserts, number, total), preencoded
        )


class _ImportPlan(Struct, frozen=True):
    """The remaining work at a tip, in order."""

    digest: str
    segments: list[_Batch]
    flags: list[UpsertFlag]
    created: AbstractSet[PolicyId]
    counts: ImportResult
    changes: list[PolicyChange]


class Import:
    """Flags and segments to be imported; documents are checked as they are added.

    Args:
        environment: Where they go.
        reassign: Whether keys may pass from one treated variant to another, as Draft.update has it.
        keys: The writer's `keys`, for flags with sensitive variants; without, those are refused.

    Raises:
        ConfigurationError: `environment` is no name of an environment.
        InvalidArgumentError: `reassign` or `keys` is of another type.
    """

    def __init__(
        self, environment: str, *, reassign: bool = False, keys: DataKeys | None = None
    ) -> None:
        self._environment = check_environment_name(environment)
        if not isinstance(keys, DataKeys | None):  # pyright: ignore[reportUnnecessaryIsInstance] - not all callers check types
            raise InvalidArgumentError(
                f"keys is of the type {type(keys).__name__}: pass those of a writer, writer.keys"
            )
        self._keys = keys
        self._reassign = check_instance(reassign, bool, "reassign", "pass True or False")
        self._flags: dict[PolicyId, UpsertFlag] = {}
        self._segments: dict[str, Mapping[str, Any]] = {}

    def add(self, document: Mapping[str, Any]) -> None:
        """Add a flag by its policy document.

        Raises:
            InvalidDocumentError: it is not valid, or there twice; or it is to be encrypted, and
                there are no keys.
            EncryptionError, StoreError: the keys cannot be had.
        """
        flag = decode(document, environment=self._environment)
        if flag.sensitive:
            flag = self._encrypt(flag, document)
        put = UpsertFlag(
            flag=flag,
            packed=build_state(flag.key, flag.region, 1, encode(flag)).packed,
            has_state="state" in document,
            reassign=self._reassign,
            key=flag.key,
            region=flag.region,
        )
        if self._flags.setdefault(put.policy_id, put) is not put:
            raise _build_duplicate_error(f"flag {flag.key!r}")

    def _encrypt(self, flag: Flag, document: Mapping[str, Any]) -> Flag:
        if self._keys is None:
            # Not even what is encrypted already could be checked.
            raise InvalidDocumentError(
                "sensitive",
                "says what is encrypted, and this import has no keys",
                "Give it those of the writer, or set FLAGKIT_LOCAL_KEY_PATH; docs/secrets.md says"
                " how",
                subject=f"flag {flag.key!r}",
            )
        sealed = VariantEncrypter(self._environment, self._keys).encrypt(document)
        return decode(sealed, environment=self._environment)

    def add_segment(self, document: Mapping[str, Any]) -> None:
        """Add a segment by its document.

        Raises:
            InvalidDocumentError: it is not valid, or there twice.
        """
        listed = get_key_lists(document)
        given = {**document, **listed} if listed else document
        hashed = decode_segment(given, environment=self._environment)
        key = hashed.segment.key
        if key in self._segments:
            raise _build_duplicate_error(f"segment {key!r}")
        self._segments[key] = {**document, **listed}

    def copy(self) -> "Import":
        """Return an import of the same, to try something with."""
        other = Import(self._environment, reassign=self._reassign, keys=self._keys)
        other._flags, other._segments = {**self._flags}, {**self._segments}
        return other

    def preview(
        self, writer: Writer, *, reason: str = "", actor: str | None = None
    ) -> ImportResult:
        """Return what an import would do, and write nothing.

        It makes every check that `run` makes before its first batch, and raises the same.
        """
        planned = self._plan(writer, reason, actor)
        lines = (line for change in planned.changes for line in format_differences(change))
        return msgspec.structs.replace(
            planned.counts, differences=tuple(islice(lines, DIFFERENCES_MAX))
        )

    def run(
        self,
        writer: Writer,
        *,
        reason: str = "",
        actor: str | None = None,
        progress: Callable[[ImportProgress], None] | None = None,
    ) -> ImportResult:
        """Import everything that is not as asked for already, in batches.

        Everything is checked before the first batch: documents, references, sizes, roles, guards.
        If a limit on changes is reached, the import waits. An import that is interrupted by an
        error, or killed, has made whole batches. Run it again, and it goes on.

        Raises:
            ConfigurationError: the writer is of another environment.
            WriteError, InvalidDocumentError: refused, before anything was written; or later,
                because of what others changed meanwhile.
            StoreUnavailableError: the database cannot be reached.
        """
        if actor is not None:
            check_actor(actor)
        if progress is not None and not callable(progress):
            raise InvalidArgumentError(
                f"progress is of the type {type(progress).__name__}: pass a function"
                " that takes an ImportProgress"
            )
        with pause_gc():
            planned = self._plan(writer, reason, actor)
        batches = [*_iter_batches(planned)]
        done, revisions = 0, list[int]()
        with ThreadPoolExecutor(1, "flagkit-import") as thread:
            # The next batch is prepared while the database works on this one.
            coming = [thread.submit(batch.encode_new_flags) for batch in batches[:1]]
            for number, batch in enumerate(batches):
                ahead = coming.pop().result()
                coming += [
                    thread.submit(later.encode_new_flags) for later in batches[number + 1 :][:1]
                ]
                # Revisions in between are those of others.
                is_alone = number < 2 or revisions[-1] == revisions[-2] + 1  # noqa: PLR2004
                time.sleep(TURN_SECONDS if is_alone else PAUSE_SECONDS)
                asked = ChangeOptions(
                    reason=reason,
                    actor=actor,
                    idempotency_key=f"import-{planned.digest}-{number + 1}",
                )
                revisions.append(
                    _commit_batch(writer, batch, number + 1, len(batches), asked, ahead)
                )
                done += len(batch)
                if progress is not None:
                    progress(ImportProgress(done, planned.counts.changed))
        return msgspec.structs.replace(planned.counts, revisions=tuple(revisions))

    def _plan(self, writer: Writer, reason: str, actor: str | None) -> _ImportPlan:
        """Check all of it at one revision, and leave out what is as it is asked for."""
        check_instance(writer, Writer, "writer", "pass a Writer, of flagkit.writer")
        if writer.environment != self._environment:
            raise ConfigurationError(
                f"this import is for {self._environment!r}, and the writer is of"
                f" {writer.environment!r}: make the import for where it goes"
            )
        with writer.store.open_reader() as reading:
            found = reading.find_flags({key for _, key in self._flags})
            segments = reading.find_segments(self._segments)
            flags = {identity: put.flag for identity, put in self._flags.items()}
            ReferenceChecker(reading, found, flags).check()
            check_segments(reading, flags, dict.fromkeys(self._segments, True))
            lacking = [
                _Batch(segment=document, is_existing=(SEGMENTS, key) in segments)
                for key, document in self._segments.items()
                if not _is_up_to_date(document, segments.get((SEGMENTS, key)))
            ]
            changes = self._plan_segments(reading, lacking)
            changed: list[UpsertFlag] = []
            gone = flags.keys() - found.keys()
            deleted = reading.history.find_deleted(gone) if writer.has_guards else {}
            for put, change in self._iter_flag_changes(reading, found, deleted):
                changed.append(put)
                changes.append(change)
            writer.check_changes(reading, changes, reason=reason, actor=actor)
            origin = hashlib.sha256(reading.tip.hash.encode())
        for batch in lacking:
            # A seed is drawn anew each time, and is no part of what is asked for.
            asked = encode_segment(decode_segment(batch.segment).segment)
            origin.update(build_state("", SEGMENTS, 1, asked).packed)
        for put in changed:
            origin.update(put.packed)
        new = {put.policy_id for put in changed} - found.keys()
        created = len(new) + sum(not batch.is_existing for batch in lacking)
        everything = len(self._flags) + len(self._segments)
        total = len(changed) + len(lacking)
        counts = ImportResult(
            created=created, updated=total - created, unchanged=everything - total
        )
        ordered = _sort_by_prerequisites(changed)
        return _ImportPlan(origin.hexdigest()[:32], lacking, ordered, new, counts, changes)

    def _plan_segments(
        self, reading: EnvironmentReader, batches: Iterable[_Batch]
    ) -> list[PolicyChange]:
        """Return what becomes of segments; refuse hashed keys that nobody can check."""
        draft = Draft(self._environment)
        for batch in batches:
            batch.add_to_draft(draft, 1, 1, {})
        if not draft.operations:
            return []
        return plan(
            draft.operations, reading, reading.tip.revision, draft.parts, draft.listed_keys
        ).changes

    def _iter_flag_changes(
        self,
        reading: EnvironmentReader,
        existing: Mapping[PolicyId, PolicyState],
        deleted: Mapping[PolicyId, PolicyState],
    ) -> Iterator[tuple[UpsertFlag, PolicyChange]]:
        """Yield what becomes of the flags that are not as they are asked for."""
        earlier = build_lookup(reading)
        for identity, put in self._flags.items():
            before = existing.get(identity)
            packed, version = put.packed, 1
            if before is not None:
                # A flag that cannot become this one is refused now.
                result = put.apply(before, earlier)
                version = before.version + 1
                packed = build_state(put.key, put.region, version, encode(result)).packed
                if packed == before.packed:
                    continue
            elif identity in deleted:
                version = deleted[identity].version + 1
            after = PolicyState(put.key, put.region, version, packed)
            check_policy_fits(after)
            yield put, PolicyChange(before, after)


def _is_up_to_date(document: Mapping[str, Any], before: PolicyState | None) -> bool:
    """Tell whether a segment is as its document asks for."""
    if before is None:
        return False
    held = decode_segment(before.policy, stored=True).segment
    # Hashed with the same seed, equal lists make equal documents.
    result = decode_segment(document, seed=held.seed).segment
    if get_key_lists(document) and not has_same_keys(result, held):
        return False
    return build_state(before.key, SEGMENTS, before.version, encode_segment(result)) == before


def _iter_batches(import_plan: _ImportPlan) -> Iterator[_Batch]:
    yield from import_plan.segments
    puts: list[UpsertFlag] = []
    size = 0
    for put in import_plan.flags:
        puts.append(put)
        size += len(put.packed)
        if len(puts) == BATCH_FLAGS or size >= BATCH_BYTES:
            yield _Batch(puts, import_plan.created)
            puts, size = [], 0
    if puts:
        yield _Batch(puts, import_plan.created)


def _sort_by_prerequisites(upserts: Iterable[UpsertFlag]) -> list[UpsertFlag]:
    """Return puts, those of a flag's prerequisites before its own; there are no cycles."""
    by_key: dict[str, list[UpsertFlag]] = {}
    for put in upserts:
        by_key.setdefault(put.key, []).append(put)
    ordered: dict[str, None] = {}
    for start in by_key:
        way = [start]
        while way:
            needed = [
                prerequisite.flag
                for put in by_key[way[-1]]
                for prerequisite in put.flag.prerequisites
                if prerequisite.flag in by_key and prerequisite.flag not in ordered
            ]
            if needed:
                way.append(needed[0])
            else:
                ordered[way.pop()] = None
    return [put for key in ordered for put in by_key[key]]


def _commit_batch(
    writer: Writer,
    batch: _Batch,
    number: int,
    total: int,
    options: ChangeOptions,
    preencoded: Mapping[PolicyId, EncodedPolicy],
) -> int:
    """Return the revision that a batch became, once the limits on changes let it."""
    while True:
        try:
            with writer.change(**options) as draft:
                batch.add_to_draft(draft, number, total, preencoded)
        except RateLimitedError as error:
            time.sleep(error.retry_after)
            continue
        assert draft.commit is not None, "the block ended without error"
        return draft.commit.revision


def _build_duplicate_error(subject: str) -> InvalidDocumentError:
    return InvalidDocumentError("key", "is imported twice", "Remove one", subject=subject)
