"""`Client`: answers evaluations from memory and keeps its snapshot current.

An evaluation reads the published evaluator once into a local variable and takes no lock. It never
raises and never waits: where it cannot answer, it returns the caller's default.

`CountingClient` is a class of its own, so that clients that do not count have no test for it.
"""

import functools
import random
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, TypeVar, Unpack, overload

from msgspec import Struct

from flagkit._core.arguments import check_revision as as_revision
from flagkit._core.arguments import check_seconds, refuse_unknown_arguments
from flagkit._core.background import Log, call_safely, check_threads_are_real, format_error
from flagkit._core.evaluation.bucketing import Clock
from flagkit._core.evaluation.compiler import BooleanFn, return_default
from flagkit._core.evaluation.context import ContextLike, get_attributes
from flagkit._core.evaluation.evaluator import Evaluator, Staleness, UnattendedEvaluator
from flagkit._core.evaluation.explanation import Explanation, explain_flag
from flagkit._core.evaluation.result import (
    ErrorCode,
    Evaluation,
    build_error_outcome,
    build_evaluation,
)
from flagkit._core.interruptions import FAILURES_SUPPRESSED, is_interruption
from flagkit._core.model import EVERYWHERE, encode
from flagkit._core.model.changes import Change
from flagkit._core.model.foreign import to_native
from flagkit._core.secrets import VariantDecrypter
from flagkit._core.snapshot import Snapshot, SnapshotFile, unpack_flag
from flagkit._core.source import Source
from flagkit.client.counters import Counters, Counts
from flagkit.client.fork import Stage, keep_alive, register_fork_handler
from flagkit.client.mistakes import MistakeLog
from flagkit.client.refresher import BreakerState, Refresher, RefreshState, build_intervals
from flagkit.client.sources import FlagSource, build_flag_source, load_first_evaluator
from flagkit.client.subscriptions import Callback, Subscription, Subscriptions
from flagkit.config import Options, Settings, resolve_settings
from flagkit.errors import ClosedError, ConfigurationError, InvalidArgumentError, NotReadyError

T = TypeVar("T")

_MISTAKES: Final = frozenset(
    {
        ErrorCode.FLAG_NOT_FOUND,
        ErrorCode.TYPE_MISMATCH,
        ErrorCode.TARGETING_KEY_MISSING,
        ErrorCode.INVALID_CONTEXT,
        ErrorCode.GENERAL,
    }
)
"""The errors that callers make. A flag that is broken was logged when it was compiled."""
_NOT_READY = build_error_outcome(
    ErrorCode.PROVIDER_NOT_READY,
    "no flags have been loaded yet: flagkit.configure, then wait_ready",
)


class BoundClient:
    """A client and a context. Its methods are the client's, without the context."""

    __slots__ = ("_client", "_context")

    def __init__(self, client: "Client", context: ContextLike) -> None:
        self._client = client
        self._context = context
        with FAILURES_SUPPRESSED:
            # Put together once. What is no context answers INVALID_CONTEXT when it is used.
            self._context = get_attributes(context)

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
    def evaluate(
        self, key: str, default: None = None, *, max_staleness: float | None = None
    ) -> Evaluation[Any]: ...
    @overload
    def evaluate(
        self, key: str, default: T, *, max_staleness: float | None = None
    ) -> Evaluation[T]: ...
    def evaluate(
        self, key: str, default: Any = None, *, max_staleness: float | None = None
    ) -> Evaluation[Any]:
        """Return the value of a flag and why it has it. Never raises."""
        return self._client.evaluate(key, self._context, default, max_staleness=max_staleness)

    def evaluate_all(self, prefix: str = "") -> dict[str, Evaluation[Any]]:
        """Return the evaluations of all flags whose keys begin with `prefix`. Never raises."""
        return self._client.evaluate_all(self._context, prefix)

    def explain(
        self, key: str, default: Any = None, *, redact: Collection[str] = ()
    ) -> Explanation:
        """Return an evaluation with all that led to it. Never raises."""
        return self._client.explain(key, self._context, default, redact=redact)


class Status(Struct, frozen=True, kw_only=True):
    """The state of a client at a moment.

    Attributes:
        environment: Whose flags it serves; empty before any are there.
        region: Whose overrides it applies; "*" for none.
        state: What its refresher does; None of a client that has none, or is not started. A client
            whose thread is not running is backing off: it starts the thread again after a pause.
        epoch: The history that it follows.
        revision: The revision that it answers from; 0 before there is any.
        head: The newest revision that the primary told; None if it has not.
        staleness: Seconds since it was known to be current; infinity if it never was.
        is_stale: Whether that is more than `max_staleness`.
        breakers: What its ways to the database let through: to near members, to the primary, and
            the question for the head.
        error: What keeps it from being current, in words without secrets.
        error_count: How often something did, since it was started, or its process forked.
        troubles: What is in the way of other background work, by its name: `keeping` the snapshot
            file, `registering`, fetching `keys`, telling callbacks of `changes`. The
            client serves current flags all the same.
        counts: Of a client that counts.
        file: What keeps the snapshot file from being served or written; None while nothing does.
    """

    environment: str
    region: str
    state: RefreshState | None
    epoch: str
    revision: int
    head: int | None
    staleness: float
    is_stale: bool
    breakers: Mapping[str, BreakerState]
    error: str | None
    error_count: int
    troubles: Mapping[str, str]
    counts: Counts | None
    file: str | None = None


if TYPE_CHECKING:
    from flagkit.client.refresh_thread import Publish, RefreshThread

_log = Log("flagkit")

EQUAL_CLIENTS_MAX: Final = 4
"""More clients of equal settings in one process are a mistake, such as one for each request."""

CLOSE_SECONDS: Final = 5.0
"""How long a client waits for its own threads to end, unless the caller says otherwise."""
START_AGAIN_SECONDS: Final = 1.0
"""So long a client waits before it tries again to make its thread."""


class Client:
    """Answers for the flags of one environment, as one region sees them.

    The constructor neither connects nor waits; `start` begins to load and to watch, in one
    background thread, and `with` does both `start` and `close`. Until flags are there, and where
    they cannot answer, callers get their defaults. All methods may be called from any thread. After
    a fork, the child's client goes on by itself, with a thread and connections of its own.

    Args:
        uri: A MongoDB connection string of a replica set; or FLAGKIT_URI.
        **options: See flagkit.config.Options.

    Raises:
        ConfigurationError: the URI or the environment is named nowhere, or an argument makes no
            sense.
        InvalidDocumentError: what is given as `bootstrap` is not valid.
    """

    __slots__ = (
        "__weakref__",
        "_arrival",
        "_boolean_functions",
        "_closed",
        "_counting",
        "_decrypter",
        "_evaluator",
        "_generation",
        "_listeners",
        "_mistakes",
        "_refresh",
        "_should_run",
        "_source",
        "_staleness",
        "_start_after",
        "_subscriptions",
        "_trouble",
    )

    _counting: Counters | None
    _mistakes: MistakeLog
    _evaluator: Evaluator | None
    _boolean_functions: dict[str, bool | BooleanFn]
    _refresh: "RefreshThread | None"
    _source: FlagSource
    _listeners: "tuple[Publish, ...]"
    _subscriptions: Subscriptions

    @refuse_unknown_arguments
    def __init__(self, uri: str | None = None, **options: Unpack[Options]) -> None:
        self._set_up(build_flag_source(resolve_settings(uri, **options)))

    @classmethod
    def from_source(
        cls, open_source: Callable[[], Source] | None = None, file: SnapshotFile | None = None
    ) -> Self:
        """Return a client of any source, such as a simulated one; `start` opens it.

        Without one, the client answers callers' defaults until `follow` gives it one.
        """
        client = cls.__new__(cls)
        client._set_up(FlagSource(None if open_source is None else lambda: open_source, file))
        return client

    @classmethod
    def from_snapshot(
        cls, snapshot: Snapshot, clock: Clock = time.time, decrypter: VariantDecrypter | None = None
    ) -> Self:
        """Return a client that answers from one snapshot for ever, with no database and no thread.

        `clock` gives the time of evaluations, in seconds since 1970 in UTC, `decrypter` opens what
        is sensitive.
        """
        client = cls.__new__(cls)
        client._set_up(FlagSource())
        client._publish_evaluator(Evaluator(snapshot, clock, client._staleness, decrypter))
        return client

    def is_enabled(self, key: str, context: ContextLike = None, default: bool = False) -> bool:  # noqa: FBT001, FBT002 - as every peer has it
        """Return the value of a boolean flag, or `default` where there is none. Never raises."""
        try:
            switch = self._boolean_functions[key]
            if switch is True or switch is False:
                return switch
            return switch(context, default)
        except Exception as error:  # noqa: BLE001 - not compiled yet, or what a caller passed misbehaves
            return self._evaluate_uncompiled(key, context, default, error)

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
        self,
        key: str,
        context: ContextLike = None,
        default: None = None,
        *,
        max_staleness: float | None = None,
    ) -> Evaluation[Any]: ...
    @overload
    def evaluate(
        self, key: str, context: ContextLike, default: T, *, max_staleness: float | None = None
    ) -> Evaluation[T]: ...
    @overload
    def evaluate(
        self,
        key: str,
        context: ContextLike = None,
        *,
        default: T,
        max_staleness: float | None = None,
    ) -> Evaluation[T]: ...
    def evaluate(
        self,
        key: str,
        context: ContextLike = None,
        default: Any = None,
        *,
        max_staleness: float | None = None,
    ) -> Evaluation[Any]:
        """Return a flag's value, as `value` does, and the reason for it. Never raises.

            client.evaluate("shop.search", "user-1", default=False).reason

        If the snapshot is older than `max_staleness` seconds, the reason is STALE, and a flag with
        `when_stale: off` serves `off`. Its prerequisites still use the client's own limit.
        """
        view = self._evaluator
        if self._counting is not None:
            self._counting.count_evaluation(hit=view is not None and view.has_compiled(key))
        if view is None:
            self._ensure_running()
            return build_evaluation(key, _NOT_READY, default)
        evaluation = view.evaluate(key, context, default, max_staleness)
        if evaluation.error_code is not None and evaluation.error_code in _MISTAKES:
            self._mistakes.log(evaluation.error_code, key, evaluation.error_message)
        return evaluation

    def evaluate_all(
        self, context: ContextLike = None, prefix: str = ""
    ) -> dict[str, Evaluation[Any]]:
        """Return the evaluations of all flags whose keys begin with `prefix`, by key. Never raises.

        All are of one revision, as a front end needs them at its start. The value is None if a flag
        leaves the answer to the caller. Flags that serve a secret are left out, because no front
        end may have it. The result is empty before there are flags, or if the prefix is no string.
        """
        view = self._evaluator
        if view is None:
            return {}
        keys = self._list_keys(view, prefix)
        if self._counting is not None:
            for key in keys:
                self._counting.count_evaluation(hit=view.has_compiled(key))
        return view.evaluate_all(keys, context)

    def keys(self, prefix: str = "") -> list[str]:
        """Return the keys of all flags that begin with `prefix`, ascending. Never raises.

        No flag is decoded. The list is empty before there are flags, or if the prefix is no string.
        """
        view = self._evaluator
        return [] if view is None else self._list_keys(view, prefix)

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
        view = self._evaluator
        if view is None:
            evaluation = build_evaluation(key, _NOT_READY, default)
            return Explanation(evaluation=evaluation, time=datetime.now(UTC))
        return explain_flag(view, key, context, default, redact)

    def counts(self) -> Counts | None:
        """Return how often flags were asked, None of a client that does not count. Never raises."""
        return self._counting.read() if self._counting is not None else None

    def bind(self, context: ContextLike) -> BoundClient:
        """Return this client with a context that need not be passed again. Never raises."""
        return BoundClient(self, context)

    @property
    def revision(self) -> int:
        """The revision that evaluations answer from, 0 before there is any."""
        view = self._evaluator
        return view.snapshot.tip.revision if view is not None else 0

    @property
    def snapshot(self) -> Snapshot | None:
        """The snapshot that evaluations answer from; None before the first one."""
        view = self._evaluator
        return view.snapshot if view is not None else None

    @property
    def evaluator(self) -> Evaluator | None:
        """The published evaluator for flagkit's own modules; None before there are flags."""
        return self._evaluator

    def policy(
        self, key: str, *, metadata: bool = False, timeout: float = 5.0
    ) -> dict[str, Any] | None:
        """Return the policy document that a flag is evaluated by, None if there is no such flag.

        It is the override of the client's region, if there is one, and the caller's own copy. With
        `metadata`, it is the newest in the database, with owner, description, tags and expires,
        and `timeout` seconds are waited for it at most. A client of a snapshot alone has none.
        Without `metadata` this never raises and never waits: a document that cannot be read, and a
        key that is no string, are no policy.

        Raises:
            NotReadyError, StoreError: with metadata, the database did not answer.
            InvalidArgumentError: with metadata, the timeout is no number.
        """
        text: object = None
        wants_metadata = False
        with FAILURES_SUPPRESSED:
            text = to_native(key)
            wants_metadata = bool(metadata)
        if type(text) is not str:
            return None
        ends: float | None = None
        while wants_metadata and (refresh := self._refresh) is not None:
            ends = time.monotonic() + check_seconds(timeout) if ends is None else ends
            try:
                return refresh.read_policy(text, max(ends - time.monotonic(), 0))
            except ClosedError:
                # Another thread may have moved the client to another source meanwhile.
                if self._closed or self._refresh is refresh:
                    raise
        view = self._evaluator
        with FAILURES_SUPPRESSED:
            record = None if view is None else view.snapshot.find(text)
            return None if record is None else encode(unpack_flag(record))
        return None

    @property
    def staleness(self) -> float:
        """Seconds since flags were known to be the database's; infinity if they never were.

        That is since the primary was asked, with an answer that has been caught up with.
        """
        return self._staleness.age

    def status(self) -> Status:
        """Return where this client stands. Never raises, and never waits.

        Threads that are not running are started again, where they should be running.
        """
        self._ensure_running()
        snapshot, refresh = self.snapshot, self._refresh
        error = self._trouble if refresh is None else refresh.error
        troubles = {} if refresh is None else refresh.troubles
        if (trouble := self._subscriptions.trouble) is not None:
            troubles["changes"] = trouble
        tip = None if snapshot is None else snapshot.tip
        return Status(
            environment="" if tip is None else tip.environment,
            region=EVERYWHERE if snapshot is None else snapshot.region,
            state=self._state,
            epoch="" if tip is None else tip.epoch,
            revision=0 if tip is None else tip.revision,
            head=None if refresh is None else refresh.head_revision,
            staleness=self.staleness,
            is_stale=self._staleness.is_stale,
            breakers={} if refresh is None else refresh.breaker_states,
            error=None if error is None else format_error(error),
            error_count=0 if refresh is None else refresh.error_count,
            troubles=troubles,
            counts=self.counts(),
            file=None if self._source.file is None else self._source.file.trouble,
        )

    def on_change(self, key: str, callback: Callback) -> Subscription:
        """Have a callback called whenever a flag may answer differently than before.

        That is if it was edited, or something that it rests on, by prerequisites or segments. All
        callbacks of a client share a thread of their own; changes that come meanwhile are told as
        one. What they raise is logged, once. Not told is what the clock changes: see `valid_until`
        of evaluations.

        Args:
            key: A flag's key; or "checkout." for all flags of that namespace, "" for all flags.
            callback: Takes a FlagChange, of a revision that evaluations answer from by then.

        Returns:
            What ends it by `close`, or as a context manager. Else it ends with the client.

        Raises:
            InvalidDocumentError: no flag can have such a key.
            InvalidArgumentError: the callback is a coroutine function, which nobody would await,
                or cannot be called.
            ClosedError: the client was closed.
            ConfigurationError: gevent or eventlet has replaced Python's threads.
        """
        if self._source.load_opener is not None:
            check_threads_are_real()
        with self._arrival:
            self._check_open()
            register_fork_handler(self, Stage.STARTED)
            subscription = self._subscriptions.add(key, callback)
        self._ensure_running()
        return subscription

    def on_publish(self, listener: "Publish") -> None:
        """Call a listener of flagkit's own modules with each snapshot. The refresh thread waits."""
        with self._arrival:
            self._listeners += (_wrap_listener(listener),)

    def start(self) -> Self:
        """Begin to load and to watch, in a background thread; nothing if that has begun already.

        Raises:
            ClosedError: the client was closed.
            ConfigurationError: gevent or eventlet has replaced Python's threads.
        """
        with self._arrival:
            self._check_open()
            if self._refresh is None:
                self._start_refresh()
            self._should_run = self._refresh is not None
            self._subscriptions.start()
        self._ensure_running()
        return self

    def follow(self, source: FlagSource) -> Self:
        """Start on another source. Until it has flags, callers get their defaults.

        The client stays open meanwhile: other threads may evaluate, wait and subscribe. It does
        nothing but start the client if the client follows a source of equal settings already.

        Raises:
            MissingExtraError: what the source takes is not installed; the client stays as it was.
        """
        freshness = Staleness(source.max_staleness)
        decrypter = VariantDecrypter(source.create_keys)
        view = load_first_evaluator(source, freshness, decrypter)
        if source.load_opener is not None:
            # All that can fail comes before anything is changed.
            check_threads_are_real()
            source.load_opener()
            decrypter.prepare()
        with self._arrival:
            if source.settings is not None and self._has_settings(source.settings):
                self._closed = False
                return self.start()
            left, self._refresh = self._refresh, None
            self._closed = False
            # From here on, the thread that is left publishes nothing more.
            self._generation = object()
            self._staleness = freshness
            self._decrypter = decrypter
            self._publish_evaluator(view)
            self._source = source
            # Before any other revision can be told, and to who was told of what was before.
            self._subscriptions.start()
            if view is not None:
                self._notify_listeners(view.snapshot, None)
            try:
                self._start_refresh()
            finally:
                self._should_run = self._refresh is not None
                self._replace_evaluator()
                # Those who wait look at the new source from now on.
                self._arrival.notify_all()
        _close_thread(left, CLOSE_SECONDS)
        return self

    def follow_settings(self, settings: Settings) -> Self:
        """Start on what settings name, unless the client follows equal settings already.

        Raises:
            ConfigurationError, InvalidDocumentError, MissingExtraError: the settings make no
                sense; the client stays as it was.
        """
        with self._arrival:
            if self._has_settings(settings):
                self._closed = False
                return self.start()
        return self.follow(build_flag_source(settings))

    def wait_ready(self, timeout: float = 10.0) -> None:
        """Wait until flags are there, starting the client if need be.

        Args:
            timeout: Seconds to wait at most.

        Raises:
            NotReadyError: none came in time; it says what was in the way.
            ConfigurationError: the default client was never configured.
            InvalidArgumentError: the timeout is no number.
        """
        self._wait(lambda _: True, timeout, "no flags were loaded")

    def wait_for(self, revision: int, timeout: float = 10.0) -> None:
        """Wait until evaluations answer from `revision` or a later one: read your own writes.

        Args:
            revision: As a writer's Commit has it.
            timeout: Seconds to wait at most.

        Raises:
            NotReadyError: it did not come in time.
            InvalidArgumentError: an argument is of another type.
        """
        wanted = as_revision(revision)
        self._wait(
            lambda view: view.snapshot.tip.revision >= wanted,
            timeout,
            f"revision {wanted} did not come",
        )

    def after_fork_in_child(self) -> None:
        """Replace what has not survived a fork: the thread, and a lock that it may have held.

        Called in the child, by itself; there is no need to.
        """
        self._arrival = threading.Condition()
        # First, for the child must not take the parent's thread for its own, whatever fails below.
        refresh, self._refresh = self._refresh, None
        if refresh is not None:
            keep_alive(refresh)
            refresh.release_snapshot()
        self._trouble, self._start_after = None, 0.0
        for renew in (
            # The thread that is gone may have been about to.
            lambda: self._publish_evaluator(self._evaluator),
            # Before the refresh thread, which takes its lock. That may have been held, too.
            lambda: self._subscriptions.after_fork_in_child(self.snapshot, starts=not self._closed),
            self._decrypter.after_fork_in_child,
        ):
            self._trouble = call_safely(renew) or self._trouble
        self._ensure_running()

    def close(self, timeout: float = CLOSE_SECONDS) -> None:
        """End the background threads, waiting at most `timeout` seconds for them.

        Evaluations go on answering from the last snapshot.
        """
        timeout = check_seconds(timeout)
        ends = time.monotonic() + timeout
        with self._arrival:
            self._closed = True
            _settings_by_client.pop(id(self), None)
            self._should_run = False
            self._replace_evaluator()
            refresh, self._refresh = self._refresh, None
            self._arrival.notify_all()
        _close_thread(refresh, timeout)
        if not self._subscriptions.close(max(ends - time.monotonic(), 0)):
            _log.warning("a callback did not end within %s s; its thread is left behind", timeout)

    def __reduce_ex__(self, _: object) -> NoReturn:
        raise InvalidArgumentError(
            f"a {type(self).__name__} cannot be copied, or sent to another process: it has a thread"
            " and connections of its own. Share the one that is there; in another process, make one"
            " from the same settings"
        )

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _set_up(self, source: FlagSource) -> None:
        self._counting = None
        self._mistakes = MistakeLog()
        self._staleness = Staleness(source.max_staleness)
        self._decrypter = VariantDecrypter(source.create_keys)
        self._publish_evaluator(load_first_evaluator(source, self._staleness, self._decrypter))
        self._arrival = threading.Condition()
        self._source = source
        self._refresh = None
        self._generation = object()
        self._closed = False
        self._should_run = False
        self._trouble = None
        self._start_after = 0.0
        self._subscriptions = Subscriptions(self.snapshot, self._ensure_running)
        self._listeners = (_wrap_listener(self._subscriptions.notify),)

    def _start_refresh(self) -> None:
        """Start a refresh thread for the source; the thread before it publishes nothing more."""
        turn = self._generation = object()
        if self._source.load_opener is None:
            self._refresh = None
            return
        # Before asyncio is imported, which lacks modules that eventlet removes.
        check_threads_are_real()
        # Deferred, as the driver is: a service that only imports flagkit pays for neither.
        from flagkit.client.refresh_thread import RefreshThread  # noqa: PLC0415

        open_source = self._source.load_opener()
        self._decrypter.prepare()
        self._refresh = RefreshThread(
            open_source,
            functools.partial(self._publish, turn),
            self._staleness,
            Refresher(
                random.Random(),  # noqa: S311 - jitter, not secrets
                self.snapshot if self._has_data else None,
                build_intervals(self._staleness.max_seconds),
            ),
            self._source.file,
            self._source.service,
            decrypter=self._decrypter,
        )
        self._trouble = None
        self._refresh.start()
        register_fork_handler(self, Stage.STARTED)
        _check_client_count(self, self._source.settings)

    def _publish_evaluator(self, evaluator: Evaluator | None) -> None:
        """Answer evaluations from an evaluator from now on.

        One assignment of `_evaluator` switches the revision. `_boolean_functions` is a short cut to
        its flags. It is empty during the switch, so no evaluation mixes two revisions.
        """
        self._boolean_functions = {}
        self._evaluator = evaluator
        if evaluator is not None:
            self._boolean_functions = evaluator.boolean_fns

    def _evaluate_uncompiled(
        self,
        key: str,
        context: ContextLike,
        default: bool,  # noqa: FBT001 - as `is_enabled`
        error: Exception,
    ) -> bool:
        """Return the answer of `is_enabled` after its short cut raised an error. Never raises."""
        # The error of a flag that is not compiled yet has the frame of `is_enabled` alone.
        trace = error.__traceback__
        if trace is not None and trace.tb_next is not None and is_interruption(error):
            raise error
        view = self._evaluator
        if self._counting is not None and (view is None or not view.has_boolean_fn(key)):
            self._counting.count_miss()
        if view is None:
            self._ensure_running()
            return default
        with FAILURES_SUPPRESSED:
            switch = view.get_boolean_fn(key)
            if isinstance(switch, bool):
                return switch
            if switch is not return_default:
                return switch(context, default)
        return self._evaluate_boolean(view, key, context, default)

    def _evaluate_boolean(
        self,
        evaluator: Evaluator,
        key: str,
        context: ContextLike,
        default: bool,  # noqa: FBT001 - as `is_enabled`
    ) -> bool:
        """Return the answer of `is_enabled` if a boolean function has none, and log why."""
        evaluation = evaluator.evaluate(key, context, None)
        code, problem = evaluation.error_code, evaluation.error_message
        if code is None and evaluation.variant is not None:
            if isinstance(evaluation.value, bool):
                return evaluation.value
            code, problem = ErrorCode.TYPE_MISMATCH, f"{key!r} is no boolean flag"
        if code is not None and code in _MISTAKES:
            self._mistakes.log(code, key, problem)
        if code is ErrorCode.TARGETING_KEY_MISSING:
            # Many callers have none, and each would come here.
            with FAILURES_SUPPRESSED:
                evaluator.silence(key)
        return default

    def _list_keys(self, evaluator: Evaluator, prefix: object) -> list[str]:
        found: list[str] = []
        with FAILURES_SUPPRESSED:
            text = to_native(prefix)
            if type(text) is str:
                return evaluator.snapshot.list_keys(text)
            problem = f"the prefix is no string, but has the type {type(prefix).__name__}"
            self._mistakes.log("INVALID_PREFIX", "", problem)
        return found

    def _ensure_running(self) -> None:
        """Start threads that should be running and are not. Never raises, and never waits.

        Called wherever a client without them is still called. An evaluator that asks for it stands
        in for the client's evaluator meanwhile.
        """
        if not self._should_run or not self._arrival.acquire(blocking=False):
            return
        try:
            if self._refresh is not None:
                self._refresh.start()
            elif time.monotonic() >= self._start_after:
                error = call_safely(self._start_refresh)
                if error is not None:
                    self._start_after = time.monotonic() + START_AGAIN_SECONDS
                    if self._trouble is None or format_error(self._trouble) != format_error(error):
                        _log.warning("not current: %s", format_error(error), exc_info=error)
                    self._trouble = error
            self._replace_evaluator()
        finally:
            self._arrival.release()
        self._subscriptions.ensure_running()

    def _replace_evaluator(self) -> None:
        """Publish an evaluator that asks for the threads while they do not run, and then none."""
        view = self._evaluator
        if view is None:
            return
        if self._should_run and (self._refresh is None or not self._refresh.is_running):
            if not isinstance(view, UnattendedEvaluator):
                self._publish_evaluator(UnattendedEvaluator(view, self._ensure_running))
        elif isinstance(view, UnattendedEvaluator):
            self._publish_evaluator(view.evaluator)

    @property
    def _state(self) -> RefreshState | None:
        refresh = self._refresh
        if refresh is not None and refresh.is_running:
            return refresh.refresher.state
        return RefreshState.BACKING_OFF if self._should_run else None

    def _publish(
        self, generation: object, snapshot: Snapshot, changes: Sequence[Change] | None
    ) -> None:
        register_fork_handler(self, Stage.LOADED)
        view, has_data = self._evaluator, self._has_data
        if view is None or changes is None or not has_data:
            if view is not None and has_data and generation is self._generation:
                _log.warning(
                    "revision %s was replaced by a new base at revision %s",
                    view.snapshot.tip.revision,
                    snapshot.tip.revision,
                )
            published = Evaluator(snapshot, time.time, self._staleness, self._decrypter)
        else:
            published = view.advance(snapshot, changes)
        with self._arrival:
            if generation is not self._generation:
                # The client has moved to another source meanwhile.
                return
            self._publish_evaluator(published)
            self._arrival.notify_all()
            # Within the lock: nobody is told of this source's flags after those of the next one.
            self._subscriptions.notify(snapshot, changes)
        for listener in self._listeners:
            listener(snapshot, changes)

    def _notify_listeners(self, snapshot: Snapshot, changes: Sequence[Change] | None) -> None:
        self._subscriptions.notify(snapshot, changes)
        for listener in self._listeners:
            listener(snapshot, changes)

    def _has_settings(self, settings: Settings) -> bool:
        return self._source.settings == settings

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this client was closed: make a new one")

    @property
    def _has_data(self) -> bool:
        """True once the client answers from more than its bootstrap."""
        return self._evaluator is not None and self.snapshot is not self._source.bootstrap

    def _wait(self, is_reached: Callable[[Evaluator], bool], timeout: float, problem: str) -> None:
        timeout = check_seconds(timeout)
        self.start()
        if not self._has_data and self._source.load_opener is None:
            raise ConfigurationError(
                "nothing is configured: call flagkit.configure(uri, environment=...) first"
            )
        ends = time.monotonic() + timeout
        has_come = False
        while not self._closed:
            with self._arrival:
                # Within the lock, for another thread may move the client to another source.
                has_come = self._arrival.wait_for(
                    lambda: self._closed or self._has_reached(is_reached),
                    max(min(ends - time.monotonic(), START_AGAIN_SECONDS), 0),
                )
                has_come = has_come and self._has_reached(is_reached)
            if has_come or time.monotonic() >= ends:
                break
            self._ensure_running()
        refresh = self._refresh
        if not has_come:
            if self._closed:
                raise ClosedError("the client was closed while it was waited for")
            cause: object = self._trouble if refresh is None else refresh.error
            if not cause and not self._has_data:
                cause = "the database has not answered yet: wait longer, or check the uri"
            raise NotReadyError(f"{problem} within {timeout} s" + (f": {cause}" if cause else ""))

    def _has_reached(self, is_reached: Callable[[Evaluator], bool]) -> bool:
        view = self._evaluator
        return (
            view is not None and self._has_data and self._decrypter.is_settled and is_reached(view)
        )


def _close_thread(refresh: "RefreshThread | None", timeout: float) -> None:
    """End a refresh thread, waiting at most `timeout` seconds for it."""
    if refresh is not None and not refresh.close(timeout):
        _log.warning("the refresh thread did not end within %s s; it is left behind", timeout)


# The settings of the clients that have a thread, by the client's id.
_settings_by_client: dict[int, Settings] = {}
# The client that was one too many, by the word "first": one step, whichever thread is first.
_too_many: dict[str, int] = {}


def _check_client_count(client: Client, settings: Settings | None) -> None:
    """Log once for the process that it has many clients of equal settings."""
    if settings is None or _too_many:
        return
    _settings_by_client[id(client)] = settings
    count = [*_settings_by_client.values()].count(settings)
    if count > EQUAL_CLIENTS_MAX and _too_many.setdefault("first", id(client)) == id(client):
        _log.warning(
            "%s clients of equal settings are open in this process, of the environment %s. Each has"
            " a thread and connections of its own. Make one client when the process starts and"
            " share it, by flagkit.configure for instance; close every client that you make. This"
            " is not logged again",
            count,
            settings.environment,
        )


def _wrap_listener(listener: "Publish") -> "Publish":
    """Return a listener that raises nothing: a meter's code is the host's. It is logged once."""
    has_failed = False

    def notify(snapshot: Snapshot, changes: Sequence[Change] | None) -> None:
        nonlocal has_failed
        error = call_safely(listener, snapshot, changes)
        if error is not None and not has_failed:
            has_failed = _log.warning(
                "a listener for new snapshots raised %s; that it does is not said again",
                format_error(error),
                exc_info=error,
            )

    return notify


class CountingClient(Client):
    """A client that counts: `counts` tells how often flags were asked, and how long it takes.

    Arguments and methods are those of Client. A child that was forked counts from its own zero.
    """

    __slots__ = ("_ticks",)

    _ticks: Iterator[None]

    def is_enabled(self, key: str, context: ContextLike = None, default: bool = False) -> bool:  # noqa: FBT001, FBT002 - as every peer has it
        """Return the value of a boolean flag, or `default` where there is none. Never raises."""
        try:
            # One step of an iterator counts a check; a call to do so would cost twice as much.
            for _ in self._ticks:
                break
            else:
                return self._evaluate_timed(key, context, default)
            switch = self._boolean_functions[key]
            if switch is True or switch is False:
                return switch
            return switch(context, default)
        except Exception as error:  # noqa: BLE001 - not compiled yet, or what a caller passed misbehaves
            return self._evaluate_uncompiled(key, context, default, error)

    def counts(self) -> Counts:
        """Return how often flags were asked. Never raises."""
        return self._get_counters().read()

    def after_fork_in_child(self) -> None:
        """Replace what has not survived a fork, and count anew."""
        self._reset_counters()
        super().after_fork_in_child()

    def _set_up(self, source: FlagSource) -> None:
        super()._set_up(source)
        self._reset_counters()
        # Not only once it is started: a client of a snapshot is not, and counts.
        register_fork_handler(self, Stage.STARTED)

    def _get_counters(self) -> Counters:
        assert self._counting is not None, "it is what makes a client one that counts"
        return self._counting

    def _reset_counters(self) -> None:
        self._counting = Counters()
        self._ticks = self._counting.batch.ticks

    def _evaluate_timed(self, key: str, context: ContextLike, default: bool) -> bool:  # noqa: FBT001 - as `is_enabled`
        counting = self._get_counters()
        # Perhaps older ticks than another thread has put here: they have ended, and lead here.
        self._ticks = counting.start_batch()
        began = time.perf_counter_ns()
        enabled = Client.is_enabled(self, key, context, default)
        counting.record_latency(time.perf_counter_ns() - began)
        return enabled
