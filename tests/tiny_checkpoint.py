"""A small model's folder and its quantized weights, made without what reads and writes checkpoints."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from awq.quantize import QuantConfig, QuantizedTensor

MODULES = {"model.layers.0.self_attn.q_proj": (64, 128), "model.layers.0.mlp.down_proj": (128, 256)}


@dataclass(frozen=True)
class TinyModel:
    """One decoder layer's worth of tensors, [N, K] as in MODULES, and where its 16-bit folder is."""

    folder: Path
    state: dict[str, Tensor]  # what is not quantized
    quantized: dict[str, QuantizedTensor]
    config: QuantConfig


def random_quantized(
    n: int, k: int, config: QuantConfig, dtype: torch.dtype = torch.float16, seed: int = 0
) -> QuantizedTensor:
    """Random codes, zeros and scales: every value that a format can hold, unlike rounded weights."""
    generator = torch.Generator().manual_seed(seed)
    groups = k // config.group(k)
    codes = torch.randint(0, 16, (n, k), generator=generator, dtype=torch.uint8)
    zeros = torch.randint(0, 16, (n, groups), generator=generator, dtype=torch.uint8)
    scales = (torch.rand(n, groups, generator=generator) * 0.1 + 1e-4).to(dtype)
    if not config.zero_point:
        zeros.fill_(8)
    return QuantizedTensor(codes, scales, zeros, config)


def assert_same(actual: QuantizedTensor, expected: QuantizedTensor) -> None:
    assert torch.equal(actual.codes, expected.codes)
    assert torch.equal(actual.zeros, expected.zeros)
    assert torch.equal(actual.scales, expected.scales)
    assert actual.scales.dtype == expected.scales.dtype


def encode_v1(weight: QuantizedTensor) -> dict[str, Tensor]:
    """The GEMV layout, nibble by nibble: 8c + i at nibble i, zeros and scales padded to whole, even words."""
    n, k = weight.n, weight.k
    groups = k // weight.group
    width = {32: 4, 64: 2}.get(weight.group, 1)
    while 8 * width < groups:
        width += {32: 4, 64: 2}.get(weight.group, 1)

    def words(row: list[int], count: int) -> list[int]:
        row = row + [0] * (8 * count - len(row))
        return [sum(row[8 * c + i] << (4 * i) for i in range(8)) for c in range(count)]

    qweight = np.array([words(row, k // 8) for row in weight.codes.tolist()], dtype=np.uint32)
    qzeros = np.array([words(row, width) for row in weight.zeros.tolist()], dtype=np.uint32)
    scales = torch.zeros(n, 8 * width, dtype=weight.scales.dtype)
    scales[:, :groups] = weight.scales
    return {
        "qweight": torch.from_numpy(qweight.view(np.int32)),
        "qzeros": torch.from_numpy(qzeros.view(np.int32)),
        "scales": scales,
    }


def make_tiny_model(
    folder: Path, config: QuantConfig | None = None, dtype: torch.dtype = torch.float16, tied: bool = False
) -> TinyModel:
    config = config or QuantConfig(4, 64)
    generator = torch.Generator().manual_seed(7)
    embedding = torch.randn(32, 64, generator=generator).to(dtype)
    state = {
        "model.embed_tokens.weight": embedding,
        "model.layers.0.self_attn.q_proj.bias": torch.randn(64, generator=generator).to(dtype),
        "model.norm.weight": torch.ones(64, dtype=dtype),
        "lm_head.weight": embedding if tied else torch.randn(32, 64, generator=generator).to(dtype),
    }
    quantized = {
        name: random_quantized(n, k, config, dtype, seed) for seed, (name, (n, k)) in enumerate(MODULES.items())
    }
    folder.mkdir()
    write_source(folder, state, tied, dtype)
    return TinyModel(folder, state, quantized, config)


def write_source(folder: Path, state: dict[str, Tensor], tied: bool, dtype: torch.dtype) -> None:
    """The 16-bit folder as Hugging Face's tools would leave it."""
    weights = {name: tensor for name, tensor in state.items() if not (tied and name == "lm_head.weight")}
    weights |= {f"{name}.weight": torch.zeros(shape, dtype=dtype) for name, shape in MODULES.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "vocab_size": 32,
        "tie_word_embeddings": tied,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    (folder / "config.json").write_text(json.dumps(config))
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "chat_template.jinja",
        "README.md",
    ):
        (folder / name).write_text(f"the {name} of the source")
