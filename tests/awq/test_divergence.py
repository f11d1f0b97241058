"""KL divergence and agreement against their definitions, and the reduced 16-bit model against the whole one."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_model
import torch
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM

from awq import entry
from awq.divergence import DivergenceMeter, Reference, compare, percentile
from awq.errors import UserError
from awq.evaluate import network_logits, perplexity, split_windows
from awq.model import encode, load_tokenizer
from awq.network import load_network
from awq.quantize import QuantConfig, fake_quantize

BITS = ["--w_bit", "4", "--q_group_size", "32"]


def windows(count: int = 3, length: int = 40) -> Tensor:
    return torch.randint(0, 256, (count, length), generator=torch.Generator().manual_seed(0))


def test_definition() -> None:
    p, q = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.7, 0.1]]), torch.tensor([[0.25, 0.5, 0.25], [0.2, 0.7, 0.1]])
    kl, same = compare(p.log() + 3, q.log() - 5)  # logits have no origin
    expected = 0.5 * torch.tensor(2.0).log() + 0.25 * torch.tensor(0.5).log()
    torch.testing.assert_close(kl, torch.stack((expected, torch.tensor(0.0))), atol=1e-6, rtol=1e-5)
    assert same.tolist() == [False, True]


def test_percentile_is_a_value() -> None:
    values = torch.randperm(1000, generator=torch.Generator().manual_seed(0)).float()
    assert percentile(values, 0.99) == 989  # 990 of the values 0 to 999 are at most 989
    assert percentile(torch.tensor([5.0]), 0.99) == 5


def gemma2() -> Any:
    """Its logits are capped after the output layer."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        final_logit_softcapping=2.0,
        initializer_range=0.5,
    )
    return Gemma2ForCausalLM(config).eval()


def llama(folder: Path) -> Any:
    return load_network(tiny_model.save(folder), torch.float32)


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_what_stays_of_the_16_bit_model_gives_its_logits(kind: str, tmp_path: Path) -> None:
    network = gemma2() if kind == "gemma2" else llama(tmp_path / "tiny")
    whole = [network_logits(network, window) for window in windows()]
    expected = perplexity(partial(network_logits, network), windows())
    reference = Reference(network, network.model.layers, {"text": windows()})
    assert len(network.model.layers) == 0
    assert reference.perplexities["text"] == expected
    for index, window in enumerate(windows()):
        torch.testing.assert_close(reference.logits("text", index, window), whole[index])


def test_a_model_does_not_diverge_from_itself(tmp_path: Path) -> None:
    network = llama(tmp_path / "tiny")
    reference = Reference(network, network.model.layers, {"text": windows()})
    meter = DivergenceMeter(reference, "text")
    perplexity(partial(network_logits, llama(tmp_path / "again")), windows(), meter.add)
    found = meter.result()
    assert found.kl_mean < 1e-6
    assert found.kl_p99 < 1e-6
    assert found.top1_agreement == 1


def test_nan_is_an_error(tmp_path: Path) -> None:
    network = llama(tmp_path / "tiny")
    meter = DivergenceMeter(Reference(network, network.model.layers, {"text": windows()}), "text")
    meter.add(0, windows()[0], torch.full((40, 320), torch.nan))
    with pytest.raises(UserError, match="KL divergence is not finite"):
        meter.result()


@pytest.mark.parametrize("backend", ["fake", "real"])
def test_command_line(backend: str, tmp_path: Path) -> None:
    folder = tiny_model.save(tmp_path / "tiny", dtype=torch.float16)
    text, out = tmp_path / "text.txt", tmp_path / "out.json"
    text.write_text(tiny_model.TEXT * 3, encoding="utf-8")
    flags = ["--model_path", str(folder), "--eval_file", str(text), "--eval_seqlen", "64", "--output_path", str(out)]
    entry.main(flags)
    alone = json.loads(out.read_text())["results"][str(text)]
    entry.main([*flags, *BITS, "--kl", "--q_backend", backend])
    found = json.loads(out.read_text())["results"][str(text)]
    assert found["perplexity_16_bit"] == pytest.approx(alone["perplexity"], rel=1e-6)

    network = load_network(folder, torch.float32)
    rounded = load_network(folder, torch.float32)
    for name, parameter in rounded.named_parameters():
        if "_proj" in name:
            parameter.copy_(fake_quantize(parameter.half(), QuantConfig(4, 32)).float())
    rows = split_windows(encode(load_tokenizer(folder), text.read_text()), 64)
    pairs = [compare(network_logits(network, row)[:-1], network_logits(rounded, row)[:-1]) for row in rows]
    kl = torch.cat([kl for kl, _ in pairs])
    same = torch.cat([same for _, same in pairs])
    tolerance = 1e-2 if backend == "fake" else 5e-2
    assert found["kl_mean"] == pytest.approx(float(kl.mean()), rel=tolerance)
    assert found["kl_p99"] == pytest.approx(percentile(kl, 0.99), rel=2 * tolerance)
    assert found["top1_agreement"] == pytest.approx(float(same.float().mean()), abs=0.02)
