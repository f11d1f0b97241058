"""Blocks run alone, with their own arguments, and what is recorded of their Linears."""

from pathlib import Path

import pytest
import tiny_architectures
import torch
from torch import Tensor

from awq.capture import first_inputs, recording, run_block
from awq.lazy_network import LazyNetwork
from awq.model import open_model
from awq.network import load_network


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 256, (43, 48), generator=torch.Generator().manual_seed(0))  # one full batch, one of one


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "gemma3", "bloom"])  # gemma3: other masks per layer; bloom: per sequence
def test_blocks_run_alone_give_the_models_hidden_states(name: str, tokens: Tensor, tmp_path: Path) -> None:
    tiny_architectures.save(name, tmp_path)
    expected = load_network(tmp_path, torch.float32)(input_ids=tokens, output_hidden_states=True).hidden_states
    network = LazyNetwork(tmp_path, open_model(tmp_path).skeleton, torch.float32)
    inputs = first_inputs(network, tokens)
    torch.testing.assert_close(inputs.hidden, expected[0])
    with network.block(0) as block:
        inputs = run_block(block, 0, inputs, name="0")
    torch.testing.assert_close(inputs.hidden, expected[1], rtol=1e-4, atol=1e-4)
    with network.block(1) as block:
        inputs = run_block(block, 1, inputs, name="1")
    last = expected[2]  # after the final norm
    norm = load_network(tmp_path, torch.float32).get_decoder()  # type: ignore[operator]
    final = next(module for n, module in norm.named_children() if n in ("norm", "ln_f"))
    torch.testing.assert_close(final(inputs.hidden), last, rtol=1e-4, atol=1e-4)


def test_statistics_are_those_of_the_linears_input(tokens: Tensor, tmp_path: Path) -> None:
    tiny_architectures.save("llama", tmp_path)
    model = open_model(tmp_path)
    groups = model.mapping.groups[0]
    network = LazyNetwork(tmp_path, model.skeleton, torch.float32)
    inputs = first_inputs(network, tokens)
    with network.block(0) as block:
        with recording(block, groups, keep_inputs=False, name="0") as record:
            run_block(block, 0, inputs, name="0")
        x = block.get_submodule("input_layernorm")(inputs.hidden).flatten(0, 1)
    found = record.statistics[groups[0]]
    assert found.num_tokens == tokens.numel()
    torch.testing.assert_close(found.mean_gram(), x.T @ x / len(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.mean_abs(), x.abs().mean(0), rtol=1e-4, atol=1e-5)


def test_a_router_sees_all_tokens_and_experts_some(tokens: Tensor, tmp_path: Path) -> None:
    tiny_architectures.save("mixtral", tmp_path)
    model = open_model(tmp_path)
    network = LazyNetwork(tmp_path, model.skeleton, torch.float32)
    with network.block(0) as block, recording(block, model.mapping.groups[0], keep_inputs=False, name="0") as record:
        run_block(block, 0, first_inputs(network, tokens), name="0")
    counts = {group.prev: statistics.num_tokens for group, statistics in record.statistics.items()}
    assert counts["post_attention_layernorm"] == tokens.numel()
    experts = [counts[f"block_sparse_moe.experts.{index}.w3"] for index in range(4)]
    assert sum(experts) == 2 * tokens.numel()
    assert max(experts) < tokens.numel()
