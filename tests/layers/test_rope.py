"""Rotary tables against the frequencies that transformers computes from the same settings."""

from pathlib import Path
from typing import Any

import flat_batch
import pytest
import tiny_llama
import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from tinyserve.layers.rope import RopeConfig, cos_sin_table
from tinyserve.models.loader import load_model

HEAD_DIM = 64
CPU = torch.device("cpu")
FACTORS = {"short_factor": [1 + i / 50 for i in range(32)], "long_factor": [1 + i for i in range(32)]}
SETTINGS: list[dict[str, Any]] = [
    {"rope_type": "linear", "rope_theta": 10000.0, "factor": 8.0},
    {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0, "partial_rotary_factor": 0.25},
    {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    | {"original_max_position_embeddings": 8192},
    {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
    {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0, "partial_rotary_factor": 0.5},
    {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 512},
    {"rope_type": "yarn", "rope_theta": 1e4, "factor": 16.0, "beta_fast": 20, "beta_slow": 2, "truncate": False},
    {"rope_type": "yarn", "rope_theta": 1e4, "factor": 40.0, "mscale": 0.7, "mscale_all_dim": 1.2},
    {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "attention_factor": 1.3, "partial_rotary_factor": 0.5},
    {"rope_type": "yarn", "rope_theta": 1e4, "factor": None, "original_max_position_embeddings": 256},
    {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 512, **FACTORS},
    {"rope_type": "longrope", "rope_theta": 1e4, "factor": 3.0, **FACTORS},
]
CONTEXT = 1024  # positions of the configuration


@pytest.mark.parametrize("num_positions", [200, CONTEXT, 3000])
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings["rope_type"])
def test_table_equals_transformers(settings: dict[str, Any], num_positions: int) -> None:
    config = LlamaConfig(head_dim=HEAD_DIM, rope_parameters=settings, max_position_embeddings=CONTEXT)
    own = RopeConfig.from_hf(config.to_dict(), HEAD_DIM)
    table = cos_sin_table(own, num_positions, CPU)
    frequencies, factor = ROPE_INIT_FUNCTIONS[settings["rope_type"]](config, CPU, seq_len=num_positions)
    angles = torch.arange(num_positions).float()[:, None] * frequencies
    assert table.shape == (num_positions, int(HEAD_DIM * settings.get("partial_rotary_factor", 1.0)))
    torch.testing.assert_close(table, torch.cat([angles.cos(), angles.sin()], -1) * factor, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "settings", [{"rope_type": "default", "rope_theta": 1e5}, *SETTINGS], ids=lambda settings: settings["rope_type"]
)
def test_the_rotary_module_has_the_same_cosines(settings: dict[str, Any]) -> None:
    config = LlamaConfig(head_dim=HEAD_DIM, rope_parameters=settings, max_position_embeddings=CONTEXT)
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(CONTEXT)[None])  # [1, P, D], halves repeated
    table = cos_sin_table(RopeConfig.from_hf(config.to_dict(), HEAD_DIM), CONTEXT, CPU)
    half = table.shape[1] // 2
    expected = torch.cat([cos[0, :, :half], sin[0, :, :half]], dim=-1)
    torch.testing.assert_close(table, expected, rtol=0, atol=1e-6)


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32}
LONG |= {"short_factor": [1.0] * 16, "long_factor": [1 + i / 2 for i in range(16)]}


@pytest.mark.parametrize("settings", [YARN, LONG], ids=["yarn", "longrope"])
def test_logits_equal_transformers(settings: dict[str, Any], tmp_path: Path) -> None:
    folder = tiny_llama.save(tmp_path, rope_parameters=settings, max_position_embeddings=128)
    text = torch.randint(0, 320, (100,), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(text[None]).logits[0]
    model = load_model(folder, precision="W16A16", dtype="float32")
    torch.testing.assert_close(flat_batch.logits(model, [text], chunk=30)[0], expected, rtol=1e-4, atol=5e-4)


def test_a_part_of_the_head_may_be_rotated() -> None:
    config = RopeConfig.from_hf({"rope_theta": 10000.0, "partial_rotary_factor": 0.5}, HEAD_DIM)
    assert cos_sin_table(config, 10, CPU).shape == (10, HEAD_DIM // 2)


def test_old_names_are_understood() -> None:
    old = {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    new = {"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}}
    assert RopeConfig.from_hf(old, HEAD_DIM) == RopeConfig.from_hf(new, HEAD_DIM)


def test_other_types_are_refused_by_name() -> None:
    kinds = "default, linear, dynamic, llama3, yarn, longrope"
    with pytest.raises(ValueError, match=f"rope_type must be one of {kinds}, got 'proportional'"):
        RopeConfig.from_hf({"rope_scaling": {"rope_type": "proportional", "factor": 2.0}}, HEAD_DIM)


@pytest.mark.parametrize(("rope_type", "missing"), [("linear", "factor"), ("longrope", "short_factor")])
def test_a_missing_setting_is_named(rope_type: str, missing: str) -> None:
    with pytest.raises(ValueError, match=f"rope_type '{rope_type}' needs '{missing}'"):
        RopeConfig.from_hf({"rope_scaling": {"rope_type": rope_type}}, HEAD_DIM)


def test_a_list_of_factors_of_another_length_is_refused() -> None:
    config = RopeConfig.from_hf({"rope_scaling": {"rope_type": "longrope", **FACTORS}}, 32)
    with pytest.raises(ValueError, match="one factor for each of 16 pairs of dimensions, got 32"):
        cos_sin_table(config, 10, CPU)
