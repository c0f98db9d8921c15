"""The `flagkit` command. Its parts need the extra `cli`; this entry point needs none of them."""

import sys

_EXTRA = ("click", "rich", "ruamel")


def main() -> None:
    """Run the command with the arguments of the process, and end the process.

    Exit codes: 0 success, 1 failure, 2 wrong usage, 3 a check found something, 4 a
    conflict: the stored state is not the expected one.
    """
    try:
        # Deferred, so that a missing extra is a sentence and no traceback.
        from flagkit.cli.main import flagkit  # noqa: PLC0415
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRA:
            raise
        sys.exit(
            f"Error: the flagkit command needs {missing}, which is not installed: run"
            " pip install -e '.[cli]' in a clone, or pip install 'flagkit-mongodb[cli]'."
        )
    flagkit(prog_name="flagkit")
