"""Versions: precedence of semantic versions, as keys that compare as the versions do.

Source: Semantic Versioning 2.0.0 (https://semver.org), items 9 to 11.
"""

import functools
import re
from typing import TypeAlias

VersionKey: TypeAlias = tuple[object, ...]

LENGTH_MAX = 256
_NUMBER = "(?:0|[1-9][0-9]*)"
_PRERELEASE = f"(?:{_NUMBER}|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
VERSION = re.compile(
    rf"({_NUMBER})\.({_NUMBER})\.({_NUMBER})"
    rf"(?:-({_PRERELEASE}(?:\.{_PRERELEASE})*))?"
    r"(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?"
)


def version_key(text: str) -> VersionKey | None:
    """Return the key of a version, None for what is none, such as "1.0" or "v1.0.0".

    A release comes after its prereleases, numeric identifiers before others, and build metadata
    does not count.
    """
    # Judged before the memo is asked: it must not keep strings of any length.
    return _key_of(text) if len(text) <= LENGTH_MAX else None


@functools.lru_cache(4096)
def _key_of(text: str) -> VersionKey | None:
    found = VERSION.fullmatch(text)
    if found is None:
        return None
    major, minor, patch, prerelease = found.groups()
    core = (int(major), int(minor), int(patch))
    if prerelease is None:
        return (*core, 1)
    identifiers = prerelease.split(".")
    # A digits-only identifier is a number and comes before one that is not.
    return (*core, 0, *((0, int(i), "") if i.isdigit() else (1, 0, i) for i in identifiers))
