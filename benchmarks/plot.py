"""Plot: what a flag takes up and what a check costs, against the number of flags.

Drawn from kept results of `snapshot` and `peers`, with matplotlib (extra `bench`).
"""

from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final, TypeAlias

from msgspec import Struct

IMAGE: Final = Path(__file__).parent.parent / "docs" / "performance.png"
CHECKS: Final = ("one hot flag", "hot flags at random", "a cold flag")
MEMORY: Final = "bytes a flag"
PEERS_CASE: Final = "W2"

Point: TypeAlias = tuple[float, float]
"""A number of flags, and a cost."""


class Curves(Struct, frozen=True):
    """What is drawn: flagkit's costs by number of flags, and peers' beside them.

    `costs` are points by what is measured, ascending. `peer_memory` has a point of each peer,
    `peer_checks` the microseconds of a check of W2.
    """

    costs: Mapping[str, list[Point]]
    peer_memory: Mapping[str, Point]
    peer_checks: Mapping[str, float]


def build_curves(lines: Iterable[Mapping[str, Any]]) -> Curves:
    """Return what is to be drawn of kept results."""
    costs: dict[str, list[Point]] = {what: [] for what in (MEMORY, *CHECKS)}
    peer_memory: dict[str, Point] = {}
    peer_checks: dict[str, float] = {}
    for line in lines:
        name, _, what = line["case"].partition(" ")
        if line["benchmark"] == "snapshot" and "what" in line:
            costs[line["what"]].append((line["flag_count"], line["value"]))
        elif line["benchmark"] == "peers" and "value" in line and name != "flagkit":
            if what.startswith(MEMORY):
                peer_memory[name] = (line["flag_count"], line["value"])
            elif what == PEERS_CASE:
                peer_checks[name] = line["value"]
    return Curves(
        {what: sorted(points) for what, points in costs.items()}, peer_memory, peer_checks
    )


def draw(curves: Curves, image: Path) -> None:
    """Write a PNG of two panels, of memory and of time.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    import_module("matplotlib").use("Agg")
    figure, (memory, checks) = import_module("matplotlib.pyplot").subplots(
        1, 2, figsize=(11, 4.5), layout="constrained"
    )
    memory.plot(*zip(*curves.costs[MEMORY], strict=True), marker="o", label="flagkit")
    for peer, (count, value) in curves.peer_memory.items():
        memory.plot([count], [value], marker="x", color="grey", linestyle="")
        memory.annotate(f" {peer}", (count, value), va="center", color="grey")
    memory.set(title="memory", ylabel="bytes a flag")
    for what in CHECKS:
        checks.plot(*zip(*curves.costs[what], strict=True), marker="o", label=what)
    for peer, value in curves.peer_checks.items():
        checks.axhline(value, color="grey", linewidth=0.8, linestyle=":")
        checks.annotate(f"{peer}, hot", (1_000, value), va="bottom", color="grey")
    checks.set(title="time", ylabel="microseconds a check")
    for panel in (memory, checks):
        panel.set(xlabel="flags", xscale="log", yscale="log")
        panel.grid(visible=True, which="major", alpha=0.3)
        panel.legend()
    memory.set_ylim(bottom=30)
    # Without the version of matplotlib, the same results are the same bytes.
    figure.savefig(image, dpi=110, metadata={"Software": None})
