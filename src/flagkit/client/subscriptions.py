"""`on_change`: callbacks that hear which flags may answer differently, on a thread of their own.

An evaluator knows the dependencies of the flags that it compiled. A subscriber may not have
evaluated anything yet, so this module keeps the dependencies of all flags.

The refresher only stores the newest snapshot. The callback thread compares it with the snapshot of
the last notification. A slow callback therefore receives several changes together, always in order,
and never has more changes waiting than there are flags.
"""

import contextlib
import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Any, Final, Self, TypeAlias, TypeVar

from flagkit._core.background import BackgroundThread, Log, LogOnce
from flagkit._core.model import EVERYWHERE, encode, packing
from flagkit._core.model.changes import SEGMENTS, Change, PolicyId
from flagkit._core.model.flags import collect_flag_segments
from flagkit._core.model.keys import check_key
from flagkit._core.snapshot import Record, Snapshot, list_snapshot_regions, unpack_flag
from flagkit.errors import InvalidArgumentError, InvalidDocumentError


class DependencyGraph:
    """The references of flags that are followed. A flag stands for its key in all regions."""

    def __init__(self) -> None:
        # Only of flags that have any: most have none.
        self._references: dict[str, frozenset[PolicyId]] = {}
        self._dependents: dict[PolicyId, set[str]] = {}

    def follow(self, snapshot: Snapshot, key: str) -> None:
        """Take note of what a flag rests on, and of what that rests on in turn.

        A flag that has been noted is noted anew; so must each be that changes.
        """
        waiting = [key]
        while waiting:
            flag = waiting.pop()
            found = _find_references(snapshot, flag)
            self._set_references(flag, found)
            waiting += [
                name
                for region, name in found
                if region != SEGMENTS and name not in self._references
            ]

    def has_policy(self, policy: PolicyId) -> bool:
        """Tell whether something that is followed rests on a policy, or it rests on something."""
        return policy in self._dependents or policy[1] in self._references

    @property
    def policies(self) -> set[PolicyId]:
        """All policies that something rests on."""
        return set(self._dependents)

    def find_dependents(self, policies: Iterable[PolicyId]) -> set[str]:
        """Return the keys of the flags among some policies, and of all that rest on any of them."""
        reached: set[PolicyId] = set()
        waiting = [*policies]
        while waiting:
            policy = waiting.pop()
            if policy not in reached:
                reached.add(policy)
                waiting += [(EVERYWHERE, flag) for flag in self._dependents.get(policy, ())]
        return {key for region, key in reached if region != SEGMENTS}

    def _set_references(self, flag: str, found: frozenset[PolicyId]) -> None:
        held = self._references.pop(flag, frozenset())
        if found:
            self._references[flag] = found
        for policy in found - held:
            self._dependents.setdefault(policy, set()).add(flag)
        for policy in held - found:
            self._dependents[policy].discard(flag)
            if not self._dependents[policy]:
                del self._dependents[policy]


def _find_references(snapshot: Snapshot, key: str) -> frozenset[PolicyId]:
    record = snapshot.find(key)
    return frozenset() if record is None else _read_references(record.body)


# Most flags of a catalogue share some tens of bodies.
@functools.lru_cache(maxsize=1024)
def _read_references(body: bytes) -> frozenset[PolicyId]:
    try:
        flag = packing.unpack("", EVERYWHERE, body)
    except InvalidDocumentError:
        # It answers callers' defaults, whatever others do.
        return frozenset()
    found = {(EVERYWHERE, prerequisite.flag) for prerequisite in flag.prerequisites}
    return frozenset(found | {(SEGMENTS, segment) for segment in collect_flag_segments(flag)})


T = TypeVar("T")

_log = Log("flagkit")

PAUSE_SECONDS: Final = 0.0005
_NOBODY_AWAITS: Final = (
    "callbacks are called in a thread without an event loop. Pass a plain function that calls"
    " asyncio.run_coroutine_threadsafe(coroutine, loop)"
)
POLL_SECONDS: Final = 5.0
"""So often a thread without news looks after the thread that brings them."""
SLICE_COUNT: Final = 128
"""So many flags are looked at between two pauses, in which others have the interpreter."""


class FlagChange:
    """A flag that may answer differently than before.

    Attributes:
        key: Its key.
        revision: The revision that it was found at, from which, or from a later one, evaluations
            answer by now.
    """

    __slots__ = ("_after", "_before", "key", "revision")

    def __init__(
        self, key: str, revision: int, before: Record | None, after: Record | None
    ) -> None:
        self.key = key
        self.revision = revision
        self._before = before
        self._after = after

    @property
    def version_before(self) -> int | None:
        """Its version when this was told of last, or the subscription began; None: no such flag."""
        return None if self._before is None else self._before.version

    @property
    def version_after(self) -> int | None:
        """Its version now, None if it was deleted; the same where what it rests on has changed."""
        return None if self._after is None else self._after.version

    @property
    def policy_before(self) -> dict[str, Any] | None:
        """The policy document of the version before, without metadata; the caller's own copy.

        Raises:
            InvalidDocumentError: what is stored is none.
        """
        return _decode_policy(self._before)

    @property
    def policy_after(self) -> dict[str, Any] | None:
        """The policy document of the version now, as `policy_before`."""
        return _decode_policy(self._after)

    def __repr__(self) -> str:
        versions = f"{self.version_before} -> {self.version_after}"
        return f"FlagChange({self.key!r}, revision {self.revision}, version {versions})"


Callback: TypeAlias = Callable[[FlagChange], object]


class Subscription:
    """A callback that is told of changes until this is closed, by `close` or the end of `with`."""

    __slots__ = ("_close", "_has_failed", "callback", "key")

    def __init__(
        self, key: str, callback: Callback, close: "Callable[[Subscription], None]"
    ) -> None:
        self.key = key
        self.callback = callback
        self._close = close
        self._has_failed = False

    def matches(self, key: str) -> bool:
        """Tell whether it is to be told of a flag."""
        return key.startswith(self.key) if _is_prefix(self.key) else key == self.key

    def list_keys(self, snapshot: Snapshot | None) -> list[str]:
        """Return the keys of the flags of a snapshot that it is to be told of."""
        if snapshot is None:
            return []
        if _is_prefix(self.key):
            return snapshot.list_keys(self.key)
        return [] if snapshot.find(self.key) is None else [self.key]

    def call(self, change: FlagChange) -> None:
        """Call back. What it raises is said once, and goes no further."""
        try:
            _check_result(self.callback(change))
        except BaseException as error:  # noqa: BLE001 - even an exit, which is for the main thread
            if not self._has_failed:
                self._has_failed = True
                _log.warning(
                    "a callback for changes of %r raised; that it does is not said again",
                    self.key,
                    exc_info=error,
                )

    def close(self) -> None:
        """Have it told no more. A call that is on its way is not waited for."""
        self._close(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Subscriptions:
    """All subscriptions of one client, and their thread, which is there while any is needed.

    Args:
        snapshot: What the client answers from, so that only what changes from here on is told.
        ensure_others: Called in the thread now and then. It must not raise.
    """

    def __init__(
        self, snapshot: Snapshot | None, ensure_others: Callable[[], object] = lambda: None
    ) -> None:
        self._ensure_others = ensure_others
        self._all: tuple[Subscription, ...] = ()
        self._news = threading.Condition()
        self._newest = snapshot
        self._thread: _CallbackThread | None = None

    def add(self, key: str, callback: Callback) -> Subscription:
        """Return a new subscription to a flag, or to all whose keys begin with `product.` or "".

        Raises:
            InvalidDocumentError: there can be no such flag.
            InvalidArgumentError: the callback is a coroutine function, or cannot be called.
        """
        _check_callback(callback)
        if not _is_prefix(key):
            check_key(key)
        elif key:
            check_key(key[:-1])
        subscription = Subscription(key, callback, self._remove)
        with self._news:
            self._all = (*self._all, subscription)
            self._start_thread()
        return subscription

    def notify(self, snapshot: Snapshot, changes: Sequence[Change] | None) -> None:
        """Leave word of what is answered from now, and what led to it; None for a new base."""
        with self._news:
            self._newest = snapshot
            if self._thread is not None:
                self._thread.enqueue(snapshot, changes)
        self.ensure_running()

    def start(self) -> None:
        """Begin to tell, if somebody is to be told."""
        with self._news:
            if self._all:
                self._start_thread()

    def ensure_running(self) -> None:
        """Start the thread again if it has died. Never raises."""
        teller = self._thread
        if teller is not None:
            teller.start()

    @property
    def trouble(self) -> str | None:
        """The problem of the thread in words; None if it has none."""
        teller = self._thread
        return None if teller is None else teller.trouble

    def after_fork_in_child(self, snapshot: Snapshot | None, *, starts: bool) -> None:
        """Begin anew in a forked child, with what changes from here on."""
        self._news = threading.Condition()
        self._newest = snapshot
        self._thread = None
        if starts:
            self.start()

    def close(self, timeout: float) -> bool:
        """End the thread. Waits at most `timeout` seconds; returns whether the end was seen."""
        with self._news:
            teller, self._thread = self._thread, None
        return teller is None or teller.close(timeout)

    def _start_thread(self) -> None:
        if self._thread is None:
            teller = _CallbackThread(
                self._newest, self._news, lambda: self._all, self._ensure_others
            )
            self._thread = teller
            teller.start()

    def _remove(self, subscription: Subscription) -> None:
        with self._news:
            self._all = tuple(other for other in self._all if other is not subscription)


class _CallbackThread:
    """The thread: it takes in what was left for it, and then makes one call, again and again."""

    def __init__(
        self,
        snapshot: Snapshot | None,
        news: threading.Condition,
        subscriptions: Callable[[], tuple[Subscription, ...]],
        ensure_others: Callable[[], object],
    ) -> None:
        self._log_once = LogOnce("flagkit", "callbacks are not told of changes: %s", known=())
        self._ensure_others = ensure_others
        self._news = news
        self._subscriptions = subscriptions
        # What was left, not taken in yet: the newest snapshot, and what changed; None for all.
        self._newest = snapshot
        self._changed: set[PolicyId] | None = set()
        # The thread's own: what was told of last, and who is to be told of what, since when.
        self._last_notified = snapshot
        self._pending_calls: OrderedDict[tuple[Subscription, str], Record | None] = OrderedDict()
        self._followed: tuple[Subscription, ...] = ()
        self._dependencies = DependencyGraph()
        self._closing = threading.Event()
        self._thread = BackgroundThread("flagkit-changes", self._run, self._on_failure)

    @property
    def trouble(self) -> str | None:
        """The problem in words; None if there is none."""
        return self._log_once.problem

    def start(self) -> None:
        """Start the thread, or start it again if it has died. Never raises."""
        self._thread.start()

    def enqueue(self, snapshot: Snapshot, changes: Sequence[Change] | None) -> None:
        """Leave word. To be called with the lock of `news`."""
        self._newest = snapshot
        known, self._changed = self._changed, None
        if changes is not None and known is not None:
            known.update(policy.id for change in changes for policy in change.policies)
            self._changed = known
        self._news.notify_all()

    def close(self, timeout: float) -> bool:
        """End it. A callback may do so itself, which is not waited for."""
        with self._news:
            self._closing.set()
            self._news.notify_all()
        return self._thread.close(timeout)

    def _run(self) -> None:
        with contextlib.suppress(_ClosingError):
            while True:
                self._process_news()
                self._log_once.clear()
                if self._pending_calls:
                    (subscription, key), before = self._pending_calls.popitem(last=False)
                    self._call(subscription, key, before)

    def _on_failure(self, error: Exception) -> None:
        """Compare all that is followed the next time: what had changed may be forgotten."""
        with self._news:
            self._changed = None
        self._log_once.report(error)

    def _call(self, subscription: Subscription, key: str, before: Record | None) -> None:
        previous = self._last_notified
        if previous is not None and subscription in self._subscriptions():
            subscription.call(FlagChange(key, previous.tip.revision, before, previous.find(key)))

    def _process_news(self) -> None:
        """Take in what was left. Waits for it, if nobody is due to be told."""
        with self._news:
            is_needed = self._news.wait_for(
                lambda: self._closing.is_set() or self._pending_calls or self._has_news,
                POLL_SECONDS,
            )
            self._check_closing()
            new, changed = self._newest, self._changed
            self._changed = set()
            subscriptions = self._subscriptions()
        if not is_needed:
            # Without a thread that refreshes there would never be news.
            self._ensure_others()
            return
        self._follow(subscriptions)
        if new is None or new is self._last_notified:
            return
        old, references = self._last_notified, self._dependencies
        candidates = self._find_candidates(old, new, changed)
        differing = {
            policy
            for policy in self._iter_paced(candidates)
            if _get_state_key(old, policy) != _get_state_key(new, policy)
        }
        for policy in self._iter_paced(differing):
            region, key = policy
            if region != SEGMENTS and (references.has_policy(policy) or self._is_subscribed(key)):
                references.follow(new, key)
        for key in self._iter_paced(sorted(references.find_dependents(differing))):
            for subscription in subscriptions:
                if subscription.matches(key):
                    held = None if old is None else old.find(key)
                    self._pending_calls.setdefault((subscription, key), held)
        self._last_notified = new

    @property
    def _has_news(self) -> bool:
        return self._newest is not self._last_notified or self._subscriptions() != self._followed

    def _follow(self, subscriptions: tuple[Subscription, ...]) -> None:
        """Follow the flags of new subscriptions, as they were told of last."""
        previous = self._last_notified
        for subscription in set(subscriptions) - set(self._followed):
            for key in self._iter_paced(subscription.list_keys(previous)):
                assert previous is not None, "it has the key"
                self._dependencies.follow(previous, key)
        self._followed = subscriptions

    def _find_candidates(
        self, old: Snapshot | None, new: Snapshot, changed: set[PolicyId] | None
    ) -> set[PolicyId]:
        """Return what may differ in two snapshots; a flag stands for its key in all regions."""
        if changed is not None:
            regions = list_snapshot_regions(new.region)
            return {
                (SEGMENTS if region == SEGMENTS else EVERYWHERE, key)
                for region, key in changed
                if region in regions
            }
        candidates = self._dependencies.policies
        for subscription in self._followed:
            for snapshot in (old, new):
                keys = subscription.list_keys(snapshot)
                candidates.update((EVERYWHERE, key) for key in self._iter_paced(keys))
        return candidates

    def _is_subscribed(self, key: str) -> bool:
        return any(subscription.matches(key) for subscription in self._followed)

    def _iter_paced(self, items: Iterable[T]) -> Iterator[T]:
        """Yield items, with a pause now and then, until this is closed."""
        for done, item in enumerate(items, 1):
            yield item
            if done % SLICE_COUNT == 0:
                self._closing.wait(PAUSE_SECONDS)
                self._check_closing()

    def _check_closing(self) -> None:
        if self._closing.is_set():
            raise _ClosingError


class _ClosingError(Exception):
    """The thread is to end."""


def _check_callback(callback: object) -> None:
    if not callable(callback):
        raise InvalidArgumentError(f"callback is {callback!r}: pass a function of a FlagChange")
    # Deferred, for it takes some milliseconds to import.
    import inspect  # noqa: PLC0415

    called: Any = callback
    while isinstance(called, functools.partial):
        called = called.func
    # An object is called by the method of its class.
    for function in (called, type(called).__call__):
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise InvalidArgumentError(
                f"callback is {callback!r}, a coroutine function: {_NOBODY_AWAITS}"
            )


def _check_result(result: object) -> None:
    # A lambda may call a coroutine function, for instance.
    if isinstance(result, Coroutine):
        result.close()
        raise InvalidArgumentError(f"it returned a coroutine: {_NOBODY_AWAITS}")


def _is_prefix(key: object) -> bool:
    # No key ends in a dot, so that one word says both.
    return isinstance(key, str) and (not key or key.endswith("."))


def _get_state_key(snapshot: Snapshot | None, policy: PolicyId) -> tuple[str, int, int] | None:
    """Return what tells the states of a policy apart; of a flag, that which holds in the region."""
    if snapshot is None:
        return None
    region, key = policy
    record = snapshot.find_segment(key) if region == SEGMENTS else snapshot.find(key)
    return None if record is None else (record.region, record.version, record.hash)


def _decode_policy(record: Record | None) -> dict[str, Any] | None:
    return None if record is None else encode(unpack_flag(record))
