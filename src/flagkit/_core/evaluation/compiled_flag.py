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
    BooleanFn,
    Code,
    EvaluationFn,
    build_off_outcome,
    compile_boolean_fn,
    compile_flag,
    find_constant,
    generate_boolean_code,
    generate_code,
    return_default,
)
from flagkit._core.evaluation.context import Attributes, ContextLike, get_attributes
from flagkit._core.evaluation.result import Outcome
from flagkit._core.evaluation.schedule import find_flag_change, is_time_dependent
from flagkit._core.model import EVERYWHERE, Flag
from flagkit._core.model.flags import collect_flag_segments
from flagkit._core.model.packing import unpack
from flagkit._core.model.sensitive import SecretValue
from flagkit.errors import InvalidDocumentError

CALLS_MAX = 64
"""A flag that may take more calls of other flags' code than this is evaluated in turn."""


class PrerequisiteChain(Struct, frozen=True, eq=False):
    """A flag with a long chain of prerequisites: its own answer, and the prerequisites as steps."""

    answer: Outcome | EvaluationFn
    off: Outcome
    prerequisites: "tuple[tuple[PrerequisiteChain, frozenset[str]], ...]" = ()

    def __call__(self, context: ContextLike) -> Outcome:
        """Return the outcome for a context, as any evaluator does."""
        return self.outcome(context, {})

    def outcome(
        self, context: ContextLike, outcomes: "dict[PrerequisiteChain, Outcome]"
    ) -> Outcome:
        """Return the outcome for a context, and add it to the outcomes that are known for it.

        A caller that evaluates many flags for one context passes the same `outcomes` each time.
        Each step of a chain then runs once, instead of once for each flag that depends on it.
        """
        attributes = get_attributes(context)
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


SHARED_BODIES_MAX: Final = 4_096
"""The cache holds the shared part of flags for at most so many bodies."""
SHARED_BODY_BYTES_MAX: Final = 256
"""Flags seldom share a longer body, such as one with several rules, so it is not cached."""

_NO_KEY: Final = ""
"""The key of no flag. As a salt it is replaced by the key of the flag that uses the body."""


class SharedBody:
    """The shared part of flags with one body and no dependencies: all but keys and versions.

    Attributes:
        flag: The flag of the body under no key, without its conditions as they were written.
        constant: Their outcome, if that is always the same.
        is_time_dependent: True if their answers can change by time alone.
    """

    __slots__ = (
        "_boolean_code",
        "_code",
        "_compiled",
        "_silent_code",
        "constant",
        "flag",
        "is_time_dependent",
    )

    def __init__(self, flag: Flag) -> None:
        self.flag = flag = _without_written_conditions(flag)
        self.constant = find_constant(flag)
        self.is_time_dependent = is_time_dependent(flag)
        self._code: Code | None = None
        self._boolean_code: Code | None = None
        self._silent_code: Code | None = None
        self._compiled: CompiledFlag | None = None

    def compiled(self, version: int, key: str, now: Clock) -> "CompiledFlag":
        """Return the flag of a key, compiled. Constant flags of one version share an object."""
        constant = self.constant
        if constant is None:
            return _IndependentFlag(version, self, key, now)
        found = self._compiled
        if found is None or found.version != version:
            found = self._compiled = CompiledFlag(version, constant)
        return found

    def build_evaluation_fn(self, key: str, now: Clock) -> EvaluationFn:
        """Return the evaluator of the flag of a key; the flag is not constant."""
        code = self._code
        if code is None:
            code = self._code = generate_code(self.flag)
        return cast("EvaluationFn", code.build_function(key, now))

    def build_boolean_fn(self, key: str, now: Clock) -> BooleanFn:
        """Return the boolean function of the flag with a key; the flag is not constant."""
        if self.flag.type != "boolean":
            return return_default
        code = self._boolean_code
        if code is None:
            code = self._boolean_code = generate_boolean_code(self.flag, raises=True)
        return cast("BooleanFn", code.build_function(key, now))

    def build_silent_fn(self, key: str, now: Clock) -> BooleanFn:
        """Return the silent boolean function of the flag with a key, which is not constant."""
        code = self._silent_code
        if code is None:
            code = self._silent_code = generate_boolean_code(self.flag)
        return cast("BooleanFn", code.build_function(key, now))


def _without_written_conditions(flag: Flag) -> Flag:
    """Return a flag with nothing but the parsed conditions of its rules, which compiling reads.

    The conditions as they were written hold most of the lists and dicts that a flag has.
    """
    if not flag.rules:
        return flag
    rules = tuple([msgspec.structs.replace(rule, when={}) for rule in flag.rules])
    return msgspec.structs.replace(flag, rules=rules)


def find_shared_body(body: bytes) -> SharedBody | None:
    """Return the shared part of the flags with a body, None if the body is not valid.

    Flags that depend on others, or that have secrets, share nothing: the result is None, too.
    """
    return (
        _build_shared_body(body)
        if len(body) > SHARED_BODY_BYTES_MAX
        else _build_shared_body_cached(body)
    )


def _build_shared_body(body: bytes) -> SharedBody | None:
    try:
        flag = unpack(_NO_KEY, EVERYWHERE, body)
    except InvalidDocumentError:
        return None
    if flag.prerequisites or flag.sensitive or collect_flag_segments(flag):
        return None
    return SharedBody(flag)


_build_shared_body_cached = functools.lru_cache(SHARED_BODIES_MAX)(_build_shared_body)


class CompiledFlag:
    """A flag that is ready for evaluation. This class is a flag that always answers the same.

    Attributes:
        version: The flag's version.
        constant: Its outcome, if that is always the same.
        prerequisites: The flags that it depends on.
        calls: The most evaluator functions that one evaluation runs, prerequisites included.
        is_time_dependent: True if its answers can change by time alone.
    """

    __slots__ = (
        "_boolean_fn",
        "_evaluation_fn",
        "calls",
        "constant",
        "is_time_dependent",
        "version",
    )

    prerequisites: "Sequence[CompiledFlag]" = ()

    def __init__(self, version: int, constant: Outcome | None) -> None:
        self.version = version
        self.constant = constant
        self.calls = 0
        self.is_time_dependent = False
        self._evaluation_fn: Outcome | EvaluationFn | None = constant
        self._boolean_fn: bool | BooleanFn | None = None

    @property
    def evaluation_fn(self) -> Outcome | EvaluationFn:
        """The result of `compile_flag`."""
        found = self._evaluation_fn
        if found is None:
            found = self._evaluation_fn = self._build_evaluation_fn()
        return found

    @property
    def boolean_fn(self) -> bool | BooleanFn:
        """The result of `compile_boolean_fn`."""
        found = self._boolean_fn
        if found is None:
            found = self._boolean_fn = self._build_boolean_fn()
        return found

    def build_silent_fn(self) -> bool | BooleanFn:
        """Return the boolean function that does not raise MissingKeyError."""
        return self.boolean_fn

    def find_next_change(self, context: ContextLike, moment: float) -> float:
        """Return when it may answer otherwise by time alone, in seconds; infinity if never."""
        attributes = get_attributes(context)
        seen: set[int] = set()
        waiting: list[CompiledFlag] = [self]
        soonest = math.inf
        while waiting:
            compiled = waiting.pop()
            if compiled.is_time_dependent and id(compiled) not in seen:
                seen.add(id(compiled))
                waiting += compiled.prerequisites
                soonest = min(soonest, compiled._find_own_next_change(attributes, moment))
        return soonest

    def _find_own_next_change(self, attributes: Attributes, moment: float) -> float:  # noqa: ARG002
        """Return when it may answer otherwise, its prerequisites aside."""
        return math.inf

    def _build_evaluation_fn(self) -> Outcome | EvaluationFn:
        raise AssertionError("a constant is its evaluator")

    def _build_boolean_fn(self) -> bool | BooleanFn:
        value = self.constant.value if self.constant is not None else None
        if isinstance(value, SecretValue):
            value = value.value
        return value if isinstance(value, bool) else return_default


class _IndependentFlag(CompiledFlag):
    """A flag that depends on no others: the shared part of its body, under its key."""

    __slots__ = ("_key", "_now", "_shared")

    def __init__(self, version: int, shared: SharedBody, key: str, now: Clock) -> None:
        self.version = version
        self.constant = None
        self.calls = 1
        self.is_time_dependent = shared.is_time_dependent
        self._evaluation_fn = None
        self._boolean_fn = None
        self._shared = shared
        self._key = key
        self._now = now

    def _build_evaluation_fn(self) -> Outcome | EvaluationFn:
        return self._shared.build_evaluation_fn(self._key, self._now)

    def _build_boolean_fn(self) -> bool | BooleanFn:
        return self._shared.build_boolean_fn(self._key, self._now)

    def build_silent_fn(self) -> bool | BooleanFn:
        """Return the boolean function that does not raise MissingKeyError."""
        if self._shared.flag.type != "boolean":
            return return_default
        return self._shared.build_silent_fn(self._key, self._now)

    def _find_own_next_change(self, attributes: Attributes, moment: float) -> float:
        return find_flag_change(self._shared.flag, self._key, attributes, moment)


class _DependentFlag(CompiledFlag):
    """A flag that depends on prerequisites or segments, bound to them, or that has secrets."""

    __slots__ = ("_flag", "_now", "prerequisites")

    def __init__(
        self, version: int, flag: Flag, prerequisites: Sequence[CompiledFlag], now: Clock
    ) -> None:
        super().__init__(version, None)
        self.prerequisites = prerequisites
        self.calls = 1 + sum([found.calls for found in prerequisites])
        waits = [found for found in prerequisites if found.is_time_dependent]
        self.is_time_dependent = bool(waits) or is_time_dependent(flag)
        self._flag = flag = _without_written_conditions(flag)
        self._now = now
        if self.calls > CALLS_MAX:
            # Compiling on demand would recurse as deep as the chain is long.
            self._evaluation_fn = _build_chain(flag, prerequisites, now)

    def _build_evaluation_fn(self) -> Outcome | EvaluationFn:
        return compile_flag(self._flag, self._list_evaluation_fns(), self._now)

    def _build_boolean_fn(self) -> bool | BooleanFn:
        return self._compile_boolean_fn(raises=True)

    def build_silent_fn(self) -> bool | BooleanFn:
        """Return the boolean function that does not raise MissingKeyError."""
        return self._compile_boolean_fn(raises=False)

    def _compile_boolean_fn(self, *, raises: bool) -> bool | BooleanFn:
        flag = self._flag
        if self.calls > CALLS_MAX or flag.sensitive:
            return (
                _wrap_as_boolean_fn(self.evaluation_fn)
                if flag.type == "boolean"
                else return_default
            )
        return compile_boolean_fn(flag, self._list_evaluation_fns(), self._now, raises=raises)

    def _list_evaluation_fns(self) -> list[Outcome | EvaluationFn]:
        return [found.evaluation_fn for found in self.prerequisites]

    def _find_own_next_change(self, attributes: Attributes, moment: float) -> float:
        return find_flag_change(self._flag, self._flag.key, attributes, moment)


class CallableFlag(CompiledFlag):
    """A prerequisite that is no flag: an evaluator, which may always answer otherwise."""

    __slots__ = ()

    def __init__(self, evaluator: EvaluationFn) -> None:
        super().__init__(0, None)
        self.calls = 1
        self._evaluation_fn = evaluator


def build_independent_flag(
    version: int, shared: SharedBody, key: str, now: Clock = time.time
) -> CompiledFlag:
    """Return a flag that depends on no others, compiled.

    Args:
        version: The flag's version.
        shared: The part that it shares with other flags of its body.
        key: Its key.
        now: The clock for its windows.
    """
    return shared.compiled(version, key, now)


def build_compiled_flag(
    flag: Flag, version: int, prerequisites: Sequence[CompiledFlag] = (), now: Clock = time.time
) -> CompiledFlag:
    """Return a flag compiled.

    Args:
        flag: A checked flag, bound to its segments.
        version: The flag's version.
        prerequisites: Its prerequisites, compiled, in their order.
        now: The clock for its windows.
    """
    constant = find_constant(flag, [found.constant for found in prerequisites])
    if constant is not None:
        return CompiledFlag(version, constant)
    return _DependentFlag(version, flag, prerequisites, now)


def _build_chain(
    flag: Flag, prerequisites: Sequence[CompiledFlag], now: Clock
) -> PrerequisiteChain:
    off = build_off_outcome(flag)
    steps = [
        evaluator
        if isinstance(evaluator := found.evaluation_fn, PrerequisiteChain)
        else PrerequisiteChain(evaluator, off)
        for found in prerequisites
    ]
    wanted = [frozenset(item.variants) for item in flag.prerequisites]
    return PrerequisiteChain(
        compile_flag(flag, now=now), off, tuple(zip(steps, wanted, strict=True))
    )


def _wrap_as_boolean_fn(evaluator: Outcome | EvaluationFn) -> BooleanFn:
    assert not isinstance(evaluator, Outcome), "only flags that are not constant have one"

    def boolean_fn(context: ContextLike, default: bool) -> bool:  # noqa: FBT001 - a boolean function
        value = evaluator(context).value
        if isinstance(value, SecretValue):
            value = value.value
        return value if value is True or value is False else default

    return boolean_fn
