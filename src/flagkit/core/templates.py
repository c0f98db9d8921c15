"""Templates: the code of each shape of flag, generated once; constants take the places of marks.

A shape is nested tuples: (answers, gates, off, timed, rules, fallthrough, attributes), where
`answers` is "outcome" for evaluators, "telling" or "silent" for switches. `_Source` goes through it
in the order in which the compiler collected the constants: the n-th constant replaces the n-th
mark.

What differs between flags of one policy, and between clocks, is no constant but the default of a
parameter that no caller passes: so such flags have one code, and each takes a function alone.
"""

import os
import threading
from collections.abc import Callable, Iterable
from types import CodeType, FunctionType
from typing import Any, Final, TypeAlias

import cachetools
import xxhash
from msgspec import Struct

from flagkit.core.bucketing import Clock, hash_of, seed
from flagkit.core.contexts import ContextLike, attributes_of
from flagkit.core.evaluation import ErrorCode, Outcome, failed
from flagkit.core.matching import attribute, matches, value_passes
from flagkit.core.searching import TEXT_MAX
from flagkit.errors import InvalidContextError
from flagkit.model.foreign import native
from flagkit.model.keys import key_of
from flagkit.model.versions import version_key

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
