"""`flagkit segments`: show and change the segments of an environment."""

from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar, Unpack

import click
import msgspec

from flagkit._core.model.changes import SEGMENTS
from flagkit._core.model.keys import check_key
from flagkit._core.storage import layout
from flagkit._core.suggestions import suggested
from flagkit.cli.changes import (
    ChangeCommandOptions,
    add_change_command,
    add_file_command,
    change_options,
    open_draft,
)
from flagkit.cli.options import (
    EnvironmentOptions,
    environment_options,
    expected_version_option,
    key_argument,
    keys_argument,
    open_store,
    to_option,
)
from flagkit.cli.output import (
    PROGRAM_FORMATS,
    Printer,
    build_segment_document,
    build_segment_row,
    emit,
    emit_text,
    format_segment_file,
    iter_document_rows,
    output_option,
    print_lines,
)
from flagkit.errors import ConfigurationError, SegmentNotFoundError
from flagkit.writer import Draft

_Command = TypeVar("_Command", bound=Callable[..., Any])


@click.group("segments")
def segments() -> None:
    """Look at the segments of an environment, and change them."""


@segments.command("list")
@environment_options
@click.option("--namespace", default="", help="Only keys that begin with it, such as shop.")
@click.option("--match", default="", metavar="TEXT", help="Only keys that contain it.")
@click.option("--after", metavar="KEY", help="Only keys that come after it, to go on with a list.")
@output_option("table")
def _list(
    namespace: str, match: str, after: str | None, output: str, **place: Unpack[EnvironmentOptions]
) -> None:
    """List the segments of an environment, sorted by key.

    For people 1,000 are listed at most; --after goes on with the next ones.
    """
    with open_store(**place) as store, store.open_reader() as reading:
        states = reading.read_all([layout.SEGMENTS]).values()
    lines = [
        build_segment_row(found)
        for found in sorted(states, key=lambda found: found.key)
        if found.key.startswith(namespace)
        and match in found.key
        and (after is None or found.key > after)
    ]
    if output in PROGRAM_FORMATS:
        emit([msgspec.to_builtins(line) for line in lines], output)
    elif lines:
        Printer().print_listing(
            ("segment", "version", "condition", "by", "included", "excluded", "owner"),
            [
                (
                    *(line.key, line.version, "yes" if line.condition else "", line.by),
                    *(f"{line.included:,}", f"{line.excluded:,}", line.owner),
                )
                for line in lines
            ],
            right=("version", "included", "excluded"),
        )
    else:
        print_lines("No such segment.")


@segments.command("show")
@key_argument
@environment_options
@output_option("table", "policy")
def _show(key: str, output: str, **place: Unpack[EnvironmentOptions]) -> None:
    """Show a segment: its document, version, and flags.

    Of its keys only hashes are kept, so what is shown is how many there are.
    `--output policy` is a policy file, to edit and to pass to `flagkit segments update`.
    """
    check_key(key, kind="segment")
    with open_store(**place) as store, store.open_reader() as reading:
        state = reading.find_segments([key]).get((SEGMENTS, key))
        referring = sorted({flag for _, flag in reading.find_referring([key])})
        revision = reading.tip.revision
        near = set[str]() if state else reading.find_similar_keys((SEGMENTS, key))
    if state is None:
        sentence = f"there is no segment {key!r}: `flagkit segments list` has all"
        raise SegmentNotFoundError(suggested(sentence, key, near))
    if output == "policy":
        print_lines(f"# version {state.version} at revision {revision}")
        emit_text(format_segment_file(state), "yaml")
    elif output in PROGRAM_FORMATS:
        fields = {
            "key": key,
            "version": state.version,
            "revision": revision,
            "flags": referring,
            "document": build_segment_document(state),
        }
        emit(fields, output)
    else:
        rows = [("version", [f"{state.version} at revision {revision:,}"])]
        rows += iter_document_rows(build_segment_document(state))
        rows += [("flags", [", ".join(referring)])] if referring else []
        Printer().print_table(("segment", key), rows)


add_file_command(
    segments,
    "create",
    "segment",
    Draft.create_segment,
    """Create the segments of a policy file, all in one revision.

    FILE is YAML or JSON, or - for standard input.
    """,
)
add_file_command(
    segments,
    "update",
    "segment",
    Draft.update_segment,
    """Replace the documents of segments by those of a policy file.

    Keys included, and all in one revision. FILE is YAML or JSON, or - for standard input.
    """,
    expected_version_option,
)


def _members_options(side: str, what: str) -> Callable[[_Command], _Command]:
    one = click.option(f"--{side}", metavar="MEMBER", multiple=True, help=f"{what} Repeatable.")
    many = click.option(
        f"--{side}-from",
        type=click.File("rb"),
        help="The same for a file in UTF-8, a key a line; - is standard input.",
    )
    return lambda command: one(many(command))


@segments.command("change-members")
@key_argument
@_members_options("include", "A key to put into the included ones.")
@_members_options("exclude", "A key to put into the excluded ones.")
@_members_options("remove", "A key to take out of both.")
@expected_version_option
@change_options
def _change_members(  # noqa: PLR0913 - options
    key: str,
    expected_version: int | None,
    *,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    remove: tuple[str, ...],
    include_from: BinaryIO | None,
    exclude_from: BinaryIO | None,
    remove_from: BinaryIO | None,
    **asking: Unpack[ChangeCommandOptions],
) -> None:
    """Move keys into or out of a segment, at most 10,000 at a time.

    The audit has them as they are.
    """
    moved = {
        "include": [*include, *_read_keys(include_from)],
        "exclude": [*exclude, *_read_keys(exclude_from)],
        "remove": [*remove, *_read_keys(remove_from)],
    }
    if not any(moved.values()):
        raise click.UsageError("no key is given: pass --include, --exclude or --remove")
    with open_draft(**asking) as change:
        change.change_members(key, expected_version=expected_version, **moved)


add_change_command(
    segments,
    "rollback",
    Draft.rollback_segment,
    """Give a segment the content of a revision, keys included.

    It is a new revision.
    """,
    key_argument,
    to_option,
    expected_version_option,
)
add_change_command(
    segments,
    "delete",
    Draft.delete_segment,
    """Delete segments that no flag refers to.

    All in one revision.
    """,
    keys_argument,
    expected_version_option,
)


def _read_keys(file: BinaryIO | None) -> list[str]:
    """Return the keys of a file, a key a line. Empty lines are none.

    Lines end with a newline alone: other separators of lines may be part of a key.
    """
    if file is None:
        return []
    try:
        lines = file.read().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{file.name} is not UTF-8: {error}") from None
    return [line for line in (line.strip(" \t\r") for line in lines) if line]
