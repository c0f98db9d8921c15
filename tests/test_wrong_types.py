"""Wrong types: every public function refuses them with an error of flagkit's own."""

import inspect
import typing
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, NamedTuple

import pytest

import flagkit
from flagkit import Client, CountingClient, history
from flagkit import writer as writing
from flagkit.errors import FlagkitError
from flagkit.testing import ManualClock, MemoryHistory, client_from
from flagkit.writer import Draft, Environment, Import, PlannedChange, Retention, Writer

NOWHERE = "mongodb://127.0.0.1:1/?replicaSet=rs0"
FLAG: dict[str, Any] = {
    "key": "a.b",
    "variants": {"on": True, "off": False},
    "off": "off",
    "fallthrough": {"rollout": 10},
}
SEGMENT: dict[str, Any] = {"key": "s", "included": ["u"]}
NOW = datetime(2026, 1, 1, tzinfo=UTC)
NOTHING: Any = None
ODD: Any = 1
ODD_PAIR: Any = (1,)
WRONG: dict[str, Any] = {
    "None": None,
    "zero": 0,
    "a large number": 2**70,
    "a number that is none": float("nan"),
    "text": "x",
    "an object": object(),
    "an empty list": [],
    "a list of objects": [object()],
    "a list of lists": [["x"], []],
    "a document": {"x": object()},
    "bytes": b"",
    "a lone surrogate": "\ud800",
    "a type": int,
    "a date without a zone": datetime(2026, 1, 1),  # noqa: DTZ001
    "the first date": datetime.min.replace(tzinfo=UTC),
    "a date before the first": datetime.min.replace(tzinfo=timezone(timedelta(hours=14))),
    "the last date": datetime.max.replace(tzinfo=UTC),
}


class Call(NamedTuple):
    """A function, the arguments that it takes at least, and what is done with what it returns."""

    function: Callable[..., Any]
    arguments: dict[str, Any]
    use: Callable[[Any], object]


def parameters(function: Callable[..., Any]) -> Iterator[tuple[str, bool]]:
    """Yield the names of a function's parameters, and whether it takes any number of such.

    Those that a TypedDict names are among them.
    """
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.VAR_KEYWORD:
            [typed] = typing.get_args(parameter.annotation)
            for name in typing.get_type_hints(typed):
                yield name, False
        elif not parameter.name.startswith("_"):
            yield parameter.name, parameter.kind is parameter.VAR_POSITIONAL


def used(found: Any) -> None:
    """Go through what yields, and enter what is to be entered, as callers do."""
    if isinstance(found, AbstractContextManager) and not isinstance(found, Client | Writer):
        with found as draft:
            if isinstance(draft, Draft):
                draft.pause("a.b")
    elif isinstance(found, Iterator):
        for _ in found:
            pass
    elif isinstance(found, Client | Writer):
        found.close()


def problems(call: Call) -> list[str]:
    """Call a function with each wrong value in each place, and return what went wrong."""
    found: list[str] = []
    for name, is_many in parameters(call.function):
        for kind, value in WRONG.items():
            if name == "function" and kind == "a type":
                # `edit` calls it, and its errors are the caller's own.
                continue
            arguments = {**call.arguments, name: value}
            positional = (arguments.pop(name),) if is_many else ()
            try:
                call.use(call.function(*positional, **arguments))
            except FlagkitError:
                pass
            except Exception as error:  # noqa: BLE001 - what is looked for
                found.append(f"{name} is {kind}: {type(error).__name__}: {error}")
    return found


def methods(thing: object) -> dict[str, Callable[..., Any]]:
    """Return the public methods of a thing by their names."""
    return {
        name: method
        for name, method in inspect.getmembers(thing, callable)
        if not name.startswith("_") and inspect.isroutine(method)
    }


@pytest.fixture
def stocked(writer: Writer) -> Writer:
    """A writer of an environment with a flag and a segment."""
    writer.create(FLAG)
    writer.create_segment(SEGMENT)
    return writer


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    # Where an argument that is None stands for a variable, there is one.
    for name, value in (("URI", NOWHERE), ("ENVIRONMENT", "production")):
        monkeypatch.setenv(f"FLAGKIT_{name}", value)


BASE: dict[str, Any] = {
    "flag": FLAG,
    "segment": SEGMENT,
    "key": "a.b",
    "weights": 10,
    "variant": "on",
    "function": dict,
    "to": 1,
    "proposal": "20260101-000000-00000000",
    "request": "r",
    "actor": "somebody",
    "role": "viewer",
    "reason": "because",
    "session": None,
    "scope": "actor",
    "capacity": 5,
    "rate": 1.0,
    "document": FLAG,
    "retention": Retention(),
    "days": 30,
    "after": 0,
}


def base(function: Callable[..., Any], **own: Any) -> dict[str, Any]:
    """Return arguments for the parameters of a function that have no default."""
    required = {
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }
    return {
        name: {**BASE, **own}[name]
        for name in required
        if name != "self" and not name.startswith("_")
    }


WRITER_METHODS = sorted({*methods(Writer)} - {"check_changes"})


@pytest.mark.parametrize("name", WRITER_METHODS)
def test_a_writer_refuses_wrong_types(name: str, stocked: Writer) -> None:
    method = getattr(stocked, name)
    own = {"key": "s"} if "segment" in name or "members" in name else {}
    assert problems(Call(method, base(method, **own), used)) == []


@pytest.mark.parametrize("part", ["proposals", "pending"])
def test_the_parts_of_a_writer_refuse_wrong_types(part: str, stocked: Writer) -> None:
    for name, method in methods(getattr(stocked, part)).items():
        if not name.startswith(("insert", "maybe", "close")):
            assert problems(Call(method, base(method), used)) == [], name


@pytest.mark.parametrize("name", sorted(methods(Environment)))
def test_an_environment_refuses_wrong_types(name: str, stocked: Writer) -> None:
    method = getattr(stocked.reader, name)
    assert problems(Call(method, base(method), used)) == []


@pytest.mark.parametrize(
    "name", sorted({*methods(Draft)} - {"add_batch", "reuse_seeds", "strip_seeds"})
)
def test_a_draft_refuses_wrong_types(name: str, stocked: Writer) -> None:
    def ask(**arguments: Any) -> None:
        with stocked.preview() as draft:
            getattr(draft, name)(**arguments)

    ask.__signature__ = inspect.signature(getattr(Draft, name))  # type: ignore[attr-defined]
    own = {"key": "s"} if "segment" in name or "members" in name else {}
    arguments = base(getattr(Draft, name), **own)
    assert problems(Call(ask, arguments, used)) == []


@pytest.mark.parametrize("name", sorted(methods(Import)))
def test_an_import_refuses_wrong_types(name: str, stocked: Writer) -> None:
    def ask(**arguments: Any) -> object:
        made = Import("production")
        made.add({**FLAG, "key": "a.new"})
        return getattr(made, name)(**arguments)

    ask.__signature__ = inspect.signature(getattr(Import, name))  # type: ignore[attr-defined]
    document = SEGMENT if name == "add_segment" else FLAG
    arguments = base(getattr(Import, name), writer=stocked, document=document)
    assert problems(Call(ask, arguments, used)) == []


def planned() -> PlannedChange:
    return PlannedChange(
        environment="production",
        region="*",
        key="a.b",
        action="edit",
        before=FLAG,
        after=FLAG,
        served_before=FLAG,
        served_after=FLAG,
        actor="x",
        reason="",
        now=NOW,
    )


PROCEDURES = {
    name: function
    for name, function in vars(writing).items()
    if inspect.isfunction(function) and name in writing.__all__
}


@pytest.mark.parametrize("name", sorted(PROCEDURES))
def test_the_functions_of_the_writer_refuse_wrong_types(name: str, mongo_uri: str) -> None:
    function = PROCEDURES[name]
    arguments = base(function)
    if name == "erase_actor":
        arguments |= {"uri": mongo_uri, "database": "nothing-here", "dry_run": True}
    assert problems(Call(function, arguments, used)) == []


@pytest.mark.parametrize("name", Retention.__struct_fields__)
def test_a_retention_has_whole_days(name: str, stocked: Writer) -> None:
    def ask(days: object) -> None:
        stocked.reader.list_prunable(Retention(**{name: days}))  # type: ignore[arg-type]

    assert problems(Call(ask, {"days": 5}, used)) == []


@pytest.mark.parametrize(
    "guard", [writing.LargestStep, writing.Freeze, writing.Approval, writing.Required]
)
def test_guards_refuse_wrong_types(guard: type) -> None:
    def use(made: Any) -> None:
        made(planned())

    own = {"step": 5, "during": {"start": NOW}}
    assert problems(Call(guard, base(guard, **own), use)) == []


def test_a_writer_and_an_import_are_not_made_of_wrong_types(mongo_uri: str) -> None:
    arguments = {"uri": mongo_uri, "environment": "production", "actor": "x"}
    assert problems(Call(Writer, arguments, used)) == []
    assert problems(Call(Import, {"environment": "production"}, used)) == []
    assert problems(Call(Environment, {"uri": mongo_uri, "environment": "production"}, used)) == []


SETTINGS = {"uri": NOWHERE, "environment": "production"}


@pytest.mark.parametrize("function", [flagkit.configure, Client, CountingClient])
def test_a_client_is_not_made_of_wrong_types(function: Callable[..., Any]) -> None:
    try:
        assert problems(Call(function, SETTINGS, used)) == []
    finally:
        flagkit.close()


def test_history_refuses_wrong_types(mongo_uri: str, stocked: Writer) -> None:
    settings: dict[str, Any] = {"uri": mongo_uri, "environment": "production"}
    settings["database"] = stocked.store._database.name
    assert problems(Call(history.client_at, settings, used)) == []
    client = history.client_at(**settings)
    evaluation = client.evaluate("a.b", "u")
    digest = history.digest_of(client, evaluation, "u")
    given = {"client": client, "evaluation": evaluation}
    assert problems(Call(history.digest_of, given, used)) == []
    del settings["environment"]
    again = {**settings, "digest": digest, "context": "u"}
    assert problems(Call(history.replay, again, used)) == []


EVALUATIONS = {
    "is_enabled",
    "value",
    "evaluate",
    "evaluate_all",
    "explain",
    "keys",
    "counts",
    "status",
    "bind",
}


def followed() -> Client:
    memory = MemoryHistory()
    memory.commit(FLAG)
    return Client.from_source(memory.create_source)


INTERNAL = {"follow", "follow_settings", "from_snapshot", "from_source", "go_on_after_fork"}
"""What flagkit's own modules call."""


@pytest.mark.parametrize("name", sorted(methods(Client).keys() - INTERNAL))
def test_a_client_refuses_wrong_types_and_evaluations_take_them(name: str) -> None:
    own = {
        "context": {},
        "default": False,
        "callback": print,
        "listener": print,
        "revision": 1,
    }
    with followed() as client:
        client.wait_ready(30)
        method = getattr(client, name)
        if name not in EVALUATIONS:
            assert problems(Call(method, base(method, **own), used)) == []
            return
        for parameter, _ in parameters(method):
            for value in WRONG.values():
                found = method(**{**base(method, **own), parameter: value})
                assert str(found)


def test_the_tools_for_tests_refuse_wrong_types() -> None:
    assert problems(Call(client_from, {"flags": [FLAG]}, used)) == []
    assert problems(Call(ManualClock, {}, lambda clock: clock())) == []
    assert problems(Call(MemoryHistory, {}, lambda memory: memory.commit(FLAG))) == []
    for name, method in methods(MemoryHistory()).items():
        own = {"wake": print, "revision": 0, "tip": MemoryHistory().tip}
        assert problems(Call(method, base(method, **own), used)) == [], name
    clock = ManualClock()
    assert problems(Call(clock.advance, {"seconds": 1}, used)) == []


def test_an_ambient_context_of_a_wrong_type_does_not_raise() -> None:
    for value in WRONG.values():
        with flagkit.use_context(value):
            flagkit.is_enabled("a.b")


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda w: w.proposals.apply([]), "proposal is of the type list: pass its name"),
        (lambda _: Import(NOTHING), "environment is of the type NoneType: pass the name"),
        (
            lambda w: w.reader.verify([ODD]),
            "an element of anchors is of the type int: pass",
        ),
        (
            lambda w: w.reader.verify([ODD_PAIR]),
            "an element of anchors has 1 elements:",
        ),
        (
            lambda w: w.reader.verify([(NOTHING, "h")]),
            "the revision of an anchor is None: pass",
        ),
        (
            lambda w: w.reader.verify([(1, NOTHING)]),
            "the hash of an anchor is of the type NoneT",
        ),
        (lambda w: w.reader.stale_flags(1, NOW.replace(tzinfo=None)), "no time zone: pass"),
    ],
)
def test_an_error_names_the_argument_and_the_fix(
    call: Callable[[Any], object], named: str, writer: Writer
) -> None:
    with pytest.raises(FlagkitError, match=named):
        call(writer)


def test_days_that_lead_before_the_first_date_are_taken(stocked: Writer) -> None:
    first = datetime.min.replace(tzinfo=UTC)
    assert stocked.reader.stale_flags(36_500, first) == []
    assert stocked.reader.list_prunable(Retention(denials_days=100_000), first)
