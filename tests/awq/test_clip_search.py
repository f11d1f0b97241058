"""The clip search against llm-awq's loop over groups, written out."""

import pytest
import torch
from torch import Tensor

from awq import clip_search
from awq.apply import clip_weight
from awq.clip_search import joint_bounds, separate_bounds
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
    actual = separate_bounds(weight, x.T @ x / len(x), QuantConfig(4, group))
    expected = reference_bounds(weight, x, group)
    torch.testing.assert_close(actual, torch.cat((-expected, expected), -1), rtol=1e-4, atol=1e-6)
    assert float((expected < weight.view(6, -1, group).abs().amax(-1, keepdim=True)).float().mean()) > 0.2


def row_loss(weight: Tensor, bounds: Tensor, gram: Tensor, config: QuantConfig) -> Tensor:
    """Mean squared output error of every row, [N]."""
    clipped = weight.clone()
    clip_weight(clipped, bounds)
    error = fake_quantize(clipped, config) - weight
    return ((error @ gram) * error).sum(-1)


@pytest.mark.parametrize("zero_point", [True, False])
def test_joint_bounds_are_near_the_best_combination(zero_point: bool) -> None:
    """Two groups per row: all pairs of symmetric bounds can be tried; those that move alone can only be better."""
    generator = torch.Generator().manual_seed(4)
    config = QuantConfig(4, 16, zero_point)
    weight = torch.randn(8, 32, generator=generator) ** 3
    x = torch.randn(200, 1, generator=generator) + 0.5 * torch.randn(200, 32, generator=generator)  # correlated
    gram = x.T @ x / len(x)
    groups = weight.view(8, 2, 16)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    if not zero_point:
        high = torch.maximum(high, -low)
        low = -high
    widest = torch.cat((low, high), -1)
    factors = [1 - step / 20 for step in range(10)]
    pairs = [torch.tensor([[[a], [b]]]) for a in factors for b in factors]
    best = torch.stack([row_loss(weight, widest * pair, gram, config) for pair in pairs]).amin(0)
    joint = row_loss(weight, joint_bounds(weight, gram, config), gram, config)
    separate = row_loss(weight, separate_bounds(weight, gram, config), gram, config)
    assert float(joint.sum()) <= (1.0 if zero_point else 1.2) * float(best.sum())
    assert float(joint.sum()) < 0.9 * float(separate.sum())


def test_joint_bounds_lie_within_the_weights() -> None:
    weight = torch.randn(12, 64, generator=torch.Generator().manual_seed(6)) + torch.linspace(-3, 3, 12)[:, None]
    bounds = joint_bounds(weight, torch.eye(64) + 0.5, QuantConfig(4, 32))
    low, high = weight.view(12, 2, 32).aminmax(dim=-1)
    assert bool((bounds[..., 0] >= low.clamp(max=0)).all())
    assert bool((bounds[..., 1] <= high.clamp(min=0)).all())
    assert bool((bounds[..., 0] <= bounds[..., 1]).all())


def test_joint_bounds_do_not_depend_on_how_rows_are_chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(10, 64, generator=torch.Generator().manual_seed(5))
    gram = torch.eye(64) + 0.5
    whole = joint_bounds(weight, gram, QuantConfig(4, 32))
    monkeypatch.setattr(clip_search, "CHUNK", 64 * 3)
    torch.testing.assert_close(joint_bounds(weight, gram, QuantConfig(4, 32)), whole)


def test_clip_weight_bounds_each_group() -> None:
    weight = torch.tensor([[1.0, -3.0, 5.0, -7.0]])
    clip_weight(weight, torch.tensor([[[-2.0, 2.0], [-6.0, 4.0]]]))
    assert weight.tolist() == [[1.0, -2.0, 4.0, -6.0]]
