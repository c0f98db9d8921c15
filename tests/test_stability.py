"""Names and bytes that other programs, stored data and files on disk depend on.

tests/golden/stability.json holds them. A change there is a change for users or for stored data: it
needs a line in CHANGELOG.md, and `python -m tests.test_stability` writes the file again.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import pytest

import flagkit
import flagkit.history
import flagkit.policy_files
import flagkit.testing
import flagkit.writer
from benchmarks.catalogue import iter_documents
from flagkit._core.cooperative import run_slices
from flagkit._core.model import decode, packing
from flagkit._core.model.changes import Tip
from flagkit._core.snapshot import Arena, Record, build_arena, compaction, layout
from flagkit._core.storage import validation
from flagkit.policy_files import json_schema
from flagkit.writer import operations

GOLDEN = Path(__file__).parent / "golden" / "stability.json"
FLAG_COUNT = 500
LOADED = (
    "import json, sys; before = {*sys.modules}; import flagkit;"
    "print(json.dumps(sorted({name.split('.')[0] for name in {*sys.modules} - before})))"
)


def public_names() -> dict[str, Any]:
    packages = (flagkit, flagkit.writer, flagkit.history, flagkit.policy_files, flagkit.testing)
    return {package.__name__: sorted(package.__all__) for package in packages}


def operation_classes(base: type[Any] = operations.Operation) -> Iterator[type[Any]]:
    for found in base.__subclasses__():
        yield found
        yield from operation_classes(found)


def audit_fields() -> dict[str, Any]:
    """Return the fields of each operation, as the audit stores them, by its tag."""
    return {
        str(found.__struct_config__.tag): list(found.__struct_encode_fields__)
        for found in operation_classes()
        if found.__struct_config__.tag is not None
    }


def stored_fields() -> dict[str, Any]:
    """Return the form of each collection's documents, as the server holds writers to it."""
    return {name: dict(form) for name, form in validation.VALIDATORS.items()}


def arena() -> Arena:
    """Return a fixed catalogue of flags, an override and a group of members, as an arena."""
    tip = Tip("production", "epoch", 7, "ab" * 32, datetime(2026, 1, 1, 12, tzinfo=UTC), {"*": 1})
    records = [
        Record("*", flag.key, version, version + 7, packing.pack(flag))
        for version, flag in enumerate(
            map(decode, islice(iter_documents(FLAG_COUNT), FLAG_COUNT)), 1
        )
    ]
    override = records[3]
    records.append(Record("eu", override.key, 2, 900, override.body))
    part = b"".join(number.to_bytes(8, "little") for number in (1, 2, 2**64 - 1))
    found = build_arena(tip, sorted(records, key=lambda record: (record.region, record.key)))
    return run_slices(
        compaction.compact_arena(found, tip, {}, {hashlib.sha256(part).hexdigest(): part})
    )


def snapshot_digest() -> str:
    found = arena()
    _, length, header_length = layout.read_prefix(found.content)
    prefix = layout.encode_prefix(layout.compute_checksum(found.content), length, header_length)
    return hashlib.sha256(prefix + found.content[len(prefix) :].tobytes()).hexdigest()


def schema_digest() -> str:
    return hashlib.sha256(
        msgspec.json.encode(json_schema.build_schema(), order="sorted")
    ).hexdigest()


def loaded_modules() -> list[str]:
    run = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, check=True)
    found: list[str] = json.loads(run.stdout)
    return found


def stable() -> dict[str, Any]:
    return {
        "public names": public_names(),
        "fields of audited operations": audit_fields(),
        "forms of stored documents": json.loads(json.dumps(stored_fields(), default=list)),
        "schema of policy files": schema_digest(),
        "bytes of a snapshot": snapshot_digest(),
    }


@pytest.fixture(scope="module")
def golden() -> Mapping[str, Any]:
    found: dict[str, Any] = json.loads(GOLDEN.read_text("utf-8"))
    return found


@pytest.mark.parametrize("what", stable().keys())
def test_what_others_depend_on_stays_as_it_is(golden: Mapping[str, Any], what: str) -> None:
    assert stable()[what] == golden[what]


@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="the standard library loads other modules elsewhere"
)
def test_importing_flagkit_loads_the_same_libraries(golden: Mapping[str, Any]) -> None:
    # Tools of the environment may have loaded some of them before.
    assert {*loaded_modules()} <= {*golden["modules that an import loads"]}


if __name__ == "__main__":
    found = {**stable(), "modules that an import loads": loaded_modules()}
    GOLDEN.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", "utf-8")
