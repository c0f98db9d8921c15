"""A snapshot: all policies of one environment at one revision, compact and shareable."""

from flagkit._core.snapshot.arena import Arena
from flagkit._core.snapshot.file import SnapshotFile
from flagkit._core.snapshot.layout import Record, seal_of
from flagkit._core.snapshot.snapshot import (
    Part,
    Snapshot,
    arena_of,
    build,
    check_digests,
    flag_of,
    fold,
    kept_of,
    parts_in,
    record_of,
    regions_of,
    segment_of,
    snapshot_of,
)

__all__ = [
    "Arena",
    "Part",
    "Record",
    "Snapshot",
    "SnapshotFile",
    "arena_of",
    "build",
    "check_digests",
    "flag_of",
    "fold",
    "kept_of",
    "parts_in",
    "record_of",
    "regions_of",
    "seal_of",
    "segment_of",
    "snapshot_of",
]
