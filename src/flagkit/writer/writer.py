"""Writer: versioned changes to an environment, each one numbered, recorded and visible whole.

The protocol: read and check at one revision; record the request; compare-and-set the head, which is
the commit; project. Lost races are tried again from the reading on. See docs/design.md.
"""

import contextlib
import hashlib
import logging
import random
import threading
import time
import uuid
from collections.abc import Generator, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Self

import msgspec

from flagkit.changes import PolicyChange, Tip, next_change
from flagkit.errors import (
    ConfigurationError,
    InvalidDocumentError,
    RequestConflictError,
    StoreError,
    StoreUnavailableError,
)
from flagkit.model import EVERYWHERE
from flagkit.settings import settings_from
from flagkit.storage.reading import Reading
from flagkit.storage.store import Store
from flagkit.writer.access import check_access, needs
from flagkit.writer.checkpoints import CheckpointKeeper
from flagkit.writer.drafts import Commit, Draft
from flagkit.writer.guards import Guard, check_guards, planned_of
from flagkit.writer.limits import buckets_after
from flagkit.writer.planning import Plan, plan

_log = logging.getLogger("flagkit.writer")

LOST_RACE_SECONDS_MAX = 0.02
UNAVAILABLE_SECONDS_MAX = 0.5


class Writer:
    """Makes changes to one environment. May be used from many threads, which then take turns.

    Args:
        uri: A MongoDB connection string of a replica set; or FLAGKIT_URI.
        environment: Whose flags to change; or FLAGKIT_ENVIRONMENT.
        actor: Who changes them, for the audit.
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
    def change(self, *, reason: str = "", idempotency_key: str | None = None) -> Generator[Draft]:
        """Collect operations that are committed as one revision when the block ends without error.

        Args:
            reason: Why, for the audit.
            idempotency_key: Names the request: sent again with the same key, and the same content,
                it returns the first Commit and changes nothing.

        Raises:
            WriteError, InvalidDocumentError: refused; nothing was written.
            StoreUnavailableError: the database cannot be reached. With an idempotency key it is
                safe to try again; without one, look whether the change was made.
        """
        change = Draft(self.environment)
        yield change
        change.commit = self._commit(change, reason, idempotency_key)

    def create(
        self, flag: Mapping[str, Any], *, reason: str = "", idempotency_key: str | None = None
    ) -> Commit:
        """Create a flag from its policy document. For errors see `change`."""
        with self.change(reason=reason, idempotency_key=idempotency_key) as change:
            change.create(flag)
        return _committed(change)

    def update(
        self,
        flag: Mapping[str, Any],
        *,
        expected_version: int | None = None,
        reassign: bool = False,
        reason: str = "",
        idempotency_key: str | None = None,
    ) -> Commit:
        """Replace a flag's policy document. For errors see `change`."""
        with self.change(reason=reason, idempotency_key=idempotency_key) as change:
            change.update(flag, expected_version=expected_version, reassign=reassign)
        return _committed(change)

    def set_rollout(  # noqa: PLR0913 - what it sets, where, on which condition, and why
        self,
        key: str,
        weights: Mapping[str, float] | float,
        *,
        rule: str | None = None,
        region: str = EVERYWHERE,
        expected_version: int | None = None,
        reassign: bool = False,
        reason: str = "",
        idempotency_key: str | None = None,
    ) -> Commit:
        """Change a rollout's weights, as Draft.set_rollout does. For errors see `change`."""
        with self.change(reason=reason, idempotency_key=idempotency_key) as change:
            change.set_rollout(
                key,
                weights,
                rule=rule,
                region=region,
                expected_version=expected_version,
                reassign=reassign,
            )
        return _committed(change)

    def pause(
        self,
        key: str,
        *,
        region: str = EVERYWHERE,
        reason: str = "",
        idempotency_key: str | None = None,
    ) -> Commit:
        """Pause a flag: it serves its `off` variant. For errors see `change`."""
        with self.change(reason=reason, idempotency_key=idempotency_key) as change:
            change.pause(key, region=region)
        return _committed(change)

    def resume(
        self,
        key: str,
        *,
        region: str = EVERYWHERE,
        reason: str = "",
        idempotency_key: str | None = None,
    ) -> Commit:
        """Make a paused flag active again. For errors see `change`."""
        with self.change(reason=reason, idempotency_key=idempotency_key) as change:
            change.resume(key, region=region)
        return _committed(change)

    def rollback(
        self,
        key: str,
        *,
        to: int,
        region: str = EVERYWHERE,
        reason: str = "",
        idempotency_key: str | None = None,
    ) -> Commit:
        """Give a flag the content that it had at revision `to`. For errors see `change`."""
        with self.change(reason=reason, idempotency_key=idempotency_key) as change:
            change.rollback(key, to=to, region=region)
        return _committed(change)

    def create_segment(
        self, segment: Mapping[str, Any], *, reason: str = "", idempotency_key: str | None = None
    ) -> Commit:
        """Create a segment from its document. For errors see `change`."""
        with self.change(reason=reason, idempotency_key=idempotency_key) as change:
            change.create_segment(segment)
        return _committed(change)

    def update_segment(
        self,
        segment: Mapping[str, Any],
        *,
        expected_version: int | None = None,
        reason: str = "",
        idempotency_key: str | None = None,
    ) -> Commit:
        """Replace a segment's document, its keys included. For errors see `change`."""
        with self.change(reason=reason, idempotency_key=idempotency_key) as change:
            change.update_segment(segment, expected_version=expected_version)
        return _committed(change)

    def change_members(  # noqa: PLR0913 - who goes where, on which condition, and why
        self,
        key: str,
        *,
        include: Iterable[str | int] = (),
        exclude: Iterable[str | int] = (),
        remove: Iterable[str | int] = (),
        expected_version: int | None = None,
        reason: str = "",
        idempotency_key: str | None = None,
    ) -> Commit:
        """Move a segment's keys, as Draft.change_members does. For errors see `change`."""
        with self.change(reason=reason, idempotency_key=idempotency_key) as change:
            change.change_members(
                key,
                include=include,
                exclude=exclude,
                remove=remove,
                expected_version=expected_version,
            )
        return _committed(change)

    def rollback_segment(
        self, key: str, *, to: int, reason: str = "", idempotency_key: str | None = None
    ) -> Commit:
        """Give a segment the content that it had at revision `to`. For errors see `change`."""
        with self.change(reason=reason, idempotency_key=idempotency_key) as change:
            change.rollback_segment(key, to=to)
        return _committed(change)

    def close(self) -> None:
        """Close the connections; a checkpoint that is being made is left off."""
        if self._checkpoints is not None:
            self._checkpoints.close()
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _commit(self, draft: Draft, reason: str, key: str | None) -> Commit:
        asked = [msgspec.to_builtins(operation) for operation in draft.operations]
        request = uuid.uuid4().hex if key is None else _checked_key(key)
        # Sent again with it, a request is another one: what stands in the audit must have it.
        glass = {"glass": draft.glass} if draft.glass else {}
        content = {
            "sent": datetime.now(UTC),
            "actor": self._actor,
            "reason": reason,
            "operations": asked,
            "digest": _digest([self._actor, asked, *glass.values()]),
            **glass,
        }
        deadline = time.monotonic() + self._timeout
        with self._turn:
            while True:
                try:
                    tip = self._attempt(draft, request, content)
                    pause = LOST_RACE_SECONDS_MAX
                except StoreUnavailableError:
                    # Unsure whether it was committed: the next reading looks for the request.
                    if time.monotonic() > deadline:
                        raise
                    tip, pause = None, UNAVAILABLE_SECONDS_MAX
                if tip is not None:
                    if draft.glass:
                        broke = (self._actor, tip.revision, self.environment, draft.glass)
                        _log.warning("%s broke the glass for revision %s of %s: %s", *broke)
                    if self._checkpoints is not None:
                        self._checkpoints.saw(tip)
                    return Commit(tip.revision, tip.time, request)
                if time.monotonic() > deadline:
                    raise StoreUnavailableError(
                        f"other writers won every race for {self._timeout} s: nothing was changed"
                    )
                time.sleep(random.uniform(0, pause))  # noqa: S311 - jitter, not secrets

    def _attempt(self, draft: Draft, request: str, content: Mapping[str, Any]) -> Tip | None:
        """Try once. Return the tip that the request led to, None if another writer was first."""
        with self.store.reading() as reading:
            done = reading.commit_of(request)
            planned = (
                plan(draft.operations, reading, reading.tip.revision, draft.parts)
                if done is None
                else Plan([], {})
            )
            reading.check_newest(planned.changes)
            buckets: Mapping[str, int] = {}
            if done is None:
                buckets = self._permitted(draft, reading, planned.changes, content["reason"])
        change = next_change(reading.tip, request, reading.now, planned.changes)
        self.store.check_fits(change, content)
        if self.store.add_request(request, content) != content["digest"]:
            raise RequestConflictError(
                f"the idempotency key {request!r} was used before, for another request"
            )
        if reading.pending is not None:
            # The ledger must have the tip before the head forgets it. Its writer may be dead.
            self.store.project(reading.pending)
        if done:
            return done
        self.store.add_parts(planned.parts)
        if not self.store.compare_and_set(reading.tip, change, buckets):
            return None
        try:
            self.store.project(change)
        except StoreError as error:
            # It is committed all the same, and the next writer projects it.
            _log.warning(
                "revision %s is committed and not yet projected: %s", change.revision, error
            )
        return change.tip

    def _permitted(
        self, draft: Draft, reading: Reading, changes: list[PolicyChange], reason: str
    ) -> dict[str, int]:
        """Refuse what its actor may not do, or guards or limits stop; return the buckets after."""
        needed = needs(draft.operations, changes, breaks_glass=bool(draft.glass))
        check_access(self.store, reading, self._actor, reason, draft.operations, needed)
        if self._guards and not draft.glass:
            planned = planned_of(
                changes,
                environment=self.environment,
                actor=self._actor,
                reason=reason,
                now=reading.now,
            )
            check_guards(self._guards, planned)
        return buckets_after(reading, self._actor, needed)


def _digest(asked: object) -> str:
    try:
        return hashlib.sha256(msgspec.msgpack.encode(asked)).hexdigest()
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidDocumentError("", f"cannot be recorded: {error}", "Mend it") from None


def _checked_key(key: object) -> str:
    if not isinstance(key, str) or not key:
        raise InvalidDocumentError(
            "idempotency_key", f"is {key!r}", "Write a string that names the request"
        )
    return key


def _committed(change: Draft) -> Commit:
    assert change.commit is not None, "the block ended without error"
    return change.commit
