"""Explanations: an evaluation with all that led to it, as data and as text."""

import itertools
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, Final, TypeVar, cast

import msgspec
from msgspec import Struct

from flagkit.core.evaluation import Evaluation
from flagkit.interruptions import is_interruption
from flagkit.model import EVERYWHERE
from flagkit.model.foreign import native
from flagkit.model.rollouts import percent
from flagkit.printable import printable

T = TypeVar("T")

REDACTED: Final = "[redacted]"
_WIDTH_MAX: Final = 72
_TEXT_MAX, _ITEMS_MAX, _DEPTH_MAX, _BITS_MAX = 1000, 50, 6, 63
_TEXT_ALL_MAX, _ITEMS_ALL_MAX = 10_000, 1000


class ConditionTrace(Struct, frozen=True, kw_only=True):
    """One test of a condition, or several below a logical operator.

    `seen` is the attribute that stands at the path, `present` whether there is one; lists are shown
    whole. `constant` is what the policy compares with. With a logical operator, and with
    `$segment`, `inner` has the tests below it.
    """

    operator: str
    holds: bool
    path: str | None = None
    constant: Any = None
    present: bool = False
    seen: Any = None
    inner: "tuple[ConditionTrace, ...]" = ()


class RolloutTrace(Struct, frozen=True, kw_only=True):
    """How a rollout or ramp chose a variant.

    `key` is what was hashed with `salt`, cut where it is long, None where there is nothing to hash.
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
    """One flag that was evaluated: what was tried in order, up to what decided.

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
    """An evaluation and how it came about; `str()` gives it as text.

    The text shows control and invisible characters of what it quotes as escapes.

    `flags` are the flag that was asked, first, and the prerequisites that were evaluated for it;
    none where there was nothing to evaluate, where it is off because its snapshot is stale, or
    where the context, the default or the clock misbehaved. `time` is the moment that windows and
    ramps were judged at, in UTC; the epoch where that cannot be told, since the clock gave no
    moment that a calendar has.
    """

    evaluation: Evaluation[Any]
    time: datetime
    flags: tuple[FlagTrace, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON has it: dates and other such values are strings.

        The caller's key and default are cut as attributes are. Never raises.
        """
        told = msgspec.structs.replace(self, evaluation=_told(self.evaluation))
        plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(told))
        return plain

    def __str__(self) -> str:
        return "\n".join(map(printable, _lines(self)))


def shown(value: object) -> Any:
    """Return an attribute as plain data, cut where it is long or deep. Never raises.

    Of all in it there are at most 1,000 items and 10,000 characters.
    """
    return _Showing().plain(value, 0)


class _Showing:
    """What of a value is shown, by what is left of its items and characters."""

    def __init__(self) -> None:
        self._items = _ITEMS_ALL_MAX
        self._characters = _TEXT_ALL_MAX

    def plain(self, value: object, depth: int) -> Any:
        try:
            return self._plain(value, depth)
        except Exception as error:
            # Whatever a caller's object does.
            if is_interruption(error):
                raise
            # What a type is called, its own metaclass cannot misstate here.
            return self._text(f"an object of {type.__repr__(type(value))}")

    # The methods of the plain types, and not those by which a caller's own types replace them.
    def _plain(self, value: object, depth: int) -> Any:  # noqa: PLR0911 - one for each type
        value = native(value)
        match value:
            case None | True | False:
                return value
            case float():
                return float.__float__(value)
            case int():
                bits = int.bit_length(value)
                return int.__int__(value) if bits <= _BITS_MAX else f"an integer of {bits} bits"
            case str():
                return self._text(value)
            case list() | tuple() | dict() if depth == _DEPTH_MAX:
                return "..."
            case list() | tuple():
                items = cast("list[object] | tuple[object, ...]", value)
                cut = [self.plain(item, depth + 1) for item in self._some(items)]
                return cut if len(cut) == len(items) else [*cut, f"... {len(items):,} in all"]
            case dict():
                fields = cast("dict[object, object]", value)
                return {
                    str(self.plain(name, depth + 1)): self.plain(item, depth + 1)
                    for name, item in self._some(fields.items())
                }
            case _:
                return self._text(repr(value))

    def _some(self, items: Iterable[T]) -> Iterator[T]:
        for item in itertools.islice(items, _ITEMS_MAX):
            if not self._items:
                return
            self._items -= 1
            yield item

    def _text(self, text: str) -> str:
        whole = str.__str__(text)
        cut = whole[: min(_TEXT_MAX, self._characters)]
        self._characters -= len(cut)
        ending = "" if len(cut) == len(whole) else "..."
        return cut.encode("utf-8", "backslashreplace").decode() + ending


def _told(found: Evaluation[Any]) -> Evaluation[Any]:
    """Return an evaluation with what is the caller's own in it as plain data."""
    return msgspec.structs.replace(
        found,
        flag_key=shown(found.flag_key),
        value=_plain(found.value) if found.variant is not None else shown(found.value),
        error_message=shown(found.error_message),
    )


def _plain(value: Any) -> Any:
    """Return a variant's value, or its text if JSON cannot say it.

    No writer stores such a value, but what was stored past the writer may hold a null for a name.
    """
    try:
        msgspec.json.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return shown(value)
    return value


def _lines(explanation: Explanation) -> Iterator[str]:
    found = _told(explanation.evaluation)
    served = f"{found.variant!r}, " if found.variant is not None else "the default, "
    by = f" by rule {found.rule!r}" if found.rule else ""
    yield f"{found.flag_key} is {_short(found.value)}: {served}{found.reason}{by}"
    if found.error_code is not None:
        yield f"  {found.error_code}: {found.error_message}"
    until = f", valid until {found.valid_until.isoformat()}" if found.valid_until else ""
    yield f"  at revision {found.revision}, {explanation.time.isoformat()}{until}"
    for flag in explanation.flags:
        yield from _flag_lines(flag)


def _flag_lines(flag: FlagTrace) -> Iterator[str]:
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
            yield from _condition_lines(condition, "    ")
        if rule.rollout is not None:
            yield f"    {_rollout_line(rule.rollout)}"
    if flag.rollout is not None:
        yield f"  fallthrough: {_rollout_line(flag.rollout)}"
    served = repr(flag.variant) if flag.variant is not None else "no variant"
    yield f"  serves {served}: {flag.reason}"


def _condition_lines(condition: ConditionTrace, indent: str) -> Iterator[str]:
    mark = "yes" if condition.holds else "no "
    if condition.path is None:
        named = f" {_short(condition.constant)}" if condition.constant is not None else ""
        yield f"{indent}{mark} {condition.operator}{named}"
        for inner in condition.inner:
            yield from _condition_lines(inner, f"{indent}    ")
        return
    seen = f"seen: {_short(condition.seen)}" if condition.present else "not there"
    constant = f" {_short(condition.constant)}" if condition.constant is not None else ""
    yield f"{indent}{mark} {condition.path} {condition.operator}{constant} ({seen})"


def _rollout_line(rollout: RolloutTrace) -> str:
    if rollout.bucket is None or rollout.interval is None:
        return f"rollout by {rollout.by}: the context has nothing to hash there"
    ramp = f", a ramp at {rollout.ramp_percent:g} %" if rollout.ramp_percent is not None else ""
    start, end = rollout.interval
    return (
        f"rollout by {rollout.by}{ramp}: {rollout.key!r} under salt {rollout.salt!r} is in bucket"
        f" {rollout.bucket:,}, from {percent(start):g} to {percent(end):g} %: {rollout.variant!r}"
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _WIDTH_MAX else f"{text[:_WIDTH_MAX]}... ({len(text):,} characters)"
