"""A simulated client: a real refresher whose actions a simulated replica set answers, or fails to.

It obeys as the refresh thread does (a pending watch goes on while the head is asked for; what opens
another, loads or waits ends it), and answers as the source of MongoDB does: what one member has
shown, the next is waited for to have, and a loss is the primary's only if it is the primary still.
"""

import random
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from flagkit._core.model.changes import Tip
from flagkit._core.snapshot import Snapshot
from flagkit._core.source import Route
from flagkit.client.refresher import (
    Action,
    ActionFailed,
    CatchUp,
    CatchUpDone,
    ChangesReceived,
    Event,
    HeadRead,
    Load,
    LoadDone,
    ReadHead,
    Refresher,
    Timer,
    Wait,
    Watch,
)
from flagkit.errors import (
    HistoryLostError,
    StoreUnavailableError,
    StreamsUnavailableError,
)
from tests.support.simulation.replica_set import LogEntry, SimulatedMember, SimulatedReplicaSet
from tests.support.simulation.step import Step, format_step_item
from tests.support.simulation.stream import ENDED, FaultRates, SimulatedStream

CALL_SECONDS_MAX: Final = 20.0
"""After so long without an answer a call fails."""
GOOD_CALL_SECONDS_MAX: Final = 0.1
"""How long a call takes where nothing is wrong."""
STREAM_SECONDS_MAX: Final = 0.5
"""How long a stream takes to bring what its member has, where nothing is wrong."""
AWAIT_SECONDS: Final = 10.0
"""After so long without changes a member answers that there are none."""
STEPS_KEPT: Final = 16
"""So many steps are told of a client that breaks a rule."""

_UNAVAILABLE: Final = ActionFailed(StoreUnavailableError("no member answers"))
_NO_STREAMS: Final = ActionFailed(StreamsUnavailableError("there are no change streams"))
_LOST: Final = ActionFailed(HistoryLostError("the ledger does not lead on from this tip"))


class ClientWorld(Protocol):
    """What a client lives in."""

    chance: random.Random
    now: float
    members: SimulatedReplicaSet
    weather: FaultRates
    faults: Counter[str]

    def at(
        self,
        time: float,
        happen: Callable[..., None],
        *arguments: Any,
        of: "SimulatedClient | None" = None,
    ) -> None:
        """Have something happen at a time; to a client, not before it is awake."""
        ...

    def judge(self, client: "SimulatedClient", event: Event, before: Snapshot | None) -> None:
        """Look whether a client may be where a step has led it."""
        ...

    def broken(self, client: "SimulatedClient", rule: str) -> Exception:
        """Return what to raise about a client that broke a rule."""
        ...


Answer = Callable[[SimulatedMember, Route], Event | None]
"""What a member answers, None while it has not yet what it is asked to have."""


class SimulatedClient:
    """One client. `near` is the member that it is near to; `verdict` what its primary last told.

    `term` is that of the newest primary that it has met: it asks no older one from then on.
    """

    def __init__(self, around: ClientWorld, number: int, *, region: str) -> None:
        self.number = number
        self.region = region
        self.near = number % len(around.members.members)
        self.has_streams = True
        self.asleep_until = self.cut_off_until = self.no_primary_until = 0.0
        self.asked = float("-inf")
        self.calls: deque[float] = deque(maxlen=256)
        self.steps: deque[Step] = deque(maxlen=STEPS_KEPT)
        self.refresher: Refresher
        self.action: Action
        self.stream: SimulatedStream | None = None
        self.verdict: LogEntry | None = None
        self.loaded_of: LogEntry | None = None
        """The head when what was loaded last was read."""
        self._around = around
        self._term = self._seen = 0
        # What is under way: an answer to another action, or of another watch, comes too late.
        self._action_count = self._watch_count = 0
        self._is_watching = False
        self._outcome: Event | None = None

    def start(self, refresher: Refresher) -> None:
        """Begin, or begin anew as another process, with what a refresher was given."""
        self.refresher = refresher
        self._stop_watching()
        self.stream, self._seen, self._term = None, 0, 0
        self.asked = float("-inf")
        self.verdict = self.loaded_of = None
        action = refresher.start(self._around.now)
        self._note(None, action)
        self._obey(action)

    def poke(self, delay: float) -> None:
        """Have the stream look for news, a while from now."""
        if self._is_watching and self._outcome is None:
            self._later(delay, self._look, self._watch_count)

    def break_stream(self) -> None:
        """End the stream: who watches it is told."""
        self.stream = None
        self.poke(0.0)

    # Steps

    def _step(self, event: Event) -> None:
        before = self.refresher.snapshot
        try:
            action = self.refresher.step(event, self._around.now)
        except Exception as error:
            rule = f"{format_step_item(event)} raised {error!r}"
            raise self._around.broken(self, rule) from error
        self._note(event, action)
        self._around.judge(self, event, before)
        self._obey(action)

    def _note(self, event: Event | None, action: Action) -> None:
        self.action = action
        self._action_count += 1
        self.steps.append(Step(self._around.now, event, action))
        if isinstance(action, Load | CatchUp | ReadHead):
            self.calls.append(self._around.now)

    def _obey(self, action: Action) -> None:
        around = self._around
        match action:
            case Load(route):
                self._stop_watching()
                self._ask(route, self._load)
            case CatchUp(tip, route, reopen):
                self._catch_up(tip, route, reopen=reopen)
            case ReadHead():
                self.asked = around.now
                self._ask(Route.PRIMARY, self._head)
            case Watch(until):
                self._watch()
                self._end_at(until)
            case Wait(until):
                self._stop_watching()
                self._end_at(until)

    def _take(self, action_count: int, event: Event) -> None:
        if action_count == self._action_count:
            self._step(event)

    def _end_at(self, time: float) -> None:
        time = max(time, self._around.now)
        self._around.at(time, self._take, self._action_count, Timer(), of=self)

    def _later(self, delay: float, happen: Callable[..., None], *arguments: Any) -> None:
        self._around.at(self._around.now + delay, happen, *arguments, of=self)

    # Calls

    def _ask(self, route: Route, answer: Answer) -> None:
        """Have a member answer after a while, as it was when asked or as it is then; or fail."""
        around, chance = self._around, self._around.chance
        member, drawn, weather = self._member(route), chance.random(), around.weather
        if member is None:
            self._fail(chance.uniform(0.0, 2.0))
        elif drawn < weather.hangs:
            around.faults["call hung"] += 1
            self._fail(chance.uniform(2.0, CALL_SECONDS_MAX))
        elif drawn < weather.hangs + weather.fails:
            around.faults["call failed"] += 1
            self._fail(chance.uniform(0.0, GOOD_CALL_SECONDS_MAX))
        else:
            delay = chance.uniform(0.001, GOOD_CALL_SECONDS_MAX)
            if chance.random() < weather.slow:
                around.faults["call slow"] += 1
                delay = chance.uniform(0.5, CALL_SECONDS_MAX / 2)
            early = answer(member, route) if chance.random() < 0.5 else None
            if early is not None:
                self._later(delay, self._take, self._action_count, early)
            else:
                deadline = around.now + CALL_SECONDS_MAX
                asked = self._action_count, member, member.restart_count, route, answer, deadline
                self._later(delay, self._answer, *asked)

    def _fail(self, delay: float, failure: ActionFailed = _UNAVAILABLE) -> None:
        self._later(delay, self._take, self._action_count, failure)

    def _answer(
        self,
        action_count: int,
        member: SimulatedMember,
        restart_count: int,
        route: Route,
        answer: Answer,
        deadline: float,
    ) -> None:
        if action_count != self._action_count:
            return
        around = self._around
        reigns = route is Route.NEAREST or member is around.members.primary or self._is_old(member)
        if not (member.is_up and member.restart_count == restart_count and reigns):
            self._step(_UNAVAILABLE)
        elif (event := answer(member, route)) is not None:
            self._step(event)
        elif around.now >= deadline:
            self._step(_UNAVAILABLE)
        else:
            asked = action_count, member, restart_count, route, answer, deadline
            self._later(0.25, self._answer, *asked)

    def _member(self, route: Route) -> SimulatedMember | None:
        """Return who answers now, if anybody does."""
        if self._around.now < self.cut_off_until:
            return None
        return self._near() if route is Route.NEAREST else self._primary()

    def _near(self) -> SimulatedMember | None:
        members, chance = self._around.members.members, self._around.chance
        near = members[self.near]
        if near.is_up and chance.random() < 0.9:
            return near
        others = [member for member in members if member.is_up]
        return chance.choice(others) if others else None

    def _primary(self) -> SimulatedMember | None:
        around, members = self._around, self._around.members
        if around.now < self.no_primary_until:
            return None
        for spell in members.deposed:
            is_known = self._term <= spell.term and self._is_old(spell.member)
            if is_known and spell.member.is_up and around.chance.random() < 0.7:
                return spell.member
        if members.primary is not None:
            self._term = members.term
        return members.primary

    def _is_old(self, member: SimulatedMember) -> bool:
        now = self._around.now
        return any(
            spell.member is member and now < spell.until for spell in self._around.members.deposed
        )

    def _load(self, member: SimulatedMember, _: Route) -> Event:
        members = self._around.members
        self.loaded_of = members.head
        return LoadDone(members.of(member, self._around.now).snapshot(self.region))

    def _head(self, member: SimulatedMember, _: Route) -> Event:
        members = self._around.members
        position = members.position(member, self._around.now)
        self._seen = max(self._seen, position)
        return HeadRead(members.log[position - 1].tip, self.asked)

    def _catch_up(self, tip: Tip, route: Route, *, reopen: bool) -> None:
        around, chance = self._around, self._around.chance
        if reopen:
            self._stop_watching()
            self.stream = None
            member = self._member(route)
            if member is None or chance.random() < around.weather.fails:
                self._fail(chance.uniform(0.0, GOOD_CALL_SECONDS_MAX))
                return
            if not self.has_streams:
                self._fail(chance.uniform(0.0, GOOD_CALL_SECONDS_MAX), _NO_STREAMS)
                return
            position = around.members.position(member, around.now)
            self.stream = SimulatedStream(member, member.restart_count, position)
            self._seen = position
        self._ask(route, lambda member, route: self._after(tip, member, route))

    def _after(self, tip: Tip, member: SimulatedMember, route: Route) -> Event | None:
        members = self._around.members
        position = members.position(member, self._around.now)
        if position < self._seen:
            return None
        self._seen = position
        entry = members.log[position - 1]
        last = entry.tip
        if route is Route.PRIMARY:
            self.verdict = entry
        if last == tip:
            return CatchUpDone(())
        if last.epoch != tip.epoch or last.revision <= tip.revision:
            if route is Route.PRIMARY and member is not members.primary:
                return _UNAVAILABLE
            return _LOST
        if tip.revision < min(entry.pruned_to, entry.revision - 1):
            return _LOST
        return CatchUpDone(entry.after(tip))

    # The stream

    def _watch(self) -> None:
        if self._is_watching:
            # It may have come to something while another question was asked.
            self._later(0.0, self._arrive, self._watch_count)
            return
        self._is_watching = True
        self._watch_count += 1
        self._later(0.001, self._look, self._watch_count)
        self._later(AWAIT_SECONDS, self._arrive, self._watch_count, ChangesReceived(()))

    def _stop_watching(self) -> None:
        self._is_watching = False
        self._outcome = None
        self._watch_count += 1

    def _look(self, watch_count: int) -> None:
        """Bring what the member has by now; look again later if there is more."""
        if watch_count != self._watch_count or self._outcome is not None:
            return
        stream, around = self.stream, self._around
        if stream is None or not stream.is_alive:
            self._arrive(watch_count, ENDED)
            return
        if stream.is_mute or around.now < self.cut_off_until:
            return
        members = around.members
        position = members.position(stream.member, around.now)
        if position > stream.position:
            self._seen = max(self._seen, position)
            event = stream.bring(
                members.log, position, around.weather, around.chance, around.faults
            )
            if event is ENDED:
                self.stream = None
            if event is not None:
                self._arrive(watch_count, event)
        elif position < members.committed and not stream.member.is_cut_off:
            due = members.log[position].time + stream.member.lag
            self._later(max(due - around.now, 0.0) + 0.001, self._look, watch_count)

    def _arrive(self, watch_count: int, event: Event | None = None) -> None:
        """Take what a watch has come to, at once if it is waited for."""
        if watch_count != self._watch_count:
            return
        outcome = event if self._outcome is None else self._outcome
        if outcome is None:
            return
        if isinstance(self.action, Watch):
            self._is_watching = False
            self._outcome = None
            self._watch_count += 1
            self._step(outcome)
        else:
            self._outcome = outcome
