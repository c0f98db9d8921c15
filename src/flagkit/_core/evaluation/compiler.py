"""The compiler: generates code once for each shape of a flag and binds constants to it.

A shape is the structure of a flag without its constants and attribute names. It is a nested tuple:
(answers, gates, off, timed, rules, fallthrough, attributes). `answers` is "outcome" for evaluators,
and "telling" or "silent" for boolean functions.

Source text is generated from shapes only, so no text of a policy ever becomes code. The source has
a mark for each constant, and `code.replace` puts the constants into a copy of the code object.
`_ShapeBuilder` and `_Source` visit the structure in the same order: the n-th constant replaces the
n-th mark. Constants cost nothing at a call this way; as defaults of parameters each costs 3.5 ns.

Flags of one policy have one code object. Their differences, such as the key, are defaults of
parameters that no caller passes.

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

from flagkit._core.evaluation.bucketing import Clock, compute_seed, compute_threshold, hash_key
from flagkit._core.evaluation.context import ContextLike, get_attributes
from flagkit._core.evaluation.matching import get_attribute, matches, value_passes
from flagkit._core.evaluation.result import ErrorCode, Outcome, Reason, build_error_outcome
from flagkit._core.evaluation.schedule import (
    compute_ramp_threshold,
    is_recurrence_open,
    is_time_dependent,
)
from flagkit._core.model import Flag, Ramp, Rollout, Rule, Serve, Serves
from flagkit._core.model.conditions import (
    Affix,
    And,
    Compare,
    CompiledPattern,
    Condition,
    ElemMatch,
    Exists,
    Field,
    In,
    InSegment,
    MemberTest,
    Nor,
    Or,
    Pattern,
    Test,
    Version,
)
from flagkit._core.model.foreign import to_native
from flagkit._core.model.keys import to_bucketing_key
from flagkit._core.model.values import parse_version
from flagkit._core.regex import TEXT_MAX, compile_search
from flagkit.errors import InvalidContextError

EvaluationFn: TypeAlias = Callable[[ContextLike], Outcome]
BooleanFn: TypeAlias = Callable[[ContextLike, bool], bool]
"""Returns the boolean for a context and the caller's default.

A boolean function first raises MissingKeyError if there is no key to hash, so that the client logs
it. A silent one, which replaces it afterwards, returns the default.
"""
Shape: TypeAlias = tuple[Any, ...]


class MissingKeyError(Exception):
    """A context has nothing to hash for a rollout. Callers of flagkit never see this."""


def build_hash_error(
    value: object, path: str | tuple[str, ...]
) -> MissingKeyError | InvalidContextError:
    """Return the error for an attribute that a rollout cannot hash."""
    found = to_native(value)
    if found is None or found == "":
        return MissingKeyError(path)
    named = path if isinstance(path, str) else ".".join(path)
    return InvalidContextError(
        f"the rollout is by {named!r}, which has the type {type(value).__name__} here: a key is a"
        " string, an integer of up to 4,200 digits, a UUID or an ObjectId"
    )


def get_outcome_without_key(
    value: object, path: str | tuple[str, ...], missing: Outcome
) -> Outcome:
    """Return the outcome of an evaluator function that cannot hash an attribute."""
    error = build_hash_error(value, path)
    if isinstance(error, MissingKeyError):
        return missing
    return build_error_outcome(ErrorCode.INVALID_CONTEXT, str(error))


def get_default_without_key(
    value: object,
    path: str | tuple[str, ...],
    default: bool,  # noqa: FBT001 - a boolean function's
) -> bool:
    """Return the answer of a silent boolean function that has nothing to hash.

    Raises:
        InvalidContextError: the attribute has a type that no rollout can hash.
    """
    error = build_hash_error(value, path)
    if isinstance(error, MissingKeyError):
        return default
    raise error


_SCALARS: Final = frozenset({str, int, float, bool, type(None)})
_GLOBALS: Final[dict[str, object]] = {
    "NONE": type(None),
    "SCALARS": _SCALARS,
    "bool": bool,
    "attribute": get_attribute,
    "attributes_of": get_attributes,
    "default_without_key": get_default_without_key,
    "hash_of": hash_key,
    "key_of": to_bucketing_key,
    "matches": matches,
    "outcome_without_key": get_outcome_without_key,
    "value_passes": value_passes,
    "unfit": build_hash_error,
    "version_key": parse_version,
    "xxh3": xxhash.xxh3_64_intdigest,
}
_SLOWLY: Final = "{k} not in SCALARS and value_passes({t}, {a})"
_SLOWLY_BUT: Final = "({k} not in SCALARS or {k} is KIND) and value_passes({t}, {a})"
_BY_KIND: Final = {
    "text": f"({{a}} {{op}} {{c}} if {{k}} is str else {_SLOWLY})",
    "number": f"({{a}} {{op}} {{c}} if {{k}} is int or {{k}} is float else {_SLOWLY})",
    "key": f"({{a}} {{op}} {{c}} if {{k}} is str or {{k}} is int else {_SLOWLY})",
    # The code has ruled out the other boolean: a value of class bool is then a proxy.
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
    needs_seed: bool
    needs_clock: bool

    def build_function(self, key: str, now: Clock) -> FunctionType:
        """Return the function of a flag of this policy."""
        defaults: tuple[object, ...] = (compute_seed(key),) if self.needs_seed else ()
        if self.needs_clock:
            defaults = (*defaults, now)
        return FunctionType(self.code, _GLOBALS, None, defaults)


class Template(Struct, frozen=True):
    """The code of a shape, with marks, and which constants go to which places of its table.

    `places` are pairs of a place in the table and the number of the constant that belongs there.
    """

    marked_code: Code
    places: tuple[tuple[int, int], ...]

    def fill(self, constants: list[object]) -> Code:
        """Return the code with constants in it."""
        marked = self.marked_code
        table = list(marked.code.co_consts)
        for place, number in self.places:
            table[place] = constants[number]
        code = marked.code.replace(co_consts=tuple(table))
        return Code(code, marked.needs_seed, marked.needs_clock)


# First in, first out: a look-up changes nothing, so it needs no lock.
_templates: cachetools.FIFOCache[Shape, Template] = cachetools.FIFOCache(4096)
_templates_lock = threading.Lock()


def _renew_lock() -> None:
    """Replace the lock in a forked child: a thread of the parent may have held it."""
    global _templates_lock  # noqa: PLW0603 - renewed where it is
    _templates_lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


def get_template(shape: Shape) -> Template:
    """Return the template of a shape, made when the shape is first met."""
    try:
        return _templates[shape]
    except KeyError:
        source = _Source(shape)
    module = compile(source.build_text(), "<flagkit>", "exec")
    code = next(constant for constant in module.co_consts if isinstance(constant, CodeType))
    marks = [(place, source.places.get(found)) for place, found in enumerate(code.co_consts)]
    places = tuple((place, number) for place, number in marks if number is not None)
    template = Template(Code(code, source.needs_seed, source.needs_clock), places)
    with _templates_lock:
        _templates[shape] = template
    return template


class _Source:
    """The source text of a shape's function."""

    def __init__(self, shape: Shape) -> None:
        self.answers, self.gates, self.off, self.needs_clock, *served, self.name_count = shape
        self.rules, self.fallthrough = served
        self.places: dict[object, int] = {}
        self.fetched_attributes: set[int] = set()
        self.needs_seed = False
        self.lines: list[str] = []

    def build_text(self) -> str:
        for _ in range(self.gates):
            evaluator, variants = self.take_marks(2)
            # Called by way of a name, as patterns are.
            self.lines += [
                f" gate = {evaluator}",
                f" if gate(context).variant not in {variants}:",
            ]
            self.write_serve(self.off, "  ")
        if self.needs_clock:
            # Read once, so that no two rules answer for different moments.
            self.lines.append(" moment = now()")
        for window, condition, serves in self.rules:
            expression = self.write_window(window) + self.build_expression(condition)
            self.write_fetches(_collect_attributes(condition), " ")
            self.lines.append(f" if {expression}:")
            outside = set(self.fetched_attributes)
            self.write_serve(serves, "  ")
            self.fetched_attributes = outside
        self.write_serve(self.fallthrough, " ")
        for i, mark in enumerate(map(_format_name_mark, range(self.name_count)), len(self.places)):
            self.places[mark] = i
        parameters = {
            "context": True,
            "default": self.answers != "outcome",
            "own_seed": self.needs_seed,
            "now": self.needs_clock,
        }
        head = [
            f"def evaluator({', '.join(name for name, there in parameters.items() if there)}):",
            " if context.__class__ is not dict:",
            "  context = attributes_of(context)",
        ]
        return "\n".join(head + self.lines)

    def write_window(self, window: str | None) -> str:
        if window is None:
            return ""
        recurs = ""
        if window == "recurring":
            self.lines.append(f" recurs = {self.take_marks(1)[0]}")
            recurs = "recurs(moment) and "
        start, end = self.take_marks(2)
        return f"{start} <= moment < {end} and {recurs}"

    def take_marks(self, count: int) -> list[str]:
        """Return the marks of the next constants, as the source has them."""
        taken: list[str] = []
        for _ in range(count):
            mark = f"constant {len(self.places)}"
            self.places[mark] = len(self.places)
            taken.append(repr(mark))
        return taken

    def write_fetches(self, attributes: Iterable[int], indent: str) -> None:
        for i in sorted(set(attributes) - self.fetched_attributes):
            self.lines += [
                f"{indent}a{i} = context.get({_format_name_mark(i)!r})",
                f"{indent}k{i} = a{i}.__class__",
            ]
            self.fetched_attributes.add(i)

    def build_expression(self, shape: Shape) -> str:
        kind, *rest = shape
        match kind:
            case "and":
                return _join_expressions(" and ", map(self.build_expression, rest), "True")
            case "or":
                return _join_expressions(" or ", map(self.build_expression, rest), "False")
            case "nor":
                return (
                    f"(not {_join_expressions(' or ', map(self.build_expression, rest), 'False')})"
                )
            case "matches":
                return f"matches({self.take_marks(1)[0]}, context)"
            case "exists":
                return f"({_format_name_mark(rest[0])!r} in context)"
            case _:
                operation, index = rest
                *constant, test = self.take_marks(1 if operation == "is" else 2)
                return _BY_KIND[kind].format(
                    a=f"a{index}", k=f"k{index}", op=operation, c="".join(constant), t=test
                )

    def write_serve(self, shape: Shape, indent: str) -> None:
        match shape:
            case ("serve",):
                body = [f"return {self.take_marks(1)[0]}"]
            case ("default",):
                body = ["return default"]
            case (kind, by, count, own):
                body = self.build_rollout(
                    kind, by, count, self.use_own_seed() if own else self.take_marks(1)[0]
                )
            case _:
                raise AssertionError(shape)
        self.lines += [indent + line for line in body]

    def use_own_seed(self) -> str:
        self.needs_seed = True
        return "own_seed"

    def build_rollout(self, kind: str, by: int, interval_count: int, hash_seed: str) -> list[str]:
        missing = "default" if self.answers != "outcome" else self.take_marks(1)[0]
        body, value, plain, path = self.build_hashed_value(by, missing)
        fast = f"hashed = xxh3({value}.encode(), {hash_seed})"
        match kind:
            case "ramp":
                ramp, inside, outside = self.take_marks(3)
                # Called by way of a name, as patterns are.
                body.append(f"ramp = {ramp}")
                answer = [f"return {inside} if hashed < ramp(moment) else {outside}"]
            case "below" | "from":
                compared = f"{'<' if kind == 'below' else '>='} {self.take_marks(1)[0]}"
                fast = fast.replace("hashed =", "return") + " " + compared
                answer = [f"return hashed {compared}"]
            case _:
                ends = [self.take_marks(2) for _ in range(interval_count)]
                answer = [f"if hashed < {end}: return {outcome}" for end, outcome in ends[:-1]]
                answer.append(f"return {ends[-1][1]}")
        return [
            *body,
            f"if {plain}:",
            f" try: {fast}",
            f" except UnicodeEncodeError: hashed = hash_of({hash_seed}, {value})",
            "else:",
            f" key = key_of({value})",
            f" if key is None: {self.build_missing_key_statement(value, path, missing)}",
            f" hashed = hash_of({hash_seed}, key)",
            *answer,
        ]

    def build_missing_key_statement(self, value: str, path: str, missing: str) -> str:
        """Return the statement for an attribute that cannot be hashed."""
        if self.answers == "telling":
            return f"raise unfit({value}, {path})"
        kind = "default" if self.answers == "silent" else "outcome"
        return f"return {kind}_without_key({value}, {path}, {missing})"

    def build_hashed_value(self, by: int, missing: str) -> tuple[list[str], str, str, str]:
        """Return code for the hashed attribute: how to fetch it, name, test for str, and path."""
        path = repr(_format_name_mark(by)) if by >= 0 else self.take_marks(1)[0]
        if by in self.fetched_attributes:
            return [], f"a{by}", f"k{by} is str and a{by}", path
        if by < 0:
            body = [f"value = attribute(context, {path})"]
        else:
            raising = f"raise unfit(None, {path})"
            # This is about 20 ns faster than `get` if the attribute is present.
            body = [
                f"try: value = context[{path}]",
                f"except KeyError: {raising if self.answers == 'telling' else f'return {missing}'}",
            ]
        return body, "value", "value.__class__ is str and value", path


def _format_name_mark(index: int) -> str:
    return f"name {index}"


def _join_expressions(operator: str, expressions: Iterable[str], empty: str) -> str:
    return f"({operator.join(expressions) or empty})"


def _collect_attributes(shape: Shape) -> set[int]:
    """Return the attributes that a condition's shape has to have fetched."""
    kind, *rest = shape
    if kind in ("and", "or", "nor"):
        return {index for inner in rest for index in _collect_attributes(inner)}
    return {rest[1]} if kind in _BY_KIND else set()


LEAVES_MAX = 64
"""`matching` evaluates a rule with more tests, because its code would not pay for itself."""

_NUMBERS: Final = {int, float}
_PYTHON: Final = {"$eq": "==", "$ne": "!=", "$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}


def find_constant(
    flag: Flag, prerequisites: Sequence[Outcome | EvaluationFn | None] = ()
) -> Outcome | None:
    """Return the answer of a flag to everyone at any time, None if answers differ.

    Args:
        flag: A checked flag.
        prerequisites: The constant outcomes of its prerequisites, in their order. For one whose
            answers differ, pass anything that is not an Outcome.
    """
    if flag.state != "active":
        return build_off_outcome(flag)
    always = not flag.rules
    for wanted, found in zip(flag.prerequisites, prerequisites, strict=False):
        if not isinstance(found, Outcome):
            always = False
        elif found.variant not in wanted.variants:
            return build_off_outcome(flag)
    if always and isinstance(flag.fallthrough, Serve):
        return build_outcome(flag, flag.fallthrough.variant, None)
    return None


def compile_flag(
    flag: Flag, prerequisites: Sequence[Outcome | EvaluationFn] = (), now: Clock = time.time
) -> Outcome | EvaluationFn:
    """Compile a flag into its outcome, if that is always the same, or into an evaluator.

    Args:
        flag: A checked flag.
        prerequisites: The compiled prerequisites of the flag, in their order; empty if the caller
            checks them.
        now: The clock that the evaluator function reads if the flag has windows.

    Returns:
        An Outcome, or a function of a context that returns one. The function raises only if the
        context has a wrong type or misbehaves.
    """
    constant = find_constant(flag, prerequisites)
    if constant is not None:
        return constant
    return cast("EvaluationFn", generate_code(flag, prerequisites).build_function(flag.key, now))


def generate_code(flag: Flag, prerequisites: Sequence[Outcome | EvaluationFn] = ()) -> Code:
    """Return the code of the evaluator of a flag that is not constant."""
    return _ShapeBuilder(flag).generate_code(prerequisites)


def compile_boolean_fn(
    flag: Flag,
    prerequisites: Sequence[Outcome | EvaluationFn] = (),
    now: Clock = time.time,
    *,
    raises: bool = False,
) -> bool | BooleanFn:
    """Compile a flag as `compile_flag` does, into a function that returns only the boolean.

    Returns:
        True or False, if that is always the same, or a function of a context and the caller's
        default. It raises the same errors as an evaluator function, and InvalidContextError if an
        attribute cannot be hashed. With `raises`, a missing key raises MissingKeyError.
    """
    if flag.type != "boolean":
        return return_default
    constant = find_constant(flag, prerequisites)
    if constant is None:
        code = generate_boolean_code(flag, prerequisites, raises=raises)
        return cast("BooleanFn", code.build_function(flag.key, now))
    return return_default if constant.variant is None else constant.value


def generate_boolean_code(
    flag: Flag, prerequisites: Sequence[Outcome | EvaluationFn] = (), *, raises: bool = False
) -> Code:
    """Return the code of the boolean function of a flag that is not constant."""
    return (_RaisingShapeBuilder if raises else _BooleanShapeBuilder)(flag).generate_code(
        prerequisites
    )


def return_default(_: ContextLike, default: bool) -> bool:  # noqa: FBT001 - a boolean function
    """Return the caller's default: the boolean function of flags that have no boolean variants."""
    return default


def build_off_outcome(flag: Flag) -> Outcome:
    """Return the answer of a flag that is not active, or whose prerequisites are not met."""
    if flag.off is None:
        return Outcome(reason=Reason.DISABLED)
    return Outcome(value=flag.variants[flag.off], variant=flag.off, reason=Reason.DISABLED)


def build_outcome(flag: Flag, variant: str, rule: str | None, *, split: bool = False) -> Outcome:
    """Return the outcome if a rule, or the fallthrough, chooses a variant."""
    if split:
        reason = Reason.SPLIT
    elif rule is not None:
        reason = Reason.TARGETING_MATCH
    else:
        reason = Reason.DEFAULT if flag.rules or flag.prerequisites else Reason.STATIC
    return Outcome(value=flag.variants[variant], variant=variant, reason=reason, rule=rule)


def build_missing_key_outcome(serves: Rollout | Ramp) -> Outcome:
    """Return the outcome of a rollout for a context that has nothing to hash."""
    return build_error_outcome(
        ErrorCode.TARGETING_KEY_MISSING,
        f"the rollout is by {'.'.join(serves.by)!r}, where the context has no string"
        " (or an empty one), integer, UUID or ObjectId",
    )


class _ShapeBuilder:
    """The walk over one flag that finds its evaluator's shape and collects its constants."""

    answers = "outcome"

    def __init__(self, flag: Flag) -> None:
        self.flag = flag
        self.constants: list[object] = []
        self.names: dict[str, int] = {}

    def generate_code(self, prerequisites: Sequence[Outcome | EvaluationFn]) -> Code:
        flag = self.flag
        gates, off = 0, None
        for wanted, found in zip(flag.prerequisites, prerequisites, strict=False):
            if not isinstance(found, Outcome):
                gates += 1
                self.constants += (found, frozenset(wanted.variants))
                off = self.build_off()
        timed = is_time_dependent(flag)
        rules = tuple([self.build_rule(rule) for rule in flag.rules])
        fallthrough = self.build_serves(flag.fallthrough, None)
        shape = (self.answers, gates, off, timed, rules, fallthrough, len(self.names))
        self.constants += self.names
        return get_template(shape).fill(self.constants)

    def build_off(self) -> Shape:
        self.constants.append(build_off_outcome(self.flag))
        return ("serve",)

    def build_rule(self, rule: Rule) -> Shape:
        window = None
        if rule.during is not None:
            again = rule.during.recurrence
            window = "once" if again is None else "recurring"
            if again is not None:
                self.constants.append(functools.partial(is_recurrence_open, again))
            self.constants += (rule.during.start, rule.during.end)
        if _count_leaves(rule.condition) > LEAVES_MAX:
            self.constants.append(_prepare_patterns(rule.condition))
            condition: Shape = ("matches",)
        else:
            condition = self.build_condition(rule.condition)
        return (window, condition, self.build_serves(rule.serves, rule.name))

    def build_condition(self, condition: Condition) -> Shape:
        match condition:
            case Field(path, test):
                return (
                    self.build_leaf(path, test) if len(path) == 1 else self.build_nested(condition)
                )
            case And(conditions):
                return ("and", *self.iter_cheapest_first(conditions))
            case Or(conditions):
                return ("or", *self.iter_cheapest_first(conditions))
            case Nor(conditions):
                return ("nor", *self.iter_cheapest_first(conditions))
            case InSegment():
                return ("or",)

    def iter_cheapest_first(self, conditions: Iterable[Condition]) -> Iterator[Shape]:
        return map(self.build_condition, sorted(conditions, key=_rank_cost))

    def build_leaf(self, path: tuple[str, ...], test: Test) -> Shape:  # noqa: C901, PLR0911, PLR0912 - one for each test
        match test:
            case Exists():
                return ("exists", self.get_attribute_index(path[0]))
            case Compare(operator, value):
                kind = _find_kind(value)
                if kind in ("text", "number"):
                    return self.build_inline(kind, _PYTHON[operator], path[0], [value, test])
                if kind is not None and operator == "$eq":
                    return self.build_inline(kind, "is", path[0], [test])
            case In(scalars, ()):
                kind = _find_common_kind(scalars)
                if kind is not None:
                    return self.build_inline(kind, "in", path[0], [scalars, test])
            case MemberTest(members):
                return self.build_inline("key", "in", path[0], [members, test])
            case Affix("$contains", texts):
                if len(texts) == 1:
                    return self.build_inline("contains", "in", path[0], [texts[0], test])
            case Affix(operator, texts):
                method = "startswith" if operator == "$startsWith" else "endswith"
                return self.build_inline("affix", method, path[0], [texts, test])
            case Pattern(source, options):
                search = compile_search(source, options)
                return self.build_inline(
                    "pattern", "in", path[0], [search, CompiledPattern(search)]
                )
            case Version("$in" | "$nin" as operator, keys):
                operation = "in" if operator == "$in" else "not in"
                return self.build_inline("version", operation, path[0], [frozenset(keys), test])
            case Version(operator, keys):
                return self.build_inline("version", _PYTHON[operator], path[0], [keys[0], test])
            case _:
                pass
        return self.build_nested(Field(path, test))

    def build_inline(
        self, kind: str | None, operation: str, name: str, constants: list[object]
    ) -> Shape:
        self.constants += constants
        return (kind, operation, self.get_attribute_index(name))

    def build_nested(self, field: Field) -> Shape:
        self.constants.append(_prepare_patterns(field))
        return ("matches",)

    def get_attribute_index(self, name: str) -> int:
        return self.names.setdefault(name, len(self.names))

    def build_serves(self, serves: Serves, rule: str | None) -> Shape:
        if isinstance(serves, Serve):
            self.constants.append(build_outcome(self.flag, serves.variant, rule))
            return ("serve",)
        own = self.has_own_seed(serves)
        self.constants.append(build_missing_key_outcome(serves))
        by = self.get_by_index(serves)
        if isinstance(serves, Ramp):
            self.constants.append(functools.partial(compute_ramp_threshold, serves))
            for variant in (serves.variant, serves.otherwise):
                self.constants.append(build_outcome(self.flag, variant, rule, split=True))
            return ("ramp", by, 0, own)
        for end, variant in serves.intervals:
            self.constants += (
                compute_threshold(end),
                build_outcome(self.flag, variant, rule, split=True),
            )
        return ("rollout", by, len(serves.intervals), own)

    def has_own_seed(self, serves: Rollout | Ramp) -> bool:
        """Return True if a rollout's seed comes from the flag's key, which a body does not have."""
        own = serves.salt == self.flag.key
        if not own:
            self.constants.append(compute_seed(serves.salt))
        return own

    def get_by_index(self, serves: Rollout | Ramp) -> int:
        if len(serves.by) == 1:
            return self.get_attribute_index(serves.by[0])
        self.constants.append(serves.by)
        return -1


class _BooleanShapeBuilder(_ShapeBuilder):
    """The same walk for a boolean function, which needs only the boolean of each variant."""

    answers = "silent"

    def build_off(self) -> Shape:
        if self.flag.off is None:
            return ("default",)
        self.constants.append(self.flag.variants[self.flag.off])
        return ("serve",)

    def build_serves(self, serves: Serves, rule: str | None) -> Shape:  # noqa: ARG002 - names no rule
        values = self.flag.variants
        if isinstance(serves, Serve):
            self.constants.append(values[serves.variant])
            return ("serve",)
        own = self.has_own_seed(serves)
        by = self.get_by_index(serves)
        if isinstance(serves, Ramp):
            self.constants.append(functools.partial(compute_ramp_threshold, serves))
            self.constants += (values[serves.variant], values[serves.otherwise])
            return ("ramp", by, 0, own)
        if len(serves.intervals) == 2:  # noqa: PLR2004 - this one and the other
            (end, first), (_, second) = serves.intervals
            if values[first] is not values[second]:
                self.constants.append(compute_threshold(end))
                return ("below" if values[first] is True else "from", by, 0, own)
        for end, variant in serves.intervals:
            self.constants += (compute_threshold(end), values[variant])
        return ("rollout", by, len(serves.intervals), own)


class _RaisingShapeBuilder(_BooleanShapeBuilder):
    """The same walk for a boolean function that raises an error if there is nothing to hash."""

    answers = "telling"


def _prepare_patterns(condition: Condition) -> Condition:
    """Return a condition with its patterns ready to be searched for."""
    match condition:
        case Field(path, Pattern(source, options)):
            return Field(path, CompiledPattern(compile_search(source, options)))
        case Field(path, ElemMatch(inner, by_value)):
            return Field(path, ElemMatch(_prepare_patterns(inner), by_value))
        case And(conditions) | Or(conditions) | Nor(conditions):
            return type(condition)(tuple(map(_prepare_patterns, conditions)))
        case Field() | InSegment():
            return condition


def _rank_cost(condition: Condition) -> int:
    """Return a condition's rank among its siblings: cheap conditions are tested first.

    Inline tests take about 20 ns, versions 150, and tests by the slow path a microsecond.
    """
    match condition:
        case Field((_,), Compare() | In() | Exists() | Affix()) | InSegment():
            return 0
        case Field((_,), Version()):
            return 1
        case Field():
            return 2
        case And(conditions) | Or(conditions) | Nor(conditions):
            return max(map(_rank_cost, conditions), default=0)


def _count_leaves(condition: Condition) -> int:
    if isinstance(condition, Field | InSegment):
        return 1
    return sum(map(_count_leaves, condition.conditions))


def _find_common_kind(values: Collection[object]) -> str | None:
    """Return the inline test that a set of constants allows, None if they share none."""
    types = set(map(type, values))
    if types == {str}:
        return "text"
    return "number" if types and types <= _NUMBERS and all(v == v for v in values) else None  # noqa: PLR0124 - NaN


def _find_kind(value: object) -> str | None:
    """Return the inline test that a constant allows, None if only `matching` knows one."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return "number" if value == value else None  # noqa: PLR0124 - NaN equals NaN in MongoDB
    if value is None:
        return "null"
    return "text" if isinstance(value, str) else None
