"""Retention: for how long what is kept, and what can go at one revision of an environment.

Looks alone: nothing is written here.
"""

import contextlib
from collections.abc import Callable, Generator
from datetime import datetime
from functools import partial
from itertools import chain
from typing import Final

import msgspec
from msgspec import Struct

from flagkit.arguments import days_before
from flagkit.changes import SEGMENTS, parts_of
from flagkit.errors import ConfigurationError, StoreError
from flagkit.storage.layout import AUDIT, DENIALS, MEMBERS, PAGES
from flagkit.storage.malformed import FORM_FAULTS
from flagkit.storage.pruning import Batches, Carried, Found, Pruning
from flagkit.storage.publishing import CHECKPOINTS_KEPT
from flagkit.storage.reading import Reading
from flagkit.writer.verifying import Walk

DAYS_MAX: Final = 100_000


class Retention(Struct, frozen=True, kw_only=True):
    """For how many days what is kept; None keeps all of it.

    - `archived_days`: flags that have been archived so long, and nothing refers to, are deleted.
    - `ledger_days`: the ledger, which is how far back a rollback can go.
    - `audit_days`: who asked for a change that the ledger has no more, why, and under which
      idempotency key; and requests that were abandoned.
    - `denials_days`: who was denied what.
    - `remains_days`: members of segments, and pages, that nothing refers to any more; and what is
      left of checkpoints.
    """

    archived_days: int | None = None
    ledger_days: int | None = None
    audit_days: int | None = None
    denials_days: int | None = None
    remains_days: int | None = None


class Part(Struct, frozen=True):
    """Documents of one kind that can go: how they are found, and how they are removed."""

    what: str
    until: str
    found: Callable[[], Batches]
    remove: Callable[[list[Found]], None]


class Plan:
    """What can go, counted back from a moment.

    Args:
        pruning: The storage's side.
        retention: For how long what is kept.
        reading: Of the environment.
        now: The moment; the server's time by default.

    Raises:
        ConfigurationError: the retention makes no sense.
    """

    def __init__(
        self, pruning: Pruning, retention: Retention, reading: Reading, now: datetime | None
    ) -> None:
        self.now = now or reading.now
        before = {
            name: None if days is None else days_before(self.now, _checked(name, days))
            for name, days in msgspec.structs.asdict(retention).items()
        }
        self.archived_before = before["archived_days"]
        self.audit_before = before["audit_days"]
        self.denials_before = before["denials_days"]
        self.remains_before = before["remains_days"]
        self.cut = reading.cut
        """Where the ledger is cut, or will be."""
        self.is_cut_anew = False
        self.carried: list[Carried] = []
        self.checkpoints_first = 0
        """How many must be made before it is cut."""
        self.referred = {} if self.remains_before is None else _referred(reading)
        """By collection of parts, those that something refers to."""
        self._pruning = pruning
        self._epoch = reading.tip.epoch
        self._cuts = before["ledger_days"] is not None
        self._wanted = 0
        if before["ledger_days"] is not None:
            self._look(reading, before["ledger_days"])

    @property
    def through(self) -> int:
        """The last revision that the ledger need not have."""
        return 0 if self.cut is None else self.cut.tip.revision

    def prove(self, reading: Reading) -> None:
        """Look what there is where the ledger is to be cut, and prove all of it.

        Raises:
            StoreError: it does not prove: nothing may go.
        """
        if self._wanted <= self.through:
            return
        walk = Walk(reading, self._wanted)
        walk.run()
        if walk.problems:
            raise StoreError(
                f"nothing is pruned, for the ledger does not prove: {walk.problems[0]}; flagkit"
                " ledger verify tells all"
            )
        self.cut, self.carried, self.is_cut_anew = walk.cut, walk.carried, True

    def parts(self) -> list[Part]:
        """Return all that can go but flags, in the order in which it goes."""
        pruning, parts = self._pruning, list[Part]()
        if self._cuts:
            found = partial(pruning.ledger, self.through)
            parts.append(Part("ledger", self._until(), found, pruning.remove_ledger))
            found = partial(pruning.pages, self.through)
            remove = partial(pruning.remove, PAGES, projected={"$lte": self.through})
            parts.append(Part("pages", self._until(), found, remove))
        if self.audit_before is not None:
            until, remove = told_before(self.audit_before), partial(pruning.remove, AUDIT)
            parts += [
                Part("audit", until, self.audit, remove),
                Part(
                    "abandoned requests",
                    until,
                    partial(pruning.abandoned, self.audit_before),
                    remove,
                ),
            ]
        if self.denials_before is not None:
            found = partial(pruning.denials, self.denials_before)
            remove = partial(pruning.remove, DENIALS)
            parts.append(Part("denials", told_before(self.denials_before), found, remove))
        if self.remains_before is not None:
            until = told_before(self.remains_before)
            for name, referred in self.referred.items():
                found = partial(pruning.unreferred, name, referred, self.remains_before)
                remove = partial(pruning.remove, name, unreferred={"$lt": self.remains_before})
                parts.append(Part(f"unreferred {name}", until, found, remove))
            found = partial(pruning.checkpoint_rests, self._epoch, self.now)
            until = f"not among the newest {CHECKPOINTS_KEPT}"
            parts.append(Part("checkpoint remains", until, found, pruning.remove_checkpoints))
        return parts

    def audit(self) -> Generator[list[Found]]:
        """Yield who asked for what has been cut, and for what is going to be, as far as it goes."""
        if self.audit_before is not None:
            yield from self._pruning.expired(self.audit_before)
            if self._cuts:
                yield from self._pruning.audit_of(self.through, self.audit_before)

    def _look(self, reading: Reading, moment: datetime) -> None:
        """Find where the ledger can be cut: not past the older of the newest checkpoints.

        Clients that start from them go on by the ledger.
        """
        if self.cut is None or moment > self.cut.tip.time:
            self._wanted = min(reading.revision_at(moment), reading.tip.revision - 1)
            if reading.lagging is not None:
                # Flags may lack what it did: only its pages have that.
                self._wanted = min(self._wanted, reading.lagging - 1)
        if self._wanted > self.through:
            kept = [made.tip.revision for made, _ in reading.checkpoints()][:CHECKPOINTS_KEPT]
            too_old = sum(revision <= self._wanted for revision in kept)
            self.checkpoints_first = too_old if kept else 1

    def _until(self) -> str:
        if self.cut is None:
            return "nothing is so old"
        tip, first = self.cut.tip, ""
        if self.checkpoints_first:
            first = f", after {self.checkpoints_first} more checkpoints"
        return f"up to revision {tip.revision:,}, {_told(tip.time)}{first}"


def _referred(reading: Reading) -> dict[str, set[str]]:
    """Return the parts that there are, or may come to be, by their collections.

    A rollback can bring parts back; pending changes and proposals have theirs already.
    """
    members = {part for state in reading.all().values() for part in state.parts}
    for operation in reading.awaited():
        # What was changed past the writer cannot be made any more, so it keeps nothing.
        with contextlib.suppress(*FORM_FAULTS):
            if operation.get("region") == SEGMENTS:
                members.update(parts_of(operation.get("policy", {})))
    unledgered = [reading.unledgered] if reading.unledgered is not None else []
    for change in chain(reading.changes(), unledgered):
        for policy in change.policies:
            for state in (policy.before, policy.after):
                members.update(state.parts if state is not None else ())
    return {MEMBERS: members, PAGES: reading.page_names()}


def told_before(moment: datetime) -> str:
    """Return in words what was before a moment."""
    return f"before {_told(moment)}"


def _told(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _checked(name: str, days: object) -> int:
    # What is younger may be in the hands of somebody who is at work on it.
    if isinstance(days, bool) or not isinstance(days, int) or not 1 <= days <= DAYS_MAX:
        raise ConfigurationError(
            f"{name} is {days!r}: it is a whole number of days, 1 to {DAYS_MAX:,}"
        )
    return days
