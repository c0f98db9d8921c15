"""A simulated change stream, and the weather: how likely it is that calls and streams go wrong."""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from flagkit._core.model.changes import Change
from flagkit.client.refresher import ActionFailed, ChangesReceived
from flagkit.errors import StoreUnavailableError
from tests.support.simulation.replica_set import LogEntry, SimulatedMember

ENDED: Final = ActionFailed(StoreUnavailableError("the change stream has ended"))


class FaultRates(Struct):
    """How likely it is that a call or a batch of a stream goes wrong, in each of some ways."""

    fails: float = 0.0
    hangs: float = 0.0
    slow: float = 0.0
    event_lost: float = 0.0
    event_altered: float = 0.0
    batch_repeated: float = 0.0
    batch_swapped: float = 0.0
    stream_delayed: float = 0.0
    stream_ended: float = 0.0


class SimulatedStream(Struct):
    """A stream on a member, from a position of its log on. One that is mute brings nothing."""

    member: SimulatedMember
    restart_count: int
    position: int
    is_mute: bool = False

    @property
    def is_alive(self) -> bool:
        """Whether the member has been up since the stream was opened."""
        return self.member.is_up and self.member.restart_count == self.restart_count

    def bring(
        self,
        log: Sequence[LogEntry],
        position: int,
        weather: FaultRates,
        chance: random.Random,
        faults: Counter[str],
    ) -> ChangesReceived | ActionFailed | None:
        """Go on to a position; return what comes of it, None if no revision was made there."""
        first, self.position = self.position, position
        entries = log[first:position]
        if any(entry.ends for entry in entries):
            return ENDED
        if chance.random() < weather.stream_ended:
            faults["stream ended"] += 1
            return ENDED
        changes = _list_changes(entries)
        if not changes:
            return None
        kept: list[Change] = []
        for change in changes:
            if chance.random() < weather.event_lost:
                faults["event lost"] += 1
            elif chance.random() < weather.event_altered:
                faults["event altered"] += 1
                kept.append(replace(change, request=f"not {change.request}"))
            else:
                kept.append(change)
        if chance.random() < weather.batch_repeated:
            faults["events repeated"] += 1
            earlier = _list_changes(log[max(first - chance.randrange(1, 5), 1) : first])
            # Perhaps with nothing new.
            kept = earlier + (kept if chance.random() < 0.7 else [])
        if len(kept) > 1 and chance.random() < weather.batch_swapped:
            faults["events swapped"] += 1
            chance.shuffle(kept)
        return ChangesReceived(kept)


def _list_changes(entries: Sequence[LogEntry]) -> list[Change]:
    return [entry.change for entry in entries if entry.change is not None]
