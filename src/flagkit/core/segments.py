"""Segments: their members, and their meaning put in the places of their names."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence

from flagkit.model.conditions import (
    NEVER,
    Among,
    And,
    Condition,
    Field,
    InSegment,
    Nor,
    Or,
)
from flagkit.model.keys import key_of
from flagkit.model.segments import Keys, Segment, hash_of_member, part_of


class Members:
    """A set of keys, kept as ascending 64-bit hashes in parts, 8 bytes a member.

    A key that is none of n members is taken for one with a probability of n / 2**64.

    Args:
        parts: The hashes.
        seed: The seed of the segment, which they were made with.
    """

    __slots__ = ("_parts", "_seed")

    def __init__(self, parts: "Sequence[Sequence[int]]", seed: int) -> None:
        self._parts = parts
        self._seed = seed

    def __contains__(self, value: object) -> bool:
        key = key_of(value)
        if key is None or not self._parts:
            return False
        member = hash_of_member(key, self._seed)
        part = self._parts[part_of(member, len(self._parts))]
        place = bisect_left(part, member)
        return place < len(part) and part[place] == member


def meaning(segment: Segment, parts: "Mapping[str, Sequence[int]]") -> Condition:
    """Return the condition that being in a segment is.

    Raises:
        KeyError: parts of members are not there.
    """
    conditions = [segment.condition] if segment.condition != NEVER else []
    if segment.included.count:
        conditions.insert(0, among(segment, segment.included, parts))
    inside = conditions[0] if len(conditions) == 1 else Or(tuple(conditions))
    if not segment.excluded.count:
        return inside
    return And((Nor((among(segment, segment.excluded, parts),)), inside))


def among(segment: Segment, keys: Keys, parts: "Mapping[str, Sequence[int]]") -> Condition:
    """Return the condition that being among some keys of a segment is.

    Raises:
        KeyError: parts of members are not there.
    """
    members = Members([parts[name] for name in keys.parts], segment.seed)
    return Field(segment.by, Among(members))


def bound(condition: Condition, meanings: Mapping[str, Condition]) -> Condition:
    """Return a condition with the meaning of each segment in the place of its name.

    Raises:
        KeyError: a segment's is not there.
    """
    match condition:
        case InSegment(key):
            return meanings[key]
        case Field():
            return condition
        case And(conditions) | Or(conditions) | Nor(conditions):
            return type(condition)(tuple(bound(item, meanings) for item in conditions))
