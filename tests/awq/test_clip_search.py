"""The clip search against llm-awq's loop over groups, written out."""

import pytest
import torch
from torch import Tensor

from awq.apply import clip_weight
from awq.clip_search import best_bounds, diagonal_blocks
from awq.quantize import QuantConfig, fake_quantize


def reference_bounds(weight: Tensor, x: Tensor, group: int) -> Tensor:
    """As llm-awq's auto_clip_layer: per row and group, the bound with the smallest squared error over the tokens."""
    n, k = weight.shape
    bounds = torch.empty(n, k // group, 1)
    for row in range(n):
        for g in range(k // group):
            w, part = weight[row, g * group : (g + 1) * group], x[:, g * group : (g + 1) * group]
            errors = []
            for step in range(10):
                bound = w.abs().max() * (1 - step / 20)
                rounded = fake_quantize(w.clamp(-bound, bound)[None], QuantConfig(4, -1))[0]
                errors.append((float((part @ rounded - part @ w).square().mean()), float(bound)))
            bounds[row, g, 0] = min(errors)[1]
    return bounds


@pytest.mark.parametrize("group", [16, 64])
def test_bounds_are_those_of_the_loop(group: int) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(6, 64, generator=generator) ** 3  # long tails: clipping pays
    x = torch.randn(100, 64, generator=generator)
    actual = best_bounds(weight, x.T @ x / len(x), QuantConfig(4, group))
    expected = reference_bounds(weight, x, group)
    assert actual.shape == (6, 64 // group, 1)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)
    assert float((actual < weight.view(6, -1, group).abs().amax(-1, keepdim=True)).float().mean()) > 0.2


def test_diagonal_blocks() -> None:
    gram = torch.arange(16.0).view(4, 4)
    assert diagonal_blocks(gram, 2).tolist() == [[[0, 1], [4, 5]], [[10, 11], [14, 15]]]


def test_clip_weight_bounds_each_group() -> None:
    weight = torch.tensor([[1.0, -3.0, 5.0, -7.0]])
    clip_weight(weight, torch.tensor([[[2.0], [6.0]]]))
    assert weight.tolist() == [[1.0, -2.0, 5.0, -6.0]]
