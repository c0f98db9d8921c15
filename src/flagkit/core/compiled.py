"""Compiled flags: what a flag always answers, or its functions, each made when first asked for.

Who asks `is_enabled` needs the switch alone, who asks `evaluate` the evaluator alone; most flags
are asked in one way only. Two threads that ask at once for what is not made yet may both make it:
either will do.
"""

import math
import time
from collections.abc import Sequence

from flagkit.core.bucketing import Clock
from flagkit.core.compiler import (
    compile_flag,
    compile_switch,
    constant_of,
    leave_to_caller,
    off_outcome,
)
from flagkit.core.contexts import ContextLike, attributes_of
from flagkit.core.evaluation import Outcome
from flagkit.core.prerequisites import CALLS_MAX, Step
from flagkit.core.schedule import flag_changes_after, follows_clock
from flagkit.core.templates import Evaluator, Switch
from flagkit.model import Flag


class Compiled:
    """A flag ready to be asked; without a `flag`, one that always answers the same.

    Attributes:
        version: The flag's.
        constant: Its outcome, where that is always the same.
        calls: How many evaluators an evaluation runs at most, prerequisites included.
        follows_clock: Whether its answers can change by time alone.
    """

    __slots__ = (
        "_evaluator",
        "_flag",
        "_now",
        "_prerequisites",
        "_switch",
        "calls",
        "constant",
        "follows_clock",
        "version",
    )

    def __init__(
        self,
        version: int,
        constant: Outcome | None,
        flag: Flag | None = None,
        prerequisites: "Sequence[Compiled]" = (),
        now: Clock = time.time,
    ) -> None:
        self.version = version
        self.constant = constant
        self._flag = flag
        self._prerequisites = prerequisites
        self._now = now
        self._evaluator: Outcome | Evaluator | None = constant
        self._switch: bool | Switch | None = None
        self.calls = 0
        self.follows_clock = False
        if flag is not None:
            self.calls = 1 + sum([found.calls for found in prerequisites])
            waits = [found for found in prerequisites if found.follows_clock]
            self.follows_clock = bool(waits) or follows_clock(flag)
            if self.calls > CALLS_MAX:
                # Not on demand, which would nest as deep as a chain is long.
                self._evaluator = _in_turn(flag, prerequisites, now)

    @property
    def evaluator(self) -> Outcome | Evaluator:
        """What `compile_flag` returns."""
        found = self._evaluator
        if found is None:
            assert self._flag is not None, "a flag that is not constant is kept"
            found = compile_flag(self._flag, self._evaluators(), self._now)
            self._evaluator = found
        return found

    @property
    def switch(self) -> bool | Switch:
        """What `compile_switch` returns."""
        found = self._switch
        if found is None:
            found = self._switch = self._made_switch()
        return found

    def changes_after(self, context: ContextLike, moment: float) -> float:
        """Return when it may answer otherwise by time alone, in seconds; infinity if never."""
        attributes = attributes_of(context)
        seen: set[int] = set()
        waiting: list[Compiled] = [self]
        soonest = math.inf
        while waiting:
            compiled = waiting.pop()
            if compiled.follows_clock and id(compiled) not in seen:
                seen.add(id(compiled))
                waiting += compiled._prerequisites
                if compiled._flag is not None and follows_clock(compiled._flag):
                    soonest = min(soonest, flag_changes_after(compiled._flag, attributes, moment))
        return soonest

    def _made_switch(self) -> bool | Switch:
        flag = self._flag
        if flag is None:
            value = self.constant.value if self.constant is not None else None
            return value if isinstance(value, bool) else leave_to_caller
        if self.calls > CALLS_MAX:
            return _switch_of(self.evaluator) if flag.type == "boolean" else leave_to_caller
        return compile_switch(flag, self._evaluators(), self._now)

    def _evaluators(self) -> list[Outcome | Evaluator]:
        return [found.evaluator for found in self._prerequisites]


def compiled_of(
    flag: Flag, version: int, prerequisites: Sequence[Compiled] = (), now: Clock = time.time
) -> Compiled:
    """Return a flag compiled.

    Args:
        flag: A checked flag, with the meanings of its segments.
        version: The flag's.
        prerequisites: Its prerequisites, compiled, in their order.
        now: The clock of its windows.
    """
    constant = constant_of(flag, [found.constant for found in prerequisites])
    if constant is not None:
        return Compiled(version, constant)
    return Compiled(version, None, flag, prerequisites, now)


def _in_turn(flag: Flag, prerequisites: Sequence[Compiled], now: Clock) -> Step:
    off = off_outcome(flag)
    steps = [
        evaluator if isinstance(evaluator := found.evaluator, Step) else Step(evaluator, off)
        for found in prerequisites
    ]
    wanted = [frozenset(item.variants) for item in flag.prerequisites]
    return Step(compile_flag(flag, now=now), off, tuple(zip(steps, wanted, strict=True)))


def _switch_of(evaluator: Outcome | Evaluator) -> Switch:
    assert not isinstance(evaluator, Outcome), "only flags that are not constant have one"

    def switch(context: ContextLike, default: bool) -> bool:  # noqa: FBT001 - a switch
        value = evaluator(context).value
        return value if value is True or value is False else default

    return switch
