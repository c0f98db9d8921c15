"""Arguments: what a call cannot take is refused, before anything is done."""

import copy
import functools
import inspect
import math
import pickle
from collections.abc import Callable
from datetime import datetime
from typing import Any, Unpack

import pytest

import flagkit
from flagkit import Client
from flagkit._core.arguments import refuse_unknown_arguments
from flagkit.config import Options
from flagkit.errors import FlagkitError, InvalidArgumentError
from flagkit.testing import MemoryHistory
from flagkit.writer import Draft, Writer

FLAG: dict[str, Any] = {
    "key": "a.b",
    "variants": {"on": True, "off": False},
    "off": "off",
    "fallthrough": {"rollout": 10},
}
NOWHERE = "mongodb://127.0.0.1:1/?replicaSet=rs0"


@pytest.fixture
def flag(writer: Writer) -> Writer:
    writer.create(FLAG)
    writer.create_segment({"key": "s", "included": ["u"]})
    return writer


@pytest.mark.parametrize("call", [flagkit.configure, Client, flagkit.CountingClient])
@pytest.mark.parametrize(
    ("unknown", "meant"),
    [("snapshotpath", "snapshot_path"), ("max_stalenes", "max_staleness"), ("regoin", "region")],
)
def test_settings_that_nobody_knows_are_refused(
    call: Callable[..., Any], unknown: str, meant: str
) -> None:
    with pytest.raises(TypeError, match=f"{unknown!r}. Did you mean {meant!r}") as refused:
        call(NOWHERE, environment="e", **{unknown: "x"})
    assert isinstance(refused.value, InvalidArgumentError)


def takes_anything(method: Any) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(method).parameters.values())


VERBS = [
    (name, method)
    for name, method in inspect.getmembers(Writer, inspect.isfunction)
    if not name.startswith("_") and takes_anything(method)
]
"""The methods of a writer that take keyword arguments by a TypedDict."""


def test_all_verbs_are_among_those_that_are_checked() -> None:
    assert {name for name, _ in VERBS} >= {
        *("change", "preview", "create", "update", "edit", "set_rollout", "pause", "resume"),
        *("archive", "restore", "delete", "rollback", "create_segment", "update_segment"),
        *("change_members", "rollback_segment", "delete_segment"),
    }


@pytest.mark.parametrize(("name", "method"), VERBS, ids=dict(VERBS))
def test_a_writer_refuses_what_it_does_not_know_before_anything_is_done(
    name: str, method: Any, flag: Writer
) -> None:
    required = {
        parameter.name: {"flag": FLAG, "segment": {"key": "s"}, "to": 1}.get(parameter.name, "a.b")
        for parameter in inspect.signature(method).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind is not parameter.VAR_KEYWORD
        and parameter.name != "self"
    }
    before = flag.store.read_tip()
    for unknown, meant in [("dry_run", "reason"), ("reson", "'reason'"), ("acter", "'actor'")]:
        with pytest.raises(TypeError, match=rf"{name}\(\) got an unexpected.*{unknown}.*{meant}"):
            method(flag, **required, **{unknown: True})
    assert flag.store.read_tip() == before


def test_an_unknown_argument_is_compared_with_all_that_a_verb_takes(flag: Writer) -> None:
    with pytest.raises(TypeError, match="Did you mean 'expected_version'"):
        flag.set_rollout("a.b", 5, expected_versoin=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="Did you mean 'idempotency_key'"):
        flag.rollback("a.b", to=1, idempotency="k")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="Did you mean 'key'"):
        flag.reader.entries(kye="a.b")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="Did you mean 'since'"):
        flag.reader.read_newer_entries(0, sinc=None)  # type: ignore[call-arg]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_writer_is_neither_copied_nor_sent(
    copied: Callable[[Writer], object], writer: Writer
) -> None:
    with pytest.raises(InvalidArgumentError, match="a Writer cannot be copied"):
        copied(writer)


def test_a_decorated_function_is_documented_as_before() -> None:
    @refuse_unknown_arguments
    def asked(key: str, **wanted: Unpack[Options]) -> str:
        """Do it."""
        return f"{key} {wanted}"

    assert (asked.__name__, asked.__doc__) == ("asked", "Do it.")
    assert asked("a", region="eu") == "a {'region': 'eu'}"
    assert list(inspect.signature(flagkit.configure).parameters) == ["uri", "options"]


WEIRD: list[Any] = [
    *(None, "x", 5, -1, True, 1.5, math.nan, math.inf, 2**70, [], {}, object(), b"b", print),
    *("\ud800", "a\0", ["x"], {"x": 1}, [None], datetime(2026, 1, 1)),  # noqa: DTZ001
]


def drafted(do: Callable[[Draft], object], writer: Writer) -> None:
    with writer.preview() as draft:
        do(draft)


CALLS: dict[str, Callable[[Writer, Any], object]] = {
    "weights": lambda w, v: w.set_rollout("a.b", v),
    "a weight": lambda w, v: w.set_rollout("a.b", {"on": v, "off": 50}),
    "a rule": lambda w, v: w.set_rollout("a.b", 5, rule=v),
    "a region": lambda w, v: w.set_rollout("a.b", 5, region=v),
    "a version": lambda w, v: w.update(FLAG, expected_version=v),
    "reassign": lambda w, v: w.update(FLAG, reassign=v),
    "a salt": lambda w, v: w.update(
        {**FLAG, "fallthrough": {"rollout": {"weights": {"on": 5, "off": 95}, "salt": v}}}
    ),
    "a key": lambda w, v: w.pause(v),
    "a document": lambda w, v: w.create(v),
    "an editor": lambda w, v: w.edit("a.b", v),
    "an edit": lambda w, v: w.edit("a.b", lambda _: v),
    "a revision": lambda w, v: w.rollback("a.b", to=v),
    "a segment's revision": lambda w, v: w.rollback_segment("s", to=v),
    "members": lambda w, v: w.change_members("s", include=v),
    "a member": lambda w, v: w.change_members("s", include=[v]),
    "a segment": lambda w, v: w.create_segment(v),
    "a reason": lambda w, v: w.pause("a.b", reason=v),
    "an idempotency key": lambda w, v: w.pause("a.b", idempotency_key=v),
    "a session": lambda w, v: w.in_transaction(v).pause("a.b"),
    "namespaces": lambda w, v: drafted(lambda d: d.grant("x", "admin", v), w),
    "a role": lambda w, v: drafted(lambda d: d.grant("x", v), w),
    "glass": lambda w, v: drafted(lambda d: d.bypass_guards(v), w),
    "a capacity": lambda w, v: drafted(lambda d: d.set_limit("actor", capacity=v, rate=1), w),
    "a rate": lambda w, v: drafted(lambda d: d.set_limit("actor", capacity=1, rate=v), w),
    "a proposal": lambda w, v: w.proposals.approve(v),
    "proposals": lambda w, v: w.reader.proposals(v),
    "a request": lambda w, v: w.pending.drop(v),
    "days": lambda w, v: w.reader.stale_flags(v),
    **{
        f"entries by {name}": lambda w, v, name=name: list(w.reader.entries(**{name: v}))  # type: ignore[misc]
        for name in ("after", "key", "actor", "action", "since", "until")
    },
    **{
        f"a writer's {name}": lambda _, v, name=name: Writer(  # type: ignore[misc]
            **{"uri": NOWHERE, "environment": "e", "actor": "x", name: v}
        ).close()
        for name in ("uri", "environment", "database", "timeout", "checkpoint_every", "guards")
    },
    **{
        f"a client's {name}": lambda _, v, name=name: Client(  # type: ignore[misc]
            **{"uri": NOWHERE, "environment": "e", name: v}
        ).close()
        for name in (
            *("uri", "environment", "region", "database", "snapshot_path", "namespaces"),
            *("max_staleness", "bootstrap", "register", "encryption"),
        )
    },
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_what_is_of_no_use_is_refused_by_an_error_of_flagkits(
    call: Callable[[Writer, Any], object], flag: Writer
) -> None:
    refused: list[FlagkitError] = []
    for value in WEIRD:
        try:
            call(flag, value)
        except FlagkitError as error:
            refused.append(error)
    assert len(refused) > len(WEIRD) / 2


WAITS: dict[str, Callable[[Client, Any], object]] = {
    "wait_ready": lambda client, value: client.wait_ready(value),
    "wait_for": lambda client, value: client.wait_for(1, value),
    "a revision": lambda client, value: client.wait_for(value, 0),
    "policy": lambda client, value: client.policy("a.b", metadata=True, timeout=value),
    "close": lambda client, value: client.close(value),
}


@pytest.mark.parametrize("call", WAITS.values(), ids=WAITS.keys())
def test_waiting_takes_numbers_alone(call: Callable[[Client, Any], object]) -> None:
    history = MemoryHistory()
    history.commit(FLAG)
    with Client.from_source(history.create_source) as client:
        client.wait_ready(math.inf)
        client.wait_for(1, 2**70)
        for value in (None, [], {}, object(), b"b", print, [5]):
            with pytest.raises(InvalidArgumentError):
                call(client, value)
    for value in ("5", True, math.nan):
        with pytest.raises(InvalidArgumentError, match="pass a number of seconds"):
            client.close(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    ["prod\n", " prod", "pr od", "pr\x1b[31mod", "a\0b", "\ud800", "a\u200bb", "\t", "x" * 201],
)
def test_an_environment_is_named_by_what_can_be_seen(
    name: str, mongo_uri: str, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing = functools.partial(pytest.raises, FlagkitError, match="environment is")
    with refusing():
        Client(NOWHERE, environment=name)
    with refusing():
        Writer(mongo_uri, name, actor="x", database=database)
    if "\0" not in name and name != "\ud800":
        monkeypatch.setenv("FLAGKIT_ENVIRONMENT", name)
        with refusing():
            flagkit.configure(NOWHERE)


@pytest.mark.parametrize("name", ["prod", "Prod-1", "eu/prod.2", "größe", "生产", "x" * 200])
def test_other_names_of_environments_are_taken(name: str) -> None:
    Client(NOWHERE, environment=name)


@pytest.mark.parametrize("uri", [NOWHERE + "\n", " " + NOWHERE, NOWHERE + "&appname=a b"])
def test_a_connection_string_with_what_nobody_sees_is_refused_and_not_shown(uri: str) -> None:
    secret = uri.replace("127.0.0.1", "me:secret@127.0.0.1")
    with pytest.raises(FlagkitError, match="uri") as refused:
        Client(secret, environment="e")
    assert "secret@" not in str(refused.value)
