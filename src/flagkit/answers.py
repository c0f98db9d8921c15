"""Answers: what callers ask, answered from the view that is published.

Reads take the published view once into a local, and lock nothing. Evaluation never raises and never
waits: where it cannot answer, it answers the caller's default.
"""

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any, Final, TypeVar, overload

from flagkit.core.compiler import leave_to_caller
from flagkit.core.contexts import ContextLike, attributes_of
from flagkit.core.evaluation import ErrorCode, Evaluation, evaluation_of, failed
from flagkit.core.explanation import Explanation
from flagkit.core.templates import Switch
from flagkit.counting import Counting, Counts
from flagkit.explaining import explained
from flagkit.interruptions import FAILURES_SUPPRESSED, is_interruption
from flagkit.mistakes import Mistakes
from flagkit.model.foreign import native
from flagkit.snapshot import Snapshot
from flagkit.view import View

T = TypeVar("T")

_MISTAKES: Final = frozenset(
    {
        ErrorCode.FLAG_NOT_FOUND,
        ErrorCode.TYPE_MISMATCH,
        ErrorCode.TARGETING_KEY_MISSING,
        ErrorCode.INVALID_CONTEXT,
        ErrorCode.GENERAL,
    }
)
"""The errors that callers make. A flag that is broken was logged when it was compiled."""
_NOT_READY = failed(
    ErrorCode.PROVIDER_NOT_READY,
    "no flags have been loaded yet: flagkit.configure, then wait_ready",
)


class Answers:
    """The evaluations of a client, whatever it is that publishes views to it."""

    __slots__ = ("__weakref__", "_counting", "_mistakes", "_switches", "_view")

    _counting: Counting | None
    _mistakes: Mistakes
    _view: View | None
    _switches: dict[str, bool | Switch]

    def is_enabled(self, key: str, context: ContextLike = None, default: bool = False) -> bool:  # noqa: FBT001, FBT002 - as every peer has it
        """Return the value of a boolean flag, or `default` where there is none. Never raises."""
        try:
            switch = self._switches[key]
            if switch is True or switch is False:
                return switch
            return switch(context, default)
        except Exception as error:  # noqa: BLE001 - not compiled yet, or what a caller passed misbehaves
            return self._is_enabled_first(key, context, default, error)

    @overload
    def value(self, key: str, context: ContextLike = None, *, default: None) -> Any: ...
    @overload
    def value(self, key: str, context: ContextLike = None, *, default: T) -> T: ...
    def value(self, key: str, context: ContextLike = None, *, default: Any) -> Any:
        """Return a flag's value, if it has the type of `default`, else `default`. Never raises.

        An integer serves where a float is asked for. With None as the default, any type does.
        Objects are the caller's own copies.
        """
        return self.evaluate(key, context, default).value

    @overload
    def evaluate(
        self,
        key: str,
        context: ContextLike = None,
        default: None = None,
        *,
        max_staleness: float | None = None,
    ) -> Evaluation[Any]: ...
    @overload
    def evaluate(
        self, key: str, context: ContextLike, default: T, *, max_staleness: float | None = None
    ) -> Evaluation[T]: ...
    @overload
    def evaluate(
        self,
        key: str,
        context: ContextLike = None,
        *,
        default: T,
        max_staleness: float | None = None,
    ) -> Evaluation[T]: ...
    def evaluate(
        self,
        key: str,
        context: ContextLike = None,
        default: Any = None,
        *,
        max_staleness: float | None = None,
    ) -> Evaluation[Any]:
        """Return the value of a flag and why it has it; as `value` otherwise. Never raises.

        Older than `max_staleness` seconds it has the reason STALE, and a flag with
        `when_stale: off` serves `off`; what it rests on is judged by what the client was told.
        """
        view = self._view
        if self._counting is not None:
            self._counting.evaluated(hit=view is not None and view.has_compiled(key))
        if view is None:
            self._look_after()
            return evaluation_of(key, _NOT_READY, default)
        evaluation = view.evaluate(key, context, default, max_staleness)
        if evaluation.error_code is not None and evaluation.error_code in _MISTAKES:
            self._mistakes.tell(evaluation.error_code, key, evaluation.error_message)
        return evaluation

    def evaluate_all(
        self, context: ContextLike = None, prefix: str = ""
    ) -> dict[str, Evaluation[Any]]:
        """Return the evaluations of all flags whose keys begin with `prefix`, by key. Never raises.

        They are of one revision, as a front end needs to begin with. Values of flags that leave
        the answer to the caller are None. Flags that serve a secret are left out, as no front end
        may have it. Empty before there are flags, and where the prefix is no string.
        """
        view = self._view
        if view is None:
            return {}
        keys = self._keys(view, prefix)
        if self._counting is not None:
            for key in keys:
                self._counting.evaluated(hit=view.has_compiled(key))
        return view.evaluate_all(keys, context)

    def keys(self, prefix: str = "") -> list[str]:
        """Return the keys of all flags that begin with `prefix`, ascending. Never raises.

        Only those are looked at; no flag is decoded. Empty before there are flags, and where the
        prefix is no string.
        """
        view = self._view
        return [] if view is None else self._keys(view, prefix)

    def explain(
        self,
        key: str,
        context: ContextLike = None,
        default: Any = None,
        *,
        redact: Collection[str] = (),
    ) -> Explanation:
        """Return an evaluation with all that led to it, as data and as text. Never raises.

        Args:
            key: The flag's key.
            context: Who asks.
            default: The caller's default.
            redact: Paths of attributes that are not to be shown, such as `email`.
        """
        view = self._view
        if view is None:
            evaluation = evaluation_of(key, _NOT_READY, default)
            return Explanation(evaluation=evaluation, time=datetime.now(UTC))
        return explained(view, key, context, default, redact)

    def counts(self) -> Counts | None:
        """Return how often flags were asked, None of a client that does not count. Never raises."""
        return self._counting.read() if self._counting is not None else None

    def bind(self, context: ContextLike) -> "BoundClient":
        """Return this client with a context that need not be passed again. Never raises."""
        return BoundClient(self, context)

    @property
    def revision(self) -> int:
        """The revision that evaluations answer from, 0 before there is any."""
        view = self._view
        return view.snapshot.tip.revision if view is not None else 0

    @property
    def snapshot(self) -> Snapshot | None:
        """What evaluations answer from, None before there is any."""
        view = self._view
        return view.snapshot if view is not None else None

    @property
    def view(self) -> View | None:
        """The snapshot with its clock, None before there is any; for flagkit's own rooms."""
        return self._view

    def _publish_view(self, view: View | None) -> None:
        """Have evaluations answer from a view from now on, of one revision whole.

        All at once, for what answers is `_view` alone: `_switches` is its short way, and while it
        is closed nobody is answered from another revision than `_view`'s.
        """
        self._switches = {}
        self._view = view
        if view is not None:
            self._switches = view.switches

    def _is_enabled_first(
        self,
        key: str,
        context: ContextLike,
        default: bool,  # noqa: FBT001 - as `is_enabled`
        error: Exception,
    ) -> bool:
        """Return what `is_enabled` answers after its short way raised an error. Never raises."""
        # The error of a flag that is not compiled yet has the frame of `is_enabled` alone.
        trace = error.__traceback__
        if trace is not None and trace.tb_next is not None and is_interruption(error):
            raise error
        view = self._view
        if self._counting is not None and (view is None or not view.has_switch(key)):
            self._counting.missed()
        if view is None:
            self._look_after()
            return default
        with FAILURES_SUPPRESSED:
            switch = view.switch(key)
            if isinstance(switch, bool):
                return switch
            if switch is not leave_to_caller:
                return switch(context, default)
        return self._is_enabled_at_length(view, key, context, default)

    def _is_enabled_at_length(
        self,
        view: View,
        key: str,
        context: ContextLike,
        default: bool,  # noqa: FBT001 - as `is_enabled`
    ) -> bool:
        """Return what `is_enabled` answers where a switch could not, and log why."""
        evaluation = view.evaluate(key, context, None)
        code, problem = evaluation.error_code, evaluation.error_message
        if code is None and evaluation.variant is not None:
            if isinstance(evaluation.value, bool):
                return evaluation.value
            code, problem = ErrorCode.TYPE_MISMATCH, f"{key!r} is no boolean flag"
        if code is not None and code in _MISTAKES:
            self._mistakes.tell(code, key, problem)
        if code is ErrorCode.TARGETING_KEY_MISSING:
            # Many callers have none, and each would come here.
            with FAILURES_SUPPRESSED:
                view.silence(key)
        return default

    def _keys(self, view: View, prefix: object) -> list[str]:
        found: list[str] = []
        with FAILURES_SUPPRESSED:
            text = native(prefix)
            if type(text) is str:
                return view.snapshot.keys(text)
            problem = f"the prefix is no string, but has the type {type(prefix).__name__}"
            self._mistakes.tell("INVALID_PREFIX", "", problem)
        return found

    def _look_after(self) -> None:
        """Do what brings flags, if that is not under way. Called while there are none."""


class BoundClient:
    """A client and a context. Its methods are the client's, without the context."""

    __slots__ = ("_client", "_context")

    def __init__(self, client: Answers, context: ContextLike) -> None:
        self._client = client
        self._context = context
        with FAILURES_SUPPRESSED:
            # Put together once. What is no context answers INVALID_CONTEXT when it is used.
            self._context = attributes_of(context)

    def is_enabled(self, key: str, default: bool = False) -> bool:  # noqa: FBT001, FBT002 - as Client
        """Return the value of a boolean flag, or `default` where there is none. Never raises."""
        return self._client.is_enabled(key, self._context, default)

    @overload
    def value(self, key: str, *, default: None) -> Any: ...
    @overload
    def value(self, key: str, *, default: T) -> T: ...
    def value(self, key: str, *, default: Any) -> Any:
        """Return a flag's value, if it has the type of `default`, else `default`. Never raises."""
        return self._client.value(key, self._context, default=default)

    @overload
    def evaluate(
        self, key: str, default: None = None, *, max_staleness: float | None = None
    ) -> Evaluation[Any]: ...
    @overload
    def evaluate(
        self, key: str, default: T, *, max_staleness: float | None = None
    ) -> Evaluation[T]: ...
    def evaluate(
        self, key: str, default: Any = None, *, max_staleness: float | None = None
    ) -> Evaluation[Any]:
        """Return the value of a flag and why it has it. Never raises."""
        return self._client.evaluate(key, self._context, default, max_staleness=max_staleness)

    def evaluate_all(self, prefix: str = "") -> dict[str, Evaluation[Any]]:
        """Return the evaluations of all flags whose keys begin with `prefix`. Never raises."""
        return self._client.evaluate_all(self._context, prefix)

    def explain(
        self, key: str, default: Any = None, *, redact: Collection[str] = ()
    ) -> Explanation:
        """Return an evaluation with all that led to it. Never raises."""
        return self._client.explain(key, self._context, default, redact=redact)
