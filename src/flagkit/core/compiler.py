"""Compiler: the code of each *shape* of flag is generated once, and given each flag's constants.

The shape is a flag's structure with every constant and attribute name taken out. Source text is
made from shapes alone, so nothing that a policy holds is ever pasted into code: where a constant
goes, the source has a mark, and `code.replace` puts the constant into a copy of the code. As
defaults of parameters, constants cost 3.5 ns each at every call, used or not; here they cost none.

An attribute is fetched once. Plain strings, numbers, booleans and missing attributes are answered
inline; anything else goes, test by test, to core.matching. `_Walk` and `_Source` go through the
same structure in the same order: the n-th constant taken replaces the n-th mark.
"""

import functools
import threading
import time
from collections.abc import Callable, Iterable
from types import CodeType, FunctionType
from typing import Any, Final, TypeAlias, cast

import cachetools
import xxhash
from msgspec import Struct

from flagkit.core.bucketing import Clock, hash_of, key_of, seed, threshold, threshold_at
from flagkit.core.contexts import ContextLike, attributes_of
from flagkit.core.evaluation import ErrorCode, Outcome, Reason, failed
from flagkit.core.matching import attribute, matches, value_passes
from flagkit.model import Flag, Ramp, Serve, Serves
from flagkit.model.conditions import (
    Affix,
    And,
    Compare,
    Condition,
    Exists,
    Field,
    In,
    Nor,
    Or,
    Test,
    Version,
)
from flagkit.model.versions import version_key

Evaluator: TypeAlias = Callable[[ContextLike], Outcome]
Shape: TypeAlias = tuple[Any, ...]

LEAVES_MAX = 64
"""A rule of more tests than this is matched by core.matching: its code would not pay for itself."""

_SCALARS: Final = frozenset({str, int, float, bool, type(None)})
_GLOBALS: Final[dict[str, object]] = {
    "SCALARS": _SCALARS,
    "attribute": attribute,
    "attributes_of": attributes_of,
    "hash_of": hash_of,
    "key_of": key_of,
    "matches": matches,
    "value_passes": value_passes,
    "version_key": version_key,
    "xxh3": xxhash.xxh3_64_intdigest,
}
_SLOWLY: Final = "{k} not in SCALARS and value_passes({t}, {a})"
_BY_KIND: Final = {
    "text": f"({{a}} {{op}} {{c}} if {{k}} is str else {_SLOWLY})",
    "number": f"({{a}} {{op}} {{c}} if {{k}} is int or {{k}} is float else {_SLOWLY})",
    "true": f"({{a}} is True or {_SLOWLY})",
    "false": f"({{a}} is False or {_SLOWLY})",
    "null": f"({{a}} is None or {_SLOWLY})",
    "affix": f"({{a}}.{{op}}({{c}}) if {{k}} is str else {_SLOWLY})",
    "contains": f"({{c}} in {{a}} if {{k}} is str else {_SLOWLY})",
    "version": (
        f"((v := version_key({{a}})) is not None and v {{op}} {{c}} if {{k}} is str else {_SLOWLY})"
    ),
}
_PYTHON: Final = {"$eq": "==", "$ne": "!=", "$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}


def compile_flag(
    flag: Flag, prerequisites: Iterable[Outcome | Evaluator] = (), now: Clock = time.time
) -> Outcome | Evaluator:
    """Compile a flag into its outcome, if that is always the same, or into an evaluator.

    Args:
        flag: A checked flag.
        prerequisites: What the flag's prerequisites compiled to, in their order.
        now: What the evaluator asks for the time, if the flag has windows.

    Returns:
        An Outcome, or a function of a context that returns one. The function raises only what a
        context of a wrong type or one that misbehaves raises.
    """
    off = _off(flag)
    if flag.state != "active":
        return off
    walk = _Walk(flag, now)
    gates = 0
    for wanted, found in zip(flag.prerequisites, prerequisites, strict=True):
        if not isinstance(found, Outcome):
            walk.constants += (found, frozenset(wanted.variants), off)
            gates += 1
        elif found.variant not in wanted.variants:
            return off
    rules = tuple(walk.rule(i) for i in range(len(flag.rules)))
    fallthrough = walk.serves(flag.fallthrough, None)
    if not gates and not rules and isinstance(flag.fallthrough, Serve):
        return cast("Outcome", walk.constants[0])
    template = _template((gates, rules, fallthrough, len(walk.names)))
    return template.evaluator((*walk.constants, *walk.names))


def _off(flag: Flag) -> Outcome:
    if flag.off is None:
        return Outcome(reason=Reason.DISABLED)
    return Outcome(value=flag.variants[flag.off], variant=flag.off, reason=Reason.DISABLED)


class _Walk:
    """The walk over one flag that finds its shape and collects its constants."""

    def __init__(self, flag: Flag, now: Clock) -> None:
        self.flag = flag
        self.now = now
        self.constants: list[object] = []
        self.names: dict[str, int] = {}

    def rule(self, index: int) -> Shape:
        rule = self.flag.rules[index]
        if rule.during is not None:
            self.constants += (rule.during.start, self.now, rule.during.end)
        if _leaves(rule.condition) > LEAVES_MAX:
            self.constants.append(rule.condition)
            condition: Shape = ("matches",)
        else:
            condition = self.condition(rule.condition)
        return (rule.during is not None, condition, self.serves(rule.serves, rule.name))

    def condition(self, condition: Condition) -> Shape:
        match condition:
            case Field(path, test):
                return self.leaf(path, test) if len(path) == 1 else self.deep(condition)
            case And(conditions):
                return ("and", *map(self.condition, conditions))
            case Or(conditions):
                return ("or", *map(self.condition, conditions))
            case Nor(conditions):
                return ("nor", *map(self.condition, conditions))

    def leaf(self, path: tuple[str, ...], test: Test) -> Shape:  # noqa: C901, PLR0911 - one for each test
        match test:
            case Exists():
                return ("exists", self.attribute(path[0]))
            case Compare(operator, value):
                kind = _kind_of(value)
                if kind in ("text", "number"):
                    return self.inline(kind, _PYTHON[operator], path[0], [value, test])
                if kind is not None and operator == "$eq":
                    return self.inline(kind, "is", path[0], [test])
            case In(values):
                kinds = {_kind_of(value) for value in values}
                kind = kinds.pop() if len(kinds) == 1 else None
                if kind in ("text", "number"):
                    return self.inline(kind, "in", path[0], [frozenset(values), test])
            case Affix("$contains", texts):
                if len(texts) == 1:
                    return self.inline("contains", "in", path[0], [texts[0], test])
            case Affix(operator, texts):
                method = "startswith" if operator == "$startsWith" else "endswith"
                return self.inline("affix", method, path[0], [texts, test])
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
        self.constants.append(field)
        return ("matches",)

    def attribute(self, name: str) -> int:
        return self.names.setdefault(name, len(self.names))

    def serves(self, serves: Serves, rule: str | None) -> Shape:
        if isinstance(serves, Serve):
            reason = Reason.DEFAULT if rule is None else Reason.TARGETING_MATCH
            if not self.flag.rules and not self.flag.prerequisites:
                reason = Reason.STATIC
            self.constants.append(self.outcome(serves.variant, reason, rule))
            return ("serve",)
        missing = failed(
            ErrorCode.TARGETING_KEY_MISSING,
            f"the rollout is by {'.'.join(serves.by)!r}, where the context has no string"
            " (or an empty one) and no integer",
        )
        self.constants += (seed(serves.salt), missing)
        if len(serves.by) == 1:
            by = self.attribute(serves.by[0])
        else:
            by = -1
            self.constants.append(serves.by)
        if isinstance(serves, Ramp):
            self.constants.append(functools.partial(threshold_at, serves, self.now))
            self.constants.append(self.outcome(serves.variant, Reason.SPLIT, rule))
            self.constants.append(self.outcome(serves.otherwise, Reason.SPLIT, rule))
            return ("ramp", by, 0)
        for end, variant in serves.intervals:
            self.constants += (threshold(end), self.outcome(variant, Reason.SPLIT, rule))
        return ("rollout", by, len(serves.intervals))

    def outcome(self, variant: str, reason: Reason, rule: str | None) -> Outcome:
        return Outcome(value=self.flag.variants[variant], variant=variant, reason=reason, rule=rule)


def _leaves(condition: Condition) -> int:
    return 1 if isinstance(condition, Field) else sum(map(_leaves, condition.conditions))


def _kind_of(value: object) -> str | None:
    """Return which inline test a constant allows, None for those that only core.matching knows."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return "number" if value == value else None  # noqa: PLR0124 - NaN equals NaN in MongoDB
    if value is None:
        return "null"
    return "text" if isinstance(value, str) else None


class _Template(Struct, frozen=True):
    """The code of a shape, and which constant goes to which place of its table.

    `places` has, for each place of the table, the number of the constant that belongs there, or -1.
    """

    code: CodeType
    places: tuple[int, ...]

    def evaluator(self, constants: tuple[object, ...]) -> Evaluator:
        """Return a function that has constants in its code."""
        table = tuple(
            constants[place] if place >= 0 else own
            for place, own in zip(self.places, self.code.co_consts, strict=True)
        )
        return FunctionType(self.code.replace(co_consts=table), _GLOBALS)


_templates: cachetools.LRUCache[Shape, _Template] = cachetools.LRUCache(4096)
_templates_lock = threading.Lock()


def _template(shape: Shape) -> _Template:
    """Return the template of a shape, made when the shape is first met."""
    with _templates_lock:
        template = _templates.get(shape)
    if template is None:
        source = _Source(shape)
        module = compile(source.text(), "<flagkit evaluator>", "exec")
        code = next(constant for constant in module.co_consts if isinstance(constant, CodeType))
        places = tuple(source.places.get(constant, -1) for constant in code.co_consts)
        template = _Template(code, places)
        with _templates_lock:
            _templates[shape] = template
    return template


class _Source:
    """The source text of a shape's function."""

    def __init__(self, shape: Shape) -> None:
        self.gates, self.rules, self.fallthrough, self.name_count = shape
        self.places: dict[object, int] = {}
        self.fetched: set[int] = set()
        self.lines: list[str] = []

    def text(self) -> str:
        for _ in range(self.gates):
            evaluator, variants, off = self.take(3)
            # Called by way of a name: calling a mark would be a warning of the compiler's.
            self.lines += [
                f" gate = {evaluator}",
                f" if gate(context).variant not in {variants}:",
                f"  return {off}",
            ]
        for timed, condition, serves in self.rules:
            window = ""
            if timed:
                start, now, end = self.take(3)
                self.lines.append(f" now = {now}")
                window = f"{start} <= now() < {end} and "
            expression = window + self.expression(condition)
            self.fetch(_attributes(condition), " ")
            self.lines.append(f" if {expression}:")
            outside = set(self.fetched)
            self.serve(serves, "  ")
            self.fetched = outside
        self.serve(self.fallthrough, " ")
        for i, mark in enumerate(map(_name_mark, range(self.name_count)), len(self.places)):
            self.places[mark] = i
        head = [
            "def evaluator(context):",
            " if context.__class__ is not dict:",
            "  context = attributes_of(context)",
        ]
        return "\n".join(head + self.lines)

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
        if shape == ("serve",):
            self.lines.append(f"{indent}return {self.take(1)[0]}")
            return
        kind, by, interval_count = shape
        hash_seed, missing = self.take(2)
        if by >= 0:
            self.fetch([by], indent)
            value = f"a{by}"
            plain = f"k{by} is str and a{by}"
        else:
            path = self.take(1)[0]
            self.lines.append(f"{indent}value = attribute(context, {path})")
            value, plain = "value", "value.__class__ is str and value"
        body = [
            f"if {plain}:",
            " try:",
            f"  hashed = xxh3({value}.encode(), {hash_seed})",
            " except UnicodeEncodeError:",
            f"  hashed = hash_of({hash_seed}, {value})",
            "else:",
            f" key = key_of({value})",
            " if key is None:",
            f"  return {missing}",
            f" hashed = hash_of({hash_seed}, key)",
        ]
        if kind == "ramp":
            ramp, inside, outside = self.take(3)
            body += [f"ramp = {ramp}", f"return {inside} if hashed < ramp() else {outside}"]
        for i in range(interval_count):
            end, outcome = self.take(2)
            last = i == interval_count - 1
            body.append(f"return {outcome}" if last else f"if hashed < {end}: return {outcome}")
        self.lines += [indent + line for line in body]


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
