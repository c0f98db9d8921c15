"""`flagkit flags`: show and change the flags of an environment."""

from functools import partial
from typing import Any, Unpack

import click
import msgspec

from flagkit._core.model import EVERYWHERE
from flagkit._core.model.keys import check_key
from flagkit._core.storage.layout import FLAGS
from flagkit._core.suggestions import suggested
from flagkit.cli.changes import (
    ChangeCommandOptions,
    add_change_command,
    add_file_command,
    change_options,
    open_draft,
    print_notes,
    take_change_options,
)
from flagkit.cli.commands.flags_import import import_flags
from flagkit.cli.options import (
    EnvironmentOptions,
    check_single_key,
    environment_options,
    expected_version_option,
    key_argument,
    keys_argument,
    open_store,
    reassign_option,
    region_option,
    rule_option,
    to_option,
)
from flagkit.cli.output import (
    PROGRAM_FORMATS,
    Printer,
    build_flag_document,
    build_flag_row,
    emit,
    emit_text,
    format_flag_file,
    iter_document_rows,
    output_option,
    print_lines,
)
from flagkit.errors import FlagNotFoundError
from flagkit.writer import Draft, Environment
from flagkit.writer.effects import is_active, iter_edits_since_active
from flagkit.writer.retention import DAYS_MAX


@click.group("flags")
def flags() -> None:
    """Look at the flags of an environment, and change them."""


flags.add_command(import_flags)


@flags.command("list")
@environment_options
@click.option("--namespace", default="", help="Only keys that begin with it, such as checkout.")
@click.option(
    "--state", type=click.Choice(["active", "paused", "archived"]), help="Only those in it."
)
@click.option("--match", default="", metavar="TEXT", help="Only keys that contain it.")
@click.option("--after", metavar="KEY", help="Only keys that come after it, to go on with a list.")
@output_option("table")
def _list(
    namespace: str,
    state: str | None,
    match: str,
    after: str | None,
    output: str,
    **place: Unpack[EnvironmentOptions],
) -> None:
    """List flags, overrides of regions included, sorted by key.

    For people 1,000 are listed at most; --after goes on with the next ones.
    """
    with open_store(**place) as store, store.open_reader() as reading:
        states = reading.read_all([FLAGS]).values()
    lines = [
        build_flag_row(found)
        for found in sorted(states, key=lambda found: (found.key, found.region))
        if found.key.startswith(namespace)
        and match in found.key
        and (after is None or found.key > after)
        and state in (None, found.policy["state"])
    ]
    if output in PROGRAM_FORMATS:
        emit([msgspec.to_builtins(line) for line in lines], output)
    elif lines:
        Printer().print_listing(
            ("flag", "region", "version", "state", "type", "serves", "owner"),
            [msgspec.structs.astuple(line) for line in lines],
            right=("version",),
        )
    else:
        print_lines("No such flag.")


@flags.command("show")
@key_argument
@region_option
@environment_options
@output_option("table", "policy")
def _show(key: str, region: str, output: str, **place: Unpack[EnvironmentOptions]) -> None:
    """Show a flag: its document, version and overrides.

    `--output policy` is a policy file, to edit and to pass to `flagkit flags update`; without the
    state, which an update then leaves as it is.
    """
    check_key(key)
    with open_store(**place) as store, store.open_reader() as reading:
        found = reading.find_flags([key])
        revision = reading.tip.revision
        state = found.get((region, key))
        changed = reading.history.find_last_revision((region, key))
        edits = (
            [] if state is None or is_active(state) else [*iter_edits_since_active(reading, state)]
        )
        near = set[str]() if found else reading.find_similar_keys((region, key))
    regions = sorted({other for other, _ in found} - {region, EVERYWHERE})
    if state is None:
        there = f"; there it is: {', '.join(sorted(other for other, _ in found))}" if found else ""
        raise FlagNotFoundError(
            suggested(f"there is no flag {key!r} in region {region}{there}", key, near)
        )
    if output == "policy":
        flag_state = state.policy["state"]
        print_lines(f"# version {state.version} at revision {revision}, {flag_state}")
        emit_text(format_flag_file(state), "yaml")
    elif output in PROGRAM_FORMATS:
        fields = {
            "key": key,
            "region": region,
            "version": state.version,
            "revision": revision,
            "changed": changed,
            "overrides": regions,
            "document": build_flag_document(state),
        }
        emit(fields, output)
    else:
        since = "before the ledger begins" if changed is None else f"at revision {changed:,}"
        rows = [("version", [f"{state.version}, changed {since}; the newest is {revision:,}"])]
        rows += [("overrides", [", ".join(regions)])] if regions else []
        rows += [("note", edits)] if edits else []
        rows += iter_document_rows(build_flag_document(state))
        Printer().print_table(("flag", key), rows)


add_file_command(
    flags,
    "create",
    "flag",
    Draft.create,
    """Create the flags of a policy file, all in one revision.

    FILE is YAML or JSON, or - for standard input.
    """,
)
add_file_command(
    flags,
    "update",
    "flag",
    Draft.update,
    """Replace the documents of flags by those of a policy file.

    All in one revision. FILE is YAML or JSON, or - for standard input. A flag whose document has no
    state stays as it is, paused or not.
    """,
    expected_version_option,
    reassign_option,
)


@flags.command("set-rollout")
@key_argument
@click.argument("weights", metavar="PERCENT | VARIANT=PERCENT...", nargs=-1, required=True)
@rule_option
@region_option
@expected_version_option
@reassign_option
@change_options
def _set_rollout(key: str, weights: tuple[str, ...], **given: Any) -> None:
    """Set the weights of a rollout, in percent.

    A bare percentage is the share of the true variant of a boolean flag; of others, each variant is
    given its own, as in a=20 b=80.
    """
    parsed = _parse_weights(weights)
    with open_draft(**take_change_options(given)) as draft:
        draft.set_rollout(key, parsed, **given)


_SERVE_OPTIONS = rule_option, region_option, expected_version_option
_STATE_OPTIONS = keys_argument, region_option, expected_version_option

add_change_command(
    flags,
    "serve",
    Draft.serve,
    """Serve another variant to all, where a flag serves one variant.

    A rollout has weights instead: see set-rollout.
    """,
    key_argument,
    click.argument("variant"),
    *_SERVE_OPTIONS,
)
add_change_command(
    flags,
    "enable",
    partial(Draft.serve, variant=True),
    """Serve the true variant of boolean flags to all.

    For flags whose fallthrough, or whose rule, serves one variant. Rules still decide first for
    their own contexts. All in one revision.
    """,
    keys_argument,
    *_SERVE_OPTIONS,
)
add_change_command(
    flags,
    "disable",
    partial(Draft.serve, variant=False),
    """Serve the false variant of boolean flags to all.

    This is a release, like any change of what is served. In an emergency use pause: editors may do
    it, and no guard stops it. All in one revision.
    """,
    keys_argument,
    *_SERVE_OPTIONS,
)
for _verb, _operation, _description in (
    ("pause", Draft.pause, "Pause flags: they serve their off variants.\n\nAll in one revision."),
    ("restore", Draft.restore, "Make archived flags paused ones.\n\nAll in one revision."),
    (
        "archive",
        Draft.archive,
        """Archive flags whose time is over.

        They serve their off variants, and neither pause nor resume. All in one revision.
        """,
    ),
    (
        "delete",
        Draft.delete,
        """Delete archived flags.

        Checks answer with their callers' defaults. All in one revision.
        """,
    ),
):
    add_change_command(flags, _verb, _operation, _description, *_STATE_OPTIONS)


@flags.command("resume")
@keys_argument
@region_option
@expected_version_option
@change_options
def _resume(
    keys: tuple[str, ...],
    region: str,
    expected_version: int | None,
    **asking: Unpack[ChangeCommandOptions],
) -> None:
    """Make paused flags active again.

    If a flag was edited since it was last active, the command says so first. All in one revision.
    """
    check_single_key(keys, expected_version)
    edited = {} if asking["dry_run"] else _print_edits(keys, region, asking)
    if asking["idempotency_key"] is not None:
        # A request that is sent again has to be the same one.
        edited = {}
    with open_draft(**asking) as change:
        for key in keys:
            # Another edit in between makes it a conflict: nobody was told of that one.
            version = expected_version or edited.get(key)
            change.resume(key, region=region, expected_version=version)


def _print_edits(
    keys: tuple[str, ...], region: str, options: ChangeCommandOptions
) -> dict[str, int]:
    """Tell how flags were edited since they were last active; return the versions of those."""
    place = EnvironmentOptions(
        uri=options["uri"], environment=options["environment"], database=options["database"]
    )
    versions: dict[str, int] = {}
    with open_store(**place) as store, store.open_reader() as reading:
        found = reading.find_flags(map(check_key, keys))
        for key in keys:
            state = found.get((region, key))
            if state is not None and not is_active(state):
                edits = [*iter_edits_since_active(reading, state)]
                print_notes(edits, err=True)
                if edits:
                    versions[key] = state.version
    return versions


@flags.command("rollback")
@click.argument("key", required=False)
@click.option("--all", "whole", is_flag=True, help="The whole environment, segments included.")
@to_option
@region_option
@expected_version_option
@change_options
def _rollback(
    key: str | None,
    to: int,
    region: str,
    expected_version: int | None,
    *,
    whole: bool,
    **asking: Unpack[ChangeCommandOptions],
) -> None:
    """Give a flag, or everything, the content of a revision.

    It is a new revision. With --all, what was created since is deleted, and what was
    deleted comes back; grants and limits stay as they are.
    """
    if whole == (key is not None):
        raise click.UsageError("name a flag, or pass --all: one of them")
    if whole and region != EVERYWHERE:
        raise click.UsageError("--all is of all regions: leave --region out")
    if whole and expected_version is not None:
        raise click.UsageError("--expected-version is of one flag: leave it out with --all")
    with open_draft(**asking) as change:
        if key is None:
            change.rollback_all(to=to)
        else:
            change.rollback(key, to=to, region=region, expected_version=expected_version)


@flags.command("stale")
@environment_options
@click.option(
    "--days", type=click.IntRange(0, DAYS_MAX), default=30, show_default=True, help="How long."
)
@output_option("table")
def _stale(days: int, output: str, **place: Unpack[EnvironmentOptions]) -> None:
    """List flags whose time seems to be over.

    Those past their `expires`; and those that nobody touched for some days, and that never changed,
    are archived, or have each rollout at 0 or 100 %.
    """
    with Environment(**place) as reader:
        found = reader.stale_flags(days)
    if output in PROGRAM_FORMATS:
        emit([msgspec.to_builtins(flag) for flag in found], output)
    elif found:
        Printer().print_table(
            ("flag", "region", "owner", "why"),
            [(flag.key, flag.region, flag.owner, flag.reasons) for flag in found],
        )
    else:
        print_lines("No flag is stale.")


def _parse_weights(written: tuple[str, ...]) -> dict[str, float] | float:
    if len(written) == 1 and "=" not in written[0]:
        return _parse_percent(written[0])
    found: dict[str, Any] = {}
    for part in written:
        variant, equals, percent = part.rpartition("=")
        if not equals or variant in found:
            problem = "is there twice" if equals else "is no weight"
            raise click.BadParameter(
                f"{part!r} {problem}: write a percentage, or variants as in a=20 b=80",
                param_hint="WEIGHTS",
            )
        found[variant] = _parse_percent(percent)
    return found


def _parse_percent(written: str) -> float:
    try:
        return float(written)
    except ValueError:
        raise click.BadParameter(
            f"{written!r} is no percentage: write a number, such as 12.5", param_hint="WEIGHTS"
        ) from None
