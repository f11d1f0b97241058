"""The search of one block: both losses, what is found, NaN by name."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_model
import torch
from torch import Tensor, nn

from awq.capture import first_inputs, recording, run_block
from awq.errors import UserError
from awq.lazy_network import LazyNetwork
from awq.model import ModelFolder, open_model
from awq.quantize import QuantConfig, fake_quantize
from awq.scale_search import candidates
from awq.search import BlockSearch, output_loss

CONFIG = QuantConfig(4, 32)


@pytest.fixture
def block(network: LazyNetwork) -> Iterator[nn.Module]:
    with network.block(0) as block:
        yield block


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 256, (5, 48), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_exact_loss_is_the_change_of_the_inspected_output(
    model: ModelFolder, network: LazyNetwork, block: nn.Module, tokens: Tensor
) -> None:
    groups = model.mapping.groups[0]
    group = groups[2]  # gate and up, judged after the whole MLP
    with recording(block, groups, keep_inputs=True, name="0") as record:
        run_block(block, 0, first_inputs(network, tokens), name="0")
    t = dict(candidates(record.statistics[group].mean_abs()))[0.5]
    mlp = block.get_submodule("mlp")
    before = [parameter.clone() for parameter in mlp.parameters()]
    with output_loss(block, group, record, CONFIG) as loss:
        actual = loss(t)
    assert all(torch.equal(a, b) for a, b in zip(before, mlp.parameters(), strict=True))

    x = torch.cat([args[0] for args, _ in record.inputs["mlp"]])
    gate, up, down = (mlp.get_parameter(f"{name}_proj.weight") for name in ("gate", "up", "down"))

    def output(gate: Tensor, up: Tensor) -> Tensor:
        return (nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T

    rounded = output(fake_quantize(gate * t, CONFIG) / t, fake_quantize(up * t, CONFIG) / t)
    assert actual == pytest.approx(float((rounded - output(gate, up)).square().mean()), rel=1e-3)


@pytest.mark.parametrize("method", ["fast", "exact"])
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_names_and_shapes_of_what_is_found(method: str, kv_heads: int, tokens: Tensor, tmp_path: Path) -> None:
    model = open_model(tiny_model.save(tmp_path / "tiny", num_key_value_heads=kv_heads, head_dim=16))
    network = LazyNetwork(model.path, model.skeleton, torch.float32)
    search = BlockSearch(model.mapping, CONFIG, method)  # type: ignore[arg-type]
    with network.block(1) as block:
        found, _ = search(block, 1, first_inputs(network, tokens))
    scaled = {item.prev.removeprefix("model.layers.1."): item.scales for item in found.scales}
    assert set(scaled) == {"input_layernorm", "post_attention_layernorm", "mlp.up_proj", "self_attn.v_proj"}
    assert scaled["mlp.up_proj"].shape == (128,)
    value_heads = scaled["self_attn.v_proj"].view(kv_heads, 4 // kv_heads, 16)
    assert torch.equal(value_heads, value_heads[:, :1].expand_as(value_heads))  # one scale for each value channel
    clipped = {clip.layer.rpartition(".")[2]: tuple(clip.bound.shape) for clip in found.clips}
    v_rows = 16 * kv_heads
    assert clipped == {
        "v_proj": (v_rows, 2, 2),
        "o_proj": (64, 2, 2),
        "gate_proj": (128, 2, 2),
        "up_proj": (128, 2, 2),
        "down_proj": (64, 4, 2),
    }


def test_nan_weights_and_activations_are_named(
    model: ModelFolder, network: LazyNetwork, block: nn.Module, tokens: Tensor
) -> None:
    search = BlockSearch(model.mapping, CONFIG)
    inputs = first_inputs(network, tokens)
    hidden = inputs.hidden.clone()
    hidden[0, 0, 0] = torch.inf
    with pytest.raises(UserError, match=r"inputs of model\.layers\.0\.self_attn\.q_proj are NaN or infinite"):
        search(block, 0, replace(inputs, hidden=hidden))
    with pytest.raises(UserError, match=r"activations of model\.layers\.0 are NaN or infinite"):
        search.pass_through(block, 0, replace(inputs, hidden=hidden))
    block.get_parameter("mlp.up_proj.weight").data[3, 4] = torch.nan
    with pytest.raises(UserError, match=r"model\.layers\.0\.mlp\.up_proj\.weight holds NaN or infinite values"):
        search(block, 0, inputs)
