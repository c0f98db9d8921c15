"""The result of an evaluation: value, variant and reason, in OpenFeature's words.

Source: the OpenFeature specification, types (https://openfeature.dev/specification/types).
"""

from datetime import datetime
from enum import Enum, StrEnum
from typing import Any, Final, Generic, TypeVar, cast

import msgspec
from msgspec import Struct

from flagkit._core.interruptions import is_interruption
from flagkit._core.model.sensitive import SENSITIVE, SecretValue, UnavailableValue

T_co = TypeVar("T_co", covariant=True)


class Reason(StrEnum):
    """The reason for the value of an evaluation."""

    STATIC = "STATIC"
    DEFAULT = "DEFAULT"
    TARGETING_MATCH = "TARGETING_MATCH"
    SPLIT = "SPLIT"
    DISABLED = "DISABLED"
    STALE = "STALE"
    ERROR = "ERROR"


class ErrorCode(StrEnum):
    """The error because of which an evaluation returned the caller's default."""

    PROVIDER_NOT_READY = "PROVIDER_NOT_READY"
    FLAG_NOT_FOUND = "FLAG_NOT_FOUND"
    PARSE_ERROR = "PARSE_ERROR"
    TYPE_MISMATCH = "TYPE_MISMATCH"
    TARGETING_KEY_MISSING = "TARGETING_KEY_MISSING"
    INVALID_CONTEXT = "INVALID_CONTEXT"
    GENERAL = "GENERAL"


class _CallersDefault:
    """The value of an outcome that leaves the answer to the caller's default."""

    def __repr__(self) -> str:
        return "CALLERS_DEFAULT"


CALLERS_DEFAULT: Final = _CallersDefault()
_SENSITIVE: Final = frozenset({SecretValue, UnavailableValue})
"""No default is of these types: so that plain values need not be looked at for them."""

_PLAIN: Final = frozenset({bool, str, int, float, type(None)})
"""The types of values that refer to no other objects."""


class Outcome(Struct, frozen=True, kw_only=True, gc=False):
    """One of the answers that a flag can give, created once when the flag is compiled.

    Its value comes from a document and so is in no cycle: the garbage collector need not track it.

    `value` is CALLERS_DEFAULT if the flag leaves it to the caller. `rule` is the name of the
    targeting rule that decided.
    """

    value: Any = CALLERS_DEFAULT
    variant: str | None = None
    reason: Reason
    rule: str | None = None
    error_code: ErrorCode | None = None
    error_message: str | None = None


def build_error_outcome(code: ErrorCode, message: str) -> Outcome:
    """Return the outcome of an evaluation that cannot answer."""
    return Outcome(reason=Reason.ERROR, error_code=code, error_message=message)


class Evaluation(Struct, Generic[T_co], frozen=True, kw_only=True, gc=False):
    """The answer to one question: a flag's value for a context, and why.

    The garbage collector does not track evaluations, because `evaluate_all` makes as many as there
    are flags. An evaluation whose value could be in a cycle is a `_TrackedEvaluation`.

    `variant` is None if the value is the caller's default. `rule` names the targeting rule that
    decided, if one did. `version` is the flag's, `revision` the environment's; both are 0 if there
    is none. With reason ERROR, `error_code` and `error_message` describe the error. With STALE, the
    answer is from a snapshot that is older than the limit.

    `valid_until` is when the answer may change by time alone, in UTC; None if it cannot. It may be
    too early, never too late.

    With `is_sensitive`, the value is a secret. It is not printed with the other fields. Code that
    passes evaluations on must leave it out.
    """

    flag_key: str
    value: T_co
    variant: str | None
    reason: Reason
    rule: str | None = None
    error_code: ErrorCode | None = None
    error_message: str | None = None
    version: int = 0
    revision: int = 0
    valid_until: datetime | None = None
    is_sensitive: bool = False

    def __eq__(self, other: object) -> bool:
        # Struct's own comparison takes an evaluation and a tracked one for different.
        if not isinstance(other, Evaluation):
            return NotImplemented
        return msgspec.structs.astuple(self) == msgspec.structs.astuple(cast("Struct", other))

    def __hash__(self) -> int:
        return hash(msgspec.structs.astuple(self))

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"Evaluation({fields})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Return the fields, as rich prints them."""
        shown = msgspec.structs.asdict(self)
        if self.is_sensitive:
            shown["value"] = SecretValue(None)
        return [*shown.items()]

    def without_secret(self) -> "Evaluation[Any]":
        """Return it as it may be shown."""
        if not self.is_sensitive:
            return self
        return cast("Evaluation[Any]", msgspec.structs.replace(self, value=SENSITIVE))


class _TrackedEvaluation(Evaluation[T_co], Generic[T_co], frozen=True, kw_only=True, gc=True):
    """An evaluation that the garbage collector tracks: its value can refer to the evaluation.

    Callers can put an evaluation into their own default, or into their copy of an object.
    """


_UNTRACKED: Final = cast("type[Evaluation[Any]]", Evaluation)
_TRACKED: Final = cast("type[Evaluation[Any]]", _TrackedEvaluation)


def build_evaluation(
    key: str,
    outcome: Outcome,
    default: Any,
    version: int = 0,
    revision: int = 0,
    valid_until: datetime | None = None,
) -> Evaluation[Any]:
    """Return the evaluation of an outcome for a caller with a default."""
    value = outcome.value
    if value is CALLERS_DEFAULT:
        value = default
    elif type(value) is not type(default) or type(value) not in _PLAIN:
        value = _fit_to_default(value, default)
        if value is CALLERS_DEFAULT:
            if type(outcome.value) in _SENSITIVE:
                open_outcome = _reveal_secret(outcome)
                found = build_evaluation(key, open_outcome, default, version, revision, valid_until)
                is_served = found.variant is not None and found.error_code is None
                return msgspec.structs.replace(found, is_sensitive=is_served)
            value = default
            outcome = build_error_outcome(
                ErrorCode.TYPE_MISMATCH,
                f"{key!r} serves {outcome.variant!r}, which is not of the type of the default, "
                f"{type(default).__name__}",
            )
    kind = _UNTRACKED if type(value) in _PLAIN else _TRACKED
    return kind(
        flag_key=key,
        value=value,
        variant=outcome.variant,
        reason=outcome.reason,
        rule=outcome.rule,
        error_code=outcome.error_code,
        error_message=outcome.error_message,
        version=version,
        revision=revision,
        valid_until=valid_until,
    )


def _reveal_secret(outcome: Outcome) -> Outcome:
    """Return the outcome of a sensitive variant with its value, or with the error that hides it."""
    value: SecretValue | UnavailableValue = outcome.value
    if isinstance(value, SecretValue):
        return msgspec.structs.replace(outcome, value=value.value)
    code = ErrorCode.PROVIDER_NOT_READY if value.is_temporary else ErrorCode.PARSE_ERROR
    return build_error_outcome(code, value.problem)


def _fit_to_default(value: Any, default: Any) -> Any:
    """Return a variant's value in the type of the default, CALLERS_DEFAULT if it does not fit."""
    kind = cast("type[object]", type(value))
    if kind is dict or kind is list:
        # Its own copy, so that nobody can change the snapshot.
        return (
            msgspec.to_builtins(value)
            if default is None or isinstance(default, kind)
            else CALLERS_DEFAULT
        )
    if default is None:
        return CALLERS_DEFAULT if kind in _SENSITIVE else value
    if isinstance(default, bool) or (kind is bool and not isinstance(default, Enum)):
        return value if isinstance(default, bool) and kind is bool else CALLERS_DEFAULT
    if isinstance(default, float) and kind is int:
        return float(value)
    if isinstance(default, Enum):
        return _find_enum_member(type(default), value)
    return value if isinstance(default, kind) else CALLERS_DEFAULT


def _find_enum_member(kind: type[Enum], value: Any) -> Any:
    """Return the member of an enumeration that has a value, CALLERS_DEFAULT if none has."""
    try:
        member = kind(value)
    except ValueError as error:
        if is_interruption(error):
            raise
        return CALLERS_DEFAULT
    # True is 1 to Python.
    return member if isinstance(member.value, bool) is isinstance(value, bool) else CALLERS_DEFAULT
