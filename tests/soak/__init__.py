"""Long tests, which are no part of plain pytest: `python -m tests.soak NAME`."""
