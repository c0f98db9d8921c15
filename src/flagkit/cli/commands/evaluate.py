"""`flagkit eval` and `flagkit replay`: evaluate a flag, now or then, and check an answer.

Both commands only read.
"""

from datetime import UTC, datetime
from typing import Any, Unpack

import click
import msgspec

from flagkit._core.evaluation.result import ErrorCode
from flagkit._core.model import EVERYWHERE
from flagkit._core.suggestions import suggested
from flagkit.cli.errors import FAULTS_FOUND
from flagkit.cli.options import (
    Place,
    Who,
    context_from,
    context_options,
    database_option,
    place_options,
    store_at,
    uri_option,
    value_of,
)
from flagkit.cli.output import PROGRAMS, emit, output_option, say
from flagkit.errors import InvalidDocumentError
from flagkit.history import Replayed, client_at, replay


class _Question(Place, Who):
    """What the options of `eval` say."""

    region: str | None
    at: datetime | int | None
    default: Any
    explain: bool


def _at(_context: object, _parameter: object, text: str | None) -> datetime | int | None:
    if text is None:
        return None
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is no moment and no revision: write it like 2026-11-21T10:32Z, or 17"
        ) from None
    if moment.utcoffset() is None:
        raise click.BadParameter(
            f"{text!r} has no time zone: write {moment.isoformat()}Z if it is UTC"
        )
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise click.BadParameter(f"{text!r} is beyond all dates in UTC") from None


def _default(_context: object, _parameter: object, text: str | None) -> Any:
    try:
        return None if text is None else value_of(text)
    except InvalidDocumentError as error:
        raise click.BadParameter(f"{error.problem}. {error.remedy}") from None


@click.command("eval")
@click.argument("key")
@place_options
@click.option("--region", help="Whose overrides apply; by default FLAGKIT_REGION, or nobody's.")
@context_options
@click.option(
    "--at",
    metavar="WHEN",
    callback=_at,
    help="A moment, such as 2026-11-21T10:32Z, or a revision; by default now.",
)
@click.option(
    "--default", metavar="VALUE", callback=_default, help="The caller's default, as JSON or text."
)
@click.option("--explain", is_flag=True, help="Show all that led to the answer.")
@output_option("text")
def evaluate(key: str, output: str, **asked: Unpack[_Question]) -> None:
    """Tell what a flag answers, and why; now, or as it was.

    At a moment it is the last revision that was not later; windows and ramps are as of then. The
    database is read, once. Exits with 1 if there is no good answer, such as for an unknown flag.
    """
    client = client_at(
        asked["uri"],
        asked["environment"],
        at=asked["at"],
        region=asked["region"],
        database=asked["database"],
    )
    found = client.explain(key, context_from(asked), asked["default"])
    explain = asked["explain"]
    told = found if explain else msgspec.structs.replace(found, flags=())
    if output in PROGRAMS:
        document = told.as_dict()
        flags = {"flags": document["flags"]} if explain else {}
        emit({**document["evaluation"], "time": document["time"], **flags}, output)
    else:
        say(*str(told).split("\n"))
    if found.evaluation.error_code is not None:
        sentence = f"{found.evaluation.error_code}: the answer is the default"
        if found.evaluation.error_code is ErrorCode.FLAG_NOT_FOUND:
            with store_at(**_place_of(asked)) as store, store.reading() as reading:
                sentence = suggested(sentence, key, reading.keys_near((EVERYWHERE, key)))
        raise click.ClickException(sentence)


def _place_of(asked: _Question) -> Place:
    return Place(uri=asked["uri"], environment=asked["environment"], database=asked["database"])


@click.command("replay")
@click.argument("digest")
@uri_option
@database_option
@context_options
@output_option("text")
def replay_digest(
    digest: str, output: str, uri: str | None, database: str | None, **who: Unpack[Who]
) -> None:
    """Evaluate again what a digest is of, as of then, and say what differs.

    The context has to be the same, with all its attributes. A digest that was made with a secret
    takes the same in FLAGKIT_DIGEST_SECRET. Exits with 3 if something differs.
    """
    found = replay(uri, digest, context_from(who), database=database)
    if output in PROGRAMS:
        document = {"is_same": found.is_same, **msgspec.to_builtins(found)}
        emit(document, output)
    else:
        say(*_told(found))
    if not found.is_same:
        raise SystemExit(FAULTS_FOUND)


def _told(found: Replayed) -> list[str]:
    served = "the caller's default" if found.variant is None else repr(found.variant)
    where = f"at revision {found.revision} of {found.environment}, {found.time.isoformat()}"
    said = f"{found.key} was {served} {where}"
    if found.is_same:
        return [f"{said}: so it is"]
    return [f"{said}, says the digest, but:", *(f"  {line}" for line in found.differences)]
