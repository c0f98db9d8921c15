"""The root command, and the commands that need no database: validate, format, schema, completion.

A FlagkitError ends as one sentence on stderr and an exit code, never as a traceback.
"""

import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, Final, Unpack

import click
from click.shell_completion import get_completion_class

from flagkit import __version__
from flagkit._core.cooperative import run_slices
from flagkit._core.model.canonical import compute_flag_digest, compute_segment_digest
from flagkit._core.storage.database_status import DatabaseStatus
from flagkit.cli.commands import demo, status
from flagkit.cli.commands.access import access
from flagkit.cli.commands.admin import admin
from flagkit.cli.commands.approvals import approvals
from flagkit.cli.commands.evaluate import evaluate, replay_digest
from flagkit.cli.commands.flags import flags
from flagkit.cli.commands.ledger import ledger
from flagkit.cli.commands.pending import pending
from flagkit.cli.commands.prune import prune_command
from flagkit.cli.commands.segments import segments
from flagkit.cli.errors import FAULTS_FOUND, report_errors, run_command
from flagkit.cli.options import (
    EnvironmentOptions,
    database_option,
    environment_option,
    environment_options,
    get_noted_uri,
    uri_option,
)
from flagkit.cli.output import (
    PROGRAM_FORMATS,
    Progress,
    emit,
    emit_text,
    guard_streams,
    mark_work_done,
    output_option,
    print_lines,
    warn,
)
from flagkit.cli.wait_notice import notify_waiting
from flagkit.config import check_environment_name, require_value, resolve_connection
from flagkit.errors import InvalidDocumentError
from flagkit.policy_files.dump import dump_json, dump_yaml
from flagkit.policy_files.json_schema import build_schema
from flagkit.policy_files.reader import PolicyFile, iter_faults
from flagkit.writer import Environment
from flagkit.writer.checkpoints import write_checkpoint_in_steps

_SHELLS: Final = ("bash", "zsh", "fish")
_COMPLETE: Final = "_FLAGKIT_COMPLETE"
"""The variable by which such a script asks click."""


class _Group(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        with report_errors(), notify_waiting(partial(get_noted_uri, ctx)):
            return super().invoke(ctx)

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run the command, and end the process with its exit code."""
        run = partial(super().main, *args, standalone_mode=False, **extra)
        if not standalone_mode:
            return run()
        with guard_streams():
            code = run_command(run)
        sys.exit(code)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="flagkit")
def flagkit() -> None:
    """Feature flags and rollouts, evaluated in process and stored in MongoDB.

    FLAGKIT_URI and FLAGKIT_ENVIRONMENT select the flags, and FLAGKIT_ACTOR names the author of
    changes. --uri, --environment and --actor, after the command, replace them.
    """


for _command in (
    *(flags, segments, access, approvals, pending, admin, ledger, prune_command),
    *(evaluate, replay_digest),
):
    flagkit.add_command(_command)


@flagkit.command("validate")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--environment", help="What the flags' own environment must be, where they have one.")
@click.option("--partial", is_flag=True, help="Allow references to what is in none of the files.")
def _validate(files: tuple[Path, ...], environment: str | None, *, partial: bool) -> None:
    """Check policy files, and show each fault with file, line, path and remedy.

    All files are checked together: prerequisites and segments must be in one of them. With
    --partial they may exist elsewhere. The command warns of values that YAML 1.1 readers understand
    differently. It exits with 3 if a file is not valid.
    """
    valid = [found for file in files if (found := _load_valid_file(file, environment)) is not None]
    faults = [*iter_faults(valid, partial=partial)] if len(valid) == len(files) else []
    for fault in faults:
        print_lines(str(fault), err=True)
    for found in valid if not faults else ():
        print_lines(f"{found.path}: {_format_counts(found)}, all valid")
    if faults or len(valid) < len(files):
        raise SystemExit(FAULTS_FOUND)


def _load_valid_file(file: Path, environment: str | None) -> PolicyFile | None:
    """Return a file that is valid by itself; print the faults of any other."""
    faults: list[InvalidDocumentError] = []
    found: PolicyFile | None = None
    try:
        found = PolicyFile(file, environment, faults=faults)
    except InvalidDocumentError as error:
        faults.append(error)
    for fault in faults:
        print_lines(str(fault), err=True)
    if found is not None:
        for doubt in found.ambiguities:
            warn(str(doubt))
    return None if faults else found


def _format_counts(file: PolicyFile) -> str:
    counts = {"flag": len(file.policies), "segment": len(file.segments)}
    named = [f"{count} {name if count == 1 else f'{name}s'}" for name, count in counts.items()]
    return " and ".join(named if file.segments else named[:1])


@flagkit.command("format")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Choice(["yaml", "json", "digest"]),
    default="yaml",
    show_default=True,
    help="A policy file; or a line for each policy: digest, region (or segment) and key.",
)
def _format(file: Path, output: str) -> None:
    """Print a policy file in canonical form: equivalent flags have the same text.

    Flags stay in their order, and comments are removed. Flags with the same digest are equivalent,
    however they were written.
    """
    found = PolicyFile(file)
    if output == "digest":
        for policy in found.policies:
            print_lines(
                f"{compute_flag_digest(policy.flag)}  {policy.flag.region}  {policy.flag.key}"
            )
        for segment_policy in found.segments:
            segment = segment_policy.segment
            print_lines(f"{compute_segment_digest(segment)}  segment  {segment.key}")
    else:
        written = dump_json if output == "json" else dump_yaml
        emit_text(written(found.policies, found.segments), output)


@flagkit.command("schema")
def _schema() -> None:
    """Print the JSON schema of policy files, by which editors complete and check them."""
    emit(build_schema(), "json")


@flagkit.command("completion")
@click.argument("shell", type=click.Choice(_SHELLS))
def _completion(shell: str) -> None:
    """Print the script that makes a shell complete commands and options.

    In ~/.bashrc: eval "$(flagkit completion bash)". In ~/.zshrc: eval "$(flagkit completion zsh)".
    For fish: flagkit completion fish > ~/.config/fish/completions/flagkit.fish.
    """
    kind = get_completion_class(shell)
    assert kind is not None, "click knows each of _SHELLS"
    print_lines(*kind(flagkit, {}, "flagkit", _COMPLETE).source().split("\n"))


@flagkit.command("checkpoint")
@environment_options
@output_option("text")
def _checkpoint(output: str, **place: Unpack[EnvironmentOptions]) -> None:
    """Publish all flags of an environment, for new clients to start from.

    Clients load the newest checkpoint and continue from the ledger. Without one they read every
    flag, which takes some seconds for hundreds of thousands. The newest two checkpoints stay.
    """
    started = time.monotonic()
    with Environment(**place) as reader, Progress() as progress:
        published = run_slices(write_checkpoint_in_steps(reader.store), progress.show)
    mark_work_done()
    seconds = time.monotonic() - started
    if output not in PROGRAM_FORMATS:
        flags = "flag" if published.flags == 1 else "flags"
        print_lines(
            f"{published.id}: {published.flags:,} {flags} of {published.tip.environment} at"
            f" revision {published.tip.revision:,}, {published.bytes / 1e6:,.1f} MB, in"
            f" {seconds:,.1f} s"
        )
    else:
        found = {
            "checkpoint": published.id,
            "environment": published.tip.environment,
            "revision": published.tip.revision,
            "flags": published.flags,
            "bytes": published.bytes,
            "seconds": round(seconds, 3),
        }
        emit(found, output)


@flagkit.command("status")
@uri_option
@click.option("--environment", help="The only one to tell of; by default all.")
@database_option
@output_option("table")
def _status(uri: str | None, environment: str | None, database: str | None, output: str) -> None:
    """Show the state of environments, members of the replica set, and registered clients.

    The lag of members is shown only to users with the role clusterMonitor.
    """
    place = resolve_connection(uri, database)
    found = status.read_status(*place, environment)
    if output in PROGRAM_FORMATS:
        emit(status.encode_status(found), output)
    else:
        status.print_status(found, place[1])


@flagkit.group("rollout")
def _rollout() -> None:
    """Follow revisions on their way to the clients."""


@_rollout.command("wait")
@uri_option
@click.option("--revision", type=click.IntRange(min=0), required=True, help="What is waited for.")
@environment_option
@click.option("--service", help="The only service that is waited for; by default all.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=120.0,
    show_default=True,
    help="Seconds to wait at most.",
)
@database_option
@output_option("text")
def _wait(uri: str | None, database: str | None, timeout: float, output: str, **goal: Any) -> None:
    """Wait until all clients that are registered and alive have a revision.

    Clients register if they are started with `register=`, or FLAGKIT_REGISTER. One that ended
    without being closed counts for fifty seconds. The command exits with 1 if the time is up, and
    names the laggards. It also exits with 1 if there are no clients.
    """
    place = resolve_connection(uri, database)
    goal["environment"] = check_environment_name(require_value("environment", goal["environment"]))
    wanted = status.WaitGoal(**goal)
    with DatabaseStatus(*place) as survey:
        found = status.wait_with_bar(survey, wanted, timeout)
    message = status.describe_outcome(found, wanted, timeout)
    if output in PROGRAM_FORMATS:
        emit(status.encode_progress(found, wanted), output)
    elif found.is_reached:
        print_lines(message)
    else:
        status.print_laggards(found)
    if not found.is_reached:
        raise click.ClickException(message)


@flagkit.command("demo")
@click.option(
    "--file",
    type=click.Path(path_type=Path),
    help="The policy file to load, in YAML or JSON; by default that of the example shop.",
)
def _demo(file: Path | None) -> None:
    """Show the whole loop on a real MongoDB server of its own.

    Loads a policy file, evaluates its flags for 10,000 users, widens a rollout while a client
    watches, pauses a flag and rolls it back, verifies the ledger, and leaves nothing running.
    """
    demo.run(file or demo.resolve_shop_file())
