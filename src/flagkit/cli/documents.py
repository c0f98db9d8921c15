"""Documents: the policies of a file that a command is to write; what it leaves alone is said."""

from collections.abc import Sequence
from pathlib import Path

from flagkit.cli.policy_files import PolicyFile
from flagkit.cli.telling import say
from flagkit.errors import InvalidDocumentError
from flagkit.settings import required


def flags_in(file: Path, environment: str | None) -> PolicyFile:
    """Return a file that has flags for an environment.

    Raises:
        ConfigurationError, InvalidDocumentError: as PolicyFile does; or it has no flags.
    """
    found = PolicyFile(file, required("environment", environment))
    _check(found.policies, file, "flag", others=len(found.segments))
    return found


def segments_in(file: Path, environment: str | None) -> PolicyFile:
    """Return a file that has segments for an environment; for errors see `flags_in`."""
    found = PolicyFile(file, required("environment", environment))
    _check(found.segments, file, "segment", others=len(found.policies))
    return found


def _check(wanted: Sequence[object], file: Path, kind: str, *, others: int) -> None:
    other = {"flag": "segment", "segment": "flag"}[kind]
    if not wanted:
        also = f"; `flagkit {other}s` takes the {other}s in it" if others else ""
        raise InvalidDocumentError(
            f"{kind}s", "has none", f"Write {kind}s to it{also}", subject=str(file)
        )
    if others:
        say(f"{file}: {other}s are left alone: `flagkit {other}s` takes them", err=True)
