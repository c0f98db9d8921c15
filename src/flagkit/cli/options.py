"""Options that several commands have, said once."""

import click

uri_option = click.option(
    "--uri", help="MongoDB connection string; by default FLAGKIT_URI, where others do not see it."
)
environment_option = click.option(
    "--environment", help="Which one; by default FLAGKIT_ENVIRONMENT."
)
database_option = click.option(
    "--database",
    help="Where flagkit's collections are; by default FLAGKIT_DATABASE, or flagkit.",
)

FAULTS_FOUND = 3
"""The exit code of a check that found something."""
