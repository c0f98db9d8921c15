"""Lets `python -m flagkit.cli` be the `flagkit` command."""

from flagkit.cli import main

main()
