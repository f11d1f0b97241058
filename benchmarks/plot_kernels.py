"""Draws a result of bench_kernels: speed-up over cuBLAS against M, a line for each implementation, the limit above.

    python -m benchmarks.plot_kernels RESULTS.json PICTURE.png [--dtype bfloat16]

Needs matplotlib (the extra `plots`).
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from benchmarks.kernels.peers.registry import BASELINE, NAMES, OURS

COLUMNS = 3
LIMIT = "limit"
SIZE_INCHES = (4.6, 3.4)  # of one shape's plot


def speedups(rows: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """(M, time of cuBLAS over its own) for each implementation and the limit, of the rows of one shape and dtype."""
    lines: dict[str, list[tuple[int, float]]] = {LIMIT: []}
    for row in sorted(rows, key=lambda row: row["rows"]):
        baseline = row["implementations"].get(BASELINE)
        if baseline is None:
            continue
        lines[LIMIT].append((row["rows"], baseline["us"] / row["limit_us"]))
        for name, figures in row["implementations"].items():
            lines.setdefault(name, []).append((row["rows"], baseline["us"] / figures["us"]))
    return {name: points for name, points in lines.items() if points}


def draw(results: dict[str, Any], dtype: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    by_shape: dict[str, list[dict[str, Any]]] = {}
    for row in results["rows"]:
        if row["dtype"] == dtype:
            by_shape.setdefault(f"{row['n']} x {row['k']}\n{', '.join(row['layers'])}", []).append(row)
    plots = {title: lines for title, rows in by_shape.items() if (lines := speedups(rows))}
    if not plots:
        raise ValueError(f"no case of {dtype} with {BASELINE}: nothing to draw")
    columns = min(COLUMNS, len(plots))
    rows = math.ceil(len(plots) / columns)
    size = (SIZE_INCHES[0] * columns, SIZE_INCHES[1] * rows + 0.6)
    figure, grid = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    palette = pyplot.get_cmap("tab10")
    colors = {name: palette(index) for index, name in enumerate(NAMES)}
    for axes, (title, lines) in zip(grid.flat, plots.items(), strict=False):
        for name, points in lines.items():
            style = {"color": "black", "linestyle": "--"} if name == LIMIT else {"color": colors[name], "marker": "."}
            axes.plot(*zip(*points, strict=True), label=name, linewidth=2.5 if name == OURS else 1.2, **style)
        axes.set_title(title, fontsize=8)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("M (rows)")
        axes.set_ylabel(f"speed-up over {BASELINE}")
        axes.grid(alpha=0.3)
    for axes in list(grid.flat)[len(plots) :]:
        axes.set_visible(False)
    handles = {label: line for axes in grid.flat for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles))
    figure.suptitle(f"W4A16, {dtype}, {results['gpu']['name']}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()
    draw(json.loads(args.results.read_text()), args.dtype, args.picture)
    print(args.picture)


if __name__ == "__main__":
    main()
