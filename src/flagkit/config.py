"""Options of a client and of the command, and the environment variables behind them."""

import copy
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final, TypeAlias, TypedDict, Unpack, cast

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


def _check_uri(uri: str) -> str:
    if not uri.startswith(("mongodb://", "mongodb+srv://")):
        raise ConfigurationError("uri is no connection string: it begins with mongodb://")
    # It may hold a password, so it is not shown.
    if not uri.isprintable() or " " in uri:
        raise ConfigurationError(
            "uri has a space, a line's end or another character that nobody sees: take it out, or"
            " percent-encode it. A value from a file or a secret may end in a line's end"
        )
    return uri


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


def _normalize_namespaces(given: object) -> tuple[str, ...]:
    """Return namespaces in one form: sorted, and none within another."""
    if isinstance(given, str):
        raise ConfigurationError(f"namespaces is one text: pass a list, such as [{given!r}]")
    if not isinstance(given, Iterable) or isinstance(given, bytes | Mapping):
        raise ConfigurationError(f"namespaces is {given!r}: pass a list, such as ['checkout.']")
    names: Any = list(cast("Iterable[object]", given))
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


def _check_path(given: object, name: str = "snapshot_path") -> str:
    """Return the path of a file as text."""
    path = os.fspath(cast("os.PathLike[str]", given)) if isinstance(given, os.PathLike) else given
    if not isinstance(path, str):
        raise ConfigurationError(f"{name} is {given!r}: pass the path of a file, as text or a Path")
    if not path.isprintable():
        raise ConfigurationError(
            f"{name} is {path!r}: name a file without lines' ends and characters that nobody sees"
        )
    return path


def _check_encryption(given: object) -> Encryption:
    if not isinstance(given, Encryption):
        raise ConfigurationError(
            f"encryption is of the type {type(given).__name__}: pass a flagkit.Encryption"
        )
    return given


def _copy_bootstrap(given: Bootstrap) -> Bootstrap:
    """Return a path as text, and documents as a copy: the caller may change its own later."""
    if isinstance(given, str | os.PathLike):
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


def _parse_milliseconds(variable: str) -> float:
    try:
        return float(variable) / 1000
    except ValueError:
        raise ConfigurationError(
            f"FLAGKIT_MAX_STALENESS_MS is {variable!r}: write milliseconds, such as 60000"
        ) from None


def _check_max_staleness(found: object) -> float:
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


def _check_service(name: object) -> str:
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


class Option(Struct, frozen=True):
    """One option: the variable behind it, and the check of its value.

    `parse` reads the variable, where its text is not what a caller passes. Such an option falls
    back on the variable if the argument is None. The others do so if the argument is empty.
    """

    variable: str
    check: Callable[[Any], Any]
    description: str
    parse: Callable[[str], Any] | None = None
    is_required: bool = False


OPTIONS: Final[Mapping[str, Option]] = {
    "uri": Option(
        "FLAGKIT_URI",
        _check_uri,
        "The connection string. A `readPreference` in it says which members are near.",
        is_required=True,
    ),
    "environment": Option(
        "FLAGKIT_ENVIRONMENT",
        check_environment_name,
        "The environment to serve.",
        is_required=True,
    ),
    "region": Option(
        "FLAGKIT_REGION",
        _check_region,
        "The region whose overrides apply. Reads prefer members with this tag `region`. Without a"
        " region, the flags for all regions apply, and any member will do.",
    ),
    "database": Option(
        "FLAGKIT_DATABASE", _check_database, "The database of flagkit's collections."
    ),
    "snapshot_path": Option(
        "FLAGKIT_SNAPSHOT_PATH",
        _check_path,
        "A file that keeps the flags. The client serves it from the start, even without a"
        " database. Processes of the same environment, region, namespaces and database may"
        " share it.",
    ),
    "namespaces": Option(
        "FLAGKIT_NAMESPACES",
        _normalize_namespaces,
        "Keep only flags whose keys begin so, such as `checkout.`. Their prerequisites must be"
        " among them. The variable separates them by commas.",
        lambda text: [name.strip() for name in text.split(",") if name.strip()],
    ),
    "max_staleness": Option(
        "FLAGKIT_MAX_STALENESS_MS",
        _check_max_staleness,
        "The age in seconds from which evaluations say STALE, and flags with `when_stale: off`"
        " serve `off`. The variable has milliseconds.",
        _parse_milliseconds,
    ),
    "bootstrap": Option(
        "FLAGKIT_BOOTSTRAP",
        _copy_bootstrap,
        "The flags to serve until others arrive: the path of a policy file in JSON or of a snapshot"
        " file, or documents of flags.",
    ),
    "encryption": Option(
        "FLAGKIT_LOCAL_KEY_PATH",
        _check_encryption,
        "The encryption of sensitive variants. Without it, callers get their defaults for these."
        " The variable has the path of a local master key.",
        local_encryption,
    ),
    "register": Option(
        "FLAGKIT_REGISTER",
        _check_service,
        "The name of the service. Its clients appear in the registry under this name, for `flagkit"
        " status` and `flagkit rollout wait`.",
    ),
}
"""The options by name, in the order in which they are checked."""


class Settings(Struct, frozen=True):
    """The checked options. `uri` may hold a password: it is never printed."""

    uri: str
    environment: str
    region: str = EVERYWHERE
    database: str = DATABASE
    snapshot_path: str | None = None
    namespaces: tuple[str, ...] = ()
    max_staleness: float = math.inf
    bootstrap: Bootstrap | None = None
    encryption: Encryption | None = None
    register: str | None = None

    def __repr__(self) -> str:
        return f"Settings({self.environment!r}, {self.region!r}, {self.database!r})"


class Options(TypedDict, total=False):
    """The options of a client, for type checkers. None is the same as no option.

    `OPTIONS` has their variables and descriptions, and `help()` shows these here.
    """

    environment: str | None
    region: str | None
    database: str | None
    snapshot_path: "str | os.PathLike[str] | None"
    namespaces: Collection[str] | None
    max_staleness: float | None
    bootstrap: Bootstrap | None
    encryption: Encryption | None
    register: str | None


Options.__doc__ = f"{Options.__doc__}\n" + "\n".join(
    f"    - `{name}`, or {option.variable}: {option.description}"
    for name, option in OPTIONS.items()
)


def resolve_settings(uri: str | None = None, **options: Unpack[Options]) -> Settings:
    """Return the settings from arguments, or else from the variables of `OPTIONS`.

    Raises:
        ConfigurationError: the URI or the environment is missing, or a value is invalid.
    """
    given: dict[str, Any] = {"uri": uri, **options}
    found = {name: _resolve_option(name, given.get(name)) for name in OPTIONS}
    return Settings(**{name: value for name, value in found.items() if value is not None})


def resolve_connection(uri: str | None, database: str | None) -> tuple[str, str]:
    """Return the connection string and the database's name from arguments, else from variables.

    Raises:
        ConfigurationError: the URI is missing, or a value is invalid.
    """
    return _resolve_option("uri", uri), _resolve_option("database", database) or DATABASE


def _resolve_option(name: str, given: Any) -> Any:
    """Return the checked argument, or else the checked variable; None if there is neither."""
    option = OPTIONS[name]
    text = os.environ.get(option.variable)
    if option.is_required:
        given = require_value(name, given)
    elif option.parse is None:
        given = given or text or None
    elif given is None and text:
        given = option.parse(text)
    return None if given is None else option.check(given)


def should_count() -> bool:
    """Tell whether FLAGKIT_COUNTING asks the default client to count: by 1, true, yes or on."""
    return os.environ.get("FLAGKIT_COUNTING", "").lower() in {"1", "true", "yes", "on"}
