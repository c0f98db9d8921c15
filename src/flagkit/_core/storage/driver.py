"""Connections to MongoDB, and the one place that translates the driver's errors into flagkit's."""

import contextlib
import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, Self, TypeVar
from urllib.parse import parse_qsl

import pymongo
from bson.errors import InvalidDocument, InvalidStringData
from pymongo import AsyncMongoClient, MongoClient, ReadPreference
from pymongo.client_options import ClientOptions
from pymongo.database import Database
from pymongo.errors import ConfigurationError as DriverConfigurationError
from pymongo.errors import (
    ConnectionFailure,
    ExecutionTimeout,
    InvalidOperation,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
    WriteConcernError,
    WTimeoutError,
)
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from flagkit._core.storage.documents import CODEC
from flagkit._core.storage.layout import Document
from flagkit.errors import (
    ClosedError,
    ConfigurationError,
    InvalidArgumentError,
    StoreError,
    StoreUnavailableError,
    StreamsUnavailableError,
)

OPERATION_MILLISECONDS_MAX: Final = 20_000
AWAIT_MILLISECONDS_MAX: Final = 20_000
"""How long a member holds back an answer without changes, which costs it some 0.4 ms. It proves
nothing, so the driver's patience with a socket is all that it must not exceed."""

_DEFAULTS: Final[dict[str, Any]] = {
    "appname": "flagkit",
    # A second connection for each member, and twice the heartbeats, tell of changes no sooner than
    # the connections that they break.
    "serverMonitoringMode": "poll",
    "serverSelectionTimeoutMS": 3_000,
    "connectTimeoutMS": 3_000,
    # Longer than a change stream's wait, which is the longest silence that is in order.
    "socketTimeoutMS": 30_000,
}
"""The options of a client that the connection string may replace."""
_ALWAYS: Final[dict[str, Any]] = {
    # Dates without a zone would not hash as those that were written, for instance.
    "tz_aware": True,
    "datetime_conversion": "DATETIME",
    "uuidRepresentation": "unspecified",
    "unicode_decode_error_handler": "strict",
}
"""How documents are decoded, whatever the connection string says: it is meant for other readers."""
_LEAST: Final[dict[str, int]] = {
    "socketTimeoutMS": 2_000,
    "timeoutMS": 2_000,
    "serverSelectionTimeoutMS": 1_000,
    "connectTimeoutMS": 1_000,
    "waitQueueTimeoutMS": 1_000,
    # One waits for changes while another asks for the head, one loads, and one reads for a caller.
    "maxPoolSize": 4,
}
"""A lower value would break off what is in order, again and again. 0 stands for no limit."""

_UNAVAILABLE = (ConnectionFailure, ExecutionTimeout, WaitQueueTimeoutError, WTimeoutError)
# Interrupted, stepped down, shut down, timed out, conflicts, snapshots that are too old or not yet
# there: another try will do, and what was asked may have been done.
_PASSING = {
    *(6, 7, 24, 43, 50, 64, 89, 91, 112, 134, 189, 211, 239, 246, 262),
    *(9001, 10107, 11600, 11601, 11602, 13435, 13436),
}
# Not allowed; no such command, option or stage; no replica set.
_NO_STREAMS: Final = {13, 59, 115, 123, 238, 40324, 40415, 40573}
NO_SNAPSHOTS: Final = {9, 59, 72, 115, 123, 40415}
"""The errors of a database without snapshot reads: no such command or option, no replica set."""
NO_REPLICA_SET: Final = (
    "this MongoDB is not a replica set: start mongod with --replSet rs0, and run rs.initiate() once"
)
_PROBLEMS: Final = {
    13: "the user is not allowed to do this: give it a role that flagkit admin init --roles makes",
    18: "the user was not let in: check name, password and authSource",
    121: "the document has not the form that the collection's validator asks for",
    123: NO_REPLICA_SET,
    40573: NO_REPLICA_SET,
}


_NO_TLS: Final = "a server that asks for TLS does that to others: then add tls=true"
_REMEDIES: Final = {
    "connection closed": _NO_TLS,
    "connection is already closed": _NO_TLS,
    "CERTIFICATE_VERIFY_FAILED": "name the authority of its certificate, by tlsCAFile=",
}


def build_driver_settings(uri: str) -> dict[str, Any]:
    """Return the settings of a client for a connection string, whose own come first.

    Except for how documents are decoded, which is always the same, and for limits that are too low
    to work with.
    """
    own = _parse_options(uri)
    defaults = {name: value for name, value in _DEFAULTS.items() if name.lower() not in own}
    raised = {
        name: least
        for name, least in _LEAST.items()
        if 0 < _parse_number(own.get(name.lower())) < least
    }
    return _ALWAYS | defaults | raised


class DriverTimeouts(NamedTuple):
    """How many seconds the driver waits; None stands for no limit.

    `operation` limits a whole operation, if the connection string says so. `selection` limits the
    search for a server, and `answer` the time that a server takes to answer.
    """

    operation: float | None
    selection: float
    answer: float | None


def read_timeouts(uri: str) -> DriverTimeouts:
    """Return how long a client with a connection string and these settings waits."""
    own, settings = _parse_options(uri), build_driver_settings(uri)
    operation, selection, answer = (
        settings[name] if name in settings else _parse_number(own.get(name.lower()))
        for name in ("timeoutMS", "serverSelectionTimeoutMS", "socketTimeoutMS")
    )
    return DriverTimeouts(operation / 1000 or None, selection / 1000, answer / 1000 or None)


def compute_await_milliseconds(options: ClientOptions) -> int:
    """Return how long a change stream may wait for news, with the settings that a client has."""
    limits = [options.timeout, options.pool_options.socket_timeout]
    # Half of it: the answer has to come back in time, too.
    halves = [int(limit * 500) for limit in limits if limit]
    return max(min([AWAIT_MILLISECONDS_MAX, *halves]), 1)


@contextmanager
def translate_settings_errors(uri: str) -> Generator[None]:
    """Raise what is wrong with the settings of a client as a ConfigurationError.

    The driver raises ValueError, TypeError, KeyError or OSError for ports, names and files, besides
    its own.
    Its words repeat parts of the URI, so they are left out where that may hold a password.
    """
    try:
        yield
    except (PyMongoError, ValueError, TypeError, LookupError, OSError) as error:
        problem = "the connection settings make no sense"
        if "@" in uri:
            raise ConfigurationError(
                f"{problem} ({type(error).__name__}): percent-encode user name and password, and"
                " look at hosts and options"
            ) from None
        raise ConfigurationError(f"{problem}: {error}") from error


ClientT = TypeVar("ClientT", MongoClient[Document], AsyncMongoClient[Document])


def connect(uri: str, kind: Callable[..., ClientT]) -> ClientT:
    """Return a client of the driver, such as `MongoClient`, with flagkit's settings.

    Raises:
        ConfigurationError: the connection string makes no sense.
    """
    with translate_settings_errors(uri):
        return kind(uri, **build_driver_settings(uri))


class DatabaseHandle:
    """Connections to one database. Close it, or use it as a context manager.

    Args:
        uri: A connection string of MongoDB.
        database: The name of the database.
        read_preference: Which members answer. It overrides the connection string.

    Raises:
        ConfigurationError: the connection string or the name makes no sense.
    """

    def __init__(
        self, uri: str, database: str, read_preference: Any = ReadPreference.PRIMARY
    ) -> None:
        self._client = connect(uri, MongoClient[Document])
        with translate_settings_errors(uri):
            self._database: Database[Document] = self._client.get_database(
                database,
                CODEC,
                read_concern=ReadConcern("majority"),
                write_concern=WriteConcern("majority"),
                read_preference=read_preference,
            )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def translate_errors(action: str, seconds_max: float | None = None) -> Generator[None]:
    """Raise the driver's errors as flagkit's, saying what was being done.

    With `seconds_max`, what takes longer than that is given up.

    Raises:
        StoreUnavailableError: the database cannot be reached, or broke off.
        StoreError: the database refused.
        InvalidArgumentError: something that was asked for can be in no document.
    """
    try:
        # None leaves what the connection string says.
        with pymongo.timeout(seconds_max) if seconds_max is not None else contextlib.nullcontext():
            yield
    except ServerSelectionTimeoutError as error:
        # What follows names the whole topology, or repeats a reply that differs each time.
        reason = re.split(r", Timeout:|, full error:| \(configured timeouts", str(error))[0]
        raise StoreUnavailableError(
            f"while {action}: no member of the replica set that may serve this answered in time:"
            f" {_append_remedy(reason)}"
        ) from error
    except _UNAVAILABLE as error:
        raise StoreUnavailableError(f"while {action}: {error}") from error
    except OperationFailure as error:
        # A write concern that was not met says nothing of the write itself.
        unsure = error.code in _PASSING or isinstance(error, WriteConcernError)
        kind = StoreUnavailableError if unsure else StoreError
        raise kind(f"while {action}: {describe_server_error(error)}") from error
    except InvalidOperation as error:
        raise ClosedError(f"while {action}: {error}") from error
    except DriverConfigurationError as error:
        # Of a server that starts the driver says that it has no sessions.
        raise StoreUnavailableError(f"while {action}: {error}") from error
    except PyMongoError as error:
        raise StoreError(f"while {action}: {error}") from error
    except (InvalidDocument, InvalidStringData, OverflowError, UnicodeEncodeError) as error:
        # Whatever is read or written was asked for by something that no document can hold. The
        # messages of the driver do not quote it.
        raise InvalidArgumentError(
            f"while {action}: an argument cannot be sent: {error}"
        ) from error


@contextmanager
def translate_stream_errors() -> Generator[None]:
    """Raise what a database without change streams says as a StreamsUnavailableError."""
    try:
        yield
    except OperationFailure as error:
        if error.code not in _NO_STREAMS:
            raise
        raise StreamsUnavailableError(
            "there are no change streams here, so the ledger is asked again and again:"
            f" {describe_server_error(error)}"
        ) from error


def describe_server_error(error: OperationFailure) -> str:
    """Return what the server refused and why, with its code."""
    code = error.code or 0
    # The driver's text repeats the server's whole reply; its own words say enough.
    message = (error.details or {}).get("errmsg") or str(error)
    return f"{_PROBLEMS.get(code, message)} (code {code})"


def _append_remedy(reason: str) -> str:
    remedies = [remedy for sign, remedy in _REMEDIES.items() if sign in reason]
    return "; ".join([reason, *remedies[:1]])


def has_read_preference(uri: str) -> bool:
    """Tell whether a connection string says whom to read from."""
    return "readpreference" in _parse_options(uri)


def _parse_options(uri: str) -> dict[str, str]:
    # Not by urlsplit, whose errors repeat what stands before the host: the password.
    options = uri.partition("?")[2]
    separator = ";" if ";" in options and "&" not in options else "&"
    found = parse_qsl(options, separator=separator)
    return {name.lower(): value for name, value in found}


def _parse_number(text: str | None) -> int:
    """Return a number that is written in a connection string, 0 where it is none."""
    return int(text) if text is not None and text.isdecimal() else 0
