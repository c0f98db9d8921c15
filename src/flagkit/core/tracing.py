"""Tracing: flags evaluated step by step, with a record of each, for explanations.

Slow, and apart from the code that answers; tests/test_explanation.py holds the two to each other.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Protocol, cast

from msgspec import Struct

from flagkit.core.bucketing import bucket, seed
from flagkit.core.compiler import off_outcome, outcome_of, without_key
from flagkit.core.evaluation import Outcome
from flagkit.core.explanation import (
    REDACTED,
    ConditionTrace,
    FlagTrace,
    PrerequisiteTrace,
    RolloutTrace,
    RuleTrace,
    shown,
)
from flagkit.core.matching import attribute, matches
from flagkit.core.schedule import is_open, share_at
from flagkit.core.segments import among
from flagkit.core.templates import outcome_without_key
from flagkit.model import Flag, Ramp, Rule, Serve, Serves
from flagkit.model.conditions import Condition
from flagkit.model.foreign import native
from flagkit.model.keys import key_of
from flagkit.model.queries import LOGICAL, OPTIONS, SEGMENT, parse
from flagkit.model.rollouts import BUCKETS, percent, spans
from flagkit.model.segments import Segment
from flagkit.model.values import Value, extension


class Policies(Protocol):
    """What a tracer looks flags and segments up in. All that sound flags refer to is there."""

    def flag(self, key: str) -> tuple[Flag, int]:
        """Return a flag and its version."""
        ...

    def segment(self, key: str) -> tuple[Segment, Mapping[str, Any]]:
        """Return a segment, and the parts of members that it refers to."""
        ...


class Traced(Struct, frozen=True):
    """A flag's trace and its outcome."""

    trace: FlagTrace
    outcome: Outcome


class Tracer:
    """Evaluates for one context at one moment, in seconds; hides attributes at some paths."""

    def __init__(
        self,
        policies: Policies,
        attributes: dict[str, Any],
        moment: float,
        redact: Collection[str] = (),
    ) -> None:
        self._policies = policies
        self._attributes = attributes
        self._moment = moment
        self._redact = [_names(path) for path in redact]
        self._shown: dict[str, Any] = {}

    def trace(self, key: str) -> list[Traced]:
        """Return the traces of a flag, first, and of the prerequisites asked for it.

        Each flag is evaluated once, and nothing is nested, however long the chains.
        """
        done: dict[str, Traced] = {}
        waiting = [key]
        while waiting:
            current = waiting[-1]
            flag, version = self._policies.flag(current)
            needed = self._needed(flag, done)
            if current in done or needed is None:
                waiting.pop()
                done.setdefault(current, self._traced(flag, version, done))
            else:
                waiting.append(needed)
        return list(done.values())[::-1]

    def _needed(self, flag: Flag, done: Mapping[str, Traced]) -> str | None:
        """Return the prerequisite that has to be evaluated next, None if nothing has."""
        if flag.state == "active":
            for wanted in flag.prerequisites:
                found = done.get(wanted.flag)
                if found is None:
                    return wanted.flag
                if found.outcome.variant not in wanted.variants:
                    return None
        return None

    def _traced(self, flag: Flag, version: int, done: Mapping[str, Traced]) -> Traced:
        asked: list[PrerequisiteTrace] = []
        rules: list[RuleTrace] = []
        rollout: RolloutTrace | None = None
        outcome = off_outcome(flag) if flag.state != "active" else None
        for wanted in flag.prerequisites if outcome is None else ():
            served = done[wanted.flag].outcome.variant
            met = served in wanted.variants
            asked.append(
                PrerequisiteTrace(
                    flag_key=wanted.flag, wanted=wanted.variants, served=served, met=met
                )
            )
            if not met:
                outcome = off_outcome(flag)
                break
        if outcome is None:
            for rule in flag.rules:
                tried = self._rule(rule)
                rules.append(tried)
                if tried.holds:
                    outcome = self._served(flag, rule.serves, tried.rollout, rule.name)
                    break
        if outcome is None:
            rollout = self._rollout(flag.fallthrough)
            outcome = self._served(flag, flag.fallthrough, rollout, None)
        trace = FlagTrace(
            flag_key=flag.key,
            region=flag.region,
            version=version,
            state=flag.state,
            variant=outcome.variant,
            reason=outcome.reason,
            rule=outcome.rule,
            prerequisites=tuple(asked),
            rules=tuple(rules),
            rollout=rollout,
        )
        return Traced(trace, outcome)

    def _rule(self, rule: Rule) -> RuleTrace:
        conditions = tuple(self._conditions(rule.when))
        opened = None if rule.during is None else is_open(rule.during, self._moment)
        holds = opened is not False and all(condition.holds for condition in conditions)
        return RuleTrace(
            name=rule.name,
            holds=holds,
            open=opened,
            conditions=conditions,
            rollout=self._rollout(rule.serves) if holds else None,
        )

    def _rollout(self, serves: Serves) -> RolloutTrace | None:
        if isinstance(serves, Serve):
            return None
        by = ".".join(serves.by)
        key = key_of(attribute(self._attributes, serves.by))
        if key is None:
            return RolloutTrace(by=by, salt=serves.salt, key=None)
        place = bucket(seed(serves.salt), key)
        share = None
        if isinstance(serves, Ramp):
            share = share_at(serves, self._moment)
            parts = [(0, share, serves.variant), (share, BUCKETS, serves.otherwise)]
        else:
            parts = spans(serves.intervals)
        start, end, variant = next(part for part in parts if part[0] <= place < part[1])
        return RolloutTrace(
            by=by,
            salt=serves.salt,
            key=REDACTED if self._is_redacted(by) else shown(key),
            bucket=place,
            interval=(start, end),
            variant=variant,
            ramp_percent=None if share is None else percent(share),
        )

    def _served(
        self, flag: Flag, serves: Serves, rollout: RolloutTrace | None, rule: str | None
    ) -> Outcome:
        if isinstance(serves, Serve):
            return outcome_of(flag, serves.variant, rule)
        assert rollout is not None, "what rolls out was traced"
        if rollout.variant is None:
            found = attribute(self._attributes, serves.by)
            return outcome_without_key(found, serves.by, without_key(serves))
        return outcome_of(flag, rollout.variant, rule, split=True)

    def _conditions(self, when: Mapping[str, Value]) -> Iterator[ConditionTrace]:
        for name, written in when.items():
            if name in LOGICAL:
                yield self._logical(name, written)
            elif name == SEGMENT:
                keys = [written] if isinstance(written, str) else written
                assert isinstance(keys, list), "it was parsed"
                traces = tuple(self._segment(str(key)) for key in keys)
                if len(traces) == 1:
                    yield traces[0]
                else:
                    yield _joined("$or", traces)
            else:
                yield from self._tests(name, written)

    def _logical(self, operator: str, written: Value) -> ConditionTrace:
        assert isinstance(written, list), "it was parsed"
        branches: list[ConditionTrace] = []
        for branch in written:
            assert isinstance(branch, dict), "it was parsed"
            inner = tuple(self._conditions(branch))
            branches.append(inner[0] if len(inner) == 1 else _joined("$and", inner))
        return _joined(operator, tuple(branches))

    def _segment(self, key: str) -> ConditionTrace:
        segment, parts = self._policies.segment(key)
        by = ".".join(segment.by)
        excluded = self._test(by, "excluded", None, among(segment, segment.excluded, parts))
        included = self._test(by, "included", None, among(segment, segment.included, parts))
        ways = [included]
        if segment.when is not None:
            conditions = tuple(self._conditions(segment.when))
            ways.append(conditions[0] if len(conditions) == 1 else _joined("$and", conditions))
        holds = not excluded.holds and any(way.holds for way in ways)
        return ConditionTrace(operator=SEGMENT, constant=key, holds=holds, inner=(excluded, *ways))

    def _tests(self, path: str, written: Value) -> Iterator[ConditionTrace]:
        operators: dict[str, Value] = {"$eq": written}
        document: Value = {path: written}
        if (
            isinstance(written, dict)
            and extension(written) is None
            and next(iter(written), "").startswith("$")
        ):
            operators = written
        for operator, constant in operators.items():
            if operator == OPTIONS:
                continue
            shown_constant: Value = constant
            if operators is written:
                one: dict[str, Value] = {operator: constant}
                if operator == "$regex" and OPTIONS in operators:
                    one[OPTIONS] = operators[OPTIONS]
                    shown_constant = one
                document = {path: one}
            yield self._test(path, operator, shown_constant, parse(document, ""))

    def _test(
        self, path: str, operator: str, constant: Value, condition: Condition
    ) -> ConditionTrace:
        at, seen = _seen(self._attributes, path)
        hidden = self._is_redacted(path)
        return ConditionTrace(
            path=path,
            operator=operator,
            constant=REDACTED if hidden and constant is not None else constant,
            present=at is not None,
            seen=None if at is None else self._show(at, seen),
            holds=matches(condition, self._attributes),
        )

    def _show(self, path: str, seen: object) -> Any:
        # Once for each path: what is large, or contains itself, takes long to show.
        if path not in self._shown:
            self._shown[path] = REDACTED if self._is_redacted(path) else shown(seen)
        return self._shown[path]

    def _is_redacted(self, path: str) -> bool:
        """Tell whether what stands at a path is to be hidden, or part of it, or what it is in."""
        names = _names(path)
        return any(
            all(one == other for one, other in zip(names, hidden, strict=False))
            for hidden in self._redact
        )


def _names(path: str) -> list[str]:
    """Return the names of a path without indexes: paths lead into all elements of lists, or one."""
    first, *others = path.split(".")
    return [first, *(name for name in others if not name.isdigit())]


def _seen(attributes: dict[str, Any], path: str) -> tuple[str | None, object]:
    """Return what stands at a path, or a list on the way to it, with its own path; None if none."""
    value: Any = attributes
    names = path.split(".")
    for at, name in enumerate(names):
        if isinstance(value, list | tuple):
            return ".".join(names[:at]), cast("object", value)
        if not isinstance(value, dict) or name not in value:
            return None, None
        value = native(cast("dict[str, Any]", value)[name])
    return path, cast("object", value)


def _joined(operator: str, inner: tuple[ConditionTrace, ...]) -> ConditionTrace:
    held: Iterable[bool] = (condition.holds for condition in inner)
    holds = all(held) if operator == "$and" else any(held)
    return ConditionTrace(operator=operator, holds=holds is not (operator == "$nor"), inner=inner)
