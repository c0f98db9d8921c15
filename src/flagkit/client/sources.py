"""The first flags of a client: from MongoDB, a snapshot file, or policies in code.

Bootstrap policies come from code or from a policy file in JSON that ships with the service.
`flagkit format --output json` converts a YAML file to that form.
"""

import functools
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from flagkit._core.background import Log
from flagkit._core.evaluation.evaluator import Evaluator, Staleness
from flagkit._core.model import decode, encode
from flagkit._core.model.changes import SEGMENTS, PolicyState, Tip, build_state, compute_digests
from flagkit._core.model.segments import decode_segment, encode_segment, generate_seed
from flagkit._core.secrets import DataKeys, Encryption, VariantDecrypter
from flagkit._core.snapshot import Snapshot, SnapshotFile, build_snapshot, list_snapshot_regions
from flagkit._core.snapshot.layout import MAGIC
from flagkit._core.source import Source
from flagkit.config import Bootstrap, Documents, Settings
from flagkit.errors import ConfigurationError, InvalidDocumentError, SnapshotFormatError


def load_bootstrap_snapshot(bootstrap: Bootstrap, environment: str, region: str) -> Snapshot:
    """Return the snapshot of what is given to serve from in the beginning.

    Raises:
        ConfigurationError: the file cannot be read, or is of no form that is known here.
        InvalidDocumentError: a policy document is not valid.
    """
    if not isinstance(bootstrap, str | os.PathLike):
        return build_policy_snapshot(bootstrap, (), environment=environment, region=region)
    # Deferred, for the parser takes some milliseconds to import.
    from flagkit._core.strict_json import parse_policies  # noqa: PLC0415

    path = Path(bootstrap)
    try:
        content = path.read_bytes()
        if content.startswith(MAGIC):
            snapshot = SnapshotFile(path, environment, region).read()
            assert snapshot is not None, "it is there"
            return snapshot
        lists = parse_policies(content, str(path))
    except (OSError, SnapshotFormatError, InvalidDocumentError) as error:
        raise ConfigurationError(
            f"the bootstrap file {path} cannot be served: {error}; give a snapshot file, or what"
            " `flagkit format --output json` makes of a policy file"
        ) from error
    flags, segments = lists.get("flags", ()), lists.get("segments", ())
    return build_policy_snapshot(flags, segments, environment=environment, region=region)


def build_policy_snapshot(
    flags: Documents, segments: Documents, *, environment: str, region: str
) -> Snapshot:
    """Return the snapshot of plain policy documents, as a region sees them.

    Raises:
        InvalidDocumentError: a document is not valid, or one is there twice.
    """
    states = [build_initial_state(document) for document in flags]
    parts: dict[str, bytes] = {}
    for document in segments:
        state, new_parts = build_initial_segment(document)
        states.append(state)
        parts |= new_parts
    for (place, key), count in Counter(state.id for state in states).items():
        if count > 1:
            raise InvalidDocumentError(
                "key", f"{key!r} is there {count} times for {place}", "Keep one"
            )
    tip = Tip(environment, "memory", 1, "", datetime.now(UTC), compute_digests(states))
    selected = [state for state in states if state.region in list_snapshot_regions(region)]
    return build_snapshot(tip, region, selected, parts)


def build_initial_state(document: Mapping[str, Any]) -> PolicyState:
    """Return the first version of a flag from its policy document."""
    flag = decode(document)
    return build_state(flag.key, flag.region, 1, encode(flag))


def build_initial_segment(document: Mapping[str, Any]) -> tuple[PolicyState, dict[str, bytes]]:
    """Return the first version of a segment from its document, and the parts of its keys."""
    hashed = decode_segment(document, seed=generate_seed())
    state = build_state(hashed.segment.key, SEGMENTS, 1, encode_segment(hashed.segment))
    return state, hashed.parts


_log = Log("flagkit")


class FlagSource(NamedTuple):
    """The source of a client's flags, their greatest age, and the name of its service.

    `load_opener` loads, and returns what opens the source. `bootstrap` is served until there is
    more. `create_keys` makes what decrypts sensitive values, if something does. `settings`
    name the source; None if no settings do. Sources of equal settings are the same.
    """

    load_opener: Callable[[], Callable[[], Source]] | None = None
    file: SnapshotFile | None = None
    bootstrap: Snapshot | None = None
    max_staleness: float = math.inf
    service: str | None = None
    create_keys: Callable[[], DataKeys] | None = None
    settings: Settings | None = None


def build_flag_source(settings: Settings) -> FlagSource:
    """Return the source that settings name, in MongoDB."""
    path = settings.snapshot_path
    environment, region = settings.environment, settings.region
    file = None if path is None else SnapshotFile(path, environment, region, settings.namespaces)
    bootstrap = settings.bootstrap
    return FlagSource(
        functools.partial(_load_mongo_opener, settings),
        file,
        None if bootstrap is None else load_bootstrap_snapshot(bootstrap, environment, region),
        settings.max_staleness,
        settings.register,
        _build_keys_factory(settings),
        settings,
    )


def build_decrypter(settings: Settings) -> VariantDecrypter:
    """Return what opens sensitive values with the keys that settings name, unfetched."""
    return VariantDecrypter(_build_keys_factory(settings))


def _build_keys_factory(settings: Settings) -> Callable[[], DataKeys] | None:
    encryption = settings.encryption
    return (
        None if encryption is None else functools.partial(_create_mongo_keys, settings, encryption)
    )


def load_first_evaluator(
    source: FlagSource, staleness: Staleness, decrypter: VariantDecrypter
) -> Evaluator | None:
    """Return an evaluator of the first flags; the content of the file comes first."""
    snapshot = None if source.file is None else _load_file(source.file)
    if snapshot is None:
        snapshot = source.bootstrap
    return None if snapshot is None else Evaluator(snapshot, time.time, staleness, decrypter)


def _load_file(file: SnapshotFile) -> Snapshot | None:
    """Return what a file holds, None where it is of no use, which is said."""
    try:
        return file.read()
    except (OSError, SnapshotFormatError) as error:
        foreign = file.describe_foreign_scope()
        if foreign is None:
            _log.warning("the snapshot file %s is not served: %s", file.path, error)
        else:
            file.trouble = file.describe_refusal(foreign)
            _log.warning("%s", file.trouble)
        return None


def _create_mongo_keys(settings: Settings, encryption: Encryption) -> DataKeys:
    """Return the data keys of an environment in MongoDB; loads the driver and its cryptography."""
    # Deferred, and not left to the refresh thread, as below.
    from flagkit._core.storage.encryption import MongoDataKeys  # noqa: PLC0415

    return MongoDataKeys(
        settings.uri,
        encryption,
        environment=settings.environment,
        database=settings.database,
    )


def _load_mongo_opener(settings: Settings) -> Callable[[], Source]:
    """Return what opens the MongoDB source that settings name; loads the driver."""
    # Deferred, for `import flagkit` loads no driver, yet not left to the refresh thread: a child
    # that is forked while another thread imports finds modules that are never finished.
    from flagkit._core.storage.source import MongoSource  # noqa: PLC0415

    def open_source() -> Source:
        return MongoSource(
            settings.uri,
            environment=settings.environment,
            region=settings.region,
            database=settings.database,
            namespaces=settings.namespaces,
        )

    return open_source
