"""`flagkit ledger`: show who changed what and why, and verify the ledger.

All its commands only read.
"""

import contextlib
import itertools
import json
import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar, Unpack

import click
import msgspec

from flagkit._core.model import EVERYWHERE
from flagkit._core.model.changes import SEGMENTS
from flagkit._core.storage.store import Store
from flagkit._core.suggestions import suggested
from flagkit.cli.errors import FAULTS_FOUND, redact_secrets
from flagkit.cli.options import (
    LIMIT_MAX,
    LIMIT_RANGE,
    EnvironmentOptions,
    environment_options,
)
from flagkit.cli.output import PROGRAM_FORMATS, Printer, emit, emit_text, output_option, print_lines
from flagkit.errors import StoreUnavailableError
from flagkit.writer import Entry, Environment
from flagkit.writer.ledger import ACTIONS, EntryFilter
from flagkit.writer.verification import run_verification

_Command = TypeVar("_Command", bound=Callable[..., Any])

_LINES_MAX: Final = 20
_POLL_SECONDS: Final = 0.5
_AGE = re.compile("([0-9]{1,9})([smhdw])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_ANCHOR = re.compile("([1-9][0-9]*):([0-9a-f]{64})")


@click.group("ledger")
def ledger() -> None:
    """Read the history of an environment, and prove it."""


def _parse_moment(_context: object, _parameter: object, text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        if (age := _AGE.fullmatch(text)) is not None:
            return datetime.now(UTC) - timedelta(**{_UNITS[age[2]]: int(age[1])})
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{text!r} is no moment: write it like 2026-11-21T10:32Z, or 2h for two hours ago"
        ) from None


def _filter_options(command: _Command) -> _Command:
    """Give a command the options that say which entries are meant."""
    for option in (
        click.option(
            "--until", callback=_parse_moment, help="Only before this moment, written likewise."
        ),
        click.option(
            "--since",
            callback=_parse_moment,
            help="Only from then on: a moment in UTC such as 2026-11-21T10:32Z, or an age such as"
            " 2h.",
        ),
        click.option("--action", type=click.Choice(ACTIONS), help="Only where this was asked for."),
        click.option("--actor", help="Only changes by this actor."),
        click.option("--key", help="Only changes of this flag or segment."),
    ):
        command = option(command)
    return command


@ledger.command("show")
@environment_options
@_filter_options
@click.option("--limit", type=LIMIT_RANGE, default=20, show_default=True, help="How many.")
@output_option("table")
def _show(
    uri: str | None,
    environment: str | None,
    database: str | None,
    limit: int,
    output: str,
    **wanted: Unpack[EntryFilter],
) -> None:
    """Show who changed what, when and why, the newest first."""
    with Environment(uri, environment, database=database) as reader:
        reader.read_tip()
        shown = [*itertools.islice(reader.entries(newest_first=True, **wanted), limit)]
        after = reader.read_pruned_revision() if len(shown) < limit else 0
        nothing = "" if shown else _format_nothing_found(reader.store, wanted.get("key"))
    if output in PROGRAM_FORMATS:
        emit([msgspec.to_builtins(entry) for entry in shown], output)
    elif shown:
        _print_entries(shown, wanted.get("key"))
    else:
        print_lines(nothing)
    if after:
        print_lines(f"What came up to revision {after:,} was pruned.", err=True)


def _format_nothing_found(store: Store, key: str | None) -> str:
    """Return the line for people if no entry is wanted, with the keys that are near to a key."""
    if key is None:
        return "No such change."
    with store.open_reader() as reading:
        known = {
            *reading.find_similar_keys((EVERYWHERE, key)),
            *reading.find_similar_keys((SEGMENTS, key)),
        }
    message = suggested("No such change", key, known)
    return message if message.endswith("?") else f"{message}."


@ledger.command("tail")
@environment_options
@_filter_options
@click.option(
    "--limit", type=click.IntRange(0, LIMIT_MAX), default=10, show_default=True, help="How many."
)
@click.option("--follow", is_flag=True, help="Go on with each change that is made, until Ctrl-C.")
@output_option("text")
def _tail(
    uri: str | None,
    environment: str | None,
    database: str | None,
    limit: int,
    output: str,
    *,
    follow: bool,
    **wanted: Unpack[EntryFilter],
) -> None:
    """Tell the newest changes, the newest last, and those to come.

    As JSON, each is a line; as YAML, all are one list.
    """
    with Environment(uri, environment, database=database) as reader:
        tip = reader.read_tip()
        shown = [*itertools.islice(reader.entries(newest_first=True, **wanted), limit)]
        for entry in reversed(shown):
            _print_entry(entry, output, wanted.get("key"))
        after = max(0, tip.revision - 1, *(entry.revision for entry in shown[:1]))
        if follow:
            # To be interrupted is how it ends.
            with contextlib.suppress(KeyboardInterrupt):
                _follow(reader, after, output, wanted)


def _follow(reader: Environment, after: int, output: str, entry_filter: EntryFilter) -> None:
    trouble = ""
    while True:
        try:
            after, found = reader.read_newer_entries(after, **entry_filter)
            trouble = ""
        except StoreUnavailableError as error:
            # It may come back, as after a failover.
            found = []
            if not trouble:
                trouble = redact_secrets(f"Waiting: {error}")
                print_lines(trouble, err=True)
        for entry in found:
            _print_entry(entry, output, entry_filter.get("key"))
        time.sleep(_POLL_SECONDS)


def _print_entry(entry: Entry, output: str, key: str | None) -> None:
    """Tell of an entry that others may follow."""
    if output == "json":
        emit_text(json.dumps(msgspec.to_builtins(entry)) + "\n", output)
        return
    if output == "yaml":
        emit([msgspec.to_builtins(entry)], output)
        return
    who = ", ".join(_list_people(entry))
    why = ": ".join([who, *_list_reasons(entry)])
    head = f"{entry.revision}  {entry.time:%Y-%m-%d %H:%M:%S}  {why}"
    print_lines(head, *(f"    {line}" for line in _format_lines(entry, key)))


@ledger.command("verify")
@environment_options
@click.option(
    "--anchor",
    "anchors",
    multiple=True,
    metavar="REVISION:HASH",
    help="What an earlier run printed, and was kept elsewhere. May be given several times.",
)
@output_option("text")
def _verify(anchors: tuple[str, ...], output: str, **place: Unpack[EnvironmentOptions]) -> None:
    """Prove the ledger against the head, and flags and checkpoints against the ledger.

    Whoever can rewrite everything, the head included, is found only against an anchor: keep the
    one that is printed where they cannot write. Exits with 3 if something is wrong.
    """
    parsed_anchors = [_parse_anchor(text) for text in anchors]
    with Environment(**place) as reader:
        tip = reader.read_tip()
        witness = [(tip.revision, tip.hash)] if tip.revision else []
        proof = run_verification(reader.store, [*parsed_anchors, *witness])
    problems = proof.problems
    if output in PROGRAM_FORMATS:
        summary = {
            "environment": tip.environment,
            "revision": tip.revision,
            "hash": tip.hash,
            "after": proof.after,
            "problems": [*problems],
        }
        emit(summary, output)
    elif not problems:
        since = f" from revision {proof.after + 1:,}, after what was pruned," if proof.after else ""
        print_lines(f"{tip.environment}: all is well{since} up to revision {tip.revision:,}")
        for revision, digest in witness:
            print_lines(f"anchor: {revision}:{digest}")
    else:
        print_lines(*problems, err=True)
    if problems:
        raise SystemExit(FAULTS_FOUND)


def _parse_anchor(text: str) -> tuple[int, str]:
    found = _ANCHOR.fullmatch(text)
    if found is None:
        raise click.BadParameter(
            f"{text!r} is none: write REVISION:HASH, as verify printed it", param_hint="--anchor"
        )
    return int(found[1]), found[2]


def _print_entries(shown: Sequence[Entry], key: str | None) -> None:
    Printer().print_table(
        ("revision", "time (UTC)", "actor", "what", "reason"),
        [
            (
                entry.revision,
                f"{entry.time:%Y-%m-%d %H:%M:%S}",
                _list_people(entry),
                _format_lines(entry, key),
                _list_reasons(entry),
            )
            for entry in shown
        ],
        right=("revision",),
    )


def _list_people(entry: Entry) -> list[str]:
    """Return who asked for a revision, and who else had a hand in it."""
    approved = [f"approved: {actor}" for actor in entry.approvers]
    return [entry.actor, *approved, *([f"applied: {entry.applier}"] if entry.applier else [])]


def _list_reasons(entry: Entry) -> list[str]:
    """Return the reason of a revision, and why guards were passed by, if they were."""
    bypass = f"broke the glass: {entry.bypass_reason}" if entry.bypass_reason else ""
    return [*filter(None, [entry.reason, bypass])]


def _format_lines(entry: Entry, key: str | None) -> list[str]:
    """Return what a revision did, or what was asked for if it changed nothing.

    The lines of a key that was asked for come first, so that they are never left out.
    """
    lines = [*(entry.differences or (f"{action}: no change" for action in entry.actions))]
    if key is not None:
        beginnings = (f"{key}: ", f"{key} in ", f"segment {key}: ")
        lines.sort(key=lambda line: not line.startswith(beginnings))
    more = len(lines) - _LINES_MAX
    return lines if more <= 0 else [*lines[:_LINES_MAX], f"and {more:,} more"]
