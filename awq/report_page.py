"""The page of --report: one HTML file with its style and its charts inside, that needs nothing else, also in print.

Decides what is shown and in which order. Where a block has several layers of one kind (experts), their mean is shown.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib.resources import files
from operator import attrgetter
from pathlib import PurePath
from statistics import fmean
from typing import Any

from awq.charts import LogAxis, Series, heat_map, legend, panel
from awq.layer_figures import QUANTILES, LayerFigures
from awq.report import Report, Sizes

WORST = 8  # layers listed by name
ERRORS = (
    ("before", "rounded to nearest", "rounding_error"),
    ("scaled", "scaled", "scaled_error"),
    ("after", "scaled and clipped", "clipped_error"),
)
SPREAD = (("after", "largest", 1.0), ("scaled", "99 %", 0.99), ("before", "median", 0.5))
ByBlock = dict[int, float]
SCORE_NAMES = {
    "perplexity": "perplexity",
    "perplexity_16_bit": "in 16 bits",
    "kl_mean": "KL mean, nats",
    "kl_p99": "KL 99 %, nats",
    "top1_agreement": "same first choice",
    "num_windows": "windows",
    "window_tokens": "tokens each",
}


def render(report: Report) -> str:
    """The page."""
    config = report.config
    rounding = "asymmetric" if config.zero_point else "symmetric"
    groups = "whole rows" if config.group_size == -1 else f"groups of {config.group_size}"
    style = files("awq").joinpath("report.css").read_text(encoding="utf-8")
    sections = [cards(report), quality(report.scores), *layers(report.figures), origin(report)]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(report.model)}: AWQ report</title><style>{style}</style></head>
<body><header><h1>{escape(report.model)}</h1>
<p>AWQ, {config.bits} bits, {groups}, {rounding}</p></header>
<main>{"".join(sections)}</main></body></html>
"""


def cards(report: Report) -> str:
    """The few numbers that matter most."""
    shown = [size_card(report.sizes)]
    text = next((values for values in report.scores.values() if "perplexity" in values), None)
    if text is not None:
        before = text.get("perplexity_16_bit")
        small = f"{before:.2f} in 16 bits" if before else "--kl adds the 16-bit model's"
        shown.append(card("Perplexity", f"{text['perplexity']:.2f}", small))
        if "kl_mean" in text:
            shown.append(card("KL divergence", f"{text['kl_mean']:.4f}", f"nats; 99 % below {text['kl_p99']:.3f}"))
            shown.append(card("Same first choice", percent(text["top1_agreement"]), "of the next tokens"))
    if report.figures:
        before, after = (
            fmean(getattr(item, name) for item in report.figures) for name in ("rounding_error", "clipped_error")
        )
        shown.append(card("Output error", percent(after), f"mean of the layers; {percent(before)} rounded to nearest"))
    return f'<section class="cards">{"".join(shown)}</section>'


def size_card(sizes: Sizes) -> str:
    kind = "weights on disk" if sizes.written else "weights, not written yet"
    small = f"{megabytes(sizes.before)} before: {sizes.before / sizes.after:.2f} times smaller"
    return card("Size", megabytes(sizes.after), f"{kind}; {small}")


def card(name: str, value: str, small: str) -> str:
    return f"<div><h2>{escape(name)}</h2><strong>{escape(value)}</strong><small>{escape(small)}</small></div>"


def quality(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of texts and one of tasks, as far as there are any."""
    texts = {name: values for name, values in scores.items() if "perplexity" in values}
    tasks = {name: values for name, values in scores.items() if name not in texts}
    body = ""
    if texts:
        columns = [key for key in SCORE_NAMES if any(key in values for values in texts.values())]
        rows = [[PurePath(name).name, *(number(values.get(key)) for key in columns)] for name, values in texts.items()]
        body += table(["text", *(SCORE_NAMES[key] for key in columns)], rows)
    if tasks:
        rows = [[name, str(key), number(value)] for name, values in tasks.items() for key, value in values.items()]
        body += table(["task", "score", ""], rows)
    body = body or "<p>Not evaluated; --eval_file TEXT --kl adds perplexity and KL divergence.</p>"
    return f"<section><h2>Quality</h2>{body}</section>"


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
    kinds = [by_kind(figures, attrgetter(name)) for _, _, name in ERRORS]
    panels = [
        panel(
            kind,
            [Series(name, style, values[kind]) for (style, name, _), values in zip(ERRORS, kinds, strict=True)],
            axis,
            last_block(figures),
        )
        for kind in kinds[0]
    ]
    told = "Squared error of a layer's output over the calibration tokens, as a share of the output's energy; by block."
    keys = legend([(style, name) for style, name, _ in ERRORS])
    return f'<section><h2>Output error</h2><p>{told}</p>{keys}<div class="panels">{"".join(panels)}</div></section>'


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
    body = ""
    for name, title in (
        ("activation_quantiles", "Activations: mean |x| of the input channels"),
        ("weight_quantiles", "Weights: |w|"),
    ):
        values = [
            by_kind(figures, lambda item, name=name, at=at: getattr(item, name)[at])  # type: ignore[misc]
            for at in (QUANTILES.index(share) for _, _, share in SPREAD)
        ]
        axis = LogAxis.around((value for kinds in values for row in kinds.values() for value in row.values()), short)
        panels = [
            panel(
                kind,
                [Series(label, style, kinds[kind]) for (style, label, _), kinds in zip(SPREAD, values, strict=True)],
                axis,
                last_block(figures),
            )
            for kind in values[0]
        ]
        body += f'<h3>{title}</h3><div class="panels">{"".join(panels)}</div>'
    keys = legend([(style, label) for style, label, _ in SPREAD])
    return f"<section><h2>Outliers</h2><p>What makes rounding hard, by block.</p>{keys}{body}</section>"


def origin(report: Report) -> str:
    """The command and the versions."""
    used = ", ".join(f"{name} {number}" for name, number in report.versions.items())
    return f"<section><h2>Made by</h2><pre>{escape(report.command)}</pre><p>{escape(used)}</p></section>"


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


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def percent(share: float) -> str:
    """A share with about two digits."""
    value = 100 * share
    return f"{value:.0f} %" if value >= 10 else f"{value:.1f} %" if value >= 1 else f"{value:.2g} %"


def short(value: float) -> str:
    return f"{value:.3g}"


def number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "" if value is None else str(value)


def megabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
