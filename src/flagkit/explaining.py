"""Explaining: an answer of a view with all that led to it.

The answer is of the code that always answers; the steps are gone through beside it, over the
policies as written, and shown only where they lead to what was answered.
"""

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from flagkit.core.contexts import ContextLike, attributes_of
from flagkit.core.evaluation import Evaluation, Reason, evaluation_of
from flagkit.core.explanation import Explanation, FlagTrace
from flagkit.core.tracing import Traced, Tracer
from flagkit.interruptions import is_interruption
from flagkit.model import Flag
from flagkit.model.segments import Segment
from flagkit.snapshot import Part, segment_of
from flagkit.view import View

REDACTED_MAX = 1_000
"""At most so many paths are redacted. Some iterators never end."""
EXPLANATIONS_MAX = 3
"""How often an explanation is tried while the clock changes the answer."""


def explained(
    view: View, key: str, context: ContextLike, default: Any, redact: Collection[str] = ()
) -> Explanation:
    """Return the answer of a flag with all that led to it. Never raises.

    What led to it is left out where there is none, or where what the caller passed, or the clock,
    misbehaves.
    """
    # Gone through anew where the clock has made a difference in between.
    evaluation = view.evaluate(key, context, default)
    time = datetime.fromtimestamp(0, UTC)
    flags: tuple[FlagTrace, ...] = ()
    try:
        hidden = _paths(redact)
        for _ in range(EXPLANATIONS_MAX):
            moment = view.now()
            time = datetime.fromtimestamp(moment, UTC)
            traced = _traced(view, key, context, moment, hidden)
            if not traced:
                break
            if _same(evaluation, evaluation_of(key, traced[0].outcome, default)):
                flags = tuple(item.trace for item in traced)
                break
            evaluation = view.evaluate(key, context, default)
    except Exception as error:
        # A caller's odd key, context or default must not hurt the caller.
        if is_interruption(error):
            raise
        flags = ()
    return Explanation(evaluation=evaluation.without_secret(), time=time, flags=flags)


def _paths(redact: Collection[str]) -> tuple[str, ...]:
    """Return the paths to redact.

    Raises:
        TypeError, ValueError: they are no paths, or too many. Nothing may be shown then.
    """
    given = (redact,) if isinstance(redact, str) else tuple(islice(redact, REDACTED_MAX + 1))
    paths = tuple(map(str.__str__, given))
    if len(paths) > REDACTED_MAX:
        raise ValueError(f"more than {REDACTED_MAX} paths to redact")
    return paths


def _traced(
    view: View, key: str, context: ContextLike, moment: float, redact: Collection[str]
) -> list[Traced]:
    """Return the steps of an evaluation, none where there are none to go through."""
    compiled = view.find(key)
    broken = compiled.constant if compiled is not None else None
    if compiled is None or (broken is not None and broken.error_code is not None):
        return []
    return Tracer(_Policies(view), attributes_of(context), moment, redact).trace(key)


def _same(one: Evaluation[Any], other: Evaluation[Any]) -> bool:
    # That it is stale is no step of what led to an answer.
    return (one.variant, one.rule, one.error_code) == (
        other.variant,
        other.rule,
        other.error_code,
    ) and one.reason in (other.reason, Reason.STALE)


class _Policies:
    """A snapshot's flags and segments, for those whose references are sound."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._snapshot = view.snapshot
        self._flags: dict[str, tuple[Flag, int]] = {}

    def flag(self, key: str) -> tuple[Flag, int]:
        found = self._flags.get(key)
        if found is None:
            record = self._snapshot.find(key)
            assert record is not None, "a sound flag refers to what there is"
            found = self._flags[key] = self._view.opened(record), record.version
        return found

    def segment(self, key: str) -> tuple[Segment, Mapping[str, Part]]:
        record = self._snapshot.segment(key)
        assert record is not None, "a sound flag refers to what there is"
        return segment_of(record), self._snapshot.parts
