"""Segments: keys as hashes in parts, what a segment means, and how the writer changes it."""

import asyncio
import base64
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymongo import MongoClient
from pymongo.database import Database

from flagkit import Client, ErrorCode, Reason
from flagkit._core.evaluation.matching import MemberSet, build_segment_condition, matches
from flagkit._core.model import segments
from flagkit._core.model.canonical import compute_segment_digest
from flagkit._core.model.changes import SEGMENTS, Tip, build_state, compute_digests
from flagkit._core.model.conditions import Condition
from flagkit._core.model.segments import (
    NOBODY,
    PUBLIC_SEED,
    Keys,
    Segment,
    SegmentWithMembers,
    build_keys,
    compute_part_count,
    decode_part,
    decode_segment,
    edit_keys,
    encode_segment,
    get_part_index,
    hash_member,
)
from flagkit._core.snapshot import build_snapshot, unpack_segment
from flagkit._core.source import Route
from flagkit._core.storage.source import MongoSource
from flagkit.client.sources import build_initial_state
from flagkit.errors import (
    BrokenReferenceError,
    FlagExistsError,
    FlagkitError,
    HistoryLostError,
    InvalidDocumentError,
    RequestConflictError,
    SegmentNotFoundError,
    StoreError,
    VersionConflictError,
)
from flagkit.testing import MemoryHistory, client_from
from flagkit.writer import Commit, Draft, Writer
from flagkit.writer.commit import build_audit_content
from flagkit.writer.guards import PlannedChange
from flagkit.writer.operations import SetSegment


def flag(when: Mapping[str, Any], key: str = "f") -> dict[str, Any]:
    return {
        "key": key,
        "variants": {"on": True, "off": False},
        "rules": [{"name": "r", "when": when, "serve": "on"}],
        "fallthrough": {"serve": "off"},
    }


def condition_of(document: Mapping[str, Any]) -> Condition:
    hashed = decode_segment(document)
    parts = {name: decode_part(part) for name, part in hashed.parts.items()}
    return build_segment_condition(hashed.segment, parts)


# What a segment means

BETA = {
    "key": "beta",
    "when": {"plan": "pro"},
    "included": ["ada", "grace", 42],
    "excluded": ["grace", "mallory"],
}


@pytest.mark.parametrize(
    ("context", "inside"),
    [
        ("ada", True),
        ("eve", False),
        ({"targeting_key": "eve", "plan": "pro"}, True),
        ({"targeting_key": "grace"}, False),
        ({"targeting_key": "grace", "plan": "pro"}, False),
        ({"targeting_key": "mallory", "plan": "pro"}, False),
        ({"plan": "pro"}, True),
        ({"targeting_key": 42}, True),
        ({"targeting_key": "42"}, True),
        ({"targeting_key": True}, False),
        ({"targeting_key": 42.0}, False),
        ({"targeting_key": None}, False),
        ({"targeting_key": ""}, False),
        ({"targeting_key": ["eve", "ada"]}, True),
        ({"targeting_key": ["ada", "mallory"]}, False),
        ({"targeting_key": {"ada": 1}}, False),
        ({}, False),
    ],
)
def test_included_keys_and_the_condition_are_in_and_excluded_keys_win(
    context: Any, inside: bool
) -> None:
    client = client_from([flag({"$segment": "beta"})], [BETA])
    assert client.is_enabled("f", context) is inside
    attributes = context if isinstance(context, dict) else {"targeting_key": context}
    assert matches(condition_of(BETA), attributes) is inside


def test_a_segment_is_named_wherever_a_condition_stands() -> None:
    gold = {"key": "gold", "included": ["midas"]}
    cases: list[tuple[dict[str, Any], set[str]]] = [
        ({"$segment": ["beta", "gold"]}, {"ada", "midas"}),
        ({"$nor": [{"$segment": "beta"}]}, {"midas", "grace", "eve"}),
        ({"$segment": "beta", "targeting_key": {"$ne": "ada"}}, set()),
        ({"$or": [{"$segment": "gold"}, {"targeting_key": "eve"}]}, {"midas", "eve"}),
    ]
    for when, expected in cases:
        client = client_from([flag(when)], [BETA, gold])
        users = ["ada", "grace", "eve", "midas"]
        assert {user for user in users if client.is_enabled("f", user)} == expected


def test_keys_are_looked_up_by_any_attribute() -> None:
    segment = {"key": "orgs", "by": "org.id", "included": [7]}
    client = client_from([flag({"$segment": "orgs"})], [segment])
    assert client.is_enabled("f", {"org": {"id": 7}})
    assert client.is_enabled("f", {"org": [{"id": 8}, {"id": 7}]})
    assert not client.is_enabled("f", {"org": 7})
    assert not client.is_enabled("f", {"targeting_key": "7"})


def test_without_a_condition_nobody_else_is_in_and_with_an_empty_one_everybody() -> None:
    for segment, inside in (({"key": "s"}, False), ({"key": "s", "when": {}}, True)):
        assert client_from([flag({"$segment": "s"})], [segment]).is_enabled("f", "ada") is inside


def test_no_plain_key_is_kept_in_the_snapshot() -> None:
    client = client_from([flag({"$segment": "beta"})], [BETA])
    assert client.snapshot is not None
    record = client.snapshot.find_segment("beta")
    assert record is not None
    assert b"mallory" not in record.body
    assert unpack_segment(record).excluded.count == 2
    assert sum(len(part) for part in client.snapshot.parts.values()) == 5


# Keys

SEED = 7
keys = st.lists(st.text(min_size=1, max_size=5) | st.integers(0, 50), max_size=60)


def held(keys: Keys, parts: Mapping[str, bytes], seed: int = SEED) -> MemberSet:
    return MemberSet([decode_part(parts[name]) for name in keys.parts], seed)


@settings(max_examples=200)
@given(included=keys, others=keys)
def test_members_are_those_that_were_listed(
    included: list[str | int], others: list[str | int]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "PART_MEMBERS", 4)
        found, parts = build_keys(segments.hash_keys(included, "included", SEED))
        members = held(found, parts)
        listed = {str(key) for key in included}
        assert found.count == len(listed)
        assert all(key in members for key in included)
        assert all((key in members) is (str(key) in listed) for key in others)


@settings(max_examples=200)
@given(edits=st.lists(st.tuples(keys, keys), max_size=6))
def test_edited_keys_are_as_keys_made_anew(edits: list[tuple[list[Any], list[Any]]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "PART_MEMBERS", 4)
        stored: dict[str, bytes] = {}
        expected: set[int] = set()

        def read(names: Iterable[str]) -> Mapping[str, bytes]:
            return {name: stored[name] for name in names}

        found = NOBODY
        for added, removed in edits:
            add, remove = (
                segments.hash_keys(added, "", SEED),
                segments.hash_keys(removed, "", SEED),
            )
            found, made = edit_keys(found, add, remove, read)
            stored.update(made)
            expected = (expected | add) - remove
            assert found == build_keys(expected)[0]
            assert stored.keys() >= set(found.parts)


def test_an_edit_reads_and_makes_only_the_parts_that_change() -> None:
    chance = random.Random(5)
    found, parts = build_keys(chance.getrandbits(64) for _ in range(100_000))
    assert len(found.parts) == 8
    asked: list[str] = []

    def read(names: Iterable[str]) -> Mapping[str, bytes]:
        wanted = list(names)
        asked.extend(wanted)
        return {name: parts[name] for name in wanted}

    after, made = edit_keys(found, {hash_member("ada", SEED)}, set(), read)
    assert after.count == found.count + 1
    assert len(asked) == len(made) == 1
    assert sum(old != new for old, new in zip(found.parts, after.parts, strict=True)) == 1


def test_parts_are_a_power_of_two_and_not_too_full() -> None:
    for count in (1, 16_384, 16_385, 32_768, 32_769, 1_000_000):
        parts = compute_part_count(count)
        assert parts & (parts - 1) == 0
        assert count / parts <= segments.PART_MEMBERS < 2 * count / parts or parts == 1
    assert [get_part_index(member, 4) for member in (0, 2**62, 2**63, 2**64 - 1)] == [0, 1, 2, 3]
    assert get_part_index(2**64 - 1, 1) == 0


def test_a_million_keys_take_eight_bytes_each() -> None:
    chance = random.Random(6)
    hashes = {chance.getrandbits(64) for _ in range(1_000_000)}
    found, parts = build_keys(hashes)
    assert found.count == len(hashes)
    assert sum(map(len, parts.values())) == 8 * found.count
    unpacked = [decode_part(parts[name]) for name in found.parts]
    assert [member for part in unpacked for member in part] == sorted(hashes)


# Documents

BAD: list[tuple[str, dict[str, Any], str, str]] = [
    ("a bad key", {"key": "A b"}, "key", "segment key"),
    ("an unknown field", {"key": "s", "include": ["ada"]}, "include", "Did you mean included?"),
    ("an empty key among the included", {"key": "s", "included": ["ada", ""]}, "included[1]", ""),
    ("a boolean among the excluded", {"key": "s", "excluded": [True]}, "excluded[0]", "integers"),
    ("an integer of 5,000 digits", {"key": "s", "included": [10**5000]}, "included[0]", "integers"),
    ("keys as one string", {"key": "s", "included": "ada"}, "included", ""),
    ("a bad condition", {"key": "s", "when": {"a": {"$gtt": 1}}}, "when.a.$gtt", "$gt"),
    ("a segment within", {"key": "s", "when": {"$segment": "t"}}, "when", "both segments"),
    ("a bad path", {"key": "s", "by": "a..b"}, "by", "dots"),
    ("parts that are none", {"key": "s", "included": {"count": 1, "parts": ["x"]}}, "included", ""),
    ("too few parts", {"key": "s", "included": {"count": 99999, "parts": ["0" * 64]}},
     "included", "List the keys"),
    ("too many tests", {"key": "s", "when": {"$or": [{"a": 1}] * 256}}, "when", "256"),
    ("another environment", {"key": "s", "environment": "staging"}, "environment", "other"),
]  # fmt: skip


@pytest.mark.parametrize(("document", "path", "remedy"), [case[1:] for case in BAD],
                         ids=[case[0] for case in BAD])  # fmt: skip
def test_a_bad_segment_is_refused_by_its_path(
    document: dict[str, Any], path: str, remedy: str
) -> None:
    with pytest.raises(InvalidDocumentError) as caught:
        decode_segment(document, environment="production")
    assert caught.value.path == path
    assert remedy in str(caught.value)
    assert caught.value.subject == f"segment {document['key']!r}"


@pytest.mark.parametrize(
    "when",
    [
        {"plan": {"$segment": "s"}},
        {"a": {"$elemMatch": {"$segment": "s"}}},
        {"a": {"$not": {"$segment": "s"}}},
    ],
)
def test_a_segment_within_an_attribute_is_refused(when: dict[str, Any]) -> None:
    with pytest.raises(InvalidDocumentError, match="beside the attributes"):
        client_from([flag(when)])


def test_a_segment_comes_back_from_its_document() -> None:
    whole = {**BETA, "by": "org.id", "owner": "team", "description": "d", "tags": ["x"]}
    first = decode_segment(whole)
    stored = encode_segment(first.segment)
    assert decode_segment(stored, stored=True).segment == first.segment
    assert stored["included"] == {"count": 3, "parts": [*first.segment.included.parts]}


# In a snapshot


def test_a_change_of_a_segment_changes_the_answers_of_its_flags_and_no_others() -> None:
    history = MemoryHistory()
    history.commit(flag({"$segment": "s"}), flag({"plan": "pro"}, "g"), segments=[{"key": "s"}])
    with Client.from_source(history.create_source) as following:
        following.wait_ready()
        assert not following.is_enabled("f", "ada")
        change = history.commit(segments=[{"key": "s", "included": ["ada"]}])
        following.wait_for(change.revision)
        assert following.is_enabled("f", "ada")
        change = history.commit(segments=[{"key": "s", "excluded": ["ada"], "when": {}}])
        following.wait_for(change.revision)
        assert not following.is_enabled("f", "ada")
        assert following.is_enabled("f", "eve")
        change = history.commit(delete=[(SEGMENTS, "s")])
        following.wait_for(change.revision)
        assert following.evaluate("f", "ada", default=False).error_code is ErrorCode.PARSE_ERROR
        assert following.evaluate("g", {"plan": "pro"}).reason is Reason.TARGETING_MATCH


def test_members_that_were_altered_or_are_missing_are_never_served() -> None:
    history = MemoryHistory()
    change = history.commit(segments=[{"key": "s", "included": ["ada"]}])
    ((name, part),) = change.parts.items()
    before = build_snapshot(history.get_tip(0), "*", [])
    for parts in ({}, {name: part[::-1]}, {name: part + b"\0"}):
        with pytest.raises(HistoryLostError, match="members"):
            before.apply([msgspec.structs.replace(change, parts=parts)])
    assert before.apply([change]).parts.keys() == {name}


# The writer


@pytest.fixture
def direct(mongo_uri: str, database: str) -> Iterator[Database[dict[str, Any]]]:
    with MongoClient[dict[str, Any]](mongo_uri) as client:
        yield client[database]


def stored(writer: Writer, key: str = "s") -> Any:
    with writer.store.open_reader() as reading:
        return reading.find_segments([key])[SEGMENTS, key]


def segment_in(writer: Writer, key: str = "s") -> Segment:
    return decode_segment(stored(writer, key).policy, stored=True).segment


def members(writer: Writer, side: str = "included", key: str = "s") -> MemberSet:
    segment = segment_in(writer, key)
    names = (segment.included if side == "included" else segment.excluded).parts
    with writer.store.open_reader() as reading:
        parts = reading.read_parts(names)
    return MemberSet([decode_part(parts[name]) for name in names], segment.seed)


@pytest.mark.mongo
def test_segments_are_written_and_versioned_like_flags(writer: Writer) -> None:
    created = writer.create_segment({"key": "s", "included": ["ada"]}, reason="beta")
    assert (created.revision, stored(writer).version) == (1, 1)
    writer.update_segment({"key": "s", "included": ["grace"], "when": {"plan": "pro"}})
    assert stored(writer).version == 2
    assert "grace" in members(writer)
    assert "ada" not in members(writer)
    writer.change_members("s", include=["eve", 5], exclude=["grace"], expected_version=2)
    assert [user in members(writer) for user in ("eve", "5", "grace")] == [True, True, False]
    assert "grace" in members(writer, "excluded")
    writer.change_members("s", remove=["grace", "eve"])
    assert "grace" not in members(writer, "excluded")
    writer.rollback_segment("s", to=created.revision)
    assert "ada" in members(writer)
    assert stored(writer).policy.keys() == {"key", "seed", "included"}
    assert stored(writer).version == 5
    assert writer.reader.verify() == []


@pytest.mark.mongo
def test_a_segment_and_its_flag_are_made_in_one_revision(writer: Writer) -> None:
    with writer.change(reason="launch") as change:
        change.create(flag({"$segment": "s"}, "a.f"))
        change.create_segment({"key": "s", "included": ["ada"]})
        change.change_members("s", include=["grace"])
    assert change.commit is not None
    assert change.commit.revision == 1
    assert stored(writer).version == 1
    assert [user in members(writer) for user in ("ada", "grace", "eve")] == [True, True, False]


@pytest.mark.mongo
def test_what_cannot_be_is_refused_and_nothing_is_written(
    writer: Writer, direct: Database[dict[str, Any]]
) -> None:
    writer.create_segment({"key": "s", "included": ["ada"]})
    foreign = {"count": 1, "parts": ["0" * 64]}
    names = ("heads", "ledger", "flags", "segments", "members", "audit")
    before = {name: list(direct[name].find()) for name in names}
    refused: list[tuple[type[FlagkitError], Any]] = [
        (FlagExistsError, lambda: writer.create_segment({"key": "s"})),
        (SegmentNotFoundError, lambda: writer.update_segment({"key": "t"})),
        (SegmentNotFoundError, lambda: writer.change_members("t", include=["ada"])),
        (VersionConflictError, lambda: writer.update_segment({"key": "s"}, expected_version=9)),
        (VersionConflictError, lambda: writer.change_members("s", expected_version=9)),
        (InvalidDocumentError, lambda: writer.update_segment({"key": "s", "included": foreign})),
        (InvalidDocumentError, lambda: writer.change_members("s", include=["a"], remove=["a"])),
        (InvalidDocumentError, lambda: writer.change_members("s", include=[""])),
        (InvalidDocumentError, lambda: writer.change_members("s", include=map(str, range(10_001)))),
        (BrokenReferenceError, lambda: writer.create(flag({"$segment": "nobody"}, "a.f"))),
        (BrokenReferenceError, lambda: writer.create(flag({"$segment": ["s", "t"]}, "a.f"))),
    ]
    for error, attempt in refused:
        with pytest.raises(error):
            attempt()
    assert {name: list(direct[name].find()) for name in names} == before


@pytest.mark.mongo
def test_plain_keys_are_in_the_audit_alone_and_long_lists_not_even_there(
    writer: Writer, direct: Database[dict[str, Any]]
) -> None:
    writer.create_segment({"key": "s", "included": ["ada-lovelace"]})
    writer.change_members("s", exclude=["grace-hopper"])
    writer.create_segment({"key": "t", "included": [f"user-{i}" for i in range(20_000)]})
    for name in ("heads", "ledger", "segments", "members"):
        text = str(list(direct[name].find()))
        assert not any(word in text for word in ("lovelace", "hopper", "user-7")), name
    audit = str(list(direct.audit.find()))
    assert "ada-lovelace" in audit
    assert "grace-hopper" in audit
    assert "user-7" not in audit


@pytest.mark.mongo
def test_a_request_for_a_segment_sent_again_changes_nothing(writer: Writer) -> None:
    first = writer.create_segment({"key": "s", "included": ["ada"]}, idempotency_key="k")
    again = writer.create_segment({"key": "s", "included": ["ada"]}, idempotency_key="k")
    assert again == first


@pytest.mark.mongo
def test_a_segment_of_a_million_keys_is_changed_by_one_part(
    writer: Writer, direct: Database[dict[str, Any]]
) -> None:
    writer.create_segment({"key": "s", "included": range(1_000_000)})
    part_bytes = [len(part["hashes"]) for part in direct.members.find()]
    assert sum(part_bytes) == 8_000_000
    writer.change_members("s", include=["ada"])
    assert direct.members.count_documents({}) == len(part_bytes) + 1
    assert [user in members(writer) for user in (7, 999_999, "ada", "eve")] == [
        True,
        True,
        True,
        False,
    ]


# What goes wrong in the database


@pytest.mark.usefixtures("_unvalidated")
@pytest.mark.mongo
def test_altered_members_are_never_built_upon(
    writer: Writer, direct: Database[dict[str, Any]]
) -> None:
    writer.create_segment({"key": "s", "included": ["ada", "bob"]})
    seed = segment_in(writer).seed
    _, planted = build_keys(segments.hash_keys(("ada", "bob", "mallory"), "", seed))
    direct.members.update_one({}, {"$set": {"hashes": next(iter(planted.values()))}})
    with pytest.raises(StoreError, match="changed past the writer"):
        writer.change_members("s", include=["eve"])
    assert writer.reader.verify() != []
    for hashes in ("text", None, b"123"):
        direct.members.update_one({}, {"$set": {"hashes": hashes}})
        assert writer.reader.verify() != []


@pytest.mark.mongo
@pytest.mark.parametrize("fault", [None, b"12345678"], ids=["lost", "altered"])
def test_members_that_were_lost_hurt_their_flags_alone_until_they_are_listed_again(
    writer: Writer, direct: Database[dict[str, Any]], mongo_uri: str, fault: bytes | None
) -> None:
    segment = {"key": "s", "included": [f"user-{i}" for i in range(20_000)]}
    writer.create_segment(segment)
    writer.create(flag({"$segment": "s"}, "a.members"))
    writer.create(flag({"plan": "pro"}, "a.plan"))
    if fault is None:
        direct.members.delete_many({})
    else:
        direct.members.update_many({}, {"$set": {"hashes": fault}})
    name = writer.store._database.name
    with Client(mongo_uri, environment="production", database=name) as client:
        client.wait_ready()
        assert client.is_enabled("a.plan", {"plan": "pro"})
        assert client.evaluate("a.members", "user-7").error_code is ErrorCode.PARSE_ERROR
    writer.update_segment(segment)
    assert writer.reader.verify() == []
    with Client(mongo_uri, environment="production", database=name) as client:
        client.wait_ready()
        assert client.is_enabled("a.members", "user-7")


@pytest.mark.mongo
def test_hashed_keys_are_taken_over_only_from_the_segment_itself(writer: Writer) -> None:
    writer.create_segment({"key": "s", "included": ["ada", "bob"]})
    held = stored(writer).policy
    writer.update_segment({**held, "when": {"plan": "pro"}})
    assert stored(writer).policy["included"] == held["included"]
    for included in ({**held["included"], "count": 1}, held["included"]):
        with pytest.raises(InvalidDocumentError, match="List the keys themselves"):
            writer.create_segment({"key": "t", "included": included})


@pytest.mark.mongo
def test_a_request_is_the_same_in_whatever_order_its_keys_come(writer: Writer) -> None:
    writer.create_segment({"key": "s", "included": ["b", "a", "a"]}, idempotency_key="k")
    writer.create_segment({"key": "s", "included": iter(["a", "b"])}, idempotency_key="k")
    first = writer.change_members("s", include=["x", 7, "7"], idempotency_key="m")
    assert writer.change_members("s", include=[7, "x"], idempotency_key="m") == first


@pytest.mark.parametrize("keys", ["mallory", b"mallory", bytearray(b"m"), {"mallory": 1}], ids=repr)
def test_what_is_no_list_is_no_list_of_keys(keys: Any) -> None:
    draft = Draft("production")
    with pytest.raises(InvalidDocumentError):
        draft.change_members("s", include=keys)
    with pytest.raises(InvalidDocumentError):
        draft.create_segment({"key": "s", "included": keys})
    with pytest.raises(InvalidDocumentError):
        draft.create_segment(None)  # type: ignore[arg-type]


def test_a_key_that_no_database_holds_is_refused_and_a_long_integer_is_not() -> None:
    draft = Draft("production")
    with pytest.raises(InvalidDocumentError, match="lone surrogate"):
        draft.change_members("s", include=["\ud800"])
    draft.change_members("s", include=[2**70])


@pytest.mark.mongo
def test_catching_up_brings_the_members_that_are_there_in_the_end(
    writer: Writer, mongo_uri: str
) -> None:
    async def story() -> None:
        name = writer.store._database.name
        source = MongoSource(mongo_uri, environment="production", region="*", database=name)
        loaded = await source.load(Route.NEAREST)
        for i in range(5):
            await asyncio.to_thread(writer.change_members, "s", include=[f"later-{i}"])
        changes = await source.catch_up(loaded.tip, Route.NEAREST)
        assert len(changes) == 5
        assert sum(len(change.parts) for change in changes) == 1
        assert loaded.apply(changes).parts == (await source.load(Route.NEAREST)).parts
        await source.close()

    writer.create_segment({"key": "s", "included": ["ada"]})
    asyncio.run(story())


# Seeds

OUTSIDERS = {
    "user-21@example.com": "O*4+dl{)",
    "user-1050@example.com": ";C(?z:G<",
    "user-1297@example.com": "DK.I?3?8",
}
"""Members, and keys that somebody chose to have the same hashes under the public seed."""
MANY = [f"user-{i}" for i in range(2_000)]
"""More keys than the audit records."""


def set_as_earlier(draft: Draft, document: dict[str, Any], *, create: bool = True) -> None:
    """Ask for a segment as versions did that hashed all keys with the public seed."""
    hashed = decode_segment(document)
    few = {
        side: tuple(sorted(map(str, keys)))
        for side in ("included", "excluded")
        if len(keys := document.get(side, [])) <= 1_000 and keys
    }
    operation = SetSegment(
        policy=dict(encode_segment(hashed.segment)),
        create=create,
        keys=few,
        taken_over=[side for side in ("included", "excluded") if side not in document],
        key=document["key"],
        region=SEGMENTS,
    )
    draft.operations.append(operation)
    draft.parts |= hashed.parts


def create_as_earlier(writer: Writer, document: dict[str, Any]) -> None:
    with writer.change() as change:
        set_as_earlier(change, document)


def hashes_in(hashed: SegmentWithMembers) -> set[int]:
    return {member for part in hashed.parts.values() for member in decode_part(part)}


@given(seed=st.integers(0, 2**64 - 1), included=keys, excluded=keys, others=keys)
def test_answers_do_not_depend_on_the_seed(
    seed: int, included: list[Any], excluded: list[Any], others: list[Any]
) -> None:
    document = {"key": "s", "included": included, "excluded": excluded}
    hashed = decode_segment(document, seed=seed)
    # The seed is known from the stored document alone.
    segment = decode_segment(encode_segment(hashed.segment), stored=True).segment
    assert segment.seed == seed
    parts = {name: decode_part(part) for name, part in hashed.parts.items()}
    condition = build_segment_condition(segment, parts)
    inside = {*map(str, included)} - {*map(str, excluded)}
    for key in [*included, *excluded, *others]:
        assert matches(condition, {"targeting_key": key}) is (str(key) in inside)


class Golden(TypedDict):
    """A stored segment with its parts in base64, the document it was made of, and its digest."""

    listed: dict[str, Any]
    digest: str
    stored: dict[str, Any]
    parts: dict[str, str]


GOLDEN: list[Golden] = json.loads(
    (Path(__file__).parents[1] / "golden" / "members.json").read_text("utf-8")
)


@pytest.mark.parametrize(
    "golden", GOLDEN, ids=lambda golden: golden["stored"].get("seed", "public")
)
def test_stored_segments_answer_as_they_always_did(golden: Golden) -> None:
    stored, listed = golden["stored"], golden["listed"]
    parts = {name: base64.b64decode(part) for name, part in golden["parts"].items()}
    segment = decode_segment(stored, stored=True).segment
    assert encode_segment(segment) == stored
    assert decode_segment(listed, seed=segment.seed) == SegmentWithMembers(segment, parts)
    assert compute_segment_digest(decode_segment(listed).segment) == golden["digest"]
    state = build_state("beta", SEGMENTS, 1, stored)
    served = build_initial_state(flag({"$segment": "beta"}))
    tip = Tip("production", "e", 1, "", datetime.now(UTC), compute_digests([state, served]))
    client = Client.from_snapshot(build_snapshot(tip, "*", [state, served], parts))
    for key in listed["included"]:
        assert client.is_enabled("f", {"org": {"id": key}}) is (key not in listed["excluded"])
    for key in (*listed["excluded"], "eve", "ADA", "user-1"):
        assert not client.is_enabled("f", {"org": {"id": key}})


@pytest.mark.parametrize(("member", "outsider"), OUTSIDERS.items(), ids=str)
def test_a_key_that_was_chosen_for_the_public_seed_is_no_member(member: str, outsider: str) -> None:
    assert hash_member(member, PUBLIC_SEED) == hash_member(outsider, PUBLIC_SEED)
    assert hash_member(member, SEED) != hash_member(outsider, SEED)
    client = client_from([flag({"$segment": "s"})], [{"key": "s", "included": [*OUTSIDERS]}])
    assert client.is_enabled("f", member)
    assert not client.is_enabled("f", outsider)


@pytest.mark.parametrize(
    "seed", ["", "0123", "0123456789ABCDEF", "0x23456789abcdef", "0123456789abcdef0", " " * 16, 7]
)
def test_a_malformed_seed_is_refused(seed: object) -> None:
    document = {"key": "s", "seed": seed, "included": ["ada"]}
    with pytest.raises(InvalidDocumentError) as caught:
        Draft("production").create_segment(document)
    assert caught.value.path == "seed"
    assert caught.value.remedy
    assert caught.value.subject == "segment 's'"


def test_a_document_that_lists_its_keys_has_one_digest_and_one_form_whatever_its_seed() -> None:
    listed = {"key": "s", "included": ["ada"], "excluded": ["eve"]}
    plain, seeded = decode_segment(listed).segment, decode_segment(listed | {"seed": "0" * 16})
    assert seeded.segment == plain
    assert compute_segment_digest(seeded.segment) == compute_segment_digest(plain)
    assert compute_segment_digest(decode_segment(listed, seed=3).segment) != compute_segment_digest(
        plain
    )


def test_a_list_beside_hashed_keys_is_hashed_with_their_seed() -> None:
    held = encode_segment(decode_segment({"key": "s", "included": ["ada"]}, seed=3).segment)
    made = decode_segment(held | {"excluded": ["eve"]}, seed=4)
    assert made.segment.seed == 3
    assert hashes_in(made) == {hash_member("eve", 3)}


def seed_of(writer: Writer, key: str = "s") -> str:
    return str(stored(writer, key).policy.get("seed", ""))


def revision_of(writer: Writer) -> int:
    return writer.store.read_tip().revision


@pytest.mark.mongo
def test_segments_of_the_same_keys_share_no_hash(
    writer: Writer, direct: Database[dict[str, Any]]
) -> None:
    for key in ("s", "t"):
        writer.create_segment({"key": key, "included": MANY, "excluded": MANY[:5]})
    found = [stored(writer, key) for key in ("s", "t")]
    assert not {*found[0].parts} & {*found[1].parts}
    hashes = [
        {
            member
            for name in state.parts
            for part in direct.members.find({"_id.part": name})
            for member in decode_part(part["hashes"])
        }
        for state in found
    ]
    assert len(hashes[0]) == len(hashes[1]) == len(MANY)
    assert not hashes[0] & hashes[1]
    public = {hash_member(key, PUBLIC_SEED) for key in MANY}
    assert not public & (hashes[0] | hashes[1])


@pytest.mark.mongo
def test_an_outsider_is_not_served_once_the_list_is_replaced(
    writer: Writer, mongo_uri: str, database: str
) -> None:
    document = {"key": "s", "included": [*OUTSIDERS, "ada"]}
    create_as_earlier(writer, document)
    writer.create(flag({"$segment": "s"}, "a.f"))
    assert "seed" not in stored(writer).policy
    with Client(mongo_uri, environment="production", database=database) as client:
        client.wait_ready()
        for member, outsider in OUTSIDERS.items():
            # That is what was stored, and it goes on to mean the same.
            assert client.is_enabled("a.f", member)
            assert client.is_enabled("a.f", outsider)
        done = writer.update_segment(document)
        client.wait_for(done.revision)
        for member, outsider in OUTSIDERS.items():
            assert client.is_enabled("a.f", member)
            assert not client.is_enabled("a.f", outsider)
    assert writer.reader.verify() == []


@pytest.mark.mongo
def test_the_seed_changes_with_the_lists_and_with_nothing_else(writer: Writer) -> None:
    first = writer.create_segment({"key": "s", "included": ["ada"], "excluded": ["eve"]})
    seeds = [seed_of(writer)]
    held = stored(writer).policy

    def kept(ask: Callable[[], object]) -> None:
        ask()
        assert seed_of(writer) == seeds[-1]

    def made_anew(ask: Callable[[], object]) -> None:
        ask()
        assert seed_of(writer) not in seeds
        seeds.append(seed_of(writer))

    both = {"key": "s", "included": ["ada"], "excluded": ["eve"]}
    kept(lambda: writer.update_segment(both))
    assert stored(writer).version == 1
    kept(lambda: writer.update_segment(both | {"owner": "shop"}))
    kept(lambda: writer.change_members("s", include=["bob"], remove=["ada"]))
    assert [user in members(writer) for user in ("ada", "bob")] == [False, True]
    made_anew(lambda: writer.update_segment(both))
    made_anew(lambda: writer.update_segment(both | {"included": ["bob"]}))
    made_anew(lambda: writer.update_segment({"key": "s", "included": ["bob"]}))
    made_anew(lambda: writer.update_segment({"key": "s"}))
    kept(lambda: writer.update_segment({"key": "s", "when": {}}))
    kept(lambda: writer.change_members("s", include=["ada"]))
    assert "ada" in members(writer)
    # One side is taken over as it is, so the other one is hashed as it was.
    taken = {**stored(writer).policy, "excluded": ["eve"]}
    kept(lambda: writer.update_segment(taken))
    assert "eve" in members(writer, "excluded")
    assert "ada" in members(writer)
    writer.rollback_segment("s", to=first.revision)
    assert stored(writer).policy == held
    assert "eve" in members(writer, "excluded")
    writer.delete_segment("s")
    writer.create_segment(both)
    assert seed_of(writer) not in seeds
    writer.rollback_segment("s", to=first.revision)
    assert stored(writer).policy == held
    writer.update_segment({"key": "s"})
    with writer.change() as change:
        change.rollback_all(to=first.revision)
    assert stored(writer).policy == held
    assert writer.reader.verify() == []


@pytest.mark.mongo
def test_stored_segments_keep_the_public_seed_until_their_lists_are_replaced(
    writer: Writer,
) -> None:
    listed = {"key": "s", "included": ["ada"], "excluded": ["eve"]}
    create_as_earlier(writer, listed)
    create_as_earlier(writer, {"key": "t"})
    writer.change_members("s", include=["bob"])
    assert [user in members(writer) for user in ("ada", "bob", "eve")] == [True, True, False]
    writer.update_segment({**stored(writer).policy, "owner": "shop"})
    writer.update_segment({**stored(writer).policy, "included": ["ada"]})
    writer.update_segment({"key": "t", "when": {}})
    assert seed_of(writer) == seed_of(writer, "t") == ""
    assert [user in members(writer) for user in ("ada", "bob", "eve")] == [True, False, False]
    writer.update_segment(listed)
    assert seed_of(writer) != ""
    assert [user in members(writer) for user in ("ada", "bob", "eve")] == [True, False, False]
    held = stored(writer)
    writer.update_segment(listed)
    assert stored(writer) == held
    assert writer.reader.verify() == []


@pytest.mark.mongo
def test_a_seed_that_somebody_chose_is_not_used(writer: Writer) -> None:
    writer.create_segment({"key": "s", "included": ["ada"]})
    chosen = seed_of(writer)
    writer.create_segment({"key": "t", "included": ["ada"], "seed": chosen})
    writer.update_segment({"key": "s", "included": ["bob"], "seed": "0" * 16})
    assert len({chosen, "0" * 16, seed_of(writer), seed_of(writer, "t")}) == 4


@pytest.mark.mongo
def test_a_request_that_was_recorded_and_never_made_is_made_when_it_is_sent_again(
    writer: Writer,
) -> None:
    document = {"key": "s", "included": ["ada"]}
    broken_off = Draft("production")
    broken_off.create_segment(document)
    writer.store.add_request("k", build_audit_content(broken_off, "tester", ""))
    assert writer.create_segment(document, idempotency_key="k").revision == 1
    assert "ada" in members(writer)
    assert writer.reader.verify() == []


@pytest.mark.mongo
def test_hashed_keys_are_taken_over_only_with_their_seed(writer: Writer) -> None:
    writer.create_segment({"key": "s", "included": ["ada"], "excluded": ["eve"]})
    held = stored(writer).policy
    without = {name: value for name, value in held.items() if name != "seed"}
    for wrong in (held | {"seed": "0" * 16}, without, without | {"included": ["ada", "bob"]}):
        with pytest.raises(InvalidDocumentError) as caught:
            writer.update_segment(wrong)
        assert caught.value.path == "seed"
        assert held["seed"] not in str(caught.value)
    assert stored(writer).policy == held


@pytest.mark.mongo
@pytest.mark.parametrize("listed", [["ada", 7], MANY], ids=["few", "many"])
def test_a_request_with_lists_is_recognised_when_it_is_sent_again(
    writer: Writer, mongo_uri: str, database: str, listed: list[Any]
) -> None:
    def ask(by: Writer, keys: list[Any], key: str) -> Any:
        with by.change(idempotency_key=key) as change:
            change.create_segment({"key": key, "included": keys})
            change.change_members(key, exclude=["eve"])
        return change.commit

    first = ask(writer, listed, "s")
    # In between, the segment is another one.
    writer.update_segment({"key": "s", "included": ["bob"]})
    held = stored(writer)
    with Writer(mongo_uri, "production", actor="tester", database=database) as other:
        assert ask(other, listed[::-1], "s") == first
        with pytest.raises(RequestConflictError):
            ask(other, [*listed, "mallory"], "s")
        with other.preview(idempotency_key="s") as looked:
            looked.create_segment({"key": "s", "included": listed})
            looked.change_members("s", exclude=["eve"])
        assert looked.preview is not None
        assert looked.preview.committed_as == first.revision
    assert stored(writer) == held
    assert writer.reader.verify() == []


@pytest.mark.mongo
def test_a_request_that_an_earlier_version_sent_is_recognised(writer: Writer) -> None:
    document = {"key": "s", "included": ["ada"], "excluded": MANY}
    with writer.change(idempotency_key="k") as change:
        set_as_earlier(change, document)
    assert writer.create_segment(document, idempotency_key="k") == change.commit


@pytest.mark.mongo
@pytest.mark.parametrize("listed", [["ada", 7], MANY], ids=["few", "many"])
def test_a_request_with_lists_in_a_transaction_is_recognised_when_it_is_sent_again(
    writer: Writer, mongo_uri: str, database: str, listed: list[Any]
) -> None:
    document = {"key": "s", "included": listed}
    with MongoClient[dict[str, Any]](mongo_uri) as mine, mine.start_session() as session:
        for _ in range(2):
            with session.start_transaction():
                # Even twice in one transaction, in which alone the first one can be seen.
                for _ in range(2):
                    writer.in_transaction(session).create_segment(document, idempotency_key="k")
            other = {"key": "s", "included": ["eve"]}
            with session.start_transaction(), pytest.raises(RequestConflictError):
                writer.in_transaction(session).create_segment(other, idempotency_key="k")
        assert len(writer.pending.sweep().commits) == 1
        held = stored(writer)
        parts_before = mine[database].members.count_documents({})
        with session.start_transaction():
            writer.in_transaction(session).update_segment(document)
        assert len(writer.pending.sweep().commits) == 1
        assert stored(writer) == held
        parts_after = mine[database].members.count_documents({})
        # A list that is too long to be recorded is compared before its parts are stored.
        assert parts_after == parts_before + (len(listed) < 1_000)
    assert writer.reader.verify() == []


@pytest.mark.mongo
@pytest.mark.parametrize("listed", [["ada", 7], MANY], ids=["few", "many"])
def test_a_proposal_of_the_same_lists_keeps_the_seed(writer: Writer, listed: list[Any]) -> None:
    writer.create_segment({"key": "s", "included": listed})
    held = stored(writer)
    with writer.proposals.propose(reason="an owner") as draft:
        draft.update_segment({"key": "s", "included": listed, "owner": "shop"})
    assert draft.proposal is not None
    assert writer.reader.proposal(draft.proposal).differences == ("segment s: owner added: shop",)
    writer.proposals.approve(draft.proposal, actor="grace")
    writer.proposals.apply(draft.proposal)
    assert stored(writer).policy == held.policy | {"owner": "shop"}


@pytest.mark.mongo
def test_whoever_loses_a_race_tries_again_with_the_same_seed(
    mongo_uri: str, database: str, writer: Writer
) -> None:
    writer.create_segment({"key": "s", "included": ["ada"]})
    planned: list[PlannedChange] = []

    def spoil(plan: PlannedChange) -> None:
        planned.append(plan)
        if len(planned) <= 2:
            writer.create_segment({"key": f"other-{len(planned)}"})

    with Writer(
        mongo_uri, "production", actor="tester", database=database, guards=[spoil]
    ) as racing:
        racing.update_segment({"key": "s", "included": ["bob"]})
    assert len(planned) == 3
    assert [plan.after for plan in planned] == [stored(writer).policy] * 3


@pytest.mark.mongo
def test_the_same_lists_of_two_writers_are_one_change(
    mongo_uri: str, database: str, writer: Writer
) -> None:
    document = {"key": "s", "included": MANY}
    writer.create_segment({"key": "s", "included": ["ada"]})
    asked: list[PlannedChange] = []

    def be_first(plan: PlannedChange) -> None:
        if not asked:
            asked.append(plan)
            writer.update_segment(document)

    with Writer(
        mongo_uri, "production", actor="tester", database=database, guards=[be_first]
    ) as later:
        later.update_segment(document)
    assert stored(writer).version == 2
    assert asked[0].after is not None
    assert stored(writer).policy["seed"] != asked[0].after["seed"]


@pytest.mark.mongo
def test_the_ledger_tells_of_lists_and_never_of_seeds(writer: Writer) -> None:
    def told(ask: Callable[[], Commit]) -> tuple[str, ...]:
        revision = ask().revision
        return next(e.differences for e in writer.reader.entries() if e.revision == revision)

    create_as_earlier(writer, {"key": "s", "included": ["a", "b", "c"]})
    listed = ["a", "b", "c", "d"]
    assert told(lambda: writer.update_segment({"key": "s", "included": listed})) == (
        "segment s: included: 3 -> 4 keys",
    )
    assert told(lambda: writer.change_members("s", include=["e"], remove=["a"])) == (
        "segment s: included: 4 -> 4 keys, others",
    )
    assert told(lambda: writer.update_segment({"key": "s", "included": listed})) == (
        "segment s: included: 4 -> 4 keys, hashed anew",
    )
    assert told(lambda: writer.update_segment({"key": "s", "included": listed})) == ()
    assert told(lambda: writer.create_segment({"key": "t"})) == ("segment t: created",)
    writer.delete_segment("t")
    created = writer.create_segment({"key": "t"})
    writer.delete_segment("t")
    writer.create_segment({"key": "t"})
    assert told(lambda: writer.rollback_segment("t", to=created.revision)) == (
        "segment t: another seed for its keys",
    )
