"""Sources made of others: who wins, and other names."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from awq.formats.overlay import Overlay, Renamed
from awq.formats.weights_folder import WeightsFolder


@pytest.fixture
def sources(tmp_path: Path) -> tuple[WeightsFolder, WeightsFolder]:
    for name, tensors in (("over", {"a": torch.ones(2)}), ("base", {"a": torch.zeros(3), "b": torch.arange(4.0)})):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
    return WeightsFolder(tmp_path / "over"), WeightsFolder(tmp_path / "base")


def test_the_first_source_wins(sources: tuple[WeightsFolder, WeightsFolder]) -> None:
    both = Overlay(*sources)
    assert set(both.names()) == {"a", "b"}
    assert (both.info("a").shape, both.info("b").shape) == ((2,), (4,))
    assert torch.equal(both.tensor("a"), torch.ones(2))
    assert torch.equal(both.tensor("b"), torch.arange(4.0))
    assert [Path(both.file_of(name)).parent.name for name in "ab"] == ["over", "base"]
    assert str(both) == f"{sources[0]} over {sources[1]}"


def test_other_names(sources: tuple[WeightsFolder, WeightsFolder]) -> None:
    renamed = Renamed.by(lambda name: f"model.{name}", sources[1])
    assert renamed.names() == ["model.a", "model.b"]
    assert torch.equal(renamed.tensor("model.b"), torch.arange(4.0))
    assert renamed.info("model.a").shape == (3,)
    assert Path(renamed.file_of("model.a")).parent.name == "base"
    assert Renamed(sources[1], {"c": "b"}).names() == ["c"]
