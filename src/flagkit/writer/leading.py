"""Leading on: rollouts go on from those of the flag before, so that keys stay where they are."""

from collections import defaultdict
from collections.abc import Iterable

import msgspec

from flagkit.errors import InvalidDocumentError
from flagkit.model import Flag, Ramp, Rollout, Serve, Serves
from flagkit.model.rollouts import allocate, percent
from flagkit.model.values import is_same
from flagkit.writer.assignments import (
    Meeting,
    Place,
    has_same_hash,
    intervals_at,
    is_drawn_again,
    meetings,
    moves,
    places_of,
)


class Lead:
    """Leads the rollouts of a flag's next document on from its document before, at a moment.

    A rollout keeps the buckets of the one that it goes on from, as far as its weights allow. Then
    all assignments are compared: unless `reassign` says so, no key may pass from one treated
    variant to another. Treated is every variant but `off`; without `off`, every variant but the
    false one of a boolean flag.
    """

    def __init__(self, old: Flag, new: Flag, moment: float, reassign: bool) -> None:  # noqa: FBT001 - as the operation has it
        self._old, self._new = old, new
        self._moment = moment
        self._reassign = reassign
        untreated = _untreated(new)
        # If the untreated variant changes, the old split is meaningless: treat every variant as
        # treated.
        self._untreated = untreated if untreated == _untreated(old) and not reassign else None

    def flag(self, *, keep_salts: bool = False) -> Flag:
        """Return the new flag, its rollouts led on from the old ones.

        With `keep_salts`, a rollout that names no salt keeps the salt of the one before.

        Raises:
            InvalidDocumentError: keys would pass from one treated variant to another.
        """
        new = self._with_salts() if keep_salts else self._new
        met: dict[str, list[Place]] = defaultdict(list)
        for old, place, _ in meetings(self._old, new):
            met[place.path].append(old)
        *ruled, fallthrough = (
            self._led_on(place.serves, self._before(place, met[place.path]))
            for place in places_of(new)
        )
        rules = tuple(
            msgspec.structs.replace(rule, serves=serves)
            for rule, serves in zip(new.rules, ruled, strict=True)
        )
        led = msgspec.structs.replace(new, rules=rules, fallthrough=fallthrough)
        if not self._reassign:
            self._check(led)
        return led

    def _with_salts(self) -> Flag:
        named = {place.name: place.serves for place in places_of(self._old)}
        rules = tuple(
            msgspec.structs.replace(rule, serves=self._salted(named.get(rule.name), rule.serves))
            for rule in self._new.rules
        )
        fallthrough = self._salted(self._old.fallthrough, self._new.fallthrough)
        return msgspec.structs.replace(self._new, rules=rules, fallthrough=fallthrough)

    def _salted(self, old: Serves | None, new: Serves) -> Serves:
        # A document that names no salt means the flag's key.
        if isinstance(old, Rollout | Ramp) and isinstance(new, Rollout | Ramp):
            unnamed = new.salt == self._new.key
            return msgspec.structs.replace(new, salt=old.salt) if unnamed else new
        return new

    def _before(self, place: Place, met: Iterable[Place]) -> Serves | None:
        """Return the rollout or ramp that a place goes on from, None if there is none.

        That is the one of its name, if it hashes keys in the same way. Otherwise it is the last one
        that decided for contexts which come here now. So a rollout that moves from the fallthrough
        into a rule, or is renamed with its rule, goes on.
        """
        named = [old for old in places_of(self._old) if old.name == place.name]
        for old in (*named, *reversed([*met])):
            if has_same_hash(old.serves, place.serves):
                return old.serves
        return None

    def _led_on(self, new: Serves, old: Serves | None) -> Serves:
        """Return what a place serves, with the intervals of the one before led on."""
        if not isinstance(new, Rollout) or old is None:
            return new
        weights = new.weights
        if isinstance(old, Ramp):
            # A ramp fills the buckets from below, and so does what it becomes.
            weights = {old.variant: weights.get(old.variant, 0)} | weights
        held = intervals_at(old, self._moment)
        return msgspec.structs.replace(new, intervals=allocate(weights, held, self._untreated))

    def _check(self, led: Flag) -> None:
        for met in meetings(self._old, led):
            share = self._passing(met)
            if share > 0:
                raise self._refusal(met, share)

    def _passing(self, met: Meeting) -> float:
        """Return the share of BUCKETS whose keys pass from one treated variant to another.

        A place that serves one variant to all is what targeting is for. It counts only if a split
        becomes it, or if it becomes a split.
        """
        splits = (met.old.is_split, met.new.is_split)
        if not (any(splits) if met.is_same_place else all(splits)):
            return 0
        found = [*moves(met.old.serves, met.new.serves, self._moment)]
        # A rollout that is drawn again takes the treatment from some and gives it to others.
        all_count = met.is_hashed_anew and is_drawn_again(found)
        return sum(
            moved.share
            for moved in found
            if self._passes(moved.before, moved.after, also_untreated=all_count)
        )

    def _passes(self, before: str, after: str, *, also_untreated: bool) -> bool:
        """Tell whether a key passes from one arm to another if its variant becomes another one.

        A variant that is renamed, and keeps its value, is the same arm. So is one whose value is
        edited; but two variants that swap their values swap their arms.
        """
        if self._untreated in (before, after) and not also_untreated:
            return False
        old, new = self._old.variants, self._new.variants
        if is_same(old[before], new[after]):
            return before != after and before in new and after in old
        if before != after:
            return True
        others = (value for name, value in old.items() if name not in (before, self._untreated))
        return any(is_same(value, new[after]) for value in others)

    def _refusal(self, met: Meeting, share: float) -> InvalidDocumentError:
        keys = f"{percent(max(1, round(share)))} % of the keys"
        if met.is_hashed_anew:
            problem = f"draws the keys again: {keys} pass from one variant to another"
        else:
            if not met.is_same_place:
                keys = f"{keys} that {_titled(met.old)} decided before"
            problem = f"move {keys} from one treated variant to another"
        also = f", or take keys only from {self._untreated!r}" if self._untreated else ""
        return InvalidDocumentError(
            _path_of(met),
            problem,
            f"Pass reassign=True, or --reassign, if that is meant{also}",
            subject=f"flag {self._new.key!r}",
        )


def _path_of(met: Meeting) -> str:
    """Return the path of the field by which keys move."""
    old, new = met.old.serves, met.new.serves
    if isinstance(new, Serve):
        return f"{met.new.path}.serve"
    kind = "ramp" if isinstance(new, Ramp) else "rollout"
    if met.is_hashed_anew:
        assert isinstance(old, Rollout | Ramp), "a drawn split was one before"
        return f"{met.new.path}.{kind}.{'by' if old.by != new.by else 'salt'}"
    return f"{met.new.path}.{kind}" + (".weights" if kind == "rollout" else "")


def _titled(place: Place) -> str:
    return "the fallthrough" if place.name is None else f"the rule {place.name!r}"


def _untreated(flag: Flag) -> str | None:
    """Return the variant of those who are not treated: `off`, or the one that is false."""
    false = [name for name, value in flag.variants.items() if value is False]
    return flag.off or (false[0] if len(false) == 1 else None)
