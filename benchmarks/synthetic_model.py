"""Writes a model folder of a known model's true shapes with random weights, to measure memory and time without one.

    python -m benchmarks.synthetic_model llama-3-8b OUT --tokenizer FOLDER
    python -m awq.entry --model_path OUT --w_bit 4 --q_group_size 128 --run_awq --dump_awq r.pt \\
        --calib_data TEXT --layers 0:2
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from awq.formats.output import copy_companions, new_folder, write_shards

LLAMA_3: dict[str, Any] = {
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "architectures": ["LlamaForCausalLM"],
    "dtype": "bfloat16",
}
MODELS = {
    "llama-3-8b": LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, **LLAMA_3
    ),
    "llama-3-70b": LlamaConfig(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, **LLAMA_3
    ),
}
STD = 0.02
POOL = 1 << 26  # random numbers that are made; each tensor starts somewhere else among them


def random_tensors(config: LlamaConfig) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the model in bf16: norms of ones, the rest normal."""
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(0)
    pool = (torch.randn(POOL, generator=generator) * STD).to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            yield name, torch.ones(parameter.shape, dtype=torch.bfloat16)
            continue
        start = int(torch.randint(POOL, (1,), generator=generator))
        repeats = -(-(start + parameter.numel()) // POOL)
        yield name, pool.repeat(repeats)[start : start + parameter.numel()].view(parameter.shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("output", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True, help="a folder with any tokenizer of fewer tokens")
    args = parser.parse_args()
    config = MODELS[args.model]
    with new_folder(args.output) as folder:
        write_shards(folder, random_tensors(config))
        copy_companions(args.tokenizer, folder)
        config.save_pretrained(folder)


if __name__ == "__main__":
    main()
