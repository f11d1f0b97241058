"""Result files: what is written can be read by llm-awq, what does not fit is refused by name."""

from pathlib import Path
from typing import Any

import pytest
import tiny_model
import torch
from safetensors.torch import load_file, save_file

from awq.errors import UserError
from awq.model import open_model
from awq.quantize import QuantConfig
from awq.results import ClipItem, ScaleItem, SearchResults, load_results, save_results

CONFIG = QuantConfig(4, 32)
DOWN = "model.layers.1.mlp.down_proj"
RESULTS = SearchResults(
    [ScaleItem("model.layers.1.mlp.up_proj", (DOWN,), torch.rand(128) + 0.5)],
    [ClipItem(DOWN, torch.stack((-torch.rand(64, 4), torch.rand(64, 4)), -1))],
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.save(tmp_path_factory.mktemp("models") / "tiny")


def load(path: Path, folder: Path, config: QuantConfig = CONFIG) -> tuple[SearchResults, list[str]]:
    warnings: list[str] = []
    model = open_model(folder)
    return load_results(path, model.identity(), config, model.shapes(), warnings.append), warnings


def test_round_trip_in_the_format_of_llm_awq(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "cache" / "r.pt"
    save_results(RESULTS, path, open_model(folder).identity(), CONFIG)
    raw = torch.load(path, weights_only=True)
    prev, layers, scales = raw["scale"][0]
    assert (prev, layers) == ("model.layers.1.mlp.up_proj", (DOWN,))
    assert torch.equal(scales, RESULTS.scales[0].scales)
    layer, bound = raw["clip"][0]
    assert layer == DOWN
    assert torch.equal(bound, RESULTS.clips[0].bound.abs().amax(-1, keepdim=True))
    found, warnings = load(path, folder)
    assert torch.equal(found.clips[0].bound, RESULTS.clips[0].bound)
    assert not warnings
    assert [item.name for item in path.parent.iterdir()] == ["r.pt"]


def test_other_settings_are_refused_with_both_named(folder: Path, tmp_path: Path) -> None:
    save_results(RESULTS, tmp_path / "r.pt", open_model(folder).identity(), CONFIG)
    with pytest.raises(UserError, match=r"made for --w_bit 4 --q_group_size 32; asked for --w_bit 4 --q_group_size 64"):
        load(tmp_path / "r.pt", folder, QuantConfig(4, 64))
    with pytest.raises(UserError, match=r"asked for --w_bit 3"):
        load(tmp_path / "r.pt", folder, QuantConfig(3, 32))


def test_other_models_are_refused_with_both_named(folder: Path, tmp_path: Path) -> None:
    save_results(RESULTS, tmp_path / "r.pt", open_model(folder).identity(), CONFIG)
    deeper = tiny_model.save(tmp_path / "deeper", num_hidden_layers=3)
    with pytest.raises(UserError, match=r"with 2 layers, hidden size 64.*this is .* with 3 layers"):
        load(tmp_path / "r.pt", deeper)


def test_fine_tuned_weights_are_another_model(folder: Path, tmp_path: Path) -> None:
    save_results(RESULTS, tmp_path / "r.pt", open_model(folder).identity(), CONFIG)
    tuned = tiny_model.save(tmp_path / "tuned")
    assert open_model(tuned).identity() == open_model(folder).identity()
    weights = load_file(tuned / "model.safetensors")
    weights["model.layers.1.input_layernorm.weight"][5] += 0.1
    save_file(weights, tuned / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="made for another model"):
        load(tmp_path / "r.pt", tuned)


@pytest.mark.parametrize(
    ("scale", "clip", "message"),
    [
        (
            ("model.layers.9.mlp.up_proj", ("model.layers.9.mlp.down_proj",), 128),
            None,
            "has no model.layers.9.mlp.up_proj",
        ),
        (("model.layers.1.mlp.up_proj", (DOWN,), 64), None, r"64 scales for .*down_proj, which has 128 input channels"),
        (None, (DOWN, (64, 2, 1)), r"clips of .*down_proj are for \(64, 2\) groups; groups of 32 .* are \(64, 4\)"),
    ],
)
def test_files_of_llm_awq_are_checked_by_name_and_shape(
    folder: Path, tmp_path: Path, scale: tuple[Any, ...] | None, clip: tuple[Any, ...] | None, message: str
) -> None:
    path = tmp_path / "upstream.pt"
    good: dict[str, list[Any]] = {
        "scale": [(item.prev, item.layers, item.scales.half()) for item in RESULTS.scales],
        "clip": [(item.layer, torch.rand(64, 4, 1).half()) for item in RESULTS.clips],
    }
    torch.save(good, path)
    found, warnings = load(path, folder)
    assert len(found.scales) == 1
    bound = good["clip"][0][1].float()
    assert torch.equal(found.clips[0].bound, torch.cat((-bound, bound), -1))
    assert "does not say for which model" in warnings[0]
    bad = {**good}
    if scale:
        bad["scale"] = [(scale[0], scale[1], torch.ones(scale[2]))]
    if clip:
        bad["clip"] = [(clip[0], torch.ones(clip[1]))]
    torch.save(bad, path)
    with pytest.raises(UserError, match=message):
        load(path, folder)


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"\x80\x02}q\x00."])
def test_damaged_files_are_refused(folder: Path, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.pt is not a file of search results"):
        load(path, folder)


def test_scales_must_be_positive(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "nan.pt"
    torch.save({"scale": [("model.layers.1.mlp.up_proj", (DOWN,), torch.full((128,), torch.nan))], "clip": []}, path)
    with pytest.raises(UserError, match="not a vector of positive numbers"):
        load(path, folder)
