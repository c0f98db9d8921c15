"""Compiled flags: the constant answer of a flag, or its functions, each compiled on first use.

`is_enabled` needs only the boolean function of a flag, `evaluate` only its evaluator. Most flags
are used in one way, so each function is compiled when it is first needed. Two threads may compile
the same function at once; either result is right.

Most of a million flags share their body with another flag. Such flags share one compiled body and
differ only in their keys, which are defaults of parameters.

The code of a flag calls the code of its prerequisites. Long chains would overflow the stack, and
shared prerequisites would be evaluated twice as often at each level. A dependent flag therefore
evaluates each prerequisite once, in a loop and without nesting.
"""

import functools
import math
import time
from collections.abc import Sequence
from typing import Final, cast

import msgspec
from msgspec import Struct

from flagkit._core.evaluation.bucketing import Clock
from flagkit._core.evaluation.compiler import (
    Code,
    Evaluator,
    Switch,
    code_of,
    compile_flag,
    compile_switch,
    constant_of,
    leave_to_caller,
    off_outcome,
    switch_code_of,
)
from flagkit._core.evaluation.context import Attributes, ContextLike, attributes_of
from flagkit._core.evaluation.result import Outcome
from flagkit._core.evaluation.schedule import flag_changes_after, follows_clock
from flagkit._core.model import EVERYWHERE, Flag
from flagkit._core.model.flags import segments_of
from flagkit._core.model.packing import unpack
from flagkit._core.model.sensitive import Secret
from flagkit.errors import InvalidDocumentError

CALLS_MAX = 64
"""A flag that may take more calls of other flags' code than this is evaluated in turn."""


class Step(Struct, frozen=True, eq=False):
    """A flag without its prerequisites, the steps that these are, and what it answers without."""

    answer: Outcome | Evaluator
    off: Outcome
    prerequisites: "tuple[tuple[Step, frozenset[str]], ...]" = ()

    def __call__(self, context: ContextLike) -> Outcome:
        """Return the outcome for a context, as any evaluator does."""
        return self.outcome(context, {})

    def outcome(self, context: ContextLike, outcomes: "dict[Step, Outcome]") -> Outcome:
        """Return the outcome for a context, and add it to the outcomes that are known for it.

        Who asks many flags for one context passes the same `outcomes` each time. Each step of a
        chain is then taken once, and not once for each flag that depends on it.
        """
        attributes = attributes_of(context)
        waiting = [] if self in outcomes else [(self, 0)]
        while waiting:
            step, place = waiting.pop()
            for at in range(place, len(step.prerequisites)):
                prerequisite, variants = step.prerequisites[at]
                found = outcomes.get(prerequisite)
                if found is None:
                    waiting += [(step, at), (prerequisite, 0)]
                    break
                if found.variant not in variants:
                    outcomes[step] = step.off
                    break
            else:
                answer = step.answer
                outcomes[step] = answer if isinstance(answer, Outcome) else answer(attributes)
        return outcomes[self]


SHARED_MAX: Final = 4_096
"""For so many bodies is kept what flags share."""
SHARED_BYTES_MAX: Final = 256
"""A longer body, such as one of some rules, is seldom that of another flag: nothing is kept."""

_NO_KEY: Final = ""
"""The key of no flag. As a salt it stands for the key of the flag that a body is compiled for."""


class Shared:
    """What flags of one body share that rest on no others: all but their keys and versions.

    Attributes:
        flag: The flag of the body under no key, without its conditions as they were written.
        constant: Their outcome, where that is always the same.
        follows_clock: Whether their answers can change by time alone.
    """

    __slots__ = (
        "_code",
        "_compiled",
        "_silent_code",
        "_switch_code",
        "constant",
        "flag",
        "follows_clock",
    )

    def __init__(self, flag: Flag) -> None:
        self.flag = flag = _without_written_conditions(flag)
        self.constant = constant_of(flag)
        self.follows_clock = follows_clock(flag)
        self._code: Code | None = None
        self._switch_code: Code | None = None
        self._silent_code: Code | None = None
        self._compiled: Compiled | None = None

    def compiled(self, version: int, key: str, now: Clock) -> "Compiled":
        """Return the flag of a key, compiled. Constant flags of one version share an object."""
        constant = self.constant
        if constant is None:
            return _Alone(version, self, key, now)
        found = self._compiled
        if found is None or found.version != version:
            found = self._compiled = Compiled(version, constant)
        return found

    def evaluator(self, key: str, now: Clock) -> Evaluator:
        """Return the evaluator of the flag of a key; the flag is not constant."""
        code = self._code
        if code is None:
            code = self._code = code_of(self.flag)
        return cast("Evaluator", code.function(key, now))

    def switch(self, key: str, now: Clock) -> Switch:
        """Return the switch of the flag of a key; the flag is not constant."""
        if self.flag.type != "boolean":
            return leave_to_caller
        code = self._switch_code
        if code is None:
            code = self._switch_code = switch_code_of(self.flag, tells=True)
        return cast("Switch", code.function(key, now))

    def silent_switch(self, key: str, now: Clock) -> Switch:
        """Return the silent switch of the flag of a key; the flag is boolean and not constant."""
        code = self._silent_code
        if code is None:
            code = self._silent_code = switch_code_of(self.flag)
        return cast("Switch", code.function(key, now))


def _without_written_conditions(flag: Flag) -> Flag:
    """Return a flag with nothing but the parsed conditions of its rules, which compiling reads.

    The conditions as they were written hold most of the lists and dicts that a flag has.
    """
    if not flag.rules:
        return flag
    rules = tuple([msgspec.structs.replace(rule, when={}) for rule in flag.rules])
    return msgspec.structs.replace(flag, rules=rules)


def shared_of(body: bytes) -> Shared | None:
    """Return what flags of a body share, None where it is none.

    None, too, for flags that rest on others, or have secrets, which are of one flag each.
    """
    return _shared_of(body) if len(body) > SHARED_BYTES_MAX else _kept_shared_of(body)


def _shared_of(body: bytes) -> Shared | None:
    try:
        flag = unpack(_NO_KEY, EVERYWHERE, body)
    except InvalidDocumentError:
        return None
    if flag.prerequisites or flag.sensitive or segments_of(flag):
        return None
    return Shared(flag)


_kept_shared_of = functools.lru_cache(SHARED_MAX)(_shared_of)


class Compiled:
    """A flag ready to be asked: in this form, one that always answers the same.

    Attributes:
        version: The flag's.
        constant: Its outcome, where that is always the same.
        prerequisites: The flags that it rests on.
        calls: How many evaluators an evaluation runs at most, prerequisites included.
        follows_clock: Whether its answers can change by time alone.
    """

    __slots__ = ("_evaluator", "_switch", "calls", "constant", "follows_clock", "version")

    prerequisites: "Sequence[Compiled]" = ()

    def __init__(self, version: int, constant: Outcome | None) -> None:
        self.version = version
        self.constant = constant
        self.calls = 0
        self.follows_clock = False
        self._evaluator: Outcome | Evaluator | None = constant
        self._switch: bool | Switch | None = None

    @property
    def evaluator(self) -> Outcome | Evaluator:
        """What `compile_flag` returns."""
        found = self._evaluator
        if found is None:
            found = self._evaluator = self._made_evaluator()
        return found

    @property
    def switch(self) -> bool | Switch:
        """What `compile_switch` returns."""
        found = self._switch
        if found is None:
            found = self._switch = self._made_switch()
        return found

    def silent_switch(self) -> bool | Switch:
        """Return the switch that raises nothing where there is nothing to hash."""
        return self.switch

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
                waiting += compiled.prerequisites
                soonest = min(soonest, compiled._changes_after(attributes, moment))
        return soonest

    def _changes_after(self, attributes: Attributes, moment: float) -> float:  # noqa: ARG002
        """Return when it may answer otherwise, its prerequisites aside."""
        return math.inf

    def _made_evaluator(self) -> Outcome | Evaluator:
        raise AssertionError("a constant is its evaluator")

    def _made_switch(self) -> bool | Switch:
        value = self.constant.value if self.constant is not None else None
        if isinstance(value, Secret):
            value = value.value
        return value if isinstance(value, bool) else leave_to_caller


class _Alone(Compiled):
    """A flag that rests on no others: what it shares, under its key."""

    __slots__ = ("_key", "_now", "_shared")

    def __init__(self, version: int, shared: Shared, key: str, now: Clock) -> None:
        self.version = version
        self.constant = None
        self.calls = 1
        self.follows_clock = shared.follows_clock
        self._evaluator = None
        self._switch = None
        self._shared = shared
        self._key = key
        self._now = now

    def _made_evaluator(self) -> Outcome | Evaluator:
        return self._shared.evaluator(self._key, self._now)

    def _made_switch(self) -> bool | Switch:
        return self._shared.switch(self._key, self._now)

    def silent_switch(self) -> bool | Switch:
        """Return the switch that raises nothing where there is nothing to hash."""
        if self._shared.flag.type != "boolean":
            return leave_to_caller
        return self._shared.silent_switch(self._key, self._now)

    def _changes_after(self, attributes: Attributes, moment: float) -> float:
        return flag_changes_after(self._shared.flag, self._key, attributes, moment)


class _Resting(Compiled):
    """A flag that rests on prerequisites or segments, with their meanings, or that has secrets."""

    __slots__ = ("_flag", "_now", "prerequisites")

    def __init__(
        self, version: int, flag: Flag, prerequisites: Sequence[Compiled], now: Clock
    ) -> None:
        super().__init__(version, None)
        self.prerequisites = prerequisites
        self.calls = 1 + sum([found.calls for found in prerequisites])
        waits = [found for found in prerequisites if found.follows_clock]
        self.follows_clock = bool(waits) or follows_clock(flag)
        self._flag = flag = _without_written_conditions(flag)
        self._now = now
        if self.calls > CALLS_MAX:
            # Not on demand, which would nest as deep as a chain is long.
            self._evaluator = _in_turn(flag, prerequisites, now)

    def _made_evaluator(self) -> Outcome | Evaluator:
        return compile_flag(self._flag, self._evaluators(), self._now)

    def _made_switch(self) -> bool | Switch:
        return self._switch_of_kind(tells=True)

    def silent_switch(self) -> bool | Switch:
        """Return the switch that raises nothing where there is nothing to hash."""
        return self._switch_of_kind(tells=False)

    def _switch_of_kind(self, *, tells: bool) -> bool | Switch:
        flag = self._flag
        if self.calls > CALLS_MAX or flag.sensitive:
            return _switch_of(self.evaluator) if flag.type == "boolean" else leave_to_caller
        return compile_switch(flag, self._evaluators(), self._now, tells=tells)

    def _evaluators(self) -> list[Outcome | Evaluator]:
        return [found.evaluator for found in self.prerequisites]

    def _changes_after(self, attributes: Attributes, moment: float) -> float:
        return flag_changes_after(self._flag, self._flag.key, attributes, moment)


class Asked(Compiled):
    """A prerequisite that is no flag: an evaluator, which may always answer otherwise."""

    __slots__ = ()

    def __init__(self, evaluator: Evaluator) -> None:
        super().__init__(0, None)
        self.calls = 1
        self._evaluator = evaluator


def compiled_alone(version: int, shared: Shared, key: str, now: Clock = time.time) -> Compiled:
    """Return a flag that rests on no others, compiled.

    Args:
        version: The flag's.
        shared: What it shares with others of its body.
        key: Its key.
        now: The clock of its windows.
    """
    return shared.compiled(version, key, now)


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
    return _Resting(version, flag, prerequisites, now)


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
        if isinstance(value, Secret):
            value = value.value
        return value if value is True or value is False else default

    return switch
