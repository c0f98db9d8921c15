"""`flagkit flags`: what it tells of flags and changes, and what all commands that write share."""

from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from ruamel.yaml import YAML

from flagkit._core.model.changes import PolicyState
from flagkit.cli.output import LISTED_MAX, Printer, build_flag_document
from flagkit.writer import Writer
from tests.support.cli_runner import CommandRunner, fetch_revision
from tests.writer.test_writer import flag

pytestmark = pytest.mark.mongo

SEARCH = """
flags:
  - key: shop.search
    variants: {on: true, "off": false}
    off: "off"
    rules:
      - {name: dach, when: {country: DE}, rollout: 10}
    fallthrough: {serve: "off"}
    owner: shop
"""
THEME = """
flags:
  - key: shop.theme
    state: paused
    variants: {light: a, dark: b, blue: c}
    fallthrough: {rollout: {weights: {light: 50, dark: 50}}}
"""


@pytest.fixture
def command(mongo_uri: str, database: str, writer: Writer) -> CommandRunner:
    assert writer.environment == "production"
    return CommandRunner(mongo_uri, database)


@pytest.fixture
def filled(command: CommandRunner) -> CommandRunner:
    """Two flags, at revisions 1 and 2."""
    command.told("flags", "create", "-", stdin=SEARCH)
    command.told("flags", "create", "-", stdin=THEME)
    return command


def state(writer: Writer, key: str = "shop.search", region: str = "*") -> PolicyState | None:
    with writer.store.open_reader() as reading:
        return reading.find_flags([key]).get((region, key))


def document(writer: Writer, key: str = "shop.search", region: str = "*") -> dict[str, Any]:
    found = state(writer, key, region)
    assert found is not None
    return build_flag_document(found)


# What is told


def test_flags_are_listed_in_a_line_each(filled: CommandRunner, writer: Writer) -> None:
    writer.create(flag("shop.search", region="eu-west-1"))
    told = filled.told("flags", "list").splitlines()[2:5]
    assert [" ".join(line.split()) for line in told] == [
        "shop.search * 1 active boolean 1 rule, else serves off shop",
        "shop.search eu-west-1 1 active boolean serves on",
        "shop.theme * 1 paused string light 50 %, dark 50 %",
    ]
    assert filled.data("flags", "list", "--state", "paused") == [
        {
            "key": "shop.theme",
            "region": "*",
            "version": 1,
            "state": "paused",
            "type": "string",
            "serves": "light 50 %, dark 50 %",
            "owner": "",
        }
    ]
    assert filled.told("flags", "list", "--namespace", "billing.") == "No such flag.\n"
    assert len(filled.data("flags", "list", "--namespace", "shop.s")) == 2


def test_a_long_list_is_cut_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    Printer().print_listing(("flag",), [(f"f{i}",) for i in range(LISTED_MAX + 3)])
    told = capsys.readouterr().out
    assert told.endswith("and 3 more: go on with --after f999, or take --output json\n")
    # An override of the last key would be left out.
    Printer().print_listing(("flag",), [(f"f{i // 2}",) for i in range(1, LISTED_MAX + 4)])
    assert "and 3 more: go on with --after f499," in capsys.readouterr().out
    assert told.split()[1 : LISTED_MAX + 2][-1] == f"f{LISTED_MAX - 1}"


def test_a_list_is_searched_and_gone_on_with(filled: CommandRunner) -> None:
    def keys(*asked: str) -> list[str]:
        return [found["key"] for found in filled.data("flags", "list", *asked)]

    assert keys("--match", "hem") == ["shop.theme"]
    assert keys("--after", "shop.search") == ["shop.theme"]
    assert keys("--after", "shop.theme") == []


def test_a_flag_is_shown_with_the_revision_that_changed_it(filled: CommandRunner) -> None:
    filled.told("flags", "pause", "shop.search")
    filled.told("flags", "set-rollout", "shop.search", "50", "--rule", "dach")
    filled.told("flags", "resume", "shop.theme")
    told = " ".join(filled.told("flags", "show", "shop.search").split())
    assert "3, changed at revision 4; the newest is 5" in told
    assert "was edited since it was last active: rule dach: on 10 -> 50 %" in told
    assert filled.data("flags", "show", "shop.search")["changed"] == 4


def test_a_flag_is_shown_with_version_and_overrides(filled: CommandRunner, writer: Writer) -> None:
    writer.create(flag("shop.search", region="eu-west-1"))
    lines = [
        " ".join(line.split()) for line in filled.told("flags", "show", "shop.search").splitlines()
    ]
    assert [line for line in lines if line][2:] == [
        "version 1, changed at revision 1; the newest is 3",
        "overrides eu-west-1",
        "state active",
        "variants on: true",
        "off: false",
        "off off",
        'rule dach when {"country": "DE"}',
        "on 10 %, off 90 %",
        "fallthrough serves off",
        "owner shop",
    ]
    told = filled.data("flags", "show", "shop.search", "--region", "eu-west-1")
    assert (told["region"], told["version"], told["revision"]) == ("eu-west-1", 1, 3)
    assert told["document"]["fallthrough"] == {"serve": "on"}
    assert YAML(typ="safe").load(
        filled.told("flags", "show", "shop.search", "--output", "yaml")
    ) == filled.data("flags", "show", "shop.search")


def test_what_is_not_there_is_said_not_to_be(filled: CommandRunner) -> None:
    assert filled.fault("flags", "show", "shop.none").startswith("there is no flag 'shop.none'")
    told = filled.fault("flags", "show", "shop.search", "--region", "eu-west-1")
    assert told == "there is no flag 'shop.search' in region eu-west-1; there it is: *"
    assert "is not a flag key" in filled.fault("flags", "show", "Shop")


def test_a_flag_that_is_shown_as_a_policy_file_may_be_edited_and_updated(
    filled: CommandRunner, writer: Writer
) -> None:
    filled.told(
        "flags", "set-rollout", "shop.theme", "light=20", "dark=40", "blue=40", "--reassign"
    )
    before = document(writer, "shop.theme")
    written = filled.told("flags", "show", "shop.theme", "--output", "policy")
    assert written.startswith("# version 2 at revision 3, paused\nflags:\n")
    assert "state" not in written
    assert "intervals" not in written
    filled.told("flags", "update", "-", "--expected-version", "2", stdin=written)
    assert document(writer, "shop.theme") == before
    edited = written.replace("light: 20", "light: 30").replace("blue: 40", "blue: 30")
    assert filled.told("flags", "update", "-", "--reassign", stdin=edited) == (
        "shop.theme: fallthrough: light 20 -> 30 %, blue 40 -> 30 %\nrevision 5 of production\n"
    )


# What is changed


def test_each_verb_does_what_it_says(filled: CommandRunner, writer: Writer) -> None:
    for verb, expected in [
        ("pause", "paused"),
        ("resume", "active"),
        ("archive", "archived"),
        ("restore", "paused"),
        ("archive", "archived"),
    ]:
        told = (
            filled.told("flags", verb, "shop.search", "shop.theme")
            if verb != "resume"
            else (filled.told("flags", verb, "shop.search"))
        )
        assert told.endswith(f"revision {fetch_revision(writer)} of production\n")
        assert document(writer)["state"] == expected
    assert document(writer, "shop.theme")["state"] == "archived"
    assert filled.told("flags", "delete", "shop.search", "shop.theme") == (
        "shop.search: deleted\nshop.theme: deleted\nrevision 8 of production\n"
    )
    assert state(writer) is None


def test_a_percentage_is_of_a_rule_or_of_the_fallthrough(
    filled: CommandRunner, writer: Writer
) -> None:
    told = filled.told("flags", "set-rollout", "shop.search", "12.5", "--rule", "dach")
    assert told == (
        "shop.search: rule dach: on 10 -> 12.5 %, off 90 -> 87.5 %\nrevision 3 of production\n"
    )
    refused = filled.fault("flags", "set-rollout", "shop.theme", "light=20", "dark=80")
    assert "move 30 % of the keys from one treated variant to another" in refused
    filled.told("flags", "set-rollout", "shop.theme", "light=20", "dark=80", "--reassign")
    assert document(writer, "shop.theme")["fallthrough"]["rollout"]["weights"] == {
        "light": 20,
        "dark": 80,
    }


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        (["ten"], "'ten' is no percentage"),
        (["on=ten"], "'ten' is no percentage"),
        (["on=1", "5"], "'5' is no weight"),
        (["on=1", "on=2"], "'on=2' is there twice"),
    ],
)
def test_weights_that_are_none_are_wrong_usage(
    command: CommandRunner, weights: list[str], problem: str
) -> None:
    result = command.ask("flags", "set-rollout", "shop.search", *weights)
    assert result.exit_code == 2
    assert problem in result.stderr


def test_an_override_of_a_region_is_changed_by_itself(
    filled: CommandRunner, writer: Writer
) -> None:
    writer.create(flag("shop.search", region="eu-west-1"))
    told = filled.told("flags", "pause", "shop.search", "--region", "eu-west-1")
    assert told.startswith("shop.search in eu-west-1: state: active -> paused\n")
    assert document(writer)["state"] == "active"


def test_a_flag_or_everything_is_rolled_back(filled: CommandRunner, writer: Writer) -> None:
    filled.told("flags", "pause", "shop.search")
    told = filled.told("flags", "rollback", "shop.search", "--to", "2", "--reason", "too soon")
    assert told == "shop.search: state: paused -> active\nrevision 4 of production\n"
    assert filled.told("flags", "rollback", "--all", "--to", "1") == (
        "shop.theme: deleted\nrevision 5 of production\n"
    )
    assert "there is no revision 9" in filled.fault("flags", "rollback", "--all", "--to", "9")
    for wrong in (("shop.search", "--all"), (), ("--all", "--region", "eu-west-1")):
        assert filled.ask("flags", "rollback", *wrong, "--to", "1").exit_code == 2
    assert filled.ask("flags", "rollback", "shop.search").exit_code == 2
    assert fetch_revision(writer) == 5


def test_all_flags_of_a_file_are_one_revision(
    command: CommandRunner, writer: Writer, tmp_path: Path
) -> None:
    shop = Path(__file__).parents[2] / "examples" / "shop" / "flags.yaml"
    refused = command.ask("flags", "create", str(shop))
    assert refused.exit_code == 1
    assert "flags.yaml:45: flag 'checkout.express-pay': rules: refer to the" in refused.stderr
    assert command.ask("segments", "create", str(shop)).exit_code == 0
    result = command.ask("flags", "create", str(shop), "--reason", "launch")
    assert result.exit_code == 0
    assert result.stderr == f"{shop}: segments are left alone: `flagkit segments` takes them\n"
    assert fetch_revision(writer) == 2
    assert len(command.data("flags", "list")) == 13
    path = tmp_path / "none.yaml"
    path.write_text("segments: []")
    assert "flags: has none. Write flags to it" in command.fault("flags", "update", str(path))


def test_a_fault_in_a_document_is_named_by_file_line_path_and_remedy(
    filled: CommandRunner, tmp_path: Path, writer: Writer
) -> None:
    path = tmp_path / "flags.yaml"
    path.write_text(SEARCH.replace("rollout: 10", "rollout: 110"))
    refused = filled.fault("flags", "update", str(path))
    assert refused.startswith(f"{path}:7: flag 'shop.search': rules[0].rollout: ")
    path.write_text(SEARCH + "    prerequisites: [{flag: shop.none, variants: [on]}]\n")
    refused = filled.fault("flags", "update", str(path))
    assert refused == (
        f"{path}:10: flag 'shop.search': prerequisites[0].flag: 'shop.none' does not exist."
        " Create it before, or in the same change"
    )
    staging = SEARCH + "    environment: staging\n"
    assert "<stdin>:10: " in filled.fault("flags", "create", "-", stdin=staging)
    assert "cannot be read: No such" in filled.fault("flags", "create", str(tmp_path / "none.yaml"))
    assert fetch_revision(writer) == 2


# What all commands that change something share


def test_who_asks_and_why_stands_in_the_audit(filled: CommandRunner, writer: Writer) -> None:
    filled.told("flags", "pause", "shop.search", "--reason", "incident 7")
    filled.told("flags", "resume", "shop.search", "--actor", "bob@example.com")
    found = [(entry.actor, entry.reason) for entry in writer.reader.entries(2)]
    assert found == [("ada@example.com", "incident 7"), ("bob@example.com", "")]


def test_who_asks_must_be_said(command: CommandRunner, writer: Writer) -> None:
    for nobody in (None, ""):
        result = command.ask("flags", "pause", "shop.search", FLAGKIT_ACTOR=nobody)
        assert result.exit_code == 2
        assert "Missing option '--actor' (env var: 'FLAGKIT_ACTOR')" in result.stderr
    assert "actor: is ''. Write a name" in command.fault("flags", "pause", "a.b", "--actor", "")
    assert fetch_revision(writer) == 0


def test_where_must_be_said(command: CommandRunner) -> None:
    for name in ("uri", "environment"):
        result = command.ask("flags", "list", **{f"FLAGKIT_{name.upper()}": None})
        assert result.exit_code == 1
        assert f"{name} is missing: pass {name}=, or --{name} to the command" in result.stderr


def test_a_dry_run_shows_what_would_be_and_writes_nothing(
    filled: CommandRunner, mongo_uri: str, database: str
) -> None:
    with MongoClient[dict[str, Any]](mongo_uri) as client:
        stored = client[database]
        names = stored.list_collection_names()
        before = {name: [*stored[name].find()] for name in names}
        told = filled.told("flags", "pause", "shop.search", "--dry-run")
        assert told == (
            "shop.search: state: active -> paused\n"
            "dry run upon revision 2 of production: nothing was written\n"
        )
        assert filled.data("flags", "archive", "shop.theme", "--dry-run") == {
            "environment": "production",
            "dry_run": True,
            "upon": 2,
            "done": None,
            "differences": ["shop.theme: state: paused -> archived"],
            "notes": [],
        }
        assert "Archive it first" in filled.fault("flags", "delete", "shop.search", "--dry-run")
        assert {name: [*stored[name].find()] for name in names} == before
        assert stored.list_collection_names() == names
    assert "no difference\n" in filled.told("flags", "pause", "shop.theme", "--dry-run")


EDITED = (
    "Note: shop.search was edited since it was last active: rule dach: on 10 -> 50 %,"
    " off 90 -> 50 %\n"
)


def test_to_resume_a_flag_that_was_edited_says_so_first(
    filled: CommandRunner, writer: Writer
) -> None:
    filled.told("flags", "pause", "shop.search")
    filled.told("flags", "resume", "shop.search")
    filled.told("flags", "pause", "shop.search")
    filled.told("flags", "set-rollout", "shop.search", "50", "--rule", "dach")
    told = filled.told("flags", "resume", "shop.search", "--dry-run")
    assert told.splitlines(keepends=True)[1] == EDITED
    result = filled.ask("flags", "resume", "shop.search")
    assert (result.exit_code, result.stderr) == (0, EDITED)
    assert document(writer)["state"] == "active"


def test_a_note_does_not_make_a_request_another_one(filled: CommandRunner) -> None:
    filled.told("flags", "pause", "shop.search")
    filled.told("flags", "set-rollout", "shop.search", "50", "--rule", "dach")
    again = ("flags", "resume", "shop.search", "--idempotency-key", "deploy-7")
    first = filled.ask(*again)
    assert (first.stderr, first.exit_code) == (EDITED, 0)
    assert filled.told(*again) == first.stdout


def test_a_dry_run_tells_which_flags_open(filled: CommandRunner, writer: Writer) -> None:
    writer.create(
        flag("shop.fallback", prerequisites=[{"flag": "shop.search", "variants": ["off"]}])
    )
    note = (
        "shop.fallback depends on shop.search serving 'off': every context meets that while"
        " shop.search is paused"
    )
    asked = ("flags", "pause", "shop.search", "--dry-run")
    assert f"\nNote: {note}\n" in filled.told(*asked)
    assert filled.data(*asked)["notes"] == [note]


@pytest.mark.parametrize("verb", [["pause"], ["resume"], ["rollback", "--to", "1"]])
def test_verbs_of_state_take_an_expected_version(filled: CommandRunner, verb: list[str]) -> None:
    asked = ("flags", *verb, "shop.search", "--expected-version")
    assert "version 1" in filled.fault(*asked, "2", code=4)
    filled.told(*asked, "1")


def test_flags_are_enabled_and_disabled(filled: CommandRunner, writer: Writer) -> None:
    assert filled.told("flags", "enable", "shop.search") == (
        "shop.search: fallthrough: serves off -> serves on\nrevision 3 of production\n"
    )
    assert document(writer)["fallthrough"] == {"serve": "on"}
    filled.told("flags", "disable", "shop.search", "--expected-version", "2")
    assert document(writer)["fallthrough"] == {"serve": "off"}
    filled.told("flags", "serve", "shop.search", "on")
    assert "flagkit flags resume shop.theme" in filled.fault("flags", "disable", "shop.theme")
    assert "set_rollout" in filled.fault("flags", "enable", "shop.search", "--rule", "dach")


def test_what_changes_nothing_makes_no_revision_if_that_is_asked_for(filled: CommandRunner) -> None:
    asked = ("flags", "disable", "shop.search", "--skip-unchanged")
    assert filled.told(*asked) == (
        "no difference\nrevision 2 of production, as before: no revision was made\n"
    )
    assert filled.data(*asked)["changed"] is False
    assert filled.told("flags", "disable", "shop.search").endswith("\nrevision 3 of production\n")


def test_a_rollback_of_everything_takes_no_version(filled: CommandRunner) -> None:
    result = filled.ask("flags", "rollback", "--all", "--to", "1", "--expected-version", "1")
    assert result.exit_code == 2
    assert "--expected-version is of one flag" in result.stderr


def test_a_request_that_is_sent_again_tells_the_same(filled: CommandRunner, writer: Writer) -> None:
    again = ("flags", "pause", "shop.search", "--idempotency-key", "deploy-7")
    first = filled.data(*again)
    assert first["differences"] == ["shop.search: state: active -> paused"]
    assert (first["environment"], first["revision"], first["request"]) == (
        *("production", 3, "deploy-7"),
    )
    filled.told("flags", "resume", "shop.search")
    assert filled.data(*again) == first
    assert filled.told(*again, "--dry-run") == (
        "nothing: this request was revision 3 of production\n"
    )
    taken = ("flags", "resume", "shop.search", "--idempotency-key", "deploy-7")
    assert "was used before" in filled.fault(*taken, code=4)
    assert "was used before" in filled.fault(*taken, "--dry-run", code=4)
    assert fetch_revision(writer) == 4


def test_another_version_than_expected_is_a_conflict(filled: CommandRunner, writer: Writer) -> None:
    command = ("flags", "archive", "shop.search", "--expected-version")
    refused = filled.fault(*command, "7", code=4)
    assert refused.startswith("shop.search is at version 1, which 'ada@example.com' wrote at ")
    assert "is there already" in filled.fault("flags", "create", "-", stdin=SEARCH, code=4)
    assert filled.ask("flags", "archive", "a.b", "c.d", "--expected-version", "1").exit_code == 2
    both = SEARCH + THEME.removeprefix("\nflags:\n")
    result = filled.ask("flags", "update", "-", "--expected-version", "1", stdin=both)
    assert result.exit_code == 2
    assert fetch_revision(writer) == 2
    filled.told(*command, "1")


RULES = """
from flagkit.writer import Required

GUARD = Required("reason")
GUARDS = [GUARD]
NONE = [1]
"""


def test_guards_are_asked_and_glass_is_broken(
    filled: CommandRunner, writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shop_rules.py").write_text(RULES)
    monkeypatch.syspath_prepend(tmp_path)
    archive = ("flags", "archive", "shop.search")
    for place in ("shop_rules:GUARD", "shop_rules:GUARDS"):
        filled.variables["FLAGKIT_GUARDS"] = place
        for dry in ((), ("--dry-run",)):
            assert "(guard Required)" in filled.fault(*archive, *dry)
    for place in ("shop_rules", "shop_rules:none", "no_rules:GUARDS", ":x"):
        assert f"{place!r} cannot be loaded" in filled.fault(*archive, "--guards", place)
    assert "a guard is a function" in filled.fault(*archive, "--guards", "shop_rules:NONE")
    assert fetch_revision(writer) == 2
    assert filled.ask(*archive, "--break-glass", "incident 7").exit_code == 0
    filled.told("flags", "restore", "shop.search", "--reason", "it is over")


def test_broken_glass_is_warned_of_and_recorded(filled: CommandRunner, writer: Writer) -> None:
    result = filled.ask("flags", "archive", "shop.search", "--break-glass", "incident 7")
    assert result.exit_code == 0
    assert result.stderr == "Warning: guards were passed by: incident 7\n"
    assert [entry.bypass_reason for entry in writer.reader.entries(2)] == ["incident 7"]
    assert "reason is empty" in filled.fault(
        "flags", "archive", "shop.search", "--break-glass", " "
    )
    dry = filled.ask("flags", "restore", "shop.search", "--break-glass", "why", "--dry-run")
    assert (dry.exit_code, dry.stderr) == (0, "")


@pytest.mark.parametrize(
    "reading",
    [
        ("flags", "list"),
        ("flags", "show", "shop.search"),
        ("flags", "stale"),
        ("segments", "list"),
        ("access", "list"),
        ("access", "denials"),
        ("access", "limits", "show"),
        ("ledger", "show"),
        ("ledger", "verify"),
        ("flags", "archive", "shop.search", "--dry-run"),
    ],
    ids=" ".join,
)
def test_programs_are_told_the_same_in_either_form(
    filled: CommandRunner, reading: tuple[str, ...]
) -> None:
    written = filled.told(*reading, "--output", "yaml")
    assert YAML(typ="safe").load(written) == filled.data(*reading)


def test_no_password_is_shown(filled: CommandRunner) -> None:
    for where in (
        "mongodb://dana:s3cret@127.0.0.1:1/?serverSelectionTimeoutMS=50",
        "mongodb://dana:s3/cret@127.0.0.1:1/",
        "mongodb://dana:s3cret@127.0.0.1:port/",
        "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=50&tlsCertificateKeyFilePassword=s3cret",
        "dana:s3cret@127.0.0.1",
    ):
        for arguments in (
            ("flags", "list", "--uri", where),
            ("flags", "pause", "shop.search", "--dry-run", "--uri", where),
            ("flags", "list", where),
            ("flags", "show", where),
            ("flags", where),
            (where,),
        ):
            if not where.startswith("mongodb") and "--uri" not in arguments:
                continue
            result = filled.ask(*arguments)
            assert result.exit_code in (1, 2)
            assert result.stderr
            assert "s3" not in result.output
