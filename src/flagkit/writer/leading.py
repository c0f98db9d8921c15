"""Leading on: rollouts go on from those of the flag before, so that keys stay where they are."""

import msgspec

from flagkit.core.schedule import share_at
from flagkit.errors import InvalidDocumentError
from flagkit.model import Flag, Ramp, Rollout, Serves
from flagkit.model.rollouts import BUCKETS, Intervals, allocate, exchanged, percent


class Lead:
    """Leads rollouts on from those of the same keys in the flag before, at a moment."""

    def __init__(self, old: Flag, new: Flag, moment: float, reassign: bool) -> None:  # noqa: FBT001 - as the operation has it
        self._old, self._new = old, new
        self._subject = f"flag {new.key!r}"
        self._moment = moment
        self._reassign = reassign
        untreated = _untreated(new)
        # Where it becomes another, what was treated before may be what is not now: all are treated.
        self._untreated = untreated if untreated == _untreated(old) and not reassign else None

    def flag(self, *, keep_salts: bool = False) -> Flag:
        """Return the new flag, its rollouts led on from those of the rules of the same names.

        With `keep_salts` those that name no salt have that of the old ones.
        """
        new = self._new
        served = {rule.name: rule.serves for rule in self._old.rules}
        places = [
            (f"rules[{i}]", served.get(rule.name), rule.serves) for i, rule in enumerate(new.rules)
        ]
        places.append(("fallthrough", self._old.fallthrough, new.fallthrough))
        if keep_salts:
            places = [(path, old, self._salted(old, serves)) for path, old, serves in places]
        *ruled, fallthrough = (self._on(*place) for place in places)
        rules = tuple(
            msgspec.structs.replace(rule, serves=serves)
            for rule, serves in zip(new.rules, ruled, strict=True)
        )
        return msgspec.structs.replace(new, rules=rules, fallthrough=fallthrough)

    def _salted(self, old: Serves | None, new: Serves) -> Serves:
        # A document that names no salt means the flag's key.
        if isinstance(old, Rollout | Ramp) and isinstance(new, Rollout | Ramp):
            unnamed = new.salt == self._new.key
            return msgspec.structs.replace(new, salt=old.salt) if unnamed else new
        return new

    def _on(self, path: str, old: Serves | None, new: Serves) -> Serves:
        """Return what is served, with intervals led on if it is a rollout of the same keys."""
        if not isinstance(new, Rollout) or not isinstance(old, Rollout | Ramp):
            return new
        if (old.by, old.salt) != (new.by, new.salt):
            return new
        held, weights = old.intervals if isinstance(old, Rollout) else (), new.weights
        if isinstance(old, Ramp):
            # A ramp fills the buckets from below, and so does what it becomes.
            held = _ramped(old, self._moment)
            weights = {old.variant: weights.get(old.variant, 0)} | weights
        count = exchanged(weights, held, self._untreated)
        if count and not self._reassign:
            also = f", or take fewer than {self._untreated!r} has" if self._untreated else ""
            raise InvalidDocumentError(
                f"{path}.rollout.weights",
                f"move {percent(count)} % of the keys from one treated variant to another",
                f"Pass reassign=True, or --reassign, if that is meant{also}",
                subject=self._subject,
            )
        intervals = allocate(weights, held, self._untreated)
        return msgspec.structs.replace(new, intervals=intervals)


def _ramped(ramp: Ramp, moment: float) -> Intervals:
    """Return what a ramp serves at a moment, as intervals."""
    share = share_at(ramp, moment)
    ends = ((share, ramp.variant), (BUCKETS, ramp.otherwise))
    if share == BUCKETS:
        return ends[:1]
    return ends if share else ends[1:]


def _untreated(flag: Flag) -> str | None:
    """Return the variant of those who are not treated: `off`, or the one that is false."""
    false = [name for name, value in flag.variants.items() if value is False]
    return flag.off or (false[0] if len(false) == 1 else None)
