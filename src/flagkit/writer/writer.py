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
from collections.abc import Generator, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any, NamedTuple, Self, Unpack

import msgspec

from flagkit.changes import Change, PolicyChange, PolicyId, Tip, next_change
from flagkit.collector import collector_paused
from flagkit.errors import (
    AccessDeniedError,
    ConfigurationError,
    InvalidDocumentError,
    StoreError,
    StoreUnavailableError,
)
from flagkit.model import Flag
from flagkit.settings import settings_from
from flagkit.storage.foreseen import Foreseen
from flagkit.storage.pages import Page, split
from flagkit.storage.reading import Reading
from flagkit.storage.store import Store
from flagkit.writer.access import Need, check_access, log_denial, needs
from flagkit.writer.checkpoints import CheckpointKeeper
from flagkit.writer.drafts import Commit, Draft, Preview
from flagkit.writer.guards import Guard, check_guards, planned_of
from flagkit.writer.limits import buckets_after
from flagkit.writer.planning import Plan, plan
from flagkit.writer.rebasing import still_holds
from flagkit.writer.requests import check_same, digest_of
from flagkit.writer.workflows import Asked, Workflows

_log = logging.getLogger("flagkit.writer")

LOST_RACE_SECONDS_MAX = 0.02
UNAVAILABLE_SECONDS_MAX = 0.5
LAG_MAX = timedelta(seconds=2)
"""How long a large change may be projected before others help."""


class Writer(Workflows):
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
    ) -> None:
        if checkpoint_every is not None and checkpoint_every < 1:
            raise ConfigurationError(
                f"checkpoint_every is {checkpoint_every}: it is a number of revisions, 1 or more"
            )
        settings = settings_from(uri, environment=environment, database=database)
        self.environment = settings.environment
        self.store = Store(
            settings.uri, environment=settings.environment, database=settings.database
        )
        self._checkpoints = (
            None if checkpoint_every is None else CheckpointKeeper(self.store, checkpoint_every)
        )
        self._actor = actor
        self._guards = tuple(guards)
        self._timeout = timeout
        # Threads of one process would only make each other lose races for the head.
        self._turn = threading.Lock()

    def create_environment(self) -> Tip:
        """Make the environment with its collections, if it is not there; return its tip."""
        return self.store.create_environment(uuid.uuid4().hex)

    @contextlib.contextmanager
    def change(self, **asked: Unpack[Asked]) -> Generator[Draft]:
        """Collect operations that are committed as one revision when the block ends without error.

        Takes `reason`, `actor` and `idempotency_key`, as Asked has them.

        Raises:
            WriteError, InvalidDocumentError: refused; nothing was written.
            StoreUnavailableError: the database cannot be reached. With an idempotency key it is
                safe to try again; without one, look whether the change was made.
        """
        change = Draft(self.environment)
        yield change
        change.commit = self._commit(change, asked)

    @contextlib.contextmanager
    def preview(self, **asked: Unpack[Asked]) -> Generator[Draft]:
        """Collect operations as `change` does, and look what they would do; nothing is written.

        All is checked that a commit checks, at the newest revision: documents, references, sizes,
        access, guards, limits, the idempotency key. No token is taken, and no denial logged.

        Raises:
            WriteError, InvalidDocumentError: the change would be refused.
            StoreUnavailableError: the database cannot be reached.
        """
        change = Draft(self.environment)
        yield change
        change.preview = self._preview(change, asked)

    def close(self) -> None:
        """Close the connections; a checkpoint that is being made is left off."""
        if self._checkpoints is not None:
            self._checkpoints.close()
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _preview(self, draft: Draft, asked: Asked) -> Preview:
        request, content = self._request(draft, asked)
        earlier = self.store.requests([request]).get(request, content)
        with self.store.reading() as reading:
            look = self._look(reading, draft, request, content)
        check_same(request, str(earlier["digest"]), content, done=look.done is not None)
        done = None if look.done is None else look.done.revision
        return Preview(reading.tip.revision, look.change.policies, done)

    def _request(self, draft: Draft, asked: Asked) -> tuple[str, dict[str, Any]]:
        """Return the id of a request, and what the audit is to have of it."""
        key, actor = asked.get("idempotency_key"), asked.get("actor") or self._actor
        operations = (
            [draft.recorded]
            if draft.recorded is not None
            else [
                msgspec.to_builtins(operation, enc_hook=_name_of) for operation in draft.operations
            ]
        )
        request = uuid.uuid4().hex if key is None else _checked_key(key)
        content = {
            "sent": datetime.now(UTC),
            "actor": actor,
            "reason": asked.get("reason", ""),
            "operations": operations,
            **({"glass": draft.glass} if draft.glass else {}),
        }
        content["digest"] = digest_of(content)
        return request, content

    def _commit(self, draft: Draft, asked: Asked) -> Commit:
        request, content = self._request(draft, asked)
        # A request that nobody has sent yet cannot have been committed.
        foreseen = _foreseen(draft, asked.get("idempotency_key"))
        lost: list[_Look] = []
        deadline = time.monotonic() + self._timeout
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
                foreseen = _foreseen(draft, request)
                if tip is not None:
                    if draft.glass:
                        broke = (content["actor"], tip.revision, self.environment, draft.glass)
                        _log.warning("%s broke the glass for revision %s of %s: %s", *broke)
                    if self._checkpoints is not None:
                        self._checkpoints.saw(tip)
                    return Commit(tip.revision, tip.time, request)
                if time.monotonic() > deadline:
                    raise StoreUnavailableError(
                        f"other writers won every race for {self._timeout} s: nothing was changed"
                    )
                time.sleep(random.uniform(0, pause))  # noqa: S311 - jitter, not secrets

    def _attempt(
        self,
        draft: Draft,
        request: str,
        content: Mapping[str, Any],
        foreseen: Foreseen,
        lost: "list[_Look]",
    ) -> Tip | None:
        """Try once. Return the tip that the request led to, None if another writer was first.

        What was planned goes into `lost` if it was: it may hold in the next attempt.
        """
        with self.store.reading(foreseen) as reading:
            # Nothing that rests on all of the history, as a rollback does.
            earlier = lost.pop() if lost and draft.recorded is not None else None
            again = earlier and self._again(reading, earlier, request, content)
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
            # Ledger and flags must have the tip before the head forgets it. Its writer may be dead.
            self.store.project(reading.behind, reading.pages)
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

    def _project(self, look: "_Look", late: int | None) -> None:
        """Bring what was committed to where it is read, and a page of what was not, for too long.

        That is a change on pages, whose writer may be dead; so it comes to an end.
        """
        change, pages = look.change, look.pages
        try:
            self.store.project(change, pages, is_mine=True)
            if pages:
                self.store.project_own_pages(change.revision, pages, look.flags)
            elif late is not None:
                self.store.project_pages(late, 1)
        except StoreError as error:
            # It is committed all the same, and the next writer projects it.
            _log.warning(
                "revision %s is committed and not yet projected: %s", change.revision, error
            )

    def _again(
        self, reading: Reading, lost: "_Look", request: str, content: Mapping[str, Any]
    ) -> "_Look | None":
        """Return what was planned upon an earlier revision, if it still holds upon this one."""
        if reading.tip.epoch != lost.upon.epoch or reading.commit_of(request) is not None:
            return None
        pending = () if reading.pending is None else (reading.pending,)
        if not still_holds(lost.flags, chain(reading.changes(lost.upon.revision), pending)):
            return None
        policies = lost.change.policies
        self._check_guards([*policies], content, reading)
        return lost._replace(
            change=next_change(reading.tip, request, reading.now, policies),
            buckets=buckets_after(reading, content["actor"], lost.needed),
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
    ) -> "_Look":
        """Return what a request would do at a reading's revision, with all checks made."""
        done = None if is_new else reading.commit_of(request)
        planned, buckets, needed = Plan([], {}), dict[str, int](), list[Need]()
        if done is None:
            planned = plan(draft.operations, reading, reading.tip.revision, draft.parts)
            reading.check_newest(planned.changes)
            needed = needs(draft.operations, planned.changes, breaks_glass=bool(draft.glass))
            check_access(reading, content["actor"], needed)
            if not draft.glass:
                self._check_guards(planned.changes, content, reading)
            buckets = buckets_after(reading, content["actor"], needed)
        change = next_change(reading.tip, request, reading.now, planned.changes)
        pages = split(change.policies)
        self.store.check_fits(change, content, pages)
        return _Look(
            done, change, planned.parts, buckets, pages, planned.flags, needed, reading.tip
        )

    def _check_guards(
        self, changes: list[PolicyChange], content: Mapping[str, Any], reading: Reading
    ) -> None:
        """Refuse what guards stop."""
        if self._guards:
            planned = planned_of(
                changes,
                environment=self.environment,
                actor=content["actor"],
                reason=content["reason"],
                now=reading.now,
            )
            check_guards(self._guards, planned)


class _Look(NamedTuple):
    """What a request would do: where it led to, if it was done; else the next change."""

    done: Tip | None
    change: Change
    parts: Mapping[str, bytes]
    buckets: Mapping[str, int]
    pages: Mapping[str, Page]
    flags: Mapping[PolicyId, Flag]
    needed: Sequence[Need]
    upon: Tip


def _foreseen(draft: Draft, request: str | None) -> Foreseen:
    """Return what a draft will ask for, and the request, where it may have been committed."""
    return Foreseen(request, frozenset(operation.policy_id for operation in draft.operations))


def _checked_key(key: object) -> str:
    if not isinstance(key, str) or not key:
        raise InvalidDocumentError(
            "idempotency_key", f"is {key!r}", "Write a string that names the request"
        )
    return key


def _name_of(function: Any) -> str:
    """Return what the audit has of a function: its name."""
    return str(getattr(function, "__qualname__", type(function).__qualname__))
