"""The snapshot file on the local disk, which processes map and share.

A file is only replaced whole: written under another name, synced and renamed, then its directory is
synced. A file that is truncated while it is mapped would kill its readers with SIGBUS, so nothing
writes to it in place.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Generator
from pathlib import Path
from typing import Final, TypeAlias

from flagkit._core.model import EVERYWHERE
from flagkit._core.model.changes import SEGMENTS
from flagkit._core.snapshot.arena import Arena, open_arena
from flagkit._core.snapshot.chunks import SLICE_BYTES
from flagkit._core.snapshot.layout import (
    PREFIX_BYTES,
    Header,
    compute_checksum,
    encode_prefix,
    read_header,
    read_prefix,
)
from flagkit._core.snapshot.snapshot import Snapshot, create_snapshot, list_snapshot_regions
from flagkit.errors import HistoryLostError, SnapshotFormatError

_READ: Final = {
    "flags": mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0),
    "prot": mmap.PROT_READ,
}

_Identity: TypeAlias = tuple[int, int, int, int]
"""Identifies a file: a file that replaces it has another identity."""

# The claims of this process, by path and process id: a forked child has claimed nothing.
_claims: dict[tuple[str, int], object] = {}


class SnapshotFile:
    """A file with a snapshot of one environment, as one region sees it.

    If `namespaces` are given, it has only flags whose keys begin with one of them.

    `path` is the file's path. A lock (`PATH.lock`) and files that are being written
    (`.NAME.*.tmp`) may be beside it.
    """

    def __init__(
        self,
        path: "str | os.PathLike[str]",
        environment: str,
        region: str,
        namespaces: tuple[str, ...] = (),
    ) -> None:
        # The real path gives one file one lock, whatever name it is opened by.
        self.path = Path(os.path.realpath(path))
        self._environment = environment
        self._region = region
        self._namespaces = namespaces
        self._refused: _Identity | None = None
        self.trouble: str | None = None
        """The reason why the file cannot be served or written; None if it can."""

    def read(self) -> Snapshot | None:
        """Map the file, check it, and return its snapshot; None if there is no file.

        Raises:
            SnapshotFormatError: it is damaged, foreign or of another format.
            OSError: it cannot be read.
        """
        try:
            with self._open() as (descriptor, status):
                try:
                    return self._load_snapshot(descriptor)
                except _ForeignError:
                    raise
                except SnapshotFormatError:
                    self._refused = _get_identity(status)
                    raise
        except FileNotFoundError:
            return None

    def read_header(self) -> Header | None:
        """Return the header of the file; None if there is no usable file.

        The contents are not checked, but a file that `read` has refused is not usable.
        """
        header = self._read_any_header()
        return None if header is None or self._describe_mismatch(header) is not None else header

    def describe_foreign_scope(self) -> str | None:
        """Return the scope of the file if it is a file of clients with another scope, else None.

        Such a file must not be replaced: those clients read it. A damaged file may be replaced.
        """
        header = self._read_any_header()
        if header is None:
            return None
        misfit = self._describe_mismatch(header)
        more = _read_regions(header) - {*list_snapshot_regions(self._region)}
        if misfit is None and more:
            misfit = f"it is of the region {', '.join(sorted(more))}"
        return misfit

    def describe_refusal(self, owner: str) -> str:
        """Return the message for a file that belongs to clients with another scope."""
        return (
            f"the snapshot file {self.path} is that of others, and is not replaced: {owner}; give"
            " clients of other environments, regions, namespaces or databases a path of their own,"
            " and delete the file if nobody uses it any more"
        )

    def _read_any_header(self) -> Header | None:
        """Return the header of the file, whatever its scope; None if it is not usable."""
        with (
            contextlib.suppress(OSError, SnapshotFormatError),
            self._open() as (descriptor, status),
        ):
            begin = os.pread(descriptor, PREFIX_BYTES, 0)
            _, length, header_length = read_prefix(memoryview(begin))
            if length != status.st_size or _get_identity(status) == self._refused:
                return None
            begin += os.pread(descriptor, min(header_length, length), PREFIX_BYTES)
            return read_header(memoryview(begin))
        return None

    @contextlib.contextmanager
    def claim(self) -> Generator[bool]:
        """Yield True if this object may write in the block: one at a time, in all processes.

        Raises:
            OSError: the lock file cannot be opened.
        """
        # A file lock does not exclude the same process, and closing the file again would drop it.
        claim, mine = (os.fspath(self.path), os.getpid()), object()
        if _claims.setdefault(claim, mine) is not mine:
            yield False
            return
        try:
            with self._lock() as locked:
                yield locked
        finally:
            del _claims[claim]

    @contextlib.contextmanager
    def _lock(self) -> Generator[bool]:
        # A forked child would share a lock by flock, but not one by lockf.
        descriptor = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(descriptor)

    def write(self, base: Arena) -> None:
        """Replace the file by an arena, which must have all members. Claim the file first.

        Raises:
            OSError: it cannot be written; the file is as it was.
        """
        directory, name = self.path.parent, self.path.name
        if self.path.exists() and not self.path.is_file():
            # It may be a device, which a privileged process could replace.
            raise FileExistsError(errno.EEXIST, "it is no regular file")
        self._remove_orphans()
        # Importing tempfile would take a tenth of the time for importing flagkit.
        temporary = directory / f".{name}.{os.getpid()}-{os.urandom(4).hex()}.tmp"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                _, length, header_length = read_prefix(base.content)
                file.write(encode_prefix(compute_checksum(base.content), length, header_length))
                for start in range(PREFIX_BYTES, length, SLICE_BYTES):
                    file.write(base.content[start : start + SLICE_BYTES])
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(self.path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        self._sync_directory()

    @contextlib.contextmanager
    def _open(self) -> Generator[tuple[int, os.stat_result]]:
        # Opening a pipe would wait for a writer unless the flags forbid it.
        descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise SnapshotFormatError("it is no regular file")
            yield descriptor, status
        finally:
            os.close(descriptor)

    def _load_snapshot(self, descriptor: int) -> Snapshot:
        if os.fstat(descriptor).st_size == 0:
            raise SnapshotFormatError("it is empty")
        base = open_arena(memoryview(mmap.mmap(descriptor, 0, **_READ)))
        misfit = self._describe_mismatch(base.header)
        if misfit is not None:
            raise _ForeignError(misfit)
        try:
            return create_snapshot(base, self._region)
        except HistoryLostError as error:
            raise SnapshotFormatError(str(error)) from None

    def _remove_orphans(self) -> None:
        """Remove the temporary files of killed writers of this file, and of no other file."""
        begin, end = f".{self.path.name}.", ".tmp"
        for found in self.path.parent.iterdir():
            random = found.name.removeprefix(begin).removesuffix(end)
            if f"{begin}{random}{end}" == found.name and "." not in random:
                # A file that cannot be removed does no harm.
                with contextlib.suppress(OSError):
                    found.unlink()

    def _describe_mismatch(self, header: Header) -> str | None:
        """Return why a valid file is not for this environment, region and namespaces."""
        if header.tip.environment != self._environment:
            return f"it is of the environment {header.tip.environment!r}"
        if header.namespaces != self._namespaces:
            namespaces = ", ".join(header.namespaces) or "all"
            return f"its namespaces are others: {namespaces}"
        regions = _read_regions(header)
        has_overrides = header.tip.digests.get(self._region, 0) != 0
        if self._namespaces:
            # The tip's digest includes overrides in other namespaces, so it proves nothing here.
            lacks = bool(regions - {*list_snapshot_regions(self._region)})
        else:
            lacks = has_overrides and self._region not in regions
        if lacks and self._region != EVERYWHERE:
            others = ", ".join(sorted(regions - {EVERYWHERE})) or EVERYWHERE
            return f"it has not the overrides of the region {self._region}: it is of {others}"
        return None

    def _sync_directory(self) -> None:
        descriptor = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class _ForeignError(SnapshotFormatError):
    """The file is sound, and of others."""


def _read_regions(header: Header) -> set[str]:
    return {region for region, count in header.counts.items() if count} - {SEGMENTS}


def _get_identity(status: os.stat_result) -> _Identity:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
