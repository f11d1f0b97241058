"""The perplexity protocol, against transformers' own loss."""

import math
from functools import partial
from pathlib import Path

import pytest
import tiny_model
import torch

from awq.errors import UserError
from awq.evaluate import network_logits, perplexity, split_windows, window_loss
from awq.network import load_network


def test_perplexity_is_that_of_the_reference_loop(tmp_path: Path) -> None:
    network = load_network(tiny_model.save(tmp_path / "tiny"), torch.float32)
    tokens = torch.randint(0, 256, (130,), generator=torch.Generator().manual_seed(0))
    windows = tokens[:120].view(3, 40)
    losses = [float(network(input_ids=w[None], labels=w[None]).loss) * 40 for w in windows]
    found = perplexity(partial(network_logits, network), split_windows(tokens, 40))
    assert found.perplexity == pytest.approx(math.exp(sum(losses) / (3 * 40)), rel=1e-5)
    assert (found.num_windows, found.window_tokens) == (3, 40)
    assert split_windows(tokens, 40, limit=2).shape == (2, 40)
    assert split_windows(tokens, 4096).shape == (1, 130)


def test_uniform_logits_give_the_vocabulary_size() -> None:
    assert window_loss(torch.zeros(1000, 50), torch.arange(1000) % 50) == pytest.approx(math.log(50))


def test_too_little_text_and_nan_are_errors() -> None:
    with pytest.raises(UserError, match="has 1 tokens"):
        split_windows(torch.tensor([1]), 16)
    with pytest.raises(UserError, match="not finite"):
        perplexity(lambda window: torch.full((len(window), 8), torch.nan), torch.zeros(1, 16, dtype=torch.long))
