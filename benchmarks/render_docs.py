"""Page: the tables of docs/performance.md, made from kept results.

A table stands between `<!-- table NAME -->` and `<!-- end -->`; the words around it are written by
hand.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

from benchmarks.plot import CHECKS, MEMORY
from benchmarks.report import format_rounded

PAGE: Final = Path(__file__).parent.parent / "docs" / "performance.md"
COSTS: Final = ("W1", "W2", "W3", MEMORY, "load", "import", "packages")
"""What a row of the peers' table tells of a library; cases begin with these words."""
_TABLE: Final = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

ResultLine: TypeAlias = Mapping[str, Any]
Row: TypeAlias = Sequence[str]


def render_page(text: str, lines: Iterable[ResultLine]) -> str:
    """Return a page with its tables made anew.

    Raises:
        KeyError: there is no table of a name.
    """
    kept = list(lines)
    tables = {
        "bounds": lambda: _build_bounds_table(kept),
        "sizes": lambda: _build_sizes_table(kept),
        "peers": lambda: _build_peers_table(kept),
    }
    return _TABLE.sub(lambda found: found[1] + _format_table(tables[found[2]]()) + found[3], text)


def _build_bounds_table(kept: Sequence[ResultLine]) -> list[Row]:
    rows: list[Row] = [("benchmark", "what", "measured", "bound", "")]
    for line in kept:
        if line.get("bound") is not None:
            sign = "at least" if line["at_least"] else "at most"
            rows.append(
                (
                    line["benchmark"],
                    line["case"],
                    f"{format_rounded(line['value'])} {line['unit']}".rstrip(),
                    f"{sign} {line['bound']:g} {line['unit']}".rstrip(),
                    "" if line["ok"] else "missed",
                )
            )
    return rows


def _build_sizes_table(kept: Sequence[ResultLine]) -> list[Row]:
    whats = (MEMORY, *CHECKS)
    found = {
        (line["flag_count"], line["what"]): format_rounded(line["value"])
        for line in kept
        if line["benchmark"] == "snapshot" and "what" in line
    }
    counts = sorted({count for count, _ in found})
    head = ("flags", MEMORY, *(f"{check}, us" for check in CHECKS))
    return [head, *((f"{count:,}", *(found[count, what] for what in whats)) for count in counts)]


def _build_peers_table(kept: Sequence[ResultLine]) -> list[Row]:
    head = ("", "W1, us", "W2, us", "W3, us", "bytes a flag", "load, s", "import, ms", "packages")
    found: dict[str, dict[str, str]] = {"flagkit": {}}
    versions: dict[str, str] = {}
    for line in kept:
        if line["benchmark"] != "peers" or "value" not in line:
            continue
        name, _, case = line["case"].partition(" ")
        cost = next((cost for cost in COSTS if case == cost or case.startswith(f"{cost},")), case)
        if cost.startswith("load of"):
            cost = "load"
        versions[name] = line["version"]
        found.setdefault(name, {})[cost] = format_rounded(line["value"])
        if "flagkit_ns" in line:
            found["flagkit"].setdefault(cost, format_rounded(line["flagkit_ns"] / 1000))
    rows = [
        (f"{name} {versions.get(name, '')}", *(costs.get(cost, "") for cost in COSTS))
        for name, costs in found.items()
    ]
    return [head, *rows]


def _format_table(rows: Sequence[Row]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
