"""Options of a client and of the command, and the environment variables behind them."""

import copy
import math
import os
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeAlias, TypedDict, Unpack, cast

from msgspec import Struct

from flagkit._core.model import EVERYWHERE
from flagkit._core.model.keys import check_region
from flagkit._core.secrets import Encryption, local_encryption
from flagkit.errors import ConfigurationError, InvalidDocumentError

DATABASE = "flagkit"
STALENESS_SECONDS_MIN = 3.0
"""So that the database can be asked, and answer, in between."""
ENVIRONMENT_LENGTH_MAX = 200
_NAMESPACE = re.compile(r"[a-z0-9][a-z0-9._-]{0,199}")
_SERVICE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}")
_DATABASE_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}")


Documents: TypeAlias = Iterable[Mapping[str, Any]]


Bootstrap: TypeAlias = str | os.PathLike[str] | Documents
"""The path of a policy file in JSON or of a snapshot file; or documents of flags."""


class Options(TypedDict, total=False):
    """What a client is told beside its connection string. None is as good as nothing.

    Each falls back on an environment variable: FLAGKIT_ENVIRONMENT, _REGION, _DATABASE,
    _SNAPSHOT_PATH, _NAMESPACES (with commas in between), _MAX_STALENESS_MS, _BOOTSTRAP, _REGISTER;
    `encryption` on FLAGKIT_LOCAL_KEY_PATH, the path of a local master key.

    Attributes:
        environment: Whose flags to serve.
        region: Whose overrides to apply, and whose members of the replica set to read from, by
            their tag `region`; without one, the flags for all regions hold, and any member will do.
        database: Where flagkit's collections are; "flagkit" unless said otherwise.
        snapshot_path: A file to keep the flags in. What it holds is served from the beginning, the
            database being there or not. Processes may share it if they have the same
            environment, region, namespaces and database.
        namespaces: What the keys of flags begin with that are to be kept, such as `checkout.`; all
            flags, if there are none. What they rest on as prerequisites has to be among them.
        max_staleness: Seconds that a snapshot may be older than the database before evaluations
            say STALE, and flags with `when_stale: off` serve `off`; never, unless said otherwise.
        bootstrap: What to serve until flags are there: a policy file in JSON, a snapshot file, or
            documents of flags.
        register: The name of the service, by which its clients appear in the registry, for `flagkit
            status` and `flagkit rollout wait`; they do not, unless it is given.
        encryption: What the values of sensitive variants are encrypted by; without it, callers get
            their defaults in the place of these.
    """

    environment: str | None
    region: str | None
    database: str | None
    snapshot_path: "str | os.PathLike[str] | None"
    namespaces: Collection[str] | None
    max_staleness: float | None
    bootstrap: Bootstrap | None
    register: str | None
    encryption: Encryption | None


class Settings(Struct, frozen=True):
    """Where to read or write, and how. `uri` may hold a password: it is never printed."""

    uri: str
    environment: str
    region: str
    database: str
    snapshot_path: str | None = None
    namespaces: tuple[str, ...] = ()
    max_staleness: float = math.inf
    bootstrap: Bootstrap | None = None
    service: str | None = None
    encryption: Encryption | None = None

    def __repr__(self) -> str:
        return f"Settings({self.environment!r}, {self.region!r}, {self.database!r})"


def resolve_settings(uri: str | None = None, **options: Unpack[Options]) -> Settings:
    """Return settings from arguments, else from variables, FLAGKIT_URI and those of Options.

    Raises:
        ConfigurationError: the URI or the environment is named nowhere, or something is not what
            it should be.
    """
    found, database = resolve_connection(uri, options.get("database"))
    return Settings(
        found,
        check_environment_name(require_value("environment", options.get("environment"))),
        _check_region(options.get("region") or os.environ.get("FLAGKIT_REGION") or EVERYWHERE),
        database,
        _check_path(options.get("snapshot_path") or os.environ.get("FLAGKIT_SNAPSHOT_PATH")),
        _normalize_namespaces(options.get("namespaces")),
        _check_max_staleness(options.get("max_staleness")),
        _copy_bootstrap(options.get("bootstrap") or os.environ.get("FLAGKIT_BOOTSTRAP") or None),
        _check_service(options.get("register") or os.environ.get("FLAGKIT_REGISTER") or None),
        _check_encryption(options.get("encryption")),
    )


def resolve_connection(uri: str | None, database: str | None) -> tuple[str, str]:
    """Return the connection string and the database's name from arguments, else from variables.

    Raises:
        ConfigurationError: the URI is named nowhere, or one of them is not what it should be.
    """
    found = require_value("uri", uri)
    if not found.startswith(("mongodb://", "mongodb+srv://")):
        raise ConfigurationError("uri is no connection string: it begins with mongodb://")
    # It may hold a password, so it is not shown.
    if not found.isprintable() or " " in found:
        raise ConfigurationError(
            "uri has a space, a line's end or another character that nobody sees: take it out, or"
            " percent-encode it. A value from a file or a secret may end in a line's end"
        )
    return found, _check_database(database or os.environ.get("FLAGKIT_DATABASE") or DATABASE)


def check_environment_name(name: object) -> str:
    """Return the name of an environment, if it can be one.

    Raises:
        ConfigurationError: it is no text, is empty or too long, or has whitespace or characters
            that nobody sees.
    """
    if not isinstance(name, str) or not name:
        problem = "empty" if name == "" else f"of the type {type(name).__name__}"
        raise ConfigurationError(f"environment is {problem}: pass the name of an environment")
    if not name.isprintable() or " " in name or len(name) > ENVIRONMENT_LENGTH_MAX:
        raise ConfigurationError(
            f"environment is {name!r}: name it without spaces, lines' ends and characters that"
            f" nobody sees, by at most {ENVIRONMENT_LENGTH_MAX} characters. A value from a file or"
            " a secret may end in a line's end"
        )
    return name


def load_default_encryption() -> Encryption | None:
    """Return the encryption by the master key that FLAGKIT_LOCAL_KEY_PATH names, if it does."""
    path = os.environ.get("FLAGKIT_LOCAL_KEY_PATH")
    return local_encryption(path) if path else None


def should_count() -> bool:
    """Tell whether FLAGKIT_COUNTING asks the default client to count: by 1, true, yes or on."""
    return os.environ.get("FLAGKIT_COUNTING", "").lower() in {"1", "true", "yes", "on"}


def _normalize_namespaces(given: Collection[str] | None) -> tuple[str, ...]:
    """Return them in one form: sorted, and none within another."""
    if given is None:
        given = [name.strip() for name in os.environ.get("FLAGKIT_NAMESPACES", "").split(",")]
        given = [name for name in given if name]
    if isinstance(given, str):
        raise ConfigurationError(f"namespaces is one text: pass a list, such as [{given!r}]")
    names: Any = given
    if not isinstance(names, Iterable) or isinstance(names, bytes | Mapping):
        raise ConfigurationError(f"namespaces is {given!r}: pass a list, such as ['checkout.']")
    names = list(cast("Iterable[object]", names))
    for name in names:
        if not isinstance(name, str) or not _NAMESPACE.fullmatch(name):
            raise ConfigurationError(
                f"the namespace {name!r} is no beginning of a key: write it as in 'checkout.'"
            )
    found: list[str] = []
    for name in sorted(names):
        if not found or not name.startswith(found[-1]):
            found.append(name)
    return tuple(found)


def _check_path(given: object, name: str = "snapshot_path") -> str | None:
    """Return the path of a file as text, None for none."""
    if given is None or given == "":
        return None
    path = os.fspath(cast("os.PathLike[str]", given)) if isinstance(given, os.PathLike) else given
    if not isinstance(path, str):
        raise ConfigurationError(f"{name} is {given!r}: pass the path of a file, as text or a Path")
    if not path.isprintable():
        raise ConfigurationError(
            f"{name} is {path!r}: name a file without lines' ends and characters that nobody sees"
        )
    return path


def _check_encryption(given: object) -> Encryption | None:
    if given is None:
        return load_default_encryption()
    if not isinstance(given, Encryption):
        raise ConfigurationError(
            f"encryption is of the type {type(given).__name__}: pass a flagkit.Encryption"
        )
    return given


def _copy_bootstrap(given: Bootstrap | None) -> Bootstrap | None:
    """Return what is given, documents as a copy: the caller may change its own later."""
    if given is None or isinstance(given, str | os.PathLike):
        return _check_path(given, "bootstrap")
    documents: Any = given
    if not isinstance(documents, Iterable) or isinstance(documents, Mapping | bytes):
        raise ConfigurationError(
            f"bootstrap is of the type {type(given).__name__}: pass the path of a file, or a list"
            " of the documents of flags"
        )
    listed = list(given)
    try:
        return copy.deepcopy(listed)
    except Exception:  # noqa: BLE001 - such as a mappingproxy; whether it is a document is seen later
        return listed


def _check_max_staleness(seconds: object) -> float:
    variable = os.environ.get("FLAGKIT_MAX_STALENESS_MS")
    try:
        found = float(variable) / 1000 if seconds is None and variable else seconds
    except ValueError:
        raise ConfigurationError(
            f"FLAGKIT_MAX_STALENESS_MS is {variable!r}: write milliseconds, such as 60000"
        ) from None
    if found is None:
        return math.inf
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise ConfigurationError(f"max_staleness is {found!r}: pass a number of seconds")
    if not found >= STALENESS_SECONDS_MIN:
        raise ConfigurationError(
            f"max_staleness is {found} s: the database is asked once a second at most, so use"
            f" {STALENESS_SECONDS_MIN} s or more"
        )
    return found


def _check_database(name: object) -> str:
    if not isinstance(name, str) or not _DATABASE_NAME.fullmatch(name):
        raise ConfigurationError(
            f"database {name!r} is no name that MongoDB allows: use letters, digits, - and _"
        )
    return name


def _check_service(name: object) -> str | None:
    if name is None:
        return None
    if not isinstance(name, str) or not _SERVICE_NAME.fullmatch(name):
        raise ConfigurationError(
            f"register is {name!r}: name the service by letters, digits, -, _, . and /, 100 at most"
        )
    return name


def _check_region(region: str) -> str:
    try:
        return check_region(region)
    except InvalidDocumentError as error:
        raise ConfigurationError(str(error)) from None


def require_value(name: str, value: object) -> str:
    """Return a value, else that of the variable of its name.

    Raises:
        ConfigurationError: there is neither.
    """
    variable = f"FLAGKIT_{name.upper()}"
    found = value or os.environ.get(variable)
    if not found:
        raise ConfigurationError(
            f"{name} is missing: pass {name}=, or --{name} to the command, or set {variable}"
        )
    if not isinstance(found, str):
        raise ConfigurationError(f"{name} is of the type {type(found).__name__}: pass text")
    return found
