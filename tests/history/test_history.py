"""History: what it was then, to the letter; and digests, which are checked against it."""

import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any
from uuid import UUID

import msgspec
import pytest
from bson import ObjectId
from hypothesis import given
from hypothesis import strategies as st
from pymongo import MongoClient
from pymongo.database import Database

from flagkit import Client, Context, ErrorCode, Evaluation, Explanation, use_context
from flagkit._core.evaluation.evaluator import Evaluator, Staleness
from flagkit._core.model.changes import PolicyChange, build_next_change
from flagkit.errors import (
    ConfigurationError,
    EnvironmentNotFoundError,
    EvaluationDigestError,
    HistoryLostError,
    InvalidContextError,
    InvalidDocumentError,
    NotFoundError,
    RevisionNotFoundError,
    WriteError,
)
from flagkit.history import (
    PREFIX,
    EvaluationDigest,
    client_at,
    decode_digest,
    digest_of,
    encode_digest,
    hash_context,
    replay,
)
from flagkit.testing import ManualClock, client_from
from flagkit.writer import Draft, Writer
from flagkit.writer.operations import SetState
from flagkit.writer.planning import plan
from tests.evaluation.test_compiler import VALUES
from tests.soak.fuzzing import FLAG_COUNT, SEGMENTS, ContextGenerator, PolicyGenerator, format_key
from tests.writer.test_writer import flag

MONGO = pytest.mark.mongo
REGIONS = ("*", "eu")
STAFF = {"name": "staff", "when": {"$segment": "staff"}, "serve": "on"}
ADA = {"targeting_key": "ada", "country": "DE"}


class At:
    """Asks one environment as it was."""

    def __init__(self, uri: str, database: str) -> None:
        self.place: dict[str, Any] = {"uri": uri, "environment": "production", "database": database}

    def __call__(self, at: datetime | int | None = None, region: str | None = None) -> Client:
        return client_at(at=at, region=region, **self.place)


@pytest.fixture
def at(mongo_uri: str, database: str) -> At:
    return At(mongo_uri, database)


@pytest.fixture
def stored(mongo_uri: str, database: str) -> Iterator[Database[Any]]:
    with MongoClient[Any](mongo_uri) as client:
        yield client[database]


def at_time(snapshot: Any, moment: datetime) -> Client:
    return Client.from_snapshot(snapshot, moment.timestamp)


def removed(change: Draft, key: str, region: str = "*") -> None:
    change.archive(key, region=region)
    change.delete(key, region=region)


@MONGO
def test_flags_overrides_segments_and_prerequisites_are_of_one_revision(
    writer: Writer, at: At
) -> None:
    off = {"fallthrough": {"serve": "off"}}
    writer.create_segment({"key": "staff", "included": ["ada"]})
    with writer.change() as change:
        change.create(flag("a.base"))
        needs = [{"flag": "a.base", "variants": ["on"]}]
        change.create(flag("a.top", rules=[STAFF], prerequisites=needs, **off))
        change.create(flag("a.top", region="eu", prerequisites=needs))
    writer.change_members("staff", include=["bob"], remove=["ada"])
    writer.pause("a.base")
    with writer.change() as change:
        removed(change, "a.top", "eu")

    def on(revision: int, region: str) -> list[str]:
        then = at(revision, region)
        assert then.revision == revision
        return [user for user in ("ada", "bob", "dana") if then.is_enabled("a.top", user)]

    assert [on(revision, "us") for revision in range(1, 6)] == [[], ["ada"], ["bob"], [], []]
    assert [on(revision, "eu") for revision in range(1, 5)] == [
        *([], ["ada", "bob", "dana"], ["ada", "bob", "dana"], [])
    ]
    writer.resume("a.base")
    assert [on(6, region) for region in ("us", "eu")] == [["bob"], ["bob"]]
    then = at(2, "eu").bind("ada").explain("a.top")
    assert "a.base" in str(then)
    assert then.time == at(2).explain("a.top").time


@MONGO
def test_what_was_deleted_created_again_and_rolled_back_is_there_where_it_was(
    writer: Writer, at: At
) -> None:
    writer.create(flag(variants={"on": 1, "off": 0}))
    with writer.change() as change:
        removed(change, "shop.search")
    writer.create(flag(variants={"on": 2, "off": 0}))
    writer.rollback(to=1)
    writer.rollback(to=0)
    found = [at(revision).evaluate("shop.search") for revision in range(1, 6)]
    assert [evaluation.value for evaluation in found] == [1, None, 2, 1, None]
    assert [evaluation.version for evaluation in found] == [1, 0, 2, 3, 0]
    assert [evaluation.revision for evaluation in found] == [1, 2, 3, 4, 5]
    assert at(2).policy("shop.search") is None
    assert at(3).policy("shop.search") == at(3).policy("shop.search")
    assert at(3).keys() == ["shop.search"]


@MONGO
def test_a_moment_is_the_last_revision_not_later_and_the_clock(writer: Writer, at: At) -> None:
    first = writer.create(flag()).time
    made = writer.pause("shop.search")
    while made.time == first:
        made = writer.pause("shop.search")
    then = at(made.time - timedelta(milliseconds=1))
    assert then.is_enabled("shop.search")
    assert then.explain("shop.search").time == made.time - timedelta(milliseconds=1)
    now = at(made.time.astimezone())
    assert (now.revision, now.is_enabled("shop.search")) == (made.revision, False)
    newest = at()
    assert newest.revision == made.revision
    assert made.time <= newest.explain("shop.search").time


@MONGO
def test_windows_and_ramps_are_those_of_the_moment(writer: Writer, at: At) -> None:
    # Which is the server's: a moment that is still to come is refused.
    start = writer.create(flag("a.first")).time
    day = timedelta(days=1)
    ramp = {"variant": "on", "otherwise": "off", "from": 0, "to": 100}
    ramp |= {"start": start - day, "end": start + day}
    window = {"name": "window", "during": {"until": start + day}, "serve": "on"}
    with writer.change() as change:
        change.create(flag("a.ramp", fallthrough={"ramp": ramp}))
        change.create(flag("a.window", rules=[window], fallthrough={"serve": "off"}))
    then = at(2)
    moment = then.explain("a.ramp").time
    assert moment - start < timedelta(minutes=1)
    keys = [f"user-{number}" for number in range(400)]
    assert 150 < sum(then.is_enabled("a.ramp", key) for key in keys) < 250
    assert then.evaluate("a.window").valid_until == start + day
    assert then.is_enabled("a.window")
    pinned = at_time(then.snapshot, start + day)
    assert all(pinned.is_enabled("a.ramp", key) for key in keys)
    assert not pinned.is_enabled("a.window")


class Watched:
    """A random history, and what live clients answered at each of its revisions."""

    def __init__(self, writer: Writer, seed: int, lives: dict[str, Client]) -> None:
        self.writer = writer
        self.chance = random.Random(seed)
        self.lives = lives
        self.policies = PolicyGenerator(self.chance)
        self.contexts = ContextGenerator(self.chance, self.policies.conditions)
        self.answers: list[tuple[str, Any, Evaluation[Any], Explanation, str]] = []

    def begin(self) -> None:
        """Make the first revision: most of the flags, and all segments."""
        with self.writer.change() as change:
            for segment in SEGMENTS:
                change.create_segment(self.policies.segment(segment))
            for number in range(FLAG_COUNT - 5):
                policy = self.policies.good(number)
                wanted = policy.get("prerequisites", [])
                earlier = {format_key(other) for other in range(number)}
                policy["prerequisites"] = [item for item in wanted if item["flag"] in earlier]
                change.create(policy)

    def go_on(self) -> None:
        """Make a revision, and ask clients that follow at the time at which it was made."""
        while True:
            try:
                with self.writer.change() as change:
                    for _ in range(self.chance.choice((1, 2, 6))):
                        self._operate(change)
                break
            except (WriteError, NotFoundError, InvalidDocumentError):
                continue
        commit = change.commit
        assert commit is not None
        for region, live in self.lives.items():
            live.wait_for(commit.revision)
            pinned = at_time(live.snapshot, commit.time)
            for _ in range(8):
                key, context = format_key(self.chance.randrange(FLAG_COUNT)), self.contexts.prompt()
                evaluation = pinned.evaluate(key, context)
                try:
                    digest = digest_of(pinned, evaluation, context, secret="s")
                except InvalidContextError:
                    digest = ""
                explanation = pinned.explain(key, context)
                self.answers.append((region, context, evaluation, explanation, digest))

    def _operate(self, change: Draft) -> None:
        chance, key = self.chance, format_key(self.chance.randrange(FLAG_COUNT))
        policy: dict[str, Any] = self.policies.good(chance.randrange(FLAG_COUNT))
        policy["region"] = region = chance.choice(["*", "*", "eu"])
        segment = self.policies.segment(chance.choice(SEGMENTS))
        operations: list[Callable[[], object]] = [
            *[lambda: change.create(policy)] * 4,
            *[lambda: change.update(policy, reassign=True)] * 2,
            lambda: change.pause(key, region=region),
            lambda: removed(change, key, region),
            lambda: change.rollback(key, to=chance.randrange(1, 20), region=region),
            lambda: change.create_segment(segment),
            lambda: change.update_segment(segment),
            lambda: change.change_members(segment["key"], include=["ab"], remove=["x"]),
        ]
        chance.choice(operations)()


@MONGO
@pytest.mark.parametrize("seed", range(2))
def test_it_answers_exactly_what_live_clients_answered(
    seed: int, writer: Writer, at: At, mongo_uri: str, database: str
) -> None:
    clients = {region: Client(region=region, **at.place).start() for region in REGIONS}
    watched = Watched(writer, seed, clients)
    watched.begin()
    for number in range(14):
        watched.go_on()
        if number in (4, 9):
            writer.reader.write_checkpoint()
    for client in clients.values():
        client.close()
    past = {
        (region, revision): at(revision, region) for region in REGIONS for revision in range(2, 16)
    }
    replayed = 0
    for region, context, evaluation, explanation, digest in watched.answers:
        then = past[region, evaluation.revision]
        assert then.evaluate(evaluation.flag_key, context) == evaluation
        # As text: what was seen of a context may hold a NaN, which is unequal to itself.
        assert repr(then.explain(evaluation.flag_key, context)) == repr(explanation)
        if digest and watched.chance.random() < 0.1:
            found = replay(mongo_uri, digest, context, database=database, secret="s")
            assert found.differences == ()
            assert found.evaluation == evaluation
            replayed += 1
    assert replayed > 5
    reasons = {evaluation.reason for _, _, evaluation, _, _ in watched.answers}
    assert len(reasons) >= 4


@MONGO
def test_the_nearest_of_what_is_kept_is_gone_on_from(
    writer: Writer, at: At, stored: Database[Any]
) -> None:
    for number in range(1, 9):
        writer.create(flag(f"a.a{number}"))
        if number in (3, 5):
            writer.reader.write_checkpoint()
    stored.command("profile", 2)
    read: list[set[str]] = []
    for revision in range(1, 9):
        then = at(revision)
        assert then.keys() == [f"a.a{number}" for number in range(1, revision + 1)]
        names = stored["system.profile"].distinct("ns")
        read.append({str(name).partition(".")[2] for name in names} & {"segments", "slices"})
        stored.command("profile", 0)
        stored["system.profile"].drop()
        stored.command("profile", 2)
    stored.command("profile", 0)
    checkpoint, present = {"slices"}, {"segments"}
    nothing: set[str] = set()
    nearest = [nothing, *[checkpoint] * 5, present, present]
    assert read == nearest


@MONGO
def test_where_one_way_is_of_no_use_another_is_gone(
    writer: Writer, at: At, stored: Database[Any]
) -> None:
    for number in range(1, 5):
        writer.create(flag(f"a.a{number}"))
        if number == 2:
            writer.reader.write_checkpoint()
    stored.slices.delete_many({})
    assert at(2).keys() == ["a.a1", "a.a2"]
    stored.flags.update_one({"_id.key": "a.a1"}, {"$set": {"body": b"", "policy.owner": "eve"}})
    assert at(3).keys() == ["a.a1", "a.a2", "a.a3"]
    stored.flags.update_one({"_id.key": "a.a1"}, {"$set": {"format": 0}})
    assert at(3).keys() == ["a.a1", "a.a2", "a.a3"]


@MONGO
def test_a_change_that_is_not_projected_yet_counts_and_can_be_undone(
    writer: Writer, at: At
) -> None:
    writer.create(flag())
    with writer.store.open_reader() as reading:
        planned = plan([SetState(key="shop.search", verb="pause")], reading, 1, {})
    change = build_next_change(reading.tip, "the-dead-one", reading.now, planned.changes)
    assert writer.store.compare_and_set(reading.tip, change)
    found = [at(1), at(2), at(), at(change.tip.time)]
    assert [then.revision for then in found] == [1, 2, 2, 2]
    assert [then.is_enabled("shop.search") for then in found] == [True, False, False, False]


@MONGO
def test_what_cannot_be_asked_is_said_with_what_can(writer: Writer, at: At) -> None:
    with pytest.raises(RevisionNotFoundError, match="nothing was changed yet"):
        at()
    with pytest.raises(RevisionNotFoundError, match="nothing was changed"):
        at(datetime.now(UTC) - timedelta(days=1))
    first = writer.create(flag()).time
    for revision in (0, -1, 2):
        with pytest.raises(RevisionNotFoundError, match=f"no revision {revision} .*1 to 1"):
            at(revision)
    with pytest.raises(RevisionNotFoundError, match=f"first revision was made at {first:%Y-%m-%d}"):
        at(first - timedelta(milliseconds=1))
    with pytest.raises(ConfigurationError, match="still to come: the server has"):
        at(first + timedelta(days=1))
    naive = first.replace(tzinfo=None)
    with pytest.raises(ConfigurationError, match=r"without a time zone: write .*\+00:00"):
        at(naive)
    for odd in (True, "2026-11-21", 1.5):
        with pytest.raises(ConfigurationError, match=r"at is .*: pass a datetime"):
            at(odd)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    with pytest.raises(EnvironmentNotFoundError):
        client_at(at.place["uri"], "elsewhere", at=1, database=at.place["database"])


@MONGO
def test_where_the_ledger_was_pruned_it_says_from_where_on_it_can_be_asked(
    writer: Writer, at: At, stored: Database[Any]
) -> None:
    times: list[datetime] = []
    for number in range(1, 6):
        with writer.change() as change:
            change.create(flag(f"a.a{number}", description=f"since {number}"))
            if number > 1:
                change.update(flag("a.a1", fallthrough={"serve": "off" if number % 2 else "on"}))
        times.append(change.commit.time if change.commit else pytest.fail("nothing was done"))
        if number == 2:
            writer.reader.write_checkpoint()
    stored.ledger.delete_many({"revision": {"$lte": 2}})
    assert [len(at(revision).keys()) for revision in (2, 3, 4, 5)] == [2, 3, 4, 5]
    assert at(times[1]).revision == 2
    with pytest.raises(HistoryLostError, match=r"pruned. Ask for revision 2 \(20.*or a later one"):
        at(1)
    with pytest.raises(HistoryLostError, match="is not known any more"):
        at(times[0] - timedelta(days=1))
    stored.checkpoints.delete_many({})
    with pytest.raises(HistoryLostError, match="Ask for revision 3 "):
        at(2)
    assert at(3).keys() == ["a.a1", "a.a2", "a.a3"]
    found = [at(revision).is_enabled("a.a1") for revision in (3, 4, 5)]
    assert found == [False, True, False]


@MONGO
def test_what_changes_say_has_to_add_up_to_the_digests(writer: Writer, at: At) -> None:
    writer.create(flag())
    with writer.store.open_reader() as reading:
        before = reading.find_flags(["shop.search"])["*", "shop.search"]
        planned = plan([SetState(key="shop.search", verb="pause")], reading, 1, {})
    after = planned.changes[0].after
    # Well-chained lies that cancel out: the digest of revision 2 is that of revision 1.
    for edit in (PolicyChange(after, after), PolicyChange(before, after)):
        tip = writer.store.read_tip()
        change = build_next_change(tip, f"forged-{tip.revision}", tip.time, [edit])
        assert writer.store.compare_and_set(tip, change)
        writer.store.project(change)
    for number in range(3):
        writer.create(flag(f"a.a{number}"))
    assert [at(revision).is_enabled("shop.search") for revision in (1, 2, 3)] == [True, True, False]


@MONGO
def test_a_history_that_was_altered_is_not_answered_from(
    writer: Writer, at: At, stored: Database[Any]
) -> None:
    writer.create(flag())
    writer.pause("shop.search")
    for number in range(4):
        writer.create(flag(f"a.a{number}"))
    writer.reader.write_checkpoint()
    stored.ledger.update_one({"revision": 3}, {"$set": {"request": "another"}})
    assert at(1).is_enabled("shop.search")
    for revision in (2, 3):
        with pytest.raises(HistoryLostError, match=r"cannot be put together: revision 3 is not"):
            at(revision)
    assert at(4).keys() == ["a.a0", "a.a1", "shop.search"]
    # Where one way is of no use, another is gone.
    stored.flags.update_one({"_id.key": "a.a2"}, {"$set": {"version": 9}})
    assert [len(at(revision).keys()) for revision in (5, 6)] == [4, 5]
    stored.checkpoints.delete_many({})
    for revision in (5, 6):
        with pytest.raises(HistoryLostError, match="cannot be put together"):
            at(revision)


@MONGO
def test_members_of_then_have_to_be_there(writer: Writer, at: At, stored: Database[Any]) -> None:
    writer.create_segment({"key": "staff", "included": ["ada"]})
    writer.delete_segment("staff")
    writer.create(flag())
    assert at(1).revision == 1
    stored.members.delete_many({})
    with pytest.raises(
        HistoryLostError, match="had at revision 1 are not there any more: ask a later"
    ):
        at(1)
    assert at(2).revision == 2


@MONGO
def test_readers_rights_are_enough(writer: Writer, at: At, stored: Database[Any]) -> None:
    writer.create_segment({"key": "staff", "included": ["ada"]})
    writer.create(flag(rules=[STAFF]))
    writer.reader.write_checkpoint()
    writer.pause("shop.search")
    writer.change_members("staff", include=["bob"])
    stored.command("profile", 2)
    for revision in (1, 2, 3, 4):
        at(revision)
    stored.command("profile", 0)
    found = stored["system.profile"].find()
    done = {(entry["op"], entry["ns"].partition(".")[2]) for entry in found}
    readable = {"heads", "ledger", "flags", "segments", "members", "checkpoints", "slices"}
    assert {name for _, name in done} == readable
    assert {operation for operation, _ in done} <= {"query", "command", "getmore"}


@MONGO
def test_a_digest_is_short_and_holds_nothing_of_the_context(writer: Writer, at: At) -> None:
    ramp = {"variant": "on", "otherwise": "off", "from": 0, "to": 100}
    ramp |= {"start": "2026-01-01T00:00:00Z", "end": "2036-01-01T00:00:00Z"}
    writer.create(flag("checkout.express-pay", fallthrough={"ramp": ramp}))
    then = at(1)
    answer = then.evaluate("checkout.express-pay", ADA)
    digest = digest_of(then, answer, ADA)
    assert digest.startswith(PREFIX)
    assert len(digest) < 200
    said = decode_digest(digest, b"")
    assert (said.environment, said.key, said.revision) == ("production", answer.flag_key, 1)
    assert (said.variant, said.reason) == (answer.variant, "SPLIT")
    assert b"ada" not in msgspec.msgpack.encode(said)
    assert then.explain("checkout.express-pay").time.timestamp() * 1e6 == said.moment


@pytest.fixture
def ramped(writer: Writer) -> datetime:
    """Return when a ramp began: nobody at first, all a day later, and nobody after another day."""
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(days=2)
    steps = [{"at": start, "percent": 0}, {"at": start + timedelta(days=1), "percent": 100}]
    steps.append({"at": start + timedelta(days=2), "percent": 0})
    ramp = {"variant": "on", "otherwise": "off", "steps": steps}
    writer.create(flag(fallthrough={"ramp": ramp}, when_stale="off"))
    writer.pause("shop.search")
    return start


@MONGO
def test_a_replay_says_what_differs(
    ramped: datetime, at: At, mongo_uri: str, database: str
) -> None:
    then = at_time(at(1).snapshot, ramped + timedelta(hours=1))
    digest = digest_of(then, then.evaluate("shop.search", ADA), ADA)
    found = replay(mongo_uri, digest, ADA, database=database)
    assert (found.is_same, found.variant, found.revision) == (True, "off", 1)
    assert (found.environment, found.region, found.key) == ("production", "*", "shop.search")
    assert found.time == ramped + timedelta(hours=1)
    other = replay(mongo_uri, digest, ADA | {"country": "AT"}, database=database)
    assert other.differences == ("the context is another: its hash is not the one of then",)
    none = replay(mongo_uri, digest, {"country": "DE"}, database=database)
    assert not none.is_same
    missing = "the caller's default (ERROR, TARGETING_KEY_MISSING)"
    assert none.differences[1:] == (f"the answer is another: then 'off' (SPLIT), now {missing}",)
    with use_context(ADA):
        assert replay(mongo_uri, digest, database=database).is_same


@MONGO
def test_a_digest_that_is_made_late_is_of_when_the_answer_was_given(
    ramped: datetime, at: At, mongo_uri: str, database: str
) -> None:
    clock = ManualClock(ramped + timedelta(hours=23))
    snapshot = at(1).snapshot
    assert snapshot is not None
    then = Client.from_snapshot(snapshot, lambda: clock().timestamp())
    answer = then.evaluate("shop.search", ADA)
    clock.advance(3600)
    assert then.is_enabled("shop.search", ADA) != answer.value
    for asked in (then, at_time(at(2).snapshot, clock())):
        found = replay(mongo_uri, digest_of(asked, answer, ADA), ADA, database=database)
        assert found.is_same, found.differences
        assert (found.revision, found.variant) == (1, "off")
    late = then.evaluate("shop.search", ADA)
    # What was asked while the clock passed by may say that it is valid until before.
    early = msgspec.structs.replace(late, valid_until=answer.valid_until)
    clock.advance(25 * 3600)
    assert then.is_enabled("shop.search", ADA) != early.value
    found = replay(mongo_uri, digest_of(then, early, ADA), ADA, database=database)
    assert (found.is_same, found.variant) == (True, "on")
    assert found.time - timedelta(microseconds=1) == answer.valid_until


@MONGO
def test_answers_that_are_stale_or_do_not_fit_are_replayed_as_such(
    ramped: datetime, writer: Writer, at: At, mongo_uri: str, database: str
) -> None:
    needs = [{"flag": "shop.search", "variants": ["on"]}]
    with writer.change() as change:
        change.resume("shop.search")
        change.create(flag("shop.top", prerequisites=needs))
    then = at_time(at(3).snapshot, ramped + timedelta(days=1))
    view = then.evaluator
    assert view is not None
    stale = Evaluator(view.snapshot, view.now, Staleness(0.0))
    defaults: tuple[Any, ...] = (1, "x", 0.5, [], object())
    answers: list[Evaluation[Any]] = [
        then.evaluate("shop.search", ADA),
        then.evaluate("shop.search", ADA, max_staleness=0.0),
        stale.evaluate("shop.search", ADA, None),
        then.evaluate("shop.top", ADA, max_staleness=0.0),
        stale.evaluate("shop.top", ADA, None),
        *(then.evaluate("shop.search", ADA, default) for default in defaults),
        then.evaluate("shop.search", {}),
        then.evaluate("shop.none", ADA),
    ]
    assert [answer.reason for answer in answers[:5]] == ["SPLIT", *["STALE"] * 4]
    assert [answer.variant for answer in answers[:5]] == ["on", "off", "off", "on", "off"]
    assert {answer.error_code for answer in answers[5:10]} == {ErrorCode.TYPE_MISMATCH}
    for answer in answers:
        context = ADA if answer.error_code is not ErrorCode.TARGETING_KEY_MISSING else {}
        found = replay(mongo_uri, digest_of(then, answer, context), context, database=database)
        assert found.differences == ()
    fresh = replay(
        mongo_uri,
        digest_of(then, msgspec.structs.replace(answers[0], variant="off"), ADA),
        ADA,
        database=database,
    )
    assert fresh.differences == ("the answer is another: then 'off' (SPLIT), now 'on' (SPLIT)",)


@MONGO
def test_a_client_of_some_namespaces_is_replayed_as_one(
    writer: Writer, mongo_uri: str, database: str
) -> None:
    writer.create(flag("shop.search"))
    needs = [{"flag": "shop.search", "variants": ["on"]}]
    writer.create(flag("cart.top", prerequisites=needs))
    place: Any = {"environment": "production", "database": database}
    with Client(mongo_uri, namespaces=["cart."], **place) as client:
        client.wait_for(2)
        for key, code in (("shop.search", "FLAG_NOT_FOUND"), ("cart.top", "PARSE_ERROR")):
            answer = client.evaluate(key, ADA)
            assert answer.error_code == code
            digest = digest_of(client, answer, ADA)
            assert replay(mongo_uri, digest, ADA, database=database).differences == ()


@MONGO
def test_another_history_is_told_from_the_one_that_answered(
    writer: Writer, at: At, stored: Database[Any], mongo_uri: str, database: str
) -> None:
    writer.create(flag())
    then = at(1)
    answer = then.evaluate("shop.search", ADA)
    digest = digest_of(then, answer, ADA)
    for name in ("heads", "ledger", "flags"):
        stored[name].delete_many({})
    writer.create_environment()
    writer.create(flag())
    found = replay(mongo_uri, digest, ADA, database=database)
    assert found.differences == ("the history is another: revision 1 is not the one that was then",)
    memory = client_from([flag()])
    for client in (memory, Client.from_source()):
        kept = digest_of(client, client.evaluate("shop.search", ADA), ADA)
        with pytest.raises(EvaluationDigestError, match="came from no revision of a database"):
            replay(mongo_uri, kept, ADA, database=database)


DIGESTS = st.builds(
    EvaluationDigest,
    environment=st.text(max_size=8),
    key=st.text(max_size=8),
    hash=st.binary(max_size=16),
    context=st.binary(max_size=16),
    revision=st.integers(0, 2**40),
    anchor=st.integers(0, 2**40),
    moment=st.integers(-(2**60), 2**60),
)


@given(DIGESTS, st.binary(max_size=80), st.data())
def test_whatever_is_altered_in_a_digest_is_found(
    digest: EvaluationDigest, secret: bytes, data: st.DataObject
) -> None:
    text = encode_digest(digest, secret)
    assert decode_digest(text, secret) == digest
    place = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.characters().filter(lambda letter: letter != text[place]))
    for altered in (
        text[:place] + letter + text[place + 1 :],
        text[:place] + text[place + 1 :],
        text[:place] + letter + text[place:],
        text + "=",
        text.removeprefix(PREFIX),
    ):
        with pytest.raises(EvaluationDigestError):
            decode_digest(altered, secret)
    with pytest.raises(EvaluationDigestError, match="made with another secret"):
        decode_digest(text, secret + b"!")


def test_what_is_no_digest_is_refused() -> None:
    for text in (
        "",
        "fk1.",
        "fk1.AAAA",
        "fk2." + encode_digest(EMPTY, b"").removeprefix(PREFIX),
        "é",
    ):
        with pytest.raises(EvaluationDigestError):
            decode_digest(text, b"")
    odd: Any = [1, 2]
    with pytest.raises(EvaluationDigestError, match="it was forged"):
        decode_digest(encode_digest(odd, b""), b"")


EMPTY = EvaluationDigest("", "*", (), "a.a", 1, 1, b"", 0, b"", None, "STATIC", None, "")


class Plan(StrEnum):
    PRO = "pro"


@given(st.dictionaries(st.text(max_size=3), VALUES, max_size=4), st.randoms())
def test_a_context_is_hashed_whatever_the_order_of_its_attributes(
    context: dict[str, Any], chance: random.Random
) -> None:
    names = [*context]
    chance.shuffle(names)
    shuffled = {name: context[name] for name in names}
    assert hash_context(shuffled, b"") == hash_context(Context(None, context), b"")
    assert hash_context(shuffled, b"s") != hash_context(shuffled, b"")


def test_contexts_have_one_hash_if_no_condition_can_tell_them_apart() -> None:
    noon = datetime(2026, 11, 21, 12, tzinfo=UTC)
    same: list[tuple[Any, Any]] = [
        ("ada", {"targeting_key": "ada"}),
        ("ada", Context("ada")),
        ({"a": (1, 2)}, {"a": [1, 2]}),
        ({"a": noon}, {"a": noon.replace(tzinfo=None)}),
        ({"a": noon}, {"a": noon.astimezone() + timedelta(microseconds=9)}),
        ({"a": "pro"}, {"a": Plan.PRO}),
    ]
    for one, other in same:
        assert hash_context(one, b"") == hash_context(other, b""), one
    different: list[Any] = [
        *(None, True, False, 0, 1, 1.0, "1", "", [], {}, [1], ["1"], b"1", Decimal(1), noon),
        *(ObjectId("0" * 24), ObjectId("f" * 24), ObjectId("0" * 24).binary, "0" * 24),
        *(UUID(int=1), UUID(int=1).bytes, 2**70, 10**5000, object(), {"b": 1, "c": 2}),
        *({"c": 2, "b": 1}, {1: 2}, {None: 2}, "\ud800", float("nan"), {1, 2}),
    ]
    hashes = {hash_context({"a": value}, b"") for value in different}
    assert len(hashes) == len(different)


def test_what_is_no_context_has_no_hash() -> None:
    endless: list[Any] = []
    endless.append(endless)
    contexts: list[Any] = [1.5, {"a": endless}]
    for context in contexts:
        with pytest.raises(InvalidContextError):
            digest_of(client_from([flag()]), EVALUATION, context)


EVALUATION = client_from([flag()]).evaluate("shop.search", {})


def test_the_secret_may_be_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_from([flag()])
    digests = [digest_of(client, EVALUATION, "ada", secret=secret) for secret in (None, "s", b"s")]
    monkeypatch.setenv("FLAGKIT_DIGEST_SECRET", "s")
    digests.append(digest_of(client, EVALUATION, "ada"))
    said = [
        decode_digest(text, secret)
        for text, secret in zip(digests, (b"", b"s", b"s", b"s"), strict=True)
    ]
    assert said[0].context != said[1].context
    assert said[1].context == said[2].context == said[3].context
