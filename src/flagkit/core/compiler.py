"""Compiler: the code of each *shape* of flag is generated once, and given each flag's constants.

The shape is a flag's structure with every constant and attribute name taken out. Source text is
made from shapes alone, so nothing that a policy holds is ever pasted into code: where a constant
goes, the source has a mark, and `code.replace` puts the constant into a copy of the code. As
defaults of parameters, constants cost 3.5 ns each at every call, used or not; here they cost none.

An attribute is fetched once. Plain strings, numbers, booleans and missing attributes are answered
inline; anything else goes, test by test, to core.matching. `_Walk` and templates._Source go through
the same structure in the same order: the n-th constant taken replaces the n-th mark.
"""

import functools
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final, cast

from flagkit.core.bucketing import Clock, seed, threshold
from flagkit.core.contexts import ContextLike
from flagkit.core.evaluation import ErrorCode, Outcome, Reason, failed
from flagkit.core.schedule import follows_clock, recurs, threshold_at
from flagkit.core.searching import search_for
from flagkit.core.templates import Code, Evaluator, Shape, Switch, template_of
from flagkit.model import Flag, Ramp, Rollout, Rule, Serve, Serves
from flagkit.model.conditions import (
    Affix,
    Among,
    And,
    Compare,
    Condition,
    ElemMatch,
    Exists,
    Field,
    Found,
    In,
    InSegment,
    Nor,
    Or,
    Pattern,
    Test,
    Version,
)

LEAVES_MAX = 64
"""A rule of more tests than this is matched by core.matching: its code would not pay for itself."""

_NUMBERS: Final = {int, float}
_PYTHON: Final = {"$eq": "==", "$ne": "!=", "$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}


def constant_of(
    flag: Flag, prerequisites: Sequence[Outcome | Evaluator | None] = ()
) -> Outcome | None:
    """Return what a flag answers to everyone at any time, None if that is not always the same.

    Args:
        flag: A checked flag.
        prerequisites: What its prerequisites always answer, in their order; anything that is no
            outcome where that is not always the same.
    """
    if flag.state != "active":
        return off_outcome(flag)
    always = not flag.rules
    for wanted, found in zip(flag.prerequisites, prerequisites, strict=False):
        if not isinstance(found, Outcome):
            always = False
        elif found.variant not in wanted.variants:
            return off_outcome(flag)
    if always and isinstance(flag.fallthrough, Serve):
        return outcome_of(flag, flag.fallthrough.variant, None)
    return None


def compile_flag(
    flag: Flag, prerequisites: Sequence[Outcome | Evaluator] = (), now: Clock = time.time
) -> Outcome | Evaluator:
    """Compile a flag into its outcome, if that is always the same, or into an evaluator.

    Args:
        flag: A checked flag.
        prerequisites: What the flag's prerequisites compiled to, in their order; nothing where the
            caller looks to them.
        now: What the evaluator asks for the time, if the flag has windows.

    Returns:
        An Outcome, or a function of a context that returns one. The function raises only what a
        context of a wrong type or one that misbehaves raises.
    """
    constant = constant_of(flag, prerequisites)
    if constant is not None:
        return constant
    return cast("Evaluator", code_of(flag, prerequisites).function(flag.key, now))


def code_of(flag: Flag, prerequisites: Sequence[Outcome | Evaluator] = ()) -> Code:
    """Return the code of the evaluator of a flag that is not constant."""
    return _Walk(flag).code(prerequisites)


def compile_switch(
    flag: Flag,
    prerequisites: Sequence[Outcome | Evaluator] = (),
    now: Clock = time.time,
    *,
    tells: bool = False,
) -> bool | Switch:
    """Compile a flag as `compile_flag` does, into nothing but what callers with a boolean are told.

    Returns:
        True or False, if that is always the same, or a function of a context and the caller's
        default. It raises what an evaluator raises; InvalidContextError where an attribute cannot
        be hashed; and, if it tells, MissingKeyError where there is nothing to hash.
    """
    if flag.type != "boolean":
        return leave_to_caller
    constant = constant_of(flag, prerequisites)
    if constant is None:
        code = switch_code_of(flag, prerequisites, tells=tells)
        return cast("Switch", code.function(flag.key, now))
    return leave_to_caller if constant.variant is None else constant.value


def switch_code_of(
    flag: Flag, prerequisites: Sequence[Outcome | Evaluator] = (), *, tells: bool = False
) -> Code:
    """Return the code of the switch of a boolean flag that is not constant."""
    return (_TellingWalk if tells else _SwitchWalk)(flag).code(prerequisites)


def leave_to_caller(_: ContextLike, default: bool) -> bool:  # noqa: FBT001 - a switch
    """Return the caller's default: the switch of flags that have no boolean to answer with."""
    return default


def off_outcome(flag: Flag) -> Outcome:
    """Return what a flag answers that is not active, or whose prerequisites are not met."""
    if flag.off is None:
        return Outcome(reason=Reason.DISABLED)
    return Outcome(value=flag.variants[flag.off], variant=flag.off, reason=Reason.DISABLED)


def outcome_of(flag: Flag, variant: str, rule: str | None, *, split: bool = False) -> Outcome:
    """Return what a flag answers where a rule, or the fallthrough, decides for a variant."""
    if split:
        reason = Reason.SPLIT
    elif rule is not None:
        reason = Reason.TARGETING_MATCH
    else:
        reason = Reason.DEFAULT if flag.rules or flag.prerequisites else Reason.STATIC
    return Outcome(value=flag.variants[variant], variant=variant, reason=reason, rule=rule)


def without_key(serves: Rollout | Ramp) -> Outcome:
    """Return what a rollout answers to a context that has nothing to hash."""
    return failed(
        ErrorCode.TARGETING_KEY_MISSING,
        f"the rollout is by {'.'.join(serves.by)!r}, where the context has no string"
        " (or an empty one), integer, UUID or ObjectId",
    )


class _Walk:
    """The walk over one flag that finds its evaluator's shape and collects its constants."""

    answers = "outcome"

    def __init__(self, flag: Flag) -> None:
        self.flag = flag
        self.constants: list[object] = []
        self.names: dict[str, int] = {}

    def code(self, prerequisites: Sequence[Outcome | Evaluator]) -> Code:
        flag = self.flag
        gates, off = 0, None
        for wanted, found in zip(flag.prerequisites, prerequisites, strict=False):
            if not isinstance(found, Outcome):
                gates += 1
                self.constants += (found, frozenset(wanted.variants))
                off = self.off()
        timed = follows_clock(flag)
        rules = tuple([self.rule(rule) for rule in flag.rules])
        fallthrough = self.serves(flag.fallthrough, None)
        shape = (self.answers, gates, off, timed, rules, fallthrough, len(self.names))
        self.constants += self.names
        return template_of(shape).filled(self.constants)

    def off(self) -> Shape:
        self.constants.append(off_outcome(self.flag))
        return ("serve",)

    def rule(self, rule: Rule) -> Shape:
        window = None
        if rule.during is not None:
            again = rule.during.recurrence
            window = "once" if again is None else "recurring"
            if again is not None:
                self.constants.append(functools.partial(recurs, again))
            self.constants += (rule.during.start, rule.during.end)
        if _leaves(rule.condition) > LEAVES_MAX:
            self.constants.append(_ready(rule.condition))
            condition: Shape = ("matches",)
        else:
            condition = self.condition(rule.condition)
        return (window, condition, self.serves(rule.serves, rule.name))

    def condition(self, condition: Condition) -> Shape:
        match condition:
            case Field(path, test):
                return self.leaf(path, test) if len(path) == 1 else self.deep(condition)
            case And(conditions):
                return ("and", *self.cheapest_first(conditions))
            case Or(conditions):
                return ("or", *self.cheapest_first(conditions))
            case Nor(conditions):
                return ("nor", *self.cheapest_first(conditions))
            case InSegment():
                return ("or",)

    def cheapest_first(self, conditions: Iterable[Condition]) -> Iterator[Shape]:
        return map(self.condition, sorted(conditions, key=_cost))

    def leaf(self, path: tuple[str, ...], test: Test) -> Shape:  # noqa: C901, PLR0911, PLR0912 - one for each test
        match test:
            case Exists():
                return ("exists", self.attribute(path[0]))
            case Compare(operator, value):
                kind = _kind_of(value)
                if kind in ("text", "number"):
                    return self.inline(kind, _PYTHON[operator], path[0], [value, test])
                if kind is not None and operator == "$eq":
                    return self.inline(kind, "is", path[0], [test])
            case In(scalars, ()):
                kind = _common_kind(scalars)
                if kind is not None:
                    return self.inline(kind, "in", path[0], [scalars, test])
            case Among(members):
                return self.inline("key", "in", path[0], [members, test])
            case Affix("$contains", texts):
                if len(texts) == 1:
                    return self.inline("contains", "in", path[0], [texts[0], test])
            case Affix(operator, texts):
                method = "startswith" if operator == "$startsWith" else "endswith"
                return self.inline("affix", method, path[0], [texts, test])
            case Pattern(source, options):
                search = search_for(source, options)
                return self.inline("pattern", "in", path[0], [search, Found(search)])
            case Version("$in" | "$nin" as operator, keys):
                operation = "in" if operator == "$in" else "not in"
                return self.inline("version", operation, path[0], [frozenset(keys), test])
            case Version(operator, keys):
                return self.inline("version", _PYTHON[operator], path[0], [keys[0], test])
            case _:
                pass
        return self.deep(Field(path, test))

    def inline(self, kind: str | None, operation: str, name: str, constants: list[object]) -> Shape:
        self.constants += constants
        return (kind, operation, self.attribute(name))

    def deep(self, field: Field) -> Shape:
        self.constants.append(_ready(field))
        return ("matches",)

    def attribute(self, name: str) -> int:
        return self.names.setdefault(name, len(self.names))

    def serves(self, serves: Serves, rule: str | None) -> Shape:
        if isinstance(serves, Serve):
            self.constants.append(outcome_of(self.flag, serves.variant, rule))
            return ("serve",)
        own = self.seeded(serves)
        self.constants.append(without_key(serves))
        by = self.by(serves)
        if isinstance(serves, Ramp):
            self.constants.append(functools.partial(threshold_at, serves))
            for variant in (serves.variant, serves.otherwise):
                self.constants.append(outcome_of(self.flag, variant, rule, split=True))
            return ("ramp", by, 0, own)
        for end, variant in serves.intervals:
            self.constants += (threshold(end), outcome_of(self.flag, variant, rule, split=True))
        return ("rollout", by, len(serves.intervals), own)

    def seeded(self, serves: Rollout | Ramp) -> bool:
        """Tell whether a rollout's seed is that of the flag's key, which is left open."""
        own = serves.salt == self.flag.key
        if not own:
            self.constants.append(seed(serves.salt))
        return own

    def by(self, serves: Rollout | Ramp) -> int:
        if len(serves.by) == 1:
            return self.attribute(serves.by[0])
        self.constants.append(serves.by)
        return -1


class _SwitchWalk(_Walk):
    """The same walk for a switch, which needs of each variant its boolean alone."""

    answers = "silent"

    def off(self) -> Shape:
        if self.flag.off is None:
            return ("default",)
        self.constants.append(self.flag.variants[self.flag.off])
        return ("serve",)

    def serves(self, serves: Serves, rule: str | None) -> Shape:  # noqa: ARG002 - names no rule
        values = self.flag.variants
        if isinstance(serves, Serve):
            self.constants.append(values[serves.variant])
            return ("serve",)
        own = self.seeded(serves)
        by = self.by(serves)
        if isinstance(serves, Ramp):
            self.constants.append(functools.partial(threshold_at, serves))
            self.constants += (values[serves.variant], values[serves.otherwise])
            return ("ramp", by, 0, own)
        if len(serves.intervals) == 2:  # noqa: PLR2004 - this one and the other
            (end, first), (_, second) = serves.intervals
            if values[first] is not values[second]:
                self.constants.append(threshold(end))
                return ("below" if values[first] is True else "from", by, 0, own)
        for end, variant in serves.intervals:
            self.constants += (threshold(end), values[variant])
        return ("rollout", by, len(serves.intervals), own)


class _TellingWalk(_SwitchWalk):
    """The same walk for a switch that raises an error where there is nothing to hash."""

    answers = "telling"


def _ready(condition: Condition) -> Condition:
    """Return a condition with its patterns ready to be searched for."""
    match condition:
        case Field(path, Pattern(source, options)):
            return Field(path, Found(search_for(source, options)))
        case Field(path, ElemMatch(inner, by_value)):
            return Field(path, ElemMatch(_ready(inner), by_value))
        case And(conditions) | Or(conditions) | Nor(conditions):
            return type(condition)(tuple(map(_ready, conditions)))
        case Field() | InSegment():
            return condition


def _cost(condition: Condition) -> int:
    """Return a condition's rank among those that are tried with it: what is cheap decides first.

    Inline tests take some 20 ns, versions 150, and what core.matching is asked for a microsecond.
    """
    match condition:
        case Field((_,), Compare() | In() | Exists() | Affix()) | InSegment():
            return 0
        case Field((_,), Version()):
            return 1
        case Field():
            return 2
        case And(conditions) | Or(conditions) | Nor(conditions):
            return max(map(_cost, conditions), default=0)


def _leaves(condition: Condition) -> int:
    if isinstance(condition, Field | InSegment):
        return 1
    return sum(map(_leaves, condition.conditions))


def _common_kind(values: Collection[object]) -> str | None:
    """Return which inline test a set of constants allows, None where they have none in common."""
    types = set(map(type, values))
    if types == {str}:
        return "text"
    return "number" if types and types <= _NUMBERS and all(v == v for v in values) else None  # noqa: PLR0124 - NaN


def _kind_of(value: object) -> str | None:
    """Return which inline test a constant allows, None for those that only core.matching knows."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return "number" if value == value else None  # noqa: PLR0124 - NaN equals NaN in MongoDB
    if value is None:
        return "null"
    return "text" if isinstance(value, str) else None
