"""A disk that fills up in the middle: a message, nothing half-written, and a search that goes on afterwards."""

from pathlib import Path

import pytest
import tiny_model
import torch
from disk_limit import files_of_at_most

from awq import entry

BITS = ["--w_bit", "4", "--q_group_size", "32"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.save(tmp_path_factory.mktemp("models") / "tiny", dtype=torch.float16)


def fails(capsys: pytest.CaptureFixture[str], limit: int, folder: Path, *arguments: object) -> str:
    """The message of a command for which the disk is too small."""
    with files_of_at_most(limit), pytest.raises(SystemExit) as caught:
        entry.main(["--model_path", str(folder), *BITS, *map(str, arguments)])
    message = capsys.readouterr().err
    assert caught.value.code == 1
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize(
    ("flag", "name"), [("--dump_quant", "q"), ("--dump_quant", "q-v2.pt"), ("--dump_fake", "fake")]
)
def test_checkpoints(flag: str, name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, 20_000, folder, flag, tmp_path / name)
    assert "File too large" in message or "is the disk full?" in message or "requested and" in message
    assert not list(tmp_path.iterdir())
    entry.main(["--model_path", str(folder), *BITS, flag, str(tmp_path / name)])
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_search_goes_on_with_its_finished_layers(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = ["--run_awq", "--dump_awq", tmp_path / "r.pt", "--n_samples", "2", "--seqlen", "32"]
    block_bytes = 30_000  # a block's file fits, both together do not
    message = fails(capsys, block_bytes, folder, *search)
    assert "r.pt cannot be written" in message
    assert [path.name for path in tmp_path.iterdir()] == ["r.pt.unfinished"]
    assert len(list((tmp_path / "r.pt.unfinished").glob("block-*.pt"))) == 2
    entry.main(["--model_path", str(folder), *BITS, *map(str, search)])
    assert "2 layers are done" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["r.pt"]
