"""Snapshot: all policies of one environment at one revision, in a compact and shareable form."""

from flagkit.snapshot.arena import Arena
from flagkit.snapshot.file import SnapshotFile
from flagkit.snapshot.frame import Record, seal_of
from flagkit.snapshot.snapshots import (
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
    whole,
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
    "whole",
]
