"""A snapshot: all policies of one environment at one revision, compact and shareable."""

from flagkit._core.snapshot.arena import Arena
from flagkit._core.snapshot.file import SnapshotFile
from flagkit._core.snapshot.layout import Record
from flagkit._core.snapshot.snapshot import (
    Part,
    Snapshot,
    build_arena,
    build_snapshot,
    check_digests,
    compact_snapshot,
    create_snapshot,
    encode_record,
    list_regions,
    list_snapshot_regions,
    read_part_names,
    unpack_flag,
    unpack_segment,
)

__all__ = [
    "Arena",
    "Part",
    "Record",
    "Snapshot",
    "SnapshotFile",
    "build_arena",
    "build_snapshot",
    "check_digests",
    "compact_snapshot",
    "create_snapshot",
    "encode_record",
    "list_regions",
    "list_snapshot_regions",
    "read_part_names",
    "unpack_flag",
    "unpack_segment",
]
