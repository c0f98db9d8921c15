"""Deleting: flags that have been archived for long go by ordinary changes, some at a time."""

from collections.abc import Generator, Iterable, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Final

from msgspec import Struct

from flagkit.changes import PolicyId, PolicyState
from flagkit.errors import AccessDeniedError, GuardError, RateLimitedError, WriteError
from flagkit.storage.reading import Reading
from flagkit.writer.staleness import standing
from flagkit.writer.writer import Writer

FLAGS_AT_ONCE: Final = 100


class Deletable(Struct, frozen=True):
    """A flag that can be deleted, as long as it is at this version; `bytes` of its document."""

    region: str
    key: str
    version: int
    bytes: int


def to_delete(reading: Reading, before: datetime) -> list[Deletable]:
    """Return the flags that are archived since before a moment, those that rest on others first.

    Of a key all regions must be: without an override, the flag of all regions would be served. And
    none that stays may rest on it.
    """
    states, still = standing(reading, before)
    keys: dict[str, list[PolicyId]] = {}
    for identity in states:
        keys.setdefault(identity[1], []).append(identity)
    going = {
        key
        for key, identities in keys.items()
        if all(identity in still and _is_archived(states[identity]) for identity in identities)
    }
    resting = {key: set[str]() for key in keys}
    for (_, key), state in states.items():
        for needed in state.policy.get("prerequisites", ()):
            resting.setdefault(needed["flag"], set()).add(key)
    staying = [key for key in resting if key not in going]
    needs: dict[str, set[str]] = {}
    for needed, others in resting.items():
        for other in others:
            needs.setdefault(other, set()).add(needed)
    while staying:
        kept = needs.get(staying.pop(), set()) & going
        going -= kept
        staying += kept
    return [
        Deletable(region, key, states[region, key].version, len(states[region, key].packed))
        for key in _in_order(going, resting)
        for region, _ in sorted(keys[key])
    ]


def deleted_in_steps(
    writer: Writer, flags: Sequence[Deletable], reason: str
) -> Generator[str, None, list[Deletable]]:
    """Delete flags; return those that were, which are all but those that changed meanwhile."""
    gone: list[Deletable] = []
    rest = iter(flags)
    while batch := [*islice(rest, FLAGS_AT_ONCE)]:
        if _is_deleted(writer, batch, reason):
            gone += batch
        else:
            gone += [flag for flag in batch if _is_deleted(writer, [flag], reason)]
        yield f"{len(gone):,} archived flags are deleted"
    return gone


def _is_deleted(writer: Writer, flags: Iterable[Deletable], reason: str) -> bool:
    try:
        with writer.change(reason=reason) as change:
            for flag in flags:
                change.delete(flag.key, region=flag.region, expected_version=flag.version)
    except (AccessDeniedError, GuardError, RateLimitedError):
        raise
    except WriteError:
        # One of them was changed, or is referred to, since it was looked at: it stays.
        return False
    return True


def _in_order(keys: Iterable[str], resting: Mapping[str, set[str]]) -> list[str]:
    """Return keys in an order in which none goes before those that rest on it."""
    ordered: dict[str, None] = {}
    for start in sorted(keys):
        way = [start]
        while way:
            before = sorted(resting[way[-1]] - ordered.keys())
            if before:
                way.append(before[0])
            else:
                ordered[way.pop()] = None
    return [*ordered]


def _is_archived(state: PolicyState) -> bool:
    return bool(state.policy.get("state") == "archived")
