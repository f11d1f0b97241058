"""Finds the per-channel scale of a group of Linears that read the same input.

Large input channels matter more; multiplying their weights by t > 1 before rounding, and dividing the input by t, makes
their rounding error smaller. The candidates are those of AWQ (Lin et al., 2023, section 3.2, and llm-awq's
auto_scale.py): powers 0, 1/20 .. 19/20 of the mean |x| of each channel. Power 0 is the identity, so no group gets
worse than unscaled. Pure functions; where statistics come from and where scales go is decided elsewhere.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from awq.quantize import QuantConfig, fake_quantize

GRID = 20
SMALLEST_SCALE = 1e-4
ROWS = 2048  # of a group's weights that judge a scale: each candidate costs rows x K^2


@dataclass(frozen=True)
class ScaleChoice:
    """The best candidate: t [K], its power of mean |x|, its loss and that of no scaling."""

    scales: Tensor
    ratio: float
    loss: float
    unscaled_loss: float


def candidates(mean_abs: Tensor) -> Iterator[tuple[float, Tensor]]:
    """Every power r and its t = clamp(a^r, 1e-4), normalised so that its largest times its smallest value is 1.

    Args:
        mean_abs: a [K], the mean of |x| over the calibration tokens.
    """
    for step in range(GRID):
        ratio = step / GRID
        t = mean_abs.float().pow(ratio).clamp(min=SMALLEST_SCALE)
        yield ratio, t / (t.max() * t.min()).sqrt()


def scaled_error(weight: Tensor, t: Tensor, config: QuantConfig) -> Tensor:
    """dW = Q(W * t) / t - W [N, K] for a weight W [N, K] and a scale t [K]."""
    return fake_quantize(weight * t, config).div_(t).sub_(weight)


def gram_loss(weight: Tensor, t: Tensor, gram: Tensor, config: QuantConfig) -> float:
    """Output error of the rounded group over all calibration tokens, in closed form.

    The error of y = x W^T is x dW^T; its square summed over outputs and averaged over tokens is tr(dW H dW^T) with
    H = X^T X / tokens. Nothing depends on the number of tokens.

    Args:
        weight: W [N, K], the Linears of the group stacked.
        t: [K].
        gram: H [K, K].
    """
    error = scaled_error(weight, t, config)
    return float(torch.sum((error @ gram).mul_(error)))


def some_rows(weight: Tensor) -> Tensor:
    """At most ROWS rows of [N, K], evenly spread: a scale belongs to a column, and so many rows agree on it."""
    return weight[:: -(-len(weight) // ROWS)]


def best_scale(mean_abs: Tensor, loss: Callable[[Tensor], float]) -> ScaleChoice:
    """The candidate with the smallest loss.

    Args:
        mean_abs: [K].
        loss: of one t.

    Raises:
        ValueError: no candidate has a finite loss.
    """
    best: tuple[float, float, Tensor] | None = None
    unscaled = math.inf
    for ratio, t in candidates(mean_abs):
        value = loss(t)
        if ratio == 0:
            unscaled = value
        if math.isfinite(value) and (best is None or value < best[0]):
            best = (value, ratio, t)
    if best is None:
        raise ValueError("no scale gives a finite error")
    return ScaleChoice(best[2], best[1], best[0], unscaled)
