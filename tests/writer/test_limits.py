"""Limits: token buckets that hold over processes, exactly; and that a kill switch always works."""

import hashlib
import hmac
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from multiprocessing.connection import Connection
from typing import Any

import pytest
from bson import Int64
from hypothesis import given
from hypothesis import strategies as st
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.monitoring import (
    CommandFailedEvent,
    CommandListener,
    CommandStartedEvent,
    CommandSucceededEvent,
)

from flagkit._core.model.access import Limit, Limits
from flagkit._core.storage import driver
from flagkit._core.storage.admin import DatabaseAdmin
from flagkit._core.storage.provision import READER, ROLES
from flagkit.errors import (
    AccessDeniedError,
    InvalidDocumentError,
    RateLimitedError,
    StoreError,
)
from flagkit.writer import Draft, Writer, erase_actor
from flagkit.writer.access import ALL_ACTORS, take_tokens
from tests.support.forked import ForkedChild
from tests.writer.test_writer import flag

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SECOND = 1_000_000


@pytest.fixture
def direct(mongo_uri: str, database: str) -> Iterator[Database[dict[str, Any]]]:
    with MongoClient[dict[str, Any]](mongo_uri) as client:
        yield client[database]


class Model:
    """Buckets as a book has them: so many tokens, more with time, one less with each change."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._tokens: dict[str, tuple[Fraction, int]] = {}

    def allows(self, actor: str, now: int) -> bool:
        """Tell whether a change is allowed at a moment in microseconds; if so, it is made."""
        pairs = ((actor, self._limits.actor), (ALL_ACTORS, self._limits.environment))
        left = {name: self._left(name, limit, now) for name, limit in pairs if limit is not None}
        if any(tokens < 1 for tokens in left.values()):
            return False
        self._tokens |= {name: (tokens - 1, now) for name, tokens in left.items()}
        return True

    def _left(self, name: str, limit: Limit, now: int) -> Fraction:
        tokens, since = self._tokens.get(name, (Fraction(limit.capacity), now))
        gained = Fraction(now - since, SECOND) * Fraction(limit.rate)
        return min(Fraction(limit.capacity), tokens + gained)


def assert_within(limit: Limit, times: list[int]) -> None:
    """Hold changes at some moments to the bound, in every window."""
    for i, start in enumerate(times):
        for j, end in enumerate(times[i:], i):
            assert j - i + 1 <= limit.capacity + limit.rate * (end - start) / SECOND


# Rates at which a token takes whole microseconds: there, both have the same to the last one.
LIMIT = st.none() | st.builds(
    Limit, st.integers(1, 5), st.sampled_from([0.5, 1.0, 2.0, 8.0, 64.0, 1000.0])
)
STEPS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3 * SECOND)), max_size=60)


@given(LIMIT, LIMIT, STEPS)
def test_buckets_are_those_of_a_model(
    actor: Limit | None, environment: Limit | None, steps: list[tuple[str, int]]
) -> None:
    held = Limits(actor, environment)
    model, buckets = Model(held), dict[str, int]()
    made: dict[str, list[int]] = {"a": [], "b": [], "c": [], ALL_ACTORS: []}
    now = 0
    for name, pause in steps:
        now += pause
        try:
            buckets = take_tokens(held, buckets, name, now)
        except RateLimitedError as error:
            assert not model.allows(name, now)
            retry_at = (error.retry_at - EPOCH) // timedelta(microseconds=1)
            assert retry_at > now
            assert error.retry_after == (retry_at - now) / SECOND  # noqa: PT017 - it may not come
            with pytest.raises(RateLimitedError):
                take_tokens(held, buckets, name, retry_at - 1)
            continue
        assert model.allows(name, now)
        made[name].append(now)
        made[ALL_ACTORS].append(now)
    for name, times in made.items():
        limit = environment if name == ALL_ACTORS else actor
        if limit is not None:
            assert_within(limit, times)


@given(
    st.builds(Limit, st.integers(1, 4), st.floats(0.001, 1e6)),
    st.lists(st.integers(0, 100_000), max_size=60),
)
def test_no_window_has_more_than_its_bound_whatever_the_rate(
    limit: Limit, pauses: list[int]
) -> None:
    held, buckets, made, now = Limits(environment=limit), dict[str, int](), list[int](), 0
    for pause in pauses:
        now += pause
        try:
            buckets = take_tokens(held, buckets, "a", now)
        except RateLimitedError:
            continue
        made.append(now)
    assert_within(limit, made)


def limit(writer: Writer, **limits: tuple[int, float]) -> None:
    with writer.change() as change:
        for whose, (capacity, rate) in limits.items():
            change.set_limit(whose, capacity=capacity, rate=rate)  # type: ignore[arg-type]


@pytest.mark.mongo
def test_who_makes_too_many_changes_is_told_when_to_go_on(writer: Writer) -> None:
    limit(writer, actor=(2, 0.001))
    writer.create(flag())
    writer.update(flag(owner="ada"))
    before = writer.store.read_tip()
    with pytest.raises(
        RateLimitedError, match="limit on changes of this actor is reached: try again in"
    ) as caught:
        writer.update(flag(owner="bob"))
    assert caught.value.whose == "actor"
    assert 900 < caught.value.retry_after <= 1000
    # A token is there a thousand seconds after the first one was taken.
    assert caught.value.retry_at > before.time + timedelta(seconds=900)
    assert writer.store.read_tip() == before


@pytest.mark.mongo
def test_pauses_and_changes_of_access_are_not_limited(writer: Writer) -> None:
    limit(writer, environment=(1, 0.001))
    writer.create(flag())
    writer.pause("shop.search")
    writer.pause("shop.search")
    with pytest.raises(RateLimitedError, match="of this environment"):
        writer.resume("shop.search")
    with writer.change() as change:
        change.grant("tester", "admin")
        change.lift_limit("environment")
    writer.resume("shop.search")
    assert writer.reader.limits() == Limits()
    assert writer.reader.verify() == []


def _granting(writer: Writer) -> str:
    with writer.proposals.propose(actor="ada") as change:
        change.grant("tester", "admin")
    assert change.proposal is not None
    return change.proposal


def _waiting(writer: Writer) -> str:
    client = writer.store._client
    with (
        client.start_session() as session,
        session.start_transaction(),
        writer.in_transaction(session).change() as change,
    ):
        change.grant("tester", "admin")
    assert change.pending is not None
    return change.pending.request


LIMITED: dict[str, Callable[[Writer], object]] = {
    "a change": lambda w: w.resume("shop.search", actor="ada"),
    "a change of nothing": lambda w: w.update_segment({"key": "staff"}, actor="ada"),
    "a withdrawal": lambda w: w.proposals.withdraw(_granting(w), actor="ada"),
    "a rejection": lambda w: w.proposals.reject(_granting(w), actor="ada"),
    "a drop": lambda w: w.pending.drop(_waiting(w), actor="ada"),
}


@pytest.mark.mongo
@pytest.mark.parametrize("first", LIMITED)
def test_all_but_pauses_and_changes_of_access_takes_a_token(first: str, writer: Writer) -> None:
    """Whatever roles it takes: to reject or to drop a change of access changes none."""
    writer.create(flag())
    writer.create_segment({"key": "staff"})
    limit(writer, actor=(1, 1e-6))
    LIMITED[first](writer)
    for does in LIMITED.values():
        tip = writer.store.read_tip()
        with pytest.raises(RateLimitedError, match="of this actor"):
            does(writer)
        assert writer.store.read_tip() == tip
    writer.pause("shop.search", actor="ada")
    assert writer.reader.verify() == []


@pytest.mark.mongo
def test_what_was_not_closed_for_a_limit_stays_open(writer: Writer) -> None:
    writer.create(flag())
    with writer.proposals.propose(actor="ada") as change:
        change.pause("shop.search")
    proposal = change.proposal
    assert proposal is not None
    limit(writer, environment=(1, 1e-6))
    writer.create(flag("a.new"))
    for close in (writer.proposals.withdraw, writer.proposals.reject):
        with pytest.raises(RateLimitedError):
            close(proposal, actor="ada")
        assert writer.reader.proposal(proposal).state == "open"
    with writer.change() as change:
        change.lift_limit("environment")
    commit = writer.proposals.withdraw(proposal, actor="ada")
    assert writer.proposals.withdraw(proposal, actor="ada") == commit
    assert writer.reader.proposal(proposal).state == "withdrawn"


@pytest.mark.mongo
def test_each_actor_has_a_bucket_that_does_not_say_whose_it_is(
    writer: Writer, mongo_uri: str, database: str, direct: Database[dict[str, Any]]
) -> None:
    limit(writer, actor=(1, 0.001), environment=(3, 0.001))
    writer.create(flag("a.one"))
    with Writer(mongo_uri, "production", actor="ada", database=database) as ada:
        ada.create(flag("a.two"))
        with pytest.raises(RateLimitedError, match="of this actor"):
            ada.create(flag("a.three"))
    with pytest.raises(RateLimitedError, match="of this actor"):
        writer.create(flag("a.three"))
    with Writer(mongo_uri, "production", actor="bob", database=database) as bob:
        bob.create(flag("a.three"))
    with (
        Writer(mongo_uri, "production", actor="eve", database=database) as eve,
        pytest.raises(RateLimitedError, match="of this environment"),
    ):
        eve.create(flag("a.four"))
    (head,) = direct.heads.find()
    assert len(head["buckets"]) == 4
    assert not {"ada", "bob", "tester"} & head["buckets"].keys()


@pytest.mark.mongo
def test_a_full_bucket_leaves_nothing_behind(
    writer: Writer, direct: Database[dict[str, Any]]
) -> None:
    limit(writer, actor=(1, 1e6), environment=(2, 1e6))
    first = writer.create(flag())
    # As soon as the server's clock is a millisecond further.
    while writer.pause("shop.search").time == first.time:
        pass
    (head,) = direct.heads.find()
    assert "buckets" not in head


@pytest.mark.mongo
def test_a_request_that_is_sent_again_takes_no_token(writer: Writer) -> None:
    limit(writer, actor=(1, 0.001))
    first = writer.create(flag(), idempotency_key="deploy-7")
    assert writer.create(flag(), idempotency_key="deploy-7") == first


@pytest.mark.mongo
def test_limits_are_for_admins_and_in_the_ledger(
    writer: Writer, mongo_uri: str, database: str
) -> None:
    limit(writer, actor=(5, 0.5), environment=(100, 10))
    with writer.change() as change:
        change.lift_limit("environment")
    with writer.change() as change:
        change.grant("tester", "admin")
        change.grant("ada", "admin", ["shop."])
    assert [entry.actions for entry in writer.reader.entries()][:2] == [
        (
            "set limit of each actor to 5 and 0.5 a second",
            "set limit of all to 100 and 10.0 a second",
        ),
        ("set limit of all to any number",),
    ]
    assert writer.reader.limits() == Limits(Limit(5, 0.5))
    with (
        Writer(mongo_uri, "production", actor="ada", database=database) as ada,
        pytest.raises(AccessDeniedError, match="roles and limits of everything"),
    ):
        limit(ada, actor=(1000, 1000.0))


@pytest.mark.parametrize(
    ("whose", "capacity", "rate", "message"),
    [
        ("team", 1, 1, "whose: is 'team'. Write one of: actor, environment"),
        ("actor", 0, 1, "capacity: is 0. Write how many changes: 1 to 1,000,000"),
        ("actor", 1.5, 1, "capacity: is 1.5"),
        ("actor", True, 1, "capacity: is True"),
        ("actor", 1, 0, "rate: is 0. Write changes a second, such as 0.5"),
        ("actor", 1, float("nan"), "rate: is nan"),
        ("actor", 1, True, "rate: is True"),
        ("actor", 1, "1", "rate: is '1'"),
    ],
)
def test_limits_that_make_no_sense_are_refused(
    whose: Any, capacity: Any, rate: Any, message: str
) -> None:
    with pytest.raises(InvalidDocumentError) as caught:
        Draft("production").set_limit(whose, capacity=capacity, rate=rate)
    assert message in str(caught.value)


PROCESSES, ATTEMPTS = 8, 15


@pytest.mark.mongo
def test_limits_hold_over_processes_that_hammer(
    writer: Writer, mongo_uri: str, database: str
) -> None:
    held = Limits(Limit(4, 8.0), Limit(10, 20.0))
    limit(writer, actor=(4, 8.0), environment=(10, 20.0))
    names = [f"actor-{i % 4}" for i in range(PROCESSES)]

    def hammer(says: Connection, name: str, number: int) -> None:
        refused = 0
        with Writer(mongo_uri, "production", actor=name, database=database) as mine:
            for i in range(ATTEMPTS):
                try:
                    mine.create(flag(f"hammer.p{number}-{i}"))
                except RateLimitedError:
                    refused += 1
        says.send(refused)

    children = [
        ForkedChild(lambda says, name=name, number=number: hammer(says, name, number))  # type: ignore[misc]
        for number, name in enumerate(names)
    ]
    refused = 0
    for child in children:
        with child:
            refused += child.says()
    made = list(writer.reader.entries(after=1))
    assert len(made) + refused == PROCESSES * ATTEMPTS
    assert refused > 0
    model = Model(held)
    times = [(entry.time - EPOCH) // timedelta(microseconds=1) for entry in made]
    for entry, time in zip(made, times, strict=True):
        assert model.allows(entry.actor, time)
    assert_within(Limit(10, 20.0), times)
    for name in set(names):
        own = [time for entry, time in zip(made, times, strict=True) if entry.actor == name]
        assert_within(Limit(4, 8.0), own)
    assert writer.reader.verify() == []


# The names of buckets


def names_guessed(head: dict[str, Any], actor: str) -> set[str]:
    """Return what somebody would call an actor's bucket who has the head and no secret."""
    parts = [head["epoch"], head["_id"], "", head["hash"], head["change"]["previous_hash"]]
    texts = [f"{part}{gap}{actor}" for part in parts for gap in (" ", "", ":", "/")]
    found = {hashlib.sha256(text.encode()).hexdigest() for text in texts}
    keyed = {hmac.digest(part.encode(), actor.encode(), "sha256").hex() for part in parts if part}
    return {name[:16] for name in found | keyed}


def keys_in(direct: Database[dict[str, Any]]) -> list[dict[str, Any]]:
    return direct.bucket_keys.find().to_list()


@pytest.mark.mongo
def test_a_reader_of_the_head_cannot_test_a_guess_at_an_actors_name(
    writer: Writer, mongo_uri: str, database: str, direct: Database[dict[str, Any]]
) -> None:
    limit(writer, actor=(3, 0.001))
    with writer.change() as change:
        change.grant("tester", "admin")
        change.grant("erin", "releaser")
    writer.create(flag("a.one"), actor="erin")
    with writer.change() as change:
        change.revoke("erin")
    (head,) = direct.heads.find()
    assert len(head["buckets"]) == 1
    assert not names_guessed(head, "erin") & head["buckets"].keys()
    erase_actor("erin", uri=mongo_uri, database=database)
    (head,) = direct.heads.find()
    assert len(head["buckets"]) == 1
    assert not names_guessed(head, "erin") & head["buckets"].keys()
    assert "bucket_keys" not in ROLES[READER]


@pytest.mark.mongo
def test_the_key_of_an_older_environment_is_made_by_the_first_change_that_needs_it(
    writer: Writer, direct: Database[dict[str, Any]]
) -> None:
    limit(writer, actor=(1, 0.001))
    direct.bucket_keys.delete_many({})
    writer.store._bucket_keys.clear()
    with writer.preview() as change:
        change.create(flag("a.one"))
    assert keys_in(direct) == []
    writer.create(flag("a.one"))
    (made,) = keys_in(direct)
    assert len(made["key"]) == 32
    assert made["_id"] == {"environment": "production", "epoch": writer.store.read_tip().epoch}
    with pytest.raises(RateLimitedError):
        writer.create(flag("a.two"))
    assert keys_in(direct) == [made]


@pytest.mark.mongo
def test_an_administrator_makes_the_keys_that_are_missing(
    writer: Writer, mongo_uri: str, database: str, direct: Database[dict[str, Any]]
) -> None:
    writer.store.create_environment("another")
    (made,) = keys_in(direct)
    with DatabaseAdmin(mongo_uri, database) as administration:
        assert administration.prepare() == []
        direct.bucket_keys.delete_many({})
        assert administration.prepare() == ["bucket_keys: 1 made"]
        assert administration.prepare() == []
    (anew,) = keys_in(direct)
    assert (anew["_id"], anew["key"] != made["key"]) == (made["_id"], True)


@pytest.mark.mongo
def test_writers_that_make_the_key_at_once_end_with_the_same(
    writer: Writer, mongo_uri: str, database: str, direct: Database[dict[str, Any]]
) -> None:
    epoch = writer.store.read_tip().epoch
    direct.bucket_keys.delete_many({})
    with ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        writers = [
            stack.enter_context(Writer(mongo_uri, "production", actor="x", database=database))
            for _ in range(8)
        ]
        begin = threading.Barrier(len(writers))

        def key_of(each: Writer) -> bytes | None:
            begin.wait()
            return each.store.read_bucket_key(epoch, make=True)

        found = {*pool.map(key_of, writers)}
    (made,) = keys_in(direct)
    assert found == {made["key"]}


@pytest.mark.mongo
def test_the_key_is_read_once_and_only_where_it_is_needed(
    writer: Writer, mongo_uri: str, database: str
) -> None:
    limit(writer, environment=(9, 1))
    read = CommandLog()
    uri = mongo_uri
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(driver._DEFAULTS, "event_listeners", [read])
        another = Writer(uri, "production", actor="ada", database=database)
    with another:
        another.create(flag("a.one"))
        assert read.finds("bucket_keys") == 0
        limit(writer, actor=(9, 1))
        for _ in range(3):
            another.update(flag("a.one"))
        assert read.finds("bucket_keys") == 1


class CommandLog(CommandListener):
    """Counts what a client asks of collections."""

    def __init__(self) -> None:
        self._found: list[str] = []

    def started(self, event: CommandStartedEvent) -> None:
        """Note a command."""
        self._found.append(str(event.command.get("find")))

    def succeeded(self, event: CommandSucceededEvent) -> None:
        """Pass over it."""

    def failed(self, event: CommandFailedEvent) -> None:
        """Pass over it."""

    def finds(self, collection: str) -> int:
        """Return how often a collection was searched."""
        return self._found.count(collection)


@pytest.mark.mongo
@pytest.mark.usefixtures("_unvalidated")
@pytest.mark.parametrize("key", [b"", b"short", "text", None, 7])
def test_a_key_that_was_altered_is_named(
    key: object, writer: Writer, direct: Database[dict[str, Any]]
) -> None:
    limit(writer, actor=(9, 1))
    direct.bucket_keys.update_one({}, {"$set": {"key": key}})
    writer.store._bucket_keys.clear()
    with pytest.raises(StoreError, match=r"bucket_keys .*'production'.*: key is not 32 bytes"):
        writer.create(flag("a.one"))
    with writer.change() as change:
        change.lift_limit("actor")
    writer.create(flag("a.one"))


@pytest.mark.mongo
@pytest.mark.usefixtures("_unvalidated")
@pytest.mark.parametrize(
    "altered", [Int64(2**62), Int64(2**63 - 1), 10**18, -7, "text", None, 0.5, True, [1], {"a": 1}]
)
def test_an_altered_bucket_is_at_most_an_empty_one(
    altered: object, writer: Writer, direct: Database[dict[str, Any]]
) -> None:
    limit(writer, environment=(5, 1))
    direct.heads.update_one({}, {"$set": {"buckets": {ALL_ACTORS: altered}}})
    try:
        writer.create(flag("a.one"))
    except RateLimitedError as error:
        assert isinstance(altered, int)
        assert 0 < error.retry_after <= 1  # noqa: PT017 - it may not come
    direct.heads.update_one({}, {"$set": {"buckets": altered}})
    writer.create(flag("a.two"))
    writer.pause("a.two")


@given(
    st.builds(Limit, st.integers(1, 1_000_000), st.floats(1e-6, 1e6)),
    st.builds(Limit, st.integers(1, 1_000_000), st.floats(1e-6, 1e6)),
    st.integers(0, 2**63),
)
def test_what_another_limit_left_of_a_bucket_never_overflows(
    held: Limit, lifted: Limit, more: int
) -> None:
    now = 1_800_000_000 * SECOND
    for full_at in (now + more, lifted.find_full_time(now)):
        try:
            after = take_tokens(Limits(environment=held), {ALL_ACTORS: full_at}, "", now)[
                ALL_ACTORS
            ]
        except RateLimitedError as error:
            assert error.retry_after <= 1 / held.rate + 1e-6  # noqa: PT017 - it may not come
        else:
            assert after <= held.find_full_time(now)
