"""The page on the command: its examples run, and what it names is what `--help` has."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from flagkit.cli.changes import change_options
from flagkit.cli.errors import CONFLICT, FAILED, FAULTS_FOUND
from flagkit.cli.main import flagkit
from flagkit.writer import Writer
from tests.support.cli_runner import CommandRunner

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "cli.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def examples() -> Iterator[tuple[str, str]]:
    """Yield the commands of the console blocks, in their order, and what they print."""
    for block in blocks(PAGE, "console"):
        for example in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, _, printed = example.partition("\n")
            yield line, printed


def called(page: Path) -> Iterator[tuple[str, ...]]:
    """Yield the arguments of each call of the command in the sh and console blocks of a page."""
    for block in blocks(page, "(?:sh|console)"):
        for line in block.splitlines():
            for call in re.findall(r"(?<![\w./-])flagkit ([^|>&)#]+)", line):
                if line.startswith(("$ ", "flagkit ", "eval ", "FLAGKIT_")):
                    yield tuple(shlex.split(call))


def commands(group: click.Group, *names: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *names, name)
        else:
            yield (*names, name), command


COMMANDS = dict(commands(flagkit))


@pytest.mark.mongo
def test_the_examples_print_what_the_page_says(
    mongo_uri: str,
    database: str,
    writer: Writer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert writer.environment == "production"
    for name in ("flags.yaml",):
        [written] = blocks(PAGE, f"yaml {re.escape(name)}")
        (tmp_path / name).write_text(written)
    monkeypatch.chdir(tmp_path)
    command = CommandRunner(mongo_uri, database)
    command.variables["COLUMNS"] = "100"
    for line, printed in examples():
        result = command.ask(*shlex.split(line)[1:])
        assert (line, [*map(str.rstrip, result.output.splitlines())], result.exit_code) == (
            *(line, printed.splitlines(), 0),
        )


@pytest.mark.parametrize("names", COMMANDS, ids=" ".join)
def test_each_command_has_an_example_on_the_page(names: tuple[str, ...]) -> None:
    assert [call for call in called(PAGE) if call[: len(names)] == names]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_calls_have_only_options_that_there_are(page: Path) -> None:
    for call in called(page):
        names = next(names for names in COMMANDS if call[: len(names)] == names)
        command = COMMANDS[names]
        command.make_parser(click.Context(command)).parse_args([*call[len(names) :]])


def test_the_page_names_what_all_commands_that_change_something_share() -> None:
    page = PAGE.read_text()
    shared = change_options(click.command()(lambda: None)).params
    for parameter in shared:
        assert parameter.opts[0] in page
        assert parameter.envvar is None or f"`{parameter.envvar}`" in page
    assert [int(code) for code in re.findall(r"^\| (\d) \|", page, re.MULTILINE)] == [
        *(0, FAILED, click.UsageError.exit_code, FAULTS_FOUND, CONFLICT),
    ]
