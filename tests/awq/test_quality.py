"""What the search is for, on a real model: it takes back a good part of what rounding to 4 bits costs."""

import json
from pathlib import Path

import pytest

from awq import entry

BITS = ["--w_bit", "4", "--q_group_size", "64"]
# A quarter of the default calibration and short windows: the shape of the result in a tenth of the time.
SHORT = ["--n_samples", "4", "--seqlen", "512"]
EVALUATION = ["--eval_seqlen", "512", "--eval_windows", "6"]


@pytest.fixture(scope="module")
def results(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("awq_cache") / "results.pt"
    entry.main(["--model_path", str(smollm2), *BITS, "--run_awq", "--dump_awq", str(path), *SHORT])
    return path


def perplexity(model: Path, out: Path, *arguments: object) -> float:
    text = Path(__file__).parents[1] / "data" / "northanger_abbey.txt"
    flags = ["--model_path", model, *arguments, "--eval_file", text, *EVALUATION, "--output_path", out]
    entry.main([str(flag) for flag in flags])
    return float(json.loads(out.read_text())["results"][str(text)]["perplexity"])


def test_awq_beats_rounding_to_nearest(smollm2: Path, results: Path, tmp_path: Path) -> None:
    whole = perplexity(smollm2, tmp_path / "16-bit.json")
    nearest = perplexity(smollm2, tmp_path / "nearest.json", *BITS)
    fake = perplexity(smollm2, tmp_path / "fake.json", *BITS, "--load_awq", results)
    assert whole < fake < nearest
    assert fake - whole <= 0.7 * (nearest - whole), f"16 bits {whole:.2f}, nearest {nearest:.2f}, AWQ {fake:.2f}"
    real = perplexity(smollm2, tmp_path / "real.json", *BITS, "--load_awq", results, "--q_backend", "real")
    assert real == pytest.approx(fake, rel=5e-3)
