"""Pending: what is asked for in a transaction happens with the caller's data, or not at all."""

import contextlib
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.write_concern import WriteConcern

from flagkit._core.model.changes import Change, Tip
from flagkit._core.storage import requests as waiting
from flagkit.errors import (
    AccessDeniedError,
    ConfigurationError,
    EnvironmentNotFoundError,
    GuardError,
    InvalidArgumentError,
    InvalidDocumentError,
    NotPendingError,
    RateLimitedError,
    RequestConflictError,
    StoreError,
    VersionConflictError,
)
from flagkit.writer import (
    Draft,
    Freeze,
    PendingChange,
    PendingRequest,
    PlannedChange,
    Refusal,
    Writer,
)
from tests.support.forked import poll_until
from tests.writer.test_writer import flag, policy

pytestmark = pytest.mark.mongo

Open = Callable[..., Writer]


@pytest.fixture
def mine(mongo_uri: str) -> Iterator[MongoClient[dict[str, Any]]]:
    """A client of the caller's own, as it comes: flagkit's has other settings."""
    with MongoClient[dict[str, Any]](mongo_uri) as client:
        yield client


@pytest.fixture
def orders(mine: MongoClient[dict[str, Any]]) -> Database[dict[str, Any]]:
    own = mine[f"own-{uuid.uuid4().hex}"]
    own.create_collection("orders")
    return own


@pytest.fixture
def other(mongo_uri: str, database: str) -> Iterator[Open]:
    """Opens other writers of the same environment."""
    with contextlib.ExitStack() as opened:

        def writer_of(actor: str, **more: Any) -> Writer:
            return opened.enter_context(
                Writer(mongo_uri, "production", actor=actor, database=database, **more)
            )

        yield writer_of


def asked(client: MongoClient[Any], ask: Callable[[ClientSession], PendingChange]) -> PendingChange:
    """Ask for a change in a transaction of its own that is committed."""
    with client.start_session() as session, session.start_transaction():
        return ask(session)


def names(writer: Writer) -> list[str]:
    return [waiting.request for waiting in writer.reader.pending()]


def left(mine: MongoClient[dict[str, Any]], database: str) -> dict[str, int]:
    there = mine[database]
    return {name: there[name].count_documents({}) for name in ("audit", "pending", "ledger")}


def test_a_change_happens_with_the_data_that_it_was_asked_for_with(
    writer: Writer, mine: MongoClient[dict[str, Any]], orders: Database[dict[str, Any]]
) -> None:
    with mine.start_session() as session, session.start_transaction():
        orders.orders.insert_one({"_id": 1}, session=session)
        with writer.in_transaction(session).change(reason="orders moved") as change:
            change.create(flag())
            change.create(flag("shop.other"))
        assert change.commit is None
        # Neither a revision nor a lock is taken: others write as if nothing were the matter.
        assert writer.create(flag("shop.unrelated")).revision == 1
    assert change.pending is not None
    commit = change.pending.commit()
    assert commit.revision == 2
    assert commit.request == change.pending.request
    assert change.pending.commit() == commit
    assert policy(writer)["state"] == "active"
    (entry,) = writer.reader.entries(1)
    assert (entry.actor, entry.reason) == ("tester", "orders moved")
    assert entry.actions == ("create shop.search", "create shop.other")
    assert writer.reader.pending() == []
    assert writer.reader.verify() == []


def test_an_aborted_transaction_leaves_nothing(
    writer: Writer, mine: MongoClient[dict[str, Any]], database: str
) -> None:
    with mine.start_session() as session:
        session.start_transaction()
        pending = writer.in_transaction(session).create(flag())
        session.abort_transaction()
    assert left(mine, database) == {"audit": 0, "pending": 0, "ledger": 0}
    with pytest.raises(NotPendingError, match="not committed, or was aborted"):
        pending.commit()
    assert writer.pending.sweep().commits == ()
    assert writer.store.read_tip().revision == 0


def test_what_is_not_committed_yet_is_not_sequenced(
    writer: Writer, mine: MongoClient[dict[str, Any]]
) -> None:
    with mine.start_session() as session:
        session.start_transaction()
        pending = writer.in_transaction(session).create(flag())
        with pytest.raises(NotPendingError):
            pending.commit(timeout=0.05)
        assert writer.pending.sweep().commits == ()
        session.commit_transaction()
    assert pending.commit().revision == 1


def test_a_transaction_that_no_majority_has_yet_is_waited_for(
    writer: Writer, mine: MongoClient[dict[str, Any]]
) -> None:
    for i in range(20):
        with mine.start_session() as session:
            with session.start_transaction(write_concern=WriteConcern(1)):
                pending = writer.in_transaction(session).create(flag(f"shop.flag-{i}"))
            assert pending.commit().revision == i + 1


def test_every_workflow_can_be_asked_for_in_a_transaction(
    writer: Writer, mine: MongoClient[dict[str, Any]]
) -> None:
    document = {"key": "staff", "included": ["ada"]}
    off = flag(fallthrough={"rollout": 10})
    steps: list[Callable[[ClientSession], PendingChange]] = [
        lambda session: writer.in_transaction(session).create(flag()),
        lambda session: writer.in_transaction(session).update(off, expected_version=1),
        lambda session: writer.in_transaction(session).set_rollout("shop.search", 20),
        lambda session: writer.in_transaction(session).pause("shop.search"),
        lambda session: writer.in_transaction(session).resume("shop.search"),
        lambda session: writer.in_transaction(session).archive("shop.search"),
        lambda session: writer.in_transaction(session).restore("shop.search"),
        lambda session: writer.in_transaction(session).archive("shop.search", expected_version=7),
        lambda session: writer.in_transaction(session).delete("shop.search"),
        lambda session: writer.in_transaction(session).rollback("shop.search", to=1),
        lambda session: writer.in_transaction(session).create_segment(document),
        lambda session: writer.in_transaction(session).change_members("staff", include=["bob"]),
        lambda session: writer.in_transaction(session).update_segment({"key": "staff"}),
        lambda session: writer.in_transaction(session).rollback_segment("staff", to=12),
        lambda session: writer.in_transaction(session).delete_segment("staff"),
        lambda session: writer.in_transaction(session).rollback(to=0),
    ]
    for number, ask in enumerate(steps, 1):
        assert asked(mine, ask).commit().revision == number
    assert writer.reader.verify() == []


def test_several_in_one_transaction_are_made_in_their_order(
    writer: Writer, mine: MongoClient[dict[str, Any]]
) -> None:
    with mine.start_session() as session, session.start_transaction():
        pending = [writer.in_transaction(session).create(flag(f"shop.flag-{i}")) for i in range(20)]
        pending += [writer.in_transaction(session).pause(f"shop.flag-{i}") for i in range(20)]
    swept = writer.pending.sweep()
    assert [commit.request for commit in swept.commits] == [item.request for item in pending]
    assert (swept.refused, swept.waiting) == (0, 0)
    assert writer.pending.sweep().commits == ()


def test_what_was_asked_for_before_of_the_same_flags_is_made_before(
    writer: Writer, mine: MongoClient[dict[str, Any]]
) -> None:
    def ask(what: Callable[[ClientSession], PendingChange]) -> PendingChange:
        return asked(mine, what)

    first = ask(lambda session: writer.in_transaction(session).create(flag("shop.a")))
    unrelated = ask(lambda session: writer.in_transaction(session).create(flag("shop.c")))
    with (
        mine.start_session() as session,
        session.start_transaction(),
        writer.in_transaction(session).change() as change,
    ):
        change.create(flag("shop.b"))
        change.pause("shop.a")
    last = ask(lambda session: writer.in_transaction(session).resume("shop.b"))
    assert last.commit().revision == 3
    assert names(writer) == [unrelated.request]
    assert [entry.actions[0] for entry in writer.reader.entries()] == [
        "create shop.a",
        "create shop.b",
        "resume shop.b",
    ]
    assert first.commit().revision == 1


ASKER = """
import os, signal, sys
from pymongo import MongoClient
from flagkit.writer import Writer
from tests.writer.test_writer import flag
uri, database, own = sys.argv[1:]
writer, client = Writer(uri, "production", actor="ada", database=database), MongoClient(uri)
with client.start_session() as session:
    session.start_transaction()
    client[own].orders.insert_one({"_id": 1}, session=session)
    pending = writer.in_transaction(session).create(flag(), reason="moved")
    print(pending.request, flush=True)
    sys.stdin.readline()
    session.commit_transaction()
    print("committed", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("before", [True, False], ids=["before its commit", "after its commit"])
def test_of_a_process_that_is_killed_there_is_both_or_neither(
    before: bool, writer: Writer, mongo_uri: str, orders: Database[dict[str, Any]], database: str
) -> None:
    arguments = [sys.executable, "-c", ASKER, mongo_uri, database, orders.name]
    with subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        request = process.stdout.readline().strip()
        if before:
            process.send_signal(signal.SIGKILL)
        else:
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "committed\n"
        assert process.wait(20) == -signal.SIGKILL
    swept = writer.pending.sweep()
    assert orders.orders.count_documents({}) == len(swept.commits) == (0 if before else 1)
    if not before:
        (entry,) = writer.reader.entries()
        assert (entry.actor, entry.reason) == ("ada", "moved")
        assert writer.pending.commit(request) == swept.commits[0]


def test_many_that_wait_ahead_hide_none_of_the_same_flag(
    writer: Writer, mine: MongoClient[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "READ_MAX", 1)
    asked(mine, lambda session: writer.in_transaction(session).create(flag("shop.other")))
    asked(mine, lambda session: writer.in_transaction(session).create(flag("shop.a")))
    paused = asked(mine, lambda session: writer.in_transaction(session).pause("shop.a"))
    assert paused.commit().revision == 2


def test_many_sweepers_at_once_make_each_change_once_and_in_order(
    writer: Writer, other: Open, mine: MongoClient[dict[str, Any]]
) -> None:
    asked(mine, lambda session: writer.in_transaction(session).create(flag(owner="0")))
    for i in range(1, 15):
        with mine.start_session() as session, session.start_transaction():
            writer.in_transaction(session).update(flag(owner=str(i)))
    sweepers = [other(f"sweeper-{i}") for i in range(3)]
    threads = [threading.Thread(target=sweeper.pending.sweep) for sweeper in sweepers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert writer.reader.pending() == []
    assert writer.store.read_tip().revision == 15
    owners = [change.policies[0].after for change in writer.store.iter_changes()]
    assert [state and state.policy["owner"] for state in owners] == [str(i) for i in range(15)]


STEPS = ["read_requests", "add_request", "compare_and_set", "project", "remove"]


@pytest.mark.parametrize("step", STEPS)
def test_a_sweeper_may_die_at_any_step(
    step: str, writer: Writer, other: Open, mine: MongoClient[dict[str, Any]]
) -> None:
    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    pending = asked(mine, lambda session: writer.in_transaction(session).create(flag()))
    dying = other("bob")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(dying.store.pending if step == "remove" else dying.store, step, die)
        with pytest.raises(KeyboardInterrupt):
            dying.pending.sweep()
    assert names(writer) == [pending.request]
    (commit,) = writer.pending.sweep().commits
    assert commit == pending.commit()
    assert writer.store.read_tip().revision == commit.revision == 1
    assert writer.reader.pending() == []
    assert writer.reader.verify() == []


def test_another_writer_sweeps_in_the_background_after_a_change_of_its_own(
    writer: Writer, other: Open, mine: MongoClient[dict[str, Any]]
) -> None:
    asked(mine, lambda session: writer.in_transaction(session).create(flag()))
    other("bob").create(flag("shop.unrelated"))
    poll_until(writer.reader.pending, lambda waiting: waiting == [])
    assert policy(writer)["key"] == "shop.search"


def test_it_looks_rarely(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[bool] = []
    monkeypatch.setattr(writer.store.pending, "is_due", lambda: looks.append(True))
    for i in range(5):
        writer.create(flag(f"shop.flag-{i}"))
    assert looks == [True]


def test_a_writer_that_is_closed_while_it_looks_has_made_its_change(
    writer: Writer, other: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    closing = other("bob")
    is_due = closing.store.pending.is_due

    def close_first() -> bool:
        closing.close()
        return is_due()

    monkeypatch.setattr(closing.store.pending, "is_due", close_first)
    assert closing.create(flag()).revision == writer.store.read_tip().revision == 1


def test_a_refused_change_is_not_tried_for_ever_and_says_why(
    writer: Writer, mine: MongoClient[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    writer.create(flag())
    pending = asked(
        mine,
        lambda session: writer.in_transaction(session).update(
            flag(owner="ada"),
            expected_version=2,
            reason="mine",
        ),
    )
    swept = writer.pending.sweep()
    assert (swept.commits, swept.refused, swept.waiting) == ((), 1, 0)
    assert writer.pending.sweep().refused == 0
    (waiting,) = writer.reader.pending()
    assert isinstance(waiting, PendingRequest)
    assert (waiting.request, waiting.actor, waiting.reason) == (pending.request, "tester", "mine")
    assert (waiting.actions, waiting.tries) == (("update shop.search",), 1)
    assert waiting.refused
    assert "at version 1" in waiting.trouble
    assert "was refused" in caplog.text
    with pytest.raises(VersionConflictError, match="expected 2"):
        pending.commit()
    # What was in the way is gone, and somebody tries again.
    writer.pause("shop.search")
    assert pending.commit().revision == 3
    assert writer.reader.pending() == []


def test_one_that_was_refused_holds_up_nobody(
    writer: Writer, mine: MongoClient[dict[str, Any]]
) -> None:
    asked(mine, lambda session: writer.in_transaction(session).pause("shop.search"))
    create = asked(mine, lambda session: writer.in_transaction(session).create(flag()))
    assert create.commit().revision == 1
    assert [waiting.refused for waiting in writer.reader.pending()] == [True]


def test_access_is_that_of_who_asked_at_the_revision_of_the_commit(
    writer: Writer, other: Open, mine: MongoClient[dict[str, Any]]
) -> None:
    with writer.change() as change:
        change.grant("tester", "admin")
        change.grant("ada", "releaser")
    pending = asked(mine, lambda s: other("ada").in_transaction(s).create(flag()))
    with writer.change() as change:
        change.revoke("ada")
    assert writer.pending.sweep().refused == 1
    with pytest.raises(AccessDeniedError, match="'ada' may not release"):
        writer.pending.commit(pending.request)
    with writer.change() as change:
        change.grant("ada", "releaser")
    pending.commit()
    assert [*writer.reader.entries()][-1].actor == "ada"


def test_what_passes_with_time_is_tried_again_and_holds_up_what_comes_after(
    writer: Writer, other: Open, mine: MongoClient[dict[str, Any]]
) -> None:
    with writer.change() as change:
        change.set_limit("actor", capacity=1, rate=0.001)
    ada = other("ada")
    ada.create(flag())
    first = asked(mine, lambda s: ada.in_transaction(s).update(flag(owner="first")))
    later = asked(mine, lambda s: writer.in_transaction(s).pause("shop.search", actor="bob"))
    unrelated = asked(
        mine, lambda s: writer.in_transaction(s).create(flag("shop.c"), actor="carol")
    )
    swept = writer.pending.sweep()
    assert [commit.request for commit in swept.commits] == [unrelated.request]
    assert (swept.refused, swept.waiting) == (0, 2)
    waiting = writer.reader.pending()[0]
    assert not waiting.refused
    assert waiting.not_before is not None
    assert waiting.not_before > datetime.now(UTC) + timedelta(minutes=5)
    assert "limit on changes" in waiting.trouble
    # A sweep does not try before; and who asks for the later one is told what is in the way.
    assert writer.pending.sweep().waiting == 2
    assert writer.reader.pending()[0].tries == 1
    with pytest.raises(RateLimitedError):
        later.commit()
    with writer.change() as change:
        change.lift_limit("actor")
    assert later.commit().revision == first.commit().revision + 1


def floored(moment: datetime) -> datetime:
    """Return a moment as MongoDB has it."""
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def test_a_freeze_is_waited_for_and_any_other_guard_refuses(
    writer: Writer, other: Open, mine: MongoClient[dict[str, Any]]
) -> None:
    now = datetime.now(UTC)
    freeze = Freeze({"from": now - timedelta(days=1), "until": now + timedelta(days=1)})

    def broken(planned: PlannedChange) -> Refusal | None:
        raise ZeroDivisionError(planned.key)

    frozen, guarded = other("ada", guards=[freeze]), other("bob", guards=[broken])
    pending = asked(mine, lambda session: frozen.in_transaction(session).create(flag()))
    with pytest.raises(GuardError, match="is frozen") as caught:
        pending.commit()
    assert caught.value.retry_at is not None
    (waiting,) = writer.reader.pending()
    assert not waiting.refused
    assert waiting.not_before == floored(caught.value.retry_at)
    with pytest.raises(ZeroDivisionError):
        guarded.pending.commit(pending.request)
    assert writer.reader.pending()[0].refused


def test_a_dropped_change_is_never_made_and_the_ledger_says_who_dropped_it(
    writer: Writer, other: Open, mine: MongoClient[dict[str, Any]]
) -> None:
    pending = asked(mine, lambda session: writer.in_transaction(session).create(flag()))
    commit = other("bob").pending.drop(pending.request, reason="no longer wanted")
    assert commit.revision == 1
    assert writer.reader.pending() == []
    (entry,) = writer.reader.entries(action="drop-pending")
    assert (entry.actor, entry.reason) == ("bob", "no longer wanted")
    assert entry.actions == (f"drop pending {pending.request}",)
    with pytest.raises(NotPendingError, match="was dropped at revision 1"):
        pending.commit()
    with pytest.raises(NotPendingError, match="there is no pending change"):
        writer.pending.drop(pending.request)


def test_what_was_dropped_is_not_made_outside_of_a_transaction_either(
    writer: Writer, mine: MongoClient[dict[str, Any]]
) -> None:
    asked(
        mine,
        lambda session: writer.in_transaction(session).create(flag(), idempotency_key="orders"),
    )
    writer.pending.drop("orders")
    with pytest.raises(NotPendingError, match="was dropped at revision 1"):
        writer.create(flag(), idempotency_key="orders")
    assert writer.store.read_tip().revision == 1


def test_no_idempotency_key_is_a_drop(writer: Writer, mine: MongoClient[dict[str, Any]]) -> None:
    pending = asked(
        mine,
        lambda session: writer.in_transaction(session).create(flag(), idempotency_key="orders"),
    )
    for key in ("flagkit:drop orders", "drop orders"):
        with contextlib.suppress(InvalidArgumentError):
            writer.create(flag("a.two"), idempotency_key=key)
    assert pending.commit().revision == 2
    assert writer.pending.drop(asked_anew(writer, mine)).request == "flagkit:drop anew"


def asked_anew(writer: Writer, mine: MongoClient[dict[str, Any]]) -> str:
    def ask(session: ClientSession) -> PendingChange:
        return writer.in_transaction(session).pause("shop.search", idempotency_key="anew")

    return asked(mine, ask).request


def test_to_drop_a_change_of_nothing_takes_a_role_on_all(
    writer: Writer, mine: MongoClient[dict[str, Any]]
) -> None:
    with writer.change() as change:
        change.grant("tester", "admin")
    with (
        mine.start_session() as session,
        session.start_transaction(),
        writer.in_transaction(session).change(idempotency_key="nothing"),
    ):
        pass
    with pytest.raises(AccessDeniedError):
        writer.pending.drop("nothing", actor="bob")


def test_a_drop_and_a_sweep_exclude_each_other(
    writer: Writer,
    other: Open,
    mine: MongoClient[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pending = asked(mine, lambda session: writer.in_transaction(session).create(flag()))
    sweeper = other("bob")
    compare_and_set = sweeper.store.compare_and_set

    def late(tip: Tip, change: Change, *kept: Any) -> bool:
        monkeypatch.undo()
        writer.pending.drop(pending.request)
        return compare_and_set(tip, change, *kept)

    monkeypatch.setattr(sweeper.store, "compare_and_set", late)
    assert sweeper.pending.sweep().commits == ()
    assert writer.reader.pending() == []
    assert [entry.actions[0].split()[0] for entry in writer.reader.entries()] == ["drop"]
    # And the other way round.
    pending = asked(mine, lambda session: writer.in_transaction(session).create(flag()))
    compare_and_set = sweeper.store.compare_and_set

    def swept(tip: Tip, change: Change, *kept: Any) -> bool:
        monkeypatch.undo()
        writer.pending.sweep()
        return compare_and_set(tip, change, *kept)

    monkeypatch.setattr(sweeper.store, "compare_and_set", swept)
    with pytest.raises(NotPendingError, match="was made as revision 2"):
        sweeper.pending.drop(pending.request)


def test_dropping_takes_a_role_on_what_it_touches(
    writer: Writer, other: Open, mine: MongoClient[dict[str, Any]]
) -> None:
    with writer.change() as change:
        change.grant("tester", "admin")
        change.grant("bob", "editor", ["pay."])
    pending = asked(mine, lambda session: writer.in_transaction(session).create(flag()))
    with pytest.raises(AccessDeniedError, match=r"may not edit shop\.search"):
        other("bob").pending.drop(pending.request)
    assert names(writer) == [pending.request]


def test_a_key_that_was_used_before_is_the_same_change_or_an_error_at_once(
    writer: Writer, mine: MongoClient[dict[str, Any]], database: str
) -> None:
    first = writer.create(flag(), idempotency_key="deploy-7")
    same = asked(
        mine,
        lambda session: writer.in_transaction(session).create(flag(), idempotency_key="deploy-7"),
    )
    assert same.commit() == first
    assert writer.reader.pending() == []
    with mine.start_session() as session:
        session.start_transaction()
        with pytest.raises(RequestConflictError):
            writer.in_transaction(session).pause("shop.search", idempotency_key="deploy-7")
        session.commit_transaction()
    assert left(mine, database) == {"audit": 1, "pending": 0, "ledger": 1}


def test_who_sends_it_again_outside_of_a_transaction_makes_it_once(
    writer: Writer, mine: MongoClient[dict[str, Any]]
) -> None:
    pending = asked(
        mine, lambda session: writer.in_transaction(session).create(flag(), idempotency_key="k")
    )
    commit = writer.create(flag(), idempotency_key="k")
    assert writer.pending.sweep().commits == (commit,)
    assert pending.commit() == commit


@pytest.mark.parametrize("key", [None, "migration-3"])
def test_a_transaction_that_is_tried_again_asks_once(
    key: str | None,
    writer: Writer,
    mine: MongoClient[dict[str, Any]],
    orders: Database[dict[str, Any]],
    database: str,
) -> None:
    orders.orders.insert_one({"_id": 1, "state": "new"})
    tries: list[PendingChange] = []

    def move(session: ClientSession) -> PendingChange:
        tries.append(writer.in_transaction(session).create(flag(), idempotency_key=key))
        if len(tries) == 1:
            # Somebody else is first: the server breaks off this transaction.
            orders.orders.update_one({"_id": 1}, {"$set": {"state": "paid"}})
        orders.orders.update_one({"_id": 1}, {"$set": {"state": "moved"}}, session=session)
        return tries[-1]

    with mine.start_session() as session:
        pending = session.with_transaction(move)
    assert len(tries) == 2
    assert left(mine, database) == {"audit": 1, "pending": 1, "ledger": 0}
    assert pending.commit().revision == 1
    assert writer.pending.sweep().commits == ()
    assert (tries[0].request == tries[1].request) == (key is not None)


def test_two_transactions_that_use_one_key_at_once_ask_once(
    writer: Writer, mine: MongoClient[dict[str, Any]], database: str
) -> None:
    tries: list[object] = []

    def ask(session: ClientSession) -> PendingChange:
        tries.append(None)
        return writer.in_transaction(session).create(flag(), idempotency_key="k")

    with mine.start_session() as first, mine.start_session() as second:
        with first.start_transaction():
            mine[database].heads.find_one({}, session=first)
            asked(mine, ask)
            # Its snapshot is older: it is broken off where it writes, with the label to retry.
            with pytest.raises(Exception, match="Write") as caught:
                ask(first)
            assert caught.value.has_error_label("TransientTransactionError")  # type: ignore[attr-defined]
            first.abort_transaction()
        assert second.with_transaction(ask).commit().revision == 1
    assert left(mine, database) == {"audit": 1, "pending": 0, "ledger": 1}


def test_members_come_with_a_segment(writer: Writer, mine: MongoClient[dict[str, Any]]) -> None:
    keys = [f"user-{i}" for i in range(20_000)]
    document = {"key": "beta", "included": keys}
    asked(mine, lambda session: writer.in_transaction(session).create_segment(document))
    assert len(writer.pending.sweep().commits) == 1
    assert writer.reader.verify() == []
    with writer.store.open_reader() as reading:
        assert (
            reading.find_segments(["beta"])["@segments", "beta"].policy["included"]["count"]
            == 20_000
        )


def edit(change: Draft) -> None:
    change.edit("shop.search", lambda document: document)


def fill(change: Draft) -> None:
    for i in range(60):
        change.create(flag(f"shop.f-{i}", variants={"on": "x" * 250_000, "off": ""}))


def within(writer: Writer, session: ClientSession, ask: Callable[[Draft], object]) -> None:
    with writer.in_transaction(session).change() as change:
        ask(change)


def test_what_cannot_be_asked_for_in_a_transaction_is_refused_before_it_is_touched(
    writer: Writer, mine: MongoClient[dict[str, Any]], database: str
) -> None:
    with mine.start_session() as session:
        with pytest.raises(ConfigurationError, match="a transaction was started"):
            writer.in_transaction(session).create(flag())
        with pytest.raises(ConfigurationError, match="a session of pymongo"):
            writer.in_transaction(mine).create(flag())  # type: ignore[arg-type]
        session.start_transaction()
        for ask, problem in (
            (edit, "update it with expected_version"),
            (fill, "Split it up"),
            (lambda change: change.create(flag(variants={})), "variants"),
        ):
            with pytest.raises(InvalidDocumentError, match=problem):
                within(writer, session, ask)
        session.commit_transaction()
    assert left(mine, database) == {"audit": 0, "pending": 0, "ledger": 0}


def test_a_session_must_be_where_the_environment_is(
    writer: Writer, mongo_uri: str, database: str, mine: MongoClient[dict[str, Any]]
) -> None:
    assert writer.store.read_tip().environment != "nowhere"
    with (
        Writer(mongo_uri, "nowhere", actor="ada", database=database) as lost,
        mine.start_session() as session,
        session.start_transaction(),
        pytest.raises(EnvironmentNotFoundError, match="of the same cluster"),
    ):
        lost.in_transaction(session).create(flag())


def test_a_request_that_was_altered_is_refused(
    writer: Writer, mine: MongoClient[dict[str, Any]], database: str
) -> None:
    pending = asked(mine, lambda session: writer.in_transaction(session).create(flag()))
    mine[database].audit.update_one({}, {"$set": {"actor": "eve"}})
    with pytest.raises(InvalidDocumentError, match="changed past the writer"):
        pending.commit()
    mine[database].audit.delete_many({})
    with pytest.raises(InvalidDocumentError, match="removed past the writer"):
        pending.commit()
    assert writer.reader.pending()[0].refused


def test_what_was_changed_past_the_writer_is_waited_for(
    writer: Writer, mine: MongoClient[dict[str, Any]], database: str
) -> None:
    writer.create(flag())
    pending = asked(mine, lambda session: writer.in_transaction(session).pause("shop.search"))
    mine[database].flags.update_one({}, {"$set": {"policy.owner": "eve"}})
    assert writer.pending.sweep().waiting == 1
    (waiting,) = writer.reader.pending()
    assert (waiting.refused, waiting.tries) == (False, 1)
    with pytest.raises(StoreError, match="past the writer"):
        pending.commit()
    mine[database].flags.update_one({}, {"$unset": {"policy.owner": True}})
    assert pending.commit().revision == 2


def test_the_glass_is_broken_as_at_any_commit(
    writer: Writer, other: Open, mine: MongoClient[dict[str, Any]]
) -> None:
    def never(planned: PlannedChange) -> Refusal | None:
        return Refusal("", f"{planned.key} is not touched", "Leave it")

    guarded = other("ada", guards=[never])
    with (
        mine.start_session() as session,
        session.start_transaction(),
        guarded.in_transaction(session).change() as change,
    ):
        change.bypass_guards("incident 7")
        change.create(flag())
    assert guarded.pending.sweep().refused == 0
    assert [entry.bypass_reason for entry in writer.reader.entries()] == ["incident 7"]


def test_a_writer_that_closes_waits_for_its_sweep(
    writer: Writer, other: Open, mine: MongoClient[dict[str, Any]]
) -> None:
    asked(mine, lambda session: writer.in_transaction(session).create(flag()))
    bob = other("bob")
    bob.create(flag("shop.unrelated"))
    bob.close()
    sweeping = [thread for thread in threading.enumerate() if thread.name == "flagkit-sweep"]
    assert sweeping == []
