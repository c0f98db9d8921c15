"""The evaluator: a snapshot with its compiled flags, published by one assignment.

An evaluator answers for exactly one revision. A compilation that began before a change stores its
result in the old evaluator, never in the new one. The new evaluator takes over the compiled flags
that the change does not affect, neither directly nor through a prerequisite.
"""

import contextlib
import gc
import math
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import msgspec

from flagkit._core.background import Log
from flagkit._core.cooperative import pause_gc
from flagkit._core.evaluation.bucketing import Clock
from flagkit._core.evaluation.compiled_flag import (
    CallableFlag,
    CompiledFlag,
    PrerequisiteChain,
    build_compiled_flag,
    build_independent_flag,
    find_shared_body,
)
from flagkit._core.evaluation.compiler import BooleanFn, build_off_outcome
from flagkit._core.evaluation.context import ContextLike, convert_foreign_attributes
from flagkit._core.evaluation.matching import bind_segments, build_segment_condition
from flagkit._core.evaluation.result import (
    ErrorCode,
    Evaluation,
    Outcome,
    Reason,
    build_error_outcome,
    build_evaluation,
)
from flagkit._core.evaluation.schedule import NO_DATE
from flagkit._core.interruptions import FAILURES_SUPPRESSED, is_interruption
from flagkit._core.model import EVERYWHERE, Flag
from flagkit._core.model.changes import SEGMENTS, Change, PolicyId
from flagkit._core.model.conditions import Condition
from flagkit._core.model.flags import Prerequisite, collect_flag_segments
from flagkit._core.model.packing import FAULTS
from flagkit._core.secrets import VariantDecrypter
from flagkit._core.snapshot import Record, Snapshot, unpack_flag, unpack_segment
from flagkit.errors import (
    BrokenReferenceError,
    InvalidContextError,
    InvalidDocumentError,
)

FRESH_PREREQUISITE: Final = Prerequisite("@fresh", ("fresh",))
"""The prerequisite of flags that are off when their snapshot is stale. No flag has this key."""
_FRESH: Final = Outcome(variant="fresh", reason=Reason.STATIC)
_STALE: Final = Outcome(variant="stale", reason=Reason.STATIC)


class Staleness:
    """The time at which a snapshot was last known to be current, and the limit of its age.

    Args:
        max_seconds: The greatest age that is not stale.
        now: A monotonic clock: setting the system's time must not make a snapshot younger.
    """

    __slots__ = ("_now", "as_of", "max_seconds")

    def __init__(self, max_seconds: float = math.inf, now: Clock = time.monotonic) -> None:
        self.max_seconds = max_seconds
        self.as_of = -math.inf
        """When the last read of the head began that showed the snapshot to be current."""
        self._now = now

    @property
    def age(self) -> float:
        """Seconds since the snapshot is known to have been current; infinity if it never was."""
        return self._now() - self.as_of

    @property
    def is_stale(self) -> bool:
        """True if the snapshot is older than the limit."""
        return self.age > self.max_seconds

    @property
    def has_limit(self) -> bool:
        """True if there is a limit."""
        return self.max_seconds < math.inf

    def evaluate(self, _: ContextLike) -> Outcome:
        """Return the outcome of FRESH_PREREQUISITE."""
        return _STALE if self.is_stale else _FRESH


_log = Log("flagkit")

COMPILED_MAX = 65_536
"""The most compiled flags in an evaluator. Beyond it, it evicts the newest: O(1), no stall."""

OBJECTS_AT_ONCE: Final = 5_000
"""`evaluate_all` lets the garbage collector run after about so many new objects: for about 1 ms.

With fewer, the collector would run more often, and more of its runs would walk the whole heap.
"""
KEYS_AT_ONCE: Final = 64
"""After so many flags `evaluate_all` counts the new objects. A flag of five rules makes 40."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Evaluator:
    """A snapshot and its compiled flags. `boolean_fns` serves the hot path of `is_enabled`."""

    __slots__ = (
        "_compiled",
        "_decrypter",
        "_dependents",
        "_segment_conditions",
        "_staleness",
        "_unavailable",
        "boolean_fns",
        "now",
        "snapshot",
    )

    def __init__(
        self,
        snapshot: Snapshot,
        now: Clock,
        staleness: Staleness | None = None,
        decrypter: VariantDecrypter | None = None,
    ) -> None:
        self.snapshot = snapshot
        self.now = now
        self._staleness = staleness or Staleness()
        self._decrypter = decrypter or VariantDecrypter()
        # Flags that were compiled before their decryption keys were available.
        self._unavailable: set[str] = set()
        self.boolean_fns: dict[str, bool | BooleanFn] = {}
        self._compiled: dict[str, CompiledFlag] = {}
        self._segment_conditions: dict[str, Condition] = {}
        # Maps the id of a prerequisite or segment to the keys of flags that were ever compiled
        # against it, in any region. Successive evaluators share the mapping: a superfluous entry
        # costs a compile, a missing one would give wrong answers.
        self._dependents: dict[PolicyId, set[str]] = {}

    def advance(self, snapshot: Snapshot, changes: Sequence[Change]) -> "Evaluator":
        """Return the evaluator of a later snapshot, with the compiled flags that did not change."""
        evaluator = Evaluator(snapshot, self.now, self._staleness, self._decrypter)
        evaluator._dependents = self._dependents
        evaluator._compiled = self._compiled.copy()
        evaluator.boolean_fns = self.boolean_fns.copy()
        evaluator._segment_conditions = self._segment_conditions.copy()
        changed = [policy.id for change in changes for policy in change.policies]
        stale = [(SEGMENTS if region == SEGMENTS else EVERYWHERE, key) for region, key in changed]
        if self._decrypter.is_waiting:
            evaluator._unavailable = self._unavailable
        else:
            # Read this after the copy: a flag is recorded as unavailable before it is stored.
            stale += [(EVERYWHERE, key) for key in tuple(self._unavailable)]
        dropped: set[PolicyId] = set()
        while stale:
            policy = stale.pop()
            if policy in dropped:
                continue
            dropped.add(policy)
            region, key = policy
            if region == SEGMENTS:
                evaluator._segment_conditions.pop(key, None)
            else:
                evaluator._compiled.pop(key, None)
                evaluator.boolean_fns.pop(key, None)
            # A copy made in one step: a compile may add to the set meanwhile.
            dependents = tuple(self._dependents.get(policy, ()))
            stale += [(EVERYWHERE, flag) for flag in dependents]
        return evaluator

    def find(self, key: str) -> CompiledFlag | None:
        """Return a flag, compiled on first use, or None if there is no such flag."""
        compiled = self._compiled.get(key)
        return compiled if compiled is not None else self._compile(key)

    def has_compiled(self, key: str) -> bool:
        """Return True if a flag is compiled. Never raises."""
        with FAILURES_SUPPRESSED:
            return key in self._compiled
        return False

    def has_boolean_fn(self, key: str) -> bool:
        """Return True if a flag's boolean function is ready. Never raises."""
        with FAILURES_SUPPRESSED:
            return key in self.boolean_fns
        return False

    def decrypt_flag(self, record: Record) -> Flag:
        """Return the flag of a record, with its sensitive variants decrypted if possible.

        Raises:
            InvalidDocumentError: its document is not valid.
        """
        return self._decrypter.decrypt(unpack_flag(record), self.snapshot.tip.environment)

    def get_boolean_fn(self, key: str) -> bool | BooleanFn:
        """Return the boolean function of a flag for `is_enabled`, and cache it.

        Raises:
            KeyError: there is no such flag.
        """
        compiled = self.find(key)
        if compiled is None:
            raise KeyError(key)
        if len(self.boolean_fns) >= COMPILED_MAX:
            self.boolean_fns.popitem()
        boolean_fn = self.boolean_fns[key] = compiled.boolean_fn
        return boolean_fn

    def silence(self, key: str) -> None:
        """Replace the boolean function of a flag by one that does not raise MissingKeyError."""
        compiled = self.find(key)
        if compiled is not None and key in self.boolean_fns:
            self.boolean_fns[key] = compiled.build_silent_fn()

    def evaluate(
        self,
        key: str,
        context: ContextLike,
        default: Any,
        max_staleness: float | None = None,
        known: dict[PrerequisiteChain, Outcome] | None = None,
    ) -> Evaluation[Any]:
        """Return the answer of a flag to a caller with a default. Never raises.

        If `max_staleness` is given, an older snapshot also makes this flag stale. Its prerequisites
        still use the client's own limit. `known` caches outcomes of prerequisites for one context.
        """
        freshness, answer = self._staleness, self._answer
        # Staleness is read before the answer, which can then only be older than this says.
        stale = freshness.has_limit and freshness.is_stale
        if max_staleness is not None and not stale:
            with FAILURES_SUPPRESSED:
                if freshness.age > max_staleness:
                    stale, answer = True, self._answer_when_stale
        evaluation = answer(key, context, default, known)
        if stale and evaluation.error_code is None:
            return msgspec.structs.replace(evaluation, reason=Reason.STALE)
        return evaluation

    def evaluate_all(self, keys: Sequence[str], context: ContextLike) -> dict[str, Evaluation[Any]]:
        """Return the answers of some flags, apart from those that serve a secret. Never raises."""
        found: dict[str, Evaluation[Any]] = {}
        known: dict[PrerequisiteChain, Outcome] = {}
        start = 0
        while start < len(keys):
            # Most objects made here stay alive. A run of the collector would free next to nothing,
            # and some runs would walk the whole heap while no other thread runs.
            with pause_gc():
                is_due = False
                while start < len(keys) and not is_due:
                    for key in keys[start : start + KEYS_AT_ONCE]:
                        evaluation = self.evaluate(key, context, None, None, known)
                        if not evaluation.is_sensitive:
                            found[key] = evaluation
                    start += KEYS_AT_ONCE
                    is_due = gc.get_count()[0] > OBJECTS_AT_ONCE
        return found

    def _answer_when_stale(
        self,
        key: str,
        context: ContextLike,
        default: Any,
        known: dict[PrerequisiteChain, Outcome] | None,
    ) -> Evaluation[Any]:
        with FAILURES_SUPPRESSED:
            record = self.snapshot.find(key)
            flag = None if record is None else self.decrypt_flag(record)
            if record is not None and flag is not None and flag.when_stale == "off":
                revision = self.snapshot.tip.revision
                return build_evaluation(
                    key, build_off_outcome(flag), default, record.version, revision
                )
        return self._answer(key, context, default, known)

    def _answer(
        self,
        key: str,
        context: ContextLike,
        default: Any,
        known: dict[PrerequisiteChain, Outcome] | None,
    ) -> Evaluation[Any]:
        """Return the answer of a flag, whatever its age. Never raises."""
        version, revision = 0, self.snapshot.tip.revision
        valid_until = None
        try:
            compiled = self.find(key)
            if compiled is None:
                outcome = _build_not_found(key)
            else:
                version = compiled.version
                if compiled.is_time_dependent:
                    # This reads the clock before the answer, so `valid_until` is never too late.
                    valid_until = _compute_valid_until(compiled, context, self.now())
                evaluator = compiled.evaluation_fn
                if isinstance(evaluator, Outcome):
                    outcome = evaluator
                elif known is not None and isinstance(evaluator, PrerequisiteChain):
                    outcome = evaluator.outcome(context, known)
                else:
                    outcome = evaluator(context)
            return build_evaluation(key, outcome, default, version, revision, valid_until)
        except Exception as error:
            # A caller's odd key, context or default must not hurt the caller.
            if is_interruption(error):
                raise
            with FAILURES_SUPPRESSED:
                attributes = convert_foreign_attributes(context)
                if attributes is not None:
                    return self._answer(key, attributes, default, known)
            return build_evaluation(key, _build_failure(error), default, version, revision)

    def _compile(self, key: str) -> CompiledFlag | None:
        record = self.snapshot.find(key)
        if record is None:
            return None
        alone = self._compile_independent(record)
        return alone if alone is not None else self._compile_dependent(record)

    def _compile_independent(self, record: Record) -> CompiledFlag | None:
        """Compile a flag that depends on nothing; return None for any other."""
        shared = find_shared_body(record.body)
        if shared is None or self._needs_fresh_snapshot(shared.flag):
            return None
        compiled = build_independent_flag(record.version, shared, record.key, self.now)
        return self._store(record.key, compiled)

    def _compile_dependent(self, record: Record) -> CompiledFlag | None:
        """Compile a flag after its prerequisites, iteratively: chains may be of any length."""
        done: dict[str, CompiledFlag | None] = {}
        pending = {record.key: self._begin_flag(record)}
        waiting = [record.key]
        while waiting:
            current = waiting[-1]
            if current in done or current in self._compiled:
                done.setdefault(current, self._compiled.get(current))
                waiting.pop()
                continue
            if current not in pending:
                found = self.snapshot.find(current)
                independent = None if found is None else self._compile_independent(found)
                if found is None or independent is not None:
                    done[current] = independent
                    continue
                pending[current] = self._begin_flag(found)
            flag = pending[current].flag
            wanted = [] if flag is None else [item.flag for item in flag.prerequisites]
            missing = [name for name in wanted if name not in done]
            if missing and pending.keys().isdisjoint(missing):
                waiting += missing
                continue
            # A prerequisite that was begun but is not done depends on this flag: a cycle.
            cycle = [name for name in pending if name not in done] if missing else []
            done[current] = self._compile_and_store(current, pending[current], done, cycle)
        return done[record.key]

    def _needs_fresh_snapshot(self, flag: Flag) -> bool:
        """Return True if the flag depends on the freshness of its snapshot."""
        return flag.when_stale == "off" and self._staleness.has_limit

    def _begin_flag(self, record: Record) -> "_PendingFlag":
        try:
            flag = unpack_flag(record)
        except InvalidDocumentError as error:
            return _PendingFlag(record.version, None, error)
        dependencies = [(EVERYWHERE, prerequisite.flag) for prerequisite in flag.prerequisites]
        dependencies += [(SEGMENTS, segment) for segment in collect_flag_segments(flag)]
        for policy in dependencies:
            self._dependents.setdefault(policy, set()).add(flag.key)
        return _PendingFlag(record.version, flag, None)

    def _bind_segments(self, flag: Flag) -> Flag:
        """Return a flag bound to the conditions of the segments that it refers to."""
        names = collect_flag_segments(flag)
        if not names:
            return flag
        conditions = {name: self._get_segment_condition(name) for name in names}
        rules = tuple(
            msgspec.structs.replace(rule, condition=bind_segments(rule.condition, conditions))
            for rule in flag.rules
        )
        return msgspec.structs.replace(flag, rules=rules)

    def _get_segment_condition(self, key: str) -> Condition:
        found = self._segment_conditions.get(key)
        if found is None:
            record = self.snapshot.find_segment(key)
            if record is None:
                raise _build_reference_error(
                    "rules", f"refer to the segment {key}, which does not exist"
                )
            segment = unpack_segment(record)
            try:
                found = self._segment_conditions[key] = build_segment_condition(
                    segment, self.snapshot.parts
                )
            except KeyError:
                raise _build_reference_error(
                    "rules", f"refer to {key}, members of which are missing"
                ) from None
        return found

    def _check_prerequisite(self, key: str, compiled: CompiledFlag | None) -> CompiledFlag:
        if compiled is None:
            if not self.snapshot.is_in_scope((EVERYWHERE, key)):
                raise InvalidDocumentError(
                    "prerequisites",
                    f"name {key}, which is in none of the namespaces that this client keeps",
                    "Add one to namespaces=",
                )
            raise _build_reference_error("prerequisites", f"name {key}, which does not exist")
        constant = compiled.constant
        if constant is not None and constant.error_code is ErrorCode.PARSE_ERROR:
            raise _build_reference_error("prerequisites", f"name {key}, which is broken itself")
        return compiled

    def _compile_and_store(
        self,
        key: str,
        pending: "_PendingFlag",
        done: dict[str, CompiledFlag | None],
        cycle: list[str],
    ) -> CompiledFlag:
        """Compile a flag and cache it. A flag that cannot be compiled is cached as a PARSE_ERROR.

        Only faults of policies are cached. Faults of the caller's circumstances are raised, and the
        next call compiles the flag again: an exhausted stack or memory, or an exception from a
        signal handler or another thread.
        """
        try:
            compiled = self._compile_pending(key, pending, done, cycle)
        except FAULTS as error:
            if is_interruption(error) or not self._fails_again(key, str(error), done, cycle):
                raise
            # A broken flag answers the caller's default and leaves the other flags alone.
            _log.warning("%s answers callers' defaults: %s", key, error)
            compiled = CompiledFlag(
                pending.version, build_error_outcome(ErrorCode.PARSE_ERROR, str(error))
            )
        return self._store(key, compiled)

    def _fails_again(
        self, key: str, problem: str, done: dict[str, CompiledFlag | None], cycle: list[str]
    ) -> bool:
        """Return True if compiling a flag fails in the same way a second time.

        An exception that another thread injected occurs once. A fault of a policy repeats.
        """
        record = self.snapshot.find(key)
        assert record is not None, "it was compiled from there"
        try:
            self._compile_pending(key, self._begin_flag(record), done, cycle)
        except FAULTS as error:
            return str(error) == problem
        return False

    def _compile_pending(
        self,
        key: str,
        pending: "_PendingFlag",
        done: dict[str, CompiledFlag | None],
        cycle: list[str],
    ) -> CompiledFlag:
        if pending.flag is None:
            raise pending.error or AssertionError
        if cycle:
            raise _build_reference_error(
                "prerequisites", f"form a cycle: {' -> '.join((*cycle, cycle[0]))}"
            )
        found = [
            self._check_prerequisite(item.flag, done[item.flag])
            for item in pending.flag.prerequisites
        ]
        if pending.flag.sensitive and self._decrypter.is_waiting:
            self._unavailable.add(key)
        flag = self._bind_segments(
            self._decrypter.decrypt(pending.flag, self.snapshot.tip.environment)
        )
        if self._needs_fresh_snapshot(flag):
            guarded = (FRESH_PREREQUISITE, *flag.prerequisites)
            flag = msgspec.structs.replace(flag, prerequisites=guarded)
            found.insert(0, CallableFlag(self._staleness.evaluate))
        return build_compiled_flag(flag, pending.version, found, self.now)

    def _store(self, key: str, compiled: CompiledFlag) -> CompiledFlag:
        if len(self._compiled) >= COMPILED_MAX:
            evicted, _ = self._compiled.popitem()
            self.boolean_fns.pop(evicted, None)
        self._compiled[key] = compiled
        return compiled


class UnattendedEvaluator(Evaluator):
    """The evaluator of a client whose background thread does not run: each call restarts it.

    Such a client is still asked for evaluations. `boolean_fns` stays empty, so that each check
    calls this class, and the client's hot path needs no test.

    Attributes:
        evaluator: The evaluator that this one replaces.

    Args:
        attended: The evaluator to replace. It answers all calls.
        on_evaluation: Called before each answer. It must not raise or wait.
    """

    __slots__ = ("_on_evaluation", "evaluator")

    def __init__(self, attended: Evaluator, on_evaluation: Callable[[], object]) -> None:
        for name in Evaluator.__slots__:
            setattr(self, name, getattr(attended, name))
        self.boolean_fns = {}
        self.evaluator = attended
        self._on_evaluation = on_evaluation

    def get_boolean_fn(self, key: str) -> bool | BooleanFn:
        """Return the boolean function of a flag, without caching it."""
        self._on_evaluation()
        compiled = self.find(key)
        if compiled is None:
            raise KeyError(key)
        return compiled.boolean_fn

    def evaluate(
        self,
        key: str,
        context: ContextLike,
        default: Any,
        max_staleness: float | None = None,
        known: dict[PrerequisiteChain, Outcome] | None = None,
    ) -> Evaluation[Any]:
        """Return the answer of a flag, as `Evaluator.evaluate` does."""
        self._on_evaluation()
        return super().evaluate(key, context, default, max_staleness, known)


def _compute_valid_until(
    compiled: CompiledFlag, context: ContextLike, moment: float
) -> datetime | None:
    """Return until when an answer is valid; it is now if the calendar ends before that."""
    try:
        return _to_date(compiled.find_next_change(context, moment))
    except NO_DATE as error:
        # Some exceptions of signal handlers are of these types, such as TimeoutError.
        if is_interruption(error):
            raise
    with contextlib.suppress(*NO_DATE):
        return _to_date(moment)
    # The clock itself is out of order: a date that has passed.
    return _EPOCH


def _to_date(moment: float) -> datetime | None:
    return None if moment == math.inf else datetime.fromtimestamp(moment, UTC)


def _build_not_found(key: str) -> Outcome:
    return build_error_outcome(ErrorCode.FLAG_NOT_FOUND, f"there is no flag {key!r}")


def _build_failure(error: Exception) -> Outcome:
    if isinstance(error, InvalidContextError):
        return build_error_outcome(ErrorCode.INVALID_CONTEXT, str(error))
    # The message may quote attributes of the context, so only the type is shown.
    return build_error_outcome(ErrorCode.GENERAL, f"evaluation raised {type(error).__name__}")


class _PendingFlag(NamedTuple):
    """A flag that waits for its prerequisites; without `flag`, the fault of its document."""

    version: int
    flag: Flag | None
    error: Exception | None


def _build_reference_error(path: str, problem: str) -> BrokenReferenceError:
    return BrokenReferenceError(path, problem, "The writer refuses this: write them anew")
