"""One token of a decoding model, kernel by kernel with the gaps between, as a table and a picture.

    python -m benchmarks.timeline TRACE.json PICTURE.png [--step "decode step"]

TRACE is what torch.profiler's export_chrome_trace wrote of steps under record_function(STEP), as
`bench_decode_gpu --trace` makes them. Shows the token of median length. The picture needs matplotlib (the extra
`plots`).
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.decode.steps import STEP_NAME
from benchmarks.decode.trace import Kernel, Token, average_layer, by_op, layers, median_token, read_tokens

SIZE_INCHES = (14.0, 4.6)
SHOWN_LAYER = 1  # whose kernels the lower half has: the first one may differ


def show(path: Path, picture: Path, step: str = STEP_NAME) -> dict[str, Any]:
    """Prints the table and draws the picture; returns what the table holds.

    Raises:
        ValueError: the trace holds no two steps with kernels.
    """
    tokens = read_tokens(path, step)
    token = median_token(tokens)
    print(*table(token, len(tokens)), sep="\n")
    try:
        draw(token, picture)
        print(f"drawn in {picture}")
    except ImportError as error:
        print(f"no picture: {error} (pip install 'tinyserve[plots]')")
    parts = layers(token)
    return {
        "period_us": token.period_us,
        "busy_us": token.busy_us,
        "gaps_us": token.gaps_us,
        "periods_us": [each.period_us for each in tokens],
        "num_layers": len(parts),
        "layer": [asdict(place) for place in average_layer(parts)],
        "ops": {op: {"kernels": n, "us": us, "gaps_us": gaps} for op, (n, us, gaps) in by_op(token).items()},
        "kernels": [asdict(kernel) for kernel in token.kernels],
    }


def table(token: Token, num_tokens: int) -> list[str]:
    total = token.period_us
    parts = layers(token)
    lines = [
        f"one token (the median of {num_tokens}): {total:.1f} us, {len(token.kernels)} kernels {token.busy_us:.1f} us "
        f"({token.busy_us / total:.1%}), gaps {token.gaps_us:.1f} us ({token.gaps_us / total:.1%})"
    ]
    if parts:
        lines.append(f"a layer, the mean of {len(parts)}:{'kernel us':>26} {'gap before us':>14}")
        average = average_layer(parts)
        lines += [f"  {place.op:<32} {place.alone_us:>11.2f} {place.gap_us:>14.2f}" for place in average]
        sums = (sum(place.alone_us for place in average), sum(place.gap_us for place in average))
        lines.append(f"  {'layer':<32} {sums[0]:>11.2f} {sums[1]:>14.2f}")
    lines.append(f"{'the token':<34}{'kernel us':>12} {'gaps us':>14} {'kernels':>8} {'of all':>7}")
    for op, (count, alone, gap) in by_op(token).items():
        lines.append(f"  {op:<32} {alone:>11.1f} {gap:>14.1f} {count:>8} {alone / total:>7.1%}")
    return lines


def draw(token: Token, path: Path) -> None:
    """The whole token above, one of its layers below."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    palette = pyplot.get_cmap("tab20")
    colors = {op: palette(index % 20) for index, op in enumerate(by_op(token))}
    parts = layers(token)
    shown = parts[min(SHOWN_LAYER, len(parts) - 1)] if parts else token.kernels[:20]
    figure, (whole, layer) = pyplot.subplots(2, 1, figsize=SIZE_INCHES, layout="constrained")

    def bars(axes: Any, kernels: Any, labelled: bool) -> None:
        for kernel in kernels:
            axes.broken_barh([(kernel.start_us, kernel.duration_us)], (0, 1), color=colors[kernel.op], linewidth=0)
            if labelled:
                middle = kernel.start_us + kernel.duration_us / 2
                text = f"{kernel.op}\n{kernel.duration_us:.1f}"
                axes.text(middle, 0.5, text, ha="center", va="center", rotation=90, fontsize=7)
        axes.set_yticks([])
        axes.set_xlabel("us")

    bars(whole, token.kernels, labelled=False)
    whole.set_xlim(0, token.period_us)
    share = token.gaps_us / token.period_us
    whole.set_title(f"one token: {token.period_us:.0f} us, of which no kernel runs in {share:.1%}", fontsize=9)
    bars(layer, shown, labelled=True)
    begin, end = span(shown)
    layer.set_xlim(begin, end)
    layer.set_title(f"{'one layer' if parts else 'its beginning'}: {end - begin:.1f} us", fontsize=9)
    handles = [Patch(color=color, label=op) for op, color in colors.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(8, len(handles)), fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def span(kernels: Any) -> tuple[float, float]:
    """From the first one's start, its gap included, to the last one's end."""
    first: Kernel = kernels[0]
    return first.start_us - first.gap_us, max(kernel.start_us + kernel.duration_us for kernel in kernels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--step", default=STEP_NAME, help="name of the annotation around each step")
    args = parser.parse_args()
    show(args.trace, args.picture, args.step)


if __name__ == "__main__":
    main()
