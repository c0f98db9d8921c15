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
    ContextOptions,
    EnvironmentOptions,
    context_options,
    database_option,
    environment_options,
    load_context,
    open_store,
    parse_value,
    uri_option,
)
from flagkit.cli.output import PROGRAM_FORMATS, emit, output_option, print_lines
from flagkit.errors import InvalidDocumentError
from flagkit.history import ReplayResult, client_at, replay


class _EvaluateOptions(EnvironmentOptions, ContextOptions):
    """The options of `eval`."""

    region: str | None
    at: datetime | int | None
    default: Any
    explain: bool


def _parse_moment(_context: object, _parameter: object, text: str | None) -> datetime | int | None:
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


def _parse_default(_context: object, _parameter: object, text: str | None) -> Any:
    try:
        return None if text is None else parse_value(text)
    except InvalidDocumentError as error:
        raise click.BadParameter(f"{error.problem}. {error.remedy}") from None


@click.command("eval")
@click.argument("key")
@environment_options
@click.option("--region", help="Whose overrides apply; by default FLAGKIT_REGION, or nobody's.")
@context_options
@click.option(
    "--at",
    metavar="WHEN",
    callback=_parse_moment,
    help="A moment, such as 2026-11-21T10:32Z, or a revision; by default now.",
)
@click.option(
    "--default",
    metavar="VALUE",
    callback=_parse_default,
    help="The caller's default, as JSON or text.",
)
@click.option("--explain", is_flag=True, help="Show all that led to the answer.")
@output_option("text")
def evaluate(key: str, output: str, **asked: Unpack[_EvaluateOptions]) -> None:
    """Show the answer of a flag and the reason, now or at a moment in the past.

    At a moment, the last revision up to it answers; windows and ramps are as of then. The command
    reads the database once. It exits with 1 if the answer is an error, as for an unknown flag.
    """
    client = client_at(
        asked["uri"],
        asked["environment"],
        at=asked["at"],
        region=asked["region"],
        database=asked["database"],
    )
    found = client.explain(key, load_context(asked), asked["default"])
    explain = asked["explain"]
    shown = found if explain else msgspec.structs.replace(found, flags=())
    if output in PROGRAM_FORMATS:
        document = shown.as_dict()
        flags = {"flags": document["flags"]} if explain else {}
        emit({**document["evaluation"], "time": document["time"], **flags}, output)
    else:
        print_lines(*str(shown).split("\n"))
    if found.evaluation.error_code is not None:
        sentence = f"{found.evaluation.error_code}: the answer is the default"
        if found.evaluation.error_code is ErrorCode.FLAG_NOT_FOUND:
            with (
                open_store(**_select_environment_options(asked)) as store,
                store.open_reader() as reading,
            ):
                sentence = suggested(sentence, key, reading.find_similar_keys((EVERYWHERE, key)))
        raise click.ClickException(sentence)


def _select_environment_options(options: _EvaluateOptions) -> EnvironmentOptions:
    return EnvironmentOptions(
        uri=options["uri"], environment=options["environment"], database=options["database"]
    )


@click.command("replay")
@click.argument("digest")
@uri_option
@database_option
@context_options
@output_option("text")
def replay_digest(
    digest: str, output: str, uri: str | None, database: str | None, **who: Unpack[ContextOptions]
) -> None:
    """Repeat the evaluation of a digest, as of then, and show the differences.

    The context must be the same, with all its attributes. A digest that was made with a secret
    requires the same one in FLAGKIT_DIGEST_SECRET. The command exits with 3 if something differs.
    """
    found = replay(uri, digest, load_context(who), database=database)
    if output in PROGRAM_FORMATS:
        document = {"is_same": found.is_same, **msgspec.to_builtins(found)}
        emit(document, output)
    else:
        print_lines(*_format_replay(found))
    if not found.is_same:
        raise SystemExit(FAULTS_FOUND)


def _format_replay(replayed: ReplayResult) -> list[str]:
    served = "the caller's default" if replayed.variant is None else repr(replayed.variant)
    where = (
        f"at revision {replayed.revision} of {replayed.environment}, {replayed.time.isoformat()}"
    )
    summary = f"{replayed.key} was {served} {where}"
    if replayed.is_same:
        return [f"{summary}: so it is"]
    return [f"{summary}, says the digest, but:", *(f"  {line}" for line in replayed.differences)]
