"""The command line: llm-awq's four sequences on a small model, and a clear message for every mistake."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_model
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from awq import entry
from awq.formats import open_checkpoint
from awq.quantize import QuantConfig, dequantize, fake_quantize

BITS = ["--w_bit", "4", "--q_group_size", "32"]
SHORT = ["--n_samples", "4", "--seqlen", "32"]
EVALUATION = ["--eval_seqlen", "64", "--eval_windows", "6"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.save(tmp_path_factory.mktemp("models") / "tiny", dtype=torch.float16)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "text.txt"
    path.write_text(tiny_model.TEXT * 10, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def results(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("awq_cache") / "tiny-w4-g32.pt"
    entry.main(["--model_path", str(folder), *BITS, "--run_awq", "--dump_awq", str(path), *SHORT])
    return path


def run(folder: Path, *arguments: object) -> None:
    entry.main(["--model_path", str(folder), *map(str, arguments)])


def fails(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: object) -> tuple[int, str]:
    """Exit code and message of a command that must fail, without a stack trace and without leaving a file."""
    with pytest.raises(SystemExit) as caught:
        run(folder, *arguments)
    message = capsys.readouterr().err
    assert "error: " in message
    assert "Traceback" not in message
    assert isinstance(caught.value.code, int)
    return caught.value.code, message


def perplexity(folder: Path, text: Path, out: Path, *arguments: object) -> float:
    run(folder, *arguments, "--eval_file", text, *EVALUATION, "--output_path", out)
    return float(json.loads(out.read_text())["results"][str(text)]["perplexity"])


@pytest.mark.parametrize("name", ["tiny-w4-g32-awq.pt", "tiny-awq"])
def test_the_four_sequences(name: str, folder: Path, text: Path, results: Path, tmp_path: Path) -> None:
    dump = tmp_path / "quant_cache" / name
    out = tmp_path / "out.json"
    fake = perplexity(folder, text, out, *BITS, "--load_awq", results, "--q_backend", "fake")
    run(folder, *BITS, "--load_awq", results, "--q_backend", "real", "--dump_quant", dump)
    written = dump if dump.suffix != ".pt" else dump.with_name("tiny-w4-g32-awq-v2.pt")
    assert [item.name for item in dump.parent.iterdir()] == [written.name]
    real = perplexity(folder, text, out, *BITS, "--load_quant", written)
    assert real == pytest.approx(fake, rel=5e-3)
    assert perplexity(folder, text, out, *BITS, "--load_quant", dump) == real  # without -v2, as in llm-awq's README
    dequantized = perplexity(folder, text, out, *BITS, "--load_quant", dump, "--q_backend", "fake")
    assert dequantized == pytest.approx(fake, rel=1e-3)
    whole = perplexity(folder, text, out)
    assert whole != fake


def test_real_evaluation_without_a_dump(folder: Path, text: Path, results: Path, tmp_path: Path) -> None:
    real = perplexity(folder, text, tmp_path / "a.json", *BITS, "--load_awq", results, "--q_backend", "real")
    fake = perplexity(folder, text, tmp_path / "b.json", *BITS, "--load_awq", results)
    assert real == pytest.approx(fake, rel=5e-3)


def test_round_to_nearest_without_results(folder: Path, tmp_path: Path) -> None:
    run(folder, *BITS, "--q_backend", "real", "--dump_quant", tmp_path / "rtn")
    quantized = open_checkpoint(tmp_path / "rtn")
    weight = open_checkpoint(folder).tensor("model.layers.1.mlp.down_proj.weight")
    expected = fake_quantize(weight, QuantConfig(4, 32))
    actual = dequantize(quantized.quantized("model.layers.1.mlp.down_proj"), torch.float16)
    assert torch.equal(actual, expected)


def test_search_and_dump_in_one_command(folder: Path, tmp_path: Path) -> None:
    flags = [
        "--run_awq",
        "--dump_awq",
        tmp_path / "r.pt",
        *SHORT,
        "--q_backend",
        "real",
        "--dump_quant",
        tmp_path / "q",
    ]
    run(folder, *BITS, *flags)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["q", "r.pt"]


@pytest.mark.parametrize("flags", [["--no_zero_point"], ["--w_bit", "3"]])
def test_fake_dump_is_a_model_folder(flags: list[str], folder: Path, text: Path, tmp_path: Path) -> None:
    fake = tmp_path / "fake"
    run(folder, *BITS, *flags, "--dump_fake", fake)
    model = AutoModelForCausalLM.from_pretrained(fake)
    weight = open_checkpoint(folder).tensor("model.layers.0.mlp.up_proj.weight")
    config = QuantConfig(3 if "3" in flags else 4, 32, "--no_zero_point" not in flags)
    assert torch.equal(model.get_parameter("model.layers.0.mlp.up_proj.weight").half(), fake_quantize(weight, config))
    assert perplexity(fake, text, tmp_path / "a.json") == pytest.approx(
        perplexity(folder, text, tmp_path / "b.json", *BITS, *flags), rel=1e-3
    )


def test_search_with_a_calibration_file_and_symmetric_rounding(folder: Path, text: Path, tmp_path: Path) -> None:
    flags = [*BITS, "--no_zero_point", "--calib_data", text, *SHORT]
    run(folder, *flags, "--run_awq", "--dump_awq", tmp_path / "r.pt", "--search", "exact", "--layers", "1:2")
    scales = torch.load(tmp_path / "r.pt", weights_only=True)["scale"]
    assert {prev.split(".")[2] for prev, _, _ in scales} == {"1"}


def test_existing_results_are_kept(folder: Path, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = results.read_bytes()
    run(folder, *BITS, "--run_awq", "--dump_awq", results)
    assert f"Found existing AWQ results {results}, exit." in capsys.readouterr().err
    assert results.read_bytes() == before
    code, message = fails(capsys, folder, "--w_bit", 4, "--q_group_size", 64, "--run_awq", "--dump_awq", results)
    assert code == 1
    assert "asked for --w_bit 4 --q_group_size 64" in message


def test_existing_checkpoints_are_kept(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "precious").write_text("x")
    for flag in ("--dump_quant", "--dump_fake"):
        code, message = fails(capsys, folder, *BITS, flag, tmp_path / "q")
        assert code == 1
        assert "already exists" in message
    assert [item.name for item in (tmp_path / "q").iterdir()] == ["precious"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to do"),
        (["--run_awq"], "--run_awq needs --w_bit"),
        ([*BITS, "--run_awq"], "--run_awq needs --dump_awq"),
        ([*BITS, "--dump_awq", "x.pt", "--dump_quant", "y"], "--dump_awq needs --run_awq"),
        (["--w_bit", "9"], "argument --w_bit: must be 2 to 8, got 9"),
        (["--w_bit", "four"], "argument --w_bit: must be an integer, got 'four'"),
        (["--q_group_size", "0"], "argument --q_group_size: must be -1 (a whole row) or a positive integer, got '0'"),
        (["--search", "slow"], "argument --search: invalid choice: 'slow'"),
        (["--q_backend", "cuda"], "argument --q_backend: invalid choice: 'cuda'"),
        (["--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
        (["--layers", "3"], "argument --layers: must be A:B"),
        (["--max_memory", "lots"], "argument --max_memory: must be DEVICE:SIZE"),
        (["--surprise"], "unrecognized arguments: --surprise"),
        (["--w_bit", "3", "--dump_quant", "x"], "stores 4 bits, got --w_bit 3"),
        ([*BITS, "--q_backend", "fake", "--dump_quant", "x"], "--dump_quant needs --q_backend real"),
        ([*BITS, "--dump_quant", "x", "--load_quant", "y"], "give it without"),
        (["--output_path", "x.json", *BITS, "--dump_quant", "x"], "--output_path needs --tasks or --eval_file"),
    ],
)
def test_flags_that_mean_nothing(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = fails(capsys, folder, *arguments)
    assert code == 2
    assert message in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--w_bit", "4", "--q_group_size", "48"],
            "--q_group_size 48 does not divide the 64 input channels of",
        ),
        ([*BITS, "--load_awq", "none.pt"], "search results not found: none.pt"),
    ],
)
def test_mistakes_in_files_and_settings(
    arguments: list[str], message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = fails(capsys, folder, *arguments, "--dump_quant", tmp_path / "q")
    assert code == 1
    assert message in said
    assert not list(tmp_path.iterdir())


def test_mistakes_in_evaluation(folder: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such file" in fails(capsys, folder, "--eval_file", tmp_path / "none.txt")[1]
    assert "--tasks wikitext: the data set cannot be had" in fails(capsys, folder, "--tasks", "wikitext")[1]
    code, said = fails(capsys, folder, *BITS, "--load_quant", tmp_path / "none.pt", "--eval_file", text)
    assert code == 1
    assert "none.pt: no such file or folder (nor none-v2.pt)" in said
    run(folder, *BITS, "--dump_quant", tmp_path / "q")
    said = fails(
        capsys, folder, "--w_bit", 4, "--q_group_size", 64, "--load_quant", tmp_path / "q", "--eval_file", text
    )[1]
    assert "holds --w_bit 4 --q_group_size 32; asked for --w_bit 4 --q_group_size 64" in said
    said = fails(capsys, tmp_path / "q", *BITS, "--dump_quant", tmp_path / "again")[1]
    assert "already quantized" in said


def test_mistakes_in_the_model_folder(
    folder: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dump = [*BITS, "--dump_quant", tmp_path / "q"]
    assert "no such folder" in fails(capsys, tmp_path / "none", *dump)[1]
    (tmp_path / "empty").mkdir()
    assert "no config.json" in fails(capsys, tmp_path / "empty", *dump)[1]

    model = shutil.copytree(folder, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"architectures": ["SecretForCausalLM"]}))
    said = fails(capsys, model, *dump)[1]
    assert "architectures is SecretForCausalLM; transformers" in said
    assert "has no such class, and code from the model folder is not run" in said
    (model / "config.json").write_text(json.dumps(config | {"hidden_size": "wide"}))
    assert (
        "transformers cannot build LlamaForCausalLM: Validation error for field 'hidden_size'"
        in (fails(capsys, model, *dump)[1])
    )
    (model / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    assert "mlp.down_proj.weight has shape [64, 128]; config.json makes it [64, 96]" in fails(capsys, model, *dump)[1]
    (model / "config.json").write_text(json.dumps(config))

    weights = load_file(model / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    assert "model.layers.1.mlp.up_proj.weight has 1 NaN" in fails(capsys, model, *dump)[1]
    search = [*BITS, "--run_awq", "--dump_awq", tmp_path / "r.pt", *SHORT, "--calib_data", text]
    assert "model.layers.1.mlp.up_proj.weight holds NaN or infinite values" in fails(capsys, model, *search)[1]
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    assert "model.layers.1.mlp.up_proj.weight is missing (1 of 21 tensors are)" in fails(capsys, model, *dump)[1]
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(128, 64)
    surplus = {**weights, "model.layers.1.mlp.up_proj.bias": torch.zeros(128)}
    save_file(surplus, model / "model.safetensors", metadata={"format": "pt"})
    said = fails(capsys, model, *dump)[1]
    assert "up_proj.bias is in the checkpoint, but LlamaForCausalLM has no such tensor" in said
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with open(model / "model.safetensors", "r+b") as file:
        file.truncate(1000)
    assert "model.safetensors" in fails(capsys, model, *dump)[1]
    assert not (tmp_path / "q").exists()
    assert not (tmp_path / "r.pt").exists()


def test_help_is_fast_and_light() -> None:
    code = "import sys; from awq import entry\ntry: entry.main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for flag in ("--model_path", "--run_awq", "--dump_quant", "--calib_data", "--eval_file", "--max_memory"):
        assert flag in done.stdout
