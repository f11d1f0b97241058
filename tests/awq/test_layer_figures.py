"""The figures of a layer against the outputs themselves, and their way through a results file."""

from pathlib import Path

import pytest
import tiny_model
import torch

from awq.layer_figures import QUANTILES, LayerFigures, measure
from awq.lazy_network import LazyNetwork
from awq.model import open_model
from awq.model_search import search_model
from awq.progress import say
from awq.quantize import QuantConfig, fake_quantize
from awq.results import load_results, save_results
from awq.search import BlockSearch
from awq.unfinished import UnfinishedSearch

CONFIG = QuantConfig(4, 32)


def test_errors_are_those_of_the_outputs() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 64, generator=generator) * torch.linspace(0.1, 4, 64)
    weight = torch.randn(48, 64, generator=generator)
    t = torch.linspace(0.5, 2, 64)
    groups = (weight * t).view(48, 2, 32)
    bound = torch.stack(groups.aminmax(dim=-1), -1)
    bound[0, 1] *= 0.5
    found = measure("q", weight * t, x.T @ x / 500, x.abs().mean(0), CONFIG, ratio=0.5, scales=t, bound=bound)

    def error(rounded: torch.Tensor) -> float:
        y = x @ weight.T
        return float((x @ rounded.T - y).square().sum() / y.square().sum())

    clipped = groups.clamp(bound[..., :1], bound[..., 1:]).view(48, 64)
    assert found.rounding_error == pytest.approx(error(fake_quantize(weight, CONFIG)), rel=1e-3)
    assert found.scaled_error == pytest.approx(error(fake_quantize(weight * t, CONFIG) / t), rel=1e-3)
    assert found.clipped_error == pytest.approx(error(fake_quantize(clipped, CONFIG) / t), rel=1e-3)
    assert found.clipped_groups == pytest.approx(1 / 96)
    beyond = int(((groups[0, 1] < bound[0, 1, 0]) | (groups[0, 1] > bound[0, 1, 1])).sum())
    assert found.clipped_weights == pytest.approx(beyond / weight.numel())
    assert beyond > 0
    assert found.activation_quantiles[-1] == pytest.approx(float(x.abs().mean(0).max()))
    assert found.weight_quantiles[0] == pytest.approx(float(weight.abs().min()), rel=1e-5)


def test_of_a_large_layer_some_rows_are_measured() -> None:
    weight = torch.randn(3000, 32, generator=torch.Generator().manual_seed(1))
    found = measure("up", weight, torch.eye(32), torch.ones(32), CONFIG)
    error = (fake_quantize(weight, CONFIG) - weight).square().sum() / weight.square().sum()
    assert found.rounding_error == pytest.approx(float(error), rel=0.1)
    assert found.rounding_error == found.scaled_error == found.clipped_error
    assert (found.ratio, found.clipped_groups, found.clipped_weights) == (None, 0.0, 0.0)


def test_a_search_reports_every_linear_and_files_keep_it(tmp_path: Path) -> None:
    folder = tiny_model.save(tmp_path / "tiny")
    model = open_model(folder)
    network = LazyNetwork(folder, model.skeleton, torch.float32)
    search = BlockSearch(model.mapping, CONFIG)
    tokens = torch.randint(0, 256, (4, 48), generator=torch.Generator().manual_seed(0))
    unfinished = UnfinishedSearch(tmp_path / "r.pt", {}, say)
    results = search_model(network, search, tokens, None, unfinished)
    assert sorted(item.layer for item in results.figures) == sorted(model.linears())
    by_layer = {item.layer: item for item in results.figures}
    q_proj = by_layer["model.layers.1.self_attn.q_proj"]
    assert q_proj.scaled_error == q_proj.clipped_error  # queries are not clipped
    assert (
        by_layer["model.layers.0.mlp.down_proj"].clipped_error < by_layer["model.layers.0.mlp.down_proj"].rounding_error
    )
    save_results(results, tmp_path / "r.pt", model.identity(), CONFIG)
    loaded = load_results(tmp_path / "r.pt", model.identity(), CONFIG, model.shapes(), say)
    assert loaded.figures == results.figures
    again = search_model(network, search, tokens, None, unfinished)  # taken from its files
    assert again.figures == results.figures


def test_figures_that_are_none_are_refused() -> None:
    plain = measure("q", torch.ones(8, 32), torch.eye(32), torch.ones(32), CONFIG).to_plain()
    assert LayerFigures.from_plain(plain).to_plain() == plain
    with pytest.raises(ValueError, match=f"activation_quantiles must hold {len(QUANTILES)} numbers, got 0"):
        LayerFigures.from_plain({**plain, "activation_quantiles": []})
    with pytest.raises(TypeError):
        LayerFigures.from_plain({**plain, "surprise": 1})
