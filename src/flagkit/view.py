"""View: a snapshot and the evaluators compiled from it, published together by one assignment.

A view answers for one revision, whole. Its evaluators belong to it alone: a compile that began
before a change puts its result into the old view, never into the new one. Evaluators that no change
touched, by themselves or through a prerequisite, are carried over.
"""

import logging
from collections.abc import Sequence
from typing import TypeAlias

import msgspec
from msgspec import Struct

from flagkit.changes import Change
from flagkit.core.bucketing import Clock
from flagkit.core.compiler import compile_flag
from flagkit.core.evaluation import ErrorCode, Outcome, failed
from flagkit.core.templates import Evaluator
from flagkit.errors import BrokenReferenceError, FlagkitError
from flagkit.model import decode
from flagkit.snapshot import Snapshot

_log = logging.getLogger("flagkit")

COMPILED_MAX = 65_536
"""How many compiled flags a view keeps. Beyond it the newest makes room: O(1), never a stall."""


class Compiled(Struct, frozen=True):
    """A flag ready to be asked. `evaluator` is its outcome where that is always the same."""

    evaluator: Outcome | Evaluator
    version: int


Switch: TypeAlias = bool | Evaluator
"""What `is_enabled` asks: the answer of a constant boolean flag, or an evaluator."""


class View:
    """A snapshot and what was compiled from it. `switches` is for the hot path of `is_enabled`."""

    __slots__ = ("_compiled", "_dependents", "_now", "snapshot", "switches")

    def __init__(self, snapshot: Snapshot, now: Clock) -> None:
        self.snapshot = snapshot
        self._now = now
        self.switches: dict[str, Switch] = {}
        self._compiled: dict[str, Compiled] = {}
        # By a prerequisite's key, the flags that were ever compiled against it. Shared by
        # successive views: an entry too many costs a compile, one too few would be a wrong answer.
        self._dependents: dict[str, set[str]] = {}

    def after(self, snapshot: Snapshot, changes: Sequence[Change]) -> "View":
        """Return the view of a later snapshot, with the evaluators that no change touches."""
        view = View(snapshot, self._now)
        view._dependents = self._dependents
        view._compiled = self._compiled.copy()
        view.switches = self.switches.copy()
        stale = [flag.id[1] for change in changes for flag in change.flags]
        dropped: set[str] = set()
        while stale:
            key = stale.pop()
            if key not in dropped:
                dropped.add(key)
                view._compiled.pop(key, None)
                view.switches.pop(key, None)
                stale += tuple(self._dependents.get(key, ()))
        return view

    def find(self, key: str) -> Compiled | None:
        """Return a flag, compiled on first use, or None if there is no such flag."""
        compiled = self._compiled.get(key)
        return compiled if compiled is not None else self._compile(key, ())

    def switch(self, key: str) -> Switch:
        """Return what `is_enabled` asks for a flag that it has not asked before.

        Raises:
            KeyError: there is no such flag.
        """
        compiled = self.find(key)
        if compiled is None:
            raise KeyError(key)
        evaluator = compiled.evaluator
        if not isinstance(evaluator, Outcome):
            switch: Switch = evaluator
        elif isinstance(evaluator.value, bool):
            switch = evaluator.value
        else:
            switch = lambda _: evaluator  # noqa: E731 - it stands for an evaluator, and is as short
        self.switches[key] = switch
        return switch

    def _compile(self, key: str, asked_by: tuple[str, ...]) -> Compiled | None:
        state = self.snapshot.find(key)
        if state is None:
            return None
        evaluator: Outcome | Evaluator
        try:
            flag = decode(state.policy, stored=True)
            chain = (*asked_by, key)
            needed = [self._prerequisite(item.flag, chain) for item in flag.prerequisites]
            evaluator = compile_flag(flag, needed, self._now)
        except (FlagkitError, msgspec.DecodeError, RecursionError) as error:
            # One bad flag answers the caller's default; the others live.
            _log.warning("%s answers callers' defaults: %s", key, error)
            evaluator = failed(ErrorCode.PARSE_ERROR, str(error))
        compiled = Compiled(evaluator, state.version)
        if len(self._compiled) >= COMPILED_MAX:
            evicted, _ = self._compiled.popitem()
            self.switches.pop(evicted, None)
        self._compiled[key] = compiled
        return compiled

    def _prerequisite(self, key: str, chain: tuple[str, ...]) -> Outcome | Evaluator:
        self._dependents.setdefault(key, set()).add(chain[-1])
        if key in chain:
            raise _broken(f"form a cycle: {' -> '.join((*chain, key))}")
        compiled = self._compiled.get(key) or self._compile(key, chain)
        if compiled is None:
            raise _broken(f"name {key}, which does not exist")
        evaluator = compiled.evaluator
        if isinstance(evaluator, Outcome) and evaluator.error_code is ErrorCode.PARSE_ERROR:
            raise _broken(f"name {key}, which is broken itself")
        return evaluator


def _broken(problem: str) -> BrokenReferenceError:
    return BrokenReferenceError(
        "prerequisites", problem, "The writer refuses this: write them anew"
    )
