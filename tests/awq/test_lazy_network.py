"""Weights are in memory only while they are used."""

from pathlib import Path

import pytest
import tiny_architectures
import torch

from awq.lazy_network import LazyNetwork
from awq.model import ModelFolder, open_model


@pytest.fixture
def model(tmp_path: Path) -> ModelFolder:
    tiny_architectures.save("gemma3 vl", tmp_path)
    return open_model(tmp_path)


def present(network: LazyNetwork) -> set[str]:
    """Names of the parameters that are in memory, without those of the embedding's table."""
    return {name for name, parameter in network.network.named_parameters() if not parameter.is_meta}


def test_one_block_at_a_time(model: ModelFolder) -> None:
    network = LazyNetwork(model.path, model.skeleton, torch.float32)
    assert present(network) == set()
    with network.block(1) as block:
        assert len(present(network)) == len(list(block.parameters()))
        assert all(".language_model.layers.1." in name for name in present(network))
        stored = model.checkpoint.tensor("language_model.model.layers.1.mlp.up_proj.weight")
        assert torch.equal(block.get_parameter("mlp.up_proj.weight"), stored)
    assert present(network) == set()


def test_before_the_blocks_only_what_is_called_is_loaded(model: ModelFolder) -> None:
    network = LazyNetwork(model.path, model.skeleton, torch.float32)
    stored = model.checkpoint.tensor("language_model.model.embed_tokens.weight")
    with network.before_blocks() as whole:
        embedding = whole.get_input_embeddings()  # type: ignore[operator]
        x = embedding(torch.tensor([[5, 7, 5]]))
        y = embedding(torch.tensor([[7, 300]]))
        assert present(network) == {"model.language_model.embed_tokens.weight"}
    scale = embedding.embed_scale
    torch.testing.assert_close(x[0], stored[[5, 7, 5]] * scale)
    torch.testing.assert_close(y[0], stored[[7, 300]] * scale)
    assert present(network) == set()
