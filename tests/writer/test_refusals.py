"""What a writer refuses: over eight hundred inputs, which leave the database as it was."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import bson
import pytest
from pymongo import MongoClient
from pymongo.database import Database

from flagkit import FlagkitError
from flagkit.errors import (
    FlagExistsError,
    FlagNotFoundError,
    InvalidArgumentError,
    InvalidDocumentError,
    RequestConflictError,
    RevisionNotFoundError,
    SegmentNotFoundError,
    VersionConflictError,
)
from flagkit.writer import Writer
from tests.model.test_flags import BAD
from tests.model.test_segments import BAD as BAD_SEGMENTS

pytestmark = pytest.mark.mongo

Asks: TypeAlias = Callable[[Writer], object]
Database_: TypeAlias = Database[dict[str, Any]]


def flag(key: str = "shop.new", **more: Any) -> dict[str, Any]:
    return {
        "key": key,
        "variants": {"on": True, "off": False},
        "off": "off",
        "fallthrough": {"rollout": 10},
        **more,
    }


def abc(**weights: float) -> dict[str, Any]:
    return {
        "key": "shop.abc",
        "variants": {"a": "A", "b": "B", "c": "C"},
        "off": "a",
        "fallthrough": {"rollout": {"weights": weights}},
    }


def needing(key: str, *needed: str, variants: tuple[str, ...] = ("on",)) -> dict[str, Any]:
    return flag(key, prerequisites=[{"flag": name, "variants": [*variants]} for name in needed])


def meant_for(segment: str, key: str = "shop.new") -> dict[str, Any]:
    return flag(key, rules=[{"name": "r", "when": {"$segment": segment}, "serve": "on"}])


def stock(writer: Writer) -> None:
    """Make what the refused inputs are about."""
    with writer.change(reason="stock") as change:
        change.create(flag("shop.base"))
        change.create(needing("shop.search", "shop.base"))
        change.create(flag("shop.fixed", fallthrough={"serve": "on"}))
        change.create(flag("shop.old"))
        change.create(flag("shop.local", region="eu-west-1"))
        change.create(abc(b=60, c=40))
        change.create_segment({"key": "shop.staff", "included": ["ada"]})
        change.create(meant_for("shop.staff", "shop.beta"))
    writer.archive("shop.old")
    writer.set_rollout("shop.base", 20, idempotency_key="the first")
    writer.create(flag("shop.gone"))
    writer.archive("shop.gone")
    writer.delete("shop.gone")


@pytest.fixture(scope="module")
def stocked(mongo_uri: str) -> Iterator[tuple[Writer, Database_]]:
    database = "test-refusals"
    with (
        Writer(mongo_uri, "production", actor="tester", database=database) as writer,
        MongoClient[dict[str, Any]](mongo_uri) as mongo,
    ):
        mongo.drop_database(database)
        writer.create_environment()
        stock(writer)
        yield writer, mongo[database]


def written(database: Database_) -> str:
    """Return a hash of all that is in the database."""
    found = hashlib.sha256()
    for name in sorted(database.list_collection_names()):
        for document in database[name].find(sort=[("_id", 1)]):
            found.update(bson.encode(document))
    return found.hexdigest()


def together(*steps: Callable[[Any], object]) -> Asks:
    """Return what asks for several operations in one change."""

    def ask(writer: Writer) -> None:
        with writer.change() as change:
            for step in steps:
                step(change)

    return ask


NO_KEYS: list[Any] = [
    "",
    "Shop.search",
    "shop search",
    ".shop",
    "shop.",
    "a..b",
    "x" * 201,
    5,
    None,
]
NO_REGIONS: list[Any] = ["", "EU", "eu west", "@segments", 5, None]
NO_REVISIONS: list[Any] = ["1", 1.0, None]
NO_IDEMPOTENCY_KEYS: list[Any] = ["", 5, b"x"]
NO_WEIGHTS: list[Any] = [-1, 100.1, float("nan"), float("inf")]
VERBS = ("pause", "resume", "archive", "restore", "delete")

# What, how it is asked for, what is raised, at which path, and what the remedy says.
DOCUMENTS: list[tuple[str, Asks, str, str]] = [
    *((f"no key of a flag to {verb}: {key!r}"[:60], lambda w, v=verb, k=key: getattr(w, v)(k),
       "key", "product.team.feature") for verb in VERBS for key in NO_KEYS),
    *((f"no region to pause in: {region!r}", lambda w, r=region: w.pause("shop.base", region=r),
       "region", "") for region in NO_REGIONS),
    *((f"no percentage: {weights!r}", lambda w, x=weights: w.set_rollout("shop.base", x),
       "weights", "") for weights in NO_WEIGHTS),
    # Rollouts
    ("weights of 99 %", lambda w: w.set_rollout("shop.base", {"on": 49, "off": 50}),
     "fallthrough.rollout.weights", "100 %"),
    ("a percentage of too many digits", lambda w: w.set_rollout("shop.base", 33.33333),
     "fallthrough.rollout.weights.on", ""),
    ("weights of nothing", lambda w: w.set_rollout("shop.base", {}), "fallthrough.rollout.weights",
     ""),
    ("weights of a variant that is none", lambda w: w.set_rollout("shop.base", {"blue": 100}),
     "fallthrough.rollout.weights.blue", "on, off"),
    ("a percentage of a flag of texts", lambda w: w.set_rollout("shop.abc", 5), "weights", ""),
    ("a rule that is none", lambda w: w.set_rollout("shop.beta", 5, rule="staff"), "rule",
     "It has: r"),
    ("a rule that serves one variant", lambda w: w.set_rollout("shop.beta", 5, rule="r"), "rule",
     "update the document"),
    ("a fallthrough that serves one variant", lambda w: w.set_rollout("shop.fixed", 5), "rule",
     "update the document"),
    ("keys of one treated variant for another",
     lambda w: w.set_rollout("shop.abc", {"b": 40, "c": 60}),
     "fallthrough.rollout.weights", "reassign=True"),
    ("the same in a document", lambda w: w.update(abc(b=40, c=60)),
     "fallthrough.rollout.weights", "reassign=True"),
    # States
    ("an archived flag to pause", lambda w: w.pause("shop.old"), "state", "Restore it first"),
    ("an archived flag to resume", lambda w: w.resume("shop.old"), "state", "Restore it first"),
    ("an active flag to restore", lambda w: w.restore("shop.base"), "state", "pause it"),
    ("an active flag to delete", lambda w: w.delete("shop.fixed"), "state", "Archive it first"),
    ("a paused flag to delete",
     together(lambda c: c.pause("shop.fixed"), lambda c: c.delete("shop.fixed")), "state",
     "Archive it first"),
    # Edits
    ("an edit of the key", lambda w: w.edit("shop.base", lambda d: d | {"key": "shop.other"}),
     "key", "archive this one"),
    ("an edit of the region", lambda w: w.edit("shop.base", lambda d: d | {"region": "eu-west-1"}),
     "region", "archive this one"),
    ("an edit that makes nothing", lambda w: w.edit("shop.base", lambda _: None), "", "mapping"),  # type: ignore[arg-type, return-value]
    ("an edit that makes nonsense", lambda w: w.edit("shop.base", lambda d: d | {"off": "blue"}),
     "off", "on, off"),
    # The document and where it belongs
    ("another environment's", lambda w: w.create(flag(environment="staging")), "environment",
     "other environment"),
    ("an update of another environment's",
     lambda w: w.update(flag("shop.base", environment="staging")), "environment", ""),
    ("all rolled back, and more",
     together(lambda c: c.rollback_all(to=1), lambda c: c.pause("shop.base")), "",
     "two changes"),
    ("a description of 5 MB", lambda w: w.create(flag(description="x" * 5_000_000)),
     "description", "Shorten"),
    ("variants of 5 MB", lambda w: w.create(flag(variants={"on": "x" * 5_000_000, "off": "y"})),
     "variants", ""),
    ("a reason that is no text", lambda w: w.pause("shop.base", reason="\ud800"), "", "Mend it"),
    ("a number for an actor", lambda w: w.pause("shop.base", actor=7), "actor", "text"),  # type: ignore[call-overload]
    ("a reason of 13 MB", lambda w: w.pause("shop.base", reason="x" * 13_000_000), "", ""),
    # Segments
    ("no key of a segment", lambda w: w.delete_segment("A b"), "key", "lower case"),
    ("keys on two sides",
     lambda w: w.change_members("shop.staff", include=["bob"], exclude=["bob"]), "", "Include"),
    ("too many keys", lambda w: w.change_members("shop.staff", include=map(str, range(10_001))),
     "", "several changes"),
    ("keys as one text", lambda w: w.change_members("shop.staff", include="bob"), "include", ""),
    ("a key that is none", lambda w: w.change_members("shop.staff", remove=[1.5]), "remove[0]", ""),  # type: ignore[list-item]
    ("hashed keys of another segment",
     lambda w: w.create_segment({"key": "s", "included": {"count": 1, "parts": ["0" * 64]}}),
     "included", "List the keys"),
    # Access
    *((f"a role that is none: {role!r}", lambda w, r=role: together(
        lambda c: c.grant("ada", r))(w), "role", "viewer, editor") for role in ("boss", "", None)),
    *((f"an actor that is none: {str(actor)[:9]!r}", lambda w, a=actor: together(
        lambda c: c.grant(a, "admin"))(w), "actor", "name") for actor in ("", None, 5, "x" * 5000)),
    ("a namespace that is one text", together(lambda c: c.grant("ada", "editor", "shop.")),
     "namespaces", "list"),
    *((f"a namespace that is none: {name!r}", lambda w, n=name: together(
        lambda c: c.grant("ada", "editor", [n]))(w), "namespaces[0]", "checkout.")
      for name in ("", "Shop.", "*", 5)),
    ("no admin left", together(lambda c: c.grant("ada", "editor")), "grants", "Grant admin"),
    ("an admin of a namespace alone", together(lambda c: c.grant("ada", "admin", ["shop."])),
     "grants", "Grant admin"),
    ("a revoked role that is none", together(lambda c: c.revoke("ada", "boss")), "role", "viewer"),
    # Limits
    ("nobody's limit", together(lambda c: c.set_limit("team", capacity=1, rate=1)), "whose",
     "actor, environment"),
    *((f"no capacity: {capacity!r}", lambda w, x=capacity: together(
        lambda c: c.set_limit("actor", capacity=x, rate=1))(w), "capacity", "how many")
      for capacity in (0, -1, 1.5, True, "1", 10**12)),
    *((f"no rate: {rate!r}", lambda w, x=rate: together(
        lambda c: c.set_limit("actor", capacity=1, rate=x))(w), "rate", "a second")
      for rate in (0, -1, True, "1", float("nan"), float("inf"), 1e12)),
    # References
    ("a prerequisite that is not there", lambda w: w.create(needing("shop.new", "shop.none")),
     "prerequisites[0].flag", "Create it"),
    ("a prerequisite that was deleted", lambda w: w.create(needing("shop.new", "shop.gone")),
     "prerequisites[0].flag", "Create it"),
    ("a prerequisite of another region alone",
     lambda w: w.create(needing("shop.new", "shop.local")), "prerequisites[0].flag", "Create it"),
    ("a prerequisite's variant that is none",
     lambda w: w.create(needing("shop.new", "shop.base", variants=("blue",))),
     "prerequisites[0].variants", "on, off"),
    ("a flag that needs itself", lambda w: w.update(needing("shop.base", "shop.base")),
     "prerequisites[0].flag", ""),
    ("a cycle of two", lambda w: w.update(needing("shop.base", "shop.search")), "prerequisites",
     "Remove one"),
    ("a cycle of three", together(
        lambda c: c.create(needing("shop.new", "shop.search")),
        lambda c: c.update(needing("shop.base", "shop.new"))), "prerequisites", "Remove one"),
    ("a flag that others need, deleted",
     together(lambda c: c.archive("shop.base"), lambda c: c.delete("shop.base")),
     "prerequisites[0].flag", "Remove it before"),
    ("a variant that others need, gone",
     lambda w: w.update(flag("shop.base", variants={"yes": True, "off": False})),
     "prerequisites[0].variants", "yes, off"),
    ("a segment that is not there", lambda w: w.create(meant_for("shop.nobody")), "rules",
     "Create it"),
    ("a segment that flags refer to, deleted", lambda w: w.delete_segment("shop.staff"), "rules",
     "Change them before"),
]  # fmt: skip

# What, how it is asked for, what is raised, and what that says.
OTHERS: list[tuple[str, Asks, type[FlagkitError], tuple[str, ...]]] = [
    *((f"a flag to {verb} that is not there", lambda w, v=verb: getattr(w, v)("shop.none"),
       FlagNotFoundError, ("shop.none", "check the key")) for verb in VERBS),
    *((f"a flag to {verb} that was deleted", lambda w, v=verb: getattr(w, v)("shop.gone"),
       FlagNotFoundError, ("shop.gone", "create it first")) for verb in VERBS),
    *((f"a flag to {verb} that is elsewhere",
       lambda w, v=verb: getattr(w, v)("shop.local", region="us-east-1"),
       FlagNotFoundError, ("in region us-east-1", "check the key")) for verb in VERBS),
    ("a flag to update that is not there", lambda w: w.update(flag()), FlagNotFoundError,
     ("shop.new", "create it first")),
    ("a flag to edit that is not there", lambda w: w.edit("shop.none", dict), FlagNotFoundError,
     ("shop.none", "create it first")),
    ("a rollout to set that is not there", lambda w: w.set_rollout("shop.none", 5),
     FlagNotFoundError, ("shop.none", "create it first")),
    ("a flag to roll back that never was", lambda w: w.rollback("shop.none", to=1),
     FlagNotFoundError, ("shop.none", "check the key")),
    ("a flag that is there", lambda w: w.create(flag("shop.base")), FlagExistsError,
     ("shop.base", "version 2", "update it")),
    ("a flag twice", together(lambda c: c.create(flag()), lambda c: c.create(flag())),
     FlagExistsError, ("shop.new", "update it")),
    ("a segment that is there", lambda w: w.create_segment({"key": "shop.staff"}), FlagExistsError,
     ("shop.staff", "update it")),
    ("a segment to update that is not there", lambda w: w.update_segment({"key": "shop.none"}),
     SegmentNotFoundError, ("segment 'shop.none'", "create it first")),
    ("members of a segment that is not there",
     lambda w: w.change_members("shop.none", include=["ada"]), SegmentNotFoundError,
     ("segment 'shop.none'", "create it first")),
    ("a segment to delete that is not there", lambda w: w.delete_segment("shop.none"),
     SegmentNotFoundError, ("segment 'shop.none'", "create it first")),
    *((f"a version to {verb} that is not the newest",
       lambda w, v=verb: getattr(w, v)("shop.base", expected_version=1),
       VersionConflictError, ("shop.base", "version 2", "'tester'", "expected 1", "read it again"))
      for verb in ("archive", "restore", "delete")),
    ("a version to update that is not there",
     lambda w: w.update(flag("shop.base"), expected_version=9), VersionConflictError,
     ("shop.base", "version 2", "expected 9", "read it again")),
    ("a version of a rollout", lambda w: w.set_rollout("shop.base", 5, expected_version=1),
     VersionConflictError, ("shop.base", "expected 1", "read it again")),
    ("a version of a segment",
     lambda w: w.update_segment({"key": "shop.staff"}, expected_version=2),
     VersionConflictError, ("shop.staff", "expected 2", "read it again")),
    ("a version of a segment to delete",
     lambda w: w.delete_segment("shop.staff", expected_version=2),
     VersionConflictError, ("shop.staff", "expected 2", "read it again")),
    ("a revision to come", lambda w: w.rollback("shop.base", to=99), RevisionNotFoundError,
     ("99", "the newest is 6")),
    ("revision 0 of a flag", lambda w: w.rollback("shop.base", to=0), RevisionNotFoundError,
     ("no revision 0", "the newest is 6")),
    ("a negative revision of all", lambda w: w.rollback(to=-1), RevisionNotFoundError,
     ("no revision -1", "the newest is 6")),
    ("a revision of all to come", lambda w: w.rollback(to=7), RevisionNotFoundError,
     ("no revision 7", "the newest is 6")),
    ("a revision before the flag was", lambda w: w.rollback("shop.gone", to=2),
     RevisionNotFoundError, ("'shop.gone' did not exist at revision 2",)),
    ("a segment at a revision to come", lambda w: w.rollback_segment("shop.staff", to=99),
     RevisionNotFoundError, ("99", "the newest is 6")),
    ("another request of the same name",
     lambda w: w.set_rollout("shop.base", 30, idempotency_key="the first"),
     RequestConflictError, ("'the first'", "another request")),
    ("another's request of the same name",
     lambda w: w.set_rollout("shop.base", 20, idempotency_key="the first", actor="bob"),
     RequestConflictError, ("'the first'", "another request")),
    *((f"no revision: {to!r}", lambda w, t=to: w.rollback("shop.base", to=t),
       InvalidArgumentError, ("to is ", "pass a revision")) for to in NO_REVISIONS),
    *((f"no idempotency key: {key!r}", lambda w, k=key: w.pause("shop.base", idempotency_key=k),
       InvalidArgumentError, ("idempotency_key is ", "string")) for key in NO_IDEMPOTENCY_KEYS),
    ("a region without a key to roll back", lambda w: w.rollback(to=1, region="eu-west-1"),
     InvalidArgumentError, ("region is given without a key", "name a flag")),
    ("a number for a reason", lambda w: w.pause("shop.base", reason=7),  # type: ignore[call-overload]
     InvalidArgumentError, ("reason is of the type int", "text")),
    ("no reason to bypass the guards", together(lambda c: c.bypass_guards(" ")),
     InvalidArgumentError, ("reason is empty", "write why")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("ask", "path", "remedy"),
    [case[1:] for case in DOCUMENTS],
    ids=[case[0].encode("ascii", "replace").decode() for case in DOCUMENTS],
)
def test_bad_input_is_refused_by_its_path_and_with_a_remedy(
    ask: Asks, path: str, remedy: str, stocked: tuple[Writer, Database_]
) -> None:
    writer, database = stocked
    before = written(database)
    with pytest.raises(InvalidDocumentError) as caught:
        ask(writer)
    error = caught.value
    assert error.path == path
    assert error.remedy
    assert remedy in error.remedy
    assert str(error).endswith(f"{path or 'document'}: {error.problem}. {error.remedy}")
    assert written(database) == before


@pytest.mark.parametrize(
    ("ask", "kind", "said"), [case[1:] for case in OTHERS], ids=[case[0] for case in OTHERS]
)
def test_what_cannot_be_is_refused_and_says_what_to_do(
    ask: Asks, kind: type[FlagkitError], said: tuple[str, ...], stocked: tuple[Writer, Database_]
) -> None:
    writer, database = stocked
    before = written(database)
    with pytest.raises(kind) as caught:
        ask(writer)
    assert all(words in str(caught.value) for words in said), str(caught.value)
    assert written(database) == before


def test_documents_that_make_no_sense_leave_no_trace(
    stocked: tuple[Writer, Database_],
) -> None:
    writer, database = stocked
    before = written(database)
    refused = 0
    for bad in BAD:
        for ask in (writer.create, writer.update):
            with pytest.raises(InvalidDocumentError) as caught:
                ask(bad.document)  # type: ignore[call-overload]
            assert (caught.value.path, bad.remedy in caught.value.remedy) == (bad.path, True)
            refused += 1
    for name, document, path, _ in BAD_SEGMENTS:
        with pytest.raises(InvalidDocumentError) as caught:
            writer.create_segment(document)
        assert (name, caught.value.path) == (name, path)
        refused += 1
    assert refused > 600
    assert written(database) == before
