"""The search of a model: going on after an interruption, some layers only, and a full disk."""

import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny_model
import torch

from awq import entry
from awq.errors import UserError
from awq.lazy_network import LazyNetwork
from awq.model import ModelFolder
from awq.model_search import search_model
from awq.quantize import QuantConfig
from awq.results import SearchResults
from awq.search import BlockSearch
from awq.unfinished import UnfinishedSearch

CONFIG = QuantConfig(4, 32)
TOKENS = torch.randint(0, 256, (5, 48), generator=torch.Generator().manual_seed(0))


class Interrupted(Exception):
    pass


class Interruptible(UnfinishedSearch):
    """Stops after a number of blocks, as Ctrl-C would."""

    blocks_left = 100

    def keep_block(self, index: int, found: SearchResults) -> None:
        super().keep_block(index, found)
        self.blocks_left -= 1
        if self.blocks_left == 0:
            raise Interrupted


def assert_same(found: SearchResults, expected: SearchResults) -> None:
    for actual, scale in zip(found.scales, expected.scales, strict=True):
        assert (actual.prev, actual.layers) == (scale.prev, scale.layers)
        assert torch.equal(actual.scales, scale.scales)
    for bound, clip in zip(found.clips, expected.clips, strict=True):
        assert torch.equal(bound.bound, clip.bound)


def test_an_interrupted_search_goes_on(model: ModelFolder, network: LazyNetwork, tmp_path: Path) -> None:
    search = BlockSearch(model.mapping, CONFIG)
    said: list[str] = []
    whole = search_model(network, search, TOKENS, None, UnfinishedSearch(tmp_path / "a.pt", {"seed": 1}, said.append))

    first = Interruptible(tmp_path / "b.pt", {"seed": 1}, said.append)
    first.blocks_left = 1
    first.keep_tokens(TOKENS)
    with pytest.raises(Interrupted):
        search_model(network, search, TOKENS, None, first)
    again = UnfinishedSearch(tmp_path / "b.pt", {"seed": 1}, said.append)
    assert "1 layers are done" in said[-1]
    kept = again.tokens()
    assert kept is not None
    assert again.block(0) is not None
    assert again.block(1) is None
    assert_same(search_model(network, search, kept, None, again), whole)
    again.remove()
    assert not again.folder.exists()


def test_an_interrupted_search_with_other_settings_starts_again(tmp_path: Path) -> None:
    said: list[str] = []
    UnfinishedSearch(tmp_path / "a.pt", {"seed": 1}, said.append).keep_block(0, SearchResults())
    again = UnfinishedSearch(tmp_path / "a.pt", {"seed": 2}, said.append)
    assert "other settings: starting again" in said[-1]
    assert again.block(0) is None


def test_only_some_layers(
    model: ModelFolder, network: LazyNetwork, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = BlockSearch(model.mapping, CONFIG)
    whole = search_model(network, search, TOKENS, None, UnfinishedSearch(tmp_path / "a.pt", {}, print))
    assert "would take" not in capsys.readouterr().err
    part = search_model(network, search, TOKENS, (1, 2), UnfinishedSearch(tmp_path / "b.pt", {}, print))
    assert {item.prev for item in part.scales} == {item.prev for item in whole.scales if ".layers.1." in item.prev}
    assert "s a layer: the search of all 2 layers would take about 0 minutes" in capsys.readouterr().err
    with pytest.raises(UserError, match="--layers 1:3: the model has 2 layers"):
        search_model(network, search, TOKENS, (1, 3), UnfinishedSearch(tmp_path / "c.pt", {}, print))


def command(model: Path, results: Path, text: Path) -> list[str]:
    text.write_text(tiny_model.TEXT * 3)
    bits = ["--model_path", str(model), "--w_bit", "4", "--q_group_size", "32", "--run_awq"]
    return [*bits, "--dump_awq", str(results), "--calib_data", str(text), "--n_samples", "4", "--seqlen", "32"]


def test_a_killed_search_loses_at_most_one_block(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model.save(tmp_path / "deep", num_hidden_layers=12)
    arguments = command(model, tmp_path / "r.pt", tmp_path / "text.txt")
    process = subprocess.Popen([sys.executable, "-m", "awq.entry", *arguments], stderr=subprocess.DEVNULL)
    done = tmp_path / "r.pt.unfinished" / "block-0001.pt"
    while process.poll() is None and not done.exists():
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    finished = len(list(done.parent.glob("block-*.pt")))
    entry.main(arguments)
    assert f"{finished} layers are done" in capsys.readouterr().err
    interrupted = torch.load(tmp_path / "r.pt", weights_only=True)
    entry.main(command(model, tmp_path / "whole.pt", tmp_path / "text.txt"))
    whole = torch.load(tmp_path / "whole.pt", weights_only=True)
    for (prev, layers, scales), (*names, expected) in zip(interrupted["scale"], whole["scale"], strict=True):
        assert [prev, layers] == names
        assert torch.equal(scales, expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "r.pt", "text.txt", "whole.pt"]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writing past `size` bytes fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_nothing_half_written(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(folder, tmp_path / "r.pt", tmp_path / "text.txt")
    entry.main(arguments)
    size = (tmp_path / "r.pt").stat().st_size
    (tmp_path / "r.pt").unlink()
    with files_of_at_most(size - 1), pytest.raises(SystemExit):  # enough for one block, not for all
        entry.main(arguments)
    assert "r.pt cannot be written" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.pt.unfinished", "text.txt"]
    entry.main(arguments)
    assert "2 layers are done" in capsys.readouterr().err
    with files_of_at_most(size), pytest.raises(SystemExit):
        entry.main([*arguments, "--dump_quant", str(tmp_path / "quantized")])
    assert "cannot be written" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.pt", "text.txt"]
