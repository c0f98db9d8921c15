"""Settings: which database, environment and region: argument, else variable, else default."""

import os
import re

from msgspec import Struct

from flagkit.errors import ConfigurationError, InvalidDocumentError
from flagkit.model import EVERYWHERE
from flagkit.model.keys import check_region

DATABASE = "flagkit"
_DATABASE_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}")


class Settings(Struct, frozen=True):
    """Where to read or write. `uri` may hold a password: it is never printed."""

    uri: str
    environment: str
    region: str
    database: str
    snapshot_path: str | None = None

    def __repr__(self) -> str:
        return f"Settings({self.environment!r}, {self.region!r}, {self.database!r})"


def settings_from(
    uri: str | None = None,
    *,
    environment: str | None = None,
    region: str | None = None,
    database: str | None = None,
    snapshot_path: "str | os.PathLike[str] | None" = None,
) -> Settings:
    """Return settings from arguments, else from variables.

    These are FLAGKIT_URI, _ENVIRONMENT, _REGION, _DATABASE and _SNAPSHOT_PATH.

    Raises:
        ConfigurationError: the URI or the environment is named nowhere, or something is not what
            it should be.
    """
    found = _required("uri", uri)
    if not found.startswith(("mongodb://", "mongodb+srv://")):
        raise ConfigurationError("uri is no connection string: it begins with mongodb://")
    return Settings(
        found,
        _required("environment", environment),
        _region(region or os.environ.get("FLAGKIT_REGION") or EVERYWHERE),
        _database(database or os.environ.get("FLAGKIT_DATABASE") or DATABASE),
        os.fspath(snapshot_path or os.environ.get("FLAGKIT_SNAPSHOT_PATH") or "") or None,
    )


def counts_by_default() -> bool:
    """Tell whether FLAGKIT_COUNTING asks the default client to count: by 1, true, yes or on."""
    return os.environ.get("FLAGKIT_COUNTING", "").lower() in {"1", "true", "yes", "on"}


def _database(name: str) -> str:
    if not _DATABASE_NAME.fullmatch(name):
        raise ConfigurationError(
            f"database {name!r} is no name that MongoDB allows: use letters, digits, - and _"
        )
    return name


def _region(region: str) -> str:
    try:
        return check_region(region)
    except InvalidDocumentError as error:
        raise ConfigurationError(str(error)) from None


def _required(name: str, value: str | None) -> str:
    variable = f"FLAGKIT_{name.upper()}"
    found = value or os.environ.get(variable)
    if not found:
        raise ConfigurationError(f"{name} is missing: pass {name}=, or set {variable}")
    return found
