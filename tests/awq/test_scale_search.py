"""The closed-form scale search against the formulas written out, token by token."""

import math

import pytest
import torch
from torch import Tensor

from awq.quantize import QuantConfig, fake_quantize
from awq.scale_search import best_scale, candidates, gram_loss, some_rows

CONFIG = QuantConfig(4, 32)


def make_layer(n: int = 24, k: int = 64, tokens: int = 200) -> tuple[Tensor, Tensor]:
    """A weight [N, K] and inputs [tokens, K], some channels of which are much larger than others."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(tokens, k, generator=generator) * torch.rand(k, generator=generator).mul(4).exp()
    return torch.randn(n, k, generator=generator), x


def test_candidates_are_powers_of_the_mean_normalised() -> None:
    mean_abs = torch.tensor([0.0, 0.01, 1.0, 9.0])
    found = dict(candidates(mean_abs))
    assert sorted(found) == [step / 20 for step in range(20)]
    assert torch.equal(found[0.0], torch.ones(4))
    expected = torch.tensor([1e-4, 0.1, 1.0, 3.0])
    torch.testing.assert_close(found[0.5], expected / math.sqrt(3.0 * 1e-4))
    for t in found.values():
        assert float(t.max() * t.min()) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("zero_point", [True, False])
def test_gram_loss_is_the_mean_squared_output_error(zero_point: bool) -> None:
    config = QuantConfig(4, 32, zero_point)
    weight, x = make_layer()
    t = x.abs().mean(0).sqrt()
    rounded = fake_quantize(weight * t, config) / t
    expected = (x @ rounded.T - x @ weight.T).square().sum(1).mean()
    actual = gram_loss(weight, t, x.T @ x / len(x), config)
    assert actual == pytest.approx(float(expected), rel=1e-3)


def test_best_scale_is_the_argmin_and_never_worse_than_none() -> None:
    weight, x = make_layer()
    gram = x.T @ x / len(x)
    choice = best_scale(x.abs().mean(0), lambda t: gram_loss(weight, t, gram, CONFIG))
    losses = {ratio: gram_loss(weight, t, gram, CONFIG) for ratio, t in candidates(x.abs().mean(0))}
    assert choice.ratio == min(losses, key=lambda ratio: losses[ratio])
    assert choice.loss == losses[choice.ratio]
    assert choice.unscaled_loss == losses[0.0]
    assert choice.loss < 0.9 * choice.unscaled_loss  # uneven channels are what scaling is for


def test_no_finite_loss_is_an_error() -> None:
    with pytest.raises(ValueError, match="no scale gives a finite error"):
        best_scale(torch.ones(4), lambda t: math.nan)


@pytest.mark.parametrize(("n", "expected"), [(5, 5), (2048, 2048), (2049, 1025), (28672, 2048)])
def test_of_many_rows_some_are_taken_evenly(n: int, expected: int) -> None:
    rows = some_rows(torch.arange(n).view(n, 1)).flatten()
    assert len(rows) == expected
    assert len(set(rows.diff().tolist())) == 1
    assert rows[0] == 0
