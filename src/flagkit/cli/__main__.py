"""Run the `flagkit` command with `python -m flagkit.cli`."""

from flagkit.cli import main

main()
