"""Client: keeps the snapshot current that evaluations answer from.

What it publishes, flagkit.answers reads: views, whole, by one assignment each.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self, Unpack

from flagkit.answers import Answers
from flagkit.changes import Change
from flagkit.core.bucketing import Clock
from flagkit.core.freshness import Freshness
from flagkit.errors import ClosedError, ConfigurationError, NotReadyError
from flagkit.forks import Stage, watch
from flagkit.interruptions import FAILURES_SUPPRESSED
from flagkit.mistakes import Mistakes
from flagkit.model import EVERYWHERE, encode
from flagkit.model.foreign import native
from flagkit.origin import Origin, first_view, origin_of
from flagkit.refresh import Refresher, Source, pace_for
from flagkit.settings import Options, settings_from
from flagkit.snapshot import Snapshot, SnapshotFile, flag_of
from flagkit.status import Status
from flagkit.subscriptions import Callback, Subscription, Subscriptions
from flagkit.unsealing import Unsealing
from flagkit.view import View

if TYPE_CHECKING:
    from flagkit.refresh_thread import Publish, RefreshThread

_log = logging.getLogger("flagkit")


class Client(Answers):
    """Answers for the flags of one environment, as one region sees them.

    The constructor neither connects nor waits; `start` begins to load and to watch, in one
    background thread, and `with` does both `start` and `close`. Until flags are there, and where
    they cannot answer, callers get their defaults. All methods may be called from any thread. After
    a fork, the child's client goes on by itself, with a thread and connections of its own.

    Args:
        uri: A MongoDB connection string of a replica set; or FLAGKIT_URI.
        **options: See flagkit.settings.Options.

    Raises:
        ConfigurationError: the URI or the environment is named nowhere, or an argument makes no
            sense.
        InvalidDocumentError: what is given as `bootstrap` is not valid.
    """

    __slots__ = (
        "_arrival",
        "_closed",
        "_freshness",
        "_listeners",
        "_origin",
        "_refresh",
        "_subscriptions",
        "_unsealing",
    )

    _refresh: "RefreshThread | None"
    _origin: Origin
    _listeners: "tuple[Publish, ...]"
    _subscriptions: Subscriptions

    def __init__(self, uri: str | None = None, **options: Unpack[Options]) -> None:
        self._set_up(origin_of(settings_from(uri, **options)))

    @classmethod
    def from_source(
        cls, open_source: Callable[[], Source] | None = None, file: SnapshotFile | None = None
    ) -> Self:
        """Return a client of any source, such as a simulated one; `start` opens it.

        Without one, the client answers callers' defaults until `follow` gives it one.
        """
        client = cls.__new__(cls)
        client._set_up(Origin(None if open_source is None else lambda: open_source, file))
        return client

    @classmethod
    def from_snapshot(
        cls, snapshot: Snapshot, now: Clock = time.time, unsealing: Unsealing | None = None
    ) -> Self:
        """Return a client that answers from one snapshot for ever, with no database and no thread.

        `now` gives the time of evaluations, in seconds since 1970 in UTC, `unsealing` opens what is
        sensitive.
        """
        client = cls.__new__(cls)
        client._set_up(Origin())
        client._publish_view(View(snapshot, now, client._freshness, unsealing))
        return client

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
        """
        refresh, view = self._refresh, self._view
        text: object = None
        wants_metadata = False
        with FAILURES_SUPPRESSED:
            text = native(key)
            wants_metadata = bool(metadata)
        if type(text) is not str:
            return None
        if wants_metadata and refresh is not None:
            return refresh.policy(text, timeout)
        with FAILURES_SUPPRESSED:
            record = None if view is None else view.snapshot.find(text)
            return None if record is None else encode(flag_of(record))
        return None

    @property
    def staleness(self) -> float:
        """Seconds since flags were known to be the database's; infinity if they never were.

        That is since the primary was asked, with an answer that has been caught up with.
        """
        return self._freshness.age

    def status(self) -> Status:
        """Return where this client stands. Never raises, and never waits."""
        snapshot, refresh = self.snapshot, self._refresh
        tip = None if snapshot is None else snapshot.tip
        return Status(
            environment="" if tip is None else tip.environment,
            region=EVERYWHERE if snapshot is None else snapshot.region,
            state=None if refresh is None else refresh.refresher.state,
            epoch="" if tip is None else tip.epoch,
            revision=0 if tip is None else tip.revision,
            head=None if refresh is None else refresh.head_revision,
            staleness=self.staleness,
            is_stale=self._freshness.is_stale,
            breakers={} if refresh is None else refresh.circuits,
            error=None if refresh is None or refresh.error is None else str(refresh.error),
            error_count=0 if refresh is None else refresh.error_count,
            counts=self.counts(),
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
            ClosedError: the client was closed.
        """
        with self._arrival:
            self._check_open()
            watch(self, Stage.STARTED)
            return self._subscriptions.add(key, callback)

    def on_publish(self, listener: "Publish") -> None:
        """Have flagkit's own rooms hear of each snapshot: in the refresh thread, which waits."""
        with self._arrival:
            self._listeners += (listener,)

    def start(self) -> Self:
        """Begin to load and to watch, in a background thread; nothing if that has begun already.

        Raises:
            ClosedError: the client was closed.
        """
        with self._arrival:
            self._check_open()
            if self._refresh is None:
                self._begin()
            self._subscriptions.start()
        return self

    def follow(self, origin: Origin) -> Self:
        """Start on another source; until its flags are there, callers get their defaults."""
        self.close()
        freshness = Freshness(origin.max_staleness)
        unsealing = Unsealing(origin.keys)
        view = first_view(origin, freshness, unsealing)
        with self._arrival:
            self._closed = False
            self._freshness = freshness
            self._unsealing = unsealing
            self._publish_view(view)
            self._origin = origin
            # Before any other revision can be told, and to who was told of what was before.
            self._subscriptions.start()
            if view is not None:
                self._inform(view.snapshot, None)
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
        # The thread that is gone may have been about to.
        self._publish_view(self._view)
        # First, for its lock may have been held, too, and the thread of refreshing takes it.
        self._subscriptions.go_on_after_fork(self.snapshot, starts=not self._closed)
        self._unsealing.go_on_after_fork()
        if self._refresh is not None:
            self._begin()

    def close(self, timeout: float = 5.0) -> None:
        """End the background threads, waiting at most `timeout` seconds for them.

        Evaluations go on answering from the last snapshot.
        """
        ends = time.monotonic() + timeout
        with self._arrival:
            self._closed = True
            refresh, self._refresh = self._refresh, None
            self._arrival.notify_all()
        if refresh is not None and not refresh.close(timeout):
            _log.warning("the refresh thread did not end within %s s; it is left behind", timeout)
        if not self._subscriptions.close(max(ends - time.monotonic(), 0)):
            _log.warning("a callback did not end within %s s; its thread is left behind", timeout)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _set_up(self, origin: Origin) -> None:
        self._counting = None
        self._mistakes = Mistakes()
        self._freshness = Freshness(origin.max_staleness)
        self._unsealing = Unsealing(origin.keys)
        self._publish_view(first_view(origin, self._freshness, self._unsealing))
        self._arrival = threading.Condition()
        self._origin = origin
        self._refresh = None
        self._closed = False
        self._subscriptions = Subscriptions(self.snapshot)
        self._listeners = (self._subscriptions.tell,)

    def _begin(self) -> None:
        if self._origin.opener is not None:
            # Deferred, as the driver is: a service that only imports flagkit pays for neither.
            from flagkit.refresh_thread import RefreshThread  # noqa: PLC0415

            open_source = self._origin.opener()
            self._unsealing.prepare()
            self._refresh = RefreshThread(
                open_source,
                self._publish,
                self._freshness,
                Refresher(
                    random.Random(),  # noqa: S311 - jitter, not secrets
                    self.snapshot if self._has_data else None,
                    pace_for(self._freshness.max_seconds),
                ),
                self._origin.file,
                self._origin.service,
                unsealing=self._unsealing,
            )
            watch(self, Stage.STARTED)

    def _publish(self, snapshot: Snapshot, changes: Sequence[Change] | None) -> None:
        watch(self, Stage.LOADED)
        view = self._view
        if view is None or changes is None or not self._has_data:
            if view is not None and self._has_data:
                _log.warning(
                    "revision %s was replaced by a new base at revision %s",
                    view.snapshot.tip.revision,
                    snapshot.tip.revision,
                )
            published = View(snapshot, time.time, self._freshness, self._unsealing)
        else:
            published = view.after(snapshot, changes)
        with self._arrival:
            self._publish_view(published)
            self._arrival.notify_all()
        self._inform(snapshot, changes)

    def _inform(self, snapshot: Snapshot, changes: Sequence[Change] | None) -> None:
        for listener in self._listeners:
            listener(snapshot, changes)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this client was closed: make a new one")

    @property
    def _has_data(self) -> bool:
        """Whether what is answered from is more than what it was told to begin with."""
        return self._view is not None and self.snapshot is not self._origin.bootstrap

    def _wait(self, arrived: Callable[[View], bool], timeout: float, problem: str) -> None:
        self.start()
        if not self._has_data and self._origin.opener is None:
            raise ConfigurationError(
                "nothing is configured: call flagkit.configure(uri, environment=...) first"
            )
        with self._arrival:
            self._arrival.wait_for(lambda: self._closed or self._has_arrived(arrived), timeout)
            refresh = self._refresh
        if not self._has_arrived(arrived):
            if self._closed:
                raise ClosedError("the client was closed while it was waited for")
            cause = refresh.error if refresh is not None else None
            raise NotReadyError(f"{problem} within {timeout} s" + (f": {cause}" if cause else ""))

    def _has_arrived(self, arrived: Callable[[View], bool]) -> bool:
        view = self._view
        return view is not None and self._has_data and self._unsealing.is_settled and arrived(view)
