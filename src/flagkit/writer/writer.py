"""`Writer`: makes versioned changes to an environment, each recorded and visible as a whole."""

import contextlib
import uuid
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NoReturn, Self, Unpack, cast

from flagkit._core.arguments import refuse_unknown_in_methods
from flagkit._core.background import Log
from flagkit._core.cooperative import run_slices
from flagkit._core.model import EVERYWHERE
from flagkit._core.model.access import check_actor
from flagkit._core.model.changes import PolicyChange, Tip
from flagkit._core.secrets import Encryption
from flagkit._core.storage.layout import compute_request_digest
from flagkit._core.storage.reader import EnvironmentReader
from flagkit._core.storage.requests import Session
from flagkit.config import resolve_settings
from flagkit.errors import ConfigurationError, InvalidArgumentError
from flagkit.writer.approvals import Proposals
from flagkit.writer.checkpoints import CheckpointPublisher
from flagkit.writer.commit import CommitProtocol, RequestBuilder, check_same_request
from flagkit.writer.draft import Commit, Draft, Preview, build_data_keys
from flagkit.writer.effects import iter_notes
from flagkit.writer.environment import Environment
from flagkit.writer.guards import Guard
from flagkit.writer.pending import PendingQueue, TransactionWriter
from flagkit.writer.retention import Pruner, PruneResult, PruneSteps, Retention, prune_in_steps
from flagkit.writer.shortcuts import ChangeOptions, ChangeShortcuts

_log = Log("flagkit.writer")

TIMEOUT_SECONDS: Final = 30.0
"""By default, how long a change is attempted again while the database cannot be reached."""


@refuse_unknown_in_methods
class Writer(ChangeShortcuts[Commit]):
    """Makes changes to one environment. May be used from many threads, which then take turns.

    Args:
        uri: A MongoDB connection string of a replica set; or FLAGKIT_URI.
        environment: Whose flags to change; or FLAGKIT_ENVIRONMENT.
        actor: Who changes them, for the audit, where a change does not name someone else. A name
            has 1 to 200 characters: docs/access.md says which.
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
        InvalidDocumentError: `actor` is no name of an actor.
    """

    def __init__(  # noqa: PLR0913 - where, who, and what is made of it
        self,
        uri: str | None = None,
        environment: str | None = None,
        *,
        actor: str,
        database: str | None = None,
        timeout: float = TIMEOUT_SECONDS,
        checkpoint_every: int | None = None,
        guards: Iterable[Guard] = (),
        encryption: Encryption | None = None,
    ) -> None:
        check_actor(actor)
        _check_every(checkpoint_every)
        _check_timeout(timeout)
        asked = _check_guards(guards)
        settings = resolve_settings(
            uri, environment=environment, database=database, encryption=encryption
        )
        self.environment = settings.environment
        self.reader = Environment(settings.uri, self.environment, database=settings.database)
        """The environment, for reading its ledger, access and more on the same connections."""
        self.store = self.reader.store
        self._checkpoint_publisher = (
            None if checkpoint_every is None else CheckpointPublisher(self.store, checkpoint_every)
        )
        self.keys = build_data_keys(settings)
        """The data keys that encrypt sensitive variants."""
        self._commit_protocol = CommitProtocol(self.store, asked, timeout)
        self._requests = RequestBuilder(settings.environment, actor, self.keys)
        self.pending = PendingQueue(self.store, self._requests, self._commit)
        """The changes that were requested in transactions, to sweep, list and drop."""
        self.proposals = Proposals(self.store, self._requests, self._commit)
        """The changes that were proposed, to approve, reject and apply."""

    @property
    def actor(self) -> str:
        """The actor of a change that names no other."""
        return self._requests.actor

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
        if self.keys is None:
            raise ConfigurationError(
                "this writer has no encryption: pass encryption=, or set FLAGKIT_LOCAL_KEY_PATH"
            )
        return self.keys.create(master_key)

    @contextlib.contextmanager
    def change(self, **options: Unpack[ChangeOptions]) -> Generator[Draft]:
        """Collect operations that are committed as one revision when the block ends without error.

            with writer.change(reason="launch") as change:
                change.resume("shop.search")
                change.set_rollout("shop.ranking", 10)
            print(change.commit.revision)

        Raises:
            WriteError, NotFoundError, InvalidDocumentError: the change is refused. Nothing is
                written.
            StoreUnavailableError: the database cannot be reached. Try again with the same
                idempotency key; without one, look first whether the change was made.
        """
        draft = self._requests.create_draft()
        draft.should_skip_unchanged = options.get("skip_unchanged", False)
        yield draft
        request, content = self._requests.build(draft, options)
        is_new = options.get("idempotency_key") is None
        draft.commit = self._commit(draft, request, content, is_new=is_new)
        self.pending.maybe_sweep()

    def edit(
        self,
        key: str,
        function: Callable[[dict[str, Any]], Mapping[str, Any]],
        *,
        region: str = EVERYWHERE,
        reassign: bool = False,
        **options: Unpack[ChangeOptions],
    ) -> Commit:
        """Replace a flag's document by the result of a function, as Draft.edit does.

        If a request with the same idempotency key was committed before, the function is not
        called. For errors see `change`.
        """
        return self._change_once(
            options, lambda draft: draft.edit(key, function, region=region, reassign=reassign)
        )

    def in_transaction(self, session: Session) -> TransactionWriter:
        """Return a writer of requests for a transaction of the caller's own client.

        Its methods are those of this writer. They insert a request into the transaction and return
        a PendingChange, whose `commit` makes the revision after the transaction.

            def move(session):
                orders.update_many({}, in_cents, session=session)
                return writer.in_transaction(session).set_rollout("orders.in-cents", 100)

            with my_client.start_session() as session:
                pending = session.with_transaction(move)
            commit = pending.commit()

        Args:
            session: A session of a client of the same cluster, with a started transaction.
        """
        return TransactionWriter(self.pending, self._requests, session)

    @contextlib.contextmanager
    def preview(self, **options: Unpack[ChangeOptions]) -> Generator[Draft]:
        """Collect operations as `change` does, and look what they would do; nothing is written.

        All is checked that a commit checks, at the newest revision: documents, references, sizes,
        access, guards, limits, the idempotency key. No token is taken, and no denial logged.

        Raises:
            WriteError, NotFoundError, InvalidDocumentError: the change would be refused.
            StoreUnavailableError: the database cannot be reached.
        """
        draft = self._requests.create_draft()
        yield draft
        draft.preview = self._preview(draft, options)

    @property
    def has_guards(self) -> bool:
        """True if this writer asks guards about its changes."""
        return self._commit_protocol.has_guards

    def check_changes(
        self,
        reading: EnvironmentReader,
        changes: Sequence[PolicyChange],
        *,
        reason: str = "",
        actor: str | None = None,
    ) -> None:
        """Refuse changes that the actor may not make, or that a guard refuses. Write nothing.

        Raises:
            AccessDeniedError, GuardError: refused.
        """
        self._commit_protocol.check_changes(
            reading, changes, self._requests.resolve_actor(actor), reason
        )

    def prune(
        self, retention: Retention, *, reason: str = "", now: datetime | None = None
    ) -> list[PruneResult]:
        """Delete documents that are older than a retention says; return their numbers, by kind.

        The user of the database must have the right to delete. If there are grants, the actor must
        be an admin of everything. The method checks both before it writes. A process that dies on
        the way leaves nothing half-done, and another call continues. `reader.list_prunable` returns
        what this method would delete.

        Example:
            writer.prune(Retention(ledger_days=180), reason="half a year is enough")

        Raises:
            ConfigurationError: the retention makes no sense.
            AccessDeniedError: the actor is no admin of everything; nothing was written.
            WriteError: somebody else prunes.
            StoreError: the database's user may not delete; or the ledger does not prove, so nothing
                may be deleted; or the database cannot be reached.
        """
        return run_slices(self.prune_in_steps(retention, reason=reason, now=now))

    def prune_in_steps(
        self, retention: Retention, *, reason: str = "", now: datetime | None = None
    ) -> PruneSteps:
        """Do what `prune` does in short steps, pause after each, and yield the progress as text."""
        pruner = Pruner(self.store, self.actor, self.change)
        return prune_in_steps(pruner, retention, reason=reason, now=now)

    def close(self) -> None:
        """Close the connections; a checkpoint or a sweep that is being made is left off."""
        self.pending.close()
        if self._checkpoint_publisher is not None:
            self._checkpoint_publisher.close()
        self.store.close()

    def __reduce_ex__(self, _: object) -> NoReturn:
        raise InvalidArgumentError(
            f"a {type(self).__name__} cannot be copied, or sent to another process: it has"
            " connections of its own. Share the one that is there; in another process, make one"
            " from the same settings"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _get_result(self, draft: Draft) -> Commit:
        assert draft.commit is not None, "the block ended without error"
        return draft.commit

    def _preview(self, draft: Draft, options: ChangeOptions) -> Preview:
        request, content = self._requests.build(draft, options)
        earlier = self.store.read_requests([request]).get(request, content)
        with self.store.open_reader() as reading:
            planned = self._commit_protocol.plan_commit(
                reading, draft, request, content, is_preview=True
            )
            notes = tuple(iter_notes(reading, planned.change.policies))
        check_same_request(
            request,
            compute_request_digest(earlier),
            content,
            is_committed=planned.committed_as is not None,
        )
        done = None if planned.committed_as is None else planned.committed_as.revision
        return Preview(reading.tip.revision, planned.change.policies, done, notes)

    def _commit(
        self,
        draft: Draft,
        request: str,
        content: Mapping[str, Any],
        timeout: float | None = None,
        *,
        is_new: bool = False,
    ) -> Commit:
        tip, changed = self._commit_protocol.commit(draft, request, content, timeout, is_new=is_new)
        if draft.bypass_reason and changed:
            broke = (content["actor"], tip.revision, self.environment, draft.bypass_reason)
            _log.warning("%s broke the glass for revision %s of %s: %s", *broke)
        if self._checkpoint_publisher is not None:
            self._checkpoint_publisher.on_commit(tip)
        return Commit(tip.revision, tip.time, request, changed)


def _check_every(every: object) -> None:
    if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
        raise ConfigurationError(
            f"checkpoint_every is {every!r}: it is a number of revisions, 1 or more"
        )


def _check_timeout(timeout: object) -> None:
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout >= 0:
        raise ConfigurationError(f"timeout is {timeout!r}: it is a number of seconds")


def _check_guards(given: object) -> tuple[Guard, ...]:
    guards = tuple(cast("Iterable[Guard]", given)) if isinstance(given, Iterable) else (None,)
    for guard in guards:
        if not callable(guard):
            raise ConfigurationError(
                f"guards is {given!r}: pass a list of functions, see flagkit.writer.guards"
            )
    return cast("tuple[Guard, ...]", guards)
