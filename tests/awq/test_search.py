"""The search of blocks: capture, both losses, NaN by name, and going on after an interruption."""

from pathlib import Path

import pytest
import tiny_model
import torch
from torch import Tensor, nn

from awq.capture import BlockInputs, blocks_of, first_inputs, recording, run_block
from awq.errors import UserError
from awq.mappings import LLAMA
from awq.model_search import search_model
from awq.network import load_network
from awq.quantize import QuantConfig, fake_quantize
from awq.results import SearchResults
from awq.scale_search import candidates
from awq.search import BlockSearch, output_loss
from awq.unfinished import UnfinishedSearch

CONFIG = QuantConfig(4, 32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.save(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def network(folder: Path) -> nn.Module:
    return load_network(folder, torch.float32)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 256, (5, 48), generator=torch.Generator().manual_seed(0))


def test_blocks_run_alone_give_the_models_hidden_states(network: nn.Module, tokens: Tensor) -> None:
    expected = network(input_ids=tokens, output_hidden_states=True).hidden_states
    inputs = first_inputs(network, LLAMA, tokens)
    torch.testing.assert_close(inputs.hidden, expected[0])
    inputs = run_block(blocks_of(network, LLAMA)[0], inputs, batch=2, name="0")
    torch.testing.assert_close(inputs.hidden, expected[1], rtol=1e-4, atol=1e-4)


def test_statistics_are_those_of_the_linears_input(network: nn.Module, tokens: Tensor) -> None:
    block = blocks_of(network, LLAMA)[0]
    inputs = first_inputs(network, LLAMA, tokens)
    with recording(block, LLAMA.groups, keep_inputs=False) as record:
        run_block(block, inputs, batch=2, name="0")
    x = block.get_submodule("input_layernorm")(inputs.hidden).flatten(0, 1)
    found = record.statistics[LLAMA.groups[0]]
    assert found.num_tokens == tokens.numel()
    torch.testing.assert_close(found.mean_gram(), x.T @ x / len(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.mean_abs(), x.abs().mean(0), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_exact_loss_is_the_change_of_the_inspected_output(network: nn.Module, tokens: Tensor) -> None:
    block = blocks_of(network, LLAMA)[0]
    group = LLAMA.groups[2]  # gate and up, judged after the whole MLP
    inputs = first_inputs(network, LLAMA, tokens)
    with recording(block, LLAMA.groups, keep_inputs=True) as record:
        run_block(block, inputs, batch=2, name="0")
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
    folder = tiny_model.save(tmp_path / "tiny", num_key_value_heads=kv_heads, head_dim=16)
    network = load_network(folder, torch.float32)
    search = BlockSearch(LLAMA, CONFIG, method)  # type: ignore[arg-type]
    found, _ = search(blocks_of(network, LLAMA)[1], 1, first_inputs(network, LLAMA, tokens))
    scaled = {item.prev.removeprefix("model.layers.1."): item for item in found.scales}
    assert set(scaled) == {"input_layernorm", "post_attention_layernorm", "mlp.up_proj"} | (
        {"self_attn.v_proj"} if kv_heads == 4 else set()  # fewer value heads than query heads: o_proj keeps its input
    )
    assert scaled["mlp.up_proj"].scales.shape == (128,)
    clipped = {clip.layer.rpartition(".")[2]: tuple(clip.bound.shape) for clip in found.clips}
    v_rows = 16 * kv_heads
    assert clipped == {
        "v_proj": (v_rows, 2, 2),
        "o_proj": (64, 2, 2),
        "gate_proj": (128, 2, 2),
        "up_proj": (128, 2, 2),
        "down_proj": (64, 4, 2),
    }


def test_nan_weights_and_activations_are_named(network: nn.Module, tokens: Tensor) -> None:
    blocks = blocks_of(network, LLAMA)
    search = BlockSearch(LLAMA, CONFIG)
    inputs = first_inputs(network, LLAMA, tokens)
    blocks[1].get_parameter("mlp.up_proj.weight").data[3, 4] = torch.nan
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN or infinite values"):
        search(blocks[1], 1, inputs)
    hidden = inputs.hidden.clone()
    hidden[0, 0, 0] = torch.inf
    with pytest.raises(UserError, match=r"activations of model\.layers\.0 are NaN or infinite"):
        search(blocks[0], 0, BlockInputs(hidden, inputs.arguments))


class Interrupted(Exception):
    pass


class Interruptible(UnfinishedSearch):
    """Stops after a number of blocks, as Ctrl-C would."""

    blocks_left = 100

    def keep_block(self, index: int, found: SearchResults) -> None:
        super().keep_block(index, found)
        self.blocks_left -= 1
        if self.blocks_left == 0:
            raise Interrupted


def test_an_interrupted_search_goes_on(network: nn.Module, tokens: Tensor, tmp_path: Path) -> None:
    search = BlockSearch(LLAMA, CONFIG)
    said: list[str] = []
    whole = search_model(network, search, tokens, None, UnfinishedSearch(tmp_path / "a.pt", {"seed": 1}, said.append))

    first = Interruptible(tmp_path / "b.pt", {"seed": 1}, said.append)
    first.blocks_left = 1
    first.keep_tokens(tokens)
    with pytest.raises(Interrupted):
        search_model(network, search, tokens, None, first)
    again = UnfinishedSearch(tmp_path / "b.pt", {"seed": 1}, said.append)
    assert "1 layers are done" in said[-1]
    kept = again.tokens()
    assert kept is not None
    assert again.block(0) is not None
    assert again.block(1) is None
    found = search_model(network, search, kept, None, again)
    for actual, expected in zip(found.scales, whole.scales, strict=True):
        assert (actual.prev, actual.layers) == (expected.prev, expected.layers)
        assert torch.equal(actual.scales, expected.scales)
    for clip, expected_clip in zip(found.clips, whole.clips, strict=True):
        assert torch.equal(clip.bound, expected_clip.bound)
    again.remove()
    assert not again.folder.exists()


def test_an_interrupted_search_with_other_settings_starts_again(tmp_path: Path) -> None:
    said: list[str] = []
    UnfinishedSearch(tmp_path / "a.pt", {"seed": 1}, said.append).keep_block(0, SearchResults())
    again = UnfinishedSearch(tmp_path / "a.pt", {"seed": 2}, said.append)
    assert "other settings: starting again" in said[-1]
    assert again.block(0) is None


def test_only_some_layers(network: nn.Module, tokens: Tensor, tmp_path: Path) -> None:
    search = BlockSearch(LLAMA, CONFIG)
    whole = search_model(network, search, tokens, None, UnfinishedSearch(tmp_path / "a.pt", {}, print))
    part = search_model(network, search, tokens, (1, 2), UnfinishedSearch(tmp_path / "b.pt", {}, print))
    assert {item.prev for item in part.scales} == {item.prev for item in whole.scales if ".layers.1." in item.prev}
    with pytest.raises(UserError, match="--layers 1:3: the model has 2 layers"):
        search_model(network, search, tokens, (1, 3), UnfinishedSearch(tmp_path / "c.pt", {}, print))
