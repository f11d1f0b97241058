"""What the page of --report shows of the layers: errors before and after, what the search chose, outliers.

Where a block has several layers of one kind (experts), their mean is shown. The rest of the page is report_page.py.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from statistics import fmean

from awq.charts import LogAxis, Series, heat_map, legend, panel
from awq.layer_figures import QUANTILES, LayerFigures
from awq.report_format import percent, short, table

WORST = 8  # layers listed by name
ERRORS = (
    ("before", "rounded to nearest", "rounding_error"),
    ("scaled", "scaled", "scaled_error"),
    ("after", "scaled and clipped", "clipped_error"),
)
SPREAD = (("after", "largest", 1.0), ("scaled", "99 %", 0.99), ("before", "median", 0.5))
ByBlock = dict[int, float]


def layers(figures: Sequence[LayerFigures]) -> list[str]:
    """Errors, choices and outliers of all layers."""
    if not figures:
        return [
            "<section><h2>Layers</h2><p>No figures: the weights were rounded to nearest, or the results file is of a "
            "search that kept none.</p></section>"
        ]
    return [errors(figures), worst(figures), choices(figures), outliers(figures)]


def errors(figures: Sequence[LayerFigures]) -> str:
    """Error of every layer before and after, a panel for each kind of layer."""
    axis = LogAxis.around((getattr(item, name) for item in figures for _, _, name in ERRORS), percent)
    lines = [(style, name) for style, name, _ in ERRORS]
    drawn = panels(lines, [by_kind(figures, attrgetter(name)) for _, _, name in ERRORS], axis, last_block(figures))
    told = "Squared error of a layer's output over the calibration tokens, as a share of the output's energy; by block."
    return f"<section><h2>Output error</h2><p>{told}</p>{legend(lines)}{drawn}</section>"


def worst(figures: Sequence[LayerFigures]) -> str:
    """The layers that lose most after all."""
    ordered = sorted(figures, key=lambda item: item.clipped_error, reverse=True)[:WORST]
    rows = [
        [
            item.layer,
            *(percent(getattr(item, name)) for _, _, name in ERRORS),
            "" if item.ratio is None else f"{item.ratio:.2f}",
            percent(item.clipped_groups),
        ]
        for item in ordered
    ]
    names = ["layer", *(name for _, name, _ in ERRORS), "ratio", "groups clipped"]
    return f"<section><h2>Layers with the largest error</h2>{table(names, rows)}</section>"


def choices(figures: Sequence[LayerFigures]) -> str:
    """Ratios of the scales and shares of what was clipped."""
    end = last_block(figures)
    maps = ""
    scaled = [item for item in figures if item.ratio is not None]
    if scaled:
        ratios = by_kind(scaled, attrgetter("ratio"))
        maps += heat_map("Scale: power of mean |x|", ratios, end, 1.0, lambda value: f"{value:.2f}")
    for name, title in (
        ("clipped_groups", "Groups that are clipped"),
        ("clipped_weights", "Weights beyond their bound"),
    ):
        shares = by_kind(figures, attrgetter(name))
        top = max(value for row in shares.values() for value in row.values())
        maps += heat_map(title, shares, end, top, percent)
    return (
        f"<section><h2>What the search chose</h2><p>Rows are kinds of layers, columns are blocks.</p>{maps}</section>"
    )


def outliers(figures: Sequence[LayerFigures]) -> str:
    """How far the largest activations and weights lie above the median."""
    lines, body = [(style, label) for style, label, _ in SPREAD], ""
    for name, title in (
        ("activation_quantiles", "Activations: mean |x| of the input channels"),
        ("weight_quantiles", "Weights: |w|"),
    ):
        values = [
            by_kind(figures, lambda item, name=name, at=at: getattr(item, name)[at])  # type: ignore[misc]
            for at in (QUANTILES.index(share) for _, _, share in SPREAD)
        ]
        axis = LogAxis.around((value for kinds in values for row in kinds.values() for value in row.values()), short)
        body += f"<h3>{title}</h3>{panels(lines, values, axis, last_block(figures))}"
    return f"<section><h2>Outliers</h2><p>What makes rounding hard, by block.</p>{legend(lines)}{body}</section>"


def panels(lines: Sequence[tuple[str, str]], values: Sequence[Mapping[str, ByBlock]], axis: LogAxis, end: int) -> str:
    """A panel for each kind of layer.

    Args:
        lines: style and name of each line in a panel.
        values: of each line, by kind of layer and block.
        end: the last block.
    """
    drawn = [
        panel(
            kind,
            [Series(name, style, line[kind]) for (style, name), line in zip(lines, values, strict=True)],
            axis,
            end,
        )
        for kind in values[0]
    ]
    return f'<div class="panels">{"".join(drawn)}</div>'


def by_kind(figures: Sequence[LayerFigures], value: Callable[[LayerFigures], float]) -> dict[str, ByBlock]:
    """kind of layer ("self_attn.q_proj") -> block -> value; numbers inside a kind become *."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for item in figures:
        block, kind = place(item.layer)
        found[kind][block].append(value(item))
    return {kind: {block: fmean(values) for block, values in blocks.items()} for kind, blocks in found.items()}


def place(layer: str) -> tuple[int, str]:
    """Block and kind of "model.layers.3.mlp.experts.5.up_proj": 3 and "mlp.experts.*.up_proj"."""
    match = re.fullmatch(r"\D*?\.?(\d+)\.(.+)", layer)
    if match is None:
        return 0, layer
    return int(match[1]), re.sub(r"(?<=\.)\d+(?=\.)", "*", match[2])


def last_block(figures: Sequence[LayerFigures]) -> int:
    return max(place(item.layer)[0] for item in figures)
