"""The snapshot file: written whole, mapped, and refused where it is not what it should be."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from flagkit._core.cooperative import run_slices
from flagkit._core.model.changes import Tip, compute_digests
from flagkit._core.snapshot import (
    Snapshot,
    SnapshotFile,
    build_snapshot,
    compact_snapshot,
    layout,
    unpack_segment,
)
from flagkit.client.sources import build_initial_segment, build_initial_state
from flagkit.errors import SnapshotFormatError

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
ON: Mapping[str, Any] = {
    "key": "shop.express",
    "variants": {"on": True, "off": False},
    "fallthrough": {"serve": "on"},
}


def snapshot(
    revision: int = 7, environment: str = "production", region: str = "*", epoch: str = "first"
) -> Snapshot:
    """One flag, its override in the EU, and a segment."""
    group, parts = build_initial_segment({"key": "beta", "included": ["ada", "bob"]})
    states = [build_initial_state(ON), build_initial_state({**ON, "region": "eu"}), group]
    tip = Tip(environment, epoch, revision, f"hash {revision}", NOON, compute_digests(states))
    kept = {region, "*", group.region}
    return build_snapshot(tip, region, [state for state in states if state.region in kept], parts)


def write(file: SnapshotFile, content: Snapshot) -> None:
    with file.claim() as mine:
        assert mine
        file.write(run_slices(compact_snapshot(content, with_members=True)))


@pytest.fixture
def file(tmp_path: Path) -> SnapshotFile:
    return SnapshotFile(tmp_path / "flags.snapshot", "production", "*")


def test_what_is_written_is_read_with_its_tip_and_its_members(file: SnapshotFile) -> None:
    assert file.read() is None
    written = snapshot()
    write(file, written)
    read = file.read()
    assert read is not None
    assert read.tip == written.tip
    assert sorted(read.iter_records()) == sorted(written.iter_records())
    group = read.find_segment("beta")
    assert group is not None
    (part,) = unpack_segment(group).included.parts
    assert [*read.parts[part]] == [*written.parts[part]]
    header = file.read_header()
    assert header is not None
    assert (header.tip, header.counts) == (written.tip, {"*": 1, "@segments": 1})


def test_only_the_owner_may_read_it_and_nothing_else_is_left(file: SnapshotFile) -> None:
    write(file, snapshot())
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert {path.name for path in file.path.parent.iterdir()} == {
        "flags.snapshot",
        "flags.snapshot.lock",
    }


def test_what_killed_writers_left_is_removed(file: SnapshotFile) -> None:
    left_over = file.path.parent / ".flags.snapshot.abc.tmp"
    left_over.write_bytes(b"half of it")
    other = file.path.parent / "other.tmp"
    other.write_bytes(b"not ours")
    write(file, snapshot())
    assert not left_over.exists()
    assert other.exists()


def test_a_mapped_file_outlives_its_replacement(file: SnapshotFile) -> None:
    write(file, snapshot(7))
    before = file.read()
    write(file, snapshot(8))
    after = file.read()
    assert before is not None
    assert after is not None
    assert (before.tip.revision, after.tip.revision) == (7, 8)
    assert before.find("shop.express") == after.find("shop.express") is not None


def test_what_writers_of_other_files_are_about_to_write_is_let_be(tmp_path: Path) -> None:
    others = [tmp_path / f".{name}.abcdefgh.tmp" for name in ("flags.eu", "flags2", "x*", "xx")]
    for other in others:
        other.write_bytes(b"half of it")
    for name in ("flags", "x*"):
        write(SnapshotFile(tmp_path / name, "production", "*"), snapshot())
    assert [other.exists() for other in others] == [True, True, False, True]


def test_a_file_has_one_lock_by_whichever_of_its_names(file: SnapshotFile, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "link").symlink_to(file.path)
    for other in (tmp_path / "link", tmp_path / "deep" / ".." / "flags.snapshot"):
        named = SnapshotFile(other, "production", "*")
        with file.claim() as mine, named.claim() as again:
            assert (mine, again) == (True, False)
        write(named, snapshot(8))
    assert (tmp_path / "link").is_symlink()
    assert file.read() is not None


def test_what_is_no_regular_file_is_neither_read_nor_replaced(tmp_path: Path) -> None:
    # No reader of a pipe would return before somebody writes into it.
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "directory").mkdir()
    for path in (tmp_path / "pipe", tmp_path / "directory", Path(os.devnull)):
        file = SnapshotFile(path, "production", "*")
        assert file.read_header() is None
        with pytest.raises(SnapshotFormatError, match="it is no regular file"):
            file.read()
        before = path.stat()
        with pytest.raises(FileExistsError, match="it is no regular file"):
            file.write(snapshot().base)
        assert path.stat().st_ino == before.st_ino


def test_what_was_refused_is_of_no_use_until_it_is_replaced(file: SnapshotFile) -> None:
    write(file, snapshot())
    file.path.write_bytes(damaged(file.path.read_bytes()))
    assert file.read_header() is not None
    with pytest.raises(SnapshotFormatError):
        file.read()
    assert file.read_header() is None
    write(file, snapshot())
    assert file.read_header() is not None


@pytest.mark.parametrize("length", [2**40, 2**64 - 1], ids=repr)
def test_a_damaged_length_of_the_header_is_no_reason_to_read_that_much(
    file: SnapshotFile, length: int
) -> None:
    write(file, snapshot())
    content = file.path.read_bytes()
    file.path.write_bytes(content[:24] + length.to_bytes(8, "little") + content[32:])
    assert file.read_header() is None


def cut(content: bytes) -> bytes:
    return content[:-1]


def damaged(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


REFUSED: Mapping[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", "it is empty"),
    "cut off": (cut, "it was cut off"),
    "cut to a few bytes": (lambda content: content[:10], "no snapshot of flagkit's"),
    "damaged": (damaged, "it was damaged"),
    "no snapshot": (lambda _: b"#!/bin/sh\n" * 100, "no snapshot of flagkit's"),
    "a newer format": (
        lambda content: content[:7] + bytes([layout.FORMAT + 1]) + content[8:],
        f"it has format {layout.FORMAT + 1}; this version reads {layout.FORMAT}",
    ),
}


@pytest.mark.parametrize(("spoil", "problem"), REFUSED.values(), ids=REFUSED)
def test_a_file_that_is_not_sound_is_refused(
    file: SnapshotFile, spoil: Callable[[bytes], bytes], problem: str
) -> None:
    write(file, snapshot())
    file.path.write_bytes(spoil(file.path.read_bytes()))
    with pytest.raises(SnapshotFormatError, match=problem):
        file.read()


def test_a_file_of_another_environment_is_refused(file: SnapshotFile) -> None:
    write(file, snapshot(environment="staging"))
    with pytest.raises(SnapshotFormatError, match="it is of the environment 'staging'"):
        file.read()
    assert file.read_header() is None


def test_a_file_without_the_overrides_of_the_region_is_refused(file: SnapshotFile) -> None:
    write(file, snapshot())
    european = SnapshotFile(file.path, "production", "eu")
    with pytest.raises(
        SnapshotFormatError, match="it has not the overrides of the region eu: it is of \\*"
    ):
        european.read()
    # One that has more than is needed will do, and so will one for a region without overrides.
    write(file, snapshot(region="eu"))
    for region in ("eu", "*", "us"):
        read = SnapshotFile(file.path, "production", region).read()
        assert read is not None
        assert read.list_keys() == ["shop.express"]


def test_one_process_at_a_time_may_write(file: SnapshotFile) -> None:
    asking = (
        "import sys; from flagkit._core.snapshot import SnapshotFile\n"
        "with SnapshotFile(sys.argv[1], 'production', '*').claim() as mine: print(mine)"
    )

    def another() -> str:
        asked = [sys.executable, "-c", asking, str(file.path)]
        return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()

    with file.claim() as mine:
        assert mine
        with file.claim() as again:
            assert not again
        assert another() == "False"
        child = os.fork()
        if child == 0:
            # It holds what its parent held no more than any other process does.
            with file.claim() as inherited:
                os._exit(int(inherited))
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    assert another() == "True"


def test_a_disk_that_is_full_leaves_the_file_as_it_was(file: SnapshotFile) -> None:
    write(file, snapshot(7))
    before = file.path.read_bytes()
    child = os.fork()
    if child == 0:
        # To the process it is as if the disk ended here.
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        try:
            write(file, snapshot(8))
        except OSError:
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert file.path.read_bytes() == before
    assert len([*file.path.parent.iterdir()]) == 2


def test_where_there_is_no_directory_nothing_can_be_written(tmp_path: Path) -> None:
    nowhere = SnapshotFile(tmp_path / "missing" / "flags.snapshot", "production", "*")
    assert nowhere.read() is None
    assert nowhere.read_header() is None
    with pytest.raises(FileNotFoundError):
        write(nowhere, snapshot())


MEASURE = """
import sys
from flagkit._core.snapshot import SnapshotFile
snapshot = SnapshotFile(sys.argv[1], "production", "*").read()
found, private = False, 0
for line in open("/proc/self/smaps"):
    name, *rest = line.split()
    if "-" in name and not name.endswith(":"):
        found = rest[-1:] == [sys.argv[1]]
    elif found and name in ("Private_Clean:", "Private_Dirty:"):
        private += int(rest[0])
    elif found and name == "Rss:":
        print("resident", int(rest[0]))
print("private", private)
"""


def test_processes_that_map_the_file_share_its_pages(file: SnapshotFile) -> None:
    flags = [
        build_initial_state({**ON, "key": f"shop.feature-{number}"}) for number in range(2_000)
    ]
    tip = Tip("production", "first", 1, "hash", NOON, compute_digests(flags))
    write(file, build_snapshot(tip, "*", flags))
    here = file.read()
    asked = [sys.executable, "-c", MEASURE, str(file.path)]
    there = subprocess.run(asked, check=True, capture_output=True, text=True).stdout
    told = dict(line.split() for line in there.splitlines())
    assert here is not None
    assert int(told["resident"]) >= len(here.base.content) // 1024
    assert told["private"] == "0"
