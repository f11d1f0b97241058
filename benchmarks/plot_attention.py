"""Draws a result of bench_attention: the share of the limit of every implementation, case by case, decode and prefill.

    python -m benchmarks.plot_attention RESULTS.json PICTURE.png

Needs matplotlib (the extra `plots`).
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.attention.peers.registry import NAMES, OURS

HEIGHT_PER_CASE, WIDTH = 0.32, 10.0  # inches
PHASES = {"decode": True, "prefill": False}


def label(row: dict[str, Any]) -> str:
    new = "" if row["queries"] == 1 else f", {row['queries']} new"
    return f"{row['heads']['name']} {row['batch']} x {row['context']}{new} {row['cache']}"


def draw(results: dict[str, Any], path: Path) -> None:
    """Raises ValueError where nothing was measured."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = [row for row in results["rows"] if row["implementations"]]
    phases = {name: [row for row in rows if (row["queries"] == 1) is decode] for name, decode in PHASES.items()}
    phases = {name: phase for name, phase in phases.items() if phase}
    if not phases:
        raise ValueError("no case was measured: nothing to draw")
    counts = [len(phase) for phase in phases.values()]
    figure, grid = pyplot.subplots(
        len(phases), 1, figsize=(WIDTH, HEIGHT_PER_CASE * sum(counts) + 1.8), squeeze=False, layout="constrained",
        gridspec_kw={"height_ratios": counts},
    )  # fmt: skip
    palette = pyplot.get_cmap("tab10")
    for axes, (name, phase) in zip(grid.flat, phases.items(), strict=True):
        for index, implementation in enumerate(NAMES):
            points = [
                (figures["of_limit"], place)
                for place, row in enumerate(phase)
                if (figures := row["implementations"].get(implementation))
            ]
            if points:
                ours = implementation == OURS
                size = 60 if ours else 25
                axes.scatter(*zip(*points, strict=True), s=size, color=palette(index), label=implementation, zorder=3)
        axes.set_yticks(range(len(phase)), [label(row) for row in phase], fontsize=7)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.05)
        axes.axvline(1.0, color="black", linestyle="--", linewidth=0.8)
        axes.set_xlabel(f"{name}: share of the limit")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, loc="best")
    figure.suptitle(f"attention over the paged cache, {results['gpu']['name']}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    draw(json.loads(args.results.read_text()), args.picture)
    print(args.picture)


if __name__ == "__main__":
    main()
