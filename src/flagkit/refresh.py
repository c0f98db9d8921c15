"""Refresh: how a client stays current, as a state machine without I/O.

`Refresher.step(event) -> action` decides; refresh_thread obeys, on a `Source`. Invariants: a
snapshot is only ever followed by one that continues its hash, or replaced whole by a new base; any
doubt ends in a question to the ledger.
"""

import random
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Protocol, TypeAlias

from msgspec import Struct

from flagkit.changes import Change, Tip
from flagkit.errors import HistoryLostError
from flagkit.snapshot import Snapshot

SILENCE_SECONDS = 10.0
"""How long a silent stream is believed before the head is asked for."""
BACKOFF_FIRST_SECONDS, BACKOFF_MAX_SECONDS = 0.1, 30.0


class Source(Protocol):
    """Where snapshots and changes come from. All its errors are FlagkitErrors."""

    async def load(self) -> Snapshot:
        """Read everything, at one revision."""
        ...

    async def open(self) -> None:
        """Begin to watch, anew where a watch was open: later changes are had from `watch`."""
        ...

    async def catch_up(self, tip: Tip) -> Sequence[Change]:
        """Return every change after `tip`, in order.

        Raises:
            HistoryLostError: the history does not reach back to the tip, or is another one.
        """
        ...

    async def watch(self) -> Sequence[Change]:
        """Wait for changes; empty after about SILENCE_SECONDS without any."""
        ...

    async def policy(self, key: str) -> dict[str, Any] | None:
        """Read the newest document of a flag as the region sees it, with its metadata."""
        ...

    async def close(self) -> None:
        """Free everything. Nothing is called after it."""
        ...


class State(StrEnum):
    """Where a refresher is."""

    LOADING = "loading"
    CATCHING_UP = "catching up"
    WATCHING = "watching"
    BACKING_OFF = "backing off"


class Load(Struct, frozen=True):
    """Read everything."""


class CatchUp(Struct, frozen=True):
    """Read every change after a tip; first begin to watch, if `reopen` is set."""

    tip: Tip
    reopen: bool


class Watch(Struct, frozen=True):
    """Wait for changes, or for a silence."""


class Wait(Struct, frozen=True):
    """Do nothing for a while."""

    seconds: float


Action: TypeAlias = Load | CatchUp | Watch | Wait


class Loaded(Struct, frozen=True):
    """Everything was read."""

    snapshot: Snapshot


class CaughtUp(Struct, frozen=True):
    """Every change after the tip that was asked for."""

    changes: Sequence[Change]


class Arrived(Struct, frozen=True):
    """What the stream brought, nothing if it was silent."""

    changes: Sequence[Change]


class Failed(Struct, frozen=True):
    """The action could not be carried out."""

    error: Exception


class Waited(Struct, frozen=True):
    """The wait is over."""


Event: TypeAlias = Loaded | CaughtUp | Arrived | Failed | Waited


class Refresher:
    """The state machine. `snapshot` is the last good one; `step` says what to do next.

    After a step, `applied` holds the changes that led from the previous snapshot to this one, or
    None where this one is a new base.
    """

    def __init__(self, chance: random.Random, snapshot: Snapshot | None = None) -> None:
        self.state = State.LOADING
        self.snapshot = snapshot
        self.applied: Sequence[Change] | None = ()
        self._chance = chance
        self._failure_count = 0
        self._needs_base = False

    def start(self) -> Action:
        """Return the first action: a base is loaded only where none was given."""
        return self._catch_up(self.snapshot, reopen=True) if self.snapshot else self._load()

    def step(self, event: Event) -> Action:
        """Take in what came of the last action and return the next. Never raises."""
        self.applied = ()
        match event:
            case Loaded(snapshot):
                self.snapshot, self.applied = snapshot, None
                self._needs_base = False
                return self._catch_up(snapshot, reopen=True)
            case Waited() if self.snapshot is None or self._needs_base:
                return self._load()
            case Waited():
                return self._catch_up(self._held(), reopen=True)
            case Failed(error):
                return self._back_off(error)
            case CaughtUp(changes):
                return self._caught_up(changes)
            case Arrived(changes):
                return self._arrived(changes)

    def _load(self) -> Action:
        self.state = State.LOADING
        return Load()

    def _catch_up(self, snapshot: Snapshot, *, reopen: bool) -> Action:
        self.state = State.CATCHING_UP
        return CatchUp(snapshot.tip, reopen)

    def _watch(self) -> Action:
        self.state = State.WATCHING
        return Watch()

    def _caught_up(self, changes: Sequence[Change]) -> Action:
        try:
            self._apply(changes)
        except HistoryLostError as error:
            return self._back_off(error)
        return self._watch()

    def _arrived(self, changes: Sequence[Change]) -> Action:
        # Not before: a stream that breaks whenever it is opened must be backed off from, too.
        self._failure_count = 0
        snapshot = self._held()
        news = [change for change in changes if not _known(change, snapshot.tip)]
        try:
            self._apply(news)
        except HistoryLostError:
            # A gap or another history: the stream alone cannot tell. The ledger can.
            return self._catch_up(snapshot, reopen=False)
        # A silent stream proves nothing: it may be cut off. Ask where the head is.
        return self._watch() if changes else self._catch_up(snapshot, reopen=False)

    def _apply(self, changes: Sequence[Change]) -> None:
        if changes:
            self.snapshot = self._held().apply(changes)
            self.applied = changes

    def _back_off(self, error: Exception) -> Action:
        """Wait with full jitter, but load at once where only a new base can help."""
        self._failure_count += 1
        if isinstance(error, HistoryLostError):
            self._needs_base = True
            if self.state is not State.LOADING and self._failure_count == 1:
                return self._load()
        self.state = State.BACKING_OFF
        doubled = BACKOFF_FIRST_SECONDS * 2 ** min(self._failure_count - 1, 16)
        return Wait(self._chance.uniform(0, min(BACKOFF_MAX_SECONDS, doubled)))

    def _held(self) -> Snapshot:
        assert self.snapshot is not None, "only Load is obeyed before there is a snapshot"
        return self.snapshot


def _known(change: Change, tip: Tip) -> bool:
    """Tell whether a change is one that led to this tip. Another history at its place is not."""
    if change.tip.epoch != tip.epoch or change.revision > tip.revision:
        return False
    return change.revision < tip.revision or change.tip.hash == tip.hash
