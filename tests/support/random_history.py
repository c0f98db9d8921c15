"""Random histories of an environment, which is rolled back to random points of them."""

import random
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct, field

from flagkit._core.model.changes import SEGMENTS, PolicyId, PolicyState
from flagkit.errors import InvalidDocumentError, NotFoundError, WriteError
from flagkit.writer import Draft, Writer

Document = dict[str, Any]


class RandomHistory(Struct):
    """A writer, and what all policies were at each revision that it made.

    `policies` are in canonical form, byte for byte, without versions; `versions` the highest so
    far.
    """

    writer: Writer
    chance: random.Random
    keys: int
    policies: list[Mapping[PolicyId, bytes]] = field(default_factory=lambda: [{}])
    versions: dict[PolicyId, int] = field(default_factory=dict[PolicyId, int])
    problems: list[str] = field(default_factory=list[str])

    def change(self) -> None:
        """Make a random revision: one to four operations that can follow."""
        while True:
            try:
                with self.writer.change(reason="rehearsal") as change:
                    for _ in range(self.chance.randint(1, 4)):
                        self._operate(change)
            except (WriteError, NotFoundError, InvalidDocumentError):
                continue
            self._look()
            return

    def roll_back(self) -> None:
        """Roll everything back to a random revision, and see whether it is as it was then."""
        revision = self.chance.randrange(len(self.policies))
        self.writer.rollback(to=revision, reason="rehearsal")
        self._look()
        if self.policies[-1] != self.policies[revision]:
            self.problems.append(f"revision {len(self.policies) - 1} is not as {revision} was")

    def _look(self) -> None:
        with self.writer.store.open_reader() as reading:
            states = reading.read_all()
            revision = reading.tip.revision
        if revision != len(self.policies):
            self.problems.append(f"revision {revision} came after {len(self.policies) - 1}")
        before = self.policies[-1]
        for identity, state in states.items():
            self._check_version(identity, state, before.get(identity))
        self.policies.append({identity: state.packed for identity, state in states.items()})

    def _check_version(self, identity: PolicyId, state: PolicyState, before: bytes | None) -> None:
        expected = self.versions.get(identity, 0) + (before != state.packed)
        if state.version != expected:
            self.problems.append(f"{identity} is at version {state.version}, not at {expected}")
        self.versions[identity] = state.version

    def _operate(self, change: Draft) -> None:
        chance = self.chance
        key, segment = f"a.f{chance.randrange(self.keys)}", f"s{chance.randrange(4)}"
        region = chance.choice(["*", "*", "*", "eu"])
        members = [f"user-{chance.randrange(100)}" for _ in range(3)]
        operations: list[Callable[[], None]] = [
            lambda: change.create(self._flag(key, region)),
            lambda: change.create(self._flag(key, region)),
            lambda: change.update(self._flag(key, region), reassign=True),
            lambda: change.update(self._flag(key, region), reassign=True),
            lambda: change.set_rollout(key, chance.randrange(101), region=region, reassign=True),
            lambda: change.pause(key, region=region),
            lambda: change.resume(key, region=region),
            lambda: change.archive(key, region=region),
            lambda: change.restore(key, region=region),
            lambda: change.delete(key, region=region),
            lambda: change.rollback(key, to=chance.randrange(len(self.policies)), region=region),
            lambda: change.create_segment({"key": segment, "included": members}),
            lambda: change.change_members(segment, include=members[:2], remove=members[2:]),
            lambda: change.delete_segment(segment),
        ]
        chance.choice(operations)()

    def _flag(self, key: str, region: str) -> Document:
        chance = self.chance
        document: Document = {
            "key": key,
            "region": region,
            "variants": {"on": True, "off": False},
            "off": "off",
            "fallthrough": {"serve": chance.choice(["on", "off"])},
            "description": f"number {chance.randrange(1000)}",
        }
        if chance.random() < 0.5:
            rollout: Document = {"weights": {"on": (share := chance.randrange(101))}}
            rollout["weights"]["off"] = 100 - share
            if chance.random() < 0.5:
                rollout["salt"] = f"salt-{chance.randrange(3)}"
            document["fallthrough"] = {"rollout": rollout}
        if chance.random() < 0.3:
            other = f"a.f{chance.randrange(self.keys)}"
            document["prerequisites"] = [{"flag": other, "variants": ["on"]}]
        if chance.random() < 0.3:
            when = {"$segment": f"s{chance.randrange(4)}"}
            document["rules"] = [{"name": "staff", "when": when, "serve": "on"}]
        return document


def count_segments(policies: Mapping[PolicyId, bytes]) -> int:
    """Return how many segments are among some policies."""
    return sum(region == SEGMENTS for region, _ in policies)
