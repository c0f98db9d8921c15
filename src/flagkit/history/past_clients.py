"""Past clients: an environment as it was, read once; nothing runs, listens or refreshes."""

import contextlib
from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime

from flagkit.client import Client
from flagkit.encryption import Encryption
from flagkit.origin import unsealing_of
from flagkit.settings import Settings, settings_from
from flagkit.storage.reading import Reading
from flagkit.storage.rebuilding import as_of
from flagkit.storage.store import Store


def client_at(
    uri: str | None = None,
    environment: str | None = None,
    *,
    at: datetime | int | None = None,
    region: str | None = None,
    database: str | None = None,
    encryption: Encryption | None = None,
) -> Client:
    """Return a client that evaluates as an environment was, with the clock of that moment.

    Flags, segments and prerequisites are of one revision. Windows, ramps, and `valid_until` of
    evaluations are as of the moment. The connection is closed by the time that this returns. What
    is not given is taken from the environment variables of flagkit.settings.Options.

    Args:
        uri: A MongoDB connection string of a replica set.
        environment: Whose flags.
        at: A moment, with a time zone: the last revision that was not later, by the server's time,
            and the clock at that moment. Or a revision: the clock is at its own time. Without it,
            the newest revision, and the server's time of now.
        region: Whose overrides to apply.
        database: Where flagkit's collections are.
        encryption: What the values of sensitive variants are encrypted by; where it is of no use,
            that is logged, and callers get their defaults for these.

    Raises:
        ConfigurationError: an argument makes no sense; a moment without a time zone, or still to
            come, does not.
        EnvironmentNotFoundError: there is no such environment.
        RevisionNotFoundError: there is no such revision, or none was made by then.
        HistoryLostError: the ledger does not reach back so far, or something of then was altered,
            or is not there any more.
        StoreError: the database did not answer, or refused.
    """
    settings = settings_from(
        uri, environment=environment, region=region, database=database, encryption=encryption
    )
    with reading_of(settings) as reading:
        snapshot, moment = as_of(reading, at, settings.region)
    seconds = moment.timestamp()
    unsealing = unsealing_of(settings)
    unsealing.fetch_or_say()
    return Client.from_snapshot(snapshot, lambda: seconds, unsealing)


@contextmanager
def reading_of(settings: Settings) -> "Generator[Reading]":
    """Give a reading of an environment, for the block."""
    store = Store(settings.uri, environment=settings.environment, database=settings.database)
    with contextlib.closing(store), store.reading() as reading:
        yield reading
