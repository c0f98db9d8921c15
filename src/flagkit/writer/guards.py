"""Guards: functions of the owner of a writer that check each planned change.

They run in the writer's process, at the revision that the commit is compared with. They cannot stop
the kill switch or a change of access.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeAlias, cast, get_args

from msgspec import Struct

from flagkit._core.arguments import check_count as count_of
from flagkit._core.arguments import check_texts
from flagkit._core.evaluation.schedule import find_window_change, is_open
from flagkit._core.model import decode
from flagkit._core.model.changes import ACCESS, SEGMENTS, PolicyChange, PolicyState
from flagkit._core.model.documents import WindowDocument
from flagkit._core.model.flags import convert, normalize_fields
from flagkit._core.model.rollouts import to_percent
from flagkit._core.model.windows import build_window
from flagkit._core.storage.reader import EnvironmentReader
from flagkit.errors import ConfigurationError, GuardError
from flagkit.writer.access import AccessAction, classify_change
from flagkit.writer.assignments import AssignmentChange
from flagkit.writer.effects import ServedStates, find_served_states


class PlannedChange(Struct, frozen=True, kw_only=True):
    """The effect of a change on one flag or segment.

    `before` and `after` are the policy documents, None where there is none. `served_before` and
    `served_after` are the documents by which callers are served. They differ from the others where
    a flag is resumed (it was last served by what it was when it was active), where an override is
    created or deleted (the flag of all regions serves without it), and where a flag is created
    again after it was deleted.

    `now` is the server's time. A segment's region is "@segments". `approvers` are those who
    approved of the change, if it was proposed, and who may make it.
    """

    environment: str
    region: str
    key: str
    action: AccessAction
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    served_before: dict[str, Any] | None
    served_after: dict[str, Any] | None
    actor: str
    reason: str
    now: datetime
    approvers: tuple[str, ...] = ()


class Refusal(Struct, frozen=True):
    """Why a guard refuses: where in the policy, what is wrong there, and what to do instead.

    `retry_at` is when it would not, if time alone is in the way.
    """

    path: str
    problem: str
    remedy: str
    retry_at: datetime | None = None


Guard: TypeAlias = Callable[[PlannedChange], Refusal | None]
"""Returns None of what it lets pass. What it raises ends the change, too."""


def check_guards(guards: Iterable[Guard], changes: Iterable[PlannedChange]) -> None:
    """Ask each guard about each of what is planned.

    Raises:
        GuardError: one refuses.
    """
    asked = [*guards]
    for plan in changes:
        for guard in asked:
            refusal = guard(plan)
            if refusal is not None:
                name = getattr(guard, "__name__", type(guard).__name__)
                kind = "segment" if plan.region == SEGMENTS else "flag"
                raise GuardError(
                    name,
                    refusal.path,
                    refusal.problem,
                    refusal.remedy,
                    subject=f"{kind} {plan.key!r}",
                    retry_at=refusal.retry_at,
                )


def build_planned_changes(
    changes: Iterable[PolicyChange],
    reading: EnvironmentReader,
    *,
    actor: str,
    reason: str,
    approvers: tuple[str, ...] = (),
) -> list[PlannedChange]:
    """Return what guards are asked about, if changes are made upon a reading's revision."""
    found: list[PlannedChange] = []
    changed = {change.id: change for change in changes}
    for change in changed.values():
        region, key = change.id
        action = classify_change(change)
        if region == ACCESS or action == "pause":
            continue
        served = ServedStates(change.before, change.after)
        if region != SEGMENTS:
            served = find_served_states(change, reading, changed)
        found.append(
            PlannedChange(
                environment=reading.tip.environment,
                region=region,
                key=key,
                action=action,
                before=_get_document(change.before),
                after=_get_document(change.after),
                served_before=_get_document(served.before),
                served_after=_get_document(served.after),
                actor=actor,
                reason=reason,
                now=reading.now,
                approvers=approvers,
            )
        )
    return found


def _get_document(state: PolicyState | None) -> dict[str, Any] | None:
    return None if state is None else state.policy


class LargestStep:
    """Refuses to give more than so many percent of the keys another value at once.

    It judges the values that callers get, not the names of variants. Each rule and the fallthrough
    are compared with the place that had the same name or the same test, or else with the
    fallthrough. A ramp counts as it stands now. Keys that are drawn again, by another salt, count
    as far as they are expected to move. It also judges:

    - a flag that is resumed or created again, against what it served when it was last active, or
      against its `off` variant where the ledger no longer has that;
    - an override of a region, against the flag of all regions, when it is created or deleted;
    - `off`: another value counts for all keys. A value where there was none counts as what pausing
      the flag would then give to others, unless the value is false;
    - `by`: all keys count, since those without the new attribute get their callers' defaults.

    Taking a flag out of service is not a step: pausing it, archiving it, or deleting it.

    It cannot judge who comes to which rule: conditions, the order of rules, windows, prerequisites,
    segments and `when_stale`. Nor does it see what a ramp does later, or many small steps that are
    made one after the other.
    """

    def __init__(self, step: float) -> None:
        if not _is_number(step) or not 0 < step <= 100:  # noqa: PLR2004 - percent
            raise ConfigurationError(f"LargestStep({step!r}): write percent, above 0, up to 100")
        self._step: Final = step

    def __call__(self, planned: PlannedChange) -> Refusal | None:
        """Judge what is planned."""
        old, new = planned.served_before, planned.served_after
        if planned.region == SEGMENTS or old is None or new is None:
            return None
        current, before, after = (
            decode(document, stored=True) for document in (planned.before or old, old, new)
        )
        step = AssignmentChange(before, after, planned.now.timestamp(), current)
        for path, share in step.iter_shares():
            moved = to_percent(math.ceil(share))
            if moved > self._step:
                return Refusal(
                    path,
                    f"serves another value to {moved} % of the keys at once",
                    f"Take steps of at most {self._step} %",
                )
        return None


class Freeze:
    """Refuses any change within a window: from and until, or days and hours of a time zone.

    It is written like `during` of a rule, as in Freeze({"days": ["sat", "sun"], "zone":
    "Europe/Berlin"}).

    Raises:
        InvalidDocumentError: the window makes no sense.
    """

    def __init__(self, during: Mapping[str, Any]) -> None:
        self._window: Final = build_window(
            convert(normalize_fields(during), WindowDocument), "during"
        )

    def __call__(self, planned: PlannedChange) -> Refusal | None:
        """Judge what is planned."""
        moment = planned.now.timestamp()
        if not is_open(self._window, moment):
            return None
        end = _format_date(find_window_change(self._window, moment))
        remedy = "Pause it" if end is None else f"Wait until {end.isoformat()}, or pause it"
        return Refusal("", "is frozen", remedy, end)


ApprovedAction: TypeAlias = Literal["edit", "release"]

_RELEASE: Final[tuple[ApprovedAction, ...]] = ("release",)


class Approval:
    """Refuses what was not proposed, and approved of by somebody else who may make the change.

    Args:
        environments: Where; everywhere without.
        namespaces: Of keys that begin with one of these; of all without.
        actions: What takes an approval: to release, and perhaps to edit.
        count: How many have to approve, besides who proposed it.
    """

    def __init__(
        self,
        *,
        environments: Collection[str] = (),
        namespaces: Collection[str] = (),
        actions: Collection[ApprovedAction] = _RELEASE,
        count: int = 1,
    ) -> None:
        for name, given in (("environments", environments), ("namespaces", namespaces)):
            if isinstance(given, str):
                raise ConfigurationError(f"Approval({name}={given!r}): pass a list, [{given!r}]")
        environments = check_texts(environments, "environments")
        namespaces = check_texts(namespaces, "namespaces")
        actions = cast("Collection[ApprovedAction]", check_texts(actions, "actions"))
        known = get_args(ApprovedAction)
        if not actions or not set(actions) <= set(known):
            raise ConfigurationError(
                f"Approval(actions={actions!r}): what takes an approval is {' or '.join(known)}"
            )
        if count_of(count, "count") < 1:
            raise ConfigurationError(f"Approval(count={count!r}): 1 or more have to approve")
        self._environments: Final = frozenset(environments)
        self._namespaces: Final = tuple(namespaces)
        self._actions: Final = frozenset(actions)
        self._count: Final = count

    def __call__(self, planned: PlannedChange) -> Refusal | None:
        """Judge what is planned."""
        if (
            planned.action not in self._actions
            or (self._environments and planned.environment not in self._environments)
            or (self._namespaces and not planned.key.startswith(self._namespaces))
            or len(planned.approvers) >= self._count
        ):
            return None
        lacking = self._count - len(planned.approvers)
        who = (
            "another person"
            if self._count == 1
            else f"{lacking} more"
            if planned.approvers
            else f"{lacking} others"
        )
        return Refusal(
            "",
            f"takes the approval of {who} in {planned.environment}",
            "Propose it: writer.proposals.propose(), or --propose on the command line; to pause"
            " takes none",
        )


RequiredName: TypeAlias = Literal["owner", "description", "tags", "expires", "reason"]
_ONLY_FLAGS: Final = ("expires",)


class Required:
    """Refuses flags and segments without some metadata, or changes without a reason."""

    def __init__(self, *names: RequiredName) -> None:
        known = get_args(RequiredName)
        check_texts(names, "names")
        if unknown := set(names).difference(known):
            raise ConfigurationError(
                f"Required({min(unknown)!r}): what can be required is {', '.join(known)}"
            )
        self._names: Final = names

    def __call__(self, planned: PlannedChange) -> Refusal | None:
        """Judge what is planned."""
        for name in self._names:
            if name == "reason":
                if not planned.reason.strip():
                    return Refusal("reason", "is missing", 'Pass reason="why"')
            elif planned.after is not None and not planned.after.get(name):
                if planned.region == SEGMENTS and name in _ONLY_FLAGS:
                    continue
                return Refusal(name, "is missing", f"Write {name} in the document")
        return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _format_date(moment: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(moment, UTC)
    except (ValueError, OverflowError, OSError):
        return None
