"""`flagkit flags import`: import flags and segments from files, by the hundred thousand.

A file is a policy file in YAML or JSON, or JSON lines with one document each. JSON is read in one
pass, and a second time only to find the line of a fault.
"""

import contextlib
from codecs import BOM_UTF8
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any, Final, Unpack

import click
import msgspec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from flagkit._core.cooperative import pause_gc
from flagkit._core.strict_json import parse_json, parse_policies
from flagkit.cli.changes import actor_option, dry_run_option, guards_option, reason_option
from flagkit.cli.errors import FAULTS_FOUND
from flagkit.cli.options import (
    EnvironmentOptions,
    environment_options,
    load_guards,
    load_settings,
    reassign_option,
)
from flagkit.cli.output import (
    PROGRAM_FORMATS,
    create_progress_console,
    emit,
    mark_work_done,
    output_option,
    print_lines,
)
from flagkit.errors import ConfigurationError, InvalidDocumentError
from flagkit.policy_files.reader import PolicyFile
from flagkit.writer.bulk_import import DIFFERENCES_MAX, Import, ImportProgress, ImportResult
from flagkit.writer.draft import build_data_keys
from flagkit.writer.writer import Writer

_LINES: Final = {".jsonl", ".ndjson"}
FAULTS_MAX: Final = 100
"""The command stops to check documents after it has found so many faults."""


class ImportFiles:
    """Files whose flags and segments are added to an import.

    Args:
        paths: The files. Those that end in .jsonl or .ndjson are JSON lines.
        flag_import: The import to add valid documents to.
        environment: The required value of the documents' own `environment`, if they have one.

    Attributes:
        flag_import: The import, with the contents of the files.
        faults: The first fault of each document that is not valid.
    """

    def __init__(self, paths: Iterable[Path], flag_import: Import, environment: str) -> None:
        self.faults: list[InvalidDocumentError] = []
        self.flag_import = flag_import
        self._environment = environment
        self._files: list[PolicyFile] = []
        self._json: list[Path] = []
        self._lines: dict[str, str] = {}
        with pause_gc():
            for path in paths:
                if path.suffix in _LINES:
                    self._read_lines(path)
                elif path.suffix != ".json" or not self._read_json(path):
                    self._read_policy_file(path)

    @contextlib.contextmanager
    def locate_errors(self) -> Generator[None]:
        """Name file and line in an InvalidDocumentError of the block that is about one of these."""
        try:
            yield
        except InvalidDocumentError as error:
            if error.subject in self._lines:
                raise error.about(f"{self._lines[error.subject]}: {error.subject}") from error
            files = [*self._files, *(PolicyFile(path) for path in self._json)]
            with contextlib.ExitStack() as stack:
                for file in files:
                    stack.enter_context(file.locate_errors())
                raise

    def _read_policy_file(self, path: Path) -> None:
        try:
            file = PolicyFile(path, self._environment, faults=self.faults)
        except InvalidDocumentError as error:
            self.faults.append(error)
            return
        self._files.append(file)
        for segment in file.segments:
            self._add_document(file, self.flag_import.add_segment, segment.document)
        for policy in file.policies:
            self._add_document(file, self.flag_import.add, policy.document)

    def _add_document(self, file: PolicyFile, add: Any, document: dict[str, Any]) -> None:
        try:
            with file.locate_errors():
                add(document)
        except InvalidDocumentError as error:
            self.faults.append(error)

    def _read_json(self, path: Path) -> bool:
        """Take in a policy file in JSON, unless something is wrong with it; return whether."""
        try:
            fields = parse_policies(_read_bytes(path), str(path))
        except InvalidDocumentError:
            return False
        before = self.flag_import.copy()
        try:
            for document in fields.get("segments", []):
                self.flag_import.add_segment(document)
            for document in fields.get("flags", []):
                self.flag_import.add(document)
        except InvalidDocumentError:
            self.flag_import = before
            return False
        self._json.append(path)
        return True

    def _read_lines(self, path: Path) -> None:
        for number, line in enumerate(_read_bytes(path).removeprefix(BOM_UTF8).split(b"\n"), 1):
            if not line.strip() or len(self.faults) >= FAULTS_MAX:
                continue
            where = f"{path}:{number}"
            try:
                document = parse_json(line, str(path), number)
            except InvalidDocumentError as error:
                self.faults.append(error)
                continue
            try:
                self.flag_import.add(document)
            except InvalidDocumentError as error:
                self.faults.append(error.about(f"{where}: {error.subject}".removesuffix(": ")))
                continue
            self._lines[f"flag {document['key']!r}"] = where


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"the file {path} cannot be read: {error.strerror}") from error


@click.command("import")
@click.argument(
    "files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option(
    "--create-environment", is_flag=True, help="Create the environment first if it does not exist."
)
@reassign_option
@environment_options
@actor_option
@reason_option
@guards_option
@dry_run_option
@output_option("text")
def import_flags(  # noqa: PLR0913 - each is an option
    files: tuple[Path, ...],
    actor: str,
    reason: str,
    guards: str | None,
    output: str,
    *,
    create_environment: bool,
    reassign: bool,
    dry_run: bool,
    **place: Unpack[EnvironmentOptions],
) -> None:
    """Create or update the flags and segments of files, in batches.

    Each batch is one revision. FILE is a policy file, in YAML or JSON; or JSON lines (.jsonl), a
    flag in each line, which is the quickest to read. The command checks all files before it writes.
    It skips flags that are already as the files say: to resume an interrupted import, run it again.
    It exits with 3 if a file is not valid.
    """
    if create_environment and dry_run:
        raise click.UsageError("--create-environment does not go with --dry-run: it writes")
    settings = load_settings(**place)
    wanted = Import(settings.environment, reassign=reassign, keys=build_data_keys(settings))
    found = ImportFiles(files, wanted, settings.environment)
    for fault in found.faults:
        print_lines(str(fault), err=True)
    if found.faults:
        raise SystemExit(FAULTS_FOUND)
    with (
        found.locate_errors(),
        Writer(
            settings.uri,
            settings.environment,
            actor=actor,
            database=settings.database,
            guards=load_guards(guards),
        ) as writer,
    ):
        if create_environment:
            writer.create_environment()
        if dry_run:
            result = found.flag_import.preview(writer, reason=reason)
        else:
            result = _run_import(found.flag_import, writer, reason)
            mark_work_done()
    if output in PROGRAM_FORMATS:
        emit(msgspec.to_builtins(result), output)
    else:
        for line in result.differences:
            print_lines(line)
        if len(result.differences) == DIFFERENCES_MAX:
            print_lines("and others: these are the first lines")
        print_lines(_format_result(result, dry_run=dry_run))


def _run_import(flag_import: Import, writer: Writer, reason: str) -> ImportResult:
    columns = ("imported", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = create_progress_console()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def show(step: ImportProgress) -> None:
            bar.update(task, completed=step.done, total=step.total)

        return flag_import.run(writer, reason=reason, progress=show)


def _format_result(result: ImportResult, *, dry_run: bool) -> str:
    verb = "would be " if dry_run else ""
    counts = (
        f"{result.created:,} {verb}created, {result.updated:,} updated,"
        f" {result.unchanged:,} as asked"
    )
    if not result.revisions:
        return counts
    first, last = result.revisions[0], result.revisions[-1]
    span = f"revision {first:,}" if first == last else f"revisions {first:,} to {last:,}"
    return f"{counts}: {span}"
