"""The driver's settings, and the one place where its errors become flagkit's."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from pymongo.errors import (
    ConfigurationError as DriverConfigurationError,
)
from pymongo.errors import (
    ConnectionFailure,
    ExecutionTimeout,
    InvalidOperation,
    InvalidURI,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
    WTimeoutError,
)

from flagkit.errors import ClosedError, ConfigurationError, StoreError, StoreUnavailableError

OPERATION_MILLISECONDS_MAX: Final = 20_000
_SETTINGS: Final[dict[str, Any]] = {
    "tz_aware": True,
    "appname": "flagkit",
    "serverSelectionTimeoutMS": 3_000,
    "connectTimeoutMS": 3_000,
    # Longer than a change stream's wait, which is the longest silence that is in order.
    "socketTimeoutMS": 30_000,
}

_UNAVAILABLE = (ConnectionFailure, ExecutionTimeout, WaitQueueTimeoutError, WTimeoutError)
# SnapshotTooOld, SnapshotUnavailable (a collection made a moment ago): another try will do.
_PASSING = {239, 246}
NO_REPLICA_SET: Final = (
    "this MongoDB is not a replica set: start mongod with --replSet rs0, and run rs.initiate() once"
)
_PROBLEMS: Final = {
    13: "the user is not allowed to do this",
    18: "the user was not let in",
    123: NO_REPLICA_SET,
    40573: NO_REPLICA_SET,
}


def settings_for(uri: str) -> dict[str, Any]:
    """Return the settings of a client for a connection string, whose own come first."""
    own = {name.lower() for name, _ in parse_qsl(urlsplit(uri).query)}
    return {name: value for name, value in _SETTINGS.items() if name.lower() not in own}


@contextmanager
def translated(doing: str) -> Generator[None]:
    """Raise the driver's errors as flagkit's, saying what was being done.

    Raises:
        ConfigurationError: the connection string makes no sense.
        StoreUnavailableError: the database cannot be reached, or broke off.
        StoreError: the database refused.
    """
    try:
        yield
    except (InvalidURI, DriverConfigurationError) as error:
        raise ConfigurationError(f"while {doing}: {error}") from error
    except ServerSelectionTimeoutError as error:
        reason = str(error).partition(", Timeout:")[0].partition(" (configured timeouts")[0]
        raise StoreUnavailableError(
            f"while {doing}: no member of the replica set that may serve this answered in time:"
            f" {reason}"
        ) from error
    except _UNAVAILABLE as error:
        raise StoreUnavailableError(f"while {doing}: {error}") from error
    except OperationFailure as error:
        code = error.code or 0
        # The driver's text repeats the server's whole reply; its own words say enough.
        said = (error.details or {}).get("errmsg") or str(error)
        problem = _PROBLEMS.get(code, said)
        kind = StoreUnavailableError if code in _PASSING else StoreError
        raise kind(f"while {doing}: {problem} (code {code})") from error
    except InvalidOperation as error:
        raise ClosedError(f"while {doing}: {error}") from error
    except PyMongoError as error:
        raise StoreError(f"while {doing}: {error}") from error
