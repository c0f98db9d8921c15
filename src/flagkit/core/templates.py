"""Templates: the code of each shape of flag, generated once; constants take the places of marks.

A shape is nested tuples: (gates, timed, rules, fallthrough, attributes). `_Source` goes through it
in the order in which the compiler collected the constants: the n-th constant replaces the n-th
mark.
"""

import os
import threading
from collections.abc import Callable, Iterable
from types import CodeType, FunctionType
from typing import Any, Final, TypeAlias

import cachetools
import xxhash
from msgspec import Struct

from flagkit.core.bucketing import hash_of
from flagkit.core.contexts import ContextLike, attributes_of
from flagkit.core.evaluation import Outcome
from flagkit.core.matching import attribute, matches, value_passes
from flagkit.core.searching import TEXT_MAX
from flagkit.model.keys import key_of
from flagkit.model.versions import version_key

Evaluator: TypeAlias = Callable[[ContextLike], Outcome]
Shape: TypeAlias = tuple[Any, ...]

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
    "key": f"({{a}} {{op}} {{c}} if {{k}} is str or {{k}} is int else {_SLOWLY})",
    "true": f"({{a}} is True or {_SLOWLY})",
    "false": f"({{a}} is False or {_SLOWLY})",
    "null": f"({{a}} is None or {_SLOWLY})",
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


class Template(Struct, frozen=True):
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


_templates: cachetools.LRUCache[Shape, Template] = cachetools.LRUCache(4096)
_templates_lock = threading.Lock()


def _renew_lock() -> None:
    """Replace the lock in a forked child: a thread that is not there any more may have held it."""
    global _templates_lock  # noqa: PLW0603 - renewed where it is
    _templates_lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


def template_of(shape: Shape) -> Template:
    """Return the template of a shape, made when the shape is first met."""
    with _templates_lock:
        template = _templates.get(shape)
    if template is None:
        source = _Source(shape)
        module = compile(source.text(), "<flagkit evaluator>", "exec")
        code = next(constant for constant in module.co_consts if isinstance(constant, CodeType))
        places = tuple(source.places.get(constant, -1) for constant in code.co_consts)
        template = Template(code, places)
        with _templates_lock:
            _templates[shape] = template
    return template


class _Source:
    """The source text of a shape's function."""

    def __init__(self, shape: Shape) -> None:
        self.gates, self.timed, self.rules, self.fallthrough, self.name_count = shape
        self.places: dict[object, int] = {}
        self.fetched: set[int] = set()
        self.lines: list[str] = []

    def text(self) -> str:
        for _ in range(self.gates):
            evaluator, variants, off = self.take(3)
            # Called by way of a name, as patterns are.
            self.lines += [
                f" gate = {evaluator}",
                f" if gate(context).variant not in {variants}:",
                f"  return {off}",
            ]
        if self.timed:
            # Read once, so that no two rules answer for different moments.
            self.lines += [f" now = {self.take(1)[0]}", " moment = now()"]
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
        head = [
            "def evaluator(context):",
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
            body += [f"ramp = {ramp}", f"return {inside} if hashed < ramp(moment) else {outside}"]
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
