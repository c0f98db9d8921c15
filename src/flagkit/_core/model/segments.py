"""Segments: named groups of contexts, defined by a condition and by lists of member keys.

Only hashes of member keys are stored: 64 bits each, in ascending order, in parts named by their
SHA-256. Each segment has a random seed for these hashes in its document. With one seed a set of
keys has exactly one form. The size of the set determines the number of parts, and the leading bits
of a hash determine its part.
"""

import hashlib
import os
import re
import sys
from array import array
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, cast

import xxhash
from msgspec import Struct

from flagkit._core.model.conditions import (
    NEVER,
    Condition,
    collect_condition_segments,
    parse_condition,
)
from flagkit._core.model.documents import TARGETING_KEY, MembersDocument, SegmentDocument
from flagkit._core.model.flags import (
    build_metadata,
    check_environment,
    check_size,
    check_tests,
    convert,
    normalize_fields,
)
from flagkit._core.model.keys import check_key, parse_attribute_path, to_bucketing_key
from flagkit._core.model.values import Value, check_text
from flagkit.errors import InvalidDocumentError

MEMBER_BYTES: Final = 8
PART_MEMBERS: Final = 16_384
"""The most members of a part, on average."""
PUBLIC_SEED: Final = xxhash.xxh3_64_intdigest(b"flagkit.members")
"""The seed of a document that names none: earlier versions hashed all keys with it."""
_SEED_TEXT: Final = re.compile(r"[0-9a-f]{16}")


class Keys(Struct, frozen=True):
    """The description of a set of keys: their number, and the SHA-256 of each part."""

    count: int
    parts: tuple[str, ...]


SEGMENT_TESTS_MAX: Final = 256
"""The most tests in a segment's condition: a flag may name many segments."""
_NO_LISTS: Final = (str, bytes, bytearray, memoryview, Mapping)
NOBODY: Final = Keys(0, ())


class Segment(Struct, frozen=True, kw_only=True):
    """A named group: the included keys, and those for whom the condition holds, but the excluded.

    `when` is `condition` as written, None for a segment of keys alone. `by` is the path of the
    attribute that is looked up among the keys. `seed` is the one that keys are hashed with.
    """

    key: str
    by: tuple[str, ...]
    when: dict[str, Value] | None
    condition: Condition
    seed: int
    included: Keys
    excluded: Keys
    metadata: dict[str, Value]


class SegmentWithMembers(Struct, frozen=True):
    """A segment, and the parts of members that came with its document, by their SHA-256."""

    segment: Segment
    parts: dict[str, bytes]


def generate_seed() -> int:
    """Return a random seed of 64 bits for the keys of a segment."""
    # `secrets` would do the same, and takes a millisecond to import.
    return int.from_bytes(os.urandom(8), "big")


def hash_member(key: str, seed: int) -> int:
    """Return the 64-bit hash that represents a key in a segment with a seed."""
    return xxhash.xxh3_64_intdigest(key.encode("utf-8", "surrogatepass"), seed)


def get_part_index(member: int, part_count: int) -> int:
    """Return which of some parts a member's hash is in; they are as many as a power of two."""
    return member >> (64 - (part_count.bit_length() - 1))


def build_keys(members: Iterable[int]) -> tuple[Keys, dict[str, bytes]]:
    """Return the keys that some hashes make up, and their parts by SHA-256."""
    ordered = sorted(set(members))
    if not ordered:
        return NOBODY, {}
    count = compute_part_count(len(ordered))
    buckets = [array("Q") for _ in range(count)]
    for member in ordered:
        buckets[get_part_index(member, count)].append(member)
    parts = [encode_part(bucket) for bucket in buckets]
    names = tuple(hashlib.sha256(part).hexdigest() for part in parts)
    return Keys(len(ordered), names), dict(zip(names, parts, strict=True))


def edit_keys(
    keys: Keys,
    add: set[int],
    remove: set[int],
    read: Callable[[Iterable[str]], Mapping[str, bytes]],
) -> tuple[Keys, dict[str, bytes]]:
    """Add and remove members of keys; return the keys, and the parts that are new.

    It reads only the parts that change, unless the number of parts changes.

    Raises:
        InvalidDocumentError: parts are missing.
    """
    if not keys.count:
        return build_keys(add - remove)
    count = len(keys.parts)
    touched = sorted({get_part_index(member, count) for member in add | remove})
    old = _read_members(keys, touched, read)
    members = set[int]().union(*old.values(), add) - remove
    total = keys.count + len(members) - sum(map(len, old.values()))
    if total == 0 or compute_part_count(total) != count:
        rest = _read_members(keys, sorted(set(range(count)).difference(touched)), read)
        return build_keys(members.union(*rest.values()))
    buckets = {place: array("Q") for place in touched}
    for member in sorted(members):
        buckets[get_part_index(member, count)].append(member)
    names = [*keys.parts]
    new_parts: dict[str, bytes] = {}
    for place, bucket in buckets.items():
        part = encode_part(bucket)
        names[place] = hashlib.sha256(part).hexdigest()
        if names[place] != keys.parts[place]:
            new_parts[names[place]] = part
    return Keys(total, tuple(names)), new_parts


def _read_members(
    keys: Keys, places: Iterable[int], read: Callable[[Iterable[str]], Mapping[str, bytes]]
) -> "dict[int, array[int]]":
    wanted = {place: keys.parts[place] for place in places}
    found = read(wanted.values())
    if not found.keys() >= {*wanted.values()}:
        raise InvalidDocumentError("", "has members that are not there any more", "List them anew")
    return {place: decode_part(found[name]) for place, name in wanted.items()}


def check_members(segment: Segment, read: Callable[[Iterable[str]], Mapping[str, bytes]]) -> None:
    """Reject keys whose number is wrong, or that are not in the normal form of a set.

    Raises:
        InvalidDocumentError: they are not valid, or parts of them are missing.
    """
    for side, keys in (("included", segment.included), ("excluded", segment.excluded)):
        parts = _read_members(keys, range(len(keys.parts)), read)
        members = [member for place in sorted(parts) for member in parts[place]]
        if build_keys(members)[0] != keys or len(members) != keys.count:
            raise InvalidDocumentError(side, "are not as they were hashed", "List the keys anew")


def compute_part_count(member_count: int) -> int:
    """Return how many parts some members have: the power of two at which they are not too full."""
    return 1 << max(0, (-(-member_count // PART_MEMBERS) - 1).bit_length())


def encode_part(members: "array[int]") -> bytes:
    """Return a part's bytes: little-endian on every machine."""
    if sys.byteorder == "big":
        members = array("Q", members)
        members.byteswap()
    return members.tobytes()


def decode_part(content: bytes) -> "array[int]":
    """Return the members in a part's bytes.

    Raises:
        ValueError: they are no whole number of members.
    """
    members = array("Q")
    members.frombytes(content)
    if sys.byteorder == "big":
        members.byteswap()
    return members


def decode_segment(
    document: object,
    *,
    environment: str | None = None,
    stored: bool = False,
    seed: int = PUBLIC_SEED,
) -> SegmentWithMembers:
    """Check a segment's document and return the segment, with the parts of keys that it lists.

    Args:
        document: A mapping in the shape of the YAML form; its keys may be hashed already.
        environment: The required value of the document's own `environment`, if it has one.
        stored: True if the writer made the document. It was then checked when it was written, and
            its own seed holds.
        seed: The seed to hash listed keys with. It is not used if the document has hashed keys:
            both lists of a segment share one seed, so the document's own seed holds.

    Raises:
        InvalidDocumentError: with the path of the fault and the remedy.
    """
    try:
        return _decode_checked(document, environment, seed, stored=stored)
    except InvalidDocumentError as error:
        raise error.about(_describe_subject(document)) from None


def _describe_subject(document: object) -> str:
    key = cast("Mapping[str, object]", document).get("key") if isinstance(document, dict) else None
    return f"segment {key!r}" if isinstance(key, str) else ""


def get_key_lists(document: object) -> dict[str, list[Any]]:
    """Return the lists of keys that a segment's document has. They may be iterators: read once."""
    found: dict[str, list[Any]] = {}
    if isinstance(document, Mapping):
        fields = cast("Mapping[object, object]", document)
        for name in ("included", "excluded"):
            keys: Any = fields.get(name)
            if hasattr(keys, "__iter__") and not isinstance(keys, _NO_LISTS):
                found[name] = list(keys)
    return found


def _decode_checked(
    document: object, environment: str | None, seed: int, *, stored: bool
) -> SegmentWithMembers:
    # Lists of keys may be of any length: they are hashed, and never part of the document.
    listed = get_key_lists(document)
    if listed:
        fields = cast("Mapping[object, object]", document)
        document = {name: value for name, value in fields.items() if name not in listed}
    values = normalize_fields(document)
    if not stored:
        check_size(values)
    wire = convert(values, SegmentDocument)
    check_environment(wire.environment, environment)
    condition = NEVER if wire.when is None else parse_condition(wire.when, "when")
    check_tests({"when": condition}, SEGMENT_TESTS_MAX)
    if inner := collect_condition_segments(condition):
        raise InvalidDocumentError(
            "when",
            f"refers to the segment {min(inner)!r}",
            "Name both segments in the flag's rule instead",
        )
    given = PUBLIC_SEED if wire.seed is None else _parse_seed(wire.seed)
    keys = {
        name: _build_stored_keys(field, name)
        for name, field in (("included", wire.included), ("excluded", wire.excluded))
    }
    if stored or any(hashed.count for hashed in keys.values()):
        seed = given
    parts: dict[str, bytes] = {}
    keys |= {
        name: _build_listed_keys(members, name, seed, parts) for name, members in listed.items()
    }
    segment = Segment(
        key=check_key(wire.key, kind="segment"),
        by=parse_attribute_path(wire.by, "by"),
        when=wire.when,
        condition=condition,
        seed=seed,
        metadata=build_metadata(wire.owner, wire.description, wire.tags),
        **keys,
    )
    return SegmentWithMembers(segment, parts)


def _parse_seed(text: str) -> int:
    if not _SEED_TEXT.fullmatch(text):
        raise InvalidDocumentError(
            "seed",
            "is not 16 hexadecimal digits in lower case",
            "Leave it out if the document lists its keys; beside hashed keys, write the seed that"
            " `flagkit segments show KEY --output policy` shows",
        )
    return int(text, 16)


def _build_listed_keys(
    keys: Iterable[object], path: str, seed: int, parts: dict[str, bytes]
) -> Keys:
    found, new_parts = build_keys(hash_keys(keys, path, seed))
    parts |= new_parts
    return found


def hash_keys(keys: Iterable[object], path: str, seed: int) -> set[int]:
    """Return the hashes of keys; for errors see `normalize_keys`."""
    return {hash_member(key, seed) for key in normalize_keys(keys, path)}


def normalize_keys(keys: Iterable[object], path: str) -> list[str]:
    """Return keys as the strings that they count as.

    Raises:
        InvalidDocumentError: they are no list; or one is no string of at least one character, and
            no integer.
    """
    listed_by: object = keys
    if isinstance(listed_by, _NO_LISTS) or not hasattr(listed_by, "__iter__"):
        raise InvalidDocumentError(path, "is not a list of keys", "List strings or integers")
    found: list[str] = []
    for i, listed in enumerate(keys):
        key = to_bucketing_key(listed)
        if key is None:
            shown = repr(listed) if isinstance(listed, str) else f"of type {type(listed).__name__}"
            raise InvalidDocumentError(
                f"{path}[{i}]",
                f"is {shown}, which is not a key",
                "List strings that are not empty, or integers",
            )
        found.append(check_text(key, f"{path}[{i}]"))
    return found


def _build_stored_keys(wire: "list[str | int] | MembersDocument", path: str) -> Keys:
    if isinstance(wire, list):
        return NOBODY
    names = tuple(wire.parts)
    digests = all(len(name) == 64 and set(name) <= set("0123456789abcdef") for name in names)  # noqa: PLR2004 - hex SHA-256
    if (
        not digests
        or wire.count < 0
        or len(names) != (compute_part_count(wire.count) if wire.count else 0)
    ):
        raise InvalidDocumentError(
            path, "are not hashed keys as the writer makes them", "List the keys themselves"
        )
    return Keys(wire.count, names)


def encode_segment(segment: Segment) -> dict[str, Value]:
    """Return the document of a segment: defaults left out, keys by their parts.

    It has the seed even without keys, for keys that are included later.
    """
    document: dict[str, Value] = {"key": segment.key}
    if segment.when is not None:
        document["when"] = segment.when
    if segment.by != (TARGETING_KEY,):
        document["by"] = ".".join(segment.by)
    if segment.seed != PUBLIC_SEED:
        document["seed"] = f"{segment.seed:016x}"
    for name, keys in (("included", segment.included), ("excluded", segment.excluded)):
        if keys.count:
            document[name] = {"count": keys.count, "parts": [*keys.parts]}
    return document | segment.metadata
