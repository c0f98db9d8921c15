"""Views: what is compiled, carried over, dropped, and answered where a policy is bad."""

import logging
import sys
import threading
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flagkit._core.evaluation import compiled_flag
from flagkit._core.evaluation import evaluator as room
from flagkit._core.evaluation.bucketing import compute_bucket, compute_seed
from flagkit._core.evaluation.compiled_flag import PrerequisiteChain
from flagkit._core.evaluation.evaluator import Evaluator
from flagkit._core.evaluation.result import CALLERS_DEFAULT, ErrorCode, Outcome, Reason
from flagkit._core.evaluation.schedule import find_flag_change
from flagkit._core.model import decode
from flagkit._core.model.changes import PolicyState, Tip, build_genesis_tip, build_state
from flagkit._core.snapshot import Snapshot, build_arena, build_snapshot, encode_record
from flagkit.testing import MemoryHistory

pytestmark = pytest.mark.every_python

BOOLEAN = {"on": True, "off": False}


def policy(key: str, *prerequisites: str, **fields: Any) -> dict[str, Any]:
    """A flag that is on for plan pro, and off where a prerequisite is not on."""
    return {
        "key": key,
        "variants": BOOLEAN,
        "off": "off",
        "prerequisites": [{"flag": flag, "variants": ["on"]} for flag in prerequisites],
        "rules": [{"name": "pro", "when": {"plan": "pro"}, "serve": "on"}],
        "fallthrough": {"serve": "off"},
    } | fields


class Viewed:
    """A history and the view of its tip."""

    def __init__(self, *documents: Mapping[str, Any], region: str = "*") -> None:
        self.history = MemoryHistory()
        self.view = Evaluator(build_snapshot(self.history.tip, region, ()), lambda: 0.0)
        if documents:
            self.commit(*documents)

    def commit(self, *documents: Mapping[str, Any], delete: Iterable[str] = ()) -> None:
        """Add a revision and take the view of it, with what can be carried over."""
        change = self.history.commit(*documents, delete=[("*", key) for key in delete])
        self.view = self.view.advance(self.view.snapshot.apply([change]), [change])

    def outcome(self, key: str, context: Any = "someone") -> Outcome:
        compiled = self.view.find(key)
        assert compiled is not None
        evaluator = compiled.evaluation_fn
        return evaluator if isinstance(evaluator, Outcome) else evaluator(context)

    def variant(self, key: str) -> str | None:
        return self.outcome(key, {"plan": "pro"}).variant

    def compiled(self, *keys: str) -> dict[str, object]:
        found = {key: self.view.find(key) for key in keys}
        return {key: compiled for key, compiled in found.items() if compiled is not None}


def bad_state(key: str, packed: bytes | None = None) -> PolicyState:
    """Return a state that no writer would have let in."""
    written = build_state(key, "*", 1, {"key": key, "state": "lost"})
    return written if packed is None else PolicyState(key, "*", 1, packed)


def view_of(*states: PolicyState) -> Evaluator:
    tip = build_genesis_tip("test", "epoch", datetime(2026, 1, 1, tzinfo=UTC))
    return Evaluator(snapshot_at(tip, *states), lambda: 0.0)


def snapshot_at(tip: Tip, *states: PolicyState) -> Snapshot:
    return Snapshot(tip, "*", build_arena(tip, map(encode_record, states)))


def state(document: Mapping[str, Any]) -> PolicyState:
    return build_state(document["key"], "*", 1, document)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# What is compiled


def test_a_flag_is_compiled_once_and_an_unknown_one_never() -> None:
    viewed = Viewed(policy("a"))
    first = viewed.view.find("a")
    assert first is not None
    assert viewed.view.find("a") is first
    assert viewed.view.find("b") is None


def test_a_switch_is_the_answer_of_a_constant_boolean_and_a_function_else() -> None:
    viewed = Viewed(
        policy("constant", rules=[]),
        policy("paused", state="paused", off=None),
        policy("rules"),
        policy("text", variants={"on": "x", "off": "y"}, rules=[]),
    )
    view = viewed.view
    assert view.get_boolean_fn("constant") is False
    for default in (True, False):
        for key, expected in (("rules", False), ("text", default), ("paused", default)):
            switch = view.get_boolean_fn(key)
            assert not isinstance(switch, bool)
            assert switch("someone", default) is expected
    assert set(view.boolean_fns) == {"constant", "paused", "rules", "text"}
    with pytest.raises(KeyError):
        view.get_boolean_fn("unknown")


def test_the_clock_of_a_view_decides_its_windows() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    rules = [{"name": "later", "during": {"from": start}, "serve": "on"}]
    states = [state(policy("a", rules=rules))]
    moment = [start.timestamp() - 1]
    tip = build_genesis_tip("test", "epoch", start)
    view = Evaluator(snapshot_at(tip, *states), lambda: moment[0])
    compiled = view.find("a")
    assert compiled is not None
    assert not isinstance(compiled.evaluation_fn, Outcome)
    assert compiled.evaluation_fn("x").variant == "off"
    moment[0] += 1
    assert compiled.evaluation_fn("x").variant == "on"


# What flags of one body share

HALF = policy("half", rules=[], fallthrough={"rollout": 50})
DAY = [datetime(1970, 1, 1 + day, tzinfo=UTC) for day in (0, 1)]
RAMP = {"ramp": {"variant": "on", "otherwise": "off", "start": DAY[0], "end": DAY[1]}}
USERS = [f"user-{i}" for i in range(200)]


def switched(view: Evaluator, key: str) -> list[bool]:
    switch = view.get_boolean_fn(key)
    assert not isinstance(switch, bool)
    return [switch(user, False) for user in USERS]


def test_flags_of_one_body_have_one_code_and_each_its_own_buckets() -> None:
    salted = HALF | {"key": "salted", "fallthrough": {"rollout": {"weights": {"on": 50, "off": 50},
                                                                  "salt": "a"}}}  # fmt: skip
    view = Viewed(HALF | {"key": "a"}, HALF | {"key": "b"}, salted).view
    codes = [cast("Any", view.get_boolean_fn(key)).__code__ for key in ("a", "b", "salted")]
    assert codes[0] is codes[1] is not codes[2]
    a, b = ([compute_bucket(compute_seed(key), user) < 50_000 for user in USERS] for key in "ab")
    assert a != b
    assert switched(view, "a") == a
    assert switched(view, "b") == b
    assert switched(view, "salted") == a
    for key in ("a", "b", "salted"):
        outcomes = [view.evaluate(key, user, None).value for user in USERS]
        assert outcomes == switched(view, key)


def test_flags_of_one_body_keep_their_own_versions_and_clocks() -> None:
    documents = [policy(key, rules=[], fallthrough=RAMP) for key in "ab"]
    views = [view_of(*map(state, documents[:1]), build_state("b", "*", 7, documents[1]))
             for _ in range(2)]  # fmt: skip
    views[1].now = lambda: 43_200.0
    early, late = ([switched(view, key) for key in "ab"] for view in views)
    assert early == [[False] * len(USERS)] * 2
    assert late == [
        [compute_bucket(compute_seed(key), user) < 50_000 for user in USERS] for key in "ab"
    ]
    assert [views[0].evaluate(key, "u", None).version for key in "ab"] == [1, 7]


def test_a_ramp_that_flags_share_comes_to_each_at_its_own_time() -> None:
    documents = [policy(key, rules=[], fallthrough=RAMP) for key in "ab"]
    view = view_of(*map(state, documents))
    for user in USERS:
        found = [view.evaluate(key, user, None).valid_until for key in "ab"]
        expected = [
            find_flag_change(decode(document), document["key"], {"targeting_key": user}, 0.0)
            for document in documents
        ]
        assert [time and time.timestamp() for time in found] == pytest.approx(expected, abs=2e-6)


def test_what_long_bodies_share_is_not_kept() -> None:
    countries = [f"country-{i}" for i in range(compiled_flag.SHARED_BODY_BYTES_MAX // 10)]
    rules = [{"name": "some", "when": {"country": {"$in": countries}}, "serve": "on"}]
    view = Viewed(policy("a", rules=rules)).view
    before = compiled_flag._build_shared_body_cached.cache_info()
    assert view.evaluate("a", {"country": "country-7"}, None).value is True
    assert compiled_flag._build_shared_body_cached.cache_info() == before


# What a change drops


def test_a_change_drops_the_flag_and_those_that_rest_on_it_and_no_others() -> None:
    keys = ("a", "b", "c", "other", "needed")
    viewed = Viewed(
        policy("a"),
        policy("b", "a"),
        policy("c", "b", "needed"),
        policy("other", "needed"),
        policy("needed"),
    )
    before = viewed.compiled(*keys)
    viewed.commit(policy("a", fallthrough={"serve": "on"}))
    after = viewed.compiled(*keys)
    assert {key for key in keys if after[key] is not before[key]} == {"a", "b", "c"}


@pytest.mark.parametrize("first_asked", ["abc", "cba", "c", "bca"])
def test_changing_a_changes_c_by_way_of_b(first_asked: str) -> None:
    viewed = Viewed(policy("a"), policy("b", "a"), policy("c", "b"))
    for key in first_asked:
        assert viewed.variant(key) == "on"
    viewed.commit(policy("a", state="paused"))
    assert [viewed.variant(key) for key in "cba"] == ["off"] * 3
    viewed.commit(policy("a"))
    assert [viewed.variant(key) for key in "cba"] == ["on"] * 3


def test_switches_are_dropped_and_carried_over_with_the_flags() -> None:
    viewed = Viewed(policy("a"), policy("b", "a"), policy("other", rules=[]))
    for key in ("a", "b", "other"):
        viewed.view.get_boolean_fn(key)
    earlier = viewed.view
    viewed.commit(policy("a", rules=[]))
    assert set(viewed.view.boolean_fns) == {"other"}
    assert set(earlier.boolean_fns) == {"a", "b", "other"}


def test_an_earlier_view_goes_on_answering_for_its_revision() -> None:
    viewed = Viewed(policy("a"), policy("b", "a"))
    earlier = viewed.view
    viewed.commit(policy("a", state="paused"))
    assert viewed.variant("b") == "off"
    late = earlier.find("b")
    assert late is not None
    assert not isinstance(late.evaluation_fn, Outcome)
    assert late.evaluation_fn({"plan": "pro"}).variant == "on"
    # What was compiled late in the old view is not seen in the new one.
    assert viewed.variant("b") == "off"


def test_a_flag_that_rests_on_another_no_longer_is_not_wrong() -> None:
    viewed = Viewed(policy("a"), policy("b", "a"))
    assert viewed.variant("b") == "on"
    viewed.commit(policy("b"))
    viewed.commit(policy("a", state="paused"))
    assert viewed.variant("b") == "on"


def test_deleting_and_overriding_are_changes_too() -> None:
    viewed = Viewed(policy("a"), policy("b", "a"), region="eu")
    assert viewed.variant("b") == "on"
    viewed.commit(policy("a", region="eu", state="paused"))
    assert viewed.variant("b") == "off"
    change = viewed.history.commit(delete=[("eu", "a")])
    viewed.view = viewed.view.advance(viewed.view.snapshot.apply([change]), [change])
    assert viewed.variant("b") == "on"
    viewed.commit(delete=["b"])
    assert viewed.view.find("b") is None


def test_several_changes_are_taken_in_at_once() -> None:
    viewed = Viewed(policy("a"), policy("b", "a"), policy("c"))
    before = viewed.compiled("a", "b", "c")
    changes = [
        viewed.history.commit(policy("a", state="paused")),
        viewed.history.commit(policy("d")),
    ]
    viewed.view = viewed.view.advance(viewed.view.snapshot.apply(changes), changes)
    assert (viewed.variant("b"), viewed.variant("d")) == ("off", "on")
    assert viewed.view.find("c") is before["c"]


KEYS = st.sampled_from("abcde")


def answer(view: Evaluator, key: str) -> tuple[str | None, Reason, ErrorCode | None] | None:
    compiled = view.find(key)
    if compiled is None:
        return None
    evaluator = compiled.evaluation_fn
    outcome = evaluator if isinstance(evaluator, Outcome) else evaluator({"plan": "pro"})
    return (outcome.variant, outcome.reason, outcome.error_code)


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["write", "write", "pause", "delete", "ask"]),
            KEYS,
            st.lists(KEYS, max_size=2, unique=True),
        ),
        max_size=12,
    )
)
def test_a_view_carried_over_answers_as_one_made_anew(
    steps: list[tuple[str, str, list[str]]],
) -> None:
    viewed = Viewed()
    for step, key, needed in steps:
        wanted = [other for other in needed if other != key]
        if step == "ask":
            viewed.view.find(key)
        elif step == "delete":
            viewed.commit(delete=[key] if viewed.view.snapshot.find(key) else [])
        else:
            state = "paused" if step == "pause" else "active"
            viewed.commit(policy(key, *wanted, state=state))
        anew = Evaluator(viewed.view.snapshot, lambda: 0.0)
        for asked in needed or "abcde":
            assert answer(viewed.view, asked) == answer(anew, asked)


# Bad policies


@pytest.mark.parametrize("asked", ["a", "b", "c"])
def test_a_cycle_answers_callers_defaults(asked: str, caplog: pytest.LogCaptureFixture) -> None:
    viewed = Viewed(policy("a", "b"), policy("b", "c"), policy("c", "a"), policy("alive"))
    outcome = viewed.outcome(asked)
    assert outcome.error_code is ErrorCode.PARSE_ERROR
    assert (outcome.reason, outcome.value) == (Reason.ERROR, CALLERS_DEFAULT)
    for key in "abcabc":
        assert viewed.outcome(key).error_code is ErrorCode.PARSE_ERROR
    # Each broken flag is said once, and by name; the first of them names the cycle.
    said = warnings(caplog)
    assert sorted(line.split()[0] for line in said) == ["a", "b", "c"]
    assert sum("cycle" in line for line in said) >= 1
    assert viewed.variant("alive") == "on"


def test_a_flag_that_rests_on_itself_is_a_cycle(caplog: pytest.LogCaptureFixture) -> None:
    document = policy("a") | {"prerequisites": [{"flag": "a", "variants": ["on"]}]}
    view = view_of(state(document))
    compiled = view.find("a")
    assert compiled is not None
    assert isinstance(compiled.evaluation_fn, Outcome)
    assert compiled.evaluation_fn.error_code is ErrorCode.PARSE_ERROR
    assert len(warnings(caplog)) == 1


def test_a_missing_prerequisite_answers_callers_defaults_until_it_is_created(
    caplog: pytest.LogCaptureFixture,
) -> None:
    viewed = Viewed(policy("b", "a"), policy("c", "b"))
    for _ in range(3):
        assert viewed.outcome("c").error_code is ErrorCode.PARSE_ERROR
        assert viewed.outcome("b").error_code is ErrorCode.PARSE_ERROR
    said = warnings(caplog)
    assert len(said) == 2
    assert "does not exist" in said[0]
    assert "broken" in said[1]
    viewed.commit(policy("a"))
    assert [viewed.variant(key) for key in "abc"] == ["on"] * 3
    viewed.commit(delete=["a"])
    assert viewed.outcome("c").error_code is ErrorCode.PARSE_ERROR
    assert len(warnings(caplog)) == 4


def test_a_cycle_heals_when_it_is_opened() -> None:
    viewed = Viewed(policy("a", "b"), policy("b", "a"))
    assert viewed.outcome("a").error_code is ErrorCode.PARSE_ERROR
    viewed.commit(policy("b"))
    assert (viewed.variant("a"), viewed.variant("b")) == ("on", "on")


@pytest.mark.parametrize(
    "packed",
    [
        None,
        b"",
        b"\xc1",
        b"\x80",
        b"\x01",
        b"\xa1x",
        b"\x81\xa3key\xa1a",
        b"\xff" * 100,
        b"\x81\x01\x02",
        b"\x81\xa3key\xa1\xff",
        b"\x91" * 100_000,
    ],
    ids=lambda packed: "bad state" if packed is None else repr(packed)[:20],
)
def test_a_bad_state_leaves_the_others_alive(
    packed: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    view = view_of(bad_state("bad", packed), state(policy("good")), state(policy("rests", "bad")))
    for _ in range(2):
        for key in ("bad", "rests"):
            compiled = view.find(key)
            assert compiled is not None
            assert isinstance(compiled.evaluation_fn, Outcome)
            assert compiled.evaluation_fn.error_code is ErrorCode.PARSE_ERROR
    good = view.find("good")
    assert good is not None
    assert not isinstance(good.evaluation_fn, Outcome)
    assert good.evaluation_fn({"plan": "pro"}).variant == "on"
    assert len(warnings(caplog)) == 2


def test_a_bad_flag_heals_with_its_next_version() -> None:
    good = state(policy("a"))
    view = view_of(bad_state("a"), state(policy("b", "a")))
    view.find("b")
    change = MemoryHistory().commit(policy("a"))
    healed = view.advance(snapshot_at(change.tip, good, state(policy("b", "a"))), [change])
    compiled = healed.find("b")
    assert compiled is not None
    assert not isinstance(compiled.evaluation_fn, Outcome)
    assert compiled.evaluation_fn({"plan": "pro"}).variant == "on"


@pytest.mark.parametrize("length", [100, 5_000])
def test_a_long_chain_of_prerequisites_is_answered(length: int) -> None:
    documents = [policy("f0"), *(policy(f"f{i}", f"f{i - 1}") for i in range(1, length))]
    viewed = Viewed(*documents)
    assert viewed.variant(f"f{length - 1}") == "on"
    viewed.commit(policy("f0", state="paused"))
    assert viewed.variant(f"f{length - 1}") == "off"


def test_a_long_chain_that_ends_in_a_cycle_answers_callers_defaults() -> None:
    documents = [policy(f"f{i}", f"f{i - 1}") for i in range(1, 2_000)]
    viewed = Viewed(policy("f0", "f1"), *documents)
    assert viewed.outcome("f1999").error_code is ErrorCode.PARSE_ERROR


def test_flags_that_share_prerequisites_ask_each_of_them_once() -> None:
    documents = [policy("f0"), policy("g0")]
    for i in range(1, 40):
        below = f"f{i - 1}", f"g{i - 1}"
        documents += [policy(f"f{i}", *below), policy(f"g{i}", *below)]
    viewed = Viewed(*documents)
    compiled = viewed.view.find("f39")
    assert compiled is not None
    assert isinstance(compiled.evaluation_fn, PrerequisiteChain)
    assert compiled.evaluation_fn({"plan": "pro"}).variant == "on"
    assert compiled.calls > 2**39, "asked along each way, they would be"
    assert len(list(_steps(compiled.evaluation_fn))) < 39 * 2 + 300


def _steps(last: PrerequisiteChain) -> Iterable[PrerequisiteChain]:
    found = {last}
    waiting = [last]
    while waiting:
        for step, _ in waiting.pop().prerequisites:
            if step not in found:
                found.add(step)
                waiting.append(step)
    return found


@given(
    rests_on=st.lists(st.lists(st.integers(0, 10), max_size=4), min_size=11, max_size=11),
    states=st.lists(st.sampled_from(["active", "active", "paused"]), min_size=12, max_size=12),
    plan=st.sampled_from(["pro", "free"]),
)
def test_flags_evaluated_in_turn_answer_as_those_that_call_each_other(
    rests_on: list[list[int]], states: list[str], plan: str
) -> None:
    documents = [policy("f0", state=states[0])]
    for i, others in enumerate(rests_on, 1):
        below = {f"f{other % i}" for other in others}
        documents.append(policy(f"f{i}", *sorted(below), state=states[i]))
    nested = Viewed(*documents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled_flag, "CALLS_MAX", 1)
        in_turn = Viewed(*documents)
        for i in range(12):
            outcome = in_turn.outcome(f"f{i}", {"plan": plan})
            assert outcome == nested.outcome(f"f{i}", {"plan": plan})
            for viewed in (in_turn, nested):
                switch = viewed.view.get_boolean_fn(f"f{i}")
                enabled = switch if isinstance(switch, bool) else switch({"plan": plan}, False)
                assert enabled is outcome.value


# The bound


def test_no_more_flags_are_kept_compiled_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "COMPILED_MAX", 10)
    viewed = Viewed(
        *(policy(f"f{i}") for i in range(50)), *(policy(f"r{i}", f"f{i}") for i in range(5))
    )
    for _ in range(2):
        for i in range(50):
            assert viewed.variant(f"f{i}") == "on"
            viewed.view.get_boolean_fn(f"f{i}")
            assert viewed.variant(f"r{i % 5}") == "on"
            assert len(viewed.view._compiled) <= 10
            assert set(viewed.view.boolean_fns) <= set(viewed.view._compiled)


def test_unknown_keys_fill_no_memory() -> None:
    viewed = Viewed(policy("a"), policy("b", "a"))
    viewed.view.get_boolean_fn("b")
    view = viewed.view
    shared = compiled_flag._build_shared_body_cached.cache_info()
    for number in range(20_000):
        assert view.find(f"unknown.{number}") is None
        with pytest.raises(KeyError):
            view.get_boolean_fn(f"unknown.{number}")
        assert view.evaluate(f"unknown.{number}", "u", None).error_code is ErrorCode.FLAG_NOT_FOUND
    kept = (view._compiled, view.boolean_fns, view._dependents, view._segment_conditions)
    assert [len(table) for table in kept] == [2, 1, 1, 0]
    assert compiled_flag._build_shared_body_cached.cache_info() == shared


def test_what_only_switches_are_asked_of_has_no_evaluator_and_the_other_way_round() -> None:
    view = Viewed(policy("a"), policy("b")).view
    view.get_boolean_fn("a")
    view.evaluate("b", "u", None)
    for key, made in (("a", (None, True)), ("b", (True, None))):
        compiled = view.find(key)
        assert compiled is not None
        found = (compiled._evaluation_fn, compiled._boolean_fn)
        assert tuple(None if function is None else True for function in found) == made


def test_an_evicted_prerequisite_still_tells_those_that_rest_on_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "COMPILED_MAX", 1)
    viewed = Viewed(policy("a"), policy("b", "a"), policy("c"))
    assert viewed.variant("b") == "on"
    viewed.commit(policy("a", state="paused"))
    assert viewed.variant("b") == "off"


def test_the_digests_of_the_fixtures_add_up() -> None:
    viewed = Viewed(policy("a"), policy("b", "a"))
    snapshot = viewed.view.snapshot
    assert snapshot.tip.digests == {
        "*": sum(record.hash for record in snapshot.iter_records()) % 2**64
    }


def test_a_change_does_not_mind_that_flags_are_compiled_meanwhile() -> None:
    documents = [policy(f"f{i}", "base") for i in range(2_000)]
    viewed = Viewed(policy("base"), *documents)
    failed: list[BaseException] = []
    done = threading.Event()

    def ask() -> None:
        try:
            while not done.is_set():
                for i in range(2_000):
                    viewed.view.find(f"f{i}")
        except RuntimeError as error:
            failed.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for number in range(40):
            viewed.commit(policy("base", description=str(number)))
    finally:
        done.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert failed == []


def test_a_paused_flag_asks_none_of_its_prerequisites() -> None:
    others = [policy(f"g{i}") for i in range(70)]
    viewed = Viewed(*others, policy("f", *(f"g{i}" for i in range(70)), state="paused"))
    compiled = viewed.view.find("f")
    assert compiled is not None
    assert isinstance(compiled.evaluation_fn, Outcome)
    assert compiled.evaluation_fn.reason is Reason.DISABLED
