"""The `flagkit` command as a whole, and the reading of policy files."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

import flagkit
from flagkit import Context
from flagkit._core.model import decode
from flagkit.cli.commands.demo import build_users
from flagkit.cli.commands.status import format_duration
from flagkit.cli.main import flagkit as flagkit_command
from flagkit.errors import BrokenReferenceError, ConfigurationError, InvalidDocumentError
from flagkit.policy_files.reader import PolicyFile
from flagkit.testing import client_from
from flagkit.writer import Writer
from tests.support.terminals import run_on_terminal

SHOP = Path(__file__).parents[2] / "examples" / "shop" / "flags.yaml"
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "200"}
SERVER = re.compile(r"process (\d+) on port \d+, with its data in (\S+),")
WITHOUT = """
import sys
missing = sys.argv[1]
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from flagkit.cli import main
sys.argv[1:] = ["--version"]
main()
"""

THEME: dict[str, Any] = {
    "key": "shop.theme",
    "variants": {"light": "light", "dark": "dark"},
    "fallthrough": {"serve": "dark"},
}

Write = Callable[[str], Path]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in this process: starting another one takes longer than most commands."""
    result = CliRunner().invoke(
        flagkit_command,
        arguments,
        env=ENVIRONMENT | environment,
        prog_name="flagkit",
        catch_exceptions=False,
    )
    return subprocess.CompletedProcess(
        arguments, result.exit_code, stdout=result.stdout, stderr=result.stderr
    )


def run_process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a process of its own, where that is what the test is about."""
    return subprocess.run(
        [sys.executable, "-m", "flagkit.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env=ENVIRONMENT | environment,
    )


def assert_one_sentence(result: subprocess.CompletedProcess[str], code: int = 1) -> str:
    assert result.returncode == code, result
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "flags.yaml"
        path.write_text(text)
        return path

    return write


def refused(path: Path, environment: str | None = None) -> str:
    with pytest.raises(InvalidDocumentError) as caught:
        PolicyFile(path, environment)
    return str(caught.value).removeprefix(f"{path.parent}/")


# The command


def test_help_names_the_commands() -> None:
    result = run_process("--help")
    assert result.returncode == 0
    assert "demo" in result.stdout
    assert "--file" in run("demo", "--help").stdout


def test_version() -> None:
    result = run_process("--version")
    assert (result.returncode, result.stdout) == (0, f"flagkit, version {flagkit.__version__}\n")


@pytest.mark.parametrize("noun", [[], ["flags"], ["access", "limits"]], ids=" ".join)
def test_a_noun_alone_is_told_its_verbs(noun: list[str]) -> None:
    told = CliRunner().invoke(flagkit_command, noun)
    assert told.exit_code == 2
    assert "Error" not in told.output
    assert told.output == CliRunner().invoke(flagkit_command, [*noun, "--help"]).output


def test_wrong_usage_exits_with_2() -> None:
    assert run_process("dema").returncode == 2
    assert run("demo", "--fiel", "x").returncode == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_nouns_verbs_and_options(shell: str) -> None:
    script = CliRunner().invoke(flagkit_command, ["completion", shell])
    assert script.exit_code == 0
    assert f"_FLAGKIT_COMPLETE={shell}_complete" in script.stdout

    def completed(line: str, last: str) -> str:
        place = last if shell == "fish" else str(len(line.split()))
        words = {"COMP_WORDS": f"{line} {last}", "COMP_CWORD": place}
        asked = {"_FLAGKIT_COMPLETE": f"{shell}_complete", **words}
        return CliRunner().invoke(flagkit_command, env=asked).output

    assert "set-rollout" in completed("flagkit flags", "set-")
    assert "--dry-run" in completed("flagkit flags pause", "--dry")
    assert CliRunner().invoke(flagkit_command, ["completion", "tcsh"]).exit_code == 2


@pytest.mark.parametrize("missing", ["click", "rich", "ruamel"])
def test_a_missing_extra_is_one_sentence(missing: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT, missing],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
    )
    assert f"needs {missing}" in assert_one_sentence(result)
    assert "pip install -e '.[cli]'" in result.stderr
    assert "pip install flagkit " not in result.stderr


def commands(group: click.Group, *names: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *names, name)
        else:
            yield " ".join((*names, name)), command


OFFLINE = {"validate", "format", "schema", "demo", "completion"}


@pytest.mark.parametrize(("name", "command"), [*commands(flagkit_command)])
def test_the_connection_string_is_an_option_of_each_command_that_connects(
    name: str, command: click.Command
) -> None:
    options = {option for parameter in command.params for option in parameter.opts}
    assert ({"--uri", "--database"} <= options) is (name not in OFFLINE)
    assert "uri" not in {
        parameter.name for parameter in command.params if isinstance(parameter, click.Argument)
    }


# Status


@pytest.mark.mongo
class TestStatus:
    def test_it_tells_where_environments_and_members_stand(
        self, mongo_uri: str, database: str, writer: Writer
    ) -> None:
        writer.create(THEME)
        with Writer(mongo_uri, "staging", actor="tester", database=database) as other:
            other.create_environment()
        result = run_process("status", "--uri", mongo_uri, "--database", database)
        assert (result.returncode, result.stderr) == (0, "")
        assert re.search(r"production +1 +20\d\d-.* UTC +\d+\.\d s", result.stdout)
        assert re.search(r"staging +0 ", result.stdout)
        assert re.search(r"127\.0\.0\.1:\d+ +PRIMARY +0\.0 s", result.stdout)
        assert "mongodb://" not in result.stdout

    def test_it_may_be_asked_for_one_environment_as_json(
        self, mongo_uri: str, database: str, writer: Writer
    ) -> None:
        revision = writer.create(THEME).revision
        variables = {"FLAGKIT_URI": mongo_uri, "FLAGKIT_DATABASE": database}
        result = run("status", "--environment", "production", "--output", "json", **variables)
        found = json.loads(result.stdout)
        [environment] = found["environments"]
        assert (environment["environment"], environment["revision"]) == ("production", revision)
        assert len(environment["epoch"]) == 32
        assert environment["changed"] <= found["time"]
        assert [member["state"] for member in found["members"]] == ["PRIMARY"]
        assert found["checkpoints"] == []
        assert run("checkpoint", "--environment", "production", **variables).returncode == 0
        assert re.search(r"[0-9a-f]{8} +1 *\n", run("status", **variables).stdout)
        found = json.loads(run("status", "--output", "json", **variables).stdout)
        assert [checkpoint["revision"] for checkpoint in found["checkpoints"]] == [revision]
        result = run("status", "--environment", "prod", **variables)
        assert "'prod' is not in the database" in assert_one_sentence(result)
        assert "Did you mean 'production'?" in result.stderr

    def test_a_database_without_environments_is_said_to_have_none(
        self, mongo_uri: str, database: str
    ) -> None:
        result = run("status", "--uri", mongo_uri, "--database", database)
        assert f"No environment is in the database '{database}'" in result.stdout


def test_a_connection_string_is_needed_and_never_shown() -> None:
    assert "uri is missing" in assert_one_sentence(run_process("status", FLAGKIT_URI=""))
    uri = "mongodb://dana:secret@127.0.0.1:1/?serverSelectionTimeoutMS=100"
    result = run("status", "--uri", uri)
    assert "no member of the replica set" in assert_one_sentence(result)
    assert "secret" not in result.stderr


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-1, "0.0 s"), (0.44, "0.4 s"), (12.3, "12 s"), (300, "5 min"), (7300, "2 h"), (9e5, "10 d")],
)
def test_durations_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert format_duration(seconds) == said


# The demo


@pytest.mark.mongo
@pytest.mark.timeout(60)
def test_demo_shows_the_loop_and_leaves_nothing_running() -> None:
    start = datetime.now(UTC)
    result = run_process("demo")
    seconds = (datetime.now(UTC) - start).total_seconds()
    assert (result.returncode, result.stderr) == (0, ""), result
    assert seconds < 20
    server = SERVER.search(result.stdout)
    assert server
    assert not Path("/proc", server[1]).exists()
    assert not Path(server[2]).exists()

    output = " ".join(result.stdout.split())
    assert "flags.yaml holds flags: 13." in output
    assert re.search(r"120,000 evaluations, [\d,]+ a second", output)
    assert "checkout.express-pay goes from 10 % to 50 %" in output
    assert re.search(r" 3 50 % 5,011 \+2,512 0 \d+\.\d ms \d+\.\d ms ", output)
    assert "4,014 users came in, 0 were taken out" in output
    assert "checkout.enabled on 10,000 off 10,000 on 10,000" in output
    assert "and 0 answers differ from before" in output
    assert re.search(r"rollback checkout.enabled to revision 3 [0-9a-f]{8} ", output)
    assert "Verified: revisions 1 to 5 without a gap" in output


def interrupt_demo() -> tuple[int, str, re.Match[str]]:
    """Interrupt the demo once its server runs; return its exit code, its errors and the server."""
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "flagkit.cli", "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as process:
        assert process.stdout
        server = next(found for line in process.stdout if (found := SERVER.search(line)))
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        return process.returncode, errors, server


@pytest.mark.mongo
def test_demo_interrupted_leaves_nothing_running() -> None:
    code, errors, server = interrupt_demo()
    while "Exception ignored" in errors:
        # Python loses an interrupt that arrives within a callback of the garbage collector.
        code, errors, server = interrupt_demo()
    assert (code, errors.strip()) == (1, "Aborted!")
    assert not Path("/proc", server[1]).exists()
    assert not Path(server[2]).exists()


@pytest.mark.mongo
def test_demo_fits_a_terminal_of_80_columns_and_of_ascii() -> None:
    shown = run_on_terminal("demo", columns=80, PYTHONIOENCODING="ascii")
    assert shown.code == 0, shown
    assert shown.text.isascii()
    assert max(map(len, shown.lines)) <= 80


@pytest.mark.mongo
def test_demo_takes_any_policy_file(write: Write) -> None:
    path = write("flags: [{key: shop.greeting, variants: {a: Hi}, fallthrough: {serve: a}}]")
    result = run("demo", "--file", str(path))
    assert (result.returncode, result.stderr) == (0, ""), result
    assert result.stdout.count("left out") == 2
    assert "Verified: revisions 1 to 1 without a gap" in result.stdout


@pytest.mark.mongo
def test_demo_names_the_place_of_a_broken_reference(write: Write) -> None:
    path = write("""
flags:
  - key: shop.sale
    variants: {on: true, off: false}
    prerequisites:
      - {flag: shop.enabled, variants: [on]}
    fallthrough: {serve: on}
""")
    error = assert_one_sentence(run("demo", "--file", str(path)))
    assert f"{path}:6: flag 'shop.sale': prerequisites[0].flag: 'shop.enabled' does not" in error


def test_demo_without_its_file_is_one_sentence() -> None:
    error = assert_one_sentence(run("demo", "--file", "/nonexistent/flags.yaml"))
    assert "/nonexistent/flags.yaml cannot be read: No such file" in error


def test_demo_with_a_bad_flag_names_file_line_and_path(write: Write) -> None:
    path = write(SHOP.read_text().replace("$lt: 120", "$less: 120"))
    line = SHOP.read_text().partition("$lt: 120")[0].count("\n") + 1
    error = assert_one_sentence(run("demo", "--file", str(path)))
    assert f"{path}:{line}: flag 'checkout.invoice': rules[1].when.age.$less: unknown" in error


def test_demo_without_flags_for_its_region_is_one_sentence(write: Write) -> None:
    assert "no flags for region" in assert_one_sentence(
        run("demo", "--file", str(write("flags: []")))
    )


def test_demo_without_mongod_is_one_sentence() -> None:
    result = run("demo", FLAGKIT_MONGOD="/nonexistent/mongod")
    assert "FLAGKIT_MONGOD is /nonexistent/mongod" in assert_one_sentence(result)


# The example


def test_valid_files_are_said_to_be_valid() -> None:
    shop = Path(__file__).parents[2] / "examples" / "shop" / "flags.yaml"
    result = run("validate", str(shop))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"{shop}: 13 flags and 1 segment, all valid\n"


def test_what_is_not_valid_is_named_and_the_other_files_are_checked(write: Write) -> None:
    bad = write("flags:\n- key: a.b\n  variants: {x: 1}\n  fallthrough: {serve: y}\n")
    shop = Path(__file__).parents[2] / "examples" / "shop" / "flags.yaml"
    result = run_process("validate", str(bad), str(shop))
    assert result.returncode == 3
    assert result.stderr.startswith(f"{bad}:4: flag 'a.b': fallthrough.serve: 'y' is not a variant")
    assert "13 flags and 1 segment, all valid" in result.stdout
    assert_one_sentence(run("validate", str(bad.parent / "missing.yaml")))
    assert run("validate").returncode == 2


def test_standard_input_is_a_file_too() -> None:
    result = CliRunner().invoke(flagkit_command, ["validate", "-"], input=SHOP.read_text())
    assert (result.exit_code, result.output) == (0, "-: 13 flags and 1 segment, all valid\n")
    result = CliRunner().invoke(flagkit_command, ["validate", "-"], input="flags: [\n{}]")
    assert result.exit_code == 3
    assert result.stderr.startswith("<stdin>:2: flags[0]: key: is missing")


def test_all_flags_that_are_not_valid_are_named(write: Write) -> None:
    flag = "- {key: a.b, variants: {x: 1}, fallthrough: {serve: x}}\n"
    path = write(f"flags:\n{flag}{flag.replace('a.b', 'A')}{flag.replace(': 1', ': null')}{flag}")
    result = run("validate", str(path))
    assert (result.returncode, result.stdout) == (3, "")
    second, third, fourth = result.stderr.splitlines()
    assert second.startswith(f"{path}:3: flag 'A': key: 'A' is not a flag key")
    assert third.startswith(f"{path}:4: flag 'a.b': variants.x: is None")
    assert fourth.startswith(f"{path}:5: flag 'a.b': key: is in this file twice, in line 2 too")


def test_what_readers_of_yaml_1_1_take_for_something_else_is_warned_of(write: Write) -> None:
    path = write("""
flags:
  - key: a.b
    variants: {on: true, "off": false}
    rules:
      - name: r
        when: {a: No, b: 22:00, c: 010, d: 0o10, e: [y, "n", 'yes', "1:30", oN, 10, 1.5, ~]}
        serve: on
    fallthrough: {serve: "off"}
    description: |
      off
""")
    result = run("validate", str(path))
    assert (result.returncode, result.stdout) == (0, f"{path}: 1 flag, all valid\n")
    warning, boolean = f"Warning: {path}", "a boolean to readers of YAML 1.1. Quote it: "
    when, decimal = f"{warning}:7: flags[0].rules[0].when", "Write it as a decimal number"
    assert result.stderr.splitlines() == [
        f'{warning}:4: flags[0].variants.on: on is text, but {boolean}"on"',
        f'{when}.a: No is text, but {boolean}"No"',
        f'{when}.b: 22:00 is text, but a number to readers of YAML 1.1. Quote it: "22:00"',
        f"{when}.c: 010 is another number to readers of YAML 1.1. {decimal}",
        f"{when}.d: 0o10 is a number, but text to readers of YAML 1.1. {decimal}",
        f'{when}.e[0]: y is text, but {boolean}"y"',
        f'{warning}:8: flags[0].rules[0].serve: on is text, but {boolean}"on"',
    ]


def test_floats_that_programs_take_for_text_are_warned_of_and_what_has_a_tag_is_not(
    write: Write,
) -> None:
    constants = "[1e3, 1.5e3, 1e+3, 1.5, 1.5e+3, .inf, !!str 5, !!str on, !!float 1e3, !!int 010]"
    path = write(
        f"{FLAG.replace(', y: 2', '')}  rules: [{{name: r, when: {{a: {constants}}}, serve: x}}]"
    )
    place = f"{path}:5: flags[0].rules[0].when.a"
    assert [str(doubt) for doubt in PolicyFile(path).ambiguities] == [
        f"{place}[{i}]: {written} is a number, but text to readers of YAML 1.1."
        " Write a point, and the exponent with its sign, as in 1.0e+3"
        for i, written in enumerate(["1e3", "1.5e3", "1e+3"])
    ]


def test_validating_holds_files_to_their_environment(write: Write) -> None:
    flag = "flags:\n- {key: a.b, environment: staging, variants: {x: 1}, fallthrough: {serve: x}}\n"
    path = str(write(flag))
    assert run("validate", path, "--environment", "staging").stdout.endswith("1 flag, all valid\n")
    assert "goes to 'production'" in run("validate", path, "--environment", "production").stderr


# The canonical form


def test_formatting_says_the_same_in_each_format(write: Write) -> None:
    digests = run("format", str(SHOP), "--output", "digest").stdout
    flag = r"[0-9a-f]{64}  (\*|eu-west-1)  [a-z.-]+\n"
    assert re.fullmatch(rf"({flag}){{13}}[0-9a-f]{{64}}  segment  beta-testers\n", digests)
    for output in ("yaml", "json"):
        formatted = run("format", str(SHOP), "--output", output)
        assert (formatted.returncode, formatted.stderr) == (0, "")
        path = str(write(formatted.stdout))
        assert run("format", path, "--output", output).stdout == formatted.stdout
        assert run("format", path, "--output", "digest").stdout == digests
        assert run("validate", path).stderr == ""


def test_segments_are_checked_and_formatted_like_flags(write: Write) -> None:
    segments = (
        "segments:\n"
        "  - key: beta\n"
        "    included: [u-2, 17, u-1, u-2]\n"
        "    environment: staging\n"
        "    when: {plan: pro, country: DE}\n"
    )
    path = str(write(segments))
    assert run("format", path).stdout == (
        "flags: []\n"
        "segments:\n"
        "  - key: beta\n"
        "    environment: staging\n"
        "    when: {country: DE, plan: pro}\n"
        '    included: ["17", u-1, u-2]\n'
    )
    assert run("validate", path).stdout == f"{path}: 0 flags and 1 segment, all valid\n"
    twice = segments + "  - key: beta\n    excluded: [x, '']\n  - key: beta\n"
    found = run("validate", str(write(twice)))
    assert found.returncode == 3
    assert "flags.yaml:7: segment 'beta': excluded[1]: is '', which is not a key" in found.stderr
    assert "flags.yaml:8: segment 'beta': key: is in this file twice, in line 2" in found.stderr


def test_formatting_keeps_what_only_a_writer_heeds(write: Write) -> None:
    path = write(FLAG.replace(", y: 2", "") + "  state: active\n  environment: staging\n")
    assert run("format", str(path)).stdout == (
        "flags:\n"
        "  - key: a.b\n"
        "    environment: staging\n"
        "    state: active\n"
        "    variants: {x: 1}\n"
        "    fallthrough: {serve: x}\n"
    )


def test_formatting_what_is_not_valid_is_one_sentence(write: Write) -> None:
    assert "variants: is missing" in assert_one_sentence(
        run("format", str(write("flags: [{key: a}]")))
    )


def test_the_users_of_the_demo_are_always_the_same() -> None:
    first = build_users(1)[0]
    assert build_users(3)[0].attributes == first.attributes
    assert first.attributes == {
        "targeting_key": "u-00000",
        "country": "DE",
        "city": "Berlin",
        "plan": "free",
        "staff": False,
        "email": "u-00000@mail.example",
        "age": 44,
        "orders": 5,
        "app_build": 2569,
    }


def test_every_flag_of_the_example_shop_decodes_and_says_whose_it_is() -> None:
    policies = PolicyFile(SHOP, "production").policies
    assert len({policy.flag.key for policy in policies}) == 12
    assert {policy.flag.type for policy in policies} == {
        "boolean",
        "string",
        "integer",
        "float",
        "object",
    }
    for policy in policies:
        assert policy.flag == decode(policy.document)
        assert {"owner", "description"} <= policy.flag.metadata.keys()
        assert policy.flag.off is not None


@pytest.mark.parametrize(
    ("key", "attributes", "variant"),
    [
        ("checkout.invoice", {"country": "AT", "age": 18, "orders": 3}, "on"),
        ("checkout.invoice", {"country": "AT", "age": 18, "plan": "business"}, "on"),
        ("checkout.invoice", {"country": "AT", "age": 17, "orders": 3}, "off"),
        ("checkout.invoice", {"country": "AT", "age": 18, "orders": 3, "risk": "high"}, "off"),
        ("checkout.invoice", {"country": "AT", "orders": 3}, "off"),
        ("cart.items-max", {"plan": "business"}, "business"),
        ("cart.free-shipping", {"plan": "plus"}, "member"),
        ("cart.free-shipping", {"plan": "plus", "country": "CH"}, "swiss"),
        ("search.similar-items", {"staff": True}, "on"),
        ("delivery.same-day", {"city": "Paris"}, "on"),
        ("account.team-carts", {"app_build": 2400}, "off"),
        ("support.live-chat", {"orders": 1}, "off"),
    ],
)
def test_the_example_shop_means_what_its_comments_say(
    key: str, attributes: dict[str, Any], variant: str
) -> None:
    client = client_from(_shop(), region="eu-west-1")
    assert client.evaluate(key, Context("u-1", attributes)).variant == variant


def test_the_region_and_the_clock_decide_in_the_example_shop() -> None:
    paris = {"city": "Paris"}
    assert (
        client_from(_shop(), region="us-east-1").evaluate("delivery.same-day", paris).variant
        == "off"
    )
    midnight = datetime(2026, 11, 27, tzinfo=timezone(timedelta(hours=1)))
    for now, plan, on in [
        (midnight - timedelta(seconds=1), "free", False),
        (midnight - timedelta(seconds=1), "plus", True),
        (midnight, "free", True),
        (midnight + timedelta(days=4), "plus", False),
    ]:
        client = client_from(_shop(), now=now)
        assert client.is_enabled("sale.black-friday", {"plan": plan}) is on


def _shop() -> list[dict[str, Any]]:
    return [policy.document for policy in PolicyFile(SHOP).policies]


# Policy files


def test_yaml_1_2_json_and_dates_are_read(write: Write) -> None:
    path = write("""\ufeff
flags:
  - key: shop.sale
    variants: {on: true, off: false, yes: true}
    rules:
      - name: new
        when: {since: {$gte: 2026-12-01T08:00:00Z}, version: 1_0}
        serve: on
    fallthrough: {serve: off}
""")
    document = PolicyFile(path).policies[0].document
    assert list(document["variants"]) == ["on", "off", "yes"]
    assert document["rules"][0]["when"]["since"] == {"$gte": datetime(2026, 12, 1, 8, tzinfo=UTC)}
    path = write(
        '{\n\t"flags": [\n\t\t{"key": "a", "variants": {"x": "\\ud83d\\ude00 \\n\\u00e9"},'
        ' "fallthrough": {"serve": "x"}}\n\t]\n}'
    )
    assert PolicyFile(path).policies[0].flag.variants == {"x": "😀 \né"}


def test_what_a_json_file_may_hold_is_read(write: Write) -> None:
    name, text = "n" * 5_000, "\x7f\x80\ufffe"
    flag = {"key": "a", "variants": {name: text}, "fallthrough": {"serve": name}}
    for indent in (None, 1):
        path = write(json.dumps({"flags": [flag]}, ensure_ascii=False, indent=indent))
        assert PolicyFile(str(path)).policies[0].flag.variants == {name: text}


def test_a_directive_is_one_only_before_the_document(write: Write) -> None:
    path = write(f'%YAML 1.2\n---\n{FLAG}  owner: "\n%YAML 1.1\n    x"\n')
    assert PolicyFile(path).policies[0].flag.metadata == {"owner": " %YAML 1.1 x"}


@pytest.mark.parametrize("version", ["1.1", "1.2"])
def test_plain_yaml_readers_see_the_same_document(version: str) -> None:
    reader = YAML(typ="safe", pure=True)
    reader.version = version
    assert reader.load(SHOP)["flags"] == _shop()


FLAG = "flags:\n- key: a.b\n  variants: {x: 1, y: 2}\n  fallthrough: {serve: x}\n"
AGAIN = FLAG.removeprefix("flags:\n")
RULE = """  rules:
  - name: r
    when:
      a.b: 1
      a.c:
        $in: [1,
          {$gt: 1}]
    serve: x
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # files that are no policy files
        ("", ": flags: is missing"),
        ("- key: a", ": flags: is missing"),
        ("flags:", ":1: flags: is not a list"),
        ("\nflags: {key: a}", ":2: flags: is not a list"),
        ("flags: []\nflag: []", ":2: flag: is not a known field"),
        ("flags: [", ":1: document: is not YAML: while parsing a flow node"),
        ("# old\n%YAML 1.1\n---\nflags: []", ":2: document: is YAML 1.1, where on, off, yes"),
        ("%YAML 1.3\n---\nflags: []", ":1: document: is YAML 1.3, which is not known here"),
        ("%YAML 1." + "9" * 5000 + "\n---\na", f":1: document: is YAML 1.{'9' * 58}..., which is"),
        ('flags: "\\UFFFFFFFF"', ": document: is not YAML: it escapes a character"),
        ('flags: "\\U00110000"', ": document: is not YAML: it escapes a character"),
        ('"\\e[31m": 1\nflags: []', r":1: '\x1b[31m': is not a known field"),
        ("flags:\n\t- a", ":2: document: is not YAML: a tab stands where YAML takes spaces alone"),
        ("flags: []\n---\nflags: []", ":2: document: is not YAML: expected a single"),
        ("flags: \x01", ": document: is not YAML: unacceptable character"),
        ("flags: " + "[" * 900, ": document: is not YAML: it is nested too deep"),
        # what has two meanings, or none
        ("flags:\n- key: a\n  key: b", ":3: flags[0].key: is there twice"),
        ("flags: []\nflags: []", ":2: flags: is there twice"),
        ("flags: [{1: a, 1: b}]", ":1: flags[0].1: is there twice"),
        ("flags:\n- &a {key: a}\n- *a", ":2: flags[1]: is an alias"),
        ("flags: &a [*a]", ":1: flags[0]: is an alias"),
        ("flags:\n- <<: {key: a}", ":2: flags[0].<<: has the tag merge"),
        ("flags:\n- {? [a]: b}", ":2: flags[0]: has a list or mapping as a key"),
        ("flags:\n- !flag {key: a}", ":2: flags[0]: has the tag !flag"),
        ("flags:\n- {key: !!binary aGk=}", ":2: flags[0].key: has the tag binary"),
        ("flags:\n- {key: !!int five}", ":2: flags[0].key: 'five' is no int"),
        ("flags:\n- {key: !!int ''}", ":2: flags[0].key: '' is no int. Remove the tag"),
        ("flags:\n- {key: !!float ''}", ":2: flags[0].key: '' is no float. Remove the tag"),
        ("flags:\n- key: " + "9" * 5000, f":2: flags[0].key: '{'9' * 60}...' is no int. Quote it"),
        ("flags:\n- {key: 1e999}", ":2: flags[0].key: '1e999' is beyond the numbers"),
        ("flags:\n- {key: !!timestamp 2026-W01-1}", ":2: flags[0].key: '2026-W01-1' is no date"),
        ("flags:\n- {key: !!bool maybe}", ":2: flags[0].key: 'maybe' is no bool"),
        ("flags:\n- {expires: 2026-13-01}", ":2: flags[0].expires: '2026-13-01' is no date"),
        # flags that the model refuses
        ("flags:\n\n- on", ":3: flags[0]: document: is not a document"),
        ("flags:\n- variants: {}", ":2: flags[0]: key: is missing"),
        (FLAG.replace("a.b", "A b"), ":2: flag 'A b': key: 'A b' is not a flag key"),
        (FLAG.replace("x: 1", "1: 1"), ":3: flag 'a.b': variants: has a key of the type int"),
        (FLAG + '  "s\\nt": x', r":5: flag 'a.b': 's\nt': is not a known field"),
        (FLAG + "  stat: x", ":5: flag 'a.b': stat: is not a known field"),
        (FLAG + "  expires: 2026-12-01", ":5: flag 'a.b': expires: is the date 2026-12-01T00"),
        (FLAG + RULE, ":11: flag 'a.b': rules[0].when.a.c.$in[1]: is an operator"),
        (FLAG + AGAIN, ":5: flag 'a.b': key: is in this file twice, in line 2 too"),
        (
            FLAG + "  region: eu\n" + AGAIN + AGAIN + "  region: eu",
            ":9: flag 'a.b': key: is in this file twice for region eu, in line 2 too",
        ),
    ],
)
def test_a_fault_is_named_by_file_line_and_path(write: Write, text: str, message: str) -> None:
    assert refused(write(text)).startswith(f"flags.yaml{message}")


def test_a_flag_for_another_environment_is_refused(write: Write) -> None:
    path = write(f"{FLAG}  environment: staging")
    assert PolicyFile(path, "staging").policies
    assert refused(path, "production").startswith("flags.yaml:5: flag 'a.b': environment: is 'stag")


def test_bytes_that_are_not_utf_8_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "flags.yaml"
    path.write_bytes(b"flags: \xff")
    assert "is not YAML: 'utf-8' codec can't decode byte 0xff" in refused(path)


def test_a_folder_is_no_policy_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read: Is a directory"):
        PolicyFile(tmp_path)


def test_errors_of_the_writer_are_located(write: Write) -> None:
    file = PolicyFile(write(f"{FLAG}  prerequisites: [{{flag: c, variants: [x]}}]"))
    fault = BrokenReferenceError("prerequisites[0].flag", "'c' does not exist", "Create it")
    with (
        pytest.raises(BrokenReferenceError, match=r"flags\.yaml:5: flag 'a.b': prereq"),
        file.locate_errors(),
    ):
        raise fault.about("flag 'a.b'")
    with pytest.raises(BrokenReferenceError, match=r"^flag 'other': prereq"), file.locate_errors():
        raise fault.about("flag 'other'")


# Checkpoints


@pytest.mark.mongo
def test_a_checkpoint_is_told_in_a_line_or_as_json(
    mongo_uri: str, database: str, writer: Writer
) -> None:
    serve = {"serve": "on"}
    writer.create({"key": "a.one", "variants": {"on": True}, "fallthrough": serve})
    where = ("--environment", "production", "--database", database)
    result = run("checkpoint", "--uri", mongo_uri, *where)
    (first,) = writer.store.list_checkpoints()
    assert (result.returncode, result.stderr) == (0, "")
    said = f"{first.id}: 1 flag of production at revision 1, 0.0 MB, in "
    assert result.stdout.startswith(said)
    assert re.fullmatch(r"[0-9.]+ s\n", result.stdout.removeprefix(said))
    variables = {
        "FLAGKIT_URI": mongo_uri,
        "FLAGKIT_ENVIRONMENT": "production",
        "FLAGKIT_DATABASE": database,
    }
    found = json.loads(run("checkpoint", "--output", "json", **variables).stdout)
    (second,) = {
        made.id: made for made in writer.store.list_checkpoints() if made != first
    }.values()
    assert found.pop("seconds") > 0
    assert found == {
        "checkpoint": second.id,
        "environment": "production",
        "revision": 1,
        "flags": 1,
        "bytes": second.bytes,
    }


@pytest.mark.mongo
def test_what_keeps_a_checkpoint_from_being_made_is_one_sentence(
    mongo_uri: str, database: str, writer: Writer
) -> None:
    unknown = run(
        "checkpoint", "--uri", mongo_uri, "--environment", "staging", "--database", database
    )
    assert "'staging' is not in the database" in assert_one_sentence(unknown)
    assert "uri is missing" in assert_one_sentence(run("checkpoint", FLAGKIT_URI=""))
    nobody = "mongodb://ada:s3cret@127.0.0.1:1/?serverSelectionTimeoutMS=50"
    result = run("checkpoint", "--uri", nobody, "--environment", "production")
    assert "s3cret" not in assert_one_sentence(result)
    assert writer.store.list_checkpoints() == []


def in_environment(mongo_uri: str, database: str) -> dict[str, str]:
    return {
        "FLAGKIT_URI": mongo_uri,
        "FLAGKIT_ENVIRONMENT": "production",
        "FLAGKIT_DATABASE": database,
    }


@pytest.mark.mongo
def test_ledger_show_tells_who_changed_what_the_newest_first(
    mongo_uri: str, database: str, writer: Writer
) -> None:
    where = in_environment(mongo_uri, database)
    assert run("ledger", "show", **where).stdout == "No such change.\n"
    writer.create(THEME, reason="launch")
    writer.pause("shop.theme", actor="ana", reason="incident 7")
    writer.pause("shop.theme")
    result = run("ledger", "show", **where)
    assert result.returncode == 0, result.stderr
    rows = [line.split("│")[0] for line in result.stdout.splitlines() if "shop.theme" in line]
    told = ["pause shop.theme: no change", "state: active -> paused", "created", "serves dark"]
    assert len(rows) == len(told)
    assert all(words in row for words, row in zip(told, rows, strict=True))
    assert "ana" in rows[1]
    assert "incident 7" in rows[1]
    assert "mongodb://" not in result.stdout


@pytest.mark.mongo
def test_ledger_show_finds_by_key_actor_action_and_time(
    mongo_uri: str, database: str, writer: Writer
) -> None:
    where = in_environment(mongo_uri, database)
    writer.create(THEME)
    writer.pause("shop.theme", actor="ana", reason="incident 7")
    commit = writer.resume("shop.theme", actor="ana")

    def revisions(*options: str) -> list[int]:
        result = run("ledger", "show", "--output", "json", *options, **where)
        assert result.returncode == 0, result.stderr
        return [entry["revision"] for entry in json.loads(result.stdout)]

    assert revisions() == [3, 2, 1]
    assert revisions("--limit", "1") == [3]
    assert revisions("--actor", "ana", "--action", "pause", "--key", "shop.theme") == [2]
    assert revisions("--key", "no.such") == []
    assert revisions("--since", commit.time.isoformat()) == [3]
    assert revisions("--since", "2026-01-01", "--until", "2026-01-02T10:00Z") == []
    wrong = run("ledger", "show", "--since", "yesterday", **where)
    assert wrong.returncode == 2
    assert "write it like 2026-11-21T10:32Z" in wrong.stderr
    document = json.loads(run("ledger", "show", "--output", "json", **where).stdout)[1]
    assert document["differences"] == ["shop.theme: state: active -> paused"]
    assert document["reason"] == "incident 7"
    assert datetime.fromisoformat(document["time"]).tzinfo is not None


@pytest.mark.mongo
def test_ledger_show_cuts_what_a_large_change_did(
    mongo_uri: str, database: str, writer: Writer
) -> None:
    with writer.change() as change:
        for i in range(30):
            change.create(THEME | {"key": f"shop.theme{i}"})
    result = run("ledger", "show", **in_environment(mongo_uri, database))
    assert "and 40 more" in result.stdout
    assert "shop.theme10" not in result.stdout


@pytest.mark.mongo
def test_ledger_verify_gives_an_anchor_and_holds_to_it(
    mongo_uri: str, database: str, writer: Writer
) -> None:
    where = in_environment(mongo_uri, database)
    assert run("ledger", "verify", **where).stdout == "production: all is well up to revision 0\n"
    writer.create(THEME)
    result = run("ledger", "verify", **where)
    assert result.returncode == 0, result.stderr
    (anchor,) = re.findall("anchor: (1:[0-9a-f]{64})", result.stdout)
    writer.pause("shop.theme")
    assert run("ledger", "verify", "--anchor", anchor, **where).returncode == 0
    other = f"1:{'0' * 64}"
    found = run("ledger", "verify", "--anchor", anchor, "--anchor", other, **where)
    assert found.returncode == 3
    assert found.stderr.startswith("revision 1 is not the one whose hash was kept")
    as_json = run("ledger", "verify", "--anchor", other, "--output", "json", **where)
    assert as_json.returncode == 3
    told = json.loads(as_json.stdout)
    assert (told["environment"], told["revision"], len(told["problems"])) == ("production", 2, 1)
    odd = run("ledger", "verify", "--anchor", "last week", **where)
    assert odd.returncode == 2
    assert "REVISION:HASH" in odd.stderr


@pytest.mark.mongo
def test_ledger_of_an_environment_that_is_not_there_is_one_sentence(
    mongo_uri: str, database: str
) -> None:
    where = in_environment(mongo_uri, database)
    for command in ("show", "verify"):
        assert "create it once" in assert_one_sentence(run("ledger", command, **where))
