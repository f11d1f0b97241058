"""--no_zero_point from the search to the real model, at every group size the model allows, in every format."""

import json
from pathlib import Path

import pytest
import tiny_model
import torch

from awq import entry
from awq.formats import open_checkpoint

SHORT = ["--n_samples", "2", "--seqlen", "32"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.save(tmp_path_factory.mktemp("models") / "tiny", dtype=torch.float16)


@pytest.mark.parametrize("target", ["awq-gemm", "compressed-tensors", "llm-awq-v2"])
@pytest.mark.parametrize("group_size", [32, 64, -1])
def test_search_dump_and_evaluation(group_size: int, target: str, folder: Path, tmp_path: Path) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "out.json"
    text.write_text(tiny_model.TEXT * 2, encoding="utf-8")
    dump = tmp_path / ("q-v2.pt" if target == "llm-awq-v2" else "q")
    flags = ["--model_path", str(folder), "--w_bit", "4", "--q_group_size", str(group_size), "--no_zero_point"]
    evaluation = ["--eval_file", str(text), "--eval_seqlen", "64", "--output_path", str(out)]

    def perplexity(*arguments: str) -> float:
        entry.main([*flags, *evaluation, *arguments])
        return float(json.loads(out.read_text())["results"][str(text)]["perplexity"])

    search = ["--run_awq", "--dump_awq", str(tmp_path / "r.pt"), "--calib_data", str(text), *SHORT]
    entry.main([*flags, *search, "--dump_quant", str(dump), "--dump_format", target])
    checkpoint = open_checkpoint(folder, dump)
    for module in checkpoint.modules():
        assert bool((checkpoint.quantized(module).zeros == 8).all())
    assert checkpoint.quant is not None
    assert checkpoint.quant.zero_point is (target != "compressed-tensors")  # the others store zeros of 8
    fake = perplexity("--load_awq", str(tmp_path / "r.pt"))
    assert perplexity("--load_quant", str(dump)) == pytest.approx(fake, rel=5e-3)
    assert perplexity("--load_quant", str(dump), "--q_backend", "fake") == pytest.approx(fake, rel=1e-3)


def test_three_bits_are_searched_and_faked(folder: Path, tmp_path: Path) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "out.json"
    text.write_text(tiny_model.TEXT * 2, encoding="utf-8")
    flags = ["--model_path", str(folder), "--q_group_size", "32", "--eval_file", str(text), "--eval_seqlen", "64"]
    found = {}
    for bits in ("3", "4"):
        search = ["--run_awq", "--dump_awq", str(tmp_path / f"{bits}.pt"), "--calib_data", str(text), *SHORT]
        entry.main([*flags, "--w_bit", bits, *search, "--kl", "--output_path", str(out)])
        found[bits] = json.loads(out.read_text())["results"][str(text)]["kl_mean"]
    assert found["3"] > found["4"] > 0
