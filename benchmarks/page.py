"""Page: the tables of docs/performance.md, made from kept results.

A table stands between `<!-- table NAME -->` and `<!-- end -->`; the words around it are written by
hand.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

from benchmarks.plot import CHECKS, MEMORY
from benchmarks.report import rounded

PAGE: Final = Path(__file__).parent.parent / "docs" / "performance.md"
COSTS: Final = ("W1", "W2", "W3", MEMORY, "load", "import", "packages")
"""What a row of the peers' table tells of a library; cases begin with these words."""
_TABLE: Final = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

Kept: TypeAlias = Mapping[str, Any]
Row: TypeAlias = Sequence[str]


def page_of(text: str, lines: Iterable[Kept]) -> str:
    """Return a page with its tables made anew.

    Raises:
        KeyError: there is no table of a name.
    """
    kept = list(lines)
    tables = {
        "bounds": lambda: _bounds(kept),
        "sizes": lambda: _sizes(kept),
        "peers": lambda: _peers(kept),
    }
    return _TABLE.sub(lambda found: found[1] + _text(tables[found[2]]()) + found[3], text)


def _bounds(kept: Sequence[Kept]) -> list[Row]:
    rows: list[Row] = [("benchmark", "what", "measured", "bound", "")]
    for line in kept:
        if line.get("bound") is not None:
            sign = "at least" if line["at_least"] else "at most"
            rows.append(
                (
                    line["benchmark"],
                    line["case"],
                    f"{rounded(line['value'])} {line['unit']}".rstrip(),
                    f"{sign} {line['bound']:g} {line['unit']}".rstrip(),
                    "" if line["ok"] else "missed",
                )
            )
    return rows


def _sizes(kept: Sequence[Kept]) -> list[Row]:
    whats = (MEMORY, *CHECKS)
    found = {
        (line["flag_count"], line["what"]): rounded(line["value"])
        for line in kept
        if line["benchmark"] == "snapshot" and "what" in line
    }
    counts = sorted({count for count, _ in found})
    head = ("flags", MEMORY, *(f"{check}, us" for check in CHECKS))
    return [head, *((f"{count:,}", *(found[count, what] for what in whats)) for count in counts)]


def _peers(kept: Sequence[Kept]) -> list[Row]:
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
        found.setdefault(name, {})[cost] = rounded(line["value"])
        if "flagkit_ns" in line:
            found["flagkit"].setdefault(cost, rounded(line["flagkit_ns"] / 1000))
    rows = [
        (f"{name} {versions.get(name, '')}", *(costs.get(cost, "") for cost in COSTS))
        for name, costs in found.items()
    ]
    return [head, *rows]


def _text(rows: Sequence[Row]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
