"""Importing: many flags and segments, in batches with pauses, so that what is urgent gets through.

All is checked before the first batch: documents, references, cycles. A batch is one revision, whole
or not at all; what is as asked for already is left out. So an import that was killed is resumed by
running it again, and ends in the same state.
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import msgspec
from msgspec import Struct

from flagkit.changes import SEGMENTS, PolicyId, PolicyState, state_of
from flagkit.collector import collector_paused
from flagkit.encryption import DataKeys
from flagkit.errors import ConfigurationError, InvalidDocumentError, RateLimitedError
from flagkit.model import EVERYWHERE, Flag, decode, encode
from flagkit.model.grants import checked_actor
from flagkit.model.segments import decode_segment, encode_segment, listed_keys
from flagkit.storage.preparing import Prepared, prepared
from flagkit.storage.reading import Reading
from flagkit.storage.store import Store
from flagkit.writer.drafts import Draft
from flagkit.writer.leading import Lead
from flagkit.writer.operations import Earlier, Next, Operation
from flagkit.writer.planning import check_segments, earlier_of
from flagkit.writer.referring import References
from flagkit.writer.sealing import Sealing
from flagkit.writer.workflows import Asked
from flagkit.writer.writer import Writer

BATCH_FLAGS: Final = 1_000
BATCH_BYTES: Final = 4 * 1024 * 1024
PAUSE_SECONDS: Final = 0.03
"""Between two batches while others change something, who would else lose races for the head."""
TURN_SECONDS: Final = 0.005
"""Between any two, for threads that wait for the same writer's turn."""


class Put(Operation, frozen=True, tag="import", kw_only=True, gc=False):
    """Create a flag, or update it, whichever it takes.

    `packed` is the flag's document. One without a state leaves the flag's as it is.
    """

    flag: Flag
    packed: bytes
    has_state: bool
    reassign: bool = False

    def next(self, before: PolicyState | None, earlier: Earlier, /) -> Flag:
        """Return the flag, its rollouts led on from what was there."""
        held = before or earlier.last(self.policy_id)
        if held is None:
            return self.flag
        old, moment = decode(held.policy, stored=True), earlier.now.timestamp()
        if before is None:
            return Lead(old, self.flag, moment, reassign=True).flag(keep_salts=True)
        new = self.flag if self.has_state else msgspec.structs.replace(self.flag, state=old.state)
        return Lead(old, new, moment, self.reassign).flag()

    def packed_as(self, made: Next) -> bytes | None:
        """Return the flag's document, unless something was led on."""
        return self.packed if made is self.flag else None


class Imported(Struct, frozen=True, kw_only=True):
    """What an import did, or would do: how many flags and segments it creates, and so on.

    `revisions` are those that it made, in order; none in a dry run.
    """

    created: int
    updated: int
    unchanged: int
    revisions: tuple[int, ...] = ()

    @property
    def changed(self) -> int:
        """How many are not as they are asked for, at the beginning."""
        return self.created + self.updated


class Step(Struct, frozen=True):
    """How far an import is: so many of the flags and segments that it changes are done."""

    done: int
    total: int


class _Batch(Struct, frozen=True):
    """What becomes one revision: flags, or one segment and whether it is there already."""

    puts: Sequence[Put] = ()
    created: AbstractSet[PolicyId] = frozenset()
    segment: Mapping[str, Any] | None = None
    is_there: bool = False

    def __len__(self) -> int:
        return len(self.puts) or 1

    def prepared(self) -> dict[PolicyId, Prepared]:
        """Return what is to be stored of the flags that are new, if they still are by then."""
        return {
            put.policy_id: prepared(PolicyState(put.key, put.region, 1, put.packed), put.flag)
            for put in self.puts
            if put.policy_id in self.created
        }

    def ask(
        self, draft: Draft, number: int, total: int, ahead: Mapping[PolicyId, Prepared]
    ) -> None:
        """Ask for it in a draft. Of flags the audit has the keys, and a digest of the documents."""
        if self.segment is not None:
            (draft.update_segment if self.is_there else draft.create_segment)(self.segment)
            return
        digest = hashlib.sha256()
        for put in self.puts:
            digest.update(put.packed)
        names = [
            put.key if put.region == EVERYWHERE else f"{put.key} in {put.region}"
            for put in self.puts
        ]
        draft.put(
            self.puts,
            {
                "operation": "import",
                "key": "",
                "region": EVERYWHERE,
                "batch": number,
                "of": total,
                "digest": digest.hexdigest(),
                "flags": names,
            },
            ahead,
        )


class _Planned(Struct, frozen=True):
    """What is left to do at a tip, in the order in which it is done."""

    origin: str
    segments: list[tuple[Mapping[str, Any], bool]]
    flags: list[Put]
    created: AbstractSet[PolicyId]
    counts: Imported


class Import:
    """Flags and segments to be imported; documents are checked as they are added.

    Args:
        environment: Where they go.
        reassign: Whether keys may pass from one treated variant to another, as Draft.update has it.
        keys: The writer's `keys`, for flags with sensitive variants; without, those are refused.
    """

    def __init__(
        self, environment: str, *, reassign: bool = False, keys: DataKeys | None = None
    ) -> None:
        self._environment = environment
        self._keys = keys
        self._reassign = reassign
        self._flags: dict[PolicyId, Put] = {}
        self._segments: dict[str, tuple[Mapping[str, Any], PolicyState]] = {}

    def add(self, document: Mapping[str, Any]) -> None:
        """Add a flag by its policy document.

        Raises:
            InvalidDocumentError: it is not valid, or there twice; or it is to be encrypted, and
                there are no keys.
            EncryptionError, StoreError: the keys cannot be had.
        """
        flag = decode(document, environment=self._environment)
        if flag.sensitive:
            flag = self._encrypted(flag, document)
        put = Put(
            flag=flag,
            packed=state_of(flag.key, flag.region, 1, encode(flag)).packed,
            has_state="state" in document,
            reassign=self._reassign,
            key=flag.key,
            region=flag.region,
        )
        if self._flags.setdefault(put.policy_id, put) is not put:
            raise _twice(f"flag {flag.key!r}")

    def _encrypted(self, flag: Flag, document: Mapping[str, Any]) -> Flag:
        if self._keys is None:
            # Not even what is encrypted already could be checked.
            raise InvalidDocumentError(
                "sensitive",
                "says what is encrypted, and this import has no keys",
                "Give it those of the writer, or set FLAGKIT_LOCAL_KEY_PATH; docs/secrets.md says"
                " how",
                subject=f"flag {flag.key!r}",
            )
        sealed = Sealing(self._environment, self._keys).sealed(document)
        return decode(sealed, environment=self._environment)

    def add_segment(self, document: Mapping[str, Any]) -> None:
        """Add a segment by its document.

        Raises:
            InvalidDocumentError: it is not valid, or there twice.
        """
        listed = listed_keys(document)
        hashed = decode_segment({**document, **listed}, environment=self._environment)
        key = hashed.segment.key
        if key in self._segments:
            raise _twice(f"segment {key!r}")
        state = state_of(key, SEGMENTS, 1, encode_segment(hashed.segment))
        self._segments[key] = ({**document, **listed}, state)

    def copy(self) -> "Import":
        """Return an import of the same, to try something with."""
        other = Import(self._environment, reassign=self._reassign, keys=self._keys)
        other._flags, other._segments = {**self._flags}, {**self._segments}
        return other

    def look(self, store: Store) -> Imported:
        """Return what an import would do, and write nothing. Raises what `run` does."""
        return self._planned(store).counts

    def run(
        self,
        writer: Writer,
        *,
        reason: str = "",
        actor: str | None = None,
        progress: Callable[[Step], None] | None = None,
    ) -> Imported:
        """Import everything that is not as asked for already, in batches.

        Where a limit on changes is reached, it waits. An import that is broken off by an error, or
        killed, has made whole batches; run again, it goes on.

        Raises:
            ConfigurationError: the writer is of another environment.
            BrokenReferenceError: references would not hold, or form a cycle. Nothing was written.
            WriteError, InvalidDocumentError: refused, for what others changed meanwhile, say.
            StoreUnavailableError: the database cannot be reached.
        """
        if actor is not None:
            checked_actor(actor)
        with collector_paused():
            planned = self._planned(writer.store)
        batches = [*_batches(planned)]
        done, revisions = 0, list[int]()
        with ThreadPoolExecutor(1, "flagkit-import") as thread:
            # The next batch is prepared while the database works on this one.
            coming = [thread.submit(batch.prepared) for batch in batches[:1]]
            for number, batch in enumerate(batches):
                ahead = coming.pop().result()
                coming += [thread.submit(later.prepared) for later in batches[number + 1 :][:1]]
                # Revisions in between are those of others.
                is_alone = number < 2 or revisions[-1] == revisions[-2] + 1  # noqa: PLR2004
                time.sleep(TURN_SECONDS if is_alone else PAUSE_SECONDS)
                asked = Asked(
                    reason=reason,
                    actor=actor,
                    idempotency_key=f"import-{planned.origin}-{number + 1}",
                )
                revisions.append(_revision(writer, batch, number + 1, len(batches), asked, ahead))
                done += len(batch)
                if progress is not None:
                    progress(Step(done, planned.counts.changed))
        return msgspec.structs.replace(planned.counts, revisions=tuple(revisions))

    def _planned(self, store: Store) -> _Planned:
        """Check all of it at one revision, and leave out what is as it is asked for."""
        if store.environment != self._environment:
            raise ConfigurationError(
                f"this import is for {self._environment!r}, and the writer is of"
                f" {store.environment!r}: make the import for where it goes"
            )
        with store.reading() as reading:
            found = reading.find({key for _, key in self._flags})
            segments = reading.segments(self._segments)
            flags = {identity: put.flag for identity, put in self._flags.items()}
            References(reading, found, flags).check()
            check_segments(reading, flags, dict.fromkeys(self._segments, True))
            changed = [*self._changed(reading, found)]
            lacking = [
                (document, (SEGMENTS, key) in segments)
                for key, (document, state) in self._segments.items()
                if (SEGMENTS, key) not in segments or segments[SEGMENTS, key].packed != state.packed
            ]
            origin = hashlib.sha256(reading.tip.hash.encode())
        for put in changed:
            origin.update(put.packed)
        new = {put.policy_id for put in changed} - found.keys()
        created = len(new) + sum(not there for _, there in lacking)
        everything = len(self._flags) + len(self._segments)
        total = len(changed) + len(lacking)
        counts = Imported(created=created, updated=total - created, unchanged=everything - total)
        return _Planned(origin.hexdigest()[:32], lacking, _in_order(changed), new, counts)

    def _changed(self, reading: Reading, found: Mapping[PolicyId, PolicyState]) -> Iterator[Put]:
        earlier = earlier_of(reading)
        for identity, put in self._flags.items():
            before = found.get(identity)
            if before is None:
                yield put
                continue
            # What is refused for what is there, is refused now.
            made = put.next(before, earlier)
            if state_of(put.key, put.region, 1, encode(made)).packed != before.packed:
                yield put


def _batches(planned: _Planned) -> Iterator[_Batch]:
    for segment, is_there in planned.segments:
        yield _Batch(segment=segment, is_there=is_there)
    puts: list[Put] = []
    size = 0
    for put in planned.flags:
        puts.append(put)
        size += len(put.packed)
        if len(puts) == BATCH_FLAGS or size >= BATCH_BYTES:
            yield _Batch(puts, planned.created)
            puts, size = [], 0
    if puts:
        yield _Batch(puts, planned.created)


def _in_order(puts: Iterable[Put]) -> list[Put]:
    """Return puts, those of a flag's prerequisites before its own; there are no cycles."""
    by_key: dict[str, list[Put]] = {}
    for put in puts:
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


def _revision(
    writer: Writer,
    batch: _Batch,
    number: int,
    total: int,
    asked: Asked,
    ahead: Mapping[PolicyId, Prepared],
) -> int:
    """Return the revision that a batch became, once the limits on changes let it."""
    while True:
        try:
            with writer.change(**asked) as draft:
                batch.ask(draft, number, total, ahead)
        except RateLimitedError as error:
            time.sleep(error.retry_after)
            continue
        assert draft.commit is not None, "the block ended without error"
        return draft.commit.revision


def _twice(subject: str) -> InvalidDocumentError:
    return InvalidDocumentError("key", "is imported twice", "Remove one", subject=subject)
