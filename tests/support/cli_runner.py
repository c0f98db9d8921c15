"""The `flagkit` command within this process, as tests of what it does in a database call it."""

import json
from typing import Any

from click.testing import CliRunner, Result

from flagkit.cli.main import flagkit
from flagkit.writer import Writer


class CommandRunner:
    """The command, with the variables that lead it to an environment, and name who asks."""

    def __init__(self, uri: str, database: str) -> None:
        self.variables: dict[str, str | None] = {
            "FLAGKIT_URI": uri,
            "FLAGKIT_ENVIRONMENT": "production",
            "FLAGKIT_DATABASE": database,
            "FLAGKIT_ACTOR": "ada@example.com",
            "COLUMNS": "200",
        }

    def ask(self, *arguments: str, stdin: str | None = None, **variables: str | None) -> Result:
        """Call it, and return what came of it."""
        return CliRunner().invoke(
            flagkit,
            arguments,
            input=stdin,
            env=self.variables | variables,
            catch_exceptions=False,
        )

    def told(self, *arguments: str, stdin: str | None = None) -> str:
        """Return what it prints when all goes well."""
        result = self.ask(*arguments, stdin=stdin)
        assert (result.exit_code, result.stderr) == (0, ""), result.output
        return result.stdout

    def data(self, *arguments: str) -> Any:
        """Return what it tells programs."""
        return json.loads(self.told(*arguments, "--output", "json"))

    def fault(self, *arguments: str, code: int = 1, stdin: str | None = None) -> str:
        """Return the sentence that it ends with, if it fails as expected."""
        result = self.ask(*arguments, stdin=stdin)
        assert (result.exit_code, result.stdout) == (code, ""), result.output
        assert result.stderr.startswith("Error: "), result.stderr
        assert result.stderr.count("\n") == 1, result.stderr
        return result.stderr.removeprefix("Error: ").rstrip("\n")


def fetch_revision(writer: Writer) -> int:
    """Return the newest revision."""
    return writer.store.read_tip().revision
