"""Rotary tables against the frequencies that transformers computes from the same settings."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from tinyserve.layers.rope import RopeConfig, cos_sin_table

HEAD_DIM = 64
SETTINGS: list[dict[str, Any]] = [
    {"rope_type": "default", "rope_theta": 100000.0},
    {"rope_type": "linear", "rope_theta": 10000.0, "factor": 8.0},
    {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings["rope_type"])
def test_table_equals_transformers(settings: dict[str, Any]) -> None:
    config = LlamaConfig(head_dim=HEAD_DIM, rope_parameters=settings, max_position_embeddings=131072)
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(3000)[None])  # [1, P, D], halves repeated
    table = cos_sin_table(RopeConfig.from_hf(config.to_dict(), HEAD_DIM), 3000, torch.device("cpu"))
    assert table.shape == (3000, HEAD_DIM)
    expected = torch.cat([cos[0, :, : HEAD_DIM // 2], sin[0, :, : HEAD_DIM // 2]], dim=-1)
    torch.testing.assert_close(table, expected, rtol=0, atol=1e-6)


def test_a_part_of_the_head_may_be_rotated() -> None:
    config = RopeConfig.from_hf({"rope_theta": 10000.0, "partial_rotary_factor": 0.5}, HEAD_DIM)
    assert cos_sin_table(config, 10, torch.device("cpu")).shape == (10, HEAD_DIM // 2)


def test_old_names_are_understood() -> None:
    old = {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    new = {"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}}
    assert RopeConfig.from_hf(old, HEAD_DIM) == RopeConfig.from_hf(new, HEAD_DIM)


@pytest.mark.parametrize("rope_type", ["yarn", "dynamic", "longrope"])
def test_other_types_are_refused_by_name(rope_type: str) -> None:
    with pytest.raises(ValueError, match=f"rope_type must be one of default, linear, llama3, got '{rope_type}'"):
        RopeConfig.from_hf({"rope_scaling": {"rope_type": rope_type, "factor": 2.0}}, HEAD_DIM)
