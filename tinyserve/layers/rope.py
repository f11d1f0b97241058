"""Rotary position embedding: the table of cosines and sines for every position, made once at load.

Which frequencies a model has is rope_scaling.py's business. The rotation itself happens in ops.rope_kv_write.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tinyserve.layers.rope_scaling import SCALINGS, Scaling, Unscaled


@dataclass(frozen=True)
class RopeConfig:
    """Rotary settings of one model, as config.json states them."""

    theta: float = 10000.0
    rotary_dim: int = 0  # R, dimensions of a head that are rotated
    scaling: Scaling = field(default_factory=Unscaled)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], head_dim: int) -> "RopeConfig":
        """Reads transformers 5's "rope_parameters", or the older "rope_theta" with "rope_scaling".

        Raises:
            ValueError: the rope type is not supported, or a setting it needs is missing.
        """
        # rope_scaling is None in most configs
        settings = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
        rope_type = settings.get("rope_type") or settings.get("type") or "default"
        if rope_type not in SCALINGS:
            raise ValueError(f"config.json: rope_type must be one of {', '.join(SCALINGS)}, got {rope_type!r}")
        positions = config.get("max_position_embeddings") or 8192
        trained = config.get("original_max_position_embeddings") or settings.get("original_max_position_embeddings")
        known = {"max_position_embeddings": positions, "original_max_position_embeddings": trained or positions}
        partial = settings.get("partial_rotary_factor", config.get("partial_rotary_factor") or 1.0)
        return cls(
            theta=float(settings.get("rope_theta") or config.get("rope_theta") or 10000.0),
            rotary_dim=int(head_dim * partial),
            scaling=SCALINGS[rope_type].read({**settings, **known, "rope_type": rope_type}),
        )


def cos_sin_table(config: RopeConfig, num_positions: int, device: torch.device) -> Tensor:
    """fp32 [num_positions, R]: cosines in the first half of a row, sines in the second."""
    frequencies = config.scaling.frequencies(config.theta, config.rotary_dim, num_positions)
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), frequencies)
    return (torch.cat([angles.cos(), angles.sin()], dim=-1) * config.scaling.attention_factor).to(device)
