"""A storm: what befalls a simulated replica set and its clients, and how it ends.

Each kind of fault is one method, told by its name; each mends itself after a while, or stays what a
restored, pruned or set back thing is.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Final, Protocol

from flagkit._core.snapshot import Snapshot
from flagkit.testing import ManualClock
from tests.support.simulation.client import STREAM_SECONDS_MAX, ClientWorld, SimulatedClient
from tests.support.simulation.replica_set import SimulatedMember, SimulatedReplicaSet
from tests.support.simulation.stream import FaultRates

SPELL_SECONDS_MAX: Final = 40.0
SLEEP_SECONDS_MAX: Final = 20.0
BACKUP_AGES: Final = (1, 2, 4, 8)
"""How many revisions old a backup is."""
LAST_WRITE_SECONDS: Final = 0.01
REIGN_SECONDS_MAX: Final = 12.0
"""How long a primary goes on that others have replaced: they elect after 10 s without it."""


class StormWorld(ClientWorld, Protocol):
    """What a storm rages in."""

    clients: list[SimulatedClient]
    clock: ManualClock

    def begin(self, client: SimulatedClient, snapshot: Snapshot | None) -> None:
        """Start a client, or start it anew, with what was in its file."""
        ...

    def some_snapshot(self, region: str) -> Snapshot | None:
        """Return one that a client of a region has had."""
        ...


class Storm:
    """Faults, one after the other, and writes. `harshness` is how often things go wrong."""

    def __init__(self, world: StormWorld) -> None:
        self._world = world
        self._chance = chance = world.chance
        self._ended = False
        # From seeds where hardly anything goes wrong to those where hardly anything goes well.
        self._harshness = chance.choice((0.1, 0.5, 1.0, 1.0, 2.0, 4.0))
        self._write_seconds = chance.choice((0.5, 2.0, 8.0, 30.0))
        self._fault_seconds = chance.choice((5.0, 15.0, 40.0)) / self._harshness
        self._foreign: Snapshot | None = None
        self._kinds: dict[str, Callable[[], None]] = {
            "weather": self._weather,
            "member cut off": self._member_cut_off,
            "member behind": self._member_behind,
            "member restarted": self._member_restarted,
            "election": self._election,
            "restored at once": self._restored_at_once,
            "restored by writes": self._restored_by_writes,
            "restored as a new history": self._restored_as_new,
            "pruned": self._pruned,
            "client restarted": self._client_restarted,
            "client cut off": self._client_cut_off,
            "client without primary": self._client_without_primary,
            "client asleep": self._client_asleep,
            "streams refused or allowed": self._streams_refused_or_allowed,
            "stream mute": self._stream_mute,
            "stream broken": self._stream_broken,
            "clock set": self._clock_set,
        }
        # Seeds differ in what they are made of, for some faults hide others.
        self._weights = [chance.choice((0, 1, 1, 8)) for _ in self._kinds]

    def begin(self) -> None:
        """Let it come."""
        world = self._world
        for member in world.members.members:
            member.lag = self._lag()
        self._weather()
        for client in world.clients:
            client.has_streams = self._chance.random() < 0.85
        self._write_on()
        self._fault()

    def end(self) -> float:
        """Mend everything but what stays, and write a last time; return since when all is well."""
        world, members = self._world, self._world.members
        self._ended = True
        world.weather = FaultRates()
        for spell in members.deposed:
            spell.until = min(spell.until, world.now)
        for member in members.members:
            member.is_up = True
            member.is_cut_off = False
            member.lag = self._lag()
        if members.primary is None:
            members.elect(world.now, 0.0)
        for client in world.clients:
            client.cut_off_until = client.no_primary_until = world.now
        # Not in this very moment, in which a primary may have answered already.
        self._later(LAST_WRITE_SECONDS, self._write_last)
        healed_at = world.now + LAST_WRITE_SECONDS
        return max(healed_at, *(client.asleep_until for client in world.clients))

    # Writing

    def _write_last(self) -> None:
        self._world.members.write(self._world.now, self._world.clock())
        self._commit()

    def _write_on(self) -> None:
        self._write()
        if not self._ended:
            self._later(self._chance.expovariate(1 / self._write_seconds), self._write_on)

    def _write(self) -> None:
        world, members = self._world, self._world.members
        if members.primary is not None and not self._ended:
            for _ in range(1 if self._chance.random() < 0.8 else self._chance.randint(2, 5)):
                members.write(world.now, world.clock())
            self._later(self._chance.uniform(0.002, 0.2), self._commit)

    def _commit(self) -> None:
        members = self._world.members
        if members.primary is not None:
            members.commit(self._world.now)
            self._wake()

    def _wake(self) -> None:
        """Have each stream bring what is new, after a while."""
        for client in self._world.clients:
            slow = self._chance.random() < self._world.weather.stream_delayed
            delay = self._chance.uniform(0.001, 5.0 if slow else STREAM_SECONDS_MAX / 2)
            lag = client.stream.member.lag if client.stream is not None else 0.0
            client.poke(lag + delay)

    # Faults

    def _fault(self) -> None:
        if self._ended:
            return
        kind = self._chance.choices([*self._kinds], self._weights)[0]
        self._world.faults[kind] += 1
        self._kinds[kind]()
        self._later(self._chance.expovariate(1 / self._fault_seconds), self._fault)

    def _weather(self) -> None:
        chance = self._chance

        def drawn(most: float) -> float:
            return min(chance.choice((0.0, 0.0, most / 4, most)) * self._harshness, 0.9)

        self._world.weather = FaultRates(
            fails=drawn(0.4),
            hangs=drawn(0.1),
            slow=drawn(0.2),
            event_lost=drawn(0.2),
            event_altered=drawn(0.1),
            batch_repeated=drawn(0.3),
            batch_swapped=drawn(0.5),
            stream_delayed=drawn(0.5),
            stream_ended=drawn(0.2),
        )

    def _member_cut_off(self) -> None:
        members = self._world.members
        member = self._chance.choice([one for one in members.members if one is not members.primary])
        member.is_cut_off = True
        self._later(self._spell(), self._member_back, member)

    def _member_back(self, member: SimulatedMember) -> None:
        world = self._world
        if not any(one.member is member and world.now < one.until for one in world.members.deposed):
            member.is_cut_off = False
            self._wake()

    def _member_behind(self) -> None:
        member = self._chance.choice(self._world.members.members)
        self._behind(member, self._chance.uniform(1.0, 15.0))

    def _behind(self, member: SimulatedMember, lag: float) -> None:
        member.lag = lag
        self._later(self._spell(), self._member_in_time, member)

    def _member_in_time(self, member: SimulatedMember) -> None:
        member.lag = self._lag()
        self._wake()

    def _member_restarted(self) -> None:
        members = self._world.members
        member = self._chance.choice(members.members)
        members.position(member, self._world.now)
        member.is_up = False
        member.restart_count += 1
        if member is members.primary:
            members.primary = None
            self._later(self._chance.uniform(0.5, REIGN_SECONDS_MAX), self._elected, 0.0)
        self._wake()
        self._later(self._chance.uniform(1.0, SPELL_SECONDS_MAX / 2), self._member_up, member)

    def _member_up(self, member: SimulatedMember) -> None:
        member.is_up = True
        if self._world.members.primary is None:
            self._elected(0.0)

    def _election(self) -> None:
        if self._chance.random() < 0.7:
            self._write()
        if self._world.members.primary is not None:
            reign = self._chance.choice((0.0, self._chance.uniform(0.5, REIGN_SECONDS_MAX)))
            self._world.members.primary, old = None, self._world.members.primary
            self._elected(reign, old)

    def _elected(self, reign: float, old: SimulatedMember | None = None) -> None:
        """Elect another primary where there is none; what no majority had may be undone."""
        world, members = self._world, self._world.members
        if members.primary is not None:
            return
        members.primary = old
        members.elect(world.now, reign)
        if self._chance.random() < 0.7:
            members.roll_back()
        if members.primary is not None:
            self._commit()
        if old is not None:
            self._later(reign, self._deposed, old)

    def _deposed(self, old: SimulatedMember) -> None:
        if self._chance.random() < 0.5:
            old.restart_count += 1
        self._member_back(old)

    def _restored_at_once(self) -> None:
        """Stop all members, and start them with the backup."""
        self._put_back(self._chance.choice(BACKUP_AGES))
        members = self._world.members
        for spell in members.deposed:
            spell.until = min(spell.until, self._world.now)
        for member in members.members:
            member.position = members.committed
            member.restart_count += 1

    def _restored_by_writes(self) -> None:
        """Have the backup come to each member as writes do.

        They are as far behind as the backup is old, and what was lost is written again as fast as
        before: then revisions of both histories, with the same numbers, are on the way at once.
        """
        age, seconds = self._chance.choice(BACKUP_AGES), self._chance.uniform(0.2, 1.0)
        for member in self._world.members.members:
            self._behind(member, (age + self._chance.uniform(0.0, 2.0)) * seconds)
        for count in range(1, 2 * age + 1):
            self._later((count + 0.5 * (count > age)) * seconds, self._write)
        self._later((age + 1) * seconds, self._put_back, age)

    def _put_back(self, age: int) -> None:
        if not self._ended:
            world = self._world
            world.members.restore(world.now, max(world.members.head.revision - age, 0))
            self._wake()

    def _restored_as_new(self) -> None:
        world = self._world
        ends = self._chance.random() < 0.5
        revision = max(world.members.head.revision - self._chance.choice(BACKUP_AGES), 0)
        world.members.begin_anew(world.now, world.clock(), revision, ends=ends)
        self._wake()

    def _pruned(self) -> None:
        members = self._world.members
        revision = members.head.revision - self._chance.choice((0, 0, 1, 4))
        members.prune(self._world.now, max(revision, 0))

    def _client_restarted(self) -> None:
        world, client = self._world, self._some_client()
        own = client.refresher.snapshot
        choices = (None, own, own, world.some_snapshot(client.region), self._of_another_cluster())
        snapshot = self._chance.choice(choices)
        if snapshot is not None and snapshot.region != client.region:
            snapshot = None
        world.begin(client, snapshot)

    def _of_another_cluster(self) -> Snapshot:
        if self._foreign is None:
            world = self._world
            other = SimulatedReplicaSet(self._chance, world.clock())
            for _ in range(3):
                other.write(world.now, world.clock())
            other.commit(world.now)
            self._foreign = other.head.snapshot("*")
        return self._foreign

    def _client_cut_off(self) -> None:
        client = self._some_client()
        client.cut_off_until = self._world.now + self._spell()
        if self._chance.random() < 0.5:
            client.break_stream()
        elif client.stream is not None:
            client.stream.is_mute = True

    def _client_without_primary(self) -> None:
        self._some_client().no_primary_until = self._world.now + self._spell()

    def _client_asleep(self) -> None:
        seconds = self._chance.uniform(1.0, SLEEP_SECONDS_MAX)
        self._some_client().asleep_until = self._world.now + seconds

    def _streams_refused_or_allowed(self) -> None:
        client = self._some_client()
        client.has_streams = not client.has_streams
        client.break_stream()

    def _stream_mute(self) -> None:
        client = self._some_client()
        if client.stream is not None:
            client.stream.is_mute = True

    def _stream_broken(self) -> None:
        self._some_client().break_stream()

    def _clock_set(self) -> None:
        hour = timedelta(hours=1)
        self._world.clock = ManualClock(
            self._world.clock() + self._chance.uniform(-1.0, 1.0) * hour
        )

    def _some_client(self) -> SimulatedClient:
        return self._chance.choice(self._world.clients)

    def _spell(self) -> float:
        return self._chance.uniform(1.0, SPELL_SECONDS_MAX)

    def _lag(self) -> float:
        return self._chance.uniform(0.0, STREAM_SECONDS_MAX / 2)

    def _later(self, delay: float, happen: Callable[..., None], *arguments: object) -> None:
        self._world.at(self._world.now + delay, happen, *arguments)
