"""Random policies, contexts and arguments, hostile ones too: nothing raises, and all is prompt."""

import contextlib
import functools
import logging
import random
import time
import timeit
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import Struct

from benchmarks.report import Result
from flagkit._core.evaluation import compiler
from flagkit._core.evaluation.context import use_context
from flagkit._core.evaluation.result import Evaluation
from flagkit._core.model import decode, encode
from flagkit._core.model.changes import PolicyState, build_genesis_tip, build_state
from flagkit._core.model.conditions import count_tests
from flagkit._core.snapshot import Snapshot, build_arena, encode_record, unpack_flag
from flagkit.client.client import Client, CountingClient
from flagkit.client.sources import build_initial_segment
from flagkit.errors import InvalidDocumentError
from flagkit.testing import client_from
from tests.soak.fuzzing import (
    FLAG_COUNT,
    SEGMENTS,
    ArgumentGenerator,
    ContextGenerator,
    PolicyGenerator,
    format_key,
)
from tests.support.mongod_oracle import Document

CONTEXT_COUNT = 10
"""How many contexts each document meets."""
PROMPT_SECONDS = 0.01
PROMPT_BYTES = 3072
PROMPT_TESTS = 150
ATTEMPT_COUNT = 12
ROUND_PAIRS = 100_000
CALLS_OF_A_BATCH = 2_000


class FuzzReport(Struct):
    """What happened: how many pairs, bad documents and error codes; and what must not happen."""

    pairs: int = 0
    documents: int = 0
    bad: int = 0
    codes: Counter[str] = msgspec.field(default_factory=Counter)
    raised: list[str] = []
    slow: list[str] = []
    slowest: float = 0.0


def run(pairs: int, seed: int, *, timed: bool = True) -> FuzzReport:
    """Fuzz so many pairs of a document and a context; see how long calls take if `timed`."""
    chance = random.Random(seed)
    story = FuzzReport()
    logger = logging.getLogger("flagkit")
    # Each bad flag says so once, which here would be all that could be read.
    logger.disabled = True
    try:
        while story.pairs < pairs:
            _run_batch(chance, story, timed=timed)
    finally:
        logger.disabled = False
    return story


def _run_batch(chance: random.Random, story: FuzzReport, *, timed: bool) -> None:
    policies = PolicyGenerator(chance)
    packed = {
        format_key(number): _draw_stored(policies, number, chance, story)
        for number in range(FLAG_COUNT)
    }
    snapshot = _build_snapshot(packed, [policies.segment(key) for key in SEGMENTS])
    client = Client.from_snapshot(snapshot)
    contexts = ContextGenerator(chance, policies.conditions)
    for _ in range(CONTEXT_COUNT):
        oversized = chance.random() < 0.001
        context = contexts.oversized() if oversized else contexts.prompt()
        default = chance.choice((None, None, None, None, True, 1.5, {}, object()))
        for key in packed:
            story.pairs += 1
            method = chance.choice(("evaluate", "evaluate", "explain", "is_enabled", "value"))
            call = _draw_call(method, key, context, default, story)
            elapsed = call(client)
            if timed and elapsed > story.slowest and not oversized:
                explains = method == "explain"
                first = _is_small(snapshot, [key], 2 if explains else 1)
                if explains and not first:
                    # It decodes a flag each time, and promises nothing for one that is larger.
                    continue
                # A machine that is busy makes any call slow; what is slow is so each time.
                again = (
                    call(_create_client(snapshot) if first else client)
                    for _ in range(ATTEMPT_COUNT)
                )
                elapsed = min(again)
                story.slowest = max(story.slowest, elapsed)
                if elapsed > PROMPT_SECONDS:
                    story.slow.append(f"{elapsed * 1000:.1f} ms: {_describe_flag(snapshot, key)}")
        _evaluate_all(client, context, story)


METHODS = (
    *("is_enabled", "is_enabled", "value", "evaluate", "evaluate", "evaluate_all", "keys"),
    *("explain", "policy", "bind", "use_context", "status", "counts", "unknown flags"),
)


def run_calls(calls: int, seed: int) -> FuzzReport:
    """Make so many calls, of every method, with odd arguments in every place."""
    chance = random.Random(seed)
    story = FuzzReport()
    logger = logging.getLogger("flagkit")
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            # Coroutines among the arguments are never awaited.
            warnings.simplefilter("ignore")
            while story.pairs < calls:
                _run_call_batch(chance, story, min(CALLS_OF_A_BATCH, calls - story.pairs))
    finally:
        logger.disabled = False
    return story


def _run_call_batch(chance: random.Random, story: FuzzReport, calls: int) -> None:
    policies = PolicyGenerator(chance)
    packed = {
        format_key(number): _draw_stored(policies, number, chance, story)
        for number in range(FLAG_COUNT)
    }
    snapshot = _build_snapshot(packed, [policies.segment(key) for key in SEGMENTS])
    kind = chance.choice((Client, Client, CountingClient))
    client = kind.from_source() if chance.random() < 0.02 else kind.from_snapshot(snapshot)
    draw = ArgumentGenerator(chance, ContextGenerator(chance, policies.conditions))
    for _ in range(calls):
        story.pairs += 1
        method = chance.choice(METHODS)
        try:
            _make_odd_call(client, method, draw)
        except Exception as error:  # noqa: BLE001 - what is looked for
            trace = "".join(traceback.format_tb(error.__traceback__)[-3:])
            story.raised.append(f"{method} raised {type(error).__name__}: {trace}")
        story.codes[method] += 1


def _make_odd_call(client: Client, method: str, draw: ArgumentGenerator) -> None:  # noqa: C901 - one for each
    match method:
        case "is_enabled":
            client.is_enabled(draw.key(), draw.context(), draw.of(True, False))
        case "value":
            client.value(draw.key(), draw.context(), default=draw.of(True, "x", 1, 1.5, None, {}))
        case "evaluate":
            default, age = draw.of(True, "x", 1, None, []), draw.of(None, 0, 5.0)
            found = client.evaluate(draw.key(), draw.context(), default, max_staleness=age)
            assert isinstance(found, Evaluation)
        case "evaluate_all":
            assert type(client.evaluate_all(draw.context(), draw.of("", "fuzz.", "x"))) is dict
        case "keys":
            assert type(client.keys(draw.of("", "fuzz.", "x"))) is list
        case "explain":
            redact = draw.of((), ("a.b",), "a")
            explanation = client.explain(draw.key(), draw.context(), draw.of(True), redact=redact)
            assert str(explanation)
            assert explanation.as_dict()
        case "policy":
            timeout, metadata = draw.of(1.0), draw.of(True, False)
            client.policy(draw.key(), metadata=metadata, timeout=timeout)
        case "bind":
            bound = client.bind(draw.context())
            bound.is_enabled(draw.key(), draw.of(True))
            bound.value(draw.key(), default=draw.of(True))
            bound.evaluate(draw.key(), draw.of(True), max_staleness=draw.of(None, 5.0))
            bound.evaluate_all(draw.of("fuzz.flag-1"))
            str(bound.explain(draw.key(), draw.of(True), redact=draw.of(())))
        case "use_context":
            with use_context(draw.context()):
                client.is_enabled(draw.key(), default=draw.of(True))
                client.evaluate(draw.key(), None, draw.of(True))
        case "status":
            assert client.status().revision == client.revision
        case "counts":
            client.counts()
        case _:
            client.evaluate(draw.odd(), draw.odd(), draw.odd(), max_staleness=draw.odd())
            client.is_enabled(draw.odd(), draw.odd(), draw.odd())


def _build_snapshot(packed: dict[str, bytes], segments: list[Document]) -> Snapshot:
    """Return a snapshot of policies that no writer need have let in."""
    tip = build_genesis_tip("fuzz", "epoch", datetime(2026, 1, 1, tzinfo=UTC))
    parts: dict[str, bytes] = {}
    states = [PolicyState(key, "*", 1, policy) for key, policy in packed.items()]
    for document in segments:
        state, made = build_initial_segment(document)
        states.append(state)
        parts |= made
    return Snapshot(tip, "*", build_arena(tip, map(encode_record, states))).with_parts(parts)


def _draw_stored(
    policies: PolicyGenerator, number: int, chance: random.Random, story: FuzzReport
) -> bytes:
    """Draw a document, half of them bad, and return it as it would be stored."""
    story.documents += 1
    document = policies.good(number) if chance.random() < 0.45 else policies.bad(number)
    try:
        return _pack(encode(decode(document)))
    except InvalidDocumentError:
        story.bad += 1
    except Exception as error:  # noqa: BLE001 - what is looked for
        story.raised.append(f"decode raised {error!r}: {document!r:.500}")
    try:
        return _pack(document)
    except (TypeError, ValueError, OverflowError, RecursionError):
        # No database holds this; what it might hold instead are other bytes.
        return chance.randbytes(chance.randrange(40))


def _pack(document: Any) -> bytes:
    return build_state("key", "*", 1, document).packed


def _draw_call(
    method: str, key: str, context: Any, default: Any, story: FuzzReport
) -> Callable[[Client], float]:
    """Return one of the calls that there are; it returns how many seconds it takes."""

    def call(client: Client) -> float:
        # The thread's own time: what others do meanwhile is not the call's.
        started = time.thread_time()
        try:
            if method == "evaluate":
                answer: Any = client.evaluate(key, context, default)
            elif method == "explain":
                explanation = client.explain(key, context, default, redact=("a.b",))
                answer = explanation.evaluation if str(explanation) else None
            elif method == "is_enabled":
                answer = client.is_enabled(key, context, default)
            else:
                answer = client.value(key, context, default=default)
        except Exception as error:  # noqa: BLE001 - what is looked for
            story.raised.append(
                f"{method} raised {error!r}: {_describe_flag(client.snapshot, key)}"
            )
            return 0.0
        elapsed = time.thread_time() - started
        if method in ("evaluate", "explain"):
            assert isinstance(answer, Evaluation)
            story.codes[answer.error_code or "none"] += 1
        return elapsed

    return call


def _create_client(snapshot: Snapshot) -> Client:
    """Return a client that has compiled nothing yet, and no flag of any shape before."""
    compiler._templates.clear()
    return Client.from_snapshot(snapshot)


def _is_small(snapshot: Snapshot, keys: list[str], cost: int) -> bool:
    """Tell whether flags and all that they rest on are small enough for prompt first calls."""
    seen: set[str] = set()
    size = tests = 0
    while keys:
        key = keys.pop()
        record = snapshot.find(key)
        if record is None or key in seen:
            continue
        seen.add(key)
        size += len(record.body)
        with contextlib.suppress(ValueError, RecursionError):
            flag = unpack_flag(record)
            keys += [needed.flag for needed in flag.prerequisites]
            tests += sum(count_tests(rule.condition) for rule in flag.rules)
    return cost * size <= PROMPT_BYTES and cost * tests <= PROMPT_TESTS


def _evaluate_all(client: Client, context: Any, story: FuzzReport) -> None:
    try:
        assert len(client.evaluate_all(context, "fuzz.")) == FLAG_COUNT
    except Exception as error:  # noqa: BLE001 - what is looked for
        story.raised.append(f"evaluate_all raised {error!r}")


def _describe_flag(snapshot: Snapshot | None, key: str) -> str:
    record = snapshot.find(key) if snapshot is not None else None
    return "" if record is None else f"{record.body!r:.1000}"


def _nest_path(path: str) -> Document:
    return functools.reduce(lambda inner, name: {name: inner}, reversed(path.split(".")), {})


DEEP = ".".join("abcdefghijklmnop")
MOMENT = datetime(2026, 1, 1, tzinfo=UTC)
_SEARCHES: Document = {"$or": [{"a": {"$regex": f"a.*x{i}"}} for i in range(50)]}
LIMITS: list[tuple[str, Document, Document]] = [
    ("2,000 tests of a date", {"$or": [{"a": {"$gt": MOMENT}}] * 2000}, {"a": MOMENT}),
    ("2,000 tests far down", {"$or": [{DEEP: 5}] * 2000}, _nest_path(DEEP)),
    ("20 tests of 100 documents", {"$or": [{"a": {"b": 1, "c": 2}}] * 20}, {"a": [{"b": 1}] * 100}),
    ("50 searches of a text", _SEARCHES, {"a": ("The quick brown fox, 17. " * 40)[:1000]}),
    ("50 searches beyond ASCII", _SEARCHES, {"a": "".join(map(chr, range(20_000, 21_000)))}),
    ("one test of 2,000 texts", {"a": {"$contains": "ab"}}, {"a": ["a" * 1000] * 2000}),
]
"""Conditions and contexts as large as may be for a prompt call, none of which finds anything."""


def measure_limits() -> Iterator[Result]:
    """Time calls that are as slow as a prompt one may be, and a first call."""
    for name, when, context in LIMITS:
        client = client_from([_build_flag([when])])
        yield _time_call(name, functools.partial(client.evaluate, "f", context))
    rules: list[Document] = [{"$or": [{f"attribute-{i}": i} for i in range(49)]}] * 3
    snapshot = client_from([_build_flag(rules)]).snapshot
    assert snapshot is not None
    yield _time_call(
        "a first call, of 150 tests", lambda: _create_client(snapshot).evaluate("f", {})
    )


def _build_flag(conditions: list[Document]) -> Document:
    rules = [{"name": str(i), "when": when, "serve": "a"} for i, when in enumerate(conditions)]
    return {"key": "f", "variants": {"a": 1}, "rules": rules, "fallthrough": {"serve": "a"}}


def _time_call(name: str, call: Callable[[], object]) -> Result:
    times = timeit.repeat(call, timer=time.thread_time, number=1, repeat=ATTEMPT_COUNT)
    bound = PROMPT_SECONDS * 1000
    value = round(min(times) * 1000, 2)
    return Result(benchmark="fuzz", case=name, value=value, unit="ms", bound=bound)


def soak(pairs: int, seed: int) -> Iterator[Result]:
    """Fuzz in rounds, each seeded by itself, until there were `pairs`; and look at the limits."""
    yield from measure_limits()
    for done in range(0, pairs, ROUND_PAIRS):
        story = run_calls(min(ROUND_PAIRS, pairs - done), seed + done)
        for problem in story.raised:
            print(f"  calls of seed {seed + done}: {problem}")
        yield Result(
            benchmark="fuzz",
            case=f"exceptions, up to call {done + story.pairs:,}",
            value=len(story.raised),
            unit="",
            bound=0,
            details={"methods": dict(story.codes)},
        )
    for done in range(0, pairs, ROUND_PAIRS):
        story = run(min(ROUND_PAIRS, pairs - done), seed + done)
        for problem in (*story.raised, *story.slow):
            print(f"  round of seed {seed + done}: {problem}")
        count = done + story.pairs
        details: Document = {
            "documents": story.documents,
            "bad": story.bad,
            "codes": dict(story.codes),
        }
        yield Result(
            benchmark="fuzz",
            case=f"exceptions, up to pair {count:,}",
            value=len(story.raised),
            unit="",
            bound=0,
            details=details,
        )
        yield Result(
            benchmark="fuzz",
            case="documents that are not valid",
            value=round(100 * story.bad / story.documents, 1),
            unit="%",
        )
        yield Result(
            benchmark="fuzz",
            case="slowest call",
            value=round(story.slowest * 1000, 2),
            unit="ms",
            bound=PROMPT_SECONDS * 1000,
        )
