"""Client: evaluates flags from a snapshot in memory, and keeps that snapshot current.

Reads take the published view once into a local, and lock nothing. Evaluation never raises and never
waits: where it cannot answer, it answers the caller's default.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from flagkit.changes import Change
from flagkit.core.bucketing import Clock
from flagkit.core.contexts import ContextLike, attributes_of
from flagkit.core.evaluation import ErrorCode, Evaluation, evaluation_of, failed
from flagkit.core.explanation import Explanation
from flagkit.errors import ClosedError, ConfigurationError, NotReadyError
from flagkit.forks import Stage, watch
from flagkit.model import encode
from flagkit.refresh import Source
from flagkit.settings import Settings, settings_from
from flagkit.snapshot import Snapshot, flag_of
from flagkit.view import View

if TYPE_CHECKING:
    from flagkit.refresh_thread import RefreshThread

_log = logging.getLogger("flagkit")

T = TypeVar("T")

_NOT_READY = failed(
    ErrorCode.PROVIDER_NOT_READY,
    "no flags have been loaded yet: flagkit.configure, then wait_ready",
)


class Client:
    """Answers for the flags of one environment, as one region sees them.

    The constructor neither connects nor waits; `start` begins to load and to watch, in one
    background thread, and `with` does both `start` and `close`. Until flags are there, and where
    they cannot answer, callers get their defaults. All methods may be called from any thread. After
    a fork, the child's client goes on by itself, with a thread and connections of its own.

    Each argument falls back on an environment variable: FLAGKIT_URI, FLAGKIT_ENVIRONMENT,
    FLAGKIT_REGION, FLAGKIT_DATABASE.

    Args:
        uri: A MongoDB connection string of a replica set.
        environment: Whose flags to serve.
        region: Whose overrides to apply; without one, the flags for all regions hold.
        database: Where flagkit's collections are; "flagkit" unless said otherwise.
    """

    __slots__ = ("__weakref__", "_arrival", "_closed", "_open_source", "_refresh", "_view")

    _refresh: "RefreshThread | None"
    _open_source: Callable[[], Source] | None
    _view: View | None

    def __init__(
        self,
        uri: str | None = None,
        *,
        environment: str | None = None,
        region: str | None = None,
        database: str | None = None,
    ) -> None:
        settings = settings_from(uri, environment=environment, region=region, database=database)
        self._set_up(source_opener(settings))

    @classmethod
    def from_source(cls, open_source: Callable[[], Source] | None = None) -> Self:
        """Return a client of any source, such as a simulated one; `start` opens it.

        Without one, the client answers callers' defaults until `follow` gives it one.
        """
        client = cls.__new__(cls)
        client._set_up(open_source)
        return client

    @classmethod
    def from_snapshot(cls, snapshot: Snapshot, now: Clock = time.time) -> Self:
        """Return a client that answers from one snapshot for ever, with no database and no thread.

        `now` gives the time of evaluations, in seconds since 1970 in UTC.
        """
        client = cls.__new__(cls)
        client._set_up(view=View(snapshot, now))
        return client

    def is_enabled(self, key: str, context: ContextLike = None, default: bool = False) -> bool:  # noqa: FBT001, FBT002 - as every peer has it
        """Return the value of a boolean flag, or `default` where there is none. Never raises."""
        try:
            switch = self._view.switches[key]  # type: ignore[union-attr] # pyright: ignore[reportOptionalMemberAccess]
            if switch is True or switch is False:
                return switch
            value = switch(context).value
        except Exception:  # noqa: BLE001 - not compiled yet, or a fault that `evaluate` names
            return self._is_enabled_first(key, context, default)
        return value if value is True or value is False else default

    @overload
    def value(self, key: str, context: ContextLike = None, *, default: None) -> Any: ...
    @overload
    def value(self, key: str, context: ContextLike = None, *, default: T) -> T: ...
    def value(self, key: str, context: ContextLike = None, *, default: Any) -> Any:
        """Return a flag's value, if it has the type of `default`, else `default`. Never raises.

        An integer serves where a float is asked for. With None as the default, any type does.
        Objects are the caller's own copies.
        """
        return self.evaluate(key, context, default).value

    @overload
    def evaluate(
        self, key: str, context: ContextLike = None, default: None = None
    ) -> Evaluation[Any]: ...
    @overload
    def evaluate(self, key: str, context: ContextLike, default: T) -> Evaluation[T]: ...
    @overload
    def evaluate(self, key: str, context: ContextLike = None, *, default: T) -> Evaluation[T]: ...
    def evaluate(
        self, key: str, context: ContextLike = None, default: Any = None
    ) -> Evaluation[Any]:
        """Return the value of a flag and why it has it; as `value` otherwise. Never raises."""
        view = self._view
        if view is None:
            return evaluation_of(key, _NOT_READY, default)
        return view.evaluate(key, context, default)

    def evaluate_all(
        self, context: ContextLike = None, prefix: str = ""
    ) -> dict[str, Evaluation[Any]]:
        """Return the evaluations of all flags whose keys begin with `prefix`, by key. Never raises.

        They are of one revision, as a front end needs to begin with. Values of flags that leave
        the answer to the caller are None. Empty before there are flags.
        """
        view = self._view
        if view is None:
            return {}
        return {key: view.evaluate(key, context, None) for key in view.snapshot.keys(prefix)}

    def explain(
        self,
        key: str,
        context: ContextLike = None,
        default: Any = None,
        *,
        redact: Collection[str] = (),
    ) -> Explanation:
        """Return an evaluation with all that led to it, as data and as text. Never raises.

        Args:
            key: The flag's key.
            context: Who asks.
            default: The caller's default.
            redact: Paths of attributes that are not to be shown, such as `email`.
        """
        view = self._view
        if view is None:
            evaluation = evaluation_of(key, _NOT_READY, default)
            return Explanation(evaluation=evaluation, time=datetime.now(UTC))
        return view.explain(key, context, default, redact)

    def policy(
        self, key: str, *, metadata: bool = False, timeout: float = 5.0
    ) -> dict[str, Any] | None:
        """Return the policy document that a flag is evaluated by, None if there is no such flag.

        It is the override of the client's region, if there is one, and the caller's own copy. With
        `metadata`, it is the newest in the database, with owner, description, tags and expires,
        and `timeout` seconds are waited for it at most; without, nothing is. A client of a
        snapshot alone has none.

        Raises:
            NotReadyError, StoreError: with metadata, the database did not answer.
        """
        refresh = self._refresh
        if metadata and refresh is not None:
            return refresh.policy(key, timeout)
        view = self._view
        record = None if view is None else view.snapshot.find(key)
        return None if record is None else encode(flag_of(record))

    def bind(self, context: ContextLike) -> "BoundClient":
        """Return this client with a context that need not be passed again. Never raises."""
        return BoundClient(self, context)

    @property
    def revision(self) -> int:
        """The revision that evaluations answer from, 0 before there is any."""
        view = self._view
        return view.snapshot.tip.revision if view is not None else 0

    @property
    def snapshot(self) -> Snapshot | None:
        """What evaluations answer from, None before there is any."""
        view = self._view
        return view.snapshot if view is not None else None

    def start(self) -> Self:
        """Begin to load and to watch, in a background thread; nothing if that has begun already.

        Raises:
            ClosedError: the client was closed.
        """
        with self._arrival:
            if self._closed:
                raise ClosedError("this client was closed: make a new one")
            if self._refresh is None:
                self._begin(None)
        return self

    def follow(self, open_source: Callable[[], Source]) -> Self:
        """Start on another source; until its flags are there, callers get their defaults."""
        self.close()
        with self._arrival:
            self._closed = False
            self._view = None
            self._open_source = open_source
        return self.start()

    def wait_ready(self, timeout: float = 10.0) -> None:
        """Wait until flags are there, starting the client if need be.

        Args:
            timeout: Seconds to wait at most.

        Raises:
            NotReadyError: none came in time; it says what was in the way.
            ConfigurationError: the default client was never configured.
        """
        self._wait(lambda _: True, timeout, "no flags were loaded")

    def wait_for(self, revision: int, timeout: float = 10.0) -> None:
        """Wait until evaluations answer from `revision` or a later one: read your own writes.

        Args:
            revision: As a writer's Commit has it.
            timeout: Seconds to wait at most.

        Raises:
            NotReadyError: it did not come in time.
        """
        self._wait(
            lambda view: view.snapshot.tip.revision >= revision,
            timeout,
            f"revision {revision} did not come",
        )

    def go_on_after_fork(self) -> None:
        """Replace what has not survived a fork: the thread, and a lock that it may have held.

        Called in the child, by itself; there is no need to.
        """
        self._arrival = threading.Condition()
        if self._refresh is not None:
            self._begin(self.snapshot)

    def close(self, timeout: float = 5.0) -> None:
        """End the background thread, waiting at most `timeout` seconds for it.

        Evaluations go on answering from the last snapshot.
        """
        with self._arrival:
            self._closed = True
            refresh, self._refresh = self._refresh, None
            self._arrival.notify_all()
        if refresh is not None and not refresh.close(timeout):
            _log.warning("the refresh thread did not end within %s s; it is left behind", timeout)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _set_up(
        self, open_source: Callable[[], Source] | None = None, view: View | None = None
    ) -> None:
        self._view = view
        self._arrival = threading.Condition()
        self._open_source = open_source
        self._refresh = None
        self._closed = False

    def _begin(self, snapshot: Snapshot | None) -> None:
        if self._open_source is not None:
            # Deferred, as the driver is: a service that only imports flagkit pays for neither.
            from flagkit.refresh_thread import RefreshThread  # noqa: PLC0415

            self._refresh = RefreshThread(self._open_source, self._publish, snapshot)
            watch(self, Stage.STARTED)

    def _is_enabled_first(self, key: str, context: ContextLike, default: bool) -> bool:  # noqa: FBT001
        view = self._view
        if view is not None:
            with contextlib.suppress(Exception):
                view.switch(key)
        return self.evaluate(key, context, default).value

    def _publish(self, snapshot: Snapshot, changes: Sequence[Change] | None) -> None:
        view = self._view
        if view is None or changes is None:
            watch(self, Stage.LOADED)
            if view is not None:
                _log.warning(
                    "revision %s was replaced by a new base at revision %s",
                    view.snapshot.tip.revision,
                    snapshot.tip.revision,
                )
            published = View(snapshot, time.time)
        else:
            published = view.after(snapshot, changes)
        with self._arrival:
            self._view = published
            self._arrival.notify_all()

    def _wait(self, arrived: Callable[[View], bool], timeout: float, problem: str) -> None:
        self.start()
        if self._view is None and self._open_source is None:
            raise ConfigurationError(
                "nothing is configured: call flagkit.configure(uri, environment=...) first"
            )
        with self._arrival:
            self._arrival.wait_for(
                lambda: self._closed or (self._view is not None and arrived(self._view)), timeout
            )
            view, refresh = self._view, self._refresh
        if view is None or not arrived(view):
            if self._closed:
                raise ClosedError("the client was closed while it was waited for")
            cause = refresh.error if refresh is not None else None
            raise NotReadyError(f"{problem} within {timeout} s" + (f": {cause}" if cause else ""))


def source_opener(settings: Settings) -> Callable[[], Source]:
    """Return what opens the MongoDB source that settings name; loads the driver."""
    # Deferred, for `import flagkit` loads no driver, yet not left to the refresh thread: a child
    # that is forked while another thread imports finds modules that are never finished.
    from flagkit.storage.source import MongoSource  # noqa: PLC0415

    def open_source() -> Source:
        return MongoSource(
            settings.uri,
            environment=settings.environment,
            region=settings.region,
            database=settings.database,
        )

    return open_source


class BoundClient:
    """A client and a context. Its methods are the client's, without the context."""

    __slots__ = ("_client", "_context")

    def __init__(self, client: Client, context: ContextLike) -> None:
        self._client = client
        self._context = context
        with contextlib.suppress(Exception):
            # Put together once. What is no context answers INVALID_CONTEXT when it is used.
            self._context = attributes_of(context)

    def is_enabled(self, key: str, default: bool = False) -> bool:  # noqa: FBT001, FBT002 - as Client
        """Return the value of a boolean flag, or `default` where there is none. Never raises."""
        return self._client.is_enabled(key, self._context, default)

    @overload
    def value(self, key: str, *, default: None) -> Any: ...
    @overload
    def value(self, key: str, *, default: T) -> T: ...
    def value(self, key: str, *, default: Any) -> Any:
        """Return a flag's value, if it has the type of `default`, else `default`. Never raises."""
        return self._client.value(key, self._context, default=default)

    @overload
    def evaluate(self, key: str, default: None = None) -> Evaluation[Any]: ...
    @overload
    def evaluate(self, key: str, default: T) -> Evaluation[T]: ...
    def evaluate(self, key: str, default: Any = None) -> Evaluation[Any]:
        """Return the value of a flag and why it has it. Never raises."""
        return self._client.evaluate(key, self._context, default)

    def explain(
        self, key: str, default: Any = None, *, redact: Collection[str] = ()
    ) -> Explanation:
        """Return an evaluation with all that led to it. Never raises."""
        return self._client.explain(key, self._context, default, redact=redact)
