"""Which tensor of a checkpoint is which parameter, and folders that do not fit their class."""

import json
from pathlib import Path

import pytest
import tiny_architectures
import tiny_model
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from awq import entry
from awq.errors import UserError
from awq.formats import open_checkpoint
from awq.model import open_model
from awq.network import check_memory
from awq.skeleton import Skeleton


def test_names_of_the_checkpoint_lead_to_modules(tmp_path: Path) -> None:
    tiny_architectures.save("mixtral", tmp_path)
    skeleton = open_model(tmp_path).skeleton
    stored = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    assert skeleton.parameters[stored] == "model.layers.1.mlp.experts.3.w2.weight"
    linear = skeleton.blocks[1].get_submodule("block_sparse_moe.experts.3.w2")
    assert linear is skeleton.network.get_submodule("model.layers.1.mlp.experts.3.w2")
    assert all(parameter.is_meta for parameter in skeleton.network.parameters())
    assert not any(buffer.is_meta for buffer in skeleton.network.buffers())


def test_experts_in_one_tensor_are_refused(tmp_path: Path) -> None:
    model = tiny_architectures.save("qwen2 moe", tmp_path)
    model.save_pretrained(tmp_path, save_original_format=False)
    with pytest.raises(UserError, match="the experts of a layer are stored as one tensor"):
        open_model(tmp_path)


def test_llavas_own_checkpoints_hold_a_language_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_model.save(tmp_path / "llava")
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava_llama", "mm_hidden_size": 32}
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors") | {"model.mm_projector.weight": torch.ones(64, 32)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "text.txt").write_text(tiny_model.TEXT * 2)
    flags = ["--model_path", folder, "--w_bit", 4, "--q_group_size", 32, "--run_awq", "--dump_awq", tmp_path / "r.pt"]
    flags += ["--calib_data", tmp_path / "text.txt", "--n_samples", 2, "--seqlen", 32, "--dump_quant", tmp_path / "q"]
    entry.main([str(flag) for flag in flags])
    assert "1 tensors are not the language model's, such as model.mm_projector.weight" in capsys.readouterr().err
    written = open_checkpoint(folder, tmp_path / "q")
    assert torch.equal(written.tensor("model.mm_projector.weight").float(), torch.ones(64, 32))
    assert len(written.modules()) == 14


def test_a_class_without_linears_is_refused(tmp_path: Path) -> None:
    from transformers import GPT2Config

    config = GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=320)  # its projections are no Linears
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="the decoder blocks of GPT2LMHeadModel hold no Linear"):
        open_model(tmp_path)


def test_a_model_that_does_not_fit_does_not_write_its_calibration_text() -> None:
    with torch.device("meta"):
        network = nn.Sequential(nn.Linear(1 << 20, 1 << 20))
    skeleton = Skeleton(network, {}, nn.ModuleList(), "layers", ())
    with pytest.raises(UserError, match=r"4096\.0 GiB in float32, and .* are free\. With --calib_data FILE only one"):
        check_memory(skeleton, torch.float32)
