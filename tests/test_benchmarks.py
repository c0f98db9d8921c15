"""The benchmarks: that they compare like with like, and that a missed bound is told. No timing."""

import hashlib
import json
import os
import random
import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from typing import Any

import cachetools
import pytest
from pymongo import MongoClient

from benchmarks import apply_backlog as applying
from benchmarks import catalogue, database, open_loop, snapshot, startup
from benchmarks.__main__ import QUICK_TOLERANCE, main
from benchmarks.catalogue import PLAIN, ROLLOUT, RULES, iter_documents, iter_keys, iter_lines
from benchmarks.evaluate import (
    build_by_hand_table,
    build_rollout,
    build_shaped_flag,
    create_client,
    iter_shapes,
    shuffle_hot_keys,
)
from benchmarks.imports import list_slowest
from benchmarks.interleave import Call
from benchmarks.peers.flags import AttributeTest as PlainTest
from benchmarks.peers.flags import Peer, RolloutStep, to_plain_flag
from benchmarks.peers.harness import WrongAnswerError, check_answers, check_peer, iter_payload
from benchmarks.peers.runner import PEERS
from benchmarks.peers.runner import run as run_peers
from benchmarks.plot import build_curves, draw
from benchmarks.render_docs import PAGE, render_page
from benchmarks.report import (
    ATTEMPTS_MAX,
    FLAG_COUNT,
    QUICK_FLAG_COUNT,
    MeasurementPlan,
    Result,
    SkippedBenchmark,
    compute_percentile,
    measure_with_retries,
    report,
)
from benchmarks.result_store import get_release_path, read_results
from benchmarks.revision_feed import iter_changes
from benchmarks.subprocesses import WorkerError, WorkerProcess, run_in_subprocess
from benchmarks.workloads import (
    ASIA,
    CONTEXT,
    EUROZONE,
    FLAGS,
    NORTH,
    W1,
    W2,
    W3,
    WORKLOADS,
    Workload,
)
from flagkit._core.cooperative import run_slices
from flagkit._core.evaluation import compiler
from flagkit._core.model.changes import PolicyChange
from flagkit._core.snapshot import compact_snapshot
from flagkit._core.storage.documents import encode_policy_document
from flagkit._core.storage.layout import HEADS
from flagkit.config import DATABASE
from flagkit.testing import client_from
from flagkit.testing.embedded import EmbeddedMongo


def result(value: float, bound: float | None = 2.0, case: str = "W1") -> Result:
    return Result(benchmark="evaluate", case=case, value=value, unit="x", bound=bound)


def contexts(count: int) -> Iterator[dict[str, Any]]:
    """Yield contexts of all sorts, with attributes missing here and there."""
    chance = random.Random(20261122)
    for _ in range(count):
        context = {
            "targeting_key": f"user-{chance.randrange(10**6)}",
            "country": chance.choice([*ASIA, *NORTH, *EUROZONE, "US", "BR"]),
            "plan": chance.choice(["free", "team", "enterprise"]),
            "app_version": chance.choice(
                ["2.5.9", "2.6.0", "3.1.10", "3.2.0", "3.10.0", "4.0.0", "10.0.0"]
            ),
            "age": chance.choice([17, 18, 64, 65, chance.randrange(10, 90)]),
        }
        yield {name: value for name, value in context.items() if chance.random() < 0.85}


@pytest.mark.parametrize("case", WORKLOADS, ids=lambda case: case.name)
@pytest.mark.parametrize("default", [False, True])
def test_by_hand_is_the_same_logic(case: Workload, default: bool) -> None:
    asked = create_client()
    answers = [
        (asked.is_enabled(case.key, context, default), case.by_hand(case.key, context, default))
        for context in contexts(1000)
    ]
    assert all(ours is theirs for ours, theirs in answers)
    assert len(set(answers)) == (1 if case.name == "W1" else 2)


@pytest.mark.parametrize("case", WORKLOADS, ids=lambda case: case.name)
def test_by_hand_looks_the_flag_up(case: Workload) -> None:
    for default in (False, True):
        assert case.by_hand("no.such.flag", CONTEXT, default) is default
        assert create_client().is_enabled("no.such.flag", CONTEXT, default) is default


def test_w3_is_decided_by_the_fifth_rule_and_a_rollout() -> None:
    found = create_client().evaluate(WORKLOADS[2].key, CONTEXT)
    assert (found.rule, found.reason) == ("adults", "SPLIT")


def test_a_kept_bound_is_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = {"evaluate": lambda _plan: iter([result(2.0), result(9.0, None, "W1 flagkit")])}
    assert main(["--json", str(tmp_path / "lines")], kept) == 0
    lines = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]
    assert [line["ok"] for line in lines] == [True, True]
    assert capsys.readouterr().out.splitlines()[1].endswith("yes")


def test_a_missed_bound_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missed = {"evaluate": lambda _plan: iter([result(2.1), result(1.0, case="W2")])}
    assert main(["evaluate", "--json", str(tmp_path / "lines")], missed) == 1
    first, second = map(json.loads, (tmp_path / "lines").read_text().splitlines())
    assert (first["ok"], second["ok"]) == (False, True)
    assert "NO" in capsys.readouterr().out


def test_a_bound_is_not_kept_by_no_number() -> None:
    assert not result(float("nan")).ok


@pytest.mark.parametrize(("value", "ok"), [(7.9, False), (8.0, True), (float("nan"), False)])
def test_a_bound_can_be_the_least_that_is_good(value: float, ok: bool) -> None:
    faster = Result(benchmark="peers", case="W1", value=value, unit="x", bound=8.0, at_least=True)
    assert faster.ok is ok


@pytest.mark.parametrize("ok", [True, False])
def test_what_could_not_run_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ok: bool
) -> None:
    skipped = SkippedBenchmark(benchmark="peers", case="Eppo", reason="it is not installed", ok=ok)
    arguments = ["--json", str(tmp_path / "lines")]
    assert main(arguments, {"peers": lambda _plan: iter([skipped])}) == (0 if ok else 1)
    assert "Eppo: could not run: it is not installed" in capsys.readouterr().out
    line = json.loads((tmp_path / "lines").read_text())
    assert (line["case"], line["reason"], line["ok"]) == ("Eppo", "it is not installed", ok)


def test_lines_have_their_fields(tmp_path: Path) -> None:
    main(["--json", str(tmp_path / "lines")], {"evaluate": lambda _plan: iter([result(1.5)])})
    line = json.loads((tmp_path / "lines").read_text())
    expected = {"benchmark": "evaluate", "case": "W1", "value": 1.5, "unit": "x", "bound": 2.0}
    assert line | expected | {"ok": True, "missed": []} == line
    versions = {"python", "flagkit", "pymongo", "xxhash", "msgspec", "cpu_count"}
    assert all(line[name] for name in versions)


def test_kept_results_are_replaced_benchmark_by_benchmark(tmp_path: Path) -> None:
    path = tmp_path / "results" / "1.0.jsonl"
    values = iter([1.0, 1.1, 1.2, 1.3])

    def benchmark(name: str) -> Any:
        return lambda _plan: iter([Result(benchmark=name, case="W1", value=next(values), unit="x")])

    both = {name: benchmark(name) for name in ("one", "two")}
    assert main(["--keep", str(path)], both) == main(["one", "--keep", str(path)], both) == 0
    found = [(line["benchmark"], line["value"]) for line in read_results(path)]
    assert found == [("two", 1.1), ("one", 1.2)]


def lines_of_snapshots_and_peers() -> Iterator[dict[str, Any]]:
    for count in (10_000, 1_000):
        for i, what in enumerate(
            ("bytes a flag", "one hot flag", "hot flags at random", "a cold flag"), 1
        ):
            case = f"{what}, of {count:,}"
            yield {
                "benchmark": "snapshot",
                "case": case,
                "what": what,
                "flag_count": count,
                "value": i,
            }
    yield {
        "benchmark": "peers",
        "case": "flagkit bytes a flag, of 10",
        "flag_count": 10,
        "value": 9,
    }
    yield {"benchmark": "peers", "case": "Eppo bytes a flag, of 10", "flag_count": 10, "value": 99}
    yield {"benchmark": "peers", "case": "Eppo W2 / flagkit", "value": 4.0}
    yield {"benchmark": "peers", "case": "Eppo W2", "value": 0.8}
    yield {"benchmark": "peers", "case": "Unleash", "reason": "it is not installed"}
    yield {"benchmark": "evaluate", "case": "W2 flagkit", "value": 300.0}


def test_curves_are_of_snapshots_and_peers() -> None:
    points = [(1_000, 2), (10_000, 2)]
    found = build_curves(lines_of_snapshots_and_peers())
    assert found.costs["one hot flag"] == points
    assert set(found.costs) == {
        "bytes a flag",
        "one hot flag",
        "hot flags at random",
        "a cold flag",
    }
    assert (found.peer_memory, found.peer_checks) == ({"Eppo": (10, 99)}, {"Eppo": 0.8})


def test_the_page_says_what_is_kept() -> None:
    text = PAGE.read_text()
    assert render_page(text, read_results(get_release_path())) == text


def test_tables_are_made_of_results() -> None:
    page = "".join(
        f"<!-- table {name} -->\nwhat was there\n<!-- end -->\n" for name in ("sizes", "bounds")
    )
    bound = {"value": 2.5, "unit": "x", "bound": 2.0, "at_least": False, "ok": False}
    missed = {"benchmark": "evaluate", "case": "W2 flagkit / by hand", **bound}
    counted = {"value": 1, "unit": "", "bound": 1, "at_least": True, "ok": True}
    counted |= {"benchmark": "refresh", "case": "folds"}
    found = render_page(page, [*lines_of_snapshots_and_peers(), missed, counted])
    assert "| refresh | folds | 1 | at least 1 |  |" in found
    assert "| 1,000 | 1 | 2 | 3 | 4 |" in found
    assert "| evaluate | W2 flagkit / by hand | 2.5 x | at most 2 x | missed |" in found
    assert "what was there" not in found
    assert render_page(found, lines_of_snapshots_and_peers()) != found


def test_curves_are_drawn(tmp_path: Path) -> None:
    if find_spec("matplotlib") is None:
        pytest.skip("matplotlib is not installed")
    assert (
        run_in_subprocess(draw, build_curves(lines_of_snapshots_and_peers()), tmp_path / "plot.png")
        is None
    )
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_benchmarks_asked_for_run_as_asked() -> None:
    ran: list[tuple[str, MeasurementPlan]] = []
    full, quick = MeasurementPlan(), MeasurementPlan(quick=True, flag_count=QUICK_FLAG_COUNT)

    def benchmark(name: str) -> Any:
        def run(plan: MeasurementPlan) -> Iterator[Result]:
            ran.append((name, plan))
            return iter(())

        return run

    all_of_them = {name: benchmark(name) for name in ("one", "two")}
    assert main([], all_of_them) == main(["two", "--quick"], all_of_them) == 0
    assert main(["all"], all_of_them) == 0
    assert ran == [("one", full), ("two", full), ("two", quick), ("one", full), ("two", full)]
    assert main(["one", "--flags", "5000"], all_of_them) == 0
    assert ran[-1] == ("one", MeasurementPlan(flag_count=5000))
    with pytest.raises(SystemExit):
        main(["three"], all_of_them)


def test_an_attempt_that_misses_is_repeated_and_told() -> None:
    values = iter([3.0, 2.5, 1.9])
    assert measure_with_retries(lambda: [result(next(values))]) == [
        Result(benchmark="evaluate", case="W1", value=1.9, unit="x", bound=2.0, missed=(3.0, 2.5))
    ]


def test_what_is_too_slow_stays_so() -> None:
    values = iter([3.0] * ATTEMPTS_MAX)
    (found,) = measure_with_retries(lambda: [result(next(values))])
    assert not found.ok
    assert next(values, None) is None


def test_a_good_attempt_is_enough() -> None:
    values = iter([1.0])
    assert measure_with_retries(lambda: [result(next(values))]) == [result(1.0)]


def test_percentiles_are_by_nearest_rank() -> None:
    values = list(range(1, 101))
    assert [compute_percentile(values, p) for p in (0, 1, 50, 99, 100)] == [1, 1, 50, 99, 100]
    assert compute_percentile([7], 99) == 7


def test_slowest_modules_leave_out_the_interpreters_own() -> None:
    report = (
        "import time: self [us] | cumulative | imported package\n"
        "import time:      9000 |       9000 |   encodings\n"
        "import time:      2000 |      11000 | site\n"
        "import time:       500 |        500 |   msgspec\n"
        "import time:      1500 |       2000 | flagkit\n"
    )
    assert list_slowest(report) == [("flagkit", 1.5), ("msgspec", 0.5)]


def test_a_catalogue_never_changes() -> None:
    digest = hashlib.sha256(b"".join(iter_lines(iter_documents(1000)))).hexdigest()
    assert digest == "f3c917425ab817801b4c810f1b357db9f56cd364217b1ea7d8f1f1999a1c0d7a"


def test_a_catalogue_begins_as_a_longer_one() -> None:
    assert list(iter_documents(100)) == list(islice(iter_documents(FLAG_COUNT), 100))


def test_a_catalogue_is_of_the_shares_and_keys_that_it_says() -> None:
    flags = list(iter_documents(10_000))
    forms = Counter(
        RULES if "rules" in flag else ROLLOUT if "rollout" in flag["fallthrough"] else PLAIN
        for flag in flags
    )
    assert forms == {PLAIN: 6000, ROLLOUT: 3000, RULES: 1000}
    assert all(len(list(iter_keys(kind, 10_000))) == count for kind, count in forms.items())
    lengths = [len(flag["key"]) for flag in flags]
    assert len({flag["key"] for flag in flags}) == len(flags)
    assert sum(lengths) / len(lengths) == pytest.approx(32.2, abs=0.1)
    assert max(lengths) <= 62
    assert all(flag["key"].count(".") == 2 for flag in flags)


def test_flags_of_five_rules_differ_in_constants_and_hardly_in_shape() -> None:
    ruled = [flag for flag in iter_documents(10_000) if "rules" in flag]
    assert {len(flag["rules"]) for flag in ruled} == {5}
    assert {len(rule["when"]) for flag in ruled for rule in flag["rules"]} == {2}
    assert len({json.dumps(flag["rules"]) for flag in ruled}) == len(ruled)
    assert len({tuple(rule["name"] for rule in flag["rules"]) for flag in ruled}) == 4


def test_a_catalogue_has_no_more_flags_than_keys() -> None:
    with pytest.raises(ValueError, match="at most 3000000 flags"):
        iter_documents(3_000_001)


def test_a_stored_catalogue_answers() -> None:
    stored = catalogue.store_catalogue(1000).create_client()
    fresh = client_from(chain(FLAGS, iter_documents(1000)))
    keys = [flag["key"] for flag in chain(FLAGS, iter_documents(1000))]
    assert [stored.evaluate(key, CONTEXT) for key in keys] == [
        fresh.evaluate(key, CONTEXT) for key in keys
    ]
    assert stored.evaluate(keys[-1], CONTEXT).error_code is None
    found, expected = stored.snapshot, fresh.snapshot
    assert found is not None
    assert expected is not None
    assert found.tip.digests == expected.tip.digests


def test_the_table_of_many_keys_is_the_same_logic() -> None:
    keys = shuffle_hot_keys(random.Random(1))[:200]
    by_hand, asked = build_by_hand_table(keys), client_from(build_rollout(key) for key in keys)
    for context in contexts(20):
        assert [by_hand(key, context) for key in keys] == [
            asked.is_enabled(key, context) for key in keys
        ]
    assert by_hand("no.such.flag", CONTEXT) is False


def test_shapes_are_flags_that_go_on_to_their_rollout() -> None:
    conditions = list(iter_shapes())
    flags = [build_shaped_flag(f"shapes.flag-{i}", [when]) for i, when in enumerate(conditions)]
    asked = client_from(flags)
    reasons = {asked.evaluate(flag["key"], CONTEXT).reason for flag in flags}
    assert reasons == {"TARGETING_MATCH", "SPLIT"}


def test_no_two_shapes_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    known = cachetools.FIFOCache[Any, Any](4096)
    monkeypatch.setattr(compiler, "_templates", known)
    conditions = list(iter_shapes())
    asked = client_from(
        build_shaped_flag(f"shapes.flag-{i}", [when]) for i, when in enumerate(conditions)
    )
    for i in range(len(conditions)):
        asked.is_enabled(f"shapes.flag-{i}", CONTEXT)
    assert len(known) == len(conditions) == 243


def test_a_catalogue_can_be_told_to_peers() -> None:
    flags = {flag.key: flag for flag in map(to_plain_flag, chain(FLAGS, iter_documents(1000)))}
    assert flags[W1].steps == (RolloutStep((), 100.0),)
    assert flags[W2].steps == (RolloutStep((), 50.0),)
    *rules, adults, fallthrough = flags[W3].steps
    assert [step.percent for step in rules] == [100.0] * 4
    country = PlainTest("country", "among", EUROZONE)
    assert adults == RolloutStep((country, PlainTest("age", "number from", 18)), 30.0)
    assert fallthrough == RolloutStep((), 0.0)


@pytest.mark.parametrize(
    "part",
    [
        {"fallthrough": {"rollout": 20}},
        {
            "rules": [
                {"when": {"plan": "free"}, "serve": "off"},
                {"when": {"plan": "team"}, "serve": "on"},
            ]
        },
        {"rules": [{"when": {"age": {"$lt": 9}}, "serve": "on"}]},
        {"rules": [{"when": {"age": {"$gte": 9, "$lt": 18}}, "serve": "on"}]},
    ],
    ids=repr,
)
def test_what_not_all_peers_can_be_told_is_refused(part: dict[str, Any]) -> None:
    rules = [{"when": {"plan": "team"}, "rollout": 10}]
    with pytest.raises(ValueError, match=r"no peer|not the same"):
        to_plain_flag({"key": "some.flag", "rules": rules, "fallthrough": {"serve": "off"}} | part)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_a_payload_has_each_flag_once(peer: Peer) -> None:
    flags = list(chain(FLAGS, iter_documents(100)))
    payload = json.loads("".join(iter_payload(peer, flags)))
    (told,) = (
        part
        for part in payload.values()
        if part and not isinstance(part, str | int) and len(part) > 1
    )
    keys = list(told) if peer.is_keyed else [flag["name"] for flag in told]
    assert keys == [flag["key"] for flag in flags]


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_a_peer_that_is_installed_answers_as_flagkit_does(peer: Peer) -> None:
    if find_spec(peer.module) is None:
        pytest.skip(f"{peer.distribution} is not installed")
    assert run_in_subprocess(check_peer, peer) is None


def ask_flagkit(flags: Any) -> Any:
    asked = client_from(flags)

    def ask(key: str, context: Mapping[str, Any]) -> Call:
        return Call(asked.is_enabled, (key, context))

    return ask


def test_a_peer_that_answers_rightly_is_compared() -> None:
    check_answers(ask_flagkit(FLAGS))


@pytest.mark.parametrize("key", [W1, W2, W3])
def test_a_peer_that_answers_wrongly_is_not_compared(key: str) -> None:
    off = [{**flag, "state": "paused"} if flag["key"] == key else flag for flag in FLAGS]
    with pytest.raises(WrongAnswerError, match=key):
        check_answers(ask_flagkit(off))


def test_a_peer_that_is_not_installed_is_left_out() -> None:
    missing = Peer(
        name="Nobody",
        distribution="nobodys-flags",
        module="no_such_module_of_nobody",
        to_native=lambda flag: {"key": flag.key},
        before="[",
        after="]",
        is_keyed=False,
        load=lambda _: ask_flagkit(FLAGS),
    )
    *ours, last = run_peers(MeasurementPlan(quick=True, flag_count=1000), [missing])
    assert last == SkippedBenchmark(
        benchmark="peers", case="Nobody", reason="nobodys-flags is not installed"
    )
    assert {type(line) for line in ours} == {Result}


def test_sizes_are_measured_up_to_the_one_asked_for() -> None:
    *found, further_worker = snapshot.run(MeasurementPlan(quick=True, flag_count=1000))
    assert {line.details["flag_count"] for line in (*found, further_worker)} == {1000}
    assert further_worker.value < found[0].value
    assert [line.details["what"] for line in found] == [
        "bytes a flag",
        "one hot flag",
        "hot flags at random",
        "a cold flag",
    ]
    assert all(line.value > 0 for line in found)


def test_revisions_go_on_from_a_catalogue() -> None:
    stored = catalogue.store_catalogue(1000)
    before = stored.create_client().snapshot
    assert before is not None
    made = list(islice(iter_changes(stored.tip, stored.count, others_count=3), 500))
    assert all(len({policy.id for policy in change.policies}) == 4 for change in made)
    assert all(any(policy.id[1] == W2 for policy in change.policies) for change in made)
    after = before.apply(made)
    assert (after.tip.revision, len(after.overlay)) == (501, 301)
    record = after.find(W2)
    assert record is not None
    assert record.version == 501
    # Which is why the next fold builds anew.
    assert before.base.header.version_bytes == 1
    assert run_slices(compact_snapshot(after)).header.version_bytes == 2


def test_a_flag_is_inserted_as_a_writer_leaves_it() -> None:
    for flag in chain(FLAGS, iter_documents(100)):
        found = catalogue.build_entry(flag)
        expected = encode_policy_document(catalogue.ENVIRONMENT, 1, PolicyChange(None, found.state))
        assert database.encode_entry(found) == expected


@pytest.mark.mongo
def test_starts_are_measured_on_flags_that_answer() -> None:
    found = list(startup.run(MeasurementPlan(quick=True, flag_count=1000)))
    assert [line.case for line in found] == [
        "from a file, of 1,000",
        "from a file, of 1,000, with waits",
        "from a scan, of 1,000 / a drain",
        "from a scan, of 1,000",
        "a bare drain, of 1,000",
        "from a checkpoint + 125, of 1,000",
    ]
    assert all(line.value > 0 for line in found)


@pytest.mark.mongo
def test_client_and_watcher_drain_the_same_backlog() -> None:
    stored = catalogue.store_catalogue(1000)
    with EmbeddedMongo() as server, MongoClient[dict[str, Any]](server.uri) as mongo:
        heads = mongo[DATABASE][HEADS]
        found = applying._measure(server.uri, heads, stored, count=1500, round_count=2)
        head = heads.find_one({"_id": catalogue.ENVIRONMENT})
    assert head is not None
    assert head["revision"] == stored.tip.revision + 1500
    assert [line.unit for line in found] == ["x", "1/s", "1/s"]
    assert all(line.value > 0 for line in found)


@pytest.mark.mongo
def test_a_service_is_checked_until_its_client_has_folded_and_built_anew() -> None:
    plan = MeasurementPlan(quick=True, flag_count=1000)
    found = open_loop._measure(catalogue.store_catalogue(1000), plan)
    values = {line.case.removeprefix("open loop, "): line.value for line in found}
    assert values["folds"] >= 1
    assert values["compactions"] == 1
    assert values["revisions applied"] > 0
    assert values["longest stall"] >= values["stall, p99.9"] > 0


def told_back(connection: Any) -> None:
    connection.send(connection.recv())


def test_a_companion_is_talked_with() -> None:
    with WorkerProcess(told_back) as companion:
        companion.send("anything")
        assert companion.receive(20) == "anything"
        with pytest.raises(WorkerError, match="its process died"):
            companion.receive(20)


def test_a_companion_that_falls_silent_is_told() -> None:
    with WorkerProcess(told_back) as companion, pytest.raises(WorkerError, match="more than 0 s"):
        companion.receive(0)


def connected(port: int) -> None:
    socket.create_connection(("127.0.0.1", port), timeout=5).close()


def test_work_apart_returns_or_says_what_went_wrong() -> None:
    assert run_in_subprocess(divmod, 17, 5) == (3, 2)
    with pytest.raises(WorkerError, match="ZeroDivisionError"):
        run_in_subprocess(divmod, 1, 0)
    with pytest.raises(WorkerError, match="its process died"):
        run_in_subprocess(os._exit, 1)


def test_work_apart_has_no_network_unless_asked_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(WorkerError, match="no network"):
            run_in_subprocess(connected, port)
        assert run_in_subprocess(connected, port, network=True) is None


def test_work_apart_is_not_heard(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_in_subprocess(print, "a library's greetings") is None
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("value", "at_least", "good"),
    [(1.0, False, True), (1.09, False, True), (1.11, False, False), (0.92, True, True)],
)
def test_a_quick_run_forgives_a_tenth(value: float, at_least: bool, good: bool) -> None:
    result = Result(benchmark="b", case="c", value=value, unit="x", bound=1.0, at_least=at_least)
    assert report([result], tolerance=QUICK_TOLERANCE) is good
    assert report([result]) is result.ok
