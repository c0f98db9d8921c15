"""Options that several commands have, said once."""

import click

uri_argument = click.argument("uri", required=False, metavar="[URI]")
environment_option = click.option(
    "--environment", help="Which one; by default that of FLAGKIT_ENVIRONMENT."
)
database_option = click.option(
    "--database", help="Where flagkit's collections are.  [default: flagkit]"
)

FAULTS_FOUND = 3
"""The exit code of a check that found something."""
