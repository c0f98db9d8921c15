"""Origin: where a client's flags come from, and what serves in the beginning."""

import functools
import math
import time
from collections.abc import Callable
from typing import NamedTuple

from flagkit.background import Log
from flagkit.bootstrap import bootstrap_snapshot
from flagkit.core.freshness import Freshness
from flagkit.encryption import DataKeys, Encryption
from flagkit.errors import SnapshotFormatError
from flagkit.refresh import Source
from flagkit.settings import Settings
from flagkit.snapshot import Snapshot, SnapshotFile
from flagkit.unsealing import Unsealing
from flagkit.view import View

_log = Log("flagkit")


class Origin(NamedTuple):
    """Where a client's flags come from, how old they may be, and the service that it registers for.

    `opener` loads, and returns what opens the source. `bootstrap` is served until there is more.
    `keys` makes what decrypts sensitive values, if something does. `settings` are those that name
    the origin, None where none do: origins of equal settings are the same.
    """

    opener: Callable[[], Callable[[], Source]] | None = None
    file: SnapshotFile | None = None
    bootstrap: Snapshot | None = None
    max_staleness: float = math.inf
    service: str | None = None
    keys: Callable[[], DataKeys] | None = None
    settings: Settings | None = None


def origin_of(settings: Settings) -> Origin:
    """Return the origin that settings name, in MongoDB."""
    path = settings.snapshot_path
    environment, region = settings.environment, settings.region
    file = None if path is None else SnapshotFile(path, environment, region, settings.namespaces)
    bootstrap = settings.bootstrap
    return Origin(
        functools.partial(_mongo_opener, settings),
        file,
        None if bootstrap is None else bootstrap_snapshot(bootstrap, environment, region),
        settings.max_staleness,
        settings.service,
        _keys_of(settings),
        settings,
    )


def unsealing_of(settings: Settings) -> Unsealing:
    """Return what opens sensitive values with the keys that settings name, unfetched."""
    return Unsealing(_keys_of(settings))


def _keys_of(settings: Settings) -> Callable[[], DataKeys] | None:
    encryption = settings.encryption
    return None if encryption is None else functools.partial(_mongo_keys, settings, encryption)


def first_view(origin: Origin, freshness: Freshness, unsealing: Unsealing) -> View | None:
    """Return a view of what there is in the beginning: what the file holds comes first."""
    snapshot = None if origin.file is None else _kept(origin.file)
    if snapshot is None:
        snapshot = origin.bootstrap
    return None if snapshot is None else View(snapshot, time.time, freshness, unsealing)


def _kept(file: SnapshotFile) -> Snapshot | None:
    """Return what a file holds, None where it is of no use, which is said."""
    try:
        return file.read()
    except (OSError, SnapshotFormatError) as error:
        foreign = file.foreign()
        if foreign is None:
            _log.warning("the snapshot file %s is not served: %s", file.path, error)
        else:
            file.trouble = file.left_alone(foreign)
            _log.warning("%s", file.trouble)
        return None


def _mongo_keys(settings: Settings, encryption: Encryption) -> DataKeys:
    """Return the data keys of an environment in MongoDB; loads the driver and its cryptography."""
    # Deferred, and not left to the refresh thread, as below.
    from flagkit.storage.encryption import MongoDataKeys  # noqa: PLC0415

    return MongoDataKeys(
        settings.uri,
        encryption,
        environment=settings.environment,
        database=settings.database,
    )


def _mongo_opener(settings: Settings) -> Callable[[], Source]:
    """Return what opens the MongoDB source that settings name; loads the driver."""
    # Deferred, for `import flagkit` loads no driver, yet not left to the refresh thread: a child
    # that is forked while another thread imports finds modules that are never finished.
    from flagkit.storage.source import MongoSource  # noqa: PLC0415

    def open_source() -> Source:
        return MongoSource(
            settings.uri,
            environment=settings.environment,
            region=settings.region,
            database=settings.database,
            namespaces=settings.namespaces,
        )

    return open_source
