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
from collections.abc import Generator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Self

import msgspec
from msgspec import Struct

from flagkit.changes import Tip, next_change
from flagkit.errors import (
    InvalidDocumentError,
    RequestConflictError,
    StoreError,
    StoreUnavailableError,
)
from flagkit.model import EVERYWHERE
from flagkit.model.decoding import check_key, check_region
from flagkit.model.documents import State
from flagkit.settings import settings_from
from flagkit.storage.store import Store
from flagkit.writer.operations import (
    Create,
    Operation,
    Rollback,
    SetRollout,
    SetState,
    Update,
    checked_policy,
)
from flagkit.writer.planning import plan

_log = logging.getLogger("flagkit.writer")

LOST_RACE_SECONDS_MAX = 0.02
UNAVAILABLE_SECONDS_MAX = 0.5


class Commit(Struct, frozen=True):
    """A committed change: its revision, the server's time of it (UTC), and the request's id."""

    revision: int
    time: datetime
    request: str


class Draft:
    """Several operations that become one revision; `commit` is there once the block has ended.

    Each method checks what it is given at once, and changes nothing before the end of the block.
    """

    def __init__(self, environment: str) -> None:
        self.operations: list[Operation] = []
        self.commit: Commit | None = None
        self._environment = environment

    def create(self, flag: Mapping[str, Any]) -> None:
        """Create a flag from its policy document."""
        policy, key, region = checked_policy(flag, self._environment)
        self.operations.append(Create(policy=policy, key=key, region=region))

    def update(self, flag: Mapping[str, Any], *, expected_version: int | None = None) -> None:
        """Replace a flag's policy document; the document's key and region say which.

        Without `state` in it, the flag stays paused if it is.
        """
        policy, key, region = checked_policy(flag, self._environment)
        if "state" not in flag:
            del policy["state"]
        self.operations.append(
            Update(policy=policy, key=key, region=region, expected_version=expected_version)
        )

    def set_rollout(
        self,
        key: str,
        weights: Mapping[str, float] | float,
        *,
        rule: str | None = None,
        region: str = EVERYWHERE,
        expected_version: int | None = None,
    ) -> None:
        """Change the weights, in percent, of a rule's rollout, or of the fallthrough's.

        A bare percentage is the share of the true variant of a boolean flag.
        """
        self.operations.append(
            SetRollout(
                weights=weights if isinstance(weights, int | float) else dict(weights),
                rule=rule,
                key=check_key(key),
                region=check_region(region),
                expected_version=expected_version,
            )
        )

    def pause(self, key: str, *, region: str = EVERYWHERE) -> None:
        """Pause a flag: it serves its `off` variant."""
        self.operations.append(_set_state(key, region, "paused"))

    def resume(self, key: str, *, region: str = EVERYWHERE) -> None:
        """Make a paused flag active again."""
        self.operations.append(_set_state(key, region, "active"))

    def rollback(self, key: str, *, to: int, region: str = EVERYWHERE) -> None:
        """Give a flag the content that it had at revision `to`."""
        if not isinstance(to, int):  # pyright: ignore[reportUnnecessaryIsInstance] - not all check types
            raise InvalidDocumentError(
                "to", f"is {to!r}", "Write a revision, as in commit.revision"
            )
        self.operations.append(Rollback(to=to, key=check_key(key), region=check_region(region)))


class Writer:
    """Makes changes to one environment. May be used from many threads, which then take turns.

    Args:
        uri: A MongoDB connection string of a replica set; or FLAGKIT_URI.
        environment: Whose flags to change; or FLAGKIT_ENVIRONMENT.
        actor: Who changes them, for the audit.
        database: Where flagkit's collections are; or FLAGKIT_DATABASE, or "flagkit".
        timeout: Seconds within which a change commits or fails.

    Raises:
        ConfigurationError: the URI or the environment is named nowhere.
    """

    def __init__(
        self,
        uri: str | None = None,
        environment: str | None = None,
        *,
        actor: str,
        database: str | None = None,
        timeout: float = 30.0,
    ) -> None:
        settings = settings_from(uri, environment=environment, database=database)
        self.environment = settings.environment
        self.store = Store(
            settings.uri, environment=settings.environment, database=settings.database
        )
        self._actor = actor
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
        change.commit = self._commit(change.operations, reason, idempotency_key)

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
        reason: str = "",
        idempotency_key: str | None = None,
    ) -> Commit:
        """Replace a flag's policy document. For errors see `change`."""
        with self.change(reason=reason, idempotency_key=idempotency_key) as change:
            change.update(flag, expected_version=expected_version)
        return _committed(change)

    def set_rollout(  # noqa: PLR0913 - what it sets, where, on which condition, and why
        self,
        key: str,
        weights: Mapping[str, float] | float,
        *,
        rule: str | None = None,
        region: str = EVERYWHERE,
        expected_version: int | None = None,
        reason: str = "",
        idempotency_key: str | None = None,
    ) -> Commit:
        """Change a rollout's weights, as Draft.set_rollout does. For errors see `change`."""
        with self.change(reason=reason, idempotency_key=idempotency_key) as change:
            change.set_rollout(
                key, weights, rule=rule, region=region, expected_version=expected_version
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

    def close(self) -> None:
        """Close the connections."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _commit(self, operations: Sequence[Operation], reason: str, key: str | None) -> Commit:
        asked = [msgspec.to_builtins(operation) for operation in operations]
        request = uuid.uuid4().hex if key is None else _checked_key(key)
        content = {
            "sent": datetime.now(UTC),
            "actor": self._actor,
            "reason": reason,
            "operations": asked,
            "digest": _digest([self._actor, asked]),
        }
        deadline = time.monotonic() + self._timeout
        with self._turn:
            while True:
                try:
                    tip = self._attempt(operations, request, content)
                    pause = LOST_RACE_SECONDS_MAX
                except StoreUnavailableError:
                    # Unsure whether it was committed: the next reading looks for the request.
                    if time.monotonic() > deadline:
                        raise
                    tip, pause = None, UNAVAILABLE_SECONDS_MAX
                if tip is not None:
                    return Commit(tip.revision, tip.time, request)
                if time.monotonic() > deadline:
                    raise StoreUnavailableError(
                        f"other writers won every race for {self._timeout} s: nothing was changed"
                    )
                time.sleep(random.uniform(0, pause))  # noqa: S311 - jitter, not secrets

    def _attempt(
        self, operations: Sequence[Operation], request: str, content: Mapping[str, Any]
    ) -> Tip | None:
        """Try once. Return the tip that the request led to, None if another writer was first."""
        with self.store.reading() as reading:
            done = reading.commit_of(request)
            changes = [] if done else plan(operations, reading, reading.tip.revision)
            reading.check_newest(changes)
        change = next_change(reading.tip, request, reading.now, changes)
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
        if not self.store.compare_and_set(reading.tip, change):
            return None
        try:
            self.store.project(change)
        except StoreError as error:
            # It is committed all the same, and the next writer projects it.
            _log.warning(
                "revision %s is committed and not yet projected: %s", change.revision, error
            )
        return change.tip


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


def _set_state(key: str, region: str, state: State) -> SetState:
    return SetState(state=state, key=check_key(key), region=check_region(region))


def _committed(change: Draft) -> Commit:
    assert change.commit is not None, "the block ended without error"
    return change.commit
