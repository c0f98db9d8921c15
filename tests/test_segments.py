"""Segments: keys as hashes in parts, what a segment means, and how the writer changes it."""

import asyncio
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymongo import MongoClient
from pymongo.database import Database

from flagkit import Client, ErrorCode, Reason
from flagkit.changes import SEGMENTS
from flagkit.core.matching import matches
from flagkit.core.segments import Members, meaning
from flagkit.errors import (
    BrokenReferenceError,
    FlagExistsError,
    FlagkitError,
    FlagNotFoundError,
    HistoryLostError,
    InvalidDocumentError,
    StoreError,
    VersionConflictError,
)
from flagkit.model import segments as room
from flagkit.model.conditions import Condition
from flagkit.model.segments import (
    NOBODY,
    Keys,
    decode_segment,
    edited_keys,
    encode_segment,
    hash_of_member,
    hashed_keys,
    part_count,
    part_of,
    unpacked_part,
)
from flagkit.refresh import Route
from flagkit.snapshot import build, segment_of
from flagkit.storage.source import MongoSource
from flagkit.testing import MemoryHistory, client_from
from flagkit.writer import Draft, Writer, verify


def flag(when: Mapping[str, Any], key: str = "f") -> dict[str, Any]:
    return {
        "key": key,
        "variants": {"on": True, "off": False},
        "rules": [{"name": "r", "when": when, "serve": "on"}],
        "fallthrough": {"serve": "off"},
    }


def condition_of(document: Mapping[str, Any]) -> Condition:
    hashed = decode_segment(document)
    parts = {name: unpacked_part(part) for name, part in hashed.parts.items()}
    return meaning(hashed.segment, parts)


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
    record = client.snapshot.segment("beta")
    assert record is not None
    assert b"mallory" not in record.body
    assert segment_of(record).excluded.count == 2
    assert sum(len(part) for part in client.snapshot.parts.values()) == 5


# Keys

keys = st.lists(st.text(min_size=1, max_size=5) | st.integers(0, 50), max_size=60)


def held(keys: Keys, parts: Mapping[str, bytes]) -> Members:
    return Members([unpacked_part(parts[name]) for name in keys.parts])


@settings(max_examples=200)
@given(included=keys, others=keys)
def test_members_are_those_that_were_listed(
    included: list[str | int], others: list[str | int]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "PART_MEMBERS", 4)
        found, parts = hashed_keys(room.members_of(included, "included"))
        members = held(found, parts)
        listed = {str(key) for key in included}
        assert found.count == len(listed)
        assert all(key in members for key in included)
        assert all((key in members) is (str(key) in listed) for key in others)


@settings(max_examples=200)
@given(edits=st.lists(st.tuples(keys, keys), max_size=6))
def test_edited_keys_are_as_keys_made_anew(edits: list[tuple[list[Any], list[Any]]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "PART_MEMBERS", 4)
        stored: dict[str, bytes] = {}
        expected: set[int] = set()

        def read(names: Iterable[str]) -> Mapping[str, bytes]:
            return {name: stored[name] for name in names}

        found = NOBODY
        for added, removed in edits:
            add, remove = room.members_of(added, ""), room.members_of(removed, "")
            found, made = edited_keys(found, add, remove, read)
            stored.update(made)
            expected = (expected | add) - remove
            assert found == hashed_keys(expected)[0]
            assert stored.keys() >= set(found.parts)


def test_an_edit_reads_and_makes_only_the_parts_that_change() -> None:
    chance = random.Random(5)
    found, parts = hashed_keys(chance.getrandbits(64) for _ in range(100_000))
    assert len(found.parts) == 8
    asked: list[str] = []

    def read(names: Iterable[str]) -> Mapping[str, bytes]:
        wanted = list(names)
        asked.extend(wanted)
        return {name: parts[name] for name in wanted}

    after, made = edited_keys(found, {hash_of_member("ada")}, set(), read)
    assert after.count == found.count + 1
    assert len(asked) == len(made) == 1
    assert sum(old != new for old, new in zip(found.parts, after.parts, strict=True)) == 1


def test_parts_are_a_power_of_two_and_not_too_full() -> None:
    for count in (1, 16_384, 16_385, 32_768, 32_769, 1_000_000):
        parts = part_count(count)
        assert parts & (parts - 1) == 0
        assert count / parts <= room.PART_MEMBERS < 2 * count / parts or parts == 1
    assert [part_of(member, 4) for member in (0, 2**62, 2**63, 2**64 - 1)] == [0, 1, 2, 3]
    assert part_of(2**64 - 1, 1) == 0


def test_a_million_keys_take_eight_bytes_each() -> None:
    chance = random.Random(6)
    hashes = {chance.getrandbits(64) for _ in range(1_000_000)}
    found, parts = hashed_keys(hashes)
    assert found.count == len(hashes)
    assert sum(map(len, parts.values())) == 8 * found.count
    unpacked = [unpacked_part(parts[name]) for name in found.parts]
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
    with Client.from_source(history.source) as following:
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
    before = build(history.tip_at(0), "*", [])
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
    with writer.store.reading() as reading:
        return reading.segments([key])[SEGMENTS, key]


def members(writer: Writer, side: str = "included", key: str = "s") -> Members:
    policy = stored(writer, key).policy
    names = policy.get(side, {"parts": []})["parts"]
    with writer.store.reading() as reading:
        parts = reading.parts(names)
    return Members([unpacked_part(parts[name]) for name in names])


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
    assert stored(writer).policy == {"key": "s", "included": stored(writer).policy["included"]}
    assert stored(writer).version == 5
    assert verify(writer.store) == []


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
        (FlagNotFoundError, lambda: writer.update_segment({"key": "t"})),
        (FlagNotFoundError, lambda: writer.change_members("t", include=["ada"])),
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
    _, planted = hashed_keys(map(hash_of_member, ("ada", "bob", "mallory")))
    direct.members.update_one({}, {"$set": {"hashes": next(iter(planted.values()))}})
    with pytest.raises(StoreError, match="changed past the writer"):
        writer.change_members("s", include=["eve"])
    assert verify(writer.store) != []
    for hashes in ("text", None, b"123"):
        direct.members.update_one({}, {"$set": {"hashes": hashes}})
        assert verify(writer.store) != []


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
    assert verify(writer.store) == []
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
        loaded = await source.load(Route.NEAR)
        for i in range(5):
            await asyncio.to_thread(writer.change_members, "s", include=[f"later-{i}"])
        changes = await source.catch_up(loaded.tip, Route.NEAR)
        assert len(changes) == 5
        assert sum(len(change.parts) for change in changes) == 1
        assert loaded.apply(changes).parts == (await source.load(Route.NEAR)).parts
        await source.close()

    writer.create_segment({"key": "s", "included": ["ada"]})
    asyncio.run(story())
