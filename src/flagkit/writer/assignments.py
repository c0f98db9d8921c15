"""The variant of each bucket, compared between two states of a flag.

`RolloutCarryOver` carries rollouts over from the previous state, so that keys keep their variants.
The guards use the share of keys that a change moves at once.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from flagkit._core.evaluation.schedule import compute_share
from flagkit._core.model import Flag, Ramp, Rollout, Serve, Serves
from flagkit._core.model.documents import TARGETING_KEY
from flagkit._core.model.rollouts import BUCKETS, Intervals, allocate, count_shares, to_percent
from flagkit._core.model.sensitive import VariantValue
from flagkit._core.model.values import Value, encode_exactly, is_same
from flagkit._core.model.windows import Window
from flagkit.errors import InvalidDocumentError


class ServingRule(NamedTuple):
    """A rule, or the fallthrough, which stands last and has no name.

    `test` stands for the condition and the window that a context has to pass to be decided here.
    """

    path: str
    name: str | None
    test: bytes
    serves: Serves

    @property
    def is_split(self) -> bool:
        """True if it serves different variants to different keys."""
        return not isinstance(self.serves, Serve)


class RulePair(NamedTuple):
    """Two places, and whether one became the other: it has the same name or the same test."""

    old: ServingRule
    new: ServingRule
    is_same_rule: bool

    @property
    def is_rehashed(self) -> bool:
        """True if a place still splits keys, but puts them into other buckets."""
        stays_split = self.is_same_rule and self.old.is_split and self.new.is_split
        return stays_split and not has_same_hash(self.old.serves, self.new.serves)


def _encode_test(when: Mapping[str, Value], during: Window | None) -> bytes:
    return encode_exactly((when, during))


_ALWAYS: Final = _encode_test({}, None)
"""The test of the fallthrough, and of a rule with neither a condition nor a window."""


def list_serving_rules(flag: Flag) -> list[ServingRule]:
    """Return the places of a flag, in the order in which a context meets them."""
    rules = [
        ServingRule(f"rules[{i}]", rule.name, _encode_test(rule.when, rule.during), rule.serves)
        for i, rule in enumerate(flag.rules)
    ]
    return [*rules, ServingRule("fallthrough", None, _ALWAYS, flag.fallthrough)]


def iter_rule_pairs(old: Flag, new: Flag) -> Iterator[RulePair]:
    """Yield each place of the old flag with each place of the new one that may decide after it.

    A context that place P decides in the old flag, and place Q in the new one, passes the tests of
    both. It fails every test before P in the old flag, and every test before Q in the new one. Two
    places that no context can meet so are left out. In a flag whose tests stay as they are, each
    place meets only itself.
    """
    before, after = list_serving_rules(old), list_serving_rules(new)
    first_before, first_after = _index_first_positions(before), _index_first_positions(after)
    for j, place in enumerate(after):
        for i, earlier in enumerate(before):
            is_reached = (
                first_after.get(earlier.test, j) >= j
                and first_before.get(place.test, i) >= i
                and first_after[_ALWAYS] >= j
                and first_before[_ALWAYS] >= i
            )
            if is_reached:
                same = earlier.name == place.name or earlier.test == place.test
                yield RulePair(earlier, place, same)


def _index_first_positions(rules: list[ServingRule]) -> dict[bytes, int]:
    return {place.test: i for i, place in reversed([*enumerate(rules)])}


def has_same_hash(one: Serves, other: Serves) -> bool:
    """Tell whether two splits put each key into the same bucket."""
    if isinstance(one, Serve) or isinstance(other, Serve):
        return False
    return (one.by, one.salt) == (other.by, other.salt)


def compute_intervals(serves: Serves, moment: float) -> Intervals:
    """Return the intervals by which keys are served at a moment, in seconds since 1970.

    One variant for everybody is one interval of all buckets.
    """
    match serves:
        case Serve():
            return ((BUCKETS, serves.variant),)
        case Rollout():
            return serves.intervals
        case Ramp():
            # A ramp fills the buckets from below.
            share = compute_share(serves, moment)
            shares = {serves.variant: share, serves.otherwise: BUCKETS - share}
            return allocate(shares)


class KeyMove(NamedTuple):
    """A share of BUCKETS that is served one variant before, and another or the same one after."""

    share: float
    before: str
    after: str


def iter_moves(old: Serves, new: Serves, moment: float) -> Iterator[KeyMove]:
    """Yield what becomes of the keys that one place serves before a change, and another after it.

    Keys that are hashed by another attribute or another salt fall into independent buckets. Then
    shares are expected values.
    """
    before, after = compute_intervals(old, moment), compute_intervals(new, moment)
    if isinstance(old, Serve) or isinstance(new, Serve) or has_same_hash(old, new):
        yield from _iter_overlaps(before, after)
        return
    for ours, one in count_shares(before).items():
        for theirs, other in count_shares(after).items():
            yield KeyMove(one * other / BUCKETS, ours, theirs)


def is_redrawn(moves: Sequence[KeyMove]) -> bool:
    """Tell whether more keys move than the shares differ, so that variants exchange keys."""
    change: dict[str, float] = defaultdict(float)
    for share, before, after in moves:
        change[after] += share
        change[before] -= share
    least = sum(map(abs, change.values())) / 2
    return sum(share for share, before, after in moves if before != after) > least + 0.5


def _iter_overlaps(before: Intervals, after: Intervals) -> Iterator[KeyMove]:
    start, i, j = 0, 0, 0
    while start < BUCKETS:
        (one, ours), (other, theirs) = before[i], after[j]
        end = min(one, other)
        yield KeyMove(end - start, ours, theirs)
        start, i, j = end, i + (end == one), j + (end == other)


_BY_KEY: Final = (TARGETING_KEY,)


class AssignmentChange:
    """The step from the flag that callers are served by before a change to the one after it.

    Args:
        old: The flag before.
        new: The flag after.
        moment: Seconds since 1970, for ramps.
        current: The flag as it stands before the change, where that is not `old`. It is another
            one if the flag is resumed. Its `off` is what callers get until then.
    """

    def __init__(self, old: Flag, new: Flag, moment: float, current: Flag | None = None) -> None:
        self._old, self._new = old, new
        self._current = current or old
        self._moment = moment

    def iter_shares(self) -> Iterator[tuple[str, float]]:
        """Yield by path how many of BUCKETS are served another value, place by place."""
        yield "off", self._count_moved_off()
        if self._new.state != "active":
            # Pausing and archiving take a flag out of service.
            return
        if self._old.state != "active":
            for place in list_serving_rules(self._new):
                yield (
                    place.path,
                    self._count_differing(self._new, place.serves, self._get_off_value(self._old)),
                )
            return
        before = list_serving_rules(self._old)
        *_, last = before
        met: set[str] = set()
        for place in list_serving_rules(self._new):
            old = _find_counterpart(place, before) or last
            met.add(old.path)
            yield place.path, self._count_moved(old.serves, place.serves)
        for old in before:
            if old.path not in met:
                yield "fallthrough", self._count_moved(old.serves, self._new.fallthrough)

    def _count_moved(self, old: Serves, new: Serves) -> float:
        if _is_by_another_attribute(old, new):
            return BUCKETS
        before, after = self._old.variants, self._new.variants
        return sum(
            moved.share
            for moved in iter_moves(old, new, self._moment)
            if not is_same(before[moved.before], after[moved.after])
        )

    def _count_moved_off(self) -> float:
        """Return how many buckets count for what becomes of `off`."""
        current = self._current
        old, new = self._get_off_value(current), self._get_off_value(self._new)
        if old is not None:
            return 0 if new is not None and is_same(old, new) else BUCKETS
        if new is None or new[0] is False:
            return 0
        serves_off = bool(self._new.prerequisites) or self._new.when_stale == "off"
        if current.state != "active" or (serves_off and self._new.state == "active"):
            return BUCKETS
        return max(
            self._count_differing(current, place.serves, new)
            for place in list_serving_rules(current)
        )

    def _count_differing(
        self, flag: Flag, serves: Serves, value: list[VariantValue] | None
    ) -> float:
        """Return how many buckets a place serves another value than the given one."""
        if value is None:
            return BUCKETS
        one = Serve(next(iter(flag.variants)))
        return sum(
            moved.share
            for moved in iter_moves(one, serves, self._moment)
            if not is_same([flag.variants[moved.after]], value)
        )

    def _get_off_value(self, flag: Flag) -> list[VariantValue] | None:
        """Return the value that a flag serves while it is not active; None if there is none."""
        return None if flag.off is None else [flag.variants[flag.off]]


def _find_counterpart(rule: ServingRule, before: list[ServingRule]) -> ServingRule | None:
    """Return the place that had the name of another one, or else its test, if there is one."""
    named = [old for old in before if old.name == rule.name]
    tested = [old for old in before if old.test == rule.test]
    return next(iter(named + tested), None)


def _is_by_another_attribute(old: Serves, new: Serves) -> bool:
    """Tell whether keys are hashed by an attribute that was not read before."""
    if isinstance(new, Serve):
        return False
    if isinstance(old, Serve):
        return new.by != _BY_KEY
    return old.by != new.by


class RolloutCarryOver:
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
        untreated = _find_untreated(new)
        # If the untreated variant changes, the old split is meaningless: treat every variant as
        # treated.
        self._untreated_variant = (
            untreated if untreated == _find_untreated(old) and not reassign else None
        )

    def carry_over(self, *, keep_salts: bool = False) -> Flag:
        """Return the new flag, its rollouts led on from the old ones.

        With `keep_salts`, a rollout that names no salt keeps the salt of the one before.

        Raises:
            InvalidDocumentError: keys would pass from one treated variant to another.
        """
        new = self._keep_salts() if keep_salts else self._new
        met: dict[str, list[ServingRule]] = defaultdict(list)
        for old, place, _ in iter_rule_pairs(self._old, new):
            met[place.path].append(old)
        *ruled, fallthrough = (
            self._carry_over_intervals(place.serves, self._find_predecessor(place, met[place.path]))
            for place in list_serving_rules(new)
        )
        rules = tuple(
            msgspec.structs.replace(rule, serves=serves)
            for rule, serves in zip(new.rules, ruled, strict=True)
        )
        carried = msgspec.structs.replace(new, rules=rules, fallthrough=fallthrough)
        if not self._reassign:
            self._check_moves(carried)
        return carried

    def _keep_salts(self) -> Flag:
        named = {place.name: place.serves for place in list_serving_rules(self._old)}
        rules = tuple(
            msgspec.structs.replace(rule, serves=self._keep_salt(named.get(rule.name), rule.serves))
            for rule in self._new.rules
        )
        fallthrough = self._keep_salt(self._old.fallthrough, self._new.fallthrough)
        return msgspec.structs.replace(self._new, rules=rules, fallthrough=fallthrough)

    def _keep_salt(self, old: Serves | None, new: Serves) -> Serves:
        # A document that names no salt means the flag's key.
        if isinstance(old, Rollout | Ramp) and isinstance(new, Rollout | Ramp):
            unnamed = new.salt == self._new.key
            return msgspec.structs.replace(new, salt=old.salt) if unnamed else new
        return new

    def _find_predecessor(
        self, rule: ServingRule, candidates: Iterable[ServingRule]
    ) -> Serves | None:
        """Return the rollout or ramp that a place goes on from, None if there is none.

        That is the one of its name, if it hashes keys in the same way. Otherwise it is the last one
        that decided for contexts which come here now. So a rollout that moves from the fallthrough
        into a rule, or is renamed with its rule, goes on.
        """
        named = [old for old in list_serving_rules(self._old) if old.name == rule.name]
        for old in (*named, *reversed([*candidates])):
            if has_same_hash(old.serves, rule.serves):
                return old.serves
        return None

    def _carry_over_intervals(self, new: Serves, old: Serves | None) -> Serves:
        """Return what a place serves, with the intervals of the one before led on."""
        if not isinstance(new, Rollout) or old is None:
            return new
        weights = new.weights
        if isinstance(old, Ramp):
            # A ramp fills the buckets from below, and so does what it becomes.
            weights = {old.variant: weights.get(old.variant, 0)} | weights
        held = compute_intervals(old, self._moment)
        return msgspec.structs.replace(
            new, intervals=allocate(weights, held, self._untreated_variant)
        )

    def _check_moves(self, flag: Flag) -> None:
        for met in iter_rule_pairs(self._old, flag):
            share = self._count_passing(met)
            if share > 0:
                raise self._build_refusal(met, share)

    def _count_passing(self, pair: RulePair) -> float:
        """Return the share of BUCKETS whose keys pass from one treated variant to another.

        A place that serves one variant to all is what targeting is for. It counts only if a split
        becomes it, or if it becomes a split.
        """
        splits = (pair.old.is_split, pair.new.is_split)
        if not (any(splits) if pair.is_same_rule else all(splits)):
            return 0
        found = [*iter_moves(pair.old.serves, pair.new.serves, self._moment)]
        # A rollout that is drawn again takes the treatment from some and gives it to others.
        all_count = pair.is_rehashed and is_redrawn(found)
        return sum(
            moved.share
            for moved in found
            if self._is_passing(moved.before, moved.after, counts_untreated=all_count)
        )

    def _is_passing(self, before: str, after: str, *, counts_untreated: bool) -> bool:
        """Tell whether a key passes from one arm to another if its variant becomes another one.

        A variant that is renamed, and keeps its value, is the same arm. So is one whose value is
        edited; but two variants that swap their values swap their arms.
        """
        if self._untreated_variant in (before, after) and not counts_untreated:
            return False
        old, new = self._old.variants, self._new.variants
        if is_same(old[before], new[after]):
            return before != after and before in new and after in old
        if before != after:
            return True
        others = (
            value for name, value in old.items() if name not in (before, self._untreated_variant)
        )
        return any(is_same(value, new[after]) for value in others)

    def _build_refusal(self, pair: RulePair, share: float) -> InvalidDocumentError:
        keys = f"{to_percent(max(1, round(share)))} % of the keys"
        if pair.is_rehashed:
            problem = f"draws the keys again: {keys} pass from one variant to another"
        else:
            if not pair.is_same_rule:
                keys = f"{keys} that {_describe_rule(pair.old)} decided before"
            problem = f"move {keys} from one treated variant to another"
        also = (
            f", or take keys only from {self._untreated_variant!r}"
            if self._untreated_variant
            else ""
        )
        return InvalidDocumentError(
            _format_path(pair),
            problem,
            f"Pass reassign=True, or --reassign, if that is meant{also}",
            subject=f"flag {self._new.key!r}",
        )


def _format_path(pair: RulePair) -> str:
    """Return the path of the field by which keys move."""
    old, new = pair.old.serves, pair.new.serves
    if isinstance(new, Serve):
        return f"{pair.new.path}.serve"
    kind = "ramp" if isinstance(new, Ramp) else "rollout"
    if pair.is_rehashed:
        assert isinstance(old, Rollout | Ramp), "a drawn split was one before"
        return f"{pair.new.path}.{kind}.{'by' if old.by != new.by else 'salt'}"
    return f"{pair.new.path}.{kind}" + (".weights" if kind == "rollout" else "")


def _describe_rule(rule: ServingRule) -> str:
    return "the fallthrough" if rule.name is None else f"the rule {rule.name!r}"


def _find_untreated(flag: Flag) -> str | None:
    """Return the variant of those who are not treated: `off`, or the one that is false."""
    false = [name for name, value in flag.variants.items() if value is False]
    return flag.off or (false[0] if len(false) == 1 else None)
