"""The compiler: generates code once for each shape of a flag and binds constants to it.

A shape is the structure of a flag without its constants and attribute names. It is a nested tuple:
(answers, gates, off, timed, rules, fallthrough, attributes). `answers` is "outcome" for evaluators,
and "telling" or "silent" for boolean functions.

Source text is generated from shapes only, so no text of a policy ever becomes code. The source has
a mark for each constant, and `code.replace` puts the constants into a copy of the code object.
`_Walk` and `_Source` visit the structure in the same order: the n-th constant replaces the n-th
mark. Constants cost nothing at a call this way; as defaults of parameters each costs 3.5 ns.

Flags of one policy have one code object. What differs between them, such as the key, is the default
of a parameter that no caller passes.

An attribute is fetched once. The code compares plain strings, numbers, booleans and missing
attributes itself. It passes any other value to `matching`.
"""

import functools
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from types import CodeType, FunctionType
from typing import Any, Final, TypeAlias, cast

import cachetools
import xxhash
from msgspec import Struct

from flagkit._core.evaluation.bucketing import Clock, hash_of, seed, threshold
from flagkit._core.evaluation.context import ContextLike, attributes_of
from flagkit._core.evaluation.matching import attribute, matches, value_passes
from flagkit._core.evaluation.result import ErrorCode, Outcome, Reason, failed
from flagkit._core.evaluation.schedule import follows_clock, recurs, threshold_at
from flagkit._core.model import Flag, Ramp, Rollout, Rule, Serve, Serves
from flagkit._core.model.conditions import (
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
from flagkit._core.model.foreign import native
from flagkit._core.model.keys import key_of
from flagkit._core.model.values import version_key
from flagkit._core.regex import TEXT_MAX, search_for
from flagkit.errors import InvalidContextError

Evaluator: TypeAlias = Callable[[ContextLike], Outcome]
Switch: TypeAlias = Callable[[ContextLike, bool], bool]
"""Answers for a context with a boolean, which is the caller's default where a flag leaves it so.

A telling switch raises MissingKeyError where there is no key to hash, so that this can be logged.
A silent one, which takes its place afterwards, answers the default.
"""
Shape: TypeAlias = tuple[Any, ...]


class MissingKeyError(Exception):
    """A context has nothing to hash for a rollout. Callers of flagkit never see this."""


def unfit(value: object, path: str | tuple[str, ...]) -> MissingKeyError | InvalidContextError:
    """Return the error for an attribute that a rollout cannot hash."""
    found = native(value)
    if found is None or found == "":
        return MissingKeyError(path)
    named = path if isinstance(path, str) else ".".join(path)
    return InvalidContextError(
        f"the rollout is by {named!r}, which has the type {type(value).__name__} here: a key is a"
        " string, an integer of up to 4,200 digits, a UUID or an ObjectId"
    )


def outcome_without_key(value: object, path: str | tuple[str, ...], missing: Outcome) -> Outcome:
    """Return what an evaluator answers where it cannot hash an attribute."""
    error = unfit(value, path)
    if isinstance(error, MissingKeyError):
        return missing
    return failed(ErrorCode.INVALID_CONTEXT, str(error))


def default_without_key(
    value: object,
    path: str | tuple[str, ...],
    default: bool,  # noqa: FBT001 - a switch's
) -> bool:
    """Return what a silent switch answers where there is nothing to hash.

    Raises:
        InvalidContextError: there is something, which no rollout can hash.
    """
    error = unfit(value, path)
    if isinstance(error, MissingKeyError):
        return default
    raise error


_SCALARS: Final = frozenset({str, int, float, bool, type(None)})
_GLOBALS: Final[dict[str, object]] = {
    "NONE": type(None),
    "SCALARS": _SCALARS,
    "bool": bool,
    "attribute": attribute,
    "attributes_of": attributes_of,
    "default_without_key": default_without_key,
    "hash_of": hash_of,
    "key_of": key_of,
    "matches": matches,
    "outcome_without_key": outcome_without_key,
    "value_passes": value_passes,
    "unfit": unfit,
    "version_key": version_key,
    "xxh3": xxhash.xxh3_64_intdigest,
}
_SLOWLY: Final = "{k} not in SCALARS and value_passes({t}, {a})"
_SLOWLY_BUT: Final = "({k} not in SCALARS or {k} is KIND) and value_passes({t}, {a})"
_BY_KIND: Final = {
    "text": f"({{a}} {{op}} {{c}} if {{k}} is str else {_SLOWLY})",
    "number": f"({{a}} {{op}} {{c}} if {{k}} is int or {{k}} is float else {_SLOWLY})",
    "key": f"({{a}} {{op}} {{c}} if {{k}} is str or {{k}} is int else {_SLOWLY})",
    # Where the other boolean is ruled out, what has the class of one is a proxy.
    "true": f"({{a}} is True or {{a}} is not False and {_SLOWLY_BUT.replace('KIND', 'bool')})",
    "false": f"({{a}} is False or {{a}} is not True and {_SLOWLY_BUT.replace('KIND', 'bool')})",
    "null": f"({{a}} is None or {_SLOWLY_BUT.replace('KIND', 'NONE')})",
    "affix": f"({{a}}.{{op}}({{c}}) if {{k}} is str else {_SLOWLY})",
    "contains": f"({{c}} in {{a}} if {{k}} is str else {_SLOWLY})",
    # By way of a name: calling a mark would be a warning of the compiler's.
    "pattern": (
        f"((s := {{c}})({{a}}) if {{k}} is str and len({{a}}) <= {TEXT_MAX} else {_SLOWLY})"
    ),
    "version": (
        f"((v := version_key({{a}})) is not None and v {{op}} {{c}} if {{k}} is str else {_SLOWLY})"
    ),
}


class Code(Struct, frozen=True):
    """The code of a policy, with its constants. It wants the seed of a flag's key, or the time."""

    code: CodeType
    wants_seed: bool
    wants_clock: bool

    def function(self, key: str, now: Clock) -> FunctionType:
        """Return the function of a flag of this policy."""
        defaults: tuple[object, ...] = (seed(key),) if self.wants_seed else ()
        if self.wants_clock:
            defaults = (*defaults, now)
        return FunctionType(self.code, _GLOBALS, None, defaults)


class Template(Struct, frozen=True):
    """The code of a shape, with marks, and which constants go to which places of its table.

    `places` are pairs of a place in the table and the number of the constant that belongs there.
    """

    marked: Code
    places: tuple[tuple[int, int], ...]

    def filled(self, constants: list[object]) -> Code:
        """Return the code with constants in it."""
        marked = self.marked
        table = list(marked.code.co_consts)
        for place, number in self.places:
            table[place] = constants[number]
        code = marked.code.replace(co_consts=tuple(table))
        return Code(code, marked.wants_seed, marked.wants_clock)


# First in, first out: a look-up changes nothing, so it needs no lock.
_templates: cachetools.FIFOCache[Shape, Template] = cachetools.FIFOCache(4096)
_templates_lock = threading.Lock()


def _renew_lock() -> None:
    """Replace the lock in a forked child: a thread that is not there any more may have held it."""
    global _templates_lock  # noqa: PLW0603 - renewed where it is
    _templates_lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


def template_of(shape: Shape) -> Template:
    """Return the template of a shape, made when the shape is first met."""
    try:
        return _templates[shape]
    except KeyError:
        source = _Source(shape)
    module = compile(source.text(), "<flagkit>", "exec")
    code = next(constant for constant in module.co_consts if isinstance(constant, CodeType))
    marks = [(place, source.places.get(found)) for place, found in enumerate(code.co_consts)]
    places = tuple((place, number) for place, number in marks if number is not None)
    template = Template(Code(code, source.wants_seed, source.timed), places)
    with _templates_lock:
        _templates[shape] = template
    return template


class _Source:
    """The source text of a shape's function."""

    def __init__(self, shape: Shape) -> None:
        self.answers, self.gates, self.off, self.timed, *served, self.name_count = shape
        self.rules, self.fallthrough = served
        self.places: dict[object, int] = {}
        self.fetched: set[int] = set()
        self.wants_seed = False
        self.lines: list[str] = []

    def text(self) -> str:
        for _ in range(self.gates):
            evaluator, variants = self.take(2)
            # Called by way of a name, as patterns are.
            self.lines += [
                f" gate = {evaluator}",
                f" if gate(context).variant not in {variants}:",
            ]
            self.serve(self.off, "  ")
        if self.timed:
            # Read once, so that no two rules answer for different moments.
            self.lines.append(" moment = now()")
        for window, condition, serves in self.rules:
            expression = self.window(window) + self.expression(condition)
            self.fetch(_attributes(condition), " ")
            self.lines.append(f" if {expression}:")
            outside = set(self.fetched)
            self.serve(serves, "  ")
            self.fetched = outside
        self.serve(self.fallthrough, " ")
        for i, mark in enumerate(map(_name_mark, range(self.name_count)), len(self.places)):
            self.places[mark] = i
        parameters = {
            "context": True,
            "default": self.answers != "outcome",
            "own_seed": self.wants_seed,
            "now": self.timed,
        }
        head = [
            f"def evaluator({', '.join(name for name, there in parameters.items() if there)}):",
            " if context.__class__ is not dict:",
            "  context = attributes_of(context)",
        ]
        return "\n".join(head + self.lines)

    def window(self, window: str | None) -> str:
        if window is None:
            return ""
        recurs = ""
        if window == "recurring":
            self.lines.append(f" recurs = {self.take(1)[0]}")
            recurs = "recurs(moment) and "
        start, end = self.take(2)
        return f"{start} <= moment < {end} and {recurs}"

    def take(self, count: int) -> list[str]:
        """Return the marks of the next constants, as they stand in the source."""
        taken: list[str] = []
        for _ in range(count):
            mark = f"constant {len(self.places)}"
            self.places[mark] = len(self.places)
            taken.append(repr(mark))
        return taken

    def fetch(self, attributes: Iterable[int], indent: str) -> None:
        for i in sorted(set(attributes) - self.fetched):
            self.lines += [
                f"{indent}a{i} = context.get({_name_mark(i)!r})",
                f"{indent}k{i} = a{i}.__class__",
            ]
            self.fetched.add(i)

    def expression(self, shape: Shape) -> str:
        kind, *rest = shape
        match kind:
            case "and":
                return _joined(" and ", map(self.expression, rest), "True")
            case "or":
                return _joined(" or ", map(self.expression, rest), "False")
            case "nor":
                return f"(not {_joined(' or ', map(self.expression, rest), 'False')})"
            case "matches":
                return f"matches({self.take(1)[0]}, context)"
            case "exists":
                return f"({_name_mark(rest[0])!r} in context)"
            case _:
                operation, index = rest
                *constant, test = self.take(1 if operation == "is" else 2)
                return _BY_KIND[kind].format(
                    a=f"a{index}", k=f"k{index}", op=operation, c="".join(constant), t=test
                )

    def serve(self, shape: Shape, indent: str) -> None:
        match shape:
            case ("serve",):
                body = [f"return {self.take(1)[0]}"]
            case ("default",):
                body = ["return default"]
            case (kind, by, count, own):
                body = self.rollout(kind, by, count, self.own_seed() if own else self.take(1)[0])
            case _:
                raise AssertionError(shape)
        self.lines += [indent + line for line in body]

    def own_seed(self) -> str:
        self.wants_seed = True
        return "own_seed"

    def rollout(self, kind: str, by: int, interval_count: int, hash_seed: str) -> list[str]:
        missing = "default" if self.answers != "outcome" else self.take(1)[0]
        body, value, plain, path = self.hashed_value(by, missing)
        fast = f"hashed = xxh3({value}.encode(), {hash_seed})"
        match kind:
            case "ramp":
                ramp, inside, outside = self.take(3)
                # Called by way of a name, as patterns are.
                body.append(f"ramp = {ramp}")
                answer = [f"return {inside} if hashed < ramp(moment) else {outside}"]
            case "below" | "from":
                compared = f"{'<' if kind == 'below' else '>='} {self.take(1)[0]}"
                fast = fast.replace("hashed =", "return") + " " + compared
                answer = [f"return hashed {compared}"]
            case _:
                ends = [self.take(2) for _ in range(interval_count)]
                answer = [f"if hashed < {end}: return {outcome}" for end, outcome in ends[:-1]]
                answer.append(f"return {ends[-1][1]}")
        return [
            *body,
            f"if {plain}:",
            f" try: {fast}",
            f" except UnicodeEncodeError: hashed = hash_of({hash_seed}, {value})",
            "else:",
            f" key = key_of({value})",
            f" if key is None: {self.without_key(value, path, missing)}",
            f" hashed = hash_of({hash_seed}, key)",
            *answer,
        ]

    def without_key(self, value: str, path: str, missing: str) -> str:
        """Return the statement for an attribute that cannot be hashed."""
        if self.answers == "telling":
            return f"raise unfit({value}, {path})"
        kind = "default" if self.answers == "silent" else "outcome"
        return f"return {kind}_without_key({value}, {path}, {missing})"

    def hashed_value(self, by: int, missing: str) -> tuple[list[str], str, str, str]:
        """Return code for what is hashed: its fetching, name, test for plain strings, and path."""
        path = repr(_name_mark(by)) if by >= 0 else self.take(1)[0]
        if by in self.fetched:
            return [], f"a{by}", f"k{by} is str and a{by}", path
        if by < 0:
            body = [f"value = attribute(context, {path})"]
        else:
            telling = f"raise unfit(None, {path})"
            # Some 20 ns less than `get`, where there is a key.
            body = [
                f"try: value = context[{path}]",
                f"except KeyError: {telling if self.answers == 'telling' else f'return {missing}'}",
            ]
        return body, "value", "value.__class__ is str and value", path


def _name_mark(index: int) -> str:
    return f"name {index}"


def _joined(operator: str, expressions: Iterable[str], empty: str) -> str:
    return f"({operator.join(expressions) or empty})"


def _attributes(shape: Shape) -> set[int]:
    """Return the attributes that a condition's shape has to have fetched."""
    kind, *rest = shape
    if kind in ("and", "or", "nor"):
        return {index for inner in rest for index in _attributes(inner)}
    return {rest[1]} if kind in _BY_KIND else set()


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
