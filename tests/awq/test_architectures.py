"""Every architecture: folding must not change a model, which is what catches a wrong mapping; then search and dump."""

from pathlib import Path

import pytest
import tiny_architectures
import tiny_model
import torch
from torch import Tensor

from awq import entry
from awq.apply import Adjustment, QuantizedModel
from awq.formats import open_checkpoint
from awq.mappings import ARCHITECTURES
from awq.model import ModelFolder, open_model
from awq.network import fill, load_network
from awq.quantize import QuantConfig, dequantize
from awq.results import ScaleItem, SearchResults, load_results

NAMES = sorted(tiny_architectures.MODELS)
TOKENS = torch.randint(0, 300, (2, 24), generator=torch.Generator().manual_seed(0))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def random_scales(model: ModelFolder) -> SearchResults:
    """A random scale for every group that can have one, equal where channels are tied."""
    generator = torch.Generator().manual_seed(1)
    items = []
    for index, groups in enumerate(model.mapping.groups):
        block = model.mapping.block(index)
        for group in groups:
            if group.prev is not None:
                k = model.shape(f"{block}.{group.layers[0]}.weight")[1]
                t = group.spread(group.shared_mean(torch.rand(k, generator=generator) * 4 + 0.1))
                layers = tuple(f"{block}.{layer}" for layer in group.layers + group.followers)
                items.append(ScaleItem(f"{block}.{group.prev}", layers, t))
    return SearchResults(items)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_folding_leaves_the_outputs_unchanged(name: str, tmp_path: Path) -> None:
    expected = tiny_architectures.save(name, tmp_path)(input_ids=TOKENS).logits
    loaded = load_network(tmp_path, torch.float32)(input_ids=TOKENS).logits
    assert relative(loaded, expected) < 1e-5
    model = open_model(tmp_path)
    results = random_scales(model)
    assert bool(results.scales) == (name != "no mapping")
    adjust = Adjustment(results, model.folds())
    folded = fill(model.skeleton, ((name, adjust(name, tensor)) for name, tensor in model.tensors()), torch.float32)
    assert relative(folded(input_ids=TOKENS).logits, expected) < 1e-4


def test_every_mapping_is_tested(tmp_path: Path) -> None:
    tested = set()
    for name in NAMES:
        _, model_type, settings = tiny_architectures.MODELS[name]
        tested |= {model_type, f"{model_type}_text", settings.get("text_config", {}).get("model_type")}
    assert set(ARCHITECTURES) <= tested


@pytest.mark.parametrize("name", NAMES)
def test_search_fake_evaluation_and_dump(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, results, dump, text = (tmp_path / part for part in ("model", "r.pt", "quantized", "text.txt"))
    tiny_architectures.save(name, folder)
    text.write_text(tiny_model.TEXT * 2)
    run = ["--model_path", str(folder), "--w_bit", "4", "--q_group_size", "32"]
    search = ["--run_awq", "--dump_awq", str(results), "--calib_data", str(text), "--n_samples", "3", "--seqlen", "32"]
    entry.main([*run, *search, "--dump_quant", str(dump)])
    assert ("has no mapping" in capsys.readouterr().err) == (name == "no mapping")
    entry.main([*run, "--load_awq", str(results), "--eval_file", str(text), "--eval_seqlen", "32"])
    assert "perplexity" in capsys.readouterr().out

    config = QuantConfig(4, 32)
    model = open_model(folder)
    found = load_results(results, model.identity(), config, model.shapes(), print)
    expected, written = QuantizedModel(model, config, found), open_checkpoint(folder, dump)
    assert set(written.modules()) == set(model.linears())
    assert not [module for module in written.modules() if "vis" in module or module.endswith(".gate")]
    for module in written.modules():
        assert torch.equal(dequantize(written.quantized(module)), dequantize(expected.quantized[module])), module
    for tensor in written.names():
        torch.testing.assert_close(written.tensor(tensor), expected.state[tensor])


def test_kernels_that_tinyserve_does_not_have_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, text = tmp_path / "model", tmp_path / "text.txt"
    tiny_architectures.save("bloom", folder)
    text.write_text(tiny_model.TEXT)
    flags = ["--model_path", str(folder), "--w_bit", "4", "--q_group_size", "32", "--q_backend", "real"]
    with pytest.raises(SystemExit):
        entry.main([*flags, "--eval_file", str(text), "--eval_seqlen", "32"])
    message = capsys.readouterr().err
    assert "--q_backend real: " in message
    assert "BloomForCausalLM cannot be served: " in message
    assert message.endswith("; --q_backend fake evaluates it with transformers\n")
