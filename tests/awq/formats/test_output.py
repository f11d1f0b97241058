"""Outputs appear complete or not at all."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from tiny_checkpoint import TinyModel
from torch import Tensor

from awq.formats import open_checkpoint, write_awq_folder, write_llm_awq_v2
from awq.formats.output import check_output, new_file, new_folder
from awq.quantize import QuantizedTensor

MakeModel = Callable[..., TinyModel]


class FailsAtTheEnd(Mapping[str, QuantizedTensor]):
    """Weights made on access, the last of which cannot be made: as when memory or the disk gives out."""

    def __init__(self, weights: Mapping[str, QuantizedTensor]) -> None:
        self._weights = weights

    def __getitem__(self, name: str) -> QuantizedTensor:
        if name == list(self._weights)[-1]:
            raise MemoryError(name)
        return self._weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def test_failed_folder_leaves_nothing(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    failing = FailsAtTheEnd(model.quantized)
    with pytest.raises(MemoryError):  # the shards before it are on the disk by then
        write_awq_folder(tmp_path / "out", model.folder, model.state, failing, model.config, shard_bytes=1000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_failed_file_leaves_nothing(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    with pytest.raises(MemoryError):
        write_llm_awq_v2(tmp_path / "out.pt", model.state, FailsAtTheEnd(model.quantized), model.config)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_failed_replacement_keeps_the_old_output(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    write_awq_folder(tmp_path / "out", model.folder, model.state, model.quantized, model.config)
    with pytest.raises(MemoryError):
        write_awq_folder(
            tmp_path / "out", model.folder, model.state, FailsAtTheEnd(model.quantized), model.config, overwrite=True
        )
    assert len(open_checkpoint(tmp_path / "out").modules()) == len(model.quantized)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_interrupt_leaves_nothing(tmp_path: Path) -> None:
    def interrupted_folder() -> None:
        with new_folder(tmp_path / "deep" / "out") as folder:
            (folder / "half").write_text("x")
            raise KeyboardInterrupt

    def interrupted_file() -> None:
        with new_file(tmp_path / "deep" / "out.pt") as path:
            path.write_text("x")
            raise KeyboardInterrupt

    for interrupted in (interrupted_folder, interrupted_file):
        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert list((tmp_path / "deep").iterdir()) == []


def test_nothing_has_the_final_name_before_the_end(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("a")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "a").read_text() == "a"
    with new_file(tmp_path / "out.pt") as path:
        path.write_text("b")
        assert not (tmp_path / "out.pt").exists()
    assert (tmp_path / "out.pt").read_text() == "b"


def test_check_output(tmp_path: Path) -> None:
    check_output(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    check_output(tmp_path / "empty")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for taken in (tmp_path / "full", tmp_path / "full" / "x"):
        with pytest.raises(ValueError, match=f"{taken} already exists; remove it or name another output"):
            check_output(taken)
        check_output(taken, overwrite=True)


def test_state_made_on_access_is_not_mistaken_for_a_tied_one(make_model: MakeModel, tmp_path: Path) -> None:
    """Each access makes a new tensor, often at the address of the one before."""

    class Lazy(dict[str, Tensor]):
        def __getitem__(self, name: str) -> Tensor:
            return torch.full((16, 16), float(name), dtype=torch.float32)

    model = make_model()
    state = Lazy({str(number): torch.empty(0) for number in range(50)})
    write_llm_awq_v2(tmp_path / "out.pt", state, model.quantized, model.config)
    write_awq_folder(tmp_path / "out", model.folder, state, model.quantized, model.config)
    for quant_path in (tmp_path / "out.pt", tmp_path / "out"):
        checkpoint = open_checkpoint(model.folder, quant_path)
        for name in state:
            assert bool((checkpoint.tensor(name) == float(name)).all())
