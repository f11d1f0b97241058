"""What the search found about one Linear, in plain numbers: what the report shows.

Errors are those of the layer's output over the calibration tokens, relative to the energy of that output. It decides
which figures there are and how they are measured; who searches and how they are shown is decided elsewhere.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from awq.quantize import QuantConfig, fake_quantize

# Where the distributions of |x| and |w| are read; the last ones show outliers.
QUANTILES = (0.0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 1.0)
# Of a large layer only so many rows, evenly spread, are measured: the products cost rows x K^2.
ROWS = 256


@dataclass(frozen=True)
class LayerFigures:
    """One Linear.

    Attributes:
        layer: global name.
        ratio: the power of mean |x| that was chosen as its scale; None where it is not scaled by such a power.
        rounding_error: relative output error when its weights are rounded to nearest.
        scaled_error: the same after scaling.
        clipped_error: the same after scaling and clipping.
        clipped_groups: share of its groups whose bound is below their largest |w|.
        clipped_weights: share of its weights beyond the bound.
        activation_quantiles: of mean |x| over its input channels, at QUANTILES.
        weight_quantiles: of |w|, at QUANTILES.
    """

    layer: str
    ratio: float | None
    rounding_error: float
    scaled_error: float
    clipped_error: float
    clipped_groups: float
    clipped_weights: float
    activation_quantiles: tuple[float, ...]
    weight_quantiles: tuple[float, ...]

    def to_plain(self) -> dict[str, Any]:
        """Numbers, strings and lists only, for JSON and for files that are loaded with weights_only."""
        return asdict(self)

    @classmethod
    def from_plain(cls, value: Mapping[str, Any]) -> "LayerFigures":
        """The inverse of to_plain.

        Raises:
            TypeError, ValueError: a field is missing, unknown or not a number.
        """
        fields = dict(value)
        for name in ("activation_quantiles", "weight_quantiles"):
            fields[name] = tuple(map(float, fields.get(name, ())))
            if len(fields[name]) != len(QUANTILES):
                raise ValueError(f"{name} must hold {len(QUANTILES)} numbers, got {len(fields[name])}")
        return cls(**fields)


def measure(
    layer: str,
    weight: Tensor,
    gram: Tensor,
    mean_abs: Tensor,
    config: QuantConfig,
    *,
    ratio: float | None = None,
    scales: Tensor | None = None,
    bound: Tensor | None = None,
) -> LayerFigures:
    """The figures of one Linear.

    With y = x W^T, an error dW costs tr(dW H dW^T) / tr(W H W^T), H = X^T X / tokens.

    Args:
        layer: global name.
        weight: as it is rounded, scales included: [N, K].
        gram: H [K, K] of the unscaled inputs.
        mean_abs: mean |x| of the unscaled inputs [K].
        ratio: what the scales are a power of.
        scales: t [K], by which `weight` was multiplied; None: it was not scaled.
        bound: lowest and highest weight kept of each group of `weight`, [N, K/G, 2]; None: it is not clipped.
    """
    step = -(-weight.shape[0] // ROWS)
    scaled = weight[::step].float()
    t = torch.ones_like(scaled[0]) if scales is None else scales.to(scaled)
    plain = scaled / t
    clipped, clipped_groups, clipped_weights = scaled, 0.0, 0.0
    if bound is not None:
        low, high = bound[::step].to(scaled).split(1, -1)
        groups = scaled.view(*low.shape[:2], -1)
        # a bound that is the group's own lowest or highest weight clips nothing
        beyond = (groups > high * (1 + 1e-5)) | (groups < low * (1 + 1e-5))
        clipped_groups, clipped_weights = float(beyond.any(-1).float().mean()), float(beyond.float().mean())
        clipped = groups.clamp(low, high).view_as(scaled)
    gram = gram.to(scaled)

    def energy(change: Tensor) -> float:
        return float(torch.sum((change @ gram).mul_(change)))

    whole = max(energy(plain), torch.finfo(torch.float32).tiny)
    return LayerFigures(
        layer,
        ratio,
        rounding_error=energy(fake_quantize(plain, config) - plain) / whole,
        scaled_error=energy(fake_quantize(scaled, config) / t - plain) / whole,
        clipped_error=energy(fake_quantize(clipped, config) / t - plain) / whole,
        clipped_groups=clipped_groups,
        clipped_weights=clipped_weights,
        activation_quantiles=_quantiles(mean_abs),
        weight_quantiles=_quantiles(plain.abs()),
    )


def _quantiles(values: Tensor) -> tuple[float, ...]:
    """At QUANTILES, each an observed value, so that a single outlier is seen at its own height."""
    ordered = values.float().flatten().sort().values
    return tuple(float(ordered[round(q * (len(ordered) - 1))]) for q in QUANTILES)
