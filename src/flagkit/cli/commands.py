"""The commands and their options; what they do lives in rooms of their own.

Every FlagkitError ends as one sentence on stderr and exit code 1, never as a traceback.
"""

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from flagkit import FlagkitError, __version__
from flagkit.cli import demo


class _Group(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FlagkitError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="flagkit")
def flagkit() -> None:
    """Feature flags and rollouts, evaluated in process and kept in MongoDB."""


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
    demo.run(file or demo.shop_file(), Console(highlight=False))
