"""Rotary position embedding: the table of cosines and sines for every position, made once at load.

The formulas are those of transformers' modeling_rope_utils (rope types "default", "linear", "llama3"), so that a model
sees the frequencies it was trained with. The rotation itself happens in ops.rope_kv_write.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True)
class RopeConfig:
    """Rotary settings of one model, as config.json states them."""

    theta: float = 10000.0
    rope_type: str = "default"
    rotary_dim: int = 0  # R, dimensions of a head that are rotated
    factor: float = 1.0
    low_freq_factor: float = 1.0  # these three: "llama3" only
    high_freq_factor: float = 4.0
    original_context: int = 8192

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], head_dim: int) -> "RopeConfig":
        """Reads transformers 5's "rope_parameters", or the older "rope_theta" with "rope_scaling".

        Raises:
            ValueError: the rope type is not supported, or a setting it needs is missing.
        """
        # rope_scaling is None in most configs
        settings = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
        rope_type = settings.get("rope_type") or settings.get("type") or "default"
        if rope_type not in ROPE_TYPES:
            raise ValueError(f"config.json: rope_type must be one of {', '.join(ROPE_TYPES)}, got {rope_type!r}")
        needed = {"default": (), "linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor")}
        for name in needed[rope_type]:
            if name not in settings:
                raise ValueError(f"config.json: rope_type {rope_type!r} needs {name!r}")
        partial = settings.get("partial_rotary_factor", config.get("partial_rotary_factor") or 1.0)
        original = settings.get("original_max_position_embeddings") or config.get("max_position_embeddings") or 8192
        return cls(
            theta=float(settings.get("rope_theta") or config.get("rope_theta") or 10000.0),
            rope_type=rope_type,
            rotary_dim=int(head_dim * partial),
            factor=float(settings.get("factor") or 1.0),
            low_freq_factor=float(settings.get("low_freq_factor") or 1.0),
            high_freq_factor=float(settings.get("high_freq_factor") or 4.0),
            original_context=int(original),
        )


def _inverse_frequencies(config: RopeConfig) -> Tensor:
    """[R/2]."""
    exponents = torch.arange(0, config.rotary_dim, 2, dtype=torch.int64).float() / config.rotary_dim
    frequencies = 1.0 / (config.theta**exponents)
    if config.rope_type == "linear":
        return frequencies / config.factor
    if config.rope_type == "llama3":
        return _llama3(frequencies, config)
    return frequencies


def _llama3(frequencies: Tensor, config: RopeConfig) -> Tensor:
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended (Llama 3.1's long context)."""
    low, high = config.low_freq_factor, config.high_freq_factor
    wavelengths = 2 * math.pi / frequencies
    stretched = torch.where(wavelengths > config.original_context / low, frequencies / config.factor, frequencies)
    smooth = (config.original_context / wavelengths - low) / (high - low)
    blended = (1 - smooth) * stretched / config.factor + smooth * stretched
    is_between = (wavelengths >= config.original_context / high) & (wavelengths <= config.original_context / low)
    return torch.where(is_between, blended, stretched)


def cos_sin_table(config: RopeConfig, num_positions: int, device: torch.device) -> Tensor:
    """fp32 [num_positions, R]: cosines in the first half of a row, sines in the second."""
    positions = torch.arange(num_positions, dtype=torch.float32)
    angles = torch.outer(positions, _inverse_frequencies(config))
    return torch.cat([angles.cos(), angles.sin()], dim=-1).to(device)
