"""What the command prints: text of others as text, whole keys, and no failure once it is done."""

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pymongo import MongoClient
from ruamel.yaml import YAML

from flagkit._core.model import access
from flagkit._core.printable import to_printable
from flagkit.cli.errors import run_command
from flagkit.cli.main import flagkit
from flagkit.cli.output import Printer, guard_streams, mark_work_done
from flagkit.errors import AccessDeniedError
from flagkit.history import client_at, digest_of
from flagkit.writer import Writer, commit
from tests.support.hostile import MARKUP, STORABLE, assert_harmless
from tests.support.terminals import TerminalOutput, run_on_terminal, show_on_terminal

BAD = STORABLE
"""Whatever may be any text is this."""
SHORT_BAD = f"\r\nCRITICAL \x1b[31m{MARKUP}"
"""The same, short enough to stand whole in a line of differences."""
ENVIRONMENT = "production"
KEY = "checkout.payments.express-pay-for-customers-who-come-back-again"
"""A key that fits no column of a terminal of 80."""
ACTOR = "ada@example.com"
OTHERS = (f"dana {BAD}", f"bob {BAD}", f"eve {BAD}")
"""Actors whose names an earlier build has stored, and who could not come in today."""
FORGED_LINE = re.compile(r"^(2026-11-29 12:00:00 )?CRITICAL", re.MULTILINE)


def commands(group: click.Group, *names: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *names, name)
        else:
            yield " ".join((*names, name)), command


COMMANDS = dict(commands(flagkit))


def flag(key: str, **fields: Any) -> dict[str, Any]:
    return {
        "key": key,
        "owner": BAD,
        "description": BAD,
        "variants": {f"on{BAD}": BAD, "off": f"off{BAD}"},
        "off": "off",
        "rules": [
            {"name": f"rule{BAD}", "when": {f"name{BAD}": BAD}, "serve": f"on{BAD}"},
            {
                "name": "beta",
                "when": {"$segment": "shop.beta"},
                "rollout": {"weights": {"off": 100}},
            },
        ],
        "fallthrough": {"rollout": {"weights": {f"on{BAD}": 30, "off": 70}}},
        **fields,
    }


@contextlib.contextmanager
def as_earlier() -> Iterator[None]:
    """Let any name come in for an actor, as earlier builds did."""
    with pytest.MonkeyPatch.context() as patched:
        for module in (commit, access):
            patched.setattr(module, "check_actor", str)
        yield


class Stage:
    """A database whose every text is hostile, and the command beside it."""

    def __init__(self, uri: str, folder: Path) -> None:
        self.uri = uri
        self.database = f"printing-{uuid.uuid4().hex}"
        self.folder = folder
        self.variables = {
            "FLAGKIT_URI": uri,
            "FLAGKIT_ENVIRONMENT": ENVIRONMENT,
            "FLAGKIT_DATABASE": self.database,
            "FLAGKIT_ACTOR": ACTOR,
        }
        self.writer = Writer(uri, ENVIRONMENT, actor=ACTOR, database=self.database)
        self.writer.create_environment()
        self.writer.create_segment(
            {"key": "shop.beta", "owner": BAD, "included": [BAD, "u-1"]}, reason=BAD
        )
        self.writer.create(flag(KEY), reason=BAD)
        dana, bob, eve = OTHERS
        with as_earlier(), self.writer.change(reason=BAD, actor=eve) as change:
            change.grant(ACTOR, "admin", [])
            change.grant(dana, "admin", [])
            change.grant(bob, "editor", ["shop."])
        with as_earlier(), pytest.raises(AccessDeniedError):
            self.writer.set_rollout(KEY, {"off": 100}, actor=eve, reason=BAD)
        self._register()

    def _register(self) -> None:
        """Add a client, past the validators, for its service cannot be any text otherwise."""
        tip = self.writer.store.read_tip()
        with MongoClient[dict[str, Any]](self.uri, tz_aware=True) as mongo:
            database = mongo[self.database]
            now = mongo.admin.command("hello")["localTime"]
            # An environment of an earlier build, whose name could not come in today.
            head = database.heads.find_one()
            assert head is not None
            database.heads.insert_one({**head, "_id": f"odd {BAD}"})
            database.clients.with_options().insert_one(
                {
                    "_id": {"environment": ENVIRONMENT, "instance": "1"},
                    "service": BAD,
                    "host": BAD,
                    "pid": 1,
                    "region": BAD,
                    "epoch": tip.epoch,
                    "revision": 0,
                    "staleness": 0.0,
                    "time": now,
                    "until": now + timedelta(seconds=50),
                },
                bypass_document_validation=True,
            )

    def key(self) -> str:
        """Return the key of a new flag."""
        key = f"{KEY}-{uuid.uuid4().hex[:8]}"
        self.writer.create(flag(key), reason=BAD)
        return key

    def file(self, *documents: dict[str, Any], field: str = "flags") -> str:
        """Return the path of a new file of policies."""
        path = self.folder / f"{BAD.replace('/', '')}{uuid.uuid4().hex[:8]}.json"
        path.write_text(json.dumps({field: list(documents)}))
        return str(path)

    def proposal(self) -> str:
        key = self.key()
        with self.writer.proposals.propose(reason=BAD) as change:
            change.pause(key)
        assert change.proposal is not None
        return change.proposal

    def proposed_by_another(self) -> str:
        key = self.key()
        with as_earlier(), self.writer.proposals.propose(reason=BAD, actor=f"dana {BAD}") as change:
            change.pause(key)
        assert change.proposal is not None
        return change.proposal

    def approved(self) -> str:
        proposal = self.proposal()
        with as_earlier():
            self.writer.proposals.approve(proposal, reason=BAD, actor=f"dana {BAD}")
        return proposal

    def pending(self) -> str:
        """Return the name of a change that waits, and cannot be made."""
        request = f"request {BAD} {uuid.uuid4().hex[:8]}"
        key = self.key()
        with (
            MongoClient[dict[str, Any]](self.uri) as mongo,
            mongo.start_session() as session,
            session.start_transaction(),
        ):
            self.writer.in_transaction(session).pause(key, reason=BAD, idempotency_key=request)
        return request

    def digest(self) -> str:
        client = client_at(self.uri, ENVIRONMENT, database=self.database)
        answer = client.evaluate(KEY, {"targeting_key": BAD}, BAD)
        return digest_of(client, answer, {"targeting_key": BAD})

    def piped(self, *arguments: str) -> TerminalOutput:
        result = CliRunner().invoke(flagkit, arguments, env=self.variables)
        return TerminalOutput(result.exit_code, result.output)


@pytest.fixture(scope="module")
def stage(mongo_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    found = Stage(mongo_uri, tmp_path_factory.mktemp("printing"))
    yield found
    found.writer.close()
    with MongoClient[dict[str, Any]](mongo_uri) as mongo:
        mongo.drop_database(found.database)


class Case(NamedTuple):
    """A call of a command: its arguments, how it ends, and whether it prints text of others."""

    arguments: Callable[[Stage], list[str]]
    code: int = 0
    is_telling: bool = True


def case(*arguments: str, code: int = 0, is_telling: bool = True) -> Case:
    return Case(lambda stage: list(arguments), code, is_telling)  # noqa: ARG005 - it takes none


def archived(stage: Stage) -> str:
    key = stage.key()
    stage.writer.archive(key)
    return key


def switch(stage: Stage, *, is_on: bool) -> str:
    """Return the key of a new boolean flag that serves one variant to all."""
    key = f"{KEY}-{uuid.uuid4().hex[:8]}"
    variants = {f"on{BAD}": True, f"off{BAD}": False}
    serves = {"serve": f"{'on' if is_on else 'off'}{BAD}"}
    document = flag(key, variants=variants, off=f"off{BAD}", rules=[], fallthrough=serves)
    stage.writer.create(document, reason=BAD)
    return key


REASON = ["--reason", BAD]
CASES: dict[str, Case] = {
    "flags import": Case(lambda stage: [stage.file(flag(f"shop.{BAD}"))], 3),
    "flags list": case(),
    "flags show": case(KEY),
    "flags create": Case(lambda stage: [stage.file(flag(f"shop.x{uuid.uuid4().hex}")), *REASON]),
    "flags update": Case(lambda stage: [stage.file(flag(stage.key(), owner=SHORT_BAD)), *REASON]),
    "flags set-rollout": Case(lambda stage: [stage.key(), f"on{BAD}=40", "off=60"]),
    "flags serve": Case(lambda stage: [switch(stage, is_on=False), f"on{BAD}", *REASON]),
    "flags enable": Case(lambda stage: [switch(stage, is_on=False), *REASON]),
    "flags disable": Case(lambda stage: [switch(stage, is_on=True), *REASON]),
    "flags pause": Case(lambda stage: [stage.key(), *REASON]),
    "flags resume": Case(lambda stage: [stage.key(), *REASON]),
    "flags archive": Case(lambda stage: [stage.key(), *REASON]),
    "flags restore": Case(lambda stage: [archived(stage)]),
    "flags delete": Case(lambda stage: [archived(stage)]),
    "flags rollback": Case(
        lambda stage: [stage.key(), "--to", str(stage.writer.store.read_tip().revision)]
    ),
    "flags stale": case("--days", "0"),
    "segments list": case(),
    "segments show": case("shop.beta"),
    "segments create": Case(
        lambda stage: [
            stage.file({"key": f"shop.s{uuid.uuid4().hex}", "owner": BAD}, field="segments")
        ]
    ),
    "segments update": Case(
        lambda stage: [
            stage.file({"key": "shop.beta", "owner": SHORT_BAD}, field="segments"),
            "--dry-run",
        ]
    ),
    "segments change-members": case("shop.beta", "--include", BAD, *REASON),
    "segments rollback": case("shop.beta", "--to", "1"),
    "segments delete": case("shop.beta", code=1, is_telling=False),
    "access list": case(),
    "access grant": case(f"zoe {BAD}", "editor", "--namespace", "shop.", code=1),
    "access revoke": case(f"bob {BAD}", "--dry-run"),
    "access rollback": case("--to", "3", "--dry-run"),
    "access denials": case(),
    "access limits show": case(is_telling=False),
    "access limits set": case("actor", "--capacity", "20000", "--rate", "10000", *REASON),
    "access limits lift": case("actor", *REASON),
    "approvals list": Case(lambda stage: [stage.proposal()][1:]),
    "approvals show": Case(lambda stage: [stage.proposal()]),
    "approvals approve": Case(lambda stage: [stage.proposed_by_another(), *REASON]),
    "approvals reject": Case(lambda stage: [stage.proposal(), *REASON]),
    "approvals withdraw": Case(lambda stage: [stage.proposal(), *REASON]),
    "approvals apply": Case(lambda stage: [stage.approved()]),
    "pending list": Case(lambda stage: [stage.pending()][1:]),
    "pending sweep": Case(lambda stage: [stage.pending()][1:]),
    "pending commit": Case(lambda stage: [stage.pending()]),
    "pending drop": Case(lambda stage: [stage.pending(), *REASON]),
    "admin init": case("--environment", ENVIRONMENT),
    "admin erase": case(OTHERS[1], "--dry-run"),
    "ledger show": case("--limit", "1000"),
    "ledger tail": case("--limit", "1000"),
    "ledger verify": case(),
    "prune": case("--ledger-days", "10"),
    "eval": case(KEY, "--user", BAD, "--attribute", f"name{BAD}={BAD}", "--explain"),
    "replay": Case(lambda stage: [stage.digest(), "--user", f"other {BAD}"], 3),
    "validate": Case(lambda stage: [stage.file(flag(f"shop.{BAD}")), stage.file(flag(KEY))], 3),
    "format": Case(lambda stage: [stage.file(flag(KEY)), "--output", "digest"], is_telling=False),
    "schema": case(is_telling=False),
    "completion": case("bash", is_telling=False),
    "checkpoint": case(),
    "status": case(),
    "rollout wait": case("--revision", "1", "--timeout", "0", code=1),
    "demo": Case(lambda stage: ["--file", stage.file(flag(f"shop.{BAD}"))], 1),
}


def test_each_command_has_a_case() -> None:
    assert set(CASES) == set(COMMANDS)


QUIET = {
    "ledger verify",
    "access limits lift",
    "access limits set",
    "access rollback",
    "admin init",
    "approvals apply",
    "approvals reject",
    "approvals withdraw",
    "checkpoint",
    "flags archive",
    "flags delete",
    "flags pause",
    "flags restore",
    "flags resume",
    "flags rollback",
    "pending commit",
    "pending drop",
    "pending sweep",
    "prune",
    "replay",
    "rollout wait",
    "segments change-members",
    "segments create",
    "segments rollback",
}
"""Commands that print keys and words of their own alone."""


def assert_text_alone(shown: TerminalOutput, *, is_telling: bool) -> None:
    """Check that what a command printed has no line and no escape of somebody else's making."""
    assert "Traceback" not in shown.text
    for line in shown.lines:
        assert_harmless(line)
        assert not FORGED_LINE.match(line), shown.text
    assert ("CRITICAL" in shown.text) is is_telling, shown.text
    assert "\U0001f604" not in shown.text
    assert shown.text.count("urn:x:1") >= is_telling


@pytest.mark.mongo
@pytest.mark.parametrize("name", CASES)
class TestStoredText:
    def test_it_makes_neither_lines_nor_escapes_in_a_pipe(self, name: str, stage: Stage) -> None:
        arguments, code, is_telling = CASES[name]
        is_telling = is_telling and name not in QUIET
        shown = stage.piped(*name.split(), *arguments(stage))
        assert shown.code == code, shown.text
        assert_text_alone(shown, is_telling=is_telling)
        if is_telling:
            assert MARKUP in shown.text
        if KEY in " ".join(shown.lines):
            assert any(KEY in line for line in shown.lines)

    @pytest.mark.parametrize("columns", [80, 200])
    def test_it_makes_neither_lines_nor_escapes_on_a_terminal(
        self, name: str, columns: int, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        arguments, code, is_telling = CASES[name]
        is_telling = is_telling and name not in QUIET
        call = [*name.split(), *arguments(stage)]
        shown = show_on_terminal(flagkit, call, columns, stage.variables, monkeypatch)
        assert shown.code == code, shown.text
        assert_text_alone(shown, is_telling=is_telling)


QUICK = {"rollout wait": ["--timeout", "0", "--revision", "0"], "ledger tail": []}


def calls() -> Iterator[tuple[str, ...]]:
    """Yield calls of each command in which each argument and option in turn is hostile."""
    for name, command in COMMANDS.items():
        yield (*name.split(), f"--{BAD}")
        yield (*name.split(), *[BAD] * 9)
        yield (*name.split(), "\udce9")
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.is_flag:
                for bad in (BAD, "\udce9"):
                    yield (*name.split(), *QUICK.get(name, []), parameter.opts[0], bad)
    yield (BAD,)
    yield (f"--{BAD}",)


@pytest.mark.mongo
@pytest.mark.parametrize("call", [*calls()], ids=lambda call: ascii(" ".join(call))[:90])
def test_given_text_makes_neither_lines_nor_escapes(call: tuple[str, ...], stage: Stage) -> None:
    shown = stage.piped(*call)
    assert_text_alone(shown, is_telling="CRITICAL" in shown.text)


# Keys


SHOWING = [
    ["flags", "list"],
    ["flags", "show", KEY],
    ["ledger", "show"],
    ["flags", "stale", "--days", "0"],
]


@pytest.mark.mongo
@pytest.mark.parametrize("arguments", SHOWING, ids=" ".join)
class TestKeys:
    def test_a_key_is_one_text_in_a_pipe_whatever_columns_are_said(
        self, arguments: list[str], stage: Stage
    ) -> None:
        stage.key()
        shown = [
            CliRunner().invoke(flagkit, arguments, env={**stage.variables, "COLUMNS": columns})
            for columns in ("20", "80", "1000")
        ]
        assert KEY in shown[0].stdout
        assert "..." not in shown[0].stdout
        assert "\u2026" not in shown[0].stdout
        assert shown[0].stdout == shown[1].stdout == shown[2].stdout

    @pytest.mark.parametrize("columns", [40, 80, 200])
    def test_a_key_is_one_text_on_a_terminal(
        self, arguments: list[str], columns: int, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stage.key()
        shown = show_on_terminal(flagkit, arguments, columns, stage.variables, monkeypatch)
        assert shown.code == 0
        assert KEY in shown.text


@pytest.mark.mongo
def test_a_process_asks_its_terminal_how_wide_it_is(stage: Stage) -> None:
    shown = run_on_terminal("flags", "show", KEY, columns=80, **stage.variables)
    assert shown.code == 0
    assert KEY in shown.text
    assert_text_alone(shown, is_telling=True)
    head, rule, *rows = shown.lines
    assert (head.split(), set(rule)) == (["flag", KEY], {"\u2500"})
    assert rows


CELLS = st.text(st.sampled_from("ab\u691c \n\x1b[]:\u202e"), max_size=30)


@given(
    st.lists(st.tuples(CELLS, st.integers(0, 9**9), st.lists(CELLS, max_size=3)), max_size=4),
    st.none() | st.integers(1, 120),
)
def test_a_table_breaks_no_word_and_no_number(rows: list[Any], width: int | None) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as told:
        Printer(width).print_table(("key", "count", "what"), rows, right=("count",))
    lines = told.getvalue().split("\n")
    for line in lines:
        assert_harmless(line)
    found = " ".join(lines).split()
    for key, count, what in rows:
        for text in (key, str(count), *what):
            assert not set(to_printable(text).split(" ")) - {""} - set(found)


def test_a_wide_table_is_folded_at_spaces_and_a_wider_one_told_field_by_field(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [("shop.search", "it goes on and on"), ("shop.theme", "")]
    Printer(31).print_table(("key", "why", "more"), [(*row, "x") for row in rows])
    assert capsys.readouterr().out.split("\n") == [
        *("key          why           more", "\u2500" * 31),
        *("shop.search  it goes on    x", "             and on"),
        *("shop.theme                 x", "", ""),
    ]
    Printer(26).print_table(("key", "why", "more"), [(*row, "x") for row in rows])
    assert capsys.readouterr().out.split("\n") == [
        *("key   shop.search", "why   it goes on and on", "more  x", ""),
        *("key   shop.theme", "more  x", "", ""),
    ]


# Output that is lost


READERS = {
    *("flags list", "flags show", "flags stale", "segments list", "segments show"),
    *("access list", "access denials", "access limits show", "approvals list", "approvals show"),
    *("pending list", "ledger show", "ledger tail", "ledger verify", "eval", "replay", "validate"),
    *("format", "schema", "completion", "status", "rollout wait", "demo"),
}
CHANGES = {name: found for name, found in CASES.items() if name not in READERS} | {
    "flags import": Case(lambda stage: [stage.file(flag(f"shop.x{uuid.uuid4().hex}"))]),
    "segments update": Case(
        lambda stage: [
            stage.file({"key": "shop.beta", "owner": uuid.uuid4().hex}, field="segments")
        ]
    ),
    "segments delete": Case(lambda stage: [segment(stage)]),
    "access grant": Case(lambda stage: [uuid.uuid4().hex, "editor"]),  # noqa: ARG005 - as all
    "access revoke": Case(lambda stage: [granted(stage)]),
    "access rollback": Case(lambda stage: ["--to", str(stage.writer.store.read_tip().revision)]),
    "admin erase": case("nobody"),
    "prune": case("--denials-days", "1", "--apply"),
}


def segment(stage: Stage) -> str:
    key = f"shop.s{uuid.uuid4().hex}"
    stage.writer.create_segment({"key": key})
    return key


def granted(stage: Stage) -> str:
    actor = uuid.uuid4().hex
    with stage.writer.change() as change:
        change.grant(actor, "editor", [])
    return actor


def test_each_command_either_reads_or_changes_something() -> None:
    assert set(CHANGES) | READERS == set(COMMANDS)
    assert not set(CHANGES) & READERS


def full() -> TextIO:
    return Path("/dev/full").open("w", encoding="utf-8")


def unread() -> TextIO:
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w", encoding="utf-8")


def is_read(stream: TextIO) -> bool:
    """Tell whether a test looks at what was written."""
    return isinstance(stream, io.TextIOWrapper) and isinstance(stream.buffer, io.BytesIO)


def narrow() -> TextIO:
    return io.TextIOWrapper(io.BytesIO(), encoding="ascii")


LOST: dict[str, Callable[[], TextIO | None]] = {
    "full": full,
    "unread": unread,
    "closed": lambda: None,
}


@pytest.fixture
def invoke(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Give what runs the command in this process with other streams, and returns its exit code."""

    def invoke(call: list[str], stdout: TextIO | None, stderr: TextIO | None) -> int:
        with monkeypatch.context() as patch:
            for name, value in stage.variables.items():
                patch.setenv(name, value)
            patch.setattr(sys, "stdout", stdout)
            patch.setattr(sys, "stderr", stderr)
            with pytest.raises(SystemExit) as ended:
                flagkit.main(call, prog_name="flagkit")
        code = ended.value.code
        assert isinstance(code, int)
        for stream in (stdout, stderr):
            if stream is not None:
                # As the interpreter does at its exit.
                stream.flush()
                if not isinstance(stream, io.StringIO) and not is_read(stream):
                    stream.close()
        return code

    return invoke


@pytest.mark.mongo
class TestLostOutput:
    @pytest.mark.parametrize("how", LOST)
    @pytest.mark.parametrize("name", CHANGES)
    def test_it_fails_no_command_that_has_made_its_change(
        self, name: str, how: str, stage: Stage, invoke: Callable[..., int]
    ) -> None:
        call = [*name.split(), *CHANGES[name].arguments(stage)]
        assert invoke(call, LOST[how](), LOST[how]()) == 0

    @pytest.mark.parametrize("how", LOST)
    @pytest.mark.parametrize("name", sorted(READERS))
    def test_it_ends_a_command_that_only_tells_something(
        self, name: str, how: str, stage: Stage, invoke: Callable[..., int]
    ) -> None:
        arguments, code, _ = CASES[name]
        errors = io.StringIO()
        assert invoke([*name.split(), *arguments(stage)], LOST[how](), errors) in {code or 1, 1}
        assert "Traceback" not in errors.getvalue()
        if not code:
            reasons = {"full": "No space left on device", "closed": "Bad file descriptor"}
            told = f"Error: standard output cannot be written: {reasons.get(how)}\n"
            assert errors.getvalue() == ("" if how == "unread" else told)

    def test_a_dry_run_only_tells_something(self, stage: Stage, invoke: Callable[..., int]) -> None:
        call = ["flags", "pause", stage.key(), "--dry-run"]
        assert invoke(call, full(), io.StringIO()) == 1

    def test_help_that_cannot_be_told_is_no_traceback(self, invoke: Callable[..., int]) -> None:
        errors = io.StringIO()
        assert invoke(["--help"], full(), errors) == 1
        assert errors.getvalue().count("\n") == 1

    @pytest.mark.parametrize(
        "how",
        [
            *(">/dev/full", ">/dev/full 2>/dev/full", ">&- 2>&-"),
            "2>&1 | true; exit ${PIPESTATUS[0]}",
        ],
    )
    def test_a_process_ends_well_with_its_change_made(self, how: str, stage: Stage) -> None:
        before = stage.writer.store.read_tip().revision
        percent = before % 90 + 1.5
        call = shlex.join([sys.executable, "-m", "flagkit.cli", "flags", "set-rollout", KEY])
        weights = shlex.join([f"on{BAD}={percent}", f"off={100 - percent}", "--reassign"])
        ended = subprocess.run(
            ["bash", "-c", f"{call} {weights} {how}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, **stage.variables, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert (ended.returncode, ended.stderr) == (0, "")
        assert f"on{to_printable(BAD)} {percent:g} %" in stage.piped("flags", "show", KEY).text

    def test_following_ends_with_the_reader_of_its_pipe(self, stage: Stage) -> None:
        with subprocess.Popen(
            [sys.executable, "-m", "flagkit.cli", "ledger", "tail", "--follow"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **stage.variables, "PYTHONPATH": os.pathsep.join(sys.path)},
        ) as process:
            assert process.stdout
            assert process.stderr
            assert process.stdout.readline()
            process.stdout.close()
            while process.poll() is None:
                stage.key()
            assert (process.returncode, process.stderr.read()) == (1, b"")


@pytest.mark.mongo
@pytest.mark.parametrize("name", CASES)
def test_what_an_encoding_lacks_is_replaced(
    name: str, stage: Stage, invoke: Callable[..., int]
) -> None:
    arguments, code, _ = CASES[name]
    output, errors = narrow(), narrow()
    assert invoke([*name.split(), *arguments(stage)], output, errors) == code
    for stream in (output, errors):
        stream.seek(0)
        assert "Traceback" not in stream.read()


WIDE = "Zo\xeb \u691c\u7d22 \U0001f680"


@pytest.mark.mongo
@pytest.mark.parametrize("form", ["json", "yaml", "policy"])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_programs_read_the_same_whatever_the_encoding(
    form: str, encoding: str, stage: Stage, invoke: Callable[..., int]
) -> None:
    key = f"shop.x{uuid.uuid4().hex}"
    stage.writer.create(flag(key, owner=WIDE))
    file = stage.file(flag(key, owner=WIDE))
    calls = [["flags", "show", key, "--output", form]]
    calls += [["format", file, "--output", form]] if form != "policy" else []
    for call in calls:
        told = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        assert invoke(call, told, io.StringIO()) == 0
        told.seek(0)
        text = told.read()
        read = json.loads(text) if form == "json" else YAML(typ="safe", pure=True).load(text)
        document = read.get("document") or read["flags"][0]
        assert document["owner"] == WIDE


@pytest.mark.mongo
def test_a_terminal_of_ascii_gets_ascii(stage: Stage) -> None:
    narrow = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    shown = run_on_terminal("flags", "list", columns=200, **stage.variables, **narrow)
    assert shown.code == 0
    assert shown.text.isascii()
    assert KEY in shown.text


def test_whatever_fails_after_the_work_is_told_and_no_failure(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(error: BaseException) -> None:
        mark_work_done()
        raise error

    for error in (click.ClickException(BAD), ValueError(BAD), KeyboardInterrupt(), click.Abort()):
        with guard_streams():
            assert run_command(partial(fail, error)) == 0
    told = capsys.readouterr().err
    assert "Warning: it was done, but not all of it could be told" in told
    for line in told.split("\n"):
        assert_harmless(line)
        assert not FORGED_LINE.match(line)


def test_a_fault_of_the_command_is_a_traceback_without_lines_of_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        raise ValueError(f"{BAD} mongodb://u:secret@host/")

    with guard_streams():
        assert run_command(fail) == 1
    told = capsys.readouterr().err
    assert told.startswith("Traceback (most recent call last):\n")
    assert "secret" not in told
    for line in told.split("\n"):
        assert_harmless(line)
        assert not FORGED_LINE.match(line)
