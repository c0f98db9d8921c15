"""Explanations: one evaluation, traced step by step and rendered as data and as text.

Tracing is slow and separate from the code that answers. The answer itself comes from the compiled
code; the trace follows the written policy beside it. tests/evaluation/test_explanation.py checks
that both agree.
"""

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final, TypeVar, cast

import msgspec
from msgspec import Struct

from flagkit._core.evaluation.bucketing import compute_bucket, compute_seed
from flagkit._core.evaluation.compiler import (
    build_missing_key_outcome,
    build_off_outcome,
    build_outcome,
    get_outcome_without_key,
)
from flagkit._core.evaluation.context import ContextLike, get_attributes
from flagkit._core.evaluation.evaluator import Evaluator
from flagkit._core.evaluation.matching import build_member_test, get_attribute, matches
from flagkit._core.evaluation.result import Evaluation, Outcome, Reason, build_evaluation
from flagkit._core.evaluation.schedule import compute_share, is_open
from flagkit._core.interruptions import is_interruption
from flagkit._core.model import EVERYWHERE, Flag, Ramp, Rule, Serve, Serves
from flagkit._core.model.conditions import (
    LOGICAL_OPERATORS,
    OPTIONS,
    SEGMENT,
    Condition,
    parse_condition,
)
from flagkit._core.model.foreign import to_native
from flagkit._core.model.keys import to_bucketing_key
from flagkit._core.model.rollouts import BUCKETS, list_spans, to_percent
from flagkit._core.model.segments import Segment
from flagkit._core.model.values import Value, find_extended_form
from flagkit._core.printable import to_printable
from flagkit._core.snapshot import Part, unpack_segment

T = TypeVar("T")

REDACTED: Final = "[redacted]"
_WIDTH_MAX: Final = 72
_TEXT_MAX, _ITEMS_MAX, _DEPTH_MAX, _BITS_MAX = 1000, 50, 6, 63
_TEXT_ALL_MAX, _ITEMS_ALL_MAX = 10_000, 1000


class ConditionTrace(Struct, frozen=True, kw_only=True):
    """One test of a condition, or several below a logical operator.

    `seen` is the attribute at the path; lists are shown whole. `present` is true if there is one.
    `constant` is the policy's value to compare with. With a logical operator, and with `$segment`,
    `inner` has the tests below it.
    """

    operator: str
    holds: bool
    path: str | None = None
    constant: Any = None
    present: bool = False
    seen: Any = None
    inner: "tuple[ConditionTrace, ...]" = ()


class RolloutTrace(Struct, frozen=True, kw_only=True):
    """The choice of a variant by a rollout or ramp.

    `key` was hashed with `salt`. It is truncated if it is long, and None if there was no key.
    `bucket` is in [0, 100,000) and lies in `interval`, whose end is exclusive. `ramp_percent` is
    the share of a ramp at the time.
    """

    by: str
    salt: str
    key: str | None
    bucket: int | None = None
    interval: tuple[int, int] | None = None
    variant: str | None = None
    ramp_percent: float | None = None


class RuleTrace(Struct, frozen=True, kw_only=True):
    """A targeting rule that was tried. `open` is whether its window was; None without a window."""

    name: str
    holds: bool
    open: bool | None
    conditions: tuple[ConditionTrace, ...]
    rollout: RolloutTrace | None = None


class PrerequisiteTrace(Struct, frozen=True, kw_only=True):
    """A prerequisite that was asked: the variants that would do, and the one it served."""

    flag_key: str
    wanted: tuple[str, ...]
    served: str | None
    met: bool


class FlagTrace(Struct, frozen=True, kw_only=True):
    """One flag that was evaluated: its steps in order, up to the one that decided.

    `rollout` is the fallthrough's.
    """

    flag_key: str
    region: str
    version: int
    state: str
    variant: str | None
    reason: str
    rule: str | None
    prerequisites: tuple[PrerequisiteTrace, ...]
    rules: tuple[RuleTrace, ...]
    rollout: RolloutTrace | None


class Explanation(Struct, frozen=True, kw_only=True):
    """An evaluation and the steps that led to it; `str()` gives it as text.

    In the text, control and invisible characters of quoted values are escapes.

    `flags` are the requested flag, first, and the prerequisites that were evaluated for it. It is
    empty if nothing was evaluated, if the flag is off because its snapshot is stale, or if the
    context, the default or the clock misbehaved. `time` is the time that windows and ramps used,
    in UTC; it is the epoch if the clock gave a time that no calendar has.
    """

    evaluation: Evaluation[Any]
    time: datetime
    flags: tuple[FlagTrace, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values, with strings for dates and similar values.

        The caller's key and default are truncated as attributes are. Never raises.
        """
        encodable = msgspec.structs.replace(self, evaluation=_to_plain_evaluation(self.evaluation))
        plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(encodable))
        return plain

    def __str__(self) -> str:
        return "\n".join(map(to_printable, _iter_lines(self)))


def truncate_for_display(value: object) -> Any:
    """Return an attribute as plain data, truncated if it is long or deep. Never raises.

    The result has at most 1,000 items and 10,000 characters in total.
    """
    return _Truncater().to_plain(value, 0)


class _Truncater:
    """Truncates one value: counts down the items and characters that may still be shown."""

    def __init__(self) -> None:
        self._items = _ITEMS_ALL_MAX
        self._characters = _TEXT_ALL_MAX

    def to_plain(self, value: object, depth: int) -> Any:
        try:
            return self._convert(value, depth)
        except Exception as error:
            # A caller's object may raise anything.
            if is_interruption(error):
                raise
            # `type.__repr__` gives the type's name without calling its metaclass.
            return self._truncate_text(f"an object of {type.__repr__(type(value))}")

    # The methods of the plain types, and not those by which a caller's own types replace them.
    def _convert(self, value: object, depth: int) -> Any:  # noqa: PLR0911 - one for each type
        value = to_native(value)
        match value:
            case None | True | False:
                return value
            case float():
                return float.__float__(value)
            case int():
                bits = int.bit_length(value)
                return int.__int__(value) if bits <= _BITS_MAX else f"an integer of {bits} bits"
            case str():
                return self._truncate_text(value)
            case list() | tuple() | dict() if depth == _DEPTH_MAX:
                return "..."
            case list() | tuple():
                items = cast("list[object] | tuple[object, ...]", value)
                cut = [self.to_plain(item, depth + 1) for item in self._iter_limited(items)]
                return cut if len(cut) == len(items) else [*cut, f"... {len(items):,} in all"]
            case dict():
                fields = cast("dict[object, object]", value)
                return {
                    str(self.to_plain(name, depth + 1)): self.to_plain(item, depth + 1)
                    for name, item in self._iter_limited(fields.items())
                }
            case _:
                return self._truncate_text(repr(value))

    def _iter_limited(self, items: Iterable[T]) -> Iterator[T]:
        for item in itertools.islice(items, _ITEMS_MAX):
            if not self._items:
                return
            self._items -= 1
            yield item

    def _truncate_text(self, text: str) -> str:
        whole = str.__str__(text)
        cut = whole[: min(_TEXT_MAX, self._characters)]
        self._characters -= len(cut)
        ending = "" if len(cut) == len(whole) else "..."
        return cut.encode("utf-8", "backslashreplace").decode() + ending


def _to_plain_evaluation(evaluation: Evaluation[Any]) -> Evaluation[Any]:
    """Return an evaluation with the caller's key and default as plain data."""
    return msgspec.structs.replace(
        evaluation,
        flag_key=truncate_for_display(evaluation.flag_key),
        value=_to_plain_value(evaluation.value)
        if evaluation.variant is not None
        else truncate_for_display(evaluation.value),
        error_message=truncate_for_display(evaluation.error_message),
    )


def _to_plain_value(value: Any) -> Any:
    """Return a variant's value, or its text if JSON cannot express it.

    No writer stores such a value. A document from outside flagkit may have a null as a name.
    """
    try:
        msgspec.json.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return truncate_for_display(value)
    return value


def _iter_lines(explanation: Explanation) -> Iterator[str]:
    found = _to_plain_evaluation(explanation.evaluation)
    served = f"{found.variant!r}, " if found.variant is not None else "the default, "
    by = f" by rule {found.rule!r}" if found.rule else ""
    yield f"{found.flag_key} is {_shorten(found.value)}: {served}{found.reason}{by}"
    if found.error_code is not None:
        yield f"  {found.error_code}: {found.error_message}"
    until = f", valid until {found.valid_until.isoformat()}" if found.valid_until else ""
    yield f"  at revision {found.revision}, {explanation.time.isoformat()}{until}"
    for flag in explanation.flags:
        yield from _iter_flag_lines(flag)


def _iter_flag_lines(flag: FlagTrace) -> Iterator[str]:
    where = "" if flag.region == EVERYWHERE else f", of region {flag.region}"
    yield f"flag {flag.flag_key}, version {flag.version}{where}, {flag.state}"
    for wanted in flag.prerequisites:
        met = "met" if wanted.met else "not met"
        yield (
            f"  prerequisite {wanted.flag_key} serves {wanted.served!r}: {met}, wanted is"
            f" {' or '.join(map(repr, wanted.wanted))}"
        )
    for rule in flag.rules:
        yield f"  rule {rule.name!r}: {'holds' if rule.holds else 'does not hold'}"
        if rule.open is not None:
            yield f"    the window is {'open' if rule.open else 'closed'}"
        for condition in rule.conditions:
            yield from _iter_condition_lines(condition, "    ")
        if rule.rollout is not None:
            yield f"    {_format_rollout(rule.rollout)}"
    if flag.rollout is not None:
        yield f"  fallthrough: {_format_rollout(flag.rollout)}"
    served = repr(flag.variant) if flag.variant is not None else "no variant"
    yield f"  serves {served}: {flag.reason}"


def _iter_condition_lines(condition: ConditionTrace, indent: str) -> Iterator[str]:
    mark = "yes" if condition.holds else "no "
    if condition.path is None:
        named = f" {_shorten(condition.constant)}" if condition.constant is not None else ""
        yield f"{indent}{mark} {condition.operator}{named}"
        for inner in condition.inner:
            yield from _iter_condition_lines(inner, f"{indent}    ")
        return
    seen = f"seen: {_shorten(condition.seen)}" if condition.present else "not there"
    constant = f" {_shorten(condition.constant)}" if condition.constant is not None else ""
    yield f"{indent}{mark} {condition.path} {condition.operator}{constant} ({seen})"


def _format_rollout(rollout: RolloutTrace) -> str:
    if rollout.bucket is None or rollout.interval is None:
        return f"rollout by {rollout.by}: the context has nothing to hash there"
    ramp = f", a ramp at {rollout.ramp_percent:g} %" if rollout.ramp_percent is not None else ""
    start, end = rollout.interval
    return (
        f"rollout by {rollout.by}{ramp}: {rollout.key!r} under salt {rollout.salt!r} is in bucket"
        f" {rollout.bucket:,}, from {to_percent(start):g} to {to_percent(end):g} %:"
        f" {rollout.variant!r}"
    )


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _WIDTH_MAX else f"{text[:_WIDTH_MAX]}... ({len(text):,} characters)"


class TracedFlag(Struct, frozen=True):
    """A flag's trace and its outcome."""

    trace: FlagTrace
    outcome: Outcome


class Tracer:
    """Evaluates for one context at one moment, in seconds; hides attributes at some paths."""

    def __init__(
        self,
        policies: "FlagLookup",
        attributes: dict[str, Any],
        moment: float,
        redact: Collection[str] = (),
    ) -> None:
        self._policies = policies
        self._attributes = attributes
        self._moment = moment
        self._redacted_names = [_split_path(path) for path in redact]
        self._display_cache: dict[str, Any] = {}

    def trace(self, key: str) -> list[TracedFlag]:
        """Return the traces of a flag, first, and of the prerequisites asked for it.

        Each flag is evaluated once, and nothing is nested, however long the chains.
        """
        done: dict[str, TracedFlag] = {}
        waiting = [key]
        while waiting:
            current = waiting[-1]
            flag, version = self._policies.get_flag(current)
            needed = self._find_next_prerequisite(flag, done)
            if current in done or needed is None:
                waiting.pop()
                done.setdefault(current, self._trace_flag(flag, version, done))
            else:
                waiting.append(needed)
        return list(done.values())[::-1]

    def _find_next_prerequisite(self, flag: Flag, done: Mapping[str, TracedFlag]) -> str | None:
        """Return the prerequisite that has to be evaluated next, None if nothing has."""
        if flag.state == "active":
            for wanted in flag.prerequisites:
                found = done.get(wanted.flag)
                if found is None:
                    return wanted.flag
                if found.outcome.variant not in wanted.variants:
                    return None
        return None

    def _trace_flag(self, flag: Flag, version: int, done: Mapping[str, TracedFlag]) -> TracedFlag:
        asked: list[PrerequisiteTrace] = []
        rules: list[RuleTrace] = []
        rollout: RolloutTrace | None = None
        outcome = build_off_outcome(flag) if flag.state != "active" else None
        for wanted in flag.prerequisites if outcome is None else ():
            served = done[wanted.flag].outcome.variant
            met = served in wanted.variants
            asked.append(
                PrerequisiteTrace(
                    flag_key=wanted.flag, wanted=wanted.variants, served=served, met=met
                )
            )
            if not met:
                outcome = build_off_outcome(flag)
                break
        if outcome is None:
            for rule in flag.rules:
                tried = self._trace_rule(rule)
                rules.append(tried)
                if tried.holds:
                    outcome = self._build_served_outcome(
                        flag, rule.serves, tried.rollout, rule.name
                    )
                    break
        if outcome is None:
            rollout = self._trace_rollout(flag.fallthrough)
            outcome = self._build_served_outcome(flag, flag.fallthrough, rollout, None)
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
        return TracedFlag(trace, outcome)

    def _trace_rule(self, rule: Rule) -> RuleTrace:
        conditions = tuple(self._iter_conditions(rule.when))
        is_window_open = None if rule.during is None else is_open(rule.during, self._moment)
        holds = is_window_open is not False and all(condition.holds for condition in conditions)
        return RuleTrace(
            name=rule.name,
            holds=holds,
            open=is_window_open,
            conditions=conditions,
            rollout=self._trace_rollout(rule.serves) if holds else None,
        )

    def _trace_rollout(self, serves: Serves) -> RolloutTrace | None:
        if isinstance(serves, Serve):
            return None
        by = ".".join(serves.by)
        key = to_bucketing_key(get_attribute(self._attributes, serves.by))
        if key is None:
            return RolloutTrace(by=by, salt=serves.salt, key=None)
        place = compute_bucket(compute_seed(serves.salt), key)
        share = None
        if isinstance(serves, Ramp):
            share = compute_share(serves, self._moment)
            parts = [(0, share, serves.variant), (share, BUCKETS, serves.otherwise)]
        else:
            parts = list_spans(serves.intervals)
        start, end, variant = next(part for part in parts if part[0] <= place < part[1])
        return RolloutTrace(
            by=by,
            salt=serves.salt,
            key=REDACTED if self._is_redacted(by) else truncate_for_display(key),
            bucket=place,
            interval=(start, end),
            variant=variant,
            ramp_percent=None if share is None else to_percent(share),
        )

    def _build_served_outcome(
        self, flag: Flag, serves: Serves, rollout: RolloutTrace | None, rule: str | None
    ) -> Outcome:
        if isinstance(serves, Serve):
            return build_outcome(flag, serves.variant, rule)
        assert rollout is not None, "what rolls out was traced"
        if rollout.variant is None:
            found = get_attribute(self._attributes, serves.by)
            return get_outcome_without_key(found, serves.by, build_missing_key_outcome(serves))
        return build_outcome(flag, rollout.variant, rule, split=True)

    def _iter_conditions(self, when: Mapping[str, Value]) -> Iterator[ConditionTrace]:
        for name, written in when.items():
            if name == SEGMENT:
                keys = [written] if isinstance(written, str) else written
                assert isinstance(keys, list), "it was parsed"
                traces = tuple(self._trace_segment(str(key)) for key in keys)
                if len(traces) == 1:
                    yield traces[0]
                else:
                    yield _join_traces("$or", traces)
            elif name in LOGICAL_OPERATORS:
                yield self._trace_logical(name, written)
            else:
                yield from self._iter_tests(name, written)

    def _trace_logical(self, operator: str, written: Value) -> ConditionTrace:
        assert isinstance(written, list), "it was parsed"
        branches: list[ConditionTrace] = []
        for branch in written:
            assert isinstance(branch, dict), "it was parsed"
            inner = tuple(self._iter_conditions(branch))
            branches.append(inner[0] if len(inner) == 1 else _join_traces("$and", inner))
        return _join_traces(operator, tuple(branches))

    def _trace_segment(self, key: str) -> ConditionTrace:
        segment, parts = self._policies.get_segment(key)
        by = ".".join(segment.by)
        excluded = self._trace_test(
            by, "excluded", None, build_member_test(segment, segment.excluded, parts)
        )
        included = self._trace_test(
            by, "included", None, build_member_test(segment, segment.included, parts)
        )
        ways = [included]
        if segment.when is not None:
            conditions = tuple(self._iter_conditions(segment.when))
            ways.append(conditions[0] if len(conditions) == 1 else _join_traces("$and", conditions))
        holds = not excluded.holds and any(way.holds for way in ways)
        return ConditionTrace(operator=SEGMENT, constant=key, holds=holds, inner=(excluded, *ways))

    def _iter_tests(self, path: str, written: Value) -> Iterator[ConditionTrace]:
        operators: dict[str, Value] = {"$eq": written}
        document: Value = {path: written}
        if (
            isinstance(written, dict)
            and find_extended_form(written) is None
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
            yield self._trace_test(path, operator, shown_constant, parse_condition(document, ""))

    def _trace_test(
        self, path: str, operator: str, constant: Value, condition: Condition
    ) -> ConditionTrace:
        at, seen = _find_value(self._attributes, path)
        hidden = self._is_redacted(path)
        return ConditionTrace(
            path=path,
            operator=operator,
            constant=REDACTED if hidden and constant is not None else constant,
            present=at is not None,
            seen=None if at is None else self._display(at, seen),
            holds=matches(condition, self._attributes),
        )

    def _display(self, path: str, seen: object) -> Any:
        # Convert each path once: large or recursive values take long.
        if path not in self._display_cache:
            self._display_cache[path] = (
                REDACTED if self._is_redacted(path) else truncate_for_display(seen)
            )
        return self._display_cache[path]

    def _is_redacted(self, path: str) -> bool:
        """Return True if the value at a path, a part of it, or an enclosing one must be hidden."""
        names = _split_path(path)
        return any(
            all(one == other for one, other in zip(names, hidden, strict=False))
            for hidden in self._redacted_names
        )


def _split_path(path: str) -> list[str]:
    """Return the names of a path without indexes: paths lead into all elements of lists, or one."""
    first, *others = path.split(".")
    return [first, *(name for name in others if not name.isdigit())]


def _find_value(attributes: dict[str, Any], path: str) -> tuple[str | None, object]:
    """Return the value at a path, or a list on the way to it, with its own path; None if none."""
    value: Any = attributes
    names = path.split(".")
    for at, name in enumerate(names):
        if isinstance(value, list | tuple):
            return ".".join(names[:at]), cast("object", value)
        if not isinstance(value, dict) or name not in value:
            return None, None
        value = to_native(cast("dict[str, Any]", value)[name])
    return path, cast("object", value)


def _join_traces(operator: str, inner: tuple[ConditionTrace, ...]) -> ConditionTrace:
    held: Iterable[bool] = (condition.holds for condition in inner)
    holds = all(held) if operator == "$and" else any(held)
    return ConditionTrace(operator=operator, holds=holds is not (operator == "$nor"), inner=inner)


REDACTED_MAX = 1_000
"""At most so many paths are redacted. Some iterators never end."""
EXPLANATIONS_MAX = 3
"""The most attempts at an explanation while the clock changes the answer."""


def explain_flag(
    evaluator: Evaluator, key: str, context: ContextLike, default: Any, redact: Collection[str] = ()
) -> Explanation:
    """Return the answer of a flag with the steps that led to it. Never raises.

    The steps are left out if there are none, or if the caller's arguments or the clock misbehave.
    """
    # The loop repeats if time changed the answer between the evaluation and its trace.
    evaluation = evaluator.evaluate(key, context, default)
    time = datetime.fromtimestamp(0, UTC)
    flags: tuple[FlagTrace, ...] = ()
    try:
        hidden = _check_paths(redact)
        for _ in range(EXPLANATIONS_MAX):
            moment = evaluator.now()
            time = datetime.fromtimestamp(moment, UTC)
            traced = _trace(evaluator, key, context, moment, hidden)
            if not traced:
                break
            if _is_same_answer(evaluation, build_evaluation(key, traced[0].outcome, default)):
                flags = tuple(item.trace for item in traced)
                break
            evaluation = evaluator.evaluate(key, context, default)
    except Exception as error:
        # A caller's odd key, context or default must not hurt the caller.
        if is_interruption(error):
            raise
        flags = ()
    return Explanation(evaluation=evaluation.without_secret(), time=time, flags=flags)


def _check_paths(redact: Collection[str]) -> tuple[str, ...]:
    """Return the paths to redact.

    Raises:
        TypeError, ValueError: they are no paths, or too many. Nothing may be shown then.
    """
    given = (redact,) if isinstance(redact, str) else tuple(islice(redact, REDACTED_MAX + 1))
    paths = tuple(map(str.__str__, given))
    if len(paths) > REDACTED_MAX:
        raise ValueError(f"more than {REDACTED_MAX} paths to redact")
    return paths


def _trace(
    evaluator: Evaluator, key: str, context: ContextLike, moment: float, redact: Collection[str]
) -> list[TracedFlag]:
    """Return the steps of an evaluation; none if the flag is unknown or broken."""
    compiled = evaluator.find(key)
    broken = compiled.constant if compiled is not None else None
    if compiled is None or (broken is not None and broken.error_code is not None):
        return []
    return Tracer(FlagLookup(evaluator), get_attributes(context), moment, redact).trace(key)


def _is_same_answer(one: Evaluation[Any], other: Evaluation[Any]) -> bool:
    # A trace does not know that the snapshot is stale, so STALE equals any reason.
    return (one.variant, one.rule, one.error_code) == (
        other.variant,
        other.rule,
        other.error_code,
    ) and one.reason in (other.reason, Reason.STALE)


class FlagLookup:
    """The flags and segments of a snapshot for a tracer. Their references must be sound."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        self._snapshot = evaluator.snapshot
        self._flags: dict[str, tuple[Flag, int]] = {}

    def get_flag(self, key: str) -> tuple[Flag, int]:
        """Return a flag and its version."""
        found = self._flags.get(key)
        if found is None:
            record = self._snapshot.find(key)
            assert record is not None, "a sound flag refers to what there is"
            found = self._flags[key] = self._evaluator.decrypt_flag(record), record.version
        return found

    def get_segment(self, key: str) -> tuple[Segment, Mapping[str, Part]]:
        """Return a segment, and the parts of members that it refers to."""
        record = self._snapshot.find_segment(key)
        assert record is not None, "a sound flag refers to what there is"
        return unpack_segment(record), self._snapshot.parts
