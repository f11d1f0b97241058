"""Inline SVG charts: small panels of lines over the blocks of a model, and heat maps of kinds of layers over blocks.

Colours are CSS classes and variables of the page they stand in. Knows nothing of quantization.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 330, 170
LEFT, RIGHT, TOP, BOTTOM = 54, 8, 8, 22  # of a panel, to its plot area
MAX_TICKS = 5
CELL, LABEL = 20, 190  # of a heat map: height of a row, width of its name


@dataclass(frozen=True)
class Series:
    """One line: y by x, drawn in the CSS class `style`."""

    name: str
    style: str
    points: Mapping[int, float]


@dataclass(frozen=True)
class LogAxis:
    """A logarithmic y axis that several panels share.

    Attributes:
        low, high: its ends, above 0.
        text: a value as its tick shows it.
    """

    low: float
    high: float
    text: Callable[[float], str]

    @classmethod
    def around(cls, values: Iterable[float], text: Callable[[float], str]) -> "LogAxis":
        """The axis that holds all positive values."""
        positive = [value for value in values if value > 0] or [1.0]
        low, high = min(positive), max(positive)
        return cls(low / 1.15, high * 1.15, text)

    def place(self, value: float) -> float:
        """0 at the lower end, 1 at the upper one; what is below the axis lies on its lower end."""
        return math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)

    def ticks(self) -> list[float]:
        """Round values, as many as fit: parts of powers of ten, the powers, or every second, third ... of them."""
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for steps, stride in (
            ((1, 1.5, 2, 3, 4, 5, 7), 1),
            ((1, 2, 5), 1),
            ((1, 3), 1),
            *(((1,), n) for n in range(1, 99)),
        ):
            found = [step * 10.0**power for power in range(first, last + 1) if power % stride == 0 for step in steps]
            found = [tick for tick in found if self.low <= tick <= self.high]
            if len(found) <= MAX_TICKS:
                break
        return found


def panel(title: str, series: Sequence[Series], axis: LogAxis, last_x: int) -> str:
    """A figure with a line for each series over x = 0 to last_x."""
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x_of(x: float) -> float:
        return LEFT + width * (x / last_x if last_x else 0.5)

    def y_of(y: float) -> float:
        return TOP + height * (1 - axis.place(y))

    parts = []
    for tick in axis.ticks():
        y = y_of(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{axis.text(tick)}</text>')
    for block in _x_ticks(last_x):
        parts.append(f'<text class="tick" x="{x_of(block):.1f}" y="{HEIGHT - 6}" text-anchor="middle">{block}</text>')
    for line in series:
        places = [(x, x_of(x), y_of(y)) for x, y in sorted(line.points.items())]
        path = " ".join(f"{x:.1f},{y:.1f}" for _, x, y in places)
        parts.append(f'<polyline class="line {line.style}" points="{path}"/>')
        for block, x, y in places:
            told = escape(f"{line.name}, block {block}: {axis.text(line.points[block])}")
            parts.append(
                f'<circle class="dot {line.style}" cx="{x:.1f}" cy="{y:.1f}" r="2"><title>{told}</title></circle>'
            )
    drawing = _svg(WIDTH, HEIGHT, parts, title)
    return f"<figure><figcaption>{escape(title)}</figcaption>{drawing}</figure>"


def heat_map(
    title: str, rows: Mapping[str, Mapping[int, float]], last_x: int, top: float, text: Callable[[float], str]
) -> str:
    """A figure with a row for each name and a cell for each x; full colour at `top`, none without a value."""
    width = 3 * WIDTH
    cell = (width - LABEL - RIGHT) / (last_x + 1)
    parts = []
    for number, (name, values) in enumerate(rows.items()):
        y = number * CELL
        parts.append(f'<text class="name" x="{LABEL - 10}" y="{y + 14}" text-anchor="end">{escape(name)}</text>')
        for x in range(last_x + 1):
            at = f'x="{LABEL + x * cell:.1f}" y="{y + 1}" width="{max(cell - 1.5, 0.5):.1f}" height="{CELL - 2}"'
            if x not in values:
                parts.append(f'<rect class="empty" {at}/>')
                continue
            told = escape(f"{name}, block {x}: {text(values[x])}")
            strength = min(max(values[x] / top, 0), 1) if top else 0.0
            parts.append(
                f'<rect class="empty" {at}/><rect class="cell" {at} fill-opacity="{strength:.3f}">'
                f"<title>{told}</title></rect>"
            )
    height = len(rows) * CELL + 18
    for x in _x_ticks(last_x):
        at = f'x="{LABEL + (x + 0.5) * cell:.1f}" y="{height - 4}"'
        parts.append(f'<text class="tick" {at} text-anchor="middle">{x}</text>')
    key = f'<span class="key"><i class="ramp"></i> 0 to {escape(text(top))}</span>'
    drawing = _svg(width, height, parts, title)
    return f'<figure class="wide"><figcaption>{escape(title)} {key}</figcaption>{drawing}</figure>'


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """(CSS class, name) of each line."""
    items = "".join(f'<span class="key"><i class="swatch {style}"></i>{escape(name)}</span>' for style, name in entries)
    return f'<p class="legend">{items}</p>'


def _x_ticks(last_x: int) -> list[int]:
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if last_x / step <= 8)
    return list(range(0, last_x + 1, step))


def _svg(width: int, height: int, parts: Sequence[str], title: str) -> str:
    body = "".join(parts)
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{body}</svg>'
