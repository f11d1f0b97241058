"""Merging: every weight equals what peft's merge_and_unload makes of the whole model, whatever the adapter asks for."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_adapter
import tiny_llama
import torch
from safetensors.torch import load_file, save_file

from awq.formats.checkpoint import CheckpointError
from awq.formats.weights_folder import WeightsFolder
from tinyserve.models.lora import MergedLora

KINDS: dict[str, dict[str, Any]] = {
    "some layers": {},
    "all linear layers": {"target_modules": "all-linear"},
    "ranks by pattern": {
        "target_modules": r".*\.(q|k|down)_proj",
        "rank_pattern": {"layers.0.self_attn.q_proj": 2},
        "alpha_pattern": {"mlp.down_proj": 32},
    },
    "one block": {"layers_to_transform": [1]},
    "DoRA": {"use_dora": True},
    "rank-stabilized": {"use_rslora": True},
    "all biases": {"bias": "all"},
    "biases of LoRA": {"lora_bias": True, "target_modules": ["q_proj"]},
    "embedding and output": {"target_modules": ["embed_tokens", "q_proj", "lm_head"]},
    "whole modules": {"modules_to_save": ["lm_head", "embed_tokens"]},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama.save(tmp_path_factory.mktemp("models") / "base", attention_bias=True)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS.keys())
def test_weights_equal_pefts_merge(base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    adapter = tiny_adapter.save(base, tmp_path / "adapter", **settings)
    expected = tiny_adapter.merged(base, adapter).state_dict()
    stored, source = WeightsFolder(base), MergedLora(WeightsFolder(base), adapter)
    assert set(source.names()) == set(expected)
    for name in source.names():
        torch.testing.assert_close(source.tensor(name), expected[name], rtol=1e-6, atol=1e-6)
    assert any(not torch.equal(source.tensor(name), stored.tensor(name)) for name in source.names())


def test_a_16_bit_base_is_rounded_once(base: Path, tmp_path: Path) -> None:
    half = tiny_llama.save(tmp_path / "half", dtype=torch.bfloat16, attention_bias=True)
    adapter = tiny_adapter.save(half, tmp_path / "adapter")
    exact = tiny_adapter.merged(half, adapter).state_dict()
    source, name = MergedLora(WeightsFolder(half), adapter), "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(source.tensor(name), exact[name].to(torch.bfloat16))
    assert torch.equal(source.tensor(name), source.tensor(name))  # the base is not changed by merging


def test_pickled_adapters_are_read(base: Path, tmp_path: Path) -> None:
    adapter = tiny_adapter.save(base, tmp_path / "adapter")
    name = "model.layers.0.self_attn.q_proj.weight"
    expected = MergedLora(WeightsFolder(base), adapter).tensor(name)
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    assert torch.equal(MergedLora(WeightsFolder(base), adapter).tensor(name), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "adapter_config.json: peft_type must be LORA, got 'IA3'"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is not supported"),
        ({"r": -1}, "does not fit model.layers.0.mlp.down_proj: .* should be a positive"),
        ({"r": 3}, r"does not fit model.layers.0.mlp.down_proj: .* size mismatch"),
        ({"use_dora": "yes", "lora_alpha": "x"}, "does not fit model.layers.0.mlp.down_proj"),
    ],
)
def test_an_adapter_that_cannot_be_merged(base: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    adapter = tiny_adapter.save(base, tmp_path / "adapter")
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError, match=message):
        MergedLora(WeightsFolder(base), adapter).tensor("model.layers.0.mlp.down_proj.weight")


def test_an_adapter_of_another_model(base: Path, tmp_path: Path) -> None:
    deep = tiny_llama.save(tmp_path / "deep", num_hidden_layers=3)
    adapter = tiny_adapter.save(deep, tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=r"changes model\.layers\.2\.mlp\.down_proj, but .*base has no model\."):
        MergedLora(WeightsFolder(base), adapter)
    wide = tiny_llama.save(tmp_path / "wide", intermediate_size=160)
    adapter = tiny_adapter.save(wide, tmp_path / "wide adapter")
    with pytest.raises(CheckpointError, match=r"does not fit model\.layers\.0\.mlp\.down_proj: .*size mismatch"):
        MergedLora(WeightsFolder(base), adapter).tensor("model.layers.0.mlp.down_proj.weight")


def test_tensors_that_peft_does_not_know(base: Path, tmp_path: Path) -> None:
    adapter = tiny_adapter.save(base, tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_C.weight"] = torch.zeros(4, 4)
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"lora_C.*is nothing that adapter_config\.json makes"):
        MergedLora(WeightsFolder(base), adapter).tensor("model.layers.0.self_attn.q_proj.weight")
