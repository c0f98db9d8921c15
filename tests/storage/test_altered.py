"""Altered documents: what `verify` finds of edits past the writer, and that nothing breaks on them.

Every field of every kind of stored document is altered, removed, and swapped with the same field of
another document. A field that is new fails here until somebody has judged it: `verify` finds the
edits, or UNFOUND has the field, and docs/writing.md says so.
"""

import copy
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pymongo import DeleteOne, MongoClient, ReplaceOne
from pymongo.database import Database

from flagkit._core.secrets import Encryption
from flagkit._core.source import Heartbeat
from flagkit._core.storage import pages
from flagkit._core.storage.client_registry import build_client_filter, build_heartbeat_update
from flagkit._core.storage.layout import KEYS
from flagkit._core.storage.validation import VALIDATORS
from flagkit.errors import AccessDeniedError, FlagkitError
from flagkit.writer import (
    Retention,
    Writer,
    erase_actor,
)
from tests.writer.test_writer import flag

pytestmark = pytest.mark.mongo

Document = dict[str, Any]
PAGE = Path(__file__).parents[2] / "docs" / "writing.md"
BOTH = ("production", "pruned")

UNFOUND = (
    "heads.buckets",
    "heads.unprojected",
    "flags.format",
    "members.unreferred",
    "pages.unreferred",
    "pages.projected",
    "audit.sent",
    "audit.reason",
    "audit (cut).sent",
    "audit (cut).reason",
    "audit (cut)._id",
    "audit (cut).tip",
    "audit (erased)",
    "denials",
    "proposals.seal",
    "pending._id",
    "pending.since",
    "pending.place",
    "pending.tries",
    "pending.not_before",
    "pending.trouble",
    "pending.refused",
    "checkpoints._id",
    "clients",
    "bucket_keys",
    "erasures",
    "keys",
)
"""Fields, or whole kinds, of whose edits `verify` does not find all. The page lists them, too."""


class Place(NamedTuple):
    """A field of a document: its collection, its path, and the path in general."""

    collection: str
    path: tuple[str | int, ...]
    name: str


@pytest.fixture(scope="module")
def database_name(mongo_uri: str) -> Iterator[str]:
    name = f"test-{uuid.uuid4().hex}"
    yield name
    with MongoClient[Document](mongo_uri) as mongo:
        mongo.drop_database(name)


@pytest.fixture(scope="module")
def held(mongo_uri: str, database_name: str) -> Iterator[Database[Document]]:
    """A database with every kind of document, whose validators are lifted."""
    with MongoClient[Document](mongo_uri, tz_aware=True) as direct:
        held = direct[database_name]
        _fill_production(mongo_uri, held)
        _fill_pruned(mongo_uri, held)
        for collection in held.list_collection_names():
            held.command("collMod", collection, validationLevel="off")
        yield held


@pytest.fixture(scope="module")
def writers(mongo_uri: str, held: Database[Document]) -> Iterator[list[Writer]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(Writer(mongo_uri, name, actor="dana", database=held.name))
            for name in BOTH
        ]


def rolled(key: str, **fields: Any) -> Document:
    """Return a flag whose fallthrough is a rollout."""
    return flag(key, fallthrough={"rollout": 10}, **fields)


def _fill_production(uri: str, held: Database[Document]) -> None:
    key = Encryption(kms_providers={"local": {"key": b"k" * 96}})
    with Writer(uri, "production", actor="dana", database=held.name, encryption=key) as writer:
        writer.create_environment()
        writer.create_data_key()
        writer.create_segment({"key": "staff", "included": ["ada", "bob"], "by": "id"})
        writer.create_segment({"key": "guests", "included": ["eve"], "by": "id"})
        ruled = {"name": "staff", "when": {"$segment": "staff"}, "serve": "on"}
        writer.create(rolled("a.one", rules=[ruled]), reason="first")
        writer.create(rolled("a.two", prerequisites=[{"flag": "a.one", "variants": ["on"]}]))
        writer.create(rolled("a.two", region="eu"))
        writer.set_rollout("a.two", 7, actor="bob", reason="bob's words")
        writer.create(rolled("a.old"))
        writer.archive("a.old")
        writer.delete("a.old")
        with writer.change() as change:
            change.set_limit("actor", capacity=500, rate=0.01)
            change.set_limit("environment", capacity=900, rate=0.01)
            change.grant("dana", "admin")
            change.grant("ada", "releaser")
        with writer.change() as change:
            change.bypass_guards("incident 7")
            change.set_rollout("a.two", 9)
        for name in ("a.one", "a.two"):
            with pytest.raises(AccessDeniedError):
                writer.pause(name, actor="mallory", reason="for fun")
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(pages, "UNPAGED_POLICIES_MAX", 0)
            for name in ("a.paged", "a.more"):
                with writer.change() as change:
                    change.create(rolled(name))
                    change.create(rolled(f"{name}.2"))
            # A page of a change that was never committed.
            (first, *_) = writer.store.iter_changes()
            writer.store.add_pages(pages.split_pages(first.policies))
        writer.prune(Retention(remains_days=1))
        writer.reader.write_checkpoint()
        writer.pause("a.one")
        writer.reader.write_checkpoint()
        _propose_and_ask(writer, held)
    erase_actor("bob", uri=uri, database=held.name)
    _register(held)


def _propose_and_ask(writer: Writer, held: Database[Document]) -> None:
    """Make proposals, and ask for changes in transactions."""
    for name in ("a.three", "a.four", "a.five"):
        with writer.proposals.propose(reason=f"please, {name}") as change:
            change.create(rolled(name))
        proposal = change.proposal or ""
        writer.proposals.approve(proposal, actor="ada", reason="seen it")
        if name == "a.five":
            writer.proposals.reject(proposal, actor="ada")
        else:
            writer.proposals.apply(proposal, actor="ada")
    with writer.proposals.propose(reason="it can wait") as change:
        change.pause("a.three")
    for name, actor in (("a.one", "dana"), ("a.two", "mallory"), ("a.three", "mallory")):
        with held.client.start_session() as session, session.start_transaction():
            writer.in_transaction(session).set_rollout(name, 3, actor=actor)
    writer.pending.sweep()
    with held.client.start_session() as session, session.start_transaction():
        writer.in_transaction(session).pause("a.two")
    held.pending.update_many({}, {"$set": {"not_before": datetime(2031, 1, 1, tzinfo=UTC)}})
    writer.update_segment({"key": "guests", "included": ["eve", "joe"], "by": "id"})
    with pytest.raises(AccessDeniedError):
        writer.set_rollout("a.one", 5, actor="bob", reason="more of bob's words")


def _register(held: Database[Document]) -> None:
    """Write heartbeats."""
    for name in ("one", "another"):
        told = Heartbeat(
            instance=name,
            service=f"shop {name}",
            host=f"host {name}",
            pid=len(name),
            environment="production",
            region=name,
            epoch=name,
            revision=len(name),
            staleness=0.5 * len(name),
        )
        held.clients.update_one(
            build_client_filter(told), build_heartbeat_update(told), upsert=True
        )
    # Else they would be gone before they are altered.
    held.clients.update_many({}, {"$set": {"until": datetime(2031, 1, 1, tzinfo=UTC)}})


def _fill_pruned(uri: str, held: Database[Document]) -> None:
    with Writer(uri, "pruned", actor="dana", database=held.name) as writer:
        writer.create_environment()
        writer.create_segment({"key": "staff", "included": ["ada"]})
        writer.create_segment({"key": "guests", "included": ["eve"]})
        for name in ("b.one", "b.two", "b.gone", "b.lost"):
            writer.create(rolled(name))
        for name in ("b.gone", "b.lost"):
            writer.archive(name)
            writer.delete(name)
        writer.delete_segment("guests")
        with writer.change() as change:
            change.grant("dana", "admin")
        last = writer.pause("b.one")
        made = writer.prune(
            Retention(ledger_days=1, remains_days=1),
            now=last.time + timedelta(days=1, seconds=1),
        )
        assert any(part.what == "ledger" and part.documents for part in made)
        writer.prune(Retention(remains_days=1))
        with pytest.MonkeyPatch.context() as patched:
            # The head says so of the newest change, and goes on saying so.
            patched.setattr(pages, "UNPAGED_POLICIES_MAX", 0)
            writer.update(rolled("b.two", owner="search"))
        # Members that nothing refers to any more have a mark.
        assert held.members.count_documents({"unreferred": {"$exists": True}})


# What is done to documents


def places_in(collection: str, part: Any, path: tuple[str | int, ...] = ()) -> Iterator[Place]:
    """Yield all places in a document, with their names in general."""
    fields: list[tuple[str | int, Any]] = []
    if isinstance(part, dict):
        fields = [*part.items()]
    elif isinstance(part, list):
        # One of a list is as good as the others.
        fields = [(0, part[0])] if part else []
    for name, value in fields:
        below = (*path, name)
        yield Place(collection, below, name_of(collection, below))
        yield from places_in(collection, value, below)


def name_of(collection: str, path: tuple[str | int, ...]) -> str:
    names = ["[]" if isinstance(name, int) else name for name in path]
    for i, name in enumerate(names[:-1]):
        if name in ("digests", "buckets"):
            names[i + 1 :] = ["*"]
            break
    return ".".join([collection, *names])


def value_at(document: Any, path: tuple[str | int, ...]) -> Any:
    for name in path:
        try:
            document = document[name]
        except (KeyError, IndexError, TypeError):
            return None
    return document


def edited(document: Document, path: tuple[str | int, ...], *value: object) -> Document:
    """Return a document with another value at a place, or without it."""
    found = copy.deepcopy(document)
    *way, name = path
    part: Any = found
    for step in way:
        part = part[step]
    if value:
        part[name] = copy.deepcopy(value[0])
    else:
        del part[name]
    return found


def altered(value: Any) -> Any:  # noqa: PLR0911 - one for each type
    """Return another value of the same type, of the same form where that is easy."""
    match value:
        case bool():
            return not value
        case int():
            return type(value)(value + 1_000)
        case float():
            return value + 1
        case str() if re.fullmatch("[0-9a-f]{8,}", value):
            return value[:-1] + ("0" if value[-1] != "0" else "1")
        case str():
            return f"{value}x"
        case bytes():
            return type(value)(value[:-1] + bytes([value[-1] ^ 1])) if value else b"x"
        case datetime():
            return value + timedelta(seconds=1)
        case list():
            return value[:-1] if value else [{"x": 1}]
        case dict():
            return {} if value else {"x": 1}
        case _:
            return 7


class Edit(NamedTuple):
    """What is done: a field of which kind of document, how, and the documents before and after."""

    name: str
    how: str
    before: list[Document]
    after: list[Document]


def edits_of(collection: str, documents: list[Document]) -> Iterator[Edit]:
    """Yield the edits of all fields that are stored in a collection."""
    done: dict[tuple[str, str], int] = {}
    for document in documents:
        kind = kind_of(collection, document)
        for place in places_in(collection, document):
            name = place.name if kind == collection else f"{kind}{place.name[len(collection) :]}"
            # One in each environment is enough, and one of what a policy says.
            deep = {"policy", "operations"} & {*place.path}
            at = (name, "" if deep else environment_of(document))
            if done.setdefault(at, 0) >= 1:
                continue
            done[at] += 1
            value = value_at(document, place.path)
            yield Edit(name, "altered", [document], [edited(document, place.path, altered(value))])
            if place.path != ("_id",):
                yield Edit(name, "removed", [document], [edited(document, place.path)])
            for other in documents:
                theirs = value_at(other, place.path)
                swappable = theirs is not None and theirs != value and other is not document
                if swappable and kind_of(collection, other) == kind and place.path[0] != "_id":
                    yield Edit(
                        name,
                        "swapped",
                        [document, other],
                        [
                            edited(document, place.path, theirs),
                            edited(other, place.path, value),
                        ],
                    )
                    break


def kind_of(collection: str, document: Document) -> str:
    """Return the kind of a document: its collection, but for two kinds of requests."""
    if collection == "audit" and document.get("digest") == "erased":
        return "audit (erased)"
    return "audit (cut)" if collection == "audit" and "tip" in document else collection


def environment_of(document: Document) -> str:
    identity = document["_id"]
    return str(identity.get("environment")) if isinstance(identity, dict) else str(identity)


def put(
    held: Database[Document], collection: str, gone: list[Document], new: list[Document]
) -> None:
    """Put documents in the place of others."""
    writes: list[DeleteOne | ReplaceOne[Document]] = [
        DeleteOne({"_id": document["_id"]}) for document in gone if "_id" in document
    ]
    writes += [
        ReplaceOne({"_id": document["_id"]}, document, upsert=True)
        for document in new
        if "_id" in document
    ]
    held[collection].bulk_write(writes)


def is_listed(name: str) -> bool:
    return any(is_below(name, listed) for listed in UNFOUND)


def is_below(name: str, listed: str) -> bool:
    """Tell whether a field is one that is listed, or a part of it."""
    return name == listed or name.startswith(f"{listed}.")


CALLS: dict[str, Callable[[Writer], object]] = {
    "entries": lambda writer: [*writer.reader.entries()],
    "grants": lambda writer: writer.reader.grants(),
    "limits": lambda writer: writer.reader.limits(),
    "denials": lambda writer: writer.reader.denials(),
    "stale": lambda writer: writer.reader.stale_flags(1),
    "pending": lambda writer: writer.reader.pending(),
    "proposals": lambda writer: writer.reader.proposals(),
    "preview": lambda writer: previewed(writer, "a.two"),
}
NOT_READ = ("checkpoints", "slices", "clients", "erasures", "keys")
"""Collections that none of these calls reads."""


def previewed(writer: Writer, key: str) -> None:
    """Make all checks of changes that touch much: what is refused is told by a FlagkitError."""
    with writer.preview() as change:
        change.set_rollout(key, 11)
        change.change_members("staff", include=["joe"])
        change.grant("ada", "editor")


def problems_of(writers: list[Writer]) -> list[str]:
    """Return what `verify` says of all environments; an environment that is gone is a problem."""
    found: list[str] = []
    for writer in writers:
        try:
            found += writer.reader.verify()
        except FlagkitError as error:
            found.append(str(error))
    return found


def test_the_environments_have_every_kind_of_document(
    held: Database[Document], writers: list[Writer]
) -> None:
    assert {name for name in (*VALIDATORS, KEYS) if not held[name].find_one()} == set()
    assert problems_of(writers) == []


@pytest.mark.slow
@pytest.mark.parametrize("collection", [*VALIDATORS, KEYS])
def test_an_edit_of_any_field_is_found_or_listed_and_breaks_nothing(
    collection: str, held: Database[Document], writers: list[Writer]
) -> None:
    wrong: list[str] = []
    unfound: set[str] = set()
    for edit in edits_of(collection, [*held[collection].find()]):
        touched = {environment_of(document) for document in edit.before}
        mine = [writer for writer in writers if writer.environment in touched] or writers
        put(held, collection, edit.before, edit.after)
        try:
            if not problems_of(mine):
                unfound.add(edit.name)
                if not is_listed(edit.name):
                    wrong.append(f"{edit.name} {edit.how}: not found")
            for name, call in CALLS.items():
                if edit.how != "swapped" and collection not in NOT_READ:
                    wrong += errors_of(call, mine[0], f"{edit.name} {edit.how}: {name}")
        finally:
            put(held, collection, edit.after, edit.before)
    assert "\n".join(wrong) == ""
    assert problems_of(writers) == []
    for listed in UNFOUND:
        if re.split(r"[. ]", listed)[0] == collection:
            assert any(is_below(name, listed) for name in unfound), listed


def errors_of(call: Callable[[Writer], object], writer: Writer, name: str) -> list[str]:
    """Return what a call raises that is no FlagkitError."""
    try:
        call(writer)
    except FlagkitError:
        return []
    except Exception as error:  # noqa: BLE001 - that there is none is what is tested
        return [f"{name} raised {error!r}"]
    return []


def test_the_page_on_the_ledger_lists_what_verify_cannot_find() -> None:
    text = PAGE.read_text()
    listed = text[text.index("Not found:\n\n") :].split("\n\n")[1].splitlines()
    cells = [line.partition(": ")[0] for line in listed]
    found = [name for cell in cells for name in re.findall("`([^`]+)`", cell)]
    assert sorted(found) == sorted(UNFOUND)
