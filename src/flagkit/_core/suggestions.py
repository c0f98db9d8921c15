"""Suggestions: the existing names that are near to a mistyped one, for the messages of errors."""

import difflib
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from flagkit.errors import EnvironmentNotFoundError

NAME_LENGTH_MAX: Final = 200
"""Longer names are left out: to compare two texts takes the product of their lengths."""
SUGGESTED_MAX: Final = 3
ENVIRONMENTS_LISTED_MAX: Final = 10
_SIMILARITY_MIN: Final = 0.7
_SIMILARITY_RANGE: Final = 0.1
"""A name that is less similar than the nearest one by more than this is not suggested."""
_BEGINNING_LENGTH_MIN: Final = 2


def suggested(sentence: str, name: object, names: Iterable[str]) -> str:
    """Return a sentence without its full stop, followed by the names that are similar to a name.

    If no name is similar, or if the name itself is among them, the sentence stays as it is.

    Example:
        >>> suggested("There is no flag 'shop.serch'", "shop.serch", ["shop.search", "shop.top"])
        "There is no flag 'shop.serch'. Did you mean 'shop.search'?"
    """
    found = nearest(name, names)
    return f"{sentence}. Did you mean {' or '.join(map(repr, found))}?" if found else sentence


def environment_not_found(
    environment: str, database: str, known: Collection[str]
) -> EnvironmentNotFoundError:
    """Return the error for an environment that a database does not have.

    The message gives the advice to create the environment only if none is near that it could mean.

    Args:
        environment: The name that was asked for.
        database: The name of the database.
        known: The names of the environments that the database has.
    """
    problem = f"the environment {environment!r} is not in the database {database!r}"
    create = "with Writer.create_environment(), or flagkit admin init --environment"
    if not known:
        return EnvironmentNotFoundError(f"{problem}, which has none yet: create it once {create}")
    if nearest(environment, known):
        return EnvironmentNotFoundError(suggested(problem, environment, known))
    names = sorted(known)
    listed = ", ".join(repr(name[:NAME_LENGTH_MAX]) for name in names[:ENVIRONMENTS_LISTED_MAX])
    more = len(names) - ENVIRONMENTS_LISTED_MAX
    others = f" and {more:,} more" if more > 0 else ""
    return EnvironmentNotFoundError(
        f"{problem}, which has {listed}{others}: check the name. A new one is created {create}"
    )


def nearest(name: object, names: Iterable[str]) -> list[str]:
    """Return the names that are near to a name, the nearest first, SUGGESTED_MAX at most.

    Near are names with few other characters, in upper or lower case. So are names that go on where
    the given name ends, and keys that have a namespace before the given name. If the name itself is
    among them, it is not mistyped, and none is near.
    """
    if not isinstance(name, str) or not 0 < len(name) <= NAME_LENGTH_MAX:
        return []
    wanted = name.casefold()
    known: dict[str, str] = {}
    for each in names:
        if each == name:
            return []
        if len(each) <= NAME_LENGTH_MAX:
            known.setdefault(each.casefold(), each)
    near = difflib.get_close_matches(wanted, known, SUGGESTED_MAX, _SIMILARITY_MIN)
    longer = (
        sorted(each for each in known if each.startswith(wanted) or each.endswith(f".{wanted}"))
        if len(wanted) >= _BEGINNING_LENGTH_MIN
        else []
    )
    return [known[each] for each in dict.fromkeys([*_best(wanted, near), *longer])][:SUGGESTED_MAX]


def _best(wanted: str, near: Sequence[str]) -> list[str]:
    """Return those of some names, the nearest first, that are about as near as the first."""
    scores = [difflib.SequenceMatcher(None, each, wanted).ratio() for each in near]
    return [
        each
        for each, score in zip(near, scores, strict=True)
        if score >= scores[0] - _SIMILARITY_RANGE
    ]
