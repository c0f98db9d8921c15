"""Writer: versioned changes to an environment, each one numbered, recorded and visible whole.

The protocol: read and check at one revision; record the request; compare-and-set the head, which is
the commit; project. Lost races are tried again from the reading on. See docs/design.md.
"""

import contextlib
import logging
import random
import threading
import time
import uuid
from collections.abc import Generator, Iterable, Mapping
from datetime import timedelta
from typing import Any, Self, Unpack

from flagkit.changes import PolicyChange, Tip, next_change
from flagkit.collector import collector_paused
from flagkit.encryption import Encryption
from flagkit.errors import (
    AccessDeniedError,
    ConfigurationError,
    StoreError,
    StoreUnavailableError,
)
from flagkit.settings import settings_from
from flagkit.storage.foreseen import Foreseen
from flagkit.storage.pages import split
from flagkit.storage.preparing import fitting
from flagkit.storage.reading import Reading
from flagkit.storage.store import Store
from flagkit.writer.access import log_denial
from flagkit.writer.approvals import Approvals
from flagkit.writer.checkpoints import CheckpointKeeper
from flagkit.writer.commits import Commit, PendingChange
from flagkit.writer.drafts import Draft, Preview
from flagkit.writer.guards import Guard, check_guards, planned_of
from flagkit.writer.limits import buckets_after
from flagkit.writer.looks import Look, foreseen_by
from flagkit.writer.pending import Sequencer, Swept, Waiting
from flagkit.writer.planning import Plan, plan
from flagkit.writer.requests import check_same, checked_key, content_of, made_by
from flagkit.writer.sealing import data_keys_of
from flagkit.writer.workflows import Anyhow, Asked

_log = logging.getLogger("flagkit.writer")

LOST_RACE_SECONDS_MAX = 0.02
UNAVAILABLE_SECONDS_MAX = 0.5
LAG_MAX = timedelta(seconds=2)
"""How long a large change may be projected before others help."""


class Writer(Approvals):
    """Makes changes to one environment. May be used from many threads, which then take turns.

    Args:
        uri: A MongoDB connection string of a replica set; or FLAGKIT_URI.
        environment: Whose flags to change; or FLAGKIT_ENVIRONMENT.
        actor: Who changes them, for the audit, where a change does not name someone else.
        database: Where flagkit's collections are; or FLAGKIT_DATABASE, or "flagkit".
        timeout: Seconds within which a change commits or fails.
        checkpoint_every: Publish a checkpoint, in the background, whenever the newest one is so
            many revisions old; without, none is: there is `flagkit checkpoint`.
        guards: Are asked about each change, see `flagkit.writer.guards`.
        encryption: What sensitive variants are encrypted by; or a local master key in the file that
            FLAGKIT_LOCAL_KEY_PATH names. Without it, flags with new secrets are refused.

    Raises:
        ConfigurationError: the URI or the environment is named nowhere, or a setting makes no
            sense.
    """

    def __init__(  # noqa: PLR0913 - where, who, and what is made of it
        self,
        uri: str | None = None,
        environment: str | None = None,
        *,
        actor: str,
        database: str | None = None,
        timeout: float = 30.0,
        checkpoint_every: int | None = None,
        guards: Iterable[Guard] = (),
        encryption: Encryption | None = None,
    ) -> None:
        if checkpoint_every is not None and checkpoint_every < 1:
            raise ConfigurationError(
                f"checkpoint_every is {checkpoint_every}: it is a number of revisions, 1 or more"
            )
        settings = settings_from(
            uri, environment=environment, database=database, encryption=encryption
        )
        self.environment = settings.environment
        self.store = Store(
            settings.uri, environment=settings.environment, database=settings.database
        )
        self._checkpoints = (
            None if checkpoint_every is None else CheckpointKeeper(self.store, checkpoint_every)
        )
        self.keys = self._data_keys = data_keys_of(settings)
        self._actor = actor
        self._guards = tuple(guards)
        self._timeout = timeout
        self._sequencer = Sequencer(self.store, self._commit)
        # Threads of one process would only make each other lose races for the head.
        self._turn = threading.Lock()

    def create_environment(self) -> Tip:
        """Make the environment with its collections, if it is not there; return its tip."""
        return self.store.create_environment(uuid.uuid4().hex)

    def create_data_key(self, master_key: Mapping[str, Any] | None = None) -> str:
        """Make the data key of the writer's encryption, if it is not there; return its name.

        Args:
            master_key: Which one of the provider is to guard it, as `create_data_key` of pymongo's
                ClientEncryption takes it; a local one needs none.

        Raises:
            ConfigurationError: this writer has no encryption.
            EncryptionError, StoreError: the provider, or the database, refused.
        """
        if self._data_keys is None:
            raise ConfigurationError(
                "this writer has no encryption: pass encryption=, or set FLAGKIT_LOCAL_KEY_PATH"
            )
        return self._data_keys.create(master_key)

    @contextlib.contextmanager
    def change(self, **asked: Unpack[Anyhow]) -> Generator[Draft]:
        """Collect operations that are committed as one revision when the block ends without error.

        Takes `reason`, `actor` and `idempotency_key`, as Asked has them. With a session of your own
        client, in which a transaction was started, they are asked for in that transaction alone:
        `pending` of the draft makes a revision of them after it.

        Raises:
            WriteError, InvalidDocumentError: refused; nothing was written.
            StoreUnavailableError: the database cannot be reached. With an idempotency key it is
                safe to try again; without one, look whether the change was made.
        """
        change = Draft(self.environment, self.keys)
        yield change
        request, content = self._request(change, asked)
        session = asked.get("session")
        if session is None:
            is_new = asked.get("idempotency_key") is None
            change.commit = self._commit(change, request, content, is_new=is_new)
            self._sequencer.look()
        else:
            change.pending, digest = self._sequencer.put(session, change, request, content)
            check_same(request, digest, content, done=False)

    @contextlib.contextmanager
    def preview(self, **asked: Unpack[Asked]) -> Generator[Draft]:
        """Collect operations as `change` does, and look what they would do; nothing is written.

        All is checked that a commit checks, at the newest revision: documents, references, sizes,
        access, guards, limits, the idempotency key. No token is taken, and no denial logged.

        Raises:
            WriteError, InvalidDocumentError: the change would be refused.
            StoreUnavailableError: the database cannot be reached.
        """
        change = Draft(self.environment, self.keys)
        yield change
        change.preview = self._preview(change, asked)

    def pending_change(self, request: str) -> PendingChange:
        """Return the pending change of a request's id, be it that another process asked for it."""
        return PendingChange(request, self._sequencer.commit)

    def pending(self) -> list[Waiting]:
        """Return the changes that wait to be sequenced, and those that were refused, in order."""
        return self._sequencer.waiting()

    def sweep(self) -> Swept:
        """Sequence the changes that wait, whoever asked for them.

        Raises:
            StoreUnavailableError: the database cannot be reached. Nothing is lost.
        """
        return self._sequencer.sweep()

    def drop_pending(self, request: str, *, reason: str = "", actor: str | None = None) -> Commit:
        """Make sure that a pending change is never made. That stands in the ledger as a revision.

        Raises:
            NotPendingError: there is none of that name, or it was made meanwhile.
            AccessDeniedError: to edit what it touches takes another role.
        """
        _, content = self._request(Draft(self.environment), {"reason": reason, "actor": actor})
        return self._sequencer.drop(request, content)

    def close(self) -> None:
        """Close the connections; a checkpoint or a sweep that is being made is left off."""
        self._sequencer.close()
        if self._checkpoints is not None:
            self._checkpoints.close()
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _who(self, actor: str | None) -> str:
        return actor or self._actor

    def _preview(self, draft: Draft, asked: Asked) -> Preview:
        request, content = self._request(draft, asked)
        earlier = self.store.requests([request]).get(request, content)
        with self.store.reading() as reading:
            look = self._look(reading, draft, request, content)
        check_same(request, str(earlier["digest"]), content, done=look.done is not None)
        done = None if look.done is None else look.done.revision
        return Preview(reading.tip.revision, look.change.policies, done)

    def _request(self, draft: Draft, asked: Asked) -> tuple[str, dict[str, Any]]:
        key = asked.get("idempotency_key")
        request = uuid.uuid4().hex if key is None else checked_key(key)
        return request, content_of(draft, self._who(asked.get("actor")), asked.get("reason", ""))

    def _commit(
        self,
        draft: Draft,
        request: str,
        content: Mapping[str, Any],
        timeout: float | None = None,
        *,
        is_new: bool = False,
    ) -> Commit:
        # A request that nobody has sent yet cannot have been committed.
        foreseen = foreseen_by(draft, None if is_new else request)
        lost: list[Look] = []
        seconds = self._timeout if timeout is None else timeout
        deadline = time.monotonic() + seconds
        with self._turn:
            while True:
                try:
                    with collector_paused():
                        tip = self._attempt(draft, request, content, foreseen, lost)
                    pause = LOST_RACE_SECONDS_MAX
                except StoreUnavailableError:
                    # Unsure whether it was committed: the next reading looks for the request.
                    if time.monotonic() > deadline:
                        raise
                    tip, pause = None, UNAVAILABLE_SECONDS_MAX
                foreseen = foreseen_by(draft, request)
                if tip is not None:
                    if draft.glass:
                        broke = (content["actor"], tip.revision, self.environment, draft.glass)
                        _log.warning("%s broke the glass for revision %s of %s: %s", *broke)
                    if self._checkpoints is not None:
                        self._checkpoints.saw(tip)
                    return Commit(tip.revision, tip.time, request)
                if time.monotonic() > deadline:
                    raise StoreUnavailableError(
                        f"other writers won every race for {seconds:g} s: nothing was changed"
                    )
                time.sleep(random.uniform(0, pause))  # noqa: S311 - jitter, not secrets

    def _attempt(
        self,
        draft: Draft,
        request: str,
        content: Mapping[str, Any],
        foreseen: Foreseen,
        lost: list[Look],
    ) -> Tip | None:
        """Try once. Return the tip that the request led to; None if it was `lost` to another."""
        with self.store.reading(foreseen) as reading:
            # Nothing that rests on all of the history, as a rollback does.
            earlier = lost.pop() if lost and draft.recorded is not None else None
            again = earlier and self._again(reading, earlier, draft, request, content)
            try:
                look = again or self._look(
                    reading, draft, request, content, is_new=foreseen.request is None
                )
            except AccessDeniedError as error:
                log_denial(self.store, reading.now, error, content["reason"], draft.operations)
                raise
            lagging, is_late = reading.lagging, reading.lags_by > LAG_MAX
        if again is None:
            recorded = self.store.add_request(request, content)
            check_same(request, recorded, content, done=look.done is not None)
        if reading.behind is not None:
            self._help()
        if look.done is not None:
            return look.done
        change, pages = look.change, look.pages
        if pages and lagging is not None:
            # One large change at a time is carried on; who makes the next one can wait.
            self.store.project_pages(lagging)
            return None
        if again is None:
            self.store.add_parts(look.parts)
            self.store.add_pages(pages)
        lost.append(look)
        unprojected = change.revision if pages else lagging
        if not self.store.compare_and_set(reading.tip, change, look.buckets, pages, unprojected):
            return None
        self._project(look, lagging if is_late else None)
        return change.tip

    def _help(self) -> None:
        """See to it that ledger and flags have the tip before the head forgets it."""
        # Who committed it did not wait for a majority, which has it by now, with the request; or is
        # dead.
        with self.store.reading() as reading:
            behind, pages = reading.behind, reading.pages
        if behind is not None:
            self.store.project(behind, pages)

    def _project(self, look: Look, late: int | None) -> None:
        """Bring what was committed to where it is read, and a page of what was not, for too long.

        That is a change on pages, whose writer may be dead; so it comes to an end.
        """
        change, pages = look.change, look.pages
        try:
            self.store.project(change, pages, is_mine=True)
            if pages:
                self.store.project_own_pages(change.revision, pages, look.ready)
            elif late is not None:
                self.store.project_pages(late, 1)
        except StoreError as error:
            # It is committed all the same, and the next writer projects it.
            _log.warning(
                "revision %s is committed and not yet projected: %s", change.revision, error
            )

    def _again(
        self,
        reading: Reading,
        lost: Look,
        draft: Draft,
        request: str,
        content: Mapping[str, Any],
    ) -> Look | None:
        """Return what was planned upon an earlier revision, if it still holds upon this one."""
        if not lost.holds(reading, request):
            return None
        policies = lost.change.policies
        return lost._replace(
            change=next_change(reading.tip, request, reading.now, policies),
            buckets=self._permitted(draft, reading, [*policies], content),
            upon=reading.tip,
        )

    def _look(
        self,
        reading: Reading,
        draft: Draft,
        request: str,
        content: Mapping[str, Any],
        *,
        is_new: bool = False,
    ) -> Look:
        """Return what a request would do at a reading's revision, with all checks made."""
        done = None if is_new else made_by(reading, request)
        planned, buckets = Plan([], {}), dict[str, int]()
        if done is None:
            draft.terms.check(reading)
            planned = plan(draft.operations, reading, reading.tip.revision, draft.parts)
            draft.sealing.check(planned.changes)
            reading.check_newest(planned.changes)
            buckets = self._permitted(draft, reading, planned.changes, content)
        change = next_change(reading.tip, request, reading.now, planned.changes)
        pages = split(change.policies)
        ready = fitting(change, content, pages, planned.flags, draft.ahead)
        return Look(done, change, planned.parts, buckets, pages, planned.flags, ready, reading.tip)

    def _permitted(
        self,
        draft: Draft,
        reading: Reading,
        changes: list[PolicyChange],
        content: Mapping[str, Any],
    ) -> dict[str, int]:
        """Refuse what its actor may not do, or guards or limits stop; return the buckets after."""
        actor, reason = content["actor"], content["reason"]
        terms, glass = draft.terms, bool(draft.glass)
        needed = terms.needed(draft.operations, changes, breaks_glass=glass)
        approvers = terms.approvers(reading, actor, needed, changes)
        if self._guards and not glass:
            planned = planned_of(
                changes,
                environment=self.environment,
                actor=actor,
                reason=reason,
                now=reading.now,
                approvers=approvers,
            )
            check_guards(self._guards, planned)
        return buckets_after(reading, actor, needed)
