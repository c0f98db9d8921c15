"""Flags that look finished, for people to review. Only reads."""

import math
from collections.abc import Iterable
from datetime import datetime
from typing import Final

from msgspec import Struct

from flagkit._core.arguments import check_count, check_moment, subtract_days
from flagkit._core.evaluation.schedule import compute_share, find_window_change
from flagkit._core.model import Flag, Ramp, Rollout, Serves, decode
from flagkit._core.model.changes import ACCESS, SEGMENTS, PolicyId, PolicyState
from flagkit._core.model.rollouts import BUCKETS
from flagkit._core.storage.layout import FLAGS
from flagkit._core.storage.reader import EnvironmentReader
from flagkit._core.storage.store import Store


class StaleFlag(Struct, frozen=True):
    """A flag that may have to go, and why; `owner` is empty where it names none."""

    key: str
    region: str
    version: int
    owner: str
    reasons: tuple[str, ...]


DAYS_MAX: Final = 36_500


def list_stale_flags(store: Store, days: int, now: datetime | None) -> list[StaleFlag]:
    """Return the stale flags, as `Environment.stale_flags` does."""
    check_count(days, "days", DAYS_MAX)
    asked = check_moment(now)
    with store.open_reader() as reading:
        then = asked or reading.now
        states, still = read_unchanged_flags(reading, subtract_days(then, days))
    stale: list[StaleFlag] = []
    for (region, key), state in sorted(states.items()):
        flag = decode(state.policy, stored=True)
        reasons = [*_list_expiry_reasons(flag, then)]
        if (region, key) in still:
            reasons += _list_idle_reasons(flag, state.version, days, then)
        if reasons:
            owner = str(flag.metadata.get("owner", ""))
            stale.append(StaleFlag(key, region, state.version, owner, tuple(reasons)))
    return sorted(stale, key=lambda flag: (flag.key, flag.region))


def read_unchanged_flags(
    reading: EnvironmentReader, moment: datetime
) -> tuple[dict[PolicyId, PolicyState], set[PolicyId]]:
    """Return the flags that there are, and which of them were not changed after a moment."""
    last, found = reading.history.find_revision(moment), reading.read_projected([FLAGS])
    # Of those whose last change the ledger has no more; what changes them anew takes the time away.
    times = reading.read_carried_times()
    for change in reading.history.unprojected_changes:
        found |= {policy.id: (change.revision, policy.after) for policy in change.policies}
        for policy in change.policies:
            times.pop(policy.id, None)
    flags = {
        identity: (revision, state)
        for identity, (revision, state) in found.items()
        if state is not None and identity[0] not in (SEGMENTS, ACCESS)
    }
    still = {
        identity
        for identity, (revision, _) in flags.items()
        if (times[identity] <= moment if identity in times else revision <= last)
    }
    return {identity: state for identity, (_, state) in flags.items()}, still


def _list_expiry_reasons(flag: Flag, moment: datetime) -> list[str]:
    expires = flag.metadata.get("expires")
    if isinstance(expires, datetime) and expires <= moment:
        return [f"past its expires, {expires:%Y-%m-%d}"]
    return []


def _list_idle_reasons(flag: Flag, version: int, days: int, moment: datetime) -> list[str]:
    """Return why a flag is over that was not touched for some days."""
    for_days = f"for {days} days"
    if flag.state == "archived":
        return [f"archived {for_days}"]
    served = [rule.serves for rule in flag.rules] + [flag.fallthrough]
    if _has_later_changes(flag, served, moment.timestamp()):
        return []
    reasons = [f"never changed {for_days}"] if version == 1 else []
    split = [serves for serves in served if isinstance(serves, Rollout | Ramp)]
    if split and all(_is_decided(serves, moment) for serves in split):
        reasons.append(f"at 0 or 100 % {for_days}")
    return reasons


def _has_later_changes(flag: Flag, served: Iterable[Serves], moment: float) -> bool:
    """Tell whether what a flag serves still changes by time alone: by a ramp, or by a window."""
    ramps = any(isinstance(serves, Ramp) and serves.points[-1][0] > moment for serves in served)
    windows = (rule.during for rule in flag.rules if rule.during is not None)
    return ramps or any(
        window.recurrence is not None or math.isfinite(find_window_change(window, moment))
        for window in windows
        if moment < window.end
    )


def _is_decided(serves: Serves, moment: datetime) -> bool:
    """Tell whether all keys get the same variant, and go on getting it."""
    if isinstance(serves, Rollout):
        return BUCKETS in serves.weights.values()
    if isinstance(serves, Ramp):
        over = serves.points[-1][0] <= moment.timestamp()
        return over and compute_share(serves, moment.timestamp()) in (0, BUCKETS)
    return True
