"""What search results do to single tensors; that they leave whole models unchanged is in test_architectures.py."""

from pathlib import Path

import tiny_model
import torch

from awq.apply import Adjustment, QuantizedModel, row_divisor
from awq.groups import Fold
from awq.model import open_model
from awq.quantize import QuantConfig, dequantize
from awq.results import ClipItem, ScaleItem, SearchResults


def test_only_the_rows_that_feed_a_group_are_divided() -> None:
    scales = torch.tensor([2.0, 4.0])
    assert row_divisor(scales, Fold(), 4).tolist() == [1, 1, 2, 4]  # the last part of a fused projection
    assert row_divisor(scales, Fold(torch.tensor([0, 2])), 4).tolist() == [2, 1, 4, 1]
    shared = row_divisor(torch.tensor([2.0, 4.0, 2.0, 4.0]), Fold(torch.tensor([0, 1, 0, 1])), 2)
    assert shared.tolist() == [2, 4]


def test_norms_with_an_offset_are_divided_offset_included() -> None:
    adjust = Adjustment(SearchResults([ScaleItem("norm", ("q",), torch.tensor([2.0]))]), {"norm": Fold(offset=1.0)})
    assert adjust("norm.weight", torch.tensor([3.0])).tolist() == [1.0]  # (1 + 3) / 2 - 1
    assert adjust("norm.bias", torch.tensor([3.0])).tolist() == [1.5]
    assert adjust("q.weight", torch.tensor([[3.0]])).tolist() == [[6.0]]


def test_quantized_model_rounds_folded_and_clipped_weights(tmp_path: Path) -> None:
    model = open_model(tiny_model.save(tmp_path / "tiny"))
    up, down, norm = (f"model.layers.0.{name}" for name in ("mlp.up_proj", "mlp.down_proj", "post_attention_layernorm"))
    t = torch.rand(64) + 0.5
    bound = torch.tensor([-0.05, 0.1]).expand(128, 2, 2)
    results = SearchResults([ScaleItem(norm, ("model.layers.0.mlp.gate_proj", up), t)], [ClipItem(up, bound)])
    quantized = QuantizedModel(model, QuantConfig(4, 32), results)
    weight = model.checkpoint.tensor(f"{up}.weight").float()
    error = dequantize(quantized.quantized[up]) - (weight * t).clamp(-0.05, 0.1)
    assert float(error.abs().max()) <= 0.15 / 15 / 2 * 1.01  # half a step of the clipped range
    stored = model.checkpoint.tensor(f"{norm}.weight").float()
    torch.testing.assert_close(quantized.state[f"{norm}.weight"].float(), stored / t, rtol=1e-3, atol=1e-3)
    assert quantized.quantized[down].scales.dtype == torch.float16
    assert f"{up}.weight" not in quantized.state
    assert dict(quantized.weights()).keys() == set(model.checkpoint.names())
