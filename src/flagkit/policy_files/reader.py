"""Reads policy files in YAML or JSON into checked flags and segments, and checks files together.

A file is a mapping with `flags` and `segments`, lists of policy documents. A fault names its file
and line. Checks across files need no database.
"""

import re
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from flagkit._core.model import EVERYWHERE, Flag, decode
from flagkit._core.model.changes import SEGMENTS, PolicyId, PolicyState
from flagkit._core.model.flags import collect_flag_segments
from flagkit._core.model.references import ReferenceChecker
from flagkit._core.model.segments import Segment, decode_segment
from flagkit._core.model.sensitive import redact_error
from flagkit._core.strict_json import LISTS, parse_json
from flagkit._core.suggestions import suggested
from flagkit.errors import ConfigurationError, InvalidDocumentError
from flagkit.policy_files.yaml import Node, YamlReader, compose, get_line, iter_children, shorten

STANDARD_INPUT = "-"


class FlagPolicy(NamedTuple):
    """One flag of a policy file: its document as written, and the flag that it decodes to."""

    document: dict[str, Any]
    flag: Flag


class SegmentPolicy(NamedTuple):
    """One segment of a policy file: its document as written, and the segment, its keys hashed."""

    document: dict[str, Any]
    segment: Segment


class PolicyFile:
    """The flags and segments of a policy file, in its order, each of them valid by itself.

    Args:
        path: The path of the file, or - for standard input; errors name it as given.
        environment: The required value of the documents' own `environment`, if they have one.
        faults: A list for the first fault of each document. Without it, faults are raised.

    Raises:
        ConfigurationError: the file cannot be read.
        InvalidDocumentError: it is no policy file, or a document in it is not valid; `subject`
            begins with `file:line`.
    """

    def __init__(
        self,
        path: Path | str,
        environment: str | None = None,
        *,
        faults: list[InvalidDocumentError] | None = None,
    ) -> None:
        self.path = Path(path)
        self._name = "<stdin>" if str(path) == STANDARD_INPUT else str(path)
        self.policies: list[FlagPolicy] = []
        self.segments: list[SegmentPolicy] = []
        self._environment = environment
        self._nodes: dict[str, Node] = {}
        self._lines: dict[tuple[str, str], int] = {}
        reading = YamlReader(self._name)
        content = self._read_bytes()
        if self.path.suffix == ".json":
            # The YAML reader would accept words that are no JSON, such as NaN, as text.
            parse_json(content, self._name)
        for member in _iter_members(self._name, content, reading):
            try:
                (self._add_flag if member.field == "flags" else self._add_segment)(member)
            except InvalidDocumentError as error:
                if faults is None:
                    raise
                faults.append(error)
        self.ambiguities: list[InvalidDocumentError] = reading.ambiguities
        """Values that are valid here, but that YAML 1.1 readers understand differently."""

    def _read_bytes(self) -> bytes:
        try:
            if str(self.path) == STANDARD_INPUT:
                return sys.stdin.buffer.read()
            return self.path.read_bytes()
        except OSError as error:
            raise ConfigurationError(
                f"the policy file {self.path} cannot be read: {error.strerror}"
            ) from error

    def _add_flag(self, member: "_Member") -> None:
        with _locate_errors(self._name, member):
            flag = decode(member.document, environment=self._environment)
        self._register(member, flag.region, flag.key)
        self.policies.append(FlagPolicy(member.document, flag))

    def _add_segment(self, member: "_Member") -> None:
        with _locate_errors(self._name, member):
            segment = decode_segment(member.document, environment=self._environment).segment
        self._register(member, "", segment.key)
        self.segments.append(SegmentPolicy(member.document, segment))

    def _register(self, member: "_Member", region: str, key: str) -> None:
        line = get_line(member.node)
        first = self._lines.get((region, key))
        if first is not None:
            where = f" for region {region}" if region not in ("", EVERYWHERE) else ""
            raise InvalidDocumentError(
                "key",
                f"is in this file twice{where}, in line {first} too",
                "Remove one, or give it another region",
                subject=f"{self._name}:{line}: {member.subject}",
            )
        self._lines[region, key] = line
        self._nodes[member.subject] = member.node

    @contextmanager
    def locate_errors(self) -> Generator[None]:
        """Name file and line in an InvalidDocumentError of the block that is about one of these."""
        try:
            yield
        except InvalidDocumentError as error:
            node = self._nodes.get(error.subject)
            if node is None:
                raise
            raise _add_location(error, self._name, node, error.subject) from error


class _Member(NamedTuple):
    """A member of one of the lists: its place in the file, and its contents."""

    field: str
    place: int
    node: Node
    document: Any

    @property
    def subject(self) -> str:
        """The name of the document in errors: its key, if it has one."""
        document: Any = self.document
        if isinstance(document, dict) and "key" in document:
            return f"{LISTS[self.field]} {document['key']!r}"
        return f"{self.field}[{self.place}]"


@contextmanager
def _locate_errors(name: str, member: _Member) -> Generator[None]:
    try:
        yield
    except InvalidDocumentError as error:
        raise _add_location(error, name, member.node, member.subject) from None


def _iter_members(name: str, written: bytes, reading: YamlReader) -> Iterator[_Member]:
    """Yield the members of a file's lists, in its order."""
    root = compose(name, written)
    content: dict[Any, Any] = {}
    if root is not None and root.id == "mapping":
        try:
            content = reading.read_value(root)
        except InvalidDocumentError as error:
            raise _hide_sensitive(error, root) from None
        reading.ambiguities = [_hide_sensitive(doubt, root) for doubt in reading.ambiguities]
    if content.keys().isdisjoint(LISTS):
        raise InvalidDocumentError(
            "flags",
            "is missing",
            "Write `flags:`, and below it the flags, each beginning with `- key:`",
            subject=name,
        )
    for label, key, child in iter_children(root):
        subject = f"{name}:{get_line(key)}"
        if label not in LISTS:
            known = " and ".join(LISTS)
            raise InvalidDocumentError(
                shorten(label),
                "is not a known field",
                f"A policy file has {known}",
                subject=subject,
            )
        if child.id != "sequence":
            raise InvalidDocumentError(
                label,
                "is not a list",
                f"Begin each {LISTS[label]} with `- key:`",
                subject=subject,
            )
        for i, (node, document) in enumerate(zip(child.value, content[label], strict=True)):
            yield _Member(label, i, node, document)


def _add_location(
    error: InvalidDocumentError, name: str, node: Node, subject: str
) -> InvalidDocumentError:
    return error.about(f"{name}:{get_line(node, error.path)}: {subject}")


def _hide_sensitive(error: InvalidDocumentError, root: Node) -> InvalidDocumentError:
    """Return the fault of a file without the sensitive values that it quotes."""
    found = re.fullmatch(r"(flags(\[\d+\])\.)(variants\..*)", error.path, re.DOTALL)
    if found is None:
        return error
    children = {label: child for label, _, child in iter_children(root)}
    flags = {label: child for label, _, child in iter_children(children["flags"])}
    fields = {label: child for label, _, child in iter_children(flags[found[2]])}
    node = fields.get("sensitive")
    named: object = None
    if node is not None:
        # If `sensitive` is no list of names, any variant may be sensitive.
        is_list = node.id == "sequence"
        named = [item.value for _, _, item in iter_children(node)] if is_list else True
    inner = InvalidDocumentError(found[3], error.problem, error.remedy)
    inner = redact_error(inner, {"sensitive": named})
    return InvalidDocumentError(
        found[1] + inner.path, inner.problem, inner.remedy, subject=error.subject
    )


class _EmptyEnvironment:
    """An environment that has no flags besides those of the files."""

    def find_flags(self, keys: Iterable[str]) -> dict[PolicyId, PolicyState]:
        del keys
        return {}

    def find_dependents(self, keys: Iterable[str]) -> dict[PolicyId, PolicyState]:
        del keys
        return {}

    def find_similar_keys(self, policy: PolicyId) -> Iterable[str]:
        del policy
        return ()


def iter_faults(files: Sequence[PolicyFile], *, partial: bool) -> Iterator[InvalidDocumentError]:
    """Yield the faults of files whose documents are valid by themselves.

    A flag or segment that is in two files is a fault. So are a prerequisite or a segment that is
    in none of them, a variant that a prerequisite does not have, and a cycle. Only the first fault
    of the last two kinds is reported.

    Args:
        files: Files whose documents are valid by themselves.
        partial: True if flags and segments that are in none of the files may exist elsewhere.
    """
    flags: dict[PolicyId, Flag] = {}
    segments: set[str] = set()
    for file in files:
        yield from _iter_duplicates(file, flags.keys() | {(SEGMENTS, key) for key in segments})
        flags |= {(policy.flag.region, policy.flag.key): policy.flag for policy in file.policies}
        segments |= {found.segment.key for found in file.segments}
    keys = {key for _, key in flags}
    if not partial:
        for flag in flags.values():
            yield from (
                _locate_fault(files, fault) for fault in _iter_missing(flag, keys, segments)
            )
    known = {identity: _keep_known_prerequisites(flag, keys) for identity, flag in flags.items()}
    try:
        ReferenceChecker(_EmptyEnvironment(), {}, known).check()
    except InvalidDocumentError as error:
        yield _locate_fault(files, error)


def _iter_duplicates(file: PolicyFile, known: set[PolicyId]) -> Iterator[InvalidDocumentError]:
    here = [(policy.flag.region, policy.flag.key) for policy in file.policies]
    here += [(SEGMENTS, found.segment.key) for found in file.segments]
    for region, key in here:
        if (region, key) in known:
            kind = "segment" if region == SEGMENTS else "flag"
            where = "" if region in (SEGMENTS, EVERYWHERE) else f" for region {region}"
            fault = InvalidDocumentError(
                "key",
                f"is in another file, too{where}",
                "Remove one of them",
                subject=f"{kind} {key!r}",
            )
            yield _locate_fault([file], fault)


def _iter_missing(flag: Flag, keys: set[str], segments: set[str]) -> Iterator[InvalidDocumentError]:
    remedy = "Add it, or pass --partial if it exists already"
    subject = f"flag {flag.key!r}"
    for i, needed in enumerate(flag.prerequisites):
        if needed.flag not in keys:
            path = f"prerequisites[{i}].flag"
            problem = f"{needed.flag!r} is in none of the files"
            known = suggested(remedy, needed.flag, keys - {flag.key})
            yield InvalidDocumentError(path, problem, known, subject=subject)
    for key in sorted(collect_flag_segments(flag) - segments):
        problem = f"refer to the segment {key!r}, which is in none of the files"
        known = suggested(remedy, key, segments)
        yield InvalidDocumentError("rules", problem, known, subject=subject)


def _keep_known_prerequisites(flag: Flag, keys: set[str]) -> Flag:
    """Return a flag with only the prerequisites that are in the files."""
    prerequisites = tuple(needed for needed in flag.prerequisites if needed.flag in keys)
    return msgspec.structs.replace(flag, prerequisites=prerequisites)


def _locate_fault(files: Iterable[PolicyFile], fault: InvalidDocumentError) -> InvalidDocumentError:
    """Return a fault with its file and line, if one of the files has its subject."""
    for file in files:
        try:
            with file.locate_errors():
                raise fault
        except InvalidDocumentError as error:
            if error is not fault:
                return error
    return fault
