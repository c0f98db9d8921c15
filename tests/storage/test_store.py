"""The MongoDB layout: questions are answered from indexes, and documents read back as written."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pymongo import MongoClient

from flagkit._core.storage.layout import (
    FLAGS,
    HEADS,
    LEDGER,
    POLICY_HISTORY,
    build_changes_pipeline,
    build_later_changes_pipeline,
    filter_active_flags,
    filter_ledger_after,
    filter_policies_by_key,
)
from flagkit._core.storage.prefetch import Prefetch, build_prefetch_pipeline
from flagkit.writer import Writer
from tests.writer.test_writer import flag, needing

pytestmark = pytest.mark.mongo

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def test_which_flags_are_active_in_a_region_today(writer: Writer) -> None:
    with writer.change() as change:
        change.create(flag("a.active"))
        change.create(flag("a.paused", state="paused"))
        change.create(flag("a.expired", expires=NOW - timedelta(days=1)))
        change.create(flag("a.expires-later", expires=NOW + timedelta(days=1)))
        change.create(flag("a.only-eu", region="eu"))
        change.create(flag("a.only-us", region="us"))
        change.create(flag("a.paused-in-eu"))
        change.create(flag("a.paused-in-eu", region="eu", state="paused"))
        change.create(flag("a.active-in-eu", state="paused"))
        change.create(flag("a.active-in-eu", region="eu"))
    everywhere = ["a.active", "a.expires-later"]
    in_eu = ["a.active", "a.active-in-eu", "a.expires-later", "a.only-eu"]
    assert writer.store.list_active_flags("eu", NOW) == in_eu
    assert writer.store.list_active_flags("us", NOW) == [*everywhere, "a.only-us", "a.paused-in-eu"]
    assert writer.store.list_active_flags("*", NOW) == [*everywhere, "a.paused-in-eu"]


def stages(plan: dict[str, Any]) -> set[str]:
    """Return the stages of a plan, inner ones included."""
    inner = [plan[name] for name in ("inputStage", "queryPlan") if name in plan]
    inner += plan.get("inputStages", [])
    return {plan.get("stage", "")}.union(*map(stages, inner))


@pytest.fixture
def _many(writer: Writer) -> None:
    """An environment of 2,000 flags, of which one in a hundred is active in region eu."""
    for start in range(0, 2000, 500):
        with writer.change() as change:
            for i in range(start, start + 500):
                state = "active" if i % 100 == 0 else "paused"
                change.create(flag(f"a.a{i}", region="eu", state=state))
    with writer.change() as change:
        change.create(flag("b.base"))
        for i in range(10):
            change.create(needing(f"b.b{i}", "b.base"))


@pytest.mark.usefixtures("_many")
def test_no_question_needs_a_scan(mongo_uri: str, database: str) -> None:
    questions: dict[str, tuple[str, dict[str, Any], int]] = {
        "active in a region today": (FLAGS, filter_active_flags("production", "eu", NOW), 20),
        "by key": (FLAGS, filter_policies_by_key("production", ["a.a7", "b.base"]), 2),
        "dependents": (
            FLAGS,
            {
                "_id.environment": "production",
                "policy.prerequisites.flag": {"$in": ["b.base"]},
            },
            10,
        ),
        "ledger after a revision": (
            LEDGER,
            filter_ledger_after("production", 3),
            2,
        ),
        "by request": (LEDGER, {"_id.environment": "production", "request": "none"}, 0),
        "history of a flag": (
            LEDGER,
            {
                "_id.environment": "production",
                "policies": {"$elemMatch": {"key": "b.base", "region": "*"}},
                "_id.revision": {"$lte": 9},
            },
            1,
        ),
    }
    with MongoClient[dict[str, Any]](mongo_uri) as client:
        for question, (collection, query, count) in questions.items():
            explained = client[database].command(
                "explain", {"find": collection, "filter": query}, verbosity="executionStats"
            )
            found = stages(explained["queryPlanner"]["winningPlan"])
            assert "COLLSCAN" not in found, question
            assert "IXSCAN" in found, question
            figures = explained["executionStats"]
            assert figures["nReturned"] == count, question
            assert figures["totalDocsExamined"] == count, question
            assert figures["totalKeysExamined"] <= 2 * count + 3, question


def ways(explained: Any) -> Iterator[tuple[str, str]]:
    """Yield the stages that read documents, and their indexes, wherever they stand in a plan."""
    if isinstance(explained, dict):
        if explained.get("stage") in {"COLLSCAN", "IXSCAN"}:
            yield explained["stage"], explained.get("indexName", "")
        if "$lookup" in explained:
            assert explained["collectionScans"] == 0
            yield "$lookup", ", ".join(explained["indexesUsed"])
        for name, inner in explained.items():
            if name not in {"command", "rejectedPlans", "executionStats"}:
                yield from ways(inner)
    elif isinstance(explained, list):
        for inner in explained:
            yield from ways(inner)


@pytest.mark.usefixtures("_many")
def test_what_is_read_with_the_head_needs_no_scan(mongo_uri: str, database: str) -> None:
    foreseen = Prefetch("none", frozenset({("*", "b.base"), ("@segments", "a.one")}))
    asked = {
        "aggregate": HEADS,
        "pipeline": build_prefetch_pipeline("production", foreseen, foreseen.policies),
        "cursor": {},
    }
    with MongoClient[dict[str, Any]](mongo_uri) as client:
        explained = client[database].command("explain", asked, verbosity="executionStats")
    found = {*ways(explained)}
    assert "COLLSCAN" not in {stage for stage, _ in found}
    indexes = {index for _, index in found}
    assert {"_id_", "request", "policy_history"} <= indexes


@pytest.mark.usefixtures("_many")
def test_what_is_asked_of_many_flags_needs_no_scan(mongo_uri: str, database: str) -> None:
    keys = {f"a.a{i}" for i in range(1000)}
    questions = {
        "_id_": build_changes_pipeline("production", [1, 2], keys),
        POLICY_HISTORY: build_later_changes_pipeline("production", {1: keys, 2: {"b.base"}}),
    }
    with MongoClient[dict[str, Any]](mongo_uri) as client:
        for index, stages_asked in questions.items():
            asked: dict[str, Any] = {"aggregate": LEDGER, "pipeline": stages_asked, "cursor": {}}
            asked |= {"hint": index} if index == POLICY_HISTORY else {}
            explained = client[database].command("explain", asked, verbosity="executionStats")
            assert {*ways(explained)} == {("IXSCAN", index)}
