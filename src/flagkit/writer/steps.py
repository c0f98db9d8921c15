"""Steps: how many keys are served another value at once, from one state of a flag to the next."""

from collections.abc import Iterator
from typing import Final

from flagkit.model import Flag, Serve, Serves
from flagkit.model.documents import TARGETING_KEY
from flagkit.model.rollouts import BUCKETS
from flagkit.model.sensitive import VariantValue
from flagkit.model.values import is_same
from flagkit.writer.assignments import Place, moves, places_of

_BY_KEY: Final = (TARGETING_KEY,)


class Step:
    """The step from the flag that callers are served by before a change to the one after it.

    Args:
        old: The flag before.
        new: The flag after.
        moment: Seconds since 1970, for ramps.
        standing: The flag as it stands before the change, where that is not `old`. It is another
            one if the flag is resumed. Its `off` is what callers get until then.
    """

    def __init__(self, old: Flag, new: Flag, moment: float, standing: Flag | None = None) -> None:
        self._old, self._new = old, new
        self._standing = standing or old
        self._moment = moment

    def shares(self) -> Iterator[tuple[str, float]]:
        """Yield by path how many of BUCKETS are served another value, place by place."""
        yield "off", self._moved_off()
        if self._new.state != "active":
            # Pausing and archiving take a flag out of service.
            return
        if self._old.state != "active":
            for place in places_of(self._new):
                yield place.path, self._differing(self._new, place.serves, self._off(self._old))
            return
        before = places_of(self._old)
        *_, last = before
        met: set[str] = set()
        for place in places_of(self._new):
            old = _counterpart(place, before) or last
            met.add(old.path)
            yield place.path, self._moved(old.serves, place.serves)
        for old in before:
            if old.path not in met:
                yield "fallthrough", self._moved(old.serves, self._new.fallthrough)

    def _moved(self, old: Serves, new: Serves) -> float:
        if _is_by_another_attribute(old, new):
            return BUCKETS
        before, after = self._old.variants, self._new.variants
        return sum(
            moved.share
            for moved in moves(old, new, self._moment)
            if not is_same(before[moved.before], after[moved.after])
        )

    def _moved_off(self) -> float:
        """Return how many buckets count for what becomes of `off`."""
        standing = self._standing
        old, new = self._off(standing), self._off(self._new)
        if old is not None:
            return 0 if new is not None and is_same(old, new) else BUCKETS
        if new is None or new[0] is False:
            return 0
        serves_off = bool(self._new.prerequisites) or self._new.when_stale == "off"
        if standing.state != "active" or (serves_off and self._new.state == "active"):
            return BUCKETS
        return max(self._differing(standing, place.serves, new) for place in places_of(standing))

    def _differing(self, flag: Flag, serves: Serves, value: list[VariantValue] | None) -> float:
        """Return how many buckets a place serves another value than the given one."""
        if value is None:
            return BUCKETS
        one = Serve(next(iter(flag.variants)))
        return sum(
            moved.share
            for moved in moves(one, serves, self._moment)
            if not is_same([flag.variants[moved.after]], value)
        )

    def _off(self, flag: Flag) -> list[VariantValue] | None:
        """Return the value that a flag serves while it is not active; None if there is none."""
        return None if flag.off is None else [flag.variants[flag.off]]


def _counterpart(place: Place, before: list[Place]) -> Place | None:
    """Return the place that had the name of another one, or else its test, if there is one."""
    named = [old for old in before if old.name == place.name]
    tested = [old for old in before if old.test == place.test]
    return next(iter(named + tested), None)


def _is_by_another_attribute(old: Serves, new: Serves) -> bool:
    """Tell whether keys are hashed by an attribute that was not read before."""
    if isinstance(new, Serve):
        return False
    if isinstance(old, Serve):
        return new.by != _BY_KEY
    return old.by != new.by
