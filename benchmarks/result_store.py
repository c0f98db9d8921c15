"""Kept: the results of a release, in a file named by its version, one line of JSON a figure."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

import flagkit

DIRECTORY: Final = Path(__file__).parent / "results"


def get_release_path() -> Path:
    """Return where the results of this version are kept."""
    return DIRECTORY / f"{flagkit.__version__}.jsonl"


def store_results(lines: str, benchmarks: Collection[str], path: Path) -> None:
    """Put lines in the place of those that were kept of the same benchmarks; others stay."""
    others = (
        [line for line in read_results(path) if line["benchmark"] not in benchmarks]
        if path.exists()
        else []
    )
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{msgspec.json.encode(line).decode()}\n" for line in others) + lines)


def read_results(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a file of results.

    Raises:
        OSError: there is none.
    """
    return map(msgspec.json.decode, path.read_text().splitlines())
