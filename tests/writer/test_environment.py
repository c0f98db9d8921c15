"""`Environment`: the handle that reads an environment without a writer."""

from typing import Any

import pytest

from flagkit.errors import (
    ClosedError,
    ConfigurationError,
    EnvironmentNotFoundError,
    NotFoundError,
    ProposalNotFoundError,
    WriteError,
)
from flagkit.writer import Environment, Retention, Writer

pytestmark = pytest.mark.mongo


def flag(key: str = "shop.search", **more: Any) -> dict[str, Any]:
    return {
        "key": key,
        "variants": {"on": True, "off": False},
        "off": "off",
        "fallthrough": {"rollout": 10},
        **more,
    }


def test_it_reads_what_a_writer_wrote(writer: Writer, mongo_uri: str, database: str) -> None:
    writer.create(flag(), reason="new")
    with writer.change() as change:
        change.grant("tester", "admin")
        change.set_limit("actor", capacity=5, rate=1)
    with writer.proposals.propose(reason="launch") as draft:
        draft.pause("shop.search")
    assert draft.proposal is not None
    with Environment(mongo_uri, "production", database=database) as environment:
        assert environment.name == "production"
        assert environment.read_tip() == writer.store.read_tip()
        assert [entry.reason for entry in environment.entries()] == ["new", ""]
        (first,) = environment.entries(key="shop.search")
        assert environment.read_newer_entries(0, key="shop.search") == (1, [first])
        assert [grant.actor for grant in environment.grants()] == ["tester"]
        limit = environment.limits().actor
        assert limit is not None
        assert limit.capacity == 5
        assert environment.denials() == []
        assert environment.pending() == []
        assert [proposal.id for proposal in environment.proposals()] == [draft.proposal]
        assert environment.proposal(draft.proposal).reason == "launch"
        assert environment.stale_flags(30) == []
        assert environment.list_prunable(Retention()) == []
        assert environment.read_pruned_revision() == 0
        assert environment.write_checkpoint().tip.revision == 2
        assert environment.verify() == []
    with pytest.raises(ClosedError):
        environment.read_tip()


def test_a_writer_has_it_on_its_own_connections(writer: Writer) -> None:
    writer.create(flag())
    assert writer.reader.store is writer.store
    assert writer.reader.proposals() == writer.reader.proposals()
    assert [entry.revision for entry in writer.reader.entries()] == [1]


def test_an_environment_that_nobody_created_is_not_found(mongo_uri: str, database: str) -> None:
    with Environment(mongo_uri, "nowhere", database=database) as environment:
        for ask in (
            environment.read_tip,
            environment.grants,
            environment.limits,
            environment.pending,
            environment.verify,
            environment.write_checkpoint,
            lambda: environment.stale_flags(1),
            lambda: environment.list_prunable(Retention()),
        ):
            with pytest.raises(EnvironmentNotFoundError) as caught:
                ask()
            assert isinstance(caught.value, NotFoundError)
            assert isinstance(caught.value, LookupError)
            assert not isinstance(caught.value, WriteError)


def test_a_proposal_that_nobody_made_is_not_found(writer: Writer) -> None:
    with pytest.raises(ProposalNotFoundError):
        writer.reader.proposal("20260101-000000-00000000")


def test_it_takes_its_place_from_variables(
    writer: Writer, mongo_uri: str, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("URI", "ENVIRONMENT", "DATABASE"):
        monkeypatch.delenv(f"FLAGKIT_{name}", raising=False)
    with pytest.raises(ConfigurationError):
        Environment(mongo_uri)
    monkeypatch.setenv("FLAGKIT_URI", mongo_uri)
    monkeypatch.setenv("FLAGKIT_ENVIRONMENT", writer.environment)
    monkeypatch.setenv("FLAGKIT_DATABASE", database)
    with Environment() as environment:
        assert environment.read_tip() == writer.store.read_tip()
