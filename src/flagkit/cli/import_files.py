"""Import files: flags and segments on disk, by the hundred thousand, read into an import.

A policy file, in YAML or JSON; or JSON lines, each of them a flag's document. JSON is read in one
go, and only if something is wrong with it, again, to tell in which line.
"""

import contextlib
from codecs import BOM_UTF8
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any, Final

from flagkit.cli.policy_files import PolicyFile
from flagkit.collector import collector_paused
from flagkit.errors import ConfigurationError, InvalidDocumentError
from flagkit.policy_json import read_json, read_policies
from flagkit.writer.importing import Import

_LINES: Final = {".jsonl", ".ndjson"}
FAULTS_MAX: Final = 100
"""So many faults are told of, and no more is looked at then."""


class ImportFiles:
    """Some files, whose flags and segments are in an import then.

    Args:
        paths: Where they are. What ends in .jsonl or .ndjson is JSON lines.
        wanted: Takes what is valid.
        environment: What the documents' own `environment` must be, where they have one.

    Attributes:
        wanted: What is in them.
        faults: What is wrong with documents, the first fault of each.
    """

    def __init__(self, paths: Iterable[Path], wanted: Import, environment: str) -> None:
        self.faults: list[InvalidDocumentError] = []
        self.wanted = wanted
        self._environment = environment
        self._files: list[PolicyFile] = []
        self._json: list[Path] = []
        self._lines: dict[str, str] = {}
        with collector_paused():
            for path in paths:
                if path.suffix in _LINES:
                    self._read_lines(path)
                elif path.suffix != ".json" or not self._read_json(path):
                    self._read(path)

    @contextlib.contextmanager
    def locating(self) -> Generator[None]:
        """Name file and line in an InvalidDocumentError of the block that is about one of these."""
        try:
            yield
        except InvalidDocumentError as error:
            if error.subject in self._lines:
                raise error.about(f"{self._lines[error.subject]}: {error.subject}") from error
            files = [*self._files, *(PolicyFile(path) for path in self._json)]
            with contextlib.ExitStack() as stack:
                for file in files:
                    stack.enter_context(file.locating())
                raise

    def _read(self, path: Path) -> None:
        try:
            file = PolicyFile(path, self._environment, faults=self.faults)
        except InvalidDocumentError as error:
            self.faults.append(error)
            return
        self._files.append(file)
        for segment in file.segments:
            self._add_from(file, self.wanted.add_segment, segment.document)
        for policy in file.policies:
            self._add_from(file, self.wanted.add, policy.document)

    def _add_from(self, file: PolicyFile, add: Any, document: dict[str, Any]) -> None:
        try:
            with file.locating():
                add(document)
        except InvalidDocumentError as error:
            self.faults.append(error)

    def _read_json(self, path: Path) -> bool:
        """Take in a policy file in JSON, unless something is wrong with it; return whether."""
        try:
            fields = read_policies(_content(path), str(path))
        except InvalidDocumentError:
            return False
        before = self.wanted.copy()
        try:
            for document in fields.get("segments", []):
                self.wanted.add_segment(document)
            for document in fields.get("flags", []):
                self.wanted.add(document)
        except InvalidDocumentError:
            self.wanted = before
            return False
        self._json.append(path)
        return True

    def _read_lines(self, path: Path) -> None:
        for number, line in enumerate(_content(path).removeprefix(BOM_UTF8).split(b"\n"), 1):
            if not line.strip() or len(self.faults) >= FAULTS_MAX:
                continue
            where = f"{path}:{number}"
            try:
                document = read_json(line, str(path), number)
            except InvalidDocumentError as error:
                self.faults.append(error)
                continue
            try:
                self.wanted.add(document)
            except InvalidDocumentError as error:
                self.faults.append(error.about(f"{where}: {error.subject}".removesuffix(": ")))
                continue
            self._lines[f"flag {document['key']!r}"] = where


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"the file {path} cannot be read: {error.strerror}") from error
