"""Policy sets: several policy files, checked against each other without a database."""

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from flagkit.changes import SEGMENTS, PolicyId, PolicyState
from flagkit.cli.policy_files import PolicyFile
from flagkit.errors import InvalidDocumentError
from flagkit.model import EVERYWHERE, Flag
from flagkit.model.flags import segments_of
from flagkit.suggestions import suggested
from flagkit.writer.referring import References


class _Nothing:
    """An environment that has no flags besides those of the files."""

    def find(self, keys: Iterable[str]) -> dict[PolicyId, PolicyState]:
        del keys
        return {}

    def dependents(self, keys: Iterable[str]) -> dict[PolicyId, PolicyState]:
        del keys
        return {}

    def keys_near(self, policy: PolicyId) -> Iterable[str]:
        del policy
        return ()


def faults_between(files: Sequence[PolicyFile], *, partial: bool) -> Iterator[InvalidDocumentError]:
    """Yield what is wrong with valid files together.

    A flag or segment that stands in two files is a fault. So are a prerequisite or a segment that
    is in none of them, a variant that a prerequisite does not have, and a cycle. Of the last two
    kinds, only the first fault is told.

    Args:
        files: Files whose documents are valid by themselves.
        partial: Whether flags and segments that are in none of the files may exist elsewhere.
    """
    flags: dict[PolicyId, Flag] = {}
    segments: set[str] = set()
    for file in files:
        yield from _twice(file, flags.keys() | {(SEGMENTS, key) for key in segments})
        flags |= {(policy.flag.region, policy.flag.key): policy.flag for policy in file.policies}
        segments |= {found.segment.key for found in file.segments}
    keys = {key for _, key in flags}
    if not partial:
        for flag in flags.values():
            yield from (_located(files, fault) for fault in _missing(flag, keys, segments))
    known = {identity: _among(flag, keys) for identity, flag in flags.items()}
    try:
        References(_Nothing(), {}, known).check()
    except InvalidDocumentError as error:
        yield _located(files, error)


def _twice(file: PolicyFile, earlier: set[PolicyId]) -> Iterator[InvalidDocumentError]:
    here = [(policy.flag.region, policy.flag.key) for policy in file.policies]
    here += [(SEGMENTS, found.segment.key) for found in file.segments]
    for region, key in here:
        if (region, key) in earlier:
            kind = "segment" if region == SEGMENTS else "flag"
            where = "" if region in (SEGMENTS, EVERYWHERE) else f" for region {region}"
            fault = InvalidDocumentError(
                "key",
                f"is in another file, too{where}",
                "Remove one of them",
                subject=f"{kind} {key!r}",
            )
            yield _located([file], fault)


def _missing(flag: Flag, keys: set[str], segments: set[str]) -> Iterator[InvalidDocumentError]:
    remedy = "Add it, or pass --partial if it exists already"
    subject = f"flag {flag.key!r}"
    for i, needed in enumerate(flag.prerequisites):
        if needed.flag not in keys:
            path = f"prerequisites[{i}].flag"
            problem = f"{needed.flag!r} is in none of the files"
            known = suggested(remedy, needed.flag, keys - {flag.key})
            yield InvalidDocumentError(path, problem, known, subject=subject)
    for key in sorted(segments_of(flag) - segments):
        problem = f"refer to the segment {key!r}, which is in none of the files"
        known = suggested(remedy, key, segments)
        yield InvalidDocumentError("rules", problem, known, subject=subject)


def _among(flag: Flag, keys: set[str]) -> Flag:
    """Return a flag with only the prerequisites that are in the files."""
    prerequisites = tuple(needed for needed in flag.prerequisites if needed.flag in keys)
    return msgspec.structs.replace(flag, prerequisites=prerequisites)


def _located(files: Iterable[PolicyFile], fault: InvalidDocumentError) -> InvalidDocumentError:
    """Return a fault with its file and line, if one of the files has its subject."""
    for file in files:
        try:
            with file.locating():
                raise fault
        except InvalidDocumentError as error:
            if error is not fault:
                return error
    return fault
