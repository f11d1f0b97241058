"""The page of --report: one HTML file with its style and its charts inside, that needs nothing else, also in print.

Decides what is shown and in which order; the sections about layers are in report_layers.py.
"""

from collections.abc import Mapping
from html import escape
from importlib.resources import files
from pathlib import PurePath
from statistics import fmean
from typing import Any

from awq.report import Report, Sizes
from awq.report_format import megabytes, number, percent, table
from awq.report_layers import layers

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


def origin(report: Report) -> str:
    """The command and the versions."""
    used = ", ".join(f"{name} {number}" for name, number in report.versions.items())
    return f"<section><h2>Made by</h2><pre>{escape(report.command)}</pre><p>{escape(used)}</p></section>"
