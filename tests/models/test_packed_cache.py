"""Packed weights kept on disk: used only where they are whole and still those of the checkpoint."""

import fcntl
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_llama
import torch
from disk_limit import files_of_at_most
from torch import Tensor

from awq.formats import Checkpoint, open_checkpoint, write_awq_folder, write_llm_awq_v2
from awq.quantize import QuantConfig, QuantizedTensor, quantize
from tinyserve import fallback, ops
from tinyserve.models.evaluation import logits
from tinyserve.models.loader import load_model
from tinyserve.models.packed_file import HEADER_ALIGNMENT

CONFIG = QuantConfig(group_size=32)
Parts = tuple[dict[str, Tensor], dict[str, QuantizedTensor]]


def parts(source: Path) -> Parts:
    """What a 4-bit checkpoint of a 16-bit folder holds: plain tensors, and quantized modules."""
    checkpoint = open_checkpoint(source)
    plain, modules = {}, {}
    for name in checkpoint.names():
        if name.endswith("_proj.weight"):
            modules[name.removesuffix(".weight")] = quantize(checkpoint.tensor(name), CONFIG)
        else:
            plain[name] = checkpoint.tensor(name)
    return plain, modules


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tmp_path)


def save(tmp_path: Path, **settings: Any) -> Path:
    """A tiny model in 4 bits."""
    source = tiny_llama.save(tmp_path / "source", dtype=torch.float16, **settings)
    folder = tmp_path / "tiny-awq"
    write_awq_folder(folder, source, *parts(source), CONFIG)
    return folder


def run(folder: Path, **settings: Any) -> Tensor:
    """Logits of the model after it was loaded with a cache beside it."""
    chosen: dict[str, Any] = {"packed_cache": True, "cpu_compute": "int8"} | settings
    return logits(load_model(folder, **chosen), torch.arange(40).view(1, 40))


def files(folder: Path) -> list[Path]:
    """All that is in a folder but the checkpoint, hidden files included."""
    own = {"config.json", "model.safetensors", "generation_config.json"}
    return sorted(path for path in folder.iterdir() if path.name not in own)


@pytest.fixture
def count_packed(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Returns a function that says how many modules' codes were read since it was asked last."""
    read: list[str] = []
    original = Checkpoint.quantized

    def counted(self: Checkpoint, module: str) -> QuantizedTensor:
        read.append(module)
        return original(self, module)

    monkeypatch.setattr(Checkpoint, "quantized", counted)

    def count() -> int:
        number = len(read)
        read.clear()
        return number

    return count


NUM_MODULES = 14  # seven in each of two layers


@pytest.mark.parametrize("compute", ["int8", "exact"])
@pytest.mark.parametrize("settings", [{}, {"tie_word_embeddings": True}, {"attention_bias": True}], ids=str)
def test_the_second_start_packs_nothing_and_computes_the_same(
    tmp_path: Path, count_packed: Callable[[], int], settings: dict[str, Any], compute: str
) -> None:
    folder = save(tmp_path, **settings)
    expected = run(folder, cpu_compute=compute, packed_cache=False)
    assert files(folder) == []
    assert count_packed() == NUM_MODULES
    assert torch.equal(run(folder, cpu_compute=compute), expected)
    assert [path.name for path in files(folder)] == [f"tiny-awq-float16-{compute}.packed"]
    written = files(folder)[0].stat()
    assert count_packed() == NUM_MODULES
    assert torch.equal(run(folder, cpu_compute=compute), expected)
    assert count_packed() == 0
    assert files(folder)[0].stat().st_mtime_ns == written.st_mtime_ns, "written again for nothing"


def test_dtypes_and_roundings_have_files_of_their_own(folder: Path, count_packed: Callable[[], int]) -> None:
    variants = [
        {"dtype": dtype, "cpu_compute": compute} for dtype in ("float16", "float32") for compute in ("int8", "exact")
    ]
    expected = [run(folder, **variant, packed_cache=False) for variant in variants]
    for _ in range(2):
        for variant, one in zip(variants, expected, strict=True):
            assert torch.equal(run(folder, **variant), one)
    assert len(files(folder)) == 4
    assert count_packed() == (4 + 4) * NUM_MODULES


def test_models_share_a_folder(tmp_path: Path, count_packed: Callable[[], int]) -> None:
    first, second = save(tmp_path / "a"), save(tmp_path / "b", vocab_size=333)
    shared = tmp_path / "not" / "there" / "yet"
    expected = [run(folder, packed_cache=False) for folder in (first, second)]
    for _ in range(2):
        for folder, one in zip((first, second), expected, strict=True):
            assert torch.equal(run(folder, packed_cache=shared), one)
            assert files(folder) == []
    assert len(files(shared)) == 2
    assert count_packed() == (2 + 2) * NUM_MODULES


def test_weights_of_a_file_beside_the_model(tmp_path: Path, count_packed: Callable[[], int]) -> None:
    source = tiny_llama.save(tmp_path / "source", dtype=torch.float16)
    weights = tmp_path / "quantized" / "tiny-v2.pt"
    weights.parent.mkdir()
    plain, modules = parts(source)
    config = QuantConfig(group_size=64)
    modules = {name: quantize(open_checkpoint(source).tensor(f"{name}.weight"), config) for name in modules}
    write_llm_awq_v2(weights, plain, modules, config)
    expected = run(source, quant_path=weights)
    assert files(source) == []
    assert [path.name for path in files(weights.parent)] == ["tiny-v2-float16-int8.packed", "tiny-v2.pt"]
    count_packed()
    assert torch.equal(run(source, quant_path=weights), expected)
    assert count_packed() == 0


def test_another_checkpoint_in_its_place_is_packed_again(
    tmp_path: Path, count_packed: Callable[[], int], caplog: pytest.LogCaptureFixture
) -> None:
    folder = save(tmp_path / "a")
    run(folder)
    weights = (save(tmp_path / "b", initializer_range=0.3) / "model.safetensors").read_bytes()
    assert len(weights) == (folder / "model.safetensors").stat().st_size, "the test is about times of change alone"
    (folder / "model.safetensors").write_bytes(weights)
    expected = run(folder, packed_cache=False)
    count_packed()
    caplog.set_level(logging.INFO)
    assert torch.equal(run(folder), expected)
    assert "tiny-awq-float16-int8.packed has another checkpoint: packing again" in caplog.text
    assert torch.equal(run(folder), expected)
    assert count_packed() == NUM_MODULES


def test_another_layout_is_packed_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = run(folder)
    caplog.set_level(logging.INFO)
    with monkeypatch.context() as patched:  # which packs in a layout of its own
        patched.setattr(ops, "_kernel", lambda name, device: getattr(fallback, name))
        other = run(folder)
    assert "has another layout: packing again" in caplog.text
    assert (other - expected).norm() / expected.norm() < 0.02
    assert torch.equal(run(folder), expected)


def test_every_instruction_set_reads_the_same_file(folder: Path, count_packed: Callable[[], int]) -> None:
    run(folder)
    info = ops.build_info()
    count_packed()
    for isa in info["cpu_isas"]:
        try:
            ops.use_cpu_isa(isa)
        except ValueError:  # this machine lacks it
            continue
        try:
            assert torch.equal(run(folder), run(folder, packed_cache=False))
        finally:
            ops.use_cpu_isa(info["cpu_isa"])
        assert count_packed() == NUM_MODULES, isa  # by the run without the file


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "a few bytes": lambda content: content[:5],
    "only the header": lambda content: content[: 4 * HEADER_ALIGNMENT],
    "cut": lambda content: content[:-1],
    "longer": lambda content: content + b"\0",
    "all ones": lambda content: b"\xff" * len(content),
    "all zeros": lambda content: bytes(len(content)),
    "no header": lambda content: flipped(content, 8),
    "another length": lambda content: flipped(content, 1),
    "a bit of the header": lambda content: flipped(content, content.index(b"group_size") + 15),
    "a bit in the middle": lambda content: flipped(content, len(content) * 3 // 4),
    "the last bit": lambda content: flipped(content, len(content) - 1),
    "a page of zeros": lambda content: content[:-4096] + bytes(4096),
    "json of another kind": lambda content: (7).to_bytes(8, "little") + b"[1,2,3]",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_file_is_replaced(
    folder: Path, count_packed: Callable[[], int], caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes]
) -> None:
    expected = run(folder)
    [path] = files(folder)
    content = path.read_bytes()
    path.write_bytes(damage(content))
    assert path.read_bytes() != content
    assert torch.equal(run(folder), expected)
    count_packed()
    assert f"{path} is damaged" in caplog.text
    assert path.read_bytes() == content
    assert torch.equal(run(folder), expected)
    assert count_packed() == 0


@pytest.mark.parametrize("size", [0, 10_000, 40_000])
def test_a_full_disk_is_said_and_leaves_nothing(folder: Path, caplog: pytest.LogCaptureFixture, size: int) -> None:
    expected = run(folder, packed_cache=False)
    with files_of_at_most(size):
        assert torch.equal(run(folder), expected)
    assert "cannot be written" in caplog.text
    assert "the next start packs again" in caplog.text
    assert files(folder) == []


def test_a_full_disk_keeps_what_was_there(folder: Path) -> None:
    run(folder)
    [path] = files(folder)
    content = path.read_bytes()
    os.utime(folder / "model.safetensors", ns=(0, 0))  # stale
    with files_of_at_most(40_000):
        run(folder)
    assert files(folder) == [path]
    assert path.read_bytes() == content


def unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def test_what_a_killed_process_has_left_is_written_over(folder: Path) -> None:
    run(folder)
    [path] = files(folder)
    content = path.read_bytes()
    path.unlink()
    unfinished(path).write_bytes(b"half of it" * 100_000)
    run(folder)
    assert files(folder) == [path]
    assert path.read_bytes() == content


def test_what_another_process_is_writing_is_left_to_it(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = run(folder)
    [path] = files(folder)
    path.unlink()
    with unfinished(path).open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(b"theirs")
        file.flush()
        caplog.set_level(logging.INFO)
        assert torch.equal(run(folder), expected)
    assert f"another process is writing {path}" in caplog.text
    assert files(folder) == [unfinished(path)]
    assert unfinished(path).read_bytes() == b"theirs"


def test_what_is_no_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ValueError, match=f"--packed-cache must be a folder, got the file {file}"):
        run(folder, packed_cache=file)


def test_it_is_refused_where_there_is_nothing_to_keep(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--packed-cache keeps packed 4-bit weights of a CPU, got W16A16 on cpu"):
        run(tmp_path / "source", precision="W16A16")
    with pytest.raises(ValueError, match=r"--packed-cache .* got W4A16 on cuda: there they are packed at every start"):
        run(folder, device="cuda")
    assert files(folder) == []
