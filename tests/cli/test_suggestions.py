"""How each command meets a name that does not exist: by the names that are near."""

import json
from pathlib import Path
from typing import Any

import click
import pytest
from pymongo import MongoClient

from flagkit.cli.main import flagkit
from flagkit.history import client_at, digest_of
from flagkit.writer import Writer
from tests.support.cli_runner import CommandRunner

pytestmark = pytest.mark.mongo

FLAG: dict[str, Any] = {
    "key": "checkout.express-pay",
    "owner": "payments",
    "variants": {"on": True, "off": False},
    "off": "off",
    "rules": [{"name": "beta", "when": {"$segment": "shop.beta"}, "serve": "on"}],
    "fallthrough": {"serve": "off"},
}
SEGMENT = {"key": "shop.beta", "included": ["u-1"]}


@pytest.fixture
def command(writer: Writer, mongo_uri: str) -> CommandRunner:
    with writer.change() as change:
        change.create_segment(SEGMENT)
        change.create(FLAG)
    return CommandRunner(mongo_uri, writer.store._database.name)


def file(folder: Path, flags: list[dict[str, Any]], segments: list[dict[str, Any]]) -> str:
    path = folder / "policies.json"
    path.write_text(json.dumps({"flags": flags, "segments": segments}))
    return str(path)


FLAG_KEY, SEGMENT_KEY = "checkout.expres-pay", "shop.bata"
LOOKUPS = [
    *([*call, FLAG_KEY] for call in (["flags", "show"], ["flags", "pause"], ["flags", "resume"])),
    *(["flags", verb, FLAG_KEY] for verb in ("archive", "restore", "delete")),
    *(["flags", verb, FLAG_KEY, "--dry-run"] for verb in ("enable", "disable", "pause")),
    ["flags", "pause", FLAG_KEY, "--propose"],
    ["flags", "show", FLAG_KEY, "--output", "json"],
    ["flags", "set-rollout", FLAG_KEY, "10"],
    ["flags", "serve", FLAG_KEY, "on"],
    ["flags", "rollback", FLAG_KEY, "--to", "1"],
    ["segments", "show", SEGMENT_KEY],
    ["segments", "change-members", SEGMENT_KEY, "--include", "u-1"],
    ["segments", "rollback", SEGMENT_KEY, "--to", "1"],
    ["segments", "delete", SEGMENT_KEY],
]


@pytest.mark.parametrize("call", LOOKUPS, ids=" ".join)
def test_an_unknown_key_is_answered_with_what_is_near(
    call: list[str], command: CommandRunner
) -> None:
    meant = "shop.beta" if call[0] == "segments" else "checkout.express-pay"
    assert command.fault(*call).endswith(f"Did you mean {meant!r}?")


def test_an_unknown_flag_that_is_evaluated_is_answered_with_what_is_near(
    command: CommandRunner,
) -> None:
    for key in (FLAG_KEY, "Checkout.Express-Pay"):
        result = command.ask("eval", key, "--user", "u-1", "--output", "json")
        assert result.exit_code == 1
        assert json.loads(result.stdout)["error_code"] == "FLAG_NOT_FOUND"
        assert result.stderr.endswith("Did you mean 'checkout.express-pay'?\n")


def test_a_key_that_no_change_is_of_is_answered_with_what_is_near(command: CommandRunner) -> None:
    shown = command.told("ledger", "show", "--key", FLAG_KEY)
    assert shown == "No such change. Did you mean 'checkout.express-pay'?\n"
    assert command.told("ledger", "show", "--key", "z") == "No such change.\n"


@pytest.mark.parametrize(
    ("call", "meant"),
    [
        (["flags", "serve", "checkout.express-pay", "onn"], "on"),
        (["flags", "serve", "checkout.express-pay", "on", "--rule", "bta"], "beta"),
        (["flags", "enable", "checkout.express-pay", "--rule", "bta"], "beta"),
        (["flags", "set-rollout", "checkout.express-pay", "1", "--rule", "bta"], "beta"),
    ],
    ids=lambda case: " ".join(case) if isinstance(case, list) else case,
)
def test_an_unknown_rule_or_variant_is_answered_with_what_is_near(
    call: list[str], meant: str, command: CommandRunner
) -> None:
    assert command.fault(*call).endswith(f"Did you mean {meant!r}?")


@pytest.mark.parametrize("verb", [["flags", "create"], ["flags", "import"], ["validate"]])
@pytest.mark.parametrize(
    ("fields", "meant"),
    [
        ({"prerequisites": [{"flag": FLAG_KEY, "variants": ["on"]}]}, "checkout.express-pay"),
        ({"prerequisites": [{"flag": FLAG["key"], "variants": ["onn"]}]}, "on"),
        ({"rules": [{"name": "x", "when": {"$segment": SEGMENT_KEY}, "serve": "on"}]}, "shop.beta"),
        ({"rules": [], "fallthrough": {"serve": "onn"}}, "on"),
    ],
    ids=["a prerequisite", "its variant", "a segment", "a variant"],
)
def test_an_unknown_name_in_a_file_is_answered_with_what_is_near(
    verb: list[str], fields: dict[str, Any], meant: str, command: CommandRunner, tmp_path: Path
) -> None:
    other = {**FLAG, "rules": [], "key": "shop.search", **fields}
    known = verb == ["validate"]
    path = file(tmp_path, [*([FLAG] if known else []), other], [SEGMENT] if known else [])
    result = command.ask(*verb, path)
    assert result.exit_code in (1, 3)
    assert result.stderr.endswith(f"Did you mean {meant!r}?\n"), result.stderr


ARGUMENTS = {
    "flags show": ["a.b"],
    "flags set-rollout": ["a.b", "10"],
    "flags serve": ["a.b", "on"],
    **{
        f"flags {verb}": ["a.b"]
        for verb in ("enable", "disable", "pause", "resume", "archive", "restore", "delete")
    },
    "flags rollback": ["a.b", "--to", "1"],
    "segments show": ["a.b"],
    "segments change-members": ["a.b", "--include", "u-1"],
    "segments rollback": ["a.b", "--to", "1"],
    "segments delete": ["a.b"],
    "access grant": ["bob@example.com", "editor"],
    "access revoke": ["bob@example.com"],
    "access rollback": ["--to", "1"],
    "access limits set": ["actor", "--capacity", "1", "--rate", "1"],
    "access limits lift": ["actor"],
    **{f"approvals {verb}": ["x"] for verb in ("show", "approve", "reject", "withdraw", "apply")},
    "pending commit": ["x"],
    "pending drop": ["x"],
    "prune": ["--ledger-days", "10"],
    "eval": ["a.b", "--user", "u-1"],
    "rollout wait": ["--revision", "1", "--timeout", "0"],
}
FILES = {
    *("flags create", "flags update", "flags import", "segments create", "segments update"),
}


def with_an_environment(group: click.Group, *names: str) -> list[str]:
    """Return the names of the commands that take an environment which must be there."""
    found: list[str] = []
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found += with_an_environment(command, *names, name)
        elif any(option.name == "environment" for option in command.params):
            found.append(" ".join((*names, name)))
    return [name for name in found if name not in ("admin init", "validate")]


def call_of(name: str, folder: Path, environment: str) -> list[str]:
    given = [file(folder, [FLAG], [SEGMENT])] if name in FILES else ARGUMENTS.get(name, [])
    # Without the option, this command is about all environments.
    given += ["--environment", environment] if name == "status" else []
    return [*name.split(), *given]


@pytest.mark.parametrize("name", with_an_environment(flagkit))
def test_a_mistyped_environment_is_answered_with_what_is_near(
    name: str, command: CommandRunner, tmp_path: Path
) -> None:
    result = command.ask(*call_of(name, tmp_path, "productoin"), FLAGKIT_ENVIRONMENT="productoin")
    assert (result.exit_code, result.stdout) == (1, "")
    *_, told = result.stderr.splitlines()
    assert told.startswith("Error: the environment 'productoin' is not in the database")
    assert told.endswith("Did you mean 'production'?")
    assert "create" not in told


@pytest.mark.parametrize("name", with_an_environment(flagkit))
def test_an_empty_database_is_answered_with_how_to_create_an_environment(
    name: str, mongo_uri: str, database: str, tmp_path: Path
) -> None:
    result = CommandRunner(mongo_uri, database).ask(*call_of(name, tmp_path, "production"))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.endswith("or flagkit admin init --environment\n")


def test_a_digest_of_another_database_is_answered_with_the_environments_here(
    command: CommandRunner, mongo_uri: str
) -> None:
    database = str(command.variables["FLAGKIT_DATABASE"])
    with Writer(mongo_uri, "productions", actor="tester", database=database) as writer:
        writer.create_environment()
        with writer.change() as change:
            change.create_segment(SEGMENT)
            change.create(FLAG)
    client = client_at(mongo_uri, "productions", database=database)
    digest = digest_of(client, client.evaluate(FLAG["key"], {"targeting_key": "u-1"}, False))
    with MongoClient[dict[str, Any]](mongo_uri) as mongo:
        mongo[database].heads.delete_one({"_id": "productions"})
    assert command.fault("replay", digest, "--user", "u-1").endswith("Did you mean 'production'?")
