"""Preview: what a change would do, with all checks made and nothing written."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database

from flagkit.errors import (
    AccessDeniedError,
    BrokenReferenceError,
    FlagkitError,
    FlagNotFoundError,
    GuardError,
    InvalidDocumentError,
    RateLimitedError,
    RequestConflictError,
    VersionConflictError,
)
from flagkit.writer import Draft, Preview, Required, Writer
from tests.writer.test_writer import flag

pytestmark = pytest.mark.mongo


@pytest.fixture
def stored(mongo_uri: str, database: str) -> Iterator[Database[dict[str, Any]]]:
    with MongoClient[dict[str, Any]](mongo_uri) as client:
        yield client[database]


def all_documents(stored: Database[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    return {name: [*stored[name].find()] for name in stored.list_collection_names()}


def previewed(draft: Draft) -> Preview:
    assert draft.preview is not None
    assert draft.commit is None
    return draft.preview


def test_it_says_what_a_commit_then_does_and_upon_which_revision(
    writer: Writer, stored: Database[dict[str, Any]]
) -> None:
    writer.create(flag(fallthrough={"rollout": {"weights": {"on": 10, "off": 90}}}))
    before = all_documents(stored)

    def ask(draft: Draft) -> None:
        draft.set_rollout("shop.search", 50)
        draft.pause("shop.search")
        draft.create(flag("shop.theme"))
        draft.create_segment({"key": "beta", "included": ["u-1", "u-2"]})

    with writer.preview(reason="a look") as draft:
        ask(draft)
    found = previewed(draft)
    assert all_documents(stored) == before
    assert (found.base_revision, found.committed_as) == (1, None)
    assert found.differences == (
        "shop.search: state: active -> paused",
        "shop.search: fallthrough: on 10 -> 50 %, off 90 -> 50 %",
        "shop.theme: created",
        "shop.theme: fallthrough: serves on",
        "segment beta: created",
        "segment beta: included: 2 keys",
    )
    with writer.change() as change:
        ask(change)
    [entry] = writer.reader.entries(found.base_revision)
    assert entry.differences == found.differences
    assert {item.id for item in found.changes} == {
        ("*", "shop.search"),
        ("*", "shop.theme"),
        ("@segments", "beta"),
    }


def test_what_changes_nothing_is_said_to_do_nothing(writer: Writer) -> None:
    writer.create(flag())
    with writer.preview() as draft:
        draft.resume("shop.search")
    assert previewed(draft) == Preview(1, ())


REFUSED: dict[str, tuple[type[FlagkitError], Callable[[Draft], None]]] = {
    "what is not there": (FlagNotFoundError, lambda draft: draft.pause("shop.theme")),
    "another version": (
        VersionConflictError,
        lambda draft: draft.archive("shop.search", expected_version=7),
    ),
    "a broken reference": (
        BrokenReferenceError,
        lambda draft: draft.create(
            flag("shop.sale", prerequisites=[{"flag": "shop.none", "variants": ["on"]}])
        ),
    ),
    "no document": (InvalidDocumentError, lambda draft: draft.create({"key": "shop.sale"})),
}


@pytest.mark.parametrize(("error", "ask"), REFUSED.values(), ids=REFUSED.keys())
def test_what_a_commit_refuses_it_refuses(
    writer: Writer,
    stored: Database[dict[str, Any]],
    error: type[FlagkitError],
    ask: Callable[[Draft], None],
) -> None:
    writer.create(flag())
    before = all_documents(stored)
    messages: list[str] = []
    with pytest.raises(error) as caught, writer.preview() as draft:
        ask(draft)
    messages.append(str(caught.value))
    assert all_documents(stored) == before
    with pytest.raises(error) as caught, writer.change() as draft:
        ask(draft)
    assert [*messages, str(caught.value)] == messages * 2


def test_what_mongodb_cannot_store_is_refused(writer: Writer) -> None:
    with (
        pytest.raises(InvalidDocumentError, match="cannot be stored"),
        writer.preview(reason="\ud800") as draft,
    ):
        draft.create(flag())
    assert draft.preview is None


def test_access_is_checked_and_a_denial_is_not_logged(
    writer: Writer, stored: Database[dict[str, Any]]
) -> None:
    writer.create(flag())
    with writer.change() as change:
        change.grant("dana", "admin")
        change.grant("ada", "editor")
    before = all_documents(stored)
    with pytest.raises(AccessDeniedError), writer.preview(actor="ada") as draft:
        draft.archive("shop.search")
    assert writer.reader.denials() == []
    assert all_documents(stored) == before
    with writer.preview(actor="ada") as draft:
        draft.pause("shop.search")
    assert previewed(draft).differences == ("shop.search: state: active -> paused",)


def test_guards_are_asked_unless_glass_is_broken(
    writer: Writer, mongo_uri: str, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    writer.create(flag())
    with Writer(
        mongo_uri, "production", actor="dana", database=database, guards=[Required("owner")]
    ) as guarded:
        with pytest.raises(GuardError), guarded.preview() as draft:
            draft.archive("shop.search")
        with guarded.preview() as draft:
            draft.bypass_guards("incident 7")
            draft.archive("shop.search")
    assert previewed(draft).differences == ("shop.search: state: active -> archived",)
    assert caplog.records == []


def test_it_takes_no_token_and_needs_one(writer: Writer) -> None:
    writer.create(flag())
    with writer.change() as change:
        change.set_limit("actor", capacity=1, rate=0.001)
    for _ in range(3):
        with writer.preview() as draft:
            draft.archive("shop.search")
        assert previewed(draft).base_revision == 2
    writer.archive("shop.search")
    with pytest.raises(RateLimitedError), writer.preview() as draft:
        draft.delete("shop.search")


def test_a_request_that_was_made_does_nothing_again_and_its_key_is_taken(writer: Writer) -> None:
    writer.create(flag())
    first = writer.archive("shop.search", idempotency_key="deploy-7")
    writer.restore("shop.search")
    with writer.preview(idempotency_key="deploy-7") as draft:
        draft.archive("shop.search")
    assert previewed(draft) == Preview(3, (), first.revision)
    with pytest.raises(RequestConflictError), writer.preview(idempotency_key="deploy-7") as draft:
        draft.restore("shop.search")


def test_a_block_that_ends_in_an_error_has_no_preview(writer: Writer) -> None:
    with pytest.raises(KeyError), writer.preview() as draft:
        raise KeyError
    assert draft.preview is None


def notes_of(writer: Writer, ask: Callable[[Draft], object]) -> list[str]:
    with writer.preview() as draft:
        ask(draft)
    return [*previewed(draft).notes]


def test_it_tells_how_a_flag_was_edited_since_it_was_last_active(writer: Writer) -> None:
    writer.create(flag(fallthrough={"rollout": 10}))
    writer.pause("shop.search")
    assert notes_of(writer, lambda draft: draft.resume("shop.search")) == []
    writer.set_rollout("shop.search", 50)
    writer.update(flag(owner="ada", fallthrough={"rollout": 50}))
    writer.archive("shop.search")
    writer.restore("shop.search")
    steps = "fallthrough: on 10 -> 50 %, off 90 -> 50 %"
    edited = f"shop.search was edited since it was last active: {steps}"
    assert notes_of(writer, lambda draft: draft.resume("shop.search")) == [edited]
    assert notes_of(writer, lambda draft: draft.rollback("shop.search", to=1)) == [edited]
    assert notes_of(writer, lambda draft: draft.update(flag(owner="bob"))) == []
    writer.resume("shop.search")
    writer.pause("shop.search")
    assert notes_of(writer, lambda draft: draft.resume("shop.search")) == []


def test_a_flag_that_was_never_active_has_no_such_note(writer: Writer) -> None:
    writer.create(flag(state="paused"))
    writer.update(flag(fallthrough={"serve": "off"}))
    assert notes_of(writer, lambda draft: draft.resume("shop.search")) == []


def test_it_tells_which_flags_open_because_another_one_is_paused(writer: Writer) -> None:
    needs_off = [{"flag": "shop.search", "variants": ["off"]}]
    with writer.change() as change:
        change.create(flag())
        change.create(flag("shop.fallback", prerequisites=needs_off))
        change.create(flag("shop.local", region="eu", prerequisites=needs_off))
        change.create(flag("shop.idle", state="paused", prerequisites=needs_off))
        change.create(
            flag("shop.beta", prerequisites=[{"flag": "shop.search", "variants": ["on"]}])
        )
    opened = [
        f"{key} depends on shop.search serving 'off': every context meets that while shop.search is"
        for key in ("shop.fallback", "shop.local")
    ]
    paused = notes_of(writer, lambda draft: draft.pause("shop.search"))
    assert paused == [f"{line} paused" for line in opened]
    archived = notes_of(writer, lambda draft: draft.archive("shop.search"))
    assert archived == [f"{line} archived" for line in opened]

    def both(draft: Draft) -> None:
        draft.pause("shop.search")
        draft.pause("shop.fallback")

    assert notes_of(writer, both) == [f"{opened[1]} paused"]
    writer.pause("shop.search")
    assert notes_of(writer, lambda draft: draft.archive("shop.search")) == []
