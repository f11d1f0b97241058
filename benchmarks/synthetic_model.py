"""Writes a model folder of a known model's true shapes with random weights, to measure memory and time without one.

    python -m benchmarks.synthetic_model llama-3-8b OUT --tokenizer FOLDER            in bf16, to be quantized:
    python -m awq.entry --model_path OUT --w_bit 4 --q_group_size 128 --run_awq --dump_awq r.pt \\
        --calib_data TEXT --layers 0:2
    python -m benchmarks.synthetic_model llama-2-7b OUT --tokenizer FOLDER --awq 128  in 4 bits, as AutoAWQ stores it

Tensors are parts of a pool of random numbers and are written as they come: memory stays below 2 GB.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig

from awq.formats.output import copy_companions, new_folder, write_config, write_shards
from benchmarks.model_configs import MODELS

STD = 0.02
STEP = STD / 4.6  # scale of 4-bit codes whose products with it have that deviation
POOL = 1 << 26  # random numbers that are made; each tensor starts somewhere else among them
PER_WORD = 8  # codes


class Pool:
    """Random tensors, cheaply."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)
        self._normal = torch.randn(POOL, generator=self._generator) * STD
        self._words = torch.randint(-(1 << 31), 1 << 31, (POOL,), generator=self._generator, dtype=torch.int32)

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return self._part(self._normal, shape).to(dtype)

    def words(self, shape: tuple[int, ...]) -> Tensor:
        """int32, each bit random."""
        return self._part(self._words, shape)

    def _part(self, pool: Tensor, shape: tuple[int, ...]) -> Tensor:
        size = torch.Size(shape).numel()
        if size > POOL:
            return pool.repeat(-(-size // POOL))[:size].view(shape)
        start = int(torch.randint(POOL - size + 1, (1,), generator=self._generator))
        return pool[start : start + size].view(shape)


def parameters(config: PretrainedConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every parameter's name and shape; an output layer that is the embedding is not one."""
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if not (config.tie_word_embeddings and name == "lm_head.weight"):
            yield name, tuple(parameter.shape)


def random_tensors(config: PretrainedConfig, group: int | None) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the model: norms of ones, the rest normal; linear layers in 4 bits where there is a group."""
    pool, dtype = Pool(), getattr(torch, str(config.dtype).removeprefix("torch."))
    for name, shape in parameters(config):
        if len(shape) == 1:
            yield name, torch.ones(shape, dtype=dtype)
        elif group is None or not name.endswith("_proj.weight"):
            yield name, pool.normal(shape, dtype)
        else:
            (n, k), module = shape, name.removesuffix(".weight")
            yield f"{module}.qweight", pool.words((k, n // PER_WORD))
            yield f"{module}.qzeros", pool.words((k // group, n // PER_WORD))
            yield f"{module}.scales", pool.normal((k // group, n), dtype).abs() * (STEP / STD)


def stored_config(config: PretrainedConfig, group: int | None) -> dict[str, Any]:
    if group is None:
        return config.to_dict()
    awq = {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": group, "zero_point": True}
    return config.to_dict() | {"quantization_config": awq | {"modules_to_not_convert": ["lm_head"]}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("output", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True, help="a folder with any tokenizer")
    parser.add_argument("--awq", type=int, metavar="GROUP", help="4-bit weights in groups of so many")
    args = parser.parse_args()
    config = MODELS[args.model]
    with new_folder(args.output) as folder:
        write_shards(folder, random_tensors(config, args.awq))
        copy_companions(args.tokenizer, folder)
        write_config(folder, stored_config(config, args.awq))


if __name__ == "__main__":
    main()
