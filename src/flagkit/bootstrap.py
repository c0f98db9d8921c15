"""Bootstrap: snapshots of plain policy documents, which serve until a database has answered.

They come from code, from a policy file in JSON that ships with the service, or from a snapshot
file. Policy files in YAML are for people: `flagkit format --output json` makes the other form.
"""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

from flagkit.changes import SEGMENTS, PolicyState, Tip, digest, state_of
from flagkit.errors import ConfigurationError, InvalidDocumentError, SnapshotFormatError
from flagkit.model import decode, encode
from flagkit.model.segments import decode_segment, encode_segment, new_seed
from flagkit.snapshot import Snapshot, SnapshotFile, build, kept_of
from flagkit.snapshot.frame import MAGIC

Documents: TypeAlias = Iterable[Mapping[str, Any]]
Bootstrap: TypeAlias = str | os.PathLike[str] | Documents
"""The path of a policy file in JSON or of a snapshot file; or documents of flags."""


def bootstrap_snapshot(given: Bootstrap, environment: str, region: str) -> Snapshot:
    """Return the snapshot of what is given to serve from in the beginning.

    Raises:
        ConfigurationError: the file cannot be read, or is of no form that is known here.
        InvalidDocumentError: a policy document is not valid.
    """
    if not isinstance(given, str | os.PathLike):
        return snapshot_from(given, (), environment=environment, region=region)
    # Deferred, for the parser takes some milliseconds to import.
    from flagkit.policy_json import read_policies  # noqa: PLC0415

    path = Path(given)
    try:
        content = path.read_bytes()
        if content.startswith(MAGIC):
            snapshot = SnapshotFile(path, environment, region).read()
            assert snapshot is not None, "it is there"
            return snapshot
        lists = read_policies(content, str(path))
    except (OSError, SnapshotFormatError, InvalidDocumentError) as error:
        raise ConfigurationError(
            f"the bootstrap file {path} cannot be served: {error}; give a snapshot file, or what"
            " `flagkit format --output json` makes of a policy file"
        ) from error
    flags, segments = lists.get("flags", ()), lists.get("segments", ())
    return snapshot_from(flags, segments, environment=environment, region=region)


def snapshot_from(
    flags: Documents, segments: Documents, *, environment: str, region: str
) -> Snapshot:
    """Return the snapshot of plain policy documents, as a region sees them.

    Raises:
        InvalidDocumentError: a document is not valid, or one is there twice.
    """
    states = [initial_state(document) for document in flags]
    parts: dict[str, bytes] = {}
    for document in segments:
        state, made = initial_segment(document)
        states.append(state)
        parts |= made
    for (place, key), count in Counter(state.id for state in states).items():
        if count > 1:
            raise InvalidDocumentError(
                "key", f"{key!r} is there {count} times for {place}", "Keep one"
            )
    tip = Tip(environment, "memory", 1, "", datetime.now(UTC), digest(states))
    kept = [state for state in states if state.region in kept_of(region)]
    return build(tip, region, kept, parts)


def initial_state(document: Mapping[str, Any]) -> PolicyState:
    """Return the first version of a flag from its policy document."""
    flag = decode(document)
    return state_of(flag.key, flag.region, 1, encode(flag))


def initial_segment(document: Mapping[str, Any]) -> tuple[PolicyState, dict[str, bytes]]:
    """Return the first version of a segment from its document, and the parts of its keys."""
    hashed = decode_segment(document, seed=new_seed())
    state = state_of(hashed.segment.key, SEGMENTS, 1, encode_segment(hashed.segment))
    return state, hashed.parts
