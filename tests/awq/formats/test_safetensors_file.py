"""A safetensors file is mapped anew now and then, and what was read from an earlier mapping stays what it is."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from awq.formats import safetensors_file
from awq.formats.checkpoint import CheckpointError
from awq.formats.safetensors_file import SafetensorsFile


def _file(folder: Path) -> tuple[SafetensorsFile, dict[str, torch.Tensor]]:
    tensors = {f"t{i}": torch.randn(1 << 20) for i in range(8)}  # 4 MB each
    save_file(tensors, folder / "model.safetensors")
    return SafetensorsFile(folder / "model.safetensors"), tensors


def _mapped_bytes(path: Path) -> int:
    """Of the file, in this process's memory."""
    resident, counts = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(maxsplit=1)[0]:
            counts = line.endswith(str(path))
        elif counts and line.startswith("Rss:"):
            resident += int(line.split()[1]) * 1024
    return resident


def test_tensors_outlive_their_mapping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_file, "REOPEN_BYTES", 4 << 20)
    file, tensors = _file(tmp_path)
    read = {name: file.tensor(name) for name in tensors}
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells what is mapped")
def test_what_was_read_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_file, "REOPEN_BYTES", 8 << 20)
    file, tensors = _file(tmp_path)
    most = 0
    for name in tensors:
        file.tensor(name).sum()
        most = max(most, _mapped_bytes(tmp_path / "model.safetensors"))
    assert 0 < most <= 20 << 20  # of 32 MB: two tensors of one mapping, and what a third brings before it is gone


def test_a_file_that_has_gone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_file, "REOPEN_BYTES", 0)
    file, _ = _file(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a complete safetensors file"):
        file.tensor("t0")
