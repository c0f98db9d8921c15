"""What type checkers must make of the public words. Checked by mypy and pyright, never run."""

from typing import Any, assert_type

from pymongo.client_session import ClientSession

import flagkit
from flagkit import Client, CountingClient, Counts, Evaluation, Subscription
from flagkit.history import ReplayResult, client_at, digest_of, replay
from flagkit.testing import client_from
from flagkit.writer import Commit, PendingChange, Writer

client = client_from([])
assert_type(client, Client)
assert_type(client.is_enabled("a"), bool)
assert_type(client.is_enabled("a", "user", default=True), bool)
assert_type(client.value("a", default="x"), str)
assert_type(client.value("a", "user", default=1), int)
assert_type(client.value("a", {"targeting_key": "user"}, default=1.5), float)
assert_type(client.value("a", default={"x": 1}), dict[str, int])
assert_type(client.evaluate("a"), Evaluation[Any])
assert_type(client.evaluate("a", "user", "x"), Evaluation[str])
assert_type(client.evaluate("a", default=True).value, bool)
assert_type(client.bind("user").value("a", default="x"), str)
assert_type(client.bind("user").evaluate("a", 3), Evaluation[int])
assert_type(client.counts(), Counts | None)
assert_type(CountingClient("mongodb://localhost", environment="test").counts(), Counts)
assert_type(client.on_change("a", lambda change: change.version_after), Subscription)
assert_type(client_at(at=17), Client)
assert_type(digest_of(client, client.evaluate("a", "user", default=1), "user"), str)
assert_type(replay(None, "fk1.", "user").evaluation, Evaluation[Any])
assert_type(replay("mongodb://localhost", "fk1.", {"targeting_key": "user"}), ReplayResult)
assert_type(flagkit.is_enabled("a", "user"), bool)
assert_type(flagkit.value("a", default="x"), str)
assert_type(flagkit.configure("mongodb://localhost", environment="production"), Client)


def write(writer: Writer) -> None:
    """Hold the writer's types."""
    assert_type(writer.create({"key": "a"}), Commit)
    assert_type(writer.set_rollout("a", 10), Commit)
    with writer.change() as change:
        change.pause("a")
    assert_type(change.commit, Commit | None)


def write_within(writer: Writer, session: ClientSession) -> None:
    """Hold what is asked for in a transaction to what is returned."""
    assert_type(writer.in_transaction(session).create({"key": "a"}), PendingChange)
    assert_type(writer.in_transaction(session).change_members("a", include=["b"]), PendingChange)
    assert_type(writer.in_transaction(session).pause("a", reason="why").commit(), Commit)
