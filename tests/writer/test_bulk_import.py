"""Importing: checked as a whole, made in batches that are whole, resumed by repeating it."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database

from flagkit._core.model.changes import SEGMENTS, PolicyState
from flagkit._core.storage import pages
from flagkit.cli.output import build_segment_document
from flagkit.errors import (
    AccessDeniedError,
    BrokenReferenceError,
    ConfigurationError,
    GuardError,
    InvalidDocumentError,
)
from flagkit.writer import (
    Import,
    ImportProgress,
    ImportResult,
    LargestStep,
    Writer,
    bulk_import,
    planning,
)
from tests.model.test_segments import create_as_earlier
from tests.writer.test_writer import flag, policy, state

pytestmark = pytest.mark.mongo

Document = dict[str, Any]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_import, "BATCH_FLAGS", 4)
    monkeypatch.setattr(bulk_import, "PAUSE_SECONDS", 0.0)


@pytest.fixture
def direct(mongo_uri: str, database: str) -> Iterator[Database[Document]]:
    with MongoClient[Document](mongo_uri) as client:
        yield client[database]


def wanted(*flags: Document, segments: tuple[Document, ...] = ()) -> Import:
    found = Import("production")
    for segment in segments:
        found.add_segment(segment)
    for document in flags:
        found.add(document)
    return found


def needing(key: str, *needed: str) -> Document:
    return flag(key, prerequisites=[{"flag": name, "variants": ["on"]} for name in needed])


def segment_state(writer: Writer, key: str) -> PolicyState:
    with writer.store.open_reader() as reading:
        return reading.find_segments([key])[SEGMENTS, key]


def policies(writer: Writer) -> dict[Any, bytes]:
    with writer.store.open_reader() as reading:
        return {identity: state.packed for identity, state in reading.read_all().items()}


def test_flags_are_created_in_batches_each_of_them_a_revision(writer: Writer) -> None:
    steps: list[ImportProgress] = []
    found = wanted(*(flag(f"a.f{i}") for i in range(10)))
    made = found.run(writer, reason="moved here", actor="ada@example.com", progress=steps.append)
    assert made == ImportResult(created=10, updated=0, unchanged=0, revisions=(1, 2, 3))
    assert [(step.done, step.total) for step in steps] == [(4, 10), (8, 10), (10, 10)]
    told = [(entry.actor, entry.reason, entry.actions) for entry in writer.reader.entries()]
    assert told[0] == ("ada@example.com", "moved here", ("import 4 flags, batch 1 of 3",))
    assert [entry.revision for entry in writer.reader.entries(action="import")] == [1, 2, 3]
    assert writer.reader.verify() == []


def test_an_import_for_another_environment_is_refused(writer: Writer) -> None:
    found = Import("staging")
    found.add(flag(environment="staging"))
    for ask in (found.preview, found.run):
        with pytest.raises(ConfigurationError, match="is for 'staging'"):
            ask(writer)
    assert writer.store.read_tip().revision == 0


def test_what_is_as_asked_for_is_left_alone(writer: Writer) -> None:
    found = wanted(
        *(flag(f"a.f{i}") for i in range(5)),
        segments=({"key": "staff", "included": ["ada", "bob"]},),
    )
    assert found.run(writer).changed == 6
    assert found.run(writer) == ImportResult(created=0, updated=0, unchanged=6)
    writer.edit("a.f3", lambda document: {**document, "owner": "shop"})
    looked = found.preview(writer)
    assert looked == ImportResult(
        created=0, updated=1, unchanged=5, differences=("a.f3: owner removed: shop",)
    )
    made = found.run(writer)
    assert made.revisions == (5,)
    assert "owner" not in policy(writer, "a.f3")
    assert state(writer, "a.f3").version == 3


def test_segments_are_compared_by_their_keys_and_keep_their_seed(writer: Writer) -> None:
    listed = {
        "key": "staff",
        "included": ["ada", 7],
        "excluded": [f"user-{i}" for i in range(2_000)],
    }
    keyless = {"key": "all", "when": {}}
    found = wanted(segments=(listed, keyless))
    assert found.run(writer).created == 2
    held = policies(writer)
    other_order = listed | {"included": ["7", "ada", "ada"], "excluded": listed["excluded"][::-1]}
    for same in (found, wanted(segments=(other_order, keyless))):
        assert same.run(writer) == ImportResult(created=0, updated=0, unchanged=2)
    exported = tuple(build_segment_document(segment_state(writer, key)) for key in ("staff", "all"))
    assert "seed" in exported[0]
    assert wanted(segments=exported).run(writer).unchanged == 2
    assert policies(writer) == held
    assert wanted(segments=(listed | {"owner": "shop"}, keyless)).run(writer).updated == 1
    assert build_segment_document(segment_state(writer, "staff")) == exported[0] | {"owner": "shop"}
    assert wanted(segments=(listed | {"included": ["ada"]}, keyless)).run(writer).updated == 1
    assert build_segment_document(segment_state(writer, "staff"))["seed"] != exported[0]["seed"]
    assert writer.reader.verify() == []


def test_an_import_hashes_lists_anew_that_were_hashed_with_the_public_seed(writer: Writer) -> None:
    listed = {"key": "staff", "included": ["ada"]}
    create_as_earlier(writer, listed)
    create_as_earlier(writer, {"key": "all", "when": {}})
    legacy = build_segment_document(segment_state(writer, "staff"))
    assert wanted(segments=(legacy,)).preview(writer).unchanged == 1
    found = wanted(segments=(listed, {"key": "all", "when": {}}))
    assert found.run(writer) == ImportResult(created=0, updated=1, unchanged=1, revisions=(3,))
    assert "seed" in build_segment_document(segment_state(writer, "staff"))
    assert found.run(writer).unchanged == 2


def test_updates_lead_rollouts_on_and_leave_pauses_as_they_are(writer: Writer) -> None:
    split = {"rollout": {"weights": {"on": 10, "off": 90}}}
    writer.create(flag("a.split", fallthrough=split))
    first = policy(writer, "a.split")["fallthrough"]["rollout"]
    writer.set_rollout("a.split", 30)
    writer.pause("a.split")
    found = wanted(flag("a.split", fallthrough={"rollout": {"weights": {"on": 30, "off": 70}}}))
    assert found.run(writer) == ImportResult(created=0, updated=0, unchanged=1)
    wanted(flag("a.split", fallthrough=split, owner="shop")).run(writer)
    after = policy(writer, "a.split")
    assert after["state"] == "paused"
    assert after["fallthrough"]["rollout"] == first


def test_a_flag_comes_before_those_that_rest_on_it(writer: Writer) -> None:
    keys = [f"a.f{i}" for i in range(12)]
    documents = [flag(keys[0])]
    documents += [needing(key, keys[i]) for i, key in enumerate(keys[1:])]
    random.Random(7).shuffle(documents)
    assert len(wanted(*documents).run(writer).revisions) == 3
    assert writer.reader.verify() == []


def test_a_segment_comes_before_the_flags_that_refer_to_it(writer: Writer) -> None:
    rule = {"name": "staff", "when": {"$segment": "staff"}, "serve": "on"}
    segment = {"key": "staff", "included": ["ada"]}
    found = wanted(flag("a.one", rules=[rule]), segments=(segment,))
    assert found.run(writer).revisions == (1, 2)
    with pytest.raises(BrokenReferenceError, match="refer to the segment 'beta'"):
        wanted(flag("a.first"), flag("a.two", rules=[rule | {"when": {"$segment": "beta"}}])).run(
            writer
        )


@pytest.mark.parametrize(
    ("documents", "problem"),
    [
        ([needing("a.one", "a.none")], "'a.none' does not exist"),
        ([needing("a.one", "a.two"), needing("a.two", "a.one")], "form a cycle"),
        ([needing("a.there", "a.new"), needing("a.new", "b.there")], "form a cycle"),
        (
            [
                flag(
                    "a.there",
                    variants={"yes": True, "no": False},
                    off="no",
                    fallthrough={"serve": "no"},
                )
            ],
            "is no variant",
        ),
        (
            [
                flag(
                    "a.split",
                    fallthrough={"rollout": {"weights": {"a": 0, "b": 90, "c": 10}}},
                    variants={"a": "a", "b": "b", "c": "c"},
                    off="c",
                )
            ],
            "from one treated variant",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    documents: list[Document], problem: str, writer: Writer, direct: Database[Document]
) -> None:
    writer.create(flag("a.there"))
    writer.create(needing("b.there", "a.there"))
    writer.create(
        flag(
            "a.split",
            variants={"a": "a", "b": "b", "c": "c"},
            off="c",
            fallthrough={"rollout": {"weights": {"a": 90, "b": 0, "c": 10}}},
        )
    )
    before = direct.audit.count_documents({})
    found = wanted(*(flag(f"c.f{i}") for i in range(5)), *documents)
    with pytest.raises(InvalidDocumentError, match=problem):
        found.run(writer)
    assert writer.store.read_tip().revision == 3
    assert direct.audit.count_documents({}) == before


@pytest.mark.parametrize("again", [flag("a.one"), {"key": "a.one", "region": "*", **flag("a.one")}])
def test_what_is_there_twice_is_refused(again: Document) -> None:
    found = wanted(flag("a.one"))
    found.add(flag("a.one", region="eu"))
    with pytest.raises(InvalidDocumentError, match="imported twice"):
        found.add(again)


@pytest.mark.parametrize("step", ["add_request", "add_pages", "compare_and_set", "project"])
def test_an_import_that_is_killed_is_resumed_and_ends_in_the_same_state(
    step: str, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [flag(f"a.f{i}", owner="shop") for i in range(11)]
    calls = 0
    original = getattr(writer.store, step)

    def killed(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return original(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(writer.store, step, killed)
        with pytest.raises(KeyboardInterrupt):
            wanted(*documents).run(writer)
    done = len(policies(writer))
    assert done in {4, 8}
    made = wanted(*documents).run(writer)
    assert made.created == 11 - done
    assert {key for _, key in policies(writer)} == {f"a.f{i}" for i in range(11)}
    assert {state(writer, f"a.f{i}").version for i in range(11)} == {1}
    assert writer.reader.verify() == []


def test_the_audit_has_what_was_asked_without_the_documents(
    writer: Writer, direct: Database[Document]
) -> None:
    wanted(flag("a.one"), flag("a.one", region="eu")).run(writer, reason="moved")
    (request,) = direct.audit.find()
    (asked,) = request["operations"]
    assert asked["flags"] == ["a.one", "a.one in eu"]
    assert asked["digest"]
    assert "policy" not in asked


def test_what_others_changed_since_it_was_prepared_is_stored_as_it_comes_to_be(
    writer: Writer, mongo_uri: str, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "UNPAGED_POLICIES_MAX", 3)

    def change_others(step: ImportProgress) -> None:
        if step.done == 4:
            # By now the second batch is prepared, or about to be.
            with Writer(mongo_uri, "production", actor="eve", database=database) as other:
                other.create(flag("a.f5", owner="eve"))
                other.create(flag("a.f6"))
                other.archive("a.f6")
                other.delete("a.f6")

    made = wanted(*(flag(f"a.f{i}") for i in range(10))).run(writer, progress=change_others)
    assert made.revisions == (1, 6, 7)
    assert "owner" not in policy(writer, "a.f5")
    assert [state(writer, f"a.f{i}").version for i in (4, 5, 6, 7)] == [1, 2, 3, 1]
    assert writer.reader.verify() == []


def test_a_limit_on_changes_is_waited_for(writer: Writer) -> None:
    with writer.change() as change:
        change.set_limit("actor", capacity=1, rate=20)
    made = wanted(*(flag(f"a.f{i}") for i in range(10))).run(writer)
    assert made.revisions == (2, 3, 4)


@pytest.mark.parametrize(
    ("between", "plans"),
    [
        (lambda writer: writer.pause("b.other"), 1),
        (lambda writer: writer.pause("b.needed"), 2),
        (lambda writer: writer.create(flag("a.f3")), 2),
        (lambda writer: writer.create(needing("b.more", "b.other")), 2),
        (lambda writer: writer.create_segment({"key": "staff"}), 2),
    ],
    ids=["another", "what it rests on", "itself", "prerequisites", "a segment"],
)
def test_a_batch_that_lost_a_race_is_planned_again_only_if_it_has_to_be(
    between: Callable[[Writer], object],
    plans: int,
    writer: Writer,
    mongo_uri: str,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for key in ("b.other", "b.needed"):
        writer.create(flag(key))
    planned: list[object] = []

    def plan_and_note(*arguments: Any) -> Any:
        planned.append(arguments)
        return planning.plan(*arguments)

    def lost_at_first(*arguments: Any) -> bool:
        monkeypatch.setattr(writer.store, "compare_and_set", compare_and_set)
        with Writer(mongo_uri, "production", actor="eve", database=database) as other:
            between(other)
        return compare_and_set(*arguments)

    compare_and_set = writer.store.compare_and_set
    monkeypatch.setattr(writer.store, "compare_and_set", lost_at_first)
    monkeypatch.setattr("flagkit.writer.commit.plan", plan_and_note)
    wanted(needing("a.f3", "b.needed"), flag("a.f4")).run(writer)
    # The other writer has plans, too.
    assert len(planned) == plans + 1
    assert policy(writer, "a.f3")["prerequisites"]
    assert writer.reader.verify() == []


AT_ONCE = [flag(f"a.f{i}") for i in range(6)]
"""More than one batch."""


@pytest.fixture
def limited(writer: Writer, mongo_uri: str, database: str) -> Iterator[Writer]:
    """A writer that may not do everything, with a guard; the other one may."""
    with writer.change() as change:
        change.grant("tester", "admin")
        change.grant("ada", "releaser", ["a."])
        change.create(flag("a.live", fallthrough={"rollout": 1}))
    guards = [LargestStep(10)]
    with Writer(mongo_uri, "production", actor="ada", database=database, guards=guards) as limited:
        yield limited


REFUSED: dict[str, tuple[Document, tuple[Document, ...], type[Exception], str]] = {
    "a role": (flag("b.other"), (), AccessDeniedError, "may not release b.other"),
    "a role on a segment": (
        flag("a.more"),
        ({"key": "b.staff", "included": ["ada"]},),
        AccessDeniedError,
        "may not edit b.staff",
    ),
    "a guard": (flag("a.live"), (), GuardError, "serves another value to 99 %"),
    "a guard on what was deleted": (flag("a.gone"), (), GuardError, "serves another value to 99 %"),
    "hashed keys of another segment": (
        flag("a.more"),
        ({"key": "a.staff", "included": {"count": 1, "parts": ["0" * 64]}},),
        InvalidDocumentError,
        "List the keys themselves",
    ),
    "a size": (
        # In BSON, each element of a list has its place for a name.
        flag("a.large", variants={"on": [0] * 600_000, "off": []}),
        (),
        InvalidDocumentError,
        "the limit is 4,194,304",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_all_is_checked_before_the_first_batch_and_in_a_dry_run(
    case: str, writer: Writer, limited: Writer, direct: Database[Document]
) -> None:
    document, segments, kind, problem = REFUSED[case]
    writer.create(flag("a.gone", fallthrough={"rollout": 1}))
    writer.archive("a.gone")
    writer.delete("a.gone")
    found = wanted(*AT_ONCE, document, segments=segments)
    names = direct.list_collection_names()
    before = {name: [*direct[name].find()] for name in names}
    for ask in (found.preview, found.run):
        with pytest.raises(kind, match=problem):
            ask(limited)
    assert {name: [*direct[name].find()] for name in names} == before


def test_an_import_draws_no_keys_again_unless_that_is_meant(writer: Writer) -> None:
    weights = {"a": 50, "b": 50}
    document = flag(
        variants={"a": "a", "b": "b", "c": "c"},
        off="c",
        fallthrough={"rollout": {"weights": weights}},
    )
    writer.create(document)
    drawn = {**document, "fallthrough": {"rollout": {"weights": weights, "salt": "wave"}}}
    found = wanted(*AT_ONCE, drawn)
    for ask in (found.preview, found.run):
        with pytest.raises(InvalidDocumentError, match="draws the keys again: 50 %"):
            ask(writer)
    assert writer.store.read_tip().revision == 1
    meant = Import("production", reassign=True)
    meant.add(drawn)
    assert meant.run(writer).updated == 1


def test_a_dry_run_shows_the_first_differences(writer: Writer) -> None:
    writer.create(flag("a.live", fallthrough={"rollout": 1}))
    looked = wanted(flag("a.live"), flag("a.new")).preview(writer)
    assert looked.differences == (
        "a.live: fallthrough: on 1 %, off 99 % -> serves on",
        "a.new: created",
        "a.new: fallthrough: serves on",
    )


def test_batches_of_other_segments_are_other_requests(writer: Writer) -> None:
    first = wanted(segments=({"key": "staff", "included": ["ada"]},))
    second = wanted(segments=({"key": "staff", "included": ["bob"]},))
    keys = [found._plan(writer, "", None).digest for found in (first, second, first)]
    assert keys[0] != keys[1]
    assert keys[0] == keys[2]
